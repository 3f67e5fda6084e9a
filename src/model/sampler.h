#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/philox.h"
#include "weft/generate.h"

namespace weft::model {

/// Chooses tokens. Draws are numbered, so that the same seed and logits give the same tokens on every machine.
class Sampler {
 public:
  /// stream: of several texts made with one seed. Errors: invalid_argument for numbers that make no sense.
  Sampler(const Sampling& sampling, std::uint64_t seed, std::uint32_t stream = 0);

  /// seen: the tokens so far, for the penalty. The lower id wins where logits are equal.
  [[nodiscard]] std::uint32_t choose(std::span<const float> logits, std::span<const std::uint32_t> seen);

 private:
  struct Candidate {
    double logit;
    std::uint32_t id;
  };
  Sampling sampling_;
  RandomStream random_;
  std::uint64_t draws_ = 0;
  std::vector<Candidate> candidates_;
};

}  // namespace weft::model
