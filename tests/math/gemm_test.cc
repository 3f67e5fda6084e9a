#include "math/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "math/convert.h"
#include "math/neural.h"
#include "math/targets.h"
#include "support/memory_checkpoint.h"

namespace weft::math {
namespace {

using testing::random_values;

/// Rows of `row` numbers, `stride` apart, the rest NaN.
std::vector<float> spread(const std::vector<float>& values, std::size_t row, std::size_t stride) {
  std::vector<float> out(values.size() / row * stride, NAN);
  for (std::size_t i = 0; i < values.size(); ++i) out[i / row * stride + i % row] = values[i];
  return out;
}

TEST(Gemm, products_of_bfloat16_are_those_of_the_numbers_with_sums_in_float32) {
  if (gemm_library().find("AVX-512") == std::string::npos && gemm_library().find("AMX") == std::string::npos) GTEST_SKIP() << gemm_library();
  for (const std::size_t k : {1U, 31U, 64U, 100U, 513U})
    for (const std::size_t m : {1U, 7U, 40U}) {
      const std::size_t n = 37, lda = k + 3, ldb = k + 1, ldo = n + 5;
      const auto round = [](std::vector<float> values) {
        round_through(DType::bf16, values);
        return values;
      };
      const std::vector<float> a = round(random_values(m * k, 1, 1.0F)), b = round(random_values(n * k, 2, 1.0F));
      const auto stored = [](const std::vector<float>& values) {
        std::vector<std::uint16_t> out(values.size());
        encode(DType::bf16, values, std::as_writable_bytes(std::span(out)));
        return out;
      };
      const std::vector<std::uint16_t> a16 = stored(spread(a, k, lda)), b16 = stored(spread(b, k, ldb));
      std::vector<float> out(m * ldo, -1.0F);
      gemm_bf16_nt(m, n, k, a16.data(), lda, b16.data(), ldb, out.data(), ldo);
      for (std::size_t i = 0; i < m; ++i)
        for (std::size_t j = 0; j < n; ++j) {
          double sum = 0, sizes = 0;
          for (std::size_t p = 0; p < k; ++p) {
            const double product = static_cast<double>(a[i * k + p]) * static_cast<double>(b[j * k + p]);
            sum += product;
            sizes += std::abs(product);
          }
          // Products of bfloat16 are exact in float32; each of k additions rounds what has been added up so far.
          EXPECT_NEAR(static_cast<double>(out[i * ldo + j]), sum, static_cast<double>(k) * 0x1p-24 * sizes + 1e-30) << k << " " << m;
        }
      for (std::size_t i = 0; i + 1 < m; ++i) EXPECT_EQ(out[i * ldo + n], -1.0F);
    }
}

TEST(Gemm, products_of_8_bit_integers_are_exact_also_at_their_extremes) {
  if (!has_int8_products()) GTEST_SKIP() << gemm_library();
  for (const std::size_t k : {1U, 3U, 64U, 127U, 2000U})
    for (const bool is_extreme : {false, true}) {
      const std::size_t m = 19, n = 33, lda = k + 2, ldb = k, ldo = n;
      std::vector<std::uint8_t> a(m * lda);
      std::vector<std::int8_t> b(n * ldb);
      for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<std::uint8_t>(is_extreme ? 255 : i * 37 % 256);
      for (std::size_t i = 0; i < b.size(); ++i)
        b[i] = static_cast<std::int8_t>(is_extreme ? (i % 3 == 0 ? 127 : -128) : static_cast<int>(i * 91 % 256) - 128);
      std::vector<std::int32_t> out(m * ldo);
      gemm_u8s8_nt(m, n, k, a.data(), lda, b.data(), ldb, out.data(), ldo);
      for (std::size_t i = 0; i < m; ++i)
        for (std::size_t j = 0; j < n; ++j) {
          std::int64_t sum = 0;
          for (std::size_t p = 0; p < k; ++p) sum += std::int64_t{a[i * lda + p]} * b[j * ldb + p];
          ASSERT_EQ(out[i * ldo + j], sum) << k << ": " << i << ", " << j;
        }
    }
}

TEST(Neural, a_row_in_8_bits_is_within_half_a_step_on_every_target) {
  for (const SimdTarget& target : compiled_targets()) {
    if (!target.supported) continue;
    SCOPED_TRACE(target.name);
    use_only_target(target.bit);
    for (const std::size_t n : {0U, 1U, 15U, 16U, 17U, 50U}) {
      const std::vector<float> x = random_values(n, n + 1, 3.0F);
      std::vector<std::int8_t> s(n + 1, 77);
      std::vector<std::uint8_t> u(n + 1, 77);
      const float step = quantize_int8(x.data(), s.data(), n);
      EXPECT_EQ(quantize_uint8(x.data(), u.data(), n), step);
      float largest = 0;
      for (const float v : x) largest = std::max(largest, std::abs(v));
      EXPECT_EQ(step, largest / 127.0F);
      for (std::size_t i = 0; i < n; ++i) {
        // Half a step, and what the reciprocal and the product round.
        EXPECT_NEAR(static_cast<double>(s[i]) * static_cast<double>(step), static_cast<double>(x[i]),
                    static_cast<double>(step) * (0.5 + 127 * 0x1p-22));
        EXPECT_EQ(u[i], s[i] + 128);
      }
      EXPECT_EQ(s[n], 77);
      EXPECT_EQ(u[n], 77);
    }
    for (const float bad : {INFINITY, -INFINITY, NAN})
      for (const std::size_t where : {0U, 18U}) {
        std::vector<float> x(19, 1.0F);
        x[where] = bad;
        std::vector<std::int8_t> s(19);
        EXPECT_TRUE(std::isnan(quantize_int8(x.data(), s.data(), 19)));
      }
    const std::vector<float> zeros(20, 0.0F);
    std::vector<std::int8_t> s(20, 5);
    EXPECT_EQ(quantize_int8(zeros.data(), s.data(), 20), 0.0F);
    EXPECT_EQ(s, std::vector<std::int8_t>(20, 0));
  }
  use_only_target(0);
}

TEST(Neural, rows_of_every_stored_type_are_multiplied_as_their_values_on_every_target) {
  for (const SimdTarget& target : compiled_targets()) {
    if (!target.supported) continue;
    SCOPED_TRACE(target.name);
    use_only_target(target.bit);
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i8})
      for (const std::size_t columns : {1U, 15U, 16U, 17U, 50U})
        for (const std::size_t tokens : {1U, 3U, 5U}) {
          const std::size_t rows = 6;
          std::vector<float> w = random_values(rows * columns, 3, 2.0F);
          std::vector<std::byte> stored;
          if (dtype == DType::i8) {
            for (float& v : w) {
              v = std::clamp(std::nearbyint(v * 60), -128.0F, 127.0F);
              stored.push_back(static_cast<std::byte>(static_cast<std::int8_t>(v)));
            }
          } else {
            round_through(dtype, w);
            stored = testing::stored_as(dtype, w);
          }
          const std::vector<float> x = random_values(tokens * columns, 4, 1.0F);
          std::vector<float> out(tokens * rows);
          row_products(dtype, stored.data(), rows, columns, x.data(), columns, tokens, out.data(), rows);
          for (std::size_t t = 0; t < tokens; ++t)
            for (std::size_t r = 0; r < rows; ++r) {
              double sum = 0, sizes = 0;
              for (std::size_t c = 0; c < columns; ++c) {
                const double product = static_cast<double>(w[r * columns + c]) * static_cast<double>(x[t * columns + c]);
                sum += product;
                sizes += std::abs(product);
              }
              EXPECT_NEAR(static_cast<double>(out[t * rows + r]), sum, static_cast<double>(columns + 1) * 0x1p-24 * sizes) << to_string(dtype);
            }
        }
  }
  use_only_target(0);
}

}  // namespace
}  // namespace weft::math
