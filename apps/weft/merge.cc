#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"
#include "weft/inspect.h"
#include "weft/merge.h"
#include "weft/moe.h"
#include "weft/report.h"

namespace weft::app {
namespace {

enum class Flavour { weft, mergekit_yaml, mergekit_multi };

struct Arguments {
  Flavour flavour = Flavour::weft;
  CommonOptions common;
  std::string config;
  std::string output;
  std::string intermediate_dir;
  std::string transformers_cache;
  std::string lora_merge_dtype;
  std::string report;
  bool strict = false;
  bool allow_crimes = false;
  bool unsafe_truncate_embeddings = false;
  bool copy_tokenizer = true;
  bool write_model_card = true;
  bool lazy = true;
  bool moe = false;
  bool plain = false;
  bool tensor_union = false;
  bool tensor_intersection = false;
  bool allow_same_experts = false;
  // Accepted for mergekit's sake.
  bool safe_serialization = true;
  bool trust_remote_code = false;
  bool cuda = false;
  std::string device;
};

// A YAML stream has several documents when a line starts with "---" after some content. Such a line ends a block scalar too, so lines are enough.
bool has_several_documents(std::string_view text) {
  bool content_before = false;
  bool separator = false;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    const std::size_t first = line.find_first_not_of(" \t");
    if (line.starts_with("---") && (line.size() == 3 || line[3] == ' ' || line[3] == '\t')) {
      separator = content_before;
      if (separator && line.find_first_not_of(" \t", 3) != std::string_view::npos && line[line.find_first_not_of(" \t", 3)] != '#') return true;
    } else if (first != std::string_view::npos && line[first] != '#' && line[first] != '%') {
      if (separator) return true;
      content_before = true;
    }
  }
  return false;
}

// Tensors that are taken over as they are have the method "copy"; that is no method of the config.
std::string methods_of(const JobReport& report) {
  std::vector<std::string> methods;
  for (const PlannedTensor& tensor : report.tensors)
    if (tensor.method != "copy" && std::find(methods.begin(), methods.end(), tensor.method) == methods.end()) methods.push_back(tensor.method);
  return methods.empty() ? "copy" : join(methods, ", ");
}

// Inputs of a plan are "MODEL:TENSOR", and tensors' names hold no colon in any model of a known architecture.
std::set<std::string> models_of(const JobReport& report) {
  std::set<std::string> models;
  for (const PlannedTensor& tensor : report.tensors)
    for (const std::string& input : tensor.inputs) models.insert(input.substr(0, input.rfind(':')));
  return models;
}
std::size_t num_models_of(const JobReport& report) { return models_of(report).size(); }

/// Besides the plan: how the result differs from each model that went in, which takes reading them once more.
void write_merge_report(const JobReport& report, const Arguments& arguments, Console& console) {
  if (arguments.report.empty()) return;
  std::vector<InputDiff> inputs;
  if (!report.dry_run) {
    JobOptions job;
    console.fill(job);
    for (const std::string& model : models_of(report)) {
      try {
        inputs.push_back({model, diff(model, report.output.string(), job)});
      } catch (const Error& error) {
        if (error.code() == ErrorCode::interrupted) throw;
        console.warn("the report has no comparison with " + model + ": " + error.message());
      }
    }
    console.finish();
  }
  write_report(report, "merge", inputs, arguments.report);
}

Json::Object details_of(const JobReport& report) {
  return {{"method", text_or_null(methods_of(report))}, {"num_models", Json(static_cast<std::uint64_t>(num_models_of(report)))}};
}

void print_merge(const JobReport& report, const CommonOptions& options) {
  if (report.dry_run) {
    print_plan(report, options);
  } else if (!options.quiet) {
    const std::size_t num_models = num_models_of(report);
    print_summary(report, fmt::format("merged {} model{} with {}", num_models, num_models == 1 ? "" : "s", methods_of(report)));
  }
}

void print_reports(const std::vector<JobReport>& reports, const CommonOptions& options) {
  if (!options.json) {
    for (const JobReport& report : reports) print_merge(report, options);
    return;
  }
  // One document: the last result in the usual shape, all of them in the order in which they ran under details.
  Json::Array stages;
  for (const JobReport& report : reports) stages.push_back(report_json(report, details_of(report)));
  if (reports.empty()) {
    print_json(Json(Json::Object{{"details", Json(Json::Object{{"stages", Json(std::move(stages))}})}}));
    return;
  }
  Json document = stages.back();
  document.set("details", Json(Json::Object{{"stages", Json(std::move(stages))}}));
  print_json(document);
}

MultiMergeOptions library_options(const Arguments& arguments, Console& console) {
  if (arguments.trust_remote_code)
    throw Error(ErrorCode::unsupported, "weft never runs code that comes with a model", {.key = "--trust-remote-code"}, "leave the option out");
  if (!arguments.safe_serialization)
    throw Error(ErrorCode::unsupported, "weft does not write pickles (pytorch_model.bin)", {.key = "--no-safe-serialization"},
                "leave the option out; the output is safetensors, which every loader of such files reads too");
  MultiMergeOptions options;
  console.fill(options);
  options.strict = arguments.strict;
  options.allow_crimes = arguments.allow_crimes;
  options.unsafe_truncate_embeddings = arguments.unsafe_truncate_embeddings;
  options.copy_tokenizer = arguments.copy_tokenizer;
  options.write_model_card = arguments.write_model_card;
  options.write_into_existing = arguments.flavour != Flavour::weft;
  options.lazy = arguments.lazy;
  if (arguments.tensor_union && arguments.tensor_intersection)
    throw Error(ErrorCode::invalid_argument, "--tensor-union and --tensor-intersection exclude each other", {.key = "--tensor-union"}, "choose one");
  options.plain_files = arguments.tensor_union          ? PlainFiles::all_tensors
                        : arguments.tensor_intersection ? PlainFiles::intersection
                        : arguments.plain               ? PlainFiles::same_tensors
                                                        : PlainFiles::no;
  if (!arguments.transformers_cache.empty()) options.transformers_cache = arguments.transformers_cache;
  if (!arguments.intermediate_dir.empty()) options.intermediate_dir = arguments.intermediate_dir;
  if (!arguments.lora_merge_dtype.empty()) options.lora_merge_dtype = dtype_argument(arguments.lora_merge_dtype, "--lora-merge-dtype");
  if (arguments.cuda || (!arguments.device.empty() && arguments.device != "cpu" && arguments.device != "auto"))
    console.warn("this weft computes on the CPU; " + std::string(arguments.cuda ? "--cuda" : "--device " + printable(arguments.device)) +
                 " has no effect");
  return options;
}

int run_merge(const Arguments& arguments) {
  Console console(arguments.common);
  const MultiMergeOptions options = library_options(arguments, console);
  if (!arguments.report.empty()) require_reports(arguments.report, arguments.output);
  constexpr std::uint64_t kLargestConfig = 16'000'000;
  const std::string text = read_text_file(arguments.config, kLargestConfig);
  if (arguments.moe) {
    MoeOptions moe;
    static_cast<JobOptions&>(moe) = options;
    moe.allow_same_experts = arguments.allow_same_experts;
    moe.write_config_copy = arguments.write_model_card;
    const JobReport report = merge_moe(text, arguments.config, arguments.output, moe);
    console.finish();
    write_merge_report(report, arguments, console);
    print_report(report, arguments.common, "built a mixture of experts",
                 {{"method", Json("moe")}, {"num_models", Json(static_cast<std::uint64_t>(num_models_of(report)))}});
    return 0;
  }

  const bool multi = arguments.flavour == Flavour::mergekit_multi || (arguments.flavour == Flavour::weft && has_several_documents(text));
  if (multi) {
    const auto output = arguments.output.empty() ? std::nullopt : std::optional<std::filesystem::path>(arguments.output);
    const std::vector<JobReport> reports = merge_multi(text, arguments.config, output, options);
    console.finish();
    if (!reports.empty()) write_merge_report(reports.back(), arguments, console);
    print_reports(reports, arguments.common);
    return 0;
  }
  const JobReport report = merge_models(text, arguments.config, arguments.output, options);
  console.finish();
  write_merge_report(report, arguments, console);
  if (arguments.common.json) {
    print_json(report_json(report, details_of(report)));
  } else {
    print_merge(report, arguments.common);
  }
  return 0;
}

// Adds another spelling to the option that was added under this name.
void add_alias(Command& command, std::string_view name, std::string alias) {
  for (Option& option : command.options)
    if (!option.names.empty() && option.names.back() == name) option.names.insert(option.names.end() - 1, std::move(alias));
}

void declare_options(Command& command, Arguments& arguments) {
  command.group("Merging");
  command.flag({"--strict"}, arguments.strict, "unknown keys and parameters in the config are errors, not warnings");
  command.number({"--seed"}, arguments.common.seed, "seed of the methods that drop at random").default_text = "0";
  if (arguments.flavour == Flavour::weft) {
    command.flag({"--plain"}, arguments.plain, "the models are files of tensors, merged by name, as mergekit-pytorch does; no config, no layers");
    command.flag({"-u", "--tensor-union"}, arguments.tensor_union, "as --plain, and tensors that some file lacks are merged from the others");
    command.flag({"-i", "--tensor-intersection"}, arguments.tensor_intersection, "as --plain, and tensors that some file lacks are left out");
    command.flag({"--moe"}, arguments.moe, "CONFIG is one of mergekit-moe: build a mixture of experts");
    command.flag({"--i-understand-this-is-not-useful-without-training"}, arguments.allow_same_experts, "with --moe: all experts may be one model");
  }
  command.flag({"--allow-crimes"}, arguments.allow_crimes, "merge models of different architectures").negation = "--no-allow-crimes";
  command.flag({"--unsafe-truncate-embeddings"}, arguments.unsafe_truncate_embeddings, "cut vocabularies of unequal size to the smallest").negation =
      "--no-unsafe-truncate-embeddings";
  Option& copy = command.flag({"--copy-tokenizer"}, arguments.copy_tokenizer, "copy the tokenizer's files");
  copy.negation = "--no-copy-tokenizer";
  copy.default_text = "on";
  Option& card = command.flag({"--write-model-card"}, arguments.write_model_card, "write README.md and mergekit_config.yml");
  card.negation = "--no-write-model-card";
  card.default_text = "on";
  command.path({"--transformers-cache"}, "FOLDER", arguments.transformers_cache, "where hub ids are looked up").default_text = "Hugging Face's own";
  command.value({"--lora-merge-dtype"}, "TYPE", arguments.lora_merge_dtype, "type in which adapters are folded").default_text = "float32";
  if (arguments.flavour == Flavour::weft)
    command.path({"--report"}, "OUT.html", arguments.report,
                 std::string(kReportHelp) + "; the inputs are read once more, to compare them with the result");
  if (arguments.flavour != Flavour::mergekit_yaml) {
    command.path({"-I", "--intermediate-dir"}, "FOLDER", arguments.intermediate_dir, "where the named results of several configs go").required =
        arguments.flavour == Flavour::mergekit_multi;
    Option& lazy = command.flag({"--lazy"}, arguments.lazy, "keep named results that are already complete");
    lazy.negation = "--no-lazy";
    lazy.default_text = "on";
  }
  add_output_options(command, arguments.common);
  add_job_options(command, arguments.common);
  add_print_options(command, arguments.common);
  add_alias(command, "--seed", "--random-seed");
  add_alias(command, "--threads", "--num-threads");
  add_alias(command, "--max-shard-size", "--out-shard-size");

  command.group("Accepted for mergekit's sake");
  const auto ignore = [](const std::string&) {};
  const auto unused_switch = [&](const std::string& name, const std::string& help) {
    command.custom({"--" + name}, "", help, ignore).negation = "--no-" + name;
  };
  command.flag({"--cuda"}, arguments.cuda, "warns, and computes on the CPU").negation = "--no-cuda";
  command.value({"--device"}, "NAME", arguments.device, "other than cpu and auto: warns, and computes on the CPU");
  unused_switch("low-cpu-memory", "no effect: memory is bounded by --memory");
  unused_switch("read-to-gpu", "no effect on the CPU");
  unused_switch("multi-gpu", "no effect on the CPU");
  unused_switch("gpu-rich", "no effect on the CPU");
  Option& cache = command.custom({"--lora-merge-cache"}, "FOLDER", "no effect: adapters are folded while streaming", ignore);
  cache.kind = ValueKind::path;
  unused_switch("clone-tensors", "no effect: repeated tensors are always written out");
  unused_switch("lazy-unpickle", "no effect: files are always read tensor by tensor");
  unused_switch("async-write", "no effect: writing is always overlapped");
  command.custom({"--write-threads"}, "N", "no effect: writing is always overlapped", ignore);
  command.flag({"--safe-serialization"}, arguments.safe_serialization, "the only way; pickles are not written").negation = "--no-safe-serialization";
  command.flag({"--trust-remote-code"}, arguments.trust_remote_code, "refused: weft never runs code from a model").negation =
      "--no-trust-remote-code";
}

Command make_command(Flavour flavour) {
  auto arguments = std::make_shared<Arguments>();
  arguments->flavour = flavour;
  Command command;
  command.family = "Make";
  command.positional("CONFIG", arguments->config, "a mergekit config (YAML)");
  if (flavour == Flavour::mergekit_multi) {
    command.group("Merging");
    command.path({"--out-path"}, "OUT", arguments->output, "where the result of the config without a name goes");
  } else {
    command.positional("OUT", arguments->output, flavour == Flavour::weft ? "the folder to make, or a .safetensors or .gguf file" : "the folder to write into");
  }
  declare_options(command, *arguments);
  command.run = [arguments] { return run_merge(*arguments); };
  return command;
}

}  // namespace

Command merge_command() {
  Command command = make_command(Flavour::weft);
  command.name = "merge";
  command.summary = "merge models as a mergekit config says";
  command.synopsis = "CONFIG OUT [OPTION]...";
  command.description =
      "CONFIG has the grammar of mergekit 0.1.5, and the result has its numbers; 'weft methods merge' lists the methods. Paths in it are relative to "
      "the "
      "current folder. Weights are streamed, so memory stays bounded whatever the size of the models.\n\n"
      "Several configs in one file, separated by '---' and each with a name, are carried out in order of dependency; a name used as a model means "
      "that result.";
  command.example = "weft merge examples/ties.yml out/ties --dry-run";
  return command;
}

Command mergekit_yaml_command() {
  Command command = make_command(Flavour::mergekit_yaml);
  command.name = command.program = "mergekit-yaml";
  command.summary = "merge models as mergekit does (this is weft)";
  command.synopsis = "CONFIG OUT [OPTION]...";
  command.description = "The same as 'weft merge', except that an existing folder OUT is written into.";
  command.example = "mergekit-yaml examples/ties.yml out/ties";
  return command;
}

Command mergekit_multi_command() {
  Command command = make_command(Flavour::mergekit_multi);
  command.name = command.program = "mergekit-multi";
  command.summary = "carry out several merges that depend on each other as mergekit does (this is weft)";
  command.synopsis = "CONFIG -I FOLDER [--out-path OUT] [OPTION]...";
  command.description = "The same as 'weft merge' on a file of several configs, except that existing folders are written into.";
  command.example = "mergekit-multi examples/staged.yml -I out/stages --out-path out/staged";
  return command;
}

}  // namespace weft::app
