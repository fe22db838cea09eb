// information on the CPU: the mutual information of both sides, and its gradients, in two passes over the pixels.
//
// The first fills the cells of the joint histogram; the second follows the paths again, reads the derivative at each pixel from
// its cell's polynomial, and scatters it.
#include <tuple>

#include "cpu/kernels.h"
#include "cpu/task.h"
#include "cpu/velocity.h"
#include "information.h"

namespace regframe {
namespace {

std::tuple<Tensor, Tensor, Tensor> information(const Tensor& moving_, const Tensor& fixed_, const Tensor& weight_,
                                               const Tensor& velocity_, const Tensor& matrix_,
                                               const std::vector<double>& image_spacing,
                                               const std::vector<double>& image_origin,
                                               const std::vector<double>& velocity_spacing,
                                               const std::vector<double>& velocity_origin, int64_t n_steps, int64_t bins,
                                               bool normalized) {
  check_information(moving_, fixed_, weight_, velocity_, matrix_, image_spacing, image_origin, velocity_spacing,
                    velocity_origin, n_steps, bins);
  const Tensor moving = torch::stable::contiguous(moving_);      // [K_m, *S_m]
  const Tensor fixed = torch::stable::contiguous(fixed_);        // [K_f, *S_f]
  const Tensor weight = torch::stable::contiguous(weight_);      // [*S_f]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  const int64_t ndim = matrix.size(0), pairs = moving.size(0) * fixed.size(0);
  const std::vector<int64_t> shape(fixed.sizes().begin() + 1, fixed.sizes().end()), offset(ndim, 0);
  const Cellwork at(bins);
  Tensor value = torch::stable::new_zeros(matrix, {});                  // []
  Tensor to_matrix = torch::stable::new_zeros(matrix, matrix.sizes());  // [D, D+1]
  Tensor to_velocity = empty_grad(velocity);
  dispatch(moving.scalar_type(), ndim, [&](auto scalar, auto dimension) {
    using T = decltype(scalar);
    constexpr int D = decltype(dimension)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const auto padded = pad_velocity<T, D>(flow, velocity, velocity_spacing);
    InformationTask<T, D> task{};
    task.warp = warp_task<T, D>(moving, velocity, matrix, padded.get(), shape, offset, image_spacing, image_origin,
                                velocity_spacing, velocity_origin, n_steps);
    task.fixed = fixed.const_data_ptr<T>();
    task.weight = weight.const_data_ptr<T>();
    task.lines = fixed.size(0);
    task.rows = static_cast<int32_t>(at.rows);
    task.columns = static_cast<int32_t>(at.columns);
    const int64_t threads = get_num_threads(), each = at.cells() * kMoments, count = pairs * each;
    const int64_t rows = task.warp.out_pixels > 0 ? task.warp.out_pixels / shape[D - 1] : 0;

    std::vector<double> moments(threads * count);  // [threads, pairs, cells, 8]
    in_parts(rows, threads, 1, [&](int64_t part, int64_t begin, int64_t end) {
      RF_CALL(information_moments, T, D, task, moments.data() + part * count, begin, end);
    });
    for (int64_t part = 1; part < threads; ++part)
      for (int64_t i = 0; i < count; ++i) moments[i] += moments[part * count + i];
    const double total = total_weight(at, moments.data());
    std::vector<double> scratch(InformationScratch::size(bins));
    std::vector<T> table(count);  // [pairs, cells, 8]
    double sum = 0;
    for (int64_t pair = 0; pair < pairs; ++pair)
      sum += solve_information(at, normalized, total, moments.data() + pair * each, scratch.data(), table.data() + pair * each,
                               EachInTurn{});
    *value.mutable_data_ptr<double>() = sum / static_cast<double>(pairs);

    Accumulators<T, D> sums(flow, threads);
    std::vector<double> matrices(threads * D * (D + 1));  // [threads, D, D+1]
    in_parts(rows, threads, 1, [&](int64_t part, int64_t begin, int64_t end) {
      RF_CALL(information_gradient, T, D, task, table.data(), sums.of(part), matrices.data() + part * D * (D + 1), begin, end);
    });
    const double factor = gradient_factor(at, pairs, total);
    to_velocity = sums.collect(velocity, velocity_spacing, factor);
    collect_matrix<D>(matrices, threads, velocity_spacing, factor, to_matrix.mutable_data_ptr<double>());
  });
  return {value, to_velocity, to_matrix};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CPU, m) { m.impl("information", TORCH_BOX(&regframe::information)); }
