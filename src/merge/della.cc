#include "merge/table.h"
#include "merge/task_vector.h"

// della_linear, della: drop changes at random, the smaller ones of each row more often. Source: arXiv 2406.11617.
namespace weft::merge {
namespace {

Method any_della(bool consensus) {
  const Parameter epsilon = {.name = "epsilon",
                             .scope = ParameterScope::per_model,
                             .default_value = 0.15,
                             .help = "the smallest change of a row stays with probability density - epsilon, the largest with density + epsilon",
                             .min = 0};
  Method m = random_task_vector_method(Keep::random_by_rank, consensus, consensus, {epsilon},
                                       "divide each entry that stays by its probability, as the paper, instead of restoring the L1 norm");
  m.paper = "arXiv:2406.11617";
  return m;
}

}  // namespace

Method della_linear() {
  Method m = any_della(false);
  m.name = "della_linear";
  m.summary = "drop changes at random, small ones more often, and add the rest";
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::random_by_rank, false}); };
  return m;
}

Method della() {
  Method m = any_della(true);
  m.name = "della";
  m.summary = "drop changes at random, small ones more often, and sum those that agree on a sign";
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::random_by_rank, true}); };
  return m;
}

}  // namespace weft::merge
