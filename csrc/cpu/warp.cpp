// warp on the CPU: forward and backward.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/task.h"
#include "cpu/velocity.h"

namespace regframe {

Isa isa() {
  static const Isa best = [] {
    int level = 0;
#ifdef RF_X86_VARIANTS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) level = 1;
    if (level == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      level = 2;
#endif
    const char* wish = std::getenv("REGFRAME_ISA");
    if (wish != nullptr) {
      if (std::strcmp(wish, "baseline") == 0) level = 0;
      if (std::strcmp(wish, "avx2") == 0) level = std::min(level, 1);
    }
    return static_cast<Isa>(level);
  }();
  return best;
}

namespace {

constexpr int64_t kForwardRows = 64;  // dealt out at a time

Tensor warp(const Tensor& image_, const Tensor& velocity_, const Tensor& matrix_, const std::vector<int64_t>& shape,
            const std::vector<int64_t>& offset, const std::vector<double>& image_spacing,
            const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
            const std::vector<double>& velocity_origin, int64_t n_steps) {
  check_warp(image_, velocity_, matrix_, shape, offset, image_spacing, image_origin, velocity_spacing, velocity_origin,
             n_steps);
  const Tensor image = torch::stable::contiguous(image_);        // [C, *S]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  std::vector<int64_t> sizes{image.size(0)};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  Tensor out = torch::stable::new_empty(image, {sizes.data(), sizes.size()});  // [C, *shape]
  if (out.numel() == 0) return out;
  dispatch(image.scalar_type(), matrix.size(0), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const auto padded = pad_velocity<T, D>(flow_grid<T, D>(velocity, n_steps), velocity, velocity_spacing);
    const auto task = warp_task<T, D>(image, velocity, matrix, padded.get(), shape, offset, image_spacing, image_origin,
                                      velocity_spacing, velocity_origin, n_steps);
    T* to = out.mutable_data_ptr<T>();
    in_blocks(task.out_pixels / shape[D - 1], kForwardRows, [&](int64_t begin, int64_t end) {
      RF_CALL(warp_forward, T, D, task, to, begin, end);
    });
  });
  return out;
}

template <class P>
void crop_pixels(const Tensor& part, const Tensor& velocity, const Tensor& matrix, const std::optional<Tensor>& after,
                 const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& offset, const std::vector<int64_t>& image_shape,
                 const std::vector<int64_t>& image_offset, const std::vector<double>& image_spacing,
                 const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
                 const std::vector<double>& velocity_origin, int64_t n_steps, std::optional<double> background,
                 Tensor& out) {
  using T = std::conditional_t<std::is_same_v<P, double>, double, float>;
  constexpr ScalarType kReal = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  dispatch(kReal, matrix.size(0), [&](auto scalar, auto ndim) {
    using R = decltype(scalar);
    if constexpr (std::is_same_v<R, T>) {
      constexpr int D = decltype(ndim)::value;
      const auto padded = pad_velocity<T, D>(flow_grid<T, D>(velocity, n_steps), velocity, velocity_spacing);
      CropTask<T, D, P> task{};
      task.warp = warp_task<T, D, P>(part, velocity, matrix, padded.get(), shape, offset, image_spacing, image_origin,
                                     velocity_spacing, velocity_origin, n_steps);
      task.part = part.const_data_ptr<P>();
      for (int d = 0; d < D; ++d) {
        const int64_t size = part.size(1 + d);
        task.warp.grid.size[d] = static_cast<int32_t>(image_shape[d]);
        task.first[d] = image_offset[d];
        task.last[d] = image_offset[d] + (size > 1 ? size - 2 : 0);
      }
      task.part_end = task.part + part.numel();
      if (after.has_value()) {  // image index = (after [D, D+1] · flow's end - origin) / spacing
        task.to_fixed = true;
        const double* a = after->const_data_ptr<double>();
        const double* m = matrix.const_data_ptr<double>();
        for (int d = 0; d < D; ++d) {
          for (int e = 0; e <= D; ++e) {
            double sum = e == D ? a[d * (D + 1) + D] - image_origin[d] : 0.0;
            for (int k = 0; k < D; ++k) sum += a[d * (D + 1) + k] * m[k * (D + 1) + e];
            task.warp.frame.to_image[d][e] = sum / image_spacing[d];
          }
          for (int e = 0; e < D; ++e)
            task.image_per_flow[d][e] = static_cast<T>(a[d * (D + 1) + e] * velocity_spacing[e] / image_spacing[d]);
        }
      }
      task.has_background = background.has_value();
      task.background = static_cast<P>(background.value_or(0.0));
      P* to = out.mutable_data_ptr<P>();
      in_blocks(task.warp.out_pixels / shape[D - 1], kForwardRows, [&](int64_t begin, int64_t end) {
        RF_CALL_PIXELS(warp_crop, T, D, P, task, to, begin, end);
      });
    }
  });
}

Tensor warp_crop(const Tensor& part_, const Tensor& velocity_, const Tensor& matrix_, const std::optional<Tensor>& after_,
                 const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& offset, const std::vector<int64_t>& image_shape,
                 const std::vector<int64_t>& image_offset, const std::vector<double>& image_spacing,
                 const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
                 const std::vector<double>& velocity_origin, int64_t n_steps, std::optional<double> background) {
  const ScalarType type = part_.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Byte || type == ScalarType::UInt16 || type == ScalarType::Float ||
                      type == ScalarType::Double,
                  "image must be uint8, uint16, float32 or float64");
  STD_TORCH_CHECK(velocity_.scalar_type() == (type == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
                  "velocity must be float64 for a float64 image and float32 for any other");
  check_warp(part_, velocity_, velocity_, matrix_, shape, offset, image_spacing, image_origin, velocity_spacing,
             velocity_origin, n_steps);
  STD_TORCH_CHECK(image_shape.size() == shape.size() && image_offset.size() == shape.size(),
                  "image_shape and image_offset need one number per axis");
  for (size_t d = 0; d < shape.size(); ++d)
    STD_TORCH_CHECK(image_offset[d] >= 0 && image_offset[d] <= image_shape[d] - part_.size(1 + d) &&
                        image_shape[d] < (int64_t(1) << 24) && (part_.size(1 + d) > 1 || image_shape[d] == 1),
                    "image must be a part of image_shape from image_offset, of two pixels at least");
  STD_TORCH_CHECK(!after_.has_value() || (after_->dim() == 2 && after_->size(0) == matrix_.size(0) &&
                                          after_->size(1) == matrix_.size(1) &&
                                          after_->scalar_type() == ScalarType::Double && !after_->is_cuda()),
                  "after must be [D, D+1], float64");
  STD_TORCH_CHECK(part_.numel() * static_cast<int64_t>(part_.element_size()) >= 4, "image must hold four bytes at least");
  const Tensor part = torch::stable::contiguous(part_);          // [C, *part]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  std::optional<Tensor> after;  // [D, D+1]
  if (after_.has_value()) after = torch::stable::contiguous(*after_);
  std::vector<int64_t> sizes{part.size(0)};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  Tensor out = torch::stable::new_empty(part, {sizes.data(), sizes.size()});  // [C, *shape]
  if (out.numel() == 0) return out;
  auto run = [&](auto pixel) {
    crop_pixels<decltype(pixel)>(part, velocity, matrix, after, shape, offset, image_shape, image_offset, image_spacing,
                                 image_origin, velocity_spacing, velocity_origin, n_steps, background, out);
  };
  if (type == ScalarType::Byte)
    run(uint8_t{});
  else if (type == ScalarType::UInt16)
    run(uint16_t{});
  else if (type == ScalarType::Float)
    run(float{});
  else
    run(double{});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> warp_backward(
    const Tensor& grad_, const Tensor& image_, const Tensor& velocity_, const Tensor& matrix_,
    const std::vector<int64_t>& shape, const std::vector<int64_t>& offset, const std::vector<double>& image_spacing,
    const std::vector<double>& image_origin, const std::vector<double>& velocity_spacing,
    const std::vector<double>& velocity_origin, int64_t n_steps, bool image_grad, bool velocity_grad, bool matrix_grad) {
  check_warp(image_, velocity_, matrix_, shape, offset, image_spacing, image_origin, velocity_spacing, velocity_origin,
             n_steps);
  STD_TORCH_CHECK(grad_.dim() == image_.dim() && grad_.size(0) == image_.size(0) &&
                      std::equal(shape.begin(), shape.end(), grad_.sizes().begin() + 1) &&
                      grad_.scalar_type() == image_.scalar_type() && !grad_.is_cuda(),
                  "grad must be [C, *shape], of the image's dtype and device");
  const Tensor grad = torch::stable::contiguous(grad_);          // [C, *shape]
  const Tensor image = torch::stable::contiguous(image_);        // [C, *S]
  const Tensor velocity = torch::stable::contiguous(velocity_);  // [T, D, *S_v]
  const Tensor matrix = torch::stable::contiguous(matrix_);      // [D, D+1]
  Tensor to_image = image_grad ? torch::stable::new_zeros(image, image.sizes()) : empty_grad(image);
  Tensor to_velocity = empty_grad(velocity);
  Tensor to_matrix = matrix_grad ? torch::stable::new_zeros(matrix, matrix.sizes()) : empty_grad(matrix);
  if (grad.numel() == 0) {
    if (velocity_grad) to_velocity = torch::stable::new_zeros(velocity, velocity.sizes());
    return {to_image, to_velocity, to_matrix};
  }
  dispatch(image.scalar_type(), matrix.size(0), [&](auto scalar, auto ndim) {
    using T = decltype(scalar);
    constexpr int D = decltype(ndim)::value;
    const auto flow = flow_grid<T, D>(velocity, n_steps);
    const auto padded = pad_velocity<T, D>(flow, velocity, velocity_spacing);
    const auto task = warp_task<T, D>(image, velocity, matrix, padded.get(), shape, offset, image_spacing, image_origin,
                                      velocity_spacing, velocity_origin, n_steps);
    const T* from = grad.const_data_ptr<T>();
    const int64_t threads = get_num_threads();
    if (velocity_grad || matrix_grad) {
      Accumulators<T, D> sums(flow, threads);
      std::vector<double> matrices(threads * D * (D + 1));  // [threads, D, D+1]
      in_parts(task.out_pixels / shape[D - 1], threads, 1, [&](int64_t part, int64_t begin, int64_t end) {
        RF_CALL(warp_backward, T, D, task, from, sums.of(part), matrices.data() + part * D * (D + 1), begin, end);
      });
      if (velocity_grad) to_velocity = sums.collect(velocity, velocity_spacing);
      if (matrix_grad) collect_matrix<D>(matrices, threads, velocity_spacing, 1.0, to_matrix.mutable_data_ptr<double>());
    }
    if (image_grad) {
      T* to = to_image.mutable_data_ptr<T>();
      in_parts(image.size(1), threads, 1, [&](int64_t, int64_t begin, int64_t end) {
        RF_CALL(warp_backward_image, T, D, task, from, to, begin, end);
      });
    }
  });
  return {to_image, to_velocity, to_matrix};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CPU, m) {
  m.impl("warp", TORCH_BOX(&regframe::warp));
  m.impl("warp_crop", TORCH_BOX(&regframe::warp_crop));
  m.impl("_warp_backward", TORCH_BOX(&regframe::warp_backward));
}
