// Whatever the text, the index is refused with an Error or names plain files only.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/model_folder.h"
#include "checkpoint/safetensors.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const weft::ShardIndex index = weft::parse_shard_index({reinterpret_cast<const char*>(data), size}, "fuzz.index.json");
    for (const std::string& shard : index.shards)
      if (!weft::is_plain_file_name(shard) || shard.find('/') != std::string::npos) std::abort();
    for (const weft::ShardIndex::Entry& entry : index.entries)
      if (entry.shard >= index.shards.size()) std::abort();
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
  }
  return 0;
}
