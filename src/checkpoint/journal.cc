#include "checkpoint/journal.h"

#include <fmt/format.h>

#include <cstring>
#include <map>

#include "base/check.h"
#include "base/text.h"
#include "weft/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// Changes whenever the meaning of anything in the file does: a job is never resumed by a version that would read it otherwise.
constexpr std::string_view kMagic = "weftjob1";
constexpr std::uint64_t kMaxJournalBytes = std::uint64_t{4} << 30;  // a million tensors take some 60 MB

// ---- bytes ----

void put(std::vector<std::byte>& out, std::uint64_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i) & 0xFF));
}

void put(std::vector<std::byte>& out, std::string_view text) {
  put(out, text.size(), 4);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

/// Takes values off the front; once something is missing, everything is zero and ok() false.
class Taker {
 public:
  explicit Taker(std::span<const std::byte> data) : data_(data) {}
  std::uint64_t number(int num_bytes) {
    std::uint64_t value = 0;
    if (!has(static_cast<std::size_t>(num_bytes))) return 0;
    for (int i = 0; i < num_bytes; ++i) value |= std::to_integer<std::uint64_t>(data_[static_cast<std::size_t>(i)]) << (8 * i);
    data_ = data_.subspan(static_cast<std::size_t>(num_bytes));
    return value;
  }
  std::string text() {
    const auto size = static_cast<std::size_t>(number(4));
    if (!has(size)) return {};
    std::string text(reinterpret_cast<const char*>(data_.data()), size);
    data_ = data_.subspan(size);
    return text;
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool at_end() const { return ok_ && data_.empty(); }

 private:
  bool has(std::size_t size) {
    ok_ = ok_ && size <= data_.size();
    return ok_;
  }
  std::span<const std::byte> data_;
  bool ok_ = true;
};

/// Length, payload, CRC.
void put_framed(std::vector<std::byte>& out, std::span<const std::byte> payload, std::uint32_t& crc) {
  const std::size_t begin = out.size();
  put(out, payload.size(), 4);
  out.insert(out.end(), payload.begin(), payload.end());
  crc = crc32c(std::span(out).subspan(begin), crc);
  put(out, crc, 4);
}

/// The payload at `at`, which moves behind it; empty when what is there is not whole.
std::optional<std::span<const std::byte>> take_framed(std::span<const std::byte> data, std::size_t& at, std::uint32_t& crc) {
  if (data.size() - at < 8) return std::nullopt;
  const auto size = static_cast<std::size_t>(Taker(data.subspan(at)).number(4));
  if (data.size() - at - 8 < size) return std::nullopt;
  const std::uint32_t expected = crc32c(data.subspan(at, 4 + size), crc);
  if (Taker(data.subspan(at + 4 + size)).number(4) != expected) return std::nullopt;
  const std::span<const std::byte> payload = data.subspan(at + 4, size);
  at += size + 8;
  crc = expected;
  return payload;
}

std::vector<std::byte> bytes_of(const JournalHead& head) {
  std::vector<std::byte> out;
  put(out, head.what);
  put(out, head.output);
  put(out, head.num_tensors, 8);
  put(out, head.size_bytes, 8);
  put(out, head.content_inode, 8);
  put(out, head.ingredients.size(), 4);
  for (const JournalHead::Ingredient& ingredient : head.ingredients) {
    put(out, ingredient.name);
    put(out, ingredient.value);
  }
  return out;
}

std::optional<JournalHead> head_of(std::span<const std::byte> payload) {
  Taker in(payload);
  JournalHead head;
  head.what = in.text();
  head.output = in.text();
  head.num_tensors = in.number(8);
  head.size_bytes = in.number(8);
  head.content_inode = in.number(8);
  for (std::uint64_t left = in.number(4); left > 0 && in.ok(); --left) {
    std::string name = in.text();
    head.ingredients.push_back({std::move(name), in.text()});
  }
  if (!in.at_end()) return std::nullopt;
  return head;
}

std::vector<std::byte> bytes_of(const JournalRecord& record) {
  std::vector<std::byte> out;
  put(out, record.file_index, 4);
  put(out, record.offset_bytes, 8);
  put(out, record.size_bytes, 8);
  put(out, record.checksum.high, 8);
  put(out, record.checksum.low, 8);
  put(out, record.warnings.size(), 4);
  for (const std::string& warning : record.warnings) put(out, warning);
  return out;
}

std::optional<JournalRecord> record_of(std::span<const std::byte> payload) {
  Taker in(payload);
  JournalRecord record;
  record.file_index = static_cast<std::uint32_t>(in.number(4));
  record.offset_bytes = in.number(8);
  record.size_bytes = in.number(8);
  record.checksum.high = in.number(8);
  record.checksum.low = in.number(8);
  for (std::uint64_t left = in.number(4); left > 0 && in.ok(); --left) record.warnings.push_back(in.text());
  if (!in.at_end()) return std::nullopt;
  return record;
}

}  // namespace

std::vector<std::string> differences(const JournalHead& before, const JournalHead& now) {
  std::map<std::string, std::string> old_values, new_values;
  for (const auto& [name, value] : before.ingredients) old_values[name] = value;
  for (const auto& [name, value] : now.ingredients) new_values[name] = value;
  std::vector<std::string> found, digests;
  constexpr std::size_t kShort = 100;
  for (const auto& [name, value] : now.ingredients) {
    const auto old = old_values.find(name);
    if (old == old_values.end()) {
      found.push_back(name + " is new");
    } else if (old->second != value) {
      // A digest says nothing to people, and it mostly follows from something else that has changed.
      const bool is_digest = parse_checksum(value).has_value() && parse_checksum(old->second).has_value();
      const bool tell = !is_digest && value.size() <= kShort && old->second.size() <= kShort && value.find('\n') == std::string::npos;
      (is_digest ? digests : found).push_back(name + (tell ? fmt::format(" (was {}, is {})", printable(old->second), printable(value)) : std::string()));
    }
  }
  for (const auto& [name, value] : before.ingredients)
    if (!new_values.contains(name)) found.push_back(name + " is gone");
  return found.empty() ? digests : found;
}

std::optional<Journal::Content> Journal::read(const fs::path& path) {
  if (path_kind(path) != PathKind::file) return std::nullopt;
  const std::string text = read_text_file(path, kMaxJournalBytes);
  if (!text.starts_with(kMagic)) return std::nullopt;
  const std::span<const std::byte> data = std::as_bytes(std::span(text));
  Content content;
  std::size_t at = kMagic.size();
  const auto head_bytes = take_framed(data, at, content.crc);
  if (!head_bytes) return std::nullopt;
  std::optional<JournalHead> head = head_of(*head_bytes);
  if (!head) return std::nullopt;
  content.head = std::move(*head);
  for (;;) {
    content.end_bytes = at;
    const std::uint32_t crc = content.crc;
    const auto payload = take_framed(data, at, content.crc);
    std::optional<JournalRecord> record = payload ? record_of(*payload) : std::nullopt;
    if (!record) {
      content.crc = crc;
      return content;
    }
    content.records.push_back(std::move(*record));
  }
}

Journal::Journal(const fs::path& path, const JournalHead& head) {
  if (path_kind(path) != PathKind::nothing) remove_file(path);
  file_ = File(path, FileMode::create_new);
  std::vector<std::byte> bytes;
  for (const char c : kMagic) bytes.push_back(static_cast<std::byte>(c));
  put_framed(bytes, bytes_of(head), crc_);
  file_.write(0, bytes);
  end_bytes_ = bytes.size();
}

Journal::Journal(const fs::path& path, const Content& content) : file_(path, FileMode::update), end_bytes_(content.end_bytes), crc_(content.crc) {}

void Journal::append(const JournalRecord& record) { put_framed(pending_, bytes_of(record), crc_); }

void Journal::write() {
  if (pending_.empty()) return;
  file_.write(end_bytes_, pending_);
  end_bytes_ += pending_.size();
  pending_.clear();
}

}  // namespace weft
