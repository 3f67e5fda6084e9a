#include "checkpoint/checksums.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <iterator>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "checkpoint/staging.h"
#include "weft/error.h"

namespace weft {
namespace {

constexpr std::string_view kFirstLine = "weft-checksums 1";
constexpr std::uint64_t kMaxBytes = 1'000'000'000;

/// The words of one line, one after another.
class Line {
 public:
  explicit Line(std::string_view text) : text_(text) {}

  std::string_view word() {
    const std::string_view word = text_.substr(0, text_.find(' '));
    text_.remove_prefix(std::min(text_.size(), word.size() + 1));
    return word;
  }
  bool number(std::uint64_t& value) {
    const std::string_view text = word();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() && !text.empty();
  }
  bool checksum(Checksum& value) {
    const std::optional<Checksum> parsed = parse_checksum(word());
    if (parsed) value = *parsed;
    return parsed.has_value();
  }
  bool name(std::string& value, const std::filesystem::path& path) {
    const Json parsed = parse_json(text_, path);
    if (parsed.string() == nullptr) return false;
    value = *parsed.string();
    text_ = {};
    return true;
  }
  [[nodiscard]] bool at_end() const { return text_.empty(); }

 private:
  std::string_view text_;
};

}  // namespace

std::string write_checksums(std::span<const FileSums> files) {
  std::string text(kFirstLine);
  text += '\n';
  const auto out = std::back_inserter(text);
  for (const FileSums& file : files) {
    fmt::format_to(out, "file {} {} {}\n", file.size_bytes, to_string(file.rest), json_quote(file.name));
    for (const FileSums::Tensor& tensor : file.tensors) {
      WEFT_ASSERT(tensor.blocks.size() == num_sum_blocks(tensor.size_bytes));
      fmt::format_to(out, "tensor {} {} {} {}\n", tensor.offset_bytes, tensor.size_bytes, to_string(whole_of_blocks(tensor.blocks)),
                     json_quote(tensor.name));
      if (tensor.blocks.size() == 1) continue;
      for (const Checksum& block : tensor.blocks) fmt::format_to(out, "block {}\n", to_string(block));
    }
  }
  text += "end " + to_string(checksum_of(text)) + "\n";
  return text;
}

std::vector<FileSums> parse_checksums(std::string_view text, const std::filesystem::path& path) {
  const auto damaged = [&](std::size_t at, std::string_view what) {
    return Error(ErrorCode::corrupt, fmt::format("the list of checksums is damaged: {}", what), {.file = path.string(), .byte = at},
                 "fetch it again with the model, or remove it to do without");
  };
  if (!text.starts_with(kFirstLine) || text.substr(kFirstLine.size()).substr(0, 1) != "\n") {
    if (text.starts_with("weft-checksums "))
      throw Error(ErrorCode::unsupported, "the list of checksums has a form that this version of weft does not know", {.file = path.string()},
                  "use a newer version, or remove the list to do without");
    throw damaged(0, "it does not begin with its name");
  }
  // The last line vouches for the others, so it is looked at first.
  const std::size_t end = text.size() < 38 ? std::string_view::npos : text.size() - 37;  // "end ", 32 digits, line feed
  if (end == std::string_view::npos || text[end - 1] != '\n' || !text.substr(end).starts_with("end ") || !text.ends_with('\n'))
    throw damaged(text.size(), "its last line is missing");
  if (parse_checksum(text.substr(end + 4, 32)) != checksum_of(text.substr(0, end))) throw damaged(end, "its own checksum does not match");

  std::vector<FileSums> files;
  std::vector<Checksum> wholes;  // of the tensors of the present file
  const auto check_last_tensor = [&](std::size_t at) {
    if (files.empty() || files.back().tensors.empty()) return;
    const FileSums::Tensor& tensor = files.back().tensors.back();
    if (tensor.blocks.size() != num_sum_blocks(tensor.size_bytes) || whole_of_blocks(tensor.blocks) != wholes.back())
      throw damaged(at, "the blocks of a tensor do not fit it");
  };
  for (std::size_t at = kFirstLine.size() + 1; at < end;) {
    const std::size_t length = text.substr(at, end - at).find('\n');
    if (length == std::string_view::npos) throw damaged(at, "a line does not end");
    Line line(text.substr(at, length));
    const std::string_view kind = line.word();
    bool good = true;
    if (kind == "file") {
      check_last_tensor(at);
      FileSums file;
      good = line.number(file.size_bytes) && line.checksum(file.rest) && line.name(file.name, path);
      files.push_back(std::move(file));
    } else if (kind == "tensor" && !files.empty()) {
      check_last_tensor(at);
      FileSums::Tensor tensor;
      Checksum whole;
      good = line.number(tensor.offset_bytes) && line.number(tensor.size_bytes) && line.checksum(whole) && line.name(tensor.name, path);
      FileSums& file = files.back();
      const std::uint64_t free_from = file.tensors.empty() ? 0 : file.tensors.back().offset_bytes + file.tensors.back().size_bytes;
      if (good &&
          (tensor.offset_bytes < free_from || tensor.offset_bytes > file.size_bytes || tensor.size_bytes > file.size_bytes - tensor.offset_bytes))
        throw damaged(at, "a tensor lies outside of its file or over another");
      if (good && num_sum_blocks(tensor.size_bytes) == 1) tensor.blocks = {whole};
      wholes.push_back(whole);
      file.tensors.push_back(std::move(tensor));
    } else if (kind == "block" && !files.empty() && !files.back().tensors.empty()) {
      Checksum block;
      good = line.checksum(block) && files.back().tensors.back().blocks.size() < num_sum_blocks(files.back().tensors.back().size_bytes);
      files.back().tensors.back().blocks.push_back(block);
    } else {
      good = false;
    }
    if (!good || !line.at_end()) throw damaged(at, "a line cannot be understood");
    at += length + 1;
  }
  check_last_tensor(end);
  return files;
}

std::vector<FileSums> read_checksums(const std::filesystem::path& path) { return parse_checksums(read_text_file(path, kMaxBytes), path); }

std::filesystem::path checksums_path(const std::filesystem::path& model, bool is_folder) {
  if (is_folder) return model / kChecksumsName;
  return model.parent_path() / (model.filename().native() + ".checksums");
}

Checksum checksum_of_rest(const File& file, std::uint64_t size_bytes, std::span<const FileSums::Tensor> tensors) {
  Hasher hasher;
  std::vector<std::byte> buffer(std::size_t{1} << 18);
  std::uint64_t at = 0;
  const auto add_until = [&](std::uint64_t end) {
    while (at < end) {
      const auto piece = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), end - at)));
      file.read(at, piece);
      hasher.add(piece);
      at += piece.size();
    }
  };
  for (const FileSums::Tensor& tensor : tensors) {
    add_until(tensor.offset_bytes);
    at = tensor.offset_bytes + tensor.size_bytes;
  }
  add_until(size_bytes);
  return hasher.checksum();
}

}  // namespace weft
