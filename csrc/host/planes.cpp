// How well a section fits planes of a volume of classes, and their refinement: the hot loops of the search for a plane.
//
// One thread does all of one plane, so a plane's numbers are the same for any number of threads.
#include "planes.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "threads.h"

namespace regframe {
namespace {

constexpr int kParameters = 9;  // three columns of three components

// sums per class, cleared by forgetting only the classes that were met
class Tally {
 public:
  Tally(const Volume& volume, const Section& section, double ratio)
      : volume_(volume), ratio_(ratio), mass_(volume.classes, 0.0), total_(volume.classes, 0.0), mean_(volume.classes, 0.0) {
    for (int64_t i = 0; i < section.n; ++i) {
      every_ += section.weight[i];
      square_ += section.weight[i] * section.values[i] * section.values[i];
    }
  }

  void clear() {
    for (const int32_t k : met_) mass_[k] = total_[k] = 0.0;
    met_.clear();
  }

  void add(int32_t k, double weight, double value) {
    if (weight <= 0) return;
    if (mass_[k] == 0) met_.push_back(k);
    mass_[k] += weight;
    total_[k] += weight * value;
  }

  // log-likelihood; the means are ready after it
  double likelihood() {
    double mass[2] = {0, 0}, total[2] = {0, 0};  // tissue, empty
    for (const int32_t k : met_) {
      mass[volume_.empty[k]] += mass_[k];
      total[volume_.empty[k]] += total_[k];
    }
    double explained = 0, paid = 0, middle[2];
    for (int e = 0; e < 2; ++e) {
      middle[e] = total[e] / std::max(mass[e], 1e-6);
      explained += middle[e] * total[e];
    }
    for (const int32_t k : met_) {
      const int e = volume_.empty[k];
      mean_[k] = middle[e];
      if (e) continue;
      const double own = total_[k] - mass_[k] * middle[e];
      const double shift = ratio_ * own / (1 + ratio_ * mass_[k]);
      mean_[k] += shift;
      explained += shift * own;
      paid += std::log1p(ratio_ * mass_[k]);
    }
    const double rest = std::max(1 - explained / square_, 0.0) + 1e-3;
    return -0.5 * every_ * std::log(rest) - 0.5 * paid;
  }

  double mean(int32_t k) const { return mean_[k]; }

 private:
  const Volume& volume_;
  double ratio_, every_ = 0, square_ = 0;
  std::vector<double> mass_, total_, mean_;
  std::vector<int32_t> met_;
};

int32_t class_at(const Volume& v, int64_t z, int64_t y, int64_t x) {
  if (z < 0 || y < 0 || x < 0 || z >= v.shape[0] || y >= v.shape[1] || x >= v.shape[2]) return 0;
  return v.codes[(z * v.shape[1] + y) * v.shape[2] + x];
}

// index of a section's pixel in the volume
void index_of(const Volume& v, const double* plane, const double* at, double* index) {
  for (int d = 0; d < 3; ++d)
    index[d] = (plane[3 * d] * at[0] + plane[3 * d + 1] * at[1] + plane[3 * d + 2] - v.origin[d]) / v.spacing[d];
}

bool far_off(const double* index) {
  return !(std::abs(index[0]) < 1e9 && std::abs(index[1]) < 1e9 && std::abs(index[2]) < 1e9);
}

double stretch_cost(const double* plane, double deviation) {
  double a = 0, b = 0, c = 0;  // the products of down and right
  for (int d = 0; d < 3; ++d) {
    a += plane[3 * d] * plane[3 * d];
    b += plane[3 * d] * plane[3 * d + 1];
    c += plane[3 * d + 1] * plane[3 * d + 1];
  }
  const double mean = 0.5 * (a + c), spread = std::sqrt(0.25 * (a - c) * (a - c) + b * b);
  const double log_ratio = 0.5 * std::log((mean + spread) / std::max(mean - spread, 1e-12));
  return 0.5 * (log_ratio / deviation) * (log_ratio / deviation);
}

// what a step needs at one plane
struct Look {
  double score = 0;
  double hessian[kParameters][kParameters], descent[kParameters];
};

class Refiner {
 public:
  Refiner(const Volume& volume, const Section& section, const Judge& judge)
      : v_(volume), s_(section), judge_(judge), tally_(volume, section, judge.ratio), classes_(8 * section.n), parts_(3 * section.n) {
    for (int64_t i = 0; i < s_.n; ++i) radius_ = std::max(radius_, std::hypot(s_.at[2 * i], s_.at[2 * i + 1]));
  }

  Look look(const double* plane) {
    Look out;
    tally_.clear();
    for (int64_t i = 0; i < s_.n; ++i) {
      double index[3];
      index_of(v_, plane, s_.at + 2 * i, index);
      int64_t low[3] = {-2, -2, -2};
      double* part = parts_.data() + 3 * i;
      for (int d = 0; d < 3; ++d) {
        part[d] = 0;
        if (far_off(index)) continue;
        low[d] = static_cast<int64_t>(std::floor(index[d]));
        part[d] = index[d] - static_cast<double>(low[d]);
      }
      for (int c = 0; c < 8; ++c) {
        const int up[3] = {c >> 2, (c >> 1) & 1, c & 1};
        const int32_t k = class_at(v_, low[0] + up[0], low[1] + up[1], low[2] + up[2]);
        classes_[8 * i + c] = k;
        double share = 1;
        for (int d = 0; d < 3; ++d) share *= up[d] ? part[d] : 1 - part[d];
        tally_.add(k, share * s_.weight[i], s_.values[i]);
      }
    }
    out.score = tally_.likelihood() - stretch_cost(plane, judge_.stretch);
    for (auto& row : out.hessian) std::fill(row, row + kParameters, 0.0);
    std::fill(out.descent, out.descent + kParameters, 0.0);
    for (int64_t i = 0; i < s_.n; ++i) {
      const double w = s_.weight[i];
      if (!(w > 0)) continue;
      const double* part = parts_.data() + 3 * i;
      double colour = 0, slope[3] = {0, 0, 0};
      for (int c = 0; c < 8; ++c) {
        const int up[3] = {c >> 2, (c >> 1) & 1, c & 1};
        double side[3];
        for (int d = 0; d < 3; ++d) side[d] = up[d] ? part[d] : 1 - part[d];
        const double mean = side[0] * side[1] * side[2] > 0 ? tally_.mean(classes_[8 * i + c]) : 0.0;
        colour += mean * side[0] * side[1] * side[2];
        slope[0] += (up[0] ? mean : -mean) * side[1] * side[2];
        slope[1] += (up[1] ? mean : -mean) * side[0] * side[2];
        slope[2] += (up[2] ? mean : -mean) * side[0] * side[1];
      }
      const double rest = s_.values[i] - colour;
      const double moves[3] = {s_.at[2 * i] / radius_, s_.at[2 * i + 1] / radius_, 1.0};
      double jacobian[kParameters];
      for (int d = 0; d < 3; ++d)
        for (int k = 0; k < 3; ++k) jacobian[3 * d + k] = slope[d] / v_.spacing[d] * moves[k];
      for (int a = 0; a < kParameters; ++a) {
        const double scaled = w * jacobian[a];
        out.descent[a] += scaled * rest;
        for (int b = 0; b <= a; ++b) out.hessian[a][b] += scaled * jacobian[b];
      }
    }
    return out;
  }

  void refine(double* plane, double* score, int steps) {
    Look now = look(plane);
    double damping = 0.03;
    const double most = 3 * *std::max_element(v_.spacing, v_.spacing + 3);
    for (int step = 0; step < steps; ++step) {
      double move[kParameters], trial[kParameters];
      if (!solve(now, damping, move)) break;
      double largest = 0;
      for (const double m : move) largest = std::max(largest, std::abs(m));
      const double shrink = 1 / std::max(largest / most, 1.0);
      for (int a = 0; a < kParameters; ++a) trial[a] = plane[a] + move[a] * shrink / (a % 3 < 2 ? radius_ : 1.0);
      Look next = look(trial);
      if (next.score > now.score) {
        std::copy(trial, trial + kParameters, plane);
        now = next;
        damping *= 0.3;
      } else {
        damping *= 8;
      }
    }
    *score = now.score;
  }

 private:
  // the damped step by Cholesky's decomposition
  static bool solve(const Look& look, double damping, double* out) {
    double mean = 0, lower[kParameters][kParameters];
    for (int a = 0; a < kParameters; ++a) mean += look.hessian[a][a] / kParameters;
    for (int a = 0; a < kParameters; ++a) {
      for (int b = 0; b <= a; ++b) {
        double sum = look.hessian[a][b];
        if (a == b) sum += damping * look.hessian[a][a] + 1e-3 * mean + 1e-9;
        for (int k = 0; k < b; ++k) sum -= lower[a][k] * lower[b][k];
        if (a == b) {
          if (!(sum > 0)) return false;
          lower[a][a] = std::sqrt(sum);
        } else {
          lower[a][b] = sum / lower[b][b];
        }
      }
    }
    for (int a = 0; a < kParameters; ++a) {
      out[a] = look.descent[a];
      for (int k = 0; k < a; ++k) out[a] -= lower[a][k] * out[k];
      out[a] /= lower[a][a];
    }
    for (int a = kParameters - 1; a >= 0; --a) {
      for (int k = a + 1; k < kParameters; ++k) out[a] -= lower[k][a] * out[k];
      out[a] /= lower[a][a];
    }
    return true;
  }

  const Volume& v_;
  const Section& s_;
  Judge judge_;
  Tally tally_;
  std::vector<int32_t> classes_;
  std::vector<double> parts_;
  double radius_ = 1e-9;
};

// work(begin, end) on blocks of planes as threads come free
template <class Make>
void deal(int64_t count, int64_t block, int threads, const Make& make) {
  std::atomic<int64_t> next{0};
  on_threads(std::min(threads_wanted(threads), (count + block - 1) / block), [&] {
    auto work = make();
    for (int64_t begin; (begin = next.fetch_add(block)) < count;) work(begin, std::min(begin + block, count));
  });
}

}  // namespace

void score_planes(const Volume& volume, const Section& section, const Judge& judge, const double* planes, int64_t count, double* scores,
                  int threads) {
  deal(count, 256, threads, [&] {
    return [&, tally = Tally(volume, section, judge.ratio)](int64_t begin, int64_t end) mutable {
      for (int64_t p = begin; p < end; ++p) {
        tally.clear();
        for (int64_t i = 0; i < section.n; ++i) {
          double index[3];
          index_of(volume, planes + 9 * p, section.at + 2 * i, index);
          int32_t k = 0;
          if (!far_off(index))
            k = class_at(volume, static_cast<int64_t>(std::floor(index[0] + 0.5)), static_cast<int64_t>(std::floor(index[1] + 0.5)),
                         static_cast<int64_t>(std::floor(index[2] + 0.5)));
          tally.add(k, section.weight[i], section.values[i]);
        }
        scores[p] = tally.likelihood();
      }
    };
  });
}

void refine_planes(const Volume& volume, const Section& section, const Judge& judge, double* planes, int64_t count, double* scores,
                   int steps, int threads) {
  deal(count, 1, threads, [&] {
    return [&, refiner = Refiner(volume, section, judge)](int64_t begin, int64_t end) mutable {
      for (int64_t p = begin; p < end; ++p) refiner.refine(planes + 9 * p, scores + p, steps);
    };
  });
}

}  // namespace regframe
