#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>

#include "math/row_select.h"
#include "merge/table.h"
#include "merge/task_vector.h"
#include "weft/error.h"

// cabs: of every m consecutive entries keep each model's n largest changes, of those that no earlier model kept. Source: zongzhenyang/CABS.
namespace weft::merge {
namespace {

struct Vector {
  std::size_t input;
  double factor;
};

class Cabs final : public TensorMerge {
 public:
  Cabs(std::size_t base, std::vector<Vector> vectors, std::size_t n, std::size_t m, std::size_t num_inputs)
      : base_(base), vectors_(std::move(vectors)), n_(n), m_(m), reads_(num_inputs, false) {
    reads_[base_] = true;
    for (const Vector& v : vectors_) reads_[v.input] = true;
  }

  /// Blocks never straddle tiles.
  [[nodiscard]] Tiling tiling() const override {
    const std::uint64_t step = std::lcm(static_cast<std::uint64_t>(m_), std::uint64_t{64});
    return {Tiling::Unit::elements, std::max<std::uint64_t>(1, Tiling{}.elements / step) * step};
  }
  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return vectors_.empty() || n_ == 0 ? std::optional(base_) : std::nullopt; }
  [[nodiscard]] bool reads_input(std::size_t i) const override { return reads_[i]; }

  void map(const Tile& tile, std::span<float> out) const override {
    thread_local Scratch scratch;
    scratch.hints.assign(vectors_.size(), 0);
    for (std::size_t begin = 0; begin < tile.count; begin += m_) merge_block(tile, begin, std::min(m_, tile.count - begin), out, scratch);
  }

 private:
  struct Scratch {
    std::vector<std::uint32_t> keys;   ///< of one model's changes; 0 where an earlier one kept the entry
    std::vector<std::uint32_t> taken;  ///< by any model so far: all bits set or none
    std::vector<std::uint32_t> hints;  ///< each model's threshold in the block before
  };

  void merge_block(const Tile& tile, std::size_t begin, std::size_t length, std::span<float> out, Scratch& scratch) const {
    scratch.keys.resize(length);
    scratch.taken.assign(length, 0);
    // A short block at the end of the tensor keeps the same share, rounded up.
    const std::size_t quota = length == m_ ? n_ : (n_ * length + m_ - 1) / m_;
    const std::span<const float> base = tile.input(base_).subspan(begin, length);
    const std::span<float> result = out.subspan(begin, length);
    std::copy(base.begin(), base.end(), result.begin());
    for (std::size_t k = 0; k < vectors_.size(); ++k) {
      const std::span<const float> model = tile.input(vectors_[k].input).subspan(begin, length);
      const std::uint32_t largest = math::change_keys(model, base, scratch.taken, scratch.keys);
      math::LargestKeys which = math::largest_keys(scratch.keys, quota, largest, scratch.hints[k]);
      scratch.hints[k] = which.threshold;
      // An unchanged entry is never kept.
      if (which.threshold == 0) which = {.threshold = 1, .last_tie = static_cast<std::uint32_t>(length - 1)};
      math::take_largest(scratch.keys, which, model, base, vectors_[k].factor, scratch.taken, result);
    }
  }

  std::size_t base_;
  std::vector<Vector> vectors_;
  std::size_t n_;
  std::size_t m_;
  std::vector<bool> reads_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  const double n = context.values.number("n");
  const double m = context.values.number("m");
  if (n > m) {
    throw Error(ErrorCode::invalid_argument,
                "n is " + std::to_string(static_cast<int>(n)) + ", more than the " + std::to_string(static_cast<int>(m)) + " entries of a block (m)",
                {.tensor = context.name, .key = "n"}, "give n <= m");
  }
  const double lambda = context.values.number("lambda");
  std::vector<Vector> vectors;
  for (const std::size_t position : context.non_base()) {
    const double factor = lambda * context.inputs[position].values.number("weight");
    if (factor != 0) vectors.push_back({position, factor});
  }
  return std::make_unique<Cabs>(required_base(context), std::move(vectors), static_cast<std::size_t>(n), static_cast<std::size_t>(m),
                                context.inputs.size());
}

}  // namespace

Method cabs() {
  Method m;
  m.name = "cabs";
  m.summary = "of each block of weights keep every model's largest changes, without overlap, and add them";
  m.paper = "github.com/zongzhenyang/CABS";
  m.parameters = {
      {.name = "weight",
       .scope = ParameterScope::per_model,
       .default_value = 1,
       .help = "factor of this model's task vector; 0 leaves the model out"},
      {.name = "n", .type = ParameterType::integer, .default_value = 64, .help = "entries that each model keeps of a block", .min = 0, .max = 65536},
      {.name = "m", .type = ParameterType::integer, .default_value = 256, .help = "consecutive entries of a block", .min = 1, .max = 65536},
      {.name = "lambda", .default_value = 1, .help = "factor of the merged task vector"},
  };
  m.base = BaseRule::required;
  m.symmetric = false;
  m.identity = Identity::none;
  m.make = make;
  return m;
}

}  // namespace weft::merge
