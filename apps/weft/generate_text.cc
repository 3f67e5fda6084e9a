#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "running.h"
#include "weft/generate.h"

namespace weft::app {
namespace {

struct Arguments {
  RunningOptions running;
  std::string model;
  std::string prompt;
  bool has_prompt = false;
  std::string ids;
  GenerateOptions options;
  Sampling sampling;
  bool samples = false;  ///< any of the sampling options was given
  bool no_special = false;
  bool chat = false;
  std::string system;
};

/// An option with a real number.
Option& real(Command& command, const char* name, double& target, bool& given, const char* help) {
  return command.custom({name}, "X", help, [&target, &given, name](const std::string& text) {
    const char* end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, target);
    if (problem != std::errc{} || stop != end)
      throw Error(ErrorCode::invalid_argument, "expected a number, got '" + printable(text) + "'", {.key = name});
    given = true;
  });
}

Json generated_json(const Generated& generated) {
  Json::Array ids;
  for (const std::uint32_t id : generated.ids) ids.emplace_back(static_cast<std::uint64_t>(id));
  return Json(Json::Object{{"text", Json(generated.text)},
                           {"ids", Json(std::move(ids))},
                           {"finish_reason", Json(generated.finish_reason)},
                           {"prompt_tokens", Json(generated.prompt_tokens)},
                           {"prefill_tokens_per_second", Json(generated.prefill_tokens_per_second)},
                           {"decode_tokens_per_second", Json(generated.decode_tokens_per_second)}});
}

int run_generate(const Arguments& arguments) {
  const CommonOptions& common = arguments.running.common;
  Console console(common);
  if (arguments.has_prompt == !arguments.ids.empty())
    throw Error(ErrorCode::invalid_argument, arguments.has_prompt ? "both --prompt and --ids are given" : "there is no prompt", {.key = "--prompt"},
                "give one of --prompt TEXT and --ids FILE");
  if (arguments.chat && !arguments.ids.empty())
    throw Error(ErrorCode::invalid_argument, "--chat needs the text of a message, not ids", {.key = "--chat"}, "give --prompt TEXT");
  if (!arguments.system.empty() && !arguments.chat)
    throw Error(ErrorCode::invalid_argument, "--system belongs to a chat", {.key = "--system"}, "give --chat too");
  GenerateOptions options = arguments.options;
  fill_running(console, arguments.running, options);
  options.on_progress = nullptr;
  if (arguments.samples) options.sampling = arguments.sampling;
  const bool streams = !common.json && arguments.ids.empty();
  if (streams)
    options.on_text = [](std::string_view text) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    };

  std::vector<ForwardInput> lines;
  if (!arguments.ids.empty()) lines = read_id_lines(arguments.ids);
  Generator generator(with_overlays(arguments.model, arguments.running), options);
  if (lines.empty()) {
    const Generated generated =
        arguments.chat ? generator.answer(arguments.prompt, arguments.system) : generator.generate(arguments.prompt, !arguments.no_special);
    console.finish();
    if (common.json) {
      print_json(generated_json(generated));
    } else {
      std::printf("\n");
      if (!common.quiet)
        std::fprintf(
            stderr, "%s\n",
            fmt::format("{} prompt tokens at {:.0f}/s, {} new ones at {:.1f}/s, finished by {}", generated.prompt_tokens,
                        generated.prefill_tokens_per_second, generated.ids.size(), generated.decode_tokens_per_second, generated.finish_reason)
                .c_str());
    }
    return 0;
  }
  for (const ForwardInput& line : lines) {
    if (line.ids.empty()) throw Error(ErrorCode::invalid_argument, "a line has no ids", {.file = arguments.ids}, "give each at least one");
    std::printf("%s\n", write_json(generated_json(generator.generate(line.ids))).c_str());
    std::fflush(stdout);
  }
  console.finish();
  return 0;
}

}  // namespace

Command generate_text_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "generate";
  command.family = "Run";
  command.summary = "let a model continue a text";
  command.synopsis = "MODEL (--prompt TEXT | --ids FILE) [OPTION]...";
  command.description =
      "Prints the text as it comes. Without options about choosing tokens, those of the model's generation_config.json hold; --greedy always takes "
      "the "
      "likeliest. The same seed gives the same text.\n\n"
      "With --ids every line is a prompt of token ids, and every line of the output is a JSON document; its ids are the new tokens.";
  command.example = "weft generate models/tiny-base --prompt Beginning --max-tokens 20 --greedy";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.group("Prompt");
  command.custom({"-p", "--prompt"}, "TEXT", "the text that is continued", [target = arguments.get()](const std::string& text) {
    target->prompt = text;
    target->has_prompt = true;
  });
  command.path({"--ids"}, "FILE", arguments->ids, R"(prompts as token ids: a JSON array, or {"ids": [...]}, a line)");
  command.flag({"--chat"}, arguments->chat, "the prompt is a message, written as the model's chat template does");
  command.value({"--system"}, "TEXT", arguments->system, "what stands before the message of a chat, as the system's");
  command.flag({"--no-special"}, arguments->no_special, "do not put the tokenizer's special tokens before the prompt");
  command.group("Choosing tokens");
  command.flag({"--greedy"}, arguments->options.greedy, "always the likeliest");
  bool& samples = arguments->samples;
  Sampling& sampling = arguments->sampling;
  real(command, "--temperature", sampling.temperature, samples, "logits are divided by it before the draw; 0 is --greedy").default_text = "1";
  command.custom({"--top-k"}, "N", "only the N likeliest; 0 for all", [&sampling, &samples](const std::string& text) {
    const char* end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, sampling.top_k);
    if (problem != std::errc{} || stop != end)
      throw Error(ErrorCode::invalid_argument, "expected a whole number, got '" + printable(text) + "'", {.key = "--top-k"});
    samples = true;
  });
  real(command, "--top-p", sampling.top_p, samples, "only the likeliest that together have this share");
  real(command, "--min-p", sampling.min_p, samples, "only those with this share of the likeliest one's");
  real(command, "--repetition-penalty", sampling.repetition_penalty, samples, "makes tokens that were there less likely when above 1");
  command.number({"--seed"}, arguments->running.common.seed, "of the draws").default_text = "0";
  command.group("End");
  command.number({"-n", "--max-tokens"}, arguments->options.max_tokens, "new tokens").default_text = "128";
  Option& stop = command.custom({"--stop"}, "TEXT", "end before this text; may be given again",
                                [target = arguments.get()](const std::string& text) { target->options.stops.push_back(text); });
  stop.repeated = true;
  command.flag({"--ignore-end"}, arguments->options.ignore_end, "go on behind the model's end token");
  arguments->running.precision = "packed";
  add_running_options(command, arguments->running);
  add_job_options(command, arguments->running.common);
  add_print_options(command, arguments->running.common);
  command.run = [arguments] { return run_generate(*arguments); };
  return command;
}

}  // namespace weft::app
