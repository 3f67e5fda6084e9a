#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "checkpoint/model_folder.h"
#include "support/errors.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::safetensors_of;
using testing::TemporaryFolder;
using testing::write_file;

const std::string kCommitA = "1111111111aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const std::string kCommitB = "1111111111bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// The variables that say where the cache is, as they were again at the end.
class HubCache : public ::testing::Test {
 protected:
  HubCache() {
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) {
      const char* value = std::getenv(name);
      before_[name] = value ? std::optional<std::string>(value) : std::nullopt;
      ::unsetenv(name);
    }
    ::setenv("HF_HUB_CACHE", hub().c_str(), 1);
  }
  ~HubCache() override {
    for (const auto& [name, value] : before_) value ? ::setenv(name.c_str(), value->c_str(), 1) : ::unsetenv(name.c_str());
  }
  [[nodiscard]] fs::path hub() const { return home_ / "hub"; }

  /// As the hub's client lays a model out: a blob for each file, and links to them.
  static void add_snapshot(const fs::path& repository, const std::string& commit, const std::string& ref = "") {
    const std::string blob = "blob-" + commit;
    write_file(repository / "blobs" / blob, safetensors_of({{"w", {static_cast<float>(commit[10])}}}));
    fs::create_directories(repository / "snapshots" / commit);
    fs::create_symlink("../../blobs/" + blob, repository / "snapshots" / commit / "model.safetensors");
    if (!ref.empty()) write_file(repository / "refs" / ref, commit);
  }

  TemporaryFolder home_;
  std::map<std::string, std::optional<std::string>> before_;
};

TEST_F(HubCache, an_id_is_found_through_its_main_ref) {
  add_snapshot(hub() / "models--org--name", kCommitA, "main");
  add_snapshot(hub() / "models--org--name", kCommitB);
  const ModelPath model = resolve_model("org/name");
  EXPECT_EQ(model.path, hub() / "models--org--name" / "snapshots" / kCommitA);
  EXPECT_EQ(model.written, "org/name");
  EXPECT_TRUE(model.from_hub_cache);
  const auto checkpoint = open_checkpoint("org/name");
  EXPECT_EQ(checkpoint->tensors().size(), 1u);
  EXPECT_EQ(checkpoint->path(), model.path);
}

TEST_F(HubCache, a_revision_is_a_ref_or_the_beginning_of_a_commit) {
  const fs::path repository = hub() / "models--org--name";
  add_snapshot(repository, kCommitA, "main");
  add_snapshot(repository, kCommitB, "refs/pr/1");
  const std::string other = "22222" + kCommitA.substr(5);
  add_snapshot(repository, other, "v1.0");
  const auto found = [&](const std::string& revision) { return resolve_model("org/name@" + revision).path.filename().string(); };
  EXPECT_EQ(found("main"), kCommitA);
  EXPECT_EQ(found("refs/pr/1"), kCommitB);
  EXPECT_EQ(found("v1.0"), other);
  EXPECT_EQ(found(kCommitB), kCommitB);
  EXPECT_EQ(found("1111111111b"), kCommitB);
  EXPECT_EQ(found("2222"), other);
  EXPECT_WEFT_ERROR(found("1111111111"), invalid_argument, "fits 2 commits");
  EXPECT_WEFT_ERROR(found("222"), not_found, "not its revision '222'");
  EXPECT_WEFT_ERROR(found("v2"), not_found, "hf download org/name --revision v2");
  EXPECT_WEFT_ERROR(found("v2"), not_found, "it has main, refs, v1.0, 111111111");
}

TEST_F(HubCache, one_snapshot_without_a_ref_is_the_one_that_is_meant) {
  add_snapshot(hub() / "models--gpt2", kCommitA);
  EXPECT_EQ(resolve_model("gpt2").path.filename(), kCommitA);
  add_snapshot(hub() / "models--gpt2", kCommitB);
  EXPECT_WEFT_ERROR(resolve_model("gpt2"), not_found, "not its revision 'main'");
}

TEST_F(HubCache, a_ref_to_a_snapshot_that_is_not_there_is_not_found) {
  write_file(hub() / "models--org--name" / "refs" / "main", kCommitA + "\n");
  EXPECT_WEFT_ERROR(resolve_model("org/name"), not_found, "hf download org/name");
  write_file(hub() / "models--org--name" / "refs" / "main", "../../../x");
  EXPECT_WEFT_ERROR(resolve_model("org/name"), corrupt, "which is no commit");
}

TEST_F(HubCache, what_is_not_in_the_cache_says_how_to_get_it) {
  EXPECT_WEFT_ERROR(resolve_model("org/name"), not_found, "'org/name' is neither a path nor a model in the Hugging Face cache");
  EXPECT_WEFT_ERROR(resolve_model("org/name"), not_found, "get it with 'hf download org/name'");
  EXPECT_WEFT_ERROR(resolve_model("org/name"), not_found, (hub() / "models--org--name").string());
}

TEST_F(HubCache, an_existing_path_always_wins) {
  add_snapshot(hub() / "models--org--name", kCommitA, "main");
  const fs::path before = fs::current_path();
  fs::current_path(home_.path());
  fs::create_directories("org/name");
  const ModelPath model = resolve_model("org/name");
  fs::current_path(before);
  EXPECT_EQ(model.path, "org/name");
  EXPECT_FALSE(model.from_hub_cache);
}

TEST_F(HubCache, the_cache_is_where_the_variables_say_the_first_of_them_first) {
  const auto cache_in_use = [] {
    const std::optional<Error> error = testing::error_of([] { (void)resolve_model("org/name"); });
    return error ? fs::path(error->place().file).parent_path() : fs::path();
  };
  ::setenv("HOME", "/h", 1);
  ::setenv("XDG_CACHE_HOME", "/x", 1);
  ::setenv("HF_HOME", "~/hf", 1);
  ::setenv("HUGGINGFACE_HUB_CACHE", "/old", 1);
  ::setenv("HF_HUB_CACHE", "/new", 1);
  EXPECT_EQ(cache_in_use(), "/new");
  ::unsetenv("HF_HUB_CACHE");
  EXPECT_EQ(cache_in_use(), "/old");
  ::setenv("HUGGINGFACE_HUB_CACHE", "", 1);
  EXPECT_EQ(cache_in_use(), "/h/hf/hub");
  ::unsetenv("HF_HOME");
  EXPECT_EQ(cache_in_use(), "/x/huggingface/hub");
  ::unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(cache_in_use(), "/h/.cache/huggingface/hub");
  const std::optional<Error> given = testing::error_of([] { (void)resolve_model("org/name", "/given"); });
  ASSERT_TRUE(given);
  EXPECT_EQ(given->place().file, "/given/models--org--name");
}

TEST_F(HubCache, names_that_are_no_ids_and_revisions_that_are_no_revisions_are_refused) {
  EXPECT_WEFT_ERROR(resolve_model(""), invalid_argument, "empty");
  EXPECT_WEFT_ERROR(resolve_model("what is this"), invalid_argument, "neither a path that exists nor a name");
  EXPECT_WEFT_ERROR(resolve_model("-x"), invalid_argument, "neither a path that exists nor a name");
  for (const char* path : {"/no/such/folder", "./x", "../x", "a/b/c", "x.safetensors", "org/x.gguf", "~/x", "org/..", "org/a--b/c"})
    EXPECT_WEFT_ERROR(resolve_model(path), not_found, "there is no file or folder");
  add_snapshot(hub() / "models--org--name", kCommitA, "main");
  for (const char* revision : {"", "../x", "a/../../b", "/etc", "a//b", ".git", "a/", "x\ny"})
    EXPECT_WEFT_ERROR(resolve_model("org/name@" + std::string(revision)), invalid_argument, "is no revision");
}

TEST_F(HubCache, links_into_the_blobs_are_inside_others_are_not) {
  const fs::path repository = hub() / "models--org--name";
  add_snapshot(repository, kCommitA, "main");
  const fs::path snapshot = repository / "snapshots" / kCommitA;
  fs::remove(snapshot / "model.safetensors");
  write_file(repository / "blobs" / "1", safetensors_of({{"a", {1}}}));
  write_file(repository / "blobs" / "2", safetensors_of({{"b", {2}}}));
  write_file(repository / "blobs" / "3", R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  write_file(repository / "blobs" / "4", "{}");
  fs::create_symlink("../../blobs/1", snapshot / "s1.safetensors");
  fs::create_symlink("../../blobs/2", snapshot / "s2.safetensors");
  fs::create_symlink("../../blobs/3", snapshot / "model.safetensors.index.json");
  fs::create_symlink("../../blobs/4", snapshot / "config.json");
  fs::create_symlink("../../../secret", snapshot / "tokenizer.json");
  write_file(hub() / "secret", "{}");
  EXPECT_EQ(open_checkpoint("org/name")->tensors().size(), 2u);
  EXPECT_THAT(companion_files(snapshot), ElementsAre("config.json"));

  fs::remove(snapshot / "s2.safetensors");
  fs::create_symlink("../../../models--other/blobs/2", snapshot / "s2.safetensors");
  write_file(hub() / "models--other" / "blobs" / "2", safetensors_of({{"b", {2}}}));
  EXPECT_WEFT_ERROR(open_checkpoint("org/name"), corrupt, "leaves the model's folder");
}

TEST_F(HubCache, of_a_model_with_an_adapter_each_is_looked_for_by_its_own_name) {
  EXPECT_WEFT_ERROR(open_checkpoint("org/name+org/adapter"), not_found, "get it with 'hf download org/name'");
}

}  // namespace
}  // namespace weft
