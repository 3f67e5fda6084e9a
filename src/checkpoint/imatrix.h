#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

// Importance matrices as llama.cpp writes them: how much each input of each weight matrix matters.
namespace weft {

/// Of one weight matrix, or of a stack of experts' matrices.
struct ImatrixEntry {
  std::uint64_t num_columns = 0;
  std::vector<float> sums;    ///< [experts, columns]: sums of squared inputs
  std::vector<float> counts;  ///< [experts]: of how many tokens

  [[nodiscard]] std::uint64_t num_matrices() const noexcept { return counts.size(); }
  /// [experts, columns]: mean squares in float32, as llama.cpp divides them; ones where no token came by.
  [[nodiscard]] std::vector<float> importance() const;
};

struct Imatrix {
  std::map<std::string, ImatrixEntry, std::less<>> entries;  ///< by the weight's name in GGUF files: "blk.0.attn_q.weight"
  std::vector<std::string> datasets;
  std::uint32_t chunk_count = 0;
  std::uint32_t chunk_size = 0;  ///< tokens; 0 when unknown (the old form)
};

/// Reads the GGUF form or the old binary form (.dat); the content decides which.
/// Errors: io, not_found; corrupt for sizes that do not fit, numbers that are none or below zero, entries without their counterpart.
[[nodiscard]] Imatrix read_imatrix(const std::filesystem::path& file);

}  // namespace weft
