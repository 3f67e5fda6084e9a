#include "checkpoint/tensor_view.h"

#include <gtest/gtest.h>

#include <cstring>
#include <mutex>
#include <numeric>

#include "checkpoint/arranged_view.h"
#include "math/convert.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"

namespace weft {
namespace {

using testing::MemoryCheckpoint;

/// Counts how often each byte of its tensor was read.
class Counted final : public Checkpoint {
 public:
  explicit Counted(std::shared_ptr<const Checkpoint> under) : under_(std::move(under)) {
    tensors_.assign(under_->tensors().begin(), under_->tensors().end());
    index_tensors();
    reads.assign(tensors_.front().size_bytes, 0);
  }
  void read_bytes(const TensorInfo&, std::uint64_t offset, std::span<std::byte> out) const override {
    const std::lock_guard lock(mutex_);
    ++calls;
    for (std::size_t i = 0; i < out.size(); ++i) ++reads[offset + i];
    under_->read_bytes(under_->tensors().front(), offset, out);
  }
  mutable std::vector<int> reads;
  mutable int calls = 0;

 private:
  std::shared_ptr<const Checkpoint> under_;
  mutable std::mutex mutex_;
};

TensorRef one(DType dtype, Shape shape, std::vector<std::byte> bytes) {
  auto memory = std::make_shared<MemoryCheckpoint>(std::vector<MemoryCheckpoint::Tensor>{{"t", dtype, std::move(shape), std::move(bytes)}});
  return {memory, &memory->tensors().front()};
}

std::vector<std::byte> counting_bytes(std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((i * 37 + i / 251) & 0xFF);
  return bytes;
}

/// Read in pieces of this size.
std::vector<std::byte> read(const TensorRef& tensor, std::size_t piece) {
  std::vector<std::byte> out(tensor.tensor->size_bytes);
  for (std::size_t at = 0; at < out.size(); at += piece)
    tensor.checkpoint->read_bytes(*tensor.tensor, at, std::span(out).subspan(at, std::min(piece, out.size() - at)));
  return out;
}

TEST(TensorView, a_transposed_matrix_holds_the_element_of_row_c_and_column_r_for_any_band_and_piece) {
  for (const auto& [dtype, size] : {std::pair{DType::u8, 1}, {DType::bf16, 2}, {DType::f32, 4}, {DType::i64, 8}}) {
    const std::size_t rows = 37, columns = 70, element = static_cast<std::size_t>(size);
    const std::vector<std::byte> bytes = counting_bytes(rows * columns * element);
    std::vector<std::byte> want(bytes.size());
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < columns; ++c) std::memcpy(&want[(c * rows + r) * element], &bytes[(r * columns + c) * element], element);
    for (const std::uint64_t band : {std::uint64_t{1}, std::uint64_t{1000}, std::uint64_t{1} << 20}) {
      const TensorRef view = transpose_tensor(one(dtype, {37, 70}, bytes), band);
      EXPECT_EQ(view.tensor->shape, (Shape{70, 37}));
      for (const std::size_t piece : {std::size_t{3}, std::size_t{100}, want.size()})
        EXPECT_EQ(read(view, piece), want) << to_string(dtype) << " band " << band;
    }
  }
}

TEST(TensorView, a_matrix_that_is_read_in_order_through_its_transpose_is_read_once) {
  const TensorRef matrix = one(DType::f32, {64, 96}, counting_bytes(64 * 96 * 4));
  const auto counted = std::make_shared<Counted>(matrix.checkpoint);
  const TensorRef view = transpose_tensor({counted, &counted->tensors().front()}, 64 * 4 * 10);
  static_cast<void>(read(view, 777));
  EXPECT_EQ(counted->reads, std::vector<int>(64 * 96 * 4, 1));
}

TEST(TensorView, a_slice_equals_the_elements_that_its_ranges_name) {
  const Shape shape{5, 7, 6};
  const std::vector<std::byte> bytes = counting_bytes(5 * 7 * 6 * 2);
  const std::vector<std::vector<AxisRange>> cases = {
      {{0, 5, 1}, {0, 7, 1}, {0, 6, 1}},      {{1, 4, 1}, {0, 7, 1}, {0, 6, 1}}, {{0, 5, 1}, {2, 5, 1}, {0, 6, 1}}, {{0, 5, 2}, {0, 7, 3}, {0, 6, 5}},
      {{4, -1, -1}, {6, 0, -2}, {5, -1, -1}}, {{3, 4, 1}, {0, 7, 1}, {1, 3, 1}}, {{0, 5, 1}, {0, 7, 1}, {2, 3, 1}}};
  for (const std::vector<AxisRange>& ranges : cases) {
    std::vector<std::byte> want;
    Shape sizes;
    for (const AxisRange& range : ranges) sizes.push_back(range.size());
    for (std::int64_t a = 0; a < sizes[0]; ++a)
      for (std::int64_t b = 0; b < sizes[1]; ++b)
        for (std::int64_t c = 0; c < sizes[2]; ++c) {
          const std::int64_t at =
              ((ranges[0].begin + a * ranges[0].step) * 7 + ranges[1].begin + b * ranges[1].step) * 6 + ranges[2].begin + c * ranges[2].step;
          for (std::int64_t k = 0; k < 2; ++k) want.push_back(bytes[static_cast<std::size_t>(at * 2 + k)]);
        }
    const TensorRef view = slice_tensor(one(DType::f16, shape, bytes), ranges);
    EXPECT_EQ(view.tensor->shape, sizes);
    for (const std::size_t piece : {std::size_t{1}, std::size_t{5}, want.size()}) EXPECT_EQ(read(view, piece), want);
  }
}

TEST(TensorView, columns_of_a_matrix_are_read_in_long_pieces) {
  const TensorRef matrix = one(DType::f32, {4096, 64}, counting_bytes(4096 * 64 * 4));
  const auto counted = std::make_shared<Counted>(matrix.checkpoint);
  const TensorRef view = slice_tensor({counted, &counted->tensors().front()}, {{0, 4096, 1}, {3, 35, 1}});
  static_cast<void>(read(view, 1 << 20));
  EXPECT_LE(counted->calls, 8);
}

TEST(TensorView, a_cast_equals_decoding_and_encoding_from_any_place) {
  const std::vector<float> values = testing::random_values(100'001, 3);
  for (const DType to : {DType::bf16, DType::f16, DType::f64, DType::f8_e4m3, DType::f32}) {
    std::vector<std::byte> want(values.size() * static_cast<std::size_t>(info(to).bits) / 8);
    math::encode(to, values, want);
    const TensorRef view = cast_tensor(one(DType::f32, {100'001}, testing::stored_as(DType::f32, values)), to);
    EXPECT_EQ(read(view, want.size()), want) << to_string(to);
    EXPECT_EQ(read(view, 70'001), want) << to_string(to);
    EXPECT_EQ(cast_from(view).has_value(), to != DType::f32);
  }
}

TEST(TensorView, a_cast_to_four_bits_packs_two_values_into_a_byte) {
  const TensorRef view = cast_tensor(one(DType::f32, {2, 4}, testing::stored_as(DType::f32, {1, 2, 3, 4, 6, -1, 0, -6})), DType::f4);
  EXPECT_EQ(view.tensor->size_bytes, 4u);
  EXPECT_EQ(read(view, 1), read(view, 4));
  EXPECT_WEFT_ERROR(cast_tensor(one(DType::f32, {3}, std::vector<std::byte>(12)), DType::f4), unsupported, "inside a byte");
}

TEST(TensorView, views_on_views_have_no_more_files_than_there_are) {
  std::shared_ptr<const Checkpoint> model = open_checkpoint(std::string(WEFT_SOURCE_DIR) + "/models/tiny-base");
  const std::filesystem::path file = model->files().front().path;
  for (int step = 0; step < 40; ++step) {
    std::vector<NamedTensor> tensors;
    for (const TensorInfo& tensor : model->tensors())  // each with a view of its own
      tensors.push_back({cast_tensor({model, &tensor}, step % 2 == 0 ? DType::f32 : DType::bf16), tensor.name});
    model = select_tensors(tensors, *model);
    ASSERT_EQ(model->files().size(), 1u) << step;
  }
  EXPECT_EQ(model->files()[model->tensors().back().file_index].path, file);
  const TensorInfo& first = model->tensors().front();
  ArrangedTensor part{.name = "t", .shape = first.shape, .sources = {{model, &first}}};
  EXPECT_EQ(make_arranged_view("view", *model, {part})->files().size(), 1u);
}

TEST(TensorView, renames_are_seen_through_and_cuts_are_not) {
  const TensorRef tensor = one(DType::u8, {4, 2}, counting_bytes(8));
  const auto selection = select_tensors({{tensor, "a"}, {truncate_rows(tensor, 2), "b"}}, *tensor.checkpoint);
  EXPECT_EQ(without_renames({selection, &selection->tensor("a")}).tensor, tensor.tensor);
  EXPECT_EQ(without_renames({selection, &selection->tensor("b")}).tensor->shape, (Shape{2, 2}));
  EXPECT_WEFT_ERROR(select_tensors({{tensor, "a"}, {tensor, "a"}}, *tensor.checkpoint), corrupt, "listed twice");
}

TEST(TensorView, what_cannot_be_viewed_is_refused) {
  const TensorRef vector = one(DType::f32, {4}, std::vector<std::byte>(16));
  EXPECT_WEFT_ERROR(transpose_tensor(vector), invalid_argument, "no matrix");
  EXPECT_WEFT_ERROR(slice_tensor(vector, {{0, 5, 1}}), invalid_argument, "leaves tensor");
  EXPECT_WEFT_ERROR(slice_tensor(vector, {{-1, 2, 1}}), invalid_argument, "leaves tensor");
  EXPECT_WEFT_ERROR(slice_tensor(vector, {}), invalid_argument, "0 ranges");
  EXPECT_WEFT_ERROR(cast_tensor(vector, DType::i32), unsupported, "cannot be cast");
}

}  // namespace
}  // namespace weft
