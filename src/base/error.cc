#include "weft/error.h"

#include <utility>

namespace weft {

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::corrupt: return "corrupt";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::io: return "io";
    case ErrorCode::no_space: return "no_space";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::interrupted: return "interrupted";
    case ErrorCode::internal: return "internal";
  }
  return "internal";
}

Error::Error(ErrorCode code, std::string message, ErrorPlace place, std::string advice, int system_error)
    : code_(code), message_(std::move(message)), place_(std::move(place)), advice_(std::move(advice)), system_error_(system_error) {
  text_ = message_;
  std::string where;
  const auto append = [&where](std::string_view what, std::string_view value) {
    if (value.empty()) return;
    where += where.empty() ? "" : ", ";
    where += what;
    where += value;
  };
  // What the message already says is not said again.
  const auto unsaid = [this](const std::string& value) { return message_.find(value) == std::string::npos ? std::string_view(value) : std::string_view(); };
  append("tensor ", unsaid(place_.tensor));
  append("", unsaid(place_.file));
  append("key ", unsaid(place_.key));
  if (place_.byte) append("byte ", std::to_string(*place_.byte));
  if (!where.empty()) text_ += "\n  in " + where;
  if (!advice_.empty()) text_ += "\n  " + advice_;
}

int Error::exit_status() const noexcept {
  switch (code_) {
    case ErrorCode::invalid_argument:
    case ErrorCode::not_found:
    case ErrorCode::corrupt:
    case ErrorCode::unsupported: return 2;
    default: return 1;
  }
}

}  // namespace weft
