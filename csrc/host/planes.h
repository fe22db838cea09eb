#pragma once

#include <cstdint>

namespace regframe {

// a volume as a map of classes, on a grid of voxels
struct Volume {
  const int32_t* codes;  // [Z, Y, X], each in 0 ... classes - 1; beyond it everything is of class 0
  int64_t shape[3];
  double origin[3], spacing[3];
  const uint8_t* empty;  // [classes]
  int64_t classes;
};

// a section, flat
struct Section {
  const double* at;      // [n, 2]
  const double* values;  // [n], about their mean
  const double* weight;  // [n]
  int64_t n;
};

// how a plane is judged
struct Judge {
  double ratio;    // prior variance of a class' mean over the variance within a class
  double stretch;  // standard deviation of the logarithm of the stretch
};

// scores [N] of planes [N, 3, 3], whose columns are down, right and the section's middle; nearest voxels
void score_planes(const Volume& volume, const Section& section, const Judge& judge, const double* planes, int64_t count, double* scores,
                  int threads);

// planes [N, 3, 3] after damped Gauss-Newton steps each, in place, and their scores [N]; voxels interpolated linearly
void refine_planes(const Volume& volume, const Section& section, const Judge& judge, double* planes, int64_t count, double* scores,
                   int steps, int threads);

}  // namespace regframe
