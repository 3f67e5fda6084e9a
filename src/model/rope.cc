#include "model/rope.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>

#include "base/text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 40;

[[noreturn]] void refuse(const std::string& what, std::string key) {
  throw Error(ErrorCode::corrupt, "config.json: " + what, {.key = std::move(key)},
              "compare config.json with the one that the model was published with");
}

/// The dictionary of a config.
struct Reader {
  const Json& object;
  std::string where;

  [[nodiscard]] const Json* find(std::string_view key) const {
    const Json* value = object.find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  [[nodiscard]] std::string path(std::string_view key) const { return where + "." + std::string(key); }

  [[nodiscard]] std::optional<double> number(std::string_view key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    const std::optional<double> number = value->number();
    if (!number || !std::isfinite(*number)) refuse(fmt::format("{} is no number", path(key)), path(key));
    return number;
  }
  [[nodiscard]] double positive(std::string_view key, std::optional<double> otherwise) const {
    const std::optional<double> given = number(key);
    if (!given && !otherwise) refuse(fmt::format("{} is missing", path(key)), path(key));
    const double value = given ? *given : *otherwise;
    if (!(value > 0)) refuse(fmt::format("{} is {}, not above 0", path(key), value), path(key));
    return value;
  }
  [[nodiscard]] std::int64_t length(std::string_view key, std::int64_t otherwise) const {
    const std::optional<double> given = number(key);
    const double value = given ? *given : static_cast<double>(otherwise);
    if (!(value >= 1) || value > static_cast<double>(kMaxLength) || value != std::floor(value))
      refuse(fmt::format("{} is {}, not a whole number of tokens above 0", path(key), value), path(key));
    return static_cast<std::int64_t>(value);
  }
  [[nodiscard]] std::vector<float> factors(std::string_view key, std::size_t count) const {
    const Json* list = find(key);
    if (list == nullptr || list->array() == nullptr) refuse(fmt::format("{} is missing or no list", path(key)), path(key));
    std::vector<float> values;
    for (const Json& item : *list->array()) {
      const std::optional<double> value = item.number();
      if (!value || !std::isfinite(*value) || !(*value > 0))
        refuse(fmt::format("{} holds something that is no number above 0", path(key)), path(key));
      values.push_back(static_cast<float>(*value));
    }
    if (values.size() != count)
      refuse(fmt::format("{} has {} entries, but a head turns {} pairs of dimensions", path(key), values.size(), count), path(key));
    return values;
  }
};

std::optional<RopeType> type_of(std::string_view name) {
  if (name == "default") return RopeType::standard;
  if (name == "linear") return RopeType::linear;
  if (name == "dynamic") return RopeType::dynamic;
  if (name == "yarn") return RopeType::yarn;
  if (name == "llama3") return RopeType::llama3;
  if (name == "longrope" || name == "su") return RopeType::longrope;  // "su": its name in the first Phi-3
  return std::nullopt;
}

double yarn_scale(double factor, double by) { return factor <= 1 ? 1.0 : 0.1 * by * std::log(factor) + 1.0; }

}  // namespace

std::string_view to_string(RopeType type) noexcept {
  switch (type) {
    case RopeType::standard:
      return "default";
    case RopeType::linear:
      return "linear";
    case RopeType::dynamic:
      return "dynamic";
    case RopeType::yarn:
      return "yarn";
    case RopeType::llama3:
      return "llama3";
    case RopeType::longrope:
      return "longrope";
  }
  return "default";
}

RopeConfig read_rope(const Json* scaling, std::string_view where, double theta, int dims, std::int64_t context, std::int64_t top_original,
                     std::vector<std::string>& warnings) {
  RopeConfig rope;
  rope.theta = theta;
  rope.dims = dims;
  rope.context = context;
  rope.original = context;
  if (!std::isfinite(theta) || !(theta > 0)) refuse(fmt::format("rope_theta is {}, not a number above 0", theta), "rope_theta");
  if (dims < 2 || dims % 2 != 0) refuse(fmt::format("{} dimensions of a head turn, which is not an even number above 0", dims), "head_dim");
  if (scaling == nullptr || scaling->is_null()) return rope;
  if (!scaling->is_object()) refuse(fmt::format("{} is neither null nor an object", where), std::string(where));

  const Reader reader{*scaling, std::string(where)};
  const Json* name = reader.find("rope_type");
  if (name == nullptr) name = reader.find("type");
  if (name == nullptr) refuse(fmt::format("{} names no rope_type", where), reader.path("rope_type"));
  if (name->string() == nullptr) refuse(fmt::format("{} is no text", reader.path("rope_type")), reader.path("rope_type"));
  const std::optional<RopeType> type = type_of(*name->string());
  if (!type)
    throw Error(ErrorCode::unsupported, fmt::format("config.json: the rope type '{}' is unknown", printable(*name->string())),
                {.key = reader.path("rope_type")}, "known are default, linear, dynamic, yarn, llama3 and longrope");
  rope.type = *type;
  const bool is_new_form = where != "rope_scaling";
  switch (rope.type) {
    case RopeType::standard:
      break;
    case RopeType::linear:
      rope.factor = reader.positive("factor", std::nullopt);
      break;
    case RopeType::dynamic:
      rope.factor = reader.positive("factor", std::nullopt);
      if (dims <= 2) refuse("dynamic rotary positions need more than two dimensions of a head", "head_dim");
      break;
    case RopeType::llama3:
      rope.factor = reader.positive("factor", std::nullopt);
      rope.low_freq_factor = reader.positive("low_freq_factor", std::nullopt);
      rope.high_freq_factor = reader.positive("high_freq_factor", std::nullopt);
      rope.original = reader.length("original_max_position_embeddings", context);
      if (rope.low_freq_factor == rope.high_freq_factor)
        refuse(fmt::format("{} and high_freq_factor are both {}", reader.path("low_freq_factor"), rope.low_freq_factor),
               reader.path("low_freq_factor"));
      break;
    case RopeType::yarn: {
      rope.original = reader.length("original_max_position_embeddings", context);
      const double ratio = static_cast<double>(context) / static_cast<double>(rope.original);
      rope.factor = reader.positive("factor", ratio);
      if (reader.number("factor") && reader.find("original_max_position_embeddings") != nullptr && std::abs(ratio / rope.factor - 1) > 0.01)
        warnings.push_back(fmt::format("config.json: {} is {}, but max_position_embeddings is {} times the original length; the factor counts",
                                       reader.path("factor"), rope.factor, ratio));
      rope.beta_fast = reader.positive("beta_fast", 32);
      rope.beta_slow = reader.positive("beta_slow", 1);
      if (const Json* truncate = reader.find("truncate")) rope.truncate = truncate->boolean().value_or(true);
      if (std::log(theta) == 0) refuse("rope_theta is 1, by whose logarithm yarn divides", "rope_theta");
      const std::optional<double> scale = reader.number("mscale"), scale_all = reader.number("mscale_all_dim");
      if (const std::optional<double> given = reader.number("attention_factor"))
        rope.attention_factor = *given;
      else if (scale && scale_all && *scale != 0 && *scale_all != 0)
        rope.attention_factor = yarn_scale(rope.factor, *scale) / yarn_scale(rope.factor, *scale_all);
      else
        rope.attention_factor = yarn_scale(rope.factor, 1);
      break;
    }
    case RopeType::longrope: {
      rope.short_factor = reader.factors("short_factor", static_cast<std::size_t>(dims) / 2);
      rope.long_factor = reader.factors("long_factor", static_cast<std::size_t>(dims) / 2);
      if (top_original > 0)
        rope.original = top_original;
      else if (is_new_form)
        rope.original = reader.length("original_max_position_embeddings", context);
      if (top_original > 0 || (is_new_form && reader.find("original_max_position_embeddings") != nullptr))
        rope.factor = static_cast<double>(context) / static_cast<double>(rope.original);
      else
        rope.factor = reader.positive("factor", std::nullopt);
      if (const std::optional<double> given = reader.number("attention_factor"))
        rope.attention_factor = *given;
      else if (rope.factor > 1) {
        if (rope.original <= 1)
          refuse("original_max_position_embeddings is 1, by whose logarithm longrope divides", "original_max_position_embeddings");
        rope.attention_factor = std::sqrt(1 + std::log(rope.factor) / std::log(static_cast<double>(rope.original)));
      }
      break;
    }
  }
  if (!std::isfinite(rope.attention_factor) || rope.attention_factor <= 0)
    refuse(fmt::format("{} comes to {}", reader.path("attention_factor"), rope.attention_factor), reader.path("attention_factor"));
  if (rope.factor < 1)
    warnings.push_back(fmt::format("config.json: {} is {}, which shortens the context instead of stretching it", reader.path("factor"), rope.factor));
  return rope;
}

std::vector<float> inverse_frequencies(const RopeConfig& rope, std::int64_t length) {
  const std::size_t half = static_cast<std::size_t>(rope.dims) / 2;
  const double dims = rope.dims;
  double theta = rope.theta;
  if (rope.type == RopeType::dynamic && length > rope.context) {
    const double stretched = rope.factor * static_cast<double>(length) / static_cast<double>(rope.context) - (rope.factor - 1);
    theta *= std::pow(stretched, dims / (dims - 2));
  }
  // Powers and quotients are rounded to float32 one by one, as the models were trained with.
  std::vector<float> periods(half);
  for (std::size_t j = 0; j < half; ++j)
    periods[j] = static_cast<float>(std::pow(theta, static_cast<double>(static_cast<float>(2 * j) / static_cast<float>(rope.dims))));

  std::vector<float> inverse(half);
  for (std::size_t j = 0; j < half; ++j) inverse[j] = 1.0F / periods[j];
  switch (rope.type) {
    case RopeType::standard:
    case RopeType::dynamic:
      break;
    case RopeType::linear:
      for (float& value : inverse) value /= static_cast<float>(rope.factor);
      break;
    case RopeType::llama3: {
      const double low = static_cast<double>(rope.original) / rope.low_freq_factor;
      const double high = static_cast<double>(rope.original) / rope.high_freq_factor;
      for (float& value : inverse) {
        const double frequency = static_cast<double>(value);
        const double wavelength = 2 * std::numbers::pi / frequency;
        if (wavelength < high) continue;
        if (wavelength > low) {
          value = static_cast<float>(frequency / rope.factor);
          continue;
        }
        const double smooth =
            (static_cast<double>(rope.original) / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
        value = static_cast<float>((1 - smooth) * frequency / rope.factor + smooth * frequency);
      }
      break;
    }
    case RopeType::yarn: {
      const auto correction = [&](double rotations) {
        return dims * std::log(static_cast<double>(rope.original) / (rotations * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
      };
      double low = correction(rope.beta_fast), high = correction(rope.beta_slow);
      if (rope.truncate) {
        low = std::floor(low);
        high = std::ceil(high);
      }
      low = std::max(low, 0.0);
      high = std::min(high, dims - 1);
      if (low == high) high += 0.001;
      for (std::size_t j = 0; j < half; ++j) {
        const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
        const double stretched = 1.0 / (rope.factor * static_cast<double>(periods[j]));
        inverse[j] = static_cast<float>(stretched * ramp + static_cast<double>(inverse[j]) * (1 - ramp));
      }
      break;
    }
    case RopeType::longrope: {
      const std::vector<float>& factors = length > rope.original ? rope.long_factor : rope.short_factor;
      for (std::size_t j = 0; j < half; ++j) inverse[j] = 1.0F / (factors[j] * periods[j]);
      break;
    }
  }
  return inverse;
}

}  // namespace weft::model
