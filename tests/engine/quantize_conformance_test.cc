// Runs over every step of which methods of quantizing are made, on a trained model of the repository, through the whole engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "math/targets.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::read_all;
using testing::Tensors;

class QuantizeConformance : public ::testing::TestWithParam<QuantizeStep> {
 protected:
  /// The step in a chain that it makes sense in, written in the form that holds everything.
  Tensors quantized(int threads) {
    const QuantizeStep& step = GetParam();
    QuantizeOptions options;
    options.format = "weft";
    // Steps that look at what layers read may be about making errors good, which rounding does not.
    const std::string codes = step.needs_text ? "gptq" : "rtn";
    options.method = step.place == "codes"                             ? step.name
                     : step.place == "repair" || step.place == "block" ? codes + "+" + step.name
                                                                       : step.name + "+" + codes;
    options.linear.bits = 3;
    options.linear.group = 64;
    if (step.needs_text) {
      options.linear.calibration.files = {fs::path(WEFT_SOURCE_DIR) / "README.md"};
      options.linear.calibration.num_sequences = 4;
      options.linear.calibration.length = 48;
    }
    // Shorter: more turns say no more about threads.
    if (step.name == "decoupleq") options.linear.parameters = {{"decoupleq.rounds", 2}, {"decoupleq.sweeps", 1}};
    options.threads = threads;
    const fs::path out = folder_.path() / "out";
    fs::remove_all(out);
    (void)quantize(std::string(WEFT_SOURCE_DIR) + "/models/tiny-base", out, options);
    return read_all(out);
  }

  testing::TemporaryFolder folder_{testing::memory_folder()};
};

TEST_P(QuantizeConformance, threads_do_not_change_a_byte) {
  const Tensors expected = quantized(1);
  ASSERT_FALSE(expected.empty());
  EXPECT_EQ(quantized(3), expected);
}

TEST_P(QuantizeConformance, every_simd_target_of_this_machine_gives_the_same_bytes) {
  if (GetParam().determinism != "A") GTEST_SKIP() << GetParam().name << " is of class " << GetParam().determinism;
  const Tensors expected = quantized(2);
  for (const math::SimdTarget& target : math::compiled_targets()) {
    if (!target.supported) {
      std::cout << "skipped: this machine has no " << target.name << "\n";
      continue;
    }
    math::use_only_target(target.bit);
    const Tensors got = quantized(2);
    math::use_only_target(0);
    EXPECT_EQ(got, expected) << target.name;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryStep, QuantizeConformance, ::testing::ValuesIn(quantize_steps()),
                         [](const ::testing::TestParamInfo<QuantizeStep>& step) { return step.param.name; });

}  // namespace
}  // namespace weft
