#include "weft/spaces.h"

#include <algorithm>
#include <utility>

#include "base/text.h"
#include "engine/lazy_model.h"
#include "model/spaces.h"
#include "weft/error.h"

namespace weft {
namespace {

std::vector<std::string> names_of(unsigned allows) {
  std::vector<std::string> names;
  for (const auto& [bit, name] : {std::pair(model::kPermute, "permute"), std::pair(model::kSign, "sign"), std::pair(model::kScale, "scale"),
                                  std::pair(model::kRotate, "rotate"), std::pair(model::kRotateMean, "rotate_mean"),
                                  std::pair(model::kGeneral, "general"), std::pair(model::kResize, "resize")})
    if ((allows & bit) != 0) names.emplace_back(name);
  return names;
}

}  // namespace

std::vector<SpaceInfo> list_spaces(std::string_view model) {
  const engine::LazyModel lazy = engine::open_lazy_model(model);
  if (!lazy.parts.config)
    throw Error(ErrorCode::not_found, "the model has no config.json, which says what its tensors are made of", {.file = std::string(model)},
                "name a model's folder");
  const Json& config = *lazy.parts.config;
  const model::Architecture* architecture = model::find_architecture(config);
  if (architecture == nullptr) architecture = model::find_architecture_family(config);
  if (architecture == nullptr || architecture->forward.kind == model::NetworkKind::none)
    throw Error(ErrorCode::unsupported, "the spaces of models of this type are not known", {.file = std::string(model), .key = "model_type"},
                "weft knows those of the models that it can run");
  const model::NetworkSpaces spaces = model::spaces_of(*architecture, config, *engine::checkpoint_of(lazy));
  std::vector<SpaceInfo> out;
  for (const model::Space& space : spaces.spaces) {
    SpaceInfo& one = out.emplace_back(SpaceInfo{space.name, space.size, names_of(space.allows), names_of(space.allows_folded), space.reason, 0});
    for (const auto& [name, axes] : spaces.tensors)
      if (std::any_of(axes.begin(), axes.end(), [&](const model::Axis& axis) { return axis.touches(space.name) || axis.norm == space.name; }))
        ++one.num_tensors;
  }
  return out;
}

}  // namespace weft
