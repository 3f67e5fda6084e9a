#pragma once
#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/journal.h"

namespace weft {

/// What to do with something that is at the destination already.
enum class Existing {
  refuse,      ///< an error; an empty folder counts as absent
  replace,     ///< as a whole, in one step; then the old one is removed
  write_into,  ///< (folders) the new files are put beside and over the old ones, as mergekit does
};

/// The file in an output folder that holds its checksums (see checksums.h). Readers of models pass over it.
inline constexpr const char* kChecksumsName = "weft.checksums";

/// Another job holds the lock of a hidden folder.
[[nodiscard]] bool is_locked(const std::filesystem::path& working_folder);
/// What may be the hidden folder of some destination, by its name.
[[nodiscard]] bool is_working_folder_name(std::string_view name);

/// The hidden folder of a destination (absolute, links resolved). inside: in it instead of beside it.
[[nodiscard]] std::filesystem::path working_folder_of(const std::filesystem::path& target, bool inside);

/// Builds a folder or a file out of sight and puts it in its place by one rename, so that the destination is as it was, or complete.
///
/// On the disk, while it lives:
///   PARENT/.NAME.weft-HASH/       beside the destination, so on its file system; HASH is of the destination's path
///     lock                        held with flock by the living job; a killed one's lock is free
///     journal                     of a job that can go on: what it is, and which tensors in new/ are finished (see journal.h)
///     new/                        what is being built; after an exchange, the old tree until it is removed
///
/// What a killed job left is removed by the next one, unless that can go on with it (`resumable`).
///
/// The destination may be relative, end in a slash and have missing parents (created, and removed again on failure). A link to a folder or file is
/// followed: what it points to is replaced, the link stays; a link to nothing is refused. Where something is mounted at the destination itself (a
/// container's volume), nothing can be renamed onto it: then the hidden folder lies inside, and the files are put in place one by one.
/// Not thread-safe, but the Files it hands out are.
class Staging {
 public:
  enum class What { folder, file };

  /// Errors: invalid_argument (in the way, not a model, a mount point), io (another job writes there; the system refuses), no_space, unsupported
  /// (Existing::replace of a folder where the file system cannot exchange). resumable: what an unfinished job with finished tensors left is kept, and
  /// found in unfinished(), until start_afresh() or release().
  Staging(std::filesystem::path destination, What what, Existing existing, bool resumable = false);
  /// Removes what was built, unless committed or kept.
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// What another job left here and nobody has decided about. As long as it is there, nothing is removed.
  [[nodiscard]] const std::optional<Journal::Content>& unfinished() const noexcept { return unfinished_; }
  /// Takes it over: removes everything in the content but these files. From now on it is treated as built by this job.
  void take_over(const std::vector<std::string>& names);
  /// From here on a failure removes what was taken over, as it removes what this job built.
  void release() noexcept { keep_folder_ = false; }
  /// What was built stays when this goes, for a later job to go on with.
  void keep() noexcept { keep_folder_ = !placed_; }
  [[nodiscard]] bool kept() const noexcept { return keep_folder_; }
  [[nodiscard]] std::filesystem::path journal_path() const { return folder_ / "journal"; }
  /// Of the content folder, for JournalHead. Errors: io.
  [[nodiscard]] std::uint64_t content_inode() const;

  /// A file that was taken over.
  File& reopen(std::string_view name);
  /// A new file: a plain name, or a path below the folder whose subfolders are made. Lives as long as this does; open until commit.
  File& create(std::string_view name);
  /// Throws no_space unless so many bytes are free, beside those that are reserved already.
  void require_space(std::uint64_t size_bytes, std::uint64_t reserved_bytes = 0);
  /// Makes the hidden folder itself, and what it is called, survive a power failure.
  void sync_folders() const;
  /// fsync of every file, once. Nothing may be written or created afterwards.
  void sync_files();
  /// sync_files unless that was done, close of every file, fsync of folders, rename, fsync of the parent. Of a single-file output the first file
  /// takes the place; others are put beside it under their names.
  void commit();

  [[nodiscard]] What what() const noexcept { return what_; }
  /// As the caller named it.
  [[nodiscard]] const std::filesystem::path& destination() const noexcept { return destination_; }
  /// Absolute, links resolved.
  [[nodiscard]] const std::filesystem::path& target() const noexcept { return target_; }
  /// The hidden folder.
  [[nodiscard]] const std::filesystem::path& folder() const noexcept { return folder_; }
  /// The folder in it where the files are until commit.
  [[nodiscard]] const std::filesystem::path& content() const noexcept { return content_; }
  /// What could not be tidied up after a successful commit.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept { return warnings_; }
  /// Adds to a no_space error how much the whole output needs; any other error is returned as it is.
  [[nodiscard]] Error explained(const Error& error) const;

 private:
  void check_target();
  void find_unfinished();
  void tidy_leftover() noexcept;
  void create_parents();
  void take_folder();
  bool lock_folder(bool made);
  void probe_exchange();
  void place();
  void place_file();
  void place_folder();
  void place_into();
  bool discard() noexcept;
  void give_up() noexcept;

  std::filesystem::path destination_;
  What what_;
  Existing existing_;
  std::filesystem::path target_;
  std::filesystem::path folder_;
  std::filesystem::path content_;
  bool inside_ = false;                                 ///< the hidden folder lies in the destination
  std::vector<std::filesystem::path> created_parents_;  ///< outermost first
  bool resumable_ = false;
  std::optional<Journal::Content> unfinished_;
  bool synced_ = false;
  bool placed_ = false;  ///< what was built is no longer in the hidden folder, at least not all of it
  bool folder_taken_ = false;
  int lock_ = -1;
  std::deque<File> files_;
  std::vector<std::filesystem::path> names_;       ///< of files_, relative
  std::vector<std::filesystem::path> subfolders_;  ///< of new/, relative, outer before inner
  std::uint64_t needed_bytes_ = 0;
  bool keep_folder_ = false;  ///< what is in it is the only copy of something
  std::vector<std::string> warnings_;
};

}  // namespace weft
