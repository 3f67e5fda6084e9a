#include "engine/tail_loss.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "math/neural.h"
#include "model/weights.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

constexpr std::uint64_t kTokens = 2048;  // that are run, if there are so many

/// sum p log(p / q) of what two rows of logits predict.
double divergence(const float* p, const float* q, std::size_t vocab) {
  const double of_p = math::log_sum_exp(p, vocab), of_q = math::log_sum_exp(q, vocab);
  double sum = 0;
  for (std::size_t v = 0; v < vocab; ++v) {
    const double log_p = static_cast<double>(p[v]) - of_p;
    sum += std::exp(log_p) * (log_p - (static_cast<double>(q[v]) - of_q));
  }
  return std::max(sum, 0.0);
}

}  // namespace

TailLoss::TailLoss(RunningModel& running, std::shared_ptr<const CalibrationTokens> tokens) : running_(running), tokens_(std::move(tokens)) {
  model::Network& network = running_.network();
  if (!network.has_head() || running_.config().kind != model::NetworkKind::decoder)
    throw Error(ErrorCode::unsupported, "the model does not predict tokens, so that it has no loss to spend a budget by",
                {.file = running_.files().folder.string(), .key = "budget-by"}, "use --budget-by loss");
  // The network keeps a model that fits; so may this.
  keeps_ = network.is_resident();
  kept_.resize(running_.config().layers.size());
}
TailLoss::~TailLoss() = default;

const model::BlockWeights& TailLoss::behind(int layer) {
  const auto at = static_cast<std::size_t>(layer);
  if (!keeps_) {
    read_ = std::make_unique<model::BlockWeights>(running_.network().read_block(at));
    return *read_;
  }
  if (kept_[at] == nullptr) kept_[at] = std::make_unique<model::BlockWeights>(running_.network().read_block(at));
  return *kept_[at];
}

std::vector<float> TailLoss::run(Block& block, const Activations::Batch& batch) {
  model::Network& network = running_.network();
  std::vector<model::TokenChunk> chunks;
  for (std::size_t s = 0; s < batch.num_sequences; ++s) chunks.push_back({nullptr, tokens_->sequences[batch.first_sequence + s], {}});
  std::vector<float> rows = block.run(batch, block.input(batch));
  for (int layer = block.layer() + 1; layer < block.num_layers(); ++layer)
    network.run_block(static_cast<std::size_t>(layer), behind(layer), chunks, rows, nullptr, batch.first_sequence);
  network.normalise(rows);
  return rows;
}

void TailLoss::remember(Block& block) {
  std::uint64_t run_tokens = 0;
  plain_.clear();
  for (const Activations::Batch& batch : block.batches()) {
    if (run_tokens >= kTokens) break;
    running_.check_cancelled();
    plain_.push_back(run(block, batch));
    run_tokens += batch.num_rows;
  }
}

double TailLoss::of(Block& block) {
  model::Network& network = running_.network();
  const auto hidden = static_cast<std::size_t>(running_.config().hidden), vocab = static_cast<std::size_t>(running_.config().vocab);
  for (int layer = 0; layer <= block.layer(); ++layer) kept_[static_cast<std::size_t>(layer)].reset();
  double sum = 0;
  std::uint64_t counted = 0;
  std::vector<float> before, now;
  for (std::size_t b = 0; b < plain_.size(); ++b) {
    running_.check_cancelled();
    const Activations::Batch& batch = block.batches()[b];
    const std::vector<float> rows = run(block, batch);
    constexpr std::size_t kStrip = 64;
    for (std::size_t first = 0; first < batch.num_rows; first += kStrip) {
      const std::size_t count = std::min(kStrip, batch.num_rows - first);
      before.resize(count * vocab);
      now.resize(count * vocab);
      network.logits({plain_[b].data() + first * hidden, count, hidden, hidden}, before);
      network.logits({rows.data() + first * hidden, count, hidden, hidden}, now);
      std::vector<double> of_rows(count);
      network.team().for_each(count, [&](std::size_t r, int) { of_rows[r] = divergence(before.data() + r * vocab, now.data() + r * vocab, vocab); });
      for (const double own : of_rows) sum += own;
      counted += count;
    }
  }
  return counted == 0 ? 0 : sum / static_cast<double>(counted);
}

}  // namespace weft::engine
