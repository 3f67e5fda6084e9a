#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "math/neural.h"
#include "model/architecture.h"
#include "model/rope.h"

namespace weft::model {

/// What one block does differently from the others.
struct LayerConfig {
  std::int64_t window = 0;  ///< tokens that one sees, itself included; 0: all
  int rope = -1;            ///< into NetworkConfig::ropes; -1: none
  bool experts = false;
  double score_scale = 1;
};

/// A config.json as numbers: what a forward pass of this model needs to know beside its weights.
struct NetworkConfig {
  const Architecture* architecture = nullptr;
  NetworkKind kind = NetworkKind::none;
  std::int64_t vocab = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t context = 0;  ///< positions it was made for; learned ones end there
  std::int64_t types = 0;    ///< of token types; 0: none
  NormKind norm = NormKind::rms;
  float norm_eps = 1e-6F;
  PositionKind positions = PositionKind::rotary;
  math::Activation activation = math::Activation::silu;
  double embedding_scale = 1;
  double score_cap = 0, logit_cap = 0;  ///< 0: none
  bool parallel = false;
  std::int64_t experts = 0, experts_per_token = 0;
  bool renormalises = true;
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layers;
  std::vector<std::string> warnings;
};

/// Errors: unsupported for an architecture that weft cannot run or an unknown rope type or activation; corrupt for missing keys and values that make
/// no sense, naming the key.
[[nodiscard]] NetworkConfig read_network_config(const Json& config);

/// Bounds that no real model reaches: a config is not trusted.
inline constexpr std::int64_t kMaxVocab = std::int64_t{1} << 24;
inline constexpr std::int64_t kMaxHidden = std::int64_t{1} << 20;

}  // namespace weft::model
