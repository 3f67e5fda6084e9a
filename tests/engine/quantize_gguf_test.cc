#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/imatrix.h"
#include "checkpoint/json.h"
#include "model/gguf_mix.h"
#include "support/errors.h"
#include "support/gguf_bytes.h"
#include "support/sha256.h"
#include "support/temporary_folder.h"
#include "weft/edit.h"
#include "weft/inspect.h"
#include "weft/quantize.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

const fs::path kShared = fs::path(WEFT_SOURCE_DIR) / "../shared";
const std::string kBundled = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-base").string();

QuantizeOptions as(const std::string& format) {
  QuantizeOptions options;
  options.format = format;
  return options;
}

std::string hash_of(const GgufCheckpoint& gguf, const std::string& name) {
  const TensorInfo& tensor = gguf.tensor(name);
  std::vector<std::byte> blocks(tensor.stored_bytes);
  gguf.read_stored(tensor, 0, blocks);
  return tensor.stored_as + ":" + testing::sha256(blocks).substr(0, 32);
}

TEST(QuantizeGguf, every_file_type_of_the_zoo_s_model_has_llama_cpp_s_types_and_bytes) {
  const fs::path golden = kShared / "golden/quantize";
  if (!fs::exists(golden)) GTEST_SKIP() << "no reference data at " << golden;
  const TemporaryFolder folder;
  const Json index = read_json_file(golden / "tiny-base.json");
  int count = 0;
  for (const auto& [key, want] : *index.find("files")->object()) {
    const std::size_t dash = key.rfind('-');
    const std::string kind = key.substr(dash + 1);
    QuantizeOptions options = as("gguf:" + key.substr(0, dash));
    options.pure = kind == "pure";
    if (kind == "imatrix") options.imatrix = golden / "imatrix-tiny-base.gguf";
    const fs::path out = folder / (key + ".gguf");
    const QuantizeReport report = quantize((kShared / "zoo/lm/tiny-base").string(), out, options);
    const GgufCheckpoint gguf(out, out, {});
    for (const auto& [name, hash] : *want.find("tensors")->object()) EXPECT_EQ(hash_of(gguf, name), *hash.string()) << key << " " << name;
    EXPECT_EQ(static_cast<double>(report.size_bytes), *want.find("data_bytes")->number()) << key;
    // These two were made as files of another type whose every tensor was given this one.
    if (key != "MXFP4-pure" && key != "NVFP4-pure") {
      EXPECT_EQ(gguf.metadata().at("general.file_type"), std::to_string(static_cast<int>(*want.find("file_type")->number()))) << key;
    }
    const Json::Array& order = *index.find("tensor_order_start")->array();
    for (std::size_t i = 0; i < order.size(); ++i) EXPECT_EQ(gguf.tensors()[i].name, *order[i].string());
    ++count;
  }
  EXPECT_EQ(count, 63);
}

TEST(QuantizeGguf, the_whole_q4_k_m_file_is_llama_cpp_s_but_for_the_order_of_its_keys) {
  const fs::path golden = kShared / "golden/quantize/tiny-base.Q4_K_M.gguf";
  if (!fs::exists(golden)) GTEST_SKIP() << "no reference data at " << golden;
  const TemporaryFolder folder;
  (void)quantize((kShared / "zoo/lm/tiny-base").string(), folder / "q.gguf", as("gguf:q4_k_m"));
  const GgufCheckpoint got(folder / "q.gguf", folder / "q.gguf", {}), want(golden, golden, {});
  ASSERT_EQ(got.tensors().size(), want.tensors().size());
  const std::uint64_t got_start = got.tensors()[0].offset_bytes, want_start = want.tensors()[0].offset_bytes;
  for (std::size_t i = 0; i < want.tensors().size(); ++i) {
    EXPECT_EQ(got.tensors()[i].name, want.tensors()[i].name);
    EXPECT_EQ(got.tensors()[i].offset_bytes - got_start, want.tensors()[i].offset_bytes - want_start);
    EXPECT_EQ(hash_of(got, got.tensors()[i].name), hash_of(want, want.tensors()[i].name));
  }
  EXPECT_EQ(got.metadata(), want.metadata());
  // From a GGUF file the same comes out as from the model.
  (void)convert((kShared / "zoo/lm/tiny-base").string(), folder / "f16.gguf", [] {
    ConvertOptions options;
    options.dtype = DType::bf16;
    return options;
  }());
  (void)quantize((folder / "f16.gguf").string(), folder / "again.gguf", as("gguf:Q4_K_M"));
  const GgufCheckpoint again(folder / "again.gguf", folder / "again.gguf", {});
  for (const TensorInfo& tensor : want.tensors()) EXPECT_EQ(hash_of(again, tensor.name), hash_of(want, tensor.name));
}

/// The weights of a made-up model, as the file would hold them.
std::vector<model::GgufMixWeight> weights_of(const Json& shape) {
  const auto number = [&](const char* key) { return static_cast<std::int64_t>(*shape.find(key)->number()); };
  const std::int64_t embd = number("embd"), ffn = number("ffn"), vocab = number("vocab"), experts = number("experts");
  const std::int64_t kv = embd / number("heads") * number("kv_heads");
  std::vector<model::GgufMixWeight> weights;
  if (!*shape.find("tied")->boolean()) weights.push_back({"output.weight", {vocab, embd}});
  weights.push_back({"token_embd.weight", {vocab, embd}});
  for (std::int64_t layer = 0; layer < number("layers"); ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    weights.push_back({block + "attn_k.weight", {kv, embd}});
    weights.push_back({block + "attn_output.weight", {embd, embd}});
    weights.push_back({block + "attn_q.weight", {embd, embd}});
    weights.push_back({block + "attn_v.weight", {kv, embd}});
    const auto mlp = [&](const std::string& kind, std::int64_t rows, std::int64_t columns) {
      if (experts > 0)
        weights.push_back({block + kind + "_exps.weight", {experts, rows, columns}});
      else
        weights.push_back({block + kind + ".weight", {rows, columns}});
    };
    mlp("ffn_down", embd, ffn);
    mlp("ffn_gate", ffn, embd);
    mlp("ffn_up", ffn, embd);
  }
  return weights;
}

TEST(QuantizeGguf, the_mixes_are_llama_cpp_s_for_every_shape_and_file_type) {
  const fs::path golden = kShared / "golden/quantize/mixes.json";
  if (!fs::exists(golden)) GTEST_SKIP() << "no reference data at " << golden;
  const Json shapes = read_json_file(golden);
  int count = 0;
  for (const auto& [shape_name, shape] : *shapes.object()) {
    const std::vector<model::GgufMixWeight> weights = weights_of(shape);
    model::GgufMixModel model;
    model.num_layers = static_cast<std::uint64_t>(*shape.find("layers")->number());
    model.num_heads = static_cast<std::uint64_t>(*shape.find("heads")->number());
    model.num_kv_heads = static_cast<std::uint64_t>(*shape.find("kv_heads")->number());
    model.num_experts = static_cast<std::uint64_t>(*shape.find("experts")->number());
    model.has_output = !*shape.find("tied")->boolean();
    for (const auto& [key, want] : *shape.find("types")->object()) {
      const std::size_t dot = key.find('.');
      model.has_imatrix = key.substr(dot + 1) == "imatrix";
      const model::GgufFileType& file_type = model::gguf_file_type(key.substr(0, dot));
      const Json* tensors = want.find("tensors");
      if (tensors == nullptr) continue;  // the tool refused; tested below
      const std::vector<model::GgufStoredType> types = model::gguf_mix(file_type, model, weights);
      bool needs = false;
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const std::string& name = weights[i].name;
        const auto row = static_cast<std::uint64_t>(weights[i].shape.back());
        const model::GgufStoredType got = model::gguf_type_for_rows(types[i], row, name);
        needs = needs || model::needs_importance(file_type, got, name);
        std::string kind = name;
        const int layer = model::gguf_layer_of(name);
        if (layer >= 0) {
          kind = name.substr(name.find('.', 4) + 1);
          kind = kind.substr(0, kind.find(".weight"));
        }
        const Json* expected = tensors->find(kind);
        if (expected == nullptr && kind.ends_with("_exps")) expected = tensors->find(kind.substr(0, kind.size() - 5));
        ASSERT_NE(expected, nullptr) << shape_name << " " << key << " " << kind;
        std::string type;
        if (expected->string() != nullptr)
          type = *expected->string();
        else
          for (const auto& [one, layers] : *expected->object())
            for (const Json& at : *layers.array())
              if (static_cast<int>(*at.number()) == layer) type = one;
        EXPECT_EQ(got.name(), type) << shape_name << " " << key << " " << name;
        ++count;
      }
      if (!model.has_imatrix) {
        EXPECT_EQ(needs, *want.find("needs_imatrix")->boolean()) << shape_name << " " << key;
      }
    }
  }
  EXPECT_GT(count, 40000);
}

TEST(QuantizeGguf, the_file_is_the_same_for_any_number_of_threads_and_any_cut) {
  const TemporaryFolder folder;
  QuantizeOptions options = as("gguf:Q4_0");
  options.threads = 2;
  const QuantizeReport first = quantize(kBundled, folder / "a.gguf", options);
  options.threads = 1;
  options.chunk_bytes = 16 * 1024;
  const QuantizeReport second = quantize(kBundled, folder / "b.gguf", options);
  EXPECT_EQ(testing::read_file(folder / "a.gguf"), testing::read_file(folder / "b.gguf"));
  ASSERT_EQ(first.layers.size(), second.layers.size());
  for (std::size_t i = 0; i < first.layers.size(); ++i) {
    EXPECT_EQ(first.layers[i].relative_loss, second.layers[i].relative_loss);
    EXPECT_GT(*first.layers[i].relative_loss, 0);
    EXPECT_LT(*first.layers[i].relative_loss, 0.02);
  }
}

TEST(QuantizeGguf, options_choose_types_and_what_they_name_must_be_there) {
  const TemporaryFolder folder;
  QuantizeOptions options = as("gguf:Q4_0");
  options.rules = {{"blk\\.0\\.ffn_down", "Q8_0"}, {"ATTN_V", "keep"}, {"ffn_down", "Q5_1"}};
  options.output_type = "q5_0";
  options.token_embedding_type = "Q4_1";
  options.override_kv = {{"general.name", "str:Another"}, {"weft.test", "int:-3"}};
  (void)quantize(kBundled, folder / "a.gguf", options);
  const GgufCheckpoint gguf(folder / "a.gguf", folder / "a.gguf", {});
  EXPECT_EQ(gguf.tensor("blk.0.ffn_down.weight").stored_as, "Q8_0");
  EXPECT_EQ(gguf.tensor("blk.1.ffn_down.weight").stored_as, "Q5_1");
  EXPECT_EQ(gguf.tensor("blk.1.attn_v.weight").stored_as, "");
  EXPECT_EQ(gguf.tensor("blk.1.attn_q.weight").stored_as, "Q4_0");
  EXPECT_EQ(gguf.tensor("output.weight").stored_as, "Q5_0");
  EXPECT_EQ(gguf.tensor("token_embd.weight").stored_as, "Q4_1");
  EXPECT_EQ(gguf.metadata().at("general.name"), "Another");
  EXPECT_EQ(gguf.metadata().at("weft.test"), "-3");

  options.rules.emplace_back("ffn_sideways", "Q8_0");
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", options), invalid_argument, "no weight matches 'ffn_sideways'");
  options.rules.back() = {"ffn_up", "Q4_L"};
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", options), invalid_argument, "did you mean Q4_");
  options.rules.back() = {"ffn_(up", "Q4_0"};
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", options), invalid_argument, "is no pattern");
  options.rules = {};
  options.rules_text = "# all of them\nffn_down=Q8_0 ffn_up=keep\nattn\n";
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", options), invalid_argument, "line 3 of the rules has 'attn'");
  options.rules_text.clear();
  options.leave_output = true;
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", options), invalid_argument, "cannot both stay as it is and get a type");
  options = as("gguf:Q4_0");
  options.override_kv = {{"a.b", "int:x"}};
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", options), invalid_argument, "is no value for 'a.b'");
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", as("gguf:Q4_K_X")), invalid_argument, "did you mean gguf:Q4_K_");
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", as("guff:Q4_0")), invalid_argument, "there is no format");
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", as("gguf")), invalid_argument, "needs a type");
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "b.gguf", as("gguf:IQ2_XXS")), invalid_argument, "without an importance matrix");
  EXPECT_FALSE(fs::exists(folder / "b.gguf"));
}

TEST(QuantizeGguf, a_rule_behind_others_that_match_the_same_weights_is_told_and_no_mistake) {
  const TemporaryFolder folder;
  QuantizeOptions options = as("gguf:Q4_0");
  options.rules = {{"attn", "Q8_0"}, {"attn_v", "Q5_0"}};
  const QuantizeReport report = quantize(kBundled, folder / "a.gguf", options);
  EXPECT_EQ(GgufCheckpoint(folder / "a.gguf", folder / "a.gguf", {}).tensor("blk.0.attn_v.weight").stored_as, "Q8_0");
  ASSERT_EQ(report.warnings.size(), 1u);
  EXPECT_NE(report.warnings.front().find("'attn_v' changes nothing"), std::string::npos) << report.warnings.front();
}

TEST(QuantizeGguf, blocks_are_not_quantized_again_unless_that_is_accepted) {
  const TemporaryFolder folder;
  (void)quantize(kBundled, folder / "q8.gguf", as("gguf:Q8_0"));
  const std::string q8 = (folder / "q8.gguf").string();
  EXPECT_WEFT_ERROR(quantize(q8, folder / "q4.gguf", as("gguf:Q4_0")), invalid_argument, "is quantized already, as Q8_0");
  QuantizeOptions options = as("gguf:Q4_0");
  options.allow_requantize = true;
  (void)quantize(q8, folder / "q4.gguf", options);
  EXPECT_EQ(open_checkpoint((folder / "q4.gguf").string())->tensor("blk.0.ffn_up.weight").stored_as, "Q4_0");
  // The same type is a copy, not a second loss.
  (void)quantize(q8, folder / "copy.gguf", as("gguf:Q8_0"));
  const GgufCheckpoint a(folder / "q8.gguf", folder / "q8.gguf", {}), b(folder / "copy.gguf", folder / "copy.gguf", {});
  for (const TensorInfo& tensor : a.tensors()) EXPECT_EQ(hash_of(a, tensor.name), hash_of(b, tensor.name));
}

TEST(QuantizeGguf, codes_do_not_become_blocks_nor_blocks_codes_unless_that_is_accepted) {
  const TemporaryFolder folder;
  QuantizeOptions codes = as("gptq");
  codes.linear.group = 32;
  (void)quantize(kBundled, folder / "gptq", codes);
  const std::string gptq = (folder / "gptq").string();
  EXPECT_WEFT_ERROR(quantize(gptq, folder / "q4.gguf", as("gguf:Q4_0")), invalid_argument, "is quantized already, as GPTQ4");
  (void)quantize(gptq, folder / "f32.gguf", as("gguf:F32"));  // loses nothing more
  (void)quantize(kBundled, folder / "q4.gguf", as("gguf:Q4_0"));
  const std::string blocks = (folder / "q4.gguf").string();
  EXPECT_WEFT_ERROR(quantize(blocks, folder / "again", codes), invalid_argument, "quantized already (Q4_0)");
  codes.allow_requantize = true;
  (void)quantize(blocks, folder / "again", codes);
  QuantizeOptions again = as("gguf:Q4_0");
  again.allow_requantize = true;
  (void)quantize(gptq, folder / "twice.gguf", again);
  EXPECT_EQ(open_checkpoint((folder / "twice.gguf").string())->tensor("blk.0.ffn_up.weight").stored_as, "Q4_0");
}

TEST(QuantizeGguf, pruned_layers_are_gone_and_the_others_move_up) {
  const TemporaryFolder folder;
  (void)quantize(kBundled, folder / "whole.gguf", as("gguf:Q8_0"));
  QuantizeOptions options = as("gguf:Q8_0");
  options.prune_layers = {0};
  (void)quantize(kBundled, folder / "pruned.gguf", options);
  const GgufCheckpoint whole(folder / "whole.gguf", folder / "whole.gguf", {}), pruned(folder / "pruned.gguf", folder / "pruned.gguf", {});
  EXPECT_EQ(hash_of(pruned, "blk.0.ffn_up.weight"), hash_of(whole, "blk.1.ffn_up.weight"));
  EXPECT_EQ(pruned.find_tensor("blk.1.ffn_up.weight"), nullptr);
  EXPECT_EQ(pruned.metadata().at("llama.block_count"), "1");
  options.prune_layers = {2};
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "no.gguf", options), invalid_argument, "there is no layer 2");
  // The mixes count the layers of the model as it came, as llama.cpp's do.
  options = as("gguf:Q4_K_M");
  options.prune_layers = {1};
  (void)quantize(kBundled, folder / "mixed.gguf", options);
  EXPECT_EQ(GgufCheckpoint(folder / "mixed.gguf", folder / "mixed.gguf", {}).tensor("blk.0.ffn_down.weight").stored_as, "Q4_K");
  options.prune_layers = {0, 1};
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "no.gguf", options), invalid_argument, "no layer would be left");
}

TEST(QuantizeGguf, a_split_model_keeps_its_parts_when_asked) {
  const TemporaryFolder folder;
  ConvertOptions split;
  split.max_shard_bytes = 1'500'000;
  (void)convert(kBundled, folder / "split.gguf", split);
  const auto input = open_checkpoint((folder / "split").string());
  ASSERT_GT(input->files().size(), 1u);
  QuantizeOptions options = as("gguf:Q4_0");
  options.keep_split = true;
  (void)quantize((folder / "split").string(), folder / "kept.gguf", options);
  const auto kept = open_checkpoint((folder / "kept").string());
  ASSERT_EQ(kept->files().size(), input->files().size());
  ASSERT_EQ(kept->tensors().size(), input->tensors().size());
  for (std::size_t i = 0; i < input->tensors().size(); ++i) {
    EXPECT_EQ(kept->tensors()[i].name, input->tensors()[i].name) << "in the order of the input, as llama-quantize has them";
    EXPECT_EQ(kept->tensors()[i].file_index, input->tensors()[i].file_index) << input->tensors()[i].name;
  }
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "no.gguf", options), invalid_argument, "not split");
}

// ---- Importance matrices

template <typename T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void put_text(std::string& bytes, const std::string& text) {
  put(bytes, static_cast<std::int32_t>(text.size()));
  bytes += text;
}
fs::path written(const TemporaryFolder& folder, const std::string& name, const std::string& bytes) {
  std::ofstream(folder / name, std::ios::binary) << bytes;
  return folder / name;
}
std::string old_form(const std::vector<float>& values, std::int32_t calls) {
  std::string bytes;
  put(bytes, std::int32_t{1});
  put_text(bytes, "blk.0.attn_q.weight");
  put(bytes, calls);
  put(bytes, static_cast<std::int32_t>(values.size()));
  for (const float value : values) put(bytes, value);
  put(bytes, std::int32_t{7});
  put_text(bytes, "text.txt");
  return bytes;
}

TEST(Imatrix, the_old_form_is_read) {
  const TemporaryFolder folder;
  const Imatrix imatrix = read_imatrix(written(folder, "a.dat", old_form({2, 4, 6}, 2)));
  ASSERT_EQ(imatrix.entries.size(), 1u);
  EXPECT_EQ(imatrix.entries.at("blk.0.attn_q.weight").importance(), (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(imatrix.chunk_count, 7u);
  EXPECT_EQ(imatrix.datasets, std::vector<std::string>{"text.txt"});
}

TEST(Imatrix, the_gguf_form_is_read) {
  const fs::path golden = kShared / "golden/quantize/imatrix-tiny-base.gguf";
  if (!fs::exists(golden)) GTEST_SKIP() << "no reference data at " << golden;
  const Imatrix imatrix = read_imatrix(golden);
  const Json want = read_json_file(kShared / "golden/quantize/imatrix-tiny-base.json");
  EXPECT_EQ(imatrix.entries.size(), want.object()->size());
  for (const auto& [name, entry] : *want.object()) {
    const ImatrixEntry& got = imatrix.entries.at(name);
    EXPECT_EQ(static_cast<double>(got.num_columns), *entry.find("columns")->number());
    EXPECT_EQ(static_cast<double>(got.counts.at(0)), *entry.find("counts")->array()->at(0).number());
    const std::vector<float> importance = got.importance();
    for (std::size_t i = 0; i < 4; ++i)
      EXPECT_NEAR(static_cast<double>(importance[i]), *entry.find("first4")->array()->at(i).number(), 1e-6 * static_cast<double>(importance[i]));
  }
}

TEST(Imatrix, damaged_files_are_refused) {
  const TemporaryFolder folder;
  const std::string good = old_form({2, 4, 6}, 2);
  for (std::size_t size = 0; size < good.size() - 16; ++size)
    EXPECT_THROW((void)read_imatrix(written(folder, "short.dat", good.substr(0, size))), Error) << size;
  EXPECT_WEFT_ERROR((void)read_imatrix(written(folder, "nan.dat", old_form({1, std::nanf(""), 1}, 1))), corrupt, "as value number 1");
  EXPECT_WEFT_ERROR((void)read_imatrix(written(folder, "negative.dat", old_form({1, 1, -1}, 1))), corrupt, "has -1 as value number 2");
  const auto counted = [&](float count) {
    testing::GgufBytes file;
    file.head(2, 1).text_key("general.type", "imatrix").tensor("m.in_sum2", {2, 1}, 0, 0).tensor("m.counts", {1, 1}, 0, 32).pad();
    file.number<float>(3e38F).number<float>(1).pad().number<float>(count).pad();
    return read_imatrix(written(folder, "counted.gguf", file.bytes()));
  };
  EXPECT_EQ(counted(2).entries.at("m").importance(), (std::vector<float>{1.5e38F, 0.5F}));
  EXPECT_EQ(counted(0).entries.at("m").importance(), (std::vector<float>{1, 1}));
  EXPECT_WEFT_ERROR((void)counted(1e-38F), corrupt, "counts 1e-38 tokens");
  EXPECT_WEFT_ERROR((void)read_imatrix(written(folder, "text.dat", "this is a text and no importance matrix")), corrupt, "is no importance matrix");
  (void)convert(kBundled, folder / "model.gguf");
  EXPECT_WEFT_ERROR((void)read_imatrix(folder / "model.gguf"), invalid_argument, "but no importance matrix");
}

TEST(Imatrix, one_of_another_model_is_refused) {
  const TemporaryFolder folder;
  QuantizeOptions options = as("gguf:Q4_0");
  options.imatrix = written(folder, "short.dat", old_form({1, 2, 3}, 1));
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "a.gguf", options), invalid_argument, "has 3 values for tensor 'blk.0.attn_q.weight'");
  std::string other = old_form({1, 2, 3}, 1);
  other.replace(other.find("attn_q"), 6, "attn_z");
  options.imatrix = written(folder, "other.dat", other);
  EXPECT_WEFT_ERROR(quantize(kBundled, folder / "a.gguf", options), invalid_argument, "names no weight of this model");
}

}  // namespace
}  // namespace weft
