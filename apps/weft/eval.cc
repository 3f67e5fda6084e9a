#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "running.h"
#include "weft/evaluate.h"

namespace weft::app {
namespace {

struct Arguments {
  RunningOptions running;
  std::string model;
  std::vector<std::string> texts;
  std::vector<std::string> more_texts;
  std::string against;
  std::string images;
  std::string labels;
  std::string transform;
  std::string choices;
  std::uint64_t window = 0;
  std::uint64_t stride = 0;
  std::uint64_t windows = 0;
  bool bos = false;
  ActivationOptions activations;
  std::uint64_t ranges = 0;
};

Json interval_json(const std::array<double, 2>& interval) { return Json(Json::Array{Json(interval[0]), Json(interval[1])}); }

Json warnings_json(const std::vector<std::string>& warnings) {
  Json::Array list;
  for (const std::string& warning : warnings) list.emplace_back(warning);
  return Json(std::move(list));
}

Json activations_json(const ActivationOptions& activations) {
  Json::Object entry{{"clip", Json(activations.clip)}, {"ranges", Json(static_cast<std::uint64_t>(activations.ranges))}};
  if (!activations.numbers.empty()) entry.emplace_back("numbers", Json(activations.numbers));
  if (!activations.shares.empty()) entry.emplace_back("shares", Json(activations.shares));
  return Json(std::move(entry));
}

Json texts_json(const PerplexityReport& report, const ActivationOptions& activations) {
  Json::Array texts;
  for (const TextScore& text : report.texts) {
    Json::Array windows;
    for (const double nll : text.window_nll) windows.emplace_back(nll);
    Json::Object entry{{"file", Json(text.file.string())},          {"num_tokens", Json(text.num_tokens)},
                       {"num_bytes", Json(text.num_bytes)},         {"nll_per_token", Json(text.nll_per_token)},
                       {"perplexity", Json(text.perplexity)},       {"bits_per_byte", Json(text.bits_per_byte)},
                       {"ci95", interval_json(text.ci95)},          {"num_windows", Json(text.num_windows)},
                       {"stream_tokens", Json(text.stream_tokens)}, {"window_nll", Json(std::move(windows))}};
    if (text.closeness) {
      entry.emplace_back("kl_mean", Json(text.closeness->kl_mean));
      entry.emplace_back("kl_p99", Json(text.closeness->kl_p99));
      entry.emplace_back("top1_agreement", Json(text.closeness->top1_agreement));
      entry.emplace_back("delta_nll", Json(text.closeness->delta_nll));
      entry.emplace_back("delta_ci95", interval_json(text.closeness->delta_ci95));
    }
    texts.emplace_back(std::move(entry));
  }
  Json::Object protocol{
      {"window", Json(report.window)}, {"stride", Json(report.stride)}, {"bos", Json(report.bos)}, {"num_windows", Json(report.num_windows)}};
  if (!activations.numbers.empty() || !activations.shares.empty()) protocol.emplace_back("activations", activations_json(activations));
  return Json(Json::Object{{"protocol", Json(std::move(protocol))},
                           {"texts", Json(std::move(texts))},
                           {"tokens_per_second", Json(report.tokens_per_second)},
                           {"warnings", warnings_json(report.warnings)}});
}

int run_texts(const Arguments& arguments, Console& console) {
  PerplexityOptions options;
  fill_running(console, arguments.running, options);
  options.window = arguments.window;
  options.stride = arguments.stride;
  options.num_windows = arguments.windows;
  options.bos = arguments.bos;
  options.activations = arguments.activations;
  options.activations.ranges = static_cast<int>(std::min<std::uint64_t>(arguments.ranges, std::numeric_limits<int>::max()));
  std::vector<std::filesystem::path> files(arguments.texts.begin(), arguments.texts.end());
  files.insert(files.end(), arguments.more_texts.begin(), arguments.more_texts.end());
  const PerplexityReport report = evaluate_texts(with_overlays(arguments.model, arguments.running), files, arguments.against, options);
  console.finish();
  if (arguments.running.common.json) {
    print_json(texts_json(report, options.activations));
    return 0;
  }
  if (arguments.running.common.quiet) return 0;
  const bool compares = !arguments.against.empty();
  Table table(compares
                  ? std::vector<Align>{Align::left, Align::right, Align::right, Align::right, Align::right, Align::right, Align::right, Align::right}
                  : std::vector<Align>{Align::left, Align::right, Align::right, Align::right, Align::right});
  std::vector<std::string> header = {"text", "tokens", "perplexity", "95 %", "bits/byte"};
  if (compares) header.insert(header.end(), {"KL", "same top token", "nll less the other's"});
  table.header(header);
  for (const TextScore& text : report.texts) {
    const std::string interval = text.num_windows > 1 ? fmt::format("{:.3f} to {:.3f}", text.ci95[0], text.ci95[1]) : "one window";
    std::vector<std::string> row = {text.file.filename().string(), std::to_string(text.num_tokens), fmt::format("{:.4f}", text.perplexity), interval,
                                    fmt::format("{:.4f}", text.bits_per_byte)};
    if (compares)
      row.insert(row.end(), {fmt::format("{:.5f}", text.closeness->kl_mean), fmt::format("{:.2f} %", 100 * text.closeness->top1_agreement),
                             fmt::format("{:+.5f} ({:+.5f} to {:+.5f})", text.closeness->delta_nll, text.closeness->delta_ci95[0],
                                         text.closeness->delta_ci95[1])});
    table.row(row);
  }
  table.print(stdout, 0);
  std::printf("%s\n", fmt::format("windows of {} tokens every {}, at most {} a text, {}; {:.0f} tokens/s", report.window, report.stride,
                                  report.num_windows, report.bos ? "each behind the first token" : "no special tokens", report.tokens_per_second)
                          .c_str());
  return 0;
}

int run_images(const Arguments& arguments, Console& console) {
  ImageOptions options;
  fill_running(console, arguments.running, options);
  options.transform = arguments.transform;
  if (arguments.images.empty() || arguments.labels.empty())
    throw Error(ErrorCode::invalid_argument, "images need labels, and labels images", {.key = arguments.images.empty() ? "--images" : "--labels"},
                "give --images FILE --labels FILE");
  const ImageReport report = evaluate_images(with_overlays(arguments.model, arguments.running), arguments.images, arguments.labels, options);
  console.finish();
  if (arguments.running.common.json)
    print_json(Json(Json::Object{{"accuracy", Json(report.accuracy)},
                                 {"loss", Json(report.loss)},
                                 {"num_images", Json(report.num_images)},
                                 {"images_per_second", Json(report.images_per_second)},
                                 {"warnings", warnings_json(report.warnings)}}));
  else if (!arguments.running.common.quiet)
    std::printf("%s\n", fmt::format("accuracy {:.4f}, loss {:.4f} on {} images ({:.0f} a second)", report.accuracy, report.loss, report.num_images,
                                    report.images_per_second)
                            .c_str());
  return 0;
}

int run_choices(const Arguments& arguments, Console& console) {
  RunOptions options;
  fill_running(console, arguments.running, options);
  const ChoiceReport report = evaluate_choices(with_overlays(arguments.model, arguments.running), arguments.choices, options);
  console.finish();
  if (arguments.running.common.json) {
    Json::Array questions;
    for (const ChoiceScore& question : report.questions) {
      Json::Array scores;
      for (const double score : question.log_likelihoods) scores.emplace_back(score);
      questions.emplace_back(Json::Object{{"answer", Json(question.answer)},
                                          {"chosen", Json(question.chosen)},
                                          {"chosen_normalised", Json(question.chosen_normalised)},
                                          {"log_likelihoods", Json(std::move(scores))}});
    }
    print_json(Json(Json::Object{{"accuracy", Json(report.accuracy)},
                                 {"accuracy_normalised", Json(report.accuracy_normalised)},
                                 {"num_questions", Json(static_cast<std::uint64_t>(report.questions.size()))},
                                 {"questions", Json(std::move(questions))},
                                 {"tokens_per_second", Json(report.tokens_per_second)},
                                 {"warnings", warnings_json(report.warnings)}}));
  } else if (!arguments.running.common.quiet) {
    std::printf("%s\n", fmt::format("accuracy {:.4f}, {:.4f} by likelihood per byte, on {} questions", report.accuracy, report.accuracy_normalised,
                                    report.questions.size())
                            .c_str());
  }
  return 0;
}

int run_eval(const Arguments& arguments) {
  Console console(arguments.running.common);
  const bool images = !arguments.images.empty() || !arguments.labels.empty();
  const int kinds = (arguments.texts.empty() ? 0 : 1) + (images ? 1 : 0) + (arguments.choices.empty() ? 0 : 1);
  if (kinds != 1)
    throw Error(ErrorCode::invalid_argument, kinds == 0 ? "there is nothing to evaluate on" : "one kind of data at a time can be evaluated",
                {.key = "--text"}, "give --text FILE..., --images FILE --labels FILE, or --choices FILE");
  if (!arguments.more_texts.empty() && arguments.texts.empty())
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is one argument too many", printable(arguments.more_texts.front())), {},
                "texts stand behind --text");
  const ActivationOptions& activations = arguments.activations;
  if (arguments.texts.empty() && (!activations.numbers.empty() || !activations.shares.empty() || arguments.ranges != 0))
    throw Error(ErrorCode::invalid_argument, "what rounded activations cost is measured on texts", {.key = "--activations"}, "give --text FILE");
  if (images) return run_images(arguments, console);
  return arguments.choices.empty() ? run_texts(arguments, console) : run_choices(arguments, console);
}

}  // namespace

Command eval_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "eval";
  command.family = "Run";
  command.summary = "measure how good a model is: perplexity, multiple choice, images";
  command.synopsis = "MODEL (--text FILE... | --choices FILE | --images FILE --labels FILE) [OPTION]...";
  command.description =
      "Perplexity: the whole text is encoded at once, without special tokens, and cut into windows that are run alone, each from position 0. A "
      "window's "
      "first token is not scored; where windows overlap, each scores only what the one before did not reach. Only full windows count. The interval "
      "comes "
      "from how windows differ.\n\n"
      "With --against each text is also compared with another model of the same tokenizer: the mean divergence of the model from the other, how "
      "often the "
      "likeliest token is the same, and the paired difference of the losses.";
  command.example = "weft eval models/tiny-base --text models/tiny-base/config.json --window 64 --windows 4";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.positional("FILE", arguments->more_texts, "further texts, behind --text FILE").required = false;
  command.group("Text");
  Option& text = command.custom({"--text"}, "FILE", "a text; several may follow",
                                [target = arguments.get()](const std::string& file) { target->texts.push_back(file); });
  text.kind = ValueKind::path;
  text.repeated = true;
  command.number({"--window"}, arguments->window, "tokens of a window").default_text = "the model's context";
  command.number({"--stride"}, arguments->stride, "tokens from one window to the next").default_text = "the window";
  command.number({"--windows"}, arguments->windows, "windows of each text").default_text = "all";
  command.flag({"--bos"}, arguments->bos, "put the token that begins a text before each window; the same tokens are scored");
  command.path({"--against"}, "MODEL", arguments->against, "another model to compare with, token by token");
  command.group("Rounded activations");
  ActivationOptions& activations = arguments->activations;
  command
      .value({"--activations"}, "T", activations.numbers,
             "round what linear layers read, to see what it costs: int8, int4, ... or fp8, with a scale for each token; int4:32 for each 32 of its "
             "channels")
      .default_text = "none";
  command
      .custom({"--activation-clip"}, "X", "share of the largest value that a scale reaches",
              [&activations](const std::string& given) { activations.clip = real_argument(given, "--activation-clip"); })
      .default_text = "1";
  command
      .number({"--activation-ranges"}, arguments->ranges,
              "ranges that stay, for so many groups of a layer's channels, seen on --calibration; 1: one for all")
      .default_text = "scales of tokens";
  Option& calibration = command.custom({"--calibration"}, "FILE", "a text, or .jsonl of documents; may be given again",
                                       [&activations](const std::string& file) { activations.text.files.emplace_back(file); });
  calibration.kind = ValueKind::path;
  calibration.repeated = true;
  command.number({"--sequences", "--samples"}, activations.text.num_sequences, "how many are taken from it; 0 for all").default_text = "128";
  command.number({"--length"}, activations.text.length, "tokens of a sequence").default_text = "256";
  command.value({"--attention-shares"}, "T", activations.shares, "round shares of attention: log4 to powers of two, int4 to even steps; 1 to 6 bits")
      .default_text = "none";
  command.group("Multiple choice");
  command.path({"--choices"}, "FILE", arguments->choices, R"(JSON lines {"prompt": "...", "choices": ["...", ...], "answer": 0})");
  command.group("Images");
  command.path({"--images"}, "FILE", arguments->images, "an idx file, gzipped or not, for models of the types mlp and cnn");
  command.path({"--labels"}, "FILE", arguments->labels, "the idx file of their classes");
  Option& transform = command.value({"--transform"}, "NAME", arguments->transform, "what is done to the images first");
  transform.kind = ValueKind::choice;
  transform.choices = {"same", "rot90", "invert", "mirror", "noise", "blur", "contrast", "pixelate"};
  transform.default_text = "same";
  command.number({"--seed"}, arguments->running.common.seed, "of the noise").default_text = "0";
  add_running_options(command, arguments->running);
  add_job_options(command, arguments->running.common);
  add_print_options(command, arguments->running.common);
  command.run = [arguments] { return run_eval(*arguments); };
  return command;
}

}  // namespace weft::app
