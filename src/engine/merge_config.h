#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/yaml.h"
#include "merge/method.h"
#include "weft/dtype.h"

// mergekit's configuration: what the YAML says, checked as far as that is possible without looking at a model.
namespace weft::engine {

struct PathRef {
  std::string path;  ///< a folder, or a hub id
  std::optional<std::string> revision;
  bool operator==(const PathRef&) const = default;
};

/// "path[@revision][+adapter[@revision]]", or the mapping form of it. A string that exists as a path is that path, whatever it contains.
struct ModelRef {
  PathRef model;
  std::optional<PathRef> lora;
  std::optional<std::string> override_architecture;
  std::string written;  ///< as the user wrote it, for messages; the mapping form is put together again
  yaml::Place place;
  /// Same model (spelling and place do not matter).
  bool operator==(const ModelRef& other) const {
    return model == other.model && lora == other.lora && override_architecture == other.override_architecture;
  }
};
/// Errors: invalid_argument ("a+b+c", "a@b@c", "").
[[nodiscard]] ModelRef parse_model_ref(std::string_view text);

/// One {filter, value}. Several values are a gradient over the layers.
struct SettingEntry {
  std::optional<std::string> filter;  ///< absent or "*": matches every name; else a plain substring
  std::vector<double> values;         ///< booleans are 0 and 1; empty counts as absent
};
/// The value of one parameter at one level.
struct Setting {
  std::string name;
  std::vector<SettingEntry> entries;  ///< the first whose filter matches counts
  std::string key;                    ///< full path, "models[1].parameters.weight"
  yaml::Place place;
};
using Settings = std::vector<Setting>;

/// Value of a setting for a tensor, or nothing when no filter matches. position: 0 to 1 through the layers of the output slice.
/// Numbers are interpolated between the values of a gradient, booleans are not, integers are truncated after it.
[[nodiscard]] std::optional<double> evaluate(const Setting& setting, std::string_view tensor_name, double position, merge::ParameterType type);

struct LayerRange {
  int begin = 0;  ///< inclusive
  int end = 0;    ///< exclusive
  [[nodiscard]] int size() const noexcept { return end - begin; }
  bool operator==(const LayerRange&) const = default;
};

/// A model as an input of a slice.
struct Source {
  ModelRef model;
  std::optional<LayerRange> layers;  ///< always given in slices; absent in `models:`, meaning all layers
  Settings parameters;
  std::string key;             ///< "slices[0].sources[1]" or "models[1]"
  bool appended_base = false;  ///< not listed: base_model, which `models:` adds
};

/// Consecutive layers of the output.
struct Slice {
  std::vector<Source> sources;         ///< never empty
  std::optional<ModelRef> base_model;  ///< written in the slice; counts before the top-level one
  Settings parameters;
  std::string name;  ///< for messages: "default.slices[0]"
};

enum class OutputForm { models, slices };

struct Module {
  std::string name;  ///< "default" unless written under `modules:`
  OutputForm form = OutputForm::slices;
  std::vector<Slice> slices;  ///< exactly one, without layer ranges, for OutputForm::models
  Settings parameters;
};

enum class ConfigVocabulary { union_of_all, base, model };
enum class ConfigTokenSource { none, zero, model, model_token };

/// What to do about the row of one token.
struct ConfigTokenRule {
  std::string token;
  ConfigTokenSource source = ConfigTokenSource::none;
  ModelRef model;                           ///< for model and model_token
  std::optional<std::string> source_token;  ///< for model_token: exactly one of these two
  std::optional<std::uint64_t> source_id;
  bool force = false;  ///< also for models that have the token
};

struct ConfigTokenizer {
  ConfigVocabulary source = ConfigVocabulary::union_of_all;
  ModelRef model;                                   ///< for ConfigVocabulary::model
  std::vector<ConfigTokenRule> tokens;              ///< in file order
  std::optional<std::uint64_t> pad_to_multiple_of;  ///< never 0
};

struct MergeConfig {
  std::string file;  ///< where it was read from, for messages
  std::string text;  ///< this document as written
  std::string name;  ///< of the result among several documents; may be empty
  std::string merge_method;
  const merge::Method* method = nullptr;  ///< never null; lives as long as the table
  std::optional<ModelRef> base_model;
  std::vector<Module> modules;      ///< in file order, never empty
  bool written_as_modules = false;  ///< `modules:` was used: nothing was appended
  Settings parameters;              ///< top level
  std::optional<DType> dtype;
  std::optional<DType> out_dtype;
  std::optional<ConfigTokenizer> tokenizer;
  std::optional<std::string> chat_template;  ///< "auto", a built-in name or a Jinja text

  /// Every model that is mentioned, each once, in file order (a rule: the first one stands in where a base is needed and none is given).
  /// Those in token rules come last.
  [[nodiscard]] std::vector<ModelRef> referenced_models() const;
  /// The model that config.json and tokenizer files come from: base_model, else the first in file order.
  [[nodiscard]] const ModelRef& donor() const;
  /// The base of a slice: its own, else the top-level one; null when there is none.
  [[nodiscard]] const ModelRef* base_of(const Slice& slice) const noexcept;
  /// Whether a source plays the base's part in the method (never for methods that know none).
  [[nodiscard]] bool is_base(const Slice& slice, const Source& source) const noexcept;
};

struct MergeConfigOptions {
  bool strict = false;  ///< what would be a warning is an error
  std::span<const merge::Method> methods = merge::methods();
};

/// One document. Unknown keys and parameters become warnings with the full key, the line and the nearest right name.
/// Checks, beside the grammar: number of models and the base for every slice, models given twice, layer ranges, parameter types and ranges, the
/// chat template. Errors: invalid_argument naming file, line and key.
[[nodiscard]] MergeConfig parse_merge_config(std::string_view text, const std::string& file, const MergeConfigOptions& options,
                                             std::vector<std::string>& warnings);

/// One document, or part of one (a step of a recipe), that is parsed already; text: what the result counts as written from.
[[nodiscard]] MergeConfig parse_merge_config(const yaml::Document& document, const std::string& file, const MergeConfigOptions& options,
                                             std::vector<std::string>& warnings);

/// Several documents, in order of dependency (a document may use the `name` of another as a model). Names must differ, one document at most is
/// unnamed, and no result may need itself.
[[nodiscard]] std::vector<MergeConfig> parse_merge_configs(std::string_view text, const std::string& file, const MergeConfigOptions& options,
                                                           std::vector<std::string>& warnings);

/// Looks up parameters in their order of precedence: source (per-model ones only), slice, module, top level, the method's default.
/// A setting whose filters match nothing counts as absent. Keeps references; thread-safe.
class ParameterResolver {
 public:
  ParameterResolver(const MergeConfig& config, const Module& module, const Slice& slice) : config_(config), module_(module), slice_(slice) {}

  /// Values of the global parameters for an output tensor. Throws invalid_argument naming parameter and tensor when a required one has no value.
  [[nodiscard]] merge::Values global_values(std::string_view output_name, double position) const;
  /// Values of the per-model parameters; filters see the name of the tensor in that model (its own layer number). The base need not have them.
  /// Throws invalid_argument naming parameter, model and tensor when a required one has no value.
  [[nodiscard]] merge::Values source_values(const Source& source, std::string_view input_name, double position) const;

 private:
  [[nodiscard]] std::optional<double> find(const merge::Parameter& parameter, const Settings* first, std::string_view tensor_name,
                                           double position) const;

  const MergeConfig& config_;
  const Module& module_;
  const Slice& slice_;
};

/// Position for gradients: index of a layer among the layers of its output slice, 1 for a slice of one layer. Tensors outside layers use 0.
[[nodiscard]] double gradient_position(int index, int num_layers) noexcept;

}  // namespace weft::engine
