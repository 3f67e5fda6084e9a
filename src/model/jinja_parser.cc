#include <algorithm>
#include <array>
#include <charconv>

#include "base/text.h"
#include "model/jinja_syntax.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model::jinja {
namespace {

constexpr int kMaxDepth = 120;
constexpr int kMaxHeight = 1000;

enum class TokenKind { data, variable_begin, variable_end, block_begin, block_end, name, text, integer, number, op, end };

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;
  int line = 1;
};

[[noreturn]] void refuse_source(const std::string& what, int line) {
  throw Error(ErrorCode::corrupt, "the chat template is no Jinja: " + what + " in line " + std::to_string(line));
}

bool is_space_at(std::string_view text, std::size_t at, std::size_t& size) {
  const CodePoint c = decode_utf8(text.data() + at);
  size = c.size_bytes;
  return is_whitespace(c.value) || (c.value >= 0x1C && c.value <= 0x1F);
}

// ---- Lexer ---------------------------------------------------------------------------------------------------------------------------------

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    // Line ends are one character, and one at the end goes.
    for (std::size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        text_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        text_ += source[i];
      }
    }
    if (text_.ends_with('\n')) text_.pop_back();
  }

  std::vector<Token> run() {
    bool line_starting = true;
    while (at_ < text_.size()) {
      const std::size_t tag = next_tag();
      std::string data = text_.substr(at_, tag - at_);
      const int data_line = line_;
      line_ += static_cast<int>(std::count(data.begin(), data.end(), '\n'));
      if (tag == text_.size()) {
        put(TokenKind::data, std::move(data), data_line);
        at_ = tag;
        break;
      }
      const char kind = text_[tag + 1];
      at_ = tag + 2;
      const char sign = at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+') ? text_[at_] : '\0';
      if (sign != '\0') ++at_;
      if (sign == '-') {
        strip_right(data);
      } else if (sign != '+' && kind != '{') {
        const std::size_t newline = data.rfind('\n');
        const std::size_t from = newline == std::string::npos ? 0 : newline + 1;
        if ((from > 0 || line_starting) && from < data.size() && all_space(data, from)) data.resize(from);
      }
      if (!data.empty()) put(TokenKind::data, std::move(data), data_line);
      if (kind == '#')
        comment();
      else if (kind == '{')
        inside(TokenKind::variable_begin, TokenKind::variable_end, "}}");
      else if (is_raw())
        raw();
      else
        inside(TokenKind::block_begin, TokenKind::block_end, "%}");
      line_starting = at_ > 0 && text_[at_ - 1] == '\n';
    }
    put(TokenKind::end, "", line_);
    return std::move(tokens_);
  }

 private:
  void put(TokenKind kind, std::string text, int line) { tokens_.push_back({kind, std::move(text), line}); }

  [[nodiscard]] std::size_t next_tag() const {
    for (std::size_t at = text_.find('{', at_); at != std::string::npos && at + 1 < text_.size(); at = text_.find('{', at + 1))
      if (text_[at + 1] == '{' || text_[at + 1] == '%' || text_[at + 1] == '#') return at;
    return text_.size();
  }
  static bool all_space(const std::string& text, std::size_t from) {
    std::size_t size = 0;
    for (std::size_t at = from; at < text.size(); at += size)
      if (!is_space_at(text, at, size)) return false;
    return true;
  }
  static void strip_right(std::string& text) {
    while (!text.empty()) {
      const CodePoint c = decode_utf8_before(text.data() + text.size());
      std::size_t size = 0;
      if (!is_space_at(text, text.size() - c.size_bytes, size)) break;
      text.resize(text.size() - c.size_bytes);
    }
  }
  void skip_spaces() {
    std::size_t size = 0;
    while (at_ < text_.size() && is_space_at(text_, at_, size)) {
      if (text_[at_] == '\n') ++line_;
      at_ += size;
    }
  }
  /// Behind the end of a tag: what its sign takes with it.
  void after_end(char sign, bool trims) {
    if (sign == '-') return skip_spaces();
    if (sign != '+' && trims && at_ < text_.size() && text_[at_] == '\n') {
      ++at_;
      ++line_;
    }
  }

  void comment() {
    const int begin = line_;
    const std::size_t end = text_.find("#}", at_);
    if (end == std::string::npos) refuse_source("a comment does not end", begin);
    const char sign = end > at_ && (text_[end - 1] == '-' || text_[end - 1] == '+') ? text_[end - 1] : '\0';
    line_ += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_), text_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    at_ = end + 2;
    after_end(sign, true);
  }

  [[nodiscard]] std::size_t spaces_from(std::size_t at) const {
    std::size_t size = 0;
    while (at < text_.size() && is_space_at(text_, at, size)) at += size;
    return at;
  }
  /// Where "NAME %}" ends if it is here, with its sign; npos if not.
  [[nodiscard]] std::size_t bare_block(std::size_t at, std::string_view name, char& sign) const {
    at = spaces_from(at);
    if (text_.compare(at, name.size(), name) != 0) return std::string::npos;
    at = spaces_from(at + name.size());
    sign = at < text_.size() && (text_[at] == '-' || text_[at] == '+') ? text_[at] : '\0';
    if (sign != '\0') ++at;
    return text_.compare(at, 2, "%}") == 0 ? at + 2 : std::string::npos;
  }
  [[nodiscard]] bool is_raw() const {
    char sign = '\0';
    return bare_block(at_, "raw", sign) != std::string::npos;
  }
  void raw() {
    const int begin = line_;
    char sign = '\0';
    at_ = bare_block(at_, "raw", sign);
    if (sign == '-') skip_spaces();
    for (std::size_t tag = text_.find("{%", at_); tag != std::string::npos; tag = text_.find("{%", tag + 2)) {
      std::size_t inner = tag + 2;
      const char before = inner < text_.size() && (text_[inner] == '-' || text_[inner] == '+') ? text_[inner] : '\0';
      if (before != '\0') ++inner;
      const std::size_t end = bare_block(inner, "endraw", sign);
      if (end == std::string::npos) continue;
      std::string data = text_.substr(at_, tag - at_);
      line_ += static_cast<int>(std::count(data.begin(), data.end(), '\n'));
      if (before == '-') {
        strip_right(data);
      } else if (before != '+') {
        const std::size_t newline = data.rfind('\n');
        if (newline != std::string::npos && newline + 1 < data.size() && all_space(data, newline + 1)) data.resize(newline + 1);
      }
      if (!data.empty()) put(TokenKind::data, std::move(data), begin);
      at_ = end;
      return after_end(sign, true);
    }
    refuse_source("a raw block does not end", begin);
  }

  void inside(TokenKind begin, TokenKind end, std::string_view end_text) {
    const int begin_line = line_;
    put(begin, "", line_);
    std::string open;
    for (;;) {
      skip_spaces();
      if (at_ >= text_.size()) refuse_source("a tag does not end", begin_line);
      if (open.empty()) {
        const char first = text_[at_];
        const bool signed_end = (first == '-' || (first == '+' && end == TokenKind::block_end)) && text_.compare(at_ + 1, 2, end_text) == 0;
        if (signed_end || text_.compare(at_, 2, end_text) == 0) {
          at_ += signed_end ? 3 : 2;
          put(end, "", line_);
          return after_end(signed_end ? first : '\0', end == TokenKind::block_end);
        }
      }
      token(open);
    }
  }

  void token(std::string& open) {
    const char c = text_[at_];
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\'' || c == '"') return text_token(c);
    if (c >= '0' && c <= '9') return number_token();
    if ((byte | 0x20) >= 'a' && (byte | 0x20) <= 'z') return name_token();
    if (c == '_' || byte >= 0x80) return name_token();
    constexpr std::array<std::string_view, 6> kLong = {"//", "**", "==", "!=", ">=", "<="};
    for (const std::string_view op : kLong) {
      if (text_.compare(at_, 2, op) != 0) continue;
      put(TokenKind::op, std::string(op), line_);
      at_ += 2;
      return;
    }
    if (std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos)
      refuse_source("unexpected character '" + printable(std::string_view(&text_[at_], 1)) + "'", line_);
    if (c == '(' || c == '[' || c == '{') open += c;
    if (c == ')' || c == ']' || c == '}') {
      const char expected = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open.empty() || open.back() != expected) refuse_source(std::string("unexpected '") + c + "'", line_);
      open.pop_back();
    }
    put(TokenKind::op, std::string(1, c), line_);
    ++at_;
  }

  void name_token() {
    const std::size_t begin = at_;
    while (at_ < text_.size()) {
      const auto byte = static_cast<unsigned char>(text_[at_]);
      if (byte < 0x80) {
        if (!((byte | 0x20) >= 'a' && (byte | 0x20) <= 'z') && !(byte >= '0' && byte <= '9') && byte != '_') break;
        ++at_;
      } else {
        const CodePoint c = decode_utf8(text_.data() + at_);
        if (!is_word(c.value)) break;
        at_ += c.size_bytes;
      }
    }
    if (at_ == begin) refuse_source("unexpected character", line_);
    put(TokenKind::name, text_.substr(begin, at_ - begin), line_);
  }

  void number_token() {
    const std::size_t begin = at_;
    const auto digit = [&](std::size_t at) { return at < text_.size() && text_[at] >= '0' && text_[at] <= '9'; };
    const auto digits = [&] {
      while (digit(at_) || (at_ < text_.size() && text_[at_] == '_' && digit(at_ + 1))) ++at_;
    };
    if (text_[at_] == '0' && at_ + 1 < text_.size() && std::string_view("xXoObB").find(text_[at_ + 1]) != std::string_view::npos) {
      const char base = static_cast<char>(text_[at_ + 1] | 0x20);
      std::string plain;
      for (at_ += 2; at_ < text_.size() && (std::isxdigit(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '_'); ++at_)
        if (text_[at_] != '_') plain += text_[at_];
      std::int64_t value = 0;
      const auto [end, error] = std::from_chars(plain.data(), plain.data() + plain.size(), value, base == 'x' ? 16 : base == 'o' ? 8 : 2);
      if (error != std::errc() || end != plain.data() + plain.size()) refuse_source("a number that cannot be read", line_);
      return put(TokenKind::integer, std::to_string(value), line_);
    }
    digits();
    bool whole = true;
    if (at_ < text_.size() && text_[at_] == '.' && digit(at_ + 1)) {
      whole = false;
      ++at_;
      digits();
    }
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      const std::size_t exponent = at_ + 1 + (at_ + 1 < text_.size() && (text_[at_ + 1] == '+' || text_[at_ + 1] == '-') ? 1 : 0);
      if (digit(exponent)) {
        whole = false;
        at_ = exponent;
        digits();
      }
    }
    std::string plain = text_.substr(begin, at_ - begin);
    std::erase(plain, '_');
    put(whole ? TokenKind::integer : TokenKind::number, std::move(plain), line_);
  }

  /// Python's escapes.
  void text_token(char quote) {
    const int begin = line_;
    std::string out;
    for (++at_; at_ < text_.size() && text_[at_] != quote; ++at_) {
      if (text_[at_] == '\n') ++line_;
      if (text_[at_] != '\\') {
        out += text_[at_];
        continue;
      }
      if (++at_ == text_.size()) break;
      const char c = text_[at_];
      const auto hex = [&](std::size_t count) {
        char32_t value = 0;
        for (std::size_t i = 1; i <= count; ++i) {
          const char h = at_ + i < text_.size() ? text_[at_ + i] : '\0';
          const int digit = h >= '0' && h <= '9' ? h - '0' : h >= 'a' && h <= 'f' ? h - 'a' + 10 : h >= 'A' && h <= 'F' ? h - 'A' + 10 : -1;
          if (digit < 0) refuse_source("a text has an escape that cannot be read", line_);
          value = value * 16 + static_cast<char32_t>(digit);
        }
        if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) refuse_source("a text has an escape that is no character", line_);
        append_utf8(out, value);
        at_ += count;
      };
      switch (c) {
        case 'n':
          out += '\n';
          break;
        case 't':
          out += '\t';
          break;
        case 'r':
          out += '\r';
          break;
        case 'a':
          out += '\a';
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case 'v':
          out += '\v';
          break;
        case '\\':
        case '\'':
        case '"':
          out += c;
          break;
        case '\n':
          ++line_;
          break;
        case 'x':
          hex(2);
          break;
        case 'u':
          hex(4);
          break;
        case 'U':
          hex(8);
          break;
        default:
          if (c >= '0' && c <= '7') {
            char32_t value = 0;
            std::size_t count = 0;
            while (count < 3 && at_ + count < text_.size() && text_[at_ + count] >= '0' && text_[at_ + count] <= '7')
              value = value * 8 + static_cast<char32_t>(text_[at_ + count++] - '0');
            append_utf8(out, value);
            at_ += count - 1;
          } else {
            out += '\\';
            out += c;
          }
      }
    }
    if (at_ >= text_.size()) refuse_source("a text does not end", begin);
    ++at_;
    put(TokenKind::text, std::move(out), begin);
  }

  std::string text_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

// ---- Parser --------------------------------------------------------------------------------------------------------------------------------

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Block run() {
    Block body = block({});
    if (current().kind != TokenKind::end) wrong();
    return body;
  }

 private:
  using Kind = Expression::Kind;

  /// Recursion is bounded, since a template may nest brackets a million deep.
  struct Depth {
    explicit Depth(Parser& owner) : parser(owner) {
      if (++parser.depth_ > kMaxDepth) refuse_source("more than " + std::to_string(kMaxDepth) + " levels of nesting", parser.current().line);
    }
    ~Depth() { --parser.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    Parser& parser;
  };

  [[nodiscard]] const Token& current() const { return tokens_[at_]; }
  [[nodiscard]] const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  [[nodiscard]] bool is_op(std::string_view op) const { return current().kind == TokenKind::op && current().text == op; }
  [[nodiscard]] bool is_name(std::string_view name) const { return current().kind == TokenKind::name && current().text == name; }
  void advance() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool skip_op(std::string_view op) {
    if (!is_op(op)) return false;
    advance();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    advance();
    return true;
  }
  [[noreturn]] void wrong(const std::string& expected = {}) const {
    const Token& token = current();
    std::string seen = "'" + printable(token.text, 40) + "'";
    if (token.kind == TokenKind::end) seen = "the end";
    if (token.kind == TokenKind::block_end) seen = "'%}'";
    if (token.kind == TokenKind::variable_end) seen = "'}}'";
    if (token.kind == TokenKind::data) seen = "text";
    refuse_source("unexpected " + seen + (expected.empty() ? "" : ", expected " + expected), token.line);
  }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) wrong("'" + std::string(op) + "'");
  }
  std::string expect_name() {
    if (current().kind != TokenKind::name) wrong("a name");
    std::string name = current().text;
    advance();
    return name;
  }
  void expect_block_end() {
    if (current().kind != TokenKind::block_end) wrong("'%}'");
    advance();
  }

  ExpressionPtr make(Kind kind) const {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->line = current().line;
    return node;
  }
  /// The height of a tree is bounded, too: a long chain of sums is as deep as it is long.
  static void grow(Expression& node, const Expression& child) {
    node.height = std::max(node.height, child.height + 1);
    if (node.height > kMaxHeight) refuse_source("an expression of more than " + std::to_string(kMaxHeight) + " parts", node.line);
  }
  static void push(Expression& node, ExpressionPtr child) {
    grow(node, *child);
    node.children.push_back(std::move(child));
  }
  ExpressionPtr make(Kind kind, ExpressionPtr first) const {
    ExpressionPtr node = make(kind);
    push(*node, std::move(first));
    return node;
  }
  ExpressionPtr constant(Value value) const {
    ExpressionPtr node = make(Kind::constant);
    node->value = std::move(value);
    return node;
  }

  // -- Statements

  /// Until one of the names begins a block; that name is current then.
  Block block(const std::vector<std::string_view>& ends) {
    const Depth depth(*this);
    Block body;
    for (;;) {
      switch (current().kind) {
        case TokenKind::end:
          if (!ends.empty()) wrong("'{% " + std::string(ends.back()) + " %}'");
          return body;
        case TokenKind::data: {
          auto node = statement(Statement::Kind::text);
          node->text = current().text;
          advance();
          body.push_back(std::move(node));
          break;
        }
        case TokenKind::variable_begin: {
          auto node = statement(Statement::Kind::print);
          advance();
          node->value = tuple(true);
          if (current().kind != TokenKind::variable_end) wrong("'}}'");
          advance();
          body.push_back(std::move(node));
          break;
        }
        case TokenKind::block_begin: {
          const Token& name = ahead();
          if (name.kind == TokenKind::name && std::find(ends.begin(), ends.end(), name.text) != ends.end()) {
            advance();
            return body;
          }
          advance();
          body.push_back(block_statement());
          break;
        }
        default:
          wrong();
      }
    }
  }
  std::unique_ptr<Statement> statement(Statement::Kind kind) const {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = current().line;
    return node;
  }
  void end_block(std::string_view name) {
    if (!skip_name(name)) wrong("'" + std::string(name) + "'");
    expect_block_end();
  }

  std::unique_ptr<Statement> block_statement() {
    const int line = current().line;
    const std::string name = expect_name();
    auto node = std::make_unique<Statement>();
    node->line = line;
    if (name == "if") {
      node->kind = Statement::Kind::conditional;
      for (;;) {
        ExpressionPtr condition = tuple(false);
        expect_block_end();
        Block body = block({"elif", "else", "endif"});
        node->branches.emplace_back(std::move(condition), std::move(body));
        if (skip_name("elif")) continue;
        if (skip_name("else")) {
          expect_block_end();
          node->else_body = block({"endif"});
        }
        end_block("endif");
        return node;
      }
    }
    if (name == "for") {
      node->kind = Statement::Kind::loop;
      targets(*node, false);
      if (!skip_name("in")) wrong("'in'");
      node->value = tuple(false);
      if (skip_name("if")) node->condition = expression(true);
      node->recursive = skip_name("recursive");
      if (node->recursive) refuse("a recursive loop (line " + std::to_string(line) + ")");
      expect_block_end();
      ++loops_;
      node->body = block({"else", "endfor"});
      --loops_;
      if (skip_name("else")) {
        expect_block_end();
        node->else_body = block({"endfor"});
      }
      end_block("endfor");
      return node;
    }
    if (name == "set") {
      targets(*node, true);
      if (skip_op("=")) {
        node->kind = Statement::Kind::set;
        node->value = tuple(true);
        expect_block_end();
        return node;
      }
      node->kind = Statement::Kind::set_block;
      node->value = filters_of_nothing();
      expect_block_end();
      node->body = block({"endset"});
      end_block("endset");
      return node;
    }
    if (name == "macro") {
      node->kind = Statement::Kind::macro;
      node->text = expect_name();
      parameters(*node);
      expect_block_end();
      const int loops = std::exchange(loops_, 0);
      node->body = block({"endmacro"});
      loops_ = loops;
      advance();
      if (current().kind == TokenKind::name && current().text == node->text) advance();
      expect_block_end();
      return node;
    }
    if (name == "call") {
      node->kind = Statement::Kind::call_block;
      if (is_op("(")) parameters(*node);
      node->value = expression(true);
      if (node->value->kind != Kind::call) wrong("a call");
      expect_block_end();
      const int loops = std::exchange(loops_, 0);
      node->body = block({"endcall"});
      loops_ = loops;
      end_block("endcall");
      return node;
    }
    if (name == "filter") {
      node->kind = Statement::Kind::filter_block;
      ExpressionPtr inner = filter(nullptr);
      while (skip_op("|")) inner = filter(std::move(inner));
      node->value = std::move(inner);
      expect_block_end();
      node->body = block({"endfilter"});
      end_block("endfilter");
      return node;
    }
    if (name == "with") {
      node->kind = Statement::Kind::with;
      while (current().kind != TokenKind::block_end) {
        std::string target = expect_name();
        expect_op("=");
        node->parameters.emplace_back(std::move(target), expression(true));
        if (!skip_op(",")) break;
      }
      expect_block_end();
      node->body = block({"endwith"});
      end_block("endwith");
      return node;
    }
    if (name == "generation") {
      node->kind = Statement::Kind::group;
      expect_block_end();
      node->body = block({"endgeneration"});
      end_block("endgeneration");
      return node;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) refuse_source("'" + name + "' outside of a loop", line);
      node->kind = name == "break" ? Statement::Kind::stop : Statement::Kind::skip;
      expect_block_end();
      return node;
    }
    for (const char* known : {"include", "import", "from", "extends", "block", "autoescape", "do", "trans", "debug"})
      if (name == known) refuse("the block '" + name + "' (line " + std::to_string(line) + ")");
    refuse_source("unknown block '" + printable(name, 40) + "'", line);
  }

  void targets(Statement& node, bool with_namespace) {
    const bool brackets = skip_op("(");
    do {
      if (!node.targets.empty() && (is_name("in") || is_op("=") || is_op(")"))) break;
      std::string target = expect_name();
      for (const char* reserved : {"true", "false", "none", "True", "False", "None"})
        if (target == reserved) refuse_source("'" + target + "' cannot be set", current().line);
      if (with_namespace && skip_op(".")) target += "." + expect_name();
      node.targets.push_back(std::move(target));
      if (is_op(",")) node.unpack = true;
    } while (skip_op(","));
    if (brackets) {
      expect_op(")");
      if (skip_op(",")) refuse("nested targets (line " + std::to_string(current().line) + ")");
    }
  }

  void parameters(Statement& node) {
    expect_op("(");
    while (!is_op(")")) {
      std::string name = expect_name();
      ExpressionPtr value;
      if (skip_op("=")) value = expression(true);
      node.parameters.emplace_back(std::move(name), std::move(value));
      if (!skip_op(",")) break;
    }
    expect_op(")");
  }

  /// "| a | b" behind the name of a set block; null for none.
  ExpressionPtr filters_of_nothing() {
    ExpressionPtr node;
    while (skip_op("|")) node = filter(std::move(node));
    return node;
  }

  // -- Expressions

  /// a, b, c; a single expression is itself.
  ExpressionPtr tuple(bool conditions) {
    ExpressionPtr first = expression(conditions);
    if (!is_op(",")) return first;
    ExpressionPtr node = make(Kind::tuple, std::move(first));
    while (skip_op(",")) {
      const TokenKind kind = current().kind;
      if (kind == TokenKind::block_end || kind == TokenKind::variable_end || is_op(")")) break;
      push(*node, expression(conditions));
    }
    return node;
  }

  ExpressionPtr expression(bool conditions) {
    const Depth depth(*this);
    ExpressionPtr node = either();
    while (conditions && is_name("if")) {
      ExpressionPtr choice = make(Kind::choose);
      advance();
      push(*choice, either());
      push(*choice, std::move(node));
      if (skip_name("else")) push(*choice, expression(true));
      node = std::move(choice);
    }
    return node;
  }
  ExpressionPtr either() {
    ExpressionPtr node = both();
    while (is_name("or")) {
      node = make(Kind::either, std::move(node));
      advance();
      push(*node, both());
    }
    return node;
  }
  ExpressionPtr both() {
    ExpressionPtr node = invert();
    while (is_name("and")) {
      node = make(Kind::both, std::move(node));
      advance();
      push(*node, invert());
    }
    return node;
  }
  ExpressionPtr invert() {
    const Depth depth(*this);
    if (!is_name("not")) return compare();
    ExpressionPtr node = make(Kind::invert);
    advance();
    push(*node, invert());
    return node;
  }
  ExpressionPtr compare() {
    ExpressionPtr node = sum();
    ExpressionPtr chain;
    for (;;) {
      std::string op;
      if (current().kind == TokenKind::op) {
        for (const char* known : {"==", "!=", "<", "<=", ">", ">="})
          if (current().text == known) op = known;
        if (op.empty()) break;
        advance();
      } else if (is_name("in")) {
        op = "in";
        advance();
      } else if (is_name("not") && ahead().kind == TokenKind::name && ahead().text == "in") {
        op = "not in";
        advance();
        advance();
      } else {
        break;
      }
      if (!chain) chain = make(Kind::compare, std::move(node));
      chain->ops.push_back(std::move(op));
      push(*chain, sum());
    }
    return chain ? std::move(chain) : std::move(node);
  }
  ExpressionPtr operation(ExpressionPtr left) {
    ExpressionPtr node = make(Kind::arithmetic, std::move(left));
    node->text = current().text;
    advance();
    return node;
  }
  ExpressionPtr sum() {
    ExpressionPtr node = concatenation();
    while (is_op("+") || is_op("-")) {
      node = operation(std::move(node));
      push(*node, concatenation());
    }
    return node;
  }
  ExpressionPtr concatenation() {
    ExpressionPtr node = product();
    if (!is_op("~")) return node;
    node = make(Kind::concatenate, std::move(node));
    while (skip_op("~")) push(*node, product());
    return node;
  }
  ExpressionPtr product() {
    ExpressionPtr node = power();
    while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
      node = operation(std::move(node));
      push(*node, power());
    }
    return node;
  }
  ExpressionPtr power() {
    ExpressionPtr node = unary(true);
    while (is_op("**")) {
      node = operation(std::move(node));
      push(*node, unary(true));
    }
    return node;
  }
  ExpressionPtr unary(bool filters) {
    const Depth depth(*this);
    ExpressionPtr node;
    if (is_op("-") || is_op("+")) {
      node = make(is_op("-") ? Kind::negative : Kind::positive);
      advance();
      push(*node, unary(false));
    } else {
      node = primary();
    }
    node = postfix(std::move(node));
    return filters ? filters_and_tests(std::move(node)) : std::move(node);
  }

  ExpressionPtr primary() {
    const Token& token = current();
    if (token.kind == TokenKind::name) {
      ExpressionPtr node;
      if (token.text == "true" || token.text == "True") {
        node = constant(Value::boolean(true));
      } else if (token.text == "false" || token.text == "False") {
        node = constant(Value::boolean(false));
      } else if (token.text == "none" || token.text == "None") {
        node = constant(Value());
      } else {
        node = make(Kind::name);
        node->text = token.text;
      }
      advance();
      return node;
    }
    if (token.kind == TokenKind::text) {
      std::string text;
      const int line = token.line;
      while (current().kind == TokenKind::text) {
        text += current().text;
        advance();
      }
      ExpressionPtr node = constant(Value::text(std::move(text)));
      node->line = line;
      return node;
    }
    if (token.kind == TokenKind::integer) {
      std::int64_t value = 0;
      const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
      if (error != std::errc()) refuse("an integer beyond 64 bits (line " + std::to_string(token.line) + ")");
      ExpressionPtr node = constant(Value::integer(value));
      advance();
      return node;
    }
    if (token.kind == TokenKind::number) {
      double value = 0;
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
      ExpressionPtr node = constant(Value::number(value));
      advance();
      return node;
    }
    if (skip_op("(")) {
      ExpressionPtr node;
      if (is_op(")"))
        node = make(Kind::tuple);
      else
        node = tuple(true);
      expect_op(")");
      return node;
    }
    if (is_op("[")) {
      ExpressionPtr node = make(Kind::list);
      advance();
      while (!is_op("]")) {
        push(*node, expression(true));
        if (!skip_op(",")) break;
      }
      expect_op("]");
      return node;
    }
    if (is_op("{")) {
      ExpressionPtr node = make(Kind::dict);
      advance();
      while (!is_op("}")) {
        push(*node, expression(true));
        expect_op(":");
        push(*node, expression(true));
        if (!skip_op(",")) break;
      }
      expect_op("}");
      return node;
    }
    wrong("an expression");
  }

  ExpressionPtr postfix(ExpressionPtr node) {
    for (int links = 0;; ++links) {
      if (links > kMaxDepth) refuse_source("a chain of more than " + std::to_string(kMaxDepth) + " links", current().line);
      if (is_op(".")) {
        advance();
        if (current().kind == TokenKind::integer) {  // a.0
          node = make(Kind::item, std::move(node));
          push(*node, constant(Value::integer(std::stoll(current().text.substr(0, 18)))));
          advance();
          continue;
        }
        node = make(Kind::attribute, std::move(node));
        node->text = expect_name();
      } else if (is_op("[")) {
        node = item(std::move(node));
      } else if (is_op("(")) {
        node = make(Kind::call, std::move(node));
        arguments(*node);
      } else {
        return node;
      }
    }
  }

  ExpressionPtr item(ExpressionPtr object) {
    ExpressionPtr node = make(Kind::item, std::move(object));
    advance();
    const auto part = [&]() -> ExpressionPtr {
      if (is_op(":") || is_op("]")) return constant(Value());
      return expression(true);
    };
    ExpressionPtr first = part();
    if (!is_op(":")) {
      if (is_op(",")) refuse("a subscript with a comma (line " + std::to_string(node->line) + ")");
      push(*node, std::move(first));
    } else {
      node->kind = Kind::slice;
      push(*node, std::move(first));
      advance();
      push(*node, part());
      if (skip_op(":"))
        push(*node, part());
      else
        push(*node, constant(Value()));
    }
    expect_op("]");
    return node;
  }

  void arguments(Expression& node) {
    expect_op("(");
    while (!is_op(")")) {
      if (is_op("*") || is_op("**")) refuse("unpacked arguments (line " + std::to_string(current().line) + ")");
      if (current().kind == TokenKind::name && ahead().kind == TokenKind::op && ahead().text == "=") {
        std::string name = current().text;
        advance();
        advance();
        node.named.emplace_back(std::move(name), expression(true));
        grow(node, *node.named.back().second);
      } else {
        if (!node.named.empty()) wrong("a named argument");
        node.arguments.push_back(expression(true));
        grow(node, *node.arguments.back());
      }
      if (!skip_op(",")) break;
    }
    expect_op(")");
  }

  ExpressionPtr filter(ExpressionPtr value) {
    ExpressionPtr node = make(Kind::filter);
    if (value) push(*node, std::move(value));
    node->text = expect_name();
    while (skip_op(".")) node->text += "." + expect_name();
    if (!has_filter(node->text)) refuse("the filter '" + node->text + "' (line " + std::to_string(node->line) + ")");
    if (is_op("(")) arguments(*node);
    return node;
  }

  ExpressionPtr filters_and_tests(ExpressionPtr node) {
    for (int links = 0;; ++links) {
      if (links > kMaxDepth) refuse_source("a chain of more than " + std::to_string(kMaxDepth) + " filters", current().line);
      if (skip_op("|")) {
        node = filter(std::move(node));
      } else if (is_name("is")) {
        node = test(std::move(node));
      } else if (is_op("(")) {
        node = make(Kind::call, std::move(node));
        arguments(*node);
      } else {
        return node;
      }
    }
  }

  ExpressionPtr test(ExpressionPtr value) {
    advance();
    const bool negated = skip_name("not");
    ExpressionPtr node = make(Kind::test, std::move(value));
    node->text = expect_name();
    if (!has_test(node->text)) refuse("the test '" + node->text + "' (line " + std::to_string(node->line) + ")");
    const TokenKind kind = current().kind;
    if (is_op("(")) {
      arguments(*node);
    } else if (is_name("is")) {
      refuse_source("tests cannot be chained with 'is'", node->line);
    } else if (((kind == TokenKind::name && !is_name("else") && !is_name("or") && !is_name("and") && !is_name("if") && !is_name("in") &&
                 !is_name("not") && !is_name("recursive")) ||
                kind == TokenKind::text || kind == TokenKind::integer || kind == TokenKind::number || is_op("[") || is_op("{"))) {
      node->arguments.push_back(postfix(primary()));
      grow(*node, *node->arguments.back());
    }
    if (!negated) return node;
    return make(Kind::invert, std::move(node));
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Block parse_template(std::string_view source) {
  if (!is_valid_utf8(source)) refuse_source("bytes that are no UTF-8", 1);
  return Parser(Lexer(source).run()).run();
}

}  // namespace weft::model::jinja
