#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "merge/method.h"

namespace weft::merge {

/// A symmetric matrix of inner products, stored as its upper triangle.
class GramView {
 public:
  GramView(std::span<const double> triangle, std::size_t size) : triangle_(triangle), size_(size) {}

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] double operator()(std::size_t i, std::size_t j) const noexcept;
  /// Length of vector i.
  [[nodiscard]] double norm(std::size_t i) const noexcept;

 private:
  std::span<const double> triangle_;
  std::size_t size_;
};

/// Along what the vectors of a tensor run.
enum class VectorAxis {
  whole,    ///< the tensor is one vector
  rows,     ///< each slice along the last axis
  columns,  ///< each slice along the first axis
};

/// What a solve adds to its coefficients: nothing, or a sentence for people (a string literal) that ends "...; WHAT IS DONE ABOUT IT".
using Remark = const char*;

/// A merge that knows its inputs only by their lengths and the angles between them, so that one pass for the Gram matrix, a small solve and one
/// weighted sum do it. With a base the vectors are the differences to it (taken in float64) and the result is base + sum_k c_k (x_k - base), without
/// one it is sum_k c_k x_k. Sums in float64; the result is rounded once.
///
/// Memory: whole: N (N + 1) / 2 doubles a tile; rows: a row of each input; columns: as many doubles a column of a tile, and N a column.
class GramMerge : public TensorMerge {
 public:
  [[nodiscard]] Tiling tiling() const override { return tiling_; }
  [[nodiscard]] Pass next_pass() const override { return done_ ? Pass::none : Pass::whole; }
  [[nodiscard]] std::size_t num_sums() const override;
  void reduce(const Tile& tile, std::span<double> sums, Tally*) const override;
  void solve(std::span<const double> totals, std::span<const std::unique_ptr<Tally>>) override;
  void map(const Tile& tile, std::span<float> out) const override;
  void finish() override;

 protected:
  /// vectors: positions in context.inputs, in the order of the Gram matrix. base: position, or none.
  GramMerge(const TensorContext& context, std::vector<std::size_t> vectors, std::optional<std::size_t> base, VectorAxis axis = VectorAxis::whole);

  /// From the Gram matrix of one vector of each input to its coefficients [gram.size()]. Pure; called from many threads when the axis is rows.
  /// May throw invalid_argument when the axis is whole.
  virtual Remark coefficients(const GramView& gram, std::span<double> out) const = 0;

  [[nodiscard]] const std::string& name() const noexcept { return name_; }

 private:
  [[nodiscard]] std::size_t num_pairs() const noexcept { return vectors_.size() * (vectors_.size() + 1) / 2; }
  [[nodiscard]] std::vector<const float*> pick(const Tile& tile) const;
  void gram_of(const float* base, std::span<const float* const> vectors, std::size_t count, std::span<double> gram) const;
  void combine(const float* base, std::span<const float* const> vectors, std::span<const double> weights, std::span<float> out) const;
  void map_rows(const Tile& tile, std::span<float> out) const;
  void map_columns(const Tile& tile, std::span<float> out) const;
  void note(Remark remark) const;

  std::string name_;
  std::vector<std::string>* warnings_;
  std::vector<std::size_t> vectors_;
  std::optional<std::size_t> base_;
  VectorAxis axis_;
  Tiling tiling_;
  std::size_t length_ = 0;        ///< of a row, or number of columns
  std::uint64_t num_slices_ = 1;  ///< vectors of each input
  bool done_ = false;
  std::vector<double> weights_;  ///< whole: [N]; columns: [N, columns]

  mutable std::mutex remarks_mutex_;
  mutable std::vector<std::pair<Remark, std::uint64_t>> remarks_;  ///< with the number of vectors
};

/// Positions beyond this are refused: angles up to pi times it must stay within the range of math::sin.
inline constexpr double kLargestStep = 1e5;

/// sin((1 - t) th) / sin(th) and sin(t th) / sin(th) for the angle th with the given cosine: the weights of a step along the sphere. |cosine| < 1.
struct SphereStep {
  double first = 0;
  double second = 0;
};
[[nodiscard]] SphereStep sphere_step(double cosine, double t) noexcept;

/// A warning or an error about one tensor, in one form for all methods.
[[nodiscard]] std::string about_tensor(const std::string& name, const char* text);

}  // namespace weft::merge
