// A calibration pass beside the forward pass over the same tokens and the rate
// of matrix products.
//
//   calibrate_bench [--threads N] [--layers N] [--hidden N] [--ffn N]
//   [--sequences N] [--turns N]
//
// The network is a Llama with random bfloat16 weights in memory. In turns: the
// forward pass, the calibration pass with second moments, and products of
// float32 of the size of one tile. The bound is 1.3 forward passes and the
// multiplications of the second moments (half of each, they are symmetric) at
// 60 % of the rate of products. Medians of the turns.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_team.h"
#include "checkpoint/json.h"
#include "engine/block_pass.h"
#include "engine/running_model.h"
#include "math/gemm.h"
#include "model/architecture.h"

namespace {

using namespace weft;

double now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Numbers around 0 of size 1/50, and norms of 1, as bytes of bfloat16.
class RandomTensors final : public Checkpoint {
public:
  explicit RandomTensors(const Json &config) {
    container_ = "memory";
    path_ = "random";
    for (const model::TensorSlot &slot : model::tensor_slots(
             *model::find_architecture(config), config,
             static_cast<int>(*config.find("num_hidden_layers")->integer()))) {
      if (!slot.expected || !slot.shape)
        continue;
      TensorInfo tensor;
      tensor.name = slot.name;
      tensor.dtype = DType::bf16;
      tensor.shape = *slot.shape;
      tensor.num_elements = 1;
      for (const std::int64_t size : tensor.shape)
        tensor.num_elements *= static_cast<std::uint64_t>(size);
      tensor.size_bytes = tensor.num_elements * 2;
      tensors_.push_back(std::move(tensor));
    }
    index_tensors();
  }
  void read_bytes(const TensorInfo &tensor, std::uint64_t offset,
                  std::span<std::byte> out) const override {
    std::uint64_t state = offset + tensor.num_elements;
    for (std::size_t i = 0; i + 1 < out.size(); i += 2) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      const float number =
          tensor.shape.size() == 1
              ? 1.0F
              : (static_cast<float>(state >> 40) / 16777216.0F - 0.5F) * 0.04F;
      std::uint32_t bits;
      std::memcpy(&bits, &number, 4);
      const auto half = static_cast<std::uint16_t>(bits >> 16);
      std::memcpy(out.data() + i, &half, 2);
    }
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

} // namespace

int main(int argc, char **argv) {
  int threads = 0, layers = 4, turns = 5;
  std::int64_t hidden = 1024, ffn = 2816;
  std::size_t sequences = 16;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const long value = std::strtol(argv[i + 1], nullptr, 10);
    if (name == "--threads")
      threads = static_cast<int>(value);
    if (name == "--layers")
      layers = static_cast<int>(value);
    if (name == "--hidden")
      hidden = value;
    if (name == "--ffn")
      ffn = value;
    if (name == "--sequences")
      sequences = static_cast<std::size_t>(value);
    if (name == "--turns")
      turns = static_cast<int>(value);
  }
  constexpr std::size_t kLength = 256;
  Json config(Json::Object{
      {"architectures", Json(Json::Array{Json("LlamaForCausalLM")})},
      {"model_type", Json("llama")},
      {"hidden_size", Json(hidden)},
      {"intermediate_size", Json(ffn)},
      {"num_hidden_layers", Json(layers)},
      {"num_attention_heads", Json(hidden / 64)},
      {"num_key_value_heads", Json(hidden / 64)},
      {"vocab_size", Json(1000)},
      {"rms_norm_eps", Json(1e-5)},
      {"hidden_act", Json("silu")},
      {"max_position_embeddings", Json(2048)},
      {"tie_word_embeddings", Json(false)}});
  engine::ModelFiles files;
  files.checkpoint = std::make_shared<const RandomTensors>(config);
  files.config = config;
  engine::BlockPassOptions options;
  options.threads = threads;
  options.memory_bytes = std::uint64_t{8} << 30;
  engine::RunningModel model(files, options);
  auto tokens = std::make_shared<engine::CalibrationTokens>();
  for (std::size_t s = 0; s < sequences; ++s) {
    auto &sequence = tokens->sequences.emplace_back();
    for (std::size_t t = 0; t < kLength; ++t)
      sequence.push_back(
          static_cast<std::uint32_t>((s * 7919 + t * 104729) % 1000));
  }
  std::vector<model::TokenChunk> chunks;
  for (const auto &sequence : tokens->sequences)
    chunks.push_back({nullptr, sequence, {}});
  (void)model.network().run(chunks); // weights are read

  std::vector<double> forward, pass, reading, rate;
  for (int turn = 0; turn < turns; ++turn) {
    double began = now();
    (void)model.network().run(chunks);
    forward.push_back(now() - began);
    began = now();
    for (int l = 0; l < layers; ++l)
      (void)model.network().read_block(static_cast<std::size_t>(l));
    reading.push_back(now() - began);
    began = now();
    engine::BlockPass blocks(model, tokens, options);
    (void)blocks.run([](engine::Block &block) {
      (void)block.statistics(
          {.gram = true, .cross = false, .points = {}, .last = true});
    });
    pass.push_back(now() - began);
    constexpr std::size_t kTile = 256, kTiles = 256;
    std::vector<float> a(kTile * kTile * 16, 0.5F);
    began = now();
    model.network().team().for_each(kTiles, [&](std::size_t unit, int) {
      thread_local std::vector<float> out(kTile * kTile);
      const float *x = a.data() + unit % 16 * kTile * kTile;
      math::gemm_tn(kTile, kTile, kTile, x, kTile, x, kTile, out.data(), kTile);
    });
    rate.push_back(2.0 * kTile * kTile * kTile * kTiles / (now() - began));
  }
  const double n = static_cast<double>(tokens->num_tokens()),
               h = static_cast<double>(hidden), f = static_cast<double>(ffn);
  const double gram =
      layers * n * (3 * h * h + f * f); // q, o, up and down; multiplications
                                        // and additions of the upper half
  const double bound = 1.3 * median(forward) + gram / (0.6 * median(rate));
  std::printf("%llu tokens, %d layers of %lld/%lld, %d threads, %s\n",
              static_cast<unsigned long long>(tokens->num_tokens()), layers,
              static_cast<long long>(hidden), static_cast<long long>(ffn),
              model.network().team().num_threads(),
              math::gemm_library().c_str());
  std::printf(
      "forward      %8.3f s\nreading      %8.3f s (making the random weights: "
      "part of the pass)\ncalibration  %8.3f s\nproducts     %8.1f "
      "GFLOP/s\nbound        %8.3f s = 1.3 forward + %.3f s of products at 60 "
      "%%\nshare        %8.3f of the bound, %.3f without reading\n",
      median(forward), median(reading), median(pass), median(rate) / 1e9, bound,
      gram / (0.6 * median(rate)), median(pass) / bound,
      (median(pass) - median(reading)) / bound);
  return 0;
}
