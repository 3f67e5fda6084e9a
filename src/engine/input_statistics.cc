#include "engine/input_statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/check.h"
#include "math/convert.h"
#include "math/gemm.h"

namespace weft::engine {
namespace {

using model::Role;

/// Rows gathered before they are summed: several tiles, so that a tile of float64 sums is read and written once for them. Experts see few rows.
constexpr std::size_t kBufferRows = 4 * RowProducts::kRows;
/// Elements whose loop has a fixed length, so that the compiler makes vectors of it.
constexpr std::size_t kLanes = 16;
/// Columns summed together.
constexpr std::size_t kColumns = 64;

/// Sums of one run of at most kColumns columns over at most RowProducts::kRows rows.
struct ColumnSums {
  float sum[kColumns], sum_abs[kColumns], sum_squares[kColumns], min[kColumns], max[kColumns];
};

void sum_columns(const float* x, std::size_t stride, std::size_t rows, std::size_t columns, ColumnSums& out) {
  std::fill(std::begin(out.sum), std::end(out.sum), 0.0F);
  std::fill(std::begin(out.sum_abs), std::end(out.sum_abs), 0.0F);
  std::fill(std::begin(out.sum_squares), std::end(out.sum_squares), 0.0F);
  std::fill(std::begin(out.min), std::end(out.min), std::numeric_limits<float>::infinity());
  std::fill(std::begin(out.max), std::end(out.max), -std::numeric_limits<float>::infinity());
  const auto add = [&out](const float* row, std::size_t count) {
    for (std::size_t c = 0; c < count; ++c) {
      const float v = row[c];
      out.sum[c] += v;
      out.sum_abs[c] += std::fabs(v);
      out.sum_squares[c] += v * v;
      out.min[c] = v < out.min[c] ? v : out.min[c];
      out.max[c] = v > out.max[c] ? v : out.max[c];
    }
  };
  for (std::size_t r = 0; r < rows; ++r) {
    if (columns == kColumns)
      add(x + r * stride, kColumns);
    else
      add(x + r * stride, columns);
  }
}

}  // namespace

InputPoint input_point(Role role, int expert) noexcept {
  switch (role) {
    case Role::q:
    case Role::k:
    case Role::v:
    case Role::qkv:
      return {Role::q, -1};
    case Role::o:
      return {Role::o, -1};
    case Role::gate:
    case Role::up:
    case Role::gate_up:
      return {Role::up, expert};
    case Role::down:
      return {Role::down, expert};
    case Role::router:
    case Role::shared_router:
      return {Role::router, -1};
    case Role::shared_gate:
    case Role::shared_up:
      return {Role::shared_up, -1};
    case Role::shared_down:
      return {Role::shared_down, -1};
    default:
      return {};
  }
}

std::string to_string(const InputPoint& point) {
  return point.expert < 0 ? std::string(to_string(point.role)) : fmt::format("{}.{}", to_string(point.role), point.expert);
}

std::uint64_t statistics_bytes(std::size_t width, const StatisticsRequest& request) noexcept {
  const auto w = static_cast<std::uint64_t>(width);
  const std::uint64_t square = w * w * sizeof(double);
  return (request.gram ? square : 0) + (request.cross ? square : 0) + w * (3 * sizeof(double) + 3 * sizeof(float)) +
         w * kBufferRows * sizeof(float) * (1 + (request.cross ? 1 : 0) + (request.token_weights ? 1 : 0));
}

// ---- Products

RowProducts::RowProducts(std::size_t a_columns, std::size_t b_columns, bool symmetric)
    : a_columns_(a_columns),
      b_columns_(b_columns),
      symmetric_(symmetric),
      tile_(std::max(a_columns, b_columns) <= 512 ? 128 : 256),  // small ones still make enough tiles for several threads
      sums_(a_columns * b_columns, 0.0) {}

void RowProducts::add(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride, std::size_t rows, ThreadTeam& team) {
  const std::size_t down = (a_columns_ + tile_ - 1) / tile_, across = (b_columns_ + tile_ - 1) / tile_;
  std::vector<std::pair<std::size_t, std::size_t>> tiles;
  for (std::size_t i = 0; i < down; ++i)
    for (std::size_t j = symmetric_ ? i : 0; j < across; ++j) tiles.emplace_back(i * tile_, j * tile_);
  team.for_each(tiles.size(), [&](std::size_t unit, int) {
    const auto [i, j] = tiles[unit];
    const std::size_t m = std::min(tile_, a_columns_ - i), n = std::min(tile_, b_columns_ - j);
    thread_local std::vector<float> product;
    product.resize(m * n);
    for (std::size_t r = 0; r < rows; r += kRows) {
      math::gemm_tn(m, n, std::min(kRows, rows - r), a + r * a_stride + i, a_stride, b + r * b_stride + j, b_stride, product.data(), n);
      for (std::size_t y = 0; y < m; ++y) {
        double* to = sums_.data() + (i + y) * b_columns_ + j;
        const float* from = product.data() + y * n;
        std::size_t x = 0;
        for (; x + kLanes <= n; x += kLanes)
          for (std::size_t lane = 0; lane < kLanes; ++lane) to[x + lane] += static_cast<double>(from[x + lane]);
        for (; x < n; ++x) to[x] += static_cast<double>(from[x]);
      }
    }
  });
}

std::vector<double> RowProducts::finish() {
  if (symmetric_)
    for (std::size_t i = 0; i < a_columns_; ++i)
      for (std::size_t j = 0; j < i; ++j) sums_[i * b_columns_ + j] = sums_[j * b_columns_ + i];
  return std::move(sums_);
}

// ---- Sums of one point

class StatisticsTap::Sums {
 public:
  Sums(const InputPoint& point, std::size_t width, const StatisticsRequest& request)
      : rows_at_once_(point.expert < 0 ? kBufferRows : RowProducts::kRows) {
    out_.point = point;
    out_.width = width;
    out_.sum.resize(width);
    out_.sum_abs.resize(width);
    out_.sum_squares.resize(width);
    out_.max_abs.resize(width);
    out_.min.resize(width, std::numeric_limits<float>::infinity());
    out_.max.resize(width, -std::numeric_limits<float>::infinity());
    buffer_.resize(rows_at_once_ * width);
    if (request.token_weights) weighted_.resize(buffer_.size());
    if (request.gram) gram_.emplace_back(width, width, true);
    if (request.cross && point.expert < 0) {
      cross_.emplace_back(width, width, false);
      differences_.resize(buffer_.size());
    }
  }

  [[nodiscard]] bool wants_original() const noexcept { return !cross_.empty(); }

  /// weight: of the token, in products.
  void add(const float* row, const float* original, double weight, bool skips_non_finite, ThreadTeam& team) {
    if (skips_non_finite &&
        (math::count_non_finite({row, out_.width}) > 0 || (original != nullptr && math::count_non_finite({original, out_.width}) > 0))) {
      ++out_.num_skipped;
      return;
    }
    std::memcpy(buffer_.data() + filled_ * out_.width, row, out_.width * sizeof(float));
    // Both factors of a product take the root of the weight.
    const auto root = static_cast<float>(std::sqrt(weight));
    if (!weighted_.empty()) {
      float* weighted = weighted_.data() + filled_ * out_.width;
      for (std::size_t c = 0; c < out_.width; ++c) weighted[c] = row[c] * root;
    }
    if (wants_original()) {
      WEFT_ASSERT(original != nullptr);
      float* difference = differences_.data() + filled_ * out_.width;
      for (std::size_t c = 0; c < out_.width; ++c) difference[c] = (original[c] - row[c]) * root;
    }
    if (++filled_ == rows_at_once_) flush(team);
  }

  InputStatistics finish(ThreadTeam& team) {
    flush(team);
    for (std::size_t c = 0; c < out_.width; ++c) out_.max_abs[c] = std::max(std::fabs(out_.min[c]), std::fabs(out_.max[c]));
    if (!gram_.empty()) out_.gram = gram_.front().finish();
    if (!cross_.empty()) out_.cross = cross_.front().finish();
    return std::move(out_);
  }

 private:
  void flush(ThreadTeam& team) {
    if (filled_ == 0) return;
    const std::size_t width = out_.width;
    const float* rows = buffer_.data();
    const auto columns_unit = [&](std::size_t unit) {
      const std::size_t first = unit * kColumns, count = std::min(kColumns, width - first);
      ColumnSums sums;
      for (std::size_t r = 0; r < filled_; r += RowProducts::kRows) {
        sum_columns(rows + r * width + first, width, std::min(RowProducts::kRows, filled_ - r), count, sums);
        for (std::size_t c = 0; c < count; ++c) {
          out_.sum[first + c] += static_cast<double>(sums.sum[c]);
          out_.sum_abs[first + c] += static_cast<double>(sums.sum_abs[c]);
          out_.sum_squares[first + c] += static_cast<double>(sums.sum_squares[c]);
          out_.min[first + c] = std::min(out_.min[first + c], sums.min[c]);
          out_.max[first + c] = std::max(out_.max[first + c], sums.max[c]);
        }
      }
    };
    team.for_each((width + kColumns - 1) / kColumns, [&](std::size_t unit, int) { columns_unit(unit); });
    const float* factors = weighted_.empty() ? rows : weighted_.data();
    if (!gram_.empty()) gram_.front().add(factors, width, factors, width, filled_, team);
    if (!cross_.empty()) cross_.front().add(differences_.data(), width, factors, width, filled_, team);
    out_.num_tokens += filled_;
    filled_ = 0;
  }

  InputStatistics out_;
  std::size_t rows_at_once_;
  std::size_t filled_ = 0;
  std::vector<float> buffer_, weighted_, differences_;
  std::vector<RowProducts> gram_, cross_;  ///< none or one
};

// ---- Taps

StatisticsTap::StatisticsTap(StatisticsRequest request, bool skips_non_finite, ThreadTeam& team)
    : request_(std::move(request)), skips_non_finite_(skips_non_finite), team_(team) {
  if (request_.cross) recorder_ = std::make_unique<Recorder>();
}
StatisticsTap::~StatisticsTap() = default;

StatisticsTap::Recorder& StatisticsTap::recorder() {
  WEFT_ASSERT(recorder_ != nullptr);
  return *recorder_;
}

void StatisticsTap::linear_input(int, Role role, int expert, std::size_t first_row, const model::Rows& rows) {
  const InputPoint point = input_point(role, expert);
  if (point.role == Role::unknown) return;
  if (!request_.points.empty() && std::find(request_.points.begin(), request_.points.end(), point) == request_.points.end()) return;
  std::unique_ptr<Sums>& sums = sums_[point];
  if (!sums) sums = std::make_unique<Sums>(point, rows.num_columns, request_);
  for (std::size_t r = 0; r < rows.num_rows; ++r) {
    const double weight =
        request_.token_weights ? request_.token_weights->at(first_token_ + first_row + (rows.places == nullptr ? r : rows.places[r])) : 1;
    sums->add(rows.row(r), sums->wants_original() ? recorder_->row(point, first_row + r) : nullptr, weight, skips_non_finite_, team_);
  }
}

void StatisticsTap::batch(std::size_t, std::size_t, std::uint64_t first_token) { first_token_ = first_token; }

std::vector<InputStatistics> StatisticsTap::finish() {
  std::vector<InputStatistics> all;
  for (auto& [point, sums] : sums_) all.push_back(sums->finish(team_));
  sums_.clear();
  return all;
}

void StatisticsTap::Recorder::batch(std::size_t, std::size_t, std::uint64_t) {
  for (auto& [point, kept] : kept_) kept.values.clear();
}

void StatisticsTap::Recorder::linear_input(int, Role role, int expert, std::size_t first_row, const model::Rows& rows) {
  const InputPoint point = input_point(role, expert);
  if (point.role == Role::unknown || point.expert >= 0) return;
  Kept& kept = kept_[point];
  kept.width = rows.num_columns;
  if (kept.values.size() < (first_row + rows.num_rows) * kept.width) kept.values.resize((first_row + rows.num_rows) * kept.width);
  for (std::size_t r = 0; r < rows.num_rows; ++r)
    std::memcpy(kept.values.data() + (first_row + r) * kept.width, rows.row(r), kept.width * sizeof(float));
}

const float* StatisticsTap::Recorder::row(const InputPoint& point, std::size_t row) const {
  const auto found = kept_.find(point);
  if (found == kept_.end() || (row + 1) * found->second.width > found->second.values.size()) return nullptr;
  return found->second.values.data() + row * found->second.width;
}

}  // namespace weft::engine
