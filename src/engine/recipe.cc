#include "engine/recipe.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "codec/block_codec.h"
#include "engine/quantize_keys.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using yaml::Kind;
using yaml::Node;
using yaml::Place;

constexpr std::uint64_t kLargestConfigBytes = 8u << 20;

std::string in_quotes(std::string_view text) { return fmt::format("'{}'", printable(text, 80)); }

class Reader {
 public:
  Reader(const std::string& file, const MergeConfigOptions& options, std::vector<std::string>& warnings)
      : file_(file), options_(options), warnings_(warnings) {}

  Recipe read(std::string_view text) {
    Recipe recipe;
    recipe.text = text;
    const std::vector<yaml::Document> documents = yaml::parse(text, file_);
    std::size_t num_documents = 0;
    bool has_steps = false;
    for (const yaml::Document& document : documents) {
      if (document.root.is_null()) continue;
      ++num_documents;
      has_steps = has_steps || document.root.find("steps") != nullptr;
    }
    if (num_documents == 0) fail("", {}, "the recipe is empty", "a recipe is a mapping with the key steps, or a mergekit config");
    if (!has_steps) {
      // mergekit's own: one config, or several that use each other's results.
      for (MergeConfig& config : parse_merge_configs(text, file_, options_, warnings_)) {
        Step step;
        step.named = !config.name.empty();
        step.name = step.named ? config.name : fmt::format("step {}", recipe.steps.size() + 1);
        step.what = std::move(config);
        recipe.steps.push_back(std::move(step));
      }
      return recipe;
    }
    if (num_documents > 1) fail("steps", {}, "a recipe with steps is one document, and the file holds several", "put the merges among the steps");
    for (const yaml::Document& document : documents) {
      if (!document.root.is_null()) read_steps(document, recipe);
    }
    return recipe;
  }

 private:
  [[noreturn]] void fail(const std::string& key, Place place, std::string what, std::string advice) const {
    if (place.line != 0) what += fmt::format(" ({})", yaml::to_string(place));
    throw Error(ErrorCode::invalid_argument, std::move(what), {.file = file_, .key = key}, std::move(advice));
  }

  void check_keys(const Node& node, const std::string& key, const std::vector<std::string>& known) const {
    for (const yaml::Member& member : node.members) {
      const std::string& name = member.key.text;
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      const auto nearest = nearest_name(name, known);
      fail(key.empty() ? name : key + "." + name, member.key.place, "there is no key " + in_quotes(name) + " here",
           nearest ? "did you mean " + *nearest + "?" : fmt::format("the keys are {}", list_of(known)));
    }
  }

  static std::string list_of(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
  }

  std::string scalar(const Node& node, const std::string& key, const char* what) const {
    if (!node.is_scalar() || node.is_null() || node.text.empty())
      fail(key, node.place, fmt::format("{} is {}, where {} belongs", key, yaml::describe(node.kind), what), "");
    return node.text;
  }

  void read_steps(const yaml::Document& document, Recipe& recipe) {
    const Node& root = document.root;
    check_keys(root, "", {"steps", "output", "seed"});
    if (const Node* output = root.find("output"); output != nullptr && !output->is_null()) recipe.output = scalar(*output, "output", "a path");
    if (const Node* seed = root.find("seed"); seed != nullptr && !seed->is_null()) {
      if (seed->kind != Kind::integer || !seed->integer || *seed->integer < 0)
        fail("seed", seed->place, "seed is no whole number from 0 up", "such as 7");
      recipe.seed = static_cast<std::uint64_t>(*seed->integer);
    }
    const Node& steps = *root.find("steps");
    if (steps.kind != Kind::sequence || steps.items.empty())
      fail("steps", steps.place,
           fmt::format("steps is {}, where a list of steps belongs",
                       steps.items.empty() && steps.kind == Kind::sequence ? "empty" : yaml::describe(steps.kind)),
           "write '- merge: ...', '- edit: ...', '- fold: ...', '- convert: ...' or '- quantize: ...' below it");
    for (std::size_t i = 0; i < steps.items.size(); ++i)
      recipe.steps.push_back(read_step(steps.items[i], fmt::format("steps[{}]", i), i, document.text));
    for (std::size_t i = 0; i + 1 < recipe.steps.size(); ++i)
      if (std::holds_alternative<QuantizingStep>(recipe.steps[i].what))
        fail(fmt::format("steps[{}].quantize", i), recipe.steps[i].place, "weights are quantized when they are written, so this is for the last step",
             "move it to the end");
    for (std::size_t i = 0; i + 1 < recipe.steps.size(); ++i)
      if (const auto* convert = std::get_if<ConvertStep>(&recipe.steps[i].what); convert != nullptr && !convert->block_type.empty())
        fail(fmt::format("steps[{}].convert", i), recipe.steps[i].place,
             fmt::format("weights become {} only when they are written, so this is for the last step", convert->block_type), "move it to the end");
  }

  Step read_step(const Node& node, const std::string& key, std::size_t i, const std::string& text) {
    if (node.kind != Kind::mapping)
      fail(key, node.place, fmt::format("a step is {}, where a mapping belongs", yaml::describe(node.kind)), "such as 'edit: [...]'");
    check_keys(node, key, {"name", "merge", "edit", "fold", "convert", "quantize"});
    Step step;
    step.place = node.place;
    if (const Node* name = node.find("name"); name != nullptr && !name->is_null()) {
      step.name = scalar(*name, key + ".name", "a name");
      step.named = true;
      if (step.name.find('+') != std::string::npos || step.name.find('@') != std::string::npos)
        fail(key + ".name", name->place, "the name " + in_quotes(step.name) + " holds + or @, which have a meaning in models", "choose another name");
      if (!names_.insert(step.name).second) fail(key + ".name", name->place, "two steps are called " + in_quotes(step.name), "rename one");
    } else {
      step.name = fmt::format("step {}", i + 1);
    }
    std::vector<const yaml::Member*> verbs;
    for (const yaml::Member& member : node.members)
      if (member.key.text != "name") verbs.push_back(&member);
    if (verbs.size() != 1)
      fail(key, node.place, fmt::format("a step does one thing, and this one says {}", verbs.size()), "one of merge, edit, fold, convert, quantize");
    const std::string& verb = verbs.front()->key.text;
    const Node& value = verbs.front()->value;
    const std::string at = key + "." + verb;
    if (verb == "merge")
      step.what = read_merge(value, at, text);
    else if (verb == "edit")
      step.what = read_edit(value, at);
    else if (verb == "fold")
      step.what = read_fold(value, at);
    else if (verb == "quantize")
      step.what = read_quantize(value, at);
    else
      step.what = read_convert(value, at);
    previous_ = step.name;
    made_.insert(step.name);
    return step;
  }

  MergeConfig read_merge(const Node& node, const std::string& key, const std::string& text) {
    if (node.is_scalar()) {
      const std::string path = scalar(node, key, "a config or the path of one");
      return parse_merge_config(read_text_file(path, kLargestConfigBytes), path, options_, warnings_);
    }
    if (node.kind != Kind::mapping)
      fail(key, node.place, fmt::format("{} is {}, where a mergekit config or the path of one belongs", key, yaml::describe(node.kind)), "");
    if (node.find("name") != nullptr) fail(key + ".name", node.place, "the name of a step stands beside its verb", "move 'name:' one level up");
    yaml::Document document;
    document.root = node;
    document.text = text;
    return parse_merge_config(document, file_, options_, warnings_);
  }

  /// The model of a step: what it says, else the result of the step before.
  std::string model_of(const Node* node, const std::string& key, Place place) const {
    if (node != nullptr && !node->is_null()) return scalar(*node, key + ".model", "a model or a step's name");
    if (previous_.empty()) fail(key, place, "the first step has no model", "give it 'model: PATH'");
    return previous_;
  }

  EditStep read_edit(const Node& node, const std::string& key) {
    EditStep step;
    const Node* operations = &node;
    if (node.kind == Kind::mapping) {
      check_keys(node, key, {"model", "operations"});
      step.model = model_of(node.find("model"), key, node.place);
      operations = node.find("operations");
    } else {
      step.model = model_of(nullptr, key, node.place);
    }
    if (operations == nullptr || operations->kind != Kind::sequence || operations->items.empty())
      fail(key + ".operations", node.place, "an edit needs a list of operations", "such as [{drop: lm_head}, {cast: '.=bfloat16'}, untie]");
    for (const Node& item : operations->items) read_operation(item, key, step);
    for (const edit::Request& request : step.requests) {
      try {
        static_cast<void>(edit::parse_operation(request));
      } catch (const Error& error) {
        throw Error(error.code(), error.message(), {.file = file_, .key = key + "." + error.place().key}, error.advice());
      }
    }
    return step;
  }

  void read_operation(const Node& item, const std::string& key, EditStep& step) const {
    if (item.is_scalar()) return step.requests.push_back({scalar(item, key, "an operation"), ""});
    if (item.kind != Kind::mapping)
      fail(key, item.place, fmt::format("an operation is {}, where 'NAME: ARGUMENT' belongs", yaml::describe(item.kind)), "such as 'drop: lm_head'");
    for (const yaml::Member& member : item.members) {
      const std::string& name = member.key.text;
      const Node& value = member.value;
      if (value.kind == Kind::boolean && (name == "tie" || name == "untie" || name == "fold-norms" || name == "centre")) {
        if (value.flag) step.requests.push_back({name, ""});
      } else if (value.kind == Kind::sequence) {
        for (const Node& one : value.items) step.requests.push_back({name, scalar(one, key + "." + name, "text")});
      } else {
        step.requests.push_back({name, value.is_null() ? "" : scalar(value, key + "." + name, "text")});
      }
    }
  }

  FoldStep read_fold(const Node& node, const std::string& key) const {
    FoldStep step;
    if (node.is_scalar()) {
      step.adapter = scalar(node, key, "an adapter");
      step.model = model_of(nullptr, key, node.place);
      return step;
    }
    if (node.kind != Kind::mapping)
      fail(key, node.place, fmt::format("{} is {}, where a mapping belongs", key, yaml::describe(node.kind)),
           "such as {adapter: ./lora, scale: 0.5}");
    check_keys(node, key, {"model", "adapter", "scale"});
    step.model = model_of(node.find("model"), key, node.place);
    const Node* adapter = node.find("adapter");
    if (adapter == nullptr) fail(key + ".adapter", node.place, "a fold needs an adapter", "give it 'adapter: PATH'");
    step.adapter = scalar(*adapter, key + ".adapter", "an adapter");
    if (const Node* scale = node.find("scale"); scale != nullptr && !scale->is_null()) {
      if (scale->kind != Kind::number && scale->kind != Kind::integer) fail(key + ".scale", scale->place, "scale is no number", "such as 0.5");
      step.scale = scale->number;
    }
    return step;
  }

  ConvertStep read_convert(const Node& node, const std::string& key) const {
    ConvertStep step;
    if (node.is_scalar() && !node.is_null()) {
      step.model = model_of(nullptr, key, node.place);
      read_type(node, key, step);
      return step;
    }
    if (node.kind != Kind::mapping && !node.is_null())
      fail(key, node.place, fmt::format("{} is {}, where a type or a mapping belongs", key, yaml::describe(node.kind)), "such as {dtype: bfloat16}");
    check_keys(node, key, {"model", "dtype"});
    step.model = model_of(node.find("model"), key, node.place);
    if (const Node* type = node.find("dtype"); type != nullptr && !type->is_null()) read_type(*type, key + ".dtype", step);
    return step;
  }

  /// A format, or the options of quantizing by the names that they have on the command line.
  QuantizingStep read_quantize(const Node& node, const std::string& key) const {
    QuantizingStep step;
    const auto set = [&](const std::string& name, const Node& value) {
      try {
        set_quantize_key(step.options, name, scalar(value, key + "." + name, "a value"));
      } catch (const Error& error) {
        fail(key + "." + name, value.place, error.message(), error.advice());
      }
    };
    if (node.is_scalar() && !node.is_null()) {
      step.model = model_of(nullptr, key, node.place);
      set("format", node);
      return step;
    }
    if (node.kind != Kind::mapping)
      fail(key, node.place, fmt::format("{} is {}, where a format or a mapping belongs", key, yaml::describe(node.kind)),
           "such as {format: gptq, bits: 4}");
    step.model = model_of(node.find("model"), key, node.place);
    for (const yaml::Member& member : node.members) {
      const std::string& name = member.key.text;
      if (name == "model") continue;
      if (name == "rules" && member.value.is_scalar() && !member.value.is_null()) {
        step.options.rules_text = read_text_file(member.value.text, kLargestConfigBytes);
      } else if (name == "rules" && member.value.kind == Kind::mapping) {
        for (const yaml::Member& rule : member.value.members)
          step.options.rules.emplace_back(rule.key.text, scalar(rule.value, key + ".rules", "what becomes of layers"));
      } else if (member.value.kind == Kind::sequence) {
        for (const Node& one : member.value.items) set(name == "rules" ? "rule" : name, one);
      } else {
        set(name, member.value);
      }
    }
    if (step.options.format.empty()) fail(key + ".format", node.place, "a quantize step needs a format", "such as format: gguf:Q4_K_M");
    return step;
  }

  void read_type(const Node& node, const std::string& key, ConvertStep& step) const {
    const std::string text = scalar(node, key, "a type");
    const std::optional<DType> type = dtype_from_any(text);
    if (type && is_decodable_float(*type)) {
      step.dtype = *type;
      return;
    }
    const codec::BlockCodec* codec = codec::find_block_codec(text);
    if (codec == nullptr || codec->encode_row == nullptr)
      fail(key, node.place, in_quotes(text) + " is no type that weights can be cast to",
           "such as float32, bfloat16, float16 or, for a GGUF file, Q8_0");
    step.block_type = codec->name;
  }

  const std::string& file_;
  const MergeConfigOptions& options_;
  std::vector<std::string>& warnings_;
  std::string previous_;
  std::set<std::string> names_;
  std::set<std::string> made_;
};

}  // namespace

std::string_view Step::verb() const noexcept {
  constexpr std::string_view kVerbs[] = {"merge", "edit", "fold", "convert", "quantize"};
  return kVerbs[what.index()];
}

Recipe parse_recipe(std::string_view text, const std::string& file, const MergeConfigOptions& options, std::vector<std::string>& warnings) {
  return Reader(file, options, warnings).read(text);
}

}  // namespace weft::engine
