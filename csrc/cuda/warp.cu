// warp on CUDA: forward and backward. One thread per pixel runs the path and the adjoint of interp.h.
#include <algorithm>
#include <tuple>

#include "cuda/common.cuh"

namespace regframe {
namespace {

template <class T, int D>
struct WarpTask {
  FlowGrid<T, D> flow;
  ImageGrid<T, D> grid;
  const double* matrix;  // [D, D+1]
  const T* velocity;     // [T, *padded, D]
  const T* image;        // [C, *S]
  int64_t channels, image_pixels, out_pixels;
  int64_t shape[D], offset[D];
  double image_scale[D], image_origin[D], flow_scale[D], flow_origin[D];  // scales are 1 / spacing
  T image_per_flow[D];
};

// the pixel's index in the whole fixed grid, its path, and the image cell where it ends
template <class T, int D, class C>
__device__ __forceinline__ int32_t follow(const WarpTask<T, D>& task, int64_t pixel, C& cells, double* index, T* f, T* inside) {
  using L = ScalarLanes<T>;
  for (int d = D - 1; d >= 0; --d) {
    index[d] = static_cast<double>(pixel % task.shape[d] + task.offset[d]);
    pixel /= task.shape[d];
  }
  double position[D];
  T start[D], shift[D], rest[D];
  int32_t whole[D];
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

template <class T, int D>
__global__ void __launch_bounds__(kThreads) warp_kernel(WarpTask<T, D> task, T* out) {
  ThreadCells<T, D, false> cells(task.flow, task.velocity, nullptr);
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < task.out_pixels; i += int64_t(gridDim.x) * blockDim.x) {
    double index[D];
    T f[D], inside[D];
    const int32_t cell = follow<T, D>(task, i, cells, index, f, inside);
    for (int64_t channel = 0; channel < task.channels; ++channel) {
      T c[1 << D];
      for (int k = 0; k < (1 << D); ++k) c[k] = task.image[channel * task.image_pixels + cell + task.grid.corner[k]];
      to_coefficients<D>(c);
      out[channel * task.out_pixels + i] = evaluate<D>(c, f);
    }
  }
}

// kShared: the velocity's gradient is summed per block first. Null pointers: that gradient is not asked for.
template <class T, int D, bool kShared>
__global__ void __launch_bounds__(kThreads)
    warp_backward_kernel(WarpTask<T, D> task, const T* grad, T* image_grad, T* velocity_sums, double* matrix_grad) {
  const int64_t size = task.flow.n_slices * task.flow.slice;
  T* sums = velocity_sums;
  if constexpr (kShared) {
    sums = shared_sums<T>();
    clear_sums(sums, size);
  }
  ThreadCells<T, D, true> cells(task.flow, task.velocity, sums);
  double total[D][D + 1] = {};
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < task.out_pixels; i += int64_t(gridDim.x) * blockDim.x) {
    double index[D];
    T f[D], inside[D], g[D] = {};
    const int32_t cell = follow<T, D>(task, i, cells, index, f, inside);
    T weight[1 << D] = {};
    add_moments<D>(weight, T(1), f);
    to_corner_gradient<D>(weight);
    for (int64_t channel = 0; channel < task.channels; ++channel) {
      T c[1 << D], slope[D];
      const T come = grad[channel * task.out_pixels + i];
      const int64_t at = channel * task.image_pixels + cell;
      for (int k = 0; k < (1 << D); ++k) {
        c[k] = task.image[at + task.grid.corner[k]];
        if (image_grad != nullptr) atomicAdd(image_grad + at + task.grid.corner[k], weight[k] * come);
      }
      to_coefficients<D>(c);
      evaluate<D>(c, f, slope);
      for (int d = 0; d < D; ++d) g[d] += come * slope[d];
    }
    if (velocity_sums == nullptr) continue;
    for (int d = 0; d < D; ++d) g[d] *= inside[d] * task.image_per_flow[d];
    pull_back_adjoint<ScalarLanes<T>, D>(task.flow, g, cells);
    for (int d = 0; d < D; ++d) {
      for (int e = 0; e < D; ++e) total[d][e] += static_cast<double>(g[d]) * index[e];
      total[d][D] += static_cast<double>(g[d]);
    }
  }
  if (velocity_sums == nullptr) return;
  if constexpr (kShared) publish_sums(sums, velocity_sums, size);
  for (int d = 0; d < D; ++d)
    for (int e = 0; e <= D; ++e) {
      double value = total[d][e] * task.flow_scale[d];
      for (int step = 16; step > 0; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
      if (threadIdx.x % 32 == 0) atomicAdd(matrix_grad + d * (D + 1) + e, value);
    }
}

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
    task.shape[d] = shape[d];
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

Tensor warp(const Tensor& image_, const Tensor& velocity_, const Tensor& matrix_, const std::vector<int64_t>& shape,
            const std::vector<int64_t>& offset, const std::vector<double>& image_spacing,
            const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
            const std::vector<double>& velocity_origin, int64_t n_steps) {
  check_warp(image_, velocity_, matrix_, shape, offset, image_spacing, image_origin, velocity_spacing, velocity_origin,
             n_steps);
  const torch::stable::accelerator::DeviceGuard guard(image_.get_device_index());
  const Tensor image = torch::stable::contiguous(image_);        // [C, *S]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  std::vector<int64_t> sizes{image.size(0)};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  Tensor out = torch::stable::new_empty(image, {sizes.data(), sizes.size()});  // [C, *shape]
  if (out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(image);
  dispatch(image.scalar_type(), matrix.size(0), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const Tensor padded = pad_velocity<T, D>(flow_grid<T, D>(velocity, n_steps), velocity, velocity_spacing, stream);
    const auto task = make_task<T, D>(image, velocity, matrix, padded, shape, offset, image_spacing, image_origin,
                                      velocity_spacing, velocity_origin, n_steps);
    launch(warp_kernel<T, D>, blocks_for(task.out_pixels), 0, stream, task, out.mutable_data_ptr<T>());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> warp_backward(
    const Tensor& grad_, const Tensor& image_, const Tensor& velocity_, const Tensor& matrix_,
    const std::vector<int64_t>& shape, const std::vector<int64_t>& offset, const std::vector<double>& image_spacing,
    const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
    const std::vector<double>& velocity_origin, int64_t n_steps, bool wants_image, bool wants_velocity, bool wants_matrix) {
  check_warp(image_, velocity_, matrix_, shape, offset, image_spacing, image_origin, velocity_spacing, velocity_origin,
             n_steps);
  STD_TORCH_CHECK(grad_.dim() == image_.dim() && grad_.size(0) == image_.size(0) &&
                      std::equal(shape.begin(), shape.end(), grad_.sizes().begin() + 1) &&
                      grad_.scalar_type() == image_.scalar_type() && grad_.get_device_index() == image_.get_device_index(),
                  "grad must be [C, *shape], of the image's dtype and device");
  STD_TORCH_CHECK(n_steps <= kMaxSteps, "the CUDA gradient remembers at most ", kMaxSteps, " steps, got ", n_steps);
  const torch::stable::accelerator::DeviceGuard guard(image_.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_);          // [C, *shape]
  const Tensor image = torch::stable::contiguous(image_);        // [C, *S]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  Tensor to_image = wants_image ? torch::stable::new_zeros(image, image.sizes()) : empty_grad(image);
  Tensor to_velocity = empty_grad(velocity);
  Tensor to_matrix = torch::stable::new_zeros(matrix, matrix.sizes());
  const cudaStream_t stream = current_stream(image);
  if (grad.numel() == 0) {
    if (wants_velocity) to_velocity = torch::stable::new_zeros(velocity, velocity.sizes());
  } else {
    dispatch(image.scalar_type(), matrix.size(0), [&](auto scalar, auto ndim) {
      using T = decltype(scalar);
      constexpr int D = decltype(ndim)::value;
      const auto flow = flow_grid<T, D>(velocity, n_steps);
      const Tensor padded = pad_velocity<T, D>(flow, velocity, velocity_spacing, stream);
      const auto task = make_task<T, D>(image, velocity, matrix, padded, shape, offset, image_spacing, image_origin,
                                        velocity_spacing, velocity_origin, n_steps);
      const bool wants_flow = wants_velocity || wants_matrix;
      const int64_t size[1] = {wants_flow ? flow.n_slices * flow.slice : 0};
      Tensor sums = torch::stable::new_zeros(velocity, {size, 1});  // [T, *padded, D]
      T* to_image_ = wants_image ? to_image.mutable_data_ptr<T>() : nullptr;
      T* sums_ = wants_flow ? sums.mutable_data_ptr<T>() : nullptr;
      double* to_matrix_ = to_matrix.mutable_data_ptr<double>();
      auto plan = plan_scatter<T, D>(warp_backward_kernel<T, D, true>, flow, task.out_pixels, image.get_device_index());
      if (plan.shared && wants_flow) {
        launch(warp_backward_kernel<T, D, true>, plan.blocks, plan.bytes, stream, task, grad.const_data_ptr<T>(), to_image_, sums_,
               to_matrix_);
      } else {
        launch(warp_backward_kernel<T, D, false>, std::min<int64_t>(blocks_for(task.out_pixels), 8192), 0, stream, task,
               grad.const_data_ptr<T>(), to_image_, sums_, to_matrix_);
      }
      if (wants_velocity) to_velocity = collect<T, D>(flow, sums, velocity, velocity_spacing, stream);
    });
  }
  if (!wants_matrix) to_matrix = empty_grad(matrix);
  return {to_image, to_velocity, to_matrix};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m) {
  m.impl("warp", TORCH_BOX(&regframe::warp));
  m.impl("_warp_backward", TORCH_BOX(&regframe::warp_backward));
}
