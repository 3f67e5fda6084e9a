#include "merge/table.h"
#include "merge/task_vector.h"

// breadcrumbs, breadcrumbs_ties: drop the smallest changes and the few largest. Source: arXiv 2312.06795.
namespace weft::merge {
namespace {

Method any_breadcrumbs(bool consensus) {
  Method m;
  m.paper = "arXiv:2312.06795";
  m.parameters = task_vector_parameters(Keep::middle, false, false);
  m.parameters.push_back({.name = "gamma",
                          .scope = ParameterScope::per_model,
                          .default_value = 0.01,
                          .help = "share of the entries, the largest ones, that is dropped as well",
                          .min = 0});
  m.parameters.push_back({.name = "drop_all_without_top",
                          .type = ParameterType::boolean,
                          .default_value = 0,
                          .help = "where gamma is less than one entry, drop the whole change, as mergekit 0.1.4 did"});
  m.base = BaseRule::required;
  m.passes = 2;
  m.identity = consensus ? Identity::rounded : Identity::exact;
  return m;
}

}  // namespace

Method breadcrumbs() {
  Method m = any_breadcrumbs(false);
  m.name = "breadcrumbs";
  m.summary = "drop the smallest and the very largest changes and add the rest";
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::middle, false}); };
  return m;
}

Method breadcrumbs_ties() {
  Method m = any_breadcrumbs(true);
  m.name = "breadcrumbs_ties";
  m.summary = "drop the smallest and the very largest changes and sum those that agree on a sign";
  m.make = [](const TensorContext& context) { return make_task_vector_merge(context, {Keep::middle, true}); };
  return m;
}

}  // namespace weft::merge
