#pragma once
#include <cstddef>
#include <span>
#include <vector>

// How much each token counts in the second moment that compensation looks at: RSQ weighs tokens by the attention that they receive.
namespace weft::quantize {

struct TokenWeights {
  std::vector<double> weights;  ///< of each token; the mean within each sequence is 1
  double least = 0;             ///< that the token which is looked at least got, before that
  double effective = 0;         ///< how many equal tokens they are worth: (sum w)^2 / sum w^2
};

/// What a token received, moved to [least, 1] within each sequence (a sequence whose tokens all received the same: 1), then divided by its mean
/// there. lengths: of the sequences, one behind the other. least: in (0, 1].
[[nodiscard]] TokenWeights weigh_tokens(std::span<const double> received, std::span<const std::size_t> lengths, double least);
/// The same; while the tokens are worth less than `wanted` equal ones, the least is doubled, to 1 at most, where all are alike.
[[nodiscard]] TokenWeights weigh_tokens(std::span<const double> received, std::span<const std::size_t> lengths, double least, double wanted);
/// The tokens of the first eighth of each sequence (one at least) count, and no others.
[[nodiscard]] TokenWeights weigh_first_tokens(std::span<const std::size_t> lengths);

}  // namespace weft::quantize
