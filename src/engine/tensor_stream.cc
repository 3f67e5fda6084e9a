#include "engine/tensor_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "base/budget.h"
#include "base/check.h"
#include "base/progress.h"
#include "base/threads.h"
#include "math/convert.h"
#include "math/reduce.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using merge::Pass;

// Large enough that a system call costs little beside its copy, small enough that a worker's inputs and output stay in the second-level cache.
constexpr std::uint64_t kDefaultChunkBytes = 256 * 1024;
constexpr std::uint64_t kMinChunkBytes = 16 * 1024;
// How far ahead of the workers the system is told to read.
constexpr std::uint64_t kReadAheadChunks = 16;

std::uint64_t bytes_of(DType dtype, std::uint64_t num_elements) { return num_elements * static_cast<std::uint64_t>(info(dtype).bits) / 8; }

bool rounds(DType through, DType stored) { return through != stored && through != DType::f32 && through != DType::f64; }

/// What has to be known of a tensor before it runs.
struct Geometry {
  std::uint64_t num_elements = 0;
  std::uint64_t tile_elements = 0;   ///< of a full tile
  std::uint64_t num_tiles = 0;
  std::uint64_t widest_bits = 0;     ///< of one element of all inputs together and the output
  bool is_whole = false;             ///< one tile, in buffers of its own
};

Geometry geometry_of(const StreamTensor& tensor) {
  Geometry g;
  g.num_elements = tensor.inputs.front().tensor->num_elements;
  merge::Tiling tiling;
  if (tensor.merge != nullptr) tiling = tensor.merge->tiling();
  g.tile_elements = std::max<std::uint64_t>(64, tiling.elements);
  if (tiling.unit == merge::Tiling::Unit::rows || tensor.whole_rows) {
    const std::uint64_t row = tensor.shape.empty() ? 1 : std::max<std::uint64_t>(1, static_cast<std::uint64_t>(tensor.shape.back()));
    g.tile_elements = std::max<std::uint64_t>(1, tiling.elements / row) * row;
  }
  // What is only copied is copied in pieces.
  g.is_whole = tiling.unit == merge::Tiling::Unit::whole && !tensor.merge->copied_input();
  if (g.is_whole) g.tile_elements = std::max<std::uint64_t>(1, g.num_elements);
  g.num_tiles = g.num_elements == 0 ? 0 : (g.num_elements - 1) / g.tile_elements + 1;
  for (const TensorRef& input : tensor.inputs) g.widest_bits += static_cast<std::uint64_t>(info(input.tensor->dtype).bits);
  g.widest_bits += static_cast<std::uint64_t>(info(tensor.dtype).bits);
  return g;
}

/// Tiles that one chunk of about chunk_bytes an input holds.
std::uint64_t tiles_per_chunk(const StreamTensor& tensor, const Geometry& g, std::uint64_t chunk_bytes) {
  std::uint64_t widest = static_cast<std::uint64_t>(info(tensor.dtype).bits);
  for (const TensorRef& input : tensor.inputs) widest = std::max(widest, static_cast<std::uint64_t>(info(input.tensor->dtype).bits));
  return std::clamp<std::uint64_t>(chunk_bytes * 8 / widest / g.tile_elements, 1, std::max<std::uint64_t>(1, g.num_tiles));
}

/// Memory of one worker on this tensor: raw bytes of a chunk of every input and of the output, and one decoded tile of each.
std::uint64_t working_bytes(const StreamTensor& tensor, const Geometry& g, std::uint64_t chunk_bytes) {
  const std::uint64_t chunk_elements = std::min(g.num_elements, tiles_per_chunk(tensor, g, chunk_bytes) * g.tile_elements);
  const std::uint64_t scratch = tensor.merge != nullptr ? tensor.merge->scratch_bytes() : 0;
  return chunk_elements * g.widest_bits / 8 + std::min(g.num_elements, g.tile_elements) * 4 * (tensor.inputs.size() + 1) + scratch + 4096;
}

/// Of that what each worker keeps from tensor to tensor: what is worked on as a whole is admitted by its own bytes, and gives them back.
std::uint64_t worker_bytes(const StreamTensor& tensor, const Geometry& g, std::uint64_t chunk_bytes) {
  return g.is_whole ? 0 : working_bytes(tensor, g, chunk_bytes);
}

/// What the process takes whatever it merges: code, plan, allocator. Not for work.
std::uint64_t reserved_bytes(std::uint64_t limit_bytes) { return std::min<std::uint64_t>(limit_bytes / 8, std::uint64_t{16} << 20); }

/// What the methods may gather for one tensor: half of what the buffers leave, so that the next tensor can begin. Tells the method; returns what it
/// and the sums by tile will hold at most, and the buffers of a tensor that is worked on as a whole.
std::uint64_t state_bytes(const StreamTensor& tensor, const Geometry& g, std::uint64_t free_bytes, int workers) {
  if (tensor.merge == nullptr) return 0;
  const std::uint64_t sums = g.num_tiles * std::max(tensor.merge->most_sums(), tensor.merge->num_sums()) * sizeof(double);
  const std::uint64_t room = free_bytes / 2;
  return sums + tensor.merge->limit_memory(room - std::min(room, sums), workers) + (g.is_whole ? working_bytes(tensor, g, 0) : 0);
}

/// Threads and chunk size that fit the budget.
struct Sizing {
  int threads = 1;
  std::uint64_t chunk_bytes = kDefaultChunkBytes;
  std::uint64_t buffers_bytes = 0;
};

Sizing choose_sizing(const std::vector<StreamTensor>& tensors, const JobOptions& options, std::uint64_t limit_bytes) {
  Sizing sizing;
  sizing.threads = options.threads > 0 ? options.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  sizing.chunk_bytes = options.chunk_bytes != 0 ? options.chunk_bytes : kDefaultChunkBytes;
  const StreamTensor* largest = nullptr;
  const auto need = [&](std::uint64_t chunk_bytes) {
    std::uint64_t most = 0;
    for (const StreamTensor& tensor : tensors) {
      const std::uint64_t bytes = worker_bytes(tensor, geometry_of(tensor), chunk_bytes);
      if (bytes > most) {
        most = bytes;
        largest = &tensor;
      }
    }
    return most;
  };
  // A quarter of the budget is left for what the methods gather.
  const std::uint64_t for_buffers = limit_bytes - limit_bytes / 4 - reserved_bytes(limit_bytes);
  std::uint64_t one = need(sizing.chunk_bytes);
  while (one * static_cast<std::uint64_t>(sizing.threads) > for_buffers && sizing.chunk_bytes > kMinChunkBytes) {
    sizing.chunk_bytes = std::max(kMinChunkBytes, sizing.chunk_bytes / 2);
    one = need(sizing.chunk_bytes);
  }
  while (one * static_cast<std::uint64_t>(sizing.threads) > for_buffers && sizing.threads > 1) --sizing.threads;
  if (one > for_buffers) {
    throw Error(ErrorCode::out_of_memory,
                fmt::format("tensor '{}' {} needs {} bytes of buffers, but the memory budget leaves {}", largest->name, to_string(largest->shape), one, for_buffers),
                {.tensor = largest->name}, "raise --memory");
  }
  sizing.buffers_bytes = one * static_cast<std::uint64_t>(sizing.threads);
  return sizing;
}

/// The most that any tensor needs besides the buffers. Throws out_of_memory, with both numbers, where that is more than there is: before any work.
std::uint64_t most_state_bytes(const std::vector<StreamTensor>& tensors, const Sizing& sizing, std::uint64_t limit_bytes) {
  const std::uint64_t free_bytes = limit_bytes - sizing.buffers_bytes - reserved_bytes(limit_bytes);
  std::uint64_t most = 0;
  for (const StreamTensor& tensor : tensors) {
    if (tensor.finished) continue;
    const Geometry geometry = geometry_of(tensor);
    const std::uint64_t needed = state_bytes(tensor, geometry, free_bytes, sizing.threads);
    if (needed > free_bytes)
      throw Error(ErrorCode::out_of_memory,
                  fmt::format("tensor '{}' {} needs {} bytes{}, but of the memory budget of {} bytes {} are left for it", tensor.name,
                              to_string(tensor.shape), needed, geometry.is_whole ? ", because it is worked on as a whole" : " besides the buffers",
                              limit_bytes, free_bytes),
                  {.tensor = tensor.name}, fmt::format("raise --memory by {} bytes or more", needed - free_bytes));
    most = std::max(most, needed);
  }
  return most;
}

/// A range of tiles, read at once.
struct Chunk {
  std::uint64_t first_tile = 0;
  std::uint64_t num_tiles = 0;
};

enum class Stage { copy, reduce, map };

/// One tensor under way.
struct Job {
  std::size_t index = 0;
  StreamTensor* tensor = nullptr;
  Geometry geometry;
  Stage stage = Stage::map;
  Pass pass = Pass::none;
  std::vector<Chunk> chunks;                ///< of this stage
  std::size_t next_chunk = 0;
  std::size_t outstanding = 0;
  bool solving = false;
  bool finite_checked = false;              ///< a whole pass has looked at every input
  bool check_now = false;                   ///< this stage looks
  std::size_t copy_source = 0;              ///< input that is copied
  bool counted_half = false;                ///< half of the progress was counted in a reduce pass
  std::vector<double> sums;                 ///< [num_tiles, num_sums] of this pass
  std::size_t num_sums = 0;
  std::vector<std::unique_ptr<merge::Tally>> tallies;  ///< one a worker
  std::vector<std::atomic<std::uint64_t>> non_finite;  ///< an input
  std::atomic<std::uint64_t> non_finite_out{0};
  std::atomic<std::uint64_t> overflowed{0};
  std::atomic<std::uint64_t> differing{0};  ///< bytes in which copies differ
  MemoryBudget::Share share;
  MemoryBudget::Share cache_share;          ///< empty: the method works without its cache

  explicit Job(std::size_t num_inputs) : non_finite(num_inputs) {}
};

/// Buffers of one worker; grown as needed, never beyond what the sizing promised.
struct Worker {
  std::vector<std::vector<std::byte>> raw;
  std::vector<std::vector<float>> decoded;
  std::vector<float> result;
  std::vector<std::byte> encoded;
  std::vector<const float*> pointers;
  std::vector<float> zeros;
};

template <class T>
std::span<T> at_least(std::vector<T>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return std::span(buffer).first(size);
}

class Stream {
 public:
  Stream(std::vector<StreamTensor>& tensors, const TensorWriter& write, const JobOptions& options, const char* what, const TensorFinished& finished)
      : tensors_(tensors),
        write_(write),
        tell_finished_(finished),
        options_(options),
        budget_(options.memory_bytes),
        sizing_(choose_sizing(tensors, options, budget_.limit_bytes())),
        buffers_(budget_.acquire(sizing_.buffers_bytes + reserved_bytes(budget_.limit_bytes()), "buffers")),
        pool_(sizing_.threads),
        workers_(static_cast<std::size_t>(sizing_.threads)),
        meter_(options.on_progress, what, total_bytes(tensors)) {
    static_cast<void>(most_state_bytes(tensors, sizing_, budget_.limit_bytes()));
  }

  StreamResult run() {
    pool_.run([this](int worker) { work(worker); });
    if (failure_) std::rethrow_exception(failure_);
    meter_.finish();
    StreamResult result;
    result.bytes_read = bytes_read_;
    result.bytes_written = bytes_written_;
    for (StreamTensor& tensor : tensors_) {
      result.warnings.insert(result.warnings.end(), tensor.warnings->begin(), tensor.warnings->end());
    }
    return result;
  }

 private:
  static std::uint64_t size_of(const StreamTensor& tensor) {
    if (tensor.writes) return bytes_of(tensor.dtype, tensor.inputs.front().tensor->num_elements);
    return tensor.inputs.front().tensor->size_bytes;
  }
  static std::uint64_t total_bytes(const std::vector<StreamTensor>& tensors) {
    std::uint64_t total = 0;
    for (const StreamTensor& tensor : tensors) total += size_of(tensor);
    return total;
  }

  // --- Scheduling: the earliest tensor that has work goes first, so files are read and written nearly in order ---

  struct Work {
    Job* job = nullptr;
    Chunk chunk;
  };

  void work(int worker) {
    try {
      for (;;) {
        const std::optional<Work> next = take();
        if (!next) return;
        process(*next->job, next->chunk, static_cast<std::size_t>(worker));
        done(*next->job);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      changed_.notify_all();
    }
  }

  std::optional<Work> take() {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (failure_) return std::nullopt;
      if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed)) {
        throw Error(ErrorCode::interrupted, "interrupted");
      }
      for (Job& job : active_) {
        if (job.solving || job.next_chunk == job.chunks.size()) continue;
        const Chunk chunk = job.chunks[job.next_chunk++];
        ++job.outstanding;
        hint(job);
        return Work{&job, chunk};
      }
      if (next_tensor_ < tensors_.size() && active_.size() < workers_.size() + 2 && admit()) continue;
      if (active_.empty() && next_tensor_ == tensors_.size()) return std::nullopt;
      changed_.wait(lock);
    }
  }

  /// Starts the next tensor. Returns false when it has to wait for those under way: for their memory, or for what they write.
  bool admit() {
    StreamTensor& tensor = tensors_[next_tensor_];
    if (tensor.finished) {
      meter_.add(size_of(tensor));
      finished_[next_tensor_++] = true;
      return true;
    }
    for (const std::size_t earlier : tensor.after) {
      WEFT_ASSERT(earlier < next_tensor_);
      if (!finished_[earlier]) return false;
    }
    const Geometry geometry = geometry_of(tensor);
    const std::uint64_t free_bytes = budget_.limit_bytes() - buffers_.size_bytes();
    const std::uint64_t needed = state_bytes(tensor, geometry, free_bytes, sizing_.threads);
    WEFT_ASSERT(needed <= free_bytes);  // or it had been refused
    MemoryBudget::Share share;
    if (active_.empty()) {
      share = budget_.acquire(needed, tensor.name.c_str());
    } else if (!budget_.try_acquire(needed, share)) {
      return false;
    }
    Job& job = active_.emplace_back(tensor.inputs.size());
    job.index = next_tensor_++;
    job.tensor = &tensor;
    job.geometry = geometry;
    job.share = std::move(share);
    const auto copied = tensor.merge == nullptr ? std::optional<std::size_t>(0) : tensor.merge->copied_input();
    if (copied && (tensor.writes || tensor.merge == nullptr)) {
      job.stage = Stage::copy;
      job.copy_source = *copied;
      job.check_now = tensor.checks_finite;
      job.chunks = cut(job);
    } else {
      // What saves repeated work may take an eighth of the budget, where that is free.
      const std::uint64_t cache_bytes = tensor.writes ? tensor.merge->cache_bytes() : 0;
      if (cache_bytes > 0 && cache_bytes <= budget_.limit_bytes() / 8 && budget_.try_acquire(cache_bytes, job.cache_share)) tensor.merge->use_cache();
      begin_pass(job);
    }
    if (job.chunks.empty()) finish_stage(job);
    return true;
  }

  std::vector<Chunk> cut(const Job& job) const {
    const std::uint64_t step = tiles_per_chunk(*job.tensor, job.geometry, sizing_.chunk_bytes);
    std::vector<Chunk> chunks;
    for (std::uint64_t tile = 0; tile < job.geometry.num_tiles; tile += step) chunks.push_back({tile, std::min(step, job.geometry.num_tiles - tile)});
    return chunks;
  }

  /// Enters the next reduce pass, or the map stage when no more are wanted.
  void begin_pass(Job& job) {
    merge::TensorMerge& merge = *job.tensor->merge;
    job.pass = merge.next_pass();
    job.next_chunk = 0;
    if (job.pass == Pass::none) {
      job.stage = Stage::map;
      job.check_now = job.tensor->checks_finite && !job.finite_checked;
      job.chunks = job.tensor->writes ? cut(job) : std::vector<Chunk>{};
      return;
    }
    job.stage = Stage::reduce;
    job.check_now = job.pass == Pass::whole && job.tensor->checks_finite && !job.finite_checked;
    job.num_sums = merge.num_sums();
    job.sums.assign(job.geometry.num_tiles * job.num_sums, 0.0);
    job.tallies.clear();
    job.tallies.resize(workers_.size());
    if (job.pass == Pass::whole) {
      job.chunks = cut(job);
      return;
    }
    job.chunks.clear();
    for (std::uint64_t tile = 0; tile < job.geometry.num_tiles; ++tile) {
      if (merge.wants_tile(tile * job.geometry.tile_elements, tile_size(job, tile))) job.chunks.push_back({tile, 1});
    }
  }

  static std::size_t tile_size(const Job& job, std::uint64_t tile) {
    return static_cast<std::size_t>(std::min(job.geometry.tile_elements, job.geometry.num_elements - tile * job.geometry.tile_elements));
  }

  void done(Job& job) {
    std::unique_lock lock(mutex_);
    WEFT_ASSERT(job.outstanding > 0);
    --job.outstanding;
    if (job.outstanding > 0 || job.next_chunk < job.chunks.size()) return;
    if (job.stage == Stage::reduce) {
      // Solving may take a while; others go on with the tensors behind.
      job.solving = true;
      lock.unlock();
      solve(job);
      lock.lock();
      job.solving = false;
      begin_pass(job);
      if (job.chunks.empty()) finish_stage(job);
    } else {
      finish_stage(job);
    }
    changed_.notify_all();
  }

  /// The stage of a job is over (or was empty). Called with the lock held, except that nothing else looks at this job.
  void finish_stage(Job& job) {
    while (job.stage == Stage::reduce) {
      solve(job);
      begin_pass(job);
      if (!job.chunks.empty()) return;
    }
    if (job.tensor->merge != nullptr && job.stage == Stage::map) job.tensor->merge->finish();
    report(job);
    if (tell_finished_) tell_finished_(job.index);
    // What a method still holds is not counted any more. Comparisons are read by those who asked for them.
    if (job.tensor->writes) job.tensor->merge.reset();
    finished_[job.index] = true;
    active_.remove_if([&job](const Job& other) { return &other == &job; });
  }

  void solve(Job& job) {
    refuse_non_finite(job);
    if (job.pass == Pass::whole) job.finite_checked = true;
    std::vector<double> totals(job.num_sums, 0.0);
    for (std::uint64_t tile = 0; tile < job.geometry.num_tiles; ++tile) {
      for (std::size_t k = 0; k < job.num_sums; ++k) totals[k] += job.sums[tile * job.num_sums + k];
    }
    std::vector<double>().swap(job.sums);
    std::erase(job.tallies, nullptr);
    job.tensor->merge->solve(totals, job.tallies);
    job.tallies.clear();
  }

  void hint(const Job& job) const {
    if (job.stage == Stage::reduce && job.pass == Pass::sample) return;
    const std::size_t position = job.next_chunk - 1;
    if (position % kReadAheadChunks != 0) return;
    const std::size_t first = position == 0 ? 0 : position + kReadAheadChunks;
    const std::size_t last = std::min(job.chunks.size(), position + 2 * kReadAheadChunks);
    if (first >= last) return;
    const std::uint64_t begin = job.chunks[first].first_tile * job.geometry.tile_elements;
    const std::uint64_t end = std::min(job.geometry.num_elements, (job.chunks[last - 1].first_tile + job.chunks[last - 1].num_tiles) * job.geometry.tile_elements);
    for (std::size_t i = 0; i < job.tensor->inputs.size(); ++i) {
      if (!reads(job, i)) continue;
      const TensorRef& input = job.tensor->inputs[i];
      input.checkpoint->will_read(*input.tensor, bytes_of(input.tensor->dtype, begin), bytes_of(input.tensor->dtype, end - begin));
    }
  }

  static bool reads(const Job& job, std::size_t input) {
    if (job.stage == Stage::copy) return input == job.copy_source || job.tensor->merge == nullptr;
    return job.tensor->merge->reads_input(input);
  }

  // --- Work on one chunk ---

  void process(Job& job, const Chunk& chunk, std::size_t worker_index) {
    Worker own;  // given back at once
    Worker& worker = job.geometry.is_whole ? own : workers_[worker_index];
    const std::uint64_t first = chunk.first_tile * job.geometry.tile_elements;
    const auto count = static_cast<std::size_t>(std::min(job.geometry.num_elements - first, chunk.num_tiles * job.geometry.tile_elements));
    const std::size_t num_inputs = job.tensor->inputs.size();
    if (worker.raw.size() < num_inputs) {
      worker.raw.resize(num_inputs);
      worker.decoded.resize(num_inputs);
    }
    for (std::size_t i = 0; i < num_inputs; ++i) {
      if (reads(job, i)) read(job, i, first, count, worker.raw[i]);
    }
    std::uint64_t progress = bytes_of(job.tensor->writes ? job.tensor->dtype : job.tensor->inputs.front().tensor->dtype, count);
    switch (job.stage) {
      case Stage::copy: copy(job, first, count, worker); break;
      case Stage::reduce:
        reduce(job, chunk, worker, worker_index);
        if (job.pass == Pass::sample || job.finite_checked) progress = 0;
        else if (job.tensor->writes) progress /= 2;
        break;
      case Stage::map:
        map(job, chunk, count, worker);
        if (job.finite_checked) progress -= progress / 2;
        break;
    }
    meter_.add(progress);
  }

  void read(Job& job, std::size_t i, std::uint64_t first, std::size_t count, std::vector<std::byte>& raw) {
    const TensorRef& input = job.tensor->inputs[i];
    const auto size = static_cast<std::size_t>(bytes_of(input.tensor->dtype, count));
    input.checkpoint->read_bytes(*input.tensor, bytes_of(input.tensor->dtype, first), at_least(raw, size));
    bytes_read_.fetch_add(size, std::memory_order_relaxed);
  }

  /// Decodes elements [begin, begin + count) of the chunk in input i; returns where they are.
  const float* decode(Job& job, std::size_t i, std::size_t begin, std::size_t count, Worker& worker) {
    const StreamTensor& tensor = *job.tensor;
    const DType stored = tensor.inputs[i].tensor->dtype;
    const std::span<const std::byte> raw = std::span(worker.raw[i]).subspan(bytes_of(stored, begin), bytes_of(stored, count));
    const bool round = tensor.load_dtype && rounds(*tensor.load_dtype, stored);
    // The buffer comes from the allocator and tiles are multiples of 64 elements, so float32 needs no copy.
    if (stored == DType::f32 && !round && reinterpret_cast<std::uintptr_t>(raw.data()) % alignof(float) == 0) {
      return reinterpret_cast<const float*>(raw.data());
    }
    const std::span<float> out = at_least(worker.decoded[i], count);
    math::decode(stored, raw, out);
    if (round) math::round_through(*tensor.load_dtype, out);
    return out.data();
  }

  /// Fills worker.pointers for one tile. False when a value was not finite and the tile must not be used.
  bool load_tile(Job& job, std::size_t begin, std::size_t count, Worker& worker) {
    const std::size_t num_inputs = job.tensor->inputs.size();
    worker.pointers.resize(num_inputs);
    bool usable = true;
    for (std::size_t i = 0; i < num_inputs; ++i) {
      if (!reads(job, i)) {
        worker.pointers[i] = at_least(worker.zeros, count).data();
        continue;
      }
      worker.pointers[i] = decode(job, i, begin, count, worker);
      if (!options_.allow_non_finite && (job.check_now || job.pass == Pass::sample)) {
        const std::uint64_t bad = math::count_non_finite({worker.pointers[i], count});
        if (bad == 0) continue;
        usable = false;
        if (job.check_now) job.non_finite[i].fetch_add(bad, std::memory_order_relaxed);
      }
    }
    return usable;
  }

  void reduce(Job& job, const Chunk& chunk, Worker& worker, std::size_t worker_index) {
    merge::TensorMerge& merge = *job.tensor->merge;
    std::unique_ptr<merge::Tally>& tally = job.tallies[worker_index];
    if (tally == nullptr) tally = merge.new_tally();
    std::size_t begin = 0;
    for (std::uint64_t t = chunk.first_tile; t < chunk.first_tile + chunk.num_tiles; ++t) {
      const std::size_t count = tile_size(job, t);
      if (load_tile(job, begin, count, worker)) {
        const merge::Tile tile{t * job.geometry.tile_elements, count, worker.pointers};
        merge.reduce(tile, std::span(job.sums).subspan(t * job.num_sums, job.num_sums), tally.get());
      }
      begin += count;
    }
  }

  void map(Job& job, const Chunk& chunk, std::size_t chunk_count, Worker& worker) {
    const StreamTensor& tensor = *job.tensor;
    const std::span<std::byte> encoded = at_least(worker.encoded, bytes_of(tensor.dtype, chunk_count));
    std::size_t begin = 0;
    for (std::uint64_t t = chunk.first_tile; t < chunk.first_tile + chunk.num_tiles; ++t) {
      const std::size_t count = tile_size(job, t);
      if (load_tile(job, begin, count, worker)) {
        const std::span<float> out = at_least(worker.result, count);
        tensor.merge->map(merge::Tile{t * job.geometry.tile_elements, count, worker.pointers}, out);
        encode(job, out, encoded.subspan(bytes_of(tensor.dtype, begin), bytes_of(tensor.dtype, count)));
      }
      begin += count;
    }
    write(job, chunk.first_tile * job.geometry.tile_elements, encoded);
  }

  void encode(Job& job, std::span<float> values, std::span<std::byte> out) {
    const StreamTensor& tensor = *job.tensor;
    if (tensor.checks_finite && !options_.allow_non_finite) {
      const std::uint64_t bad = math::count_non_finite(values);
      if (bad != 0) job.non_finite_out.fetch_add(bad, std::memory_order_relaxed);
    }
    if (tensor.compute_dtype && rounds(*tensor.compute_dtype, DType::f32) && *tensor.compute_dtype != tensor.dtype) {
      math::round_through(*tensor.compute_dtype, values);
    }
    // The narrow float types end early enough for real weights to leave them.
    const double limit = tensor.dtype == DType::f16 ? 65504 : tensor.dtype == DType::f8_e4m3 ? 448 : tensor.dtype == DType::f8_e5m2 ? 57344 : 0;
    if (limit != 0 && math::max_abs(values) > limit) {
      job.overflowed.fetch_add(static_cast<std::uint64_t>(std::count_if(values.begin(), values.end(), [limit](float x) { return x > limit || x < -limit; })),
                               std::memory_order_relaxed);
    }
    math::encode(tensor.dtype, values, out);
  }

  void copy(Job& job, std::uint64_t first, std::size_t count, Worker& worker) {
    const StreamTensor& tensor = *job.tensor;
    const DType stored = tensor.inputs[job.copy_source].tensor->dtype;
    const std::span<const std::byte> raw = std::span(worker.raw[job.copy_source]).first(bytes_of(stored, count));
    if (tensor.merge == nullptr) {
      for (std::size_t i = 1; i < tensor.inputs.size(); ++i) {
        const std::size_t size = bytes_of(tensor.inputs[i].tensor->dtype, count);
        if (size != raw.size() || std::memcmp(worker.raw[i].data(), raw.data(), size) != 0) job.differing.fetch_add(1, std::memory_order_relaxed);
      }
    }
    const bool through = (tensor.load_dtype && rounds(*tensor.load_dtype, stored)) || (tensor.compute_dtype && rounds(*tensor.compute_dtype, stored));
    const bool as_is = stored == tensor.dtype && !through;
    const bool check = tensor.checks_finite && !options_.allow_non_finite && is_decodable_float(stored);
    if (as_is && !check) return write(job, first, raw);
    const std::span<std::byte> encoded = at_least(worker.encoded, as_is ? 0 : bytes_of(tensor.dtype, count));
    for (std::size_t begin = 0; begin < count; begin += job.geometry.tile_elements) {
      const std::size_t size = std::min<std::size_t>(job.geometry.tile_elements, count - begin);
      const float* values = decode(job, job.copy_source, begin, size, worker);
      if (check) {
        const std::uint64_t bad = math::count_non_finite({values, size});
        if (bad != 0) job.non_finite[job.copy_source].fetch_add(bad, std::memory_order_relaxed);
      }
      if (as_is) continue;
      const std::span<float> out = at_least(worker.result, size);
      std::copy_n(values, size, out.begin());
      encode(job, out, encoded.subspan(bytes_of(tensor.dtype, begin), bytes_of(tensor.dtype, size)));
    }
    write(job, first, as_is ? raw : encoded);
  }

  void write(Job& job, std::uint64_t first, std::span<const std::byte> data) {
    if (!job.tensor->writes) return;
    write_(job.index, bytes_of(job.tensor->dtype, first), data);
    bytes_written_.fetch_add(data.size(), std::memory_order_relaxed);
  }

  // --- What is said about a tensor ---

  void refuse_non_finite(const Job& job) const {
    const StreamTensor& tensor = *job.tensor;
    for (std::size_t i = 0; i < job.non_finite.size(); ++i) {
      const std::uint64_t bad = job.non_finite[i].load();
      if (bad == 0) continue;
      const TensorRef& input = tensor.inputs[i];
      const std::string model = i < tensor.input_names.size() ? tensor.input_names[i] : input.checkpoint->path().string();
      throw Error(ErrorCode::corrupt,
                  fmt::format("tensor '{}' of {} holds {} values that are NaN or infinite", input.tensor->name, model, bad),
                  {.file = input.checkpoint->files().empty() ? std::string() : input.checkpoint->files()[input.tensor->file_index].path.string(),
                   .tensor = input.tensor->name},
                  "the model is damaged or its training diverged; --allow-non-finite lets such values through");
    }
    const std::uint64_t bad = job.non_finite_out.load();
    if (bad != 0) {
      throw Error(ErrorCode::invalid_argument, fmt::format("the result for tensor '{}' would hold {} values that are NaN or infinite", tensor.name, bad),
                  {.tensor = tensor.name}, "the inputs are finite, so the parameters are too large for this method; --allow-non-finite lets such values through");
    }
  }

  void report(const Job& job) const {
    refuse_non_finite(job);
    const StreamTensor& tensor = *job.tensor;
    if (const std::uint64_t n = job.overflowed.load(); n != 0) {
      tensor.warnings->push_back(fmt::format("{} values of '{}' are outside the range of {}", n, tensor.name, to_string(tensor.dtype)));
    }
    if (job.differing.load() != 0) {
      tensor.warnings->push_back(fmt::format("'{}' ({}) is not merged and differs between the models; the first one's was copied", tensor.name,
                                             to_string(tensor.inputs.front().tensor->dtype)));
    }
  }

  std::vector<StreamTensor>& tensors_;
  const TensorWriter& write_;
  const TensorFinished& tell_finished_;
  const JobOptions& options_;
  MemoryBudget budget_;
  Sizing sizing_;
  MemoryBudget::Share buffers_;
  WorkerPool pool_;
  std::vector<Worker> workers_;
  ProgressMeter meter_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Job> active_;          ///< in order; stable addresses
  std::size_t next_tensor_ = 0;
  std::vector<bool> finished_ = std::vector<bool>(tensors_.size(), false);
  std::exception_ptr failure_;
  std::atomic<std::uint64_t> bytes_read_{0};
  std::atomic<std::uint64_t> bytes_written_{0};
};

}  // namespace

StreamResult run_tensor_stream(std::vector<StreamTensor>& tensors, const TensorWriter& write, const JobOptions& options, const char* what,
                               const TensorFinished& finished) {
  if (tensors.empty()) return {};
  return Stream(tensors, write, options, what, finished).run();
}

std::uint64_t estimate_stream_memory(const std::vector<StreamTensor>& tensors, const JobOptions& options) {
  if (tensors.empty()) return 0;
  const MemoryBudget budget(options.memory_bytes);
  const Sizing sizing = choose_sizing(tensors, options, budget.limit_bytes());
  return sizing.buffers_bytes + reserved_bytes(budget.limit_bytes()) + most_state_bytes(tensors, sizing, budget.limit_bytes());
}

}  // namespace weft::engine
