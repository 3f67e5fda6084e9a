#include "quantize/block_importance.h"

#include <cmath>

namespace weft::quantize {

void ChangeScore::add(std::span<const float> before, std::span<const float> behind, std::size_t width) {
  for (std::size_t first = 0; first + width <= before.size(); first += width) {
    double product = 0, x = 0, y = 0;
    for (std::size_t j = first; j < first + width; ++j) {
      product += static_cast<double>(before[j]) * behind[j];
      x += static_cast<double>(before[j]) * before[j];
      y += static_cast<double>(behind[j]) * behind[j];
    }
    sum_ += x > 0 && y > 0 ? product / std::sqrt(x * y) : 1;
    ++num_tokens_;
  }
}

double share_above_deviation(std::span<const std::vector<float>> matrices) {
  double count = 0, sum = 0;
  for (const std::vector<float>& matrix : matrices) {
    count += static_cast<double>(matrix.size());
    for (const float value : matrix) sum += value;
  }
  if (count == 0) return 0;
  const double mean = sum / count;
  double squares = 0;
  for (const std::vector<float>& matrix : matrices)
    for (const float value : matrix) squares += (value - mean) * (value - mean);
  const double bar = mean + std::sqrt(squares / count);
  double above = 0;
  for (const std::vector<float>& matrix : matrices)
    for (const float value : matrix) above += value > bar;
  return above / count;
}

}  // namespace weft::quantize
