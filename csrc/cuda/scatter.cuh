// The gradient of the velocity on CUDA: many threads add to few nodes, and the sums must not depend on who came first.
//
// Additions of floats to one address come in any order, and so do their roundings. So the terms are made integers first, and
// integer sums are exact: a term t becomes round(t 2^k), in 64 bits, where k is as large as the number and the size of the
// terms allow, both rounded up to powers of two:
//     terms * largest * 2^k <= 2^61          terms: pixels times the steps of a slice, the most that a node can get.
// A term is then off by at most terms * largest * 2^-60: with a million terms 2^-40 of the largest one, which is finer than a
// float by 2^16. (The terms of a warp are added as floats before that, in the order of its lanes.)
//
// How large the largest is, is known only after the paths have been followed. So there are three passes, all launched at once:
// `probe` follows the paths of a few pixels and notes the largest term; `first` does the work, allowing for 2^kMargin times
// that, and notes the largest of all; `again` repeats the work with what was noted if that is more than `first` allowed for,
// and else returns at once. What was allowed for in vain, up to kMargin bits, is missing in the precision stated above. Where a
// term is not finite, no sum is.
#pragma once

#include "cuda/common.cuh"

namespace regframe {

using Word = unsigned long long;  // a sum, two's complement; the type that atomicAdd wants

enum class Pass : int { probe, first, again };

// magnitudes as integers of the same order, NaN last
__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ __forceinline__ Word magnitude(double x) { return __double_as_longlong(x) & 0x7fffffffffffffffull; }
__device__ __forceinline__ Word in_double(unsigned bits) { return magnitude(static_cast<double>(__uint_as_float(bits))); }
__device__ __forceinline__ Word in_double(Word bits) { return bits; }

// the largest term, as the magnitude of a double: of those that the probe saw, and of all
struct Range {
  Word probed, seen;
};
constexpr int kRanges = 2;  // of the velocity's terms, and of the image's
constexpr int kRangeWords = kRanges * sizeof(Range) / sizeof(Word);

template <class T>
struct FixedPoint {
  // doubles are asked for where precision matters more than a second pass
  static constexpr int kMargin = sizeof(T) == 4 ? 8 : 2;
  static constexpr int kLimit = sizeof(T) == 4 ? 126 : 1020;  // 2^k and 2^-k are numbers of type T

  static __device__ __forceinline__ int exponent(Word magnitude) { return static_cast<int>(magnitude >> 52); }
  static __device__ __forceinline__ bool finite(Word magnitude) { return exponent(magnitude) < 0x7ff; }

  static __device__ __forceinline__ bool too_low(const Range& range) {
    return finite(range.seen) && exponent(range.seen) > exponent(range.probed) + kMargin;
  }
  // whether the pass `again` is needed, and its numbers hold
  static __device__ __forceinline__ bool repeats(const Range* ranges) { return too_low(ranges[0]) || too_low(ranges[1]); }

  // k
  static __device__ __forceinline__ int shift(const Range& range, bool again, int log2_terms) {
    const int above = (again ? exponent(range.seen) : exponent(range.probed) + kMargin) - 1022;  // |term| < 2^above
    const int k = 61 - log2_terms - above;
    return k < -kLimit ? -kLimit : k > kLimit ? kLimit : k;
  }
  // what a sum is to be multiplied by
  static __device__ __forceinline__ double unit(const Range* ranges, int which, int log2_terms) {
    if (!finite(ranges[which].seen)) return __longlong_as_double(0x7ff8000000000000ll);  // NaN
    return ldexp(1.0, -shift(ranges[which], repeats(ranges), log2_terms));
  }
};

__device__ __forceinline__ Word to_fixed(float x, float scale) { return static_cast<Word>(__float2ll_rn(x * scale)); }
__device__ __forceinline__ Word to_fixed(double x, double scale) { return static_cast<Word>(__double2ll_rn(x * scale)); }

// notes the largest of the warp's
template <class Bits>
__device__ __forceinline__ void note(Bits largest, Word* to) {
  for (int step = kWarp / 2; step > 0; step >>= 1) {
    const Bits other = __shfl_xor_sync(kEveryLane, largest, step);
    largest = other > largest ? other : largest;
  }
  // most warps find a larger one there already
  if (lane_index() == 0 && in_double(largest) > *static_cast<volatile Word*>(to)) atomicMax(to, in_double(largest));
}

// notes the largest term of this pass
template <class Bits>
__device__ __forceinline__ void note(Bits largest, Pass pass, Range* range) {
  if (pass != Pass::again) note(largest, pass == Pass::probe ? &range->probed : &range->seen);
}

// A block's private sums lie in shared memory as two words each, because only additions of 32 bits are native there. They are
// exact all the same: whoever makes the low word overflow takes the carry up.
__device__ __forceinline__ unsigned* private_words() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<unsigned*>(memory);
}
__device__ __forceinline__ void add_private(int64_t at, Word x) {
  unsigned* to = private_words() + 2 * at;
  const unsigned low = static_cast<unsigned>(x), before = atomicAdd(to, low);
  const unsigned high = static_cast<unsigned>(x >> 32) + (before + low < before ? 1u : 0u);
  if (high != 0) atomicAdd(to + 1, high);
}

constexpr int kLocalSteps = 16;  // steps that a thread remembers itself; further ones go to the trail

template <class T>
struct ScatterTask {
  Word* sums;            // [T, *padded, D]; null: the gradient of the velocity is not asked for
  Range* ranges;         // [kRanges]
  int32_t* trail_cells;  // [n_steps - kLocalSteps, threads]
  T* trail_fractions;    // [n_steps - kLocalSteps, D, threads]
  int64_t size;          // of sums
  int32_t log2_terms;
  bool in_shared;        // whether a block sums up privately first
};

// What a thread remembers of its path. An object of its own, because it lies in slow memory, being addressed by step, and would
// take the rest of AddingCells with it.
template <class T, int D>
struct Steps {
  int32_t cell[kLocalSteps];
  T fraction[kLocalSteps][D];
};

// One thread's Cells (see interp.h) for adjoints. Every lane of a warp must take part in every step; one that has nothing to
// add follows a neighbour's path with a gradient of zero.
template <class T, int D>
struct AddingCells {
  static constexpr int kCorners = 1 << D, kFew = 4;

  const FlowGrid<T, D>& flow;
  const ScatterTask<T>& task;
  Steps<T, D>& steps;
  const T* velocity;  // [T, *padded, D]
  Pass pass;
  int steps_per_slice;
  T scale;
  decltype(magnitude(T())) largest;
  int32_t lane_corner;  // of the sum that this lane holds after reduce()
  int32_t at;           // the cell entered last
  T c[D << D];

  __device__ __forceinline__ AddingCells(const FlowGrid<T, D>& flow_, const T* velocity_, const ScatterTask<T>& task_,
                                         Steps<T, D>& steps_, Pass pass_)
      : flow(flow_),
        task(task_),
        steps(steps_),
        velocity(velocity_),
        pass(pass_),
        steps_per_slice(flow_.n_steps / flow_.n_slices),
        scale(0),
        largest(0),
        lane_corner(0),
        at(0) {
    if (task.sums == nullptr) return;
    scale = ldexp(T(1), FixedPoint<T>::shift(task.ranges[0], pass == Pass::again, task.log2_terms));
    const int sum = lane_index() / 4;
    for (int i = 0; i < kCorners; ++i)  // no index that is known at run time only: the grid would be copied to slow memory
      if (i == sum % kCorners) lane_corner = flow.corner[i] + (D == 2 ? sum / kCorners : lane_index() % 4);
    if (pass == Pass::probe || !task.in_shared) return;
    for (int64_t i = threadIdx.x; i < 2 * task.size; i += blockDim.x) private_words()[i] = 0;
    __syncthreads();
  }

  __device__ __forceinline__ void read(int step) {
    read_cell<T, D>(flow, velocity + step / steps_per_slice * flow.slice + at, c);
  }

  __device__ __forceinline__ const T* enter(int step, int32_t at_, const T* f) {
    at = at_;
    if (step < kLocalSteps) {
      steps.cell[step] = at;
      for (int d = 0; d < D; ++d) steps.fraction[step][d] = f[d];
    } else {
      const int64_t row = step - kLocalSteps;
      task.trail_cells[row * thread_count() + thread_index()] = at;
      for (int d = 0; d < D; ++d) task.trail_fractions[(row * D + d) * thread_count() + thread_index()] = f[d];
    }
    read(step);
    return c;
  }

  __device__ __forceinline__ const T* recall(int step, T* f) {
    if (step < kLocalSteps) {
      at = steps.cell[step];
      for (int d = 0; d < D; ++d) f[d] = steps.fraction[step][d];
    } else {
      const int64_t row = step - kLocalSteps;
      at = task.trail_cells[row * thread_count() + thread_index()];
      for (int d = 0; d < D; ++d) f[d] = task.trail_fractions[(row * D + d) * thread_count() + thread_index()];
    }
    read(step);
    return c;
  }

  // Lanes are neighbours, so most share their cell: each crowd of them is summed up by shuffles, and added by one atomic per
  // node. Lanes with few or no companions add on their own, all at once.
  __device__ __forceinline__ void scatter(int step, const T* g, const T* f) {
    for (int d = 0; d < D; ++d) largest = magnitude(g[d]) > largest ? magnitude(g[d]) : largest;
    if (pass == Pass::probe) return;
    T corner[D << D] = {};
    for (int d = 0; d < D; ++d) {
      add_moments<D>(corner + (d << D), g[d], f);
      to_corner_gradient<D>(corner + (d << D));
    }
    const int64_t slice = step / steps_per_slice * flow.slice;
    const unsigned peers = __match_any_sync(kEveryLane, at);
    const bool crowded = __popc(peers) >= kFew;
    for (unsigned left = __ballot_sync(kEveryLane, crowded); left != 0;) {
      const int leader = __ffs(left) - 1;
      const unsigned crowd = __shfl_sync(kEveryLane, peers, leader);
      const int32_t where = __shfl_sync(kEveryLane, at, leader);
      left &= ~crowd;
      const T sum = reduce(corner, (crowd >> lane_index() & 1) != 0);
      if (lane_index() % 4 < (D == 2 ? 1 : D)) add(slice + where + lane_corner, sum);
    }
    if (crowded) return;
    for (int d = 0; d < D; ++d)
      for (int i = 0; i < kCorners; ++i) add(slice + at + flow.corner[i] + d, corner[(d << D) + i]);
  }

  // The sums over the warp's lanes that `take` part: in lane 4 i + j that of corner[i] for D = 2, of corner[8 j + i] for D = 3.
  // Each exchange halves the numbers that a lane still has to care for.
  __device__ __forceinline__ T reduce(const T* corner, bool take) const {
    T out = 0;
#pragma unroll
    for (int batch = 0; batch < (D == 2 ? 1 : D); ++batch) {
      T v[8];
      for (int i = 0; i < 8; ++i) v[i] = take ? corner[8 * batch + i] : T(0);
#pragma unroll
      for (int half = 4; half > 0; half >>= 1) {
        const bool high = (lane_index() & (4 * half)) != 0;
        for (int i = 0; i < half; ++i) {
          const T mine = high ? v[i + half] : v[i], yours = high ? v[i] : v[i + half];
          v[i] = mine + __shfl_xor_sync(kEveryLane, yours, 4 * half);
        }
      }
      v[0] += __shfl_xor_sync(kEveryLane, v[0], 2);
      v[0] += __shfl_xor_sync(kEveryLane, v[0], 1);
      if (lane_index() % 4 == batch) out = v[0];
    }
    return out;
  }

  __device__ __forceinline__ void add(int64_t where, T x) const {
    const Word fixed = to_fixed(x, scale);
    if (fixed == 0) return;
    if (task.in_shared)
      add_private(where, fixed);
    else
      atomicAdd(task.sums + where, fixed);
  }

  // by every thread, when it has no more pixels: one addition per node that the block touched
  __device__ __forceinline__ void finish() {
    if (task.sums == nullptr) return;
    note(largest, pass, &task.ranges[0]);
    if (pass == Pass::probe || !task.in_shared) return;
    __syncthreads();
    const unsigned* words = private_words();
    for (int64_t i = threadIdx.x; i < task.size; i += blockDim.x) {
      const Word sum = static_cast<Word>(words[2 * i + 1]) << 32 | words[2 * i];
      if (sum != 0) atomicAdd(task.sums + i, sum);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) clear_kernel(const Range* ranges, Word* sums, int64_t size) {
  if (!FixedPoint<T>::repeats(ranges)) return;
  for (int64_t i = thread_index(); i < size; i += thread_count()) sums[i] = 0;
}

// [T, *padded, D] -> [T, D, *S]; factor: null for 1
template <class T, int D>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(FlowGrid<T, D> flow, Scale<D> scale, ScatterTask<T> task, const double* factor, T* to) {
  const int64_t nodes = flow.slice / D;
  const double unit = FixedPoint<T>::unit(task.ranges, 0, task.log2_terms) * (factor == nullptr ? 1.0 : *factor);
  for (int64_t i = thread_index(); i < nodes * flow.n_slices; i += thread_count()) {
    const int64_t t = i / nodes;
    int64_t address, inner_nodes;
    if (!inner_node<T, D>(flow, i % nodes, &address, &inner_nodes)) continue;
    for (int d = 0; d < D; ++d)
      to[(t * D + d) * inner_nodes + address] =
          static_cast<T>(static_cast<double>(static_cast<long long>(task.sums[i * D + d])) * (unit * scale.value[d]));
  }
}

namespace {  // not to be seen outside, as its tensors are not

// The memory of a scatter, and how its kernel is launched.
template <class T>
struct Scatter {
  Tensor memory;                      // [kRangeWords + velocity + image], int64
  Tensor trail_cells, trail_fractions;
  ScatterTask<T> task;
  Word* image_sums;
  int64_t blocks, threads, bytes, image_size;

  // launch_pass(pass) for all three
  template <class F>
  void run(cudaStream_t stream, const F& launch_pass) const {
    launch_pass(Pass::probe);
    launch_pass(Pass::first);
    const int64_t size = task.size + image_size;
    launch(clear_kernel<T>, blocks_for(size, processors_of(memory)), kThreads, 0, stream, task.ranges,
           reinterpret_cast<Word*>(task.ranges) + kRangeWords, size);
    launch_pass(Pass::again);
  }

  template <int D>
  Tensor collect(const FlowGrid<T, D>& flow, const Tensor& velocity, const std::vector<double>& spacing, cudaStream_t stream,
                 const double* factor = nullptr) const {
    Tensor out = torch::stable::new_empty(velocity, velocity.sizes());  // [T, D, *S]
    launch(collect_kernel<T, D>, blocks_for(flow.n_slices * flow.slice / D, processors_of(memory)), kThreads, 0, stream, flow,
           make_scale<D>(flow.n_steps, spacing), task, factor, out.mutable_data_ptr<T>());
    return out;
  }
};

// For a kernel that follows `items` paths by AddingCells. `own_bytes` of dynamic shared memory are the kernel's own; with any,
// there are no private sums. `image_size`: words for a second gradient, that of the image.
template <class T, int D, class Kernel>
Scatter<T> make_scatter(Kernel kernel, const FlowGrid<T, D>& flow, const Tensor& like, int64_t items, bool wants_flow,
                        int64_t image_size = 0, int64_t threads = kThreads, int64_t own_bytes = 0) {
  const int64_t processors = processors_of(like), size = wants_flow ? flow.n_slices * flow.slice : 0;
  ask_for_shared(kernel, own_bytes);
  const int64_t resident = std::max<int64_t>(1, resident_blocks(kernel, threads, own_bytes));
  int64_t blocks = resident * processors, bytes = size * static_cast<int64_t>(sizeof(Word));
  // Private sums pay where they cost no block its place, and are less work to clear and to publish than to fill.
  bool in_shared = wants_flow && own_bytes == 0 && items * flow.n_steps * D >= size * blocks &&
                   bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, like) - 4096;  // the kernel has some too
  if (in_shared) {
    ask_for_shared(kernel, bytes);
    const int64_t still = resident_blocks(kernel, threads, bytes);
    in_shared = still >= std::min<int64_t>(resident, 2);
    if (in_shared) blocks = still * processors;
  }
  blocks = std::max<int64_t>(1, std::min<int64_t>(blocks, (items + threads - 1) / threads));
  const int64_t words[1] = {kRangeWords + size + image_size};
  const int64_t trail[1] = {wants_flow ? std::max<int64_t>(0, flow.n_steps - kLocalSteps) * blocks * threads : 0};
  const int64_t fractions[1] = {D * trail[0]};
  Scatter<T> out{torch::stable::new_zeros(like, {words, 1}, ScalarType::Long),
                 torch::stable::new_empty(like, {trail, 1}, ScalarType::Int), torch::stable::new_empty(like, {fractions, 1}),
                 {}, nullptr, blocks, threads, in_shared ? bytes : own_bytes, image_size};
  Word* memory = reinterpret_cast<Word*>(out.memory.template mutable_data_ptr<int64_t>());
  out.task.ranges = reinterpret_cast<Range*>(memory);
  out.task.sums = wants_flow ? memory + kRangeWords : nullptr;
  out.task.trail_cells = out.trail_cells.template mutable_data_ptr<int32_t>();
  out.task.trail_fractions = out.trail_fractions.template mutable_data_ptr<T>();
  out.task.size = size;
  out.task.log2_terms = log2_ceil(items * (flow.n_steps / flow.n_slices));
  out.task.in_shared = in_shared;
  out.image_sums = image_size > 0 ? memory + kRangeWords + size : nullptr;
  return out;
}

}  // namespace
}  // namespace regframe
