// Whatever the text, it is refused with an Error about the request, or it is configs that mean the same when their text is read again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/merge_config.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using weft::engine::MergeConfig;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> warnings;
  std::vector<MergeConfig> configs;
  try {
    configs = weft::engine::parse_merge_configs(text, "fuzz.yml", {}, warnings);
  } catch (const weft::Error& error) {
    if (error.exit_status() != 2 || error.message().empty()) std::abort();
    return 0;
  }
  if (configs.empty()) std::abort();
  // From here on an Error is a bug of ours, and ends the run. (A document that uses another's anchors cannot stand alone; YAML has none of that.)
  for (const MergeConfig& config : configs) {
    const MergeConfig again = weft::engine::parse_merge_config(config.text, "fuzz.yml", {}, warnings);
    if (again.merge_method != config.merge_method || again.modules.size() != config.modules.size() || again.dtype != config.dtype ||
        again.out_dtype != config.out_dtype || again.text != config.text || again.name != config.name)
      std::abort();
    for (std::size_t m = 0; m < config.modules.size(); ++m) {
      if (config.modules[m].slices.empty() || again.modules[m].slices.size() != config.modules[m].slices.size()) std::abort();
      for (const weft::engine::Slice& slice : config.modules[m].slices)
        if (slice.sources.empty()) std::abort();
    }
  }
  return 0;
}
