#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "engine/tensor_stream.h"
#include "math/convert.h"
#include "math/reduce.h"
#include "merge/method.h"
#include "weft/error.h"
#include "weft/inspect.h"

namespace weft {
namespace {

/// Whether float32 holds every value of the type, so that comparing decoded values compares the bits.
bool fits_float32(DType dtype) {
  switch (dtype) {
    case DType::f6_e2m3: case DType::f6_e3m2: case DType::i32: case DType::u32: case DType::c64: case DType::f64: case DType::i64: case DType::u64: return false;
    default: return true;
  }
}

struct Largest final : merge::Tally {
  double max_abs = 0;
};

/// The sums of one pair of tensors as a `reduce` phase: elements that changed, |a|^2, |b|^2, |a - b|^2, a.b.
class Comparison final : public merge::TensorMerge {
 public:
  explicit Comparison(TensorDiff& out, bool same_type) : out_(out), same_type_(same_type) {}

  [[nodiscard]] merge::Pass next_pass() const override { return done_ ? merge::Pass::none : merge::Pass::whole; }
  [[nodiscard]] std::size_t num_sums() const override { return 5; }
  [[nodiscard]] std::unique_ptr<merge::Tally> new_tally() const override { return std::make_unique<Largest>(); }

  void reduce(const merge::Tile& tile, std::span<double> sums, merge::Tally* tally) const override {
    const std::span<const float> a = tile.input(0);
    const std::span<const float> b = tile.input(1);
    std::uint64_t changed = 0;
    if (std::memcmp(a.data(), b.data(), a.size_bytes()) == 0) {
      const double squares = math::sum_squares(a);
      sums[1] = squares;
      sums[2] = squares;
      sums[4] = squares;
      return;
    }
    double largest = 0;
    bool finite = true;
    for (std::size_t i = 0; i < a.size(); ++i) {
      // With one type the stored bits are compared, so -0 against 0 is a change; across types only the value can be.
      changed += same_type_ ? std::memcmp(&a[i], &b[i], sizeof(float)) != 0 : !(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])));
      const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
      if (difference > largest) largest = difference;
      finite = finite && std::isfinite(a[i]) && std::isfinite(b[i]);
    }
    sums[0] = static_cast<double>(changed);
    auto& most = static_cast<Largest&>(*tally);
    if (finite) {
      sums[1] = math::sum_squares(a);
      sums[2] = math::sum_squares(b);
      sums[4] = math::dot(a, b);
      // |a - b|^2 by differences: by the other three sums it would drown in rounding when the tensors are close.
      const float* inputs[1] = {b.data()};
      math::gram_of_deltas(a.data(), inputs, a.size(), std::span(&sums[3], 1));
    } else {
      for (std::size_t i = 0; i < a.size(); ++i) {
        if (!std::isfinite(a[i]) || !std::isfinite(b[i])) continue;
        const double x = a[i];
        const double y = b[i];
        sums[1] += x * x;
        sums[2] += y * y;
        sums[3] += (x - y) * (x - y);
        sums[4] += x * y;
      }
    }
    most.max_abs = std::max(most.max_abs, largest);
  }

  void solve(std::span<const double> totals, std::span<const std::unique_ptr<merge::Tally>> tallies) override {
    done_ = true;
    out_.num_changed = static_cast<std::uint64_t>(totals[0]);
    out_.l2_a = std::sqrt(totals[1]);
    out_.l2_diff = std::sqrt(totals[3]);
    out_.equal_bytes = same_type_ && out_.num_changed == 0;
    const double norms = std::sqrt(totals[1]) * std::sqrt(totals[2]);
    out_.cosine = norms > 0 ? totals[4] / norms : (totals[1] == totals[2] ? 1.0 : 0.0);
    for (const auto& tally : tallies) out_.max_abs = std::max(out_.max_abs, static_cast<const Largest&>(*tally).max_abs);
    squares_a = totals[1];
    squares_b = totals[2];
    product = totals[4];
    squares_diff = totals[3];
  }
  void map(const merge::Tile&, std::span<float>) const override {}

  double squares_a = 0, squares_b = 0, squares_diff = 0, product = 0;

 private:
  TensorDiff& out_;
  bool same_type_;
  bool done_ = false;
};

double wide_value(DType dtype, const std::byte* at) {
  const auto load = [at]<class T>(T value) {
    std::memcpy(&value, at, sizeof value);
    return static_cast<double>(value);
  };
  switch (dtype) {
    case DType::f64: return load(double{});
    case DType::i64: return load(std::int64_t{});
    case DType::u64: return load(std::uint64_t{});
    case DType::i32: return load(std::int32_t{});
    case DType::u32: return load(std::uint32_t{});
    default: return 0;
  }
}

/// Types that float32 cannot hold, of one type on both sides: element by element. They are few and small in real checkpoints.
void compare_wide(const Checkpoint& a, const TensorInfo& ta, const Checkpoint& b, const TensorInfo& tb, TensorDiff& out, double (&sums)[4]) {
  constexpr std::uint64_t kStep = 1 << 16;
  const std::uint64_t bits = static_cast<std::uint64_t>(info(ta.dtype).bits);
  const std::uint64_t element_bytes = std::max<std::uint64_t>(1, bits / 8);
  std::vector<std::byte> left(kStep * element_bytes);
  std::vector<std::byte> right(left.size());
  for (std::uint64_t at = 0; at < ta.size_bytes; at += left.size()) {
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(left.size(), ta.size_bytes - at));
    a.read_bytes(ta, at, std::span(left).first(size));
    b.read_bytes(tb, at, std::span(right).first(size));
    for (std::size_t i = 0; i + element_bytes <= size; i += element_bytes) {
      if (std::memcmp(&left[i], &right[i], element_bytes) != 0) ++out.num_changed;
      const double x = wide_value(ta.dtype, &left[i]);
      const double y = wide_value(ta.dtype, &right[i]);
      out.max_abs = std::max(out.max_abs, std::abs(x - y));
      sums[0] += x * x;
      sums[1] += y * y;
      sums[2] += (x - y) * (x - y);
      sums[3] += x * y;
    }
  }
  out.equal_bytes = out.num_changed == 0;
  out.l2_a = std::sqrt(sums[0]);
  out.l2_diff = std::sqrt(sums[2]);
  const double norms = std::sqrt(sums[0]) * std::sqrt(sums[1]);
  out.cosine = norms > 0 ? sums[3] / norms : (sums[0] == sums[1] ? 1.0 : 0.0);
}

}  // namespace

DiffReport diff(std::string_view model_a, std::string_view model_b, const JobOptions& options) {
  const std::shared_ptr<const Checkpoint> a = open_checkpoint(model_a);
  const std::shared_ptr<const Checkpoint> b = open_checkpoint(model_b);
  DiffReport report;
  for (const TensorInfo& t : b->tensors())
    if (a->find_tensor(t.name) == nullptr) report.only_in_b.push_back(t.name);

  report.tensors.reserve(a->tensors().size());
  std::vector<engine::StreamTensor> walk;
  std::vector<Comparison*> comparisons;
  double total[4] = {0, 0, 0, 0};
  for (const TensorInfo& ta : a->tensors()) {
    const TensorInfo* tb = b->find_tensor(ta.name);
    if (tb == nullptr) {
      report.only_in_a.push_back(ta.name);
      continue;
    }
    TensorDiff& d = report.tensors.emplace_back();
    d.name = ta.name;
    d.shape_a = ta.shape;
    d.shape_b = tb->shape;
    d.dtype_a = ta.dtype;
    d.dtype_b = tb->dtype;
    d.num_elements = ta.num_elements;
    const bool narrow = fits_float32(ta.dtype) && fits_float32(tb->dtype);
    d.comparable = ta.shape == tb->shape && (narrow || ta.dtype == tb->dtype || (info(ta.dtype).kind == info(tb->dtype).kind && is_decodable_float(ta.dtype)));
    if (!d.comparable) continue;
    if (!narrow && ta.dtype == tb->dtype) {
      double sums[4] = {0, 0, 0, 0};
      compare_wide(*a, ta, *b, *tb, d, sums);
      for (int k = 0; k < 4; ++k) total[k] += sums[k];
      continue;
    }
    engine::StreamTensor& tensor = walk.emplace_back();
    tensor.name = ta.name;
    tensor.shape = ta.shape;
    tensor.inputs = {{a, &ta}, {b, tb}};
    tensor.writes = false;
    tensor.checks_finite = false;
    auto comparison = std::make_unique<Comparison>(d, ta.dtype == tb->dtype);
    comparisons.push_back(comparison.get());
    tensor.merge = std::move(comparison);
  }
  JobOptions job = options;
  job.allow_non_finite = true;
  (void)engine::run_tensor_stream(walk, {}, job, "comparing");
  a->check_unchanged();
  b->check_unchanged();

  for (const Comparison* c : comparisons) {
    total[0] += c->squares_a;
    total[1] += c->squares_b;
    total[2] += c->squares_diff;
    total[3] += c->product;
  }
  report.equal = report.only_in_a.empty() && report.only_in_b.empty();
  report.total.name = "total";
  for (const TensorDiff& d : report.tensors) {
    report.total.num_elements += d.num_elements;
    report.total.num_changed += d.num_changed;
    report.total.max_abs = std::max(report.total.max_abs, d.max_abs);
    report.equal = report.equal && d.comparable && d.equal_bytes;
  }
  report.total.comparable = report.equal || std::all_of(report.tensors.begin(), report.tensors.end(), [](const TensorDiff& d) { return d.comparable; });
  report.total.equal_bytes = report.equal;
  report.total.l2_a = std::sqrt(total[0]);
  report.total.l2_diff = std::sqrt(total[2]);
  const double norms = std::sqrt(total[0]) * std::sqrt(total[1]);
  report.total.cosine = norms > 0 ? total[3] / norms : 1.0;
  return report;
}

}  // namespace weft
