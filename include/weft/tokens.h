#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weft/job.h"

namespace weft {

struct TokensOptions : JobOptions {
  // Exactly one of these three.
  std::optional<std::string> tokenizer;            ///< model whose tokenizer the result has; its rows tell what unknown tokens resemble
  std::optional<std::uint64_t> resize;             ///< rows of embedding and head
  std::optional<std::filesystem::path> trim_text;  ///< a text: tokens that it does not need go

  /// How unknown tokens get rows: omp, common_interpolation, landmark_pca, stb, subword, mean, john_hewitt, zero, randn (names of
  /// mergekit-tokensurgeon).
  std::string method = "omp";
  std::uint64_t k = 64;                           ///< points that a row is made of (omp, common_interpolation), or a direction (stb)
  bool cosine = false;                            ///< nearest by angle, not by distance (common_interpolation)
  std::string weights = "distance_proportional";  ///< or barycentric, least_squares (common_interpolation)
  std::string subwords = "mean";                  ///< or sum, weighted_mean, first_last (subword)
  std::string prefix_match = "no";                ///< unknown tokens take the row of their longest known prefix: no, yes, embed, lm_head
  std::string byte_match = "no";                  ///< tokens of one byte take the row of the other spelling of it: no, yes, embed, lm_head
  std::optional<double> noise;                    ///< times N(0, 1), added to new rows
  std::optional<double> scale;                    ///< of new rows
};

struct TokensReport : JobReport {
  std::vector<std::string> notes;  ///< how many tokens kept their rows, and how the others got theirs
};

/// Gives a model another vocabulary: that of another model (as mergekit-tokensurgeon does), one of another size, or its own without tokens that a
/// text does not need. Embedding, head, tokenizer files and the ids in config.json and generation_config.json follow. Shared tokens keep their rows
/// bit for bit. Memory: for omp and common_interpolation the rows that both models share, twice, in float32. Errors: invalid_argument, not_found,
/// unsupported, out_of_memory, and those of every job.
[[nodiscard]] WEFT_API TokensReport edit_tokens(std::string_view model, const std::filesystem::path& output, const TokensOptions& options);

}  // namespace weft
