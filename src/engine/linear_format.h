#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "codec/packed_linear.h"
#include "engine/lazy_model.h"
#include "engine/linear_plan.h"

// The tensors in which a format holds a layer, and what config.json says of them.
namespace weft::engine {

/// Whether the format has a place for a layer; otherwise why not.
[[nodiscard]] std::string no_place_for(const LinearTarget& target, const LinearPlan& plan);

struct PackedLayer {
  std::vector<codec::StoredTensor> parts;
  std::vector<float> decoded;  ///< what a reader makes of the parts
  [[nodiscard]] std::uint64_t size_bytes() const;
};
/// Codes by the format's own rounding, or given ones, as the tensors of the format; read back and compared. Errors: unsupported for values that the
/// format has no scale for.
[[nodiscard]] PackedLayer pack_layer(const LinearPlan& plan, const LinearTarget& target, std::span<const float> values,
                                     const codec::QuantizedLinear* codes);

/// Says in config.json, and files beside it, what became of the layers.
void describe_in_config(const LinearPlan& plan, LazyModel& model);

}  // namespace weft::engine
