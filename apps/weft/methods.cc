#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "weft/methods.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string which;
};

Json method_json(const MethodDescription& method) {
  Json::Array parameters;
  for (const MethodParameter& parameter : method.parameters) {
    Json default_value;
    if (parameter.default_value && parameter.type == "boolean") {
      default_value = Json(*parameter.default_value != 0);
    } else if (parameter.default_value) {
      default_value = Json(*parameter.default_value);
    }
    parameters.emplace_back(Json::Object{{"name", Json(parameter.name)},
                                         {"type", Json(parameter.type)},
                                         {"scope", Json(parameter.scope)},
                                         {"required", Json(parameter.required)},
                                         {"default", default_value},
                                         {"range", text_or_null(parameter.range)},
                                         {"help", Json(parameter.help)}});
  }
  Json::Array formats;
  for (const std::string& format : method.formats) formats.emplace_back(format);
  return Json(Json::Object{
      {"name", Json(method.name)},
      {"family", Json(method.family)},
      {"summary", Json(method.summary)},
      {"paper", text_or_null(method.paper)},
      {"parameters", Json(std::move(parameters))},
      {"needs", Json(Json::Object{
                    {"models", Json(method.models)}, {"base", Json(method.base)}, {"calibration", Json(method.calibration)}, {"passes", Json(method.passes)}})},
      {"determinism", Json(method.determinism)},
      {"formats", Json(std::move(formats))}});
}

std::string default_text(const MethodParameter& parameter) {
  if (parameter.required) return "required";
  if (!parameter.default_value) return "none";
  if (parameter.type == "boolean") return *parameter.default_value != 0 ? "true" : "false";
  return fmt::format("{:g}", *parameter.default_value);
}

void print_list(const std::vector<MethodDescription>& methods) {
  std::string family;
  for (const MethodDescription& method : methods) {
    if (method.family != family) {
      std::printf("%s%s\n", family.empty() ? "" : "\n", paint(stdout, Style::bold, method.family).c_str());
      family = method.family;
    }
    constexpr int kSummaryColumn = 28;
    std::printf("  %s %s\n", fmt::format("{:25}", method.name).c_str(), wrap(method.summary, terminal_width(stdout), kSummaryColumn).c_str());
  }
  std::printf("\n'weft methods NAME' shows the parameters of one.\n");
}

void print_page(const MethodDescription& method) {
  std::printf("%s - %s\n\n", paint(stdout, Style::bold, method.name).c_str(), method.summary.c_str());
  Table facts({Align::left, Align::left});
  facts.row({"models", method.models});
  facts.row({"base model", method.base});
  facts.row({"passes", std::to_string(method.passes)});
  facts.row({"determinism", method.determinism == "A"   ? "A: the same bytes on every machine"
                            : method.determinism == "B" ? "B: the same bytes for any number of threads on one kind of CPU"
                                                        : "C: within a stated bound"});
  if (method.calibration) facts.row({"calibration", "runs the model on a text"});
  std::string formats;
  for (const std::string& format : method.formats) formats += (formats.empty() ? "" : ", ") + format;
  facts.row({"formats", formats});
  if (!method.paper.empty()) facts.row({"paper", method.paper});
  facts.print(stdout, 2);
  if (method.parameters.empty()) {
    std::printf("\nno parameters\n");
    return;
  }
  std::printf("\n%s\n", paint(stdout, Style::bold, "parameters").c_str());
  Table table({Align::left, Align::left, Align::left, Align::left, Align::left, Align::left});
  table.header({"name", "type", "set", "default", "range", ""});
  for (const MethodParameter& parameter : method.parameters)
    table.row({parameter.name, parameter.type, parameter.scope == "global" ? "for all" : "per model", default_text(parameter), parameter.range,
               parameter.help});
  table.print(stdout, 2);
}

// A family, a method, or a word that is close to one.
std::vector<MethodDescription> choose(const std::string& which) {
  std::vector<MethodDescription> all = list_methods();
  if (which.empty()) return all;
  std::vector<MethodDescription> chosen;
  std::vector<std::string> names;
  for (MethodDescription& method : all) {
    names.push_back(method.name);
    names.push_back(method.family);
    if (method.name == which || method.family == which) chosen.push_back(std::move(method));
  }
  if (!chosen.empty()) return chosen;
  const auto nearest = nearest_name(which, names);
  throw Error(ErrorCode::not_found, "no method or family of methods is called '" + printable(which) + "'", {},
              nearest ? "did you mean " + *nearest + "?" : "'weft methods' lists them all");
}

int run_methods(const Arguments& arguments) {
  const std::vector<MethodDescription> methods = choose(arguments.which);
  if (arguments.common.json) {
    Json::Array array;
    for (const MethodDescription& method : methods) array.push_back(method_json(method));
    print_json(Json(std::move(array)));
  } else if (methods.size() == 1 && methods.front().name == arguments.which) {
    print_page(methods.front());
  } else {
    print_list(methods);
  }
  return 0;
}

}  // namespace

Command methods_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "methods";
  command.family = "Learn";
  command.summary = "list the methods, or show one with its parameters";
  command.synopsis = "[FAMILY | NAME] [OPTION]...";
  command.example = "weft methods ties";
  Option& which = command.positional("NAME", arguments->which, "a family of methods, or one method");
  which.required = false;
  which.kind = ValueKind::choice;
  which.choices = {"eval", "merge", "quantize"};
  for (const MethodDescription& method : list_methods()) which.choices.push_back(method.name);
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_methods(*arguments); };
  return command;
}

}  // namespace weft::app
