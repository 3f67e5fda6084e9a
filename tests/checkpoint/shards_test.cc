#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "checkpoint/model_folder.h"
#include "checkpoint/safetensors.h"
#include "support/errors.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::safetensors_of;
using testing::TemporaryFolder;
using testing::write_file;

/// A folder with a model of two shards, three tensors.
class Shards : public ::testing::Test {
 protected:
  Shards() {
    write_file(folder_ / "model-00001-of-00002.safetensors", safetensors_of({{"a", {1}}, {"b", {2, 3}}}));
    write_file(folder_ / "model-00002-of-00002.safetensors", safetensors_of({{"c", {4}}}, R"({"format":"np","only":"here"})"));
    write_index(R"("c":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors")");
  }
  void write_index(const std::string& map, const std::string& metadata = R"({"total_size":16})") {
    write_file(index(), "{\"metadata\":" + metadata + ",\"weight_map\":{" + map + "}}");
  }
  [[nodiscard]] fs::path index() const { return folder_ / "model.safetensors.index.json"; }
  [[nodiscard]] std::string path() const { return folder_.path().string(); }

  TemporaryFolder folder_;
};

std::vector<std::string> names_of(const Checkpoint& checkpoint) {
  std::vector<std::string> names;
  for (const TensorInfo& tensor : checkpoint.tensors()) names.push_back(tensor.name);
  return names;
}

float first_value(const Checkpoint& checkpoint, std::string_view name) {
  float value = 0;
  checkpoint.read_bytes(checkpoint.tensor(name), 0, std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

// ---- Index --------------------------------------------------------------------------------------------------------------------------------

TEST_F(Shards, a_folder_and_its_index_open_as_one_checkpoint_in_order_of_file_then_offset) {
  for (const std::string& model : {path(), index().string()}) {
    const auto checkpoint = open_checkpoint(model);
    EXPECT_THAT(names_of(*checkpoint), ElementsAre("a", "b", "c"));
    ASSERT_EQ(checkpoint->files().size(), 2u);
    EXPECT_EQ(checkpoint->files()[1].path, folder_ / "model-00002-of-00002.safetensors");
    EXPECT_EQ(checkpoint->tensor("c").file_index, 1u);
    EXPECT_EQ(first_value(*checkpoint, "b"), 2);
    EXPECT_EQ(first_value(*checkpoint, "c"), 4);
    EXPECT_EQ(checkpoint->metadata().at("format"), "pt") << "the first file wins";
    EXPECT_EQ(checkpoint->metadata().at("only"), "here");
    EXPECT_THAT(checkpoint->warnings(), IsEmpty());
    EXPECT_EQ(checkpoint->path(), model);
    checkpoint->check_unchanged();
  }
}

TEST_F(Shards, a_relative_path_without_a_folder_works) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_.path());
  EXPECT_EQ(open_checkpoint("model.safetensors.index.json")->tensors().size(), 3u);
  EXPECT_EQ(open_checkpoint(".")->tensors().size(), 3u);
  EXPECT_EQ(open_checkpoint("model-00001-of-00002.safetensors")->tensors().size(), 2u);
  fs::current_path(before);
}

TEST_F(Shards, names_that_are_no_plain_file_names_are_refused_before_anything_is_opened) {
  for (const char* name :
       {"../../etc/passwd", "/etc/passwd", "sub/model.safetensors", "..", ".hidden", "~/x", "", "a\\\\b", "C:x", "a\\u0000b", "a\\nb"}) {
    write_index("\"a\":\"" + std::string(name) + "\"");
    const std::optional<Error> error = testing::error_of([&] { (void)open_checkpoint(path()); });
    ASSERT_TRUE(error) << name;
    EXPECT_EQ(error->code(), ErrorCode::corrupt) << name;
    EXPECT_THAT(error->message(), HasSubstr("no plain file name")) << name;
    EXPECT_EQ(error->place().file, index());
    EXPECT_EQ(error->place().key, "a");
    EXPECT_TRUE(error->place().byte);
  }
}

TEST_F(Shards, an_index_that_contradicts_the_shards_is_refused) {
  const std::string a = R"("a":"model-00001-of-00002.safetensors")", c = R"("c":"model-00002-of-00002.safetensors")";
  write_index(a + "," + c + R"(,"d":"model-00002-of-00002.safetensors")");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), corrupt, "places tensor 'd' in 'model-00002-of-00002.safetensors', which lacks it");
  write_index(a + "," + c + R"(,"b":"model-00002-of-00002.safetensors")");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), corrupt,
                    "places tensor 'b' in 'model-00002-of-00002.safetensors', but it is in 'model-00001-of-00002.safetensors'");
  write_index(a + "," + c + R"(,"d":"model-00003-of-00002.safetensors")");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), not_found, "the shard 'model-00003-of-00002.safetensors' that the index names is missing");
  write_index(a + "," + c + "," + a);
  EXPECT_WEFT_ERROR(open_checkpoint(path()), corrupt, "tensor 'a' is listed twice");
  write_file(folder_ / "model-00002-of-00002.safetensors", safetensors_of({{"c", {4}}, {"a", {9}}}));
  write_index(a + "," + c);
  EXPECT_WEFT_ERROR(open_checkpoint(path()), corrupt,
                    "tensor 'a' is in two files, 'model-00001-of-00002.safetensors' and 'model-00002-of-00002.safetensors'");
}

TEST_F(Shards, a_damaged_shard_is_named) {
  fs::resize_file(folder_ / "model-00002-of-00002.safetensors", fs::file_size(folder_ / "model-00002-of-00002.safetensors") - 1);
  EXPECT_WEFT_ERROR(open_checkpoint(path()), corrupt, "model-00002-of-00002.safetensors");
  fs::remove(folder_ / "model-00002-of-00002.safetensors");
  ASSERT_EQ(::mkfifo((folder_ / "model-00002-of-00002.safetensors").c_str(), 0600), 0);
  EXPECT_WEFT_ERROR(open_checkpoint(path()), unsupported, "pipe");
}

TEST_F(Shards, tensors_that_the_index_does_not_list_are_read_with_a_warning) {
  write_index(R"("a":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors")");
  const auto checkpoint = open_checkpoint(path());
  EXPECT_THAT(names_of(*checkpoint), ElementsAre("a", "b", "c"));
  ASSERT_EQ(checkpoint->warnings().size(), 1u);
  EXPECT_THAT(checkpoint->warnings()[0], HasSubstr("1 of 3 tensors in the shards are not in the index, the first is 'b'"));
}

TEST_F(Shards, total_size_is_never_believed) {
  for (const char* size : {"0", "1e300", "-5", "18446744073709551615", "1.5", "\"many\"", "null", "[1]", "{}"}) {
    write_index(R"("a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors")",
                "{\"total_size\":" + std::string(size) + "}");
    EXPECT_EQ(open_checkpoint(path())->tensors().size(), 3u) << size;
  }
  EXPECT_EQ(parse_shard_index(R"({"weight_map":{},"metadata":{"total_size":16.0,"x":{"total_size":1}}})", "i").total_size, "16.0");
}

TEST(ShardIndex, what_is_no_index_is_refused) {
  struct Case {
    const char* text;
    const char* phrase;
  };
  for (const Case& c : std::vector<Case>{
           {"[]", "it is a list, not a JSON object"},
           {"1", "it is a number, not a JSON object"},
           {"{}", "no 'weight_map'"},
           {R"({"weight_map":[]})", "'weight_map' is a list, not an object"},
           {R"({"weight_map":null})", "'weight_map' is null, not an object"},
           {R"({"weight_map":"x"})", "'weight_map' is a string, not an object"},
           {R"({"weight_map":{"a":1}})", "holds a number for tensor 'a', not a file name"},
           {R"({"weight_map":{"a":{"b":"c"}}})", "holds an object for tensor 'a', not a file name"},
           {R"({"weight_map":{"a":["b"]}})", "holds a list for tensor 'a', not a file name"},
           {R"({"weight_map":{"a":"x","a":"x"}})", "tensor 'a' is listed twice"},
           {R"({"weight_map":{"a":"x"},"weight_map":{}})", "'weight_map' stands twice"},
           {R"({"weight_map":{"a":"x")", "unexpected end of input"},
           {R"({"other":{"weight_map":{"a":"x"}}})", "no 'weight_map'"},
       }) {
    EXPECT_WEFT_ERROR(parse_shard_index(c.text, "i.json"), corrupt, c.phrase);
  }
}

TEST(ShardIndex, more_than_a_million_entries_or_ten_thousand_shards_are_refused_while_reading) {
  std::string text = "{\"weight_map\":{";
  for (int i = 0; i < 1'000'001; ++i) text += "\"" + std::to_string(i) + "\":\"s\",";
  EXPECT_WEFT_ERROR(parse_shard_index(text, "i.json"), unsupported, "more than 1000000 tensors");
  text = "{\"weight_map\":{";
  for (int i = 0; i < 10'001; ++i) text += "\"" + std::to_string(i) + "\":\"s" + std::to_string(i) + "\",";
  EXPECT_WEFT_ERROR(parse_shard_index(text, "i.json"), unsupported, "more than 10000 shards");
}

// ---- Links --------------------------------------------------------------------------------------------------------------------------------

TEST_F(Shards, a_shard_that_is_a_link_may_stay_in_the_folder_but_not_leave_it) {
  const fs::path shard = folder_ / "model-00002-of-00002.safetensors";
  fs::create_directory(folder_ / "real");
  fs::rename(shard, folder_ / "real" / "x");
  fs::create_symlink("real/x", shard);
  EXPECT_EQ(open_checkpoint(path())->tensors().size(), 3u);

  const TemporaryFolder elsewhere;
  fs::rename(folder_ / "real" / "x", elsewhere / "x");
  fs::remove(shard);
  fs::create_symlink(elsewhere / "x", shard);
  EXPECT_WEFT_ERROR(open_checkpoint(path()), corrupt, "is a link that leaves the model's folder");
  fs::remove(elsewhere / "x");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), not_found, "is missing (its link leads nowhere)");
}

TEST_F(Shards, a_folder_that_is_itself_reached_through_a_link_works) {
  const TemporaryFolder elsewhere;
  fs::create_directory_symlink(folder_.path(), elsewhere / "link");
  EXPECT_EQ(open_checkpoint((elsewhere / "link").string())->tensors().size(), 3u);
}

// ---- What a folder holds ------------------------------------------------------------------------------------------------------------------

class Folder : public ::testing::Test {
 protected:
  void put(const std::string& name) { write_file(folder_ / name, name.ends_with(".safetensors") ? safetensors_of({{"w", {1}}}) : "{}"); }
  [[nodiscard]] std::string path() const { return folder_.path().string(); }
  TemporaryFolder folder_;
};

TEST_F(Folder, a_single_file_wins_over_a_stale_index_with_a_warning) {
  put("model.safetensors");
  write_file(folder_ / "model.safetensors.index.json", R"({"weight_map":{"gone":"model-00001-of-00001.safetensors"}})");
  const auto checkpoint = open_checkpoint(path());
  EXPECT_THAT(names_of(*checkpoint), ElementsAre("w"));
  ASSERT_EQ(checkpoint->warnings().size(), 1u);
  EXPECT_THAT(checkpoint->warnings()[0], HasSubstr("the single file is read and the index passed over"));
}

TEST_F(Folder, an_only_safetensors_file_is_taken_whatever_its_name) {
  for (const char* name : {"diffusion_pytorch_model.safetensors", "model.fp16.safetensors", "consolidated.safetensors", "anything.safetensors"}) {
    put(name);
    put("config.json");
    EXPECT_EQ(open_checkpoint(path())->files()[0].path, folder_ / name);
    fs::remove(folder_ / name);
  }
}

TEST_F(Folder, several_files_of_which_none_is_called_model_must_be_told_apart_by_the_user) {
  put("model.fp16.safetensors");
  put("model.bf16.safetensors");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), invalid_argument, "model.bf16.safetensors, model.fp16.safetensors");
  put("model.safetensors");
  EXPECT_EQ(open_checkpoint(path())->files()[0].path, folder_ / "model.safetensors");
}

TEST_F(Folder, an_index_with_another_stem_is_taken_when_it_is_the_only_one) {
  put("diffusion_pytorch_model-00001-of-00001.safetensors");
  write_file(folder_ / "diffusion_pytorch_model.safetensors.index.json",
             R"({"weight_map":{"w":"diffusion_pytorch_model-00001-of-00001.safetensors"}})");
  EXPECT_EQ(open_checkpoint(path())->tensors().size(), 1u);
  fs::rename(folder_ / "diffusion_pytorch_model.safetensors.index.json", folder_ / "model.safetensors.index.fp16.json");
  EXPECT_EQ(open_checkpoint(path())->tensors().size(), 1u);
}

TEST_F(Folder, folders_without_safetensors_say_what_they_hold_and_what_to_do) {
  EXPECT_WEFT_ERROR(open_checkpoint(path()), not_found, "the folder is empty");
  put("readme.md");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), not_found, "holds no weights");
  put("config.json");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), not_found, "run 'hf download' again");
  put("tf_model.h5");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), unsupported, "weights of another format ('tf_model.h5')");
  put("training_args.bin");
  put("optimizer.pt");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), unsupported, "weights of another format ('tf_model.h5')");
  put("model-00001-of-00003.safetensors");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), not_found, "no model.safetensors.index.json");
}

TEST_F(Folder, a_single_shard_without_an_index_is_no_whole_model) {
  put("model-00001-of-00003.safetensors");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), not_found, "('model-00001-of-00003.safetensors', ...) but no model.safetensors.index.json");
}

TEST_F(Folder, an_adapter_is_not_a_model) {
  put("adapter_config.json");
  put("adapter_model.safetensors");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), unsupported, "the folder holds an adapter, not a model");
  EXPECT_EQ(open_checkpoint((folder_ / "adapter_model.safetensors").string())->tensors().size(), 1u);
  put("config.json");
  put("model.safetensors");
  EXPECT_EQ(open_checkpoint(path())->files()[0].path, folder_ / "model.safetensors");
}

TEST_F(Folder, a_pipeline_of_models_asks_for_one_of_them) {
  put("model_index.json");
  fs::create_directory(folder_ / "unet");
  EXPECT_WEFT_ERROR(open_checkpoint(path()), unsupported, "name one of its subfolders");
}

TEST_F(Folder, companions_are_what_travels_with_the_weights) {
  for (const char* name :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
        "vocab.json", "merges.txt", "chat_template.jinja", "preprocessor_config.json", "LICENSE", "USE_POLICY.md", "modeling_x.py",
        "additional_chat_templates/rag.jinja",
        // and what does not:
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json", "pytorch_model.bin", "README.md", ".gitattributes",
        "trainer_state.json", "adapter_config.json", "training_args.bin", "runs/events.json", "original/params.json"})
    put(name);
  ASSERT_EQ(::mkfifo((folder_ / "pipe.json").c_str(), 0600), 0);
  const TemporaryFolder elsewhere;
  write_file(elsewhere / "secret.json", "{}");
  fs::create_symlink(elsewhere / "secret.json", folder_ / "added_tokens.json");
  fs::create_symlink("config.json", folder_ / "linked.json");
  EXPECT_THAT(companion_files(folder_.path()),
              ElementsAre("LICENSE", "USE_POLICY.md", "additional_chat_templates/rag.jinja", "chat_template.jinja", "config.json",
                          "generation_config.json", "linked.json", "merges.txt", "modeling_x.py", "preprocessor_config.json",
                          "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"));
}

}  // namespace
}  // namespace weft
