#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// Which weights a model's loss depends on most, by its gradient: where it is (GWQ), and along the way to the quantized weights (PQI). What is chosen
// is kept out of the codes.
namespace weft::quantize {

/// Positions of the `count` largest scores, ascending; of equal ones those that come first. NaN counts as the least.
[[nodiscard]] std::vector<std::int64_t> largest_scores(std::span<const float> scores, std::size_t count);

/// Midpoints of n equal parts of [0, 1].
[[nodiscard]] std::vector<double> path_points(int n);

/// The mean gradient of one matrix along the straight way from its weights w to q: what the way changes in the loss is the sum of (q - w) times it
/// (the fundamental theorem of calculus; midpoints make it a sum). Source: PQI, arXiv:2503.01901.
class PathGradient {
 public:
  /// At one of the points; all points count alike.
  void add(std::span<const float> gradient);
  [[nodiscard]] bool is_empty() const noexcept { return count_ == 0; }
  /// |(q - w) mean gradient| of each weight.
  [[nodiscard]] std::vector<float> scores(std::span<const float> weights, std::span<const float> quantized) const;
  /// Sum of (q - w) mean gradient: the change of the loss.
  [[nodiscard]] double change(std::span<const float> weights, std::span<const float> quantized) const;

 private:
  std::vector<float> sum_;
  int count_ = 0;
};

/// A total spread over matrices of these sizes in proportion to size * (score / size)^exponent: 0 gives each the same share of its weights. None gets
/// more than it has; what is over goes to the others.
[[nodiscard]] std::vector<std::uint64_t> spread_over(std::span<const double> scores, std::span<const std::uint64_t> sizes, std::uint64_t total,
                                                     double exponent);

}  // namespace weft::quantize
