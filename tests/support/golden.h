#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/json.h"

// Compares the results of merges with stored ones, by rules that are written beside them. Reads safetensors by itself, so that a mistake in our own
// reader cannot hide one in our writer.
namespace weft::testing {

struct GoldenTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
  /// All elements as double. Throws for types that no golden has.
  [[nodiscard]] std::vector<double> values() const;
};
using GoldenModel = std::map<std::string, GoldenTensor>;

[[nodiscard]] GoldenModel read_safetensors(const std::filesystem::path& file);
/// Tensors of a folder, whole or sharded. Throws when index and shards disagree. num_files: from how many files.
[[nodiscard]] GoldenModel read_model_folder(const std::filesystem::path& folder, std::size_t* num_files = nullptr);

struct GoldenIndex {
  std::filesystem::path root;  ///< paths in cases are relative to it
  std::string zoo;             ///< where configs look for the trained models
  std::vector<Json> cases;
};
/// Empty when the file is absent.
[[nodiscard]] GoldenIndex read_golden_index(const std::filesystem::path& index);

[[nodiscard]] std::string golden_text(const Json& object, const char* key);
[[nodiscard]] double golden_number(const Json& object, const char* key, double otherwise);
[[nodiscard]] std::vector<std::string> golden_texts(const Json& object, const char* key);

// Each returns what is wrong, empty when nothing is.
[[nodiscard]] std::string check_merge(const GoldenIndex& index, const Json& golden, const std::filesystem::path& output);
/// outputs: by seed. The random methods: every change is 0 or the same multiple of the difference, shares kept as they should be, seeds differ.
[[nodiscard]] std::string check_statistics(const GoldenIndex& index, const Json& golden, const std::vector<std::filesystem::path>& outputs);

}  // namespace weft::testing
