// What correlation.cpp asks of its kernels, one set of them per instruction set, all compiled from correlation.inc. They go through
// whole planes begin ... end-1, or down all planes with strips of columns.
#pragma once

#include "boxes.h"
#include "cpu/kernels.h"

namespace regframe {

constexpr int64_t kStrip = 128;  // columns that correlation_factors goes down with: the sums of their boxes stay in cache

#define RF_DECLARE_CORRELATION(isa)                                                                     \
  namespace isa {                                                                                       \
  template <class T>                                                                                    \
  void correlation_moments(const CorrelationTask<T>& task, double* masses, int64_t begin, int64_t end); \
  template <class T>                                                                                    \
  void correlation_factors(const CorrelationTask<T>& task, double* unlike, int64_t begin, int64_t end); \
  template <class T>                                                                                    \
  void correlation_gradient(const CorrelationTask<T>& task, double factor, int64_t begin, int64_t end); \
  }

RF_DECLARE_CORRELATION(baseline)
#ifdef RF_X86_VARIANTS
RF_DECLARE_CORRELATION(avx2)
RF_DECLARE_CORRELATION(avx512)
#define RF_CALL_CORRELATION(name, T, ...)                                         \
  (::regframe::isa() == ::regframe::Isa::avx512 ? avx512::name<T>(__VA_ARGS__) \
   : ::regframe::isa() == ::regframe::Isa::avx2 ? avx2::name<T>(__VA_ARGS__)   \
                                                : baseline::name<T>(__VA_ARGS__))
#else
#define RF_CALL_CORRELATION(name, T, ...) baseline::name<T>(__VA_ARGS__)
#endif

}  // namespace regframe
