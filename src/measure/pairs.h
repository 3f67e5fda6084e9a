#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "measure/spectrum.h"
#include "measure/table.h"

// What changed between models.
namespace weft::measure {

/// The group `difference` of two tensors of one shape. columns: 0 for vectors.
void measure_difference(std::span<const double> base, std::span<const double> tuned, std::int64_t rows, std::int64_t columns, Measures& out);
/// The group `intruders` of two matrices.
void measure_intruders(const Matrix& base, const Matrix& tuned, Measures& out);
inline constexpr std::size_t kIntrudersLooked = 10;
inline constexpr double kIntruderBars[] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};

/// Sums over elements of many models' differences from a base.
class TaskVectorSums {
 public:
  explicit TaskVectorSums(std::size_t num_models);
  /// The same elements in the base and in every model.
  void add(std::span<const double> base, std::span<const std::vector<double>> tuned);
  void add(const TaskVectorSums& other);

  std::size_t num_models;
  std::vector<double> gram;                   ///< [models, models]
  std::vector<std::uint64_t> both, opposite;  ///< [models, models]
  std::uint64_t elements = 0, changed_by_any = 0, changed_by_two = 0, conflicting = 0;
};
void put_cosines(const TaskVectorSums& sums, const std::string& set, Measures& out);
void put_signs(const TaskVectorSums& sums, Measures& out);

}  // namespace weft::measure
