#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weft/checkpoint.h"

// A checkpoint of which some tensors are computed when they are read: what a model would be with other weights, without writing it.
namespace weft::engine {

/// Fills out with elements [begin, begin + out.size()).
using ComputeFloats = std::function<void(std::uint64_t begin, std::span<float> out)>;

class ComputedCheckpoint final : public Checkpoint {
 public:
  /// These tensors become float32 of the same shape. Errors: not_found for a name that the base lacks.
  ComputedCheckpoint(std::shared_ptr<const Checkpoint> base, std::vector<std::pair<std::string, ComputeFloats>> computed);
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override;
  void check_unchanged() const override { base_->check_unchanged(); }

 private:
  std::shared_ptr<const Checkpoint> base_;
  std::vector<std::pair<std::string, ComputeFloats>> computed_;
};

/// One element of a matrix, set to something else.
struct ElementPatch {
  std::string tensor;
  std::uint64_t element = 0;
  float value = 0;
};
[[nodiscard]] std::shared_ptr<const Checkpoint> patched(std::shared_ptr<const Checkpoint> base, const std::vector<ElementPatch>& patches);
/// (1 - t) a + t b, for every floating tensor that both have in one shape; others are a's.
[[nodiscard]] std::shared_ptr<const Checkpoint> between(std::shared_ptr<const Checkpoint> a, std::shared_ptr<const Checkpoint> b, double t);

}  // namespace weft::engine
