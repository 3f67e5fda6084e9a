#include "math/sort.h"

#include <hwy/contrib/sort/vqsort.h>

namespace weft::math {

void sort_ascending(std::span<std::uint32_t> keys) {
  const hwy::Sorter sorter;
  sorter(keys.data(), keys.size(), hwy::SortAscending());
}

void sort_ascending(std::span<std::uint64_t> keys) {
  const hwy::Sorter sorter;
  sorter(keys.data(), keys.size(), hwy::SortAscending());
}

}  // namespace weft::math
