// Gaussian splatting of weighted points onto a grid of pixels.
//
// Points are sorted by the row they lie in, and along it by blocks of pixels, so that neighbours in the list write to the
// same lines of cache. A thread owns whole rows of the output and adds the points that reach them in that order, so a
// pixel's sum is the same for any number of threads, and no two threads write to one pixel.
#include "splat.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "threads.h"

// one loop for every x86-64 machine and once more for those with AVX2, chosen by the loader; the same bytes from both,
// for neither contracts a product and a sum into one rounding
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define REGFRAME_CLONES __attribute__((target_clones("default", "avx2")))
#else
#define REGFRAME_CLONES
#endif

namespace regframe {
namespace {

constexpr double kReach = 5.0;      // standard deviations; beyond, a Gaussian is below 4e-6 of its peak
constexpr int64_t kBandRows = 32;   // rows of one piece of work at least, summed in double
constexpr int64_t kBlock = 64;      // pixels along a row whose points stand together in the list
constexpr int64_t kLanes = 4;       // rows are added in whole vectors of so many
constexpr double kNarrow = 0.25;    // pixels; powers of a narrower Gaussian would overflow

// one axis of one point's kernel: pixels first ... first + count - 1 of the canvas, values summing to 1 and followed by
// zeros up to a whole vector
class Profile {
 public:
  // sigma in pixels; size of the axis
  Profile(double sigma, int64_t size, int64_t reach)
      : size_(size), reach_(reach), a_(0.5 / (sigma * sigma)), narrow_(sigma < kNarrow), bell_(2 * reach + 1), powers_(2 * reach + 1),
        values_(2 * reach + 1 + kLanes, 0.0) {
    for (int64_t i = -reach; i <= reach; ++i) bell_[i + reach] = std::exp(-a_ * static_cast<double>(i * i));
  }

  // centre in pixels
  void fill(double centre) {
    const int64_t nearest = std::clamp<int64_t>(static_cast<int64_t>(centre + 0.5), 0, size_ - 1);
    first = std::max<int64_t>(0, nearest - reach_);
    count = std::min<int64_t>(size_ - 1, nearest + reach_) - first + 1;
    const double offset = centre - static_cast<double>(nearest);  // -0.5 ... 0.5
    const int64_t skip = first - (nearest - reach_);
    double sum = 0.0;
    if (narrow_) {  // counted from the nearest pixel, where it is 1, so that nothing is lost to underflow
      for (int64_t i = 0; i < count; ++i) {
        const double away = static_cast<double>(i + skip - reach_);
        sum += values_[i] = std::exp(-a_ * away * (away - 2.0 * offset));
      }
    } else {  // exp(-a (i - c)^2) is exp(-a i^2) times the i-th power of exp(2 a c), but for a factor
      double* power = powers_.data() + reach_;
      power[0] = 1.0;
      if (reach_ > 0) {
        power[1] = std::exp(2.0 * a_ * offset);
        power[-1] = 1.0 / power[1];
      }
      for (int64_t i = 2; i <= reach_; ++i) {  // halves, not predecessors: they need not wait for each other
        power[i] = power[i / 2] * power[i - i / 2];
        power[-i] = power[-(i / 2)] * power[i / 2 - i];
      }
      for (int64_t i = 0; i < count; ++i) sum += values_[i] = bell_[i + skip] * powers_[i + skip];
    }
    const double scale = 1.0 / sum;
    for (int64_t i = 0; i < count; ++i) values_[i] *= scale;
    for (int64_t i = count; i < count + kLanes - 1; ++i) values_[i] = 0.0;
  }

  const double* values() const { return values_.data(); }

  int64_t first = 0, count = 0;

 private:
  int64_t size_, reach_;
  double a_;
  bool narrow_;
  std::vector<double> bell_, powers_, values_;
};

// sums[r, x] += down[r] * across[x] over ``rows`` rows of ``stride`` and ``vectors`` vectors of pixels
REGFRAME_CLONES void add(double* __restrict sums, int64_t stride, const double* __restrict down, int64_t rows,
                         const double* __restrict across, int64_t vectors, double weight) {
  for (int64_t r = 0; r < rows; ++r) {
    const double w = weight * down[r];
    double* __restrict row = sums + r * stride;
    for (int64_t x = 0; x < vectors * kLanes; ++x) row[x] += w * across[x];
  }
}

}  // namespace

template <class T>
int64_t splat(const double* points, const T* weights, int64_t n, int64_t channels, const Canvas& canvas, T* out, int threads) {
  const int64_t height = canvas.shape[0], width = canvas.shape[1];
  const double sigma[2] = {canvas.sigma / canvas.spacing[0], canvas.sigma / canvas.spacing[1]};  // pixels
  int64_t reach[2];
  for (int d = 0; d < 2; ++d) reach[d] = static_cast<int64_t>(std::min<double>(std::ceil(kReach * sigma[d]) + 1, canvas.shape[d]));

  struct Place {
    double y, x;  // pixels
  };
  const auto place = [&](int64_t i) {
    return Place{(points[2 * i] - canvas.origin[0]) / canvas.spacing[0], (points[2 * i + 1] - canvas.origin[1]) / canvas.spacing[1]};
  };
  const auto nearest = [](double at, int64_t size) { return std::clamp<int64_t>(static_cast<int64_t>(at + 0.5), 0, size - 1); };
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  std::vector<int64_t> starts(height * blocks + 1, 0);  // points of bin b: order[starts[b] ... starts[b+1]-1]
  std::vector<int64_t> bin_of(n);
  int64_t outside = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(points[2 * i]) || !std::isfinite(points[2 * i + 1]))
      throw std::invalid_argument("points must be finite; row " + std::to_string(i) + " is not: drop or repair it");
    for (int64_t c = 0; c < channels; ++c)
      if (!std::isfinite(weights[i * channels + c]))
        throw std::invalid_argument("weights must be finite; row " + std::to_string(i) + " is not: drop or repair it");
    const Place at = place(i);
    if (!(at.y >= -0.5 && at.y <= height - 0.5 && at.x >= -0.5 && at.x <= width - 0.5)) {
      bin_of[i] = -1;
      ++outside;
      continue;
    }
    bin_of[i] = nearest(at.y, height) * blocks + nearest(at.x, width) / kBlock;
    ++starts[bin_of[i] + 1];
  }
  if (height == 0 || width == 0 || channels == 0) return outside;
  for (int64_t b = 0; b < height * blocks; ++b) starts[b + 1] += starts[b];
  std::vector<int64_t> order(n - outside), next(starts.begin(), starts.end() - 1);
  std::vector<Place> places(n - outside);
  for (int64_t i = 0; i < n; ++i)
    if (bin_of[i] >= 0) {
      const int64_t k = next[bin_of[i]]++;
      order[k] = i;
      places[k] = place(i);
    }

  // work is dealt out in bands as threads come free, because points crowd; who does a band changes nothing in it. A band
  // is several times as high as a Gaussian, for what hangs over its edges is computed twice
  const int64_t band_rows = std::min(height, std::clamp(8 * reach[0], kBandRows, 4 * kBandRows));
  const int64_t bands = (height + band_rows - 1) / band_rows;
  const int64_t stride = width + kLanes;
  std::atomic<int64_t> next_band{0};
  const auto work = [&] {
    std::vector<double> sums(channels * band_rows * stride);  // [C, rows, stride]
    Profile down(sigma[0], height, reach[0]), across(sigma[1], width, reach[1]);
    for (int64_t band; (band = next_band.fetch_add(1)) < bands;) {
      const int64_t top = band * band_rows, bottom = std::min(top + band_rows, height);
      std::fill(sums.begin(), sums.end(), 0.0);
      const int64_t begin = starts[std::max<int64_t>(0, top - reach[0]) * blocks];
      const int64_t end = starts[std::min(height, bottom + reach[0]) * blocks];
      for (int64_t k = begin; k < end; ++k) {
        down.fill(places[k].y);
        const int64_t from = std::max(top, down.first), to = std::min(bottom, down.first + down.count);
        if (from >= to) continue;
        across.fill(places[k].x);
        const T* weight = weights + order[k] * channels;
        for (int64_t c = 0; c < channels; ++c)
          if (weight[c] != 0)  // most counts of most genes are
            add(sums.data() + (c * band_rows + (from - top)) * stride + across.first, stride, down.values() + (from - down.first),
                to - from, across.values(), (across.count + kLanes - 1) / kLanes, weight[c]);
      }
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t r = top; r < bottom; ++r) {
          const double* row = sums.data() + (c * band_rows + (r - top)) * stride;
          T* to = out + (c * height + r) * width;
          for (int64_t x = 0; x < width; ++x) to[x] = static_cast<T>(row[x]);
        }
    }
  };
  on_threads(std::min(threads_wanted(threads), bands), work);
  return outside;
}

template int64_t splat<float>(const double*, const float*, int64_t, int64_t, const Canvas&, float*, int);
template int64_t splat<double>(const double*, const double*, int64_t, int64_t, const Canvas&, double*, int);

}  // namespace regframe
