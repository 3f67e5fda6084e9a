#include "checkpoint/gguf.h"

#include <gtest/gtest.h>

#include <limits>

#include "checkpoint/gguf_header.h"
#include "support/errors.h"
#include "support/gguf_bytes.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::GgufBytes;
using testing::TemporaryFolder;
using testing::write_file;

GgufHeader parsed(const GgufBytes& file, GgufLists lists = GgufLists::keep_all) { return parse_gguf_header(file.bytes(), "test.gguf", lists); }

std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  EXPECT_EQ(tensor.dtype, DType::f32);
  std::vector<float> values(tensor.num_elements);
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

/// The smallest file that the format's own documents show: one tensor of two dimensions.
GgufBytes small(bool big_endian = false, std::uint32_t version = 3) {
  GgufBytes file(big_endian);
  file.head(1, 1, version).text_key("general.architecture", "llama").tensor("a.weight", {2, 3}, 0, 0).pad();
  for (const float value : {1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F}) file.number(value);
  return file.pad();
}

TEST(Gguf, the_small_file_has_its_size_and_reads_in_both_versions_and_byte_orders) {
  ASSERT_EQ(small().bytes().size(), 160u);
  const TemporaryFolder folder;
  for (const std::uint32_t version : {2u, 3u})
    for (const bool big_endian : {false, true}) {
      const std::string path = (folder / "small.gguf").string();
      write_file(path, small(big_endian, version).bytes());
      const auto checkpoint = open_checkpoint(path);
      EXPECT_EQ(checkpoint->container(), "gguf");
      EXPECT_EQ(checkpoint->tensor("a.weight").shape, (Shape{3, 2}));
      EXPECT_EQ(checkpoint->metadata().at("general.architecture"), "llama");
      EXPECT_EQ(values_of(*checkpoint, "a.weight"), (std::vector<float>{1, 2, 3, 4, 5, 6}));
      EXPECT_EQ(as_gguf(*checkpoint)->big_endian(), big_endian);
      EXPECT_TRUE(checkpoint->warnings().empty());
    }
}

TEST(Gguf, blocks_give_their_values_wherever_a_read_begins_and_ends_and_in_both_byte_orders) {
  const TemporaryFolder folder;
  for (const bool big_endian : {false, true}) {
    GgufBytes file(big_endian);
    file.head(1, 0).tensor("w", {64, 2}, 8, 0).pad();
    std::vector<float> want;
    for (int block = 0; block < 4; ++block) {
      file.number<std::uint16_t>(static_cast<std::uint16_t>(0x3800 + 0x400 * block));  // 0.5, 1, 2, 4
      for (int i = 0; i < 32; ++i) {
        file.number(static_cast<std::int8_t>(i - 16));
        want.push_back(static_cast<float>(i - 16) * 0.5F * static_cast<float>(1 << block));
      }
    }
    const std::string path = (folder / "q.gguf").string();
    write_file(path, file.bytes());  // no padding behind the last tensor
    const auto checkpoint = open_checkpoint(path);
    const TensorInfo& tensor = checkpoint->tensor("w");
    EXPECT_EQ(tensor.stored_as, "Q8_0");
    EXPECT_EQ(tensor.stored_bytes, 4u * 34);
    EXPECT_EQ(bytes_in_file(tensor), 4u * 34);
    EXPECT_EQ(values_of(*checkpoint, "w"), want);
    const auto* bytes = reinterpret_cast<const std::byte*>(want.data());
    for (std::size_t begin = 0; begin < 512; begin += 37)
      for (std::size_t size = 0; begin + size <= 512; size += 61) {
        std::vector<std::byte> part(size);
        checkpoint->read_bytes(tensor, begin, part);
        ASSERT_TRUE(std::equal(part.begin(), part.end(), bytes + begin)) << begin << " " << size;
      }
    std::vector<std::byte> stored(34);
    checkpoint->read_stored(tensor, 34, stored);
    EXPECT_EQ(std::to_integer<int>(stored[1]), 0x3C);  // in our order
  }
}

TEST(Gguf, every_type_of_value_is_read_and_described) {
  GgufBytes file;
  file.head(0, 16);
  const auto key = [&file](const char* name, std::uint32_t type) -> GgufBytes& { return file.text(name).number(type); };
  key("u8", 0).number<std::uint8_t>(200);
  key("i8", 1).number<std::int8_t>(-3);
  key("u16", 2).number<std::uint16_t>(60000);
  key("i16", 3).number<std::int16_t>(-300);
  key("u32", 4).number<std::uint32_t>(4'000'000'000U);
  key("i32", 5).number<std::int32_t>(-70000);
  key("f32", 6).number<float>(0.1F);
  key("bool", 7).number<std::uint8_t>(2);
  key("text", 8).text("hello");
  key("u64", 10).number<std::uint64_t>(~std::uint64_t{0});
  key("i64", 11).number<std::int64_t>(-5);
  key("f64", 12).number<double>(0.1);
  key("texts", 9).number<std::uint32_t>(8).number<std::uint64_t>(2).text("a b").text("");
  key("numbers", 9).number<std::uint32_t>(5).number<std::uint64_t>(3).number<std::int32_t>(1).number<std::int32_t>(-2).number<std::int32_t>(3);
  key("floats", 9).number<std::uint32_t>(6).number<std::uint64_t>(1).number<float>(1.5F);
  key("flags", 9).number<std::uint32_t>(7).number<std::uint64_t>(2).number<std::uint8_t>(0).number<std::uint8_t>(1);
  const GgufMetadata metadata = parsed(file).metadata;
  const std::vector<std::pair<const char*, const char*>> want = {
      {"u8", "200"},      {"i8", "-3"},   {"u16", "60000"},     {"i16", "-300"},           {"u32", "4000000000"},
      {"i32", "-70000"},  {"f32", "0.1"}, {"bool", "true"},     {"text", "hello"},         {"u64", "18446744073709551615"},
      {"i64", "-5"},      {"f64", "0.1"}, {"texts", "[a b, ]"}, {"numbers", "[1, -2, 3]"}, {"floats", "[1.5]"},
      {"flags", "[0, 1]"}};
  ASSERT_EQ(metadata.entries().size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(metadata.entries()[i].first, want[i].first);
    EXPECT_EQ(describe(metadata.entries()[i].second), want[i].second) << want[i].first;
  }
}

TEST(Gguf, long_lists_stay_in_the_file_until_they_are_asked_for) {
  const TemporaryFolder folder;
  for (const bool big_endian : {false, true}) {
    GgufBytes file(big_endian);
    file.head(0, 2).text("tokens").number<std::uint32_t>(9).number<std::uint32_t>(8).number<std::uint64_t>(1000);
    for (int i = 0; i < 1000; ++i) file.text("token" + std::to_string(i));
    file.text("scores").number<std::uint32_t>(9).number<std::uint32_t>(6).number<std::uint64_t>(1000);
    for (int i = 0; i < 1000; ++i) file.number<float>(static_cast<float>(-i));
    const std::string path = (folder / "t.gguf").string();
    write_file(path, file.bytes());
    const GgufCheckpoint checkpoint(path, path, {});
    EXPECT_EQ(checkpoint.metadata().at("tokens"), "[1000 strings]");
    EXPECT_FALSE(checkpoint.gguf_metadata().find("tokens")->array()->bytes);
    EXPECT_EQ(checkpoint.value("tokens")->string_list().at(999), "token999");
    EXPECT_EQ(checkpoint.value("scores")->float_list().at(999), -999.0F);
    EXPECT_EQ(checkpoint.whole_metadata().find("tokens")->string_list().size(), 1000u);
    EXPECT_FALSE(checkpoint.value("nothing"));
  }
}

struct Hostile {
  const char* what;
  GgufBytes file;
  ErrorCode code;
  const char* phrase;
};

TEST(Gguf, hostile_headers_are_refused_before_anything_is_allocated_for_them) {
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 61;
  const auto file = [] { return GgufBytes(); };
  const auto tensor = [&](const std::vector<std::int64_t>& dims, std::uint32_t type, std::uint64_t offset = 0) {
    return file().head(1, 0).tensor("w", dims, type, offset).pad();
  };
  const auto value = [&](std::uint32_t type) { return file().head(0, 1).text("k").number(type); };
  const std::string pad(200, 'x');
  const std::vector<Hostile> cases = {
      {"nothing behind the magic", file().raw("GGUF"), ErrorCode::corrupt, "needs 4 bytes"},
      {"another magic", file().raw("GGML").raw(pad), ErrorCode::corrupt, "begins with 'GGML'"},
      {"version 1", file().head(0, 0, 1), ErrorCode::unsupported, "version 1"},
      {"version 4", file().head(0, 0, 4), ErrorCode::unsupported, "version 4"},
      {"version 0", file().head(0, 0, 0), ErrorCode::unsupported, "version 0"},
      {"tensors without end", file().head(kHuge, 0).raw(pad), ErrorCode::corrupt, "claims 2305843009213693952 tensors"},
      {"a negative number of tensors", file().head(~std::uint64_t{0}, 0).raw(pad), ErrorCode::corrupt, "tensors"},
      {"keys without end", file().head(0, kHuge).raw(pad), ErrorCode::corrupt, "claims 2305843009213693952 keys"},
      {"more keys than bytes", file().head(0, 20).raw(pad), ErrorCode::corrupt, "20 keys"},
      {"a key of gigabytes", file().head(0, 1).number(std::uint64_t{1} << 30).raw(pad), ErrorCode::corrupt, "the limit is 65535"},
      {"a key that ends behind the file", file().head(0, 1).number(std::uint64_t{5000}).raw(pad), ErrorCode::corrupt, "needs 5000 bytes"},
      {"an empty key", file().head(0, 1).text("").number<std::uint32_t>(4).raw(pad), ErrorCode::corrupt, "a key is empty"},
      {"a key that is no text", file().head(0, 1).text("\xff").number<std::uint32_t>(4).raw(pad), ErrorCode::corrupt, "not UTF-8"},
      {"a key that acts on the terminal", file().head(0, 1).text("a\x1b[2J").number<std::uint32_t>(4).raw(pad), ErrorCode::corrupt, "control"},
      {"a key twice", file().head(0, 2).u32_key("a", 1).u32_key("a", 2).raw(pad), ErrorCode::corrupt, "'a' stands twice"},
      {"a type of value that is unknown", value(13).raw(pad), ErrorCode::corrupt, "the value type 13"},
      {"a negative type of value", value(~0u).raw(pad), ErrorCode::corrupt, "value type"},
      {"a string of gigabytes", value(8).number(std::uint64_t{1} << 30).raw(pad), ErrorCode::corrupt, "needs 1073741824 bytes"},
      {"a string beyond all files", value(8).number(~std::uint64_t{0}).raw(pad), ErrorCode::corrupt, "the limit is"},
      {"a list of lists", value(9).number<std::uint32_t>(9).number<std::uint64_t>(1).raw(pad), ErrorCode::unsupported, "a list of lists"},
      {"a list of an unknown type", value(9).number<std::uint32_t>(99).number<std::uint64_t>(1).raw(pad), ErrorCode::corrupt, "element type 99"},
      {"a list of gigabytes", value(9).number<std::uint32_t>(12).number<std::uint64_t>(kHuge).raw(pad), ErrorCode::corrupt, "a list claims"},
      {"a list whose size wraps", value(9).number<std::uint32_t>(10).number<std::uint64_t>(kHuge).raw(pad), ErrorCode::corrupt, "a list claims"},
      {"strings without end", value(9).number<std::uint32_t>(8).number<std::uint64_t>(kHuge).raw(pad), ErrorCode::corrupt, "a list claims"},
      {"a string in a list that ends behind the file",
       value(9).number<std::uint32_t>(8).number<std::uint64_t>(2).text("a").number(std::uint64_t{900}), ErrorCode::corrupt, "needs 900 bytes"},
      {"alignment 0", file().head(0, 1).u32_key("general.alignment", 0), ErrorCode::corrupt, "the alignment is 0"},
      {"alignment 3", file().head(0, 1).u32_key("general.alignment", 3), ErrorCode::corrupt, "the alignment is 3"},
      {"an absurd alignment", file().head(0, 1).u32_key("general.alignment", 1u << 31), ErrorCode::corrupt, "at most"},
      {"an alignment that is text", file().head(0, 1).text_key("general.alignment", "32"), ErrorCode::corrupt, "of type string"},
      {"an alignment of another width", file().head(0, 1).text("general.alignment").number<std::uint32_t>(10).number<std::uint64_t>(32),
       ErrorCode::corrupt, "of type uint64"},
      {"a tensor without a name", file().head(1, 0).tensor("", {1}, 0, 0).raw(pad), ErrorCode::corrupt, "no name"},
      {"a long name", file().head(1, 0).tensor(std::string(64, 'a'), {1}, 0, 0).raw(pad), ErrorCode::unsupported, "64 bytes"},
      {"a name with NUL", file().head(1, 0).tensor(std::string("a\0b", 3), {1}, 0, 0).raw(pad), ErrorCode::corrupt, "control characters"},
      {"a tensor twice", file().head(2, 0).tensor("a", {1}, 0, 0).tensor("a", {1}, 0, 32).raw(pad), ErrorCode::corrupt, "'a' is listed twice"},
      {"five dimensions", tensor({1, 1, 1, 1, 1}, 0), ErrorCode::corrupt, "5 dimensions"},
      {"dimensions without end", file().head(1, 0).text("w").number(~0u).raw(pad), ErrorCode::corrupt, "4294967295 dimensions"},
      {"a negative dimension", tensor({-1}, 0), ErrorCode::corrupt, "dimension 0 of a tensor is -1"},
      {"the least dimension", tensor({std::numeric_limits<std::int64_t>::min()}, 0), ErrorCode::corrupt, "dimension 0"},
      {"a product that wraps to zero", tensor({std::int64_t{1} << 32, std::int64_t{1} << 32}, 0), ErrorCode::corrupt, "overflows"},
      {"a product that wraps to little", tensor({std::int64_t{1} << 33, std::int64_t{1} << 31, 3}, 0), ErrorCode::corrupt, "overflows"},
      {"bytes that wrap", tensor({std::int64_t{1} << 40, std::int64_t{1} << 22}, 0), ErrorCode::corrupt, "overflows"},
      {"a dimension that wraps the bytes", tensor({std::int64_t{1} << 61}, 0), ErrorCode::corrupt, "dimension 0"},
      {"a removed type", tensor({32}, 4), ErrorCode::unsupported, "tensor type 4"},
      {"an unknown type", tensor({32}, 43), ErrorCode::unsupported, "tensor type 43"},
      {"a negative type", tensor({32}, ~0u), ErrorCode::unsupported, "tensor type"},
      {"a row that is no whole number of blocks", tensor({33, 2}, 2), ErrorCode::corrupt, "Q4_0 blocks of 32"},
      {"an offset that is not aligned", tensor({1}, 0, 8), ErrorCode::corrupt, "no multiple of the alignment"},
      {"a tensor behind the end", tensor({1}, 0, 1 << 20), ErrorCode::corrupt, "only 0 bytes of data"},
      {"an offset that wraps", tensor({16}, 0, ~std::uint64_t{31}), ErrorCode::corrupt, "overflows"},
      {"a tensor longer than the data", tensor({1000}, 0).raw(pad), ErrorCode::corrupt, "only 200 bytes of data"},
      {"a tensor over another", file().head(2, 0).tensor("a", {16}, 0, 0).tensor("b", {8}, 0, 32).pad().raw(pad), ErrorCode::corrupt,
       "inside of 'a'"},
  };
  for (const Hostile& c : cases)
    for (const GgufLists lists : {GgufLists::leave_long, GgufLists::keep_all}) {
      SCOPED_TRACE(c.what);
      const std::optional<Error> error = testing::error_of([&] { (void)parsed(c.file, lists); });
      ASSERT_TRUE(error);
      EXPECT_EQ(to_string(error->code()), to_string(c.code)) << error->what();
      EXPECT_THAT(error->what(), ::testing::HasSubstr(c.phrase));
    }
}

TEST(Gguf, every_beginning_of_a_file_is_refused) {
  const std::string whole = small().bytes();
  for (std::size_t size = 0; size < 128 + 24; ++size)  // the last 8 bytes are padding
    EXPECT_THROW((void)parse_gguf_header(std::string_view(whole).substr(0, size), "cut.gguf", GgufLists::keep_all), Error) << size;
  EXPECT_NO_THROW((void)parse_gguf_header(std::string_view(whole).substr(0, 152), "cut.gguf", GgufLists::keep_all));
}

TEST(Gguf, a_tensor_of_no_elements_is_read_and_never_divided_by) {
  for (const std::uint32_t type : {0u, 2u, 12u}) {
    GgufBytes file;
    file.head(2, 0).tensor("none", {0, 7}, type, 0).tensor("w", {1}, 0, 0).pad().number(1.0F);
    const GgufHeader header = parsed(file);
    EXPECT_EQ(header.tensors[0].num_elements, 0u);
    EXPECT_EQ(header.tensors[0].stored_bytes, 0u);
  }
}

TEST(Gguf, holes_and_trailing_bytes_are_warned_of) {
  GgufBytes file;
  file.head(2, 0).tensor("b", {1}, 0, 96).tensor("a", {1}, 0, 0).pad().raw(std::string(200, 'x'));
  const GgufHeader header = parsed(file);
  EXPECT_EQ(header.tensors[0].name, "a");
  ASSERT_EQ(header.warnings.size(), 2u);
  EXPECT_THAT(header.warnings[0], ::testing::HasSubstr("llama.cpp demands"));
  EXPECT_THAT(header.warnings[1], ::testing::HasSubstr("100 bytes follow"));
}

// ---- Split files

class Split : public ::testing::Test {
 protected:
  void part(int number, int count, const char* tensor, const std::string& name = "", int no = -1, int total = 2) {
    GgufBytes file;
    file.head(1, 4).text_key("general.architecture", "llama");
    file.text("split.no").number<std::uint32_t>(2).number(static_cast<std::uint16_t>(no < 0 ? number - 1 : no));
    file.text("split.count").number<std::uint32_t>(2).number(static_cast<std::uint16_t>(count));
    file.text("split.tensors.count").number<std::uint32_t>(5).number<std::int32_t>(total);
    file.tensor(tensor, {1}, 0, 0).pad().number(static_cast<float>(number)).pad();
    write_file(folder_ / (name.empty() ? gguf_part_name("m", static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(count)) : name),
               file.bytes());
  }
  [[nodiscard]] std::shared_ptr<const Checkpoint> open(const std::string& name) const { return open_checkpoint((folder_ / name).string()); }
  TemporaryFolder folder_;
};

TEST_F(Split, any_part_opens_the_whole_and_so_does_the_folder) {
  part(1, 2, "a");
  part(2, 2, "b");
  for (const char* name : {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf", ""}) {
    const auto checkpoint = open(name);
    ASSERT_EQ(checkpoint->tensors().size(), 2u);
    EXPECT_EQ(values_of(*checkpoint, "a"), std::vector<float>{1});
    EXPECT_EQ(values_of(*checkpoint, "b"), std::vector<float>{2});
    EXPECT_EQ(checkpoint->files().size(), 2u);
    EXPECT_FALSE(checkpoint->metadata().contains("split.no"));
  }
}

TEST_F(Split, parts_that_do_not_belong_together_are_refused) {
  part(1, 2, "a");
  EXPECT_WEFT_ERROR(open("m-00001-of-00002.gguf"), not_found, "part 2 of 2 is missing");
  part(2, 2, "a");
  EXPECT_WEFT_ERROR(open("m-00001-of-00002.gguf"), corrupt, "in two files");
  part(2, 2, "b", "", 0);
  EXPECT_WEFT_ERROR(open("m-00001-of-00002.gguf"), corrupt, "its header says otherwise");
  part(2, 2, "b", "other.gguf");
  EXPECT_WEFT_ERROR(open("other.gguf"), corrupt, "is called 'other.gguf'");
  part(1, 2, "a", "", -1, 5);
  part(2, 2, "b");
  EXPECT_WEFT_ERROR(open("m-00001-of-00002.gguf"), corrupt, "should hold 5 tensors");
  part(1, 2, "a", "", 2);
  EXPECT_WEFT_ERROR(open("m-00001-of-00002.gguf"), corrupt, "part 2 of 2, counted from 0");
}

TEST_F(Split, a_folder_of_several_models_asks_which) {
  write_file(folder_ / "a.gguf", small().bytes());
  EXPECT_EQ(open("")->tensors().size(), 1u);
  write_file(folder_ / "mmproj-model.gguf", small().bytes());
  EXPECT_EQ(open("")->tensors().size(), 1u);
  write_file(folder_ / "b.gguf", small().bytes());
  EXPECT_WEFT_ERROR(open(""), invalid_argument, "several GGUF models: a.gguf, b.gguf");
}

}  // namespace
}  // namespace weft
