#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/checkpoint.h"
#include "weft/dtype.h"
#include "weft/export.h"
#include "weft/job.h"

namespace weft {

/// Points of something to draw.
struct MeasuredCurve {
  std::string name;  ///< "spectrum": singular values by their place, from 0; "histogram": lower edges of log10 |w| and counts
  std::vector<float> x, y;
};

/// Numbers about one thing, by names of the form `group.key`, in the order in which they were made.
struct Measures {
  std::vector<std::pair<std::string, double>> values;        ///< finite
  std::vector<std::pair<std::string, std::string>> labels;   ///< what is no number: the rule that was used, a warning
  std::vector<std::pair<std::string, std::string>> skipped;  ///< measure -> why there is no number
  std::vector<MeasuredCurve> curves;                         ///< a few dozen points each, for reports

  /// Null when absent.
  [[nodiscard]] WEFT_API const double* find(std::string_view measure) const noexcept;
  [[nodiscard]] WEFT_API const std::string* find_skipped(std::string_view measure) const noexcept;
};

struct MeasuredTensor {
  std::string name;
  std::string role;  ///< "q", "embed", ...; empty when unknown
  int block = -1;    ///< number of the layer; -1: outside of the layers
  Shape shape;
  DType dtype = DType::f32;
  std::uint64_t size_bytes = 0;
  Measures measures;
  std::vector<std::string> notes;  ///< what was done with a tensor that is no plain matrix
};

/// What a layer as a whole shows.
struct MeasuredBlock {
  int block = 0;
  Measures measures;
};

struct MeasuredModel {
  std::string path;
  std::vector<MeasuredTensor> tensors;
  std::vector<MeasuredBlock> blocks;
  Measures model;
};

/// Models against each other.
struct ModelComparison {
  std::string kind;                 ///< "pair": one model against the base; "set": all models, as task vectors against the base; "path": each against the one before
  std::vector<std::string> models;  ///< with `base`, what is compared
  std::string base;
  std::vector<MeasuredTensor> tensors;
  std::vector<MeasuredBlock> blocks;
  Measures total;
};

/// What the numbers say, in words.
struct MeasureFinding {
  std::string severity;  ///< "note", "warning", "problem"
  std::string what;
  std::string where;
  std::string evidence;
  std::string rule;         ///< its name in the table of rules
  std::uint64_t count = 0;  ///< tensors, layers or models on which it fired
  double null_rate = 0;     ///< share of random matrices (or random changes) on which the rule fires, at most
};

/// How WeightWatcher was told to work, for the group `weightwatcher`.
struct WeightWatcherSettings {
  std::uint64_t min_evals = 8;     ///< layers with fewer eigenvalues are left out
  std::uint64_t drop_largest = 0;  ///< eigenvalues that the power law is fitted without (its xmax of -k)
  bool clip_fingers = false;       ///< fix_fingers="clip_xmax"
};

/// How the loss is looked at around a model, for the groups `hessian` and `landscape`.
struct CurvatureSettings {
  std::uint64_t tokens = 1024;         ///< of the first text, in whole windows
  std::uint64_t steps = 30;            ///< of Lanczos: two gradients each
  std::uint64_t runs = 1;              ///< from different starts
  std::uint64_t samples = 10;          ///< of the trace, at most: two gradients each; 0: no trace
  std::uint64_t points = 21;           ///< of a line, odd; the plane has as many squared
  bool plane = true;                   ///< also over two directions at once
  std::string normalise = "filter";    ///< of random directions: "none", "weight", "layer", "filter", "model"
};

/// An input of a layer's down projection that is held at a value at every position.
struct NeuronClamp {
  int layer = 0;
  std::uint64_t neuron = 0;
  double value = 0;
};

struct MeasureOptions : JobOptions {
  std::string base;               ///< a model to compare with; empty: none
  std::vector<std::string> what;  ///< groups, or "all"; empty: all whose cost is bearable, by tensor
  WeightWatcherSettings weightwatcher;
  std::vector<std::filesystem::path> texts;  ///< run through the models, for the groups that need it; with several also the distances between them
  std::uint64_t window = 0;                  ///< tokens that are run together; 0: 256, or the model's context where that is shorter
  std::uint64_t max_tokens = 8192;           ///< of the first text
  CurvatureSettings curvature;
  std::vector<NeuronClamp> clamps;  ///< for the group `clamp`; empty: of each layer the neuron that decodes most clearly
};

struct MeasureReport {
  std::vector<MeasuredModel> models;
  std::vector<ModelComparison> comparisons;
  std::vector<MeasureFinding> findings;
  std::vector<std::string> warnings;
  double elapsed_seconds = 0;
  std::uint64_t bytes_read = 0;
};

/// Measures weights, and, with texts, what the models do with them. Memory is bounded by the budget; tensors are measured in parallel, each on one thread, so that threads change nothing.
/// Errors: those of opening and reading; invalid_argument for an unknown group (with the nearest name); out_of_memory, with both numbers, for a tensor
/// that cannot fit the budget; interrupted. A tensor that cannot be measured is no error: it says why.
[[nodiscard]] WEFT_API MeasureReport measure_models(std::span<const std::string> models, const MeasureOptions& options = {});

/// A group of measures that are made together.
struct MeasurementDescription {
  std::string name;                ///< "weibull"
  std::string pass;                ///< "elements", "spectrum", "matrix", "block", "pair", "set", "text", "gradient"
  std::string summary;
  std::string source;              ///< paper or program whose definition this is
  std::string determinism;         ///< "A", "B", "C"
  bool costly = false;             ///< left out of large tensors unless named
  std::vector<std::string> keys;   ///< its measures, without the group
};
[[nodiscard]] WEFT_API std::vector<MeasurementDescription> list_measurements();

}  // namespace weft
