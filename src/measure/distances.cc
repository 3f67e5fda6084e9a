#include "measure/distances.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "math/lapack.h"

namespace weft::measure {

Map classical_map(std::span<const double> distances, std::size_t n, std::size_t dimensions) {
  WEFT_ASSERT(distances.size() == n * n);
  // -1/2 of the squares, centred by rows and columns, are the products of the points.
  std::vector<double> products(n * n), means(n);
  double mean = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      products[i * n + j] = distances[i * n + j] * distances[i * n + j];
      means[i] += products[i * n + j] / static_cast<double>(n);
    }
    mean += means[i] / static_cast<double>(n);
  }
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) products[i * n + j] = -0.5 * (products[i * n + j] - means[i] - means[j] + mean);
  const std::vector<double> values = math::symmetric_eigen(products, static_cast<std::int64_t>(n), math::Vectors::yes);
  double positive = 0;
  for (const double value : values) positive += std::max(0.0, value);
  Map map;
  map.points.resize(n * dimensions);
  for (std::size_t d = 0; d < dimensions; ++d) {
    const double value = d < n ? std::max(0.0, values[n - 1 - d]) : 0;
    map.spread.push_back(positive > 0 ? value / positive : 0);
    if (d >= n) continue;
    const double* axis = products.data() + (n - 1 - d) * n;
    std::size_t largest = 0;
    for (std::size_t i = 1; i < n; ++i)
      if (std::abs(axis[i]) > std::abs(axis[largest]) * (1 + 1e-9)) largest = i;
    const double scale = std::copysign(std::sqrt(value), axis[largest]);
    for (std::size_t i = 0; i < n; ++i) map.points[i * dimensions + d] = scale * axis[i];
  }
  return map;
}

std::vector<Merge> average_linkage(std::span<const double> distances, std::size_t n) {
  WEFT_ASSERT(distances.size() == n * n);
  struct Group {
    std::size_t number;
    std::vector<std::size_t> members;
  };
  std::vector<Group> groups;
  for (std::size_t i = 0; i < n; ++i) groups.push_back({i, {i}});
  std::vector<Merge> tree;
  while (groups.size() > 1) {
    std::size_t best_a = 0, best_b = 1;
    double least = -1;
    for (std::size_t a = 0; a < groups.size(); ++a) {
      for (std::size_t b = a + 1; b < groups.size(); ++b) {
        double sum = 0;
        for (const std::size_t i : groups[a].members)
          for (const std::size_t j : groups[b].members) sum += distances[i * n + j];
        const double mean = sum / static_cast<double>(groups[a].members.size() * groups[b].members.size());
        if (least >= 0 && !(mean < least)) continue;
        least = mean;
        best_a = a;
        best_b = b;
      }
    }
    Group& into = groups[best_a];
    const Group from = groups[best_b];
    tree.push_back({into.number, from.number, least, into.members.size() + from.members.size()});
    into.members.insert(into.members.end(), from.members.begin(), from.members.end());
    into.number = n + tree.size() - 1;
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(best_b));
    // The numbers of groups stay in order, so that ties are broken by them.
    std::sort(groups.begin(), groups.end(), [](const Group& x, const Group& y) { return x.number < y.number; });
  }
  return tree;
}

}  // namespace weft::measure
