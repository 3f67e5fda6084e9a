#pragma once
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"

// One HTML file that needs nothing beside itself: facts and findings as text, tables and charts drawn from data that it holds once. What draws is
// page.js; here its data is made.
namespace weft::report {

/// A table of rows, by columns. Charts take their data from tables: `kind` and `block` place a row, `model` chooses, `name` tells.
class Table {
 public:
  explicit Table(std::size_t num_rows) : num_rows_(num_rows) {}

  /// Texts that repeat are kept once.
  void words(const std::string& key, const std::string& title, const std::vector<std::string>& values, bool shown = true);
  /// NaN: unknown. hint: what the number means.
  void numbers(const std::string& key, const std::string& title, const std::vector<double>& values, bool shown = true, std::string_view hint = {});
  void bytes(const std::string& key, const std::string& title, const std::vector<std::uint64_t>& values);
  /// A curve for each row; null where there is none.
  void curve(const std::string& key, Json::Array rows);

  [[nodiscard]] Json json() &&;

 private:
  Json::Object& column(const std::string& key, const std::string& title, const char* type, bool shown, std::string_view hint);
  std::size_t num_rows_;
  Json::Array columns_;
  Json::Object curves_;
};

struct Finding {
  std::string severity, what, where, evidence;
};

struct Page {
  std::string title;
  std::string command;  ///< "measure"
  std::vector<std::pair<std::string, std::string>> facts;
  std::vector<Finding> findings;
  std::vector<std::string> warnings;
  Json::Object tables;
  Json::Array sections;    ///< objects with type, title, text and what that type takes (see page.js)
  Json::Object positions;  ///< of the points of curves, by their number

  void add_table(const std::string& name, Table table) { tables.emplace_back(name, std::move(table).json()); }
  void add_section(const char* type, std::string heading, std::string text, Json::Object rest);
};

/// Four or five digits are enough to look at; NaN becomes null.
[[nodiscard]] Json rounded(double value, int digits = 5);

/// What a tensor's name says where nothing knows better: the layer (-1: none) and the last word.
struct NameParts {
  int block = -1;
  std::string kind;
};
[[nodiscard]] NameParts parts_of(std::string_view tensor);

/// The whole file. Errors: unsupported when this build has no charts.
[[nodiscard]] std::string render(Page page);
/// Errors: those of render; io.
void write_page(Page page, const std::filesystem::path& output);

}  // namespace weft::report
