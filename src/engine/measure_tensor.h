#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/measure_input.h"
#include "measure/elements.h"
#include "measure/spectrum.h"
#include "measure/table.h"
#include "weft/measure.h"

namespace weft::engine {

/// One tensor of one model: what of it is wanted, what that takes, and doing it.
class TensorMeasurement {
 public:
  /// Fills what headers tell; out and the rest must outlive this.
  TensorMeasurement(const MeasuredInput& input, const TensorInfo& tensor, const measure::Selection& selection, const MeasureOptions& options,
                    MeasuredTensor& out);

  /// What run() holds at most.
  [[nodiscard]] std::uint64_t memory_bytes() const;
  /// Reads the tensor once and fills the measures. On one thread.
  void run();
  /// Of the stored bytes; after run().
  [[nodiscard]] std::uint64_t hash() const noexcept { return hash_; }

 private:
  [[nodiscard]] bool is_matrix() const { return reason_.empty() && shape_.rows > 1 && shape_.columns > 1; }
  [[nodiscard]] bool wants_elements() const;
  [[nodiscard]] std::uint64_t block_rows() const;
  [[nodiscard]] bool wants_costly(const char* group);
  void read();
  void add_notes();
  void measure_matrix();
  [[nodiscard]] std::vector<measure::Spectrum> slices(const measure::Spectrum& whole) const;

  const MeasuredInput& input_;
  const TensorInfo& tensor_;
  const measure::Selection& selection_;
  std::uint64_t seed_;
  WeightWatcherSettings weightwatcher_;
  MeasuredTensor& out_;
  std::string reason_;  ///< why there are no values
  MatrixShape shape_;
  bool wants_spectrum_ = false;
  bool spared_ = false;     ///< costly groups are left out
  bool by_blocks_ = false;  ///< the Gram matrix is summed while reading; there is no copy of the matrix
  measure::ElementSummary summary_;
  std::vector<double> matrix_;
  std::vector<double> gram_;
  std::uint64_t hash_ = 0;
};

}  // namespace weft::engine
