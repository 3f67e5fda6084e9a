#include <fmt/format.h>
#include <re2/re2.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "adapt/folded_model.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/imatrix.h"
#include "checkpoint/model_folder.h"
#include "engine/gguf_output.h"
#include "engine/lazy_model.h"
#include "engine/model_config.h"
#include "engine/quantize_format.h"
#include "engine/quantize_keys.h"
#include "engine/whole_model.h"
#include "model/gguf_mix.h"
#include "model/gguf_model.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using model::GgufStoredType;

[[noreturn]] void refuse(const std::string& what, const std::string& key, const std::string& advice = {}) {
  throw Error(ErrorCode::invalid_argument, what, {.key = key}, advice);
}

/// Whether something is asked for that only packed folders have.
bool concerns_folders(const LinearQuantization& linear) {
  const LinearQuantization usual;
  return !linear.calibration.files.empty() || linear.symmetric.has_value() || linear.nested || !linear.search.empty() ||
         linear.numbers != usual.numbers || linear.bits != usual.bits || linear.group != usual.group || linear.order != usual.order ||
         linear.damping != usual.damping || linear.drift != usual.drift || linear.smoothing != usual.smoothing || linear.rank != usual.rank ||
         linear.exact != usual.exact || !linear.parameters.empty();
}

/// A tensor's name, and what those that match become.
struct Rule {
  std::string pattern;
  std::unique_ptr<re2::RE2> expression;
  std::optional<GgufStoredType> type;  ///< absent: kept
  bool matched = false;
  bool applied = false;  ///< where no rule before it matched
};

std::vector<Rule> rules_of(const QuantizeOptions& options) {
  std::vector<std::pair<std::string, std::string>> all = options.rules;
  for (auto& rule : read_quantize_rules(options.rules_text)) all.push_back(std::move(rule));
  std::vector<Rule> rules;
  for (const auto& [pattern, type] : all) {
    Rule rule;
    rule.pattern = pattern;
    re2::RE2::Options how;
    how.set_case_sensitive(false);
    how.set_log_errors(false);
    how.set_max_mem(8 << 20);
    rule.expression = std::make_unique<re2::RE2>(pattern, how);
    if (!rule.expression->ok())
      refuse(fmt::format("'{}' is no pattern: {}", printable(pattern), rule.expression->error()), "tensor-type",
             "patterns are regular expressions that are looked for in the name, such as ffn_down or ^blk\\.0\\.");
    if (type != "keep") rule.type = model::gguf_stored_type(type, "tensor-type");
    rules.push_back(std::move(rule));
  }
  return rules;
}

GgufValue overriding_value(const std::string& key, const std::string& text) {
  const std::size_t colon = text.find(':');
  const std::string type = text.substr(0, colon);
  const std::string value = colon == std::string::npos ? "" : text.substr(colon + 1);
  const auto fail = [&] {
    refuse(fmt::format("'{}' is no value for '{}'", printable(text), printable(key)), "override-kv",
           "KEY=int:N, KEY=float:X, KEY=bool:true or KEY=str:TEXT");
  };
  if (colon == std::string::npos) fail();
  if (type == "str") {
    if (!is_valid_utf8(value)) fail();
    return GgufValue::text(value);
  }
  if (type == "bool" && (value == "true" || value == "false")) return GgufValue::boolean(value == "true");
  if (type == "int") {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error == std::errc() && end == value.data() + value.size()) {
      if (number >= 0 && number <= 0xFFFFFFFF) return GgufValue::u32(static_cast<std::uint64_t>(number));
      return {GgufType::i64, number};
    }
  }
  if (type == "float") {
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error == std::errc() && end == value.data() + value.size() && std::isfinite(number)) return GgufValue::f32(number);
  }
  fail();
  return {};
}

/// Which layers stay, and their new numbers.
class Pruning {
 public:
  explicit Pruning(const std::vector<std::uint64_t>& layers) : left_out_(layers.begin(), layers.end()) {}

  [[nodiscard]] std::size_t size() const { return left_out_.size(); }
  [[nodiscard]] bool drops(const std::string& name) const {
    const int layer = model::gguf_layer_of(name);
    return layer >= 0 && left_out_.contains(static_cast<std::uint64_t>(layer));
  }
  /// The name after the layers before it are gone.
  [[nodiscard]] std::string renamed(const std::string& name) const {
    const int layer = model::gguf_layer_of(name);
    if (layer < 0 || left_out_.empty()) return name;
    const auto gone = std::distance(left_out_.begin(), left_out_.lower_bound(static_cast<std::uint64_t>(layer)));
    return fmt::format("blk.{}{}", layer - gone, name.substr(name.find('.', 4)));
  }
  void check(std::uint64_t num_layers) const {
    for (const std::uint64_t layer : left_out_)
      if (layer >= num_layers) refuse(fmt::format("there is no layer {} to leave out; the model has {}", layer, num_layers), "prune-layers");
    if (!left_out_.empty() && left_out_.size() >= num_layers) refuse("no layer would be left", "prune-layers");
  }
  /// Numbers that belong to layers: the count, and lists with a value for each.
  void apply(GgufMetadata& metadata, const std::string& architecture, std::uint64_t num_layers) const {
    if (left_out_.empty()) return;
    metadata.set(architecture + ".block_count", GgufValue::u32(num_layers - left_out_.size()));
    std::vector<std::pair<std::string, GgufValue>> changed;
    for (const auto& [key, value] : metadata.entries()) {
      const GgufArray* array = value.array();
      if (!key.starts_with(architecture + ".") || array == nullptr || array->num_elements != num_layers || !array->bytes) continue;
      const auto width = static_cast<std::size_t>(size_of(array->element_type));
      if (width == 0) continue;
      GgufArray kept = *array;
      kept.bytes = "";
      for (std::uint64_t layer = 0; layer < num_layers; ++layer)
        if (!left_out_.contains(layer)) *kept.bytes += array->bytes->substr(static_cast<std::size_t>(layer) * width, width);
      kept.num_elements = num_layers - left_out_.size();
      kept.size_bytes = kept.bytes->size();
      changed.emplace_back(key, GgufValue{GgufType::array, std::move(kept)});
    }
    for (auto& [key, value] : changed) metadata.set(key, std::move(value));
  }

 private:
  std::set<std::uint64_t> left_out_;
};

/// Everything about one weight that is decided before anything is read.
struct Choice {
  std::string name;                    ///< in the output
  std::optional<GgufStoredType> type;  ///< absent: as stored
  Encoding encoding;
  int layer = -1;
  std::uint32_t part = 0;
  bool dropped = false;
};

class Plan {
 public:
  Plan(const QuantizeRequest& request, const model::GgufFileType& file_type)
      : options_(request.options), file_type_(file_type), rules_(rules_of(request.options)), pruning_(request.options.prune_layers) {
    const auto type_of = [](const std::string& name, const char* key) {
      return name.empty() ? std::optional<GgufStoredType>() : model::gguf_stored_type(name, key);
    };
    output_type_ = type_of(options_.output_type, "output-tensor-type");
    embedding_type_ = type_of(options_.token_embedding_type, "token-embedding-type");
    if (output_type_ && options_.leave_output) refuse("the output tensor cannot both stay as it is and get a type", "leave-output-tensor");
    if (!options_.include_weights.empty() && !options_.exclude_weights.empty())
      refuse("weights can be included or excluded, not both", "include-weights");
    if (options_.imatrix.empty() && (!options_.include_weights.empty() || !options_.exclude_weights.empty()))
      refuse("weights are included and excluded from the use of an importance matrix, and there is none", "include-weights", "give --imatrix FILE");
    if (!options_.imatrix.empty()) imatrix_ = read_imatrix(options_.imatrix);
  }

  /// Types for gguf_job. Called once.
  std::vector<GgufWeightType> choose(const std::vector<GgufCandidate>& candidates, const GgufMetadata& metadata) {
    const std::string architecture = metadata.text("general.architecture").value_or("");
    const auto number = [&](const char* key) { return metadata.unsigned_integer(fmt::format("{}.{}", architecture, key)); };
    num_layers_ = number("block_count").value_or(0);
    architecture_ = architecture;
    pruning_.check(num_layers_);
    choices_.resize(candidates.size());
    // In the order of the file, which is also the order in which the mixes count.
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      Choice& choice = choices_[i];
      choice.name = pruning_.renamed(candidates[i].name);
      choice.layer = model::gguf_layer_of(choice.name);
      choice.part = options_.keep_split ? candidates[i].part : 0;
      choice.dropped = pruning_.drops(candidates[i].name);
      if (!choice.dropped) order.push_back(i);
    }
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const Choice& x = choices_[a];
      const Choice& y = choices_[b];
      if (options_.keep_split) return std::tie(x.part, a) < std::tie(y.part, b);  // parts stay in their own order
      return std::tie(x.part, x.layer, x.name) < std::tie(y.part, y.layer, y.name);
    });
    order_ = order;

    model::GgufMixModel model;
    model.num_layers = num_layers_;  // those left out count in llama.cpp's mixes
    model.num_heads = number("attention.head_count").value_or(1);
    model.num_kv_heads = number("attention.head_count_kv").value_or(model.num_heads);
    model.num_experts = number("expert_count").value_or(0);
    model.has_imatrix = imatrix_.has_value();
    model.has_output = std::any_of(candidates.begin(), candidates.end(), [](const GgufCandidate& c) { return c.name == "output.weight"; });
    std::vector<std::size_t> weights;
    std::vector<model::GgufMixWeight> mixed;
    for (const std::size_t i : order) {
      if (candidates[i].fixed) continue;
      weights.push_back(i);
      mixed.push_back({choices_[i].name, candidates[i].shape});
    }
    const std::vector<GgufStoredType> types = model::gguf_mix(file_type_, model, mixed);
    const GgufStoredType base = model::gguf_stored_type(file_type_.base, "format");
    for (std::size_t k = 0; k < weights.size(); ++k)
      decide(candidates[weights[k]], choices_[weights[k]], options_.pure ? base : types[k], model.has_output);
    check_all_used(candidates);
    std::vector<GgufWeightType> result(candidates.size());
    for (std::size_t i = 0; i < candidates.size(); ++i)
      if (choices_[i].type) result[i] = {choices_[i].type->dtype, choices_[i].type->codec};
    return result;
  }

  /// Puts the tensors in their order, under their names, with what the file says about them.
  void finish(OutputJob& job) {
    OutputJob::Gguf& gguf = *job.gguf;
    OutputJob sorted;
    std::vector<GgufTensorSpec> specs;
    std::vector<bool> encodes;
    std::uint32_t part = 0;
    if (options_.keep_split) gguf.parts = {0};
    for (const std::size_t i : order_) {
      Choice& choice = choices_[i];
      if (choice.part != part && !specs.empty()) gguf.parts.push_back(specs.size());
      part = choice.part;
      job.tensors[i].name = job.described[i].name = gguf.tensors[i].name = choice.name;
      job.tensors[i].whole_rows = gguf.encodes[i];
      if (choice.encoding.column_weights != nullptr) job.described[i].parameters.emplace_back("importance", "yes");
      if (gguf.encodes[i] && choice.encoding.better) job.described[i].parameters.emplace_back("search", "better");
      sorted.tensors.push_back(std::move(job.tensors[i]));
      sorted.described.push_back(std::move(job.described[i]));
      specs.push_back(std::move(gguf.tensors[i]));
      encodes.push_back(gguf.encodes[i]);
      gguf.encodings.push_back(std::move(choice.encoding));
    }
    job.tensors = std::move(sorted.tensors);
    job.described = std::move(sorted.described);
    gguf.tensors = std::move(specs);
    gguf.encodes = std::move(encodes);
    gguf.errors = std::make_shared<EncodingErrors>();
    GgufMetadata& metadata = gguf.metadata;
    pruning_.apply(metadata, architecture_, num_layers_);
    // What tensors were before they became float32 serves the way back to the same bytes, which there is none now.
    std::vector<std::string> obsolete;
    for (const auto& [key, value] : metadata.entries())
      if (key.starts_with(model::kOriginalTypeKey)) obsolete.push_back(key);
    for (const std::string& key : obsolete) metadata.erase(key);
    metadata.set("general.quantization_version", GgufValue::u32(2));
    metadata.set("general.file_type", GgufValue::u32(file_type_.number));
    if (imatrix_) {
      metadata.set("quantize.imatrix.file", GgufValue::text(printable(options_.imatrix.string(), 4096)));
      if (!imatrix_->datasets.empty()) metadata.set("quantize.imatrix.dataset", GgufValue::text(imatrix_->datasets.front()));
      metadata.set("quantize.imatrix.entries_count", GgufValue::u32(imatrix_->entries.size()));
      if (imatrix_->chunk_count != 0) metadata.set("quantize.imatrix.chunks_count", GgufValue::u32(imatrix_->chunk_count));
    }
    for (const auto& [key, value] : options_.override_kv) metadata.set(key, overriding_value(key, value));
    job.warnings.insert(job.warnings.end(), warnings_.begin(), warnings_.end());
    std::string identity = "none";
    if (!options_.imatrix.empty()) {
      const FileIdentity file = File(options_.imatrix, FileMode::read).identity();
      identity = fmt::format("{} bytes, inode {}, modified {}", file.size_bytes, file.inode, file.modified_ns);
    }
    job.ingredients.push_back({"--imatrix", identity});
  }

 private:
  void decide(const GgufCandidate& candidate, Choice& choice, GgufStoredType mixed, bool has_output) {
    const bool is_output = choice.name == "output.weight";
    const bool is_embedding = choice.name == "token_embd.weight";
    std::optional<GgufStoredType> type = mixed;
    if (options_.leave_output && is_output) type.reset();
    if (output_type_ && (is_output || (is_embedding && !has_output))) type = output_type_;
    if (embedding_type_ && is_embedding) type = embedding_type_;
    bool decided = false;
    for (Rule& rule : rules_) {
      if (!re2::RE2::PartialMatch(choice.name, *rule.expression)) continue;
      rule.matched = true;
      if (decided) continue;
      decided = rule.applied = true;
      type = rule.type;
    }
    if (!type) return;
    if (std::find(candidate.shape.begin(), candidate.shape.end(), 0) != candidate.shape.end())
      throw Error(ErrorCode::unsupported, fmt::format("tensor '{}' is empty ({})", printable(candidate.name), weft::to_string(candidate.shape)),
                  {.tensor = candidate.name}, "leave it out, or keep it with --tensor-type NAME=keep");
    const auto row = static_cast<std::uint64_t>(candidate.shape.back());
    const GgufStoredType fitting = model::gguf_type_for_rows(*type, row, choice.name);
    if (!(fitting == *type)) fallen_back_[{std::string(type->name()), std::string(fitting.name())}].push_back(choice.name);
    if (fitting.codec == nullptr && !candidate.stored && fitting.dtype == candidate.dtype) return;  // as it is
    if (candidate.stored != nullptr && fitting.codec == candidate.stored) return;
    const bool loses_twice = candidate.stored != nullptr || (!candidate.quantized_as.empty() && fitting.codec != nullptr);
    if (loses_twice && !options_.allow_requantize)
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("tensor '{}' is quantized already, as {}", printable(candidate.name), candidate.quantized_as),
                  {.tensor = candidate.name}, "quantize from the original weights, or accept a second loss with --allow-requantize");
    choice.type = fitting;
    if (fitting.codec == nullptr) return;
    choice.encoding.better = options_.better;
    const bool weighted = find_importance(candidate, choice);
    if (!weighted && model::needs_importance(file_type_, fitting, choice.name))
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("tensor '{}' as {} is of no use without an importance matrix{}", printable(choice.name), fitting.name(),
                              imatrix_ ? ", and yours has nothing for it" : ""),
                  {.tensor = choice.name, .key = "imatrix"}, "give --imatrix FILE, or choose a type of more bits");
  }

  bool find_importance(const GgufCandidate& candidate, Choice& choice) {
    if (!imatrix_) return false;
    const auto names = [&](const std::vector<std::string>& parts) {
      bool found = false;
      for (const std::string& part : parts)
        if (candidate.name.find(part) != std::string::npos) {
          found = true;
          used_parts_.insert(part);
        }
      return found;
    };
    if (!options_.include_weights.empty() && !names(options_.include_weights)) return false;
    if (names(options_.exclude_weights)) return false;
    const auto entry = imatrix_->entries.find(candidate.name);
    if (entry == imatrix_->entries.end()) return false;
    any_importance_ = true;
    const auto row = static_cast<std::uint64_t>(candidate.shape.back());
    const std::uint64_t matrices = candidate.shape.size() >= 3 ? static_cast<std::uint64_t>(candidate.shape[0]) : 1;
    const std::uint64_t values = entry->second.sums.size();
    if (values != row * matrices) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("the importance matrix has {} values for tensor '{}' ({}), which needs {}", values, printable(candidate.name),
                              weft::to_string(candidate.shape), row * matrices),
                  {.file = options_.imatrix.string(), .tensor = candidate.name}, "it was made with another model");
    }
    choice.encoding.num_matrices = matrices;
    choice.encoding.column_weights = std::make_shared<const std::vector<float>>(entry->second.importance());
    return true;
  }

  void check_all_used(const std::vector<GgufCandidate>& candidates) {
    for (const Rule& rule : rules_) {
      if (!rule.matched)
        refuse(fmt::format("no weight matches '{}'", printable(rule.pattern)), "tensor-type",
               fmt::format("names are those of the file, such as {}", example_name(candidates)));
      if (!rule.applied)
        warnings_.push_back(fmt::format("the rule '{}' changes nothing: rules before it match the same weights", printable(rule.pattern)));
    }
    const auto check_parts = [&](const std::vector<std::string>& parts, const char* key) {
      for (const std::string& part : parts)
        if (!used_parts_.contains(part)) refuse(fmt::format("no weight has '{}' in its name", printable(part)), key);
    };
    check_parts(options_.include_weights, "include-weights");
    check_parts(options_.exclude_weights, "exclude-weights");
    if (imatrix_ && !any_importance_ && options_.include_weights.empty() && options_.exclude_weights.empty())
      throw Error(ErrorCode::invalid_argument, "the importance matrix names no weight of this model that gets quantized",
                  {.file = options_.imatrix.string()}, fmt::format("its first entry is '{}'", printable(imatrix_->entries.begin()->first)));
    for (const auto& [types, names] : fallen_back_)
      warnings_.push_back(fmt::format("{} {} {} instead of {}, whose blocks do not divide their rows", names.size(),
                                      names.size() == 1 ? "weight becomes" : "weights become", types.second, types.first));
  }
  static std::string example_name(const std::vector<GgufCandidate>& candidates) {
    for (const GgufCandidate& candidate : candidates)
      if (!candidate.fixed && candidate.name.starts_with("blk.")) return candidate.name;
    return "blk.0.attn_q.weight";
  }

  const QuantizeOptions& options_;
  const model::GgufFileType& file_type_;
  std::vector<Rule> rules_;
  Pruning pruning_;
  std::optional<GgufStoredType> output_type_, embedding_type_;
  std::optional<Imatrix> imatrix_;
  std::vector<Choice> choices_;     ///< one a candidate
  std::vector<std::size_t> order_;  ///< candidates that stay, as they are written
  std::map<std::pair<std::string, std::string>, std::vector<std::string>> fallen_back_;
  std::set<std::string> used_parts_;
  std::vector<std::string> warnings_;
  std::string architecture_;
  std::uint64_t num_layers_ = 0;
  bool any_importance_ = false;
};

/// The one step of folders' methods that GGUF files take: it makes another model first.
bool rotates(const QuantizeOptions& options) { return options.method == "rotate" || options.method == "rotate+rtn"; }

OutputJob make_job(const QuantizeRequest& request, const GgufChooser& choose) {
  if (request.made != nullptr) {
    if (rotates(request.options)) rotate_model(*request.made, request.options.seed, request.options.allow_requantize);
    return gguf_output_job(std::move(*request.made), request.output, choose);
  }
  const std::shared_ptr<const Checkpoint>& checkpoint = request.checkpoint;
  OutputJob job = [&] {
    if (rotates(request.options)) {
      for (const TensorInfo& tensor : checkpoint->tensors())
        if (!tensor.stored_as.empty() && !request.options.allow_requantize)
          throw Error(ErrorCode::invalid_argument, fmt::format("tensor '{}' is quantized already, as {}", printable(tensor.name), tensor.stored_as),
                      {.tensor = printable(tensor.name)}, "turn the original weights, or accept a second loss with --allow-requantize");
      LazyModel turned = open_lazy_model(request.model);
      rotate_model(turned, request.options.seed, request.options.allow_requantize);
      const ScratchFolder folder;  // only the tokenizer is read from it, and at once
      write_companions(turned, folder.path());
      OutputJob made =
          gguf_job_choosing({request.model, checkpoint_of(turned), *turned.parts.config, folder.path(), title_of(checkpoint->path())}, choose);
      made.warnings.insert(made.warnings.begin(), turned.warnings.begin(), turned.warnings.end());
      return made;
    }
    if (as_gguf(*checkpoint) != nullptr) return gguf_copy_job_choosing(request.model, checkpoint, choose);
    if (std::optional<model::HuggingFaceModel> held = adapt::held_model(checkpoint)) {  // a GGUF file with adapters folded in
      const fs::path file = held->file->path();
      GgufModel opened = open_gguf_model(*std::move(held));
      OutputJob made = gguf_job_choosing({request.model, opened.checkpoint, opened.config, opened.folder, title_of(file)}, choose);
      made.warnings.insert(made.warnings.end(), opened.warnings.begin(), opened.warnings.end());
      return made;
    }
    const fs::path source = checkpoint->path();
    const std::optional<fs::path> folder = folder_of_model(source);
    std::optional<Json> config = folder ? read_model_config(*folder) : std::nullopt;
    if (!config)
      throw Error(ErrorCode::not_found, "a GGUF file needs what config.json says, and there is none", {.file = source.string()},
                  "name the model's folder");
    std::vector<std::string> warnings;
    adapt::follow_in_config(*checkpoint, *config, warnings);
    OutputJob made = gguf_job_choosing({request.model, checkpoint, *std::move(config), *folder, title_of(source)}, choose);
    made.warnings.insert(made.warnings.begin(), warnings.begin(), warnings.end());
    return made;
  }();
  job.inputs = {checkpoint};
  job.input_paths = {checkpoint->path()};
  for (const std::string& adapter : adapt::split_adapters(request.model).adapters) job.input_paths.push_back(resolve_model(adapter).path);
  job.warnings.insert(job.warnings.begin(), checkpoint->warnings().begin(), checkpoint->warnings().end());
  return job;
}

}  // namespace

QuantizeReport quantize_gguf(const QuantizeRequest& request) {
  if (request.options.linear.budget_bits || request.options.linear.budget_bytes)
    throw Error(ErrorCode::unsupported, "GGUF files have types with mixes of their own, which no budget chooses", {.key = "budget"},
                "choose a type by its bits a weight ('weft help quantize' lists them), or write --format gptq");
  const QuantizeOptions& options = request.options;
  const model::GgufFileType& file_type = model::gguf_file_type(request.argument);
  if (!options.method.empty() && options.method != "rtn" && !rotates(options))
    refuse(fmt::format("GGUF files are written with the search of their types, not with '{}'", printable(options.method)), "method",
           "leave --method out, or turn the model first with rotate; --imatrix and --better improve the search");
  if (rotates(options) && !options.imatrix.empty())
    refuse("an importance matrix is of the model as it is, whose channels mean something else once it is turned", "imatrix",
           "write the turned model first ('weft edit --fold-norms --rotate residual --rotate value.*'), and calibrate that");
  if (rotates(options) && options.keep_split) refuse("a model that is turned is written anew, without the parts of its file", "keep-split");
  if (concerns_folders(options.linear))
    refuse("GGUF files have none of the options of folders", "format",
           "leave them out, or write a folder; what a text says of the weights comes as --imatrix, from 'weft calibrate'");
  const GgufCheckpoint* gguf = request.checkpoint == nullptr ? nullptr : as_gguf(*request.checkpoint);
  if (options.keep_split && (gguf == nullptr || gguf->files().size() < 2))
    refuse("the input is not split, so there are no parts to keep", "keep-split");
  Plan plan(request, file_type);
  OutputJob job = make_job(
      request, [&](const std::vector<GgufCandidate>& candidates, const GgufMetadata& metadata) { return plan.choose(candidates, metadata); });
  job.single_file = request.output.extension() == ".gguf";
  job.ingredients = request.ingredients;
  job.ingredients.push_back({"--format", std::string(file_type.name)});
  if (rotates(options)) job.ingredients.push_back({"--method", fmt::format("rotate by seed {}", options.seed)});
  plan.finish(job);

  QuantizeReport report;
  std::vector<std::size_t> numbers;  // of the tensors that are encoded
  for (std::size_t i = 0; i < job.tensors.size(); ++i) {
    const GgufTensorSpec& spec = job.gguf->tensors[i];
    if (!job.gguf->encodes[i]) continue;
    numbers.push_back(i);
    report.layers.push_back({spec.name, std::string(spec.codec->name), 8.0 * spec.codec->block_bytes / spec.codec->block_elements, std::nullopt});
  }
  const std::shared_ptr<EncodingErrors> errors = job.gguf->errors;
  // Told in the order of the file, whichever thread is done first.
  std::vector<bool> finished(numbers.size());
  std::size_t num_told = 0;
  if (options.on_layer)
    job.on_finished = [&](std::size_t tensor) {
      const auto found = std::lower_bound(numbers.begin(), numbers.end(), tensor);
      if (found == numbers.end() || *found != tensor) return;
      finished[static_cast<std::size_t>(found - numbers.begin())] = true;
      for (; num_told < numbers.size() && finished[num_told]; ++num_told) {
        QuantizedLayer layer = report.layers[num_told];
        layer.relative_loss = errors->relative(numbers[num_told]);
        options.on_layer(layer);
      }
    };
  JobBatch batch(options, "quantizing");
  batch.add(std::move(job), request.output);
  static_cast<JobReport&>(report) = std::move(batch.run().front());
  for (std::size_t k = 0; k < numbers.size(); ++k) report.layers[k].relative_loss = errors->relative(numbers[k]);
  if (report.num_parameters != 0) report.bits_per_weight = 8.0 * static_cast<double>(report.size_bytes) / static_cast<double>(report.num_parameters);
  return report;
}

}  // namespace weft::engine
