#include "engine/linear_budget.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/text.h"
#include "quantize/block_importance.h"
#include "weft/error.h"

namespace weft::engine {

LinearBudget::LinearBudget(LinearPlan& plan) : plan_(plan), choices_(plan.targets.size()) {
  const LinearQuantizeOptions& options = plan.options;
  if (plan.format == LinearFormat::awq || plan.is_bitsandbytes() || !plan.integers())
    refuse_linear("budget", fmt::format("{} has one width for all layers, and a budget nothing to choose from", options.format),
                  "use --format gptq, compressed-tensors or weft, with --numbers int");
  if (options.budget_bits && !(*options.budget_bits > 0 && std::isfinite(*options.budget_bits)))
    refuse_linear("budget", fmt::format("a budget of {} bits a weight makes no sense", *options.budget_bits), "3.2bpw or 2.1GiB, for instance");
  const std::vector<int> held = plan.is_gptq() ? std::vector<int>{2, 3, 4, 8} : std::vector<int>{2, 3, 4, 5, 6, 7, 8};
  const bool by_block = options.budget_by != "loss" && options.budget_by != "model";
  if (by_block && options.budget_by != "lim" && options.budget_by != "zd")
    refuse_linear("budget-by", fmt::format("a budget cannot be spent by '{}'", printable(options.budget_by)), "loss, model, lim or zd");
  if ((options.budget_by == "lim" || options.budget_by == "model") && !wants_activations(options))
    refuse_linear("calibration", fmt::format("{} looks at what becomes of a text, and there is none", options.budget_by),
                  fmt::format("give --calibration FILE, or use --budget-by {}", options.budget_by == "lim" ? "zd" : "loss"));
  widths_ = !options.widths.empty() ? options.widths : by_block ? std::vector<int>{2, 4} : held;
  std::sort(widths_.begin(), widths_.end());
  widths_.erase(std::unique(widths_.begin(), widths_.end()), widths_.end());
  for (const int width : widths_)
    if (std::find(held.begin(), held.end(), width) == held.end())
      refuse_linear("widths", fmt::format("{} does not hold {} bits", options.format, width),
                    fmt::format("its widths are {}", fmt::join(held, ", ")));
  if (by_block && widths_.size() != 2)
    refuse_linear("widths", fmt::format("{} gives blocks one of two widths, not of {}", options.budget_by, widths_.size()),
                  "2,4 or 4,8, for instance");
  if (by_block)
    for (const LinearTarget& target : plan.targets)
      if (target.block < 0)
        throw Error(ErrorCode::unsupported, fmt::format("'{}' is in no block that has a number", printable(target.name)), {.file = plan.model_name},
                    "use --budget-by loss");
}

std::vector<int> LinearBudget::widths_of(const LinearTarget& target) const { return target.bits_given ? std::vector<int>{target.bits} : widths_; }

void LinearBudget::add_choice(const LinearTarget& target, const quantize::Choice& choice) {
  choices_[static_cast<std::size_t>(plan_.find(target.name) - plan_.targets.data())].push_back(choice);
}

void LinearBudget::look_at_block(Block& block) {
  if (plan_.options.budget_by != "lim") return;
  quantize::ChangeScore score;
  const auto width = static_cast<std::size_t>(block.network().config().hidden);
  for (const Activations::Batch& batch : block.batches()) {
    const std::vector<float> before = block.input(batch);
    score.add(before, block.run(batch, before), width);
  }
  change_scores_[block.layer()] = score.score();
}

/// All at the lower width, then whole blocks at the higher, the most important first, as long as the budget holds.
std::vector<std::size_t> LinearBudget::raise_blocks(std::uint64_t budget) const {
  std::map<int, double> scores = change_scores_;
  if (plan_.options.budget_by == "zd") {
    std::map<int, std::vector<std::vector<float>>> matrices;
    for (const LinearTarget& target : plan_.targets) matrices[target.block];
    for (auto& [block, own] : matrices) {
      for (const LinearTarget& target : plan_.targets)
        if (target.block == block) own.push_back(target.read_values());
      scores[block] = -quantize::share_above_deviation(own);
      own = {};
    }
  }
  std::vector<std::pair<double, int>> order;
  for (const auto& [block, score] : scores) order.emplace_back(-score, block);
  std::sort(order.begin(), order.end());
  std::vector<std::size_t> chosen(plan_.targets.size());
  std::uint64_t size = 0;
  for (const std::vector<quantize::Choice>& choice : choices_) size += choice.front().size;
  for (const auto& [minus_score, block] : order) {
    std::uint64_t raised = size;
    for (std::size_t i = 0; i < plan_.targets.size(); ++i)
      if (plan_.targets[i].block == block) raised += choices_[i].back().size - choices_[i].front().size;
    if (raised > budget) break;
    size = raised;
    for (std::size_t i = 0; i < plan_.targets.size(); ++i)
      if (plan_.targets[i].block == block) chosen[i] = choices_[i].size() - 1;
  }
  return chosen;
}

void LinearBudget::choose(std::uint64_t other_bytes, const std::function<void(const LinearTarget&, const quantize::Choice&)>& told) {
  std::uint64_t weights = 0, least = 0, others = other_bytes;
  for (std::size_t i = 0; i < plan_.targets.size(); ++i) {
    // In no block that the text runs through: it stays as it is.
    if (choices_[i].empty()) {
      others += plan_.targets[i].tensor->size_bytes;
      choices_[i].push_back({});
      continue;
    }
    weights += plan_.targets[i].num_weights();
    least += std::min_element(choices_[i].begin(), choices_[i].end(), [](const auto& a, const auto& b) { return a.size < b.size; })->size;
  }
  if (weights == 0) return;  // refused when nothing was made
  const auto bits_a_weight = [&](std::uint64_t size) { return 8 * static_cast<double>(size) / static_cast<double>(weights); };
  const char* const advice = "give a larger budget, larger groups, or fewer layers a rule of their own";
  std::uint64_t budget = ~std::uint64_t{0};
  if (plan_.options.budget_bits) {
    if (*plan_.options.budget_bits < bits_a_weight(least))
      refuse_linear("budget",
                    fmt::format("a budget of {:g} bits a weight is below the least that the {} linear layers take with their scales, {:.4f}",
                                *plan_.options.budget_bits, plan_.targets.size(), bits_a_weight(least)),
                    advice);
    budget = static_cast<std::uint64_t>(std::min(*plan_.options.budget_bits, 64.0) * static_cast<double>(weights) / 8);
    budget = std::max(budget, least);  // where the division was rounded
  }
  if (plan_.options.budget_bytes) {
    if (*plan_.options.budget_bytes < others || *plan_.options.budget_bytes - others < least)
      refuse_linear(
          "budget",
          fmt::format("a budget of {} ({} bytes) is below the least that the model's tensors take, {} ({} bytes: {} of linear layers, {} of others)",
                      format_size(*plan_.options.budget_bytes), *plan_.options.budget_bytes, format_size(others + least), others + least, least,
                      others),
          advice);
    budget = std::min(budget, *plan_.options.budget_bytes - others);
  }
  const std::vector<std::size_t> chosen =
      plan_.options.budget_by == "loss" || plan_.options.budget_by == "model" ? quantize::allocate(choices_, budget) : raise_blocks(budget);
  std::map<int, std::int64_t> counts;
  for (std::size_t i = 0; i < plan_.targets.size(); ++i) {
    if (choices_[i].front().size == 0) continue;
    plan_.targets[i].bits = widths_of(plan_.targets[i])[chosen[i]];
    counts[plan_.targets[i].bits] += plan_.targets[i].rows * plan_.targets[i].columns;
    told(plan_.targets[i], choices_[i][chosen[i]]);
  }
  // What most weights have is what the config says of all.
  plan_.bits = std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
}

}  // namespace weft::engine
