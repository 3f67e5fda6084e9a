#include "checkpoint/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "base/threads.h"
#include "checkpoint/first_file.h"
#include "checkpoint/json.h"
#include "weft/error.h"

namespace weft {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's cap on the length in the first eight bytes
constexpr std::string_view kMetadata = "__metadata__";

std::string named(const TensorSpec& spec) {
  return fmt::format("tensor '{}' ({} {})", printable(spec.name), to_string(spec.dtype), to_string(spec.shape));
}

std::uint64_t stored_bytes(const TensorSpec& spec) {
  std::uint64_t elements = 1;
  for (const std::int64_t dim : spec.shape) {
    if (dim < 0) throw Error(ErrorCode::invalid_argument, named(spec) + " has a negative dimension", {.tensor = spec.name});
    elements = checked_mul(elements, static_cast<std::uint64_t>(dim), named(spec));
  }
  const std::uint64_t bits = checked_mul(elements, static_cast<std::uint64_t>(info(spec.dtype).bits), named(spec));
  if (bits % 8 != 0)
    throw Error(ErrorCode::invalid_argument, fmt::format("{} ends inside a byte: {} bits", named(spec), bits), {.tensor = spec.name},
                "its number of elements must fill whole bytes");
  return bits / 8;
}

void check_name(std::string_view what, std::string_view name) {
  if (!is_valid_utf8(name))
    throw Error(ErrorCode::invalid_argument, fmt::format("{} '{}' is not UTF-8", what, printable(name)), {}, "safetensors files hold UTF-8 only");
}

/// Which tensors share a file: filled in the order of the specs, as Hugging Face's splitter does. A tensor over the limit goes alone, and the
/// file that was being filled goes on after it.
std::vector<std::vector<std::size_t>> shards_of(const std::vector<std::uint64_t>& sizes, std::uint64_t max_shard_bytes) {
  std::vector<std::vector<std::size_t>> shards;
  std::vector<std::size_t> current;
  std::uint64_t current_bytes = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (max_shard_bytes != 0 && sizes[i] > max_shard_bytes) {
      shards.push_back({i});
      continue;
    }
    // current_bytes is at most the limit here, so the subtraction cannot wrap.
    if (max_shard_bytes != 0 && sizes[i] > max_shard_bytes - current_bytes) {
      shards.push_back(std::exchange(current, {}));
      current_bytes = 0;
    }
    current.push_back(i);
    current_bytes = checked_add(current_bytes, sizes[i], "the size of a file");
  }
  if (!current.empty() || shards.empty()) shards.push_back(std::move(current));
  return shards;
}

std::string header_of(const std::vector<TensorSpec>& specs, const std::vector<std::size_t>& order, const std::vector<std::uint64_t>& sizes,
                      const std::map<std::string, std::string>& metadata) {
  std::string header(8, '\0');
  header += "{\"__metadata__\":{";
  bool first = true;
  for (const auto& [key, value] : metadata) {
    header += (std::exchange(first, false) ? "" : ",") + json_quote(key) + ":" + json_quote(value);
  }
  header += "}";
  std::uint64_t begin = 0;
  for (const std::size_t i : order) {
    header += "," + json_quote(specs[i].name) + ":{\"dtype\":\"";
    header += to_string(specs[i].dtype);
    header += fmt::format("\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", fmt::join(specs[i].shape, ","), begin, begin + sizes[i]);
    begin += sizes[i];
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::uint64_t length = header.size() - 8;
  if (length > kMaxHeaderBytes)
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("the header of {} tensors would have {} bytes, more than the format's limit of {}", order.size(), length, kMaxHeaderBytes), {},
        "write more and smaller files with --max-shard-size, or less metadata");
  for (std::size_t i = 0; i < 8; ++i) header[i] = static_cast<char>(length >> (8 * i) & 0xFF);
  return header;
}

std::string index_of(const OutputLayout& layout, const std::map<std::string, std::string>& index_metadata) {
  const auto quote = [](const std::string& text) { return write_json(Json(text), 0, true); };
  // By hand rather than through a tree of values: a million names need no second copy.
  std::string json = "{\n  \"metadata\": {\n";
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : index_metadata) metadata[key] = quote(value);
  metadata["total_size"] = std::to_string(layout.tensor_bytes);
  bool first = true;
  for (const auto& [key, value] : metadata) json += (std::exchange(first, false) ? "    " : ",\n    ") + quote(key) + ": " + value;
  json += "\n  },\n  \"weight_map\": {\n";
  // Bytes of UTF-8 sort as code points do, so this is the order of Python's sort_keys.
  std::vector<const OutputLayout::Tensor*> sorted;
  for (const OutputLayout::Tensor& tensor : layout.tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  first = true;
  for (const auto* tensor : sorted)
    json += (std::exchange(first, false) ? "    " : ",\n    ") + quote(tensor->name) + ": " + quote(layout.files[tensor->file_index].name);
  return json + "\n  }\n}\n";
}

}  // namespace

OutputLayout plan_safetensors(const std::vector<TensorSpec>& specs, std::uint64_t max_shard_bytes, const std::map<std::string, std::string>& metadata,
                              std::string_view stem, const std::map<std::string, std::string>& index_metadata) {
  std::unordered_set<std::string_view> names;
  std::vector<std::uint64_t> sizes;
  for (const TensorSpec& spec : specs) {
    check_name("the tensor name", spec.name);
    if (spec.name == kMetadata)
      throw Error(ErrorCode::invalid_argument, "a tensor cannot be called '__metadata__': the format uses that name itself", {.tensor = spec.name},
                  "rename it");
    if (!names.insert(spec.name).second)
      throw Error(ErrorCode::invalid_argument, fmt::format("two tensors of the output are called '{}'", printable(spec.name)), {.tensor = spec.name});
    sizes.push_back(stored_bytes(spec));
  }
  std::map<std::string, std::string> all_metadata = metadata;
  all_metadata["format"] = "pt";  // loaders look for it, and some fail without
  for (const auto& [key, value] : all_metadata) {
    check_name("the metadata key", key);
    check_name("the metadata value", value);
  }

  OutputLayout layout;
  layout.tensors.resize(specs.size());
  const std::vector<std::vector<std::size_t>> shards = shards_of(sizes, max_shard_bytes);
  for (std::size_t f = 0; f < shards.size(); ++f) {
    std::vector<std::size_t> order = shards[f];
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      if (specs[a].dtype != specs[b].dtype) return specs[a].dtype > specs[b].dtype;
      return specs[a].name < specs[b].name;
    });
    OutputLayout::FilePlan file;
    file.name = shards.size() == 1 ? fmt::format("{}.safetensors", stem) : fmt::format("{}-{:05d}-of-{:05d}.safetensors", stem, f + 1, shards.size());
    file.header = header_of(specs, order, sizes, all_metadata);
    std::uint64_t offset = file.header.size();
    for (const std::size_t i : order) {
      layout.tensors[i] = {specs[i].name, static_cast<std::uint32_t>(f), offset, sizes[i]};
      offset = checked_add(offset, sizes[i], "the size of a file");
    }
    file.size_bytes = offset;
    layout.tensor_bytes = checked_add(layout.tensor_bytes, offset - file.header.size(), "the size of the output");
    layout.files.push_back(std::move(file));
  }
  if (layout.files.size() > 1) {
    layout.index_name = fmt::format("{}.safetensors.index.json", stem);
    layout.index_json = index_of(layout, index_metadata);
  }
  return layout;
}

// ---- Output: files ----

namespace {

/// What no tensor fills at the end of a file is there even where room could not be reserved.
void write_end_padding(const OutputLayout& layout, const std::vector<File*>& files) {
  std::vector<std::uint64_t> ends(files.size());
  for (std::size_t f = 0; f < files.size(); ++f) ends[f] = layout.files[f].header.size();
  for (const OutputLayout::Tensor& tensor : layout.tensors)
    ends[tensor.file_index] = std::max(ends[tensor.file_index], tensor.offset_bytes + tensor.size_bytes);
  for (std::size_t f = 0; f < files.size(); ++f) {
    if (ends[f] < layout.files[f].size_bytes) files[f]->write(layout.files[f].size_bytes - 1, std::as_bytes(std::span("", 1)));
  }
}

/// Outputs that could go on after a sudden end.
struct Registry {
  std::mutex mutex;
  std::set<Output*> outputs;
};

Registry& registry() {
  static Registry living;
  return living;
}

}  // namespace

Output::Output(std::filesystem::path destination, Staging::What what, Existing existing, bool resumable)
    : staging_(std::move(destination), what, existing, resumable) {}

Output::~Output() {
  {
    const std::lock_guard lock(registry().mutex);
    registry().outputs.erase(this);
  }
  end_journal_thread();
}

void Output::create_files(OutputLayout layout, OutputOptions options) {
  WEFT_ASSERT(files_.empty());
  layout_ = std::move(layout);
  options_ = std::move(options);
  options_.checksums = options_.checksums || has_journal();
  if (options_.checksums) {
    making_.resize(layout_.tensors.size());
    sums_.resize(layout_.tensors.size());
  }
  JournalHead& head = options_.head;
  head.output = staging_.target().string();
  head.num_tensors = layout_.tensors.size();
  head.size_bytes = layout_.tensor_bytes;
  if (has_journal()) head.ingredients.push_back({std::string(kFirstFile), layout_.files.front().name});
  try {
    if (staging_.unfinished()) {
      open_recorded_files();
    } else {
      open_new_files();
    }
    if (!layout_.index_name.empty()) {
      staging_.create(layout_.index_name).write(0, std::as_bytes(std::span(layout_.index_json)));
      if (makes_sums()) other_sums_.push_back({layout_.index_name, layout_.index_json.size(), checksum_of(layout_.index_json), {}});
    }
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
  if (!has_journal()) return;
  try {
    journal_thread_ = std::thread([this] { keep_journal(); });
  } catch (const std::system_error& e) {
    throw Error(ErrorCode::out_of_memory, std::string("the system started no thread for the journal: ") + e.what(), {},
                "raise the limit (ulimit -u)");
  }
  const std::lock_guard lock(registry().mutex);
  registry().outputs.insert(this);
}

namespace {

std::uint64_t total_bytes_of(const OutputLayout& layout) {
  std::uint64_t total = layout.index_json.size();
  for (const OutputLayout::FilePlan& file : layout.files) total = checked_add(total, file.size_bytes, "the size of the output");
  return total;
}

}  // namespace

void Output::open_new_files() {
  staging_.require_space(total_bytes_of(layout_));
  for (const OutputLayout::FilePlan& file : layout_.files) {
    files_.push_back(&staging_.create(file.name));
    files_.back()->allocate(file.size_bytes);
  }
  if (!has_journal()) return;
  options_.head.content_inode = staging_.content_inode();
  journal_.emplace(staging_.journal_path(), options_.head);
}

void Output::open_recorded_files() {
  Journal::Content found = *staging_.unfinished();
  if (const std::vector<std::string> changed = differences(found.head, options_.head); !changed.empty()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("an unfinished job for '{}' was started from something else; changed since: {}",
                            printable(staging_.destination().native(), 4096), fmt::join(changed, ", ")),
                {.file = staging_.destination().string()},
                fmt::format("undo the change to go on with it, or remove what it left: weft jobs --discard '{}'", staging_.destination().string()));
  }
  std::vector<std::string> names;
  for (const OutputLayout::FilePlan& file : layout_.files) names.push_back(file.name);
  staging_.take_over(names);
  std::uint64_t reserved_bytes = 0;
  std::vector<bool> there;
  for (const OutputLayout::FilePlan& file : layout_.files) {
    there.push_back(path_kind(staging_.content() / file.name) == PathKind::file);
    files_.push_back(there.back() ? &staging_.reopen(file.name) : &staging_.create(file.name));
    reserved_bytes += files_.back()->allocated_bytes();
  }
  staging_.require_space(total_bytes_of(layout_), reserved_bytes);
  for (std::size_t f = 0; f < files_.size(); ++f) files_[f]->allocate(layout_.files[f].size_bytes);
  num_saved_ = found.records.size();
  journal_.emplace(staging_.journal_path(), found);

  // Where a tensor begins tells which it is, but for empty ones, which are not worth a look.
  std::unordered_map<std::uint64_t, std::size_t> by_place;
  const auto place = [](std::uint64_t file_index, std::uint64_t offset) { return file_index << 44 ^ offset; };
  for (std::size_t i = 0; i < layout_.tensors.size(); ++i)
    if (layout_.tensors[i].size_bytes > 0) by_place.emplace(place(layout_.tensors[i].file_index, layout_.tensors[i].offset_bytes), i);
  found_records_ = std::move(found.records);
  recorded_.assign(layout_.tensors.size(), nullptr);
  for (const JournalRecord& record : found_records_) {
    const auto known = by_place.find(place(record.file_index, record.offset_bytes));
    if (known == by_place.end()) continue;
    const OutputLayout::Tensor& tensor = layout_.tensors[known->second];
    if (tensor.file_index == record.file_index && tensor.offset_bytes == record.offset_bytes && tensor.size_bytes == record.size_bytes)
      recorded_[known->second] = &record;
  }
}

void Output::check_recorded(int num_threads, const std::atomic<bool>* cancel) {
  if (recorded_.empty()) return;
  std::vector<std::size_t> tensors;
  for (std::size_t i = 0; i < recorded_.size(); ++i)
    if (recorded_[i] != nullptr) tensors.push_back(i);
  std::atomic<std::size_t> next = 0;
  std::atomic<std::uint64_t> good_bytes = 0;
  WorkerPool pool(num_threads);
  pool.run([&](int) {
    std::vector<std::byte> buffer(std::size_t{1} << 18);
    while (!pool.stop_token().stop_requested()) {
      if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::interrupted, "interrupted");
      const std::size_t k = next++;
      if (k >= tensors.size()) return;
      const OutputLayout::Tensor& tensor = layout_.tensors[tensors[k]];
      BlockSums made(tensor.size_bytes);
      bool good = true;
      try {
        for (std::uint64_t offset = 0; offset < tensor.size_bytes; offset += buffer.size()) {
          if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::interrupted, "interrupted");
          const auto piece = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), tensor.size_bytes - offset)));
          read_tensor(tensors[k], offset, piece);
          made.add(offset, piece, {});
        }
      } catch (const Error& e) {
        if (e.code() == ErrorCode::interrupted) throw;
        good = false;  // it is written again
      }
      std::vector<Checksum> blocks;
      if (good) {
        blocks = made.take();
        good = whole_of_blocks(blocks) == recorded_[tensors[k]]->checksum;
      }
      if (good) {
        good_bytes += tensor.size_bytes;
        sums_[tensors[k]] = std::move(blocks);
      } else {
        recorded_[tensors[k]] = nullptr;
      }
    }
  });
  recorded_bytes_ = good_bytes;
  written_bytes_ += good_bytes;
}

void Output::write_tensor(std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data) {
  const OutputLayout::Tensor& place = layout_.tensors.at(tensor);
  if (offset > place.size_bytes || data.size() > place.size_bytes - offset)
    throw Error(ErrorCode::internal,
                fmt::format("bytes {} + {} lie outside of tensor '{}' of {} bytes", offset, data.size(), printable(place.name), place.size_bytes),
                {.tensor = place.name});
  throw_if_journal_failed();
  const File& file = *files_[place.file_index];
  try {
    file.write(place.offset_bytes + offset, data);
  } catch (const Error& e) {
    const Error whole = staging_.explained(e);
    throw Error(whole.code(), whole.message(), {.file = whole.place().file, .tensor = place.name}, whole.advice(), whole.system_error());
  }
  if (makes_sums()) {
    BlockSums* sums = nullptr;
    {
      const std::lock_guard lock(sums_mutex_);
      if (making_[tensor] == nullptr) making_[tensor] = std::make_unique<BlockSums>(place.size_bytes);
      sums = making_[tensor].get();
    }
    sums->add(offset, data, [&](std::uint64_t from, std::span<std::byte> out) { file.read(place.offset_bytes + from, out); });
  }
  written_bytes_.fetch_add(data.size(), std::memory_order_relaxed);
  // Whoever finishes a window has it written back while others go on, so that the sync at the end finds little left to do.
  constexpr std::uint64_t kWindow = std::uint64_t{8} << 20;
  const std::uint64_t end = place.offset_bytes + offset + data.size();
  if (const std::uint64_t window = end / kWindow; window != (end - data.size()) / kWindow) file.start_writeback((window - 1) * kWindow, kWindow);
}

void Output::finish_tensor(std::size_t tensor, std::vector<std::string> warnings) {
  if (!makes_sums()) return;
  const OutputLayout::Tensor& place = layout_.tensors.at(tensor);
  std::unique_ptr<BlockSums> sums;
  {
    const std::lock_guard lock(sums_mutex_);
    sums = std::move(making_[tensor]);
  }
  if (sums == nullptr) sums = std::make_unique<BlockSums>(place.size_bytes);
  if (!sums->is_complete()) throw Error(ErrorCode::internal, "a tensor was finished before all of it was written", {.tensor = place.name});
  sums_[tensor] = sums->take();
  if (!has_journal()) return;
  const std::lock_guard lock(journal_mutex_);
  unsaved_.push_back({place.file_index, place.offset_bytes, place.size_bytes, whole_of_blocks(sums_[tensor]), std::move(warnings)});
  unsaved_bytes_ += place.size_bytes;
  if (unsaved_bytes_ >= options_.journal_bytes) journal_wakes_.notify_one();
}

void Output::read_tensor(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
  const OutputLayout::Tensor& place = layout_.tensors.at(tensor);
  WEFT_ASSERT(offset + out.size() <= place.size_bytes);
  files_[place.file_index]->read(place.offset_bytes + offset, out);
}

// ---- Output: the journal ----

void Output::keep_journal() {
  std::unique_lock lock(journal_mutex_);
  while (!journal_ends_) {
    journal_wakes_.wait_for(lock, std::chrono::duration<double>(options_.journal_seconds),
                            [this] { return journal_ends_ || unsaved_bytes_ >= options_.journal_bytes; });
    if (journal_ends_ || unsaved_.empty()) continue;
    try {
      save_batch(lock);
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      journal_failure_ = std::current_exception();
      journal_failed_ = true;
      return;
    }
  }
}

/// Data first, then what the journal says of them: it must never know more than the disk.
void Output::save_batch(std::unique_lock<std::mutex>& lock) {
  const std::size_t count = unsaved_.size();
  std::set<std::uint32_t> touched;
  for (const JournalRecord& record : unsaved_) touched.insert(record.file_index);
  unsaved_bytes_ = 0;
  lock.unlock();
  try {
    for (const std::uint32_t file : touched) files_[file]->sync();
  } catch (...) {
    lock.lock();
    lost_ = true;
    throw;
  }
  lock.lock();
  // Fewer when save_all() was quicker.
  const std::size_t left = std::min(count, unsaved_.size());
  for (std::size_t i = 0; i < left; ++i) journal_->append(unsaved_[i]);
  unsaved_.erase(unsaved_.begin(), unsaved_.begin() + static_cast<std::ptrdiff_t>(left));
  journal_->write();
  num_saved_ += left;
  lock.unlock();
  journal_->sync();
  if (!std::exchange(folders_synced_, true)) staging_.sync_folders();
  lock.lock();
}

/// With the lock held.
std::uint64_t Output::append_unsaved() {
  for (const JournalRecord& record : unsaved_) journal_->append(record);
  num_saved_ += std::exchange(unsaved_, {}).size();
  unsaved_bytes_ = 0;
  journal_->write();
  return num_saved_;
}

void Output::end_journal_thread() {
  if (!journal_thread_.joinable()) return;
  {
    const std::lock_guard lock(journal_mutex_);
    journal_ends_ = true;
  }
  journal_wakes_.notify_one();
  journal_thread_.join();
}

void Output::throw_if_journal_failed() {
  if (!journal_failed_.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(journal_mutex_);
  try {
    std::rethrow_exception(journal_failure_);
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
}

std::filesystem::path Output::suspend() noexcept {
  try {
    end_journal_thread();
    if (lost_) {
      staging_.release();
      return {};
    }
    if (sealed_) {  // written completely, but could not be put in place
      if (num_saved_ > 0) staging_.keep();
      return staging_.kept() ? staging_.folder() : std::filesystem::path();
    }
    // Not yet at work: what another job left is not ours to lose.
    if (!journal_) return staging_.kept() ? staging_.folder() : std::filesystem::path();
    std::set<std::uint32_t> touched;
    for (const JournalRecord& record : unsaved_) touched.insert(record.file_index);
    // The journal first: if this process is killed while it waits for the device, the next one checks what it finds anyway.
    {
      const std::lock_guard lock(journal_mutex_);
      if (!journal_failed_) append_unsaved();
    }
    if (num_saved_ == 0) return {};
    for (const std::uint32_t file : touched) {
      try {
        files_[file]->sync();
      } catch (...) {
        // Pages that could not be written may still be in memory and look good when they are checked, but are lost.
        staging_.release();
        return {};
      }
    }
    staging_.keep();
    journal_->sync();
  } catch (...) {  // what the journal holds by now still counts
    if (num_saved_ == 0) return {};
    staging_.keep();
  }
  return staging_.kept() ? staging_.folder() : std::filesystem::path();
}

std::vector<std::filesystem::path> Output::save_all() noexcept {
  std::vector<std::filesystem::path> folders;
  try {
    const std::lock_guard lock(registry().mutex);
    for (Output* output : registry().outputs) {
      const std::lock_guard journal_lock(output->journal_mutex_);
      if (output->lost_ || output->journal_failed_) continue;
      if (output->append_unsaved() > 0) folders.push_back(output->staging_.folder());
    }
    for (Output* output : registry().outputs) {
      for (const File* file : output->files_) file->sync();
      output->journal_->sync();
    }
  } catch (...) {  // what could be saved is saved
  }
  return folders;
}

// ---- Output: commit ----

std::vector<FileSums> Output::collect_sums() const {
  std::vector<FileSums> all;
  for (const OutputLayout::FilePlan& file : layout_.files) all.push_back({file.name, file.size_bytes, {}, {}});
  for (std::size_t i = 0; i < layout_.tensors.size(); ++i) {
    const OutputLayout::Tensor& tensor = layout_.tensors[i];
    all[tensor.file_index].tensors.push_back({tensor.name, tensor.offset_bytes, tensor.size_bytes, sums_[i]});
  }
  for (std::size_t f = 0; f < files_.size(); ++f) {
    std::vector<FileSums::Tensor>& tensors = all[f].tensors;
    std::sort(tensors.begin(), tensors.end(), [](const FileSums::Tensor& a, const FileSums::Tensor& b) {
      return a.offset_bytes != b.offset_bytes ? a.offset_bytes < b.offset_bytes : a.size_bytes < b.size_bytes;
    });
    all[f].rest = checksum_of_rest(*files_[f], layout_.files[f].size_bytes, tensors);
  }
  all.insert(all.end(), other_sums_.begin(), other_sums_.end());
  return all;
}

/// From the device, not from memory: after the sync the system is told to forget what it holds of the file.
void Output::read_back() const {
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  for (const File* file : files_) file->forget();
  for (std::size_t i = 0; i < layout_.tensors.size(); ++i) {
    const OutputLayout::Tensor& tensor = layout_.tensors[i];
    BlockSums made(tensor.size_bytes);
    for (std::uint64_t offset = 0; offset < tensor.size_bytes; offset += buffer.size()) {
      const auto piece = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), tensor.size_bytes - offset)));
      read_tensor(i, offset, piece);
      made.add(offset, piece, {});
    }
    if (made.take() == sums_[i]) continue;
    throw Error(ErrorCode::io, fmt::format("tensor '{}' was written, but something else is read back", printable(tensor.name)),
                {.file = files_[tensor.file_index]->path().string(), .tensor = tensor.name},
                "the device or the memory of this machine is failing; write to another disk");
  }
}

void Output::commit() {
  end_journal_thread();
  throw_if_journal_failed();
  if (written_bytes_ != layout_.tensor_bytes)
    throw Error(ErrorCode::internal, fmt::format("{} of {} bytes of tensors were written", written_bytes_.load(), layout_.tensor_bytes));
  try {
    for (std::size_t f = 0; f < files_.size(); ++f) files_[f]->write(0, std::as_bytes(std::span(layout_.files[f].header)));
    write_end_padding(layout_, files_);
    if (makes_sums()) {
      const bool is_folder = staging_.what() == Staging::What::folder;
      const std::string name = checksums_path(is_folder ? "" : layout_.files.front().name, is_folder).string();
      const std::string text = write_checksums(collect_sums());
      staging_.create(name).write(0, std::as_bytes(std::span(text)));
    }
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
  try {
    staging_.sync_files();
  } catch (...) {
    lost_ = true;
    throw;
  }
  if (options_.read_back && makes_sums()) {
    try {
      read_back();
    } catch (...) {
      lost_ = true;
      throw;
    }
  }
  {
    const std::lock_guard lock(registry().mutex);
    registry().outputs.erase(this);
  }
  if (journal_) {
    append_unsaved();
    journal_->close();
  }
  sealed_ = true;
  files_.clear();
  staging_.commit();
}

// ---- OutputFolder ----

OutputFolder::OutputFolder(std::filesystem::path destination, Existing existing, bool resumable)
    : Output(std::move(destination), Staging::What::folder, existing, resumable) {}

void OutputFolder::write_text(std::string_view name, std::string_view content) {
  try {
    staging_.create(name).write(0, std::as_bytes(std::span(content)));
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
  if (makes_sums()) other_sums_.push_back({std::string(name), content.size(), checksum_of(content), {}});
}

void OutputFolder::copy_file(const std::filesystem::path& source, std::string_view name) {
  const File from(source, FileMode::read);
  Hasher hasher;
  try {
    const File& to = staging_.create(name);
    std::vector<std::byte> buffer(std::size_t{1} << 20);
    for (std::uint64_t offset = 0;;) {
      const std::size_t got = from.read_some(offset, buffer);
      const std::span<const std::byte> piece = std::span(buffer).first(got);
      to.write(offset, piece);
      if (makes_sums()) hasher.add(piece);
      offset += got;
      if (got < buffer.size()) {
        if (makes_sums()) other_sums_.push_back({std::string(name), offset, hasher.checksum(), {}});
        return;
      }
    }
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
}

// ---- OutputFile ----

OutputFile::OutputFile(std::filesystem::path destination, Existing existing, bool resumable)
    : Output(std::move(destination), Staging::What::file, existing, resumable) {}

}  // namespace weft
