#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/json.h"
#include "support/errors.h"
#include "weft/error.h"

namespace weft::model {
namespace {

RopeConfig read(const char* scaling, double theta, int dims, std::int64_t context, std::int64_t original = 0) {
  std::vector<std::string> warnings;
  const Json json = parse_json(scaling, "config.json");
  return read_rope(&json, "rope_scaling", theta, dims, context, original, warnings);
}

/// By what the plain frequency was divided.
double divisor(const RopeConfig& rope, std::size_t j, std::int64_t length = 1) {
  RopeConfig plain = rope;
  plain.type = RopeType::standard;
  return static_cast<double>(inverse_frequencies(plain, 1)[j]) / static_cast<double>(inverse_frequencies(rope, length)[j]);
}

TEST(Rope, plain_frequencies_are_powers_of_theta) {
  const RopeConfig rope = read("null", 10'000, 64, 2048);
  const std::vector<float> inverse = inverse_frequencies(rope, 100);
  ASSERT_EQ(inverse.size(), 32U);
  EXPECT_EQ(inverse[0], 1);
  EXPECT_NEAR(inverse[16], 0.01, 1e-9);
}

TEST(Rope, llama3_keeps_the_fast_divides_the_slow_and_blends_between) {
  const RopeConfig rope =
      read(R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192})", 5e5, 128,
           131072);
  EXPECT_NEAR(divisor(rope, 28), 1, 1e-6);
  EXPECT_NEAR(divisor(rope, 29), 1.2074839, 1e-6);
  EXPECT_NEAR(divisor(rope, 30), 1.5534146, 1e-6);
  EXPECT_NEAR(divisor(rope, 33), 3.6842525, 2e-6);
  EXPECT_NEAR(divisor(rope, 34), 5.2573266, 2e-6);
  EXPECT_NEAR(divisor(rope, 35), 8, 1e-5);
  EXPECT_NEAR(divisor(rope, 63), 8, 1e-5);
  EXPECT_NEAR(inverse_frequencies(rope, 1)[30], 0.00137189357, 2e-10);
}

TEST(Rope, yarn_ramps_between_its_corrections_and_scales_attention) {
  const RopeConfig rope = read(R"({"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768})", 1e6, 128, 131072);
  EXPECT_NEAR(rope.attention_factor, 1.1386294, 1e-7);
  EXPECT_NEAR(inverse_frequencies(rope, 1)[30], 0.001064361, 1e-9);
  EXPECT_NEAR(inverse_frequencies(rope, 1)[40], 4.4456985e-05, 1e-11);
  EXPECT_EQ(read(R"({"type": "yarn", "factor": 4, "attention_factor": 1.5})", 1e6, 128, 131072).attention_factor, 1.5);
  EXPECT_NEAR(read(R"({"type": "yarn", "factor": 40, "mscale": 0.7, "mscale_all_dim": 1.0})", 1e4, 64, 4096).attention_factor,
              (0.07 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1), 1e-12);
}

TEST(Rope, dynamic_stretches_theta_beyond_the_context_only) {
  const RopeConfig rope = read(R"({"rope_type": "dynamic", "factor": 2})", 1e4, 128, 4096);
  EXPECT_EQ(inverse_frequencies(rope, 4096), inverse_frequencies(read("null", 1e4, 128, 4096), 4096));
  EXPECT_NEAR(std::pow(static_cast<double>(inverse_frequencies(rope, 8192)[1]), -64.0), 30527.737, 0.5);
}

TEST(Rope, longrope_takes_the_long_factors_beyond_the_original_length) {
  const char* scaling = R"({"rope_type": "longrope", "short_factor": [1, 2], "long_factor": [4, 8]})";
  const RopeConfig rope = read(scaling, 1e4, 4, 128, 32);
  EXPECT_NEAR(divisor(rope, 1, 32), 2, 1e-6);
  EXPECT_NEAR(divisor(rope, 1, 33), 8, 1e-6);
  EXPECT_NEAR(rope.attention_factor, std::sqrt(1 + std::log(4.0) / std::log(32.0)), 1e-12);
}

TEST(Rope, a_factor_that_contradicts_the_lengths_is_warned_about) {
  std::vector<std::string> warnings;
  const Json json = parse_json(R"({"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768})", "config.json");
  (void)read_rope(&json, "rope_scaling", 1e6, 128, 32768, 0, warnings);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("the factor counts"), std::string::npos);
}

TEST(Rope, what_makes_no_sense_is_refused_by_its_key) {
  struct Case {
    const char* scaling;
    ErrorCode code;
    const char* phrase;
  };
  for (const Case& bad :
       {Case{R"({"rope_type": "spiral"})", ErrorCode::unsupported, "rope type 'spiral' is unknown"},
        Case{R"({"rope_type": 3})", ErrorCode::corrupt, "is no text"}, Case{R"({"factor": 2})", ErrorCode::corrupt, "no rope_type"},
        Case{R"({"rope_type": "linear"})", ErrorCode::corrupt, "factor is missing"},
        Case{R"({"rope_type": "linear", "factor": 0})", ErrorCode::corrupt, "not above 0"},
        Case{R"({"rope_type": "linear", "factor": "2"})", ErrorCode::corrupt, "is no number"},
        Case{R"({"rope_type": "linear", "factor": NaN})", ErrorCode::corrupt, "is no number"},
        Case{R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 2, "high_freq_factor": 2})", ErrorCode::corrupt, "both 2"},
        Case{R"({"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 0})", ErrorCode::corrupt, "whole number of tokens"},
        Case{R"({"rope_type": "longrope", "short_factor": [1], "long_factor": [1, 2], "factor": 2})", ErrorCode::corrupt, "2 pairs"},
        Case{R"({"rope_type": "longrope", "short_factor": [1, 1], "long_factor": [1, 2]})", ErrorCode::corrupt, "factor is missing"},
        Case{"[1]", ErrorCode::corrupt, "neither null nor an object"}}) {
    try {
      (void)read(bad.scaling, 1e4, 4, 128);
      ADD_FAILURE() << bad.scaling;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), bad.code) << bad.scaling;
      EXPECT_NE(error.message().find(bad.phrase), std::string::npos) << error.message();
      EXPECT_FALSE(error.place().key.empty());
    }
  }
  EXPECT_THROW((void)read("null", 0, 64, 128), Error);
  EXPECT_THROW((void)read("null", 1e4, 7, 128), Error);
  EXPECT_THROW((void)read(R"({"rope_type": "yarn", "factor": 2})", 1, 64, 128), Error);
}

}  // namespace
}  // namespace weft::model
