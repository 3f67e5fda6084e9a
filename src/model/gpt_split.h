#pragma once
#include <optional>
#include <string_view>
#include <vector>

#include "model/text_pattern.h"

// Hand-written scanners for the splits that nearly every byte-level BPE uses: they are several times faster than any regular-expression engine,
// know Unicode 16, and never backtrack more than one step.
namespace weft::model {

enum class GptSplit {
  gpt2,
  llama3,  ///< numbers in groups of up to three
  qwen2,   ///< numbers digit by digit
  llama3_marks,
  qwen2_marks,  ///< marks count as letters
};

/// The split whose expression this is.
[[nodiscard]] std::optional<GptSplit> known_split(std::string_view regex) noexcept;
/// The expression of GPT-2, which ByteLevel uses.
[[nodiscard]] std::string_view gpt2_regex() noexcept;
/// Appends the parts of a text of valid UTF-8; all are matches and cover it.
void cut_gpt(GptSplit split, std::string_view text, std::vector<TextPattern::Part>& parts);

}  // namespace weft::model
