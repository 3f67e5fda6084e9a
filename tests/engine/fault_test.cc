// Jobs on machines that fail: calls that go wrong, processes that die, power that goes, limits of the system. Whatever happens, the destination is as
// it was before or complete, and what is left over can be gone on with.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "engine/output_job.h"
#include "support/command.h"
#include "support/errors.h"
#include "support/fault_calls.h"
#include "support/memory_checkpoint.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "support/unprivileged.h"
#include "weft/inspect.h"
#include "weft/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::Contains;
using testing::error_of;
using testing::Fault;
using testing::FaultCalls;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::read_file;
using testing::tree;
using testing::write_file;

using Contents = std::map<std::string, std::string>;

Contents contents(const fs::path& folder) {
  Contents all;
  if (!fs::exists(folder)) return all;
  for (const std::string& name : tree(folder)) all[name] = name.back() == '/' ? "" : read_file(folder / name);
  return all;
}

void write_model(const fs::path& folder, std::uint64_t seed, std::size_t rows = 16) {
  std::vector<testing::StoredTensor> tensors;
  for (const char* name : {"a.weight", "b.weight", "c.weight"})
    tensors.push_back({name, "F32", {static_cast<std::int64_t>(rows), 16}, testing::bytes_of(testing::random_values(rows * 16, seed++))});
  fs::create_directories(folder);
  write_file(folder / "model.safetensors", testing::safetensors_of_types(tensors));
  write_file(folder / "config.json", "{\"architectures\": [\"Unknown\"]}");
}

/// A job in a folder that holds the models `x` and `y`; it makes `out` (or `out.safetensors`).
struct Scenario {
  const char* name;
  std::function<void(const fs::path& temp)> run;
  bool single_file = false;
  bool replaces = false;  ///< there is an old output, which is replaced
};

template <typename Options>
Options options_of(std::uint64_t shard_bytes, bool force) {
  Options options;
  options.threads = 1;
  options.max_shard_bytes = shard_bytes;
  options.journal_bytes = 1;  // every finished tensor at once
  options.force = force;
  return options;
}

Scenario merging(const char* name, const char* method, std::uint64_t shard_bytes, bool force = false) {
  return {name,
          [method = std::string(method), shard_bytes, force](const fs::path& temp) {
            MergeOptions options = options_of<MergeOptions>(shard_bytes, force);
            options.write_model_card = false;
            (void)merge_models("merge_method: " + method + "\nbase_model: " + (temp / "x").string() + "\nmodels: [{model: " + (temp / "x").string() +
                                   "}, {model: " + (temp / "y").string() + "}]\nparameters: {weight: 0.5, density: 0.5, t: 0.3}\n",
                               "config.yml", temp / "out", options);
          },
          false, force};
}

Scenario converting(const char* name, std::uint64_t shard_bytes, bool single_file, bool force = false) {
  return {name,
          [=](const fs::path& temp) {
            ConvertOptions options = options_of<ConvertOptions>(shard_bytes, force);
            options.dtype = DType::bf16;
            (void)convert((temp / "x").string(), temp / (single_file ? "out.safetensors" : "out"), options);
          },
          single_file, force};
}

/// Of both models the difference of each tensor and itself backwards, which takes the tensors whole.
class WholeMethod final : public merge::TensorMerge {
 public:
  [[nodiscard]] merge::Tiling tiling() const override { return {merge::Tiling::Unit::whole}; }
  void map(const merge::Tile& tile, std::span<float> out) const override {
    for (std::size_t i = 0; i < tile.count; ++i) out[i] = tile.inputs[0][i] - tile.inputs[1][tile.count - 1 - i];
  }
};

Scenario whole(const char* name, std::uint64_t shard_bytes) {
  return {name, [=](const fs::path& temp) {
            const auto x = open_checkpoint((temp / "x").string()), y = open_checkpoint((temp / "y").string());
            engine::OutputJob job;
            job.inputs = {x, y};
            job.input_paths = {temp / "x", temp / "y"};
            job.ingredients = {{"the test", "whole"}};
            for (const TensorInfo& info : x->tensors()) {
              engine::StreamTensor& tensor = job.tensors.emplace_back();
              tensor.name = info.name;
              tensor.shape = info.shape;
              tensor.inputs = {{x, &info}, {y, &y->tensor(info.name)}};
              tensor.merge = std::make_unique<WholeMethod>();
              PlannedTensor& described = job.described.emplace_back();
              described.name = info.name;
              described.shape = info.shape;
            }
            const JobOptions options = options_of<JobOptions>(shard_bytes, false);
            engine::JobBatch batch(options, "testing");
            batch.add(std::move(job), temp / "out");
            (void)batch.run();
          }};
}

std::vector<Scenario> scenarios() {
  return {converting("convert to a file", 0, true),
          converting("convert over a file", 0, true, true),
          converting("convert to shards", 1000, false),
          merging("a map to one file", "linear", 0),
          merging("a map to shards over an old model", "linear", 2000, true),
          merging("a reduction to shards", "ties", 2000),
          whole("whole tensors to shards", 2000)};
}

void prepare(const Scenario& scenario, const fs::path& temp) {
  write_model(temp / "x", 1);
  write_model(temp / "y", 11);
  if (!scenario.replaces) return;
  if (scenario.single_file) {
    write_file(temp / "out.safetensors", "old");
  } else {
    write_file(temp / "out/config.json", "{\"old\": 1}");
    write_file(temp / "out/model.safetensors", "old");
  }
}

/// The destination alone: of a single file it and its checksums.
Contents destination_of(const Scenario& scenario, const fs::path& temp) {
  if (!scenario.single_file) return contents(temp / "out");
  Contents all;
  for (const char* name : {"out.safetensors", "out.safetensors.checksums"})
    if (fs::exists(temp / name)) all[name] = read_file(temp / name);
  return all;
}

/// Old, or new. Of a single file the checksums may be missing for a moment, but are never those of another.
bool is_old_or_new(const Scenario& scenario, const Contents& now, const Contents& before, const Contents& complete) {
  if (now == before || now == complete) return true;
  if (!scenario.single_file || now.size() != 1) return false;
  const auto& [name, bytes] = *now.begin();
  return complete.contains(name) && (complete.at(name) == bytes || (before.contains(name) && before.at(name) == bytes));
}

/// Empty, and always the same: outputs tell the paths of what they were made from.
class Place {
 public:
  Place() : path_(root() / "t") {
    fs::remove_all(path_);
    fs::create_directory(path_);
  }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  static const fs::path& root() {
    static const testing::TemporaryFolder folder(testing::memory_folder());
    return folder.path();
  }
  fs::path path_;
};

Contents complete_of(const Scenario& scenario) {
  const Place temp;
  prepare(scenario, temp.path());
  scenario.run(temp.path());
  return destination_of(scenario, temp.path());
}

std::vector<std::string> leftovers(const fs::path& temp) {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(temp))
    if (entry.path().filename().string().starts_with(".")) found.push_back(entry.path().filename().string());
  return found;
}

/// Running the job to its end, without faults: it goes on, or the output is there already, and nothing is left over.
void expect_can_be_finished(const Scenario& scenario, const fs::path& temp, const Contents& complete, const std::string& where) {
  const std::optional<Error> error = error_of([&] { scenario.run(temp); });
  if (error) {
    EXPECT_THAT(error->what(), HasSubstr("exists")) << where;
  }
  const Contents now = destination_of(scenario, temp);
  if (error && scenario.single_file) {
    EXPECT_TRUE(is_old_or_new(scenario, now, {}, complete)) << where;  // its checksums may be missing
  } else {
    EXPECT_TRUE(now == complete) << where;
  }
  EXPECT_THAT(leftovers(temp), IsEmpty()) << where;
}

// ---- calls that fail ----

/// The errors that a call can really return.
bool possible(const std::string& call, int error) {
  if (error == EINTR)
    return call == "open" || call == "close" || call == "pread" || call == "pwrite" || call == "fallocate" || call == "flock" || call == "fsync";
  if (error == EIO) return call != "flock" && call != "fadvise" && call != "sync_file_range";
  return call == "open" || call == "pwrite" || call == "fallocate" || call == "mkdir" || call == "rename" || call == "rename_new" ||
         call == "exchange" || call == "fsync" || call == "close";  // ENOSPC, EDQUOT
}

void expect_every_fault_is_survived(int error, bool for_good) {
  for (const Scenario& scenario : scenarios()) {
    const Contents complete = complete_of(scenario);
    for (std::uint64_t n = 1;; ++n) {
      ASSERT_LT(n, 2000u) << "the job never succeeds";
      const Place temp;
      prepare(scenario, temp.path());
      const Contents before = destination_of(scenario, temp.path());
      FaultCalls calls(
          {.call = n, .error = error, .for_good = for_good, .applies = [error](const std::string& name) { return possible(name, error); }});
      std::optional<Error> thrown;
      {
        const ScopedSystemCalls scoped(calls);
        thrown = error_of([&] { scenario.run(temp.path()); });
      }
      const std::string failed = calls.failed_call();
      const std::string where =
          std::string(scenario.name) + ", call " + std::to_string(n) + " (" + failed + "): " + (thrown ? thrown->what() : "no error");
      EXPECT_TRUE(is_old_or_new(scenario, destination_of(scenario, temp.path()), before, complete)) << where;
      // A file system on which nothing can be removed or looked at any more keeps what is there.
      const bool cannot_tidy =
          for_good && (failed == "unlink" || failed == "rmdir" || failed == "list" || failed == "lstat" || failed == "stat" || failed == "flock");
      if (thrown) {
        EXPECT_THAT(thrown->what(), HasSubstr(temp.path().native())) << where;
        // What is left over can be gone on with and is named; a wrong request leaves nothing.
        for (const std::string& name : leftovers(temp.path())) {
          if (cannot_tidy) continue;
          EXPECT_EQ(thrown->exit_status(), 1) << where;
          EXPECT_THAT(thrown->what(), HasSubstr(name)) << where;
        }
      } else if (!cannot_tidy) {
        EXPECT_THAT(leftovers(temp.path()), IsEmpty()) << where;
      }
      if (thrown && !cannot_tidy && n % 3 == 0) expect_can_be_finished(scenario, temp.path(), complete, where);
      if (failed.empty()) {
        EXPECT_FALSE(thrown.has_value()) << where;
        break;
      }
    }
  }
}

TEST(JobFaults, a_call_that_fails_once_with_EIO_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EIO, false); }
TEST(JobFaults, a_call_that_fails_for_good_with_EIO_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EIO, true); }
TEST(JobFaults, a_disk_that_is_full_once_leaves_the_old_or_the_new) { expect_every_fault_is_survived(ENOSPC, false); }
TEST(JobFaults, a_disk_that_is_full_for_good_leaves_the_old_or_the_new) { expect_every_fault_is_survived(ENOSPC, true); }
TEST(JobFaults, a_quota_used_up_once_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EDQUOT, false); }
TEST(JobFaults, a_quota_used_up_for_good_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EDQUOT, true); }
TEST(JobFaults, an_interrupted_call_leaves_the_old_or_the_new) { expect_every_fault_is_survived(EINTR, false); }
TEST(JobFaults, a_call_that_is_interrupted_for_ever_ends_in_an_error) { expect_every_fault_is_survived(EINTR, true); }

TEST(JobFaults, short_reads_and_writes_change_no_byte) {
  for (const Scenario& scenario : scenarios()) {
    const Contents complete = complete_of(scenario);
    const Place temp;
    prepare(scenario, temp.path());
    FaultCalls calls({.shorten = true});
    const ScopedSystemCalls scoped(calls);
    scenario.run(temp.path());
    EXPECT_TRUE(destination_of(scenario, temp.path()) == complete) << scenario.name;
  }
}

// ---- processes that die ----

/// Ends the process, as a SIGKILL from outside would, before the n-th call that changes something.
class KillCalls : public SystemCalls {
 public:
  explicit KillCalls(std::uint64_t n) : left_(n) {}
  int open(const char* path, int flags, unsigned mode) override {
    if ((flags & O_CREAT) != 0) step();
    return SystemCalls::open(path, flags, mode);
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override { return step(), SystemCalls::pwrite(fd, data, size, offset); }
  int fsync(int fd) override { return step(), SystemCalls::fsync(fd); }
  int fallocate(int fd, off_t offset, off_t size) override { return step(), SystemCalls::fallocate(fd, offset, size); }
  int rename(const char* from, const char* to) override { return step(), SystemCalls::rename(from, to); }
  int rename_new(const char* from, const char* to) override { return step(), SystemCalls::rename_new(from, to); }
  int exchange(const char* a, const char* b) override { return step(), SystemCalls::exchange(a, b); }
  int unlink(const char* path) override { return step(), SystemCalls::unlink(path); }
  int rmdir(const char* path) override { return step(), SystemCalls::rmdir(path); }
  int mkdir(const char* path, unsigned mode) override { return step(), SystemCalls::mkdir(path, mode); }
  int is_in_memory(int) override { return 0; }

 private:
  void step() {
    if (--left_ == 0) ::kill(::getpid(), SIGKILL);
  }
  std::atomic<std::uint64_t> left_;
};

/// True when the job came to its end, well or not, before it was killed.
bool run_and_kill_at(const Scenario& scenario, const fs::path& temp, std::uint64_t n) {
  const pid_t child = ::fork();
  if (child == 0) {
    KillCalls calls(n);
    const ScopedSystemCalls scoped(calls);
    (void)error_of([&] { scenario.run(temp); });
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status);
}

TEST(JobKills, a_process_that_dies_at_any_step_leaves_the_old_or_the_new_and_can_be_gone_on_with) {
  for (const Scenario& scenario : scenarios()) {
    const Contents complete = complete_of(scenario);
    for (std::uint64_t n = 1;; ++n) {
      ASSERT_LT(n, 2000u);
      const Place temp;
      prepare(scenario, temp.path());
      const Contents before = destination_of(scenario, temp.path());
      const bool ended = run_and_kill_at(scenario, temp.path(), n);
      const std::string where = std::string(scenario.name) + ", step " + std::to_string(n);
      EXPECT_TRUE(is_old_or_new(scenario, destination_of(scenario, temp.path()), before, complete)) << where;
      if (ended) break;
      // The one that goes on is killed as well.
      if (n % 4 == 0) {
        (void)run_and_kill_at(scenario, temp.path(), n / 2 + 1);
        EXPECT_TRUE(is_old_or_new(scenario, destination_of(scenario, temp.path()), before, complete)) << where;
      }
      expect_can_be_finished(scenario, temp.path(), complete, where);
    }
  }
}

// ---- power that goes ----

/// Knows what a disk would hold if the power went now: of files what was there at their last fsync, of folders the names at theirs. A file system may
/// also have written names on its own accord, so there are two pictures: with names only as synced, and with all names as they are.
class PowerCalls : public SystemCalls {
 public:
  explicit PowerCalls(std::function<void()> at_step) : at_step_(std::move(at_step)) {}

  void remember_all(const fs::path& folder) {
    remember_folder(folder);
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.is_directory()) remember_folder(entry.path());
      if (entry.is_regular_file()) data_[inode(entry.path())] = read_file(entry.path());
    }
  }

  /// What would be at `path`: empty when nothing would.
  std::optional<Contents> picture(const fs::path& root, const std::string& name, bool names_as_synced) {
    const std::lock_guard lock(mutex_);
    const auto names = names_of(root, inode(root), names_as_synced);
    const auto found = names.find(name);
    if (found == names.end()) return std::nullopt;
    Contents all;
    add(all, "", root / name, found->second, names_as_synced);
    return all;
  }

  int open(const char* path, int flags, unsigned mode) override {
    const int fd = SystemCalls::open(path, flags, mode);
    if (fd >= 0) {
      const std::lock_guard lock(mutex_);
      paths_[fd] = path;
    }
    if ((flags & O_CREAT) != 0) at_step_();
    return fd;
  }
  int fsync(int fd) override {
    at_step_();
    {
      const std::lock_guard lock(mutex_);
      struct ::stat facts {};
      ::fstat(fd, &facts);
      if (S_ISDIR(facts.st_mode)) {
        remember_folder(paths_[fd]);
      } else {
        std::string bytes(static_cast<std::size_t>(facts.st_size), '\0');
        if (::pread(fd, bytes.data(), bytes.size(), 0) < 0) bytes.clear();
        data_[facts.st_ino] = bytes;
      }
    }
    at_step_();
    return 0;
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override { return after(SystemCalls::pwrite(fd, data, size, offset)); }
  int rename(const char* from, const char* to) override { return after(SystemCalls::rename(from, to)); }
  int rename_new(const char* from, const char* to) override { return after(SystemCalls::rename_new(from, to)); }
  int exchange(const char* a, const char* b) override { return after(SystemCalls::exchange(a, b)); }
  int unlink(const char* path) override { return after(SystemCalls::unlink(path)); }
  int rmdir(const char* path) override { return after(SystemCalls::rmdir(path)); }
  int mkdir(const char* path, unsigned mode) override { return after(SystemCalls::mkdir(path, mode)); }

 private:
  struct Entry {
    ino_t inode = 0;
    bool is_folder = false;
  };
  using Names = std::map<std::string, Entry>;

  template <typename T>
  T after(T result) {
    at_step_();
    return result;
  }
  static ino_t inode(const fs::path& path) {
    struct ::stat facts {};
    return ::lstat(path.c_str(), &facts) == 0 ? facts.st_ino : 0;
  }
  static Names list(const fs::path& folder) {
    Names names;
    std::error_code gone;
    for (const auto& entry : fs::directory_iterator(folder, gone)) names[entry.path().filename()] = {inode(entry.path()), entry.is_directory()};
    return names;
  }
  void remember_folder(const fs::path& folder) { names_[inode(folder)] = list(folder); }
  Names names_of(const fs::path& folder, ino_t number, bool as_synced) {
    if (!as_synced) return list(folder);
    return names_.contains(number) ? names_[number] : Names();
  }
  void add(Contents& all, const std::string& prefix, const fs::path& path, const Entry& entry, bool as_synced) {
    if (!entry.is_folder) {
      all[prefix.empty() ? path.filename().string() : prefix] = data_.contains(entry.inode) ? data_[entry.inode] : std::string("never written");
      return;
    }
    for (const auto& [name, child] : names_of(path, entry.inode, as_synced)) {
      if (child.is_folder) all[prefix + name + "/"] = "";
      add(all, prefix + name + (child.is_folder ? "/" : ""), path / name, child, as_synced);
    }
  }

  std::function<void()> at_step_;
  std::mutex mutex_;
  std::map<int, std::string> paths_;
  std::map<ino_t, std::string> data_;
  std::map<ino_t, Names> names_;
};

TEST(JobPower, a_power_failure_at_any_step_leaves_the_old_or_the_new_never_a_mixture) {
  for (const Scenario& scenario : scenarios()) {
    const Contents complete = complete_of(scenario);
    const Place temp;
    prepare(scenario, temp.path());
    const Contents before = destination_of(scenario, temp.path());
    int steps = 0;
    std::set<std::string> seen;
    PowerCalls* power = nullptr;
    std::mutex one_at_a_time;
    PowerCalls calls([&] {
      const std::lock_guard lock(one_at_a_time);
      ++steps;
      for (const bool as_synced : {true, false}) {
        Contents now;
        for (const char* name : {"out", "out.safetensors", "out.safetensors.checksums"}) {
          const std::optional<Contents> picture = power->picture(temp.path(), name, as_synced);
          if (picture) now.insert(picture->begin(), picture->end());
        }
        EXPECT_TRUE(is_old_or_new(scenario, now, before, complete))
            << scenario.name << ", step " << steps << ", " << ::testing::PrintToString(now).substr(0, 2000);
        seen.insert(now == complete ? "new" : now == before ? "old" : "between");
      }
    });
    power = &calls;
    calls.remember_all(temp.path());
    {
      const ScopedSystemCalls scoped(calls);
      scenario.run(temp.path());
    }
    EXPECT_GT(steps, 20);
    EXPECT_TRUE(seen.contains("old") && seen.contains("new")) << scenario.name;
    EXPECT_TRUE(power->picture(temp.path(), scenario.single_file ? "out.safetensors" : "out", true).has_value())
        << "what is reported as done is on the disk";
  }
}

// ---- limits of the system ----

class JobLimits : public ::testing::Test {
 protected:
  JobLimits() {
    write_model(work_ / "x", 1, 8192);  // 512 KiB a tensor
  }
  /// The command, in a process with this limit.
  testing::CommandResult weft_with(int resource, rlim_t limit, const std::vector<std::string>& arguments) const {
    std::string flag = resource == RLIMIT_FSIZE ? "--fsize=" : "--as=";
    std::vector<std::string> words = {flag + std::to_string(limit), WEFT_COMMAND};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return testing::run_program("prlimit", words);
  }
  testing::TemporaryFolder work_;
};

TEST_F(JobLimits, a_limit_on_the_size_of_files_is_an_error_that_says_so_and_leaves_nothing) {
  const testing::CommandResult result = weft_with(RLIMIT_FSIZE, 1'000'000, {"convert", work_ / "x", work_ / "out"});
  EXPECT_EQ(result.status, 1) << result.err;
  EXPECT_THAT(result.err, HasSubstr("larger than the limit"));
  EXPECT_THAT(result.err, HasSubstr("model.safetensors"));
  EXPECT_EQ(tree(work_.path()), (std::vector<std::string>{"x/", "x/config.json", "x/model.safetensors"}));
  EXPECT_EQ(weft_with(RLIMIT_FSIZE, 1'000'000, {"convert", work_ / "x", work_ / "out", "--max-shard-size", "600KB"}).status, 0);
}

TEST_F(JobLimits, a_budget_of_a_gibibyte_needs_no_more_address_space_than_it_and_half_of_that) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer takes terabytes of address space for itself";
#endif
  const std::string text = "merge_method: ties\nbase_model: " + (work_ / "x").string() + "\nmodels: [{model: " + (work_ / "y").string() +
                           "}]\nparameters: {weight: 0.5, density: 0.5}\n";
  write_model(work_ / "y", 7, 8192);
  write_file(work_ / "config.yml", text);
  // What the process takes before it has done anything: its code, its libraries, the stacks of its threads.
  rlim_t idle = 0;
  for (rlim_t limit = 32 << 20; idle == 0 && limit < (rlim_t{1} << 30); limit += 16 << 20)
    if (weft_with(RLIMIT_AS, limit, {"--version"}).status == 0) idle = limit;
  const rlim_t limit = (rlim_t{1} << 30) + idle + (rlim_t{512} << 20);
  const testing::CommandResult result = weft_with(RLIMIT_AS, limit, {"merge", work_ / "config.yml", work_ / "out", "--memory", "1GiB", "-j", "4"});
  EXPECT_EQ(result.status, 0) << result.err;
  // And where it is far too little, an error, not a crash.
  const testing::CommandResult starved =
      weft_with(RLIMIT_AS, idle + (4 << 20), {"merge", work_ / "config.yml", work_ / "out2", "--memory", "1GiB", "-j", "16"});
  EXPECT_THAT(starved.status, AnyOf(0, 1)) << starved.err;
  EXPECT_THAT(tree(work_.path()), Not(Contains(HasSubstr(".weft-"))));
}

TEST_F(JobLimits, a_file_system_that_is_too_small_is_refused_before_any_work_with_both_numbers) {
  const fs::path small = work_ / "small";
  fs::create_directory(small);
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m") != 0) GTEST_SKIP() << "nothing can be mounted here";
  const testing::CommandResult result = testing::run_weft({"convert", work_ / "x", small / "out"});
  const std::vector<std::string> left = tree(small);
  ::umount(small.c_str());
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.err, HasSubstr("needs 1.57 MB (1573"));
  EXPECT_THAT(result.err, HasSubstr("are free"));
  EXPECT_THAT(left, IsEmpty());
}

TEST_F(JobLimits, a_folder_that_cannot_be_written_to_is_named) {
  fs::create_directory(work_ / "fixed");
  fs::permissions(work_ / "fixed", fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  fs::permissions(work_.path(), fs::perms::all);
  const testing::Unprivileged user;
  if (!user.active()) GTEST_SKIP() << "this process cannot give up its privileges";
  EXPECT_WEFT_ERROR(convert((work_ / "x").string(), work_ / "fixed/out", {}), io, "fixed");
}

TEST_F(JobLimits, an_input_that_is_cut_while_it_is_read_is_an_error_that_names_it) {
  class CuttingCalls : public SystemCalls {
   public:
    explicit CuttingCalls(fs::path file) : file_(std::move(file)) {}
    ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
      if (size > 50'000 && !std::exchange(cut_, true)) fs::resize_file(file_, 700'000);
      return SystemCalls::pwrite(fd, data, size, offset);
    }

   private:
    fs::path file_;
    bool cut_ = false;
  } calls(work_ / "x/model.safetensors");
  ConvertOptions options;
  options.threads = 1;
  const ScopedSystemCalls scoped(calls);
  EXPECT_WEFT_ERROR(convert((work_ / "x").string(), work_ / "out", options), corrupt, "x/model.safetensors");
  EXPECT_EQ(tree(work_.path()), (std::vector<std::string>{"x/", "x/config.json", "x/model.safetensors"}));
}

TEST_F(JobLimits, an_input_that_is_written_to_while_it_is_read_is_refused_at_the_end) {
  class WritingCalls : public SystemCalls {
   public:
    explicit WritingCalls(fs::path file) : file_(std::move(file)) {}
    ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
      if (size > 50'000 && !std::exchange(written_, true)) {
        std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary | std::ios::ate);
        file.seekp(-4, std::ios::end);
        file.write("\0\0\0\0", 4);
      }
      return SystemCalls::pwrite(fd, data, size, offset);
    }

   private:
    fs::path file_;
    bool written_ = false;
  } calls(work_ / "x/model.safetensors");
  ConvertOptions options;
  options.threads = 1;
  const ScopedSystemCalls scoped(calls);
  EXPECT_WEFT_ERROR(convert((work_ / "x").string(), work_ / "out", options), corrupt, "input changed");
  EXPECT_FALSE(fs::exists(work_ / "out"));
}

TEST_F(JobLimits, an_input_that_is_removed_while_it_is_read_is_read_to_its_end) {
  class RemovingCalls : public SystemCalls {
   public:
    explicit RemovingCalls(fs::path file) : file_(std::move(file)) {}
    ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
      if (size > 50'000) fs::remove(file_);
      return SystemCalls::pwrite(fd, data, size, offset);
    }

   private:
    fs::path file_;
  } calls(work_ / "x/model.safetensors");
  (void)convert((work_ / "x").string(), work_ / "whole", {});
  const ScopedSystemCalls scoped(calls);
  (void)convert((work_ / "x").string(), work_ / "out", {});
  EXPECT_FALSE(fs::exists(work_ / "x/model.safetensors"));
  EXPECT_TRUE(contents(work_ / "out") == contents(work_ / "whole"));
}

TEST_F(JobLimits, a_pipe_or_a_folder_in_place_of_a_file_is_an_error_and_no_wait) {
  fs::remove(work_ / "x/model.safetensors");
  ASSERT_EQ(::mkfifo((work_ / "x/model.safetensors").c_str(), 0600), 0);
  EXPECT_WEFT_ERROR(convert((work_ / "x").string(), work_ / "out", {}), unsupported, "a pipe (FIFO)");
  fs::remove(work_ / "x/model.safetensors");
  fs::create_directory(work_ / "x/model.safetensors");
  EXPECT_WEFT_ERROR(convert((work_ / "x").string(), work_ / "out", {}), invalid_argument, "model.safetensors");
  EXPECT_FALSE(fs::exists(work_ / "out"));
}

TEST_F(JobLimits, two_jobs_side_by_side_both_finish) {
  const std::string out[2] = {work_ / "out1", work_ / "out2"};
  testing::CommandResult results[2];
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 2; ++i) threads.emplace_back([&, i] { results[i] = testing::run_weft({"convert", work_ / "x", out[i], "-j", "4"}); });
  }
  EXPECT_EQ(results[0].status, 0) << results[0].err;
  EXPECT_EQ(results[1].status, 0) << results[1].err;
  EXPECT_TRUE(contents(out[0]) == contents(out[1]));
}

}  // namespace
}  // namespace weft
