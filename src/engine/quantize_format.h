#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/lazy_model.h"
#include "weft/checkpoint.h"
#include "weft/quantize.h"

// One row of the table in quantize.cc a format; each is written by a function of its own.
namespace weft::engine {

struct QuantizeRequest {
  std::shared_ptr<const Checkpoint> checkpoint;  ///< null where steps of a recipe made the model
  std::string model;  ///< as the user wrote it
  std::filesystem::path output;
  std::string argument;  ///< of the format: "Q4_K_M" of "gguf:Q4_K_M"; may be empty
  const QuantizeOptions& options;
  LazyModel* made = nullptr;                              ///< by steps of a recipe; taken
  std::vector<JournalHead::Ingredient> ingredients = {};  ///< that a stopped job must have had, beside its own
};

/// Quantizes what steps of a recipe made, as they make it. Errors: those of weft::quantize.
[[nodiscard]] QuantizeReport quantize_made(LazyModel model, const std::filesystem::path& output, const QuantizeOptions& options,
                                           std::vector<JournalHead::Ingredient> ingredients);

// quantize_gguf.cc
[[nodiscard]] QuantizeReport quantize_gguf(const QuantizeRequest& request);
// quantize_packed.cc: a folder in the layout of that name.
[[nodiscard]] QuantizeReport quantize_packed(const char* format, const QuantizeRequest& request);

}  // namespace weft::engine
