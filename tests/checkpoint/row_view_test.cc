#include "checkpoint/row_view.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "math/convert.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"

namespace weft::testing {
namespace {

using Kind = RowOrigin::Kind;

/// Passes everything on and counts the reads.
class CountingCheckpoint final : public Checkpoint {
 public:
  explicit CountingCheckpoint(std::shared_ptr<const Checkpoint> inner) : inner_(std::move(inner)) {
    path_ = inner_->path();
    tensors_.assign(inner_->tensors().begin(), inner_->tensors().end());
    index_tensors();
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    ++reads;
    largest = std::max<std::uint64_t>(largest, out.size());
    inner_->read_bytes(tensor, offset, out);
  }
  void check_unchanged() const override { ++checks; }
  mutable std::uint64_t reads = 0;
  mutable std::uint64_t largest = 0;
  mutable int checks = 0;

 private:
  std::shared_ptr<const Checkpoint> inner_;
};

struct Matrix {
  DType dtype;
  std::size_t rows;
  std::size_t columns;
  std::vector<float> values;  ///< what dtype holds
  TensorRef ref;
};

TensorRef first_tensor(std::shared_ptr<const Checkpoint> checkpoint) {
  const TensorInfo* tensor = &checkpoint->tensors().front();
  return {std::move(checkpoint), tensor};
}

Matrix make_matrix(DType dtype, std::size_t rows, std::size_t columns, std::uint64_t seed) {
  Matrix m{dtype, rows, columns, random_values(rows * columns, seed), {}};
  std::vector<std::byte> bytes = stored_as(dtype, m.values);
  m.values = values_of(dtype, bytes);
  const Shape shape{static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns)};
  m.ref = first_tensor(std::make_shared<MemoryCheckpoint>(std::vector<MemoryCheckpoint::Tensor>{{"w", dtype, shape, std::move(bytes)}},
                                                          "seed" + std::to_string(seed)));
  return m;
}

double through(DType dtype, float value) {
  return dtype == DType::f64 ? static_cast<double>(value) : static_cast<double>(math::decode_one(dtype, math::encode_one(dtype, value)));
}

/// The stored value nearest to a double, by looking at the neighbours; ties to the even code.
std::uint64_t nearest_code(DType dtype, double value) {
  if (dtype == DType::f64) return std::bit_cast<std::uint64_t>(value);
  if (dtype == DType::f32) return std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const std::uint64_t middle = math::encode_one(dtype, static_cast<float>(value));
  std::uint64_t best = middle;
  for (const std::uint64_t code : {middle - 1, middle + 1}) {
    const double distance = std::abs(static_cast<double>(math::decode_one(dtype, code)) - value);
    const double current = std::abs(static_cast<double>(math::decode_one(dtype, best)) - value);
    if (distance < current || (distance == current && code % 2 == 0)) best = code;
  }
  return best;
}

/// The whole matrix, element by element, straight from the words of the header.
std::vector<std::byte> reference(DType dtype, const std::vector<Matrix>& sources, const RowMap& map) {
  const std::size_t columns = sources.front().columns;
  const std::size_t size = static_cast<std::size_t>(info(dtype).bits) / 8;
  std::vector<std::byte> out(map.rows.size() * columns * size);
  const auto put = [&](std::size_t row, std::size_t column, std::uint64_t code) {
    std::memcpy(out.data() + (row * columns + column) * size, &code, size);
  };
  const auto value_at = [&](std::size_t row, std::size_t column) {
    std::uint64_t code = 0;
    std::memcpy(&code, out.data() + (row * columns + column) * size, size);
    return dtype == DType::f64 ? std::bit_cast<double>(code) : static_cast<double>(math::decode_one(dtype, code));
  };
  for (std::size_t r = 0; r < map.rows.size(); ++r) {
    for (std::size_t c = 0; c < columns; ++c) {
      const RowOrigin& origin = map.rows[r];
      if (origin.kind == Kind::row) {
        const Matrix& m = sources[origin.source];
        put(r, c, nearest_code(dtype, static_cast<double>(m.values[origin.index * columns + c])));
      } else if (origin.kind == Kind::mean) {
        double sum = 0;
        for (const RowAddress& a : map.means[origin.index]) sum += through(dtype, sources[a.source].values[a.row * columns + c]);
        put(r, c, nearest_code(dtype, sum / static_cast<double>(map.means[origin.index].size())));
      }
    }
  }
  const auto is_padding = [](const RowOrigin& o) { return o.kind == Kind::padding; };
  for (std::size_t c = 0; c < columns; ++c) {
    double sum = 0;
    std::size_t count = 0;
    for (std::size_t r = 0; r < map.rows.size(); ++r)
      if (!is_padding(map.rows[r])) sum += value_at(r, c), ++count;
    for (std::size_t r = 0; r < map.rows.size(); ++r)
      if (is_padding(map.rows[r])) put(r, c, nearest_code(dtype, count == 0 ? 0.0 : sum / static_cast<double>(count)));
  }
  return out;
}

std::vector<std::byte> read_all(const TensorRef& view) {
  std::vector<std::byte> out(view.tensor->size_bytes);
  view.checkpoint->read_bytes(*view.tensor, 0, out);
  return out;
}

/// A map with runs, jumps, other sources, means, zeros and padding.
RowMap mixed_map(const std::vector<Matrix>& sources) {
  RowMap map;
  for (std::uint64_t r = 2; r < 9; ++r) map.rows.push_back({Kind::row, 0, r});
  map.rows.push_back({Kind::zero, 0, 0});
  map.rows.push_back({Kind::row, 1, 3});
  map.rows.push_back({Kind::mean, 0, 0});
  map.rows.push_back({Kind::padding, 0, 0});
  map.rows.push_back({Kind::row, 1, sources[1].rows - 1});
  map.rows.push_back({Kind::row, 0, 0});
  map.rows.push_back({Kind::mean, 0, 1});
  map.rows.push_back({Kind::row, 2, 1});
  map.rows.push_back({Kind::row, 2, 2});
  map.rows.push_back({Kind::padding, 0, 0});
  map.means = {{{0, 1}, {1, 4}, {2, 0}}, {{2, 2}, {0, 5}}};
  return map;
}

std::vector<TensorRef> refs(const std::vector<Matrix>& sources) {
  std::vector<TensorRef> out;
  for (const Matrix& m : sources) out.push_back(m.ref);
  return out;
}

class RowViewOfType : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Types, RowViewOfType, ::testing::Values(DType::f32, DType::bf16, DType::f16, DType::f64),
                         [](const auto& param_info) { return std::string(to_string(param_info.param)); });

TEST_P(RowViewOfType, has_the_rows_that_the_map_names_whatever_types_the_sources_have) {
  for (const DType first : {DType::f32, DType::bf16, DType::f16}) {
    const std::vector<Matrix> sources = {make_matrix(first, 10, 33, 1), make_matrix(DType::bf16, 8, 33, 2), make_matrix(DType::f32, 3, 33, 3)};
    const RowMap map = mixed_map(sources);
    const TensorRef view = make_row_view("embed", GetParam(), refs(sources), map);
    EXPECT_EQ(view.tensor->name, "embed");
    EXPECT_EQ(view.tensor->dtype, GetParam());
    EXPECT_EQ(view.tensor->shape, (Shape{17, 33}));
    EXPECT_EQ(view.checkpoint->find_tensor("embed"), view.tensor);
    EXPECT_EQ(read_all(view), reference(GetParam(), sources, map)) << "first source " << to_string(first);
  }
}

TEST_P(RowViewOfType, gives_the_same_bytes_for_any_chunk_size_and_alignment) {
  const std::vector<Matrix> sources = {make_matrix(DType::f32, 10, 5, 4), make_matrix(DType::bf16, 8, 5, 5), make_matrix(DType::f16, 3, 5, 6)};
  const RowMap map = mixed_map(sources);
  const TensorRef view = make_row_view("embed", GetParam(), refs(sources), map);
  const std::vector<std::byte> whole = reference(GetParam(), sources, map);
  const std::size_t row = whole.size() / map.rows.size();
  for (const std::size_t chunk : {std::size_t{1}, std::size_t{3}, std::size_t{7}, row - 1, row, row + 1, 3 * row + 2, whole.size()}) {
    for (const std::size_t start : {std::size_t{0}, std::size_t{1}, std::size_t{5}, row - 1}) {
      std::vector<std::byte> got(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(start));
      while (got.size() < whole.size()) {
        // Guard bytes around each piece show writes outside it.
        std::vector<std::byte> piece(std::min(chunk, whole.size() - got.size()) + 2, std::byte{0xA5});
        view.checkpoint->read_bytes(*view.tensor, got.size(), std::span(piece).subspan(1, piece.size() - 2));
        ASSERT_EQ(piece.front(), std::byte{0xA5});
        ASSERT_EQ(piece.back(), std::byte{0xA5});
        got.insert(got.end(), piece.begin() + 1, piece.end() - 1);
      }
      ASSERT_EQ(got, whole) << "chunks of " << chunk << " from " << start;
    }
  }
}

TEST_P(RowViewOfType, converts_rows_longer_than_a_piece) {
  const std::size_t columns = 300'001;  // one piece is 2^18 elements
  const std::vector<Matrix> sources = {make_matrix(DType::f32, 2, columns, 7), make_matrix(DType::bf16, 2, columns, 8)};
  RowMap map;
  map.rows = {{Kind::row, 1, 0}, {Kind::row, 1, 1}, {Kind::mean, 0, 0}, {Kind::row, 0, 1}, {Kind::padding, 0, 0}};
  map.means = {{{0, 0}, {1, 1}}};
  EXPECT_EQ(read_all(make_row_view("w", GetParam(), refs(sources), map)), reference(GetParam(), sources, map));
}

TEST(RowView, reads_neighbouring_rows_in_one_go_and_nothing_on_opening) {
  const Matrix m = make_matrix(DType::f32, 100, 16, 9);
  const auto counting = std::make_shared<CountingCheckpoint>(m.ref.checkpoint);
  RowMap map;
  for (std::uint64_t r = 10; r < 60; ++r) map.rows.push_back({Kind::row, 0, r});
  for (std::uint64_t r = 0; r < 10; ++r) map.rows.push_back({Kind::row, 0, r});
  map.rows.push_back({Kind::padding, 0, 0});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    counting->reads = 0;
    const TensorRef view = make_row_view("w", dtype, {first_tensor(counting)}, map);
    EXPECT_EQ(counting->reads, 0U);
    std::vector<std::byte> out(view.tensor->size_bytes / 61 * 60);
    view.checkpoint->read_bytes(*view.tensor, 0, out);
    EXPECT_EQ(counting->reads, 2U) << to_string(dtype);
  }
}

TEST(RowView, asks_for_a_bounded_part_at_a_time_when_it_converts) {
  const Matrix m = make_matrix(DType::f32, 64, 65'536, 10);  // 16 MiB
  const auto counting = std::make_shared<CountingCheckpoint>(m.ref.checkpoint);
  RowMap map;
  for (std::uint64_t r = 0; r < 64; ++r) map.rows.push_back({Kind::row, 0, r});
  map.rows.push_back({Kind::padding, 0, 0});
  const TensorRef view = make_row_view("w", DType::bf16, {first_tensor(counting)}, map);
  const std::vector<Matrix> sources = {m};
  EXPECT_EQ(read_all(view), reference(DType::bf16, sources, map));
  EXPECT_LE(counting->largest, std::uint64_t{1} << 20);
}

TEST(RowView, rounds_a_mean_once) {
  // 1 + 2^-8 + 2^-32: the nearest bf16 is above, but by way of float32 it would be a tie and go down to 1.
  const std::vector<float> values = {2, 0x1p-6F, 2, 0x1p-30F};
  std::vector<MemoryCheckpoint::Tensor> tensors;
  tensors.push_back({"w", DType::bf16, {4, 1}, stored_as(DType::bf16, values)});
  const TensorRef source = first_tensor(std::make_shared<MemoryCheckpoint>(std::move(tensors)));
  RowMap map;
  map.rows = {{Kind::mean, 0, 0}};
  map.means = {{{0, 0}, {0, 1}, {0, 2}, {0, 3}}};
  EXPECT_EQ(values_of(DType::bf16, read_all(make_row_view("w", DType::bf16, {source}, map))).front(), 1 + 0x1p-7F);
}

TEST(RowView, rounds_means_of_every_magnitude_to_the_nearest_stored_value) {
  // Rows 0 and 1: every positive bf16 beside one some binades away, subnormals and the largest included.
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const std::uint64_t finite = dtype == DType::bf16 ? 0x7F80 : 0x7C00;
    for (const std::uint64_t away : {std::uint64_t{1}, std::uint64_t{3 * 128 + 5}, std::uint64_t{9 * 128 + 77}}) {
      Matrix m{dtype, 2, static_cast<std::size_t>(finite - away), {}, {}};
      for (std::uint64_t code = 0; code < finite - away; ++code) m.values.push_back(math::decode_one(dtype, code));
      for (std::uint64_t code = away; code < finite; ++code) m.values.push_back((code % 2 == 0 ? 1.0F : -1.0F) * math::decode_one(dtype, code));
      std::vector<MemoryCheckpoint::Tensor> tensors;
      tensors.push_back({"w", dtype, {2, static_cast<std::int64_t>(m.columns)}, stored_as(dtype, m.values)});
      m.ref = first_tensor(std::make_shared<MemoryCheckpoint>(std::move(tensors)));
      RowMap map;
      map.rows = {{Kind::mean, 0, 0}};
      map.means = {{{0, 0}, {0, 1}, {0, 0}}};
      const std::vector<std::byte> got = read_all(make_row_view("w", dtype, {m.ref}, map));
      for (std::size_t c = 0; c < m.columns; ++c) {
        const double mean = (2 * static_cast<double>(m.values[c]) + static_cast<double>(m.values[m.columns + c])) / 3;
        std::uint16_t code;
        std::memcpy(&code, got.data() + 2 * c, 2);
        const double error = std::abs(static_cast<double>(math::decode_one(dtype, code)) - mean);
        for (const std::uint64_t other : {code - std::uint64_t{1}, code + std::uint64_t{1}}) {
          const double neighbour = static_cast<double>(math::decode_one(dtype, other & 0xFFFF));
          if (!std::isfinite(neighbour)) continue;
          const double distance = std::abs(neighbour - mean);
          ASSERT_TRUE(error < distance || (error == distance && code % 2 == 0)) << to_string(dtype) << " column " << c << " mean " << mean;
        }
      }
    }
  }
}

TEST(RowView, reads_the_matrix_for_the_padding_row_once_and_only_when_asked) {
  const Matrix m = make_matrix(DType::bf16, 50, 8, 11);
  const auto counting = std::make_shared<CountingCheckpoint>(m.ref.checkpoint);
  RowMap map;
  for (std::uint64_t r = 0; r < 50; ++r) map.rows.push_back({Kind::row, 0, r});
  for (int i = 0; i < 6; ++i) map.rows.push_back({Kind::padding, 0, 0});
  const TensorRef view = make_row_view("w", DType::bf16, {first_tensor(counting)}, map);
  std::vector<std::byte> row(16);
  view.checkpoint->read_bytes(*view.tensor, 0, row);
  EXPECT_EQ(counting->reads, 1U);
  for (std::uint64_t r = 50; r < 56; ++r) view.checkpoint->read_bytes(*view.tensor, r * 16, row);
  EXPECT_EQ(counting->reads, 2U);
}

TEST(RowView, copies_types_without_values_bit_for_bit) {
  std::vector<std::byte> bytes(6 * 4);
  std::iota(reinterpret_cast<unsigned char*>(bytes.data()), reinterpret_cast<unsigned char*>(bytes.data()) + bytes.size(), std::uint8_t{1});
  for (const auto& [dtype, columns] : {std::pair{DType::i8, 4}, std::pair{DType::f4, 8}, std::pair{DType::i32, 1}}) {
    std::vector<MemoryCheckpoint::Tensor> tensors;
    tensors.push_back({"w", dtype, {6, columns}, bytes});
    const TensorRef source = first_tensor(std::make_shared<MemoryCheckpoint>(std::move(tensors)));
    RowMap map;
    map.rows = {{Kind::row, 0, 5}, {Kind::row, 0, 1}, {Kind::row, 0, 2}};
    const TensorRef view = make_row_view("w", dtype, {source}, map);
    std::vector<std::byte> got(5);
    view.checkpoint->read_bytes(*view.tensor, 3, got);
    const std::vector<std::byte> want = {bytes[23], bytes[4], bytes[5], bytes[6], bytes[7]};
    EXPECT_EQ(got, want) << to_string(dtype);
  }
}

TEST(RowView, may_be_empty_on_either_axis) {
  const Matrix m = make_matrix(DType::f32, 3, 4, 12);
  EXPECT_EQ(make_row_view("w", DType::f32, {m.ref}, {}).tensor->shape, (Shape{0, 4}));
  const Matrix thin = make_matrix(DType::f32, 3, 0, 13);
  RowMap map;
  map.rows = {{Kind::row, 0, 1}, {Kind::padding, 0, 0}};
  const TensorRef view = make_row_view("w", DType::bf16, {thin.ref}, map);
  EXPECT_EQ(view.tensor->shape, (Shape{2, 0}));
  EXPECT_TRUE(read_all(view).empty());
}

TEST(RowView, refuses_what_cannot_be) {
  const Matrix a = make_matrix(DType::f32, 3, 4, 14);
  const Matrix b = make_matrix(DType::f32, 3, 5, 15);
  RowMap row;
  row.rows = {{Kind::row, 0, 3}};
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f32, {a.ref, b.ref}, {}), invalid_argument, "different widths");
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f32, {a.ref}, row), invalid_argument, "row 3 does not exist in a matrix [3, 4]");
  row.rows = {{Kind::row, 1, 0}};
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f32, {a.ref}, row), invalid_argument, "does not exist");
  row.rows = {{Kind::mean, 0, 0}};
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f32, {a.ref}, row), invalid_argument, "mean of no rows");
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f32, {}, {}), invalid_argument, "needs a matrix");

  std::vector<MemoryCheckpoint::Tensor> tensors;
  tensors.push_back({"vector", DType::f32, {4}, std::vector<std::byte>(16)});
  tensors.push_back({"numbers", DType::i32, {2, 2}, std::vector<std::byte>(16)});
  tensors.push_back({"odd", DType::f4, {2, 1}, std::vector<std::byte>(1)});
  const auto checkpoint = std::make_shared<MemoryCheckpoint>(std::move(tensors));
  const auto ref = [&](std::string_view name) { return TensorRef{checkpoint, checkpoint->find_tensor(name)}; };
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f32, {ref("vector")}, {}), invalid_argument, "matrix only, not from shape [4]");
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f32, {ref("numbers")}, {}), unsupported, "I32 cannot become F32");
  EXPECT_WEFT_ERROR(make_row_view("w", DType::f4, {ref("odd")}, {}), unsupported, "do not end at a byte");
  row.rows = {{Kind::padding, 0, 0}};
  EXPECT_WEFT_ERROR(make_row_view("w", DType::i32, {ref("numbers")}, row), unsupported, "cannot be computed");

  RowMap one;
  one.rows = {{Kind::row, 0, 0}};
  const TensorRef view = make_row_view("w", DType::f32, {a.ref}, one);
  std::vector<std::byte> out(8);
  EXPECT_WEFT_ERROR(view.checkpoint->read_bytes(*view.tensor, 12, out), invalid_argument, "of a tensor of 16 bytes");
}

TEST(TensorViews, truncating_keeps_the_first_rows_and_no_more) {
  const Matrix m = make_matrix(DType::bf16, 5, 3, 16);
  const TensorRef cut = truncate_rows(m.ref, 2);
  EXPECT_EQ(cut.tensor->name, "w");
  EXPECT_EQ(cut.tensor->shape, (Shape{2, 3}));
  EXPECT_EQ(cut.tensor->num_elements, 6U);
  EXPECT_EQ(values_of(DType::bf16, read_all(cut)), std::vector<float>(m.values.begin(), m.values.begin() + 6));
  std::vector<std::byte> out(4);
  EXPECT_WEFT_ERROR(cut.checkpoint->read_bytes(*cut.tensor, 10, out), invalid_argument, "of a tensor of 12 bytes");
  EXPECT_WEFT_ERROR(truncate_rows(m.ref, 6), invalid_argument, "cannot be cut to 6 rows");
}

TEST(TensorViews, an_alias_has_the_same_bytes_and_another_name) {
  const Matrix m = make_matrix(DType::f16, 5, 3, 17);
  const TensorRef head = alias_tensor(m.ref, "lm_head.weight");
  EXPECT_EQ(head.checkpoint->tensor("lm_head.weight").shape, m.ref.tensor->shape);
  EXPECT_EQ(head.checkpoint->find_tensor("w"), nullptr);
  EXPECT_EQ(read_all(head), read_all(m.ref));
}

TEST(TensorViews, an_overlay_replaces_and_adds_tensors_and_keeps_the_rest) {
  std::vector<MemoryCheckpoint::Tensor> tensors;
  for (const char* name : {"a", "b", "c"})
    tensors.push_back({name, DType::f32, {2, 2}, stored_as(DType::f32, random_values(4, static_cast<std::uint64_t>(name[0])))});
  const auto base = std::make_shared<CountingCheckpoint>(std::make_shared<MemoryCheckpoint>(std::move(tensors)));
  const Matrix other = make_matrix(DType::bf16, 7, 2, 18);
  const auto both = overlay_tensors(base, {alias_tensor(other.ref, "b"), truncate_rows(alias_tensor(other.ref, "new"), 1)});
  ASSERT_EQ(both->tensors().size(), 4U);
  EXPECT_EQ(both->tensors()[1].name, "b");
  EXPECT_EQ(both->tensors()[3].name, "new");
  EXPECT_EQ(both->tensor("b").shape, (Shape{7, 2}));
  for (const TensorInfo& tensor : both->tensors()) {
    std::vector<std::byte> got(tensor.size_bytes);
    both->read_bytes(tensor, 0, got);
    if (tensor.name == "a" || tensor.name == "c") {
      std::vector<std::byte> want(tensor.size_bytes);
      base->read_bytes(base->tensor(tensor.name), 0, want);
      EXPECT_EQ(got, want);
    } else {
      EXPECT_EQ(values_of(DType::bf16, got),
                std::vector<float>(other.values.begin(), other.values.begin() + static_cast<std::ptrdiff_t>(tensor.num_elements)));
    }
    const TensorInfo copy = tensor;  // a description that is not the view's own
    std::vector<std::byte> again(tensor.size_bytes);
    both->read_bytes(copy, 0, again);
    EXPECT_EQ(again, got);
  }
  both->check_unchanged();
  EXPECT_EQ(base->checks, 1);
  EXPECT_WEFT_ERROR(overlay_tensors(base, {other.ref, other.ref}), invalid_argument, "two tensors of one name");
}

}  // namespace
}  // namespace weft::testing
