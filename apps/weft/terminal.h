#pragma once
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "weft/job.h"

// What people see: colours only on a terminal (and not with NO_COLOR), tables, one line of progress.
namespace weft::app {

enum class Style { bold, dim, red, green, yellow, cyan };

[[nodiscard]] bool is_terminal(std::FILE* stream);
/// Columns of the terminal; 100 when the stream is none.
[[nodiscard]] int terminal_width(std::FILE* stream);
/// The text in that style if the stream shows styles, else the text.
[[nodiscard]] std::string paint(std::FILE* stream, Style style, std::string_view text);
/// Words of `text` in lines of at most `width`, each after the first starting with `indent` spaces.
[[nodiscard]] std::string wrap(std::string_view text, int width, int indent);

enum class Align { left, right };

/// Columns as wide as their widest cell, two spaces apart.
class Table {
 public:
  explicit Table(std::vector<Align> columns) : columns_(std::move(columns)) {}
  void header(std::vector<std::string> cells) { header_ = std::move(cells); }
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void print(std::FILE* stream, int indent) const;

 private:
  std::vector<Align> columns_;
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

/// One line on stderr with what is done, at what rate, how long it will take. On a terminal it is rewritten in place, else a line every few seconds.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void show(const Progress& progress);
  /// Before anything else is printed.
  void clear();

 private:
  bool in_place_;
  bool bars_;
  bool shown_ = false;
  double next_line_seconds_ = 0;
};

}  // namespace weft::app
