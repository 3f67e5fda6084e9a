#pragma once
#include <cstdint>

#include "measure/spectrum.h"
#include "measure/table.h"

// What takes the whole matrix.
namespace weft::measure {

/// The group `orthogonality`; with this prefix ("orthogonality", "difference.orthogonality").
void measure_orthogonality(const Matrix& matrix, const std::string& prefix, Measures& out);
/// The group `conditioning`. spectrum: of the matrix.
void measure_conditioning(const Matrix& matrix, const Spectrum& spectrum, Measures& out);
/// The group `weight_space`.
void measure_weight_space(const Matrix& matrix, const Spectrum& spectrum, Measures& out);
/// The group `random`. name: of the tensor, so that draws do not depend on the order of tensors.
void measure_random(const Matrix& matrix, const Spectrum& spectrum, std::string_view name, std::uint64_t seed, Measures& out);
/// The bytes that any of these takes beside the matrix, at most.
[[nodiscard]] std::uint64_t structure_bytes(std::int64_t rows, std::int64_t columns);

/// Normal random numbers: element i of a stream.
class NormalStream {
 public:
  NormalStream(std::uint64_t seed, std::string_view name, std::uint32_t stream);
  void fill(std::span<double> out);

 private:
  std::uint64_t key_;
  std::uint32_t stream_;
  std::uint64_t next_ = 0;
};

}  // namespace weft::measure
