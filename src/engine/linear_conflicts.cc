#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "engine/linear_step.h"

// Steps that do not go together: each alone is right, and one would work on what the other has made of another kind.
namespace weft::engine {
namespace {

struct Conflict {
  std::vector<std::string_view> these, those;
  std::string_view why;
};

const std::vector<Conflict>& conflicts() {
  static const std::vector<Conflict> kConflicts = {
      {{"pqi"}, {"awq", "smooth", "smoothplus", "dsq"}, "the way from the model to its codes leads through weights of one scale"},
      {{"adadim"}, {"omniquant", "flexround", "lrq", "tune", "adaquant", "decoupleq"}, "groups along outputs are not learned"},
      {{"halfway"}, {"hqq", "decoupleq"}, "a zero point halfway between two codes is not looked for"},
      {{"exact", "gwq", "pqi", "super"},
       {"halfway", "hqq", "decoupleq"},
       "what is kept beside the codes needs a code for 0, which such zero points leave out"},
      {{"super"}, {"omniquant", "flexround", "lrq", "tune"}, "what is learned of a whole block would move weights that are to stay as they are"},
      {{"fireq", "shifts"},
       {"hqq", "halfway", "decoupleq", "adadim", "refine", "adaquant", "omniquant", "flexround", "lrq", "tune"},
       "scales that are found or learned anew are not of that kind"},
      {{"fireq"}, {"shifts"}, "each has scales of its own kind"},
      {{"super"}, {"lorc"}, "a product of thin matrices would be added to weights that are to stay as they are"},
      {{"rsq"}, {"adaquant"}, "what is held out of learning would count its tokens otherwise"},
  };
  return kConflicts;
}

bool contains(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

void refuse_conflicts(const LinearQuantizeOptions& options) {
  const std::vector<std::string> chain = split_steps(options.method);
  // A rule gives some layers another way to their codes.
  std::vector<std::string> all = chain;
  for (const LinearRule& rule : options.rules)
    if (!rule.method.empty()) all.push_back(rule.method);
  for (const Conflict& conflict : conflicts())
    for (const std::string& a : all)
      for (const std::string& b : all)
        if (contains(conflict.these, a) && contains(conflict.those, b))
          refuse_linear("method", fmt::format("'{}' and '{}' do not go together: {}", a, b, conflict.why), "leave one of them out");
  // Whoever repairs what is lost comes behind whoever changes the codes.
  const auto at = [&](std::string_view name) { return std::find(chain.begin(), chain.end(), name); };
  for (const std::string_view last : {"lorc", "dac"})
    for (const std::string_view other : {"refine", "adaquant", "lorc"})
      if (last != other && at(last) < at(other) && at(other) != chain.end())
        refuse_linear("method", fmt::format("'{}' repairs what codes lose, and '{}' behind it changes them", last, other),
                      fmt::format("write {} behind {}", last, other));
  if (options.budget_bits || options.budget_bytes)
    for (const std::string_view name : {"gwq", "pqi"})
      if (at(name) != chain.end())
        refuse_linear("budget", fmt::format("'{}' finds what it keeps while the model is walked, after a budget is spent", name),
                      "give --bits, or use 'exact', whose share is known before");
}

}  // namespace weft::engine
