#include "engine/computed_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "engine/split_tensors.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "weft/error.h"
#include "weft/measure.h"

namespace weft::engine {
namespace {

using testing::MemoryCheckpoint;
using testing::stored_as;

std::vector<float> read_all(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<float> values(static_cast<std::size_t>(tensor.num_elements));
  read_floats(checkpoint, tensor, 0, values);
  return values;
}

std::shared_ptr<const Checkpoint> memory(std::vector<float> a, std::vector<float> b) {
  const auto n = static_cast<std::int64_t>(a.size());
  std::vector<MemoryCheckpoint::Tensor> tensors;
  tensors.push_back({"a", DType::bf16, {n}, stored_as(DType::bf16, a)});
  tensors.push_back({"b", DType::f32, {2, static_cast<std::int64_t>(b.size()) / 2}, stored_as(DType::f32, b)});
  return std::make_shared<MemoryCheckpoint>(std::move(tensors));
}

TEST(ComputedCheckpoint, a_patch_changes_one_element_and_nothing_else) {
  const auto base = memory({1, 2, 3, 4, 5}, {1, 2, 3, 4});
  const auto changed = patched(base, {{"a", 3, 0.1F}});
  EXPECT_EQ(read_all(*changed, "a"), (std::vector<float>{1, 2, 3, 0.1F, 5}));
  EXPECT_EQ(read_all(*changed, "b"), (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(changed->tensor("a").dtype, DType::f32);
  // Any cut gives the same bytes.
  std::vector<std::byte> all(20), cut(20);
  changed->read_bytes(changed->tensor("a"), 0, all);
  for (std::size_t at = 0; at < 20; at += 3)
    changed->read_bytes(changed->tensor("a"), at, std::span(cut).subspan(at, std::min<std::size_t>(3, 20 - at)));
  EXPECT_EQ(std::memcmp(all.data(), cut.data(), 20), 0);
}

TEST(ComputedCheckpoint, an_unknown_tensor_is_refused) { EXPECT_THROW((void)patched(memory({1}, {1, 2}), {{"c", 0, 0}}), Error); }

TEST(ComputedCheckpoint, between_two_models_lie_their_weighted_means) {
  const auto a = memory({0, 4}, {0, 0, 8, 8}), b = memory({4, 4}, {1, 2, 3, 4});
  const auto quarter = between(a, b, 0.25);
  EXPECT_EQ(read_all(*quarter, "a"), (std::vector<float>{1, 4}));
  EXPECT_EQ(read_all(*quarter, "b"), (std::vector<float>{0.25F, 0.5F, 6.75F, 7}));
}

}  // namespace
}  // namespace weft::engine
