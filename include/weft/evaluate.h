#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/calibrate.h"
#include "weft/forward.h"

namespace weft {

/// Rounds what linear layers read (not routers, not the head), to see what a quantizer of activations would cost: nothing is faster for it.
struct ActivationOptions {
  /// "int8", "int4", any from int2 to int16 (symmetric), or "fp8" (E4M3), with a scale for each token; ":N" behind it: for each N channels of a
  /// token. Empty: what layers read stays as it is.
  std::string numbers;
  double clip = 1;     ///< of the largest value under a scale: what is beyond becomes the largest number
  int ranges = 0;      ///< of each layer, for so many groups of channels with ranges alike on `text` (DGQ), which stay; 1: one; 0: scales as above
  std::string shares;  ///< of attention: "log4", powers of two of the largest, the first key's left out, or "int4", even steps; 1 to 6 bits
  CalibrationText text;
};

/// How a text is scored: encoded whole, cut into windows of `window` tokens that begin `stride` tokens apart, each run alone. Of the first all tokens
/// but the first count; of a later one those that the window before did not reach (all but the first where none overlap). Only full windows.
struct PerplexityOptions : RunOptions {
  std::uint64_t window = 0;       ///< 0: the model's context
  std::uint64_t stride = 0;       ///< 0: the window
  std::uint64_t num_windows = 0;  ///< of each text; 0: all
  bool bos = false;               ///< the tokenizer's first token stands before each window; the same tokens count
  ActivationOptions activations;  ///< of the model, not of the one that it is compared with
};

/// How near a model is to another, token by token of the same text.
struct Closeness {
  double kl_mean = 0;  ///< divergence of the model from the other, in nats
  double kl_p99 = 0;
  double top1_agreement = 0;  ///< share of positions with the same likeliest token
  double delta_nll = 0;       ///< the model's less the other's
  std::array<double, 2> delta_ci95 = {};
};

struct TextScore {
  std::filesystem::path file;
  std::uint64_t stream_tokens = 0;  ///< of the whole text
  std::uint64_t num_windows = 0;
  std::uint64_t num_tokens = 0;  ///< scored
  std::uint64_t num_bytes = 0;   ///< of the text that they stand for
  double nll_per_token = 0;
  double perplexity = 0;
  double bits_per_byte = 0;
  std::array<double, 2> ci95 = {};  ///< of the perplexity, from how windows differ
  std::vector<double> window_nll;   ///< mean of each window
  std::optional<Closeness> closeness;
};

struct PerplexityReport {
  std::uint64_t window = 0, stride = 0, num_windows = 0;  ///< num_windows: of the text that has most
  bool bos = false;
  std::vector<TextScore> texts;
  double tokens_per_second = 0;  ///< run through the model, loading not counted
  std::vector<std::string> warnings;
};
/// against: another model with the same tokenizer; empty for none. Errors: invalid_argument for an empty text, one shorter than a window, a tokenizer
/// of another model.
[[nodiscard]] WEFT_API PerplexityReport evaluate_texts(std::string_view model, std::span<const std::filesystem::path> texts, std::string_view against,
                                                       const PerplexityOptions& options = {});
/// Throws what evaluate_texts would say of these texts and options, without running the model. To be called before work that takes long.
WEFT_API void check_texts(std::string_view model, std::span<const std::filesystem::path> texts, const PerplexityOptions& options = {});

struct ImageOptions : RunOptions {
  std::string transform;  ///< "" or "same", "rot90", "invert", "mirror", "noise", "blur", "contrast", "pixelate"
};
struct ImageReport {
  std::uint64_t num_images = 0;
  double accuracy = 0;
  double loss = 0;  ///< mean cross-entropy in nats
  double images_per_second = 0;
  std::vector<std::string> warnings;
};
/// images, labels: idx files, gzipped or not. Errors: corrupt, invalid_argument for images that the network does not take.
[[nodiscard]] WEFT_API ImageReport evaluate_images(std::string_view model, const std::filesystem::path& images, const std::filesystem::path& labels,
                                                   const ImageOptions& options = {});

struct ChoiceScore {
  std::uint64_t answer = 0;
  std::uint64_t chosen = 0;             ///< by log-likelihood
  std::uint64_t chosen_normalised = 0;  ///< by log-likelihood per byte
  std::vector<double> log_likelihoods;
};
struct ChoiceReport {
  double accuracy = 0;
  double accuracy_normalised = 0;
  std::vector<ChoiceScore> questions;
  double tokens_per_second = 0;
  std::vector<std::string> warnings;
};
/// file: JSON lines {"prompt", "choices": [...], "answer": index}. A choice is what the tokens of prompt and choice together have beyond the
/// prompt's.
[[nodiscard]] WEFT_API ChoiceReport evaluate_choices(std::string_view model, const std::filesystem::path& file, const RunOptions& options = {});

}  // namespace weft
