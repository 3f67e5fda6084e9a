#include "engine/idx_file.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <memory>

#include "base/check.h"
#include "base/file.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

constexpr std::uint64_t kMaxBytes = std::uint64_t{4} << 30;
constexpr std::size_t kPiece = std::size_t{1} << 20;

/// What a file holds, unpacked when it is gzipped.
class Unpacker {
 public:
  explicit Unpacker(const std::filesystem::path& path) : path_(path), file_(path, FileMode::read) {
    stream_ = {};
    std::array<std::byte, 2> magic{};
    is_packed_ = file_.read_some(0, magic) == 2 && magic[0] == std::byte{0x1F} && magic[1] == std::byte{0x8B};
    if (is_packed_ && inflateInit2(&stream_, 15 + 16) != Z_OK) throw Error(ErrorCode::out_of_memory, "zlib cannot begin", {.file = path.string()});
  }
  ~Unpacker() {
    if (is_packed_) inflateEnd(&stream_);
  }
  Unpacker(const Unpacker&) = delete;
  Unpacker& operator=(const Unpacker&) = delete;

  /// Fewer bytes than asked for only at the end.
  std::size_t read(std::uint8_t* out, std::size_t size) {
    if (!is_packed_) {
      const std::size_t got = file_.read_some(at_, std::as_writable_bytes(std::span(out, size)));
      at_ += got;
      return got;
    }
    std::size_t got = 0;
    while (got < size && !ended_) {
      if (stream_.avail_in == 0) {
        packed_.resize(1 << 16);
        packed_.resize(file_.read_some(at_, std::as_writable_bytes(std::span(packed_))));
        at_ += packed_.size();
        if (packed_.empty()) throw Error(ErrorCode::corrupt, "the gzipped data ends too early", {.file = path_.string()}, "fetch the file again");
        stream_.next_in = packed_.data();
        stream_.avail_in = static_cast<uInt>(packed_.size());
      }
      stream_.next_out = out + got;
      stream_.avail_out = static_cast<uInt>(std::min(size - got, kPiece));
      const uInt room = stream_.avail_out;
      const int status = inflate(&stream_, Z_NO_FLUSH);
      got += room - stream_.avail_out;
      ended_ = status == Z_STREAM_END;
      if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
        throw Error(ErrorCode::corrupt, "the gzipped data is damaged", {.file = path_.string()}, "fetch the file again");
    }
    return got;
  }

 private:
  std::filesystem::path path_;
  File file_;
  bool is_packed_ = false;
  bool ended_ = false;
  std::uint64_t at_ = 0;
  std::vector<std::uint8_t> packed_;
  z_stream stream_{};
};

}  // namespace

IdxData read_idx_file(const std::filesystem::path& path) {
  Unpacker file(path);
  std::array<std::uint8_t, 4> head{};
  if (file.read(head.data(), 4) != 4 || head[0] != 0 || head[1] != 0 || head[3] == 0)
    throw Error(ErrorCode::corrupt, "not an idx file: it does not begin with two zero bytes, a type and a number of axes",
                {.file = path.string(), .byte = 0}, "such files are called train-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz");
  if (head[2] != 8)
    throw Error(ErrorCode::unsupported, fmt::format("the idx file holds elements of type 0x{:02x}, not unsigned bytes (0x08)", head[2]),
                {.file = path.string(), .byte = 2}, "");
  IdxData data;
  std::uint64_t total = 1;
  for (int axis = 0; axis < head[3]; ++axis) {
    std::array<std::uint8_t, 4> size{};
    if (file.read(size.data(), 4) != 4) throw Error(ErrorCode::corrupt, "the idx file ends in its header", {.file = path.string()}, "fetch it again");
    data.shape.push_back((std::uint64_t{size[0]} << 24) | (std::uint64_t{size[1]} << 16) | (std::uint64_t{size[2]} << 8) | size[3]);
    total = checked_mul(total, data.shape.back(), "the size of an idx file");
  }
  if (total > kMaxBytes)
    throw Error(ErrorCode::unsupported, fmt::format("the idx file announces {} bytes, more than {}", total, kMaxBytes), {.file = path.string()}, "");
  // Memory grows with what is there, not with what the header announces.
  while (data.values.size() < total) {
    const std::size_t at = data.values.size();
    const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, total - at));
    data.values.resize(at + piece);
    if (file.read(data.values.data() + at, piece) != piece)
      throw Error(ErrorCode::corrupt, fmt::format("the idx file is shorter than the {} bytes that it announces", total), {.file = path.string()},
                  "fetch it again");
  }
  std::uint8_t more = 0;
  if (file.read(&more, 1) != 0)
    throw Error(ErrorCode::corrupt, fmt::format("the idx file is longer than the {} bytes that it announces", total), {.file = path.string()},
                "fetch it again");
  return data;
}

}  // namespace weft::engine
