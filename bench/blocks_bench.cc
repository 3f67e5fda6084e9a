// Blocks of quantized values to float32 beside a plain copy, on one core.
//
//   blocks_bench [--benchmark_filter=REGEX] [--benchmark_repetitions=10] [--benchmark_out=FILE.json]
//
// As a merge or a conversion reads them: 32768 values at a time, from 16 million values of blocks that come from memory, into a buffer that the next
// step finds in the cache; `copy` moves 64 MiB of float32 in memory, 128 KiB at a time. bytes_per_second counts stored bytes read and float32 bytes
// written; `share` is its ratio to that of the copy, measured first. Blocks are random, with scales of the size that weights have, and each type's
// values are checked against a second decoding, one block at a time, before it is timed. Choose the instruction set with WEFT_SIMD.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "codec/block_codec.h"
#include "math/targets.h"

namespace {

using namespace weft;
using benchmark::State;

constexpr std::size_t kPiece = 32768;
constexpr std::size_t kElements = std::size_t{1} << 24;

double copy_bytes_per_second = 0;

std::vector<std::uint8_t> random_blocks(const codec::BlockCodec& codec) {
  std::vector<std::uint8_t> blocks(kElements / codec.block_elements * codec.block_bytes);
  std::uint64_t state = codec.ggml_id;
  for (std::uint8_t& byte : blocks) byte = static_cast<std::uint8_t>((state = state * 6364136223846793005ULL + 1442695040888963407ULL) >> 56);
  // Half floats of about 0.01, so that nothing is infinite.
  for (std::size_t at = 0; at < blocks.size(); at += codec.block_bytes)
    for (const codec::BlockField& field : codec.fields)
      for (std::size_t i = 0; i < field.count && field.size_bytes == 2; ++i) {
        blocks[at + field.offset_bytes + 2 * i + 1] = static_cast<std::uint8_t>(0x20 | (blocks[at + field.offset_bytes + 2 * i + 1] & 3));
      }
  return blocks;
}

void copy(State& state) {
  const std::vector<float> in(kElements, 1.5F);
  std::vector<float> out(kElements);
  std::size_t at = 0;
  std::size_t pieces = 0;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    std::memcpy(out.data() + at, in.data() + at, kPiece * sizeof(float));
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
    at = (at + kPiece) % kElements;
    ++pieces;
  }
  const double bytes = static_cast<double>(pieces) * kPiece * 2 * sizeof(float);
  copy_bytes_per_second = std::max(copy_bytes_per_second, bytes / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
}

void decode(State& state, const codec::BlockCodec& codec) {
  const std::vector<std::uint8_t> blocks = random_blocks(codec);
  const std::size_t piece_bytes = kPiece / codec.block_elements * codec.block_bytes;
  std::vector<float> out(kPiece), one(codec.block_elements);
  codec.decode(blocks.data(), kPiece / codec.block_elements, out.data());
  for (std::size_t b = 0; b < kPiece / codec.block_elements; ++b) {
    codec.decode(blocks.data() + b * codec.block_bytes, 1, one.data());
    if (std::memcmp(one.data(), out.data() + b * codec.block_elements, one.size() * sizeof(float)) != 0) {
      std::fprintf(stderr, "%s decodes otherwise block by block\n", std::string(codec.name).c_str());
      std::exit(1);
    }
  }
  std::size_t at = 0;
  std::size_t pieces = 0;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    codec.decode(blocks.data() + at, kPiece / codec.block_elements, out.data());
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
    at = (at + piece_bytes) % blocks.size();
    ++pieces;
  }
  const double bytes = static_cast<double>(pieces) * (kPiece * sizeof(float) + static_cast<double>(piece_bytes));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
  state.SetItemsProcessed(static_cast<std::int64_t>(pieces * kPiece));
  if (copy_bytes_per_second > 0) state.counters["share"] = bytes / seconds / copy_bytes_per_second;
}

}  // namespace

int main(int argc, char** argv) {
  math::apply_target_from_environment();
  benchmark::AddCustomContext("simd", math::active_target());
  benchmark::RegisterBenchmark("copy", copy);
  for (const codec::BlockCodec& codec : codec::block_codecs())
    benchmark::RegisterBenchmark(("decode/" + std::string(codec.name)).c_str(), [&codec](State& state) { decode(state, codec); });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
