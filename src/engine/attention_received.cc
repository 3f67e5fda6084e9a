#include "engine/attention_received.h"

#include <algorithm>

namespace weft::engine {
namespace {

constexpr float kUnits = 1073741824.0F;

}  // namespace

AttentionReceived::AttentionReceived(const CalibrationTokens& tokens) {
  std::size_t start = 0;
  for (const auto& sequence : tokens.sequences) {
    starts_.push_back(start);
    start += sequence.size();
  }
  starts_.push_back(start);
  sums_.resize(start);
}

void AttentionReceived::batch(std::size_t, std::size_t, std::uint64_t first_token) { first_token_ = first_token; }

void AttentionReceived::linear_input(int, model::Role role, int, std::size_t first_row, const model::Rows&) {
  if (input_point(role, -1).role != model::Role::q) return;
  // A slice may begin within a sequence; its runs are the rests of that one and of those behind it.
  const auto token = static_cast<std::size_t>(first_token_) + first_row;
  slice_sequence_ = static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), token) - starts_.begin()) - 1;
}

model::MixerTap* AttentionReceived::mixer(int) { return this; }

void AttentionReceived::attention(std::size_t run, std::size_t, std::size_t, std::int64_t first_key, std::span<const float> shares) {
  const std::size_t sequence = slice_sequence_ + run, first = starts_[sequence] + static_cast<std::size_t>(first_key);
  const std::lock_guard lock(locks_[sequence % locks_.size()]);
  std::int64_t* sums = sums_.data() + first;
  for (std::size_t i = 0; i < shares.size(); ++i) sums[i] += shares[i] > 0 ? static_cast<std::int32_t>(shares[i] * kUnits + 0.5F) : 0;
}

std::vector<double> AttentionReceived::received() const {
  std::vector<double> out;
  for (const std::int64_t sum : sums_) out.push_back(static_cast<double>(sum) / static_cast<double>(kUnits));
  return out;
}

}  // namespace weft::engine
