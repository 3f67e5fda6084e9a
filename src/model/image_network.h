#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/thread_team.h"
#include "checkpoint/json.h"
#include "math/neural.h"
#include "weft/checkpoint.h"

// Weft's own small networks that read images: `mlp` (linear layers with ReLU between them) and `cnn` (the config lists its steps).
namespace weft::model {

class ImageNetwork {
 public:
  /// Errors: corrupt for tensors that are missing or whose shapes do not fit each other, unsupported for an unknown step.
  ImageNetwork(const Checkpoint& checkpoint, const Json& config);

  /// Numbers of one image.
  [[nodiscard]] std::size_t num_inputs() const noexcept { return num_inputs_; }
  [[nodiscard]] std::size_t num_classes() const noexcept { return num_classes_; }
  /// images: [count, inputs]; gives [count, classes]. Errors: corrupt for activations that are NaN or infinite, naming the step.
  [[nodiscard]] std::vector<float> run(std::span<const float> images, ThreadTeam& team) const;

 private:
  struct Step {
    enum class Kind : std::uint8_t { linear, conv, activation, max_pool, mean_pool, flatten } kind = Kind::linear;
    std::string name;  ///< of its tensor, or what it does
    std::vector<float> weight, bias;
    std::size_t channels_in = 0, height_in = 0, width_in = 0;
    std::size_t channels_out = 0, height_out = 0, width_out = 0;
    std::size_t size = 1, stride = 1, padding = 0;  ///< of a window
    std::size_t kernel_height = 0, kernel_width = 0;
    math::Activation activation = math::Activation::relu;
  };
  void add_linear(const Checkpoint& checkpoint, const std::string& name);
  void add_conv(const Checkpoint& checkpoint, const std::string& name, std::size_t padding, std::size_t stride);
  void add_activation(const std::string& name);
  void add_pool(Step::Kind kind, std::size_t size);
  [[nodiscard]] std::size_t present_size() const { return channels_ * height_ * width_; }

  std::vector<Step> steps_;
  std::size_t channels_ = 0, height_ = 1, width_ = 1;  ///< of what the last step gives
  std::size_t num_inputs_ = 0, num_classes_ = 0;
};

}  // namespace weft::model
