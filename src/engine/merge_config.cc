#include "engine/merge_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "base/text.h"
#include "engine/merge_tokenizer.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using merge::BaseRule;
using merge::Method;
using merge::Parameter;
using merge::ParameterScope;
using merge::ParameterType;
using yaml::Kind;
using yaml::Node;
using yaml::Place;

constexpr int kMaxLayers = 10'000;

std::string in_quotes(std::string_view text) { return fmt::format("'{}'", printable(text, 80)); }

/// "the text 'heavy'", "a list": what stands there, for messages.
std::string shown(const Node& node) {
  switch (node.kind) {
    case Kind::null:
      return "nothing";
    case Kind::sequence:
      return node.items.empty() ? "an empty list" : "a list";
    case Kind::mapping:
      return "a mapping";
    case Kind::string:
      return "the text " + in_quotes(node.text);
    case Kind::boolean:
    case Kind::integer:
    case Kind::number:
      return in_quotes(node.text);
  }
  return "something";
}

std::string member_key(const std::string& parent, std::string_view name) {
  const std::string shown_name = printable(name, 80);
  return parent.empty() ? shown_name : parent + "." + shown_name;
}
std::string item_key(const std::string& parent, std::size_t index) { return fmt::format("{}[{}]", parent, index); }

/// Absent, null and empty lists and mappings are all the same to the grammar.
bool is_given(const Node* node) {
  if (node == nullptr || node->is_null()) return false;
  if (node->kind == Kind::sequence) return !node->items.empty();
  if (node->kind == Kind::mapping) return !node->members.empty();
  return true;
}
bool is_written(const Node* node) { return node != nullptr && !node->is_null(); }

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return out;
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::optional<double> number_in_text(std::string_view text) {
  text = trimmed(text);
  if (text.starts_with('+')) text.remove_prefix(1);
  // As in Python, digits may be grouped: "1_000".
  std::string ungrouped;
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_' && i > 0 && i + 1 < text.size() && is_digit(text[i - 1]) && is_digit(text[i + 1])) continue;
    ungrouped += text[i];
  }
  text = ungrouped;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<bool> boolean_in_text(std::string_view text) {
  const std::string word = lower(trimmed(text));
  for (const std::string_view yes : {"true", "yes", "on", "1", "t", "y"})
    if (word == yes) return true;
  for (const std::string_view no : {"false", "no", "off", "0", "f", "n"})
    if (word == no) return false;
  return std::nullopt;
}

/// Equal exactly for references to the same model; to find repetitions in less than quadratic time.
std::string identity(const ModelRef& ref) {
  std::string key;
  const auto add = [&key](const std::string& part) { key += fmt::format("{}:{}", part.size(), part); };
  const auto add_path = [&](const PathRef& path) {
    add(path.path);
    if (path.revision) add("@" + *path.revision);
  };
  add_path(ref.model);
  if (ref.lora) {
    key += '+';
    add_path(*ref.lora);
  }
  if (ref.override_architecture) key += "!" + *ref.override_architecture;
  return key;
}

std::string written_form(const PathRef& path) { return path.revision ? path.path + "@" + *path.revision : path.path; }

bool exists_as_path(std::string_view text) {
  std::error_code ignored;
  return text.find('\0') == std::string_view::npos && std::filesystem::exists(std::filesystem::path(text), ignored);
}

/// Says what is wrong with a reference, or nothing.
std::optional<std::string> split_path(std::string_view text, PathRef& out) {
  const std::size_t at = text.find('@');
  if (at != std::string_view::npos && text.find('@', at + 1) != std::string_view::npos) return "has more than one '@'";
  out.path = std::string(text.substr(0, at));
  // mergekit takes "model@" for no revision.
  if (at != std::string_view::npos && at + 1 < text.size()) out.revision = std::string(text.substr(at + 1));
  if (out.path.empty()) return "names no path";
  return std::nullopt;
}

std::optional<std::string> split_model_ref(std::string_view text, ModelRef& out) {
  out.written = std::string(text);
  if (text.empty()) return "is empty";
  if (exists_as_path(text)) {
    out.model.path = std::string(text);
    return std::nullopt;
  }
  const std::size_t plus = text.find('+');
  if (plus == std::string_view::npos) return split_path(text, out.model);
  if (text.find('+', plus + 1) != std::string_view::npos) return "has more than one '+'";
  if (auto wrong = split_path(text.substr(0, plus), out.model)) return wrong;
  return split_path(text.substr(plus + 1), out.lora.emplace());
}

constexpr std::string_view kReferenceAdvice =
    "a model is written path[@revision][+adapter[@revision]], or as {model: {path: ..., revision: ...}, lora: ...}";

// ---- reading one document ----

class Reader {
 public:
  Reader(const std::string& file, const MergeConfigOptions& options, std::vector<std::string>& warnings)
      : file_(file), options_(options), warnings_(warnings) {}

  MergeConfig read(const yaml::Document& document) {
    const Node& root = document.root;
    if (root.kind != Kind::mapping)
      fail("", root.place, root.is_null() ? "the document is empty" : fmt::format("the document is {}, not a mapping", yaml::describe(root.kind)),
           "a config is a mapping with the keys merge_method and models, slices or modules");
    MergeConfig config;
    config.file = file_;
    config.text = document.text;
    read_method(root, config);
    check_keys(root, "",
               {"merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
                "chat_template", "name"});
    if (const Node* node = root.find("name"); is_written(node)) config.name = text(*node, "name");
    if (const Node* node = root.find("base_model"); is_written(node)) config.base_model = model_ref(*node, "base_model");
    config.dtype = dtype(root, "dtype");
    config.out_dtype = dtype(root, "out_dtype");
    config.parameters = settings(root.find("parameters"), "parameters", false);
    read_modules(root, config);
    read_tokenizer(root, config);
    read_chat_template(root, config);
    for (const Module& module : config.modules) {
      int num_layers = 0;
      for (const Slice& slice : module.slices) {
        check_slice(config, slice);
        check_required(config, module, slice);
        if (slice.sources[0].layers) num_layers += slice.sources[0].layers->size();
      }
      if (module.form == OutputForm::slices && num_layers == 0)
        fail(config.written_as_modules ? member_key("modules", module.name) : "slices", places_.at(module.name), "the slices have no layer together",
             "give at least one slice a layer_range with an end beyond its start");
    }
    return config;
  }

 private:
  [[noreturn]] void fail(const std::string& key, Place place, const std::string& what, std::string advice) const {
    std::string message = key.empty() ? what : fmt::format("{}: {}", key, what);
    if (place.line > 0) message += fmt::format(" ({})", yaml::to_string(place));
    throw Error(ErrorCode::invalid_argument, std::move(message), {.file = file_, .key = key}, std::move(advice));
  }

  void note(const std::string& key, Place place, const std::string& what) {
    warnings_.push_back(fmt::format("{}: {} ({})", key, what, yaml::to_string(place)));
  }

  /// What has no effect, and should have had one: a warning, or an error when strict.
  void without_effect(const std::string& key, Place place, const std::string& what, const std::string& advice) {
    if (options_.strict) fail(key, place, what, advice.empty() ? "remove it" : advice);
    note(key, place, advice.empty() ? what : what + "; " + advice);
  }

  void check_keys(const Node& node, const std::string& key, std::initializer_list<std::string_view> known) {
    for (const yaml::Member& member : node.members) {
      const std::string& name = member.key.text;
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      const std::vector<std::string> names(known.begin(), known.end());
      std::string advice;
      if (const auto nearest = nearest_name(name, names))
        advice = fmt::format("did you mean '{}'?", *nearest);
      else if (std::find(known.begin(), known.end(), "parameters") != known.end() && find_parameter(name) != nullptr)
        advice = "parameters go under 'parameters:'";
      without_effect(member_key(key, name), member.key.place, "unknown key, without effect", advice);
    }
  }

  void need_mapping(const Node& node, const std::string& key, std::string_view what) const {
    if (node.kind != Kind::mapping)
      fail(key, node.place, fmt::format("expected a mapping with {}, got {}", what, shown(node)), "see the grammar of the config");
  }
  void need_list(const Node& node, const std::string& key, std::string_view what) const {
    if (node.kind != Kind::sequence)
      fail(key, node.place, fmt::format("expected a list of {}, got {}", what, shown(node)), "begin each entry with a dash");
  }

  std::string text(const Node& node, const std::string& key) const {
    if (node.kind != Kind::string)
      fail(key, node.place, fmt::format("expected a text, got {}", shown(node)), node.is_scalar() ? "put it in quotes" : "write a text");
    return node.text;
  }

  bool boolean(const Node& node, const std::string& key) const {
    if (node.kind == Kind::boolean) return node.flag;
    if (node.kind == Kind::integer && node.integer && (*node.integer == 0 || *node.integer == 1)) return *node.integer == 1;
    if (node.kind == Kind::string)
      if (const auto value = boolean_in_text(node.text)) return *value;
    fail(key, node.place, fmt::format("expected true or false, got {}", shown(node)), "write true or false");
  }

  std::int64_t integer(const Node& node, const std::string& key, std::int64_t largest) const {
    std::optional<double> value;
    if (node.kind == Kind::integer || node.kind == Kind::number) value = node.number;
    if (node.kind == Kind::string) value = number_in_text(node.text);
    if (!value || *value != std::trunc(*value))
      fail(key, node.place, fmt::format("expected a whole number, got {}", shown(node)), "write digits only");
    if (*value < 0 || *value > static_cast<double>(largest))
      fail(key, node.place, fmt::format("{} is not between 0 and {}", printable(node.text, 40), largest), "change it");
    return static_cast<std::int64_t>(*value);
  }

  std::optional<DType> dtype(const Node& root, const std::string& key) const {
    const Node* node = root.find(key);
    if (!is_written(node)) return std::nullopt;
    const std::string name = text(*node, key);
    const std::optional<DType> type = dtype_from_any(name);
    if (!type) fail(key, node->place, fmt::format("unknown dtype {}", in_quotes(name)), "use float32, bfloat16, float16 or float64");
    return type;
  }

  PathRef path_ref(const Node& node, const std::string& key) {
    PathRef path;
    if (node.kind == Kind::mapping) {
      check_keys(node, key, {"path", "revision"});
      const Node* at = node.find("path");
      if (!is_written(at)) fail(key, node.place, "a model needs a path", std::string(kReferenceAdvice));
      path.path = text(*at, member_key(key, "path"));
      if (path.path.empty()) fail(member_key(key, "path"), at->place, "is empty", std::string(kReferenceAdvice));
      if (const Node* revision = node.find("revision"); is_written(revision)) path.revision = text(*revision, member_key(key, "revision"));
      return path;
    }
    const std::string written = text(node, key);
    if (!written.empty() && exists_as_path(written)) {
      path.path = written;
    } else if (const auto wrong = split_path(written, path)) {
      fail(key, node.place, fmt::format("the model reference {} {}", in_quotes(written), *wrong), std::string(kReferenceAdvice));
    }
    return path;
  }

  ModelRef model_ref(const Node& node, const std::string& key) {
    ModelRef ref;
    ref.place = node.place;
    if (node.kind == Kind::mapping) {
      check_keys(node, key, {"model", "lora", "override_architecture"});
      const Node* model = node.find("model");
      if (!is_written(model)) fail(key, node.place, "a model reference needs 'model'", std::string(kReferenceAdvice));
      ref.model = path_ref(*model, member_key(key, "model"));
      if (const Node* lora = node.find("lora"); is_written(lora)) ref.lora = path_ref(*lora, member_key(key, "lora"));
      if (const Node* architecture = node.find("override_architecture"); is_written(architecture))
        ref.override_architecture = text(*architecture, member_key(key, "override_architecture"));
      ref.written = ref.lora ? written_form(ref.model) + "+" + written_form(*ref.lora) : written_form(ref.model);
      return ref;
    }
    if (node.kind != Kind::string) fail(key, node.place, fmt::format("expected a model, got {}", shown(node)), std::string(kReferenceAdvice));
    if (const auto wrong = split_model_ref(node.text, ref))
      fail(key, node.place, fmt::format("the model reference {} {}", in_quotes(node.text), *wrong), std::string(kReferenceAdvice));
    return ref;
  }

  void read_method(const Node& root, MergeConfig& config) {
    const Node* node = root.find("merge_method");
    if (!is_written(node)) fail("merge_method", root.place, "merge_method is missing", "name a method; 'weft methods' lists them");
    config.merge_method = text(*node, "merge_method");
    for (const Method& method : options_.methods)
      if (method.name == config.merge_method) config.method = &method;
    if (config.method == nullptr) {
      std::vector<std::string> names;
      for (const Method& method : options_.methods) names.push_back(method.name);
      const auto nearest = nearest_name(config.merge_method, names);
      fail("merge_method", node->place, fmt::format("unknown method {}", in_quotes(config.merge_method)),
           nearest ? fmt::format("did you mean '{}'? 'weft methods' lists all", *nearest) : "'weft methods' lists them");
    }
    method_ = config.method;
  }

  // ---- parameters ----

  [[nodiscard]] const Parameter* find_parameter(std::string_view name) const {
    if (method_ == nullptr) return nullptr;
    for (const Parameter& parameter : method_->parameters)
      if (parameter.name == name) return &parameter;
    return nullptr;
  }

  double value(const Node& node, const std::string& key, const Parameter& parameter) const {
    double number = 0;
    if (parameter.type == ParameterType::boolean) {
      if (node.kind == Kind::number && (node.number == 0 || node.number == 1))
        number = node.number;
      else
        number = boolean(node, key) ? 1 : 0;
      return number;
    }
    if (node.kind == Kind::integer || node.kind == Kind::number) {
      number = node.number;
    } else if (node.kind == Kind::boolean) {
      number = node.flag ? 1 : 0;
    } else if (const auto in_text = node.kind == Kind::string ? number_in_text(node.text) : std::nullopt) {
      number = *in_text;
    } else {
      fail(key, node.place, fmt::format("expected a number for parameter '{}', got {}", parameter.name, shown(node)), "write a number");
    }
    if (!std::isfinite(number)) fail(key, node.place, fmt::format("{} is not a finite number", shown(node)), "write a finite number");
    if (parameter.type == ParameterType::integer && number != std::trunc(number))
      fail(key, node.place, fmt::format("parameter '{}' is a whole number, got {}", parameter.name, shown(node)), "write a whole number");
    if (number < parameter.min || number > parameter.max) {
      const std::string range = parameter.max >= 1e300    ? fmt::format("at least {}", parameter.min)
                                : parameter.min <= -1e300 ? fmt::format("at most {}", parameter.max)
                                                          : fmt::format("from {} to {}", parameter.min, parameter.max);
      fail(key, node.place, fmt::format("parameter '{}' is {}, but must be {}", parameter.name, number, range), "change it");
    }
    return number;
  }

  std::vector<double> values(const Node& node, const std::string& key, const Parameter& parameter) const {
    std::vector<double> out;
    if (node.kind != Kind::sequence) return {value(node, key, parameter)};
    out.reserve(node.items.size());
    for (std::size_t i = 0; i < node.items.size(); ++i) out.push_back(value(node.items[i], item_key(key, i), parameter));
    return out;
  }

  SettingEntry entry(const Node& node, const std::string& key, const Parameter& parameter) {
    check_keys(node, key, {"value", "filter"});
    SettingEntry out;
    const Node* given = node.find("value");
    if (!is_written(given)) fail(key, node.place, "an entry needs 'value'", "write {filter: TEXT, value: NUMBER}");
    if (const Node* filter = node.find("filter"); is_written(filter)) out.filter = text(*filter, member_key(key, "filter"));
    out.values = values(*given, member_key(key, "value"), parameter);
    return out;
  }

  Setting setting(const Node& node, const std::string& key, const Parameter& parameter) {
    Setting out;
    out.name = parameter.name;
    out.key = key;
    out.place = node.place;
    const auto is_mapping = [](const Node& item) { return item.kind == Kind::mapping; };
    if (node.kind == Kind::mapping) {
      out.entries.push_back(entry(node, key, parameter));
    } else if (node.kind == Kind::sequence && std::any_of(node.items.begin(), node.items.end(), is_mapping)) {
      for (std::size_t i = 0; i < node.items.size(); ++i) {
        if (!is_mapping(node.items[i]))
          fail(item_key(key, i), node.items[i].place,
               fmt::format("expected {{filter: ..., value: ...}} like its neighbours, got {}", shown(node.items[i])),
               "write {value: ...} for an entry without filter");
        out.entries.push_back(entry(node.items[i], item_key(key, i), parameter));
      }
      for (std::size_t i = 0; i + 1 < out.entries.size(); ++i)
        if (!out.entries[i].filter || *out.entries[i].filter == "*")
          without_effect(item_key(key, i + 1), node.items[i + 1].place, "never reached, because the entry before it has no filter",
                         "put the entry without filter last");
    } else {
      out.entries.push_back({std::nullopt, values(node, key, parameter)});
    }
    return out;
  }

  Settings settings(const Node* node, const std::string& key, bool of_one_model) {
    Settings out;
    if (!is_written(node)) return out;
    need_mapping(*node, key, "parameters");
    for (const yaml::Member& member : node->members) {
      const std::string& name = member.key.text;
      const std::string path = member_key(key, name);
      const Parameter* parameter = find_parameter(name);
      if (parameter == nullptr) {
        std::vector<std::string> names;
        for (const Parameter& p : method_->parameters)
          if (!p.ignored) names.push_back(p.name);
        const auto nearest = nearest_name(name, names);
        without_effect(path, member.key.place,
                       fmt::format("method '{}' has no parameter '{}', so it has no effect", method_->name, printable(name, 80)),
                       nearest ? fmt::format("did you mean '{}'?", *nearest) : "");
        continue;
      }
      if (parameter->ignored) continue;
      if (of_one_model && parameter->scope == ParameterScope::global) {
        without_effect(path, member.key.place, fmt::format("'{}' applies to the whole merge and has no effect under a model", name),
                       "move it to the top-level 'parameters:'");
        continue;
      }
      out.push_back(setting(member.value, path, *parameter));
    }
    return out;
  }

  // ---- models, slices, modules ----

  void read_modules(const Node& root, MergeConfig& config) {
    std::vector<std::string> given;
    for (const char* form : {"models", "slices", "modules"})
      if (is_given(root.find(form))) given.emplace_back(form);
    if (given.size() != 1)
      fail(given.empty() ? "" : given[1], given.empty() ? root.place : root.find(given[1])->place,
           given.empty() ? "none of models, slices and modules is given" : fmt::format("{} and {} are both given", given[0], given[1]),
           "write exactly one of models, slices and modules");
    if (given[0] != "modules") {
      places_.emplace("default", root.find(given[0])->place);
      read_module("default", root, "", config);
      return;
    }
    config.written_as_modules = true;
    const Node& modules = *root.find("modules");
    need_mapping(modules, "modules", "a name for each module");
    for (const yaml::Member& member : modules.members) {
      const std::string key = member_key("modules", member.key.text);
      need_mapping(member.value, key, "models or slices");
      check_keys(member.value, key, {"models", "slices", "parameters"});
      if (is_given(member.value.find("models")) == is_given(member.value.find("slices")))
        fail(key, member.value.place, "a module needs either models or slices", "write exactly one of the two");
      places_.emplace(member.key.text, member.value.place);
      read_module(member.key.text, member.value, key, config);
      config.modules.back().parameters = settings(member.value.find("parameters"), member_key(key, "parameters"), false);
    }
  }

  void read_module(const std::string& name, const Node& node, const std::string& key, MergeConfig& config) {
    Module module;
    module.name = name;
    if (const Node* models = node.find("models"); is_given(models)) {
      module.form = OutputForm::models;
      module.slices.push_back(read_models(*models, member_key(key, "models"), config));
      module.slices[0].name = name + ".slices[0]";
    } else {
      const Node& slices = *node.find("slices");
      const std::string slices_key = member_key(key, "slices");
      need_list(slices, slices_key, "slices");
      for (std::size_t i = 0; i < slices.items.size(); ++i) {
        module.slices.push_back(read_slice(slices.items[i], item_key(slices_key, i)));
        module.slices.back().name = fmt::format("{}.slices[{}]", name, i);
      }
    }
    config.modules.push_back(std::move(module));
  }

  Slice read_models(const Node& node, const std::string& key, const MergeConfig& config) {
    need_list(node, key, "models");
    Slice slice;
    for (std::size_t i = 0; i < node.items.size(); ++i) slice.sources.push_back(read_source(node.items[i], item_key(key, i), false));
    // mergekit adds the base to every list of models, under `modules:` too; only slices name all their sources.
    if (config.base_model && std::none_of(slice.sources.begin(), slice.sources.end(), [&](const Source& s) { return s.model == *config.base_model; }))
      slice.sources.push_back({*config.base_model, std::nullopt, {}, "base_model", true});
    return slice;
  }

  Slice read_slice(const Node& node, const std::string& key) {
    need_mapping(node, key, "sources");
    check_keys(node, key, {"sources", "base_model", "parameters", "residual_weight"});
    Slice slice;
    const Node* sources = node.find("sources");
    const std::string sources_key = member_key(key, "sources");
    if (!is_given(sources)) fail(key, node.place, "a slice needs sources", "write sources: [{model: ..., layer_range: [START, END]}]");
    need_list(*sources, sources_key, "models with their layers");
    for (std::size_t i = 0; i < sources->items.size(); ++i) slice.sources.push_back(read_source(sources->items[i], item_key(sources_key, i), true));
    if (const Node* base = node.find("base_model"); is_written(base)) slice.base_model = model_ref(*base, member_key(key, "base_model"));
    slice.parameters = settings(node.find("parameters"), member_key(key, "parameters"), false);
    if (const Node* residual = node.find("residual_weight"); is_written(residual))
      note(member_key(key, "residual_weight"), residual->place, "has no effect in any method");
    return slice;
  }

  Source read_source(const Node& node, const std::string& key, bool in_slice) {
    need_mapping(node, key, "a model");
    if (in_slice)
      check_keys(node, key, {"model", "layer_range", "parameters"});
    else
      check_keys(node, key, {"model", "parameters"});
    Source source;
    source.key = key;
    const Node* model = node.find("model");
    if (!is_written(model)) fail(key, node.place, "an entry needs 'model'", "write {model: PATH, parameters: {...}}");
    source.model = model_ref(*model, member_key(key, "model"));
    source.parameters = settings(node.find("parameters"), member_key(key, "parameters"), true);
    if (!in_slice) return source;
    const std::string range_key = member_key(key, "layer_range");
    const Node* range = node.find("layer_range");
    if (!is_written(range)) fail(key, node.place, "a source of a slice needs layer_range", "write layer_range: [START, END]; END is not included");
    if (range->kind != Kind::sequence || range->items.size() != 2)
      fail(range_key, range->place, fmt::format("expected [START, END], got {}", shown(*range)), "write two whole numbers; END is not included");
    LayerRange layers;
    layers.begin = static_cast<int>(integer(range->items[0], item_key(range_key, 0), kMaxLayers));
    layers.end = static_cast<int>(integer(range->items[1], item_key(range_key, 1), kMaxLayers));
    if (layers.end < layers.begin)
      fail(range_key, range->place, fmt::format("the range [{}, {}] is reversed", layers.begin, layers.end), "write the smaller number first");
    source.layers = layers;
    return source;
  }

  void check_slice(const MergeConfig& config, const Slice& slice) const {
    const Method& method = *config.method;
    std::unordered_set<std::string> seen;
    for (std::size_t i = 0; i < slice.sources.size(); ++i) {
      if (!seen.insert(identity(slice.sources[i].model)).second)
        fail(slice.sources[i].key, slice.sources[i].model.place,
             fmt::format("the model '{}' occurs twice in {}", printable(slice.sources[i].model.written), slice.name),
             "list each model once in a slice");
      const auto& first = slice.sources[0].layers;
      const auto& layers = slice.sources[i].layers;
      if (first && layers && layers->size() != first->size())
        fail(member_key(slice.sources[i].key, "layer_range"), slice.sources[i].model.place,
             fmt::format("the sources of {} have different numbers of layers: {} and {}", slice.name, first->size(), layers->size()),
             "give all sources of one slice ranges of one length");
    }

    const ModelRef* base = config.base_of(slice);
    if (method.base == BaseRule::required || method.base == BaseRule::one_of_two) {
      if (base == nullptr)
        fail("base_model", slice.sources[0].model.place, fmt::format("method '{}' needs base_model (for {})", method.name, slice.name),
             "add base_model: PATH at the top level");
      if (std::none_of(slice.sources.begin(), slice.sources.end(), [&](const Source& s) { return s.model == *base; }))
        fail("base_model", base->place,
             fmt::format("the base '{}' is not among the sources of {}, and method '{}' needs it there", printable(base->written), slice.name,
                         method.name),
             "list the base model as a source of every slice; only 'models:' adds it by itself");
    }
    const bool counts_base = method.base == BaseRule::one_of_two || method.base == BaseRule::unused;
    const auto count =
        std::count_if(slice.sources.begin(), slice.sources.end(), [&](const Source& s) { return counts_base || !config.is_base(slice, s); });
    if (count < method.min_models || count > method.max_models) {
      const std::string wanted = method.min_models == method.max_models ? fmt::format("exactly {}", method.min_models)
                                 : count < method.min_models            ? fmt::format("at least {}", method.min_models)
                                                                        : fmt::format("at most {}", method.max_models);
      const bool appended = counts_base && slice.sources.back().appended_base;
      fail(slice.sources.back().key, slice.sources.back().model.place,
           fmt::format("method '{}' takes {} model{}{}, and {} has {}", method.name, wanted, wanted.ends_with(" 1") ? "" : "s",
                       method.base == BaseRule::one_of_two ? " (the base counts)"
                       : !counts_base && base != nullptr   ? " beside the base"
                                                           : "",
                       slice.name, count),
           appended ? "base_model is not listed and was added as one more model" : "add or remove models");
    }
  }

  /// A required parameter that no level gives can be reported before any model is opened.
  void check_required(const MergeConfig& config, const Module& module, const Slice& slice) const {
    const auto gives = [](const Settings& settings, const Parameter& parameter) {
      return std::any_of(settings.begin(), settings.end(), [&](const Setting& s) {
        return s.name == parameter.name && std::any_of(s.entries.begin(), s.entries.end(), [](const SettingEntry& e) { return !e.values.empty(); });
      });
    };
    for (const Parameter& parameter : config.method->parameters) {
      if (parameter.default_value || parameter.optional_value || parameter.ignored) continue;
      if (gives(slice.parameters, parameter) || gives(module.parameters, parameter) || gives(config.parameters, parameter)) continue;
      if (parameter.scope == ParameterScope::global)
        fail("parameters." + parameter.name, {}, fmt::format("missing required parameter {} for {}", parameter.name, slice.name),
             fmt::format("give it under 'parameters:'. {}", parameter.help));
      for (const Source& source : slice.sources) {
        if (config.is_base(slice, source) || gives(source.parameters, parameter)) continue;
        fail(source.appended_base ? "base_model" : source.key + ".parameters." + parameter.name, source.model.place,
             fmt::format("missing required parameter {} for model {} in {}", parameter.name, printable(source.model.written), slice.name),
             source.appended_base
                 ? fmt::format("method '{}' has no use for base_model: it is one more input, and needs the parameter; list it under models with "
                               "parameters, or remove base_model",
                               config.method->name)
                 : "give it under the model's 'parameters:', or for all models under the top-level 'parameters:'");
      }
    }
  }

  // ---- tokenizer ----

  void read_tokenizer(const Node& root, MergeConfig& config) {
    const Node* source = root.find("tokenizer_source");
    const Node* full = root.find("tokenizer");
    if (is_written(source) && is_written(full))
      fail("tokenizer", full->place, "tokenizer and tokenizer_source are both given",
           "keep one: 'tokenizer_source: X' is short for 'tokenizer: {source: X}'");
    if (is_written(source)) read_vocabulary(*source, "tokenizer_source", config.tokenizer.emplace());
    if (!is_written(full)) return;
    need_mapping(*full, "tokenizer", "source, tokens, pad_to_multiple_of");
    check_keys(*full, "tokenizer", {"source", "tokens", "pad_to_multiple_of"});
    ConfigTokenizer& tokenizer = config.tokenizer.emplace();
    if (const Node* node = full->find("source"); is_written(node)) read_vocabulary(*node, "tokenizer.source", tokenizer);
    if (const Node* node = full->find("pad_to_multiple_of"); is_written(node)) {
      // mergekit treats 0 as not given.
      const std::int64_t multiple = integer(*node, "tokenizer.pad_to_multiple_of", 1 << 24);
      if (multiple > 0) tokenizer.pad_to_multiple_of = static_cast<std::uint64_t>(multiple);
    }
    const Node* tokens = full->find("tokens");
    if (!is_written(tokens)) return;
    need_mapping(*tokens, "tokenizer.tokens", "a rule for each token");
    for (const yaml::Member& member : tokens->members)
      tokenizer.tokens.push_back(token_rule(member, member_key("tokenizer.tokens", member.key.text)));
  }

  void read_vocabulary(const Node& node, const std::string& key, ConfigTokenizer& tokenizer) {
    if (node.kind == Kind::string && node.text == "union") {
      tokenizer.source = ConfigVocabulary::union_of_all;
    } else if (node.kind == Kind::string && node.text == "base") {
      tokenizer.source = ConfigVocabulary::base;
    } else {
      tokenizer.source = ConfigVocabulary::model;
      tokenizer.model = model_ref(node, key);
    }
  }

  ConfigTokenRule token_rule(const yaml::Member& member, const std::string& key) {
    ConfigTokenRule rule;
    rule.token = member.key.text;
    if (rule.token.empty()) fail(key, member.key.place, "a token cannot be empty", "name the token");
    const Node& node = member.value;
    need_mapping(node, key, "source and force");
    check_keys(node, key, {"source", "force"});
    if (const Node* force = node.find("force"); is_written(force)) rule.force = boolean(*force, member_key(key, "force"));
    const Node* source = node.find("source");
    const std::string source_key = member_key(key, "source");
    if (!is_written(source)) {
      if (rule.force) fail(key, node.place, "force needs a source", "add source: MODEL, {kind: model_token, ...} or {kind: zero}");
      return rule;
    }
    const Node* kind = source->find("kind");
    if (!is_written(kind)) {
      if (is_written(source->find("token")) || is_written(source->find("token_id")))
        fail(source_key, source->place, "the row of another token needs 'kind: model_token'", "write {kind: model_token, model: MODEL, token: TEXT}");
      rule.source = ConfigTokenSource::model;
      rule.model = model_ref(*source, source_key);
      return rule;
    }
    const std::string name = text(*kind, member_key(source_key, "kind"));
    if (name == "zero") {
      check_keys(*source, source_key, {"kind"});
      rule.source = ConfigTokenSource::zero;
      return rule;
    }
    if (name != "model_token")
      fail(member_key(source_key, "kind"), kind->place, fmt::format("unknown kind {}", in_quotes(name)), "use model_token or zero");
    check_keys(*source, source_key, {"kind", "model", "token", "token_id"});
    rule.source = ConfigTokenSource::model_token;
    const Node* model = source->find("model");
    if (!is_written(model)) fail(source_key, source->place, "model_token needs a model", "add model: PATH");
    rule.model = model_ref(*model, member_key(source_key, "model"));
    const Node* token = source->find("token");
    const Node* id = source->find("token_id");
    if (is_written(token) == is_written(id))
      fail(source_key, source->place, is_written(token) ? "token and token_id are both given" : "neither token nor token_id is given",
           "write exactly one of the two");
    if (is_written(token)) {
      if (!token->is_scalar())
        fail(member_key(source_key, "token"), token->place, fmt::format("expected a token, got {}", shown(*token)), "write its text");
      rule.source_token = token->text;
    } else {
      rule.source_id = static_cast<std::uint64_t>(integer(*id, member_key(source_key, "token_id"), std::int64_t{1} << 31));
    }
    return rule;
  }

  void read_chat_template(const Node& root, MergeConfig& config) const {
    const Node* node = root.find("chat_template");
    if (!is_written(node)) return;
    const std::string given = text(*node, "chat_template");
    if (given.empty()) return;
    if (given != "auto") {
      // What the text may be is known there; here only the place is.
      try {
        (void)choose_chat_template(given, {});
      } catch (const Error& e) {
        fail("chat_template", node->place, e.message(), e.advice());
      }
    }
    config.chat_template = given;
  }

  const std::string& file_;
  const MergeConfigOptions& options_;
  std::vector<std::string>& warnings_;
  const Method* method_ = nullptr;
  std::map<std::string, Place> places_;  // of the modules
};

}  // namespace

ModelRef parse_model_ref(std::string_view text) {
  ModelRef ref;
  if (const auto wrong = split_model_ref(text, ref))
    throw Error(ErrorCode::invalid_argument, fmt::format("the model reference {} {}", in_quotes(text), *wrong), {}, std::string(kReferenceAdvice));
  return ref;
}

std::optional<double> evaluate(const Setting& setting, std::string_view tensor_name, double position, ParameterType type) {
  for (const SettingEntry& entry : setting.entries) {
    if (entry.filter && *entry.filter != "*" && tensor_name.find(*entry.filter) == std::string_view::npos) continue;
    if (entry.values.empty()) return std::nullopt;
    const double scaled = position * static_cast<double>(entry.values.size() - 1);
    const auto left = static_cast<std::size_t>(scaled);
    if (type == ParameterType::boolean) return entry.values[left];
    const std::size_t right = std::min(left + 1, entry.values.size() - 1);
    const double share = scaled - static_cast<double>(left);
    const double value = (1 - share) * entry.values[left] + share * entry.values[right];
    return type == ParameterType::integer ? std::trunc(value) : value;
  }
  return std::nullopt;
}

double gradient_position(int index, int num_layers) noexcept {
  return num_layers > 1 ? static_cast<double>(index) / static_cast<double>(num_layers - 1) : 1;
}

std::vector<ModelRef> MergeConfig::referenced_models() const {
  std::vector<ModelRef> models;
  std::unordered_set<std::string> seen;
  const auto add = [&](const ModelRef& model) {
    if (seen.insert(identity(model)).second) models.push_back(model);
  };
  for (const Module& module : modules)
    for (const Slice& slice : module.slices)
      for (const Source& source : slice.sources) add(source.model);
  if (base_model) add(*base_model);
  for (const Module& module : modules)
    for (const Slice& slice : module.slices)
      if (slice.base_model) add(*slice.base_model);
  if (tokenizer) {
    if (tokenizer->source == ConfigVocabulary::model) add(tokenizer->model);
    for (const ConfigTokenRule& rule : tokenizer->tokens)
      if (rule.source == ConfigTokenSource::model || rule.source == ConfigTokenSource::model_token) add(rule.model);
  }
  return models;
}

const ModelRef& MergeConfig::donor() const { return base_model ? *base_model : modules.at(0).slices.at(0).sources.at(0).model; }

const ModelRef* MergeConfig::base_of(const Slice& slice) const noexcept {
  if (slice.base_model) return &*slice.base_model;
  return base_model ? &*base_model : nullptr;
}

bool MergeConfig::is_base(const Slice& slice, const Source& source) const noexcept {
  if (method->base == BaseRule::unused) return false;
  const ModelRef* base = base_of(slice);
  return base != nullptr && source.model == *base;
}

MergeConfig parse_merge_config(std::string_view text, const std::string& file, const MergeConfigOptions& options,
                               std::vector<std::string>& warnings) {
  const std::vector<yaml::Document> documents = yaml::parse(text, file);
  const auto is_full = [](const yaml::Document& d) { return !d.root.is_null(); };
  const auto first = std::find_if(documents.begin(), documents.end(), is_full);
  if (first == documents.end())
    throw Error(ErrorCode::invalid_argument, "the config is empty", {.file = file},
                "a config is a mapping with merge_method and models, slices or modules");
  if (const auto second = std::find_if(first + 1, documents.end(), is_full); second != documents.end())
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the file holds several documents; the second begins at {}", yaml::to_string(second->root.place)), {.file = file},
                "merge several documents with mergekit-multi's form, or split the file");
  return Reader(file, options, warnings).read(*first);
}

MergeConfig parse_merge_config(const yaml::Document& document, const std::string& file, const MergeConfigOptions& options,
                               std::vector<std::string>& warnings) {
  return Reader(file, options, warnings).read(document);
}

std::vector<MergeConfig> parse_merge_configs(std::string_view text, const std::string& file, const MergeConfigOptions& options,
                                             std::vector<std::string>& warnings) {
  std::vector<MergeConfig> configs;
  for (const yaml::Document& document : yaml::parse(text, file))
    if (!document.root.is_null()) configs.push_back(Reader(file, options, warnings).read(document));
  if (configs.empty())
    throw Error(ErrorCode::invalid_argument, "the config is empty", {.file = file}, "write at least one document with merge_method and models");

  std::map<std::string, std::size_t, std::less<>> by_name;
  bool has_unnamed = false;
  for (std::size_t i = 0; i < configs.size(); ++i) {
    const std::string& name = configs[i].name;
    if (name.empty()) {
      if (has_unnamed)
        throw Error(ErrorCode::invalid_argument, "two documents have no name", {.file = file, .key = "name"}, "give all but the last one a 'name:'");
      has_unnamed = true;
    } else if (!by_name.emplace(name, i).second) {
      throw Error(ErrorCode::invalid_argument, fmt::format("two documents have the name {}", in_quotes(name)), {.file = file, .key = "name"},
                  "rename one");
    }
  }

  // Depth first, in file order, so that what does not depend on anything else stays in the order written.
  enum class Visit : std::uint8_t { not_yet, under_way, done };
  std::vector<Visit> visits(configs.size(), Visit::not_yet);
  std::vector<std::size_t> order;
  std::vector<std::string> path;
  const std::function<void(std::size_t)> visit = [&](std::size_t i) {
    if (visits[i] == Visit::done) return;
    path.push_back(configs[i].name);
    if (visits[i] == Visit::under_way) {
      path.erase(path.begin(), std::find(path.begin(), path.end(), configs[i].name));
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("the results need each other: {}", printable(fmt::format("{}", fmt::join(path, " needs ")))),
                  {.file = file, .key = "name"}, "break the cycle");
    }
    visits[i] = Visit::under_way;
    for (const ModelRef& model : configs[i].referenced_models())
      if (const auto found = by_name.find(model.model.path); found != by_name.end() && !model.model.revision) visit(found->second);
    visits[i] = Visit::done;
    order.push_back(i);
    path.pop_back();
  };
  for (std::size_t i = 0; i < configs.size(); ++i) visit(i);

  std::vector<MergeConfig> sorted;
  for (const std::size_t i : order) sorted.push_back(std::move(configs[i]));
  return sorted;
}

// ---- ParameterResolver ----

std::optional<double> ParameterResolver::find(const Parameter& parameter, const Settings* first, std::string_view tensor_name,
                                              double position) const {
  // What changes nothing is not looked up, so that odd values in old configs do no harm.
  if (parameter.ignored) return parameter.default_value;
  for (const Settings* level : {first, &slice_.parameters, &module_.parameters, &config_.parameters}) {
    if (level == nullptr) continue;
    for (const Setting& setting : *level)
      if (setting.name == parameter.name)
        if (const auto value = evaluate(setting, tensor_name, position, parameter.type)) return value;
  }
  return parameter.default_value;
}

merge::Values ParameterResolver::global_values(std::string_view output_name, double position) const {
  merge::Values values;
  for (const Parameter& parameter : config_.method->parameters) {
    if (parameter.scope != ParameterScope::global) continue;
    if (const auto value = find(parameter, nullptr, output_name, position)) {
      values.set(parameter.name, *value);
    } else if (!parameter.optional_value) {
      throw Error(ErrorCode::invalid_argument, fmt::format("missing required parameter {} for tensor {}", parameter.name, printable(output_name)),
                  {.file = config_.file, .tensor = std::string(output_name), .key = "parameters." + parameter.name},
                  "give it under 'parameters:'; where it has filters, end the list with an entry without one");
    }
  }
  return values;
}

merge::Values ParameterResolver::source_values(const Source& source, std::string_view input_name, double position) const {
  merge::Values values;
  const bool exempt = config_.is_base(slice_, source);
  for (const Parameter& parameter : config_.method->parameters) {
    if (parameter.scope != ParameterScope::per_model) continue;
    if (const auto value = find(parameter, &source.parameters, input_name, position)) {
      values.set(parameter.name, *value);
    } else if (!parameter.optional_value && !exempt) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("missing required parameter {} for model {}, tensor {}", parameter.name, printable(source.model.written),
                              printable(input_name)),
                  {.file = config_.file, .tensor = std::string(input_name), .key = source.key + ".parameters." + parameter.name},
                  "give it under the model's 'parameters:' or at the top level; where it has filters, end the list with an entry without one");
    }
  }
  return values;
}

}  // namespace weft::engine
