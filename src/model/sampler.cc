#include "model/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_set>

#include "base/check.h"
#include "weft/error.h"

namespace weft::model {

Sampler::Sampler(const Sampling& sampling, std::uint64_t seed, std::uint32_t stream)
    : sampling_(sampling), random_(RandomStream::of(seed, "next token", 0, stream)) {
  const auto require = [](bool holds, const char* name, double value, const char* range) {
    if (holds) return;
    throw Error(ErrorCode::invalid_argument, fmt::format("{} is {}, not {}", name, value, range), {.key = name}, "");
  };
  require(sampling.temperature >= 0 && std::isfinite(sampling.temperature), "temperature", sampling.temperature, "a number of at least 0");
  require(sampling.top_p > 0 && sampling.top_p <= 1, "top_p", sampling.top_p, "above 0 and at most 1");
  require(sampling.min_p >= 0 && sampling.min_p <= 1, "min_p", sampling.min_p, "between 0 and 1");
  require(sampling.repetition_penalty > 0 && std::isfinite(sampling.repetition_penalty), "repetition_penalty", sampling.repetition_penalty,
          "a number above 0");
}

std::uint32_t Sampler::choose(std::span<const float> logits, std::span<const std::uint32_t> seen) {
  WEFT_ASSERT(!logits.empty());
  candidates_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) candidates_[i] = {static_cast<double>(logits[i]), static_cast<std::uint32_t>(i)};
  if (sampling_.repetition_penalty != 1) {
    const std::unordered_set<std::uint32_t> once(seen.begin(), seen.end());
    for (const std::uint32_t id : once)
      if (id < candidates_.size()) {
        double& logit = candidates_[id].logit;
        logit = logit > 0 ? logit / sampling_.repetition_penalty : logit * sampling_.repetition_penalty;
      }
  }
  const auto before = [](const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); };
  if (sampling_.temperature == 0) return std::min_element(candidates_.begin(), candidates_.end(), before)->id;

  std::size_t kept = candidates_.size();
  if (sampling_.top_k > 0 && sampling_.top_k < kept) {
    kept = static_cast<std::size_t>(sampling_.top_k);
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(kept), candidates_.end(), before);
  } else {
    std::sort(candidates_.begin(), candidates_.end(), before);
  }
  // Shares in the order of the candidates, relative to the likeliest.
  const double highest = candidates_.front().logit;
  std::vector<double> shares(kept);
  double total = 0;
  for (std::size_t i = 0; i < kept; ++i) total += shares[i] = std::exp((candidates_[i].logit - highest) / sampling_.temperature);
  if (sampling_.top_p < 1) {
    double sum = 0;
    std::size_t i = 0;
    while (i < kept && sum < sampling_.top_p * total) sum += shares[i++];
    kept = std::max<std::size_t>(i, 1);
  }
  while (kept > 1 && shares[kept - 1] < sampling_.min_p) --kept;
  total = 0;
  for (std::size_t i = 0; i < kept; ++i) total += shares[i];

  // 48 random bits.
  const double uniform = static_cast<double>(random_.uniform(2 * draws_)) + static_cast<double>(random_.uniform(2 * draws_ + 1)) * 0x1p-24;
  ++draws_;
  double left = uniform * total;
  for (std::size_t i = 0; i < kept; ++i) {
    if (left < shares[i]) return candidates_[i].id;
    left -= shares[i];
  }
  return candidates_[kept - 1].id;
}

}  // namespace weft::model
