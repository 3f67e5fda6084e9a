#include <fmt/format.h>

#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "fold.h"
#include "result.h"
#include "weft/inspect.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string model;
  bool all = false;
};

/// What the file holds: "Q4_K" where it holds blocks.
std::string stored_type(const TensorInfo& tensor) { return tensor.stored_as.empty() ? std::string(to_string(tensor.dtype)) : tensor.stored_as; }

/// Of GGUF tensors the role is another name, with the layer in it.
std::string without_numbers(std::string text) {
  std::erase_if(text, [](char c) { return c >= '0' && c <= '9'; });
  return text;
}

Json info_json(const ModelInfo& info) {
  Json::Array files;
  for (const CheckpointFile& file : info.files)
    files.emplace_back(Json::Object{{"path", Json(file.path.string())}, {"size_bytes", Json(file.size_bytes)}});
  Json::Object metadata;
  for (const auto& [key, value] : info.metadata) metadata.emplace_back(key, Json(value));
  Json::Array tensors;
  for (const ModelInfo::Tensor& entry : info.tensors)
    tensors.emplace_back(Json::Object{{"name", Json(entry.tensor.name)},
                                      {"dtype", Json(stored_type(entry.tensor))},
                                      {"shape", shape_json(entry.tensor.shape)},
                                      {"size_bytes", Json(bytes_in_file(entry.tensor))},
                                      {"file", Json(entry.file)},
                                      {"role", text_or_null(entry.role)}});
  const Json tokenizer =
      info.tokenizer_kind.empty() ? Json() : Json(Json::Object{{"kind", Json(info.tokenizer_kind)}, {"vocab_size", Json(info.tokenizer_vocab_size)}});
  return Json(Json::Object{{"container", Json(info.container)},
                           {"files", Json(std::move(files))},
                           {"architecture", text_or_null(info.architecture)},
                           {"model_type", text_or_null(info.model_type)},
                           {"num_parameters", Json(info.num_parameters)},
                           {"size_bytes", Json(info.size_bytes)},
                           {"bits_per_weight", Json(info.bits_per_weight)},
                           {"quantization", text_or_null(info.quantization)},
                           {"tokenizer", tokenizer},
                           {"metadata", Json(std::move(metadata))},
                           {"tensors", Json(std::move(tensors))}});
}

void print_info(const ModelInfo& info, const CommonOptions& options, bool show_all) {
  std::string kind = info.architecture.empty() ? "unknown architecture" : printable(info.architecture);
  if (!info.model_type.empty()) kind += " (" + printable(info.model_type) + ")";
  std::printf("%s  %s\n", paint(stdout, Style::bold, info.path.string()).c_str(), paint(stdout, Style::cyan, kind).c_str());

  Table facts({Align::left, Align::left});
  facts.row({"parameters", fmt::format("{}, {:.4g} bits each", format_count(info.num_parameters), info.bits_per_weight)});
  facts.row({"weights",
             fmt::format("{} in {} {} file{}", format_size(info.size_bytes), info.files.size(), info.container, info.files.size() == 1 ? "" : "s")});
  if (!info.quantization.empty()) facts.row({"quantized", printable(info.quantization)});
  facts.row(
      {"tokenizer", info.tokenizer_kind.empty() ? "none" : fmt::format("{}, {} entries", printable(info.tokenizer_kind), info.tokenizer_vocab_size)});
  for (const auto& [key, value] : info.metadata) facts.row({printable(key), printable(value)});
  facts.print(stdout, 2);

  std::vector<std::string> names;
  std::vector<std::string> alike;
  for (const ModelInfo::Tensor& entry : info.tensors) {
    names.push_back(entry.tensor.name);
    alike.push_back(stored_type(entry.tensor) + to_string(entry.tensor.shape) + without_numbers(entry.role));
  }
  Table table({Align::left, Align::right, Align::left, Align::left, Align::right, Align::left});
  table.header({"tensor", "count", "dtype", "shape", "size", "role"});
  for (const FoldedTensors& group : fold_tensors(names, alike, options.verbose)) {
    const ModelInfo::Tensor& first = info.tensors[group.members.front()];
    std::uint64_t size_bytes = 0;
    for (const std::size_t i : group.members) size_bytes += bytes_in_file(info.tensors[i].tensor);
    table.row({group.name, std::to_string(group.members.size()), stored_type(first.tensor), to_string(first.tensor.shape),
               format_size(size_bytes), first.role});
  }
  std::printf("\n");
  table.print(stdout, 2);
  std::printf("  %s\n", fmt::format("{} tensors", info.tensors.size()).c_str());
  if (info.skipped.empty()) return;
  std::printf("\n  %s\n", fmt::format("{} values beside the tensors{}", info.skipped.size(), show_all ? "" : " (--all lists them)").c_str());
  if (!show_all) return;
  Table others({Align::left, Align::left});
  others.header({"key", "kind"});
  for (const auto& [key, what] : info.skipped) others.row({printable(key), what});
  others.print(stdout, 2);
}

int run_info(const Arguments& arguments) {
  Console console(arguments.common);
  const ModelInfo info = inspect(arguments.model);
  // The document has no place for what was odd, so it is said on stderr in any case.
  for (const std::string& warning : info.warnings) console.say(warning);
  if (arguments.common.json) {
    print_json(info_json(info));
  } else if (!arguments.common.quiet) {
    print_info(info, arguments.common, arguments.all);
  }
  return 0;
}

}  // namespace

Command info_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "info";
  command.family = "Look";
  command.summary = "show what a model is: architecture, size, types, tensors";
  command.synopsis = "MODEL [OPTION]...";
  command.description =
      "Reads headers and configs only, so it is instant for a model of any size. Tensors that differ only in their layer are shown as one line; "
      "--verbose shows each.";
  command.example = "weft info models/tiny-base";
  command.positional("MODEL", arguments->model, kModelHelp);
  command.flag({"--all"}, arguments->all, "also list what a PyTorch file holds beside its tensors");
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_info(*arguments); };
  return command;
}

}  // namespace weft::app
