#include "model/network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/text.h"
#include "math/convert.h"
#include "math/neural.h"
#include "weft/error.h"

namespace weft::model {
namespace {

/// Rows that go through a block together: enough for a GEMM to run at its speed, few enough that what lies between its layers stays small.
constexpr std::size_t kSliceRows = 512;
constexpr std::size_t kRowsAUnit = 32;

/// Cosines and sines of one way to turn, for each row of a run.
struct Turns {
  std::size_t half = 0;
  std::vector<float> cosine, sine;  ///< [rows, half]
};

/// Tokens of one chunk within a slice.
struct Piece {
  std::size_t chunk = 0, first_token = 0, num_tokens = 0;
};
struct Slice {
  std::size_t first_row = 0, num_rows = 0;
  std::vector<Piece> pieces;
};

/// Memory of one block's run, kept from block to block.
struct Scratch {
  std::vector<float> normed, qkv, mixed, branch, branch2, hidden, router, gathered, expert_out, rounded;
};

float* grown(std::vector<float>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace

std::uint64_t SequenceState::size_bytes() const noexcept {
  std::uint64_t total = 0;
  for (const auto& layer : layers_) total += layer->size_bytes();
  return total;
}

void NetworkTap::embedding(const Rows&) {}
void NetworkTap::linear_input(int, Role, int, std::size_t, const Rows&) {}
void NetworkTap::block_output(int, const Rows&) {}
MixerTap* NetworkTap::mixer(int) { return nullptr; }

struct Network::State {
  NetworkConfig config;
  NetworkOptions options;
  ThreadTeam team;
  std::optional<WeightReader> reader;
  std::vector<std::string> warnings;
  std::vector<std::unique_ptr<Mixer>> mixers;  ///< one a layer
  bool resident = true;
  std::uint64_t total_bytes = 0;  ///< of all weights
  std::uint64_t least_bytes = 0;  ///< of those that are in memory at once when blocks are read anew each time

  // What is in memory.
  std::optional<InputWeights> input_read;
  std::optional<OutputWeights> output_read;
  std::vector<std::optional<BlockWeights>> blocks;
  std::optional<BlockWeights> one_block;  ///< when not all stay
  Scratch scratch;

  State(std::shared_ptr<const Checkpoint> checkpoint, const Json& json, const NetworkOptions& given)
      : config(read_network_config(json)), options(given), team(given.threads) {
    if (config.kind != NetworkKind::decoder && config.kind != NetworkKind::encoder)
      throw Error(ErrorCode::invalid_argument, fmt::format("a model of the type {} reads images, not tokens", config.architecture->name),
                  {.key = "model_type"}, "'weft eval MODEL --images F --labels F' runs it");
    reader.emplace(std::move(checkpoint), json, config, options.precision);
    warnings = config.warnings;
    warnings.insert(warnings.end(), reader->warnings().begin(), reader->warnings().end());
    for (const LayerConfig& layer : config.layers) {
      SoftmaxAttentionOptions attention;
      attention.heads = static_cast<std::size_t>(config.heads);
      attention.key_heads = static_cast<std::size_t>(config.kv_heads);
      attention.head_dim = static_cast<std::size_t>(config.head_dim);
      attention.scale = static_cast<float>(layer.score_scale);
      attention.cap = static_cast<float>(config.score_cap);
      attention.window = layer.window;
      attention.causal = config.kind == NetworkKind::decoder;
      mixers.push_back(make_softmax_attention(attention));
    }
    blocks.resize(config.layers.size());
    admit();
  }

  /// Decides whether the weights stay; refuses what can never fit.
  void admit() {
    const std::uint64_t budget = MemoryBudget(options.memory_bytes).limit_bytes();
    const std::uint64_t ends = reader->input_bytes() + reader->output_bytes();
    std::uint64_t largest = 0;
    total_bytes = ends;
    for (std::size_t i = 0; i < config.layers.size(); ++i) {
      largest = std::max(largest, reader->block_bytes(i));
      total_bytes += reader->block_bytes(i);
    }
    least_bytes = ends + largest;
    resident = total_bytes <= budget;
    if (resident) return;
    if (least_bytes > budget)
      throw Error(
          ErrorCode::out_of_memory,
          fmt::format("the embedding, the head and one block take {} in memory, but the budget is {}", format_size(least_bytes), format_size(budget)),
          {.file = reader->checkpoint().path().string()}, "raise it with --memory");
    warnings.push_back(fmt::format("the weights take {} and the budget is {}: blocks are read anew each time; --memory raises it",
                                   format_size(total_bytes), format_size(budget)));
  }

  /// What running that many rows needs: the rows themselves, their angles, and what lies between the layers of a block.
  [[nodiscard]] std::uint64_t rows_bytes(std::uint64_t rows) const {
    const auto hidden = static_cast<std::uint64_t>(config.hidden);
    const auto heads = static_cast<std::uint64_t>(config.heads + config.kv_heads) * static_cast<std::uint64_t>(config.head_dim);
    std::uint64_t turn = 0;
    for (const RopeConfig& rope : config.ropes) turn += static_cast<std::uint64_t>(rope.dims);
    const std::uint64_t between = 4 * hidden + 2 * heads + (options.rounding != nullptr ? 2 : 1) * reader->widest_rows();
    return checked_mul(rows, (hidden + turn) * sizeof(float), "the size of activations") +
           std::min<std::uint64_t>(rows, kSliceRows) * between * sizeof(float);
  }
  [[nodiscard]] std::uint64_t state_bytes(std::int64_t num_tokens, std::int64_t at_once) const {
    std::uint64_t total = 0;
    for (const auto& mixer : mixers) total = checked_add(total, mixer->state_bytes(num_tokens, at_once), "the size of a sequence's state");
    return total;
  }

  bool make_room(std::uint64_t size_bytes) {
    const std::uint64_t budget = MemoryBudget(options.memory_bytes).limit_bytes();
    if (resident && checked_add(total_bytes, size_bytes, "the size of a run") <= budget) return true;
    if (const std::uint64_t least = checked_add(least_bytes, size_bytes, "the size of a run"); least > budget)
      throw Error(
          ErrorCode::out_of_memory,
          fmt::format("sequences as long as these take {} in memory beside {} of weights that must be there at once, {} in all, but the budget is {}",
                      format_size(size_bytes), format_size(least_bytes), format_size(least), format_size(budget)),
          {.file = reader->checkpoint().path().string()}, "raise it with --memory, or give it fewer tokens at once");
    if (resident) {
      resident = false;
      for (std::optional<BlockWeights>& block : blocks) block.reset();
      warnings.push_back(
          fmt::format("the weights take {}, these sequences {} and the budget is {}: blocks are read anew each time; --memory raises it",
                      format_size(total_bytes), format_size(size_bytes), format_size(budget)));
    }
    return false;
  }

  /// Counts what a run adds.
  void admit_run(std::span<const TokenChunk> chunks) {
    std::uint64_t rows = 0, bytes = 0;
    for (const TokenChunk& chunk : chunks) {
      const auto tokens = static_cast<std::int64_t>(chunk.ids.size());
      rows += chunk.ids.size();
      std::uint64_t of_chunk = 0;
      if (chunk.state != nullptr)
        of_chunk = state_bytes(chunk.state->num_tokens_ + tokens, tokens);
      else  // remembered for one layer at a time
        for (const auto& mixer : mixers) of_chunk = std::max(of_chunk, mixer->state_bytes(tokens, tokens));
      bytes = checked_add(bytes, of_chunk, "the size of a run");
    }
    make_room(checked_add(bytes, rows_bytes(rows), "the size of a run"));
  }

  const InputWeights& input_weights() {
    if (!input_read) input_read = reader->input(team);
    return *input_read;
  }
  const OutputWeights& output_weights() {
    if (!output_read) output_read = reader->output(team);
    return *output_read;
  }
  const BlockWeights& block_weights(std::size_t layer) {
    std::optional<BlockWeights>& place = resident ? blocks[layer] : one_block;
    if (resident && place) return *place;
    place.reset();
    place = reader->block(layer, team);
    if (!resident) reader->will_read_block(layer + 1 < blocks.size() ? layer + 1 : 0);
    return *place;
  }

  // ---- Rows

  template <class F>
  void for_rows(std::size_t num_rows, const F& body) {
    const std::size_t a_unit = num_rows <= 8 ? num_rows : kRowsAUnit;
    team.for_each((num_rows + a_unit - 1) / std::max<std::size_t>(a_unit, 1), [&](std::size_t unit, int) {
      for (std::size_t r = unit * a_unit; r < std::min(num_rows, unit * a_unit + a_unit); ++r) body(r);
    });
  }

  void norm_row(const NormWeights& norm, const float* x, float* out, std::size_t n) const {
    if (config.norm == NormKind::layer)
      math::layer_norm(x, norm.weight.data(), norm.bias.empty() ? nullptr : norm.bias.data(), config.norm_eps, out, n);
    else
      math::rms_norm(x, norm.weight.data(), config.norm == NormKind::rms_plus_one ? 1.0F : 0.0F, config.norm_eps, out, n);
  }
  void norm_rows(const NormWeights& norm, const float* x, float* out, std::size_t num_rows) {
    const auto n = static_cast<std::size_t>(config.hidden);
    for_rows(num_rows, [&](std::size_t r) { norm_row(norm, x + r * n, out + r * n, n); });
  }
  void apply(const Linear& linear, const float* x, std::size_t num_rows, float* out) {
    apply_linear(linear, x, linear.columns, num_rows, out, linear.rows, options.precision, team);
  }

  // ---- Embedding

  void check_tokens(std::span<const TokenChunk> chunks) const {
    for (const TokenChunk& chunk : chunks) {
      if (chunk.ids.empty()) throw Error(ErrorCode::invalid_argument, "a sequence has no tokens", {}, "give each at least one token");
      for (const std::uint32_t id : chunk.ids)
        if (static_cast<std::int64_t>(id) >= config.vocab)
          throw Error(ErrorCode::invalid_argument, fmt::format("token id {} is not below {}, the size of the model's vocabulary", id, config.vocab),
                      {.key = "vocab_size"}, "the ids must come from this model's own tokenizer");
      for (const std::uint32_t type : chunk.types)
        if (static_cast<std::int64_t>(type) >= config.types)
          throw Error(ErrorCode::invalid_argument, fmt::format("token type {} is not below {}, the number of types", type, config.types), {}, "");
      if (!chunk.types.empty() && chunk.types.size() != chunk.ids.size())
        throw Error(ErrorCode::invalid_argument, fmt::format("{} token types for {} tokens", chunk.types.size(), chunk.ids.size()), {}, "");
      const std::int64_t begin = chunk.state == nullptr ? 0 : chunk.state->num_tokens_;
      const std::int64_t end = begin + static_cast<std::int64_t>(chunk.ids.size());
      if (config.positions == PositionKind::learned && end > config.context)
        throw Error(ErrorCode::invalid_argument, fmt::format("{} tokens, but the model has learned {} positions", end, config.context), {},
                    "give it shorter texts");
    }
  }

  std::vector<float> embed(std::span<const TokenChunk> chunks, std::size_t num_rows) {
    const auto hidden = static_cast<std::size_t>(config.hidden);
    const InputWeights& weights = input_weights();
    std::vector<float> x(num_rows * hidden);
    std::vector<float> row(hidden);
    std::size_t r = 0;
    for (const TokenChunk& chunk : chunks) {
      const auto begin = static_cast<std::size_t>(chunk.state == nullptr ? 0 : chunk.state->num_tokens_);
      for (std::size_t t = 0; t < chunk.ids.size(); ++t, ++r) {
        float* out = x.data() + r * hidden;
        weights.embedding.read_row(chunk.ids[t], out);
        if (config.embedding_scale != 1)
          for (std::size_t i = 0; i < hidden; ++i) out[i] *= static_cast<float>(config.embedding_scale);
        if (weights.types.is_there()) {
          weights.types.read_row(chunk.types.empty() ? 0 : chunk.types[t], row.data());
          math::add_to(row.data(), out, hidden);
        }
        if (weights.positions.is_there()) {
          weights.positions.read_row(begin + t, row.data());
          math::add_to(row.data(), out, hidden);
        }
        if (weights.norm.is_there()) norm_row(weights.norm, out, out, hidden);
      }
    }
    return x;
  }

  std::vector<Turns> turns(std::span<const TokenChunk> chunks, std::size_t num_rows) {
    std::vector<Turns> all;
    for (const RopeConfig& rope : config.ropes) {
      Turns& turn = all.emplace_back();
      turn.half = static_cast<std::size_t>(rope.dims) / 2;
      turn.cosine.resize(num_rows * turn.half);
      turn.sine.resize(num_rows * turn.half);
      std::vector<float> inverse;
      std::size_t first_row = 0;
      for (const TokenChunk& chunk : chunks) {
        const std::int64_t begin = chunk.state == nullptr ? 0 : chunk.state->num_tokens_;
        if (inverse.empty() || rope.depends_on_length()) inverse = inverse_frequencies(rope, begin + static_cast<std::int64_t>(chunk.ids.size()));
        for_rows(chunk.ids.size(), [&](std::size_t t) {
          const auto position = static_cast<float>(begin + static_cast<std::int64_t>(t));
          for (std::size_t j = 0; j < turn.half; ++j) {
            const auto angle = static_cast<double>(position * inverse[j]);
            turn.cosine[(first_row + t) * turn.half + j] = static_cast<float>(std::cos(angle) * rope.attention_factor);
            turn.sine[(first_row + t) * turn.half + j] = static_cast<float>(std::sin(angle) * rope.attention_factor);
          }
        });
        first_row += chunk.ids.size();
      }
    }
    return all;
  }

  // ---- One block

  struct Pass {
    std::span<const TokenChunk> chunks;
    std::vector<SequenceState*> states;
    const std::vector<Turns>* turns = nullptr;
    NetworkTap* tap = nullptr;
  };

  /// What o reads: [rows, heads * dim], in the scratch.
  const float* mix(const BlockWeights& block, std::size_t layer, const Slice& slice, const Pass& pass, const float* input) {
    const std::size_t rows = slice.num_rows;
    const auto heads = static_cast<std::size_t>(config.heads), kv_heads = static_cast<std::size_t>(config.kv_heads);
    const auto dim = static_cast<std::size_t>(config.head_dim);
    const std::size_t width = (heads + 2 * kv_heads) * dim;
    float* qkv = grown(scratch.qkv, rows * width);
    float* mixed = grown(scratch.mixed, rows * heads * dim);
    tell(pass, layer, Role::q, -1, slice.first_row, input, rows, block.qkv.columns);
    apply_rounded(block.qkv, layer, Role::q, -1, input, block.qkv.columns, rows, qkv);

    const int rope = config.layers[layer].rope;
    const Turns* turn = rope >= 0 ? &(*pass.turns)[static_cast<std::size_t>(rope)] : nullptr;
    const auto prepare = [&](const NormWeights& norm, float* of_row, std::size_t count, std::size_t row) {
      if (norm.is_there()) {
        const std::size_t size = norm.weight.size();  // of one head, or of all together
        for (std::size_t at = 0; at < count * dim; at += size) norm_row(norm, of_row + at, of_row + at, size);
      }
      if (turn != nullptr)
        for (std::size_t h = 0; h < count; ++h)
          math::rotate_pairs(of_row + h * dim, turn->cosine.data() + row * turn->half, turn->sine.data() + row * turn->half, turn->half);
    };
    for_rows(rows, [&](std::size_t r) {
      prepare(block.q_norm, qkv + r * width, heads, slice.first_row + r);
      prepare(block.k_norm, qkv + r * width + heads * dim, kv_heads, slice.first_row + r);
    });

    std::vector<MixerRun> runs;
    std::size_t row = 0;
    for (const Piece& piece : slice.pieces) {
      MixerRun& run = runs.emplace_back();
      run.state = pass.states[piece.chunk]->layers_[layer].get();
      run.num_tokens = piece.num_tokens;
      run.q = qkv + row * width;
      run.k = run.q + heads * dim;
      run.v = run.k + kv_heads * dim;
      run.q_stride = run.k_stride = run.v_stride = width;
      run.out = mixed + row * heads * dim;
      run.out_stride = heads * dim;
      row += piece.num_tokens;
    }
    MixerTap* looks = pass.tap == nullptr ? nullptr : pass.tap->mixer(static_cast<int>(layer));
    ShareRounder rounder(options.rounding.get(), looks);
    mixers[layer]->chunk(runs, team, options.rounding != nullptr && options.rounding->rounds_shares() ? &rounder : looks);
    return mixed;
  }

  /// Rounds shares before someone looks at them.
  class ShareRounder final : public MixerTap {
   public:
    ShareRounder(const ActivationRounding* rounding, MixerTap* next) : rounding_(rounding), next_(next) {}
    void change(std::int64_t first_key, std::span<float> shares) override { rounding_->round_shares(first_key, shares); }
    void attention(std::size_t run, std::size_t head, std::size_t token, std::int64_t first_key, std::span<const float> shares) override {
      if (next_ != nullptr) next_->attention(run, head, token, first_key, shares);
    }

   private:
    const ActivationRounding* rounding_;
    MixerTap* next_;
  };

  /// The product with what the layer would read of a quantizer; with the rows as they are where nothing is rounded.
  void apply_rounded(const Linear& linear, std::size_t layer, Role role, int expert, const float* x, std::size_t stride, std::size_t rows,
                     float* out) {
    if (options.rounding != nullptr) {
      float* copy = grown(scratch.rounded, rows * linear.columns);
      for_rows(rows, [&](std::size_t r) {
        std::memcpy(copy + r * linear.columns, x + r * stride, linear.columns * sizeof(float));
        options.rounding->round(static_cast<int>(layer), role, expert, {copy + r * linear.columns, linear.columns});
      });
      x = copy;
      stride = linear.columns;
    }
    apply_linear(linear, x, stride, rows, out, linear.rows, options.precision, team);
  }

  void tell(const Pass& pass, std::size_t layer, Role role, int expert, std::size_t first_row, const float* data, std::size_t rows,
            std::size_t columns, const std::size_t* places = nullptr) {
    if (pass.tap != nullptr) pass.tap->linear_input(static_cast<int>(layer), role, expert, first_row, {data, rows, columns, columns, places});
  }

  /// What down reads: [rows, inner] in the scratch, `weights.up.rows` floats apart.
  const float* open_up(const FeedForward& weights, bool gated, const float* input, std::size_t rows, const Pass& pass, std::size_t layer, int expert,
                       std::size_t first_row, Role up, const std::size_t* places = nullptr) {
    const std::size_t width = weights.up.rows;
    const std::size_t inner = weights.down.columns;
    float* hidden = grown(scratch.hidden, rows * width);
    tell(pass, layer, up, expert, first_row, input, rows, weights.up.columns, places);
    apply_rounded(weights.up, layer, up, expert, input, weights.up.columns, rows, hidden);
    for_rows(rows, [&](std::size_t r) {
      if (gated)
        math::activate_gated(config.activation, hidden + r * width, hidden + r * width + inner, inner);
      else
        math::activate(config.activation, hidden + r * width, inner);
    });
    return hidden;
  }

  void feed_forward(const FeedForward& weights, bool gated, const float* input, std::size_t rows, float* out, const Pass& pass, std::size_t layer,
                    int expert, std::size_t first_row, Role up, Role down, const std::size_t* places = nullptr) {
    const std::size_t width = weights.up.rows;
    const float* hidden = open_up(weights, gated, input, rows, pass, layer, expert, first_row, up, places);
    if (pass.tap != nullptr)
      pass.tap->linear_input(static_cast<int>(layer), down, expert, first_row, {hidden, rows, weights.down.columns, width, places});
    apply_rounded(weights.down, layer, down, expert, hidden, width, rows, out);
  }

  /// out null: only tells what the router and the experts read.
  void mixture(const BlockWeights& block, std::size_t layer, const Slice& slice, const Pass& pass, const float* input, float* out) {
    const std::size_t rows = slice.num_rows;
    const auto hidden = static_cast<std::size_t>(config.hidden), num_experts = static_cast<std::size_t>(config.experts);
    const auto chosen = static_cast<std::size_t>(config.experts_per_token);
    float* shares = grown(scratch.router, rows * num_experts);
    tell(pass, layer, Role::router, -1, slice.first_row, input, rows, hidden);
    apply(block.router, input, rows, shares);

    struct Assigned {
      std::size_t row;
      float weight;
    };
    std::vector<std::vector<Assigned>> of_expert(num_experts);
    std::vector<std::size_t> order(num_experts);
    for (std::size_t r = 0; r < rows; ++r) {
      float* share = shares + r * num_experts;
      math::softmax(share, num_experts);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(chosen), order.end(),
                        [share](std::size_t a, std::size_t b) { return share[a] > share[b] || (share[a] == share[b] && a < b); });
      float sum = 0;
      for (std::size_t i = 0; i < chosen; ++i) sum += share[order[i]];
      for (std::size_t i = 0; i < chosen; ++i) of_expert[order[i]].push_back({r, config.renormalises ? share[order[i]] / sum : share[order[i]]});
    }
    if (out != nullptr) std::fill(out, out + rows * hidden, 0.0F);
    for (std::size_t e = 0; e < num_experts; ++e) {
      const std::vector<Assigned>& assigned = of_expert[e];
      if (assigned.empty()) continue;
      float* gathered = grown(scratch.gathered, assigned.size() * hidden);
      float* answered = out == nullptr ? nullptr : grown(scratch.expert_out, assigned.size() * hidden);
      std::vector<std::size_t> places;
      for (std::size_t i = 0; i < assigned.size(); ++i) {
        std::memcpy(gathered + i * hidden, input + assigned[i].row * hidden, hidden * sizeof(float));
        places.push_back(assigned[i].row);
      }
      if (out == nullptr) {
        tell(pass, layer, Role::up, static_cast<int>(e), slice.first_row, gathered, assigned.size(), hidden, places.data());
        continue;
      }
      feed_forward(block.experts[e], block.gated, gathered, assigned.size(), answered, pass, layer, static_cast<int>(e), slice.first_row, Role::up,
                   Role::down, places.data());
      for (std::size_t i = 0; i < assigned.size(); ++i)
        math::add_scaled(assigned[i].weight, answered + i * hidden, out + assigned[i].row * hidden, hidden);
    }
    if (!block.shared.up.is_there()) return;
    if (out == nullptr) {
      tell(pass, layer, Role::shared_up, -1, slice.first_row, input, rows, hidden);
      return;
    }
    float* answered = grown(scratch.expert_out, rows * hidden);
    feed_forward(block.shared, true, input, rows, answered, pass, layer, -1, slice.first_row, Role::shared_up, Role::shared_down);
    float* gate = grown(scratch.router, rows);
    apply(block.shared_router, input, rows, gate);
    math::activate(math::Activation::sigmoid, gate, rows);
    for (std::size_t r = 0; r < rows; ++r) math::add_scaled(gate[r], answered + r * hidden, out + r * hidden, hidden);
  }

  /// From one stop to another. in, out: what lies at the stops of a slice beside x.
  struct Part {
    BlockStop from, to;
    const float* in;
    float* out;
  };
  static constexpr Part kWhole = {BlockStop::attention, BlockStop::end, nullptr, nullptr};

  [[nodiscard]] bool can_stop(std::size_t layer, BlockStop stop) const {
    if (stop == BlockStop::end) return true;
    return !config.parallel && (stop != BlockStop::inner || !config.layers[layer].experts);
  }

  void run_block(const BlockWeights& block, std::size_t layer, const Slice& slice, const Pass& pass, float* x, const Part& part) {
    const auto hidden = static_cast<std::size_t>(config.hidden), inner = block.mlp.down.columns;
    const std::size_t rows = slice.num_rows;
    float* normed = grown(scratch.normed, rows * hidden);
    float* branch = grown(scratch.branch, rows * hidden);
    const auto before = [&](Site site, const float* from) -> const float* {
      if (!block.norm(site).is_there()) return from;
      norm_rows(block.norm(site), from, normed, rows);
      return normed;
    };
    const auto behind = [&](Site site, float* of) {
      if (block.norm(site).is_there()) norm_rows(block.norm(site), of, of, rows);
    };
    const auto add = [&](const float* from) { for_rows(rows, [&](std::size_t r) { math::add_to(from + r * hidden, x + r * hidden, hidden); }); };
    const auto feed = [&](const float* from, float* to) {
      if (config.layers[layer].experts)
        mixture(block, layer, slice, pass, from, to);
      else
        feed_forward(block.mlp, block.gated, from, rows, to, pass, layer, -1, slice.first_row, Role::up, Role::down);
    };
    const auto attention_out = [&](const float* mixed, std::size_t columns) {
      tell(pass, layer, Role::o, -1, slice.first_row, mixed, rows, columns);
      if (part.to == BlockStop::mixed) {
        std::memcpy(part.out, mixed, rows * columns * sizeof(float));
        return false;
      }
      apply_rounded(block.o, layer, Role::o, -1, mixed, columns, rows, branch);
      behind(Site::attention_out, branch);
      return true;
    };
    const std::size_t mixed_columns = static_cast<std::size_t>(config.heads) * static_cast<std::size_t>(config.head_dim);

    if (config.parallel) {
      attention_out(mix(block, layer, slice, pass, before(Site::attention_in, x)), mixed_columns);
      float* second = grown(scratch.branch2, rows * hidden);
      feed(before(Site::mlp_in, x), second);
      behind(Site::mlp_out, second);
      add(branch);
      add(second);
      return;
    }

    if (part.from <= BlockStop::mixed) {
      const float* mixed = part.in;
      if (part.from == BlockStop::attention) {
        const float* input = before(Site::attention_in, x);
        if (part.to == BlockStop::attention) {
          tell(pass, layer, Role::q, -1, slice.first_row, input, rows, hidden);
          return;
        }
        mixed = mix(block, layer, slice, pass, input);
      }
      if (!attention_out(mixed, mixed_columns)) return;
      add(branch);
      behind(Site::attention_sum, x);
    }
    if (part.from == BlockStop::inner || part.to == BlockStop::inner) {
      // As open_up() leaves it, so that the product is the same, bit for bit.
      const std::size_t width = block.mlp.up.rows;
      const float* opened = nullptr;
      if (part.from == BlockStop::inner) {
        float* again = grown(scratch.hidden, rows * width);
        for (std::size_t r = 0; r < rows; ++r) std::memcpy(again + r * width, part.in + r * inner, inner * sizeof(float));
        opened = again;
      } else {
        opened = open_up(block.mlp, block.gated, before(Site::mlp_in, x), rows, pass, layer, -1, slice.first_row, Role::up);
      }
      if (pass.tap != nullptr) pass.tap->linear_input(static_cast<int>(layer), Role::down, -1, slice.first_row, {opened, rows, inner, width});
      if (part.to == BlockStop::inner) {
        for (std::size_t r = 0; r < rows; ++r) std::memcpy(part.out + r * inner, opened + r * width, inner * sizeof(float));
        return;
      }
      apply_rounded(block.mlp.down, layer, Role::down, -1, opened, width, rows, branch);
    } else {
      const float* input = before(Site::mlp_in, x);
      if (part.to == BlockStop::feed_forward) {
        if (config.layers[layer].experts)
          mixture(block, layer, slice, pass, input, nullptr);
        else
          tell(pass, layer, Role::up, -1, slice.first_row, input, rows, hidden);
        return;
      }
      feed(input, branch);
    }
    behind(Site::mlp_out, branch);
    add(branch);
    behind(Site::mlp_sum, x);
  }

  // ---- All

  std::vector<Slice> slices(std::span<const TokenChunk> chunks) const {
    std::vector<Slice> all;
    std::size_t row = 0;
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const std::size_t tokens = chunks[c].ids.size();
      for (std::size_t t = 0; t < tokens;) {
        // An encoder's token sees those behind it, so its sequences are not cut.
        const bool is_full = all.empty() || all.back().num_rows >= kSliceRows ||
                             (config.kind == NetworkKind::encoder && all.back().num_rows > 0 && all.back().num_rows + tokens > kSliceRows);
        if (is_full) all.push_back({row, 0, {}});
        Slice& slice = all.back();
        const std::size_t take = config.kind == NetworkKind::encoder ? tokens : std::min(tokens - t, kSliceRows - slice.num_rows);
        slice.pieces.push_back({c, t, take});
        slice.num_rows += take;
        t += take;
        row += take;
      }
    }
    return all;
  }

  /// columns: of a row; 0: the hidden size.
  void check_finite(std::span<const float> x, std::span<const TokenChunk> chunks, int layer, std::size_t first_sequence = 0,
                    std::size_t columns = 0) const {
    if (options.allow_non_finite || math::count_non_finite(x) == 0) return;
    if (columns == 0) columns = static_cast<std::size_t>(config.hidden);
    std::size_t first = 0;
    while (std::isfinite(x[first])) ++first;
    std::size_t row = first / columns, sequence = 0;
    while (row >= chunks[sequence].ids.size()) row -= chunks[sequence++].ids.size();
    const std::vector<std::string> names = reader->non_finite_tensors(layer);
    const std::string where = layer < 0 ? "the embedding" : fmt::format("layer {}", layer);
    throw Error(ErrorCode::corrupt,
                fmt::format("activations are NaN or infinite after {}, first for token {} of sequence {} (id {})", where, row,
                            first_sequence + sequence, chunks[sequence].ids[row]),
                {.file = reader->checkpoint().path().string(), .tensor = names.empty() ? std::string() : printable(names.front())},
                names.empty() ? "its weights are finite: their values lead to an overflow; 'weft verify' and 'weft info' show the model"
                              : fmt::format("{} of its tensors hold NaN or infinities; 'weft verify' lists all", names.size()));
  }

  std::vector<float> embed_checked(std::span<const TokenChunk> chunks, std::size_t first_sequence) {
    check_tokens(chunks);
    std::size_t num_rows = 0;
    for (const TokenChunk& chunk : chunks) num_rows += chunk.ids.size();
    std::vector<float> x = embed(chunks, num_rows);
    check_finite(x, chunks, -1, first_sequence);
    return x;
  }

  [[nodiscard]] std::size_t stop_columns(const BlockWeights& block, BlockStop stop) const {
    return stop == BlockStop::mixed   ? static_cast<std::size_t>(config.heads) * static_cast<std::size_t>(config.head_dim)
           : stop == BlockStop::inner ? block.mlp.down.columns
                                      : 0;
  }

  void run_one(std::size_t layer, const BlockWeights& block, std::span<const TokenChunk> chunks, BlockStop from, BlockStop to, std::span<float> x,
               std::span<const float> in, std::span<float> out, NetworkTap* tap, std::size_t first_sequence) {
    WEFT_ASSERT(from <= to && can_stop(layer, from == BlockStop::attention ? BlockStop::end : from) && can_stop(layer, to));
    const auto hidden = static_cast<std::size_t>(config.hidden);
    const std::size_t num_rows = x.size() / hidden;
    const std::size_t in_columns = stop_columns(block, from), out_columns = stop_columns(block, to);
    WEFT_ASSERT(in.size() == num_rows * in_columns && out.size() == num_rows * out_columns);
    const bool mixes = from == BlockStop::attention && to != BlockStop::attention;
    const std::vector<Turns> turned = mixes ? turns(chunks, num_rows) : std::vector<Turns>{};
    Pass pass;
    pass.chunks = chunks;
    pass.turns = &turned;
    pass.tap = tap;
    std::vector<std::unique_ptr<SequenceState>> own;
    for (std::size_t c = 0; mixes && c < chunks.size(); ++c) {
      own.push_back(std::make_unique<SequenceState>());
      own.back()->layers_.resize(mixers.size());
      own.back()->layers_[layer] = mixers[layer]->new_state();
      pass.states.push_back(own.back().get());
    }
    for (const Slice& slice : slices(chunks))
      run_block(block, layer, slice, pass, x.data() + slice.first_row * hidden,
                {from, to, in.data() + slice.first_row * in_columns, out.data() + slice.first_row * out_columns});
    check_finite(x, chunks, static_cast<int>(layer), first_sequence);
    if (out_columns > 0) check_finite(out, chunks, static_cast<int>(layer), first_sequence, out_columns);
    if (tap != nullptr && to == BlockStop::end) tap->block_output(static_cast<int>(layer), {x.data(), num_rows, hidden, hidden});
  }

  std::vector<float> run(const Network& network, std::span<const TokenChunk> chunks, NetworkTap* tap) {
    check_tokens(chunks);
    admit_run(chunks);
    std::size_t num_rows = 0;
    for (const TokenChunk& chunk : chunks) num_rows += chunk.ids.size();
    std::vector<float> x = embed(chunks, num_rows);
    const auto hidden = static_cast<std::size_t>(config.hidden);
    check_finite(x, chunks, -1);
    if (tap != nullptr) tap->embedding({x.data(), num_rows, hidden, hidden});

    const std::vector<Turns> turned = turns(chunks, num_rows);
    Pass pass;
    pass.chunks = chunks;
    pass.turns = &turned;
    pass.tap = tap;
    std::vector<std::unique_ptr<SequenceState>> own;
    for (const TokenChunk& chunk : chunks) {
      if (chunk.state == nullptr) own.push_back(network.new_state());
      pass.states.push_back(chunk.state == nullptr ? own.back().get() : chunk.state);
    }
    const std::vector<Slice> cut = slices(chunks);
    for (std::size_t layer = 0; layer < config.layers.size(); ++layer) {
      const BlockWeights& block = block_weights(layer);
      for (std::size_t c = 0; c < chunks.size(); ++c)
        if (chunks[c].state == nullptr) pass.states[c]->layers_[layer]->reserve(static_cast<std::int64_t>(chunks[c].ids.size()));
      for (const Slice& slice : cut) run_block(block, layer, slice, pass, x.data() + slice.first_row * hidden, kWhole);
      check_finite(x, chunks, static_cast<int>(layer));
      if (tap != nullptr) tap->block_output(static_cast<int>(layer), {x.data(), num_rows, hidden, hidden});
      // What nothing follows need not be remembered until the last layer is done.
      for (const auto& state : own) state->layers_[layer].reset();
    }
    for (std::size_t c = 0; c < chunks.size(); ++c)
      if (chunks[c].state != nullptr) chunks[c].state->num_tokens_ += static_cast<std::int64_t>(chunks[c].ids.size());
    return x;
  }

  void logits(const Rows& rows, std::span<float> out) {
    const OutputWeights& weights = output_weights();
    if (!weights.has_head)
      throw Error(ErrorCode::unsupported, "the model has no head that gives logits", {.file = reader->checkpoint().path().string()},
                  "ask for its hidden states instead (--what embedding or blocks)");
    const auto hidden = static_cast<std::size_t>(config.hidden), vocab = static_cast<std::size_t>(config.vocab);
    WEFT_ASSERT(out.size() == rows.num_rows * vocab);
    for (std::size_t first = 0; first < rows.num_rows; first += kSliceRows) {
      const std::size_t count = std::min(kSliceRows, rows.num_rows - first);
      float* ready = grown(scratch.normed, count * hidden);
      for_rows(count, [&](std::size_t r) {
        const float* row = rows.row(first + r);
        if (weights.norm.is_there())
          norm_row(weights.norm, row, ready + r * hidden, hidden);
        else
          std::memcpy(ready + r * hidden, row, hidden * sizeof(float));
      });
      if (weights.transform.is_there()) {
        float* transformed = grown(scratch.branch, count * hidden);
        apply(weights.transform, ready, count, transformed);
        for_rows(count, [&](std::size_t r) {
          math::activate(config.activation, transformed + r * hidden, hidden);
          if (weights.transform_norm.is_there()) norm_row(weights.transform_norm, transformed + r * hidden, transformed + r * hidden, hidden);
        });
        ready = transformed;
      }
      float* to = out.data() + first * vocab;
      apply(weights.is_tied ? input_weights().embedding : weights.head, ready, count, to);
      for_rows(count, [&](std::size_t r) {
        if (weights.is_tied && !weights.head.bias.empty()) math::add_to(weights.head.bias.data(), to + r * vocab, vocab);
        if (config.logit_cap > 0) math::soft_cap(static_cast<float>(config.logit_cap), to + r * vocab, vocab);
      });
    }
    if (!options.allow_non_finite && math::count_non_finite(out) > 0)
      throw Error(ErrorCode::corrupt, "logits are NaN or infinite, although what the last layer gives is finite",
                  {.file = reader->checkpoint().path().string()},
                  "the final norm or the head holds NaN or infinities; 'weft verify' names the tensor");
  }
};

Network::Network(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, const NetworkOptions& options)
    : state_(std::make_unique<State>(std::move(checkpoint), config, options)) {}
Network::~Network() = default;

const NetworkConfig& Network::config() const noexcept { return state_->config; }
std::span<const std::string> Network::warnings() const noexcept { return state_->warnings; }
ThreadTeam& Network::team() noexcept { return state_->team; }
bool Network::is_resident() const noexcept { return state_->resident; }
std::uint64_t Network::weight_bytes() const noexcept { return state_->total_bytes; }
bool Network::has_head() const noexcept { return state_->reader->has_head(); }
bool Network::has_pooler() const noexcept { return state_->reader->has_pooler(); }

std::unique_ptr<SequenceState> Network::new_state(std::int64_t expected_tokens) const {
  auto state = std::make_unique<SequenceState>();
  for (const auto& mixer : state_->mixers) {
    state->layers_.push_back(mixer->new_state());
    state->layers_.back()->reserve(expected_tokens);
  }
  return state;
}
std::uint64_t Network::sequence_bytes(std::int64_t num_tokens, std::int64_t at_once) const {
  return checked_add(state_->state_bytes(num_tokens, at_once), state_->rows_bytes(static_cast<std::uint64_t>(at_once)), "the size of a run");
}
bool Network::make_room(std::uint64_t size_bytes) { return state_->make_room(size_bytes); }

std::vector<float> Network::run(std::span<const TokenChunk> chunks, NetworkTap* tap) { return state_->run(*this, chunks, tap); }

std::vector<float> Network::embed(std::span<const TokenChunk> chunks, std::size_t first_sequence) {
  return state_->embed_checked(chunks, first_sequence);
}
void Network::run_block(std::size_t layer, const BlockWeights& weights, std::span<const TokenChunk> chunks, std::span<float> x, NetworkTap* tap,
                        std::size_t first_sequence) {
  state_->run_one(layer, weights, chunks, BlockStop::attention, BlockStop::end, x, {}, {}, tap, first_sequence);
}
void Network::run_block(std::size_t layer, const BlockWeights& weights, std::span<const TokenChunk> chunks, BlockStop from, BlockStop to,
                        std::span<float> x, std::span<const float> in, std::span<float> out, NetworkTap* tap, std::size_t first_sequence) {
  state_->run_one(layer, weights, chunks, from, to, x, in, out, tap, first_sequence);
}
bool Network::can_stop(std::size_t layer, BlockStop stop) const { return state_->can_stop(layer, stop); }
std::size_t Network::stop_columns(const BlockWeights& weights, BlockStop stop) const { return state_->stop_columns(weights, stop); }
BlockWeights Network::read_block(std::size_t layer, const Checkpoint* changed) { return state_->reader->block(layer, state_->team, changed); }
std::vector<BlockTensor> Network::block_tensors(std::size_t layer) const { return state_->reader->block_tensors(layer); }
std::uint64_t Network::block_bytes(std::size_t layer) const { return state_->reader->block_bytes(layer); }
std::uint64_t Network::input_bytes() const { return state_->reader->input_bytes(); }

void Network::normalise(std::span<float> rows) {
  const OutputWeights& weights = state_->output_weights();
  if (!weights.norm.is_there()) return;
  const auto hidden = static_cast<std::size_t>(state_->config.hidden);
  state_->for_rows(rows.size() / hidden,
                   [&](std::size_t r) { state_->norm_row(weights.norm, rows.data() + r * hidden, rows.data() + r * hidden, hidden); });
}

void Network::logits(const Rows& rows, std::span<float> out) { state_->logits(rows, out); }

std::vector<float> Network::pool(std::span<const float> row) {
  const OutputWeights& weights = state_->output_weights();
  std::vector<float> out(weights.pooler.rows);
  state_->apply(weights.pooler, row.data(), 1, out.data());
  math::activate(math::Activation::tanh, out.data(), out.size());
  return out;
}

}  // namespace weft::model
