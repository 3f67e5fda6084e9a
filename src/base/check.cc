#include "base/check.h"

#include <cstring>
#include <limits>
#include <string>

namespace weft {
namespace {

[[noreturn]] void overflow(std::string_view what, std::uint64_t a, const char* sign, std::uint64_t b) {
  throw Error(ErrorCode::corrupt, std::string(what) + " overflows: " + std::to_string(a) + sign + std::to_string(b));
}

}  // namespace

void assertion_failed(const char* condition, const char* file, int line) {
  // The path inside the repository says enough, and where it was built is nobody's business.
  for (const char* folder : {"/src/", "/apps/"})
    if (const char* inside = std::strstr(file, folder); inside != nullptr) {
      file = inside + 1;
      break;
    }
  throw Error(ErrorCode::internal, "an assumption of weft's own does not hold: " + std::string(condition),
              {.file = std::string(file) + ":" + std::to_string(line)}, "this is a bug in weft; please report it with the command and its inputs");
}

std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b, std::string_view what) {
  std::uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) overflow(what, a, " x ", b);
  return result;
}

std::uint64_t checked_add(std::uint64_t a, std::uint64_t b, std::string_view what) {
  std::uint64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) overflow(what, a, " + ", b);
  return result;
}

std::size_t checked_size(std::uint64_t value, std::string_view what) {
  // Half of the address space: no object can be larger, and differences of pointers into it must fit.
  if (value > static_cast<std::uint64_t>(std::numeric_limits<std::ptrdiff_t>::max()))
    throw Error(ErrorCode::corrupt, std::string(what) + " is " + std::to_string(value) + ", more than memory can hold");
  return static_cast<std::size_t>(value);
}

std::int64_t checked_dim(std::uint64_t value, std::string_view what) {
  if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    throw Error(ErrorCode::corrupt,
                std::string(what) + " is " + std::to_string(value) + ", more than " + std::to_string(std::numeric_limits<std::int64_t>::max()));
  return static_cast<std::int64_t>(value);
}

}  // namespace weft
