#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/forward.h"

namespace weft {

/// How the next token is chosen. Steps in this order: repetition penalty, temperature, top-k, top-p, min-p.
struct Sampling {
  double temperature = 1;         ///< 0: always the likeliest
  std::uint64_t top_k = 0;        ///< 0: all
  double top_p = 1;               ///< the likeliest tokens that together have this share
  double min_p = 0;               ///< tokens with at least this share of the likeliest one's
  double repetition_penalty = 1;  ///< divides positive and multiplies negative logits of tokens that were there
};

struct GenerateOptions : RunOptions {
  std::uint64_t max_tokens = 128;
  std::optional<Sampling> sampling;  ///< absent: what generation_config.json says when it wants draws, else greedy
  bool greedy = false;
  std::vector<std::string> stops;                 ///< texts that end the generation; not part of it
  bool ignore_end = false;                        ///< go on behind the model's end token
  std::function<void(std::string_view)> on_text;  ///< text as it comes
};

struct Generated {
  std::string text;                ///< empty where the model has no tokenizer
  std::vector<std::uint32_t> ids;  ///< the new tokens
  std::string finish_reason;       ///< "length", "end" (an end token), "stop" (a stop text)
  std::uint64_t prompt_tokens = 0;
  double prefill_tokens_per_second = 0;
  double decode_tokens_per_second = 0;
};

/// A loaded model that writes. Not thread-safe.
class WEFT_API Generator {
 public:
  Generator(std::string_view model, const GenerateOptions& options);
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  /// Continues a text (special_tokens: with those that the tokenizer puts before a text), or tokens. Errors: invalid_argument for an empty prompt.
  [[nodiscard]] Generated generate(std::string_view prompt, bool special_tokens = true);
  [[nodiscard]] Generated generate(std::span<const std::uint32_t> ids);
  /// Answers a message, written as the model's chat template does; system: what stands before it, empty for nothing. Errors: not_found without a template,
  /// those of the template.
  [[nodiscard]] Generated answer(std::string_view message, std::string_view system = {});
  [[nodiscard]] std::span<const std::string> warnings() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft
