#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/philox.h"
#include "kernel_checks.h"
#include "math/agreement.h"
#include "math/combine.h"
#include "math/convert.h"
#include "math/divergence.h"
#include "math/elementary.h"
#include "math/reduce.h"
#include "math/targets.h"
#include "weft/error.h"

// The bits that the kernels give, pinned: on every target, in the build with the one-lane target alone (this file is compiled a second time for it),
// and from one version to the next. The numbers were printed by this test itself when the kernels had been checked against their references; they
// change only when a kernel's definition does. The seed must be the default.
namespace weft::math {
namespace {

using test::Random;

template <typename T>
std::uint64_t hash_of(std::span<const T> values) {
  return fnv1a64({reinterpret_cast<const char*>(values.data()), values.size_bytes()});
}
template <typename T>
std::uint64_t hash_of(const std::vector<T>& values) {
  return hash_of(std::span<const T>(values));
}

constexpr std::size_t kCount = 1006;

std::map<std::string, std::uint64_t> all_hashes() {
  std::map<std::string, std::uint64_t> hashes;
  Random random(1);
  std::vector<std::byte> bytes(8 * kCount);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.bits());
  // Every exponent, infinities and NaN included.
  std::vector<float> any(kCount);
  for (float& v : any) v = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
  std::vector<float> out(kCount);

  for (int d = 0; d < kNumDTypes; ++d) {
    const auto dtype = static_cast<DType>(d);
    const DTypeInfo& about = info(dtype);
    if (about.kind == DTypeKind::complex || about.bits == 6) continue;
    const std::string name(about.name);
    const auto stored = std::span(bytes).first(kCount * static_cast<std::size_t>(about.bits) / 8);
    decode(dtype, stored, out);
    hashes["decode " + name] = hash_of(out);
    if (about.kind != DTypeKind::floating) continue;
    std::vector<std::byte> encoded(stored.size());
    encode(dtype, any, encoded);
    hashes["encode " + name] = hash_of(encoded);
    out = any;
    round_through(dtype, out);
    hashes["round through " + name] = hash_of(out);
  }

  std::vector<std::vector<float>> inputs;
  std::vector<const float*> pointers;
  std::vector<double> weights;
  std::vector<float> weights32;
  for (std::size_t k = 0; k < 6; ++k) {
    inputs.push_back(test::normals(k, kCount, k == 5 ? 1e-3 : 1));
    weights.push_back(random.uniform() * 2 - 0.5);
    weights32.push_back(static_cast<float>(weights.back()));
  }
  for (const auto& input : inputs) pointers.push_back(input.data());
  for (std::size_t count = 1; count <= 5; ++count) {
    const auto few = std::span(pointers).first(count);
    const std::string n = " of " + std::to_string(count);
    weighted_sum(few, std::span(weights32).first(count), out);
    hashes["weighted sum" + n] = hash_of(out);
    weighted_sum_f64(few, std::span(weights).first(count), 0.77, out);
    hashes["weighted sum in f64" + n] = hash_of(out);
    add_weighted_deltas_f64(inputs[5], few, std::span(weights).first(count), 0.77, out);
    hashes["weighted deltas" + n] = hash_of(out);
    std::vector<float> divisor(kCount);
    sign_consensus(few, std::span(weights32).first(count), out, divisor);
    hashes["consensus" + n] = hash_of(out) ^ hash_of(divisor);
    std::vector<double> sums(count * (count + 1) / 2);
    gram(few, kCount, sums);
    hashes["gram" + n] = hash_of(sums);
    gram_of_deltas(inputs[5].data(), few, kCount, sums);
    hashes["gram of deltas" + n] = hash_of(sums);
  }
  const std::vector<double> sums = {sum(inputs[0]), sum_abs(inputs[0]), sum_squares(inputs[0]), dot(inputs[0], inputs[1]), max_abs(inputs[0])};
  hashes["sums"] = hash_of(sums);
  std::vector<double> columns(103, 0.1);
  column_dots(inputs[0].data(), inputs[1].data(), 9, 103, columns);
  hashes["column dots"] = hash_of(columns);

  philox_uniform(0x0123456789ABCDEF, 1, 2, 12345, out);
  hashes["philox"] = hash_of(out);

  for (std::size_t count = 1; count <= 5; ++count) {
    const auto few = std::span(pointers).first(count);
    const std::string n = " of " + std::to_string(count);
    delta_variances(inputs[5], few, out);
    hashes["variances" + n] = hash_of(out);
    add_agreeing_mean(inputs[5], few, std::span(weights).first(count), 0.1, out);
    hashes["agreeing mean" + n] = hash_of(out);
  }
  step_toward(inputs[0], inputs[1], 0.7, out);
  hashes["steps"] = hash_of(out);
  step_part_way(inputs[0], inputs[1], 0.3, 0.7, out);
  hashes["steps part of the way"] = hash_of(out);
  std::vector<double> scratch;
  std::vector<double> divergences;
  for (const float size : {0.05F, 3.0F}) {
    std::vector<float> a = inputs[0];
    std::vector<float> b = inputs[0];
    for (std::size_t i = 0; i < kCount; ++i) {
      b[i] *= size;
      a[i] = b[i] + size * inputs[1][i] * (i % 5 == 0 ? 0.5F : 0.01F);
    }
    divergences.push_back(softmax_divergence(a, b, 1e-8, scratch));
    scaled_changes(a, b, 0.37, out);
    hashes["scaled changes"] ^= hash_of(out);
  }
  hashes["divergences"] = hash_of(divergences);

  std::vector<double> wide(kCount);
  std::vector<double> results(kCount);
  std::vector<float> exponents(kCount);
  for (std::size_t i = 0; i < kCount; ++i) exponents[i] = static_cast<float>(random.uniform() * 1480 - 760);
  exp_shifted(exponents, 0.3, results);
  hashes["exp"] = hash_of(results);
  for (double& v : wide) v = std::bit_cast<double>(random.bits());
  log_of(wide, results);
  hashes["log"] = hash_of(results);
  std::vector<double> angles;
  for (std::size_t i = 0; i < kCount; ++i) {
    const double x = random.uniform();
    angles.insert(angles.end(), {sin(2e5 * x), cos(2e5 * x), acos(2 * x - 1), sin(x), cos(x), exp(20 * x), log(x)});
  }
  hashes["angles"] = hash_of(angles);
  return hashes;
}

const std::map<std::string, std::uint64_t>& pinned() {
  static const std::map<std::string, std::uint64_t> hashes = {
      {"agreeing mean of 1", 0x7366249c3a6a1dc9},
      {"agreeing mean of 2", 0x12709d867c8db39},
      {"agreeing mean of 3", 0x512d40030667aeb2},
      {"agreeing mean of 4", 0xf57637737d4094ca},
      {"agreeing mean of 5", 0x2c57a0f9b406dc7},
      {"angles", 0x21fa4d75c643b0de},
      {"column dots", 0x1965a1a6ecc25cc5},
      {"consensus of 1", 0xbd6e272cbe337eb0},
      {"consensus of 2", 0x53fb8fa371f07157},
      {"consensus of 3", 0xefb935c4c299b142},
      {"consensus of 4", 0x79169753ebf38e9c},
      {"consensus of 5", 0xb1f175ea9684b15b},
      {"decode BF16", 0xd59e7d10b39cb022},
      {"decode BOOL", 0xf98a27f9be9e9d98},
      {"decode F16", 0xe6cf05615a755cb9},
      {"decode F32", 0xe359fd3e3631b88d},
      {"decode F4", 0xce5e93aeb3c9eb58},
      {"decode F64", 0x127853d9af8574fa},
      {"decode F8_E4M3", 0x9f1fa8b7e2df6f8f},
      {"decode F8_E4M3FNUZ", 0x57ddfd7473b679f0},
      {"decode F8_E5M2", 0x74b42cebf54de1a1},
      {"decode F8_E5M2FNUZ", 0x1c07382b790cbfa7},
      {"decode F8_E8M0", 0x4ac2e7ceb925b5ac},
      {"decode I16", 0x265a02888c1ce4c4},
      {"decode I32", 0x7181c940afaa5466},
      {"decode I64", 0x5c88962e95c2e624},
      {"decode I8", 0xafa5db3bafc8f8b6},
      {"decode U16", 0x7767ee9f593cfa09},
      {"decode U32", 0x2838ae679e0f05bf},
      {"decode U64", 0x2d706d1d7d4db779},
      {"decode U8", 0xe4e065979f69b7e5},
      {"divergences", 0xd782048f01b76905},
      {"encode BF16", 0x1f594bdd1f982c39},
      {"encode F16", 0x93ed93b2a4a72395},
      {"encode F32", 0x29b474e81f45d6f6},
      {"encode F4", 0xaf02eebfb8496398},
      {"encode F64", 0x168d8cadaebd740c},
      {"encode F8_E4M3", 0x2ee6380a49fb4787},
      {"encode F8_E4M3FNUZ", 0xa30e12d65ee7bee4},
      {"encode F8_E5M2", 0x227dcdd11956e867},
      {"encode F8_E5M2FNUZ", 0x7a42d3b5d8b60b5e},
      {"encode F8_E8M0", 0xdc73d8c9de81cc11},
      {"exp", 0xa6747ae962a95657},
      {"gram of 1", 0x2afa72bc312f5e06},
      {"gram of 2", 0xbb62d5b2148ada45},
      {"gram of 3", 0x5c423047ef8e73b3},
      {"gram of 4", 0xefed711301c2b82b},
      {"gram of 5", 0xa5e99a6fe56a8142},
      {"gram of deltas of 1", 0xa79f1b27370241b0},
      {"gram of deltas of 2", 0xa200fcaaf47388d1},
      {"gram of deltas of 3", 0x83ac7b68e7b7e574},
      {"gram of deltas of 4", 0x1245191422ca4040},
      {"gram of deltas of 5", 0xc5c5ec06c21ed1a6},
      {"log", 0xb385d94c4af8c619},
      {"philox", 0x5c14761fe4a7bd20},
      {"round through BF16", 0xb092624b3e5bd981},
      {"round through F16", 0x1f4630bd280890aa},
      {"round through F32", 0x29b474e81f45d6f6},
      {"round through F4", 0xebf6fd6d3e7501b5},
      {"round through F64", 0x165f444479b43a36},
      {"round through F8_E4M3", 0x22297c87530d7ead},
      {"round through F8_E4M3FNUZ", 0x4f20118d95e3816a},
      {"round through F8_E5M2", 0x15d1d80c1e2a3a6},
      {"round through F8_E5M2FNUZ", 0xbf788fe30156391f},
      {"round through F8_E8M0", 0x2c6beb977b4b4917},
      {"scaled changes", 0x16c1ba3dc206a190},
      {"steps part of the way", 0xc41f9c0bfe000206},
      {"steps", 0x7c39cf9c63a80f32},
      {"sums", 0x7404650ec86bd58d},
      {"variances of 1", 0x5ace73a4d1529b85},
      {"variances of 2", 0x53c862ceb9186238},
      {"variances of 3", 0xfeefbafe91154958},
      {"variances of 4", 0xa000870ac5d9de35},
      {"variances of 5", 0xd920a3ab1941514f},
      {"weighted deltas of 1", 0x66d192d5dcad2a20},
      {"weighted deltas of 2", 0xf35dbe534011d8d8},
      {"weighted deltas of 3", 0xee9e6227c0cf8420},
      {"weighted deltas of 4", 0xbf5b3f63c262472},
      {"weighted deltas of 5", 0x853ed512493f6330},
      {"weighted sum in f64 of 1", 0xe8e74b716ec54f0f},
      {"weighted sum in f64 of 2", 0xb1e14e199c019c7c},
      {"weighted sum in f64 of 3", 0xd90a949910fa9fd1},
      {"weighted sum in f64 of 4", 0x45bf254be0adaec4},
      {"weighted sum in f64 of 5", 0xd41ad4faea83075b},
      {"weighted sum of 1", 0xc3bf20f330d681fa},
      {"weighted sum of 2", 0x18a108bc50247381},
      {"weighted sum of 3", 0x2ece7aabd2abd914},
      {"weighted sum of 4", 0x2860f46620b03558},
      {"weighted sum of 5", 0x8ebaa6dddd01dc6},
  };
  return hashes;
}

TEST(Bits, kernels_give_the_pinned_bits_on_every_target) {
  if (test::test_seed() != 20240607) GTEST_SKIP() << "the pinned bits are those of the default seed";
  test::on_every_target([] {
    const auto got = all_hashes();
    EXPECT_EQ(got.size(), pinned().size());
    for (const auto& [name, hash] : got) {
      const auto it = pinned().find(name);
      EXPECT_TRUE(it != pinned().end() && it->second == hash) << "      {\"" << name << "\", 0x" << std::hex << hash << "},";
    }
  });
}

#ifdef WEFT_ONE_LANE
TEST(Bits, this_build_has_one_lane) {
  ASSERT_EQ(compiled_targets().size(), 1U);
  EXPECT_EQ(active_target(), "SCALAR");
}
#else
TEST(Bits, the_best_supported_target_is_used_and_any_can_be_chosen) {
  const std::vector<SimdTarget> targets = compiled_targets();
  std::string best;
  for (const SimdTarget& target : targets) {
    if (!target.supported) continue;
    if (best.empty()) best = target.name;
    ASSERT_EQ(setenv("WEFT_SIMD", target.name.c_str(), 1), 0);
    apply_target_from_environment();
    EXPECT_EQ(active_target(), target.name);
  }
  use_only_target(0);
  EXPECT_EQ(active_target(), best);
  EXPECT_TRUE(targets.back().supported) << "the portable target runs everywhere";
  ASSERT_EQ(setenv("WEFT_SIMD", "MMX", 1), 0);
  try {
    apply_target_from_environment();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(error.place().key, "WEFT_SIMD");
    EXPECT_NE(error.message().find("'MMX'"), std::string::npos);
  }
  ASSERT_EQ(unsetenv("WEFT_SIMD"), 0);
  apply_target_from_environment();
  EXPECT_EQ(active_target(), best);
}
#endif

}  // namespace
}  // namespace weft::math
