#include "engine/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "base/budget.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/threads.h"
#include "weft/error.h"

namespace weft::engine {

void run_units(const std::vector<Unit>& units, const JobOptions& options, const char* what, Units how) {
  MemoryBudget budget(options.memory_bytes);
  std::uint64_t total = 0;
  for (const Unit& unit : units) {
    total += unit.work_bytes;
    if (unit.memory_bytes > budget.limit_bytes())
      throw Error(ErrorCode::out_of_memory,
                  fmt::format("{} '{}' takes {} of memory, and the job may use {}", what, printable(unit.name), format_size(unit.memory_bytes),
                              format_size(budget.limit_bytes())),
                  {.tensor = unit.name}, fmt::format("give --memory {} or more", unit.memory_bytes));
  }
  if (how == Units::check) return;
  std::vector<std::size_t> order(units.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&units](std::size_t a, std::size_t b) { return units[a].work_bytes > units[b].work_bytes; });

  ProgressMeter progress(options.on_progress, what, total);
  WorkerPool workers(options.threads);
  std::atomic<std::size_t> next{0};
  workers.run([&](int) {
    for (std::size_t i; (i = next.fetch_add(1)) < order.size();) {
      if (workers.stop_token().stop_requested()) return;
      if (options.cancel != nullptr && options.cancel->load()) throw Error(ErrorCode::interrupted, std::string(what) + " was interrupted");
      const Unit& unit = units[order[i]];
      const MemoryBudget::Share share = budget.acquire(unit.memory_bytes, what);
      unit.run();
      progress.add(unit.work_bytes);
    }
  });
  progress.finish();
}

}  // namespace weft::engine
