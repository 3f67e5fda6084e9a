#pragma once
#include <memory>
#include <span>
#include <vector>

#include "engine/measure_input.h"
#include "engine/units.h"
#include "measure/table.h"
#include "weft/measure.h"

// What is measured of layers and of models against each other: pieces of work for the one walk that measures everything.
namespace weft::engine {

/// What a comparison's units leave behind; finish() sums it up after the walk.
class Comparison {
 public:
  virtual ~Comparison() = default;
  /// Units write into this object, which must outlive the walk.
  virtual void add_units(std::vector<Unit>& units) = 0;
  virtual ModelComparison finish() = 0;
};

/// The layers of a model: gated neurons and their decoding. out gets one entry a layer at once, filled by the units.
void add_block_units(const MeasuredInput& input, const measure::Selection& selection, std::uint64_t seed, MeasuredModel& out,
                     std::vector<Unit>& units);

/// One model against the base: differences, intruders, changed elements, agreement of neurons.
enum class PairDepth : std::uint8_t {
  full,     ///< everything that is selected
  changed,  ///< how much changed only: the steps of a path
};
[[nodiscard]] std::unique_ptr<Comparison> compare_pair(const MeasuredInput& base, const MeasuredInput& model, const measure::Selection& selection,
                                                       PairDepth depth);
/// Whether two models have the same tensors, of the same shapes.
[[nodiscard]] bool same_signature(const MeasuredInput& a, const MeasuredInput& b);
/// Many models against a base: task vectors.
[[nodiscard]] std::unique_ptr<Comparison> compare_set(const MeasuredInput& base, const std::vector<const MeasuredInput*>& models);

}  // namespace weft::engine
