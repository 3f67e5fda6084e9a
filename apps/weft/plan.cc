#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/text.h"
#include "fold.h"
#include "result.h"
#include "weft/methods.h"

// What a dry run prints.
namespace weft::app {
namespace {

constexpr std::string_view kCopy = "copy";  // the method of tensors that are taken over as they are

// An input is "MODEL:TENSOR"; names of tensors hold no colon.
std::string model_of(const std::string& input) { return input.substr(0, input.rfind(':')); }
std::string tensor_of(const std::string& input) { return input.substr(input.rfind(':') + 1); }

/// A parameter of a planned tensor, taken apart.
struct Setting {
  std::string model;  ///< empty: for all models
  std::string name;
  std::string text;  ///< "0.5", "true"
};

/// Reads the parameters of planned tensors: whose they are, and which are booleans.
class SettingReader {
 public:
  SettingReader() {
    for (const MethodDescription& method : list_methods("merge"))
      for (const MethodParameter& parameter : method.parameters)
        if (parameter.type == "boolean") booleans_.emplace(method.name, parameter.name);
  }

  [[nodiscard]] std::vector<Setting> settings(const PlannedTensor& tensor) const {
    std::vector<Setting> settings;
    for (const auto& [key, value] : tensor.parameters) {
      Setting setting{.model = owner_of(tensor, key), .name = key, .text = value};
      if (!setting.model.empty()) setting.name = key.substr(setting.model.size() + 1);
      if (booleans_.contains({tensor.method, setting.name}) && (value == "0" || value == "1")) setting.text = value == "1" ? "true" : "false";
      settings.push_back(std::move(setting));
    }
    return settings;
  }

 private:
  // "MODEL.weight", where MODEL is that of an input "MODEL:TENSOR".
  static std::string owner_of(const PlannedTensor& tensor, const std::string& key) {
    for (const std::string& input : tensor.inputs) {
      const std::string model = model_of(input);
      if (key.size() > model.size() + 1 && key.starts_with(model) && key[model.size()] == '.') return model;
    }
    return "";
  }

  std::set<std::pair<std::string, std::string>> booleans_;
};

Json setting_json(const std::string& text) {
  if (text == "true" || text == "false") return Json(text == "true");
  double value = 0;
  const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (!text.empty() && problem == std::errc{} && stop == text.data() + text.size()) return Json(value);
  return Json(text);
}

std::string with_space(std::string text) { return text.empty() ? text : text + " "; }

/// The plan's settings, sorted into those that every computed tensor has alike and the others.
class PlanSettings {
 public:
  explicit PlanSettings(const JobReport& report) {
    std::map<std::string, std::pair<std::string, std::size_t>> seen;  // key: the text and how many tensors have just that
    std::size_t num_computed = 0;
    for (const PlannedTensor& tensor : report.tensors) {
      all_.push_back(reader_.settings(tensor));
      if (tensor.method == kCopy) continue;
      if (num_computed++ == 0) first_ = all_.back();
      for (const Setting& setting : all_.back()) {
        const auto [found, added] = seen.try_emplace(setting.model + "." + setting.name, setting.text, 0);
        if (found->second.first == setting.text) ++found->second.second;
      }
    }
    for (const auto& [key, value] : seen)
      if (value.second == num_computed) same_everywhere_.insert(key);
  }

  /// "lambda=1 normalize=true" of one model (or of all: ""), as far as it is the same for every tensor.
  [[nodiscard]] std::string common(const std::string& model) const {
    std::string text;
    for (const Setting& setting : first_)
      if (setting.model == model && is_common(setting)) text = with_space(text) + setting.name + "=" + setting.text;
    return text;
  }

  [[nodiscard]] bool any_particular() const {
    return std::any_of(all_.begin(), all_.end(), [this](const std::vector<Setting>& settings) {
      return std::any_of(settings.begin(), settings.end(), [this](const Setting& setting) { return !is_common(setting); });
    });
  }

  /// What is particular to these tensors. Along layers a parameter may follow a gradient: then the first and the last value are shown.
  [[nodiscard]] std::string particular(const FoldedTensors& group) const {
    const std::vector<Setting>& first = all_[group.members.front()];
    const std::vector<Setting>& last = all_[group.members.back()];
    std::string text;
    for (std::size_t i = 0; i < first.size(); ++i) {
      if (is_common(first[i])) continue;
      const std::string model = first[i].model.empty() ? "" : std::filesystem::path(first[i].model).filename().string() + " ";
      text = with_space(text) + model + first[i].name + "=" + first[i].text;
      if (i < last.size() && last[i].text != first[i].text) text += ".." + last[i].text;
    }
    return text;
  }

 private:
  [[nodiscard]] bool is_common(const Setting& setting) const { return same_everywhere_.contains(setting.model + "." + setting.name); }

  SettingReader reader_;
  std::vector<std::vector<Setting>> all_;  ///< by tensor
  std::vector<Setting> first_;             ///< of the first tensor that is computed
  std::set<std::string> same_everywhere_;
};

std::string files_text(const JobReport& report, const FoldedTensors& group) {
  const std::string& first = report.tensors[group.members.front()].file;
  for (const std::size_t i : group.members)
    if (report.tensors[i].file != first) return "several files";
  return first;
}

bool comes_from_elsewhere(const PlannedTensor& tensor) { return !tensor.inputs.empty() && tensor_of(tensor.inputs.front()) != tensor.name; }

/// Which models the tensor is made of, in short.
std::string sources_text(const PlannedTensor& tensor) {
  std::vector<std::string> models;
  for (const std::string& input : tensor.inputs) models.push_back(std::filesystem::path(model_of(input)).filename().string());
  return join(models, ", ");
}

/// The same with the tensors' names there, when those are others (layers that were stacked).
std::string sources_text(const JobReport& report, const FoldedTensors& group) {
  const PlannedTensor& first = report.tensors[group.members.front()];
  std::string text = sources_text(first);
  if (!comes_from_elsewhere(first)) return text;
  std::vector<std::string> names;
  for (const std::size_t i : group.members) names.push_back(tensor_of(report.tensors[i].inputs.front()));
  const std::vector<FoldedTensors> folded = fold_tensors(names, std::vector<std::string>(names.size()), false);
  return text + ": " + folded.front().name;
}

std::vector<std::string> models_of(const JobReport& report) {
  std::vector<std::string> models;
  std::set<std::string> seen;
  for (const PlannedTensor& tensor : report.tensors)
    for (const std::string& input : tensor.inputs)
      if (std::string model = model_of(input); seen.insert(model).second) models.push_back(std::move(model));
  return models;
}

}  // namespace

Json plan_json(const JobReport& report) {
  const SettingReader reader;
  Json::Array tensors;
  for (const PlannedTensor& tensor : report.tensors) {
    Json::Array inputs;
    for (const std::string& input : tensor.inputs) inputs.emplace_back(input);
    Json::Object parameters;
    for (const Setting& setting : reader.settings(tensor))
      parameters.emplace_back(setting.model.empty() ? setting.name : setting.model + "." + setting.name, setting_json(setting.text));
    tensors.emplace_back(Json::Object{{"name", Json(tensor.name)},
                                      {"dtype", Json(to_string(tensor.dtype))},
                                      {"shape", shape_json(tensor.shape)},
                                      {"inputs", Json(std::move(inputs))},
                                      {"method", Json(tensor.method)},
                                      {"parameters", Json(std::move(parameters))},
                                      {"file", Json(tensor.file)},
                                      {"offset", Json(tensor.offset_bytes)}});
  }
  return Json(Json::Object{
      {"tensors", Json(std::move(tensors))}, {"size_bytes", Json(report.size_bytes)}, {"peak_memory_bytes", Json(report.peak_memory_bytes)}});
}

void print_plan(const JobReport& report, const CommonOptions& options) {
  const PlanSettings settings(report);
  std::set<std::string> files;
  std::set<std::string> methods;
  std::size_t num_copies = 0;
  std::set<std::string> sources;
  std::vector<std::string> names;
  std::vector<std::string> alike;
  for (const PlannedTensor& tensor : report.tensors) {
    sources.insert(comes_from_elsewhere(tensor) ? tensor.name : sources_text(tensor));
    files.insert(tensor.file);
    num_copies += tensor.method == kCopy ? 1 : 0;
    if (tensor.method != kCopy) methods.insert(tensor.method);
    names.push_back(tensor.name);
    alike.push_back(std::string(to_string(tensor.dtype)) + to_string(tensor.shape) + tensor.method + sources_text(tensor) +
                    (comes_from_elsewhere(tensor) ? ":" : ""));
  }
  std::printf("%s %s\n", paint(stdout, Style::bold, "plan for").c_str(), report.output.c_str());

  Table facts({Align::left, Align::left, Align::left});
  facts.row({"method", join({methods.begin(), methods.end()}, ", "), settings.common("")});
  bool first_model = true;
  for (const std::string& model : models_of(report))
    facts.row({std::exchange(first_model, false) ? "models" : "", printable(model), settings.common(model)});
  facts.print(stdout, 2);

  const bool several_methods = methods.size() + (num_copies > 0 ? 1 : 0) > 1;
  Table table({Align::left, Align::right, Align::left, Align::left, Align::left, Align::left, Align::left, Align::left});
  table.header({"tensor", "count", "dtype", "shape", sources.size() > 1 ? "from" : "", several_methods ? "method" : "",
                settings.any_particular() ? "parameters" : "", files.size() > 1 ? "file" : ""});
  for (const FoldedTensors& group : fold_tensors(names, alike, options.verbose)) {
    const PlannedTensor& first = report.tensors[group.members.front()];
    table.row({group.name, std::to_string(group.members.size()), std::string(to_string(first.dtype)), to_string(first.shape),
               sources.size() > 1 ? sources_text(report, group) : "", several_methods ? first.method : "", settings.particular(group),
               files.size() > 1 ? files_text(report, group) : ""});
  }
  std::printf("\n");
  table.print(stdout, 2);
  std::printf("  %s\n", fmt::format("{} tensors, {} parameters, {} in {} file{}; about {} of memory; nothing was written", report.num_tensors,
                                    format_count(report.num_parameters), format_size(report.size_bytes), files.size(), files.size() == 1 ? "" : "s",
                                    format_size(report.peak_memory_bytes))
                            .c_str());
}

}  // namespace weft::app
