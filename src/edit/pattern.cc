#include "edit/pattern.h"

#include <re2/re2.h>

#include <utility>

#include "base/text.h"
#include "weft/error.h"

namespace weft::edit {

struct Pattern::Compiled {
  explicit Compiled(const std::string& text, const RE2::Options& options) : re(text, options) {}
  RE2 re;
};

Pattern::Pattern(std::string text, std::string where) : text_(std::move(text)), where_(std::move(where)) {
  RE2::Options options;
  options.set_log_errors(false);
  compiled_ = std::make_unique<Compiled>(text_, options);
  if (text_.empty()) throw Error(ErrorCode::invalid_argument, where_ + " has an empty pattern", {.key = where_}, "'.' matches every name");
  if (!compiled_->re.ok())
    throw Error(ErrorCode::invalid_argument, "'" + printable(text_) + "' is no pattern: " + compiled_->re.error(), {.key = where_},
                "patterns are regular expressions; a backslash takes a character literally, as in 'model\\.norm'");
}
Pattern::~Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;

bool Pattern::matches(std::string_view name) const { return RE2::PartialMatch(re2::StringPiece(name.data(), name.size()), compiled_->re); }

std::optional<std::string> Pattern::replaced(std::string_view name, const std::string& by) const {
  std::string out(name);
  if (!RE2::Replace(&out, compiled_->re, by)) return std::nullopt;
  return out;
}

void Pattern::check_replacement(const std::string& by) const {
  std::string problem;
  if (compiled_->re.CheckRewriteString(by, &problem)) return;
  throw Error(ErrorCode::invalid_argument, "'" + printable(by) + "' cannot stand for what '" + printable(text_) + "' matches: " + problem,
              {.key = where_}, "\\1 to \\9 stand for the groups of the pattern, \\0 for all of the match, \\\\ for a backslash");
}

}  // namespace weft::edit
