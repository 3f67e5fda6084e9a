#include "engine/merge_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "base/file.h"
#include "checkpoint/json.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using merge::BaseRule;
using merge::Method;
using merge::Parameter;
using merge::ParameterScope;
using merge::ParameterType;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Methods of our own, so that these tests say what they mean whatever the real table holds.
const std::vector<Method>& test_methods() {
  static const std::vector<Method> kMethods = [] {
    const Parameter weight{.name = "weight", .scope = ParameterScope::per_model};
    const Parameter density{.name = "density", .scope = ParameterScope::per_model, .default_value = 1, .min = 0, .max = 1};
    const Parameter normalize{.name = "normalize", .type = ParameterType::boolean, .default_value = 1};
    const Parameter t{.name = "t", .min = 0, .max = 1};
    const Parameter iterations{.name = "max_iter", .type = ParameterType::integer, .default_value = 10, .min = 1, .max = 1000};
    const Parameter int8_mask{.name = "int8_mask", .type = ParameterType::boolean, .ignored = true};
    const Parameter scale{.name = "scale", .scope = ParameterScope::per_model, .optional_value = true};
    std::vector<Method> methods;
    const auto add = [&methods](const char* name, std::vector<Parameter> parameters, BaseRule base, int min_models, int max_models) {
      Method& method = methods.emplace_back();
      method.name = name;
      method.parameters = std::move(parameters);
      method.base = base;
      method.min_models = min_models;
      method.max_models = max_models;
    };
    add("mean", {weight, normalize}, BaseRule::unused, 1, 1000);
    add("one", {scale}, BaseRule::unused, 1, 1);
    add("sphere", {t}, BaseRule::one_of_two, 2, 2);
    add("steps", {iterations}, BaseRule::optional, 2, 2);
    add("stock", {}, BaseRule::required, 2, 1000);
    add("vectors", {weight, density, normalize, int8_mask}, BaseRule::required, 1, 1000);
    return methods;
  }();
  return kMethods;
}

MergeConfig parse(const std::string& text, std::vector<std::string>* warnings = nullptr, bool strict = false) {
  std::vector<std::string> ignored;
  return parse_merge_config(text, "test.yml", {.strict = strict, .methods = test_methods()}, warnings != nullptr ? *warnings : ignored);
}

struct Refusal {
  std::string message;
  std::string key;
};
Refusal refusal(const std::string& text, bool strict = false) {
  try {
    (void)parse(text, nullptr, strict);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument) << e.what();
    EXPECT_EQ(e.place().file, "test.yml") << e.what();
    EXPECT_FALSE(e.advice().empty()) << e.what();
    EXPECT_EQ(e.exit_status(), 2);
    return {e.message(), e.place().key};
  }
  ADD_FAILURE() << "accepted:\n" << text;
  return {};
}

Setting setting(std::vector<SettingEntry> entries) {
  Setting s;
  s.name = "x";
  s.entries = std::move(entries);
  return s;
}

// ---- evaluating ----

TEST(MergeConfigSetting, the_gradient_of_the_contract_has_its_values_on_six_layers) {
  const Setting s = setting({{std::nullopt, {0, 0.5, 0.3, 0.7, 1}}});
  const std::vector<double> want = {0, 0.4, 0.38, 0.46, 0.76, 1};
  for (int layer = 0; layer < 6; ++layer)
    // One rounding for each of position, x, the two products, the sum; all below 4.
    EXPECT_NEAR(*evaluate(s, "w", gradient_position(layer, 6), ParameterType::number), want[static_cast<std::size_t>(layer)], 5 * 4 * 0x1p-53)
        << layer;
}

TEST(MergeConfigSetting, gradients_begin_and_end_exactly_at_their_ends) {
  for (int layers = 1; layers < 200; ++layers) {
    const Setting s = setting({{std::nullopt, {0.1, 0.7, 0.3}}});
    EXPECT_EQ(*evaluate(s, "w", gradient_position(layers - 1, layers), ParameterType::number), 0.3) << layers;
    if (layers > 1) {
      EXPECT_EQ(*evaluate(s, "w", gradient_position(0, layers), ParameterType::number), 0.1) << layers;
    }
  }
  EXPECT_EQ(gradient_position(0, 1), 1) << "a slice of one layer takes the last value";
  EXPECT_EQ(*evaluate(setting({{std::nullopt, {0.25}}}), "w", 0.7, ParameterType::number), 0.25);
}

TEST(MergeConfigSetting, attention_and_mlp_go_in_opposite_directions_in_the_example) {
  const Setting s = setting({{"self_attn", {0, 1}}, {"mlp", {1, 0}}, {std::nullopt, {0.5}}});
  for (int layer = 0; layer < 6; ++layer) {
    const double position = gradient_position(layer, 6);
    EXPECT_NEAR(*evaluate(s, "model.layers.3.self_attn.q_proj.weight", position, ParameterType::number), layer / 5.0, 0x1p-52);
    EXPECT_NEAR(*evaluate(s, "model.layers.3.mlp.up_proj.weight", position, ParameterType::number), 1 - layer / 5.0, 0x1p-52);
    EXPECT_EQ(*evaluate(s, "model.layers.3.input_layernorm.weight", position, ParameterType::number), 0.5);
  }
}

TEST(MergeConfigSetting, the_first_matching_filter_counts_and_matching_is_by_plain_substring) {
  const Setting s = setting({{"mlp.down", {1}}, {"MLP", {2}}, {".1.", {3}}, {"*", {4}}, {std::nullopt, {5}}});
  EXPECT_EQ(evaluate(s, "model.layers.1.mlp.down_proj.weight", 0, ParameterType::number), 1);
  EXPECT_EQ(evaluate(s, "model.layers.1.mlp.up_proj.weight", 0, ParameterType::number), 3) << "case counts";
  EXPECT_EQ(evaluate(s, "model.layers.11.mlp.up_proj.weight", 0, ParameterType::number), 4) << "'*' alone matches all";
  const Setting partial = setting({{"mlp*", {1}}, {"q_proj", {2}}});
  EXPECT_EQ(evaluate(partial, "model.mlp.up", 0, ParameterType::number), std::nullopt) << "'*' is special only alone";
  EXPECT_EQ(evaluate(partial, "mlp*x", 0, ParameterType::number), 1);
  EXPECT_EQ(evaluate(setting({{std::nullopt, {}}}), "w", 0, ParameterType::number), std::nullopt) << "an empty list counts as absent";
}

TEST(MergeConfigSetting, booleans_step_through_a_list_and_integers_are_truncated) {
  const Setting flags = setting({{std::nullopt, {1, 0, 1}}});
  const std::vector<double> want = {1, 1, 0, 0, 1};  // int(t * 2) for t = 0, 1/4, 1/2, 3/4, 1
  for (int layer = 0; layer < 5; ++layer)
    EXPECT_EQ(*evaluate(flags, "w", gradient_position(layer, 5), ParameterType::boolean), want[static_cast<std::size_t>(layer)]) << layer;
  EXPECT_EQ(*evaluate(setting({{std::nullopt, {1, 4}}}), "w", 0.5, ParameterType::integer), 2);
}

// ---- precedence ----

TEST(MergeConfigResolver, the_first_level_that_has_a_matching_value_wins) {
  const MergeConfig config = parse(R"(
merge_method: mean
slices:
  - sources:
      - {model: ./a, layer_range: [0, 2], parameters: {weight: [{filter: q_proj, value: 5}]}}
      - {model: ./b, layer_range: [0, 2], parameters: {weight: 2}}
    parameters: {weight: [{filter: mlp, value: 7}], normalize: [{filter: k_proj, value: false}]}
  - sources:
      - {model: ./a, layer_range: [2, 3]}
      - {model: ./b, layer_range: [2, 3]}
parameters: {weight: 1}
)");
  const Module& module = config.modules[0];
  const ParameterResolver first(config, module, module.slices[0]);
  const Source& a = module.slices[0].sources[0];
  const Source& b = module.slices[0].sources[1];
  EXPECT_EQ(first.source_values(a, "model.layers.0.self_attn.q_proj.weight", 0).number("weight"), 5);
  EXPECT_EQ(first.source_values(a, "model.layers.0.mlp.up_proj.weight", 0).number("weight"), 7);
  EXPECT_EQ(first.source_values(a, "model.layers.0.self_attn.k_proj.weight", 0).number("weight"), 1);
  EXPECT_EQ(first.source_values(b, "model.layers.0.mlp.up_proj.weight", 0).number("weight"), 2);
  EXPECT_FALSE(first.global_values("model.layers.0.self_attn.k_proj.weight", 0).flag("normalize"));
  EXPECT_TRUE(first.global_values("model.layers.0.self_attn.q_proj.weight", 0).flag("normalize")) << "the default";
  const ParameterResolver second(config, module, module.slices[1]);
  EXPECT_EQ(second.source_values(module.slices[1].sources[0], "model.layers.2.self_attn.q_proj.weight", 0).number("weight"), 1);
}

TEST(MergeConfigResolver, parameters_of_a_module_come_before_those_of_the_top_level) {
  const MergeConfig config = parse(R"(
merge_method: mean
modules:
  default:
    models: [{model: ./a}, {model: ./b, parameters: {weight: 2}}]
    parameters: {weight: 0.5}
parameters: {weight: 100}
)");
  const Module& module = config.modules.at(0);
  const ParameterResolver resolver(config, module, module.slices[0]);
  EXPECT_EQ(resolver.source_values(module.slices[0].sources[0], "w", 0).number("weight"), 0.5);
  EXPECT_EQ(resolver.source_values(module.slices[0].sources[1], "w", 0).number("weight"), 2);
}

TEST(MergeConfigResolver, a_required_parameter_without_value_is_named_with_model_and_tensor) {
  const MergeConfig config =
      parse("merge_method: vectors\nbase_model: ./m\nmodels: [{model: ./micro-a, parameters: {weight: [{filter: mlp, value: 1}]}}]\n");
  const Module& module = config.modules[0];
  const ParameterResolver resolver(config, module, module.slices[0]);
  EXPECT_EQ(resolver.source_values(module.slices[0].sources[0], "model.layers.0.mlp.up_proj.weight", 0).number("weight"), 1);
  try {
    (void)resolver.source_values(module.slices[0].sources[0], "model.embed_tokens.weight", 0);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(e.message(), "missing required parameter weight for model ./micro-a, tensor model.embed_tokens.weight");
    EXPECT_EQ(e.place().tensor, "model.embed_tokens.weight");
    EXPECT_EQ(e.place().key, "models[0].parameters.weight");
  }
  // The base has a part of its own and needs no weight.
  const merge::Values base = resolver.source_values(module.slices[0].sources[1], "model.embed_tokens.weight", 0);
  EXPECT_EQ(base.find("weight"), std::nullopt);
  EXPECT_EQ(base.number("density"), 1);
}

TEST(MergeConfigResolver, a_global_parameter_with_filters_that_miss_is_an_error_and_an_optional_one_is_not) {
  const MergeConfig sphere = parse("merge_method: sphere\nbase_model: ./a\nmodels: [{model: ./b}]\nparameters: {t: [{filter: mlp, value: 0.5}]}\n");
  const ParameterResolver resolver(sphere, sphere.modules[0], sphere.modules[0].slices[0]);
  EXPECT_EQ(resolver.global_values("x.mlp.y", 0).number("t"), 0.5);
  try {
    (void)resolver.global_values("model.norm.weight", 0);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.message(), "missing required parameter t for tensor model.norm.weight");
  }
  const MergeConfig one = parse("merge_method: one\nmodels: [{model: ./a}]\n");
  EXPECT_EQ(ParameterResolver(one, one.modules[0], one.modules[0].slices[0]).source_values(one.modules[0].slices[0].sources[0], "w", 0).find("scale"),
            std::nullopt);
}

// ---- values ----

TEST(MergeConfigValues, numbers_may_be_texts_and_booleans_and_the_other_way_round) {
  const MergeConfig config = parse(R"(
merge_method: vectors
base_model: ./m
models:
  - {model: ./a, parameters: {weight: "0.5", density: 1e-3}}
  - {model: ./b, parameters: {weight: yes, density: [0, "0.25", true]}}
  - {model: ./c, parameters: {weight: -2, density: {filter: "*", value: 0.5}}}
parameters: {normalize: "off"}
)");
  const auto& sources = config.modules[0].slices[0].sources;
  const auto values = [&](std::size_t source, std::size_t parameter) { return sources.at(source).parameters.at(parameter).entries.at(0).values; };
  EXPECT_THAT(values(0, 0), ElementsAre(0.5));
  EXPECT_THAT(values(0, 1), ElementsAre(1e-3));
  EXPECT_THAT(values(1, 0), ElementsAre(1));
  EXPECT_THAT(values(1, 1), ElementsAre(0, 0.25, 1));
  EXPECT_THAT(values(2, 0), ElementsAre(-2));
  EXPECT_EQ(sources[2].parameters[1].entries[0].filter, "*");
  EXPECT_THAT(config.parameters.at(0).entries.at(0).values, ElementsAre(0));
  for (const char* flag : {"true", "Yes", "'on'", "1", "1.0", "\"1\"", "'TRUE'", "y", "T"})
    EXPECT_EQ(parse(std::string("merge_method: mean\nmodels: [{model: a}]\nparameters: {weight: 1, normalize: ") + flag + "}")
                  .parameters.at(1)
                  .entries[0]
                  .values[0],
              1)
        << flag;
  EXPECT_EQ(parse("merge_method: steps\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: '1e2'}").parameters.at(0).entries[0].values[0], 100);
  EXPECT_EQ(parse("merge_method: steps\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: '1_00'}").parameters.at(0).entries[0].values[0],
            100);
}

TEST(MergeConfigValues, what_is_no_value_is_refused_with_its_key_and_place) {
  const auto of_weight = [](const std::string& value) {
    return refusal("merge_method: mean\nmodels: [{model: ./a, parameters: {weight: " + value + "}}]\n");
  };
  const Refusal heavy = of_weight("heavy");
  EXPECT_THAT(heavy.message, AllOf(HasSubstr("'heavy'"), HasSubstr("expected a number"), HasSubstr("line 2, column 44")));
  EXPECT_EQ(heavy.key, "models[0].parameters.weight");
  EXPECT_THAT(of_weight("'1__0'").message, HasSubstr("expected a number"));
  EXPECT_THAT(of_weight("'_1'").message, HasSubstr("expected a number"));
  EXPECT_THAT(of_weight("[1, [2]]").key, "models[0].parameters.weight[1]");
  EXPECT_THAT(of_weight(".nan").message, HasSubstr("not a finite number"));
  EXPECT_THAT(of_weight("[0, .inf]").message, HasSubstr("not a finite number"));
  EXPECT_THAT(of_weight("1.0e+999").message, HasSubstr("not a finite number"));
  EXPECT_THAT(of_weight("").message, HasSubstr("got nothing"));
  EXPECT_THAT(of_weight("{filter: mlp}").message, HasSubstr("needs 'value'"));
  EXPECT_THAT(of_weight("[{value: 1, filter: 7}]").message, HasSubstr("expected a text"));
  EXPECT_THAT(of_weight("[{value: 1}, 2]").message, HasSubstr("like its neighbours"));
  EXPECT_THAT(of_weight("'0x10'").message, HasSubstr("expected a number"));
  EXPECT_THAT(of_weight("'1.5x'").message, HasSubstr("expected a number"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: a}]\nparameters: {weight: 1, normalize: 2}").message, HasSubstr("true or false"));
  EXPECT_THAT(refusal("merge_method: steps\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 2.5}").message, HasSubstr("whole number"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: a}]\nparameters: [weight]").message, HasSubstr("expected a mapping"));
}

TEST(MergeConfigValues, values_outside_the_range_of_their_parameter_are_refused) {
  EXPECT_THAT(refusal("merge_method: sphere\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0, 1.5]}").message,
              AllOf(HasSubstr("1.5"), HasSubstr("from 0 to 1"), HasSubstr("parameters.t[1]")));
  EXPECT_THAT(refusal("merge_method: steps\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 0}").message, HasSubstr("must be"));
}

// ---- unknown keys ----

TEST(MergeConfigWarnings, every_unknown_key_and_parameter_is_named_with_the_nearest_right_one) {
  std::vector<std::string> warnings;
  (void)parse(R"(
merge_method: vectors
base_model: {model: ./m, loar: x}
models:
  - {model: {model: {path: ./a, revsion: x}}, parameters: {weight: 1, wieght: 9, densty: 0.5}}
  - {model: ./c, weight: 40, parameters: {weight: 2, normalize: true, int8_mask: true}}
paramters: {normalize: false}
tokenizer: {source: base, pad: 3, tokens: {x: {source: ./a, froce: true}}}
whatever: 1
)",
              &warnings);
  const std::vector<std::pair<std::string, std::string>> want = {
      {"paramters", "did you mean 'parameters'?"},
      {"whatever", "unknown key"},
      {"base_model.loar", "did you mean 'lora'?"},
      {"models[0].model.model.revsion", "did you mean 'revision'?"},
      {"models[0].parameters.wieght", "did you mean 'weight'?"},
      {"models[0].parameters.densty", "did you mean 'density'?"},
      {"models[1].weight", "parameters go under 'parameters:'"},
      {"models[1].parameters.normalize", "no effect under a model"},
      {"tokenizer.pad", "unknown key"},
      {"tokenizer.tokens.x.froce", "did you mean 'force'?"},
  };
  for (const auto& [key, phrase] : want)
    EXPECT_THAT(warnings, ::testing::Contains(AllOf(::testing::StartsWith(key + ":"), HasSubstr(phrase), HasSubstr("line ")))) << key;
  EXPECT_EQ(warnings.size(), want.size()) << ::testing::PrintToString(warnings);
}

TEST(MergeConfigWarnings, strict_turns_what_has_no_effect_into_an_error) {
  EXPECT_EQ(refusal("merge_method: mean\nmodels: [{model: a, parameters: {weight: 1}}]\nparamters: {x: 1}", true).key, "paramters");
  EXPECT_EQ(refusal("merge_method: mean\nmodels: [{model: a, weight: 1}]\nparameters: {weight: 1}", true).key, "models[0].weight");
  EXPECT_EQ(refusal("merge_method: mean\nmodels: [{model: a, parameters: {weight: 1, w: 2}}]", true).key, "models[0].parameters.w");
  EXPECT_EQ(refusal("merge_method: mean\nmodels: [{model: a, parameters: {weight: [{value: 1}, {filter: x, value: 2}]}}]", true).key,
            "models[0].parameters.weight[1]");
}

TEST(MergeConfigWarnings, entries_behind_one_without_filter_are_pointed_out) {
  std::vector<std::string> warnings;
  (void)parse("merge_method: mean\nmodels: [{model: a, parameters: {weight: [{filter: q, value: 1}, {value: 1}, {filter: x, value: 2}]}}]",
              &warnings);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("never reached")));
}

TEST(MergeConfigWarnings, keys_of_other_tools_configs_are_printed_safely) {
  std::vector<std::string> warnings;
  (void)parse("merge_method: mean\nmodels: [{model: a, parameters: {weight: 1}}]\n\"bad\\e[31m\": 1", &warnings);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_EQ(warnings[0].find('\x1B'), std::string::npos) << warnings[0];
}

// ---- models ----

TEST(MergeConfigModels, references_are_split_at_plus_and_at) {
  const ModelRef full = parse_model_ref("org/model@main+./adapter@v2");
  EXPECT_EQ(full.model.path, "org/model");
  EXPECT_EQ(full.model.revision, "main");
  ASSERT_TRUE(full.lora);
  EXPECT_EQ(full.lora->path, "./adapter");
  EXPECT_EQ(full.lora->revision, "v2");
  EXPECT_EQ(parse_model_ref("m@").model.revision, std::nullopt);
  for (const char* bad : {"", "a+b+c", "@@@", "a@b@c", "+a", "a+", "@main", "a+b@c@d"}) try {
      (void)parse_model_ref(bad);
      ADD_FAILURE() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument) << bad;
    }
}

TEST(MergeConfigModels, a_string_that_exists_as_a_path_is_taken_literally) {
  const fs::path folder = fs::path(::testing::TempDir()) / "weft+odd@name@twice";
  fs::create_directories(folder);
  EXPECT_EQ(parse_model_ref(folder.string()).model.path, folder.string());
  EXPECT_EQ(parse_model_ref(folder.string()).lora, std::nullopt);
  const MergeConfig config = parse("merge_method: mean\nmodels: [{model: {model: \"" + folder.string() + "\"}, parameters: {weight: 1}}]");
  EXPECT_EQ(config.donor().model.path, folder.string());
  fs::remove(folder);
}

TEST(MergeConfigModels, the_mapping_form_is_the_same_model_as_the_string) {
  const MergeConfig config = parse(R"(
merge_method: mean
parameters: {weight: 1}
models:
  - model: {model: {path: ./a, revision: r}, lora: ./l@s, override_architecture: LlamaForCausalLM}
  - model: {model: ./b, lora: {path: ./l}}
)");
  const ModelRef& first = config.modules[0].slices[0].sources[0].model;
  EXPECT_EQ(first.written, "./a@r+./l@s");
  EXPECT_EQ(first.override_architecture, "LlamaForCausalLM");
  EXPECT_FALSE(first == parse_model_ref("./a@r+./l@s")) << "another architecture makes it another model";
  EXPECT_EQ(config.modules[0].slices[0].sources[1].model, parse_model_ref("./b+./l"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: {lora: x}}]").message, HasSubstr("needs 'model'"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: 7}]").message, HasSubstr("expected a model"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: {model: {revision: x}}}]").message, HasSubstr("needs a path"));
}

TEST(MergeConfigModels, the_base_is_appended_to_every_list_of_models_but_not_to_slices_and_only_if_unlisted) {
  const MergeConfig appended = parse("merge_method: stock\nbase_model: ./m\nmodels: [{model: a}, {model: b}]");
  ASSERT_EQ(appended.modules[0].slices[0].sources.size(), 3U);
  EXPECT_TRUE(appended.modules[0].slices[0].sources[2].appended_base);
  EXPECT_TRUE(appended.is_base(appended.modules[0].slices[0], appended.modules[0].slices[0].sources[2]));
  EXPECT_EQ(parse("merge_method: stock\nbase_model: ./m\nmodels: [{model: a}, {model: ./m}, {model: b}]").modules[0].slices[0].sources.size(), 3U);
  const MergeConfig in_module = parse("merge_method: stock\nbase_model: ./m\nmodules: {default: {models: [{model: a}, {model: b}]}}");
  ASSERT_EQ(in_module.modules[0].slices[0].sources.size(), 3U);
  EXPECT_TRUE(in_module.modules[0].slices[0].sources[2].appended_base);
  EXPECT_THAT(refusal("merge_method: stock\nbase_model: ./m\nslices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}]")
                  .message,
              HasSubstr("default.slices[0]"));
}

TEST(MergeConfigModels, donor_and_list_of_models_follow_the_file) {
  const MergeConfig without =
      parse("merge_method: mean\nparameters: {weight: 1}\nmodels: [{model: z}, {model: a}]\ntokenizer: {tokens: {x: {source: t}, y: {source: a}}}");
  EXPECT_EQ(without.donor().written, "z");
  std::vector<std::string> names;
  for (const ModelRef& ref : without.referenced_models()) names.push_back(ref.written);
  EXPECT_THAT(names, ElementsAre("z", "a", "t"));
  EXPECT_EQ(parse("merge_method: mean\nparameters: {weight: 1}\nbase_model: a\nmodels: [{model: z}, {model: a}]").donor().written, "a");
}

TEST(MergeConfigModels, counts_are_checked_for_every_slice_before_any_model_is_opened) {
  EXPECT_THAT(refusal("merge_method: sphere\nbase_model: m\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}").message,
              AllOf(HasSubstr("exactly 2"), HasSubstr("default.slices[0] has 3")));
  EXPECT_THAT(refusal("merge_method: sphere\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}").message, HasSubstr("needs base_model"));
  EXPECT_THAT(refusal("merge_method: stock\nbase_model: m\nmodels: [{model: a}]").message,
              AllOf(HasSubstr("at least 2"), HasSubstr("beside the base")));
  EXPECT_THAT(refusal("merge_method: one\nmodels: [{model: a}, {model: b}]").message, HasSubstr("exactly 1 model,"));
  EXPECT_THAT(refusal("merge_method: one\nbase_model: m\nmodels: [{model: a}]").message, HasSubstr("has 2"));
  EXPECT_THAT(refusal("merge_method: steps\nbase_model: a\nmodels: [{model: a}, {model: b}]").message, HasSubstr("has 1"));
  EXPECT_THAT(refusal("merge_method: steps\nmodels: [{model: a}, {model: b}, {model: c}]").message, HasSubstr("has 3"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: a}, {model: a}]\nparameters: {weight: 1}").message,
              HasSubstr("occurs twice in default.slices[0]"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: a+l}, {model: {model: a, lora: l}}]\nparameters: {weight: 1}").message,
              HasSubstr("occurs twice"));
  // Another revision is another model.
  EXPECT_EQ(parse("merge_method: mean\nmodels: [{model: a}, {model: a@x}]\nparameters: {weight: 1}").modules[0].slices[0].sources.size(), 2U);
}

TEST(MergeConfigModels, a_slice_may_have_a_base_of_its_own) {
  const MergeConfig config = parse(R"(
merge_method: sphere
base_model: ./m
parameters: {t: 0.5}
slices:
  - sources: [{model: ./m, layer_range: [0, 1]}, {model: ./a, layer_range: [0, 1]}]
  - sources: [{model: ./a, layer_range: [1, 2]}, {model: ./b, layer_range: [1, 2]}]
    base_model: ./b
)");
  const Slice& second = config.modules[0].slices[1];
  EXPECT_FALSE(config.is_base(second, second.sources[0]));
  EXPECT_TRUE(config.is_base(second, second.sources[1]));
  EXPECT_EQ(second.name, "default.slices[1]");
}

TEST(MergeConfigModels, a_required_parameter_that_no_level_gives_is_refused_early) {
  const Refusal weight = refusal("merge_method: mean\nmodels: [{model: ./a, parameters: {weight: 1}}, {model: ./micro-b}]\n");
  EXPECT_THAT(weight.message, AllOf(HasSubstr("missing required parameter weight"), HasSubstr("./micro-b")));
  EXPECT_EQ(weight.key, "models[1].parameters.weight");
  EXPECT_THAT(refusal("merge_method: sphere\nbase_model: a\nmodels: [{model: b}]").message, HasSubstr("parameter t "));
  EXPECT_THAT(refusal("merge_method: sphere\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: []}").message, HasSubstr("parameter t "));
  EXPECT_THAT(refusal("merge_method: mean\nbase_model: ./m\nmodels: [{model: a, parameters: {weight: 1}}]").message, HasSubstr("./m"));
}

// ---- slices ----

std::string with_range(const std::string& range) { return "merge_method: one\nslices: [{sources: [{model: a, layer_range: " + range + "}]}]"; }

TEST(MergeConfigSlices, layer_ranges_are_half_open_and_checked) {
  EXPECT_EQ(parse(with_range("[0, 24]")).modules[0].slices[0].sources[0].layers->size(), 24);
  EXPECT_EQ(parse(with_range("[\"0\", 24.0]")).modules[0].slices[0].sources[0].layers->end, 24);
  for (const char* bad : {"[1, 0]", "[-1, 2]", "[0]", "[0, 1, 2]", "5", "[0, x]", "[0, 1.5]", "[0, 99999999]", "[0, 1.0e+300]", "{a: 1}", "[0, [1]]"})
    EXPECT_THAT(refusal(with_range(bad)).key, HasSubstr("slices[0].sources[0].layer_range")) << bad;
  EXPECT_THAT(refusal("merge_method: one\nslices: [{sources: [{model: a}]}]").message, HasSubstr("needs layer_range"));
  EXPECT_THAT(refusal(with_range("[3, 3]")).message, HasSubstr("no layer"));
}

TEST(MergeConfigSlices, an_empty_slice_at_the_end_is_legal) {
  const MergeConfig config =
      parse("merge_method: one\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}, {sources: [{model: b, layer_range: [0, 0]}]}]");
  EXPECT_EQ(config.modules[0].slices[1].sources[0].layers->size(), 0);
}

TEST(MergeConfigSlices, sources_of_one_slice_have_one_length) {
  EXPECT_THAT(
      refusal("merge_method: mean\nparameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]")
          .message,
      AllOf(HasSubstr("different numbers of layers: 2 and 3"), HasSubstr("default.slices[0]")));
}

TEST(MergeConfigSlices, residual_weight_is_accepted_and_said_to_do_nothing) {
  std::vector<std::string> warnings;
  (void)parse("merge_method: one\nslices: [{residual_weight: 0.5, sources: [{model: a, layer_range: [0, 2]}]}]", &warnings, true);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("no effect")));
}

TEST(MergeConfigSlices, exactly_one_of_models_slices_and_modules_is_given) {
  EXPECT_THAT(refusal("merge_method: mean").message, HasSubstr("none of models, slices and modules"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: []\nslices: null").message, HasSubstr("none of"));
  EXPECT_THAT(refusal("merge_method: mean\nmodels: [{model: a}]\nslices: [{sources: []}]").message, HasSubstr("both given"));
  EXPECT_THAT(refusal("merge_method: mean\nmodules: {text: {parameters: {weight: 1}}}").message, HasSubstr("either models or slices"));
  EXPECT_THAT(refusal("merge_method: one\nslices: [{sources: []}]").message, HasSubstr("needs sources"));
  EXPECT_THAT(refusal("merge_method: one\nmodels: {model: a}").message, HasSubstr("expected a list"));
  EXPECT_THAT(refusal("merge_method: one\nmodels: [a]").message, HasSubstr("expected a mapping"));
  EXPECT_EQ(parse("merge_method: one\nmodels: [{model: a}]\nslices: []").modules[0].form, OutputForm::models);
}

// ---- the rest of the top level ----

TEST(MergeConfigTop, methods_and_types_must_be_known) {
  EXPECT_THAT(refusal("merge_method: vector\nmodels: [{model: a}]").message, HasSubstr("'vector'"));
  EXPECT_THAT(refusal("models: [{model: a}]").message, HasSubstr("merge_method"));
  EXPECT_THAT(refusal("merge_method: 5\nmodels: [{model: a}]").message, HasSubstr("expected a text"));
  EXPECT_THAT(refusal("merge_method: one\nmodels: [{model: a}]\ndtype: float33").message, HasSubstr("float33"));
  const MergeConfig config = parse("merge_method: one\nmodels: [{model: a}]\ndtype: torch.float32\nout_dtype: bfloat16");
  EXPECT_EQ(config.dtype, DType::f32);
  EXPECT_EQ(config.out_dtype, DType::bf16);
}

TEST(MergeConfigTop, the_document_must_be_one_mapping) {
  EXPECT_THAT(refusal("- merge_method: mean").message, HasSubstr("not a mapping"));
  EXPECT_THAT(refusal("").message, HasSubstr("empty"));
  EXPECT_THAT(refusal("# nothing\n").message, HasSubstr("empty"));
  EXPECT_THAT(refusal("merge_method: one\nmodels: [{model: a}]\n---\nmerge_method: one\nmodels: [{model: a}]").message,
              HasSubstr("several documents"));
  EXPECT_EQ(parse("---\nmerge_method: one\nmodels: [{model: a}]\n---\n").merge_method, "one");
}

TEST(MergeConfigTop, chat_templates_are_checked_before_anything_is_written) {
  const std::string config = "merge_method: one\nmodels: [{model: a}]\nchat_template: ";
  EXPECT_EQ(parse(config + "auto").chat_template, "auto");
  EXPECT_EQ(parse(config + "chatml").chat_template, "chatml");
  EXPECT_TRUE(parse(config + "\"{{ messages[0]['content'] }} and more\"").chat_template);
  EXPECT_THAT(refusal(config + "short").message, HasSubstr("invalid chat template 'short'"));
  EXPECT_THAT(refusal(config + "a long text but without any braces").message, HasSubstr("invalid chat template"));
  EXPECT_THAT(refusal(config + "[x]").message, HasSubstr("expected a text"));
}

TEST(MergeConfigTokenizer, rules_are_read_as_written) {
  const MergeConfig config = parse(R"(
merge_method: mean
parameters: {weight: 1}
base_model: ./base
models: [{model: ./base}, {model: ./chat}]
tokenizer:
  source: union
  pad_to_multiple_of: 10
  tokens:
    <|im_start|>: {source: ./chat, force: true}
    <|im_end|>: {source: {kind: model_token, model: ./base, token: </s>}}
    <|pad|>: {source: {kind: zero}}
    <|extra|>: {source: {kind: model_token, model: ./chat, token_id: 7}}
    e: {}
    null: {source: {model: {path: ./other}, lora: ./l}}
)");
  ASSERT_TRUE(config.tokenizer);
  EXPECT_EQ(config.tokenizer->source, ConfigVocabulary::union_of_all);
  EXPECT_EQ(config.tokenizer->pad_to_multiple_of, 10U);
  const auto& tokens = config.tokenizer->tokens;
  ASSERT_EQ(tokens.size(), 6U);
  EXPECT_EQ(tokens[0].token, "<|im_start|>");
  EXPECT_EQ(tokens[0].source, ConfigTokenSource::model);
  EXPECT_TRUE(tokens[0].force);
  EXPECT_EQ(tokens[1].source, ConfigTokenSource::model_token);
  EXPECT_EQ(tokens[1].source_token, "</s>");
  EXPECT_EQ(tokens[2].source, ConfigTokenSource::zero);
  EXPECT_EQ(tokens[3].source_id, 7U);
  EXPECT_EQ(tokens[3].source_token, std::nullopt);
  EXPECT_EQ(tokens[4].source, ConfigTokenSource::none);
  EXPECT_EQ(tokens[5].token, "null");
  EXPECT_EQ(tokens[5].model.written, "./other+./l");
}

TEST(MergeConfigTokenizer, the_short_form_and_the_mistakes) {
  const std::string config = "merge_method: one\nmodels: [{model: a}]\n";
  EXPECT_EQ(parse(config + "tokenizer_source: base").tokenizer->source, ConfigVocabulary::base);
  EXPECT_EQ(parse(config + "tokenizer_source: ./x").tokenizer->model.written, "./x");
  EXPECT_EQ(parse(config + "tokenizer: {}").tokenizer->source, ConfigVocabulary::union_of_all);
  EXPECT_EQ(parse(config + "tokenizer: null\ntokenizer_source: null").tokenizer, std::nullopt);
  EXPECT_EQ(parse(config + "tokenizer: {pad_to_multiple_of: 0}").tokenizer->pad_to_multiple_of, std::nullopt);
  EXPECT_THAT(refusal(config + "tokenizer_source: base\ntokenizer: {source: base}").message, HasSubstr("both given"));
  const auto rule = [&](const std::string& text) { return refusal(config + "tokenizer: {tokens: {e: " + text + "}}"); };
  EXPECT_THAT(rule("{force: true}").message, HasSubstr("force needs a source"));
  EXPECT_THAT(rule("{source: {kind: model_token, model: a, token: x, token_id: 3}}").message, HasSubstr("both given"));
  EXPECT_THAT(rule("{source: {kind: model_token, model: a}}").message, HasSubstr("neither"));
  EXPECT_THAT(rule("{source: {kind: model_token, token: x}}").message, HasSubstr("needs a model"));
  EXPECT_THAT(rule("{source: {model: a, token: x}}").message, HasSubstr("kind: model_token"));
  EXPECT_THAT(rule("{source: {kind: one}}").message, HasSubstr("unknown kind 'one'"));
  EXPECT_THAT(rule("{source: {kind: model_token, model: a, token_id: -1}}").message, HasSubstr("not between"));
  EXPECT_THAT(rule("5").message, HasSubstr("expected a mapping"));
  EXPECT_THAT(refusal(config + "tokenizer: {pad_to_multiple_of: x}").key, "tokenizer.pad_to_multiple_of");
}

TEST(MergeConfigShared, anchors_and_merge_keys_work_as_in_other_tools) {
  const MergeConfig config = parse(R"(
merge_method: vectors
base_model: &base ./m
models:
  - {model: ./a, parameters: &p {weight: 1, density: 0.3}}
  - {model: ./b, parameters: {<<: *p, density: 0.5}}
  - {model: *base}
)");
  const auto& sources = config.modules[0].slices[0].sources;
  ASSERT_EQ(sources.size(), 3U);
  const Settings& b = sources[1].parameters;
  ASSERT_EQ(b.size(), 2U);
  EXPECT_EQ(b[0].name, "density");
  EXPECT_EQ(b[0].entries[0].values[0], 0.5);
  EXPECT_EQ(b[1].entries[0].values[0], 1);
}

// ---- several documents ----

std::vector<MergeConfig> parse_all(const std::string& text) {
  std::vector<std::string> warnings;
  return parse_merge_configs(text, "test.yml", {.methods = test_methods()}, warnings);
}
std::string document(const std::string& name, const std::string& model) {
  return (name.empty() ? "" : "name: " + name + "\n") + "merge_method: one\nmodels: [{model: " + model + "}]\n---\n";
}

TEST(MergeConfigMulti, documents_come_in_order_of_dependency) {
  const std::vector<MergeConfig> configs =
      parse_all(document("", "last") + document("last", "middle") + document("middle", "./a") + document("free", "./b"));
  std::vector<std::string> names;
  for (const MergeConfig& config : configs) names.push_back(config.name);
  EXPECT_THAT(names, ElementsAre("middle", "last", "", "free"));
  EXPECT_EQ(configs[0].text, "name: middle\nmerge_method: one\nmodels: [{model: ./a}]\n");
}

TEST(MergeConfigMulti, cycles_repeated_names_and_two_nameless_documents_are_refused) {
  const auto message = [](const std::string& text) {
    try {
      (void)parse_all(text);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
      return e.message();
    }
    ADD_FAILURE() << text;
    return std::string();
  };
  EXPECT_THAT(message(document("x", "y") + document("y", "z") + document("z", "y")), HasSubstr("y needs z needs y"));
  EXPECT_THAT(message(document("x", "x")), HasSubstr("x needs x"));
  EXPECT_THAT(message(document("x", "a") + document("x", "b")), HasSubstr("two documents have the name 'x'"));
  EXPECT_THAT(message(document("", "a") + document("", "b")), HasSubstr("no name"));
  EXPECT_THAT(message("# nothing"), HasSubstr("empty"));
}

// ---- the configs of mergekit's own runs ----

class MergeConfigGoldens : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(WEFT_SOURCE_DIR) / ".." / "shared" / "golden" / "merge";
    if (!fs::exists(folder_ / "index.json")) GTEST_SKIP() << folder_ << " is not there";
    previous_ = fs::current_path();
    fs::current_path(folder_);  // paths in the configs are relative to it
    index_ = read_json_file("index.json");
  }
  void TearDown() override {
    if (!previous_.empty()) fs::current_path(previous_);
  }

  fs::path folder_;
  fs::path previous_;
  Json index_;
};

std::string method_of(const std::string& text) {
  const std::size_t at = text.find("merge_method: ");
  return at == std::string::npos ? "" : text.substr(at + 14, text.find('\n', at) - at - 14);
}

TEST_F(MergeConfigGoldens, every_config_that_mergekit_ran_is_accepted) {
  int num_parsed = 0;
  for (const Json& one : *index_.find("cases")->array()) {
    if (*one.find("kind")->string() == "error") continue;
    const std::string& path = *one.find("config")->string();
    const std::string text = read_text_file(path, 1 << 20);
    std::vector<std::string> warnings;
    try {
      const MergeConfig config = parse_merge_config(text, path, {}, warnings);
      EXPECT_EQ(config.text, text);
      ++num_parsed;
    } catch (const Error& e) {
      // A method that the table does not have yet is the only excuse.
      EXPECT_EQ(merge::find_method(method_of(text)), nullptr) << path << ": " << e.what();
    }
    if (path == "configs/linear-references.yml" || path == "configs/linear-precedence.yml")
      EXPECT_FALSE(warnings.empty()) << path;
    else
      EXPECT_THAT(warnings, IsEmpty()) << path;
  }
  EXPECT_GT(num_parsed, 40);
}

TEST_F(MergeConfigGoldens, every_mistake_that_a_config_shows_by_itself_is_refused) {
  // These need a model to be seen.
  const std::set<std::string> later = {"adapter-alone",         "della-epsilon",    "header-beyond-file", "layer-beyond",
                                       "linear-weights-cancel", "missing-shard",    "missing-tensor",     "missing-weight-by-filter",
                                       "no-such-model",         "not-a-number",     "other-vocabulary",   "other-vocabulary-ties",
                                       "other-width",           "rule-lacks-token", "truncated-file"};
  int num_errors = 0;
  int num_refused = 0;
  for (const Json& one : *index_.find("cases")->array()) {
    if (*one.find("kind")->string() != "error") continue;
    ++num_errors;
    const std::string& name = *one.find("name")->string();
    const std::string& path = *one.find("config")->string();
    const std::string text = read_text_file(path, 1 << 20);
    std::vector<std::string> warnings;
    std::string message;
    try {
      (void)parse_merge_config(text, path, {}, warnings);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument) << name << ": " << e.what();
      message = e.what();
    }
    if (later.contains(name)) {
      if (merge::find_method(method_of(text)) != nullptr) {
        EXPECT_EQ(message, "") << name;
      }
      continue;
    }
    ASSERT_NE(message, "") << name << " was accepted";
    ++num_refused;
    if (name != "unknown-method" && name != "no-method" && merge::find_method(method_of(text)) == nullptr && !method_of(text).empty()) continue;
    for (const Json& words : *one.find("mention")->array()) {
      // "shape|mismatch" means either.
      bool found = false;
      std::string rest = *words.string();
      while (!rest.empty()) {
        const std::size_t bar = rest.find('|') == 0 ? std::string::npos : rest.find('|');
        found = found || message.find(rest.substr(0, bar)) != std::string::npos;
        rest = bar == std::string::npos ? "" : rest.substr(bar + 1);
      }
      EXPECT_TRUE(found) << name << " should mention " << *words.string() << ": " << message;
    }
  }
  EXPECT_EQ(num_refused, num_errors - static_cast<int>(later.size()));
}

}  // namespace
}  // namespace weft::engine
