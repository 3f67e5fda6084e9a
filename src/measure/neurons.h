#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "measure/spectrum.h"
#include "measure/table.h"

// What the neurons of a feed-forward layer do, from the weights alone.
namespace weft::measure {

/// gate, up: [neurons, hidden]; down: [hidden, neurons]; gain: [hidden], of the norm before the layer, or empty.
void measure_gated(const Matrix& gate, const Matrix& up, const Matrix& down, std::span<const double> gain, Measures& out);

/// Decodes vectors [neurons, hidden] through head [vocabulary, hidden]: z = U w, scored by (max - mean) / standard deviation over the vocabulary.
/// name: "up, raw". shown: neurons whose tokens are listed. Returns the token of each neuron.
std::vector<std::uint32_t> measure_decoding(const Matrix& head, const Matrix& vectors, const std::string& name, std::size_t shown, Measures& out);

/// Median over random directions of max |z - mean| / standard deviation: what no neuron means.
[[nodiscard]] double decoding_null(const Matrix& head, std::uint64_t seed);

}  // namespace weft::measure
