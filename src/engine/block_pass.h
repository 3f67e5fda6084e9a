#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/journal.h"
#include "checkpoint/output.h"
#include "engine/activations.h"
#include "engine/input_statistics.h"
#include "engine/running_model.h"
#include "model/network.h"
#include "model/weights.h"

// The executor of `block` phases: walks the blocks of a model with the activations of calibration sequences, shows each block with what its linear
// layers read, lets it be changed, and runs what was changed on the way to the next.
namespace weft::engine {

/// A tensor that a walk leaves behind.
struct MadeTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;
};
/// A checkpoint of tensors that are held in memory. Errors: corrupt for two of one name.
[[nodiscard]] std::shared_ptr<const Checkpoint> hold_tensors(std::vector<MadeTensor> tensors);

struct BlockPassOptions : RunOptions {
  /// Keep also the activations that the unchanged model has, beside those behind the blocks as they were changed.
  bool two_streams = false;
  /// No block is changed but in ways that leave what it gives as it is: one stream is both.
  bool only_looks = false;
  /// Another model of this kind that embeds a batch of the changed stream; empty: the model itself.
  std::function<model::Network&(const Activations::Batch&)> embed_with;
  /// A folder (made when it is missing) in which finished blocks are kept, so that the same pass goes on where it was stopped. Activations that do
  /// not fit the memory lie there too. The caller removes it once the results are where they belong. Empty: results stay in memory, and nothing is
  /// kept.
  std::filesystem::path folder;
  /// What decides the result beside the tokens and the model: method, parameters. Another pass's folder is refused, naming what differs.
  std::vector<JournalHead::Ingredient> ingredients;
};

/// Which activations a block is run on, and with which weights: the unchanged model's, or those behind changed blocks with the weights as they are
/// now.
enum class Stream : std::uint8_t { changed, original };

/// A matrix of a linear layer, whatever way it is stored: y = W x.
struct LinearMatrix {
  std::size_t rows = 0, columns = 0;  ///< outputs, inputs
  std::vector<float> values;          ///< [rows, columns]
};

[[nodiscard]] LinearMatrix transposed(const LinearMatrix& matrix);

class BlockPass;

/// One block on its way through a BlockPass. Not thread-safe, but run() and statistics() use the network's threads.
class Block {
 public:
  [[nodiscard]] int layer() const noexcept { return layer_; }
  [[nodiscard]] int num_layers() const noexcept;
  [[nodiscard]] model::Network& network() noexcept;
  /// All tensors of the block: name (slot.name may be an alias: tensor->name is the checkpoint's), role, expert, stored shape and type.
  [[nodiscard]] std::span<const model::BlockTensor> tensors() const noexcept { return tensors_; }
  /// Those that are matrices of linear layers.
  [[nodiscard]] std::vector<const model::BlockTensor*> linears() const;
  /// By the checkpoint's name. Errors: not_found.
  [[nodiscard]] const model::BlockTensor& tensor(std::string_view name) const;

  /// A matrix of a linear layer as it is now, or as the model has it.
  [[nodiscard]] LinearMatrix matrix(std::string_view name, Stream stream = Stream::changed) const;
  /// From now on the block runs with these values, [outputs, inputs] in float32. They are not part of the result: emit() what is to be kept.
  void set_matrix(std::string_view name, const LinearMatrix& matrix);
  /// Any tensor's values as stored (norms, biases).
  [[nodiscard]] std::vector<float> values(std::string_view name, Stream stream = Stream::changed) const;
  void set_values(std::string_view name, std::vector<float> values);
  /// Back to what the model has.
  void reset(std::string_view name);
  /// What was changed so far leaves what the block gives as it is (scales of channels that moved from one tensor to another): the stream of the
  /// unchanged model runs with it, too, so that both read the same channels on the same scale.
  void take_as_original();

  /// Runs the block over all sequences with its weights as they are now and sums up what its linear layers read. Asking again after a change gives
  /// what they read then. The block runs only as far as the furthest point that is asked for, and, where memory allows, the next look and what
  /// follows the block go on from there if nothing before it has changed: asking for one point after another in the order of a token's way runs each
  /// layer once. Errors: out_of_memory when the sums do not fit, with both numbers; corrupt for activations that are NaN or infinite, naming layer
  /// and token.
  [[nodiscard]] std::vector<InputStatistics> statistics(const StatisticsRequest& request);
  /// Runs the block over all sequences for someone who looks: linear_input for each slice of rows, block_output for each batch.
  void run(BlockTap& tap, Stream stream = Stream::changed);
  /// What the pass runs on.
  [[nodiscard]] const CalibrationTokens& tokens() const noexcept;
  /// The batches in which sequences run, and what the block reads in one of them: [tokens, hidden].
  [[nodiscard]] std::span<const Activations::Batch> batches() const;
  [[nodiscard]] std::vector<float> input(const Activations::Batch& batch, Stream stream = Stream::changed) const;
  /// Runs one batch of rows and returns what comes out.
  [[nodiscard]] std::vector<float> run(const Activations::Batch& batch, std::vector<float> rows, BlockTap* tap = nullptr,
                                       Stream stream = Stream::changed);

  /// The same with weights of another model of this kind.
  void run(const Activations::Batch& batch, const model::BlockWeights& weights, std::span<float> rows, BlockTap* tap);
  /// Weights with which the activations go on behind this block, batch by batch, instead of the block's own.
  void advance_with(std::function<const model::BlockWeights&(const Activations::Batch&)> weights);
  /// How long the sequences of a batch are.
  [[nodiscard]] std::vector<std::size_t> lengths(const Activations::Batch& batch) const;
  /// The model that they run through.
  [[nodiscard]] RunningModel& running() const noexcept;
  /// The weights with which it runs.
  [[nodiscard]] const model::BlockWeights& weights(Stream stream);
  /// What is left of the memory budget for statistics.
  [[nodiscard]] std::uint64_t statistics_budget() const noexcept;

  /// Adds a tensor to the result: a changed one under its own name, or an extra one (scales, codes) under a new one. A later one of the same name
  /// replaces it.
  void emit(MadeTensor tensor);
  void emit(std::string_view name, DType dtype, Shape shape, std::span<const float> values);  ///< rounded to nearest even
  /// Adds a text to the result, for reports and edits of the config; kept beside the tensors.
  void note(std::string_view key, std::string value);

 private:
  friend class BlockPass;
  explicit Block(BlockPass& pass, int layer);
  [[nodiscard]] Activations& activations(Stream stream) const;
  void may_change() const;
  void advance();

  /// The activations of all sequences at a stop within the block.
  struct Held {
    model::BlockStop at = model::BlockStop::attention;
    std::vector<float> x;        ///< from feed_forward on; before it, the block's input
    std::vector<float> between;  ///< what the stop needs beside them
    [[nodiscard]] std::uint64_t size_bytes() const noexcept { return (x.size() + between.size()) * sizeof(float); }
  };
  /// Runs one stream, batch by batch, from where it is held.
  class Leg;
  [[nodiscard]] Held& held(Stream stream) noexcept { return held_[stream == Stream::changed ? 0 : 1]; }
  /// What a change of this tensor makes invalid is dropped.
  void drop_behind(const model::BlockTensor& tensor);

  BlockPass& pass_;
  int layer_;
  std::vector<model::BlockTensor> tensors_;
  std::map<std::string, std::vector<float>, std::less<>> changed_;           ///< as stored
  std::map<std::string, std::vector<float>, std::less<>> original_changed_;  ///< what take_as_original() found
  std::unique_ptr<model::BlockWeights> now_, original_;                      ///< read when needed
  std::function<const model::BlockWeights&(const Activations::Batch&)> advance_with_;
  bool advanced_ = false, original_advanced_ = false;  ///< the activations are behind this block already
  Held held_[2];
  std::map<std::string, MadeTensor, std::less<>> made_;
  std::map<std::string, std::string> notes_;
};

struct BlockPassResult {
  std::shared_ptr<const Checkpoint> tensors;              ///< everything that was emitted; null when nothing was
  std::vector<std::map<std::string, std::string>> notes;  ///< of each block
  std::size_t num_resumed = 0;                            ///< blocks that an earlier run had finished
};

class BlockPass {
 public:
  /// Errors: invalid_argument for no tokens, ids beyond the vocabulary, sequences longer than learned positions, an encoder's tokens that need types;
  /// out_of_memory when a block does not fit, with both numbers; those of the folder.
  BlockPass(RunningModel& model, std::shared_ptr<const CalibrationTokens> tokens, const BlockPassOptions& options);
  ~BlockPass();
  BlockPass(const BlockPass&) = delete;
  BlockPass& operator=(const BlockPass&) = delete;

  /// Once. visit is called for each block in turn (not for those that an earlier run had finished); afterwards the block as it then is runs on.
  /// Errors: interrupted; what visit throws. What is finished is kept in the folder.
  [[nodiscard]] BlockPassResult run(const std::function<void(Block&)>& visit);

 private:
  friend class Block;
  struct Folder;
  void plan_memory();
  void check_cancelled() const;

  RunningModel& model_;
  model::Network& network_;
  std::shared_ptr<const CalibrationTokens> tokens_;
  BlockPassOptions options_;
  std::uint64_t budget_bytes_ = 0;  ///< that statistics may take
  bool activations_in_file_ = false;
  std::unique_ptr<Activations> changed_, original_;
  std::unique_ptr<Folder> folder_;
};

/// The folder in which the passes for an output are kept: hidden, beside it.
[[nodiscard]] std::filesystem::path block_pass_folder(const std::filesystem::path& output);
/// What a model's files are, as an ingredient: their sizes, times and inodes.
[[nodiscard]] JournalHead::Ingredient model_ingredient(const std::string& name, const Checkpoint& checkpoint);

}  // namespace weft::engine
