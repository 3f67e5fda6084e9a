#include "engine/stream_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <list>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/text.h"
#include "checkpoint/file_list.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

/// Bytes of an input that are read at a time.
constexpr std::uint64_t kChunkBytes = 256 * 1024;
/// Tiles kept because only part of them was wanted: as many as threads may be reading between.
constexpr std::size_t kKeptTiles = 16;

std::uint64_t bytes_of(DType dtype, std::uint64_t num_elements) { return num_elements * static_cast<std::uint64_t>(info(dtype).bits) / 8; }

bool rounds(DType through, DType stored) { return through != stored && through != DType::f32 && through != DType::f64; }

}  // namespace

/// One tensor.
struct StreamCheckpoint::Lazy {
  StreamTensor tensor;
  std::size_t copied = 0;  ///< the input that is copied, where there is no method to run
  bool copies = false;
  std::uint64_t tile_elements = 8192;
  bool taken = false;
  std::once_flag prepared;
  std::atomic<std::uint64_t> mapped{0};  ///< elements, and again those that are read again
  std::shared_mutex in_use;              ///< shared while something is mapped
  std::once_flag finished;

  struct Kept {
    std::uint64_t tile = 0;
    std::vector<std::byte> bytes;
  };
  std::mutex kept_mutex;
  std::list<Kept> kept;
};

StreamCheckpoint::StreamCheckpoint(std::string name, std::vector<StreamTensor> tensors, const JobOptions& options) : options_(options) {
  container_ = "view";
  path_ = std::move(name);
  options_.on_progress = nullptr;
  options_.on_warning = nullptr;
  options_.memory_bytes = MemoryBudget(options.memory_bytes).limit_bytes() / 4;
  FileList files;
  for (StreamTensor& tensor : tensors) {
    TensorInfo row;
    row.name = tensor.name;
    row.dtype = tensor.dtype;
    row.shape = tensor.shape;
    row.num_elements = tensor.inputs.front().tensor->num_elements;
    row.size_bytes = bytes_of(tensor.dtype, row.num_elements);
    tensors_.push_back(std::move(row));
    for (const TensorRef& input : tensor.inputs) files.add(*input.checkpoint);
    auto lazy = std::make_unique<Lazy>();
    const auto copied = tensor.merge == nullptr ? std::optional<std::size_t>(0) : tensor.merge->copied_input();
    lazy->copies = copied.has_value();
    lazy->copied = copied.value_or(0);
    if (tensor.merge != nullptr) {
      const merge::Tiling tiling = tensor.merge->tiling();
      lazy->tile_elements = std::max<std::uint64_t>(64, tiling.elements);
      if (tiling.unit == merge::Tiling::Unit::rows) {
        const std::uint64_t row_elements = tensor.shape.empty() ? 1 : std::max<std::uint64_t>(1, static_cast<std::uint64_t>(tensor.shape.back()));
        lazy->tile_elements = std::max<std::uint64_t>(1, tiling.elements / row_elements) * row_elements;
      }
    }
    lazy->tensor = std::move(tensor);
    lazies_.push_back(std::move(lazy));
  }
  files_ = files.take();
  index_tensors();
}

StreamCheckpoint::~StreamCheckpoint() = default;

StreamCheckpoint::Lazy& StreamCheckpoint::lazy(const TensorInfo& tensor) const {
  return *lazies_[static_cast<std::size_t>(&this->tensor(tensor.name) - tensors_.data())];
}

const StreamTensor& StreamCheckpoint::plan(const TensorInfo& tensor) const { return lazy(tensor).tensor; }

std::optional<StreamTensor> StreamCheckpoint::take(const TensorInfo& tensor) {
  Lazy& one = lazy(tensor);
  if (std::exchange(one.taken, true)) return std::nullopt;
  return std::move(one.tensor);
}

std::vector<std::string> StreamCheckpoint::method_warnings() const {
  std::vector<std::string> warnings;
  for (const auto& one : lazies_) {
    if (!one->taken) warnings.insert(warnings.end(), one->tensor.warnings->begin(), one->tensor.warnings->end());
  }
  return warnings;
}

void StreamCheckpoint::prepare(Lazy& one) const {
  if (one.copies || one.tensor.merge->next_pass() == merge::Pass::none) return;
  // Readers of this tensor wait here, so the threads are free for it.
  const std::lock_guard lock(turn_);
  std::vector<StreamTensor> alone;
  alone.push_back(std::move(one.tensor));
  alone.front().writes = false;
  try {
    bytes_read_ += run_tensor_stream(
                       alone, [](std::size_t, std::uint64_t, std::span<const std::byte>) {}, options_, "reading")
                       .bytes_read;
  } catch (...) {
    one.tensor = std::move(alone.front());
    throw;
  }
  one.tensor = std::move(alone.front());
  one.tensor.writes = true;
}

void StreamCheckpoint::read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  Lazy& one = lazy(tensor);
  const TensorInfo& own = this->tensor(tensor.name);
  if (one.taken) throw Error(ErrorCode::internal, "a tensor was taken from its checkpoint and is read there", {.tensor = tensor.name});
  if (offset > own.size_bytes || out.size() > own.size_bytes - offset)
    throw Error(ErrorCode::internal, "bytes beyond the end of a tensor were asked for", {.tensor = tensor.name});
  std::call_once(one.prepared, [&] { prepare(one); });
  bytes_given_ += out.size();

  const std::uint64_t tile_bytes = bytes_of(own.dtype, one.tile_elements);
  std::uint64_t widest = static_cast<std::uint64_t>(info(own.dtype).bits);
  for (const TensorRef& input : one.tensor.inputs) widest = std::max(widest, static_cast<std::uint64_t>(info(input.tensor->dtype).bits));
  const std::uint64_t most_tiles = std::max<std::uint64_t>(1, kChunkBytes * 8 / widest / one.tile_elements);
  std::vector<std::byte> partial;
  while (!out.empty()) {
    const std::uint64_t tile = offset / tile_bytes, inside = offset % tile_bytes;
    const std::uint64_t begin = tile * tile_bytes, whole = std::min(tile_bytes, own.size_bytes - begin);
    std::size_t size = 0;
    if (inside == 0 && out.size() >= whole) {
      const std::uint64_t tiles = std::max<std::uint64_t>(1, std::min<std::uint64_t>(most_tiles, out.size() / tile_bytes));
      size = static_cast<std::size_t>(std::min(tiles * tile_bytes, own.size_bytes - begin));
      const std::uint64_t first = tile * one.tile_elements;
      compute(one, first, static_cast<std::size_t>(std::min(tiles * one.tile_elements, own.num_elements - first)), out.first(size));
    } else {
      size = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), whole - inside));
      // Readers' pieces end within tiles: the rest of one is for whoever comes next.
      const std::lock_guard lock(one.kept_mutex);
      auto kept = std::find_if(one.kept.begin(), one.kept.end(), [tile](const Lazy::Kept& k) { return k.tile == tile; });
      if (kept == one.kept.end()) {
        const std::uint64_t first = tile * one.tile_elements;
        partial.resize(static_cast<std::size_t>(whole));
        compute(one, first, static_cast<std::size_t>(std::min(one.tile_elements, own.num_elements - first)), partial);
        one.kept.push_front({tile, std::move(partial)});
        partial = {};
        if (one.kept.size() > kKeptTiles) one.kept.pop_back();
        kept = one.kept.begin();
      }
      std::memcpy(out.data(), kept->bytes.data() + inside, size);
    }
    out = out.subspan(size);
    offset += size;
  }
}

/// Elements [first, first + count), which begin at a tile.
void StreamCheckpoint::compute(Lazy& one, std::uint64_t first, std::size_t count, std::span<std::byte> out) const {
  const StreamTensor& tensor = one.tensor;
  if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed))
    throw Error(ErrorCode::interrupted, "interrupted", {}, "the same command starts again");
  const std::size_t num_inputs = tensor.inputs.size();
  const bool checks = tensor.checks_finite && !options_.allow_non_finite;
  const auto reads = [&](std::size_t i) { return one.copies ? i == one.copied : tensor.merge->reads_input(i); };
  std::vector<std::vector<std::byte>> raw(num_inputs);
  for (std::size_t i = 0; i < num_inputs; ++i) {
    if (!reads(i)) continue;
    const TensorInfo& input = *tensor.inputs[i].tensor;
    raw[i].resize(checked_size(bytes_of(input.dtype, count), "chunk"));
    tensor.inputs[i].checkpoint->read_bytes(input, bytes_of(input.dtype, first), raw[i]);
    bytes_read_ += raw[i].size();
  }
  bool as_is = false;
  if (one.copies) {
    const DType stored = tensor.inputs[one.copied].tensor->dtype;
    const bool through = (tensor.load_dtype && rounds(*tensor.load_dtype, stored)) || (tensor.compute_dtype && rounds(*tensor.compute_dtype, stored));
    as_is = stored == tensor.dtype && !through;
    if (as_is) std::memcpy(out.data(), raw[one.copied].data(), out.size());
    if (as_is && !(checks && is_decodable_float(stored))) return;
  }

  std::vector<std::vector<float>> decoded(num_inputs);
  std::vector<const float*> pointers(num_inputs);
  std::vector<float> zeros, result;
  for (std::size_t begin = 0; begin < count; begin += static_cast<std::size_t>(one.tile_elements)) {
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(one.tile_elements, count - begin));
    for (std::size_t i = 0; i < num_inputs; ++i) {
      if (!reads(i)) {
        zeros.resize(std::max(zeros.size(), size));
        pointers[i] = zeros.data();
        continue;
      }
      const DType stored = tensor.inputs[i].tensor->dtype;
      decoded[i].resize(size);
      math::decode(stored, std::span(raw[i]).subspan(bytes_of(stored, begin), bytes_of(stored, size)), decoded[i]);
      if (tensor.load_dtype && rounds(*tensor.load_dtype, stored)) math::round_through(*tensor.load_dtype, decoded[i]);
      pointers[i] = decoded[i].data();
      if (const std::uint64_t bad = checks ? math::count_non_finite(decoded[i]) : 0; bad != 0)
        throw Error(ErrorCode::corrupt,
                    fmt::format("tensor '{}' of {} holds values that are NaN or infinite", printable(tensor.inputs[i].tensor->name),
                                i < tensor.input_names.size() ? tensor.input_names[i] : tensor.inputs[i].checkpoint->path().string()),
                    {.tensor = printable(tensor.inputs[i].tensor->name)},
                    "the model is damaged or its training diverged; --allow-non-finite lets such values through");
    }
    const std::span<std::byte> written = out.subspan(bytes_of(tensor.dtype, begin), bytes_of(tensor.dtype, size));
    std::span<float> values;
    if (one.copies) {
      if (as_is) continue;  // copied above, only checked here
      values = decoded[one.copied];
    } else {
      result.resize(size);
      {
        const std::shared_lock lock(one.in_use);
        tensor.merge->map(merge::Tile{first + begin, size, pointers}, result);
      }
      values = result;
      if (checks && math::count_non_finite(values) != 0)
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("the result for tensor '{}' would hold values that are NaN or infinite", printable(tensor.name)),
                    {.tensor = printable(tensor.name)},
                    "the inputs are finite, so the parameters are too large for this method; --allow-non-finite lets such values through");
    }
    if (tensor.compute_dtype && rounds(*tensor.compute_dtype, DType::f32) && *tensor.compute_dtype != tensor.dtype)
      math::round_through(*tensor.compute_dtype, values);
    math::encode(tensor.dtype, values, written);
  }
  if (!one.copies && one.mapped.fetch_add(count) + count == tensor.inputs.front().tensor->num_elements)
    std::call_once(one.finished, [&] {
      // Whoever reads in several passes may have counted one part twice while another is still mapped. What is mapped later does without the caches.
      const std::unique_lock lock(one.in_use);
      one.tensor.merge->finish();
    });
}

}  // namespace weft::engine
