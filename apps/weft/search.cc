#include "weft/search.h"

#include <fmt/format.h>

#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string recipe;
  std::string output;
  std::string apply;
};

constexpr std::uint64_t kLargestRecipe = 16'000'000;

int run_search(const Arguments& arguments) {
  Console console(arguments.common);
  SearchOptions options;
  console.fill(options);
  // What would stop the merge is told before the search, which takes long.
  if (!arguments.apply.empty() && !options.force && path_kind(arguments.apply) != PathKind::nothing)
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' exists already", printable(arguments.apply)), {.key = "--apply"},
                "choose another name, or replace it with --force");
  const SearchReport report = search(read_text_file(arguments.recipe, kLargestRecipe), arguments.recipe, arguments.output, options);
  console.finish();
  Json::Object baselines, coefficients;
  for (const auto& [name, score] : report.baselines) baselines.emplace_back(name, Json(score));
  for (std::size_t i = 0; i < report.names.size(); ++i) coefficients.emplace_back(report.names[i], Json(report.coefficients[i]));
  Json::Array warnings;
  for (const std::string& warning : report.warnings) warnings.emplace_back(warning);
  Json document(Json::Object{{"output", Json(report.output.string())},
                             {"rule", Json(report.rule)},
                             {"score", Json(report.score)},
                             {"held_out", report.held_out ? Json(*report.held_out) : Json()},
                             {"baselines", Json(std::move(baselines))},
                             {"coefficients", Json(std::move(coefficients))},
                             {"num_evaluations", Json(report.num_evaluations)},
                             {"num_resumed", Json(report.num_resumed)},
                             {"elapsed_seconds", Json(report.elapsed_seconds)},
                             {"warnings", Json(std::move(warnings))}});
  if (!arguments.common.json && !arguments.common.quiet) {
    for (const auto& [name, score] : report.baselines) fmt::print("{:>12.6f}  {}\n", score, name);
    fmt::print("{:>12.6f}  found, in {} evaluations and {:.1f} s\n", report.score, report.num_evaluations, report.elapsed_seconds);
    if (report.held_out) fmt::print("{:>12.6f}  found, on the held-out text\n", *report.held_out);
    for (std::size_t i = 0; i < report.names.size(); ++i) fmt::print("{:>12.6f}  {}\n", report.coefficients[i], printable(report.names[i]));
    fmt::print("'{}' is the merge config with them\n", printable(report.output.string()));
  }
  if (!arguments.apply.empty()) {
    const JobReport merged = merge_models(read_text_file(arguments.output, kLargestRecipe), arguments.output, arguments.apply, options);
    console.finish();
    document.set("applied", report_json(merged, {}));
    if (!arguments.common.json && !arguments.common.quiet) print_summary(merged, "merged with what was found");
  }
  if (arguments.common.json) print_json(document);
  return 0;
}

}  // namespace

Command search_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "search";
  command.family = "Make";
  command.summary =
      "look for the coefficients of a merge that give the lowest "
      "loss on a text";
  command.synopsis = "RECIPE.yml -o COEFFICIENTS [OPTION]...";
  command.description =
      "RECIPE is a merge config with a section 'search': {rule, text, "
      "held_out, window, windows, evaluations, parameters}. The rule lcsc "
      "looks for a "
      "combination of checkpoints of one run; cma_es for parameters of any "
      "merge, as mergekit-evolve does. Candidates are built as they are read, "
      "nothing is written for them. COEFFICIENTS is the merge config with what "
      "was found. The same command goes on where it was stopped.";
  command.example = "weft search examples/searches/weights.yml -o out/found.yml";
  command.positional("RECIPE", arguments->recipe, "a merge config with a section 'search'");
  command.group("Result");
  command.path({"-o", "--output"}, "COEFFICIENTS", arguments->output, "the merge config with the coefficients that were found").required = true;
  command.path({"--apply"}, "OUT", arguments->apply, "also merge with them, into this folder");
  command.flag({"--force"}, arguments->common.force, "replace existing outputs");
  command.number({"--seed"}, arguments->common.seed, "of the draws").default_text = "0";
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_search(*arguments); };
  return command;
}

}  // namespace weft::app
