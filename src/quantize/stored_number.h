#pragma once
#include "math/convert.h"
#include "weft/dtype.h"

namespace weft::quantize {

/// A scale or zero point as the type in which it is stored has it.
[[nodiscard]] inline float stored(DType type, double number) {
  const auto value = static_cast<float>(number);
  return type == DType::f32 ? value : math::decode_one(type, math::encode_one(type, value));
}

}  // namespace weft::quantize
