// The kernels of correlation.cpp for any machine: SSE2 on x86-64, NEON on aarch64. See correlation.inc.
#include <cmath>
#include <cstddef>
#include <cstdint>

#define RF_ISA baseline
#include "cpu/correlation.inc"
