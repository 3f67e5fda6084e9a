#include "weft/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "base/file.h"
#include "base/text.h"
#include "base/writable.h"
#include "commands.h"
#include "common.h"
#include "result.h"
#include "weft/report.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::vector<std::string> models;
  std::string base;
  std::vector<std::string> what;
  std::string csv;
  std::string report;
  std::vector<std::string> texts;
  WeightWatcherSettings weightwatcher;
  std::uint64_t window = 0;
  std::uint64_t tokens = MeasureOptions{}.max_tokens;
  CurvatureSettings curvature;
  std::vector<NeuronClamp> clamps;
};

// ---- JSON ----

Json measures_json(const Measures& measures) {
  Json::Object object;
  for (const auto& [name, value] : measures.values) {
    // Counts are shown as such.
    const bool whole = value == std::floor(value) && std::abs(value) < 9e15;
    object.emplace_back(name, whole ? Json(static_cast<std::int64_t>(value)) : Json(value));
  }
  return Json(std::move(object));
}

Json texts_json(const std::vector<std::pair<std::string, std::string>>& texts) {
  Json::Object object;
  for (const auto& [name, text] : texts) object.emplace_back(name, Json(text));
  return Json(std::move(object));
}

Json tensor_json(const MeasuredTensor& tensor) {
  Json::Object object = {
      {"name", Json(tensor.name)},         {"role", text_or_null(tensor.role)},        {"block", tensor.block >= 0 ? Json(tensor.block) : Json()},
      {"shape", shape_json(tensor.shape)}, {"values", measures_json(tensor.measures)}, {"skipped", texts_json(tensor.measures.skipped)}};
  if (!tensor.measures.labels.empty()) object.emplace_back("labels", texts_json(tensor.measures.labels));
  if (!tensor.notes.empty()) {
    Json::Array notes;
    for (const std::string& note : tensor.notes) notes.emplace_back(note);
    object.emplace_back("notes", Json(std::move(notes)));
  }
  return Json(std::move(object));
}

Json blocks_json(const std::vector<MeasuredBlock>& blocks) {
  Json::Array array;
  for (const MeasuredBlock& block : blocks) {
    Json::Object object = {{"block", Json(block.block)}, {"values", measures_json(block.measures)}, {"skipped", texts_json(block.measures.skipped)}};
    if (!block.measures.labels.empty()) object.emplace_back("labels", texts_json(block.measures.labels));
    array.emplace_back(std::move(object));
  }
  return Json(std::move(array));
}

Json report_json(const MeasureReport& report) {
  Json::Array models, comparisons, findings, warnings;
  for (const MeasuredModel& model : report.models) {
    Json::Array tensors;
    for (const MeasuredTensor& tensor : model.tensors) tensors.push_back(tensor_json(tensor));
    Json::Object object = {{"path", Json(model.path)},
                           {"tensors", Json(std::move(tensors))},
                           {"blocks", blocks_json(model.blocks)},
                           {"model", measures_json(model.model)}};
    if (!model.model.skipped.empty()) object.emplace_back("skipped", texts_json(model.model.skipped));
    if (!model.model.labels.empty()) object.emplace_back("labels", texts_json(model.model.labels));
    models.emplace_back(std::move(object));
  }
  for (const ModelComparison& comparison : report.comparisons) {
    Json::Array names, tensors;
    for (const std::string& name : comparison.models) names.emplace_back(name);
    for (const MeasuredTensor& tensor : comparison.tensors) tensors.push_back(tensor_json(tensor));
    comparisons.emplace_back(Json::Object{{"kind", Json(comparison.kind)},
                                          {"models", Json(std::move(names))},
                                          {"base", text_or_null(comparison.base)},
                                          {"tensors", Json(std::move(tensors))},
                                          {"blocks", blocks_json(comparison.blocks)},
                                          {"total", measures_json(comparison.total)},
                                          {"skipped", texts_json(comparison.total.skipped)}});
    if (!comparison.total.labels.empty()) comparisons.back().set("labels", texts_json(comparison.total.labels));
  }
  for (const MeasureFinding& finding : report.findings)
    findings.emplace_back(Json::Object{{"severity", Json(finding.severity)},
                                       {"what", Json(finding.what)},
                                       {"where", Json(finding.where)},
                                       {"evidence", Json(finding.evidence)},
                                       {"rule", Json(finding.rule)},
                                       {"null_rate", Json(finding.null_rate)}});
  for (const std::string& warning : report.warnings) warnings.emplace_back(warning);
  return Json(Json::Object{{"models", Json(std::move(models))},
                           {"comparisons", Json(std::move(comparisons))},
                           {"findings", Json(std::move(findings))},
                           {"warnings", Json(std::move(warnings))}});
}

// ---- CSV ----

std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"\n\r") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

/// One line a tensor of each model, one column a measure.
std::string csv_text(const MeasureReport& report) {
  std::vector<std::string> columns;
  std::set<std::string> known;
  for (const MeasuredModel& model : report.models)
    for (const MeasuredTensor& tensor : model.tensors)
      for (const auto& [name, value] : tensor.measures.values)
        if (known.insert(name).second) columns.push_back(name);
  std::string text = "model,name,role,block,shape";
  for (const std::string& column : columns) text += "," + csv_field(column);
  text += "\n";
  for (const MeasuredModel& model : report.models) {
    for (const MeasuredTensor& tensor : model.tensors) {
      std::string shape;
      for (const std::int64_t dim : tensor.shape) shape += (shape.empty() ? "" : "x") + std::to_string(dim);
      text += csv_field(model.path) + "," + csv_field(tensor.name) + "," + csv_field(tensor.role) + "," +
              (tensor.block >= 0 ? std::to_string(tensor.block) : "") + "," + shape;
      std::map<std::string_view, double> values;
      for (const auto& [name, value] : tensor.measures.values) values.emplace(name, value);
      for (const std::string& column : columns) {
        const auto found = values.find(column);
        text += found == values.end() ? "," : fmt::format(",{}", found->second);
      }
      text += "\n";
    }
  }
  return text;
}

/// The table's file, looked at before the work: what cannot be written is told at once, and why. An existing file stays until there is something to put
/// in its place.
class CsvFile {
 public:
  explicit CsvFile(const std::string& path) : path_(path) {
    if (path == "-") return;
    require_writable(path, "table", "--csv");
  }
  void write(const MeasureReport& report) const {
    const std::string text = csv_text(report);
    std::FILE* file = path_ == "-" ? stdout : std::fopen(path_.c_str(), "we");
    if (file == nullptr) throw path_error(errno, "write", path_);
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size() && std::fflush(file) == 0;
    const int reason = errno;
    const bool closed = file == stdout || std::fclose(file) == 0;
    if (!written || !closed) throw path_error(written ? errno : reason, "write", path_);
  }

 private:
  std::string path_;
};

// ---- Text ----

std::string kind_of(const MeasuredTensor& tensor) {
  if (!tensor.role.empty()) return tensor.role;
  std::string name = tensor.name;
  if (const std::size_t dot = name.rfind('.'); dot != std::string::npos) name.resize(dot);
  return printable(name.substr(name.rfind('.') + 1), 30);
}

std::string short_number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e6) return fmt::format("{:.0f}", value);
  return std::abs(value) >= 0.01 && std::abs(value) < 1e5 ? fmt::format("{:.4g}", value) : fmt::format("{:.2e}", value);
}

/// "1.16..1.21" of one measure over tensors.
std::string range_text(const std::vector<const MeasuredTensor*>& tensors, const char* measure) {
  double least = 0, most = 0;
  bool any = false;
  for (const MeasuredTensor* tensor : tensors) {
    const double* value = tensor->measures.find(measure);
    if (value == nullptr) continue;
    least = any ? std::min(least, *value) : *value;
    most = any ? std::max(most, *value) : *value;
    any = true;
  }
  if (!any) return "-";
  const std::string low = short_number(least), high = short_number(most);
  return low == high ? low : low + ".." + high;
}

struct Column {
  const char* measure;
  const char* title;
};
constexpr Column kColumns[] = {{"moments.variance", "variance"}, {"weibull.k", "Weibull k"},  {"ranks.stable_rank", "stable rank"},
                               {"powerlaw.alpha", "alpha"},      {"powerlaw.D", "D"},         {"mp.spikes", "spikes"},
                               {"ranks.spectral", "s_1"},        {"gated.mean.io", "mean io"}};

/// "1.2 .. 3.4"
std::string span_text(const Measures& measures, const std::string& prefix, std::size_t count) {
  double least = 0, most = 0;
  bool any = false;
  for (std::size_t i = 0; i < count; ++i) {
    const double* value = measures.find(fmt::format("{}{}", prefix, i));
    if (value == nullptr) continue;
    least = any ? std::min(least, *value) : *value;
    most = any ? std::max(most, *value) : *value;
    any = true;
  }
  return any ? short_number(least) + ".." + short_number(most) : "-";
}

/// How the loss curves around the model, and what holding neurons does.
void print_surroundings(const MeasuredModel& model) {
  const Measures& m = model.model;
  const auto text_of = [&m](const char* name) {
    const double* value = m.find(name);
    return value == nullptr ? std::string("-") : short_number(*value);
  };
  if (m.find("hessian.largest") != nullptr) {
    std::printf("  Hessian of the loss over %s tokens: largest eigenvalue %s, smallest %s (ratio %s)", text_of("hessian.tokens").c_str(),
                text_of("hessian.largest").c_str(), text_of("hessian.smallest").c_str(), text_of("hessian.re").c_str());
    if (m.find("hessian.trace") != nullptr)
      std::printf(", trace %s, standard error %s", text_of("hessian.trace").c_str(), text_of("hessian.trace_error").c_str());
    std::printf("\n");
  }
  Table table({Align::left, Align::right, Align::right, Align::right, Align::right});
  table.header({"loss along", "range", "curvature", "ends over middle", "lowest at"});
  bool any = false;
  std::size_t points = 0;
  while (m.find(fmt::format("landscape.positions.{}", points)) != nullptr) ++points;
  for (const char* axis : {"random_0", "random_1", "hessian_0", "hessian_1"}) {
    const std::string at = fmt::format("landscape.line.{}.", axis);
    if (m.find(at + "curvature") == nullptr && m.find(at + "loss.0") == nullptr) continue;
    any = true;
    table.row({axis, span_text(m, at + "loss.", points), text_of((at + "curvature").c_str()), text_of((at + "rise").c_str()),
               text_of((at + "lowest_at").c_str())});
  }
  if (any) table.print(stdout, 2);
  if (m.find("clamp.count") == nullptr) return;
  Table clamps({Align::right, Align::right, Align::right, Align::left, Align::right, Align::right, Align::right});
  clamps.header({"layer", "neuron", "held at", "token", "its score", "log p", "held"});
  const auto number = [&m](const std::string& name) {
    const double* value = m.find(name);
    return value == nullptr ? std::string("-") : short_number(*value);
  };
  for (int c = 0; m.find(fmt::format("clamp.{}.layer", c)) != nullptr; ++c) {
    const std::string at = fmt::format("clamp.{}.", c);
    std::string token = number(at + "token");
    for (const auto& [name, text] : m.labels)
      if (name == at + "token") token += " \"" + printable(text, 30) + "\"";
    clamps.row(
        {number(at + "layer"), number(at + "neuron"), number(at + "value"), token, number(at + "score"), number(at + "plain"), number(at + "held")});
  }
  clamps.print(stdout, 2);
}

/// What layers do with the text, and how far texts are from each other.
void print_text(const MeasuredModel& model) {
  if (const double* loss = model.model.find("text.loss")) std::printf("  loss %.4f over %.0f tokens\n", *loss, *model.model.find("text.tokens"));
  constexpr Column kLayerColumns[] = {{"importance.lim", "LIM"},
                                      {"importance.zd", "ZD"},
                                      {"heads.without_first_two.head_cosine", "heads alike"},
                                      {"heads.without_first_two.entropy_std", "entropy sd"},
                                      {"w_pca.components.0.99", "components"},
                                      {"super_weights.in", "largest in"},
                                      {"super_weights.out", "largest out"},
                                      {"super_weights.loss_change", "loss without it"}};
  std::vector<Column> columns;
  for (const Column& column : kLayerColumns)
    if (std::any_of(model.blocks.begin(), model.blocks.end(), [&](const MeasuredBlock& b) { return b.measures.find(column.measure) != nullptr; }))
      columns.push_back(column);
  if (!columns.empty()) {
    std::vector<Align> aligns(columns.size() + 2, Align::right);
    std::vector<std::string> header = {"layer", "utilized"};
    for (const Column& column : columns) header.emplace_back(column.title);
    Table table(aligns);
    table.header(header);
    for (const MeasuredBlock& block : model.blocks) {
      std::vector<const MeasuredTensor*> own;
      for (const MeasuredTensor& tensor : model.tensors)
        if (tensor.block == block.block) own.push_back(&tensor);
      std::vector<std::string> cells = {std::to_string(block.block), range_text(own, "utilized_rank.0.99.utilisation")};
      for (const Column& column : columns) {
        const double* value = block.measures.find(column.measure);
        cells.push_back(value == nullptr ? "-" : short_number(*value));
      }
      table.row(std::move(cells));
    }
    table.print(stdout, 2);
  }
  std::vector<std::string> texts;
  for (const auto& [name, text] : model.model.labels)
    if (name.starts_with("language_geometry.texts.")) texts.push_back(text);
  if (texts.empty()) return;
  std::vector<Align> aligns(texts.size() + 2, Align::right);
  aligns[1] = Align::left;
  Table table(aligns);
  std::vector<std::string> header = {"", "distance of texts"};
  for (std::size_t i = 0; i < texts.size(); ++i) header.push_back(std::to_string(i + 1));
  table.header(header);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::vector<std::string> cells = {std::to_string(i + 1), printable(texts[i], 60)};
    for (std::size_t j = 0; j < texts.size(); ++j) {
      const double* value = i == j ? nullptr : model.model.find(fmt::format("language_geometry.0.5.hamming.{}.{}", std::min(i, j), std::max(i, j)));
      cells.push_back(value == nullptr ? "-" : fmt::format("{:.3f}", *value));
    }
    table.row(std::move(cells));
  }
  table.print(stdout, 2);
  // The tree, from the nearest pair on.
  const std::size_t n = texts.size();
  std::vector<std::string> groups(n);
  for (std::size_t i = 0; i < n; ++i) groups[i] = std::to_string(i + 1);
  std::string tree;
  for (std::size_t k = 0; k + 1 < n; ++k) {
    const double* a = model.model.find(fmt::format("language_geometry.0.5.tree.{}.a", k));
    const double* b = model.model.find(fmt::format("language_geometry.0.5.tree.{}.b", k));
    const double* height = model.model.find(fmt::format("language_geometry.0.5.tree.{}.height", k));
    if (a == nullptr || b == nullptr || height == nullptr) return;
    groups.push_back("(" + groups[static_cast<std::size_t>(*a)] + " " + groups[static_cast<std::size_t>(*b)] + ")");
    tree = fmt::format("nearest first: {}, the last two {:.3f} apart", groups.back(), *height);
  }
  std::printf("  %s\n", paint(stdout, Style::dim, tree).c_str());
}

void print_model(const MeasuredModel& model, const Arguments& arguments) {
  const auto number = [&model](const char* name) {
    const double* value = model.model.find(name);
    return value == nullptr ? 0.0 : *value;
  };
  std::printf("%s: %s parameters, %.0f tensors", paint(stdout, Style::bold, printable(model.path)).c_str(),
              format_count(static_cast<std::uint64_t>(number("model.num_parameters"))).c_str(), number("model.num_tensors"));
  // Where no spectrum was asked for, none is known to be a matrix.
  if (number("model.num_matrices") > 0) std::printf(", %.0f matrices", number("model.num_matrices"));
  std::printf("\n");
  // Kinds in the order in which they first appear; with --verbose every tensor is its own.
  std::vector<std::pair<std::string, std::vector<const MeasuredTensor*>>> kinds;
  for (const MeasuredTensor& tensor : model.tensors) {
    const std::string kind = arguments.common.verbose ? printable(tensor.name) : kind_of(tensor);
    auto found = std::find_if(kinds.begin(), kinds.end(), [&kind](const auto& each) { return each.first == kind; });
    if (found == kinds.end()) found = kinds.insert(kinds.end(), {kind, {}});
    found->second.push_back(&tensor);
  }
  std::vector<Column> columns;
  for (const Column& column : kColumns)
    if (std::any_of(model.tensors.begin(), model.tensors.end(), [&](const MeasuredTensor& t) { return t.measures.find(column.measure) != nullptr; }))
      columns.push_back(column);
  std::vector<Align> aligns = {Align::left, Align::right, Align::left};
  std::vector<std::string> header = {"kind", "", "shape"};
  for (const Column& column : columns) {
    aligns.push_back(Align::right);
    header.emplace_back(column.title);
  }
  Table table(aligns);
  table.header(header);
  for (const auto& [kind, tensors] : kinds) {
    const bool alike = std::all_of(tensors.begin(), tensors.end(), [&](const MeasuredTensor* t) { return t->shape == tensors.front()->shape; });
    std::vector<std::string> cells = {kind, std::to_string(tensors.size()), alike ? to_string(tensors.front()->shape) : "various"};
    for (const Column& column : columns) cells.push_back(range_text(tensors, column.measure));
    table.row(std::move(cells));
  }
  table.print(stdout, 2);
  print_text(model);
  print_surroundings(model);
  // What was done with what is no plain matrix, and why others were left out: each reason once.
  std::map<std::string, std::vector<std::string>> reasons;
  for (const MeasuredTensor& tensor : model.tensors) {
    for (const std::string& note : tensor.notes) reasons[note].push_back(tensor.name);
    std::set<std::string> own;
    for (const auto& [name, reason] : tensor.measures.skipped)
      if (reason != "vector" && !reason.starts_with("undefined") && own.insert(reason).second)
        reasons[name.substr(0, name.find('.')) + ": " + reason].push_back(tensor.name);
  }
  for (const auto& [reason, names] : reasons)
    std::printf("  %s\n",
                wrap(fmt::format("{}{}: {}", printable(names.front()), names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "", reason),
                     terminal_width(stdout), 4)
                    .c_str());
}

double total_of(const ModelComparison& comparison, const std::string& name) {
  const double* value = comparison.total.find(name);
  return value == nullptr ? 0 : *value;
}

/// A line for each kind of layer.
void print_pair(const ModelComparison& pair) {
  std::printf("\n%s\n", paint(stdout, Style::bold, printable(pair.models.front()) + " against " + printable(pair.base)).c_str());
  std::vector<std::pair<std::string, std::vector<const MeasuredTensor*>>> kinds;
  for (const MeasuredTensor& tensor : pair.tensors) {
    const std::string kind = kind_of(tensor);
    auto found = std::find_if(kinds.begin(), kinds.end(), [&kind](const auto& each) { return each.first == kind; });
    if (found == kinds.end()) found = kinds.insert(kinds.end(), {kind, {}});
    found->second.push_back(&tensor);
  }
  Table table({Align::left, Align::right, Align::right, Align::right, Align::right, Align::right, Align::right});
  table.header({"kind", "", "changed", "relative", "cosine", "rank of 99 %", "intruders"});
  for (const auto& [kind, tensors] : kinds) {
    double changed = 0, elements = 0, intruders = 0;
    bool looked = false;
    for (const MeasuredTensor* tensor : tensors) {
      const auto add = [tensor](const char* name, double& sum) {
        const double* value = tensor->measures.find(name);
        if (value != nullptr) sum += *value;
        return value != nullptr;
      };
      (void)add("changed.changed", changed);
      (void)add("changed.elements", elements);
      looked = add("intruders.count_left.0.5", intruders) || looked;
    }
    table.row({kind, std::to_string(tensors.size()), elements > 0 ? fmt::format("{:.1f} %", 100 * changed / elements) : "-",
               range_text(tensors, "difference.relative"), range_text(tensors, "difference.cos"), range_text(tensors, "difference.energy_rank.0.99"),
               looked ? short_number(intruders) : "-"});
  }
  table.print(stdout, 2);
  if (pair.total.find("intruders.count_left.0.5") != nullptr)
    std::printf(
        "  %s\n",
        paint(stdout, Style::dim,
              fmt::format("{:.0f} intruders (of the 10 strongest directions, largest cosine with the base below 0.5), {:.0f} of them outside of "
                          "the base's top 30",
                          total_of(pair, "intruders.count_left.0.5"), total_of(pair, "intruders.outside_subspace")))
            .c_str());
}

/// Cosines between task vectors.
void print_set(const ModelComparison& set) {
  std::printf("\n%s\n", paint(stdout, Style::bold, "task vectors on " + printable(set.base)).c_str());
  std::vector<Align> aligns(set.models.size() + 2, Align::right);
  aligns[1] = Align::left;
  Table table(aligns);
  std::vector<std::string> header = {"", "cosine"};
  for (std::size_t j = 0; j < set.models.size(); ++j) header.push_back(std::to_string(j + 1));
  table.header(header);
  for (std::size_t i = 0; i < set.models.size(); ++i) {
    std::vector<std::string> cells = {std::to_string(i + 1), printable(set.models[i])};
    for (std::size_t j = 0; j < set.models.size(); ++j) {
      const double* cosine = set.total.find(fmt::format("task_vectors.cosine.all tensors.{}.{}", i, j));
      cells.push_back(cosine == nullptr ? "-" : fmt::format("{:.3f}", *cosine));
    }
    table.row(std::move(cells));
  }
  table.print(stdout, 2);
  const double changed = total_of(set, "task_vectors.signs.changed_by_two_or_more");
  if (changed > 0)
    std::printf("  %s\n", paint(stdout, Style::dim,
                                fmt::format("of the elements that two or more changed, {:.1f} % are raised by one and lowered by another",
                                            100 * total_of(set, "task_vectors.signs.conflicting") / changed))
                              .c_str());
}

void print_widths(const ModelComparison& widths) {
  std::printf("\n%s\n", paint(stdout, Style::bold, "largest singular value from the narrowest to the widest model").c_str());
  Table table({Align::left, Align::right, Align::right});
  table.header({"kind", "ratio", "exponent"});
  for (const auto& [name, value] : widths.total.values) {
    constexpr std::string_view kPrefix = "scaling.s1_ratio.";
    if (!name.starts_with(kPrefix)) continue;
    const std::string kind = name.substr(kPrefix.size());
    table.row({kind, short_number(value), short_number(total_of(widths, "scaling.exponent." + kind))});
  }
  table.print(stdout, 2);
}

/// The same measure of each kind along a set of models of one signature: medians.
void print_trajectories(const MeasureReport& report) {
  const auto median = [](const MeasuredModel& model, const std::string& kind, const char* measure) {
    std::vector<double> values;
    for (const MeasuredTensor& tensor : model.tensors)
      if (kind_of(tensor) == kind)
        if (const double* value = tensor.measures.find(measure)) values.push_back(*value);
    if (values.empty()) return std::string("-");
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return short_number(values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2);
  };
  std::vector<std::string> kinds;
  for (const MeasuredTensor& tensor : report.models.front().tensors)
    if (tensor.shape.size() >= 2 && std::find(kinds.begin(), kinds.end(), kind_of(tensor)) == kinds.end()) kinds.push_back(kind_of(tensor));
  std::printf("%s\n", paint(stdout, Style::bold, fmt::format("{} models of one signature", report.models.size())).c_str());
  for (std::size_t m = 0; m < report.models.size(); ++m) {
    std::string changed;
    for (const ModelComparison& comparison : report.comparisons)
      if (comparison.kind == "path" && comparison.models.front() == report.models[m].path && comparison.total.find("changed.share") != nullptr)
        changed = fmt::format(", {:.1f} % of the elements changed", 100 * total_of(comparison, "changed.share"));
    std::printf("  %zu  %s%s\n", m + 1, printable(report.models[m].path).c_str(), changed.c_str());
  }
  for (const Column& column : kColumns) {
    std::vector<Align> aligns(report.models.size() + 1, Align::right);
    aligns[0] = Align::left;
    Table table(aligns);
    std::vector<std::string> header = {column.title};
    for (std::size_t m = 0; m < report.models.size(); ++m) header.push_back(std::to_string(m + 1));
    table.header(header);
    bool any = false;
    for (const std::string& kind : kinds) {
      std::vector<std::string> cells = {kind};
      for (const MeasuredModel& model : report.models) cells.push_back(median(model, kind, column.measure));
      any = any || std::any_of(cells.begin() + 1, cells.end(), [](const std::string& cell) { return cell != "-"; });
      table.row(std::move(cells));
    }
    if (!any) continue;
    std::printf("\n");
    table.print(stdout, 2);
  }
}

/// Where each model stands in the loss landscape.
void print_phases(const MeasureReport& report) {
  Table table({Align::left, Align::left, Align::left, Align::right, Align::right, Align::right});
  table.header({"phase", "model", "against", "loss", "connectivity", "similarity"});
  bool any = false;
  for (const ModelComparison& comparison : report.comparisons)
    for (const auto& [name, phase] : comparison.total.labels) {
      if (name != "phases.phase") continue;
      any = true;
      const auto number = [&comparison](const char* measure) { return short_number(total_of(comparison, measure)); };
      table.row({phase, printable(comparison.models.front()), printable(comparison.base), number("phases.loss"), number("phases.connectivity"),
                 number("phases.similarity")});
    }
  if (!any) return;
  std::printf("\n%s\n",
              paint(stdout, Style::bold, "phases: I, II large loss, III, IV small; I, III behind a barrier; IV-A unlike, IV-B alike").c_str());
  table.print(stdout, 2);
}

void print_report(const MeasureReport& report, const Arguments& arguments) {
  const bool path = std::any_of(report.comparisons.begin(), report.comparisons.end(), [](const ModelComparison& c) { return c.kind == "path"; });
  if (path && report.models.size() > 2 && !arguments.common.verbose) {
    print_trajectories(report);
  } else {
    for (std::size_t m = 0; m < report.models.size(); ++m) {
      if (m > 0) std::printf("\n");
      print_model(report.models[m], arguments);
    }
  }
  for (const ModelComparison& comparison : report.comparisons) {
    if (comparison.kind == "pair") print_pair(comparison);
    if (comparison.kind == "set") print_set(comparison);
    if (comparison.kind == "widths") print_widths(comparison);
  }
  print_phases(report);
  if (report.findings.empty()) return;
  std::printf("\n%s\n", paint(stdout, Style::bold, "findings").c_str());
  for (const MeasureFinding& finding : report.findings) {
    const Style style = finding.severity == "problem" ? Style::red : finding.severity == "warning" ? Style::yellow : Style::dim;
    std::printf(
        "  %s %s\n", paint(stdout, style, finding.severity + ":").c_str(),
        wrap(printable(finding.where, 300) + ": " + finding.what + " (" + printable(finding.evidence, 300) + ")", terminal_width(stdout), 4).c_str());
  }
}

/// "min_evals=50,xmax=-2,fix_fingers=clip_xmax", as one tells WeightWatcher.
WeightWatcherSettings weightwatcher_argument(const std::string& text) {
  WeightWatcherSettings settings;
  const auto refuse = [&](const std::string& what) -> void {
    throw Error(ErrorCode::invalid_argument, "'" + printable(what) + "' is no setting of WeightWatcher's that is known here",
                {.key = "--weightwatcher"}, "there are: min_evals=N, xmax=-K, fix_fingers=clip_xmax");
  };
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string setting = text.substr(begin, end - begin);
    begin = end + 1;
    if (setting.empty()) continue;
    const std::size_t equals = std::min(setting.find('='), setting.size());
    const std::string name = setting.substr(0, equals), value = setting.substr(std::min(equals + 1, setting.size()));
    const std::string digits = name == "xmax" && value.starts_with('-') ? value.substr(1) : value;
    const bool is_number = !digits.empty() && digits.size() < 10 && digits.find_first_not_of("0123456789") == std::string::npos;
    if (name == "fix_fingers" && value == "clip_xmax") {
      settings.clip_fingers = true;
    } else if (name == "min_evals" && is_number) {
      settings.min_evals = std::stoull(digits);
    } else if (name == "xmax" && is_number && value.starts_with('-')) {
      settings.drop_largest = std::stoull(digits);
    } else {
      refuse(setting);
    }
  }
  return settings;
}

/// A whole number; refuses all else with what is allowed.
std::uint64_t whole_number(const std::string& digits, const char* key, const char* advice) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || digits.empty() || end != digits.data() + digits.size())
    throw Error(ErrorCode::invalid_argument, "'" + printable(digits) + "' is no whole number", {.key = key}, advice);
  return value;
}

/// "steps=100,normalise=layer,plane=no"
void curvature_argument(const std::string& text, CurvatureSettings& settings) {
  constexpr const char* kAdvice = "there are: tokens=N, steps=N, runs=N, samples=N, points=N, plane=yes|no, normalise=none|weight|layer|filter|model";
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string setting = text.substr(begin, end - begin);
    begin = end + 1;
    if (setting.empty()) continue;
    const std::size_t equals = std::min(setting.find('='), setting.size());
    const std::string name = setting.substr(0, equals), value = setting.substr(std::min(equals + 1, setting.size()));
    std::uint64_t* number = name == "tokens"    ? &settings.tokens
                            : name == "steps"   ? &settings.steps
                            : name == "runs"    ? &settings.runs
                            : name == "samples" ? &settings.samples
                            : name == "points"  ? &settings.points
                                                : nullptr;
    if (number != nullptr) {
      *number = whole_number(value, "--curvature", kAdvice);
    } else if (name == "plane" && (value == "yes" || value == "no")) {
      settings.plane = value == "yes";
    } else if (name == "normalise") {
      settings.normalise = value;
    } else {
      throw Error(ErrorCode::invalid_argument, "'" + printable(setting) + "' says nothing about how to look at the loss", {.key = "--curvature"},
                  kAdvice);
    }
  }
}

/// "3:100=-1.5": neuron 100 of layer 3.
NeuronClamp clamp_argument(const std::string& text) {
  constexpr const char* kAdvice = "write LAYER:NEURON=VALUE, as in 3:100=-1.5";
  const std::size_t colon = text.find(':'), equals = text.find('=');
  if (colon == std::string::npos || equals == std::string::npos || equals < colon)
    throw Error(ErrorCode::invalid_argument, "'" + printable(text) + "' names no neuron and value", {.key = "--clamp"}, kAdvice);
  NeuronClamp clamp;
  clamp.layer = static_cast<int>(std::min<std::uint64_t>(whole_number(text.substr(0, colon), "--clamp", kAdvice), 1'000'000));
  clamp.neuron = whole_number(text.substr(colon + 1, equals - colon - 1), "--clamp", kAdvice);
  const char* first = text.data() + equals + 1;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(first, last, clamp.value);
  if (error != std::errc() || end != last || first == last || !std::isfinite(clamp.value))
    throw Error(ErrorCode::invalid_argument, "'" + printable(text) + "' ends in no finite number", {.key = "--clamp"}, kAdvice);
  return clamp;
}

int run_measure(const Arguments& arguments) {
  Console console(arguments.common);
  MeasureOptions options;
  console.fill(options);
  options.base = arguments.base;
  options.what = arguments.what;
  options.texts.assign(arguments.texts.begin(), arguments.texts.end());
  options.window = arguments.window;
  options.weightwatcher = arguments.weightwatcher;
  options.max_tokens = arguments.tokens;
  options.curvature = arguments.curvature;
  options.clamps = arguments.clamps;
  if (!arguments.report.empty()) require_reports(arguments.report);
  std::optional<CsvFile> csv;
  if (!arguments.csv.empty()) csv.emplace(arguments.csv);
  const MeasureReport report = measure_models(arguments.models, options);
  console.finish();
  if (csv) csv->write(report);
  if (!arguments.report.empty()) write_report(report, arguments.report);
  if (arguments.common.json) {
    print_json(report_json(report));
  } else if (!arguments.common.quiet && arguments.csv != "-") {
    print_report(report, arguments);
  }
  return 0;
}

}  // namespace

Command measure_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "measure";
  command.family = "Look";
  command.summary = "what is in these weights, what changed, is it healthy";
  command.synopsis = "MODEL... [OPTION]...";
  command.description =
      "Measures weights: distributions, singular spectra, ranks, power laws, what noise alone would show, neurons; with --base also "
      "what "
      "changed, and in which directions; with several models how their changes meet; with --text what layers do with it. A line for each kind of "
      "layer shows the range, findings say in "
      "words what stands out. --json and --csv have every number of every tensor, and a reason where there is none.\n\n"
      "Groups of measures that cost much are left out of large matrices unless named with --what.";
  command.example = "weft measure models/tiny-german --base models/tiny-base";
  command.positional("MODEL", arguments->models, kModelHelp);
  command.group("Measuring");
  command.path({"--base"}, "MODEL", arguments->base, "compare every model with this one");
  std::vector<std::string> names;
  for (const MeasurementDescription& group : list_measurements()) names.push_back(group.name);
  Option& what = command.custom({"--what"}, "LIST", "groups of measures, separated by commas, or all: " + join(names, ", "),
                                [arguments](const std::string& text) {
                                  for (std::size_t begin = 0; begin <= text.size();) {
                                    const std::size_t end = std::min(text.find(',', begin), text.size());
                                    if (end > begin) arguments->what.push_back(text.substr(begin, end - begin));
                                    begin = end + 1;
                                  }
                                });
  what.default_text = "all, but costly ones only for small matrices";
  what.repeated = true;
  Option& text = command.custom({"--text"}, "FILE",
                                "run this text through the models and measure what layers do with it; several also give the distances between them",
                                [arguments](const std::string& file) { arguments->texts.push_back(file); });
  text.kind = ValueKind::path;
  text.repeated = true;
  command.number({"--window"}, arguments->window, "tokens that are run together").default_text = "256, or the model's context";
  command.number({"--tokens"}, arguments->tokens, "how much of the first text").default_text = "8192";
  command
      .custom({"--weightwatcher"}, "LIST", "settings of the group weightwatcher: min_evals=N, xmax=-K, fix_fingers=clip_xmax",
              [arguments](const std::string& list) { arguments->weightwatcher = weightwatcher_argument(list); })
      .default_text = "min_evals=8";
  command
      .custom({"--curvature"}, "LIST",
              "how hessian and landscape look at the loss: tokens=N, steps=N (of Lanczos), runs=N, samples=N (of the trace), points=N (of a line), "
              "plane=yes|no, normalise=none|weight|layer|filter|model",
              [arguments](const std::string& list) { curvature_argument(list, arguments->curvature); })
      .default_text = "tokens=1024,steps=30,runs=1,samples=10,points=21,plane=yes,normalise=filter";
  Option& clamp = command.custom({"--clamp"}, "LAYER:NEURON=VALUE", "hold this input of the layer's down projection at a value (for the group clamp)",
                                 [arguments](const std::string& neuron) { arguments->clamps.push_back(clamp_argument(neuron)); });
  clamp.repeated = true;
  clamp.default_text = "of each layer the neuron that decodes most clearly";
  command.path({"--csv"}, "OUT", arguments->csv, "write a table: a line for each tensor, a column for each measure (- for standard output)");
  command.path({"--report"}, "OUT.html", arguments->report, kReportHelp);
  command.number({"--seed"}, arguments->common.seed, "seed of random comparisons").default_text = "0";
  add_print_options(command, arguments->common);
  add_job_options(command, arguments->common);
  command.run = [arguments] { return run_measure(*arguments); };
  return command;
}

}  // namespace weft::app
