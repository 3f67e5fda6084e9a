#include "engine/measure_input.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include "adapt/folded_model.h"
#include "checkpoint/model_folder.h"
#include "engine/model_config.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft::engine {

MeasuredInput open_measured(const std::string& model) {
  MeasuredInput input;
  input.written = model;
  const adapt::ModelWithAdapters parts = adapt::split_adapters(model);
  input.checkpoint = open_checkpoint(parts.model);
  // What an adapter adds is often less than a step of the model's type, and rounding to that would add directions of noise.
  for (const std::string& adapter : parts.adapters)
    input.checkpoint =
        adapt::fold_adapter(std::move(input.checkpoint), std::make_shared<const adapt::Adapter>(adapt::open_adapter(resolve_model(adapter).path)),
                            {.dtype = DType::f32, .only_changed = true});
  input.warnings.assign(input.checkpoint->warnings().begin(), input.checkpoint->warnings().end());
  if (!parts.adapters.empty()) {
    if (std::optional<model::HuggingFaceModel> held = adapt::held_model(input.checkpoint)) input.config = std::move(held->config);
    if (input.config) {
      input.architecture = model::find_architecture(*input.config);
      if (input.architecture == nullptr) input.architecture = model::find_architecture_family(*input.config);
      return input;
    }
  }
  if (const auto folder = folder_of_model(input.checkpoint->path())) {
    try {
      input.config = read_model_config(*folder);
      if (input.config) {
        input.architecture = model::find_architecture(*input.config);
        if (input.architecture == nullptr) input.architecture = model::find_architecture_family(*input.config);
      }
    } catch (const Error& error) {
      // A damaged config must not hide the weights.
      input.warnings.emplace_back(error.what());
    }
  }
  return input;
}

model::Role MeasuredInput::role(std::string_view tensor) const {
  const model::Role known = model::role_of(architecture, tensor);
  if (known != model::Role::unknown || checkpoint->container() != "gguf") return known;
  // llama.cpp's names, the same for every architecture.
  using model::Role;
  constexpr std::pair<std::string_view, Role> kNames[] = {
      {"token_embd", Role::embed}, {"output", Role::head},         {"attn_q", Role::q},           {"attn_k", Role::k},
      {"attn_v", Role::v},         {"attn_output", Role::o},       {"attn_qkv", Role::qkv},       {"ffn_gate", Role::gate},
      {"ffn_up", Role::up},        {"ffn_down", Role::down},       {"attn_norm", Role::norm},     {"ffn_norm", Role::norm},
      {"output_norm", Role::norm}, {"ffn_gate_inp", Role::router}, {"attn_q_norm", Role::q_norm}, {"attn_k_norm", Role::k_norm}};
  if (!tensor.ends_with(".weight")) return known;
  tensor.remove_suffix(std::string_view(".weight").size());
  tensor.remove_prefix(tensor.rfind('.') + 1);
  for (const auto& [name, role] : kNames)
    if (tensor == name) return role;
  return known;
}

int MeasuredInput::block(std::string_view tensor) const {
  if (architecture != nullptr)
    if (const auto match = model::match_name(*architecture, tensor)) return match->layer;
  // The first ".number." of a name is usually the layer.
  for (std::size_t dot = tensor.find('.'); dot != std::string_view::npos; dot = tensor.find('.', dot + 1)) {
    int number = -1;
    const char* begin = tensor.data() + dot + 1;
    const auto [end, error] = std::from_chars(begin, tensor.data() + tensor.size(), number);
    if (error == std::errc() && end != begin && end != tensor.data() + tensor.size() && *end == '.' && *begin != '-') return number;
  }
  return -1;
}

int MeasuredInput::expert(std::string_view tensor) const {
  if (architecture != nullptr)
    if (const auto match = model::match_name(*architecture, tensor)) return match->expert;
  return -1;
}

const TensorInfo* MeasuredInput::find(model::Role wanted, int wanted_block, int wanted_expert) const {
  for (const TensorInfo& tensor : checkpoint->tensors())
    if (tensor.name.ends_with("weight") && role(tensor.name) == wanted && block(tensor.name) == wanted_block && expert(tensor.name) == wanted_expert)
      return &tensor;
  return nullptr;
}

const TensorInfo* MeasuredInput::head() const {
  const TensorInfo* embedding = nullptr;
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    if (tensor.shape.size() != 2) continue;
    const model::Role r = role(tensor.name);
    if (r == model::Role::head) return &tensor;
    if (r == model::Role::embed && embedding == nullptr) embedding = &tensor;
  }
  return embedding;
}

std::string unreadable_reason(const TensorInfo& tensor) {
  if (is_decodable_float(tensor.dtype)) return {};
  switch (info(tensor.dtype).kind) {
    case DTypeKind::boolean:
    case DTypeKind::integer:
      return "integers: packed or quantized codes, indices or masks, which are no weights by themselves";
    case DTypeKind::complex:
      return "complex numbers are not measured";
    default:
      return "values of type " + std::string(to_string(tensor.dtype)) + " cannot be decoded";
  }
}

namespace {

/// Reads a piece and hands it to use(first element, bytes).
template <typename Use>
void read_pieces(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t begin, std::uint64_t count, Use&& use) {
  const auto bits = static_cast<std::uint64_t>(info(tensor.dtype).bits);
  constexpr std::uint64_t kPieceElements = 1 << 18;
  std::vector<std::byte> bytes(static_cast<std::size_t>((std::min(count, kPieceElements) * bits + 7) / 8));
  for (std::uint64_t at = 0; at < count; at += kPieceElements) {
    const std::uint64_t elements = std::min(kPieceElements, count - at);
    const std::span<std::byte> piece = std::span(bytes).first(static_cast<std::size_t>((elements * bits + 7) / 8));
    checkpoint.read_bytes(tensor, (begin + at) * bits / 8, piece);
    use(static_cast<std::size_t>(at), static_cast<std::size_t>(elements), std::span<const std::byte>(piece));
  }
}

}  // namespace

void read_floats(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t begin, std::span<float> out) {
  read_pieces(checkpoint, tensor, begin, out.size(), [&](std::size_t at, std::size_t count, std::span<const std::byte> bytes) {
    math::decode(tensor.dtype, bytes, out.subspan(at, count));
  });
}

void read_doubles(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t begin, std::span<double> out) {
  std::vector<float> values;
  read_pieces(checkpoint, tensor, begin, out.size(), [&](std::size_t at, std::size_t count, std::span<const std::byte> bytes) {
    if (tensor.dtype == DType::f64) {
      std::memcpy(&out[at], bytes.data(), bytes.size());
      return;
    }
    values.resize(count);
    math::decode(tensor.dtype, bytes, values);
    std::copy(values.begin(), values.end(), out.begin() + static_cast<std::ptrdiff_t>(at));
  });
}

std::vector<double> read_doubles(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<double> values(static_cast<std::size_t>(tensor.num_elements));
  read_doubles(checkpoint, tensor, 0, values);
  return values;
}

std::optional<MatrixShape> matrix_shape(const TensorInfo& tensor) {
  if (tensor.shape.size() < 2 || tensor.num_elements == 0) return std::nullopt;
  const std::int64_t rows = tensor.shape.front();
  return MatrixShape{rows, static_cast<std::int64_t>(tensor.num_elements / static_cast<std::uint64_t>(rows))};
}

}  // namespace weft::engine
