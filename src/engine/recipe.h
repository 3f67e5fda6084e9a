#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "edit/operation.h"
#include "engine/merge_config.h"
#include "engine/yaml.h"
#include "weft/dtype.h"
#include "weft/quantize.h"

// Recipes: what the YAML says, checked as far as that is possible without looking at a model. Either mergekit's configs, one a document, each a step,
// or
//
//   steps:
//     - name: soup                  # what later steps call the result
//       merge: {merge_method: linear, models: [...]}     # a mergekit config, or the path of one
//     - edit: [{drop: lm_head}, {cast: ".=bfloat16"}]    # of the step before, or {model: NAME, operations: [...]}
//     - fold: {adapter: ./lora, scale: 0.5}
//     - convert: {dtype: float16}
//     - quantize: {format: gptq, method: gptq, calibration: text.txt}   # or only a format; the last step
//   output: out/model
//   seed: 7
namespace weft::engine {

struct EditStep {
  std::string model;  ///< a step's name, or a model
  std::vector<edit::Request> requests;
};
struct FoldStep {
  std::string model;
  std::string adapter;  ///< a folder or file
  double scale = 1;
};
struct ConvertStep {
  std::string model;
  std::optional<DType> dtype;
  std::string block_type = {};  ///< instead of dtype, in the last step: "Q8_0"
};

/// The last step.
struct QuantizingStep {
  std::string model;
  QuantizeOptions options;  ///< without those of every job
};

struct Step {
  std::string name;  ///< never empty: unnamed ones are called "step 2"
  bool named = false;
  yaml::Place place;
  std::variant<MergeConfig, EditStep, FoldStep, ConvertStep, QuantizingStep> what;

  [[nodiscard]] std::string_view verb() const noexcept;  ///< "merge"
};

struct Recipe {
  std::vector<Step> steps;  ///< never empty; each uses only earlier ones
  std::optional<std::string> output;
  std::optional<std::uint64_t> seed;
  std::string text;
};

/// Errors: invalid_argument naming file, line and key: unknown keys and verbs (with the nearest right ones), malformed operations, names used twice
/// or before they are made, nothing to do. A merge given by its path is read.
[[nodiscard]] Recipe parse_recipe(std::string_view text, const std::string& file, const MergeConfigOptions& options,
                                  std::vector<std::string>& warnings);

}  // namespace weft::engine
