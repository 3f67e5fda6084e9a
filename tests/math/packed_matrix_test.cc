#include "math/packed_matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "math/blocks.h"
#include "math/small_float.h"
#include "math/targets.h"

namespace weft::math {
namespace {

/// Runs a body on every target of this machine, and says which it has not.
void on_all_targets(const std::function<void()>& body) {
  for (const PackedTarget& target : packed_targets()) {
    if (!target.supported) {
      std::printf("target %s skipped: not on this machine\n", target.name.c_str());
      continue;
    }
    SCOPED_TRACE(target.name);
    use_only_packed_target(target.name);
    EXPECT_EQ(active_packed_target(), target.name);
    body();
  }
  use_only_packed_target("");
}

/// Values as a file holds them, and the matrix made of them.
struct Sample {
  std::string name;
  std::size_t rows = 0, columns = 0;
  std::vector<double> values;      ///< [rows, columns], as the format's definition has them
  std::vector<double> magnitudes;  ///< of a row: what the terms of its weights are at most
  PackedMatrix matrix;
};

struct BlockType {
  const char* name;
  std::size_t elements, bytes;
  std::vector<std::size_t> halves;  ///< offsets of float16 numbers
  void (*decode)(const std::uint8_t*, std::size_t, float*);
};
const std::vector<BlockType>& block_types() {
  static const std::vector<BlockType> kTypes = {
      {"Q4_0", 32, 18, {0}, decode_q4_0},     {"Q4_1", 32, 20, {0, 2}, decode_q4_1},   {"Q5_0", 32, 22, {0}, decode_q5_0},
      {"Q5_1", 32, 24, {0, 2}, decode_q5_1},  {"Q8_0", 32, 34, {0}, decode_q8_0},      {"Q2_K", 256, 84, {80, 82}, decode_q2_k},
      {"Q3_K", 256, 110, {108}, decode_q3_k}, {"Q4_K", 256, 144, {0, 2}, decode_q4_k}, {"Q5_K", 256, 176, {0, 2}, decode_q5_k},
      {"Q6_K", 256, 210, {208}, decode_q6_k}, {"IQ4_NL", 32, 18, {0}, decode_iq4_nl}};
  return kTypes;
}

void set_magnitudes(Sample& sample) {
  sample.magnitudes.assign(sample.rows, 0);
  for (std::size_t r = 0; r < sample.rows; ++r)
    for (std::size_t c = 0; c < sample.columns; ++c)
      sample.magnitudes[r] = std::max(sample.magnitudes[r], std::abs(sample.values[r * sample.columns + c]));
}

/// Any bytes are codes; float16 fields are small numbers of either sign.
Sample of_blocks(const BlockType& type, std::size_t rows, std::size_t columns, std::uint32_t seed) {
  std::mt19937 random(seed);
  Sample sample{type.name, rows, columns, {}, {}, {}};
  PackedFormat format;
  EXPECT_TRUE(find_packed_format(type.name, format));
  EXPECT_TRUE(can_pack(format, columns));
  sample.matrix = PackedMatrix(format, rows, columns);
  const std::size_t row_bytes = columns / type.elements * type.bytes;
  std::vector<float> decoded(columns);
  for (std::size_t r = 0; r < rows; ++r) {
    std::vector<std::uint8_t> blocks(row_bytes);
    for (std::uint8_t& byte : blocks) byte = static_cast<std::uint8_t>(random());
    for (std::size_t b = 0; b < row_bytes; b += type.bytes)
      for (const std::size_t at : type.halves) {
        blocks[b + at + 1] = static_cast<std::uint8_t>((blocks[b + at + 1] & 0x83U) | 0x20U);  // 2^-7 to 2^-6
      }
    sample.matrix.put_blocks(r, blocks.data());
    type.decode(blocks.data(), columns / type.elements, decoded.data());
    sample.values.insert(sample.values.end(), decoded.begin(), decoded.end());
  }
  set_magnitudes(sample);
  return sample;
}

double rounded_to(DType type, double value) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  if (type == DType::f32) return static_cast<double>(static_cast<float>(value));
  if (type == DType::bf16) return static_cast<double>(std::bit_cast<float>(encode_bf16(bits) << 16));
  return static_cast<double>(std::bit_cast<float>(decode_small(kF16, encode_small(kF16, bits))));
}

Sample of_codes(const PackedFormat& format, std::size_t rows, std::size_t columns, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Sample sample{"codes", rows, columns, {}, {}, {}};
  EXPECT_TRUE(can_pack(format, columns));
  sample.matrix = PackedMatrix(format, rows, columns);
  const std::size_t groups = (columns + format.group - 1) / format.group;
  const unsigned mask = format.type == PackedType::e4m3 ? 255U : (1U << (format.type == PackedType::table ? 4 : format.bits)) - 1;
  for (std::size_t r = 0; r < rows; ++r) {
    std::vector<std::uint8_t> codes(columns);
    std::vector<float> scales(groups), zeros(groups);
    for (float& scale : scales) scale = static_cast<float>(rounded_to(format.scale_type, 0.01 + 0.02 * std::abs(uniform(random))));
    for (float& zero : zeros)
      zero = format.zero == PackedZero::bytes ? static_cast<float>(random() % (mask + 1))
                                              : static_cast<float>(rounded_to(format.scale_type, uniform(random) * (mask + 1)));
    for (std::size_t c = 0; c < columns; ++c) {
      codes[c] = static_cast<std::uint8_t>(random() & mask);
      if (format.type == PackedType::e4m3 && (codes[c] & 127U) == 127U) codes[c] = 1;  // NaN has no place
      const double scale = static_cast<double>(scales[c / format.group]);
      if (format.type == PackedType::table)
        sample.values.push_back(scale * static_cast<double>(format.levels[codes[c]]));
      else if (format.type == PackedType::e4m3)
        sample.values.push_back(scale * static_cast<double>(std::bit_cast<float>(decode_small(kF8E4M3, codes[c]))));
      else
        sample.values.push_back(scale * (codes[c] - (format.zero == PackedZero::middle ? static_cast<double>((mask + 1) / 2)
                                                                                       : static_cast<double>(zeros[c / format.group]))));
    }
    sample.matrix.put_codes(r, codes.data(), scales.data(), zeros.data());
  }
  set_magnitudes(sample);
  return sample;
}

/// x rounded as the header says, slowly.
std::vector<double> rounded_inputs(const std::vector<float>& x, std::vector<double>& steps) {
  std::vector<double> out(x.size());
  for (std::size_t b = 0; b < x.size(); b += 32) {
    float most = 0;
    for (std::size_t i = 0; i < 32; ++i) most = std::max(most, std::abs(x[b + i]));
    const float step = most / 127.0F;
    steps.push_back(static_cast<double>(step));
    for (std::size_t i = 0; i < 32; ++i)
      out[b + i] = most == 0 ? 0.0 : static_cast<double>(std::nearbyint(x[b + i] * (127.0F / most))) * static_cast<double>(step);
  }
  return out;
}

std::vector<float> inputs(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& value : x) value = normal(random);
  return x;
}

std::vector<float> products(const PackedMatrix& matrix, PackedInputs kind, const std::vector<float>& x, std::size_t tokens) {
  PackedInput input(kind, tokens, matrix.columns());
  for (std::size_t b = 0; b < input.num_blocks(); ++b) input.fill(b, x.data(), matrix.columns());
  const std::size_t stride = matrix.rows() + 3;
  std::vector<float> out(tokens * stride, -7.0F);
  // In two calls, as threads make them.
  const std::size_t half = matrix.num_tiles() / 2;
  packed_products(matrix, 0, half, input, out.data(), stride);
  packed_products(matrix, half, matrix.num_tiles(), input, out.data(), stride);
  std::vector<float> tight;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t r = matrix.rows(); r < stride; ++r) EXPECT_EQ(out[t * stride + r], -7.0F) << "written beyond the last row";
    tight.insert(tight.end(), out.begin() + static_cast<std::ptrdiff_t>(t * stride),
                 out.begin() + static_cast<std::ptrdiff_t>(t * stride + matrix.rows()));
  }
  return tight;
}

/// Float32 sums of `columns` terms, each as large as weight and minimum together, may be off by a few units in the last place of all of them.
double float_error(const Sample& sample, std::size_t row, const float* x) {
  double sum = 0;
  for (std::size_t c = 0; c < sample.columns; ++c) sum += std::abs(static_cast<double>(x[c]));
  return 3 * sample.magnitudes[row] * sum * 1e-6 + 1e-12;
}

void check(const Sample& sample) {
  SCOPED_TRACE(sample.name);
  const std::size_t rows = sample.rows, columns = sample.columns;
  std::vector<float> row(columns);
  for (std::size_t r = 0; r < rows; ++r) {
    sample.matrix.read_row(r, row.data());
    for (std::size_t c = 0; c < columns; ++c)
      ASSERT_NEAR(static_cast<double>(row[c]), sample.values[r * columns + c], 3e-7 * sample.magnitudes[r] + 1e-30) << "row " << r << " column " << c;
  }
  for (const std::size_t tokens : {1U, 2U, 3U, 4U, 5U, 15U, 70U}) {
    const std::vector<float> x = inputs(tokens * columns, 5 + static_cast<std::uint32_t>(tokens));
    const std::vector<float> exact = products(sample.matrix, PackedInputs::exact, x, tokens);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t r = 0; r < rows; ++r) {
        double sum = 0;
        for (std::size_t c = 0; c < columns; ++c) sum += sample.values[r * columns + c] * static_cast<double>(x[t * columns + c]);
        ASSERT_NEAR(static_cast<double>(exact[t * rows + r]), sum, float_error(sample, r, x.data() + t * columns)) << "row " << r << " token " << t;
      }
    if (sample.matrix.can_split_inputs()) {
      const std::vector<float> fine = products(sample.matrix, PackedInputs::fine, x, tokens);
      for (std::size_t t = 0; t < tokens; ++t)
        for (std::size_t r = 0; r < rows; ++r) {
          double sum = 0;
          for (std::size_t c = 0; c < columns; ++c) sum += sample.values[r * columns + c] * static_cast<double>(x[t * columns + c]);
          ASSERT_NEAR(static_cast<double>(fine[t * rows + r]), sum, float_error(sample, r, x.data() + t * columns)) << "row " << r << " token " << t;
        }
      if (tokens == 5) {
        const std::vector<float> last(x.begin() + static_cast<std::ptrdiff_t>(4 * columns), x.end());
        const std::vector<float> alone = products(sample.matrix, PackedInputs::fine, last, 1);
        for (std::size_t r = 0; r < rows; ++r) ASSERT_EQ(alone[r], fine[4 * rows + r]);
      }
    }
    if (!sample.matrix.can_round_inputs()) continue;
    std::vector<double> steps;
    const std::vector<double> near = rounded_inputs(x, steps);
    const std::vector<float> rounded = products(sample.matrix, PackedInputs::rounded, x, tokens);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t r = 0; r < rows; ++r) {
        double sum = 0, exactly = 0, bound = 0;
        for (std::size_t c = 0; c < columns; ++c) {
          const double w = sample.values[r * columns + c];
          sum += w * near[t * columns + c];
          exactly += w * static_cast<double>(x[t * columns + c]);
          bound += 0.5000001 * steps[(t * columns + c) / 32] * std::abs(w);
        }
        const double slack = float_error(sample, r, x.data() + t * columns), got = static_cast<double>(rounded[t * rows + r]);
        ASSERT_NEAR(got, sum, slack) << "row " << r << " token " << t;
        ASSERT_LE(std::abs(got - exactly), bound + slack);
      }
    // A row of x gives the same with others and alone.
    if (tokens == 5) {
      const std::vector<float> alone =
          products(sample.matrix, PackedInputs::rounded,
                   std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(3 * columns), x.begin() + static_cast<std::ptrdiff_t>(4 * columns)), 1);
      for (std::size_t r = 0; r < rows; ++r) ASSERT_EQ(alone[r], rounded[3 * rows + r]);
    }
  }
}

TEST(PackedMatrix, multiplies_as_decoding_and_multiplying_does_for_every_gguf_type_on_every_target) {
  std::uint32_t seed = 1;
  for (const BlockType& type : block_types()) {
    Sample sample;
    sample = of_blocks(type, 37, 512, seed++);
    on_all_targets([&] { check(sample); });
  }
}

TEST(PackedMatrix, multiplies_integers_of_every_width_with_every_kind_of_zero_point) {
  std::uint32_t seed = 100;
  for (const int bits : {2, 3, 4, 5, 6, 8})
    for (const PackedZero zero : {PackedZero::middle, PackedZero::bytes, PackedZero::floats})
      for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
        PackedFormat format{.type = PackedType::integer,
                            .bits = bits,
                            .group = type == DType::f16 ? std::size_t{32} : 96,
                            .scale_type = type,
                            .zero = zero,
                            .levels = {}};
        // The last group is short.
        const Sample sample = of_codes(format, 20, 256, seed++);
        SCOPED_TRACE(bits);
        on_all_targets([&] { check(sample); });
      }
}

TEST(PackedMatrix, multiplies_tables_and_eight_bit_floats) {
  PackedFormat table{.type = PackedType::table, .bits = 4, .group = 64, .scale_type = DType::f32, .zero = PackedZero::middle, .levels = {}};
  for (std::size_t i = 0; i < 16; ++i) table.levels[i] = std::sin(static_cast<float>(i) * 1.7F);
  const Sample nf4 = of_codes(table, 33, 192, 7);
  const Sample fp8 =
      of_codes({.type = PackedType::e4m3, .bits = 8, .group = 256, .scale_type = DType::bf16, .zero = PackedZero::middle, .levels = {}}, 16, 256, 8);
  on_all_targets([&] {
    check(nf4);
    check(fp8);
  });
}

TEST(PackedMatrix, fine_inputs_keep_24_bits_beside_the_largest_of_their_32) {
  // One row reads a small number, one the large number beside it, one nothing.
  const PackedFormat format{.type = PackedType::integer, .bits = 8, .group = 32, .scale_type = DType::f32, .zero = PackedZero::bytes, .levels = {}};
  PackedMatrix matrix(format, 3, 32);
  const float scale = 1, zero = 0;
  for (std::size_t r = 0; r < 3; ++r) {
    std::vector<std::uint8_t> codes(32, 0);
    if (r < 2) codes[r == 0 ? 5 : 20] = 255;
    matrix.put_codes(r, codes.data(), &scale, &zero);
  }
  on_all_targets([&] {
    // 0.7, 0.9 and 3: their steps are rounded up and down.
    for (const float large : {1.0F, -1.0F, 0.7F, 0.9F, 3.0F, -1.1F, 1e35F, 1e-29F})
      for (const float small : {0.9F, 1.0F / 512, -1.0F / 70000, 0.25F / (1 << 20)}) {
        std::vector<float> x(32, 0.0F);
        x[20] = large;
        x[5] = large * small;
        // Half a step, and float32's own roundings.
        const auto tolerance = [&](float value) {
          return 255 * (0.5 / 8323072 * std::abs(static_cast<double>(large)) + 4 * 6e-8 * std::abs(static_cast<double>(value)));
        };
        const std::vector<float> got = products(matrix, PackedInputs::fine, x, 1);
        EXPECT_NEAR(static_cast<double>(got[0]), 255 * static_cast<double>(x[5]), tolerance(x[5]));
        EXPECT_NEAR(static_cast<double>(got[1]), 255 * static_cast<double>(large), tolerance(large));
        EXPECT_EQ(got[2], 0.0F);
      }
    for (const float value : products(matrix, PackedInputs::fine, std::vector<float>(32, 1e-40F), 1)) EXPECT_EQ(value, 0.0F);
  });
}

TEST(PackedMatrix, every_eight_bit_float_is_itself) {
  const PackedFormat format{.type = PackedType::e4m3, .bits = 8, .group = 256, .scale_type = DType::f32, .zero = PackedZero::middle, .levels = {}};
  PackedMatrix matrix(format, 2, 256);
  std::vector<std::uint8_t> codes(256);
  for (std::size_t i = 0; i < 256; ++i) codes[i] = static_cast<std::uint8_t>((i & 127U) == 127U ? 0 : i);
  const float scale = 1;
  for (std::size_t r = 0; r < 2; ++r) matrix.put_codes(r, codes.data(), &scale, nullptr);
  on_all_targets([&] {
    std::vector<float> row(256);
    matrix.read_row(1, row.data());
    for (std::size_t i = 0; i < 256; ++i) EXPECT_EQ(row[i], std::bit_cast<float>(decode_small(kF8E4M3, codes[i]))) << i;
    for (std::size_t i = 0; i < 256; ++i) {
      std::vector<float> x(256, 0.0F);
      x[i] = 1;
      EXPECT_EQ(products(matrix, PackedInputs::exact, x, 1)[1], row[i]) << i;
    }
  });
}

TEST(PackedMatrix, follows_what_the_other_kernels_are_restricted_to) {
  const std::string best = active_packed_target();
  for (const SimdTarget& target : compiled_targets()) {
    if (!target.supported) continue;
    use_only_target(target.bit);
    const std::string active = active_packed_target();
    if (target.name == "AVX2") {
      EXPECT_TRUE(active.starts_with("avx2")) << active;
    } else if (target.name.starts_with("AVX3")) {
      EXPECT_EQ(active, best);
    } else if (target.name.starts_with("SS") || target.name == "EMU128" || target.name == "SCALAR") {
      EXPECT_EQ(active, "portable");
    }
  }
  use_only_target(0);
  EXPECT_EQ(active_packed_target(), best);
}

TEST(PackedMatrix, takes_as_many_bytes_as_the_file) {
  for (const BlockType& type : block_types()) {
    PackedFormat format;
    ASSERT_TRUE(find_packed_format(type.name, format));
    EXPECT_EQ(packed_size(format, 48, 1024), 48 * 1024 / type.elements * type.bytes) << type.name;
    EXPECT_EQ(PackedMatrix(format, 48, 1024).size_bytes(), packed_size(format, 48, 1024));
    EXPECT_EQ(packed_size(format, 33, 1024), packed_size(format, 48, 1024)) << "rows are filled up";
  }
  const PackedFormat int4{.type = PackedType::integer, .bits = 4, .group = 128, .scale_type = DType::f16, .zero = PackedZero::middle, .levels = {}};
  EXPECT_EQ(packed_size(int4, 64, 4096), 64 * (4096 / 2 + 4096 / 128 * 2));
}

TEST(PackedMatrix, refuses_what_its_groups_do_not_divide) {
  PackedFormat format;
  EXPECT_FALSE(find_packed_format("IQ2_XS", format));
  ASSERT_TRUE(find_packed_format("Q4_K", format));
  EXPECT_FALSE(can_pack(format, 128));
  ASSERT_TRUE(find_packed_format("Q4_0", format));
  EXPECT_TRUE(can_pack(format, 96));
  EXPECT_FALSE(can_pack(format, 48));
  EXPECT_FALSE(can_pack(format, 0));
  format = {.type = PackedType::integer, .bits = 7, .group = 32, .scale_type = DType::f16, .zero = PackedZero::middle, .levels = {}};
  EXPECT_FALSE(can_pack(format, 64));
  format.bits = 4;
  format.group = 16;
  EXPECT_FALSE(can_pack(format, 64));
}

TEST(PackedMatrix, input_that_is_not_finite_shows_and_zeros_and_tiny_numbers_are_harmless) {
  const Sample sample = of_blocks(block_types().front(), 16, 64, 3);
  on_all_targets([&] {
    for (const PackedInputs kind : {PackedInputs::rounded, PackedInputs::fine, PackedInputs::exact})
      for (const float bad : {std::nanf(""), INFINITY}) {
        std::vector<float> x = inputs(64, 9);
        x[40] = bad;
        for (const float value : products(sample.matrix, kind, x, 1)) EXPECT_FALSE(std::isfinite(value));
      }
    for (const float value : products(sample.matrix, PackedInputs::rounded, std::vector<float>(64, 0.0F), 1)) EXPECT_EQ(value, 0.0F);
    for (const float value : products(sample.matrix, PackedInputs::rounded, std::vector<float>(64, 1e-40F), 1)) EXPECT_NEAR(value, 0.0F, 1e-34F);
  });
}

}  // namespace
}  // namespace weft::math
