#pragma once
#include <cstddef>
#include <span>
#include <vector>

// How much a whole block matters, for giving blocks one of two widths.
namespace weft::quantize {

/// By what a block changes: minus the mean cosine between each token before and behind it; more is more important. Rows of zeros count as unchanged.
class ChangeScore {
 public:
  /// [tokens, width] each.
  void add(std::span<const float> before, std::span<const float> behind, std::size_t width);
  [[nodiscard]] double score() const { return num_tokens_ == 0 ? 0 : -sum_ / static_cast<double>(num_tokens_); }

 private:
  double sum_ = 0;
  std::size_t num_tokens_ = 0;
};

/// By the weights alone: the share of all of a block's weights that lie more than one standard deviation above their mean; less is more important.
[[nodiscard]] double share_above_deviation(std::span<const std::vector<float>> matrices);

}  // namespace weft::quantize
