// Whatever the tokenizer.json and the text behind it, the tokenizer is refused with an Error, or gives ids it knows, offsets inside the text, and
// valid UTF-8 back. The text is what follows the first NUL.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/tokenizer.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  if (size > 1 << 16) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::size_t nul = std::min(bytes.find('\0'), bytes.size());
  const std::string_view text = bytes.substr(std::min(nul + 1, bytes.size()));
  const auto refused = [](const Error& error) {
    if (error.code() == ErrorCode::internal) std::abort();
    return 0;
  };
  std::optional<model::Tokenizer> tokenizer;
  try {
    tokenizer.emplace(model::Tokenizer::from_json(parse_json(bytes.substr(0, nul), "fuzz.json"), nullptr, "fuzz.json"));
  } catch (const Error& error) {
    return refused(error);
  }
  try {
    const model::Encoding encoding = tokenizer->encode(text, {.tokens = true, .offsets = true});
    if (encoding.tokens.size() != encoding.ids.size() || encoding.offsets.size() != encoding.ids.size()) std::abort();
    for (const auto& [begin, end] : encoding.offsets)
      if (end > 3 * text.size() + 1 || begin > 3 * text.size() + 1) std::abort();
    if (!is_valid_utf8(tokenizer->decode(encoding.ids))) std::abort();
    if (tokenizer->ids(text, true) != encoding.ids) std::abort();
  } catch (const Error& error) {
    return refused(error);
  }
  return 0;
}
