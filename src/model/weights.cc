#include "model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/packed_rows.h"
#include "math/convert.h"
#include "math/gemm.h"
#include "math/neural.h"
#include "model/packed_linear.h"
#include "weft/error.h"

namespace weft::model {
namespace {

/// Up to here rows of x go through the weights together; from here on a GEMM is faster.
constexpr std::size_t kFewRows = 6;
/// A tile of weights, decoded, stays in the second-level cache.
constexpr std::size_t kTileRows = 128;
constexpr std::size_t kTileColumns = 2048;
constexpr std::size_t kReadBytes = std::size_t{4} << 20;

std::size_t bytes_of(DType dtype, std::size_t count) { return count * static_cast<std::size_t>(info(dtype).bits) / 8; }

bool is_bias_name(std::string_view name) { return name.ends_with(".bias") || name.ends_with(".beta"); }

/// Weights [first, first + count) of row-major storage as float32.
void decode_rows(const Linear& linear, std::size_t first_row, std::size_t num_rows, float* out) {
  const std::size_t row_bytes = bytes_of(linear.dtype, linear.columns);
  math::decode(linear.dtype, {linear.weight.data() + first_row * row_bytes, num_rows * row_bytes}, {out, num_rows * linear.columns});
  if (linear.dtype != DType::i8) return;
  for (std::size_t r = 0; r < num_rows; ++r)
    for (std::size_t c = 0; c < linear.columns; ++c) out[r * linear.columns + c] *= linear.steps[first_row + r];
}

/// Row r of an i8 matrix, from its values.
void quantize_row(Linear& linear, std::size_t r, const float* values) {
  auto* row = reinterpret_cast<std::int8_t*>(linear.weight.data()) + r * linear.columns;
  linear.steps[r] = math::quantize_int8(values, row, linear.columns);
  std::int32_t sum = 0;
  for (std::size_t c = 0; c < linear.columns; ++c) sum += row[c];
  linear.offsets[r] = 128 * sum;
}

/// Whether --precision int8 rounds matrices of this role: those that most of the time and of the memory goes to.
bool is_rounded_to_int8(Role role) {
  switch (role) {
    case Role::q:
    case Role::k:
    case Role::v:
    case Role::qkv:
    case Role::o:
    case Role::gate:
    case Role::up:
    case Role::gate_up:
    case Role::down:
    case Role::shared_gate:
    case Role::shared_up:
    case Role::shared_down:
      return true;
    default:
      return false;
  }
}

}  // namespace

// ---- Linear

std::uint64_t Linear::size_bytes() const noexcept {
  std::uint64_t total = weight.size() + (bias.size() + steps.size() + offsets.size()) * sizeof(float);
  for (const math::PackedMatrix& part : packed) total += part.size_bytes();
  return total;
}

void Linear::read_row(std::size_t r, float* out) const {
  if (packed.empty()) return decode_rows(*this, r, 1, out);
  std::size_t part = 0;
  while (r >= packed[part].rows()) r -= packed[part++].rows();
  packed[part].read_row(r, out);
}

void apply_linear(const Linear& linear, const float* x, std::size_t x_stride, std::size_t num_rows, float* out, std::size_t out_stride,
                  Precision precision, ThreadTeam& team) {
  const std::size_t n = linear.rows, k = linear.columns;
  if (num_rows == 0 || n == 0) return;
  const auto add_bias = [&](std::size_t first, std::size_t count) {
    if (linear.bias.empty()) return;
    for (std::size_t t = 0; t < num_rows; ++t) math::add_to(linear.bias.data() + first, out + t * out_stride + first, count);
  };
  if (!linear.packed.empty()) return apply_packed(linear, x, x_stride, num_rows, out, out_stride, team);
  const std::size_t row_bytes = bytes_of(linear.dtype, k);

  if (num_rows <= kFewRows) {
    // Each output is one sum, whatever the cut: units are as large as an even share allows. Waking threads costs microseconds, so small ones stay
    // here.
    const std::size_t wanted = n * row_bytes < (std::size_t{256} << 10) ? 1 : static_cast<std::size_t>(team.num_threads()) * 4;
    const std::size_t share = ((n + wanted - 1) / wanted + 3) / 4 * 4;
    team.for_each((n + share - 1) / share, [&](std::size_t unit, int) {
      const std::size_t first = unit * share;
      const std::size_t count = std::min(share, n - first);
      math::row_products(linear.dtype, linear.weight.data() + first * row_bytes, count, k, x, x_stride, num_rows, out + first, out_stride);
      if (linear.dtype == DType::i8)
        for (std::size_t t = 0; t < num_rows; ++t) math::multiply_by(linear.steps.data() + first, out + t * out_stride + first, count);
      add_bias(first, count);
    });
    return;
  }

  // Tiles do not depend on the number of threads.
  const std::size_t tile = kTileRows;
  const std::size_t num_tiles = (n + tile - 1) / tile;
  if (precision == Precision::fast && linear.dtype == DType::bf16 && math::prefers_bf16_products()) {
    std::vector<std::uint16_t> rounded(num_rows * k);
    team.for_each((num_rows + 31) / 32, [&](std::size_t unit, int) {
      for (std::size_t t = unit * 32; t < std::min(num_rows, unit * 32 + 32); ++t)
        math::encode(DType::bf16, {x + t * x_stride, k}, std::as_writable_bytes(std::span(rounded.data() + t * k, k)));
    });
    team.for_each(num_tiles, [&](std::size_t unit, int) {
      const std::size_t first = unit * tile;
      const std::size_t count = std::min(tile, n - first);
      math::gemm_bf16_nt(num_rows, count, k, rounded.data(), k, reinterpret_cast<const std::uint16_t*>(linear.weight.data()) + first * k, k,
                         out + first, out_stride);
      add_bias(first, count);
    });
    return;
  }
  if (linear.dtype == DType::i8 && k <= math::kMostInt8Columns && math::has_int8_products()) {
    std::vector<std::uint8_t> rounded(num_rows * k);
    std::vector<float> steps(num_rows);
    team.for_each((num_rows + 31) / 32, [&](std::size_t unit, int) {
      for (std::size_t t = unit * 32; t < std::min(num_rows, unit * 32 + 32); ++t)
        steps[t] = math::quantize_uint8(x + t * x_stride, rounded.data() + t * k, k);
    });
    team.for_each(num_tiles, [&](std::size_t unit, int) {
      const std::size_t first = unit * tile;
      const std::size_t count = std::min(tile, n - first);
      thread_local std::vector<std::int32_t> sums;
      sums.resize(num_rows * count);
      math::gemm_u8s8_nt(num_rows, count, k, rounded.data(), k, reinterpret_cast<const std::int8_t*>(linear.weight.data()) + first * k, k,
                         sums.data(), count);
      for (std::size_t t = 0; t < num_rows; ++t)
        math::rescale(sums.data() + t * count, linear.offsets.data() + first, steps[t], linear.steps.data() + first, out + t * out_stride + first,
                      count);
      add_bias(first, count);
    });
    return;
  }
  team.for_each(num_tiles, [&](std::size_t unit, int) {
    const std::size_t first = unit * tile;
    const std::size_t count = std::min(tile, n - first);
    thread_local std::vector<float> decoded;
    for (std::size_t begin = 0; begin < k; begin += kTileColumns) {
      const std::size_t width = std::min(kTileColumns, k - begin);
      const float* weights = reinterpret_cast<const float*>(linear.weight.data()) + first * k + begin;
      std::size_t weights_stride = k;
      if (linear.dtype != DType::f32) {
        decoded.resize(count * width);
        for (std::size_t r = 0; r < count; ++r)
          math::decode(linear.dtype, {linear.weight.data() + (first + r) * row_bytes + bytes_of(linear.dtype, begin), bytes_of(linear.dtype, width)},
                       {decoded.data() + r * width, width});
        weights = decoded.data();
        weights_stride = width;
      }
      math::gemm_nt(num_rows, count, width, x + begin, x_stride, weights, weights_stride, out + first, out_stride,
                    begin == 0 ? math::Sum::replace : math::Sum::add);
    }
    if (linear.dtype == DType::i8)
      for (std::size_t t = 0; t < num_rows; ++t) math::multiply_by(linear.steps.data() + first, out + t * out_stride + first, count);
    add_bias(first, count);
  });
}

// ---- Finding the tensors

WeightReader::WeightReader(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, const NetworkConfig& network, Precision precision)
    : checkpoint_(std::move(checkpoint)), network_(network), precision_(precision) {
  const Architecture& architecture = *network.architecture;
  std::set<std::string_view> used;
  find_tensors(input_, tensor_slots(architecture, config, Placement::pre));
  find_tensors(output_, tensor_slots(architecture, config, Placement::post));
  blocks_.resize(network.layers.size());
  for (std::size_t i = 0; i < blocks_.size(); ++i)
    find_tensors(blocks_[i], tensor_slots(architecture, config, Placement::layer, static_cast<int>(i)));

  if (precision == Precision::packed) {
    find_packed(input_);
    find_packed(output_);
    for (Group& group : blocks_) find_packed(group);
  }

  for (const Group* group : {&input_, &output_})
    for (const Found& found : *group) used.insert(found.tensor->name);
  for (const Group& group : blocks_)
    for (const Found& found : group) used.insert(found.tensor->name);
  for (const Group& group : blocks_)
    for (const Found& found : group)
      if (const Role role = found.slot.role; !found.is_bias && found.tensor->shape.size() == 2) {
        const auto outputs = static_cast<std::uint64_t>(found.tensor->shape[found.slot.transposed ? 1 : 0]);
        const bool is_half = role == Role::gate || role == Role::up || role == Role::shared_gate || role == Role::shared_up;
        if (is_half || role == Role::gate_up) widest_rows_ = std::max(widest_rows_, is_half ? 2 * outputs : outputs);
      }
  std::size_t unknown = 0;
  std::string first;
  for (const TensorInfo& tensor : checkpoint_->tensors()) {
    if (used.contains(tensor.name) || is_dropped(architecture, tensor.name)) continue;
    if (const auto match = match_name(architecture, tensor.name)) {
      if (match->layer >= static_cast<int>(blocks_.size()))
        throw Error(
            ErrorCode::corrupt,
            fmt::format("tensor '{}' belongs to layer {}, but config.json has {} layers", printable(tensor.name), match->layer, blocks_.size()),
            {.file = checkpoint_->path().string(), .tensor = printable(tensor.name), .key = architecture.layer_count_key},
            "compare config.json with the one that the model was published with");
      if (match->tensor->role == Role::buffer || match->tensor->optional || match->tensor->role == Role::head) continue;
    }
    if (unknown++ == 0) first = tensor.name;
  }
  if (unknown > 0)
    warnings_.push_back(unknown == 1 ? fmt::format("tensor '{}' has no place in a {} and is ignored", printable(first), architecture.name)
                                     : fmt::format("{} tensors have no place in a {} and are ignored, the first is '{}'", unknown, architecture.name,
                                                   printable(first)));
}

void WeightReader::find_tensors(Group& group, std::vector<TensorSlot> slots) {
  const ErrorPlace place{.file = checkpoint_->path().string()};
  for (TensorSlot& slot : slots) {
    if (slot.role == Role::buffer || slot.role == Role::classifier) continue;
    Found found;
    const auto look = [&](const std::vector<std::string>& names) {
      for (const std::string& name : names) {
        if (found.tensor != nullptr) return;
        found.tensor = checkpoint_->find_tensor(name);
      }
    };
    // A tied head is the embedding, even where a file holds a copy.
    if (slot.tied_names.empty() || slot.expected || is_bias_name(slot.name)) {
      look({slot.name});
      look(slot.aliases);
    }
    if (found.tensor == nullptr && !slot.tied_names.empty() && (!slot.expected || is_bias_name(slot.name))) {
      look(slot.tied_names);
      found.is_tied = found.tensor != nullptr;
    }
    ErrorPlace here = place;
    here.tensor = printable(slot.name);
    if (found.tensor == nullptr) {
      // Whether an encoder has a head depends on what it was saved for.
      if (!slot.expected || (slot.role == Role::head && network_.kind == NetworkKind::encoder)) continue;
      throw Error(ErrorCode::corrupt,
                  fmt::format("the tensor '{}' ({}{}) is missing, which a {} with this config.json has", slot.name, to_string(slot.role),
                              slot.layer >= 0 ? fmt::format(" of layer {}", slot.layer) : "", network_.architecture->name),
                  here, "fetch the model again, or compare config.json with the one that it was published with");
    }
    if (slot.contradicts)
      throw Error(ErrorCode::corrupt,
                  fmt::format("the tensor '{}' contradicts config.json, which says that the model has none", printable(found.tensor->name)), here,
                  "compare config.json with the one that the model was published with");
    const TensorInfo& tensor = *found.tensor;
    if (slot.shape && *slot.shape != tensor.shape)
      throw Error(ErrorCode::corrupt,
                  fmt::format("tensor '{}' has shape {}, but config.json makes it {}", printable(tensor.name), weft::to_string(tensor.shape),
                              weft::to_string(*slot.shape)),
                  here, "compare config.json with the one that the model was published with");
    if (!is_decodable_float(tensor.dtype))
      throw Error(ErrorCode::unsupported,
                  fmt::format("tensor '{}' has type {}, which holds no plain numbers", printable(tensor.name), to_string(tensor.dtype)), here,
                  "convert the model to bf16 first ('weft convert')");
    found.is_bias = is_bias_name(slot.name) || (slot.role == Role::head && tensor.shape.size() == 1);
    found.slot = std::move(slot);
    found.source = checkpoint_.get();
    group.push_back(std::move(found));
  }
}

void WeightReader::find_packed(Group& group) {
  for (Found& found : group) {
    if (found.is_bias || found.tensor->shape.size() != 2 || found.slot.transposed) continue;
    PackedRows rows;
    if (read_packed_rows(*found.source, *found.tensor, 0, 0, rows)) found.packed = rows.format;
  }
  // What is one product stays packed as a whole or not at all.
  static constexpr std::array<Role, 8> kTogether[] = {
      {Role::q, Role::k, Role::v}, {Role::gate, Role::gate_up, Role::up}, {Role::shared_gate, Role::shared_up}};
  for (const std::array<Role, 8>& roles : kTogether) {
    const auto is_one = [&roles](const Found& found) {
      return !found.is_bias && found.slot.role != Role::unknown && std::find(roles.begin(), roles.end(), found.slot.role) != roles.end();
    };
    std::set<int> decoded;  // by expert
    for (const Found& found : group)
      if (is_one(found) && !found.packed) decoded.insert(found.slot.expert);
    for (Found& found : group)
      if (is_one(found) && decoded.contains(found.slot.expert)) found.packed.reset();
  }
}

const WeightReader::Found* WeightReader::find(const Group& group, Role role, bool bias, int expert) const {
  for (const Found& found : group)
    if (found.slot.role == role && found.is_bias == bias && found.slot.expert == expert) return &found;
  return nullptr;
}

// ---- Reading

DType WeightReader::stored_as(DType dtype, Role role) const {
  if (precision_ == Precision::int8 && is_rounded_to_int8(role)) return DType::i8;
  if (precision_ != Precision::float32 && precision_ != Precision::packed) return DType::bf16;
  switch (dtype) {
    case DType::bf16:
    case DType::f16:
      return dtype;
    case DType::f8_e4m3:
    case DType::f8_e5m2:
    case DType::f8_e4m3fnuz:
    case DType::f8_e5m2fnuz:
    case DType::f4:
      return DType::bf16;  // holds all their values
    default:
      return DType::f32;
  }
}

std::vector<float> WeightReader::vector(const Found& found) {
  const TensorInfo& tensor = *found.tensor;
  std::vector<std::byte> stored(checked_size(tensor.size_bytes, "the size of a tensor"));
  found.source->read_bytes(tensor, 0, stored);
  std::vector<float> values(checked_size(tensor.num_elements, "the size of a tensor"));
  math::decode(tensor.dtype, stored, values);
  return values;
}

NormWeights WeightReader::norm(const Group& group, Role role, Site site) const {
  NormWeights norm;
  for (const Found& found : group)
    if (found.slot.role == role && found.slot.site == site) (found.is_bias ? norm.bias : norm.weight) = vector(found);
  return norm;
}

Linear WeightReader::linear(const Group& group, std::span<const Role> roles, ThreadTeam& team, int expert, Rows layout) const {
  std::vector<const Found*> parts;
  bool has_bias = false;
  Linear out;
  for (const Role role : roles)
    if (const Found* part = find(group, role, false, expert)) {
      parts.push_back(part);
      has_bias = has_bias || find(group, role, true, expert) != nullptr;
    }
  if (parts.empty()) return out;
  const bool is_packed = std::all_of(parts.begin(), parts.end(), [](const Found* part) { return part->packed.has_value(); });
  out.dtype = stored_as(parts.front()->tensor->dtype, parts.front()->slot.role);
  for (const Found* part : parts) {
    const Shape& shape = part->tensor->shape;
    WEFT_ASSERT(shape.size() == 2);
    out.rows += static_cast<std::size_t>(shape[part->slot.transposed ? 1 : 0]);
    out.columns = static_cast<std::size_t>(shape[part->slot.transposed ? 0 : 1]);
    // Parts of different types meet in the type that holds both.
    if (stored_as(part->tensor->dtype, part->slot.role) != out.dtype) out.dtype = DType::f32;
  }
  if (out.dtype == DType::i8 && !is_packed) {
    out.steps.resize(out.rows);
    out.offsets.resize(out.rows);
  }
  const std::size_t columns = out.columns;
  if (!is_packed)
    out.weight = AlignedBytes(checked_size(checked_mul(out.rows, bytes_of(out.dtype, columns), "the size of a matrix"), "the size of a matrix"));

  // Where row r of the stored q, k, v goes: the interleaved layout has a block of 3 for each head.
  const auto heads = static_cast<std::size_t>(network_.heads), head_dim = static_cast<std::size_t>(network_.head_dim);
  const auto target = [&](std::size_t row) {
    if (layout == Rows::plain) return row;
    const std::size_t head = row / (3 * head_dim), part = row / head_dim % 3, dim = row % head_dim;
    return part * heads * head_dim + head * head_dim + dim;
  };
  std::size_t first_row = 0;
  for (const Found* part : parts) {
    const TensorInfo& tensor = *part->tensor;
    const bool is_transposed = part->slot.transposed;
    const auto stored_rows = static_cast<std::size_t>(tensor.shape[0]), stored_columns = static_cast<std::size_t>(tensor.shape[1]);
    const std::size_t stored_row_bytes = bytes_of(tensor.dtype, stored_columns);
    const std::size_t row_bytes = bytes_of(out.dtype, columns);
    const std::size_t rows_at_once = std::max<std::size_t>(1, kReadBytes / std::max<std::size_t>(stored_row_bytes, 1));
    const bool is_copy = tensor.dtype == out.dtype && !is_transposed && layout == Rows::plain;
    const bool is_turned = is_transposed && out.dtype == DType::i8;
    if (is_turned) {
      // The step of a row is known when all of it is. Models that store their matrices so are small enough to be read whole.
      const std::vector<float> values = vector(*part);
      team.for_each(stored_columns, [&](std::size_t r, int) {
        std::vector<float> row(columns);
        for (std::size_t c = 0; c < columns; ++c) row[c] = values[c * stored_columns + r];
        quantize_row(out, first_row + target(r), row.data());
      });
    }
    if (is_packed) out.packed.push_back(packed_matrix(*part, team, target));
    const std::size_t num_units = is_turned || is_packed ? 0 : (stored_rows + rows_at_once - 1) / rows_at_once;
    team.for_each(num_units, [&](std::size_t unit, int) {
      const std::size_t begin = unit * rows_at_once, count = std::min(rows_at_once, stored_rows - begin);
      if (is_copy) {
        part->source->read_bytes(tensor, begin * stored_row_bytes, out.weight.span().subspan((first_row + begin) * row_bytes, count * row_bytes));
        return;
      }
      std::vector<std::byte> stored(count * stored_row_bytes);
      std::vector<float> values(count * stored_columns);
      part->source->read_bytes(tensor, begin * stored_row_bytes, stored);
      math::decode(tensor.dtype, stored, values);
      if (!is_transposed && out.dtype == DType::i8) {
        for (std::size_t r = 0; r < count; ++r) quantize_row(out, first_row + target(begin + r), values.data() + r * stored_columns);
        return;
      }
      if (!is_transposed) {
        for (std::size_t r = 0; r < count; ++r)
          math::encode(out.dtype, {values.data() + r * stored_columns, stored_columns},
                       out.weight.span().subspan((first_row + target(begin + r)) * row_bytes, row_bytes));
        return;
      }
      const std::size_t element = bytes_of(out.dtype, 1);
      std::vector<std::byte> encoded(bytes_of(out.dtype, values.size()));
      math::encode(out.dtype, values, encoded);
      for (std::size_t r = 0; r < count; ++r)
        for (std::size_t c = 0; c < stored_columns; ++c)
          std::memcpy(out.weight.data() + ((first_row + target(c)) * columns + begin + r) * element,
                      encoded.data() + (r * stored_columns + c) * element, element);
    });
    const std::size_t part_rows = is_transposed ? stored_columns : stored_rows;
    if (has_bias) {
      out.bias.resize(out.rows, 0.0F);
      if (const Found* bias = find(group, part->slot.role, true, expert)) {
        const std::vector<float> values = vector(*bias);
        for (std::size_t r = 0; r < values.size() && r < part_rows; ++r) out.bias[first_row + target(r)] = values[r];
      }
    }
    first_row += part_rows;
  }
  return out;
}

math::PackedMatrix WeightReader::packed_matrix(const Found& part, ThreadTeam& team, const std::function<std::size_t(std::size_t)>& target) const {
  const TensorInfo& tensor = *part.tensor;
  const auto rows = static_cast<std::size_t>(tensor.shape[0]), columns = static_cast<std::size_t>(tensor.shape[1]);
  math::PackedMatrix matrix(*part.packed, rows, columns);
  const std::size_t at_once = std::max<std::size_t>(kReadBytes / columns / 32 * 32, 32);
  team.for_each((rows + at_once - 1) / at_once, [&](std::size_t unit, int) {
    const std::size_t first = unit * at_once, count = std::min(at_once, rows - first);
    PackedRows read;
    if (!read_packed_rows(*part.source, tensor, first, count, read) || !(read.format == *part.packed))
      throw Error(ErrorCode::internal, "a packed matrix changed its form", {.tensor = printable(tensor.name)});
    for (std::size_t i = 0; i < count; ++i) read.put(i, matrix, target(first + i));
  });
  return matrix;
}

FeedForward WeightReader::feed_forward(const Group& group, std::span<const Role> up, Role down, ThreadTeam& team, int expert) const {
  FeedForward out;
  out.up = linear(group, up, team, expert);
  const Role down_roles[] = {down};
  out.down = linear(group, down_roles, team, expert);
  return out;
}

InputWeights WeightReader::input(ThreadTeam& team) const {
  InputWeights out;
  const Role embed[] = {Role::embed}, position[] = {Role::position}, type[] = {Role::token_type};
  out.embedding = linear(input_, embed, team);
  out.positions = linear(input_, position, team);
  out.types = linear(input_, type, team);
  out.norm = norm(input_, Role::norm, Site::embedding);
  return out;
}

OutputWeights WeightReader::output(ThreadTeam& team) const {
  OutputWeights out;
  out.norm = norm(output_, Role::norm, Site::final);
  out.transform_norm = norm(output_, Role::norm, Site::head_transform);
  const Role transform[] = {Role::head_transform}, head[] = {Role::head}, pooler[] = {Role::pooler};
  out.transform = linear(output_, transform, team);
  out.pooler = linear(output_, pooler, team);
  out.has_head = has_head();
  if (!out.has_head) return out;
  const Found* weight = find(output_, Role::head, false);
  out.is_tied = weight->is_tied;
  if (!out.is_tied)
    out.head = linear(output_, head, team);
  else if (const Found* bias = find(output_, Role::head, true))
    out.head.bias = vector(*bias);
  return out;
}

bool WeightReader::has_head() const {
  // An encoder's tied head counts only beside the rest of its prediction head: a bare encoder has the embedding too.
  return find(output_, Role::head, false) != nullptr &&
         (network_.kind == NetworkKind::decoder || find(output_, Role::head_transform, false) != nullptr);
}

std::vector<BlockTensor> WeightReader::block_tensors(std::size_t layer) const {
  std::vector<BlockTensor> tensors;
  for (const Found& found : blocks_.at(layer)) tensors.push_back({found.slot, found.tensor, found.is_bias});
  return tensors;
}

BlockWeights WeightReader::block(std::size_t layer, ThreadTeam& team, const Checkpoint* changed) const {
  Group with_changes;
  if (changed != nullptr) {
    with_changes = blocks_[layer];
    for (Found& found : with_changes) {
      const TensorInfo* tensor = changed->find_tensor(found.tensor->name);
      if (tensor == nullptr) continue;
      WEFT_ASSERT(tensor->shape == found.tensor->shape);
      found.tensor = tensor;
      found.source = changed;
      found.packed.reset();
    }
  }
  const Group& group = changed == nullptr ? blocks_[layer] : with_changes;
  BlockWeights out;
  for (const Site site : {Site::attention_in, Site::attention_out, Site::attention_sum, Site::mlp_in, Site::mlp_out, Site::mlp_sum})
    out.norms[static_cast<std::size_t>(site)] = norm(group, Role::norm, site);
  out.q_norm = norm(group, Role::q_norm, Site::none);
  out.k_norm = norm(group, Role::k_norm, Site::none);
  const Role separate[] = {Role::q, Role::k, Role::v}, fused[] = {Role::qkv}, o[] = {Role::o};
  const QkvLayout layout = network_.architecture->forward.qkv;
  out.qkv = layout == QkvLayout::separate ? linear(group, separate, team)
                                          : linear(group, fused, team, -1, layout == QkvLayout::per_head ? Rows::per_head : Rows::plain);
  out.o = linear(group, o, team);

  const Role up[] = {Role::gate, Role::gate_up, Role::up}, shared_up[] = {Role::shared_gate, Role::shared_up};
  const Role router[] = {Role::router}, shared_router[] = {Role::shared_router};
  out.gated = std::any_of(group.begin(), group.end(), [](const Found& f) { return f.slot.role == Role::gate || f.slot.role == Role::gate_up; });
  if (network_.layers[layer].experts) {
    out.router = linear(group, router, team);
    for (int e = 0; e < static_cast<int>(network_.experts); ++e) out.experts.push_back(feed_forward(group, up, Role::down, team, e));
    out.shared = feed_forward(group, shared_up, Role::shared_down, team);
    out.shared_router = linear(group, shared_router, team);
  } else {
    out.mlp = feed_forward(group, up, Role::down, team);
  }
  return out;
}

void WeightReader::will_read_block(std::size_t layer) const {
  if (layer >= blocks_.size()) return;
  for (const Found& found : blocks_[layer]) checkpoint_->will_read(*found.tensor, 0, found.tensor->size_bytes);
}

std::uint64_t WeightReader::group_bytes(const Group& group, bool with_tied) const {
  std::uint64_t total = 0;
  for (const Found& found : group)
    if (found.packed && (!found.is_tied || with_tied)) {
      total = checked_add(
          total, math::packed_size(*found.packed, static_cast<std::size_t>(found.tensor->shape[0]), static_cast<std::size_t>(found.tensor->shape[1])),
          "the size of a model");
    } else if (!found.is_tied || with_tied) {
      // Parts that meet may be widened to float32; norms and biases always are.
      const bool is_matrix = found.tensor->shape.size() == 2;
      const auto bits = static_cast<std::uint64_t>(info(is_matrix ? stored_as(found.tensor->dtype, found.slot.role) : DType::f32).bits);
      total = checked_add(total, checked_mul(found.tensor->num_elements, bits / 8, "the size of a model"), "the size of a model");
    }
  return total;
}
std::uint64_t WeightReader::input_bytes() const { return group_bytes(input_, false); }
std::uint64_t WeightReader::output_bytes() const { return group_bytes(output_, false); }
std::uint64_t WeightReader::block_bytes(std::size_t layer) const { return group_bytes(blocks_[layer], false); }

std::vector<std::string> WeightReader::non_finite_tensors(int layer) const {
  std::vector<std::string> names;
  const auto check = [&](const Group& group) {
    for (const Found& found : group) {
      const TensorInfo& tensor = *found.tensor;
      const auto element_bits = static_cast<std::uint64_t>(info(tensor.dtype).bits);
      std::vector<std::byte> stored;
      std::vector<float> values;
      for (std::uint64_t at = 0; at < tensor.size_bytes; at += kReadBytes) {
        stored.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kReadBytes, tensor.size_bytes - at)));
        values.resize(static_cast<std::size_t>(stored.size() * 8 / element_bits));
        checkpoint_->read_bytes(tensor, at, stored);
        math::decode(tensor.dtype, stored, values);
        if (math::count_non_finite(values) == 0) continue;
        names.push_back(tensor.name);
        break;
      }
    }
  };
  if (layer >= 0)
    check(blocks_[static_cast<std::size_t>(layer)]);
  else {
    check(input_);
    check(output_);
  }
  return names;
}

}  // namespace weft::model
