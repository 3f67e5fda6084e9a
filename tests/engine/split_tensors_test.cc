#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <string>

#include "engine/split_tensors.h"
#include "weft/measure.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/logits/models";

/// Elements of a part by those of its whole: where element (output, input) of the part lies in the whole.
using Place = std::size_t (*)(std::size_t part, std::size_t output, std::size_t input, std::size_t hidden, std::size_t outputs, std::size_t dim);

void check(const std::string& model, Place place, std::size_t dim, bool transposed) {
  const fs::path folder = kModels / model;
  if (!fs::exists(folder)) GTEST_SKIP() << "the reference data in ../shared are not here";
  const MeasuredInput input = open_measured(folder.string());
  const SplitTensors split = split_tensors(input);
  ASSERT_NE(split.view, nullptr);
  std::map<std::string, std::size_t> seen;
  for (const TensorPart& part : split.parts) {
    if (part.role != model::Role::q && part.role != model::Role::k && part.role != model::Role::v) continue;
    const std::string whole = part.tensor->name.substr(0, part.tensor->name.rfind(" ["));
    const TensorInfo& tensor = input.checkpoint->tensor(whole);
    const std::vector<double> all = read_doubles(*input.checkpoint, tensor), own = read_doubles(*split.view, *part.tensor);
    const auto hidden = static_cast<std::size_t>(tensor.shape[transposed ? 0 : 1]),
               outputs = static_cast<std::size_t>(tensor.shape[transposed ? 1 : 0]);
    const auto rows = static_cast<std::size_t>(part.tensor->shape[0]), columns = static_cast<std::size_t>(part.tensor->shape[1]);
    const std::size_t number = seen[whole]++;
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < columns; ++c) {
        const std::size_t output = transposed ? c : r, in = transposed ? r : c;
        ASSERT_EQ(own[r * columns + c], all[place(number, output, in, hidden, outputs, dim)]) << part.tensor->name;
      }
  }
  EXPECT_FALSE(seen.empty());
  for (const auto& [name, parts] : seen) EXPECT_EQ(parts, 3u) << name;
}

TEST(SplitTensors, columns_of_gpt2_are_q_then_k_then_v) {
  check(
      "gpt2",
      [](std::size_t part, std::size_t o, std::size_t i, std::size_t hidden, std::size_t outputs, std::size_t) {
        return i * outputs + part * hidden + o;
      },
      0, true);
}

TEST(SplitTensors, rows_of_gpt_neox_alternate_by_head) {
  const fs::path folder = kModels / "gpt-neox";
  if (!fs::exists(folder)) GTEST_SKIP() << "the reference data in ../shared are not here";
  const Json config = read_json_file(folder / "config.json");
  const auto dim = static_cast<std::size_t>(*config.find("hidden_size")->integer() / *config.find("num_attention_heads")->integer());
  check(
      "gpt-neox",
      [](std::size_t part, std::size_t o, std::size_t i, std::size_t hidden, std::size_t, std::size_t d) {
        return ((3 * (o / d) + part) * d + o % d) * hidden + i;
      },
      dim, false);
}

TEST(SplitTensors, what_is_measured_of_the_parts_adds_up_to_the_whole) {
  const fs::path folder = kModels / "phi3";
  if (!fs::exists(folder)) GTEST_SKIP() << "the reference data in ../shared are not here";
  MeasureOptions options;
  options.what = {"moments"};
  const std::string models[] = {folder.string()};
  const MeasureReport report = measure_models(models, options);
  std::map<std::string, double> parts, wholes;
  std::size_t tensors = 0;
  for (const MeasuredTensor& tensor : report.models[0].tensors) {
    const std::size_t bracket = tensor.name.rfind(" [");
    tensors += bracket == std::string::npos;
    const double* squares = tensor.measures.find("moments.sum_squares");
    if (squares == nullptr) continue;
    (bracket == std::string::npos ? wholes[tensor.name] : parts[tensor.name.substr(0, bracket)]) += *squares;
  }
  EXPECT_GE(parts.size(), 2u);
  for (const auto& [name, sum] : parts) EXPECT_NEAR(sum, wholes.at(name), 1e-12 * sum) << name;
  // The parts are no further tensors of the model.
  EXPECT_EQ(*report.models[0].model.find("model.num_tensors"), static_cast<double>(tensors));
}

}  // namespace
}  // namespace weft::engine
