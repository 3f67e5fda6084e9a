#include "edit/space_operation.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>
#include <utility>

#include "base/philox.h"
#include "base/text.h"
#include "checkpoint/npy.h"
#include "math/convert.h"
#include "model/space_map.h"
#include "weft/error.h"

namespace weft::edit {
namespace {

using model::MappedModel;
using model::NetworkSpaces;
using model::Space;
using model::SpaceMap;

/// A matrix of this many rows takes half a gigabyte.
constexpr std::uint64_t kMostGiven = std::uint64_t{8192} * 8192;
constexpr std::int64_t kMostExpanded = std::int64_t{1} << 20;

[[noreturn]] void refuse(const std::string& where, std::string message, std::string advice) {
  throw Error(ErrorCode::invalid_argument, std::move(message), {.key = where}, std::move(advice));
}

std::string in_quotes(std::string_view name) { return "'" + printable(name) + "'"; }

std::shared_ptr<const Checkpoint> checkpoint_of(const Model& model) {
  std::vector<NamedTensor> tensors;
  for (const Tensor& tensor : model.tensors) tensors.push_back({tensor.values, tensor.name});
  return select_tensors(tensors, *model.tensors.front().values.checkpoint);
}

const Json& config_of(const Model& model, const std::string& where) {
  if (!model.config)
    throw Error(ErrorCode::not_found, "the model has no config.json, which says what its tensors are made of", {.key = where},
                "name a model's folder");
  return *model.config;
}

/// Takes what was mapped over.
Effect follow(Model& model, MappedModel mapped, const std::string& step) {
  Effect effect;
  const std::set<std::string> changed(mapped.changed.begin(), mapped.changed.end());
  effect.num_tensors = changed.size();
  if (!changed.empty()) effect.example = *changed.begin();
  std::set<std::string> old_names;
  for (Tensor& tensor : model.tensors) {
    old_names.insert(tensor.name);
    if (!changed.contains(tensor.name)) continue;
    tensor.values = without_renames({mapped.checkpoint, &mapped.checkpoint->tensor(tensor.name)});
    tensor.steps.push_back(step);
  }
  for (const std::string& name : changed) {
    if (old_names.contains(name)) continue;
    // A head that was the embedding.
    const TensorRef values{mapped.checkpoint, &mapped.checkpoint->tensor(name)};
    model.tensors.push_back({name, values, values, {}, {"untie", step}});
    for (const Tensor& tensor : model.tensors)
      if (model::role_of(model::find_architecture(mapped.config), tensor.name) == model::Role::embed) {
        model.tensors.back().inputs = tensor.inputs;
        break;
      }
  }
  model.config = std::move(mapped.config);
  return effect;
}

/// fold-norms and centre.
class Whole final : public Operation {
 public:
  using Change = std::function<MappedModel(std::shared_ptr<const Checkpoint>, const Json&)>;
  Whole(Change change, std::string name) : change_(std::move(change)), name_(std::move(name)) {}
  Effect apply(Model& model, std::vector<std::string>&) const override {
    return follow(model, change_(checkpoint_of(model), config_of(model, name_)), name_);
  }

 private:
  Change change_;
  std::string name_;
};

/// The numbers of an array, whatever their type.
struct Array {
  std::vector<double> values;
  Shape shape;
  std::shared_ptr<const Checkpoint> file;
};
Array read_array(const std::string& file, const std::string& where) {
  const std::shared_ptr<const Checkpoint> npy = open_npy(file, "array");
  const TensorInfo& tensor = npy->tensors().front();
  if (tensor.num_elements > kMostGiven)
    refuse(where, fmt::format("{} holds {} numbers, more than any space takes", in_quotes(file), tensor.num_elements), "name another file");
  if (info(tensor.dtype).kind != DTypeKind::floating && info(tensor.dtype).kind != DTypeKind::integer)
    refuse(where, fmt::format("{} holds {}, no numbers", in_quotes(file), to_string(tensor.dtype)), "name another file");
  std::vector<std::byte> raw(static_cast<std::size_t>(tensor.size_bytes));
  npy->read_bytes(tensor, 0, raw);
  Array array{std::vector<double>(static_cast<std::size_t>(tensor.num_elements)), tensor.shape, npy};
  const auto as = [&]<typename T>(T) {
    for (std::size_t i = 0; i < array.values.size(); ++i) {
      T value;
      std::memcpy(&value, raw.data() + i * sizeof(T), sizeof(T));
      array.values[i] = static_cast<double>(value);
    }
  };
  switch (tensor.dtype) {
    case DType::f64:
      as(double{});
      break;
    case DType::i64:
      as(std::int64_t{});
      break;
    case DType::u64:
      as(std::uint64_t{});
      break;
    case DType::i32:
      as(std::int32_t{});
      break;
    case DType::u32:
      as(std::uint32_t{});
      break;
    default: {
      std::vector<float> values(array.values.size());
      math::decode(tensor.dtype, raw, values);
      std::copy(values.begin(), values.end(), array.values.begin());
    }
  }
  return array;
}

std::vector<std::int64_t> indices_of(const Array& array, const std::string& file, const std::string& where) {
  std::vector<std::int64_t> indices;
  for (const double value : array.values) {
    if (!(value >= 0) || value > 1e9 || value != std::floor(value))
      refuse(where, fmt::format("{} holds {}, which is no index", in_quotes(file), value), "an order lists old elements, counted from 0");
    indices.push_back(static_cast<std::int64_t>(value));
  }
  return indices;
}

std::optional<std::uint64_t> whole_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// permute, rotate, scale, select and expand: SPACE or SPACE=HOW, where a * in SPACE stands for any layer (and expert).
class MapSpace final : public Operation {
 public:
  MapSpace(std::string name, const std::string& argument) : name_(std::move(name)) {
    const std::size_t at = argument.find('=');
    space_ = argument.substr(0, at);
    if (at != std::string::npos) how_ = argument.substr(at + 1);
    if (space_.empty()) refuse(name_, "no space is named", fmt::format("such as {} mlp.0; 'weft edit spaces MODEL' lists them", name_));
    const bool needs_how = name_ == "scale" || name_ == "select" || name_ == "expand";
    if (how_.empty() && (needs_how || at != std::string::npos))
      refuse(name_, fmt::format("nothing says how space {} is to be changed", in_quotes(space_)), fmt::format("write {} {}=HOW", name_, space_));
    if (how_.ends_with(".npy"))
      array_ = read_array(how_, name_);
    else if (name_ == "scale")
      refuse(name_, in_quotes(how_) + " is no .npy file", "factors are read from one, an element for each element of the space");
    else if (name_ == "permute" && !how_.empty())
      seed_ = number("a seed");
    else if (name_ == "expand")
      size_ = static_cast<std::int64_t>(number("a size"));
    else if (name_ == "rotate" && !how_.empty() && how_ != "hadamard") {
      is_haar_ = how_.starts_with("random:");
      if (is_haar_) how_ = how_.substr(7);
      seed_ = number("a seed");
    }
    if (size_ > kMostExpanded) refuse(name_, fmt::format("a space of {} elements is larger than any", size_), "give a smaller one");
  }

  Effect apply(Model& model, std::vector<std::string>&) const override {
    const Json& config = config_of(model, name_);
    std::shared_ptr<const Checkpoint> checkpoint = checkpoint_of(model);
    const model::Architecture* architecture = model::find_architecture(config);
    if (architecture == nullptr) architecture = model::find_architecture_family(config);
    const NetworkSpaces spaces = architecture == nullptr ? NetworkSpaces() : model::spaces_of(*architecture, config, *checkpoint);
    std::vector<SpaceMap> maps;
    for (const std::string& space : matching(spaces)) maps.push_back(map_of(spaces, space));
    MappedModel mapped = model::map_spaces(std::move(checkpoint), config, maps);
    Effect effect = follow(model, std::move(mapped), name_);
    if (array_) model.arrays.push_back(array_->file);
    if (maps.size() > 1) effect.example = fmt::format("{} spaces, the first {}", maps.size(), maps.front().space);
    return effect;
  }

 private:
  [[nodiscard]] std::uint64_t number(const char* what) const {
    const auto value = whole_number(how_);
    if (!value)
      refuse(name_, fmt::format("{} is neither {} nor a .npy file", in_quotes(how_), what),
             name_ == "rotate" ? "write hadamard, a number (a seed of signs), random:SEED or FILE.npy" : "write a whole number");
    return *value;
  }

  /// The spaces that are meant. The star of the last space stands for the same in those before it.
  [[nodiscard]] std::vector<std::string> matching(const NetworkSpaces& spaces) const {
    const std::size_t cut = space_.rfind(" x ");
    const std::string last = cut == std::string::npos ? space_ : space_.substr(cut + 3);
    const std::size_t star = last.find('*');
    if (star == std::string::npos || spaces.spaces.empty()) return {space_};
    const std::string before = last.substr(0, star), behind = last.substr(star + 1);
    std::vector<std::string> out;
    for (const Space& space : spaces.spaces) {
      const std::string& name = space.name;
      if (name.size() < before.size() + behind.size() + 1 || !name.starts_with(before) || !name.ends_with(behind)) continue;
      const std::string layer = name.substr(before.size(), name.size() - before.size() - behind.size());
      std::string whole = space_;
      for (std::size_t at = whole.find('*'); at != std::string::npos; at = whole.find('*', at + layer.size())) whole.replace(at, 1, layer);
      out.push_back(std::move(whole));
    }
    if (out.empty()) refuse(name_, fmt::format("no space of the model is called {}", in_quotes(last)), "'weft edit spaces MODEL' lists them");
    return out;
  }

  [[nodiscard]] SpaceMap map_of(const NetworkSpaces& spaces, const std::string& name) const {
    const std::size_t cut = name.rfind(" x ");
    const Space* space = spaces.find(cut == std::string::npos ? name : name.substr(cut + 3));
    SpaceMap map;
    map.space = name;
    if (space == nullptr) return map;  // map_spaces says so, with the nearest name
    // Layers differ by what their names make of one seed.
    const std::uint64_t seed = seed_ ^ fnv1a64(name);
    if (name_ == "rotate") {
      map.kind = SpaceMap::Kind::matrix;
      map.matrices = {matrix_of(*space, seed)};
    } else if (name_ == "scale") {
      map.kind = SpaceMap::Kind::scale;
      map.factors = array_->values;
    } else if (name_ == "permute") {
      map.order = array_ ? indices_of(*array_, how_, name_) : random_order(space->size, seed);
    } else if (name_ == "select") {
      map.kind = SpaceMap::Kind::select;
      if (array_) {
        map.order = indices_of(*array_, how_, name_);
      } else {
        const AxisRange range = parse_axis_ranges(how_, {space->size}).front();
        for (std::int64_t i = 0; i < range.size(); ++i) map.order.push_back(range.begin + i * range.step);
      }
    } else {
      map.kind = SpaceMap::Kind::expand;
      if (!array_ && size_ < space->size)
        refuse(name_, fmt::format("space '{}' has {} elements already, so it cannot be expanded to {}", space->name, space->size, size_),
               "to make it smaller, select in it");
      if (array_)
        map.order = indices_of(*array_, how_, name_);
      else
        for (std::int64_t i = 0; i < size_; ++i) map.order.push_back(i % space->size);
    }
    return map;
  }

  [[nodiscard]] std::shared_ptr<const math::LinearMap> matrix_of(const Space& space, std::uint64_t seed) const {
    if (array_) {
      if (array_->shape.size() != 2 || array_->shape[0] != array_->shape[1])
        refuse(name_, fmt::format("{} {} is no square matrix", in_quotes(how_), to_string(array_->shape)), "give one of the space's size");
      return math::make_matrix_map(array_->values, array_->shape[0]);
    }
    std::shared_ptr<const math::LinearMap> matrix =
        is_haar_ ? math::make_random_orthogonal(space.size, seed)
                 : math::make_hadamard_map(space.size, how_ == "hadamard" ? math::Signs::none : math::Signs::random, seed);
    const unsigned allows = space.allows | space.allows_folded;
    if ((allows & (model::kRotate | model::kGeneral)) == 0 && (allows & model::kRotateMean) != 0) matrix = math::keeping_the_mean(std::move(matrix));
    return matrix;
  }

  static std::vector<std::int64_t> random_order(std::int64_t size, std::uint64_t seed) {
    const RandomStream random = RandomStream::of(seed, "order", 0, 0);
    std::vector<std::int64_t> order(static_cast<std::size_t>(size));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    for (std::size_t i = order.size(); i > 1; --i) {
      const auto other = static_cast<std::size_t>(static_cast<double>(random.uniform(i)) * static_cast<double>(i));
      std::swap(order[i - 1], order[other]);
    }
    return order;
  }

  std::string name_, space_, how_;
  std::optional<Array> array_;
  std::uint64_t seed_ = 0;
  std::int64_t size_ = 0;
  bool is_haar_ = false;
};

}  // namespace

const std::vector<OperationHelp>& space_operations() {
  static const std::vector<OperationHelp> kOperations = {
      {"fold-norms", "", "multiply the gains of norms into the matrices that read them; a tied head gets values of its own"},
      {"centre", "", "take the mean over the channels out of what LayerNorm reads"},
      {"permute", "SPACE[=HOW]", "reorder a space in every tensor: by a seed (0), or an order in FILE.npy"},
      {"rotate", "SPACE[=HOW]", "turn a space: hadamard, a seed of its signs (0), random:SEED, or a matrix in FILE.npy"},
      {"scale", "SPACE=FILE.npy", "multiply the elements of a space by factors, undone where it is read"},
      {"select", "SPACE=HOW", "keep elements of a space: BEGIN:END, or those listed in FILE.npy"},
      {"expand", "SPACE=HOW", "repeat elements of a space up to a size, or as FILE.npy lists them; copies share what reads them"},
  };
  return kOperations;
}

std::unique_ptr<Operation> parse_space_operation(const Request& request) {
  const std::string& name = request.operation;
  if (name == "fold-norms" || name == "centre") {
    if (!request.argument.empty()) refuse(name, fmt::format("{} takes no argument, got {}", name, in_quotes(request.argument)), "leave it out");
    if (name == "centre") return std::make_unique<Whole>(model::centre_residual, name);
    return std::make_unique<Whole>(model::fold_norms, name);
  }
  for (const OperationHelp& known : space_operations())
    if (known.name == name) return std::make_unique<MapSpace>(name, request.argument);
  return nullptr;
}

}  // namespace weft::edit
