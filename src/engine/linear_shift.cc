#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "engine/linear_step.h"
#include "engine/whole_model.h"
#include "quantize/dual_scale.h"

// D2Quant's DAC: what quantized blocks shift in the mean of what the next norm gives is put back, through biases of the layers that read it.
namespace weft::engine {
namespace {

using model::Role;

bool reads_norm(const InputPoint& point) { return point.expert < 0 && (point.role == Role::q || point.role == Role::up); }

/// Sums of columns, where layers read what a norm gives.
class ColumnSums final : public BlockTap {
 public:
  void linear_input(int, Role role, int expert, std::size_t, const model::Rows& rows) override {
    const InputPoint point = input_point(role, expert);
    if (!reads_norm(point)) return;
    std::vector<double>& own = sums[point];
    own.resize(rows.num_columns);
    for (std::size_t r = 0; r < rows.num_rows; ++r)
      for (std::size_t c = 0; c < rows.num_columns; ++c) own[c] += static_cast<double>(rows.row(r)[c]);
  }
  std::map<InputPoint, std::vector<double>> sums;
};

class DacStep final : public LinearStep {
 public:
  explicit DacStep(const LinearPlan& plan) : prior_(step_parameter(plan.options, "dac", "prior")) {}

  bool change_model(LinearPlan&, LazyModel& model) override { return give_biases(model) > 0; }
  [[nodiscard]] bool two_streams(const LinearPlan&) const override { return true; }
  [[nodiscard]] bool in_sequence() const override { return true; }

  void before_block(LinearPlan&, Block& block) override {
    ColumnSums tap;
    block.run(tap, Stream::original);
    original_ = std::move(tap.sums);
  }

  void after_codes(LinearLayer& layer) override {
    if (layer.tries || layer.block == nullptr || layer.statistics == nullptr || !reads_norm(layer.statistics->point)) return;
    const auto original = original_.find(layer.statistics->point);
    const std::string name = layer.target.module + ".bias";
    const auto tensors = layer.block->tensors();
    const auto bias = std::find_if(tensors.begin(), tensors.end(), [&](const model::BlockTensor& tensor) { return tensor.tensor->name == name; });
    if (original == original_.end() || bias == tensors.end()) return;
    const std::vector<double> shift = quantize::mean_shift(original->second, layer.statistics->sum, layer.statistics->num_tokens, prior_);
    const std::vector<float> decoded =
        layer.codes ? layer.codes->decoded()
                    : quantize::round_to_nearest(layer.values, layer.target.rows, layer.target.columns, layer.solver).decoded();
    const std::vector<double> add = quantize::shifted_bias(decoded, layer.target.rows, layer.target.columns, shift);
    std::vector<float> values = layer.block->values(name);
    for (std::size_t o = 0; o < values.size(); ++o) values[o] = static_cast<float>(static_cast<double>(values[o]) + add[o]);
    layer.block->emit(name, bias->tensor->dtype, bias->tensor->shape, values);
    layer.block->set_values(name, std::move(values));
  }

 private:
  double prior_;
  std::map<InputPoint, std::vector<double>> original_;  ///< of the unchanged model, in the block at hand
};

}  // namespace

std::unique_ptr<LinearStep> make_dac_step(const LinearPlan& plan) { return std::make_unique<DacStep>(plan); }

}  // namespace weft::engine
