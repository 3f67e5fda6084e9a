#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>

#include "adapt/folded_model.h"
#include "base/budget.h"
#include "base/check.h"
#include "base/file.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/threads.h"
#include "checkpoint/block_sums.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "checkpoint/safetensors.h"
#include "engine/checksum_check.h"
#include "engine/model_config.h"
#include "engine/tokenizer_summary.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "weft/error.h"
#include "weft/inspect.h"

namespace fs = std::filesystem;

namespace weft {
namespace {

/// Of one kind; more only repeat what these say.
constexpr std::uint64_t kMaxProblemsOfOneCode = 200;

/// Damage is what verify is there to find; everything else (a wrong request, no memory, an interruption, our bugs) is an error of the run.
bool is_damage(const Error& error) {
  switch (error.code()) {
    case ErrorCode::corrupt:
    case ErrorCode::unsupported:
    case ErrorCode::not_found:
    case ErrorCode::io:
      return true;
    default:
      return false;
  }
}

/// What reading the values of one tensor showed.
struct Finding {
  std::uint64_t num_nan = 0;
  std::uint64_t num_infinite = 0;
  std::uint64_t first_element = ~std::uint64_t{0};
  std::uint64_t num_bad_booleans = 0;
  std::optional<Error> unreadable;
};

/// Carries an Error past the places that turn damage into results.
struct NotForUs {
  Error error;
};

/// Takes any JSON and keeps nothing.
class NullEvents final : public JsonEvents {
 public:
  void null() override {}
  void boolean(bool) override {}
  void number(std::string_view) override {}
  void string(std::string&) override {}
  void begin_object() override {}
  void key(std::string&) override {}
  void end_object() override {}
  void begin_array() override {}
  void end_array() override {}
};

class Verifier {
 public:
  Verifier(std::string_view model, const JobOptions& options)
      : options_(options), path_(resolve_model(model).path), folder_(folder_of_model(path_)) {}

  /// For a model with adapters folded in.
  Verifier(std::string_view model, std::shared_ptr<const Checkpoint> checkpoint, const JobOptions& options) : options_(options), path_(checkpoint->path()) {
    parts_.push_back({std::move(checkpoint), printable(model)});
  }

  /// Only what folding changes: everything else was read with the model.
  VerifyReport run_folded() {
    const Checkpoint& checkpoint = *parts_.front().checkpoint;
    for (const std::string& warning : checkpoint.warnings()) note("{}", warning);
    for (const TensorInfo& tensor : checkpoint.tensors())
      if (adapt::is_changed(checkpoint, tensor.name)) all_.push_back({&checkpoint, &tensor, 0});
    read_payloads();
    report_.ok = report_.problems.empty();
    return std::move(report_);
  }

  VerifyReport run() {
    open_files();
    index_names();
    check_index();
    read_payloads();
    check_config();
    check_companions();
    check_sums();
    for (const auto& [code, count] : problems_of_code_)
      if (count > kMaxProblemsOfOneCode) note("{} further problems of the kind '{}' are not listed", count - kMaxProblemsOfOneCode, code);
    report_.ok = report_.problems.empty();
    return std::move(report_);
  }

 private:
  /// One file that could be opened.
  struct Part {
    std::shared_ptr<const Checkpoint> checkpoint;
    std::string file;
  };
  struct Located {
    const Checkpoint* checkpoint;
    const TensorInfo* tensor;
    std::size_t part;
  };

  // ---- Reporting ----

  void problem(std::string code, std::string file, std::string tensor, std::string message) {
    if (++problems_of_code_[code] <= kMaxProblemsOfOneCode)
      report_.problems.push_back({std::move(code), std::move(file), std::move(tensor), std::move(message)});
  }
  template <typename... Args>
  void note(fmt::format_string<Args...> text, Args&&... args) {
    report_.notes.push_back(fmt::format(text, std::forward<Args>(args)...));
  }
  void problem(const Error& error, const std::string& file) {
    std::string message = error.message();
    if (error.place().byte) message += fmt::format(" (byte {})", *error.place().byte);
    problem(std::string(to_string(error.code())), file, error.place().tensor, std::move(message));
  }
  /// Runs a check; what it finds damaged becomes a problem of that file.
  template <typename Check>
  bool guarded(const std::string& file, Check&& check) {
    try {
      check();
      return true;
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      problem(error, file);
      return false;
    }
  }
  [[nodiscard]] static std::string name_of(const fs::path& path) { return printable(path.filename().string()); }

  // ---- Files ----

  void open_files() {
    fs::path file = path_;
    if (path_kind(path_) == PathKind::folder) {
      try {
        const FolderWeights weights = find_weights(path_);
        for (const std::string& warning : weights.warnings) note("{}", warning);
        file = weights.file;
      } catch (const Error& error) {
        // A folder with weights of this format that is not whole is damage; one without any is a wrong request.
        std::vector<std::string> files;
        for (const std::string& name : list_directory(path_))
          if (name.ends_with(".safetensors") && error.code() == ErrorCode::not_found) files.push_back(name);
        if (files.empty()) throw;
        problem(error, name_of(path_));
        for (const std::string& name : files) open_part(path_ / name);
        return;
      }
    }
    if (!file.filename().string().ends_with(".json")) return open_part(file);
    index_path_ = file;
    if (!guarded(name_of(file), [&] { index_ = read_shard_index(file); })) {
      // Without its index every shard can still be read.
      const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
      for (const std::string& name : list_directory(folder))
        if (name.ends_with(".safetensors") && path_kind(folder / name) == PathKind::file) open_part(folder / name);
      return;
    }
    report_.checked_bytes += File(file, FileMode::read).size_bytes();
    part_of_shard_.resize(index_->shards.size());
    for (std::size_t i = 0; i < index_->shards.size(); ++i) {
      const std::string& shard = index_->shards[i];
      const bool opened = guarded(printable(shard), [&] { open_part(shard_path(file, shard)); });
      if (opened && !parts_.empty() && parts_.back().file == printable(shard)) part_of_shard_[i] = parts_.size() - 1;
    }
  }

  void open_part(const fs::path& file) {
    const std::string name = name_of(file);
    const bool opened = guarded(name, [&] {
      try {
        parts_.push_back({open_weights_file(file, file, {}, {.keep_prefix = index_.has_value()}), name});
      } catch (const Error& error) {
        // The only file is of another format: a wrong request. Among shards it is damage.
        if (error.code() == ErrorCode::unsupported && !index_) throw NotForUs{error};
        throw;
      }
    });
    if (!opened) {
      some_unreadable_ = true;
      return;
    }
    const Checkpoint& checkpoint = *parts_.back().checkpoint;
    std::uint64_t payload_bytes = 0;
    for (const TensorInfo& tensor : checkpoint.tensors()) payload_bytes += tensor.size_bytes;
    // The header was read and checked. Tensors that share their bytes may have more than the file.
    report_.checked_bytes += checkpoint.files()[0].size_bytes - std::min(payload_bytes, checkpoint.files()[0].size_bytes);
  }

  void index_names() {
    for (std::size_t part = 0; part < parts_.size(); ++part)
      for (const TensorInfo& tensor : parts_[part].checkpoint->tensors()) {
        const auto [first, is_new] = by_name_.emplace(tensor.name, Located{parts_[part].checkpoint.get(), &tensor, part});
        if (!is_new)
          problem("corrupt", parts_[part].file, printable(tensor.name),
                  fmt::format("tensor '{}' is in '{}' too", printable(tensor.name), parts_[first->second.part].file));
        all_.push_back({parts_[part].checkpoint.get(), &tensor, part});
      }
  }

  void check_index() {
    if (!index_) return;
    std::unordered_map<std::string_view, bool> listed(index_->entries.size());
    for (const ShardIndex::Entry& entry : index_->entries) {
      listed.emplace(entry.tensor, true);
      const std::optional<std::size_t> part = part_of_shard_[entry.shard];
      if (!part) {  // the shard is missing or damaged, which was said
        some_unreadable_ = true;
        continue;
      }
      const auto found = by_name_.find(entry.tensor);
      if (found != by_name_.end() && found->second.part == *part) continue;
      const std::string shard = printable(index_->shards[entry.shard]);
      problem("missing_tensor", shard, printable(entry.tensor),
              fmt::format("the index places tensor '{}' in '{}', {}", printable(entry.tensor), shard,
                          found == by_name_.end() ? "which lacks it" : fmt::format("but it is in '{}'", parts_[found->second.part].file)));
    }
    std::uint64_t num_unlisted = 0, total_bytes = 0;
    const TensorInfo* first = nullptr;
    for (const Located& located : all_) {
      total_bytes += located.tensor->size_bytes;
      if (listed.contains(located.tensor->name)) continue;
      ++num_unlisted;
      if (!first) first = located.tensor;
    }
    if (num_unlisted > 0) note("{} tensors of the shards are not in the index, the first is '{}'", num_unlisted, printable(first->name));
    if (!some_unreadable_ && index_->total_size != std::to_string(total_bytes)) {
      if (index_->total_size.empty()) {
        note("the index gives no total_size; the tensors have {} bytes", total_bytes);
      } else {
        note("the index gives total_size {} but the tensors have {} bytes", printable(index_->total_size), total_bytes);
      }
    }
  }

  // ---- Values ----

  void read_payloads() {
    std::uint64_t total_bytes = 0;
    for (const Located& located : all_) total_bytes += located.tensor->size_bytes;
    WorkerPool pool(options_.threads);
    MemoryBudget budget(options_.memory_bytes);
    // A multiple of 64, so that no chunk ends inside an element.
    const std::uint64_t share = budget.limit_bytes() / (2 * static_cast<std::uint64_t>(pool.num_threads()));
    const std::uint64_t wanted = options_.chunk_bytes != 0 ? options_.chunk_bytes : std::clamp<std::uint64_t>(share, 1 << 16, 4 << 20);
    const std::size_t chunk_bytes = checked_size(std::max<std::uint64_t>(wanted / 64 * 64, 64), "chunk");
    ProgressMeter progress(options_.on_progress, "verifying", total_bytes);
    // What has checksums is summed while it is at hand.
    sums_ = engine::ChecksumList::of(path_, options_);
    std::vector<std::unique_ptr<Summed>> summed(all_.size());  // made at a tensor's first chunk, null where the list does not know it

    std::mutex mutex;
    std::size_t next_tensor = 0;
    std::uint64_t next_offset = 0;
    std::map<std::size_t, Finding> findings;
    std::uint64_t num_read_bytes = 0;

    pool.run([&](int) {
      const MemoryBudget::Share held = budget.acquire(chunk_bytes + kTileElements * sizeof(float), "reading tensors");
      std::vector<std::byte> chunk(chunk_bytes);
      std::vector<float> tile(kTileElements);
      while (!pool.stop_token().stop_requested()) {
        if (options_.cancel && options_.cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::interrupted, "verifying was cancelled");
        std::size_t number = 0;
        std::uint64_t offset = 0;
        Summed* sums = nullptr;
        {
          const std::lock_guard lock(mutex);
          while (next_tensor < all_.size() && next_offset >= all_[next_tensor].tensor->size_bytes) {
            ++next_tensor;
            next_offset = 0;
          }
          if (next_tensor == all_.size()) return;
          number = next_tensor;
          offset = next_offset;
          next_offset += chunk_bytes;
          if (offset == 0) summed[number] = summed_of(all_[number]);
          sums = summed[number].get();
        }
        const Located& located = all_[number];
        const TensorInfo& tensor = *located.tensor;
        const std::span<std::byte> data(chunk.data(), static_cast<std::size_t>(std::min<std::uint64_t>(chunk_bytes, tensor.size_bytes - offset)));
        if (offset == 0) located.checkpoint->will_read(tensor, 0, std::min<std::uint64_t>(tensor.size_bytes, 8 * std::uint64_t{chunk_bytes}));
        Finding found;
        try {
          located.checkpoint->read_bytes(tensor, offset, data);
          look_at(tensor.dtype, offset * 8 / static_cast<std::uint64_t>(info(tensor.dtype).bits), data, tile, found);
          if (sums != nullptr)
            sums->blocks.add(offset, data, [&](std::uint64_t at, std::span<std::byte> out) { located.checkpoint->read_bytes(tensor, at, out); });
        } catch (const Error& error) {
          if (!is_damage(error)) throw;
          found.unreadable = error;
        }
        progress.add(data.size());
        const std::lock_guard lock(mutex);
        if (!found.unreadable) num_read_bytes += data.size();
        if (found.num_nan + found.num_infinite + found.num_bad_booleans == 0 && !found.unreadable) continue;
        Finding& sum = findings[number];
        sum.num_nan += found.num_nan;
        sum.num_infinite += found.num_infinite;
        sum.first_element = std::min(sum.first_element, found.first_element);
        sum.num_bad_booleans += found.num_bad_booleans;
        if (found.unreadable && !sum.unreadable) sum.unreadable = found.unreadable;
      }
    });
    progress.finish();
    report_.checked_bytes += num_read_bytes;
    for (const auto& sums : summed)
      if (sums != nullptr && sums->blocks.is_complete()) sums_->tell(sums->place, sums->blocks.take());
    for (const auto& [number, finding] : findings) tell(all_[number], finding);
    for (const Part& part : parts_) {
      guarded(part.file, [&part] { part.checkpoint->verify_checksums(); });
      guarded(part.file, [&part] { part.checkpoint->check_unchanged(); });
    }
  }

  /// A tensor that is in the list of checksums, as it is read.
  struct Summed {
    engine::ChecksumList::Place place;
    BlockSums blocks;
  };
  [[nodiscard]] std::unique_ptr<Summed> summed_of(const Located& located) const {
    if (!sums_) return nullptr;
    const TensorInfo& tensor = *located.tensor;
    const auto place = sums_->find(located.checkpoint->files()[tensor.file_index].path, tensor.offset_bytes, tensor.size_bytes);
    return place ? std::unique_ptr<Summed>(new Summed{*place, BlockSums(tensor.size_bytes)}) : nullptr;
  }

  static constexpr std::uint64_t kMaxTreeBytes = 4'000'000;
  static constexpr std::size_t kTileElements = 1 << 14;

  /// Counts what is no finite number. first: of the chunk's first element in the tensor.
  static void look_at(DType dtype, std::uint64_t first, std::span<const std::byte> data, std::span<float> tile, Finding& found) {
    const auto see = [&found](std::uint64_t element, bool is_nan) {
      ++(is_nan ? found.num_nan : found.num_infinite);
      found.first_element = std::min(found.first_element, element);
    };
    if (dtype == DType::boolean) {
      for (const std::byte byte : data) found.num_bad_booleans += std::to_integer<unsigned>(byte) > 1;
    } else if (dtype == DType::f64) {
      // Decoding to float32 would make infinities of what is finite here.
      for (std::size_t i = 0; i < data.size() / 8; ++i) {
        double value = 0;
        std::memcpy(&value, data.data() + 8 * i, 8);
        if (!std::isfinite(value)) see(first + i, std::isnan(value));
      }
    } else if (dtype == DType::c64 || is_decodable_float(dtype)) {
      const DType part = dtype == DType::c64 ? DType::f32 : dtype;
      const std::uint64_t parts_of_element = dtype == DType::c64 ? 2 : 1;
      const std::size_t bits = static_cast<std::size_t>(info(part).bits);
      const std::size_t num_parts = data.size() * 8 / bits;
      for (std::size_t begin = 0; begin < num_parts; begin += tile.size()) {
        const std::span<float> values = tile.first(std::min(tile.size(), num_parts - begin));
        math::decode(part, data.subspan(begin * bits / 8, values.size() * bits / 8), values);
        if (math::count_non_finite(values) == 0) continue;
        for (std::size_t i = 0; i < values.size(); ++i)
          if (!std::isfinite(values[i])) see(first + (begin + i) / parts_of_element, std::isnan(values[i]));
      }
    }
  }

  void tell(const Located& located, const Finding& finding) {
    const std::string& file = parts_[located.part].file;
    const std::string name = printable(located.tensor->name);
    if (finding.unreadable)
      problem(std::string(to_string(finding.unreadable->code())), file, name, "tensor '" + name + "': " + finding.unreadable->message());
    if (finding.num_bad_booleans > 0)
      note("tensor '{}' in '{}' holds {} bytes that are neither true (1) nor false (0)", name, file, finding.num_bad_booleans);
    if (finding.num_nan + finding.num_infinite == 0) return;
    const std::string text = fmt::format("tensor '{}' ({} {}) holds {} NaN and {} infinities among {} elements, the first at element {}", name,
                                         to_string(located.tensor->dtype), to_string(located.tensor->shape), finding.num_nan, finding.num_infinite,
                                         located.tensor->num_elements, finding.first_element);
    // Masks in buffers are made of infinities.
    if (options_.allow_non_finite || model::role_of(nullptr, located.tensor->name) == model::Role::buffer) {
      note("{}", text);
    } else {
      problem("non_finite", file, name, text);
    }
  }

  // ---- Config ----

  void check_config() {
    if (!folder_) return;
    std::optional<Json> config;
    if (!guarded("config.json", [&] { config = read_model_config(*folder_); })) return;
    if (!config) return note("there is no config.json, so that nothing tells which tensors belong to the model");
    const std::string class_name = architecture_class(*config);
    const model::Architecture* architecture = model::find_architecture(*config);
    if (!architecture)
      return note("the architecture '{}' is not in weft's table, so that its tensors are not compared with the config", printable(class_name));
    if (const std::string quantization = describe_quantization(*config); !quantization.empty())
      return note("the model is quantized ({}), so that its tensors are not compared with the config", quantization);
    try {
      const std::vector<model::TensorSlot> slots = model::tensor_slots(*architecture, *config, model::num_layers(*architecture, *config));
      compare(*architecture, *config, slots);
    } catch (const Error& error) {
      if (!is_damage(error) && error.code() != ErrorCode::invalid_argument) throw;
      problem("metadata", "config.json", "", error.message());
    }
  }

  [[nodiscard]] const Located* find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &found->second;
  }
  [[nodiscard]] const Located* find(const std::string& name, const std::vector<std::string>& others) const {
    if (const Located* found = find(name)) return found;
    for (const std::string& other : others)
      if (const Located* found = find(other)) return found;
    return nullptr;
  }

  void compare(const model::Architecture& architecture, const Json& config, const std::vector<model::TensorSlot>& slots) {
    const bool is_tied = model::is_tied(architecture, config);
    std::set<const TensorInfo*> known;
    for (const model::TensorSlot& slot : slots) {
      const Located* found = find(slot.name, slot.aliases);
      const Located* stand_in = slot.tied_names.empty() ? nullptr : find(slot.tied_names.front(), slot.tied_names);
      if (!found) {
        if (!slot.expected || some_unreadable_ || (stand_in && is_tied)) continue;
        problem("missing_tensor", "", slot.name,
                fmt::format("tensor '{}' is missing; {} models with this config have it", slot.name, architecture.name));
        continue;
      }
      known.insert(found->tensor);
      const TensorInfo& tensor = *found->tensor;
      if (slot.shape && *slot.shape != tensor.shape)
        problem("shape", parts_[found->part].file, printable(tensor.name),
                fmt::format("tensor '{}' has the shape {} but the config asks for {}", printable(tensor.name), to_string(tensor.shape),
                            to_string(*slot.shape)));
      if (stand_in && is_tied && !same_bytes(*found, *stand_in))
        note("the config ties '{}' to '{}' but both are stored and differ; transformers uses the latter", printable(tensor.name),
             printable(stand_in->tensor->name));
      if (slot.role == model::Role::embed && !tensor.shape.empty()) compare_with_tokenizer(tensor);
    }
    std::uint64_t num_dropped = 0;
    for (const Located& located : all_) {
      if (known.contains(located.tensor)) continue;
      const std::string name = printable(located.tensor->name);
      if (model::is_dropped(architecture, located.tensor->name)) {
        ++num_dropped;
      } else if (find(located.tensor->name)->tensor == located.tensor) {  // a second one of the same name was told of
        problem("unexpected_tensor", parts_[located.part].file, name,
                fmt::format("tensor '{}' is not part of {} models with this config", name, architecture.name));
      }
    }
    if (num_dropped > 0) note("{} tensors are buffers of old versions that nobody reads", num_dropped);
  }

  /// Compares in small pieces; false as well when one cannot be read, which was told.
  static bool same_bytes(const Located& a, const Located& b) {
    if (a.tensor->dtype != b.tensor->dtype || a.tensor->shape != b.tensor->shape) return false;
    std::vector<std::byte> from_a(1 << 20), from_b(1 << 20);
    try {
      for (std::uint64_t offset = 0; offset < a.tensor->size_bytes; offset += from_a.size()) {
        const std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(from_a.size(), a.tensor->size_bytes - offset));
        a.checkpoint->read_bytes(*a.tensor, offset, std::span(from_a).first(size));
        b.checkpoint->read_bytes(*b.tensor, offset, std::span(from_b).first(size));
        if (std::memcmp(from_a.data(), from_b.data(), size) != 0) return false;
      }
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      return false;
    }
    return true;
  }

  void compare_with_tokenizer(const TensorInfo& embedding) {
    TokenizerSummary tokenizer;
    try {
      tokenizer = summarize_tokenizer(*folder_);
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      return;  // told of with the other files
    }
    const std::uint64_t num_rows = static_cast<std::uint64_t>(embedding.shape[0]);
    if (tokenizer.vocab_size > num_rows)
      note("the tokenizer has {} tokens but '{}' only {} rows", tokenizer.vocab_size, printable(embedding.name), num_rows);
    if (tokenizer.vocab_size != 0 && tokenizer.vocab_size < num_rows)
      note("'{}' has {} rows for the {} tokens of the tokenizer; more are usual, to fill up a multiple of 64", printable(embedding.name), num_rows,
           tokenizer.vocab_size);
  }

  /// What was written is known where there is a list of checksums.
  void check_sums() {
    if (!sums_) return;
    engine::ChecksumCheck found = sums_->check();
    for (VerifyProblem& one : found.problems) problem(std::move(one.code), std::move(one.file), std::move(one.tensor), std::move(one.message));
    for (const std::string& text : found.notes) note("{}", text);
  }

  void check_companions() {
    if (!folder_) return;
    for (const std::string& name : companion_files(*folder_)) {
      if (!name.ends_with(".json")) continue;
      guarded(name, [&] {
        const fs::path file = *folder_ / name;
        report_.checked_bytes += File(file, FileMode::read).size_bytes();
        if (name == "config.json") return;  // was read before
        // A tree of a tokenizer would take ten times its bytes; Python's numbers and duplicate keys matter in configs, which are small.
        if (const File opened(file, FileMode::read); opened.size_bytes() > kMaxTreeBytes) {
          NullEvents events;
          parse_json_events(opened, 0, opened.size_bytes(), {.max_bytes = 1'000'000'000, .max_values = 1'000'000'000}, events);
        } else {
          (void)read_json_file(file);
        }
      });
    }
  }

  const JobOptions& options_;
  fs::path path_;
  std::optional<fs::path> folder_;
  VerifyReport report_;
  std::map<std::string, std::uint64_t> problems_of_code_;
  fs::path index_path_;
  std::optional<ShardIndex> index_;
  std::optional<engine::ChecksumList> sums_;
  std::vector<Part> parts_;
  std::vector<std::optional<std::size_t>> part_of_shard_;  ///< by number of the shard in the index; empty where it could not be opened
  bool some_unreadable_ = false;
  std::unordered_map<std::string_view, Located> by_name_;
  std::vector<Located> all_;
};

}  // namespace

namespace {

/// The model, each adapter, and what the two make together.
VerifyReport verify_folded(std::string_view model, const adapt::ModelWithAdapters& parts, const JobOptions& options) {
  VerifyReport report;
  const auto add = [&report](VerifyReport other) {
    report.ok = report.ok && other.ok;
    report.checked_bytes += other.checked_bytes;
    std::move(other.problems.begin(), other.problems.end(), std::back_inserter(report.problems));
    std::move(other.notes.begin(), other.notes.end(), std::back_inserter(report.notes));
  };
  const auto guarded = [&report](auto&& check) {
    try {
      check();
    } catch (const Error& error) {
      if (!is_damage(error) && error.code() != ErrorCode::invalid_argument) throw;
      report.ok = false;
      report.problems.push_back({std::string(to_string(error.code())), error.place().file, error.place().tensor, error.message()});
    }
  };
  add(verify(parts.model, options));
  for (const std::string& adapter : parts.adapters) {
    const fs::path path = resolve_model(adapter).path;
    guarded([&] { add(verify(adapt::open_adapter(path).tensors->path().string(), options)); });
  }
  if (!report.ok) return report;  // what they make could only repeat it
  std::shared_ptr<const Checkpoint> folded;
  guarded([&] { folded = open_checkpoint(model); });
  if (folded == nullptr) return report;
  VerifyReport made = Verifier(model, std::move(folded), options).run_folded();
  made.checked_bytes = 0;  // nothing that is stored
  add(std::move(made));
  return report;
}

}  // namespace

VerifyReport verify(std::string_view model, const JobOptions& options) {
  if (const adapt::ModelWithAdapters parts = adapt::split_adapters(model); !parts.adapters.empty()) return verify_folded(model, parts, options);
  try {
    return Verifier(model, options).run();
  } catch (const NotForUs& other) {
    // Not a model at all; unless it is known to have been one.
    std::optional<engine::ChecksumCheck> found = engine::check_checksums(resolve_model(model).path, options);
    if (!found || found->problems.empty()) throw other.error;
    VerifyReport report;
    report.ok = false;
    report.problems = std::move(found->problems);
    report.notes = std::move(found->notes);
    return report;
  }
}

}  // namespace weft
