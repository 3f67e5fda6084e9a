#include "weft/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <set>

#include "base/text.h"
#include "engine/measure_input.h"
#include "engine/measure_tensor.h"
#include "engine/units.h"
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

}  // namespace

MeasureReport measure_models(std::span<const std::string> models, const MeasureOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Selection selection(options.what);
  MeasureReport report;
  std::vector<std::unique_ptr<MeasuredInput>> inputs;
  for (const std::string& model : models) inputs.push_back(std::make_unique<MeasuredInput>(engine::open_measured(model)));

  // Tensors of all models are units of one walk.
  report.models.resize(inputs.size());
  std::vector<std::unique_ptr<TensorMeasurement>> measurements;
  std::vector<engine::Unit> units;
  for (std::size_t m = 0; m < inputs.size(); ++m) {
    const MeasuredInput& input = *inputs[m];
    MeasuredModel& model = report.models[m];
    model.path = input.written;
    for (const std::string& warning : input.warnings) report.warnings.push_back(input.written + ": " + warning);
    model.tensors.resize(input.checkpoint->tensors().size());
    for (std::size_t t = 0; t < model.tensors.size(); ++t) {
      const TensorInfo& tensor = input.checkpoint->tensors()[t];
      auto measurement = std::make_unique<TensorMeasurement>(input, tensor, selection, options.seed, model.tensors[t]);
      units.push_back({tensor.name, measurement->memory_bytes(), tensor.size_bytes, [p = measurement.get()] { p->run(); }});
      report.bytes_read += tensor.size_bytes;
      measurements.push_back(std::move(measurement));
    }
  }
  engine::run_units(units, options, "measuring");
  for (const auto& input : inputs) input->checkpoint->check_unchanged();
  for (MeasuredModel& model : report.models) summarize(model);

  for (const std::string& warning : report.warnings)
    if (options.on_warning) options.on_warning(warning);
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace weft
