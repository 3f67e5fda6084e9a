#include "checkpoint/npz.h"

#include <gtest/gtest.h>

#include <random>

#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/temporary_folder.h"

namespace weft {
namespace {

using testing::MemoryCheckpoint;
using testing::TemporaryFolder;

const std::filesystem::path kCorpus = std::filesystem::path(WEFT_SOURCE_DIR) / "fuzz" / "corpus" / "npz";

TEST(Npz, what_numpy_saved_is_read) {
  const auto checkpoint = open_checkpoint((kCorpus / "two.npz").string());
  EXPECT_EQ(checkpoint->container(), "npz");
  ASSERT_EQ(checkpoint->tensors().size(), 2u);
  std::vector<float> values(3);
  checkpoint->read_bytes(checkpoint->tensor("a"), 0, std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values, (std::vector<float>{0, 1, 2}));
  EXPECT_EQ(checkpoint->tensor("b").shape, (Shape{2, 2}));
  EXPECT_NO_THROW(checkpoint->verify_checksums());
  EXPECT_WEFT_ERROR(open_checkpoint((kCorpus / "compressed.npz").string()), unsupported, "compressed");
}

TEST(Npz, what_is_written_reads_back_the_same) {
  const std::vector<float> a = testing::random_values(12, 1);
  const auto model = std::make_shared<MemoryCheckpoint>(
      std::vector<MemoryCheckpoint::Tensor>{{"layer.0.weight", DType::f32, {3, 4}, testing::stored_as(DType::f32, a)},
                                            {"empty", DType::f16, {0, 2}, {}},
                                            {"scalar", DType::i64, {}, std::vector<std::byte>(8, std::byte{1})}});
  std::vector<TensorRef> tensors;
  for (const TensorInfo& tensor : model->tensors()) tensors.push_back({model, &tensor});
  const TemporaryFolder folder;
  std::uint64_t bytes = 0;
  write_npz(tensors, folder / "x.npz", false, [&](std::uint64_t piece) { bytes += piece; });
  EXPECT_EQ(bytes, 56u);
  EXPECT_WEFT_ERROR(write_npz(tensors, folder / "x.npz", false, [](std::uint64_t) {}), invalid_argument, "x.npz");
  const auto back = open_checkpoint((folder / "x.npz").string());
  for (const TensorInfo& tensor : model->tensors()) {
    const TensorInfo& other = back->tensor(tensor.name);
    EXPECT_EQ(other.dtype, tensor.dtype);
    EXPECT_EQ(other.shape, tensor.shape);
    std::vector<std::byte> want(tensor.size_bytes), got(other.size_bytes);
    model->read_bytes(tensor, 0, want);
    back->read_bytes(other, 0, got);
    EXPECT_EQ(got, want);
  }
  EXPECT_NO_THROW(back->verify_checksums());
}

TEST(Npz, any_byte_changed_or_cut_off_is_an_error_or_a_sound_result) {
  const std::string whole = testing::read_file(kCorpus / "two.npz");
  std::mt19937 random(3);
  for (int round = 0; round < 1000; ++round) {
    std::string bytes = whole;
    if (round % 4 == 0) bytes.resize(random() % whole.size());
    if (!bytes.empty()) bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      for (const NpzArray& array : read_npz_arrays(memory_source(bytes, "x.npz"))) {
        ASSERT_LE(array.tensor.offset_bytes, bytes.size());
        ASSERT_LE(array.tensor.size_bytes, bytes.size() - array.tensor.offset_bytes);
      }
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported) << error.what();
    }
  }
}

}  // namespace
}  // namespace weft
