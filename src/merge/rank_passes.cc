#include "merge/rank_passes.h"

#include <algorithm>
#include <utility>

namespace weft::merge {
namespace {

constexpr std::uint64_t kBlock = math::RankSelector::kSampleBlock;

class RankTally final : public Tally {
 public:
  explicit RankTally(std::unique_ptr<math::RankSelector::Tally> inner) : tally(std::move(inner)) {}
  std::unique_ptr<math::RankSelector::Tally> tally;
};

}  // namespace

Pass RankPasses::next_pass() const noexcept {
  switch (selector_.next_pass()) {
    case math::RankSelector::Pass::sample:
      return Pass::sample;
    case math::RankSelector::Pass::whole:
      return Pass::whole;
    case math::RankSelector::Pass::done:
      break;
  }
  return Pass::none;
}

bool RankPasses::wants_tile(std::uint64_t first, std::size_t count) const noexcept {
  for (std::uint64_t block = first / kBlock; block * kBlock < first + count; ++block)
    if (selector_.wants_block(block)) return true;
  return false;
}

std::unique_ptr<Tally> RankPasses::new_tally() const { return std::make_unique<RankTally>(selector_.new_tally()); }

void RankPasses::add(Tally& tally, std::uint64_t first, std::span<const float> keys) const {
  math::RankSelector::Tally& inner = *static_cast<RankTally&>(tally).tally;
  if (selector_.next_pass() != math::RankSelector::Pass::sample) return selector_.add(inner, first, keys);
  for (std::size_t begin = 0; begin < keys.size();) {
    const std::uint64_t element = first + begin;
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(keys.size() - begin, kBlock - element % kBlock));
    if (selector_.wants_block(element / kBlock)) selector_.add(inner, element, keys.subspan(begin, size));
    begin += size;
  }
}

void RankPasses::finish_pass(std::span<const std::unique_ptr<Tally>> tallies) {
  for (const std::unique_ptr<Tally>& tally : tallies) selector_.merge(*static_cast<RankTally&>(*tally).tally);
  selector_.finish_pass();
}

}  // namespace weft::merge
