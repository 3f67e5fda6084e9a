#pragma once
#include <span>
#include <string>

#include "checkpoint/json.h"
#include "common.h"
#include "weft/job.h"

// What jobs that write a model report, as JSON and as text.
namespace weft::app {

[[nodiscard]] Json shape_json(const Shape& shape);
/// The document for a job that wrote something, or its plan after a dry run. details: what only this command knows.
[[nodiscard]] Json report_json(const JobReport& report, Json::Object details);
/// The document of a dry run.
[[nodiscard]] Json plan_json(const JobReport& report);
/// The plan as a table, layers folded unless verbose. Parameters that are the same everywhere stand above it, once.
void print_plan(const JobReport& report, const CommonOptions& options);
/// What was read and written, how fast, with how much memory. headline: "merged 3 models with ties".
void print_summary(const JobReport& report, const std::string& headline);
/// What a command without more to say ends with: the document, the plan after a dry run, or the summary unless quiet.
void print_report(const JobReport& report, const CommonOptions& options, const std::string& headline, Json::Object details = {});

}  // namespace weft::app
