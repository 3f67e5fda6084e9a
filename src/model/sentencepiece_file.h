#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace weft::model {

enum class PieceType { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// What a tokenizer.model says (SentencePiece's protobuf, as far as encoding and decoding need it).
struct SentencePieceFile {
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::normal;
  };
  enum class Kind { unigram = 1, bpe = 2, word = 3, character = 4 };
  std::vector<Piece> pieces;
  Kind kind = Kind::unigram;
  bool byte_fallback = false;
  bool space_as_suffix = false;
  std::string unknown_surface = " \u2047 ";
  std::int64_t bos_id = 1;
  std::int64_t eos_id = 2;
  std::int64_t pad_id = -1;
  std::string charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

/// Errors: corrupt with the byte for what is no protobuf or contradicts itself; unsupported for another kind of model.
[[nodiscard]] SentencePieceFile read_sentencepiece(std::string_view bytes, const std::filesystem::path& file);

}  // namespace weft::model
