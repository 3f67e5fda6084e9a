#include "model/tokenizer.h"
#include "weft/error.h"

namespace weft::model {

Tokenizer Tokenizer::from_sentencepiece(std::string_view /*bytes*/, const Json* /*config*/, const std::filesystem::path& file) {
  throw Error(ErrorCode::unsupported, "tokenizer.model cannot be read yet", {.file = file.string()}, "save the tokenizer as tokenizer.json");
}

}  // namespace weft::model
