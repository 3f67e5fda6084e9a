#include "engine/computed_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "engine/measure_input.h"

namespace weft::engine {

ComputedCheckpoint::ComputedCheckpoint(std::shared_ptr<const Checkpoint> base, std::vector<std::pair<std::string, ComputeFloats>> computed)
    : base_(std::move(base)), computed_(std::move(computed)) {
  container_ = "view";
  path_ = base_->path();
  files_.assign(base_->files().begin(), base_->files().end());
  metadata_ = base_->metadata();
  tensors_.assign(base_->tensors().begin(), base_->tensors().end());
  for (const auto& [name, compute] : computed_) {
    (void)base_->tensor(name);
    for (TensorInfo& tensor : tensors_) {
      if (tensor.name != name) continue;
      tensor.dtype = DType::f32;
      tensor.size_bytes = 4 * tensor.num_elements;
      tensor.stored_as.clear();
    }
  }
  index_tensors();
}

void ComputedCheckpoint::read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  const auto found = std::find_if(computed_.begin(), computed_.end(), [&](const auto& each) { return each.first == tensor.name; });
  if (found == computed_.end()) return base_->read_bytes(base_->tensor(tensor.name), offset, out);
  if (out.empty()) return;
  const std::uint64_t first = offset / 4, last = (offset + out.size() + 3) / 4;
  std::vector<float> values(static_cast<std::size_t>(last - first));
  found->second(first, values);
  std::memcpy(out.data(), reinterpret_cast<const std::byte*>(values.data()) + (offset - 4 * first), out.size());
}

namespace {

/// read_floats wants an even begin for types of half a byte.
void read_any(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t begin, std::span<float> out) {
  if (begin % 2 == 0) return read_floats(checkpoint, tensor, begin, out);
  std::vector<float> values(out.size() + 1);
  read_floats(checkpoint, tensor, begin - 1, values);
  std::copy(values.begin() + 1, values.end(), out.begin());
}

}  // namespace

std::shared_ptr<const Checkpoint> patched(std::shared_ptr<const Checkpoint> base, const std::vector<ElementPatch>& patches) {
  std::map<std::string, std::vector<std::pair<std::uint64_t, float>>> by_tensor;
  for (const ElementPatch& patch : patches) by_tensor[patch.tensor].emplace_back(patch.element, patch.value);
  std::vector<std::pair<std::string, ComputeFloats>> computed;
  for (auto& [name, elements] : by_tensor) {
    const TensorInfo& tensor = base->tensor(name);
    computed.emplace_back(name, [base, &tensor, elements = elements](std::uint64_t begin, std::span<float> out) {
      read_any(*base, tensor, begin, out);
      for (const auto& [element, value] : elements)
        if (element >= begin && element - begin < out.size()) out[static_cast<std::size_t>(element - begin)] = value;
    });
  }
  return std::make_shared<ComputedCheckpoint>(std::move(base), std::move(computed));
}

std::shared_ptr<const Checkpoint> between(std::shared_ptr<const Checkpoint> a, std::shared_ptr<const Checkpoint> b, double t) {
  std::vector<std::pair<std::string, ComputeFloats>> computed;
  for (const TensorInfo& tensor : a->tensors()) {
    const TensorInfo* other = b->find_tensor(tensor.name);
    if (other == nullptr || other->shape != tensor.shape || !unreadable_reason(tensor).empty() || !unreadable_reason(*other).empty()) continue;
    computed.emplace_back(tensor.name, [a, b, &tensor, other, t](std::uint64_t begin, std::span<float> out) {
      std::vector<float> end(out.size());
      read_any(*a, tensor, begin, out);
      read_any(*b, *other, begin, end);
      for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = static_cast<float>((1 - t) * static_cast<double>(out[i]) + t * static_cast<double>(end[i]));
    });
  }
  return std::make_shared<ComputedCheckpoint>(std::move(a), std::move(computed));
}

}  // namespace weft::engine
