#include "merge/gram_merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "math/combine.h"
#include "math/elementary.h"
#include "math/reduce.h"

namespace weft::merge {
namespace {

// A tile of columns holds about so many elements, since every tile keeps a sum for each pair and column: a few large tiles.
constexpr std::uint64_t kColumnTileElements = std::uint64_t{1} << 20;

}  // namespace

double GramView::operator()(std::size_t i, std::size_t j) const noexcept {
  return triangle_[i <= j ? math::gram_index(i, j, size_) : math::gram_index(j, i, size_)];
}

double GramView::norm(std::size_t i) const noexcept { return std::sqrt((*this)(i, i)); }

GramMerge::GramMerge(const TensorContext& context, std::vector<std::size_t> vectors, std::optional<std::size_t> base, VectorAxis axis)
    : name_(context.name), warnings_(context.warnings), vectors_(std::move(vectors)), base_(base), axis_(axis) {
  // A tensor of one row (or of one column, asked for columns) is one vector; then chunks do.
  const std::uint64_t n = context.num_elements;
  if (context.shape.size() < 2 || n == 0) axis_ = VectorAxis::whole;
  if (axis_ == VectorAxis::rows) {
    length_ = context.row_length();
    num_slices_ = n / length_;
    tiling_.unit = Tiling::Unit::rows;
  } else if (axis_ == VectorAxis::columns) {
    const std::uint64_t rows = static_cast<std::uint64_t>(context.shape.front());
    num_slices_ = n / rows;
    length_ = num_slices_;
    tiling_.unit = Tiling::Unit::rows;
    const std::uint64_t rows_per_tile = std::clamp<std::uint64_t>(kColumnTileElements / num_slices_ / 64 * 64, 64, 4096);
    tiling_.elements = rows_per_tile * num_slices_;
  }
  if (num_slices_ == 1) {
    axis_ = VectorAxis::whole;
    tiling_ = {};
  }
  // Rows are whole inside a tile: map does everything.
  done_ = axis_ == VectorAxis::rows;
}

std::size_t GramMerge::num_sums() const { return axis_ == VectorAxis::columns ? num_pairs() * length_ : num_pairs(); }

std::vector<const float*> GramMerge::pick(const Tile& tile) const {
  std::vector<const float*> picked;
  picked.reserve(vectors_.size());
  for (const std::size_t i : vectors_) picked.push_back(tile.inputs[i]);
  return picked;
}

void GramMerge::gram_of(const float* base, std::span<const float* const> vectors, std::size_t count, std::span<double> gram) const {
  if (base != nullptr) {
    math::gram_of_deltas(base, vectors, count, gram);
  } else {
    math::gram(vectors, count, gram);
  }
}

void GramMerge::reduce(const Tile& tile, std::span<double> sums, Tally*) const {
  const std::vector<const float*> vectors = pick(tile);
  const float* const base = base_ ? tile.inputs[*base_] : nullptr;
  if (axis_ == VectorAxis::whole) {
    gram_of(base, vectors, tile.count, sums);
    return;
  }
  // Row by row, so that the differences to a base need no more than a row of each.
  const std::size_t n = vectors.size();
  std::vector<std::vector<float>> deltas(base != nullptr ? n : 0, std::vector<float>(length_));
  std::vector<const float*> rows(n);
  for (std::size_t begin = 0; begin < tile.count; begin += length_) {
    for (std::size_t i = 0; i < n; ++i) {
      rows[i] = vectors[i] + begin;
      if (base == nullptr) continue;
      math::subtract({rows[i], length_}, {base + begin, length_}, deltas[i]);
      rows[i] = deltas[i].data();
    }
    std::size_t pair = 0;
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = i; j < n; ++j) math::column_dots(rows[i], rows[j], 1, length_, sums.subspan(pair++ * length_, length_));
  }
}

void GramMerge::solve(std::span<const double> totals, std::span<const std::unique_ptr<Tally>>) {
  done_ = true;
  const std::size_t n = vectors_.size();
  if (axis_ == VectorAxis::whole) {
    weights_.resize(n);
    note(coefficients(GramView(totals, n), weights_));
    return;
  }
  weights_.resize(n * length_);
  std::vector<double> gram(num_pairs());
  std::vector<double> weights(n);
  for (std::size_t c = 0; c < length_; ++c) {
    for (std::size_t k = 0; k < gram.size(); ++k) gram[k] = totals[k * length_ + c];
    note(coefficients(GramView(gram, n), weights));
    for (std::size_t k = 0; k < n; ++k) weights_[k * length_ + c] = weights[k];
  }
}

void GramMerge::combine(const float* base, std::span<const float* const> vectors, std::span<const double> weights, std::span<float> out) const {
  if (base != nullptr) {
    math::add_weighted_deltas_f64({base, out.size()}, vectors, weights, 1.0, out);
  } else {
    math::weighted_sum_f64(vectors, weights, 1.0, out);
  }
}

void GramMerge::map(const Tile& tile, std::span<float> out) const {
  if (axis_ == VectorAxis::rows) return map_rows(tile, out);
  if (axis_ == VectorAxis::columns) return map_columns(tile, out);
  combine(base_ ? tile.inputs[*base_] : nullptr, pick(tile), weights_, out);
}

void GramMerge::map_rows(const Tile& tile, std::span<float> out) const {
  const std::vector<const float*> vectors = pick(tile);
  const std::size_t n = vectors.size();
  const float* const base = base_ ? tile.inputs[*base_] : nullptr;
  std::vector<const float*> rows(n);
  std::vector<double> gram(num_pairs());
  std::vector<double> weights(n);
  for (std::size_t begin = 0; begin < tile.count; begin += length_) {
    for (std::size_t k = 0; k < n; ++k) rows[k] = vectors[k] + begin;
    const float* const base_row = base != nullptr ? base + begin : nullptr;
    gram_of(base_row, rows, length_, gram);
    note(coefficients(GramView(gram, n), weights));
    combine(base_row, rows, weights, out.subspan(begin, length_));
  }
}

void GramMerge::map_columns(const Tile& tile, std::span<float> out) const {
  const std::vector<const float*> vectors = pick(tile);
  const float* const base = base_ ? tile.inputs[*base_] : nullptr;
  std::vector<double> mixed(length_);
  for (std::size_t begin = 0; begin < tile.count; begin += length_) {
    std::fill(mixed.begin(), mixed.end(), 0.0);
    for (std::size_t k = 0; k < vectors.size(); ++k) {
      const float* const row = vectors[k] + begin;
      const double* const weights = weights_.data() + k * length_;
      if (base != nullptr) {
        const float* const base_row = base + begin;
        for (std::size_t c = 0; c < length_; ++c) mixed[c] += weights[c] * (static_cast<double>(row[c]) - static_cast<double>(base_row[c]));
      } else {
        for (std::size_t c = 0; c < length_; ++c) mixed[c] += weights[c] * static_cast<double>(row[c]);
      }
    }
    for (std::size_t c = 0; c < length_; ++c) {
      out[begin + c] = static_cast<float>(base != nullptr ? static_cast<double>(base[begin + c]) + mixed[c] : mixed[c]);
    }
  }
}

void GramMerge::note(Remark remark) const {
  if (remark == nullptr) return;
  const std::lock_guard lock(remarks_mutex_);
  for (auto& [text, count] : remarks_) {
    if (std::strcmp(text, remark) != 0) continue;
    ++count;
    return;
  }
  remarks_.emplace_back(remark, 1);
}

void GramMerge::finish() {
  if (warnings_ == nullptr) return;
  // Rows come to their remarks in no fixed order.
  std::sort(remarks_.begin(), remarks_.end(), [](const auto& a, const auto& b) { return std::strcmp(a.first, b.first) < 0; });
  for (const auto& [text, count] : remarks_) {
    std::string warning = about_tensor(name_, text);
    if (axis_ != VectorAxis::whole) warning += fmt::format(" ({} of {} {})", count, num_slices_, axis_ == VectorAxis::rows ? "rows" : "columns");
    warnings_->push_back(std::move(warning));
  }
}

SphereStep sphere_step(double cosine, double t) noexcept {
  const double angle = math::acos(cosine);
  const double sine = math::sin(angle);
  return {math::sin((1 - t) * angle) / sine, math::sin(t * angle) / sine};
}

std::string about_tensor(const std::string& name, const char* text) { return fmt::format("tensor '{}': {}", name, text); }

}  // namespace weft::merge
