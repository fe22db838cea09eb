// The CPU kernels for AVX-512. See kernels.inc.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

// g++ 12 warns of its own intrinsics, which leave a register undefined on purpose
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

// Before our own headers and to the end of the file, because vectors are laid out for the target in force where a function
// is defined; after the system's headers, because their inline functions are shared with files for plainer machines.
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512")

#define RF_ISA avx512
#define RF_AVX512 1
#include "cpu/kernels.inc"

#endif
