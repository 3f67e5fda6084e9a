#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "engine/activations.h"
#include "engine/input_statistics.h"

// How much attention each token of calibration sequences receives in a block.
namespace weft::engine {

/// Sums, for each token, the shares that all tokens give it in all heads. Nothing larger than one number a token is kept; the sums do not depend on
/// threads.
class AttentionReceived final : public BlockTap, private model::MixerTap {
 public:
  explicit AttentionReceived(const CalibrationTokens& tokens);

  void batch(std::size_t first_sequence, std::size_t num_sequences, std::uint64_t first_token) override;
  void linear_input(int layer, model::Role role, int expert, std::size_t first_row, const model::Rows& rows) override;
  model::MixerTap* mixer(int layer) override;

  /// Of all sequences, one behind the other. All 0 where the block's mixer is none that gives shares.
  [[nodiscard]] std::vector<double> received() const;

 private:
  void attention(std::size_t run, std::size_t head, std::size_t token, std::int64_t first_key, std::span<const float> shares) override;

  std::vector<std::size_t> starts_;   ///< first tokens of the sequences, and the end
  std::vector<std::int64_t> sums_;    ///< in units of 2^-30, in which the order of additions does not matter
  std::uint64_t first_token_ = 0;     ///< of the batch
  std::size_t slice_sequence_ = 0;    ///< to which the first run of the slice belongs
  std::array<std::mutex, 16> locks_;  ///< of sequences, by their number
};

}  // namespace weft::engine
