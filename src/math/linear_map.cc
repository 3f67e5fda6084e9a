#include "math/linear_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "base/check.h"
#include "base/philox.h"
#include "math/lapack.h"
#include "weft/error.h"

namespace weft::math {
namespace {

constexpr std::int64_t kMostDense = 4096;
constexpr double kClose = 1e-9;
/// Small factors that stand before Sylvester's: beyond this order the product by rows costs more than it mixes.
constexpr std::int64_t kMostSmall = 512;

bool is_prime(std::int64_t n) {
  if (n < 2) return false;
  for (std::int64_t d = 2; d * d <= n; ++d)
    if (n % d == 0) return false;
  return true;
}

/// Whether a is a square modulo the prime q: 0 for 0, 1 for squares, -1 for others.
std::vector<int> quadratic_characters(std::int64_t q) {
  std::vector<int> chi(static_cast<std::size_t>(q), -1);
  chi[0] = 0;
  for (std::int64_t i = 1; i < q; ++i) chi[static_cast<std::size_t>(i * i % q)] = 1;
  return chi;
}

/// Paley's first construction, order q + 1 for a prime q = 3 (mod 4).
std::vector<double> paley_one(std::int64_t q) {
  const std::vector<int> chi = quadratic_characters(q);
  const auto n = static_cast<std::size_t>(q + 1);
  std::vector<double> h(n * n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      double value = 0;
      if (i == 0)
        value = 1;  // identity plus the skew part's first row
      else if (j == 0)
        value = -1;
      else
        value = i == j ? 1 : chi[(j + static_cast<std::size_t>(q) - i) % static_cast<std::size_t>(q)];
      h[i * n + j] = value;
    }
  return h;
}

/// Paley's second construction, order 2 (q + 1) for a prime q = 1 (mod 4).
std::vector<double> paley_two(std::int64_t q) {
  const std::vector<int> chi = quadratic_characters(q);
  const auto m = static_cast<std::size_t>(q + 1), n = 2 * m;
  std::vector<double> h(n * n);
  for (std::size_t i = 0; i < m; ++i)
    for (std::size_t j = 0; j < m; ++j) {
      double s = 1;
      if (i == j)
        s = 0;
      else if (i > 0 && j > 0)
        s = chi[(j + static_cast<std::size_t>(q) - i) % static_cast<std::size_t>(q)];
      // 0 becomes [[1, -1], [-1, -1]], s becomes s [[1, 1], [1, -1]].
      h[2 * i * n + 2 * j] = i == j ? 1 : s;
      h[2 * i * n + 2 * j + 1] = i == j ? -1 : s;
      h[(2 * i + 1) * n + 2 * j] = i == j ? -1 : s;
      h[(2 * i + 1) * n + 2 * j + 1] = i == j ? -1 : -s;
    }
  return h;
}

/// Order 1, or one that Paley gives; empty otherwise.
std::vector<double> small_hadamard(std::int64_t order) {
  if (order == 1) return {1};
  if (order % 4 != 0) return {};
  if (is_prime(order - 1)) return paley_one(order - 1);
  if (order % 8 == 4 && is_prime(order / 2 - 1)) return paley_two(order / 2 - 1);
  return {};
}

/// The least order of a small Hadamard matrix that times a power of two makes this one; 0: none.
std::int64_t small_order(std::int64_t order) {
  if (order < 1) return 0;
  std::int64_t small = order;
  while (small % 2 == 0) small /= 2;
  for (; small <= std::min(order, kMostSmall); small *= 2)
    if (!small_hadamard(small).empty()) return small;
  return 0;
}

/// Standard normal numbers.
std::vector<double> normals(std::size_t count, std::uint64_t seed) {
  const RandomStream random = RandomStream::of(seed, "orthogonal", 0, 0);
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; i += 2) {
    const double radius = std::sqrt(-2 * std::log(1 - static_cast<double>(random.uniform(i))));
    const double angle = 2 * std::numbers::pi * static_cast<double>(random.uniform(i + 1));
    values[i] = radius * std::cos(angle);
    if (i + 1 < count) values[i + 1] = radius * std::sin(angle);
  }
  return values;
}

/// The orthogonal matrix nearest to one of normal numbers is uniform among all.
std::vector<double> random_orthogonal(std::int64_t size, std::uint64_t seed) {
  if (size == 1) return {1};
  const auto n = static_cast<std::size_t>(size);
  std::vector<double> gaussian = normals(n * n, seed);
  const Svd parts = svd(gaussian, size, size);
  std::vector<double> q(n * n);
  gemm(Transpose::no, Transpose::no, size, size, size, 1, parts.left.data(), size, parts.right.data(), size, 0, q.data(), size);
  return q;
}

double distance_from_identity(const std::vector<double>& m, std::int64_t size) {
  const auto n = static_cast<std::size_t>(size);
  std::vector<double> product(n * n);
  gemm(Transpose::no, Transpose::yes, size, size, size, 1, m.data(), size, m.data(), size, 0, product.data(), size);
  double worst = 0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) worst = std::max(worst, std::abs(product[i * n + j] - (i == j ? 1 : 0)));
  return worst;
}

class Kronecker final : public LinearMap {
 public:
  /// small: orthogonal [order, order]; signs empty for none.
  Kronecker(std::vector<double> small, std::size_t order, std::size_t power, std::vector<double> signs)
      : small_(std::move(small)), order_(order), power_(power), signs_(std::move(signs)) {}

  [[nodiscard]] std::size_t size() const noexcept override { return order_ * power_; }
  [[nodiscard]] bool is_orthogonal() const noexcept override { return true; }
  void apply(double* x, std::size_t rows) const override {
    std::vector<double> mixed(order_ > 1 ? size() : 0);
    for (std::size_t r = 0; r < rows; ++r) {
      double* row = x + r * size();
      for (std::size_t i = 0; i < signs_.size(); ++i) row[i] *= signs_[i];
      if (order_ > 1) {
        for (std::size_t a = 0; a < order_; ++a) {
          double* to = mixed.data() + a * power_;
          std::fill(to, to + power_, 0.0);
          for (std::size_t b = 0; b < order_; ++b) {
            const double factor = small_[a * order_ + b];
            const double* from = row + b * power_;
            for (std::size_t j = 0; j < power_; ++j) to[j] += factor * from[j];
          }
        }
        std::copy(mixed.begin(), mixed.end(), row);
      }
      for (std::size_t a = 0; a < order_; ++a) fast_hadamard(row + a * power_, power_, 1);
    }
  }
  void apply_dual(double* x, std::size_t rows) const override { apply(x, rows); }

 private:
  std::vector<double> small_;
  std::size_t order_, power_;
  std::vector<double> signs_;
};

class Dense final : public LinearMap {
 public:
  Dense(std::vector<double> values, std::vector<double> dual, std::int64_t size) : values_(std::move(values)), dual_(std::move(dual)), size_(size) {}
  [[nodiscard]] std::size_t size() const noexcept override { return static_cast<std::size_t>(size_); }
  [[nodiscard]] bool is_orthogonal() const noexcept override { return dual_.empty(); }
  void apply(double* x, std::size_t rows) const override { multiply(values_, x, rows); }
  void apply_dual(double* x, std::size_t rows) const override { multiply(dual_.empty() ? values_ : dual_, x, rows); }

 private:
  void multiply(const std::vector<double>& m, double* x, std::size_t rows) const {
    const std::vector<double> old(x, x + rows * size());
    gemm(Transpose::no, Transpose::yes, static_cast<std::int64_t>(rows), size_, size_, 1, old.data(), size_, m.data(), size_, 0, x, size_);
  }
  std::vector<double> values_, dual_;  ///< dual_ empty: orthogonal
  std::int64_t size_;
};

class KeepsMean final : public LinearMap {
 public:
  explicit KeepsMean(std::shared_ptr<const LinearMap> map)
      : map_(std::move(map)), across_(map_->size(), 1 / std::sqrt(static_cast<double>(map_->size()))) {
    WEFT_ASSERT(map_->is_orthogonal());
    const std::vector<double> ones = across_;
    map_->apply(across_.data(), 1);
    double squares = 0;
    for (std::size_t i = 0; i < across_.size(); ++i) {
      across_[i] -= ones[i];
      squares += across_[i] * across_[i];
    }
    if (squares < 1e-28) across_.clear();
    for (double& value : across_) value *= std::sqrt(2 / squares);
  }
  [[nodiscard]] std::size_t size() const noexcept override { return map_->size(); }
  [[nodiscard]] bool is_orthogonal() const noexcept override { return true; }
  void apply(double* x, std::size_t rows) const override {
    map_->apply(x, rows);
    if (across_.empty()) return;
    for (std::size_t r = 0; r < rows; ++r) {
      double* row = x + r * size();
      double along = 0;
      for (std::size_t i = 0; i < across_.size(); ++i) along += across_[i] * row[i];
      for (std::size_t i = 0; i < across_.size(); ++i) row[i] -= along * across_[i];
    }
  }
  void apply_dual(double* x, std::size_t rows) const override { apply(x, rows); }

 private:
  std::shared_ptr<const LinearMap> map_;
  std::vector<double> across_;  ///< sqrt(2) times the unit normal of the reflection; empty: none
};

void check_size(std::int64_t size, std::int64_t most) {
  if (size >= 1 && size <= most) return;
  throw Error(ErrorCode::invalid_argument, fmt::format("a matrix of size {} is asked for, where 1 to {} is possible", size, most), {},
              size < 1 ? "" : "a Hadamard matrix of this size may be had instead, or one that is given");
}

}  // namespace

std::vector<double> hadamard_matrix(std::int64_t order) {
  const std::int64_t small = small_order(order);
  if (small == 0) return {};
  auto n = static_cast<std::size_t>(small);
  std::vector<double> h = small_hadamard(small);
  for (std::int64_t power = order / small; power > 1; power /= 2) {
    std::vector<double> twice(4 * n * n);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) {
        // Sylvester's matrix in the inner place, as make_hadamard_map has it.
        const double value = h[i * n + j];
        twice[2 * i * 2 * n + 2 * j] = twice[2 * i * 2 * n + 2 * j + 1] = twice[(2 * i + 1) * 2 * n + 2 * j] = value;
        twice[(2 * i + 1) * 2 * n + 2 * j + 1] = -value;
      }
    h = std::move(twice);
    n *= 2;
  }
  return h;
}

void fast_hadamard(double* x, std::size_t n, std::size_t inner) {
  WEFT_ASSERT(n > 0 && (n & (n - 1)) == 0);
  for (std::size_t half = inner; half < n * inner; half *= 2)
    for (std::size_t block = 0; block < n * inner; block += 2 * half)
      for (std::size_t j = block; j < block + half; ++j) {
        const double a = x[j], b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
  const double factor = 1 / std::sqrt(static_cast<double>(n));
  for (std::size_t j = 0; j < n * inner; ++j) x[j] *= factor;
}

std::shared_ptr<const LinearMap> make_hadamard_map(std::int64_t size, Signs signs, std::uint64_t seed) {
  check_size(size, std::int64_t{1} << 24);
  std::int64_t order = small_order(size);
  std::vector<double> small;
  if (order == 0) {
    for (order = size; order % 2 == 0;) order /= 2;
    check_size(order, kMostDense);
    small = random_orthogonal(order, seed);
  } else {
    small = small_hadamard(order);
    for (double& value : small) value /= std::sqrt(static_cast<double>(order));
  }
  std::vector<double> flips;
  if (signs == Signs::random) {
    const RandomStream random = RandomStream::of(seed, "signs", 0, 0);
    flips.resize(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < flips.size(); ++i) flips[i] = random.uniform(i) < 0.5F ? -1 : 1;
  }
  return std::make_shared<Kronecker>(std::move(small), static_cast<std::size_t>(order), static_cast<std::size_t>(size / order), std::move(flips));
}

std::shared_ptr<const LinearMap> make_random_orthogonal(std::int64_t size, std::uint64_t seed) {
  check_size(size, kMostDense);
  return std::make_shared<Dense>(random_orthogonal(size, seed), std::vector<double>(), size);
}

std::shared_ptr<const LinearMap> make_matrix_map(std::vector<double> values, std::int64_t size) {
  check_size(size, std::int64_t{1} << 16);
  const auto n = static_cast<std::size_t>(size);
  if (values.size() != n * n)
    throw Error(ErrorCode::invalid_argument, fmt::format("{} numbers make no matrix [{}, {}]", values.size(), size, size), {}, "");
  if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); }))
    throw Error(ErrorCode::invalid_argument, "the matrix holds NaN or infinities", {}, "give one of finite numbers");
  if (distance_from_identity(values, size) <= kClose) return std::make_shared<Dense>(std::move(values), std::vector<double>(), size);
  std::vector<double> scratch = values;
  Svd parts = svd(scratch, size, size);
  if (!(parts.values.back() > parts.values.front() * 1e-12))
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the matrix is singular: its singular values lie between {:.3g} and {:.3g}", parts.values.back(), parts.values.front()),
                {}, "only a map that can be undone leaves a network's function alone");
  // M = U S V, so M^-T = U S^-1 V.
  for (std::size_t k = 0; k < n; ++k)
    for (std::size_t j = 0; j < n; ++j) parts.right[k * n + j] /= parts.values[k];
  std::vector<double> dual(n * n);
  gemm(Transpose::no, Transpose::no, size, size, size, 1, parts.left.data(), size, parts.right.data(), size, 0, dual.data(), size);
  return std::make_shared<Dense>(std::move(values), std::move(dual), size);
}

std::shared_ptr<const LinearMap> keeping_the_mean(std::shared_ptr<const LinearMap> map) { return std::make_shared<KeepsMean>(std::move(map)); }

bool keeps_the_mean(const LinearMap& map) {
  std::vector<double> ones(map.size(), 1);
  map.apply(ones.data(), 1);
  return std::all_of(ones.begin(), ones.end(), [](double value) { return std::abs(value - 1) <= kClose; });
}

}  // namespace weft::math
