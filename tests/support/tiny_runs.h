#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "engine/activations.h"
#include "weft/checkpoint.h"

// What tests of quantizing and of whole models run, and how far apart they find the results.
namespace weft::testing {

/// Sequences of tokens below 1000, always the same.
[[nodiscard]] std::shared_ptr<const engine::CalibrationTokens> some_tokens(std::size_t num_sequences, std::size_t length);

/// Of a model's answer to as many tokens of the first of those sequences, [tokens, vocabulary].
[[nodiscard]] std::vector<float> logits_of(const std::string& model, std::size_t num_tokens = 40);

[[nodiscard]] std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name);

/// ||a - b|| / ||a||.
[[nodiscard]] double relative(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace weft::testing
