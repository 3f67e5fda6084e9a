#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/thread_team.h"

// What carries information from token to token. A mixer sees projections of a block's input, nothing else; what it must remember of a sequence is its
// state, so that a sequence may be fed whole, in slices or token by token. Softmax attention is one (its state is the cache of keys and values); the
// gated delta rule is another (its state is one matrix a head).
namespace weft::model {

/// What a mixer remembers of one sequence.
class MixerState {
 public:
  virtual ~MixerState() = default;
  [[nodiscard]] virtual std::uint64_t size_bytes() const noexcept = 0;
  /// Makes room for that many tokens in all, so that growing later moves nothing.
  virtual void reserve(std::int64_t num_tokens) { (void)num_tokens; }
};

/// The next tokens of one sequence. Rows of different tokens are `stride` floats apart.
struct MixerRun {
  MixerState* state = nullptr;
  std::size_t num_tokens = 0;
  const float* q = nullptr;  ///< [tokens, heads, key size]
  const float* k = nullptr;  ///< [tokens, key heads, key size]
  const float* v = nullptr;  ///< [tokens, key heads, value size]
  std::size_t q_stride = 0, k_stride = 0, v_stride = 0;
  const float* gate = nullptr;       ///< [tokens, heads]; how strongly a token is written (beta), for mixers that have one
  const float* log_decay = nullptr;  ///< [tokens, heads]; at most 0
  std::size_t gate_stride = 0, decay_stride = 0;
  float* out = nullptr;  ///< [tokens, heads, value size]
  std::size_t out_stride = 0;
};

/// Looks at what a mixer does, or changes it. Called from several threads at once.
class MixerTap {
 public:
  virtual ~MixerTap() = default;
  /// May change the shares that a token gives, before they are used and before attention() sees them.
  virtual void change(std::int64_t first_key, std::span<float> shares) { (void)first_key, (void)shares; }
  /// The shares that token `token` of run `run` gives, in one head, to the keys at positions first_key ...
  virtual void attention(std::size_t run, std::size_t head, std::size_t token, std::int64_t first_key, std::span<const float> shares) = 0;
};

class Mixer {
 public:
  virtual ~Mixer() = default;
  /// Of a sequence that has not begun.
  [[nodiscard]] virtual std::unique_ptr<MixerState> new_state() const = 0;
  /// What the state of a sequence takes after that many tokens, of which at most `at_once` came together, if they were reserved for.
  [[nodiscard]] virtual std::uint64_t state_bytes(std::int64_t num_tokens, std::int64_t at_once) const = 0;
  /// Appends each run's tokens to its state and writes what they read. Runs have different states. Results do not depend on the number of threads.
  virtual void chunk(std::span<const MixerRun> runs, ThreadTeam& team, MixerTap* tap = nullptr) const = 0;
  /// The same for one token of one sequence, on this thread.
  virtual void step(const MixerRun& run) const = 0;
};

struct SoftmaxAttentionOptions {
  std::size_t heads = 1, key_heads = 1;  ///< heads is a multiple of key_heads; head h reads key head h / (heads / key_heads)
  std::size_t head_dim = 1;
  float scale = 1;          ///< of scores
  float cap = 0;            ///< cap * tanh(score / cap); 0: none
  std::int64_t window = 0;  ///< tokens that one sees, itself included; 0: all
  bool causal = true;       ///< otherwise each sees every token of its run, and nothing is remembered
};
[[nodiscard]] std::unique_ptr<Mixer> make_softmax_attention(const SoftmaxAttentionOptions& options);

struct GatedDeltaOptions {
  std::size_t heads = 1, key_heads = 1;
  std::size_t key_dim = 1, value_dim = 1;
  float scale = 1;         ///< of q
  bool normalises = true;  ///< q and k to length 1
  std::size_t chunk = 64;  ///< tokens that are solved for at once
};
/// S = exp(log_decay) S, then S += gate * k (v - S^T k)^T, then read S^T (scale q), token by token; in chunks by the equal triangular system.
[[nodiscard]] std::unique_ptr<Mixer> make_gated_delta(const GatedDeltaOptions& options);

}  // namespace weft::model
