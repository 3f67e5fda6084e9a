#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "weft/forward.h"

namespace weft {

/// Texts as token sequences of one length for statistics. A file that ends in .jsonl holds one document a line: a string, {"text"}, or {"messages"},
/// which the model's chat template writes; any other file is one text. Documents are encoded one by one without special tokens (a chat template
/// writes its own), put one behind the other, and cut into sequences.
struct CalibrationText {
  std::vector<std::filesystem::path> files;
  std::uint64_t num_sequences = 128;                                       ///< 0: all that the texts give
  std::uint64_t length = 256;                                              ///< tokens of a sequence
  enum class Order : std::uint8_t { first, random } order = Order::first;  ///< which of them: those at the beginning, or drawn by the seed
  bool separate = false;  ///< each document a sequence of its own, cut to the length, instead of all behind each other
};

struct CalibrateOptions : RunOptions {
  CalibrationText text;
  bool gram = false;  ///< also the second moments of inputs, [width, width] each
};

/// What was seen of one linear layer's input.
struct CalibratedLayer {
  std::string name;  ///< of the weight
  std::uint64_t num_tokens = 0;
  std::uint64_t width = 0;
  double mean = 0, mean_abs = 0, mean_square = 0, max_abs = 0;  ///< over tokens and columns
};

struct CalibrateReport : JobReport {
  std::vector<CalibratedLayer> layers;
  std::uint64_t num_sequences = 0, sequence_length = 0, num_tokens = 0;
};

/// Runs the model over the texts and writes statistics of what its linear layers read: a safetensors artefact, or, for an output that ends in .gguf,
/// an importance matrix for llama.cpp. Goes on behind the blocks that are finished when it was stopped. Errors: invalid_argument for texts that are
/// too short or of a wrong form, naming file and line; unsupported for an importance matrix of an architecture that llama.cpp does not know; corrupt
/// for activations that are NaN or infinite.
[[nodiscard]] WEFT_API CalibrateReport calibrate(std::string_view model, const std::filesystem::path& output, const CalibrateOptions& options);

}  // namespace weft
