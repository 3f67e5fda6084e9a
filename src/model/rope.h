#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"

// Rotary positions: which frequencies the halves of a head turn with, under every scaling that configs name.
namespace weft::model {

enum class RopeType : std::uint8_t { standard, linear, dynamic, yarn, llama3, longrope };
[[nodiscard]] std::string_view to_string(RopeType type) noexcept;

struct RopeConfig {
  RopeType type = RopeType::standard;
  double theta = 10'000;
  int dims = 0;  ///< of a head that turn; even
  double factor = 1;
  std::int64_t context = 0;   ///< max_position_embeddings
  std::int64_t original = 0;  ///< the length that the model was trained for before it was stretched
  double attention_factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;                              // yarn
  std::vector<float> short_factor, long_factor;      // longrope

  [[nodiscard]] bool depends_on_length() const noexcept { return type == RopeType::dynamic || type == RopeType::longrope; }
};

/// What a config says about scaling. scaling: `rope_scaling` or (of the newer form) `rope_parameters`, null for none; where: its key, for messages.
/// top_original: original_max_position_embeddings beside it, 0 when absent. Errors: corrupt for values that make no sense, unsupported for an unknown
/// type. Warns of a factor that contradicts the lengths.
[[nodiscard]] RopeConfig read_rope(const Json* scaling, std::string_view where, double theta, int dims, std::int64_t context,
                                   std::int64_t top_original, std::vector<std::string>& warnings);

/// Angle for each position of the pairs (j, j + dims / 2), as float32. length: the largest position of the call + 1.
[[nodiscard]] std::vector<float> inverse_frequencies(const RopeConfig& rope, std::int64_t length);

}  // namespace weft::model
