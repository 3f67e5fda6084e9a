#include "model/text_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <mutex>
#include <optional>
#include <utility>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/gpt_split.h"
#include "model/unicode_table.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

// One match of a sane pattern needs a few steps for each character; a pattern that backtracks without end is stopped here.
constexpr std::uint32_t kMaxMatchSteps = 10'000'000;
constexpr std::uint32_t kMaxHeapKib = 64 * 1024;
constexpr std::size_t kMaxPatternBytes = 64 * 1024;

constexpr const char* kSpaceClass = R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// Long names of general categories; the short ones are known by their form.
constexpr std::array<std::pair<std::string_view, std::string_view>, 15> kLongNames = {{
    {"letter", "L"},
    {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"mark", "M"},
    {"nonspacingmark", "Mn"},
    {"spacingmark", "Mc"},
    {"number", "N"},
    {"decimalnumber", "Nd"},
    {"punctuation", "P"},
    {"symbol", "S"},
    {"separator", "Z"},
    {"other", "C"},
}};

constexpr std::array<std::string_view, 30> kCategoryNames = {"Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd",
                                                             "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm",
                                                             "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};

/// Members of a class: a general category of Unicode 16, said to an engine that knows Unicode 14. Empty when `name` is none.
std::string category_members(std::string_view name) {
  bool known = name.size() == 1 && std::string_view("LMNPSZC").find(name[0]) != std::string_view::npos;
  for (const std::string_view category : kCategoryNames) known = known || category == name;
  if (!known) return {};
  std::string members = "\\p{" + std::string(name) + "}";
  if (name == "C" || name == "Cn") return members;
  for (const CategoryRange& range : kCategoriesSince14) {
    if (!kCategoryNames[range.category].starts_with(name)) continue;
    char text[40];
    std::snprintf(text, sizeof text, "\\x{%x}-\\x{%x}", static_cast<unsigned>(range.first), static_cast<unsigned>(range.last));
    members += text;
  }
  return members;
}

std::string word_members() {
  return category_members("L") + category_members("M") + category_members("N") + category_members("Pc") +
         R"(\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
}

/// From Oniguruma's Ruby syntax to PCRE2's. What differs: the meaning of \s \w \d \h, Unicode's version, scripts, (?m), {,n}, {n,m}+.
class Translator {
 public:
  Translator(std::string_view in, const std::filesystem::path& file, const std::string& key) : in_(in), file_(file), key_(key) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        begin_atom();
        escape(false);
      } else if (c == '[') {
        begin_atom();
        bracket();
      } else if (c == '(') {
        groups_.push_back(out_.size());
        group();
      } else if (c == ')') {
        if (groups_.empty()) refuse("a closing parenthesis without an opening one");
        atom_ = groups_.back();
        groups_.pop_back();
        out_ += in_[at_++];
      } else if (c == '{' && interval()) {
      } else if (c == '*' || c == '+' || c == '?' || c == '|' || c == '^' || c == '$') {
        out_ += in_[at_++];
      } else {
        begin_atom();
        do out_ += in_[at_++];
        while (at_ < in_.size() && (static_cast<unsigned char>(in_[at_]) & 0xC0) == 0x80);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorCode::unsupported, "the pattern of the tokenizer has " + what + ", which weft cannot run: '" + printable(in_) + "'",
                {.file = file_.string(), .key = key_});
  }
  void begin_atom() { atom_ = out_.size(); }
  [[nodiscard]] char peek(std::size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  void members(const std::string& list, bool negated, bool in_class) {
    if (in_class && negated) refuse("a negated class inside a class");
    out_ += in_class ? list : (negated ? "[^" : "[") + list + "]";
  }

  void property(bool negated, bool in_class) {
    std::string name;
    if (peek() == '{') {
      const std::size_t close = in_.find('}', at_);
      if (close == std::string_view::npos) refuse("an unfinished \\p");
      name = in_.substr(at_ + 1, close - at_ - 1);
      at_ = close + 1;
    } else {
      name = std::string(1, peek());
      ++at_;
    }
    if (name.starts_with('^')) {
      negated = !negated;
      name.erase(0, 1);
    }
    std::string plain;
    for (const char c : name)
      if (c != '_' && c != ' ' && c != '-') plain += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    for (const auto& [full, abbreviated] : kLongNames)
      if (plain == full) name = abbreviated;
    if (plain.size() == 2 && category_members(name).empty()) {
      const std::string folded = {static_cast<char>(plain[0] - 32), plain[1]};
      if (!category_members(folded).empty()) name = folded;
    }
    std::string list = category_members(name);
    if (plain == "alpha" || plain == "alphabetic")
      list = category_members("L") + category_members("M") + category_members("Nl");
    else if (plain == "alnum")
      list = category_members("L") + category_members("M") + category_members("Nl") + category_members("Nd");
    else if (plain == "digit")
      list = category_members("Nd");
    else if (plain == "upper" || plain == "uppercase")
      list = category_members("Lu");
    else if (plain == "lower" || plain == "lowercase")
      list = category_members("Ll");
    else if (plain == "punct")
      list = category_members("P");
    else if (plain == "space" || plain == "whitespace")
      list = kSpaceClass;
    else if (plain == "word")
      list = word_members();
    else if (plain == "any")
      list = R"(\x{0}-\x{10ffff})";
    if (!list.empty()) return members(list, negated, in_class);
    for (const char c : plain)
      if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))) refuse("an unknown property '" + name + "'");
    out_ += (negated ? "\\P{sc:" : "\\p{sc:") + name + "}";  // a script; PCRE2 says when it is none
  }

  void escape(bool in_class) {
    ++at_;
    if (at_ == in_.size()) refuse("a backslash at its end");
    const char c = in_[at_++];
    switch (c) {
      case 's':
        return members(kSpaceClass, false, in_class);
      case 'S':
        if (in_class)
          out_ += "\\S";  // differs from ours only at U+180E
        else
          members(kSpaceClass, true, false);
        return;
      case 'd':
        return members(category_members("Nd"), false, in_class);
      case 'D':
        return members(category_members("Nd"), true, in_class);
      case 'w':
        return members(word_members(), false, in_class);
      case 'W':
        return members(word_members(), true, in_class);
      case 'h':
        return members("0-9a-fA-F", false, in_class);
      case 'H':
        return members("0-9a-fA-F", true, in_class);
      case 'p':
        return property(false, in_class);
      case 'P':
        return property(true, in_class);
      case 'v':
        out_ += "\\x0b";
        return;
      case 'u':
        if (at_ + 4 > in_.size()) refuse("an unfinished \\u");
        out_ += "\\x{" + std::string(in_.substr(at_, 4)) + "}";
        at_ += 4;
        return;
      default:
        out_ += '\\';
        out_ += c;
    }
  }

  void bracket() {
    out_ += in_[at_++];
    if (peek() == '^') out_ += in_[at_++];
    if (peek() == ']') {
      out_ += "\\]";
      ++at_;
    }
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '\\') {
        escape(true);
      } else if (in_[at_] == '[') {
        if (peek(1) != ':') refuse("a class inside a class");
        posix();
      } else if (in_[at_] == '&' && peek(1) == '&') {
        refuse("an intersection of classes");
      } else {
        out_ += in_[at_++];
      }
    }
    if (at_ == in_.size()) refuse("a class that does not end");
    out_ += in_[at_++];
  }

  void posix() {
    const std::size_t close = in_.find(":]", at_);
    if (close == std::string_view::npos) refuse("an unfinished class name");
    std::string_view name = in_.substr(at_ + 2, close - at_ - 2);
    at_ = close + 2;
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    std::string list;
    if (name == "alpha") list = category_members("L") + category_members("M") + category_members("Nl");
    if (name == "alnum") list = category_members("L") + category_members("M") + category_members("Nl") + category_members("Nd");
    if (name == "digit") list = category_members("Nd");
    if (name == "upper") list = category_members("Lu");
    if (name == "lower") list = category_members("Ll");
    if (name == "space") list = kSpaceClass;
    if (name == "punct") list = category_members("P") + "$+<=>^`|~";
    if (name == "word") list = word_members();
    if (name == "xdigit") list = "0-9a-fA-F";
    if (list.empty()) refuse("the class [:" + std::string(name) + ":]");
    members(list, negated, true);
  }

  void group() {
    out_ += in_[at_++];
    if (peek() != '?') return;
    out_ += in_[at_++];
    const char kind = peek();
    if (kind == '<' || kind == '=' || kind == '!' || kind == ':' || kind == '>' || kind == '#') {
      if (kind == '#') refuse("a comment");
      return;
    }
    // Options: Ruby's m lets the dot match line ends, which PCRE2 calls s.
    while (at_ < in_.size() && in_[at_] != ':' && in_[at_] != ')') {
      const char option = in_[at_++];
      if (option != 'i' && option != 'm' && option != 'x' && option != '-') refuse(std::string("the option '") + option + "'");
      out_ += option == 'm' ? 's' : option;
    }
  }

  /// {n}, {n,}, {n,m}, {,m}; false when the brace is an ordinary character.
  bool interval() {
    std::size_t end = at_ + 1;
    std::string low;
    std::string high;
    bool comma = false;
    while (end < in_.size() && in_[end] >= '0' && in_[end] <= '9') low += in_[end++];
    if (end < in_.size() && in_[end] == ',') {
      comma = true;
      ++end;
      while (end < in_.size() && in_[end] >= '0' && in_[end] <= '9') high += in_[end++];
    }
    if (end >= in_.size() || in_[end] != '}' || (low.empty() && high.empty())) {
      begin_atom();
      out_ += "\\{";
      ++at_;
      return true;
    }
    out_ += "{" + (low.empty() ? std::string("0") : low) + (comma ? "," + high : "") + "}";
    at_ = end + 1;
    if (peek() == '+') {  // not possessive in Ruby: the whole again
      out_.insert(atom_, "(?:");
      out_ += ")";
    }
    return true;
  }

  std::string_view in_;
  const std::filesystem::path& file_;
  const std::string& key_;
  std::size_t at_ = 0;
  std::string out_;
  std::size_t atom_ = 0;
  std::vector<std::size_t> groups_;
};

struct FreeCode {
  void operator()(pcre2_code* p) const noexcept { pcre2_code_free(p); }
};
struct FreeData {
  void operator()(pcre2_match_data* p) const noexcept { pcre2_match_data_free(p); }
};
struct FreeContext {
  void operator()(pcre2_match_context* p) const noexcept { pcre2_match_context_free(p); }
};
struct FreeStack {
  void operator()(pcre2_jit_stack* p) const noexcept { pcre2_jit_stack_free(p); }
};

}  // namespace

std::string pcre2_pattern(std::string_view oniguruma, const std::filesystem::path& file, const std::string& key) {
  return Translator(oniguruma, file, key).run();
}

struct TextPattern::Regex {
  std::string text;
  std::filesystem::path file;
  std::string key;
  std::optional<GptSplit> known;
  std::unique_ptr<pcre2_code, FreeCode> code;

  /// What one match needs; taken from a pool, so that threads do not wait for each other.
  struct Workspace {
    std::unique_ptr<pcre2_match_data, FreeData> data;
    std::unique_ptr<pcre2_match_context, FreeContext> context;
    std::unique_ptr<pcre2_jit_stack, FreeStack> stack;
  };
  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Workspace>> pool;

  [[nodiscard]] std::unique_ptr<Workspace> take() const {
    {
      const std::lock_guard lock(mutex);
      if (!pool.empty()) {
        auto workspace = std::move(pool.back());
        pool.pop_back();
        return workspace;
      }
    }
    auto workspace = std::make_unique<Workspace>();
    workspace->data.reset(pcre2_match_data_create_from_pattern(code.get(), nullptr));
    workspace->context.reset(pcre2_match_context_create(nullptr));
    workspace->stack.reset(pcre2_jit_stack_create(32 * 1024, 1024 * 1024, nullptr));
    if (!workspace->data || !workspace->context) throw std::bad_alloc();
    pcre2_set_match_limit(workspace->context.get(), kMaxMatchSteps);
    pcre2_set_heap_limit(workspace->context.get(), kMaxHeapKib);
    pcre2_jit_stack_assign(workspace->context.get(), nullptr, workspace->stack.get());
    return workspace;
  }

  template <typename Found>
  void for_each(std::string_view subject, Found&& found) const {
    std::unique_ptr<Workspace> workspace = take();
    const auto* const bytes = reinterpret_cast<PCRE2_SPTR>(subject.data());
    std::size_t from = 0;
    std::optional<std::size_t> last_end;
    while (from <= subject.size()) {
      int result = pcre2_match(code.get(), bytes, subject.size(), from, PCRE2_NO_UTF_CHECK, workspace->data.get(), workspace->context.get());
      if (result == PCRE2_ERROR_JIT_STACKLIMIT)
        result =
            pcre2_match(code.get(), bytes, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, workspace->data.get(), workspace->context.get());
      if (result == PCRE2_ERROR_NOMATCH) break;
      if (result < 0)
        throw Error(ErrorCode::unsupported,
                    "the pattern '" + printable(text) + "' needs too many steps on this text (PCRE2 error " + std::to_string(result) + ")",
                    {.file = file.string(), .key = key, .byte = from}, "shorten the text, or give the tokenizer a pattern that does not backtrack");
      const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(workspace->data.get());
      const std::size_t begin = range[0];
      const std::size_t end = std::max(range[1], begin);  // \K could reverse them
      // An empty match right behind the last one would repeat for ever.
      if (begin == end && last_end == end) {
        if (from >= subject.size()) break;
        from += decode_utf8(subject.data() + from).size_bytes;
        continue;
      }
      from = end;
      last_end = end;
      found(begin, end);
    }
    const std::lock_guard lock(mutex);
    pool.push_back(std::move(workspace));
  }
};

TextPattern TextPattern::literal(std::string text) {
  TextPattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

TextPattern TextPattern::regex(const std::string& pattern, const std::filesystem::path& file, const std::string& key) {
  auto made = std::make_shared<Regex>();
  made->text = pattern;
  made->file = file;
  made->key = key;
  made->known = known_split(pattern);
  if (!made->known) {
    if (pattern.size() > kMaxPatternBytes)
      throw Error(ErrorCode::unsupported,
                  "a pattern of " + std::to_string(pattern.size()) + " bytes; at most " + std::to_string(kMaxPatternBytes) + " are run",
                  {.file = file.string(), .key = key});
    const std::string translated = pcre2_pattern(pattern, file, key);
    int error = 0;
    PCRE2_SIZE offset = 0;
    made->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_DUPNAMES, &error, &offset, nullptr));
    if (!made->code) {
      std::array<PCRE2_UCHAR, 200> message{};
      pcre2_get_error_message(error, message.data(), message.size());
      throw Error(ErrorCode::unsupported,
                  "the pattern '" + printable(pattern) + "' cannot be compiled: " + reinterpret_cast<const char*>(message.data()),
                  {.file = file.string(), .key = key});
    }
    pcre2_jit_compile(made->code.get(), PCRE2_JIT_COMPLETE);  // where the machine has none, the interpreter runs
  }
  TextPattern result;
  result.regex_ = std::move(made);
  return result;
}

bool TextPattern::covers() const noexcept { return regex_ != nullptr && regex_->known.has_value(); }

void TextPattern::cut(std::string_view text, std::vector<Part>& parts) const {
  if (text.empty()) {
    parts.push_back({0, 0, false});
    return;
  }
  if (covers()) return cut_gpt(*regex_->known, text, parts);
  std::size_t last = 0;
  const auto found = [&](std::size_t begin, std::size_t end) {
    if (begin < last) return;  // a lookbehind with \K could step back
    if (begin != last) parts.push_back({last, begin, false});
    parts.push_back({begin, end, true});
    last = end;
  };
  if (regex_ != nullptr) {
    regex_->for_each(text, found);
  } else if (!literal_.empty()) {
    for (std::size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at + literal_.size()))
      found(at, at + literal_.size());
  }
  if (last != text.size()) parts.push_back({last, text.size(), false});
}

void TextPattern::find(std::string_view text, std::vector<AlignedText::Match>& matches) const {
  std::vector<Part> parts;
  cut(text, parts);
  for (const Part& part : parts)
    if (part.match) matches.push_back({part.begin, part.end});
}

}  // namespace weft::model
