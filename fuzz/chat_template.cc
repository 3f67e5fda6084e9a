// Whatever the template, it is refused or fails with an Error, or makes valid UTF-8; it always ends.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/chat_template.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  static const Json variables = parse_json(
      R"({"messages": [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "\u00e9"}],
          "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "n": 3, "f": 2.5, "none": null, "d": {"k": [1, "x"]}})",
      "variables");
  try {
    if (!is_valid_utf8(model::ChatRenderer(source).render(variables))) std::abort();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) std::abort();
  }
  return 0;
}
