#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/output.h"
#include "merge/method.h"
#include "weft/checkpoint.h"
#include "weft/job.h"

// TensorStream: walks the tensors of an output in file order, in bounded memory, with reading, arithmetic and writing overlapped.
namespace weft::engine {

/// A tensor of some checkpoint.
struct SourceTensor {
  std::shared_ptr<const Checkpoint> checkpoint;
  const TensorInfo* tensor = nullptr;   ///< lives in the checkpoint
};

/// One output tensor: where its values come from and how they are combined.
struct StreamTensor {
  std::string name;
  Shape shape;
  DType dtype = DType::f32;                  ///< written
  std::vector<SourceTensor> inputs;
  std::optional<DType> load_dtype;           ///< inputs are rounded through this type first
  std::optional<DType> compute_dtype;        ///< the result is rounded through this type before dtype
  std::unique_ptr<merge::TensorMerge> merge; ///< null: copy input 0
};

/// What the stream did.
struct StreamResult {
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
};

/// Computes every tensor and writes it to its place in `output` (files and offsets were planned there, by name).
/// Same bytes for any number of threads and any chunk size. Errors: those of reading and writing; corrupt for non-finite inputs (unless allowed),
/// naming the tensor, the model and the count; out_of_memory when one tile or tensor cannot fit the budget.
StreamResult run_tensor_stream(std::vector<StreamTensor>& tensors, OutputFolder& output, const JobOptions& options, const char* what);

/// The memory that running this will take, for plans.
[[nodiscard]] std::uint64_t estimate_stream_memory(const std::vector<StreamTensor>& tensors, const JobOptions& options);

}  // namespace weft::engine
