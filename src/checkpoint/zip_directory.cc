#include "checkpoint/zip_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/crc32.h"
#include "base/text.h"

namespace weft {
namespace {

constexpr const char* kFetchAgain = "the file is damaged or incompletely downloaded; fetch it again";
constexpr std::uint64_t kMaxEntries = 1'000'000;
constexpr std::uint64_t kMaxDirectoryBytes = 256'000'000;
constexpr std::uint64_t kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20, kCentralBytes = 46, kLocalBytes = 30;

/// Little-endian numbers at a position of some bytes; the caller has checked that they are there.
std::uint64_t number(std::string_view bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

std::string read_at(const ByteSource& source, std::uint64_t offset, std::uint64_t size) {
  std::string bytes(checked_size(size, "zip record"), '\0');
  source.read(offset, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

/// Sizes and an offset that a zip64 extra field replaces where the plain field holds 2^32 - 1, in this order.
struct Wide {
  std::uint64_t* value;
  bool replaced;
};

class Reader {
 public:
  explicit Reader(const ByteSource& source) : source_(source) {}

  std::vector<ZipEntry> read() {
    find_directory();
    std::vector<ZipEntry> entries = read_central();
    check_local(entries);
    return entries;
  }

 private:
  [[noreturn]] void fail(std::string message, std::uint64_t byte) const {
    throw Error(ErrorCode::corrupt, "zip archive: " + std::move(message), {.file = source_.path.string(), .byte = byte}, kFetchAgain);
  }
  [[noreturn]] void refuse(std::string message, std::uint64_t byte) const {
    throw Error(ErrorCode::unsupported, "zip archive: " + std::move(message), {.file = source_.path.string(), .byte = byte});
  }

  void find_directory() {
    const std::uint64_t size = source_.size_bytes;
    if (size < kEndBytes) fail(fmt::format("the file has {} bytes, too few for one", size), 0);
    const std::uint64_t tail_bytes = std::min<std::uint64_t>(size, kEndBytes + 0xFFFF);
    const std::string tail = read_at(source_, size - tail_bytes, tail_bytes);
    std::size_t at = tail.size() - kEndBytes;
    // The last record whose comment ends with the file.
    while (!(tail.compare(at, 4, "PK\5\6") == 0 && number(tail, at + 20, 2) == tail.size() - at - kEndBytes)) {
      if (at-- == 0) fail("its directory is missing at the end of the file", size);
    }
    const std::uint64_t end = size - tail_bytes + at;
    if (number(tail, at + 4, 2) != 0 && number(tail, at + 4, 2) != 0xFFFF) refuse("it is one part of several", end);
    num_entries_ = number(tail, at + 10, 2);
    directory_bytes_ = number(tail, at + 12, 4);
    directory_ = number(tail, at + 16, 4);
    std::uint64_t directory_end = end;
    if (end >= kLocatorBytes) {
      const std::string locator = read_at(source_, end - kLocatorBytes, kLocatorBytes);
      if (locator.compare(0, 4, "PK\6\7") == 0) {
        const std::uint64_t end64 = number(locator, 8, 8);
        if (end < kLocatorBytes + kEnd64Bytes || end64 > end - kLocatorBytes - kEnd64Bytes)
          fail("its zip64 record is said to be outside the file", end - kLocatorBytes);
        const std::string record = read_at(source_, end64, kEnd64Bytes);
        if (record.compare(0, 4, "PK\6\6") != 0) fail("its zip64 record is not where it should be", end64);
        const auto take = [&](std::uint64_t& value, std::uint64_t unset, std::uint64_t wide, const char* what) {
          if (value != unset && value != wide) fail(fmt::format("its two end records differ on the {}: {} and {}", what, value, wide), end64);
          value = wide;
        };
        take(num_entries_, 0xFFFF, number(record, 32, 8), "number of entries");
        take(directory_bytes_, 0xFFFFFFFF, number(record, 40, 8), "size of the directory");
        take(directory_, 0xFFFFFFFF, number(record, 48, 8), "place of the directory");
        directory_end = end64;
      }
    }
    if (directory_ > directory_end || directory_bytes_ != directory_end - directory_)
      fail(
          fmt::format("its directory of {} bytes at {} does not end where its end record begins, at {}", directory_bytes_, directory_, directory_end),
          end);
    if (num_entries_ > kMaxEntries || directory_bytes_ > kMaxDirectoryBytes)
      refuse(fmt::format("it has {} entries, beyond any real file", num_entries_), end);
    if (num_entries_ > directory_bytes_ / kCentralBytes)
      fail(fmt::format("it claims {} entries in a directory of {} bytes", num_entries_, directory_bytes_), end);
  }

  /// Puts in what a zip64 extra field has for the values that are marked.
  void widen(std::string_view extra, std::span<const Wide> values, std::uint64_t byte) const {
    const bool any = std::any_of(values.begin(), values.end(), [](const Wide& value) { return value.replaced; });
    if (!any) return;
    while (extra.size() >= 4) {
      const std::uint64_t id = number(extra, 0, 2), size = number(extra, 2, 2);
      if (size > extra.size() - 4) fail("an extra field is longer than its room", byte);
      if (id == 1) {
        std::string_view field = extra.substr(4, size);
        for (const Wide& value : values) {
          if (!value.replaced) continue;
          if (field.size() < 8) fail("a zip64 field lacks a size that it should hold", byte);
          *value.value = number(field, 0, 8);
          field.remove_prefix(8);
        }
        return;
      }
      extra.remove_prefix(4 + size);
    }
    fail("a size is marked as zip64 but there is no zip64 field", byte);
  }

  std::vector<ZipEntry> read_central() {
    const std::string directory = read_at(source_, directory_, directory_bytes_);
    std::vector<ZipEntry> entries;
    entries.reserve(checked_size(num_entries_, "entries"));
    std::size_t at = 0;
    for (std::uint64_t i = 0; i < num_entries_; ++i) {
      const std::uint64_t byte = directory_ + at;
      if (directory.size() - at < kCentralBytes || directory.compare(at, 4, "PK\1\2") != 0)
        fail(fmt::format("entry {} of its directory is not where it should be", i), byte);
      const std::uint64_t flags = number(directory, at + 8, 2);
      const std::uint64_t name_bytes = number(directory, at + 28, 2), extra_bytes = number(directory, at + 30, 2),
                          comment_bytes = number(directory, at + 32, 2);
      if (name_bytes + extra_bytes + comment_bytes > directory.size() - at - kCentralBytes) fail("an entry passes the end of the directory", byte);
      ZipEntry entry;
      entry.name = directory.substr(at + kCentralBytes, name_bytes);
      entry.method = static_cast<std::uint16_t>(number(directory, at + 10, 2));
      entry.encrypted = (flags & 0x2041) != 0;
      entry.crc32 = static_cast<std::uint32_t>(number(directory, at + 16, 4));
      std::uint64_t stored = number(directory, at + 20, 4);
      entry.size_bytes = number(directory, at + 24, 4);
      entry.offset_bytes = number(directory, at + 42, 4);
      const Wide wide[] = {{&entry.size_bytes, entry.size_bytes == 0xFFFFFFFF},
                           {&stored, stored == 0xFFFFFFFF},
                           {&entry.offset_bytes, entry.offset_bytes == 0xFFFFFFFF}};
      widen(std::string_view(directory).substr(at + kCentralBytes + name_bytes, extra_bytes), wide, byte);
      if (entry.method == 0 && !entry.encrypted && stored != entry.size_bytes)
        fail(fmt::format("entry '{}' is stored as it is but its two sizes differ: {} and {}", printable(entry.name), stored, entry.size_bytes), byte);
      stored_.push_back(stored);
      entries.push_back(std::move(entry));
      at += kCentralBytes + name_bytes + extra_bytes + comment_bytes;
    }
    if (at != directory.size()) fail(fmt::format("{} bytes of its directory belong to no entry", directory.size() - at), directory_ + at);
    return entries;
  }

  /// Reads the local headers, in the order of their places; entries end sorted so.
  void check_local(std::vector<ZipEntry>& entries) {
    std::vector<std::size_t> order(entries.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return entries[a].offset_bytes < entries[b].offset_bytes; });
    std::vector<ZipEntry> sorted;
    sorted.reserve(entries.size());
    std::uint64_t end = 0;
    for (const std::size_t i : order) {
      ZipEntry entry = std::move(entries[i]);
      const std::uint64_t header = entry.offset_bytes;
      const std::string name = printable(entry.name);
      if (header < end) fail(fmt::format("entry '{}' overlaps the one before it", name), header);
      if (header > directory_ || directory_ - header < kLocalBytes + entry.name.size())
        fail(fmt::format("entry '{}' lies beyond the end", name), header);
      const std::string local = read_at(source_, header, kLocalBytes + entry.name.size());
      if (local.compare(0, 4, "PK\3\4") != 0) fail(fmt::format("the header of entry '{}' is not where the directory says", name), header);
      const std::uint64_t name_bytes = number(local, 26, 2), extra_bytes = number(local, 28, 2);
      if (name_bytes != entry.name.size() || local.compare(kLocalBytes, name_bytes, entry.name) != 0)
        fail(fmt::format("entry '{}' has another name in its own header", name), header);
      if (number(local, 8, 2) != entry.method) fail(fmt::format("entry '{}' has another method in its own header", name), header);
      const std::uint64_t room = directory_ - header - kLocalBytes - name_bytes;
      if (extra_bytes > room || stored_[i] > room - extra_bytes)
        fail(fmt::format("entry '{}' of {} bytes passes the end of the archive", name, stored_[i]), header);
      // With bit 3 the sizes follow the content, and these fields are not to be trusted.
      if ((number(local, 6, 2) & 8) == 0) {
        std::uint64_t size = number(local, 22, 4), stored = number(local, 18, 4);
        const Wide wide[] = {{&size, size == 0xFFFFFFFF}, {&stored, stored == 0xFFFFFFFF}};
        if (wide[0].replaced || wide[1].replaced) widen(read_at(source_, header + kLocalBytes + name_bytes, extra_bytes), wide, header);
        if (size != entry.size_bytes || stored != stored_[i])
          fail(fmt::format("entry '{}' has {} bytes by the directory and {} by its own header", name, entry.size_bytes, size), header);
      }
      entry.offset_bytes = header + kLocalBytes + name_bytes + extra_bytes;
      end = entry.offset_bytes + stored_[i];
      sorted.push_back(std::move(entry));
    }
    entries = std::move(sorted);
  }

  const ByteSource& source_;
  std::uint64_t directory_ = 0, directory_bytes_ = 0, num_entries_ = 0;
  std::vector<std::uint64_t> stored_;  ///< bytes in the file, of each entry in the directory's order
};

}  // namespace

ZipDirectory::ZipDirectory(const ByteSource& source) : path_(source.path), entries_(Reader(source).read()) {
  by_name_.reserve(entries_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i)
    if (!by_name_.emplace(entries_[i].name, i).second)
      throw Error(ErrorCode::corrupt, fmt::format("zip archive: entry '{}' is there twice", printable(entries_[i].name)),
                  {.file = path_.string(), .byte = entries_[i].offset_bytes}, "it is not clear which of the two counts; fetch the file again");
}

const ZipEntry* ZipDirectory::find(std::string_view name) const noexcept {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[found->second];
}

void ZipDirectory::require_stored(const ZipEntry& entry) const {
  if (entry.method == 0 && !entry.encrypted) return;
  throw Error(ErrorCode::unsupported,
              fmt::format("zip archive: entry '{}' is {}", printable(entry.name),
                          entry.encrypted ? std::string("encrypted") : fmt::format("compressed (method {})", entry.method)),
              {.file = path_.string(), .byte = entry.offset_bytes}, "unpack the archive and pack it again without compression");
}

std::string ZipDirectory::read_small(const ByteSource& source, const ZipEntry& entry, std::uint64_t limit_bytes) const {
  require_stored(entry);
  if (entry.size_bytes > limit_bytes)
    throw Error(ErrorCode::unsupported,
                fmt::format("zip archive: entry '{}' has {} bytes, the limit is {}", printable(entry.name), entry.size_bytes, limit_bytes),
                {.file = path_.string(), .byte = entry.offset_bytes});
  std::string content = read_at(source, entry.offset_bytes, entry.size_bytes);
  if (crc32(std::as_bytes(std::span(content))) != entry.crc32)
    throw Error(ErrorCode::corrupt, fmt::format("zip archive: the content of entry '{}' does not have its checksum", printable(entry.name)),
                {.file = path_.string(), .byte = entry.offset_bytes}, kFetchAgain);
  return content;
}

}  // namespace weft
