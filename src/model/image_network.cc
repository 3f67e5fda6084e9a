#include "model/image_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "math/convert.h"
#include "math/gemm.h"
#include "weft/error.h"

namespace weft::model {
namespace {

constexpr std::size_t kImagesAUnit = 16;
constexpr std::int64_t kLargestSide = 1 << 16;

[[noreturn]] void refuse(const std::string& what, std::string key) {
  throw Error(ErrorCode::corrupt, "config.json: " + what, {.key = std::move(key)},
              "compare config.json with the one that the model was published with");
}

std::size_t side(const Json& value, const std::string& key, std::int64_t lowest) {
  const std::optional<std::int64_t> number = value.integer();
  if (!number || *number < lowest || *number > kLargestSide)
    refuse(fmt::format("{} is no whole number between {} and {}", key, lowest, kLargestSide), key);
  return static_cast<std::size_t>(*number);
}

std::vector<float> read_tensor(const Checkpoint& checkpoint, const std::string& name, std::size_t rank) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  if (tensor.shape.size() != rank || !is_decodable_float(tensor.dtype))
    throw Error(ErrorCode::corrupt,
                fmt::format("tensor '{}' is {} {}, not floating-point with {} axes", printable(name), to_string(tensor.dtype),
                            weft::to_string(tensor.shape), rank),
                {.file = checkpoint.path().string(), .tensor = printable(name)}, "");
  std::vector<std::byte> stored(checked_size(tensor.size_bytes, "the size of a tensor"));
  checkpoint.read_bytes(tensor, 0, stored);
  std::vector<float> values(checked_size(tensor.num_elements, "the size of a tensor"));
  math::decode(tensor.dtype, stored, values);
  return values;
}

std::vector<float> read_bias(const Checkpoint& checkpoint, const std::string& name, std::size_t count) {
  if (checkpoint.find_tensor(name) == nullptr) return std::vector<float>(count, 0.0F);
  std::vector<float> bias = read_tensor(checkpoint, name, 1);
  if (bias.size() != count)
    throw Error(ErrorCode::corrupt, fmt::format("tensor '{}' has {} numbers for {} outputs", printable(name), bias.size(), count),
                {.file = checkpoint.path().string(), .tensor = printable(name)}, "");
  return bias;
}

}  // namespace

void ImageNetwork::add_linear(const Checkpoint& checkpoint, const std::string& name) {
  Step step;
  step.kind = Step::Kind::linear;
  step.name = name;
  step.weight = read_tensor(checkpoint, name + ".weight", 2);
  const Shape& shape = checkpoint.tensor(name + ".weight").shape;
  step.channels_in = static_cast<std::size_t>(shape[1]);
  step.channels_out = static_cast<std::size_t>(shape[0]);
  if (step.channels_in != present_size())
    throw Error(ErrorCode::corrupt,
                fmt::format("'{}' takes {} numbers, but what stands before it gives {}", printable(name), step.channels_in, present_size()),
                {.file = checkpoint.path().string(), .tensor = printable(name + ".weight")}, "compare config.json with the weights");
  step.bias = read_bias(checkpoint, name + ".bias", step.channels_out);
  channels_ = step.channels_out;
  height_ = width_ = 1;
  steps_.push_back(std::move(step));
}

void ImageNetwork::add_conv(const Checkpoint& checkpoint, const std::string& name, std::size_t padding, std::size_t stride) {
  Step step;
  step.kind = Step::Kind::conv;
  step.name = name;
  step.weight = read_tensor(checkpoint, name + ".weight", 4);
  const Shape& shape = checkpoint.tensor(name + ".weight").shape;
  step.channels_out = static_cast<std::size_t>(shape[0]);
  step.channels_in = static_cast<std::size_t>(shape[1]);
  step.kernel_height = static_cast<std::size_t>(shape[2]);
  step.kernel_width = static_cast<std::size_t>(shape[3]);
  step.padding = padding;
  step.stride = stride;
  step.height_in = height_;
  step.width_in = width_;
  if (step.channels_in != channels_)
    throw Error(ErrorCode::corrupt,
                fmt::format("'{}' takes {} channels, but what stands before it gives {}", printable(name), step.channels_in, channels_),
                {.file = checkpoint.path().string(), .tensor = printable(name + ".weight")}, "compare config.json with the weights");
  if (step.kernel_height == 0 || step.kernel_width == 0 || height_ + 2 * padding < step.kernel_height || width_ + 2 * padding < step.kernel_width)
    throw Error(ErrorCode::corrupt, fmt::format("the kernel of '{}' does not fit into an image of {} x {}", printable(name), height_, width_),
                {.file = checkpoint.path().string(), .tensor = printable(name + ".weight")}, "");
  step.height_out = (height_ + 2 * padding - step.kernel_height) / stride + 1;
  step.width_out = (width_ + 2 * padding - step.kernel_width) / stride + 1;
  step.bias = read_bias(checkpoint, name + ".bias", step.channels_out);
  channels_ = step.channels_out;
  height_ = step.height_out;
  width_ = step.width_out;
  steps_.push_back(std::move(step));
}

void ImageNetwork::add_activation(const std::string& name) {
  Step step;
  step.kind = Step::Kind::activation;
  step.name = name;
  if (name == "relu")
    step.activation = math::Activation::relu;
  else if (name == "gelu")
    step.activation = math::Activation::gelu;
  else if (name == "silu")
    step.activation = math::Activation::silu;
  else if (name == "tanh")
    step.activation = math::Activation::tanh;
  else if (name == "sigmoid")
    step.activation = math::Activation::sigmoid;
  else
    throw Error(ErrorCode::unsupported, fmt::format("config.json: the activation '{}' is unknown", printable(name)), {.key = "activation"},
                "known are relu, gelu, silu, tanh and sigmoid");
  steps_.push_back(std::move(step));
}

void ImageNetwork::add_pool(Step::Kind kind, std::size_t size) {
  Step step;
  step.kind = kind;
  step.name = kind == Step::Kind::max_pool ? "max_pool2d" : "avg_pool2d";
  step.size = size;
  step.channels_in = channels_;
  step.height_in = height_;
  step.width_in = width_;
  step.height_out = height_ / size;
  step.width_out = width_ / size;
  if (step.height_out == 0 || step.width_out == 0)
    refuse(fmt::format("{} {} does not fit into an image of {} x {}", step.name, size, height_, width_), step.name);
  height_ = step.height_out;
  width_ = step.width_out;
  steps_.push_back(std::move(step));
}

ImageNetwork::ImageNetwork(const Checkpoint& checkpoint, const Json& config) {
  const Json* type = config.find("model_type");
  const bool is_mlp = type != nullptr && type->string() != nullptr && *type->string() == "mlp";
  if (is_mlp) {
    const Json* sizes = config.find("layer_sizes");
    if (sizes == nullptr || sizes->array() == nullptr || sizes->array()->size() < 2)
      refuse("layer_sizes is no list of two sizes or more", "layer_sizes");
    channels_ = side((*sizes->array())[0], "layer_sizes", 1);
    num_inputs_ = channels_;
    const std::size_t num_layers = sizes->array()->size() - 1;
    const Json* activation = config.find("activation");
    for (std::size_t i = 0; i < num_layers; ++i) {
      add_linear(checkpoint, fmt::format("layers.{}", i));
      if (channels_ != side((*sizes->array())[i + 1], "layer_sizes", 1))
        refuse(fmt::format("layer_sizes[{}] is not the {} that the tensor of layer {} gives", i + 1, channels_, i), "layer_sizes");
      if (i + 1 < num_layers) add_activation(activation != nullptr && activation->string() != nullptr ? *activation->string() : "relu");
    }
  } else {
    const Json* input = config.find("input_shape");
    if (input == nullptr || input->array() == nullptr || input->array()->size() != 3)
      refuse("input_shape is no list of channels, height, width", "input_shape");
    channels_ = side((*input->array())[0], "input_shape", 1);
    height_ = side((*input->array())[1], "input_shape", 1);
    width_ = side((*input->array())[2], "input_shape", 1);
    num_inputs_ = present_size();
    const Json* steps = config.find("layers");
    if (steps == nullptr || steps->array() == nullptr || steps->array()->empty()) refuse("layers is no list of steps", "layers");
    for (const Json& step : *steps->array()) {
      const auto text = [&](const char* key) { return step.find(key) != nullptr ? step.find(key)->string() : nullptr; };
      if (const std::string* conv = text("conv2d")) {
        const Json* padding = step.find("padding");
        const Json* stride = step.find("stride");
        add_conv(checkpoint, *conv, padding == nullptr ? 0 : side(*padding, "padding", 0), stride == nullptr ? 1 : side(*stride, "stride", 1));
      } else if (const std::string* linear = text("linear")) {
        add_linear(checkpoint, *linear);
      } else if (const std::string* activation = text("activation")) {
        add_activation(*activation);
      } else if (const Json* pool = step.find("max_pool2d")) {
        add_pool(Step::Kind::max_pool, side(*pool, "max_pool2d", 1));
      } else if (const Json* mean = step.find("avg_pool2d")) {
        add_pool(Step::Kind::mean_pool, side(*mean, "avg_pool2d", 1));
      } else if (step.find("flatten") != nullptr) {
        channels_ = present_size();
        height_ = width_ = 1;
      } else {
        const std::string name = step.object() != nullptr && !step.object()->empty() ? step.object()->front().first : "nothing";
        throw Error(ErrorCode::unsupported, fmt::format("config.json: the step '{}' is unknown", printable(name)), {.key = "layers"},
                    "known are conv2d, linear, activation, max_pool2d, avg_pool2d and flatten");
      }
    }
  }
  num_classes_ = present_size();
}

std::vector<float> ImageNetwork::run(std::span<const float> images, ThreadTeam& team) const {
  WEFT_ASSERT(num_inputs_ > 0 && images.size() % num_inputs_ == 0);
  const std::size_t count = images.size() / num_inputs_;
  std::vector<float> out(count * num_classes_);
  team.for_each((count + kImagesAUnit - 1) / kImagesAUnit, [&](std::size_t unit, int) {
    const std::size_t first = unit * kImagesAUnit, n = std::min(kImagesAUnit, count - first);
    std::vector<float> x(images.begin() + static_cast<std::ptrdiff_t>(first * num_inputs_),
                         images.begin() + static_cast<std::ptrdiff_t>((first + n) * num_inputs_));
    for (const Step& step : steps_) {
      std::vector<float> y;
      switch (step.kind) {
        case Step::Kind::linear:
          y.resize(n * step.channels_out);
          math::gemm_nt(n, step.channels_out, step.channels_in, x.data(), step.channels_in, step.weight.data(), step.channels_in, y.data(),
                        step.channels_out);
          for (std::size_t i = 0; i < n; ++i) math::add_to(step.bias.data(), y.data() + i * step.channels_out, step.channels_out);
          break;
        case Step::Kind::conv: {
          const std::size_t pixels = step.height_out * step.width_out;
          const std::size_t patch = step.channels_in * step.kernel_height * step.kernel_width;
          y.resize(n * step.channels_out * pixels);
          std::vector<float> patches(pixels * patch);
          for (std::size_t i = 0; i < n; ++i) {
            const float* image = x.data() + i * step.channels_in * step.height_in * step.width_in;
            for (std::size_t p = 0; p < pixels; ++p)
              for (std::size_t c = 0; c < step.channels_in; ++c)
                for (std::size_t ky = 0; ky < step.kernel_height; ++ky)
                  for (std::size_t kx = 0; kx < step.kernel_width; ++kx) {
                    const std::size_t row = p / step.width_out * step.stride + ky, column = p % step.width_out * step.stride + kx;
                    const bool inside =
                        row >= step.padding && column >= step.padding && row < step.height_in + step.padding && column < step.width_in + step.padding;
                    patches[p * patch + (c * step.kernel_height + ky) * step.kernel_width + kx] =
                        inside ? image[(c * step.height_in + row - step.padding) * step.width_in + column - step.padding] : 0.0F;
                  }
            float* to = y.data() + i * step.channels_out * pixels;
            math::gemm_nt(step.channels_out, pixels, patch, step.weight.data(), patch, patches.data(), patch, to, pixels);
            for (std::size_t c = 0; c < step.channels_out; ++c)
              for (std::size_t p = 0; p < pixels; ++p) to[c * pixels + p] += step.bias[c];
          }
          break;
        }
        case Step::Kind::activation:
          y = std::move(x);
          math::activate(step.activation, y.data(), y.size());
          break;
        case Step::Kind::max_pool:
        case Step::Kind::mean_pool: {
          const std::size_t planes = n * step.channels_in;
          y.resize(planes * step.height_out * step.width_out);
          for (std::size_t p = 0; p < planes; ++p)
            for (std::size_t r = 0; r < step.height_out; ++r)
              for (std::size_t c = 0; c < step.width_out; ++c) {
                float largest = -INFINITY, sum = 0;
                for (std::size_t i = 0; i < step.size; ++i)
                  for (std::size_t j = 0; j < step.size; ++j) {
                    const float value = x[(p * step.height_in + r * step.size + i) * step.width_in + c * step.size + j];
                    largest = std::max(largest, value);
                    sum += value;
                  }
                y[(p * step.height_out + r) * step.width_out + c] =
                    step.kind == Step::Kind::max_pool ? largest : sum / static_cast<float>(step.size * step.size);
              }
          break;
        }
        case Step::Kind::flatten:
          y = std::move(x);
          break;
      }
      if (math::count_non_finite(y) > 0)
        throw Error(ErrorCode::corrupt, fmt::format("activations are NaN or infinite after the step '{}'", printable(step.name)),
                    {.tensor = printable(step.name)}, "'weft verify' names tensors with NaN or infinities");
      x = std::move(y);
    }
    std::copy(x.begin(), x.end(), out.begin() + static_cast<std::ptrdiff_t>(first * num_classes_));
  });
  return out;
}

}  // namespace weft::model
