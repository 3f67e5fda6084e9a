#include "engine/activation_rounding.h"

#include <fmt/format.h>

#include <charconv>
#include <map>
#include <optional>
#include <utility>

#include "base/text.h"
#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "engine/running_model.h"
#include "quantize/activation_groups.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

constexpr int kMostRanges = 256;

[[noreturn]] void refuse(const char* option, const std::string& what, const std::string& advice) {
  throw Error(ErrorCode::invalid_argument, what, {.key = option}, advice);
}

std::optional<int> number_behind(std::string_view text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return std::nullopt;
  int value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data() + prefix.size(), end, value);
  if (error != std::errc() || at != end) return std::nullopt;
  return value;
}

/// What the options say.
struct Rounding {
  bool rounds_rows = false;
  quantize::ActivationNumbers numbers;
  std::size_t group = 0;
  float clip = 1;
  int share_bits = 0;
  bool even_shares = false;
};

Rounding parse(const ActivationOptions& how) {
  Rounding out;
  if (!how.numbers.empty()) {
    const std::string_view text = how.numbers;
    const std::size_t colon = text.find(':');
    const std::string_view kind = text.substr(0, colon);
    const std::optional<int> bits = number_behind(kind, "int");
    const std::optional<int> group = colon == std::string_view::npos ? 0 : number_behind(text.substr(colon), ":");
    if (!(kind == "fp8" || (bits && *bits >= 2 && *bits <= 16)) || !group || (colon != std::string_view::npos && *group < 1))
      refuse("--activations", fmt::format("activations cannot become '{}'", printable(text)), "int2 to int16 or fp8, such as int8, or int4:32");
    if (colon != std::string_view::npos && how.ranges != 0)
      refuse("--activation-ranges", "channels of a token have scales of their own, or ranges that stay, not both", "leave one of them out");
    out.rounds_rows = true;
    out.numbers = {bits.value_or(8), kind == "fp8"};
    out.group = static_cast<std::size_t>(*group);
  } else if (how.ranges != 0 || !how.text.files.empty() || how.clip != 1) {
    refuse("--activations", "ranges, a text for them and a clip say how activations are rounded, and they are not", "give --activations int8");
  }
  if (!how.shares.empty()) {
    std::optional<int> bits = number_behind(how.shares, "log");
    if (!bits) {
      bits = number_behind(how.shares, "int");
      out.even_shares = true;
    }
    if (!bits || *bits < 1 || *bits > 6)
      refuse("--attention-shares", fmt::format("shares of attention cannot become '{}'", printable(how.shares)), "log1 to log6, or int1 to int6");
    out.share_bits = *bits;
  }
  if (!(how.clip > 0 && how.clip <= 1))
    refuse("--activation-clip", fmt::format("{} of the largest value makes no sense", how.clip), "a share above 0, up to 1");
  out.clip = static_cast<float>(how.clip);
  if (how.ranges < 0 || how.ranges > kMostRanges)
    refuse("--activation-ranges", fmt::format("{} ranges make no sense", how.ranges), fmt::format("1 to {}; 8 is usual", kMostRanges));
  if (how.ranges != 0 && how.text.files.empty())
    refuse("--calibration", "ranges of channels are seen on a text, and there is none", "give --calibration FILE, or leave --activation-ranges out");
  if (how.ranges == 0 && !how.text.files.empty())
    refuse("--calibration", "scales of tokens need no text: it is for ranges that stay", "give --activation-ranges 1, or leave --calibration out");
  return out;
}

class AsQuantized final : public model::ActivationRounding {
 public:
  explicit AsQuantized(const Rounding& how) : how_(how) {}

  std::map<std::pair<int, InputPoint>, quantize::ActivationGroups> ranges;  ///< empty: scales for each token

  void round(int layer, model::Role role, int expert, std::span<float> row) const override {
    if (!how_.rounds_rows) return;
    // An expert that saw no token of the text has no ranges: it takes the token's own.
    if (const auto found = ranges.find({layer, input_point(role, expert)}); found != ranges.end())
      found->second.round(row);
    else
      quantize::round_token(row, how_.numbers, how_.group, how_.clip);
  }
  [[nodiscard]] bool rounds_shares() const noexcept override { return how_.share_bits != 0; }
  void round_shares(std::int64_t first_key, std::span<float> shares) const override {
    if (how_.even_shares)
      quantize::round_shares_evenly(shares, how_.share_bits);
    else
      quantize::round_shares(shares, how_.share_bits, first_key == 0);
  }

 private:
  Rounding how_;
};

}  // namespace

std::shared_ptr<const model::ActivationRounding> make_activation_rounding(std::string_view model, const ActivationOptions& how,
                                                                          const RunOptions& options) {
  const Rounding parsed = parse(how);
  if (!parsed.rounds_rows && parsed.share_bits == 0) return nullptr;
  auto rounding = std::make_shared<AsQuantized>(parsed);
  if (how.ranges == 0) return rounding;
  RunningModel running(model, options);
  BlockPassOptions pass_options;
  static_cast<RunOptions&>(pass_options) = options;
  BlockPass pass(running, read_calibration_text(running, how.text, options.seed).tokens, pass_options);
  static_cast<void>(pass.run([&](Block& block) {
    StatisticsRequest request;
    request.last = true;
    for (const InputStatistics& read : block.statistics(request))
      if (read.num_tokens > 0 && read.point.role != model::Role::router)
        rounding->ranges.emplace(std::pair(block.layer(), read.point),
                                 quantize::group_channels(read.min, read.max, how.ranges, parsed.numbers, parsed.clip));
  }));
  return rounding;
}

}  // namespace weft::engine
