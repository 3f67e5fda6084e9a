#pragma once
#include <cstdint>
#include <span>
#include <vector>

// Rounding of activations: a scale for each token or each run of its channels, a range for each of some groups of channels that have ranges alike
// (DGQ), and powers of two for shares of attention.
namespace weft::quantize {

/// Integers of so many bits, or FP8 (E4M3).
struct ActivationNumbers {
  int bits = 8;
  bool is_e4m3 = false;
};

/// How much the ranges along an axis differ: by their upper ends and by their lower ones. DGQ groups along the axis where they differ more.
[[nodiscard]] double range_spread(std::span<const float> least, std::span<const float> most);

/// Which of at most `groups` groups each channel is in, by k-means on the ends of its range: the first centre is the widest range, each next one the
/// range farthest from all centres. No chance in it.
[[nodiscard]] std::vector<int> cluster_ranges(std::span<const float> least, std::span<const float> most, int groups);

/// x becomes scale * (code - zero), with the scale and zero point of its channel's group; code within [0, 2^bits - 1], or an FP8 number, with zero 0.
struct ActivationGroups {
  ActivationNumbers numbers;
  std::vector<int> group_of;       ///< of each channel
  std::vector<float> scale, zero;  ///< of each group; zero points are integers
  void round(std::span<float> row) const;
};
/// Each group's range is `clip` of that from the lowest to the highest of its members. groups = 1: one for the tensor.
[[nodiscard]] ActivationGroups group_channels(std::span<const float> least, std::span<const float> most, int groups, const ActivationNumbers& numbers,
                                              float clip = 1);

/// Symmetric, with a scale for each `group` values of the row (the last may be fewer; 0: all): clip times their largest magnitude is the largest
/// number.
void round_token(std::span<float> row, const ActivationNumbers& numbers, std::size_t group, float clip);

/// A share p becomes D 2^-q, q = the nearest to -log2(p / D) within [0, 2^bits - 1]; 0 becomes the smallest that there is.
[[nodiscard]] std::uint8_t encode_share(float share, float largest, int bits);
[[nodiscard]] float decode_share(std::uint8_t code, float largest);
/// All shares that a token gives. D is the largest beside the first; the first key's share, which is often near 1, stays when is_first says that it
/// is the sequence's first.
void round_shares(std::span<float> shares, int bits, bool is_first);
/// In even steps from 0 to 1.
void round_shares_evenly(std::span<float> shares, int bits);

}  // namespace weft::quantize
