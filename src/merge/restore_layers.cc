#include <cstddef>
#include <string>

#include "merge/table.h"
#include "merge/task_vector.h"
#include "weft/error.h"

// restore_layers: put a range of a fine-tune's layers back to, or toward, the base. Source: arXiv 2602.06665.
namespace weft::merge {
namespace {

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  const double first = context.values.number("first_layer");
  const double last = context.values.number("last_layer");
  if (context.num_layers > 0 && first <= last && last >= context.num_layers) {
    throw Error(
        ErrorCode::invalid_argument,
        "last_layer is " + std::to_string(static_cast<long long>(last)) + ", but the layers are 0 to " + std::to_string(context.num_layers - 1),
        {.tensor = context.name, .key = "last_layer"}, "count layers from 0");
  }
  const bool restored = context.layer >= 0 && context.layer >= first && context.layer <= last;
  // tuned + amount (base - tuned); an amount of 0 or 1 copies bytes.
  return make_weighted_deltas(context, context.non_base().at(0), {required_base(context)}, {restored ? context.values.number("amount") : 0.0}, 1.0);
}

}  // namespace

Method restore_layers() {
  Method m;
  m.name = "restore_layers";
  m.summary = "put a range of a fine-tune's layers back to the base";
  m.paper = "arXiv:2602.06665";
  m.parameters = {
      {.name = "first_layer", .type = ParameterType::integer, .help = "first layer that is restored, from 0", .min = 0, .max = 1e6},
      {.name = "last_layer", .type = ParameterType::integer, .help = "last one; below first_layer: none", .min = 0, .max = 1e6},
      {.name = "amount", .default_value = 1, .help = "1: the base's bytes; between 0 and 1: part of the way", .min = 0, .max = 1},
  };
  m.max_models = 1;
  m.base = BaseRule::required;
  m.identity = Identity::none;
  m.make = make;
  return m;
}

}  // namespace weft::merge
