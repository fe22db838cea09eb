// contrast on CUDA: the residual of the best contrast map, and its gradients, in two passes over the pixels as on the CPU: the
// first sums up what the least-squares problem needs, one block solves it, and the second follows the paths again and scatters.
#include <tuple>

#include "contrast.h"
#include "cuda/follow.cuh"
#include "cuda/scatter.cuh"

namespace regframe {
namespace {

template <class T, int D>
struct ContrastTask {
  WarpTask<T, D> warp;  // its tile is the whole fixed grid
  const T* fixed;       // [C_f, *shape]
  const T* weight;      // [*shape]
  const T* factors;     // mean and 1 / deviation of the moving channels, [2, C_m], then of the fixed ones, [2, C_f]
  int64_t targets, order;
};

// A number known when compiling where N > 0, else at run time: the loops over few channels are then unrolled.
template <int N>
__device__ __forceinline__ int64_t known(int64_t n) {
  return N > 0 ? N : n;
}

// the standardised fixed channel f at `pixel`
template <class T, int D>
__device__ __forceinline__ T fixed_at(const ContrastTask<T, D>& task, int64_t f, int64_t pixel) {
  const T* factors = task.factors + 2 * task.warp.channels;
  return (task.fixed[f * task.warp.out_pixels + pixel] - factors[f]) * factors[task.targets + f];
}

// the standardised moving channel i in the cell with coefficients c that come with it
template <class T, int D>
__device__ __forceinline__ T moving_at(const ContrastTask<T, D>& task, int64_t i, int32_t cell, const T* f, T* c) {
  image_cell<T, D>(task.warp, i, cell, c);
  return (evaluate<D>(c, f) - task.factors[i]) * task.factors[task.warp.channels + i];
}

// rows: [blocks, moments]. For M moving and F fixed channels, order 1.
template <class T, int D, int M, int F>
__global__ void __launch_bounds__(kThreads) few_moments_kernel(ContrastTask<T, D> task, double* rows) {
  constexpr int kFeatures = 1 + M, kCount = kFeatures * (kFeatures + 1) / 2 + kFeatures * F;
  constexpr int kExact = 16;  // pixels whose sum is exact enough in T; that of an image needs a double
  __shared__ double parts[kThreads / kWarp][kCount];
  for (int i = lane_index(); i < kCount; i += kWarp) parts[warp_index()][i] = 0;
  __syncwarp();
  ReadingCells<T, D> cells(task.warp.flow, task.warp.velocity);
  T sums[kCount] = {};
  int pending = 0;
  int64_t patch, local[D];
  for (int64_t round = 0;; ++round) {
    patch = task.warp.patches.patch(round, false);
    if (pending == kExact || patch < 0) {
      for (int i = 0; i < kCount; ++i) {
        const T sum = warp_sum(sums[i]);
        if (lane_index() == 0) parts[warp_index()][i] += static_cast<double>(sum);
        sums[i] = 0;
      }
      pending = 0;
    }
    if (patch < 0) break;
    T weight, f[D], inside[D], phi[kFeatures];
    double index[D];
    if (!take_pixel<T, D>(task.warp, task.weight, patch, local, &weight)) continue;
    ++pending;
    const int64_t pixel = task.warp.patches.pixel(local);
    const int32_t cell = follow<T, D>(task.warp, local, cells, index, f, inside);
    phi[0] = 1;
    for (int i = 0; i < M; ++i) {
      T c[1 << D];
      phi[1 + i] = moving_at<T, D>(task, i, cell, f, c);
    }
    int at = 0;
    for (int i = 0; i < kFeatures; ++i) {
      const T part = weight * phi[i];
      for (int j = i; j < kFeatures; ++j, ++at) sums[at] += part * phi[j];
    }
    for (int target = 0; target < F; ++target) {
      const T y = weight * fixed_at<T, D>(task, target, pixel);
      for (int i = 0; i < kFeatures; ++i, ++at) sums[at] += phi[i] * y;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kCount; i += blockDim.x) {
    double sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += parts[warp][i];
    rows[int64_t(blockIdx.x) * kCount + i] = sum;
  }
}

// The moments for any number of channels and any order; rows come zeroed. A block's pixels put their phi into shared memory, then
// its threads share out the moments.
template <class T, int D>
__global__ void __launch_bounds__(kThreads) moments_kernel(ContrastTask<T, D> task, double* rows) {
  __shared__ T weights[kThreads];
  __shared__ int64_t pixels[kThreads];
  T* const phi = reinterpret_cast<T*>(private_words());  // [P, blockDim + 1]: the one more spreads features over the banks
  const int64_t channels = task.warp.channels, features = 1 + task.order * channels, wide = features + task.targets;
  const int width = static_cast<int>(blockDim.x) + 1, triangle = static_cast<int>(features * (features + 1) / 2);
  double* const row = rows + blockIdx.x * (triangle + features * task.targets);
  ReadingCells<T, D> cells(task.warp.flow, task.warp.velocity);
  int64_t patch, local[D];
  for (int64_t round = 0; (patch = task.warp.patches.patch(round, false)) >= 0; ++round) {  // in step: a tile is for the block
    T weight;
    const bool some = take_pixel<T, D>(task.warp, task.weight, patch, local, &weight);
    weights[threadIdx.x] = weight;
    T* const mine = phi + threadIdx.x;
    if (some) {
      T f[D], inside[D];
      double index[D];
      pixels[threadIdx.x] = task.warp.patches.pixel(local);
      const int32_t cell = follow<T, D>(task.warp, local, cells, index, f, inside);
      mine[0] = 1;
      for (int64_t i = 0; i < channels; ++i) {
        T c[1 << D];
        const T x = moving_at<T, D>(task, i, cell, f, c);
        T power = x;
        for (int64_t k = 0; k < task.order; ++k, power *= x) mine[(1 + k * channels + i) * width] = power;
      }
    }
    __syncthreads();
    for (int64_t pair = threadIdx.x; pair < features * wide; pair += blockDim.x) {
      const int64_t i = pair / wide, j = pair % wide;
      if (j < i) continue;
      T sum = 0;
      for (unsigned p = 0; p < blockDim.x; ++p) {
        if (weights[p] == T(0)) continue;  // its pixel may not even be there
        const T other = j < features ? phi[j * width + p] : fixed_at<T, D>(task, j - features, pixels[p]);
        sum += weights[p] * phi[i * width + p] * other;
      }
      row[j < features ? moment_at(features, i, j) : triangle + (j - features) * features + i] += static_cast<double>(sum);
    }
    __syncthreads();
  }
}

// one warp per moment
__global__ void __launch_bounds__(kThreads) sum_kernel(const double* rows, int64_t n_rows, int64_t count, double* moments) {
  for (int64_t i = thread_index() / kWarp; i < count; i += thread_count() / kWarp) {
    const double sum = column_sum(rows, n_rows, count, i);
    if (lane_index() == 0) moments[i] = sum;
  }
}

// What the map's solution leaves behind, beside theta [C_f, P]: numbers [2], the sum of weights and the factor from the
// gradient of half the sum of squares to that of the value. One block.
template <class T>
__global__ void __launch_bounds__(kThreads) solve_kernel(int64_t features, int64_t targets, double ridge, const double* moments,
                                                         double* decomposition, double* theta, T* rounded, double* numbers) {
  const double total = solve_contrast(features, targets, ridge, moments, decomposition, theta, BlockEach{});
  for (int64_t i = threadIdx.x; i < features * targets; i += blockDim.x) rounded[i] = static_cast<T>(theta[i]);
  if (threadIdx.x != 0) return;
  numbers[0] = total;
  numbers[1] = 2.0 / (static_cast<double>(targets) * total);
}

// rows: [blocks, 1 + D (D+1)], the sum of squares and the gradient of the matrix in nodes, both of half the sum of squares
template <class T, int D, int M, int F>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(ContrastTask<T, D> task, ScatterTask<T> scatter, const T* theta, double* rows, Pass pass) {
  if (pass == Pass::again && !FixedPoint<T>::repeats(scatter.ranges)) return;
  const int64_t channels = known<M>(task.warp.channels), targets = known<F>(task.targets);
  const int64_t order = M > 0 ? 1 : task.order, features = 1 + order * channels;
  const int64_t width = M > 0 ? 1 : blockDim.x;
  T few[M > 0 ? 1 + 2 * M : 1];
  T* const phi = M > 0 ? few : reinterpret_cast<T*>(private_words()) + threadIdx.x;  // [P]
  T* const back = phi + features * width;                                            // [C_m]
  Steps<T, D> steps;
  AddingCells<T, D> cells(task.warp.flow, task.warp.velocity, scatter, steps, pass);
  double total[1 + D * (D + 1)] = {};
  int64_t patch, local[D];
  for (int64_t round = 0; (patch = task.warp.patches.patch(round, pass == Pass::probe)) >= 0; ++round) {
    T weight;
    if (!take_pixel<T, D>(task.warp, task.weight, patch, local, &weight)) continue;
    T f[D], inside[D], g[D] = {}, slope[M > 0 ? M : 1][D];
    double index[D];
    const int64_t pixel = task.warp.patches.pixel(local);
    const int32_t cell = follow<T, D>(task.warp, local, cells, index, f, inside);
    phi[0] = 1;
    for (int64_t i = 0; i < channels; ++i) {
      T c[1 << D];
      const T x = moving_at<T, D>(task, i, cell, f, c);
      if constexpr (M > 0) evaluate<D>(c, f, slope[i]);
      T power = x;
      for (int64_t k = 0; k < order; ++k, power *= x) phi[(1 + k * channels + i) * width] = power;
      back[i * width] = 0;
    }
    const T* t = theta;
    T squares = 0;
    for (int64_t target = 0; target < targets; ++target, t += features) {
      T residual = t[0] - fixed_at<T, D>(task, target, pixel);
      for (int64_t i = 1; i < features; ++i) residual += t[i] * phi[i * width];
      const T pulled = weight * residual;
      squares += pulled * residual;
      for (int64_t i = 0; i < channels; ++i) {
        T sum = t[1 + i];
        for (int64_t k = 1; k < order; ++k)
          sum += static_cast<T>(k + 1) * t[1 + k * channels + i] * phi[(1 + (k - 1) * channels + i) * width];
        back[i * width] += sum * pulled;
      }
    }
    for (int64_t i = 0; i < channels; ++i) {
      if constexpr (M == 0) {
        T c[1 << D];
        image_cell<T, D>(task.warp, i, cell, c);
        evaluate<D>(c, f, slope[0]);
      }
      const T b = back[i * width] * task.factors[task.warp.channels + i];
      for (int d = 0; d < D; ++d) g[d] += b * slope[M > 0 ? i : 0][d];
    }
    for (int d = 0; d < D; ++d) g[d] *= weight != T(0) ? inside[d] * task.warp.image_per_flow[d] : T(0);
    pull_back_adjoint<ScalarLanes<T>, D>(task.warp.flow, g, cells);
    if (weight == T(0)) continue;
    total[0] += static_cast<double>(squares);
    add_start<T, D>(g, index, total + 1);
  }
  cells.finish();
  if (pass != Pass::probe) write_row(total, rows);
}

// value [] and the gradient of the matrix [D, D+1]; one warp per number
template <int D>
__global__ void __launch_bounds__(kThreads)
    value_kernel(const double* rows, int64_t n_rows, Scale<D> flow_scale, int64_t features, int64_t targets, double ridge,
                 const double* theta, const double* numbers, double* value, double* to_matrix) {
  for (int i = warp_index(); i < 1 + D * (D + 1); i += blockDim.x / kWarp) {
    const double sum = column_sum(rows, n_rows, 1 + D * (D + 1), i);
    double penalty = 0;
    if (i == 0)
      for (int64_t k = lane_index(); k < features * targets; k += kWarp)
        if (k % features != 0) penalty += theta[k] * theta[k];
    penalty = warp_sum(penalty);
    if (lane_index() != 0) continue;
    if (i == 0)
      *value = (sum / numbers[0] + ridge * penalty) / static_cast<double>(targets);
    else
      to_matrix[i - 1] = sum * flow_scale.value[(i - 1) / (D + 1)] * numbers[1];
  }
}

// Numbers of the host come as parameters of a kernel: these are part of a captured graph, the host's memory is not.
template <class T>
struct Chunk {
  T value[256];
};

template <class T>
__global__ void __launch_bounds__(kThreads) upload_kernel(Chunk<T> chunk, int64_t n, T* to) {
  if (static_cast<int64_t>(threadIdx.x) < n) to[threadIdx.x] = chunk.value[threadIdx.x];
}

template <class T>
void upload(const std::vector<T>& from, T* to, cudaStream_t stream) {
  constexpr int64_t kMost = sizeof(Chunk<T>) / sizeof(T);
  static_assert(kMost <= kThreads, "one thread per number");
  const int64_t size = static_cast<int64_t>(from.size());
  for (int64_t begin = 0; begin < size; begin += kMost) {
    const int64_t n = std::min(kMost, size - begin);
    Chunk<T> chunk{};
    std::copy_n(from.data() + begin, n, chunk.value);
    launch(upload_kernel<T>, 1, kThreads, 0, stream, chunk, n, to + begin);
  }
}

// the kernels for some numbers of channels
template <class T, int D>
struct Kernels {
  void (*few_moments)(ContrastTask<T, D>, double*);  // null: the general one
  void (*gradient)(ContrastTask<T, D>, ScatterTask<T>, const T*, double*, Pass);
};

template <class T, int D>
Kernels<T, D> kernels_for(int64_t channels, int64_t targets, int64_t order) {
  if constexpr (sizeof(T) == 4) {  // worth copies of their own
    if (order == 1 && channels == 1 && targets == 1) return {few_moments_kernel<T, D, 1, 1>, gradient_kernel<T, D, 1, 1>};
    if (order == 1 && channels == 1 && targets == 3) return {few_moments_kernel<T, D, 1, 3>, gradient_kernel<T, D, 1, 3>};
    if (order == 1 && channels == 3 && targets == 1) return {few_moments_kernel<T, D, 3, 1>, gradient_kernel<T, D, 3, 1>};
    if (order == 1 && channels == 3 && targets == 3) return {few_moments_kernel<T, D, 3, 3>, gradient_kernel<T, D, 3, 3>};
  }
  return {nullptr, gradient_kernel<T, D, 0, 0>};
}

// Powers of the warped channels (phi) that do not fit in registers lie in shared memory. How many threads a block may have if
// each needs a column of `numbers`: so few that no more than usual is needed, unless one warp needs it.
template <class T>
int64_t threads_for(int64_t numbers) {
  int64_t threads = kThreads;
  while (threads > kWarp && numbers * (threads + 1) * static_cast<int64_t>(sizeof(T)) > kUnaskedBytes) threads /= 2;
  return threads;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> contrast(
    const Tensor& moving_, const Tensor& fixed_, const Tensor& weight_, const Tensor& velocity_, const Tensor& matrix_,
    const std::vector<double>& image_spacing, const std::vector<double>& image_origin,
    const std::vector<double>& velocity_spacing, const std::vector<double>& velocity_origin, int64_t n_steps,
    const Tensor& moving_scale_, const Tensor& fixed_scale_, int64_t order, double ridge) {
  check_contrast(moving_, fixed_, weight_, velocity_, matrix_, image_spacing, image_origin, velocity_spacing, velocity_origin,
                 n_steps, moving_scale_, fixed_scale_, order, ridge);
  const torch::stable::accelerator::DeviceGuard guard(moving_.get_device_index());
  const Tensor moving = torch::stable::contiguous(moving_);              // [C_m, *S_m]
  const Tensor fixed = torch::stable::contiguous(fixed_);                // [C_f, *S_f]
  const Tensor weight = torch::stable::contiguous(weight_);              // [*S_f]
  const Tensor velocity = torch::stable::contiguous(velocity_);          // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);              // [D, D+1]
  const Tensor moving_scale = torch::stable::contiguous(moving_scale_);  // [2, C_m]
  const Tensor fixed_scale = torch::stable::contiguous(fixed_scale_);    // [2, C_f]
  const int64_t ndim = matrix.size(0), channels = moving.size(0), targets = fixed.size(0);
  const std::vector<int64_t> shape(fixed.sizes().begin() + 1, fixed.sizes().end()), offset(ndim, 0);
  const ContrastMap map(channels, targets, order, ridge);
  const int64_t features = map.features, count = map.moments(), theta_shape[2] = {targets, features};
  Tensor value = torch::stable::new_empty(matrix, {});                  // []
  Tensor theta = torch::stable::new_empty(matrix, {theta_shape, 2});    // [C_f, P]
  Tensor to_matrix = torch::stable::new_empty(matrix, matrix.sizes());  // [D, D+1]
  Tensor to_velocity = empty_grad(velocity);
  const cudaStream_t stream = current_stream(moving);
  const int64_t processors = processors_of(moving);
  const auto scratch = [&](const Tensor& like, int64_t n) {
    const int64_t size[1] = {n};
    return torch::stable::new_empty(like, {size, 1});
  };
  dispatch(moving.scalar_type(), ndim, [&](auto scalar, auto dimension) {
    using T = decltype(scalar);
    constexpr int D = decltype(dimension)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const Tensor padded = pad_velocity<T, D>(flow, velocity, velocity_spacing, stream);
    auto factors = scale_factors<T>(moving_scale);
    const auto of_fixed = scale_factors<T>(fixed_scale);
    factors.insert(factors.end(), of_fixed.begin(), of_fixed.end());
    Tensor on_device = scratch(moving, static_cast<int64_t>(factors.size()));
    upload(factors, on_device.mutable_data_ptr<T>(), stream);
    ContrastTask<T, D> task{};
    task.warp = make_task<T, D>(moving, velocity, matrix, padded, shape, offset, image_spacing, image_origin, velocity_spacing,
                                velocity_origin, n_steps);
    task.fixed = fixed.const_data_ptr<T>();
    task.weight = weight.const_data_ptr<T>();
    task.factors = on_device.const_data_ptr<T>();
    task.targets = targets;
    task.order = order;
    const int64_t pixels = task.warp.out_pixels;
    const auto kernels = kernels_for<T, D>(channels, targets, order);
    const bool few = kernels.few_moments != nullptr;

    // a block adds to its row of moments again and again, so that there are only as many as run at once, and memory for them
    constexpr int64_t kMostRows = int64_t(1) << 23;
    const int64_t threads = few ? kThreads : threads_for<T>(features);
    const int64_t bytes = few ? 0 : features * (threads + 1) * static_cast<int64_t>(sizeof(T));
    const int64_t resident = few ? resident_blocks(kernels.few_moments, threads, bytes)
                                 : resident_blocks(moments_kernel<T, D>, threads, bytes);
    const int64_t at_once = std::max<int64_t>(1, resident) * processors;
    const int64_t blocks =
        std::max<int64_t>(1, std::min({at_once, (pixels + threads - 1) / threads, kMostRows / count}));
    task.warp.patches = make_patches<D>(shape.data(), blocks);
    Tensor rows = scratch(matrix, blocks * count);
    if (!few) torch::stable::zero_(rows);
    Tensor moments = scratch(matrix, count), decomposition = scratch(matrix, features * features);
    Tensor rounded = scratch(moving, targets * features), numbers = scratch(matrix, 2);
    launch(few ? kernels.few_moments : moments_kernel<T, D>, blocks, threads, bytes, stream, task,
           rows.mutable_data_ptr<double>());
    launch(sum_kernel, blocks_for(count * kWarp, processors), kThreads, 0, stream, rows.const_data_ptr<double>(), blocks, count,
           moments.mutable_data_ptr<double>());
    launch(solve_kernel<T>, 1, kThreads, 0, stream, features, targets, ridge, moments.const_data_ptr<double>(),
           decomposition.mutable_data_ptr<double>(), theta.mutable_data_ptr<double>(), rounded.mutable_data_ptr<T>(),
           numbers.mutable_data_ptr<double>());

    const int64_t columns = features + channels, its_threads = few ? kThreads : threads_for<T>(columns);
    const auto scatter =
        make_scatter<T, D>(kernels.gradient, flow, moving, pixels, true, 0, its_threads,
                           few ? 0 : columns * its_threads * static_cast<int64_t>(sizeof(T)));
    task.warp.patches = make_patches<D>(shape.data(), scatter.blocks);
    Tensor sums = scratch(matrix, scatter.blocks * (1 + D * (D + 1)));
    scatter.run(stream, [&](Pass pass) {
      launch(kernels.gradient, scatter.blocks, scatter.threads, scatter.bytes, stream, task, scatter.task,
             rounded.const_data_ptr<T>(), sums.mutable_data_ptr<double>(), pass);
    });
    launch(value_kernel<D>, 1, kThreads, 0, stream, sums.const_data_ptr<double>(), scatter.blocks,
           make_scale<D>(1, velocity_spacing), features, targets, ridge, theta.const_data_ptr<double>(),
           numbers.const_data_ptr<double>(), value.mutable_data_ptr<double>(), to_matrix.mutable_data_ptr<double>());
    to_velocity = scatter.template collect<D>(flow, velocity, velocity_spacing, stream, numbers.const_data_ptr<double>() + 1);
  });
  return {value, theta, to_velocity, to_matrix};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m) { m.impl("contrast", TORCH_BOX(&regframe::contrast)); }
