#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/tensor_stream.h"
#include "weft/checkpoint.h"
#include "weft/job.h"

// Planned tensors as a checkpoint: what a merge would write can be read, and so be the input of another step, without being written.
namespace weft::engine {

/// Tensors are computed when they are asked for. The passes of a method over a tensor are made before its first byte, on all threads, one tensor at a
/// time; what is read in order is computed once. Memory: that of one stream with a quarter of the budget, and some tiles a reader.
/// A writer that takes a tensor as it is does better to take the plan of it (take()), which needs nothing twice.
class StreamCheckpoint final : public Checkpoint {
 public:
  /// name: for messages. options: threads, budget, whether NaN may pass, cancellation.
  StreamCheckpoint(std::string name, std::vector<StreamTensor> tensors, const JobOptions& options);
  ~StreamCheckpoint() override;

  /// Errors: those of run_tensor_stream; corrupt for values that are not finite.
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override;

  /// How a tensor is made.
  [[nodiscard]] const StreamTensor& plan(const TensorInfo& tensor) const;
  /// The plan of a tensor, to be run elsewhere; once, and the tensor can then not be read here. Nothing when it was taken.
  [[nodiscard]] std::optional<StreamTensor> take(const TensorInfo& tensor);
  /// Bytes read from the inputs for what was read here, and bytes given to readers.
  [[nodiscard]] std::uint64_t bytes_read() const noexcept { return bytes_read_; }
  [[nodiscard]] std::uint64_t bytes_given() const noexcept { return bytes_given_; }
  /// What methods had to say about the tensors that were read here; those of one tensor are complete once all of it was read.
  [[nodiscard]] std::vector<std::string> method_warnings() const;

 private:
  struct Lazy;
  [[nodiscard]] Lazy& lazy(const TensorInfo& tensor) const;
  void prepare(Lazy& lazy) const;
  void compute(Lazy& lazy, std::uint64_t first, std::size_t count, std::span<std::byte> out) const;

  JobOptions options_;
  std::vector<std::unique_ptr<Lazy>> lazies_;
  mutable std::atomic<std::uint64_t> bytes_read_{0};
  mutable std::atomic<std::uint64_t> bytes_given_{0};
  mutable std::mutex turn_;  ///< one tensor's passes at a time
};

}  // namespace weft::engine
