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
  std::function<void(const Progress&)> on_progress;      ///< called from one thread at a time, some ten times a second
  std::function<void(const std::string&)> on_warning;    ///< called as warnings arise; they are also in the report
  const std::atomic<bool>* cancel = nullptr;   ///< once true, the job stops within a chunk, removes what it built and throws interrupted
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
  std::uint64_t peak_memory_bytes = 0;         ///< estimated for a dry run, measured otherwise
  std::vector<std::string> warnings;
  bool dry_run = false;
};

}  // namespace weft
