#pragma once
#include <cstddef>
#include <span>
#include <vector>

// Pictures of a matrix of distances [n, n]: a map, and a tree.
namespace weft::measure {

/// Classical scaling: points whose distances come nearest to these.
struct Map {
  std::vector<double>
      points;  ///< [n, dimensions], centred; the first axis spreads most. An axis' largest coordinate (the first of equals) is positive
  std::vector<double> spread;  ///< of each axis: its eigenvalue over the sum of all positive ones
};
[[nodiscard]] Map classical_map(std::span<const double> distances, std::size_t n, std::size_t dimensions);

/// Average linkage: the two nearest groups become one, again and again. Groups below n are single points, n + k is what merge k made.
struct Merge {
  std::size_t a = 0, b = 0;  ///< a < b; of equally near pairs the first
  double height = 0;         ///< mean distance between the members of both
  std::size_t size = 0;      ///< members of the result
};
[[nodiscard]] std::vector<Merge> average_linkage(std::span<const double> distances, std::size_t n);

}  // namespace weft::measure
