#include "engine/merge_plan.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <set>
#include <unordered_set>
#include <utility>

#include "adapt/folded_model.h"
#include "checkpoint/model_folder.h"
#include "engine/gguf_output.h"
#include "engine/model_card.h"
#include "model/config_json.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using model::Placement;
using model::TensorSlot;

/// How an input of a slot is found: the model, and the tensor that stands for the slot there.
struct Found {
  std::size_t source = 0;       ///< in the slice
  TensorRef tensor;
  std::string input_name;       ///< the slot's own name in that model; filters see it
};

std::string describe(const ModelRef& ref) { return ref.written; }

/// Layers of one output slice, with its sources opened.
struct OpenSlice {
  const Module* module = nullptr;
  const Slice* slice = nullptr;
  std::vector<const LoadedModel*> models;   ///< a source
  std::vector<LayerRange> layers;           ///< a source
  int first_output_layer = 0;
  [[nodiscard]] int num_layers() const { return layers.front().size(); }
};

class Planner {
 public:
  Planner(const MergeConfig& config, ModelCache& models, const fs::path& output, const MergeOptions& options)
      : config_(config), cache_(models), output_(output), options_(options) {}

  MergePlan run() {
    open_models();
    choose_architecture();
    open_slices();
    plan_vocabulary();
    for (const TensorSlot& slot : slots(Placement::pre)) add_outer(slices_.front(), slot);
    for (const OpenSlice& slice : slices_) {
      for (int i = 0; i < slice.num_layers(); ++i) add_layer(slice, i);
    }
    for (const TensorSlot& slot : slots(Placement::post)) add_outer(slices_.back(), slot);
    if (plan_.tensors.empty()) {
      throw Error(ErrorCode::invalid_argument, "the merge has no output tensors", {.file = config_.file}, "the models hold none of the tensors of their architecture");
    }
    warn_left_out();
    add_companions();
    return std::move(plan_);
  }

 private:
  // --- Models and architecture ---

  void open_models() {
    refs_ = config_.referenced_models();
    for (const ModelRef& ref : refs_) {
      const LoadedModel& loaded = cache_.load(ref);
      models_.push_back(&loaded);
      plan_.inputs.push_back(loaded.checkpoint);
      plan_.input_paths.push_back(loaded.path);
      for (const std::string& w : loaded.checkpoint->warnings()) plan_.warnings.push_back(fmt::format("{}: {}", describe(ref), w));
    }
  }

  const LoadedModel& loaded(const ModelRef& ref) const {
    for (std::size_t i = 0; i < refs_.size(); ++i)
      if (refs_[i] == ref) return *models_[i];
    throw Error(ErrorCode::internal, "model '" + ref.written + "' was not opened");
  }
  std::size_t position(const ModelRef& ref) const {
    for (std::size_t i = 0; i < refs_.size(); ++i)
      if (refs_[i] == ref) return i;
    throw Error(ErrorCode::internal, "model '" + ref.written + "' was not opened");
  }

  /// Models whose tensors are merged: those of slices, not those that only lend tokens or a tokenizer.
  void choose_architecture() {
    std::vector<const LoadedModel*> merged;
    for (const Module& module : config_.modules) {
      for (const Slice& slice : module.slices) {
        for (const Source& source : slice.sources) {
          const LoadedModel* one = &loaded(source.model);
          if (std::find(merged.begin(), merged.end(), one) == merged.end()) merged.push_back(one);
        }
      }
    }
    if (plain()) {
      made_ = std::make_unique<model::Architecture>(architecture_of_files());
      architecture_ = made_.get();
      return;
    }
    const LoadedModel* unknown = nullptr;
    const LoadedModel* other = nullptr;
    for (const LoadedModel* one : merged) {
      if (one->architecture == nullptr) unknown = one;
      else if (merged.front()->architecture != nullptr && one->architecture != merged.front()->architecture) other = one;
    }
    if (unknown != nullptr) {
      std::vector<const Checkpoint*> checkpoints;
      for (const LoadedModel* one : merged) checkpoints.push_back(one->checkpoint.get());
      made_ = std::make_unique<model::Architecture>(model::infer_architecture(checkpoints));
      architecture_ = made_.get();
      plan_.warnings.insert(plan_.warnings.end(), made_->warnings.begin(), made_->warnings.end());
      if (unknown->config) {
        plan_.warnings.push_back(fmt::format("the architecture of {} is not known to weft; layers are taken from the tensors' names", describe(unknown->ref)));
      }
      return;
    }
    if (other != nullptr && !options_.allow_crimes) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{} is a {} model and {} a {} model", describe(merged.front()->ref), merged.front()->architecture->name, describe(other->ref),
                              other->architecture->name),
                  {.file = config_.file}, "merge models of one architecture; --allow-crimes goes on with that of the first");
    }
    // Files of some architectures come with and without a prefix; the output keeps the names of its donor (of the first model, if that is not merged).
    const LoadedModel* donor = &loaded(config_.donor());
    if (std::find(merged.begin(), merged.end(), donor) == merged.end()) donor = merged.front();
    made_ = std::make_unique<model::Architecture>(model::with_names_of(*merged.front()->architecture, *donor->checkpoint));
    architecture_ = made_.get();
  }

  [[nodiscard]] bool plain() const { return options_.plain_files != PlainFiles::no; }

  /// Every tensor of the inputs that are listed, none in a layer; those that only a base beside them has are not part of the result.
  model::Architecture architecture_of_files() const {
    if (config_.tokenizer || config_.chat_template) {
      throw Error(ErrorCode::invalid_argument, "plain files have no tokenizer", {.file = config_.file, .key = "tokenizer"}, "leave tokenizer and chat_template out");
    }
    model::Architecture files;
    files.name = "plain files";
    files.inferred = true;
    std::unordered_set<std::string> seen;
    std::vector<const LoadedModel*> all;
    for (const Module& module : config_.modules) {
      if (module.form != OutputForm::models) {
        throw Error(ErrorCode::invalid_argument, "plain files have no layers to slice", {.file = config_.file, .key = "slices"}, "list them under models");
      }
      for (const Source& source : module.slices.front().sources) all.push_back(&loaded(source.model));
      for (const Source& source : module.slices.front().sources) {
        if (source.appended_base) continue;
        for (const TensorInfo& tensor : loaded(source.model).checkpoint->tensors()) {
          if (!seen.insert(tensor.name).second) continue;
          model::TensorTemplate& slot = files.tensors.emplace_back();
          slot.name = tensor.name;
          slot.optional = !std::all_of(all.begin(), all.end(), [&tensor](const LoadedModel* one) { return one->checkpoint->find_tensor(tensor.name) != nullptr; });
        }
      }
    }
    return files;
  }

  const Json& config_json(const LoadedModel& loaded_model) const {
    static const Json kEmpty{Json::Object{}};
    return loaded_model.config ? *loaded_model.config : kEmpty;
  }

  int layers_of(const LoadedModel& loaded_model) const {
    return architecture_->inferred ? architecture_->num_layers : model::num_layers(*architecture_, config_json(loaded_model));
  }

  // --- Slices ---

  void open_slices() {
    if (config_.modules.size() != 1 || (config_.written_as_modules && config_.modules.front().name != "default")) {
      const Module& module = config_.modules.size() > 1 && config_.modules.front().name == "default" ? config_.modules[1] : config_.modules.front();
      throw Error(ErrorCode::invalid_argument, fmt::format("the architecture {} has no module '{}'", architecture_->name, module.name),
                  {.file = config_.file, .key = "modules." + module.name}, "its one module is called 'default'");
    }
    const Module& module = config_.modules.front();
    int output_layer = 0;
    for (const Slice& slice : module.slices) {
      OpenSlice open;
      open.module = &module;
      open.slice = &slice;
      open.first_output_layer = output_layer;
      for (const Source& source : slice.sources) {
        const LoadedModel& one = loaded(source.model);
        open.models.push_back(&one);
        open.layers.push_back(source.layers ? *source.layers : LayerRange{0, layers_of(one)});
      }
      for (std::size_t i = 1; i < open.layers.size(); ++i) {
        if (open.layers[i].size() == open.layers[0].size()) continue;
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("the sources of {} must have the same number of layers: {} gives {}, {} gives {}", slice.name, slice.sources[0].model.written,
                                open.layers[0].size(), slice.sources[i].model.written, open.layers[i].size()),
                    {.file = config_.file, .key = slice.sources[i].key}, "use slices with a layer_range for each source");
      }
      output_layer += open.num_layers();
      slices_.push_back(std::move(open));
    }
    num_output_layers_ = output_layer;
    if (output_layer == 0 && !architecture_->inferred) {
      throw Error(ErrorCode::invalid_argument, "the output would have no layers", {.file = config_.file, .key = "slices"}, "give at least one slice with layers");
    }
    if (slices_.front().slice->sources.size() != slices_.back().slice->sources.size()) {
      plan_.warnings.push_back(fmt::format("the first slice has {} sources and the last {}: final norm and head are merged from all sources of the last (mergekit drops the surplus)",
                                           slices_.front().slice->sources.size(), slices_.back().slice->sources.size()));
    }
  }

  std::vector<TensorSlot> slots(Placement placement, int layer = -1) const {
    return model::tensor_slots(*architecture_, config_json(*slices_.front().models.front()), placement, layer);
  }

  // --- Vocabulary ---

  void plan_vocabulary() {
    std::vector<fs::path> folders;
    for (const LoadedModel* one : models_) folders.push_back(one->path);
    if (config_.chat_template) chat_template_ = choose_chat_template(*config_.chat_template, folders);
    if (!config_.tokenizer) return;

    std::vector<TokenizerModel> tokenizer_models;
    for (std::size_t i = 0; i < models_.size(); ++i) {
      TokenizerModel m;
      m.name = refs_[i].written;
      m.folder = models_[i]->path;
      if (const Json* config = models_[i]->config ? &*models_[i]->config : nullptr) {
        if (const Json* size = model::text_config(*config).find("vocab_size")) m.vocab_size = size->unsigned_integer();
      }
      tokenizer_models.push_back(std::move(m));
    }
    const TokenizerSpec spec = resolve_tokenizer(*config_.tokenizer, refs_);
    const std::optional<std::size_t> base = config_.base_model ? std::optional(position(*config_.base_model)) : std::nullopt;
    vocabulary_ = plan_tokenizer(tokenizer_models, base, spec, chat_template_);
    plan_.warnings.insert(plan_.warnings.end(), vocabulary_->warnings().begin(), vocabulary_->warnings().end());
    vocab_size_ = vocabulary_->num_rows();
  }

  // --- Tensors ---

  /// Name, then aliases, in one model; patterns have the layer filled in by the caller.
  static const TensorInfo* find(const LoadedModel& one, const std::string& name, const std::vector<std::string>& aliases) {
    if (const TensorInfo* t = one.checkpoint->find_tensor(name)) return t;
    for (const std::string& alias : aliases)
      if (const TensorInfo* t = one.checkpoint->find_tensor(alias)) return t;
    return nullptr;
  }

  bool all_tied(const OpenSlice& slice) const {
    return std::all_of(slice.models.begin(), slice.models.end(), [this](const LoadedModel* one) { return one->config && model::is_tied(*architecture_, *one->config); });
  }

  void add_outer(const OpenSlice& slice, const TensorSlot& slot) {
    std::vector<const TensorInfo*> own;
    bool any = false;
    for (const LoadedModel* one : slice.models) {
      own.push_back(find(*one, slot.name, slot.aliases));
      any = any || own.back() != nullptr;
    }
    if (!slot.tied_names.empty() && all_tied(slice)) {
      // Loaders ignore a head that the config ties, so merging it would only hide that it is not used.
      for (std::size_t i = 0; i < own.size(); ++i) {
        if (own[i] == nullptr) continue;
        plan_.warnings.push_back(fmt::format("{} holds '{}' although its config ties it to the embedding; it is left out, as loaders ignore it",
                                             slice.slice->sources[i].model.written, own[i]->name));
        used_.insert(own[i]->name);
      }
      return;
    }
    if (!any && (slot.optional || !slot.tied_names.empty())) {
      if (!slot.optional) missing(slot.name, *slice.slice, 0);
      return;
    }
    std::vector<Found> found;
    for (std::size_t i = 0; i < own.size(); ++i) {
      const TensorInfo* tensor = own[i];
      if (tensor == nullptr && !slot.tied_names.empty()) tensor = find(*slice.models[i], slot.tied_names.front(), slot.tied_names);
      if (tensor == nullptr) {
        if (slot.optional) continue;
        missing(slot.name, *slice.slice, i);
      }
      found.push_back({i, {slice.models[i]->checkpoint, tensor}, slot.name});
    }
    add(slice, slot, slot.name, std::move(found), 0.0, -1);
  }

  void add_layer(const OpenSlice& slice, int i) {
    const int output_layer = slice.first_output_layer + i;
    const double position = gradient_position(i, slice.num_layers());
    for (const TensorSlot& slot : slots(Placement::layer, slice.layers.front().begin + i)) {
      std::vector<Found> found;
      bool any = false;
      std::vector<const TensorInfo*> own;
      std::vector<std::string> names;
      for (std::size_t k = 0; k < slice.models.size(); ++k) {
        const int input_layer = slice.layers[k].begin + i;
        std::vector<std::string> aliases;
        for (const std::string& alias : slot.alias_patterns) aliases.push_back(model::with_layer(alias, input_layer));
        names.push_back(model::with_layer(slot.pattern, input_layer));
        own.push_back(find(*slice.models[k], names.back(), aliases));
        any = any || own.back() != nullptr;
      }
      if (!any && slot.optional) continue;
      for (std::size_t k = 0; k < own.size(); ++k) {
        if (own[k] == nullptr) {
          if (slot.optional) continue;
          missing(names[k], *slice.slice, k);
        }
        found.push_back({k, {slice.models[k]->checkpoint, own[k]}, names[k]});
      }
      add(slice, slot, model::with_layer(slot.pattern, output_layer), std::move(found), position, output_layer);
    }
  }

  [[noreturn]] void missing(const std::string& name, const Slice& slice, std::size_t source) const {
    const ModelRef& ref = slice.sources[source].model;
    throw Error(ErrorCode::not_found, fmt::format("tensor '{}' is required but not present in model {}", name, ref.written),
                {.file = loaded(ref).path.string(), .tensor = name}, "the model lacks this layer or is incomplete; 'weft verify' tells what else is missing");
  }

  /// Whether the method can work with the sources that have an optional tensor. Says what was done when it cannot.
  bool enough(const OpenSlice& slice, const std::string& name, const std::vector<Found>& found, bool& copy) {
    const merge::Method& method = *config_.method;
    const std::size_t all = slice.slice->sources.size();
    copy = false;
    if (found.size() == all) return true;
    if (options_.plain_files == PlainFiles::intersection) return false;
    if (options_.plain_files == PlainFiles::same_tensors) {
      throw Error(ErrorCode::not_found, fmt::format("tensor '{}' is in {} of the {} inputs only", name, found.size(), all), {.file = config_.file, .tensor = name},
                  "--tensor-union merges what is there, --tensor-intersection leaves such tensors out");
    }
    std::size_t models = 0;
    bool base = false;
    for (const Found& f : found) {
      if (config_.is_base(*slice.slice, slice.slice->sources[f.source])) base = true;
      else ++models;
    }
    const bool needs_base = method.base == merge::BaseRule::required;
    if (found.size() == 1 && (!needs_base || base)) {
      copy = true;
      plan_.warnings.push_back(fmt::format("only {} has '{}'; it is copied", slice.slice->sources[found.front().source].model.written, name));
      return true;
    }
    if (needs_base && !base) {
      throw Error(ErrorCode::not_found, fmt::format("tensor '{}' is not present in the base model, which {} needs", name, method.name), {.tensor = name},
                  "merge models that share the tensors of their base");
    }
    if (models < static_cast<std::size_t>(method.min_models) && method.base != merge::BaseRule::one_of_two) {
      plan_.warnings.push_back(fmt::format("'{}' is in too few models for {} and was left out", name, method.name));
      return false;
    }
    return true;
  }

  /// Brings the inputs of a vocabulary tensor to one number of rows, or says why that cannot be.
  void align_vocabulary(const OpenSlice& slice, const std::string& name, std::vector<Found>& found, std::optional<DType> load_dtype) {
    if (vocabulary_) {
      std::vector<EmbeddingInput> inputs;
      for (const Found& f : found) inputs.push_back({position(slice.slice->sources[f.source].model), f.tensor, true});
      // Rules may take rows from models that are not merged here.
      for (std::size_t m = 0; m < models_.size(); ++m) {
        if (std::any_of(inputs.begin(), inputs.end(), [m](const EmbeddingInput& in) { return in.model == m; })) continue;
        const TensorInfo* tensor = models_[m]->checkpoint->find_tensor(name);
        if (tensor != nullptr) inputs.push_back({m, {models_[m]->checkpoint, tensor}, false});
      }
      const std::vector<TensorRef> rebuilt = rebuild_embeddings(*vocabulary_, inputs, name, load_dtype, plan_.warnings);
      for (std::size_t i = 0; i < found.size(); ++i) found[i].tensor = rebuilt[i];
      return;
    }
    std::int64_t rows = found.front().tensor.tensor->shape.empty() ? 0 : found.front().tensor.tensor->shape.front();
    bool same = true;
    for (const Found& f : found) {
      const Shape& shape = f.tensor.tensor->shape;
      if (shape.size() != found.front().tensor.tensor->shape.size() || shape.empty()) return;
      same = same && shape.front() == rows;
      rows = std::min(rows, shape.front());
    }
    if (same || !options_.unsafe_truncate_embeddings) return;
    for (Found& f : found) f.tensor = truncate_rows(f.tensor, static_cast<std::uint64_t>(rows));
    plan_.warnings.push_back(fmt::format("'{}' was cut to its first {} rows, the smallest vocabulary of the models", name, rows));
    vocab_size_ = static_cast<std::uint64_t>(rows);
  }

  void check_shapes(const OpenSlice& slice, const TensorSlot& slot, const std::string& name, const std::vector<Found>& found) const {
    const TensorInfo& first = *found.front().tensor.tensor;
    for (const Found& f : found) {
      const TensorInfo& other = *f.tensor.tensor;
      if (other.shape == first.shape) continue;
      const bool vocabulary = slot.vocabulary_axis && !other.shape.empty() && other.shape.size() == first.shape.size() &&
                              std::equal(other.shape.begin() + 1, other.shape.end(), first.shape.begin() + 1);
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("shape mismatch for tensor '{}': {} in {}, {} in {}", name, to_string(first.shape), slice.slice->sources[found.front().source].model.written,
                              to_string(other.shape), slice.slice->sources[f.source].model.written),
                  {.file = config_.file, .tensor = name},
                  vocabulary ? "the vocabularies differ: set a tokenizer (for example 'tokenizer: {source: base}') or cut them with --unsafe-truncate-embeddings"
                             : "models of different sizes cannot be merged");
    }
  }

  void add(const OpenSlice& slice, const TensorSlot& slot, const std::string& name, std::vector<Found> found, double position, int layer) {
    for (const Found& f : found) used_.insert(f.tensor.tensor->name);
    bool copy_only = false;
    if (!enough(slice, name, found, copy_only)) return;

    const std::optional<DType> load_dtype = slot.force_dtype ? slot.force_dtype : config_.dtype;
    const bool floating = std::all_of(found.begin(), found.end(), [](const Found& f) {
      const DTypeKind kind = info(f.tensor.tensor->dtype).kind;
      return kind == DTypeKind::floating || kind == DTypeKind::complex;
    });
    if (slot.vocabulary_axis && floating) align_vocabulary(slice, name, found, load_dtype);
    check_shapes(slice, slot, name, found);

    StreamTensor tensor;
    tensor.name = name;
    tensor.shape = found.front().tensor.tensor->shape;
    PlannedTensor described;
    described.name = name;
    described.shape = tensor.shape;
    described.method = config_.merge_method;

    const ParameterResolver resolver(config_, *slice.module, *slice.slice);
    merge::TensorContext context;
    context.name = name;
    context.shape = tensor.shape;
    context.num_elements = found.front().tensor.tensor->num_elements;
    context.seed = options_.seed;
    context.layer = layer;
    context.num_layers = num_output_layers_;
    context.warnings = tensor.warnings.get();
    context.values = resolver.global_values(name, position);
    std::vector<std::uint32_t> index_of(slice.slice->sources.size(), 0);
    for (std::uint32_t next = 0, s = 0; s < index_of.size(); ++s) {
      if (!config_.is_base(*slice.slice, slice.slice->sources[s])) index_of[s] = next++;
    }
    DType common = found.front().tensor.tensor->dtype;
    for (const Found& f : found) {
      const Source& source = slice.slice->sources[f.source];
      merge::Input input;
      input.model = source.model.written;
      input.is_base = config_.is_base(*slice.slice, source);
      input.index = index_of[f.source];
      input.values = resolver.source_values(source, f.input_name, position);
      if (!input.is_base) describe_values(input.values, source.model.written + ".", described);
      described.inputs.push_back(fmt::format("{}:{}", source.model.written, f.tensor.tensor->name));
      context.inputs.push_back(std::move(input));
      tensor.inputs.push_back(f.tensor);
      tensor.input_names.push_back(source.model.written);
      common = promote_any(common, f.tensor.tensor->dtype);
    }
    describe_values(context.values, "", described);

    if (!floating) {
      // Integer and boolean tensors are never merged.
      if (const auto base = context.base()) {
        std::swap(tensor.inputs[0], tensor.inputs[*base]);
        std::swap(tensor.input_names[0], tensor.input_names[*base]);
      }
      tensor.dtype = tensor.inputs.front().tensor->dtype;
      described.method = "copy";
      finish(std::move(tensor), std::move(described));
      return;
    }
    const DType arithmetic = load_dtype ? *load_dtype : common;
    tensor.load_dtype = load_dtype;
    tensor.compute_dtype = arithmetic;
    tensor.dtype = slot.force_dtype ? *slot.force_dtype : config_.out_dtype ? *config_.out_dtype : arithmetic;
    if (copy_only) {
      described.method = "copy";
    } else {
      tensor.merge = merge::make_merge(*config_.method, context);
      check_decodable(tensor);
    }
    finish(std::move(tensor), std::move(described));
  }

  /// What the method really looks at.
  void describe_values(const merge::Values& values, const std::string& prefix, PlannedTensor& described) const {
    for (const merge::Parameter& p : config_.method->parameters) {
      if (p.ignored) continue;
      if (const auto value = values.find(p.name)) described.parameters.emplace_back(prefix + p.name, fmt::format("{}", *value));
    }
  }

  /// promote() knows real floats only; complex and undecodable types only ever meet themselves.
  static DType promote_any(DType a, DType b) { return a == b ? a : promote(a, b); }

  void check_decodable(const StreamTensor& tensor) const {
    const auto copied = tensor.merge->copied_input();
    for (std::size_t i = 0; i < tensor.inputs.size(); ++i) {
      const DType stored = tensor.inputs[i].tensor->dtype;
      const bool looked_at = copied ? *copied == i && (stored != tensor.dtype) : tensor.merge->reads_input(i);
      if (!looked_at || is_decodable_float(stored)) continue;
      throw Error(ErrorCode::unsupported, fmt::format("tensor '{}' of {} is stored as {}, which weft can copy but not compute with", tensor.name, tensor.input_names[i], to_string(stored)),
                  {.tensor = tensor.name}, "convert the model first");
    }
    if (!is_decodable_float(tensor.dtype) && !(copied && tensor.inputs[*copied].tensor->dtype == tensor.dtype)) {
      throw Error(ErrorCode::unsupported, fmt::format("tensor '{}' cannot be written as {}", tensor.name, to_string(tensor.dtype)), {.tensor = tensor.name},
                  "choose another dtype");
    }
  }

  void finish(StreamTensor tensor, PlannedTensor described) {
    if (!names_.insert(tensor.name).second) {
      throw Error(ErrorCode::internal, "two outputs are called '" + tensor.name + "'", {.tensor = tensor.name});
    }
    described.dtype = tensor.dtype;
    plan_.tensors.push_back(std::move(tensor));
    plan_.described.push_back(std::move(described));
  }

  /// Tensors that a merged model holds and no slot asked for.
  void warn_left_out() {
    std::set<const LoadedModel*> seen;
    for (const OpenSlice& slice : slices_) {
      for (std::size_t i = 0; i < slice.models.size(); ++i) {
        const LoadedModel& one = *slice.models[i];
        if (!seen.insert(&one).second) continue;
        // Layers that the slices leave out are meant to be left out.
        std::vector<std::string> surplus;
        for (const TensorInfo& t : one.checkpoint->tensors()) {
          if (used_.contains(t.name) || model::is_dropped(*architecture_, t.name) || model::match_name(*architecture_, t.name)) continue;
          surplus.push_back(t.name);
        }
        if (surplus.empty()) continue;
        plan_.warnings.push_back(fmt::format("{} tensors of {} are not part of the {} architecture and were left out ('{}'{})", surplus.size(), one.ref.written,
                                             architecture_->name, surplus.front(), surplus.size() > 1 ? ", ..." : ""));
      }
    }
  }

  // --- What is not weights ---

  void add_companions() {
    if (plain()) {
      plan_.companions.push_back({"weft_provenance.json", provenance()});
      return;
    }
    const LoadedModel& donor = loaded(config_.donor());
    const bool donor_is_folder = fs::is_directory(donor.path);
    if (donor.config) plan_.companions.push_back({"config.json", write_json(edited_config(donor), 2) + "\n"});
    if (vocabulary_) {
      append(vocabulary_->files());
    } else if (options_.copy_tokenizer && donor_is_folder) {
      append(donor_tokenizer_files(donor.path, chat_template_, plan_.warnings));
    } else if (chat_template_) {
      plan_.warnings.push_back("chat_template has no effect without a tokenizer to write");
    }
    if (donor_is_folder) append(donor_companion_files(donor.path));
    if (options_.write_model_card) {
      ModelCard card;
      card.title = output_.filename().empty() ? output_.parent_path().filename().string() : output_.filename().string();
      card.method = config_.merge_method;
      card.method_summary = config_.method->summary;
      card.method_paper = config_.method->paper;
      if (config_.base_model) card.base_model = config_.base_model->written;
      for (const ModelRef& ref : refs_) card.models.push_back(ref.written);
      card.config_text = config_.text;
      append(model_card_files(card));
    }
    plan_.companions.push_back({"weft_provenance.json", provenance()});
  }

  void append(const std::vector<CompanionFile>& files) {
    for (const CompanionFile& file : files) {
      const bool taken = std::any_of(plan_.companions.begin(), plan_.companions.end(), [&file](const CompanionFile& other) { return other.name == file.name; });
      if (!taken) plan_.companions.push_back(file);
    }
  }

  Json edited_config(const LoadedModel& donor) {
    Json config = *donor.config;
    if (const std::optional<DType> written = config_.out_dtype ? config_.out_dtype : config_.dtype) model::set_dtype(config, *written);
    if (architecture_->inferred) {
      if (vocab_size_) model::set_vocab_size(config, *vocab_size_);
      return config;
    }
    std::vector<int> layers;
    for (const OpenSlice& slice : slices_) {
      // Per-layer lists follow the donor's own layers where it is a source of the slice, else the first source's.
      std::size_t which = 0;
      for (std::size_t i = 0; i < slice.models.size(); ++i)
        if (slice.models[i] == &donor) which = i;
      for (int i = 0; i < slice.num_layers(); ++i) layers.push_back(slice.layers[which].begin + i);
    }
    bool unchanged = static_cast<int>(layers.size()) == model::num_layers(*architecture_, *donor.config);
    for (std::size_t i = 0; i < layers.size(); ++i) unchanged = unchanged && layers[i] == static_cast<int>(i);
    if (!unchanged) model::set_layers(config, *architecture_, layers, plan_.warnings);
    if (vocab_size_) model::set_vocab_size(config, *vocab_size_);
    set_tie(config);
    return config;
  }

  /// The flag follows what was written: a separate head, or none.
  void set_tie(Json& config) {
    bool has_slot = false;
    bool has_head = false;
    for (const TensorSlot& slot : slots(Placement::post)) {
      if (slot.tied_names.empty() || slot.role != model::Role::head) continue;
      has_slot = true;
      has_head = has_head || names_.contains(slot.name);
    }
    if (!has_slot || model::is_tied(*architecture_, config) == !has_head) return;
    model::set_tie_word_embeddings(config, !has_head);
    plan_.warnings.push_back(has_head ? "the output has a head of its own; tie_word_embeddings was set to false (mergekit leaves it true)"
                                      : "the output has no head of its own; tie_word_embeddings was set to true");
  }

  /// What made this output. Nothing in it depends on the machine, the time or the number of threads.
  std::string provenance() const {
    Json root;
    root.set("weft_version", version());
    root.set("command", "merge");
    root.set("method", config_.merge_method);
    root.set("seed", options_.seed);
    root.set("config", config_.text);
    Json::Array inputs;
    for (std::size_t i = 0; i < models_.size(); ++i) {
      Json model;
      model.set("model", refs_[i].written);
      // A digest of what the headers say (names, types, shapes, places): enough to tell versions apart without reading the weights twice.
      XXH3_state_t* state = XXH3_createState();
      XXH3_128bits_reset(state);
      for (const TensorInfo& t : models_[i]->checkpoint->tensors()) {
        const std::string line = fmt::format("{}\n{}\n{}\n{}\n{}\n", t.name, to_string(t.dtype), to_string(t.shape), t.file_index, t.offset_bytes);
        XXH3_128bits_update(state, line.data(), line.size());
      }
      const XXH128_hash_t digest = XXH3_128bits_digest(state);
      XXH3_freeState(state);
      model.set("headers_xxh3_128", fmt::format("{:016x}{:016x}", digest.high64, digest.low64));
      Json::Array files;
      for (const CheckpointFile& file : models_[i]->checkpoint->files()) {
        Json entry;
        entry.set("name", file.path.filename().string());
        entry.set("size_bytes", file.size_bytes);
        files.push_back(std::move(entry));
      }
      model.set("files", Json(std::move(files)));
      inputs.push_back(std::move(model));
    }
    root.set("inputs", Json(std::move(inputs)));
    return write_json(root, 2) + "\n";
  }

  const MergeConfig& config_;
  ModelCache& cache_;
  const fs::path& output_;
  const MergeOptions& options_;
  MergePlan plan_;

  std::vector<ModelRef> refs_;                 ///< every model, once
  std::vector<const LoadedModel*> models_;     ///< the same
  const model::Architecture* architecture_ = nullptr;
  std::unique_ptr<model::Architecture> made_;  ///< from the names of tensors, or the table's with the donor's names
  std::vector<OpenSlice> slices_;
  int num_output_layers_ = 0;
  std::optional<std::string> chat_template_;
  std::optional<TokenizerPlan> vocabulary_;
  std::optional<std::uint64_t> vocab_size_;    ///< set when it changes
  std::unordered_set<std::string> names_;      ///< of outputs
  std::unordered_set<std::string> used_;       ///< tensors of inputs
};

}  // namespace

const LoadedModel& ModelCache::load(const ModelRef& ref) {
  for (const auto& model : models_)
    if (model->ref == ref) return *model;
  auto loaded = std::make_unique<LoadedModel>();
  loaded->ref = ref;
  const auto result = results_.find(ref.model.path);
  if (result != results_.end() && !ref.model.revision) {
    loaded->path = result->second.first;
    loaded->checkpoint = result->second.second;
  } else {
    loaded->path = resolve_model(ref.model.revision ? ref.model.path + "@" + *ref.model.revision : ref.model.path, hub_cache_).path;
  }
  if (loaded->checkpoint == nullptr) loaded->checkpoint = open_checkpoint(loaded->path.string());
  if (ref.lora) {
    const fs::path adapter = resolve_model(ref.lora->revision ? ref.lora->path + "@" + *ref.lora->revision : ref.lora->path, hub_cache_).path;
    loaded->checkpoint = adapt::fold_adapter(loaded->checkpoint, std::make_shared<const adapt::Adapter>(adapt::open_adapter(adapter)), {.dtype = lora_dtype_});
  }
  if (std::optional<model::HuggingFaceModel> held = adapt::held_model(loaded->checkpoint)) {
    GgufModel opened = open_gguf_model(*std::move(held));
    loaded->checkpoint = std::move(opened.checkpoint);
    loaded->path = std::move(opened.folder);
    loaded->guard = std::move(opened.guard);
  }
  const fs::path config_path = (fs::is_directory(loaded->path) ? loaded->path : loaded->path.parent_path()) / "config.json";
  if (fs::exists(config_path)) {
    loaded->config = read_json_file(config_path);
    std::vector<std::string> ignored;
    if (loaded->config->is_object()) adapt::follow_in_config(*loaded->checkpoint, *loaded->config, ignored);
    if (ref.override_architecture) loaded->config->set("architectures", Json(Json::Array{Json(*ref.override_architecture)}));
    loaded->architecture = model::find_architecture(*loaded->config);
  }
  models_.push_back(std::move(loaded));
  return *models_.back();
}

MergePlan plan_merge(const MergeConfig& config, ModelCache& models, const fs::path& output, const MergeOptions& options) {
  return Planner(config, models, output, options).run();
}

}  // namespace weft::engine
