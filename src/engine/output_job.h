#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/merge_tokenizer.h"
#include "engine/tensor_stream.h"
#include "weft/job.h"

// A planned walk carried out into an output folder: the part that merge, convert and later writers share.
namespace weft::engine {

/// Everything that a job writes into a folder.
struct FolderJob {
  const char* what = "writing";                  ///< for progress
  std::vector<StreamTensor> tensors;             ///< in layer order
  std::vector<PlannedTensor> described;          ///< one a tensor; file, offset and size are filled in here
  std::vector<CompanionFile> companions;
  std::vector<std::shared_ptr<const Checkpoint>> inputs;      ///< checked for changes at the end
  std::vector<std::filesystem::path> input_paths;             ///< must not be the output
  std::map<std::string, std::string> header_metadata;         ///< beside "format": "pt"
  std::map<std::string, std::string> index_metadata;
  bool single_file = false;                                   ///< the output is one .safetensors file; no companions
  std::vector<std::string> warnings;
  bool write_into_existing = false;
};

/// Plans the files, and unless options.dry_run computes and writes them and puts the folder in place.
/// Errors: invalid_argument when the output is one of the inputs or exists; those of the stream and of writing.
[[nodiscard]] JobReport run_folder_job(FolderJob job, const std::filesystem::path& output, const JobOptions& options);

}  // namespace weft::engine
