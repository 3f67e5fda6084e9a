#pragma once
#include <atomic>
#include <chrono>
#include <functional>

#include "weft/error.h"

// Ending a process in time when it is asked to.
namespace weft::engine {

/// From now on the first SIGINT or SIGTERM sets `cancelled`, for jobs to stop at; the second ends the process at once, as that signal does.
/// A process that has not come to its end after `patience` (a kernel that takes minutes, a device that does not answer) is ended from another thread:
/// journals are written, `report` is called with what is to be said, and the process exits with the status that it returns, within a second.
/// SIGXFSZ is ignored, so that a limit on the size of files (ulimit -f) shows as an error of the call.
/// Once for a process; what is given must live as long as that.
void end_on_signals(std::atomic<bool>& cancelled, std::function<int(const Error&)> report,
                    std::chrono::milliseconds patience = std::chrono::milliseconds(1000));

/// To be called before a process prints its result or error and ends: of that and the thread above only one may. Does not return when that was first;
/// may be called again when it was not.
void claim_the_end();

}  // namespace weft::engine
