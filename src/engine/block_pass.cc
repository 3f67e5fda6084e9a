#include "engine/block_pass.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/text.h"
#include "checkpoint/output.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_view.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

/// Activations of a batch and what lies between the layers of a block, in rows of the hidden size. Generous: the widest layer is some 4 to 8 of them.
constexpr std::uint64_t kScratchWidths = 24;

class HeldTensors final : public Checkpoint {
 public:
  explicit HeldTensors(std::vector<MadeTensor> tensors) : data_(std::move(tensors)) {
    container_ = "memory";
    path_ = "memory";
    for (const MadeTensor& tensor : data_) {
      TensorInfo about;
      about.name = tensor.name;
      about.dtype = tensor.dtype;
      about.shape = tensor.shape;
      about.num_elements = 1;
      for (const std::int64_t size : tensor.shape) about.num_elements *= static_cast<std::uint64_t>(size);
      about.size_bytes = tensor.bytes.size();
      WEFT_ASSERT(about.num_elements * static_cast<std::uint64_t>(info(tensor.dtype).bits) == about.size_bytes * 8);
      tensors_.push_back(std::move(about));
    }
    index_tensors();
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const auto index = static_cast<std::size_t>(&tensor - tensors_.data());
    if (!out.empty()) std::memcpy(out.data(), data_.at(index).bytes.data() + offset, out.size());
  }

 private:
  std::vector<MadeTensor> data_;
};

/// Values that someone else holds, in place of tensors of a block.
class ChangedTensors final : public Checkpoint {
 public:
  ChangedTensors(std::span<const model::BlockTensor> tensors, const std::map<std::string, std::vector<float>, std::less<>>& changed) {
    container_ = "memory";
    path_ = "memory";
    for (const model::BlockTensor& tensor : tensors) {
      const auto found = changed.find(tensor.tensor->name);
      if (found == changed.end()) continue;
      TensorInfo about = *tensor.tensor;
      about.dtype = DType::f32;
      about.size_bytes = about.num_elements * sizeof(float);
      about.stored_as.clear();
      tensors_.push_back(std::move(about));
      values_.push_back(&found->second);
    }
    index_tensors();
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const auto index = static_cast<std::size_t>(&tensor - tensors_.data());
    std::memcpy(out.data(), reinterpret_cast<const std::byte*>(values_.at(index)->data()) + offset, out.size());
  }

 private:
  std::vector<const std::vector<float>*> values_;
};

std::vector<float> read_values(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> stored(checked_size(tensor.size_bytes, "the size of a tensor"));
  checkpoint.read_bytes(tensor, 0, stored);
  std::vector<float> values(checked_size(tensor.num_elements, "the size of a tensor"));
  math::decode(tensor.dtype, stored, values);
  return values;
}

/// [rows, columns] -> [columns, rows]
std::vector<float> transposed(const std::vector<float>& x, std::size_t rows, std::size_t columns) {
  std::vector<float> out(x.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) out[c * rows + r] = x[r * columns + c];
  return out;
}

fs::path unused_temporary_file() {
  static std::atomic<unsigned> number = 0;
  std::error_code failed;
  fs::path folder = fs::temp_directory_path(failed);
  if (failed) folder = "/tmp";
  return folder / fmt::format("weft-activations-{}-{}", ::getpid(), number++);
}

std::string block_file_name(int layer) { return fmt::format("block-{:05}.safetensors", layer); }
std::string activations_name(int layer, bool original) { return fmt::format("after-{:05}.{}", layer, original ? "original" : "changed"); }

constexpr std::string_view kNotePrefix = "weft.note.";

using model::BlockStop;

/// Where a token meets what a linear layer reads.
BlockStop stop_of(const InputPoint& point) {
  switch (point.role) {
    case model::Role::q:
      return BlockStop::attention;
    case model::Role::o:
      return BlockStop::mixed;
    case model::Role::down:
    case model::Role::shared_down:
      return BlockStop::inner;
    default:
      return BlockStop::feed_forward;
  }
}

/// The stop behind which a tensor is first used.
BlockStop first_use(const model::TensorSlot& slot) {
  if (slot.role == model::Role::norm) {
    switch (slot.site) {
      case model::Site::attention_out:
      case model::Site::attention_sum:
        return BlockStop::mixed;
      case model::Site::mlp_in:
        return BlockStop::feed_forward;
      case model::Site::mlp_out:
      case model::Site::mlp_sum:
        return BlockStop::inner;
      default:
        return BlockStop::attention;
    }
  }
  const InputPoint point = input_point(slot.role, slot.expert);
  return point.role == model::Role::unknown ? BlockStop::attention : stop_of(point);
}

}  // namespace

std::shared_ptr<const Checkpoint> hold_tensors(std::vector<MadeTensor> tensors) { return std::make_shared<HeldTensors>(std::move(tensors)); }

LinearMatrix transposed(const LinearMatrix& matrix) { return {matrix.columns, matrix.rows, transposed(matrix.values, matrix.rows, matrix.columns)}; }

fs::path block_pass_folder(const fs::path& output) {
  const fs::path absolute = fs::absolute(output).lexically_normal();
  const fs::path named = absolute.has_filename() ? absolute : absolute.parent_path();
  return named.parent_path() / fmt::format(".{}.weft-blocks", named.filename().string());
}

JournalHead::Ingredient model_ingredient(const std::string& name, const Checkpoint& checkpoint) {
  std::string value;
  for (const CheckpointFile& file : checkpoint.files())
    value += fmt::format("{}:{}:{}:{};", file.path.string(), file.size_bytes, file.inode, file.modified_ns);
  return {name, to_string(checksum_of(value))};
}

// ---- What is kept on the disk

/// Files of finished blocks, and the list of them. A block counts once its tensors and the activations behind it are on the disk.
struct BlockPass::Folder {
  fs::path path;
  int lock = -1;
  std::optional<Journal> journal;
  std::vector<std::shared_ptr<const Checkpoint>> blocks;  ///< finished ones; null where nothing was made
  std::vector<std::map<std::string, std::string>> notes;
  int saved = -1;  ///< the last block whose activations are kept
  std::chrono::steady_clock::time_point saved_at = std::chrono::steady_clock::now();

  explicit Folder(fs::path where) : path(std::move(where)) {
    std::error_code failed;
    if (path_kind(path) == PathKind::nothing && !fs::create_directories(path, failed) && failed) throw path_error(failed.value(), "create", path);
    if (path_kind(path) != PathKind::folder)
      throw Error(ErrorCode::invalid_argument, "what finished blocks are to be kept in is no folder", {.file = path.string()}, "remove it");
    lock = SystemCalls::current().open((path / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock < 0) throw path_error(errno, "open", path / "lock");
    if (SystemCalls::current().flock(lock, LOCK_EX | LOCK_NB) != 0) {
      SystemCalls::current().close(lock);
      throw Error(ErrorCode::io, "another job is at work here", {.file = path.string()}, "wait for it, or choose another output");
    }
  }
  ~Folder() {
    if (lock >= 0) SystemCalls::current().close(lock);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void remember(const fs::path& file) {
    std::shared_ptr<const Checkpoint> block = open_safetensors_file(file, file);
    std::map<std::string, std::string>& own = notes.emplace_back();
    for (const auto& [key, value] : block->metadata())
      if (key.starts_with(kNotePrefix)) own.emplace(key.substr(kNotePrefix.size()), value);
    blocks.push_back(std::move(block));
  }

  /// Takes over what an earlier run of the same pass left. Returns the number of blocks to go on behind.
  int resume(const JournalHead& head) {
    const fs::path file = path / "journal";
    const std::optional<Journal::Content> content = Journal::read(file);
    if (!content) {
      if (path_kind(file) != PathKind::nothing) remove_file(file);
      journal.emplace(file, head);
      journal->write();
      journal->sync();
      return 0;
    }
    if (const std::vector<std::string> other = differences(content->head, head); !other.empty()) {
      std::string names;
      for (const std::string& one : other) names += (names.empty() ? "" : "; ") + one;
      throw Error(ErrorCode::invalid_argument, fmt::format("an unfinished pass over blocks lies here that is not the same: {}", names),
                  {.file = path.string()}, "give the same command again, or remove the folder");
    }
    for (const JournalRecord& record : content->records) saved = static_cast<int>(record.file_index);
    for (int layer = 0; layer <= saved; ++layer) remember(path / block_file_name(layer));
    journal.emplace(file, *content);
    return saved + 1;
  }

  void finish_block(int layer, const std::map<std::string, MadeTensor, std::less<>>& made, const std::map<std::string, std::string>& own_notes) {
    std::vector<TensorSpec> specs;
    std::map<std::string, std::string> metadata;
    for (const auto& [name, tensor] : made) specs.push_back({name, tensor.dtype, tensor.shape});
    for (const auto& [key, value] : own_notes) metadata.emplace(fmt::format("{}{}", kNotePrefix, key), value);
    const fs::path file = path / block_file_name(layer);
    OutputFile output(file, Existing::replace);
    output.create_files(plan_safetensors(specs, 0, metadata));
    std::size_t index = 0;
    for (const auto& [name, tensor] : made) output.write_tensor(index++, 0, tensor.bytes);
    output.commit();
    remember(file);
  }

  void save(int layer, const Activations& changed, const Activations* original, double seconds, bool is_last) {
    const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - saved_at).count();
    if (is_last || passed < seconds) return;
    changed.save(path / activations_name(layer, false));
    if (original != nullptr) original->save(path / activations_name(layer, true));
    sync_directory(path);
    JournalRecord record;
    record.file_index = static_cast<std::uint32_t>(layer);
    journal->append(record);
    journal->write();
    journal->sync();
    if (saved >= 0)
      for (const bool of_original : {false, true})
        if (const fs::path old = path / activations_name(saved, of_original); path_kind(old) == PathKind::file) remove_file(old);
    saved = layer;
    saved_at = std::chrono::steady_clock::now();
  }
};

// ---- Block

Block::Block(BlockPass& pass, int layer) : pass_(pass), layer_(layer), tensors_(pass.network_.block_tensors(static_cast<std::size_t>(layer))) {}

int Block::num_layers() const noexcept { return static_cast<int>(pass_.network_.config().layers.size()); }
model::Network& Block::network() noexcept { return pass_.network_; }

std::vector<const model::BlockTensor*> Block::linears() const {
  std::vector<const model::BlockTensor*> all;
  for (const model::BlockTensor& tensor : tensors_)
    if (!tensor.is_bias && tensor.tensor->shape.size() == 2 && input_point(tensor.slot.role, tensor.slot.expert).role != model::Role::unknown)
      all.push_back(&tensor);
  return all;
}

const model::BlockTensor& Block::tensor(std::string_view name) const {
  for (const model::BlockTensor& tensor : tensors_)
    if (tensor.tensor->name == name) return tensor;
  throw Error(ErrorCode::not_found, fmt::format("block {} has no tensor '{}'", layer_, name), {}, "");
}

std::vector<float> Block::values(std::string_view name, Stream stream) const {
  const model::BlockTensor& found = tensor(name);
  if (stream == Stream::changed)
    if (const auto changed = changed_.find(name); changed != changed_.end()) return changed->second;
  if (stream == Stream::original)
    if (const auto changed = original_changed_.find(name); changed != original_changed_.end()) return changed->second;
  return read_values(*pass_.model_.files().checkpoint, *found.tensor);
}

void Block::set_values(std::string_view name, std::vector<float> values) {
  may_change();
  const model::BlockTensor& found = tensor(name);
  WEFT_ASSERT(values.size() == found.tensor->num_elements);
  if (const std::uint64_t bad = math::count_non_finite(values); bad > 0 && !pass_.options_.allow_non_finite)
    throw Error(ErrorCode::corrupt, fmt::format("{} of the new values are NaN or infinite", bad), {.tensor = printable(name)},
                "the statistics that they were computed from may be degenerate: more calibration text helps");
  changed_.insert_or_assign(std::string(name), std::move(values));
  now_.reset();
  drop_behind(found);
}

void Block::drop_behind(const model::BlockTensor& tensor) {
  if (held(Stream::changed).at > first_use(tensor.slot)) held(Stream::changed) = {};
}

LinearMatrix Block::matrix(std::string_view name, Stream stream) const {
  const model::BlockTensor& found = tensor(name);
  WEFT_ASSERT(found.tensor->shape.size() == 2);
  LinearMatrix out;
  out.rows = static_cast<std::size_t>(found.tensor->shape[0]);
  out.columns = static_cast<std::size_t>(found.tensor->shape[1]);
  out.values = values(name, stream);
  if (!found.slot.transposed) return out;
  out.values = transposed(out.values, out.rows, out.columns);
  std::swap(out.rows, out.columns);
  return out;
}

void Block::set_matrix(std::string_view name, const LinearMatrix& matrix) {
  const model::BlockTensor& found = tensor(name);
  set_values(name, found.slot.transposed ? transposed(matrix.values, matrix.rows, matrix.columns) : matrix.values);
}

void Block::reset(std::string_view name) {
  may_change();
  if (const auto found = changed_.find(name); found != changed_.end()) {
    changed_.erase(found);
    now_.reset();
    drop_behind(tensor(name));
  }
}

void Block::take_as_original() {
  may_change();
  if (!pass_.original_ || changed_.empty()) return;
  if (original_advanced_) throw Error(ErrorCode::internal, "a block is changed after its last look");
  original_changed_ = changed_;
  original_.reset();
  held(Stream::original) = {};
}

void Block::may_change() const {
  if (advanced_) throw Error(ErrorCode::internal, "a block is changed after its last look");
}

const model::BlockWeights& Block::weights(Stream stream) {
  const auto layer = static_cast<std::size_t>(layer_);
  if (stream == Stream::original && pass_.original_ && !(changed_.empty() && original_changed_.empty())) {
    if (!original_) {
      const ChangedTensors changed(tensors_, original_changed_);
      original_ = std::make_unique<model::BlockWeights>(pass_.network_.read_block(layer, original_changed_.empty() ? nullptr : &changed));
    }
    return *original_;
  }
  if (!now_) {
    const ChangedTensors changed(tensors_, changed_);
    now_ = std::make_unique<model::BlockWeights>(pass_.network_.read_block(layer, changed_.empty() ? nullptr : &changed));
  }
  return *now_;
}

Activations& Block::activations(Stream stream) const {
  if (stream == Stream::changed || (pass_.options_.only_looks && !pass_.original_)) {
    if (advanced_) throw Error(ErrorCode::internal, "a block is run again after its last look");
    return *pass_.changed_;
  }
  if (original_advanced_) throw Error(ErrorCode::internal, "a block is run again after its last look");
  if (!pass_.original_) throw Error(ErrorCode::internal, "the pass does not keep the unchanged model's activations");
  return *pass_.original_;
}

std::span<const Activations::Batch> Block::batches() const { return pass_.changed_->batches(); }

std::vector<std::size_t> Block::lengths(const Activations::Batch& batch) const {
  std::vector<std::size_t> all;
  for (std::size_t s = 0; s < batch.num_sequences; ++s) all.push_back(pass_.tokens_->sequences[batch.first_sequence + s].size());
  return all;
}
const CalibrationTokens& Block::tokens() const noexcept { return *pass_.tokens_; }
RunningModel& Block::running() const noexcept { return pass_.model_; }

std::vector<float> Block::input(const Activations::Batch& batch, Stream stream) const {
  std::vector<float> rows;
  activations(stream).read(batch, rows);
  return rows;
}

std::vector<float> Block::run(const Activations::Batch& batch, std::vector<float> rows, BlockTap* tap, Stream stream) {
  pass_.changed_->run(batch, static_cast<std::size_t>(layer_), weights(stream), rows, tap);
  return rows;
}

void Block::run(const Activations::Batch& batch, const model::BlockWeights& weights, std::span<float> rows, BlockTap* tap) {
  pass_.changed_->run(batch, static_cast<std::size_t>(layer_), weights, rows, tap);
}

void Block::advance_with(std::function<const model::BlockWeights&(const Activations::Batch&)> weights) { advance_with_ = std::move(weights); }
std::uint64_t Block::statistics_budget() const noexcept { return pass_.budget_bytes_; }

void Block::run(BlockTap& tap, Stream stream) {
  activations(stream).run(static_cast<std::size_t>(layer_), weights(stream), Activations::Then::stay, &tap);
}

class Block::Leg {
 public:
  enum class Then { forget, keep, advance };
  /// from: a stop that the stream is held at, or the block's beginning.
  Leg(Block& block, Stream stream, BlockStop from, BlockStop to, Then then)
      : block_(block),
        activations_(block.activations(stream)),
        weights_(block.weights(stream)),
        held_(block.held(stream)),
        from_(from),
        to_(to),
        then_(then),
        hidden_(static_cast<std::size_t>(block.pass_.network_.config().hidden)),
        in_columns_(block.pass_.network_.stop_columns(weights_, from)),
        out_columns_(block.pass_.network_.stop_columns(weights_, to)) {
    if (then_ != Then::keep) return;
    const std::size_t tokens = block.pass_.tokens_->num_tokens();
    between_.resize(tokens * out_columns_);
    if (to_ >= BlockStop::feed_forward && from_ < BlockStop::feed_forward) held_.x.resize(tokens * hidden_);
  }

  void run(const Activations::Batch& batch, BlockTap* tap) {
    if (from_ >= BlockStop::feed_forward)
      rows_.assign(held_.x.data() + batch.first_token * hidden_, held_.x.data() + (batch.first_token + batch.num_rows) * hidden_);
    else
      activations_.read(batch, rows_);
    const bool keeps = then_ == Then::keep;
    if (!keeps) spare_.resize(batch.num_rows * out_columns_);
    const std::span<float> out =
        keeps ? std::span(between_).subspan(batch.first_token * out_columns_, batch.num_rows * out_columns_) : std::span(spare_);
    const auto in = std::span(std::as_const(held_.between));
    activations_.run(batch, static_cast<std::size_t>(block_.layer_), weights_, from_, to_, rows_,
                     in_columns_ == 0 ? std::span<const float>() : in.subspan(batch.first_token * in_columns_, batch.num_rows * in_columns_), out,
                     tap);
    if (keeps && to_ >= BlockStop::feed_forward) std::copy(rows_.begin(), rows_.end(), held_.x.data() + batch.first_token * hidden_);
    if (then_ == Then::advance) activations_.write(batch, rows_);
  }

  /// Once all batches have run.
  void finish() {
    if (then_ == Then::advance) held_ = {};
    if (then_ != Then::keep) return;
    held_.at = to_;
    held_.between = std::move(between_);
  }

  /// What keeping takes beside what is held already.
  static std::uint64_t more_bytes(Block& block, Stream stream, BlockStop from, BlockStop to) {
    const model::Network& network = block.pass_.network_;
    const std::size_t hidden =
        to >= BlockStop::feed_forward && from < BlockStop::feed_forward ? static_cast<std::size_t>(network.config().hidden) : 0;
    return block.pass_.tokens_->num_tokens() * (network.stop_columns(block.weights(stream), to) + hidden) * sizeof(float);
  }

 private:
  Block& block_;
  Activations& activations_;
  const model::BlockWeights& weights_;
  Held& held_;
  BlockStop from_, to_;
  Then then_;
  std::size_t hidden_, in_columns_, out_columns_;
  std::vector<float> rows_, between_, spare_;
};

std::vector<InputStatistics> Block::statistics(const StatisticsRequest& request) {
  // Room for them, and names of what reads where.
  std::map<InputPoint, InputStatistics> expected;
  std::uint64_t needed = 0;
  for (const model::BlockTensor* linear : linears()) {
    const InputPoint point = input_point(linear->slot.role, linear->slot.expert);
    if (!request.points.empty() && std::find(request.points.begin(), request.points.end(), point) == request.points.end()) continue;
    InputStatistics& own = expected[point];
    if (own.weights.empty()) {
      own.point = point;
      own.width = static_cast<std::size_t>(linear->tensor->shape[linear->slot.transposed ? 0 : 1]);
      needed += statistics_bytes(own.width, request);
    }
    own.weights.push_back(linear->tensor->name);
  }
  if (needed > pass_.budget_bytes_)
    throw Error(ErrorCode::out_of_memory,
                fmt::format("statistics of block {} take {}, but {} of the memory budget are left for them", layer_, format_size(needed),
                            format_size(pass_.budget_bytes_)),
                {}, "raise it with --memory");

  if (expected.empty() && !request.last) return {};
  // From the furthest stop that lies before all that is asked for to the last point.
  const auto layer = static_cast<std::size_t>(layer_);
  BlockStop first = BlockStop::end, to = BlockStop::attention;
  for (const auto& [point, own] : expected) {
    first = std::min(first, stop_of(point));
    to = std::max(to, stop_of(point));
  }
  if (request.last || !pass_.network_.can_stop(layer, to)) to = BlockStop::end;
  const std::vector<Stream> streams = request.cross ? std::vector<Stream>{Stream::original, Stream::changed} : std::vector<Stream>{Stream::changed};
  std::uint64_t held_bytes = held(Stream::changed).size_bytes() + held(Stream::original).size_bytes();
  if (needed + held_bytes > pass_.budget_bytes_) {
    for (const Stream stream : {Stream::changed, Stream::original}) held(stream) = {};
    held_bytes = 0;
  }
  StatisticsTap tap(request, pass_.options_.allow_non_finite, pass_.network_.team());
  std::vector<Leg> legs;
  for (const Stream stream : streams) {
    const BlockStop from = held(stream).at <= first ? held(stream).at : BlockStop::attention;
    Leg::Then then = request.last ? Leg::Then::advance : Leg::Then::forget;
    if (to != BlockStop::end && to > from) {
      if (from != held(stream).at) {
        held_bytes -= held(stream).size_bytes();
        held(stream) = {};
      }
      const std::uint64_t more = Leg::more_bytes(*this, stream, from, to);
      if (needed + held_bytes + more <= pass_.budget_bytes_) {
        then = Leg::Then::keep;
        held_bytes += more;
      }
    }
    legs.emplace_back(*this, stream, from, to, then);
  }
  for (const Activations::Batch& batch : batches()) {
    if (request.cross) legs.front().run(batch, &tap.recorder());
    legs.back().run(batch, &tap);
  }
  for (Leg& leg : legs) leg.finish();
  if (request.cross) original_advanced_ = request.last;
  advanced_ = request.last;

  for (InputStatistics& seen : tap.finish()) {
    const auto own = expected.find(seen.point);
    if (own == expected.end()) continue;  // read by nothing that is a matrix of its own
    seen.weights = std::move(own->second.weights);
    own->second = std::move(seen);
  }
  std::vector<InputStatistics> all;
  for (auto& [point, own] : expected) {
    if (own.num_tokens == 0) {  // an expert that no token went to, or none that is finite
      own.sum.assign(own.width, 0.0);
      own.sum_abs = own.sum_squares = own.sum;
      own.max_abs.assign(own.width, 0.0F);
      own.min = own.max = own.max_abs;
      if (request.gram) own.gram.assign(own.width * own.width, 0.0);
    }
    all.push_back(std::move(own));
  }
  return all;
}

void Block::emit(MadeTensor tensor) {
  std::string name = tensor.name;
  made_.insert_or_assign(std::move(name), std::move(tensor));
}

void Block::emit(std::string_view name, DType dtype, Shape shape, std::span<const float> values) {
  MadeTensor tensor{std::string(name), dtype, std::move(shape), {}};
  tensor.bytes.resize(values.size() * static_cast<std::size_t>(info(dtype).bits) / 8);
  math::encode(dtype, values, tensor.bytes);
  emit(std::move(tensor));
}

void Block::note(std::string_view key, std::string value) { notes_.insert_or_assign(std::string(key), std::move(value)); }

void Block::advance() {
  const auto layer = static_cast<std::size_t>(layer_);
  const auto go_on = [this](Stream stream) {
    Leg leg(*this, stream, held(stream).at, BlockStop::end, Leg::Then::advance);
    for (const Activations::Batch& batch : batches()) leg.run(batch, nullptr);
    leg.finish();
  };
  if (pass_.original_ && !original_advanced_) go_on(Stream::original);
  original_.reset();
  if (advance_with_) {
    std::vector<float> rows;
    for (const Activations::Batch& batch : batches()) {
      pass_.changed_->read(batch, rows);
      pass_.changed_->run(batch, layer, advance_with_(batch), rows, nullptr);
      pass_.changed_->write(batch, rows);
    }
    return;
  }
  if (!advanced_) go_on(Stream::changed);
}

// ---- BlockPass

BlockPass::BlockPass(RunningModel& model, std::shared_ptr<const CalibrationTokens> tokens, const BlockPassOptions& options)
    : model_(model), network_(model.network()), tokens_(std::move(tokens)), options_(options) {
  if (tokens_->sequences.empty()) throw Error(ErrorCode::invalid_argument, "there are no calibration sequences", {}, "give a text with --text");
  const std::int64_t vocab = network_.config().vocab;
  for (std::size_t s = 0; s < tokens_->sequences.size(); ++s) {
    if (tokens_->sequences[s].empty())
      throw Error(ErrorCode::invalid_argument, fmt::format("calibration sequence {} has no tokens", s), {}, "give each at least one token");
    for (const std::uint32_t id : tokens_->sequences[s])
      if (static_cast<std::int64_t>(id) >= vocab)
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("token id {} of calibration sequence {} is not below {}, the size of the model's vocabulary", id, s, vocab), {},
                    "the tokens must come from this model's own tokenizer");
  }
  plan_memory();
  if (!options_.folder.empty()) folder_ = std::make_unique<Folder>(options_.folder);
  const auto file = [&](const char* name) -> fs::path {
    if (!activations_in_file_) return {};
    if (folder_ == nullptr) return unused_temporary_file();
    fs::path path = folder_->path / name;
    if (path_kind(path) == PathKind::file) remove_file(path);
    return path;
  };
  changed_ = std::make_unique<Activations>(network_, tokens_, file("changed"));
  if (options_.two_streams) original_ = std::make_unique<Activations>(network_, tokens_, file("original"));
}
BlockPass::~BlockPass() = default;

void BlockPass::check_cancelled() const {
  if (options_.cancel != nullptr && options_.cancel->load())
    throw Error(ErrorCode::interrupted, "interrupted", {},
                folder_ == nullptr ? "the same command starts again" : "the same command goes on behind the blocks that are finished");
}

void BlockPass::plan_memory() {
  const std::uint64_t limit = MemoryBudget(options_.memory_bytes).limit_bytes();
  const auto hidden = static_cast<std::uint64_t>(network_.config().hidden);
  const std::uint64_t streams = options_.two_streams ? 2 : 1;
  std::uint64_t block = 0, linears = 0;
  for (std::size_t layer = 0; layer < network_.config().layers.size(); ++layer) {
    block = std::max(block, network_.block_bytes(layer));
    std::uint64_t widths = 0;
    std::set<InputPoint> points;
    for (const model::BlockTensor& tensor : network_.block_tensors(layer)) {
      const InputPoint point = input_point(tensor.slot.role, tensor.slot.expert);
      if (point.role == model::Role::unknown || tensor.tensor->shape.size() != 2 || !points.insert(point).second) continue;
      widths += statistics_bytes(static_cast<std::size_t>(tensor.tensor->shape[tensor.slot.transposed ? 0 : 1]),
                                 {.gram = true, .cross = false, .points = {}});
    }
    linears = std::max(linears, widths);
  }
  const std::uint64_t batch = std::max<std::uint64_t>(Activations::kBatchRows, tokens_->longest()) * hidden * sizeof(float) * 2 +
                              std::min<std::uint64_t>(512, tokens_->longest()) * hidden * sizeof(float) * kScratchWidths;
  const std::uint64_t least = checked_add(network_.input_bytes() + block * streams, batch, "the size of a pass");
  if (least > limit)
    throw Error(ErrorCode::out_of_memory,
                fmt::format("the embedding, one block and the activations of one batch take {} in memory, but the budget is {}", format_size(least),
                            format_size(limit)),
                {}, "raise it with --memory, or use shorter sequences");
  const std::uint64_t all = checked_mul(tokens_->num_tokens(), hidden * sizeof(float) * streams, "the size of activations");
  activations_in_file_ = checked_add(least + linears, all, "the size of a pass") > limit;
  budget_bytes_ = limit - least - (activations_in_file_ ? 0 : all);
}

BlockPassResult BlockPass::run(const std::function<void(Block&)>& visit) {
  const auto num_layers = static_cast<int>(network_.config().layers.size());
  BlockPassResult result;
  int first = 0;
  if (folder_) {
    JournalHead head;
    head.what = "passing over blocks";
    head.output = fs::absolute(folder_->path).string();
    head.num_tensors = static_cast<std::uint64_t>(num_layers);
    head.ingredients = options_.ingredients;
    head.ingredients.push_back(model_ingredient("the model", *model_.files().checkpoint));
    head.ingredients.push_back({"the calibration tokens", tokens_->digest()});
    static constexpr std::array<const char*, 4> kPrecisions = {"float32", "fast", "int8", "packed"};
    head.ingredients.push_back({"--precision", kPrecisions.at(static_cast<std::size_t>(options_.precision))});
    head.ingredients.push_back({"the activations that are kept", original_ ? "two streams" : "one stream"});
    first = folder_->resume(head);
    result.num_resumed = static_cast<std::size_t>(first);
  }
  if (first > 0) {
    changed_->load(folder_->path / activations_name(first - 1, false));
    if (original_) original_->load(folder_->path / activations_name(first - 1, true));
  } else {
    changed_->embed(options_.embed_with);
    if (original_) original_->embed();
  }

  const auto started = std::chrono::steady_clock::now();
  const std::uint64_t per_block = tokens_->num_tokens();
  int layer = first;
  changed_->on_batch = [&](const Activations::Batch& batch) {
    check_cancelled();
    if (!options_.on_progress) return;
    const auto at = static_cast<std::uint64_t>(layer) * per_block + batch.first_token;
    options_.on_progress({.what = "running blocks",
                          .done_bytes = at,
                          .total_bytes = static_cast<std::uint64_t>(num_layers) * per_block,
                          .elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count()});
  };
  if (original_) original_->on_batch = [&](const Activations::Batch&) { check_cancelled(); };

  std::vector<MadeTensor> held;
  for (; layer < num_layers; ++layer) {
    check_cancelled();
    Block block(*this, layer);
    visit(block);
    const bool is_last = layer + 1 == num_layers;
    if (!is_last) block.advance();  // nothing reads what the last one gives
    if (folder_) {
      folder_->finish_block(layer, block.made_, block.notes_);
      folder_->save(layer, *changed_, original_.get(), options_.journal_seconds, is_last);
      continue;
    }
    for (auto& [name, tensor] : block.made_) held.push_back(std::move(tensor));
    result.notes.push_back(std::move(block.notes_));
  }
  if (!folder_) {
    if (!held.empty()) result.tensors = hold_tensors(std::move(held));
    return result;
  }
  result.notes = folder_->notes;
  std::vector<NamedTensor> all;
  for (const auto& block : folder_->blocks)
    for (const TensorInfo& tensor : block->tensors()) all.push_back({{block, &tensor}, tensor.name});
  if (!all.empty()) result.tensors = select_tensors(all, *folder_->blocks.front());
  return result;
}

}  // namespace weft::engine
