#include "support/memory_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "math/convert.h"

namespace weft::testing {

MemoryCheckpoint::MemoryCheckpoint(std::vector<Tensor> tensors, std::string name) : data_(std::move(tensors)) {
  container_ = "memory";
  path_ = std::move(name);
  files_.push_back({path_, 0});
  for (const Tensor& t : data_) {
    TensorInfo row;
    row.name = t.name;
    row.dtype = t.dtype;
    row.shape = t.shape;
    row.num_elements = 1;
    for (const std::int64_t d : t.shape) row.num_elements *= static_cast<std::uint64_t>(d);
    row.size_bytes = t.bytes.size();
    tensors_.push_back(std::move(row));
  }
  index_tensors();
}

void MemoryCheckpoint::read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  for (const Tensor& t : data_) {
    if (t.name != tensor.name) continue;
    std::copy_n(t.bytes.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
    return;
  }
}

std::vector<std::byte> stored_as(DType dtype, const std::vector<float>& values) {
  std::vector<std::byte> out(values.size() * static_cast<std::size_t>(info(dtype).bits) / 8);
  const std::size_t size = static_cast<std::size_t>(info(dtype).bits) / 8;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint64_t bits = math::encode_one(dtype, values[i]);
    std::memcpy(out.data() + i * size, &bits, size);
  }
  return out;
}

std::vector<float> values_of(DType dtype, std::span<const std::byte> bytes) {
  const std::size_t size = static_cast<std::size_t>(info(dtype).bits) / 8;
  std::vector<float> out(bytes.size() / size);
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * size, size);
    out[i] = math::decode_one(dtype, bits);
  }
  return out;
}

std::vector<float> random_values(std::size_t count, std::uint64_t seed, float scale) {
  std::mt19937_64 engine(seed);
  std::vector<float> out(count);
  // A sum of four uniforms is bell-shaped enough and, unlike std::normal_distribution, the same everywhere.
  for (float& x : out) {
    double sum = 0;
    for (int k = 0; k < 4; ++k) sum += static_cast<double>(engine() >> 40) * 0x1p-24 - 0.5;
    x = static_cast<float>(sum) * scale;
  }
  return out;
}

}  // namespace weft::testing
