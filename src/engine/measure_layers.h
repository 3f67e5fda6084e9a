#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/measure_input.h"
#include "engine/running_model.h"
#include "measure/spectrum.h"
#include "measure/table.h"
#include "weft/measure.h"

// What the measurements over texts share: where layers read, their weights, windows of tokens, and the loss.
namespace weft::engine {

/// The four places of a block where linear layers read.
enum Slot : std::size_t { kAttention, kOutput, kFeedForward, kDown, kSlots };
inline constexpr const char* kSlotNames[kSlots] = {"attn", "o", "mlp", "down"};
/// Nothing for layers of other kinds. A shared expert reads what a dense feed-forward layer would.
[[nodiscard]] std::optional<Slot> slot_of(model::Role role);
/// The same, and nothing for routed experts.
[[nodiscard]] std::optional<Slot> dense_slot(model::Role role, int expert);

/// A weight of a block as [out, in], in float64.
struct BlockWeight {
  std::vector<double> values;
  std::int64_t rows = 0, columns = 0;
  [[nodiscard]] measure::Matrix matrix() const { return {values, rows, columns}; }
};

/// The linear weights of each block, by the names of the model that runs (for GGUF files Hugging Face's).
class BlockWeights {
 public:
  BlockWeights(std::shared_ptr<const Checkpoint> checkpoint, const model::Architecture* architecture);
  /// Of all tokens; or of one routed expert.
  [[nodiscard]] std::vector<std::pair<const TensorInfo*, model::Role>> of(int block, int expert = -1) const;
  /// With those of all experts.
  [[nodiscard]] std::vector<std::pair<const TensorInfo*, model::Role>> all_of(int block) const;
  /// in: how many channels it reads, which tells a transposed one where the names do not.
  [[nodiscard]] BlockWeight load(const TensorInfo& tensor, std::int64_t in) const;
  [[nodiscard]] bool is_transposed(const TensorInfo& tensor, std::int64_t in) const;
  [[nodiscard]] const Checkpoint& checkpoint() const noexcept { return *checkpoint_; }

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  MeasuredInput input_;
  std::map<std::pair<int, int>, std::vector<std::pair<const TensorInfo*, model::Role>>> by_block_;  // and expert
};

/// The report's entry of a layer, made when absent.
MeasuredBlock& block_of(MeasuredModel& model, int number);
/// The report's entry of a tensor: by name, or, where the report has other names (GGUF), by role and layer. Null when there is none.
[[nodiscard]] MeasuredTensor* entry_of(MeasuredModel& model, const TensorInfo& tensor, model::Role role, int block);

/// Windows of equal length, each a sequence of its own.
[[nodiscard]] std::vector<model::TokenChunk> chunks_of(std::span<const std::uint32_t> ids, std::size_t window);
/// Mean loss of the tokens behind the first of each window, x: what run() gave. NaN when the model does not predict tokens.
[[nodiscard]] double mean_loss(RunningModel& running, model::Network& network, const std::vector<float>& x, std::span<const std::uint32_t> ids,
                               std::size_t window, std::size_t rows);
/// The tokens of a text. Errors: those of the file; invalid_argument for one that is too short for anything.
[[nodiscard]] std::vector<std::uint32_t> ids_of(RunningModel& running, const std::filesystem::path& file);
/// How a model is run that is measured: with half of the memory.
[[nodiscard]] RunOptions run_options_of(const MeasureOptions& options);
[[nodiscard]] std::size_t window_of(const RunningModel& running, const MeasureOptions& options);

/// The group `clamp`.
void measure_clamps(RunningModel& running, const BlockWeights& weights, const measure::Selection& selection, const MeasureOptions& options,
                    std::span<const std::uint32_t> ids, std::size_t window, MeasuredModel& out);

/// The group `super_weights`.
void measure_super_weights(RunningModel& running, const BlockWeights& weights, const RunOptions& run_options, const measure::Selection& selection,
                           std::span<const std::uint32_t> ids, std::size_t window, MeasuredModel& out);

struct GeometryText {
  std::string name;
  std::vector<std::uint32_t> ids;
};
/// The group `language_geometry`. texts: of one length.
void measure_geometry(RunningModel& running, const BlockWeights& weights, const std::vector<GeometryText>& texts, std::size_t window,
                      MeasuredModel& out);

}  // namespace weft::engine
