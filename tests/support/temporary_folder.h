#pragma once
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace weft::testing {

/// A folder of its own for a test; removed, with what is in it, at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  /// Below `parent`, for tests that need a certain file system.
  explicit TemporaryFolder(const std::filesystem::path& parent);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// A folder in memory where the machine has one, else the usual place: for tests that sync a thousand times and write little.
[[nodiscard]] std::filesystem::path memory_folder();

/// Writes a file, with the folders above it.
void write_file(const std::filesystem::path& path, std::string_view content);
[[nodiscard]] std::string read_file(const std::filesystem::path& path);
/// Everything below a folder, sorted: relative names, folders with a slash at the end.
[[nodiscard]] std::vector<std::string> tree(const std::filesystem::path& folder);

}  // namespace weft::testing
