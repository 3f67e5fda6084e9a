#pragma once
#include <cstdint>
#include <string>
#include <vector>

// How an architecture computes, as data: the switches of its forward pass and where config.json says them.
namespace weft::model {

enum class NetworkKind : std::uint8_t {
  none,        ///< weft cannot run it
  decoder,     ///< each token sees those before it
  encoder,     ///< each token sees all
  perceptron,  ///< linear layers with ReLU between them
  steps,       ///< the config lists what to do
};
enum class NormKind : std::uint8_t {
  rms,           ///< x / rms(x) * w
  rms_plus_one,  ///< x / rms(x) * (1 + w)
  layer,         ///< (x - mean) / std * w + b
};
enum class PositionKind : std::uint8_t { rotary, learned };
/// How the rows of a fused projection lie.
enum class QkvLayout : std::uint8_t { separate, concatenated, per_head };
/// Which layers attend to a window only. `layer_types` in a config overrides it.
enum class WindowRule : std::uint8_t {
  none,
  every_layer,          ///< when sliding_window is a number
  switched,             ///< every layer, when use_sliding_window is true
  switched_from_layer,  ///< those from max_window_layers on, when use_sliding_window is true
  even_layers,
  pattern,  ///< all but each sliding_window_pattern-th
};

/// A number in the config: the first of the keys that is there and not null, else the default of the architecture's class.
struct ConfigNumber {
  std::vector<std::string> keys;
  double absent = 0;
};

struct ForwardRule {
  NetworkKind kind = NetworkKind::none;
  NormKind norm = NormKind::rms;
  ConfigNumber norm_eps = {{"rms_norm_eps"}, 1e-6};
  PositionKind positions = PositionKind::rotary;
  ConfigNumber rope_theta = {{"rope_theta"}, 10'000};
  ConfigNumber rotary_share = {{"partial_rotary_factor"}, 1};  ///< of a head's dimensions that turn
  ConfigNumber local_rope_theta = {};                          ///< for layers with a window, without scaling; no keys: as the others
  std::vector<std::string> activation_keys = {"hidden_act"};
  std::string activation = "silu";  ///< when the config does not say
  QkvLayout qkv = QkvLayout::separate;
  WindowRule window = WindowRule::none;
  double window_absent = 0;        ///< sliding_window when the key is absent (null means none); 0: none
  bool scales_embedding = false;   ///< by sqrt(hidden)
  ConfigNumber query_scalar = {};  ///< scores are divided by its root; 0: a head's dimensions
  ConfigNumber score_cap = {};     ///< 0: none
  ConfigNumber logit_cap = {};
  bool parallel = false;        ///< use_parallel_residual may be true, and is when absent
  bool scale_switches = false;  ///< scale_attn_weights and scale_attn_by_inverse_layer_idx
  ConfigNumber experts_per_token = {};
  std::string renormalise_key = {};  ///< whether the chosen experts' shares are divided by their sum; empty: always
  ConfigNumber context = {{"max_position_embeddings"}, 2048};
};

}  // namespace weft::model
