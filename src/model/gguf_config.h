#pragma once
#include <string>
#include <vector>

#include "checkpoint/gguf_header.h"
#include "checkpoint/json.h"
#include "model/architecture.h"
#include "model/gguf_names.h"

// config.json to the hyperparameters of a GGUF file and back.
namespace weft::model {

/// Appends what llama.cpp needs to run a model of this config, under the keys and with the types that it wants, in its converter's order.
/// file_type: number of the type that most weights have. Errors: those of read_network_config; unsupported for what no key can say.
void add_gguf_hyperparameters(GgufMetadata& metadata, const GgufFamily& family, const Architecture& architecture, const Json& config,
                              std::uint32_t file_type, std::vector<std::string>& warnings);

/// The frequencies' divisors of Llama 3 (`rope_freqs.weight`) and the factors of longrope, by tensor name; empty for other models.
struct GgufConstant {
  std::string name;
  std::vector<float> values;
};
[[nodiscard]] std::vector<GgufConstant> gguf_rope_constants(const Architecture& architecture, const Json& config);

/// What a config needs beside the metadata.
struct GgufModelFacts {
  std::uint64_t vocab_size = 0;  ///< rows of the embedding
  bool tied = false;             ///< there is no output.weight
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  std::vector<float> rope_divisors;  ///< of rope_freqs.weight
  std::vector<float> long_factors, short_factors;
  DType dtype = DType::f32;  ///< of the weights as they will be written
};
/// config.json of the model in a file. Errors: corrupt for missing keys and values that make no sense, unsupported for an unknown architecture.
[[nodiscard]] Json config_of_gguf(const GgufMetadata& metadata, const GgufFamily& family, const GgufModelFacts& facts, const std::string& file,
                                  std::vector<std::string>& warnings);

}  // namespace weft::model
