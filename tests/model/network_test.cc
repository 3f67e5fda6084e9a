#include "model/network.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "model/text_part.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"

// Networks made of any config of the table, without files.
namespace weft::model {
namespace {

using testing::MemoryCheckpoint;

const char* const kLlama = R"({"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5})";

Json with(const char* config, const char* key, Json value) {
  Json json = parse_json(config, "config.json");
  json.set(key, std::move(value));
  return json;
}

/// Every tensor that the table expects for a config, with small random values.
std::vector<MemoryCheckpoint::Tensor> tensors_of(const Json& config, DType dtype = DType::f32) {
  const Architecture* architecture = find_architecture(config);
  std::vector<MemoryCheckpoint::Tensor> tensors;
  std::uint64_t seed = 1;
  for (const TensorSlot& slot : tensor_slots(*architecture, config, num_layers(*architecture, config))) {
    if (!slot.expected) continue;
    std::size_t count = 1;
    for (const std::int64_t dim : *slot.shape) count *= static_cast<std::size_t>(dim);
    tensors.push_back({slot.name, dtype, *slot.shape, testing::stored_as(dtype, testing::random_values(count, seed++, 0.3F))});
  }
  return tensors;
}

std::unique_ptr<Network> make(const Json& config, std::vector<MemoryCheckpoint::Tensor> tensors, const NetworkOptions& options = {.threads = 2}) {
  return std::make_unique<Network>(std::make_shared<MemoryCheckpoint>(std::move(tensors)), config, options);
}
std::unique_ptr<Network> make(const Json& config) { return make(config, tensors_of(config)); }

MemoryCheckpoint::Tensor& find(std::vector<MemoryCheckpoint::Tensor>& tensors, const std::string& name) {
  for (MemoryCheckpoint::Tensor& tensor : tensors)
    if (tensor.name == name) return tensor;
  throw std::runtime_error("no " + name);
}

std::vector<std::uint32_t> some_ids(std::size_t count, std::uint32_t vocab) {
  std::vector<std::uint32_t> ids;
  for (std::size_t i = 0; i < count; ++i) ids.push_back(static_cast<std::uint32_t>(i * i + 3 * i) % vocab);
  return ids;
}

std::vector<float> run_one(Network& network, std::span<const std::uint32_t> ids, SequenceState* state = nullptr) {
  const TokenChunk chunk{state, ids, {}};
  return network.run({&chunk, 1});
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

TEST(Network, a_long_prompt_gives_the_same_in_slices_pieces_and_beside_others) {
  for (const char* rope : {"null", R"({"rope_type": "linear", "factor": 2})"}) {
    Json config = with(kLlama, "rope_scaling", parse_json(rope, ""));
    config.set("max_position_embeddings", 4096);
    const auto network = make(config);
    const std::vector<std::uint32_t> ids = some_ids(1300, 50), other = some_ids(77, 50);
    const std::vector<float> whole = run_one(*network, ids);
    const auto state = network->new_state();
    std::vector<float> pieces;
    for (std::size_t at = 0, size = 1; at < ids.size(); at += size, size = std::min<std::size_t>(size * 3, ids.size() - at)) {
      const std::vector<float> more = run_one(*network, std::span(ids).subspan(at, std::min(size, ids.size() - at)), state.get());
      pieces.insert(pieces.end(), more.begin(), more.end());
    }
    EXPECT_EQ(state->num_tokens(), 1300);
    EXPECT_LT(largest_difference(whole, pieces), 1e-4);
    const std::vector<TokenChunk> chunks = {{nullptr, other, {}}, {nullptr, ids, {}}};
    const std::vector<float> both = network->run(chunks);
    EXPECT_LT(largest_difference(whole, std::span(both).subspan(77 * 16)), 1e-4);
    EXPECT_LT(largest_difference(run_one(*network, other), std::span(both).first(77 * 16)), 1e-4);
  }
}

TEST(Network, the_fast_path_stays_within_the_error_of_bfloat16) {
  const Json config = parse_json(kLlama, "");
  const auto exact = make(config);
  const auto fast = make(config, tensors_of(config), {.precision = Precision::fast, .threads = 2});
  const std::vector<std::uint32_t> ids = some_ids(40, 50);
  const std::vector<float> a = run_one(*exact, ids), b = run_one(*fast, ids);
  double squares = 0, errors = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    squares += std::pow(static_cast<double>(a[i]), 2);
    errors += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  }
  // Each of some ten roundings in a row changes a number by 2^-9 of it at most.
  EXPECT_LT(std::sqrt(errors / squares), 10 * 0x1p-9);
  EXPECT_GT(errors, 0);
}

TEST(Network, eight_bit_products_stay_within_their_error_for_many_rows_and_few_and_every_layout) {
  for (const char* type : {"llama", "gpt2", "gpt_neox", "phi3"}) {
    SCOPED_TRACE(type);
    Json config = with(kLlama, "model_type", type);
    for (const auto& [key, value] :
         {std::pair("n_embd", 16), std::pair("n_layer", 2), std::pair("n_head", 4), std::pair("n_positions", 64), std::pair("head_dim", 4)})
      config.set(key, value);
    config.set("rotary_pct", 0.5);
    if (std::string(type) == "gpt2") config.set("num_key_value_heads", 4);
    const auto exact = make(config);
    const auto rounded = make(config, tensors_of(config), {.precision = Precision::int8, .threads = 2});
    EXPECT_LT(rounded->weight_bytes(), exact->weight_bytes());
    const std::vector<std::uint32_t> ids = some_ids(40, 50);
    const std::vector<float> a = run_one(*exact, ids), b = run_one(*rounded, ids);
    std::vector<float> c;  // token by token, where inputs are not rounded
    const auto state = rounded->new_state();
    for (const std::uint32_t id : ids) {
      const std::vector<float> row = run_one(*rounded, {&id, 1}, state.get());
      c.insert(c.end(), row.begin(), row.end());
    }
    for (const std::vector<float>* got : {&b, static_cast<const std::vector<float>*>(&c)}) {
      double squares = 0, errors = 0;
      for (std::size_t i = 0; i < a.size(); ++i) {
        squares += std::pow(static_cast<double>(a[i]), 2);
        errors += std::pow(static_cast<double>(a[i]) - static_cast<double>((*got)[i]), 2);
      }
      // A number is off by half a step of 1/127 of the largest beside it at most, 0.29 of one in the mean: some ten such roundings in a row, of
      // numbers about half as large as the largest.
      EXPECT_LT(std::sqrt(errors / squares), 10 * 0.29 / 127 * 2);
      EXPECT_GT(errors, 0);
    }
  }
}

TEST(Network, sequences_count_against_the_memory_and_what_cannot_fit_is_refused_with_both_numbers) {
  const Json config = with(kLlama, "max_position_embeddings", 1'000'000'000);
  const auto network = make(config, tensors_of(config), {.threads = 2, .memory_bytes = 1'000'000});
  EXPECT_TRUE(network->is_resident());
  // Two layers, two key heads of four, keys and values, four bytes.
  EXPECT_GE(network->sequence_bytes(1000, 1), 1000U * 2 * 2 * 4 * 2 * 4);
  EXPECT_LE(network->sequence_bytes(1000, 1), 1000U * 2 * 2 * 4 * 2 * 4 + 10'000);
  EXPECT_TRUE(network->make_room(network->sequence_bytes(1000, 100)));
  try {
    network->make_room(network->sequence_bytes(100'000, 1));
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    EXPECT_THAT(std::string(error.what()),
                ::testing::AllOf(::testing::HasSubstr("12.8 MB"), ::testing::HasSubstr("1.00 MB"), ::testing::HasSubstr("--memory")));
  }
  EXPECT_THROW((void)network->sequence_bytes(std::int64_t{1} << 62, 1), Error);
  // Between the two: what stays of the weights gives way, and the answer is the same.
  const std::uint64_t weights = network->weight_bytes();
  const auto narrow = make(config, tensors_of(config), {.threads = 2, .memory_bytes = weights + network->sequence_bytes(30, 30) - 100});
  EXPECT_TRUE(narrow->is_resident());
  const std::vector<std::uint32_t> ids = some_ids(30, 50);
  const auto state = narrow->new_state(30);
  EXPECT_EQ(run_one(*narrow, ids, state.get()), run_one(*network, ids));
  EXPECT_FALSE(narrow->is_resident());
  EXPECT_LE(state->size_bytes(), narrow->sequence_bytes(30, 30));
  EXPECT_THAT(std::string(narrow->warnings().back()), ::testing::HasSubstr("blocks are read anew"));
}

TEST(Network, the_language_model_inside_a_multimodal_checkpoint_is_found_whatever_its_prefix) {
  const Json config = with(kLlama, "model_type", "gemma3_text");
  Json text = config;
  text.erase("head_dim");
  const auto own = make(text);
  Json whole = parse_json(R"({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {"hidden_size": 8},
    "tie_word_embeddings": true})",
                          "");
  text.set("architectures", Json::Array{Json("Gemma3ForConditionalGeneration")});
  whole.set("text_config", text);
  const std::vector<std::uint32_t> ids = some_ids(20, 50);
  for (const char* prefix : {"language_model.", "model.language_model.", ""}) {
    SCOPED_TRACE(prefix);
    std::vector<MemoryCheckpoint::Tensor> tensors = tensors_of(config);
    for (MemoryCheckpoint::Tensor& tensor : tensors)
      tensor.name = std::string(prefix) + (prefix[0] == 'm' ? tensor.name.substr(tensor.name.find('.') + 1) : tensor.name);
    if (prefix[0] != 0) tensors.push_back({"vision_tower.patch.weight", DType::f32, {2}, testing::stored_as(DType::f32, {1, 2})});
    const auto part = text_part(std::make_shared<MemoryCheckpoint>(std::move(tensors)), whole);
    ASSERT_TRUE(part.has_value());
    Network network(part->checkpoint, part->config, {.threads = 2});
    EXPECT_TRUE(network.warnings().empty());
    EXPECT_EQ(run_one(network, ids), run_one(*own, ids));
  }
  const auto plain = std::make_shared<MemoryCheckpoint>(tensors_of(config));
  EXPECT_FALSE(text_part(plain, config).has_value());
  text.set("model_type", "unheard_of");
  whole.set("text_config", text);
  EXPECT_FALSE(text_part(plain, whole).has_value());
}

TEST(Network, sixteen_bit_weights_give_exactly_what_their_values_in_float32_give) {
  const Json config = parse_json(kLlama, "");
  std::vector<MemoryCheckpoint::Tensor> narrow = tensors_of(config, DType::bf16), wide = narrow;
  for (MemoryCheckpoint::Tensor& tensor : wide) {
    tensor.bytes = testing::stored_as(DType::f32, testing::values_of(DType::bf16, tensor.bytes));
    tensor.dtype = DType::f32;
  }
  const std::vector<std::uint32_t> ids = some_ids(30, 50);
  EXPECT_EQ(run_one(*make(config, narrow), ids), run_one(*make(config, wide), ids));
}

TEST(Network, every_architecture_of_the_table_runs_on_its_own_tensors) {
  for (const Architecture& architecture : architectures()) {
    if (architecture.forward.kind != NetworkKind::decoder && architecture.forward.kind != NetworkKind::encoder) continue;
    SCOPED_TRACE(architecture.name);
    Json config = parse_json(kLlama, "");
    config.set("model_type", architecture.model_types.front());
    config.set("head_dim", 4);
    for (const char* key : {"n_embd"}) config.set(key, 16);
    for (const auto& [key, value] : {std::pair("n_layer", 2), std::pair("n_head", 4), std::pair("n_positions", 64), std::pair("num_local_experts", 4),
                                     std::pair("num_experts", 4), std::pair("num_experts_per_tok", 2), std::pair("moe_intermediate_size", 8),
                                     std::pair("shared_expert_intermediate_size", 12), std::pair("sliding_window", 5)})
      config.set(key, value);
    if (architecture.name == "gpt_neox") config.set("rotary_pct", 0.5);
    const auto network = make(config);
    const std::vector<float> x = run_one(*network, some_ids(20, 50));
    EXPECT_EQ(x.size(), 20U * 16U);
  }
}

TEST(Network, configs_that_make_no_sense_are_refused_by_their_key) {
  const Json sound = parse_json(kLlama, "");
  const auto tensors = tensors_of(sound);
  struct Case {
    const char* key;
    Json value;
    const char* phrase;
  };
  for (const Case& bad : {Case{"hidden_size", Json(), "hidden_size"}, Case{"num_attention_heads", Json(0), "a count that others are divided by is 0"},
                          Case{"num_key_value_heads", Json(3), "evenly"}, Case{"vocab_size", Json(-5), "vocab_size"},
                          Case{"vocab_size", Json(std::int64_t{1} << 30), "vocab_size"}, Case{"hidden_act", Json("warp"), "activation 'warp'"},
                          Case{"rms_norm_eps", Json(-1.0), "rms_norm_eps"}, Case{"rope_theta", Json(0), "rope_theta"},
                          Case{"num_hidden_layers", Json("two"), "num_hidden_layers"},
                          Case{"layer_types", Json(Json::Array{Json("full_attention")}), "1 entries for 2 layers"},
                          Case{"num_hidden_layers", Json(), "num_hidden_layers is missing"},
                          Case{"rope_scaling", Json(Json::Object{{"rope_type", Json("spiral")}}), "rope type 'spiral'"}}) {
    const std::optional<Error> error = testing::error_of([&] { (void)make(with(kLlama, bad.key, bad.value), tensors); });
    ASSERT_TRUE(error.has_value()) << bad.key;
    EXPECT_EQ(error->exit_status(), 2);
    EXPECT_THAT(error->what(), ::testing::HasSubstr(bad.phrase));
  }
  EXPECT_WEFT_ERROR(make(with(kLlama, "model_type", "mamba"), tensors), unsupported, "cannot run models of the type mamba");
  EXPECT_WEFT_ERROR(make(with(kLlama, "model_type", "mlp"), tensors), invalid_argument, "reads images");
}

TEST(Network, tensors_that_contradict_the_config_are_refused_by_name) {
  const Json config = parse_json(kLlama, "");
  const std::string k = "model.layers.1.self_attn.k_proj.weight";
  auto tensors = tensors_of(config);
  std::erase_if(tensors, [&](const auto& tensor) { return tensor.name == k; });
  EXPECT_WEFT_ERROR(make(config, tensors), corrupt, "'model.layers.1.self_attn.k_proj.weight' (k of layer 1) is missing");
  tensors = tensors_of(config);
  EXPECT_WEFT_ERROR(make(with(kLlama, "num_key_value_heads", 4), tensors), corrupt, "has shape [8, 16], but config.json makes it [16, 16]");
  tensors.push_back({"model.layers.0.self_attn.q_proj.bias", DType::f32, {16}, testing::stored_as(DType::f32, std::vector<float>(16))});
  EXPECT_WEFT_ERROR(make(config, tensors), corrupt, "contradicts config.json");
  tensors = tensors_of(config);
  EXPECT_WEFT_ERROR(make(with(kLlama, "num_hidden_layers", 1), tensors), corrupt, "belongs to layer 1, but config.json has 1 layers");
  find(tensors, k) = {k, DType::i32, {8, 16}, std::vector<std::byte>(8 * 16 * 4)};
  EXPECT_WEFT_ERROR(make(config, tensors), unsupported, "holds no plain numbers");
}

TEST(Network, a_tensor_without_a_place_is_said_and_ignored) {
  const Json config = parse_json(kLlama, "");
  auto tensors = tensors_of(config);
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {2}, testing::stored_as(DType::f32, {1, 1})});
  EXPECT_TRUE(make(config, tensors)->warnings().empty());
  tensors.push_back({"model.extra", DType::f32, {2}, testing::stored_as(DType::f32, {1, 1})});
  const auto network = make(config, tensors);
  ASSERT_EQ(network->warnings().size(), 1U);
  EXPECT_NE(network->warnings()[0].find("'model.extra' has no place"), std::string::npos);
}

TEST(Network, ids_beyond_the_vocabulary_and_empty_sequences_are_refused) {
  const auto network = make(parse_json(kLlama, ""));
  const std::vector<std::uint32_t> beyond = {1, 50}, none;
  EXPECT_WEFT_ERROR(run_one(*network, beyond), invalid_argument, "token id 50 is not below 50");
  EXPECT_WEFT_ERROR(run_one(*network, none), invalid_argument, "no tokens");
}

TEST(Network, learned_positions_end_where_they_end) {
  const Json config = parse_json(R"({"model_type": "gpt2", "vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 8})", "");
  const auto network = make(config);
  EXPECT_EQ(run_one(*network, some_ids(8, 50)).size(), 128U);
  EXPECT_WEFT_ERROR(run_one(*network, some_ids(9, 50)), invalid_argument, "9 tokens, but the model has learned 8 positions");
}

TEST(Network, the_first_layer_whose_activations_are_not_finite_is_named) {
  const Json config = parse_json(kLlama, "");
  for (const float poison : {NAN, INFINITY}) {
    auto tensors = tensors_of(config);
    const std::string up = "model.layers.1.mlp.up_proj.weight";
    std::vector<float> values = testing::values_of(DType::f32, find(tensors, up).bytes);
    values[5] = poison;
    find(tensors, up).bytes = testing::stored_as(DType::f32, values);
    const auto network = make(config, tensors);
    EXPECT_WEFT_ERROR(run_one(*network, some_ids(5, 50)), corrupt, "NaN or infinite after layer 1");
    EXPECT_WEFT_ERROR(run_one(*network, some_ids(5, 50)), corrupt, up);
    const auto tolerant = make(config, tensors, {.threads = 1, .allow_non_finite = true});
    EXPECT_FALSE(std::isfinite(run_one(*tolerant, some_ids(5, 50))[0]));
  }
}

TEST(Network, an_overflow_of_finite_weights_is_told_from_bad_weights) {
  const Json config = parse_json(kLlama, "");
  auto tensors = tensors_of(config);
  for (const char* name : {"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"}) {
    std::vector<float> values = testing::values_of(DType::f32, find(tensors, name).bytes);
    for (float& value : values) value = 1e30F;
    find(tensors, name).bytes = testing::stored_as(DType::f32, values);
  }
  const auto network = make(config, tensors);
  EXPECT_WEFT_ERROR(run_one(*network, some_ids(5, 50)), corrupt, "its weights are finite");
}

TEST(Network, taps_see_what_each_linear_layer_reads) {
  struct Tap final : NetworkTap {
    std::map<std::pair<int, Role>, std::size_t> rows;
    void linear_input(int layer, Role role, int, std::size_t, const Rows& input) override { rows[{layer, role}] += input.num_rows; }
  } tap;
  const auto network = make(parse_json(kLlama, ""));
  const std::vector<std::uint32_t> ids = some_ids(600, 50);
  const TokenChunk chunk{nullptr, ids, {}};
  (void)network->run({&chunk, 1}, &tap);
  for (const int layer : {0, 1})
    for (const Role role : {Role::q, Role::o, Role::up, Role::down}) EXPECT_EQ((tap.rows[{layer, role}]), 600U) << to_string(role);
}

}  // namespace
}  // namespace weft::model
