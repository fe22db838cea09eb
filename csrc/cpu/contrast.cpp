// contrast on the CPU: the residual of the best contrast map, and its gradients, in two passes over the pixels.
//
// The first sums up what the least-squares problem needs, the second follows the paths again and scatters the gradient of the
// residual. The map is at its optimum, so its own derivative in theta is zero and the second pass is all of the gradient.
#include <tuple>

#include "contrast.h"
#include "cpu/kernels.h"
#include "cpu/task.h"
#include "cpu/velocity.h"

namespace regframe {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> contrast(
    const Tensor& moving_, const Tensor& fixed_, const Tensor& weight_, const Tensor& velocity_, const Tensor& matrix_,
    const std::vector<double>& image_spacing, const std::vector<double>& image_origin,
    const std::vector<double>& velocity_spacing, const std::vector<double>& velocity_origin, int64_t n_steps,
    const Tensor& moving_scale_, const Tensor& fixed_scale_, int64_t order, double ridge) {
  check_contrast(moving_, fixed_, weight_, velocity_, matrix_, image_spacing, image_origin, velocity_spacing, velocity_origin,
                 n_steps, moving_scale_, fixed_scale_, order, ridge);
  const Tensor moving = torch::stable::contiguous(moving_);              // [C_m, *S_m]
  const Tensor fixed = torch::stable::contiguous(fixed_);                // [C_f, *S_f]
  const Tensor weight = torch::stable::contiguous(weight_);              // [*S_f]
  const Tensor velocity = torch::stable::contiguous(velocity_);          // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);              // [D, D+1]
  const Tensor moving_scale = torch::stable::contiguous(moving_scale_);  // [2, C_m]
  const Tensor fixed_scale = torch::stable::contiguous(fixed_scale_);    // [2, C_f]
  const int64_t ndim = matrix.size(0), targets = fixed.size(0);
  const std::vector<int64_t> shape(fixed.sizes().begin() + 1, fixed.sizes().end()), offset(ndim, 0);
  ContrastMap map(moving.size(0), targets, order, ridge);
  Tensor value = torch::stable::new_zeros(matrix, {});                               // []
  const int64_t theta_shape[2] = {targets, map.features};
  Tensor theta = torch::stable::new_zeros(matrix, {theta_shape, 2});  // [C_f, P]
  Tensor to_matrix = torch::stable::new_zeros(matrix, matrix.sizes());  // [D, D+1]
  Tensor to_velocity = empty_grad(velocity);
  dispatch(moving.scalar_type(), ndim, [&](auto scalar, auto dimension) {
    using T = decltype(scalar);
    constexpr int D = decltype(dimension)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const auto padded = pad_velocity<T, D>(flow, velocity, velocity_spacing);
    const auto moving_factors = scale_factors<T>(moving_scale), fixed_factors = scale_factors<T>(fixed_scale);
    ContrastTask<T, D> task{};
    task.warp = warp_task<T, D>(moving, velocity, matrix, padded.get(), shape, offset, image_spacing, image_origin,
                                velocity_spacing, velocity_origin, n_steps);
    task.fixed = fixed.const_data_ptr<T>();
    task.weight = weight.const_data_ptr<T>();
    task.targets = targets;
    task.order = order;
    task.moving_mean = moving_factors.data();
    task.moving_gain = moving_factors.data() + moving.size(0);
    task.fixed_mean = fixed_factors.data();
    task.fixed_gain = fixed_factors.data() + targets;
    const int64_t threads = get_num_threads(), count = map.moments();
    const int64_t rows = task.warp.out_pixels > 0 ? task.warp.out_pixels / shape[D - 1] : 0;

    std::vector<double> moments(threads * count);  // [threads, moments]
    in_parts(rows, threads, 1, [&](int64_t part, int64_t begin, int64_t end) {
      RF_CALL(contrast_moments, T, D, task, moments.data() + part * count, begin, end);
    });
    for (int64_t part = 1; part < threads; ++part)
      for (int64_t i = 0; i < count; ++i) moments[i] += moments[part * count + i];
    map.solve(moments.data(), theta.mutable_data_ptr<double>());
    const double* exact = theta.const_data_ptr<double>();
    const std::vector<T> rounded(exact, exact + theta.numel());

    Accumulators<T, D> sums(flow, threads);
    std::vector<double> matrices(threads * D * (D + 1)), squares(threads);  // [threads, D, D+1], [threads]
    in_parts(rows, threads, 1, [&](int64_t part, int64_t begin, int64_t end) {
      RF_CALL(contrast_gradient, T, D, task, rounded.data(), &squares[part], sums.of(part),
              matrices.data() + part * D * (D + 1), begin, end);
    });
    double total = 0;
    for (int64_t part = 0; part < threads; ++part) total += squares[part];
    *value.mutable_data_ptr<double>() = map.value(total, exact);
    const double factor = map.gradient_factor();
    to_velocity = sums.collect(velocity, velocity_spacing, factor);
    collect_matrix<D>(matrices, threads, velocity_spacing, factor, to_matrix.mutable_data_ptr<double>());
  });
  return {value, theta, to_velocity, to_matrix};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CPU, m) { m.impl("contrast", TORCH_BOX(&regframe::contrast)); }
