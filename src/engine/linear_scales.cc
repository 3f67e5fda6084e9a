#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/linear_scales.h"
#include "math/convert.h"
#include "quantize/dual_scale.h"
#include "weft/error.h"

// AWQ, SmoothQuant and D2Quant's DSQ: scales of channels, folded into the norm or the matrix that writes them.
namespace weft::engine {
namespace {

using model::Role;

std::vector<float> choose(const LinearPlan& plan, const Block& block, const std::vector<const model::BlockTensor*>& tensors,
                          const InputStatistics& read, const ChooseScales& choose_scales) {
  std::vector<LinearMatrix> matrices;
  std::vector<quantize::Reader> readers;
  for (const model::BlockTensor* tensor : tensors) {
    if (plan.find(tensor->tensor->name) == nullptr) return {};
    matrices.push_back(block.matrix(tensor->tensor->name));
  }
  for (const LinearMatrix& matrix : matrices) readers.push_back({matrix.values, static_cast<std::int64_t>(matrix.rows)});
  return choose_scales(readers, read, *plan.find(tensors.front()->tensor->name));
}

/// Changes writer and readers, and undoes it where the block then gives something else.
template <typename Write>
void apply_fold(const LinearPlan& plan, Block& block, const std::vector<float>& scales, const std::vector<const model::BlockTensor*>& readers,
                const Write& write) {
  constexpr double kTolerance = 1e-4;
  const Activations::Batch& batch = block.batches().front();
  const std::vector<float> before = block.run(batch, block.input(batch));
  std::vector<float> exact = scales;
  if (!write(std::span(exact))) return;
  for (const model::BlockTensor* tensor : readers) {
    LinearMatrix matrix = block.matrix(tensor->tensor->name);
    quantize::scale_columns(matrix.values, static_cast<std::int64_t>(matrix.columns), exact);
    block.set_matrix(tensor->tensor->name, matrix);
  }
  const std::vector<float> after = block.run(batch, block.input(batch));
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double d = static_cast<double>(after[i]) - before[i];
    difference += d * d;
    size += static_cast<double>(before[i]) * before[i];
  }
  if (!(difference <= kTolerance * kTolerance * size))
    throw Error(
        ErrorCode::unsupported,
        fmt::format("scaling channels changes what block {} of this architecture gives (by {:.2g})", block.layer(), std::sqrt(difference / size)),
        {.file = plan.model_name}, "use --method gptq or rtn");
}

/// Whether a channel of what the values' matrix writes is the same channel of what the output's reads.
bool folds_values(const model::NetworkConfig& network) { return network.heads == network.kv_heads; }

}  // namespace

void fold_scales(LinearPlan& plan, Block& block, const ChooseScales& choose_scales, bool needs_gram) {
  const model::NetworkConfig& network = block.network().config();
  const auto of_role = [&](std::initializer_list<Role> roles) {
    std::vector<const model::BlockTensor*> found;
    for (const model::BlockTensor* tensor : block.linears())
      if (std::find(roles.begin(), roles.end(), tensor->slot.role) != roles.end()) found.push_back(tensor);
    return found;
  };
  const auto norm_at = [&](model::Site site, bool bias) -> const model::BlockTensor* {
    const model::BlockTensor* found = nullptr;
    for (const model::BlockTensor& tensor : block.tensors())
      if (tensor.slot.role == Role::norm && tensor.slot.site == site && tensor.is_bias == bias) found = &tensor;
    return found;
  };
  StatisticsRequest request;
  request.gram = needs_gram;
  std::vector<InputStatistics> statistics = block.statistics(request);
  const auto at = [&](Role role) -> InputStatistics* {
    for (InputStatistics& one : statistics)
      if (one.point == InputPoint{role, -1}) return &one;
    return nullptr;
  };
  const auto fold_norm = [&](model::Site site, std::vector<const model::BlockTensor*> readers, InputStatistics* read) {
    const model::BlockTensor* norm = norm_at(site, false);
    if (norm == nullptr || read == nullptr || readers.empty() || read->num_tokens == 0) return;
    if (read->weights.size() != readers.size()) return;  // something else reads there, too
    const std::vector<float> scales = choose(plan, block, readers, *read, choose_scales);
    if (scales.empty()) return;
    apply_fold(plan, block, scales, readers, [&](std::span<float> exact) {
      const bool plus_one = network.norm == model::NormKind::rms_plus_one;
      std::vector<float> gains = block.values(norm->tensor->name);
      if (gains.size() != exact.size()) return false;
      for (std::size_t j = 0; j < gains.size(); ++j) {
        const float gain = plus_one ? gains[j] + 1 : gains[j];
        float next = gain / exact[j];
        // The gain is rounded to what it is stored as, and the scale follows it, so that nothing is lost there.
        const float kept = math::decode_one(norm->tensor->dtype, math::encode_one(norm->tensor->dtype, plus_one ? next - 1 : next));
        next = plus_one ? kept + 1 : kept;
        exact[j] = next != 0 && std::isfinite(next) && gain / next > 0 ? gain / next : 1;
        gains[j] = exact[j] == 1 && !(next != 0) ? gains[j] : kept;
      }
      if (const model::BlockTensor* bias = norm_at(site, true)) {
        std::vector<float> values = block.values(bias->tensor->name);
        for (std::size_t j = 0; j < values.size(); ++j) values[j] /= exact[j];
        block.emit(bias->tensor->name, bias->tensor->dtype, bias->tensor->shape, values);
        block.set_values(bias->tensor->name, std::move(values));
      }
      block.emit(norm->tensor->name, norm->tensor->dtype, norm->tensor->shape, gains);
      block.set_values(norm->tensor->name, std::move(gains));
      return true;
    });
  };
  if (!network.parallel) {
    fold_norm(model::Site::attention_in, of_role({Role::q, Role::k, Role::v, Role::qkv}), at(Role::q));
    fold_norm(model::Site::mlp_in, of_role({Role::up, Role::gate, Role::gate_up}), at(Role::up));
  }
  const auto has_bias = [&](Role role) {
    return std::any_of(block.tensors().begin(), block.tensors().end(),
                       [&](const model::BlockTensor& tensor) { return tensor.is_bias && tensor.slot.role == role; });
  };
  // Into the rows of a matrix that writes what another reads.
  const auto fold_rows = [&](const model::BlockTensor& writer, const model::BlockTensor& reader) {
    const InputStatistics* read = nullptr;
    for (const InputStatistics& one : statistics)
      if (one.weights.size() == 1 && one.weights.front() == reader.tensor->name) read = &one;
    if (read == nullptr || read->num_tokens == 0 || plan.find(writer.tensor->name) == nullptr) return;
    if (block.matrix(writer.tensor->name).rows != block.matrix(reader.tensor->name).columns) return;
    const std::vector<float> scales = choose(plan, block, {&reader}, *read, choose_scales);
    if (scales.empty()) return;
    apply_fold(plan, block, scales, {&reader}, [&](std::span<float> exact) {
      LinearMatrix matrix = block.matrix(writer.tensor->name);
      quantize::divide_rows(matrix.values, static_cast<std::int64_t>(matrix.columns), exact);
      block.set_matrix(writer.tensor->name, matrix);
      // A bias is added behind the rows.
      const std::string bias_name = writer.tensor->name.substr(0, writer.tensor->name.rfind('.')) + ".bias";
      for (const model::BlockTensor& tensor : block.tensors()) {
        if (tensor.tensor->name != bias_name) continue;
        std::vector<float> bias = block.values(bias_name);
        quantize::divide_rows(bias, 1, exact);
        block.emit(bias_name, tensor.tensor->dtype, tensor.tensor->shape, bias);
        block.set_values(bias_name, std::move(bias));
      }
      return true;
    });
  };
  // Behind an activation that is no multiple of its argument only a gated layer's `up` can take a scale. Each expert has its own.
  for (const model::BlockTensor* down : of_role({Role::down})) {
    const auto of_expert = [&](Role role) {
      std::vector<const model::BlockTensor*> found = of_role({role});
      std::erase_if(found, [&](const model::BlockTensor* tensor) { return tensor->slot.expert != down->slot.expert; });
      return found;
    };
    const auto up = of_expert(Role::up);
    if (up.size() == 1 && of_expert(Role::gate).size() == 1 && of_expert(Role::down).size() == 1) fold_rows(*up.front(), *down);
  }
  // What attention reads of values is a mean of them, channel by channel, where each head has its own.
  const auto v = of_role({Role::v}), o = of_role({Role::o});
  if (folds_values(network) && v.size() == 1 && o.size() == 1 && !has_bias(Role::v)) fold_rows(*v.front(), *o.front());
  block.take_as_original();
}

namespace {

class AwqStep final : public LinearStep {
 public:
  void before_block(LinearPlan& plan, Block& block) override {
    fold_scales(
        plan, block,
        [&](std::span<const quantize::Reader> readers, const InputStatistics& read, const LinearTarget& target) {
          std::vector<double> mean(read.sum_abs);
          for (double& value : mean) value /= static_cast<double>(read.num_tokens);
          const quantize::ScaleChoice choice = quantize::search_awq(readers, target.columns, mean, read.gram, plan.options_for(target));
          return choice.exponent == 0 ? std::vector<float>() : choice.scales;
        },
        true);
  }
};

class SmoothStep final : public LinearStep {
 public:
  void before_block(LinearPlan& plan, Block& block) override {
    fold_scales(
        plan, block,
        [&](std::span<const quantize::Reader> readers, const InputStatistics& read, const LinearTarget& target) {
          return quantize::smooth_scales(readers, target.columns, read.max_abs, plan.options.smoothing);
        },
        false);
  }
};

/// Up's rows are multiplied by the second scale of down. Their own scales follow, so that up loses neither more nor less.
class DsqStep final : public LinearStep {
 public:
  explicit DsqStep(const LinearPlan& plan) : rounds_(static_cast<int>(step_parameter(plan.options, "dsq", "rounds"))) {}
  void before_block(LinearPlan& plan, Block& block) override {
    bool has_place = false;
    fold_scales(
        plan, block,
        [&](std::span<const quantize::Reader> readers, const InputStatistics& read, const LinearTarget& target) {
          std::vector<float> scales;
          if (read.point.role != Role::down || readers.size() != 1) return scales;
          has_place = true;
          const quantize::DualScale found =
              quantize::search_dual_scale(readers.front().weights, target.rows, target.columns, read.gram, plan.options_for(target), rounds_);
          if (!(found.loss < found.plain_loss)) return scales;
          for (const float channel : found.channel) scales.push_back(1 / channel);
          return scales;
        },
        true);
    if (!has_place && block.layer() == 0)
      block.note("warning dsq", "dsq does nothing in blocks without matrices up and gate of their own, one of which could take scales over");
  }

 private:
  int rounds_;
};

}  // namespace

std::unique_ptr<LinearStep> make_awq_step(const LinearPlan&) { return std::make_unique<AwqStep>(); }
std::unique_ptr<LinearStep> make_smooth_step(const LinearPlan&) { return std::make_unique<SmoothStep>(); }
std::unique_ptr<LinearStep> make_dsq_step(const LinearPlan& plan) { return std::make_unique<DsqStep>(plan); }

}  // namespace weft::engine
