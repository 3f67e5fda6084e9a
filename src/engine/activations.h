#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/network.h"
#include "model/weights.h"

// What flows from block to block while a model runs over many sequences, one block at a time.
namespace weft::engine {

/// What a model is run on so that its activations can be seen. Every token counts as a row.
struct CalibrationTokens {
  std::vector<std::vector<std::uint32_t>> sequences;
  /// Sequences of different texts that must not run in one batch, as of several tasks: the number of each group's first one, ascending from 0. Empty:
  /// all are one group.
  std::vector<std::size_t> groups = {};

  [[nodiscard]] std::uint64_t num_tokens() const noexcept;
  [[nodiscard]] std::size_t longest() const noexcept;
  /// Of the ids and of how they are cut; 32 hexadecimal digits.
  [[nodiscard]] std::string digest() const;
};

/// Sees whole sequences go through a block, some at a time and always the same ones together.
class BlockTap : public model::NetworkTap {
 public:
  /// Before them: their numbers, and the number of their first token among all tokens. Rows that follow count from there.
  virtual void batch(std::size_t first_sequence, std::size_t num_sequences, std::uint64_t first_token);
};

/// The activations of all sequences between two blocks: in memory, or in a file of which one batch at a time is in memory.
class Activations {
 public:
  /// Sequences that run together: how they are cut depends on the sequences alone, so that no sum depends on memory or threads.
  static constexpr std::size_t kBatchRows = 2048;

  /// file: where they lie, made new; empty: in memory.
  Activations(model::Network& network, std::shared_ptr<const CalibrationTokens> tokens, const std::filesystem::path& file);
  ~Activations();
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;

  [[nodiscard]] std::uint64_t size_bytes() const noexcept;
  [[nodiscard]] bool is_resident() const noexcept { return !file_.is_open(); }

  struct Batch {
    std::size_t first_sequence = 0, num_sequences = 0;
    std::uint64_t first_token = 0;
    std::size_t num_rows = 0;
    std::size_t group = 0;  ///< of CalibrationTokens::groups
  };
  [[nodiscard]] std::span<const Batch> batches() const noexcept { return batches_; }

  /// What the first block reads. with: another model of this kind to embed a batch; empty: the model itself.
  void embed(const std::function<model::Network&(const Batch&)>& with = {});

  /// The rows of one batch, [tokens, hidden].
  void read(const Batch& batch, std::vector<float>& out) const;
  void write(const Batch& batch, std::span<const float> rows);
  /// Runs rows of a batch through a block, in place.
  void run(const Batch& batch, std::size_t layer, const model::BlockWeights& weights, std::span<float> rows, BlockTap* tap);
  /// From one stop of the block to another; see model::Network.
  void run(const Batch& batch, std::size_t layer, const model::BlockWeights& weights, model::BlockStop from, model::BlockStop to,
           std::span<float> rows, std::span<const float> in, std::span<float> out, BlockTap* tap);

  /// Runs all batches through a block. Afterwards they are what the block gives, or what they were.
  enum class Then { advance, stay };
  void run(std::size_t layer, const model::BlockWeights& weights, Then then, BlockTap* tap = nullptr);

  /// Called before each batch that run() runs: to stop, or to tell how far it is.
  std::function<void(const Batch&)> on_batch;

  /// To a file of their own, brought to the disk; and back. Errors: io, no_space; corrupt when the file is not theirs.
  void save(const std::filesystem::path& file) const;
  void load(const std::filesystem::path& file);

 private:
  [[nodiscard]] std::vector<model::TokenChunk> chunks(const Batch& batch) const;

  model::Network* network_;
  std::shared_ptr<const CalibrationTokens> tokens_;
  std::size_t hidden_ = 0;
  std::vector<Batch> batches_;
  std::vector<float> rows_;  ///< when resident
  File file_;
  std::filesystem::path remove_at_end_;
};

}  // namespace weft::engine
