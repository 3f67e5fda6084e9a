#pragma once
#include <filesystem>
#include <string_view>

#include "weft/job.h"

namespace weft {

struct MoeOptions : JobOptions {
  bool allow_same_experts = false;  ///< all experts may be one model (useful only before training)
  bool write_config_copy = true;    ///< put the config into the output, as mergekit_moe_config.yml
};

/// Builds a mixture of experts from dense models as a config of mergekit-moe (YAML text) says: attention, norms and embeddings of the base, each
/// expert's feed-forward network, and routers that are random or made of what the prompts look like in the base: their embeddings, or the states that enter each layer (in float32). Output: Mixtral, DeepSeek, Qwen2-MoE or Qwen3-MoE,
/// under the names that their published checkpoints use. Errors: invalid_argument (config, models that do not fit together), unsupported (gates from
/// hidden states), and those of every job.
[[nodiscard]] WEFT_API JobReport merge_moe(std::string_view config_text, const std::filesystem::path& config_name,
                                           const std::filesystem::path& output, const MoeOptions& options = {});

}  // namespace weft
