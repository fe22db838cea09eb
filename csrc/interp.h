// The mathematics of a pixel: multilinear interpolation, the path through the flow, and its adjoint.
//
// Everything is a template over "lanes": a type L with
//   L::Real, L::Int                   one number, or a vector of them (one per pixel)
//   L::splat(x), L::to_int(r), L::to_real(i), L::max(a, b), L::sqrt(r), L::any(r)
// so that a CUDA thread (ScalarLanes) and a SIMD register of pixels (cpu/simd.h) run the same source.
//
// Positions are counted in nodes of the velocity grid padded by two nodes of zeros on each side: "missing nodes count as
// zero" then needs no test per corner, because a clamped position always has all its corners.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define RF_HD __host__ __device__ __forceinline__
#else
#define RF_HD inline __attribute__((always_inline))
#endif

namespace regframe {

constexpr int kPad = 2;  // nodes of zeros on each side of the velocity grid
constexpr int64_t kMostFeatures = 127;  // powers of moving channels that a contrast map may have
constexpr int64_t kMostLines = 4;  // along which the intensities of either side are binned

// ---------------------------------------------------------------------------------------------------- lanes of one pixel

template <class T>
struct ScalarLanes {
  using Real = T;
  using Int = int32_t;
  static constexpr int kLanes = 1;
  static RF_HD Real splat(T x) { return x; }
  static RF_HD Int to_int(Real x) { return static_cast<Int>(x); }  // towards zero
  static RF_HD Real to_real(Int i) { return static_cast<Real>(i); }
  static RF_HD Int below(Real a, Real b) { return a < b ? -1 : 0; }
  static RF_HD Real max(Real a, Real b) { return a > b ? a : b; }  // b where a is not a number
  static RF_HD Real sqrt(Real x) { return std::sqrt(x); }
  static RF_HD bool any(Real x) { return x != T(0); }

  // x = whole + rest, 0 <= rest < 1: keeps the full precision of a position in a large image through a float32 path.
  // Positions so far outside that they cannot come back are clamped first, so that the integer is always valid.
  static RF_HD void split(double x, double limit, Int& whole, Real& rest) {
    if constexpr (sizeof(T) == sizeof(double)) {
      whole = 0;
      rest = x;
      return;
    }
    constexpr double kFar = 4194304.0;  // 2^22
    double shifted = x + kFar;
    shifted = shifted > 0.0 ? shifted : 0.0;  // NaN goes to 0
    const double high = limit + 2.0 * kFar;
    shifted = shifted < high ? shifted : high;
    const int64_t i = static_cast<int64_t>(shifted);
    rest = static_cast<Real>(shifted - static_cast<double>(i));
    whole = static_cast<Int>(i - static_cast<int64_t>(kFar));
  }
};

// ------------------------------------------------------------------------------------------------ multilinear polynomials

// A multilinear cell is kept as the coefficients of its monomials instead of its corner values: value and gradient together
// then cost one multiply-add per coefficient. Bit b of an index stands for axis D-1-b (the last axis is bit 0).

// corner values -> coefficients, in place; c: [2^D]
template <int D, class R>
RF_HD void to_coefficients(R* c) {
  for (int bit = 1; bit < (1 << D); bit <<= 1)
    for (int m = 0; m < (1 << D); ++m)
      if (m & bit) c[m] -= c[m ^ bit];
}

// its transpose: gradient of the coefficients -> gradient of the corner values, in place; m: [2^D]
template <int D, class R>
RF_HD void to_corner_gradient(R* g) {
  for (int bit = 1; bit < (1 << D); bit <<= 1)
    for (int m = 0; m < (1 << D); ++m)
      if (!(m & bit)) g[m] -= g[m | bit];
}

// value at fractions f [D] of the cell with coefficients c [2^D]
template <int D, class R>
RF_HD R evaluate(const R* c, const R* f) {
  if constexpr (D == 2) {
    return (c[0] + c[1] * f[1]) + f[0] * (c[2] + c[3] * f[1]);
  } else {
    const R near_ = (c[0] + c[1] * f[2]) + f[1] * (c[2] + c[3] * f[2]);
    const R slope = (c[4] + c[5] * f[2]) + f[1] * (c[6] + c[7] * f[2]);
    return near_ + f[0] * slope;
  }
}

// the same value, and its derivative per axis (per cell width) in slope [D]
template <int D, class R>
RF_HD R evaluate(const R* c, const R* f, R* slope) {
  if constexpr (D == 2) {
    slope[0] = c[2] + c[3] * f[1];
    slope[1] = c[1] + c[3] * f[0];
    return (c[0] + c[1] * f[1]) + f[0] * slope[0];
  } else {
    const R b0 = c[2] + c[3] * f[2], b1 = c[6] + c[7] * f[2];
    slope[0] = (c[4] + c[5] * f[2]) + f[1] * b1;
    slope[1] = b0 + f[0] * b1;
    slope[2] = (c[1] + c[3] * f[1]) + f[0] * (c[5] + c[7] * f[1]);
    return ((c[0] + c[1] * f[2]) + f[1] * b0) + f[0] * slope[0];
  }
}

// gradient of the coefficients when the gradient of the value is g: m[k] += g * monomial k; m: [2^D], f: [D]
template <int D, class R>
RF_HD void add_moments(R* m, R g, const R* f) {
  const R gx = g * f[D - 1];
  const R gy = g * f[D - 2];
  const R gyx = gx * f[D - 2];
  m[0] += g;
  m[1] += gx;
  m[2] += gy;
  m[3] += gyx;
  if constexpr (D == 3) {
    m[4] += g * f[0];
    m[5] += gx * f[0];
    m[6] += gy * f[0];
    m[7] += gyx * f[0];
  }
}

// solves a x = b (or the transpose of a) by Cramer's rule; a: [D][D], b: [D] -> x: [D]
template <int D, bool kTransposed, class R>
RF_HD void solve(const R (*a)[D], const R* b, R* x) {
  if constexpr (D == 2) {
    const R a01 = kTransposed ? a[1][0] : a[0][1], a10 = kTransposed ? a[0][1] : a[1][0];
    const R det = a[0][0] * a[1][1] - a01 * a10;
    x[0] = (b[0] * a[1][1] - a01 * b[1]) / det;
    x[1] = (a[0][0] * b[1] - a10 * b[0]) / det;
  } else {
    R c[3][3];  // cofactors of a
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        const int i1 = (i + 1) % 3, i2 = (i + 2) % 3, j1 = (j + 1) % 3, j2 = (j + 2) % 3;
        c[i][j] = a[i1][j1] * a[i2][j2] - a[i1][j2] * a[i2][j1];
      }
    const R det = a[0][0] * c[0][0] + a[0][1] * c[0][1] + a[0][2] * c[0][2];
    for (int i = 0; i < 3; ++i) {
      const R sum = kTransposed ? c[i][0] * b[0] + c[i][1] * b[1] + c[i][2] * b[2]
                                : c[0][i] * b[0] + c[1][i] * b[1] + c[2][i] * b[2];
      x[i] = sum / det;
    }
  }
}

// ------------------------------------------------------------------------------------------------------------------ grids

// the velocity as the kernels see it: [T, *padded, D], interleaved, padded by kPad, in nodes per step (h v / spacing)
template <class T, int D>
struct FlowGrid {
  int32_t padded[D];       // nodes per axis with the padding
  T limit[D];              // largest position whose corners all exist
  int32_t corner[1 << D];  // offset of each corner of a cell, in elements
  int64_t slice;           // elements per time slice
  int32_t n_slices, n_steps;

  RF_HD int slice_of(int step) const { return static_cast<int>(static_cast<int64_t>(step) * n_slices / n_steps); }
};

// one channel of the image: [*size]
template <class T, int D>
struct ImageGrid {
  int32_t size[D];
  int32_t stride[D];       // elements to the next pixel of an axis
  int32_t corner[1 << D];  // offset of each corner of a cell, in elements; an axis of one pixel has both corners in it
};

// Offset (in elements, kNode for a node), fractions f [D] and first corner [D] (in nodes) of the velocity cell at position + shift [D].
template <class L, int D, int kNode = D, class T>
RF_HD typename L::Int locate(const FlowGrid<T, D>& grid, const typename L::Real* position, const typename L::Real* shift,
                             typename L::Real* f, typename L::Real* corner) {
  using Real = typename L::Real;
  typename L::Int cell{};
  for (int d = 0; d < D; ++d) {
    const Real low = L::splat(T(0)), high = L::splat(grid.limit[d]);
    Real x = position[d] + shift[d];
    x = L::max(x, low);  // NaN goes to 0: it must never be turned into an address
    x = x < high ? x : high;
    const typename L::Int i = L::to_int(x);  // x >= 0, so this is the floor
    corner[d] = L::to_real(i);
    f[d] = x - corner[d];
    cell = cell * grid.padded[d] + i;
  }
  return cell * kNode;
}

template <class L, int D, class T>
RF_HD typename L::Int locate(const FlowGrid<T, D>& grid, const typename L::Real* position, const typename L::Real* shift,
                             typename L::Real* f) {
  typename L::Real corner[D];
  return locate<L, D>(grid, position, shift, f, corner);
}

// Offset, fractions f [D] and inside [D] (1, or 0 where the border is continued) of the image cell at whole + rest [D].
template <class L, int D, class T>
RF_HD typename L::Int locate(const ImageGrid<T, D>& grid, const typename L::Int* whole, const typename L::Real* rest,
                             typename L::Real* f, typename L::Real* inside) {
  using Real = typename L::Real;
  using Int = typename L::Int;
  Int cell{};
  for (int d = 0; d < D; ++d) {
    const Real zero = L::splat(T(0)), one = L::splat(T(1));
    const Int last = Int{} + (grid.size[d] > 1 ? grid.size[d] - 2 : 0);
    const Real low = L::to_real(Int{} - whole[d]), high = L::to_real((grid.size[d] - 1) - whole[d]);
    Real x = rest[d];
    inside[d] = x >= low ? one : zero;
    inside[d] = x <= high ? inside[d] : zero;
    x = L::max(x, low);
    x = x < high ? x : high;
    Int i = L::to_int(x);
    i = i + L::below(x, L::to_real(i));  // towards zero -> floor
    i = i + whole[d];
    i = i > Int{} ? i : Int{};
    i = i < last ? i : last;
    f[d] = x - L::to_real(i - whole[d]);
    cell = cell + i * grid.stride[d];
  }
  return cell;
}

// ------------------------------------------------------------------------------------------------- the path and its adjoint

// `Cells` hands out the velocity cell of a step and takes its gradient:
//   const Real* enter(int step, Int cell, const Real* f)   coefficients [D][2^D]; remembers cell and f where it records
//   or, where finding the cell is theirs too, Real* find(int step, const Real* start, const Real* shift, Real* f)
//   const Real* recall(int step, Real* f)                  the same again, for the adjoint
//   void scatter(int step, const Real* g, const Real* f)   adds g [D] to the gradient of the velocity there

template <class L, int D, class T, class Cells>
RF_HD auto find_cell(const FlowGrid<T, D>&, int step, const typename L::Real* start, const typename L::Real* shift,
                     typename L::Real* f, Cells& cells, int) -> decltype(cells.find(step, start, shift, f)) {
  return cells.find(step, start, shift, f);
}
template <class L, int D, class T, class Cells>
RF_HD const typename L::Real* find_cell(const FlowGrid<T, D>& grid, int step, const typename L::Real* start,
                                        const typename L::Real* shift, typename L::Real* f, Cells& cells, long) {
  const typename L::Int cell = locate<L, D>(grid, start, shift, f);
  return cells.enter(step, cell, f);
}

// Pull-back, explicit: for k = n-1 ... 0, X_k = X_{k+1} - h v_k(X_{k+1}). shift [D] is X_k - X_n, in nodes, and starts at 0.
template <class L, int D, class T, class Cells>
RF_HD void pull_back(const FlowGrid<T, D>& grid, const typename L::Real* start, typename L::Real* shift, Cells& cells) {
  typename L::Real f[D];
  for (int step = grid.n_steps - 1; step >= 0; --step) {
    const typename L::Real* c = find_cell<L, D>(grid, step, start, shift, f, cells, 0);  // [D][2^D]
    for (int d = 0; d < D; ++d) shift[d] = shift[d] - evaluate<D>(c + (d << D), f);
  }
}

// Adjoint of pull_back, after it: g [D] comes as the gradient of the end and leaves as the gradient of the start.
// Going k = 0 ... n-1 at X_{k+1}: first scatter -g, then g <- g - (h dv/dX)^T g.
template <class L, int D, class T, class Cells>
RF_HD void pull_back_adjoint(const FlowGrid<T, D>& grid, typename L::Real* g, Cells& cells) {
  using Real = typename L::Real;
  for (int step = 0; step < grid.n_steps; ++step) {
    Real f[D], back[D], slope[D], minus[D];
    const Real* c = cells.recall(step, f);  // [D][2^D]
    for (int d = 0; d < D; ++d) {
      minus[d] = -g[d];
      back[d] = g[d];
    }
    cells.scatter(step, minus, f);
    for (int d = 0; d < D; ++d) {
      evaluate<D>(c + (d << D), f, slope);
      for (int e = 0; e < D; ++e) back[e] = back[e] - slope[e] * g[d];
    }
    for (int d = 0; d < D; ++d) g[d] = back[d];
  }
}

// I - h dv/dX [D][D] and h v [D] in the cell with coefficients c [D][2^D]
template <class L, int D>
RF_HD void step_jacobian(const typename L::Real* c, const typename L::Real* f, typename L::Real (*jacobian)[D],
                         typename L::Real* value) {
  for (int d = 0; d < D; ++d) {
    value[d] = evaluate<D>(c + (d << D), f, jacobian[d]);
    for (int e = 0; e < D; ++e) jacobian[d][e] = (d == e ? L::splat(1) : L::splat(0)) - jacobian[d][e];
  }
}

// Push-forward, the exact inverse: for k = 0 ... n-1, solve X_{k+1} = X_k + h v_k(X_{k+1}). shift [D] as in pull_back.
// Newton's method, then fixed-point steps for the rare position that it throws to and fro between two cells. A lane that has
// arrived is left alone, so that no result depends on its neighbours. Cells here only need `enter`.
template <class L, int D, class T, class Cells>
RF_HD void push_forward(const FlowGrid<T, D>& grid, const typename L::Real* start, typename L::Real* shift, T epsilon,
                        Cells& cells) {
  using Real = typename L::Real;
  constexpr int kNewton = 12, kIterations = 48;
  const Real zero = L::splat(T(0)), one = L::splat(T(1)), tolerance = L::splat(4 * epsilon);
  for (int step = 0; step < grid.n_steps; ++step) {
    Real f[D], next[D], value[D], jacobian[D][D], residual[D], delta[D];
    const Real* c = find_cell<L, D>(grid, step, start, shift, f, cells, 0);
    for (int d = 0; d < D; ++d) next[d] = shift[d] + evaluate<D>(c + (d << D), f);
    Real active = one;
    for (int iteration = 0; iteration < kIterations; ++iteration) {
      c = find_cell<L, D>(grid, step, start, next, f, cells, 0);
      step_jacobian<L, D>(c, f, jacobian, value);
      for (int d = 0; d < D; ++d) residual[d] = (next[d] - value[d]) - shift[d];
      if (iteration < kNewton) {
        solve<D, false>(jacobian, residual, delta);
      } else {
        for (int d = 0; d < D; ++d) delta[d] = residual[d];
      }
      Real moving = zero;
      for (int d = 0; d < D; ++d) {
        const Real size = delta[d] < zero ? -delta[d] : delta[d];
        const Real reach = next[d] < zero ? -next[d] : next[d];
        moving = size > tolerance * (one + reach) ? one : moving;
        next[d] = next[d] - (active > zero ? delta[d] : zero);
      }
      active = moving > zero ? active : zero;
      if (!L::any(active)) break;
    }
    for (int d = 0; d < D; ++d) shift[d] = next[d];
  }
}

// Adjoint of push_forward. Its path, walked back from the end, is the explicit pull_back, so one pass does it (implicit
// function theorem): at X_{k+1}, g <- (I - h dv/dX)^-T g, then scatter g, then X_k = X_{k+1} - h v_k(X_{k+1}).
template <class L, int D, class T, class Cells>
RF_HD void push_forward_adjoint(const FlowGrid<T, D>& grid, const typename L::Real* end, typename L::Real* g, Cells& cells) {
  using Real = typename L::Real;
  Real shift[D], f[D], value[D], jacobian[D][D], back[D];
  for (int d = 0; d < D; ++d) shift[d] = L::splat(T(0));
  for (int step = grid.n_steps - 1; step >= 0; --step) {
    const Real* c = find_cell<L, D>(grid, step, end, shift, f, cells, 0);
    step_jacobian<L, D>(c, f, jacobian, value);
    solve<D, true>(jacobian, g, back);
    cells.scatter(step, back, f);
    for (int d = 0; d < D; ++d) {
      g[d] = back[d];
      shift[d] = shift[d] - value[d];
    }
  }
}

}  // namespace regframe
