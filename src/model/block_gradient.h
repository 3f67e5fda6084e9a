#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/thread_team.h"
#include "checkpoint/json.h"
#include "model/network_config.h"
#include "model/weights.h"
#include "weft/checkpoint.h"

// One block of a transformer as a function of its input and its parameters, and its gradient by hand: softmax attention with grouped heads, rotary
// positions, windows, caps and norms of q and k; feed-forward parts, gated or not, and mixtures of them; RMS norm and LayerNorm wherever a block has
// them. Chained, they are the gradient of a model's loss. Real is float, or double for checks and where float32 is not enough.
// Products go through OpenBLAS (class C), cut into units that do not depend on the number of threads.
namespace weft::model {

/// y = W x + b.
template <typename Real>
struct LinearParameters {
  std::size_t rows = 0, columns = 0;
  std::vector<Real> weight, bias;  ///< bias empty: none
  [[nodiscard]] bool is_there() const noexcept { return rows > 0; }
};
template <typename Real>
struct NormParameters {
  std::vector<Real> weight, bias;
  [[nodiscard]] bool is_there() const noexcept { return !weight.empty(); }
};
template <typename Real>
struct FeedForwardParameters {
  LinearParameters<Real> up;  ///< gated: the rows of gate, then those of up
  LinearParameters<Real> down;
};

/// The parameters of a block, laid out as in BlockWeights; also their gradient.
template <typename Real>
struct BlockParameters {
  std::array<NormParameters<Real>, 10> norms;  ///< by Site
  NormParameters<Real> q_norm, k_norm;
  LinearParameters<Real> qkv, o;
  FeedForwardParameters<Real> mlp;
  LinearParameters<Real> router;
  std::vector<FeedForwardParameters<Real>> experts;
  FeedForwardParameters<Real> shared;
  LinearParameters<Real> shared_router;
  bool gated = false;

  /// Zeros of the same shapes.
  [[nodiscard]] BlockParameters zeros() const;
  /// Every vector of numbers that is there, in a fixed order, with a name for messages: "qkv.weight".
  void for_each(const std::function<void(const std::string& name, std::vector<Real>& values)>& visit);
};

template <typename Real>
[[nodiscard]] BlockParameters<Real> parameters_of(const BlockWeights& weights);

/// The part of a block's parameters (or of their gradient) that a tensor of the checkpoint holds, in that tensor's layout.
template <typename Real>
[[nodiscard]] std::vector<Real> values_of_tensor(const BlockParameters<Real>& parameters, const NetworkConfig& config, const BlockTensor& tensor);

/// Where the matrix of a linear layer lies in a block's parameters: its row r, by outputs and inputs whatever the checkpoint's layout, is row rows[r]
/// of `matrix`.
template <typename Real>
struct MatrixPlace {
  LinearParameters<Real>* matrix = nullptr;  ///< null: the tensor is no such matrix
  std::vector<std::size_t> rows;

  /// [rows, columns], out of the parameters and into them.
  void read(std::span<Real> out) const;
  void write(std::span<const Real> values) const;
};
template <typename Real>
[[nodiscard]] MatrixPlace<Real> place_of_tensor(BlockParameters<Real>& parameters, const NetworkConfig& config, const BlockTensor& tensor);

/// What forward() leaves for backward(): activations of the block, about (6 hidden + 2 (heads + 2 kv heads) head_dim + 3 ffn) numbers a token.
template <typename Real>
struct BlockTape {
  struct FeedForwardTape {
    std::vector<std::size_t> rows;  ///< of the input; empty: all
    std::vector<Real> input, before, hidden, output;
    std::vector<Real> shares;  ///< an expert's, of each of its rows
  };
  std::vector<std::size_t> lengths;
  std::vector<Real> x, attention_in, qkv_before, qkv, mixed, attention_out, sum, middle, mlp_in, mlp_out, last;
  FeedForwardTape mlp;
  std::vector<Real> router;  ///< softmax over the experts, [tokens, experts]
  std::vector<FeedForwardTape> experts;
  FeedForwardTape shared;
  std::vector<Real> shared_share;
};

template <typename Real>
class BlockFunction {
 public:
  BlockFunction(const NetworkConfig& config, std::size_t layer, ThreadTeam& team) : config_(config), layer_(layer), team_(team) {}

  /// x: [tokens of all sequences, hidden]; lengths: of the sequences, each of which begins at position 0. Returns the block's output. tape: null when
  /// no gradient is wanted.
  [[nodiscard]] std::vector<Real> forward(const BlockParameters<Real>& parameters, std::span<const std::size_t> lengths, std::span<const Real> x,
                                          BlockTape<Real>* tape = nullptr) const;
  /// d loss / d x from d loss / d output. Adds d loss / d parameters to gradient (of the same shapes) unless it is null. Which experts a token goes
  /// to counts as fixed.
  [[nodiscard]] std::vector<Real> backward(const BlockParameters<Real>& parameters, const BlockTape<Real>& tape, std::span<const Real> d_output,
                                           BlockParameters<Real>* gradient) const;

 private:
  const NetworkConfig& config_;
  std::size_t layer_;
  ThreadTeam& team_;
};

/// A norm of rows: out = norm(x), [rows, size of the norm].
template <typename Real>
void normalise_rows(ThreadTeam& team, const NetworkConfig& config, const NormParameters<Real>& norm, const std::vector<Real>& x,
                    std::vector<Real>& out);
/// d: of what the norm gave, becomes that of x. Adds to the gradient of gain and bias unless it is null.
template <typename Real>
void normalise_rows_backward(const NetworkConfig& config, const NormParameters<Real>& norm, const std::vector<Real>& x, std::vector<Real>& d,
                             NormParameters<Real>* gradient);

/// Takes the gradient of a tensor, in its layout. Each tensor comes once: the head and the final norm first, then block after block from the last.
using GradientSink = std::function<void(const TensorInfo& tensor, std::span<const float> gradient)>;

struct LossGradientOptions {
  int threads = 0;
  /// Activations between the blocks are kept, [layers, tokens, hidden]; refused beyond this. 0: a quarter of RAM, with the weights of one block and
  /// of the head counted in.
  std::uint64_t memory_bytes = 0;
};
struct LossGradient {
  double loss = 0;  ///< cross-entropy in nats, mean over all tokens that have one before them in their sequence
  std::size_t num_predicted = 0;
};
/// The loss of a decoder on sequences of tokens, and its gradient for every tensor. Within a block everything is computed anew, so that memory is
/// that of one block beside what is kept between them. sink may be empty: then only the loss is computed. Errors: invalid_argument (no sequence of
/// two tokens, ids beyond the vocabulary), unsupported for models that are not decoders with a head, out_of_memory with both numbers, corrupt where
/// the loss is NaN or infinite, and those of reading the model.
[[nodiscard]] LossGradient loss_gradient(std::shared_ptr<const Checkpoint> checkpoint, const Json& config,
                                         std::span<const std::vector<std::uint32_t>> sequences, const GradientSink& sink,
                                         const LossGradientOptions& options = {});
/// The same in float64 throughout (weights as float32 holds them), for checks.
using GradientSinkDouble = std::function<void(const TensorInfo& tensor, std::span<const double> gradient)>;
[[nodiscard]] LossGradient loss_gradient_double(std::shared_ptr<const Checkpoint> checkpoint, const Json& config,
                                                std::span<const std::vector<std::uint32_t>> sequences, const GradientSinkDouble& sink,
                                                const LossGradientOptions& options = {});

}  // namespace weft::model
