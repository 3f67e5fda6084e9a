#include "base/aligned_bytes.h"

#include <new>

namespace weft {
namespace {
constexpr std::align_val_t kLine{64};
}  // namespace

void AlignedBytes::Free::operator()(std::byte* p) const noexcept { ::operator delete[](p, kLine); }
AlignedBytes::AlignedBytes(std::size_t size_bytes) : data_(static_cast<std::byte*>(::operator new[](size_bytes, kLine))), size_(size_bytes) {}

}  // namespace weft
