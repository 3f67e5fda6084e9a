#include "merge/table.h"
#include "merge/task_vector.h"

// dare_linear, dare_ties: drop most of each task vector at random and rescale the rest. Source: arXiv 2311.03099.
namespace weft::merge {
namespace {

Method dare(bool consensus) {
  Method m = random_task_vector_method(Keep::random, consensus, false, {}, "rescale by 1 / density, as the paper, instead of restoring the L1 norm");
  m.paper = "arXiv:2311.03099";
  return m;
}

}  // namespace

Method dare_linear() {
  Method m = dare(false);
  m.name = "dare_linear";
  m.summary = "drop changes at random, rescale the rest and add them";
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::random, false}); };
  return m;
}

Method dare_ties() {
  Method m = dare(true);
  m.name = "dare_ties";
  m.summary = "drop changes at random, rescale the rest and sum those that agree on a sign";
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::random, true}); };
  return m;
}

}  // namespace weft::merge
