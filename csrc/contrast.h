// The contrast map of METHOD.md: its least-squares problem, from moments to theta; shared by both backends.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "prepare.h"

namespace regframe {

inline void check_contrast(const Tensor& moving, const Tensor& fixed, const Tensor& weight, const Tensor& velocity,
                           const Tensor& matrix, const std::vector<double>& image_spacing,
                           const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
                           const std::vector<double>& velocity_origin, int64_t n_steps, const Tensor& moving_scale,
                           const Tensor& fixed_scale, int64_t order, double ridge) {
  check_pair(moving, fixed, weight, velocity, matrix, image_spacing, image_origin, velocity_spacing, velocity_origin, n_steps);
  STD_TORCH_CHECK(moving.size(0) > 0 && fixed.size(0) > 0, "moving and fixed must have at least one channel");
  STD_TORCH_CHECK(order >= 1 && order <= 3 && order * moving.size(0) <= kMostFeatures,
                  "order must be 1, 2 or 3, and order times moving channels at most ", kMostFeatures);
  STD_TORCH_CHECK(ridge > 0, "ridge must be above 0");
  const Tensor* sides[2] = {&moving_scale, &fixed_scale};
  const int64_t channels[2] = {moving.size(0), fixed.size(0)};
  for (int i = 0; i < 2; ++i)
    STD_TORCH_CHECK(sides[i]->dim() == 2 && sides[i]->size(0) == 2 && sides[i]->size(1) == channels[i] &&
                        sides[i]->scalar_type() == ScalarType::Double && !sides[i]->is_cuda(),
                    "scales must be [2, C] float64 on the CPU: mean and deviation per channel");
}

// mean, and 1 / deviation, per channel: [2, C]
template <class T>
std::vector<T> scale_factors(const Tensor& scale) {
  const int64_t n = scale.size(1);
  const double* from = scale.const_data_ptr<double>();
  std::vector<T> out(2 * n);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<T>(from[i]);
    out[n + i] = static_cast<T>(1.0 / from[n + i]);
  }
  return out;
}

// where the sum of products (i, j), i <= j, is among the moments: the upper triangle of phi phi^T
RF_HD int64_t moment_at(int64_t features, int64_t i, int64_t j) { return i * features - i * (i - 1) / 2 + (j - i); }

// theta [C_f, P] from the moments: upper triangle of phi phi^T, then phi y^T [C_f, P], by Cholesky's decomposition a [P, P]
// (lower triangle). Returns the sum of the weights. `each(n, f)` calls f(0), ... f(n-1) in any order, at once if it likes, and
// returns when all are done: a loop on the CPU, the threads of a block on CUDA.
template <class Each>
RF_HD double solve_contrast(int64_t features, int64_t targets, double ridge, const double* moments, double* a, double* theta,
                            const Each& each) {
  constexpr double kTiny = 1e-30, kNothing = 1e-12;  // only so that no weight at all is solvable
  const double total = moments[0] > kTiny ? moments[0] : kTiny;
  const int64_t n = features;
  for (int64_t j = 0; j < n; ++j)
    each(n - j, [=](int64_t below) {
      const int64_t i = j + below;
      double x = moments[moment_at(n, j, i)] / total, square = moments[moment_at(n, j, j)] / total;
      square += j == 0 ? kNothing : ridge;
      for (int64_t k = 0; k < j; ++k) {
        x -= a[i * n + k] * a[j * n + k];
        square -= a[j * n + k] * a[j * n + k];
      }
      const double pivot = std::sqrt(square > kTiny ? square : kTiny);
      a[i * n + j] = i == j ? pivot : x / pivot;
    });
  each(targets, [=](int64_t f) {
    const double* from = moments + n * (n + 1) / 2 + f * n;
    double* to = theta + f * n;
    for (int64_t i = 0; i < n; ++i) {
      to[i] = from[i] / total;
      for (int64_t k = 0; k < i; ++k) to[i] -= a[i * n + k] * to[k];
      to[i] /= a[i * n + i];
    }
    for (int64_t i = n - 1; i >= 0; --i) {
      for (int64_t k = i + 1; k < n; ++k) to[i] -= a[k * n + i] * to[k];
      to[i] /= a[i * n + i];
    }
  });
  return total;
}

class ContrastMap {
 public:
  ContrastMap(int64_t channels, int64_t targets, int64_t order, double ridge)
      : features(1 + order * channels), targets_(targets), ridge_(ridge) {}

  const int64_t features;  // P

  int64_t moments() const { return features * (features + 1) / 2 + features * targets_; }

  // theta [C_f, P] from the moments
  void solve(const double* moments, double* theta) {
    std::vector<double> a(features * features);
    total_ = solve_contrast(features, targets_, ridge_, moments, a.data(), theta, EachInTurn{});
  }

  // mean squared residual per channel and unit weight, and the ridge
  double value(double squares, const double* theta) const {
    double penalty = 0;
    for (int64_t f = 0; f < targets_; ++f)
      for (int64_t i = 1; i < features; ++i) penalty += theta[f * features + i] * theta[f * features + i];
    return (squares / total_ + ridge_ * penalty) / static_cast<double>(targets_);
  }

  // from the gradient of half the sum of squares to that of the value
  double gradient_factor() const { return 2.0 / (static_cast<double>(targets_) * total_); }

 private:
  int64_t targets_;
  double ridge_, total_ = 1;
};

}  // namespace regframe
