#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/journal.h"
#include "engine/activations.h"
#include "engine/chosen_positions.h"
#include "engine/lazy_model.h"
#include "engine/running_model.h"
#include "weft/calibrate.h"
#include "weft/forward.h"
#include "weft/job.h"

// Quantizing the linear layers of a model's blocks to the folders of GPTQ, AWQ, compressed-tensors and bitsandbytes: rounding matrix by matrix, or
// block by block with the activations of calibration texts.
namespace weft::engine {

/// What is done to layers whose names a pattern is found in; the first that matches decides.
struct LinearRule {
  std::string pattern;  ///< RE2
  bool keep = false;    ///< as it is
  std::optional<int> bits;
  std::optional<std::int64_t> group;
  std::string method = {};  ///< what finds the codes, in place of the method's own: rtn, hqq, gptq, gptaq; empty: that
};

struct LinearQuantizeOptions : RunOptions {
  std::string method = "rtn";  ///< steps joined by +; engine/linear_step.h has the table
  /// Numbers that steps take: "STEP.NAME" to value.
  std::map<std::string, double> parameters;
  std::string format = "gptq";  ///< gptq, gptq_v2, awq, compressed-tensors, bnb-nf4, bnb-fp4, bnb-int8, weft
  std::string numbers =
      "int";  ///< of compressed-tensors: int, fp8, fp8-block, nvfp4, mxfp4, mxfp6, mxfp8; of weft also nf4, e2m1, e2m3, e3m2, e4m3, e5m2
  int bits = 4;
  std::int64_t group = 128;       ///< inputs a scale; 0: a whole row
  std::optional<bool> symmetric;  ///< absent: what the format usually has
  std::string search;             ///< of scales: none, shrink, least-squares; empty: shrink where errors are made good, else none
  double damping = 0.05;
  std::string order = "static";   ///< of columns: groups, static, dynamic, none; docs/command-line.md says what each is
  double drift = 0.25;            ///< of gptaq
  double smoothing = 0.5;         ///< exponent of smooth
  std::int64_t rank = 8;          ///< of lorc
  double exact = 0.001;           ///< share of weights that exact leaves out of the codes
  bool nested = false;            ///< bitsandbytes' scales in 8 bits
  bool allow_requantize = false;  ///< take weights that are quantized already
  std::vector<LinearRule> rules;
  /// Widths are chosen for each layer, so that all of them lose least, instead of `bits` for all: the quantized layers may take so many bits a
  /// weight, scales and all; the tensors of the whole model so many bytes. A rule's width stays.
  std::optional<double> budget_bits;
  std::optional<std::uint64_t> budget_bytes;
  std::string budget_by = "loss";  ///< the layers' losses; the model's (model); or whole blocks, one of two widths, by lim or by zd (weights alone)
  std::vector<int> widths;         ///< to choose from; empty: all that the format holds, of lim and zd 2 and 4
  /// What the model is run on: texts, or tokens as they are. Neither: only methods that need none.
  std::optional<CalibrationText> calibration;
  std::shared_ptr<const CalibrationTokens> tokens;
  std::vector<JournalHead::Ingredient> ingredients;  ///< that a stopped job must have had, beside its own
  /// Weights that pqi is to leave out of the codes, by tensor, instead of choosing them. Null: it chooses.
  const ChosenPositions* taken_at = nullptr;
  struct Layer;
  std::function<void(const Layer&)> on_layer;  ///< as each is done, from one thread at a time
};

/// What became of one layer.
struct LinearQuantizeOptions::Layer {
  std::string name;
  std::string method;
  double bits = 0;           ///< stored, a weight, scales and all
  double relative_loss = 0;  ///< of its outputs on the calibration texts; of its weights without any
};

struct LinearQuantizeReport : JobReport {
  std::vector<LinearQuantizeOptions::Layer> layers;
  double linear_bits = 0;  ///< a weight of the layers that were quantized
  double model_bits = 0;   ///< a weight of the whole model
};

/// Errors: invalid_argument for options that contradict each other or what the format holds, rules that match nothing, a model that is quantized
/// already; unsupported for layers that the format has no place for, naming them; corrupt for weights or activations that are no numbers.
[[nodiscard]] LinearQuantizeReport quantize_linear(std::string_view model, const std::filesystem::path& output, const LinearQuantizeOptions& options);
/// Of a model that exists as views only.
[[nodiscard]] LinearQuantizeReport quantize_linear(LazyModel model, const std::filesystem::path& output, const LinearQuantizeOptions& options);
/// Whether the method needs calibration texts.
[[nodiscard]] bool needs_calibration(std::string_view method);
/// Whether the model is run: the method needs it, or there is a text to see by what is lost.
[[nodiscard]] bool wants_activations(const LinearQuantizeOptions& options);

}  // namespace weft::engine
