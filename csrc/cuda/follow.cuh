// From a fixed pixel to the cell of the moving image where its path ends: shared by warp, contrast and information.
#pragma once

#include "cuda/common.cuh"

namespace regframe {

template <class T, int D>
struct WarpTask {
  FlowGrid<T, D> flow;
  ImageGrid<T, D> grid;
  Patches<D> patches;    // of the tile
  const double* matrix;  // [D, D+1]
  const T* velocity;     // [T, *padded, D]
  const T* image;        // [C, *S]
  int64_t channels, image_pixels, out_pixels;
  int64_t offset[D];  // of the tile's first pixel
  double image_scale[D], image_origin[D], flow_scale[D], flow_origin[D];  // scales are 1 / spacing
  T image_per_flow[D];                                                    // image pixels per velocity node
};

// The end of the path of the tile's pixel `local`: a cell, fractions f and inside (see locate) of the image. index [D] is the
// pixel in the whole fixed grid.
template <class T, int D, class C>
__device__ __forceinline__ int32_t follow(const WarpTask<T, D>& task, const int64_t* local, C& cells, double* index, T* f,
                                          T* inside) {
  using L = ScalarLanes<T>;
  double position[D];
  T start[D], shift[D], rest[D];
  int32_t whole[D];
  for (int d = 0; d < D; ++d) index[d] = static_cast<double>(local[d] + task.offset[d]);
  for (int d = 0; d < D; ++d) {
    position[d] = task.matrix[d * (D + 1) + D];
    for (int e = 0; e < D; ++e) position[d] += task.matrix[d * (D + 1) + e] * index[e];
    start[d] = static_cast<T>((position[d] - task.flow_origin[d]) * task.flow_scale[d] + kPad);
    shift[d] = T(0);
  }
  pull_back<L, D>(task.flow, start, shift, cells);
  for (int d = 0; d < D; ++d) {
    L::split((position[d] - task.image_origin[d]) * task.image_scale[d], static_cast<double>(task.grid.size[d]), whole[d],
             rest[d]);
    rest[d] += shift[d] * task.image_per_flow[d];
  }
  return locate<L, D>(task.grid, whole, rest, f, inside);
}

// The lane's pixel, and its weight. Lanes without a pixel, or with one of no weight, weigh nothing and follow the path of a
// lane that has one. False where no lane of the warp has one. weights: [*shape].
template <class T, int D>
__device__ __forceinline__ bool take_pixel(const WarpTask<T, D>& task, const T* weights, int64_t patch, int64_t* local,
                                           T* weight) {
  const bool inside = task.patches.locate(patch, local);
  *weight = inside ? weights[task.patches.pixel(local)] : T(0);
  const unsigned weighty = __ballot_sync(kEveryLane, *weight != T(0));
  if (weighty == 0) return false;
  const int leader = *weight != T(0) ? lane_index() : __ffs(weighty) - 1;
  for (int d = 0; d < D; ++d) local[d] = __shfl_sync(kEveryLane, local[d], leader);
  return true;
}

// coefficients [2^D] of one channel's cell
template <class T, int D>
__device__ __forceinline__ void image_cell(const WarpTask<T, D>& task, int64_t channel, int32_t cell, T* c) {
  const T* from = task.image + channel * task.image_pixels + cell;
  for (int k = 0; k < (1 << D); ++k) c[k] = from[task.grid.corner[k]];
  to_coefficients<D>(c);
}

// The gradient of the matrix [D, D+1]: that of each path's start, times the pixel's index.
template <class T, int D>
__device__ __forceinline__ void add_start(const T* g, const double* index, double* total) {
  for (int d = 0; d < D; ++d) {
    for (int e = 0; e < D; ++e) total[d * (D + 1) + e] += static_cast<double>(g[d]) * index[e];
    total[d * (D + 1) + D] += static_cast<double>(g[d]);
  }
}

// all but the patches
template <class T, int D>
WarpTask<T, D> make_task(const Tensor& image, const Tensor& velocity, const Tensor& matrix, const Tensor& padded,
                         const std::vector<int64_t>& shape, const std::vector<int64_t>& offset,
                         const std::vector<double>& image_spacing, const std::vector<double>& image_origin,
                         const std::vector<double>& velocity_spacing, const std::vector<double>& velocity_origin,
                         int64_t n_steps) {
  WarpTask<T, D> task{};
  task.flow = flow_grid<T, D>(velocity, n_steps);
  task.grid = image_grid<T, D>(image);
  task.matrix = matrix.const_data_ptr<double>();
  task.velocity = padded.const_data_ptr<T>();
  task.image = image.const_data_ptr<T>();
  task.channels = image.size(0);
  task.image_pixels = task.out_pixels = 1;
  for (int d = 0; d < D; ++d) {
    task.offset[d] = offset[d];
    task.image_pixels *= image.size(1 + d);
    task.out_pixels *= shape[d];
    task.image_scale[d] = 1.0 / image_spacing[d];
    task.image_origin[d] = image_origin[d];
    task.flow_scale[d] = 1.0 / velocity_spacing[d];
    task.flow_origin[d] = velocity_origin[d];
    task.image_per_flow[d] = static_cast<T>(velocity_spacing[d] / image_spacing[d]);
  }
  return task;
}

}  // namespace regframe
