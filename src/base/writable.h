#pragma once
#include <filesystem>
#include <string>
#include <string_view>

namespace weft {

/// Throws io, with the reason, where no file can be written at output. To be called before work whose result would be lost. what: "report"; key: the
/// option that named it.
void require_writable(const std::filesystem::path& output, std::string_view what, const std::string& key);

}  // namespace weft
