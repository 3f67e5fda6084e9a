// Whatever the config and the keys of an adapter, they are refused with an Error, or every module has tensors and a rank and alpha that are refused
// or make sense; what is read as LoRA is the same after it was stored. The input is {"config": {...}, "keys": {NAME: SHAPE}}.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapt/adapter.h"
#include "adapt/lora.h"
#include "checkpoint/json.h"
#include "weft/error.h"

namespace weft::fuzz {

/// float32 tensors of these shapes, whose bytes nobody has: all ones.
class KeysCheckpoint final : public Checkpoint {
 public:
  explicit KeysCheckpoint(std::vector<TensorInfo> tensors) {
    tensors_ = std::move(tensors);
    index_tensors();
  }
  void read_bytes(const TensorInfo&, std::uint64_t, std::span<std::byte> out) const override {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::byte{static_cast<unsigned char>(i % 4 == 3 ? 0x3F : i % 4 == 2 ? 0x80 : 0)};
  }
};

/// Null for what no container would give: names twice, other dimensions, more than small tensors.
inline std::shared_ptr<const Checkpoint> checkpoint_of(const Json& keys) {
  std::vector<TensorInfo> tensors;
  std::uint64_t total = 0;
  for (const auto& [name, shape] : *keys.object()) {
    if (shape.array() == nullptr) return nullptr;
    TensorInfo tensor;
    tensor.name = name;
    tensor.num_elements = 1;
    for (const Json& dim : *shape.array()) {
      if (dim.integer().value_or(-1) < 0 || *dim.integer() > 1024 || tensor.num_elements > 65536) return nullptr;
      tensor.shape.push_back(*dim.integer());
      tensor.num_elements *= static_cast<std::uint64_t>(*dim.integer());
    }
    tensor.size_bytes = 4 * tensor.num_elements;
    if ((total += tensor.size_bytes) > (1U << 20)) return nullptr;
    for (const TensorInfo& other : tensors)
      if (other.name == name) return nullptr;
    tensors.push_back(std::move(tensor));
  }
  return std::make_shared<KeysCheckpoint>(std::move(tensors));
}

inline void refused(const Error& error) {
  if (error.exit_status() != 2 || error.message().empty()) std::abort();
}

inline void expect_stored_and_read_back(const adapt::Lora& lora) {
  const adapt::StoredAdapter stored = adapt::store_lora(lora);
  std::vector<TensorInfo> tensors;
  for (const adapt::StoredTensor& tensor : stored.tensors) {
    TensorInfo info;
    info.name = tensor.name;
    info.dtype = tensor.dtype;
    info.shape = tensor.shape;
    info.size_bytes = tensor.bytes.size();
    info.num_elements = tensor.bytes.size() / 4;
    for (const TensorInfo& other : tensors)
      if (other.name == info.name) std::abort();
    tensors.push_back(std::move(info));
  }
  // From here on an Error is a bug of ours, and ends the run.
  const Json config = parse_json(write_json(stored.config), "again.json");
  const adapt::Lora again = adapt::read_lora(adapt::make_adapter("again", config, std::make_shared<KeysCheckpoint>(std::move(tensors))));
  if (again.modules.size() != lora.modules.size() || again.saved.size() != lora.saved.size()) std::abort();
  for (std::size_t i = 0; i < lora.modules.size(); ++i) {
    const adapt::LoraModule &a = lora.modules[i], &b = again.modules[i];
    // alpha is scale times rank, rounded once, and divided again.
    if (a.name != b.name || a.embedding != b.embedding || a.a.shape != b.a.shape || a.b.shape != b.b.shape || a.a.values != b.a.values ||
        !(std::abs(a.scale - b.scale) <= 4e-16 * std::abs(a.scale)))
      std::abort();
  }
}

}  // namespace weft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  Json input;
  try {
    input = parse_json({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  } catch (const Error&) {
    return 0;
  }
  const Json *config = input.find("config"), *keys = input.find("keys");
  if (config == nullptr || keys == nullptr || keys->object() == nullptr) return 0;
  const std::shared_ptr<const Checkpoint> tensors = fuzz::checkpoint_of(*keys);
  if (tensors == nullptr) return 0;
  adapt::Lora lora;
  try {
    const adapt::Adapter adapter = adapt::make_adapter("fuzz", *config, tensors);
    if (adapter.kind.empty() || adapter.modules.empty()) std::abort();
    for (const adapt::AdapterModule& module : adapter.modules) {
      if (module.name.empty() || module.parts.empty()) std::abort();
      for (const auto& [part, tensor] : module.parts)
        if (tensor == nullptr || tensors->find_tensor(tensor->name) != tensor) std::abort();
      try {
        if (const double rank = adapter.rank_of(module.name); !(rank >= 1)) std::abort();
        if (!std::isfinite(adapter.alpha_of(module.name))) std::abort();
        (void)adapter.lists("target_modules", module.name);
      } catch (const Error& error) {
        fuzz::refused(error);
      }
    }
    lora = adapt::read_lora(adapter);
  } catch (const Error& error) {
    fuzz::refused(error);
    return 0;
  }
  fuzz::expect_stored_and_read_back(lora);
  return 0;
}
