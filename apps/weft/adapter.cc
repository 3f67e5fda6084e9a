#include "weft/adapter.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"

namespace weft::app {
namespace {

constexpr const char* kAdapterHelp = "a folder with adapter_config.json, a LoRA in a .gguf file, or org/name[@revision] in the local cache";

double number_argument(const std::string& text, const std::string& option) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty())
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no number", printable(text)), {.key = option}, "give one such as 0.5");
  return value;
}

std::optional<std::uint64_t> count_argument(std::uint64_t value) { return value == 0 ? std::nullopt : std::optional(value); }

void add_file_options(Command& command, CommonOptions& options) {
  command.group("Output");
  command.flag({"--dry-run"}, options.dry_run, "print the plan and stop");
  command.flag({"--force"}, options.force, "replace an existing adapter");
}

// ---- info

struct InfoArguments {
  CommonOptions common;
  std::string adapter;
};

int run_info(const InfoArguments& arguments) {
  const AdapterInfo info = inspect_adapter(arguments.adapter);
  if (arguments.common.json) {
    Json::Object settings;
    for (const auto& [key, value] : info.settings) settings.emplace_back(key, Json(value));
    Json::Array modules;
    for (const AdapterInfo::Module& module : info.modules)
      modules.emplace_back(Json::Object{{"name", Json(module.name)},
                                        {"rank", module.rank ? Json(*module.rank) : Json()},
                                        {"scale", module.scale ? Json(*module.scale) : Json()},
                                        {"replaces", Json(module.replaces)},
                                        {"num_parameters", Json(module.num_parameters)}});
    print_json(Json(Json::Object{{"path", Json(info.path.string())},
                                 {"kind", Json(info.kind)},
                                 {"base_model", text_or_null(info.base_model)},
                                 {"num_parameters", Json(info.num_parameters)},
                                 {"size_bytes", Json(info.size_bytes)},
                                 {"settings", Json(std::move(settings))},
                                 {"modules", Json(std::move(modules))}}));
    return 0;
  }
  if (arguments.common.quiet) return 0;
  std::printf("%s  %s\n", paint(stdout, Style::bold, info.path.string()).c_str(),
              paint(stdout, Style::cyan, "adapter of the kind " + printable(info.kind)).c_str());
  Table facts({Align::left, Align::left});
  facts.row({"made for", info.base_model.empty() ? "not said" : printable(info.base_model)});
  facts.row({"parameters", fmt::format("{}, {}", format_count(info.num_parameters), format_size(info.size_bytes))});
  for (const auto& [key, value] : info.settings) facts.row({printable(key), printable(value, 100)});
  facts.print(stdout, 2);
  std::printf("\n");
  Table table({Align::left, Align::right, Align::right, Align::right});
  table.header({"module", "rank", "scale", "parameters"});
  for (const AdapterInfo::Module& module : info.modules)
    table.row({printable(module.name),
               module.rank       ? std::to_string(*module.rank)
               : module.replaces ? "whole"
                                 : "",
               module.scale ? fmt::format("{:.4g}", *module.scale) : "", format_count(module.num_parameters)});
  table.print(stdout, 2);
  std::printf("  %s\n", fmt::format("{} modules", info.modules.size()).c_str());
  return 0;
}

// ---- fold

struct FoldArguments {
  CommonOptions common;
  std::string model, adapter, output, scale, dtype;
  bool residual_base = false;
};

int run_fold(const FoldArguments& arguments) {
  Console console(arguments.common);
  FoldAdapterOptions options;
  console.fill(options);
  if (!arguments.scale.empty()) options.scale = number_argument(arguments.scale, "--scale");
  if (!arguments.dtype.empty()) options.dtype = dtype_argument(arguments.dtype, "--dtype");
  options.residual_base = arguments.residual_base;
  const JobReport report = fold_adapter(arguments.model, arguments.adapter, arguments.output, options);
  console.finish();
  print_report(report, arguments.common, "folded " + arguments.adapter);
  return 0;
}

// ---- extract

struct ExtractArguments {
  CommonOptions common;
  std::string base, tuned, output, energy, smallest, dtype;
  std::uint64_t rank = 0;
  ExtractOptions options;
};

int run_extract(ExtractArguments& arguments) {
  Console console(arguments.common);
  ExtractOptions& options = arguments.options;
  console.fill(options);
  options.rank = count_argument(arguments.rank);
  if (!arguments.energy.empty()) options.energy = number_argument(arguments.energy, "--energy");
  if (!arguments.smallest.empty()) options.smallest = number_argument(arguments.smallest, "--sv-epsilon");
  if (!arguments.dtype.empty()) options.dtype = dtype_argument(arguments.dtype, "--dtype");
  const ExtractReport report = extract_adapter(arguments.base, arguments.tuned, arguments.output, options);
  console.finish();
  Json::Array modules;
  for (const ExtractedModule& module : report.modules)
    modules.emplace_back(Json::Object{{"name", Json(module.name)},
                                      {"rank", Json(module.rank)},
                                      {"norm", Json(module.norm)},
                                      {"error", Json(module.error)},
                                      {"randomized", Json(module.randomized)}});
  print_report(report, arguments.common, "extracted " + arguments.tuned, Json::Object{{"modules", Json(std::move(modules))}});
  if (arguments.common.json || arguments.common.quiet || report.dry_run) return 0;
  double norm = 0, error = 0;
  std::size_t whole = 0, products = 0;
  for (const ExtractedModule& module : report.modules) {
    norm += module.norm * module.norm;
    error += module.error * module.error;
    ++(module.rank == 0 ? whole : products);
  }
  std::printf("  %s\n", fmt::format("{} modules as products that miss {:.3g} of the norm of their differences, {} saved whole", products,
                                    norm > 0 ? std::sqrt(error / norm) : 0.0, whole)
                            .c_str());
  if (!arguments.common.verbose) return 0;
  Table table({Align::left, Align::right, Align::right, Align::right});
  table.header({"module", "rank", "norm", "error"});
  for (const ExtractedModule& module : report.modules)
    table.row({printable(module.name), module.rank == 0 ? "whole" : std::to_string(module.rank),
               module.rank == 0 ? "" : fmt::format("{:.4g}", module.norm), module.rank == 0 ? "" : fmt::format("{:.4g}", module.error)});
  table.print(stdout, 2);
  return 0;
}

// ---- combine, scale, convert

struct CombineArguments {
  CommonOptions common;
  std::vector<std::string> paths;
  std::string weights;
  std::uint64_t rank = 0;
  CombineOptions options;
};

int run_combine(CombineArguments& arguments) {
  if (arguments.paths.size() < 2)
    throw Error(ErrorCode::invalid_argument, "adapters and a place for the result are needed", {}, "usage: weft adapter combine ADAPTER... OUT");
  Console console(arguments.common);
  CombineOptions& options = arguments.options;
  console.fill(options);
  options.rank = count_argument(arguments.rank);
  for (std::size_t begin = 0; begin < arguments.weights.size();) {
    const std::size_t end = std::min(arguments.weights.find(',', begin), arguments.weights.size());
    options.weights.push_back(number_argument(arguments.weights.substr(begin, end - begin), "--weights"));
    begin = end + 1;
  }
  const std::string output = arguments.paths.back();
  arguments.paths.pop_back();
  const JobReport report = combine_adapters(arguments.paths, output, options);
  console.finish();
  print_report(report, arguments.common, fmt::format("combined {} adapters", arguments.paths.size()));
  return 0;
}

struct ScaleArguments {
  CommonOptions common;
  std::string adapter, output, factor;
};

int run_scale(const ScaleArguments& arguments) {
  Console console(arguments.common);
  JobOptions options;
  console.fill(options);
  const JobReport report = scale_adapter(arguments.adapter, arguments.output, number_argument(arguments.factor, "X"), options);
  console.finish();
  print_report(report, arguments.common, "scaled " + arguments.adapter);
  return 0;
}

struct ConvertArguments {
  CommonOptions common;
  std::string adapter, output, to, base;
};

int run_convert(const ConvertArguments& arguments) {
  Console console(arguments.common);
  JobOptions options;
  console.fill(options);
  const JobReport report = convert_adapter(arguments.adapter, arguments.output, arguments.to, arguments.base, options);
  console.finish();
  print_report(report, arguments.common, "converted " + arguments.adapter);
  return 0;
}

}  // namespace

Command adapter_info_command() {
  auto arguments = std::make_shared<InfoArguments>();
  Command command;
  command.name = "adapter info";
  command.family = "Look";
  command.summary = "show what an adapter is: kind, settings, modules, ranks";
  command.synopsis = "ADAPTER [OPTION]...";
  command.description = "Reads the config and the headers only. The scale is what the product of a module's two matrices is multiplied by.";
  command.example = "weft adapter info models/tiny-german-lora";
  command.positional("ADAPTER", arguments->adapter, kAdapterHelp);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_info(*arguments); };
  return command;
}

Command adapter_fold_command() {
  auto arguments = std::make_shared<FoldArguments>();
  Command command;
  command.name = "adapter fold";
  command.family = "Make";
  command.summary = "write a model with an adapter folded into it";
  command.synopsis = "MODEL ADAPTER OUT [OPTION]...";
  command.description =
      "Every kind of PEFT that changes weights can be folded: LoRA with all its settings, IA3, LoHa, LoKr, VeRA, OFT and others. Values are computed "
      "in float64 and "
      "rounded once to the type that the model is stored in, row by row, so that the model is never in memory. config.json follows where the adapter "
      "unties the head "
      "or adds tokens or layers. Wherever weft takes a MODEL, MODEL+ADAPTER means the same without writing it.";
  command.example = "weft adapter fold models/tiny-base models/tiny-german-lora out/tiny-folded";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.positional("ADAPTER", arguments->adapter, kAdapterHelp);
  command.positional("OUT", arguments->output, "a folder, or a .safetensors or .gguf file, that does not exist");
  command.group("Folding");
  command.value({"--scale"}, "X", arguments->scale, "go this part of the way from MODEL to the folded model; below 0 away from it").default_text =
      "1";
  command.value({"--dtype"}, "TYPE", arguments->dtype, "type of the floating-point tensors").default_text = "as stored";
  command.flag({"--residual-base"}, arguments->residual_base,
               "MODEL is the residual that PiSSA, OLoRA, CorDA, LoftQ or LoRA-GA left when training began");
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_fold(*arguments); };
  return command;
}

Command adapter_extract_command() {
  auto arguments = std::make_shared<ExtractArguments>();
  ExtractOptions& options = arguments->options;
  Command command;
  command.name = "adapter extract";
  command.family = "Make";
  command.summary = "make a LoRA adapter out of a model and its fine-tune";
  command.synopsis = "BASE TUNED OUT --rank N|--energy SHARE [OPTION]...";
  command.description =
      "The difference of every matrix becomes a product of two thin ones, by its singular value decomposition; what is dropped is reported for each "
      "module. Embeddings, the "
      "head and what is no matrix are saved whole where they changed (modules_to_save); biases of the chosen modules are saved as they are. Large "
      "matrices are decomposed by a "
      "randomized method whose error is measured exactly.";
  command.example = "weft adapter extract models/tiny-base models/tiny-german out/german-lora --rank 8 --modules self_attn";
  command.positional("BASE", arguments->base, kModelHelp);
  command.positional("TUNED", arguments->tuned, "its fine-tune");
  command.positional("OUT", arguments->output, "a folder that does not exist");
  command.group("How much to keep");
  command.number({"--rank", "--max-rank"}, arguments->rank, "at most so many singular values of each matrix");
  command.value({"--energy"}, "SHARE", arguments->energy, "as many as make this share of the squared norm, such as 0.9");
  command.value({"--sv-epsilon"}, "X", arguments->smallest, "drop singular values up to this").default_text = "0";
  command.group("Which modules");
  command.value({"--modules", "--include-regex"}, "PATTERN", options.modules, "only those whose names match this regular expression somewhere")
      .default_text = "all";
  command.value({"--exclude", "--exclude-regex"}, "PATTERN", options.exclude, "but not those");
  command.flag({"--embed-lora"}, options.embeddings, "products for embeddings and head too");
  Option& save = command.custom({"--save-module"}, "NAME", "save this module (or all that end so) whole",
                                [arguments](const std::string& text) { arguments->options.save_modules.push_back(text); });
  save.repeated = true;
  command.flag({"--skip-undecomposable"}, options.skip_undecomposable, "leave out what is no matrix instead of saving it whole");
  command.value({"--dtype"}, "TYPE", arguments->dtype, "type of the adapter").default_text = "that of TUNED";
  add_file_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_extract(*arguments); };
  return command;
}

Command adapter_combine_command() {
  auto arguments = std::make_shared<CombineArguments>();
  Command command;
  command.name = "adapter combine";
  command.family = "Make";
  command.summary = "make one LoRA adapter out of several";
  command.synopsis = "ADAPTER... OUT [--how linear|cat|svd] [--weights W,W,...] [OPTION]...";
  command.description =
      "As PEFT's add_weighted_adapter. linear sums the factors, each scaled by the root of its weight, which is quick but mixes them; cat puts them "
      "side by side, which is exact "
      "and adds up the ranks; svd finds the best product of one rank for the sum.";
  command.example = "weft adapter combine models/tiny-german-lora models/tiny-german-lora out/combined --how cat --weights 0.5,0.25";
  command.positional("ADAPTER... OUT", arguments->paths, "two or more paths, the last one for the result");
  command.group("Combining");
  Option& how = command.value({"--how"}, "HOW", arguments->options.how, "how");
  how.kind = ValueKind::choice;
  how.choices = {"linear", "cat", "svd"};
  how.default_text = "linear";
  command.value({"--weights"}, "W,W,...", arguments->weights, "one for each adapter").default_text = "1 each";
  command.number({"--rank"}, arguments->rank, "of the result, for svd").default_text = "the largest of the adapters'";
  add_file_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_combine(*arguments); };
  return command;
}

Command adapter_scale_command() {
  auto arguments = std::make_shared<ScaleArguments>();
  Command command;
  command.name = "adapter scale";
  command.family = "Make";
  command.summary = "multiply what an adapter does";
  command.synopsis = "ADAPTER OUT X [OPTION]...";
  command.description =
      "Changes alpha in the config; the tensors stay byte for byte. For kinds whose effect is no product see 'weft adapter fold --scale'.";
  command.example = "weft adapter scale models/tiny-german-lora out/half 0.5";
  command.positional("ADAPTER", arguments->adapter, kAdapterHelp);
  command.positional("OUT", arguments->output, "a folder that does not exist");
  command.positional("X", arguments->factor, "the factor").kind = ValueKind::text;
  add_file_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_scale(*arguments); };
  return command;
}

Command adapter_convert_command() {
  auto arguments = std::make_shared<ConvertArguments>();
  Command command;
  command.name = "adapter convert";
  command.family = "Make";
  command.summary = "give a LoRA adapter the names of another tool";
  command.synopsis = "ADAPTER OUT --to peft|gguf|kohya|diffusers [OPTION]...";
  command.description =
      "ADAPTER is a folder that PEFT wrote, a GGUF file as llama.cpp's converter writes it, or a single .safetensors file with the names of kohya's "
      "scripts or of diffusers. kohya's names lose the dots of modules, and llama.cpp orders the rows of some matrices by heads: for both name the "
      "model with --base.";
  command.example = "weft adapter convert models/tiny-german-lora out/german.safetensors --to kohya";
  command.positional("ADAPTER", arguments->adapter, "a folder with adapter_config.json, or a .gguf or .safetensors file");
  command.positional("OUT", arguments->output, "a folder for peft, a .gguf file for gguf, else a .safetensors file");
  command.group("Converting");
  Option& to = command.value({"--to"}, "FORM", arguments->to, "whose names");
  to.kind = ValueKind::choice;
  to.choices = {"peft", "gguf", "kohya", "diffusers"};
  to.required = true;
  command.value({"--base"}, "MODEL", arguments->base, "the model whose modules the names mean");
  add_file_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_convert(*arguments); };
  return command;
}

}  // namespace weft::app
