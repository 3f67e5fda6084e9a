#include "engine/tensor_warnings.h"

#include <fmt/format.h>

#include <cstddef>
#include <map>
#include <string_view>

namespace weft::engine {

std::vector<std::string> said_once(std::vector<std::string> warnings) {
  constexpr std::string_view kBegin = "tensor '";
  constexpr std::string_view kEnd = "': ";
  struct Said {
    std::size_t place = 0;     ///< in the result
    std::size_t name_end = 0;  ///< of the first tensor's name in its warning, the quote included
    std::size_t num_others = 0;
  };
  std::vector<std::string> result;
  std::map<std::string, Said, std::less<>> said;  // by what follows the name
  for (std::string& warning : warnings) {
    const std::size_t end = warning.starts_with(kBegin) ? warning.find(kEnd) : std::string::npos;
    if (end != std::string::npos) {
      const auto [it, is_new] = said.try_emplace(warning.substr(end + kEnd.size()), Said{result.size(), end + 1, 0});
      if (!is_new) {
        ++it->second.num_others;
        continue;
      }
    }
    result.push_back(std::move(warning));
  }
  for (const auto& [text, what] : said)
    if (what.num_others != 0)
      result[what.place].insert(what.name_end, fmt::format(" and {} other{}", what.num_others, what.num_others == 1 ? "" : "s"));
  return result;
}

}  // namespace weft::engine
