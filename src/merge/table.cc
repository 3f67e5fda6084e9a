#include "merge/table.h"

#include <algorithm>
#include <array>

namespace weft::merge {

std::span<const Method> methods() {
  // One line a method, sorted by name. Not static registration: linkers drop objects of static libraries that nothing names.
  static const std::array<Method, 9> kMethods = {
      arcee_fusion(), karcher(), linear(), model_stock(), multislerp(), nuslerp(), passthrough(), sce(), slerp(),
  };
  return kMethods;
}

const Method* find_method(std::string_view name) noexcept {
  const auto all = methods();
  const auto found = std::find_if(all.begin(), all.end(), [name](const Method& m) { return m.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace weft::merge
