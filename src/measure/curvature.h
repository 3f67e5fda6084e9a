#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "measure/table.h"

// The curvature of a function of many numbers, of which only products with its Hessian are known, and lines and planes to look at it along.
namespace weft::measure {

/// out = H v.
using HessianProduct = std::function<void(std::span<const double> v, std::span<double> out)>;

/// Signs, one after another: the same for a seed and a name, whatever else is drawn.
[[nodiscard]] std::vector<double> random_signs(std::uint64_t seed, std::string_view name, std::uint32_t stream, std::size_t n);

/// The eigenvalues of a symmetric H that a few products show best: the outermost. All of them after as many steps as H has dimensions.
class Lanczos {
 public:
  /// kept: of the basis, to which every new vector is made orthogonal; fewer than steps save memory and let values come twice.
  Lanczos(const HessianProduct& product, std::span<const double> start, std::size_t steps, std::size_t kept);

  [[nodiscard]] std::span<const double> values() const noexcept { return values_; }    ///< ascending
  [[nodiscard]] std::span<const double> weights() const noexcept { return weights_; }  ///< share of the start vector that lies along each
  [[nodiscard]] std::span<const double> errors() const noexcept { return errors_; }    ///< by which a value is off an eigenvalue of H, at most
  /// start . H start / start . start. Times n it estimates the trace, for random signs.
  [[nodiscard]] double first_product() const noexcept { return first_product_; }
  /// How far products were from those of a symmetric H: the largest |u . H v - v . H u| of neighbours in the basis, relative to the largest |value|.
  [[nodiscard]] double asymmetry() const noexcept { return asymmetry_; }
  /// Of values()[i], of length 1. Nothing when not all of the basis was kept.
  [[nodiscard]] std::optional<std::vector<double>> vector(std::size_t i) const;

 private:
  std::size_t n_;
  std::vector<double> values_, weights_, errors_;
  double first_product_ = 0, asymmetry_ = 0;
  bool whole_ = true;
  std::vector<std::vector<float>> basis_;
  std::vector<double> vectors_;  // of the small matrix, as rows
};

struct TraceEstimate {
  double trace = 0;
  double error = 0;  ///< standard; 0 where all samples are equal
  std::size_t samples = 0;
};
/// Hutchinson's: products with random signs, until the error is below this share of the trace.
[[nodiscard]] TraceEstimate estimate_trace(const HessianProduct& product, std::size_t n, std::size_t most_samples, double tolerance,
                                           std::uint64_t seed);

/// Nodes and weights of a spectral density: how much of the spectrum lies where.
struct Density {
  std::vector<double> nodes, weights;
};
/// |least / largest|.
[[nodiscard]] double negative_ratio(const Density& density);
/// sum over negative nodes of (|node| weight)^n over that of positive ones.
[[nodiscard]] double negative_share(const Density& density, double n = 0.5);
/// The sum of Gaussians of variance 1e-5 max(1, range), where it changes: a few hundred points, ascending.
[[nodiscard]] MeasuredCurve smooth_density(const Density& density, std::string name);

/// How a random direction is made to fit the weights: not at all; each element, tensor, row (vectors are left where they are) or all together as
/// long as the weights are.
enum class Normalisation : std::uint8_t { none, weight, layer, filter, model };
[[nodiscard]] std::optional<Normalisation> normalisation_of(std::string_view name);
[[nodiscard]] const char* to_string(Normalisation normalisation) noexcept;
/// A tensor's place among all numbers.
struct Part {
  std::size_t begin = 0, count = 0;
  std::size_t rows = 0;  ///< 0: a vector
};
void normalise_direction(Normalisation normalisation, std::span<const float> weights, std::span<const Part> parts, std::span<double> direction);

/// n positions from -1 to 1.
[[nodiscard]] std::vector<double> landscape_positions(std::size_t n);
/// Measures NAME.loss.i, NAME.curvature (of the middle, by the second difference), NAME.rise (of the ends over the middle) and NAME.lowest_at. Losses
/// that are not finite are skipped. losses: an odd number, the middle at the model itself.
void measure_line(const std::string& name, std::span<const double> positions, std::span<const double> losses, Measures& out);

}  // namespace weft::measure
