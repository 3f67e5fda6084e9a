#pragma once
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "weft/dtype.h"
#include "weft/checkpoint.h"
#include "weft/export.h"

namespace weft {

/// How far a job has come.
struct Progress {
  std::string what;               ///< "merging", "reading", ...
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
  double elapsed_seconds = 0;
};

/// What every job that reads, computes and writes takes.
struct JobOptions {
  int threads = 0;                             ///< 0: as many as the machine has
  std::uint64_t memory_bytes = 0;              ///< what the job may hold; 0: a quarter of RAM
  std::uint64_t seed = 0;
  std::uint64_t max_shard_bytes = 5'000'000'000;  ///< 0: one file
  bool force = false;                          ///< replace an existing output
  bool dry_run = false;                        ///< plan only
  bool allow_non_finite = false;               ///< let NaN and infinities through
  std::uint64_t chunk_bytes = 0;               ///< of one read; 0: chosen by weft. Never changes a result.
  bool read_back = false;                      ///< read the finished output from the device again and compare
  bool verify_input = false;                   ///< read every input that has a list of checksums first, and refuse a damaged one
  std::uint64_t journal_bytes = std::uint64_t{1} << 30;  ///< finished work that a crash may cost, and ...
  double journal_seconds = 10;                           ///< ... for how long: whichever comes first
  std::function<void(const Progress&)> on_progress;      ///< called from one thread at a time, some ten times a second
  std::function<void(const std::string&)> on_warning;    ///< called as warnings arise; they are also in the report
  const std::atomic<bool>* cancel = nullptr;   ///< once true, the job stops within a chunk and throws interrupted; finished tensors are kept
};

/// One tensor of a plan: where it comes from, how, and where it goes.
struct PlannedTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::string> inputs;             ///< "MODEL:TENSOR"
  std::string method;
  std::vector<std::pair<std::string, std::string>> parameters;
  std::string file;                            ///< in the output
  std::uint64_t offset_bytes = 0;              ///< from the start of that file
  std::uint64_t size_bytes = 0;
};

/// What a job will do (with dry_run) or did.
struct JobReport {
  std::filesystem::path output;
  std::vector<std::string> files;              ///< in the output, weights first
  std::vector<PlannedTensor> tensors;
  std::uint64_t num_tensors = 0;
  std::uint64_t num_parameters = 0;
  std::uint64_t size_bytes = 0;                ///< of the tensors
  double elapsed_seconds = 0;
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t bytes_resumed = 0;             ///< written by an earlier run that was stopped, checked and kept
  std::uint64_t peak_memory_bytes = 0;         ///< estimated for a dry run, measured otherwise
  std::vector<std::string> warnings;
  bool dry_run = false;
};

/// A job that was stopped and can go on, or is at work.
struct UnfinishedJob {
  std::filesystem::path output;                ///< what it makes
  std::filesystem::path folder;                ///< the hidden folder in which it does
  std::string what;                            ///< "merging", ...; empty when it has not come so far
  bool running = false;
  bool resumable = false;                      ///< the command that started it goes on with it; otherwise nothing in it is of use
  std::uint64_t num_tensors = 0, num_finished = 0;
  std::uint64_t size_bytes = 0, finished_bytes = 0;
};
/// Unfinished jobs with outputs in this folder, and the one with this output.
/// Errors: not_found when there is neither a folder nor a job; io.
[[nodiscard]] WEFT_API std::vector<UnfinishedJob> unfinished_jobs(const std::filesystem::path& folder);
/// Removes what it left. Errors: invalid_argument when it is running; io.
WEFT_API void discard_job(const UnfinishedJob& job);

}  // namespace weft
