#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/packed_linear.h"
#include "engine/block_pass.h"
#include "engine/input_statistics.h"
#include "engine/linear_plan.h"
#include "engine/linear_step_table.h"

// A method of quantizing linear layers is a chain of steps ("awq+gptq+lorc"). Each is a small class here; the mathematics is in quantize/.
namespace weft::engine {

/// A layer on its way to codes.
struct LinearLayer {
  const LinearTarget& target;
  std::span<const float> original;              ///< [rows, columns]
  const InputStatistics* statistics = nullptr;  ///< of what it reads; null where no token came by or nobody looked
  Block* block = nullptr;                       ///< null without activations
  bool tries = false;                           ///< only to see what it would lose: nothing is told, and the inputs are those of unchanged blocks
  quantize::SolverOptions solver = {};
  std::vector<float> values = {};                    ///< what becomes codes; steps before the codes change it
  std::optional<codec::QuantizedLinear> codes = {};  ///< absent behind the steps: the format's own rounding of `values`
  std::string method = {};                           ///< what it is called in tables
  /// Weights that stay as they are, beside the codes: row * columns + column, ascending, and their values.
  std::vector<std::int64_t> taken_at = {};
  std::vector<float> taken = {};
  std::vector<std::int64_t> held_at = {};  ///< of them, those that are to come out exactly as they are, whatever compensation does

  [[nodiscard]] std::span<const double> gram() const { return statistics == nullptr ? std::span<const double>() : statistics->gram; }
  /// Of the inputs: the diagonal of the gram. Empty without one.
  [[nodiscard]] std::vector<float> importance() const;
  /// The codes, found by rounding where there are none yet.
  codec::QuantizedLinear& need_codes();
  /// Weights to be kept in the layer's own type: 0 in `values` from now on, until put_back() stores them beside the codes.
  void take_out(std::vector<std::int64_t> at);
  void put_back();
  /// Gives those that are held the code for 0, and themselves beside it. Behind all steps.
  void hold();
  /// Tells the user once, also after a resumed run.
  void warn(std::string_view key, std::string text);
  /// Calls work(first, count) for slabs of the rows, with the network's threads where there are any.
  void for_each_slab(const std::function<void(std::int64_t first, std::int64_t count)>& work) const;
};

/// One step. Without activations layers are handled by several threads at once, so that only steps that need activations may keep state.
class LinearStep {
 public:
  virtual ~LinearStep() = default;
  /// Changes what the plan starts from: the kind of numbers, how scales are searched.
  virtual void configure(LinearPlan& plan) { static_cast<void>(plan); }
  /// Before anything is read: views on the model's tensors and its config. Returns whether it changed any.
  virtual bool change_model(LinearPlan& plan, LazyModel& model) { return static_cast<void>(plan), static_cast<void>(model), false; }
  /// The activations of the unchanged model are needed beside those behind quantized blocks.
  [[nodiscard]] virtual bool two_streams(const LinearPlan& plan) const { return static_cast<void>(plan), false; }
  /// Each layer must read what the ones before it give after they were quantized.
  [[nodiscard]] virtual bool in_sequence() const { return false; }
  virtual void want(StatisticsRequest& request, const LinearPlan& plan) const { static_cast<void>(request), static_cast<void>(plan); }
  /// With the model that runs, before its blocks are passed: steps that look at the whole of it. tokens: may be replaced by others.
  virtual void before_pass(LinearPlan& plan, RunningModel& model, std::shared_ptr<const CalibrationTokens>& tokens) {
    static_cast<void>(plan), static_cast<void>(model), static_cast<void>(tokens);
  }
  virtual void before_block(LinearPlan& plan, Block& block) { static_cast<void>(plan), static_cast<void>(block); }
  /// Statistics are gathered anew: what was made of earlier ones is of no use.
  virtual void new_statistics() {}
  virtual void before_codes(LinearLayer& layer) { static_cast<void>(layer); }
  virtual void find_codes(LinearLayer& layer) { static_cast<void>(layer); }
  virtual void after_codes(LinearLayer& layer) { static_cast<void>(layer); }
  virtual void after_block(LinearPlan& plan, Block& block) { static_cast<void>(plan), static_cast<void>(block); }
};

/// What the user gave, or the default. Errors: internal for a name that the table does not have.
[[nodiscard]] double step_parameter(const LinearQuantizeOptions& options, std::string_view step, std::string_view name);
/// Errors: invalid_argument for steps that do not go together, saying why.
void refuse_conflicts(const LinearQuantizeOptions& options);
/// Errors: invalid_argument for parameters of steps that the method does not have, unknown names, values out of range.
void check_step_parameters(const LinearQuantizeOptions& options);

// What the table's rows are made of: one file a family.
// linear_rounding.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_rtn_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_hqq_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_clip_step(const LinearPlan& plan);
// linear_scale_forms.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_fireq_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_shifts_step(const LinearPlan& plan);
// linear_compensation.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_gptq_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_gptaq_step(const LinearPlan& plan);
// linear_keys.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_keys_step(const LinearPlan& plan);
// linear_super.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_super_step(const LinearPlan& plan);
// linear_decouple.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_decoupleq_step(const LinearPlan& plan);
// linear_refinement.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_refine_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_halfway_step(const LinearPlan& plan);
// linear_scales.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_awq_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_smooth_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_dsq_step(const LinearPlan& plan);
// linear_smoothplus.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_smoothplus_step(const LinearPlan& plan);
// linear_rotation.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_rotate_step(const LinearPlan& plan);
// linear_tokens.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_rsq_step(const LinearPlan& plan);
// linear_axis.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_adadim_step(const LinearPlan& plan);
// linear_shift.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_dac_step(const LinearPlan& plan);
// linear_additions.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_exact_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_lorc_step(const LinearPlan& plan);
// linear_gradients.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_gwq_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_pqi_step(const LinearPlan& plan);
// linear_learning.cc
[[nodiscard]] std::unique_ptr<LinearStep> make_adaquant_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_omniquant_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_flexround_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_lrq_step(const LinearPlan& plan);
[[nodiscard]] std::unique_ptr<LinearStep> make_tune_step(const LinearPlan& plan);

}  // namespace weft::engine
