// Tokenizing ordinary English, on one core.
//
//   tokenizer_bench [FILE_WITH_TEXT TOKENIZER...] [--benchmark_filter=REGEX] [--benchmark_repetitions=10]
//
// Without arguments: CONTRIBUTING.md and models/tiny-base of the checkout it runs in. TOKENIZER is a folder, a tokenizer.json or a tokenizer.model.
// The text is repeated to 4 MiB and tokenized in pieces of 64 KiB that end at a line, as a file is read. bytes_per_second counts the bytes of the
// text. The ids are decoded and compared with the text where the tokenizer keeps it.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "model/tokenizer.h"
#include "weft/error.h"

namespace {

using weft::model::Tokenizer;

std::vector<std::string_view> lines_of(std::string_view text) {
  constexpr std::size_t kPiece = 64 * 1024;
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    std::size_t end = std::min(kPiece, text.size());
    if (const std::size_t newline = text.rfind('\n', end - 1); end < text.size() && newline != std::string_view::npos) end = newline + 1;
    pieces.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return pieces;
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) arguments = {"CONTRIBUTING.md", "models/tiny-base"};
  if (arguments.size() < 2) {
    std::fprintf(stderr, "usage: tokenizer_bench [FILE_WITH_TEXT TOKENIZER...]\n");
    return 2;
  }
  try {
    constexpr std::uint64_t kMaxText = 1 << 30;
    const std::string once = weft::read_text_file(arguments[0], kMaxText);
    std::string text;
    while (text.size() < 4 << 20) text += once;
    const std::vector<std::string_view> pieces = lines_of(text);
    std::vector<Tokenizer> tokenizers;
    for (std::size_t i = 1; i < arguments.size(); ++i) tokenizers.push_back(Tokenizer::open(arguments[i]));
    for (std::size_t t = 0; t < tokenizers.size(); ++t) {
      benchmark::RegisterBenchmark(("encode/" + arguments[t + 1]).c_str(), [&, t](benchmark::State& state) {
        std::size_t num_tokens = 0;
        for (auto step : state) {
          num_tokens = 0;
          for (const std::string_view piece : pieces) num_tokens += tokenizers[t].ids(piece, false).size();
          benchmark::DoNotOptimize(num_tokens);
        }
        state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(text.size()));
        state.counters["bytes_per_token"] = static_cast<double>(text.size()) / static_cast<double>(num_tokens);
        state.counters["exact"] = tokenizers[t].decode(tokenizers[t].ids(pieces[0], false)) == pieces[0] ? 1 : 0;
      });
    }
    benchmark::RunSpecifiedBenchmarks();
  } catch (const weft::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
