#pragma once
#include <memory>

#include "checkpoint/json.h"
#include "weft/checkpoint.h"

// Folders that GPTQ, AWQ, compressed-tensors and bitsandbytes write, seen as the plain matrices that they stand for. Nothing is decoded until bytes
// are asked for.
namespace weft {

/// Whether a tensor of this name is part of a packed matrix: its codes, scales or zero points.
[[nodiscard]] bool is_packed_part(std::string_view name) noexcept;
/// Whether any of the checkpoint's tensors is.
[[nodiscard]] bool has_packed_tensors(const Checkpoint& checkpoint) noexcept;

/// The matrices that packed tensors stand for take their place, with `stored_as`, in the type in which the tools decode them: that of the scales; all
/// other tensors are as they were. config: the model's, or null; its quantization_config says how things were packed. Where that is of a kind that
/// weft does not know, stored itself, and why in `not_read`. Errors: corrupt (parts that are missing or do not fit), unsupported (layouts for one
/// GPU).
[[nodiscard]] std::shared_ptr<const Checkpoint> decode_quantized(std::shared_ptr<const Checkpoint> stored, const Json& config, std::string& not_read);

/// Takes out of a config what the checkpoint's tensors do not need any more.
void drop_quantization(const Checkpoint& checkpoint, Json& config);

}  // namespace weft
