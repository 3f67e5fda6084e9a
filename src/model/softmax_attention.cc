#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"
#include "math/gemm.h"
#include "math/neural.h"
#include "model/mixer.h"

namespace weft::model {
namespace {

/// Scores of one unit of work: bounded, so that long contexts cost time and not memory.
constexpr std::size_t kScoresAtOnce = std::size_t{1} << 20;
constexpr std::size_t kMostQueries = 64;
constexpr std::size_t kFewProducts = 200'000;

/// Keys and values of one key head, as rows one behind the other.
struct HeadCache {
  std::vector<float> keys;
  std::vector<float> values;
};

class Cache final : public MixerState {
 public:
  Cache(std::size_t key_heads, std::size_t head_dim, std::int64_t window) : heads_(key_heads), head_dim_(head_dim), window_(window) {}

  [[nodiscard]] std::uint64_t size_bytes() const noexcept override {
    std::uint64_t total = 0;
    for (const HeadCache& head : heads_) total += (head.keys.capacity() + head.values.capacity()) * sizeof(float);
    return total;
  }

  /// Keys that may be held at once: with a window, what no later token can see is dropped, but rarely, since what stays is moved.
  [[nodiscard]] static std::int64_t most_keys(std::int64_t window, std::int64_t num_tokens, std::int64_t at_once) {
    return window > 0 ? std::min(num_tokens, limit(window) + at_once) : num_tokens;
  }
  void reserve(std::int64_t num_tokens) override {
    const auto keys = static_cast<std::size_t>(window_ > 0 ? std::min(num_tokens, limit(window_)) : num_tokens);
    for (HeadCache& head : heads_) {
      head.keys.reserve(keys * head_dim_);
      head.values.reserve(keys * head_dim_);
    }
  }

  /// Makes room for the tokens; append() then fills it, head by head.
  void begin(std::size_t num_tokens) {
    if (window_ > 0 && count_ > limit(window_)) {
      const std::int64_t dropped = count_ - window_;
      for (HeadCache& head : heads_)
        for (std::vector<float>* rows : {&head.keys, &head.values})
          rows->erase(rows->begin(), rows->begin() + dropped * static_cast<std::int64_t>(head_dim_));
      first_ += dropped;
      count_ -= dropped;
    }
    next_ = first_ + count_;
    count_ += static_cast<std::int64_t>(num_tokens);
  }
  void append(std::size_t key_head, const MixerRun& run) {
    HeadCache& head = heads_[key_head];
    for (std::size_t t = 0; t < run.num_tokens; ++t) {
      const float* k = run.k + t * run.k_stride + key_head * head_dim_;
      const float* v = run.v + t * run.v_stride + key_head * head_dim_;
      head.keys.insert(head.keys.end(), k, k + head_dim_);
      head.values.insert(head.values.end(), v, v + head_dim_);
    }
  }
  void clear() {
    for (HeadCache& head : heads_) head = {};
    first_ = count_ = next_ = 0;
  }

  [[nodiscard]] const HeadCache& head(std::size_t key_head) const { return heads_[key_head]; }
  [[nodiscard]] std::int64_t first() const { return first_; }  ///< position of the first key that is kept
  [[nodiscard]] std::int64_t end() const { return first_ + count_; }
  [[nodiscard]] std::int64_t next() const { return next_; }  ///< position of the first token of the present run

 private:
  [[nodiscard]] static std::int64_t limit(std::int64_t window) { return 2 * window + 64; }
  std::vector<HeadCache> heads_;
  std::size_t head_dim_;
  std::int64_t window_;
  std::int64_t first_ = 0, count_ = 0, next_ = 0;
};

class SoftmaxAttention final : public Mixer {
 public:
  explicit SoftmaxAttention(const SoftmaxAttentionOptions& options) : o_(options), group_(options.heads / options.key_heads) {
    WEFT_ASSERT(options.key_heads > 0 && options.heads % options.key_heads == 0);
  }

  [[nodiscard]] std::unique_ptr<MixerState> new_state() const override {
    return std::make_unique<Cache>(o_.key_heads, o_.head_dim, o_.causal ? o_.window : 0);
  }
  [[nodiscard]] std::uint64_t state_bytes(std::int64_t num_tokens, std::int64_t at_once) const override {
    const auto keys = static_cast<std::uint64_t>(Cache::most_keys(o_.causal ? o_.window : 0, num_tokens, at_once));
    return checked_mul(keys, std::uint64_t{2 * sizeof(float)} * o_.key_heads * o_.head_dim, "the size of a cache of keys and values");
  }

  void step(const MixerRun& run) const override {
    Cache& cache = static_cast<Cache&>(*run.state);
    cache.begin(1);
    for (std::size_t h = 0; h < o_.key_heads; ++h) {
      cache.append(h, run);
      attend(run, h, 0, 1, 0, nullptr);
    }
    if (!o_.causal) cache.clear();
  }

  void chunk(std::span<const MixerRun> runs, ThreadTeam& team, MixerTap* tap) const override {
    struct Unit {
      std::size_t run, key_head, first, last;
    };
    std::vector<Unit> units;
    std::size_t products = 0;
    for (std::size_t r = 0; r < runs.size(); ++r) {
      Cache& cache = static_cast<Cache&>(*runs[r].state);
      cache.begin(runs[r].num_tokens);
      const auto keys = static_cast<std::size_t>(cache.end() - cache.first());
      const std::size_t queries = std::clamp<std::size_t>(kScoresAtOnce / std::max<std::size_t>(keys * group_, 1), 1, kMostQueries);
      products += runs[r].num_tokens * keys * o_.heads * o_.head_dim;
      for (std::size_t h = 0; h < o_.key_heads; ++h)
        for (std::size_t t = 0; t < runs[r].num_tokens; t += queries) units.push_back({r, h, t, std::min(t + queries, runs[r].num_tokens)});
    }
    const auto append = [&](std::size_t unit, int) {
      static_cast<Cache&>(*runs[unit / o_.key_heads].state).append(unit % o_.key_heads, runs[unit / o_.key_heads]);
    };
    const auto work = [&](std::size_t unit, int) {
      const Unit& u = units[unit];
      attend(runs[u.run], u.key_head, u.first, u.last, u.run, tap);
    };
    const auto each = [&](std::size_t count, const auto& body) {
      // Waking threads costs microseconds, as much as some ten thousand products.
      if (products > kFewProducts)
        team.for_each(count, body);
      else
        for (std::size_t unit = 0; unit < count; ++unit) body(unit, 0);
    };
    each(runs.size() * o_.key_heads, append);
    each(units.size(), work);
    if (!o_.causal)
      for (const MixerRun& run : runs) static_cast<Cache&>(*run.state).clear();
  }

 private:
  /// Positions [first, last) that a token sees.
  struct Seen {
    std::int64_t first, last;
  };
  [[nodiscard]] Seen seen(const Cache& cache, std::int64_t position) const {
    if (!o_.causal) {
      Seen all{cache.next(), cache.end()};
      if (o_.window > 0) all = {std::max(all.first, position - o_.window + 1), std::min(all.last, position + o_.window)};
      return all;
    }
    return {o_.window > 0 ? std::max(cache.first(), position - o_.window + 1) : cache.first(), position + 1};
  }

  /// Tokens [first, last) of the run, in the heads that read one key head.
  void attend(const MixerRun& run, std::size_t key_head, std::size_t first, std::size_t last, std::size_t run_index, MixerTap* tap) const {
    const Cache& cache = static_cast<const Cache&>(*run.state);
    const HeadCache& head = cache.head(key_head);
    const std::size_t dim = o_.head_dim;
    const std::size_t queries = last - first;
    const std::size_t rows = queries * group_;
    const std::int64_t begin = seen(cache, cache.next() + static_cast<std::int64_t>(first)).first;
    const std::int64_t end = seen(cache, cache.next() + static_cast<std::int64_t>(last) - 1).last;
    const auto keys = static_cast<std::size_t>(end - begin);
    const float* k = head.keys.data() + static_cast<std::size_t>(begin - cache.first()) * dim;
    const float* v = head.values.data() + static_cast<std::size_t>(begin - cache.first()) * dim;

    thread_local std::vector<float> query, scores, mixed;
    query.resize(rows * dim);
    scores.resize(rows * keys);
    mixed.resize(rows * dim);
    const auto query_of = [&](std::size_t row) { return run.q + (first + row % queries) * run.q_stride + (key_head * group_ + row / queries) * dim; };
    for (std::size_t row = 0; row < rows; ++row) {
      const float* q = query_of(row);
      for (std::size_t j = 0; j < dim; ++j) query[row * dim + j] = q[j] * o_.scale;
    }
    const bool is_small = rows <= 8;
    if (is_small)
      math::row_products(DType::f32, reinterpret_cast<const std::byte*>(k), keys, dim, query.data(), dim, rows, scores.data(), keys);
    else
      math::gemm_nt(rows, keys, dim, query.data(), dim, k, dim, scores.data(), keys);
    if (o_.cap > 0) math::soft_cap(o_.cap, scores.data(), rows * keys);
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t token = first + row % queries;
      const Seen visible = seen(cache, cache.next() + static_cast<std::int64_t>(token));
      float* of_row = scores.data() + row * keys;
      const auto from = static_cast<std::size_t>(visible.first - begin);
      const auto to = static_cast<std::size_t>(visible.last - begin);
      std::fill(of_row, of_row + from, 0.0F);
      math::softmax(of_row + from, to - from);
      std::fill(of_row + to, of_row + keys, 0.0F);
      if (tap == nullptr) continue;
      tap->change(visible.first, {of_row + from, to - from});
      tap->attention(run_index, key_head * group_ + row / queries, token, visible.first, {of_row + from, to - from});
    }
    if (is_small) {
      std::fill(mixed.begin(), mixed.end(), 0.0F);
      for (std::size_t j = 0; j < keys; ++j)
        for (std::size_t row = 0; row < rows; ++row)
          if (const float share = scores[row * keys + j]; share != 0) math::add_scaled(share, v + j * dim, mixed.data() + row * dim, dim);
    } else {
      math::gemm_nn(rows, dim, keys, scores.data(), keys, v, dim, mixed.data(), dim);
    }
    for (std::size_t row = 0; row < rows; ++row)
      std::memcpy(run.out + (first + row % queries) * run.out_stride + (key_head * group_ + row / queries) * dim, mixed.data() + row * dim,
                  dim * sizeof(float));
  }

  SoftmaxAttentionOptions o_;
  std::size_t group_;
};

}  // namespace

std::unique_ptr<Mixer> make_softmax_attention(const SoftmaxAttentionOptions& options) { return std::make_unique<SoftmaxAttention>(options); }

}  // namespace weft::model
