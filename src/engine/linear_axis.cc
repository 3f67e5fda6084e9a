#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "engine/linear_step.h"
#include "quantize/solver.h"

// AdaDim: groups of a layer lie along its inputs or along its outputs, whichever changes less of what comes out.
namespace weft::engine {
namespace {

using model::Role;

/// Batches whose outputs are compared: what differs so much that it matters shows in a few.
constexpr std::size_t kMostBatches = 4;

class AdaDimStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    if (!plan.integers()) refuse_linear("method", "adadim groups integer codes", "use --numbers int");
  }

  void before_block(LinearPlan& plan, Block& block) override {
    by_output_.clear();
    StatisticsRequest request;
    request.gram = true;
    for (const model::BlockTensor* tensor : block.linears()) {
      const InputPoint point = input_point(tensor->slot.role, tensor->slot.expert);
      if (plan.find(tensor->tensor->name) == nullptr || sees_whole_block(point)) continue;
      if (std::find(request.points.begin(), request.points.end(), point) == request.points.end()) request.points.push_back(point);
    }
    // Layers that write the stream, and experts: by their own outputs.
    if (!request.points.empty())
      for (const InputStatistics& read : block.statistics(request))
        for (const std::string& name : read.weights) {
          const LinearTarget* target = plan.find(name);
          if (target == nullptr || read.num_tokens == 0) continue;
          const std::vector<float> values = block.matrix(name).values;
          const auto loss = [&](bool by_output) {
            return quantize::relative_loss(values, rounded(plan, *target, values, by_output), target->rows, target->columns, read.gram);
          };
          by_output_[name] = loss(true) < loss(false);
        }
    // Layers that read it: by what the block makes of their outputs.
    std::vector<std::vector<float>> outputs;
    const auto batches = block.batches().first(std::min(kMostBatches, block.batches().size()));
    for (const Activations::Batch& batch : batches) outputs.push_back(block.run(batch, block.input(batch)));
    for (const model::BlockTensor* tensor : block.linears()) {
      const std::string& name = tensor->tensor->name;
      const LinearTarget* target = plan.find(name);
      if (target == nullptr || !sees_whole_block(input_point(tensor->slot.role, tensor->slot.expert))) continue;
      const LinearMatrix original = block.matrix(name);
      target->check_values(original.values);
      const auto loss = [&](bool by_output) {
        LinearMatrix changed = original;
        changed.values = rounded(plan, *target, original.values, by_output);
        block.set_matrix(name, changed);
        double sum = 0;
        for (std::size_t b = 0; b < batches.size(); ++b) {
          const std::vector<float> rows = block.run(batches[b], block.input(batches[b]));
          for (std::size_t i = 0; i < rows.size(); ++i) sum += std::pow(static_cast<double>(rows[i]) - static_cast<double>(outputs[b][i]), 2);
        }
        return sum;
      };
      by_output_[name] = loss(true) < loss(false);
      block.set_matrix(name, original);
    }
  }

  void before_codes(LinearLayer& layer) override {
    const auto found = by_output_.find(layer.target.name);
    layer.solver.by_output = found != by_output_.end() && found->second;
    if (layer.solver.by_output) layer.method += " by output";
  }
  /// The format's own rounding has groups of inputs only.
  void after_codes(LinearLayer& layer) override {
    if (layer.solver.by_output) static_cast<void>(layer.need_codes());
  }

 private:
  static bool sees_whole_block(const InputPoint& point) { return point.expert < 0 && (point.role == Role::q || point.role == Role::up); }
  static std::vector<float> rounded(const LinearPlan& plan, const LinearTarget& target, const std::vector<float>& values, bool by_output) {
    quantize::SolverOptions solver = plan.options_for(target);
    solver.by_output = by_output;
    return quantize::round_to_nearest(values, target.rows, target.columns, solver).decoded();
  }

  std::map<std::string, bool, std::less<>> by_output_;  ///< of the layers of the block at hand
};

}  // namespace

std::unique_ptr<LinearStep> make_adadim_step(const LinearPlan&) { return std::make_unique<AdaDimStep>(); }

}  // namespace weft::engine
