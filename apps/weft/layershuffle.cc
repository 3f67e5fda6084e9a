#include "weft/layershuffle.h"

#include <charconv>
#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"
#include "weft/merge.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  LayerShuffleOptions shuffle;
  std::string output;
  std::string write_yaml;
  bool print_yaml = false;
};

int run_layershuffle(Arguments& arguments) {
  Console console(arguments.common);
  arguments.shuffle.seed = arguments.common.seed;
  const std::string config = layershuffle_config(arguments.shuffle);
  if (arguments.print_yaml && !arguments.common.json) std::fputs(config.c_str(), stdout);
  if (!arguments.write_yaml.empty()) {
    if (arguments.common.force && path_kind(arguments.write_yaml) == PathKind::file) remove_file(arguments.write_yaml);
    File(arguments.write_yaml, FileMode::create_new).write(0, std::as_bytes(std::span(config)));
  }
  MergeOptions options;
  console.fill(options);
  const JobReport report = merge_models(config, "layershuffle", arguments.output, options);
  console.finish();
  if (arguments.common.json) {
    Json document = report_json(report, {});
    document.set(report.dry_run ? "config" : "details", report.dry_run ? Json(config) : Json(Json::Object{{"config", Json(config)}}));
    print_json(document);
  } else if (report.dry_run) {
    print_plan(report, arguments.common);
  } else if (!arguments.common.quiet) {
    print_summary(report, "shuffled the layers of " + std::to_string(arguments.shuffle.models.size()) + " models");
  }
  return 0;
}

}  // namespace

Command layershuffle_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "layershuffle";
  command.family = "Make";
  command.summary = "take the layers of models at random, as mergekit-layershuffle does";
  command.synopsis = "OUT -m MODEL -w WEIGHT... [OPTION]...";
  command.description =
      "Every layer of the result is that layer of one of the models, chosen with these weights; embeddings are those of the first slice's model, the "
      "head that of the last's.";
  command.example = "weft layershuffle out/shuffled -m models/tiny-german -w 0.5 -m models/tiny-python -w 0.5 --print-yaml --dry-run";
  command.positional("OUT", arguments->output, "the folder to make");
  command.group("Layers");
  Option& model = command.custom({"-m", "--model"}, "MODEL", "a model; given several times",
                                 [arguments](const std::string& text) { arguments->shuffle.models.push_back(text); });
  model.repeated = true;
  model.required = true;
  model.kind = ValueKind::path;
  command
      .custom({"-w", "--weight"}, "WEIGHT", "how likely the model is for a layer; one for each model",
              [arguments](const std::string& text) {
                double value = 0;
                const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
                if (error != std::errc() || end != text.data() + text.size())
                  throw Error(ErrorCode::invalid_argument, "--weight takes a number, got '" + printable(text) + "'", {.key = "--weight"});
                arguments->shuffle.weights.push_back(value);
              })
      .repeated = true;
  command.flag({"--full-random"}, arguments->shuffle.full_random, "layers of all models in any order; a weight is the share of a model's layers")
      .negation = "--no-full-random";
  command.flag({"--fp16"}, arguments->shuffle.fp16, "write float16").negation = "--no-fp16";
  command.number({"--seed"}, arguments->common.seed, "of the draws").default_text = "0";
  command.flag({"--print-yaml"}, arguments->print_yaml, "print the merge config").negation = "--no-print-yaml";
  command.path({"--write-yaml"}, "FILE", arguments->write_yaml, "write the merge config");
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_layershuffle(*arguments); };
  return command;
}

}  // namespace weft::app
