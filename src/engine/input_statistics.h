#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_team.h"
#include "engine/activations.h"
#include "model/architecture.h"

// What the linear layers of a block read, summed up: float32 within 256 tokens, float64 beyond. The order of every sum is that of the tokens alone.
namespace weft::engine {

/// Where linear layers read the same rows: q (also k, v and the fused one), o, up (also gate), down, router, shared_up, shared_down.
struct InputPoint {
  model::Role role = model::Role::unknown;
  int expert = -1;  ///< -1: none
  auto operator<=>(const InputPoint&) const = default;
};
/// The point at which a weight of this role reads; Role::unknown for what is no linear layer of a block.
[[nodiscard]] InputPoint input_point(model::Role role, int expert) noexcept;
/// "q", "up.3".
[[nodiscard]] std::string to_string(const InputPoint& point);

struct InputStatistics {
  InputPoint point;
  std::vector<std::string> weights;  ///< names of the tensors that read here; matrices only
  std::size_t width = 0;
  std::uint64_t num_tokens = 0;   ///< that were summed
  std::uint64_t num_skipped = 0;  ///< that held NaN or infinities
  // One a column.
  std::vector<double> sum, sum_abs, sum_squares;
  std::vector<float> max_abs, min, max;
  /// sum x^T x, symmetric, [width, width] by rows. Empty unless asked for.
  std::vector<double> gram;
  /// sum (original - x)^T x, [width, width]: row i belongs to the difference's column i. Empty unless asked for, and for experts, whose rows in the
  /// two streams are not the same tokens.
  std::vector<double> cross;
};

struct StatisticsRequest {
  bool gram = false;
  bool cross = false;              ///< needs both streams
  std::vector<InputPoint> points;  ///< empty: all
  /// How much each token of all sequences counts in gram and cross; null: all alike. The sums of columns are of all tokens alike.
  std::shared_ptr<const std::vector<double>> token_weights = {};
  /// The last look at this block, which will not be changed any more: its activations go on in the same run, which saves another one.
  bool last = false;
};

/// Bytes that statistics of a point of this width take while they are summed.
[[nodiscard]] std::uint64_t statistics_bytes(std::size_t width, const StatisticsRequest& request) noexcept;

/// sum over rows of a^T b in float64, 256 rows at a time in float32.
class RowProducts {
 public:
  static constexpr std::size_t kRows = 256;

  /// symmetric: b is a, and only what lies on and above the diagonal is computed until finish().
  RowProducts(std::size_t a_columns, std::size_t b_columns, bool symmetric);
  /// Every call but the last gives a multiple of kRows rows.
  void add(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride, std::size_t rows, ThreadTeam& team);
  [[nodiscard]] std::vector<double> finish();

 private:
  std::size_t a_columns_, b_columns_;
  bool symmetric_;
  std::size_t tile_;
  std::vector<double> sums_;
};

/// Gathers statistics of everything that a block's linear layers read. original: rows of the same tokens in the unchanged model, for `cross`.
class StatisticsTap final : public BlockTap {
 public:
  StatisticsTap(StatisticsRequest request, bool skips_non_finite, ThreadTeam& team);
  ~StatisticsTap() override;

  void batch(std::size_t first_sequence, std::size_t num_sequences, std::uint64_t first_token) override;
  void linear_input(int layer, model::Role role, int expert, std::size_t first_row, const model::Rows& rows) override;

  /// What the unchanged block read in this batch; for `cross`, before the batch is run through the changed one.
  class Recorder;
  [[nodiscard]] Recorder& recorder();

  /// In the order of points.
  [[nodiscard]] std::vector<InputStatistics> finish();

 private:
  class Sums;
  StatisticsRequest request_;
  bool skips_non_finite_;
  ThreadTeam& team_;
  std::uint64_t first_token_ = 0;  ///< of the batch
  std::map<InputPoint, std::unique_ptr<Sums>> sums_;
  std::unique_ptr<Recorder> recorder_;
};

/// Keeps the rows of one batch.
class StatisticsTap::Recorder final : public BlockTap {
 public:
  void batch(std::size_t first_sequence, std::size_t num_sequences, std::uint64_t first_token) override;
  void linear_input(int layer, model::Role role, int expert, std::size_t first_row, const model::Rows& rows) override;
  /// Null where there is no such row.
  [[nodiscard]] const float* row(const InputPoint& point, std::size_t row) const;

 private:
  struct Kept {
    std::size_t width = 0;
    std::vector<float> values;
  };
  std::map<InputPoint, Kept> kept_;
};

}  // namespace weft::engine
