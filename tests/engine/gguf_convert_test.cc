#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/json.h"
#include "engine/tiny_llama.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "model/gguf_model.h"
#include "model/gguf_names.h"
#include "model/gguf_vocabulary.h"
#include "model/network_config.h"
#include "model/tokenizer.h"
#include "support/errors.h"
#include "support/read_all.h"
#include "support/sha256.h"
#include "support/temporary_folder.h"
#include "weft/edit.h"
#include "weft/inspect.h"
#include "weft/merge.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;
using testing::TinyLlama;

const fs::path kShared = fs::path(WEFT_SOURCE_DIR) / "../shared";

std::vector<std::byte> bytes_of(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(tensor.size_bytes);
  checkpoint.read_bytes(tensor, 0, bytes);
  return bytes;
}

std::vector<float> values_of(const Checkpoint& checkpoint, std::string_view name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<float> values(tensor.num_elements);
  math::decode(tensor.dtype, bytes_of(checkpoint, tensor), values);
  return values;
}

/// Every tensor of a model after it went through a GGUF file and back.
void expect_round_trip(const fs::path& model) {
  SCOPED_TRACE(model.filename());
  const TemporaryFolder folder;
  const fs::path gguf = folder / "model.gguf", back = folder / "back";
  (void)convert(model.string(), gguf);
  (void)convert(gguf.string(), back);
  const auto before = open_checkpoint(model.string());
  const auto after = open_checkpoint(back.string());
  const Json config = read_json_file(model / "config.json");
  const model::Architecture* architecture = model::find_architecture(config);
  if (architecture == nullptr) architecture = model::find_architecture_family(config);
  ASSERT_NE(architecture, nullptr);
  const bool adds_one = architecture->forward.norm == model::NormKind::rms_plus_one;
  std::size_t compared = 0;
  for (const TensorInfo& tensor : before->tensors()) {
    const auto match = model::match_name(*architecture, tensor.name);
    ASSERT_TRUE(match) << tensor.name;
    std::string name = match->layer >= 0 ? model::with_layer(match->tensor->name, match->layer) : match->tensor->name;
    if (const std::size_t at = name.find("${expert_index}"); at != std::string::npos) name.replace(at, 15, std::to_string(match->expert));
    if (name.starts_with("bert.pooler") || name.starts_with("cls.")) continue;  // GGUF has no place for them
    const TensorInfo* other = after->find_tensor(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(other->shape, tensor.shape) << name;
    EXPECT_EQ(to_string(other->dtype), to_string(tensor.dtype)) << name;
    ++compared;
    const model::Role role = match->tensor->role;
    if (adds_one && (role == model::Role::norm || role == model::Role::q_norm || role == model::Role::k_norm)) {
      const std::vector<float> a = values_of(*before, tensor.name), b = values_of(*after, name);
      for (std::size_t i = 0; i < a.size(); ++i) ASSERT_LE(std::abs(a[i] - b[i]), 0x1p-24F * std::abs(1 + a[i])) << name << " " << i;
      continue;
    }
    EXPECT_EQ(bytes_of(*after, *other), bytes_of(*before, tensor)) << name;
  }
  EXPECT_EQ(after->tensors().size(), compared);

  const model::NetworkConfig a = model::read_network_config(config);
  const model::NetworkConfig b = model::read_network_config(read_json_file(back / "config.json"));
  EXPECT_EQ(a.vocab, b.vocab);
  EXPECT_EQ(a.hidden, b.hidden);
  EXPECT_EQ(a.heads, b.heads);
  EXPECT_EQ(a.kv_heads, b.kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.context, b.context);
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.layers.size(), b.layers.size());
  EXPECT_EQ(a.parallel, b.parallel);
  EXPECT_EQ(a.activation, b.activation);
  EXPECT_EQ(a.experts, b.experts);
  EXPECT_EQ(a.experts_per_token, b.experts_per_token);
  EXPECT_FLOAT_EQ(static_cast<float>(a.score_cap), static_cast<float>(b.score_cap));
  EXPECT_FLOAT_EQ(static_cast<float>(a.logit_cap), static_cast<float>(b.logit_cap));
  for (std::size_t i = 0; i < std::min(a.layers.size(), b.layers.size()); ++i) {
    if (a.layers[i].rope < 0) continue;
    const model::RopeConfig& x = a.ropes[static_cast<std::size_t>(a.layers[i].rope)];
    const model::RopeConfig& y = b.ropes[static_cast<std::size_t>(b.layers[i].rope)];
    if (x.type == model::RopeType::dynamic) continue;  // llama.cpp has none
    EXPECT_EQ(x.type, y.type);
    EXPECT_EQ(x.dims, y.dims);
    EXPECT_FLOAT_EQ(static_cast<float>(x.theta), static_cast<float>(y.theta));
  }
}

TEST(GgufConvert, a_small_model_comes_back_byte_for_byte) {
  const TemporaryFolder folder;
  TinyLlama().write(folder.path());
  expect_round_trip(folder.path());
}

TEST(GgufConvert, every_architecture_of_the_reference_models_comes_back_byte_for_byte) {
  const fs::path models = kShared / "golden/logits/models";
  if (!fs::exists(models)) GTEST_SKIP() << "no reference models at " << models;
  int count = 0;
  for (const auto& entry : fs::directory_iterator(models)) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const Json config = read_json_file(entry.path() / "config.json");
    const model::Architecture* architecture = model::find_architecture_family(config);
    if (architecture == nullptr || model::gguf_family_of(*architecture) == nullptr) continue;  // images
    expect_round_trip(entry.path());
    ++count;
  }
  EXPECT_GT(count, 15);
}

TEST(GgufConvert, rows_of_a_head_are_paired_as_llama_cpp_turns_them) {
  const TemporaryFolder folder;
  TinyLlama llama;
  llama.replace_in_config("\"num_attention_heads\":2", "\"num_attention_heads\":1");
  llama.replace_in_config("\"hidden_size\":4", "\"head_dim\":8,\"hidden_size\":4");
  for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
    testing::StoredTensor& tensor = llama.tensor(std::string("model.layers.0.self_attn.") + name + ".weight");
    tensor.shape = {8, 4};
    std::vector<float> values;
    for (int i = 0; i < 32; ++i) values.push_back(static_cast<float>(i / 4));
    tensor.bytes = testing::bytes_of(values);
  }
  llama.tensor("model.layers.0.self_attn.o_proj.weight").shape = {4, 8};
  llama.tensor("model.layers.0.self_attn.o_proj.weight").bytes = testing::bytes_of(std::vector<float>(32, 1));
  llama.write(folder / "model");
  (void)convert((folder / "model").string(), folder / "m.gguf");
  const auto gguf = open_checkpoint((folder / "m.gguf").string());
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_k.weight"}) {
    const std::vector<float> values = values_of(*gguf, name);
    const std::vector<float> want = {0, 4, 1, 5, 2, 6, 3, 7};
    for (std::size_t row = 0; row < 8; ++row) EXPECT_EQ(values[4 * row], want[row]) << name;
  }
  EXPECT_EQ(values_of(*gguf, "blk.0.attn_v.weight")[4], 1.0F);
}

TEST(GgufConvert, types_are_those_asked_for_and_norms_stay_float32) {
  const TemporaryFolder folder;
  const std::string model = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-base").string();
  ConvertOptions options;
  options.dtype = DType::f16;
  (void)convert(model, folder / "f16.gguf", options);
  const auto f16 = open_checkpoint((folder / "f16.gguf").string());
  EXPECT_EQ(f16->tensor("blk.0.ffn_up.weight").dtype, DType::f16);
  EXPECT_EQ(f16->tensor("output_norm.weight").dtype, DType::f32);
  EXPECT_EQ(f16->metadata().at("general.file_type"), "1");
  options.dtype.reset();
  options.block_type = "q8_0";
  const JobReport report = convert(model, folder / "q8.gguf", options);
  const auto q8 = open_checkpoint((folder / "q8.gguf").string());
  EXPECT_EQ(q8->tensor("blk.0.ffn_up.weight").stored_as, "Q8_0");
  EXPECT_EQ(q8->tensor("output_norm.weight").stored_as, "");
  EXPECT_EQ(q8->metadata().at("general.file_type"), "7");
  EXPECT_EQ(inspect((folder / "q8.gguf").string()).quantization, "Q8_0");
  // Half a step of the grid, which is a 127th of the largest magnitude, and the rounding of its scale to 11 bits.
  const auto source = open_checkpoint(model);
  const std::vector<float> x = values_of(*source, "model.layers.0.mlp.up_proj.weight"), y = values_of(*q8, "blk.0.ffn_up.weight");
  for (std::size_t i = 0; i < x.size(); ++i) {
    float largest = 0;
    for (std::size_t k = i / 32 * 32; k < i / 32 * 32 + 32; ++k) largest = std::max(largest, std::abs(x[k]));
    ASSERT_LE(std::abs(x[i] - y[i]), largest * (0.5F / 127 + 0x1p-11F)) << i;
  }
  // Back to blocks, from blocks: a copy.
  (void)convert((folder / "q8.gguf").string(), folder / "copy.gguf");
  EXPECT_EQ(testing::read_file(folder / "copy.gguf"), testing::read_file(folder / "q8.gguf"));
  // The result does not depend on how it is cut up.
  options.threads = 1;
  options.chunk_bytes = 16 * 1024;
  (void)convert(model, folder / "again.gguf", options);
  EXPECT_EQ(testing::read_file(folder / "again.gguf"), testing::read_file(folder / "q8.gguf"));
  options.block_type = "Q8_1";
  EXPECT_WEFT_ERROR(convert(model, folder / "no.gguf", options), invalid_argument, "types: float32");
}

TEST(GgufConvert, the_zoo_s_model_has_the_blocks_and_the_metadata_that_llama_cpp_gives_it) {
  const fs::path golden = kShared / "golden/quantize";
  if (!fs::exists(golden)) GTEST_SKIP() << "no reference data at " << golden;
  const TemporaryFolder folder;
  ConvertOptions options;
  options.block_type = "Q8_0";
  (void)convert((kShared / "zoo/lm/tiny-base").string(), folder / "q8.gguf", options);
  const GgufCheckpoint q8(folder / "q8.gguf", folder / "q8.gguf", {});
  const Json hashes = read_json_file(golden / "tiny-base.json");
  int count = 0;
  for (const auto& [name, value] : *hashes.find("files")->find("Q8_0-plain")->find("tensors")->object()) {
    const TensorInfo& tensor = q8.tensor(name);
    std::vector<std::byte> blocks(tensor.stored_bytes);
    q8.read_stored(tensor, 0, blocks);
    EXPECT_EQ(tensor.stored_as + ":" + testing::sha256(blocks).substr(0, 32), *value.string()) << name;
    ++count;
  }
  EXPECT_EQ(count, 16);

  const GgufCheckpoint reference(golden / "tiny-base.Q4_K_M.gguf", golden / "tiny-base.Q4_K_M.gguf", {});
  const GgufMetadata want = reference.whole_metadata(), got = q8.whole_metadata();
  for (const auto& [key, value] : want.entries()) {
    if (key == "general.file_type") continue;
    const GgufValue* other = got.find(key);
    ASSERT_NE(other, nullptr) << key;
    EXPECT_EQ(to_string(other->type), to_string(value.type)) << key;
    EXPECT_EQ(describe(*other), describe(value)) << key;
    if (value.array() != nullptr) {
      EXPECT_EQ(other->array()->bytes, value.array()->bytes) << key;
    }
  }
  EXPECT_EQ(got.entries().size(), want.entries().size());
}

TEST(GgufConvert, a_model_is_split_when_asked_and_joined_again) {
  const TemporaryFolder folder;
  const std::string model = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-base").string();
  (void)convert(model, folder / "whole.gguf");
  ConvertOptions options;
  options.max_shard_bytes = 500'000;
  const JobReport report = convert((folder / "whole.gguf").string(), folder / "parts.gguf", options);
  EXPECT_EQ(report.output, folder / "parts");
  // The last is the list of checksums.
  ASSERT_GT(report.files.size(), 3u);
  EXPECT_EQ(report.files.front(), gguf_part_name("parts", 1, static_cast<std::uint32_t>(report.files.size() - 1)));
  (void)convert((folder / "parts").string(), folder / "joined.gguf");
  EXPECT_EQ(testing::read_file(folder / "joined.gguf"), testing::read_file(folder / "whole.gguf"));
}

TEST(GgufConvert, a_gguf_file_takes_part_in_a_merge_as_the_model_that_it_holds) {
  const TemporaryFolder folder;
  const fs::path models = fs::path(WEFT_SOURCE_DIR) / "models";
  (void)convert((models / "tiny-base").string(), folder / "base.gguf");
  const auto config = [&](const std::string& base) {
    return "merge_method: linear\ndtype: float32\nmodels:\n  - model: " + base +
           "\n    parameters: {weight: 0.25}\n  - model: " + (models / "tiny-german").string() + "\n    parameters: {weight: 0.75}\n";
  };
  (void)merge_models(config((folder / "base.gguf").string()), "c.yml", folder / "a");
  (void)merge_models(config((models / "tiny-base").string()), "c.yml", folder / "b");
  EXPECT_TRUE(diff((folder / "a").string(), (folder / "b").string()).equal);
}

TEST(GgufConvert, metadata_are_set_removed_and_shown) {
  const TemporaryFolder folder;
  const std::string model = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-base").string();
  (void)convert(model, folder / "m.gguf");
  const std::string file = (folder / "m.gguf").string();
  MetadataEdit change;
  change.set = {{"general.name", "Another"}, {"llama.context_length", "128"}, {"weft.test", "true"}, {"weft.number:u64", "7"}, {"weft.text", "x=y"}};
  change.remove = {"general.size_label"};
  (void)edit_metadata(file, folder / "edited.gguf", change);
  const ModelInfo info = inspect((folder / "edited.gguf").string());
  const std::map<std::string, std::string> metadata(info.metadata.begin(), info.metadata.end());
  EXPECT_EQ(metadata.at("general.name"), "Another");
  EXPECT_EQ(metadata.at("llama.context_length"), "128");
  EXPECT_EQ(metadata.at("weft.text"), "x=y");
  EXPECT_FALSE(metadata.contains("general.size_label"));
  EXPECT_EQ(info.architecture, "llama");
  EXPECT_EQ(info.tokenizer_kind, "BPE");
  EXPECT_TRUE(diff(file, (folder / "edited.gguf").string()).equal);
  const GgufCheckpoint edited(folder / "edited.gguf", folder / "edited.gguf", {});
  EXPECT_EQ(edited.gguf_metadata().find("llama.context_length")->type, GgufType::u32);
  EXPECT_EQ(edited.gguf_metadata().find("weft.test")->type, GgufType::boolean);
  EXPECT_EQ(edited.gguf_metadata().find("weft.number")->type, GgufType::u64);

  const auto refused = [&](MetadataEdit bad, const char* phrase) {
    EXPECT_WEFT_ERROR(edit_metadata(file, folder / "no.gguf", bad), invalid_argument, phrase);
    EXPECT_FALSE(fs::exists(folder / "no.gguf"));
  };
  refused({{{"llama.context_length", "many"}}, {}}, "is no value of type uint32");
  refused({{{"llama.context_length", "4294967296"}}, {}}, "is no value of type uint32");
  refused({{{"tokenizer.ggml.tokens", "a"}}, {}}, "is a list");
  refused({{{"general.alignment", "3"}}, {}}, "power of two");
  refused({{}, {"nothing"}}, "there is no key 'nothing'");
  refused({{}, {}}, "nothing is to be changed");

  MetadataEdit title;
  title.set = {{"title", "tiny"}};
  (void)edit_metadata(model + "/model.safetensors", folder / "titled.safetensors", title);
  EXPECT_EQ(open_checkpoint((folder / "titled.safetensors").string())->metadata().at("title"), "tiny");
}

TEST(GgufConvert, experts_that_lie_in_a_file_one_by_one_are_those_of_the_model) {
  const TemporaryFolder folder;
  TinyLlama model;
  model.replace_in_config("LlamaForCausalLM", "MixtralForCausalLM");
  model.replace_in_config("\"llama\"", "\"mixtral\"");
  model.replace_in_config("\"vocab_size\"", "\"num_local_experts\":3,\"num_experts_per_tok\":2,\"vocab_size\"");
  for (const char* part : {"gate", "up", "down"}) model.remove(std::string("model.layers.0.mlp.") + part + "_proj.weight");
  const std::string moe = "model.layers.0.block_sparse_moe.";
  model.add(moe + "gate.weight", {3, 4});
  for (const char* expert : {"0", "1", "2"}) {
    model.add(moe + "experts." + expert + ".w1.weight", {6, 4});
    model.add(moe + "experts." + expert + ".w2.weight", {4, 6});
    model.add(moe + "experts." + expert + ".w3.weight", {6, 4});
  }
  model.write(folder / "model");
  (void)convert((folder / "model").string(), folder / "new.gguf");
  // As llama.cpp's converter wrote them until April 2024.
  const auto file = open_checkpoint((folder / "new.gguf").string());
  std::vector<GgufTensorSpec> specs;
  std::vector<std::vector<std::byte>> contents;
  for (const TensorInfo& tensor : file->tensors()) {
    const std::vector<std::byte> bytes = bytes_of(*file, tensor);
    const std::size_t at = tensor.name.find("_exps.weight");
    const auto count = static_cast<std::size_t>(at == std::string::npos ? 1 : tensor.shape[0]);
    for (std::size_t i = 0; i < count; ++i) {
      GgufTensorSpec spec{tensor.name, gguf_type_of(tensor.dtype).value(), nullptr, tensor.dtype, tensor.shape};
      if (at != std::string::npos) {
        spec.name = tensor.name.substr(0, at) + "." + std::to_string(i) + ".weight";
        spec.shape.erase(spec.shape.begin());
      }
      specs.push_back(spec);
      contents.emplace_back(bytes.begin() + static_cast<std::ptrdiff_t>(bytes.size() / count * i),
                            bytes.begin() + static_cast<std::ptrdiff_t>(bytes.size() / count * (i + 1)));
    }
  }
  const OutputLayout layout = plan_gguf(specs, as_gguf(*file)->whole_metadata(), 0, "old");
  std::string old = layout.files.front().header;
  old.resize(layout.files.front().size_bytes, '\0');
  for (std::size_t i = 0; i < specs.size(); ++i) std::memcpy(old.data() + layout.tensors[i].offset_bytes, contents[i].data(), contents[i].size());
  testing::write_file(folder / "old.gguf", old);
  EXPECT_NE(open_checkpoint((folder / "old.gguf").string())->find_tensor("blk.0.ffn_gate.2.weight"), nullptr);
  (void)convert((folder / "old.gguf").string(), folder / "back");
  EXPECT_EQ(testing::read_all(folder / "back"), testing::read_all(folder / "model"));
}

TEST(GgufConvert, what_has_no_place_in_a_gguf_file_is_refused) {
  const TemporaryFolder folder;
  TinyLlama extra;
  extra.add("model.layers.0.extra.weight", {2, 2});
  extra.write(folder / "extra");
  EXPECT_WEFT_ERROR(convert((folder / "extra").string(), folder / "x.gguf"), unsupported, "has no place in a GGUF file of a llama model");
  TinyLlama other;
  other.replace_in_config("LlamaForCausalLM", "NobodyKnowsForCausalLM");
  other.replace_in_config("\"llama\"", "\"nobody\"");
  other.write(folder / "other");
  EXPECT_WEFT_ERROR(convert((folder / "other").string(), folder / "x.gguf"), unsupported, "of a 'nobody' model");
  EXPECT_FALSE(fs::exists(folder / "x.gguf"));
}

// ---- Vocabularies

/// A folder with nothing but a tokenizer, through the metadata of a GGUF file and back.
model::Tokenizer through_gguf(const fs::path& tokenizer, const TemporaryFolder& folder) {
  std::vector<std::string> warnings;
  const model::TokenizerFolder read = model::read_tokenizer(tokenizer);
  std::uint64_t rows = read.vocabulary.num_ids();
  if (rows == 0) rows = model::Tokenizer::open(tokenizer).num_ids();
  const model::GgufVocabulary vocabulary = model::vocabulary_for_gguf(read, rows, Json(Json::Object{}), warnings);
  GgufMetadata metadata;
  model::add_gguf_vocabulary(metadata, vocabulary);
  const OutputLayout layout = plan_gguf({}, metadata, 0, "v");
  testing::write_file(folder / "v.gguf", layout.files.front().header);
  const auto back = model::read_gguf_vocabulary(GgufCheckpoint(folder / "v.gguf", folder / "v.gguf", {}));
  EXPECT_EQ(back->tokens, vocabulary.tokens);
  EXPECT_EQ(back->scores, vocabulary.scores);
  EXPECT_EQ(back->types, vocabulary.types);
  EXPECT_EQ(back->merges, vocabulary.merges);
  EXPECT_EQ(back->special_ids, vocabulary.special_ids);
  for (const auto& [name, content] : model::tokenizer_files_of(*back, 2048, warnings)) testing::write_file(folder / "back" / name, content);
  return model::Tokenizer::open(folder / "back");
}

TEST(GgufVocabularies, every_kind_of_tokenizer_gives_the_same_ids_after_going_through_gguf) {
  const fs::path models = kShared / "golden/tokenizer/models";
  if (!fs::exists(models)) GTEST_SKIP() << "no reference tokenizers at " << models;
  const std::vector<std::string> texts = {"Hello world", "Das ist ein Satz, mit Umlauten: \xC3\xA4\xC3\xB6\xC3\xBC.",
                                          "x = [1, 2, 33]; print('it''s')\n\n  y", "The quick brown fox jumps over 12345 lazy dogs."};
  for (const char* name : {"gpt2", "llama2", "llama3", "qwen2", "gemma", "spm-bpe", "spm-unigram", "zoo-tiny"}) {
    if (!fs::exists(models / name)) continue;
    SCOPED_TRACE(name);
    const TemporaryFolder folder;
    const model::Tokenizer before = model::Tokenizer::open(models / name);
    const model::Tokenizer after = through_gguf(models / name, folder);
    for (const std::string& text : texts) EXPECT_EQ(after.ids(text, false), before.ids(text, false)) << text;
  }
}

}  // namespace
}  // namespace weft
