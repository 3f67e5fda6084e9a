#include "weft/edit.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <memory>
#include <tuple>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "result.h"
#include "weft/error.h"
#include "weft/spaces.h"
#include "weft/tokens.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string model;
  std::string output;
  std::vector<EditOperation> operations;
};

int run_edit(const Arguments& arguments) {
  Console console(arguments.common);
  JobOptions options;
  console.fill(options);
  const EditReport report = edit_model(arguments.model, arguments.output, arguments.operations, options);
  console.finish();
  if (arguments.common.json) {
    Json::Array effects;
    for (const EditEffect& effect : report.effects)
      effects.emplace_back(
          Json::Object{{"operation", Json(effect.operation)}, {"num_tensors", Json(effect.num_tensors)}, {"example", text_or_null(effect.example)}});
    Json document = report_json(report, {});
    document.set(report.dry_run ? "effects" : "details", report.dry_run ? Json(effects) : Json(Json::Object{{"effects", Json(effects)}}));
    print_json(document);
    return 0;
  }
  if (arguments.common.quiet && !report.dry_run) return 0;
  if (report.dry_run)
    print_plan(report, arguments.common);
  else
    print_summary(report, "edited " + arguments.model);
  for (const EditEffect& effect : report.effects)
    std::printf("  %s: %s\n", effect.operation.c_str(),
                fmt::format("{} tensor{}{}", effect.num_tensors, effect.num_tensors == 1 ? "" : "s",
                            effect.example.empty() ? "" : " (" + effect.example + ")")
                    .c_str());
  return 0;
}

struct MetadataArguments {
  CommonOptions common;
  std::string model;
  std::string output;
  MetadataEdit change;
};

int run_metadata(const MetadataArguments& arguments) {
  Console console(arguments.common);
  JobOptions options;
  console.fill(options);
  const JobReport report = edit_metadata(arguments.model, arguments.output, arguments.change, options);
  console.finish();
  print_report(report, arguments.common, "edited the metadata of " + arguments.model);
  return 0;
}

struct DumpArguments {
  CommonOptions common;
  std::string model;
  std::string tensor;
  std::string file;
};

int run_dump(const DumpArguments& arguments) {
  Console console(arguments.common);
  JobOptions options;
  console.fill(options);
  const JobReport report = dump_tensor(arguments.model, arguments.tensor, arguments.file, options);
  console.finish();
  print_report(report, arguments.common, "dumped " + arguments.tensor);
  return 0;
}

struct SpacesArguments {
  CommonOptions common;
  std::string model;
};

int run_spaces(const SpacesArguments& arguments) {
  const std::vector<SpaceInfo> spaces = list_spaces(arguments.model);
  if (arguments.common.json) {
    Json::Array all;
    const auto texts = [](const std::vector<std::string>& names) {
      Json::Array list;
      for (const std::string& name : names) list.emplace_back(name);
      return Json(std::move(list));
    };
    for (const SpaceInfo& space : spaces)
      all.emplace_back(Json::Object{{"name", Json(space.name)},
                                    {"size", Json(space.size)},
                                    {"allows", texts(space.allows)},
                                    {"allows_folded", texts(space.allows_folded)},
                                    {"reason", text_or_null(space.reason)},
                                    {"num_tensors", Json(space.num_tensors)}});
    print_json(Json(std::move(all)));
    return 0;
  }
  Table table({Align::left, Align::right, Align::right, Align::left});
  table.row({"space", "size", "tensors", "allows"});
  for (const SpaceInfo& space : spaces) {
    std::string text = fmt::format("{}", fmt::join(space.allows, ", "));
    std::vector<std::string> more;
    for (const std::string& name : space.allows_folded)
      if (std::find(space.allows.begin(), space.allows.end(), name) == space.allows.end()) more.push_back(name);
    if (!more.empty()) text += fmt::format("; with folded norms {}", fmt::join(more, ", "));
    table.row({space.name, fmt::format("{}", space.size), fmt::format("{}", space.num_tensors), text.empty() ? "nothing" : text});
  }
  table.print(stdout, 0);
  return 0;
}

struct TokensArguments {
  CommonOptions common;
  std::string model;
  std::string output;
  TokensOptions tokens;
};

int run_tokens(const TokensArguments& arguments) {
  Console console(arguments.common);
  TokensOptions options = arguments.tokens;
  console.fill(options);
  const TokensReport report = edit_tokens(arguments.model, arguments.output, options);
  console.finish();
  if (arguments.common.json) {
    Json::Array notes;
    for (const std::string& note : report.notes) notes.emplace_back(note);
    Json document = report_json(report, {});
    document.set(report.dry_run ? "notes" : "details", report.dry_run ? Json(notes) : Json(Json::Object{{"notes", Json(notes)}}));
    print_json(document);
    return 0;
  }
  if (arguments.common.quiet && !report.dry_run) return 0;
  if (report.dry_run)
    print_plan(report, arguments.common);
  else
    print_summary(report, "edited the tokens of " + arguments.model);
  for (const std::string& note : report.notes) std::printf("  %s\n", note.c_str());
  return 0;
}

double number_argument(const std::string& text, const std::string& option) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    throw Error(ErrorCode::invalid_argument, option + " takes a number, got '" + printable(text) + "'", {.key = option});
  return value;
}

}  // namespace

Command edit_tokens_command() {
  auto arguments = std::make_shared<TokensArguments>();
  Command command;
  command.name = "edit tokens";
  command.family = "Make";
  command.summary = "give a model another vocabulary, or a smaller one";
  command.synopsis = "MODEL OUT --tokenizer FROM | --resize N | --trim TEXT [OPTION]...";
  command.description =
      "--tokenizer transplants the tokenizer of another model, as mergekit-tokensurgeon does: tokens that both know keep their rows; a row for any "
      "other is made of "
      "the rows of shared tokens, combined as the other model's row is combined of its own. --resize changes the number of rows; new ones are the "
      "mean of the others. "
      "--trim removes the tokens that a text does not need; every text can still be encoded, that one to the same tokens.";
  command.example = "weft edit tokens models/tiny-base out/german-words --tokenizer models/tiny-german --method subword --dry-run";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.positional("OUT", arguments->output, "the folder to make");
  TokensOptions& tokens = arguments->tokens;
  command.group("What to do");
  command.custom({"--tokenizer"}, "FROM", "the model whose tokenizer the result has", [&tokens](const std::string& text) { tokens.tokenizer = text; })
      .kind = ValueKind::path;
  command.custom({"--resize"}, "N", "rows of embedding and head", [&tokens](const std::string& text) {
    if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
      throw Error(ErrorCode::invalid_argument, "--resize takes a whole number, got '" + printable(text) + "'", {.key = "--resize"});
    tokens.resize = std::stoull(text);
  });
  command.custom({"--trim"}, "TEXT", "a file of text whose tokens are kept", [&tokens](const std::string& text) { tokens.trim_text = text; }).kind =
      ValueKind::path;
  command.group("New rows");
  Option& method = command.value({"-a", "--method"}, "METHOD", tokens.method, "how rows of unknown tokens are made");
  method.kind = ValueKind::choice;
  method.choices = {"omp", "common_interpolation", "landmark_pca", "stb", "subword", "mean", "john_hewitt", "zero", "randn"};
  method.default_text = "omp";
  command.number({"-k", "--k"}, tokens.k, "shared tokens that a row is made of (omp, common_interpolation)").default_text = "64";
  command.flag({"--cosine"}, tokens.cosine, "nearest by angle instead of distance (common_interpolation)");
  Option& weights = command.value({"--weights"}, "SCHEME", tokens.weights, "weights of the nearest (common_interpolation)");
  weights.kind = ValueKind::choice;
  weights.choices = {"distance_proportional", "barycentric", "least_squares"};
  weights.default_text = "distance_proportional";
  Option& subwords = command.value({"--subwords"}, "WAY", tokens.subwords, "how pieces make a row (subword)");
  subwords.kind = ValueKind::choice;
  subwords.choices = {"mean", "sum", "weighted_mean", "first_last"};
  subwords.default_text = "mean";
  for (auto& [name, target, help] : {std::tuple{"--prefix-match", &tokens.prefix_match, "unknown tokens take the row of their longest known prefix"},
                                     std::tuple{"--byte-match", &tokens.byte_match, "tokens of one byte take the row of its other spelling"}}) {
    Option& match = command.value({name}, "WHERE", *target, help);
    match.kind = ValueKind::choice;
    match.choices = {"no", "yes", "embed", "lm_head"};
    match.default_text = "no";
  }
  command.custom({"--noise"}, "X", "add X times a normal number to new rows",
                 [&tokens](const std::string& text) { tokens.noise = number_argument(text, "--noise"); });
  command.custom({"--scale"}, "X", "multiply new rows by X", [&tokens](const std::string& text) { tokens.scale = number_argument(text, "--scale"); });
  command.number({"--seed"}, arguments->common.seed, "of randn and noise").default_text = "0";
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_tokens(*arguments); };
  return command;
}

Command edit_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "edit";
  command.family = "Make";
  command.summary = "rename, drop, cast, cut, stack tensors of a model";
  command.synopsis = "MODEL OUT OPERATION... [OPTION]...";
  command.description =
      "The operations are carried out in the order in which they are written, each on what the one before it gives, in one pass from MODEL to OUT. "
      "OUT is a "
      "folder, or a single file when its name ends in .safetensors. What is not weights goes along into a folder, and config.json follows where it "
      "can.\n\n"
      "A PATTERN is a regular expression that is looked for anywhere in a name: ^ and $ tie it to the ends, a backslash takes a dot literally. One "
      "that matches "
      "nothing is an error. --dry-run shows what each operation would do.\n\n"
      "Operations on spaces change a network and leave its function alone (but for --select): a SPACE is what axes of tensors are made of, such as "
      "'residual', 'mlp.3' or 'kv.* x value.*', and every tensor that touches it follows. 'weft edit spaces MODEL' lists them and what each "
      "allows.\n\n"
      "'weft help edit dump' explains how a tensor is taken out as a NumPy array, 'weft help edit tokens' how the vocabulary is changed.";
  command.example = "weft edit models/tiny-base out/tiny-short --layers 0:1 --cast norm=float32 --dry-run";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.positional("OUT", arguments->output, "a folder or a file that does not exist");
  command.group("Operations, in order");
  const auto add = [&](const std::string& name, const std::string& value, const std::string& help) {
    Option& option = command.custom({"--" + name}, value, help, [arguments, name, is_switch = value.empty()](const std::string& text) {
      if (!is_switch || text == "true") arguments->operations.push_back({name, is_switch ? "" : text});
    });
    option.repeated = true;
  };
  add("rename", "FROM=TO", "replace the first match of the pattern FROM in every name; \\1 in TO stands for its first group");
  add("drop", "PATTERN", "leave out the tensors whose names match");
  add("keep", "PATTERN", "leave out all others");
  add("cast", "PATTERN=TYPE", "store floating-point tensors as float32, bfloat16, float16, ...");
  add("transpose", "PATTERN", "exchange the axes of matrices");
  add("slice", "NAME=RANGES", "take a part: BEGIN:END or BEGIN:END:STEP for each axis, as in 'x=0:100,:'");
  add("layers", "RANGES", "stack layers: 0:16,8:24 is 0 to 15 and then 8 to 23; config.json follows");
  add("tie", "", "drop the head; the embedding takes its place");
  add("untie", "", "give the model a head of its own, a copy of the embedding");
  add("set", "NAME=FILE.npy", "replace or add a tensor");
  command.group("Operations on spaces");
  add("fold-norms", "", "multiply the gains of norms into the matrices that read them");
  add("centre", "", "take out the mean over the channels that LayerNorm subtracts");
  add("permute", "SPACE[=HOW]", "reorder a space: by a seed, or FILE.npy");
  add("rotate", "SPACE[=HOW]", "turn a space: hadamard, a seed of its signs, random:SEED, or FILE.npy");
  add("scale", "SPACE=FILE.npy", "multiply a space by factors, undone where it is read");
  add("select", "SPACE=HOW", "keep elements: BEGIN:END, or FILE.npy; a smaller network");
  add("expand", "SPACE=HOW", "repeat elements up to a size, or as FILE.npy lists them");
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_edit(*arguments); };
  return command;
}

Command edit_metadata_command() {
  auto arguments = std::make_shared<MetadataArguments>();
  Command command;
  command.name = "edit metadata";
  command.family = "Make";
  command.summary = "set and remove metadata of a GGUF or safetensors file";
  command.synopsis = "FILE OUT [--set KEY=VALUE]... [--remove KEY]... [OPTION]...";
  command.description =
      "The tensors are copied as they are, blocks included. In a GGUF file a key that is there keeps its type; for a new one the type follows from "
      "the "
      "value (true and false, numbers, text) unless it is given as in 'KEY:u64=VALUE': u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bool, string. "
      "'weft info' shows the metadata.";
  command.example = "weft edit metadata models/tiny-base/model.safetensors out/named.safetensors --set title=tiny --dry-run";
  command.positional("FILE", arguments->model, "a GGUF or safetensors file");
  command.positional("OUT", arguments->output, "a file that does not exist, of the same kind");
  command.group("Changes");
  command
      .custom({"--set"}, "KEY=VALUE", "set a key",
              [arguments](const std::string& text) {
                const std::size_t equals = text.find('=');
                if (equals == std::string::npos || equals == 0)
                  throw Error(ErrorCode::invalid_argument, "'" + printable(text) + "' is not KEY=VALUE", {.key = "--set"},
                              "write --set general.name=Tiny");
                arguments->change.set.emplace_back(text.substr(0, equals), text.substr(equals + 1));
              })
      .repeated = true;
  command.custom({"--remove"}, "KEY", "remove a key", [arguments](const std::string& text) { arguments->change.remove.push_back(text); }).repeated =
      true;
  add_output_options(command, arguments->common);
  add_job_options(command, arguments->common);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_metadata(*arguments); };
  return command;
}

Command edit_spaces_command() {
  auto arguments = std::make_shared<SpacesArguments>();
  Command command;
  command.name = "edit spaces";
  command.family = "Make";
  command.summary = "list the spaces that a model's tensors are made of";
  command.synopsis = "MODEL [OPTION]...";
  command.description =
      "Every axis of a network's tensors is made of named spaces: one 'residual' for all layers, and for each layer N 'mlp.N' (the inner units), "
      "'kv.N' (heads of keys and values), 'group.N' (heads of queries that share one), 'value.N' (the dimensions of a value), 'pair.N' (rotary "
      "pairs), 'attention_in.N' and 'mlp_in.N' (what norms give). Each allows some maps that leave the network's function alone when they are "
      "applied "
      "to every tensor that touches the space, as 'weft edit --permute', '--scale' and '--rotate' do.";
  command.example = "weft edit spaces models/tiny-base";
  command.positional("MODEL", arguments->model, kModelHelp);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_spaces(*arguments); };
  return command;
}

Command edit_dump_command() {
  auto arguments = std::make_shared<DumpArguments>();
  Command command;
  command.name = "edit dump";
  command.family = "Make";
  command.summary = "write one tensor as a NumPy array";
  command.synopsis = "MODEL NAME FILE.npy [OPTION]...";
  command.description =
      "Types that NumPy does not know (bfloat16, the eight-bit floats) become float32, which holds their values exactly. 'weft edit --set' takes the "
      "array back.";
  command.example = "weft edit dump models/tiny-base model.norm.weight out/norm.npy";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.positional("NAME", arguments->tensor, "the tensor, as 'weft info' lists it").kind = ValueKind::text;
  command.positional("FILE.npy", arguments->file, "the file to write");
  command.group("Output");
  command.flag({"--dry-run"}, arguments->common.dry_run, "print the plan and stop");
  command.flag({"--force"}, arguments->common.force, "replace an existing file");
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_dump(*arguments); };
  return command;
}

}  // namespace weft::app
