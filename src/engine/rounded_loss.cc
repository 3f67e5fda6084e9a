#include "engine/rounded_loss.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "quantize/solver.h"

namespace weft::engine {
namespace {

/// Sum of -log p of each sequence's next tokens, and how many there are.
struct TextLoss {
  double sum = 0;
  std::size_t count = 0;
};
void add_loss(model::Network& network, const CalibrationTokens& tokens, const Activations::Batch& batch, const std::vector<float>& rows,
              TextLoss& loss) {
  constexpr std::size_t kRows = 256;
  const auto hidden = static_cast<std::size_t>(network.config().hidden), vocab = static_cast<std::size_t>(network.config().vocab);
  std::vector<float> logits(kRows * vocab);
  std::size_t first = 0;
  for (std::size_t s = batch.first_sequence; s < batch.first_sequence + batch.num_sequences; ++s) {
    const std::vector<std::uint32_t>& ids = tokens.sequences[s];
    for (std::size_t begin = 0; begin + 1 < ids.size(); begin += kRows) {
      const std::size_t count = std::min(kRows, ids.size() - 1 - begin);
      network.logits({rows.data() + (first + begin) * hidden, count, hidden, hidden}, std::span(logits).first(count * vocab));
      for (std::size_t r = 0; r < count; ++r) {
        const float* row = logits.data() + r * vocab;
        const float most = *std::max_element(row, row + vocab);
        double sum = 0;
        for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v] - most));
        loss.sum += std::log(sum) - static_cast<double>(row[ids[begin + r + 1]] - most);
        ++loss.count;
      }
    }
    first += ids.size();
  }
}

}  // namespace

std::shared_ptr<const CalibrationTokens> first_tokens(const CalibrationTokens& tokens, std::uint64_t num_tokens) {
  auto out = std::make_shared<CalibrationTokens>();
  for (std::size_t s = 0; s < tokens.sequences.size() && out->num_tokens() < num_tokens; ++s) {
    if (std::find(tokens.groups.begin(), tokens.groups.end(), s) != tokens.groups.end()) out->groups.push_back(s);
    out->sequences.push_back(tokens.sequences[s]);
  }
  return out;
}

double rounded_loss(LinearPlan& plan, RunningModel& model, const std::shared_ptr<const CalibrationTokens>& tokens,
                    const RoundedLossOptions& options) {
  BlockPassOptions pass_options;
  static_cast<RunOptions&>(pass_options) = plan.options;
  BlockPass pass(model, tokens, pass_options);
  TextLoss loss;
  static_cast<void>(pass.run([&](Block& block) {
    if (options.before_block) options.before_block(block);
    for (const model::BlockTensor* tensor : block.linears()) {
      const LinearTarget* target = plan.find(tensor->tensor->name);
      if (target == nullptr) continue;
      LinearMatrix matrix = block.matrix(target->name);
      target->check_values(matrix.values);
      matrix.values = options.rounded ? options.rounded(*target, std::move(matrix.values))
                                      : quantize::round_to_nearest(matrix.values, target->rows, target->columns, plan.options_for(*target)).decoded();
      block.set_matrix(target->name, matrix);
    }
    if (block.layer() + 1 < block.num_layers()) return;
    for (const Activations::Batch& batch : block.batches()) add_loss(block.network(), *tokens, batch, block.run(batch, block.input(batch)), loss);
  }));
  return loss.count == 0 ? 0 : loss.sum / static_cast<double>(loss.count);
}

}  // namespace weft::engine
