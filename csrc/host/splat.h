// Gaussian splatting of weighted points onto a grid of pixels.
#pragma once

#include <cstdint>

namespace regframe {

// (y, x); lengths, except shape
struct Canvas {
  int64_t shape[2];
  double origin[2];
  double spacing[2];
  double sigma;
};

// points [N, 2], weights [N, C] -> out [C, H, W]; returns how many points lay outside. Throws std::invalid_argument.
template <class T>
int64_t splat(const double* points, const T* weights, int64_t n, int64_t channels, const Canvas& canvas, T* out, int threads);

}  // namespace regframe
