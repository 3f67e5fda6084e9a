#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <limits>
#include <random>

#include "base/budget.h"
#include "base/file.h"
#include "support/errors.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"
#include "weft/error.h"

namespace weft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::safetensors_of;
using testing::TemporaryFolder;
using testing::with_length;
using testing::write_file;

constexpr const char* kPath = "dir/x.safetensors";

SafetensorsHeader parse(const std::string& bytes) { return parse_safetensors_header(bytes, bytes.size(), kPath); }

/// What must hold of every view, whatever the file.
void expect_inside(const SafetensorsHeader& header, std::uint64_t file_size_bytes) {
  std::uint64_t end = header.data_offset_bytes;
  ASSERT_LE(end, file_size_bytes);
  for (const TensorInfo& tensor : header.tensors) {
    ASSERT_EQ(tensor.offset_bytes, end);
    std::uint64_t num_elements = 1;
    for (const std::int64_t dim : tensor.shape) {
      ASSERT_GE(dim, 0);
      num_elements *= static_cast<std::uint64_t>(dim);
    }
    ASSERT_EQ(tensor.num_elements, num_elements);
    ASSERT_EQ(tensor.size_bytes * 8, num_elements * static_cast<std::uint64_t>(info(tensor.dtype).bits));
    ASSERT_LE(tensor.size_bytes, file_size_bytes - end);
    end += tensor.size_bytes;
  }
  ASSERT_EQ(end, file_size_bytes);
}

const std::string kTwoTensors(
    "\x90\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[8,12]}}  \0\0\x80\x3f\0\0\0\xc0\x80\x3f\0\xc0",
    164);

// ---- What is valid ------------------------------------------------------------------------------------------------------------------------

TEST(SafetensorsHeader, the_file_of_the_contract_reads_as_it_says) {
  ASSERT_EQ(kTwoTensors.size(), 164u);
  const SafetensorsHeader header = parse(kTwoTensors);
  EXPECT_EQ(header.data_offset_bytes, 152u);
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.tensors[0].name, "b");
  EXPECT_EQ(header.tensors[0].dtype, DType::f32);
  EXPECT_THAT(header.tensors[0].shape, ElementsAre(2));
  EXPECT_EQ(header.tensors[0].offset_bytes, 152u);
  EXPECT_EQ(header.tensors[1].name, "a");
  EXPECT_EQ(header.tensors[1].dtype, DType::bf16);
  EXPECT_THAT(header.tensors[1].shape, ElementsAre(1, 2));
  EXPECT_EQ(header.tensors[1].offset_bytes, 160u);
  EXPECT_EQ(header.tensors[1].size_bytes, 4u);
  expect_inside(header, 164);
}

TEST(SafetensorsHeader, unusual_but_valid_files_are_read) {
  const std::vector<std::pair<std::string, std::size_t>> cases = {
      {safetensors_bytes("{}"), 0},
      {safetensors_bytes("{}\r \t\n"), 0},
      {safetensors_bytes("\t\n{}\r "), 0},
      {safetensors_bytes("{}      "), 0},
      {safetensors_bytes(R"({"__metadata__":null})"), 0},
      {safetensors_bytes(R"({"__metadata__":{}})"), 0},
      {safetensors_bytes(R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})", std::string(16, '\0')), 1},
      {safetensors_bytes(R"({"test":{"dtype":"I32","shape":[2,0],"data_offsets":[0,0]}})"), 1},
      {safetensors_bytes(R"({"test":{"dtype":"I32","shape":[],"data_offsets":[0,4]}})", "1234"), 1},
      {safetensors_bytes(R"({"":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}})", "1"), 1},
      {safetensors_bytes(
           R"({"../../etc/passwd":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0000":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})", "1"),
       2},
      // Keys that nobody defined, whatever their values.
      {safetensors_bytes(
           R"({"x":{"dtype":"U8","more":[1,{"a":[[]],"b":null}],"shape":[1],"less":{"a":-1.5e3},"data_offsets":[0,1],"z":true,"y":"s"}})", "1"),
       1},
      // Zero-size tensors share a place with others.
      {safetensors_bytes(
           R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"y":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"z":{"dtype":"U8","shape":[0,7],"data_offsets":[2,2]}})",
           "12"),
       3},
      {safetensors_bytes(R"({"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", "1"), 1},
      {safetensors_bytes(R"({"x":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}})", "123"), 1},
  };
  for (const auto& [bytes, num_tensors] : cases) {
    const SafetensorsHeader header = parse(bytes);
    EXPECT_EQ(header.tensors.size(), num_tensors) << bytes;
    expect_inside(header, bytes.size());
  }
}

TEST(SafetensorsHeader, tensors_come_in_order_of_their_bytes_not_of_the_header) {
  const SafetensorsHeader header = parse(safetensors_bytes(
      R"({"c":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[3],"data_offsets":[3,6]}})",
      "123456"));
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[1].name, "c");
  EXPECT_EQ(header.tensors[2].name, "b");
}

TEST(SafetensorsHeader, every_dtype_of_the_contract_is_known) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const DTypeInfo& row = info(static_cast<DType>(i));
    const std::string size = std::to_string(row.bits);  // of 8 elements
    const SafetensorsHeader header =
        parse(safetensors_bytes("{\"x\":{\"dtype\":\"" + std::string(row.name) + "\",\"shape\":[8],\"data_offsets\":[0," + size + "]}}",
                                std::string(static_cast<std::size_t>(row.bits), '\0')));
    EXPECT_EQ(header.tensors.at(0).dtype, row.dtype);
  }
}

// ---- What is refused ----------------------------------------------------------------------------------------------------------------------

struct BadHeader {
  const char* what;
  std::string bytes;
  ErrorCode code;
  const char* phrase;
  const char* tensor;  ///< "" for none
};

std::string one(const char* entry, std::size_t payload = 8) {
  return safetensors_bytes("{\"x\":" + std::string(entry) + "}", std::string(payload, 'p'));
}

std::vector<BadHeader> bad_headers() {
  constexpr ErrorCode corrupt = ErrorCode::corrupt, unsupported = ErrorCode::unsupported;
  const std::string entry = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const auto header = [](const std::string& json, std::size_t payload) { return safetensors_bytes(json, std::string(payload, 'p')); };
  std::string ones = "1";
  for (int i = 1; i < 1'000'000; ++i) ones += ",1";
  return {
      {"no byte", "", corrupt, "HeaderTooSmall", ""},
      {"seven bytes", std::string(7, '\0'), corrupt, "HeaderTooSmall", ""},
      {"N over the cap", with_length(100'000'001, "{}"), corrupt, "HeaderTooLarge", ""},
      {"N = 2^63", with_length(1ull << 63, "{}"), corrupt, "HeaderTooLarge", ""},
      {"N = 2^64 - 1", with_length(~0ull, "{}"), corrupt, "HeaderTooLarge", ""},
      {"N beyond the file", with_length(3, "{}"), corrupt, "InvalidHeaderLength", ""},
      {"N = 0", with_length(0, ""), corrupt, "unexpected end of input", ""},
      {"an open brace", safetensors_bytes("{"), corrupt, "unexpected end of input", ""},
      {"no UTF-8", safetensors_bytes("\xFF"), corrupt, "no valid JSON", ""},
      {"no UTF-8 in a name", safetensors_bytes("{\"\xC0\x80\":1}"), corrupt, "ill-formed UTF-8", ""},
      {"a lone surrogate", safetensors_bytes(R"({"\ud800":1})"), corrupt, "surrogate", ""},
      {"a byte-order mark", safetensors_bytes("\xEF\xBB\xBF{}"), corrupt, "byte-order mark", ""},
      {"NUL padding", safetensors_bytes(std::string("{}\0\0\0", 5)), corrupt, "NUL", ""},
      {"something behind the JSON", safetensors_bytes("{} x"), corrupt, "expected end of input", ""},
      {"a list at the top", safetensors_bytes("[]"), corrupt, "it is a list, not a JSON object", ""},
      {"a number at the top", safetensors_bytes("12"), corrupt, "it is a number, not a JSON object", ""},
      {"null at the top", safetensors_bytes("null"), corrupt, "it is null, not a JSON object", ""},
      {"a string at the top", safetensors_bytes("\"a\""), corrupt, "it is a string, not a JSON object", ""},
      {"lists nested 10 000 deep", safetensors_bytes("{\"x\":{\"y\":" + std::string(10'000, '[')), corrupt, "nested deeper than 128", ""},
      {"objects nested 10 000 deep",
       [] {
         std::string json = "{\"x\":{\"y\":";
         for (int i = 0; i < 10'000; ++i) json += "{\"a\":";
         return safetensors_bytes(json);
       }(),
       corrupt, "nested deeper than 128", ""},
      {"NaN in the header", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"u":NaN})"), corrupt, "no valid JSON", ""},

      {"begin behind end", one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), corrupt,
       "begins at 8 and ends before that, at 0 (InvalidOffset)", "x"},
      {"the first begins at 4", one(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})", 12), corrupt, "the first tensor must begin at 0", "x"},
      {"two tensors in one range", header("{\"x\":" + entry + ",\"y\":" + entry + "}", 8), corrupt, "they overlap (InvalidOffset)", "y"},
      {"a range inside a range",
       header("{\"x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},\"y\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}", 8),
       corrupt, "they overlap (InvalidOffset)", "y"},
      {"a hole",
       header("{\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"y\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6]}}", 6),
       corrupt, "begins at 4 but the tensor before it ends at 2: the bytes between belong to none (InvalidOffset)", "y"},
      {"a size other than the shape's", one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), corrupt,
       "(F32 [3]) needs 12 bytes but its offsets span 8 (TensorInvalidInfo)", "x"},
      {"a byte behind the last tensor", one(entry.c_str(), 9), corrupt, "1 bytes behind the last tensor belong to none (MetadataIncompleteBuffer)",
       ""},
      {"a missing byte", one(entry.c_str(), 7), corrupt, "its tensors need 1 bytes more; 'x' is the first that is cut (MetadataIncompleteBuffer)",
       "x"},
      {"offsets near 2^64", one(R"({"dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]})"), corrupt, "InvalidOffset",
       "x"},
      {"2^63 - 1 bytes", one(R"({"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]})"), corrupt,
       "overflows 64 bits (ValidationOverflow)", "x"},
      {"more bytes than the file", one(R"({"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]})"), corrupt,
       "MetadataIncompleteBuffer", "x"},
      {"bytes but no tensor", safetensors_bytes("{}", "p"), corrupt, "1 bytes behind the last tensor", ""},

      {"shape [2, 2^64 - 2]", one(R"({"dtype":"I32","shape":[2,18446744073709551614],"data_offsets":[0,16]})"), corrupt, "ValidationOverflow", "x"},
      {"shape [2^32, 2^32]", one(R"({"dtype":"I32","shape":[4294967296,4294967296],"data_offsets":[0,16]})"), corrupt, "ValidationOverflow", "x"},
      {"shape [2^63, 2]", one(R"({"dtype":"I32","shape":[9223372036854775808,2],"data_offsets":[0,16]})"), corrupt, "ValidationOverflow", "x"},
      {"shape [2^62, 4, 0]", one(R"({"dtype":"I32","shape":[4611686018427387904,4,0],"data_offsets":[0,0]})"), corrupt, "ValidationOverflow", "x"},
      {"2^61 numbers of 64 bits", one(R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,8]})"), corrupt,
       "the size of F64 [2305843009213693952] overflows", "x"},
      {"a dimension of 2^64", one(R"({"dtype":"I32","shape":[18446744073709551616],"data_offsets":[0,16]})"), corrupt, "no plain integer", "x"},
      {"rank 10^6 of ones", one(("{\"dtype\":\"U8\",\"shape\":[" + ones + "],\"data_offsets\":[0,1]}").c_str()), unsupported,
       "more than 64 dimensions", "x"},
      {"rank 65", one(("{\"dtype\":\"U8\",\"shape\":[" + ones.substr(0, 129) + "],\"data_offsets\":[0,1]}").c_str()), unsupported,
       "more than 64 dimensions", "x"},
      {"an odd number of 4-bit values", one(R"({"dtype":"F4","shape":[3],"data_offsets":[0,2]})", 2), corrupt,
       "F4 [3] is 12 bits, no whole number of bytes (MisalignedSlice)", "x"},
      {"dtype f32", one(R"({"dtype":"f32","shape":[2],"data_offsets":[0,8]})"), unsupported, "the dtype 'f32' is unknown", "x"},
      {"dtype F24", one(R"({"dtype":"F24","shape":[2],"data_offsets":[0,8]})"), unsupported, "the dtype 'F24' is unknown", "x"},
      {"no letters of a dtype", one(R"({"dtype":"","shape":[2],"data_offsets":[0,8]})"), unsupported, "the dtype '' is unknown", "x"},
      {"a number for a dtype", one(R"({"dtype":1,"shape":[2],"data_offsets":[0,8]})"), corrupt, "'dtype' is a number, not a string", "x"},
      {"dtype null", one(R"({"dtype":null,"shape":[2],"data_offsets":[0,8]})"), corrupt, "'dtype' is null, not a string", "x"},
      {"a shape that is no list", one(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"), corrupt, "'shape' is or holds a number", "x"},
      {"a shape of shapes", one(R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})"), corrupt, "'shape' is or holds a list", "x"},
      {"a negative dimension", one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,8]})"), corrupt, "'shape' holds -1, no plain integer", "x"},
      {"a fraction of a dimension", one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), corrupt, "'shape' holds 2.0, no plain integer",
       "x"},
      {"three offsets", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,16]})"), corrupt, "more than 2 numbers", "x"},
      {"one offset", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})"), corrupt, "holds 1 numbers, not 2", "x"},
      {"no offset", one(R"({"dtype":"F32","shape":[2],"data_offsets":[]})"), corrupt, "holds 0 numbers, not 2", "x"},
      {"offsets in quotes", one(R"({"dtype":"F32","shape":[2],"data_offsets":["0","8"]})"), corrupt, "'data_offsets' is or holds a string", "x"},
      {"offsets with fractions", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0.0,8.0]})"), corrupt,
       "'data_offsets' holds 0.0, no plain integer", "x"},
      {"offsets with exponents", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8e0]})"), corrupt, "'data_offsets' holds 8e0, no plain integer",
       "x"},
      {"minus zero", one(R"({"dtype":"F32","shape":[2],"data_offsets":[-0,8]})"), corrupt, "'data_offsets' holds -0, no plain integer", "x"},
      {"an offset of 2^64", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]})"), corrupt, "no plain integer", "x"},
      {"no dtype", one(R"({"shape":[2],"data_offsets":[0,8]})"), corrupt, "has no 'dtype'", "x"},
      {"no shape", one(R"({"dtype":"F32","data_offsets":[0,8]})"), corrupt, "has no 'shape'", "x"},
      {"no offsets at all", one(R"({"dtype":"F32","shape":[2]})"), corrupt, "has no 'data_offsets'", "x"},
      {"an entry that is null", one("null"), corrupt, "its entry is null, not an object", "x"},
      {"an entry given as a list", one(R"(["F32",[2],[0,8]])"), corrupt, "its entry is a list, not an object", "x"},

      {"a name twice", header("{\"x\":" + entry + ",\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16), corrupt, "listed twice",
       "x"},
      {"a name twice, one spelt with an escape",
       header("{\"x\":" + entry + ",\"\\u0078\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16), corrupt, "listed twice", "x"},
      {"a name twice in one range", header("{\"x\":" + entry + ",\"x\":" + entry + "}", 8), corrupt, "listed twice", "x"},
      {"an empty tensor twice",
       header("{\"x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0),
       corrupt, "listed twice", "x"},
      {"dtype twice", one(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"), corrupt, "'dtype' stands twice", "x"},
      {"shape twice", one(R"({"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]})"), corrupt, "'shape' stands twice", "x"},
      {"offsets twice", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8]})"), corrupt, "'data_offsets' stands twice", "x"},
      {"an unknown key twice", one(R"({"u":1,"dtype":"F32","u":2,"shape":[2],"data_offsets":[0,8]})"), corrupt, "'u' stands twice", "x"},
      {"an unknown key twice, deeper", one(R"({"u":[{"v":1,"v":1}],"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), corrupt, "'v' stands twice",
       "x"},
      {"__metadata__ twice", safetensors_bytes(R"({"__metadata__":{},"__metadata__":{}})"), corrupt, "'__metadata__' stands twice", ""},
      {"__metadata__ twice, once null", safetensors_bytes(R"({"__metadata__":null,"__metadata__":{}})"), corrupt, "'__metadata__' stands twice", ""},
      {"a key of __metadata__ twice", safetensors_bytes(R"({"__metadata__":{"a":"","a":""}})"), corrupt, "'a' stands twice in '__metadata__'", ""},
      {"__metadata__ with a number", safetensors_bytes(R"({"__metadata__":{"a":1}})"), corrupt,
       "holds a number under 'a'; its values must be strings", ""},
      {"__metadata__ with an object", safetensors_bytes(R"({"__metadata__":{"a":{"b":"c"}}})"), corrupt, "holds an object under 'a'", ""},
      {"__metadata__ with null", safetensors_bytes(R"({"__metadata__":{"a":null}})"), corrupt, "holds null under 'a'", ""},
      {"__metadata__ that is a list", safetensors_bytes(R"({"__metadata__":[]})"), corrupt, "'__metadata__' is a list, not an object of strings", ""},
      {"a tensor named __metadata__", safetensors_bytes("{\"__metadata__\":" + entry + "}", "12345678"), corrupt, "its values must be strings", ""},
  };
}

TEST(SafetensorsHeader, hostile_and_damaged_headers_are_refused_with_what_where_and_advice) {
  for (const BadHeader& bad : bad_headers()) {
    const std::optional<Error> error = testing::error_of([&] { (void)parse(bad.bytes); });
    ASSERT_TRUE(error) << bad.what;
    EXPECT_EQ(error->code(), bad.code) << bad.what << ": " << error->what();
    EXPECT_THAT(error->message(), HasSubstr(bad.phrase)) << bad.what;
    EXPECT_EQ(error->place().file, kPath) << bad.what;
    EXPECT_EQ(error->place().tensor, bad.tensor) << bad.what << ": " << error->what();
    ASSERT_TRUE(error->place().byte) << bad.what;
    EXPECT_LE(*error->place().byte, bad.bytes.size()) << bad.what;
    EXPECT_NE(error->advice(), "") << bad.what;
  }
}

TEST(SafetensorsHeader, reading_from_a_file_gives_the_same_result_and_the_same_error_as_from_memory) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "x.safetensors";
  for (const BadHeader& bad : bad_headers()) {
    write_file(path, bad.bytes);
    const std::optional<Error> from_memory = testing::error_of([&] { (void)parse_safetensors_header(bad.bytes, bad.bytes.size(), path); });
    const std::optional<Error> from_file = testing::error_of([&] { (void)read_safetensors_header(File(path, FileMode::read)); });
    ASSERT_TRUE(from_memory && from_file) << bad.what;
    EXPECT_STREQ(from_memory->what(), from_file->what());
  }
  write_file(path, kTwoTensors);
  EXPECT_EQ(read_safetensors_header(File(path, FileMode::read)).tensors.at(1).offset_bytes, 160u);
}

TEST(SafetensorsHeader, the_byte_of_an_error_is_that_of_its_cause) {
  const std::string bytes = one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,-8]})");
  const std::optional<Error> error = testing::error_of([&] { (void)parse(bytes); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->place().key, "data_offsets");
  EXPECT_EQ(error->place().byte, bytes.find("-8]") + 2);  // just behind the number
  const std::string hole =
      safetensors_bytes(R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"why":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})", "123");
  const std::optional<Error> offset = testing::error_of([&] { (void)parse(hole); });
  ASSERT_TRUE(offset);
  EXPECT_EQ(offset->place().byte, hole.find("why\"") + 3);
  EXPECT_EQ(offset->what(),
            std::string("tensor 'why' (U8 [1]) begins at 2 but the tensor before it ends at 1: the bytes between belong to none (InvalidOffset)\n"
                        "  in dir/x.safetensors, byte ") +
                std::to_string(hole.find("why\"") + 3) +
                "\n  the file is damaged or incompletely downloaded; fetch it again, or run 'weft verify' on the folder");
}

TEST(SafetensorsHeader, a_file_cut_anywhere_is_an_error) {
  for (std::size_t size = 0; size < kTwoTensors.size(); ++size) {
    const std::string cut = kTwoTensors.substr(0, size);
    const std::optional<Error> error = testing::error_of([&] { (void)parse(cut); });
    ASSERT_TRUE(error) << size;
    EXPECT_EQ(error->code(), ErrorCode::corrupt) << size;
  }
}

TEST(SafetensorsHeader, any_flipped_bit_of_the_header_gives_an_error_or_a_view_that_stays_inside_the_file) {
  int num_valid = 0;
  for (std::size_t bit = 0; bit < 8 * 152; ++bit) {
    std::string flipped = kTwoTensors;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    try {
      expect_inside(parse(flipped), flipped.size());
      ++num_valid;
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported) << error.what();
    }
  }
  EXPECT_GT(num_valid, 0);  // letters of names and metadata
}

TEST(SafetensorsHeader, random_damage_gives_an_error_or_a_view_that_stays_inside_the_file) {
  std::mt19937 random(20240607);
  SCOPED_TRACE("seed 20240607");
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = kTwoTensors;
    const int num_changes = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < num_changes; ++i) {
      const std::size_t at = 8 + random() % (bytes.size() - 8);
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, random() % 8);
          break;
        case 2:
          bytes.insert(at, std::string(1, "0189[]{},:\"\\-.eEnu "[random() % 19]));
          break;
        default:
          bytes.insert(at, bytes.substr(8 + random() % 100, random() % 60));
          break;
      }
    }
    // Half of the time the length is made to fit again.
    if (random() % 2 == 0 && bytes.size() > 20) bytes = with_length(bytes.size() - 8 - 12, bytes.substr(8));
    try {
      expect_inside(parse(bytes), bytes.size());
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported) << error.what();
    }
  }
}

TEST(SlowSafetensorsHeader, a_million_tensors_open_in_memory_that_their_names_explain_and_one_more_is_refused) {
  const auto header_of = [](int num_tensors) {
    std::string json = "{";
    for (int i = 0; i < num_tensors; ++i) {
      if (i > 0) json += ',';
      json += "\"model.t" + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[" + std::to_string(i) + "," +
              std::to_string(i + 1) + "]}";
    }
    return json + "}";
  };
  {
    const TemporaryFolder folder;
    {
      const std::string bytes = safetensors_bytes(header_of(1'000'000), std::string(1'000'000, 'p'));
      write_file(folder / "model.safetensors", bytes);
    }
    const std::uint64_t before = peak_resident_bytes();
    const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint((folder / "model.safetensors").string());
    EXPECT_EQ(checkpoint->tensors().size(), 1'000'000u);
    EXPECT_EQ(checkpoint->tensor("model.t999999").offset_bytes, checkpoint->files()[0].size_bytes - 1);
    // A TensorInfo, its shape's and its name's allocations, its place in the order, its range, and the entries of two hash tables; twice what these
    // are, because vectors double.
    const std::uint64_t each = sizeof(TensorInfo) + 2 * 48 + 4 + 24 + 2 * 64;
    EXPECT_LT(peak_resident_bytes() - before, 2 * each * 1'000'000);
  }
  EXPECT_WEFT_ERROR(parse(safetensors_bytes(header_of(1'000'001), std::string(1'000'001, 'p'))), unsupported, "more than 1000000 tensors");
}

TEST(SafetensorsHeader, one_entry_with_many_unknown_keys_does_not_slow_down_the_entries_behind_it) {
  // A reader that walked the keys of the first entry for each of the others would need 10^11 steps here.
  std::string json = "{\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]";
  for (int i = 0; i < 300'000; ++i) json += ",\"u" + std::to_string(i) + "\":0";
  json += '}';
  for (int i = 0; i < 300'000; ++i) json += ",\"t" + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"u\":0}";
  json += '}';
  EXPECT_EQ(parse(safetensors_bytes(json)).tensors.size(), 300'001u);
}

// ---- Checkpoints of one file --------------------------------------------------------------------------------------------------------------

std::vector<float> read_floats(const Checkpoint& checkpoint, std::string_view name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<float> values(tensor.num_elements);
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

TEST(SafetensorsFile, bytes_are_read_by_position) {
  const TemporaryFolder folder;
  write_file(folder / "any name.safetensors", safetensors_of({{"w", {1, 2, 3}}, {"b", {4}}}, R"({"format":"pt","k":"v"})"));
  const auto checkpoint = open_checkpoint((folder / "any name.safetensors").string());
  EXPECT_EQ(checkpoint->container(), "safetensors");
  EXPECT_EQ(checkpoint->path(), folder / "any name.safetensors");
  EXPECT_EQ(checkpoint->metadata().at("k"), "v");
  EXPECT_THAT(read_floats(*checkpoint, "w"), ElementsAre(1, 2, 3));
  EXPECT_THAT(read_floats(*checkpoint, "b"), ElementsAre(4));
  float second = 0;
  checkpoint->will_read(checkpoint->tensor("w"), 4, 4);
  checkpoint->read_bytes(checkpoint->tensor("w"), 4, std::as_writable_bytes(std::span(&second, 1)));
  EXPECT_EQ(second, 2);
  EXPECT_EQ(checkpoint->find_tensor("nothing"), nullptr);
  checkpoint->check_unchanged();
}

TEST(SafetensorsFile, asking_for_a_tensor_that_is_not_there_names_the_nearest) {
  const TemporaryFolder folder;
  write_file(folder / "a.safetensors", safetensors_of({{"model.layers.0.mlp.up_proj.weight", {1}}, {"lm_head.weight", {2}}}));
  const auto checkpoint = open_checkpoint((folder / "a.safetensors").string());
  EXPECT_WEFT_ERROR(checkpoint->tensor("model.layers.0.mlp.up_prj.weight"), not_found, "did you mean 'model.layers.0.mlp.up_proj.weight'?");
}

TEST(SafetensorsFile, a_file_that_changes_while_it_is_open_is_noticed) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "a.safetensors";
  write_file(path, safetensors_of({{"w", {1, 2, 3, 4}}}));
  const auto checkpoint = open_checkpoint(path.string());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 6);
  std::vector<float> values(4);
  EXPECT_WEFT_ERROR(checkpoint->read_bytes(checkpoint->tensor("w"), 0, std::as_writable_bytes(std::span(values))), corrupt, path.string());
  EXPECT_WEFT_ERROR(checkpoint->check_unchanged(), corrupt, "changed while it was being read");
}

TEST(SafetensorsFile, what_is_no_safetensors_file_is_said_whatever_its_name) {
  struct Case {
    std::string content;
    ErrorCode code;
    const char* phrase;
    const char* advice;
  };
  const std::string pad(600, 'x');
  const std::vector<Case> cases = {
      {"", ErrorCode::corrupt, "the file is empty", "fetch it again"},
      {"GGUF" + std::string("\3\0\0\0", 4) + pad, ErrorCode::corrupt, "GGUF header", "fetch it again"},
      {"PK\3\4" + pad, ErrorCode::corrupt, "zip archive: its directory is missing", "fetch it again"},
      {std::string("PK\3\4\0\0\x08\x08", 8) + pad, ErrorCode::corrupt, "zip archive: its directory is missing", "fetch it again"},
      {"\x80\2\x8a\nl" + pad, ErrorCode::unsupported, "a Python pickle", "never runs a pickle"},
      {"\x93NUMPY\1" + pad, ErrorCode::unsupported, "NumPy", "safetensors"},
      {"\x89HDF\r\n\x1a\n" + pad, ErrorCode::unsupported, "HDF5", "save_pretrained"},
      {"\x1f\x8b\x08" + pad, ErrorCode::unsupported, "a compressed archive", "unpack"},
      {std::string(257, 'a') + "ustar" + pad, ErrorCode::unsupported, "a tar archive", "unpack"},
      {"<!DOCTYPE html><html>" + pad, ErrorCode::corrupt, "a web page", "hf download"},
      {"\n  <HTML>" + pad, ErrorCode::corrupt, "a web page", "hf download"},
      {"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", ErrorCode::corrupt, "a web page", "hf download"},
      {"Entry not found", ErrorCode::corrupt, "an answer of the Hub", "hf download"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n", ErrorCode::corrupt, "a git-lfs pointer", "git lfs pull"},
      {"{\"architectures\": []}", ErrorCode::corrupt, "no shard index", "name the folder"},
      {"[1]", ErrorCode::corrupt, "no shard index", ""},
      {std::string(4096, '\0'), ErrorCode::corrupt, "zeros only", "fetch it again"},
      {"just text, of some length", ErrorCode::corrupt, "HeaderTooLarge", "fetch it again"},
  };
  const TemporaryFolder folder;
  const std::string path = (folder / "model.safetensors").string();
  for (const Case& c : cases) {
    write_file(path, c.content);
    const std::optional<Error> error = testing::error_of([&] { (void)open_checkpoint(path); });
    ASSERT_TRUE(error) << c.phrase;
    EXPECT_EQ(error->code(), c.code) << error->what();
    EXPECT_EQ(error->place().file, path);
    if (c.content != "[1]") {
      EXPECT_THAT(error->message(), HasSubstr(c.phrase));
      EXPECT_THAT(error->advice(), HasSubstr(c.advice));
    }
  }
}

TEST(SafetensorsFile, a_pipe_or_a_folder_under_the_name_of_a_file_is_an_error_at_once) {
  const TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "model.safetensors").c_str(), 0600), 0);
  EXPECT_WEFT_ERROR(open_checkpoint(folder.path().string()), unsupported, "pipe");
  EXPECT_WEFT_ERROR(open_checkpoint((folder / "model.safetensors").string()), unsupported, "pipe");
  const TemporaryFolder other;
  std::filesystem::create_directory(other / "model.safetensors");
  EXPECT_WEFT_ERROR(open_checkpoint(other.path().string()), invalid_argument, "folder");
}

}  // namespace
}  // namespace weft
