#pragma once
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "math/targets.h"

// What the tests of kernels share: every CPU target, seeded numbers, buffers that notice stray access.
namespace weft::test {

/// Runs `check` with the kernels restricted to each target in turn; says which are skipped and asserts which one really runs.
inline void on_every_target(const std::function<void()>& check) {
  for (const math::SimdTarget& target : math::compiled_targets()) {
    if (!target.supported) {
      std::cout << "skipped: " << target.name << " is not supported by this machine\n";
      continue;
    }
    math::use_only_target(target.bit);
    ASSERT_EQ(math::active_target(), target.name);
    SCOPED_TRACE("on target " + target.name);
    check();
    if (::testing::Test::HasFatalFailure()) break;
  }
  math::use_only_target(0);
}

/// The seed of all random inputs; WEFT_TEST_SEED overrides it.
inline std::uint64_t test_seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("WEFT_TEST_SEED");
    return text == nullptr ? std::uint64_t{20240607} : std::strtoull(text, nullptr, 10);
  }();
  return seed;
}

/// splitmix64.
class Random {
 public:
  explicit Random(std::uint64_t salt) : state_(test_seed() * 0x9E3779B97F4A7C15ULL + salt) {}
  std::uint64_t bits() {
    std::uint64_t x = state_ += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
  }
  std::uint64_t below(std::uint64_t bound) { return bits() % bound; }
  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// About normal: the sum of 12 uniforms less 6, times scale. No library function, so the same everywhere.
  float normal(double scale = 1) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return static_cast<float>(sum * scale);
  }
  /// Any finite float: all exponents and signs.
  float any_finite() {
    for (;;) {
      const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits()));
      if ((std::bit_cast<std::uint32_t>(value) & 0x7F800000) != 0x7F800000) return value;
    }
  }

 private:
  std::uint64_t state_;
};

inline std::vector<float> normals(std::uint64_t salt, std::size_t n, double scale = 1) {
  Random random(salt);
  std::vector<float> values(n);
  for (float& v : values) v = random.normal(scale);
  return values;
}

/// Whole numbers in [-limit, limit]: their sums are exact in any order.
inline std::vector<float> whole_numbers(std::uint64_t salt, std::size_t n, int limit) {
  Random random(salt);
  std::vector<float> values(n);
  for (float& v : values) v = static_cast<float>(static_cast<int>(random.below(static_cast<std::uint64_t>(2 * limit + 1))) - limit);
  return values;
}

/// n elements at `offset` elements past a 64-byte boundary, with guards around. The guards are NaN (for floating types): reading one shows in the
/// result, writing one in intact().
template <typename T>
class Guarded {
 public:
  Guarded(std::size_t n, std::size_t offset) : storage_(n + offset + 4 * kGuard, guard()), n_(n) {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data() + kGuard);
    const std::size_t to_boundary = (64 - address % 64) % 64 / sizeof(T);
    begin_ = kGuard + to_boundary + offset;
  }
  Guarded(const std::vector<T>& values, std::size_t offset) : Guarded(values.size(), offset) { std::copy(values.begin(), values.end(), data()); }

  [[nodiscard]] T* data() { return storage_.data() + begin_; }
  [[nodiscard]] std::span<T> span() { return {data(), n_}; }
  [[nodiscard]] bool intact() const {
    const T expected = guard();
    for (std::size_t i = 0; i < storage_.size(); ++i)
      if ((i < begin_ || i >= begin_ + n_) && std::memcmp(&storage_[i], &expected, sizeof(T)) != 0) return false;
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static T guard() {
    if constexpr (std::numeric_limits<T>::has_quiet_NaN) return std::numeric_limits<T>::quiet_NaN();
    T value;
    std::memset(&value, 0xA5, sizeof(value));
    return value;
  }
  std::vector<T> storage_;
  std::size_t n_;
  std::size_t begin_ = 0;
};

/// Lengths around whole numbers of 16-lane blocks, and misalignments in elements.
inline const std::vector<std::size_t> kLengths = {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 50, 63, 64, 65, 127, 128, 129, 194, 1000};
inline const std::vector<std::size_t> kOffsets = {0, 1, 3, 15};

template <typename T>
void expect_same_bits(std::span<const T> got, std::span<const T> want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(T)), 0)
        << what << ": element " << i << " of " << got.size() << " is " << got[i] << ", not " << want[i] << " (seed " << test_seed() << ")";
  }
}

}  // namespace weft::test
