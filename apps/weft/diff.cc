#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "fold.h"
#include "result.h"
#include "weft/inspect.h"
#include "weft/report.h"

namespace weft::app {
namespace {

constexpr int kDifferencesFound = 3;

struct Arguments {
  CommonOptions common;
  std::string a;
  std::string b;
  std::string report;
  bool exit_code = false;
};

Json::Object numbers_json(const TensorDiff& diff) {
  return {{"num_elements", Json(diff.num_elements)}, {"num_changed", Json(diff.num_changed)},
          {"max_abs", Json(diff.max_abs)},           {"l2_a", Json(diff.l2_a)},
          {"l2_diff", Json(diff.l2_diff)},           {"cosine", Json(diff.cosine)}};
}

Json names_json(const std::vector<std::string>& names) {
  Json::Array array;
  for (const std::string& name : names) array.emplace_back(name);
  return Json(std::move(array));
}

Json diff_json(const DiffReport& report) {
  Json::Array tensors;
  for (const TensorDiff& diff : report.tensors) {
    Json::Object object = {{"name", Json(diff.name)}};
    for (auto& member : numbers_json(diff)) object.push_back(std::move(member));
    if (diff.shape_a != diff.shape_b) {
      object.emplace_back("shape_a", shape_json(diff.shape_a));
      object.emplace_back("shape_b", shape_json(diff.shape_b));
    }
    if (diff.dtype_a != diff.dtype_b) {
      object.emplace_back("dtype_a", Json(to_string(diff.dtype_a)));
      object.emplace_back("dtype_b", Json(to_string(diff.dtype_b)));
    }
    tensors.emplace_back(std::move(object));
  }
  return Json(Json::Object{{"equal", Json(report.equal)},
                           {"only_in_a", names_json(report.only_in_a)},
                           {"only_in_b", names_json(report.only_in_b)},
                           {"total", Json(numbers_json(report.total))},
                           {"tensors", Json(std::move(tensors))}});
}

std::string changed_text(std::uint64_t num_changed, std::uint64_t num_elements) {
  if (num_changed == 0 || num_elements == 0) return "-";
  const double percent = 100 * static_cast<double>(num_changed) / static_cast<double>(num_elements);
  return num_changed < num_elements && percent >= 99.95 ? "99.9 %" : fmt::format("{:.1f} %", percent);
}

std::string number_text(double value) { return value == 0 ? "-" : fmt::format("{:.3g}", value); }

std::vector<std::string> numbers_row(std::string name, const TensorDiff& sum, double least_cosine) {
  return {std::move(name), changed_text(sum.num_changed, sum.num_elements), number_text(sum.max_abs),
          number_text(sum.l2_a > 0 ? sum.l2_diff / sum.l2_a : sum.l2_diff), fmt::format("{:.6f}", least_cosine)};
}

void print_names(const char* what, const std::vector<std::string>& names, bool verbose) {
  if (names.empty()) return;
  std::printf("  %s:\n", what);
  for (const FoldedTensors& group : fold_tensors(names, std::vector<std::string>(names.size()), verbose)) std::printf("    %s\n", group.name.c_str());
}

void print_diff(const DiffReport& report, const Arguments& arguments) {
  const auto num_changed = std::count_if(report.tensors.begin(), report.tensors.end(), [](const TensorDiff& diff) { return !diff.equal_bytes; });
  std::printf("%s and %s: ", paint(stdout, Style::bold, arguments.a).c_str(), paint(stdout, Style::bold, arguments.b).c_str());
  if (report.equal) {
    std::printf("%s, %zu tensors\n", paint(stdout, Style::green, "the same").c_str(), report.tensors.size());
    return;
  }
  std::printf("%s\n", fmt::format("{} of {} common tensors differ", num_changed, report.tensors.size()).c_str());
  print_names("only in the first", report.only_in_a, arguments.common.verbose);
  print_names("only in the second", report.only_in_b, arguments.common.verbose);

  std::vector<std::string> names;
  std::vector<std::string> alike;
  for (const TensorDiff& diff : report.tensors) {
    names.push_back(diff.name);
    alike.push_back(to_string(diff.shape_a) + to_string(diff.shape_b) + std::string(to_string(diff.dtype_a)) + std::string(to_string(diff.dtype_b)));
  }
  Table table({Align::left, Align::right, Align::right, Align::right, Align::right, Align::left});
  table.header({"tensor", "changed", "largest", "relative", "cosine", ""});
  for (const FoldedTensors& group : fold_tensors(names, alike, arguments.common.verbose)) {
    const TensorDiff& first = report.tensors[group.members.front()];
    if (!first.comparable) {
      table.row({group.name, "", "", "", "", to_string(first.shape_a) + " against " + to_string(first.shape_b)});
      continue;
    }
    TensorDiff sum;
    double least_cosine = 1;
    for (const std::size_t i : group.members) {
      const TensorDiff& diff = report.tensors[i];
      sum.num_elements += diff.num_elements;
      sum.num_changed += diff.num_changed;
      sum.max_abs = std::max(sum.max_abs, diff.max_abs);
      sum.l2_a = std::hypot(sum.l2_a, diff.l2_a);
      sum.l2_diff = std::hypot(sum.l2_diff, diff.l2_diff);
      least_cosine = std::min(least_cosine, diff.cosine);
    }
    std::vector<std::string> cells = numbers_row(group.name, sum, least_cosine);
    if (first.dtype_a != first.dtype_b) cells.push_back(std::string(to_string(first.dtype_a)) + " against " + std::string(to_string(first.dtype_b)));
    table.row(std::move(cells));
  }
  table.row(numbers_row("all", report.total, report.total.cosine));
  table.print(stdout, 2);
  std::printf("  %s\n", paint(stdout, Style::dim, "largest |a - b|; relative ||a - b|| / ||a||; of several tensors the lowest cosine").c_str());
}

int run_diff(const Arguments& arguments) {
  Console console(arguments.common);
  JobOptions job;
  console.fill(job);
  if (!arguments.report.empty()) require_reports(arguments.report);
  const DiffReport report = diff(arguments.a, arguments.b, job);
  console.finish();
  if (!arguments.report.empty()) write_report(report, arguments.a, arguments.b, arguments.report);
  if (arguments.common.json) {
    print_json(diff_json(report));
  } else if (!arguments.common.quiet) {
    print_diff(report, arguments);
  }
  return arguments.exit_code && !report.equal ? kDifferencesFound : 0;
}

}  // namespace

Command diff_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "diff";
  command.family = "Look";
  command.summary = "compare two models tensor by tensor";
  command.synopsis = "A B [OPTION]...";
  command.description =
      "Compares values, not files: shards, order and container do not matter. For each tensor: how many values changed, the largest change, the size "
      "of the "
      "change relative to the first model, and the cosine between the two.";
  command.example = "weft diff models/tiny-base models/tiny-german";
  command.positional("A", arguments->a, "a model");
  command.positional("B", arguments->b, "another model");
  command.group("Comparing");
  command.flag({"--exit-code"}, arguments->exit_code, "exit with 3 when they differ");
  command.path({"--report"}, "OUT.html", arguments->report, kReportHelp);
  add_print_options(command, arguments->common);
  add_job_options(command, arguments->common);
  command.run = [arguments] { return run_diff(*arguments); };
  return command;
}

}  // namespace weft::app
