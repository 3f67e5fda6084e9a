#include "model/chat_template.h"

#include <optional>
#include <utility>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/jinja_syntax.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

using namespace jinja;

constexpr std::uint64_t kMaxSteps = 5'000'000;  // a conversation of a thousand messages takes some 100,000
constexpr std::size_t kMaxOutputBytes = std::size_t{64} << 20;
constexpr int kMaxDepth = 1500;  // of evaluation: about a kilobyte of stack each
constexpr int kMaxCalls = 100;   // macros in macros

/// Names and their values; macros keep the scope they were written in.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string, Value>> names;

  void set(const std::string& name, Value value) {
    for (auto& [known, old] : names) {
      if (known != name) continue;
      old = std::move(value);
      return;
    }
    names.emplace_back(name, std::move(value));
  }
};
using ScopePtr = std::shared_ptr<Scope>;

enum class Flow { on, stop, skip };

class Run {
 public:
  Run(const Block& program, const Json& variables) : program_(program), meter_(kMaxSteps), root_(std::make_shared<Scope>()) {
    if (variables.is_object())
      for (const auto& [name, value] : *variables.object()) root_->set(name, Value::from_json(value));
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  /// Macros hold the scope that holds them; the circles are cut here.
  ~Run() {
    for (const auto& weak : scopes_with_macros_)
      if (const ScopePtr scope = weak.lock()) scope->names.clear();
    root_->names.clear();
  }

  std::string run() {
    std::string out;
    const auto top = std::make_shared<Scope>();
    top->parent = root_;
    block(program_, top, out);
    top->names.clear();
    return out;
  }

 private:
  struct Depth {
    explicit Depth(Run& owner) : run(owner) {
      if (++run.depth_ > kMaxDepth) fail("it is nested too deeply");
    }
    ~Depth() { --run.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    Run& run;
  };

  void put(std::string& out, const std::string& text) {
    if (out.size() + text.size() > kMaxOutputBytes) fail("its output has more than " + format_size(kMaxOutputBytes));
    meter_.charge_bytes(text.size());
    out += text;
  }
  static ScopePtr inner(const ScopePtr& parent) {
    auto scope = std::make_shared<Scope>();
    scope->parent = parent;
    return scope;
  }

  Flow block(const Block& body, const ScopePtr& scope, std::string& out) {
    const Depth depth(*this);
    for (const auto& node : body)
      if (const Flow flow = statement(*node, scope, out); flow != Flow::on) return flow;
    return Flow::on;
  }

  void assign(const Statement& node, const ScopePtr& scope, const Value& value) {
    if (!node.unpack) return assign_one(node.targets.front(), scope, value);
    unpack(node.targets, scope, value);
  }
  void assign_one(const std::string& target, const ScopePtr& scope, const Value& value) {
    const std::size_t dot = target.find('.');
    if (dot == std::string::npos) return scope->set(target, value);
    const Value object = lookup(target.substr(0, dot), scope);
    const NamespaceBox* space = object.as_namespace();
    if (space == nullptr) fail("cannot assign attribute on non-namespace object");
    const std::string name = target.substr(dot + 1);
    for (auto& [key, old] : *space->items) {
      if (key.as_text() == nullptr || *key.as_text() != name) continue;
      // A namespace that holds itself would never be freed, nor printed.
      refuse_circle(value, *space, 0);
      old = value;
      return;
    }
    refuse_circle(value, *space, 0);
    space->items->emplace_back(Value::text(name), value);
  }
  void refuse_circle(const Value& value, const NamespaceBox& space, int depth) {
    meter_.charge(1);
    if (depth > 100) fail("a value is nested more than 100 deep");
    if (const NamespaceBox* other = value.as_namespace()) {
      if (other->items == space.items) refuse("a namespace that holds itself");
      for (const auto& [key, item] : *other->items) refuse_circle(item, space, depth + 1);
    } else if (const List* list = value.as_list()) {
      for (const Value& item : *list) {
        if (item.as_namespace() != nullptr || item.as_list() != nullptr || item.as_dict() != nullptr) refuse_circle(item, space, depth + 1);
      }
    } else if (const Dict* dict = value.as_dict()) {
      for (const auto& [key, item] : *dict)
        if (item.as_namespace() != nullptr || item.as_list() != nullptr || item.as_dict() != nullptr) refuse_circle(item, space, depth + 1);
    }
  }
  void unpack(const std::vector<std::string>& targets, const ScopePtr& scope, const Value& value) {
    const List items = items_of(value, meter_);
    if (value.is_undefined()) fail("cannot unpack undefined");
    if (items.size() != targets.size())
      fail("cannot unpack " + std::to_string(items.size()) + " values into " + std::to_string(targets.size()) + " names");
    for (std::size_t i = 0; i < targets.size(); ++i) assign_one(targets[i], scope, items[i]);
  }

  Flow statement(const Statement& node, const ScopePtr& scope, std::string& out) {
    meter_.charge(1);
    switch (node.kind) {
      case Statement::Kind::text:
        put(out, node.text);
        return Flow::on;
      case Statement::Kind::print:
        put(out, to_text(evaluate(*node.value, scope), meter_));
        return Flow::on;
      case Statement::Kind::conditional:
        for (const auto& [condition, body] : node.branches)
          if (evaluate(*condition, scope).truthy()) return block(body, scope, out);
        return block(node.else_body, scope, out);
      case Statement::Kind::loop:
        loop(node, scope, out);
        return Flow::on;
      case Statement::Kind::set:
        assign(node, scope, evaluate(*node.value, scope));
        return Flow::on;
      case Statement::Kind::set_block: {
        std::string text;
        block(node.body, inner(scope), text);
        Value value = Value::text(std::move(text));
        if (node.value) value = filtered(*node.value, value, scope);
        assign(node, scope, value);
        return Flow::on;
      }
      case Statement::Kind::macro:
        scope->set(node.text, macro(node, scope, node.text));
        return Flow::on;
      case Statement::Kind::call_block: {
        Arguments arguments = arguments_of(*node.value, scope);
        arguments.named.emplace_back("caller", macro(node, scope, "caller"));
        put(out, to_text(call(evaluate(*node.value->children[0], scope), arguments), meter_));
        return Flow::on;
      }
      case Statement::Kind::filter_block: {
        std::string text;
        block(node.body, inner(scope), text);
        put(out, to_text(filtered(*node.value, Value::text(std::move(text)), scope), meter_));
        return Flow::on;
      }
      case Statement::Kind::with: {
        const ScopePtr own = inner(scope);
        for (const auto& [name, value] : node.parameters) own->set(name, evaluate(*value, scope));
        return block(node.body, own, out);
      }
      case Statement::Kind::group:
        return block(node.body, scope, out);
      case Statement::Kind::stop:
        return Flow::stop;
      case Statement::Kind::skip:
        return Flow::skip;
    }
    return Flow::on;
  }

  void loop(const Statement& node, const ScopePtr& scope, std::string& out) {
    List items = items_of(evaluate(*node.value, scope), meter_);
    if (node.condition) {
      List kept;
      for (Value& item : items) {
        const ScopePtr own = inner(scope);
        assign(node, own, item);
        if (evaluate(*node.condition, own).truthy()) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      block(node.else_body, inner(scope), out);
      return;
    }
    ++loop_depth_;
    const auto changed = std::make_shared<std::optional<List>>();
    for (std::size_t i = 0; i < items.size(); ++i) {
      meter_.charge(20);  // the loop's own variables
      const ScopePtr own = inner(scope);
      own->set("loop", loop_object(items, i, changed));
      assign(node, own, items[i]);
      const Flow flow = block(node.body, own, out);
      if (flow == Flow::stop) break;
    }
    --loop_depth_;
  }

  Value loop_object(const List& items, std::size_t i, const std::shared_ptr<std::optional<List>>& changed) {
    const auto n = static_cast<std::int64_t>(items.size());
    const auto at = static_cast<std::int64_t>(i);
    const auto entry = [](const char* name, Value value) { return std::pair(Value::text(name), std::move(value)); };
    Dict fields;
    fields.reserve(14);
    fields.push_back(entry("index", Value::integer(at + 1)));
    fields.push_back(entry("index0", Value::integer(at)));
    fields.push_back(entry("first", Value::boolean(i == 0)));
    fields.push_back(entry("last", Value::boolean(at + 1 == n)));
    fields.push_back(entry("length", Value::integer(n)));
    fields.push_back(entry("revindex", Value::integer(n - at)));
    fields.push_back(entry("revindex0", Value::integer(n - at - 1)));
    fields.push_back(entry("depth", Value::integer(loop_depth_)));
    fields.push_back(entry("depth0", Value::integer(loop_depth_ - 1)));
    if (i > 0) fields.push_back(entry("previtem", items[i - 1]));
    if (at + 1 < n) fields.push_back(entry("nextitem", items[i + 1]));
    fields.push_back(entry("cycle", Value::function("cycle", [i](const Arguments& arguments, Meter&) {
                             if (arguments.positional.empty()) fail("no items for cycling given");
                             return arguments.positional[i % arguments.positional.size()];
                           })));
    fields.push_back(entry("changed", Value::function("changed", [changed](const Arguments& arguments, Meter& meter) {
                             const bool same = changed->has_value() && equal(Value::list(**changed), Value::list(arguments.positional), meter);
                             if (!same) *changed = arguments.positional;
                             return Value::boolean(!same);
                           })));
    return Value::name_space(std::move(fields));
  }

  Value macro(const Statement& node, const ScopePtr& scope, const std::string& name) {
    scopes_with_macros_.push_back(scope);
    return Value::function(name, [this, &node, scope, name](const Arguments& arguments, Meter&) {
      if (++calls_ > kMaxCalls) fail("macros call each other more than " + std::to_string(kMaxCalls) + " deep");
      const ScopePtr own = inner(scope);
      if (arguments.positional.size() > node.parameters.size())
        fail("macro '" + name + "' takes not more than " + std::to_string(node.parameters.size()) + " arguments");
      for (std::size_t i = 0; i < node.parameters.size(); ++i) {
        const auto& [parameter, missing] = node.parameters[i];
        const Value* given = i < arguments.positional.size() ? &arguments.positional[i] : nullptr;
        for (const auto& [key, value] : arguments.named) {
          if (key != parameter) continue;
          if (given != nullptr) fail("macro '" + name + "' got two values for '" + parameter + "'");
          given = &value;
        }
        own->set(parameter, given != nullptr ? *given : missing ? evaluate(*missing, own) : Value::undefined(parameter));
      }
      for (const auto& [key, value] : arguments.named) {
        bool known = key == "caller";
        for (const auto& [parameter, missing] : node.parameters) known = known || parameter == key;
        if (!known) fail("macro '" + name + "' takes no argument '" + key + "'");
        if (key == "caller") own->set(key, value);
      }
      std::string out;
      block(node.body, own, out);
      --calls_;
      return Value::text(std::move(out));
    });
  }

  Value lookup(const std::string& name, const ScopePtr& scope) {
    for (const Scope* at = scope.get(); at != nullptr; at = at->parent.get()) {
      meter_.charge(1);
      for (const auto& [known, value] : at->names)
        if (known == name) return value;
    }
    return builtin(name);
  }

  Arguments arguments_of(const Expression& node, const ScopePtr& scope) {
    Arguments arguments;
    for (const auto& argument : node.arguments) arguments.positional.push_back(evaluate(*argument, scope));
    for (const auto& [name, argument] : node.named) arguments.named.emplace_back(name, evaluate(*argument, scope));
    return arguments;
  }

  Value call(const Value& function, const Arguments& arguments) {
    if (function.is_undefined()) fail("'" + std::get<Undefined>(function.storage()).name + "' is undefined");
    if (function.as_function() == nullptr) fail("'" + function.type_name() + "' object is not callable");
    return (*function.as_function()->call)(arguments, meter_);
  }

  /// A chain of filters whose innermost has no child, applied to a value.
  Value filtered(const Expression& node, const Value& value, const ScopePtr& scope) {
    const Value inner_value = node.children.empty() ? value : filtered(*node.children[0], value, scope);
    return apply_filter(node.text, inner_value, arguments_of(node, scope), meter_);
  }

  bool compared(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return equal(a, b, meter_);
    if (op == "!=") return !equal(a, b, meter_);
    if (op == "in") return contains(b, a, meter_);
    if (op == "not in") return !contains(b, a, meter_);
    const int order = compare(a, b, meter_);
    if (op == "<") return order < 0;
    if (op == "<=") return order <= 0;
    if (op == ">") return order > 0;
    return order >= 0;
  }

  Value attribute(const Value& object, const std::string& name) {
    if (object.is_undefined()) fail("'" + std::get<Undefined>(object.storage()).name + "' is undefined");
    if (const NamespaceBox* space = object.as_namespace()) {
      meter_.charge(space->items->size());
      if (const Value* value = find(*space->items, name)) return *value;
      return Value::undefined("namespace object has no attribute '" + name);
    }
    Value found = method(object, name);
    if (!found.is_undefined()) return found;
    if (const Dict* dict = object.as_dict()) {
      meter_.charge(1 + dict->size());
      if (const Value* value = find(*dict, name)) return *value;
    }
    return Value::undefined(object.type_name() + " object has no attribute '" + name);
  }

  Value evaluate(const Expression& node, const ScopePtr& scope) {
    using Kind = Expression::Kind;
    const Depth depth(*this);
    meter_.charge(1);
    const auto child = [&](std::size_t i) { return evaluate(*node.children[i], scope); };
    switch (node.kind) {
      case Kind::constant:
        return node.value;
      case Kind::name:
        return lookup(node.text, scope);
      case Kind::list:
      case Kind::tuple: {
        List items;
        for (std::size_t i = 0; i < node.children.size(); ++i) items.push_back(child(i));
        return Value::list(std::move(items), node.kind == Kind::tuple);
      }
      case Kind::dict: {
        Dict items;
        for (std::size_t i = 0; i + 1 < node.children.size(); i += 2) {
          Value key = child(i);
          Value value = child(i + 1);
          bool known = false;
          for (auto& [old_key, old] : items) {
            if (!equal(old_key, key, meter_)) continue;
            old = value;
            known = true;
          }
          if (!known) items.emplace_back(std::move(key), std::move(value));
        }
        return Value::dict(std::move(items));
      }
      case Kind::attribute:
        return attribute(child(0), node.text);
      case Kind::item:
        return subscript(child(0), child(1), meter_);
      case Kind::slice:
        return slice(child(0), child(1), child(2), child(3), meter_);
      case Kind::call: {
        const Value function = child(0);
        return call(function, arguments_of(node, scope));
      }
      case Kind::filter:
        return apply_filter(node.text, child(0), arguments_of(node, scope), meter_);
      case Kind::test:
        return Value::boolean(apply_test(node.text, child(0), arguments_of(node, scope), meter_));
      case Kind::invert:
        return Value::boolean(!child(0).truthy());
      case Kind::negative:
        return negate(child(0));
      case Kind::positive:
        return arithmetic("+", Value::integer(0), child(0), meter_);
      case Kind::arithmetic: {
        const Value left = child(0);
        return arithmetic(node.text, left, child(1), meter_);
      }
      case Kind::concatenate: {
        std::string text;
        for (std::size_t i = 0; i < node.children.size(); ++i) text += to_text(child(i), meter_);
        if (text.size() > kMaxOutputBytes) fail("a text would become too long");
        meter_.charge_bytes(text.size());
        return Value::text(std::move(text));
      }
      case Kind::compare: {
        Value left = child(0);
        for (std::size_t i = 0; i < node.ops.size(); ++i) {
          Value right = child(i + 1);
          if (!compared(node.ops[i], left, right)) return Value::boolean(false);
          left = std::move(right);
        }
        return Value::boolean(true);
      }
      case Kind::both: {
        Value left = child(0);
        return left.truthy() ? child(1) : left;
      }
      case Kind::either: {
        Value left = child(0);
        return left.truthy() ? left : child(1);
      }
      case Kind::choose:
        if (child(0).truthy()) return child(1);
        return node.children.size() > 2 ? child(2) : Value::undefined("the inline if-expression without else");
    }
    return {};
  }

  const Block& program_;
  Meter meter_;
  ScopePtr root_;
  std::vector<std::weak_ptr<Scope>> scopes_with_macros_;
  int depth_ = 0;
  int calls_ = 0;
  int loop_depth_ = 0;
};

std::string_view trim(std::string_view text, bool left, bool right) {
  while (left && !text.empty()) {
    const CodePoint c = decode_utf8(text.data());
    if (!is_whitespace(c.value)) break;
    text.remove_prefix(c.size_bytes);
  }
  while (right && !text.empty()) {
    const CodePoint c = decode_utf8_before(text.data() + text.size());
    if (!is_whitespace(c.value)) break;
    text.remove_suffix(c.size_bytes);
  }
  return text;
}

/// The same error with the template's file.
template <typename Work>
auto located(const std::filesystem::path& file, Work&& work) {
  try {
    return work();
  } catch (const Error& error) {
    ErrorPlace place = error.place();
    if (place.file.empty()) place.file = file.string();
    throw Error(error.code(), error.message(), std::move(place), error.advice());
  }
}

}  // namespace

struct ChatRenderer::Impl {
  Block program;
  std::filesystem::path file;
};

ChatRenderer::ChatRenderer(std::string_view source, const std::filesystem::path& file) : impl_(std::make_unique<Impl>()) {
  impl_->file = file;
  impl_->program = located(file, [&] { return parse_template(source); });
}
ChatRenderer::~ChatRenderer() = default;
ChatRenderer::ChatRenderer(ChatRenderer&&) noexcept = default;
ChatRenderer& ChatRenderer::operator=(ChatRenderer&&) noexcept = default;

std::string ChatRenderer::render(const Json& variables) const {
  return located(impl_->file, [&] { return Run(impl_->program, variables).run(); });
}

std::string continue_last_message(const std::string& rendered, const Json& messages) {
  const Json* content = nullptr;
  if (const Json::Array* list = messages.array(); list != nullptr && !list->empty()) content = list->back().find("content");
  const std::string* text = content == nullptr ? nullptr : content->string();
  if (content != nullptr && content->is_array()) {  // the last part with a text
    for (const Json& part : *content->array())
      if (const Json* piece = part.find("text"); piece != nullptr && piece->string() != nullptr) text = piece->string();
  }
  if (text == nullptr) throw Error(ErrorCode::invalid_argument, "there is no last message to continue: it has no text", {.key = "messages"});
  const std::string bare(trim(*text, true, true));
  const std::size_t at = rendered.rfind(bare);
  if (at == std::string::npos)
    throw Error(ErrorCode::invalid_argument, "the last message cannot be continued: the template changes its text", {.key = "messages"});
  const std::string without_left(trim(*text, true, false));
  if (rendered.compare(at, without_left.size(), *text) == 0) return rendered.substr(0, at + without_left.size());
  return rendered.substr(0, at + bare.size());
}

}  // namespace weft::model
