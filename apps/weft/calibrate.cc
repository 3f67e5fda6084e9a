#include "weft/calibrate.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"
#include "running.h"

namespace weft::app {
namespace {

struct Arguments {
  RunningOptions running;
  std::string model;
  std::vector<std::string> texts;
  std::string output;
  std::string order = "first";
  std::uint64_t samples = 128;
  std::uint64_t length = 256;
  bool separate = false;
  bool gram = false;
};

int run_calibrate(const Arguments& arguments) {
  Console console(arguments.running.common);
  CalibrateOptions options;
  fill_running(console, arguments.running, options);
  for (const std::string& text : arguments.texts) options.text.files.emplace_back(text);
  options.text.num_sequences = arguments.samples;
  options.text.length = arguments.length;
  options.text.order = arguments.order == "random" ? CalibrationText::Order::random : CalibrationText::Order::first;
  options.text.separate = arguments.separate;
  options.gram = arguments.gram;
  const CalibrateReport report = calibrate(with_overlays(arguments.model, arguments.running), arguments.output, options);
  console.finish();
  Json::Array layers;
  for (const CalibratedLayer& layer : report.layers)
    layers.emplace_back(Json::Object{{"name", Json(layer.name)},
                                     {"num_tokens", Json(layer.num_tokens)},
                                     {"statistics", Json(Json::Object{{"width", Json(layer.width)},
                                                                      {"mean", Json(layer.mean)},
                                                                      {"mean_abs", Json(layer.mean_abs)},
                                                                      {"mean_square", Json(layer.mean_square)},
                                                                      {"max_abs", Json(layer.max_abs)}})}});
  if (arguments.running.common.json) {
    Json document = report_json(
        report,
        {{"num_sequences", Json(report.num_sequences)}, {"sequence_length", Json(report.sequence_length)}, {"num_tokens", Json(report.num_tokens)}});
    document.set("layers", Json(std::move(layers)));
    print_json(document);
    return 0;
  }
  if (arguments.running.common.quiet) return 0;
  if (arguments.running.common.verbose) {
    fmt::print("{:>10} {:>10} {:>10}  {}\n", "tokens", "rms", "largest", "weight");
    for (const CalibratedLayer& layer : report.layers)
      fmt::print("{:>10} {:>10.4g} {:>10.4g}  {}\n", layer.num_tokens, std::sqrt(layer.mean_square), layer.max_abs, printable(layer.name));
  }
  print_summary(report, fmt::format("calibrated {} on {} sequences of {} tokens", arguments.model, report.num_sequences, report.sequence_length));
  return 0;
}

}  // namespace

Command calibrate_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "calibrate";
  command.family = "Run";
  command.summary = "collect statistics of what a model's linear layers read, for quantizing, pruning and merging by data";
  command.synopsis = "MODEL --text FILE... -o STATS [OPTION]...";
  command.description =
      "Runs the model over texts, block by block, and writes for every linear layer how many tokens it read and the sums of its inputs, their sizes, "
      "squares and bounds; with --gram also their second moments. An output that ends in .gguf is an importance matrix as llama.cpp writes and reads "
      "it.\n\n"
      "A text file is one text; a file that ends in .jsonl holds one document a line: a string, {\"text\"}, or {\"messages\"} for the model's chat "
      "template. Documents are put one behind the other and cut into sequences.";
  command.example = "weft calibrate models/tiny-base --text models/README.md --samples 2 -o out/statistics.safetensors";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.group("Text");
  Option& text = command.custom({"--text"}, "FILE", "calibration text, .jsonl or plain; may be given again",
                                [arguments](const std::string& file) { arguments->texts.push_back(file); });
  text.kind = ValueKind::path;
  text.repeated = true;
  text.required = true;
  command.number({"--samples"}, arguments->samples, "sequences; 0: all that the texts give").default_text = "128";
  command.number({"--length"}, arguments->length, "tokens of a sequence").default_text = "256";
  Option& order = command.value({"--order"}, "WHICH", arguments->order, "which sequences: the first ones, or drawn by --seed");
  order.kind = ValueKind::choice;
  order.choices = {"first", "random"};
  order.default_text = "first";
  command.flag({"--separate"}, arguments->separate, "each document a sequence of its own, cut to the length");
  command.number({"--seed"}, arguments->running.common.seed, "for --order random").default_text = "0";
  command.group("Result");
  command.path({"-o", "--output"}, "STATS", arguments->output, "a .safetensors file, or .gguf for an importance matrix").required = true;
  command.flag({"--gram"}, arguments->gram, "also the second moments of each input, [width, width] in float64");
  command.flag({"--force"}, arguments->running.common.force, "replace an existing output");
  add_running_options(command, arguments->running);
  add_job_options(command, arguments->running.common);
  add_print_options(command, arguments->running.common);
  command.run = [arguments] { return run_calibrate(*arguments); };
  return command;
}

}  // namespace weft::app
