#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "weft/job.h"

// The executor of `whole` phases: pieces of work that need whole matrices, run side by side as far as the memory allows.
namespace weft::engine {

/// One piece of work.
struct Unit {
  std::string name;                ///< for messages
  std::uint64_t memory_bytes = 0;  ///< that it holds at most
  std::uint64_t work_bytes = 0;    ///< for progress, and to begin with the largest
  std::function<void()> run;       ///< on one thread; results must not depend on the order of units
};

/// Runs all units, the largest first, each on one thread. A cancelled job stops between units.
/// Errors: out_of_memory before any work when a unit can never fit the budget, with both numbers; interrupted; what a unit throws.
enum class Units { run, check };  ///< check: only whether they fit, for plans
void run_units(const std::vector<Unit>& units, const JobOptions& options, const char* what, Units how = Units::run);

}  // namespace weft::engine
