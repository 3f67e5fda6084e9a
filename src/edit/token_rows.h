#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// Vectors written as combinations of few others: how tokens that a model does not know get rows, from what another model thinks that they resemble.
namespace weft::edit {

/// Points and what each counts.
struct Combination {
  std::vector<std::uint32_t> points;
  std::vector<double> weights;
};

/// Rows of one length, one after another.
struct Rows {
  std::span<const float> values;  ///< [count, width]
  std::size_t width = 0;
  [[nodiscard]] std::size_t count() const noexcept { return width == 0 ? 0 : values.size() / width; }
  [[nodiscard]] std::span<const float> row(std::size_t i) const { return values.subspan(i * width, width); }
};

/// Orthogonal matching pursuit: k times the point with the largest inner product with what is left of the target (the first of equals), made
/// orthogonal to those before; at last the least-squares weights. targets, points: of one width; k: 1 to points.count(). Products in float32, the
/// rest in float64. Thread-safe. Class C: the order of sums in a product is the library's. Source: Pati et al. 1993; as mergekit-tokensurgeon applies
/// it.
[[nodiscard]] std::vector<Combination> orthogonal_matching_pursuit(Rows targets, Rows points, std::size_t k);

enum class Distance { euclidean, cosine };
enum class Weighting {
  distance_proportional,  ///< by the reciprocal of the distance, or by the cosine
  barycentric,            ///< weights that sum to one and come nearest
  least_squares,          ///< weights that come nearest
};
/// The k nearest points (the first of equals), weighted. Class C.
[[nodiscard]] std::vector<Combination> nearest_points(Rows targets, Rows points, std::size_t k, Distance distance, Weighting weighting);

}  // namespace weft::edit
