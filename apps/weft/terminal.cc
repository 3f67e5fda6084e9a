#include "terminal.h"

#include <fmt/format.h>
#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <clocale>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "base/text.h"

namespace weft::app {
namespace {

bool shows_styles(std::FILE* stream) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return is_terminal(stream) && (no_color == nullptr || *no_color == '\0') && (term == nullptr || std::string_view(term) != "dumb");
}

// Characters, not bytes: continuation bytes of UTF-8 take no room. Good enough for names of tensors and paths.
std::size_t columns_of(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

bool is_terminal(std::FILE* stream) { return ::isatty(::fileno(stream)) == 1; }

int terminal_width(std::FILE* stream) {
  winsize size{};
  if (::ioctl(::fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col >= 40) return std::min<int>(size.ws_col, 140);
  return 100;
}

std::string paint(std::FILE* stream, Style style, std::string_view text) {
  if (!shows_styles(stream)) return std::string(text);
  const char* code = "";
  switch (style) {
    case Style::bold:
      code = "1";
      break;
    case Style::dim:
      code = "2";
      break;
    case Style::red:
      code = "31";
      break;
    case Style::green:
      code = "32";
      break;
    case Style::yellow:
      code = "33";
      break;
    case Style::cyan:
      code = "36";
      break;
  }
  return fmt::format("\033[{}m{}\033[0m", code, text);
}

std::string wrap(std::string_view text, int width, int indent) {
  std::string out;
  int column = indent;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const std::string_view word = text.substr(at, end - at);
    at = end + 1;
    if (word.empty()) continue;
    const int length = static_cast<int>(columns_of(word));
    if (column > indent && column + 1 + length > width) {
      out += '\n' + std::string(static_cast<std::size_t>(indent), ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += length;
  }
  return out;
}

void Table::print(std::FILE* stream, int indent) const {
  std::vector<std::size_t> widths(columns_.size(), 0);
  const auto widen = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size() && i < widths.size(); ++i) widths[i] = std::max(widths[i], columns_of(cells[i]));
  };
  widen(header_);
  for (const auto& cells : rows_) widen(cells);
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text(static_cast<std::size_t>(indent), ' ');
    for (std::size_t i = 0; i < cells.size() && i < widths.size(); ++i) {
      if (widths[i] == 0) continue;  // a column without a word takes no room
      const std::string padding(widths[i] - columns_of(cells[i]), ' ');
      if (i > 0) text += "  ";
      text += columns_[i] == Align::left ? cells[i] + padding : padding + cells[i];
    }
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  };
  if (!header_.empty()) std::fprintf(stream, "%s\n", paint(stream, Style::dim, line(header_)).c_str());
  for (const auto& cells : rows_) std::fprintf(stream, "%s\n", line(cells).c_str());
}

namespace {

/// What a job counts, by what it says that it does: bytes, unless it is named here.
std::string_view counted_by(std::string_view what) {
  constexpr std::pair<std::string_view, std::string_view> kCounted[] = {{"running blocks", "tokens"}, {"searching", "evaluations"}};
  for (const auto& [job, counted] : kCounted)
    if (job == what) return counted;
  return {};
}

}  // namespace

ProgressLine::ProgressLine() : in_place_(is_terminal(stderr)), bars_(false) {
  if (!in_place_) return;
  std::setlocale(LC_CTYPE, "");  // only to learn whether the terminal shows UTF-8
  bars_ = std::string_view(::nl_langinfo(CODESET)) == "UTF-8";
}

void ProgressLine::show(const Progress& progress) {
  constexpr double kSecondsBetweenLines = 5;
  if (!in_place_ && progress.elapsed_seconds < next_line_seconds_) return;
  next_line_seconds_ = progress.elapsed_seconds + kSecondsBetweenLines;

  const double share =
      progress.total_bytes > 0 ? std::min(1.0, static_cast<double>(progress.done_bytes) / static_cast<double>(progress.total_bytes)) : 0.0;
  std::string text = progress.what + "  ";
  if (in_place_) {
    constexpr int kBarWidth = 24;
    const int full = static_cast<int>(share * kBarWidth);
    for (int i = 0; i < kBarWidth; ++i) text += bars_ ? (i < full ? "━" : "╌") : (i < full ? "#" : ".");
    text += "  ";
  }
  const std::string_view counted = counted_by(progress.what);
  if (counted.empty())
    text += fmt::format("{:3.0f} %  {} of {}", share * 100, format_size(progress.done_bytes), format_size(progress.total_bytes));
  else
    text += fmt::format("{:3.0f} %  {} of {} {}", share * 100, progress.done_bytes, progress.total_bytes, counted);
  if (progress.elapsed_seconds > 0.5 && progress.done_bytes > 0) {
    const double rate = static_cast<double>(progress.done_bytes) / progress.elapsed_seconds;
    const double left = static_cast<double>(progress.total_bytes - std::min(progress.done_bytes, progress.total_bytes)) / rate;
    const std::string speed =
        counted.empty() ? format_size(static_cast<std::uint64_t>(rate)) : fmt::format("{:.{}f} {}", rate, rate < 10 ? 2 : 0, counted);
    text += fmt::format("  {}/s  {} left", speed, format_seconds(std::ceil(left)));
  }
  if (in_place_) {
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
  shown_ = true;
}

void ProgressLine::clear() {
  if (shown_ && in_place_) std::fputs("\r\033[K", stderr);
  shown_ = false;
}

}  // namespace weft::app
