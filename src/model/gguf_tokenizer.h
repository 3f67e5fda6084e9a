#pragma once
#include <filesystem>

#include "model/gguf_vocabulary.h"

namespace weft::model {

class Tokenizer;

/// The tokenizer of the vocabulary inside a GGUF file. Errors: unsupported for another kind or an unknown split, corrupt.
[[nodiscard]] Tokenizer make_gguf_tokenizer(GgufVocabulary vocabulary, const std::filesystem::path& file);

}  // namespace weft::model
