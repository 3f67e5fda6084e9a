#include "engine/measure_compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "measure/neurons.h"
#include "measure/pairs.h"
#include "measure/structure.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using measure::Matrix;
using measure::Selection;
using model::Role;

constexpr std::uint64_t kFixedBytes = 8 << 20;
constexpr std::uint64_t kSparedElements = 4'000'000;
constexpr std::size_t kShownRaw = 6, kShownOther = 2;

/// The matrices of one gated feed-forward layer.
struct GatedLayer {
  int block = -1;
  const TensorInfo* gate = nullptr;
  const TensorInfo* up = nullptr;  ///< null: in the lower half of gate
  const TensorInfo* down = nullptr;
  const TensorInfo* norm = nullptr;
  [[nodiscard]] std::uint64_t neurons() const { return static_cast<std::uint64_t>(up != nullptr ? gate->shape[0] : gate->shape[0] / 2); }
  [[nodiscard]] std::uint64_t hidden() const { return static_cast<std::uint64_t>(gate->shape[1]); }
};

bool is_plain_matrix(const TensorInfo* tensor) {
  return tensor != nullptr && tensor->shape.size() == 2 && unreadable_reason(*tensor).empty() && tensor->num_elements > 0;
}

/// The norm whose output the feed-forward layer reads, by the names that are in use.
const TensorInfo* norm_before_mlp(const MeasuredInput& input, int block) {
  for (const char* name :
       {"pre_feedforward_layernorm.weight", "post_attention_layernorm.weight", "ffn_norm.weight", "mlp_norm.weight", "ln_2.weight"})
    for (const TensorInfo& tensor : input.checkpoint->tensors())
      if (input.block(tensor.name) == block && tensor.name.ends_with(name)) return &tensor;
  return nullptr;
}

std::vector<int> blocks_of(const MeasuredInput& input) {
  std::set<int> blocks;
  for (const TensorInfo& tensor : input.checkpoint->tensors())
    if (const int block = input.block(tensor.name); block >= 0) blocks.insert(block);
  return {blocks.begin(), blocks.end()};
}

/// Nothing, and why, where the layer has no such neurons.
std::optional<GatedLayer> gated_layer(const MeasuredInput& input, int block, std::string& reason, int expert = -1) {
  GatedLayer layer;
  layer.block = block;
  layer.gate = input.find(Role::gate, block, expert);
  layer.up = input.find(Role::up, block, expert);
  layer.down = input.find(Role::down, block, expert);
  if (layer.gate == nullptr) {
    layer.gate = input.find(Role::gate_up, block, expert);
    layer.up = nullptr;
    if (layer.gate != nullptr && layer.gate->shape.size() == 2 && layer.gate->shape[0] % 2 != 0) layer.gate = nullptr;
  } else if (layer.up == nullptr) {
    layer.gate = nullptr;
  }
  layer.norm = norm_before_mlp(input, block);
  const bool has_experts = input.find(Role::router, block) != nullptr;
  if (layer.gate == nullptr || layer.down == nullptr) {
    reason = has_experts ? "a mixture of experts, each of which is measured by itself where its matrices are" : "no gated feed-forward layer";
    return std::nullopt;
  }
  if (!is_plain_matrix(layer.gate) || !is_plain_matrix(layer.down) || (layer.up != nullptr && !is_plain_matrix(layer.up))) {
    reason = "gate, up or down is no matrix of numbers";
    return std::nullopt;
  }
  return layer;
}

struct Loaded {
  std::vector<double> values;
  std::int64_t rows = 0, columns = 0;
  [[nodiscard]] Matrix matrix() const { return {values, rows, columns}; }
};

Loaded load(const MeasuredInput& input, const TensorInfo& tensor) {
  return {read_doubles(*input.checkpoint, tensor), tensor.shape[0], tensor.shape[1]};
}

struct LoadedLayer {
  Loaded gate, up, down;
  std::vector<double> gain;
};

bool all_finite(std::span<const double> values) {
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

LoadedLayer load_layer(const MeasuredInput& input, const GatedLayer& layer) {
  LoadedLayer loaded;
  loaded.gate = load(input, *layer.gate);
  if (layer.up != nullptr) {
    loaded.up = load(input, *layer.up);
  } else {
    const std::size_t half = loaded.gate.values.size() / 2;
    loaded.up = {std::vector<double>(loaded.gate.values.begin() + static_cast<std::ptrdiff_t>(half), loaded.gate.values.end()), loaded.gate.rows / 2,
                 loaded.gate.columns};
    loaded.gate.values.resize(half);
    loaded.gate.rows /= 2;
  }
  loaded.down = load(input, *layer.down);
  if (layer.norm != nullptr) {
    loaded.gain = read_doubles(*input.checkpoint, *layer.norm);
    // Gemma stores what is added to one.
    const Json* type = input.config ? input.config->find("model_type") : nullptr;
    if (type != nullptr && type->string() != nullptr && type->string()->starts_with("gemma"))
      for (double& value : loaded.gain) value += 1;
  }
  return loaded;
}

Loaded transposed(const Loaded& m) {
  Loaded result{std::vector<double>(m.values.size()), m.columns, m.rows};
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t j = 0; j < m.columns; ++j)
      result.values[static_cast<std::size_t>(j * m.rows + i)] = m.values[static_cast<std::size_t>(i * m.columns + j)];
  return result;
}

/// The gain of the norm before the head; empty when there is none.
std::vector<double> final_gain(const MeasuredInput& input, std::int64_t hidden) {
  for (const TensorInfo& tensor : input.checkpoint->tensors()) {
    if (input.block(tensor.name) >= 0 || input.role(tensor.name) != Role::norm || !tensor.name.ends_with("norm.weight")) continue;
    if (tensor.shape == Shape{hidden} && unreadable_reason(tensor).empty()) return read_doubles(*input.checkpoint, tensor);
  }
  return {};
}

std::uint64_t layer_bytes(const GatedLayer& layer, const TensorInfo* head) {
  const std::uint64_t n = layer.neurons(), d = layer.hidden(), paired = n <= 2048 ? n * n : 0;
  std::uint64_t bytes = 7 * n * d + paired;
  if (head != nullptr) bytes += 2 * head->num_elements + 80 * static_cast<std::uint64_t>(head->shape[0]);
  return kFixedBytes + 8 * bytes;
}

/// The head, if neurons of this width can be decoded through it.
const TensorInfo* usable_head(const MeasuredInput& input, std::uint64_t hidden) {
  const TensorInfo* head = input.head();
  return is_plain_matrix(head) && static_cast<std::uint64_t>(head->shape[1]) == hidden && head->shape[0] > 1 ? head : nullptr;
}

void decode_layer(const MeasuredInput& input, const TensorInfo& head_tensor, const LoadedLayer& layer, std::uint64_t seed, Measures& out) {
  Loaded head = load(input, head_tensor);
  if (!all_finite(head.values) || !all_finite(layer.up.values) || !all_finite(layer.down.values))
    return measure::skip_group(out, "decoding", "non-finite");
  const Loaded down = transposed(layer.down);
  (void)measure::measure_decoding(head.matrix(), layer.up.matrix(), "up, raw", kShownRaw, out);
  (void)measure::measure_decoding(head.matrix(), down.matrix(), "down, raw", kShownRaw, out);
  measure::put(out, "decoding.null.median_max_abs", measure::decoding_null(head.matrix(), seed), "a head of equal rows");
  const auto d = static_cast<std::size_t>(head.columns);
  if (const std::vector<double> gain = final_gain(input, head.columns); !gain.empty()) {
    Loaded scaled = head;
    for (std::size_t i = 0; i < scaled.values.size(); ++i) scaled.values[i] *= gain[i % d];
    (void)measure::measure_decoding(scaled.matrix(), down.matrix(), "down, final norm gain", kShownOther, out);
  } else {
    out.skipped.emplace_back("decoding.down, final norm gain", "no final norm");
  }
  for (std::size_t row = 0; row < head.values.size(); row += d) {
    double squares = 0;
    for (std::size_t j = 0; j < d; ++j) squares += head.values[row + j] * head.values[row + j];
    if (squares > 0)
      for (std::size_t j = 0; j < d; ++j) head.values[row + j] /= std::sqrt(squares);
  }
  (void)measure::measure_decoding(head.matrix(), layer.up.matrix(), "up, unit rows", kShownOther, out);
  (void)measure::measure_decoding(head.matrix(), down.matrix(), "down, unit rows", kShownOther, out);
}

/// head: null when nothing is to be decoded.
void measure_layer(const MeasuredInput& input, const GatedLayer& layer, bool gated, const TensorInfo* head, std::uint64_t seed, Measures& out) {
  const LoadedLayer loaded = load_layer(input, layer);
  if (gated) {
    if (all_finite(loaded.gate.values) && all_finite(loaded.up.values) && all_finite(loaded.down.values) && all_finite(loaded.gain)) {
      measure::measure_gated(loaded.gate.matrix(), loaded.up.matrix(), loaded.down.matrix(), loaded.gain, out);
    } else {
      measure::skip_group(out, "gated", "non-finite");
    }
  }
  if (head != nullptr) decode_layer(input, *head, loaded, seed, out);
}

/// The experts of a layer, one by one, as GROUP.experts.E.KEY.
void add_expert_units(const MeasuredInput& input, int block, const Selection& selection, std::uint64_t seed, MeasuredBlock& out,
                      std::vector<Unit>& units) {
  const bool gated = selection.wants("gated"), decoding = selection.wants("decoding");
  std::vector<GatedLayer> experts;
  std::uint64_t elements = 0, size_bytes = 0;
  std::string reason;
  for (int e = 0;; ++e) {
    const std::optional<GatedLayer> layer = gated_layer(input, block, reason, e);
    if (!layer) break;
    experts.push_back(*layer);
    elements += layer->neurons() * layer->hidden();
    size_bytes += layer->gate->size_bytes + layer->down->size_bytes;
    // All are of one size: what is too much is seen by the first, without looking for the others.
    if (selection.spares() && elements > kSparedElements) break;
  }
  if (experts.empty()) return;
  const TensorInfo* head = usable_head(input, experts.front().hidden());
  if (selection.spares() && (elements > kSparedElements || (decoding && head != nullptr && head->num_elements > kSparedElements))) {
    for (const char* group : {"gated", "decoding"})
      if (selection.wants(group))
        out.measures.skipped.emplace_back(std::string(group) + ".experts", "costly for layers of this size: ask for it with --what gated,decoding");
    return;
  }
  const TensorInfo* used = decoding ? head : nullptr;
  units.push_back(
      {fmt::format("experts of layer {}", block), layer_bytes(experts.front(), used), size_bytes, [&input, experts, gated, used, seed, &out] {
         for (std::size_t e = 0; e < experts.size(); ++e) {
           Measures own;
           measure_layer(input, experts[e], gated, used, seed, own);
           const auto named = [e](const std::string& name) {
             const std::size_t dot = name.find('.');
             return fmt::format("{}.experts.{}{}", name.substr(0, dot), e, dot == std::string::npos ? "" : name.substr(dot));
           };
           for (const auto& [name, value] : own.values) out.measures.values.emplace_back(named(name), value);
           for (const auto& [name, text] : own.labels) out.measures.labels.emplace_back(named(name), text);
           for (const auto& [name, text] : own.skipped) out.measures.skipped.emplace_back(named(name), text);
         }
       }});
}

}  // namespace

void add_block_units(const MeasuredInput& input, const Selection& selection, std::uint64_t seed, MeasuredModel& out, std::vector<Unit>& units) {
  if (!selection.wants_pass(measure::Pass::block)) return;
  const std::vector<int> blocks = blocks_of(input);
  out.blocks.resize(blocks.size());
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    MeasuredBlock& block = out.blocks[b];
    block.block = blocks[b];
    std::string reason;
    const std::optional<GatedLayer> layer = gated_layer(input, blocks[b], reason);
    const TensorInfo* head = layer ? usable_head(input, layer->hidden()) : nullptr;
    if (layer && selection.spares() && std::max(layer->neurons() * layer->hidden(), head != nullptr ? head->num_elements : 0) > kSparedElements)
      reason = "costly for layers of this size: ask for it with --what gated,decoding";
    if (!reason.empty()) {
      for (const char* group : {"gated", "decoding"})
        if (selection.wants(group)) measure::skip_group(block.measures, group, reason);
      if (!layer) add_expert_units(input, blocks[b], selection, seed, block, units);
      continue;
    }
    const bool gated = selection.wants("gated"), decoding = selection.wants("decoding");
    if (decoding && head == nullptr) measure::skip_group(block.measures, "decoding", "no head of the width of the layer");
    units.push_back({fmt::format("layer {}", blocks[b]), layer_bytes(*layer, decoding ? head : nullptr),
                     layer->gate->size_bytes + layer->down->size_bytes, [&input, layer = *layer, head, gated, decoding, seed, &block] {
                       measure_layer(input, layer, gated, decoding ? head : nullptr, seed, block.measures);
                     }});
  }
}

namespace {

// ---- One model against another ----

class Pair final : public Comparison {
 public:
  Pair(const MeasuredInput& base, const MeasuredInput& model, const Selection& selection, PairDepth depth)
      : base_(base), model_(model), selection_(selection), depth_(depth) {
    result_.kind = depth == PairDepth::full ? "pair" : "path";
    result_.models = {model.written};
    result_.base = base.written;
  }

  void add_units(std::vector<Unit>& units) override {
    result_.tensors.resize(base_.checkpoint->tensors().size());
    std::size_t t = 0;
    for (const TensorInfo& old : base_.checkpoint->tensors()) {
      MeasuredTensor& out = result_.tensors[t++];
      out.name = old.name;
      const Role role = base_.role(old.name);
      out.role = role == Role::unknown ? "" : std::string(model::to_string(role));
      out.block = base_.block(old.name);
      out.shape = old.shape;
      out.dtype = old.dtype;
      const TensorInfo* tensor = model_.checkpoint->find_tensor(old.name);
      std::string reason;
      if (tensor == nullptr) {
        reason = "only in the base";
      } else if (tensor->shape != old.shape) {
        reason = fmt::format("{} in the base, {} in the model", to_string(old.shape), to_string(tensor->shape));
      }
      if (!reason.empty()) {
        skip(out.measures, reason);
        continue;
      }
      const bool values = depth_ == PairDepth::full && unreadable_reason(old).empty() && unreadable_reason(*tensor).empty() && old.num_elements > 0;
      const std::optional<MatrixShape> shape = matrix_shape(old);
      const bool matrix = values && shape && std::min(shape->rows, shape->columns) > 1;
      // Layers only: an embedding's directions follow the data, not the method of tuning.
      const bool target = matrix && (out.block >= 0 || !has_blocks_) && old.shape.size() == 2 && role != Role::router;
      std::uint64_t bytes = kFixedBytes;
      if (values) {
        bytes += 8 * 3 * old.num_elements;
        if (matrix) bytes += measure::spectrum_bytes(shape->rows, shape->columns) + measure::structure_bytes(shape->rows, shape->columns);
        if (target && selection_.wants("intruders")) bytes += 8 * 4 * old.num_elements;
      }
      units.push_back({old.name, bytes, 2 * old.size_bytes, [this, &old, tensor, values, matrix, target, shape, &out] {
                         run(old, *tensor, values, matrix, target, shape ? *shape : MatrixShape{}, out);
                       }});
    }
    if (depth_ == PairDepth::full && selection_.wants("agreement")) add_agreement(units);
  }

  ModelComparison finish() override {
    Measures& total = result_.total;
    double changed = 0, elements = 0, squares = 0, base_squares = 0;
    std::map<std::string, double> counts, by_kind;
    for (const MeasuredTensor& tensor : result_.tensors) {
      const auto value = [&tensor](const char* name) {
        const double* found = tensor.measures.find(name);
        return found == nullptr ? 0.0 : *found;
      };
      changed += value("changed.changed");
      elements += value("changed.elements");
      squares += value("difference.norm") * value("difference.norm");
      if (const double relative = value("difference.relative"); relative > 0)
        base_squares += value("difference.norm") / relative * (value("difference.norm") / relative);
      for (const auto& [name, count] : tensor.measures.values)
        if (name.starts_with("intruders.count_") || name == "intruders.outside_subspace") counts[name] += count;
      if (tensor.measures.find("intruders.count_left.0.5") != nullptr)
        by_kind["intruders.left_0.5_by_kind." + module_of(tensor.name)] += value("intruders.count_left.0.5");
    }
    if (elements > 0) {
      measure::put(total, "changed.changed", changed);
      measure::put(total, "changed.elements", elements);
      measure::put(total, "changed.share", changed / elements);
    }
    if (depth_ == PairDepth::full && selection_.wants("difference")) {
      measure::put(total, "difference.norm", std::sqrt(squares));
      measure::put(total, "difference.relative_to_changed", std::sqrt(squares) / std::sqrt(base_squares), "nothing changed");
    }
    for (const auto& [name, count] : counts) measure::put(total, name, count);
    for (const auto& [name, count] : by_kind) measure::put(total, name, count);
    return std::move(result_);
  }

  /// The part of a name before ".weight".
  static std::string module_of(const std::string& name) {
    const std::size_t dot = name.rfind('.');
    if (dot == std::string::npos) return name;
    const std::string path = name.substr(0, dot);
    return path.substr(path.rfind('.') + 1);
  }

 private:
  void skip(Measures& out, const std::string& reason) const {
    for (const char* group : {"changed", "difference", "intruders"})
      if (selection_.wants(group) && (depth_ == PairDepth::full || std::string_view(group) == "changed")) measure::skip_group(out, group, reason);
  }

  void run(const TensorInfo& old, const TensorInfo& tensor, bool values, bool matrix, bool target, MatrixShape shape, MeasuredTensor& out) const {
    if (selection_.wants("changed")) count_changed(old, tensor, out.measures);
    if (depth_ == PairDepth::changed || !(selection_.wants("difference") || selection_.wants("intruders"))) return;
    if (!values) {
      const std::string reason = !unreadable_reason(old).empty() ? unreadable_reason(old) : unreadable_reason(tensor);
      for (const char* group : {"difference", "intruders"})
        if (selection_.wants(group)) measure::skip_group(out.measures, group, reason.empty() ? "empty" : reason);
      return;
    }
    const std::vector<double> before = read_doubles(*base_.checkpoint, old), after = read_doubles(*model_.checkpoint, tensor);
    if (!all_finite(before) || !all_finite(after)) {
      for (const char* group : {"difference", "intruders"})
        if (selection_.wants(group)) measure::skip_group(out.measures, group, "non-finite");
      return;
    }
    if (selection_.wants("difference")) measure::measure_difference(before, after, matrix ? shape.rows : 1, matrix ? shape.columns : 0, out.measures);
    if (!selection_.wants("intruders")) return;
    const auto is_zero = [](const std::vector<double>& x) { return std::all_of(x.begin(), x.end(), [](double v) { return v == 0; }); };
    if (!target) {
      measure::skip_group(out.measures, "intruders", matrix ? "looked for in layers only" : "vector");
    } else if (is_zero(before) || is_zero(after)) {
      measure::skip_group(out.measures, "intruders", "zero tensor");
    } else {
      measure::measure_intruders({before, shape.rows, shape.columns}, {after, shape.rows, shape.columns}, out.measures);
    }
  }

  /// By stored bytes, or by values where the types differ.
  void count_changed(const TensorInfo& old, const TensorInfo& tensor, Measures& out) const {
    const auto bits = static_cast<std::uint64_t>(info(old.dtype).bits);
    std::uint64_t changed = 0;
    if (old.dtype != tensor.dtype) return measure::skip_group(out, "changed", "stored in another type");
    if (bits % 8 != 0) return measure::skip_group(out, "changed", "several elements in one byte");
    const auto width = static_cast<std::size_t>(bits / 8);
    constexpr std::size_t kPiece = 1 << 18;
    std::vector<std::byte> a(kPiece * width), b(kPiece * width);
    for (std::uint64_t at = 0; at < old.size_bytes; at += a.size()) {
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(a.size(), old.size_bytes - at));
      base_.checkpoint->read_bytes(old, at, std::span(a).first(size));
      model_.checkpoint->read_bytes(tensor, at, std::span(b).first(size));
      if (std::memcmp(a.data(), b.data(), size) == 0) continue;
      for (std::size_t i = 0; i + width <= size; i += width) changed += std::memcmp(&a[i], &b[i], width) != 0;
    }
    measure::put(out, "changed.changed", static_cast<double>(changed));
    measure::put(out, "changed.elements", static_cast<double>(old.num_elements));
    measure::put(out, "changed.share", static_cast<double>(changed) / static_cast<double>(old.num_elements), "empty");
  }

  void add_agreement(std::vector<Unit>& units) {
    const std::vector<int> blocks = blocks_of(base_);
    result_.blocks.resize(blocks.size());
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      MeasuredBlock& block = result_.blocks[b];
      block.block = blocks[b];
      std::string reason;
      const std::optional<GatedLayer> before = gated_layer(base_, blocks[b], reason);
      const std::optional<GatedLayer> after = reason.empty() ? gated_layer(model_, blocks[b], reason) : std::nullopt;
      const TensorInfo* old_head = before ? usable_head(base_, before->hidden()) : nullptr;
      const TensorInfo* head = after ? usable_head(model_, after->hidden()) : nullptr;
      if (reason.empty() && (old_head == nullptr || head == nullptr)) reason = "no head of the width of the layer";
      if (reason.empty() && (old_head->shape != head->shape || before->neurons() != after->neurons())) reason = "another vocabulary or width";
      if (reason.empty() && selection_.spares() && std::max(before->neurons() * before->hidden(), head->num_elements) > kSparedElements)
        reason = "costly for layers of this size: ask for it with --what agreement";
      if (!reason.empty()) {
        measure::skip_group(block.measures, "agreement", reason);
        continue;
      }
      units.push_back({fmt::format("layer {}", blocks[b]), layer_bytes(*before, old_head) + layer_bytes(*after, head), 2 * before->gate->size_bytes,
                       [this, before = *before, after = *after, old_head, head, &block] {
                         const auto tokens = [](const MeasuredInput& input, const GatedLayer& layer, const TensorInfo& tensor,
                                                std::vector<std::uint32_t>& up, std::vector<std::uint32_t>& down) {
                           const Loaded matrix = load(input, tensor);
                           const LoadedLayer loaded = load_layer(input, layer);
                           Measures unused;
                           up = measure::measure_decoding(matrix.matrix(), loaded.up.matrix(), "up", 0, unused);
                           down = measure::measure_decoding(matrix.matrix(), transposed(loaded.down).matrix(), "down", 0, unused);
                         };
                         std::vector<std::uint32_t> up, down, new_up, new_down;
                         tokens(base_, before, *old_head, up, down);
                         tokens(model_, after, *head, new_up, new_down);
                         const auto share = [](const std::vector<std::uint32_t>& x, const std::vector<std::uint32_t>& y) {
                           double same = 0;
                           for (std::size_t i = 0; i < x.size(); ++i) same += x[i] == y[i];
                           return same / static_cast<double>(x.size());
                         };
                         measure::put(block.measures, "agreement.up", share(up, new_up));
                         measure::put(block.measures, "agreement.down", share(down, new_down));
                       }});
    }
  }

  const MeasuredInput& base_;
  const MeasuredInput& model_;
  const Selection& selection_;
  PairDepth depth_;
  ModelComparison result_;
  bool has_blocks_ = !blocks_of(base_).empty();
};

// ---- Many models against a base ----

class Set final : public Comparison {
 public:
  Set(const MeasuredInput& base, const std::vector<const MeasuredInput*>& models) : base_(base), models_(models) {
    result_.kind = "set";
    result_.base = base.written;
    for (const MeasuredInput* model : models) result_.models.push_back(model->written);
  }

  void add_units(std::vector<Unit>& units) override {
    sums_.reserve(base_.checkpoint->tensors().size());
    for (const TensorInfo& tensor : base_.checkpoint->tensors()) {
      std::vector<const TensorInfo*> tuned;
      std::string reason = unreadable_reason(tensor);
      for (const MeasuredInput* model : models_) {
        const TensorInfo* other = model->checkpoint->find_tensor(tensor.name);
        if (other == nullptr || other->shape != tensor.shape) {
          reason = "absent or of another shape in " + model->written;
          break;
        }
        if (reason.empty()) reason = unreadable_reason(*other);
        tuned.push_back(other);
      }
      if (!reason.empty()) {
        result_.total.skipped.emplace_back("task_vectors." + tensor.name, reason);
        continue;
      }
      sums_.push_back({&tensor, measure::TaskVectorSums(models_.size())});
      units.push_back({tensor.name, kFixedBytes + 8 * kPiece * (models_.size() + 2), tensor.size_bytes * (models_.size() + 1),
                       [this, &tensor, tuned, &sums = sums_.back().sums] {
                         std::vector<double> before;
                         std::vector<std::vector<double>> after(models_.size());
                         for (std::uint64_t at = 0; at < tensor.num_elements; at += kPiece) {
                           const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, tensor.num_elements - at));
                           before.resize(count);
                           read_doubles(*base_.checkpoint, tensor, at, before);
                           for (std::size_t i = 0; i < models_.size(); ++i) {
                             after[i].resize(count);
                             read_doubles(*models_[i]->checkpoint, *tuned[i], at, after[i]);
                           }
                           sums.add(before, after);
                         }
                       }});
    }
  }

  ModelComparison finish() override {
    measure::TaskVectorSums all(models_.size()), blocks(models_.size());
    std::map<std::string, measure::TaskVectorSums> kinds;
    const bool any_block = std::any_of(sums_.begin(), sums_.end(), [this](const Entry& e) { return in_block(*e.tensor); });
    for (const Entry& entry : sums_) {
      all.add(entry.sums);
      if (!(any_block ? in_block(*entry.tensor) : entry.tensor->shape.size() >= 2)) continue;
      blocks.add(entry.sums);
      kinds.try_emplace(Pair::module_of(entry.tensor->name), models_.size()).first->second.add(entry.sums);
    }
    measure::put_cosines(all, "all tensors", result_.total);
    measure::put_cosines(blocks, "block matrices", result_.total);
    for (const auto& [kind, sums] : kinds) measure::put_cosines(sums, kind, result_.total);
    measure::put_signs(all, result_.total);
    return std::move(result_);
  }

 private:
  static constexpr std::size_t kPiece = 1 << 16;
  struct Entry {
    const TensorInfo* tensor;
    measure::TaskVectorSums sums;
  };
  [[nodiscard]] bool in_block(const TensorInfo& tensor) const { return tensor.shape.size() >= 2 && base_.block(tensor.name) >= 0; }

  const MeasuredInput& base_;
  std::vector<const MeasuredInput*> models_;
  std::vector<Entry> sums_;
  ModelComparison result_;
};

}  // namespace

std::unique_ptr<Comparison> compare_pair(const MeasuredInput& base, const MeasuredInput& model, const Selection& selection, PairDepth depth) {
  return std::make_unique<Pair>(base, model, selection, depth);
}

bool same_signature(const MeasuredInput& a, const MeasuredInput& b) {
  const auto x = a.checkpoint->tensors(), y = b.checkpoint->tensors();
  if (x.size() != y.size()) return false;
  return std::all_of(x.begin(), x.end(), [&b](const TensorInfo& tensor) {
    const TensorInfo* other = b.checkpoint->find_tensor(tensor.name);
    return other != nullptr && other->shape == tensor.shape;
  });
}

std::unique_ptr<Comparison> compare_set(const MeasuredInput& base, const std::vector<const MeasuredInput*>& models) {
  return std::make_unique<Set>(base, models);
}

}  // namespace weft::engine
