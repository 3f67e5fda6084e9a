#include "checkpoint/arranged_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/file_list.h"
#include "checkpoint/packed_rows.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft {
namespace {

/// Rows shorter than this are not read one by one: their whole tensor is, which is then small.
constexpr std::uint64_t kShortRowBytes = 256;

class ArrangedView final : public Checkpoint, public PackedSource {
 public:
  ArrangedView(std::string container, const Checkpoint& main, std::vector<ArrangedTensor> tensors) : parts_(std::move(tensors)) {
    container_ = std::move(container);
    path_ = main.path();
    metadata_ = main.metadata();
    FileList files;
    std::unordered_set<const Checkpoint*> seen;
    for (ArrangedTensor& part : parts_) {
      TensorInfo info;
      info.name = part.name;
      info.shape = part.shape;
      info.num_elements = 1;
      for (const std::int64_t dimension : part.shape)
        info.num_elements = checked_mul(info.num_elements, static_cast<std::uint64_t>(dimension), "the elements of '" + part.name + "'");
      check(part, info.num_elements);
      info.dtype = part.sources.empty() ? part.dtype : part.kind == ArrangedTensor::Kind::add ? DType::f32 : part.sources.front().tensor->dtype;
      info.size_bytes =
          checked_mul(info.num_elements, static_cast<std::uint64_t>(weft::info(info.dtype).bits), "the size of '" + part.name + "'") / 8;
      for (const TensorRef& source : part.sources) {
        if (seen.insert(source.checkpoint.get()).second) checkpoints_.push_back(source.checkpoint);
        const std::uint32_t place = files.place_of(*source.tensor, *source.checkpoint);
        if (&source == &part.sources.front()) info.file_index = place;
      }
      tensors_.push_back(std::move(info));
    }
    files_ = files.take();
    if (files_.empty()) files_.assign(main.files().begin(), main.files().end());
    index_tensors();
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const std::size_t i = position(tensor);
    const TensorInfo& own = tensors_[i];
    WEFT_ASSERT(offset <= own.size_bytes && out.size() <= own.size_bytes - offset);
    if (out.empty()) return;
    const ArrangedTensor& part = parts_[i];
    switch (part.kind) {
      case ArrangedTensor::Kind::literal:
        std::memcpy(out.data(), part.bytes.data() + offset, out.size());
        return;
      case ArrangedTensor::Kind::add:
        return read_sum(part, offset, out);
      case ArrangedTensor::Kind::transpose:
        return read_transposed(part, own, offset, out);
      case ArrangedTensor::Kind::rows:
        return read_rows(part, own, offset, out);
    }
  }

  bool read_packed_rows(const TensorInfo& tensor, std::uint64_t first, std::uint64_t count, PackedRows& out) const override {
    const ArrangedTensor& part = parts_[position(tensor)];
    if (part.kind != ArrangedTensor::Kind::rows || part.shape.size() != 2) return false;
    const auto columns = static_cast<std::uint64_t>(part.shape[1]);
    if (columns == 0 || part.row_elements != columns) return false;
    out = {};
    for (const TensorRef& source : part.sources) {
      if (source.tensor->shape.empty() || static_cast<std::uint64_t>(source.tensor->shape.back()) != columns) return false;
      PackedRows rows;
      if (!weft::read_packed_rows(*source.checkpoint, *source.tensor, 0, 0, rows)) return false;
      if (&source == &part.sources.front())
        out = rows;
      else if (!(rows.format == out.format))
        return false;
    }
    const std::uint64_t source_rows = part.sources.front().tensor->num_elements / columns;
    const auto place = [&part](std::uint64_t row) { return part.row_of == nullptr ? row : part.row_of(row); };
    for (std::uint64_t row = first; row < first + count;) {
      // Rows that follow each other there as they do here are read in one go.
      const std::uint64_t from = place(row), which = from / source_rows;
      std::uint64_t run = 1;
      while (row + run < first + count && place(row + run) == from + run && (from + run) / source_rows == which) ++run;
      if (which >= part.sources.size()) throw Error(ErrorCode::internal, "a row outside of its tensors was asked for", {.tensor = part.name});
      const TensorRef& source = part.sources[static_cast<std::size_t>(which)];
      PackedRows rows;
      if (!weft::read_packed_rows(*source.checkpoint, *source.tensor, from % source_rows, run, rows)) return false;
      out.codes.insert(out.codes.end(), rows.codes.begin(), rows.codes.end());
      out.scales.insert(out.scales.end(), rows.scales.begin(), rows.scales.end());
      out.zeros.insert(out.zeros.end(), rows.zeros.begin(), rows.zeros.end());
      row += run;
    }
    return true;
  }

  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    const TensorInfo* own = find_tensor(tensor.name);
    if (own == nullptr) return;
    const ArrangedTensor& part = parts_[static_cast<std::size_t>(own - tensors_.data())];
    if (part.kind != ArrangedTensor::Kind::rows || part.sources.empty()) return;
    // Rows are moved about within a neighbourhood, if at all.
    const std::uint64_t size = part.sources.front().tensor->size_bytes;
    if (size == 0) return;
    const std::size_t which = static_cast<std::size_t>(std::min<std::uint64_t>(offset / size, part.sources.size() - 1));
    part.sources[which].checkpoint->will_read(*part.sources[which].tensor, offset % size, std::min(size_bytes, size - offset % size));
  }
  void check_unchanged() const override {
    for (const auto& checkpoint : checkpoints_) checkpoint->check_unchanged();
  }

 private:
  [[nodiscard]] std::size_t position(const TensorInfo& tensor) const {
    if (std::less_equal<>()(tensors_.data(), &tensor) && std::less<>()(&tensor, tensors_.data() + tensors_.size()))
      return static_cast<std::size_t>(&tensor - tensors_.data());
    return static_cast<std::size_t>(&this->tensor(tensor.name) - tensors_.data());
  }

  static void check(ArrangedTensor& part, std::uint64_t num_elements) {
    const auto fail = [&part](std::string message) { throw Error(ErrorCode::invalid_argument, std::move(message), {.tensor = part.name}); };
    if (part.kind == ArrangedTensor::Kind::literal) {
      if (part.bytes.size() != num_elements * static_cast<std::uint64_t>(weft::info(part.dtype).bits) / 8) fail("a constant of the wrong size");
      return;
    }
    std::uint64_t given = 0;
    for (const TensorRef& source : part.sources) {
      given = checked_add(given, source.tensor->num_elements, "the elements of '" + part.name + "'");
      if (source.tensor->dtype != part.sources.front().tensor->dtype)
        fail(fmt::format("'{}' is {} and '{}' {}, so they cannot be put together", printable(part.sources.front().tensor->name),
                         to_string(part.sources.front().tensor->dtype), printable(source.tensor->name), to_string(source.tensor->dtype)));
      if (weft::info(source.tensor->dtype).bits % 8 != 0) fail("elements of less than a byte cannot be rearranged");
      if (source.tensor->num_elements != part.sources.front().tensor->num_elements)
        fail(fmt::format("'{}' and '{}' are put together but differ in shape: {} and {}", printable(part.sources.front().tensor->name),
                         printable(source.tensor->name), to_string(part.sources.front().tensor->shape), to_string(source.tensor->shape)));
    }
    if (part.row_elements == 0)
      part.row_elements = part.shape.size() < 2 ? 1 : static_cast<std::uint64_t>(std::max<std::int64_t>(1, part.shape.back()));
    // A slice takes some rows only; what row_of gives is checked when it is used.
    if (part.sources.empty() || (part.row_of == nullptr && given != num_elements) || given < num_elements)
      fail(fmt::format("shape {} does not fit '{}' {}", to_string(part.shape),
                       part.sources.empty() ? "" : printable(part.sources.front().tensor->name),
                       part.sources.empty() ? "" : to_string(part.sources.front().tensor->shape)));
    if (part.kind == ArrangedTensor::Kind::transpose && (part.shape.size() != 2 || part.sources.size() != 1)) fail("only a matrix can be transposed");
  }

  static void read_sum(const ArrangedTensor& part, std::uint64_t offset, std::span<std::byte> out) {
    const TensorRef& source = part.sources.front();
    const std::uint64_t first = offset / 4, end = (offset + out.size() + 3) / 4;
    const auto width = static_cast<std::uint64_t>(weft::info(source.tensor->dtype).bits) / 8;
    std::vector<std::byte> stored(static_cast<std::size_t>((end - first) * width));
    source.checkpoint->read_bytes(*source.tensor, first * width, stored);
    std::vector<float> values(static_cast<std::size_t>(end - first));
    math::decode(source.tensor->dtype, stored, values);
    for (float& value : values) value += part.addend;
    std::memcpy(out.data(), reinterpret_cast<const std::byte*>(values.data()) + (offset - first * 4), out.size());
  }

  static void read_transposed(const ArrangedTensor& part, const TensorInfo& own, std::uint64_t offset, std::span<std::byte> out) {
    const TensorRef& source = part.sources.front();
    const auto width = static_cast<std::uint64_t>(weft::info(own.dtype).bits) / 8;
    const auto columns = static_cast<std::uint64_t>(own.shape[1]);  // rows of the source
    const auto source_columns = static_cast<std::uint64_t>(own.shape[0]);
    const std::uint64_t row_bytes = columns * width;
    // Some rows at a time: a strip of columns of the source.
    constexpr std::uint64_t kStripBytes = std::uint64_t{4} << 20;
    const std::uint64_t strip = std::max<std::uint64_t>(1, kStripBytes / row_bytes);
    std::vector<std::byte> read, turned;
    for (std::uint64_t at = offset; at < offset + out.size();) {
      const std::uint64_t first = at / row_bytes;
      const std::uint64_t last = std::min({(offset + out.size() - 1) / row_bytes, first + strip - 1, source_columns - 1});
      const std::uint64_t rows = last - first + 1;
      read.resize(static_cast<std::size_t>(rows * width));
      turned.resize(static_cast<std::size_t>(rows * row_bytes));
      for (std::uint64_t c = 0; c < columns; ++c) {
        source.checkpoint->read_bytes(*source.tensor, (c * source_columns + first) * width, read);
        for (std::uint64_t r = 0; r < rows; ++r) std::memcpy(turned.data() + (r * columns + c) * width, read.data() + r * width, width);
      }
      const std::uint64_t skipped = at - first * row_bytes;
      const std::uint64_t size = std::min(offset + out.size() - at, turned.size() - skipped);
      std::memcpy(out.data() + (at - offset), turned.data() + skipped, static_cast<std::size_t>(size));
      at += size;
    }
  }

  /// Part of the sources laid one after another.
  static void read_joined(const ArrangedTensor& part, std::uint64_t offset, std::span<std::byte> out) {
    const std::uint64_t size = part.sources.front().tensor->size_bytes;
    while (!out.empty()) {
      const std::uint64_t which = offset / size;
      if (which >= part.sources.size()) throw Error(ErrorCode::internal, "a row outside of its tensors was asked for", {.tensor = part.name});
      const TensorRef& source = part.sources[static_cast<std::size_t>(which)];
      const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), size - offset % size));
      source.checkpoint->read_bytes(*source.tensor, offset % size, out.first(count));
      out = out.subspan(count);
      offset += count;
    }
  }

  static void read_rows(const ArrangedTensor& part, const TensorInfo& own, std::uint64_t offset, std::span<std::byte> out) {
    if (part.row_of == nullptr) return read_joined(part, offset, out);
    const std::uint64_t row_bytes = part.row_elements * static_cast<std::uint64_t>(weft::info(own.dtype).bits) / 8;
    std::vector<std::byte> whole;
    if (row_bytes < kShortRowBytes) {
      whole.resize(checked_size(part.sources.front().tensor->size_bytes * part.sources.size(), "the size of '" + part.name + "'"));
      read_joined(part, 0, whole);
    }
    for (std::uint64_t at = offset; at < offset + out.size();) {
      const std::uint64_t row = at / row_bytes;
      const std::uint64_t from = part.row_of(row);
      // Rows that follow each other there as they do here are read in one go.
      std::uint64_t count = 1;
      while ((row + count) * row_bytes < offset + out.size() && part.row_of(row + count) == from + count) ++count;
      const std::uint64_t skipped = at - row * row_bytes;
      const auto size = static_cast<std::size_t>(std::min(offset + out.size() - at, count * row_bytes - skipped));
      const std::span<std::byte> to = out.subspan(static_cast<std::size_t>(at - offset), size);
      if (whole.empty()) {
        read_joined(part, from * row_bytes + skipped, to);
      } else {
        WEFT_ASSERT(from * row_bytes + skipped + size <= whole.size());
        std::memcpy(to.data(), whole.data() + from * row_bytes + skipped, size);
      }
      at += size;
    }
  }

  std::vector<ArrangedTensor> parts_;  ///< of tensors_ at the same position
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints_;
};

class StoredView final : public Checkpoint {
 public:
  explicit StoredView(std::shared_ptr<const Checkpoint> checkpoint) : from_(std::move(checkpoint)) {
    container_ = "view";
    path_ = from_->path();
    metadata_ = from_->metadata();
    files_.assign(from_->files().begin(), from_->files().end());
    tensors_.assign(from_->tensors().begin(), from_->tensors().end());
    for (TensorInfo& tensor : tensors_) {
      if (tensor.stored_as.empty()) continue;
      tensor.dtype = DType::u8;
      tensor.shape = {static_cast<std::int64_t>(tensor.stored_bytes)};
      tensor.num_elements = tensor.size_bytes = tensor.stored_bytes;
      tensor.stored_as.clear();
    }
    index_tensors();
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    from_->read_stored(from_->tensor(tensor.name), offset, out);
  }
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    if (const TensorInfo* source = from_->find_tensor(tensor.name); source != nullptr && source->stored_as.empty())
      from_->will_read(*source, offset, size_bytes);
  }
  void check_unchanged() const override { from_->check_unchanged(); }

 private:
  std::shared_ptr<const Checkpoint> from_;
};

}  // namespace

std::shared_ptr<const Checkpoint> make_arranged_view(std::string container, const Checkpoint& main, std::vector<ArrangedTensor> tensors) {
  return std::make_shared<ArrangedView>(std::move(container), main, std::move(tensors));
}

std::shared_ptr<const Checkpoint> make_stored_view(std::shared_ptr<const Checkpoint> checkpoint) {
  return std::make_shared<StoredView>(std::move(checkpoint));
}

}  // namespace weft
