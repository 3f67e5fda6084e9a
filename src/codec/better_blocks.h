#pragma once
#include <cstdint>
#include <span>

#include "codec/block_codec.h"

namespace weft::codec {

/// Encodes a row as codec.encode_row does and then looks, block by block, for bytes of the same size with a smaller error: the squared differences,
/// times the column weights where there are any. Never a larger one than codec.encode_row's. Several times its work. Tried are the encoder's own
/// search with the error that counts instead of its rule of thumb, outliers cut off, the best scales for given codes and the best codes for given
/// scales, in turns.
void encode_row_better(const BlockCodec& codec, std::span<const float> row, const Metric& metric, std::uint8_t* out);

}  // namespace weft::codec
