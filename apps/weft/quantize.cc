#include "weft/quantize.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "engine/quantize_keys.h"
#include "result.h"
#include "weft/evaluate.h"
#include "weft/report.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string model;
  std::string output;
  QuantizeOptions options;
  std::string rules_file;
  std::string imatrix;
  std::string report;
  std::vector<std::filesystem::path> eval_files;
  std::uint64_t eval_windows = 0, eval_window = 0;
  bool symmetric = false, asymmetric = false;
  static constexpr std::uint64_t kNotGiven = ~std::uint64_t{0};
  std::uint64_t bits = kNotGiven, group = 128, rank = 8;
};

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

/// "KEY=VALUE", cut at the last or first "=".
std::pair<std::string, std::string> pair_of(const std::string& text, std::size_t equals, const char* option, const char* form) {
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is not {}", printable(text), form), {.key = option});
  return {text.substr(0, equals), text.substr(equals + 1)};
}

std::string text_of(const std::string& file) {
  const File input(file, FileMode::read);
  constexpr std::uint64_t kMost = 16 << 20;
  const std::uint64_t size_bytes = input.size_bytes();
  if (size_bytes > kMost)
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' has {}, which is too much for rules", printable(file), format_size(size_bytes)),
                {.file = file});
  std::string text(static_cast<std::size_t>(size_bytes), '\0');
  input.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

/// Lines come as layers are done, so that columns cannot wait for the widest.
std::string table_line(const QuantizeOptions& options, std::string_view name, std::string_view method, std::string_view bits, std::string_view loss) {
  const bool gguf = options.format.starts_with("gguf");
  return fmt::format("  {:<{}} {:<{}} {:>7} {:>10}", name, gguf ? 26 : 46, method, std::max<std::size_t>(8, options.method.size()), bits, loss);
}

std::string layer_line(const QuantizeOptions& options, const QuantizedLayer& layer) {
  const std::string loss = layer.relative_loss ? fmt::format("{:.3e}", *layer.relative_loss) : std::string("-");
  return table_line(options, printable(layer.name), layer.method, fmt::format("{:.4f}", layer.bits), loss);
}

Json layers_json(const QuantizeReport& report) {
  Json::Array layers;
  for (const QuantizedLayer& layer : report.layers)
    layers.push_back(Json(Json::Object{{"name", Json(layer.name)},
                                       {"method", Json(layer.method)},
                                       {"bits", Json(layer.bits)},
                                       {"relative_loss", layer.relative_loss ? Json(*layer.relative_loss) : Json()}}));
  return Json(std::move(layers));
}

PerplexityOptions how_to_evaluate(const Arguments& arguments) {
  PerplexityOptions how;
  how.threads = static_cast<int>(arguments.common.threads);
  how.num_windows = arguments.eval_windows;
  how.window = arguments.eval_window;
  return how;
}

/// How the result reads the texts, beside the model that it was made from.
Json evaluated(const Arguments& arguments, const QuantizeReport& report, Console& console, bool prints, std::vector<TextScore>& texts) {
  const PerplexityReport scores = evaluate_texts(report.output.string(), arguments.eval_files, arguments.model, how_to_evaluate(arguments));
  for (const std::string& warning : scores.warnings) console.warn(warning);
  Json::Array list;
  for (const TextScore& text : scores.texts) {
    const Closeness closeness = text.closeness.value_or(Closeness{});
    const double before = std::exp(text.nll_per_token - closeness.delta_nll);
    Json::Array windows;  // beside those of another run of the same text, they tell a difference from chance
    for (const double nll : text.window_nll) windows.emplace_back(nll);
    if (prints)
      std::printf(
          "  %s\n",
          fmt::format("{}: perplexity {:.4f}, before {:.4f} ({:+.5f} nats a token, 95 % {:+.5f} to {:+.5f}), divergence {:.5f} nats, {:.1f} % the "
                      "same first choice",
                      printable(text.file.string()), text.perplexity, before, closeness.delta_nll, closeness.delta_ci95[0], closeness.delta_ci95[1],
                      closeness.kl_mean, 100 * closeness.top1_agreement)
              .c_str());
    list.push_back(Json(Json::Object{{"file", Json(text.file.string())},
                                     {"perplexity", Json(text.perplexity)},
                                     {"original_perplexity", Json(before)},
                                     {"delta_nll", Json(closeness.delta_nll)},
                                     {"delta_ci95", Json(Json::Array{Json(closeness.delta_ci95[0]), Json(closeness.delta_ci95[1])})},
                                     {"kl_mean", Json(closeness.kl_mean)},
                                     {"kl_p99", Json(closeness.kl_p99)},
                                     {"window_nll", Json(std::move(windows))},
                                     {"top1_agreement", Json(closeness.top1_agreement)}}));
  }
  texts = scores.texts;
  return Json(std::move(list));
}

/// Of its tensors, as they are stored.
std::uint64_t size_of_model(const std::string& model, const OpenOptions& how) {
  const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(model, how);
  std::uint64_t size_bytes = 0;
  for (const TensorInfo& tensor : checkpoint->tensors())
    size_bytes += tensor.stored_as.empty() || tensor.stored_bytes == 0 ? tensor.size_bytes : tensor.stored_bytes;
  return size_bytes;
}

/// The options of folders.
void add_linear_options(Command& command, const std::shared_ptr<Arguments>& arguments) {
  LinearQuantization& linear = arguments->options.linear;
  const auto choice = [&](const char* name, const char* value, std::string& target, const char* help, std::vector<std::string> choices,
                          const char* missing) {
    Option& option = command.value({name}, value, target, help);
    option.kind = ValueKind::choice;
    option.choices = std::move(choices);
    option.default_text = missing;
  };
  const auto real = [&](const char* name, double& target, const char* help, const char* missing) {
    command.custom({name}, "X", help, [&target, name](const std::string& text) { target = real_argument(text, name); }).default_text = missing;
  };
  command.group("Folders");
  command.number({"--bits"}, arguments->bits, "of an integer code").default_text = "4";
  command.custom({"--budget"}, "SIZE",
                 "a width for each layer, chosen so that all lose least: 3.2bpw (bits a weight of these layers, with scales) or 2.1GiB (all of the "
                 "model's tensors)",
                 [&linear](const std::string& text) { engine::set_quantize_budget(linear, text); });
  choice("--budget-by", "WHAT", linear.budget_by,
         "loss of layers, or of the whole model with one layer so (model); or whole blocks by what they change (lim) or by their weights alone (zd)",
         {"loss", "model", "lim", "zd"}, "loss");
  command
      .custom({"--widths"}, "N,...", "that a budget chooses from",
              [&linear](const std::string& text) {
                linear.widths.clear();
                for (const std::string& word : words_of(text)) {
                  int width = 0;
                  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), width);
                  if (error != std::errc() || end != word.data() + word.size())
                    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no width", printable(word)), {.key = "--widths"},
                                "2,3,4 for instance");
                  linear.widths.push_back(width);
                }
              })
      .default_text = "all that the format holds; 2,4 for lim and zd";
  command.number({"--group"}, arguments->group, "inputs that share a scale; 0: a whole row").default_text = "128";
  choice("--numbers", "KIND", linear.numbers, "what codes stand for: fp8 to mxfp8 in compressed-tensors, nf4 to e5m2 in weft's own form",
         {"int", "fp8", "fp8-block", "nvfp4", "mxfp4", "mxfp6", "mxfp8", "nf4", "e2m1", "e2m3", "e3m2", "e3m0", "e4m3", "e5m2"}, "int");
  command.flag({"--symmetric"}, arguments->symmetric, "without zero points, as gptq and compressed-tensors are unless told otherwise");
  command.flag({"--asymmetric"}, arguments->asymmetric, "with zero points");
  choice("--search", "HOW", linear.search, "for scales", {"none", "shrink", "least-squares"},
         "shrink for gptq and gptaq, else none: the largest value decides");
  command.flag({"--nested"}, linear.nested, "bitsandbytes' scales in 8 bits");
  Option& calibration = command.custom({"--calibration"}, "FILE", "a text, or .jsonl of documents, that the model is run on; may be given again",
                                       [&linear](const std::string& text) { linear.calibration.files.emplace_back(text); });
  calibration.repeated = true;
  calibration.kind = ValueKind::path;
  command.number({"--sequences", "--samples"}, linear.calibration.num_sequences, "how many are taken from it, from its beginning; 0 for all")
      .default_text = "128";
  command.number({"--length"}, linear.calibration.length, "tokens of a sequence").default_text = "256";
  real("--damping", linear.damping, "share of the mean that is added to the inputs' second moment", "0.05");
  choice("--order", "ORDER", linear.order,
         "of columns: groups takes the loudest group first and finds its scales then; static the loudest columns, with scales found before; dynamic "
         "has groups follow them, none takes them as stored",
         {"groups", "static", "dynamic", "none"}, "static");
  real("--drift", linear.drift, "of gptaq: share of what earlier layers changed that is made good", "0.25");
  real("--smoothing", linear.smoothing, "of smooth: 0 leaves activations as they are, 1 makes them all alike", "0.5");
  command.number({"--rank"}, arguments->rank, "of lorc").default_text = "8";
  real("--exact", linear.exact, "of exact: share of the weights", "0.001");
  Option& set = command.custom({"--set"}, "STEP.NAME=X", "a number that a step takes", [&linear](const std::string& text) {
    const auto [name, value] = pair_of(text, text.find('='), "--set", "STEP.NAME=X");
    linear.parameters[name] = real_argument(value, "--set");
  });
  set.repeated = true;
}

int run_quantize(Arguments& arguments) {
  Console console(arguments.common);
  QuantizeOptions& options = arguments.options;
  console.fill(options);
  options.imatrix = arguments.imatrix;
  if (arguments.symmetric && arguments.asymmetric)
    throw Error(ErrorCode::invalid_argument, "--symmetric and --asymmetric contradict each other", {.key = "--symmetric"}, "give one of them");
  if (arguments.symmetric || arguments.asymmetric) options.linear.symmetric = arguments.symmetric;
  constexpr std::uint64_t kMost = 1 << 30;
  const bool has_budget = options.linear.budget_bits || options.linear.budget_bytes;
  if (!has_budget && (!options.linear.widths.empty() || options.linear.budget_by != "loss"))
    throw Error(ErrorCode::invalid_argument, "--widths and --budget-by say how a budget is spent, and there is none", {.key = "--budget"},
                "give --budget");
  if (arguments.bits != Arguments::kNotGiven) {
    if (has_budget)
      throw Error(ErrorCode::invalid_argument, "--bits and --budget contradict each other", {.key = "--budget"},
                  "give one of them; a --rule PATTERN=BITS holds beside a budget");
    options.linear.bits = static_cast<int>(std::min(arguments.bits, kMost));
  }
  options.linear.group = static_cast<std::int64_t>(std::min(arguments.group, kMost));
  options.linear.rank = static_cast<std::int64_t>(std::min(arguments.rank, kMost));
  if (!arguments.eval_files.empty()) check_texts(arguments.model, arguments.eval_files, how_to_evaluate(arguments));  // now, not after the work
  if (!arguments.rules_file.empty()) options.rules_text = text_of(arguments.rules_file);
  const bool prints = !arguments.common.json && !arguments.common.quiet;
  bool has_heading = false;
  if (prints)
    options.on_layer = [&](const QuantizedLayer& layer) {
      if (!has_heading) std::printf("%s\n", table_line(options, "weight", "as", "bits", "loss").c_str());
      has_heading = true;
      std::printf("%s\n", layer_line(options, layer).c_str());
      std::fflush(stdout);
    };
  if (!arguments.report.empty()) require_reports(arguments.report, arguments.output);
  const QuantizeReport report = quantize(arguments.model, arguments.output, options);
  Json::Object details = {{"layers", layers_json(report)}};
  if (report.linear_bits_per_weight > 0) details.emplace_back("linear_bits_per_weight", report.linear_bits_per_weight);
  if (prints && report.linear_bits_per_weight > 0 && !report.dry_run)
    std::printf("  %s\n", fmt::format("{:.3f} bits a weight in {} layers, {:.3f} in the whole model", report.linear_bits_per_weight,
                                      report.layers.size(), report.bits_per_weight)
                              .c_str());
  std::vector<TextScore> texts;
  if (!report.dry_run && !arguments.eval_files.empty()) details.emplace_back("eval", evaluated(arguments, report, console, prints, texts));
  if (!arguments.report.empty()) write_report(report, arguments.model, size_of_model(arguments.model, options.open), texts, arguments.report);
  console.finish();
  print_report(report, arguments.common, fmt::format("quantized {}", arguments.model), std::move(details));
  return 0;
}

std::string formats_text() {
  std::string text;
  for (const QuantizeFormat& format : quantize_formats()) text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", format.example, format.summary);
  return text;
}

std::string gguf_types_text() {
  std::string text;
  for (const auto& [name, bits] : gguf_types()) text += fmt::format("{}{} ({:.3g})", text.empty() ? "" : ", ", name, bits);
  return text;
}

/// The steps of methods, with their numbers.
std::vector<std::pair<std::string, std::string>> step_terms() {
  std::vector<std::pair<std::string, std::string>> terms;
  for (const QuantizeStep& step : quantize_steps()) {
    std::string text = step.summary;
    if (!step.source.empty()) text += fmt::format(" ({})", step.source);
    if (step.needs_text) text += "; needs a text";
    if (step.own_only) text += "; only in --format weft";
    for (const QuantizeStep::Parameter& parameter : step.parameters)
      text += fmt::format("; --set {}.{}={:g}: {}", step.name, parameter.name, parameter.value, parameter.help);
    terms.emplace_back(step.name, std::move(text));
  }
  return terms;
}

}  // namespace

Command quantize_command() {
  auto arguments = std::make_shared<Arguments>();
  QuantizeOptions& options = arguments->options;
  Command command;
  command.name = "quantize";
  command.family = "Make";
  command.summary = "write a model with fewer bits a weight";
  command.synopsis = "MODEL OUT --format F [OPTION]...";
  command.description = fmt::format(
      "Formats: {}.\n\nTypes of GGUF files, with about how many bits a weight takes: {}. Their blocks, and which tensor gets which type, are "
      "llama.cpp's, byte for "
      "byte; a row that a type's blocks do not divide falls back as there. Types of less than three bits need an importance matrix.\n\n"
      "Folders are for transformers, vLLM and this command: the linear layers of the blocks become codes with scales, the rest stays. Their methods "
      "are steps joined by +, listed below; one of them finds the codes. awq alone is awq+clip+rtn, and in bitsandbytes' formats awq+rtn. A rule is "
      "PATTERN=keep or PATTERN=BITS/GROUP/METHOD, of which any may be left out.\n\n"
      "The loss of a weight is the squared error, weighted by importance where there is one, as a share of the weight's squares; in a folder made "
      "with a calibration text, that of the layer's outputs.",
      formats_text(), gguf_types_text());
  command.terms_heading = "Steps of methods for folders, in the order in which they are carried out";
  command.terms = step_terms();
  command.example = "weft quantize models/tiny-base out/tiny-base.Q4_K_M.gguf --format gguf:Q4_K_M";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.positional("OUT", arguments->output, "a file or a folder that does not exist");
  command.group("Quantizing");
  command.value({"--format"}, "F", options.format, "what is written: such as gguf:Q4_K_M").required = true;
  command.value({"--method"}, "M", options.method, "how codes are found; rotate also for GGUF").default_text = "the format's own";
  command.number({"--seed"}, arguments->common.seed, "of all that is drawn: by rotate, for calibration, before learning").default_text = "0";
  Option& rules = command.custom(
      {"--tensor-type", "--rule"}, "PATTERN=TYPE",
      "weights in whose name the regular expression is found get this type, or stay ('keep'); the first that matches counts",
      [&options](const std::string& text) { options.rules.push_back(pair_of(text, text.rfind('='), "--tensor-type", "PATTERN=TYPE")); });
  rules.repeated = true;
  command.path({"--tensor-type-file", "--rules"}, "FILE", arguments->rules_file, "more of them, separated by spaces or lines (# begins a comment), or as JSON like GPTQModel's dynamic");
  Option& eval = command.custom({"--eval"}, "FILE", "afterwards, the perplexity on this text, and the divergence from the model",
                                [raw = arguments.get()](const std::string& text) { raw->eval_files.emplace_back(text); });
  eval.repeated = true;
  eval.kind = ValueKind::path;
  command.path({"--report"}, "OUT.html", arguments->report,
               "a page to look at: what each weight lost, sizes before and after, and what --eval found");
  command.number({"--eval-windows"}, arguments->eval_windows, "how many windows of each text").default_text = "all";
  command.number({"--eval-window"}, arguments->eval_window, "tokens of a window").default_text = "the model's context";
  add_linear_options(command, arguments);
  command.group("GGUF");
  command.flag({"--pure"}, options.pure, "every weight in the one type, without the mix");
  command.path({"--imatrix"}, "FILE", arguments->imatrix, "an importance matrix: how much each input counts");
  command.flag({"--better"}, options.better, "search on for a smaller error at the same size and type");
  command.value({"--output-tensor-type"}, "TYPE", options.output_type, "type of output.weight");
  command.value({"--token-embedding-type"}, "TYPE", options.token_embedding_type, "type of token_embd.weight");
  command.flag({"--leave-output-tensor"}, options.leave_output, "keep output.weight as it is");
  const auto list = [&command](const char* name, std::vector<std::string>& target, const char* help) {
    Option& option = command.custom({name}, "PART", help, [&target](const std::string& text) { target.push_back(text); });
    option.repeated = true;
  };
  list("--include-weights", options.include_weights, "use the importance matrix only for weights with this in their name");
  list("--exclude-weights", options.exclude_weights, "... for all but those");
  command.custom({"--prune-layers"}, "N,...", "leave these layers out; those behind move up", [&options](const std::string& text) {
    for (const std::string& word : words_of(text)) {
      std::uint64_t layer = 0;
      const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), layer);
      if (error != std::errc() || end != word.data() + word.size())
        throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no layer", printable(word)), {.key = "--prune-layers"},
                    "numbers from 0, with commas between them");
      options.prune_layers.push_back(layer);
    }
  });
  Option& override_kv = command.custom(
      {"--override-kv"}, "KEY=TYPE:VALUE", "set metadata; TYPE is int, float, bool or str",
      [&options](const std::string& text) { options.override_kv.push_back(pair_of(text, text.find('='), "--override-kv", "KEY=TYPE:VALUE")); });
  override_kv.repeated = true;
  command.flag({"--keep-split"}, options.keep_split, "as many parts as the input has, with the same tensors");
  command.flag({"--allow-requantize"}, options.allow_requantize, "take weights that are quantized already, which loses twice");
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_quantize(*arguments); };
  return command;
}

}  // namespace weft::app
