#include "engine/measure_layers.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/budget.h"
#include "base/file.h"
#include "math/neural.h"
#include "weft/error.h"

namespace weft::engine {

using model::Role;
using model::TokenChunk;

namespace {

constexpr std::uint64_t kMaxTextBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kUsualWindow = 256;

}  // namespace

std::optional<Slot> slot_of(Role role) {
  switch (role) {
    case Role::q:
    case Role::k:
    case Role::v:
    case Role::qkv:
      return kAttention;
    case Role::o:
      return kOutput;
    case Role::gate:
    case Role::up:
    case Role::gate_up:
    case Role::shared_gate:
    case Role::shared_up:
      return kFeedForward;
    case Role::down:
    case Role::shared_down:
      return kDown;
    default:
      return std::nullopt;
  }
}

std::optional<Slot> dense_slot(Role role, int expert) { return expert >= 0 ? std::nullopt : slot_of(role); }

BlockWeights::BlockWeights(std::shared_ptr<const Checkpoint> checkpoint, const model::Architecture* architecture)
    : checkpoint_(std::move(checkpoint)) {
  input_.checkpoint = checkpoint_;
  input_.architecture = architecture;
  for (const TensorInfo& tensor : checkpoint_->tensors()) {
    const Role role = input_.role(tensor.name);
    const int block = input_.block(tensor.name);
    if (block < 0 || !slot_of(role) || tensor.shape.size() != 2 || !tensor.name.ends_with("weight")) continue;
    if (!unreadable_reason(tensor).empty()) continue;
    by_block_[{block, input_.expert(tensor.name)}].emplace_back(&tensor, role);
  }
}

std::vector<std::pair<const TensorInfo*, Role>> BlockWeights::all_of(int block) const {
  std::vector<std::pair<const TensorInfo*, Role>> all;
  for (const auto& [place, tensors] : by_block_)
    if (place.first == block) all.insert(all.end(), tensors.begin(), tensors.end());
  return all;
}

std::vector<std::pair<const TensorInfo*, Role>> BlockWeights::of(int block, int expert) const {
  const auto found = by_block_.find({block, expert});
  return found == by_block_.end() ? std::vector<std::pair<const TensorInfo*, Role>>{} : found->second;
}

BlockWeight BlockWeights::load(const TensorInfo& tensor, std::int64_t in) const {
  BlockWeight weight{read_doubles(*checkpoint_, tensor), tensor.shape[0], tensor.shape[1]};
  if (!is_transposed(tensor, in)) return weight;
  std::vector<double> turned(weight.values.size());
  for (std::int64_t i = 0; i < weight.rows; ++i)
    for (std::int64_t j = 0; j < weight.columns; ++j)
      turned[static_cast<std::size_t>(j * weight.rows + i)] = weight.values[static_cast<std::size_t>(i * weight.columns + j)];
  weight.values = std::move(turned);
  std::swap(weight.rows, weight.columns);
  return weight;
}

bool BlockWeights::is_transposed(const TensorInfo& tensor, std::int64_t in) const {
  if (tensor.shape[1] != in) return true;
  if (tensor.shape[0] != in || input_.architecture == nullptr) return false;
  const auto match = model::match_name(*input_.architecture, tensor.name);
  return match && match->tensor->transposed;
}

MeasuredBlock& block_of(MeasuredModel& model, int number) {
  const auto at = std::lower_bound(model.blocks.begin(), model.blocks.end(), number, [](const MeasuredBlock& b, int n) { return b.block < n; });
  if (at != model.blocks.end() && at->block == number) return *at;
  MeasuredBlock block;
  block.block = number;
  return *model.blocks.insert(at, std::move(block));
}

MeasuredTensor* entry_of(MeasuredModel& model, const TensorInfo& tensor, Role role, int block) {
  for (MeasuredTensor& entry : model.tensors)
    if (entry.name == tensor.name) return &entry;
  for (MeasuredTensor& entry : model.tensors)
    if (entry.block == block && entry.role == model::to_string(role) && entry.shape.size() == 2) return &entry;
  return nullptr;
}

double mean_loss(RunningModel& running, model::Network& network, const std::vector<float>& x, std::span<const std::uint32_t> ids, std::size_t window,
                 std::size_t rows) {
  if (!network.has_head() || running.config().kind != model::NetworkKind::decoder || window < 2) return std::numeric_limits<double>::quiet_NaN();
  const auto hidden = static_cast<std::size_t>(running.config().hidden), vocab = static_cast<std::size_t>(running.config().vocab);
  constexpr std::size_t kStrip = 64;
  std::vector<float> logits;
  double sum = 0;
  std::size_t counted = 0;
  for (std::size_t begin = 0; begin + window <= rows; begin += window) {
    for (std::size_t t = 0; t + 1 < window; t += kStrip) {
      const std::size_t count = std::min(kStrip, window - 1 - t);
      logits.resize(count * vocab);
      network.logits({x.data() + (begin + t) * hidden, count, hidden, hidden}, logits);
      for (std::size_t r = 0; r < count; ++r) {
        const float* row = logits.data() + r * vocab;
        sum += math::log_sum_exp(row, vocab) - static_cast<double>(row[ids[begin + t + r + 1]]);
        ++counted;
      }
    }
  }
  return counted > 0 ? sum / static_cast<double>(counted) : std::numeric_limits<double>::quiet_NaN();
}

std::vector<TokenChunk> chunks_of(std::span<const std::uint32_t> ids, std::size_t window) {
  std::vector<TokenChunk> chunks;
  for (std::size_t begin = 0; begin + window <= ids.size(); begin += window) chunks.push_back({nullptr, ids.subspan(begin, window), {}});
  return chunks;
}

std::vector<std::uint32_t> ids_of(RunningModel& running, const std::filesystem::path& file) {
  const std::string text = read_text_file(file, kMaxTextBytes);
  std::vector<std::uint32_t> ids = running.tokenizer("a text").ids(text, false);
  if (ids.size() < 8)
    throw Error(ErrorCode::invalid_argument, fmt::format("the text has {} tokens, which is too few to measure anything", ids.size()),
                {.file = file.string(), .key = "--text"}, "give a text of some thousand tokens");
  return ids;
}

RunOptions run_options_of(const MeasureOptions& options) {
  RunOptions run;
  static_cast<JobOptions&>(run) = options;
  run.on_warning = nullptr;
  run.on_progress = nullptr;
  // The other half is for what is kept and computed.
  run.memory_bytes = MemoryBudget(options.memory_bytes).limit_bytes() / 2;
  return run;
}

std::size_t window_of(const RunningModel& running, const MeasureOptions& options) {
  const auto context = static_cast<std::uint64_t>(std::max<std::int64_t>(2, running.config().context));
  const std::uint64_t window = options.window > 0 ? options.window : std::min(kUsualWindow, context);
  if (window < 8)
    throw Error(ErrorCode::invalid_argument, fmt::format("windows of {} tokens show nothing", window), {.key = "--window"}, "give at least 8");
  return static_cast<std::size_t>(window);
}

}  // namespace weft::engine
