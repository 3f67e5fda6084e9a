#include "checkpoint/axis_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/tensor_view.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft {
namespace {

/// Elements computed at a time.
constexpr std::size_t kPieceElements = 64 * 1024;
/// Columns that a map of the first axis goes over together.
constexpr std::size_t kBandColumns = 32;

/// data [outer, size, inner] after one step. Returns the new size.
std::size_t take_step(const AxisStep& step, const std::vector<double>& late, std::vector<double>& data, std::size_t outer, std::size_t size,
                      std::size_t inner) {
  if (!step.blocks.empty()) {
    std::vector<double> vectors;
    for (const AxisStep::Block& block : step.blocks) {
      const std::size_t n = block.map->size();
      const auto first = static_cast<std::size_t>(block.first), stride = static_cast<std::size_t>(block.stride);
      WEFT_ASSERT(first + (n - 1) * stride < size);
      vectors.resize(outer * inner * n);
      for (std::size_t o = 0; o < outer; ++o)
        for (std::size_t j = 0; j < n; ++j) {
          const double* from = data.data() + (o * size + first + j * stride) * inner;
          for (std::size_t k = 0; k < inner; ++k) vectors[(o * inner + k) * n + j] = from[k];
        }
      if (block.is_dual)
        block.map->apply_dual(vectors.data(), outer * inner);
      else
        block.map->apply(vectors.data(), outer * inner);
      for (std::size_t o = 0; o < outer; ++o)
        for (std::size_t j = 0; j < n; ++j) {
          double* to = data.data() + (o * size + first + j * stride) * inner;
          for (std::size_t k = 0; k < inner; ++k) to[k] = vectors[(o * inner + k) * n + j];
        }
    }
    return size;
  }
  std::size_t new_size = size;
  if (!step.order.empty()) {
    new_size = step.order.size();
    std::vector<double> taken(outer * new_size * inner);
    for (std::size_t o = 0; o < outer; ++o)
      for (std::size_t i = 0; i < new_size; ++i)
        std::copy_n(data.data() + (o * size + static_cast<std::size_t>(step.order[i])) * inner, inner, taken.data() + (o * new_size + i) * inner);
    data = std::move(taken);
  }
  if (step.factors.empty() && step.addends.empty() && late.empty()) return new_size;
  for (std::size_t o = 0; o < outer; ++o)
    for (std::size_t i = 0; i < new_size; ++i) {
      const double factor = step.factors.empty() ? 1 : step.factors[i];
      const double addend = (step.addends.empty() ? 0 : step.addends[i]) + (late.empty() ? 0 : late[i]);
      double* values = data.data() + (o * new_size + i) * inner;
      for (std::size_t k = 0; k < inner; ++k) values[k] = values[k] * factor + addend;
    }
  return new_size;
}

std::size_t new_size_of(const AxisStep& step, std::size_t size) { return step.order.empty() ? size : step.order.size(); }

bool keeps_magnitudes(const AxisStep& step) {
  return step.blocks.empty() && step.addends.empty() && !step.late_addends &&
         std::all_of(step.factors.begin(), step.factors.end(), [](double factor) { return std::abs(factor) == 1; });
}

class AxisView final : public Checkpoint {
 public:
  AxisView(TensorRef source, std::string name, std::vector<AxisStep> steps) : source_(std::move(source)), steps_(std::move(steps)) {
    container_ = "view";
    path_ = source_.checkpoint->path();
    metadata_ = source_.checkpoint->metadata();
    files_.assign(source_.checkpoint->files().begin(), source_.checkpoint->files().end());
    TensorInfo tensor = *source_.tensor;
    tensor.name = std::move(name);
    tensor.stored_as.clear();
    tensor.stored_bytes = 0;
    const DType dtype = tensor.dtype;
    const bool moves_only = std::all_of(steps_.begin(), steps_.end(), keeps_magnitudes);
    if (!is_decodable_float(dtype) || info(dtype).bits % 8 != 0 || (info(dtype).bits < 16 && !moves_only))
      throw Error(ErrorCode::unsupported,
                  fmt::format("tensor '{}' of type {} cannot go through a linear map", printable(tensor.name), to_string(dtype)),
                  {.file = path_.string(), .tensor = printable(tensor.name)}, "cast it to float32, bfloat16 or float16 first");
    is_vector_ = tensor.shape.size() < 2;
    for (const AxisStep& step : steps_) {
      WEFT_ASSERT(step.axis < tensor.shape.size());
      WEFT_ASSERT(is_vector_ || (step.addends.empty() && !step.late_addends));
      const auto size = static_cast<std::size_t>(tensor.shape[step.axis]);
      WEFT_ASSERT(step.factors.empty() || step.factors.size() == new_size_of(step, size));
      for (const std::int64_t index : step.order) WEFT_ASSERT(index >= 0 && static_cast<std::size_t>(index) < size);
      tensor.shape[step.axis] = static_cast<std::int64_t>(new_size_of(step, size));
      mixes_rows_ = mixes_rows_ || (!is_vector_ && step.axis == 0 && !step.blocks.empty());
    }
    tensor.num_elements = 1;
    for (const std::int64_t dim : tensor.shape) tensor.num_elements = checked_mul(tensor.num_elements, static_cast<std::uint64_t>(dim), "view");
    tensor.size_bytes = checked_mul(tensor.num_elements, static_cast<std::uint64_t>(info(dtype).bits) / 8, "view");
    const Shape& old_shape = source_.tensor->shape;
    source_rows_ = is_vector_ || old_shape.empty() ? 1 : static_cast<std::size_t>(old_shape[0]);
    rows_ = is_vector_ || tensor.shape.empty() ? 1 : static_cast<std::size_t>(tensor.shape[0]);
    source_row_ = source_rows_ == 0 ? 0 : checked_size(source_.tensor->num_elements / source_rows_, "a row");
    row_ = rows_ == 0 ? 0 : checked_size(tensor.num_elements / rows_, "a row");
    late_.resize(steps_.size());
    tensors_.push_back(std::move(tensor));
    index_tensors();
  }

  [[nodiscard]] const TensorRef& source() const noexcept { return source_; }
  [[nodiscard]] const std::vector<AxisStep>& steps() const noexcept { return steps_; }
  void check_unchanged() const override { source_.checkpoint->check_unchanged(); }

  void read_bytes(const TensorInfo&, std::uint64_t offset, std::span<std::byte> out) const override {
    const TensorInfo& own = tensors_.front();
    WEFT_ASSERT(offset <= own.size_bytes && out.size() <= own.size_bytes - offset);
    if (out.empty()) return;
    ask_late();
    const std::uint64_t row_bytes = own.size_bytes / rows_;
    const std::shared_ptr<const Held> held = mixes_rows_ ? hold(out.size()) : nullptr;
    const std::size_t at_once = std::max<std::size_t>(1, kPieceElements / std::max<std::size_t>(row_, 1));
    const auto last = static_cast<std::size_t>((offset + out.size() + row_bytes - 1) / row_bytes);
    std::vector<double> values;
    std::vector<std::byte> encoded;
    for (auto first = static_cast<std::size_t>(offset / row_bytes); first < last; first += at_once) {
      const std::size_t count = std::min(at_once, last - first);
      if (held)
        held->copy(first * row_, count * row_, values);
      else
        compute(first, count, values);
      check_range(values);
      encoded.resize(count * static_cast<std::size_t>(row_bytes));
      encode_doubles(own.dtype, values, encoded);
      const std::uint64_t begin = first * row_bytes, end = begin + count * row_bytes;
      const std::uint64_t from = std::max<std::uint64_t>(begin, offset), to = std::min<std::uint64_t>(end, offset + out.size());
      std::memcpy(out.data() + (from - offset), encoded.data() + (from - begin), static_cast<std::size_t>(to - from));
    }
  }

 private:
  /// The whole matrix behind its maps.
  struct Held {
    std::vector<float> narrow;
    std::vector<double> wide;  ///< for float64
    std::uint64_t served_bytes = 0;
    void copy(std::size_t first, std::size_t count, std::vector<double>& out) const {
      if (wide.empty())
        out.assign(narrow.begin() + static_cast<std::ptrdiff_t>(first), narrow.begin() + static_cast<std::ptrdiff_t>(first + count));
      else
        out.assign(wide.begin() + static_cast<std::ptrdiff_t>(first), wide.begin() + static_cast<std::ptrdiff_t>(first + count));
    }
  };

  void ask_late() const {
    std::call_once(asked_, [this] {
      for (std::size_t i = 0; i < steps_.size(); ++i)
        if (steps_[i].late_addends) late_[i] = steps_[i].late_addends();
    });
  }

  /// Rows [first, first + count) of the source, decoded.
  void read_source(std::size_t first, std::size_t count, double* out) const {
    const DType dtype = source_.tensor->dtype;
    const std::size_t elements = count * source_row_, bytes = elements * static_cast<std::size_t>(info(dtype).bits) / 8;
    std::vector<std::byte> raw(bytes);
    source_.checkpoint->read_bytes(*source_.tensor, first * source_row_ * static_cast<std::uint64_t>(info(dtype).bits) / 8, raw);
    if (dtype == DType::f64) {
      std::memcpy(out, raw.data(), bytes);
      return;
    }
    std::vector<float> values(elements);
    math::decode(dtype, raw, values);
    std::copy(values.begin(), values.end(), out);
  }

  /// All steps but those of the first axis of a matrix, on `count` rows of the source.
  void step_columns(std::vector<double>& values, std::size_t count) const {
    Shape dims = source_.tensor->shape;
    for (std::size_t s = 0; s < steps_.size(); ++s) {
      const AxisStep& step = steps_[s];
      if (!is_vector_ && step.axis == 0) continue;
      std::size_t outer = count, inner = 1;
      for (std::size_t i = is_vector_ ? 0 : 1; i < step.axis; ++i) outer *= static_cast<std::size_t>(dims[i]);
      for (std::size_t i = step.axis + 1; i < dims.size(); ++i) inner *= static_cast<std::size_t>(dims[i]);
      dims[step.axis] = static_cast<std::int64_t>(take_step(step, late_[s], values, outer, static_cast<std::size_t>(dims[step.axis]), inner));
    }
  }

  /// Where no step mixes rows: each comes from one.
  void compute(std::size_t first, std::size_t count, std::vector<double>& values) const {
    std::vector<std::size_t> from(count);
    std::vector<double> factors(count, 1);
    for (std::size_t r = 0; r < count; ++r) {
      from[r] = first + r;
      if (is_vector_) continue;
      for (std::size_t s = steps_.size(); s-- > 0;) {
        const AxisStep& step = steps_[s];
        if (step.axis != 0) continue;
        if (!step.factors.empty()) factors[r] *= step.factors[from[r]];
        if (!step.order.empty()) from[r] = static_cast<std::size_t>(step.order[from[r]]);
      }
    }
    values.resize(count * source_row_);
    for (std::size_t r = 0; r < count;) {
      std::size_t run = 1;
      while (r + run < count && from[r + run] == from[r] + run) ++run;
      read_source(from[r], run, values.data() + r * source_row_);
      r += run;
    }
    step_columns(values, count);
    for (std::size_t r = 0; r < count; ++r)
      if (factors[r] != 1)
        for (std::size_t c = 0; c < row_; ++c) values[r * row_ + c] *= factors[r];
  }

  template <typename T>
  void fill(std::vector<T>& matrix) const {
    matrix.resize(checked_size(checked_mul(source_rows_, row_, "a matrix"), "a matrix"));
    std::vector<double> values;
    const std::size_t at_once = std::max<std::size_t>(1, kPieceElements / std::max<std::size_t>(source_row_, 1));
    for (std::size_t first = 0; first < source_rows_; first += at_once) {
      const std::size_t count = std::min(at_once, source_rows_ - first);
      values.resize(count * source_row_);
      read_source(first, count, values.data());
      step_columns(values, count);
      std::transform(values.begin(), values.end(), matrix.begin() + static_cast<std::ptrdiff_t>(first * row_),
                     [](double value) { return static_cast<T>(value); });
    }
    std::vector<T> other;
    std::vector<T>& target = rows_ == source_rows_ ? matrix : other;
    target.resize(rows_ * row_);
    for (std::size_t begin = 0; begin < row_; begin += kBandColumns) {
      const std::size_t width = std::min(kBandColumns, row_ - begin);
      values.resize(source_rows_ * width);
      for (std::size_t r = 0; r < source_rows_; ++r)
        for (std::size_t c = 0; c < width; ++c) values[r * width + c] = static_cast<double>(matrix[r * row_ + begin + c]);
      std::size_t size = source_rows_;
      for (const AxisStep& step : steps_)
        if (step.axis == 0) size = take_step(step, {}, values, 1, size, width);
      for (std::size_t r = 0; r < rows_; ++r)
        for (std::size_t c = 0; c < width; ++c) target[r * row_ + begin + c] = static_cast<T>(values[r * width + c]);
    }
    if (&target != &matrix) matrix = std::move(other);
  }

  std::shared_ptr<const Held> hold(std::uint64_t size_bytes) const {
    const std::lock_guard lock(mutex_);
    if (!held_) {
      held_ = std::make_shared<Held>();
      if (tensors_.front().dtype == DType::f64)
        fill(held_->wide);
      else
        fill(held_->narrow);
    }
    const std::shared_ptr<Held> held = held_;
    held->served_bytes += size_bytes;
    // A reader that takes everything once, as most do, needs it no more.
    if (held->served_bytes >= tensors_.front().size_bytes) held_.reset();
    return held;
  }

  void check_range(const std::vector<double>& values) const {
    const DType dtype = tensors_.front().dtype;
    const double most = dtype == DType::f16   ? 65'504
                        : dtype == DType::f64 ? std::numeric_limits<double>::max()
                                              : static_cast<double>(std::numeric_limits<float>::max());
    for (const double value : values)
      if (std::isfinite(value) && std::abs(value) > most)
        throw Error(
            ErrorCode::unsupported,
            fmt::format("a value of tensor '{}' becomes {:.4g}, which {} cannot hold", printable(tensors_.front().name), value, to_string(dtype)),
            {.file = path_.string(), .tensor = printable(tensors_.front().name)}, "cast the model to float32 or bfloat16 first");
  }

  const TensorRef source_;
  const std::vector<AxisStep> steps_;
  bool is_vector_ = false;   ///< one row, whose only axis is stepped like a column
  bool mixes_rows_ = false;  ///< rows of a matrix depend on all of its rows
  std::size_t source_rows_ = 0, rows_ = 0, source_row_ = 0, row_ = 0;
  mutable std::once_flag asked_;
  mutable std::vector<std::vector<double>> late_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<Held> held_;
};

}  // namespace

TensorRef change_axes(const TensorRef& tensor, std::vector<AxisStep> steps) {
  // Over a whole model's selection, every view would hold all of its files, and those of the next such selection all of theirs.
  TensorRef source = without_renames(tensor);
  if (const auto* view = dynamic_cast<const AxisView*>(source.checkpoint.get())) {
    std::vector<AxisStep> all = view->steps();
    all.insert(all.end(), std::make_move_iterator(steps.begin()), std::make_move_iterator(steps.end()));
    steps = std::move(all);
    source = view->source();
  }
  const auto made = std::make_shared<AxisView>(std::move(source), tensor.tensor->name, std::move(steps));
  return {made, &made->tensors().front()};
}

}  // namespace weft
