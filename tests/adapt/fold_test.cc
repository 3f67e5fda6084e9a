#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "adapt/adapter.h"
#include "adapt/folded_model.h"
#include "checkpoint/json.h"
#include "support/errors.h"
#include "support/golden.h"
#include "support/memory_checkpoint.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"

namespace weft::adapt {
namespace {

namespace fs = std::filesystem;
using testing::bytes_of;
using testing::GoldenModel;
using testing::MemoryCheckpoint;
using testing::StoredTensor;
using testing::TemporaryFolder;
using testing::write_file;

const fs::path kData = fs::path(WEFT_SOURCE_DIR) / "tests" / "data" / "peft";

StoredTensor floats(std::string name, std::vector<std::int64_t> shape, const std::vector<float>& values) {
  return {std::move(name), "F32", std::move(shape), bytes_of(values)};
}

/// Writes an adapter into a folder.
fs::path put_adapter(const TemporaryFolder& folder, std::string_view config, const std::vector<StoredTensor>& tensors) {
  const fs::path path = folder / "adapter";
  write_file(path / "adapter_config.json", config);
  write_file(path / "adapter_model.safetensors", testing::safetensors_of_types(tensors));
  return path;
}

std::shared_ptr<const Checkpoint> memory_model(const std::string& name, Shape shape, const std::vector<float>& values) {
  return std::make_shared<MemoryCheckpoint>(
      std::vector<MemoryCheckpoint::Tensor>{{name, DType::f32, std::move(shape), testing::stored_as(DType::f32, values)}});
}

std::vector<float> read(const Checkpoint& checkpoint, std::string_view name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<std::byte> bytes(tensor.size_bytes);
  checkpoint.read_bytes(tensor, 0, bytes);
  return testing::values_of(tensor.dtype, bytes);
}

std::shared_ptr<const Checkpoint> fold(std::shared_ptr<const Checkpoint> base, const fs::path& adapter, const FoldOptions& options = {}) {
  return fold_adapter(std::move(base), std::make_shared<const Adapter>(open_adapter(adapter)), options);
}

// ---- What PEFT computes -------------------------------------------------------------------------------------------------------------------

TEST(Fold, every_kind_gives_what_peft_gives) {
  const GoldenModel bases = testing::read_safetensors(kData / "bases.safetensors"),
                    adapters = testing::read_safetensors(kData / "adapters.safetensors"),
                    expected = testing::read_safetensors(kData / "expected.safetensors");
  const TemporaryFolder folder;
  for (const std::string base : {"llama", "gpt2"}) {
    std::vector<StoredTensor> tensors;
    for (const auto& [name, tensor] : bases)
      if (name.starts_with(base + "/")) tensors.push_back({name.substr(base.size() + 1), tensor.dtype, tensor.shape, tensor.bytes});
    write_file(folder / base / "model.safetensors", testing::safetensors_of_types(tensors));
    write_file(folder / base / "config.json", testing::read_file(kData / (base + ".config.json")));
  }
  const Json index = read_json_file(kData / "index.json");
  std::set<std::string> kinds;
  for (const Json& c : *index.array()) {
    const std::string name = *c.find("name")->string(), base = *c.find("base")->string();
    SCOPED_TRACE(name);
    kinds.insert(*c.find("config")->find("peft_type")->string());
    std::vector<StoredTensor> tensors;
    for (const auto& [key, tensor] : adapters)
      if (key.starts_with(name + "/")) tensors.push_back({"base_model." + key.substr(name.size() + 1), tensor.dtype, tensor.shape, tensor.bytes});
    write_file(folder / name / "adapter_config.json", write_json(*c.find("config")));
    write_file(folder / name / "adapter_model.safetensors", testing::safetensors_of_types(tensors));

    const auto plain = open_checkpoint((folder / base).string());
    const auto folded = open_checkpoint((folder / base).string() + "+" + (folder / name).string());
    std::set<std::string> changed;
    for (const auto& [key, want] : expected) {
      if (!key.starts_with(name + "/")) continue;
      const std::string tensor = key.substr(name.size() + 1);
      changed.insert(tensor);
      SCOPED_TRACE(tensor);
      const std::vector<double> values = want.values();
      const std::vector<float> got = read(*folded, tensor);
      ASSERT_EQ(got.size(), values.size());
      double largest = 0, worst = 0;
      for (const double v : values) largest = std::max(largest, std::abs(v));
      for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(got[i]) - values[i]));
      EXPECT_LE(worst, 2e-6 * largest);
    }
    EXPECT_FALSE(changed.empty());
    for (const TensorInfo& tensor : plain->tensors())
      if (!changed.contains(tensor.name)) {
        EXPECT_EQ(read(*folded, tensor.name), read(*plain, tensor.name)) << tensor.name;
      }
  }
  EXPECT_GE(kinds.size(), 20u);
}

TEST(Fold, any_part_of_a_tensor_is_that_part_of_the_whole) {
  const TemporaryFolder folder;
  const std::vector<float> w = testing::random_values(60, 1), a = testing::random_values(20, 2), b = testing::random_values(12, 3);
  const fs::path adapter =
      put_adapter(folder, R"({"peft_type":"LORA","r":2,"lora_alpha":3})",
                  {floats("base_model.model.m.lora_A.weight", {2, 10}, a), floats("base_model.model.m.lora_B.weight", {6, 2}, b)});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto model = fold(memory_model("m.weight", {6, 10}, w), adapter, {.dtype = dtype});
    const TensorInfo& tensor = model->tensor("m.weight");
    std::vector<std::byte> whole(tensor.size_bytes);
    model->read_bytes(tensor, 0, whole);
    for (std::size_t begin = 0; begin < whole.size(); begin += 3)
      for (std::size_t size = 1; begin + size <= whole.size(); size += 11) {
        std::vector<std::byte> part(size);
        model->read_bytes(tensor, begin, part);
        ASSERT_EQ(std::memcmp(part.data(), whole.data() + begin, size), 0) << begin << " " << size;
      }
  }
}

TEST(Fold, the_worked_numbers_of_the_format_hold) {
  const TemporaryFolder folder;
  const auto w = memory_model("m.weight", {2, 2}, {1, 2, 3, 4});
  const std::vector<StoredTensor> lora = {floats("base_model.model.m.lora_A.weight", {1, 2}, {1, -1}),
                                          floats("base_model.model.m.lora_B.weight", {2, 1}, {0.5F, 2})};
  EXPECT_EQ(read(*fold(w, put_adapter(folder, R"({"peft_type":"LORA","r":1,"lora_alpha":2})", lora)), "m.weight"), (std::vector<float>{2, 1, 7, 0}));
  std::vector<StoredTensor> dora = lora;
  dora.push_back(floats("base_model.model.m.lora_magnitude_vector", {2}, {std::sqrt(5.0F), 5}));
  const std::vector<float> got =
      read(*fold(w, put_adapter(folder, R"({"peft_type":"LORA","r":1,"lora_alpha":2,"use_dora":true})", dora)), "m.weight");
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(got[i], (std::vector<float>{2, 1, 5, 0})[i], 1e-6);
  EXPECT_EQ(read(*fold(w, put_adapter(folder, R"({"peft_type":"IA3"})", {floats("base_model.model.m.ia3_l", {2, 1}, {2, 0.5F})})), "m.weight"),
            (std::vector<float>{2, 4, 1.5F, 2}));
  EXPECT_EQ(read(*fold(w, put_adapter(folder, R"({"peft_type":"LOKR","r":1,"alpha":1})",
                                      {floats("base_model.model.m.lokr_w1", {1, 2}, {1, 2}), floats("base_model.model.m.lokr_w2", {2, 1}, {1, 3})})),
                 "m.weight"),
            (std::vector<float>{2, 4, 6, 10}));
  EXPECT_EQ(
      read(*fold(w, put_adapter(folder, R"({"peft_type":"MISS","r":1})", {floats("base_model.model.m.miss_block", {1, 2}, {1, 2})})), "m.weight"),
      (std::vector<float>{2, 3, 5, 6}));
}

TEST(Fold, a_scale_goes_part_of_the_way) {
  const TemporaryFolder folder;
  const auto w = memory_model("m.weight", {2, 2}, {1, 2, 3, 4});
  const fs::path adapter =
      put_adapter(folder, R"({"peft_type":"LORA","r":1,"lora_alpha":2})",
                  {floats("base_model.model.m.lora_A.weight", {1, 2}, {1, -1}), floats("base_model.model.m.lora_B.weight", {2, 1}, {0.5F, 2})});
  EXPECT_EQ(read(*fold(w, adapter, {.scale = 0.5}), "m.weight"), (std::vector<float>{1.5F, 1.5F, 5, 2}));
  EXPECT_EQ(read(*fold(w, adapter, {.scale = 0}), "m.weight"), (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(read(*fold(w, adapter, {.scale = -1}), "m.weight"), (std::vector<float>{0, 3, -1, 8}));
}

TEST(Fold, a_tied_head_keeps_its_values_when_only_the_embedding_changes) {
  const TemporaryFolder folder;
  write_file(folder / "model" / "config.json",
             R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","tie_word_embeddings":true,"vocab_size":3,"hidden_size":2,
      "intermediate_size":2,"num_hidden_layers":0,"num_attention_heads":1})");
  write_file(folder / "model" / "model.safetensors", testing::safetensors_of_types({floats("model.embed_tokens.weight", {3, 2}, {0, 0, 0, 0, 0, 0}),
                                                                                    floats("model.norm.weight", {2}, {1, 1})}));
  const fs::path adapter = put_adapter(folder, R"({"peft_type":"LORA","r":1,"lora_alpha":1})",
                                       {floats("base_model.model.model.embed_tokens.lora_embedding_A", {1, 3}, {1, 0, 2}),
                                        floats("base_model.model.model.embed_tokens.lora_embedding_B", {2, 1}, {1, 3})});
  const auto model = open_checkpoint((folder / "model").string() + "+" + adapter.string());
  EXPECT_EQ(read(*model, "model.embed_tokens.weight"), (std::vector<float>{1, 3, 0, 0, 2, 6}));
  EXPECT_EQ(read(*model, "lm_head.weight"), (std::vector<float>{0, 0, 0, 0, 0, 0}));
  Json config = read_json_file(folder / "model" / "config.json");
  std::vector<std::string> warnings;
  follow_in_config(*model, config, warnings);
  EXPECT_EQ(config.find("tie_word_embeddings")->boolean(), false);
}

// ---- What cannot be folded ----------------------------------------------------------------------------------------------------------------

class BadAdapter : public ::testing::Test {
 protected:
  void expect(std::string_view config, const std::vector<StoredTensor>& tensors, ErrorCode code, std::string_view phrase, FoldOptions options = {}) {
    const TemporaryFolder folder;
    const auto error = testing::error_of([&] { (void)read(*fold(w_, put_adapter(folder, config, tensors), options), "m.weight"); });
    ASSERT_TRUE(error) << phrase;
    EXPECT_EQ(to_string(error->code()), to_string(code)) << error->what();
    EXPECT_NE(std::string_view(error->what()).find(phrase), std::string_view::npos) << error->what();
  }
  static std::vector<StoredTensor> lora(std::string module, std::int64_t in, std::int64_t out, std::int64_t r_a, std::int64_t r_b, float value = 1) {
    const auto n = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); };
    return {floats("base_model.model." + module + ".lora_A.weight", {r_a, in}, std::vector<float>(n(r_a, in), value)),
            floats("base_model.model." + module + ".lora_B.weight", {out, r_b}, std::vector<float>(n(out, r_b), value))};
  }
  std::shared_ptr<const Checkpoint> w_ = memory_model("m.weight", {2, 3}, {1, 2, 3, 4, 5, 6});
  static constexpr std::string_view kOne = R"({"peft_type":"LORA","r":1,"lora_alpha":2,"base_model_name_or_path":"org/other"})";
};

TEST_F(BadAdapter, made_for_another_model_names_module_and_shapes) {
  expect(kOne, lora("m", 4, 2, 1, 1), ErrorCode::invalid_argument,
         "module 'm': 'base_model.model.m.lora_A.weight' is [1, 4] but the model's 'm.weight' is [2, 3]");
  expect(kOne, lora("m", 3, 3, 1, 1), ErrorCode::invalid_argument, "made for another model: 'org/other'");
  expect(kOne, lora("x.y", 3, 2, 1, 1), ErrorCode::invalid_argument, "the model has no 'x.y.weight'");
  std::vector<StoredTensor> two = lora("x", 3, 2, 1, 1);
  for (StoredTensor& t : lora("y", 3, 2, 1, 1)) two.push_back(std::move(t));
  expect(kOne, two, ErrorCode::invalid_argument, "lacks 2 of the 2 modules that the adapter changes: x, y");
  std::vector<StoredTensor> bias = lora("m", 3, 2, 1, 1);
  bias.push_back(floats("base_model.model.m.lora_B.bias", {2}, {1, 1}));
  expect(kOne, bias, ErrorCode::invalid_argument, "has none there");
}

TEST_F(BadAdapter, that_contradicts_itself_is_corrupt) {
  expect(kOne, lora("m", 3, 2, 1, 2), ErrorCode::corrupt, "their ranks are 2 and 1");
  expect(R"({"peft_type":"LORA","r":4})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "rank 4 by adapter_config.json");
  expect(R"({"peft_type":"LORA","r":1,"rank_pattern":{"m":0}})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "the rank of 'm' is 0");
  expect(R"({"peft_type":"LORA","r":-1})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "makes no sense");
  expect(R"({"peft_type":"LORA","r":1e9})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "makes no sense");
  expect(R"({"peft_type":"LORA","r":1,"lora_alpha":NaN})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "");
  std::vector<StoredTensor> half = lora("m", 3, 2, 1, 1);
  half.pop_back();
  expect(kOne, half, ErrorCode::corrupt, "has no 'lora_B'");
  std::vector<StoredTensor> twice = lora("m", 3, 2, 1, 1);
  twice.push_back(floats("base_model.model.m.lora_A.default.weight", {1, 3}, {1, 1, 1}));
  expect(kOne, twice, ErrorCode::corrupt, "the same part of one module");
  expect(kOne, lora("base_model.model.m", 3, 2, 1, 1), ErrorCode::corrupt, "prefix twice");
  expect(kOne, lora("../m", 3, 2, 1, 1), ErrorCode::corrupt, "no name of a module");
  expect(kOne, lora("m", 3, 2, 1, 1, NAN), ErrorCode::corrupt, "NaN or infinite");
  expect(R"({"peft_type":"LORA","r":1,"use_dora":true})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "no magnitudes");
  expect(R"({"peft_type":"LORA","r":1,"layer_replication":[[0,9]]})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "layer_replication");
  expect(R"({"r":1})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "no 'peft_type'");
  expect(R"([1])", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "no JSON object");
  expect(kOne, {}, ErrorCode::corrupt, "changes no module");
}

TEST_F(BadAdapter, of_kinds_that_weft_cannot_fold_is_unsupported) {
  expect(R"({"peft_type":"PROMPT_TUNING"})", {floats("prompt_embeddings", {2, 3}, {1, 1, 1, 1, 1, 1})}, ErrorCode::unsupported, "changes no weights");
  expect(R"({"peft_type":"LORA","r":1,"init_lora_weights":"pissa_niter_4"})", lora("m", 3, 2, 1, 1), ErrorCode::unsupported, "--residual-base");
  expect(R"({"peft_type":"LORA","r":1,"use_qalora":true})", lora("m", 3, 2, 1, 1), ErrorCode::unsupported, "use_qalora");
  expect(R"({"peft_type":"LORA","r":1,"rank_pattern":{"(?=x)m":1}})", lora("m", 3, 2, 1, 1), ErrorCode::unsupported, "cannot be used");
  expect(R"({"peft_type":"FOURIERFT"})", {floats("base_model.model.m.fourierft_spectrum", {7}, {1, 1, 1, 1, 1, 1, 1})}, ErrorCode::invalid_argument,
         "is [7] but the model's");
  expect(R"({"peft_type":"FOURIERFT","random_loc_seed":-1})", {floats("base_model.model.m.fourierft_spectrum", {1}, {1})}, ErrorCode::corrupt,
         "'random_loc_seed' in adapter_config.json is no whole number");
  expect(R"({"peft_type":"BOFT"})",
         {floats("base_model.model.m.boft_R", {2, 3, 1, 1}, std::vector<float>(6, 0)), floats("base_model.model.m.boft_s", {2, 1}, {1, 1})},
         ErrorCode::corrupt, "does not make 2 butterfly factors");
  expect(R"({"peft_type":"VERA","r":1})",
         {floats("base_model.model.m.vera_lambda_b", {2}, {1, 1}), floats("base_model.model.m.vera_lambda_d", {1}, {1})}, ErrorCode::unsupported,
         "does not hold 'vera_A'");
  expect(R"({"peft_type":"VERA","r":8193,"save_projection":false})",
         {floats("base_model.model.m.vera_lambda_b", {2}, {1, 1}), floats("base_model.model.m.vera_lambda_d", {8193}, std::vector<float>(8193))},
         ErrorCode::unsupported, "projections of rank 8193");
  expect(R"({"peft_type":"VERA","r":2,"save_projection":false})",
         {floats("base_model.model.m.vera_lambda_b", {2}, {1, 1}), floats("base_model.model.m.vera_lambda_d", {1}, {1})}, ErrorCode::corrupt,
         "has rank 2 by adapter_config.json");
  expect(R"({"peft_type":"LORA","r":1})",
         {{"base_model.model.m.lora_A.weight", "I8", {1, 3}, "abc"}, {"base_model.model.m.lora_B.weight", "I8", {2, 1}, "ab"}},
         ErrorCode::unsupported, "stored as I8");
  // What overflows the model's type is told, not written.
  expect(R"({"peft_type":"LORA","r":1,"lora_alpha":100000})", lora("m", 3, 2, 1, 1), ErrorCode::corrupt, "F16 cannot hold", {.dtype = DType::f16});
}

TEST(Fold, a_model_or_adapter_that_is_not_there_is_named) {
  const TemporaryFolder folder;
  write_file(folder / "model" / "config.json", "{}");
  write_file(folder / "model" / "model.safetensors", testing::safetensors_of({{"m.weight", {1}}}));
  const std::string model = (folder / "model").string();
  EXPECT_WEFT_ERROR(open_checkpoint(model + "+" + (folder / "nothing").string()), not_found, "nothing");
  EXPECT_WEFT_ERROR(open_checkpoint((folder / "nothing").string() + "+" + model), not_found, "nothing");
  EXPECT_WEFT_ERROR(open_checkpoint(model + "+" + model), not_found, "it is a model");
  EXPECT_WEFT_ERROR(open_checkpoint(model + "+"), invalid_argument, "empty adapter");
  // A folder may have a plus in its name.
  write_file(folder / "a+b" / "model.safetensors", testing::safetensors_of({{"m.weight", {1}}}));
  EXPECT_EQ(open_checkpoint((folder / "a+b").string())->tensors().size(), 1u);
}

TEST(Fold, two_adapters_are_folded_one_after_the_other) {
  const TemporaryFolder folder, other;
  write_file(folder / "model.safetensors", testing::safetensors_of_types({floats("m.weight", {1, 2}, {1, 1})}));
  const auto one = [](const TemporaryFolder& to, float value) {
    return put_adapter(to, R"({"peft_type":"LORA","r":1,"lora_alpha":1})",
                       {floats("base_model.model.m.lora_A.weight", {1, 2}, {value, 0}), floats("base_model.model.m.lora_B.weight", {1, 1}, {1})});
  };
  const auto model = open_checkpoint((folder / "model.safetensors").string() + "+" + one(folder, 2).string() + "+" + one(other, 3).string());
  EXPECT_EQ(read(*model, "m.weight"), (std::vector<float>{6, 1}));
}

TEST(Fold, the_adapters_of_the_shared_goldens_are_right) {
  const testing::GoldenIndex index = testing::read_golden_index(fs::path(WEFT_SOURCE_DIR) / ".." / "shared" / "golden" / "peft" / "index.json");
  if (index.cases.empty()) GTEST_SKIP() << "no ../shared/golden/peft here";
  for (const Json& c : index.cases) {
    SCOPED_TRACE(*c.find("name")->string());
    const auto folded =
        open_checkpoint((index.root / *c.find("base")->string()).string() + "+" + (index.root / *c.find("adapter")->string()).string());
    for (const auto& [key, want] : testing::read_safetensors(index.root / *c.find("expected")->string())) {
      if (!key.starts_with("merged.")) continue;
      const std::vector<double> values = want.values();
      const std::vector<float> got = read(*folded, key.substr(7));
      ASSERT_EQ(got.size(), values.size());
      double largest = 0;
      for (const double v : values) largest = std::max(largest, std::abs(v));
      for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], values[i], 2e-6 * largest) << key << " " << i;
    }
  }
}

}  // namespace
}  // namespace weft::adapt
