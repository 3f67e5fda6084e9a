#include "merge/table.h"
#include "merge/task_vector.h"

// ties: the largest changes of each model, summed where they agree on a sign. Trimmed per tensor, as mergekit (the paper trims over the model).
// Source: arXiv 2306.01708.
namespace weft::merge {

Method ties() {
  Method m;
  m.name = "ties";
  m.summary = "keep each model's largest changes and sum those that agree on a sign";
  m.paper = "arXiv:2306.01708";
  m.parameters = task_vector_parameters(Keep::largest, true, false);
  m.base = BaseRule::required;
  m.passes = 2;
  m.identity = Identity::rounded;
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::largest, true}); };
  return m;
}

}  // namespace weft::merge
