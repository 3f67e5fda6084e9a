#include "model/mixer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

#include "support/memory_checkpoint.h"

// Mixers against what defines them, in double, token by token.
namespace weft::model {
namespace {

struct Shape {
  std::size_t heads, key_heads, key_dim, value_dim;
};

/// Rows of random q, k, v, gates and decays for some tokens.
struct Sequence {
  Shape shape;
  std::size_t tokens;
  std::vector<float> q, k, v, gate, decay;

  Sequence(const Shape& of, std::size_t count, std::uint64_t seed)
      : shape(of),
        tokens(count),
        q(testing::random_values(count * of.heads * of.key_dim, seed)),
        k(testing::random_values(count * of.key_heads * of.key_dim, seed + 1)),
        v(testing::random_values(count * of.key_heads * of.value_dim, seed + 2)),
        gate(testing::random_values(count * of.heads, seed + 3)),
        decay(testing::random_values(count * of.heads, seed + 4)) {
    for (float& value : gate) value = 1 / (1 + std::exp(-value));
    for (float& value : decay) value = -std::abs(value) * 0.3F;
  }
  [[nodiscard]] MixerRun run(MixerState& state, std::size_t first, std::size_t count, std::vector<float>& out) const {
    MixerRun r;
    r.state = &state;
    r.num_tokens = count;
    r.q_stride = shape.heads * shape.key_dim;
    r.k_stride = shape.key_heads * shape.key_dim;
    r.v_stride = shape.key_heads * shape.value_dim;
    r.gate_stride = r.decay_stride = shape.heads;
    r.out_stride = shape.heads * shape.value_dim;
    r.q = q.data() + first * r.q_stride;
    r.k = k.data() + first * r.k_stride;
    r.v = v.data() + first * r.v_stride;
    r.gate = gate.data() + first * shape.heads;
    r.log_decay = decay.data() + first * shape.heads;
    r.out = out.data() + first * r.out_stride;
    return r;
  }
};

/// Feeds a sequence in pieces of the given size; 0: token by token with step().
std::vector<float> feed(const Mixer& mixer, const Sequence& sequence, std::size_t piece, int threads = 2) {
  ThreadTeam team(threads);
  const auto state = mixer.new_state();
  std::vector<float> out(sequence.tokens * sequence.shape.heads * sequence.shape.value_dim, NAN);
  for (std::size_t t = 0; t < sequence.tokens;) {
    const std::size_t count = piece == 0 ? 1 : std::min(piece, sequence.tokens - t);
    const MixerRun run = sequence.run(*state, t, count, out);
    if (piece == 0)
      mixer.step(run);
    else
      mixer.chunk({&run, 1}, team);
    t += count;
  }
  return out;
}

void expect_near(const std::vector<float>& got, const std::vector<double>& want, double bound) {
  ASSERT_EQ(got.size(), want.size());
  double largest = 0;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(static_cast<double>(got[i]), want[i], bound * largest) << i;
}

// ---- Softmax attention

std::vector<double> attention_reference(const Sequence& s, double scale, double cap, std::int64_t window, bool causal) {
  const auto [heads, key_heads, dk, dv] = s.shape;
  std::vector<double> out(s.tokens * heads * dv, 0.0);
  for (std::size_t t = 0; t < s.tokens; ++t)
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t kv = h / (heads / key_heads);
      std::vector<double> share(s.tokens, 0.0);
      double sum = 0;
      for (std::size_t j = 0; j < s.tokens; ++j) {
        const auto i = static_cast<std::int64_t>(t), at = static_cast<std::int64_t>(j);
        if (causal && at > i) continue;
        if (window > 0 && (at <= i - window || at >= i + window)) continue;
        double score = 0;
        for (std::size_t d = 0; d < dk; ++d)
          score += static_cast<double>(s.q[(t * heads + h) * dk + d]) * static_cast<double>(s.k[(j * key_heads + kv) * dk + d]);
        score *= scale;
        if (cap > 0) score = cap * std::tanh(score / cap);
        sum += share[j] = std::exp(score);
      }
      for (std::size_t j = 0; j < s.tokens; ++j)
        for (std::size_t d = 0; d < dv; ++d)
          out[(t * heads + h) * dv + d] += share[j] / sum * static_cast<double>(s.v[(j * key_heads + kv) * dv + d]);
    }
  return out;
}

TEST(SoftmaxAttention, it_gives_what_the_formula_says_however_the_tokens_are_fed) {
  for (const Shape& shape : {Shape{1, 1, 4, 4}, Shape{4, 2, 12, 12}, Shape{6, 1, 8, 8}, Shape{3, 3, 5, 5}})
    for (const std::int64_t window : {0, 1, 5, 40})
      for (const double cap : {0.0, 2.0}) {
        SCOPED_TRACE(::testing::Message() << shape.heads << " heads, window " << window << ", cap " << cap);
        const Sequence sequence(shape, 150, 7);
        const auto mixer = make_softmax_attention({.heads = shape.heads,
                                                   .key_heads = shape.key_heads,
                                                   .head_dim = shape.key_dim,
                                                   .scale = 0.4F,
                                                   .cap = static_cast<float>(cap),
                                                   .window = window});
        const std::vector<double> want = attention_reference(sequence, 0.4, cap, window, true);
        for (const std::size_t piece : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{64}, sequence.tokens}) {
          SCOPED_TRACE(::testing::Message() << "pieces of " << piece);
          expect_near(feed(*mixer, sequence, piece), want, 2e-6 * 20);
        }
      }
}

TEST(SoftmaxAttention, without_causality_each_token_sees_all_of_its_run) {
  const Shape shape{2, 2, 8, 8};
  const Sequence sequence(shape, 37, 3);
  for (const std::int64_t window : {0, 6}) {
    const auto mixer = make_softmax_attention({.heads = 2, .key_heads = 2, .head_dim = 8, .scale = 0.5F, .window = window, .causal = false});
    expect_near(feed(*mixer, sequence, sequence.tokens), attention_reference(sequence, 0.5, 0, window, false), 4e-5);
  }
}

TEST(SoftmaxAttention, a_window_bounds_what_is_remembered) {
  const Shape shape{1, 1, 4, 4};
  const Sequence sequence(shape, 2000, 5);
  const auto mixer = make_softmax_attention({.head_dim = 4, .window = 16});
  const auto state = mixer->new_state();
  std::vector<float> out(sequence.tokens * 4);
  for (std::size_t t = 0; t < sequence.tokens; ++t) mixer->step(sequence.run(*state, t, 1, out));
  EXPECT_LE(state->size_bytes(), 2 * 4 * sizeof(float) * 300);
}

TEST(SoftmaxAttention, a_tap_sees_shares_that_sum_to_one) {
  struct Tap final : MixerTap {
    std::mutex mutex;
    std::size_t count = 0;
    void attention(std::size_t, std::size_t, std::size_t token, std::int64_t first, std::span<const float> shares) override {
      const std::lock_guard lock(mutex);
      ++count;
      EXPECT_EQ(first, 0);
      EXPECT_EQ(shares.size(), token + 1);
      double sum = 0;
      for (const float share : shares) sum += static_cast<double>(share);
      EXPECT_NEAR(sum, 1, 1e-5);
    }
  } tap;
  const Shape shape{4, 2, 8, 8};
  const Sequence sequence(shape, 30, 9);
  const auto mixer = make_softmax_attention({.heads = 4, .key_heads = 2, .head_dim = 8});
  ThreadTeam team(2);
  const auto state = mixer->new_state();
  std::vector<float> out(sequence.tokens * 32);
  const MixerRun run = sequence.run(*state, 0, sequence.tokens, out);
  mixer->chunk({&run, 1}, team, &tap);
  EXPECT_EQ(tap.count, 120U);
}

// ---- Gated delta rule

std::vector<double> delta_reference(const Sequence& s, double scale, bool normalises) {
  const auto [heads, key_heads, dk, dv] = s.shape;
  std::vector<double> out(s.tokens * heads * dv, 0.0);
  const auto row = [&](const std::vector<float>& from, std::size_t at, std::size_t size) {
    std::vector<double> values(from.begin() + static_cast<std::ptrdiff_t>(at * size), from.begin() + static_cast<std::ptrdiff_t>((at + 1) * size));
    if (normalises) {
      double squares = 0;
      for (const double value : values) squares += value * value;
      for (double& value : values) value /= std::sqrt(squares + 1e-6);
    }
    return values;
  };
  for (std::size_t h = 0; h < heads; ++h) {
    const std::size_t kv = h / (heads / key_heads);
    std::vector<double> state(dk * dv, 0.0);
    for (std::size_t t = 0; t < s.tokens; ++t) {
      const std::vector<double> q = row(s.q, t * heads + h, dk), k = row(s.k, t * key_heads + kv, dk);
      const double alpha = std::exp(static_cast<double>(s.decay[t * heads + h])), beta = static_cast<double>(s.gate[t * heads + h]);
      for (double& value : state) value *= alpha;
      for (std::size_t c = 0; c < dv; ++c) {
        double read = 0;
        for (std::size_t i = 0; i < dk; ++i) read += state[i * dv + c] * k[i];
        const double error = beta * (static_cast<double>(s.v[(t * key_heads + kv) * dv + c]) - read);
        for (std::size_t i = 0; i < dk; ++i) state[i * dv + c] += k[i] * error;
        for (std::size_t i = 0; i < dk; ++i) out[(t * heads + h) * dv + c] += state[i * dv + c] * q[i] * scale;
      }
    }
  }
  return out;
}

TEST(GatedDelta, chunks_and_steps_follow_the_recurrence) {
  for (const Shape& shape : {Shape{1, 1, 4, 3}, Shape{4, 2, 16, 8}, Shape{2, 2, 5, 7}})
    for (const std::size_t chunk : {std::size_t{1}, std::size_t{7}, std::size_t{16}, std::size_t{150}}) {
      SCOPED_TRACE(::testing::Message() << shape.heads << " heads, chunks of " << chunk);
      const Sequence sequence(shape, 150, 11);
      const auto mixer = make_gated_delta({.heads = shape.heads,
                                           .key_heads = shape.key_heads,
                                           .key_dim = shape.key_dim,
                                           .value_dim = shape.value_dim,
                                           .scale = 0.5F,
                                           .chunk = chunk});
      const std::vector<double> want = delta_reference(sequence, 0.5, true);
      for (const std::size_t piece : {std::size_t{0}, std::size_t{1}, std::size_t{40}, sequence.tokens})
        expect_near(feed(*mixer, sequence, piece), want, 1e-5);
    }
}

TEST(GatedDelta, it_reads_the_worked_numbers) {
  // Keys (1, 0) and (0.6, 0.8); writes 2, 1, 5 to the first, second, first; each read back.
  Sequence sequence({1, 1, 2, 1}, 5, 1);
  sequence.k = {1, 0, 0.6F, 0.8F, 1, 0, 1, 0, 0.6F, 0.8F};
  sequence.q = sequence.k;
  sequence.v = {2, 1, 5, 0, 0};
  sequence.gate = {1, 1, 1, 0, 0};
  const auto mixer = make_gated_delta({.key_dim = 2, .value_dim = 1, .normalises = false});
  sequence.decay = {0, 0, 0, 0, 0};
  for (const std::size_t piece : {std::size_t{0}, std::size_t{5}}) {
    const std::vector<float> out = feed(*mixer, sequence, piece);
    EXPECT_NEAR(out[3], 5, 1e-6);
    EXPECT_NEAR(out[4], 2.872, 1e-6);
  }
  const float half = std::log(0.5F);
  sequence.decay = {half, half, half, 0, 0};
  for (const std::size_t piece : {std::size_t{0}, std::size_t{5}}) {
    const std::vector<float> out = feed(*mixer, sequence, piece);
    EXPECT_NEAR(out[3], 5, 1e-6);
    EXPECT_NEAR(out[4], 3.128, 1e-6);
  }
}

TEST(GatedDelta, a_decay_to_nothing_forgets_without_nan) {
  Sequence sequence({1, 1, 4, 4}, 20, 2);
  sequence.decay[9] = -INFINITY;
  const auto mixer = make_gated_delta({.key_dim = 4, .value_dim = 4});
  for (const std::size_t piece : {std::size_t{0}, std::size_t{20}})
    expect_near(feed(*mixer, sequence, piece), delta_reference(sequence, 1, true), 1e-5);
}

TEST(Mixers, threads_do_not_change_a_bit) {
  const Shape shape{4, 2, 16, 16};
  const Sequence sequence(shape, 200, 13);
  const auto attention = make_softmax_attention({.heads = 4, .key_heads = 2, .head_dim = 16});
  const auto delta = make_gated_delta({.heads = 4, .key_heads = 2, .key_dim = 16, .value_dim = 16});
  for (const Mixer* mixer : {attention.get(), delta.get()}) EXPECT_EQ(feed(*mixer, sequence, 200, 1), feed(*mixer, sequence, 200, 5));
}

}  // namespace
}  // namespace weft::model
