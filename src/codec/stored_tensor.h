#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "codec/packed_linear.h"

namespace weft::codec::detail {

/// A tensor that holds `values` as they lie in memory.
template <typename Element>
StoredTensor stored(std::string name, DType dtype, std::vector<std::int64_t> shape, const std::vector<Element>& values) {
  StoredTensor out{std::move(name), dtype, std::move(shape), {}};
  out.bytes.resize(values.size() * sizeof(Element));
  if (!values.empty()) std::memcpy(out.bytes.data(), values.data(), out.bytes.size());
  return out;
}

}  // namespace weft::codec::detail
