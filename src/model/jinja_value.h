#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace weft {
class Json;
}  // namespace weft

// Values of chat templates, with Python's meaning: how they print, compare and add.
namespace weft::model::jinja {

class Value;
struct Expression;

using List = std::vector<Value>;
using Dict = std::vector<std::pair<Value, Value>>;  ///< in order of insertion; small
/// name="..." arguments of a call.
using NamedValues = std::vector<std::pair<std::string, Value>>;

struct Arguments {
  List positional;
  NamedValues named;
};

/// What a template asks of the interpreter while it runs: every step and every byte is paid for, so that no template runs or grows for ever.
class Meter {
 public:
  explicit Meter(std::uint64_t max_steps) : left_(max_steps) {}
  void charge(std::uint64_t steps);
  void charge_bytes(std::uint64_t bytes) { charge(1 + bytes / 16); }

 private:
  std::uint64_t left_;
};

using Function = std::function<Value(const Arguments&, Meter&)>;

struct Undefined {
  std::string name;
};
struct None {};
struct ListBox {
  std::shared_ptr<const List> items;
  bool tuple = false;
};
struct NamespaceBox {
  std::shared_ptr<Dict> items;
};
struct FunctionBox {
  std::shared_ptr<const Function> call;
  std::string name;
};

class Value {
 public:
  using Text = std::shared_ptr<const std::string>;
  using DictBox = std::shared_ptr<const Dict>;
  using Storage = std::variant<Undefined, None, bool, std::int64_t, double, Text, ListBox, DictBox, NamespaceBox, FunctionBox>;

  Value() : storage_(None()) {}
  Value(Storage storage) : storage_(std::move(storage)) {}
  [[nodiscard]] static Value undefined(std::string name) { return Value(Storage(Undefined{std::move(name)})); }
  [[nodiscard]] static Value boolean(bool value) { return Value(Storage(value)); }
  [[nodiscard]] static Value integer(std::int64_t value) { return Value(Storage(value)); }
  [[nodiscard]] static Value number(double value) { return Value(Storage(value)); }
  [[nodiscard]] static Value text(std::string value) { return Value(Storage(std::make_shared<const std::string>(std::move(value)))); }
  [[nodiscard]] static Value list(List items, bool tuple = false) {
    return Value(Storage(ListBox{std::make_shared<const List>(std::move(items)), tuple}));
  }
  [[nodiscard]] static Value dict(Dict items) { return Value(Storage(std::make_shared<const Dict>(std::move(items)))); }
  [[nodiscard]] static Value function(std::string name, Function call) {
    return Value(Storage(FunctionBox{std::make_shared<const Function>(std::move(call)), std::move(name)}));
  }
  [[nodiscard]] static Value name_space(Dict items) { return Value(Storage(NamespaceBox{std::make_shared<Dict>(std::move(items))})); }
  [[nodiscard]] static Value from_json(const Json& json);

  [[nodiscard]] const Storage& storage() const noexcept { return storage_; }
  [[nodiscard]] bool is_undefined() const noexcept { return std::holds_alternative<Undefined>(storage_); }
  [[nodiscard]] bool is_none() const noexcept { return std::holds_alternative<None>(storage_); }
  [[nodiscard]] const bool* as_bool() const noexcept { return std::get_if<bool>(&storage_); }
  [[nodiscard]] const std::int64_t* as_int() const noexcept { return std::get_if<std::int64_t>(&storage_); }
  [[nodiscard]] const double* as_float() const noexcept { return std::get_if<double>(&storage_); }
  [[nodiscard]] const std::string* as_text() const noexcept {
    const Text* text = std::get_if<Text>(&storage_);
    return text == nullptr ? nullptr : text->get();
  }
  [[nodiscard]] const List* as_list() const noexcept {
    const ListBox* list = std::get_if<ListBox>(&storage_);
    return list == nullptr ? nullptr : list->items.get();
  }
  [[nodiscard]] bool is_tuple() const noexcept {
    const ListBox* list = std::get_if<ListBox>(&storage_);
    return list != nullptr && list->tuple;
  }
  [[nodiscard]] const Dict* as_dict() const noexcept {
    const DictBox* dict = std::get_if<DictBox>(&storage_);
    return dict == nullptr ? nullptr : dict->get();
  }
  [[nodiscard]] const NamespaceBox* as_namespace() const noexcept { return std::get_if<NamespaceBox>(&storage_); }
  [[nodiscard]] const FunctionBox* as_function() const noexcept { return std::get_if<FunctionBox>(&storage_); }

  [[nodiscard]] bool truthy() const noexcept;
  /// "list", "str", "undefined", ...: for messages.
  [[nodiscard]] std::string type_name() const;

 private:
  Storage storage_;
};

/// An error of the template itself: what Python would raise.
[[noreturn]] void fail(const std::string& what);
/// Something that weft's part of Jinja does not have.
[[noreturn]] void refuse(const std::string& construct);

/// str(value): what {{ value }} prints.
[[nodiscard]] std::string to_text(const Value& value, Meter& meter);
/// repr(value).
[[nodiscard]] std::string to_repr(const Value& value, Meter& meter);
/// json.dumps; indent < 0: on one line.
[[nodiscard]] std::string to_json(const Value& value, int indent, bool ascii, bool sort_keys, const std::string& item_separator,
                                  const std::string& key_separator, Meter& meter);

[[nodiscard]] bool equal(const Value& a, const Value& b, Meter& meter);
/// -1, 0, 1; fails for what has no order.
[[nodiscard]] int compare(const Value& a, const Value& b, Meter& meter);
/// needle in haystack.
[[nodiscard]] bool contains(const Value& haystack, const Value& needle, Meter& meter);
/// What a loop goes over; fails for what is no sequence.
[[nodiscard]] List items_of(const Value& value, Meter& meter);
/// Null when the key is absent.
[[nodiscard]] const Value* find(const Dict& dict, const Value& key, Meter& meter);
[[nodiscard]] const Value* find(const Dict& dict, std::string_view key);
/// len(value); fails for what has none.
[[nodiscard]] std::int64_t length_of(const Value& value);

/// +, -, *, /, //, %, ** of Python.
[[nodiscard]] Value arithmetic(std::string_view op, const Value& a, const Value& b, Meter& meter);
[[nodiscard]] Value negate(const Value& value);
[[nodiscard]] Value subscript(const Value& object, const Value& key, Meter& meter);
/// begin, end, step may be none.
[[nodiscard]] Value slice(const Value& object, const Value& begin, const Value& end, const Value& step, Meter& meter);

// Built-in parts (jinja_builtins.cc).
[[nodiscard]] bool has_filter(const std::string& name);
[[nodiscard]] bool has_test(const std::string& name);
[[nodiscard]] Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, Meter& meter);
[[nodiscard]] bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, Meter& meter);
/// object.name: a method, or undefined when it has none of that name.
[[nodiscard]] Value method(const Value& object, const std::string& name);
/// range, dict, namespace, raise_exception, strftime_now, joiner, cycler.
[[nodiscard]] Value builtin(const std::string& name);

}  // namespace weft::model::jinja
