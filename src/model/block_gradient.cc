#include "model/block_gradient.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "math/lapack.h"
#include "model/rope.h"

namespace weft::model {
namespace {

using math::Transpose;

constexpr std::size_t kTile = 128;
constexpr std::size_t kRowsAUnit = 32;

/// C = alpha op(A) op(B) + beta C, by tiles of C's rows.
template <typename Real>
void product(ThreadTeam& team, Transpose a_form, Transpose b_form, std::size_t m, std::size_t n, std::size_t k, Real alpha, const Real* a,
             std::size_t a_stride, const Real* b, std::size_t b_stride, Real beta, Real* c, std::size_t c_stride) {
  if (m == 0 || n == 0) return;
  team.for_each((m + kTile - 1) / kTile, [&](std::size_t unit, int) {
    const std::size_t first = unit * kTile, count = std::min(kTile, m - first);
    const Real* from = a_form == Transpose::no ? a + first * a_stride : a + first;
    math::gemm(a_form, b_form, static_cast<std::int64_t>(count), static_cast<std::int64_t>(n), static_cast<std::int64_t>(k), alpha, from,
               static_cast<std::int64_t>(a_stride), b, static_cast<std::int64_t>(b_stride), beta, c + first * c_stride,
               static_cast<std::int64_t>(c_stride));
  });
}

template <typename F>
void for_rows(ThreadTeam& team, std::size_t rows, const F& body) {
  team.for_each((rows + kRowsAUnit - 1) / kRowsAUnit, [&](std::size_t unit, int) {
    for (std::size_t r = unit * kRowsAUnit; r < std::min(rows, unit * kRowsAUnit + kRowsAUnit); ++r) body(r);
  });
}

// ---- Activations

template <typename Real>
struct ValueAndSlope {
  Real value, slope;
};

template <typename Real>
ValueAndSlope<Real> activation_of(math::Activation activation, Real x) {
  const auto sigmoid = [](Real z) { return Real(1) / (Real(1) + std::exp(-z)); };
  switch (activation) {
    case math::Activation::silu: {
      const Real s = sigmoid(x);
      return {x * s, s * (1 + x * (1 - s))};
    }
    case math::Activation::gelu: {
      const Real below = Real(0.5) * std::erfc(-x / std::numbers::sqrt2_v<Real>);
      const Real density = std::exp(-x * x / 2) * std::numbers::inv_sqrtpi_v<Real> / std::numbers::sqrt2_v<Real>;
      return {x * below, below + x * density};
    }
    case math::Activation::gelu_tanh: {
      const Real root = std::numbers::sqrt2_v<Real> * std::numbers::inv_sqrtpi_v<Real>;
      const Real cubic = Real(0.044715);
      const Real t = std::tanh(root * (x + cubic * x * x * x));
      return {Real(0.5) * x * (1 + t), Real(0.5) * (1 + t) + Real(0.5) * x * (1 - t * t) * root * (1 + 3 * cubic * x * x)};
    }
    case math::Activation::quick_gelu: {
      const Real factor = Real(1.702), s = sigmoid(factor * x);
      return {x * s, s + factor * x * s * (1 - s)};
    }
    case math::Activation::relu:
      return {std::max(x, Real(0)), x > 0 ? Real(1) : Real(0)};
    case math::Activation::tanh: {
      const Real t = std::tanh(x);
      return {t, 1 - t * t};
    }
    case math::Activation::sigmoid: {
      const Real s = sigmoid(x);
      return {s, s * (1 - s)};
    }
  }
  return {x, Real(1)};
}

// ---- Norms

/// How one row is normalised: (x - mean) * inverse.
struct RowScale {
  double mean = 0, inverse = 1;
};
template <typename Real>
RowScale row_scale(const NetworkConfig& config, const Real* x, std::size_t n) {
  RowScale scale;
  if (config.norm == NormKind::layer) scale.mean = std::accumulate(x, x + n, 0.0) / static_cast<double>(n);
  double squares = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(x[i]) - scale.mean;
    squares += d * d;
  }
  scale.inverse = 1 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(config.norm_eps));
  return scale;
}

template <typename Real>
void norm_row(const NetworkConfig& config, const NormParameters<Real>& norm, const Real* x, Real* out, std::size_t n) {
  const RowScale scale = row_scale(config, x, n);
  const Real offset = config.norm == NormKind::rms_plus_one ? Real(1) : Real(0);
  for (std::size_t i = 0; i < n; ++i) {
    const Real hat = static_cast<Real>((static_cast<double>(x[i]) - scale.mean) * scale.inverse);
    out[i] = hat * (offset + norm.weight[i]) + (norm.bias.empty() ? Real(0) : norm.bias[i]);
  }
}

/// dx = d loss / d x of one row (which may be where dy is). weight, bias: sums over rows, or null.
template <typename Real>
void norm_row_backward(const NetworkConfig& config, const NormParameters<Real>& norm, const Real* x, const Real* dy, Real* dx, std::size_t n,
                       double* weight, double* bias) {
  const RowScale scale = row_scale(config, x, n);
  const double offset = config.norm == NormKind::rms_plus_one ? 1 : 0;
  double mean_h = 0, mean_hx = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double hat = (static_cast<double>(x[i]) - scale.mean) * scale.inverse, d = static_cast<double>(dy[i]);
    const double h = d * (offset + static_cast<double>(norm.weight[i]));
    mean_h += h;
    mean_hx += h * hat;
    if (weight != nullptr) weight[i] += d * hat;
    if (bias != nullptr) bias[i] += d;
  }
  mean_h = config.norm == NormKind::layer ? mean_h / static_cast<double>(n) : 0;
  mean_hx /= static_cast<double>(n);
  for (std::size_t i = 0; i < n; ++i) {
    const double hat = (static_cast<double>(x[i]) - scale.mean) * scale.inverse;
    const double h = static_cast<double>(dy[i]) * (offset + static_cast<double>(norm.weight[i]));
    dx[i] = static_cast<Real>((h - mean_h - hat * mean_hx) * scale.inverse);
  }
}

template <typename Real>
void norm_rows(ThreadTeam& team, const NetworkConfig& config, const NormParameters<Real>& norm, const std::vector<Real>& x, std::vector<Real>& out) {
  const std::size_t n = norm.weight.size();
  out.resize(x.size());
  for_rows(team, x.size() / n, [&](std::size_t r) { norm_row(config, norm, x.data() + r * n, out.data() + r * n, n); });
}

/// In place of d: d loss / d what the norm read.
template <typename Real>
void norm_rows_backward(const NetworkConfig& config, const NormParameters<Real>& norm, const std::vector<Real>& x, std::vector<Real>& d,
                        NormParameters<Real>* gradient) {
  const std::size_t n = norm.weight.size();
  std::vector<double> weight(gradient == nullptr ? 0 : n), bias(gradient == nullptr || norm.bias.empty() ? 0 : n);
  for (std::size_t r = 0; r < x.size() / n; ++r)
    norm_row_backward(config, norm, x.data() + r * n, d.data() + r * n, d.data() + r * n, n, weight.empty() ? nullptr : weight.data(),
                      bias.empty() ? nullptr : bias.data());
  for (std::size_t i = 0; i < weight.size(); ++i) gradient->weight[i] += static_cast<Real>(weight[i]);
  for (std::size_t i = 0; i < bias.size(); ++i) gradient->bias[i] += static_cast<Real>(bias[i]);
}

// ---- Linear layers

template <typename Real>
void linear(ThreadTeam& team, const LinearParameters<Real>& layer, const Real* x, std::size_t rows, std::vector<Real>& out) {
  out.resize(rows * layer.rows);
  product(team, Transpose::no, Transpose::yes, rows, layer.rows, layer.columns, Real(1), x, layer.columns, layer.weight.data(), layer.columns,
          Real(0), out.data(), layer.rows);
  if (layer.bias.empty()) return;
  for_rows(team, rows, [&](std::size_t r) {
    for (std::size_t i = 0; i < layer.rows; ++i) out[r * layer.rows + i] += layer.bias[i];
  });
}

/// dx = d W, or null; the gradient's sums grow.
template <typename Real>
void linear_backward(ThreadTeam& team, const LinearParameters<Real>& layer, const Real* x, std::size_t rows, const Real* d, std::vector<Real>* dx,
                     LinearParameters<Real>* gradient) {
  if (dx != nullptr) {
    dx->resize(rows * layer.columns);
    product(team, Transpose::no, Transpose::no, rows, layer.columns, layer.rows, Real(1), d, layer.rows, layer.weight.data(), layer.columns, Real(0),
            dx->data(), layer.columns);
  }
  if (gradient == nullptr || rows == 0) return;
  product(team, Transpose::yes, Transpose::no, layer.rows, layer.columns, rows, Real(1), d, layer.rows, x, layer.columns, Real(1),
          gradient->weight.data(), layer.columns);
  if (layer.bias.empty()) return;
  std::vector<double> sums(layer.rows);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t i = 0; i < layer.rows; ++i) sums[i] += static_cast<double>(d[r * layer.rows + i]);
  for (std::size_t i = 0; i < layer.rows; ++i) gradient->bias[i] += static_cast<Real>(sums[i]);
}

// ---- Feed-forward

template <typename Real>
void feed_forward(ThreadTeam& team, const NetworkConfig& config, const FeedForwardParameters<Real>& layer, bool gated,
                  typename BlockTape<Real>::FeedForwardTape& tape) {
  const std::size_t rows = tape.input.size() / layer.up.columns, inner = layer.down.columns, width = layer.up.rows;
  linear(team, layer.up, tape.input.data(), rows, tape.before);
  tape.hidden.resize(rows * inner);
  for_rows(team, rows, [&](std::size_t r) {
    const Real* before = tape.before.data() + r * width;
    for (std::size_t i = 0; i < inner; ++i)
      tape.hidden[r * inner + i] = activation_of(config.activation, before[i]).value * (gated ? before[inner + i] : Real(1));
  });
  linear(team, layer.down, tape.hidden.data(), rows, tape.output);
}

template <typename Real>
std::vector<Real> feed_forward_backward(ThreadTeam& team, const NetworkConfig& config, const FeedForwardParameters<Real>& layer, bool gated,
                                        const typename BlockTape<Real>::FeedForwardTape& tape, const Real* d, FeedForwardParameters<Real>* gradient) {
  const std::size_t rows = tape.input.size() / layer.up.columns, inner = layer.down.columns, width = layer.up.rows;
  std::vector<Real> d_hidden, d_before(rows * width), dx;
  linear_backward(team, layer.down, tape.hidden.data(), rows, d, &d_hidden, gradient == nullptr ? nullptr : &gradient->down);
  for_rows(team, rows, [&](std::size_t r) {
    const Real* before = tape.before.data() + r * width;
    Real* to = d_before.data() + r * width;
    for (std::size_t i = 0; i < inner; ++i) {
      const auto act = activation_of(config.activation, before[i]);
      const Real dh = d_hidden[r * inner + i];
      to[i] = dh * act.slope * (gated ? before[inner + i] : Real(1));
      if (gated) to[inner + i] = dh * act.value;
    }
  });
  linear_backward(team, layer.up, tape.input.data(), rows, d_before.data(), &dx, gradient == nullptr ? nullptr : &gradient->up);
  return dx;
}

// ---- Attention

template <typename Real>
struct Turns {
  std::size_t half = 0;
  std::vector<Real> cosine, sine;  ///< [positions, half]
};

template <typename Real>
Turns<Real> turns_of(const RopeConfig& rope, std::size_t length) {
  Turns<Real> turns;
  turns.half = static_cast<std::size_t>(rope.dims) / 2;
  turns.cosine.resize(length * turns.half);
  turns.sine.resize(length * turns.half);
  const std::vector<float> inverse = inverse_frequencies(rope, static_cast<std::int64_t>(length));
  for (std::size_t t = 0; t < length; ++t)
    for (std::size_t j = 0; j < turns.half; ++j) {
      // The angle in float32, as the forward pass has it.
      const auto angle = static_cast<double>(static_cast<float>(t) * inverse[j]);
      turns.cosine[t * turns.half + j] = static_cast<Real>(std::cos(angle) * rope.attention_factor);
      turns.sine[t * turns.half + j] = static_cast<Real>(std::sin(angle) * rope.attention_factor);
    }
  return turns;
}

/// forward: the pair turns by its angle; backward: what came back turns the other way.
template <typename Real>
void turn(const Turns<Real>& turns, std::size_t position, Real* x, bool backward) {
  const Real* cosine = turns.cosine.data() + position * turns.half;
  const Real* sine = turns.sine.data() + position * turns.half;
  for (std::size_t j = 0; j < turns.half; ++j) {
    const Real a = x[j], b = x[turns.half + j], s = backward ? -sine[j] : sine[j];
    x[j] = a * cosine[j] - b * s;
    x[turns.half + j] = b * cosine[j] + a * s;
  }
}

template <typename Real>
class Attention {
 public:
  Attention(const NetworkConfig& config, std::size_t layer, ThreadTeam& team)
      : config_(config),
        layer_(config.layers[layer]),
        team_(team),
        heads_(static_cast<std::size_t>(config.heads)),
        kv_heads_(static_cast<std::size_t>(config.kv_heads)),
        dim_(static_cast<std::size_t>(config.head_dim)),
        width_((heads_ + 2 * kv_heads_) * dim_) {}

  [[nodiscard]] std::size_t width() const { return width_; }

  /// Norms and turns of q and k, in place.
  void prepare(const BlockParameters<Real>& block, std::span<const std::size_t> lengths, std::vector<Real>& qkv) const {
    each_row(lengths, [&](std::size_t row, std::size_t position, const Turns<Real>* turns) {
      prepare_part(block.q_norm, qkv.data() + row * width_, heads_, position, turns);
      prepare_part(block.k_norm, qkv.data() + row * width_ + heads_ * dim_, kv_heads_, position, turns);
    });
  }
  void prepare_backward(const BlockParameters<Real>& block, std::span<const std::size_t> lengths, const std::vector<Real>& before,
                        std::vector<Real>& d, BlockParameters<Real>* gradient) const {
    each_row(lengths, [&](std::size_t row, std::size_t position, const Turns<Real>* turns) {
      if (turns == nullptr) return;
      for (std::size_t h = 0; h < heads_ + kv_heads_; ++h) turn(*turns, position, d.data() + row * width_ + h * dim_, true);
    });
    norm_backward(block.q_norm, before, d, 0, heads_, gradient == nullptr ? nullptr : &gradient->q_norm);
    norm_backward(block.k_norm, before, d, heads_ * dim_, kv_heads_, gradient == nullptr ? nullptr : &gradient->k_norm);
  }

  void forward(std::span<const std::size_t> lengths, const std::vector<Real>& qkv, std::vector<Real>& mixed) const {
    each_unit(lengths, [&](std::size_t first_row, std::size_t length, std::size_t kv) {
      std::vector<Real> shares, slopes;
      for (std::size_t h = kv * group(); h < (kv + 1) * group(); ++h)
        for (std::size_t t = 0; t < length; t += kTile) {
          const Part part = part_of(length, t);
          shares_of(qkv, first_row, part, h, kv, shares, slopes);
          math::gemm(Transpose::no, Transpose::no, signed_of(part.queries), signed_of(dim_), signed_of(part.keys), Real(1), shares.data(),
                     signed_of(part.keys), value(qkv, first_row + part.first_key, kv), signed_of(width_), Real(0),
                     mixed.data() + ((first_row + t) * heads_ + h) * dim_, signed_of(heads_ * dim_));
        }
    });
  }

  /// d: of qkv, zero before.
  void backward(std::span<const std::size_t> lengths, const std::vector<Real>& qkv, const std::vector<Real>& d_mixed, std::vector<Real>& d) const {
    const Real scale = static_cast<Real>(layer_.score_scale);
    each_unit(lengths, [&](std::size_t first_row, std::size_t length, std::size_t kv) {
      std::vector<Real> shares, slopes, d_shares;
      for (std::size_t h = kv * group(); h < (kv + 1) * group(); ++h)
        for (std::size_t t = 0; t < length; t += kTile) {
          const Part part = part_of(length, t);
          const std::int64_t queries = signed_of(part.queries), keys = signed_of(part.keys), dim = signed_of(dim_), width = signed_of(width_);
          const std::size_t key_row = first_row + part.first_key;
          shares_of(qkv, first_row, part, h, kv, shares, slopes);
          const Real* d_out = d_mixed.data() + ((first_row + t) * heads_ + h) * dim_;
          const std::int64_t out_stride = signed_of(heads_ * dim_);
          math::gemm(Transpose::yes, Transpose::no, keys, dim, queries, Real(1), shares.data(), keys, d_out, out_stride, Real(1),
                     d.data() + value_at(key_row, kv), width);
          d_shares.resize(shares.size());
          math::gemm(Transpose::no, Transpose::yes, queries, keys, dim, Real(1), d_out, out_stride, value(qkv, key_row, kv), width, Real(0),
                     d_shares.data(), keys);
          for (std::size_t q = 0; q < part.queries; ++q) {
            Real* row = d_shares.data() + q * part.keys;
            const Real* share = shares.data() + q * part.keys;
            double mean = 0;
            for (std::size_t k = 0; k < part.keys; ++k) mean += static_cast<double>(share[k]) * static_cast<double>(row[k]);
            for (std::size_t k = 0; k < part.keys; ++k) {
              row[k] = share[k] * (row[k] - static_cast<Real>(mean));
              if (!slopes.empty()) row[k] *= slopes[q * part.keys + k];
            }
          }
          math::gemm(Transpose::no, Transpose::no, queries, dim, keys, scale, d_shares.data(), keys, key(qkv, key_row, kv), width, Real(0),
                     d.data() + query_at(first_row + t, h), width);
          math::gemm(Transpose::yes, Transpose::no, keys, dim, queries, scale, d_shares.data(), keys, qkv.data() + query_at(first_row + t, h), width,
                     Real(1), d.data() + key_at(key_row, kv), width);
        }
    });
  }

 private:
  /// Some queries of a sequence and the keys that any of them sees.
  struct Part {
    std::size_t first_query = 0, queries = 0, first_key = 0, keys = 0;
  };
  static std::int64_t signed_of(std::size_t n) { return static_cast<std::int64_t>(n); }
  [[nodiscard]] std::size_t group() const { return heads_ / kv_heads_; }
  [[nodiscard]] std::size_t query_at(std::size_t row, std::size_t h) const { return row * width_ + h * dim_; }
  [[nodiscard]] std::size_t key_at(std::size_t row, std::size_t kv) const { return row * width_ + (heads_ + kv) * dim_; }
  [[nodiscard]] std::size_t value_at(std::size_t row, std::size_t kv) const { return row * width_ + (heads_ + kv_heads_ + kv) * dim_; }
  [[nodiscard]] const Real* key(const std::vector<Real>& qkv, std::size_t row, std::size_t kv) const { return qkv.data() + key_at(row, kv); }
  [[nodiscard]] const Real* value(const std::vector<Real>& qkv, std::size_t row, std::size_t kv) const { return qkv.data() + value_at(row, kv); }
  [[nodiscard]] bool is_causal() const { return config_.kind == NetworkKind::decoder; }

  /// Keys [first, last) that a position sees.
  [[nodiscard]] std::pair<std::size_t, std::size_t> seen(std::size_t length, std::size_t position) const {
    const auto window = static_cast<std::size_t>(layer_.window);
    const std::size_t first = window > 0 && position + 1 > window ? position + 1 - window : 0;
    if (is_causal()) return {first, position + 1};
    return {first, window > 0 ? std::min(length, position + window) : length};
  }
  [[nodiscard]] Part part_of(std::size_t length, std::size_t first) const {
    const std::size_t last = std::min(length, first + kTile);
    const std::size_t begin = seen(length, first).first, end = seen(length, last - 1).second;
    return {first, last - first, begin, end - begin};
  }

  /// Softmax over the keys of each query. slopes: of the cap; empty where there is none.
  void shares_of(const std::vector<Real>& qkv, std::size_t first_row, const Part& part, std::size_t h, std::size_t kv, std::vector<Real>& shares,
                 std::vector<Real>& slopes) const {
    shares.resize(part.queries * part.keys);
    math::gemm(Transpose::no, Transpose::yes, signed_of(part.queries), signed_of(part.keys), signed_of(dim_), static_cast<Real>(layer_.score_scale),
               qkv.data() + query_at(first_row + part.first_query, h), signed_of(width_), key(qkv, first_row + part.first_key, kv), signed_of(width_),
               Real(0), shares.data(), signed_of(part.keys));
    if (config_.score_cap > 0) {
      const Real cap = static_cast<Real>(config_.score_cap);
      slopes.resize(shares.size());
      for (std::size_t i = 0; i < shares.size(); ++i) {
        const Real t = std::tanh(shares[i] / cap);
        shares[i] = cap * t;
        slopes[i] = 1 - t * t;
      }
    }
    // In a part's own terms a query sees the same keys whatever the length behind it, but for the end of an encoder's sequence.
    for (std::size_t q = 0; q < part.queries; ++q) {
      Real* row = shares.data() + q * part.keys;
      const auto [first, last] = seen(part.first_key + part.keys, part.first_query + q);
      const std::size_t begin = first - part.first_key, end = std::min(last, part.first_key + part.keys) - part.first_key;
      Real largest = row[begin];
      for (std::size_t k = begin; k < end; ++k) largest = std::max(largest, row[k]);
      double sum = 0;
      for (std::size_t k = 0; k < part.keys; ++k) {
        row[k] = k >= begin && k < end ? std::exp(row[k] - largest) : Real(0);
        sum += static_cast<double>(row[k]);
      }
      for (std::size_t k = begin; k < end; ++k) row[k] = static_cast<Real>(static_cast<double>(row[k]) / sum);
    }
  }

  template <typename F>
  void each_row(std::span<const std::size_t> lengths, const F& body) const {
    const RopeConfig* rope = layer_.rope >= 0 ? &config_.ropes[static_cast<std::size_t>(layer_.rope)] : nullptr;
    std::size_t first_row = 0;
    for (const std::size_t length : lengths) {
      const Turns<Real> turns = rope == nullptr ? Turns<Real>() : turns_of<Real>(*rope, length);
      for_rows(team_, length, [&](std::size_t t) { body(first_row + t, t, rope == nullptr ? nullptr : &turns); });
      first_row += length;
    }
  }
  template <typename F>
  void each_unit(std::span<const std::size_t> lengths, const F& body) const {
    std::vector<std::size_t> first_rows;
    std::size_t row = 0;
    for (const std::size_t length : lengths) {
      first_rows.push_back(row);
      row += length;
    }
    team_.for_each(lengths.size() * kv_heads_, [&](std::size_t unit, int) {
      const std::size_t s = unit / kv_heads_;
      body(first_rows[s], lengths[s], unit % kv_heads_);
    });
  }
  void prepare_part(const NormParameters<Real>& norm, Real* row, std::size_t count, std::size_t position, const Turns<Real>* turns) const {
    if (norm.is_there()) {
      const std::size_t size = norm.weight.size();
      for (std::size_t at = 0; at < count * dim_; at += size) norm_row(config_, norm, row + at, row + at, size);
    }
    if (turns == nullptr) return;
    for (std::size_t h = 0; h < count; ++h) turn(*turns, position, row + h * dim_, false);
  }
  void norm_backward(const NormParameters<Real>& norm, const std::vector<Real>& before, std::vector<Real>& d, std::size_t begin, std::size_t count,
                     NormParameters<Real>* gradient) const {
    if (!norm.is_there()) return;
    const std::size_t size = norm.weight.size();
    std::vector<double> weight(size), bias(norm.bias.size());
    for (std::size_t row = 0; row < d.size() / width_; ++row)
      for (std::size_t at = begin; at < begin + count * dim_; at += size) {
        Real* of_row = d.data() + row * width_ + at;
        norm_row_backward(config_, norm, before.data() + row * width_ + at, of_row, of_row, size, weight.data(),
                          bias.empty() ? nullptr : bias.data());
      }
    if (gradient == nullptr) return;
    for (std::size_t i = 0; i < size; ++i) gradient->weight[i] += static_cast<Real>(weight[i]);
    for (std::size_t i = 0; i < bias.size(); ++i) gradient->bias[i] += static_cast<Real>(bias[i]);
  }

  const NetworkConfig& config_;
  const LayerConfig& layer_;
  ThreadTeam& team_;
  std::size_t heads_, kv_heads_, dim_, width_;
};

// ---- Mixtures

template <typename Real>
void mixture(ThreadTeam& team, const NetworkConfig& config, const BlockParameters<Real>& block, const std::vector<Real>& input, BlockTape<Real>& tape,
             std::vector<Real>& out) {
  const auto hidden = static_cast<std::size_t>(config.hidden), num_experts = static_cast<std::size_t>(config.experts);
  const auto chosen = static_cast<std::size_t>(config.experts_per_token);
  const std::size_t rows = input.size() / hidden;
  linear(team, block.router, input.data(), rows, tape.router);
  tape.experts.assign(num_experts, {});
  std::vector<std::size_t> order(num_experts);
  for (std::size_t r = 0; r < rows; ++r) {
    Real* share = tape.router.data() + r * num_experts;
    const Real largest = *std::max_element(share, share + num_experts);
    double sum = 0;
    for (std::size_t e = 0; e < num_experts; ++e) sum += static_cast<double>(share[e] = std::exp(share[e] - largest));
    for (std::size_t e = 0; e < num_experts; ++e) share[e] = static_cast<Real>(static_cast<double>(share[e]) / sum);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(chosen), order.end(),
                      [share](std::size_t a, std::size_t b) { return share[a] > share[b] || (share[a] == share[b] && a < b); });
    double total = 0;
    for (std::size_t i = 0; i < chosen; ++i) total += static_cast<double>(share[order[i]]);
    for (std::size_t i = 0; i < chosen; ++i) {
      auto& expert = tape.experts[order[i]];
      expert.rows.push_back(r);
      expert.shares.push_back(config.renormalises ? static_cast<Real>(static_cast<double>(share[order[i]]) / total) : share[order[i]]);
      expert.input.insert(expert.input.end(), input.begin() + static_cast<std::ptrdiff_t>(r * hidden),
                          input.begin() + static_cast<std::ptrdiff_t>((r + 1) * hidden));
    }
  }
  out.assign(rows * hidden, Real(0));
  for (std::size_t e = 0; e < num_experts; ++e) {
    auto& expert = tape.experts[e];
    if (expert.rows.empty()) continue;
    feed_forward(team, config, block.experts[e], block.gated, expert);
    for (std::size_t i = 0; i < expert.rows.size(); ++i)
      for (std::size_t j = 0; j < hidden; ++j) out[expert.rows[i] * hidden + j] += expert.shares[i] * expert.output[i * hidden + j];
  }
  if (!block.shared.up.is_there()) return;
  tape.shared.input = input;
  feed_forward(team, config, block.shared, true, tape.shared);
  linear(team, block.shared_router, input.data(), rows, tape.shared_share);
  for (std::size_t r = 0; r < rows; ++r) {
    tape.shared_share[r] = Real(1) / (Real(1) + std::exp(-tape.shared_share[r]));
    for (std::size_t j = 0; j < hidden; ++j) out[r * hidden + j] += tape.shared_share[r] * tape.shared.output[r * hidden + j];
  }
}

template <typename Real>
Real dot(const Real* a, const Real* b, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<Real>(sum);
}

template <typename Real>
void add(std::vector<Real>& to, const std::vector<Real>& from) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
}

template <typename Real>
std::vector<Real> mixture_backward(ThreadTeam& team, const NetworkConfig& config, const BlockParameters<Real>& block, const std::vector<Real>& input,
                                   const BlockTape<Real>& tape, const std::vector<Real>& d, BlockParameters<Real>* gradient) {
  const auto hidden = static_cast<std::size_t>(config.hidden), num_experts = static_cast<std::size_t>(config.experts);
  const std::size_t rows = input.size() / hidden;
  std::vector<Real> dx(input.size()), part;
  // d loss / d what an expert's answer is multiplied by, and that number.
  std::vector<Real> d_share(rows * num_experts), used(rows * num_experts);
  for (std::size_t e = 0; e < num_experts; ++e) {
    const auto& expert = tape.experts[e];
    if (expert.rows.empty()) continue;
    std::vector<Real> d_out(expert.rows.size() * hidden);
    for (std::size_t i = 0; i < expert.rows.size(); ++i) {
      const std::size_t r = expert.rows[i];
      d_share[r * num_experts + e] = dot(d.data() + r * hidden, expert.output.data() + i * hidden, hidden);
      used[r * num_experts + e] = expert.shares[i];
      for (std::size_t j = 0; j < hidden; ++j) d_out[i * hidden + j] = expert.shares[i] * d[r * hidden + j];
    }
    part = feed_forward_backward(team, config, block.experts[e], block.gated, expert, d_out.data(),
                                 gradient == nullptr ? nullptr : &gradient->experts[e]);
    for (std::size_t i = 0; i < expert.rows.size(); ++i)
      for (std::size_t j = 0; j < hidden; ++j) dx[expert.rows[i] * hidden + j] += part[i * hidden + j];
  }
  for (std::size_t r = 0; r < rows; ++r) {
    const Real* share = tape.router.data() + r * num_experts;
    Real* back = d_share.data() + r * num_experts;
    const Real* weight = used.data() + r * num_experts;
    if (config.renormalises) {
      // Each chosen one was divided by their sum: d / d share = (back - sum(weight * back)) / sum.
      double total = 0, mean = 0;
      for (std::size_t e = 0; e < num_experts; ++e) {
        if (weight[e] > 0) total += static_cast<double>(share[e]);
        mean += static_cast<double>(weight[e]) * static_cast<double>(back[e]);
      }
      for (std::size_t e = 0; e < num_experts; ++e)
        back[e] = weight[e] > 0 ? static_cast<Real>((static_cast<double>(back[e]) - mean) / total) : Real(0);
    }
    const Real mean = dot(share, back, num_experts);
    for (std::size_t e = 0; e < num_experts; ++e) back[e] = share[e] * (back[e] - mean);
  }
  linear_backward(team, block.router, input.data(), rows, d_share.data(), &part, gradient == nullptr ? nullptr : &gradient->router);
  add(dx, part);
  if (!block.shared.up.is_there()) return dx;
  std::vector<Real> d_out(d.size()), d_gate(rows);
  for (std::size_t r = 0; r < rows; ++r) {
    const Real share = tape.shared_share[r];
    d_gate[r] = dot(d.data() + r * hidden, tape.shared.output.data() + r * hidden, hidden) * share * (1 - share);
    for (std::size_t j = 0; j < hidden; ++j) d_out[r * hidden + j] = share * d[r * hidden + j];
  }
  add(dx, feed_forward_backward(team, config, block.shared, true, tape.shared, d_out.data(), gradient == nullptr ? nullptr : &gradient->shared));
  linear_backward(team, block.shared_router, input.data(), rows, d_gate.data(), &part, gradient == nullptr ? nullptr : &gradient->shared_router);
  add(dx, part);
  return dx;
}

}  // namespace

// ---- Parameters

template <typename Real>
void BlockParameters<Real>::for_each(const std::function<void(const std::string& name, std::vector<Real>& values)>& visit) {
  const auto vector = [&](const std::string& name, std::vector<Real>& values) {
    if (!values.empty()) visit(name, values);
  };
  const auto pair = [&](const std::string& name, auto& of) {
    vector(name + ".weight", of.weight);
    vector(name + ".bias", of.bias);
  };
  for (std::size_t i = 0; i < norms.size(); ++i) pair("norm." + std::to_string(i), norms[i]);
  pair("q_norm", q_norm);
  pair("k_norm", k_norm);
  pair("qkv", qkv);
  pair("o", o);
  pair("mlp.up", mlp.up);
  pair("mlp.down", mlp.down);
  pair("router", router);
  for (std::size_t e = 0; e < experts.size(); ++e) {
    pair("expert." + std::to_string(e) + ".up", experts[e].up);
    pair("expert." + std::to_string(e) + ".down", experts[e].down);
  }
  pair("shared.up", shared.up);
  pair("shared.down", shared.down);
  pair("shared_router", shared_router);
}

template <typename Real>
BlockParameters<Real> BlockParameters<Real>::zeros() const {
  BlockParameters out = *this;
  out.for_each([](const std::string&, std::vector<Real>& values) { std::fill(values.begin(), values.end(), Real(0)); });
  return out;
}

template <typename Real>
BlockParameters<Real> parameters_of(const BlockWeights& weights) {
  const auto linear_of = [](const Linear& from) {
    LinearParameters<Real> to;
    to.rows = from.rows;
    to.columns = from.columns;
    to.weight.resize(from.rows * from.columns);
    std::vector<float> row(from.columns);
    for (std::size_t r = 0; r < from.rows; ++r) {
      from.read_row(r, row.data());
      std::copy(row.begin(), row.end(), to.weight.begin() + static_cast<std::ptrdiff_t>(r * from.columns));
    }
    to.bias.assign(from.bias.begin(), from.bias.end());
    return to;
  };
  const auto norm_of = [](const NormWeights& from) {
    return NormParameters<Real>{{from.weight.begin(), from.weight.end()}, {from.bias.begin(), from.bias.end()}};
  };
  const auto feed_forward_of = [&](const FeedForward& from) { return FeedForwardParameters<Real>{linear_of(from.up), linear_of(from.down)}; };
  BlockParameters<Real> out;
  for (std::size_t i = 0; i < out.norms.size(); ++i) out.norms[i] = norm_of(weights.norms[i]);
  out.q_norm = norm_of(weights.q_norm);
  out.k_norm = norm_of(weights.k_norm);
  out.qkv = linear_of(weights.qkv);
  out.o = linear_of(weights.o);
  out.mlp = feed_forward_of(weights.mlp);
  out.router = linear_of(weights.router);
  for (const FeedForward& expert : weights.experts) out.experts.push_back(feed_forward_of(expert));
  out.shared = feed_forward_of(weights.shared);
  out.shared_router = linear_of(weights.shared_router);
  out.gated = weights.gated;
  return out;
}

namespace {

/// The matrix that a tensor is of, and its rows there; null for what is no matrix of a linear layer. Parameters are those of a block, or constant.
template <typename Parameters>
auto find_rows(Parameters& parameters, const NetworkConfig& config, const TensorSlot& slot)
    -> std::pair<decltype(&parameters.qkv), std::vector<std::size_t>> {
  using Place = std::pair<decltype(&parameters.qkv), std::vector<std::size_t>>;
  const auto heads = static_cast<std::size_t>(config.heads), kv_heads = static_cast<std::size_t>(config.kv_heads);
  const auto dim = static_cast<std::size_t>(config.head_dim);
  const auto rows_of = [](auto& of, std::size_t first, std::size_t count) {
    Place place{&of, std::vector<std::size_t>(count)};
    std::iota(place.second.begin(), place.second.end(), first);
    return place;
  };
  const auto all = [&](auto& of) { return rows_of(of, 0, of.rows); };
  auto& feed_forward = slot.role == Role::shared_gate || slot.role == Role::shared_up || slot.role == Role::shared_down ? parameters.shared
                       : slot.expert >= 0 ? parameters.experts[static_cast<std::size_t>(slot.expert)]
                                          : parameters.mlp;
  const std::size_t inner = feed_forward.down.columns;
  switch (slot.role) {
    case Role::q:
      return rows_of(parameters.qkv, 0, heads * dim);
    case Role::k:
      return rows_of(parameters.qkv, heads * dim, kv_heads * dim);
    case Role::v:
      return rows_of(parameters.qkv, (heads + kv_heads) * dim, kv_heads * dim);
    case Role::qkv: {
      Place place = all(parameters.qkv);
      if (config.architecture->forward.qkv == QkvLayout::per_head)
        for (std::size_t& row : place.second) row = row / dim % 3 * heads * dim + row / (3 * dim) * dim + row % dim;
      return place;
    }
    case Role::o:
      return all(parameters.o);
    case Role::gate:
    case Role::shared_gate:
      return rows_of(feed_forward.up, 0, inner);
    case Role::up:
    case Role::shared_up:
      return rows_of(feed_forward.up, feed_forward.up.rows - inner, inner);
    case Role::gate_up:
      return all(feed_forward.up);
    case Role::down:
    case Role::shared_down:
      return all(feed_forward.down);
    case Role::router:
      return all(parameters.router);
    case Role::shared_router:
      return all(parameters.shared_router);
    default:
      return {};
  }
}

}  // namespace

template <typename Real>
MatrixPlace<Real> place_of_tensor(BlockParameters<Real>& parameters, const NetworkConfig& config, const BlockTensor& tensor) {
  auto [matrix, rows] = find_rows(parameters, config, tensor.slot);
  return {matrix, std::move(rows)};
}

template <typename Real>
void MatrixPlace<Real>::read(std::span<Real> out) const {
  const std::size_t width = matrix->columns;
  WEFT_ASSERT(out.size() == rows.size() * width);
  for (std::size_t r = 0; r < rows.size(); ++r) std::copy_n(matrix->weight.data() + rows[r] * width, width, out.data() + r * width);
}
template <typename Real>
void MatrixPlace<Real>::write(std::span<const Real> values) const {
  const std::size_t width = matrix->columns;
  WEFT_ASSERT(values.size() == rows.size() * width);
  for (std::size_t r = 0; r < rows.size(); ++r) std::copy_n(values.data() + r * width, width, matrix->weight.data() + rows[r] * width);
}

template <typename Real>
std::vector<Real> values_of_tensor(const BlockParameters<Real>& parameters, const NetworkConfig& config, const BlockTensor& tensor) {
  const auto norm = [&](const NormParameters<Real>& of) { return tensor.is_bias ? of.bias : of.weight; };
  switch (tensor.slot.role) {
    case Role::norm:
      return norm(parameters.norms[static_cast<std::size_t>(tensor.slot.site)]);
    case Role::q_norm:
      return norm(parameters.q_norm);
    case Role::k_norm:
      return norm(parameters.k_norm);
    default:
      break;
  }
  const auto [matrix, rows] = find_rows(parameters, config, tensor.slot);
  if (matrix == nullptr) return {};
  std::vector<Real> out;
  if (tensor.is_bias) {
    for (const std::size_t row : rows) out.push_back(matrix->bias[row]);
    return out;
  }
  const std::size_t count = rows.size(), width = matrix->columns;
  out.resize(count * width);
  for (std::size_t r = 0; r < count; ++r)
    for (std::size_t c = 0; c < width; ++c) out[tensor.slot.transposed ? c * count + r : r * width + c] = matrix->weight[rows[r] * width + c];
  return out;
}

template <typename Real>
void normalise_rows(ThreadTeam& team, const NetworkConfig& config, const NormParameters<Real>& norm, const std::vector<Real>& x,
                    std::vector<Real>& out) {
  norm_rows(team, config, norm, x, out);
}
template <typename Real>
void normalise_rows_backward(const NetworkConfig& config, const NormParameters<Real>& norm, const std::vector<Real>& x, std::vector<Real>& d,
                             NormParameters<Real>* gradient) {
  norm_rows_backward(config, norm, x, d, gradient);
}

// ---- The block

template <typename Real>
std::vector<Real> BlockFunction<Real>::forward(const BlockParameters<Real>& block, std::span<const std::size_t> lengths, std::span<const Real> x,
                                               BlockTape<Real>* kept) const {
  const auto hidden = static_cast<std::size_t>(config_.hidden);
  const std::size_t rows = x.size() / hidden;
  WEFT_ASSERT(std::accumulate(lengths.begin(), lengths.end(), std::size_t{0}) == rows);
  BlockTape<Real> own;
  BlockTape<Real>& tape = kept == nullptr ? own : *kept;
  tape = {};
  tape.lengths.assign(lengths.begin(), lengths.end());
  tape.x.assign(x.begin(), x.end());
  const auto norm_of = [&](Site site) -> const NormParameters<Real>& { return block.norms[static_cast<std::size_t>(site)]; };
  const auto normed = [&](Site site, const std::vector<Real>& from, std::vector<Real>& to) -> const std::vector<Real>& {
    if (!norm_of(site).is_there()) return from;
    norm_rows(team_, config_, norm_of(site), from, to);
    return to;
  };
  const Attention<Real> attention(config_, layer_, team_);

  linear(team_, block.qkv, normed(Site::attention_in, tape.x, tape.attention_in).data(), rows, tape.qkv);
  if (block.q_norm.is_there() || block.k_norm.is_there()) tape.qkv_before = tape.qkv;
  attention.prepare(block, lengths, tape.qkv);
  tape.mixed.resize(rows * block.o.columns);
  attention.forward(lengths, tape.qkv, tape.mixed);
  linear(team_, block.o, tape.mixed.data(), rows, tape.attention_out);
  std::vector<Real> behind;
  std::vector<Real> branch = normed(Site::attention_out, tape.attention_out, behind);

  tape.sum = tape.x;
  if (!config_.parallel) add(tape.sum, branch);
  tape.middle = normed(Site::attention_sum, tape.sum, behind);
  const std::vector<Real>& input = normed(Site::mlp_in, tape.middle, tape.mlp_in);
  if (config_.layers[layer_].experts) {
    mixture(team_, config_, block, input, tape, tape.mlp_out);
  } else {
    tape.mlp.input = input;
    feed_forward(team_, config_, block.mlp, block.gated, tape.mlp);
    tape.mlp_out = tape.mlp.output;
  }
  tape.last = tape.middle;
  if (config_.parallel) add(tape.last, branch);
  add(tape.last, normed(Site::mlp_out, tape.mlp_out, behind));
  return normed(Site::mlp_sum, tape.last, behind);
}

template <typename Real>
std::vector<Real> BlockFunction<Real>::backward(const BlockParameters<Real>& block, const BlockTape<Real>& tape, std::span<const Real> d_output,
                                                BlockParameters<Real>* gradient) const {
  const auto hidden = static_cast<std::size_t>(config_.hidden);
  const std::size_t rows = tape.x.size() / hidden;
  WEFT_ASSERT(d_output.size() == tape.x.size());
  const auto through_norm = [&](Site site, const std::vector<Real>& read, std::vector<Real>& d) {
    const auto number = static_cast<std::size_t>(site);
    if (block.norms[number].is_there())
      norm_rows_backward(config_, block.norms[number], read, d, gradient == nullptr ? nullptr : &gradient->norms[number]);
  };
  const auto behind_norm = [&](Site site, const std::vector<Real>& normed, const std::vector<Real>& read) -> const std::vector<Real>& {
    return block.norms[static_cast<std::size_t>(site)].is_there() ? normed : read;
  };
  const Attention<Real> attention(config_, layer_, team_);

  std::vector<Real> d(d_output.begin(), d_output.end());
  through_norm(Site::mlp_sum, tape.last, d);
  // The feed-forward branch.
  std::vector<Real> d_branch = d;
  through_norm(Site::mlp_out, tape.mlp_out, d_branch);
  const std::vector<Real>& mlp_input = behind_norm(Site::mlp_in, tape.mlp_in, tape.middle);
  std::vector<Real> d_middle =
      config_.layers[layer_].experts
          ? mixture_backward(team_, config_, block, mlp_input, tape, d_branch, gradient)
          : feed_forward_backward(team_, config_, block.mlp, block.gated, tape.mlp, d_branch.data(), gradient == nullptr ? nullptr : &gradient->mlp);
  through_norm(Site::mlp_in, tape.middle, d_middle);
  // In parallel, both branches see the same: the attention's share comes straight from the output.
  d_branch = d;
  add(d, d_middle);
  through_norm(Site::attention_sum, tape.sum, d);
  if (!config_.parallel) d_branch = d;
  // The attention branch.
  through_norm(Site::attention_out, tape.attention_out, d_branch);
  std::vector<Real> d_mixed, d_qkv(rows * attention.width());
  linear_backward(team_, block.o, tape.mixed.data(), rows, d_branch.data(), &d_mixed, gradient == nullptr ? nullptr : &gradient->o);
  attention.backward(tape.lengths, tape.qkv, d_mixed, d_qkv);
  attention.prepare_backward(block, tape.lengths, tape.qkv_before, d_qkv, gradient);
  linear_backward(team_, block.qkv, behind_norm(Site::attention_in, tape.attention_in, tape.x).data(), rows, d_qkv.data(), &d_branch,
                  gradient == nullptr ? nullptr : &gradient->qkv);
  through_norm(Site::attention_in, tape.x, d_branch);
  add(d, d_branch);
  return d;
}

template struct BlockParameters<float>;
template struct BlockParameters<double>;
template BlockParameters<float> parameters_of<float>(const BlockWeights&);
template BlockParameters<double> parameters_of<double>(const BlockWeights&);
template std::vector<float> values_of_tensor<float>(const BlockParameters<float>&, const NetworkConfig&, const BlockTensor&);
template std::vector<double> values_of_tensor<double>(const BlockParameters<double>&, const NetworkConfig&, const BlockTensor&);
template struct MatrixPlace<float>;
template struct MatrixPlace<double>;
template MatrixPlace<float> place_of_tensor<float>(BlockParameters<float>&, const NetworkConfig&, const BlockTensor&);
template MatrixPlace<double> place_of_tensor<double>(BlockParameters<double>&, const NetworkConfig&, const BlockTensor&);
template void normalise_rows<float>(ThreadTeam&, const NetworkConfig&, const NormParameters<float>&, const std::vector<float>&, std::vector<float>&);
template void normalise_rows<double>(ThreadTeam&, const NetworkConfig&, const NormParameters<double>&, const std::vector<double>&,
                                     std::vector<double>&);
template void normalise_rows_backward<float>(const NetworkConfig&, const NormParameters<float>&, const std::vector<float>&, std::vector<float>&,
                                             NormParameters<float>*);
template void normalise_rows_backward<double>(const NetworkConfig&, const NormParameters<double>&, const std::vector<double>&, std::vector<double>&,
                                              NormParameters<double>*);
template class BlockFunction<float>;
template class BlockFunction<double>;

}  // namespace weft::model
