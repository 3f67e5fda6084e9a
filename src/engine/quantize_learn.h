#pragma once
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/block_pass.h"
#include "quantize/reconstruct.h"
#include "quantize/solver.h"

// Learning the codes of a block from what it read and gave before.
namespace weft::engine {

/// A layer of a block whose codes are learned.
struct LearnedLayer {
  std::string name;            ///< of its tensor
  std::vector<float> weights;  ///< what was to be quantized, [rows, columns]
  codec::QuantizedLinear start;
  quantize::SolverOptions solver;
};

struct LearnOptions {
  quantize::LearnedOptions codes;
  quantize::ReconstructOptions steps;
  std::size_t unit_tokens = 1024;  ///< of a step, about
};

struct LearnedBlock {
  quantize::ReconstructResult result;
  /// Tensors of norms that were learned, too, with their new values.
  std::vector<std::pair<const model::BlockTensor*, std::vector<float>>> gains;
};

/// The block reads what is behind quantized ones and is to give what the unchanged model does: the pass must keep both streams. Its matrices are
/// those of the layers' starts, or anything else: they are not looked at. Nothing is changed in the block. Errors: out_of_memory with both numbers;
/// unsupported for a block that has no gradient.
[[nodiscard]] LearnedBlock learn_block(Block& block, std::span<const LearnedLayer> layers,
                                       const LearnOptions& options);

/// Second moments of what layers read at a point: of the batches that are learned from, and of those by which the best step is chosen.
struct HeldOutMoments {
  InputPoint point;
  std::vector<double> held;  ///< [width, width]; empty where no token was held out
};
[[nodiscard]] std::vector<HeldOutMoments> held_out_moments(Block& block, std::span<const InputPoint> points, double share);

}  // namespace weft::engine
