#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "adapt/folded_model.h"
#include "base/file.h"
#include "checkpoint/model_folder.h"
#include "commands.h"
#include "common.h"
#include "json_lines.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/vocabulary.h"

namespace weft::app {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  CommonOptions common;
  std::string model;
  std::string file;
  std::string chat_template;
  std::string message;
};

constexpr std::uint64_t kMaxTemplateBytes = 16'000'000;

/// A file, or a template written on the command line (nothing else has braces).
std::string template_argument(const std::string& text) {
  if (text.find("{{") != std::string::npos || text.find("{%") != std::string::npos) return text;
  return read_text_file(text, kMaxTemplateBytes);
}

int run_chat(const Arguments& arguments) {
  if (arguments.file.empty() && arguments.message.empty())
    throw Error(ErrorCode::invalid_argument, "no conversation", {.key = "--file"}, "give --file FILE (- for standard input) or --message TEXT");
  const fs::path path = resolve_model(adapt::split_adapters(arguments.model).model).path;
  const model::Tokenizer tokenizer = model::Tokenizer::open(path);
  const fs::path folder = path_kind(path) == PathKind::folder ? path : path.parent_path();
  std::string source;
  fs::path source_file = arguments.chat_template;
  if (!arguments.chat_template.empty()) {
    source = template_argument(arguments.chat_template);
  } else {
    const std::optional<model::ChatTemplate> found = model::read_chat_template(folder);
    const std::string* own = tokenizer.chat_template();
    if (found)
      source = found->text;
    else if (own != nullptr)
      source = *own;
    else
      throw Error(ErrorCode::not_found, "the model has no chat template", {.file = folder.string()}, "give one: --template FILE");
    source_file = found && !found->own_file ? folder / "tokenizer_config.json" : found ? folder / "chat_template.jinja" : path;
  }
  const model::ChatRenderer renderer(source, source_file);

  const auto render = [&](const Json& line, std::uint64_t number) {
    if (!line.is_object() || line.find("messages") == nullptr)
      refuse_line(arguments.file, number, "is no object with messages", "a line is {\"messages\": [{\"role\": ..., \"content\": ...}], ...}");
    Json variables = line;
    // What transformers passes, unless the line says otherwise.
    for (const model::NamedToken& token : tokenizer.named_tokens())
      if (variables.find(token.name) == nullptr) variables.set(token.name, Json(token.token));
    if (variables.find("add_generation_prompt") == nullptr) variables.set("add_generation_prompt", Json(false));
    for (const char* name : {"tools", "documents"})
      if (variables.find(name) == nullptr) variables.set(name, Json());
    if (const Json* more = line.find("variables"); more != nullptr && more->is_object())
      for (const auto& [name, value] : *more->object()) variables.set(name, value);
    try {
      std::string text = renderer.render(variables);
      if (const Json* goes_on = line.find("continue_final_message"); goes_on != nullptr && goes_on->boolean().value_or(false))
        text = model::continue_last_message(text, *line.find("messages"));
      Json::Array ids;
      for (const std::uint32_t id : tokenizer.ids(text, false)) ids.emplace_back(std::uint64_t{id});
      print_json_line(Json(Json::Object{{"text", Json(std::move(text))}, {"ids", Json(std::move(ids))}}));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::invalid_argument && error.code() != ErrorCode::unsupported) throw;
      print_json_line(Json(Json::Object{{"error", Json(error.message())}}));
    }
  };
  if (!arguments.message.empty())
    render(Json(Json::Object{{"messages", Json(Json::Array{Json(Json::Object{{"role", Json("user")}, {"content", Json(arguments.message)}})})},
                             {"add_generation_prompt", Json(true)}}),
           1);
  if (!arguments.file.empty()) for_each_json_line(arguments.file, render);
  return 0;
}

}  // namespace

Command chat_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "chat";
  command.family = "Run";
  command.summary = "write conversations as a model's chat template does";
  command.synopsis = "MODEL --file FILE [OPTION]...";
  command.description =
      "Prints one JSON document for each line: {text, ids}, or {error} where the template refuses the conversation. A line of the file is {messages, "
      "add_generation_prompt, ...}; all that it holds are variables of the template, the tokenizer's special tokens among them unless given.\n\n"
      "The template is run by an interpreter that reads nothing but these variables, and stops.";
  command.example = "weft chat models/tiny-base --template {{messages[0].content}} --message Hello";
  command.positional("MODEL", arguments->model, "a model, or a tokenizer.json or tokenizer.model alone");
  command.group("Input");
  command.path({"--file"}, "FILE", arguments->file, "JSON lines; - for standard input");
  command.value({"--message"}, "TEXT", arguments->message,
                "what a user says, instead of a file; the template then ends with the prompt for an answer");
  command.path({"--template"}, "T", arguments->chat_template, "a file with the template, or its text").default_text = "the model's";
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_chat(*arguments); };
  return command;
}

}  // namespace weft::app
