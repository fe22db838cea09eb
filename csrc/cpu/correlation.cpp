// correlation on the CPU: sums along rows and columns, then down the planes, where they become the factors of the gradient, then
// those along rows and columns. Every number is made by one thread in one order, so that none depends on how many there are.
#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "correlation.h"
#include "cpu/correlation_kernels.h"
#include "cpu/velocity.h"

namespace regframe {
namespace {

constexpr int64_t kRows = 32;  // dealt out at a time

// the sum of weight times one less what is compared; and the gradient of the value in `task.gradient`, where it is not null
template <class T>
double correlate(const CorrelationTask<T>& task, int64_t channels, double* per_mass) {
  const int64_t planes = task.size[0], few = std::max<int64_t>(1, kRows / task.size[1]);
  const int64_t strips = (task.plane() + kStrip - 1) / kStrip;
  std::vector<double> masses(planes), unlike(strips);
  in_blocks(planes, few, [&](int64_t begin, int64_t end) {
    RF_CALL_CORRELATION(correlation_moments, T, task, masses.data(), begin, end);
  });
  double mass = 0, sum = 0;
  for (double one : masses) mass += one;
  *per_mass = per_weight(mass, channels);
  in_blocks(strips, 1, [&](int64_t begin, int64_t end) {
    RF_CALL_CORRELATION(correlation_factors, T, task, unlike.data(), begin, end);
  });
  for (double one : unlike) sum += one;
  if (task.gradient != nullptr)
    in_blocks(planes, few, [&](int64_t begin, int64_t end) {
      RF_CALL_CORRELATION(correlation_gradient, T, task, -*per_mass, begin, end);
    });
  return sum;
}

std::tuple<Tensor, Tensor> correlation(const Tensor& warped_, const Tensor& fixed_, const Tensor& weight_, int64_t radius,
                                       double floor, bool is_signed, bool wants_gradient) {
  check_correlation(warped_, fixed_, weight_, radius, floor);
  const Tensor warped = torch::stable::contiguous(warped_);  // [C, *S]
  const Tensor fixed = torch::stable::contiguous(fixed_);    // [C, *S]
  const Tensor weight = torch::stable::contiguous(weight_);  // [*S]
  Tensor value = torch::stable::new_zeros(warped, {}, ScalarType::Double);  // []
  Tensor gradient = wants_gradient ? torch::stable::new_empty(warped, warped.sizes()) : empty_grad(warped);
  if (warped.numel() == 0) return {value, gradient};
  dispatch(warped.scalar_type(), 2, [&](auto scalar, auto) {
    using T = decltype(scalar);
    auto task = correlation_task<T>(warped, radius, floor, is_signed);
    const int64_t channels = warped.size(0), pixels = task.pixels();
    const std::unique_ptr<T[]> sums(new T[kBoxSums * pixels]);
    task.weight = weight.const_data_ptr<T>();
    task.sums = sums.get();
    double sum = 0, per_mass = 0;
    for (int64_t channel = 0; channel < channels; ++channel) {
      task.moving = warped.const_data_ptr<T>() + channel * pixels;
      task.fixed = fixed.const_data_ptr<T>() + channel * pixels;
      task.gradient = wants_gradient ? gradient.mutable_data_ptr<T>() + channel * pixels : nullptr;
      sum += correlate(task, channels, &per_mass);
    }
    *value.mutable_data_ptr<double>() = sum * per_mass;
  });
  return {value, gradient};
}

}  // namespace
}  // namespace regframe

STABLE_TORCH_LIBRARY_IMPL(regframe, CPU, m) { m.impl("correlation", TORCH_BOX(&regframe::correlation)); }
