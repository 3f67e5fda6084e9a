#include "base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "weft/error.h"

namespace weft {
namespace {

// ---- sizes ----

struct Unit {
  std::string_view name;  // lower case
  std::uint64_t bytes;
};
constexpr std::array<Unit, 14> kUnits = {{
    {"", 1},
    {"k", 1'000},
    {"kb", 1'000},
    {"kib", std::uint64_t{1} << 10},
    {"m", 1'000'000},
    {"mb", 1'000'000},
    {"mib", std::uint64_t{1} << 20},
    {"g", 1'000'000'000},
    {"gb", 1'000'000'000},
    {"b", 1'000'000'000},  // billion, as mergekit writes it
    {"gib", std::uint64_t{1} << 30},
    {"t", 1'000'000'000'000},
    {"tb", 1'000'000'000'000},
    {"tib", std::uint64_t{1} << 40},
}};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

[[noreturn]] void bad_size(std::string_view text, std::string_view why) {
  throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is not a size: {}", printable(text), why), {},
              "write a number of bytes with or without a unit, such as 4096, 800MB, 2GiB or 1.5G");
}

/// Three significant digits and the unit that keeps the number below 1000 after rounding.
std::string three_digits(std::uint64_t value, const std::array<std::string_view, 7>& units) {
  if (value < 1000) return units[0].empty() ? std::to_string(value) : fmt::format("{} {}", value, units[0]);
  double scaled = static_cast<double>(value);
  std::size_t unit = 0;
  while (scaled >= 999.5 && unit + 1 < units.size()) {
    scaled /= 1000;
    ++unit;
  }
  const int digits = scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f} {}", scaled, digits, units[unit]);
}

// ---- UTF-8 ----

/// Length of the well-formed sequence at the start of bytes and its code point; 0 where there is none. bytes is not empty.
struct Decoded {
  std::size_t length;
  std::uint32_t code_point;
};
Decoded decode_utf8(std::string_view bytes) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return {1, first};
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  // 80..BF continue only; C0 and C1 could only be overlong; F5 and up lie beyond U+10FFFF.
  if (first < 0xC2 || first > 0xF4 || bytes.size() < length) return {0, 0};
  std::uint32_t code_point = first & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {0, 0};
    code_point = code_point << 6 | (byte(i) & 0x3Fu);
  }
  constexpr std::array<std::uint32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
  if (code_point < kSmallest[length] || code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF)) return {0, 0};
  return {length, code_point};
}

/// Characters that move the cursor, start an escape sequence, or reorder or hide the text around them.
bool disturbs_terminal(std::uint32_t c) noexcept {
  return c < 0x20 || (c >= 0x7F && c <= 0x9F) || c == 0x061C || (c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E) ||
         (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF;
}

}  // namespace

// ---- sizes ----

std::uint64_t parse_size(std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  while (!rest.empty() && rest.back() == ' ') rest.remove_suffix(1);
  // Digits are kept exactly: 0.1GB is 100,000,000 bytes, not the nearest double's worth.
  unsigned __int128 digits = 0;
  unsigned __int128 divisor = 1;
  bool any_digit = false;
  bool after_point = false;
  while (!rest.empty() && (is_digit(rest.front()) || (rest.front() == '.' && !after_point))) {
    if (rest.front() == '.') {
      after_point = true;
    } else {
      any_digit = true;
      // 2^64 has 20 digits; below 10^24 a product with a unit (at most 2^40) stays under 2^128.
      if (digits >= static_cast<unsigned __int128>(1'000'000'000'000) * 100'000'000'000) bad_size(text, "it has too many digits");
      digits = digits * 10 + static_cast<unsigned>(rest.front() - '0');
      if (after_point) divisor *= 10;
    }
    rest.remove_prefix(1);
  }
  if (!any_digit) bad_size(text, "it does not begin with a number");
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  std::string unit(rest);
  std::transform(unit.begin(), unit.end(), unit.begin(), lower);
  const auto* found = std::find_if(kUnits.begin(), kUnits.end(), [&](const Unit& u) { return u.name == unit; });
  if (found == kUnits.end()) bad_size(text, fmt::format("the unit '{}' is unknown", printable(rest)));
  const unsigned __int128 bytes = digits * found->bytes / divisor;
  if (bytes > UINT64_MAX) bad_size(text, "it exceeds 2^64 bytes");
  return static_cast<std::uint64_t>(bytes);
}

std::string format_size(std::uint64_t size_bytes) { return three_digits(size_bytes, {"B", "kB", "MB", "GB", "TB", "PB", "EB"}); }

std::string format_count(std::uint64_t count) { return three_digits(count, {"", "K", "M", "B", "T", "Qa", "Qi"}); }

std::string format_seconds(double seconds) {
  if (!(seconds > 0)) return "0 ms";
  if (seconds < 0.0005) return "<1 ms";
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  if (seconds > 1e15) return "forever";
  const auto whole = static_cast<std::uint64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
  return fmt::format("{} d {} h", whole / 86400, whole / 3600 % 24);
}

// ---- names ----

std::optional<std::string> nearest_name(std::string_view word, std::span<const std::string> candidates) {
  // Case and the choice between '-' and '_' are the mistakes that people make most; they count for nothing.
  const auto folded = [](std::string_view text) {
    std::string result(text.substr(0, 256));
    for (char& c : result) c = c == '-' || c == ' ' ? '_' : lower(c);
    return result;
  };
  const std::string wanted = folded(word);
  if (wanted.empty()) return std::nullopt;
  // A third of the word may be wrong; what is further away would only confuse.
  std::size_t best = std::max<std::size_t>(1, wanted.size() / 3) + 1;
  const std::string* nearest = nullptr;
  std::vector<std::size_t> before, above, row;
  for (const std::string& candidate : candidates) {
    const std::string name = folded(candidate);
    const std::size_t difference = name.size() > wanted.size() ? name.size() - wanted.size() : wanted.size() - name.size();
    if (difference >= best) continue;
    // Edit distance with swaps of neighbours (Damerau-Levenshtein, restricted), three rows at a time.
    above.resize(name.size() + 1);
    for (std::size_t j = 0; j <= name.size(); ++j) above[j] = j;
    before = above;
    row.resize(name.size() + 1);
    for (std::size_t i = 1; i <= wanted.size(); ++i) {
      row[0] = i;
      for (std::size_t j = 1; j <= name.size(); ++j) {
        row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (wanted[i - 1] == name[j - 1] ? 0u : 1u)});
        if (i > 1 && j > 1 && wanted[i - 1] == name[j - 2] && wanted[i - 2] == name[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
      }
      std::swap(before, above);
      std::swap(above, row);
    }
    if (above[name.size()] < best) {
      best = above[name.size()];
      nearest = &candidate;
    }
  }
  if (nearest != nullptr) return *nearest;
  // An abbreviation: the shortest name that goes on from the word.
  if (wanted.size() >= 3)
    for (const std::string& candidate : candidates)
      if (folded(candidate).starts_with(wanted) && (nearest == nullptr || candidate.size() < nearest->size())) nearest = &candidate;
  return nearest == nullptr ? std::nullopt : std::optional(*nearest);
}

// ---- UTF-8 ----

bool is_valid_utf8(std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const std::size_t length = decode_utf8(bytes).length;
    if (length == 0) return false;
    bytes.remove_prefix(length);
  }
  return true;
}

std::string printable(std::string_view text, std::size_t max_bytes) {
  constexpr std::string_view kCut = "...";
  std::string result;
  std::size_t fits = 0;  // the longest prefix of result, ending between characters, that leaves room for the dots
  while (!text.empty()) {
    const Decoded c = decode_utf8(text);
    std::string piece;
    if (c.length == 0) {
      piece = fmt::format("\\x{:02x}", static_cast<unsigned char>(text[0]));
    } else if (!disturbs_terminal(c.code_point)) {
      piece = text.substr(0, c.length);
    } else if (c.code_point == '\n') {
      piece = "\\n";
    } else if (c.code_point == '\t') {
      piece = "\\t";
    } else {
      piece = c.code_point < 0x80 ? fmt::format("\\x{:02x}", c.code_point) : fmt::format("\\u{:04x}", c.code_point);
    }
    if (result.size() + piece.size() > max_bytes) {
      result.resize(fits);
      return result += kCut.substr(0, max_bytes);
    }
    result += piece;
    if (result.size() + kCut.size() <= max_bytes) fits = result.size();
    text.remove_prefix(std::max<std::size_t>(1, c.length));
  }
  return result;
}

}  // namespace weft
