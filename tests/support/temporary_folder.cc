#include "support/temporary_folder.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>

namespace weft::testing {

namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder() : TemporaryFolder(fs::temp_directory_path()) {}

TemporaryFolder::TemporaryFolder(const fs::path& parent) {
  std::string name = (parent / "weft-test-XXXXXX").native();
  if (::mkdtemp(name.data()) == nullptr) throw std::system_error(errno, std::generic_category(), name);
  path_ = fs::canonical(name);  // so that tests may compare with resolved paths
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  // Folders whose permissions a test took away must not outlive it.
  for (auto i = fs::recursive_directory_iterator(path_, fs::directory_options::skip_permission_denied, ignored);
       i != fs::recursive_directory_iterator(); i.increment(ignored))
    if (i->is_directory(ignored) && !i->is_symlink(ignored)) fs::permissions(i->path(), fs::perms::owner_all, fs::perm_options::add, ignored);
  fs::remove_all(path_, ignored);
}

fs::path memory_folder() {
  const fs::path memory = "/dev/shm";
  return ::access(memory.c_str(), W_OK | X_OK) == 0 ? memory : fs::temp_directory_path();
}

void write_file(const fs::path& path, std::string_view content) {
  if (path.has_parent_path()) fs::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary);
  out << content;
  if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::vector<std::string> tree(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    names.push_back(fs::relative(entry.path(), folder).native() + (entry.is_directory() && !entry.is_symlink() ? "/" : ""));
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace weft::testing
