// Whatever the text, it is refused with an Error, or what is written of it reads back as the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/text.h"
#include "checkpoint/json.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  weft::Json value;
  try {
    value = weft::parse_json(text, "fuzz.json");
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
    if (error.place().byte && *error.place().byte > size) std::abort();
    return 0;
  }
  // From here on an Error is a bug of ours, and ends the run.
  const std::string compact = weft::write_json(value);
  if (!weft::is_valid_utf8(compact)) std::abort();
  for (const bool ascii : {false, true}) {
    for (const int indent : {0, 2}) {
      const std::string written = weft::write_json(value, indent, ascii);
      if (weft::write_json(weft::parse_json(written, "again.json")) != compact) std::abort();
    }
  }
  return 0;
}
