#include "engine/measure_gradient.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/budget.h"
#include "base/text.h"
#include "engine/computed_checkpoint.h"
#include "measure/curvature.h"
#include "measure/structure.h"
#include "model/block_gradient.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using measure::Normalisation;
using measure::Part;
using measure::put;

/// Vectors of all parameters that a run holds beside the basis, in bytes a parameter: weights, the point at which the loss is taken, a gradient, what
/// a product reads and gives, and two of Lanczos' own.
constexpr std::uint64_t kBytesEach = 4 + 4 + 4 + 4 * 8;
constexpr std::size_t kLeastKept = 4, kTop = 5;
/// Of the weights' length: how far from the model gradients are taken for a difference. Ten times as much, as is usual, is a long way along a single
/// steep direction (a tenth off for the largest eigenvalues of a small model); much less, and float32's rounding shows.
constexpr double kStep = 1e-4;

/// The loss as a function of all parameters that it has a gradient for.
class LossFunction {
 public:
  LossFunction(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, std::vector<std::vector<std::uint32_t>> sequences,
               const model::LossGradientOptions& options)
      : checkpoint_(std::move(checkpoint)), config_(config), sequences_(std::move(sequences)), options_(options) {
    std::vector<std::pair<const TensorInfo*, std::vector<float>>> first;
    loss_ = model::loss_gradient(
                checkpoint_, config_, sequences_,
                [&](const TensorInfo& tensor, std::span<const float> gradient) {
                  Part part{size_, gradient.size(), tensor.shape.size() >= 2 ? static_cast<std::size_t>(tensor.shape[0]) : 0};
                  for (const float value : gradient) gradient_squares_ += static_cast<double>(value) * static_cast<double>(value);
                  places_.emplace(tensor.name, parts_.size());
                  names_.push_back(tensor.name);
                  parts_.push_back(part);
                  size_ += part.count;
                },
                options_)
                .loss;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] double loss() const noexcept { return loss_; }
  [[nodiscard]] double gradient_length() const { return std::sqrt(gradient_squares_); }
  [[nodiscard]] const std::vector<Part>& parts() const noexcept { return parts_; }
  [[nodiscard]] const std::vector<float>& weights() const noexcept { return weights_; }
  [[nodiscard]] double weights_length() const noexcept { return weights_length_; }

  /// Reads the weights; what it takes is known by now.
  void load() {
    weights_.resize(size_);
    std::vector<std::pair<std::string, ComputeFloats>> computed;
    for (std::size_t p = 0; p < parts_.size(); ++p) {
      const Part part = parts_[p];
      const TensorInfo& tensor = checkpoint_->tensor(names_[p]);
      read_floats(*checkpoint_, tensor, 0, std::span(weights_).subspan(part.begin, part.count));
      computed.emplace_back(names_[p], [this, part](std::uint64_t begin, std::span<float> out) {
        std::copy_n(point_.begin() + static_cast<std::ptrdiff_t>(part.begin + begin), out.size(), out.begin());
      });
    }
    for (const float value : weights_) weights_length_ += static_cast<double>(value) * static_cast<double>(value);
    weights_length_ = std::sqrt(weights_length_);
    point_ = weights_;
    moved_ = std::make_shared<ComputedCheckpoint>(checkpoint_, std::move(computed));
  }

  /// The loss at weights + sum of steps; NaN where it is not finite.
  double at(std::initializer_list<std::pair<double, std::span<const double>>> steps) {
    move(steps);
    try {
      return model::loss_gradient(moved_, config_, sequences_, {}, options_).loss;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::corrupt) throw;
      return std::numeric_limits<double>::quiet_NaN();
    }
  }

  /// out = H v by the difference of two gradients.
  void product(std::span<const double> v, std::span<double> out) {
    double squares = 0;
    for (const double value : v) squares += value * value;
    std::fill(out.begin(), out.end(), 0.0);
    if (!(squares > 0)) return;
    const double step = kStep * weights_length_ / std::sqrt(squares);
    for (const double sign : {1.0, -1.0}) {
      move({{sign * step, v}});
      (void)model::loss_gradient(
          moved_, config_, sequences_,
          [&](const TensorInfo& tensor, std::span<const float> gradient) {
            const Part& part = parts_[places_.at(tensor.name)];
            for (std::size_t i = 0; i < gradient.size(); ++i) out[part.begin + i] += sign * static_cast<double>(gradient[i]) / (2 * step);
          },
          options_);
    }
  }

 private:
  void move(std::initializer_list<std::pair<double, std::span<const double>>> steps) {
    for (std::size_t i = 0; i < size_; ++i) {
      double value = static_cast<double>(weights_[i]);
      for (const auto& [factor, direction] : steps) value += factor * direction[i];
      point_[i] = static_cast<float>(value);
    }
  }

  std::shared_ptr<const Checkpoint> checkpoint_, moved_;
  const Json& config_;
  std::vector<std::vector<std::uint32_t>> sequences_;
  model::LossGradientOptions options_;
  double loss_ = 0, gradient_squares_ = 0, weights_length_ = 0;
  std::size_t size_ = 0;
  std::vector<std::string> names_;
  std::map<std::string, std::size_t, std::less<>> places_;
  std::vector<Part> parts_;
  std::vector<float> weights_, point_;
};

struct Axis {
  std::string name;
  std::vector<double> direction;
  double length = 1;
};

void skip_both(Measures& out, const measure::Selection& selection, const std::string& reason) {
  for (const char* group : {"hessian", "landscape"})
    if (selection.wants(group)) measure::skip_group(out, group, reason);
}

/// Eigenvalues, trace and density. Returns the directions of most curvature, where the basis was kept.
std::vector<Axis> measure_hessian(RunningModel& running, LossFunction& function, const CurvatureSettings& settings, std::size_t kept,
                                  std::uint64_t seed, MeasuredModel& model) {
  Measures& out = model.model;
  const auto product = [&](std::span<const double> v, std::span<double> result) {
    running.check_cancelled();
    function.product(v, result);
  };
  const auto n = static_cast<double>(function.size());
  std::vector<Axis> axes;
  double most = -std::numeric_limits<double>::infinity(), least = -most, asymmetry = 0, ratio = 0, share = 0;
  measure::Density all;
  const auto runs = static_cast<double>(settings.runs);
  for (std::size_t run = 0; run < settings.runs; ++run) {
    const measure::Lanczos lanczos(product, measure::random_signs(seed, "hessian", static_cast<std::uint32_t>(run), function.size()), settings.steps,
                                   kept);
    measure::Density own{{lanczos.values().begin(), lanczos.values().end()}, {lanczos.weights().begin(), lanczos.weights().end()}};
    ratio += measure::negative_ratio(own) / runs;
    share += measure::negative_share(own) / runs;
    asymmetry = std::max(asymmetry, lanczos.asymmetry());
    const std::size_t m = own.nodes.size();
    for (std::size_t i = 0; i < m; ++i) {
      put(out, fmt::format("hessian.nodes.{}.{}", run, i), own.nodes[i]);
      put(out, fmt::format("hessian.weights.{}.{}", run, i), own.weights[i]);
      all.nodes.push_back(own.nodes[i]);
      all.weights.push_back(own.weights[i] / runs);
    }
    least = std::min(least, own.nodes.front());
    most = std::max(most, own.nodes.back());
    if (run > 0) continue;
    for (std::size_t k = 0; k < std::min(kTop, m); ++k) {
      put(out, fmt::format("hessian.top.{}", k), own.nodes[m - 1 - k]);
      put(out, fmt::format("hessian.top_error.{}", k), lanczos.errors()[m - 1 - k]);
    }
    for (std::size_t k = 0; k < std::min<std::size_t>(2, m); ++k)
      if (std::optional<std::vector<double>> vector = lanczos.vector(m - 1 - k)) {
        // As long as would raise the loss by one nat, were it a parabola: its curvature along the line is then 2.
        const double value = own.nodes[m - 1 - k], size = value > 0 ? std::sqrt(2 / value) : 1;
        for (double& each : *vector) each *= size;
        axes.push_back({fmt::format("hessian_{}", k), std::move(*vector), size});
      }
  }
  put(out, "hessian.largest", most);
  put(out, "hessian.smallest", least);
  put(out, "hessian.re", ratio, "no eigenvalue is above zero");
  put(out, "hessian.kh", share, "no eigenvalue is above zero");
  put(out, "hessian.asymmetry", asymmetry);
  if (settings.samples > 0) {
    const measure::TraceEstimate trace = measure::estimate_trace(product, function.size(), settings.samples, 1e-3, seed);
    put(out, "hessian.trace", trace.trace);
    if (trace.samples > 1) put(out, "hessian.trace_error", trace.error);
    put(out, "hessian.trace_samples", static_cast<double>(trace.samples));
    put(out, "hessian.mean_eigenvalue", trace.trace / n);
    if (trace.trace > 0) put(out, "hessian.log10_trace", std::log10(trace.trace));
  }
  if (most > 0) put(out, "hessian.log10_largest", std::log10(most));
  out.curves.push_back(measure::smooth_density(all, "hessian density"));
  return axes;
}

void measure_landscape(RunningModel& running, LossFunction& function, const CurvatureSettings& settings, std::vector<Axis> hessian,
                       std::uint64_t seed, MeasuredModel& model) {
  Measures& out = model.model;
  const std::size_t n = settings.points, middle = n / 2;
  const std::vector<double> positions = measure::landscape_positions(n);
  for (std::size_t i = 0; i < n; ++i) put(out, fmt::format("landscape.positions.{}", i), positions[i]);
  const Normalisation normalisation = *measure::normalisation_of(settings.normalise);
  out.labels.emplace_back("landscape.normalise", settings.normalise);
  std::vector<Axis> random;
  for (std::size_t k = 0; k < 2; ++k) {
    Axis axis{fmt::format("random_{}", k), std::vector<double>(function.size())};
    measure::NormalStream(seed, "landscape", static_cast<std::uint32_t>(k)).fill(axis.direction);
    measure::normalise_direction(normalisation, function.weights(), function.parts(), axis.direction);
    double squares = 0;
    for (const double value : axis.direction) squares += value * value;
    axis.length = std::sqrt(squares);
    random.push_back(std::move(axis));
  }
  const auto loss_at = [&](double a, const Axis& first, double b, const Axis& second) {
    running.check_cancelled();
    return function.at({{a, first.direction}, {b, second.direction}});
  };
  if (hessian.empty())
    out.skipped.emplace_back("landscape.line.hessian_0", out.find("hessian.largest") == nullptr
                                                             ? "it takes the Hessian's directions: --what hessian,landscape"
                                                             : "the Hessian's directions did not fit the memory: raise --memory");
  for (Axis& axis : hessian) {
    std::vector<double> losses;
    for (const double a : positions) {
      running.check_cancelled();
      losses.push_back(function.at({{a, axis.direction}}));
    }
    measure::measure_line("landscape.line." + axis.name, positions, losses, out);
    put(out, fmt::format("landscape.line.{}.length", axis.name), axis.length);
  }
  // The lines along the random axes are the middle row and column of the square.
  std::vector<double> first, second;
  double lowest = std::numeric_limits<double>::infinity();
  for (std::size_t j = 0; j < n; ++j) {
    for (std::size_t i = 0; i < n; ++i) {
      const bool on_line = i == middle || j == middle;
      if (settings.plane || on_line) {
        const double loss = loss_at(positions[i], random[0], positions[j], random[1]);
        if (settings.plane) put(out, fmt::format("landscape.plane.{}.{}", i, j), loss, "the loss is not finite there");
        if (j == middle) first.push_back(loss);
        if (i == middle) second.push_back(loss);
        if (std::isfinite(loss)) lowest = std::min(lowest, loss);
      }
    }
  }
  measure::measure_line("landscape.line.random_0", positions, first, out);
  measure::measure_line("landscape.line.random_1", positions, second, out);
  for (const Axis& axis : random) put(out, fmt::format("landscape.line.{}.length", axis.name), axis.length);
  put(out, "landscape.loss", function.loss());
  put(out, "landscape.lowest", lowest, "no loss is finite");
}

}  // namespace

void measure_gradients(RunningModel& running, const measure::Selection& selection, const MeasureOptions& options, std::span<const std::uint32_t> ids,
                       std::size_t window, MeasuredModel& out) {
  const bool hessian = selection.wants("hessian"), landscape = selection.wants("landscape");
  if (!hessian && !landscape) return;
  if (selection.spares())
    return skip_both(out.model, selection, "costly: dozens of gradients or hundreds of losses; ask for it with --what hessian,landscape");
  if (!running.network().has_head() || running.config().kind != model::NetworkKind::decoder)
    return skip_both(out.model, selection, "the model does not predict tokens");
  const CurvatureSettings& settings = options.curvature;
  const std::size_t count = std::max<std::size_t>(1, static_cast<std::size_t>(settings.tokens) / window);
  std::vector<std::vector<std::uint32_t>> sequences;
  for (std::size_t begin = 0; begin + window <= ids.size() && sequences.size() < count; begin += window)
    sequences.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.begin() + static_cast<std::ptrdiff_t>(begin + window));
  const std::uint64_t quarter = MemoryBudget(options.memory_bytes).limit_bytes() / 4;
  try {
    LossFunction function(running.files().checkpoint, running.json(), std::move(sequences), {.threads = options.threads, .memory_bytes = quarter});
    const std::uint64_t n = function.size(), axes = landscape ? 2 * 8 * n : 0;
    const std::uint64_t fixed = kBytesEach * n + axes + (landscape && hessian ? 2 * 8 * n : 0), least = fixed + 4 * kLeastKept * n;
    if (least > quarter)
      return skip_both(out.model, selection,
                       fmt::format("vectors of all {} parameters take {} at least, but a quarter of the budget is {}: raise --memory",
                                   format_count(n), format_size(least), format_size(quarter)));
    const auto kept = static_cast<std::size_t>(std::min<std::uint64_t>(settings.steps, (quarter - fixed) / (4 * n)));
    function.load();
    std::vector<Axis> directions;
    if (hessian) {
      Measures& model = out.model;
      put(model, "hessian.tokens", static_cast<double>(std::min<std::size_t>(count, ids.size() / window) * window));
      put(model, "hessian.parameters", static_cast<double>(n));
      put(model, "hessian.loss", function.loss());
      put(model, "hessian.gradient", function.gradient_length());
      if (kept < settings.steps)
        model.labels.emplace_back("hessian.basis",
                                  fmt::format("the last {} of {} vectors were kept: eigenvalues may come twice", kept, settings.steps));
      // Finite differences step over kinks.
      if (running.config().activation == math::Activation::relu)
        model.labels.emplace_back("hessian.kinks", "ReLU has kinks that differences of gradients step over: small eigenvalues are theirs");
      const bool mixture =
          std::any_of(running.config().layers.begin(), running.config().layers.end(), [](const auto& layer) { return layer.experts; });
      if (mixture) model.labels.emplace_back("hessian.experts", "which experts a token goes to counts as fixed in gradients, and jumps in losses");
      directions = measure_hessian(running, function, settings, kept, options.seed, out);
    }
    if (landscape) measure_landscape(running, function, settings, std::move(directions), options.seed, out);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory && error.code() != ErrorCode::unsupported && error.code() != ErrorCode::corrupt) throw;
    skip_both(out.model, selection, error.message());
  }
}

}  // namespace weft::engine
