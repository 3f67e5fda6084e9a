#include "checkpoint/npy.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

namespace weft {
namespace {

using testing::bytes_of;
using testing::MemoryCheckpoint;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

std::string npy(std::string literal, const std::string& data, char version = 1) {
  const std::size_t prefix = version == 1 ? 10 : 12;
  literal.append(63 - (prefix + literal.size()) % 64, ' ');
  literal += '\n';
  std::string out = std::string("\x93NUMPY") + version + '\0';
  for (std::size_t i = 0; i < prefix - 8; ++i) out += static_cast<char>(literal.size() >> (8 * i) & 0xFF);
  return out + literal + data;
}

std::string bytes_in(const Checkpoint& checkpoint) {
  const TensorInfo& tensor = checkpoint.tensors().front();
  std::string out(tensor.size_bytes, '\0');
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(out)));
  return out;
}

TEST(Npy, what_is_written_begins_with_the_bytes_that_numpy_writes) {
  // numpy.save(f, numpy.zeros((3, 4), numpy.float32)), NumPy 1.24.
  const std::string header = make_npy_header(DType::f32, {3, 4});
  EXPECT_EQ(header.substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT_EQ(header.substr(10, 60), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } ");
  EXPECT_EQ(header.size(), 128u);
  EXPECT_EQ(header.back(), '\n');
  EXPECT_NE(make_npy_header(DType::boolean, {5}).find("'|b1', 'fortran_order': False, 'shape': (5,), "), std::string::npos);
  EXPECT_NE(make_npy_header(DType::i64, {}).find("'shape': (), "), std::string::npos);
}

TEST(Npy, a_header_is_read_whatever_the_order_and_spacing_of_its_keys) {
  const NpyHeader header = parse_npy_header(npy("{\"shape\":(2,3L ,),'fortran_order' : True ,'descr':'>i2'}", "", 2), "a.npy");
  EXPECT_EQ(header.dtype, DType::i16);
  EXPECT_EQ(header.shape, (Shape{2, 3}));
  EXPECT_TRUE(header.fortran_order);
  EXPECT_TRUE(header.big_endian);
  EXPECT_EQ(header.num_elements, 6u);
}

TEST(Npy, an_array_in_fortran_order_and_foreign_byte_order_has_the_same_values) {
  TemporaryFolder folder;
  // [[1, 2, 3], [4, 5, 6]] column by column, big-endian.
  write_file(folder / "a.npy", npy("{'descr': '>u2', 'fortran_order': True, 'shape': (2, 3), }", std::string("\0\1\0\4\0\2\0\5\0\3\0\6", 12)));
  const auto array = open_npy(folder / "a.npy");
  EXPECT_EQ(array->tensors().front().shape, (Shape{2, 3}));
  EXPECT_EQ(bytes_in(*array), bytes_of<std::uint16_t>({1, 2, 3, 4, 5, 6}));
}

TEST(Npy, bytes_of_a_foreign_order_can_be_read_from_any_place) {
  TemporaryFolder folder;
  write_file(folder / "a.npy", npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", std::string("\x3F\x80\0\0\x40\0\0\0", 8)));
  const auto array = open_npy(folder / "a.npy");
  std::string part(3, 'x');
  array->read_bytes(array->tensors().front(), 2, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, std::string("\x80\x3F\0", 3));
}

TEST(Npy, a_tensor_comes_back_as_it_was_and_bfloat16_as_float32) {
  TemporaryFolder folder;
  const MemoryCheckpoint memory({{"i", DType::i32, {2, 2}, testing::stored_as(DType::f32, {1, 2, 3, 4})},
                                 {"b", DType::bf16, {3}, testing::stored_as(DType::bf16, {1, -2.5F, 0.125F})}});
  write_npy(memory, memory.tensors()[0], folder / "i.npy", false);
  write_npy(memory, memory.tensors()[1], folder / "b.npy", false);
  EXPECT_EQ(open_npy(folder / "i.npy")->tensors().front().dtype, DType::i32);
  EXPECT_EQ(bytes_in(*open_npy(folder / "i.npy")), bytes_of<float>({1, 2, 3, 4}));
  const auto b = open_npy(folder / "b.npy", "name");
  EXPECT_EQ(b->tensors().front().name, "name");
  EXPECT_EQ(bytes_in(*b), bytes_of<float>({1, -2.5F, 0.125F}));
  EXPECT_WEFT_ERROR(write_npy(memory, memory.tensors()[0], folder / "i.npy", false), invalid_argument, "i.npy");
}

TEST(Npy, damaged_and_hostile_files_are_refused_with_the_reason) {
  TemporaryFolder folder;
  const auto open = [&](const std::string& bytes) {
    write_file(folder / "x.npy", bytes);
    return open_npy(folder / "x.npy");
  };
  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
  EXPECT_WEFT_ERROR(open("NUMPY"), corrupt, "no NumPy array");
  EXPECT_WEFT_ERROR(open(npy(good, "1234")), corrupt, "has 8 bytes, but 4 follow");
  EXPECT_WEFT_ERROR(open(npy(good, "123456789")), corrupt, "but 9 follow");
  EXPECT_WEFT_ERROR(open(npy(good, "12345678").substr(0, 40)), corrupt, "announces a header");
  EXPECT_WEFT_ERROR(open(npy(good, "12345678", 4)), unsupported, "version 4");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "")), unsupported, "Python objects");
  EXPECT_WEFT_ERROR(open(npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", "")), unsupported, "records");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<c16', 'fortran_order': False, 'shape': (2,), }", "")), unsupported, "<c16");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "")), corrupt, "no list of sizes");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,), }", "")), corrupt, "True nor False");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'shape': (2,), }", "")), corrupt, "lacks one of");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "")), corrupt, "twice");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),), }", "")), corrupt, "no list of sizes");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "")), corrupt, "overflows");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,), }", "")), corrupt, "but 0 follow");
  EXPECT_WEFT_ERROR(open(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 1), }", "1234")), unsupported, "ascontiguousarray");
}

}  // namespace
}  // namespace weft
