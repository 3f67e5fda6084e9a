#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "weft/checkpoint.h"

namespace weft::testing {

/// A checkpoint whose tensors are bytes in memory.
class MemoryCheckpoint final : public Checkpoint {
 public:
  struct Tensor {
    std::string name;
    DType dtype;
    Shape shape;
    std::vector<std::byte> bytes;
  };
  explicit MemoryCheckpoint(std::vector<Tensor> tensors, std::string name = "memory");
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override;

 private:
  std::vector<Tensor> data_;
};

/// Float values stored as dtype (rounded by the scalar reference of math/convert.h).
std::vector<std::byte> stored_as(DType dtype, const std::vector<float>& values);
/// The other way round.
std::vector<float> values_of(DType dtype, std::span<const std::byte> bytes);

/// Normal-looking random values from a fixed seed, rounded so that they are what `dtype` can hold.
std::vector<float> random_values(std::size_t count, std::uint64_t seed, float scale = 1.0F);

}  // namespace weft::testing
