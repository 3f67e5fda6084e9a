#include "weft/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/text.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/output.h"
#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "model/gguf_names.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using engine::Block;
using engine::InputStatistics;
using engine::MadeTensor;

template <class T>
MadeTensor made(std::string name, DType dtype, Shape shape, std::span<const T> values) {
  MadeTensor tensor{std::move(name), dtype, std::move(shape), {}};
  tensor.bytes.resize(values.size_bytes());
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), values.size_bytes());
  return tensor;
}

// ---- The artefact. One set of tensors for each place where linear layers read; "points" of the manifest says which weights read there.

void emit_statistics(Block& block, const InputStatistics& own, bool with_gram) {
  const std::string name = fmt::format("layers.{}.{}", block.layer(), to_string(own.point));
  const auto width = static_cast<std::int64_t>(own.width);
  const auto count = static_cast<std::int64_t>(own.num_tokens);
  block.emit(made(name + ".count", DType::i64, {1}, std::span(&count, 1)));
  block.emit(made(name + ".sum", DType::f64, {width}, std::span(own.sum)));
  block.emit(made(name + ".sum_abs", DType::f64, {width}, std::span(own.sum_abs)));
  block.emit(made(name + ".sum_squares", DType::f64, {width}, std::span(own.sum_squares)));
  block.emit(made(name + ".max_abs", DType::f32, {width}, std::span(own.max_abs)));
  block.emit(made(name + ".min", DType::f32, {width}, std::span(own.min)));
  block.emit(made(name + ".max", DType::f32, {width}, std::span(own.max)));
  if (with_gram) block.emit(made(name + ".gram", DType::f64, {width, width}, std::span(own.gram)));
}

// ---- The importance matrix

/// Where llama.cpp has a weight: its name, and the expert's place in a stack.
struct GgufPlace {
  std::string name;
  int expert = -1;
};

class GgufPlaces {
 public:
  explicit GgufPlaces(const model::Architecture& architecture) : architecture_(architecture), family_(model::gguf_family_of(architecture)) {
    if (family_ == nullptr)
      throw Error(ErrorCode::unsupported, fmt::format("llama.cpp has no names for the tensors of a {}", architecture.name), {},
                  "write the statistics as .safetensors");
  }
  [[nodiscard]] std::optional<GgufPlace> find(const std::string& weight) const {
    const auto match = model::match_name(architecture_, weight);
    if (!match) return std::nullopt;
    std::string suffix;
    const model::GgufRule* rule = model::rule_for_template(*family_, match->tensor->name, suffix);
    if (rule == nullptr) return std::nullopt;
    return GgufPlace{model::with_layer(rule->gguf, match->layer) + suffix, rule->arrangement == model::GgufArrangement::experts ? match->expert : -1};
  }

 private:
  const model::Architecture& architecture_;
  const model::GgufFamily* family_;
};

/// Sums of squares and counts of one tensor of the file, experts one behind the other.
struct Importance {
  std::size_t width = 0;
  bool stacked = false;
  std::map<int, std::pair<std::vector<float>, float>> parts;  ///< by expert
};

/// Written under hidden names into the results of blocks, so that a pass that was stopped goes on.
void emit_importance(Block& block, const GgufPlaces& places, const InputStatistics& own) {
  std::vector<float> squares(own.width);
  for (std::size_t i = 0; i < own.width; ++i) squares[i] = static_cast<float>(own.sum_squares[i]);
  const auto count = static_cast<float>(own.num_tokens);
  for (const std::string& weight : own.weights) {
    const auto place = places.find(weight);
    if (!place) continue;
    const std::string name = fmt::format("{}|{}", place->name, place->expert);
    block.emit(made(name + "|in_sum2", DType::f32, {static_cast<std::int64_t>(own.width)}, std::span<const float>(squares)));
    block.emit(made(name + "|counts", DType::f32, {1}, std::span(&count, 1)));
  }
}

std::vector<float> floats(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.num_elements));
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

/// The layout and the values of each tensor, in its order.
std::pair<OutputLayout, std::vector<std::vector<float>>> importance_file(const Checkpoint& results, const engine::CalibrationData& data,
                                                                         const CalibrateReport& report) {
  std::map<std::string, Importance> all;
  for (const TensorInfo& tensor : results.tensors()) {
    const std::string& name = tensor.name;
    const std::size_t second = name.rfind('|'), first = name.rfind('|', second - 1);
    const int expert = std::stoi(name.substr(first + 1, second - first - 1));
    Importance& own = all[name.substr(0, first)];
    own.stacked = expert >= 0;
    std::vector<float> values = floats(results, tensor);
    if (name.ends_with("|counts")) {
      own.parts[expert].second = values.front();
    } else {
      own.width = values.size();
      own.parts[expert].first = std::move(values);
    }
  }
  GgufMetadata metadata;
  metadata.append("general.type", GgufValue::text("imatrix"));
  metadata.append("imatrix.datasets", GgufValue::texts(data.names));
  metadata.append("imatrix.chunk_count", GgufValue::u32(report.num_sequences));
  metadata.append("imatrix.chunk_size", GgufValue::u32(report.sequence_length));
  std::vector<GgufTensorSpec> specs;
  std::vector<std::vector<float>> values;
  for (auto& [name, own] : all) {
    std::vector<float> squares, counts;
    for (auto& [expert, part] : own.parts) {
      squares.insert(squares.end(), part.first.begin(), part.first.end());
      counts.push_back(part.second);
    }
    const auto experts = static_cast<std::int64_t>(own.parts.size()), width = static_cast<std::int64_t>(own.width);
    specs.push_back({name + ".in_sum2", 0, nullptr, DType::f32, own.stacked ? Shape{experts, width} : Shape{width}});
    values.push_back(std::move(squares));
    specs.push_back({name + ".counts", 0, nullptr, DType::f32, own.stacked ? Shape{experts, 1} : Shape{1}});
    values.push_back(std::move(counts));
  }
  return {plan_gguf(specs, metadata, 0, "imatrix"), std::move(values)};
}

// ---- Reports

CalibratedLayer summary(const std::string& weight, const InputStatistics& own) {
  CalibratedLayer layer;
  layer.name = weight;
  layer.num_tokens = own.num_tokens;
  layer.width = own.width;
  const double elements = static_cast<double>(own.num_tokens) * static_cast<double>(own.width);
  for (std::size_t i = 0; i < own.width; ++i) {
    layer.mean += own.sum[i];
    layer.mean_abs += own.sum_abs[i];
    layer.mean_square += own.sum_squares[i];
    layer.max_abs = std::max(layer.max_abs, static_cast<double>(own.max_abs[i]));
  }
  if (elements > 0)
    for (double* value : {&layer.mean, &layer.mean_abs, &layer.mean_square}) *value /= elements;
  return layer;
}

constexpr const char* kSummaryNote = "summary";

Json summary_json(const std::vector<CalibratedLayer>& layers) {
  Json::Array all;
  for (const CalibratedLayer& layer : layers)
    all.emplace_back(Json::Object{{"name", Json(layer.name)},
                                  {"num_tokens", Json(layer.num_tokens)},
                                  {"width", Json(layer.width)},
                                  {"mean", Json(layer.mean)},
                                  {"mean_abs", Json(layer.mean_abs)},
                                  {"mean_square", Json(layer.mean_square)},
                                  {"max_abs", Json(layer.max_abs)}});
  return Json(std::move(all));
}

void read_summary(const std::string& text, std::vector<CalibratedLayer>& out) {
  const Json all = parse_json(text, "the notes of a finished block");
  for (const Json& one : *all.array()) {
    const auto number = [&](const char* key) { return one.find(key)->number().value_or(0); };
    CalibratedLayer& layer = out.emplace_back();
    layer.name = *one.find("name")->string();
    layer.num_tokens = one.find("num_tokens")->unsigned_integer().value_or(0);
    layer.width = one.find("width")->unsigned_integer().value_or(0);
    layer.mean = number("mean");
    layer.mean_abs = number("mean_abs");
    layer.mean_square = number("mean_square");
    layer.max_abs = number("max_abs");
  }
}

/// Also of blocks that an earlier run has finished.
void warn_of_skipped(engine::RunningModel& model, const std::vector<CalibratedLayer>& layers, const Json& point) {
  const std::uint64_t skipped = point.find("num_skipped")->unsigned_integer().value_or(0);
  const Json::Array& weights = *point.find("weights")->array();
  if (skipped == 0 || weights.empty()) return;
  const std::string& first = *weights.front().string();
  const auto layer = std::find_if(layers.begin(), layers.end(), [&first](const CalibratedLayer& one) { return one.name == first; });
  const std::uint64_t summed = layer == layers.end() ? 0 : layer->num_tokens;
  model.warn(fmt::format("{} of {} inputs of {} held NaN or infinities and were left out", skipped, skipped + summed, printable(first)));
}

/// Names what no token reached: experts, above all.
void warn_of_unreached(engine::RunningModel& model, const std::vector<CalibratedLayer>& layers) {
  constexpr std::size_t kNamed = 12;
  std::string names;
  std::size_t count = 0;
  for (const CalibratedLayer& layer : layers)
    if (layer.num_tokens == 0 && ++count <= kNamed) names += fmt::format("{}'{}'", names.empty() ? "" : ", ", printable(layer.name));
  if (count > kNamed) names += fmt::format(" and {} more", count - kNamed);
  if (count > 0) model.warn(fmt::format("no token reached {}: there are no statistics of {}", names, count == 1 ? "it" : "them"));
}

std::map<std::string, std::string> manifest(const engine::RunningModel& model, const engine::CalibrationData& data, const CalibrateOptions& options,
                                            const CalibrateReport& report, Json points) {
  const Json about(Json::Object{{"kind", Json("statistics")},
                                {"schema", Json(1)},
                                {"method", Json("calibrate")},
                                {"version", Json(version())},
                                {"architecture", Json(model.json().find("architectures") == nullptr ? Json() : *model.json().find("architectures"))},
                                {"model", Json(engine::model_ingredient("", *model.files().checkpoint).value)},
                                {"corpus", Json(data.corpus_digest)},
                                {"tokens", Json(data.tokens->digest())},
                                {"num_sequences", Json(report.num_sequences)},
                                {"sequence_length", Json(report.sequence_length)},
                                {"num_tokens", Json(report.num_tokens)},
                                {"order", Json(options.text.order == CalibrationText::Order::first ? "first" : "random")},
                                {"seed", Json(options.seed)},
                                {"points", std::move(points)}});
  return {{"weft.manifest", write_json(about)}};
}

}  // namespace

CalibrateReport calibrate(std::string_view model_name, const fs::path& output, const CalibrateOptions& options) {
  const auto started = std::chrono::steady_clock::now();
  const bool is_imatrix = output.extension() == ".gguf";
  if (is_imatrix && options.gram)
    throw Error(ErrorCode::invalid_argument, "an importance matrix holds no second moments", {.key = "--gram"},
                "write the statistics as .safetensors");
  engine::RunningModel model(model_name, options);
  std::optional<GgufPlaces> places;
  if (is_imatrix) places.emplace(*model.config().architecture);
  const engine::CalibrationData data = engine::read_calibration_text(model, options.text, options.seed);

  CalibrateReport report;
  report.output = output;
  report.num_sequences = data.tokens->sequences.size();
  report.sequence_length = options.text.length;
  report.num_tokens = data.tokens->num_tokens();
  OutputFile file(output, options.force ? Existing::replace : Existing::refuse);

  engine::BlockPassOptions pass_options;
  static_cast<RunOptions&>(pass_options) = options;
  pass_options.folder = engine::block_pass_folder(output);
  pass_options.ingredients = {{"what is written", is_imatrix ? "importance matrix" : options.gram ? "statistics with second moments" : "statistics"}};
  Json::Object points;
  engine::BlockPassResult results;
  {
    engine::BlockPass pass(model, data.tokens, pass_options);
    results = pass.run([&](Block& block) {
      std::vector<CalibratedLayer> layers;
      Json::Object own_points;
      for (const InputStatistics& own : block.statistics({.gram = options.gram, .cross = false, .points = {}, .last = true})) {
        if (is_imatrix)
          emit_importance(block, *places, own);
        else
          emit_statistics(block, own, options.gram);
        Json::Array weights;
        for (const std::string& weight : own.weights) {
          layers.push_back(summary(weight, own));
          weights.emplace_back(weight);
        }
        own_points.emplace_back(fmt::format("layers.{}.{}", block.layer(), to_string(own.point)),
                                Json(Json::Object{{"weights", Json(std::move(weights))}, {"num_skipped", Json(own.num_skipped)}}));
      }
      block.note(kSummaryNote, write_json(summary_json(layers)));
      block.note("points", write_json(Json(std::move(own_points))));
    });
  }
  for (const auto& notes : results.notes) {
    read_summary(notes.at(kSummaryNote), report.layers);
    Json own = parse_json(notes.at("points"), "the notes of a finished block");
    for (auto& point : *own.object()) {
      warn_of_skipped(model, report.layers, point.second);
      points.push_back(std::move(point));
    }
  }
  warn_of_unreached(model, report.layers);

  model.files().checkpoint->check_unchanged();
  if (is_imatrix) {
    auto [layout, values] = importance_file(*results.tensors, data, report);
    report.num_tensors = layout.tensors.size();
    report.size_bytes = layout.tensor_bytes;
    file.create_files(std::move(layout));
    for (std::size_t i = 0; i < values.size(); ++i) file.write_tensor(i, 0, std::as_bytes(std::span(values[i])));
  } else {
    std::vector<TensorSpec> specs;
    for (const TensorInfo& tensor : results.tensors->tensors()) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    OutputLayout layout = plan_safetensors(specs, 0, manifest(model, data, options, report, Json(std::move(points))));
    report.num_tensors = specs.size();
    report.size_bytes = layout.tensor_bytes;
    file.create_files(std::move(layout));
    std::vector<std::byte> piece;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const TensorInfo& tensor = results.tensors->tensors()[i];
      constexpr std::uint64_t kPiece = std::uint64_t{8} << 20;
      for (std::uint64_t at = 0; at < tensor.size_bytes; at += kPiece) {
        piece.resize(static_cast<std::size_t>(std::min(kPiece, tensor.size_bytes - at)));
        results.tensors->read_bytes(tensor, at, piece);
        file.write_tensor(i, at, piece);
      }
    }
  }
  file.commit();
  remove_tree(pass_options.folder);

  report.files = {output.filename().string()};
  report.num_parameters = report.size_bytes / sizeof(float);
  report.bytes_read = model.network().weight_bytes();
  report.bytes_written = report.size_bytes;
  report.peak_memory_bytes = peak_resident_bytes();
  report.warnings = model.warnings();
  report.warnings.insert(report.warnings.end(), file.warnings().begin(), file.warnings().end());
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return report;
}

}  // namespace weft
