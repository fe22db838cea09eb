// Gaussian splatting of weighted points onto a grid of pixels.
//
// Points are sorted by the row they lie in. A thread owns whole rows of the output and adds the points that reach them in
// that order, so a pixel's sum is the same for any number of threads, and no two threads write to one pixel.
#include "splat.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace regframe {
namespace {

constexpr double kReach = 5.0;     // standard deviations; beyond, a Gaussian is below 4e-6 of its peak
constexpr int64_t kBandRows = 32;  // rows of one piece of work, summed in double

// one axis of one point's kernel: pixels first ... first + values.size() - 1 of the canvas, values summing to 1
struct Profile {
  int64_t first, count;
  std::vector<double> values;

  // centre and sigma in pixels; size of the axis
  void fill(double centre, double sigma, int64_t size, int64_t reach) {
    const int64_t nearest = std::clamp<int64_t>(std::llround(centre), 0, size - 1);
    first = std::max<int64_t>(0, nearest - reach);
    const int64_t last = std::min<int64_t>(size - 1, nearest + reach);
    count = last - first + 1;
    if (static_cast<int64_t>(values.size()) < count) values.resize(count);
    // exp(-(i+1)^2 a) follows from exp(-i^2 a) by two products; counted from the nearest pixel, where it is 1, so that a
    // sigma far below a pixel does not lose everything to underflow
    const double a = 0.5 / (sigma * sigma), offset = static_cast<double>(nearest) - centre, twist = std::exp(-2.0 * a);
    double sum = 1.0;
    values[nearest - first] = 1.0;
    double value = 1.0, ratio = std::exp(-a * (2.0 * offset + 1.0));
    for (int64_t i = nearest + 1; i <= last; ++i) {
      value *= ratio;
      ratio *= twist;
      values[i - first] = value;
      sum += value;
    }
    value = 1.0;
    ratio = std::exp(-a * (1.0 - 2.0 * offset));
    for (int64_t i = nearest - 1; i >= first; --i) {
      value *= ratio;
      ratio *= twist;
      values[i - first] = value;
      sum += value;
    }
    const double scale = 1.0 / sum;
    for (int64_t i = 0; i < count; ++i) values[i] *= scale;
  }
};

}  // namespace

template <class T>
int64_t splat(const double* points, const T* weights, int64_t n, int64_t channels, const Canvas& canvas, T* out, int threads) {
  const int64_t height = canvas.shape[0], width = canvas.shape[1];
  const double sigma[2] = {canvas.sigma / canvas.spacing[0], canvas.sigma / canvas.spacing[1]};  // pixels
  int64_t reach[2];
  for (int d = 0; d < 2; ++d) reach[d] = static_cast<int64_t>(std::min<double>(std::ceil(kReach * sigma[d]) + 1, canvas.shape[d]));

  const auto pixel = [&](int64_t i, int d) { return (points[2 * i + d] - canvas.origin[d]) / canvas.spacing[d]; };
  std::vector<int64_t> starts(height + 1, 0);  // points of row r: order[starts[r] ... starts[r+1]-1]
  std::vector<int32_t> row_of(n);
  int64_t outside = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(points[2 * i]) || !std::isfinite(points[2 * i + 1]))
      throw std::invalid_argument("points must be finite; row " + std::to_string(i) + " is not: drop or repair it");
    for (int64_t c = 0; c < channels; ++c)
      if (!std::isfinite(weights[i * channels + c]))
        throw std::invalid_argument("weights must be finite; row " + std::to_string(i) + " is not: drop or repair it");
    const double y = pixel(i, 0), x = pixel(i, 1);
    if (!(y >= -0.5 && y <= height - 0.5 && x >= -0.5 && x <= width - 0.5)) {
      row_of[i] = -1;
      ++outside;
      continue;
    }
    row_of[i] = static_cast<int32_t>(std::clamp<int64_t>(std::llround(y), 0, height - 1));
    ++starts[row_of[i] + 1];
  }
  if (height == 0 || width == 0 || channels == 0) return outside;
  for (int64_t r = 0; r < height; ++r) starts[r + 1] += starts[r];
  std::vector<int64_t> order(n - outside), next(starts.begin(), starts.end() - 1);
  for (int64_t i = 0; i < n; ++i)
    if (row_of[i] >= 0) order[next[row_of[i]]++] = i;

  // work is dealt out in bands as threads come free, because points crowd; who does a band changes nothing in it
  const int64_t bands = (height + kBandRows - 1) / kBandRows;
  std::atomic<int64_t> next_band{0};
  const auto work = [&] {
    std::vector<double> sums(channels * kBandRows * width);  // [C, rows, W]
    Profile down, across;
    for (int64_t band; (band = next_band.fetch_add(1)) < bands;) {
      const int64_t top = band * kBandRows, bottom = std::min(top + kBandRows, height);
      std::fill(sums.begin(), sums.end(), 0.0);
      const int64_t begin = starts[std::max<int64_t>(0, top - reach[0])], end = starts[std::min(height, bottom + reach[0])];
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = order[k];
        down.fill(pixel(i, 0), sigma[0], height, reach[0]);
        const int64_t from = std::max(top, down.first), to = std::min(bottom, down.first + down.count);
        if (from >= to) continue;
        across.fill(pixel(i, 1), sigma[1], width, reach[1]);
        for (int64_t c = 0; c < channels; ++c) {
          const double weight = weights[i * channels + c];
          for (int64_t r = from; r < to; ++r) {
            const double w = weight * down.values[r - down.first];
            double* row = sums.data() + (c * kBandRows + (r - top)) * width + across.first;
            const double* value = across.values.data();
            for (int64_t x = 0; x < across.count; ++x) row[x] += w * value[x];
          }
        }
      }
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t r = top; r < bottom; ++r) {
          const double* row = sums.data() + (c * kBandRows + (r - top)) * width;
          T* to = out + (c * height + r) * width;
          for (int64_t x = 0; x < width; ++x) to[x] = static_cast<T>(row[x]);
        }
    }
  };
  int64_t wanted = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
  wanted = std::min(wanted, bands);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < wanted; ++i) others.emplace_back(work);
  work();
  for (auto& thread : others) thread.join();
  return outside;
}

template int64_t splat<float>(const double*, const float*, int64_t, int64_t, const Canvas&, float*, int);
template int64_t splat<double>(const double*, const double*, int64_t, int64_t, const Canvas&, double*, int);

}  // namespace regframe
