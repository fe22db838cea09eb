// From the arguments of an op to what its kernels ask for; shared by both backends.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "interp.h"

namespace regframe {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// regframe/ops.py checks first and says what to do; these stop calls that come round it.
inline void check_flow(const Tensor& velocity, const Tensor& other, int64_t ndim, const std::vector<double>& spacing,
                       const std::vector<double>& origin, int64_t n_steps) {
  STD_TORCH_CHECK(ndim == 2 || ndim == 3, "wanted 2 or 3 axes, got ", ndim);
  STD_TORCH_CHECK(velocity.dim() == ndim + 2 && velocity.size(1) == ndim, "velocity must be [T, D, *S] for ", ndim, " axes");
  STD_TORCH_CHECK(velocity.numel() > 0, "velocity must hold at least one node and one time slice");
  STD_TORCH_CHECK(velocity.scalar_type() == ScalarType::Float || velocity.scalar_type() == ScalarType::Double,
                  "velocity must be float32 or float64");
  STD_TORCH_CHECK(velocity.scalar_type() == other.scalar_type(), "velocity must have the dtype of the image or the points");
  STD_TORCH_CHECK(velocity.is_cuda() == other.is_cuda() && velocity.get_device_index() == other.get_device_index(),
                  "velocity must be on the device of the image or the points");
  STD_TORCH_CHECK(static_cast<int64_t>(spacing.size()) == ndim && static_cast<int64_t>(origin.size()) == ndim,
                  "velocity_spacing and velocity_origin need one number per axis");
  STD_TORCH_CHECK(n_steps >= velocity.size(0) && n_steps % velocity.size(0) == 0 && n_steps < (int64_t(1) << 31),
                  "n_steps must be a multiple of the time slices of velocity, got ", n_steps);
  int64_t nodes = ndim == 3 ? 4 : ndim;  // numbers of a node, see cpu/kernels.h
  for (int64_t d = 0; d < ndim; ++d) {
    STD_TORCH_CHECK(velocity.size(2 + d) < (int64_t(1) << 22), "velocity has too many nodes along an axis");
    nodes *= velocity.size(2 + d) + 2 * kPad;
  }
  STD_TORCH_CHECK(nodes < std::numeric_limits<int32_t>::max(), "velocity has too many nodes");
}

// `like` has the dtype that the velocity must have
inline void check_warp(const Tensor& image, const Tensor& like, const Tensor& velocity, const Tensor& matrix,
                       const std::vector<int64_t>& shape, const std::vector<int64_t>& offset, const std::vector<double>& image_spacing,
                       const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
                       const std::vector<double>& velocity_origin, int64_t n_steps) {
  STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(1) == matrix.size(0) + 1, "matrix must be [D, D+1]");
  const int64_t ndim = matrix.size(0);
  check_flow(velocity, like, ndim, velocity_spacing, velocity_origin, n_steps);
  STD_TORCH_CHECK(matrix.scalar_type() == ScalarType::Double, "matrix must be float64");
  STD_TORCH_CHECK(matrix.is_cuda() == image.is_cuda() && matrix.get_device_index() == image.get_device_index(),
                  "matrix must be on the device of the image");
  STD_TORCH_CHECK(image.dim() == ndim + 1, "image must be [C, *S] for ", ndim, " axes");
  STD_TORCH_CHECK(static_cast<int64_t>(shape.size()) == ndim && static_cast<int64_t>(offset.size()) == ndim &&
                      static_cast<int64_t>(image_spacing.size()) == ndim && static_cast<int64_t>(image_origin.size()) == ndim,
                  "shape, offset, image_spacing and image_origin need one number per axis");
  int64_t pixels = 1;
  for (int64_t d = 0; d < ndim; ++d) {
    STD_TORCH_CHECK(shape[d] >= 0, "shape needs sizes of 0 or more");
    STD_TORCH_CHECK(image.size(1 + d) > 0 && image.size(1 + d) < (int64_t(1) << 30), "image must hold at least one pixel");
    pixels *= image.size(1 + d);
  }
  STD_TORCH_CHECK(pixels < std::numeric_limits<int32_t>::max(), "image has too many pixels per channel");
}

inline void check_warp(const Tensor& image, const Tensor& velocity, const Tensor& matrix, const std::vector<int64_t>& shape,
                       const std::vector<int64_t>& offset, const std::vector<double>& image_spacing,
                       const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
                       const std::vector<double>& velocity_origin, int64_t n_steps) {
  check_warp(image, image, velocity, matrix, shape, offset, image_spacing, image_origin, velocity_spacing, velocity_origin,
             n_steps);
}

// for ops that compare a warped image with a fixed one, on the whole grid of the latter
inline void check_pair(const Tensor& moving, const Tensor& fixed, const Tensor& weight, const Tensor& velocity,
                       const Tensor& matrix, const std::vector<double>& image_spacing, const std::vector<double>& image_origin,
                       const std::vector<double>& velocity_spacing, const std::vector<double>& velocity_origin,
                       int64_t n_steps) {
  STD_TORCH_CHECK(matrix.dim() == 2 && fixed.dim() == matrix.size(0) + 1, "fixed must be [C, *S] with the axes of matrix");
  const std::vector<int64_t> shape(fixed.sizes().begin() + 1, fixed.sizes().end()), offset(matrix.size(0), 0);
  check_warp(moving, velocity, matrix, shape, offset, image_spacing, image_origin, velocity_spacing, velocity_origin, n_steps);
  STD_TORCH_CHECK(weight.dim() == matrix.size(0), "weight must be [*S] of fixed");
  for (int64_t d = 0; d < weight.dim(); ++d) STD_TORCH_CHECK(weight.size(d) == shape[d], "weight must be [*S] of fixed");
  for (const Tensor* other : {&fixed, &weight})
    STD_TORCH_CHECK(other->scalar_type() == moving.scalar_type() && other->is_cuda() == moving.is_cuda() &&
                        other->get_device_index() == moving.get_device_index(),
                    "moving, fixed and weight must share one dtype and device");
}

template <class T, int D>
FlowGrid<T, D> flow_grid(const Tensor& velocity, int64_t n_steps) {
  FlowGrid<T, D> out{};
  int64_t stride[D], slice = D;
  for (int d = D - 1; d >= 0; --d) {
    out.padded[d] = static_cast<int32_t>(velocity.size(2 + d) + 2 * kPad);
    out.limit[d] = static_cast<T>(out.padded[d] - 2);
    stride[d] = slice;
    slice *= out.padded[d];
  }
  for (int i = 0; i < (1 << D); ++i)
    for (int d = 0; d < D; ++d)
      if (i >> (D - 1 - d) & 1) out.corner[i] += static_cast<int32_t>(stride[d]);
  out.slice = slice;
  out.n_slices = static_cast<int32_t>(velocity.size(0));
  out.n_steps = static_cast<int32_t>(n_steps);
  return out;
}

template <class T, int D>
ImageGrid<T, D> image_grid(const Tensor& image) {
  ImageGrid<T, D> out{};
  int64_t stride = 1;
  for (int d = D - 1; d >= 0; --d) {
    out.size[d] = static_cast<int32_t>(image.size(1 + d));
    out.stride[d] = static_cast<int32_t>(stride);
    stride *= out.size[d];
  }
  for (int i = 0; i < (1 << D); ++i)
    for (int d = 0; d < D; ++d)
      if ((i >> (D - 1 - d) & 1) && out.size[d] > 1) out.corner[i] += out.stride[d];
  return out;
}

inline Tensor empty_grad(const Tensor& like) {
  const int64_t none[1] = {0};
  return torch::stable::new_empty(like, {none, 1});
}

// n pieces of work, one after another; see solve_contrast
struct EachInTurn {
  template <class F>
  RF_HD void operator()(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }
};

// calls f(T{}, integral D) for the dtype and the number of axes at hand
template <class F>
auto dispatch(ScalarType dtype, int64_t ndim, const F& f) {
  if (dtype == ScalarType::Float)
    return ndim == 2 ? f(float{}, std::integral_constant<int, 2>{}) : f(float{}, std::integral_constant<int, 3>{});
  return ndim == 2 ? f(double{}, std::integral_constant<int, 2>{}) : f(double{}, std::integral_constant<int, 3>{});
}

}  // namespace regframe
