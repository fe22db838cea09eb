// Local correlation of docs/metrics.md: from the sums over a pixel's box to its correlation, and to what the gradient is summed
// from; shared by both backends.
#pragma once

#include <cstdint>

#include "interp.h"

namespace regframe {

constexpr int kBoxSums = 6;     // of w x, w x^2, w x y, w, w y, w y^2, in this order: x is the moving side, y the fixed one
constexpr int kBoxFactors = 3;  // what is summed over boxes a second time: see Correlated

struct CorrelationRules {
  double least_mass;  // least sum of weights that a box's mean is divided by
  double floor;       // added to both variances of a box
  bool is_signed;     // the correlation itself is compared; else its square
};

// One channel. Axes: [planes, rows, columns], where an image of two axes has one row in each plane.
template <class T>
struct CorrelationTask {
  const T* moving;  // [planes, rows, columns], already warped; any value where the weight is 0
  const T* fixed;   // likewise
  const T* weight;
  T* sums;      // [6, planes, rows, columns]: of a box, and [3, ...] of the factors: in between along some axes only
  T* gradient;  // of the value
  int64_t size[3];
  int64_t reach[3];  // half width of a box; n - 1 takes in all n pixels
  CorrelationRules rules;
  RF_HD int64_t plane() const { return size[1] * size[2]; }
  RF_HD int64_t pixels() const { return size[0] * size[1] * size[2]; }
};

// what turns a sum over pixels and channels into the weighted mean
RF_HD double per_weight(double total, int64_t channels) {
  constexpr double kTiny = 1e-30;  // only so that no weight at all can be divided by
  total *= static_cast<double>(channels);
  return 1 / (total < kTiny ? kTiny : total);  // what is not a number stays so
}

// With p one over the mass of a box, <> its means, v its variances, c its covariance and r what is compared, the gradient of the
// sum of w r in x is w [y B(slope) + 2 x B(curve) - B(of_mean)], where B sums over boxes.
template <class L, class T>
struct Correlated {
  using Real = typename L::Real;
  Real r;
  Real slope;    // w p dr/dc
  Real curve;    // w p dr/dv_x
  Real of_mean;  // slope <y> + 2 curve <x>

  // sums [kBoxSums]
  RF_HD Correlated(const Real* sums, const Real& weight, const CorrelationRules& rules) {
    const Real zero = L::splat(T(0)), floor = L::splat(static_cast<T>(rules.floor));
    const Real per_mass = L::splat(T(1)) / L::max(sums[3], L::splat(static_cast<T>(rules.least_mass)));
    const Real x = sums[0] * per_mass, y = sums[4] * per_mass;
    const Real spread = sums[1] * per_mass - x * x;
    const Real of_x = L::max(spread, zero) + floor, of_y = L::max(sums[5] * per_mass - y * y, zero) + floor;
    const Real covariance = sums[2] * per_mass - x * y;
    const Real product = of_x * of_y;
    if (rules.is_signed) {
      slope = L::splat(T(1)) / L::sqrt(product);
      r = covariance * slope;
      curve = r / of_x * T(-0.5);
    } else {
      slope = covariance / product;
      r = covariance * slope;
      slope = slope * T(2);
      curve = zero - r / of_x;
    }
    const Real scale = weight * per_mass;
    slope = slope * scale;
    curve = spread > zero ? curve * scale : zero;
    of_mean = slope * y + curve * x * T(2);
  }
};

}  // namespace regframe
