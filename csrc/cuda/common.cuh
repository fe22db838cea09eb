// What the CUDA ops share: launching, dealing pixels out to warps, the velocity's way in, and sums over the blocks of a launch.
//
// Nothing here waits for the device or reads from it, so every op can be captured into a CUDA graph.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <utility>

#include "prepare.h"

namespace regframe {

constexpr int kThreads = 256;  // of a block, at most
constexpr int kWarp = 32;
constexpr unsigned kEveryLane = 0xffffffffu;

// ----------------------------------------------------------------------------------------------------------------- launching

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// k<<<...>>> as a function, because it does not survive inside the macros of torch
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, int64_t shared, cudaStream_t stream,
            Arguments&&... arguments) {
#ifdef RF_LAUNCH  // tests/cuda_on_host runs the kernels without a GPU
  (void)stream;
  RF_LAUNCH(kernel, blocks, threads, shared, kernel(arguments...));
#else
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared), stream>>>(
      std::forward<Arguments>(arguments)...);
#endif
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline int64_t device_attribute(cudaDeviceAttr attribute, const Tensor& tensor) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, tensor.get_device_index()));
  return value;
}

inline int64_t processors_of(const Tensor& tensor) { return device_attribute(cudaDevAttrMultiProcessorCount, tensor); }

// What a kernel may have of dynamic shared memory: 48 KiB, less what those here have of fixed. More must be asked for.
constexpr int64_t kUnaskedBytes = 42 * 1024;

template <class Kernel>
void ask_for_shared(Kernel kernel, int64_t bytes) {
  if (bytes > kUnaskedBytes)
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

template <class Kernel>
int64_t resident_blocks(Kernel kernel, int64_t threads, int64_t bytes) {
  int out = 0;
  STD_CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&out, kernel, static_cast<int>(threads), static_cast<size_t>(bytes)));
  return out;
}

// one thread per item, up to some waves of blocks; the kernels stride over what is left
inline int64_t blocks_for(int64_t items, int64_t processors) {
  return std::max<int64_t>(1, std::min<int64_t>((items + kThreads - 1) / kThreads, 32 * processors));
}

inline int32_t log2_ceil(int64_t n) {
  int32_t bits = 0;
  while ((int64_t(1) << bits) < n) ++bits;
  return bits;
}

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int64_t thread_index() { return blockIdx.x * int64_t(blockDim.x) + threadIdx.x; }
__device__ __forceinline__ int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }

// ------------------------------------------------------------------------------------------------- pixels dealt out to warps

// A warp takes a patch of 32 neighbouring pixels, 4 x 8 or 2 x 2 x 8: rows wide enough for full memory sectors, few cells of
// the flow per warp. A block goes through the patches of a tile, up to 4096 pixels, before it strides on to its next tile.
struct Deal {
  int64_t patches;    // those of the ragged edge included
  int32_t tile_bits;  // log2 of the patches per tile; a tile has at least as many as a block has warps

  static constexpr int64_t kProbed = 1024;

  // The patch that this warp is to do in its round `round`, or -1 where there are no more. A probe looks at kProbed patches
  // from all over only.
  __device__ __forceinline__ int64_t patch(int64_t round, bool probe) const {
    const int64_t warps = blockDim.x / kWarp;
    if (probe) {
      const int64_t at = (round * gridDim.x + blockIdx.x) * warps + warp_index();
      if (at >= (patches < kProbed ? patches : kProbed)) return -1;
      return patches <= kProbed ? at : at * 2654435761 % patches;
    }
    const int64_t at = round * warps + warp_index();  // in this block's tiles, one after another
    const int64_t out = (((at >> tile_bits) * gridDim.x + blockIdx.x) << tile_bits) + (at & ((1 << tile_bits) - 1));
    return out < patches ? out : -1;
  }
};

template <int D>
struct Patches : Deal {
  int64_t shape[D];   // of the pixels
  uint32_t tiles[D];  // per axis
  int32_t bits[D];    // log2 of the patches per tile and axis

  static __device__ __forceinline__ constexpr int lane_bits(int d) { return d == D - 1 ? 3 : D == 2 ? 2 : 1; }

  // The pixel of this lane in the tile of the op. False beyond the edge: index is then the nearest pixel.
  __device__ __forceinline__ bool locate(int64_t patch, int64_t* index) const {
    uint32_t tile = static_cast<uint32_t>(patch >> tile_bits);
    int inner = static_cast<int>(patch & ((1 << tile_bits) - 1)), lane = lane_index();
    bool inside = true;
    for (int d = D - 1; d >= 0; --d) {
      const int64_t at = (static_cast<int64_t>(tile % tiles[d]) << bits[d]) + (inner & ((1 << bits[d]) - 1));
      index[d] = (at << lane_bits(d)) + (lane & ((1 << lane_bits(d)) - 1));
      tile /= tiles[d];
      inner >>= bits[d];
      lane >>= lane_bits(d);
      if (index[d] >= shape[d]) {
        inside = false;
        index[d] = shape[d] - 1;
      }
    }
    return inside;
  }

  __device__ __forceinline__ int64_t pixel(const int64_t* index) const {
    int64_t out = 0;
    for (int d = 0; d < D; ++d) out = out * shape[d] + index[d];
    return out;
  }
};

// tiles as large as leaves some to each of `blocks` blocks, so that none has much more to do than another
template <int D>
Patches<D> make_patches(const int64_t* shape, int64_t blocks) {
  Patches<D> out{};
  const int64_t patch[3] = {D == 2 ? 4 : 2, D == 2 ? 8 : 2, 8};
  const int32_t most[3] = {D == 2 ? 4 : 2, 3, 2};
  int64_t tiles = 1;
  for (int d = 0; d < D; ++d) {
    out.shape[d] = shape[d];
    out.bits[d] = most[d];
    out.tile_bits += most[d];
  }
  for (int axis = 0;; --out.bits[axis], --out.tile_bits) {
    tiles = 1;
    for (int d = 0; d < D; ++d) {
      const int64_t side = patch[d] << out.bits[d];
      out.tiles[d] = static_cast<uint32_t>((shape[d] + side - 1) / side);
      tiles *= out.tiles[d];
    }
    if (tiles >= 4 * blocks || out.tile_bits == 3) break;
    while (out.bits[axis] == 0) ++axis;
  }
  out.patches = tiles << out.tile_bits;
  return out;
}

// n pieces of work by the threads of a block; see solve_contrast
struct BlockEach {
  template <class F>
  __device__ __forceinline__ void operator()(int64_t n, const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
    __syncthreads();
  }
};

// ----------------------------------------------------------------------------------------------------- sums in a fixed order

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step >>= 1) value += __shfl_xor_sync(kEveryLane, value, step);
  return value;
}

// sums of the block's threads, to the block's row of rows [blocks, N]
template <int N>
__device__ __forceinline__ void write_row(const double (&values)[N], double* rows) {
  __shared__ double parts[kThreads / kWarp][N];
  for (int i = 0; i < N; ++i) {
    const double sum = warp_sum(values[i]);
    if (lane_index() == 0) parts[warp_index()][i] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < N; i += blockDim.x) {
    double sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += parts[warp][i];
    rows[int64_t(blockIdx.x) * N + i] = sum;
  }
}

// the sum of a column of rows [n, columns], by one warp; its order depends on n alone
__device__ __forceinline__ double column_sum(const double* rows, int64_t n, int64_t columns, int64_t column) {
  double sum = 0;
  for (int64_t row = lane_index(); row < n; row += kWarp) sum += rows[row * columns + column];
  return warp_sum(sum);
}

// ------------------------------------------------------------------------------------------------------ the velocity, padded

template <int D>
struct Scale {
  double value[D];
};

// from lengths per unit time to nodes per step
template <int D>
Scale<D> make_scale(int64_t n_steps, const std::vector<double>& spacing) {
  Scale<D> out;
  for (int d = 0; d < D; ++d) out.value[d] = 1.0 / (static_cast<double>(n_steps) * spacing[d]);
  return out;
}

// false where a padded node is padding; else its address in a slice and component of [T, D, *S], which has `nodes` nodes
template <class T, int D>
__device__ bool inner_node(const FlowGrid<T, D>& flow, int64_t node, int64_t* address, int64_t* nodes) {
  int64_t index[D];
  bool inner = true;
  for (int d = D - 1; d >= 0; --d) {
    index[d] = node % flow.padded[d] - kPad;
    node /= flow.padded[d];
    inner = inner && index[d] >= 0 && index[d] < flow.padded[d] - 2 * kPad;
  }
  *address = 0;
  *nodes = 1;
  for (int d = 0; d < D; ++d) {
    const int64_t n = flow.padded[d] - 2 * kPad;
    *address = *address * n + index[d];
    *nodes *= n;
  }
  return inner;
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) pad_kernel(FlowGrid<T, D> flow, Scale<D> scale, const T* from, T* to) {
  const int64_t nodes = flow.slice / D;
  for (int64_t i = thread_index(); i < nodes * flow.n_slices; i += thread_count()) {
    const int64_t t = i / nodes;
    int64_t address, inner_nodes;
    const bool inner = inner_node<T, D>(flow, i % nodes, &address, &inner_nodes);
    for (int d = 0; d < D; ++d)
      to[i * D + d] = inner ? static_cast<T>(from[(t * D + d) * inner_nodes + address] * scale.value[d]) : T(0);
  }
}

// [T, D, *S] -> [T, *padded, D], in nodes per step
template <class T, int D>
Tensor pad_velocity(const FlowGrid<T, D>& flow, const Tensor& velocity, const std::vector<double>& spacing,
                    cudaStream_t stream) {
  const int64_t size[1] = {flow.n_slices * flow.slice};
  Tensor out = torch::stable::new_empty(velocity, {size, 1});
  launch(pad_kernel<T, D>, blocks_for(size[0] / D, processors_of(velocity)), kThreads, 0, stream, flow,
         make_scale<D>(flow.n_steps, spacing), velocity.const_data_ptr<T>(), out.mutable_data_ptr<T>());
  return out;
}

// the 2^D corners of a cell, both or all three components of each; base: [T, *padded, D] at the cell -> c: [D][2^D]
template <class T, int D>
__device__ __forceinline__ void read_cell(const FlowGrid<T, D>& flow, const T* base, T* c) {
  struct alignas(D == 2 ? 2 * sizeof(T) : sizeof(T)) Node {  // two components in one load
    T value[D];
  };
  for (int i = 0; i < (1 << D); ++i) {
    const Node node = *reinterpret_cast<const Node*>(base + flow.corner[i]);
    for (int d = 0; d < D; ++d) c[(d << D) + i] = node.value[d];
  }
  for (int d = 0; d < D; ++d) to_coefficients<D>(c + (d << D));
}

// One thread's Cells (see interp.h) where nothing is differentiated: reads a cell each time.
template <class T, int D>
struct ReadingCells {
  const FlowGrid<T, D>& flow;
  const T* velocity;  // [T, *padded, D]
  int steps_per_slice;
  T c[D << D];

  __device__ __forceinline__ ReadingCells(const FlowGrid<T, D>& flow_, const T* velocity_)
      : flow(flow_), velocity(velocity_), steps_per_slice(flow_.n_steps / flow_.n_slices) {}

  __device__ __forceinline__ const T* enter(int step, int32_t at, const T*) {
    read_cell<T, D>(flow, velocity + step / steps_per_slice * flow.slice + at, c);
    return c;
  }
};

}  // namespace regframe
