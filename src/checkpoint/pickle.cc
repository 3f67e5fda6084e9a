#include "checkpoint/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>

#include "base/check.h"
#include "base/text.h"

namespace weft {
namespace {

constexpr const char* kHostile = "this is beyond any real checkpoint; the file is damaged or hostile";

/// Bytes in order, read in pieces.
class Stream {
 public:
  Stream(const ByteSource& source, std::uint64_t begin, std::uint64_t end) : source_(source), at_(begin), end_(end) {}

  [[nodiscard]] std::uint64_t position() const noexcept { return at_; }
  [[nodiscard]] std::uint64_t left() const noexcept { return end_ - at_; }

  unsigned char byte() {
    if (at_ >= end_) fail_short(1);
    if (at_ < first_ || at_ >= first_ + buffer_.size()) fill();
    return static_cast<unsigned char>(buffer_[at_++ - first_]);
  }
  std::uint64_t number(int size) {
    std::uint64_t value = 0;
    for (int i = 0; i < size; ++i) value |= std::uint64_t{byte()} << (8 * i);
    return value;
  }
  void text(std::uint64_t size, std::string& out) {
    require(size);
    for (std::uint64_t i = 0; i < size;) {
      (void)byte();
      --at_;
      const std::uint64_t part = std::min<std::uint64_t>(size - i, first_ + buffer_.size() - at_);
      out.append(buffer_, at_ - first_, part);
      at_ += part;
      i += part;
    }
  }
  void skip(std::uint64_t size) {
    require(size);
    at_ += size;
  }
  /// Up to a line's end, without it.
  std::string line() {
    std::string out;
    for (unsigned char c = byte(); c != '\n'; c = byte()) {
      out.push_back(static_cast<char>(c));
      if (out.size() > 65536)
        throw Error(ErrorCode::unsupported, "pickle: a line of more than 65536 bytes", {.file = source_.path.string(), .byte = at_}, kHostile);
    }
    return out;
  }
  void require(std::uint64_t size) const {
    if (size > left()) fail_short(size);
  }

 private:
  [[noreturn]] void fail_short(std::uint64_t size) const {
    throw Error(ErrorCode::corrupt, fmt::format("pickle: it ends after {} bytes where {} more are needed", left(), size),
                {.file = source_.path.string(), .byte = at_}, "the file is damaged or incompletely downloaded; fetch it again");
  }
  void fill() {
    first_ = at_;
    buffer_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(end_ - at_, 65536)));
    source_.read(first_, std::as_writable_bytes(std::span(buffer_)));
  }
  const ByteSource& source_;
  std::uint64_t at_, end_;
  std::uint64_t first_ = 0;
  std::string buffer_;
};

}  // namespace

class Pickle::Machine {
 public:
  Machine(Pickle& out, const ByteSource& source, std::uint64_t begin, std::uint64_t end, const PickleLimits& limits)
      : out_(out), source_(source), stream_(source, begin, end), limits_(limits) {}

  void run() {
    none_ = add({PickleKind::none, 0, 0});
    true_ = add({PickleKind::boolean, 0, 1});
    false_ = add({PickleKind::boolean, 0, 0});
    empty_tuple_ = add({PickleKind::tuple, 0, 0});
    for (std::uint64_t count = 0;; ++count) {
      if (count >= limits_.max_opcodes) refuse(fmt::format("it has more than {} steps", limits_.max_opcodes), kHostile);
      opcode_at_ = stream_.position();
      if (!step(stream_.byte())) break;
    }
    out_.root_ = pop();
    out_.end_ = stream_.position();
  }

 private:
  [[noreturn]] void fail(std::string message) const {
    throw Error(ErrorCode::corrupt, "pickle: " + std::move(message), {.file = source_.path.string(), .byte = opcode_at_},
                "the file is damaged, or no file that PyTorch wrote");
  }
  [[noreturn]] void refuse(std::string message, const char* advice) const {
    throw Error(ErrorCode::unsupported, "pickle: " + std::move(message), {.file = source_.path.string(), .byte = opcode_at_}, advice);
  }

  PickleRef add(Node node) {
    if (out_.nodes_.size() >= limits_.max_values) refuse(fmt::format("it has more than {} values", limits_.max_values), kHostile);
    out_.nodes_.push_back(node);
    return static_cast<PickleRef>(out_.nodes_.size() - 1);
  }
  void push(PickleRef value) { stack_.push_back(value); }
  void push_new(Node node) { push(add(node)); }
  PickleRef pop() {
    if (stack_.size() <= floor()) fail("it takes a value from an empty stack");
    const PickleRef value = stack_.back();
    stack_.pop_back();
    return value;
  }
  [[nodiscard]] std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickleRef top() {
    if (stack_.size() <= floor()) fail("it looks at an empty stack");
    return stack_.back();
  }
  /// The values above the last mark, which is removed.
  std::vector<PickleRef> pop_mark() {
    if (marks_.empty()) fail("it looks for a mark that was never set");
    std::vector<PickleRef> values(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }

  void push_text(std::string_view text, PickleKind kind = PickleKind::text) {
    const auto at = static_cast<std::int64_t>(out_.texts_.size());
    out_.texts_.append(text);
    push_new({kind, static_cast<std::uint32_t>(text.size()), at});
  }
  void read_text(std::uint64_t size) {
    stream_.require(size);
    if (size > limits_.max_text_bytes) return skip_bytes(size);
    const auto at = static_cast<std::int64_t>(out_.texts_.size());
    stream_.text(size, out_.texts_);
    push_new({PickleKind::text, static_cast<std::uint32_t>(size), at});
  }
  void skip_bytes(std::uint64_t size) {
    stream_.skip(size);
    push_new({PickleKind::bytes, 0, static_cast<std::int64_t>(std::min<std::uint64_t>(size, INT64_MAX))});
  }
  void push_integer(std::int64_t value) { push_new({PickleKind::integer, 0, value}); }
  /// Two's complement, little-endian.
  void read_long(std::uint64_t size) {
    stream_.require(size);
    if (size > 8) {
      if (size > 65536) refuse(fmt::format("an integer of {} bytes", size), kHostile);
      std::string digits;
      stream_.text(size, digits);
      return push_text(digits, PickleKind::large_integer);
    }
    std::uint64_t value = stream_.number(static_cast<int>(size));
    if (size > 0 && size < 8 && value >> (8 * size - 1) != 0) value |= ~std::uint64_t{0} << (8 * size);
    push_integer(static_cast<std::int64_t>(value));
  }
  void push_decimal(std::string_view text) {
    if (text.ends_with('L')) text.remove_suffix(1);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc::result_out_of_range) return push_text("", PickleKind::large_integer);
    if (error != std::errc() || end != text.data() + text.size()) fail(fmt::format("'{}' is no integer", printable(text)));
    push_integer(value);
  }
  void push_tuple(std::span<const PickleRef> values) {
    if (values.empty()) return push(empty_tuple_);
    const auto at = static_cast<std::int64_t>(out_.tuples_.size());
    out_.tuples_.insert(out_.tuples_.end(), values.begin(), values.end());
    push_new({PickleKind::tuple, static_cast<std::uint32_t>(values.size()), at});
  }
  void push_last_as_tuple(std::size_t count) {
    if (stack_.size() < floor() + count) fail("it takes a value from an empty stack");
    const std::vector<PickleRef> values(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    push_tuple(values);
  }
  void push_container(PickleKind kind, std::vector<PickleRef> values = {}) {
    const auto at = static_cast<std::int64_t>(out_.containers_.size());
    out_.containers_.push_back(std::move(values));
    push_new({kind, 0, at});
  }
  /// The growing part of a container or of a call's result.
  std::vector<PickleRef>& growing(PickleRef value) {
    const Node& node = out_.nodes_[value];
    switch (node.kind) {
      case PickleKind::list:
      case PickleKind::set:
      case PickleKind::dict:
        return out_.containers_[static_cast<std::size_t>(node.value)];
      case PickleKind::call:
        return out_.calls_[static_cast<std::size_t>(node.value)].items;
      default:
        fail("it adds elements to something that has none");
    }
  }
  void push_global(std::string_view module, std::string_view name) { push_text(fmt::format("{}.{}", module, name), PickleKind::global); }
  void push_call(PickleRef callee, PickleRef arguments) {
    // A dictionary by another name: what it holds comes as its items.
    if (out_.kind(callee) == PickleKind::global && out_.text(callee) == "collections.OrderedDict") {
      std::vector<PickleRef> items;
      for (const PickleRef pairs : out_.items(arguments)) {
        for (const PickleRef pair : out_.items(pairs)) {
          const std::span<const PickleRef> two = out_.items(pair);
          if (two.size() == 2) items.insert(items.end(), two.begin(), two.end());
        }
      }
      return push_container(PickleKind::dict, std::move(items));
    }
    const auto at = static_cast<std::int64_t>(out_.calls_.size());
    out_.calls_.push_back({callee, arguments, std::nullopt, {}});
    push_new({PickleKind::call, 0, at});
  }
  void memoize(std::uint64_t place) {
    if (memo_.size() >= limits_.max_memo) refuse(fmt::format("it remembers more than {} values", limits_.max_memo), kHostile);
    memo_[place] = top();
  }
  void recall(std::uint64_t place) {
    const auto found = memo_.find(place);
    if (found == memo_.end()) fail(fmt::format("it asks for remembered value {}, which was never kept", place));
    push(found->second);
  }

  /// False at STOP.
  bool step(unsigned char opcode) {
    switch (opcode) {
      case 0x80:  // PROTO
        if (const unsigned char version = stream_.byte(); version > 5)
          refuse(fmt::format("protocol {} is newer than 5", version), "save the file anew");
        break;
      case 0x95:  // FRAME
        stream_.require(stream_.number(8));
        break;
      case '.':  // STOP
        return false;
      case '(':  // MARK
        marks_.push_back(stack_.size());
        break;
      case 'N':
        push(none_);
        break;
      case 0x88:
        push(true_);
        break;
      case 0x89:
        push(false_);
        break;
      case 'J':
        push_integer(static_cast<std::int32_t>(static_cast<std::uint32_t>(stream_.number(4))));
        break;
      case 'K':
        push_integer(static_cast<std::int64_t>(stream_.number(1)));
        break;
      case 'M':
        push_integer(static_cast<std::int64_t>(stream_.number(2)));
        break;
      case 0x8A:
        read_long(stream_.number(1));
        break;
      case 0x8B:
        read_long(stream_.number(4));
        break;
      case 'I': {  // INT, by which protocol 0 also writes booleans
        const std::string line = stream_.line();
        if (line == "01")
          push(true_);
        else if (line == "00")
          push(false_);
        else
          push_decimal(line);
        break;
      }
      case 'L':
        push_decimal(stream_.line());
        break;
      case 'F': {
        const std::string line = stream_.line();
        double value = 0;
        const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
        if (error != std::errc() || end != line.data() + line.size()) fail(fmt::format("'{}' is no number", printable(line)));
        push_new({PickleKind::real, 0, std::bit_cast<std::int64_t>(value)});
        break;
      }
      case 'G': {  // BINFLOAT, big-endian
        std::uint64_t bits = 0;
        for (int i = 0; i < 8; ++i) bits = bits << 8 | stream_.byte();
        push_new({PickleKind::real, 0, static_cast<std::int64_t>(bits)});
        break;
      }
      case 'S': {  // STRING, quoted; escapes stay as they are, names of tensors have none
        const std::string line = stream_.line();
        if (line.size() < 2 || line.front() != line.back() || (line.front() != '\'' && line.front() != '"')) fail("a text without quotes");
        push_text(std::string_view(line).substr(1, line.size() - 2));
        break;
      }
      case 'V':  // UNICODE
        push_text(stream_.line());
        break;
      case 'U':
      case 0x8C:
        read_text(stream_.number(1));
        break;
      case 'T':
      case 'X':
        read_text(stream_.number(4));
        break;
      case 0x8D:
        read_text(stream_.number(8));
        break;
      case 'C':
        skip_bytes(stream_.number(1));
        break;
      case 'B':
        skip_bytes(stream_.number(4));
        break;
      case 0x8E:
      case 0x96:
        skip_bytes(stream_.number(8));
        break;
      case ')':
        push(empty_tuple_);
        break;
      case ']':
        push_container(PickleKind::list);
        break;
      case '}':
        push_container(PickleKind::dict);
        break;
      case 0x8F:
        push_container(PickleKind::set);
        break;
      case 't':
        push_tuple(pop_mark());
        break;
      case 0x85:
      case 0x86:
      case 0x87:
        push_last_as_tuple(opcode - 0x84U);
        break;
      case 'l':
        push_container(PickleKind::list, pop_mark());
        break;
      case 'd':
        push_container(PickleKind::dict, even(pop_mark()));
        break;
      case 0x91:  // FROZENSET
        push_container(PickleKind::set, pop_mark());
        break;
      case 'a': {
        const PickleRef value = pop();
        growing(top()).push_back(value);
        break;
      }
      case 'e':
      case 0x90: {  // APPENDS, ADDITEMS
        const std::vector<PickleRef> values = pop_mark();
        std::vector<PickleRef>& list = growing(top());
        list.insert(list.end(), values.begin(), values.end());
        break;
      }
      case 's': {
        const PickleRef value = pop(), key = pop();
        std::vector<PickleRef>& dict = growing(top());
        dict.insert(dict.end(), {key, value});
        break;
      }
      case 'u': {
        const std::vector<PickleRef> values = even(pop_mark());
        std::vector<PickleRef>& dict = growing(top());
        dict.insert(dict.end(), values.begin(), values.end());
        break;
      }
      case 'q':
        memoize(stream_.number(1));
        break;
      case 'r':
        memoize(stream_.number(4));
        break;
      case 'p':
        memoize(memo_place(stream_.line()));
        break;
      case 0x94:
        memoize(memo_.size());
        break;
      case 'h':
        recall(stream_.number(1));
        break;
      case 'j':
        recall(stream_.number(4));
        break;
      case 'g':
        recall(memo_place(stream_.line()));
        break;
      case 'c': {
        const std::string module = stream_.line();
        push_global(module, stream_.line());
        break;
      }
      case 0x93: {  // STACK_GLOBAL
        const PickleRef name = pop(), module = pop();
        if (out_.kind(name) != PickleKind::text || out_.kind(module) != PickleKind::text) fail("the name of a class is no text");
        push_global(std::string(out_.text(module)), std::string(out_.text(name)));
        break;
      }
      case 'R':
      case 0x81: {  // REDUCE, NEWOBJ
        const PickleRef arguments = pop(), callee = pop();
        push_call(callee, arguments);
        break;
      }
      case 0x92: {  // NEWOBJ_EX: keyword arguments are kept by nobody
        (void)pop();
        const PickleRef arguments = pop(), callee = pop();
        push_call(callee, arguments);
        break;
      }
      case 'b': {  // BUILD
        const PickleRef state = pop(), object = top();
        const Node& node = out_.nodes_[object];
        // Attributes of a dictionary (PyTorch's _metadata) are not its entries.
        if (node.kind == PickleKind::call) out_.calls_[static_cast<std::size_t>(node.value)].state = state;
        break;
      }
      case 'Q': {
        const PickleRef id = pop();
        push_new({PickleKind::persistent, 0, static_cast<std::int64_t>(id)});
        break;
      }
      default:
        refuse(fmt::format("opcode 0x{:02x}{} is none that PyTorch writes", opcode,
                           opcode > 0x20 && opcode < 0x7F ? fmt::format(" ('{}')", static_cast<char>(opcode)) : std::string()),
               "the file is damaged or no checkpoint; nothing of it was run");
    }
    return true;
  }

  std::vector<PickleRef> even(std::vector<PickleRef> values) const {
    if (values.size() % 2 != 0) fail("a dictionary has a key without a value");
    return values;
  }
  [[nodiscard]] std::uint64_t memo_place(const std::string& line) const {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    if (error != std::errc() || end != line.data() + line.size()) fail(fmt::format("'{}' is no place to remember a value at", printable(line)));
    return value;
  }

  Pickle& out_;
  const ByteSource& source_;
  Stream stream_;
  const PickleLimits& limits_;
  std::uint64_t opcode_at_ = 0;
  std::vector<PickleRef> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, PickleRef> memo_;
  PickleRef none_ = 0, true_ = 0, false_ = 0, empty_tuple_ = 0;
};

Pickle::Pickle(const ByteSource& source, std::uint64_t begin, std::uint64_t end, const PickleLimits& limits) {
  Machine(*this, source, begin, end, limits).run();
}

std::string_view Pickle::text(PickleRef value) const {
  const Node& node = nodes_[value];
  if (node.kind != PickleKind::text && node.kind != PickleKind::global) return {};
  return std::string_view(texts_).substr(static_cast<std::size_t>(node.value), node.count);
}

std::string_view Pickle::large_integer(PickleRef value) const {
  const Node& node = nodes_[value];
  if (node.kind != PickleKind::large_integer) return {};
  return std::string_view(texts_).substr(static_cast<std::size_t>(node.value), node.count);
}

std::optional<std::int64_t> Pickle::integer(PickleRef value) const {
  return nodes_[value].kind == PickleKind::integer ? std::optional(nodes_[value].value) : std::nullopt;
}

std::optional<bool> Pickle::boolean(PickleRef value) const {
  return nodes_[value].kind == PickleKind::boolean ? std::optional(nodes_[value].value != 0) : std::nullopt;
}

std::span<const PickleRef> Pickle::items(PickleRef value) const {
  const Node& node = nodes_[value];
  switch (node.kind) {
    case PickleKind::tuple:
      return std::span(tuples_).subspan(static_cast<std::size_t>(node.value), node.count);
    case PickleKind::list:
    case PickleKind::set:
    case PickleKind::dict:
      return containers_[static_cast<std::size_t>(node.value)];
    case PickleKind::call:
      return calls_[static_cast<std::size_t>(node.value)].items;
    default:
      return {};
  }
}

PickleRef Pickle::callee(PickleRef value) const {
  WEFT_ASSERT(nodes_[value].kind == PickleKind::call);
  return calls_[static_cast<std::size_t>(nodes_[value].value)].callee;
}
PickleRef Pickle::arguments(PickleRef value) const {
  WEFT_ASSERT(nodes_[value].kind == PickleKind::call);
  return calls_[static_cast<std::size_t>(nodes_[value].value)].arguments;
}
std::optional<PickleRef> Pickle::state(PickleRef value) const {
  WEFT_ASSERT(nodes_[value].kind == PickleKind::call);
  return calls_[static_cast<std::size_t>(nodes_[value].value)].state;
}
PickleRef Pickle::persistent_id(PickleRef value) const {
  WEFT_ASSERT(nodes_[value].kind == PickleKind::persistent);
  return static_cast<PickleRef>(nodes_[value].value);
}

std::optional<PickleRef> Pickle::find(PickleRef dict, std::string_view key) const {
  if (kind(dict) != PickleKind::dict && kind(dict) != PickleKind::call) return std::nullopt;
  const std::span<const PickleRef> entries = items(dict);
  std::optional<PickleRef> found;  // the last one counts, as in Python
  for (std::size_t i = 0; i + 1 < entries.size(); i += 2)
    if (kind(entries[i]) == PickleKind::text && text(entries[i]) == key) found = entries[i + 1];
  return found;
}

std::string Pickle::describe(PickleRef value) const {
  switch (kind(value)) {
    case PickleKind::none:
      return "none";
    case PickleKind::boolean:
      return "boolean";
    case PickleKind::integer:
    case PickleKind::large_integer:
      return "integer";
    case PickleKind::real:
      return "number";
    case PickleKind::text:
      return "text";
    case PickleKind::bytes:
      return "bytes";
    case PickleKind::tuple:
      return fmt::format("tuple of {}", items(value).size());
    case PickleKind::list:
      return fmt::format("list of {}", items(value).size());
    case PickleKind::set:
      return fmt::format("set of {}", items(value).size());
    case PickleKind::dict:
      return fmt::format("dictionary of {}", items(value).size() / 2);
    case PickleKind::global:
      return "class " + printable(text(value));
    case PickleKind::persistent:
      return "storage";
    case PickleKind::call:
      break;
  }
  const PickleRef called = callee(value);
  return "object of " + (kind(called) == PickleKind::global ? printable(text(called)) : std::string("something unnamed"));
}

}  // namespace weft
