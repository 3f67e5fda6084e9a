#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

namespace weft::testing {

/// A sound Llama of one layer: hidden 4, two heads of two, one for keys and values, feed-forward 6, vocabulary 8, untied, float32.
struct TinyLlama {
  std::vector<StoredTensor> tensors;
  std::string config =
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":4,"intermediate_size":6,"num_hidden_layers":1,"num_attention_heads":2,)"
      R"("num_key_value_heads":1,"vocab_size":8,"tie_word_embeddings":false,"torch_dtype":"float32","rms_norm_eps":1e-06})";
  /// Eight tokens, of which the added one is the last.
  std::string tokenizer = R"({"version":"1.0","added_tokens":[{"id":7,"content":"<e>","special":true},{"id":0,"content":"a","special":false}],)"
                          R"("model":{"type":"BPE","vocab":{"a":0,"b":1,"c\"":2,"d,e":3,"{":4,"}":5,"]":6},"merges":["a b"]}})";

  TinyLlama() {
    add("model.embed_tokens.weight", {8, 4});
    add("model.layers.0.input_layernorm.weight", {4});
    add("model.layers.0.self_attn.q_proj.weight", {4, 4});
    add("model.layers.0.self_attn.k_proj.weight", {2, 4});
    add("model.layers.0.self_attn.v_proj.weight", {2, 4});
    add("model.layers.0.self_attn.o_proj.weight", {4, 4});
    add("model.layers.0.post_attention_layernorm.weight", {4});
    add("model.layers.0.mlp.gate_proj.weight", {6, 4});
    add("model.layers.0.mlp.up_proj.weight", {6, 4});
    add("model.layers.0.mlp.down_proj.weight", {4, 6});
    add("model.norm.weight", {4});
    add("lm_head.weight", {8, 4});
  }

  void add(const std::string& name, const std::vector<std::int64_t>& shape) {
    std::size_t count = 1;
    for (const std::int64_t dim : shape) count *= static_cast<std::size_t>(dim);
    tensors.push_back({name, "F32", shape, bytes_of(std::vector<float>(count, static_cast<float>(tensors.size() + 1)))});
  }
  StoredTensor& tensor(const std::string& name) {
    for (StoredTensor& t : tensors)
      if (t.name == name) return t;
    throw std::out_of_range(name);
  }
  void remove(const std::string& name) {
    std::erase_if(tensors, [&name](const StoredTensor& t) { return t.name == name; });
  }
  void replace_in_config(const std::string& from, const std::string& to) { config.replace(config.find(from), from.size(), to); }

  void write(const std::filesystem::path& folder) const {
    write_file(folder / "model.safetensors", safetensors_of_types(tensors));
    write_file(folder / "config.json", config);
    write_file(folder / "tokenizer.json", tokenizer);
  }
  /// In two shards, the first of six tensors.
  void write_shards(const std::filesystem::path& folder) const {
    const std::vector<StoredTensor> first(tensors.begin(), tensors.begin() + 6), second(tensors.begin() + 6, tensors.end());
    write_file(folder / "model-00001-of-00002.safetensors", safetensors_of_types(first));
    write_file(folder / "model-00002-of-00002.safetensors", safetensors_of_types(second));
    std::string map;
    std::size_t total_bytes = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      map += std::string(map.empty() ? "" : ",") + "\"" + tensors[i].name + "\":\"model-0000" + (i < 6 ? "1" : "2") + "-of-00002.safetensors\"";
      total_bytes += tensors[i].bytes.size();
    }
    write_file(folder / "model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":" + std::to_string(total_bytes) + "},\"weight_map\":{" + map + "}}");
    write_file(folder / "config.json", config);
    write_file(folder / "tokenizer.json", tokenizer);
  }
};

}  // namespace weft::testing
