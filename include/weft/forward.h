#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/job.h"

namespace weft {

enum class Precision : std::uint8_t {
  float32,  ///< every product in float32; weights of 16 bits stay so in memory, since their values are the same
  fast,     ///< weights and the inputs of large products may be rounded to bfloat16
  int8,     ///< the layers' matrices are rounded to 8 bits, with a step for each output, and the inputs of large products likewise, with one for each
            ///< token; embedding, head and routers as fast has them
  packed,   ///< matrices that are quantized stay as they are stored and are multiplied so: those of GGUF's types with inputs rounded to 8 bits in
            ///< blocks of 32, as llama.cpp does, others with inputs in float32; everything else as float32 has it
};

/// What every command that runs a model takes. memory_bytes bounds weights and activations; a model that is larger runs block by block.
struct RunOptions : JobOptions {
  Precision precision = Precision::float32;
};

/// One sequence: its tokens, or a text for the model's tokenizer.
struct ForwardInput {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint32_t> types;  ///< token types of an encoder; empty: all 0
  std::optional<std::string> text;   ///< tokenized with special tokens, and cut to what an encoder takes
};

struct ForwardOptions : RunOptions {
  enum class What : std::uint8_t {
    logits,     ///< "I.logits" [tokens, vocab]
    blocks,     ///< "I.blockN" [tokens, hidden] after each block
    embedding,  ///< "I.embedding" [hidden], "I.hidden" [tokens, hidden], "I.pooler" [hidden] where the model has one
  };
  What what = What::logits;
  enum class Pool : std::uint8_t { mean, cls, last } pool = Pool::mean;
  bool raw = false;              ///< do not divide embeddings by their length
  std::uint64_t max_tokens = 0;  ///< of a text; 0: what the model's files say
};

/// Runs the model on each input and writes what was asked for, in float32, to one safetensors file. I counts the inputs from 0.
/// Errors: invalid_argument for ids beyond the vocabulary and inputs without tokens, unsupported, corrupt, io, no_space, out_of_memory.
[[nodiscard]] WEFT_API JobReport forward(std::string_view model, std::span<const ForwardInput> inputs, const std::filesystem::path& output,
                                         const ForwardOptions& options = {});

}  // namespace weft
