#include <cmath>
#include <cstddef>
#include <string>

#include "merge/table.h"
#include "merge/task_vector.h"
#include "weft/error.h"

// lcsc: a given linear combination of saved checkpoints, with coefficients that sum to one. Source: imagination-research/LCSC (the search is not
// here).
namespace weft::merge {
namespace {

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  // W_1 + sum of a_i (W_i - W_1): the sum of the coefficients is one by construction, so equal checkpoints return themselves however the numbers in
  // the config were rounded. The one that the others are measured from is the first that counts.
  constexpr double kTolerance = 1e-6;
  double sum = 0;
  std::size_t first = context.inputs.size();
  std::vector<std::size_t> others;
  std::vector<double> weights;
  for (std::size_t i = 0; i < context.inputs.size(); ++i) {
    const double weight = context.inputs[i].values.number("weight");
    sum += weight;
    if (weight == 0) continue;
    if (first == context.inputs.size()) {
      first = i;
      continue;
    }
    others.push_back(i);
    weights.push_back(weight);
  }
  if (!(std::abs(sum - 1) <= kTolerance)) {
    throw Error(ErrorCode::invalid_argument, "the coefficients of tensor '" + context.name + "' sum to " + std::to_string(sum) + ", not to 1",
                {.tensor = context.name, .key = "weight"}, "divide them by their sum, or use linear for a plain weighted sum");
  }
  return make_weighted_deltas(context, first, others, weights, 1.0);
}

}  // namespace

Method lcsc() {
  Method m;
  m.name = "lcsc";
  m.summary = "combine checkpoints of one training run with coefficients that sum to one (negative ones allowed)";
  m.paper = "github.com/imagination-research/LCSC";
  m.parameters = {{.name = "weight", .scope = ParameterScope::per_model, .help = "coefficient of this checkpoint; together they sum to 1"}};
  m.make = make;
  return m;
}

}  // namespace weft::merge
