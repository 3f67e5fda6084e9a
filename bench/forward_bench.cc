// A forward pass beside what the machine can do: oneDNN's own products of the same shapes, and reading memory.
//
//   forward_bench [--threads N] [--layers N] [--hidden N] [--ffn N] [--turns N] [--json]     bfloat16 weights and 8-bit ones
//
// The network is a Llama with random bfloat16 weights in memory, larger than the last-level cache unless told otherwise. Everything is measured in
// one run, in turns, and the median and the spread of the turns are printed: prefill of 512 tokens (multiplications and additions of the linear
// layers) beside oneDNN's bfloat16, float32 and 8-bit products of the same shapes with the weights in its own layout; decode of one token (bytes of
// the weights) beside reading as many bytes. Before it is timed, the fast path is compared with float32.
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "read_memory.h"

#include "base/thread_team.h"
#include "math/gemm.h"
#include "math/reduce.h"
#include "math/targets.h"
#include "model/network.h"
#include "weft/error.h"
#include "weft/version.h"

namespace {

using namespace weft;

constexpr std::size_t kTokens = 512;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Numbers around 0 of size 1/50, as bytes of bfloat16.
class RandomWeights final : public Checkpoint {
 public:
  explicit RandomWeights(const std::vector<TensorInfo>& tensors) {
    tensors_ = tensors;
    container_ = "memory";
    path_ = "random";
    files_.push_back({path_, 0});
    index_tensors();
    values_.resize(1 << 20);
    std::uint64_t state = 1;
    for (std::uint16_t& value : values_) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      const float number = (static_cast<float>(state >> 40) / 16777216.0F - 0.5F) * 0.04F;
      std::uint32_t bits;
      std::memcpy(&bits, &number, 4);
      value = static_cast<std::uint16_t>(bits >> 16);
    }
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const bool is_norm = tensor.shape.size() == 1;
    const auto* bytes = reinterpret_cast<const std::byte*>(values_.data());
    const std::size_t size = values_.size() * 2;
    for (std::size_t i = 0; i < out.size();) {
      const std::size_t at = (offset + i) % size, count = std::min(out.size() - i, size - at);
      if (is_norm)
        for (std::size_t j = 0; j < count; ++j) out[i + j] = std::byte{static_cast<unsigned char>((i + j) % 2 == 0 ? 0x80 : 0x3F)};  // 1.0
      else
        std::memcpy(out.data() + i, bytes + at, count);
      i += count;
    }
  }

 private:
  std::vector<std::uint16_t> values_;
};

struct Turns {
  std::vector<double> seconds;
  [[nodiscard]] double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  [[nodiscard]] double spread() const {
    return (*std::max_element(seconds.begin(), seconds.end()) - *std::min_element(seconds.begin(), seconds.end())) / median();
  }
};

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

int run(int argc, char** argv) {
  int threads = 0;
  long layers = 6, hidden = 2048, ffn = 8192, turns = 10;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      json = true;
      continue;
    }
    const long value = i + 1 < argc ? std::atol(argv[i + 1]) : 0;
    if (name == "--threads") threads = static_cast<int>(value), ++i;
    if (name == "--layers") layers = value, ++i;
    if (name == "--hidden") hidden = value, ++i;
    if (name == "--ffn") ffn = value, ++i;
    if (name == "--turns") turns = value, ++i;
  }
  const std::string text = "{\"model_type\": \"llama\", \"vocab_size\": 4096, \"hidden_size\": " + std::to_string(hidden) +
                           ", \"intermediate_size\": " + std::to_string(ffn) + ", \"num_hidden_layers\": " + std::to_string(layers) +
                           ", \"num_attention_heads\": " + std::to_string(hidden / 64) +
                           ", \"num_key_value_heads\": " + std::to_string(hidden / 256) + ", \"max_position_embeddings\": 4096}";
  const Json config = parse_json(text, "config.json");
  std::vector<TensorInfo> tensors;
  const model::Architecture& architecture = *model::find_architecture(config);
  for (const model::TensorSlot& slot : model::tensor_slots(architecture, config, static_cast<int>(layers))) {
    if (!slot.expected) continue;
    TensorInfo& tensor = tensors.emplace_back();
    tensor.name = slot.name;
    tensor.dtype = DType::bf16;
    tensor.shape = *slot.shape;
    tensor.num_elements = 1;
    for (const std::int64_t dim : tensor.shape) tensor.num_elements *= static_cast<std::uint64_t>(dim);
    tensor.size_bytes = 2 * tensor.num_elements;
  }
  const auto checkpoint = std::make_shared<RandomWeights>(tensors);
  model::Network network(checkpoint, config, {.precision = Precision::fast, .threads = threads, .memory_bytes = std::uint64_t{64} << 30});
  model::Network eight(checkpoint, config, {.precision = Precision::int8, .threads = threads, .memory_bytes = std::uint64_t{64} << 30});
  threads = network.team().num_threads();

  std::vector<std::uint32_t> ids(kTokens);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::uint32_t>(i * 7 % 4096);
  const auto prefill = [&](model::Network& of) {
    const model::TokenChunk chunk{nullptr, ids, {}};
    return of.run({&chunk, 1});
  };
  {
    model::Network exact(checkpoint, config, {.threads = threads, .memory_bytes = std::uint64_t{1} << 30});
    const std::span<const std::uint32_t> few(ids.data(), 16);
    const model::TokenChunk chunk{nullptr, few, {}};
    const std::vector<float> a = exact.run({&chunk, 1}), b = network.run({&chunk, 1});
    double squares = 0, errors = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      squares += std::pow(static_cast<double>(a[i]), 2);
      errors += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    }
    if (!(std::sqrt(errors / squares) < 0.02)) throw Error(ErrorCode::internal, "the fast path is not near float32");
  }

  const auto h = static_cast<std::size_t>(hidden), f = static_cast<std::size_t>(ffn), l = static_cast<std::size_t>(layers);
  const std::size_t qkv = h + 2 * (h / 4);
  const std::vector<std::pair<std::size_t, std::size_t>> shapes = {{qkv, h}, {h, h}, {2 * f, h}, {h, f}};  // outputs, inputs
  double flops = 0, bytes = 0;
  for (const auto& [n, k] : shapes) {
    flops += 2.0 * static_cast<double>(kTokens * n * k * l);
    bytes += 2.0 * static_cast<double>(n * k * l);
  }
  using Type = Product::Type;
  std::vector<std::unique_ptr<Product>> bf16, f32, int8;
  use_threads(threads);  // a product is cut for as many as there are when it is made; the network sets one for its own
  for (const auto& [n, k] : shapes) {
    bf16.push_back(std::make_unique<Product>(kTokens, n, k, Type::bf16, Type::bf16, Type::f32));
    f32.push_back(std::make_unique<Product>(kTokens, n, k, Type::f32, Type::f32, Type::f32));
    int8.push_back(std::make_unique<Product>(kTokens, n, k, Type::u8, Type::s8, Type::s32));
  }
  std::vector<float> memory(static_cast<std::size_t>(bytes / 4), 1.0F);
  std::vector<double> sums(static_cast<std::size_t>(threads));
  const auto state = network.new_state();
  {
    const model::TokenChunk chunk{state.get(), std::span<const std::uint32_t>(ids.data(), 16), {}};
    (void)network.run({&chunk, 1});
  }
  const auto eight_state = eight.new_state();
  const auto products = [&](std::vector<std::unique_ptr<Product>>& of) {
    use_threads(threads);
    for (const auto& product : of) product->run();
    use_threads(1);
  };
  struct Measured {
    const char* name;
    std::function<void()> work;
    double amount;
    const char* unit;
    Turns turns = {};
  };
  std::vector<Measured> all;
  all.push_back({"prefill, 512 tokens", [&] { (void)prefill(network); }, flops * 1e-9, "GFLOP/s"});
  all.push_back({"oneDNN bf16 products", [&] { products(bf16); }, flops * 1e-9 / static_cast<double>(l), "GFLOP/s"});
  all.push_back({"oneDNN f32 products", [&] { products(f32); }, flops * 1e-9 / static_cast<double>(l), "GFLOP/s"});
  all.push_back({"oneDNN int8 products", [&] { products(int8); }, flops * 1e-9 / static_cast<double>(l), "GOP/s"});
  all.push_back({"prefill in 8 bits", [&] { (void)prefill(eight); }, flops * 1e-9, "GOP/s"});
  const std::size_t decode = all.size();
  all.push_back({"decode, one token",
                 [&] {
                   const model::TokenChunk chunk{state.get(), std::span<const std::uint32_t>(ids.data(), 1), {}};
                   (void)network.run({&chunk, 1});
                 },
                 bytes * 1e-9, "GB/s"});
  all.push_back({"decode of 8 bits",
                 [&] {
                   const model::TokenChunk chunk{eight_state.get(), std::span<const std::uint32_t>(ids.data(), 1), {}};
                   (void)eight.run({&chunk, 1});
                 },
                 bytes * 0.5e-9, "GB/s"});
  // Reading from one place, and from four at once, which some machines do faster.
  const auto read = [&](auto&& body) {
    const std::size_t pieces = static_cast<std::size_t>(threads) * 4, share = memory.size() / pieces / 64 * 64;
    network.team().for_each(
        pieces, [&](std::size_t piece, int worker) { sums[static_cast<std::size_t>(worker)] += body(memory.data() + piece * share, share); });
  };
  all.push_back({"reading memory",
                 [&] { read([](const float* from, std::size_t count) {
                         return static_cast<double>(math::max_abs({from, count}));
                       }); }, bytes * 1e-9,
                 "GB/s"});
  all.push_back({"reading four streams", [&] { read(bench::sum_of_streams); }, bytes * 1e-9, "GB/s"});
  all.push_back({"reading ahead", [&] { read(bench::sum_fetched_ahead); }, bytes * 1e-9, "GB/s"});
  for (Measured& one : all) one.work();
  for (long turn = 0; turn < turns; ++turn)
    for (Measured& one : all) {
      const double begin = now();
      one.work();
      one.turns.seconds.push_back(now() - begin);
    }
  if (json) {
    std::printf("{\"threads\": %d, \"target\": \"%s\", \"products\": \"%s\", \"commit\": \"%s\"", threads, math::active_target().c_str(),
                math::gemm_library().c_str(), std::string(commit()).c_str());
    for (const Measured& one : all)
      std::printf(", \"%s\": {\"%s\": %.2f, \"spread\": %.3f}", one.name, one.unit, one.amount / one.turns.median(), one.turns.spread());
    std::printf("}\n");
    return 0;
  }
  std::printf("%ld layers of %ld, feed-forward %ld: %.0f MB of bfloat16; %d threads, %s, %s\n", layers, hidden, ffn, bytes * 1e-6, threads,
              math::active_target().c_str(), math::gemm_library().c_str());
  for (const Measured& one : all)
    std::printf("  %-22s %8.1f %-8s spread %4.0f %%\n", one.name, one.amount / one.turns.median(), one.unit, 100 * one.turns.spread());
  const auto rate = [&](std::size_t i) { return all[i].amount / all[i].turns.median(); };
  std::printf("  prefill: %.0f %% of oneDNN's bf16 rate, %.0f %% of its f32 rate; decode: %.0f %% of the best read rate\n", 100 * rate(0) / rate(1),
              100 * rate(0) / rate(2), 100 * rate(decode) / std::max({rate(decode + 2), rate(decode + 3), rate(decode + 4)}));
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
