#pragma once
#include <memory>
#include <optional>

#include "checkpoint/json.h"
#include "weft/checkpoint.h"

namespace weft::model {

/// A language model that is part of something larger.
struct TextPart {
  std::shared_ptr<const Checkpoint> checkpoint;  ///< its tensors, under the names that they have in a model of their own
  Json config;
};

/// The language model of a multimodal checkpoint, whose config.json nests it under `text_config` and whose tensors have a prefix
/// ("language_model.model.", "model.language_model."); what sees and hears is left out. Empty where the config is no such one, or where the part is
/// of an architecture that weft cannot run.
[[nodiscard]] std::optional<TextPart> text_part(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config);

}  // namespace weft::model
