#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "checkpoint/json.h"
#include "command.h"
#include "terminal.h"
#include "weft/error.h"
#include "weft/job.h"

// What every command shares: its common options, and how results, warnings and errors are printed.
namespace weft::app {

/// What a MODEL argument may be.
inline constexpr const char* kModelHelp = "a Hugging Face folder, a .safetensors or PyTorch file, a shard index, MODEL+ADAPTER, or org/name[@revision] in the local cache";

/// Of --report.
inline constexpr const char* kReportHelp = "also write one HTML file to look at, with tables and charts; it needs nothing beside itself";

struct CommonOptions {
  bool json = false;
  bool quiet = false;
  bool verbose = false;
  bool progress = false;
  bool dry_run = false;
  bool force = false;
  bool allow_non_finite = false;
  std::uint64_t threads = 0;
  std::uint64_t memory_bytes = 0;
  std::uint64_t seed = 0;
  std::uint64_t max_shard_bytes = JobOptions{}.max_shard_bytes;
  std::uint64_t journal_bytes = JobOptions{}.journal_bytes;
  bool read_back = false;
  bool verify_input = false;
};

void add_print_options(Command& command, CommonOptions& options);   ///< --json, --quiet, --verbose
void add_job_options(Command& command, CommonOptions& options);     ///< --threads, --memory, --progress
void add_output_options(Command& command, CommonOptions& options);  ///< --max-shard-size, --allow-non-finite, --dry-run, --force

/// Prints the one JSON document of stdout.
void print_json(const Json& document);

/// Text, or null when it is empty: what is unknown is null in our JSON.
[[nodiscard]] Json text_or_null(std::string_view text);

/// What a command says beside its result, on stderr: warnings and progress.
class Console {
 public:
  explicit Console(const CommonOptions& options) : options_(options) {}

  /// Shown at once, the first few of them; with --json they are in the document instead, unless that has no place for them (a plan).
  void warn(const std::string& text);
  /// Printed in any case.
  void say(const std::string& text, std::string_view label = "warning:");
  /// Removes the progress line and says how many warnings were not shown.
  void finish();

  /// Threads, memory, seed, what may be written, progress, warnings, cancellation by signal. The console must outlive the job.
  void fill(JobOptions& job);

 private:
  const CommonOptions& options_;
  std::unique_ptr<ProgressLine> progress_;  ///< null: none is shown
  std::uint64_t num_warnings_ = 0;
};

/// The dtype that an option names. Throws invalid_argument with the nearest name.
[[nodiscard]] DType dtype_argument(const std::string& text, const std::string& option);

/// Throws invalid_argument for what is no number.
[[nodiscard]] double real_argument(const std::string& text, const char* option);

/// Reports an error as people (stderr) or programs (stdout, JSON) want it; returns the exit status.
int report_error(const Error& error, bool json);

/// Makes SIGINT and SIGTERM cancel the running job and end the process within two seconds, as report_error says it; a second one kills.
void cancel_on_signals(bool json);
/// To be called before the process ends by itself, lest it is ended for a signal at the same time.
void claim_the_end();

}  // namespace weft::app
