// Runs the CUDA sources of csrc/cuda without a GPU: as C++, one fiber per CUDA thread, one block after another.
//
// It is for correctness alone: what the kernels compute, that no thread waits for one that never comes, and that no result
// depends on who comes first. Which thread and which block goes first is up to CUDA_ON_HOST_SEED.
//
// The ops are registered as torch.ops.regframe_cuda_on_host, for CPU tensors. Environment variables, read at every launch:
//   CUDA_ON_HOST_SEED        0: in order, 1: in reverse order, else shuffled (default 0); where it is even, warps take turns,
//                            and where it is odd, each goes on as far as it can
//   CUDA_ON_HOST_SHARED      bytes of shared memory that a block may ask for (default 98304)
//   CUDA_ON_HOST_PROCESSORS  multiprocessors of the device (default 2)
#pragma once

#include <math.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// static where it is a definition in a function, and yet allowed beside `extern`
#define __shared__ thread_local

// .cu files say STABLE_TORCH_LIBRARY_IMPL(regframe, CUDA, m), and library.cpp STABLE_TORCH_LIBRARY(regframe, m)
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) _STABLE_TORCH_LIBRARY_IMPL(regframe_cuda_on_host, CPU, m, C10_UID)
#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(regframe_cuda_on_host, m)

#define RF_LAUNCH(kernel, blocks, threads, shared, call) \
  ::cuda_on_host::run(reinterpret_cast<const void*>(kernel), blocks, threads, shared, [&] { call; })

// ------------------------------------------------------------------------------------------------- what runs on the "device"

struct Dimension {
  unsigned x;
};
extern Dimension threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

enum class Call { shuffle, shuffle_xor, ballot, match, sync };

// All lanes in `mask` wait for each other; the last one works out what each of them gets.
uint64_t collective(Call call, unsigned mask, uint64_t value, int argument);
void barrier();
void run(const void* kernel, int64_t blocks, int64_t threads, int64_t shared, const std::function<void()>& thread);
// more shared memory than every kernel may have is granted to those that ask for it
bool grant(const void* kernel, int64_t bytes);
int64_t setting(const char* name, int64_t otherwise);

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "too wide for a shuffle");
  uint64_t out = 0;
  std::memcpy(&out, &value, sizeof(T));
  return out;
}
template <class T>
T unpack(uint64_t bits) {
  T out;
  std::memcpy(&out, &bits, sizeof(T));
  return out;
}

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_on_host::collective(cuda_on_host::Call::sync, mask, 0, 0); }
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return cuda_on_host::unpack<T>(cuda_on_host::collective(cuda_on_host::Call::shuffle, mask, cuda_on_host::pack(value), lane));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  const auto call = cuda_on_host::Call::shuffle_xor;
  return cuda_on_host::unpack<T>(cuda_on_host::collective(call, mask, cuda_on_host::pack(value), bits));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  return static_cast<unsigned>(cuda_on_host::collective(cuda_on_host::Call::match, mask, cuda_on_host::pack(value), 0));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(cuda_on_host::collective(cuda_on_host::Call::ballot, mask, predicate != 0, 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

// fibers are only swapped where they wait, so these are atomic
template <class T>
T atomicAdd(T* to, T value) {
  static_assert(std::is_unsigned_v<T>, "additions of floats would depend on their order");
  const T before = *to;
  *to += value;
  return before;
}
inline unsigned long long atomicMax(unsigned long long* to, unsigned long long value) {
  const unsigned long long before = *to;
  if (value > before) *to = value;
  return before;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(cuda_on_host::pack(x)); }
inline float __uint_as_float(unsigned x) { return cuda_on_host::unpack<float>(x); }
inline long long __double_as_longlong(double x) { return static_cast<long long>(cuda_on_host::pack(x)); }
inline double __longlong_as_double(long long x) { return cuda_on_host::unpack<double>(static_cast<uint64_t>(x)); }
inline long long __float2ll_rn(float x) { return llrintf(x); }
inline long long __double2ll_rn(double x) { return llrint(x); }

// ----------------------------------------------------------------------------------------------- what the host asks CUDA for

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = static_cast<int>(attribute == cudaDevAttrMultiProcessorCount
                                ? cuda_on_host::setting("CUDA_ON_HOST_PROCESSORS", 2)
                                : cuda_on_host::setting("CUDA_ON_HOST_SHARED", 98304));
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return cuda_on_host::grant(reinterpret_cast<const void*>(kernel), bytes) ? cudaSuccess : cudaErrorInvalidValue;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t bytes) {
  *blocks = static_cast<int64_t>(bytes) <= cuda_on_host::setting("CUDA_ON_HOST_SHARED", 98304) ? 2 : 0;
  return cudaSuccess;
}
