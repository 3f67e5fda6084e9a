#include "engine/checksum_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "base/file.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/threads.h"
#include "checkpoint/checksums.h"
#include "checkpoint/model_folder.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

bool is_prose(const std::string& name) { return name.ends_with(".md"); }

/// The list for a model, and the folder that its names are relative to.
struct Found {
  fs::path list;
  fs::path folder;
  std::optional<std::string> only;     ///< of the files in the list
  std::optional<fs::path> stands_for;  ///< the list's only file, whatever it is called by now
};

std::optional<Found> find_list(const fs::path& model) {
  if (path_kind(model) == PathKind::folder) {
    const fs::path list = checksums_path(model, true);
    if (path_kind(list) != PathKind::file) return std::nullopt;
    return Found{list, model, {}, {}};
  }
  if (const fs::path list = checksums_path(model, false); path_kind(list) == PathKind::file) return Found{list, model.parent_path(), {}, model};
  if (const fs::path list = checksums_path(model.parent_path(), true); path_kind(list) == PathKind::file)
    return Found{list, model.parent_path(), model.filename().string(), {}};
  return std::nullopt;
}

}  // namespace

class ChecksumList::Comparison {
 public:
  Comparison(Found found, const JobOptions& options) : found_(std::move(found)), options_(options) {
    try {
      sums_ = read_checksums(found_.list);
    } catch (const Error& e) {
      problem(e, found_.list.filename().string());
      return;
    }
    if (found_.only) std::erase_if(sums_, [this](const FileSums& file) { return file.name != *found_.only; });
    if (found_.stands_for && sums_.size() == 1) sums_.front().name = found_.stands_for->filename().string();
    for (std::size_t f = 0; f < sums_.size(); ++f) {
      is_told_.emplace_back(sums_[f].tensors.size(), false);
      open(f);
    }
  }

  [[nodiscard]] std::optional<Place> find(const fs::path& file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    for (std::size_t f = 0; f < sums_.size(); ++f) {
      if (!is_open_[f] || (found_.folder / sums_[f].name).lexically_normal() != file.lexically_normal()) continue;
      const std::vector<FileSums::Tensor>& tensors = sums_[f].tensors;  // by offset
      const auto at = std::lower_bound(tensors.begin(), tensors.end(), offset_bytes,
                                       [](const FileSums::Tensor& tensor, std::uint64_t offset) { return tensor.offset_bytes < offset; });
      for (auto tensor = at; tensor != tensors.end() && tensor->offset_bytes == offset_bytes; ++tensor)
        if (tensor->size_bytes == size_bytes) return Place{f, static_cast<std::size_t>(tensor - tensors.begin())};
    }
    return std::nullopt;
  }

  void tell(Place place, std::span<const Checksum> blocks) {
    const FileSums::Tensor& tensor = sums_[place.file].tensors[place.tensor];
    const std::lock_guard lock(mutex_);
    is_told_[place.file][place.tensor] = true;
    for (std::size_t b = 0; b < tensor.blocks.size(); ++b)
      if (b >= blocks.size() || blocks[b] != tensor.blocks[b]) add_damage(place, changed(place, b));
  }

  ChecksumCheck check() {
    check_blocks();
    for (const auto& [where, what] : damage_) {
      const std::string& name = sums_[where.first].tensors[where.second].name;
      problem("checksum", sums_[where.first].name, printable(name),
              fmt::format("tensor '{}' is damaged: {}{}", printable(name), what.second,
                          what.first > 1 ? fmt::format(" ({} blocks in all)", what.first) : std::string()));
    }
    return std::move(result_);
  }

 private:
  struct Block {
    Place place;
    std::uint64_t number;
  };

  void problem(const std::string& code, const std::string& file, const std::string& tensor, std::string message) {
    result_.problems.push_back({code, printable(file), tensor, std::move(message)});
  }
  void problem(const Error& error, const std::string& file) { problem(std::string(to_string(error.code())), file, "", error.message()); }

  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> range_of(Place place, std::uint64_t block) const {
    const FileSums::Tensor& tensor = sums_[place.file].tensors[place.tensor];
    const std::uint64_t begin = tensor.offset_bytes + block * kSumBlockBytes;
    return {begin, std::min(begin + kSumBlockBytes, tensor.offset_bytes + tensor.size_bytes)};
  }
  [[nodiscard]] std::string changed(Place place, std::uint64_t block) const {
    const auto [begin, end] = range_of(place, block);
    return fmt::format("bytes {} to {} of '{}' are not what was written", begin, end, printable(sums_[place.file].name));
  }
  /// Called with the lock held.
  void add_damage(Place place, std::string what) {
    auto& [count, first] = damage_[{place.file, place.tensor}];
    if (++count == 1) first = std::move(what);
  }

  /// Size and everything outside of tensors now, the blocks later.
  void open(std::size_t f) {
    const FileSums& sums = sums_[f];
    files_.emplace_back();
    is_open_.push_back(false);
    try {
      // A list from a stranger must not name files elsewhere.
      bool inside = !sums.name.empty() && fs::path(sums.name).is_relative();
      for (const fs::path& part : fs::path(sums.name)) inside = inside && part != ".." && part != ".";
      if (!inside)
        return problem("corrupt", found_.list.filename().string(), "",
                       fmt::format("the list of checksums names '{}', which is not inside the model", printable(sums.name)));
      const fs::path path = found_.folder / sums.name;
      if (path_kind(path) == PathKind::nothing) {
        if (!is_prose(sums.name)) problem("not_found", sums.name, "", fmt::format("'{}' is missing", printable(sums.name)));
        return;
      }
      File file(path, FileMode::read);
      std::string differs;
      if (const std::uint64_t size = file.size_bytes(); size != sums.size_bytes) {
        differs = fmt::format("'{}' has {} bytes, but {} were written", printable(sums.name), size, sums.size_bytes);
      } else if (checksum_of_rest(file, sums.size_bytes, sums.tensors) != sums.rest) {
        differs = sums.tensors.empty() ? fmt::format("'{}' is not what was written", printable(sums.name))
                                       : fmt::format("the header of '{}' is not what was written", printable(sums.name));
      }
      if (!differs.empty()) {
        differs += fmt::format("; if it was changed on purpose, remove '{}'", found_.list.filename().string());
        // People write on in a model's card.
        if (is_prose(sums.name)) {
          result_.notes.push_back(std::move(differs));
          return;
        }
        problem("checksum", sums.name, "", std::move(differs));
      }
      files_.back() = std::move(file);
      is_open_.back() = true;
    } catch (const Error& e) {
      if (e.code() == ErrorCode::out_of_memory) throw;
      problem(e, sums.name);
    }
  }

  void check_blocks() {
    std::vector<Block> blocks;
    std::uint64_t total_bytes = 0;
    for (std::size_t f = 0; f < sums_.size(); ++f) {
      for (std::size_t t = 0; is_open_[f] && t < sums_[f].tensors.size(); ++t) {
        if (is_told_[f][t]) continue;
        total_bytes += sums_[f].tensors[t].size_bytes;
        for (std::uint64_t b = 0; b < sums_[f].tensors[t].blocks.size(); ++b) blocks.push_back({{f, t}, b});
      }
    }
    if (blocks.empty()) return;
    ProgressMeter progress(options_.on_progress, "checking", total_bytes);
    std::atomic<std::size_t> next = 0;
    WorkerPool pool(options_.threads);
    pool.run([&](int) {
      std::vector<std::byte> buffer(std::size_t{1} << 18);
      while (!pool.stop_token().stop_requested()) {
        if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::interrupted, "interrupted");
        const std::size_t k = next++;
        if (k >= blocks.size()) return;
        const Block& block = blocks[k];
        const auto [begin, end] = range_of(block.place, block.number);
        Hasher hasher;
        std::string wrong;
        try {
          for (std::uint64_t at = begin; at < end;) {
            const auto piece = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), end - at)));
            files_[block.place.file].read(at, piece);
            hasher.add(piece);
            at += piece.size();
          }
          if (hasher.checksum() != sums_[block.place.file].tensors[block.place.tensor].blocks[block.number])
            wrong = changed(block.place, block.number);
        } catch (const Error& e) {
          wrong = e.message();
        }
        progress.add(end - begin);
        if (wrong.empty()) continue;
        const std::lock_guard lock(mutex_);
        add_damage(block.place, std::move(wrong));
      }
    });
    progress.finish();
  }

  Found found_;
  const JobOptions& options_;
  std::vector<FileSums> sums_;
  std::vector<File> files_;
  std::vector<bool> is_open_;
  std::mutex mutex_;
  std::vector<std::vector<bool>> is_told_;                                                       ///< [file][tensor]
  std::map<std::pair<std::size_t, std::size_t>, std::pair<std::uint64_t, std::string>> damage_;  ///< file, tensor: how many blocks, what of the first
  ChecksumCheck result_;
};

ChecksumList::ChecksumList(std::unique_ptr<Comparison> comparison) : comparison_(std::move(comparison)) {}
ChecksumList::~ChecksumList() = default;
ChecksumList::ChecksumList(ChecksumList&&) noexcept = default;
ChecksumList& ChecksumList::operator=(ChecksumList&&) noexcept = default;

std::optional<ChecksumList> ChecksumList::of(const fs::path& model, const JobOptions& options) {
  std::optional<Found> found = find_list(model);
  if (!found) return std::nullopt;
  return ChecksumList(std::make_unique<Comparison>(*std::move(found), options));
}
std::optional<ChecksumList::Place> ChecksumList::find(const fs::path& file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
  return comparison_->find(file, offset_bytes, size_bytes);
}
void ChecksumList::tell(Place place, std::span<const Checksum> blocks) { comparison_->tell(place, blocks); }
ChecksumCheck ChecksumList::check() { return comparison_->check(); }

std::optional<ChecksumCheck> check_checksums(const fs::path& model, const JobOptions& options) {
  std::optional<ChecksumList> list = ChecksumList::of(model, options);
  if (!list) return std::nullopt;
  return list->check();
}

}  // namespace weft::engine
