#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "adapt/folded_model.h"
#include "adapt/gguf_lora.h"
#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "engine/tiny_llama.h"
#include "math/convert.h"
#include "support/errors.h"
#include "support/gguf_bytes.h"
#include "support/read_all.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/adapter.h"
#include "weft/edit.h"
#include "weft/inspect.h"
#include "weft/merge.h"
#include "weft/recipe.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::bytes_of;
using testing::GgufBytes;
using testing::read_all;
using testing::safetensors_of_types;
using testing::StoredTensor;
using testing::TemporaryFolder;
using testing::TinyLlama;
using testing::write_file;

const std::string kModels = WEFT_SOURCE_DIR "/models/";
const std::string kBase = kModels + "tiny-base", kLora = kModels + "tiny-german-lora";
const fs::path kShared = fs::path(WEFT_SOURCE_DIR) / "../shared";

std::vector<float> values_of(const fs::path& model, std::string_view name) {
  const auto checkpoint = open_checkpoint(model.string());
  const TensorInfo& tensor = checkpoint->tensor(name);
  std::vector<std::byte> bytes(tensor.size_bytes);
  checkpoint->read_bytes(tensor, 0, bytes);
  std::vector<float> values(tensor.num_elements);
  math::decode(tensor.dtype, bytes, values);
  return values;
}

StoredTensor floats(std::string name, std::vector<std::int64_t> shape, const std::vector<float>& values) {
  return {std::move(name), "F32", std::move(shape), bytes_of(values)};
}

std::vector<float> counted(std::size_t count, float first = 1) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = first + static_cast<float>(i);
  return values;
}

void write_adapter(const fs::path& folder, const std::string& config, const std::vector<StoredTensor>& tensors) {
  write_file(folder / "adapter_config.json", config);
  write_file(folder / "adapter_model.safetensors", safetensors_of_types(tensors));
}

/// Largest difference of two models, by the largest value of each tensor.
double difference(const fs::path& a, const fs::path& b) {
  double worst = 0;
  const auto model = open_checkpoint(a.string()), other = open_checkpoint(b.string());
  EXPECT_EQ(model->tensors().size(), other->tensors().size());
  for (const TensorInfo& tensor : model->tensors()) {
    const std::vector<float> x = values_of(a, tensor.name), y = values_of(b, tensor.name);
    EXPECT_EQ(x.size(), y.size()) << tensor.name;
    double largest = 1e-30, error = 0;
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(x[i])));
      error = std::max(error, std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i])));
    }
    worst = std::max(worst, error / largest);
  }
  return worst;
}

// ---- Adapters in GGUF files ---------------------------------------------------------------------------------------------------------------

TEST(GgufLora, an_adapter_comes_back_from_a_gguf_file_bit_for_bit) {
  const TemporaryFolder folder;
  static_cast<void>(convert_adapter(kLora, folder / "lora.gguf", "gguf", kBase));
  static_cast<void>(convert(kBase, folder / "base.gguf"));
  for (const std::string& base : {kBase, (folder / "base.gguf").string()}) {
    const fs::path out = folder / (base == kBase ? "back" : "back-by-gguf");
    static_cast<void>(convert_adapter((folder / "lora.gguf").string(), out, "peft", base));
    EXPECT_EQ(read_all(out / "adapter_model.safetensors"), read_all(fs::path(kLora) / "adapter_model.safetensors"));
    const Json config = read_json_file(out / "adapter_config.json");
    EXPECT_EQ(config.find("r")->integer(), 4);
    EXPECT_EQ(config.find("lora_alpha")->integer(), 4);
  }
  const AdapterInfo info = inspect_adapter((folder / "lora.gguf").string());
  EXPECT_EQ(info.kind, "LORA");
  ASSERT_EQ(info.modules.size(), 4u);
  EXPECT_EQ(info.modules.front().name, "blk.0.attn_q");
  EXPECT_EQ(info.modules.front().rank, 4u);
  EXPECT_EQ(info.modules.front().scale, 1.0);
}

/// Llama of one layer, width 16, four query heads and two key heads of four rows.
TinyLlama four_heads() {
  TinyLlama model;
  model.replace_in_config("\"hidden_size\":4", "\"hidden_size\":16");
  model.replace_in_config("\"num_attention_heads\":2", "\"num_attention_heads\":4");
  model.replace_in_config("\"num_key_value_heads\":1", "\"num_key_value_heads\":2");
  model.tensors.clear();
  for (const auto& [name, shape] :
       std::vector<std::pair<std::string, std::vector<std::int64_t>>>{{"model.embed_tokens.weight", {8, 16}},
                                                                      {"model.layers.0.input_layernorm.weight", {16}},
                                                                      {"model.layers.0.self_attn.q_proj.weight", {16, 16}},
                                                                      {"model.layers.0.self_attn.k_proj.weight", {8, 16}},
                                                                      {"model.layers.0.self_attn.v_proj.weight", {8, 16}},
                                                                      {"model.layers.0.self_attn.o_proj.weight", {16, 16}},
                                                                      {"model.layers.0.post_attention_layernorm.weight", {16}},
                                                                      {"model.layers.0.mlp.gate_proj.weight", {6, 16}},
                                                                      {"model.layers.0.mlp.up_proj.weight", {6, 16}},
                                                                      {"model.layers.0.mlp.down_proj.weight", {16, 6}},
                                                                      {"model.norm.weight", {16}},
                                                                      {"lm_head.weight", {8, 16}}})
    model.add(name, shape);
  return model;
}

TEST(GgufLora, names_rows_and_scales_are_those_of_llama_cpp) {
  const TemporaryFolder folder;
  four_heads().write(folder / "base");
  const std::string prefix = "base_model.model.model.";
  // Ranks 2 and 1; scales 8/2 and 4/1.
  write_adapter(
      folder / "lora",
      R"({"peft_type":"LORA","r":2,"lora_alpha":8,"rank_pattern":{"k_proj":1},"alpha_pattern":{"k_proj":4},"target_modules":["q_proj"]})",
      {floats(prefix + "embed_tokens.lora_embedding_A", {2, 8}, counted(16)), floats(prefix + "embed_tokens.lora_embedding_B", {16, 2}, counted(32)),
       floats(prefix + "layers.0.self_attn.k_proj.lora_A.weight", {1, 16}, counted(16)),
       floats(prefix + "layers.0.self_attn.k_proj.lora_B.weight", {8, 1}, counted(8, 0)),
       floats(prefix + "layers.0.self_attn.q_proj.lora_A.weight", {2, 16}, counted(32)),
       floats(prefix + "layers.0.self_attn.q_proj.lora_B.weight", {16, 2}, counted(32, 0))});
  static_cast<void>(convert_adapter((folder / "lora").string(), folder / "lora.gguf", "gguf", (folder / "base").string()));
  const auto file = open_checkpoint((folder / "lora.gguf").string());
  const GgufMetadata& metadata = as_gguf(*file)->gguf_metadata();
  EXPECT_EQ(metadata.entries().front().first, "general.architecture");
  EXPECT_EQ(metadata.text("general.architecture"), "llama");
  EXPECT_EQ(metadata.text("general.type"), "adapter");
  EXPECT_EQ(metadata.text("adapter.type"), "lora");
  EXPECT_EQ(metadata.number("adapter.lora.alpha"), 8.0);
  const auto values = [&](const char* name) { return values_of(folder / "lora.gguf", name); };
  // Heads of four rows: 0, 2, 1, 3.
  EXPECT_EQ(values("blk.0.attn_q.weight.lora_a"), counted(32));
  const std::vector<float> q = values("blk.0.attn_q.weight.lora_b");
  EXPECT_EQ(std::vector<float>(q.begin() + 8, q.begin() + 16), (std::vector<float>{8, 9, 12, 13, 10, 11, 14, 15}));
  // llama.cpp scales by 8/1 where 4/1 is meant.
  EXPECT_EQ(values("blk.0.attn_k.weight.lora_b"), (std::vector<float>{0, 1, 0.5F, 1.5F, 2, 3, 2.5F, 3.5F}));
  EXPECT_EQ(file->tensor("token_embd.weight.lora_a").shape, (Shape{8, 2}));
  EXPECT_EQ(values("token_embd.weight.lora_a"), (std::vector<float>{1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 8, 16}));
  EXPECT_EQ(values("token_embd.weight.lora_b"), counted(32));
  EXPECT_EQ(file->tensor("blk.0.attn_q.weight.lora_b").shape, (Shape{16, 2}));

  static_cast<void>(fold_adapter((folder / "base").string(), (folder / "lora").string(), folder / "folded"));
  static_cast<void>(fold_adapter((folder / "base").string(), (folder / "lora.gguf").string(), folder / "by-gguf"));
  EXPECT_EQ(read_all(folder / "by-gguf"), read_all(folder / "folded"));
}

TEST(GgufLora, every_plain_lora_of_the_goldens_folds_the_same_out_of_a_gguf_file) {
  const fs::path index = kShared / "golden/peft/index.json";
  if (!fs::exists(index)) GTEST_SKIP() << "no reference adapters at " << index;
  std::size_t num_cases = 0;
  const Json golden = read_json_file(index);
  for (const Json& one : *golden.find("cases")->array()) {
    const std::string name = *one.find("name")->string();
    if (*one.find("peft_type")->string() != "LORA") continue;
    SCOPED_TRACE(name);
    const TemporaryFolder folder;
    const std::string base = (index.parent_path() / *one.find("base")->string()).string();
    const std::string adapter = (index.parent_path() / *one.find("adapter")->string()).string();
    try {
      static_cast<void>(convert_adapter(adapter, folder / "lora.gguf", "gguf", base));
    } catch (const Error& error) {
      // DoRA, biases, saved modules: the format has no place for them.
      EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
      continue;
    }
    ++num_cases;
    FoldAdapterOptions options;
    options.dtype = DType::f32;
    static_cast<void>(fold_adapter(base, adapter, folder / "folded", options));
    static_cast<void>(fold_adapter(base, (folder / "lora.gguf").string(), folder / "by-gguf", options));
    // Where ranks and scales differ, B is multiplied and rounded to float32 once: half a step of the largest change.
    EXPECT_LE(difference(folder / "folded", folder / "by-gguf"), name == "lora-patterns" ? 0x1p-22 : 0.0);
  }
  EXPECT_GE(num_cases, 8u);
}

TEST(GgufLora, experts_are_stacked_and_come_apart_again) {
  const TemporaryFolder folder;
  TinyLlama model = four_heads();
  model.replace_in_config("LlamaForCausalLM", "MixtralForCausalLM");
  model.replace_in_config("\"llama\"", "\"mixtral\"");
  model.replace_in_config("\"vocab_size\"", "\"num_local_experts\":2,\"num_experts_per_tok\":1,\"vocab_size\"");
  model.write(folder / "base");
  std::vector<StoredTensor> tensors;
  for (const char* expert : {"0", "1"})
    for (const char* part : {"w1", "w3"}) {
      const std::string module = std::string("base_model.model.model.layers.0.block_sparse_moe.experts.") + expert + "." + part;
      tensors.push_back(floats(module + ".lora_A.weight", {2, 16}, counted(32, static_cast<float>(tensors.size()))));
      tensors.push_back(floats(module + ".lora_B.weight", {6, 2}, counted(12, static_cast<float>(tensors.size()))));
    }
  const std::string config = R"({"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":["w1","w3"]})";
  write_adapter(folder / "lora", config, tensors);
  static_cast<void>(convert_adapter((folder / "lora").string(), folder / "lora.gguf", "gguf", (folder / "base").string()));
  const auto file = open_checkpoint((folder / "lora.gguf").string());
  EXPECT_EQ(file->tensor("blk.0.ffn_gate_exps.weight.lora_a").shape, (Shape{2, 2, 16}));
  EXPECT_EQ(file->tensor("blk.0.ffn_up_exps.weight.lora_b").shape, (Shape{2, 6, 2}));
  EXPECT_EQ(inspect_adapter((folder / "lora.gguf").string()).modules.front().rank, 2u);
  static_cast<void>(convert_adapter((folder / "lora.gguf").string(), folder / "back", "peft", (folder / "base").string()));
  EXPECT_EQ(read_all(folder / "back/adapter_model.safetensors"), read_all(folder / "lora/adapter_model.safetensors"));

  tensors.resize(6);
  write_adapter(folder / "uneven", config, tensors);
  EXPECT_WEFT_ERROR(convert_adapter((folder / "uneven").string(), folder / "x.gguf", "gguf", (folder / "base").string()), unsupported,
                    "only some of the experts");
}

TEST(GgufLora, requests_that_make_no_sense_are_answered_and_leave_nothing) {
  const TemporaryFolder folder;
  const std::string base = (folder / "base").string();
  four_heads().write(base);
  EXPECT_WEFT_ERROR(convert_adapter(kLora, folder / "x.gguf", "gguf", ""), invalid_argument, "name the model with --base");
  EXPECT_WEFT_ERROR(convert_adapter(kLora, folder / "x.gguf", "gguf", kBase + "/model.safetensors.none"), not_found, "");
  EXPECT_FALSE(fs::exists(folder / "x.gguf"));

  const auto write = [&](const std::string& name, const std::string& architecture, const std::string& kind, std::uint64_t num_keys, const auto& more,
                         const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& tensors) {
    GgufBytes file;
    file.head(tensors.size(), num_keys).text_key("general.architecture", architecture).text_key("general.type", kind);
    more(file);
    std::uint64_t offset = 0;
    for (const auto& [tensor, dims] : tensors) {
      file.tensor(tensor, dims, 0, offset);
      std::uint64_t size = 4;
      for (const std::int64_t dim : dims) size *= static_cast<std::uint64_t>(dim);
      offset += (size + 31) / 32 * 32;
    }
    file.pad().raw(std::string(offset, '\0'));
    write_file(folder / name, file.bytes());
    return (folder / name).string();
  };
  const auto alpha = [](GgufBytes& file) {
    file.text_key("adapter.type", "lora").text("adapter.lora.alpha").number<std::uint32_t>(6).number<float>(8);
  };
  const auto nothing = [](GgufBytes&) {};
  const std::vector<std::pair<std::string, std::vector<std::int64_t>>> q = {{"blk.0.attn_q.weight.lora_a", {16, 2}},
                                                                            {"blk.0.attn_q.weight.lora_b", {2, 16}}};
  const auto fold = [&](const std::string& adapter) { return open_checkpoint(base + "+" + adapter); };
  EXPECT_NO_THROW(static_cast<void>(fold(write("good.gguf", "llama", "adapter", 4, alpha, q))));
  EXPECT_WEFT_ERROR(fold(write("model.gguf", "llama", "model", 2, nothing, q)), unsupported, "holds a model, not an adapter");
  EXPECT_WEFT_ERROR(fold(write("kind.gguf", "llama", "adapter", 2, nothing, q)), unsupported, "adapter.type");
  EXPECT_WEFT_ERROR(fold(write(
                        "alpha.gguf", "llama", "adapter", 3, [](GgufBytes& f) { f.text_key("adapter.type", "lora"); }, q)),
                    corrupt, "adapter.lora.alpha");
  EXPECT_WEFT_ERROR(fold(write(
                        "alora.gguf", "llama", "adapter", 5,
                        [&](GgufBytes& f) {
                          alpha(f);
                          f.u32_key("adapter.alora.invocation_tokens", 3);
                        },
                        q)),
                    unsupported, "aLoRA");
  EXPECT_WEFT_ERROR(fold(write("qwen.gguf", "qwen2", "adapter", 4, alpha, q)), invalid_argument, "but this one is 'llama'");
  EXPECT_WEFT_ERROR(fold(write("half.gguf", "llama", "adapter", 4, alpha, {q.front()})), corrupt, "only one of its two matrices");
  EXPECT_WEFT_ERROR(fold(write("rank.gguf", "llama", "adapter", 4, alpha, {q.front(), {"blk.0.attn_q.weight.lora_b", {3, 16}}})), corrupt,
                    "their ranks are 3 and 2");
  EXPECT_WEFT_ERROR(
      fold(write("layer.gguf", "llama", "adapter", 4, alpha, {{"blk.7.attn_v.weight.lora_a", {16, 2}}, {"blk.7.attn_v.weight.lora_b", {2, 8}}})),
      invalid_argument, "the model has no 'model.layers.7.self_attn.v_proj.weight'");
  EXPECT_WEFT_ERROR(fold(write("heads.gguf", "llama", "adapter", 4, alpha, {q.front(), {"blk.0.attn_q.weight.lora_b", {2, 17}}})), corrupt,
                    "does not divide among 4 heads");
  EXPECT_WEFT_ERROR(fold(write("stack.gguf", "llama", "adapter", 4, alpha,
                               {{"blk.0.attn_v.weight.lora_a", {16, 2, 2}}, {"blk.0.attn_v.weight.lora_b", {2, 8, 2}}})),
                    corrupt, "the matrices of 'blk.0.attn_v'");
  EXPECT_WEFT_ERROR(fold(write("empty.gguf", "llama", "adapter", 4, alpha,
                               {{"blk.0.ffn_gate_exps.weight.lora_a", {16, 0, std::int64_t{1} << 40}},
                                {"blk.0.ffn_gate_exps.weight.lora_b", {0, 16, std::int64_t{1} << 40}}})),
                    corrupt, "is empty");
  EXPECT_WEFT_ERROR(
      fold(write("name.gguf", "llama", "adapter", 4, alpha, {{"blk.0.attn_nose.weight.lora_a", {16, 2}}, {"blk.0.attn_nose.weight.lora_b", {2, 8}}})),
      invalid_argument, "the model has no 'blk.0.attn_nose'");
  EXPECT_WEFT_ERROR(fold(write("part.gguf", "llama", "adapter", 4, alpha, {{"blk.0.attn_v.weight", {16, 2}}})), unsupported, "is no part of a LoRA");
  EXPECT_WEFT_ERROR(convert((folder / "good.gguf").string(), folder / "x"), unsupported, "name the model first: MODEL+ADAPTER");
  EXPECT_WEFT_ERROR(scale_adapter((folder / "good.gguf").string(), folder / "x", 2), unsupported, "convert it first");
  EXPECT_WEFT_ERROR(combine_adapters({(folder / "good.gguf").string(), kLora}, folder / "x", {}), unsupported, "convert it first");
  EXPECT_FALSE(fs::exists(folder / "x"));
}

// ---- GGUF files with adapters folded in ---------------------------------------------------------------------------------------------------

class FoldedGguf : public ::testing::Test {
 protected:
  void SetUp() override {
    static_cast<void>(convert(kBase, gguf));
    static_cast<void>(fold_adapter(kBase, kLora, folder / "folded"));
  }
  TemporaryFolder folder;
  fs::path gguf = folder / "base.gguf";
  std::string both = gguf.string() + "+" + kLora;
};

TEST_F(FoldedGguf, is_taken_wherever_a_model_is) {
  static_cast<void>(convert(both, folder / "converted"));
  EXPECT_EQ(read_all(folder / "converted"), read_all(folder / "folded"));
  EXPECT_TRUE(fs::exists(folder / "converted/tokenizer.json"));
  EXPECT_TRUE(verify((folder / "converted").string()).ok);
  static_cast<void>(edit_model(both, folder / "edited", {{"cast", ".=bfloat16"}}));
  EXPECT_EQ(read_all(folder / "edited"), read_all(folder / "folded"));
  const std::string merge = "merge_method: passthrough\ndtype: bfloat16\nmodels: [{model: " + both + "}]\n";
  static_cast<void>(merge_models(merge, "c.yml", folder / "merged"));
  EXPECT_EQ(read_all(folder / "merged"), read_all(folder / "folded"));
  static_cast<void>(run_recipe("steps: [{convert: {model: " + both + ", dtype: bfloat16}}]\n", "r.yml", folder / "run"));
  EXPECT_EQ(read_all(folder / "run"), read_all(folder / "folded"));
  EXPECT_EQ(inspect(both).architecture, "LlamaForCausalLM");
  EXPECT_EQ(diff(both, (folder / "converted").string()).total.num_changed, 0u);  // norms are float32 in a GGUF file
  ExtractOptions extract;
  extract.rank = 4;
  const ExtractReport report = extract_adapter(gguf.string(), both, folder / "extracted", extract);
  EXPECT_EQ(report.modules.size(), 4u);
}

TEST_F(FoldedGguf, becomes_a_gguf_file_of_which_only_the_changed_tensors_differ) {
  ConvertOptions q8;
  q8.block_type = "Q8_0";
  static_cast<void>(convert(kBase, folder / "q8.gguf", q8));
  const JobReport report = fold_adapter((folder / "q8.gguf").string(), kLora, folder / "out.gguf");
  ASSERT_FALSE(report.warnings.empty());
  EXPECT_NE(report.warnings.front().find("4 tensors that the file holds in blocks were decoded"), std::string::npos);
  const auto before = open_checkpoint((folder / "q8.gguf").string()), after = open_checkpoint((folder / "out.gguf").string());
  EXPECT_EQ(as_gguf(*after)->gguf_metadata().text("general.name"), as_gguf(*before)->gguf_metadata().text("general.name"));
  std::size_t num_changed = 0;
  for (const TensorInfo& tensor : before->tensors()) {
    const TensorInfo& other = after->tensor(tensor.name);
    if (tensor.name.find("attn_q.") != std::string::npos || tensor.name.find("attn_v.") != std::string::npos) {
      EXPECT_EQ(other.stored_as, "");
      EXPECT_EQ(other.dtype, DType::f16);
      ++num_changed;
      continue;
    }
    EXPECT_EQ(other.stored_as, tensor.stored_as) << tensor.name;
    std::vector<std::byte> a(bytes_in_file(tensor)), b(bytes_in_file(other));
    before->read_stored(tensor, 0, a);
    after->read_stored(other, 0, b);
    EXPECT_EQ(a, b) << tensor.name;
  }
  EXPECT_EQ(num_changed, 4u);
  // Half a step of float16 beside what folding in float32 gives.
  static_cast<void>(fold_adapter((folder / "q8.gguf").string(), kLora, folder / "q8-folded"));
  EXPECT_LE(difference(folder / "q8-folded/model.safetensors",
                       [&] {
                         static_cast<void>(convert((folder / "out.gguf").string(), folder / "out"));
                         return folder / "out/model.safetensors";
                       }()),
            0x1p-11);
  static_cast<void>(fold_adapter((folder / "q8.gguf").string(), kLora, folder / "all.gguf", [&] {
    FoldAdapterOptions options;
    options.block_type = "Q8_0";
    return options;
  }()));
  const auto all = open_checkpoint((folder / "all.gguf").string());
  for (const TensorInfo& tensor : all->tensors()) EXPECT_EQ(tensor.stored_as, before->tensor(tensor.name).stored_as) << tensor.name;
}

TEST_F(FoldedGguf, verify_reads_the_model_the_adapter_and_what_they_make) {
  for (const std::string& model : {both, kBase + "+" + kLora}) {
    const VerifyReport report = verify(model);
    EXPECT_TRUE(report.ok) << (report.problems.empty() ? "" : report.problems.front().message);
    EXPECT_GT(report.checked_bytes, verify(model == both ? gguf.string() : kBase).checked_bytes);
  }
  const std::string module = "base_model.model.model.layers.0.self_attn.q_proj";
  const std::string config = R"({"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":["q_proj"]})";
  const auto problem = [&](const char* name, std::int64_t inputs, float value) {
    write_adapter(folder / name, config,
                  {floats(module + ".lora_A.weight", {1, inputs}, std::vector<float>(static_cast<std::size_t>(inputs), value)),
                   floats(module + ".lora_B.weight", {256, 1}, std::vector<float>(256, value))});
    const VerifyReport report = verify(kBase + "+" + (folder / name).string());
    EXPECT_FALSE(report.ok);
    return report.problems.empty() ? std::string() : report.problems.front().code + ": " + report.problems.front().message;
  };
  EXPECT_NE(problem("nan", 256, std::numeric_limits<float>::quiet_NaN()).find("non_finite"), std::string::npos);
  EXPECT_NE(problem("other", 300, 1).find("invalid_argument: module"), std::string::npos);
  EXPECT_NE(problem("large", 256, 3e19F).find("which BF16 cannot hold"), std::string::npos);
  EXPECT_EQ(testing::error_of([&] { static_cast<void>(verify(kBase + "+" + (folder / "none").string())); })->code(), ErrorCode::not_found);
}

// ---- Outputs that are GGUF files ----------------------------------------------------------------------------------------------------------

TEST(MergeIntoOneFile, its_name_tells_the_form_and_the_values_are_those_of_the_folder) {
  const TemporaryFolder folder;
  for (const char* method : {"linear", "slerp"}) {
    const std::string merge = std::string("merge_method: ") + method + "\nbase_model: " + kBase + "\nmodels: [{model: " + kBase +
                              ", parameters: {weight: 0.25}}, {model: " + kModels +
                              "tiny-python, parameters: {weight: 0.75}}]\nparameters: {t: 0.3}\n";
    const std::string name = method;
    static_cast<void>(merge_models(merge, "c.yml", folder / name));
    const JobReport one = merge_models(merge, "c.yml", folder / (name + ".safetensors"));
    const JobReport gguf = merge_models(merge, "c.yml", folder / (name + ".gguf"));
    EXPECT_EQ(one.files, (std::vector<std::string>{name + ".safetensors"}));
    EXPECT_EQ(gguf.files, (std::vector<std::string>{name + ".gguf"}));
    EXPECT_EQ(gguf.tensors.front().method, method);
    EXPECT_EQ(gguf.tensors.front().inputs.size(), 2u);
    EXPECT_EQ(read_all(folder / (name + ".safetensors")), read_all(folder / name));
    static_cast<void>(convert((folder / (name + ".gguf")).string(), folder / (name + "-back")));
    EXPECT_EQ(read_all(folder / (name + "-back")), read_all(folder / name));
    static_cast<void>(convert((folder / name).string(), folder / (name + "-2.gguf")));
    EXPECT_TRUE(diff((folder / (name + ".gguf")).string(), (folder / (name + "-2.gguf")).string()).equal);
    MergeOptions peer;
    peer.write_into_existing = true;  // mergekit's programs make folders, whatever their names
    static_cast<void>(merge_models(merge, "c.yml", folder / (name + "-peer.gguf"), peer));
    EXPECT_TRUE(fs::is_directory(folder / (name + "-peer.gguf")));
    EXPECT_WEFT_ERROR(merge_models(merge, "c.yml", folder / (name + ".npz")), unsupported, "does not write .npz files");
  }
}

TEST(MergeIntoOneFile, of_several_configs_the_last_result_may_be_a_gguf_file) {
  const TemporaryFolder folder;
  const std::string configs =
      "name: first.gguf\nmerge_method: linear\nmodels: [{model: " + kBase + ", parameters: {weight: 1}}, {model: " + kModels +
      "tiny-python, parameters: {weight: 1}}]\n---\nmerge_method: linear\nmodels: [{model: first.gguf, parameters: {weight: 3}}, {model: " + kModels +
      "tiny-german, parameters: {weight: 1}}]\n";
  MultiMergeOptions options;
  options.intermediate_dir = folder / "stages";
  static_cast<void>(merge_multi(configs, "c.yml", folder / "out.gguf", options));
  EXPECT_TRUE(fs::is_directory(folder / "stages/first.gguf"));
  static_cast<void>(merge_multi(configs, "c.yml", folder / "out", options));
  static_cast<void>(convert((folder / "out.gguf").string(), folder / "back"));
  EXPECT_EQ(read_all(folder / "back"), read_all(folder / "out"));
}

}  // namespace
}  // namespace weft
