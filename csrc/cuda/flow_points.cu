// flow_points on CUDA: forward and backward. One lane per point.
#include <algorithm>
#include <tuple>

#include "cuda/scatter.cuh"

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
  ReadingCells<T, D> cells(task.flow, task.velocity);
  for (int64_t i = thread_index(); i < task.n; i += thread_count()) {
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

template <class T, int D>
__global__ void __launch_bounds__(kThreads) points_backward_kernel(PointsTask<T, D> task, ScatterTask<T> scatter, Deal deal,
                                                                   const T* grad, const T* points, T* points_grad, Pass pass) {
  using L = ScalarLanes<T>;
  if (pass == Pass::again && !FixedPoint<T>::repeats(scatter.ranges)) return;
  Steps<T, D> steps;
  AddingCells<T, D> cells(task.flow, task.velocity, scatter, steps, pass);
  int64_t patch;
  for (int64_t round = 0; (patch = deal.patch(round, pass == Pass::probe)) >= 0; ++round) {
    const bool mine = patch * kWarp + lane_index() < task.n;  // else this lane adds zeros to the last one's path
    if (!__any_sync(kEveryLane, mine)) continue;
    const int64_t i = mine ? patch * kWarp + lane_index() : task.n - 1;
    T position[D], shift[D] = {}, g[D];
    load_point<T, D>(task, points + i * D, position);
    for (int d = 0; d < D; ++d) g[d] = mine ? static_cast<T>(grad[i * D + d] * task.spacing[d]) : T(0);
    if (task.to_moving) {
      pull_back<L, D>(task.flow, position, shift, cells);
      pull_back_adjoint<L, D>(task.flow, g, cells);
    } else {
      push_forward_adjoint<L, D>(task.flow, position, g, cells);
    }
    if (mine && pass != Pass::probe)
      for (int d = 0; d < D; ++d) points_grad[i * D + d] = static_cast<T>(g[d] / task.spacing[d]);
  }
  cells.finish();
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
    launch(points_kernel<T, D>, blocks_for(task.n, processors_of(points)), kThreads, 0, stream, task,
           points.const_data_ptr<T>(), out.mutable_data_ptr<T>());
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
    const auto kernel = points_backward_kernel<T, D>;
    const auto scatter = make_scatter<T, D>(kernel, flow, points, task.n, true);
    constexpr int32_t kTileBits = 3;  // a patch per warp
    const Deal deal{((task.n + kThreads - 1) / kThreads) << kTileBits, kTileBits};
    scatter.run(stream, [&](Pass pass) {
      launch(kernel, scatter.blocks, scatter.threads, scatter.bytes, stream, task, scatter.task, deal, grad.const_data_ptr<T>(),
             points.const_data_ptr<T>(), to_points.mutable_data_ptr<T>(), pass);
    });
    to_velocity = scatter.template collect<D>(flow, velocity, spacing, stream);
  });
  return {to_points, to_velocity};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m) {
  m.impl("flow_points", TORCH_BOX(&regframe::flow_points));
  m.impl("_flow_points_backward", TORCH_BOX(&regframe::flow_points_backward));
}
