#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"
#include "weft/recipe.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string recipe;
  std::string output;
  std::string transformers_cache;
  bool strict = false;
  bool allow_crimes = false;
  bool seed_given = false;
};

/// The chain, a step a line, with what each one reads.
void print_chain(const RecipeReport& report) {
  std::printf("%s\n", paint(stdout, Style::bold, "chain").c_str());
  Table table({Align::left, Align::left, Align::left, Align::left, Align::right, Align::right});
  table.header({"result", "step", "with", "from", "tensors", "size"});
  for (const RecipeStep& step : report.steps)
    table.row({printable(step.name), step.verb, printable(step.summary), printable(join(step.inputs, ", ")), std::to_string(step.num_tensors),
               format_size(step.size_bytes)});
  table.print(stdout, 2);
  std::printf("  only the last result is written, in one pass\n\n");
}

Json steps_json(const RecipeReport& report) {
  Json::Array steps;
  for (const RecipeStep& step : report.steps) {
    Json::Array inputs;
    for (const std::string& input : step.inputs) inputs.emplace_back(input);
    steps.emplace_back(Json::Object{{"name", Json(step.name)},
                                    {"verb", Json(step.verb)},
                                    {"summary", Json(step.summary)},
                                    {"inputs", Json(std::move(inputs))},
                                    {"num_tensors", Json(step.num_tensors)},
                                    {"size_bytes", Json(step.size_bytes)}});
  }
  return Json(std::move(steps));
}

int run_run(const Arguments& arguments) {
  Console console(arguments.common);
  RecipeOptions options;
  console.fill(options);
  options.strict = arguments.strict;
  options.allow_crimes = arguments.allow_crimes;
  options.seed_given = arguments.seed_given;
  if (!arguments.transformers_cache.empty()) options.transformers_cache = arguments.transformers_cache;
  constexpr std::uint64_t kLargestRecipe = 16'000'000;
  const std::string text = read_text_file(arguments.recipe, kLargestRecipe);
  const RecipeReport report =
      run_recipe(text, arguments.recipe, arguments.output.empty() ? std::nullopt : std::optional<std::filesystem::path>(arguments.output), options);
  console.finish();
  if (arguments.common.json) {
    Json document = report_json(report, {});
    if (report.dry_run)
      document.set("steps", steps_json(report));
    else
      document.set("details", Json(Json::Object{{"steps", steps_json(report)}}));
    print_json(document);
  } else if (report.dry_run) {
    print_chain(report);
    print_plan(report, arguments.common);
  } else if (!arguments.common.quiet) {
    print_summary(report, fmt::format("ran {} step{} of {}", report.steps.size(), report.steps.size() == 1 ? "" : "s", arguments.recipe));
  }
  return 0;
}

}  // namespace

Command run_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "run";
  command.family = "Make";
  command.summary = "carry out a recipe: merges, edits, conversions and quantizing in one pass";
  command.synopsis = "RECIPE [OUT] [OPTION]...";
  command.description =
      "A recipe is a mergekit config, several of them that use each other's results, or a list of steps (merge, edit, fold, convert, quantize), each on the "
      "result of an earlier "
      "one or on a model. Steps are stacked without files in between: every input is read as the result is written, and nothing else is written. All "
      "of it is checked "
      "before that begins; --dry-run draws the chain.\n\n"
      "OUT counts before the recipe's own 'output'. Paths are relative to the current folder.";
  command.example = "weft run examples/recipes/stack.yml --dry-run";
  command.positional("RECIPE", arguments->recipe, "a recipe (YAML)");
  Option& output = command.positional("OUT", arguments->output, "a folder, or a file whose name ends in .safetensors or .gguf");
  output.required = false;
  output.default_text = "the recipe's output";
  command.group("Running the steps");
  command.flag({"--strict"}, arguments->strict, "unknown keys and parameters in merges are errors, not warnings");
  command
      .custom({"--seed"}, "N", "seed of the methods that drop at random",
              [arguments](const std::string& text) {
                const std::size_t digits = text.find_first_not_of("0123456789");
                if (text.empty() || digits != std::string::npos || text.size() > 19)
                  throw Error(ErrorCode::invalid_argument, "--seed takes a whole number, got '" + printable(text) + "'", {.key = "--seed"});
                arguments->common.seed = std::stoull(text);
                arguments->seed_given = true;
              })
      .default_text = "the recipe's, else 0";
  command.flag({"--allow-crimes"}, arguments->allow_crimes, "merge models of different architectures");
  command.path({"--transformers-cache"}, "FOLDER", arguments->transformers_cache, "where hub ids are looked up").default_text = "Hugging Face's own";
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_run(*arguments); };
  return command;
}

}  // namespace weft::app
