#include "adapt/folded_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "adapt/fold.h"
#include "adapt/gguf_lora.h"
#include "base/check.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/model_folder.h"
#include "checkpoint/quantized_view.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_view.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "model/config_json.h"

namespace weft::adapt {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kBlockElements = 1 << 16;
constexpr std::size_t kMaxLayers = 100'000;

bool is_plain_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64; }

std::shared_ptr<const model::HuggingFaceModel> held_of(const Checkpoint& checkpoint);

/// config.json beside a model's weights, or that of the model in a GGUF file.
std::optional<Json> config_of(const Checkpoint& checkpoint) {
  if (const auto held = held_of(checkpoint)) {
    Json config = held->config;
    std::vector<std::string> ignored;
    follow_in_config(checkpoint, config, ignored);
    return config;
  }
  const fs::path folder = path_kind(checkpoint.path()) == PathKind::folder ? checkpoint.path() : checkpoint.path().parent_path();
  if (path_kind(folder / "config.json") != PathKind::file) return std::nullopt;
  Json config = read_json_file(folder / "config.json");
  if (!config.is_object()) return std::nullopt;
  std::vector<std::string> ignored;
  follow_in_config(checkpoint, config, ignored);
  return config;
}

/// Elements as float64.
void decode_doubles(DType dtype, std::span<const std::byte> data, std::span<double> out) {
  if (dtype == DType::f64) {
    std::memcpy(out.data(), data.data(), out.size_bytes());
    return;
  }
  std::vector<float> values(out.size());
  math::decode(dtype, data, values);
  std::copy(values.begin(), values.end(), out.begin());
}

/// One tensor of the folded model.
struct Entry {
  TensorRef source;                   ///< where its values begin
  std::optional<TensorRef> unfolded;  ///< the model's own, to stop on the way between the two; only when that is asked for
  MakeFold make;
  std::uint64_t rows = 0, columns = 0;
  bool replaced = false;  ///< the source is no tensor of the model of that name
};

class FoldedCheckpoint final : public Checkpoint {
 public:
  FoldedCheckpoint(std::shared_ptr<const Checkpoint> base, std::shared_ptr<const Adapter> adapter, const FoldOptions& options)
      : base_(std::move(base)), adapter_(std::move(adapter)), options_(options) {
    container_ = "view";
    warnings_.assign(base_->warnings().begin(), base_->warnings().end());
    held_ = held_of(*base_);
    if (as_gguf(*base_) != nullptr) {
      held_ = std::make_shared<const model::HuggingFaceModel>(model::hugging_face_model(base_));
      base_ = held_->checkpoint;
      warnings_.insert(warnings_.end(), held_->warnings.begin(), held_->warnings.end());
    }
    path_ = base_->path();
    metadata_ = base_->metadata();
    files_.assign(base_->files().begin(), base_->files().end());
    if (held_ && !dynamic_cast<const FoldedCheckpoint*>(base_.get()))
      config_ = held_->config;
    else
      config_ = config_of(*base_);
    if (!adapter_->gguf_architecture.empty())
      adapter_ = std::make_shared<const Adapter>(hugging_face_lora(*adapter_, config_ ? &*config_ : nullptr));
    const auto adapter_file = static_cast<std::uint32_t>(files_.size());
    files_.insert(files_.end(), adapter_->tensors->files().begin(), adapter_->tensors->files().end());
    check_start();
    std::shared_ptr<const Checkpoint> model = replicate_layers();
    find_head(*model);
    plan(model, adapter_file);
    index_tensors();
    locks_ = std::deque<std::mutex>(entries_.size());
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    if (out.empty()) return;
    const std::size_t i = position(tensor);
    const Entry& entry = entries_[i];
    const TensorInfo& own = tensors_[i];
    WEFT_ASSERT(offset <= own.size_bytes && out.size() <= own.size_bytes - offset);
    if (!entry.make && !entry.unfolded && own.dtype == entry.source.tensor->dtype) {
      entry.source.checkpoint->read_bytes(*entry.source.tensor, offset, out);
      return;
    }
    const std::uint64_t row_bytes = entry.columns * static_cast<std::uint64_t>(info(own.dtype).bits) / 8;
    const RowSource rows = row_source(entry.source, entry);
    const std::shared_ptr<const Fold> fold = entry.make ? fold_of(i, rows) : nullptr;
    const std::uint64_t step = std::max<std::uint64_t>(1, kBlockElements / std::max<std::uint64_t>(1, entry.columns));
    const std::uint64_t last = (offset + out.size() + row_bytes - 1) / row_bytes;
    std::vector<double> values;
    std::vector<std::byte> encoded;
    for (std::uint64_t first = offset / row_bytes; first < last; first += step) {
      const std::uint64_t count = std::min(step, last - first);
      values.resize(checked_size(count * entry.columns, "rows"));
      rows.read(first, count, values);
      if (fold) fold->apply(rows, first, count, values);
      if (entry.unfolded) mix(*entry.unfolded, entry, first, count, values);
      check_values(own, values);
      const std::uint64_t begin = first * row_bytes, end = begin + count * row_bytes;
      const std::uint64_t from = std::max(begin, offset), to = std::min(end, offset + out.size());
      if (from == begin && to == end) {
        encode_doubles(own.dtype, values, out.subspan(static_cast<std::size_t>(begin - offset), static_cast<std::size_t>(end - begin)));
      } else {
        encoded.resize(checked_size(end - begin, "rows"));
        encode_doubles(own.dtype, values, encoded);
        std::memcpy(out.data() + (from - offset), encoded.data() + (from - begin), static_cast<std::size_t>(to - from));
      }
    }
  }
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    const TensorInfo* own = find_tensor(tensor.name);
    if (own == nullptr || own->size_bytes == 0) return;
    const TensorRef& source = entries_[static_cast<std::size_t>(own - tensors_.data())].source;
    const auto scaled = [&](std::uint64_t bytes) {
      return static_cast<std::uint64_t>(static_cast<double>(bytes) / static_cast<double>(own->size_bytes) *
                                        static_cast<double>(source.tensor->size_bytes));
    };
    source.checkpoint->will_read(*source.tensor, scaled(offset), scaled(size_bytes));
  }
  void check_unchanged() const override {
    base_->check_unchanged();
    adapter_->tensors->check_unchanged();
  }
  void verify_checksums() const override {
    base_->verify_checksums();
    adapter_->tensors->verify_checksums();
  }

  [[nodiscard]] const FoldSummary& summary() const noexcept { return summary_; }
  [[nodiscard]] const std::shared_ptr<const model::HuggingFaceModel>& held() const noexcept { return held_; }
  [[nodiscard]] bool repeats_layers() const { return !layers_.empty() || adapt::repeats_layers(*base_); }
  [[nodiscard]] bool changes(std::string_view name) const {
    const TensorInfo* own = find_tensor(name);
    if (own == nullptr) return false;
    const Entry& entry = entries_[static_cast<std::size_t>(own - tensors_.data())];
    return entry.make != nullptr || entry.replaced || is_changed(*base_, entry.source.tensor->name);
  }

  void edit(Json& config, std::vector<std::string>& warnings) const {
    follow_in_config(*base_, config, warnings);
    if (!layers_.empty()) {
      if (const model::Architecture* architecture = model::find_architecture(config))
        model::set_layers(config, *architecture, layers_, warnings);
      else
        model::text_config(config).set("num_hidden_layers", static_cast<std::uint64_t>(layers_.size()));
    }
    if (vocab_size_) model::set_vocab_size(config, *vocab_size_);
    if (summary_.unties) model::set_tie_word_embeddings(config, false);
  }

 private:
  // ---- Planning ----

  /// Whether the weights that the adapter was trained on are the ones here.
  void check_start() const {
    const std::string start = adapter_->text("init_lora_weights");
    for (const std::string_view kind : {"pissa", "olora", "corda", "loftq", "lora_ga"}) {
      if (!start.starts_with(kind) || options_.residual_base) continue;
      throw adapter_->error(
          ErrorCode::unsupported,
          fmt::format("the adapter was started with '{}', which moves a part of the model's weights into it: folding it into the original model "
                      "would count that part twice",
                      printable(start)),
          {},
          "if the model named here is the residual that was saved beside the adapter, say so: 'weft adapter fold --residual-base'; else save the "
          "adapter again with path_initial_model_for_weight_conversion");
    }
  }

  /// The model with its layers repeated as layer_replication says; the model itself without one.
  std::shared_ptr<const Checkpoint> replicate_layers() {
    const Json* intervals = adapter_->config.find("layer_replication");
    if (!intervals || intervals->is_null()) return base_;
    const auto refuse = [&](const std::string& why) { throw adapter_->error(ErrorCode::corrupt, "layer_replication " + why); };
    if (!intervals->array()) refuse("is no list");
    /// Begin and end of the first number among a name's parts.
    const auto layer_of = [](std::string_view name) -> std::optional<std::pair<std::size_t, std::size_t>> {
      for (std::size_t begin = 0; begin < name.size();) {
        const std::size_t end = std::min(name.find('.', begin), name.size());
        if (end > begin && end - begin < 7 && name.substr(begin, end - begin).find_first_not_of("0123456789") == std::string_view::npos)
          return std::pair(begin, end);
        begin = end + 1;
      }
      return std::nullopt;
    };
    int num_layers = 0;
    for (const TensorInfo& tensor : base_->tensors())
      if (const auto at = layer_of(tensor.name))
        num_layers = std::max(num_layers, std::stoi(tensor.name.substr(at->first, at->second - at->first)) + 1);
    for (const Json& item : *intervals->array()) {
      const Json::Array* pair = item.array();
      const std::optional<std::int64_t> begin = pair && pair->size() == 2 ? (*pair)[0].integer() : std::nullopt,
                                        end = begin ? (*pair)[1].integer() : std::nullopt;
      if (!begin || !end || *begin < 0 || *begin >= *end || *end > num_layers)
        refuse(fmt::format("has an interval outside of the model's {} layers", num_layers));
      for (std::int64_t layer = *begin; layer < *end; ++layer) layers_.push_back(static_cast<int>(layer));
      if (layers_.size() > kMaxLayers) refuse(fmt::format("makes more than {} layers", kMaxLayers));
    }
    std::map<int, std::vector<const TensorInfo*>> by_layer;
    std::vector<NamedTensor> tensors;
    for (const TensorInfo& tensor : base_->tensors()) {
      if (const auto at = layer_of(tensor.name))
        by_layer[std::stoi(tensor.name.substr(at->first, at->second - at->first))].push_back(&tensor);
      else
        tensors.push_back({{base_, &tensor}, tensor.name});
    }
    for (std::size_t j = 0; j < layers_.size(); ++j)
      for (const TensorInfo* tensor : by_layer[layers_[j]]) {
        const auto at = layer_of(tensor->name);
        std::string name = tensor->name;
        name.replace(at->first, at->second - at->first, std::to_string(j));
        tensors.push_back({{base_, tensor}, std::move(name)});
      }
    return select_tensors(tensors, *base_);
  }

  /// Which tensor is the embedding, and which the head that shares it.
  void find_head(const Checkpoint& model) {
    const model::Architecture* architecture = config_ ? model::find_architecture(*config_) : nullptr;
    std::vector<std::string> heads = {"lm_head.weight"};
    if (architecture) {
      tied_ = model::is_tied(*architecture, *config_);
      try {
        for (const model::TensorSlot& slot : model::tensor_slots(*architecture, *config_, model::Placement::post)) {
          if (slot.role != model::Role::head || slot.tied_names.empty()) continue;
          heads.insert(heads.begin(), slot.name);
          for (const std::string& name : slot.tied_names)
            if (embedding_.empty() && model.find_tensor(name)) embedding_ = name;
        }
      } catch (const Error&) {
        // A config that does not fit its architecture: names still tell.
      }
    } else if (config_) {
      const Json* tied = config_->find("tie_word_embeddings");
      tied_ = tied ? tied->boolean().value_or(false) : false;
    }
    if (embedding_.empty())
      for (const TensorInfo& tensor : model.tensors())
        if (embedding_.empty() && model::role_of(architecture, tensor.name) == model::Role::embed) embedding_ = tensor.name;
    for (const std::string& head : heads)
      if (model.find_tensor(head)) head_ = head;
    if (head_.empty()) {
      head_ = heads.front();
      head_is_absent_ = true;
    }
  }

  /// Names of the model, as changes_of() asks for them.
  class Names final : public BaseTensors {
   public:
    Names(const Checkpoint& model, std::string embedding, std::optional<TensorInfo> head)
        : model_(model), embedding_(std::move(embedding)), head_(std::move(head)) {
      for (const TensorInfo& tensor : model.tensors()) {
        const std::size_t dot = tensor.name.find('.');
        if (dot != std::string::npos) prefixes_.insert(tensor.name.substr(0, dot + 1));
      }
    }
    [[nodiscard]] std::optional<std::string> find(std::string_view module, std::string_view leaf) const override {
      const std::string name = leaf.empty() ? std::string(module) : fmt::format("{}.{}", module, leaf);
      if (model_.find_tensor(name)) return name;
      if (head_ && head_->name == name) return name;
      // Models are saved with and without the name of their trunk.
      if (const std::size_t dot = name.find('.'); dot != std::string::npos)
        if (std::string shorter = name.substr(dot + 1); model_.find_tensor(shorter)) return shorter;
      std::optional<std::string> found;
      for (const std::string& prefix : prefixes_)
        if (model_.find_tensor(prefix + name)) {
          if (found) return std::nullopt;  // it could be either
          found = prefix + name;
        }
      return found;
    }
    [[nodiscard]] const TensorInfo& tensor(std::string_view name) const override {
      if (head_ && head_->name == name) return *head_;
      return model_.tensor(name);
    }
    [[nodiscard]] bool is_embedding(std::string_view name) const override {
      return name == embedding_ || (head_ && head_->name == name) || name.ends_with("lm_head.weight") || name.ends_with("embed_out.weight") ||
             model::role_of(nullptr, name) == model::Role::embed;
    }

   private:
    const Checkpoint& model_;
    std::string embedding_;
    std::optional<TensorInfo> head_;
    std::set<std::string> prefixes_;
  };

  void plan(const std::shared_ptr<const Checkpoint>& model, std::uint32_t adapter_file) {
    std::optional<TensorInfo> absent_head;
    if (head_is_absent_ && !embedding_.empty()) {
      absent_head = model->tensor(embedding_);
      absent_head->name = head_;
    }
    const Names names(*model, embedding_, absent_head);
    std::map<std::string, ChangedTensor> changes;
    std::vector<std::string> unknown;
    std::optional<Error> first_unknown;
    bool rows_only = false;  // the embedding changes in listed rows alone, which the head follows
    for (const AdapterModule& module : adapter_->modules) {
      try {
        for (ChangedTensor& change : changes_of(adapter_, module, names)) {
          if (change.name == embedding_ && module.parts.contains("trainable_tokens_delta")) rows_only = true;
          if (const auto [at, is_new] = changes.emplace(change.name, ChangedTensor()); is_new) {
            at->second = std::move(change);
          } else {
            merge_changes(at->second, std::move(change));
          }
        }
      } catch (const Error& error) {
        if (error.code() != ErrorCode::invalid_argument || !error.message().starts_with("the model has no")) throw;
        unknown.push_back(printable(module.name, 100));
        if (!first_unknown) first_unknown = error;
      }
    }
    if (unknown.size() == 1) throw *first_unknown;
    if (!unknown.empty()) {
      const std::size_t count = unknown.size();
      if (unknown.size() > 6) unknown.resize(6);
      throw adapter_->error(ErrorCode::invalid_argument,
                            fmt::format("the model lacks {} of the {} modules that the adapter changes: {}{}", count, adapter_->modules.size(),
                                        fmt::join(unknown, ", "), count > 6 ? ", ..." : ""),
                            {}, first_unknown->advice());
    }

    const auto embedding_change = changes.find(embedding_);
    const bool embedding_changes = !embedding_.empty() && embedding_change != changes.end();
    // Rows listed for a tied pair are saved twice; the pair stays one.
    if (head_is_absent_ && embedding_changes && rows_only && same_rows(embedding_, head_)) changes.erase(head_);
    const bool head_changes = changes.contains(head_);
    if (tied_ || head_is_absent_) {
      if (embedding_changes && rows_only && !head_changes && !head_is_absent_) {
        ChangedTensor follow = embedding_change->second;
        follow.name = head_;
        changes.emplace(head_, std::move(follow));
      } else if (tied_ && (head_changes || (embedding_changes && !rows_only))) {
        summary_.unties = true;
      }
    }

    for (const TensorInfo& tensor : model->tensors()) {
      const auto change = changes.find(tensor.name);
      add_entry({model, &tensor}, tensor, change == changes.end() ? nullptr : &change->second, adapter_file);
    }
    if (head_is_absent_ && absent_head && (summary_.unties || head_changes)) {
      const TensorInfo& embedding = model->tensor(embedding_);
      TensorInfo head = embedding;
      head.name = head_;
      const auto change = changes.find(head_);
      add_entry({model, &embedding}, head, change == changes.end() ? nullptr : &change->second, adapter_file);
      entries_.back().replaced = true;
    }
    for (const TensorInfo& tensor : tensors_)
      if (tensor.name == embedding_ && config_ && !tensor.shape.empty() && tensor.shape[0] != model->tensor(embedding_).shape[0])
        vocab_size_ = static_cast<std::uint64_t>(tensor.shape[0]);
  }

  /// Whether the adapter has the same rows for both.
  [[nodiscard]] bool same_rows(std::string_view a, std::string_view b) const {
    const auto rows_of = [&](std::string_view name) -> std::vector<float> {
      for (const AdapterModule& module : adapter_->modules)
        if (const auto rows = module.parts.find("trainable_tokens_delta"); rows != module.parts.end() && name == module.name + ".weight")
          return values_of(*adapter_, *rows->second);
      return {};
    };
    return rows_of(a) == rows_of(b);
  }

  /// Two modules of the adapter change one tensor: a value that replaces it, and a change on top.
  void merge_changes(ChangedTensor& first, ChangedTensor second) const {
    if (first.make && second.make)
      throw adapter_->error(ErrorCode::corrupt, fmt::format("two modules of the adapter change '{}'", printable(first.name)), {},
                            "it is not clear which of the two counts");
    if (!first.replacement) first.replacement = second.replacement;
    if (!first.make) {
      first.make = std::move(second.make);
      first.matrix_of_last_axis = second.matrix_of_last_axis;
    }
  }

  void add_entry(const TensorRef& stored, const TensorInfo& described, const ChangedTensor* change, std::uint32_t adapter_file) {
    TensorInfo tensor = described;
    tensor.stored_as.clear();  // a view has values only
    tensor.stored_bytes = 0;
    Entry entry;
    entry.source = stored;
    const bool is_float = is_decodable_float(tensor.dtype);
    if (change) {
      if (!is_plain_float(tensor.dtype))
        throw adapter_->error(
            ErrorCode::unsupported,
            fmt::format("'{}' is stored as {}: an adapter cannot be folded into quantized weights", printable(tensor.name), to_string(tensor.dtype)),
            tensor.name, "fold it into the model from before quantization");
      if (change->replacement) {
        entry.source = *change->replacement;
        entry.replaced = true;
        if (entry.source.tensor->shape != tensor.shape) {
          tensor.shape = entry.source.tensor->shape;
          tensor.num_elements = entry.source.tensor->num_elements;
          tensor.size_bytes = tensor.num_elements * static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
          tensor.file_index = adapter_file;
        }
        ++summary_.num_replaced;
      }
      if (change->make) ++summary_.num_changed;
      entry.make = change->make;
      if (options_.scale != 1 && described.shape == tensor.shape) entry.unfolded = stored;
      if (!is_plain_float(entry.source.tensor->dtype))
        throw adapter_->error(ErrorCode::unsupported,
                              fmt::format("'{}' is stored as {}", printable(entry.source.tensor->name), to_string(entry.source.tensor->dtype)),
                              entry.source.tensor->name);
    }
    if (options_.dtype && is_float && is_plain_float(tensor.dtype) && (change || !options_.only_changed)) {
      tensor.dtype = *options_.dtype;
      tensor.size_bytes = checked_mul(tensor.num_elements, static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8, "tensor");
    }
    // Rows are the first axis; of a stack of matrices all but the last; of a vector each element.
    const Shape& shape = tensor.shape;
    entry.columns = 1;
    if (shape.size() > 1) {
      const std::size_t from = change && change->matrix_of_last_axis ? shape.size() - 1 : 1;
      for (std::size_t d = from; d < shape.size(); ++d) entry.columns *= static_cast<std::uint64_t>(shape[d]);
    }
    entry.rows = entry.columns == 0 ? 0 : tensor.num_elements / entry.columns;
    tensors_.push_back(std::move(tensor));
    entries_.push_back(std::move(entry));
  }

  // ---- Reading ----

  [[nodiscard]] std::size_t position(const TensorInfo& tensor) const {
    if (std::less_equal<>()(tensors_.data(), &tensor) && std::less<>()(&tensor, tensors_.data() + tensors_.size()))
      return static_cast<std::size_t>(&tensor - tensors_.data());
    return static_cast<std::size_t>(&this->tensor(tensor.name) - tensors_.data());  // a copy of the description
  }

  static RowSource row_source(const TensorRef& source, const Entry& entry) {
    return {entry.rows, entry.columns, [&source, columns = entry.columns](std::uint64_t first, std::uint64_t count, std::span<double> out) {
              const std::uint64_t row_bytes = columns * static_cast<std::uint64_t>(info(source.tensor->dtype).bits) / 8;
              std::vector<std::byte> bytes(checked_size(count * row_bytes, "rows"));
              source.checkpoint->read_bytes(*source.tensor, first * row_bytes, bytes);
              decode_doubles(source.tensor->dtype, bytes, out);
            }};
  }

  void mix(const TensorRef& unfolded, const Entry& entry, std::uint64_t first, std::uint64_t count, std::span<double> values) const {
    std::vector<double> base(values.size());
    row_source(unfolded, entry).read(first, count, base);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = base[i] + options_.scale * (values[i] - base[i]);
  }

  void check_values(const TensorInfo& tensor, std::span<const double> values) const {
    const double largest = tensor.dtype == DType::f16 ? 65519.99 : tensor.dtype == DType::f64 ? HUGE_VAL : 3.4028235677973362e38;
    for (const double v : values)
      if (!(std::abs(v) < largest))
        throw adapter_->error(ErrorCode::corrupt,
                              fmt::format("folding makes '{}' {}, which {} cannot hold", printable(tensor.name), v, to_string(tensor.dtype)),
                              tensor.name,
                              std::isfinite(v) ? "write the model in a wider type, such as bfloat16 or float32"
                                               : "the model or the adapter is broken; 'weft verify' tells which");
  }

  /// The factors of a tensor: made once while they are in use, dropped when others need the room.
  std::shared_ptr<const Fold> fold_of(std::size_t i, const RowSource& rows) const {
    const std::lock_guard making(locks_[i]);
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = cached_.find(i); found != cached_.end()) {
        order_.splice(order_.end(), order_, found->second.second);
        return found->second.first;
      }
    }
    std::shared_ptr<const Fold> fold = entries_[i].make(rows);
    const std::lock_guard lock(mutex_);
    order_.push_back(i);
    cached_.emplace(i, std::pair(fold, std::prev(order_.end())));
    held_bytes_ += fold->held_bytes;
    while (held_bytes_ > options_.cache_bytes && order_.size() > 1) {
      const auto oldest = cached_.find(order_.front());
      held_bytes_ -= oldest->second.first->held_bytes;
      cached_.erase(oldest);
      order_.pop_front();
    }
    return fold;
  }

  std::shared_ptr<const Checkpoint> base_;
  std::shared_ptr<const model::HuggingFaceModel> held_;  ///< where the model is in a GGUF file
  std::shared_ptr<const Adapter> adapter_;
  FoldOptions options_;
  std::optional<Json> config_;
  std::vector<int> layers_;  ///< of the model, for each layer of the result; empty: as they are
  bool tied_ = false;
  std::string embedding_, head_;
  bool head_is_absent_ = false;
  std::optional<std::uint64_t> vocab_size_;
  FoldSummary summary_;
  std::vector<Entry> entries_;  ///< of tensors_

  mutable std::deque<std::mutex> locks_;  ///< of entries_
  mutable std::mutex mutex_;              ///< of what follows
  mutable std::list<std::size_t> order_;  ///< least recently used first
  mutable std::unordered_map<std::size_t, std::pair<std::shared_ptr<const Fold>, std::list<std::size_t>::iterator>> cached_;
  mutable std::uint64_t held_bytes_ = 0;
};

std::shared_ptr<const model::HuggingFaceModel> held_of(const Checkpoint& checkpoint) {
  const auto* folded = dynamic_cast<const FoldedCheckpoint*>(&checkpoint);
  return folded == nullptr ? nullptr : folded->held();
}

}  // namespace

std::shared_ptr<const Checkpoint> fold_adapter(std::shared_ptr<const Checkpoint> base, std::shared_ptr<const Adapter> adapter,
                                               const FoldOptions& options) {
  if (options.dtype && !is_plain_float(*options.dtype))
    throw Error(ErrorCode::invalid_argument, fmt::format("adapters are not folded in {}", to_string(*options.dtype)), {},
                "give float32, bfloat16, float16 or float64");
  if (!std::isfinite(options.scale)) throw Error(ErrorCode::invalid_argument, "the scale of an adapter must be a finite number", {.key = "scale"});
  return std::make_shared<FoldedCheckpoint>(std::move(base), std::move(adapter), options);
}

std::optional<FoldSummary> fold_summary(const Checkpoint& checkpoint) {
  const auto* folded = dynamic_cast<const FoldedCheckpoint*>(&checkpoint);
  return folded ? std::optional(folded->summary()) : std::nullopt;
}

void follow_in_config(const Checkpoint& checkpoint, Json& config, std::vector<std::string>& warnings) {
  drop_quantization(checkpoint, config);
  if (const auto* folded = dynamic_cast<const FoldedCheckpoint*>(&checkpoint)) folded->edit(config, warnings);
}

bool is_changed(const Checkpoint& checkpoint, std::string_view tensor) {
  const auto* folded = dynamic_cast<const FoldedCheckpoint*>(&checkpoint);
  return folded != nullptr && folded->changes(tensor);
}

bool repeats_layers(const Checkpoint& checkpoint) {
  const auto* folded = dynamic_cast<const FoldedCheckpoint*>(&checkpoint);
  return folded != nullptr && folded->repeats_layers();
}

std::optional<model::HuggingFaceModel> held_model(const std::shared_ptr<const Checkpoint>& checkpoint) {
  if (as_gguf(*checkpoint) != nullptr) return model::hugging_face_model(checkpoint);
  const auto held = held_of(*checkpoint);
  if (held == nullptr) return std::nullopt;
  model::HuggingFaceModel model = *held;
  model.checkpoint = checkpoint;
  model.warnings.clear();  // the folded checkpoint has them
  follow_in_config(*checkpoint, model.config, model.warnings);
  return model;
}

ModelWithAdapters split_adapters(std::string_view model) {
  ModelWithAdapters out{std::string(model), {}};
  if (path_kind(model) != PathKind::nothing) return out;
  // From the right, so that a folder's name may hold a plus.
  std::string_view left = model;
  while (path_kind(left) == PathKind::nothing) {
    const std::size_t plus = left.rfind('+');
    if (plus == std::string_view::npos || plus == 0) break;
    // A part that is no path may be of the hub; then what stands before it must make sense as it is.
    out.adapters.insert(out.adapters.begin(), std::string(left.substr(plus + 1)));
    left = left.substr(0, plus);
  }
  if (out.adapters.empty()) return out;
  for (const std::string& adapter : out.adapters)
    if (adapter.empty())
      throw Error(ErrorCode::invalid_argument, fmt::format("'{}' names an empty adapter", printable(model)), {}, "write MODEL+ADAPTER");
  out.model = left;
  return out;
}

}  // namespace weft::adapt

namespace weft {

std::shared_ptr<const Checkpoint> open_checkpoint(std::string_view model, const OpenOptions& options) {
  const adapt::ModelWithAdapters parts = adapt::split_adapters(model);
  std::shared_ptr<const Checkpoint> checkpoint = open_stored_model(parts.model, options);
  for (const std::string& adapter : parts.adapters) {
    const std::filesystem::path path = resolve_model(adapter).path;
    checkpoint = adapt::fold_adapter(std::move(checkpoint), std::make_shared<const adapt::Adapter>(adapt::open_adapter(path)));
  }
  return checkpoint;
}

}  // namespace weft
