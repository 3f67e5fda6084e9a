#include "checkpoint/torch_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "base/crc32.h"
#include "support/errors.h"
#include "support/golden.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;
using testing::write_file;

fs::path torch_data(std::string_view name) { return fs::path(WEFT_SOURCE_DIR) / "tests" / "data" / "torch" / name; }

// ---- A writer of zip archives and pickles, with every lie that a test wants ---------------------------------------------------------------

std::string le(std::uint64_t value, int size) {
  std::string out;
  for (int i = 0; i < size; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return out;
}

struct Entry {
  std::string name;
  std::string content;
  int method = 0;
  std::string local_name = {};                     ///< empty: the same
  std::optional<std::uint32_t> local_size = {};    ///< a lie in the local header
  std::optional<std::uint32_t> central_size = {};  ///< and in the directory
  std::optional<std::uint32_t> offset = {};
  std::string extra = {};  ///< of the directory
  int flags = 0;
  std::uint32_t crc_xor = 0;
};

std::string zip_of(const std::vector<Entry>& entries, std::optional<std::uint64_t> num_entries = {},
                   std::optional<std::uint32_t> directory_size = {}) {
  std::string out, directory;
  for (const Entry& e : entries) {
    const std::uint64_t at = e.offset.value_or(static_cast<std::uint32_t>(out.size()));
    const std::uint32_t crc = crc32(std::as_bytes(std::span(e.content))) ^ e.crc_xor;
    const std::string local_name = e.local_name.empty() ? e.name : e.local_name;
    const std::uint64_t size = e.central_size.value_or(static_cast<std::uint32_t>(e.content.size()));
    out += "PK\3\4" + le(20, 2) + le(static_cast<std::uint64_t>(e.flags), 2) + le(static_cast<std::uint64_t>(e.method), 2) + le(0, 4) + le(crc, 4);
    out += le(e.local_size.value_or(static_cast<std::uint32_t>(e.content.size())), 4) +
           le(e.local_size.value_or(static_cast<std::uint32_t>(e.content.size())), 4);
    out += le(local_name.size(), 2) + le(0, 2) + local_name + e.content;
    directory += "PK\1\2" + le(20, 2) + le(20, 2) + le(static_cast<std::uint64_t>(e.flags), 2) + le(static_cast<std::uint64_t>(e.method), 2) +
                 le(0, 4) + le(crc, 4);
    directory += le(size, 4) + le(size, 4) + le(e.name.size(), 2) + le(e.extra.size(), 2) + le(0, 2) + le(0, 2) + le(0, 2) + le(0, 4) + le(at, 4) +
                 e.name + e.extra;
  }
  const std::uint64_t begin = out.size();
  out += directory;
  out += "PK\5\6" + le(0, 4) + le(num_entries.value_or(entries.size()), 2) + le(num_entries.value_or(entries.size()), 2) +
         le(directory_size.value_or(static_cast<std::uint32_t>(directory.size())), 4) + le(begin, 4) + le(0, 2);
  return out;
}

std::string text(std::string_view s) { return "X" + le(s.size(), 4) + std::string(s); }
std::string integer(std::int64_t v) { return std::string("\x8a\x08", 2) + le(static_cast<std::uint64_t>(v), 8); }
std::string tuple(const std::vector<std::string>& parts) {
  std::string out = "(";
  for (const std::string& part : parts) out += part;
  return out + "t";
}
std::string numbers(const std::vector<std::int64_t>& values) {
  std::vector<std::string> parts;
  for (const std::int64_t v : values) parts.push_back(integer(v));
  return tuple(parts);
}
std::string storage(std::string_view key, std::int64_t numel, std::string_view type = "FloatStorage") {
  return tuple({text("storage"), "ctorch\n" + std::string(type) + "\n", text(key), text("cpu"), integer(numel)}) + "Q";
}
std::string view(const std::string& of, std::int64_t offset, const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n" + tuple({of, integer(offset), numbers(shape), numbers(strides), "\x89", "}"}) + "R";
}
std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items) out += text(key) + value;
  return out + "u";
}
std::string pickled(const std::string& value) { return "\x80\2" + value + "."; }
std::string floats(std::size_t count) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) {
    const auto v = static_cast<float>(i);
    char bytes[4];
    std::memcpy(bytes, &v, 4);
    out.append(bytes, 4);
  }
  return out;
}
/// A file of one storage "0" of `numel` float32, 0, 1, 2, ...
std::string file_of(const std::string& value, std::size_t numel = 12, const std::vector<Entry>& more = {}) {
  std::vector<Entry> entries = {{"a/data.pkl", pickled(value)}, {"a/data/0", floats(numel)}};
  entries.insert(entries.end(), more.begin(), more.end());
  return zip_of(entries);
}

TorchContents contents(const std::string& bytes, const OpenOptions& options = {}) {
  return read_torch_contents(memory_source(bytes, "x.pt"), options);
}

// ---- What torch wrote ---------------------------------------------------------------------------------------------------------------------

TEST(TorchFile, every_form_reads_as_torch_reads_it) {
  for (const std::string name : {"state_dict.pt", "legacy.pt", "lightning.ckpt", "nested.pth", "module.pt"}) {
    SCOPED_TRACE(name);
    const auto checkpoint = open_checkpoint(torch_data(name).string());
    EXPECT_EQ(checkpoint->container(), "pytorch");
    const testing::GoldenModel want = testing::read_safetensors(torch_data(name.substr(0, name.find('.')) + ".expected.safetensors"));
    ASSERT_EQ(checkpoint->tensors().size(), want.size());
    for (const auto& [key, golden] : want) {
      SCOPED_TRACE(key);
      const TensorInfo& tensor = checkpoint->tensor(key);
      EXPECT_EQ(to_string(tensor.dtype), golden.dtype);
      EXPECT_EQ(tensor.shape, golden.shape);
      ASSERT_EQ(tensor.size_bytes, golden.bytes.size());
      std::string got(golden.bytes.size(), '\0');
      checkpoint->read_bytes(tensor, 0, std::as_writable_bytes(std::span(got)));
      EXPECT_EQ(got, golden.bytes);
      // Any part is that part of the whole, also one that cuts elements.
      for (std::size_t begin = 0; begin < got.size(); begin += 3) {
        for (std::size_t size = 1; begin + size <= got.size(); size += 7) {
          std::string part(size, '\0');
          checkpoint->read_bytes(tensor, begin, std::as_writable_bytes(std::span(part)));
          ASSERT_EQ(part, golden.bytes.substr(begin, size)) << begin << " " << size;
        }
      }
    }
    EXPECT_NO_THROW(checkpoint->verify_checksums());
    EXPECT_NO_THROW(checkpoint->check_unchanged());
  }
}

TEST(TorchFile, what_is_no_tensor_is_named_and_passed_over) {
  const auto checkpoint = open_checkpoint(torch_data("lightning.ckpt").string());
  std::map<std::string, std::string> skipped(checkpoint->skipped().begin(), checkpoint->skipped().end());
  EXPECT_EQ(skipped["hyper"], "object of lightning.secret.Unknown");
  EXPECT_EQ(skipped["epoch"], "integer");
  EXPECT_EQ(checkpoint->warnings().size(), 1u);
}

TEST(TorchFile, another_dictionary_can_be_the_model_and_the_prefix_can_stay) {
  const auto kept = open_checkpoint(torch_data("lightning.ckpt").string(), {.root = "", .keep_prefix = true});
  EXPECT_NE(kept->find_tensor("module.0.weight"), nullptr);
  const auto encoder = open_checkpoint(torch_data("nested.pth").string(), {.root = "model.encoder"});
  ASSERT_EQ(encoder->tensors().size(), 1u);
  EXPECT_EQ(encoder->tensors()[0].name, "weight");
  const auto moments = open_checkpoint(torch_data("lightning.ckpt").string(), {.root = "optimizer_states.0.state.0"});
  EXPECT_EQ(moments->tensors()[0].name, "exp_avg");
  EXPECT_WEFT_ERROR(open_checkpoint(torch_data("nested.pth").string(), {.root = "model.decodre"}), not_found, "there are: encoder, decoder");
}

TEST(TorchFile, a_folder_without_safetensors_is_read_from_its_pickle_and_its_shards) {
  const TemporaryFolder folder;
  const std::string a = file_of(dict({{"a.weight", view(storage("0", 12), 0, {3, 4}, {4, 1})}}));
  const std::string b = file_of(dict({{"b.weight", view(storage("0", 12), 0, {4, 3}, {1, 4})}, {"extra", view(storage("0", 12), 0, {12}, {1})}}));
  write_file(folder / "config.json", "{}");
  write_file(folder / "training_args.bin", "x");
  write_file(folder / "pytorch_model-00001-of-00002.bin", a);
  write_file(folder / "pytorch_model-00002-of-00002.bin", b);
  write_file(folder / "pytorch_model.bin.index.json",
             R"({"metadata":{},"weight_map":{"a.weight":"pytorch_model-00001-of-00002.bin","b.weight":"pytorch_model-00002-of-00002.bin"}})");
  const auto sharded = open_checkpoint(folder.path().string());
  EXPECT_EQ(sharded->files().size(), 2u);
  ASSERT_EQ(sharded->tensors().size(), 2u);  // the index decides
  std::vector<float> values(12);
  sharded->read_bytes(sharded->tensor("b.weight"), 0, std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values, (std::vector<float>{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}));
  write_file(folder / "pytorch_model.bin", a);
  EXPECT_EQ(open_checkpoint(folder.path().string())->tensors().size(), 1u);
}

TEST(TorchFile, big_endian_files_are_swapped) {
  std::string swapped = floats(4);
  for (std::size_t i = 0; i < swapped.size(); i += 4)
    std::reverse(swapped.begin() + static_cast<std::ptrdiff_t>(i), swapped.begin() + static_cast<std::ptrdiff_t>(i + 4));
  const TemporaryFolder folder;
  write_file(folder / "x.pt",
             zip_of({{"a/data.pkl", pickled(dict({{"w", view(storage("0", 4), 0, {4}, {1})}}))}, {"a/byteorder", "big"}, {"a/data/0", swapped}}));
  const auto checkpoint = open_checkpoint((folder / "x.pt").string());
  std::string got(16, '\0');
  checkpoint->read_bytes(checkpoint->tensors()[0], 0, std::as_writable_bytes(std::span(got)));
  EXPECT_EQ(got, floats(4));
}

TEST(TorchFile, damage_to_a_storage_is_found_when_it_is_read_whole_and_by_verify) {
  const TemporaryFolder folder;
  write_file(folder / "x.pt", zip_of({{"a/data.pkl", pickled(dict({{"w", view(storage("0", 4), 0, {4}, {1})}}))},
                                      {.name = "a/data/0", .content = floats(4), .crc_xor = 1}}));
  const auto checkpoint = open_checkpoint((folder / "x.pt").string());
  std::string got(16, '\0');
  EXPECT_WEFT_ERROR(checkpoint->read_bytes(checkpoint->tensors()[0], 0, std::as_writable_bytes(std::span(got))), corrupt, "checksum");
  EXPECT_WEFT_ERROR(checkpoint->verify_checksums(), corrupt, "tensor 'w'");
}

// ---- Hostile ------------------------------------------------------------------------------------------------------------------------------

TEST(TorchFile, views_that_leave_their_storage_are_refused) {
  const auto tensor = [](const std::string& v) { return file_of(dict({{"w", v}})); };
  EXPECT_EQ(contents(tensor(view(storage("0", 12), 0, {3, 4}, {4, 1}))).tensors.size(), 1u);
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 1, {3, 4}, {4, 1}))), corrupt, "reaches element 12");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 0, {4, 4}, {4, 1}))), corrupt, "reaches element 15");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 0, {3, 4}, {-4, 1}))), corrupt, "a negative number");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 0, {-3, 4}, {4, 1}))), corrupt, "a negative number");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), -1, {3}, {1}))), corrupt, "begins at -1");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 0, {3, 4}, {1}))), corrupt, "2 dimensions and 1 strides");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 0, {INT64_MAX, INT64_MAX}, {0, 0}))), corrupt, "overflows");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 0, {2, 2}, {INT64_MAX, INT64_MAX}))), corrupt, "");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 12), 0, {std::int64_t{1} << 40}, {0}))), unsupported, "repeats a storage");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", 13), 0, {3}, {1}))), corrupt, "has 48 bytes, but 13 elements need 52");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("0", -1), 0, {3}, {1}))), corrupt, "no number of elements");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("7", 12), 0, {3}, {1}))), corrupt, "has no entry 'a/data/7'");
  EXPECT_WEFT_ERROR(contents(tensor(view(storage("../0", 12), 0, {3}, {1}))), corrupt, "no usable key");
  EXPECT_EQ(contents(tensor(view(storage("9", 0), 0, {0, 3}, {3, 1}))).tensors[0].num_elements, 0u);
}

TEST(TorchFile, nothing_is_ever_called) {
  const std::string call = "cos\nsystem\n" + tuple({text("touch /tmp/weft-was-here")}) + "R";
  const TorchContents both =
      contents(file_of(dict({{"w", view(storage("0", 12), 0, {12}, {1})}, {"evil", call}, {"x", view(storage("0", 12), 0, {12}, {1})}})));
  EXPECT_EQ(both.tensors.size(), 2u);
  ASSERT_EQ(both.skipped.size(), 1u);
  EXPECT_EQ(both.skipped[0].second, "object of os.system");
  EXPECT_WEFT_ERROR(contents(file_of(call)), unsupported, "os.system");
}

TEST(TorchFile, tensors_of_unknown_kinds_are_passed_over_by_name) {
  const std::string sparse = "ctorch._utils\n_rebuild_sparse_tensor\n" + tuple({text("x")}) + "R";
  const TorchContents c = contents(file_of(
      dict({{"good", view(storage("0", 12), 0, {12}, {1})}, {"sparse", sparse}, {"q", view(storage("1", 3, "QUInt8Storage"), 0, {3}, {1})}})));
  EXPECT_EQ(c.tensors.size(), 1u);
  EXPECT_EQ(c.skipped.size(), 2u);
  ASSERT_EQ(c.warnings.size(), 2u);
  EXPECT_NE(c.warnings[0].find("'sparse' was passed over"), std::string::npos);
}

TEST(TorchFile, pickles_that_make_no_sense_are_refused_with_their_byte) {
  const auto of = [](const std::string& value) { return file_of(value); };
  EXPECT_WEFT_ERROR(contents(of("\xff")), unsupported, "opcode 0xff");
  EXPECT_WEFT_ERROR(contents(of("i")), unsupported, "opcode 0x69 ('i')");
  EXPECT_WEFT_ERROR(contents(of("\x82\x01")), unsupported, "opcode 0x82");
  EXPECT_WEFT_ERROR(contents(of("R")), corrupt, "empty stack");
  EXPECT_WEFT_ERROR(contents(of("(R")), corrupt, "empty stack");
  EXPECT_WEFT_ERROR(contents(of("t")), corrupt, "never set");
  EXPECT_WEFT_ERROR(contents(of("h\5")), corrupt, "never kept");
  EXPECT_WEFT_ERROR(contents(of("X\xff\xff\xff\x7f")), corrupt, "it ends after");
  EXPECT_WEFT_ERROR(contents(of(std::string("\x8d\0\0\0\0\0\0\0\x80", 9))), corrupt, "it ends after");
  EXPECT_WEFT_ERROR(contents(of("}(K\1u")), corrupt, "without a value");
  EXPECT_WEFT_ERROR(contents(of("K\1K\2a")), corrupt, "has none");
  EXPECT_WEFT_ERROR(contents(of("\x80\x09N")), unsupported, "protocol 9");
}

TEST(TorchFile, values_that_contain_themselves_or_explode_are_bounded) {
  // d = {}; d['self'] = d; beside a tensor.
  const std::string cycle = "}q\1(" + text("self") + "h\1" + text("w") + view(storage("0", 12), 0, {12}, {1}) + "u";
  EXPECT_EQ(contents(file_of(cycle), {.root = "", .keep_prefix = true}).tensors.size(), 1u);
  // Each level names the one below twice: 2^40 names out of a kilobyte.
  std::string bomb = "}(" + text("w") + view(storage("0", 12), 0, {12}, {1}) + "uq" + std::string("\0", 1);
  for (int i = 1; i <= 40; ++i)
    bomb += "}(" + text("a") + "h" + static_cast<char>(i - 1) + text("b") + "h" + static_cast<char>(i - 1) + "uq" + static_cast<char>(i);
  EXPECT_WEFT_ERROR(contents(file_of(bomb)), unsupported, "more than");
  // Two thousand dictionaries in each other.
  std::string deep;
  for (int i = 0; i < 2000; ++i) deep += "}" + text("a");
  deep += view(storage("0", 12), 0, {12}, {1});
  for (int i = 0; i < 2000; ++i) deep += "s";
  EXPECT_WEFT_ERROR(contents(file_of(deep)), unsupported, "nested deeper");
}

TEST(TorchFile, archives_that_lie_are_refused) {
  const std::string value = pickled(dict({{"w", view(storage("0", 12), 0, {12}, {1})}}));
  const Entry pickle{"a/data.pkl", value}, numbers_{"a/data/0", floats(12)};
  EXPECT_EQ(contents(zip_of({pickle, numbers_})).tensors.size(), 1u);
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, numbers_, numbers_})), corrupt, "twice");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, numbers_, {"b/data.pkl", value}})), corrupt, "two checkpoints");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, {.name = "a/data/0", .content = floats(12), .local_name = "a/data/1"}})), corrupt, "another name");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, {.name = "a/data/0", .content = floats(12), .local_size = 40}})), corrupt, "by its own header");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, {.name = "a/data/0", .content = floats(12), .central_size = 1 << 20}})), corrupt, "passes the end");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, {.name = "a/data/0", .content = floats(12), .offset = 0}})), corrupt, "overlaps");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, {.name = "a/data/0", .content = floats(12), .offset = 1 << 30}})), corrupt, "beyond the end");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, {.name = "a/data/0", .content = floats(12), .method = 8}})), unsupported, "compressed");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, {.name = "a/data/0", .content = floats(12), .flags = 1}})), unsupported, "encrypted");
  EXPECT_WEFT_ERROR(contents(zip_of({{.name = "a/data.pkl", .content = value, .crc_xor = 4}, numbers_})), corrupt, "checksum");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, numbers_, {"a/code/x.py", "x"}})), unsupported, "TorchScript");
  EXPECT_WEFT_ERROR(contents(zip_of({{"x.txt", "x"}})), unsupported, "no PyTorch checkpoint");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, numbers_}, 60000)), corrupt, "60000 entries");
  EXPECT_WEFT_ERROR(contents(zip_of({pickle, numbers_}, {}, 1 << 30)), corrupt, "does not end where");
  // A size marked as zip64: without the field, with one too short, with one that asks for more than there is.
  const auto wide = [&](std::string extra) {
    return zip_of({pickle, {.name = "a/data/0", .content = floats(12), .central_size = 0xFFFFFFFF, .extra = std::move(extra)}});
  };
  EXPECT_WEFT_ERROR(contents(wide("")), corrupt, "no zip64 field");
  EXPECT_WEFT_ERROR(contents(wide(le(1, 2) + le(4, 2) + le(0, 4))), corrupt, "lacks a size");
  EXPECT_WEFT_ERROR(contents(wide(le(1, 2) + le(200, 2))), corrupt, "longer than its room");
  EXPECT_WEFT_ERROR(contents(wide(le(1, 2) + le(16, 2) + le(std::uint64_t{1} << 62, 8) + le(std::uint64_t{1} << 62, 8))), corrupt, "");
  EXPECT_EQ(contents(wide(le(1, 2) + le(16, 2) + le(48, 8) + le(48, 8))).tensors.size(), 1u);
}

TEST(TorchFile, any_byte_changed_or_cut_off_is_an_error_or_a_sound_result) {
  for (const std::string name : {"state_dict.pt", "legacy.pt", "module.pt"}) {
    const std::string whole = testing::read_file(torch_data(name));
    std::mt19937 random(7);
    for (int round = 0; round < 600; ++round) {
      std::string bytes = whole;
      if (round % 4 == 0) bytes.resize(random() % whole.size());
      for (unsigned k = 0; k < 1 + random() % 3 && !bytes.empty(); ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
      try {
        (void)contents(bytes);
      } catch (const Error& error) {
        EXPECT_TRUE(error.code() == ErrorCode::corrupt || error.code() == ErrorCode::unsupported) << error.what();
      }
    }
  }
}

TEST(Crc32, it_is_that_of_zip) {
  EXPECT_EQ(crc32(std::as_bytes(std::span("123456789", 9))), 0xCBF43926U);
  EXPECT_EQ(crc32({}), 0U);
  const std::string text_of = "the quick brown fox jumps over the lazy dog";
  const auto bytes = std::as_bytes(std::span(text_of));
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) EXPECT_EQ(crc32(bytes.subspan(cut), crc32(bytes.first(cut))), crc32(bytes));
}

}  // namespace
}  // namespace weft
