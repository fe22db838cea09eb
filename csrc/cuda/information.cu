// information on CUDA: the mutual information of both sides, and its gradients, in two passes over the pixels as on the CPU: the
// first fills the cells of the joint histogram, one block makes the value and the polynomials of them, and the second follows the
// paths again and scatters.
//
// The histogram is summed up in fixed point, as the gradient is (scatter.cuh): a pixel adds weight * t^p * s^q, at most its weight,
// so that the largest weight and the number of pixels say how fine a unit may be.
#include <tuple>

#include "cuda/follow.cuh"
#include "cuda/scatter.cuh"
#include "information.h"

namespace regframe {
namespace {

template <class T, int D>
struct InformationTask {
  WarpTask<T, D> warp;  // its tile is the whole fixed grid, its channels are the moving lines
  const T* fixed;       // [K_f, *shape]
  const T* weight;      // [*shape]
  int64_t lines;        // K_f
  Cellwork at;
};

// Sums of a joint histogram in 64 bits, and what they are in units of.
struct Histogram {
  Word* sums;           // [pairs, cells, 8]
  Range* weight;        // seen: the largest
  int64_t size;         // of sums
  int32_t log2_terms;   // of the pixels
  bool in_shared;       // whether a block sums up privately first
};

// Where a position (0 to 1 over the bins' range) is along an axis of n cells: the cell, and in it 0 to 1.
template <class T>
struct Reach {
  int32_t cell;
  T rest;

  __device__ __forceinline__ Reach() {}
  __device__ __forceinline__ Reach(T position, int64_t n) {
    using L = ScalarLanes<T>;
    T x = L::max(position * static_cast<T>(n), T(0));  // not a number: 0
    x = x < static_cast<T>(n) ? x : static_cast<T>(n);
    cell = L::to_int(x);
    cell = cell < n - 1 ? cell : static_cast<int32_t>(n - 1);
    rest = x - static_cast<T>(cell);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) largest_kernel(const T* weight, int64_t n, Range* range) {
  decltype(magnitude(T())) largest = 0;
  for (int64_t i = thread_index(); i < n; i += thread_count())
    largest = magnitude(weight[i]) > largest ? magnitude(weight[i]) : largest;
  note(largest, &range->seen);
}

__device__ __forceinline__ void add_word(const Histogram& histogram, int64_t at, Word x) {
  if (x == 0) return;
  if (histogram.in_shared)
    add_private(at, x);
  else
    atomicAdd(histogram.sums + at, x);
}

// Adds the terms [8] of all lanes to their cells. Lanes are neighbours, so many share theirs: each crowd of them is summed up by
// shuffles, exactly, and added by eight lanes at once. Lanes with few or no companions add on their own.
__device__ __forceinline__ void add_to_cells(const Histogram& histogram, int64_t first, int32_t cell, const Word* terms) {
  constexpr int kFew = 4;
  const unsigned peers = __match_any_sync(kEveryLane, cell);
  const bool crowded = __popc(peers) >= kFew;
  for (unsigned left = __ballot_sync(kEveryLane, crowded); left != 0;) {
    const int leader = __ffs(left) - 1;
    const unsigned crowd = __shfl_sync(kEveryLane, peers, leader);
    const int64_t to = first + static_cast<int64_t>(__shfl_sync(kEveryLane, cell, leader)) * kMoments;
    left &= ~crowd;
    const bool take = (crowd >> lane_index() & 1) != 0;
    Word v[kMoments];
    for (int i = 0; i < kMoments; ++i) v[i] = take ? terms[i] : 0;
#pragma unroll
    for (int half = 4; half > 0; half >>= 1) {  // each exchange halves the numbers that a lane still has to care for
      const bool high = (lane_index() & (4 * half)) != 0;
      for (int i = 0; i < half; ++i) {
        const Word mine = high ? v[i + half] : v[i], yours = high ? v[i] : v[i + half];
        v[i] = mine + __shfl_xor_sync(kEveryLane, yours, 4 * half);
      }
    }
    v[0] += __shfl_xor_sync(kEveryLane, v[0], 2);
    v[0] += __shfl_xor_sync(kEveryLane, v[0], 1);
    if (lane_index() % 4 == 0) add_word(histogram, to + lane_index() / 4, v[0]);
  }
  if (crowded) return;
  for (int i = 0; i < kMoments; ++i) add_word(histogram, first + static_cast<int64_t>(cell) * kMoments + i, terms[i]);
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) moments_kernel(InformationTask<T, D> task, Histogram histogram) {
  const Range& range = *histogram.weight;
  const bool usable = FixedPoint<double>::finite(range.seen);
  const double scale = ldexp(1.0, usable ? FixedPoint<double>::shift(range, true, histogram.log2_terms) : 0);
  if (histogram.in_shared) {
    for (int64_t i = threadIdx.x; i < 2 * histogram.size; i += blockDim.x) private_words()[i] = 0;
    __syncthreads();
  }
  ReadingCells<T, D> cells(task.warp.flow, task.warp.velocity);
  int64_t patch, local[D];
  for (int64_t round = 0; usable && (patch = task.warp.patches.patch(round, false)) >= 0; ++round) {
    T weight, f[D], inside[D];
    double index[D];
    if (!take_pixel<T, D>(task.warp, task.weight, patch, local, &weight)) continue;
    const int64_t pixel = task.warp.patches.pixel(local);
    const int32_t cell = follow<T, D>(task.warp, local, cells, index, f, inside);
    int64_t first = 0;
    for (int64_t i = 0; i < task.lines; ++i) {
      const Reach<T> row(task.fixed[i * task.warp.out_pixels + pixel], task.at.rows);
      for (int64_t k = 0; k < task.warp.channels; ++k) {
        T c[1 << D];
        image_cell<T, D>(task.warp, k, cell, c);
        const Reach<T> column(evaluate<D>(c, f), task.at.columns);
        Word terms[kMoments];
        double power = static_cast<double>(weight) * scale;
        for (int p = 0; p < 4; ++p, power *= column.rest) {
          terms[p] = to_fixed(power, 1.0);
          terms[4 + p] = to_fixed(power * row.rest, 1.0);
        }
        add_to_cells(histogram, first, row.cell * static_cast<int32_t>(task.at.columns) + column.cell, terms);
        first += task.at.cells() * kMoments;
      }
    }
  }
  if (!histogram.in_shared) return;
  __syncthreads();
  const unsigned* words = private_words();
  for (int64_t i = threadIdx.x; i < histogram.size; i += blockDim.x) {
    const Word sum = static_cast<Word>(words[2 * i + 1]) << 32 | words[2 * i];
    if (sum != 0) atomicAdd(histogram.sums + i, sum);
  }
}

// moments [pairs, cells, 8] of the histogram's sums
__global__ void __launch_bounds__(kThreads) unfold_kernel(Histogram histogram, double* moments) {
  const Range& range = *histogram.weight;
  const double unit = FixedPoint<double>::finite(range.seen)
                          ? ldexp(1.0, -FixedPoint<double>::shift(range, true, histogram.log2_terms))
                          : __longlong_as_double(0x7ff8000000000000ll);  // NaN
  for (int64_t i = thread_index(); i < histogram.size; i += thread_count())
    moments[i] = static_cast<double>(static_cast<long long>(histogram.sums[i])) * unit;
}

// table [pairs, cells, 8]; numbers [2]: the value, and what the gradients are to be multiplied by. One block.
template <class T>
__global__ void __launch_bounds__(kThreads) solve_kernel(Cellwork at, int64_t pairs, bool normalized, const double* moments,
                                                         double* scratch, T* table, double* numbers) {
  const double total = total_weight(at, moments);
  double sum = 0;
  for (int64_t pair = 0; pair < pairs; ++pair)
    sum += solve_information(at, normalized, total, moments + pair * at.cells() * kMoments, scratch,
                             table + pair * at.cells() * kMoments, BlockEach{});
  if (threadIdx.x != 0) return;
  numbers[0] = sum / static_cast<double>(pairs);
  numbers[1] = gradient_factor(at, pairs, total);
}

// rows: [blocks, D (D+1)], the gradient of the matrix in nodes, of the sum of weight times what is read from the table
template <class T, int D>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(InformationTask<T, D> task, ScatterTask<T> scatter, const T* table, double* rows, Pass pass) {
  if (pass == Pass::again && !FixedPoint<T>::repeats(scatter.ranges)) return;
  Steps<T, D> steps;
  AddingCells<T, D> cells(task.warp.flow, task.warp.velocity, scatter, steps, pass);
  double total[D * (D + 1)] = {};
  int64_t patch, local[D];
  for (int64_t round = 0; (patch = task.warp.patches.patch(round, pass == Pass::probe)) >= 0; ++round) {
    T weight;
    if (!take_pixel<T, D>(task.warp, task.weight, patch, local, &weight)) continue;
    T f[D], inside[D], g[D] = {};
    double index[D];
    const int64_t pixel = task.warp.patches.pixel(local);
    const int32_t cell = follow<T, D>(task.warp, local, cells, index, f, inside);
    for (int64_t k = 0; k < task.warp.channels; ++k) {
      T c[1 << D], slope[D];
      image_cell<T, D>(task.warp, k, cell, c);
      const T x = evaluate<D>(c, f, slope);
      const Reach<T> column(x, task.at.columns);
      T back = 0;
      for (int64_t i = 0; i < task.lines; ++i) {
        const Reach<T> row(task.fixed[i * task.warp.out_pixels + pixel], task.at.rows);
        const int64_t pair = i * task.warp.channels + k, in_pair = row.cell * task.at.columns + column.cell;
        const T* read = table + (pair * task.at.cells() + in_pair) * kMoments;
        T sums[3];
        for (int p = 0; p < 3; ++p) sums[p] = read[2 * p] + read[2 * p + 1] * row.rest;
        back += sums[0] + column.rest * (sums[1] + column.rest * sums[2]);
      }
      back = x >= T(0) && x <= T(1) ? back * weight : T(0);  // what is beyond the bins' range has no gradient
      for (int d = 0; d < D; ++d) g[d] += back * slope[d];
    }
    for (int d = 0; d < D; ++d) g[d] = weight != T(0) ? g[d] * inside[d] * task.warp.image_per_flow[d] : T(0);
    pull_back_adjoint<ScalarLanes<T>, D>(task.warp.flow, g, cells);
    if (weight != T(0)) add_start<T, D>(g, index, total);
  }
  cells.finish();
  if (pass != Pass::probe) write_row(total, rows);
}

// value [] and the gradient of the matrix [D, D+1]; one warp per number
template <int D>
__global__ void __launch_bounds__(kThreads) value_kernel(const double* rows, int64_t n_rows, Scale<D> flow_scale,
                                                         const double* numbers, double* value, double* to_matrix) {
  for (int i = warp_index(); i < D * (D + 1); i += blockDim.x / kWarp) {
    const double sum = column_sum(rows, n_rows, D * (D + 1), i);
    if (lane_index() == 0) to_matrix[i] = sum * flow_scale.value[i / (D + 1)] * numbers[1];
  }
  if (threadIdx.x == 0) *value = numbers[0];
}

// The memory of a histogram, and how many blocks fill it.
struct Filling {
  Tensor memory;  // [kRangeWords + size], int64
  Histogram histogram;
  int64_t blocks, bytes;
};

template <class T, int D>
Filling make_filling(const Tensor& like, int64_t size, int64_t pixels) {
  const auto kernel = moments_kernel<T, D>;
  const int64_t processors = processors_of(like), words[1] = {kRangeWords + size};
  int64_t bytes = size * static_cast<int64_t>(sizeof(Word));
  int64_t blocks = std::max<int64_t>(1, resident_blocks(kernel, kThreads, 0)) * processors;
  bool in_shared = bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, like) - 4096;
  if (in_shared) {
    ask_for_shared(kernel, bytes);
    const int64_t resident = resident_blocks(kernel, kThreads, bytes);
    in_shared = resident > 0;
    // private sums pay where they are less work to clear and to publish than to fill
    if (in_shared) blocks = std::min(resident * processors, std::max<int64_t>(1, pixels * kMoments / size));
  }
  blocks = std::max<int64_t>(1, std::min<int64_t>(blocks, (pixels + kThreads - 1) / kThreads));
  Filling out{torch::stable::new_zeros(like, {words, 1}, ScalarType::Long), {}, blocks, in_shared ? bytes : 0};
  Word* memory = reinterpret_cast<Word*>(out.memory.template mutable_data_ptr<int64_t>());
  out.histogram = {memory + kRangeWords, reinterpret_cast<Range*>(memory), size, log2_ceil(std::max<int64_t>(1, pixels)),
                   in_shared};
  return out;
}

std::tuple<Tensor, Tensor, Tensor> information(const Tensor& moving_, const Tensor& fixed_, const Tensor& weight_,
                                               const Tensor& velocity_, const Tensor& matrix_,
                                               const std::vector<double>& image_spacing,
                                               const std::vector<double>& image_origin,
                                               const std::vector<double>& velocity_spacing,
                                               const std::vector<double>& velocity_origin, int64_t n_steps, int64_t bins,
                                               bool normalized) {
  check_information(moving_, fixed_, weight_, velocity_, matrix_, image_spacing, image_origin, velocity_spacing,
                    velocity_origin, n_steps, bins);
  const torch::stable::accelerator::DeviceGuard guard(moving_.get_device_index());
  const Tensor moving = torch::stable::contiguous(moving_);      // [K_m, *S_m]
  const Tensor fixed = torch::stable::contiguous(fixed_);        // [K_f, *S_f]
  const Tensor weight = torch::stable::contiguous(weight_);      // [*S_f]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  const int64_t ndim = matrix.size(0), pairs = moving.size(0) * fixed.size(0);
  const std::vector<int64_t> shape(fixed.sizes().begin() + 1, fixed.sizes().end()), offset(ndim, 0);
  const Cellwork at(bins);
  Tensor value = torch::stable::new_empty(matrix, {});                  // []
  Tensor to_matrix = torch::stable::new_empty(matrix, matrix.sizes());  // [D, D+1]
  Tensor to_velocity = empty_grad(velocity);
  const cudaStream_t stream = current_stream(moving);
  const int64_t processors = processors_of(moving), size = pairs * at.cells() * kMoments;
  const auto scratch = [&](const Tensor& like, int64_t n) {
    const int64_t sizes[1] = {n};
    return torch::stable::new_empty(like, {sizes, 1});
  };
  dispatch(moving.scalar_type(), ndim, [&](auto scalar, auto dimension) {
    using T = decltype(scalar);
    constexpr int D = decltype(dimension)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const Tensor padded = pad_velocity<T, D>(flow, velocity, velocity_spacing, stream);
    InformationTask<T, D> task{make_task<T, D>(moving, velocity, matrix, padded, shape, offset, image_spacing, image_origin,
                                               velocity_spacing, velocity_origin, n_steps),
                               fixed.const_data_ptr<T>(), weight.const_data_ptr<T>(), fixed.size(0), at};
    const int64_t pixels = task.warp.out_pixels;

    const Filling filling = make_filling<T, D>(moving, size, pixels);
    Tensor moments = scratch(matrix, size), table = scratch(moving, size), numbers = scratch(matrix, 2);
    Tensor work = scratch(matrix, InformationScratch::size(bins));
    task.warp.patches = make_patches<D>(shape.data(), filling.blocks);
    launch(largest_kernel<T>, blocks_for(pixels, processors), kThreads, 0, stream, task.weight, pixels,
           filling.histogram.weight);
    launch(moments_kernel<T, D>, filling.blocks, kThreads, filling.bytes, stream, task, filling.histogram);
    launch(unfold_kernel, blocks_for(size, processors), kThreads, 0, stream, filling.histogram,
           moments.mutable_data_ptr<double>());
    launch(solve_kernel<T>, 1, kThreads, 0, stream, at, pairs, normalized, moments.const_data_ptr<double>(),
           work.mutable_data_ptr<double>(), table.mutable_data_ptr<T>(), numbers.mutable_data_ptr<double>());

    const auto scatter = make_scatter<T, D>(gradient_kernel<T, D>, flow, moving, pixels, true);
    task.warp.patches = make_patches<D>(shape.data(), scatter.blocks);
    Tensor sums = scratch(matrix, scatter.blocks * D * (D + 1));
    scatter.run(stream, [&](Pass pass) {
      launch(gradient_kernel<T, D>, scatter.blocks, scatter.threads, scatter.bytes, stream, task, scatter.task,
             table.const_data_ptr<T>(), sums.mutable_data_ptr<double>(), pass);
    });
    launch(value_kernel<D>, 1, kThreads, 0, stream, sums.const_data_ptr<double>(), scatter.blocks,
           make_scale<D>(1, velocity_spacing), numbers.const_data_ptr<double>(), value.mutable_data_ptr<double>(),
           to_matrix.mutable_data_ptr<double>());
    to_velocity = scatter.template collect<D>(flow, velocity, velocity_spacing, stream, numbers.const_data_ptr<double>() + 1);
  });
  return {value, to_velocity, to_matrix};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m) { m.impl("information", TORCH_BOX(&regframe::information)); }
