#include "checkpoint/tensor_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft {
namespace {

/// Elements converted at a time.
constexpr std::uint64_t kPieceElements = 64 * 1024;
/// Bytes that a sparse slice reads at a time, and the share of wanted bytes below which runs are read one by one.
constexpr std::uint64_t kCoverBytes = 1 << 20;
constexpr std::uint64_t kCoverRatio = 8;

std::uint64_t whole_bytes(const TensorRef& tensor, const char* what) {
  const int bits = info(tensor.tensor->dtype).bits;
  if (bits % 8 != 0)
    throw Error(ErrorCode::unsupported,
                fmt::format("a tensor of {} cannot be {}: its elements are smaller than a byte", to_string(tensor.tensor->dtype), what),
                {.file = tensor.checkpoint->path().string(), .tensor = printable(tensor.tensor->name)}, "cast it first");
  return static_cast<std::uint64_t>(bits) / 8;
}

/// A view of one tensor on one tensor.
class SingleView : public Checkpoint {
 public:
  void check_unchanged() const override { source_.checkpoint->check_unchanged(); }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const final {
    if (offset > own().size_bytes || out.size() > own().size_bytes - offset)
      throw Error(ErrorCode::internal, "bytes beyond the end of a tensor were asked for", {.tensor = tensor.name});
    if (!out.empty()) read(offset, out);
  }

 protected:
  explicit SingleView(TensorRef source) : source_(std::move(source)) {
    container_ = "view";
    path_ = source_.checkpoint->path();
    metadata_ = source_.checkpoint->metadata();
    files_.assign(source_.checkpoint->files().begin(), source_.checkpoint->files().end());
    tensors_.push_back(*source_.tensor);
    tensors_.front().stored_as.clear();  // a view has values only
  }
  /// To be called once the one tensor is described.
  void finish() {
    TensorInfo& tensor = tensors_.front();
    tensor.num_elements = 1;
    for (const std::int64_t dim : tensor.shape) tensor.num_elements = checked_mul(tensor.num_elements, static_cast<std::uint64_t>(dim), "view");
    const std::uint64_t bits = checked_mul(tensor.num_elements, static_cast<std::uint64_t>(info(tensor.dtype).bits), "view");
    if (bits % 8 != 0)
      throw Error(ErrorCode::unsupported, fmt::format("a tensor {} of {} would end inside a byte", to_string(tensor.shape), to_string(tensor.dtype)),
                  {.tensor = printable(tensor.name)}, "choose a type of whole bytes");
    tensor.size_bytes = bits / 8;
    index_tensors();
  }
  [[nodiscard]] const TensorInfo& own() const { return tensors_.front(); }
  [[nodiscard]] TensorInfo& edited() { return tensors_.front(); }
  void read_source(std::uint64_t offset, std::span<std::byte> out) const { source_.checkpoint->read_bytes(*source_.tensor, offset, out); }
  /// Within range and not empty.
  virtual void read(std::uint64_t offset, std::span<std::byte> out) const = 0;

  const TensorRef source_;
};

TensorRef only_tensor(const std::shared_ptr<const Checkpoint>& view) { return {view, &view->tensors().front()}; }

// ---- Cast ----

class CastView final : public SingleView {
 public:
  CastView(TensorRef source, DType dtype) : SingleView(std::move(source)) {
    const DType stored = source_.tensor->dtype;
    const DTypeKind kind = info(stored).kind;
    const bool readable = is_decodable_float(stored) || kind == DTypeKind::integer || kind == DTypeKind::boolean;
    if (!readable || !is_decodable_float(dtype))
      throw Error(ErrorCode::unsupported,
                  fmt::format("tensor '{}' cannot be cast from {} to {}", printable(own().name), to_string(stored), to_string(dtype)),
                  {.file = path_.string(), .tensor = printable(own().name)}, "types that can be cast to: F32, F16, BF16, F64, F8_E4M3, F8_E5M2");
    edited().dtype = dtype;
    finish();
  }

  [[nodiscard]] const TensorRef& source() const noexcept { return source_; }

  void will_read(const TensorInfo&, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    const auto bits = static_cast<std::uint64_t>(info(own().dtype).bits), from = static_cast<std::uint64_t>(info(source_.tensor->dtype).bits);
    source_.checkpoint->will_read(*source_.tensor, offset * from / bits, size_bytes * from / bits);
  }

 private:
  void read(std::uint64_t offset, std::span<std::byte> out) const override {
    const auto bits = static_cast<std::uint64_t>(info(own().dtype).bits), from = static_cast<std::uint64_t>(info(source_.tensor->dtype).bits);
    // Elements in twos where either type packs two into a byte.
    const std::uint64_t granule = bits < 8 || from < 8 ? 2 : 1;
    std::uint64_t first = offset * 8 / bits / granule * granule;
    const std::uint64_t last = std::min(own().num_elements, ((offset + out.size()) * 8 + bits - 1) / bits);
    std::vector<std::byte> raw, encoded;
    std::vector<float> values;
    while (first < last) {
      std::uint64_t count = std::min(kPieceElements, last - first);
      if (granule == 2 && first + count < own().num_elements) count = (count + 1) / 2 * 2;
      raw.resize(checked_size((count * from + 7) / 8, "piece"));
      values.resize(checked_size(count, "piece"));
      read_source(first * from / 8, raw);
      math::decode(source_.tensor->dtype, raw, values);
      const std::uint64_t begin = first * bits / 8, end = begin + count * bits / 8;
      encoded.resize(checked_size(end - begin, "piece"));
      math::encode(own().dtype, values, encoded);
      const std::uint64_t from_byte = std::max(begin, offset), to_byte = std::min(end, offset + out.size());
      std::memcpy(out.data() + (from_byte - offset), encoded.data() + (from_byte - begin), static_cast<std::size_t>(to_byte - from_byte));
      first += count;
    }
  }
};

// ---- Transpose ----

template <std::size_t kSize>
void transpose_block(const std::byte* in, std::uint64_t rows, std::uint64_t columns, std::byte* out) {
  // Small blocks, so that both sides stay in the cache.
  constexpr std::uint64_t kBlock = 32;
  for (std::uint64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (std::uint64_t c0 = 0; c0 < columns; c0 += kBlock) {
      for (std::uint64_t r = r0; r < std::min(rows, r0 + kBlock); ++r)
        for (std::uint64_t c = c0; c < std::min(columns, c0 + kBlock); ++c)
          std::memcpy(out + (c * rows + r) * kSize, in + (r * columns + c) * kSize, kSize);
    }
  }
}

class TransposeView final : public SingleView {
 public:
  TransposeView(TensorRef source, std::uint64_t band_bytes) : SingleView(std::move(source)), element_(whole_bytes(source_, "transposed")) {
    if (own().shape.size() != 2)
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("tensor '{}' {} is no matrix and cannot be transposed", printable(own().name), to_string(own().shape)),
                  {.file = path_.string(), .tensor = printable(own().name)}, "name matrices only");
    rows_ = static_cast<std::uint64_t>(own().shape[0]);
    columns_ = static_cast<std::uint64_t>(own().shape[1]);
    std::swap(edited().shape[0], edited().shape[1]);
    finish();
    const std::uint64_t column_bytes = std::max<std::uint64_t>(1, rows_ * element_);
    band_columns_ = std::clamp<std::uint64_t>(band_bytes / column_bytes, 1, std::max<std::uint64_t>(1, columns_));
  }

 private:
  struct Band {
    std::uint64_t first_column = 0;
    std::vector<std::byte> bytes;  ///< transposed: a column of the source after another
    std::uint64_t served_bytes = 0;
  };

  void read(std::uint64_t offset, std::span<std::byte> out) const override {
    const std::uint64_t column_bytes = rows_ * element_, band_bytes = band_columns_ * column_bytes;
    while (!out.empty()) {
      const std::uint64_t number = offset / band_bytes, inside = offset % band_bytes;
      const std::shared_ptr<Band> band = load(number);
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), band->bytes.size() - inside));
      std::memcpy(out.data(), band->bytes.data() + inside, size);
      out = out.subspan(size);
      offset += size;
      const std::lock_guard lock(mutex_);
      band->served_bytes += size;
      // A band that was read whole is not needed by a reader that goes on in order.
      if (band->served_bytes >= band->bytes.size()) std::erase(bands_, band);
    }
  }

  std::shared_ptr<Band> load(std::uint64_t number) const {
    const std::lock_guard lock(mutex_);
    for (const auto& band : bands_)
      if (band->first_column == number * band_columns_) return band;
    auto band = std::make_shared<Band>();
    band->first_column = number * band_columns_;
    const std::uint64_t columns = std::min(band_columns_, columns_ - band->first_column);
    std::vector<std::byte> raw(checked_size(rows_ * columns * element_, "band"));
    if (columns == columns_) {
      read_source(0, raw);
    } else {
      for (std::uint64_t row = 0; row < rows_; ++row)
        read_source((row * columns_ + band->first_column) * element_,
                    std::span(raw).subspan(static_cast<std::size_t>(row * columns * element_), static_cast<std::size_t>(columns * element_)));
    }
    band->bytes.resize(raw.size());
    switch (element_) {
      case 1:
        transpose_block<1>(raw.data(), rows_, columns, band->bytes.data());
        break;
      case 2:
        transpose_block<2>(raw.data(), rows_, columns, band->bytes.data());
        break;
      case 4:
        transpose_block<4>(raw.data(), rows_, columns, band->bytes.data());
        break;
      default:
        transpose_block<8>(raw.data(), rows_, columns, band->bytes.data());
        break;
    }
    if (bands_.size() == 2) bands_.erase(bands_.begin());
    bands_.push_back(band);
    return band;
  }

  std::uint64_t element_;
  std::uint64_t rows_ = 0, columns_ = 0;  ///< of the source
  std::uint64_t band_columns_ = 1;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<Band>> bands_;
};

// ---- Slice ----

class SliceView final : public SingleView {
 public:
  SliceView(TensorRef source, std::vector<AxisRange> ranges)
      : SingleView(std::move(source)), ranges_(std::move(ranges)), element_(whole_bytes(source_, "sliced")) {
    const Shape& from = source_.tensor->shape;
    if (ranges_.size() != from.size() || from.empty())
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("tensor '{}' {} has {} axes, but {} ranges are given", printable(own().name), to_string(from), from.size(), ranges_.size()),
          {.file = path_.string(), .tensor = printable(own().name)});
    for (std::size_t axis = 0; axis < from.size(); ++axis) {
      const AxisRange& range = ranges_[axis];
      const std::int64_t size = range.size();
      const bool inside = size == 0 || (range.begin >= 0 && range.begin < from[axis] && range.begin + (size - 1) * range.step >= 0 &&
                                        range.begin + (size - 1) * range.step < from[axis]);
      if (range.step == 0 || !inside)
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("the range for axis {} leaves tensor '{}' {}", axis, printable(own().name), to_string(from)),
                    {.file = path_.string(), .tensor = printable(own().name)});
      edited().shape[axis] = size;
    }
    finish();
    strides_.resize(from.size());
    std::uint64_t stride = element_;
    for (std::size_t axis = from.size(); axis-- > 0;) {
      strides_[axis] = static_cast<std::int64_t>(stride);
      stride *= static_cast<std::uint64_t>(from[axis]);
    }
    // Inner axes that are taken whole make one run with the axis before them.
    run_axis_ = from.size();
    run_bytes_ = element_;
    while (run_axis_ > 0) {
      const AxisRange& range = ranges_[run_axis_ - 1];
      if (range.step != 1) break;
      --run_axis_;
      run_bytes_ = static_cast<std::uint64_t>(own().shape[run_axis_]) * static_cast<std::uint64_t>(strides_[run_axis_]);
      if (own().shape[run_axis_] != from[run_axis_]) break;
    }
  }

 private:
  /// Where run number `run` begins in the source.
  [[nodiscard]] std::uint64_t address(std::uint64_t run) const {
    std::int64_t at = 0;
    for (std::size_t axis = run_axis_; axis < ranges_.size(); ++axis) at += ranges_[axis].begin * strides_[axis];
    for (std::size_t axis = run_axis_; axis-- > 0;) {
      const auto size = static_cast<std::uint64_t>(own().shape[axis]);
      at += (ranges_[axis].begin + static_cast<std::int64_t>(run % size) * ranges_[axis].step) * strides_[axis];
      run /= size;
    }
    return static_cast<std::uint64_t>(at);
  }

  void read(std::uint64_t offset, std::span<std::byte> out) const override {
    std::vector<std::byte> cover;
    std::uint64_t cover_begin = 0;
    while (!out.empty()) {
      const std::uint64_t run = offset / run_bytes_, inside = offset % run_bytes_;
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), run_bytes_ - inside));
      const std::uint64_t begin = address(run) + inside;
      if (size >= kCoverBytes / kCoverRatio) {
        read_source(begin, out.first(size));
      } else {
        if (begin < cover_begin || begin + size > cover_begin + cover.size()) fill(cover, cover_begin, offset, begin, size, out.size());
        std::memcpy(out.data(), cover.data() + (begin - cover_begin), size);
      }
      out = out.subspan(size);
      offset += size;
    }
  }

  /// Reads the source from here (or, for a negative step, up to here) so far as the runs that follow lie close together.
  void fill(std::vector<std::byte>& cover, std::uint64_t& cover_begin, std::uint64_t offset, std::uint64_t begin, std::uint64_t size,
            std::uint64_t wanted) const {
    std::uint64_t low = begin, high = begin + size, useful = size;
    for (std::uint64_t next = (offset / run_bytes_ + 1) * run_bytes_; next < offset + wanted; next += run_bytes_) {
      const std::uint64_t at = address(next / run_bytes_);
      const std::uint64_t length = std::min(run_bytes_, offset + wanted - next);
      const std::uint64_t new_low = std::min(low, at), new_high = std::max(high, at + length);
      if (new_high - new_low > kCoverBytes || new_high - new_low > (useful + length) * kCoverRatio) break;
      low = new_low;
      high = new_high;
      useful += length;
    }
    cover.resize(static_cast<std::size_t>(high - low));
    cover_begin = low;
    read_source(low, cover);
  }

  std::vector<AxisRange> ranges_;
  std::uint64_t element_;
  std::vector<std::int64_t> strides_;  ///< bytes, of the source
  std::size_t run_axis_ = 0;           ///< from this axis on, elements are neighbours
  std::uint64_t run_bytes_ = 1;
};

}  // namespace

std::int64_t AxisRange::size() const noexcept {
  if (step > 0) return end > begin ? (end - begin - 1) / step + 1 : 0;
  if (step < 0) return begin > end ? (begin - end - 1) / -step + 1 : 0;
  return 0;
}

TensorRef cast_tensor(const TensorRef& tensor, DType dtype) {
  if (tensor.tensor->dtype == dtype) return tensor;
  return only_tensor(std::make_shared<CastView>(tensor, dtype));
}

std::optional<TensorRef> cast_from(const TensorRef& tensor) {
  const auto* view = dynamic_cast<const CastView*>(tensor.checkpoint.get());
  return view == nullptr ? std::nullopt : std::optional(view->source());
}

TensorRef transpose_tensor(const TensorRef& tensor, std::uint64_t band_bytes) {
  return only_tensor(std::make_shared<TransposeView>(tensor, band_bytes));
}

TensorRef slice_tensor(const TensorRef& tensor, std::vector<AxisRange> ranges) {
  return only_tensor(std::make_shared<SliceView>(tensor, std::move(ranges)));
}

}  // namespace weft
