#include "merge/table.h"
#include "merge/task_vector.h"

// time_vectors: a model for a time between or beyond those of two fine-tunes, base + (1 - a) t_first + a t_second. Source:
// KaiNylund/lm-weights-encode-time.
namespace weft::merge {

Method time_vectors() {
  Method m;
  m.name = "time_vectors";
  m.summary = "a point on the line through two dated fine-tunes";
  m.paper = "github.com/KaiNylund/lm-weights-encode-time";
  m.parameters = {
      {.name = "position", .help = "0: the first model's time, 1: the second's; between, before or after is allowed"},
      {.name = "lambda", .default_value = 1, .help = "factor of the resulting task vector"},
  };
  m.min_models = 2;
  m.max_models = 2;
  m.base = BaseRule::required;
  m.symmetric = false;
  m.make = [](const TensorContext& context) {
    const double position = context.values.number("position");
    return make_weighted_deltas(context, required_base(context), context.non_base(), {1 - position, position}, context.values.number("lambda"));
  };
  return m;
}

}  // namespace weft::merge
