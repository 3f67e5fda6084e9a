#include "engine/activation_rounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "engine/input_statistics.h"
#include "engine/running_model.h"
#include "model/tiny_networks.h"
#include "support/errors.h"

namespace weft::engine {
namespace {

using model::Role;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";
const std::string kText = std::string(WEFT_SOURCE_DIR) + "/claims/text/english.txt";

std::vector<float> output_of(RunningModel& running) {
  std::vector<std::uint32_t> ids;
  for (std::uint32_t i = 0; i < 45; ++i) ids.push_back((i * 29 + 3) % 50);
  const model::TokenChunk chunk{nullptr, ids, {}};
  return running.network().run(std::span(&chunk, 1));
}

RunningModel running(const testing::Tiny& tiny, std::shared_ptr<const model::ActivationRounding> rounding = nullptr) {
  ModelFiles files;
  files.checkpoint = tiny.checkpoint;
  files.config = tiny.config;
  return {std::move(files), {}, std::move(rounding)};
}

/// Counts what it is shown, and sets rows of some layers to 0.
class Zeroing final : public model::ActivationRounding {
 public:
  explicit Zeroing(bool zeroes) : zeroes_(zeroes) {}
  mutable std::map<InputPoint, std::size_t> rows;
  mutable double shares = 0;
  void round(int, Role role, int expert, std::span<float> row) const override {
    const std::lock_guard lock(lock_);
    const InputPoint point = input_point(role, expert);
    ++rows[point];
    if (zeroes_ && (point.role == Role::down || point.role == Role::o)) std::fill(row.begin(), row.end(), 0.0F);
  }
  [[nodiscard]] bool rounds_shares() const noexcept override { return true; }
  void round_shares(std::int64_t first_key, std::span<float> own) const override {
    const std::lock_guard lock(lock_);
    EXPECT_GE(first_key, 0);
    for (const float share : own) shares += static_cast<double>(share);
  }

 private:
  bool zeroes_;
  mutable std::mutex lock_;
};

TEST(ActivationRounding, sees_all_rows_of_all_layers_and_changes_what_they_read) {
  for (const testing::Tiny& tiny : testing::all_transformers()) {
    SCOPED_TRACE(tiny.name);
    RunningModel plain = running(tiny);
    const std::vector<float> before = output_of(plain);
    const auto looks = std::make_shared<Zeroing>(false);
    RunningModel watched = running(tiny, looks);
    EXPECT_EQ(output_of(watched), before);
    const std::size_t layers = plain.config().layers.size();
    EXPECT_EQ(looks->rows[(InputPoint{Role::q, -1})], 45 * layers);
    EXPECT_EQ(looks->rows[(InputPoint{Role::o, -1})], 45 * layers);
    EXPECT_FALSE(looks->rows.contains(InputPoint{Role::router, -1}));
    EXPECT_NEAR(looks->shares, 45.0 * static_cast<double>(layers) * static_cast<double>(plain.config().heads), 0.01);

    // As if the matrices behind were of zeros.
    std::vector<testing::MemoryCheckpoint::Tensor> tensors;
    for (const TensorInfo& tensor : tiny.checkpoint->tensors()) {
      std::vector<float> values(tensor.num_elements);
      tiny.checkpoint->read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
      const Role role = model::role_of(model::find_architecture(tiny.config), tensor.name);
      if ((role == Role::o || role == Role::down) && tensor.name.ends_with("weight")) std::fill(values.begin(), values.end(), 0.0F);
      tensors.push_back({tensor.name, tensor.dtype, tensor.shape, testing::stored_as(DType::f32, values)});
    }
    testing::Tiny without = tiny;
    without.checkpoint = std::make_shared<testing::MemoryCheckpoint>(std::move(tensors));
    RunningModel cut = running(without), zeroed = running(tiny, std::make_shared<Zeroing>(true));
    const std::vector<float> expected = output_of(cut), got = output_of(zeroed);
    for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-5F * (1 + std::fabs(expected[i]))) << i;
  }
}

ActivationOptions as(std::string numbers, int ranges = 0, std::string shares = "") {
  ActivationOptions how;
  how.numbers = std::move(numbers);
  how.ranges = ranges;
  how.shares = std::move(shares);
  if (ranges != 0) how.text.files = {kText};
  how.text.num_sequences = 4;
  how.text.length = 64;
  return how;
}

double loss_of(const ActivationOptions& how) {
  PerplexityOptions options;
  options.window = 64;
  options.num_windows = 12;
  options.activations = how;
  const std::filesystem::path text = kText;
  return evaluate_texts(kModel, std::span(&text, 1), "", options).texts.front().nll_per_token;
}

TEST(ActivationRounding, costs_less_the_more_bits_and_the_more_scales_there_are) {
  const double plain = loss_of({});
  EXPECT_NEAR(loss_of(as("int16")), plain, 1e-3);
  EXPECT_NEAR(loss_of(as("int8")), plain, 0.02);
  EXPECT_NEAR(loss_of(as("fp8")), plain, 0.05);
  const double three = loss_of(as("int3"));
  EXPECT_GT(three, plain + 0.05);
  EXPECT_LT(loss_of(as("int3:32")), three);
  EXPECT_LT(loss_of(as("int4", 8)), loss_of(as("int4", 1)));
  EXPECT_NEAR(loss_of(as("int8", 1)), plain, 0.05);
  EXPECT_NEAR(loss_of(as("fp8", 4)), plain, 0.05);
  const double shares = loss_of(as("", 0, "log6"));
  EXPECT_NE(shares, plain);
  EXPECT_NEAR(shares, plain, 0.05);
  EXPECT_NEAR(loss_of(as("", 0, "int6")), plain, 0.05);
}

TEST(ActivationRounding, refuses_what_makes_no_sense) {
  const auto refused = [](const ActivationOptions& how) { static_cast<void>(make_activation_rounding(kModel, how, {})); };
  EXPECT_EQ(make_activation_rounding(kModel, {}, {}), nullptr);
  EXPECT_WEFT_ERROR(refused(as("", 8)), invalid_argument, "--activations");
  ActivationOptions only_clip;
  only_clip.clip = 0.9;
  EXPECT_WEFT_ERROR(refused(only_clip), invalid_argument, "--activations");
  for (const char* numbers : {"int1", "int17", "int", "int8:", "int8:0", "int8:x", "fp4", "8", ":8", "int8:-4", "int99999999999"})
    EXPECT_WEFT_ERROR(refused(as(numbers)), invalid_argument, "--activations");
  EXPECT_WEFT_ERROR(refused(as("int8:32", 8)), invalid_argument, "leave one of them out");
  EXPECT_WEFT_ERROR(refused(as("int8", 1000)), invalid_argument, "1 to 256");
  for (const char* shares : {"log7", "int0", "4", "log"}) EXPECT_WEFT_ERROR(refused(as("", 0, shares)), invalid_argument, "--attention-shares");
  ActivationOptions how = as("int8", 8);
  how.text.files.clear();
  EXPECT_WEFT_ERROR(refused(how), invalid_argument, "--calibration");
  how = as("int8");
  how.clip = 0;
  EXPECT_WEFT_ERROR(refused(how), invalid_argument, "--activation-clip");
  how = as("int8");
  how.text.files = {kText};
  EXPECT_WEFT_ERROR(refused(how), invalid_argument, "--activation-ranges 1");
}

}  // namespace
}  // namespace weft::engine
