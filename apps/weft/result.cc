#include "result.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"

namespace weft::app {
namespace {

double bits_per_weight(const JobReport& report) {
  return report.num_parameters == 0 ? 0 : 8 * static_cast<double>(report.size_bytes) / static_cast<double>(report.num_parameters);
}

}  // namespace

Json shape_json(const Shape& shape) {
  Json::Array dimensions;
  for (const std::int64_t dimension : shape) dimensions.emplace_back(dimension);
  return Json(std::move(dimensions));
}

Json report_json(const JobReport& report, Json::Object details) {
  if (report.dry_run) return plan_json(report);
  if (report.bytes_resumed > 0) details.emplace_back("bytes_resumed", Json(report.bytes_resumed));
  Json::Array files;
  for (const std::string& file : report.files) files.emplace_back(file);
  Json::Array warnings;
  for (const std::string& warning : report.warnings) warnings.emplace_back(warning);
  return Json(Json::Object{{"output", Json(report.output.string())},
                           {"files", Json(std::move(files))},
                           {"num_tensors", Json(report.num_tensors)},
                           {"size_bytes", Json(report.size_bytes)},
                           {"bits_per_weight", Json(bits_per_weight(report))},
                           {"elapsed_seconds", Json(report.elapsed_seconds)},
                           {"bytes_read", Json(report.bytes_read)},
                           {"bytes_written", Json(report.bytes_written)},
                           {"peak_memory_bytes", Json(report.peak_memory_bytes)},
                           {"warnings", Json(std::move(warnings))},
                           {"details", Json(std::move(details))}});
}

void print_summary(const JobReport& report, const std::string& headline) {
  const double seconds = std::max(report.elapsed_seconds, 1e-9);
  const double rate = static_cast<double>(report.bytes_read + report.bytes_written) / seconds;
  std::printf("%s into %s\n", paint(stdout, Style::bold, headline).c_str(), paint(stdout, Style::cyan, report.output.string()).c_str());
  std::printf("  %s\n", fmt::format("{} tensors, {} parameters, {} at {:.4g} bits each", report.num_tensors, format_count(report.num_parameters),
                                    format_size(report.size_bytes), bits_per_weight(report))
                            .c_str());
  std::printf("  %s\n", fmt::format("read {}, wrote {} in {} ({}/s), peak memory {}", format_size(report.bytes_read),
                                    format_size(report.bytes_written), format_seconds(report.elapsed_seconds),
                                    format_size(static_cast<std::uint64_t>(rate)), format_size(report.peak_memory_bytes))
                            .c_str());
  if (report.bytes_resumed > 0) std::printf("  went on with %s that an earlier run had finished\n", format_size(report.bytes_resumed).c_str());
}

void print_report(const JobReport& report, const CommonOptions& options, const std::string& headline, Json::Object details) {
  if (options.json) {
    print_json(report_json(report, std::move(details)));
  } else if (report.dry_run) {
    print_plan(report, options);
  } else if (!options.quiet) {
    print_summary(report, headline);
  }
}

}  // namespace weft::app
