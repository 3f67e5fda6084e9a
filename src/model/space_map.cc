#include "model/space_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/tensor_view.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "model/config_json.h"
#include "model/network_config.h"
#include "weft/error.h"

namespace weft::model {
namespace {

using Kind = SpaceMap::Kind;
using Steps = std::map<std::string, std::vector<AxisStep>, std::less<>>;

constexpr std::size_t kPieceElements = 1 << 18;

[[noreturn]] void refuse(std::string message, std::string advice = {}, ErrorCode code = ErrorCode::invalid_argument) {
  throw Error(code, std::move(message), {}, std::move(advice));
}

std::vector<std::string> parts_of(std::string_view product) {
  std::vector<std::string> parts;
  while (true) {
    const std::size_t at = std::min(product.find(" x "), product.size());
    parts.emplace_back(product.substr(0, at));
    if (at == product.size()) return parts;
    product.remove_prefix(at + 3);
  }
}

const Space& space_of(const NetworkSpaces& spaces, std::string_view name) {
  if (const Space* space = spaces.find(name)) return *space;
  std::vector<std::string> names;
  for (const Space& space : spaces.spaces) names.push_back(space.name);
  const auto nearest = nearest_name(name, names);
  throw Error(ErrorCode::invalid_argument, fmt::format("the model has no space '{}'", printable(name)), {},
              nearest ? fmt::format("did you mean '{}'?", *nearest) : "'weft edit spaces MODEL' lists them");
}

/// A map, checked against its space, with a list for each element of the spaces before the last.
struct CheckedMap {
  const SpaceMap& map;
  const Space& space;                 ///< the last
  std::vector<std::string> outer;     ///< the spaces before it
  std::vector<std::int64_t> strides;  ///< of their coordinates in the number of a list
  std::size_t num_lists = 1;          ///< elements of the spaces before; lists may still be one for all
  std::size_t old_size = 0, new_size = 0;
  std::vector<std::vector<double>> copies;  ///< expand: how often each old element is there, for each list

  [[nodiscard]] std::size_t list(std::size_t number, std::size_t lists) const { return lists == 1 ? 0 : number; }
  [[nodiscard]] std::int64_t order(std::size_t number, std::size_t i) const {
    return map.order[list(number, map.order.size() / new_size) * new_size + i];
  }
  [[nodiscard]] double factor(std::size_t number, std::size_t i) const {
    return map.factors[list(number, map.factors.size() / old_size) * old_size + i];
  }
};

CheckedMap check(const NetworkSpaces& spaces, const SpaceMap& map) {
  const std::vector<std::string> parts = parts_of(map.space);
  CheckedMap out{map, space_of(spaces, parts.back()), {parts.begin(), parts.end() - 1}, {}, 1, 0, 0, {}};
  out.old_size = out.new_size = static_cast<std::size_t>(out.space.size);
  for (const std::string& name : out.outer) out.num_lists *= static_cast<std::size_t>(space_of(spaces, name).size);
  std::int64_t stride = static_cast<std::int64_t>(out.num_lists);
  for (const std::string& name : out.outer) out.strides.push_back(stride /= space_of(spaces, name).size);
  if (!out.outer.empty()) {
    const std::string pattern = map.space;
    const bool meets = std::any_of(spaces.tensors.begin(), spaces.tensors.end(), [&](const auto& entry) {
      return std::any_of(entry.second.begin(), entry.second.end(), [&](const Axis& axis) {
        return axis.touches(parts.back()) && std::all_of(out.outer.begin(), out.outer.end(), [&](const auto& name) { return axis.touches(name); });
      });
    });
    // The last space must stand beside the others wherever it stands, so that each list is undone where it was done.
    const bool always = std::all_of(spaces.tensors.begin(), spaces.tensors.end(), [&](const auto& entry) {
      return std::all_of(entry.second.begin(), entry.second.end(), [&](const Axis& axis) {
        return !axis.touches(parts.back()) || std::all_of(out.outer.begin(), out.outer.end(), [&](const auto& name) { return axis.touches(name); });
      });
    });
    if (!meets || !always)
      refuse(fmt::format("'{}' does not have its own elements of '{}': they do not stand beside each other in every tensor", parts.back(),
                         fmt::join(out.outer, " x ")),
             fmt::format("map '{}' as one", parts.back()));
  }

  const unsigned allows = out.space.allows | out.space.allows_folded;
  const std::string& name = out.space.name;
  const auto need = [&](unsigned group, const char* what) {
    if ((allows & group) != 0) return;
    refuse(fmt::format("space '{}' cannot be {}{}{}", name, what, out.space.reason.empty() ? "" : ": ", out.space.reason),
           allows == 0 ? "nothing of it can be changed" : fmt::format("it allows {}", allowed_text(allows)));
  };
  const auto need_count = [&](std::size_t have, std::size_t each, const char* what) {
    if (each > 0 && (have == each || have == each * out.num_lists)) return;
    refuse(fmt::format("{} {} are given for space '{}' of {} elements{}", have, what, printable(map.space), out.old_size,
                       out.num_lists > 1 ? fmt::format(", {} times", out.num_lists) : ""),
           "give one for each element");
  };
  const auto need_indices = [&] {
    for (const std::int64_t index : map.order)
      if (index < 0 || index >= out.space.size)
        refuse(fmt::format("element {} is asked for, but space '{}' has {}", index, name, out.space.size), "elements are counted from 0");
  };
  switch (map.kind) {
    case Kind::permute: {
      need(kPermute, "reordered");
      need_count(map.order.size(), out.old_size, "indices");
      need_indices();
      for (std::size_t first = 0; first < map.order.size(); first += out.old_size) {
        std::vector<bool> seen(out.old_size);
        for (std::size_t i = 0; i < out.old_size; ++i) {
          const auto index = static_cast<std::size_t>(map.order[first + i]);
          if (seen[index]) refuse(fmt::format("the order of space '{}' has element {} twice", name, index), "a permutation has each element once");
          seen[index] = true;
        }
      }
      break;
    }
    case Kind::scale: {
      need_count(map.factors.size(), out.old_size, "factors");
      bool flips = false, scales = false;
      for (const double factor : map.factors) {
        if (!std::isfinite(factor) || factor == 0)
          refuse(fmt::format("a factor of space '{}' is {}", name, factor), "factors are undone by division, so each must be finite and not 0");
        flips = flips || factor < 0;
        scales = scales || std::abs(factor) != 1;
      }
      if (scales) need(kScale, "scaled");
      if (flips) need(kSign, "given other signs");
      break;
    }
    case Kind::matrix: {
      if (map.matrices.empty() || (map.matrices.size() != 1 && map.matrices.size() != out.num_lists))
        refuse(fmt::format("{} matrices are given for space '{}'", map.matrices.size(), printable(map.space)),
               fmt::format("give 1{}", out.num_lists > 1 ? fmt::format(" or {}", out.num_lists) : ""));
      for (const auto& matrix : map.matrices) {
        if (matrix->size() != out.old_size)
          refuse(fmt::format("a matrix of size {} is given for space '{}' of {} elements", matrix->size(), name, out.old_size),
                 "give one of the space's size");
        if (!matrix->is_orthogonal()) {
          need(kGeneral, "multiplied by a matrix that is not orthogonal");
        } else if ((allows & (kRotate | kGeneral)) == 0) {
          need(kRotateMean, "rotated");
          if (!math::keeps_the_mean(*matrix))
            refuse(fmt::format("space '{}' can only be rotated by matrices that leave the vector of ones alone: {}", name, out.space.reason),
                   "a Hadamard matrix of weft's own is made so");
        }
      }
      break;
    }
    case Kind::select:
    case Kind::expand: {
      need(kResize, "made larger or smaller");
      // All lists are as long as each other.
      if (map.order.empty()) refuse(fmt::format("no element of space '{}' is selected", name), "name at least one");
      need_indices();
      out.new_size = map.order.size();
      if (!out.outer.empty()) {
        if (map.order.size() % out.num_lists != 0)
          refuse(fmt::format("{} indices cannot be {} lists of one length", map.order.size(), out.num_lists), "give one list, or one for each");
        // One list for all is given under the space's own name.
        out.new_size = map.order.size() / out.num_lists;
      }
      const std::size_t lists = map.order.size() / out.new_size;
      for (std::size_t l = 0; l < lists; ++l) {
        std::vector<double>& count = out.copies.emplace_back(out.old_size, 0.0);
        for (std::size_t i = 0; i < out.new_size; ++i) count[static_cast<std::size_t>(map.order[l * out.new_size + i])] += 1;
        for (std::size_t i = 0; i < count.size(); ++i) {
          if (map.kind == Kind::select && count[i] > 1)
            refuse(fmt::format("element {} of space '{}' is selected twice", i, name), "to have it twice, expand the space");
          if (map.kind == Kind::expand && count[i] == 0)
            refuse(fmt::format("element {} of space '{}' is missing in what it is expanded to", i, name), "to leave it out, select in the space");
        }
      }
      break;
    }
  }
  return out;
}

/// Where an element of an axis comes from: old index `base + stride * c` for the coordinate c in the mapped space (-1: it is not made of it).
struct Entry {
  std::int64_t base = 0, stride = 0, coordinate = -1, list = 0;
  Side side = Side::write;
};

std::vector<Entry> entries(const NetworkSpaces& spaces, const Axis& axis, const CheckedMap& map) {
  std::vector<Entry> out;
  if (axis.kind == Axis::Kind::space) {
    if (axis.space == map.space.name) {
      for (std::size_t i = 0; i < map.new_size; ++i) out.push_back({0, 1, static_cast<std::int64_t>(i), 0, axis.side});
      return out;
    }
    std::int64_t list_stride = 0;
    for (std::size_t i = 0; i < map.outer.size(); ++i)
      if (map.outer[i] == axis.space) list_stride = map.strides[i];
    const std::int64_t size = spaces.size(axis);
    for (std::int64_t i = 0; i < size; ++i) out.push_back({i, 0, -1, i * list_stride, axis.side});
    return out;
  }
  if (axis.kind == Axis::Kind::concatenation) {
    std::int64_t first = 0;
    for (const Axis& part : axis.parts) {
      for (Entry entry : entries(spaces, part, map)) {
        entry.base += first;
        out.push_back(entry);
      }
      first += spaces.size(part);
    }
    return out;
  }
  out = {Entry{}};
  for (const Axis& part : axis.parts) {
    const std::vector<Entry> of_part = entries(spaces, part, map);
    const std::int64_t size = spaces.size(part);
    std::vector<Entry> longer;
    longer.reserve(out.size() * of_part.size());
    for (const Entry& slow : out)
      for (const Entry& fast : of_part) {
        Entry both{slow.base * size + fast.base, slow.stride * size + fast.stride, std::max(slow.coordinate, fast.coordinate), slow.list + fast.list,
                   slow.coordinate >= 0 ? slow.side : fast.side};
        longer.push_back(both);
      }
    out = std::move(longer);
  }
  return out;
}

bool is_identity(const std::vector<std::int64_t>& order, std::int64_t old_size) {
  if (static_cast<std::int64_t>(order.size()) != old_size) return false;
  for (std::size_t i = 0; i < order.size(); ++i)
    if (order[i] != static_cast<std::int64_t>(i)) return false;
  return true;
}

std::optional<AxisStep> step_of(const NetworkSpaces& spaces, const Axis& axis, std::size_t number, const CheckedMap& map) {
  AxisStep step;
  step.axis = number;
  const std::vector<Entry> all = entries(spaces, axis, map);
  if (map.map.kind == Kind::matrix) {
    // One block for each vector of the space that lies in the axis.
    for (const Entry& entry : all) {
      if (entry.coordinate != 0 || entry.side == Side::order) continue;
      const auto& matrices = map.map.matrices;
      step.blocks.push_back(
          {entry.base, entry.stride, matrices[map.list(static_cast<std::size_t>(entry.list), matrices.size())], entry.side == Side::read});
    }
    return step.blocks.empty() ? std::nullopt : std::optional(std::move(step));
  }
  bool any_factor = false;
  step.factors.assign(all.size(), 1);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Entry& entry = all[i];
    std::int64_t from = entry.base;
    if (entry.coordinate >= 0) {
      const auto list = static_cast<std::size_t>(entry.list), c = static_cast<std::size_t>(entry.coordinate);
      std::int64_t old = entry.coordinate;
      if (map.map.kind == Kind::scale) {
        const double factor = map.factor(list, c);
        WEFT_ASSERT(entry.side != Side::both || std::abs(factor) == 1);
        if (entry.side == Side::write || entry.side == Side::both) step.factors[i] = factor;
        if (entry.side == Side::read) step.factors[i] = 1 / factor;
      } else {
        old = map.order(list, c);
        if (map.map.kind == Kind::expand && entry.side == Side::read)
          step.factors[i] = 1 / map.copies[map.list(list, map.copies.size())][static_cast<std::size_t>(old)];
      }
      any_factor = any_factor || step.factors[i] != 1;
      from += entry.stride * old;
    }
    step.order.push_back(from);
  }
  if (!any_factor) step.factors.clear();
  if (is_identity(step.order, spaces.size(axis))) step.order.clear();
  if (step.factors.empty() && step.order.empty()) return std::nullopt;
  return step;
}

/// A scale of what a norm gives: in its gain and bias, undone where it is read.
Steps steps_of_norm(const NetworkSpaces& spaces, const CheckedMap& map) {
  Steps steps;
  bool is_read = false;
  for (const auto& [name, axes] : spaces.tensors)
    for (std::size_t i = 0; i < axes.size(); ++i) {
      const Axis& axis = axes[i];
      if (axis.norm != map.space.name) continue;
      is_read = is_read || axis.side == Side::read;
      AxisStep step;
      step.axis = i;
      for (std::size_t c = 0; c < map.old_size; ++c) step.factors.push_back(axis.side == Side::read ? 1 / map.factor(0, c) : map.factor(0, c));
      if (axis.side == Side::order && spaces.gain_offset != 0)
        for (const double factor : step.factors) step.addends.push_back(spaces.gain_offset * (factor - 1));
      steps[name].push_back(std::move(step));
    }
  if (!is_read) refuse(fmt::format("nothing in the model reads space '{}', so that a scale of it would not be undone", map.space.name));
  return steps;
}

bool is_norm_space(const NetworkSpaces& spaces, std::string_view name) {
  return std::any_of(spaces.tensors.begin(), spaces.tensors.end(), [&](const auto& entry) {
    return std::any_of(entry.second.begin(), entry.second.end(), [&](const Axis& axis) { return axis.norm == name; });
  });
}

std::vector<double> values_of(const TensorRef& tensor) {
  const TensorInfo& info = *tensor.tensor;
  std::vector<std::byte> raw(checked_size(info.size_bytes, "a vector"));
  tensor.checkpoint->read_bytes(info, 0, raw);
  std::vector<double> out(checked_size(info.num_elements, "a vector"));
  if (info.dtype == DType::f64) {
    std::memcpy(out.data(), raw.data(), raw.size());
    return out;
  }
  std::vector<float> values(out.size());
  math::decode(info.dtype, raw, values);
  std::copy(values.begin(), values.end(), out.begin());
  return out;
}

/// The tensors of a checkpoint, on their way through steps.
class Work {
 public:
  Work(std::shared_ptr<const Checkpoint> checkpoint, const Json& config) : checkpoint_(std::move(checkpoint)), config_(config) {
    architecture_ = find_architecture(config);
    if (architecture_ == nullptr) architecture_ = find_architecture_family(config);
    if (architecture_ == nullptr || architecture_->forward.kind == NetworkKind::none) {
      const Json* type = config.find("model_type");
      throw Error(ErrorCode::unsupported,
                  fmt::format("the spaces of models of the type {} are not known",
                              type != nullptr && type->string() != nullptr ? printable(*type->string()) : "that config.json does not name"),
                  {.file = checkpoint_->path().string(), .key = "model_type"}, "weft maps the spaces of models that it can run");
    }
    for (const TensorInfo& tensor : checkpoint_->tensors()) tensors_.push_back({{checkpoint_, &tensor}, tensor.name});
    find_spaces();
  }

  [[nodiscard]] const Architecture& architecture() const { return *architecture_; }
  [[nodiscard]] NetworkSpaces& spaces() { return spaces_; }
  [[nodiscard]] Json& config() { return config_; }
  [[nodiscard]] const TensorRef& tensor(const std::string& name) const {
    const auto at = std::find_if(tensors_.begin(), tensors_.end(), [&](const NamedTensor& tensor) { return tensor.name == name; });
    WEFT_ASSERT(at != tensors_.end());
    return at->tensor;
  }
  [[nodiscard]] bool has(const std::string& name) const { return spaces_.tensors.contains(name); }

  void take(const Steps& steps) {
    for (NamedTensor& tensor : tensors_) {
      const auto found = steps.find(tensor.name);
      if (found == steps.end()) continue;
      tensor.tensor = change_axes(tensor.tensor, found->second);
      changed_.insert(tensor.name);
    }
  }

  /// A tensor that the table does not place may read the space all the same.
  void check_unknown(const std::string& name, std::int64_t size) const {
    for (const TensorInfo& tensor : checkpoint_->tensors()) {
      if (spaces_.tensors.contains(tensor.name) || is_dropped(*architecture_, tensor.name)) continue;
      const auto match = match_name(*architecture_, tensor.name);
      if (match && match->tensor->role == Role::buffer) continue;
      if (std::find(tensor.shape.begin(), tensor.shape.end(), size) == tensor.shape.end()) continue;
      throw Error(ErrorCode::unsupported,
                  fmt::format("tensor '{}' {} may be made of space '{}', but what it does in a {} is not known", printable(tensor.name),
                              weft::to_string(tensor.shape), name, architecture_->name),
                  {.file = checkpoint_->path().string(), .tensor = printable(tensor.name)}, "drop it first if the model can do without it");
    }
  }

  /// A rotation passes a norm whose gains are all equal, and no other.
  void check_gains(const Space& space) const {
    for (const auto& [name, axes] : spaces_.tensors) {
      if (axes.size() != 1 || axes[0].kind != Axis::Kind::space || axes[0].space != space.name || axes[0].side != Side::order) continue;
      const std::vector<double> gains = values_of(tensor(name));
      if (std::all_of(gains.begin(), gains.end(), [&](double gain) { return gain == gains.front(); })) continue;
      const bool folds = (space.allows_folded & (kRotate | kRotateMean)) != 0;
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("space '{}' cannot be rotated while the gains of norms differ from channel to channel, as in '{}'", space.name,
                              printable(name)),
                  {.file = checkpoint_->path().string(), .tensor = printable(name)},
                  folds ? "fold them into the matrices that read them first (--fold-norms)" : space.reason);
    }
  }

  void untie() {
    if (!is_tied(*architecture_, config_)) return;
    const Architecture named = with_names_of(*architecture_, *checkpoint_);
    std::string head, embedding;
    for (const TensorTemplate& slot : named.tensors) {
      if (slot.role == Role::embed) embedding = slot.name;
      if (slot.role == Role::head && !slot.tied_to.empty() && slot.name.ends_with("weight") && head.empty()) head = slot.name;
    }
    if (head.empty() || !has(embedding)) return;
    // A tied network reads the embedding, even beside a copy of it.
    std::erase_if(tensors_, [&](const NamedTensor& tensor) { return tensor.name == head; });
    tensors_.push_back({tensor(embedding), head});
    changed_.insert(head);
    set_tie_word_embeddings(config_, false);
    rebuild();
    find_spaces();
  }

  /// Sizes that maps changed, in the config.
  void set_sizes(const NetworkSpaces& before) {
    const auto numbers = config_numbers(*architecture_, config_);
    auto wanted = numbers;
    bool changes = false;
    std::map<std::string, std::pair<std::int64_t, std::string>> by_field;
    const auto want = [&](const std::string& field, std::int64_t size, const std::string& space) {
      const auto [at, is_new] = by_field.try_emplace(field, size, space);
      if (!is_new && at->second.first != size)
        refuse(fmt::format("space '{}' would have {} elements and space '{}' {}, but a {}'s config.json says one number for all", at->second.second,
                           at->second.first, space, size, architecture_->name),
               "give all layers one size", ErrorCode::unsupported);
      wanted[field] = size;
    };
    std::map<std::string, std::int64_t> kv;
    for (std::size_t i = 0; i < spaces_.spaces.size(); ++i) {
      const Space& space = spaces_.spaces[i];
      changes = changes || space.size != before.spaces[i].size;
      const std::string base = space.name.substr(0, space.name.find('.'));
      const auto dots = std::count(space.name.begin(), space.name.end(), '.');
      if (base == "residual") want("hidden", space.size, space.name);
      if (base == "mlp") want(dots == 2 && numbers.contains("expert_ffn") ? "expert_ffn" : "ffn", space.size, space.name);
      if (base == "shared_mlp") want("shared_ffn", space.size, space.name);
      if (base == "kv") {
        kv[space.name.substr(2)] = space.size;
        want("kv_heads", space.size, space.name);
      }
      if (base == "group") want("heads", kv.at(space.name.substr(5)) * space.size, space.name);
    }
    if (!changes) return;
    const auto fail = [&] {
      refuse(fmt::format("a {}'s config.json cannot say these sizes", architecture_->name), "other spaces may have to change with this one",
             ErrorCode::unsupported);
    };
    if (architecture_->forward.kind == NetworkKind::perceptron || architecture_->forward.kind == NetworkKind::steps) fail();
    Json& text = text_config(config_);
    // What follows from another number by default is written down where it would follow wrongly.
    for (int round = 0; round < 2; ++round) {
      const auto now = config_numbers(*architecture_, config_);
      for (const ConfigField& field : architecture_->fields) {
        if (now.at(field.name) == wanted.at(field.name)) continue;
        if (field.keys.empty()) continue;
        std::string key = field.keys.front();
        for (const std::string& one : field.keys)
          if (text.find(one) != nullptr) {
            key = one;
            break;
          }
        text.set(key, wanted.at(field.name));
      }
    }
    rebuild();
    try {
      static_cast<void>(spaces_of(*architecture_, config_, *checkpoint_));
    } catch (const Error&) {
      fail();
    }
  }

  [[nodiscard]] MappedModel finish() {
    rebuild();
    return {checkpoint_, std::move(config_), {changed_.begin(), changed_.end()}};
  }

 private:
  void rebuild() { checkpoint_ = select_tensors(tensors_, *checkpoint_); }
  void find_spaces() { spaces_ = spaces_of(*architecture_, config_, *checkpoint_); }

  std::shared_ptr<const Checkpoint> checkpoint_;
  Json config_;
  const Architecture* architecture_ = nullptr;
  std::vector<NamedTensor> tensors_;
  NetworkSpaces spaces_;
  std::set<std::string> changed_;
};

/// W b for the matrix that reads a norm, along the axis that does.
std::vector<double> read_bias(const TensorRef& matrix, std::size_t axis, const std::vector<double>& bias) {
  const auto rows = static_cast<std::size_t>(matrix.tensor->shape[0]), columns = static_cast<std::size_t>(matrix.tensor->shape[1]);
  std::vector<double> out(axis == 1 ? rows : columns);
  const TensorRef wide = cast_tensor(matrix, DType::f32);
  const std::size_t at_once = std::max<std::size_t>(1, kPieceElements / std::max<std::size_t>(columns, 1));
  std::vector<float> values;
  for (std::size_t first = 0; first < rows; first += at_once) {
    const std::size_t count = std::min(at_once, rows - first);
    values.resize(count * columns);
    wide.checkpoint->read_bytes(*wide.tensor, first * columns * sizeof(float), std::as_writable_bytes(std::span(values)));
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t c = 0; c < columns; ++c) {
        const auto value = static_cast<double>(values[r * columns + c]);
        if (axis == 1)
          out[first + r] += value * bias[c];
        else
          out[c] += value * bias[first + r];
      }
  }
  return out;
}

/// Takes the mean out.
class Centring final : public math::LinearMap {
 public:
  explicit Centring(std::size_t size) : size_(size) {}
  [[nodiscard]] std::size_t size() const noexcept override { return size_; }
  [[nodiscard]] bool is_orthogonal() const noexcept override { return false; }
  void apply(double* x, std::size_t rows) const override {
    for (std::size_t r = 0; r < rows; ++r) {
      double* row = x + r * size_;
      const double mean = std::accumulate(row, row + size_, 0.0) / static_cast<double>(size_);
      for (std::size_t i = 0; i < size_; ++i) row[i] -= mean;
    }
  }
  void apply_dual(double*, std::size_t) const override { WEFT_ASSERT(false); }

 private:
  std::size_t size_;
};

}  // namespace

std::string allowed_text(unsigned allows) {
  std::string text;
  for (const auto& [bit, name] : {std::pair(kPermute, "permutations"), std::pair(kSign, "signs"), std::pair(kScale, "positive scales"),
                                  std::pair(kRotate, "rotations"), std::pair(kRotateMean, "rotations that leave the mean alone"),
                                  std::pair(kGeneral, "invertible matrices"), std::pair(kResize, "select and expand")})
    if ((allows & bit) != 0) text += (text.empty() ? "" : ", ") + std::string(name);
  return text.empty() ? "nothing" : text;
}

SpaceMap permuted(std::string space, std::vector<std::int64_t> order) {
  SpaceMap map;
  map.space = std::move(space);
  map.kind = Kind::permute;
  map.order = std::move(order);
  return map;
}
SpaceMap scaled(std::string space, std::vector<double> factors) {
  SpaceMap map;
  map.space = std::move(space);
  map.kind = Kind::scale;
  map.factors = std::move(factors);
  return map;
}
SpaceMap rotated(std::string space, std::shared_ptr<const math::LinearMap> matrix) {
  SpaceMap map;
  map.space = std::move(space);
  map.kind = Kind::matrix;
  map.matrices = {std::move(matrix)};
  return map;
}

Steps steps_of_map(const NetworkSpaces& spaces, const SpaceMap& map) {
  const CheckedMap checked = check(spaces, map);
  if (is_norm_space(spaces, checked.space.name)) return steps_of_norm(spaces, checked);
  Steps steps;
  const std::string& name = checked.space.name;
  bool is_tied = false;
  for (const auto& [tensor, axes] : spaces.tensors)
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if (!axes[i].touches(name)) continue;
      is_tied = is_tied || axes[i].side == Side::both;
      if (auto step = step_of(spaces, axes[i], i, checked)) steps[tensor].push_back(*std::move(step));
    }
  if (map.kind == Kind::expand && name == "residual") {
    // Norms divide by the mean over the channels, which stays when each is there as often as the others.
    const std::vector<double>& copies = checked.copies.front();
    if (std::any_of(copies.begin(), copies.end(), [&](double count) { return count != copies.front(); }))
      refuse("the residual space can only be expanded by the same number of copies of each channel: norms divide by a mean over all", "repeat all");
    if (is_tied) refuse("the residual space of a model whose head is its embedding cannot be expanded", "give it a head of its own first (--untie)");
  }
  return steps;
}

MappedModel map_spaces(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, std::span<const SpaceMap> maps) {
  Work work(std::move(checkpoint), config);
  const NetworkSpaces before = work.spaces();
  bool resizes = false;
  for (const SpaceMap& map : maps) {
    const Steps steps = steps_of_map(work.spaces(), map);
    const std::string name = parts_of(map.space).back();
    const Space& space = *work.spaces().find(name);
    work.check_unknown(name, space.size);
    if (map.kind == Kind::matrix && (space.allows & (kRotate | kGeneral)) == 0) work.check_gains(space);
    if (map.kind == Kind::expand && name == "residual" && work.architecture().forward.scales_embedding)
      refuse("the residual space of a model that multiplies its embedding by the root of its width cannot be expanded", {}, ErrorCode::unsupported);
    work.take(steps);
    if (map.kind != Kind::select && map.kind != Kind::expand) continue;
    resizes = true;
    const std::size_t lists = parts_of(map.space).size() == 1 ? 1 : [&] {
      std::int64_t product = 1;
      const std::vector<std::string> parts = parts_of(map.space);
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) product *= work.spaces().find(parts[i])->size;
      return static_cast<std::size_t>(product);
    }();
    for (Space& one : work.spaces().spaces)
      if (one.name == name) one.size = static_cast<std::int64_t>(map.order.size() / lists);
    if (name == "residual")
      for (Space& one : work.spaces().spaces)
        if (is_norm_space(work.spaces(), one.name)) one.size = static_cast<std::int64_t>(map.order.size());
  }
  if (resizes) work.set_sizes(before);
  return work.finish();
}

MappedModel fold_norms(std::shared_ptr<const Checkpoint> checkpoint, const Json& config) {
  Work work(std::move(checkpoint), config);
  const auto norms_of = [&] {
    std::set<std::string> norms;
    for (const auto& [name, axes] : work.spaces().tensors)
      for (const Axis& axis : axes)
        if (!axis.norm.empty()) norms.insert(axis.norm);
    return norms;
  };
  if (norms_of().contains("final")) work.untie();
  const std::set<std::string> norms = norms_of();
  if (norms.empty())
    refuse(fmt::format("no norm of a {} is read by matrices alone, so that none can be folded", work.architecture().name), {},
           ErrorCode::unsupported);
  const NetworkSpaces& spaces = work.spaces();
  for (const std::string& norm : norms) {
    std::string gain_name, bias_name;
    struct Reader {
      std::string name, bias;
      std::size_t axis;
    };
    std::vector<Reader> readers;
    bool all_have_bias = true;
    for (const auto& [name, axes] : spaces.tensors)
      for (std::size_t i = 0; i < axes.size(); ++i) {
        if (axes[i].norm != norm) continue;
        if (axes[i].side == Side::order) gain_name = name;
        if (axes[i].side == Side::write) bias_name = name;
        if (axes[i].side != Side::read) continue;
        Reader reader{name, {}, i};
        if (name.ends_with(".weight")) reader.bias = name.substr(0, name.size() - 6) + "bias";
        all_have_bias = all_have_bias && work.has(reader.bias);
        readers.push_back(std::move(reader));
      }
    if (gain_name.empty() || readers.empty()) continue;
    std::vector<double> gains = values_of(work.tensor(gain_name));
    for (double& gain : gains) gain += spaces.gain_offset;
    const std::vector<double> bias = bias_name.empty() ? std::vector<double>() : values_of(work.tensor(bias_name));
    const auto is_finite = [](double value) { return std::isfinite(value); };
    if (!std::all_of(gains.begin(), gains.end(), is_finite) || !std::all_of(bias.begin(), bias.end(), is_finite))
      throw Error(ErrorCode::corrupt, fmt::format("the norm '{}' holds NaN or infinities", printable(gain_name)), {.tensor = printable(gain_name)},
                  "fetch the model again, or run 'weft verify' on it");
    const bool has_bias = std::any_of(bias.begin(), bias.end(), [](double value) { return value != 0; });
    Steps steps;
    for (const Reader& reader : readers) {
      if (has_bias && all_have_bias) {
        AxisStep add;
        add.late_addends = [matrix = work.tensor(reader.name), axis = reader.axis, bias] { return read_bias(matrix, axis, bias); };
        steps[reader.bias].push_back(std::move(add));
      }
      AxisStep multiply;
      multiply.axis = reader.axis;
      multiply.factors = gains;
      steps[reader.name].push_back(std::move(multiply));
    }
    AxisStep ones;
    ones.factors.assign(gains.size(), 0);
    ones.addends.assign(gains.size(), 1 - spaces.gain_offset);
    steps[gain_name].push_back(std::move(ones));
    if (has_bias) {
      AxisStep rest;
      for (std::size_t i = 0; i < gains.size(); ++i) {
        if (!all_have_bias && gains[i] == 0 && bias[i] != 0)
          throw Error(ErrorCode::unsupported,
                      fmt::format("the norm '{}' has a gain of 0 and a bias in channel {}, and what reads it has no bias to take that over",
                                  printable(gain_name), i),
                      {.tensor = printable(gain_name)}, "the gains of this model cannot be folded");
        rest.factors.push_back(all_have_bias || gains[i] == 0 ? 0 : 1 / gains[i]);
      }
      steps[bias_name].push_back(std::move(rest));
    }
    work.take(steps);
  }
  return work.finish();
}

MappedModel centre_residual(std::shared_ptr<const Checkpoint> checkpoint, const Json& config) {
  Work work(std::move(checkpoint), config);
  if (work.architecture().forward.norm != NormKind::layer)
    refuse(fmt::format("the norms of a {} do not subtract a mean, so that taking it out of the residual stream would change what it computes",
                       work.architecture().name),
           "only models with LayerNorm can be centred", ErrorCode::unsupported);
  bool norms_sum = false;
  for (const TensorTemplate& tensor : work.architecture().tensors) norms_sum = norms_sum || tensor.site == Site::attention_sum;
  // Behind a sum that is normalised, the embedding passes a norm of its own, and it may be the head too.
  if (!norms_sum) work.untie();
  Steps steps;
  for (const auto& [name, axes] : work.spaces().tensors)
    for (std::size_t i = 0; i < axes.size(); ++i) {
      const Axis& axis = axes[i];
      if (axis.kind != Axis::Kind::space || axis.space != "residual" || axis.side != Side::write || !axis.norm.empty()) continue;
      const Role role = role_of(&work.architecture(), name);
      if (role == Role::norm || role == Role::head_transform) continue;  // read as it is
      AxisStep step;
      step.axis = i;
      step.blocks.push_back({0, 1, std::make_shared<Centring>(static_cast<std::size_t>(work.spaces().find("residual")->size)), false});
      steps[name].push_back(std::move(step));
    }
  work.take(steps);
  return work.finish();
}

MappedModel untie_head(std::shared_ptr<const Checkpoint> checkpoint, const Json& config) {
  Work work(std::move(checkpoint), config);
  work.untie();
  return work.finish();
}

}  // namespace weft::model
