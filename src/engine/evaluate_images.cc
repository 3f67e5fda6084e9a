#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>

#include "base/philox.h"
#include "base/text.h"
#include "base/thread_team.h"
#include "engine/idx_file.h"
#include "engine/running_model.h"
#include "math/neural.h"
#include "model/image_network.h"
#include "weft/error.h"
#include "weft/evaluate.h"

namespace weft {
namespace {

constexpr std::size_t kImagesAtOnce = 256;

/// What is done to the pixels of one image, [height, width] in [0, 1].
using Change = void (*)(std::vector<float>& x, std::size_t height, std::size_t width, const RandomStream& random);

void turn(std::vector<float>& x, std::size_t height, std::size_t width, const RandomStream&) {
  // A quarter turn counter-clockwise: what was the last column becomes the first row.
  std::vector<float> out(x.size());
  for (std::size_t r = 0; r < width; ++r)
    for (std::size_t c = 0; c < height; ++c) out[r * height + c] = x[c * width + (width - 1 - r)];
  x = std::move(out);
}
void invert(std::vector<float>& x, std::size_t, std::size_t, const RandomStream&) {
  for (float& value : x) value = 1 - value;
}
void mirror(std::vector<float>& x, std::size_t height, std::size_t width, const RandomStream&) {
  for (std::size_t r = 0; r < height / 2; ++r) std::swap_ranges(&x[r * width], &x[r * width] + width, &x[(height - 1 - r) * width]);
}
void add_noise(std::vector<float>& x, std::size_t, std::size_t, const RandomStream& random) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    // Box and Muller; 1 - u is above 0.
    const double u = 1 - static_cast<double>(random.uniform(2 * i)), v = static_cast<double>(random.uniform(2 * i + 1));
    const double normal = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
    x[i] = static_cast<float>(std::clamp(static_cast<double>(x[i]) + 0.35 * normal, 0.0, 1.0));
  }
}
void blur(std::vector<float>& x, std::size_t height, std::size_t width, const RandomStream&) {
  std::vector<float> out(x.size());
  for (std::size_t r = 0; r < height; ++r)
    for (std::size_t c = 0; c < width; ++c) {
      double sum = 0;
      int count = 0;
      for (std::size_t i = r < 2 ? 0 : r - 2; i < std::min(height, r + 3); ++i)
        for (std::size_t j = c < 2 ? 0 : c - 2; j < std::min(width, c + 3); ++j) {
          sum += static_cast<double>(x[i * width + j]);
          ++count;
        }
      out[r * width + c] = static_cast<float>(sum / count);
    }
  x = std::move(out);
}
void lower_contrast(std::vector<float>& x, std::size_t, std::size_t, const RandomStream&) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(value);
  const double mean = sum / static_cast<double>(x.size());
  for (float& value : x) value = static_cast<float>(0.25 * (static_cast<double>(value) - mean) + mean);
}
void pixelate(std::vector<float>& x, std::size_t height, std::size_t width, const RandomStream&) {
  for (std::size_t r = 0; r < height; r += 4)
    for (std::size_t c = 0; c < width; c += 4) {
      double sum = 0;
      int count = 0;
      for (std::size_t i = r; i < std::min(height, r + 4); ++i)
        for (std::size_t j = c; j < std::min(width, c + 4); ++j, ++count) sum += static_cast<double>(x[i * width + j]);
      for (std::size_t i = r; i < std::min(height, r + 4); ++i)
        for (std::size_t j = c; j < std::min(width, c + 4); ++j) x[i * width + j] = static_cast<float>(sum / count);
    }
}

struct NamedChange {
  const char* name;
  Change change;
};
constexpr NamedChange kChanges[] = {{"rot90", turn}, {"invert", invert},           {"mirror", mirror},    {"noise", add_noise},
                                    {"blur", blur},  {"contrast", lower_contrast}, {"pixelate", pixelate}};

Change find_change(const std::string& name) {
  if (name.empty() || name == "same") return nullptr;
  std::vector<std::string> names = {"same"};
  for (const NamedChange& known : kChanges) {
    if (name == known.name) return known.change;
    names.emplace_back(known.name);
  }
  std::string list;
  for (const std::string& known : names) list += (list.empty() ? "" : ", ") + known;
  throw Error(ErrorCode::invalid_argument, fmt::format("there is no change of images called '{}'", printable(name)), {.key = "--transform"},
              "known are " + list);
}

}  // namespace

ImageReport evaluate_images(std::string_view model_name, const std::filesystem::path& images, const std::filesystem::path& labels,
                            const ImageOptions& options) {
  const Change change = find_change(options.transform);
  const engine::ModelFiles files = engine::open_model_files(model_name);
  const Json* type = files.config.find("model_type");
  if (type == nullptr || type->string() == nullptr || (*type->string() != "mlp" && *type->string() != "cnn"))
    throw Error(
        ErrorCode::unsupported,
        fmt::format("a model of the type {} reads no images", type != nullptr && type->string() != nullptr ? printable(*type->string()) : "unknown"),
        {.file = files.folder.string(), .key = "model_type"}, "images are for models of the types mlp and cnn");
  const model::ImageNetwork network(*files.checkpoint, files.config);
  const engine::IdxData pixels = engine::read_idx_file(images), classes = engine::read_idx_file(labels);
  if (pixels.shape.size() != 3)
    throw Error(ErrorCode::corrupt, fmt::format("the file has {} axes, not the 3 of images", pixels.shape.size()), {.file = images.string()},
                "give images first, then labels");
  if (classes.shape.size() != 1)
    throw Error(ErrorCode::corrupt, fmt::format("the file has {} axes, not the 1 of labels", classes.shape.size()), {.file = labels.string()},
                "give images first, then labels");
  const std::size_t count = static_cast<std::size_t>(pixels.shape[0]), height = static_cast<std::size_t>(pixels.shape[1]),
                    width = static_cast<std::size_t>(pixels.shape[2]);
  if (classes.shape[0] != pixels.shape[0])
    throw Error(ErrorCode::invalid_argument, fmt::format("there are {} labels for {} images", classes.shape[0], pixels.shape[0]),
                {.file = labels.string()}, "give the labels that belong to the images");
  if (count == 0) throw Error(ErrorCode::invalid_argument, "the file holds no image", {.file = images.string()}, "");
  if (height * width != network.num_inputs())
    throw Error(ErrorCode::invalid_argument,
                fmt::format("images of {} x {} have {} pixels, but the network takes {}", height, width, height * width, network.num_inputs()),
                {.file = images.string()}, "");

  ThreadTeam team(options.threads);
  ImageReport report;
  report.num_images = count;
  const auto started = std::chrono::steady_clock::now();
  double loss = 0;
  std::uint64_t right = 0;
  for (std::size_t first = 0; first < count; first += kImagesAtOnce) {
    if (options.cancel != nullptr && options.cancel->load()) throw Error(ErrorCode::interrupted, "interrupted", {}, "the same command starts again");
    const std::size_t n = std::min(kImagesAtOnce, count - first);
    std::vector<float> x(n * height * width);
    std::vector<float> image(height * width);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t p = 0; p < image.size(); ++p) image[p] = static_cast<float>(pixels.values[(first + i) * image.size() + p]) / 255.0F;
      if (change != nullptr) change(image, height, width, RandomStream::of(options.seed, "image noise", 0, static_cast<std::uint32_t>(first + i)));
      std::copy(image.begin(), image.end(), x.begin() + static_cast<std::ptrdiff_t>(i * image.size()));
    }
    const std::vector<float> logits = network.run(x, team);
    for (std::size_t i = 0; i < n; ++i) {
      const float* of_image = logits.data() + i * network.num_classes();
      const std::size_t label = classes.values[first + i];
      if (label >= network.num_classes())
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("image {} has label {}, but the network knows {} classes", first + i, label, network.num_classes()),
                    {.file = labels.string()}, "");
      right += static_cast<std::size_t>(std::max_element(of_image, of_image + network.num_classes()) - of_image) == label ? 1 : 0;
      loss += math::log_sum_exp(of_image, network.num_classes()) - static_cast<double>(of_image[label]);
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  report.accuracy = static_cast<double>(right) / static_cast<double>(count);
  report.loss = loss / static_cast<double>(count);
  report.images_per_second = seconds > 0 ? static_cast<double>(count) / seconds : 0;
  report.warnings.assign(files.checkpoint->warnings().begin(), files.checkpoint->warnings().end());
  if (options.on_warning)
    for (const std::string& warning : report.warnings) options.on_warning(warning);
  return report;
}

}  // namespace weft
