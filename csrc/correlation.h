// From the arguments of correlation to a CorrelationTask; shared by both backends.
#pragma once

#include "boxes.h"
#include "prepare.h"

namespace regframe {

inline void check_correlation(const Tensor& warped, const Tensor& fixed, const Tensor& weight, int64_t radius, double floor) {
  STD_TORCH_CHECK(warped.dim() == 3 || warped.dim() == 4, "warped must be [C, *S] of 2 or 3 axes");
  STD_TORCH_CHECK(fixed.dim() == warped.dim() && weight.dim() == warped.dim() - 1, "fixed must be [C, *S] and weight [*S]");
  for (int64_t d = 0; d < warped.dim(); ++d)
    STD_TORCH_CHECK(fixed.size(d) == warped.size(d) && (d == 0 || weight.size(d - 1) == warped.size(d)),
                    "warped, fixed and weight must share their shape");
  STD_TORCH_CHECK(warped.scalar_type() == ScalarType::Float || warped.scalar_type() == ScalarType::Double,
                  "warped must be float32 or float64");
  for (const Tensor* other : {&fixed, &weight})
    STD_TORCH_CHECK(other->scalar_type() == warped.scalar_type() && other->is_cuda() == warped.is_cuda() &&
                        other->get_device_index() == warped.get_device_index(),
                    "warped, fixed and weight must share one dtype and device");
  STD_TORCH_CHECK(radius >= 1 && floor > 0, "radius must be 1 or more, and floor above 0");
}

// all but the pixels, of images like warped [C, *S]
template <class T>
CorrelationTask<T> correlation_task(const Tensor& warped, int64_t radius, double floor, bool is_signed) {
  constexpr double kLeast = 1e-6;  // of the pixels of a box: one of hidden pixels alone gets a finite mean
  CorrelationTask<T> out{};
  const int64_t ndim = warped.dim() - 1;
  double area = 1;
  for (int d = 0; d < 3; ++d) {
    const int64_t n = d == 0 ? warped.size(1) : d == 2 ? warped.size(ndim) : ndim == 3 ? warped.size(2) : 1;
    out.size[d] = n;
    out.reach[d] = radius < n - 1 ? radius : n - 1;
    area *= static_cast<double>(2 * out.reach[d] + 1);
  }
  out.rules = {kLeast * area, floor, is_signed};
  return out;
}

}  // namespace regframe
