#include "report/page.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <unordered_map>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "report/assets.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft::report {
namespace {

/// As text of HTML, or a value of an attribute in quotes.
std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

/// Names come from files: control characters and bytes that are no UTF-8 are written out.
std::string clean(std::string_view text, std::size_t max_bytes = 4000) { return printable(text, max_bytes); }

/// JSON inside of <script>: nothing in it may look like a tag or the begin of a comment.
std::string script_json(const Json& value) {
  const std::string text = write_json(value);
  std::string result;
  result.reserve(text.size() + text.size() / 64);
  for (const char c : text) {
    if (c == '<') {
      result += "\\u003c";
    } else {
      result += c;
    }
  }
  return result;
}

}  // namespace

Json rounded(double value, int digits) {
  if (!std::isfinite(value)) return {};
  if (value == std::floor(value) && std::abs(value) < 9e15) return Json(static_cast<std::int64_t>(value));
  return Json(Json::Number{fmt::format("{:.{}g}", value, digits)});
}

NameParts parts_of(std::string_view tensor) {
  NameParts parts;
  for (std::size_t dot = tensor.find('.'); dot != std::string_view::npos; dot = tensor.find('.', dot + 1)) {
    int number = -1;
    const char* begin = tensor.data() + dot + 1;
    const char* end = tensor.data() + tensor.size();
    const auto [stop, error] = std::from_chars(begin, end, number);
    if (error == std::errc() && stop != end && *stop == '.' && number >= 0) {
      parts.block = number;
      break;
    }
  }
  const std::string_view whole = tensor;
  if (tensor.ends_with(".weight")) tensor.remove_suffix(7);
  tensor.remove_prefix(tensor.rfind('.') + 1);
  parts.kind = clean(tensor.empty() ? whole : tensor);
  return parts;
}

Json::Object& Table::column(const std::string& key, const std::string& title, const char* type, bool shown, std::string_view hint) {
  Json::Object object = {{"key", Json(key)}, {"title", Json(title)}, {"type", Json(type)}};
  if (!shown) object.emplace_back("shown", Json(false));
  if (!hint.empty()) object.emplace_back("hint", Json(hint));
  columns_.emplace_back(std::move(object));
  return *columns_.back().object();
}

void Table::words(const std::string& key, const std::string& title, const std::vector<std::string>& values, bool shown) {
  Json::Object& object = column(key, title, "text", shown, {});
  std::unordered_map<std::string, std::int64_t> numbers;
  Json::Array words, indices;
  for (const std::string& value : values) {
    const auto [at, added] = numbers.try_emplace(value, static_cast<std::int64_t>(numbers.size()));
    if (added) words.emplace_back(clean(value));
    indices.emplace_back(at->second);
  }
  if (2 * words.size() < values.size()) {
    object.emplace_back("words", Json(std::move(words)));
    object.emplace_back("values", Json(std::move(indices)));
  } else {
    Json::Array plain;
    for (const std::string& value : values) plain.emplace_back(clean(value));
    object.emplace_back("values", Json(std::move(plain)));
  }
}

void Table::numbers(const std::string& key, const std::string& title, const std::vector<double>& values, bool shown, std::string_view hint) {
  Json::Array array;
  for (const double value : values) array.push_back(rounded(value));
  column(key, title, "number", shown, hint).emplace_back("values", Json(std::move(array)));
}

void Table::bytes(const std::string& key, const std::string& title, const std::vector<std::uint64_t>& values) {
  Json::Array array;
  for (const std::uint64_t value : values) array.emplace_back(value);
  column(key, title, "bytes", true, {}).emplace_back("values", Json(std::move(array)));
}

void Table::curve(const std::string& key, Json::Array rows) { curves_.emplace_back(key, Json(std::move(rows))); }

Json Table::json() && {
  Json::Object object = {{"columns", Json(std::move(columns_))}};
  if (!curves_.empty()) object.emplace_back("curves", Json(std::move(curves_)));
  return Json(std::move(object));
}

void Page::add_section(const char* type, std::string heading, std::string text, Json::Object rest) {
  Json::Object object = {{"type", Json(type)}, {"title", Json(std::move(heading))}};
  if (!text.empty()) object.emplace_back("text", Json(std::move(text)));
  for (auto& member : rest) object.push_back(std::move(member));
  sections.emplace_back(std::move(object));
}

std::string render(Page page) {
  if (vega_script().empty())
    throw Error(ErrorCode::unsupported, "this weft was built without what reports are drawn with", {.key = "--report"},
                "install the package libjs-vega and build weft again; --json and --csv have the same numbers");
  const std::string title = escaped(clean(page.title));
  std::string html = "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  // Whatever a text in the data may try, the page loads nothing and talks to nobody.
  html +=
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src "
      "data:; base-uri 'none'; form-action 'none'\">\n";
  html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"generator\" content=\"weft " + escaped(version()) +
          "\">\n";
  html += "<title>" + title + "</title>\n<style>\n";
  html += page_style();
  html += "</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#findings\">skip to the findings</a>\n<header><div><h1>" + title +
          "</h1>\n<p class=\"faint\">weft " + escaped(page.command) + ", version " + escaped(version()) +
          "</p></div>\n<button class=\"theme\" type=\"button\" hidden>light or dark</button></header>\n";
  html += "<dl class=\"facts\">\n";
  for (const auto& [name, value] : page.facts) html += "<div><dt>" + escaped(clean(name)) + "</dt><dd>" + escaped(clean(value)) + "</dd></div>\n";
  html +=
      "</dl>\n<nav aria-label=\"contents\"><ul></ul></nav>\n<main>\n<section id=\"findings\" aria-labelledby=\"findings-title\"><h2 "
      "id=\"findings-title\">Findings</h2>\n";
  if (page.findings.empty()) html += "<p>Nothing stands out.</p>\n";
  html += "<ul class=\"findings\">\n";
  for (const Finding& finding : page.findings)
    html += "<li class=\"" + escaped(finding.severity) + "\"><span class=\"severity\">" + escaped(finding.severity) + "</span>" +
            escaped(clean(finding.where, 500)) + ": " + escaped(clean(finding.what)) + "<span class=\"evidence\">" +
            escaped(clean(finding.evidence)) + "</span></li>\n";
  for (const std::string& warning : page.warnings)
    html += "<li class=\"warning\"><span class=\"severity\">warning</span>" + escaped(clean(warning)) + "</li>\n";
  html += "</ul>\n<noscript><p>Tables and charts need JavaScript; nothing is loaded from anywhere.</p></noscript>\n</section>\n</main>\n";
  html += "<script type=\"application/json\" id=\"data\">";
  html += script_json(Json(Json::Object{
      {"tables", Json(std::move(page.tables))}, {"sections", Json(std::move(page.sections))}, {"positions", Json(std::move(page.positions))}}));
  html += "</script>\n<script>\n";
  html += vega_script();
  html += "</script>\n<script>\n";
  html += page_script();
  html += "</script>\n</body>\n</html>\n";
  return html;
}

void write_page(Page page, const std::filesystem::path& output) {
  const std::string html = render(std::move(page));
  std::FILE* file = std::fopen(output.c_str(), "we");
  if (file == nullptr) throw path_error(errno, "write", output);
  const bool written = std::fwrite(html.data(), 1, html.size(), file) == html.size();
  const int reason = errno;
  if (std::fclose(file) != 0 || !written) throw path_error(written ? errno : reason, "write", output);
}

}  // namespace weft::report
