#include "engine/whole_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/text.h"
#include "engine/block_pass.h"
#include "model/architecture.h"
#include "model/config_json.h"
#include "model/spaces.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

const model::Architecture& architecture_of(const LazyModel& model) {
  if (!model.parts.config)
    throw Error(ErrorCode::not_found, "there is no config.json, which says what the weights are", {.file = model.name}, "name the model's folder");
  const model::Architecture* architecture = model::find_architecture(*model.parts.config);
  if (architecture == nullptr) architecture = model::find_architecture_family(*model.parts.config);
  if (architecture == nullptr || architecture->forward.kind == model::NetworkKind::none)
    throw Error(ErrorCode::unsupported, "what the tensors of models of this type do is not known", {.file = model.name, .key = "model_type"},
                "leave 'rotate' out");
  return *architecture;
}

}  // namespace

void rotate_model(LazyModel& model, std::uint64_t seed, bool allow_requantize) {
  const model::Architecture& architecture = architecture_of(model);
  for (const edit::Tensor& part : model.parts.tensors)
    if (const std::string& stored = part.values.tensor->stored_as; !stored.empty() && !allow_requantize)
      throw Error(ErrorCode::invalid_argument, fmt::format("the model's weights are quantized already ('{}' is {})", printable(part.name), stored),
                  {.file = model.name}, "name the original model, or give --allow-requantize to round what is left of it again");
  const model::NetworkSpaces spaces = model::spaces_of(architecture, *model.parts.config, *checkpoint_of(model));
  constexpr unsigned kTurns = model::kRotate | model::kRotateMean | model::kGeneral;
  const model::Space* residual = spaces.find("residual");
  const bool turns_residual = residual != nullptr && ((residual->allows | residual->allows_folded) & kTurns) != 0;
  const bool turns_values = std::any_of(spaces.spaces.begin(), spaces.spaces.end(),
                                        [](const model::Space& space) { return space.name.starts_with("value.") && (space.allows & kTurns) != 0; });
  if (!turns_residual && !turns_values)
    throw Error(ErrorCode::unsupported,
                fmt::format("nothing of a {} can be turned{}{}", architecture.name, residual == nullptr || residual->reason.empty() ? "" : ": ",
                            residual == nullptr ? "" : residual->reason),
                {.file = model.name}, "leave 'rotate' out; 'weft edit spaces MODEL' lists what spaces allow");
  std::vector<edit::Request> requests;
  if (turns_residual) {
    if ((residual->allows & kTurns) == 0) requests.push_back({"fold-norms", ""});
    requests.push_back({"rotate", fmt::format("residual={}", seed)});
  } else {
    model.warnings.push_back(fmt::format("the residual stream of a {} cannot be turned{}{}: only values are", architecture.name,
                                         residual == nullptr || residual->reason.empty() ? "" : " (",
                                         residual == nullptr || residual->reason.empty() ? "" : residual->reason + ")"));
  }
  if (turns_values) requests.push_back({"rotate", fmt::format("value.*={}", seed)});
  std::vector<std::unique_ptr<edit::Operation>> operations;
  for (const edit::Request& request : requests) operations.push_back(edit::parse_operation(request));
  static_cast<void>(apply_operations(model, operations, requests));
}

std::size_t give_biases(LazyModel& model) {
  const model::Architecture& architecture = architecture_of(model);
  const model::Architecture named = model::with_names_of(architecture, *checkpoint_of(model));
  Json config = *model.parts.config;
  const auto numbers = model::config_numbers(named, config);
  for (const model::ConfigField& field : named.fields)
    if (field.name.ends_with("_bias") && !field.keys.empty() && numbers.at(field.name) == 0) model::text_config(config).set(field.keys.front(), true);

  std::map<std::string, DType, std::less<>> stored;
  for (const edit::Tensor& part : model.parts.tensors) stored.emplace(part.name, part.values.tensor->dtype);
  std::vector<MadeTensor> zeros;
  for (int layer = 0; layer < model::num_layers(named, config); ++layer)
    for (const model::TensorSlot& slot : model::tensor_slots(named, config, model::Placement::layer, layer)) {
      if (!slot.name.ends_with(".bias") || slot.role == model::Role::norm || !slot.expected || !slot.shape || stored.contains(slot.name)) continue;
      const auto weight = stored.find(slot.name.substr(0, slot.name.size() - 4) + "weight");
      if (weight == stored.end()) continue;
      MadeTensor zero{
          slot.name, is_decodable_float(weight->second) && info(weight->second).bits >= 16 ? weight->second : DType::f32, *slot.shape, {}};
      std::uint64_t elements = 1;
      for (const std::int64_t size : zero.shape) elements *= static_cast<std::uint64_t>(size);
      zero.bytes.resize(checked_size(elements * static_cast<std::uint64_t>(info(zero.dtype).bits) / 8, "a bias"));
      zeros.push_back(std::move(zero));
    }
  // Which of the layers that read a norm have biases then.
  bool attention = false, feed_forward = false;
  const auto look_at = [&](std::string_view name) {
    if (!name.ends_with(".bias")) return;
    using enum model::Role;
    const model::Role role = model::role_of(&named, name);
    attention = attention || role == q || role == k || role == v || role == qkv;
    feed_forward = feed_forward || role == up || role == gate || role == gate_up;
  };
  for (const edit::Tensor& part : model.parts.tensors) look_at(part.name);
  for (const MadeTensor& zero : zeros) look_at(zero.name);
  if (!attention && !feed_forward)
    throw Error(ErrorCode::unsupported, fmt::format("the layers of a {} have no biases, and cannot have any", named.name), {.file = model.name},
                "leave out the step that needs them");
  if (!attention || !feed_forward)
    model.warnings.push_back(fmt::format("the {} layers of a {} can have no biases: only the others make up for means that shift",
                                         attention ? "feed-forward" : "attention", named.name));
  if (zeros.empty()) return 0;
  const std::size_t count = zeros.size();
  const std::shared_ptr<const Checkpoint> held = hold_tensors(std::move(zeros));
  for (const TensorInfo& tensor : held->tensors()) model.parts.tensors.push_back({tensor.name, {held, &tensor}, {held, &tensor}, {}, {"bias"}});
  model.parts.config = std::move(config);
  model.config_changed = true;
  return count;
}

}  // namespace weft::engine
