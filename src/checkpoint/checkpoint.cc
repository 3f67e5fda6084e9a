#include "weft/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/check.h"
#include "base/text.h"
#include "weft/error.h"

namespace weft {

Checkpoint::~Checkpoint() = default;

const TensorInfo* Checkpoint::find_tensor(std::string_view name) const noexcept {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const TensorInfo& Checkpoint::tensor(std::string_view name) const {
  if (const TensorInfo* found = find_tensor(name)) return *found;
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const TensorInfo& tensor : tensors_) names.push_back(tensor.name);
  const std::optional<std::string> nearest = nearest_name(name, names);
  throw Error(ErrorCode::not_found, fmt::format("there is no tensor '{}' among the {} of the checkpoint", printable(name), tensors_.size()),
              {.file = path_.string(), .tensor = printable(name)},
              nearest ? fmt::format("did you mean '{}'?", printable(*nearest)) : "'weft info' lists the names");
}

void Checkpoint::read_stored(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  WEFT_ASSERT(tensor.stored_as.empty());  // who gives tensors such a form reads it
  read_bytes(tensor, offset, out);
}
void Checkpoint::will_read(const TensorInfo&, std::uint64_t, std::uint64_t) const noexcept {}
void Checkpoint::check_unchanged() const {}
void Checkpoint::verify_checksums() const {}

void Checkpoint::index_tensors() {
  by_name_.clear();
  by_name_.reserve(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const auto [first, is_new] = by_name_.emplace(tensors_[i].name, i);
    if (is_new) continue;
    const auto file_of = [this](std::size_t k) {
      const std::uint32_t file = tensors_[k].file_index;
      return file < files_.size() ? files_[file].path : path_;
    };
    const std::filesystem::path a = file_of(first->second), b = file_of(i);
    throw Error(ErrorCode::corrupt,
                a == b ? fmt::format("tensor '{}' is listed twice", printable(tensors_[i].name))
                       : fmt::format("tensor '{}' is in two files, '{}' and '{}'", printable(tensors_[i].name), printable(a.filename().string()),
                                     printable(b.filename().string())),
                {.file = b.string(), .tensor = printable(tensors_[i].name)}, "it is not clear which of the two counts; fetch the model again");
  }
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

}  // namespace weft
