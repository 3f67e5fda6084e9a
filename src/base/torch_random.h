#pragma once
#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace weft {

/// The numbers of PyTorch's CPU generator (a Mersenne Twister of 32 bits), for files that hold a seed instead of what was drawn with it. Nothing of our
/// own draws from it. Checked against torch 2.15.
class TorchRandom {
 public:
  /// As manual_seed: the low 32 bits count.
  explicit TorchRandom(std::uint64_t seed) : engine_(static_cast<std::uint32_t>(seed)) {}

  /// As Tensor.uniform_(low, high) on float32.
  void uniform(float low, float high, std::span<float> out);
  void skip(std::uint64_t count) { engine_.discard(count); }
  /// The first `count` of torch.randperm(size); as many operations as that, but `size` of them from 2^32 / 20 up, where PyTorch draws otherwise.
  [[nodiscard]] std::vector<std::uint64_t> permutation(std::uint64_t size, std::uint64_t count);

 private:
  std::mt19937 engine_;
};

}  // namespace weft
