#include "base/writable.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "base/file.h"
#include "base/text.h"
#include "weft/error.h"

namespace weft {

void require_writable(const std::filesystem::path& output, std::string_view what, const std::string& key) {
  const std::filesystem::path folder = std::filesystem::absolute(output).lexically_normal().parent_path();
  if (path_kind(output) == PathKind::folder || path_kind(folder) != PathKind::folder)
    throw Error(ErrorCode::io,
                path_kind(output) == PathKind::folder ? fmt::format("'{}' is a folder, and the {} would be a file", printable(output.string()), what)
                                                      : fmt::format("there is no folder '{}' for the {}", printable(folder.string()), what),
                {.file = output, .key = key}, "name a file in a folder that is there");
  if (::access((path_kind(output) == PathKind::nothing ? folder : output).c_str(), W_OK) != 0) throw path_error(errno, "write", output);
}

}  // namespace weft
