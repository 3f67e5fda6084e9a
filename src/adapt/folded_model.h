#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "adapt/adapter.h"
#include "checkpoint/json.h"
#include "model/gguf_model.h"
#include "weft/checkpoint.h"

// A model with an adapter folded into it, as a view: the tensors that the adapter changes are computed row by row when they are read.
namespace weft::adapt {

struct FoldOptions {
  double scale = 1;                       ///< how far to go from the model (0) to the folded one (1)
  std::optional<DType> dtype = {};        ///< of all floating tensors; absent: as the model has them
  bool only_changed = false;              ///< dtype is for the tensors that the adapter changes; the others stay as they are
  bool residual_base = false;             ///< the model is the residual that PiSSA, OLoRA and their like leave, not the original
  std::uint64_t cache_bytes = 256 << 20;  ///< of factors kept between reads; those in use are kept beyond it
};

/// What folding did, for people.
struct FoldSummary {
  std::size_t num_changed = 0;   ///< tensors computed
  std::size_t num_replaced = 0;  ///< tensors taken over whole (modules_to_save, biases)
  bool unties = false;           ///< the head gets values of its own
};

/// The model with the adapter. Values in float64, rounded once to the stored type; the same bits for any threads and cuts (class A, but for OFT's and
/// BOFT's inverse, RoAD and vblora, which are class B). Errors: those of reading; invalid_argument when the adapter was made for another model,
/// naming module and shapes; corrupt for an adapter that contradicts itself; unsupported (kinds and settings, a quantized model).
[[nodiscard]] std::shared_ptr<const Checkpoint> fold_adapter(std::shared_ptr<const Checkpoint> base, std::shared_ptr<const Adapter> adapter,
                                                             const FoldOptions& options = {});
/// What it did; nothing for a checkpoint that is no folded model.
[[nodiscard]] std::optional<FoldSummary> fold_summary(const Checkpoint& checkpoint);
/// Makes a config.json of the model say what the folded one is (a head of its own, more tokens, more layers). Leaves it alone for any other
/// checkpoint.
void follow_in_config(const Checkpoint& checkpoint, Json& config, std::vector<std::string>& warnings);

/// Whether folding gives a tensor of a folded model other values than its base has.
[[nodiscard]] bool is_changed(const Checkpoint& checkpoint, std::string_view tensor);
/// Whether an adapter has made more layers of the model's (layer_replication).
[[nodiscard]] bool repeats_layers(const Checkpoint& checkpoint);
/// A GGUF file, alone or with adapters folded in, as the Hugging Face model that it holds; its config follows the adapters. Nothing for any other
/// checkpoint, whose config and small files lie beside its weights.
[[nodiscard]] std::optional<model::HuggingFaceModel> held_model(const std::shared_ptr<const Checkpoint>& checkpoint);

/// "MODEL+ADAPTER[+ADAPTER]" taken apart; an existing path is never cut. The model alone when there is no adapter.
struct ModelWithAdapters {
  std::string model;
  std::vector<std::string> adapters;
};
[[nodiscard]] ModelWithAdapters split_adapters(std::string_view model);

}  // namespace weft::adapt
