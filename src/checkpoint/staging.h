#pragma once
#include <cstdint>
#include <deque>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace weft {

/// What to do with something that is at the destination already.
enum class Existing {
  refuse,      ///< an error; an empty folder counts as absent
  replace,     ///< as a whole, in one step; then the old one is removed
  write_into,  ///< (folders) the new files are put beside and over the old ones, as mergekit does
};

/// Builds a folder or a file out of sight and puts it in its place by one rename, so that the destination is as it was, or complete.
///
/// On the disk, while it lives:
///   PARENT/.NAME.weft-HASH/       beside the destination, so on its file system; HASH is of the destination's path
///     lock                        held with flock by the living job; a killed one's lock is free, and its folder is removed by the next job
///     new/                        what is being built; after an exchange, the old tree until it is removed
///
/// The destination may be relative, end in a slash and have missing parents (created, and removed again on failure). A link to a folder or file is
/// followed: what it points to is replaced, the link stays; a link to nothing is refused. Where something is mounted at the destination itself (a
/// container's volume), nothing can be renamed onto it: then the hidden folder lies inside, and the files are put in place one by one.
/// Not thread-safe, but the Files it hands out are.
class Staging {
 public:
  enum class What { folder, file };

  /// Errors: invalid_argument (in the way, not a model, a mount point), io (another job writes there; the system refuses), no_space, unsupported (Existing::replace
  /// of a folder where the file system cannot exchange).
  Staging(std::filesystem::path destination, What what, Existing existing);
  /// Removes what was built, unless committed.
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// A new file: a plain name, or a path below the folder whose subfolders are made. Lives as long as this does; open until commit.
  File& create(std::string_view name);
  /// Throws no_space unless so many bytes are free.
  void require_space(std::uint64_t size_bytes);
  /// fsync and close of every file, fsync of folders, rename, fsync of the parent. Nothing can be created afterwards.
  void commit();

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
  bool inside_ = false;                                  ///< the hidden folder lies in the destination
  std::vector<std::filesystem::path> created_parents_;   ///< outermost first
  bool folder_taken_ = false;
  int lock_ = -1;
  std::deque<File> files_;
  std::vector<std::filesystem::path> names_;             ///< of files_, relative
  std::vector<std::filesystem::path> subfolders_;        ///< of new/, relative, outer before inner
  std::uint64_t needed_bytes_ = 0;
  bool keep_folder_ = false;                             ///< what is in it is the only copy of something
  std::vector<std::string> warnings_;
};

}  // namespace weft
