#include "weft/forward.h"

#include <fmt/format.h>

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
  std::string ids;
  std::string text;
  std::string output;
  std::string what = "logits";
  std::string pool = "mean";
  bool raw = false;
  std::uint64_t max_tokens = 0;
};

int run_forward(const Arguments& arguments) {
  Console console(arguments.running.common);
  ForwardOptions options;
  fill_running(console, arguments.running, options);
  using What = ForwardOptions::What;
  using Pool = ForwardOptions::Pool;
  options.what = arguments.what == "blocks" ? What::blocks : arguments.what == "embedding" ? What::embedding : What::logits;
  options.pool = arguments.pool == "cls" ? Pool::cls : arguments.pool == "last" ? Pool::last : Pool::mean;
  options.raw = arguments.raw;
  options.max_tokens = arguments.max_tokens;
  if (arguments.ids.empty() == arguments.text.empty())
    throw Error(ErrorCode::invalid_argument, arguments.ids.empty() ? "there is nothing to run" : "both --ids and --text are given", {.key = "--ids"},
                "give one of --ids FILE and --text FILE");
  std::vector<ForwardInput> inputs;
  if (!arguments.ids.empty())
    inputs = read_id_lines(arguments.ids);
  else
    for (std::string& line : read_text_lines(arguments.text)) {
      ForwardInput& input = inputs.emplace_back();
      input.text = std::move(line);
    }
  const JobReport report = forward(with_overlays(arguments.model, arguments.running), inputs, arguments.output, options);
  console.finish();
  if (arguments.running.common.json)
    print_json(report_json(report, {{"what", Json(arguments.what)}, {"num_inputs", Json(static_cast<std::uint64_t>(inputs.size()))}}));
  else if (!arguments.running.common.quiet)
    print_summary(report, fmt::format("ran {} on {} input{}", arguments.model, inputs.size(), inputs.size() == 1 ? "" : "s"));
  return 0;
}

}  // namespace

Command forward_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "forward";
  command.family = "Run";
  command.summary = "run a model on tokens or texts and keep what it gives: logits, hidden states, embeddings";
  command.synopsis = "MODEL (--ids FILE | --text FILE) -o OUT [OPTION]...";
  command.description =
      "Writes one safetensors file of float32 tensors; I counts the lines of the input from 0. 'I.logits' is [tokens, vocab]; with --what blocks "
      "'I.blockN' is [tokens, hidden] after block N, before the final norm; with --what embedding 'I.embedding' is [hidden], 'I.hidden' the states "
      "that "
      "it was pooled from, and 'I.pooler' what the model's own pooler gives, where it has one.\n\n"
      "A model that does not fit the memory budget runs block by block.";
  command.example = "weft forward models/tiny-base --text models/tiny-base/config.json --what embedding -o out/embeddings.safetensors";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.group("Input");
  command.path({"--ids"}, "FILE", arguments->ids, R"(token ids: a JSON array, or {"ids": [...]}, a line)");
  command.path({"--text"}, "FILE", arguments->text, "texts, one a line, for the model's tokenizer");
  command.number({"--max-tokens"}, arguments->max_tokens, "tokens of a text, special ones included").default_text = "an encoder's limit";
  command.group("Result");
  command.path({"-o", "--output"}, "OUT", arguments->output, "the safetensors file").required = true;
  Option& what = command.value({"--what"}, "WHAT", arguments->what, "what is kept");
  what.kind = ValueKind::choice;
  what.choices = {"logits", "blocks", "embedding"};
  what.default_text = "logits";
  Option& pool = command.value({"--pool"}, "HOW", arguments->pool, "how an embedding is made of the states of its tokens");
  pool.kind = ValueKind::choice;
  pool.choices = {"mean", "cls", "last"};
  pool.default_text = "mean";
  command.flag({"--raw"}, arguments->raw, "leave embeddings as long as they are, instead of dividing them by their length");
  command.flag({"--force"}, arguments->running.common.force, "replace an existing output");
  add_running_options(command, arguments->running);
  add_job_options(command, arguments->running.common);
  add_print_options(command, arguments->running.common);
  command.run = [arguments] { return run_forward(*arguments); };
  return command;
}

}  // namespace weft::app
