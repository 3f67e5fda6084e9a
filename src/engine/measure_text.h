#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "measure/table.h"
#include "weft/measure.h"

// What a model does with texts: one forward pass over windows of tokens, looked into while it runs.
namespace weft::engine {

/// Hidden states of a few windows, kept to be compared with another model's.
struct TextStreams {
  std::vector<std::uint32_t> ids;
  std::vector<std::vector<float>> points;       ///< embedding, output of each block, after the final norm: [rows, hidden]
  std::vector<std::vector<float>> down_inputs;  ///< of each layer: [rows, inner]; empty where there is none
  std::int64_t rows = 0, hidden = 0;
};

/// Runs the model over options.texts and adds what that shows. Errors: those of opening and running; a text too short for anything is refused, one
/// shorter than a window is told in warnings.
[[nodiscard]] TextStreams measure_text(const std::string& model, const measure::Selection& selection, const MeasureOptions& options,
                                       MeasuredModel& out, std::vector<std::string>& warnings);
/// The group `cka` of two models over the same tokens.
void compare_streams(const TextStreams& base, const TextStreams& model, ModelComparison& out);
/// The group `barrier`: the loss along the straight line between two models.
void measure_barrier(const std::string& base, const std::string& model, const MeasureOptions& options, ModelComparison& out);

/// Adds the texts of tokens to the ids of decoded neurons, where the model has a tokenizer.
void name_decoded_tokens(const std::string& model, MeasuredModel& out);

}  // namespace weft::engine
