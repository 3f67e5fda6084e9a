#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/calibrate.h"
#include "weft/job.h"

namespace weft {

/// What became of one weight matrix.
struct QuantizedLayer {
  std::string name;                     ///< in the output
  std::string method;                   ///< "Q4_K", "gptq", ...
  double bits = 0;                      ///< per weight, scales and all
  std::optional<double> relative_loss;  ///< weighted squared error / weighted squares; absent where it was not measured now
};

/// How the linear layers of a model's blocks become codes in the folders of GPTQ, AWQ, compressed-tensors, bitsandbytes, and weft's own.
struct LinearQuantization {
  std::string numbers = "int";    ///< what codes stand for; of compressed-tensors also fp8, fp8-block, nvfp4, mxfp4, mxfp6, mxfp8, of weft nf4, e2m1,
                                  ///< e2m3, e3m2, e3m0, e4m3, e5m2
  int bits = 4;                   ///< of integer codes
  std::int64_t group = 128;       ///< inputs a scale; 0: a whole row
  std::optional<bool> symmetric;  ///< without zero points; absent: what the format usually has
  std::string search;             ///< of scales: none, shrink, least-squares; empty: shrink where errors are made good, else none
  double damping = 0.05;          ///< share of the mean added to the inputs' second moment
  std::string order = "static";   ///< of columns: groups, static, dynamic, none; docs/command-line.md says what each is
  double drift = 0.25;            ///< of gptaq
  double smoothing = 0.5;         ///< of smooth
  std::int64_t rank = 8;          ///< of lorc
  double exact = 0.001;           ///< share of the weights that `exact` leaves out of the codes
  std::map<std::string, double> parameters;  ///< of other steps, "STEP.NAME"; see quantize_steps()
  bool nested = false;                       ///< bitsandbytes' scales in 8 bits
  /// A width for each layer instead of `bits` for all, so that the layers' losses sum to the least within the budget. Of the quantized layers, bits a
  /// weight with scales and all; of all the model's tensors, bytes.
  std::optional<double> budget_bits;
  std::optional<std::uint64_t> budget_bytes;
  std::string budget_by = "loss";  ///< or by the whole model's loss (model); or whole blocks get one of two widths, by lim or zd
  std::vector<int> widths;         ///< to choose from; empty: all that the format holds, of lim and zd 2 and 4
  CalibrationText calibration;     ///< no files: only methods that need none
};

struct QuantizeOptions : JobOptions {
  std::string format;                                      ///< "gguf:Q4_K_M"; see quantize_formats()
  std::string method;                                      ///< empty: the format's own
  std::string rules_text;                                  ///< lines PATTERN=TYPE; # begins a comment
  std::vector<std::pair<std::string, std::string>> rules;  ///< PATTERN (a regular expression looked for in the name), TYPE ("keep": as stored)
  OpenOptions open;
  std::function<void(const QuantizedLayer&)> on_layer;  ///< called as each is done

  // Folders
  LinearQuantization linear;

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
  double bits_per_weight = 0;         ///< of the whole file's tensors
  double linear_bits_per_weight = 0;  ///< of the layers that were quantized; 0 for GGUF files
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

/// A step of a method for folders: "awq" of "awq+gptq".
struct QuantizeStep {
  struct Parameter {
    std::string name;
    double value = 0;            ///< unless one is given
    double least = 0, most = 0;  ///< that make sense
    std::string help;
  };
  std::string name;
  std::string place;   ///< what it changes: model, channels, weights, codes, repair, block
  std::string source;  ///< the method it comes from
  std::string summary;
  bool needs_text = false;  ///< looks at what layers read
  bool own_only = false;    ///< only weft's own form holds the result
  std::string determinism;  ///< A: the same bytes on every machine; C: for any number of threads on one machine, elsewhere within a bound
  std::vector<Parameter> parameters;
};
/// All of them, in the order in which they are carried out.
[[nodiscard]] WEFT_API std::vector<QuantizeStep> quantize_steps();

/// Writes a model with fewer bits a weight.
/// Errors: invalid_argument (format, rules that match nothing, contradicting options), unsupported, not_found, corrupt, io, no_space.
/// Determinism: the same bytes for any number of threads.
[[nodiscard]] WEFT_API QuantizeReport quantize(std::string_view model, const std::filesystem::path& output, const QuantizeOptions& options);

}  // namespace weft
