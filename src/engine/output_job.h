#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/journal.h"
#include "checkpoint/output.h"
#include "checkpoint/gguf_writer.h"
#include "engine/encode_rows.h"
#include "engine/merge_tokenizer.h"
#include "engine/tensor_stream.h"
#include "weft/job.h"

// Planned walks carried out into output folders: the part that merge, convert and later writers share.
namespace weft::engine {

/// Everything that one output consists of.
struct OutputJob {
  std::vector<StreamTensor> tensors;             ///< in layer order
  std::vector<PlannedTensor> described;          ///< one a tensor; file, offset and size are filled in by the layout
  std::vector<CompanionFile> companions;
  std::vector<std::shared_ptr<const Checkpoint>> inputs;      ///< checked for changes at the end
  std::vector<std::filesystem::path> input_paths;             ///< must not be the output
  std::map<std::string, std::string> header_metadata;         ///< beside "format": "pt"
  std::map<std::string, std::string> index_metadata;
  bool single_file = false;                                   ///< the output is one file; no companions
  /// The output is GGUF: what each tensor is stored as, and the metadata.
  struct Gguf {
    GgufMetadata metadata;
    std::vector<GgufTensorSpec> tensors;
    std::vector<bool> encodes;  ///< one a tensor: its float32 values become blocks on their way; otherwise what the walk gives is stored
    std::vector<Encoding> encodings;         ///< one a tensor, or none at all
    std::shared_ptr<EncodingErrors> errors;  ///< null: not measured
    std::vector<std::size_t> parts;          ///< number of the first tensor of each part of a file that is split just so; empty: by size
  };
  std::optional<Gguf> gguf;
  /// What else decides the result, beside the plan of the tensors, the inputs and the options of every job: a config's text, say. Empty: the job cannot
  /// go on after it was stopped.
  std::vector<JournalHead::Ingredient> ingredients;
  std::vector<std::string> warnings;
  bool write_into_existing = false;
  std::function<void(std::size_t tensor)> on_finished;  ///< told of each tensor that is completely written, by an earlier run too; one call at a time
};

/// Several outputs made in one walk, layer by layer, so that an input which they share is read while it is still at hand, and an output that a later
/// one reads is taken from where it has just been written. With one output it is simply a job.
class JobBatch {
 public:
  /// options must live as long as the batch.
  JobBatch(const JobOptions& options, const char* what);
  ~JobBatch();  ///< removes what was built, unless run() has put it in place, or kept it for a later job
  JobBatch(const JobBatch&) = delete;
  JobBatch& operator=(const JobBatch&) = delete;

  /// What add() gives later outputs to read.
  struct Result {
    std::shared_ptr<const Checkpoint> checkpoint;  ///< its tensors; their bytes can be read once the walk has written them
    std::filesystem::path folder;                  ///< holds the companions already
  };
  /// Plans the files and, unless it is a dry run, takes the output's place and writes its companions.
  /// Where the same job was stopped, it goes on with what that left.
  /// needs_folder: the result will be an input of a later output. Errors: invalid_argument when the output is one of the inputs or exists, or when a job
  /// for it was stopped that is not the same; io, no_space.
  Result add(OutputJob job, const std::filesystem::path& output, bool needs_folder = false);

  /// Computes and writes everything and puts the outputs in place, in the order in which they were added. Once. After a failure (exit status 1) what
  /// is finished is kept, and named in the error.
  [[nodiscard]] std::vector<JobReport> run();

 private:
  struct Entry;
  class ResultCheckpoint;
  void make_output(Entry& entry, OutputLayout layout, const std::filesystem::path& output);
  Result give_result(Entry& entry, bool needs_folder);
  std::vector<JobReport> carry_out();
  [[noreturn]] void fail(const Error& error);
  std::vector<StreamTensor> interleave(std::vector<std::pair<std::size_t, std::size_t>>& places);

  const JobOptions& options_;
  const char* what_;
  std::vector<std::unique_ptr<Entry>> entries_;
};

}  // namespace weft::engine
