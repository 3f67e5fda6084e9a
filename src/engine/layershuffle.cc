#include "weft/layershuffle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/philox.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "engine/model_config.h"
#include "model/architecture.h"
#include "weft/error.h"

namespace weft {
namespace {

struct Slice {
  std::size_t model = 0;
  int begin = 0;
  int end = 0;
};

int layers_of(const std::string& name) {
  const std::filesystem::path path = resolve_model(name).path;
  const std::optional<std::filesystem::path> folder = folder_of_model(path);
  const std::optional<Json> config = folder ? read_model_config(*folder) : std::nullopt;
  const model::Architecture* architecture = config ? model::find_architecture(*config) : nullptr;
  if (architecture == nullptr)
    throw Error(ErrorCode::unsupported, "the number of layers of " + name + " is not known", {.file = name},
                "layers are shuffled between models whose config.json names an architecture");
  return model::num_layers(*architecture, *config);
}

}  // namespace

std::string layershuffle_config(const LayerShuffleOptions& options) {
  if (options.models.empty()) throw Error(ErrorCode::invalid_argument, "no models are given", {.key = "--model"}, "name two or more with -m");
  std::vector<double> weights = options.weights;
  if (weights.empty()) weights.assign(options.models.size(), options.full_random ? 1.0 : 1.0 / static_cast<double>(options.models.size()));
  if (weights.size() != options.models.size())
    throw Error(ErrorCode::invalid_argument, fmt::format("{} models have {} weights", options.models.size(), weights.size()), {.key = "--weight"},
                "give one -w for each -m");
  double sum = 0;
  for (const double weight : weights) {
    if (!(weight >= 0) || !std::isfinite(weight))
      throw Error(ErrorCode::invalid_argument, "a weight is negative or no number", {.key = "--weight"}, "weights are at least 0");
    sum += weight;
  }
  if (sum <= 0) throw Error(ErrorCode::invalid_argument, "all weights are 0", {.key = "--weight"}, "one at least must be more");

  const RandomStream random = RandomStream::of(options.seed, "layershuffle", 0, 0);
  std::uint64_t draws = 0;
  const auto below = [&](std::size_t count) {
    return std::min(count - 1, static_cast<std::size_t>(static_cast<double>(random.uniform(draws++)) * static_cast<double>(count)));
  };

  std::vector<Slice> slices;
  if (options.full_random) {
    constexpr double kMostLayers = 100'000;
    for (std::size_t m = 0; m < options.models.size(); ++m) {
      const double wanted = static_cast<double>(layers_of(options.models[m])) * weights[m];
      if (wanted > kMostLayers)
        throw Error(ErrorCode::invalid_argument, "a weight asks for more layers than any model has", {.key = "--weight"},
                    "1 takes as many as the model has");
      // Among the layers that are taken, as the peer draws.
      const auto taken = static_cast<std::size_t>(wanted);
      const auto from = std::min<std::size_t>(taken, static_cast<std::size_t>(layers_of(options.models[m])));
      for (std::size_t i = 0; i < taken; ++i) {
        const int layer = static_cast<int>(below(from));
        slices.push_back({m, layer, layer + 1});
      }
    }
    for (std::size_t i = slices.size(); i > 1; --i) std::swap(slices[i - 1], slices[below(i)]);
  } else {
    const int layers = layers_of(options.models.front());
    for (int layer = 0; layer < layers; ++layer) {
      double at = static_cast<double>(random.uniform(draws++)) * sum;
      std::size_t m = 0;
      while (m + 1 < weights.size() && at >= weights[m]) at -= weights[m++];
      if (!slices.empty() && slices.back().model == m)
        slices.back().end = layer + 1;
      else
        slices.push_back({m, layer, layer + 1});
    }
  }
  if (slices.empty()) throw Error(ErrorCode::invalid_argument, "no layer is taken", {.key = "--weight"}, "larger weights take more");
  std::string text = "merge_method: passthrough\n";
  if (options.fp16) text += "dtype: float16\n";
  text += "slices:\n";
  // JSON strings are YAML strings.
  for (const Slice& slice : slices)
    text += fmt::format("- sources:\n  - model: {}\n    layer_range: [{}, {}]\n", json_quote(options.models[slice.model]), slice.begin, slice.end);
  return text;
}

}  // namespace weft
