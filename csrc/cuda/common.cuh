// What both CUDA ops share: launching, the velocity's way in and out, and a thread's view of the flow's cells.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <utility>

#include "prepare.h"

namespace regframe {

constexpr int kThreads = 256;
constexpr int kMaxSteps = 64;  // steps that the adjoint can remember per thread

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// k<<<...>>> as a function, because it does not survive inside the macros of torch
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t shared, cudaStream_t stream, Arguments&&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(shared), stream>>>(
      std::forward<Arguments>(arguments)...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline int64_t blocks_for(int64_t items) {
  return std::max<int64_t>(1, std::min<int64_t>((items + kThreads - 1) / kThreads, (int64_t(1) << 31) - 1));
}

// how a kernel that scatters is launched: private sums in shared memory where the grid fits, else straight into global memory
struct ScatterPlan {
  bool shared;
  int64_t blocks, bytes;
};

template <class T, int D, class Kernel>
ScatterPlan plan_scatter(Kernel kernel, const FlowGrid<T, D>& flow, int64_t items, int device) {
  int limit = 0, processors = 1, resident = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const int64_t bytes = flow.n_slices * flow.slice * static_cast<int64_t>(sizeof(T));
  ScatterPlan plan{bytes <= limit - 4096, 0, 0};  // 4 KiB are left for the kernel's own
  if (plan.shared) {
    plan.bytes = bytes;
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, static_cast<size_t>(plan.bytes)));
  // as many blocks as fit at once, each with many pixels, so that a private grid is added to global memory only once
  plan.blocks = std::min(blocks_for(items), static_cast<int64_t>(std::max(resident, 1)) * processors);
  return plan;
}

// [T, D, *S] -> [T, *padded, D], in nodes per step
template <class T, int D>
struct Scale {
  double value[D];  // 1 / (n_steps * spacing)
};

template <class T, int D>
Scale<T, D> make_scale(int64_t n_steps, const std::vector<double>& spacing) {
  Scale<T, D> out;
  for (int d = 0; d < D; ++d) out.value[d] = 1.0 / (static_cast<double>(n_steps) * spacing[d]);
  return out;
}

// node index [D] of a padded node, or false where it is padding
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
__global__ void pad_kernel(FlowGrid<T, D> flow, Scale<T, D> scale, const T* from, T* to) {
  const int64_t nodes = flow.slice / D;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < nodes * flow.n_slices; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t t = i / nodes;
    int64_t address, inner_nodes;
    const bool inner = inner_node<T, D>(flow, i % nodes, &address, &inner_nodes);
    for (int d = 0; d < D; ++d)
      to[i * D + d] = inner ? static_cast<T>(from[(t * D + d) * inner_nodes + address] * scale.value[d]) : T(0);
  }
}

template <class T, int D>
__global__ void collect_kernel(FlowGrid<T, D> flow, Scale<T, D> scale, const T* from, T* to) {
  const int64_t nodes = flow.slice / D;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < nodes * flow.n_slices; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t t = i / nodes;
    int64_t address, inner_nodes;
    if (!inner_node<T, D>(flow, i % nodes, &address, &inner_nodes)) continue;
    for (int d = 0; d < D; ++d)
      to[(t * D + d) * inner_nodes + address] = static_cast<T>(from[i * D + d] * scale.value[d]);
  }
}

template <class T, int D>
Tensor pad_velocity(const FlowGrid<T, D>& flow, const Tensor& velocity, const std::vector<double>& spacing, cudaStream_t stream) {
  const int64_t size[1] = {flow.n_slices * flow.slice};
  Tensor out = torch::stable::new_empty(velocity, {size, 1});
  launch(pad_kernel<T, D>, blocks_for(size[0] / D), 0, stream, flow, make_scale<T, D>(flow.n_steps, spacing),
         velocity.const_data_ptr<T>(), out.mutable_data_ptr<T>());
  return out;
}

template <class T, int D>
Tensor collect(const FlowGrid<T, D>& flow, const Tensor& sums, const Tensor& velocity, const std::vector<double>& spacing,
               cudaStream_t stream) {
  Tensor out = torch::stable::new_empty(velocity, velocity.sizes());  // [T, D, *S]
  launch(collect_kernel<T, D>, blocks_for(flow.n_slices * flow.slice / D), 0, stream, flow,
         make_scale<T, D>(flow.n_steps, spacing), sums.const_data_ptr<T>(), out.mutable_data_ptr<T>());
  return out;
}

// One thread's Cells (see interp.h): reads a cell each time, and adds gradients at once.
template <class T, int D, bool kRecord>
struct ThreadCells {
  const FlowGrid<T, D>& flow;
  const T* velocity;  // [T, *padded, D]
  T* accumulator;     // the same, in shared or in global memory
  T c[D << D];
  int32_t cell[kRecord ? kMaxSteps : 1];
  T fraction[kRecord ? kMaxSteps : 1][D];

  __device__ ThreadCells(const FlowGrid<T, D>& flow_, const T* velocity_, T* accumulator_)
      : flow(flow_), velocity(velocity_), accumulator(accumulator_) {}

  __device__ __forceinline__ void read(int step, int32_t from) {
    const T* base = velocity + flow.slice_of(step) * flow.slice + from;
    for (int d = 0; d < D; ++d) {
      for (int i = 0; i < (1 << D); ++i) c[(d << D) + i] = base[flow.corner[i] + d];
      to_coefficients<D>(c + (d << D));
    }
  }
  __device__ __forceinline__ const T* enter(int step, int32_t at, const T* f) {
    if constexpr (kRecord) {
      cell[step] = at;
      for (int d = 0; d < D; ++d) fraction[step][d] = f[d];
    }
    read(step, at);
    return c;
  }
  __device__ __forceinline__ const T* recall(int step, T* f) {
    if constexpr (kRecord) {
      for (int d = 0; d < D; ++d) f[d] = fraction[step][d];
      read(step, cell[step]);
    }
    return c;
  }
  __device__ __forceinline__ void scatter(int step, const T* g, const T* f) {
    if constexpr (kRecord) {
      T* base = accumulator + flow.slice_of(step) * flow.slice + cell[step];
      for (int d = 0; d < D; ++d) {
        T m[1 << D] = {};
        add_moments<D>(m, g[d], f);
        to_corner_gradient<D>(m);
        for (int i = 0; i < (1 << D); ++i) atomicAdd(base + flow.corner[i] + d, m[i]);
      }
    }
  }
};

// the block's private sums, in dynamic shared memory
template <class T>
__device__ T* shared_sums() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

template <class T>
__device__ void clear_sums(T* sums, int64_t size) {
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) sums[i] = T(0);
  __syncthreads();
}

// one atomic addition per node that the block touched
template <class T>
__device__ void publish_sums(const T* sums, T* to, int64_t size) {
  __syncthreads();
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x)
    if (sums[i] != T(0)) atomicAdd(to + i, sums[i]);
}

}  // namespace regframe
