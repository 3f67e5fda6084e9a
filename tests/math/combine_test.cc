#include "math/combine.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "kernel_checks.h"

namespace weft::math {
namespace {

using test::Guarded;
using test::kLengths;
using test::kOffsets;
using test::on_every_target;
using test::Random;

/// Inputs with their pointers, each at another misalignment.
struct Inputs {
  Inputs(std::size_t count, std::size_t n, std::size_t offset) {
    for (std::size_t k = 0; k < count; ++k) {
      buffers.emplace_back(test::normals(100 * count + 10 * n + k, n), offset + k);
      pointers.push_back(buffers.back().data());
    }
  }
  std::vector<Guarded<float>> buffers;
  std::vector<const float*> pointers;
};

std::vector<double> some_weights(std::size_t count) {
  Random random(count);
  std::vector<double> weights(count);
  for (double& w : weights) w = random.uniform() * 3 - 1;
  return weights;
}

/// The definition, one operation at a time.
template <typename T>
float weighted_one(const Inputs& in, const std::vector<T>& w, T scale, std::size_t i) {
  T sum = 0;
  for (std::size_t k = 0; k < w.size(); ++k) {
    const T term = w[k] * static_cast<T>(in.pointers[k][i]);
    sum = k == 0 ? term : sum + term;
  }
  return static_cast<float>(sum * scale);
}

TEST(Combine, weighted_sums_equal_their_definition_bit_for_bit) {
  on_every_target([] {
    for (const std::size_t count : {1U, 2U, 3U, 4U, 5U, 9U, 20U}) {
      const std::vector<double> weights = some_weights(count);
      const std::vector<float> weights32(weights.begin(), weights.end());
      for (const std::size_t n : kLengths) {
        for (const std::size_t offset : kOffsets) {
          Inputs in(count, n, offset);
          Guarded<float> out(n, offset);
          weighted_sum_f64(in.pointers, weights, 0.37, out.span());
          for (std::size_t i = 0; i < n; ++i)
            ASSERT_EQ(out.span()[i], weighted_one(in, weights, 0.37, i)) << count << " inputs, element " << i << " of " << n;
          weighted_sum(in.pointers, weights32, out.span());
          for (std::size_t i = 0; i < n; ++i)
            ASSERT_EQ(out.span()[i], weighted_one(in, weights32, 1.0F, i)) << count << " inputs, element " << i << " of " << n;
          ASSERT_TRUE(out.intact());
        }
      }
    }
  });
}

TEST(Combine, weighted_deltas_equal_their_definition_bit_for_bit) {
  on_every_target([] {
    for (const std::size_t count : {1U, 2U, 3U, 4U, 5U, 9U, 20U}) {
      const std::vector<double> weights = some_weights(count);
      for (const std::size_t n : kLengths) {
        for (const std::size_t offset : kOffsets) {
          Inputs in(count, n, offset);
          Guarded<float> base(test::normals(n, n), offset + 2);
          Guarded<float> out(n, offset);
          add_weighted_deltas_f64(base.span(), in.pointers, weights, 0.7, out.span());
          for (std::size_t i = 0; i < n; ++i) {
            const double b = base.span()[i];
            double sum = 0;
            for (std::size_t k = 0; k < count; ++k) sum += weights[k] * (static_cast<double>(in.pointers[k][i]) - b);
            ASSERT_EQ(out.span()[i], static_cast<float>(b + 0.7 * sum)) << count << " inputs, element " << i << " of " << n;
          }
          ASSERT_TRUE(out.intact());
        }
      }
    }
  });
}

TEST(Combine, averaging_copies_of_one_input_returns_it_bit_for_bit) {
  on_every_target([] {
    std::vector<float> x(1003);
    Random random(1);
    for (float& v : x) v = random.any_finite();
    x[5] = -0.0F;
    for (const std::size_t count : {1U, 2U, 3U, 4U, 7U}) {
      const std::vector<const float*> inputs(count, x.data());
      const std::vector<double> weights(count, 1.0);
      std::vector<float> out(x.size());
      weighted_sum_f64(inputs, weights, 1.0 / static_cast<double>(count), out);
      test::expect_same_bits<float>(out, x, "average of " + std::to_string(count));
      add_weighted_deltas_f64(x, inputs, weights, 1, out);
      for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i], x[i]);
    }
  });
}

TEST(Combine, a_sum_that_float32_cannot_hold_is_infinite) {
  on_every_target([] {
    const std::vector<float> x(37, std::numeric_limits<float>::max());
    const std::array<const float*, 2> inputs = {x.data(), x.data()};
    std::vector<float> out(x.size());
    weighted_sum_f64(inputs, std::array{1.0, 1.0}, -1, out);
    for (const float v : out) ASSERT_EQ(v, -std::numeric_limits<float>::infinity());
  });
}

TEST(Combine, an_input_of_weight_zero_is_not_read) {
  on_every_target([] {
    const std::vector<float> x = test::normals(1, 100);
    const std::array<const float*, 3> inputs = {nullptr, x.data(), nullptr};
    std::vector<float> out(x.size());
    weighted_sum_f64(inputs, std::array{0.0, 1.0, 0.0}, 1, out);
    EXPECT_EQ(out, x);
    weighted_sum(inputs, std::array{0.0F, 1.0F, 0.0F}, out);
    EXPECT_EQ(out, x);
    weighted_sum_f64(inputs, std::array{0.0, 0.0, 0.0}, 1, out);
    EXPECT_EQ(out, std::vector<float>(100, 0.0F));
    add_weighted_deltas_f64(x, inputs, std::array{0.0, 0.0, 0.0}, 1, out);
    EXPECT_EQ(out, x);
    weighted_sum({}, {}, out);
    EXPECT_EQ(out, std::vector<float>(100, 0.0F));
  });
}

TEST(Combine, results_may_overwrite_an_input) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      std::vector<float> a = test::normals(1, n);
      const std::vector<float> b = test::normals(2, n);
      const std::vector<float> before = a;
      weighted_sum_f64(std::array<const float*, 2>{a.data(), b.data()}, std::array{2.0, 3.0}, 1, a);
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(a[i], static_cast<float>(2.0 * before[i] + 3.0 * b[i]));
      subtract(a, b, a);
      add(a, b, a);
      scale(a, 0.5F, a);
      for (std::size_t i = 0; i < n; ++i) {
        const float sum = static_cast<float>(2.0 * before[i] + 3.0 * b[i]);
        const float less = sum - b[i];
        const float more = less + b[i];
        ASSERT_EQ(a[i], more * 0.5F);
      }
    }
  });
}

// The definition in ties: the sign of the sum is elected (a sum of zero counts as plus); those that agree are added.
void consensus_one(const std::vector<const float*>& values, const std::vector<float>& weights, std::size_t i, float& mixed, float& divisor) {
  float sum = 0;
  for (const float* v : values) sum += v[i];
  mixed = 0;
  divisor = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    const float v = values[k][i];
    const bool agrees = sum >= 0 ? v > 0 : v < 0;
    if (!agrees) continue;
    mixed += v;
    divisor += weights[k];
  }
}

TEST(Combine, sign_consensus_equals_its_definition_bit_for_bit) {
  on_every_target([] {
    for (const std::size_t count : {1U, 2U, 3U, 4U, 5U, 11U}) {
      const std::vector<double> wide = some_weights(count);
      const std::vector<float> weights(wide.begin(), wide.end());
      for (const std::size_t n : kLengths) {
        for (const std::size_t offset : kOffsets) {
          Inputs in(count, n, offset);
          // Zeros, minus zeros and exact cancellations.
          for (std::size_t i = 0; i < n; i += 3) in.buffers[i % count].span()[i] = i % 2 == 0 ? 0.0F : -0.0F;
          if (count >= 2)
            for (std::size_t i = 1; i < n; i += 5)
              for (std::size_t k = 0; k < count; ++k) in.buffers[k].span()[i] = k == 0 ? 1.5F : k == 1 ? -1.5F : 0.0F;
          Guarded<float> mixed(n, offset);
          Guarded<float> divisor(n, offset + 1);
          sign_consensus(in.pointers, weights, mixed.span(), divisor.span());
          for (std::size_t i = 0; i < n; ++i) {
            float want_mixed = 0;
            float want_divisor = 0;
            consensus_one(in.pointers, weights, i, want_mixed, want_divisor);
            ASSERT_EQ(mixed.span()[i], want_mixed) << count << " inputs, element " << i << " of " << n;
            ASSERT_EQ(divisor.span()[i], want_divisor) << count << " inputs, element " << i << " of " << n;
          }
          ASSERT_TRUE(mixed.intact() && divisor.intact());
        }
      }
    }
  });
}

TEST(Combine, keep_at_least_keeps_ties_up_to_the_last_index) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{1000}, std::uint64_t{1} << 40}) {
        for (const std::int64_t last_offset : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{5}, std::int64_t{33}, std::int64_t{5000}}) {
          if (last_offset < 0 && first == 0) continue;
          const std::uint64_t last = first + static_cast<std::uint64_t>(last_offset);
          Guarded<float> values(test::whole_numbers(n, n, 3), 1);
          const std::vector<float> before(values.span().begin(), values.span().end());
          keep_at_least(values.span(), 2, first, last);
          for (std::size_t i = 0; i < n; ++i) {
            const float m = std::abs(before[i]);
            const bool stays = m > 2 || (m == 2 && first + i <= last);
            ASSERT_EQ(values.span()[i], stays ? before[i] : 0) << "element " << i << " of " << n;
          }
          ASSERT_TRUE(values.intact());
        }
      }
    }
  });
}

TEST(Combine, keep_where_below_zeroes_where_the_draw_is_not_below) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      Guarded<float> values(test::normals(1, n), 2);
      Guarded<float> uniform(n, 3);
      for (std::size_t i = 0; i < n; ++i) uniform.span()[i] = static_cast<float>(i % 4) * 0.25F;
      const std::vector<float> before(values.span().begin(), values.span().end());
      keep_where_below(values.span(), uniform.span(), 0.5F);
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(values.span()[i], i % 4 < 2 ? before[i] : 0.0F);
      ASSERT_TRUE(values.intact());
    }
  });
}

// ---- Philox, from the paper's definition.

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(b), static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k[1],
         static_cast<std::uint32_t>(a)};
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c;
}

float uniform_one(std::uint64_t key, std::uint32_t model, std::uint32_t stream, std::uint64_t element) {
  const std::uint64_t block = element / 4;
  const auto words = philox({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), model, stream},
                            {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)});
  return static_cast<float>(words[element % 4] >> 8) * 0x1p-24F;
}

TEST(Combine, the_philox_of_this_test_gives_the_published_words) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
}

TEST(Combine, philox_gives_the_numbers_of_the_contract) {
  // Seed 42, tensor "w": the key is 42 XOR fnv1a64("w").
  constexpr std::uint64_t key = 42 ^ ((0xcbf29ce484222325ULL ^ 'w') * 0x100000001b3ULL);
  on_every_target([] {
    const std::array<std::array<double, 6>, 2> want = {{{0.728099, 0.282851, 0.269707, 0.592538, 0.877912, 0.063511},  //
                                                        {0.851311, 0.420428, 0.295106, 0.812293, 0.454261, 0.587455}}};
    for (std::uint32_t model = 0; model < 2; ++model) {
      std::array<float, 6> got{};
      philox_uniform(key, model, 0, 0, got);
      for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(got[i], want[model][i], 5e-7);
    }
  });
}

TEST(Combine, philox_depends_on_the_element_alone) {
  on_every_target([] {
    const std::uint64_t key = 0x0123456789ABCDEFULL;
    for (const std::size_t n : kLengths) {
      for (const std::uint64_t first :
           {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{3}, std::uint64_t{8191}, (std::uint64_t{1} << 34) - 30}) {
        Guarded<float> out(n, static_cast<std::size_t>(first % 7));
        philox_uniform(key, 3, 0xFFFFFFFF, first, out.span());
        for (std::size_t i = 0; i < n; ++i)
          ASSERT_EQ(out.span()[i], uniform_one(key, 3, 0xFFFFFFFF, first + i)) << first << " + " << i << " of " << n;
        ASSERT_TRUE(out.intact());
      }
    }
  });
}

}  // namespace
}  // namespace weft::math
