#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/row_view.h"
#include "merge/method.h"
#include "weft/checkpoint.h"
#include "weft/job.h"

// TensorStream: walks the tensors of an output in file order, in bounded memory, with reading, arithmetic and writing overlapped.
namespace weft::engine {

/// One tensor of the walk: where its values come from and how they are combined.
struct StreamTensor {
  std::string name;
  Shape shape;
  DType dtype = DType::f32;                  ///< written
  std::vector<TensorRef> inputs;             ///< all of `shape`
  std::vector<std::string> input_names;      ///< how messages call each input's model; may be empty
  std::optional<DType> load_dtype;           ///< inputs are rounded through this type first
  std::optional<DType> compute_dtype;        ///< the result is rounded through this type before dtype
  std::unique_ptr<merge::TensorMerge> merge; ///< null: copy input 0, and warn where other inputs differ from it
  bool writes = true;                        ///< false: only the passes of `reduce` are run (diff, measure)
  bool checks_finite = true;                 ///< refuse NaN and infinities in the inputs and in the result
  bool whole_rows = false;                   ///< what is written at once begins and ends with a row
  bool finished = false;                     ///< written by an earlier run: passed over
  /// Earlier tensors of the walk that must be written before this one is read (because it reads what they write).
  std::vector<std::size_t> after;
  /// Filled by the method while planning and solving; one list a tensor, because several tensors are solved at once.
  std::unique_ptr<std::vector<std::string>> warnings = std::make_unique<std::vector<std::string>>();
};

/// Takes bytes [offset, offset + data.size()) of tensor number `tensor` of the walk. Called from many threads.
using TensorWriter = std::function<void(std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data)>;

/// Told of each tensor that is completely written and good; its warnings are complete. One call at a time; must not take long.
using TensorFinished = std::function<void(std::size_t tensor)>;

/// What the stream did.
struct StreamResult {
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
  std::vector<std::string> warnings;
};

/// Walks the tensors in their order. Same bytes for any number of threads and any chunk size.
/// Errors: those of reading and writing; corrupt for non-finite inputs or results (unless allowed), naming the tensor, the model and the count;
/// out_of_memory when a tile, or what a method gathers for a tensor, can never fit the budget, with both numbers, before any work; interrupted.
StreamResult run_tensor_stream(std::vector<StreamTensor>& tensors, const TensorWriter& write, const JobOptions& options, const char* what,
                               const TensorFinished& finished = {});

/// The memory that running this will take, for plans. Errors: out_of_memory when a tensor can never fit the budget, with both numbers.
[[nodiscard]] std::uint64_t estimate_stream_memory(const std::vector<StreamTensor>& tensors, const JobOptions& options);

}  // namespace weft::engine
