#include "quantize/reconstruct.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "base/check.h"
#include "base/philox.h"
#include "math/convert.h"
#include "math/lapack.h"
#include "quantize/solver.h"

namespace weft::quantize {
namespace {

constexpr double kLongestGradient = 1;

double sum_of_squares(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

/// Everything that is learned in a block, as one vector.
class Learner {
 public:
  Learner(const model::NetworkConfig& config, std::size_t layer, ThreadTeam& team, model::BlockParameters<float>& parameters,
          std::span<const ReconstructLayer> layers, const ReconstructOptions& options)
      : config_(config), team_(team), parameters_(parameters), gradient_(parameters.zeros()), layers_(layers), function_(config, layer, team) {
    for (const ReconstructLayer& one : layers) {
      places_.push_back(model::place_of_tensor(parameters_, config, *one.tensor));
      gradient_places_.push_back(model::place_of_tensor(gradient_, config, *one.tensor));
      WEFT_ASSERT(places_.back().matrix != nullptr);
      values_.emplace_back(static_cast<std::size_t>(one.codes->rows() * one.codes->columns()));
      for (const auto& part : one.codes->parts()) runs_.push_back({part.count, options.rate * part.rate});
      size_ += one.codes->parameters().size();
    }
    if (options.gain_rate > 0)
      for (std::size_t i = 0; i < parameters_.norms.size(); ++i)
        if (parameters_.norms[i].is_there()) {
          gains_.push_back(i);
          runs_.push_back({parameters_.norms[i].weight.size(), options.gain_rate});
          size_ += parameters_.norms[i].weight.size();
        }
  }

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::span<const Adam::Run> runs() const { return runs_; }

  [[nodiscard]] std::vector<float> get() const {
    std::vector<float> all;
    for (const ReconstructLayer& one : layers_) all.insert(all.end(), one.codes->parameters().begin(), one.codes->parameters().end());
    for (const std::size_t i : gains_) all.insert(all.end(), parameters_.norms[i].weight.begin(), parameters_.norms[i].weight.end());
    return all;
  }
  void set(std::span<const float> all) {
    const auto take = [&all](std::vector<float>& to) {
      std::copy_n(all.begin(), to.size(), to.begin());
      all = all.subspan(to.size());
    };
    for (const ReconstructLayer& one : layers_) take(one.codes->parameters());
    for (const std::size_t i : gains_) take(parameters_.norms[i].weight);
  }
  void round_gains(DType type) {
    for (const std::size_t i : gains_) math::round_through(type, parameters_.norms[i].weight);
  }

  /// From now on the block runs with what the parameters stand for, or with given codes.
  void put_values() {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].codes->values(team_, values_[i]);
      places_[i].write(values_[i]);
    }
  }
  void put(std::size_t layer, const codec::QuantizedLinear& codes) { places_[layer].write(codes.decoded()); }

  /// Squared error, and squares of the targets.
  std::pair<double, double> error(const ReconstructUnit& unit) {
    const std::vector<float> out = function_.forward(parameters_, unit.lengths, unit.input);
    return {difference(out, unit.target, nullptr, 1), sum_of_squares(unit.target)};
  }
  /// d (share * squared error) / d parameters.
  std::vector<float> gradient(const ReconstructUnit& unit, double share) {
    put_values();
    const std::vector<float> out = function_.forward(parameters_, unit.lengths, unit.input, &tape_);
    std::vector<float> d(out.size());
    static_cast<void>(difference(out, unit.target, &d, share));
    gradient_.for_each([](const std::string&, std::vector<float>& values) { std::fill(values.begin(), values.end(), 0.0F); });
    static_cast<void>(function_.backward(parameters_, tape_, d, &gradient_));
    std::vector<float> all(size_);
    std::size_t at = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const std::size_t count = layers_[i].codes->parameters().size();
      gradient_places_[i].read(values_[i]);
      layers_[i].codes->backward(team_, values_[i], std::span(all).subspan(at, count));
      at += count;
    }
    for (const std::size_t i : gains_) {
      std::copy(gradient_.norms[i].weight.begin(), gradient_.norms[i].weight.end(), all.begin() + static_cast<std::ptrdiff_t>(at));
      at += gradient_.norms[i].weight.size();
    }
    return all;
  }

 private:
  static double difference(std::span<const float> out, std::span<const float> target, std::vector<float>* d, double share) {
    WEFT_ASSERT(out.size() == target.size());
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double one = static_cast<double>(out[i]) - static_cast<double>(target[i]);
      sum += one * one;
      if (d != nullptr) (*d)[i] = static_cast<float>(2 * share * one);
    }
    return sum;
  }

  const model::NetworkConfig& config_;
  ThreadTeam& team_;
  model::BlockParameters<float>& parameters_;
  model::BlockParameters<float> gradient_;
  std::span<const ReconstructLayer> layers_;
  model::BlockFunction<float> function_;
  model::BlockTape<float> tape_;
  std::vector<model::MatrixPlace<float>> places_, gradient_places_;
  std::vector<std::vector<float>> values_;
  std::vector<std::size_t> gains_;  ///< norms, by site
  std::vector<Adam::Run> runs_;
  std::size_t size_ = 0;
};

}  // namespace

bool Adam::step(std::span<float> parameters, std::span<const float> gradient, std::span<const Run> rates) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;
  const double length = std::sqrt(sum_of_squares(gradient));
  if (!std::isfinite(length)) return false;
  const double share = length > kLongestGradient ? kLongestGradient / length : 1;
  ++steps_;
  const double unbias1 = 1 - std::pow(kBeta1, steps_), unbias2 = 1 - std::pow(kBeta2, steps_);
  std::size_t i = 0;
  for (const Run& run : rates)
    for (const std::size_t end = i + run.count; i < end; ++i) {
      const double g = share * static_cast<double>(gradient[i]);
      const double mean = kBeta1 * static_cast<double>(mean_[i]) + (1 - kBeta1) * g;
      const double square = kBeta2 * static_cast<double>(square_[i]) + (1 - kBeta2) * g * g;
      mean_[i] = static_cast<float>(mean);
      square_[i] = static_cast<float>(square);
      parameters[i] -= static_cast<float>(run.rate * (mean / unbias1) / (std::sqrt(square / unbias2) + kEpsilon));
    }
  WEFT_ASSERT(i == parameters.size());
  return true;
}

double cosine_rate(std::size_t step, std::size_t num_steps) noexcept {
  return num_steps == 0 ? 0 : 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(step) / static_cast<double>(num_steps)));
}

std::vector<std::size_t> shuffled(std::size_t count, std::uint64_t seed, std::uint32_t round) {
  const RandomStream random = RandomStream::of(seed, "order of learning", round, 18);
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return random.uniform(a) < random.uniform(b); });
  return order;
}

std::vector<bool> held_out_units(std::size_t count, double share) {
  std::vector<bool> held(count);
  if (count < 2 || !(share > 0)) return held;
  const auto wanted = std::clamp<std::size_t>(static_cast<std::size_t>(std::llround(share * static_cast<double>(count))), 1, count - 1);
  // Spread over the text.
  for (std::size_t k = 0; k < wanted; ++k) held[(2 * k + 1) * count / (2 * wanted)] = true;
  return held;
}

ReconstructResult reconstruct(const model::NetworkConfig& config, std::size_t layer, ThreadTeam& team, model::BlockParameters<float>& parameters,
                              std::span<const ReconstructLayer> layers, const ReconstructData& data, const ReconstructOptions& options) {
  Learner learner(config, layer, team, parameters, layers, options);
  const std::vector<bool> held = held_out_units(data.num_units, options.held_out);
  std::vector<std::size_t> learned;
  for (std::size_t u = 0; u < held.size(); ++u)
    if (!held[u]) learned.push_back(u);
  const bool any_held = learned.size() < held.size();
  ReconstructUnit unit;
  // With one unit alone there is nothing to hold out.
  const auto loss = [&](bool of_held) {
    double sum = 0, whole = 0;
    for (std::size_t u = 0; u < held.size(); ++u) {
      if (any_held && held[u] != of_held) continue;
      data.read(u, unit);
      const auto [error, squares] = learner.error(unit);
      sum += error;
      whole += squares;
    }
    return whole > 0 ? sum / whole : 0.0;
  };

  ReconstructResult result;
  for (std::size_t i = 0; i < layers.size(); ++i) learner.put(i, *layers[i].start);
  result.before = loss(true);
  result.learned_before = loss(false);
  const std::vector<float> first = learner.get();
  std::vector<float> now = first, best = first;
  learner.put_values();
  double least = loss(true);
  if (!std::isfinite(least)) least = std::numeric_limits<double>::infinity();

  Adam adam(learner.size());
  const std::size_t num_steps = learned.size() * static_cast<std::size_t>(std::max(0, options.epochs));
  std::size_t step = 0;
  bool finite = true;
  for (int epoch = 1; epoch <= options.epochs && finite; ++epoch) {
    for (const std::size_t at : shuffled(learned.size(), options.seed, static_cast<std::uint32_t>(epoch))) {
      if (options.on_progress) options.on_progress(static_cast<double>(step) / static_cast<double>(num_steps));
      data.read(learned[at], unit);
      // So that the gradient's length does not depend on the model's size: the share of what was lost at the start.
      const double at_start = result.learned_before * sum_of_squares(unit.target);
      const std::vector<float> gradient = learner.gradient(unit, at_start > 0 ? 1 / at_start : 1);
      std::vector<Adam::Run> runs(learner.runs().begin(), learner.runs().end());
      const double share = cosine_rate(step++, num_steps);
      for (Adam::Run& run : runs) run.rate *= share;
      finite = adam.step(now, gradient, runs);
      if (!finite) break;
      learner.set(now);
    }
    learner.put_values();
    const double after = finite ? loss(true) : std::numeric_limits<double>::infinity();
    if (after < least) {
      least = after;
      best = now;
      result.best_epoch = epoch;
    } else if (options.patience > 0 && epoch - result.best_epoch >= options.patience) {
      break;
    }
  }

  learner.set(best);
  learner.round_gains(options.gain_type);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    result.codes.push_back(layers[i].codes->codes());
    learner.put(i, result.codes.back());
  }
  result.after = loss(true);
  if (!(result.after < result.before)) {
    learner.set(first);
    result.kept_start = true;
    result.after = result.before;
    for (std::size_t i = 0; i < layers.size(); ++i) learner.put(i, result.codes[i] = *layers[i].start);
  }
  result.learned_after = loss(false);
  return result;
}

LocalResult reconstruct_layer(ThreadTeam& team, std::span<const float> weights, const codec::QuantizedLinear& start, LearnedCodes<float>& codes,
                              std::span<const double> learned, std::span<const double> held, double rate, int steps) {
  const std::int64_t rows = start.rows, columns = start.columns;
  const std::vector<float> gram(learned.begin(), learned.end());
  LocalResult result;
  result.before = relative_loss(weights, start.decoded(), rows, columns, held);
  result.codes = start;
  std::vector<float> values(weights.size()), product(weights.size()), best = codes.parameters();
  std::vector<float> gradient(codes.parameters().size());
  const double whole = quadratic_form(weights, rows, columns, learned);
  const double at_start = std::max(relative_loss(weights, start.decoded(), rows, columns, learned) * whole, 1e-30 * std::max(whole, 1e-30));
  Adam adam(codes.parameters().size());
  double least = std::numeric_limits<double>::infinity();
  // A look at what is held out costs as much as a step.
  constexpr int kLookEvery = 10;
  for (int step = 0; step <= steps; ++step) {
    codes.values(team, values);
    if (step % kLookEvery == 0 || step == steps) {
      const double loss = relative_loss(weights, values, rows, columns, held);
      if (loss < least) {
        least = loss;
        best = codes.parameters();
      }
    }
    if (step == steps) break;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] -= weights[i];
    constexpr std::int64_t kRows = 64;
    team.for_each(static_cast<std::size_t>((rows + kRows - 1) / kRows), [&](std::size_t unit, int) {
      const std::int64_t first = static_cast<std::int64_t>(unit) * kRows, count = std::min(kRows, rows - first);
      math::gemm(math::Transpose::no, math::Transpose::no, count, columns, columns, static_cast<float>(2 / at_start), values.data() + first * columns,
                 columns, gram.data(), columns, 0.0F, product.data() + first * columns, columns);
    });
    std::fill(gradient.begin(), gradient.end(), 0.0F);
    codes.backward(team, product, gradient);
    std::vector<Adam::Run> runs;
    for (const auto& part : codes.parts())
      runs.push_back({part.count, rate * part.rate * cosine_rate(static_cast<std::size_t>(step), static_cast<std::size_t>(steps))});
    if (!adam.step(codes.parameters(), gradient, runs)) break;
  }
  codes.parameters() = best;
  codec::QuantizedLinear learned_codes = codes.codes();
  result.after = relative_loss(weights, learned_codes.decoded(), rows, columns, held);
  if (result.after < result.before)
    result.codes = std::move(learned_codes);
  else
    result.after = result.before;
  return result;
}

}  // namespace weft::quantize
