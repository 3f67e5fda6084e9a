#pragma once
#include <memory>
#include <string>
#include <vector>

#include "merge/method.h"

// The skeleton that task_arithmetic, ties, dare, della and breadcrumbs share. With task vectors d_i = A_i - B (float32) of the models other than the
// base:
//   sparsify d_i, rescale it; v_i = w_i d_i; sum the v_i, or those that agree with the elected sign; normalise; times lambda; plus B.
// One method is a row of the choices below. Source: arXiv 2212.04089; numbers as mergekit 0.1.5.
namespace weft::merge {

/// Which entries of a task vector stay. density >= 1 keeps all and density <= 0 none, whatever the rule.
enum class Keep {
  all,
  largest,         ///< int(density * n) of the largest magnitudes, at least one
  middle,          ///< as many, below the int(gamma * n) largest
  random,          ///< each with probability density
  random_by_rank,  ///< with a probability that grows with its rank in its row, density on average
};

struct TaskVectorRules {
  Keep keep = Keep::all;
  bool consensus = false;  ///< per entry, sum only those with the sign that the weighted sum has
};

/// The parameters that mergekit gives these methods: per model weight and density; normalize, rescale, lambda, int8_mask.
[[nodiscard]] std::vector<Parameter> task_vector_parameters(Keep keep, bool normalize, bool rescale);

/// What the random ones share: those parameters and unbiased_rescale with this help, a required base, two passes. Of the method is left its name,
/// summary, paper and make.
[[nodiscard]] Method random_task_vector_method(Keep keep, bool consensus, bool normalize, std::vector<Parameter> more, std::string unbiased_help);

/// Reads, besides those: epsilon (random_by_rank), gamma and drop_all_without_top (middle), unbiased_rescale (the random ones).
[[nodiscard]] std::unique_ptr<TensorMerge> make_task_vector_merge(const TensorContext& context, const TaskVectorRules& rules);

/// base + scale * sum of weights[k] * (input positions[k] - base) in float64, rounded once; `base` is any position. Reads only what counts, copies
/// where the result is one input.
[[nodiscard]] std::unique_ptr<TensorMerge> make_weighted_deltas(const TensorContext& context, std::size_t base,
                                                                const std::vector<std::size_t>& positions, const std::vector<double>& weights,
                                                                double scale);

/// The base of a method that requires one.
[[nodiscard]] std::size_t required_base(const TensorContext& context);

}  // namespace weft::merge
