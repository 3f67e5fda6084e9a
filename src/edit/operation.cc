#include "edit/operation.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <functional>
#include <limits>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/text.h"
#include "checkpoint/npy.h"
#include "edit/pattern.h"
#include "edit/space_operation.h"
#include "model/architecture.h"
#include "model/config_json.h"
#include "weft/error.h"

namespace weft::edit {
namespace {

using model::Architecture;
using model::Role;

[[noreturn]] void refuse(const std::string& where, std::string message, std::string advice, std::string tensor = {}) {
  throw Error(ErrorCode::invalid_argument, std::move(message), {.tensor = std::move(tensor), .key = where}, std::move(advice));
}

std::string in_quotes(std::string_view name) { return "'" + printable(name) + "'"; }

Tensor* find(Model& model, std::string_view name) {
  const auto at = std::find_if(model.tensors.begin(), model.tensors.end(), [&](const Tensor& t) { return t.name == name; });
  return at == model.tensors.end() ? nullptr : &*at;
}

Tensor& find_or_refuse(Model& model, std::string_view name, const std::string& where) {
  if (Tensor* found = find(model, name)) return *found;
  std::vector<std::string> names;
  for (const Tensor& t : model.tensors) names.push_back(t.name);
  const auto nearest = nearest_name(name, names);
  throw Error(ErrorCode::not_found, "there is no tensor " + in_quotes(name), {.tensor = printable(name), .key = where},
              nearest ? "did you mean " + in_quotes(*nearest) + "?" : "'weft info' lists the names");
}

/// What was renamed before counts under its new name here, so say so.
[[noreturn]] void refuse_no_match(const Pattern& pattern, const std::string& where, const Model& model) {
  std::vector<std::string> names;
  for (const Tensor& t : model.tensors) names.push_back(t.name);
  const auto nearest = nearest_name(pattern.text(), names);
  refuse(where, in_quotes(pattern.text()) + " matches none of the " + std::to_string(names.size()) + " tensors",
         nearest         ? "the name most like it is " + in_quotes(*nearest)
         : names.empty() ? "there are none left"
                         : "such as " + in_quotes(names.front()));
}

void check_name(const std::string& name, const std::string& where) {
  if (name.empty()) refuse(where, "a tensor would have an empty name", "give the pattern a replacement that leaves something");
  const bool control = std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
  if (control || !is_valid_utf8(name))
    refuse(where, in_quotes(name) + " is no name for a tensor: it holds characters that are no text", "choose another name");
  if (name == "__metadata__")
    refuse(where, "a tensor cannot be called '__metadata__': safetensors files use that name themselves", "choose another name");
}

const Architecture* architecture_of(const Model& model) { return model.config ? model::find_architecture(*model.config) : nullptr; }

/// The tensors as a checkpoint that has only names, for what asks for one.
std::shared_ptr<const Checkpoint> names_of(const Model& model) {
  std::vector<NamedTensor> tensors;
  for (const Tensor& t : model.tensors) tensors.push_back({t.values, t.name});
  return select_tensors(tensors, *model.tensors.front().values.checkpoint);
}

// ---- Names ----

class Rename final : public Operation {
 public:
  Rename(const std::string& from, std::string to, const std::string& where) : pattern_(from, where), to_(std::move(to)), where_(where) {
    pattern_.check_replacement(to_);
  }
  Effect apply(Model& model, std::vector<std::string>&) const override {
    Effect effect;
    std::unordered_map<std::string, std::string> old_names;
    for (Tensor& tensor : model.tensors) {
      const std::string old = tensor.name;
      if (auto name = pattern_.replaced(old, to_)) {
        check_name(*name, where_);
        if (effect.num_tensors++ == 0) effect.example = old + " -> " + *name;
        tensor.name = *std::move(name);
      }
      const auto [other, added] = old_names.emplace(tensor.name, old);
      if (!added)
        refuse(where_, fmt::format("{} and {} would both be called {}", in_quotes(other->second), in_quotes(old), in_quotes(tensor.name)),
               "make the pattern narrower, or use a group to keep them apart", printable(tensor.name));
    }
    if (effect.num_tensors == 0) refuse_no_match(pattern_, where_, model);
    return effect;
  }

 private:
  Pattern pattern_;
  std::string to_;
  std::string where_;
};

class Choose final : public Operation {
 public:
  enum class What { drop, keep };
  Choose(What what, const std::string& pattern, const std::string& where) : what_(what), pattern_(pattern, where), where_(where) {}
  Effect apply(Model& model, std::vector<std::string>&) const override {
    Effect effect;
    std::vector<Tensor> kept;
    bool any = false;
    for (Tensor& tensor : model.tensors) {
      const bool matches = pattern_.matches(tensor.name);
      any = any || matches;
      if (matches == (what_ == What::keep)) {
        kept.push_back(std::move(tensor));
      } else if (effect.num_tensors++ == 0) {
        effect.example = tensor.name;
      }
    }
    if (!any) {
      // Nothing was moved for a drop that matches nothing, everything else is thrown away with the model.
      if (what_ == What::drop) model.tensors = std::move(kept);
      refuse_no_match(pattern_, where_, model);
    }
    if (kept.empty()) refuse(where_, in_quotes(pattern_.text()) + " leaves no tensor", "make the pattern narrower");
    model.tensors = std::move(kept);
    return effect;
  }

 private:
  What what_;
  Pattern pattern_;
  std::string where_;
};

// ---- Values ----

class Cast final : public Operation {
 public:
  Cast(const std::string& pattern, DType dtype, const std::string& where) : pattern_(pattern, where), dtype_(dtype), where_(where) {}
  Effect apply(Model& model, std::vector<std::string>& warnings) const override {
    Effect effect;
    bool any = false;
    std::uint64_t integers = 0;
    for (Tensor& tensor : model.tensors) {
      if (!pattern_.matches(tensor.name)) continue;
      any = true;
      if (info(tensor.values.tensor->dtype).kind != DTypeKind::floating) {
        ++integers;
        continue;
      }
      if (tensor.values.tensor->dtype == dtype_) continue;
      if (effect.num_tensors++ == 0)
        effect.example = fmt::format("{}: {} -> {}", tensor.name, to_string(tensor.values.tensor->dtype), to_string(dtype_));
      tensor.values = cast_tensor(tensor.values, dtype_);
      tensor.steps.emplace_back("cast");
    }
    if (!any) refuse_no_match(pattern_, where_, model);
    if (integers != 0)
      warnings.push_back(
          fmt::format("{} of the tensors that {} matches hold no floating-point numbers and keep their type", integers, in_quotes(pattern_.text())));
    // The config names one type; it follows when there is one.
    if (model.config && effect.num_tensors != 0) {
      const bool all = std::all_of(model.tensors.begin(), model.tensors.end(), [&](const Tensor& t) {
        return info(t.values.tensor->dtype).kind != DTypeKind::floating || t.values.tensor->dtype == dtype_;
      });
      if (all) model::set_dtype(*model.config, dtype_);
    }
    return effect;
  }

 private:
  Pattern pattern_;
  DType dtype_;
  std::string where_;
};

class Transpose final : public Operation {
 public:
  Transpose(const std::string& pattern, const std::string& where) : pattern_(pattern, where), where_(where) {}
  Effect apply(Model& model, std::vector<std::string>& warnings) const override {
    Effect effect;
    bool any = false;
    std::uint64_t others = 0;
    for (Tensor& tensor : model.tensors) {
      if (!pattern_.matches(tensor.name)) continue;
      any = true;
      const Shape& shape = tensor.values.tensor->shape;
      if (shape.size() < 2) {
        ++others;
        continue;
      }
      TensorRef turned = transpose_tensor(tensor.values);
      if (effect.num_tensors++ == 0) effect.example = fmt::format("{}: {} -> {}", tensor.name, to_string(shape), to_string(turned.tensor->shape));
      tensor.values = std::move(turned);
      tensor.steps.emplace_back("transpose");
    }
    if (!any) refuse_no_match(pattern_, where_, model);
    if (effect.num_tensors == 0) refuse(where_, in_quotes(pattern_.text()) + " matches no matrix", "vectors stay what they are when transposed");
    if (others != 0)
      warnings.push_back(fmt::format("{} of the tensors that {} matches are no matrices and stay as they are", others, in_quotes(pattern_.text())));
    return effect;
  }

 private:
  Pattern pattern_;
  std::string where_;
};

class Slice final : public Operation {
 public:
  Slice(std::string name, std::string ranges, std::string where) : name_(std::move(name)), ranges_(std::move(ranges)), where_(std::move(where)) {}
  Effect apply(Model& model, std::vector<std::string>&) const override {
    Tensor& tensor = find_or_refuse(model, name_, where_);
    const Shape before = tensor.values.tensor->shape;
    tensor.values = slice_tensor(tensor.values, parse_axis_ranges(ranges_, before));
    tensor.steps.emplace_back("slice");
    return {.num_tensors = 1, .example = fmt::format("{}: {} -> {}", name_, to_string(before), to_string(tensor.values.tensor->shape))};
  }

 private:
  std::string name_, ranges_, where_;
};

class Set final : public Operation {
 public:
  Set(std::string name, std::string file, std::string where) : name_(std::move(name)), file_(std::move(file)), where_(std::move(where)) {
    check_name(name_, where_);
  }
  Effect apply(Model& model, std::vector<std::string>& warnings) const override {
    const std::shared_ptr<const Checkpoint> array = open_npy(file_, name_);
    TensorRef values{array, &array->tensors().front()};
    Tensor* old = find(model, name_);
    Effect effect{.num_tensors = 1};
    if (old == nullptr) {
      effect.example = fmt::format("{} {} {} added", name_, to_string(values.tensor->dtype), to_string(values.tensor->shape));
      model.tensors.push_back({name_, values, values, {file_}, {"set"}});
      return effect;
    }
    const TensorInfo& before = *old->values.tensor;
    // NumPy has no bfloat16, so that what was dumped comes back as float32.
    if (values.tensor->dtype != before.dtype && is_decodable_float(before.dtype) && is_decodable_float(values.tensor->dtype))
      values = cast_tensor(values, before.dtype);
    if (values.tensor->dtype != before.dtype)
      warnings.push_back(fmt::format("{} was {} and becomes {}", in_quotes(name_), to_string(before.dtype), to_string(values.tensor->dtype)));
    if (values.tensor->shape != before.shape)
      warnings.push_back(fmt::format("{} was {} and becomes {}", in_quotes(name_), to_string(before.shape), to_string(values.tensor->shape)));
    effect.example = fmt::format("{} {} {} from {}", name_, to_string(values.tensor->dtype), to_string(values.tensor->shape), file_);
    old->source = values;
    old->values = std::move(values);
    old->inputs = {file_};
    old->steps = {"set"};
    return effect;
  }

 private:
  std::string name_, file_, where_;
};

// ---- Layers ----

constexpr int kMostLayers = 100'000;

class Layers final : public Operation {
 public:
  Layers(std::string_view text, std::string where) : where_(std::move(where)) {
    while (true) {
      const std::size_t comma = std::min(text.find(','), text.size());
      add_range(text.substr(0, comma));
      if (comma == text.size()) break;
      text.remove_prefix(comma + 1);
    }
  }

  Effect apply(Model& model, std::vector<std::string>& warnings) const override {
    const std::shared_ptr<const Checkpoint> names = names_of(model);
    const Architecture* known = architecture_of(model);
    Architecture inferred;
    if (known == nullptr) {
      const Checkpoint* one = names.get();
      inferred = model::infer_architecture(std::span(&one, 1));
    }
    const std::set<std::string> prefixes = layer_prefixes(known != nullptr ? *known : inferred);

    std::vector<Tensor> before, after;
    std::vector<std::vector<Tensor>> layers;
    for (Tensor& tensor : model.tensors) {
      const std::optional<int> layer = layer_of(tensor.name, prefixes).number();
      if (!layer) {
        (layers.empty() ? before : after).push_back(std::move(tensor));
        continue;
      }
      if (static_cast<std::size_t>(*layer) >= layers.size()) layers.resize(static_cast<std::size_t>(*layer) + 1);
      layers[static_cast<std::size_t>(*layer)].push_back(std::move(tensor));
    }
    if (layers.empty()) refuse(where_, "the model has no numbered layers", "'weft info' shows the names of its tensors");
    Effect effect;
    std::vector<Tensor> stacked = std::move(before);
    for (std::size_t i = 0; i < chosen_.size(); ++i) {
      const auto from = static_cast<std::size_t>(chosen_[i]);
      if (from >= layers.size() || layers[from].empty())
        refuse(where_, fmt::format("layer {} is asked for, but the model has {} layers", chosen_[i], layers.size()),
               fmt::format("layers are counted from 0; 0:{} is all of them", layers.size()));
      for (const Tensor& tensor : layers[from]) {
        Tensor copy = tensor;
        copy.name = renumbered(tensor.name, prefixes, static_cast<int>(i));
        if (copy.name != tensor.name) {
          if (effect.num_tensors++ == 0) effect.example = copy.name + " from " + tensor.name;
        }
        stacked.push_back(std::move(copy));
      }
    }
    stacked.insert(stacked.end(), std::make_move_iterator(after.begin()), std::make_move_iterator(after.end()));
    model.tensors = std::move(stacked);
    if (model.config) follow(*model.config, known, static_cast<std::int64_t>(layers.size()), warnings);
    if (effect.example.empty()) effect.example = fmt::format("{} of {} layers, in place", chosen_.size(), layers.size());
    return effect;
  }

 private:
  /// Where the number stands in a name, and which it is.
  struct Place {
    std::size_t begin = 0;
    std::size_t end = 0;
    int layer = -1;
    [[nodiscard]] std::optional<int> number() const { return layer < 0 ? std::nullopt : std::optional(layer); }
  };

  void add_range(std::string_view text) {
    const auto number = [&](std::string_view digits) {
      int value = 0;
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
      if (error != std::errc() || end != digits.data() + digits.size() || value < 0 || value > kMostLayers)
        refuse(where_, in_quotes(text) + " is no range of layers",
               "write 0:16,8:24: from the first layer up to, and without, the second; a single number is one layer");
      return value;
    };
    const std::size_t colon = text.find(':');
    const int begin = number(text.substr(0, colon));
    const int end = colon == std::string_view::npos ? begin + 1 : number(text.substr(colon + 1));
    if (end <= begin) refuse(where_, in_quotes(text) + " holds no layer", "the second number is the layer behind the last");
    if (chosen_.size() + static_cast<std::size_t>(end - begin) > kMostLayers)
      refuse(where_, "more layers than any model has are asked for", "check the ranges");
    for (int layer = begin; layer < end; ++layer) chosen_.push_back(layer);
  }

  static std::set<std::string> layer_prefixes(const Architecture& architecture) {
    std::set<std::string> prefixes;
    const auto add = [&](const std::string& pattern) {
      if (const std::size_t at = pattern.find("${layer_index}"); at != std::string::npos) prefixes.insert(pattern.substr(0, at));
    };
    for (const model::TensorTemplate& t : architecture.tensors) {
      if (t.placement != model::Placement::layer) continue;
      add(t.name);
      for (const std::string& alias : t.aliases) add(alias);
    }
    return prefixes;
  }

  /// By the prefix alone, so that tensors which the architecture does not list (buffers, biases) move with their layer.
  static Place layer_of(const std::string& name, const std::set<std::string>& prefixes) {
    for (const std::string& prefix : prefixes) {
      if (!name.starts_with(prefix)) continue;
      Place place;
      place.begin = prefix.size();
      const auto [end, error] = std::from_chars(name.data() + place.begin, name.data() + name.size(), place.layer);
      place.end = static_cast<std::size_t>(end - name.data());
      const bool whole = place.end == name.size() || name[place.end] == '.' || name[place.end] == '_' || name[place.end] == '/';
      if (error == std::errc() && whole && place.layer >= 0 && place.layer < kMostLayers) return place;
    }
    return {};
  }

  static std::string renumbered(const std::string& name, const std::set<std::string>& prefixes, int layer) {
    const Place place = layer_of(name, prefixes);
    return name.substr(0, place.begin) + std::to_string(layer) + name.substr(place.end);
  }

  void follow(Json& config, const Architecture* known, std::int64_t old_count, std::vector<std::string>& warnings) const {
    if (known != nullptr) return model::set_layers(config, *known, chosen_, warnings);
    Architecture made;
    for (const char* key : {"num_hidden_layers", "n_layer", "num_layers", "n_layers"}) {
      const Json* value = model::text_config(config).find(key);
      if (value == nullptr || value->integer() != old_count) continue;
      made.layer_count_key = key;
      return model::set_layers(config, made, chosen_, warnings);
    }
    warnings.push_back(fmt::format("config.json has no key that says {} layers, so it was left as it is", old_count));
  }

  std::vector<int> chosen_;
  std::string where_;
};

// ---- Tied embeddings ----

Tensor* with_role(Model& model, const Architecture* architecture, Role role) {
  for (Tensor& tensor : model.tensors) {
    const bool matrix = tensor.values.tensor->shape.size() == 2;
    if (matrix && model::role_of(architecture, tensor.name) == role) return &tensor;
  }
  return nullptr;
}

/// Whether two matrices of one shape hold the same values in some rows spread over them.
bool look_alike(const Tensor& a, const Tensor& b) {
  const TensorInfo& x = *a.values.tensor;
  const TensorInfo& y = *b.values.tensor;
  const auto rows = static_cast<std::uint64_t>(x.shape[0]);
  if (x.dtype != y.dtype || rows == 0 || x.size_bytes % rows != 0) return x.dtype == y.dtype;
  const std::uint64_t row_bytes = x.size_bytes / rows;
  constexpr std::uint64_t kRows = 64;
  std::vector<std::byte> left(static_cast<std::size_t>(row_bytes)), right(left.size());
  for (std::uint64_t i = 0; i < std::min(kRows, rows); ++i) {
    const std::uint64_t row = rows <= kRows ? i : i * (rows - 1) / (kRows - 1);
    a.values.checkpoint->read_bytes(x, row * row_bytes, left);
    b.values.checkpoint->read_bytes(y, row * row_bytes, right);
    if (std::memcmp(left.data(), right.data(), left.size()) != 0) return false;
  }
  return true;
}

class Tie final : public Operation {
 public:
  Tie(bool tie, std::string where) : tie_(tie), where_(std::move(where)) {}
  Effect apply(Model& model, std::vector<std::string>& warnings) const override {
    const Architecture* architecture = architecture_of(model);
    Tensor* embed = with_role(model, architecture, Role::embed);
    Tensor* head = with_role(model, architecture, Role::head);
    if (embed == nullptr) refuse(where_, "the model has no embedding of tokens", "'weft info' shows the roles of its tensors");
    Effect effect{.num_tensors = 1};
    if (tie_) {
      if (head == nullptr) refuse(where_, "the model has no head of its own, so there is nothing to tie", "leave the operation out");
      if (head->values.tensor->shape != embed->values.tensor->shape)
        refuse(where_,
               fmt::format("the head {} {} and the embedding {} {} differ in shape", in_quotes(head->name), to_string(head->values.tensor->shape),
                           in_quotes(embed->name), to_string(embed->values.tensor->shape)),
               "only matrices of one shape can be one", head->name);
      if (!look_alike(*embed, *head))
        warnings.push_back(
            fmt::format("{} differs from {}, so the tied model computes something else", in_quotes(head->name), in_quotes(embed->name)));
      effect.example = head->name + " is " + embed->name;
      model.tensors.erase(model.tensors.begin() + (head - model.tensors.data()));
    } else {
      if (head != nullptr) refuse(where_, "the model has a head of its own, " + in_quotes(head->name), "leave the operation out");
      const std::string name = head_name(model, architecture);
      if (find(model, name) != nullptr) refuse(where_, in_quotes(name) + " is there already", "rename it first", name);
      Tensor copy = *embed;
      copy.name = name;
      effect.example = name + " from " + embed->name;
      model.tensors.push_back(std::move(copy));
    }
    if (model.config) model::set_tie_word_embeddings(*model.config, tie_);
    return effect;
  }

 private:
  static std::string head_name(const Model& model, const Architecture* architecture) {
    if (architecture == nullptr) return "lm_head.weight";
    const Architecture named = model::with_names_of(*architecture, *names_of(model));
    for (const model::TensorTemplate& t : named.tensors)
      if (t.role == Role::head && !t.tied_to.empty()) return t.name;
    return "lm_head.weight";
  }

  bool tie_;
  std::string where_;
};

/// The two sides of the first (or last) "=".
std::pair<std::string, std::string> sides(const std::string& argument, const std::string& where, std::string_view form, bool last) {
  const std::size_t at = last ? argument.rfind('=') : argument.find('=');
  if (at == std::string::npos || at == 0)
    refuse(where, in_quotes(argument) + " is not of the form " + std::string(form), fmt::format("write {} {}", where, form));
  return {argument.substr(0, at), argument.substr(at + 1)};
}

std::int64_t parse_index(std::string_view text, std::string_view whole) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  constexpr std::int64_t kMost = std::int64_t{1} << 53;
  if (error != std::errc() || end != text.data() + text.size() || value > kMost || value < -kMost)
    refuse("slice", in_quotes(whole) + " is no range",
           "write BEGIN:END or BEGIN:END:STEP for each axis, with commas between; negative numbers count from the end");
  return value;
}

}  // namespace

std::vector<AxisRange> parse_axis_ranges(std::string_view text, const Shape& shape) {
  std::vector<AxisRange> ranges;
  std::string spaceless;
  for (const char c : text)
    if (c != ' ') spaceless += c;
  std::string_view rest = spaceless;
  while (true) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view one = rest.substr(0, comma);
    if (ranges.size() == shape.size())
      refuse("slice", fmt::format("{} has more ranges than a tensor {} has axes", in_quotes(text), to_string(shape)), "give one range an axis");
    const std::int64_t size = shape[ranges.size()];
    std::array<std::string_view, 3> parts;
    std::size_t count = 0;
    for (std::string_view left = one;;) {
      const std::size_t colon = std::min(left.find(':'), left.size());
      if (count == parts.size()) refuse("slice", in_quotes(one) + " is no range", "write BEGIN:END or BEGIN:END:STEP");
      parts[count++] = left.substr(0, colon);
      if (colon == left.size()) break;
      left.remove_prefix(colon + 1);
    }
    AxisRange range;
    if (count == 1) {
      range.begin = parse_index(parts[0], one);
      if (range.begin < 0) range.begin += size;
      range.end = range.begin + 1;
      if (range.begin < 0 || range.begin >= size)
        refuse("slice", fmt::format("{} leaves an axis of {}", in_quotes(one), size), "indices count from 0");
    } else {
      // As Python's slices: what lies outside is cut off.
      range.step = parts[2].empty() ? 1 : parse_index(parts[2], one);
      if (range.step == 0) refuse("slice", in_quotes(one) + " has a step of 0", "a step is at least 1, or negative");
      const std::int64_t low = range.step > 0 ? 0 : -1, high = range.step > 0 ? size : size - 1;
      const auto bound = [&](std::string_view part, std::int64_t absent) {
        if (part.empty()) return absent;
        std::int64_t value = parse_index(part, one);
        if (value < 0) value += size;
        return std::clamp(value, low, high);
      };
      range.begin = bound(parts[0], range.step > 0 ? 0 : size - 1);
      range.end = bound(parts[1], range.step > 0 ? size : -1);
    }
    if (range.size() == 0)
      refuse("slice", fmt::format("{} takes nothing of an axis of {}", in_quotes(one), size),
             "begin and end are counted from 0; end is the index behind the last");
    ranges.push_back(range);
    if (comma == rest.size()) break;
    rest.remove_prefix(comma + 1);
  }
  while (ranges.size() < shape.size()) ranges.push_back({0, shape[ranges.size()], 1});
  return ranges;
}

const std::vector<OperationHelp>& operations() {
  static const std::vector<OperationHelp> kOperations = [] {
    std::vector<OperationHelp> all = {
        {"rename", "FROM=TO", "replace the first match of the pattern FROM in every name by TO, where \\1 stands for its first group"},
        {"drop", "PATTERN", "leave out tensors whose name the pattern is found in"},
        {"keep", "PATTERN", "leave out all others"},
        {"cast", "PATTERN=TYPE", "store floating-point tensors as float32, bfloat16, float16, ..."},
        {"transpose", "PATTERN", "exchange the axes of matrices"},
        {"slice", "NAME=RANGES", "take part of a tensor: BEGIN:END or BEGIN:END:STEP for each axis, as in 0:100,:"},
        {"layers", "RANGES", "stack layers: 0:16,8:24 is layers 0 to 15 and then 8 to 23; config.json follows"},
        {"tie", "", "drop the head and use the embedding in its place"},
        {"untie", "", "give the model a head of its own, a copy of the embedding"},
        {"set", "NAME=FILE.npy", "replace or add a tensor"},
    };
    all.insert(all.end(), space_operations().begin(), space_operations().end());
    return all;
  }();
  return kOperations;
}

std::unique_ptr<Operation> parse_operation(const Request& request) {
  const std::string& name = request.operation;
  const std::string& argument = request.argument;
  if (name == "rename") {
    auto [from, to] = sides(argument, name, "FROM=TO", false);
    return std::make_unique<Rename>(from, to, name);
  }
  if (name == "drop") return std::make_unique<Choose>(Choose::What::drop, argument, name);
  if (name == "keep") return std::make_unique<Choose>(Choose::What::keep, argument, name);
  if (name == "cast") {
    const auto [pattern, type] = sides(argument, name, "PATTERN=TYPE", true);
    const std::optional<DType> dtype = dtype_from_any(type);
    if (!dtype || !is_decodable_float(*dtype))
      refuse(name, in_quotes(type) + " is no type that weights can be cast to", "such as float32, bfloat16 or float16");
    return std::make_unique<Cast>(pattern, *dtype, name);
  }
  if (name == "transpose") return std::make_unique<Transpose>(argument, name);
  if (name == "slice") {
    auto [tensor, ranges] = sides(argument, name, "NAME=RANGES", true);
    return std::make_unique<Slice>(std::move(tensor), std::move(ranges), name);
  }
  if (name == "layers") return std::make_unique<Layers>(argument, name);
  if (name == "tie" || name == "untie") return std::make_unique<Tie>(name == "tie", name);
  if (name == "set") {
    auto [tensor, file] = sides(argument, name, "NAME=FILE.npy", false);
    return std::make_unique<Set>(std::move(tensor), std::move(file), name);
  }
  if (std::unique_ptr<Operation> of_space = parse_space_operation(request)) return of_space;
  std::vector<std::string> names;
  for (const OperationHelp& known : operations()) names.emplace_back(known.name);
  const auto nearest = nearest_name(name, names);
  refuse(name, "there is no operation " + in_quotes(name), nearest ? "did you mean " + *nearest + "?" : "'weft edit --help' lists them");
}

}  // namespace weft::edit
