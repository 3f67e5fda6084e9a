// Runs over every row of the method table, on the trained models of the repository, through the whole engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "math/targets.h"
#include "support/method_config.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::read_all;
using testing::Tensors;

class Conformance : public ::testing::TestWithParam<MethodDescription> {
 protected:
  /// The trained models, one of them under two names, because some methods take four.
  std::vector<std::string> models() const {
    const fs::path trained = fs::path(WEFT_SOURCE_DIR) / "models";
    const fs::path again = folder_ / "tiny-german-again";
    if (!fs::exists(again)) fs::create_directory_symlink(trained / "tiny-german", again);
    return {(trained / "tiny-base").string(), (trained / "tiny-german").string(), (trained / "tiny-python").string(), again.string()};
  }

  Tensors merged(const std::string& config, const MergeOptions& options) {
    const fs::path out = folder_ / "out";
    fs::remove_all(out);
    (void)merge_models(config, "conformance.yml", out, options);
    return read_all(out);
  }

  testing::TemporaryFolder temporary_{testing::memory_folder()};
  const fs::path& folder_ = temporary_.path();
};

TEST_P(Conformance, threads_chunks_shards_and_the_memory_budget_do_not_change_a_byte) {
  const std::string config = testing::plain_config(GetParam(), models()).text;
  MergeOptions options;
  options.seed = 7;
  options.threads = 1;
  const Tensors expected = merged(config, options);
  ASSERT_FALSE(expected.empty());
  for (const int threads : {2, 3, 8}) {
    options.threads = threads;
    EXPECT_EQ(merged(config, options), expected) << threads << " threads";
  }
  options.threads = 2;
  for (const std::uint64_t chunk : {std::uint64_t{64} << 10, std::uint64_t{1} << 20, std::uint64_t{37} << 20}) {
    options.chunk_bytes = chunk;
    EXPECT_EQ(merged(config, options), expected) << "chunks of " << chunk << " bytes";
  }
  options.chunk_bytes = 0;
  options.max_shard_bytes = 800'000;
  EXPECT_EQ(merged(config, options), expected) << "in shards";
  EXPECT_TRUE(fs::exists(folder_ / "out" / "model-00005-of-00005.safetensors")) << "the shard size should give five shards";
  options.memory_bytes = 16 << 20;
  EXPECT_EQ(merged(config, options), expected) << "within 16 MiB";
}

TEST_P(Conformance, every_simd_target_of_this_machine_gives_the_same_bytes) {
  if (GetParam().determinism != "A") GTEST_SKIP() << GetParam().name << " is of class " << GetParam().determinism;
  const std::string config = testing::plain_config(GetParam(), models()).text;
  MergeOptions options;
  options.seed = 7;
  options.threads = 2;
  const Tensors expected = merged(config, options);
  for (const math::SimdTarget& target : math::compiled_targets()) {
    if (!target.supported) {
      std::cout << "skipped: this machine has no " << target.name << "\n";
      continue;
    }
    math::use_only_target(target.bit);
    EXPECT_EQ(math::active_target(), target.name);
    const Tensors got = merged(config, options);
    math::use_only_target(0);
    EXPECT_EQ(got, expected) << target.name;
  }
}

TEST_P(Conformance, a_dry_run_plans_what_a_run_writes) {
  const std::string config = testing::plain_config(GetParam(), models()).text;
  MergeOptions options;
  options.max_shard_bytes = 800'000;
  options.dry_run = true;
  const JobReport plan = merge_models(config, "conformance.yml", folder_ / "out", options);
  EXPECT_FALSE(fs::exists(folder_ / "out"));
  options.dry_run = false;
  const JobReport done = merge_models(config, "conformance.yml", folder_ / "out", options);
  EXPECT_EQ(plan.files, done.files);
  const auto checkpoint = open_checkpoint((folder_ / "out").string());
  ASSERT_EQ(plan.tensors.size(), checkpoint->tensors().size());
  for (const PlannedTensor& t : plan.tensors) {
    const TensorInfo& written = checkpoint->tensor(t.name);
    EXPECT_EQ(written.shape, t.shape) << t.name;
    EXPECT_EQ(written.dtype, t.dtype) << t.name;
    EXPECT_EQ(written.offset_bytes, t.offset_bytes) << t.name;
    EXPECT_EQ(checkpoint->files()[written.file_index].path.filename(), t.file) << t.name;
  }
}

TEST_P(Conformance, a_c_library_without_its_fast_paths_gives_the_same_bytes) {
  if (GetParam().determinism != "A") GTEST_SKIP() << GetParam().name << " is of class " << GetParam().determinism;
  const std::string config = testing::plain_config(GetParam(), models()).text;
  MergeOptions options;
  options.seed = 7;
  const Tensors expected = merged(config, options);
  // The C library chooses its functions by the CPU when a process starts, so this takes the command.
  testing::write_file(folder_ / "config.yml", config);
  const fs::path out = folder_ / "out-plain";
  const std::string command = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-FMA,-AVX2,-FMA4,-AVX512F '" WEFT_COMMAND "' merge '" + (folder_ / "config.yml").string() + "' '" +
                              out.string() + "' --seed 7 --quiet > /dev/null 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(read_all(out), expected);
}

std::string test_name(const ::testing::TestParamInfo<MethodDescription>& info) { return info.param.name; }
/// Those that run the models take a text for each and have a config of their own: they are tested in merge_by_data_test.cc.
std::vector<MethodDescription> methods_on_tensors() {
  std::vector<MethodDescription> all = list_methods("merge");
  std::erase_if(all, [](const MethodDescription& method) { return method.calibration; });
  return all;
}
INSTANTIATE_TEST_SUITE_P(EveryMethod, Conformance, ::testing::ValuesIn(methods_on_tensors()), test_name);

}  // namespace
}  // namespace weft
