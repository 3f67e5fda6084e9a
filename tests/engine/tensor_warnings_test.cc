#include "engine/tensor_warnings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace weft::engine {
namespace {

using ::testing::ElementsAre;

TEST(TensorWarnings, what_is_said_of_several_tensors_is_said_once_with_their_number) {
  EXPECT_THAT(said_once({"tensor 'a': too small", "something else", "tensor 'b': too small", "tensor 'b': too large", "tensor 'it's': too small"}),
              ElementsAre("tensor 'a' and 2 others: too small", "something else", "tensor 'b': too large"));
  EXPECT_THAT(said_once({"tensor 'a': x", "tensor 'b': x"}), ElementsAre("tensor 'a' and 1 other: x"));
}

TEST(TensorWarnings, others_are_left_alone) {
  EXPECT_THAT(said_once({}), ElementsAre());
  EXPECT_THAT(said_once({"same", "same", "tensor 'without an end"}), ElementsAre("same", "same", "tensor 'without an end"));
}

}  // namespace
}  // namespace weft::engine
