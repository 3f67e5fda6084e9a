#include <algorithm>
#include <cmath>
#include <utility>

#include "math/elementary.h"
#include "merge/gram_merge.h"
#include "merge/table.h"

// karcher: the Riemannian mean of the models' directions, with the mean of their lengths. Numbers as mergekit 0.1.5. The mean stays in the span of
// the directions, so it is iterated as N coefficients with the Gram matrix; the tensors are read twice, whatever the number of iterations.
namespace weft::merge {
namespace {

class Karcher final : public GramMerge {
 public:
  Karcher(const TensorContext& context, std::vector<std::size_t> models, int max_iterations, double tolerance)
      : GramMerge(context, std::move(models), std::nullopt), max_iterations_(max_iterations), tolerance_(tolerance) {}

 protected:
  Remark coefficients(const GramView& gram, std::span<double> out) const override {
    std::vector<std::size_t> valid;
    double mean_norm = 0;
    for (std::size_t i = 0; i < gram.size(); ++i) {
      mean_norm += gram.norm(i) / static_cast<double>(gram.size());
      if (!(gram.norm(i) <= tolerance_)) valid.push_back(i);
    }
    std::fill(out.begin(), out.end(), 0.0);
    if (valid.empty()) {
      return mean_norm > 0 ? "every model is shorter here than the tolerance, which counts as zero; the result is zero" : nullptr;
    }
    Remark remark = nullptr;
    const std::vector<double> mean = mean_direction(gram, valid, remark);
    for (std::size_t k = 0; k < valid.size(); ++k) out[valid[k]] = mean_norm * mean[k] / gram.norm(valid[k]);
    return remark;
  }

 private:
  /// Coefficients of the mean direction in the valid unit vectors.
  [[nodiscard]] std::vector<double> mean_direction(const GramView& gram, std::span<const std::size_t> valid, Remark& remark) const {
    const std::size_t n = valid.size();
    std::vector<double> cosines(n * n);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) cosines[i * n + j] = i == j ? 1.0 : gram(valid[i], valid[j]) / (gram.norm(valid[i]) * gram.norm(valid[j]));
    const auto norm_of = [&](std::span<const double> x) {
      double squared = 0;
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j) squared += x[i] * x[j] * cosines[i * n + j];
      return std::sqrt(std::max(squared, 0.0));
    };

    const double share = 1.0 / static_cast<double>(n);
    std::vector<double> u(n, share);
    if (const double norm = norm_of(u); norm < tolerance_) {
      remark = "the directions cancel; the first model's direction was taken";
      std::fill(u.begin(), u.end(), 0.0);
      u[0] = 1;
    } else {
      for (double& x : u) x /= norm;
    }

    std::vector<double> tangent(n);
    for (int iteration = 0; iteration < max_iterations_; ++iteration) {
      std::fill(tangent.begin(), tangent.end(), 0.0);
      for (std::size_t i = 0; i < n; ++i) {
        double dot = 0;
        for (std::size_t j = 0; j < n; ++j) dot += u[j] * cosines[j * n + i];
        dot = std::clamp(dot, -1.0, 1.0);
        const double angle = math::acos(dot);
        const double sine = math::sin(angle);
        // An angle of nearly half a turn: the way there has no direction. It is left out rather than blown up.
        if (angle < tolerance_ || sine < 1e-8) continue;
        const double step = share * angle / sine;
        tangent[i] += step;
        for (std::size_t j = 0; j < n; ++j) tangent[j] -= step * dot * u[j];
      }
      const double length = norm_of(tangent);
      if (length < tolerance_ || length == 0) break;
      const double cosine = math::cos(length);
      const double sine = math::sin(length) / length;
      for (std::size_t j = 0; j < n; ++j) u[j] = cosine * u[j] + sine * tangent[j];
      if (const double norm = norm_of(u); norm > tolerance_) {
        for (double& x : u) x /= norm;
      }
    }
    return u;
  }

  int max_iterations_;
  double tolerance_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  // A base, if there is one, is a model like the others.
  std::vector<std::size_t> models(context.inputs.size());
  for (std::size_t i = 0; i < models.size(); ++i) models[i] = i;
  if (models.size() == 1) return copy_of(0);
  return std::make_unique<Karcher>(context, std::move(models), static_cast<int>(context.values.number("max_iter")), context.values.number("tol"));
}

}  // namespace

Method karcher() {
  Method m;
  m.name = "karcher";
  m.summary = "unweighted Riemannian mean of the models' directions, with the mean of their lengths";
  m.paper = "Karcher 1977, Riemannian center of mass and mollifier smoothing";
  m.parameters = {
      {.name = "max_iter", .type = ParameterType::integer, .default_value = 10, .help = "iterations at most", .min = 0, .max = 1000000},
      {.name = "tol", .default_value = 1e-5, .help = "smaller lengths, angles and steps count as zero", .min = 0, .max = 1},
  };
  m.passes = 2;
  m.make = make;
  return m;
}

}  // namespace weft::merge
