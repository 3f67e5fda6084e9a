#include "quantize/token_weights.h"

#include <algorithm>

#include "base/check.h"

namespace weft::quantize {
namespace {

/// To a mean of 1 within each sequence; counts what they are worth.
void finish(TokenWeights& out, std::span<const std::size_t> lengths) {
  double sum = 0, squares = 0;
  std::size_t first = 0;
  for (const std::size_t length : lengths) {
    double own = 0;
    for (std::size_t t = first; t < first + length; ++t) own += out.weights[t];
    for (std::size_t t = first; t < first + length; ++t) {
      out.weights[t] *= static_cast<double>(length) / own;
      sum += out.weights[t];
      squares += out.weights[t] * out.weights[t];
    }
    first += length;
  }
  out.effective = squares > 0 ? sum * sum / squares : 0;
}

}  // namespace

TokenWeights weigh_tokens(std::span<const double> received, std::span<const std::size_t> lengths, double least) {
  WEFT_ASSERT(least > 0 && least <= 1);
  TokenWeights out;
  out.least = least;
  out.weights.resize(received.size());
  std::size_t first = 0;
  for (const std::size_t length : lengths) {
    WEFT_ASSERT(first + length <= received.size());
    const auto own = received.subspan(first, length);
    const auto [low, high] = length == 0 ? std::pair(own.end(), own.end()) : std::minmax_element(own.begin(), own.end());
    for (std::size_t t = 0; t < length; ++t) out.weights[first + t] = *high > *low ? (own[t] - *low) / (*high - *low) * (1 - least) + least : 1;
    first += length;
  }
  WEFT_ASSERT(first == received.size());
  finish(out, lengths);
  return out;
}

TokenWeights weigh_tokens(std::span<const double> received, std::span<const std::size_t> lengths, double least, double wanted) {
  while (true) {
    TokenWeights out = weigh_tokens(received, lengths, least);
    if (out.effective >= wanted || least >= 1) return out;
    least = std::min(1.0, 2 * least);
  }
}

TokenWeights weigh_first_tokens(std::span<const std::size_t> lengths) {
  TokenWeights out;
  for (const std::size_t length : lengths)
    for (std::size_t t = 0; t < length; ++t) out.weights.push_back(t < std::max<std::size_t>(1, length / 8) ? 1 : 0);
  finish(out, lengths);
  return out;
}

}  // namespace weft::quantize
