#include "checkpoint/npy.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <charconv>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/staging.h"
#include "checkpoint/tensor_view.h"
#include "weft/error.h"

namespace weft {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMaxRank = 64;

/// NumPy's letter and size for a type; null where it has none.
const char* npy_letters(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return "b1";
    case DType::i8:
      return "i1";
    case DType::u8:
      return "u1";
    case DType::i16:
      return "i2";
    case DType::u16:
      return "u2";
    case DType::i32:
      return "i4";
    case DType::u32:
      return "u4";
    case DType::i64:
      return "i8";
    case DType::u64:
      return "u8";
    case DType::f16:
      return "f2";
    case DType::f32:
      return "f4";
    case DType::f64:
      return "f8";
    case DType::c64:
      return "c8";
    default:
      return nullptr;
  }
}

/// The Python literal that a header is: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class Literal {
 public:
  Literal(std::string_view text, std::uint64_t first_byte, const std::filesystem::path& file) : text_(text), first_byte_(first_byte), file_(file) {}

  NpyHeader parse() {
    NpyHeader header;
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!take('}')) {
      const std::string key = string();
      expect(':');
      bool* seen = key == "descr" ? &has_descr : key == "fortran_order" ? &has_order : key == "shape" ? &has_shape : nullptr;
      if (seen == nullptr) fail("has the key '" + printable(key) + "', which .npy files do not have");
      if (std::exchange(*seen, true)) fail("has the key '" + key + "' twice");
      if (seen == &has_descr)
        descr(header);
      else if (seen == &has_order)
        header.fortran_order = boolean();
      else
        shape(header);
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    space();
    if (at_ != text_.size()) fail("goes on after its end");
    if (!has_descr || !has_order || !has_shape) fail("lacks one of descr, fortran_order and shape");
    return header;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::corrupt, "the header of the array " + what, {.file = file_.string(), .byte = first_byte_ + at_},
                "save the array again with numpy.save");
  }
  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }
  bool take(char c) {
    space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(fmt::format("has no '{}' where one belongs", c));
  }
  std::string string() {
    space();
    if (at_ == text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) fail("has no string where one belongs");
    const char quote = text_[at_++];
    const std::size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail("has a string without an end");
    std::string out(text_.substr(at_, end - at_));
    if (out.find('\\') != std::string::npos) fail("has an escape in a string");
    at_ = end + 1;
    return out;
  }
  bool boolean() {
    space();
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}}) {
      if (!text_.substr(at_).starts_with(word)) continue;
      at_ += word.size();
      return value;
    }
    fail("has neither True nor False for fortran_order");
  }
  void shape(NpyHeader& header) {
    expect('(');
    while (!take(')')) {
      space();
      std::int64_t dim = 0;
      const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), dim);
      if (error != std::errc() || dim < 0) fail("has a shape that is no list of sizes");
      at_ = static_cast<std::size_t>(end - text_.data());
      if (at_ < text_.size() && text_[at_] == 'L') ++at_;  // Python 2 wrote its long integers so
      header.shape.push_back(dim);
      if (header.shape.size() > kMaxRank) fail(fmt::format("has more than {} axes", kMaxRank));
      if (!take(',')) {
        expect(')');
        break;
      }
    }
  }
  void descr(NpyHeader& header) {
    space();
    if (at_ < text_.size() && text_[at_] == '[')
      throw Error(ErrorCode::unsupported, "the array holds records, which are no tensor", {.file = file_.string()}, "save one field of it");
    const std::string text = string();
    std::string_view letters = text;
    char order = '|';
    if (!letters.empty() && std::string_view("<>|=").find(letters.front()) != std::string_view::npos) {
      order = letters.front();
      letters.remove_prefix(1);
    }
    if (letters == "?") letters = "b1";
    if (letters.starts_with('O'))
      throw Error(ErrorCode::unsupported, "the array holds Python objects, which weft does not run", {.file = file_.string()}, "save it as numbers");
    for (int i = 0; i < kNumDTypes; ++i) {
      const auto dtype = static_cast<DType>(i);
      const char* own = npy_letters(dtype);
      if (own == nullptr || letters != own) continue;
      header.dtype = dtype;
      header.big_endian = order == '>' && info(dtype).bits > 8;
      return;
    }
    throw Error(ErrorCode::unsupported, "the array's type '" + printable(text) + "' is none that tensors have", {.file = file_.string()},
                "convert it first, for example with array.astype('float32')");
  }

  std::string_view text_;
  std::uint64_t first_byte_;
  const std::filesystem::path& file_;
  std::size_t at_ = 0;
};

class NpyCheckpoint final : public Checkpoint {
 public:
  NpyCheckpoint(const std::filesystem::path& path, std::string name) : file_(path, FileMode::read), identity_(file_.identity()) {
    container_ = "npy";
    path_ = path;
    files_.push_back({path, identity_.size_bytes});
    std::string beginning(static_cast<std::size_t>(std::min<std::uint64_t>(identity_.size_bytes, kMaxNpyHeaderBytes)), '\0');
    file_.read(0, std::as_writable_bytes(std::span(beginning)));
    header_ = parse_npy_header(beginning, path);
    if (identity_.size_bytes - header_.data_offset != header_.data_bytes)
      throw Error(ErrorCode::corrupt,
                  fmt::format("an array of {} {} has {} bytes, but {} follow the header", to_string(header_.dtype), to_string(header_.shape),
                              header_.data_bytes, identity_.size_bytes - header_.data_offset),
                  {.file = path.string()}, "the file is cut off or has something appended; save it again");
    TensorInfo tensor;
    tensor.name = name.empty() ? path.stem().string() : std::move(name);
    tensor.dtype = header_.dtype;
    tensor.shape = header_.shape;
    if (transposed()) std::reverse(tensor.shape.begin(), tensor.shape.end());
    tensor.num_elements = header_.num_elements;
    tensor.size_bytes = header_.data_bytes;
    tensor.offset_bytes = header_.data_offset;
    tensors_.push_back(std::move(tensor));
    index_tensors();
  }

  /// The elements lie as those of the transposed array do.
  [[nodiscard]] bool transposed() const noexcept { return header_.fortran_order && header_.shape.size() > 1; }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset > tensors_.front().size_bytes || out.size() > tensors_.front().size_bytes - offset)
      throw Error(ErrorCode::internal, "bytes beyond the end of an array were asked for", {.tensor = tensor.name});
    const auto size = static_cast<std::size_t>(info(header_.dtype).bits / 8);
    if (!header_.big_endian) return file_.read(header_.data_offset + offset, out);
    // Whole elements, turned around, of which the wanted bytes are taken. Complex numbers are two of half the size.
    const std::size_t unit = header_.dtype == DType::c64 ? size / 2 : size;
    const std::uint64_t begin = offset / unit * unit, end = (offset + out.size() + unit - 1) / unit * unit;
    std::vector<std::byte> buffer(static_cast<std::size_t>(end - begin));
    file_.read(header_.data_offset + begin, buffer);
    for (std::size_t at = 0; at < buffer.size(); at += unit)
      std::reverse(buffer.begin() + static_cast<std::ptrdiff_t>(at), buffer.begin() + static_cast<std::ptrdiff_t>(at + unit));
    std::copy_n(buffer.begin() + static_cast<std::ptrdiff_t>(offset - begin), out.size(), out.begin());
  }
  void check_unchanged() const override {
    if (File(path_, FileMode::read).identity() != identity_)
      throw Error(ErrorCode::io, "the file was changed while it was read", {.file = path_.string()}, "run the command again");
  }

 private:
  File file_;
  FileIdentity identity_;
  NpyHeader header_;
};

}  // namespace

NpyHeader parse_npy_header(std::string_view beginning, const std::filesystem::path& file) {
  if (!beginning.starts_with(kMagic) || beginning.size() < 10)
    throw Error(ErrorCode::corrupt, "the file is no NumPy array", {.file = file.string()}, "save the array with numpy.save");
  const auto byte = [&](std::size_t i) { return static_cast<std::uint64_t>(static_cast<unsigned char>(beginning[i])); };
  const std::uint64_t version = byte(6);
  if (version < 1 || version > 3)
    throw Error(ErrorCode::unsupported, fmt::format("the array is saved in version {} of the format; weft knows 1 to 3", version),
                {.file = file.string(), .byte = 6}, "save it again with numpy.save");
  const std::size_t prefix = version == 1 ? 10 : 12;
  if (beginning.size() < prefix)
    throw Error(ErrorCode::corrupt, "the file ends inside the header of the array", {.file = file.string()}, "save it again");
  std::uint64_t length = byte(8) | byte(9) << 8;
  if (version > 1) length |= byte(10) << 16 | byte(11) << 24;
  if (length > beginning.size() - prefix)
    throw Error(ErrorCode::corrupt, fmt::format("the array announces a header of {} bytes, but {} follow", length, beginning.size() - prefix),
                {.file = file.string(), .byte = 8}, "the file is cut off or no array; save it again");
  NpyHeader header = Literal(beginning.substr(prefix, static_cast<std::size_t>(length)), prefix, file).parse();
  header.num_elements = 1;
  for (const std::int64_t dim : header.shape)
    header.num_elements = checked_mul(header.num_elements, static_cast<std::uint64_t>(dim), "the array's size");
  header.data_bytes = checked_mul(header.num_elements, static_cast<std::uint64_t>(info(header.dtype).bits) / 8, "the array's size");
  header.data_offset = prefix + length;
  return header;
}

std::string make_npy_header(DType dtype, const Shape& shape) {
  const char* letters = npy_letters(dtype);
  if (letters == nullptr) throw Error(ErrorCode::internal, fmt::format("NumPy has no {}", to_string(dtype)));
  std::string dims;
  for (const std::int64_t dim : shape) dims += (dims.empty() ? "" : ", ") + std::to_string(dim);
  if (shape.size() == 1) dims += ",";
  std::string text = fmt::format("{{'descr': '{}{}', 'fortran_order': False, 'shape': ({}), }}", info(dtype).bits > 8 ? '<' : '|', letters, dims);
  const std::size_t prefix = text.size() + 64 > std::numeric_limits<std::uint16_t>::max() ? 12 : 10;
  text.append(63 - (prefix + text.size()) % 64, ' ');
  text += '\n';
  std::string header(kMagic);
  header += prefix == 10 ? '\x01' : '\x02';
  header += '\0';
  for (std::size_t i = 0; i < prefix - 8; ++i) header += static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return header + text;
}

DType npy_dtype(DType dtype) {
  if (npy_letters(dtype) != nullptr) return dtype;
  if (is_decodable_float(dtype) && dtype != DType::f4) return DType::f32;
  throw Error(ErrorCode::unsupported, fmt::format("NumPy has no type for {}", to_string(dtype)), {},
              "convert the model first, for example with 'weft convert --dtype float32'");
}

std::shared_ptr<const Checkpoint> open_npy(const std::filesystem::path& file, std::string name) {
  auto array = std::make_shared<NpyCheckpoint>(file, std::move(name));
  if (!array->transposed()) return array;
  if (array->tensors().front().shape.size() > 2)
    throw Error(ErrorCode::unsupported, "the array lies in Fortran order and has more than two axes", {.file = file.string()},
                "save numpy.ascontiguousarray(array)");
  return transpose_tensor({array, &array->tensors().front()}).checkpoint;
}

void write_npy(const Checkpoint& checkpoint, const TensorInfo& tensor, const std::filesystem::path& file, bool replace) {
  const DType stored = npy_dtype(tensor.dtype);
  // The caller keeps the checkpoint alive.
  const std::shared_ptr<const Checkpoint> borrowed(std::shared_ptr<const Checkpoint>(), &checkpoint);
  const TensorRef values = stored == tensor.dtype ? TensorRef{borrowed, &tensor} : cast_tensor({borrowed, &tensor}, stored);
  const std::string header = make_npy_header(stored, tensor.shape);
  Staging staging(file, Staging::What::file, replace ? Existing::replace : Existing::refuse);
  const std::uint64_t size_bytes = values.tensor->size_bytes;
  staging.require_space(header.size() + size_bytes);
  File& out = staging.create(file.filename().string());
  out.write(0, std::as_bytes(std::span(header)));
  constexpr std::uint64_t kPiece = 4 << 20;
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min(kPiece, size_bytes)));
  for (std::uint64_t at = 0; at < size_bytes; at += buffer.size()) {
    const std::span<std::byte> piece = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), size_bytes - at)));
    values.checkpoint->read_bytes(*values.tensor, at, piece);
    out.write(header.size() + at, piece);
  }
  staging.commit();
}

}  // namespace weft
