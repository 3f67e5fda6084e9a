// Products with packed matrices beside what the machine can do: reading as many bytes, and oneDNN's bfloat16 products of the same shape.
//
//   packed_bench [--threads N] [--megabytes N] [--turns N] [--json]
//
// Decode: one row of x with random matrices [rows, 4096] that take the given megabytes packed (more than the last-level cache keeps would be 512), in
// bytes of codes and scales a second; beside it reading as many bytes, the best of three loops. Prefill: 512 rows of x with a matrix [8192, 2048], in
// multiplications and additions a second, beside oneDNN's bfloat16 and 8-bit products with weights in its own layout. All in turns in one run; the
// median and the spread of the turns are printed. Choose instructions with WEFT_SIMD or --target.
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "read_memory.h"

#include "base/thread_team.h"
#include "math/gemm.h"
#include "math/packed_matrix.h"
#include "math/reduce.h"
#include "weft/version.h"

namespace {

using namespace weft;
using math::PackedFormat;
using math::PackedInput;
using math::PackedInputs;
using math::PackedMatrix;

constexpr std::size_t kColumns = 4096;
constexpr std::size_t kPrefillTokens = 512, kPrefillRows = 8192, kPrefillColumns = 2048;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Kind {
  const char* name;
  PackedFormat format;
  std::size_t block_bytes, block_elements;  ///< of GGUF's types
  PackedInputs inputs;
};

std::vector<Kind> kinds() {
  std::vector<Kind> all;
  const auto add = [&all](const char* name, std::size_t bytes, std::size_t elements) {
    PackedFormat format;
    if (math::find_packed_format(name, format)) all.push_back({name, format, bytes, elements, PackedInputs::rounded});
  };
  add("Q8_0", 34, 32);
  add("Q4_0", 18, 32);
  add("Q4_K", 144, 256);
  add("Q6_K", 210, 256);
  add("Q5_K", 176, 256);
  add("Q3_K", 110, 256);
  add("Q2_K", 84, 256);
  PackedFormat int4{math::PackedType::integer, 4, 128, DType::f16, math::PackedZero::middle, {}};
  all.push_back({"int4 g128", int4, 0, 0, PackedInputs::fine});
  PackedFormat zeros = int4;
  zeros.zero = math::PackedZero::bytes;
  all.push_back({"int4 g128 zeros", zeros, 0, 0, PackedInputs::fine});
  PackedFormat nf4{math::PackedType::table, 4, 64, DType::f32, math::PackedZero::middle, {}};
  for (std::size_t i = 0; i < 16; ++i) nf4.levels[i] = static_cast<float>(i) / 8 - 1;
  all.push_back({"NF4 g64", nf4, 0, 0, PackedInputs::exact});
  all.push_back({"FP8 rows", {math::PackedType::e4m3, 8, kColumns, DType::bf16, math::PackedZero::middle, {}}, 0, 0, PackedInputs::exact});
  return all;
}

/// Random codes, small scales. Rows repeat after a while: nothing here depends on what they are.
PackedMatrix random_matrix(const Kind& kind, std::size_t rows, std::size_t columns, ThreadTeam& team) {
  PackedFormat format = kind.format;
  if (format.group == kColumns) format.group = columns;
  PackedMatrix matrix(format, rows, columns);
  constexpr std::size_t kDifferent = 64;
  std::mt19937 random(1);
  std::vector<std::vector<std::uint8_t>> sources;
  for (std::size_t i = 0; i < kDifferent; ++i) {
    std::vector<std::uint8_t>& bytes = sources.emplace_back(kind.block_bytes == 0 ? columns : columns / kind.block_elements * kind.block_bytes);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    if (kind.block_bytes == 0)
      for (std::uint8_t& byte : bytes) byte &= format.type == math::PackedType::e4m3 ? 0x3F : 15;
    else
      for (std::size_t b = 0; b < bytes.size(); b += kind.block_bytes)  // scales stand first or last
        for (const std::size_t at : {std::size_t{0}, std::size_t{2}, kind.block_bytes - 2, kind.block_bytes - 4})
          bytes[b + at + 1] = static_cast<std::uint8_t>((bytes[b + at + 1] & 0x83) | 0x10);
  }
  const std::vector<float> scales(columns / 32, 0.01F), zeros(columns / 32, 7.0F);
  team.for_each((rows + 255) / 256, [&](std::size_t unit, int) {
    for (std::size_t r = unit * 256; r < std::min(rows, unit * 256 + 256); ++r)
      if (kind.block_bytes == 0)
        matrix.put_codes(r, sources[r % kDifferent].data(), scales.data(), zeros.data());
      else
        matrix.put_blocks(r, sources[r % kDifferent].data());
  });
  return matrix;
}

void multiply(const PackedMatrix& matrix, PackedInputs kind, const float* x, std::size_t tokens, float* out, ThreadTeam& team) {
  PackedInput input(kind, tokens, matrix.columns());
  team.for_each(input.num_blocks(), [&](std::size_t block, int) { input.fill(block, x, matrix.columns()); });
  const std::size_t tiles = matrix.num_tiles(), share = tokens > 16 ? 4
                                                                    : (tiles + 4 * static_cast<std::size_t>(team.num_threads()) - 1) /
                                                                          (4 * static_cast<std::size_t>(team.num_threads()));
  team.for_each((tiles + share - 1) / share, [&](std::size_t unit, int) {
    math::packed_products(matrix, unit * share, std::min(tiles, unit * share + share), input, out, matrix.rows());
  });
}

/// oneDNN's product of one shape, weights packed as it likes, on all threads of its own.
class Product {
 public:
  using Type = dnnl::memory::data_type;
  Product(std::size_t m, std::size_t n, std::size_t k, Type type_a, Type type_b, Type type_c)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using Tag = dnnl::memory::format_tag;
    const auto dim = [](std::size_t value) { return static_cast<dnnl::memory::dim>(value); };
    const dnnl::memory::desc a({dim(m), dim(k)}, type_a, Tag::ab), b({dim(k), dim(n)}, type_b, Tag::any), c({dim(m), dim(n)}, type_c, Tag::ab);
    const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(a, b, c), engine_);
    primitive_ = dnnl::matmul(desc);
    const dnnl::memory ma(a, engine_), mb(desc.weights_desc(), engine_), mc(c, engine_);
    std::memset(ma.get_data_handle(), 0x3C, a.get_size());
    std::memset(mb.get_data_handle(), 0x3C, desc.weights_desc().get_size());
    arguments_ = {{DNNL_ARG_SRC, ma}, {DNNL_ARG_WEIGHTS, mb}, {DNNL_ARG_DST, mc}};
  }
  void run() {
    primitive_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

/// oneDNN's own threads are OpenMP's.
void use_threads(int count) {
  if (auto* set = reinterpret_cast<void (*)(int)>(::dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(count);
}

struct Measured {
  std::string name;
  std::function<void()> work;
  double amount;
  const char* unit;
  std::vector<double> seconds = {};
  [[nodiscard]] double rate() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return amount / sorted[sorted.size() / 2];
  }
  [[nodiscard]] double spread() const {
    return (*std::max_element(seconds.begin(), seconds.end()) - *std::min_element(seconds.begin(), seconds.end())) * rate() / amount;
  }
};

void measure(std::vector<Measured>& all, long turns) {
  for (Measured& one : all) one.work();
  for (long turn = 0; turn < turns; ++turn)
    for (Measured& one : all) {
      const double begin = now();
      one.work();
      one.seconds.push_back(now() - begin);
    }
}

int run(int argc, char** argv) {
  int threads = 0;
  long megabytes = 512, turns = 7;
  bool json = false;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") json = true;
    if (i + 1 == argc) break;
    if (name == "--threads") threads = std::atoi(argv[i + 1]);
    if (name == "--megabytes") megabytes = std::atol(argv[i + 1]);
    if (name == "--turns") turns = std::atol(argv[i + 1]);
    if (name == "--target") math::use_only_packed_target(argv[i + 1]);
    if (name == "--only") only = argv[i + 1];
  }
  ThreadTeam team(threads);
  threads = team.num_threads();
  const auto bytes = static_cast<std::size_t>(megabytes) << 20;
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(std::max(kPrefillTokens * kPrefillColumns, 4 * kColumns));
  for (float& value : x) value = normal(random);
  std::vector<float> memory(bytes / 4 / 1024 * 1024, 1.0F), out;
  std::vector<double> sums(static_cast<std::size_t>(threads));
  const auto read = [&](auto&& body) {
    const std::size_t pieces = static_cast<std::size_t>(threads) * 4, share = memory.size() / pieces / 64 * 64;
    team.for_each(pieces,
                  [&](std::size_t piece, int worker) { sums[static_cast<std::size_t>(worker)] += body(memory.data() + piece * share, share); });
  };
  const double read_bytes = static_cast<double>(memory.size() * 4);
  if (!json)
    std::printf("%d threads, %s, %s; %ld MB a matrix\n", threads, math::active_packed_target().c_str(), math::gemm_library().c_str(), megabytes);
  else
    std::printf("{\"threads\": %d, \"target\": \"%s\", \"products\": \"%s\", \"commit\": \"%s\", \"decode\": {", threads,
                math::active_packed_target().c_str(), math::gemm_library().c_str(), std::string(commit()).c_str());
  bool first = true;
  for (const Kind& kind : kinds()) {
    if (!only.empty() && only != kind.name) continue;
    const std::size_t rows =
        static_cast<std::size_t>(static_cast<double>(bytes) / (static_cast<double>(math::packed_size(kind.format, 16, kColumns)) / 16)) / 16 * 16;
    const PackedMatrix matrix = random_matrix(kind, rows, kColumns, team);
    out.resize(4 * rows);
    std::vector<Measured> all;
    const double packed_bytes = static_cast<double>(matrix.size_bytes());
    all.push_back({"one row", [&] { multiply(matrix, kind.inputs, x.data(), 1, out.data(), team); }, packed_bytes * 1e-9, "GB/s"});
    all.push_back({"four rows", [&] { multiply(matrix, kind.inputs, x.data(), 4, out.data(), team); }, packed_bytes * 1e-9, "GB/s"});
    if (kind.inputs != PackedInputs::exact)
      all.push_back({"exact", [&] { multiply(matrix, PackedInputs::exact, x.data(), 1, out.data(), team); }, packed_bytes * 1e-9, "GB/s"});
    all.push_back({"read", [&] { read([](const float* from, std::size_t count) {
                                   return static_cast<double>(math::max_abs({from, count}));
                                 }); },
                   read_bytes * 1e-9, "GB/s"});
    all.push_back({"streams", [&] { read(bench::sum_of_streams); }, read_bytes * 1e-9, "GB/s"});
    all.push_back({"ahead", [&] { read(bench::sum_fetched_ahead); }, read_bytes * 1e-9, "GB/s"});
    measure(all, turns);
    const double best = std::max({all[all.size() - 1].rate(), all[all.size() - 2].rate(), all[all.size() - 3].rate()});
    if (json) {
      std::printf("%s\"%s\": {\"one_row\": %.2f, \"spread\": %.3f, \"four_rows\": %.2f, \"read\": %.2f, \"share\": %.3f}", first ? "" : ", ",
                  kind.name, all[0].rate(), all[0].spread(), all[1].rate(), best, all[0].rate() / best);
    } else {
      std::printf("  decode %-16s %6.1f GB/s (spread %3.0f %%), four rows %6.1f", kind.name, all[0].rate(), 100 * all[0].spread(), all[1].rate());
      if (kind.inputs != PackedInputs::exact) std::printf(", exact x %6.1f", all[2].rate());
      std::printf("; reading %6.1f: %3.0f %%\n", best, 100 * all[0].rate() / best);
    }
    std::fflush(stdout);
    first = false;
  }

  // Prefill
  using Type = Product::Type;
  use_threads(threads);
  Product bf16(kPrefillTokens, kPrefillRows, kPrefillColumns, Type::bf16, Type::bf16, Type::f32);
  Product int8(kPrefillTokens, kPrefillRows, kPrefillColumns, Type::u8, Type::s8, Type::s32);
  const double flops = 2.0 * static_cast<double>(kPrefillTokens * kPrefillRows * kPrefillColumns) * 1e-9;
  std::vector<PackedMatrix> matrices;
  std::vector<Measured> all;
  const auto dnnl_work = [&](Product& product) {
    use_threads(threads);
    product.run();
    use_threads(1);
  };
  all.push_back({"oneDNN bf16", [&] { dnnl_work(bf16); }, flops, "GFLOP/s"});
  all.push_back({"oneDNN 8 bits", [&] { dnnl_work(int8); }, flops, "GFLOP/s"});
  out.resize(kPrefillTokens * kPrefillRows);
  const std::vector<Kind> known = kinds();
  matrices.reserve(known.size());
  for (const Kind& kind : known) {
    if (kind.inputs == PackedInputs::exact || (!only.empty() && only != kind.name)) continue;
    matrices.push_back(random_matrix(kind, kPrefillRows, kPrefillColumns, team));
    const PackedMatrix& matrix = matrices.back();
    all.push_back({kind.name, [&matrix, &kind, &x, &out, &team] { multiply(matrix, kind.inputs, x.data(), kPrefillTokens, out.data(), team); }, flops,
                   "GFLOP/s"});
  }
  measure(all, turns);
  if (json) std::printf("}, \"prefill\": {");
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (json)
      std::printf("%s\"%s\": {\"rate\": %.1f, \"spread\": %.3f}", i == 0 ? "" : ", ", all[i].name.c_str(), all[i].rate(), all[i].spread());
    else
      std::printf("  prefill %-14s %7.1f GFLOP/s (spread %3.0f %%), %.2f times bfloat16\n", all[i].name.c_str(), all[i].rate(), 100 * all[i].spread(),
                  all[i].rate() / all[0].rate());
  }
  if (json) std::printf("}}\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
