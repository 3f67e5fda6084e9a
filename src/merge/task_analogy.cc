#include "merge/table.h"
#include "merge/task_vector.h"

// task_analogy: "A is to B as C is to ?" with task vectors, t = t_C + (t_B - t_A). Source: arXiv 2212.04089.
namespace weft::merge {

Method task_analogy() {
  Method m;
  m.name = "task_analogy";
  m.summary = "'the first is to the second as the third is to ?': base + lambda (t3 + t2 - t1)";
  m.paper = "arXiv:2212.04089";
  m.parameters = {{.name = "lambda", .default_value = 1, .help = "factor of the task vector"}};
  m.min_models = 3;
  m.max_models = 3;
  m.base = BaseRule::required;
  m.symmetric = false;
  m.make = [](const TensorContext& context) {
    return make_weighted_deltas(context, required_base(context), context.non_base(), {-1, 1, 1}, context.values.number("lambda"));
  };
  return m;
}

}  // namespace weft::merge
