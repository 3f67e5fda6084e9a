#include <gtest/gtest.h>

#include <string>

#include "engine/linear_plan.h"
#include "support/errors.h"

namespace weft::engine {
namespace {

LinearQuantizeOptions options_of(const std::string& method, const std::string& format = "weft") {
  LinearQuantizeOptions options;
  options.method = method;
  options.format = format;
  return options;
}

LinearRule rule_of(const std::string& method) {
  LinearRule rule;
  rule.pattern = "up_proj";
  rule.method = method;
  return rule;
}

TEST(LinearConflicts, steps_that_would_work_on_what_another_made_of_another_kind_are_refused) {
  for (const char* method : {"awq+pqi", "adadim+gptq+tune", "halfway+hqq", "exact+halfway+rtn", "gwq+hqq", "rsq+gptq+adaquant", "adadim+decoupleq",
                             "exact+decoupleq", "super+hqq", "super+gptq+tune", "super+rtn+lorc", "fireq+shifts", "fireq+gptq+refine", "shifts+decoupleq",
                             "shifts+gptq+adaquant"})
    EXPECT_WEFT_ERROR(LinearPlan(options_of(method)), invalid_argument, "do not go together");
  for (const char* method : {"awq+gptq", "smooth+rtn+lorc", "halfway+gptq+refine", "exact+gptq+refine+lorc", "rsq+gptq", "gptaq+dac", "awq+gptaq",
                             "smooth+decoupleq", "dsq+gptaq", "awq+gptq+dac", "halfway+gptq+omniquant", "decoupleq+tune", "hqq+lrq",
                             "super+exact+gptq+refine", "keys+smooth+fireq+gptq", "shifts+gptq+lorc"})
    EXPECT_NO_THROW(LinearPlan(options_of(method))) << method;
}

TEST(LinearConflicts, a_rule_s_method_counts) {
  LinearQuantizeOptions options = options_of("halfway+gptq");
  options.rules.push_back(rule_of("hqq"));
  EXPECT_WEFT_ERROR(LinearPlan(options), invalid_argument, "do not go together");
  options = options_of("gptq+tune");
  options.rules.push_back(rule_of("hqq"));
  EXPECT_NO_THROW(LinearPlan{options});
}

TEST(LinearConflicts, repairs_come_behind_what_changes_the_codes) {
  EXPECT_WEFT_ERROR(LinearPlan(options_of("gptq+lorc+refine")), invalid_argument, "write lorc behind refine");
  EXPECT_WEFT_ERROR(LinearPlan(options_of("gptq+dac+refine")), invalid_argument, "write dac behind refine");
}

TEST(LinearConflicts, only_one_step_learns_the_codes_of_blocks) {
  EXPECT_WEFT_ERROR(LinearPlan(options_of("gptq+omniquant+tune")), invalid_argument, "both learn");
}

TEST(LinearConflicts, what_is_never_stored_is_not_learned) {
  EXPECT_WEFT_ERROR(LinearPlan(options_of("rtn+tune", "bnb-int8")), invalid_argument, "bitsandbytes rounds by itself");
}

TEST(LinearConflicts, a_budget_needs_shares_that_are_known_before) {
  LinearQuantizeOptions options = options_of("gwq+gptq");
  options.budget_bits = 3.6;
  EXPECT_WEFT_ERROR(LinearPlan(options), invalid_argument, "after a budget is spent");
}

}  // namespace
}  // namespace weft::engine
