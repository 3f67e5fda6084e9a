#pragma once
#include <cstdint>
#include <span>
#include <vector>

// Scales that even out the channels of keys before they are held in few bits (FireQ).
namespace weft::quantize {

/// By what each rotary pair of a head's keys is divided, and its queries multiplied: the larger of its two channels' largest values to the exponent,
/// balanced so that their geometric mean is 1. One scale for both members of a pair, which rotation mixes: it commutes with positions. max_abs: [2,
/// pairs]: channel i turns with channel pairs + i. Pairs that are 0 throughout keep 1.
[[nodiscard]] std::vector<double> pair_scales(std::span<const float> max_abs, double exponent);
/// The same for channels that no position turns, each for itself.
[[nodiscard]] std::vector<double> channel_scales(std::span<const float> max_abs, double exponent);

}  // namespace weft::quantize
