#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/linear_step_table.h"
#include "engine/quantize_linear.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "support/tiny_runs.h"
#include "weft/error.h"

// Every two steps of which a method may be made, together, on a small model: what is accepted must do what both say.
namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using testing::Tensors;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

/// What a chain makes: the tensors, and how far its answers are from the model's.
struct Made {
  Tensors tensors;
  double far = 0, bits = 0;
  bool tells_why = false;  ///< a warning says that a step left all as it was
};

class SlowQuantizePairs : public ::testing::Test {
 protected:
  [[nodiscard]] static LinearQuantizeOptions options_of(const std::string& method) {
    LinearQuantizeOptions options;
    options.method = method;
    options.format = "weft";
    options.bits = 3;
    options.group = 64;
    options.threads = 2;
    LinearRule keep;
    keep.pattern = R"(layers\.1\.)";
    keep.keep = true;
    options.rules.push_back(keep);
    options.tokens = testing::some_tokens(6, 48);
    // Shorter: more turns say no more about what goes together.
    for (const std::string& name : split_steps(method))
      for (const StepParameter& parameter : find_linear_step(name)->parameters) {
        static const std::map<std::string_view, double> kLess = {{"epochs", 1}, {"steps", 20}, {"rounds", 2},
                                                                 {"sweeps", 1}, {"points", 1}, {"step", 0.5}};
        if (const auto less = kLess.find(parameter.name); less != kLess.end())
          options.parameters[fmt::format("{}.{}", name, parameter.name)] = less->second;
      }
    return options;
  }

  /// Nothing where the chain is refused, which says why.
  std::optional<Made> make(const std::string& method) {
    const fs::path out = folder_.path() / "out";
    fs::remove_all(out);
    Made made;
    LinearQuantizeOptions options = options_of(method);
    options.on_warning = [&made](const std::string& text) { made.tells_why = made.tells_why || text.find("it stays as") != std::string::npos; };
    try {
      made.bits = quantize_linear(kModel, out, options).linear_bits;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::invalid_argument) << method << ": " << error.what();
      EXPECT_FALSE(error.advice().empty()) << method;
      return {};
    }
    made.tensors = testing::read_all(out);
    static const std::vector<float> kWanted = testing::logits_of(kModel);
    made.far = testing::relative(kWanted, testing::logits_of(out.string()));
    return made;
  }

  testing::TemporaryFolder folder_{testing::memory_folder()};
};

/// A chain of these and one that finds codes, in the order of the table.
std::string chain_of(std::vector<std::string> names) {
  const auto place = [](const std::string& name) { return find_linear_step(name)->place; };
  if (std::none_of(names.begin(), names.end(), [&](const std::string& name) { return place(name) == StepPlace::codes; })) names.emplace_back("gptq");
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) { return place(a) < place(b); });
  return fmt::to_string(fmt::join(names, "+"));
}

/// Whether a step finds nothing to do on this model and text, so that its work cannot show.
bool is_idle(const std::string& first, const std::string& second) {
  const std::set<std::string> names = {first, second};
  return names.contains("super") ||                                 // no activation stands out
         names.contains("rsq") ||                                   // too few tokens: all weigh 1
         (names.contains("adaquant") && !names.contains("rtn")) ||  // what it learns behind compensated codes is no better on the tokens held out
         names == std::set<std::string>{"keys", "smoothplus"};      // its search chooses not to scale
}

TEST_F(SlowQuantizePairs, what_goes_together_shows_in_the_bytes_and_loses_less_than_twice_the_worse_of_both) {
  std::map<std::string, std::optional<Made>> alone;
  int num_accepted = 0, num_refused = 0;
  for (const LinearStepInfo& a : linear_steps())
    for (const LinearStepInfo& b : linear_steps()) {
      if (!(a.name < b.name) || (a.place == StepPlace::codes && b.place == StepPlace::codes)) continue;
      const std::string first(a.name), second(b.name), chain = chain_of({first, second});
      const std::optional<Made> both = make(chain);
      if (!both) {
        ++num_refused;
        continue;
      }
      ++num_accepted;
      // Beside each alone, with the same codes.
      std::vector<std::string> beside;
      if (a.place != StepPlace::codes && b.place != StepPlace::codes) {
        beside = {chain_of({first}), chain_of({second})};
      } else {
        beside = {a.place == StepPlace::codes ? first : second};
      }
      double worst = 0;
      for (const std::string& one : beside) {
        const auto [own, is_new] = alone.try_emplace(one);
        if (is_new) own->second = make(one);
        ASSERT_TRUE(own->second) << one;
        worst = std::max(worst, own->second->far);
        EXPECT_TRUE(both->tells_why || is_idle(first, second) || both->tensors != own->second->tensors) << chain << " is " << one;
      }
      EXPECT_LT(both->far, 2 * worst) << chain;
      std::cout << fmt::format("{}: {:.4f}, the worse alone {:.4f}, {:.3f} bits\n", chain, both->far, worst, both->bits);
    }
  std::cout << fmt::format("{} pairs, {} refused\n", num_accepted, num_refused);
  EXPECT_GT(num_accepted, 300);
}

}  // namespace
}  // namespace weft::engine
