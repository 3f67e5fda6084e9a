#pragma once

namespace weft::math {

/// Regularized incomplete beta function I_x(a, b), a, b > 0, x in [0, 1]. Error about 1e-14.
[[nodiscard]] double incomplete_beta(double x, double a, double b);
/// The cosine of two random directions in d >= 2 dimensions lies below this with probability p.
[[nodiscard]] double cosine_quantile(double p, double d);

}  // namespace weft::math
