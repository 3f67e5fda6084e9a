#include "engine/interrupt.h"

#include <fmt/format.h>
#include <semaphore.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/text.h"
#include "checkpoint/output.h"

namespace weft::engine {
namespace {

std::atomic<bool>* cancel_flag = nullptr;
::sem_t signalled;
std::atomic<bool> ending{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler writes it");

extern "C" void on_signal(int number) {
  const int error = errno;
  if (cancel_flag->exchange(true)) {
    // The second one: what it does by default.
    std::signal(number, SIG_DFL);
    ::raise(number);
  }
  ::sem_post(&signalled);
  errno = error;
}

/// What save_all() has found by the time that is given; it goes on in a thread of its own, because a device that hangs must not hold us.
std::vector<std::filesystem::path> save_within(std::chrono::milliseconds limit) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable done;
    bool is_done = false;
    std::vector<std::filesystem::path> folders;
  };
  const auto shared = std::make_shared<Shared>();
  std::thread([shared] {
    std::vector<std::filesystem::path> folders = Output::save_all();
    const std::lock_guard lock(shared->mutex);
    shared->folders = std::move(folders);
    shared->is_done = true;
    shared->done.notify_all();
  }).detach();
  std::unique_lock lock(shared->mutex);
  shared->done.wait_for(lock, limit, [&] { return shared->is_done; });
  return shared->folders;
}

[[noreturn]] void end_now(const std::function<int(const Error&)>& report) {
  std::string advice = "no tensor was finished yet, so nothing is kept; the same command starts again";
  try {
    std::vector<std::string> kept;
    for (const std::filesystem::path& folder : save_within(std::chrono::milliseconds(600)))
      kept.push_back("'" + printable(folder.string(), 4096) + "'");
    if (!kept.empty()) advice = fmt::format("the same command goes on where this one stopped; what is finished is kept in {}", fmt::join(kept, ", "));
  } catch (...) {  // no memory, no thread: it ends all the same
  }
  int status = 1;
  if (!ending.exchange(true)) {
    try {
      status = report(Error(ErrorCode::interrupted, "interrupted", {}, advice));
    } catch (...) {
    }
  } else {
    // The other side is just ending the process; it may need a moment to print.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  ::_exit(status);
}

}  // namespace

void end_on_signals(std::atomic<bool>& cancelled, std::function<int(const Error&)> report, std::chrono::milliseconds patience) {
  cancel_flag = &cancelled;
  ::sem_init(&signalled, 0, 0);
  try {
    std::thread([report = std::move(report), patience] {
      while (::sem_wait(&signalled) != 0 && errno == EINTR) {
      }
      std::this_thread::sleep_for(patience);
      end_now(report);
    }).detach();
  } catch (const std::exception&) {
    // No thread to be had: signals still stop jobs between two chunks.
  }
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  // A file that is larger than the process may make is an error of the call that writes it, not the end of the process.
  std::signal(SIGXFSZ, SIG_IGN);
}

void claim_the_end() {
  // Again for an error in printing the result.
  static std::atomic<bool> is_ours{false};
  if (is_ours.load() || !ending.exchange(true)) {
    is_ours.store(true);
    return;
  }
  for (;;) ::pause();
}

}  // namespace weft::engine
