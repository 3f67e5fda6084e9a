#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "codec/block_codec.h"
#include "engine/output_job.h"
#include "model/gguf_model.h"
#include "weft/checkpoint.h"

// Jobs that write GGUF files, and GGUF files as models of other jobs.
namespace weft::engine {

/// What floating-point tensors become. Both absent: as stored.
struct GgufWeightType {
  std::optional<DType> dtype;
  const codec::BlockCodec* codec = nullptr;
};
/// From the command line: a type of the format ("float16", "Q8_0"). Errors: invalid_argument, naming those that can be written.
[[nodiscard]] GgufWeightType gguf_weight_type(const std::optional<DType>& dtype, const std::string& block_type);

/// A tensor of which the type in the file is to be chosen.
struct GgufCandidate {
  std::string name;  ///< in the file
  Shape shape;
  DType dtype = DType::f32;                   ///< of its values
  const codec::BlockCodec* stored = nullptr;  ///< the blocks that its values are in now
  std::uint32_t part = 0;                     ///< of an input that is split: which part it is in
  std::string quantized_as = {};              ///< "GPTQ4", "Q4_K": what its values were decoded from, in blocks or not; empty: they were stored as numbers
  bool fixed = false;                         ///< stays as it is whatever is chosen: integers, and what llama.cpp wants in float32
};
/// The type of each candidate; sees the metadata that the file will have.
using GgufChooser = std::function<std::vector<GgufWeightType>(const std::vector<GgufCandidate>&, const GgufMetadata&)>;

/// A model that will become a GGUF file.
struct GgufSource {
  std::string name;                              ///< as the user wrote it
  std::shared_ptr<const Checkpoint> checkpoint;  ///< tensors with Hugging Face's names
  Json config;
  std::filesystem::path folder;  ///< with the tokenizer's files; read at once
  std::string title;             ///< general.name
};
/// Fills `tensors`, `described`, `gguf` and `warnings`; inputs are the caller's. Errors: unsupported for architectures, tensors and tokenizers that
/// llama.cpp does not know.
[[nodiscard]] OutputJob gguf_job(const GgufSource& source, const GgufWeightType& type);
[[nodiscard]] OutputJob gguf_job_choosing(const GgufSource& source, const GgufChooser& choose);
/// A GGUF file to a GGUF file: blocks are copied unless a type is given.
[[nodiscard]] OutputJob gguf_copy_job(const std::string& name, const std::shared_ptr<const Checkpoint>& checkpoint, const GgufWeightType& type);
[[nodiscard]] OutputJob gguf_copy_job_choosing(const std::string& name, const std::shared_ptr<const Checkpoint>& checkpoint,
                                               const GgufChooser& choose);

/// A GGUF file with adapters folded in (what adapt::held_model gives) to a GGUF file: all that they do not change is copied.
[[nodiscard]] OutputJob gguf_fold_job(const std::string& name, const model::HuggingFaceModel& folded, const GgufWeightType& type);

/// A folder that is removed with its content.
class ScratchFolder {
 public:
  ScratchFolder();  ///< among the system's temporary files
  /// Hidden, beside an output, where there is room for what is as large. Errors: io.
  explicit ScratchFolder(const std::filesystem::path& output);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A GGUF file opened as a Hugging Face model, with the small files that belong to it in a folder that lives as long as `guard`.
struct GgufModel {
  std::shared_ptr<const Checkpoint> checkpoint;
  Json config;
  std::filesystem::path folder;
  std::shared_ptr<const void> guard;
  std::vector<std::string> warnings;
};
[[nodiscard]] GgufModel open_gguf_model(model::HuggingFaceModel model);

/// "tiny-base" -> "Tiny Base".
[[nodiscard]] std::string title_of(const std::filesystem::path& path);

}  // namespace weft::engine
