// The CPU kernels for AVX2 with FMA. See kernels.inc.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

// Before our own headers and to the end of the file, because vectors are laid out for the target in force where a function
// is defined; after the system's headers, because their inline functions are shared with files for plainer machines.
#pragma GCC target("avx2,fma")

#define RF_ISA avx2
#define RF_AVX2 1
#include "cpu/kernels.inc"

#endif
