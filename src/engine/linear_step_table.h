#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// The steps of which methods of quantizing linear layers are made: one row each.
namespace weft::engine {

class LinearStep;
struct LinearPlan;

/// Where in the chain a step stands. Steps of one place are carried out in the order in which they are written.
enum class StepPlace : std::uint8_t {
  model,    ///< changes the whole model before anything else
  channel,  ///< changes a block before its layers are looked at: scales of channels; one of them at most
  weights,  ///< changes a layer's weights before they become codes
  codes,    ///< finds the codes; one of them, round to nearest where none is named
  repair,   ///< adds to the codes what they lost
  block,    ///< changes a block once its layers are quantized
};

/// A number that a step takes: --set STEP.NAME=VALUE.
struct StepParameter {
  std::string_view name;
  double value;        ///< where nothing is said
  double least, most;  ///< that make sense
  std::string_view help;
};

/// One row of the table of steps.
struct LinearStepInfo {
  std::string_view name;
  StepPlace place;
  bool needs_activations;
  bool adds;  ///< something beside codes and scales, or zero points that are no integers: weft's own form only
  std::string_view summary;
  std::string_view source;
  std::vector<StepParameter> parameters;
  std::unique_ptr<LinearStep> (*make)(const LinearPlan& plan);
  char determinism = 'C';  ///< A where every machine gives the same bytes; what a model was run for is within a bound only
};
/// In the order in which they are explained.
[[nodiscard]] const std::vector<LinearStepInfo>& linear_steps();
/// Null for an unknown one.
[[nodiscard]] const LinearStepInfo* find_linear_step(std::string_view name);
/// "awq+gptq" into its names.
[[nodiscard]] std::vector<std::string> split_steps(std::string_view method);

}  // namespace weft::engine
