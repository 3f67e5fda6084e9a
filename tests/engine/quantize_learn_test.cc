#include "engine/quantize_learn.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>

#include "checkpoint/json.h"
#include "engine/calibration_text.h"
#include "engine/gradient_scores.h"
#include "engine/linear_step_table.h"
#include "engine/quantize_linear.h"
#include "engine/running_model.h"
#include "math/convert.h"
#include "model/block_gradient.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_runs.h"

// Steps that need gradients, on the small model of the repository.
namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;
using testing::values_of;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";
const std::string kUp = "model.layers.0.mlp.up_proj.weight";

std::shared_ptr<const CalibrationTokens> text_of(const char* name, std::uint64_t num_sequences, std::uint64_t length) {
  RunningModel model(kModel, {});
  return read_calibration_text(model, {.files = {std::string(WEFT_SOURCE_DIR) + "/" + name}, .num_sequences = num_sequences, .length = length}, 0)
      .tokens;
}
/// What is learned from, and another text of the same kind to look at.
const CalibrationTokens& all_text() {
  static const auto kAll = text_of("LICENSE", 24, 64);
  return *kAll;
}
std::shared_ptr<const CalibrationTokens> learned_text() {
  auto tokens = std::make_shared<CalibrationTokens>();
  tokens->sequences.assign(all_text().sequences.begin(), all_text().sequences.begin() + 16);
  return tokens;
}

LinearQuantizeOptions options_for(const std::string& method, int bits, const std::string& format = "gptq_v2") {
  LinearQuantizeOptions options;
  options.method = method;
  options.format = format;
  options.bits = bits;
  options.group = 64;
  options.tokens = learned_text();
  options.threads = 2;
  return options;
}

/// Nats a token on text that nothing was learned from.
double loss_of(const std::string& model) {
  const ModelFiles files = open_model_files(model);
  const std::vector<std::vector<std::uint32_t>> held(all_text().sequences.begin() + 16, all_text().sequences.end());
  return model::loss_gradient(files.checkpoint, files.config, held, {}).loss;
}

TEST(QuantizeLearn, what_is_learned_loses_less_than_what_it_begins_with_on_other_text) {
  const TemporaryFolder folder;
  std::map<std::string, double> losses;
  const double original = loss_of(kModel);
  for (const char* method : {"rtn", "omniquant", "flexround", "adaquant", "gptq", "gptq+tune"}) {
    LinearQuantizeOptions options = options_for(method, 2);
    for (const LinearStepInfo& step : linear_steps())
      if (step.place == StepPlace::block && options.method.find(step.name) != std::string::npos) {
        options.parameters[fmt::format("{}.epochs", step.name)] = 3;
        options.parameters[fmt::format("{}.tokens", step.name)] = 256;
      }
    if (options.method == "adaquant") options.parameters["adaquant.steps"] = 100;
    const LinearQuantizeReport report = quantize_linear(kModel, folder / method, options);
    EXPECT_EQ(report.layers.size(), 14u);
    losses[method] = loss_of((folder / method).string()) - original;
  }
  for (const char* method : {"omniquant", "flexround", "adaquant"}) EXPECT_LT(losses[method], losses["rtn"]) << method;
  EXPECT_LT(losses["flexround"], 0.8 * losses["rtn"]);
  EXPECT_LT(losses["gptq+tune"], losses["gptq"]);
}

TEST(QuantizeLearn, codes_that_were_learned_fit_every_layout_of_integers) {
  const TemporaryFolder folder;
  for (const auto& [format, bits] :
       {std::pair("gptq", 4), std::pair("gptq_v2", 3), std::pair("awq", 4), std::pair("compressed-tensors", 4), std::pair("weft", 3)})
    for (const char* method : {"omniquant", "adaquant"}) {
      SCOPED_TRACE(fmt::format("{} {}", format, method));
      LinearQuantizeOptions options = options_for(method, bits, format);
      if (options.method != "adaquant") {
        options.parameters[options.method + ".epochs"] = 1;
      } else {
        options.parameters["adaquant.steps"] = 1;
      }
      const fs::path output = folder / fmt::format("{}-{}", format, method);
      static_cast<void>(quantize_linear(kModel, output, options));
      EXPECT_LT(loss_of(output.string()), loss_of(kModel) + 0.5);
    }
}

TEST(QuantizeLearn, gains_are_written_beside_the_codes) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = options_for("tune", 2);
  options.parameters = {{"tune.gains", 1e-2}, {"tune.epochs", 2}, {"tune.tokens", 128}};
  static_cast<void>(quantize_linear(kModel, folder / "out", options));
  const auto before = open_checkpoint(kModel), after = open_checkpoint((folder / "out").string());
  const std::string norm = "model.layers.1.input_layernorm.weight";
  EXPECT_NE(values_of(*before, norm), values_of(*after, norm));
  EXPECT_EQ(before->tensor(norm).dtype, after->tensor(norm).dtype);
}

TEST(QuantizeLearn, threads_change_nothing_and_a_job_that_was_stopped_goes_on) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = options_for("lrq", 3);
  options.parameters = {{"lrq.epochs", 2}, {"lrq.tokens", 128}};
  static_cast<void>(quantize_linear(kModel, folder / "two", options));
  options.threads = 1;
  static_cast<void>(quantize_linear(kModel, folder / "one", options));
  // Stopped while the second block learns.
  std::atomic<bool> stop = false;
  LinearQuantizeOptions stopped = options;
  stopped.journal_seconds = 0;
  stopped.cancel = &stop;
  stopped.on_progress = [&](const Progress& progress) {
    if (progress.what == "learning codes" && progress.done_bytes > 1000) stop = true;
  };
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "stopped", stopped), interrupted, "interrupted");
  stop = false;
  stopped.on_progress = {};
  static_cast<void>(quantize_linear(kModel, folder / "stopped", stopped));
  const auto two = open_checkpoint((folder / "two").string());
  for (const char* other : {"one", "stopped"}) {
    const auto result = open_checkpoint((folder / other).string());
    for (const TensorInfo& tensor : two->tensors()) EXPECT_EQ(values_of(*two, tensor.name), values_of(*result, tensor.name)) << tensor.name;
  }
}

TEST(QuantizeLearn, what_cannot_be_learned_is_refused_with_the_way_out) {
  const TemporaryFolder folder;
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "a", options_for("lrq+lorc", 4, "weft")), invalid_argument, "lorc");
  LinearQuantizeOptions floats = options_for("flexround", 4, "weft");
  floats.numbers = "nf4";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "a", floats), invalid_argument, "--numbers int");
  LinearQuantizeOptions without = options_for("adaquant", 4);
  without.tokens = nullptr;
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "a", without), invalid_argument, "--calibration FILE");
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "a", options_for("gwq", 4)), invalid_argument, "--format weft");
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "a", options_for("pqi", 4)), invalid_argument, "--format weft");
}

// ---- Weights beside the codes

TEST(Gwq, the_share_is_kept_exactly_none_is_rounding_and_all_is_the_model) {
  const TemporaryFolder folder;
  const auto original = open_checkpoint(kModel);
  std::map<double, std::shared_ptr<const Checkpoint>> made;
  std::map<double, double> losses;  // of the layers' outputs
  for (const double share : {0.0, 0.01, 1.0}) {
    LinearQuantizeOptions options = options_for("gwq", 3, "weft");
    options.parameters = {{"gwq.share", share}, {"gwq.sequences", 2}};
    const std::string name = fmt::format("{}", share);
    for (const auto& layer : quantize_linear(kModel, folder / name, options).layers) losses[share] += layer.relative_loss;
    made[share] = open_checkpoint((folder / name).string());
  }
  static_cast<void>(quantize_linear(kModel, folder / "rtn", options_for("rtn", 3, "weft")));
  const auto rounded = open_checkpoint((folder / "rtn").string());
  EXPECT_EQ(values_of(*made[0.0], kUp), values_of(*rounded, kUp));
  EXPECT_EQ(values_of(*made[1.0], kUp), values_of(*original, kUp));
  // Those with the largest gradients, of each sequence by itself, are there as they were.
  const ModelFiles files = open_model_files(kModel);
  std::vector<float> scores(original->tensor(kUp).num_elements);
  for (std::size_t s = 0; s < 2; ++s)
    static_cast<void>(model::loss_gradient(files.checkpoint, files.config, std::span(learned_text()->sequences).subspan(s, 1),
                                           [&](const TensorInfo& tensor, std::span<const float> gradient) {
                                             if (tensor.name != kUp) return;
                                             for (std::size_t i = 0; i < scores.size(); ++i) scores[i] += std::fabs(gradient[i]);
                                           }));
  const std::vector<float> own = values_of(*made[0.01], kUp), before = values_of(*original, kUp);
  const auto chosen = quantize::largest_scores(scores, static_cast<std::size_t>(std::llround(0.01 * static_cast<double>(scores.size()))));
  for (const std::int64_t at : chosen) ASSERT_EQ(own[static_cast<std::size_t>(at)], before[static_cast<std::size_t>(at)]);
  EXPECT_LT(losses[0.01], losses[0.0]);
}

TEST(Gwq, two_bytes_say_where_a_weight_is) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = options_for("gwq", 3, "weft");
  options.parameters = {{"gwq.share", 0.01}, {"gwq.sequences", 1}};
  const double with = quantize_linear(kModel, folder / "with", options).linear_bits;
  options.parameters["gwq.share"] = 0;
  const double without = quantize_linear(kModel, folder / "without", options).linear_bits;
  // 16 bits of weight, 16 of its column, and 32 a row.
  EXPECT_NEAR(with - without, 0.01 * 32 + 32.0 / 256, 0.03);
}

TEST(Pqi, the_change_along_the_way_is_that_of_the_loss) {
  const TemporaryFolder folder;
  static_cast<void>(quantize_linear(kModel, folder / "out", options_for("rtn", 3, "weft")));
  const ModelFiles files = open_model_files(kModel);
  const auto quantized = open_checkpoint((folder / "out").string());
  const auto tokens = learned_text();
  std::vector<std::string> names;
  for (const TensorInfo& tensor : quantized->tensors())
    if (!tensor.stored_as.empty()) names.push_back(tensor.name);
  ASSERT_EQ(names.size(), 14u);
  const double actual = model::loss_gradient(quantized, files.config, tokens->sequences, {}).loss -
                        model::loss_gradient(files.checkpoint, files.config, tokens->sequences, {}).loss;
  const double first = score_path(files.checkpoint, quantized, files.config, *tokens, names, 1, {.num_sequences = 0}).change;
  const double told = score_path(files.checkpoint, quantized, files.config, *tokens, names, 8, {.num_sequences = 0}).change;
  EXPECT_NEAR(told, actual, 0.01 * actual);
  EXPECT_LT(std::fabs(told - actual), std::fabs(first - actual));
}

TEST(Pqi, as_many_weights_as_were_asked_for_stay_and_the_loss_is_less) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = options_for("pqi", 3, "weft");
  options.parameters = {{"pqi.points", 2}, {"pqi.sequences", 2}};
  double with = 0, without = 0;  // of the layers' outputs
  for (const auto& layer : quantize_linear(kModel, folder / "pqi", options).layers) with += layer.relative_loss;
  for (const auto& layer : quantize_linear(kModel, folder / "rtn", options_for("rtn", 3, "weft")).layers) without += layer.relative_loss;
  EXPECT_LT(with, without);
  std::uint64_t weights = 0, kept = 0;
  const auto original = open_checkpoint(kModel), result = open_checkpoint((folder / "pqi").string());
  for (const TensorInfo& tensor : result->tensors()) {
    if (tensor.stored_as.empty()) continue;
    weights += tensor.num_elements;
    const std::vector<float> own = values_of(*result, tensor.name), before = values_of(*original, tensor.name);
    for (std::size_t i = 0; i < own.size(); ++i) kept += own[i] == before[i] ? 1 : 0;
  }
  // All that were left out of the codes, and those of the others that happen to be a code's value.
  EXPECT_GE(kept, static_cast<std::uint64_t>(0.0045 * static_cast<double>(weights)));
  // What was made on the way lay beside the output, and is gone.
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) left.push_back(entry.path().filename().string());
  std::sort(left.begin(), left.end());
  EXPECT_EQ(left, (std::vector<std::string>{"pqi", "rtn"}));
}

}  // namespace
}  // namespace weft::engine
