#include "checkpoint/imatrix.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "weft/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSums = ".in_sum2";
constexpr std::string_view kCounts = ".counts";

[[noreturn]] void refuse(const fs::path& file, const std::string& what, const std::string& tensor = {}) {
  throw Error(ErrorCode::corrupt, "the importance matrix " + what, {.file = file.string(), .tensor = tensor},
              "make it again with 'weft calibrate' or llama-imatrix");
}

void check_numbers(const fs::path& file, const std::string& name, const std::vector<float>& values, const char* what) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]) || values[i] < 0) refuse(file, fmt::format("has {} as {} number {}", values[i], what, i), name);
}

std::vector<float> read_floats(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  if (tensor.dtype != DType::f32 || !tensor.stored_as.empty()) refuse(checkpoint.path(), "has an entry that is not float32", tensor.name);
  std::vector<float> values(static_cast<std::size_t>(tensor.num_elements));
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

Imatrix read_gguf_form(const fs::path& file) {
  const GgufCheckpoint gguf(file, file, {});
  const GgufMetadata metadata = gguf.whole_metadata();
  if (metadata.text("general.type") != "imatrix")
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is a GGUF file, but no importance matrix", printable(file.string(), 4096)),
                {.file = file.string(), .key = "general.type"}, "give what 'weft calibrate -o FILE.gguf' or llama-imatrix wrote");
  Imatrix imatrix;
  if (const GgufValue* datasets = metadata.find("imatrix.datasets")) imatrix.datasets = datasets->string_list();
  const auto number = [&](std::string_view key) { return static_cast<std::uint32_t>(metadata.unsigned_integer(key).value_or(0)); };
  imatrix.chunk_count = number("imatrix.chunk_count");
  imatrix.chunk_size = number("imatrix.chunk_size");
  for (const TensorInfo& tensor : gguf.tensors()) {
    const std::string& name = tensor.name;
    if (name.ends_with(kCounts)) {
      const std::string stem = name.substr(0, name.size() - kCounts.size());
      if (gguf.find_tensor(stem + std::string(kSums)) == nullptr) refuse(file, "counts tokens of a tensor without sums", name);
      continue;
    }
    if (!name.ends_with(kSums)) continue;
    const std::string stem = name.substr(0, name.size() - kSums.size());
    const TensorInfo* counts = gguf.find_tensor(stem + std::string(kCounts));
    if (counts == nullptr) refuse(file, "has sums without the number of tokens", name);
    ImatrixEntry entry;
    entry.sums = read_floats(gguf, tensor);
    entry.counts = read_floats(gguf, *counts);
    if (tensor.shape.empty() || entry.sums.empty() || entry.counts.empty() || entry.sums.size() % entry.counts.size() != 0)
      refuse(file, fmt::format("has {} sums for {} counts", entry.sums.size(), entry.counts.size()), name);
    entry.num_columns = static_cast<std::uint64_t>(tensor.shape.back());
    if (entry.num_columns * entry.counts.size() != entry.sums.size())
      refuse(file, fmt::format("has {} sums for {} counts", to_string(tensor.shape), entry.counts.size()), name);
    check_numbers(file, name, entry.sums, "sum");
    check_numbers(file, counts->name, entry.counts, "count");
    // Less than one token would make the means larger than the sums, and infinite in the end.
    for (const float count : entry.counts)
      if (count > 0 && count < 1) refuse(file, fmt::format("counts {} tokens", count), counts->name);
    imatrix.entries.emplace(stem, std::move(entry));
  }
  return imatrix;
}

/// The old form: numbers and names one after the other, without a mark at the beginning.
class OldForm {
 public:
  explicit OldForm(const fs::path& path) : path_(path), file_(path, FileMode::read), size_(file_.identity().size_bytes) {}

  Imatrix read() {
    Imatrix imatrix;
    const std::int32_t count = whole("the number of entries");
    // An entry has three numbers, a name and a value at least.
    if (count < 1 || static_cast<std::uint64_t>(count) > size_ / 17) not_one();
    for (std::int32_t i = 0; i < count; ++i) {
      std::string name = text();
      const std::int32_t calls = whole("the number of calls");
      const std::int32_t num_values = whole("the number of values");
      if (num_values < 1 || static_cast<std::uint64_t>(num_values) > left() / sizeof(float))
        refuse(path_, fmt::format("gives {} values to an entry, with {} bytes left", num_values, left()), printable(name));
      if (calls < 0) refuse(path_, fmt::format("was made with {} calls", calls), printable(name));
      ImatrixEntry entry;
      entry.sums.resize(static_cast<std::size_t>(num_values));
      take(std::as_writable_bytes(std::span(entry.sums)));
      entry.num_columns = static_cast<std::uint64_t>(num_values);
      entry.counts = {static_cast<float>(calls)};
      check_numbers(path_, printable(name), entry.sums, "value");
      if (!imatrix.entries.emplace(name, std::move(entry)).second) refuse(path_, "has an entry twice", printable(name));
    }
    // Files of the first version end here.
    if (left() >= 4) imatrix.chunk_count = static_cast<std::uint32_t>(std::max(0, whole("the number of chunks")));
    if (left() >= 4) imatrix.datasets = {text()};
    return imatrix;
  }

 private:
  [[nodiscard]] std::uint64_t left() const { return size_ - at_; }
  [[noreturn]] void not_one() const {
    throw Error(ErrorCode::corrupt, fmt::format("'{}' is no importance matrix", printable(path_.string(), 4096)), {.file = path_.string()},
                "give a GGUF file that 'weft calibrate' or llama-imatrix wrote, or a .dat of the old form");
  }
  void take(std::span<std::byte> out) {
    if (out.size() > left()) refuse(path_, fmt::format("ends at byte {}, in the middle of an entry", size_));
    file_.read(at_, out);
    at_ += out.size();
  }
  std::int32_t whole(const char*) {
    std::int32_t value = 0;
    take(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  std::string text() {
    const std::int32_t length = whole("the length of a name");
    constexpr std::int32_t kLongest = 65536;
    if (length < 0 || length > kLongest || static_cast<std::uint64_t>(length) > left()) not_one();
    std::string value(static_cast<std::size_t>(length), '\0');
    take(std::as_writable_bytes(std::span(value)));
    if (!is_valid_utf8(value)) not_one();
    return value;
  }

  fs::path path_;
  File file_;
  std::uint64_t size_ = 0;
  std::uint64_t at_ = 0;
};

}  // namespace

std::vector<float> ImatrixEntry::importance() const {
  std::vector<float> values(sums.size(), 1.0F);
  for (std::size_t i = 0; i < sums.size(); ++i)
    if (const float count = counts[i / static_cast<std::size_t>(num_columns)]; count > 0) values[i] = sums[i] / count;
  return values;
}

Imatrix read_imatrix(const fs::path& file) {
  char magic[4] = {};
  {
    const File head(file, FileMode::read);
    if (head.identity().size_bytes >= sizeof(magic)) head.read(0, std::as_writable_bytes(std::span(magic)));
  }
  Imatrix imatrix = std::memcmp(magic, "GGUF", 4) == 0 ? read_gguf_form(file) : OldForm(file).read();
  if (imatrix.entries.empty()) refuse(file, "is empty");
  return imatrix;
}

}  // namespace weft
