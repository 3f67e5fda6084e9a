#include "merge/table.h"

#include <algorithm>
#include <array>

namespace weft::merge {

std::span<const Method> methods() {
  // One line a method, sorted by name. Not static registration: linkers drop objects of static libraries that nothing names.
  // clang-format off
  static const std::array kMethods = {
      arcee_fusion(),
      breadcrumbs(),
      breadcrumbs_ties(),
      cabs(),
      dare_linear(),
      dare_ties(),
      della(),
      della_linear(),
      karcher(),
      lcsc(),
      linear(),
      model_stock(),
      multislerp(),
      nearswap(),
      negmerge(),
      nuslerp(),
      passthrough(),
      ram(),
      ramplus_tl(),
      restore_layers(),
      rtvq(),
      sce(),
      slerp(),
      task_analogy(),
      task_arithmetic(),
      ties(),
      time_vectors(),
      transfer(),
      tvq(),
  };
  // clang-format on
  return kMethods;
}

const Method* find_method(std::string_view name) noexcept {
  const auto all = methods();
  const auto found = std::find_if(all.begin(), all.end(), [name](const Method& m) { return m.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace weft::merge
