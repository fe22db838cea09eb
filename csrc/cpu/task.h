// From the arguments of an op that follows fixed pixels to what its kernels ask for.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"
#include "prepare.h"

namespace regframe {

// pixels of type P are not T: the task then has no image
template <class T, int D, class P = T>
WarpTask<T, D> warp_task(const Tensor& image, const Tensor& velocity, const Tensor& matrix, const T* padded,
                         const std::vector<int64_t>& shape, const std::vector<int64_t>& offset,
                         const std::vector<double>& image_spacing, const std::vector<double>& image_origin,
                         const std::vector<double>& velocity_spacing, const std::vector<double>& velocity_origin,
                         int64_t n_steps) {
  WarpTask<T, D> task{};
  task.flow = flow_grid<T, D>(velocity, n_steps);
  task.grid = image_grid<T, D>(image);
  task.velocity = padded;
  if constexpr (std::is_same_v<P, T>) task.image = image.const_data_ptr<T>();
  task.channels = image.size(0);
  task.image_pixels = task.out_pixels = 1;
  const double* m = matrix.const_data_ptr<double>();  // [D, D+1]
  for (int d = 0; d < D; ++d) {
    task.frame.shape[d] = shape[d];
    task.frame.offset[d] = offset[d];
    task.image_pixels *= image.size(1 + d);
    task.out_pixels *= shape[d];
    for (int e = 0; e < D; ++e) {
      task.frame.to_flow[d][e] = m[d * (D + 1) + e] / velocity_spacing[d];
      task.frame.to_image[d][e] = m[d * (D + 1) + e] / image_spacing[d];
    }
    task.frame.to_flow[d][D] = (m[d * (D + 1) + D] - velocity_origin[d]) / velocity_spacing[d] + kPad;
    task.frame.to_image[d][D] = (m[d * (D + 1) + D] - image_origin[d]) / image_spacing[d];
    task.frame.image_per_flow[d] = static_cast<T>(velocity_spacing[d] / image_spacing[d]);
  }
  return task;
}

}  // namespace regframe
