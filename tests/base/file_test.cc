#include "base/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "support/errors.h"
#include "support/fault_calls.h"
#include "support/temporary_folder.h"
#include "support/unprivileged.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::FaultCalls;
using ::testing::IsEmpty;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string read_some(const File& file, std::uint64_t offset, std::size_t size) {
  std::string text(size, '?');
  text.resize(file.read_some(offset, std::as_writable_bytes(std::span(text))));
  return text;
}

auto only(const char* call) {
  return [call](const std::string& name) { return name == call; };
}

// ---- reading and writing ----

TEST(File, writes_and_reads_at_any_position) {
  const TemporaryFolder temp;
  File file(temp / "f", FileMode::create_new);
  file.write(6, bytes("world"));
  file.write(0, bytes("hello "));
  file.write(3, {});
  EXPECT_EQ(file.size_bytes(), 11u);
  EXPECT_EQ(read_some(file, 0, 100), "hello world");
  EXPECT_EQ(read_some(file, 6, 3), "wor");
  EXPECT_EQ(read_some(file, 11, 5), "");
  EXPECT_EQ(read_some(file, 500, 5), "");
  file.sync();
  file.close();
  EXPECT_FALSE(file.is_open());
  file.close();  // again is nothing
  EXPECT_EQ(read_file(temp / "f"), "hello world");
}

TEST(File, read_throws_corrupt_where_the_file_ends_before) {
  const TemporaryFolder temp;
  write_file(temp / "f", "hello");
  const File file(temp / "f", FileMode::read);
  std::string text(4, '?');
  file.read(1, std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(text, "ello");
  EXPECT_WEFT_ERROR(file.read(2, std::as_writable_bytes(std::span(text))), corrupt, "ends at byte 5, but bytes 2 to 6 are needed");
}

TEST(File, refuses_positions_that_no_file_has) {
  const TemporaryFolder temp;
  const File file(temp / "f", FileMode::create_new);
  std::string text(4, '?');
  EXPECT_WEFT_ERROR(file.read(UINT64_MAX, std::as_writable_bytes(std::span(text))), corrupt, "beyond what a file can hold");
  EXPECT_WEFT_ERROR(file.write(INT64_MAX, bytes("ab")), corrupt, "beyond what a file can hold");
  EXPECT_WEFT_ERROR(file.allocate(UINT64_MAX), corrupt, "beyond what a file can hold");
}

TEST(File, continues_short_and_interrupted_calls) {
  const TemporaryFolder temp;
  FaultCalls short_calls({.shorten = true});
  {
    const ScopedSystemCalls scoped(short_calls);
    const File file(temp / "f", FileMode::create_new);
    file.write(0, bytes("some ten bytes"));
    EXPECT_EQ(read_some(file, 0, 14), "some ten bytes");
  }
  for (const char* call : {"open", "pread", "pwrite", "fallocate", "fstat"}) {
    FaultCalls interrupted({.call = 1, .error = EINTR, .applies = only(call)});
    const ScopedSystemCalls scoped(interrupted);
    const File file(temp / call, FileMode::create_new);
    file.allocate(5);
    file.write(0, bytes("abcde"));
    EXPECT_EQ(read_some(file, 0, 5), "abcde");
    EXPECT_EQ(file.size_bytes(), 5u);
    EXPECT_EQ(interrupted.failed_call(), call);
  }
}

TEST(File, gives_up_on_a_call_that_is_always_interrupted) {
  const TemporaryFolder temp;
  FaultCalls calls({.call = 1, .error = EINTR, .for_good = true, .applies = only("pwrite")});
  const ScopedSystemCalls scoped(calls);
  const File file(temp / "f", FileMode::create_new);
  EXPECT_WEFT_ERROR(file.write(0, bytes("x")), io, "interrupted");
}

class WritesNothing : public SystemCalls {
 public:
  ssize_t pwrite(int, const void*, std::size_t, off_t) override { return 0; }
};

TEST(File, a_write_that_moves_nothing_is_an_error_and_not_a_loop) {
  const TemporaryFolder temp;
  WritesNothing calls;
  const ScopedSystemCalls scoped(calls);
  const File file(temp / "f", FileMode::create_new);
  EXPECT_WEFT_ERROR(file.write(0, bytes("x")), io, "cannot write to");
}

TEST(File, never_syncs_a_second_time_after_a_failure) {
  const TemporaryFolder temp;
  FaultCalls calls({.call = 1, .error = EIO, .applies = only("fsync")});
  const ScopedSystemCalls scoped(calls);
  const File file(temp / "f", FileMode::create_new);
  EXPECT_WEFT_ERROR(file.sync(), io, "cannot bring to the disk");
  EXPECT_EQ(calls.num_calls(), 1u);
}

TEST(File, close_tells_of_errors_and_the_destructor_does_not) {
  const TemporaryFolder temp;
  {
    FaultCalls calls({.call = 1, .error = EIO, .applies = only("close")});
    const ScopedSystemCalls scoped(calls);
    File file(temp / "f", FileMode::create_new);
    EXPECT_WEFT_ERROR(file.close(), io, "cannot close");
    EXPECT_FALSE(file.is_open()) << "a descriptor is never closed twice";
  }
  FaultCalls calls({.call = 1, .error = EIO, .applies = only("close")});
  const ScopedSystemCalls scoped(calls);
  { const File file(temp / "f", FileMode::read); }
  EXPECT_EQ(calls.failed_call(), "close");
}

TEST(File, allocate_reserves_and_passes_over_file_systems_that_cannot) {
  const TemporaryFolder temp;
  const File file(temp / "f", FileMode::create_new);
  file.allocate(10'000);
  for (const int error : {EOPNOTSUPP, ENOSYS, EINVAL}) {
    FaultCalls calls({.call = 1, .error = error, .applies = only("fallocate")});
    const ScopedSystemCalls scoped(calls);
    EXPECT_NO_THROW(file.allocate(5));
  }
  FaultCalls calls({.call = 1, .error = ENOSPC, .applies = only("fallocate")});
  const ScopedSystemCalls scoped(calls);
  EXPECT_WEFT_ERROR(file.allocate(5'000'000), no_space, "cannot reserve 5.00 MB for");
}

TEST(File, moving_leaves_the_other_closed) {
  const TemporaryFolder temp;
  File a(temp / "a", FileMode::create_new);
  File b(std::move(a));
  EXPECT_FALSE(a.is_open());  // NOLINT: the moved-from state is the claim
  EXPECT_TRUE(b.is_open());
  b = File(temp / "b", FileMode::create_new);
  EXPECT_EQ(b.path(), temp / "b");
}

TEST(File, identity_changes_with_the_file) {
  const TemporaryFolder temp;
  write_file(temp / "f", "one");
  write_file(temp / "g", "one");
  const File f(temp / "f", FileMode::read);
  const FileIdentity before = f.identity();
  EXPECT_EQ(before, File(temp / "f", FileMode::read).identity());
  EXPECT_NE(before, File(temp / "g", FileMode::read).identity());
  write_file(temp / "f", "longer");
  EXPECT_NE(before, f.identity());
}

TEST(File, hints_never_fail) {
  const TemporaryFolder temp;
  const File file(temp / "f", FileMode::create_new);
  file.will_read(0, UINT64_MAX);
  file.start_writeback(UINT64_MAX, 1);
}

// ---- what is no file ----

TEST(File, missing_says_not_found) {
  const TemporaryFolder temp;
  EXPECT_WEFT_ERROR(File(temp / "no", FileMode::read), not_found, "no such file or folder");
  EXPECT_WEFT_ERROR(File(temp / "no", FileMode::update), not_found, (temp / "no").native());
}

TEST(File, create_new_refuses_what_exists) {
  const TemporaryFolder temp;
  write_file(temp / "f", "keep");
  EXPECT_WEFT_ERROR(File(temp / "f", FileMode::create_new), invalid_argument, "it exists already");
  fs::create_symlink("nowhere", temp / "link");
  EXPECT_WEFT_ERROR(File(temp / "link", FileMode::create_new), invalid_argument, "it exists already");
  EXPECT_EQ(read_file(temp / "f"), "keep");
}

TEST(File, refuses_a_folder) {
  const TemporaryFolder temp;
  EXPECT_WEFT_ERROR(File(temp.path(), FileMode::read), invalid_argument, "it is a folder, not a file");
  EXPECT_WEFT_ERROR(File(temp.path(), FileMode::update), invalid_argument, "it is a folder, not a file");
}

TEST(File, says_when_a_part_of_the_path_is_a_file) {
  const TemporaryFolder temp;
  write_file(temp / "f", "x");
  EXPECT_WEFT_ERROR(File(temp / "f/g", FileMode::read), not_found, "a part of the path is a file, not a folder");
}

TEST(File, refuses_pipes_sockets_and_devices_without_waiting) {
  const TemporaryFolder temp;
  ASSERT_EQ(::mkfifo((temp / "pipe").c_str(), 0600), 0);
  EXPECT_WEFT_ERROR(File(temp / "pipe", FileMode::read), unsupported, "is a pipe (FIFO), not a regular file");
  EXPECT_WEFT_ERROR(File(temp / "pipe", FileMode::update), unsupported, "is a pipe (FIFO), not a regular file");
  EXPECT_WEFT_ERROR(File("/dev/null", FileMode::read), unsupported, "is a device, not a regular file");

  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = (temp / "socket").native();
  ASSERT_LT(name.size(), sizeof address.sun_path);
  std::memcpy(address.sun_path, name.c_str(), name.size() + 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_WEFT_ERROR(File(name, FileMode::read), unsupported, "not a regular file");
  ::close(fd);
}

TEST(File, without_permission_says_so) {
  const TemporaryFolder temp;
  write_file(temp / "f", "x");
  fs::permissions(temp.path(), fs::perms::all);
  fs::permissions(temp / "f", fs::perms::none);
  const testing::Unprivileged user;
  if (!user.active()) GTEST_SKIP() << "this process cannot give up its privileges";
  EXPECT_WEFT_ERROR(File(temp / "f", FileMode::read), io, "permission denied");
}

TEST(File, without_permission_by_the_system_call_says_so) {
  const TemporaryFolder temp;
  write_file(temp / "f", "x");
  FaultCalls calls({.call = 1, .error = EACCES, .applies = only("open")});
  const ScopedSystemCalls scoped(calls);
  const auto error = testing::error_of([&] { File(temp / "f", FileMode::read); });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code(), ErrorCode::io);
  EXPECT_EQ(error->system_error(), EACCES);
  EXPECT_STREQ(error->what(), ("cannot open '" + (temp / "f").native() +
                               "': permission denied\n  check the owner and the permissions of the file and of the folders above it")
                                  .c_str());
}

TEST(File, path_in_a_message_cannot_disturb_the_terminal_and_is_not_cut) {
  const std::string name = "/no/\x1b[2J" + std::string(250, 'n');
  EXPECT_WEFT_ERROR(File(name, FileMode::read), not_found, "'/no/\\x1b[2J" + std::string(250, 'n') + "'");
}

TEST(File, opens_leave_no_descriptor_behind_when_they_fail) {
  const TemporaryFolder temp;
  const int before = ::dup(0);
  ::close(before);
  for (int i = 0; i < 10; ++i) {
    EXPECT_THROW(File(temp.path(), FileMode::read), Error);
    EXPECT_THROW(File("/dev/null", FileMode::read), Error);
    FaultCalls calls({.call = 1, .error = EIO, .applies = only("fstat")});
    const ScopedSystemCalls scoped(calls);
    EXPECT_THROW(File(temp / "f", FileMode::create_new), Error);
    EXPECT_FALSE(fs::exists(temp / "f"));
  }
  const int after = ::dup(0);
  ::close(after);
  EXPECT_EQ(before, after);
}

TEST(ReadTextFile, reads_the_whole_and_refuses_what_is_larger_than_the_limit) {
  const TemporaryFolder temp;
  write_file(temp / "f", std::string("a\0b", 3));
  EXPECT_EQ(read_text_file(temp / "f", 3), std::string("a\0b", 3));
  EXPECT_WEFT_ERROR(read_text_file(temp / "f", 2), unsupported, "has 3 bytes, more than the limit of 2");
  write_file(temp / "empty", "");
  EXPECT_EQ(read_text_file(temp / "empty", 0), "");
}

// ---- paths ----

TEST(Paths, kind_of_each_thing) {
  const TemporaryFolder temp;
  write_file(temp / "file", "x");
  fs::create_symlink("file", temp / "link");
  fs::create_symlink("nowhere", temp / "dangling");
  fs::create_symlink("loop", temp / "loop");
  ASSERT_EQ(::mkfifo((temp / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(path_kind(temp / "file"), PathKind::file);
  EXPECT_EQ(path_kind(temp / "link"), PathKind::file);
  EXPECT_EQ(path_kind(temp.path()), PathKind::folder);
  EXPECT_EQ(path_kind(temp / "dangling"), PathKind::link);
  EXPECT_EQ(path_kind(temp / "loop"), PathKind::link);
  EXPECT_EQ(path_kind(temp / "pipe"), PathKind::other);
  EXPECT_EQ(path_kind(temp / "nothing"), PathKind::nothing);
  EXPECT_WEFT_ERROR(path_kind(temp / "file/x"), not_found, "a part of the path is a file");
}

TEST(Paths, directories_are_made_listed_and_removed) {
  const TemporaryFolder temp;
  make_directory(temp / "d");
  EXPECT_WEFT_ERROR(make_directory(temp / "d"), invalid_argument, "it exists already");
  EXPECT_WEFT_ERROR(make_directory(temp / "no/d"), not_found, "cannot create the folder");
  write_file(temp / "d/b", "");
  write_file(temp / "d/a", "");
  EXPECT_THAT(list_directory(temp / "d"), ElementsAre("a", "b"));
  EXPECT_WEFT_ERROR(list_directory(temp / "d/a"), not_found, "a part of the path is a file");
  remove_file(temp / "d/a");
  EXPECT_WEFT_ERROR(remove_file(temp / "d/a"), not_found, "cannot remove");
  sync_directory(temp / "d");
  remove_tree(temp / "d");
  EXPECT_THAT(list_directory(temp.path()), IsEmpty());
  EXPECT_NO_THROW(remove_tree(temp / "d"));
}

TEST(Paths, remove_tree_does_not_follow_links) {
  const TemporaryFolder temp;
  write_file(temp / "precious/file", "keep");
  write_file(temp / "d/sub/x", "");
  fs::create_directory_symlink(temp / "precious", temp / "d/sub/link");
  fs::create_directory_symlink(temp / "precious", temp / "link");
  remove_tree(temp / "d");
  remove_tree(temp / "link");
  EXPECT_EQ(testing::tree(temp.path()), (std::vector<std::string>{"precious/", "precious/file"}));
}

TEST(Paths, rename_to_new_overwrites_nothing_also_where_the_system_cannot_promise_it) {
  const TemporaryFolder temp;
  for (const int error : {0, EINVAL, ENOSYS}) {
    FaultCalls calls({.call = error == 0 ? 0u : 1u, .error = error, .for_good = true, .applies = only("rename_new")});
    const ScopedSystemCalls scoped(calls);
    write_file(temp / "a", "a");
    write_file(temp / "b", "b");
    EXPECT_WEFT_ERROR(rename_to_new(temp / "a", temp / "b"), invalid_argument, "it exists already");
    EXPECT_EQ(read_file(temp / "b"), "b");
    remove_file(temp / "b");
    rename_to_new(temp / "a", temp / "b");
    EXPECT_EQ(read_file(temp / "b"), "a");
  }
}

TEST(Paths, exchange_swaps_two_folders_or_says_that_it_cannot) {
  const TemporaryFolder temp;
  write_file(temp / "a/x", "a");
  write_file(temp / "b/x", "b");
  exchange_paths(temp / "a", temp / "b");
  EXPECT_EQ(read_file(temp / "a/x"), "b");
  EXPECT_EQ(read_file(temp / "b/x"), "a");
  FaultCalls calls({.call = 1, .error = EINVAL, .applies = only("exchange")});
  const ScopedSystemCalls scoped(calls);
  EXPECT_WEFT_ERROR(exchange_paths(temp / "a", temp / "b"), unsupported, "cannot exchange two folders in one step");
}

TEST(Paths, free_space_is_that_of_the_file_system) {
  const TemporaryFolder temp;
  EXPECT_GT(free_space_bytes(temp.path()), 0u);
  EXPECT_WEFT_ERROR(free_space_bytes(temp / "no"), not_found, "cannot ask for the free space of");
}

TEST(Paths, a_plain_folder_is_no_mount_point_and_the_root_is_one) {
  const TemporaryFolder temp;
  EXPECT_FALSE(is_mount_point(temp.path()));
  EXPECT_TRUE(is_mount_point("/proc"));
}

}  // namespace
}  // namespace weft
