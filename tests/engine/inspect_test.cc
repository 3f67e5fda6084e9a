#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>

#include "base/file.h"
#include "engine/tiny_llama.h"
#include "engine/tokenizer_summary.h"
#include "support/errors.h"
#include "weft/inspect.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TemporaryFolder;
using testing::TinyLlama;
using testing::write_file;

/// Counts the bytes that are read.
class CountingCalls final : public SystemCalls {
 public:
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    const ssize_t result = SystemCalls::pread(fd, data, size, offset);
    if (result > 0) num_bytes += static_cast<std::uint64_t>(result);
    return result;
  }
  std::atomic<std::uint64_t> num_bytes = 0;
};

TEST(Inspect, a_model_is_described_from_headers_and_config) {
  const TemporaryFolder folder;
  TinyLlama llama;
  llama.write_shards(folder.path());
  const ModelInfo info = inspect(folder.path().string());
  EXPECT_EQ(info.path, folder.path());
  EXPECT_EQ(info.container, "safetensors");
  EXPECT_EQ(info.files.size(), 2u);
  EXPECT_EQ(info.architecture, "LlamaForCausalLM");
  EXPECT_EQ(info.model_type, "llama");
  EXPECT_EQ(info.num_parameters, 32u + 4 + 16 + 8 + 8 + 16 + 4 + 24 + 24 + 24 + 4 + 32);
  EXPECT_EQ(info.size_bytes, 4 * info.num_parameters);
  EXPECT_EQ(info.bits_per_weight, 32);
  EXPECT_EQ(info.quantization, "");
  EXPECT_EQ(info.tokenizer_kind, "BPE");
  EXPECT_EQ(info.tokenizer_vocab_size, 8u);
  EXPECT_THAT(info.warnings, IsEmpty());
  EXPECT_THAT(info.metadata, ::testing::ElementsAre(std::pair<std::string, std::string>("format", "pt")));
  ASSERT_EQ(info.tensors.size(), 12u);
  const auto role = [&info](std::string_view name) {
    for (const ModelInfo::Tensor& tensor : info.tensors)
      if (tensor.tensor.name == name) return tensor.role + " in " + tensor.file;
    return std::string("absent");
  };
  EXPECT_EQ(role("model.embed_tokens.weight"), "embed in model-00001-of-00002.safetensors");
  EXPECT_EQ(role("model.layers.0.self_attn.q_proj.weight"), "q in model-00001-of-00002.safetensors");
  EXPECT_EQ(role("lm_head.weight"), "head in model-00002-of-00002.safetensors");
}

TEST(Inspect, a_file_on_its_own_is_described_without_a_config_that_may_be_another_models) {
  const TemporaryFolder folder;
  TinyLlama().write(folder.path());
  fs::copy_file(folder / "model.safetensors", folder / "other.safetensors");
  EXPECT_EQ(inspect((folder / "other.safetensors").string()).model_type, "");
  EXPECT_EQ(inspect((folder / "other.safetensors").string()).tokenizer_kind, "");
  EXPECT_EQ(inspect((folder / "model.safetensors").string()).model_type, "llama");
}

TEST(Inspect, a_damaged_config_or_tokenizer_is_a_warning_and_hides_nothing_else) {
  const TemporaryFolder folder;
  TinyLlama llama;
  llama.write(folder.path());
  write_file(folder / "config.json", "{\"model_type\":\"llama\",}");
  write_file(folder / "tokenizer.json", "{\"added_tokens\":[],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1");
  const ModelInfo info = inspect(folder.path().string());
  EXPECT_EQ(info.tensors.size(), 12u);
  ASSERT_EQ(info.warnings.size(), 2u);
  EXPECT_THAT(info.warnings[0], HasSubstr("config.json"));
  EXPECT_THAT(info.warnings[1], HasSubstr("tokenizer.json"));
}

TEST(Inspect, quantization_is_told_from_the_config) {
  const TemporaryFolder folder;
  const auto described = [&folder](const std::string& config) {
    TinyLlama llama;
    llama.replace_in_config("{", "{\"quantization_config\":" + config + ",");
    llama.write(folder.path());
    return inspect(folder.path().string()).quantization;
  };
  EXPECT_EQ(described(R"({"quant_method":"gptq","bits":4,"group_size":128})"), "gptq 4-bit");
  EXPECT_EQ(described(R"({"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4"})"), "bitsandbytes nf4");
  EXPECT_EQ(described(R"({"quant_method":"compressed-tensors","format":"pack-quantized"})"), "compressed-tensors pack-quantized");
  EXPECT_EQ(described(R"({"quant_method":"fp8","fmt":"e4m3"})"), "fp8 e4m3");
  EXPECT_EQ(described(R"({})"), "unknown");
  EXPECT_EQ(described(R"([1])"), "");
}

TEST(Inspect, ten_gigabytes_of_weights_cost_no_more_to_look_at_than_their_headers) {
  const TemporaryFolder folder;
  // Files with holes: nothing is on the disk but the headers.
  std::string map;
  constexpr int kNumShards = 4;
  constexpr std::uint64_t kTensorBytes = 64 << 20, kTensorsPerShard = 40;
  std::uint64_t header_bytes = 0;
  for (int shard = 0; shard < kNumShards; ++shard) {
    const std::string file = "model-0000" + std::to_string(shard + 1) + "-of-00004.safetensors";
    std::string header = "{";
    for (std::uint64_t i = 0; i < kTensorsPerShard; ++i) {
      const std::string name = "model.layers." + std::to_string(shard * 40 + static_cast<int>(i)) + ".mlp.up_proj.weight";
      header += (i == 0 ? "\"" : ",\"") + name + R"(":{"dtype":"BF16","shape":[8192,4096],"data_offsets":[)" + std::to_string(i * kTensorBytes) +
                "," + std::to_string((i + 1) * kTensorBytes) + "]}";
      map += (map.empty() ? "\"" : ",\"") + name + "\":\"" + file + "\"";
    }
    header += "}";
    write_file(folder / file, testing::safetensors_bytes(header));
    header_bytes += 8 + header.size();
    fs::resize_file(folder / file, 8 + header.size() + kTensorBytes * kTensorsPerShard);
  }
  const std::string index = "{\"weight_map\":{" + map + "}}";
  write_file(folder / "model.safetensors.index.json", index);

  CountingCalls calls;
  const ScopedSystemCalls scope(calls);
  const ModelInfo info = inspect(folder.path().string());
  EXPECT_EQ(info.size_bytes, kNumShards * kTensorsPerShard * kTensorBytes);
  // Headers and index once, and twice the first bytes of each, from which its kind is told.
  EXPECT_LE(calls.num_bytes, header_bytes + index.size() + (kNumShards + 1) * (512u + 8));
}

// ---- Tokenizers ---------------------------------------------------------------------------------------------------------------------------

class Tokenizer : public ::testing::Test {
 protected:
  TokenizerSummary of(const char* file, std::string_view content) {
    write_file(folder_ / file, content);
    TokenizerSummary summary = summarize_tokenizer(folder_.path());
    fs::remove(folder_ / file);
    return summary;
  }
  TemporaryFolder folder_;
};

TEST_F(Tokenizer, tokens_are_counted_whatever_the_order_of_the_keys) {
  const std::string added = R"("added_tokens":[{"id":1,"content":"b"},{"id":3,"content":"x"},{"id":4,"content":"y"}])";
  const std::string model = R"("model":{"vocab":{"a":0,"b":1,"c":2},"merges":[["a","b"]],"type":"BPE"})";
  const std::string type_first = R"("model":{"type":"BPE","x":{"vocab":{"k":1}},"vocab":{"a":0,"b":1,"\"}],\\":2},"merges":[["a","b"]]})";
  for (const std::string& text : {"{" + added + "," + model + "}", "{" + model + "," + added + "}", "{" + added + "," + type_first + "}",
                                  "{" + type_first + "," + added + "}"}) {
    const TokenizerSummary summary = of("tokenizer.json", text);
    EXPECT_EQ(summary.kind, "BPE") << text;
    EXPECT_EQ(summary.vocab_size, 5u) << text;
  }
}

TEST_F(Tokenizer, unigram_vocabularies_are_lists) {
  for (const char* text : {R"({"added_tokens":[],"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["[,]",-1.5],["b",-2]]}})",
                           R"({"model":{"vocab":[["<unk>",0.0],["a",-1.5],["b",-2]],"type":"Unigram"}})"}) {
    EXPECT_EQ(of("tokenizer.json", text).kind, "Unigram");
    EXPECT_EQ(of("tokenizer.json", text).vocab_size, 3u) << text;
  }
  EXPECT_EQ(of("tokenizer.json", R"({"added_tokens":[],"model":{"type":"Unigram","vocab":[]}})").vocab_size, 0u);
  EXPECT_EQ(of("tokenizer.json", R"({"added_tokens":[],"model":{"type":"WordPiece","vocab":{ }}})").vocab_size, 0u);
}

TEST_F(Tokenizer, a_vocabulary_longer_than_a_block_is_counted_across_its_borders) {
  std::string vocab;
  for (int i = 0; i < 40'000; ++i)
    vocab += (i == 0 ? "\"" : ",\n \"") + std::string(static_cast<std::size_t>(i % 7), '\\') + std::string(static_cast<std::size_t>(i % 7), '\\') +
             "\\\"," + std::to_string(i) + "\":" + std::to_string(i);
  EXPECT_EQ(of("tokenizer.json", "{\"added_tokens\":[],\"model\":{\"type\":\"BPE\",\"vocab\":{" + vocab + "}}}").vocab_size, 40'000u);
  EXPECT_WEFT_ERROR(of("tokenizer.json", "{\"added_tokens\":[],\"model\":{\"type\":\"BPE\",\"vocab\":{" + vocab), corrupt, "no end");
  fs::remove(folder_ / "tokenizer.json");
}

TEST_F(Tokenizer, older_forms_are_told_apart) {
  EXPECT_EQ(of("vocab.json", R"({"a":0,"b":1})").kind, "BPE");
  EXPECT_EQ(of("vocab.json", R"({"a":0,"b":1})").vocab_size, 2u);
  EXPECT_EQ(of("vocab.txt", "[PAD]\n[UNK]\nword").kind, "WordPiece");
  EXPECT_EQ(of("vocab.txt", "[PAD]\n[UNK]\nword").vocab_size, 3u);
  EXPECT_EQ(of("vocab.txt", "[PAD]\n[UNK]\n").vocab_size, 2u);
  EXPECT_EQ(of("readme", "").kind, "");
}

TEST_F(Tokenizer, the_pieces_of_a_sentencepiece_model_are_counted) {
  // Two pieces {1: "ab"}, {1: "c", 2: float}, then field 2 (a message of four bytes), a number, a fixed64.
  const std::string model(
      "\x0a\x04\x0a\x02"
      "ab"
      "\x0a\x08\x0a\x01"
      "c\x15\0\0\0\0"
      "\x12\x04\x0a\x02xx"
      "\x18\x96\x01"
      "\x21\0\0\0\0\0\0\0\0",
      6 + 10 + 6 + 3 + 9);
  EXPECT_EQ(of("tokenizer.model", model).kind, "sentencepiece");
  EXPECT_EQ(of("tokenizer.model", model).vocab_size, 2u);
  for (std::size_t size = 1; size < model.size(); ++size) {
    try {
      EXPECT_LE(of("tokenizer.model", std::string_view(model).substr(0, size)).vocab_size, 2u);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::corrupt);
      fs::remove(folder_ / "tokenizer.model");
    }
  }
  EXPECT_WEFT_ERROR(of("tokenizer.model", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), corrupt, "endless number");
}

}  // namespace
}  // namespace weft
