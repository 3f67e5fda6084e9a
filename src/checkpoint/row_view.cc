#include "checkpoint/row_view.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/file_list.h"
#include "checkpoint/packed_rows.h"
#include "checkpoint/tensor_view.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft {
namespace {

// Elements that are converted at a time: a MiB of float32, so that a read is long enough for a disk and a call holds a few MiB at most.
constexpr std::uint64_t kPieceElements = 256 * 1024;
// Hints for less than this cost more than they give.
constexpr std::uint64_t kMinHintBytes = 64 * 1024;

void check_range(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) {
  if (offset > tensor.size_bytes || size_bytes > tensor.size_bytes - offset)
    throw Error(ErrorCode::invalid_argument,
                "read of bytes " + std::to_string(offset) + " to " + std::to_string(offset + size_bytes) + " of a tensor of " +
                    std::to_string(tensor.size_bytes) + " bytes",
                {.tensor = tensor.name});
}

/// double to float so that a later rounding to a narrower type rounds the double, not the float: what is cut off leaves the last bit set, which no
/// narrower type can hold and no tie can have (round to odd; right for any target with at least two bits less than float32).
float to_float_odd(double value) noexcept {
  constexpr int kExtraBits = 52 - 23;
  constexpr std::uint64_t kExtra = (std::uint64_t{1} << kExtraBits) - 1;
  // Without branches in the usual range, since whether something is cut off is a coin toss.
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::uint64_t sticky = static_cast<std::uint64_t>((bits & kExtra) != 0) << kExtraBits;
  const auto odd = static_cast<float>(std::bit_cast<double>((bits & ~kExtra) | sticky));
  if (!(std::abs(value) < 0x1p-126)) return odd;  // exact: 24 bits and an exponent of float32 (or infinite, or NaN)
  // Subnormal: multiples of 2^-149, counted in float64 exactly.
  const double units = std::abs(value) * 0x1p149;
  const double whole = std::floor(units);
  const auto count = static_cast<std::uint32_t>(whole) | static_cast<std::uint32_t>(units != whole);
  return std::copysign(std::bit_cast<float>(count), static_cast<float>(value));
}

/// sums[i] += element i of `stored`, as `seen` holds it. scratch: any.
void add_decoded(DType stored, DType seen, std::span<const std::byte> data, std::vector<float>& scratch, std::span<double> sums) {
  if (stored == DType::f64 && seen == DType::f64) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
      double value;
      std::memcpy(&value, data.data() + i * sizeof(double), sizeof(double));
      sums[i] += value;
    }
    return;
  }
  scratch.resize(sums.size());
  math::decode(stored, data, scratch);
  if (stored != seen) math::round_through(seen, scratch);
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += static_cast<double>(scratch[i]);
}

}  // namespace

void encode_doubles(DType dtype, std::span<const double> values, std::span<std::byte> out) {
  if (dtype == DType::f64) {
    std::memcpy(out.data(), values.data(), values.size_bytes());
    return;
  }
  std::vector<float> floats(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) floats[i] = dtype == DType::f32 ? static_cast<float>(values[i]) : to_float_odd(values[i]);
  math::encode(dtype, floats, out);
}

namespace {

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// Rows

/// Buffers that a computation reuses.
struct Scratch {
  std::vector<std::byte> bytes;
  std::vector<float> values;
};

class RowView final : public Checkpoint {
 public:
  RowView(std::string name, DType dtype, std::vector<TensorRef> sources, RowMap map) : sources_(std::move(sources)), map_(std::move(map)) {
    if (sources_.empty()) throw Error(ErrorCode::invalid_argument, "a view of rows needs a matrix to take them from", {.tensor = name});
    const int bits = info(dtype).bits;
    // Elements that fill whole bytes: two of a 4-bit type.
    granule_ = bits % 8 == 0 ? 1 : 2;
    for (const TensorRef& source : sources_) {
      const TensorInfo& tensor = *source.tensor;
      if (tensor.shape.size() != 2)
        throw Error(ErrorCode::invalid_argument, "rows can be taken from a matrix only, not from shape " + to_string(tensor.shape),
                    {.file = source.checkpoint->path().string(), .tensor = tensor.name});
      const auto columns = static_cast<std::uint64_t>(tensor.shape[1]);
      if (&source == &sources_.front()) columns_ = columns;
      if (columns != columns_)
        throw Error(ErrorCode::invalid_argument,
                    "matrices of different widths cannot share rows: " + to_string(sources_.front().tensor->shape) + " in " +
                        sources_.front().checkpoint->path().string() + ", " + to_string(tensor.shape) + " here",
                    {.file = source.checkpoint->path().string(), .tensor = tensor.name});
      if (tensor.dtype != dtype) converts_ = true;
      if (info(tensor.dtype).bits % 8 != 0) granule_ = 2;
      if (tensor.dtype != dtype && !is_decodable_float(tensor.dtype))
        throw Error(ErrorCode::unsupported,
                    "rows of type " + std::string(to_string(tensor.dtype)) + " cannot become " + std::string(to_string(dtype)),
                    {.file = source.checkpoint->path().string(), .tensor = tensor.name});
    }
    const bool needs_values = converts_ || !map_.means.empty() ||
                              std::any_of(map_.rows.begin(), map_.rows.end(), [](const RowOrigin& r) { return r.kind == RowOrigin::Kind::padding; });
    if (needs_values && !is_decodable_float(dtype))
      throw Error(ErrorCode::unsupported, "rows of type " + std::string(to_string(dtype)) + " cannot be computed", {.tensor = name},
                  "load in a floating-point type (dtype: float32)");
    if (columns_ % granule_ != 0)
      throw Error(ErrorCode::unsupported,
                  "rows of " + std::to_string(columns_) + " elements of a type of " + std::to_string(bits) + " bits do not end at a byte",
                  {.tensor = name});
    check_map(name);

    const std::uint64_t row_bits = checked_mul(columns_, static_cast<std::uint64_t>(bits), "row of '" + name + "'");
    row_bytes_ = row_bits / 8;
    if (is_decodable_float(dtype)) {
      const float zeros[2] = {0, 0};
      zero_granule_.resize(granule_ * static_cast<std::uint64_t>(bits) / 8);
      math::encode(dtype, std::span(zeros, granule_), zero_granule_);
    }

    container_ = "view";
    path_ = sources_.front().checkpoint->path();
    // So that a message can name a file: that of the first source.
    const auto files = sources_.front().checkpoint->files();
    files_.assign(files.begin(), files.end());
    TensorInfo tensor;
    tensor.name = std::move(name);
    tensor.dtype = dtype;
    tensor.shape = {checked_dim(map_.rows.size(), "rows"), checked_dim(columns_, "columns")};
    tensor.num_elements = checked_mul(map_.rows.size(), columns_, "matrix of rows");
    tensor.size_bytes = checked_mul(map_.rows.size(), row_bytes_, "matrix of rows");
    tensor.file_index = sources_.front().tensor->file_index;
    tensor.offset_bytes = sources_.front().tensor->offset_bytes;
    tensors_.push_back(std::move(tensor));
    index_tensors();
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    check_range(tensors_.front(), offset, out.size());
    (void)tensor;
    while (!out.empty()) {
      const std::uint64_t row = offset / row_bytes_;
      const std::uint64_t begin = offset % row_bytes_;
      const RowOrigin& origin = map_.rows[checked_size(row, "row")];
      // How much of `out` this origin gives: a run of neighbours for stored rows, the rest of the row for others.
      std::uint64_t length = row_bytes_ - begin;
      if (origin.kind == RowOrigin::Kind::row) {
        for (std::uint64_t next = row + 1; length < out.size() && next < map_.rows.size(); ++next, length += row_bytes_)
          if (!follows(origin, map_.rows[next], next - row)) break;
      }
      length = std::min<std::uint64_t>(length, out.size());
      const auto part = out.first(checked_size(length, "read"));
      switch (origin.kind) {
        case RowOrigin::Kind::row:
          copy_rows(origin.source, origin.index, begin, part);
          break;
        case RowOrigin::Kind::mean:
          mean_of(map_.means[checked_size(origin.index, "mean")], begin, part);
          break;
        case RowOrigin::Kind::zero:
          fill_zero(begin, part);
          break;
        case RowOrigin::Kind::padding:
          std::memcpy(part.data(), padding_row().data() + begin, part.size());
          break;
      }
      offset += length;
      out = out.subspan(part.size());
    }
  }

  void will_read(const TensorInfo& /*tensor*/, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    if (row_bytes_ == 0 || offset >= tensors_.front().size_bytes) return;
    const std::uint64_t last = std::min<std::uint64_t>(map_.rows.size(), (offset + size_bytes + row_bytes_ - 1) / row_bytes_);
    for (std::uint64_t row = offset / row_bytes_; row < last;) {
      const RowOrigin& origin = map_.rows[row];
      std::uint64_t next = row + 1;
      if (origin.kind == RowOrigin::Kind::row) {
        while (next < last && follows(origin, map_.rows[next], next - row)) ++next;
        const TensorRef& source = sources_[origin.source];
        const std::uint64_t stored =
            source.tensor->shape[0] == 0 ? 0 : source.tensor->size_bytes / static_cast<std::uint64_t>(source.tensor->shape[0]);
        if ((next - row) * stored >= kMinHintBytes) source.checkpoint->will_read(*source.tensor, origin.index * stored, (next - row) * stored);
      }
      row = next;
    }
  }

  void check_unchanged() const override {
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      const auto same = [&](const TensorRef& other) { return other.checkpoint == sources_[i].checkpoint; };
      if (std::none_of(sources_.begin(), sources_.begin() + static_cast<std::ptrdiff_t>(i), same)) sources_[i].checkpoint->check_unchanged();
    }
  }

 private:
  [[nodiscard]] DType dtype() const noexcept { return tensors_.front().dtype; }
  [[nodiscard]] std::uint64_t elements_of(std::uint64_t bytes) const noexcept { return bytes * 8 / static_cast<std::uint64_t>(info(dtype()).bits); }
  [[nodiscard]] std::uint64_t bytes_of(std::uint64_t elements) const noexcept {
    return elements * static_cast<std::uint64_t>(info(dtype()).bits) / 8;
  }
  static bool follows(const RowOrigin& first, const RowOrigin& later, std::uint64_t distance) noexcept {
    return later.kind == RowOrigin::Kind::row && later.source == first.source && later.index == first.index + distance;
  }

  void check_row(std::uint32_t source, std::uint64_t row, const std::string& name) const {
    if (source >= sources_.size() || row >= static_cast<std::uint64_t>(sources_[source].tensor->shape[0]))
      throw Error(ErrorCode::invalid_argument,
                  "row " + std::to_string(row) + " does not exist" +
                      (source < sources_.size() ? " in a matrix " + to_string(sources_[source].tensor->shape) : std::string()),
                  {.file = source < sources_.size() ? sources_[source].checkpoint->path().string() : std::string(), .tensor = name});
  }
  void check_map(const std::string& name) const {
    for (const RowOrigin& origin : map_.rows) {
      if (origin.kind == RowOrigin::Kind::row) check_row(origin.source, origin.index, name);
      if (origin.kind == RowOrigin::Kind::mean && (origin.index >= map_.means.size() || map_.means[checked_size(origin.index, "mean")].empty()))
        throw Error(ErrorCode::invalid_argument, "a row is the mean of no rows", {.tensor = name});
    }
    for (const auto& mean : map_.means)
      for (const RowAddress& address : mean) check_row(address.source, address.row, name);
  }

  /// Fills bytes [begin, begin + out.size()) of something whose elements [first, first + count) `produce` writes; first and count are whole granules
  /// and at most kPieceElements, so an element that the range cuts is made whole and cut here.
  void in_pieces(std::uint64_t begin, std::span<std::byte> out,
                 const std::function<void(std::uint64_t first, std::uint64_t count, std::span<std::byte> piece)>& produce) const {
    const std::uint64_t granule_bytes = bytes_of(granule_);
    std::vector<std::byte> cut(checked_size(granule_bytes, "element"));
    while (!out.empty()) {
      const std::uint64_t granule = begin / granule_bytes;
      const std::uint64_t inside = begin % granule_bytes;
      std::uint64_t taken;
      if (inside != 0 || out.size() < granule_bytes) {
        produce(granule * granule_, granule_, cut);
        taken = std::min<std::uint64_t>(granule_bytes - inside, out.size());
        std::memcpy(out.data(), cut.data() + inside, checked_size(taken, "element"));
      } else {
        const std::uint64_t count = std::min(out.size() / granule_bytes, kPieceElements / granule_) * granule_;
        taken = bytes_of(count);
        produce(granule * granule_, count, out.first(checked_size(taken, "piece")));
      }
      begin += taken;
      out = out.subspan(checked_size(taken, "piece"));
    }
  }

  /// Adds the values of elements from flat position `first` of a source, as this view's type holds them.
  void add_values(std::uint32_t source, std::uint64_t first, std::span<double> sums, Scratch& scratch) const {
    const TensorRef& ref = sources_[source];
    const auto bits = static_cast<std::uint64_t>(info(ref.tensor->dtype).bits);
    scratch.bytes.resize(checked_size(sums.size() * bits / 8, "piece"));
    ref.checkpoint->read_bytes(*ref.tensor, first * bits / 8, scratch.bytes);
    add_decoded(ref.tensor->dtype, dtype(), scratch.bytes, scratch.values, sums);
  }

  void copy_rows(std::uint32_t source, std::uint64_t row, std::uint64_t begin, std::span<std::byte> out) const {
    const TensorRef& ref = sources_[source];
    if (ref.tensor->dtype == dtype()) {
      ref.checkpoint->read_bytes(*ref.tensor, row * row_bytes_ + begin, out);
      return;
    }
    const auto bits = static_cast<std::uint64_t>(info(ref.tensor->dtype).bits);
    std::vector<std::byte> stored;
    std::vector<float> values;
    in_pieces(begin, out, [&](std::uint64_t first, std::uint64_t count, std::span<std::byte> piece) {
      stored.resize(checked_size(count * bits / 8, "piece"));
      values.resize(checked_size(count, "piece"));
      ref.checkpoint->read_bytes(*ref.tensor, (row * columns_ + first) * bits / 8, stored);
      math::decode(ref.tensor->dtype, stored, values);
      math::encode(dtype(), values, piece);
    });
  }

  void fill_zero(std::uint64_t begin, std::span<std::byte> out) const {
    if (zero_granule_.empty()) {
      std::memset(out.data(), 0, out.size());
      return;
    }
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = zero_granule_[(begin + i) % zero_granule_.size()];
  }

  void mean_of(const std::vector<RowAddress>& rows, std::uint64_t begin, std::span<std::byte> out) const {
    std::vector<double> sums;
    Scratch scratch;
    in_pieces(begin, out, [&](std::uint64_t first, std::uint64_t count, std::span<std::byte> piece) {
      sums.assign(checked_size(count, "piece"), 0.0);
      for (const RowAddress& address : rows) add_values(address.source, address.row * columns_ + first, sums, scratch);
      for (double& sum : sums) sum /= static_cast<double>(rows.size());
      encode_doubles(dtype(), sums, piece);
    });
  }

  /// Bytes of the padding row, computed when first needed.
  const std::vector<std::byte>& padding_row() const {
    const std::lock_guard lock(padding_mutex_);
    if (padding_.empty() && row_bytes_ != 0) {
      std::vector<double> sums(checked_size(columns_, "columns"), 0.0);
      std::uint64_t count = 0;
      const std::uint64_t rows_at_a_time = std::max<std::uint64_t>(1, kPieceElements / columns_);
      Scratch scratch;
      for (std::uint64_t row = 0; row < map_.rows.size();) {
        if (map_.rows[row].kind == RowOrigin::Kind::padding) {
          ++row;
          continue;
        }
        std::uint64_t end = row + 1;
        while (end < map_.rows.size() && end - row < rows_at_a_time && map_.rows[end].kind != RowOrigin::Kind::padding) ++end;
        scratch.bytes.resize(checked_size((end - row) * row_bytes_, "rows"));
        read_bytes(tensors_.front(), row * row_bytes_, scratch.bytes);
        const std::size_t row_size = scratch.bytes.size() / static_cast<std::size_t>(end - row);
        for (std::size_t at = 0; at < scratch.bytes.size(); at += row_size)
          add_decoded(dtype(), dtype(), std::span(scratch.bytes).subspan(at, row_size), scratch.values, sums);
        count += end - row;
        row = end;
      }
      for (double& sum : sums) sum = count == 0 ? 0.0 : sum / static_cast<double>(count);
      std::vector<std::byte> row_bytes(checked_size(row_bytes_, "row"));
      encode_doubles(dtype(), sums, row_bytes);
      padding_ = std::move(row_bytes);
    }
    return padding_;
  }

  std::vector<TensorRef> sources_;
  RowMap map_;
  std::uint64_t columns_ = 0;
  std::uint64_t row_bytes_ = 0;
  std::uint64_t granule_ = 1;  ///< elements that fill whole bytes in the view and in every source
  bool converts_ = false;
  std::vector<std::byte> zero_granule_;
  mutable std::mutex padding_mutex_;
  mutable std::vector<std::byte> padding_;
};

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// Whole tensors

/// Tensors of other checkpoints, each with a name and a number of rows of its own.
class TensorSelection final : public Checkpoint, public PackedSource {
 public:
  struct Part {
    TensorRef from;
    std::string name;
    std::optional<std::uint64_t> num_rows;  ///< cut to this many
  };

  /// main: whose path and metadata the selection has.
  TensorSelection(std::vector<Part> parts, const Checkpoint& main) {
    container_ = "view";
    path_ = main.path();
    metadata_ = main.metadata();
    FileList files;
    std::unordered_set<const Checkpoint*> seen;
    for (Part& part : parts) {
      const Checkpoint& checkpoint = *part.from.checkpoint;
      if (seen.insert(&checkpoint).second) checkpoints_.push_back(part.from.checkpoint);
      TensorInfo tensor = *part.from.tensor;
      tensor.name = std::move(part.name);
      tensor.file_index = files.place_of(*part.from.tensor, checkpoint);
      tensor.stored_as.clear();  // a view has values only
      if (part.num_rows) cut(tensor, *part.num_rows, checkpoint);
      tensors_.push_back(std::move(tensor));
      from_.push_back(std::move(part.from));
    }
    files_ = files.take();
    index_tensors();
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const std::size_t i = position(tensor);
    check_range(tensors_[i], offset, out.size());
    from_[i].checkpoint->read_bytes(*from_[i].tensor, offset, out);
  }
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    const TensorInfo* own = find_tensor(tensor.name);
    if (own == nullptr || offset >= own->size_bytes) return;
    const TensorRef& from = from_[static_cast<std::size_t>(own - tensors_.data())];
    from.checkpoint->will_read(*from.tensor, offset, std::min(size_bytes, own->size_bytes - offset));
  }
  void check_unchanged() const override {
    for (const auto& checkpoint : checkpoints_) checkpoint->check_unchanged();
  }
  bool read_packed_rows(const TensorInfo& tensor, std::uint64_t first, std::uint64_t count, PackedRows& out) const override {
    const TensorRef& from = from_[position(tensor)];
    return weft::read_packed_rows(*from.checkpoint, *from.tensor, first, count, out);
  }
  /// The tensor that this one only renames; nothing where it is cut.
  [[nodiscard]] std::optional<TensorRef> renamed(const TensorInfo& tensor) const {
    const std::size_t i = position(tensor);
    if (tensors_[i].size_bytes != from_[i].tensor->size_bytes || tensors_[i].shape != from_[i].tensor->shape) return std::nullopt;
    return from_[i];
  }

 private:
  [[nodiscard]] std::size_t position(const TensorInfo& tensor) const {
    if (std::less_equal<>()(tensors_.data(), &tensor) && std::less<>()(&tensor, tensors_.data() + tensors_.size()))
      return static_cast<std::size_t>(&tensor - tensors_.data());
    return static_cast<std::size_t>(&this->tensor(tensor.name) - tensors_.data());  // a copy of the description
  }

  static void cut(TensorInfo& tensor, std::uint64_t num_rows, const Checkpoint& checkpoint) {
    const ErrorPlace place{.file = checkpoint.path().string(), .tensor = tensor.name};
    if (tensor.shape.empty() || num_rows > static_cast<std::uint64_t>(tensor.shape[0]))
      throw Error(ErrorCode::invalid_argument, "a tensor " + to_string(tensor.shape) + " cannot be cut to " + std::to_string(num_rows) + " rows",
                  place);
    const auto rows = static_cast<std::uint64_t>(tensor.shape[0]);
    if (rows == num_rows) return;  // also where there are no rows to divide by
    const std::uint64_t row_elements = tensor.num_elements / rows;
    const std::uint64_t bits = checked_mul(row_elements * num_rows, static_cast<std::uint64_t>(info(tensor.dtype).bits), "cut tensor");
    if (bits % 8 != 0) throw Error(ErrorCode::unsupported, "cutting to " + std::to_string(num_rows) + " rows would end inside a byte", place);
    tensor.shape[0] = static_cast<std::int64_t>(num_rows);
    tensor.num_elements = row_elements * num_rows;
    tensor.size_bytes = bits / 8;
  }

  std::vector<TensorRef> from_;  ///< of tensors_ at the same position
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints_;
};

TensorRef only_tensor(std::shared_ptr<const Checkpoint> view) {
  const TensorInfo* tensor = &view->tensors().front();
  return {std::move(view), tensor};
}

}  // namespace

TensorRef make_row_view(std::string name, DType dtype, std::vector<TensorRef> sources, RowMap map) {
  return only_tensor(std::make_shared<RowView>(std::move(name), dtype, std::move(sources), std::move(map)));
}

TensorRef truncate_rows(const TensorRef& tensor, std::uint64_t num_rows) {
  return only_tensor(
      std::make_shared<TensorSelection>(std::vector<TensorSelection::Part>{{tensor, tensor.tensor->name, num_rows}}, *tensor.checkpoint));
}

TensorRef alias_tensor(const TensorRef& tensor, std::string name) {
  return only_tensor(
      std::make_shared<TensorSelection>(std::vector<TensorSelection::Part>{{tensor, std::move(name), std::nullopt}}, *tensor.checkpoint));
}

std::shared_ptr<const Checkpoint> overlay_tensors(std::shared_ptr<const Checkpoint> base, const std::vector<TensorRef>& tensors) {
  std::vector<TensorSelection::Part> parts;
  std::unordered_map<std::string_view, const TensorRef*> replaced;
  for (const TensorRef& tensor : tensors) {
    if (!replaced.emplace(tensor.tensor->name, &tensor).second)
      throw Error(ErrorCode::invalid_argument, "two tensors of one name are laid over a checkpoint", {.tensor = tensor.tensor->name});
  }
  for (const TensorInfo& tensor : base->tensors()) {
    const auto at = replaced.find(tensor.name);
    parts.push_back({at == replaced.end() ? TensorRef{base, &tensor} : *at->second, tensor.name, std::nullopt});
  }
  for (const TensorRef& tensor : tensors)
    if (base->find_tensor(tensor.tensor->name) == nullptr) parts.push_back({tensor, tensor.tensor->name, std::nullopt});
  return std::make_shared<TensorSelection>(std::move(parts), *base);
}

std::shared_ptr<const Checkpoint> select_tensors(const std::vector<NamedTensor>& tensors, const Checkpoint& main) {
  std::vector<TensorSelection::Part> parts;
  parts.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) parts.push_back({tensor.tensor, tensor.name, std::nullopt});
  return std::make_shared<TensorSelection>(std::move(parts), main);
}

TensorRef without_renames(TensorRef tensor) {
  while (const auto* selection = dynamic_cast<const TensorSelection*>(tensor.checkpoint.get())) {
    std::optional<TensorRef> behind = selection->renamed(*tensor.tensor);
    if (!behind) break;
    tensor = *std::move(behind);
  }
  return tensor;
}

}  // namespace weft
