// Whatever a folder's quantization_config and the names, types and shapes of its tensors, they are refused with an Error, or every matrix that they
// stand for can be read, whole and in pieces alike. The input is {"config": {...}, "tensors": {NAME: [DTYPE, DIM, ..., or TEXT]}}.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/quantized_view.h"
#include "weft/dtype.h"
#include "weft/error.h"

namespace weft::fuzz {

/// Tensors whose bytes are made of where they stand, so that codes, indices and scales of all sizes come up.
class PackedCheckpoint final : public Checkpoint {
 public:
  PackedCheckpoint(std::vector<TensorInfo> tensors, std::map<std::string, std::string, std::less<>> texts) : texts_(std::move(texts)) {
    tensors_ = std::move(tensors);
    index_tensors();
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const auto text = texts_.find(tensor.name);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (text != texts_.end()) {
        out[i] = static_cast<std::byte>(text->second[offset + i]);
        continue;
      }
      const std::uint64_t at = offset + i;
      // Group indices and shapes are refused unless they are small.
      const bool small = tensor.name.ends_with("g_idx") || tensor.name.ends_with("shape");
      out[i] = small ? std::byte{static_cast<unsigned char>(at % 4 == 0 ? at / 512 : 0)} : std::byte{static_cast<unsigned char>(at * 37 + 11)};
    }
  }

 private:
  std::map<std::string, std::string, std::less<>> texts_;
};

/// Null for what no container would give: names twice, more than small tensors.
inline std::shared_ptr<const Checkpoint> packed_checkpoint(const Json& described) {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string, std::less<>> texts;
  std::uint64_t total = 0;
  for (const auto& [name, what] : *described.object()) {
    const Json::Array* parts = what.array();
    if (parts == nullptr || parts->empty() || parts->front().string() == nullptr) return nullptr;
    const std::optional<DType> dtype = dtype_from_name(*parts->front().string());
    if (!dtype || info(*dtype).bits < 8) return nullptr;
    TensorInfo tensor;
    tensor.name = name;
    tensor.dtype = *dtype;
    tensor.num_elements = 1;
    const std::string* text = parts->size() == 2 ? parts->back().string() : nullptr;
    if (text != nullptr) {
      tensor.dtype = DType::u8;
      tensor.shape = {static_cast<std::int64_t>(text->size())};
      tensor.num_elements = text->size();
      texts.emplace(name, *text);
    }
    for (std::size_t i = 1; i < parts->size() && text == nullptr; ++i) {
      const std::int64_t dim = (*parts)[i].integer().value_or(-1);
      if (dim < 0 || dim > 4096 || tensor.num_elements > 65536) return nullptr;
      tensor.shape.push_back(dim);
      tensor.num_elements *= static_cast<std::uint64_t>(dim);
    }
    tensor.size_bytes = tensor.num_elements * static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
    if ((total += tensor.size_bytes) > (1U << 20)) return nullptr;
    if (std::any_of(tensors.begin(), tensors.end(), [&](const TensorInfo& other) { return other.name == tensor.name; })) return nullptr;
    tensors.push_back(std::move(tensor));
  }
  return std::make_shared<PackedCheckpoint>(std::move(tensors), std::move(texts));
}

inline void expect_refusal(const Error& error) {
  if (error.exit_status() != 2 || error.message().empty()) std::abort();
}

inline void expect_pieces_of(const Checkpoint& view, const TensorInfo& tensor) {
  if (tensor.size_bytes != tensor.num_elements * static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8 || tensor.size_bytes > (1U << 22)) return;
  std::vector<std::byte> whole(tensor.size_bytes), pieces(tensor.size_bytes);
  view.read_bytes(tensor, 0, whole);
  for (std::size_t begin = 0; begin < pieces.size();) {
    const std::size_t count = std::min<std::size_t>(pieces.size() - begin, begin % 3 == 0 ? 3 : 250);
    view.read_bytes(tensor, begin, std::span(pieces).subspan(begin, count));
    begin += count;
  }
  if (whole != pieces) std::abort();
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
  const Json *config = input.find("config"), *described = input.find("tensors");
  if (config == nullptr || described == nullptr || described->object() == nullptr) return 0;
  const std::shared_ptr<const Checkpoint> stored = fuzz::packed_checkpoint(*described);
  if (stored == nullptr) return 0;
  try {
    std::string not_read;
    const std::shared_ptr<const Checkpoint> view = decode_quantized(stored, *config, not_read);
    for (const TensorInfo& tensor : view->tensors()) {
      try {
        fuzz::expect_pieces_of(*view, tensor);
      } catch (const Error& error) {
        fuzz::expect_refusal(error);  // codes and indices that stand for nothing
      }
    }
    Json left = *config;
    drop_quantization(*view, left);
  } catch (const Error& error) {
    fuzz::expect_refusal(error);
  }
  return 0;
}
