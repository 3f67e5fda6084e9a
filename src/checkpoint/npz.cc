#include "checkpoint/npz.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/crc32.h"
#include "base/text.h"
#include "checkpoint/npy.h"
#include "checkpoint/staging.h"
#include "checkpoint/zip_directory.h"

namespace weft {
namespace {

constexpr std::string_view kEnding = ".npy";

std::string little(std::uint64_t value, int size) {
  std::string out;
  for (int i = 0; i < size; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return out;
}

class NpzCheckpoint final : public Checkpoint {
 public:
  NpzCheckpoint(const std::filesystem::path& file, const std::filesystem::path& named, std::vector<std::string> warnings)
      : file_(file, FileMode::read) {
    container_ = "npz";
    path_ = named;
    warnings_ = std::move(warnings);
    identity_ = file_.identity();
    files_ = {{file, identity_.size_bytes}};
    arrays_ = read_npz_arrays(file_source(file_));
    for (const NpzArray& array : arrays_) tensors_.push_back(array.tensor);
    index_tensors();
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    WEFT_ASSERT(offset <= tensor.size_bytes && out.size() <= tensor.size_bytes - offset);
    file_.read(tensor.offset_bytes + offset, out);
  }
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    file_.will_read(tensor.offset_bytes + offset, size_bytes);
  }
  void check_unchanged() const override {
    if (file_.identity() != identity_)
      throw Error(ErrorCode::corrupt, "the file was changed while it was being read", {.file = files_[0].path.string()},
                  "run the command again when nothing writes to it any more");
  }
  void verify_checksums() const override {
    std::vector<std::byte> buffer;
    for (const NpzArray& array : arrays_) {
      std::uint32_t sum = 0;
      for (std::uint64_t at = 0; at < array.entry_bytes; at += buffer.size()) {
        buffer.resize(static_cast<std::size_t>(std::min<std::uint64_t>(array.entry_bytes - at, 1 << 20)));
        file_.read(array.entry_offset + at, buffer);
        sum = crc32(buffer, sum);
      }
      if (sum != array.crc32)
        throw Error(ErrorCode::corrupt, fmt::format("the bytes of array '{}' do not have their checksum", printable(array.tensor.name)),
                    {.file = files_[0].path.string(), .tensor = printable(array.tensor.name), .byte = array.entry_offset},
                    "the file is damaged or incompletely downloaded; fetch it again");
    }
  }

 private:
  File file_;
  FileIdentity identity_;
  std::vector<NpzArray> arrays_;  ///< of tensors_
};

}  // namespace

std::vector<NpzArray> read_npz_arrays(const ByteSource& source) {
  const ZipDirectory zip(source);
  std::vector<NpzArray> arrays;
  for (const ZipEntry& entry : zip.entries()) {
    if (!entry.name.ends_with(kEnding) || entry.name.size() == kEnding.size()) continue;
    zip.require_stored(entry);
    const std::string name = entry.name.substr(0, entry.name.size() - kEnding.size());
    const auto fail = [&](ErrorCode code, std::string message, std::string advice) {
      throw Error(code, fmt::format("array '{}': {}", printable(name), message),
                  {.file = source.path.string(), .tensor = printable(name), .byte = entry.offset_bytes}, std::move(advice));
    };
    if (!is_valid_utf8(name)) fail(ErrorCode::corrupt, "its name is no UTF-8", "save it again with numpy.savez");
    // Most headers are of 128 bytes; a long one is read in a second go.
    std::string beginning(static_cast<std::size_t>(std::min<std::uint64_t>(entry.size_bytes, 512)), '\0');
    source.read(entry.offset_bytes, std::as_writable_bytes(std::span(beginning)));
    const bool is_long = beginning.size() >= 12 && static_cast<std::uint64_t>(static_cast<unsigned char>(beginning[8])) +
                                                           256 * static_cast<std::uint64_t>(static_cast<unsigned char>(beginning[9])) + 12 >
                                                       beginning.size();
    if (is_long || (beginning.size() >= 12 && beginning[6] != 1)) {
      beginning.resize(static_cast<std::size_t>(std::min(entry.size_bytes, kMaxNpyHeaderBytes)));
      source.read(entry.offset_bytes, std::as_writable_bytes(std::span(beginning)));
    }
    const NpyHeader header = parse_npy_header(beginning, source.path);
    if (header.data_offset > entry.size_bytes || header.data_bytes != entry.size_bytes - header.data_offset)
      fail(ErrorCode::corrupt,
           fmt::format("its {} elements need {} bytes, the entry has {}", header.num_elements, header.data_bytes,
                       entry.size_bytes - std::min(entry.size_bytes, header.data_offset)),
           "the file is damaged; save it again");
    if (header.fortran_order && header.shape.size() > 1)
      fail(ErrorCode::unsupported, "it lies in Fortran order", "save numpy.ascontiguousarray(array)");
    if (header.big_endian && info(header.dtype).bits > 8)
      fail(ErrorCode::unsupported, "its elements are big-endian", "save array.astype(array.dtype.newbyteorder('<'))");
    NpzArray array;
    array.tensor.name = name;
    array.tensor.dtype = header.dtype;
    array.tensor.shape = header.shape;
    array.tensor.num_elements = header.num_elements;
    array.tensor.size_bytes = header.data_bytes;
    array.tensor.offset_bytes = entry.offset_bytes + header.data_offset;
    array.crc32 = entry.crc32;
    array.entry_offset = entry.offset_bytes;
    array.entry_bytes = entry.size_bytes;
    arrays.push_back(std::move(array));
  }
  return arrays;
}

bool is_npz(const ByteSource& source) {
  bool arrays = false;
  const ZipDirectory zip(source);
  for (const ZipEntry& entry : zip.entries()) {
    if (entry.name.ends_with("/data.pkl")) return false;
    arrays = arrays || entry.name.ends_with(kEnding);
  }
  return arrays;
}

std::shared_ptr<const Checkpoint> open_npz(const std::filesystem::path& file, const std::filesystem::path& named, std::vector<std::string> warnings) {
  return std::make_shared<NpzCheckpoint>(file, named, std::move(warnings));
}

void write_npz(const std::vector<TensorRef>& tensors, const std::filesystem::path& file, bool replace,
               const std::function<void(std::uint64_t)>& on_piece) {
  constexpr std::uint64_t kPiece = 4 << 20;
  constexpr std::uint64_t kNone32 = 0xFFFFFFFF;
  struct Entry {
    std::string name, header;
    std::uint64_t offset = 0, size = 0;
  };
  std::vector<Entry> entries;
  std::uint64_t end = 0;
  for (const TensorRef& tensor : tensors) {
    Entry entry;
    entry.name = tensor.tensor->name + std::string(kEnding);
    if (entry.name.size() > 0xFFFF)
      throw Error(ErrorCode::unsupported, "a name is too long for a zip archive", {.tensor = printable(tensor.tensor->name)});
    entry.header = make_npy_header(tensor.tensor->dtype, tensor.tensor->shape);
    entry.offset = end;
    entry.size = entry.header.size() + tensor.tensor->size_bytes;
    end += 30 + entry.name.size() + 20 + entry.size;
    entries.push_back(std::move(entry));
  }
  Staging staging(file, Staging::What::file, replace ? Existing::replace : Existing::refuse);
  staging.require_space(end);
  File& out = staging.create(file.filename().string());
  const auto put = [&out](std::uint64_t at, std::string_view bytes) { out.write(at, std::as_bytes(std::span(bytes))); };
  std::string directory;
  std::vector<std::byte> buffer;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Entry& entry = entries[i];
    const TensorInfo& tensor = *tensors[i].tensor;
    const std::uint64_t content = entry.offset + 30 + entry.name.size() + 20;
    std::uint32_t sum = crc32(std::as_bytes(std::span(entry.header)));
    put(content, entry.header);
    for (std::uint64_t at = 0; at < tensor.size_bytes; at += buffer.size()) {
      buffer.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, tensor.size_bytes - at)));
      tensors[i].checkpoint->read_bytes(tensor, at, buffer);
      sum = crc32(buffer, sum);
      out.write(content + entry.header.size() + at, buffer);
      on_piece(buffer.size());
    }
    // Version 4.5, names in UTF-8, stored, 1 January 1980: the same bytes at any time. The checksum is known only now.
    const std::string common = little(45, 2) + little(0x0800, 2) + little(0, 2) + little(0, 2) + little(0x21, 2) + little(sum, 4) +
                               little(kNone32, 4) + little(kNone32, 4) + little(entry.name.size(), 2);
    put(entry.offset, "PK\3\4" + common + little(20, 2) + entry.name + little(1, 2) + little(16, 2) + little(entry.size, 8) + little(entry.size, 8));
    directory += "PK\1\2" + little(45, 2) + common + little(28, 2) + little(0, 2) + little(0, 2) + little(0, 2) + little(0, 4) + little(kNone32, 4) +
                 entry.name + little(1, 2) + little(24, 2) + little(entry.size, 8) + little(entry.size, 8) + little(entry.offset, 8);
  }
  const std::uint64_t directory_bytes = directory.size();
  directory += "PK\6\6" + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 4) + little(0, 4) + little(entries.size(), 8) +
               little(entries.size(), 8) + little(directory_bytes, 8) + little(end, 8);
  directory += "PK\6\7" + little(0, 4) + little(end + directory_bytes, 8) + little(1, 4);
  directory += "PK\5\6" + little(0, 4) + little(0xFFFF, 2) + little(0xFFFF, 2) + little(kNone32, 4) + little(kNone32, 4) + little(0, 2);
  put(end, directory);
  staging.commit();
}

}  // namespace weft
