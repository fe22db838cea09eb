// flow_points on CUDA: forward and backward. One thread per point.
#include <algorithm>
#include <tuple>

#include "cuda/common.cuh"

namespace regframe {
namespace {

template <class T, int D>
struct PointsTask {
  FlowGrid<T, D> flow;
  const T* velocity;  // [T, *padded, D]
  double spacing[D], origin[D];
  int64_t n;
  bool to_moving;
};

template <class T, int D>
__device__ __forceinline__ void load_point(const PointsTask<T, D>& task, const T* point, T* position) {
  for (int d = 0; d < D; ++d)
    position[d] = static_cast<T>((static_cast<double>(point[d]) - task.origin[d]) / task.spacing[d] + kPad);
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) points_kernel(PointsTask<T, D> task, const T* points, T* out) {
  using L = ScalarLanes<T>;
  constexpr T kEpsilon = sizeof(T) == 4 ? T(1.1920929e-7) : T(2.220446049250313e-16);
  ThreadCells<T, D, false> cells(task.flow, task.velocity, nullptr);
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < task.n; i += int64_t(gridDim.x) * blockDim.x) {
    T start[D], shift[D] = {};
    load_point<T, D>(task, points + i * D, start);
    if (task.to_moving)
      pull_back<L, D>(task.flow, start, shift, cells);
    else
      push_forward<L, D>(task.flow, start, shift, kEpsilon, cells);
    for (int d = 0; d < D; ++d)
      out[i * D + d] = static_cast<T>(points[i * D + d] + static_cast<double>(shift[d]) * task.spacing[d]);
  }
}

template <class T, int D, bool kShared>
__global__ void __launch_bounds__(kThreads)
    points_backward_kernel(PointsTask<T, D> task, const T* grad, const T* points, T* points_grad, T* velocity_sums) {
  using L = ScalarLanes<T>;
  const int64_t size = task.flow.n_slices * task.flow.slice;
  T* sums = velocity_sums;
  if constexpr (kShared) {
    sums = shared_sums<T>();
    clear_sums(sums, size);
  }
  ThreadCells<T, D, true> cells(task.flow, task.velocity, sums);
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < task.n; i += int64_t(gridDim.x) * blockDim.x) {
    T position[D], shift[D] = {}, g[D];
    load_point<T, D>(task, points + i * D, position);
    for (int d = 0; d < D; ++d) g[d] = static_cast<T>(grad[i * D + d] * task.spacing[d]);
    if (task.to_moving) {
      pull_back<L, D>(task.flow, position, shift, cells);
      pull_back_adjoint<L, D>(task.flow, g, cells);
    } else {
      push_forward_adjoint<L, D>(task.flow, position, g, cells);
    }
    for (int d = 0; d < D; ++d) points_grad[i * D + d] = static_cast<T>(g[d] / task.spacing[d]);
  }
  if constexpr (kShared) publish_sums(sums, velocity_sums, size);
}

template <class T, int D>
PointsTask<T, D> make_task(const FlowGrid<T, D>& flow, const Tensor& padded, int64_t n, const std::vector<double>& spacing,
                           const std::vector<double>& origin, bool to_moving) {
  PointsTask<T, D> task{};
  task.flow = flow;
  task.velocity = padded.const_data_ptr<T>();
  task.n = n;
  task.to_moving = to_moving;
  for (int d = 0; d < D; ++d) {
    task.spacing[d] = spacing[d];
    task.origin[d] = origin[d];
  }
  return task;
}

void check_points(const Tensor& points, const Tensor& velocity, const std::vector<double>& spacing,
                  const std::vector<double>& origin, int64_t n_steps) {
  STD_TORCH_CHECK(points.dim() == 2, "points must be [N, D]");
  check_flow(velocity, points, points.size(1), spacing, origin, n_steps);
}

Tensor flow_points(const Tensor& points_, const Tensor& velocity_, const std::vector<double>& spacing,
                   const std::vector<double>& origin, int64_t n_steps, bool to_moving) {
  check_points(points_, velocity_, spacing, origin, n_steps);
  const torch::stable::accelerator::DeviceGuard guard(points_.get_device_index());
  const Tensor points = torch::stable::contiguous(points_);       // [N, D]
  const Tensor velocity = torch::stable::contiguous(velocity_);   // [T, D, *S]
  Tensor out = torch::stable::new_empty(points, points.sizes());  // [N, D]
  if (out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(points);
  dispatch(points.scalar_type(), points.size(1), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const Tensor padded = pad_velocity<T, D>(flow, velocity, spacing, stream);
    const auto task = make_task<T, D>(flow, padded, points.size(0), spacing, origin, to_moving);
    launch(points_kernel<T, D>, blocks_for(task.n), 0, stream, task, points.const_data_ptr<T>(), out.mutable_data_ptr<T>());
  });
  return out;
}

std::tuple<Tensor, Tensor> flow_points_backward(const Tensor& grad_, const Tensor& points_, const Tensor& end_,
                                                const Tensor& velocity_, const std::vector<double>& spacing,
                                                const std::vector<double>& origin, int64_t n_steps, bool to_moving) {
  check_points(points_, velocity_, spacing, origin, n_steps);
  STD_TORCH_CHECK(end_.dim() == 2 && grad_.dim() == 2 && end_.size(0) == points_.size(0) && grad_.size(0) == end_.size(0) &&
                      end_.size(1) == points_.size(1) && grad_.size(1) == end_.size(1) &&
                      end_.scalar_type() == points_.scalar_type() && grad_.scalar_type() == end_.scalar_type() &&
                      end_.get_device_index() == points_.get_device_index() &&
                      grad_.get_device_index() == points_.get_device_index(),
                  "grad and end must have the shape, dtype and device of points");
  STD_TORCH_CHECK(n_steps <= kMaxSteps, "the CUDA gradient remembers at most ", kMaxSteps, " steps, got ", n_steps);
  const torch::stable::accelerator::DeviceGuard guard(points_.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_);                         // [N, D]
  const Tensor points = torch::stable::contiguous(to_moving ? points_ : end_);  // [N, D]
  const Tensor velocity = torch::stable::contiguous(velocity_);                 // [T, D, *S]
  Tensor to_points = torch::stable::new_empty(points, points.sizes());          // [N, D]
  if (points.numel() == 0) return {to_points, torch::stable::new_zeros(velocity, velocity.sizes())};
  Tensor to_velocity = empty_grad(velocity);
  const cudaStream_t stream = current_stream(points);
  dispatch(points.scalar_type(), points.size(1), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const Tensor padded = pad_velocity<T, D>(flow, velocity, spacing, stream);
    const auto task = make_task<T, D>(flow, padded, points.size(0), spacing, origin, to_moving);
    const int64_t size[1] = {flow.n_slices * flow.slice};
    Tensor sums = torch::stable::new_zeros(velocity, {size, 1});  // [T, *padded, D]
    const auto plan = plan_scatter<T, D>(points_backward_kernel<T, D, true>, flow, task.n, points.get_device_index());
    const auto kernel = plan.shared ? points_backward_kernel<T, D, true> : points_backward_kernel<T, D, false>;
    launch(kernel, plan.shared ? plan.blocks : std::min<int64_t>(blocks_for(task.n), 8192), plan.bytes, stream, task,
           grad.const_data_ptr<T>(), points.const_data_ptr<T>(), to_points.mutable_data_ptr<T>(), sums.mutable_data_ptr<T>());
    to_velocity = collect<T, D>(flow, sums, velocity, spacing, stream);
  });
  return {to_points, to_velocity};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m) {
  m.impl("flow_points", TORCH_BOX(&regframe::flow_points));
  m.impl("_flow_points_backward", TORCH_BOX(&regframe::flow_points_backward));
}
