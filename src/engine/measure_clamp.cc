#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <vector>

#include "base/budget.h"
#include "base/text.h"
#include "engine/measure_layers.h"
#include "math/lapack.h"
#include "math/neural.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using measure::put;
using model::TokenChunk;

constexpr std::size_t kClampTokens = 512;
// Beyond this many elements a head or a down projection is left alone unless neurons are named.
constexpr std::uint64_t kSparedElements = 4'000'000;

struct Clamp {
  NeuronClamp what;
  std::uint32_t token = 0;
  double score = 0;  ///< of the token, in standard deviations over the vocabulary
};

/// The largest input of every channel of every down projection, with its sign.
class PeakTap final : public model::NetworkTap {
 public:
  std::map<int, std::vector<float>> peaks;
  void linear_input(int layer, model::Role role, int expert, std::size_t, const model::Rows& rows) override {
    if (dense_slot(role, expert) != kDown) return;
    std::vector<float>& own = peaks[layer];
    own.resize(rows.num_columns);
    for (std::size_t r = 0; r < rows.num_rows; ++r)
      for (std::size_t c = 0; c < rows.num_columns; ++c)
        if (std::abs(rows.row(r)[c]) > std::abs(own[c])) own[c] = rows.row(r)[c];
  }
};

/// The weights that all tokens of a layer pass through on their way down.
const TensorInfo* down_of(const BlockWeights& weights, int layer) {
  for (const auto& [tensor, role] : weights.of(layer))
    if (slot_of(role) == kDown) return tensor;
  return nullptr;
}

/// What columns [first, first + count) of w, [hidden, neurons], favour through the head: z = U w, [count, vocabulary].
std::vector<double> decode(const measure::Matrix& head, const measure::Matrix& w, std::int64_t first, std::int64_t count) {
  std::vector<double> z(static_cast<std::size_t>(count * head.rows));
  math::gemm(math::Transpose::yes, math::Transpose::yes, count, head.rows, head.columns, 1.0, w.values.data() + first, w.columns, head.values.data(),
             head.columns, 0.0, z.data(), head.rows);
  return z;
}

/// The likeliest token of one column and its score: of the column itself, or (sign -1) of its opposite.
std::pair<std::uint32_t, double> best_token(std::span<const double> z, double sign) {
  double sum = 0, squares = 0;
  std::size_t best = 0;
  for (std::size_t v = 0; v < z.size(); ++v) {
    sum += z[v];
    squares += z[v] * z[v];
    if (sign * z[v] > sign * z[best]) best = v;
  }
  const auto n = static_cast<double>(z.size());
  const double deviation = std::sqrt(std::max(0.0, squares / n - sum / n * (sum / n)));
  return {static_cast<std::uint32_t>(best), deviation > 0 ? sign * (z[best] - sum / n) / deviation : 0};
}

/// The layer's neuron that decodes most clearly, held at the largest value that it takes in the text.
std::optional<Clamp> clearest(int layer, const measure::Matrix& head, const BlockWeight& down, std::span<const float> peaks) {
  constexpr std::int64_t kAtOnce = 64;
  std::optional<Clamp> best;
  for (std::int64_t first = 0; first < down.columns; first += kAtOnce) {
    const std::int64_t count = std::min(kAtOnce, down.columns - first);
    const std::vector<double> z = decode(head, down.matrix(), first, count);
    for (std::int64_t j = 0; j < count; ++j) {
      const auto neuron = static_cast<std::size_t>(first + j);
      if (neuron >= peaks.size() || peaks[neuron] == 0) continue;
      // The value decides which of its two directions the neuron writes.
      const double value = static_cast<double>(peaks[neuron]);
      const auto [token, score] =
          best_token(std::span(z).subspan(static_cast<std::size_t>(j * head.rows), static_cast<std::size_t>(head.rows)), value < 0 ? -1 : 1);
      if (!best || score > best->score) best = Clamp{{layer, neuron, value}, token, score};
    }
  }
  return best;
}

/// Makes column `neuron` of the layer's down projection a constant that is added.
void hold(model::BlockWeights& block, std::size_t neuron, double value) {
  model::Linear& down = block.mlp.down.is_there() ? block.mlp.down : block.shared.down;
  const std::size_t width = static_cast<std::size_t>(info(down.dtype).bits) / 8;
  std::vector<float> row(down.columns);
  if (down.bias.empty()) down.bias.assign(down.rows, 0.0F);
  for (std::size_t r = 0; r < down.rows; ++r) {
    down.read_row(r, row.data());
    down.bias[r] += static_cast<float>(value * static_cast<double>(row[neuron]));
    std::memset(down.weight.data() + (r * down.columns + neuron) * width, 0, width);
  }
}

/// Mean log-probability of a token over all positions. x: what the last block gave.
double mean_log_probability(RunningModel& running, const std::vector<float>& x, std::uint32_t token) {
  const auto hidden = static_cast<std::size_t>(running.config().hidden), vocab = static_cast<std::size_t>(running.config().vocab);
  const std::size_t rows = x.size() / hidden;
  constexpr std::size_t kStrip = 64;
  std::vector<float> logits;
  double sum = 0;
  for (std::size_t first = 0; first < rows; first += kStrip) {
    const std::size_t count = std::min(kStrip, rows - first);
    logits.resize(count * vocab);
    running.network().logits({x.data() + first * hidden, count, hidden, hidden}, logits);
    for (std::size_t r = 0; r < count; ++r) {
      const float* row = logits.data() + r * vocab;
      sum += static_cast<double>(row[token]) - math::log_sum_exp(row, vocab);
    }
  }
  return sum / static_cast<double>(rows);
}

}  // namespace

void measure_clamps(RunningModel& running, const BlockWeights& weights, const measure::Selection& selection, const MeasureOptions& options,
                    std::span<const std::uint32_t> ids, std::size_t window, MeasuredModel& out) {
  const auto skip = [&](const std::string& reason) { measure::skip_group(out.model, "clamp", reason); };
  const model::NetworkConfig& config = running.config();
  if (!running.network().has_head() || config.kind != model::NetworkKind::decoder) return skip("the model does not predict tokens");
  MeasuredInput input;
  input.checkpoint = running.files().checkpoint;
  input.architecture = config.architecture;
  const TensorInfo* head_tensor = input.head();
  if (head_tensor == nullptr || head_tensor->shape.size() != 2 || head_tensor->shape[1] != config.hidden)
    return skip("no head of the width of the layers");
  const auto layers = static_cast<int>(config.layers.size());
  if (options.clamps.empty() && selection.spares()) {
    std::uint64_t largest = head_tensor->num_elements;
    for (int l = 0; l < layers; ++l)
      if (const TensorInfo* down = down_of(weights, l)) largest = std::max(largest, down->num_elements);
    if (largest > kSparedElements) return skip("costly for layers of this size: ask for it with --what clamp");
  }
  for (const NeuronClamp& clamp : options.clamps) {
    const TensorInfo* down = clamp.layer >= 0 && clamp.layer < layers ? down_of(weights, clamp.layer) : nullptr;
    const std::uint64_t neurons = down == nullptr ? 0 : down->num_elements / static_cast<std::uint64_t>(config.hidden);
    if (clamp.neuron < neurons) continue;
    throw Error(ErrorCode::invalid_argument,
                down == nullptr ? fmt::format("layer {} of {} has no down projection that all tokens pass through", clamp.layer, layers)
                                : fmt::format("there is no neuron {} in layer {}, which has {}", clamp.neuron, clamp.layer, neurons),
                {.file = out.path, .key = "--clamp"}, "layers and neurons count from 0");
  }
  std::uint64_t largest_down = 0;
  for (int l = 0; l < layers; ++l)
    if (const TensorInfo* down = down_of(weights, l)) largest_down = std::max(largest_down, down->num_elements);
  const std::uint64_t need = 8 * (head_tensor->num_elements + largest_down), limit = MemoryBudget(options.memory_bytes).limit_bytes() / 4;
  if (need > limit)
    return skip(fmt::format("the head and a down projection in float64 take {}, but a quarter of the budget is {}: raise --memory", format_size(need),
                            format_size(limit)));
  const std::size_t rows = std::min(ids.size() / window, std::max<std::size_t>(1, kClampTokens / window)) * window;
  const std::vector<TokenChunk> chunks = chunks_of(ids.first(rows), window);

  // Which neurons, and what they write.
  const BlockWeight head = {read_doubles(*input.checkpoint, *head_tensor), head_tensor->shape[0], head_tensor->shape[1]};
  const auto finite = [](const std::vector<double>& values) {
    return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
  };
  if (!finite(head.values)) return skip("the head is not finite");
  std::vector<Clamp> clamps;
  PeakTap peaks;
  if (options.clamps.empty()) (void)running.network().run(chunks, &peaks);
  for (int l = 0; l < layers; ++l) {
    const TensorInfo* tensor = down_of(weights, l);
    const auto named = [&](const NeuronClamp& clamp) { return clamp.layer == l; };
    if (tensor == nullptr || (!options.clamps.empty() && std::none_of(options.clamps.begin(), options.clamps.end(), named))) {
      if (tensor == nullptr) block_of(out, l).measures.skipped.emplace_back("clamp", "no down projection that all tokens pass through");
      continue;
    }
    running.check_cancelled();
    const auto inner = static_cast<std::int64_t>(tensor->num_elements) / config.hidden;
    const BlockWeight down = weights.load(*tensor, inner);
    if (down.rows != head.columns || !finite(down.values)) {
      block_of(out, l).measures.skipped.emplace_back("clamp",
                                                     down.rows != head.columns ? "its down projection does not write hidden states" : "non-finite");
      continue;
    }
    if (options.clamps.empty()) {
      if (const std::optional<Clamp> clamp = clearest(l, head.matrix(), down, peaks.peaks[l])) clamps.push_back(*clamp);
      continue;
    }
    for (const NeuronClamp& clamp : options.clamps) {
      if (!named(clamp)) continue;
      const auto [token, score] =
          best_token(decode(head.matrix(), down.matrix(), static_cast<std::int64_t>(clamp.neuron), 1), clamp.value < 0 ? -1 : 1);
      clamps.push_back({clamp, token, score});
    }
  }
  if (clamps.empty()) return skip("no layer has neurons that write");

  // All of them in one walk over the blocks: each leaves the plain run at its layer.
  std::vector<float> plain = running.network().embed(chunks);
  std::vector<std::vector<float>> held(clamps.size());
  for (int l = 0; l < layers; ++l) {
    running.check_cancelled();
    const auto layer = static_cast<std::size_t>(l);
    for (std::size_t c = 0; c < clamps.size(); ++c) {
      if (clamps[c].what.layer != l) continue;
      model::BlockWeights changed = running.network().read_block(layer);
      hold(changed, static_cast<std::size_t>(clamps[c].what.neuron), clamps[c].what.value);
      held[c] = plain;
      running.network().run_block(layer, changed, chunks, held[c]);
    }
    const model::BlockWeights block = running.network().read_block(layer);
    running.network().run_block(layer, block, chunks, plain);
    for (std::size_t c = 0; c < clamps.size(); ++c)
      if (clamps[c].what.layer < l) running.network().run_block(layer, block, chunks, held[c]);
  }
  double raised = 0;
  for (std::size_t c = 0; c < clamps.size(); ++c) {
    const Clamp& clamp = clamps[c];
    const double before = mean_log_probability(running, plain, clamp.token), after = mean_log_probability(running, held[c], clamp.token);
    raised += after > before;
    const std::string at = fmt::format("clamp.{}.", c);
    put(out.model, at + "layer", clamp.what.layer);
    put(out.model, at + "neuron", static_cast<double>(clamp.what.neuron));
    put(out.model, at + "value", clamp.what.value);
    put(out.model, at + "token", clamp.token);
    put(out.model, at + "score", clamp.score);
    put(out.model, at + "plain", before);
    put(out.model, at + "held", after);
    put(out.model, at + "raised", after - before);
    if (running.has_tokenizer()) {
      const std::array<std::uint32_t, 1> id = {clamp.token};
      out.model.labels.emplace_back(at + "token", running.tokenizer("a text").decode(id));
    }
  }
  put(out.model, "clamp.count", static_cast<double>(clamps.size()));
  put(out.model, "clamp.count_raised", raised);
}

}  // namespace weft::engine
