#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "math/gemm.h"
#include "math/neural.h"
#include "model/mixer.h"

namespace weft::model {
namespace {

/// One matrix [key dim, value dim] a head, in float32: in bfloat16 it would lose the corrections after some hundred tokens.
class FastWeights final : public MixerState {
 public:
  FastWeights(std::size_t heads, std::size_t size) : size_(size), values_(heads * size, 0.0F) {}
  [[nodiscard]] std::uint64_t size_bytes() const noexcept override { return values_.size() * sizeof(float); }
  [[nodiscard]] float* head(std::size_t h) { return values_.data() + h * size_; }

 private:
  std::size_t size_;
  std::vector<float> values_;
};

/// A decay of exp(-1e4) is 0; minus infinity itself would make differences of sums NaN.
constexpr double kMostDecay = -1e4;

class GatedDelta final : public Mixer {
 public:
  explicit GatedDelta(const GatedDeltaOptions& options) : o_(options), group_(options.heads / options.key_heads) {
    WEFT_ASSERT(options.key_heads > 0 && options.heads % options.key_heads == 0 && options.chunk > 0);
  }

  [[nodiscard]] std::unique_ptr<MixerState> new_state() const override { return std::make_unique<FastWeights>(o_.heads, o_.key_dim * o_.value_dim); }
  [[nodiscard]] std::uint64_t state_bytes(std::int64_t, std::int64_t) const override {
    return std::uint64_t{sizeof(float)} * o_.heads * o_.key_dim * o_.value_dim;
  }

  void step(const MixerRun& run) const override {
    std::vector<float> q(o_.key_dim), k(o_.key_dim), error(o_.value_dim);
    for (std::size_t h = 0; h < o_.heads; ++h) {
      float* s = static_cast<FastWeights&>(*run.state).head(h);
      read_row(run.q, h, o_.scale, q.data());
      read_row(run.k, h / group_, 1.0F, k.data());
      const float* v = run.v + (h / group_) * o_.value_dim;
      const float decay = std::exp(run.log_decay[h]);
      for (std::size_t i = 0; i < o_.key_dim * o_.value_dim; ++i) s[i] *= decay;
      std::copy(v, v + o_.value_dim, error.begin());
      for (std::size_t i = 0; i < o_.key_dim; ++i) math::add_scaled(-k[i], s + i * o_.value_dim, error.data(), o_.value_dim);
      for (std::size_t i = 0; i < o_.key_dim; ++i) math::add_scaled(k[i] * run.gate[h], error.data(), s + i * o_.value_dim, o_.value_dim);
      float* out = run.out + h * o_.value_dim;
      std::fill(out, out + o_.value_dim, 0.0F);
      for (std::size_t i = 0; i < o_.key_dim; ++i) math::add_scaled(q[i], s + i * o_.value_dim, out, o_.value_dim);
    }
  }

  void chunk(std::span<const MixerRun> runs, ThreadTeam& team, MixerTap*) const override {
    team.for_each(runs.size() * o_.heads, [&](std::size_t unit, int) {
      const MixerRun& run = runs[unit / o_.heads];
      for (std::size_t first = 0; first < run.num_tokens; first += o_.chunk)
        solve(run, unit % o_.heads, first, std::min(o_.chunk, run.num_tokens - first));
    });
  }

 private:
  /// Row of a key head, scaled, of length 1 if wanted.
  void read_row(const float* row, std::size_t head, float scale, float* out) const {
    const float* from = row + head * o_.key_dim;
    float factor = scale;
    if (o_.normalises) factor /= std::sqrt(math::dot_f32(from, from, o_.key_dim) + 1e-6F);
    for (std::size_t i = 0; i < o_.key_dim; ++i) out[i] = from[i] * factor;
  }

  // With S_0 the state before the chunk, c_i the summed log decays up to token i, and u_i what token i writes along its key:
  //   S_i = exp(c_i) S_0 + sum_{j <= i} exp(c_i - c_j) k_j u_j^T
  //   u_i = beta_i (v_i - exp(c_i) S_0^T k_i - sum_{j < i} exp(c_i - c_j) (k_i . k_j) u_j)
  // a triangular system for u. Only decays between a token and a later one occur, so nothing overflows.
  void solve(const MixerRun& run, std::size_t h, std::size_t first, std::size_t n) const {
    const std::size_t dk = o_.key_dim, dv = o_.value_dim;
    float* s = static_cast<FastWeights&>(*run.state).head(h);
    std::vector<float> q(n * dk), k(n * dk), u(n * dv), from_state(n * dv), products(n * n);
    std::vector<double> summed(n);
    double total = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t t = first + i;
      read_row(run.q + t * run.q_stride, h, o_.scale, q.data() + i * dk);
      read_row(run.k + t * run.k_stride, h / group_, 1.0F, k.data() + i * dk);
      total += std::max(static_cast<double>(run.log_decay[t * run.decay_stride + h]), kMostDecay);
      summed[i] = total;
    }
    const auto decay = [&](std::size_t i, std::size_t j) { return static_cast<float>(std::exp(summed[i] - summed[j])); };

    math::gemm_nn(n, dv, dk, k.data(), dk, s, dv, from_state.data(), dv);
    math::gemm_nt(n, n, dk, k.data(), dk, k.data(), dk, products.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t t = first + i;
      const float* v = run.v + t * run.v_stride + (h / group_) * dv;
      float* u_i = u.data() + i * dv;
      std::copy(v, v + dv, u_i);
      math::add_scaled(-static_cast<float>(std::exp(summed[i])), from_state.data() + i * dv, u_i, dv);
      for (std::size_t j = 0; j < i; ++j) math::add_scaled(-decay(i, j) * products[i * n + j], u.data() + j * dv, u_i, dv);
      const float gate = run.gate[t * run.gate_stride + h];
      for (std::size_t c = 0; c < dv; ++c) u_i[c] *= gate;
    }

    math::gemm_nn(n, dv, dk, q.data(), dk, s, dv, from_state.data(), dv);
    math::gemm_nt(n, n, dk, q.data(), dk, k.data(), dk, products.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      float* out = run.out + (first + i) * run.out_stride + h * dv;
      const auto kept = static_cast<float>(std::exp(summed[i]));
      for (std::size_t c = 0; c < dv; ++c) out[c] = kept * from_state[i * dv + c];
      for (std::size_t j = 0; j <= i; ++j) math::add_scaled(decay(i, j) * products[i * n + j], u.data() + j * dv, out, dv);
    }

    const auto kept = static_cast<float>(std::exp(total));
    for (std::size_t i = 0; i < dk * dv; ++i) s[i] *= kept;
    for (std::size_t j = 0; j < n; ++j) {
      const auto share = static_cast<float>(std::exp(total - summed[j]));
      for (std::size_t a = 0; a < dk; ++a) math::add_scaled(share * k[j * dk + a], u.data() + j * dv, s + a * dv, dv);
    }
  }

  GatedDeltaOptions o_;
  std::size_t group_;
};

}  // namespace

std::unique_ptr<Mixer> make_gated_delta(const GatedDeltaOptions& options) { return std::make_unique<GatedDelta>(options); }

}  // namespace weft::model
