#include "support/read_all.h"

#include "weft/checkpoint.h"

namespace weft::testing {

Tensors read_all(const std::filesystem::path& model) {
  const auto checkpoint = open_checkpoint(model.string());
  Tensors all;
  for (const TensorInfo& t : checkpoint->tensors()) {
    std::vector<std::byte>& bytes = all[t.name];
    bytes.resize(t.size_bytes);
    checkpoint->read_bytes(t, 0, bytes);
  }
  return all;
}

}  // namespace weft::testing
