#include "math/cma_es.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "base/philox.h"
#include "math/lapack.h"

namespace weft::math {

CmaEs::CmaEs(std::span<const double> start, double sigma, std::uint64_t seed, std::size_t population)
    : n_(start.size()),
      population_(population >= 2 ? population
                                  : 4 + static_cast<std::size_t>(3 * std::log(static_cast<double>(std::max<std::size_t>(start.size(), 1))))),
      parents_(population_ / 2),
      sigma_(sigma),
      seed_(seed),
      mean_(start.begin(), start.end()),
      path_sigma_(n_, 0.0),
      path_c_(n_, 0.0),
      covariance_(n_ * n_, 0.0),
      lengths_(n_, 1.0) {
  double sum = 0, squares = 0;
  for (std::size_t i = 0; i < parents_; ++i) {
    weights_.push_back(std::log(static_cast<double>(population_ + 1) / 2) - std::log(static_cast<double>(i + 1)));
    sum += weights_.back();
  }
  for (double& weight : weights_) {
    weight /= sum;
    squares += weight * weight;
  }
  const auto n = static_cast<double>(n_);
  mu_eff_ = 1 / squares;
  c_sigma_ = (mu_eff_ + 2) / (n + mu_eff_ + 5);
  d_sigma_ = 1 + 2 * std::max(0.0, std::sqrt((mu_eff_ - 1) / (n + 1)) - 1) + c_sigma_;
  c_c_ = (4 + mu_eff_ / n) / (n + 4 + 2 * mu_eff_ / n);
  c_1_ = 2 / ((n + 1.3) * (n + 1.3) + mu_eff_);
  c_mu_ = std::min(1 - c_1_, 2 * (mu_eff_ - 2 + 1 / mu_eff_) / ((n + 2) * (n + 2) + mu_eff_));
  chi_ = std::sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n));
  for (std::size_t i = 0; i < n_; ++i) covariance_[i * n_ + i] = 1;
  axes_ = covariance_;
}

double CmaEs::normal() {
  const RandomStream stream = RandomStream::of(seed_, "cma-es", 0, 0);
  // 1 - u is never 0.
  const double radius = std::sqrt(-2 * std::log(1 - static_cast<double>(stream.uniform(2 * drawn_))));
  const double angle = 2 * std::numbers::pi * static_cast<double>(stream.uniform(2 * drawn_ + 1));
  ++drawn_;
  return radius * std::cos(angle);
}

void CmaEs::decompose() {
  axes_ = covariance_;
  lengths_ = symmetric_eigen(axes_, static_cast<std::int64_t>(n_), Vectors::yes);
  for (double& length : lengths_) length = std::sqrt(std::max(length, 1e-20));
}

std::vector<std::vector<double>> CmaEs::ask() {
  std::vector<std::vector<double>> all;
  for (std::size_t k = 0; k < population_; ++k) {
    std::vector<double>& x = all.emplace_back(mean_);
    for (std::size_t i = 0; i < n_; ++i) {
      const double step = sigma_ * lengths_[i] * normal();
      for (std::size_t j = 0; j < n_; ++j) x[j] += step * axes_[i * n_ + j];
    }
  }
  return all;
}

void CmaEs::tell(const std::vector<std::vector<double>>& candidates, std::span<const double> values) {
  std::vector<std::size_t> order(candidates.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto value = [&](std::size_t i) { return std::isnan(values[i]) ? std::numeric_limits<double>::infinity() : values[i]; };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return value(a) < value(b); });

  std::vector<double> step(n_, 0.0);
  for (std::size_t i = 0; i < parents_; ++i)
    for (std::size_t j = 0; j < n_; ++j) step[j] += weights_[i] * (candidates[order[i]][j] - mean_[j]) / sigma_;
  // C^-1/2 step
  std::vector<double> white(n_, 0.0);
  for (std::size_t i = 0; i < n_; ++i) {
    double along = 0;
    for (std::size_t j = 0; j < n_; ++j) along += axes_[i * n_ + j] * step[j];
    for (std::size_t j = 0; j < n_; ++j) white[j] += along / lengths_[i] * axes_[i * n_ + j];
  }
  double norm = 0;
  for (std::size_t j = 0; j < n_; ++j) {
    path_sigma_[j] = (1 - c_sigma_) * path_sigma_[j] + std::sqrt(c_sigma_ * (2 - c_sigma_) * mu_eff_) * white[j];
    norm += path_sigma_[j] * path_sigma_[j];
  }
  norm = std::sqrt(norm);
  ++generation_;
  const auto n = static_cast<double>(n_);
  const double expected = std::sqrt(1 - std::pow(1 - c_sigma_, 2 * static_cast<double>(generation_)));
  const bool follows = norm / expected / chi_ < 1.4 + 2 / (n + 1);  // the path is not kept while the step still grows
  for (std::size_t j = 0; j < n_; ++j) path_c_[j] = (1 - c_c_) * path_c_[j] + (follows ? std::sqrt(c_c_ * (2 - c_c_) * mu_eff_) * step[j] : 0.0);
  const double kept = 1 - c_1_ - c_mu_ + (follows ? 0.0 : c_1_ * c_c_ * (2 - c_c_));
  for (std::size_t a = 0; a < n_; ++a)
    for (std::size_t b = 0; b < n_; ++b) {
      double rank_mu = 0;
      for (std::size_t i = 0; i < parents_; ++i)
        rank_mu += weights_[i] * (candidates[order[i]][a] - mean_[a]) * (candidates[order[i]][b] - mean_[b]) / (sigma_ * sigma_);
      covariance_[a * n_ + b] = kept * covariance_[a * n_ + b] + c_1_ * path_c_[a] * path_c_[b] + c_mu_ * rank_mu;
    }
  for (std::size_t j = 0; j < n_; ++j) mean_[j] += sigma_ * step[j];
  sigma_ *= std::exp(std::min(1.0, c_sigma_ / d_sigma_ * (norm / chi_ - 1)));
  decompose();
}

}  // namespace weft::math
