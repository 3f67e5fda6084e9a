#include "weft/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>

#include "base/text.h"
#include "engine/measure_compare.h"
#include "engine/measure_input.h"
#include "engine/measure_tensor.h"
#include "engine/measure_text.h"
#include "engine/split_tensors.h"
#include "engine/units.h"
#include "measure/activations.h"
#include "measure/curvature.h"
#include "measure/findings.h"
#include "measure/phases.h"
#include "measure/table.h"
#include "weft/error.h"

namespace weft {
namespace {

using engine::MeasuredInput;
using engine::TensorMeasurement;
using measure::Selection;

/// Means over a model's matrices, as WeightWatcher's summary, and medians beside them.
void summarize(MeasuredModel& model) {
  Measures& out = model.model;
  double num_elements = 0, num_matrices = 0;
  for (const MeasuredTensor& tensor : model.tensors) {
    double n = 1;
    for (const std::int64_t dim : tensor.shape) n *= static_cast<double>(dim);
    num_elements += n;
    num_matrices += tensor.measures.find("ranks.stable_rank") != nullptr;
  }
  measure::put(out, "model.num_tensors", static_cast<double>(model.tensors.size()));
  measure::put(out, "model.num_matrices", num_matrices);
  measure::put(out, "model.num_parameters", num_elements);
  for (const char* key : {"log_norm", "alpha", "alpha_weighted", "log_alpha_norm", "log_spectral_norm", "stable_rank", "mp_softrank"}) {
    std::vector<double> values;
    double sum = 0, weighted = 0, weight = 0;
    for (const MeasuredTensor& tensor : model.tensors) {
      const double* value = tensor.measures.find((std::string(key) == "mp_softrank" ? "mp_fit." : "weightwatcher.") + std::string(key));
      if (value == nullptr) continue;
      double n = 1;
      for (const std::int64_t dim : tensor.shape) n *= static_cast<double>(dim);
      values.push_back(*value);
      sum += *value;
      weighted += *value * n;
      weight += n;
    }
    if (values.empty()) continue;
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    measure::put(out, std::string("summary.") + key, sum / static_cast<double>(values.size()));
    measure::put(out, std::string("summary_median.") + key, values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2);
    measure::put(out, std::string("summary_weighted.") + key, weighted / weight);
  }
}

/// Matrices of the same bytes: tied or copied weights.
void find_duplicates(MeasuredModel& model, std::span<const std::unique_ptr<TensorMeasurement>> measurements) {
  std::map<std::tuple<std::uint64_t, DType, Shape>, std::size_t> seen;
  double count = 0;
  for (std::size_t t = 0; t < model.tensors.size(); ++t) {
    MeasuredTensor& tensor = model.tensors[t];
    if (tensor.shape.size() < 2) continue;
    const auto [at, first] = seen.try_emplace({measurements[t]->hash(), tensor.dtype, tensor.shape}, t);
    if (first) continue;
    ++count;
    tensor.notes.push_back("the same bytes as " + model.tensors[at->second].name);
  }
  measure::put(model.model, "model.duplicate_matrices", count);
}

/// The largest singular values of models of several widths: equal where widths were trained with matched gains.
std::optional<ModelComparison> compare_widths(std::span<const MeasuredModel> models, std::span<const std::unique_ptr<MeasuredInput>> inputs) {
  struct Entry {
    double width;
    std::vector<double> s1;
  };
  std::map<std::string, std::vector<Entry>> kinds;
  std::set<double> widths;
  ModelComparison result;
  result.kind = "widths";
  for (std::size_t m = 0; m < models.size(); ++m) {
    const TensorInfo* head = inputs[m]->head();
    if (head == nullptr) return std::nullopt;
    const auto width = static_cast<double>(head->shape[1]);
    widths.insert(width);
    result.models.push_back(models[m].path);
    std::map<std::string, std::vector<double>> own;
    for (const MeasuredTensor& tensor : models[m].tensors) {
      const double* s1 = tensor.measures.find("ranks.spectral");
      if (s1 != nullptr && tensor.block >= 0 && !tensor.role.empty()) own[tensor.role].push_back(*s1);
    }
    for (auto& [role, values] : own) kinds[role].push_back({width, std::move(values)});
  }
  if (widths.size() < 2) return std::nullopt;
  for (auto& [role, entries] : kinds) {
    std::vector<std::pair<double, double>> points;
    for (Entry& entry : entries) {
      std::nth_element(entry.s1.begin(), entry.s1.begin() + static_cast<std::ptrdiff_t>(entry.s1.size() / 2), entry.s1.end());
      const double median = entry.s1[entry.s1.size() / 2];
      if (median > 0) points.emplace_back(std::log(entry.width), std::log(median));
    }
    std::sort(points.begin(), points.end());
    if (points.size() < 2 || points.front().first == points.back().first) continue;
    double mean_x = 0, mean_y = 0, xx = 0, xy = 0;
    for (const auto& [x, y] : points) {
      mean_x += x / static_cast<double>(points.size());
      mean_y += y / static_cast<double>(points.size());
    }
    for (const auto& [x, y] : points) {
      xx += (x - mean_x) * (x - mean_x);
      xy += (x - mean_x) * (y - mean_y);
    }
    measure::put(result.total, "scaling.s1_ratio." + role, std::exp(points.back().second - points.front().second));
    measure::put(result.total, "scaling.exponent." + role, xy / xx);
  }
  return result;
}

/// Filters over word vectors [filters, slots, width] (or, as a convolution stores them, [filters, width, slots]) as lists of words.
void find_word_rules(const MeasuredInput& input, MeasuredModel& model) {
  constexpr std::size_t kTop = 20, kMaxFilters = 256;
  const TensorInfo* embedding = nullptr;
  for (const TensorInfo& tensor : input.checkpoint->tensors())
    if (tensor.shape.size() == 2 && engine::unreadable_reason(tensor).empty() && embedding == nullptr &&
        (input.role(tensor.name) == model::Role::embed || tensor.name.find("embed") != std::string::npos))
      embedding = &tensor;
  if (embedding == nullptr) return;
  const std::int64_t width = embedding->shape[1];
  std::vector<double> words;
  for (MeasuredTensor& out : model.tensors) {
    if (out.shape.size() != 3 || (out.shape[1] != width && out.shape[2] != width)) continue;
    const TensorInfo& tensor = input.checkpoint->tensor(out.name);
    if (!engine::unreadable_reason(tensor).empty()) continue;
    const auto filters = static_cast<std::size_t>(std::min<std::int64_t>(out.shape[0], kMaxFilters)), d = static_cast<std::size_t>(width);
    const bool slots_last = out.shape[1] == width;
    const auto slots = static_cast<std::size_t>(out.shape[slots_last ? 2 : 1]);
    std::vector<double> values(filters * slots * d);
    engine::read_doubles(*input.checkpoint, tensor, 0, values);
    if (slots_last) {
      std::vector<double> turned(values.size());
      for (std::size_t f = 0; f < filters; ++f)
        for (std::size_t j = 0; j < d; ++j)
          for (std::size_t p = 0; p < slots; ++p) turned[(f * slots + p) * d + j] = values[(f * d + j) * slots + p];
      values = std::move(turned);
    }
    if (words.empty()) words = engine::read_doubles(*input.checkpoint, *embedding);
    const auto finite = [](const std::vector<double>& all) {
      return std::all_of(all.begin(), all.end(), [](double value) { return std::isfinite(value); });
    };
    if (!finite(values) || !finite(words)) {
      measure::skip_group(out.measures, "word_rules", "non-finite");
      continue;
    }
    if (static_cast<std::size_t>(out.shape[0]) > filters)
      out.notes.push_back(fmt::format("word_rules: the first {} of {} filters", filters, out.shape[0]));
    const std::vector<measure::WordRule> rules = measure::word_rules({words, embedding->shape[0], width}, values, filters, slots, kTop);
    for (std::size_t f = 0; f < rules.size(); ++f) {
      measure::put(out.measures, fmt::format("word_rules.{}.best_response", f), rules[f].best_response);
      for (std::size_t p = 0; p < slots; ++p) {
        for (std::size_t k = 0; k < rules[f].words[p].size(); ++k) {
          measure::put(out.measures, fmt::format("word_rules.{}.slots.{}.words.{}", f, p, k), rules[f].words[p][k]);
          measure::put(out.measures, fmt::format("word_rules.{}.slots.{}.scores.{}", f, p, k), rules[f].scores[p][k]);
        }
      }
    }
  }
}

/// Runs texts through the models, one after another.
void run_texts(const std::vector<std::unique_ptr<MeasuredInput>>& inputs, const Selection& selection, const MeasureOptions& options,
               MeasureReport& report) {
  engine::TextStreams base;
  if (!options.base.empty() && selection.wants("cka")) {
    const std::vector<std::string> only = {"cka"};
    MeasuredModel unused;
    base = engine::measure_text(options.base, Selection(only), options, unused, report.warnings);
  }
  engine::TextStreams before;  // of the model before this one, along a path
  for (std::size_t m = 0; m < inputs.size(); ++m) {
    engine::TextStreams streams = engine::measure_text(inputs[m]->written, selection, options, report.models[m], report.warnings);
    for (ModelComparison& comparison : report.comparisons) {
      const bool pair = comparison.kind == "pair", path = comparison.kind == "path" && m > 0 && comparison.base == inputs[m - 1]->written;
      if ((!pair && !path) || comparison.models.front() != inputs[m]->written) continue;
      if (selection.wants("cka")) engine::compare_streams(pair ? base : before, streams, comparison);
      if (!selection.wants("barrier")) continue;
      double parameters = 0;
      for (const MeasuredTensor& tensor : report.models[m].tensors) {
        double n = 1;
        for (const std::int64_t dim : tensor.shape) n *= static_cast<double>(dim);
        parameters += n;
      }
      // Nine passes over some two thousand tokens.
      constexpr double kSparedParameters = 1e9;
      if (selection.spares() && parameters > kSparedParameters) {
        measure::skip_group(comparison.total, "barrier", "costly for a model of this size: ask for it with --what barrier");
      } else {
        engine::measure_barrier(comparison.base, inputs[m]->written, options, comparison);
      }
    }
    before = std::move(streams);
  }
}

void check_curvature(const CurvatureSettings& settings) {
  const auto refuse = [](const std::string& what, const char* advice) {
    throw Error(ErrorCode::invalid_argument, what, {.key = "--curvature"}, advice);
  };
  if (settings.points < 3 || settings.points > 201 || settings.points % 2 == 0)
    refuse(fmt::format("points={}: a line has an odd number of points from 3 to 201", settings.points), "the one in the middle is the model itself");
  if (settings.steps < 2 || settings.steps > 1000)
    refuse(fmt::format("steps={} is not from 2 to 1000", settings.steps), "30 show the largest eigenvalues");
  if (settings.runs < 1 || settings.runs > 100)
    refuse(fmt::format("runs={} is not from 1 to 100", settings.runs), "one is enough for the largest eigenvalues");
  if (settings.samples > 10000) refuse(fmt::format("samples={} is more than 10000", settings.samples), "ten give the trace within some percent");
  if (settings.tokens < 2) refuse(fmt::format("tokens={} predict nothing", settings.tokens), "some hundred show the loss");
  if (!measure::normalisation_of(settings.normalise))
    refuse("there is no normalisation called '" + printable(settings.normalise) + "'", "there are: none, weight, layer, filter, model");
}

}  // namespace

MeasureReport measure_models(std::span<const std::string> models, const MeasureOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Selection selection(options.what);
  std::string_view named = selection.named(measure::Pass::text);
  if (named.empty()) named = selection.named(measure::Pass::gradient);
  if (!named.empty() && options.texts.empty())
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is what a model does with a text, and there is none", named), {.key = "--what"},
                "give one with --text FILE");
  check_curvature(options.curvature);
  MeasureReport report;
  std::vector<std::unique_ptr<MeasuredInput>> inputs;
  for (const std::string& model : models) inputs.push_back(std::make_unique<MeasuredInput>(engine::open_measured(model)));

  // Tensors of all models are units of one walk.
  report.models.resize(inputs.size());
  std::vector<std::unique_ptr<TensorMeasurement>> measurements;
  std::vector<std::size_t> first_measurement;
  std::vector<engine::Unit> units;
  for (std::size_t m = 0; m < inputs.size(); ++m) {
    const MeasuredInput& input = *inputs[m];
    MeasuredModel& model = report.models[m];
    model.path = input.written;
    first_measurement.push_back(measurements.size());
    for (const std::string& warning : input.warnings) report.warnings.push_back(input.written + ": " + warning);
    model.tensors.resize(input.checkpoint->tensors().size());
    for (std::size_t t = 0; t < model.tensors.size(); ++t) {
      const TensorInfo& tensor = input.checkpoint->tensors()[t];
      auto measurement = std::make_unique<TensorMeasurement>(input, tensor, selection, options, model.tensors[t]);
      units.push_back({tensor.name, measurement->memory_bytes(), tensor.size_bytes, [p = measurement.get()] { p->run(); }});
      report.bytes_read += tensor.size_bytes;
      measurements.push_back(std::move(measurement));
    }
  }
  // Parts of fused tensors are measured too; they are no tensors of the model, and join the list when all that counts tensors is done.
  struct Parts {
    engine::SplitTensors split;
    MeasuredInput input;
    std::vector<MeasuredTensor> measured;
    std::vector<std::unique_ptr<TensorMeasurement>> measurements;
  };
  std::vector<std::unique_ptr<Parts>> fused;
  for (const auto& input : inputs) {
    auto parts = std::make_unique<Parts>();
    parts->split = engine::split_tensors(*input);
    parts->input = *input;
    parts->input.checkpoint = parts->split.view;
    parts->measured.resize(parts->split.parts.size());
    for (std::size_t p = 0; p < parts->measured.size(); ++p) {
      const engine::TensorPart& part = parts->split.parts[p];
      MeasuredTensor& out = parts->measured[p];
      auto measurement = std::make_unique<TensorMeasurement>(parts->input, *part.tensor, selection, options, out);
      out.role = std::string(model::to_string(part.role));
      out.block = part.block;
      out.notes.push_back(part.note);
      units.push_back({part.tensor->name, measurement->memory_bytes(), part.tensor->size_bytes, [q = measurement.get()] { q->run(); }});
      parts->measurements.push_back(std::move(measurement));
    }
    fused.push_back(std::move(parts));
  }
  for (std::size_t m = 0; m < inputs.size(); ++m) engine::add_block_units(*inputs[m], selection, options.seed, report.models[m], units);

  // Models against each other.
  std::unique_ptr<MeasuredInput> base;
  std::vector<std::unique_ptr<engine::Comparison>> comparisons;
  if (!options.base.empty()) {
    base = std::make_unique<MeasuredInput>(engine::open_measured(options.base));
    for (const std::string& warning : base->warnings) report.warnings.push_back(options.base + ": " + warning);
    const bool texts = !options.texts.empty() && (selection.wants("cka") || selection.wants("barrier"));
    if (selection.wants_pass(measure::Pass::pair) || selection.wants("agreement") || texts)
      for (const auto& input : inputs) comparisons.push_back(engine::compare_pair(*base, *input, selection, engine::PairDepth::full));
    if (inputs.size() > 1 && selection.wants("task_vectors")) {
      std::vector<const MeasuredInput*> all;
      for (const auto& input : inputs) all.push_back(input.get());
      comparisons.push_back(engine::compare_set(*base, all));
    }
  } else if (selection.wants("changed") || (!options.texts.empty() && (selection.wants("cka") || selection.wants("barrier")))) {
    // A training path, as far as neighbours have the same tensors.
    for (std::size_t m = 1; m < inputs.size(); ++m)
      if (engine::same_signature(*inputs[m - 1], *inputs[m]))
        comparisons.push_back(engine::compare_pair(*inputs[m - 1], *inputs[m], selection, engine::PairDepth::changed));
  }
  for (const auto& comparison : comparisons) comparison->add_units(units);

  engine::run_units(units, options, "measuring");
  for (const auto& input : inputs) input->checkpoint->check_unchanged();
  if (base != nullptr) base->checkpoint->check_unchanged();
  for (std::size_t m = 0; m < inputs.size(); ++m) {
    summarize(report.models[m]);
    find_duplicates(report.models[m], std::span(measurements).subspan(first_measurement[m], report.models[m].tensors.size()));
  }
  for (std::size_t m = 0; m < inputs.size(); ++m)
    for (MeasuredTensor& part : fused[m]->measured) report.models[m].tensors.push_back(std::move(part));
  for (const auto& comparison : comparisons) report.comparisons.push_back(comparison->finish());
  for (std::size_t m = 0; m < inputs.size(); ++m) {
    if (selection.wants("word_rules")) find_word_rules(*inputs[m], report.models[m]);
    if (selection.wants("decoding")) engine::name_decoded_tokens(inputs[m]->written, report.models[m]);
  }
  if (!options.texts.empty() && (selection.wants_pass(measure::Pass::text) || selection.wants_pass(measure::Pass::gradient)))
    run_texts(inputs, selection, options, report);
  if (!options.texts.empty() && selection.wants("phases")) measure::find_phases(report);
  if (selection.wants("scaling"))
    if (std::optional<ModelComparison> scaling = compare_widths(report.models, inputs)) report.comparisons.push_back(std::move(*scaling));
  report.findings = measure::find_findings(report);

  for (const std::string& warning : report.warnings)
    if (options.on_warning) options.on_warning(warning);
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace weft
