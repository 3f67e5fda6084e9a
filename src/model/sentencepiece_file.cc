#include "model/sentencepiece_file.h"

#include <bit>
#include <cmath>
#include <optional>
#include <unordered_set>

#include "base/text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxPieces = std::size_t{1} << 24;

/// A field of a protobuf message.
struct Field {
  std::uint32_t number = 0;
  std::uint64_t value = 0;  ///< varint or fixed
  std::string_view bytes;   ///< length-delimited
  bool is_bytes = false;
};

/// Reads the fields of one message; never looks beyond it.
class Message {
 public:
  Message(std::string_view bytes, const char* begin_of_file, const fs::path& file) : bytes_(bytes), file_begin_(begin_of_file), file_(file) {}

  std::optional<Field> next() {
    if (bytes_.empty()) return std::nullopt;
    const std::uint64_t tag = varint();
    Field field;
    if (tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF) refuse("a field has the number " + std::to_string(tag >> 3));
    field.number = static_cast<std::uint32_t>(tag >> 3);
    switch (tag & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 2: {
        const std::uint64_t size = varint();
        if (size > bytes_.size()) refuse("a field of " + std::to_string(size) + " bytes, but only " + std::to_string(bytes_.size()) + " are left");
        field.bytes = bytes_.substr(0, size);
        field.is_bytes = true;
        bytes_.remove_prefix(size);
        break;
      }
      case 5:
        field.value = fixed(4);
        break;
      default:
        refuse("a field of wire type " + std::to_string(tag & 7));
    }
    return field;
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorCode::corrupt, "this is no SentencePiece model: " + what,
                {.file = file_.string(), .byte = static_cast<std::uint64_t>(bytes_.data() - file_begin_)}, "fetch the tokenizer again");
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (bytes_.empty()) refuse("a number is cut off");
      const auto byte = static_cast<unsigned char>(bytes_.front());
      bytes_.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    refuse("a number has more than ten bytes");
  }
  std::uint64_t fixed(std::size_t size) {
    if (bytes_.size() < size) refuse("a number is cut off");
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) value |= std::uint64_t{static_cast<unsigned char>(bytes_[i])} << (8 * i);
    bytes_.remove_prefix(size);
    return value;
  }

  std::string_view bytes_;
  const char* file_begin_;
  const fs::path& file_;
};

SentencePieceFile::Piece read_piece(Message message) {
  SentencePieceFile::Piece piece;
  while (const auto field = message.next()) {
    if (field->number == 1 && field->is_bytes) piece.text = field->bytes;
    if (field->number == 2 && !field->is_bytes) piece.score = std::bit_cast<float>(static_cast<std::uint32_t>(field->value));
    if (field->number == 3 && !field->is_bytes) {
      if (field->value < 1 || field->value > 6) message.refuse("a piece has type " + std::to_string(field->value));
      piece.type = static_cast<PieceType>(field->value);
    }
  }
  if (piece.text.empty()) message.refuse("a piece has no text");
  if (!is_valid_utf8(piece.text)) message.refuse("the piece '" + printable(piece.text) + "' is not UTF-8");
  if (!std::isfinite(piece.score)) message.refuse("the piece '" + printable(piece.text) + "' has a score that is no number");
  return piece;
}

void read_trainer(Message message, SentencePieceFile& model) {
  const auto id = [](std::uint64_t value) { return static_cast<std::int64_t>(static_cast<std::int32_t>(value)); };
  while (const auto field = message.next()) {
    if (field->is_bytes) {
      if (field->number == 44) model.unknown_surface = field->bytes;
      continue;
    }
    switch (field->number) {
      case 3:
        if (field->value < 1 || field->value > 4) message.refuse("the model is of type " + std::to_string(field->value));
        model.kind = static_cast<SentencePieceFile::Kind>(field->value);
        break;
      case 24:
        model.space_as_suffix = field->value != 0;
        break;
      case 35:
        model.byte_fallback = field->value != 0;
        break;
      case 41:
        model.bos_id = id(field->value);
        break;
      case 42:
        model.eos_id = id(field->value);
        break;
      case 43:
        model.pad_id = id(field->value);
        break;
      default:
        break;
    }
  }
  if (!is_valid_utf8(model.unknown_surface)) message.refuse("the text for unknown pieces is not UTF-8");
}

void read_normalizer(Message message, SentencePieceFile& model) {
  while (const auto field = message.next()) {
    if (field->number == 2 && field->is_bytes) model.charsmap = field->bytes;
    if (field->is_bytes) continue;
    if (field->number == 3) model.add_dummy_prefix = field->value != 0;
    if (field->number == 4) model.remove_extra_whitespaces = field->value != 0;
    if (field->number == 5) model.escape_whitespaces = field->value != 0;
  }
}

}  // namespace

SentencePieceFile read_sentencepiece(std::string_view bytes, const std::filesystem::path& file) {
  SentencePieceFile model;
  Message message(bytes, bytes.data(), file);
  while (const auto field = message.next()) {
    if (!field->is_bytes) continue;
    const Message inner(field->bytes, bytes.data(), file);
    if (field->number == 1) {
      if (model.pieces.size() >= kMaxPieces) message.refuse("more than " + std::to_string(kMaxPieces) + " pieces");
      model.pieces.push_back(read_piece(inner));
    } else if (field->number == 2) {
      read_trainer(inner, model);
    } else if (field->number == 3) {
      read_normalizer(inner, model);
    }
  }
  if (model.pieces.empty()) message.refuse("it has no pieces");
  std::size_t unknown = 0;
  std::size_t num_bytes = 0;
  std::unordered_set<std::string_view> texts;
  for (const auto& piece : model.pieces) {
    unknown += piece.type == PieceType::unknown ? 1 : 0;
    num_bytes += piece.type == PieceType::byte ? 1 : 0;
    if (!texts.insert(piece.text).second) message.refuse("the piece '" + printable(piece.text) + "' is there twice");
  }
  if (unknown != 1) message.refuse("it has " + std::to_string(unknown) + " pieces for unknown text; one is needed");
  if (model.byte_fallback ? num_bytes != 256 : num_bytes != 0)
    message.refuse("it has " + std::to_string(num_bytes) + " pieces for bytes, and falls back to bytes: " + (model.byte_fallback ? "yes" : "no"));
  return model;
}

}  // namespace weft::model
