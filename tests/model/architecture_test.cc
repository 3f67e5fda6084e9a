#include "model/architecture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/memory_checkpoint.h"
#include "weft/error.h"

namespace weft::model {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Json json(std::string_view text) { return parse_json(text, "config.json"); }

const Architecture& named(std::string_view name) {
  for (const Architecture& a : architectures())
    if (a.name == name) return a;
  throw Error(ErrorCode::not_found, "no such architecture in the table");
}

const TensorSlot* find_slot(const std::vector<TensorSlot>& slots, std::string_view name) {
  for (const TensorSlot& slot : slots)
    if (slot.name == name) return &slot;
  return nullptr;
}

testing::MemoryCheckpoint checkpoint_of(const std::vector<std::string>& names) {
  std::vector<testing::MemoryCheckpoint::Tensor> tensors;
  for (const std::string& name : names) tensors.push_back({name, DType::f32, {1}, std::vector<std::byte>(4)});
  return testing::MemoryCheckpoint(std::move(tensors));
}

// ---- the table itself ----

TEST(ArchitectureTable, is_sorted_and_consistent) {
  std::set<std::string> classes;
  std::set<std::string> types;
  for (std::size_t i = 0; i < architectures().size(); ++i) {
    const Architecture& a = architectures()[i];
    if (i > 0) {
      EXPECT_LT(architectures()[i - 1].name, a.name);
    }
    for (const std::string& name : a.classes) EXPECT_TRUE(classes.insert(name).second) << name;
    for (const std::string& name : a.model_types) EXPECT_TRUE(types.insert(name).second) << name;
    std::set<std::string> names;
    for (const TensorTemplate& t : a.tensors) {
      EXPECT_TRUE(names.insert(t.name).second) << t.name;
      for (const std::string& alias : t.aliases) EXPECT_TRUE(names.insert(alias).second) << alias << " stands for two tensors";
      EXPECT_EQ(t.placement == Placement::layer, t.name.find("${layer_index}") != std::string::npos) << t.name;
      EXPECT_NE(t.role, Role::unknown) << t.name;
      EXPECT_FALSE(is_dropped(a, t.name)) << t.name;
    }
    for (const TensorTemplate& t : a.tensors)
      if (!t.tied_to.empty()) {
        EXPECT_TRUE(names.contains(t.tied_to)) << t.name;
      }
  }
}

TEST(ArchitectureTable, every_expression_can_be_read_and_needs_no_field_that_is_not_there) {
  // A config with every key that any architecture reads.
  const Json config = json(R"({"vocab_size": 96, "hidden_size": 32, "n_embd": 32, "num_attention_heads": 4, "n_head": 4, "intermediate_size": 56,
    "num_hidden_layers": 2, "n_layer": 2, "n_positions": 80, "layer_sizes": [4, 3, 2], "layers": []})");
  for (const Architecture& a : architectures()) {
    const std::vector<TensorSlot> slots = tensor_slots(a, config, num_layers(a, config));
    EXPECT_TRUE(!slots.empty() || a.name == "cnn") << a.name;
    for (const TensorSlot& slot : slots) EXPECT_TRUE(slot.shape.has_value()) << a.name << " " << slot.name;
  }
}

TEST(ArchitectureTable, architectures_are_found_by_class_and_type) {
  EXPECT_EQ(find_architecture(json(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})")), &named("llama"));
  EXPECT_EQ(find_architecture(json(R"({"architectures": ["LlamaForCausalLM"]})")), &named("llama"));
  EXPECT_EQ(find_architecture(json(R"({"model_type": "mlp"})")), &named("mlp"));
  EXPECT_EQ(find_architecture(json(R"({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"})")), nullptr);
  EXPECT_EQ(find_architecture_family(json(R"({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"})")), &named("llama"));
  EXPECT_EQ(find_architecture(json(R"({"architectures": ["LlamaForCausalLM"], "model_type": "mistral"})")), nullptr);
  EXPECT_EQ(find_architecture(json(R"({"architectures": [7], "model_type": "llama"})")), nullptr);
  EXPECT_EQ(find_architecture(json(R"({"architectures": "LlamaForCausalLM"})")), nullptr);
  EXPECT_EQ(find_architecture(json("{}")), nullptr);
  EXPECT_EQ(find_architecture(json("[1]")), nullptr);
}

// ---- shapes and conditions ----

TEST(ArchitectureSlots, grouped_heads_and_explicit_head_dims_shape_the_projections) {
  const Json config =
      json(R"({"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 56})");
  const auto slots = tensor_slots(named("llama"), config, 1);
  EXPECT_EQ(find_slot(slots, "model.layers.0.self_attn.q_proj.weight")->shape, (Shape{48, 32}));
  EXPECT_EQ(find_slot(slots, "model.layers.0.self_attn.k_proj.weight")->shape, (Shape{24, 32}));
  EXPECT_EQ(find_slot(slots, "model.layers.0.self_attn.o_proj.weight")->shape, (Shape{32, 48}));
  const auto fused = tensor_slots(named("phi3"), config, 1);
  EXPECT_EQ(find_slot(fused, "model.layers.0.self_attn.qkv_proj.weight")->shape, (Shape{96, 32}));
  EXPECT_EQ(find_slot(fused, "model.layers.0.mlp.gate_up_proj.weight")->shape, (Shape{112, 32}));
}

TEST(ArchitectureSlots, a_null_and_an_absent_key_may_mean_different_things) {
  const std::string start = R"({"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 16, "intermediate_size": 56)";
  const auto kv_rows = [&](std::string_view architecture, const std::string& more) {
    return (*find_slot(tensor_slots(named(architecture), json(start + more + "}"), 1), "model.layers.0.self_attn.k_proj.weight")->shape)[0];
  };
  EXPECT_EQ(kv_rows("mistral", ", \"num_key_value_heads\": null"), 64) << "as many as heads";
  EXPECT_EQ(kv_rows("mistral", ""), 32) << "the class default of 8";
  EXPECT_EQ(kv_rows("llama", ""), 64);
}

TEST(ArchitectureSlots, biases_are_expected_as_the_config_says_and_optional_otherwise) {
  const std::string start = R"({"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 56, )";
  const auto with = tensor_slots(named("llama"), json(start + R"("attention_bias": true, "mlp_bias": false})"), 1);
  EXPECT_TRUE(find_slot(with, "model.layers.0.self_attn.q_proj.bias")->expected);
  EXPECT_FALSE(find_slot(with, "model.layers.0.self_attn.q_proj.bias")->optional);
  EXPECT_FALSE(find_slot(with, "model.layers.0.mlp.up_proj.bias")->expected);
  EXPECT_TRUE(find_slot(with, "model.layers.0.mlp.up_proj.bias")->optional);
}

TEST(ArchitectureSlots, a_head_is_optional_and_tied_to_the_embedding) {
  const std::string start = R"({"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 56, )";
  const auto slots = tensor_slots(named("llama"), json(start + R"("tie_word_embeddings": true})"), 1);
  const TensorSlot& head = *find_slot(slots, "lm_head.weight");
  EXPECT_TRUE(head.optional);
  EXPECT_FALSE(head.expected);
  EXPECT_THAT(head.tied_names, ElementsAre("model.embed_tokens.weight"));
  EXPECT_TRUE(head.vocabulary_axis);
  EXPECT_TRUE(find_slot(tensor_slots(named("llama"), json(start + R"("tie_word_embeddings": false})"), 1), "lm_head.weight")->expected);
  EXPECT_FALSE(is_tied(named("llama"), json("{}")));
  EXPECT_TRUE(is_tied(named("gemma2"), json("{}")));
  EXPECT_TRUE(is_tied(named("llama"), json(R"({"text_config": {"tie_word_embeddings": true}})")));
}

TEST(ArchitectureSlots, dense_layers_of_a_mixture_have_no_experts_and_the_other_way_round) {
  const Json config = json(R"({"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 56,
    "num_experts": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28, "decoder_sparse_step": 2, "mlp_only_layers": [3],
    "num_key_value_heads": 2})");
  const auto slots = tensor_slots(named("qwen2_moe"), config, 4);
  for (int layer = 0; layer < 4; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.";
    const bool is_moe = layer == 1;  // 0 and 2 by the step, 3 by the list
    EXPECT_EQ(find_slot(slots, prefix + "experts.2.down_proj.weight") != nullptr, is_moe) << layer;
    EXPECT_EQ(find_slot(slots, prefix + "gate.weight") != nullptr, is_moe) << layer;
    EXPECT_EQ(find_slot(slots, prefix + "down_proj.weight") != nullptr, !is_moe) << layer;
  }
  const TensorSlot& expert = *find_slot(slots, "model.layers.1.mlp.experts.2.down_proj.weight");
  EXPECT_EQ(expert.expert, 2);
  EXPECT_EQ(expert.shape, (Shape{32, 20}));
  EXPECT_EQ(with_layer(expert.pattern, 7), "model.layers.7.mlp.experts.2.down_proj.weight");
  EXPECT_EQ(find_slot(slots, "model.layers.1.mlp.experts.3.down_proj.weight"), nullptr);
}

TEST(ArchitectureSlots, configs_of_multimodal_models_are_read_where_they_describe_the_text) {
  const Json config =
      json(R"({"model_type": "x", "text_config": {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 56,
    "num_hidden_layers": 5}})");
  EXPECT_EQ(num_layers(named("llama"), config), 5);
  EXPECT_EQ(find_slot(tensor_slots(named("llama"), config, 1), "model.norm.weight")->shape, (Shape{32}));
}

TEST(ArchitectureSlots, configs_that_make_no_sense_are_refused_and_name_the_key) {
  const std::string good = R"("vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, )";
  const auto message = [](const Architecture& a, const std::string& text) {
    try {
      const Json config = json(text);
      (void)tensor_slots(a, config, num_layers(a, config));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::corrupt) << e.what();
      return e.message();
    }
    ADD_FAILURE() << text;
    return std::string();
  };
  const Architecture& llama = named("llama");
  EXPECT_THAT(message(llama, "{" + good + R"("num_attention_heads": 0})"), HasSubstr("divided by is 0"));
  EXPECT_THAT(message(llama, "{" + good + R"("num_attention_heads": "4"})"), HasSubstr("num_attention_heads is not a whole number"));
  EXPECT_THAT(message(llama, "{" + good + R"("num_attention_heads": -4})"), HasSubstr("-4"));
  EXPECT_THAT(message(llama, "{" + good + R"("num_attention_heads": 4.5})"), HasSubstr("whole number"));
  EXPECT_THAT(message(llama, "{" + good + R"("num_attention_heads": 2000000000000})"), HasSubstr("not between"));
  EXPECT_THAT(message(llama, R"({"num_hidden_layers": 20000})"), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(message(llama, R"({"num_hidden_layers": -1})"), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(message(llama, "{}"), HasSubstr("num_hidden_layers is missing"));
  EXPECT_THAT(message(named("mixtral"), "{" + good + R"("num_attention_heads": 4, "num_local_experts": 1000000})"), HasSubstr("experts"));
  EXPECT_THAT(message(named("qwen3_moe"), "{" + good + R"("num_attention_heads": 4, "decoder_sparse_step": 0})"),
              HasSubstr("decoder_sparse_step is 0"));
  EXPECT_THAT(message(named("mlp"), R"({"layer_sizes": [3, "x"]})"), HasSubstr("layer_sizes[1]"));
  EXPECT_THAT(message(named("cnn"), R"({"layers": 3})"), HasSubstr("list of steps"));
  EXPECT_THAT(message(named("vit"), R"({"num_hidden_layers": 1, "patch_size": 0, "hidden_size": 3, "intermediate_size": 1})"),
              HasSubstr("divided by is 0"));
  // Products that do not fit are refused, not wrapped around.
  EXPECT_THAT(message(named("phi3"), R"({"num_hidden_layers": 1, "vocab_size": 1, "hidden_size": 1, "intermediate_size": 1,
    "num_attention_heads": 2147483648, "num_key_value_heads": 2147483648, "head_dim": 2147483648})"),
              HasSubstr("overflows"));
}

// ---- names ----

TEST(ArchitectureNames, layers_and_experts_are_read_from_names) {
  const auto match = match_name(named("mixtral"), "model.layers.12.block_sparse_moe.experts.3.w2.weight");
  ASSERT_TRUE(match);
  EXPECT_EQ(match->layer, 12);
  EXPECT_EQ(match->expert, 3);
  EXPECT_EQ(match->tensor->role, Role::down);
  for (const char* name : {"model.layers..self_attn.q_proj.weight", "model.layers.-1.self_attn.q_proj.weight",
                           "model.layers.1.self_attn.q_proj.weight2", "model.layers.1x.self_attn.q_proj.weight",
                           "xmodel.layers.1.self_attn.q_proj.weight", "", "model.layers.", "model.layers.99999999999.self_attn.q_proj.weight"})
    EXPECT_FALSE(match_name(named("llama"), name)) << name;
}

TEST(ArchitectureNames, checkpoints_without_the_prefix_are_recognised_by_their_aliases) {
  EXPECT_EQ(match_name(named("gpt2"), "h.3.attn.c_attn.weight")->tensor->name, "transformer.h.${layer_index}.attn.c_attn.weight");
  EXPECT_EQ(role_of(&named("bert"), "encoder.layer.0.attention.output.LayerNorm.gamma"), Role::norm);
  EXPECT_EQ(role_of(&named("bert"), "bert.embeddings.LayerNorm.beta"), Role::norm);
  EXPECT_EQ(role_of(&named("bert"), "bert.encoder.layer.3.attention.output.dense.weight"), Role::o);
  EXPECT_EQ(role_of(&named("bert"), "bert.encoder.layer.3.output.dense.weight"), Role::down);
}

TEST(ArchitectureNames, outputs_can_keep_the_names_of_a_checkpoint_without_prefix) {
  const auto checkpoint = checkpoint_of({"wte.weight", "h.0.ln_1.weight", "h.1.ln_1.weight", "ln_f.weight"});
  const Architecture adapted = with_names_of(named("gpt2"), checkpoint);
  const auto slots = tensor_slots(adapted, json(R"({"vocab_size": 96, "n_embd": 32, "n_layer": 2})"), 2);
  ASSERT_NE(find_slot(slots, "h.1.ln_1.weight"), nullptr);
  EXPECT_THAT(find_slot(slots, "h.1.ln_1.weight")->aliases, ElementsAre("transformer.h.1.ln_1.weight"));
  EXPECT_THAT(find_slot(slots, "lm_head.weight")->tied_names, ElementsAre("wte.weight", "transformer.wte.weight"));
  // With the usual names nothing changes.
  const auto usual = checkpoint_of({"transformer.wte.weight"});
  EXPECT_EQ(with_names_of(named("gpt2"), usual).tensors[0].name, "transformer.wte.weight");
}

TEST(ArchitectureNames, old_buffers_are_dropped_and_biases_are_not_taken_for_them) {
  EXPECT_TRUE(is_dropped(named("llama"), "model.layers.0.self_attn.rotary_emb.inv_freq"));
  EXPECT_TRUE(is_dropped(named("gpt2"), "transformer.h.0.attn.bias"));
  EXPECT_TRUE(is_dropped(named("gpt2"), "h.0.attn.masked_bias"));
  EXPECT_FALSE(is_dropped(named("gpt2"), "transformer.h.0.attn.c_attn.bias"));
  EXPECT_FALSE(is_dropped(named("gpt_neox"), "gpt_neox.layers.0.attention.dense.bias"));
  EXPECT_EQ(role_of(&named("gpt2"), "h.0.attn.bias"), Role::buffer);
}

TEST(ArchitectureNames, names_of_unknown_architectures_are_guessed_at) {
  const std::vector<std::pair<const char*, Role>> cases = {
      {"language_model.model.layers.3.self_attn.q_proj.weight", Role::q},
      {"language_model.model.layers.3.self_attn.q_norm.weight", Role::q_norm},
      {"model.language_model.embed_tokens.weight", Role::embed},
      {"model.layers.0.mlp.experts.12.gate_proj.weight", Role::gate},
      {"model.layers.0.mlp.gate.weight", Role::router},
      {"model.layers.0.mlp.shared_experts.up_proj.weight", Role::shared_up},
      {"visual.blocks.0.attn.qkv.bias", Role::qkv},
      {"visual.blocks.0.norm1.weight", Role::norm},
      {"vision_tower.vision_model.embeddings.patch_embedding.weight", Role::patch},
      {"h.0.ln_2.bias", Role::norm},
      {"roberta.encoder.layer.0.intermediate.dense.weight", Role::up},
      {"lm_head.weight", Role::head},
      {"a.b.c", Role::unknown},
      {"", Role::unknown},
      {"requery.weight", Role::unknown},
  };
  for (const auto& [name, role] : cases) EXPECT_EQ(to_string(role_of(nullptr, name)), to_string(role)) << name;
}

// ---- inference ----

TEST(ArchitectureInference, templates_come_from_names_and_names_stay) {
  const auto a = checkpoint_of(
      {"emb.embed_tokens.weight", "x.blocks.0.w.weight", "x.blocks.0.e.3.w", "x.blocks.1.w.weight", "x.blocks.1.e.3.w", "final.weight", "0.weight"});
  const auto b = checkpoint_of(
      {"emb.embed_tokens.weight", "x.blocks.0.w.weight", "x.blocks.0.e.3.w", "x.blocks.1.w.weight", "final.weight", "0.weight", "lm_head.weight"});
  const std::vector<const Checkpoint*> both = {&a, &b};
  const Architecture inferred = infer_architecture(both);
  EXPECT_TRUE(inferred.inferred);
  EXPECT_EQ(inferred.num_layers, 2);
  EXPECT_THAT(inferred.warnings, IsEmpty());
  const auto slots = tensor_slots(inferred, json("{}"), inferred.num_layers);
  std::vector<std::string> names;
  for (const TensorSlot& slot : slots) names.push_back(slot.name);
  EXPECT_THAT(names, ElementsAre("emb.embed_tokens.weight", "final.weight", "0.weight", "lm_head.weight", "x.blocks.0.w.weight", "x.blocks.0.e.3.w",
                                 "x.blocks.1.w.weight", "x.blocks.1.e.3.w"));
  EXPECT_FALSE(find_slot(slots, "x.blocks.1.w.weight")->optional);
  EXPECT_TRUE(find_slot(slots, "x.blocks.1.e.3.w")->optional) << "b lacks it in one layer";
  EXPECT_EQ(find_slot(slots, "x.blocks.1.e.3.w")->pattern, "x.blocks.${layer_index}.e.3.w") << "only the first number is the layer";
  EXPECT_EQ(find_slot(slots, "final.weight")->placement, Placement::pre);
  const TensorSlot& head = *find_slot(slots, "lm_head.weight");
  EXPECT_TRUE(head.optional && head.vocabulary_axis);
  EXPECT_THAT(head.tied_names, ElementsAre("emb.embed_tokens.weight"));
}

TEST(ArchitectureInference, networks_beside_the_largest_are_kept_tensor_by_tensor) {
  const auto a = checkpoint_of(
      {"text.layers.0.a", "text.layers.0.b", "text.layers.1.a", "text.layers.1.b", "vision.layers.0.a", "vision.layers.1.a", "vision.layers.2.a"});
  const std::vector<const Checkpoint*> one = {&a};
  const Architecture inferred = infer_architecture(one);
  EXPECT_EQ(inferred.num_layers, 2);
  EXPECT_EQ(inferred.warnings.size(), 1U);
  const auto slots = tensor_slots(inferred, json("{}"), inferred.num_layers);
  EXPECT_EQ(slots.size(), 7U);
  EXPECT_EQ(find_slot(slots, "vision.layers.2.a")->placement, Placement::pre);
  EXPECT_EQ(find_slot(slots, "text.layers.1.b")->placement, Placement::layer);
}

TEST(ArchitectureInference, hostile_names_do_no_harm) {
  const auto a =
      checkpoint_of({"x.99999999999999999999.w", "x.9999999.w", "..", ".", "", "x.1", "x.1.", ".0.", "${layer_index}.0.w", "a.${layer_index}.b"});
  const std::vector<const Checkpoint*> one = {&a};
  const Architecture inferred = infer_architecture(one);
  EXPECT_LE(inferred.num_layers, 10'001);
  EXPECT_FALSE(tensor_slots(inferred, json("{}"), Placement::pre).empty());
  EXPECT_TRUE(infer_architecture({}).tensors.empty());
}

// ---- real configs and weights ----

/// Names and shapes, from the headers of all safetensors files of a folder.
std::map<std::string, Shape> read_headers(const fs::path& folder) {
  std::map<std::string, Shape> tensors;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::ifstream file(entry.path(), std::ios::binary);
    std::uint64_t size = 0;
    file.read(reinterpret_cast<char*>(&size), 8);
    std::string header(size, ' ');
    file.read(header.data(), static_cast<std::streamsize>(size));
    const Json root = parse_json(header, entry.path());
    for (const auto& [name, value] : *root.object()) {
      if (name == "__metadata__") continue;
      Shape shape;
      for (const Json& dim : *value.find("shape")->array()) shape.push_back(*dim.integer());
      tensors[name] = shape;
    }
  }
  return tensors;
}

void expect_complete(const fs::path& folder) {
  SCOPED_TRACE(folder.string());
  const Json config = read_json_file(folder / "config.json");
  const Architecture* architecture = find_architecture(config);
  ASSERT_NE(architecture, nullptr);
  const auto slots = tensor_slots(*architecture, config, num_layers(*architecture, config));
  const std::map<std::string, Shape> tensors = read_headers(folder);
  ASSERT_FALSE(tensors.empty());
  std::set<std::string> known;
  for (const TensorSlot& slot : slots) {
    std::vector<std::string> names = {slot.name};
    names.insert(names.end(), slot.aliases.begin(), slot.aliases.end());
    const auto found = std::find_if(names.begin(), names.end(), [&](const std::string& name) { return tensors.contains(name); });
    if (found == names.end()) {
      EXPECT_FALSE(slot.expected) << slot.name << " is not in the file";
      continue;
    }
    EXPECT_TRUE(slot.expected || slot.optional) << slot.name;
    EXPECT_TRUE(known.insert(*found).second) << *found << " fills two slots";
    if (slot.shape) {
      EXPECT_EQ(tensors.at(*found), *slot.shape) << *found;
    } else {
      EXPECT_EQ(architecture->name, "cnn");
    }
    EXPECT_EQ(role_of(architecture, *found), slot.role) << *found;
    EXPECT_NE(slot.role, Role::unknown) << *found;
  }
  for (const auto& [name, shape] : tensors) EXPECT_TRUE(known.contains(name)) << name << " has no slot";
}

TEST(ArchitectureGoldens, every_tensor_of_every_golden_model_has_a_slot_of_its_shape) {
  const fs::path models = fs::path(WEFT_SOURCE_DIR) / ".." / "shared" / "golden" / "logits" / "models";
  if (!fs::exists(models)) GTEST_SKIP() << models << " is not there";
  std::set<std::string> seen;
  for (const auto& entry : fs::directory_iterator(models)) {
    expect_complete(entry.path());
    seen.insert(find_architecture(read_json_file(entry.path() / "config.json"))->name);
  }
  EXPECT_GE(seen.size(), 14U);
}

TEST(ArchitectureGoldens, every_tensor_of_the_zoo_has_a_slot_of_its_shape) {
  const fs::path zoo = fs::path(WEFT_SOURCE_DIR) / ".." / "shared" / "zoo";
  if (!fs::exists(zoo)) GTEST_SKIP() << zoo << " is not there";
  int num_models = 0;
  for (const auto& entry : fs::recursive_directory_iterator(zoo))
    if (entry.path().filename() == "config.json") {
      expect_complete(entry.path().parent_path());
      ++num_models;
    }
  EXPECT_GE(num_models, 40);
}

TEST(ArchitectureGoldens, the_bundled_models_are_complete) {
  for (const char* name : {"tiny-base", "tiny-german", "tiny-python"}) expect_complete(fs::path(WEFT_SOURCE_DIR) / "models" / name);
}

TEST(ArchitectureGoldens, guessing_from_names_agrees_with_the_table_where_there_is_one) {
  const fs::path models = fs::path(WEFT_SOURCE_DIR) / ".." / "shared" / "golden" / "logits" / "models";
  if (!fs::exists(models)) GTEST_SKIP() << models << " is not there";
  for (const auto& entry : fs::directory_iterator(models)) {
    const Architecture* architecture = find_architecture(read_json_file(entry.path() / "config.json"));
    for (const auto& [name, shape] : read_headers(entry.path()))
      EXPECT_EQ(to_string(role_of(nullptr, name)), to_string(role_of(architecture, name))) << name;
  }
}

}  // namespace
}  // namespace weft::model
