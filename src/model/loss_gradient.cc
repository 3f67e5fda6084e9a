#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/text.h"
#include "math/lapack.h"
#include "model/block_gradient.h"
#include "weft/error.h"

// The gradient of a model's loss, block by block from the last.
namespace weft::model {
namespace {

using math::Transpose;

/// Positions whose logits are in memory together.
constexpr std::size_t kRowsAtOnce = 64;
constexpr std::size_t kTile = 128;

std::int64_t signed_of(std::size_t n) { return static_cast<std::int64_t>(n); }

/// C = op(A) op(B) + beta C by tiles of C's rows.
template <typename Real>
void product(ThreadTeam& team, Transpose a_form, Transpose b_form, std::size_t m, std::size_t n, std::size_t k, const Real* a, std::size_t a_stride,
             const Real* b, std::size_t b_stride, Real beta, Real* c) {
  team.for_each((m + kTile - 1) / kTile, [&](std::size_t unit, int) {
    const std::size_t first = unit * kTile, count = std::min(kTile, m - first);
    math::gemm(a_form, b_form, signed_of(count), signed_of(n), signed_of(k), Real(1), a_form == Transpose::no ? a + first * a_stride : a + first,
               signed_of(a_stride), b, signed_of(b_stride), beta, c + first * n, signed_of(n));
  });
}

template <typename Real>
std::vector<Real> matrix_of(const Linear& linear) {
  std::vector<Real> out(linear.rows * linear.columns);
  std::vector<float> row(linear.columns);
  for (std::size_t r = 0; r < linear.rows; ++r) {
    linear.read_row(r, row.data());
    std::copy(row.begin(), row.end(), out.begin() + signed_of(r * linear.columns));
  }
  return out;
}

template <typename Real>
class LossPass {
 public:
  using Sink = std::function<void(const TensorInfo& tensor, std::span<const Real> gradient)>;

  LossPass(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, const LossGradientOptions& options)
      : checkpoint_(std::move(checkpoint)),
        json_(config),
        config_(read_network_config(config)),
        team_(options.threads),
        reader_(checkpoint_, config, config_, Precision::float32),
        memory_bytes_(options.memory_bytes) {
    if (config_.kind != NetworkKind::decoder || !reader_.has_head())
      throw Error(ErrorCode::unsupported, "only a decoder with a head predicts the next token, so that this model has no such loss",
                  {.file = checkpoint_->path().string()}, "name a language model");
  }

  LossGradient run(std::span<const std::vector<std::uint32_t>> sequences, const Sink& sink) {
    check(sequences);
    const auto hidden = static_cast<std::size_t>(config_.hidden);
    std::vector<std::size_t> lengths;
    std::size_t rows = 0, predicted = 0;
    for (const auto& sequence : sequences) {
      lengths.push_back(sequence.size());
      rows += sequence.size();
      predicted += sequence.size() - 1;
    }
    admit(rows, static_cast<bool>(sink));
    const InputWeights input = reader_.input(team_);
    std::vector<Real> x = embed(input, sequences, rows);
    std::vector<std::vector<Real>> inputs;
    for (std::size_t layer = 0; layer < config_.layers.size(); ++layer) {
      if (sink) inputs.push_back(x);
      const BlockParameters<Real> block = parameters_of<Real>(reader_.block(layer, team_));
      x = BlockFunction<Real>(config_, layer, team_).forward(block, lengths, x);
    }
    LossGradient result;
    result.num_predicted = predicted;
    std::vector<Real> d_embedding;  // of a tied head, until the embedding's own comes to it
    std::vector<Real> d = head(input, sequences, x, predicted, sink, result.loss, d_embedding);
    if (!std::isfinite(result.loss))
      throw Error(ErrorCode::corrupt, "the loss is NaN or infinite", {.file = checkpoint_->path().string()},
                  "'weft verify' finds bad weights, 'weft forward' the layer where activations overflow");
    if (!sink) return result;
    for (std::size_t layer = config_.layers.size(); layer-- > 0;) {
      const BlockParameters<Real> block = parameters_of<Real>(reader_.block(layer, team_));
      BlockParameters<Real> gradient = block.zeros();
      const BlockFunction<Real> function(config_, layer, team_);
      BlockTape<Real> tape;
      static_cast<void>(function.forward(block, lengths, inputs[layer], &tape));
      std::vector<Real>().swap(inputs[layer]);
      d = function.backward(block, tape, d, &gradient);
      for (const BlockTensor& tensor : reader_.block_tensors(layer)) {
        const std::vector<Real> values = values_of_tensor(gradient, config_, tensor);
        if (!values.empty()) sink(*tensor.tensor, values);
      }
    }
    embed_backward(sequences, d, d_embedding, hidden, sink);
    return result;
  }

 private:
  void check(std::span<const std::vector<std::uint32_t>> sequences) const {
    if (sequences.empty()) throw Error(ErrorCode::invalid_argument, "there is no sequence to take a loss of", {}, "give at least one");
    for (const auto& sequence : sequences) {
      if (sequence.size() < 2)
        throw Error(ErrorCode::invalid_argument, "a sequence of fewer than two tokens predicts nothing", {}, "give each at least two tokens");
      for (const std::uint32_t id : sequence)
        if (static_cast<std::int64_t>(id) >= config_.vocab)
          throw Error(ErrorCode::invalid_argument, fmt::format("token id {} is not below {}, the size of the model's vocabulary", id, config_.vocab),
                      {.key = "vocab_size"}, "the ids must come from this model's own tokenizer");
      if (config_.positions == PositionKind::learned && static_cast<std::int64_t>(sequence.size()) > config_.context)
        throw Error(ErrorCode::invalid_argument, fmt::format("{} tokens, but the model has learned {} positions", sequence.size(), config_.context),
                    {}, "give it shorter texts");
    }
  }

  void admit(std::size_t rows, bool with_gradient) const {
    const std::uint64_t real = sizeof(Real), hidden = static_cast<std::uint64_t>(config_.hidden);
    std::uint64_t largest = 0;
    for (std::size_t i = 0; i < config_.layers.size(); ++i) largest = std::max(largest, reader_.block_bytes(i));
    // A block's weights as they are stored, as numbers, and their gradient; its tape; what is kept; the head and the embedding.
    const auto ffn_numbers = largest / sizeof(std::uint16_t) / std::max<std::uint64_t>(1, hidden);
    std::uint64_t need = largest + 2 * largest / sizeof(std::uint16_t) * real + reader_.input_bytes() + reader_.output_bytes();
    need += 3 * static_cast<std::uint64_t>(config_.vocab) * hidden * real;
    need += checked_mul(rows, (12 * hidden + ffn_numbers) * real, "activations");
    if (with_gradient) need += checked_mul(checked_mul(rows, config_.layers.size(), "activations"), hidden * real, "activations");
    const std::uint64_t budget = MemoryBudget(memory_bytes_).limit_bytes();
    if (need > budget)
      throw Error(ErrorCode::out_of_memory,
                  fmt::format("the gradient on {} tokens takes about {}, but the budget is {}", rows, format_size(need), format_size(budget)),
                  {.file = checkpoint_->path().string()}, "take fewer tokens at a time, whose gradients can be added, or raise the budget");
  }

  std::vector<Real> embed(const InputWeights& weights, std::span<const std::vector<std::uint32_t>> sequences, std::size_t rows) {
    const auto hidden = static_cast<std::size_t>(config_.hidden);
    WEFT_ASSERT(!weights.norm.is_there());
    std::vector<Real> x(rows * hidden);
    std::vector<float> row(hidden);
    std::size_t r = 0;
    for (const auto& sequence : sequences)
      for (std::size_t t = 0; t < sequence.size(); ++t, ++r) {
        Real* out = x.data() + r * hidden;
        weights.embedding.read_row(sequence[t], row.data());
        // In float32, as the forward pass has the factor.
        for (std::size_t i = 0; i < hidden; ++i) out[i] = static_cast<Real>(row[i]) * static_cast<Real>(static_cast<float>(config_.embedding_scale));
        if (!weights.positions.is_there()) continue;
        weights.positions.read_row(t, row.data());
        for (std::size_t i = 0; i < hidden; ++i) out[i] += static_cast<Real>(row[i]);
      }
    return x;
  }

  /// The tensor of a role around the blocks, or null.
  [[nodiscard]] const TensorInfo* find(Placement placement, Role role, bool is_bias) const {
    for (const TensorSlot& slot : tensor_slots(*config_.architecture, json_, placement)) {
      if (slot.role != role || (slot.name.ends_with(".bias") != is_bias)) continue;
      if (role == Role::norm && slot.site != Site::final) continue;
      if (const TensorInfo* tensor = checkpoint_->find_tensor(slot.name)) return tensor;
      for (const std::string& alias : slot.aliases)
        if (const TensorInfo* tensor = checkpoint_->find_tensor(alias)) return tensor;
    }
    return nullptr;
  }

  /// Final norm, head and cross-entropy: d loss / d what the last block gave.
  std::vector<Real> head(const InputWeights& input, std::span<const std::vector<std::uint32_t>> sequences, const std::vector<Real>& x,
                         std::size_t predicted, const Sink& sink, double& loss, std::vector<Real>& d_embedding) {
    const OutputWeights weights = reader_.output(team_);
    const auto hidden = static_cast<std::size_t>(config_.hidden), vocab = static_cast<std::size_t>(config_.vocab);
    const std::vector<Real> matrix = matrix_of<Real>(weights.is_tied ? input.embedding : weights.head);
    const std::vector<float>& bias = weights.head.bias;
    NormParameters<Real> norm{{weights.norm.weight.begin(), weights.norm.weight.end()}, {weights.norm.bias.begin(), weights.norm.bias.end()}};
    std::vector<Real> normed = x;
    if (norm.is_there()) normalise_rows(team_, config_, norm, x, normed);

    std::vector<Real> d_normed(x.size()), d_matrix(sink ? matrix.size() : 0);
    std::vector<double> d_bias(bias.size());
    // Positions that predict, and what.
    std::vector<std::pair<std::size_t, std::uint32_t>> targets;
    std::size_t row = 0;
    for (const auto& sequence : sequences) {
      for (std::size_t t = 0; t + 1 < sequence.size(); ++t) targets.emplace_back(row + t, sequence[t + 1]);
      row += sequence.size();
    }
    double total = 0;
    for (std::size_t first = 0; first < targets.size(); first += kRowsAtOnce) {
      const std::size_t count = std::min(kRowsAtOnce, targets.size() - first);
      std::vector<Real> read(count * hidden), logits(count * vocab), slopes, back(count * hidden);
      std::vector<double> losses(count);
      for (std::size_t i = 0; i < count; ++i)
        std::copy_n(normed.begin() + signed_of(targets[first + i].first * hidden), hidden, read.begin() + signed_of(i * hidden));
      // Columns of the logits are many, their rows few: the units are of columns.
      team_.for_each((vocab + kTile - 1) / kTile, [&](std::size_t unit, int) {
        const std::size_t begin = unit * kTile, width = std::min(kTile, vocab - begin);
        math::gemm(Transpose::no, Transpose::yes, signed_of(count), signed_of(width), signed_of(hidden), Real(1), read.data(), signed_of(hidden),
                   matrix.data() + begin * hidden, signed_of(hidden), Real(0), logits.data() + begin, signed_of(vocab));
      });
      team_.for_each(count, [&](std::size_t i, int) {
        Real* of_row = logits.data() + i * vocab;
        for (std::size_t v = 0; v < bias.size(); ++v) of_row[v] += static_cast<Real>(bias[v]);
        const Real cap = static_cast<Real>(config_.logit_cap);
        if (cap > 0)
          for (std::size_t v = 0; v < vocab; ++v) of_row[v] = cap * std::tanh(of_row[v] / cap);
        const Real largest = *std::max_element(of_row, of_row + vocab);
        double sum = 0;
        for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(of_row[v] - largest));
        const std::uint32_t target = targets[first + i].second;
        losses[i] = std::log(sum) + static_cast<double>(largest) - static_cast<double>(of_row[target]);
        for (std::size_t v = 0; v < vocab; ++v) {
          const double capped = static_cast<double>(of_row[v]);
          double slope = std::exp(static_cast<double>(of_row[v] - largest)) / sum - (v == target ? 1 : 0);
          if (cap > 0) slope *= 1 - (capped / static_cast<double>(cap)) * (capped / static_cast<double>(cap));
          of_row[v] = static_cast<Real>(slope / static_cast<double>(predicted));
        }
      });
      for (const double one : losses) total += one;
      if (!sink) continue;
      product(team_, Transpose::no, Transpose::no, count, hidden, vocab, logits.data(), vocab, matrix.data(), hidden, Real(0), back.data());
      for (std::size_t i = 0; i < count; ++i)
        std::copy_n(back.begin() + signed_of(i * hidden), hidden, d_normed.begin() + signed_of(targets[first + i].first * hidden));
      product(team_, Transpose::yes, Transpose::no, vocab, hidden, count, logits.data(), vocab, read.data(), hidden, Real(1), d_matrix.data());
      for (std::size_t i = 0; i < count; ++i)
        for (std::size_t v = 0; v < d_bias.size(); ++v) d_bias[v] += static_cast<double>(logits[i * vocab + v]);
    }
    loss = total / static_cast<double>(predicted);
    if (!sink) return d_normed;
    if (weights.is_tied)
      d_embedding = std::move(d_matrix);
    else if (const TensorInfo* tensor = find(Placement::post, Role::head, false))
      sink(*tensor, d_matrix);
    if (const TensorInfo* tensor = bias.empty() ? nullptr : find(Placement::post, Role::head, true))
      sink(*tensor, std::vector<Real>(d_bias.begin(), d_bias.end()));
    if (norm.is_there()) {
      NormParameters<Real> gradient{std::vector<Real>(norm.weight.size()), std::vector<Real>(norm.bias.size())};
      normalise_rows_backward(config_, norm, x, d_normed, &gradient);
      if (const TensorInfo* tensor = find(Placement::post, Role::norm, false)) sink(*tensor, gradient.weight);
      if (const TensorInfo* tensor = norm.bias.empty() ? nullptr : find(Placement::post, Role::norm, true)) sink(*tensor, gradient.bias);
    }
    return d_normed;
  }

  void embed_backward(std::span<const std::vector<std::uint32_t>> sequences, const std::vector<Real>& d, std::vector<Real>& d_embedding,
                      std::size_t hidden, const Sink& sink) const {
    const TensorInfo* embedding = find(Placement::pre, Role::embed, false);
    const TensorInfo* positions = find(Placement::pre, Role::position, false);
    WEFT_ASSERT(embedding != nullptr);
    d_embedding.resize(static_cast<std::size_t>(embedding->num_elements));
    std::vector<Real> d_positions(positions == nullptr ? 0 : static_cast<std::size_t>(positions->num_elements));
    const Real scale = static_cast<Real>(static_cast<float>(config_.embedding_scale));
    std::size_t r = 0;
    for (const auto& sequence : sequences)
      for (std::size_t t = 0; t < sequence.size(); ++t, ++r)
        for (std::size_t i = 0; i < hidden; ++i) {
          d_embedding[sequence[t] * hidden + i] += scale * d[r * hidden + i];
          if (positions != nullptr) d_positions[t * hidden + i] += d[r * hidden + i];
        }
    sink(*embedding, d_embedding);
    if (positions != nullptr) sink(*positions, d_positions);
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  const Json& json_;
  NetworkConfig config_;
  ThreadTeam team_;
  WeightReader reader_;
  std::uint64_t memory_bytes_;
};

}  // namespace

LossGradient loss_gradient(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, std::span<const std::vector<std::uint32_t>> sequences,
                           const GradientSink& sink, const LossGradientOptions& options) {
  return LossPass<float>(std::move(checkpoint), config, options).run(sequences, sink);
}

LossGradient loss_gradient_double(std::shared_ptr<const Checkpoint> checkpoint, const Json& config,
                                  std::span<const std::vector<std::uint32_t>> sequences, const GradientSinkDouble& sink,
                                  const LossGradientOptions& options) {
  return LossPass<double>(std::move(checkpoint), config, options).run(sequences, sink);
}

}  // namespace weft::model
