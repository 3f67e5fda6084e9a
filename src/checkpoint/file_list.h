#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "weft/checkpoint.h"

namespace weft {

/// The files of several checkpoints, each once: views on views on the same files have no more of them than there are.
class FileList {
 public:
  /// Where each of its files stands in the list.
  const std::vector<std::uint32_t>& add(const Checkpoint& checkpoint) {
    const auto [places, is_new] = places_.try_emplace(&checkpoint);
    if (is_new)
      for (const CheckpointFile& file : checkpoint.files()) {
        const auto [at, added] = index_.try_emplace({file.path.native(), file.inode}, static_cast<std::uint32_t>(files_.size()));
        if (added) files_.push_back(file);
        places->second.push_back(at->second);
      }
    return places->second;
  }
  /// Where the file of a tensor of the checkpoint stands; 0 for one without files.
  std::uint32_t place_of(const TensorInfo& tensor, const Checkpoint& checkpoint) {
    const std::vector<std::uint32_t>& places = add(checkpoint);
    return tensor.file_index < places.size() ? places[tensor.file_index] : 0;
  }
  [[nodiscard]] std::vector<CheckpointFile> take() { return std::move(files_); }

 private:
  std::vector<CheckpointFile> files_;
  std::map<std::pair<std::string, std::uint64_t>, std::uint32_t> index_;
  std::unordered_map<const Checkpoint*, std::vector<std::uint32_t>> places_;
};

}  // namespace weft
