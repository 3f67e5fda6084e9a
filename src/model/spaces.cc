#include "model/spaces.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "model/network_config.h"
#include "weft/error.h"

namespace weft::model {
namespace {

Axis leaf(std::string name, Side side = Side::write, std::string norm = {}) {
  return {Axis::Kind::space, std::move(name), {}, side, std::move(norm)};
}
Axis product(std::vector<Axis> parts) {
  return parts.size() == 1 ? std::move(parts.front()) : Axis{Axis::Kind::product, {}, std::move(parts), Side::write, {}};
}
Axis sum(std::vector<Axis> parts) {
  return parts.size() == 1 ? std::move(parts.front()) : Axis{Axis::Kind::concatenation, {}, std::move(parts), Side::write, {}};
}

constexpr unsigned kAllOrders = kPermute | kSign | kScale | kRotate | kGeneral;

/// The spaces of transformers. What an axis is made of follows from the role of its tensor, so that a new architecture of a known family brings
/// nothing.
class TransformerSpaces {
 public:
  TransformerSpaces(const Architecture& architecture, const Json& config, NetworkSpaces& out)
      : architecture_(architecture), config_(config), network_(read_network_config(config)), out_(out) {
    bool normalises_heads = false, norms_behind = false, norms_sum = false, is_gated = false;
    for (const TensorTemplate& tensor : architecture.tensors) {
      normalises_heads = normalises_heads || tensor.role == Role::q_norm || tensor.role == Role::k_norm;
      norms_behind = norms_behind || tensor.site == Site::attention_out || tensor.site == Site::mlp_out;
      norms_sum = norms_sum || tensor.site == Site::attention_sum || tensor.site == Site::mlp_sum;
      is_gated = is_gated || tensor.role == Role::gate || tensor.role == Role::gate_up;
      if (tensor.role == Role::norm) norms_.insert(tensor.site);
    }
    is_tied_ = is_tied(architecture, config);
    out.gain_offset = network_.norm == NormKind::rms_plus_one ? 1 : 0;
    // LayerNorm takes a mean over the channels, so that only their order is free, and rotations that leave the mean alone. A norm's gains are in the
    // way of a rotation until they are folded into the matrices behind it, which a gain between a block and its sum, or on the sum, cannot be.
    const bool is_rms = network_.norm != NormKind::layer;
    const bool folds = !norms_behind && !norms_sum;
    const unsigned in_place = (is_rms ? kPermute | kSign : kPermute) | kResize;
    const unsigned rotates = is_rms ? kRotate : kRotateMean;
    add("residual", network_.hidden, in_place, folds ? in_place | rotates : in_place,
        !folds   ? "a norm's gains stand between a block and its sum, or on the sum, where they cannot be folded into a matrix"
        : is_rms ? "norms multiply each channel by a gain of its own until the gains are folded into the matrices that read them"
                 : "LayerNorm takes a mean over the channels, which signs and scales change and most rotations too");
    add("vocab", network_.vocab, 0, {}, "each token has its number");
    const auto add_norm = [&](Site site, const std::string& name) {
      if (norms_.contains(site)) add(name, network_.hidden, kSign | kScale, {}, "what a norm gives has the order of what it reads");
    };
    if (!(is_tied_ && norms_.contains(Site::final))) add_norm(Site::final, "final");
    if (network_.kind == NetworkKind::encoder) add("pooled", network_.hidden, 0, {}, "what is pooled leaves the network");
    if (network_.positions == PositionKind::learned) add("position", network_.context, 0, {}, "each position has its number");
    if (network_.types > 0) add("type", network_.types, 0, {}, "each type of token has its number");
    if (network_.positions == PositionKind::rotary) add("half", 2, 0, {}, "the two halves of a head turn into each other");
    rotary_ = network_.ropes.empty() ? 0 : network_.ropes.front().dims;

    const std::int64_t dims = network_.head_dim;
    for (std::size_t i = 0; i < network_.layers.size(); ++i) {
      const auto name = [i](const char* base) { return fmt::format("{}.{}", base, i); };
      add_norm(Site::attention_in, name("attention_in"));
      add_norm(Site::mlp_in, name("mlp_in"));
      const char* whole_heads = "softmax takes each head for itself";
      add(name("kv"), network_.kv_heads, kPermute | kResize, {}, whole_heads);
      add(name("group"), network_.heads / network_.kv_heads, kPermute | kResize, {}, whole_heads);
      add(name("value"), dims, kAllOrders);
      // Scores are products of q and k: what one is multiplied by the other may be divided by, unless a norm stands between. Rotary pairs have each
      // their own frequency, so their order is fixed.
      const char* between = "a norm stands between q and the scores";
      if (rotary_ > 0)
        add(name("pair"), rotary_ / 2, normalises_heads ? kSign : kSign | kScale, {},
            normalises_heads ? between : "each pair of rotary positions has a frequency of its own");
      if (rotary_ < dims)
        add(name(rotary_ > 0 ? "pass" : "key"), dims - rotary_, normalises_heads ? kPermute | kSign : kAllOrders, {},
            normalises_heads ? between : "");
      const auto numbers = config_numbers(architecture_, config_, static_cast<int>(i));
      const auto number = [&](const char* field, std::int64_t otherwise) {
        const auto found = numbers.find(field);
        return found == numbers.end() ? otherwise : found->second;
      };
      const std::int64_t ffn = number("ffn", 0);
      // What a gate is multiplied with may have any scale; behind ReLU a positive one passes.
      const unsigned activation = kPermute | kResize | (is_gated ? kScale | kSign : network_.activation == math::Activation::relu ? kScale : 0U);
      const char* by_itself = "an activation acts on each unit by itself";
      if (!network_.layers[i].experts) {
        add(name("mlp"), ffn, activation, {}, by_itself);
        continue;
      }
      add(name("expert"), network_.experts, 0, {}, "experts are numbered in the names of their tensors");
      for (std::int64_t e = 0; e < network_.experts; ++e) add(fmt::format("mlp.{}.{}", i, e), number("expert_ffn", ffn), activation, {}, by_itself);
      if (number("shared_ffn", 0) > 0) {
        add(name("shared_mlp"), number("shared_ffn", 0), activation, {}, by_itself);
        add(name("shared_gate"), 1, 0, {}, "a share has one number");
      }
    }
  }

  /// Nothing for a tensor that no space describes.
  [[nodiscard]] std::optional<std::vector<Axis>> axes(const TensorSlot& slot, std::size_t rank) const {
    const std::string at = slot.layer >= 0 ? fmt::format(".{}", slot.layer) : "";
    const std::string mlp = slot.expert >= 0 ? fmt::format("mlp{}.{}", at, slot.expert) : "mlp" + at;
    const bool is_bias = rank == 1;
    const auto matrix = [&](Axis rows, Axis columns) {
      if (is_bias) return std::vector<Axis>{std::move(rows)};
      if (slot.transposed) std::swap(rows, columns);
      return std::vector<Axis>{std::move(rows), std::move(columns)};
    };
    const auto residual = [] { return leaf("residual"); };
    /// What reads the residual stream, behind the norm of that site where the architecture has it.
    const auto reader = [&](Site site) {
      return leaf("residual", Side::read,
                  !norms_.contains(site)       ? std::string()
                  : site == Site::final        ? std::string("final")
                  : site == Site::attention_in ? "attention_in" + at
                                               : "mlp_in" + at);
    };
    const bool is_bias_of_norm = slot.name.ends_with(".bias") || slot.name.ends_with(".beta");
    switch (slot.role) {
      case Role::embed: {
        Axis columns = residual();
        if (is_tied_) {
          columns = reader(Site::final);
          columns.side = Side::both;
        }
        return matrix(leaf("vocab"), std::move(columns));
      }
      case Role::head:
        return matrix(leaf("vocab"), reader(Site::final));
      case Role::head_transform:
        // What it gives meets the embedding again.
        return matrix(residual(), leaf("residual", Side::read));
      case Role::pooler:
        return matrix(leaf("pooled"), reader(Site::final));
      case Role::position:
        return std::vector<Axis>{leaf("position"), residual()};
      case Role::token_type:
        return std::vector<Axis>{leaf("type"), residual()};
      case Role::norm: {
        Axis axis = slot.site == Site::attention_in || slot.site == Site::mlp_in || slot.site == Site::final ? reader(slot.site) : residual();
        axis.side = is_bias_of_norm ? Side::write : Side::order;
        return std::vector<Axis>{std::move(axis)};
      }
      case Role::q:
        return matrix(query(at, Side::write), reader(Site::attention_in));
      case Role::k:
        return matrix(key(at, Side::read), reader(Site::attention_in));
      case Role::v:
        return matrix(value(at), reader(Site::attention_in));
      case Role::qkv:
        if (architecture_.forward.qkv == QkvLayout::per_head)
          return matrix(product({leaf("kv" + at), sum({head(at, Side::write), head(at, Side::read), leaf("value" + at)})}),
                        reader(Site::attention_in));
        return matrix(sum({query(at, Side::write), key(at, Side::read), value(at)}), reader(Site::attention_in));
      case Role::o:
        if (is_bias) return std::vector<Axis>{residual()};
        return matrix(residual(), product({leaf("kv" + at, Side::read), leaf("group" + at, Side::read), leaf("value" + at, Side::read)}));
      case Role::q_norm:
        return std::vector<Axis>{is_whole(Role::q_norm) ? query(at, Side::order) : head(at, Side::order)};
      case Role::k_norm:
        return std::vector<Axis>{is_whole(Role::k_norm) ? key(at, Side::order) : head(at, Side::order)};
      case Role::gate:
        return matrix(leaf(mlp, Side::order), reader(Site::mlp_in));
      case Role::up:
        return matrix(leaf(mlp), reader(Site::mlp_in));
      case Role::gate_up:
        return matrix(sum({leaf(mlp, Side::order), leaf(mlp)}), reader(Site::mlp_in));
      case Role::down:
        if (is_bias) return std::vector<Axis>{residual()};
        return matrix(residual(), leaf(mlp, Side::read));
      case Role::router:
        return matrix(leaf("expert" + at), reader(Site::mlp_in));
      case Role::shared_gate:
        return matrix(leaf("shared_mlp" + at, Side::order), reader(Site::mlp_in));
      case Role::shared_up:
        return matrix(leaf("shared_mlp" + at), reader(Site::mlp_in));
      case Role::shared_down:
        return matrix(residual(), leaf("shared_mlp" + at, Side::read));
      case Role::shared_router:
        return matrix(leaf("shared_gate" + at), reader(Site::mlp_in));
      default:
        return std::nullopt;
    }
  }

 private:
  void add(std::string name, std::int64_t size, unsigned allows, std::optional<unsigned> folded = std::nullopt, std::string reason = {}) {
    out_.spaces.push_back({std::move(name), size, allows, folded.value_or(allows), std::move(reason)});
  }
  /// One head's dimensions of q (write) or k (read): those that turn, in two halves, then those that do not.
  [[nodiscard]] Axis head(const std::string& at, Side side) const {
    if (rotary_ == 0) return leaf("key" + at, side);
    std::vector<Axis> parts = {product({leaf("half"), leaf("pair" + at, side)})};
    if (rotary_ < network_.head_dim) parts.push_back(leaf("pass" + at, side));
    return sum(std::move(parts));
  }
  // Heads stand beside each other, so that those of q and k both give, whatever the dimensions within them do.
  [[nodiscard]] Axis query(const std::string& at, Side side) const { return product({leaf("kv" + at), leaf("group" + at), head(at, side)}); }
  [[nodiscard]] Axis key(const std::string& at, Side side) const { return product({leaf("kv" + at), head(at, side)}); }
  [[nodiscard]] Axis value(const std::string& at) const { return product({leaf("kv" + at), leaf("value" + at)}); }
  /// Whether the norm of q or k goes over all heads together.
  [[nodiscard]] bool is_whole(Role role) const {
    for (const TensorTemplate& tensor : architecture_.tensors)
      if (tensor.role == role) return tensor.shape.find("heads") != std::string::npos;
    return false;
  }

  const Architecture& architecture_;
  const Json& config_;
  NetworkConfig network_;
  NetworkSpaces& out_;
  std::int64_t rotary_ = 0;
  std::set<Site> norms_;
  bool is_tied_ = false;
};

bool is_relu(const Json* activation) { return activation == nullptr || activation->string() == nullptr || *activation->string() == "relu"; }

/// Networks of images: what each step gives is a space of units, free in order and, behind ReLU, in scale, but for the first and the last.
void add_image_spaces(const Architecture& architecture, const Json& config, const Checkpoint& checkpoint, NetworkSpaces& out) {
  std::vector<std::string> names;
  std::set<std::size_t> bent;  // by something that is no ReLU
  const bool is_perceptron = architecture.forward.kind == NetworkKind::perceptron;
  if (is_perceptron) {
    for (int i = 0; i < num_layers(architecture, config); ++i) names.push_back(fmt::format("layers.{}", i));
    if (!is_relu(config.find("activation")))
      for (std::size_t i = 0; i < names.size(); ++i) bent.insert(i);
  } else if (const Json* steps = config.find(architecture.listed_in); steps != nullptr && steps->array() != nullptr) {
    for (const Json& step : *steps->array()) {
      for (const char* kind : {"conv2d", "linear"})
        if (const Json* name = step.find(kind); name != nullptr && name->string() != nullptr) names.push_back(*name->string());
      if (!names.empty() && !is_relu(step.find("activation"))) bent.insert(names.size() - 1);
    }
  }
  std::string before = "input";
  std::int64_t before_size = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const TensorInfo& weight = checkpoint.tensor(names[i] + ".weight");
    if (weight.shape.size() < 2) return;
    if (i == 0) {
      before_size = weight.shape[1];
      out.spaces.push_back({before, before_size, 0, 0, "inputs are what they are"});
    }
    const std::string units = i + 1 == names.size() ? "class" : fmt::format("units.{}", i);
    const unsigned allows = i + 1 == names.size() ? 0U : bent.contains(i) ? kPermute : kPermute | kScale;
    const char* reason = allows == 0          ? "classes have their numbers"
                         : allows == kPermute ? "an activation acts on each unit by itself"
                                              : "ReLU acts on each unit by itself";
    out.spaces.push_back({units, weight.shape[0], allows, allows, reason});
    std::vector<Axis> axes = {leaf(units), leaf(before, Side::read)};
    if (before_size > 0 && weight.shape[1] != before_size && weight.shape[1] % before_size == 0) {
      // Planes of pixels, laid flat.
      const std::string pixels = fmt::format("pixel.{}", i);
      out.spaces.push_back({pixels, weight.shape[1] / before_size, 0, 0, "pixels have their places"});
      axes[1] = product({leaf(before, Side::read), leaf(pixels, Side::read)});
    }
    for (std::size_t axis = 2; axis < weight.shape.size(); ++axis) {
      const std::string kernel = fmt::format("kernel.{}.{}", i, axis - 2);
      out.spaces.push_back({kernel, weight.shape[axis], 0, 0, "pixels have their places"});
      axes.push_back(leaf(kernel));
    }
    out.tensors[weight.name] = std::move(axes);
    if (const TensorInfo* bias = checkpoint.find_tensor(names[i] + ".bias")) out.tensors[bias->name] = {leaf(units)};
    before = units;
    before_size = weight.shape[0];
  }
}

}  // namespace

std::string Axis::text() const {
  if (kind == Kind::space) return space;
  std::string text;
  for (const Axis& part : parts) {
    if (!text.empty()) text += kind == Kind::product ? " x " : " + ";
    text += part.text();
  }
  return kind == Kind::concatenation ? "(" + text + ")" : text;
}

bool Axis::touches(std::string_view name) const {
  if (kind == Kind::space) return space == name;
  return std::any_of(parts.begin(), parts.end(), [name](const Axis& part) { return part.touches(name); });
}

const Space* NetworkSpaces::find(std::string_view name) const {
  const auto found = std::find_if(spaces.begin(), spaces.end(), [name](const Space& space) { return space.name == name; });
  return found == spaces.end() ? nullptr : &*found;
}

std::int64_t NetworkSpaces::size(const Axis& axis) const {
  if (axis.kind == Axis::Kind::space) {
    const Space* space = find(axis.space);
    WEFT_ASSERT(space != nullptr);
    return space->size;
  }
  std::int64_t total = axis.kind == Axis::Kind::product ? 1 : 0;
  for (const Axis& part : axis.parts) total = axis.kind == Axis::Kind::product ? total * size(part) : total + size(part);
  return total;
}

std::vector<std::int64_t> NetworkSpaces::reordered(const Axis& axis, std::string_view name, std::span<const std::int64_t> order) const {
  std::vector<std::int64_t> indices;
  if (axis.kind == Axis::Kind::space) {
    if (axis.space == name) return {order.begin(), order.end()};
    for (std::int64_t i = 0; i < size(axis); ++i) indices.push_back(i);
    return indices;
  }
  if (axis.kind == Axis::Kind::concatenation) {
    std::int64_t first = 0;
    for (const Axis& part : axis.parts) {
      for (const std::int64_t index : reordered(part, name, order)) indices.push_back(first + index);
      first += size(part);
    }
    return indices;
  }
  indices = {0};
  for (const Axis& part : axis.parts) {
    const std::vector<std::int64_t> of_part = reordered(part, name, order);
    const std::int64_t old_size = size(part);
    std::vector<std::int64_t> longer;
    longer.reserve(indices.size() * of_part.size());
    for (const std::int64_t slow : indices)
      for (const std::int64_t fast : of_part) longer.push_back(slow * old_size + fast);
    indices = std::move(longer);
  }
  return indices;
}

NetworkSpaces spaces_of(const Architecture& architecture, const Json& config, const Checkpoint& checkpoint) {
  NetworkSpaces out;
  const NetworkKind kind = architecture.forward.kind;
  if (kind == NetworkKind::perceptron || kind == NetworkKind::steps) {
    add_image_spaces(architecture, config, checkpoint, out);
  } else if (kind != NetworkKind::none) {
    const TransformerSpaces spaces(architecture, config, out);
    for (const TensorSlot& slot : tensor_slots(architecture, config, num_layers(architecture, config))) {
      const TensorInfo* tensor = checkpoint.find_tensor(slot.name);
      for (const std::string& alias : slot.aliases)
        if (tensor == nullptr) tensor = checkpoint.find_tensor(alias);
      if (tensor == nullptr) continue;
      if (auto axes = spaces.axes(slot, tensor->shape.size())) out.tensors[tensor->name] = std::move(*axes);
    }
  }
  for (const auto& [name, axes] : out.tensors) {
    const TensorInfo& tensor = checkpoint.tensor(name);
    bool fits = axes.size() == tensor.shape.size();
    for (std::size_t i = 0; fits && i < axes.size(); ++i) fits = out.size(axes[i]) == tensor.shape[i];
    if (fits) continue;
    std::string text;
    for (const Axis& axis : axes) text += (text.empty() ? "" : ", ") + fmt::format("{} = {}", axis.text(), out.size(axis));
    throw Error(ErrorCode::corrupt,
                fmt::format("tensor '{}' has shape {}, but its axes are made of {}", printable(name), weft::to_string(tensor.shape), text),
                {.file = checkpoint.path().string(), .tensor = printable(name)},
                "compare config.json with the one that the model was published with");
  }
  return out;
}

}  // namespace weft::model
