#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weft/checkpoint.h"
#include "weft/job.h"

namespace weft {

/// What a model is, from headers and configs alone.
struct ModelInfo {
  std::filesystem::path path;
  std::string container;
  std::vector<CheckpointFile> files;
  std::string architecture;             ///< "LlamaForCausalLM"; empty when unknown
  std::string model_type;
  std::uint64_t num_parameters = 0;
  std::uint64_t size_bytes = 0;         ///< of the tensors
  double bits_per_weight = 0;
  std::string quantization;             ///< from quantization_config; empty for none
  std::string tokenizer_kind;           ///< "BPE", "Unigram", "WordPiece", "sentencepiece"; empty for none
  std::uint64_t tokenizer_vocab_size = 0;
  std::vector<std::pair<std::string, std::string>> metadata;
  struct Tensor {
    TensorInfo tensor;
    std::string file;
    std::string role;                   ///< "embed", "head", "q", "norm", ...; empty when unknown
  };
  std::vector<Tensor> tensors;
  std::vector<std::pair<std::string, std::string>> skipped;  ///< of a PyTorch file: what is no tensor, key and kind
  std::vector<std::string> warnings;
};
[[nodiscard]] WEFT_API ModelInfo inspect(std::string_view model);

struct VerifyProblem {
  std::string code;                     ///< of ErrorCode, or "non_finite", "missing_tensor", "unexpected_tensor", "shape", "metadata", ...
  std::string file;
  std::string tensor;
  std::string message;
};
struct VerifyReport {
  bool ok = true;
  std::uint64_t checked_bytes = 0;
  std::vector<VerifyProblem> problems;
  std::vector<std::string> notes;       ///< odd, but not wrong
};
/// Reads everything: headers, index, every payload byte, values (NaN and infinities), config against tensors. Damage is a result, not an error.
[[nodiscard]] WEFT_API VerifyReport verify(std::string_view model, const JobOptions& options = {});

struct TensorDiff {
  std::string name;
  Shape shape_a, shape_b;
  DType dtype_a = DType::f32, dtype_b = DType::f32;
  bool comparable = true;               ///< same shape
  bool equal_bytes = false;
  std::uint64_t num_elements = 0;
  std::uint64_t num_changed = 0;
  double max_abs = 0;
  double l2_a = 0;
  double l2_diff = 0;
  double cosine = 1;
};
struct DiffReport {
  bool equal = false;
  std::vector<std::string> only_in_a, only_in_b;
  std::vector<TensorDiff> tensors;
  TensorDiff total;
};
/// Compares values tensor by tensor (float32 values, float64 sums in a fixed order).
[[nodiscard]] WEFT_API DiffReport diff(std::string_view a, std::string_view b, const JobOptions& options = {});

struct ConvertOptions : JobOptions {
  std::optional<DType> dtype;           ///< of floating tensors; absent: as stored
  std::string block_type;               ///< instead of dtype, for GGUF: "Q8_0"
  std::string to;                       ///< "folder", "safetensors", "gguf"; empty: from OUT's name
  OpenOptions open;                     ///< how a PyTorch file is looked at
};
/// Changes dtype, shards and container. Integer and boolean tensors keep their type.
[[nodiscard]] WEFT_API JobReport convert(std::string_view model, const std::filesystem::path& output, const ConvertOptions& options = {});

}  // namespace weft
