#pragma once
#include <cstdint>

// The lattices of the types IQ1, IQ2 and IQ3: which combinations of 8 (IQ3: 4) magnitudes a code may stand for. Part of the format.
namespace weft::codec::detail {

// Packed: the level of element j is in bits 2j and 2j + 1 (IQ3: 3j to 3j + 2).
extern const std::uint16_t kIq1Packed[2048];    ///< levels -1, 0, 1
extern const std::uint16_t kIq2SPacked[1024];   ///< levels 8, 25, 43
extern const std::uint16_t kIq2XsPacked[512];   ///< levels 8, 25, 43
extern const std::uint16_t kIq2XxsPacked[256];  ///< levels 8, 25, 43
extern const std::uint16_t kIq3SPacked[512];    ///< levels 1, 3, ... 15
extern const std::uint16_t kIq3XxsPacked[256];  ///< levels 4, 12, 20, 28, 36, 44, 52, 62

/// The tables as bytes; made on first use.
struct IqGrids {
  std::int8_t iq1[2048][8];
  std::int8_t iq2_s[1024][8];
  std::int8_t iq2_xs[512][8];
  std::int8_t iq2_xxs[256][8];
  std::int8_t iq3_s[512][4];
  std::int8_t iq3_xxs[256][4];
};
[[nodiscard]] const IqGrids& iq_grids();

}  // namespace weft::codec::detail
