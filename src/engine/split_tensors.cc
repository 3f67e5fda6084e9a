#include "engine/split_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "model/network_config.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using model::Role;

/// Each row of a part is a run of elements of its whole.
struct Layout {
  const TensorInfo* whole = nullptr;
  std::vector<std::uint64_t> rows;  ///< first element of each
  std::uint64_t columns = 0;
};

class PartsCheckpoint final : public Checkpoint {
 public:
  explicit PartsCheckpoint(std::shared_ptr<const Checkpoint> base) : base_(std::move(base)) {
    container_ = "view";
    path_ = base_->path();
  }
  void add(std::string name, Layout layout) {
    TensorInfo part = *layout.whole;
    part.name = std::move(name);
    part.shape = {static_cast<std::int64_t>(layout.rows.size()), static_cast<std::int64_t>(layout.columns)};
    part.num_elements = layout.rows.size() * layout.columns;
    part.size_bytes = part.num_elements * static_cast<std::uint64_t>(info(part.dtype).bits) / 8;
    part.stored_bytes = 0;
    part.stored_as.clear();
    tensors_.push_back(std::move(part));
    layouts_.push_back(std::move(layout));
  }
  void finish() { index_tensors(); }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const Layout& layout = layouts_[static_cast<std::size_t>(find_tensor(tensor.name) - tensors_.data())];
    const auto width = static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8, row_bytes = layout.columns * width;
    for (std::size_t done = 0; done < out.size();) {
      const std::uint64_t row = (offset + done) / row_bytes, within = (offset + done) % row_bytes;
      std::uint64_t size = std::min<std::uint64_t>(row_bytes - within, out.size() - done);
      // Rows that follow each other in the whole are read at once.
      for (std::uint64_t next = row + 1;
           size < out.size() - done && next < layout.rows.size() && layout.rows[next] == layout.rows[next - 1] + layout.columns; ++next)
        size += std::min<std::uint64_t>(row_bytes, out.size() - done - size);
      base_->read_bytes(*layout.whole, layout.rows[static_cast<std::size_t>(row)] * width + within,
                        out.subspan(done, static_cast<std::size_t>(size)));
      done += static_cast<std::size_t>(size);
    }
  }

 private:
  std::shared_ptr<const Checkpoint> base_;
  std::vector<Layout> layouts_;
};

/// Which outputs of the whole belong to a part.
std::vector<std::uint64_t> outputs_of(std::size_t part, std::uint64_t q, std::uint64_t kv, std::uint64_t head_dim, model::QkvLayout layout) {
  std::vector<std::uint64_t> result;
  if (layout == model::QkvLayout::per_head) {
    // q, k and v of each head in turn.
    for (std::uint64_t head = 0; head * head_dim < q; ++head)
      for (std::uint64_t i = 0; i < head_dim; ++i) result.push_back((3 * head + part) * head_dim + i);
    return result;
  }
  const std::uint64_t begin = part == 0 ? 0 : part == 1 ? q : q + kv, count = part == 0 ? q : kv;
  for (std::uint64_t i = 0; i < count; ++i) result.push_back(begin + i);
  return result;
}

}  // namespace

SplitTensors split_tensors(const MeasuredInput& input) {
  SplitTensors result;
  if (input.architecture == nullptr || !input.config) return result;
  std::optional<model::NetworkConfig> config;
  auto view = std::make_shared<PartsCheckpoint>(input.checkpoint);
  std::vector<TensorPart> parts;
  for (const TensorInfo& tensor : input.checkpoint->tensors()) {
    const Role role = input.role(tensor.name);
    if ((role != Role::qkv && role != Role::gate_up) || tensor.shape.size() != 2 || tensor.num_elements == 0) continue;
    if (!unreadable_reason(tensor).empty() || info(tensor.dtype).bits % 8 != 0) continue;
    const auto match = model::match_name(*input.architecture, tensor.name);
    const bool transposed = match && match->tensor->transposed;
    const auto out = static_cast<std::uint64_t>(tensor.shape[transposed ? 1 : 0]), in = static_cast<std::uint64_t>(tensor.shape[transposed ? 0 : 1]);
    std::vector<std::pair<Role, std::vector<std::uint64_t>>> own;
    if (role == Role::gate_up) {
      if (out % 2 != 0) continue;
      for (std::uint64_t half = 0; half < 2; ++half) {
        std::vector<std::uint64_t>& outputs = own.emplace_back(half == 0 ? Role::gate : Role::up, std::vector<std::uint64_t>{}).second;
        for (std::uint64_t i = 0; i < out / 2; ++i) outputs.push_back(half * (out / 2) + i);
      }
    } else {
      try {
        if (!config) config = model::read_network_config(*input.config);
      } catch (const Error&) {
        return result;  // without sizes they stay whole, and say so
      }
      const auto head_dim = static_cast<std::uint64_t>(config->head_dim), q = static_cast<std::uint64_t>(config->heads) * head_dim,
                 kv = static_cast<std::uint64_t>(config->kv_heads) * head_dim;
      const model::QkvLayout layout = input.architecture->forward.qkv;
      if (q == 0 || q + 2 * kv != out || (layout == model::QkvLayout::per_head && q != kv)) continue;
      constexpr Role kRoles[] = {Role::q, Role::k, Role::v};
      for (std::size_t part = 0; part < 3; ++part) own.emplace_back(kRoles[part], outputs_of(part, q, kv, head_dim, layout));
    }
    for (auto& [part_role, outputs] : own) {
      Layout layout;
      layout.whole = &tensor;
      if (transposed) {
        // Outputs are columns here, and those of a part stand side by side.
        if (outputs.back() - outputs.front() + 1 != outputs.size()) continue;
        layout.columns = outputs.size();
        for (std::uint64_t row = 0; row < in; ++row) layout.rows.push_back(row * out + outputs.front());
      } else {
        layout.columns = in;
        for (const std::uint64_t output : outputs) layout.rows.push_back(output * in);
      }
      const std::string name = std::string(model::to_string(part_role));
      view->add(fmt::format("{} [{}]", tensor.name, name), std::move(layout));
      parts.push_back({nullptr, part_role, fmt::format("the {} of {}", name, tensor.name), input.block(tensor.name)});
    }
  }
  if (parts.empty()) return result;
  view->finish();
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i].tensor = &view->tensors()[i];
  result.view = std::move(view);
  result.parts = std::move(parts);
  return result;
}

}  // namespace weft::engine
