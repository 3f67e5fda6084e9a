#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/thread_team.h"
#include "codec/packed_linear.h"
#include "model/block_gradient.h"
#include "quantize/learned_codes.h"

// Learning a few parameters of a block's codes, so that the block gives what it gave before: by Adam, on what the block reads behind quantized ones
// and what the unchanged model has there, with the block's gradient by hand. Class C: the products are OpenBLAS's; threads change nothing.
namespace weft::quantize {

/// Adam with the mean gradient's length held to 1. Source: Kingma and Ba 2014, arXiv:1412.6980.
class Adam {
 public:
  explicit Adam(std::size_t size) : mean_(size), square_(size) {}
  /// rates: of each parameter, in runs: (how many, rate).
  struct Run {
    std::size_t count = 0;
    double rate = 0;
  };
  /// One step; a gradient of NaN or infinities changes nothing and gives false.
  [[nodiscard]] bool step(std::span<float> parameters, std::span<const float> gradient, std::span<const Run> rates);

 private:
  std::vector<float> mean_, square_;
  int steps_ = 0;
};

/// From 1 to 0 along a cosine.
[[nodiscard]] double cosine_rate(std::size_t step, std::size_t num_steps) noexcept;

/// 0 .. count - 1 in an order drawn by the seed.
[[nodiscard]] std::vector<std::size_t> shuffled(std::size_t count, std::uint64_t seed, std::uint32_t round);

/// Which of the units are not learned from but looked at: every 1/share-th, at least one of two.
[[nodiscard]] std::vector<bool> held_out_units(std::size_t count, double share);

/// Some sequences: what the block reads, and what it should give. [tokens, hidden] each.
struct ReconstructUnit {
  std::vector<std::size_t> lengths;
  std::vector<float> input, target;
};
struct ReconstructData {
  std::size_t num_units = 0;
  std::function<void(std::size_t unit, ReconstructUnit& out)> read;
};

struct ReconstructLayer {
  const model::BlockTensor* tensor = nullptr;
  LearnedCodes<float>* codes = nullptr;
  const codec::QuantizedLinear* start = nullptr;
};

struct ReconstructOptions {
  double rate = 1e-2;            ///< of Adam, at first; falls to 0 along a cosine
  int epochs = 10;               ///< times that every unit is learned from
  double held_out = 0.125;       ///< share of the units by which the best parameters are chosen
  int patience = 0;              ///< epochs without a better one after which it ends; 0: never
  double gain_rate = 0;          ///< of the norms' gains, which are learned, too; 0: they stay
  DType gain_type = DType::f32;  ///< as which they are stored
  std::uint64_t seed = 0;
  std::function<void(double done)> on_progress = {};  ///< the share that is done; may throw
};

struct ReconstructResult {
  double before = 0, after = 0;  ///< squared error over squares of the targets, of the units held out: with the start's codes, and with those below
  double learned_before = 0, learned_after = 0;  ///< the same of the units that were learned from
  int best_epoch = 0;                            ///< 0: the parameters it began with
  bool kept_start = false;                       ///< nothing that was learned was better
  std::vector<codec::QuantizedLinear> codes;     ///< of each layer
};
/// parameters: of the block as it is to run but for these layers; afterwards with the result's values (and gains).
[[nodiscard]] ReconstructResult reconstruct(const model::NetworkConfig& config, std::size_t layer, ThreadTeam& team,
                                            model::BlockParameters<float>& parameters, std::span<const ReconstructLayer> layers,
                                            const ReconstructData& data, const ReconstructOptions& options);

/// Codes of one layer by what it reads alone: the outputs' squared error, tr((Q - W) H (Q - W)^T), all of whose tokens are in two second moments, of
/// those that are learned from and of those by which the best step is chosen.
struct LocalResult {
  double before = 0, after = 0;  ///< relative loss by `held`
  codec::QuantizedLinear codes;
};
[[nodiscard]] LocalResult reconstruct_layer(ThreadTeam& team, std::span<const float> weights, const codec::QuantizedLinear& start,
                                            LearnedCodes<float>& codes, std::span<const double> learned, std::span<const double> held, double rate,
                                            int steps);

}  // namespace weft::quantize
