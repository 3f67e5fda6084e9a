// Whatever the text, it is a recipe whose every operation is understood, or refused with an Error about the request (or about a file that it names).
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/recipe.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> warnings;
  try {
    const weft::engine::Recipe recipe = weft::engine::parse_recipe(text, "fuzz.yml", {}, warnings);
    if (recipe.steps.empty()) std::abort();
    for (const weft::engine::Step& step : recipe.steps)
      if (step.name.empty() || step.verb().empty()) std::abort();
  } catch (const weft::Error& error) {
    if (error.code() == weft::ErrorCode::internal || error.message().empty()) std::abort();
  }
  return 0;
}
