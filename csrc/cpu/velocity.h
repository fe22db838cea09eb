// The velocity and its gradient on their way into and out of the CPU kernels, and how work is split among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#ifdef REGFRAME_JOINED_THREADS
#include <thread>
#include <vector>
#endif

#include "cpu/kernels.h"
#include "prepare.h"

namespace regframe {

using torch::stable::get_num_threads;
#ifdef REGFRAME_JOINED_THREADS
// ThreadSanitizer sees these threads begin and end, which it does not of OpenMP's: a build for it (`make test-sanitized`) uses them
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F &work) {
  const int64_t most = std::max<int64_t>(1, (end - begin + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1));
  const int64_t n = std::min<int64_t>(get_num_threads(), most);
  std::vector<std::thread> threads;
  for (int64_t k = 0; k < n; ++k)
    threads.emplace_back([&, k] { work(begin + (end - begin) * k / n, begin + (end - begin) * (k + 1) / n); });
  for (std::thread &thread : threads) thread.join();
}
#else
using torch::stable::parallel_for;
#endif

// Planes per thread for work that touches `elements` per plane: a coarse grid is done before a second thread has woken up.
inline int64_t plane_grain(int64_t elements) {
  constexpr int64_t kWorthAThread = 65536;
  return std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, elements));
}

// [T, D, *S] -> [T, *padded, kNode], in nodes per step
template <class T, int D>
std::unique_ptr<T[]> pad_velocity(const FlowGrid<T, D>& flow, const Tensor& velocity, const std::vector<double>& spacing) {
  const int64_t slice = flow.slice / D * kNode<D>;
  std::unique_ptr<T[]> out(new T[flow.n_slices * slice]());
  const T* from = velocity.const_data_ptr<T>();
  const int64_t first = D == 3 ? velocity.size(2) : 1, height = velocity.size(D), width = velocity.size(D + 1);
  double scale[D];  // length per unit time -> nodes per step
  for (int d = 0; d < D; ++d) scale[d] = 1.0 / (flow.n_steps * spacing[d]);
  parallel_for(0, flow.n_slices * first, plane_grain(D * height * width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / first, z = i % first;
      for (int d = 0; d < D; ++d)
        for (int64_t y = 0; y < height; ++y) {
          const T* row = from + (((t * D + d) * first + z) * height + y) * width;
          const int64_t plane = D == 3 ? (z + kPad) * flow.padded[1] : 0;
          T* to = out.get() + t * slice + ((plane + y + kPad) * flow.padded[D - 1] + kPad) * kNode<D> + d;
          for (int64_t x = 0; x < width; ++x) to[x * kNode<D>] = static_cast<T>(row[x] * scale[d]);
        }
    }
  });
  return out;
}

// Private sums of each thread; always in double, so that a node under a million pixels loses nothing.
template <class T, int D>
class Accumulators {
 public:
  Accumulators(const FlowGrid<T, D>& flow, int64_t threads) : flow_(flow), threads_(threads) {
    slice_ = flow.slice / D * kNode<D>;
    size_ = (flow.n_slices * slice_ + kLine - 1) / kLine * kLine;
    memory_.reset(new double[threads * size_ + kLine]());
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    sums_ = memory_.get() + (kLine - address / sizeof(double) % kLine) % kLine;
  }
  double* of(int64_t thread) { return sums_ + thread * size_; }  // [T, *padded, kNode]

  // added in the order of the threads: the same bytes for the same number of threads
  Tensor collect(const Tensor& velocity, const std::vector<double>& spacing, double factor = 1.0) const {
    Tensor out = torch::stable::new_empty(velocity, velocity.sizes());  // [T, D, *S]
    T* to = out.mutable_data_ptr<T>();
    const int64_t first = D == 3 ? velocity.size(2) : 1, height = velocity.size(D), width = velocity.size(D + 1);
    parallel_for(0, flow_.n_slices * first, plane_grain(D * height * width * threads_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / first, z = i % first;
        const int64_t plane = D == 3 ? (z + kPad) * flow_.padded[1] : 0;
        for (int d = 0; d < D; ++d) {
          const double scale = factor / (flow_.n_steps * spacing[d]);
          for (int64_t y = 0; y < height; ++y) {
            const double* from = sums_ + t * slice_ + ((plane + y + kPad) * flow_.padded[D - 1] + kPad) * kNode<D> + d;
            T* row = to + (((t * D + d) * first + z) * height + y) * width;
            for (int64_t x = 0; x < width; ++x) {
              double sum = 0;
              for (int64_t thread = 0; thread < threads_; ++thread) sum += from[thread * size_ + x * kNode<D>];
              row[x] = static_cast<T>(sum * scale);
            }
          }
        }
      }
    });
    return out;
  }

 private:
  static constexpr int64_t kLine = 8;  // doubles in a line of the cache: no node lies in two of them

  const FlowGrid<T, D>& flow_;
  int64_t threads_, slice_, size_;
  std::unique_ptr<double[]> memory_;
  double* sums_;
};

// the matrix gradients of all threads, [threads, D, D+1] in nodes, added to `to` [D, D+1] in their order
template <int D>
void collect_matrix(const std::vector<double>& parts, int64_t threads, const std::vector<double>& spacing, double factor,
                    double* to) {
  for (int64_t part = 0; part < threads; ++part)
    for (int d = 0; d < D; ++d)
      for (int e = 0; e <= D; ++e)
        to[d * (D + 1) + e] += parts[(part * D + d) * (D + 1) + e] * (factor / spacing[d]);
}

// splits 0 ... n-1 into one fixed part per thread: `f(part, begin, end)`; parts are multiples of `grain`
template <class F>
void in_parts(int64_t n, int64_t parts, int64_t grain, const F& f) {
  const int64_t units = (n + grain - 1) / grain;
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = units * part / parts * grain, end = units * (part + 1) / parts * grain;
      if (begin < n) f(part, begin, end < n ? end : n);
    }
  });
}

// Deals 0 ... n-1 out in blocks as threads come free: `f(begin, end)`. For results that do not depend on who makes them.
template <class F>
void in_blocks(int64_t n, int64_t block, const F& f) {
  const int64_t blocks = (n + block - 1) / block;
  std::atomic<int64_t> next{0};
  parallel_for(0, std::min<int64_t>(get_num_threads(), blocks), 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker)
      for (int64_t i; (i = next.fetch_add(1)) < blocks;) f(i * block, std::min(n, (i + 1) * block));
  });
}

}  // namespace regframe
