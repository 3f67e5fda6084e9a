#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/thread_team.h"
#include "checkpoint/json.h"
#include "model/mixer.h"
#include "model/network_config.h"
#include "model/weights.h"
#include "weft/checkpoint.h"

// Transformers that run: decoders and encoders of every architecture in the table, over a checkpoint that is read lazily.
namespace weft::model {

/// Rounds what linear layers read, and shares of attention, as a quantizer of activations would, so that what it costs can be measured. Called from
/// several threads at once.
class ActivationRounding {
 public:
  virtual ~ActivationRounding() = default;
  /// What one token gives the linear layers of a role (not routers, not the head). expert: -1 for none.
  virtual void round(int layer, Role role, int expert, std::span<float> row) const = 0;
  [[nodiscard]] virtual bool rounds_shares() const noexcept = 0;
  /// All shares that one token gives in one head, to the keys at positions first_key ...
  virtual void round_shares(std::int64_t first_key, std::span<float> shares) const = 0;
};

struct NetworkOptions {
  Precision precision = Precision::float32;
  int threads = 0;  ///< 0: as many as the machine has
  /// For weights, activations and what is remembered of sequences; 0: a quarter of RAM. Weights that do not fit are read anew, block by block, each
  /// time.
  std::uint64_t memory_bytes = 0;
  bool allow_non_finite = false;
  std::shared_ptr<const ActivationRounding> rounding = nullptr;  ///< null: nothing is rounded
};

/// What a network remembers of a sequence: one mixer state a layer, and how many tokens it has seen.
class SequenceState {
 public:
  [[nodiscard]] std::int64_t num_tokens() const noexcept { return num_tokens_; }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept;

 private:
  friend class Network;
  std::vector<std::unique_ptr<MixerState>> layers_;
  std::int64_t num_tokens_ = 0;
};

/// The next tokens of one sequence.
struct TokenChunk {
  SequenceState* state = nullptr;  ///< null: a sequence of its own that nothing follows
  std::span<const std::uint32_t> ids;
  std::span<const std::uint32_t> types;  ///< of an encoder; empty: all 0
};

/// Rows of float32 that someone else holds.
struct Rows {
  const float* data = nullptr;
  std::size_t num_rows = 0, num_columns = 0, stride = 0;
  const std::size_t* places = nullptr;  ///< of an expert: which rows of the slice these are; null: all, in order
  [[nodiscard]] const float* row(std::size_t r) const noexcept { return data + r * stride; }
};

/// Looks into a running network. Rows are tokens, those of all chunks one behind the other; first_row counts through them. Called from one thread.
class NetworkTap {
 public:
  virtual ~NetworkTap() = default;
  virtual void embedding(const Rows& rows);
  /// What the linear layers of a role read (q, k and v read the same). Row r is token first_row + r, or first_row + rows.places[r] of an expert's
  /// (expert: -1 for none).
  virtual void linear_input(int layer, Role role, int expert, std::size_t first_row, const Rows& rows);
  virtual void block_output(int layer, const Rows& rows);
  /// For shares of attention; null: not wanted.
  virtual MixerTap* mixer(int layer);
};

/// Where a block can be left and taken up again: what the layers there read is told, and they have not run. Beside x, which is the block's input up
/// to `mixed` and what the feed-forward part is added to from `feed_forward` on, `mixed` needs what o reads and `inner` what down reads.
enum class BlockStop : std::uint8_t { attention, mixed, feed_forward, inner, end };

class Network {
 public:
  /// Errors: those of NetworkConfig and WeightReader; out_of_memory when not even one block fits, with both numbers.
  Network(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, const NetworkOptions& options = {});
  ~Network();

  [[nodiscard]] const NetworkConfig& config() const noexcept;
  [[nodiscard]] std::span<const std::string> warnings() const noexcept;
  [[nodiscard]] ThreadTeam& team() noexcept;
  [[nodiscard]] bool has_head() const noexcept;
  [[nodiscard]] bool has_pooler() const noexcept;
  /// Whether all weights stay in memory.
  [[nodiscard]] bool is_resident() const noexcept;
  /// Of the weights that one token reads.
  [[nodiscard]] std::uint64_t weight_bytes() const noexcept;

  /// Of a sequence that will have that many tokens; 0: not known.
  [[nodiscard]] std::unique_ptr<SequenceState> new_state(std::int64_t expected_tokens = 0) const;
  /// What a sequence of that many tokens takes in memory, beside the weights: its state, which stays, and what running `at_once` of them needs.
  [[nodiscard]] std::uint64_t sequence_bytes(std::int64_t num_tokens, std::int64_t at_once) const;
  /// Counts sequences of sequence_bytes() against memory_bytes before they run: when they do not fit beside all weights, blocks are read anew each
  /// time (a new warning says so). Returns whether the weights stay. run() does it for its own tokens. Errors: out_of_memory, with both numbers.
  bool make_room(std::uint64_t size_bytes);

  /// Runs the tokens through all blocks. Returns the output of the last block, before the final norm: [tokens of all chunks, hidden]. The longest
  /// position of a chunk decides about frequencies that depend on the length. Errors: invalid_argument for an id beyond the vocabulary, no tokens, or
  /// more than learned positions allow; corrupt for activations that are NaN or infinite, naming the layer.
  [[nodiscard]] std::vector<float> run(std::span<const TokenChunk> chunks, NetworkTap* tap = nullptr);

  // Block by block, for those who change blocks on the way. Chunks are whole sequences without a state; x: [tokens of all chunks, hidden]. A sequence
  // gives the same whatever others it is run with, up to the order of sums that a product of another size has. What is run here is not kept in
  // memory.

  /// What the first block reads. first_sequence: what the first of the chunks is called in messages. Errors: as of run().
  [[nodiscard]] std::vector<float> embed(std::span<const TokenChunk> chunks, std::size_t first_sequence = 0);
  /// Runs one block with the given weights, in place. Errors: corrupt as of run().
  void run_block(std::size_t layer, const BlockWeights& weights, std::span<const TokenChunk> chunks, std::span<float> x, NetworkTap* tap = nullptr,
                 std::size_t first_sequence = 0);
  /// The part of a block between two stops. in, out: [tokens, stop_columns()] of what `from` and `to` need beside x. The parts give what the whole
  /// does, bit for bit.
  void run_block(std::size_t layer, const BlockWeights& weights, std::span<const TokenChunk> chunks, BlockStop from, BlockStop to, std::span<float> x,
                 std::span<const float> in, std::span<float> out, NetworkTap* tap = nullptr, std::size_t first_sequence = 0);
  /// `end` always; none before it where attention and feed-forward read the same, no `inner` of experts.
  [[nodiscard]] bool can_stop(std::size_t layer, BlockStop stop) const;
  /// 0 for stops that x is enough for.
  [[nodiscard]] std::size_t stop_columns(const BlockWeights& weights, BlockStop stop) const;
  /// The weights of a block: changed tensors from there, the others from the model.
  [[nodiscard]] BlockWeights read_block(std::size_t layer, const Checkpoint* changed = nullptr);
  [[nodiscard]] std::vector<BlockTensor> block_tensors(std::size_t layer) const;
  /// Of a block's weights in memory, and of what stands before the first.
  [[nodiscard]] std::uint64_t block_bytes(std::size_t layer) const;
  [[nodiscard]] std::uint64_t input_bytes() const;

  /// The final norm, in place. Does nothing where there is none.
  void normalise(std::span<float> rows);
  /// Logits [rows, vocab] of rows that run() gave. Errors: unsupported without a head.
  void logits(const Rows& rows, std::span<float> out);
  /// tanh(dense(row)) of a finished encoder's first row.
  [[nodiscard]] std::vector<float> pool(std::span<const float> row);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft::model
