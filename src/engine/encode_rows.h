#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "checkpoint/gguf_writer.h"

// Rows of float32 on their way into blocks.
namespace weft::engine {

/// How one tensor is encoded.
struct Encoding {
  std::shared_ptr<const std::vector<float>> column_weights;  ///< [matrices, columns]; null: all alike
  std::uint64_t num_matrices = 1;                            ///< experts in a stack
  bool better = false;                                       ///< search on for a smaller weighted error at the same size
};

/// What encoding lost, gathered by tensor from many threads; sums do not depend on how the tensors are cut.
class EncodingErrors {
 public:
  struct Sums {
    double error = 0;   ///< weighted squares of differences
    double square = 0;  ///< weighted squares of values
  };
  void add(std::size_t tensor, std::uint64_t first_element, const std::vector<Sums>& rows);
  /// error / square of a tensor; 0 for one of zeros; absent for one that was not encoded.
  [[nodiscard]] std::optional<double> relative(std::size_t tensor) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::size_t, std::map<std::uint64_t, std::vector<Sums>>> rows_;  ///< by tensor, then by first element
};

/// Encodes whole rows of a tensor. first_element: where the values lie in the tensor. errors: may be null.
/// Errors: unsupported where finite values need scales that the type cannot hold.
void encode_rows(const GgufTensorSpec& tensor, const Encoding& encoding, std::size_t number, std::uint64_t first_element,
                 std::span<const float> values, EncodingErrors* errors, std::vector<std::uint8_t>& blocks);

}  // namespace weft::engine
