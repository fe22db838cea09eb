// flow_points on the CPU: forward and backward.
#include <algorithm>
#include <tuple>

#include "cpu/kernels.h"
#include "cpu/velocity.h"

namespace regframe {
namespace {

constexpr int64_t kGrain = 16;  // points per part are a multiple of the widest register

template <class T, int D>
PointsTask<T, D> make_task(const FlowGrid<T, D>& flow, const T* padded, const std::vector<double>& spacing,
                           const std::vector<double>& origin, bool to_moving) {
  PointsTask<T, D> task{};
  task.flow = flow;
  task.velocity = padded;
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

int64_t parts_for(int64_t points) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min<int64_t>(threads, points / 1024));
}

Tensor flow_points(const Tensor& points_, const Tensor& velocity_, const std::vector<double>& spacing,
                   const std::vector<double>& origin, int64_t n_steps, bool to_moving) {
  check_points(points_, velocity_, spacing, origin, n_steps);
  const Tensor points = torch::stable::contiguous(points_);                    // [N, D]
  const Tensor velocity = torch::stable::contiguous(velocity_);                // [T, D, *S]
  Tensor out = torch::stable::new_empty(points, points.sizes());               // [N, D]
  if (out.numel() == 0) return out;
  dispatch(points.scalar_type(), points.size(1), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const auto padded = pad_velocity<T, D>(flow, velocity, spacing);
    const auto task = make_task<T, D>(flow, padded.get(), spacing, origin, to_moving);
    const T* from = points.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    in_parts(points.size(0), parts_for(points.size(0)), kGrain, [&](int64_t, int64_t begin, int64_t end) {
      RF_CALL(points_forward, T, D, task, from, to, begin, end);
    });
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
                      !end_.is_cuda() && !grad_.is_cuda(),
                  "grad and end must have the shape, dtype and device of points");
  const Tensor grad = torch::stable::contiguous(grad_);                        // [N, D]
  const Tensor points = torch::stable::contiguous(to_moving ? points_ : end_);  // [N, D]
  const Tensor velocity = torch::stable::contiguous(velocity_);                // [T, D, *S]
  Tensor to_points = torch::stable::new_empty(points, points.sizes());         // [N, D]
  if (points.numel() == 0) return {to_points, torch::stable::new_zeros(velocity, velocity.sizes())};
  Tensor to_velocity = empty_grad(velocity);
  dispatch(points.scalar_type(), points.size(1), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const auto padded = pad_velocity<T, D>(flow, velocity, spacing);
    const auto task = make_task<T, D>(flow, padded.get(), spacing, origin, to_moving);
    const int64_t parts = parts_for(points.size(0));
    Accumulators<T, D> sums(flow, parts);
    const T* g = grad.const_data_ptr<T>();
    const T* from = points.const_data_ptr<T>();
    T* to = to_points.mutable_data_ptr<T>();
    in_parts(points.size(0), parts, kGrain, [&](int64_t part, int64_t begin, int64_t end) {
      RF_CALL(points_backward, T, D, task, g, from, to, sums.of(part), begin, end);
    });
    to_velocity = sums.collect(velocity, spacing);
  });
  return {to_points, to_velocity};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CPU, m) {
  m.impl("flow_points", TORCH_BOX(&regframe::flow_points));
  m.impl("_flow_points_backward", TORCH_BOX(&regframe::flow_points_backward));
}
