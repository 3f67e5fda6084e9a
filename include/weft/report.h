#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "weft/evaluate.h"
#include "weft/export.h"
#include "weft/inspect.h"
#include "weft/job.h"
#include "weft/measure.h"
#include "weft/quantize.h"

namespace weft {

/// Whether this build can write reports: they need Vega (the Debian package libjs-vega) while weft is built, and nothing later.
[[nodiscard]] WEFT_API bool can_write_reports() noexcept;
/// Throws unsupported, saying what to install, when it cannot, and io where nothing can be written at output. To be called before work that
/// takes long.
/// A report inside of what a job makes (made_by_job) has its folder when that is done.
WEFT_API void require_reports(const std::filesystem::path& output = {}, const std::filesystem::path& made_by_job = {});

/// Each writes one HTML file that needs nothing beside itself: what stands out first, then tables and charts. An existing file is replaced.
/// Errors: unsupported (see above); io.
WEFT_API void write_report(const MeasureReport& measured, const std::filesystem::path& output);
WEFT_API void write_report(const DiffReport& diff, const std::string& a, const std::string& b, const std::filesystem::path& output);

/// A model that went into a job, and how what came out differs from it.
struct InputDiff {
  std::string model;
  DiffReport diff;
};
/// what: "merge". inputs: may be empty.
WEFT_API void write_report(const JobReport& job, const std::string& what, std::span<const InputDiff> inputs, const std::filesystem::path& output);

/// What quantizing a model made of it. model: its name. model_bytes: of its tensors; 0 where that is not known. texts: how the result reads them, beside
/// the model; may be empty.
WEFT_API void write_report(const QuantizeReport& made, const std::string& model, std::uint64_t model_bytes, std::span<const TextScore> texts,
                           const std::filesystem::path& output);

}  // namespace weft
