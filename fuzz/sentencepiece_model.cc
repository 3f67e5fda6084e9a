// Whatever the tokenizer.model and the text behind its first two bytes' worth, it is refused with an Error, or tokenizes and gives valid UTF-8 back.
// The first two bytes say how long the model is.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "base/text.h"
#include "model/tokenizer.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const std::size_t model_size = std::min<std::size_t>(data[0] | static_cast<std::size_t>(data[1]) << 8, bytes.size());
  const std::string_view text = bytes.substr(model_size);
  std::optional<model::Tokenizer> tokenizer;
  try {
    tokenizer.emplace(model::Tokenizer::from_sentencepiece(bytes.substr(0, model_size), nullptr, "fuzz.model"));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) std::abort();
    return 0;
  }
  const model::Encoding encoding = tokenizer->encode(text, {.tokens = true, .offsets = true});
  for (const std::uint32_t id : encoding.ids)
    if (tokenizer->token(id) == nullptr) std::abort();
  for (const auto& [begin, end] : encoding.offsets)
    if (begin > end || end > 3 * text.size() + 1) std::abort();
  if (!is_valid_utf8(tokenizer->decode(encoding.ids))) std::abort();
  if (tokenizer->ids(text, true) != encoding.ids) std::abort();
  return 0;
}
