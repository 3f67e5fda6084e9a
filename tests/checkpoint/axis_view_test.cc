#include "checkpoint/axis_view.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "checkpoint/tensor_view.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"

namespace weft {
namespace {

using testing::MemoryCheckpoint;

TensorRef tensor_of(DType dtype, Shape shape, const std::vector<float>& values) {
  std::vector<MemoryCheckpoint::Tensor> tensors;
  tensors.push_back({"t", dtype, std::move(shape), testing::stored_as(dtype, values)});
  const auto checkpoint = std::make_shared<MemoryCheckpoint>(std::move(tensors));
  return {checkpoint, &checkpoint->tensors().front()};
}
std::vector<float> counted(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}
std::vector<float> read(const TensorRef& tensor, std::uint64_t piece = 0) {
  std::vector<std::byte> bytes(tensor.tensor->size_bytes);
  if (piece == 0) piece = std::max<std::uint64_t>(1, bytes.size());
  for (std::uint64_t at = 0; at < bytes.size(); at += piece)
    tensor.checkpoint->read_bytes(*tensor.tensor, at, std::span(bytes).subspan(at, std::min<std::uint64_t>(piece, bytes.size() - at)));
  return testing::values_of(tensor.tensor->dtype, bytes);
}
AxisStep taken(std::size_t axis, std::vector<std::int64_t> order, std::vector<double> factors = {}) {
  AxisStep step;
  step.axis = axis;
  step.order = std::move(order);
  step.factors = std::move(factors);
  return step;
}
AxisStep mixed(std::size_t axis, std::vector<AxisStep::Block> blocks) {
  AxisStep step;
  step.axis = axis;
  step.blocks = std::move(blocks);
  return step;
}

TEST(AxisView, rows_and_columns_are_taken_and_scaled_in_order) {
  const TensorRef t = tensor_of(DType::f32, {2, 3}, counted(6));
  const TensorRef out = change_axes(t, {taken(0, {1, 0, 1}, {1, 2, 3}), taken(1, {2, 0}), taken(0, {2, 0}, {10, 1})});
  EXPECT_EQ(out.tensor->shape, (Shape{2, 2}));
  // Row 2 of the first step is 3 x old row 1, times 10; row 0 is old row 1.
  EXPECT_EQ(read(out), (std::vector<float>{150, 90, 5, 3}));
}

TEST(AxisView, any_cut_of_reading_gives_the_same_bytes_with_and_without_mixed_rows) {
  const TensorRef t = tensor_of(DType::bf16, {12, 8}, testing::random_values(96, 1));
  const auto twelve = math::make_hadamard_map(12, math::Signs::random, 1), eight = math::make_hadamard_map(8);
  for (const auto& steps : {std::vector<AxisStep>{mixed(1, {{0, 1, eight, false}})},
                            std::vector<AxisStep>{mixed(0, {{0, 1, twelve, false}}), mixed(1, {{0, 1, eight, false}}), taken(0, {3, 1, 4, 0, 5})}}) {
    const TensorRef out = change_axes(t, steps);
    const std::vector<float> whole = read(out);
    for (const std::uint64_t piece : {1, 2, 7, 16, 50}) EXPECT_EQ(read(out, piece), whole);
  }
}

TEST(AxisView, mixing_is_a_product_with_the_matrix_on_either_axis_and_in_blocks) {
  const std::vector<float> values = testing::random_values(6 * 4, 2);
  const TensorRef t = tensor_of(DType::f32, {6, 4}, values);
  const std::vector<double> m = {2, 1, 0, 3};
  const auto map = math::make_matrix_map(m, 2);
  // Columns 0 and 2 by M, columns 1 and 3 by M^-T; rows 1 and 4 by M.
  const std::vector<float> out = read(change_axes(t, {mixed(1, {{0, 2, map, false}, {1, 2, map, true}}), mixed(0, {{1, 3, map, false}})}));
  const double dual[] = {0.5, 0, -1.0 / 6, 1.0 / 3};
  std::vector<double> want(values.begin(), values.end());
  for (std::size_t r = 0; r < 6; ++r) {
    double* row = want.data() + r * 4;
    const double a = row[0], b = row[1], c = row[2], d = row[3];
    row[0] = m[0] * a + m[1] * c;
    row[2] = m[2] * a + m[3] * c;
    row[1] = dual[0] * b + dual[1] * d;
    row[3] = dual[2] * b + dual[3] * d;
  }
  for (std::size_t c = 0; c < 4; ++c) {
    const double a = want[4 + c], b = want[16 + c];
    want[4 + c] = m[0] * a + m[1] * b;
    want[16 + c] = m[2] * a + m[3] * b;
  }
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(out[i], want[i], 1e-5);
}

TEST(AxisView, a_middle_axis_of_a_kernel_keeps_what_lies_inside) {
  const TensorRef t = tensor_of(DType::f32, {2, 3, 2}, counted(12));
  EXPECT_EQ(read(change_axes(t, {taken(1, {2, 0, 1}), taken(0, {1, 0})})), (std::vector<float>{10, 11, 6, 7, 8, 9, 4, 5, 0, 1, 2, 3}));
}

TEST(AxisView, vectors_take_addends_also_late_ones_that_are_asked_for_once) {
  AxisStep step = taken(0, {2, 1}, {2, 0});
  step.addends = {0, 1};
  int asked = 0;
  AxisStep late;
  late.late_addends = [&asked] {
    ++asked;
    return std::vector<double>{100, 200};
  };
  const TensorRef out = change_axes(tensor_of(DType::f32, {3}, counted(3)), {step, late});
  EXPECT_EQ(asked, 0);
  EXPECT_EQ(read(out, 4), (std::vector<float>{104, 201}));
  EXPECT_EQ(asked, 1);
}

TEST(AxisView, steps_on_a_renamed_view_join_its_own_and_round_once) {
  const TensorRef t = tensor_of(DType::bf16, {1, 2}, {1, 3});
  const TensorRef first = change_axes(t, {taken(1, {}, {1.0 / 3, 1.0 / 3})});
  const auto renamed = select_tensors({{first, "u"}}, *first.checkpoint);
  const TensorRef both = change_axes({renamed, &renamed->tensors().front()}, {taken(1, {}, {3, 3})});
  EXPECT_EQ(both.tensor->name, "u");
  EXPECT_EQ(read(both), (std::vector<float>{1, 3}));
}

TEST(AxisView, steps_over_selections_behind_each_other_hold_the_files_that_there_are) {
  std::vector<MemoryCheckpoint::Tensor> made;
  for (int i = 0; i < 30; ++i) made.push_back({fmt::format("t{}", i), DType::f32, {2}, testing::stored_as(DType::f32, {1, 2})});
  std::shared_ptr<const Checkpoint> model = std::make_shared<MemoryCheckpoint>(std::move(made));
  // Another tensor each time, as when spaces are changed one after the other.
  for (int i = 0; i < 30; ++i) {
    const TensorRef changed = change_axes({model, &model->tensor(fmt::format("t{}", i))}, {taken(0, {1, 0}, {1, 3})});
    model = overlay_tensors(model, {changed});
  }
  EXPECT_LE(model->files().size(), 31U);
  EXPECT_EQ(read({model, &model->tensor("t7")}), (std::vector<float>{2, 3}));
}

TEST(AxisView, types_that_cannot_hold_the_result_are_refused) {
  EXPECT_WEFT_ERROR(change_axes(tensor_of(DType::f8_e4m3, {1, 2}, {1, 2}), {taken(1, {}, {2, 2})}), unsupported, "cast it");
  EXPECT_EQ(read(change_axes(tensor_of(DType::f8_e4m3, {1, 2}, {1, 2}), {taken(1, {1, 0}, {1, -1})})), (std::vector<float>{2, -1}));
  EXPECT_WEFT_ERROR(read(change_axes(tensor_of(DType::f16, {1, 2}, {1, 60'000}), {taken(1, {}, {2, 2})})), unsupported, "1.2e+05, which F16");
}

}  // namespace
}  // namespace weft
