#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/job.h"

namespace weft {

/// What became of one weight matrix.
struct QuantizedLayer {
  std::string name;                     ///< in the output
  std::string method;                   ///< "Q4_K", "gptq", ...
  double bits = 0;                      ///< per weight, scales and all
  std::optional<double> relative_loss;  ///< weighted squared error / weighted squares; absent where it was not measured now
};

struct QuantizeOptions : JobOptions {
  std::string format;                                      ///< "gguf:Q4_K_M"; see quantize_formats()
  std::string method;                                      ///< empty: the format's own
  std::string rules_text;                                  ///< lines PATTERN=TYPE; # begins a comment
  std::vector<std::pair<std::string, std::string>> rules;  ///< PATTERN (a regular expression looked for in the name), TYPE ("keep": as stored)
  OpenOptions open;
  std::function<void(const QuantizedLayer&)> on_layer;  ///< called as each is done

  // GGUF
  bool pure = false;                                             ///< every weight in the one type, without llama.cpp's mix
  bool better = false;                                           ///< search on for a smaller weighted error at the same size and type
  std::filesystem::path imatrix;                                 ///< importance matrix: how much each input counts
  std::string output_type;                                       ///< of output.weight
  std::string token_embedding_type;                              ///< of token_embd.weight
  bool leave_output = false;                                     ///< output.weight stays as it is
  std::vector<std::string> include_weights, exclude_weights;     ///< parts of names: for which weights the importance matrix is used
  std::vector<std::uint64_t> prune_layers;                       ///< left out; the others move up
  std::vector<std::pair<std::string, std::string>> override_kv;  ///< key, TYPE:VALUE (int, float, bool, str)
  bool keep_split = false;                                       ///< the output has the parts that the input has
  bool allow_requantize = false;                                 ///< decode what is in blocks already, and encode it again
};

struct QuantizeReport : JobReport {
  std::vector<QuantizedLayer> layers;
  double bits_per_weight = 0;  ///< of the whole file's tensors
};

/// A format in which quantized models are written.
struct QuantizeFormat {
  std::string name;  ///< "gguf"
  std::string summary;
  std::string example;  ///< "gguf:Q4_K_M"
};
/// All of them.
[[nodiscard]] WEFT_API std::vector<QuantizeFormat> quantize_formats();
/// Types of GGUF files, most bits first: name, about how many bits a weight takes.
[[nodiscard]] WEFT_API std::vector<std::pair<std::string, double>> gguf_types();

/// Writes a model with fewer bits a weight.
/// Errors: invalid_argument (format, rules that match nothing, contradicting options), unsupported, not_found, corrupt, io, no_space.
/// Determinism: the same bytes for any number of threads.
[[nodiscard]] WEFT_API QuantizeReport quantize(std::string_view model, const std::filesystem::path& output, const QuantizeOptions& options);

}  // namespace weft
