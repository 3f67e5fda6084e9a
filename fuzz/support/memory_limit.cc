// Linked into every target, around its LLVMFuzzerTestOneInput (see CMakeLists.txt): ends the run when an input makes weft hold more memory than its
// own size justifies.
#include <sanitizer/allocator_interface.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr std::int64_t kTimesInput = 8;
constexpr std::int64_t kBeside = std::int64_t{64} << 20;

std::atomic<std::int64_t> held{0};
std::atomic<std::int64_t> peak{0};
thread_local bool counting = false;

void on_allocation(const volatile void*, std::size_t size) {
  if (!counting) return;
  const std::int64_t now = held += static_cast<std::int64_t>(size);
  if (now > peak) peak = now;
}

void on_release(const volatile void* address) {
  // What was allocated before this input may be released, too: the count is then too low, by little.
  if (counting && address != nullptr) held -= static_cast<std::int64_t>(__sanitizer_get_allocated_size(address));
}

}  // namespace

extern "C" int __real_LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int __wrap_LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int installed = __sanitizer_install_malloc_and_free_hooks(on_allocation, on_release);
  if (installed == 0) std::abort();
  held = 0;
  peak = 0;
  counting = true;
  const int result = __real_LLVMFuzzerTestOneInput(data, size);
  counting = false;
  const std::int64_t allowed = kTimesInput * static_cast<std::int64_t>(size) + kBeside;
  if (peak > allowed) {
    std::fprintf(stderr, "an input of %zu bytes took %lld bytes of memory, more than %lld\n", size, static_cast<long long>(peak.load()),
                 static_cast<long long>(allowed));
    std::abort();
  }
  return result;
}
