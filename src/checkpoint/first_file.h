#pragma once
#include <filesystem>
#include <string_view>

#include "checkpoint/journal.h"

namespace weft {

/// Among the ingredients of a journal, the name of a file in the content. Without that file a single-file output is in its place already.
inline constexpr std::string_view kFirstFile = "the first file of the output";
[[nodiscard]] bool is_placed(const std::filesystem::path& content, const JournalHead& head);

}  // namespace weft
