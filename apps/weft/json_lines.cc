#include "json_lines.h"

#include <array>
#include <fstream>
#include <memory>
#include <span>

#include "base/file.h"
#include "base/text.h"
#include "weft/error.h"

namespace weft::app {
namespace {

constexpr std::size_t kMaxLineBytes = std::size_t{1} << 30;

}  // namespace

void for_each_json_line(const std::string& path, const std::function<void(const Json&, std::uint64_t)>& work) {
  const bool standard = path == "-";
  File file;
  if (!standard) file = File(path, FileMode::read);
  std::string pending;
  std::uint64_t offset = 0;
  std::uint64_t number = 0;
  std::array<char, 1 << 16> buffer{};
  JsonLimits limits;
  limits.max_bytes = kMaxLineBytes;
  const auto line = [&](std::string_view text) {
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) return;
    Json document;
    try {
      document = parse_json(text, path, limits);
    } catch (const Error& error) {
      throw Error(error.code(), "line " + std::to_string(number) + ": " + error.message(), error.place(), "each line is one JSON document");
    }
    work(document, number);
  };
  for (;;) {
    std::size_t count = 0;
    if (standard) {
      count = std::fread(buffer.data(), 1, buffer.size(), stdin);
      if (count == 0 && std::ferror(stdin) != 0) throw Error(ErrorCode::io, "standard input cannot be read", {.file = "standard input"});
    } else {
      count = file.read_some(offset, std::as_writable_bytes(std::span(buffer)));
      offset += count;
    }
    if (count == 0) break;
    std::string_view rest(buffer.data(), count);
    for (std::size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      if (pending.empty()) {
        line(rest.substr(0, end));
      } else {
        pending += rest.substr(0, end);
        line(pending);
        pending.clear();
      }
      rest.remove_prefix(end + 1);
    }
    pending += rest;
    if (pending.size() > kMaxLineBytes)
      throw Error(ErrorCode::unsupported, "line " + std::to_string(number + 1) + " has more than " + format_size(kMaxLineBytes), {.file = path});
  }
  if (!pending.empty()) line(pending);
}

void print_json_line(const Json& document) {
  const std::string text = write_json(document);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
}

void refuse_line(const std::string& path, std::uint64_t number, const std::string& what, const std::string& advice) {
  throw Error(ErrorCode::invalid_argument, "line " + std::to_string(number) + " " + what, {.file = path}, advice);
}

}  // namespace weft::app
