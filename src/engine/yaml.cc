#include "engine/yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/anchor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <map>
#include <sstream>
#include <unordered_set>
#include <utility>

#include "base/text.h"
#include "weft/error.h"

namespace weft::yaml {
namespace {

constexpr std::string_view kTagPrefix = "tag:yaml.org,2002:";

[[noreturn]] void refuse(const std::string& file, Place place, const std::string& what, std::string advice,
                         ErrorCode code = ErrorCode::invalid_argument) {
  throw Error(code, place.line > 0 ? fmt::format("{}: {}", to_string(place), what) : what, {.file = file}, std::move(advice));
}

// ---- plain scalars, by PyYAML's resolver ----

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

std::string without_underscores(std::string_view text) {
  std::string out;
  std::copy_if(text.begin(), text.end(), std::back_inserter(out), [](char c) { return c != '_'; });
  return out;
}

double to_double(const std::string& digits) {
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  // Beyond the range of doubles: infinity or zero, which from_chars does not tell apart.
  if (error == std::errc::result_out_of_range) return std::strtod(digits.c_str(), nullptr);
  return value;
}

/// Splits "1:30:15" and adds up in base 60; the last part may be a decimal fraction.
double sexagesimal(std::string_view digits) {
  double value = 0;
  while (true) {
    const std::size_t colon = digits.find(':');
    value = value * 60 + to_double(std::string(digits.substr(0, colon)));
    if (colon == std::string_view::npos) return value;
    digits.remove_prefix(colon + 1);
  }
}

/// [-+]?[1-9][0-9_]*(:[0-5]?[0-9])+ for integers; for floats the first digit may be 0 and a fraction ends it.
bool looks_sexagesimal(std::string_view body, bool with_fraction) {
  if (with_fraction) {
    const std::size_t dot = body.find('.');
    if (dot == std::string_view::npos) return false;
    for (const char c : body.substr(dot + 1))
      if (!is_digit(c) && c != '_') return false;
    body = body.substr(0, dot);
  }
  const std::size_t colon = body.find(':');
  if (colon == std::string_view::npos || colon == 0 || !is_digit(body[0]) || (!with_fraction && body[0] == '0')) return false;
  for (const char c : body.substr(0, colon))
    if (!is_digit(c) && c != '_') return false;
  std::string_view rest = body.substr(colon);
  while (!rest.empty()) {
    rest.remove_prefix(1);
    std::size_t length = 0;
    while (length < rest.size() && is_digit(rest[length])) ++length;
    if (length == 0 || length > 2 || (length == 2 && rest[0] > '5')) return false;
    rest.remove_prefix(length);
    if (!rest.empty() && rest[0] != ':') return false;
  }
  return true;
}

void set_integer(Node& node, bool negative, const std::string& digits, int base) {
  node.kind = Kind::integer;
  std::uint64_t magnitude = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), magnitude, base);
  constexpr std::uint64_t kLargest = std::numeric_limits<std::int64_t>::max();
  if (error == std::errc() && magnitude <= kLargest) {
    node.integer = negative ? -static_cast<std::int64_t>(magnitude) : static_cast<std::int64_t>(magnitude);
    node.number = static_cast<double>(*node.integer);
    return;
  }
  double value = base == 10 ? to_double(digits) : 0;
  for (const char c : base == 10 ? std::string_view() : std::string_view(digits))
    value = value * base + (is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
  node.number = negative ? -value : value;
}

bool resolve_integer(Node& node, std::string_view text) {
  const bool negative = text.starts_with('-');
  std::string_view body = text;
  if (negative || body.starts_with('+')) body.remove_prefix(1);
  if (body.empty() || !is_digit(body[0])) return false;
  const auto all = [](std::string_view digits, std::string_view allowed) {
    return !digits.empty() && digits.find_first_not_of(allowed) == std::string_view::npos && digits.find_first_not_of('_') != std::string_view::npos;
  };
  if (body.starts_with("0b") && all(body.substr(2), "01_")) return set_integer(node, negative, without_underscores(body.substr(2)), 2), true;
  if (body.starts_with("0x") && all(body.substr(2), "0123456789abcdefABCDEF_"))
    return set_integer(node, negative, without_underscores(body.substr(2)), 16), true;
  if (body == "0") return set_integer(node, negative, "0", 10), true;
  if (body[0] == '0') {
    if (body.find_first_not_of("01234567_") != std::string_view::npos) return false;
    return set_integer(node, negative, without_underscores(body), 8), true;
  }
  if (all(body, "0123456789_")) return set_integer(node, negative, without_underscores(body), 10), true;
  if (looks_sexagesimal(body, false)) {
    const double value = sexagesimal(without_underscores(body));
    // Written with so many parts that it is no exact integer any more: nobody means that.
    if (value > 9e15) return false;
    return set_integer(node, negative, std::to_string(static_cast<std::int64_t>(value)), 10), true;
  }
  return false;
}

bool resolve_number(Node& node, std::string_view text) {
  const bool negative = text.starts_with('-');
  std::string_view body = text;
  if (negative || body.starts_with('+')) body.remove_prefix(1);
  const auto set = [&](double value) {
    node.kind = Kind::number;
    node.number = negative ? -value : value;
    return true;
  };
  if (one_of(body, {".inf", ".Inf", ".INF"})) return set(std::numeric_limits<double>::infinity());
  if (one_of(text, {".nan", ".NaN", ".NAN"})) return set(std::numeric_limits<double>::quiet_NaN());
  if (body.find(':') != std::string_view::npos) {
    if (!looks_sexagesimal(body, true)) return false;
    return set(sexagesimal(without_underscores(body)));
  }
  // Digits, a dot that must be there, digits, and an exponent whose sign must be there: 1e-3 and 1.0e3 are strings in YAML 1.1.
  const std::size_t dot = body.find('.');
  if (dot == std::string_view::npos) return false;
  const std::string_view whole = body.substr(0, dot);
  if (whole.empty() && text.size() != body.size()) return false;  // "-.5" is a string, ".5" is not
  if (!whole.empty() && (!is_digit(whole[0]) || whole.find_first_not_of("0123456789_") != std::string_view::npos)) return false;
  std::string_view fraction = body.substr(dot + 1);
  std::string_view exponent;
  if (const std::size_t e = fraction.find_first_of("eE"); e != std::string_view::npos) {
    exponent = fraction.substr(e + 1);
    fraction = fraction.substr(0, e);
    if (exponent.size() < 2 || (exponent[0] != '+' && exponent[0] != '-')) return false;
    if (exponent.find_first_not_of("0123456789", 1) != std::string_view::npos) return false;
  }
  if (fraction.find_first_not_of("0123456789_") != std::string_view::npos) return false;
  if (whole.empty() && (fraction.empty() || fraction[0] == '_')) return false;
  std::string digits = without_underscores(whole) + "." + without_underscores(fraction);
  if (!exponent.empty()) digits += "e" + std::string(exponent[0] == '+' ? exponent.substr(1) : exponent);
  return set(to_double(digits));
}

void resolve_plain(Node& node) {
  const std::string_view text = node.text;
  if (one_of(text, {"", "~", "null", "Null", "NULL"})) {
    node.kind = Kind::null;
  } else if (one_of(text, {"yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})) {
    node.kind = Kind::boolean;
    node.flag = true;
  } else if (one_of(text, {"no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})) {
    node.kind = Kind::boolean;
  } else if (!resolve_integer(node, text) && !resolve_number(node, text)) {
    node.kind = Kind::string;
  }
}

// ---- events to tree ----

/// Marks as places, with columns in characters. Marks come nearly in order, so that counting goes on where it stopped.
class Places {
 public:
  explicit Places(std::string_view text) : text_(text) {}

  Place at(const YAML::Mark& mark) {
    if (mark.is_null() || mark.pos < 0 || static_cast<std::size_t>(mark.pos) > text_.size()) return {};
    const auto pos = static_cast<std::size_t>(mark.pos);
    if (mark.line != line_ || pos < pos_) {
      // A mark that goes back on its line is counted in bytes: counting anew each time could take quadratic time on one long line.
      if (mark.line == line_) return {mark.line + 1, mark.column + 1};
      line_ = mark.line;
      pos_ = pos - std::min(pos, static_cast<std::size_t>(std::max(mark.column, 0)));
      column_ = 0;
    }
    for (; pos_ < pos; ++pos_) column_ += (static_cast<unsigned char>(text_[pos_]) & 0xC0) != 0x80;
    return {mark.line + 1, column_ + 1};
  }

 private:
  std::string_view text_;
  int line_ = -1;
  std::size_t pos_ = 0;
  int column_ = 0;
};

class Builder final : public YAML::EventHandler {
 public:
  Builder(std::string_view text, const std::string& file, const Limits& limits) : text_(text), file_(file), limits_(limits), places_(text) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    root_ = {};
    anchors_.clear();  // anchors live in one document
    start_ = mark.is_null() ? 0 : static_cast<std::size_t>(std::max(mark.pos, 0));
    start_place_ = places_.at(mark);
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Node node;
    node.place = places_.at(mark);
    // The event does not say how the null was written, and as a key (a token's name) it matters.
    const std::string_view rest = text_.substr(std::min(text_.size(), static_cast<std::size_t>(std::max(mark.pos, 0))));
    for (const std::string_view word : {"null", "Null", "NULL", "~"})
      if (rest.starts_with(word)) node.text = word;
    add(std::move(node), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const Place place = places_.at(mark);
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) refuse(file_, place, "an alias refers to the node that it is in", "write the value out");
    count(found->second.num_nodes, place);
    if (stack_.size() + found->second.depth > static_cast<std::size_t>(limits_.max_depth)) too_deep(place);
    Node node = found->second.node;
    node.place = place;
    add(std::move(node), 0, found->second.depth);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, const std::string& value) override {
    Node node;
    node.place = places_.at(mark);
    node.text = value;
    if (tag == "?" || tag.empty()) {
      resolve_plain(node);
      is_merge_key_ = node.text == "<<";
    } else if (tag == "!" || tag == "tag:yaml.org,2002:str") {
      node.kind = Kind::string;
    } else {
      resolve_plain(node);
      const std::string_view name = tag.starts_with(kTagPrefix) ? std::string_view(tag).substr(kTagPrefix.size()) : "";
      const bool fits = (name == "int" && node.kind == Kind::integer) ||
                        (name == "float" && (node.kind == Kind::number || node.kind == Kind::integer)) ||
                        (name == "bool" && node.kind == Kind::boolean) || (name == "null" && node.kind == Kind::null);
      if (!fits) bad_tag(node.place, tag);
      if (name == "float") node.kind = Kind::number;
    }
    add(std::move(node), anchor);
    is_merge_key_ = false;
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    push(Kind::sequence, mark, tag, "tag:yaml.org,2002:seq", anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    push(Kind::mapping, mark, tag, "tag:yaml.org,2002:map", anchor);
  }
  void OnSequenceEnd() override { pop(); }
  void OnMapEnd() override {
    add_merged(stack_.back());
    pop();
  }

  [[nodiscard]] Node take_root() { return std::move(root_); }
  /// Byte of the text where the document began.
  [[nodiscard]] std::size_t start() const noexcept { return start_; }
  [[nodiscard]] Place start_place() const noexcept { return start_place_; }

 private:
  struct Frame {
    Node node;
    YAML::anchor_t anchor = 0;
    std::size_t depth = 1;    // of the subtree so far
    std::optional<Node> key;  // waiting for its value
    bool key_merges = false;
    std::vector<Node> merged;  // what << refers to, in order of precedence
    std::unordered_set<std::string> keys;
  };
  struct Anchored {
    Node node;
    std::uint64_t num_nodes = 1;
    std::size_t depth = 1;
  };

  [[noreturn]] void too_deep(Place place) const {
    refuse(file_, place, fmt::format("nested deeper than {} levels", limits_.max_depth), "write it flatter", ErrorCode::unsupported);
  }
  [[noreturn]] void bad_tag(Place place, const std::string& tag) const {
    refuse(file_, place, fmt::format("the tag '{}' does not fit here", printable(tag)),
           "remove it; only !!str, !!int, !!float, !!bool, !!null are known");
  }

  void count(std::uint64_t nodes, Place place) {
    num_nodes_ += nodes;
    if (num_nodes_ > limits_.max_nodes)
      refuse(file_, place, fmt::format("more than {} nodes, those that aliases repeat included", limits_.max_nodes),
             "a config of that size is not meant to be; use fewer aliases", ErrorCode::unsupported);
  }

  void push(Kind kind, const YAML::Mark& mark, const std::string& tag, std::string_view usual_tag, YAML::anchor_t anchor) {
    const Place place = places_.at(mark);
    if (!tag.empty() && tag != "?" && tag != "!" && tag != usual_tag) bad_tag(place, tag);
    if (stack_.size() >= static_cast<std::size_t>(limits_.max_depth)) too_deep(place);
    if (!stack_.empty() && stack_.back().node.kind == Kind::mapping && !stack_.back().key)
      refuse(file_, place, fmt::format("{} cannot be a key", describe(kind)),
             "use a plain text as key; what is opened here may lack its closing bracket");
    Frame& frame = stack_.emplace_back();
    frame.node.kind = kind;
    frame.node.place = place;
    frame.anchor = anchor;
  }

  void pop() {
    Frame frame = std::move(stack_.back());
    stack_.pop_back();
    add(std::move(frame.node), frame.anchor, frame.depth);
  }

  /// Puts a finished node where it belongs. depth: levels of the node itself.
  void add(Node node, YAML::anchor_t anchor, std::size_t depth = 0) {
    // A node is counted when it is finished; what its aliases repeat was counted with them.
    count(1, node.place);
    if (anchor != 0) {
      count(node.num_nodes, node.place);
      anchors_[anchor] = {node, node.num_nodes, depth};
    }
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& parent = stack_.back();
    parent.depth = std::max(parent.depth, depth + 1);
    if (parent.node.kind == Kind::sequence) {
      parent.node.num_nodes += node.num_nodes;
      parent.node.items.push_back(std::move(node));
    } else if (!parent.key) {
      if (!node.is_scalar()) refuse(file_, node.place, fmt::format("{} cannot be a key", describe(node.kind)), "use a plain text as key");
      parent.key_merges = is_merge_key_;
      if (!parent.key_merges && !parent.keys.insert(node.text).second)
        refuse(file_, node.place, fmt::format("the key '{}' occurs twice in one mapping", printable(node.text)), "remove one of the two");
      parent.key = std::move(node);
    } else if (parent.key_merges) {
      Node key = *std::exchange(parent.key, std::nullopt);
      if (node.kind == Kind::mapping) {
        parent.merged.push_back(std::move(node));
      } else if (node.kind == Kind::sequence &&
                 std::all_of(node.items.begin(), node.items.end(), [](const Node& item) { return item.kind == Kind::mapping; })) {
        for (Node& item : node.items) parent.merged.push_back(std::move(item));
      } else {
        refuse(file_, key.place, fmt::format("the merge key << needs a mapping or a list of mappings, not {}", describe(node.kind)),
               "refer to a mapping, or quote the key");
      }
    } else {
      parent.node.num_nodes += node.num_nodes + 1;
      parent.node.members.push_back({std::move(*parent.key), std::move(node)});
      parent.key.reset();
    }
  }

  /// What came through << fills in the keys that the mapping does not have itself.
  void add_merged(Frame& frame) {
    for (Node& source : frame.merged)
      for (Member& member : source.members) {
        if (!frame.keys.insert(member.key.text).second) continue;
        frame.node.num_nodes += member.value.num_nodes + 1;
        frame.node.members.push_back(std::move(member));
      }
  }

  std::string_view text_;
  const std::string& file_;
  const Limits& limits_;
  Places places_;
  std::vector<Frame> stack_;
  std::map<YAML::anchor_t, Anchored> anchors_;
  Node root_;
  std::size_t start_ = 0;
  Place start_place_;
  std::uint64_t num_nodes_ = 0;  // of all documents
  bool is_merge_key_ = false;
};

/// PyYAML refuses these too; and yaml-cpp takes the byte 4 for the end of the file.
void check_characters(std::string_view text, const std::string& file) {
  int line = 1;
  int column = 1;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\t' && c != '\n' && c != '\r') || byte == 0x7F)
      refuse(file, {line, column}, fmt::format("a control character (byte {:#04x})", byte), "remove it, or write it as an escape in double quotes");
    if (c == '\n') {
      ++line;
      column = 1;
    } else {
      column += (byte & 0xC0) != 0x80;
    }
  }
}

}  // namespace

std::string to_string(Place place) { return fmt::format("line {}, column {}", place.line, place.column); }

std::string_view describe(Kind kind) noexcept {
  switch (kind) {
    case Kind::null:
      return "nothing";
    case Kind::boolean:
      return "true or false";
    case Kind::integer:
      return "a whole number";
    case Kind::number:
      return "a number";
    case Kind::string:
      return "a text";
    case Kind::sequence:
      return "a list";
    case Kind::mapping:
      return "a mapping";
  }
  return "something";
}

const Node* Node::find(std::string_view key) const noexcept {
  const auto found = std::find_if(members.begin(), members.end(), [key](const Member& member) { return member.key.text == key; });
  return found == members.end() ? nullptr : &found->value;
}

std::vector<Document> parse(std::string_view text, const std::string& file, const Limits& limits) {
  if (text.size() > limits.max_bytes)
    throw Error(ErrorCode::unsupported, fmt::format("the text has {} bytes; at most {} are read", text.size(), limits.max_bytes), {.file = file},
                "this is not a config, or one that should be split");
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  if (!is_valid_utf8(text)) throw Error(ErrorCode::invalid_argument, "the text is not UTF-8", {.file = file}, "save it as UTF-8");
  check_characters(text, file);

  std::vector<Document> documents;
  std::vector<std::size_t> starts;
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    Builder builder(text, file, limits);
    while (parser.HandleNextDocument(builder)) {
      // Before a stray comma or closing bracket yaml-cpp finds one empty document after another, for ever.
      if (!starts.empty() && builder.start() <= starts.back())
        refuse(file, builder.start_place(), "not valid YAML: nothing can begin here", "remove the comma or bracket, or open what it closes");
      documents.push_back({builder.take_root(), {}});
      starts.push_back(builder.start());
    }
  } catch (const YAML::Exception& e) {
    Places places(text);
    refuse(file, places.at(e.mark), fmt::format("not valid YAML: {}", e.msg), "check indentation, quotes and brackets around this place");
  }
  for (std::size_t i = 0; i < documents.size(); ++i) {
    std::size_t begin = i == 0 ? 0 : std::min(starts[i], text.size());
    const std::size_t end = i + 1 < starts.size() ? std::clamp(starts[i + 1], begin, text.size()) : text.size();
    if (i > 0 && text.substr(begin).starts_with("---")) {
      begin += 3;
      while (begin < end && (text[begin] == ' ' || text[begin] == '\r')) ++begin;
      if (begin < end && text[begin] == '\n') ++begin;
    }
    documents[i].text = std::string(text.substr(begin, end - begin));
  }
  return documents;
}

}  // namespace weft::yaml
