#include "checkpoint/packed_rows.h"

#include "base/check.h"
#include "checkpoint/gguf.h"
#include "codec/block_codec.h"

namespace weft {

void PackedRows::put(std::size_t i, math::PackedMatrix& matrix, std::size_t row) const {
  const std::size_t columns = matrix.columns();
  if (has_blocks) {
    const codec::BlockCodec& codec = *codec::find_block_codec(math::block_type_of(format));
    matrix.put_blocks(row, codes.data() + i * (columns / codec.block_elements * codec.block_bytes));
    return;
  }
  const std::size_t groups = (columns + format.group - 1) / format.group;
  matrix.put_codes(row, codes.data() + i * columns, scales.data() + i * groups, zeros.empty() ? nullptr : zeros.data() + i * groups);
}

bool read_packed_rows(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t first, std::uint64_t count, PackedRows& out) {
  if (const auto* source = dynamic_cast<const PackedSource*>(&checkpoint)) return source->read_packed_rows(tensor, first, count, out);
  if (as_gguf(checkpoint) == nullptr || tensor.stored_as.empty() || tensor.shape.empty()) return false;
  const codec::BlockCodec* codec = codec::find_block_codec(tensor.stored_as);
  const auto columns = static_cast<std::uint64_t>(tensor.shape.back());
  if (codec == nullptr || !math::find_packed_format(codec->name, out.format) || !math::can_pack(out.format, columns)) return false;
  out.has_blocks = true;
  if (count == 0) return true;
  const std::uint64_t row_bytes = columns / codec->block_elements * codec->block_bytes;
  out.codes.resize(checked_size(checked_mul(count, row_bytes, "rows"), "rows"));
  checkpoint.read_stored(tensor, first * row_bytes, {reinterpret_cast<std::byte*>(out.codes.data()), out.codes.size()});
  return true;
}

}  // namespace weft
