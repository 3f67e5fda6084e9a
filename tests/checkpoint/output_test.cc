#include "checkpoint/output.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>

#include "support/errors.h"
#include "support/fault_calls.h"
#include "support/temporary_folder.h"
#include "support/unprivileged.h"
#include "weft/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Fault;
using testing::FaultCalls;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::read_file;
using testing::tree;
using testing::write_file;

// ---- helpers ----

/// In memory: these tests sync some thousand times. The path over a real disk is that of the tests of jobs and of the command.
struct TemporaryFolder : testing::TemporaryFolder {
  TemporaryFolder() : testing::TemporaryFolder(testing::memory_folder()) {}
};

std::string bytes_of(std::initializer_list<unsigned> values) {
  std::string bytes;
  for (const unsigned value : values) bytes += static_cast<char>(value);
  return bytes;
}

const std::string kF32 = bytes_of({0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0});  // 1, -2
const std::string kBf16 = bytes_of({0x80, 0x3f, 0, 0xc0});

/// Two tensors, in one file or in one each.
std::vector<TensorSpec> small_specs() { return {{"a", DType::bf16, {1, 2}}, {"b", DType::f32, {2}}}; }

void write_small(Output& output, std::uint64_t max_shard_bytes) {
  output.create_files(plan_safetensors(small_specs(), max_shard_bytes, {}));
  output.write_tensor(1, 4, std::as_bytes(std::span(kF32).subspan(4)));
  output.write_tensor(0, 0, std::as_bytes(std::span(kBf16)));
  output.write_tensor(1, 0, std::as_bytes(std::span(kF32).first(4)));
}

void build_small(const fs::path& destination, Existing existing, std::uint64_t max_shard_bytes = 8) {
  OutputFolder output(destination, existing);
  write_small(output, max_shard_bytes);
  output.write_text("config.json", "{\"new\":1}\n");
  output.write_text("additional_chat_templates/rag.jinja", "hello");
  output.commit();
}

const std::vector<std::string> kSmallTree = {
    "additional_chat_templates/",       "additional_chat_templates/rag.jinja", "config.json",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",    "model.safetensors.index.json"};

void make_old_model(const fs::path& folder) {
  write_file(folder / "config.json", "{\"old\":1}\n");
  write_file(folder / "model-00001-of-00003.safetensors", "old");
  write_file(folder / "notes/mine.txt", "mine");
}

// ---- layout ----

// The file of the format's own check: 142 bytes of JSON, two spaces, b before a because F32 sorts before BF16.
const std::string kReference = bytes_of({0x90, 0, 0, 0, 0, 0, 0, 0}) +
                               R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                               R"("a":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}  )" +
                               kF32 + kBf16;

TEST(PlanSafetensors, lays_out_the_reference_file_of_164_bytes) {
  ASSERT_EQ(kReference.size(), 164u);
  const OutputLayout layout = plan_safetensors(small_specs(), 0, {});
  ASSERT_EQ(layout.files.size(), 1u);
  EXPECT_EQ(layout.files[0].name, "model.safetensors");
  EXPECT_EQ(layout.files[0].header, kReference.substr(0, 152));
  EXPECT_EQ(layout.files[0].size_bytes, 164u);
  EXPECT_EQ(layout.tensor_bytes, 12u);
  EXPECT_EQ(layout.tensors[0].name, "a");
  EXPECT_EQ(layout.tensors[0].offset_bytes, 160u);
  EXPECT_EQ(layout.tensors[1].offset_bytes, 152u);
  EXPECT_TRUE(layout.index_json.empty());
  EXPECT_TRUE(layout.index_name.empty());
}

TEST(PlanSafetensors, writes_the_same_header_in_whatever_order_the_tensors_come) {
  std::vector<TensorSpec> specs = small_specs();
  std::swap(specs[0], specs[1]);
  EXPECT_EQ(plan_safetensors(specs, 0, {}).files[0].header, kReference.substr(0, 152));
}

TEST(PlanSafetensors, of_no_tensors_is_one_file_with_only_metadata) {
  const OutputLayout layout = plan_safetensors({}, 100, {});
  ASSERT_EQ(layout.files.size(), 1u);
  EXPECT_EQ(layout.files[0].header.substr(8), R"({"__metadata__":{"format":"pt"}})");
  EXPECT_EQ(layout.files[0].size_bytes, 40u);
}

TEST(PlanSafetensors, sorts_metadata_and_always_says_pt) {
  const OutputLayout layout = plan_safetensors({}, 0, {{"z", "\"1\"\n"}, {"format", "tf"}, {"a", "\xc3\xa9/"}});
  EXPECT_THAT(layout.files[0].header.substr(8),
              ::testing::StartsWith("{\"__metadata__\":{\"a\":\"\xc3\xa9/\",\"format\":\"pt\",\"z\":\"\\\"1\\\"\\n\"}}"));
}

TEST(PlanSafetensors, sorts_types_from_wide_to_narrow_and_names_by_bytes) {
  const OutputLayout layout = plan_safetensors({{"i8", DType::i8, {1}},
                                                {"Z", DType::f32, {1}},
                                                {"a", DType::f32, {1}},
                                                {"u64", DType::u64, {1}},
                                                {"\xc3\xa9", DType::f32, {}},
                                                {"bool", DType::boolean, {8}}},
                                               0, {});
  const std::string& header = layout.files[0].header;
  const std::vector<std::string> order = {"\"u64\":", "\"Z\":", "\"a\":", "\"\xc3\xa9\":", "\"i8\":", "\"bool\":"};
  for (std::size_t i = 1; i < order.size(); ++i) EXPECT_LT(header.find(order[i - 1]), header.find(order[i])) << order[i];
  EXPECT_THAT(header, HasSubstr("\"\xc3\xa9\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[16,20]}"));
}

TEST(PlanSafetensors, starts_a_file_when_the_next_tensor_would_exceed_the_limit) {
  std::vector<TensorSpec> specs;
  for (const char* name : {"c", "a", "b", "d"}) specs.push_back({name, DType::u8, {40}});
  const OutputLayout layout = plan_safetensors(specs, 80, {});  // exactly full is not over
  ASSERT_EQ(layout.files.size(), 2u);
  EXPECT_EQ(layout.files[0].name, "model-00001-of-00002.safetensors");
  EXPECT_EQ(layout.files[1].name, "model-00002-of-00002.safetensors");
  EXPECT_EQ(layout.tensors[0].file_index, 0u);
  EXPECT_EQ(layout.tensors[1].file_index, 0u);
  EXPECT_EQ(layout.tensors[2].file_index, 1u);
  EXPECT_EQ(layout.tensors[3].file_index, 1u);
  EXPECT_LT(layout.tensors[1].offset_bytes, layout.tensors[0].offset_bytes) << "inside a file the order is by name";
}

TEST(PlanSafetensors, gives_a_tensor_over_the_limit_a_file_of_its_own_and_goes_on_with_the_one_before) {
  const OutputLayout layout =
      plan_safetensors({{"a", DType::u8, {10}}, {"big", DType::u8, {100}}, {"b", DType::u8, {10}}, {"c", DType::u8, {45}}}, 50, {});
  ASSERT_EQ(layout.files.size(), 3u);
  EXPECT_EQ(layout.tensors[1].file_index, 0u);
  EXPECT_EQ(layout.tensors[0].file_index, 1u);
  EXPECT_EQ(layout.tensors[2].file_index, 1u);
  EXPECT_EQ(layout.tensors[3].file_index, 2u);
}

TEST(PlanSafetensors, writes_the_index_as_python_does) {
  const OutputLayout layout =
      plan_safetensors({{"b\xf0\x9f\x98\x80", DType::u8, {3}}, {"a\"\xc3\xa9", DType::u8, {3}}}, 3, {}, "model", {{"weft", "1"}});
  EXPECT_EQ(layout.index_name, "model.safetensors.index.json");
  EXPECT_EQ(layout.index_json,
            "{\n"
            "  \"metadata\": {\n"
            "    \"total_size\": 6,\n"
            "    \"weft\": \"1\"\n"
            "  },\n"
            "  \"weight_map\": {\n"
            "    \"a\\\"\\u00e9\": \"model-00002-of-00002.safetensors\",\n"
            "    \"b\\ud83d\\ude00\": \"model-00001-of-00002.safetensors\"\n"
            "  }\n"
            "}\n");
}

TEST(PlanSafetensors, counts_sub_byte_types_in_bits) {
  const OutputLayout layout = plan_safetensors({{"f4", DType::f4, {3, 2}}, {"f6", DType::f6_e2m3, {4}}}, 0, {});
  EXPECT_EQ(layout.tensors[0].size_bytes, 3u);
  EXPECT_EQ(layout.tensors[1].size_bytes, 3u);
  EXPECT_WEFT_ERROR(plan_safetensors({{"f4", DType::f4, {3}}}, 0, {}), invalid_argument, "tensor 'f4' (F4 [3]) ends inside a byte: 12 bits");
}

TEST(PlanSafetensors, pads_every_header_to_eight_bytes) {
  for (std::size_t length = 1; length < 20; ++length) {
    const OutputLayout layout = plan_safetensors({{std::string(length, 'n'), DType::u8, {1}}}, 0, {});
    EXPECT_EQ(layout.files[0].header.size() % 8, 0u);
    EXPECT_EQ(static_cast<unsigned char>(layout.files[0].header[0]), layout.files[0].header.size() - 8);
  }
}

TEST(PlanSafetensors, refuses_names_that_the_format_cannot_hold) {
  EXPECT_WEFT_ERROR(plan_safetensors({{"w", DType::f32, {1}}, {"w", DType::f16, {1}}}, 0, {}), invalid_argument,
                    "two tensors of the output are called 'w'");
  EXPECT_WEFT_ERROR(plan_safetensors({{"__metadata__", DType::f32, {1}}}, 0, {}), invalid_argument, "__metadata__");
  EXPECT_WEFT_ERROR(plan_safetensors({{"w\xff", DType::f32, {1}}}, 0, {}), invalid_argument, "'w\\xff' is not UTF-8");
  EXPECT_WEFT_ERROR(plan_safetensors({}, 0, {{"k", "\xed\xa0\x80"}}), invalid_argument, "metadata value");
}

TEST(PlanSafetensors, refuses_sizes_that_overflow) {
  EXPECT_WEFT_ERROR(plan_safetensors({{"w", DType::f32, {std::int64_t{1} << 62, 2}}}, 0, {}), corrupt, "overflows");
  EXPECT_WEFT_ERROR(plan_safetensors({{"w", DType::f32, {-1}}}, 0, {}), invalid_argument, "negative dimension");
}

TEST(PlanSafetensors, refuses_a_header_over_a_hundred_million_bytes) {
  // 8 bytes less than the cap are left for everything else, so the metadata alone is over it.
  EXPECT_WEFT_ERROR(plan_safetensors({}, 0, {{"k", std::string(100'000'000, 'x')}}), invalid_argument, "more than the format's limit of 100000000");
  // {"__metadata__":{"format":"pt","k":""}} is 39 bytes: exactly the cap.
  const OutputLayout layout = plan_safetensors({}, 0, {{"k", std::string(100'000'000 - 39, 'x')}});
  EXPECT_EQ(layout.files[0].header.size(), 100'000'008u);
}

// ---- a folder ----

TEST(OutputFolder, writes_the_reference_file) {
  const TemporaryFolder temp;
  {
    OutputFolder output(temp / "out", Existing::refuse);
    write_small(output, 0);
    EXPECT_FALSE(fs::exists(temp / "out")) << "nothing is at the destination before commit";
    EXPECT_EQ(output.working_folder().parent_path().parent_path(), temp.path());
    output.commit();
    EXPECT_THAT(output.warnings(), IsEmpty());
  }
  EXPECT_THAT(tree(temp.path()), ElementsAre("out/", "out/model.safetensors"));
  EXPECT_EQ(read_file(temp / "out/model.safetensors"), kReference);
}

TEST(OutputFolder, holds_shards_index_texts_and_copies) {
  const testing::TemporaryFolder temp;
  std::string long_text(3'000'000, 'x');  // more than one buffer
  long_text.back() = 'y';
  write_file(temp / "source", long_text);
  OutputFolder output(temp / "out", Existing::refuse);
  write_small(output, 8);
  output.write_text("config.json", "{}\n");
  output.copy_file(temp / "source", "tokenizer.json");
  output.copy_file(temp / "source", "sub/folder/copy");
  output.write_text("empty", "");
  EXPECT_EQ(read_file(output.working_folder() / "config.json"), "{}\n") << "readable before commit";
  output.commit();
  EXPECT_THAT(tree(temp / "out"), ElementsAre("config.json", "empty", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                              "model.safetensors.index.json", "sub/", "sub/folder/", "sub/folder/copy", "tokenizer.json"));
  EXPECT_EQ(read_file(temp / "out/tokenizer.json"), long_text);
  EXPECT_EQ(read_file(temp / "out/sub/folder/copy"), long_text);
  EXPECT_EQ(read_file(temp / "out/model-00002-of-00002.safetensors").substr(0, 8), bytes_of({0x58, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_THAT(read_file(temp / "out/model.safetensors.index.json"), HasSubstr("\"total_size\": 12"));
}

TEST(OutputFolder, leaves_nothing_when_it_is_not_committed) {
  const TemporaryFolder temp;
  {
    OutputFolder output(temp / "out", Existing::refuse);
    write_small(output, 8);
    EXPECT_TRUE(fs::exists(output.working_folder()));
  }
  EXPECT_THAT(tree(temp.path()), IsEmpty());
}

TEST(OutputFolder, refuses_to_commit_what_was_not_written_completely) {
  const TemporaryFolder temp;
  {
    OutputFolder output(temp / "out", Existing::refuse);
    output.create_files(plan_safetensors(small_specs(), 0, {}));
    output.write_tensor(0, 0, std::as_bytes(std::span(kBf16)));
    EXPECT_WEFT_ERROR(output.commit(), internal, "4 of 12 bytes");
  }
  EXPECT_THAT(tree(temp.path()), IsEmpty());
}

TEST(OutputFolder, refuses_writes_outside_of_a_tensor) {
  const TemporaryFolder temp;
  OutputFolder output(temp / "out", Existing::refuse);
  output.create_files(plan_safetensors(small_specs(), 0, {}));
  EXPECT_WEFT_ERROR(output.write_tensor(0, 1, std::as_bytes(std::span(kBf16))), internal, "outside of tensor 'a'");
  EXPECT_WEFT_ERROR(output.write_tensor(0, UINT64_MAX, std::as_bytes(std::span(kBf16))), internal, "outside of tensor 'a'");
}

TEST(OutputFolder, takes_an_existing_empty_folder_as_absent) {
  const TemporaryFolder temp;
  fs::create_directory(temp / "out");
  build_small(temp / "out", Existing::refuse);
  EXPECT_EQ(tree(temp / "out"), kSmallTree);
  EXPECT_THAT(tree(temp.path()), Not(::testing::Contains(HasSubstr(".weft-"))));
}

TEST(OutputFolder, refuses_what_exists_and_says_how_to_replace_it) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  const std::vector<std::string> before = tree(temp.path());
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out", Existing::refuse), invalid_argument, "exists and is not empty");
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out", Existing::refuse), invalid_argument, "--force");
  EXPECT_EQ(tree(temp.path()), before);
}

TEST(OutputFolder, refuses_a_file_where_a_folder_is_to_be) {
  const TemporaryFolder temp;
  write_file(temp / "out", "text");
  for (const Existing existing : {Existing::refuse, Existing::replace, Existing::write_into})
    EXPECT_WEFT_ERROR(OutputFolder(temp / "out", existing), invalid_argument, "is a file, but the output is a folder");
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out/below", Existing::refuse), not_found, "a part of the path is a file");
  EXPECT_EQ(read_file(temp / "out"), "text");
}

TEST(OutputFolder, refuses_impossible_names) {
  EXPECT_WEFT_ERROR(OutputFolder("", Existing::refuse), invalid_argument, "has no name");
  EXPECT_WEFT_ERROR(OutputFolder("/", Existing::replace), invalid_argument, "root of the file system");
  const TemporaryFolder temp;
  ASSERT_EQ(::mkfifo((temp / "pipe").c_str(), 0600), 0);
  EXPECT_WEFT_ERROR(OutputFolder(temp / "pipe", Existing::replace), invalid_argument, "neither a file nor a folder");
  EXPECT_WEFT_ERROR(OutputFolder(temp / std::string(300, 'n'), Existing::replace), invalid_argument, "too long");
  OutputFolder output(temp / "out", Existing::refuse);
  for (const char* name : {"", "/etc/passwd", "../x", "a/../../x", ".", "a/", "a//b/."})
    EXPECT_WEFT_ERROR(output.write_text(name, "x"), invalid_argument, "is no name for a file");
  EXPECT_WEFT_ERROR(output.write_text(std::string_view("a\0b", 3), "x"), invalid_argument, "is no name for a file");
  output.write_text("once", "x");
  EXPECT_WEFT_ERROR(output.write_text("once", "x"), invalid_argument, "exists already");
}

TEST(OutputFolder, takes_names_as_long_as_the_file_system_does) {
  const TemporaryFolder temp;
  const std::string name(255, 'n');
  build_small(temp / name, Existing::refuse);
  EXPECT_EQ(tree(temp / name), kSmallTree);
}

TEST(OutputFolder, replaces_a_model_as_a_whole) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  build_small(temp / "out", Existing::replace);
  EXPECT_EQ(tree(temp / "out"), kSmallTree);
  EXPECT_EQ(read_file(temp / "out/config.json"), "{\"new\":1}\n");
  EXPECT_EQ(tree(temp.path()).size(), kSmallTree.size() + 1);
}

TEST(OutputFolder, leaves_the_old_model_until_the_new_one_is_complete) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  const std::vector<std::string> before = tree(temp.path());
  {
    OutputFolder output(temp / "out", Existing::replace);
    write_small(output, 8);
    EXPECT_EQ(read_file(temp / "out/config.json"), "{\"old\":1}\n");
  }
  EXPECT_EQ(tree(temp.path()), before);
}

TEST(OutputFolder, does_not_replace_a_folder_that_is_no_model) {
  const TemporaryFolder temp;
  write_file(temp / "home/letters/to-my-mother.txt", "dear");
  EXPECT_WEFT_ERROR(OutputFolder(temp / "home", Existing::replace), invalid_argument, "holds neither a config.json nor weights");
  EXPECT_EQ(read_file(temp / "home/letters/to-my-mother.txt"), "dear");
}

TEST(OutputFolder, does_not_replace_a_folder_in_which_several_models_are_kept) {
  const TemporaryFolder temp;
  write_file(temp / "models/stray.safetensors", "one");
  write_file(temp / "models/llama/model.safetensors", "another");
  write_file(temp / "files/a.gguf", "one");
  write_file(temp / "files/b.gguf", "another");
  for (const char* name : {"models", "files"})
    EXPECT_WEFT_ERROR(OutputFolder(temp / name, Existing::replace), invalid_argument, "holds more than one model");
  EXPECT_EQ(read_file(temp / "models/llama/model.safetensors"), "another");
  EXPECT_EQ(read_file(temp / "files/b.gguf"), "another");

  // Parts of one model may be replaced: shards, and folders that modules.json lists.
  write_file(temp / "split/m-00001-of-00002.gguf", "one");
  write_file(temp / "split/m-00002-of-00002.gguf", "its end");
  write_file(temp / "sentences/modules.json", "[]");
  write_file(temp / "sentences/model.safetensors", "one");
  write_file(temp / "sentences/2_Dense/model.safetensors", "its end");
  for (const char* name : {"split", "sentences"}) EXPECT_NO_THROW(OutputFolder(temp / name, Existing::replace)) << name;
}

TEST(OutputFolder, does_not_replace_the_folder_that_the_command_runs_in) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  const fs::path before = fs::current_path();
  fs::current_path(temp / "out/notes");
  const std::optional<Error> error = error_of([&] { OutputFolder(temp / "out", Existing::replace); });
  fs::current_path(before);
  ASSERT_TRUE(error.has_value());
  EXPECT_THAT(error->what(), HasSubstr("the folder that this command runs in"));
}

TEST(OutputFolder, writes_into_a_model_and_leaves_no_mix_of_weights) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  write_file(temp / "out/model-00001-of-00002.safetensors", "of an older model");
  build_small(temp / "out", Existing::write_into, 0);
  EXPECT_THAT(tree(temp / "out"), ElementsAre("additional_chat_templates/", "additional_chat_templates/rag.jinja", "config.json", "model.safetensors",
                                              "notes/", "notes/mine.txt"));
  EXPECT_EQ(read_file(temp / "out/model.safetensors"), kReference);
  EXPECT_EQ(read_file(temp / "out/config.json"), "{\"new\":1}\n");
  // And the other way: a single file goes when shards come.
  build_small(temp / "out", Existing::write_into, 8);
  EXPECT_FALSE(fs::exists(temp / "out/model.safetensors"));
  EXPECT_TRUE(fs::exists(temp / "out/model.safetensors.index.json"));
  EXPECT_EQ(read_file(temp / "out/notes/mine.txt"), "mine");
  EXPECT_THAT(tree(temp.path()), Not(::testing::Contains(HasSubstr(".weft-"))));
}

TEST(OutputFolder, writes_into_a_folder_that_is_absent_or_no_model) {
  const TemporaryFolder temp;
  build_small(temp / "out", Existing::write_into);
  EXPECT_EQ(tree(temp / "out"), kSmallTree);
  write_file(temp / "other/text", "x");
  build_small(temp / "other", Existing::write_into);
  EXPECT_EQ(tree(temp / "other").size(), kSmallTree.size() + 1);
}

TEST(OutputFolder, does_not_write_into_a_model_where_a_folder_has_the_name_of_a_file) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  fs::create_directory(temp / "out/model.safetensors");
  const std::vector<std::string> before = tree(temp.path());
  EXPECT_WEFT_ERROR(build_small(temp / "out", Existing::write_into, 0), invalid_argument, "it is a folder, not a file");
  EXPECT_EQ(tree(temp.path()), before);
}

TEST(OutputFolder, makes_missing_parents_and_removes_them_on_failure) {
  const TemporaryFolder temp;
  { const OutputFolder output(temp / "a/b/out", Existing::refuse); }
  EXPECT_THAT(tree(temp.path()), IsEmpty());
  build_small(temp / "a/b/out", Existing::refuse);
  EXPECT_EQ(tree(temp / "a/b/out"), kSmallTree);
}

TEST(OutputFolder, does_not_remove_a_parent_that_someone_uses_meanwhile) {
  const TemporaryFolder temp;
  {
    const OutputFolder output(temp / "a/b/out", Existing::refuse);
    write_file(temp / "a/theirs", "x");
  }
  EXPECT_THAT(tree(temp.path()), ElementsAre("a/", "a/theirs"));
}

TEST(OutputFolder, takes_relative_paths_and_trailing_slashes) {
  const TemporaryFolder temp;
  const fs::path before = fs::current_path();
  fs::current_path(temp.path());
  const std::optional<Error> error = error_of([&] {
    build_small("relative/", Existing::refuse);
    build_small("./x/../relative/../other//", Existing::refuse);
  });
  fs::current_path(before);
  ASSERT_FALSE(error.has_value()) << error->what();
  EXPECT_EQ(tree(temp / "relative"), kSmallTree);
  EXPECT_EQ(tree(temp / "other"), kSmallTree);
}

TEST(OutputFolder, follows_a_link_and_leaves_it_a_link) {
  const TemporaryFolder temp;
  make_old_model(temp / "real/model");
  fs::create_directory_symlink("real/model", temp / "link");
  build_small(temp / "link", Existing::replace);
  EXPECT_TRUE(fs::is_symlink(temp / "link"));
  EXPECT_EQ(tree(temp / "real/model"), kSmallTree);
  EXPECT_EQ(tree(temp / "real").size(), kSmallTree.size() + 1);
}

TEST(OutputFolder, refuses_a_link_to_nothing) {
  const TemporaryFolder temp;
  fs::create_directory_symlink("nowhere", temp / "link");
  EXPECT_WEFT_ERROR(OutputFolder(temp / "link", Existing::replace), invalid_argument, "is a link to something that does not exist");
  EXPECT_THAT(tree(temp.path()), ElementsAre("link"));
}

TEST(OutputFolder, never_follows_links_inside_what_it_replaces) {
  const TemporaryFolder temp;
  write_file(temp / "precious/file", "keep");
  make_old_model(temp / "out");
  fs::create_directory_symlink(temp / "precious", temp / "out/link");
  build_small(temp / "out", Existing::replace);
  EXPECT_EQ(read_file(temp / "precious/file"), "keep");
}

TEST(OutputFolder, does_not_let_a_second_job_write_the_same_output) {
  const TemporaryFolder temp;
  OutputFolder output(temp / "out", Existing::refuse);
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out", Existing::refuse), io, "another job is writing");
  EXPECT_WEFT_ERROR(OutputFolder(temp / "x/../out/", Existing::replace), io, "another job is writing");
  write_small(output, 8);  // the second has not disturbed the first
  output.commit();
  EXPECT_TRUE(fs::exists(temp / "out/model.safetensors.index.json"));
}

TEST(OutputFolder, two_outputs_beside_each_other_do_not_meet) {
  const TemporaryFolder temp;
  OutputFolder a(temp / "a", Existing::refuse), b(temp / "b", Existing::refuse);
  write_small(a, 0);
  write_small(b, 0);
  a.commit();
  b.commit();
  EXPECT_THAT(tree(temp.path()), ElementsAre("a/", "a/model.safetensors", "b/", "b/model.safetensors"));
}

TEST(OutputFolder, removes_what_a_killed_job_left_and_starts_anew) {
  const TemporaryFolder temp;
  fs::path working;
  { working = OutputFolder(temp / "out", Existing::refuse).working_folder().parent_path(); }
  write_file(working / "lock", "");
  write_file(working / "new/model.safetensors", "half");
  write_file(working / "new/config.json", "half");
  build_small(temp / "out", Existing::refuse);
  EXPECT_EQ(tree(temp.path()).size(), kSmallTree.size() + 1);
}

TEST(OutputFolder, is_not_disturbed_by_what_a_job_killed_while_writing_left) {
  const TemporaryFolder temp;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    OutputFolder output(temp / "out", Existing::refuse);
    output.create_files(plan_safetensors(small_specs(), 8, {}));
    output.write_tensor(0, 0, std::as_bytes(std::span(kBf16)));
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(temp / "out"));
  EXPECT_THAT(tree(temp.path()), ::testing::Contains(::testing::EndsWith("/new/model-00001-of-00002.safetensors")));
  build_small(temp / "out", Existing::refuse);
  EXPECT_EQ(tree(temp / "out"), kSmallTree);
  EXPECT_EQ(tree(temp.path()).size(), kSmallTree.size() + 1);
}

TEST(OutputFolder, says_that_the_place_is_not_writable) {
  const TemporaryFolder temp;
  fs::create_directory(temp / "theirs");
  fs::permissions(temp.path(), fs::perms::all);
  fs::permissions(temp / "theirs", fs::perms(0555));
  const testing::Unprivileged user;
  if (!user.active()) GTEST_SKIP() << "this process cannot give up its privileges";
  EXPECT_WEFT_ERROR(OutputFolder(temp / "theirs/out", Existing::refuse), io, "permission denied");
  EXPECT_WEFT_ERROR(OutputFolder(temp / "theirs/p/out", Existing::refuse), io, "permission denied");
  EXPECT_THAT(tree(temp.path()), ElementsAre("theirs/"));
}

TEST(OutputFolder, does_not_take_a_folder_of_someone_else_for_a_leftover) {
  const TemporaryFolder temp;
  fs::path working;
  { working = OutputFolder(temp / "out", Existing::refuse).working_folder().parent_path(); }
  write_file(working / "diary", "x");  // no lock: no job of ours has made this
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out", Existing::refuse), invalid_argument, "is in the way");
  EXPECT_EQ(read_file(working / "diary"), "x");
  fs::remove_all(working);
  write_file(working, "a file");
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out", Existing::refuse), invalid_argument, "is in the way");
  fs::remove(working);
  write_file(temp / "elsewhere/lock", "");
  fs::create_directory_symlink("elsewhere", working);
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out", Existing::refuse), invalid_argument, "is in the way");
}

TEST(OutputFolder, of_many_jobs_at_once_exactly_one_wins_at_a_time) {
  const TemporaryFolder temp;
  std::atomic<int> committed = 0, refused = 0, holding = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        try {
          OutputFolder output(temp / "out", Existing::replace);
          EXPECT_EQ(holding.fetch_add(1), 0);
          write_small(output, 0);
          output.write_text("config.json", "{}");
          holding.fetch_sub(1);
          output.commit();
          ++committed;
        } catch (const Error& e) {
          EXPECT_EQ(e.code(), ErrorCode::io) << e.what();
          EXPECT_THAT(e.what(), HasSubstr("another job is writing"));
          ++refused;
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(committed, 1);
  EXPECT_EQ(committed + refused, 160);
  EXPECT_THAT(tree(temp.path()), ElementsAre("out/", "out/config.json", "out/model.safetensors"));
}

TEST(OutputFolder, fails_when_the_destination_appears_while_it_works) {
  const TemporaryFolder temp;
  {
    OutputFolder output(temp / "out", Existing::refuse);
    write_small(output, 0);
    write_file(temp / "out/theirs", "x");
    EXPECT_WEFT_ERROR(output.commit(), io, "the folder is not empty");
  }
  EXPECT_THAT(tree(temp.path()), ElementsAre("out/", "out/theirs"));
}

TEST(OutputFolder, replaces_even_when_the_old_one_went_away_meanwhile) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  OutputFolder output(temp / "out", Existing::replace);
  write_small(output, 0);
  fs::remove_all(temp / "out");
  output.commit();
  EXPECT_THAT(tree(temp.path()), ElementsAre("out/", "out/model.safetensors"));
}

// ---- space ----

class LittleSpace : public SystemCalls {
 public:
  std::int64_t free_bytes(const char*) override { return 100; }
};

TEST(OutputFolder, says_how_much_space_is_needed_and_how_much_is_free_before_writing) {
  const TemporaryFolder temp;
  LittleSpace calls;
  const ScopedSystemCalls scoped(calls);
  {
    OutputFolder output(temp / "out", Existing::refuse);
    EXPECT_WEFT_ERROR(output.create_files(plan_safetensors(small_specs(), 0, {})), no_space,
                      "needs 164 B (164 bytes), but 100 B (100 bytes) are free");
  }
  EXPECT_THAT(tree(temp.path()), IsEmpty());
}

TEST(OutputFolder, says_how_much_the_whole_output_needs_when_the_disk_fills_up) {
  const TemporaryFolder temp;
  FaultCalls calls({.call = 1, .error = EDQUOT, .for_good = true, .applies = [](const std::string& name) { return name == "pwrite"; }});
  const ScopedSystemCalls scoped(calls);
  OutputFolder output(temp / "out", Existing::refuse);
  output.create_files(plan_safetensors(small_specs(), 0, {}));
  EXPECT_WEFT_ERROR(output.write_tensor(0, 0, std::as_bytes(std::span(kBf16))), no_space, "needs 164 B (164 bytes) in all");
  EXPECT_WEFT_ERROR(output.write_tensor(0, 0, std::as_bytes(std::span(kBf16))), no_space, "in tensor a");
}

class NoExchange : public SystemCalls {
 public:
  int exchange(const char*, const char*) override {
    errno = EINVAL;
    return -1;
  }
};

TEST(OutputFolder, refuses_to_replace_before_any_work_where_the_file_system_cannot_exchange) {
  const TemporaryFolder temp;
  make_old_model(temp / "out");
  const std::vector<std::string> before = tree(temp.path());
  NoExchange calls;
  const ScopedSystemCalls scoped(calls);
  EXPECT_WEFT_ERROR(OutputFolder(temp / "out", Existing::replace), unsupported, "cannot exchange two folders");
  EXPECT_EQ(tree(temp.path()), before);
  build_small(temp / "new", Existing::replace);  // nothing to exchange there
}

class EverythingIsMounted : public SystemCalls {
 public:
  int is_mount_point(const char*) override { return 1; }
};

TEST(OutputFolder, fills_an_empty_mount_point_from_inside) {
  const TemporaryFolder temp;
  fs::create_directory(temp / "volume");
  EverythingIsMounted calls;
  const ScopedSystemCalls scoped(calls);
  {
    OutputFolder output(temp / "volume", Existing::refuse);
    EXPECT_EQ(output.working_folder().parent_path().parent_path(), temp / "volume");
    EXPECT_WEFT_ERROR(OutputFolder(temp / "volume", Existing::refuse), io, "another job is writing");
  }
  EXPECT_THAT(tree(temp.path()), ElementsAre("volume/"));
  build_small(temp / "volume", Existing::refuse);
  EXPECT_EQ(tree(temp / "volume"), kSmallTree);
  EXPECT_WEFT_ERROR(OutputFolder(temp / "volume", Existing::replace), invalid_argument, "is a mount point");
  build_small(temp / "volume", Existing::write_into);
  EXPECT_EQ(tree(temp / "volume"), kSmallTree);
}

// ---- a single file ----

void build_file(const fs::path& destination, Existing existing) {
  OutputFile output(destination, existing);
  write_small(output, 0);
  output.commit();
}

TEST(OutputFile, writes_the_reference_file_alone) {
  const TemporaryFolder temp;
  build_file(temp / "a/b.safetensors", Existing::refuse);
  EXPECT_THAT(tree(temp.path()), ElementsAre("a/", "a/b.safetensors"));
  EXPECT_EQ(read_file(temp / "a/b.safetensors"), kReference);
}

TEST(OutputFile, leaves_nothing_when_it_is_not_committed) {
  const TemporaryFolder temp;
  {
    OutputFile output(temp / "a/b.safetensors", Existing::refuse);
    write_small(output, 0);
  }
  EXPECT_THAT(tree(temp.path()), IsEmpty());
}

TEST(OutputFile, refuses_an_existing_file_and_replaces_it_when_forced) {
  const TemporaryFolder temp;
  write_file(temp / "b.safetensors", "old");
  EXPECT_WEFT_ERROR(OutputFile(temp / "b.safetensors", Existing::refuse), invalid_argument, "exists already");
  EXPECT_EQ(read_file(temp / "b.safetensors"), "old");
  build_file(temp / "b.safetensors", Existing::replace);
  EXPECT_EQ(read_file(temp / "b.safetensors"), kReference);
  EXPECT_THAT(tree(temp.path()), ElementsAre("b.safetensors"));
}

TEST(OutputFile, does_not_overwrite_a_file_that_appears_while_it_works) {
  const TemporaryFolder temp;
  OutputFile output(temp / "b.safetensors", Existing::refuse);
  write_small(output, 0);
  write_file(temp / "b.safetensors", "theirs");
  EXPECT_WEFT_ERROR(output.commit(), invalid_argument, "exists already");
  EXPECT_EQ(read_file(temp / "b.safetensors"), "theirs");
}

TEST(OutputFile, refuses_a_folder_in_its_place) {
  const TemporaryFolder temp;
  EXPECT_WEFT_ERROR(OutputFile(temp.path(), Existing::replace), invalid_argument, "is a folder, but the output is a single file");
}

TEST(OutputFile, leaves_an_open_old_file_readable) {
  const TemporaryFolder temp;
  write_file(temp / "b.safetensors", "old bytes");
  const File old(temp / "b.safetensors", FileMode::read);
  build_file(temp / "b.safetensors", Existing::replace);
  std::string content(9, '\0');
  old.read(0, std::as_writable_bytes(std::span(content)));
  EXPECT_EQ(content, "old bytes");
}

// ---- faults ----

struct Scenario {
  const char* name;
  std::function<void(const fs::path& temp)> prepare;
  std::function<void(const fs::path& temp)> work;
  std::function<bool(const fs::path& temp)> complete;
};

/// Contents of every file, so that "as before" means every byte.
std::vector<std::string> snapshot(const fs::path& folder) {
  std::vector<std::string> result = tree(folder);
  for (std::string& name : result)
    if (name.back() != '/') name += ": " + read_file(folder / name);
  return result;
}

std::vector<Scenario> scenarios() {
  const auto folder_complete = [](const char* name) {
    return [name](const fs::path& temp) {
      return fs::exists(temp / name) && tree(temp / name) == kSmallTree && read_file(temp / name / "config.json") == "{\"new\":1}\n" &&
             read_file(temp / name / "model-00001-of-00002.safetensors").ends_with(kBf16);
    };
  };
  const auto file_complete = [](const fs::path& temp) {
    return fs::exists(temp / "b.safetensors") && read_file(temp / "b.safetensors") == kReference;
  };
  return {
      {"new folder", [](const fs::path&) {}, [](const fs::path& temp) { build_small(temp / "out", Existing::refuse); }, folder_complete("out")},
      {"new folder with parents", [](const fs::path&) {}, [](const fs::path& temp) { build_small(temp / "p/q/out", Existing::refuse); },
       folder_complete("p/q/out")},
      {"empty folder", [](const fs::path& temp) { fs::create_directory(temp / "out"); },
       [](const fs::path& temp) { build_small(temp / "out", Existing::refuse); }, folder_complete("out")},
      {"replaced folder", [](const fs::path& temp) { make_old_model(temp / "out"); },
       [](const fs::path& temp) { build_small(temp / "out", Existing::replace); }, folder_complete("out")},
      {"new file", [](const fs::path&) {}, [](const fs::path& temp) { build_file(temp / "b.safetensors", Existing::refuse); }, file_complete},
      {"replaced file", [](const fs::path& temp) { write_file(temp / "b.safetensors", "old"); },
       [](const fs::path& temp) { build_file(temp / "b.safetensors", Existing::replace); }, file_complete},
  };
}

/// The errors that a call can really return.
bool possible(const std::string& call, int error) {
  if (error == EINTR)
    return call == "open" || call == "close" || call == "pread" || call == "pwrite" || call == "fallocate" || call == "flock" || call == "fsync";
  if (error == EIO) return call != "flock";
  return call == "open" || call == "pwrite" || call == "fallocate" || call == "mkdir" || call == "rename" || call == "rename_new" ||
         call == "exchange" || call == "fsync" || call == "close";  // ENOSPC, EDQUOT
}

void expect_every_fault_is_survived(int error, bool for_good) {
  for (const Scenario& scenario : scenarios()) {
    for (std::uint64_t n = 1;; ++n) {
      ASSERT_LT(n, 2000u) << "the job never succeeds";
      const TemporaryFolder temp;
      scenario.prepare(temp.path());
      const std::vector<std::string> before = snapshot(temp.path());
      FaultCalls calls(
          {.call = n, .error = error, .for_good = for_good, .applies = [error](const std::string& name) { return possible(name, error); }});
      std::optional<Error> thrown;
      {
        const ScopedSystemCalls scoped(calls);
        thrown = error_of([&] { scenario.work(temp.path()); });
      }
      const std::string where =
          std::string(scenario.name) + ", call " + std::to_string(n) + " (" + calls.failed_call() + "): " + (thrown ? thrown->what() : "no error");
      const bool complete = scenario.complete(temp.path());
      const std::vector<std::string> after = snapshot(temp.path());
      // A file system on which nothing can be removed or looked at any more keeps what is there; everything else must be tidied up.
      const std::string failed = calls.failed_call();
      const bool cannot_tidy = for_good && (failed == "unlink" || failed == "rmdir" || failed == "list" || failed == "lstat" || failed == "stat");
      if (!cannot_tidy) {
        EXPECT_THAT(after, Not(::testing::Contains(HasSubstr(".weft-")))) << where;
        EXPECT_TRUE(complete || after == before) << where << "\n" << ::testing::PrintToString(after);
      }
      if (thrown) {
        EXPECT_TRUE(error == EINTR || error == EIO ? thrown->code() == ErrorCode::io : thrown->code() == ErrorCode::no_space) << where;
        EXPECT_EQ(thrown->system_error(), error) << where;
        EXPECT_THAT(thrown->what(), HasSubstr(temp.path().native())) << where;
        EXPECT_THAT(thrown->what(), AnyOf(HasSubstr("input/output error"), HasSubstr("no space left"), HasSubstr("quota"), HasSubstr("interrupted")))
            << where;
      } else {
        EXPECT_TRUE(complete) << where;
      }
      if (failed.empty()) {
        EXPECT_FALSE(thrown.has_value()) << where;
        break;
      }
    }
  }
}

TEST(OutputFaults, a_call_that_fails_once_with_EIO_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EIO, false); }
TEST(OutputFaults, a_call_that_fails_for_good_with_EIO_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EIO, true); }
TEST(OutputFaults, a_disk_that_is_full_once_leaves_the_old_or_the_new) { expect_every_fault_is_survived(ENOSPC, false); }
TEST(OutputFaults, a_disk_that_is_full_for_good_leaves_the_old_or_the_new) { expect_every_fault_is_survived(ENOSPC, true); }
TEST(OutputFaults, a_quota_used_up_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EDQUOT, true); }
TEST(OutputFaults, an_interrupted_call_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EINTR, false); }
TEST(OutputFaults, a_call_that_is_interrupted_for_ever_ends_in_an_error) { expect_every_fault_is_survived(EINTR, true); }

TEST(OutputFaults, short_writes_and_reads_change_no_byte) {
  const TemporaryFolder temp;
  write_file(temp / "source", std::string(5000, 's'));
  FaultCalls calls({.shorten = true});
  const ScopedSystemCalls scoped(calls);
  OutputFolder output(temp / "out", Existing::refuse);
  write_small(output, 0);
  output.copy_file(temp / "source", "copy");
  output.commit();
  EXPECT_EQ(read_file(temp / "out/model.safetensors"), kReference);
  EXPECT_EQ(read_file(temp / "out/copy"), std::string(5000, 's'));
}

TEST(OutputFaults, every_file_is_synced_once_before_it_is_put_in_place_and_its_folder_after) {
  const TemporaryFolder temp;
  FaultCalls calls({});
  {
    const ScopedSystemCalls scoped(calls);
    build_small(temp / "p/out", Existing::refuse);
  }
  int before = 0, after = 0;
  bool placed = false;
  for (const std::string& call : calls.log()) {
    placed = placed || call.starts_with("rename ");
    if (call.starts_with("fsync")) ++(placed ? after : before);
  }
  // Five files, the folder and its subfolder, and the folder that now has an entry for the new parent; then the parent.
  EXPECT_EQ(before, 8);
  EXPECT_EQ(after, 1);
}

}  // namespace
}  // namespace weft
