#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/merge.h"

namespace weft {

struct SearchOptions : MergeOptions {};

struct SearchReport {
  std::filesystem::path output;
  std::string rule;                                           ///< "lcsc", "cma_es"
  double score = 0;                                           ///< of what was chosen: nats a token, on the text that the search saw
  std::optional<double> held_out;                             ///< and on the one that it did not
  std::vector<std::pair<std::string, double>> baselines;      ///< of what the search began with, by name
  std::vector<double> coefficients;                           ///< of what was chosen, in the order of names
  std::vector<std::string> names;
  std::uint64_t num_evaluations = 0, num_resumed = 0;         ///< altogether, and those that an earlier run had made
  std::vector<std::string> warnings;
  double elapsed_seconds = 0;
};

/// Looks for the coefficients of a merge that give the lowest loss on a text. recipe: a merge config with a section `search`; candidates are built lazily,
/// nothing is written for them. output: the merge config with the coefficients that were found. The same command goes on where it was stopped.
/// Errors: invalid_argument (recipe), those of merge_models, those of evaluate_texts.
[[nodiscard]] WEFT_API SearchReport search(std::string_view recipe, const std::filesystem::path& recipe_name, const std::filesystem::path& output,
                                           const SearchOptions& options = {});

}  // namespace weft
