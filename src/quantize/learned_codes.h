#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/thread_team.h"
#include "codec/packed_linear.h"
#include "quantize/solver.h"

// Codes of a linear layer as a function of a few parameters that can be learned: what a matrix is after rounding, and the gradient of it, which
// takes rounding for the identity (straight through) inside the range of the codes and for a constant outside. Integer codes with a zero point that
// is one of them, half a code, or any number. The result is plain codes, scales and zero points.
namespace weft::quantize {

enum class Learned : std::uint8_t {
  clip,      ///< the ends of each group's range, as shares of its extremes: OmniQuant's learnable weight clipping
  divisor,   ///< a divisor for every weight: FlexRound
  low_rank,  ///< the same, as a product of two thin matrices: LRQ
  weight,    ///< what is added to every weight: AdaQuant
  scale,     ///< scales alone, while the codes stay: decoupleQ's second stage
};

struct LearnedOptions {
  Learned what = Learned::clip;
  std::int64_t rank = 32;  ///< of low_rank
  std::uint64_t seed = 0;  ///< of what low_rank begins with
  /// Learning begins with the codes that are given, whatever made them; otherwise only with their scales, and the weights as they are.
  bool keeps_codes = false;
};

/// Real is float, or double for checks.
template <typename Real>
class LearnedCodes {
 public:
  /// Parameters of one kind.
  struct Part {
    std::string_view name;  ///< low, high, scale, zero, divisor, row, column, left, right, weight
    std::size_t first = 0, count = 0;
    double rate = 1;  ///< of learning, beside those of other parts
  };

  /// weights: [rows, columns], what is to be quantized, 0 where the start adds a value to the codes. start: where learning begins; solver: how it
  /// was made. name: of the tensor, for random
  /// numbers. Errors: invalid_argument for codes that are no integers.
  LearnedCodes(std::span<const float> weights, const codec::QuantizedLinear& start, const SolverOptions& solver, const LearnedOptions& options,
               std::string_view name = "");

  [[nodiscard]] std::int64_t rows() const noexcept { return start_.rows; }
  [[nodiscard]] std::int64_t columns() const noexcept { return start_.columns; }
  [[nodiscard]] const std::vector<Part>& parts() const noexcept { return parts_; }
  [[nodiscard]] std::vector<Real>& parameters() noexcept { return parameters_; }
  /// Empty where there is no such part.
  [[nodiscard]] std::span<Real> part(std::string_view name);

  /// The matrix that the parameters stand for, [rows, columns].
  void values(ThreadTeam& team, std::span<Real> out);
  /// Adds d loss / d parameters to `gradient`, from d loss / d values(), which must have been asked for since the parameters changed.
  void backward(ThreadTeam& team, std::span<const Real> d_values, std::span<Real> gradient) const;
  /// What is stored: scales as their type has them, and codes that were made for those.
  [[nodiscard]] codec::QuantizedLinear codes() const;

  /// From now on every rounding adds what it adds now, so that finite differences see what backward() says. For checks.
  void freeze_rounding(ThreadTeam& team);

 private:
  struct Point {
    Real position;  ///< weight over scale
    Real code;
    bool inside;
  };
  [[nodiscard]] std::size_t scale_at(std::size_t row, std::size_t column) const { return row * groups_ + group_of_[column]; }
  [[nodiscard]] Real weight_at(std::size_t i, std::size_t scale_index) const;
  [[nodiscard]] Point point_at(std::size_t i, std::size_t scale_index) const;
  void add_part(std::string_view name, std::size_t count, double rate);
  [[nodiscard]] std::size_t first_of(std::string_view name) const;
  void update_scales();
  void update_divisors(std::size_t first_row, std::size_t last_row);

  codec::QuantizedLinear start_;
  SolverOptions solver_;
  LearnedOptions options_;
  std::size_t groups_ = 1;
  Real most_ = 15;                       ///< the highest code
  bool between_ = false;                 ///< zero points need be none of the codes: they are added before rounding
  bool one_zero_ = false;                ///< in the middle, for all
  std::vector<std::uint32_t> group_of_;  ///< of each column
  std::vector<Real> weights_;
  std::vector<Real> low_, high_;  ///< of clip: the group's extremes
  std::vector<Part> parts_;
  std::vector<Real> parameters_;
  std::vector<Real> scales_, zeros_;  ///< as the parameters have them, [rows, groups]
  std::vector<Real> shrink_;          ///< 1 / divisor of each weight; empty: 1
  std::vector<Real> log_divisor_;     ///< before it is held to [-1, 1]
  bool frozen_ = false;
  std::vector<Real> frozen_add_, frozen_code_, frozen_zero_;
  std::vector<bool> frozen_inside_;
};

extern template class LearnedCodes<float>;
extern template class LearnedCodes<double>;

}  // namespace weft::quantize
