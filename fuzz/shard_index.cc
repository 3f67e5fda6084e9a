// Whatever the text, the index is refused with an Error or names plain files only; then it reads back as the same after it was written, and so does
// the index that a writer makes for tensors of these names.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "checkpoint/output.h"
#include "checkpoint/safetensors.h"
#include "weft/error.h"

namespace weft::fuzz {

// From here on an Error is a bug of ours, and ends the run.
inline void expect_written_and_read_back(const ShardIndex& index) {
  Json::Object map;
  for (const ShardIndex::Entry& entry : index.entries) map.emplace_back(entry.tensor, Json(index.shards[entry.shard]));
  Json json(Json::Object{});
  json.set("metadata", Json(Json::Object{}));
  json.set("weight_map", Json(std::move(map)));
  const ShardIndex again = parse_shard_index(write_json(json, 2), "again.index.json");
  if (again.shards != index.shards || again.entries.size() != index.entries.size()) std::abort();
  for (std::size_t i = 0; i < index.entries.size(); ++i)
    if (again.entries[i].tensor != index.entries[i].tensor || again.entries[i].shard != index.entries[i].shard) std::abort();
}

/// A file for each tensor.
inline void expect_shards_of_these_names(const ShardIndex& index) {
  std::vector<TensorSpec> specs;
  std::set<std::string> names;
  for (const ShardIndex::Entry& entry : index.entries) {
    if (entry.tensor == "__metadata__") return;  // that a header cannot hold
    specs.push_back({entry.tensor, DType::u8, {1}});
    names.insert(entry.tensor);
  }
  if (specs.size() < 2 || specs.size() > 1000) return;
  const OutputLayout layout = plan_safetensors(specs, 1, {});
  const ShardIndex again = parse_shard_index(layout.index_json, "made.index.json");
  if (again.shards.size() != specs.size() || again.entries.size() != specs.size() || again.total_size != std::to_string(specs.size())) std::abort();
  for (const ShardIndex::Entry& entry : again.entries)
    if (names.erase(entry.tensor) != 1) std::abort();
}

}  // namespace weft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  weft::ShardIndex index;
  try {
    index = weft::parse_shard_index({reinterpret_cast<const char*>(data), size}, "fuzz.index.json");
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
    return 0;
  }
  for (const std::string& shard : index.shards)
    if (!weft::is_plain_file_name(shard) || shard.find('/') != std::string::npos) std::abort();
  for (const weft::ShardIndex::Entry& entry : index.entries)
    if (entry.shard >= index.shards.size()) std::abort();
  weft::fuzz::expect_written_and_read_back(index);
  weft::fuzz::expect_shards_of_these_names(index);
  return 0;
}
