#include "model/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/text.h"
#include "checkpoint/arranged_view.h"
#include "math/convert.h"
#include "model/gguf_config.h"
#include "model/gguf_vocabulary.h"
#include "weft/error.h"

namespace weft::model {
namespace {

constexpr std::string_view kExpertMark = "${expert_index}";
constexpr int kMaxExperts = 100'000;

/// Rows of a head, checked.
std::uint64_t head_rows(const TensorInfo& tensor, std::uint64_t heads, std::uint64_t parts) {
  const std::uint64_t rows = tensor.shape.empty() ? 0 : static_cast<std::uint64_t>(tensor.shape[0]);
  if (heads == 0 || rows == 0 || rows % (heads * parts) != 0)
    throw Error(ErrorCode::corrupt,
                fmt::format("tensor '{}' {} does not divide among {} heads", printable(tensor.name), weft::to_string(tensor.shape), heads),
                {.tensor = tensor.name}, "compare config.json with the one that the model was published with");
  return rows / heads;
}

using RowMapping = std::function<std::uint64_t(std::uint64_t)>;

/// Row i of a GGUF tensor is this row of Hugging Face's.
RowMapping to_pairs(std::uint64_t head) {
  return [head](std::uint64_t i) {
    const std::uint64_t r = i % head;
    return i - r + (r % 2) * (head / 2) + r / 2;
  };
}
RowMapping from_pairs(std::uint64_t head) {
  return [head](std::uint64_t i) {
    const std::uint64_t r = i % head, half = head / 2;
    return i - r + 2 * (r % half) + r / half;
  };
}
/// block: rows of the three parts of one head together.
RowMapping to_parts(std::uint64_t heads, std::uint64_t block) {
  const std::uint64_t head = block / 3;
  return [heads, head](std::uint64_t i) {
    const std::uint64_t part = i / (heads * head), rest = i % (heads * head);
    return rest / head * 3 * head + part * head + rest % head;
  };
}
RowMapping from_parts(std::uint64_t heads, std::uint64_t block) {
  const std::uint64_t head = block / 3;
  return [heads, head](std::uint64_t i) { return i / head % 3 * heads * head + i / (3 * head) * head + i % head; };
}

/// One tensor to one tensor.
ArrangedTensor arranged(std::string name, const TensorRef& source, GgufArrangement arrangement, const GgufHeads& heads, GgufDirection direction) {
  ArrangedTensor out;
  out.name = std::move(name);
  out.shape = source.tensor->shape;
  out.sources = {source};
  if (arrangement == GgufArrangement::transposed && out.shape.size() == 2) {
    std::swap(out.shape[0], out.shape[1]);
    out.kind = ArrangedTensor::Kind::transpose;
    return out;
  }
  out.row_of = gguf_row_order(arrangement, *source.tensor, heads, direction);
  // A norm's row or a bias is one value.
  out.row_elements = out.shape.size() < 2 ? 1 : static_cast<std::uint64_t>(std::max<std::int64_t>(1, out.shape.back()));
  return out;
}

std::vector<float> small_values(const Checkpoint& checkpoint, std::string_view name) {
  const TensorInfo* tensor = checkpoint.find_tensor(name);
  if (tensor == nullptr || tensor->num_elements > 65536 || !is_decodable_float(tensor->dtype)) return {};
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor->size_bytes));
  checkpoint.read_bytes(*tensor, 0, bytes);
  std::vector<float> values(static_cast<std::size_t>(tensor->num_elements));
  math::decode(tensor->dtype, bytes, values);
  return values;
}

}  // namespace

std::string with_expert(std::string name, std::size_t expert) {
  if (const std::size_t at = name.find(kExpertMark); at != std::string::npos) name.replace(at, kExpertMark.size(), std::to_string(expert));
  return name;
}

bool gguf_adds_one(const Architecture& architecture, Role role) {
  return architecture.forward.norm == NormKind::rms_plus_one && (role == Role::norm || role == Role::q_norm || role == Role::k_norm);
}

GgufHeads gguf_heads(const Architecture& architecture, const Json& config) {
  const auto numbers = config_numbers(architecture, config, 0);
  const auto number = [&numbers](const char* name) {
    const auto found = numbers.find(name);
    return found == numbers.end() || found->second < 0 ? std::uint64_t{0} : static_cast<std::uint64_t>(found->second);
  };
  return {number("heads"), number("kv_heads")};
}

std::function<std::uint64_t(std::uint64_t)> gguf_row_order(GgufArrangement arrangement, const TensorInfo& tensor, const GgufHeads& heads,
                                                           GgufDirection direction) {
  const bool there = direction == GgufDirection::to_gguf;
  switch (arrangement) {
    case GgufArrangement::query_pairs:
    case GgufArrangement::key_pairs: {
      const std::uint64_t head = head_rows(tensor, arrangement == GgufArrangement::query_pairs ? heads.query : heads.key, 1);
      if (head % 2 != 0)
        throw Error(ErrorCode::corrupt, fmt::format("tensor '{}' has heads of {} rows, which do not pair", printable(tensor.name), head),
                    {.tensor = tensor.name});
      return there ? to_pairs(head) : from_pairs(head);
    }
    case GgufArrangement::qkv_by_part: {
      const std::uint64_t block = head_rows(tensor, heads.query, 3);
      return there ? to_parts(heads.query, block) : from_parts(heads.query, block);
    }
    case GgufArrangement::transposed:
    case GgufArrangement::same:
    case GgufArrangement::experts:
      break;
  }
  return nullptr;
}

GgufPlace gguf_place(const GgufFamily& family, const Architecture& architecture, std::string_view gguf_name) {
  GgufPlace place;
  GgufNameMatch match = match_gguf_name(family, gguf_name);
  if (match.rule == nullptr) {
    // The first files of mixtures have each expert's matrices by themselves: blk.0.ffn_gate.3.weight.
    const std::size_t ending = gguf_name.ends_with(".weight") ? gguf_name.size() - 7 : 0, dot = gguf_name.rfind('.', ending == 0 ? 0 : ending - 1);
    if (ending == 0 || dot == std::string_view::npos) return place;
    const auto [end, error] = std::from_chars(gguf_name.data() + dot + 1, gguf_name.data() + ending, place.expert);
    if (error == std::errc() && end == gguf_name.data() + ending && place.expert >= 0 && place.expert < kMaxExperts)
      match = match_gguf_name(family, fmt::format("{}_exps.weight", gguf_name.substr(0, dot)));
    if (match.rule == nullptr || match.rule->arrangement != GgufArrangement::experts) return place;
  }
  // Of rules that share a name the one that this architecture has.
  for (const GgufRule& candidate : family.rules) {
    if (candidate.gguf != match.rule->gguf) continue;
    std::string name = match.layer >= 0 ? with_layer(candidate.hf, match.layer) : candidate.hf;
    const std::optional<NameMatch> known = match_name(architecture, with_expert(name, 0) + match.suffix);
    if (!known) continue;
    place.rule = &candidate;
    place.name = std::move(name);
    place.suffix = match.suffix;
    place.role = known->tensor->role;
    break;
  }
  return place;
}

GgufTensors gguf_tensors_of(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config, const Architecture& architecture,
                            const GgufFamily& family) {
  GgufTensors result;
  struct Entry {
    int placement = 0;  ///< before, in and behind the layers
    int layer = -1;
    ArrangedTensor tensor;
    bool float32 = false;
  };
  std::vector<Entry> entries;
  std::map<std::string, std::map<int, TensorRef>> stacks;  ///< of experts, by GGUF name
  std::map<std::string, int> stack_layers;
  const auto numbers = config_numbers(architecture, config, 0);
  const auto number = [&numbers](const char* name) {
    const auto found = numbers.find(name);
    return found == numbers.end() || found->second < 0 ? std::uint64_t{0} : static_cast<std::uint64_t>(found->second);
  };
  const GgufHeads heads = gguf_heads(architecture, config);
  const bool tied = is_tied(architecture, config);
  std::vector<std::string> dropped;
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    if (is_dropped(architecture, tensor.name)) continue;
    const std::optional<NameMatch> match = match_name(architecture, tensor.name);
    std::string suffix;
    const GgufRule* rule = match ? rule_for_template(family, match->tensor->name, suffix) : nullptr;
    if (rule == nullptr) {
      const std::string& canonical = match ? match->tensor->name : tensor.name;
      const bool known =
          std::any_of(family.dropped.begin(), family.dropped.end(), [&](const std::string& beginning) { return canonical.starts_with(beginning); });
      if (known || (match && match->tensor->role == Role::buffer)) {
        dropped.push_back(tensor.name);
        continue;
      }
      throw Error(ErrorCode::unsupported, fmt::format("tensor '{}' has no place in a GGUF file of a {} model", printable(tensor.name), family.name),
                  {.file = checkpoint->path().string(), .tensor = tensor.name}, "leave it out with 'weft edit --drop'");
    }
    // A head that is the embedding is not stored twice.
    if (tied && match->tensor->role == Role::head && !match->tensor->tied_to.empty()) continue;
    const std::string name = match->layer >= 0 ? with_layer(rule->gguf, match->layer) + suffix : rule->gguf + suffix;
    if (rule->arrangement == GgufArrangement::experts) {
      stacks[name].emplace(match->expert, TensorRef{checkpoint, &tensor});
      stack_layers[name] = match->layer;
      continue;
    }
    Entry entry;
    entry.placement = match->tensor->placement == Placement::pre ? 0 : match->tensor->placement == Placement::layer ? 1 : 2;
    entry.layer = match->layer;
    entry.float32 = is_float32_in_gguf(name, tensor.shape.size());
    entry.tensor = arranged(name, {checkpoint, &tensor}, rule->arrangement, heads, GgufDirection::to_gguf);
    if (gguf_adds_one(architecture, match->tensor->role)) {
      entry.tensor.kind = ArrangedTensor::Kind::add;
      entry.tensor.addend = 1;
    }
    entries.push_back(std::move(entry));
  }
  for (auto& [name, experts] : stacks) {
    Entry entry;
    entry.placement = 1;
    entry.layer = stack_layers[name];
    const auto count = static_cast<int>(experts.size());
    if (static_cast<std::uint64_t>(count) != number("experts") || experts.rbegin()->first != count - 1)
      throw Error(ErrorCode::corrupt, fmt::format("'{}' needs {} experts, but {} are there", name, number("experts"), count),
                  {.file = checkpoint->path().string(), .tensor = experts.begin()->second.tensor->name},
                  "the download is incomplete; fetch the model again");
    entry.tensor.name = name;
    entry.tensor.shape = experts.begin()->second.tensor->shape;
    entry.tensor.shape.insert(entry.tensor.shape.begin(), count);
    for (const auto& [expert, source] : experts) entry.tensor.sources.push_back(source);
    entries.push_back(std::move(entry));
  }
  for (const GgufConstant& constant : gguf_rope_constants(architecture, config)) {
    Entry entry;
    entry.float32 = true;
    entry.tensor.name = constant.name;
    entry.tensor.kind = ArrangedTensor::Kind::literal;
    entry.tensor.shape = {static_cast<std::int64_t>(constant.values.size())};
    entry.tensor.bytes.assign(reinterpret_cast<const char*>(constant.values.data()), constant.values.size() * sizeof(float));
    entries.push_back(std::move(entry));
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return std::pair(a.placement, a.layer) < std::pair(b.placement, b.layer); });
  if (!dropped.empty())
    result.warnings.push_back(fmt::format("{} tensors have no place in a GGUF file of a {} model and were left out, the first is '{}'",
                                          dropped.size(), family.name, printable(dropped.front())));
  std::vector<ArrangedTensor> tensors;
  for (Entry& entry : entries) {
    result.float32.push_back(entry.float32);
    result.original.push_back(entry.tensor.sources.empty() ? DType::f32 : entry.tensor.sources.front().tensor->dtype);
    std::vector<std::string>& names = result.sources.emplace_back();
    for (const TensorRef& source : entry.tensor.sources) names.push_back(source.tensor->name);
    tensors.push_back(std::move(entry.tensor));
  }
  result.view = make_arranged_view("gguf view", *checkpoint, std::move(tensors));
  return result;
}

HuggingFaceModel hugging_face_model(const std::shared_ptr<const Checkpoint>& checkpoint) {
  const GgufCheckpoint* gguf = as_gguf(*checkpoint);
  const std::string file = checkpoint->path().string();
  if (gguf == nullptr) throw Error(ErrorCode::internal, "no GGUF file", {.file = file});
  const GgufMetadata& metadata = gguf->gguf_metadata();
  if (metadata.text("general.type") == "adapter")
    throw Error(ErrorCode::unsupported, "the GGUF file holds an adapter, not a model", {.file = file, .key = "general.type"},
                "name the model first: MODEL+ADAPTER");
  const std::string name = metadata.text("general.architecture").value_or("");
  const GgufFamily* family = find_gguf_family(name);
  if (family == nullptr)
    throw Error(ErrorCode::unsupported,
                name.empty() ? std::string("the GGUF file names no architecture")
                             : fmt::format("the GGUF file holds a model of the architecture '{}'", printable(name)),
                {.file = file, .key = "general.architecture"},
                "weft knows the names and the config of llama, qwen, gemma, phi3, olmo2, gpt2, gptneox and bert");
  HuggingFaceModel result;
  result.file = checkpoint;

  GgufModelFacts facts;
  const TensorInfo* embedding = checkpoint->find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    throw Error(ErrorCode::corrupt, "the GGUF file has no matrix 'token_embd.weight'", {.file = file, .tensor = "token_embd.weight"},
                "it is no whole model");
  facts.vocab_size = static_cast<std::uint64_t>(embedding->shape[0]);
  facts.tied = checkpoint->find_tensor("output.weight") == nullptr;
  facts.qkv_bias = checkpoint->find_tensor("blk.0.attn_q.bias") != nullptr;
  facts.o_bias = checkpoint->find_tensor("blk.0.attn_output.bias") != nullptr;
  facts.mlp_bias = checkpoint->find_tensor("blk.0.ffn_down.bias") != nullptr;
  facts.rope_divisors = small_values(*checkpoint, "rope_freqs.weight");
  facts.long_factors = small_values(*checkpoint, "rope_factors_long.weight");
  facts.short_factors = small_values(*checkpoint, "rope_factors_short.weight");
  std::map<std::string, DType, std::less<>> original;  // by GGUF name
  for (const auto& [key, value] : metadata.entries()) {
    if (!key.starts_with(kOriginalTypeKey)) continue;
    const std::optional<DType> dtype = dtype_from_name(key.substr(kOriginalTypeKey.size()));
    if (!dtype || !is_decodable_float(*dtype)) continue;
    const auto list = gguf->value(key);
    for (const std::string& tensor : list ? list->string_list() : std::vector<std::string>()) original.emplace(tensor, *dtype);
  }
  std::map<DType, std::uint64_t> sizes;
  for (const TensorInfo& tensor : checkpoint->tensors()) sizes[tensor.dtype] += tensor.num_elements;
  std::uint64_t most = 0;
  for (const auto& [dtype, count] : sizes)
    if (count > most) {
      most = count;
      facts.dtype = dtype;
    }
  result.config = config_of_gguf(metadata, *family, facts, file, result.warnings);

  const Architecture* architecture = find_architecture(result.config);
  if (architecture == nullptr) architecture = find_architecture_family(result.config);
  if (architecture == nullptr) throw Error(ErrorCode::internal, "no architecture for a config of our own", {.file = file});
  const GgufHeads heads = gguf_heads(*architecture, result.config);
  std::vector<ArrangedTensor> tensors;
  std::vector<std::string> unknown;
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    if (tensor.name.starts_with("rope_")) continue;  // in the config now
    const GgufPlace place = gguf_place(*family, *architecture, tensor.name);
    if (place.rule == nullptr) {
      unknown.push_back(tensor.name);
      continue;
    }
    if (place.expert >= 0) {
      tensors.push_back(arranged(with_expert(place.name, static_cast<std::size_t>(place.expert)) + place.suffix, {checkpoint, &tensor},
                                 GgufArrangement::same, heads, GgufDirection::to_hugging_face));
      continue;
    }
    if (place.rule->arrangement == GgufArrangement::experts) {
      if (tensor.shape.size() != 3)
        throw Error(ErrorCode::corrupt, fmt::format("'{}' {} is no stack of matrices", printable(tensor.name), weft::to_string(tensor.shape)),
                    {.file = file, .tensor = tensor.name});
      const auto rows = static_cast<std::uint64_t>(tensor.shape[1]);
      for (std::int64_t expert = 0; expert < tensor.shape[0]; ++expert) {
        ArrangedTensor out;
        out.name = with_expert(place.name, static_cast<std::size_t>(expert)) + place.suffix;
        out.shape = {tensor.shape[1], tensor.shape[2]};
        out.sources = {{checkpoint, &tensor}};
        out.row_of = [first = static_cast<std::uint64_t>(expert) * rows](std::uint64_t i) { return first + i; };
        tensors.push_back(std::move(out));
      }
      continue;
    }
    ArrangedTensor out = arranged(place.name + place.suffix, {checkpoint, &tensor}, place.rule->arrangement, heads, GgufDirection::to_hugging_face);
    if (gguf_adds_one(*architecture, place.role)) {
      out.kind = ArrangedTensor::Kind::add;
      out.addend = -1;
    }
    if (place.role == Role::shared_router && out.shape.size() == 1) out.shape.insert(out.shape.begin(), 1);
    if (const auto found = original.find(tensor.name); found != original.end()) result.original_types.emplace(out.name, found->second);
    tensors.push_back(std::move(out));
  }
  if (!unknown.empty())
    result.warnings.push_back(fmt::format("{} tensors of the file are not known in a {} model and were left out, the first is '{}'", unknown.size(),
                                          family->name, printable(unknown.front())));
  result.checkpoint = make_arranged_view("gguf", *checkpoint, std::move(tensors));

  if (const std::optional<GgufVocabulary> vocabulary = read_gguf_vocabulary(*gguf)) {
    const std::uint64_t context = metadata.unsigned_integer(family->name + ".context_length").value_or(2048);
    result.files = tokenizer_files_of(*vocabulary, context, result.warnings);
  } else {
    result.warnings.emplace_back("the file has no vocabulary, so the model has no tokenizer");
  }
  return result;
}

std::string hugging_face_name(const GgufFamily& family, std::string_view name) {
  const GgufNameMatch match = match_gguf_name(family, name);
  if (match.rule == nullptr) return {};
  return (match.layer >= 0 ? with_layer(match.rule->hf, match.layer) : match.rule->hf) + match.suffix;
}

}  // namespace weft::model
