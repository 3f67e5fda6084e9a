#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/aligned_bytes.h"
#include "base/thread_team.h"
#include "checkpoint/json.h"
#include "math/packed_matrix.h"
#include "model/architecture.h"
#include "model/network_config.h"
#include "weft/checkpoint.h"
#include "weft/forward.h"

// The weights of a network as a forward pass needs them, read from any checkpoint, one block at a time.
namespace weft::model {

/// y = W x + b. Rows are outputs.
struct Linear {
  DType dtype = DType::f32;  ///< f32, bf16, f16 or i8
  std::size_t rows = 0, columns = 0;
  AlignedBytes weight;
  std::vector<float> bias;            ///< empty: none
  std::vector<float> steps;           ///< of i8, for each row: a weight is its integer times this
  std::vector<std::int32_t> offsets;  ///< of i8, for each row: 128 times the sum of its integers
  /// In place of `weight`: matrices that stay packed, one below the other.
  std::vector<math::PackedMatrix> packed;

  [[nodiscard]] bool is_there() const noexcept { return rows > 0; }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept;
  /// Row r as float32.
  void read_row(std::size_t r, float* out) const;
};

/// out[t, r] = x[t] . W[r] + b[r] for `num_rows` rows of x. Few of them go through the weights at the speed of memory, many through a GEMM.
void apply_linear(const Linear& linear, const float* x, std::size_t x_stride, std::size_t num_rows, float* out, std::size_t out_stride,
                  Precision precision, ThreadTeam& team);

struct NormWeights {
  std::vector<float> weight, bias;
  [[nodiscard]] bool is_there() const noexcept { return !weight.empty(); }
};

/// The feed-forward part of a block, or one expert's.
struct FeedForward {
  Linear up;  ///< gated: the rows of gate, then those of up
  Linear down;
};

struct BlockWeights {
  std::array<NormWeights, 10> norms;  ///< by Site
  NormWeights q_norm, k_norm;
  Linear qkv;  ///< the rows of q, then k, then v, whatever the checkpoint's layout
  Linear o;
  FeedForward mlp;
  Linear router;
  std::vector<FeedForward> experts;
  FeedForward shared;
  Linear shared_router;
  bool gated = false;

  [[nodiscard]] const NormWeights& norm(Site site) const { return norms[static_cast<std::size_t>(site)]; }
};

/// What stands around the blocks.
struct InputWeights {
  Linear embedding;
  Linear positions, types;  ///< learned ones
  NormWeights norm;
};
struct OutputWeights {
  NormWeights norm;
  Linear transform;
  NormWeights transform_norm;
  bool is_tied = false;  ///< the head is the embedding
  Linear head;           ///< rows 0 where there is none, or where it is tied (its bias may be here)
  bool has_head = false;
  Linear pooler;
};

/// A tensor of one block, as the checkpoint has it.
struct BlockTensor {
  TensorSlot slot;
  const TensorInfo* tensor = nullptr;  ///< lives in the checkpoint
  bool is_bias = false;
};

/// Finds and checks every tensor of a network on construction; reads when asked.
class WeightReader {
 public:
  /// Errors: corrupt or not_found for a tensor that is missing, has another shape than the config says, or contradicts it; unsupported for one that
  /// holds no plain numbers.
  WeightReader(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, const NetworkConfig& network, Precision precision);

  [[nodiscard]] InputWeights input(ThreadTeam& team) const;
  [[nodiscard]] OutputWeights output(ThreadTeam& team) const;
  /// changed: tensors that are read there instead, by name; their shapes are those of the checkpoint.
  [[nodiscard]] BlockWeights block(std::size_t layer, ThreadTeam& team, const Checkpoint* changed = nullptr) const;
  [[nodiscard]] std::vector<BlockTensor> block_tensors(std::size_t layer) const;
  /// Whether logits can be had, and a pooled state.
  [[nodiscard]] bool has_head() const;
  [[nodiscard]] bool has_pooler() const { return find(output_, Role::pooler, false) != nullptr; }
  /// Asks the system to read ahead.
  void will_read_block(std::size_t layer) const;

  /// In memory.
  [[nodiscard]] std::uint64_t input_bytes() const;
  [[nodiscard]] std::uint64_t output_bytes() const;
  [[nodiscard]] std::uint64_t block_bytes(std::size_t layer) const;
  /// Of the outputs of a feed-forward part, gate and up together: at most that many numbers a row lie between its layers.
  [[nodiscard]] std::uint64_t widest_rows() const noexcept { return widest_rows_; }

  /// Names of the tensors of a block (-1: of what stands around the blocks) that hold NaN or infinities. For messages.
  [[nodiscard]] std::vector<std::string> non_finite_tensors(int layer) const;
  [[nodiscard]] const Checkpoint& checkpoint() const noexcept { return *checkpoint_; }
  [[nodiscard]] std::span<const std::string> warnings() const noexcept { return warnings_; }

 private:
  struct Found {
    TensorSlot slot;
    const TensorInfo* tensor = nullptr;
    const Checkpoint* source = nullptr;  ///< that has it
    bool is_tied = false;
    bool is_bias = false;
    std::optional<math::PackedFormat> packed;  ///< as which it stays in memory
  };
  using Group = std::vector<Found>;
  enum class Rows { plain, per_head };

  void find_tensors(Group& group, std::vector<TensorSlot> slots);
  [[nodiscard]] const Found* find(const Group& group, Role role, bool bias, int expert = -1) const;
  [[nodiscard]] Linear linear(const Group& group, std::span<const Role> roles, ThreadTeam& team, int expert = -1, Rows rows = Rows::plain) const;
  [[nodiscard]] math::PackedMatrix packed_matrix(const Found& part, ThreadTeam& team, const std::function<std::size_t(std::size_t)>& target) const;
  static void find_packed(Group& group);
  [[nodiscard]] NormWeights norm(const Group& group, Role role, Site site) const;
  [[nodiscard]] static std::vector<float> vector(const Found& found);
  [[nodiscard]] FeedForward feed_forward(const Group& group, std::span<const Role> up, Role down, ThreadTeam& team, int expert = -1) const;
  [[nodiscard]] DType stored_as(DType dtype, Role role) const;
  [[nodiscard]] std::uint64_t group_bytes(const Group& group, bool head) const;

  std::shared_ptr<const Checkpoint> checkpoint_;
  const NetworkConfig& network_;
  Precision precision_;
  Group input_, output_;
  std::vector<Group> blocks_;
  std::vector<std::string> warnings_;
  std::uint64_t widest_rows_ = 0;
};

}  // namespace weft::model
