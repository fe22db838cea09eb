// Mutual information of docs/metrics.md: from the moments of a joint histogram's cells to the value and to the polynomials that
// its gradient is read from; shared by both backends.
//
// A pixel at t, s in its cell (moving, fixed; 0 to 1) adds weight * t^p * s^q to moment 4 q + p of the cell. Bins are B-splines of
// these, cubic along the moving side and linear along the fixed one, so cells are spread to bins once all pixels are in.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "prepare.h"

namespace regframe {

constexpr int64_t kMostBins = 256;  // of either side: the cells of a pair then take 4 MB
constexpr int kMoments = 8;         // of a cell; and so many numbers has its polynomial, two of them not used

inline void check_information(const Tensor& moving, const Tensor& fixed, const Tensor& weight, const Tensor& velocity,
                              const Tensor& matrix, const std::vector<double>& image_spacing,
                              const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
                              const std::vector<double>& velocity_origin, int64_t n_steps, int64_t bins) {
  check_pair(moving, fixed, weight, velocity, matrix, image_spacing, image_origin, velocity_spacing, velocity_origin, n_steps);
  for (const Tensor* side : {&moving, &fixed})
    STD_TORCH_CHECK(side->size(0) > 0 && side->size(0) <= kMostLines, "moving and fixed must have 1 to ", kMostLines, " lines");
  STD_TORCH_CHECK(bins >= 5 && bins <= kMostBins, "bins must be 5 to ", kMostBins);
}

// The cells of one pair of lines: row after row, of the fixed side, in [rows, columns].
struct Cellwork {
  int64_t rows, columns;
  explicit RF_HD Cellwork(int64_t bins) : rows(bins - 1), columns(bins - 3) {}
  RF_HD int64_t cells() const { return rows * columns; }
};

// sum of the weights of all pixels, from the moments [cells, 8] of any pair: each pixel is in one cell
RF_HD double total_weight(const Cellwork& at, const double* moments) {
  constexpr double kTiny = 1e-30;  // only so that no weight at all can be divided by
  double total = 0;
  for (int64_t cell = 0; cell < at.cells(); ++cell) total += moments[cell * kMoments];
  return total < kTiny ? kTiny : total;  // what is not a number stays so
}

// from the gradient of weight times what is read from the tables to that of the mean over the pairs
RF_HD double gradient_factor(const Cellwork& at, int64_t pairs, double total) {
  return static_cast<double>(at.columns) / (static_cast<double>(pairs) * total);
}

// weight of bin b - 1 ... b + 2 (a cubic B-spline) as a polynomial in t, in sixths: of t^p, and of its slope
RF_HD double cubic(int b, int p) {
  constexpr double kSpline[4][4] = {{1, -3, 3, -1}, {4, 0, -6, 3}, {1, 3, 3, -3}, {0, 0, 0, 1}};
  return kSpline[b][p] / 6;
}
RF_HD double cubic_slope(int b, int p) { return (p + 1) * cubic(b, p + 1); }

// weight of bin a and a + 1 (a linear B-spline) as a polynomial in s
RF_HD double linear(int a, int q) { return a == 0 ? (q == 0 ? 1.0 : -1.0) : (q == 0 ? 0.0 : 1.0); }

// What a pair needs beside its moments: bins [bins, bins] and later the slope of the value in each, margins and sums of each row.
struct InformationScratch {
  double* joint;    // [bins, bins]
  double* fixed;    // [bins]: logarithm of the margin
  double* moving;   // [bins]
  double* entropy;  // [bins]: part of each row in -sum p log p
  double* margins;  // [bins]: part of each row in -sum p (log p_fixed + log p_moving)
  static RF_HD int64_t size(int64_t bins) { return bins * (bins + 4); }
  RF_HD InformationScratch(double* memory, int64_t bins)
      : joint(memory),
        fixed(memory + bins * bins),
        moving(fixed + bins),
        entropy(moving + bins),
        margins(entropy + bins) {}
};

RF_HD double log_or_0(double p) { return p > 0 ? std::log(p) : 0.0; }

// The value of one pair, and `table` [cells, 8]: of each cell the coefficients 1, s, t, ts, t^2, t^2 s of the value's derivative in
// the moving position, times `total` over columns. `each(n, f)` as in solve_contrast; moments [cells, 8].
template <class T, class Each>
RF_HD double solve_information(const Cellwork& at, bool normalized, double total, const double* moments, double* memory, T* table,
                               const Each& each) {
  constexpr double kPoint = 1e-12;  // entropy, in nats, of one bin: rounding
  const int64_t rows = at.rows, columns = at.columns, bins = rows + 1;
  const InformationScratch to(memory, bins);
  each(bins * bins, [=](int64_t bin) {
    const int64_t i = bin / bins, j = bin % bins;
    double sum = 0;
    for (int a = 0; a < 2; ++a) {
      const int64_t row = i - a;
      if (row < 0 || row >= rows) continue;
      for (int b = 0; b < 4; ++b) {
        const int64_t column = j - b;
        if (column < 0 || column >= columns) continue;
        const double* m = moments + (row * columns + column) * kMoments;
        for (int q = 0; q < 2; ++q)
          for (int p = 0; p < 4; ++p) sum += linear(a, q) * cubic(b, p) * m[4 * q + p];
      }
    }
    to.joint[bin] = sum < 0 ? 0.0 : sum / total;  // a bin of nothing may come out of its moments as less, by rounding
  });
  each(2 * bins, [=](int64_t k) {
    double sum = 0;
    for (int64_t i = 0; i < bins; ++i) sum += k < bins ? to.joint[k * bins + i] : to.joint[i * bins + k - bins];
    (k < bins ? to.fixed[k] : to.moving[k - bins]) = log_or_0(sum);
  });
  each(bins, [=](int64_t i) {
    double entropy = 0, margins = 0;
    for (int64_t j = 0; j < bins; ++j) {
      const double p = to.joint[i * bins + j], joint = log_or_0(p);
      entropy -= p * joint;
      margins -= p * (to.fixed[i] + to.moving[j]);
      to.joint[i * bins + j] = joint;
    }
    to.entropy[i] = entropy;
    to.margins[i] = margins;
  });
  double entropy = 0, margins = 0;
  for (int64_t i = 0; i < bins; ++i) {
    entropy += to.entropy[i];
    margins += to.margins[i];
  }
  const bool alone = entropy <= kPoint;  // one bin, which tells nothing
  const double ratio = margins / (alone ? kPoint : entropy);
  // terms of the fixed bin alone and constants drop out of the gradient
  const double of_joint = normalized ? (alone ? 0.0 : -ratio / entropy) : -1.0;
  const double of_moving = normalized ? (alone ? 0.0 : 1.0 / entropy) : 1.0;
  each(rows * columns, [=](int64_t cell) {
    const int64_t row = cell / columns, column = cell % columns;
    double sums[kMoments] = {};
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 4; ++b) {
        const double slope = of_moving * to.moving[column + b] + of_joint * to.joint[(row + a) * bins + column + b];
        for (int p = 0; p < 3; ++p)
          for (int q = 0; q < 2; ++q) sums[2 * p + q] += slope * linear(a, q) * cubic_slope(b, p);
      }
    for (int i = 0; i < kMoments; ++i) table[cell * kMoments + i] = static_cast<T>(sums[i]);
  });
  if (!normalized) return entropy - margins;
  return alone ? 1.0 : 2.0 - ratio;
}

}  // namespace regframe
