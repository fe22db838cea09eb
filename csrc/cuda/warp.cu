// warp on CUDA: forward and backward. One lane per pixel runs the path and the adjoint of interp.h.
#include <algorithm>
#include <tuple>

#include "cuda/follow.cuh"
#include "cuda/scatter.cuh"

namespace regframe {
namespace {

template <class T, int D>
__global__ void __launch_bounds__(kThreads) warp_kernel(WarpTask<T, D> task, T* out) {
  ReadingCells<T, D> cells(task.flow, task.velocity);
  int64_t patch, local[D];
  for (int64_t round = 0; (patch = task.patches.patch(round, false)) >= 0; ++round) {
    if (!task.patches.locate(patch, local)) continue;
    const int64_t pixel = task.patches.pixel(local);
    double index[D];
    T f[D], inside[D];
    const int32_t cell = follow<T, D>(task, local, cells, index, f, inside);
    for (int64_t channel = 0; channel < task.channels; ++channel) {
      T c[1 << D];
      image_cell<T, D>(task, channel, cell, c);
      out[channel * task.out_pixels + pixel] = evaluate<D>(c, f);
    }
  }
}

// where the gradient of the image goes; null sums: it is not asked for
struct ImageScatter {
  Word* sums;  // [C, *S]
  Range* range;
  int32_t log2_terms;
};

// rows: [blocks, D (D+1)], the gradient of the matrix in nodes
template <class T, int D>
__global__ void __launch_bounds__(kThreads) warp_backward_kernel(WarpTask<T, D> task, ScatterTask<T> scatter,
                                                                 ImageScatter image, const T* grad, double* rows, Pass pass) {
  if (pass == Pass::again && !FixedPoint<T>::repeats(scatter.ranges)) return;
  Steps<T, D> steps;
  AddingCells<T, D> cells(task.flow, task.velocity, scatter, steps, pass);
  const T image_scale = ldexp(T(1), FixedPoint<T>::shift(*image.range, pass == Pass::again, image.log2_terms));
  decltype(magnitude(T())) largest = 0;  // of the incoming gradients
  double total[D * (D + 1)] = {};
  int64_t patch, local[D];
  for (int64_t round = 0; (patch = task.patches.patch(round, pass == Pass::probe)) >= 0; ++round) {
    const bool mine = task.patches.locate(patch, local);  // else this lane adds zeros to its neighbour's path
    if (!__any_sync(kEveryLane, mine)) continue;
    const int64_t pixel = task.patches.pixel(local);
    double index[D];
    T f[D], inside[D], g[D] = {};
    const int32_t cell = follow<T, D>(task, local, cells, index, f, inside);
    T weight[1 << D] = {};
    add_moments<D>(weight, T(1), f);
    to_corner_gradient<D>(weight);
    for (int64_t channel = 0; channel < task.channels; ++channel) {
      T c[1 << D], slope[D];
      const T come = mine ? grad[channel * task.out_pixels + pixel] : T(0);
      if (image.sums != nullptr) {
        largest = magnitude(come) > largest ? magnitude(come) : largest;
        Word* to = image.sums + channel * task.image_pixels + cell;
        if (pass != Pass::probe)
          for (int k = 0; k < (1 << D); ++k) {
            const Word fixed = to_fixed(weight[k] * come, image_scale);
            if (fixed != 0) atomicAdd(to + task.grid.corner[k], fixed);
          }
      }
      if (scatter.sums == nullptr) continue;
      image_cell<T, D>(task, channel, cell, c);
      evaluate<D>(c, f, slope);
      for (int d = 0; d < D; ++d) g[d] += come * slope[d];
    }
    if (scatter.sums == nullptr) continue;
    for (int d = 0; d < D; ++d) g[d] *= inside[d] * task.image_per_flow[d];
    pull_back_adjoint<ScalarLanes<T>, D>(task.flow, g, cells);
    add_start<T, D>(g, index, total);
  }
  if (image.sums != nullptr) note(largest, pass, image.range);
  cells.finish();
  if (pass != Pass::probe && scatter.sums != nullptr) write_row(total, rows);
}

// one warp per number
template <int D>
__global__ void __launch_bounds__(kThreads)
    matrix_kernel(const double* rows, int64_t n_rows, Scale<D> flow_scale, double* to) {
  for (int i = warp_index(); i < D * (D + 1); i += blockDim.x / kWarp) {
    const double sum = column_sum(rows, n_rows, D * (D + 1), i);
    if (lane_index() == 0) to[i] = sum * flow_scale.value[i / (D + 1)];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    image_kernel(const Range* ranges, const Word* sums, int32_t log2_terms, int64_t size, T* to) {
  const double unit = FixedPoint<T>::unit(ranges, 1, log2_terms);
  for (int64_t i = thread_index(); i < size; i += thread_count())
    to[i] = static_cast<T>(static_cast<double>(static_cast<long long>(sums[i])) * unit);
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
    auto task = make_task<T, D>(image, velocity, matrix, padded, shape, offset, image_spacing, image_origin, velocity_spacing,
                                velocity_origin, n_steps);
    const int64_t blocks = blocks_for(task.out_pixels, processors_of(image));
    task.patches = make_patches<D>(shape.data(), blocks);
    launch(warp_kernel<T, D>, blocks, kThreads, 0, stream, task, out.mutable_data_ptr<T>());
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
  const torch::stable::accelerator::DeviceGuard guard(image_.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_);          // [C, *shape]
  const Tensor image = torch::stable::contiguous(image_);        // [C, *S]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  Tensor to_image = empty_grad(image), to_velocity = empty_grad(velocity), to_matrix = empty_grad(matrix);
  if (grad.numel() == 0) {
    if (wants_image) to_image = torch::stable::new_zeros(image, image.sizes());
    if (wants_velocity) to_velocity = torch::stable::new_zeros(velocity, velocity.sizes());
    if (wants_matrix) to_matrix = torch::stable::new_zeros(matrix, matrix.sizes());
    return {to_image, to_velocity, to_matrix};
  }
  const cudaStream_t stream = current_stream(image);
  dispatch(image.scalar_type(), matrix.size(0), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const Tensor padded = pad_velocity<T, D>(flow, velocity, velocity_spacing, stream);
    auto task = make_task<T, D>(image, velocity, matrix, padded, shape, offset, image_spacing, image_origin, velocity_spacing,
                                velocity_origin, n_steps);
    const auto kernel = warp_backward_kernel<T, D>;
    const auto scatter = make_scatter<T, D>(kernel, flow, image, task.out_pixels, wants_velocity || wants_matrix,
                                            wants_image ? image.numel() : 0);
    task.patches = make_patches<D>(shape.data(), scatter.blocks);
    const ImageScatter to{scatter.image_sums, scatter.task.ranges + 1, log2_ceil(task.out_pixels)};
    const int64_t row_sizes[2] = {scatter.blocks, D * (D + 1)};
    const Tensor rows = torch::stable::new_empty(matrix, {row_sizes, 2});
    scatter.run(stream, [&](Pass pass) {
      launch(kernel, scatter.blocks, scatter.threads, scatter.bytes, stream, task, scatter.task, to, grad.const_data_ptr<T>(),
             rows.mutable_data_ptr<double>(), pass);
    });
    if (wants_image) {
      to_image = torch::stable::new_empty(image, image.sizes());
      launch(image_kernel<T>, blocks_for(image.numel(), processors_of(image)), kThreads, 0, stream, scatter.task.ranges,
             scatter.image_sums, to.log2_terms, image.numel(), to_image.mutable_data_ptr<T>());
    }
    if (wants_velocity) to_velocity = scatter.template collect<D>(flow, velocity, velocity_spacing, stream);
    if (wants_matrix) {
      to_matrix = torch::stable::new_empty(matrix, matrix.sizes());
      launch(matrix_kernel<D>, 1, kThreads, 0, stream, rows.const_data_ptr<double>(), scatter.blocks,
             make_scale<D>(1, velocity_spacing), to_matrix.mutable_data_ptr<double>());
    }
  });
  return {to_image, to_velocity, to_matrix};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m) {
  m.impl("warp", TORCH_BOX(&regframe::warp));
  m.impl("_warp_backward", TORCH_BOX(&regframe::warp_backward));
}
