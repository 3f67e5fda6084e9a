#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "support/command.h"
#include "support/temporary_folder.h"

// Quantized models that run as they are stored.
namespace weft {
namespace {

using testing::CommandResult;
using testing::run_weft;
using testing::TemporaryFolder;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

Json json_of(const CommandResult& result) {
  EXPECT_EQ(result.status, 0) << result.err;
  return parse_json(result.out, "stdout");
}

double perplexity(const std::string& model, const std::string& text, const std::string& precision) {
  const Json report = json_of(run_weft({"eval", model, "--text", text, "--window", "64", "--windows", "4", "--precision", precision, "--json"}));
  return report.find("texts")->array()->front().find("perplexity")->number().value_or(0);
}

TEST(PackedCommand, quantized_models_give_nearly_the_perplexity_of_their_decoded_values) {
  const TemporaryFolder folder;
  const std::string text = (folder / "text").string();
  {
    std::ofstream out(text);
    for (int i = 0; i < 60; ++i)
      out << "And God said, Let there be light: and there was light, and the evening and the morning were day " << i << ".\n";
  }
  struct Case {
    const char* name;
    std::vector<std::string> arguments;
    double most;  ///< relative difference of the perplexity
    bool is_packed = true;
  };
  // Inputs of GGUF's types are rounded; those of the others are not, but their weights are, to the type of the tensor, when they are decoded.
  // Where something is added to what codes say, they are decoded in any case.
  const std::vector<Case> cases = {{"q8.gguf", {"--format", "gguf:Q8_0"}, 0.01},
                                   {"q4.gguf", {"--format", "gguf:Q4_K_M"}, 0.01},
                                   {"q2.gguf", {"--format", "gguf:Q2_K"}, 0.01},
                                   {"gptq", {"--format", "gptq", "--method", "rtn", "--bits", "4", "--group", "64"}, 0.005},
                                   {"awq", {"--format", "awq", "--method", "rtn", "--bits", "4", "--group", "64"}, 0.005},
                                   {"packed", {"--format", "compressed-tensors", "--method", "rtn", "--bits", "8", "--group", "128"}, 0.005},
                                   {"nf4", {"--format", "bnb-nf4"}, 0.005},
                                   {"own", {"--format", "weft", "--method", "rtn", "--bits", "3", "--group", "64", "--asymmetric"}, 0.005},
                                   {"lorc", {"--format", "weft", "--method", "rtn+lorc", "--bits", "4", "--group", "64"}, 0, false},
                                   {"exact", {"--format", "weft", "--method", "exact+rtn", "--bits", "4", "--group", "64"}, 0, false}};
  for (const Case& one : cases) {
    SCOPED_TRACE(one.name);
    const std::string model = (folder / one.name).string();
    std::vector<std::string> arguments = {"quantize", kModel, model};
    arguments.insert(arguments.end(), one.arguments.begin(), one.arguments.end());
    const CommandResult made = run_weft(arguments);
    ASSERT_EQ(made.status, 0) << made.err;
    const double decoded = perplexity(model, text, "float32"), packed = perplexity(model, text, "packed");
    EXPECT_GT(decoded, 1);
    EXPECT_NEAR(packed / decoded, 1, one.most);
    EXPECT_EQ(packed != decoded, one.is_packed) << "the weights were decoded where they could stay packed, or the other way round";
    const Json generated = json_of(run_weft({"generate", model, "--prompt", "In the beginning", "--max-tokens", "8", "--greedy", "--json"}));
    EXPECT_FALSE(generated.find("ids")->array()->empty());
  }
}

TEST(PackedCommand, a_model_that_is_not_quantized_gives_the_same_as_in_float32) {
  const auto text_of = [](const std::string& precision) {
    return *json_of(
                run_weft({"generate", kModel, "--prompt", "In the beginning", "--max-tokens", "12", "--greedy", "--precision", precision, "--json"}))
                .find("text")
                ->string();
  };
  EXPECT_EQ(text_of("packed"), text_of("float32"));
}

}  // namespace
}  // namespace weft
