#include "result.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "base/text.h"
#include "fold.h"

namespace weft::app {
namespace {

double bits_per_weight(const JobReport& report) {
  return report.num_parameters == 0 ? 0 : 8 * static_cast<double>(report.size_bytes) / static_cast<double>(report.num_parameters);
}

// Parameters are texts in a plan; in JSON a number is a number and a boolean a boolean.
Json parameter_json(const std::string& text) {
  if (text == "true" || text == "false") return Json(text == "true");
  double value = 0;
  const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (!text.empty() && problem == std::errc{} && stop == text.data() + text.size()) return Json(value);
  return Json(text);
}

Json plan_json(const JobReport& report) {
  Json::Array tensors;
  for (const PlannedTensor& tensor : report.tensors) {
    Json::Array inputs;
    for (const std::string& input : tensor.inputs) inputs.emplace_back(input);
    Json::Object parameters;
    for (const auto& [name, value] : tensor.parameters) parameters.emplace_back(name, parameter_json(value));
    tensors.emplace_back(Json::Object{{"name", Json(tensor.name)},
                                      {"dtype", Json(to_string(tensor.dtype))},
                                      {"shape", shape_json(tensor.shape)},
                                      {"inputs", Json(std::move(inputs))},
                                      {"method", Json(tensor.method)},
                                      {"parameters", Json(std::move(parameters))},
                                      {"file", Json(tensor.file)},
                                      {"offset", Json(tensor.offset_bytes)}});
  }
  return Json(Json::Object{
      {"tensors", Json(std::move(tensors))}, {"size_bytes", Json(report.size_bytes)}, {"peak_memory_bytes", Json(report.peak_memory_bytes)}});
}

std::string parameters_text(const PlannedTensor& tensor) {
  std::string text;
  for (const auto& [name, value] : tensor.parameters) text += (text.empty() ? "" : " ") + name + "=" + value;
  return text;
}

// Along layers a parameter may follow a gradient: then the first and the last value are shown.
std::string parameters_text(const JobReport& report, const FoldedTensors& group) {
  const PlannedTensor& first = report.tensors[group.members.front()];
  const PlannedTensor& last = report.tensors[group.members.back()];
  if (first.parameters.size() != last.parameters.size()) return parameters_text(first) + " .. " + parameters_text(last);
  std::string text;
  for (std::size_t i = 0; i < first.parameters.size(); ++i) {
    const auto& [name, value] = first.parameters[i];
    text += (text.empty() ? "" : " ") + name + "=" + value;
    if (last.parameters[i].second != value) text += ".." + last.parameters[i].second;
  }
  return text;
}

std::string files_text(const JobReport& report, const FoldedTensors& group) {
  const std::string& first = report.tensors[group.members.front()].file;
  for (const std::size_t i : group.members)
    if (report.tensors[i].file != first) return "several files";
  return first;
}

}  // namespace

Json shape_json(const Shape& shape) {
  Json::Array dimensions;
  for (const std::int64_t dimension : shape) dimensions.emplace_back(dimension);
  return Json(std::move(dimensions));
}

Json report_json(const JobReport& report, Json::Object details) {
  if (report.dry_run) return plan_json(report);
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

void print_plan(const JobReport& report, const CommonOptions& options) {
  std::vector<std::string> names;
  std::vector<std::string> alike;
  for (const PlannedTensor& tensor : report.tensors) {
    names.push_back(tensor.name);
    alike.push_back(std::string(to_string(tensor.dtype)) + to_string(tensor.shape) + tensor.method + std::to_string(tensor.inputs.size()));
  }
  std::set<std::string> files;
  for (const PlannedTensor& tensor : report.tensors) files.insert(tensor.file);
  const bool several_files = files.size() > 1;
  Table table({Align::left, Align::right, Align::left, Align::left, Align::right, Align::left, Align::left, Align::left});
  table.header({"tensor", "count", "dtype", "shape", "inputs", "method", "parameters", several_files ? "file" : ""});
  for (const FoldedTensors& group : fold_tensors(names, alike, options.verbose)) {
    const PlannedTensor& first = report.tensors[group.members.front()];
    table.row({group.name, std::to_string(group.members.size()), std::string(to_string(first.dtype)), to_string(first.shape),
               std::to_string(first.inputs.size()), first.method, parameters_text(report, group), several_files ? files_text(report, group) : ""});
  }
  std::printf("%s %s\n", paint(stdout, Style::bold, "plan for").c_str(), report.output.c_str());
  table.print(stdout, 2);
  std::printf("  %s\n", fmt::format("{} tensors, {} parameters, {} in {} file{}; about {} of memory; nothing was written", report.num_tensors,
                                    format_count(report.num_parameters), format_size(report.size_bytes), files.size(), several_files ? "s" : "",
                                    format_size(report.peak_memory_bytes))
                            .c_str());
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
}

}  // namespace weft::app
