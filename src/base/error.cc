#include "weft/error.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/text.h"

namespace weft {
namespace {

/// The text goes to terminals, and parts of it come from files: nothing in it may move the cursor.
std::string safe(std::string_view part) { return printable(part, std::numeric_limits<std::size_t>::max()); }

/// Whether the message names this already, as a word of its own (a tensor may be called "a").
bool says(std::string_view message, std::string_view name) {
  const auto ends_word = [&](std::size_t i) {
    return i >= message.size() || std::string_view("' \"`,;:()[]").find(message[i]) != std::string_view::npos;
  };
  for (std::size_t at = message.find(name); at != std::string_view::npos; at = message.find(name, at + 1))
    if ((at == 0 || ends_word(at - 1)) && ends_word(at + name.size())) return true;
  return false;
}

}  // namespace

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::not_found:
      return "not_found";
    case ErrorCode::corrupt:
      return "corrupt";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::io:
      return "io";
    case ErrorCode::no_space:
      return "no_space";
    case ErrorCode::out_of_memory:
      return "out_of_memory";
    case ErrorCode::interrupted:
      return "interrupted";
    case ErrorCode::internal:
      return "internal";
  }
  return "internal";
}

Error::Error(ErrorCode code, std::string message, ErrorPlace place, std::string advice, int system_error)
    : code_(code), message_(std::move(message)), place_(std::move(place)), advice_(std::move(advice)), system_error_(system_error) {
  text_ = safe(message_);
  std::string where;
  const auto append = [&](std::string_view what, std::string_view value, bool unless_said = true) {
    if (value.empty()) return;
    const std::string shown = safe(value);
    if (unless_said && says(text_, shown)) return;
    where += where.empty() ? "" : ", ";
    where += what;
    where += shown;
  };
  append("tensor ", place_.tensor);
  append("", place_.file);
  append("key ", place_.key);
  if (place_.byte) append("byte ", std::to_string(*place_.byte), false);
  if (!where.empty()) text_ += "\n  in " + where;
  for (std::size_t begin = 0; begin < advice_.size();) {
    const std::size_t end = std::min(advice_.find('\n', begin), advice_.size());
    text_ += "\n  " + safe(std::string_view(advice_).substr(begin, end - begin));
    begin = end + 1;
  }
}

int Error::exit_status() const noexcept {
  switch (code_) {
    case ErrorCode::invalid_argument:
    case ErrorCode::not_found:
    case ErrorCode::corrupt:
    case ErrorCode::unsupported:
      return 2;
    default:
      return 1;
  }
}

}  // namespace weft
