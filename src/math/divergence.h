#pragma once
#include <span>
#include <vector>

// How much a row of weights changed, as arcee_fusion measures it. Class A.
namespace weft::math {

/// sum p ln(p / q), p = softmax(a) + added, q = softmax(b) + added, in float64; never negative (both sum to the same). Relative error of each term
/// below 2e-14. scratch: reused memory, two doubles an element. Spans of one length, not empty; finite.
[[nodiscard]] double softmax_divergence(std::span<const float> a, std::span<const float> b, double added, std::vector<double>& scratch);

/// out[i] = |x[i] - y[i]| * scale in float64, rounded once, at most the largest float; 0 for NaN.
void scaled_changes(std::span<const float> x, std::span<const float> y, double scale, std::span<float> out);
/// out[i] = other[i] where the scaled change is at least this, else base[i].
void take_large_changes(std::span<const float> base, std::span<const float> other, double scale, float least, std::span<float> out);

}  // namespace weft::math
