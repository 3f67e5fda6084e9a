#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

// Which point of a lattice is near a combination of levels: what the encoders of IQ1, IQ2 and IQ3 look up.
namespace weft::codec::detail {

struct Lattice {
  int dimensions = 0;                               ///< 8, or 4 for IQ3
  int num_levels = 0;                               ///< 3, or 8 for IQ3
  std::vector<std::array<std::uint8_t, 8>> points;  ///< levels, from 0
  /// By combination, its first level counting least: the point that it is, or -1 - the place in `near` of a number and as many points: those at the
  /// smallest few distances, nearest first.
  std::vector<std::int32_t> at;
  std::vector<std::uint16_t> near;

  [[nodiscard]] std::int32_t combination(const std::uint8_t* levels) const {
    std::int32_t number = 0;
    for (int i = dimensions; i-- > 0;) number = number * num_levels + levels[i];
    return number;
  }
  [[nodiscard]] std::span<const std::uint16_t> neighbours(std::int32_t place) const {
    const auto from = static_cast<std::size_t>(-1 - place);
    return std::span(near).subspan(from + 1, near[from]);
  }
};

// Made at first use, some tens of milliseconds each.
[[nodiscard]] const Lattice& iq1_lattice();
[[nodiscard]] const Lattice& iq2_s_lattice();
[[nodiscard]] const Lattice& iq2_xs_lattice();
[[nodiscard]] const Lattice& iq2_xxs_lattice();
[[nodiscard]] const Lattice& iq3_s_lattice();
[[nodiscard]] const Lattice& iq3_xxs_lattice();

}  // namespace weft::codec::detail
