#include "codec/iq_lattice.h"

#include "codec/iq_grids.h"

namespace weft::codec::detail {
namespace {

/// num_distances: how many different distances the neighbours of a combination may have.
Lattice make_lattice(std::span<const std::uint16_t> packed, int dimensions, int num_levels, std::size_t num_distances) {
  Lattice lattice;
  lattice.dimensions = dimensions;
  lattice.num_levels = num_levels;
  const int bits = num_levels == 3 ? 2 : 3;
  std::size_t num_combinations = 1;
  for (int i = 0; i < dimensions; ++i) num_combinations *= static_cast<std::size_t>(num_levels);
  lattice.at.assign(num_combinations, -1);
  // One array a dimension, so that the distances of all points are computed side by side.
  std::vector<std::vector<std::uint8_t>> levels(static_cast<std::size_t>(dimensions), std::vector<std::uint8_t>(packed.size()));
  std::vector<bool> is_point(num_combinations, false);
  for (std::size_t p = 0; p < packed.size(); ++p) {
    std::array<std::uint8_t, 8> point{};
    for (int i = 0; i < dimensions; ++i) {
      point[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>((packed[p] >> (bits * i)) & ((1 << bits) - 1));
      levels[static_cast<std::size_t>(i)][p] = point[static_cast<std::size_t>(i)];
    }
    const auto number = static_cast<std::size_t>(lattice.combination(point.data()));
    lattice.at[number] = static_cast<std::int32_t>(p);
    is_point[number] = true;
    lattice.points.push_back(point);
  }
  std::vector<std::uint8_t> distances(packed.size());
  for (std::size_t number = 0; number < num_combinations; ++number) {
    if (is_point[number]) continue;
    std::fill(distances.begin(), distances.end(), std::uint8_t{0});
    auto rest = static_cast<int>(number);
    for (const std::vector<std::uint8_t>& column : levels) {
      const int own = rest % num_levels;
      rest /= num_levels;
      for (std::size_t p = 0; p < packed.size(); ++p) {
        const int apart = column[p] - own;
        distances[p] = static_cast<std::uint8_t>(distances[p] + apart * apart);
      }
    }
    std::array<bool, 256> occurs{};
    for (const std::uint8_t distance : distances) occurs[distance] = true;
    lattice.at[number] = -1 - static_cast<std::int32_t>(lattice.near.size());
    const std::size_t count_at = lattice.near.size();
    lattice.near.push_back(0);
    std::size_t left = num_distances;
    for (unsigned distance = 0; distance < 256 && left != 0; ++distance) {
      if (!occurs[distance]) continue;
      --left;
      for (std::size_t p = 0; p < packed.size(); ++p)
        if (distances[p] == distance) lattice.near.push_back(static_cast<std::uint16_t>(p));
    }
    lattice.near[count_at] = static_cast<std::uint16_t>(lattice.near.size() - count_at - 1);
  }
  return lattice;
}

}  // namespace

const Lattice& iq1_lattice() {
  static const Lattice kLattice = make_lattice(kIq1Packed, 8, 3, 3);
  return kLattice;
}
const Lattice& iq2_s_lattice() {
  static const Lattice kLattice = make_lattice(kIq2SPacked, 8, 3, 1);
  return kLattice;
}
const Lattice& iq2_xs_lattice() {
  static const Lattice kLattice = make_lattice(kIq2XsPacked, 8, 3, 2);
  return kLattice;
}
const Lattice& iq2_xxs_lattice() {
  static const Lattice kLattice = make_lattice(kIq2XxsPacked, 8, 3, 2);
  return kLattice;
}
const Lattice& iq3_s_lattice() {
  static const Lattice kLattice = make_lattice(kIq3SPacked, 4, 8, 3);
  return kLattice;
}
const Lattice& iq3_xxs_lattice() {
  static const Lattice kLattice = make_lattice(kIq3XxsPacked, 4, 8, 2);
  return kLattice;
}

}  // namespace weft::codec::detail
