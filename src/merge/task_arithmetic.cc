#include "merge/table.h"
#include "merge/task_vector.h"

// task_arithmetic: base + lambda * sum of weighted task vectors. Source: arXiv 2212.04089.
namespace weft::merge {

Method task_arithmetic() {
  Method m;
  m.name = "task_arithmetic";
  m.summary = "add or subtract the changes that fine-tunes made to a base";
  m.paper = "arXiv:2212.04089";
  m.parameters = task_vector_parameters(Keep::all, false, false);
  m.base = BaseRule::required;
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::all, false}); };
  return m;
}

}  // namespace weft::merge
