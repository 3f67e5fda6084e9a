#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "model/forward_rule.h"
#include "weft/checkpoint.h"
#include "weft/dtype.h"

// Architectures as data: which tensors a model has, what each is for, and which shape it must have.
namespace weft::model {

/// Before, in, or after the numbered layers.
enum class Placement : std::uint8_t { pre, layer, post };

enum class Role : std::uint8_t {
  unknown,
  embed,
  position,
  token_type,
  cls_token,
  patch,  // what turns input into vectors
  head,
  head_transform,
  pooler,
  classifier,  // what turns vectors into output
  norm,
  q_norm,
  k_norm,
  q,
  k,
  v,
  o,
  qkv,  // attention; qkv is the fused one
  gate,
  up,
  down,
  gate_up,  // feed-forward, dense or one expert's
  router,
  shared_gate,
  shared_up,
  shared_down,
  shared_router,  // mixtures of experts
  linear,
  conv,    // weft's own small networks
  buffer,  // not trained
};
/// "gate_up".
[[nodiscard]] std::string_view to_string(Role role) noexcept;

/// Where a norm stands: before a part of a block, behind it (before it is added), or behind the sum.
enum class Site : std::uint8_t { none, embedding, attention_in, attention_out, attention_sum, mlp_in, mlp_out, mlp_sum, final, head_transform };

/// A tensor, or one for each layer and expert, of an architecture.
struct TensorTemplate {
  std::string name;  ///< with ${layer_index} and ${expert_index}
  Placement placement = Placement::pre;
  Role role = Role::unknown;
  Site site = Site::none;            ///< of a norm
  bool transposed = false;           ///< a linear weight stored [in, out]
  std::string shape;                 ///< "vocab, hidden": expressions over the fields; empty: not known from the config
  std::vector<std::string> aliases;  ///< other names for it, in order of preference
  std::string tied_to;               ///< name of the template that stands in when it is absent
  bool vocabulary_axis = false;      ///< its first axis is the vocabulary
  bool optional = false;             ///< for merging: may be absent everywhere
  std::string expected_if;           ///< condition over the config under which a sound checkpoint has it; empty: always. False makes it optional.
  std::string only_if;               ///< condition over config and layer without which it cannot exist; empty: always
  std::optional<DType> force_dtype;
};

/// A number that shapes are made of: the first of the keys that config.json has, booleans as 0 and 1. Expressions know the fields before it.
struct ConfigField {
  std::string name;
  std::vector<std::string> keys;  ///< "#id2label": the number of its entries
  std::string fallback;           ///< expression for a null, and for an absent key unless `absent` says otherwise; empty: the key is needed
  std::string absent;             ///< expression for an absent key, where the default of the class is not that of null
};

struct Architecture {
  std::string name;                  ///< "llama"
  std::vector<std::string> classes;  ///< in `architectures` of config.json
  std::vector<std::string> model_types;
  std::vector<ConfigField> fields;
  std::vector<TensorTemplate> tensors;
  std::string listed_in;                      ///< key of a list of steps that name tensors themselves (cnn); empty: none
  std::string layer_count_key;                ///< in config.json; empty: no such key
  bool tied_by_default = true;                ///< tie_word_embeddings when config.json has no such key
  std::vector<std::string> dropped_suffixes;  ///< buffers that old files hold and nobody needs: ".rotary_emb.inv_freq"
  std::vector<std::string> warnings;          ///< of an inferred one
  bool inferred = false;                      ///< made from tensor names
  int num_layers = 0;                         ///< of an inferred one
  ForwardRule forward;                        ///< how it runs
};

/// One tensor that a model of some architecture may have.
struct TensorSlot {
  std::string name;
  std::string pattern;  ///< the name with ${layer_index} still in it (the expert filled in)
  std::vector<std::string> aliases;
  std::vector<std::string> alias_patterns;
  std::vector<std::string> tied_names;  ///< names (and aliases) of the tensor that stands in when it is absent
  Placement placement = Placement::pre;
  Role role = Role::unknown;
  Site site = Site::none;
  bool transposed = false;
  int layer = -1;
  int expert = -1;
  bool vocabulary_axis = false;
  bool optional = false;       ///< for merging: written only if some input has it
  bool expected = true;        ///< a sound checkpoint with this config has it
  bool contradicts = false;    ///< a checkpoint that has it contradicts this config
  std::optional<Shape> shape;  ///< absent where the config does not tell
  std::optional<DType> force_dtype;
};

/// All known architectures, sorted by name.
[[nodiscard]] std::span<const Architecture> architectures();
/// By the (first) class in `architectures`, or by `model_type` when there is no such key. Null when unknown.
[[nodiscard]] const Architecture* find_architecture(const Json& config);
/// By model_type alone, for questions where another head on top does not matter (roles). Null when unknown.
[[nodiscard]] const Architecture* find_architecture_family(const Json& config);

/// The architecture with the names that the checkpoint uses where it uses an alias ("wte.weight" for "transformer.wte.weight"), so that outputs keep
/// them.
[[nodiscard]] Architecture with_names_of(const Architecture& architecture, const Checkpoint& checkpoint);

/// From the tensor names of checkpoints, for architectures that are not in the table: the first ".number." of a name is the layer; the rest is
/// pre-layer; a tensor that some checkpoint lacks is optional. Names stay as they are.
[[nodiscard]] Architecture infer_architecture(std::span<const Checkpoint* const> checkpoints);

/// Number of layers that the config announces. Errors: corrupt, naming the key when it is absent or absurd.
[[nodiscard]] int num_layers(const Architecture& architecture, const Json& config);
/// Whether head and embedding share one tensor.
[[nodiscard]] bool is_tied(const Architecture& architecture, const Json& config);
/// The slots of one placement; for Placement::layer those of that layer. Sorted as the table is. Errors: corrupt for config values that make no
/// sense.
[[nodiscard]] std::vector<TensorSlot> tensor_slots(const Architecture& architecture, const Json& config, Placement placement, int layer = -1);
/// The table's numbers for this config: "hidden", "heads", ..., and for a layer also "layer" and "moe_layer". Errors: corrupt.
[[nodiscard]] std::map<std::string, std::int64_t, std::less<>> config_numbers(const Architecture& architecture, const Json& config, int layer = -1);
/// All slots: pre-layer, layers 0 to num_layers - 1, post-layer.
[[nodiscard]] std::vector<TensorSlot> tensor_slots(const Architecture& architecture, const Json& config, int num_layers);
/// "model.layers.${layer_index}.mlp" with the number in place.
[[nodiscard]] std::string with_layer(std::string_view pattern, int layer);

/// What a tensor name means.
struct NameMatch {
  const TensorTemplate* tensor = nullptr;
  int layer = -1;
  int expert = -1;
};
[[nodiscard]] std::optional<NameMatch> match_name(const Architecture& architecture, std::string_view name);
/// The role by the architecture's table, or, when there is none or it does not know the name, by what such names usually mean.
[[nodiscard]] Role role_of(const Architecture* architecture, std::string_view name);
/// Whether the tensor is a buffer that is dropped on writing.
[[nodiscard]] bool is_dropped(const Architecture& architecture, std::string_view name);

}  // namespace weft::model
