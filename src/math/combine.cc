#include "math/combine.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/check.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/combine-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/combine-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(WeightedSum);
HWY_EXPORT(WeightedSumF64);
HWY_EXPORT(AddWeightedDeltasF64);
HWY_EXPORT(Subtract);
HWY_EXPORT(AddTwo);
HWY_EXPORT(Scale);
HWY_EXPORT(SignConsensus);
HWY_EXPORT(KeepAtLeast);
HWY_EXPORT(KeepWhereBelow);
HWY_EXPORT(StepToward);
HWY_EXPORT(StepPartWay);
HWY_EXPORT(PhiloxBlocks);

namespace {

/// The inputs whose weight is not zero, in order.
template <typename T>
class Contributors {
 public:
  Contributors(std::span<const float* const> inputs, std::span<const T> weights) {
    WEFT_ASSERT(inputs.size() == weights.size());
    if (inputs.size() > kFew) {
      many_inputs_.resize(inputs.size());
      many_weights_.resize(inputs.size());
      inputs_ = many_inputs_.data();
      weights_ = many_weights_.data();
    }
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (weights[k] == T{0}) continue;
      inputs_[count_] = inputs[k];
      weights_[count_++] = weights[k];
    }
  }
  Contributors(const Contributors&) = delete;
  Contributors& operator=(const Contributors&) = delete;

  [[nodiscard]] const float* const* inputs() const noexcept { return inputs_; }
  [[nodiscard]] const T* weights() const noexcept { return weights_; }
  [[nodiscard]] std::size_t count() const noexcept { return count_; }

 private:
  static constexpr std::size_t kFew = 16;
  std::array<const float*, kFew> few_inputs_;
  std::array<T, kFew> few_weights_;
  std::vector<const float*> many_inputs_;
  std::vector<T> many_weights_;
  const float** inputs_ = few_inputs_.data();
  T* weights_ = few_weights_.data();
  std::size_t count_ = 0;
};

}  // namespace

void weighted_sum(std::span<const float* const> inputs, std::span<const float> weights, std::span<float> out) {
  const Contributors<float> from(inputs, weights);
  if (from.count() == 0) {
    std::fill(out.begin(), out.end(), 0.0F);
    return;
  }
  HWY_DYNAMIC_DISPATCH(WeightedSum)(from.inputs(), from.weights(), from.count(), out.size(), out.data());
}

void weighted_sum_f64(std::span<const float* const> inputs, std::span<const double> weights, double scale, std::span<float> out) {
  const Contributors<double> from(inputs, weights);
  if (from.count() == 0) {
    std::fill(out.begin(), out.end(), 0.0F);
    return;
  }
  HWY_DYNAMIC_DISPATCH(WeightedSumF64)(from.inputs(), from.weights(), from.count(), scale, out.size(), out.data());
}

void add_weighted_deltas_f64(std::span<const float> base, std::span<const float* const> inputs, std::span<const double> weights, double scale,
                             std::span<float> out) {
  WEFT_ASSERT(base.size() == out.size());
  const Contributors<double> from(inputs, weights);
  if (from.count() == 0) {
    if (base.data() != out.data()) std::copy(base.begin(), base.end(), out.begin());
    return;
  }
  HWY_DYNAMIC_DISPATCH(AddWeightedDeltasF64)(base.data(), from.inputs(), from.weights(), from.count(), scale, out.size(), out.data());
}

void subtract(std::span<const float> a, std::span<const float> b, std::span<float> out) {
  WEFT_ASSERT(a.size() == out.size() && b.size() == out.size());
  HWY_DYNAMIC_DISPATCH(Subtract)(a.data(), b.data(), out.size(), out.data());
}

void add(std::span<const float> a, std::span<const float> b, std::span<float> out) {
  WEFT_ASSERT(a.size() == out.size() && b.size() == out.size());
  HWY_DYNAMIC_DISPATCH(AddTwo)(a.data(), b.data(), out.size(), out.data());
}

void scale(std::span<const float> a, float factor, std::span<float> out) {
  WEFT_ASSERT(a.size() == out.size());
  HWY_DYNAMIC_DISPATCH(Scale)(a.data(), factor, out.size(), out.data());
}

void sign_consensus(std::span<const float* const> values, std::span<const float> weights, std::span<float> mixed, std::span<float> divisor) {
  WEFT_ASSERT(values.size() == weights.size() && mixed.size() == divisor.size());
  HWY_DYNAMIC_DISPATCH(SignConsensus)(values.data(), weights.data(), values.size(), mixed.size(), mixed.data(), divisor.data());
}

void keep_at_least(std::span<float> values, float threshold, std::uint64_t first_index, std::uint64_t last_tie_index) {
  // In a span of consecutive indices the ties that stay are a prefix.
  std::size_t num_ties = 0;
  if (last_tie_index >= first_index) {
    const std::uint64_t upto = last_tie_index - first_index;
    num_ties = upto >= values.size() ? values.size() : static_cast<std::size_t>(upto) + 1;
  }
  HWY_DYNAMIC_DISPATCH(KeepAtLeast)(values.data(), values.size(), threshold, num_ties);
}

void keep_where_below(std::span<float> values, std::span<const float> uniform, float probability) {
  WEFT_ASSERT(values.size() == uniform.size());
  HWY_DYNAMIC_DISPATCH(KeepWhereBelow)(values.data(), uniform.data(), values.size(), probability);
}

void step_toward(std::span<const float> base, std::span<const float> other, double step, std::span<float> out) {
  WEFT_ASSERT(base.size() == out.size() && other.size() == out.size());
  HWY_DYNAMIC_DISPATCH(StepToward)(base.data(), other.data(), step, out.size(), out.data());
}

void step_part_way(std::span<const float> base, std::span<const float> other, double step, double smallest, std::span<float> out) {
  WEFT_ASSERT(base.size() == out.size() && other.size() == out.size());
  HWY_DYNAMIC_DISPATCH(StepPartWay)(base.data(), other.data(), step, smallest, out.size(), out.data());
}

void philox_uniform(std::uint64_t key, std::uint32_t model, std::uint32_t stream, std::uint64_t first_element, std::span<float> out) {
  std::uint64_t block = first_element / 4;
  std::size_t done = 0;
  // A partial block at either end goes through a block of its own.
  const auto partial = [&](std::size_t from_lane) {
    std::array<float, 4> four{};
    HWY_DYNAMIC_DISPATCH(PhiloxBlocks)(key, model, stream, block++, 1, four.data());
    while (from_lane < 4 && done < out.size()) out[done++] = four[from_lane++];
  };
  if (const auto lane = static_cast<std::size_t>(first_element % 4); lane != 0 && !out.empty()) partial(lane);
  if (const std::size_t whole = (out.size() - done) / 4; whole != 0) {
    HWY_DYNAMIC_DISPATCH(PhiloxBlocks)(key, model, stream, block, whole, out.data() + done);
    block += whole;
    done += 4 * whole;
  }
  if (done < out.size()) partial(0);
}

}  // namespace weft::math
#endif
