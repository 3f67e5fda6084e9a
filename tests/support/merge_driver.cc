#include "support/merge_driver.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace weft::testing {
namespace {

struct Span {
  std::uint64_t first;
  std::size_t count;
};

std::vector<Span> cut(const merge::TensorContext& context, const merge::Tiling& tiling) {
  std::uint64_t step = tiling.elements;
  if (tiling.unit == merge::Tiling::Unit::rows) {
    const std::uint64_t row = std::max<std::uint64_t>(1, context.row_length());
    step = std::max<std::uint64_t>(1, tiling.elements / row) * row;
  }
  std::vector<Span> spans;
  for (std::uint64_t first = 0; first < context.num_elements; first += step)
    spans.push_back({first, static_cast<std::size_t>(std::min(step, context.num_elements - first))});
  return spans;
}

}  // namespace

std::vector<float> run_phases(const merge::Method& method, const merge::TensorContext& context, const std::vector<std::vector<float>>& inputs,
                              const DriverOptions& options) {
  const std::unique_ptr<merge::TensorMerge> merge = merge::make_merge(method, context);
  if (const auto copied = merge->copied_input()) return inputs.at(*copied);
  if (options.use_cache && merge->cache_bytes() > 0) merge->use_cache();
  const std::vector<Span> spans = cut(context, merge->tiling());
  std::vector<std::size_t> order(spans.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = options.reverse_tiles ? order.size() - 1 - i : i;
  std::vector<const float*> pointers(inputs.size());
  const std::vector<float> zeros(context.num_elements);
  const auto tile_of = [&](const Span& span) {
    for (std::size_t k = 0; k < inputs.size(); ++k) pointers[k] = (merge->reads_input(k) ? inputs[k] : zeros).data() + span.first;
    return merge::Tile{span.first, span.count, pointers};
  };

  for (merge::Pass pass = merge->next_pass(); pass != merge::Pass::none; pass = merge->next_pass()) {
    const std::size_t num_sums = merge->num_sums();
    std::vector<std::vector<double>> sums(spans.size(), std::vector<double>(num_sums, 0.0));
    std::vector<std::unique_ptr<merge::Tally>> tallies(static_cast<std::size_t>(options.num_tallies));
    for (const std::size_t i : order) {
      if (pass == merge::Pass::sample && !merge->wants_tile(spans[i].first, spans[i].count)) continue;
      std::unique_ptr<merge::Tally>& tally = tallies[i % tallies.size()];
      if (tally == nullptr) tally = merge->new_tally();
      merge->reduce(tile_of(spans[i]), sums[i], tally.get());
    }
    std::vector<double> totals(num_sums, 0.0);
    for (const auto& tile_sums : sums)
      for (std::size_t k = 0; k < num_sums; ++k) totals[k] += tile_sums[k];
    std::erase(tallies, nullptr);
    merge->solve(totals, tallies);
  }
  std::vector<float> out(context.num_elements);
  for (const std::size_t i : order) merge->map(tile_of(spans[i]), std::span(out).subspan(spans[i].first, spans[i].count));
  merge->finish();
  return out;
}

merge::TensorContext make_context(const merge::Method& method, Shape shape, int num_models, bool with_base, std::string name) {
  merge::TensorContext context;
  context.name = std::move(name);
  context.num_elements = 1;
  for (const std::int64_t d : shape) context.num_elements *= static_cast<std::uint64_t>(d);
  context.shape = std::move(shape);
  const auto defaults = [&method](merge::ParameterScope scope) {
    merge::Values values;
    for (const merge::Parameter& p : method.parameters)
      if (p.scope == scope && p.default_value) values.set(p.name, *p.default_value);
    return values;
  };
  context.values = defaults(merge::ParameterScope::global);
  if (with_base) {
    merge::Input base;
    base.model = "base";
    base.is_base = true;
    base.values = defaults(merge::ParameterScope::per_model);
    context.inputs.push_back(std::move(base));
  }
  for (int i = 0; i < num_models; ++i) {
    merge::Input input;
    input.model = "m" + std::to_string(i);
    input.index = static_cast<std::uint32_t>(i);
    input.values = defaults(merge::ParameterScope::per_model);
    context.inputs.push_back(std::move(input));
  }
  return context;
}

}  // namespace weft::testing
