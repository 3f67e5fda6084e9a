#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <numbers>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "engine/activation_rounding.h"
#include "engine/intervals.h"
#include "engine/running_model.h"
#include "math/neural.h"
#include "weft/error.h"
#include "weft/evaluate.h"

namespace weft {
namespace {

using engine::RunningModel;
using model::TokenChunk;

constexpr std::uint64_t kMaxTextBytes = std::uint64_t{1} << 30;
constexpr std::size_t kLogitRows = 64;

/// A text as tokens.
struct Stream {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint64_t> ends;  ///< byte of the text behind each token
};

Stream read_stream(RunningModel& running, const std::filesystem::path& file) {
  const std::string text = read_text_file(file, kMaxTextBytes);
  if (text.empty()) throw Error(ErrorCode::invalid_argument, "the text is empty", {.file = file.string()}, "give a file with text in it");
  model::EncodeOptions options;
  options.add_special_tokens = false;
  options.offsets = true;
  model::Encoding encoding = running.tokenizer("a text").encode(text, options);
  Stream stream;
  stream.ids = std::move(encoding.ids);
  // Offsets count code points.
  std::vector<std::uint32_t> starts;
  starts.reserve(text.size() + 1);
  for (std::size_t i = 0; i < text.size(); ++i)
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) starts.push_back(static_cast<std::uint32_t>(i));
  starts.push_back(static_cast<std::uint32_t>(text.size()));
  stream.ends.reserve(stream.ids.size());
  std::uint64_t end = 0;
  for (const auto& offset : encoding.offsets) {
    end = std::max<std::uint64_t>(end, starts[std::min<std::size_t>(offset.second, starts.size() - 1)]);
    stream.ends.push_back(end);
  }
  return stream;
}

/// Tokens [begin, end) of the stream, of which those from `scored` on count.
struct Window {
  std::size_t begin = 0, end = 0, scored = 0;
};

std::vector<Window> windows_of(const Stream& stream, const std::filesystem::path& file, const PerplexityReport& protocol, std::uint64_t wanted) {
  std::vector<Window> windows;
  const auto size = static_cast<std::size_t>(protocol.window), stride = static_cast<std::size_t>(protocol.stride);
  if (stream.ids.size() < size)
    throw Error(ErrorCode::invalid_argument, fmt::format("the text has {} tokens, less than one window of {}", stream.ids.size(), size),
                {.file = file.string()}, "give more text, or choose a smaller window (--window; of 'weft quantize' --eval-window)");
  for (std::size_t begin = 0; begin + size <= stream.ids.size() && (wanted == 0 || windows.size() < wanted); begin += stride) {
    const std::size_t fresh = begin == 0 || stride >= size ? 1 : size - stride;
    windows.push_back({begin, begin + size, begin + fresh});
  }
  return windows;
}

/// Windows as they will be cut, and no texts yet.
PerplexityReport protocol_of(const RunningModel& running, const PerplexityOptions& options) {
  PerplexityReport report;
  report.window = options.window > 0 ? options.window : static_cast<std::uint64_t>(running.config().context);
  report.stride = options.stride > 0 ? options.stride : report.window;
  report.bos = options.bos;
  if (report.window < 2) throw Error(ErrorCode::invalid_argument, "a window of one token scores nothing", {.key = "--window"}, "give at least 2");
  if (report.stride > report.window)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the stride {} is above the window {}: tokens between would be left out", report.stride, report.window),
                {.key = "--stride"}, "give at most the window");
  return report;
}

/// Sums over the tokens of one window.
struct WindowScore {
  double nll = 0;
  double other_nll = 0;
  std::uint64_t agreeing = 0;
};

/// Two models on the same tokens, or one.
class Scorer {
 public:
  Scorer(RunningModel& model, RunningModel* other, std::optional<std::uint32_t> bos) : model_(model), other_(other), bos_(bos) {}

  std::vector<double> divergences;  ///< of all scored tokens, when there are two

  std::vector<WindowScore> score(const Stream& stream, std::span<const Window> windows) {
    std::vector<std::vector<std::uint32_t>> texts;
    std::vector<TokenChunk> chunks;
    for (const Window& window : windows) {
      std::vector<std::uint32_t>& ids = texts.emplace_back();
      if (bos_) ids.push_back(*bos_);
      ids.insert(ids.end(), stream.ids.begin() + static_cast<std::ptrdiff_t>(window.begin),
                 stream.ids.begin() + static_cast<std::ptrdiff_t>(window.end));
    }
    for (const auto& ids : texts) chunks.push_back({nullptr, ids, {}});
    const std::vector<float> x = model_.network().run(chunks);
    const std::vector<float> y = other_ == nullptr ? std::vector<float>{} : other_->network().run(chunks);

    std::vector<WindowScore> scores(windows.size());
    std::size_t row = 0;
    for (std::size_t w = 0; w < windows.size(); ++w) {
      // The row before a token predicts it.
      const std::size_t shift = bos_ ? 1 : 0;
      const std::size_t first = windows[w].scored - windows[w].begin + shift - 1, last = windows[w].end - windows[w].begin + shift - 1;
      for (std::size_t r = first; r < last; r += kLogitRows) {
        const std::size_t count = std::min(kLogitRows, last - r);
        score_rows(x, y, row + r, count, {texts[w].data() + r + 1, count}, scores[w]);
      }
      row += texts[w].size();
    }
    return scores;
  }

 private:
  static void logits_of(RunningModel& model, const std::vector<float>& x, std::size_t row, std::size_t count, std::vector<float>& out) {
    const auto hidden = static_cast<std::size_t>(model.config().hidden);
    out.resize(count * static_cast<std::size_t>(model.config().vocab));
    model.network().logits({x.data() + row * hidden, count, hidden, hidden}, out);
  }

  void score_rows(const std::vector<float>& x, const std::vector<float>& y, std::size_t row, std::size_t count,
                  std::span<const std::uint32_t> targets, WindowScore& score) {
    logits_of(model_, x, row, count, logits_);
    if (other_ != nullptr) logits_of(*other_, y, row, count, other_logits_);
    struct Token {
      double nll = 0, other_nll = 0, divergence = 0;
      bool agrees = false;
    };
    std::vector<Token> tokens(count);
    const std::size_t vocab = logits_.size() / count, other_vocab = other_ == nullptr ? 0 : other_logits_.size() / count;
    model_.network().team().for_each((count + 3) / 4, [&](std::size_t unit, int) {
      for (std::size_t t = unit * 4; t < std::min(count, unit * 4 + 4); ++t) {
        Token& token = tokens[t];
        const float* logits = logits_.data() + t * vocab;
        const double norm = math::log_sum_exp(logits, vocab);
        token.nll = norm - static_cast<double>(logits[targets[t]]);
        if (other_ == nullptr) continue;
        const float* others = other_logits_.data() + t * other_vocab;
        const double other_norm = math::log_sum_exp(others, other_vocab);
        token.other_nll = other_norm - static_cast<double>(others[targets[t]]);
        const std::size_t shared = std::min(vocab, other_vocab);
        for (std::size_t v = 0; v < shared; ++v) {
          const double log_other = static_cast<double>(others[v]) - other_norm;
          token.divergence += std::exp(log_other) * (log_other - (static_cast<double>(logits[v]) - norm));
        }
        token.agrees = std::max_element(logits, logits + vocab) - logits == std::max_element(others, others + other_vocab) - others;
      }
    });
    for (const Token& token : tokens) {
      score.nll += token.nll;
      score.other_nll += token.other_nll;
      score.agreeing += token.agrees ? 1 : 0;
      if (other_ != nullptr) divergences.push_back(std::max(token.divergence, 0.0));
    }
  }

  RunningModel& model_;
  RunningModel* other_;
  std::optional<std::uint32_t> bos_;
  std::vector<float> logits_, other_logits_;
};

Closeness closeness_of(std::span<const WindowScore> scores, std::span<const Window> windows, std::vector<double> divergences,
                       std::uint64_t num_tokens) {
  Closeness close;
  double sum = 0;
  for (const double value : divergences) sum += value;
  close.kl_mean = sum / static_cast<double>(divergences.size());
  const auto rank = static_cast<std::size_t>(std::ceil(0.99 * static_cast<double>(divergences.size()))) - 1;
  std::nth_element(divergences.begin(), divergences.begin() + static_cast<std::ptrdiff_t>(rank), divergences.end());
  close.kl_p99 = divergences[rank];
  std::uint64_t agreeing = 0;
  double delta = 0;
  std::vector<double> deltas, weights;
  for (std::size_t w = 0; w < scores.size(); ++w) {
    agreeing += scores[w].agreeing;
    delta += scores[w].nll - scores[w].other_nll;
    const auto tokens = static_cast<double>(windows[w].end - windows[w].scored);
    deltas.push_back((scores[w].nll - scores[w].other_nll) / tokens);
    weights.push_back(tokens);
  }
  close.top1_agreement = static_cast<double>(agreeing) / static_cast<double>(num_tokens);
  close.delta_nll = delta / static_cast<double>(num_tokens);
  close.delta_ci95 = engine::mean_interval95(deltas, weights);
  return close;
}

}  // namespace

PerplexityReport evaluate_texts(std::string_view model_name, std::span<const std::filesystem::path> texts, std::string_view against,
                                const PerplexityOptions& options) {
  if (texts.empty()) throw Error(ErrorCode::invalid_argument, "no text is given", {.key = "--text"}, "name one file or more");
  RunningModel running(model_name, options, engine::make_activation_rounding(model_name, options.activations, options));
  std::unique_ptr<RunningModel> other;
  if (!against.empty()) other = std::make_unique<RunningModel>(against, options);
  for (RunningModel* each : {&running, other.get()})
    if (each != nullptr && (!each->network().has_head() || each->config().kind != model::NetworkKind::decoder))
      throw Error(ErrorCode::unsupported, "perplexity needs a model that predicts the next token", {.file = each->files().folder.string()},
                  "an encoder sees the tokens that it would have to predict");

  PerplexityReport report = protocol_of(running, options);
  std::optional<std::uint32_t> bos;
  if (options.bos) {
    bos = running.tokenizer("--bos").named_id("bos_token");
    if (!bos) throw Error(ErrorCode::invalid_argument, "the tokenizer names no token that begins a text", {.key = "--bos"}, "leave --bos out");
  }
  if (static_cast<std::int64_t>(report.window + (bos ? 1 : 0)) > running.config().context)
    running.warn(
        fmt::format("windows of {} tokens are longer than the model's context of {}", report.window + (bos ? 1 : 0), running.config().context));

  double seconds = 0;
  std::uint64_t tokens_run = 0, bytes_done = 0;
  for (const std::filesystem::path& file : texts) {
    const Stream stream = read_stream(running, file);
    if (other && read_stream(*other, file).ids != stream.ids)
      throw Error(ErrorCode::invalid_argument, "the two models split the text into different tokens, so they cannot be compared token by token",
                  {.file = file.string(), .key = "--against"}, "evaluate each alone and compare bits per byte");
    TextScore score;
    score.file = file;
    score.stream_tokens = stream.ids.size();
    const std::vector<Window> windows = windows_of(stream, file, report, options.num_windows);
    score.num_windows = windows.size();
    report.num_windows = std::max(report.num_windows, score.num_windows);

    Scorer scorer(running, other.get(), bos);
    std::vector<WindowScore> scores;
    const std::size_t at_once = std::max<std::size_t>(1, running.rows_at_once() / static_cast<std::size_t>(report.window));
    const auto started = std::chrono::steady_clock::now();
    for (std::size_t w = 0; w < windows.size(); w += at_once) {
      running.check_cancelled();
      const std::span<const Window> batch(windows.data() + w, std::min(at_once, windows.size() - w));
      const std::vector<WindowScore> more = scorer.score(stream, batch);
      scores.insert(scores.end(), more.begin(), more.end());
      tokens_run += batch.size() * report.window;
      bytes_done = stream.ends[batch.back().end - 1];
      if (options.on_progress)
        options.on_progress({"evaluating", bytes_done, stream.ends[windows.back().end - 1],
                             seconds + std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count()});
    }
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();

    double nll = 0;
    std::vector<double> weights;
    for (std::size_t w = 0; w < windows.size(); ++w) {
      const std::size_t count = windows[w].end - windows[w].scored;
      nll += scores[w].nll;
      score.num_tokens += count;
      score.num_bytes += stream.ends[windows[w].end - 1] - (windows[w].scored == 0 ? 0 : stream.ends[windows[w].scored - 1]);
      score.window_nll.push_back(scores[w].nll / static_cast<double>(count));
      weights.push_back(static_cast<double>(count));
    }
    score.nll_per_token = nll / static_cast<double>(score.num_tokens);
    score.perplexity = std::exp(score.nll_per_token);
    score.bits_per_byte = nll / std::numbers::ln2 / static_cast<double>(std::max<std::uint64_t>(score.num_bytes, 1));
    const auto [low, high] = engine::mean_interval95(score.window_nll, weights);
    score.ci95 = {std::exp(low), std::exp(high)};
    if (other) score.closeness = closeness_of(scores, windows, std::move(scorer.divergences), score.num_tokens);
    report.texts.push_back(std::move(score));
  }
  report.tokens_per_second = seconds > 0 ? static_cast<double>(tokens_run) / seconds : 0;
  report.warnings = running.warnings();
  if (other) report.warnings.insert(report.warnings.end(), other->warnings().begin(), other->warnings().end());
  return report;
}

void check_texts(std::string_view model, std::span<const std::filesystem::path> texts, const PerplexityOptions& options) {
  RunningModel running(model, options);
  const PerplexityReport protocol = protocol_of(running, options);
  for (const std::filesystem::path& file : texts) static_cast<void>(windows_of(read_stream(running, file), file, protocol, options.num_windows));
}

}  // namespace weft
