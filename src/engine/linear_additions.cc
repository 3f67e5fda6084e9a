#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/linear_step.h"
#include "math/convert.h"
#include "quantize/low_rank.h"

// What is kept beside the codes: weights as they are, and products of thin matrices.
namespace weft::engine {
namespace {

/// Takes the weights out that matter most, by w^2 times how loudly they are read.
class ExactStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    share_ = plan.options.exact;
    if (!(share_ > 0 && share_ < 1))
      refuse_linear("exact", fmt::format("{} is no share between 0 and 1", share_), "0.001 is one weight of a thousand");
  }
  void before_codes(LinearLayer& layer) override {
    const std::vector<float> importance = layer.importance();
    std::vector<float>& values = layer.values;
    const auto width = static_cast<std::size_t>(layer.target.columns);
    // In double, where no square of a float overflows; a NaN among them would be no order.
    const auto weight_of = [&](std::size_t i) {
      const double share = importance.empty() ? 1.0 : static_cast<double>(importance[i % width]);
      return std::isfinite(share) ? static_cast<double>(values[i]) * static_cast<double>(values[i]) * share : 0.0;
    };
    std::vector<std::int64_t> order(values.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    const auto size = static_cast<std::ptrdiff_t>(std::llround(share_ * static_cast<double>(values.size())));
    std::nth_element(order.begin(), order.begin() + size, order.end(), [&](std::int64_t a, std::int64_t b) {
      const double x = weight_of(static_cast<std::size_t>(a)), y = weight_of(static_cast<std::size_t>(b));
      return x != y ? x > y : a < b;
    });
    layer.take_out(std::vector<std::int64_t>(order.begin(), order.begin() + size));
  }
  void after_codes(LinearLayer& layer) override { layer.put_back(); }

 private:
  double share_ = 0;
};

class LorcStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    rank_ = plan.options.rank;
    if (rank_ < 1) refuse_linear("rank", "a repair of rank 0 repairs nothing", "give --rank 1 or more");
  }
  void after_codes(LinearLayer& layer) override {
    codec::QuantizedLinear& linear = layer.need_codes();
    std::vector<float> residual = linear.decoded();
    for (std::size_t i = 0; i < residual.size(); ++i) residual[i] = layer.original[i] - residual[i];
    quantize::LowRank repair = quantize::repair(residual, layer.target.rows, layer.target.columns, rank_, layer.gram());
    math::round_through(layer.target.dtype, repair.left);
    math::round_through(layer.target.dtype, repair.right);
    linear.rank = repair.rank;
    linear.left = std::move(repair.left);
    linear.right = std::move(repair.right);
  }

 private:
  std::int64_t rank_ = 0;
};

}  // namespace

std::unique_ptr<LinearStep> make_exact_step(const LinearPlan&) { return std::make_unique<ExactStep>(); }
std::unique_ptr<LinearStep> make_lorc_step(const LinearPlan&) { return std::make_unique<LorcStep>(); }

}  // namespace weft::engine
