// correlation on CUDA: sums over boxes, axis by axis. No sum depends on blocks or threads, nor is any made by subtracting.
#include <tuple>
#include <utility>

#include "correlation.h"
#include "cuda/common.cuh"

namespace regframe {
namespace {

// to [6, *shape]: what each pixel adds to the sums of a box; rows [blocks]: of the weights
template <class T>
__global__ void __launch_bounds__(kThreads) products_kernel(CorrelationTask<T> task, T* to, double* rows) {
  const int64_t n = task.pixels();
  double mass[1] = {0};
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const T w = task.weight[i], x = w != T(0) ? task.moving[i] : T(0), y = w != T(0) ? task.fixed[i] : T(0);
    to[i] = w * x;
    to[n + i] = w * x * x;
    to[2 * n + i] = w * x * y;
    to[3 * n + i] = w;
    to[4 * n + i] = w * y;
    to[5 * n + i] = w * y * y;
    mass[0] += static_cast<double>(w);
  }
  write_row(mass, rows);
}

// Sums over 2 reach + 1 neighbours along an axis of `size` numbers, `stride` apart; there are `lines` such rows of numbers. A thread
// makes as many sums as a window has numbers. Each is made of a sum up to the end of the thread's first window and one from there
// on: about three additions a number, however wide the window (van Herk 1992; Gil and Werman 1993).
template <class T>
__global__ void __launch_bounds__(kThreads)
    along_kernel(const T* from, int64_t lines, int64_t size, int64_t stride, int64_t reach, T* to) {
  const int64_t window = 2 * reach + 1, runs = (size + window - 1) / window;
  for (int64_t i = thread_index(); i < lines * runs; i += thread_count()) {
    const int64_t line = i % lines, first = i / lines * window;
    const int64_t base = line / stride * (stride * size) + line % stride;
    T sum = 0;
    for (int64_t k = window - 1; k >= 0; --k) {
      const int64_t at = first + k - reach;
      if (at >= 0 && at < size) sum += from[base + at * stride];
      if (first + k < size) to[base + (first + k) * stride] = sum;
    }
    sum = 0;
    for (int64_t k = 1; k < window && first + k < size; ++k) {
      const int64_t at = first + k + reach;
      if (at < size) sum += from[base + at * stride];
      to[base + (first + k) * stride] += sum;
    }
  }
}

// From the sums over boxes [6, *shape] to the factors [3, *shape], in place. rows [blocks]: sum of weight (1 - r)
template <class T>
__global__ void __launch_bounds__(kThreads) factors_kernel(CorrelationTask<T> task, double* rows) {
  const int64_t n = task.pixels();
  double unlike[1] = {0};
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const T w = task.weight[i];
    T box[kBoxSums];
    for (int k = 0; k < kBoxSums; ++k) box[k] = task.sums[k * n + i];
    const Correlated<ScalarLanes<T>, T> found(box, w, task.rules);
    if (w != T(0)) unlike[0] += static_cast<double>(w * (T(1) - found.r));
    task.sums[i] = found.slope;
    task.sums[n + i] = found.curve;
    task.sums[2 * n + i] = found.of_mean;
  }
  write_row(unlike, rows);
}

// the gradient of the value, from the factors' sums over boxes
template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(CorrelationTask<T> task, const double* per_mass) {
  const int64_t n = task.pixels();
  const T factor = static_cast<T>(-*per_mass);
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const T w = task.weight[i];
    const T g = w * factor * (task.fixed[i] * task.sums[i] + task.moving[i] * task.sums[n + i] * T(2) - task.sums[2 * n + i]);
    task.gradient[i] = w != T(0) ? g : T(0);
  }
}

// by one warp: what turns a sum over pixels and channels into the mean. masses [n]
__global__ void __launch_bounds__(kThreads) mass_kernel(const double* masses, int64_t n, int64_t channels, double* per_mass) {
  const double mass = column_sum(masses, n, 1, 0);
  if (lane_index() == 0) *per_mass = per_weight(mass, channels);
}

// by one warp: the value. unlike [n]
__global__ void __launch_bounds__(kThreads) mean_kernel(const double* unlike, int64_t n, const double* per_mass, double* value) {
  const double sum = column_sum(unlike, n, 1, 0);
  if (lane_index() == 0) *value = sum * *per_mass;
}

// From what each pixel adds [n, *shape], in `from`, to the sums over its box; returns where they are: in `from` or in `spare`.
template <class T>
T* sum_boxes(const CorrelationTask<T>& task, int64_t n, T* from, T* spare, int64_t processors, cudaStream_t stream) {
  int64_t stride = 1;
  for (int d = 2; d >= 0; --d) {
    const int64_t size = task.size[d], window = 2 * task.reach[d] + 1, lines = n * task.pixels() / size;
    if (task.reach[d] > 0) {
      launch(along_kernel<T>, blocks_for(lines * ((size + window - 1) / window), processors), kThreads, 0, stream, from, lines,
             size, stride, task.reach[d], spare);
      std::swap(from, spare);
    }
    stride *= size;
  }
  return from;
}

std::tuple<Tensor, Tensor> correlation(const Tensor& warped_, const Tensor& fixed_, const Tensor& weight_, int64_t radius,
                                       double floor, bool is_signed, bool wants_gradient) {
  check_correlation(warped_, fixed_, weight_, radius, floor);
  const torch::stable::accelerator::DeviceGuard guard(warped_.get_device_index());
  const Tensor warped = torch::stable::contiguous(warped_);  // [C, *S]
  const Tensor fixed = torch::stable::contiguous(fixed_);    // [C, *S]
  const Tensor weight = torch::stable::contiguous(weight_);  // [*S]
  Tensor value = torch::stable::new_zeros(warped, {}, ScalarType::Double);  // []
  Tensor gradient = wants_gradient ? torch::stable::new_empty(warped, warped.sizes()) : empty_grad(warped);
  if (warped.numel() == 0) return {value, gradient};
  const cudaStream_t stream = current_stream(warped);
  const int64_t processors = processors_of(warped);
  dispatch(warped.scalar_type(), 2, [&](auto scalar, auto) {
    using T = decltype(scalar);
    auto task = correlation_task<T>(warped, radius, floor, is_signed);
    const int64_t channels = warped.size(0), pixels = task.pixels(), blocks = blocks_for(pixels, processors);
    const int64_t numbers[1] = {kBoxSums * pixels}, rows[1] = {(channels + 1) * blocks + 1};
    Tensor first = torch::stable::new_empty(warped, {numbers, 1}), second = torch::stable::new_empty(warped, {numbers, 1});
    Tensor totals = torch::stable::new_empty(value, {rows, 1});
    double* masses = totals.mutable_data_ptr<double>();  // [blocks]
    double* unlike = masses + blocks;                     // [C, blocks]
    double* per_mass = unlike + channels * blocks;        // []
    task.weight = weight.const_data_ptr<T>();
    for (int64_t channel = 0; channel < channels; ++channel) {
      task.moving = warped.const_data_ptr<T>() + channel * pixels;
      task.fixed = fixed.const_data_ptr<T>() + channel * pixels;
      T *one = first.mutable_data_ptr<T>(), *other = second.mutable_data_ptr<T>();
      launch(products_kernel<T>, blocks, kThreads, 0, stream, task, one, masses);
      if (channel == 0) launch(mass_kernel, 1, kWarp, 0, stream, masses, blocks, channels, per_mass);
      task.sums = sum_boxes(task, kBoxSums, one, other, processors, stream);
      launch(factors_kernel<T>, blocks, kThreads, 0, stream, task, unlike + channel * blocks);
      if (!wants_gradient) continue;
      task.sums = sum_boxes(task, kBoxFactors, task.sums, task.sums == one ? other : one, processors, stream);
      task.gradient = gradient.mutable_data_ptr<T>() + channel * pixels;
      launch(gradient_kernel<T>, blocks, kThreads, 0, stream, task, per_mass);
    }
    launch(mean_kernel, 1, kWarp, 0, stream, unlike, channels * blocks, per_mass, value.mutable_data_ptr<double>());
  });
  return {value, gradient};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m) { m.impl("correlation", TORCH_BOX(&regframe::correlation)); }
