#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weft/job.h"

namespace weft {

struct RecipeOptions : JobOptions {
  bool strict = false;                                      ///< unknown keys and parameters of merges are errors, not warnings
  bool allow_crimes = false;                                ///< merges of models of different architectures
  bool seed_given = false;                                  ///< seed counts even where the recipe has one
  std::optional<std::filesystem::path> transformers_cache;  ///< where hub ids are looked up
};

/// A step of the chain, as it was planned.
struct RecipeStep {
  std::string name;
  std::string verb;                 ///< "merge", "edit", "fold", "convert", "quantize"
  std::string summary;              ///< "ties", "3 operations", "./lora", "bfloat16"
  std::vector<std::string> inputs;  ///< models and earlier steps
  std::uint64_t num_tensors = 0;    ///< of its result
  std::uint64_t size_bytes = 0;     ///< of its result, were it written
};

struct RecipeReport : JobReport {
  std::vector<RecipeStep> steps;
};

/// Carries out a recipe: steps over named checkpoints, stacked on each other without files in between, in one pass that writes the last one's result.
/// All of it is planned, and so checked, before anything is written. output: counts before the recipe's own. Paths in it are relative to the current
/// folder. Errors: invalid_argument (recipe), and those of the steps.
[[nodiscard]] WEFT_API RecipeReport run_recipe(std::string_view recipe_text, const std::filesystem::path& recipe_name,
                                               const std::optional<std::filesystem::path>& output, const RecipeOptions& options = {});

}  // namespace weft
