#include "engine/measure_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>

#include "base/budget.h"
#include "base/file.h"
#include "engine/computed_checkpoint.h"
#include "engine/measure_gradient.h"
#include "engine/measure_layers.h"
#include "math/lapack.h"
#include "measure/activations.h"
#include "model/vocabulary.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using measure::Inputs;
using measure::put;
using measure::Selection;
using model::Role;
using model::Rows;

// How much of the text each group looks at: what its definition asks for.
constexpr std::size_t kImportanceTokens = 4096, kShortTokens = 2048, kGeometryTokens = 3072;
// Beyond this side a matrix is left out of what costs its cube, unless named.
constexpr std::int64_t kSparedSide = 2048;

// ---- Attention ----

class HeadTap final : public model::MixerTap {
 public:
  measure::HeadMaps maps;
  std::size_t first_row = 0;  // of the slice that is at work

  void attention(std::size_t run, std::size_t head, std::size_t token, std::int64_t first_key, std::span<const float> shares) override {
    // Windows have one length, so a piece's window and its first token follow from where the slice begins.
    const std::size_t n = maps.tokens, sequence = first_row / n + run, at = (run == 0 ? first_row % n : 0) + token;
    if (sequence >= maps.sequences || at >= n) return;
    const auto begin = static_cast<std::size_t>(first_key);
    if (begin + shares.size() > n) return;
    std::copy(shares.begin(), shares.end(),
              maps.shares.begin() + static_cast<std::ptrdiff_t>(((head * maps.sequences + sequence) * n + at) * n + begin));
  }
};

// ---- One pass over the first text ----

struct Wanted {
  bool channels, alignment, utilized, pca, heads, importance, residual, cka;
  explicit Wanted(const Selection& selection)
      : channels(selection.wants("channels")),
        alignment(selection.wants("spectral_alignment")),
        utilized(selection.wants("utilized_rank")),
        pca(selection.wants("w_pca")),
        heads(selection.wants("heads")),
        importance(selection.wants("importance")),
        residual(selection.wants("residual")),
        cka(selection.wants("cka")) {}
};

class StatisticsTap final : public model::NetworkTap {
 public:
  StatisticsTap(RunningModel& running, const BlockWeights& weights, const Selection& selection, std::size_t window, std::size_t windows,
                std::uint64_t memory_bytes, bool keep_down, MeasuredModel& out)
      : running_(running),
        weights_(weights),
        selection_(selection),
        wanted_(selection),
        window_(window),
        total_(window * windows),
        importance_rows_(rows_within(kImportanceTokens)),
        short_rows_(rows_within(kShortTokens)),
        keep_down_(keep_down),
        out_(out) {
    const auto heads = static_cast<std::size_t>(running.config().heads);
    maps_bytes_ = 4 * heads * short_rows_ * window;
    maps_fit_ = maps_bytes_ < memory_bytes / 4;
    memory_bytes_ = memory_bytes;
  }

  TextStreams streams;
  std::array<std::vector<double>, measure::kUtilizedShares.size()> utilisations;
  std::map<std::string, double> components;  // of W-PCA, summed over blocks

  void embedding(const Rows& rows) override {
    streams.rows = static_cast<std::int64_t>(short_rows_);
    streams.hidden = static_cast<std::int64_t>(rows.num_columns);
    keep_point(rows);
    if (wanted_.importance) previous_ = copy(rows, importance_rows_);
  }

  void linear_input(int layer, Role role, int expert, std::size_t first_row, const Rows& rows) override {
    if (role == Role::q) head_tap_.first_row = first_row;
    if (role == Role::router) has_experts_ = true;
    const std::optional<Slot> slot = slot_of(role);
    if (!slot) return;
    running_.check_cancelled();
    Place& place = expert >= 0 ? experts_[{expert, *slot}] : places_[*slot];
    if (place.rows == 0) place = Place{};
    const std::size_t d = rows.num_columns;
    place.columns = d;
    place.sum_squares.resize(d);
    const bool costly = static_cast<std::int64_t>(d) > kSparedSide && selection_.spares();
    const bool moment = wanted_.utilized && !costly && (expert < 0 || moments_fit(d));
    if (moment) place.moment.resize(d * d);
    std::vector<double> values(rows.num_rows * d);
    for (std::size_t r = 0; r < rows.num_rows; ++r) {
      const float* row = rows.row(r);
      for (std::size_t c = 0; c < d; ++c) {
        const auto value = static_cast<double>(row[c]);
        values[r * d + c] = value;
        place.sum_squares[c] += value * value;
        place.max_abs = std::max(place.max_abs, std::abs(value));
      }
      // An expert's rows are not those of the slice, but no more than them.
      const std::size_t at = expert >= 0 ? place.rows + r : first_row + r;
      if (at < short_rows_ && ((!costly && (wanted_.alignment || (wanted_.pca && expert < 0))) || (keep_down_ && expert < 0 && *slot == kDown)))
        place.kept.insert(place.kept.end(), row, row + d);
    }
    if (moment)
      math::add_gram(math::GramOf::columns, values.data(), static_cast<std::int64_t>(rows.num_rows), static_cast<std::int64_t>(d), place.moment);
    place.rows += rows.num_rows;
    if (expert < 0 && place.rows == total_) finish(layer, *slot, place);
  }

  model::MixerTap* mixer(int) override {
    if (!wanted_.heads || !maps_fit_) return nullptr;
    if (head_tap_.maps.shares.empty()) {
      head_tap_.maps.heads = static_cast<std::size_t>(running_.config().heads);
      head_tap_.maps.sequences = short_rows_ / window_;
      head_tap_.maps.tokens = window_;
      head_tap_.maps.causal = running_.config().kind == model::NetworkKind::decoder;
      head_tap_.maps.shares.resize(maps_bytes_ / 4);
    }
    return &head_tap_;
  }

  void block_output(int layer, const Rows& rows) override {
    running_.check_cancelled();
    Measures& block = block_of(out_, layer).measures;
    if (wanted_.heads) {
      if (!maps_fit_) {
        measure::skip_group(block, "heads", "attention of so many tokens does not fit the memory: choose a smaller --window or a larger --memory");
      } else if (!head_tap_.maps.shares.empty()) {
        measure::measure_heads(head_tap_.maps, block);
        std::fill(head_tap_.maps.shares.begin(), head_tap_.maps.shares.end(), 0.0F);
      }
    }
    if (wanted_.importance) {
      const std::vector<float> after = copy(rows, importance_rows_);
      const std::size_t d = rows.num_columns;
      double sum = 0;
      std::size_t counted = 0;
      for (std::size_t r = 0; r < importance_rows_; ++r) {
        double dot = 0, a = 0, b = 0;
        for (std::size_t c = 0; c < d; ++c) {
          const auto x = static_cast<double>(previous_[r * d + c]), y = static_cast<double>(after[r * d + c]);
          dot += x * y;
          a += x * x;
          b += y * y;
        }
        if (a > 0 && b > 0) {
          sum += dot / std::sqrt(a) / std::sqrt(b);
          ++counted;
        }
      }
      put(block, "importance.lim", counted > 0 ? -sum / static_cast<double>(counted) : std::numeric_limits<double>::quiet_NaN(),
          "hidden states are zero");
      measure_spread(layer, block);
      previous_ = after;
    }
    if (has_experts_) finish_experts(layer);
    has_experts_ = false;
    experts_.clear();
    for (Place& place : places_) place = Place{};
    keep_point(rows);
  }

  void keep_final(std::vector<float> rows) { streams.points.push_back(std::move(rows)); }
  [[nodiscard]] std::size_t short_rows() const noexcept { return short_rows_; }

 private:
  struct Place {
    std::size_t rows = 0, columns = 0;
    std::vector<double> sum_squares, moment;
    double max_abs = 0;
    std::vector<float> kept;
  };

  [[nodiscard]] std::size_t rows_within(std::size_t tokens) const { return std::min(total_, std::max<std::size_t>(1, tokens / window_) * window_); }
  static std::vector<float> copy(const Rows& rows, std::size_t count) {
    std::vector<float> result(count * rows.num_columns);
    for (std::size_t r = 0; r < count; ++r)
      std::copy_n(rows.row(r), rows.num_columns, result.begin() + static_cast<std::ptrdiff_t>(r * rows.num_columns));
    return result;
  }
  void keep_point(const Rows& rows) {
    if (wanted_.cka || wanted_.residual) streams.points.push_back(copy(rows, short_rows_));
  }

  /// Share of a block's weights above one standard deviation (ZD).
  void measure_spread(int layer, Measures& block) const {
    double n = 0, sum = 0, sum_squares = 0, above = 0;
    const auto tensors = weights_.all_of(layer);
    for (const auto& [tensor, role] : tensors) {
      for (const double value : read_doubles(weights_.checkpoint(), *tensor)) {
        n += 1;
        sum += value;
        sum_squares += value * value;
      }
    }
    if (n == 0) return;
    const double mean = sum / n, bar = mean + std::sqrt(std::max(0.0, sum_squares / n - mean * mean));
    for (const auto& [tensor, role] : tensors)
      for (const double value : read_doubles(weights_.checkpoint(), *tensor)) above += value > bar;
    put(block, "importance.zd", above / n);
  }

  void finish(int layer, Slot slot, Place& place) {
    MeasuredBlock& block = block_of(out_, layer);
    if (wanted_.channels) put_channels(std::string("channels.") + kSlotNames[slot] + ".", place, block.measures);
    if (wanted_.alignment || wanted_.utilized || (wanted_.pca && slot == kFeedForward)) measure_matrices(layer, slot, -1, place, block.measures);
    if (keep_down_ && slot == kDown) {
      streams.down_inputs.resize(static_cast<std::size_t>(layer) + 1);
      streams.down_inputs.back() = place.kept;
    }
  }

  static void put_channels(const std::string& at, const Place& place, Measures& out) {
    put(out, at + "sum_squares", std::accumulate(place.sum_squares.begin(), place.sum_squares.end(), 0.0));
    put(out, at + "max_abs", place.max_abs);
    std::vector<std::uint32_t> order(place.columns);
    std::iota(order.begin(), order.end(), 0U);
    const std::size_t top = std::min<std::size_t>(4, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(), [&](std::uint32_t a, std::uint32_t b) {
      return place.sum_squares[a] != place.sum_squares[b] ? place.sum_squares[a] > place.sum_squares[b] : a < b;
    });
    for (std::size_t i = 0; i < top; ++i) put(out, fmt::format("{}top_channels.{}", at, i), order[i]);
  }

  /// Whether the second moments of all experts of a layer do.
  [[nodiscard]] bool moments_fit(std::size_t d) const {
    const auto experts = static_cast<std::uint64_t>(running_.config().experts);
    return experts == 0 || d * d <= memory_bytes_ / 4 / sizeof(double) / 2 / experts;
  }

  /// Routed experts have their inputs together when the whole block has run.
  void finish_experts(int layer) {
    MeasuredBlock& block = block_of(out_, layer);
    std::size_t unused = 0, most = 0;
    for (int e = 0; e < static_cast<int>(running_.config().experts); ++e) {
      const auto found = experts_.find({e, kFeedForward});
      const std::size_t tokens = found == experts_.end() ? 0 : found->second.rows;
      unused += tokens == 0;
      most = std::max(most, tokens);
      if (wanted_.channels) put(block.measures, fmt::format("channels.experts.{}.tokens", e), static_cast<double>(tokens));
      for (const Slot slot : {kFeedForward, kDown}) {
        const auto at = experts_.find({e, slot});
        if (at == experts_.end()) {
          skip_readers(layer, slot, e, "no token of the text reached this expert");
          continue;
        }
        if (wanted_.channels) put_channels(fmt::format("channels.experts.{}.{}.", e, kSlotNames[slot]), at->second, block.measures);
        if (wanted_.alignment || wanted_.utilized) measure_matrices(layer, slot, e, at->second, block.measures);
      }
    }
    if (wanted_.channels) {
      const auto choices = static_cast<double>(total_) * static_cast<double>(running_.config().experts_per_token);
      put(block.measures, "channels.experts.unused", static_cast<double>(unused));
      put(block.measures, "channels.experts.largest_share", static_cast<double>(most) / choices);
    }
    if (wanted_.pca) block.measures.skipped.emplace_back("w_pca.experts", "each routed expert sees tokens of its own");
  }

  void skip_readers(int layer, Slot slot, int expert, const std::string& reason) {
    for (const auto& [tensor, role] : weights_.of(layer, expert))
      if (MeasuredTensor* entry = slot_of(role) == slot ? entry_of(out_, *tensor, role, layer) : nullptr)
        for (const char* group : {"spectral_alignment", "utilized_rank"})
          if (selection_.wants(group)) measure::skip_group(entry->measures, group, reason);
  }

  void measure_matrices(int layer, Slot slot, int expert, Place& place, Measures& block) {
    const auto in = static_cast<std::int64_t>(place.columns);
    std::vector<std::pair<const TensorInfo*, Role>> readers;
    for (const auto& reader : weights_.of(layer, expert))
      if (slot_of(reader.second) == slot) readers.push_back(reader);
    const auto skip_all = [&](const std::string& reason) {
      skip_readers(layer, slot, expert, reason);
      if (wanted_.pca && slot == kFeedForward && expert < 0) measure::skip_group(block, "w_pca", reason);
    };
    if (in > kSparedSide && selection_.spares())
      return skip_all("costly for a matrix of this size: ask for it with --what spectral_alignment,utilized_rank,w_pca");
    if (std::accumulate(place.sum_squares.begin(), place.sum_squares.end(), 0.0) == 0) return skip_all("inputs are zero");
    std::optional<measure::SecondMoment> moment, centred;
    if (wanted_.utilized && !place.moment.empty()) moment.emplace(std::move(place.moment), in);
    const Inputs kept{place.kept, static_cast<std::int64_t>(place.kept.size() / place.columns), in};
    if (wanted_.pca && slot == kFeedForward && expert < 0 && kept.rows > 1) centred.emplace(covariance(kept), in);
    std::mutex mutex;
    running_.network().team().for_each(readers.size(), [&](std::size_t i, int) {
      const auto& [tensor, role] = readers[i];
      const BlockWeight weight = weights_.load(*tensor, in);
      if (weight.columns != in) return;
      Measures own;
      if (!std::all_of(weight.values.begin(), weight.values.end(), [](double value) { return std::isfinite(value); })) {
        for (const char* group : {"spectral_alignment", "utilized_rank"})
          if (selection_.wants(group)) measure::skip_group(own, group, "non-finite");
      } else {
        if (wanted_.alignment) measure::measure_alignment(weight.matrix(), kept, own);
        if (moment) measure::measure_utilized(weight.matrix(), *moment, own);
        if (wanted_.utilized && !moment)
          measure::skip_group(own, "utilized_rank", "second moments of all experts do not fit the memory: choose a larger --memory");
      }
      std::vector<std::pair<double, std::uint64_t>> counts;
      const bool gate = role == Role::gate || role == Role::shared_gate || role == Role::gate_up || (role == Role::up && readers.size() == 1);
      if (centred && gate) {
        // Of gate and up in one matrix the gate is the upper half.
        const std::int64_t rows = role == Role::gate_up ? weight.rows / 2 : weight.rows;
        const std::vector<double> values =
            centred->eigenvalues_behind({std::span(weight.values).first(static_cast<std::size_t>(rows * in)), rows, in});
        for (const double eta : {0.9, 0.99}) counts.emplace_back(eta, measure::count_for_share(values, eta + 1e-12, measure::Bar::passed));
      }
      const std::lock_guard lock(mutex);
      for (const auto& [eta, count] : counts) {
        const std::string key = fmt::format("w_pca.components.{}", eta);
        put(block, key, static_cast<double>(count));
        components[fmt::format("{}", eta)] += static_cast<double>(count);
      }
      MeasuredTensor* entry = entry_of(out_, *tensor, role, layer);
      for (std::size_t s = 0; s < measure::kUtilizedShares.size(); ++s)
        if (const double* value = own.find(fmt::format("utilized_rank.{}.utilisation", measure::kUtilizedShares[s])))
          utilisations[s].push_back(*value);
      if (entry == nullptr) return;
      if (moment && place.rows < 10 * place.columns)
        entry->notes.push_back(fmt::format("{} tokens for {} dimensions: utilized_rank wants ten times as many, fewer cap it", place.rows, in));
      for (auto& value : own.values) entry->measures.values.push_back(std::move(value));
      for (auto& skipped : own.skipped) entry->measures.skipped.push_back(std::move(skipped));
    });
  }

  static std::vector<double> covariance(const Inputs& x) {
    const auto d = static_cast<std::size_t>(x.columns), rows = static_cast<std::size_t>(x.rows);
    std::vector<double> values(x.values.begin(), x.values.end()), means(d), result(d * d);
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < d; ++c) means[c] += values[r * d + c] / static_cast<double>(rows);
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < d; ++c) values[r * d + c] -= means[c];
    math::add_gram(math::GramOf::columns, values.data(), x.rows, x.columns, result);
    return result;
  }

  RunningModel& running_;
  const BlockWeights& weights_;
  const Selection& selection_;
  Wanted wanted_;
  std::size_t window_, total_, importance_rows_, short_rows_;
  bool keep_down_;
  MeasuredModel& out_;
  std::size_t maps_bytes_ = 0;
  std::uint64_t memory_bytes_ = 0;
  bool maps_fit_ = false, has_experts_ = false;
  HeadTap head_tap_;
  std::array<Place, kSlots> places_;
  std::map<std::pair<int, Slot>, Place> experts_;
  std::vector<float> previous_;
};

}  // namespace

TextStreams measure_text(const std::string& name, const Selection& selection, const MeasureOptions& options, MeasuredModel& out,
                         std::vector<std::string>& warnings) {
  const RunOptions run_options = run_options_of(options);
  RunningModel running(name, run_options);
  const model::NetworkConfig& config = running.config();
  if (config.layers.empty() || (config.kind != model::NetworkKind::decoder && config.kind != model::NetworkKind::encoder))
    throw Error(ErrorCode::unsupported, "texts run through decoders and encoders only", {.file = running.files().folder.string(), .key = "--text"},
                "leave --text out");
  const BlockWeights weights(running.files().checkpoint, config.architecture);
  const std::filesystem::path& file = options.texts.front();
  std::vector<std::uint32_t> all = ids_of(running, file);
  std::size_t window = window_of(running, options);
  if (all.size() < window) {
    warnings.push_back(
        fmt::format("{}: {} has {} tokens, less than one window of {}: taken as one shorter window", name, file.string(), all.size(), window));
    window = all.size();
  }
  const std::uint64_t wanted_tokens = options.max_tokens > 0 ? options.max_tokens : MeasureOptions{}.max_tokens;
  const std::size_t windows = std::max<std::size_t>(1, std::min<std::size_t>(all.size() / window, static_cast<std::size_t>(wanted_tokens / window)));
  const std::vector<std::uint32_t> ids(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(windows * window));
  if (selection.wants("text")) {
    put(out.model, "text.tokens", static_cast<double>(ids.size()));
    put(out.model, "text.window", static_cast<double>(window));
  }

  StatisticsTap tap(running, weights, selection, window, windows, MemoryBudget(options.memory_bytes).limit_bytes(),
                    !options.base.empty() && selection.wants("cka"), out);
  const Wanted wanted(selection);
  if (selection.wants("text") || wanted.channels || wanted.alignment || wanted.utilized || wanted.pca || wanted.heads || wanted.importance ||
      wanted.residual || wanted.cka) {
    std::vector<float> x = running.network().run(chunks_of(ids, window), &tap);
    if (selection.wants("text"))
      put(out.model, "text.loss", mean_loss(running, running.network(), x, ids, window, ids.size()), "the model does not predict tokens");
    if (wanted.cka || wanted.residual) {
      x.resize(tap.short_rows() * static_cast<std::size_t>(config.hidden));
      running.network().normalise(x);
      tap.keep_final(std::move(x));
    }
  }
  TextStreams& streams = tap.streams;
  streams.ids.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(tap.short_rows()));
  if (wanted.utilized) {
    for (std::size_t s = 0; s < measure::kUtilizedShares.size(); ++s)
      if (!tap.utilisations[s].empty())
        put(out.model, fmt::format("utilized_rank.mean_utilisation.{}", measure::kUtilizedShares[s]),
            std::accumulate(tap.utilisations[s].begin(), tap.utilisations[s].end(), 0.0) / static_cast<double>(tap.utilisations[s].size()));
  }
  if (wanted.pca && !tap.components.empty()) {
    double parameters = 0;
    for (const TensorInfo& tensor : running.files().checkpoint->tensors()) parameters += static_cast<double>(tensor.num_elements);
    put(out.model, "w_pca.parameters", parameters);
    for (const auto& [eta, sum] : tap.components) put(out.model, "w_pca.score." + eta, parameters * sum);
  }
  if (wanted.residual) {
    for (std::size_t p = 0; p < streams.points.size(); ++p) {
      std::vector<float> sizes = streams.points[p];
      double sum = 0;
      for (float& value : sizes) {
        sum += static_cast<double>(value) * static_cast<double>(value);
        value = std::abs(value);
      }
      const std::size_t half = sizes.size() / 2;
      std::nth_element(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(half), sizes.end());
      double middle = static_cast<double>(sizes[half]);
      if (sizes.size() % 2 == 0)
        middle = (middle + static_cast<double>(*std::max_element(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(half)))) / 2;
      const std::string at = fmt::format("residual.{}.", p);
      put(out.model, at + "max_abs", static_cast<double>(*std::max_element(sizes.begin(), sizes.end())));
      put(out.model, at + "median_abs", middle);
      put(out.model, at + "rms", std::sqrt(sum / static_cast<double>(sizes.size())));
    }
  }
  if (wanted.cka) {
    const std::size_t points = streams.points.size();
    const double d = static_cast<double>(streams.hidden), products = d * d * static_cast<double>(streams.rows) * static_cast<double>(points * points);
    const bool all_pairs = products < 2e13 || !selection.spares();
    if (!all_pairs) out.model.skipped.emplace_back("cka.layers", "costly for a model of this size: neighbours only; ask for all with --what cka");
    std::vector<std::pair<std::size_t, std::size_t>> pairs;
    for (std::size_t a = 0; a < points; ++a)
      for (std::size_t b = a + 1; b < points; ++b)
        if (all_pairs || b == a + 1 || a == 0) pairs.emplace_back(a, b);
    std::vector<double> values(pairs.size());
    running.network().team().for_each(pairs.size(), [&](std::size_t i, int) {
      const auto rows = [&](std::size_t p) { return Inputs{streams.points[p], streams.rows, streams.hidden}; };
      values[i] = measure::cka(rows(pairs[i].first), rows(pairs[i].second));
    });
    for (std::size_t i = 0; i < pairs.size(); ++i)
      put(out.model, fmt::format("cka.layers.{}.{}", pairs[i].first, pairs[i].second), values[i], "hidden states do not vary");
  }
  if (selection.wants("super_weights")) measure_super_weights(running, weights, run_options, selection, ids, window, out);
  if (selection.wants("clamp")) measure_clamps(running, weights, selection, options, ids, window, out);
  measure_gradients(running, selection, options, ids, window, out);
  if (selection.wants("language_geometry")) {
    std::vector<GeometryText> texts;
    const std::size_t most = std::max<std::size_t>(1, kGeometryTokens / window) * window;
    std::size_t count = most;
    std::vector<std::vector<std::uint32_t>> streams_of;
    for (std::size_t t = 0; t < options.texts.size(); ++t) {
      streams_of.push_back(t == 0 ? std::move(all) : ids_of(running, options.texts[t]));
      count = std::min(count, streams_of.back().size() / window * window);
    }
    if (options.texts.size() < 2) {
      measure::skip_group(out.model, "language_geometry", "there is one text: give --text several times");
    } else if (count == 0) {
      measure::skip_group(out.model, "language_geometry", "a text is shorter than one window");
    } else {
      if (count < most) warnings.push_back(fmt::format("{}: the shortest text has {} tokens: that many of each are compared", name, count));
      for (std::size_t t = 0; t < options.texts.size(); ++t)
        texts.push_back({options.texts[t].string(), {streams_of[t].begin(), streams_of[t].begin() + static_cast<std::ptrdiff_t>(count)}});
      // What two samples of one text differ by is the floor of all distances.
      if (streams_of[0].size() >= 2 * count)
        texts.push_back(
            {options.texts[0].string() + ", what follows",
             {streams_of[0].begin() + static_cast<std::ptrdiff_t>(count), streams_of[0].begin() + static_cast<std::ptrdiff_t>(2 * count)}});
      measure_geometry(running, weights, texts, window, out);
      if (texts.size() > options.texts.size())
        if (const double* floor = out.model.find(fmt::format("language_geometry.0.5.hamming.0.{}", texts.size() - 1)))
          put(out.model, "language_geometry.floor", *floor);
    }
  }
  for (const std::string& warning : running.warnings()) warnings.push_back(name + ": " + warning);
  running.files().checkpoint->check_unchanged();
  return std::move(tap.streams);
}

void compare_streams(const TextStreams& base, const TextStreams& model, ModelComparison& out) {
  if (base.ids != model.ids) return measure::skip_group(out.total, "cka", "the two models split the text into different tokens");
  if (base.points.size() != model.points.size()) out.total.skipped.emplace_back("cka.plain", "the models have different numbers of layers");
  const auto rows = [](const TextStreams& streams, std::size_t p) { return Inputs{streams.points[p], streams.rows, streams.hidden}; };
  constexpr const char* kReason = "hidden states do not vary";
  const bool alike = base.points.size() == model.points.size();
  for (std::size_t p = 0; alike && p < base.points.size(); ++p) {
    put(out.total, fmt::format("cka.plain.{}", p), measure::cka(rows(model, p), rows(base, p)), kReason);
    put(out.total, fmt::format("cka.debiased.{}", p), measure::cka_debiased(rows(model, p), rows(base, p)), kReason);
    put(out.total, fmt::format("cka.debiased_batches_of_256.{}", p), measure::cka_debiased(rows(model, p), rows(base, p), 256), kReason);
  }
  const double d = static_cast<double>(base.hidden), pairs = static_cast<double>(base.points.size() * model.points.size());
  if (d * d * static_cast<double>(base.rows) * pairs > 2e13) {
    out.total.skipped.emplace_back("cka.cross", "costly for models of this size");
  } else {
    for (std::size_t a = 0; a < model.points.size(); ++a)
      for (std::size_t b = 0; b < base.points.size(); ++b)
        put(out.total, fmt::format("cka.cross.{}.{}", a, b), measure::cka(rows(model, a), rows(base, b)), kReason);
  }
  for (std::size_t l = 0; l < std::min(base.down_inputs.size(), model.down_inputs.size()); ++l) {
    if (base.down_inputs[l].empty() || base.down_inputs[l].size() % static_cast<std::size_t>(base.rows) != 0 || model.down_inputs[l].empty())
      continue;
    const auto inner = [&](const TextStreams& streams) {
      return Inputs{streams.down_inputs[l], streams.rows, static_cast<std::int64_t>(streams.down_inputs[l].size()) / streams.rows};
    };
    put(out.total, fmt::format("cka.representation_alignment_down_inputs.{}", l), measure::representation_alignment(inner(model), inner(base)),
        "inputs are zero");
  }
}

void measure_barrier(const std::string& base, const std::string& model, const MeasureOptions& options, ModelComparison& out) {
  const RunOptions run = run_options_of(options);
  RunningModel first(base, run);
  const ModelFiles second = open_model_files(model);
  std::vector<std::uint32_t> ids = ids_of(first, options.texts.front());
  const std::size_t window = std::min(window_of(first, options), ids.size());
  const std::size_t tokens =
      std::min<std::size_t>(kShortTokens, options.max_tokens > 0 ? static_cast<std::size_t>(options.max_tokens) : kShortTokens);
  ids.resize(std::min(ids.size() / window, std::max<std::size_t>(1, tokens / window)) * window);
  for (const TensorInfo& tensor : first.files().checkpoint->tensors()) {
    const TensorInfo* other = second.checkpoint->find_tensor(tensor.name);
    if (other == nullptr || other->shape != tensor.shape) return measure::skip_group(out.total, "barrier", "the models differ in their tensors");
  }
  constexpr int kSteps = 8;
  std::vector<double> losses;
  for (int step = 0; step <= kSteps; ++step) {
    first.check_cancelled();
    const double t = static_cast<double>(step) / kSteps;
    const std::shared_ptr<const Checkpoint> checkpoint = step == 0        ? first.files().checkpoint
                                                         : step == kSteps ? second.checkpoint
                                                                          : between(first.files().checkpoint, second.checkpoint, t);
    model::Network network(checkpoint, step == kSteps ? second.config : first.json(),
                           model::NetworkOptions{run.precision, run.threads, run.memory_bytes, run.allow_non_finite});
    losses.push_back(mean_loss(first, network, network.run(chunks_of(ids, window)), ids, window, ids.size()));
    if (std::isnan(losses.back())) return measure::skip_group(out.total, "barrier", "the model does not predict tokens");
  }
  const double mean = (losses.front() + losses.back()) / 2;
  std::size_t far = 0;
  double height = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const double t = static_cast<double>(i) / kSteps;
    put(out.total, fmt::format("barrier.loss.{}", i), losses[i]);
    if (std::abs(mean - losses[i]) > std::abs(mean - losses[far])) far = i;
    height = std::max(height, losses[i] - ((1 - t) * losses.front() + t * losses.back()));
  }
  put(out.total, "barrier.mc", mean - losses[far]);
  put(out.total, "barrier.at", static_cast<double>(far) / kSteps);
  put(out.total, "barrier.height", height);
}

void name_decoded_tokens(const std::string& name, MeasuredModel& out) {
  std::optional<ModelFiles> files;
  try {
    files.emplace(open_model_files(name));
    if (path_kind(files->folder) != PathKind::folder || model::tokenizer_files(files->folder).empty()) return;
    const model::Tokenizer tokenizer = model::Tokenizer::open(files->folder);
    for (MeasuredBlock& block : out.blocks) {
      std::vector<std::pair<std::string, std::string>> labels;
      for (const auto& [key, value] : block.measures.values) {
        if (!key.starts_with("decoding.") || (key.find(".top.") == std::string::npos && key.find(".bottom.") == std::string::npos)) continue;
        const std::array<std::uint32_t, 1> id = {static_cast<std::uint32_t>(value)};
        std::string text = tokenizer.decode(id);
        if (text.empty() || text.find("\xEF\xBF\xBD") != std::string::npos)
          if (const std::string* token = tokenizer.token(id[0])) text = *token;
        labels.emplace_back(key, std::move(text));
      }
      for (auto& label : labels) block.measures.labels.push_back(std::move(label));
    }
  } catch (const Error&) {
    // Numbers without names are still numbers: a damaged tokenizer must not hide them.
  }
}

}  // namespace weft::engine
