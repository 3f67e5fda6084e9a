#pragma once
#include <array>
#include <span>

namespace weft::engine {

/// Where the weighted mean of independent values lies with 95 % confidence (Student's t on the weighted spread). Without bounds for fewer than two.
[[nodiscard]] std::array<double, 2> mean_interval95(std::span<const double> values, std::span<const double> weights);

}  // namespace weft::engine
