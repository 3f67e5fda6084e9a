#include "model/gguf_mix.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include "base/text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

constexpr std::array kFileTypes = {
    GgufFileType{"F32", 0, "F32", 32},          GgufFileType{"F16", 1, "F16", 16},
    GgufFileType{"BF16", 32, "BF16", 16},       GgufFileType{"Q8_0", 7, "Q8_0", 8.5},
    GgufFileType{"Q6_K", 18, "Q6_K", 6.56},     GgufFileType{"Q5_K_M", 17, "Q5_K", 5.67},
    GgufFileType{"Q5_K_S", 16, "Q5_K", 5.52},   GgufFileType{"Q5_1", 9, "Q5_1", 6.0},
    GgufFileType{"Q5_0", 8, "Q5_0", 5.5},       GgufFileType{"Q4_K_M", 15, "Q4_K", 4.83},
    GgufFileType{"Q4_K_S", 14, "Q4_K", 4.57},   GgufFileType{"Q4_1", 3, "Q4_1", 5.0},
    GgufFileType{"Q4_0", 2, "Q4_0", 4.5},       GgufFileType{"IQ4_NL", 25, "IQ4_NL", 4.5},
    GgufFileType{"IQ4_XS", 30, "IQ4_XS", 4.25}, GgufFileType{"MXFP4_MOE", 38, "MXFP4", 4.25},
    GgufFileType{"NVFP4", 39, "NVFP4", 4.5},    GgufFileType{"Q3_K_L", 13, "Q3_K", 4.22},
    GgufFileType{"Q3_K_M", 12, "Q3_K", 3.86},   GgufFileType{"Q3_K_S", 11, "Q3_K", 3.44},
    GgufFileType{"IQ3_M", 27, "IQ3_S", 3.66},   GgufFileType{"IQ3_S", 26, "IQ3_S", 3.44},
    GgufFileType{"IQ3_XS", 22, "IQ3_S", 3.3},   GgufFileType{"IQ3_XXS", 23, "IQ3_XXS", 3.06},
    GgufFileType{"Q2_K", 10, "Q2_K", 2.96},     GgufFileType{"Q2_K_S", 21, "Q2_K", 2.7},
    GgufFileType{"IQ2_M", 29, "IQ2_S", 2.7},    GgufFileType{"IQ2_S", 28, "IQ2_XS", 2.5},
    GgufFileType{"IQ2_XS", 20, "IQ2_XS", 2.31}, GgufFileType{"IQ2_XXS", 19, "IQ2_XXS", 2.06},
    GgufFileType{"Q2_0", 41, "Q2_0", 2.25},     GgufFileType{"TQ2_0", 37, "TQ2_0", 2.06},
    GgufFileType{"TQ1_0", 36, "TQ1_0", 1.69},   GgufFileType{"IQ1_M", 31, "IQ1_M", 1.75},
    GgufFileType{"IQ1_S", 24, "IQ1_S", 1.56},   GgufFileType{"Q1_0", 40, "Q1_0", 1.125},
};

std::string upper(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
  return result;
}

/// One of the types by its exact name.
GgufStoredType type_named(std::string_view name) {
  if (name == "F32") return {nullptr, DType::f32};
  if (name == "F16") return {nullptr, DType::f16};
  if (name == "BF16") return {nullptr, DType::bf16};
  return {codec::find_block_codec(name), std::nullopt};
}

template <typename... Names>
bool any_of(std::string_view name, Names... names) {
  return ((name == names) || ...);
}

/// The first and the last eighth of the layers and every third between.
bool has_more(std::uint64_t i, std::uint64_t n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

/// The choice for one weight after the other, counting those of each kind.
class Mix {
 public:
  Mix(const GgufFileType& file_type, const GgufMixModel& model, std::span<const GgufMixWeight> weights)
      : ft_(file_type.name), base_(file_type.base), model_(model) {
    for (const GgufMixWeight& weight : weights) num_values_ += is_value(weight.name) ? 1 : 0;
  }

  std::string_view choose(const GgufMixWeight& weight) {
    const std::string& name = weight.name;
    if (base_ == "F32" || base_ == "F16" || base_ == "BF16") return base_;
    const bool is_embedding = name == "token_embd.weight";
    if (name == "output.weight" || (is_embedding && !model_.has_output)) return output(weight);
    if (ft_ == "MXFP4_MOE") return weight.shape.size() == 3 && weight.shape[0] > 1 ? "MXFP4" : "Q8_0";
    if (is_embedding) return embedding();
    if (is_value(name)) return value();
    if (ends(name, "attn_k")) return key();
    if (ends(name, "attn_q")) return ft_ == "IQ3_XS" ? "IQ3_XXS" : ft_ == "IQ3_XXS" ? "IQ2_S" : base_;
    if (ends(name, "attn_output")) return attention_output();
    if (has_part(name, "ffn_down")) return down(place(name, num_down_));
    if (has_part(name, "ffn_gate")) return gate_or_up(place(name, num_gate_));
    if (has_part(name, "ffn_up")) return gate_or_up(place(name, num_up_));
    return base_;
  }

 private:
  static bool ends(std::string_view name, std::string_view part) { return name.ends_with(fmt::format("{}.weight", part)); }
  static bool has_part(std::string_view name, std::string_view part) { return name.find(part) != std::string_view::npos; }
  static bool is_value(std::string_view name) { return ends(name, "attn_v") || ends(name, "attn_qkv") || ends(name, "attn_kv_b"); }

  [[nodiscard]] bool low() const { return any_of(ft_, "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"); }
  [[nodiscard]] bool shares_values() const { return model_.num_heads / std::max<std::uint64_t>(1, model_.num_kv_heads) >= 4; }
  [[nodiscard]] bool eight_experts() const { return model_.num_experts == 8; }

  /// Which of its kind this is: with experts the layer, otherwise they are counted.
  std::uint64_t place(std::string_view name, std::uint64_t& counter) const {
    const std::uint64_t counted = counter++;
    const int layer = gguf_layer_of(name);
    return model_.num_experts > 1 && layer >= 0 ? static_cast<std::uint64_t>(layer) : counted;
  }

  [[nodiscard]] std::string_view output(const GgufMixWeight& weight) const {
    const codec::BlockCodec* codec = codec::find_block_codec(base_);
    const auto row = weight.shape.empty() ? std::uint64_t{1} : static_cast<std::uint64_t>(weight.shape.back());
    if (ft_ == "MXFP4_MOE" || (codec != nullptr && row % codec->block_elements != 0)) return "Q8_0";
    if (low() || ft_ == "IQ3_XXS") return "Q5_K";
    return base_ == "Q8_0" ? "Q8_0" : "Q6_K";
  }
  [[nodiscard]] std::string_view embedding() const {
    if (any_of(ft_, "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS")) return "Q2_K";
    if (any_of(ft_, "IQ2_S", "IQ2_M", "IQ3_XXS")) return "IQ3_S";
    if (any_of(ft_, "TQ1_0", "TQ2_0", "Q2_0")) return "Q4_K";
    return base_;
  }
  std::string_view value() {
    const std::uint64_t i = num_value_++;
    if (low()) {
      if (shares_values() || model_.num_experts >= 4) return "Q4_K";
      return any_of(ft_, "IQ2_S", "IQ2_M") ? "IQ3_S" : "Q2_K";
    }
    std::string_view type = base_;
    if (ft_ == "Q2_K")
      type = shares_values() ? "Q4_K" : "Q3_K";
    else if (any_of(ft_, "Q2_K_S", "IQ3_XS", "IQ3_S"))
      type = shares_values() ? "Q4_K" : base_;
    else if (ft_ == "IQ3_XXS")
      type = shares_values() ? "Q4_K" : model_.has_imatrix ? "IQ3_XXS" : "IQ3_S";
    else if (ft_ == "IQ3_M")
      type = "Q4_K";
    else if (ft_ == "Q3_K_M")
      type = i < 2 ? "Q5_K" : "Q4_K";
    else if (ft_ == "Q3_K_L")
      type = "Q5_K";
    else if (any_of(ft_, "IQ4_NL", "IQ4_XS"))
      type = shares_values() ? "Q5_K" : base_;
    else if (any_of(ft_, "Q4_K_M", "Q5_K_M"))
      type = has_more(i, num_values_) ? "Q6_K" : base_;
    else if (ft_ == "Q4_K_S")
      type = i < 4 ? "Q5_K" : base_;
    // A 70B model of 80 layers shares its values among eight heads, so that more bits for them cost next to nothing.
    const bool is_70b = model_.num_layers == 80 && model_.num_heads != model_.num_kv_heads;
    if (is_70b && any_of(type, "Q3_K", "Q4_K")) type = "Q5_K";
    return eight_experts() ? "Q8_0" : type;
  }
  [[nodiscard]] std::string_view key() const {
    if (eight_experts()) return low() ? "Q4_K" : "Q8_0";
    return ft_ == "IQ3_XS" ? "IQ3_XXS" : ft_ == "IQ3_XXS" ? "IQ2_S" : base_;
  }
  [[nodiscard]] std::string_view attention_output() const {
    if (eight_experts()) {
      const bool more =
          low() || any_of(ft_, "Q2_K", "Q3_K_S", "Q3_K_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M");
      return more ? "Q5_K" : base_;
    }
    if (any_of(ft_, "IQ1_S", "IQ1_M")) return "IQ2_XXS";
    if (any_of(ft_, "IQ2_S", "IQ2_M", "IQ3_XXS")) return "IQ3_S";
    if (ft_ == "Q2_K") return "Q3_K";
    if (any_of(ft_, "Q3_K_M", "IQ3_M")) return "Q4_K";
    return ft_ == "Q3_K_L" ? "Q5_K" : base_;
  }
  [[nodiscard]] std::string_view down(std::uint64_t i) const {
    const std::uint64_t n = model_.num_layers;
    const bool early = i < n / 8;
    if (low()) return !early ? base_ : any_of(ft_, "IQ2_S", "IQ2_M") ? "IQ3_S" : "Q2_K";
    if (ft_ == "Q2_K") return "Q3_K";
    if (ft_ == "Q2_K_S") return early ? "Q4_K" : base_;
    if (ft_ == "IQ3_XXS") return model_.has_imatrix ? base_ : early ? "Q4_K" : "Q3_K";
    if (ft_ == "Q3_K_M") return i < n / 16 ? "Q5_K" : "Q4_K";
    if (ft_ == "IQ3_M") return early || (eight_experts() && has_more(i, n)) ? "Q4_K" : base_;
    if (ft_ == "Q3_K_L") return "Q5_K";
    if (any_of(ft_, "Q4_K_M", "Q5_K_M")) return has_more(i, n) ? "Q6_K" : base_;
    if (any_of(ft_, "IQ4_NL", "IQ4_XS")) return !model_.has_imatrix && early ? "Q5_K" : base_;
    if (ft_ == "Q4_K_S") return early ? "Q5_K" : base_;
    if (any_of(ft_, "Q4_0", "Q5_0") && model_.has_imatrix && early) return ft_ == "Q4_0" ? "Q4_1" : "Q5_1";
    return base_;
  }
  [[nodiscard]] std::string_view gate_or_up(std::uint64_t i) const {
    const std::uint64_t n = model_.num_layers;
    return ft_ == "IQ3_XS" && i >= n / 8 && i < 7 * n / 8 ? "IQ3_XXS" : base_;
  }

  std::string_view ft_;
  std::string_view base_;
  const GgufMixModel& model_;
  std::uint64_t num_values_ = 0;                                            ///< in the model
  std::uint64_t num_value_ = 0, num_down_ = 0, num_gate_ = 0, num_up_ = 0;  ///< seen
};

}  // namespace

std::span<const GgufFileType> gguf_file_types() { return kFileTypes; }

const GgufFileType& gguf_file_type(std::string_view name) {
  std::string wanted = upper(name);
  if (any_of(wanted, "Q3_K", "Q4_K", "Q5_K")) wanted += "_M";
  if (wanted == "MXFP4") wanted = "MXFP4_MOE";
  std::vector<std::string> names;
  for (const GgufFileType& type : kFileTypes) {
    if (type.name == wanted) return type;
    names.emplace_back(type.name);
  }
  const auto nearest = nearest_name(wanted, names);
  throw Error(ErrorCode::invalid_argument, fmt::format("GGUF files have no type '{}'", printable(name)), {.key = "format"},
              nearest ? fmt::format("did you mean gguf:{}?", *nearest) : fmt::format("types: {}", fmt::join(names, ", ")));
}

std::string_view GgufStoredType::name() const {
  if (codec != nullptr) return codec->name;
  return dtype ? weft::to_string(*dtype) : std::string_view("as stored");
}

GgufStoredType gguf_stored_type(std::string_view name, std::string_view key) {
  const std::string wanted = upper(name);
  const GgufStoredType type = type_named(wanted);
  if (type.dtype || (type.codec != nullptr && type.codec->encode_row != nullptr)) return type;
  std::vector<std::string> names = {"F32", "F16", "BF16"};
  for (const codec::BlockCodec& codec : codec::block_codecs())
    if (codec.encode_row != nullptr) names.emplace_back(codec.name);
  const auto nearest = nearest_name(wanted, names);
  throw Error(ErrorCode::invalid_argument, fmt::format("there is no type '{}' for a tensor of a GGUF file", printable(name)),
              {.key = std::string(key)}, nearest ? fmt::format("did you mean {}?", *nearest) : fmt::format("types: {}", fmt::join(names, ", ")));
}

std::vector<GgufStoredType> gguf_mix(const GgufFileType& file_type, const GgufMixModel& model, std::span<const GgufMixWeight> weights) {
  Mix mix(file_type, model, weights);
  std::vector<GgufStoredType> types;
  types.reserve(weights.size());
  for (const GgufMixWeight& weight : weights) types.push_back(type_named(mix.choose(weight)));
  return types;
}

GgufStoredType gguf_type_for_rows(const GgufStoredType& type, std::uint64_t row_length, std::string_view tensor) {
  const auto fits = [row_length](const GgufStoredType& t) { return t.codec == nullptr || row_length % t.codec->block_elements == 0; };
  if (fits(type)) return type;
  const std::string_view name = type.codec->name;
  if (any_of(name, "Q1_0", "NVFP4"))
    throw Error(ErrorCode::unsupported,
                fmt::format("tensor '{}' has rows of {}, which blocks of {} do not divide, and {} has no substitute", printable(tensor), row_length,
                            type.codec->block_elements, name),
                {.tensor = std::string(tensor)}, "give this tensor another type with --tensor-type");
  std::string_view other = "F16";
  if (any_of(name, "Q2_K", "Q3_K", "TQ1_0", "TQ2_0", "Q2_0"))
    other = "Q4_0";
  else if (name == "Q4_K")
    other = "Q5_0";
  else if (name == "Q5_K")
    other = "Q5_1";
  else if (name == "Q6_K")
    other = "Q8_0";
  else if (name.starts_with("IQ") && name != "IQ4_NL")
    other = "IQ4_NL";
  const GgufStoredType found = type_named(other);
  return fits(found) ? found : type_named("F16");
}

bool needs_importance(const GgufFileType& file_type, const GgufStoredType& type, std::string_view tensor) {
  if (tensor == "token_embd.weight" || tensor == "output.weight" || type.codec == nullptr) return false;
  return any_of(type.codec->name, "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS") ||
         (type.codec->name == "Q2_K" && file_type.name == "Q2_K_S");
}

int gguf_layer_of(std::string_view name) {
  if (!name.starts_with("blk.")) return -1;
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return error == std::errc() && end != name.data() + name.size() && *end == '.' && layer >= 0 ? layer : -1;
}

}  // namespace weft::model
