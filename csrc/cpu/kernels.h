// What the ops of cpu/ ask of a kernel, and the sets of kernels there are: one per instruction set, all compiled from kernels.inc.
#pragma once

#include <cstdint>

#include "interp.h"

namespace regframe {

// from the index of a fixed pixel to positions in nodes of the padded velocity grid, and in pixels of the image
template <class T, int D>
struct Frame {
  double to_flow[D][D + 1];
  double to_image[D][D + 1];
  T image_per_flow[D];  // image pixels per velocity node
  int64_t shape[D];     // of the tile
  int64_t offset[D];    // of the tile's first pixel
};

template <class T, int D>
struct WarpTask {
  Frame<T, D> frame;
  FlowGrid<T, D> flow;
  ImageGrid<T, D> grid;
  const T* velocity;  // [T, *padded, kNode]
  const T* image;     // [C, *S]
  int64_t channels, image_pixels, out_pixels;
};

// A warp of pixels of type P out of a part of an image: every position is reckoned in the whole image, whose size is that of
// warp.grid, while warp.grid.stride and .corner are those of the part. warp.image is not used.
template <class T, int D, class P>
struct CropTask {
  WarpTask<T, D> warp;
  const P* part;         // [C, *part's size]
  const P* part_end;
  int64_t first[D];      // the part's first pixel, and its last cell
  int64_t last[D];
  bool to_fixed;         // the flow is followed the other way, and an affine map comes after it, which warp.frame.to_image includes:
  T image_per_flow[D][D];  // image pixels per velocity node under it
  bool has_background;   // beyond the whole image's pixels; else its border is continued
  P background;
};

// The residual of the best contrast map: theta . phi(x) - y, with phi = (1, x, x^2, ...) of the warped channels, all standardised.
template <class T, int D>
struct ContrastTask {
  WarpTask<T, D> warp;  // its tile is the whole fixed grid
  const T* fixed;       // [C_f, *shape]
  const T* weight;      // [*shape]
  int64_t targets;      // C_f
  int64_t order;
  const T* moving_mean;  // [C_m], and the factor that follows
  const T* moving_gain;
  const T* fixed_mean;  // [C_f]
  const T* fixed_gain;
  int64_t features() const { return 1 + order * warp.channels; }  // P
  // weighted sums of products: upper triangle of phi phi^T, then phi y^T
  int64_t moments() const { return features() * (features() + 1) / 2 + features() * targets; }
};

// A joint histogram of the warped image's lines with those of the fixed one: intensities from 0 to 1 over the range of the bins.
// Pairs are counted fixed line by fixed line; a pixel is in one cell of each, see information.h.
template <class T, int D>
struct InformationTask {
  WarpTask<T, D> warp;  // its tile is the whole fixed grid, its channels are the moving lines
  const T* fixed;       // [K_f, *shape]
  const T* weight;      // [*shape]
  int64_t lines;        // K_f
  int32_t rows, columns;  // cells of the fixed and of the moving axis
  int64_t cells() const { return static_cast<int64_t>(rows) * columns; }
};

// numbers per node of a velocity and of its gradient: D, and in a volume one more, so that a node is read and added to at once
template <int D>
constexpr int kNode = D == 3 ? 4 : D;

// points in nodes of the padded velocity grid: (x - origin) / spacing + kPad
template <class T, int D>
struct PointsTask {
  FlowGrid<T, D> flow;
  const T* velocity;  // [T, *padded, kNode]
  double spacing[D], origin[D];
  bool to_moving;
};

// Rows are the lines of the tile along its last axis, all other axes flattened: begin ... end-1.
// `accumulator` [T, *padded, kNode] belongs to the calling thread alone, and so does `matrix` [D, D+1].
#define RF_DECLARE_KERNELS(isa)                                                                                             \
  namespace isa {                                                                                                           \
  template <class T, int D>                                                                                                 \
  void warp_forward(const WarpTask<T, D>& task, T* out, int64_t begin, int64_t end);                                        \
  template <class T, int D, class P>                                                                                        \
  void warp_crop(const CropTask<T, D, P>& task, P* out, int64_t begin, int64_t end);                                        \
  template <class T, int D>                                                                                                 \
  void warp_backward(const WarpTask<T, D>& task, const T* grad, double* accumulator, double* matrix, int64_t begin,         \
                     int64_t end);                                                                                          \
  template <class T, int D>                                                                                                 \
  void warp_backward_image(const WarpTask<T, D>& task, const T* grad, T* image_grad, int64_t begin, int64_t end);           \
  template <class T, int D>                                                                                                 \
  void contrast_moments(const ContrastTask<T, D>& task, double* moments, int64_t begin, int64_t end);                       \
  template <class T, int D>                                                                                                 \
  void contrast_gradient(const ContrastTask<T, D>& task, const T* theta, double* squares, double* accumulator,              \
                         double* matrix, int64_t begin, int64_t end);                                                       \
  template <class T, int D>                                                                                                 \
  void information_moments(const InformationTask<T, D>& task, double* moments, int64_t begin, int64_t end);                 \
  template <class T, int D>                                                                                                 \
  void information_gradient(const InformationTask<T, D>& task, const T* table, double* accumulator, double* matrix,         \
                            int64_t begin, int64_t end);                                                                    \
  template <class T, int D>                                                                                                 \
  void points_forward(const PointsTask<T, D>& task, const T* points, T* out, int64_t begin, int64_t end);                   \
  template <class T, int D>                                                                                                 \
  void points_backward(const PointsTask<T, D>& task, const T* grad, const T* points, T* points_grad, double* accumulator,   \
                       int64_t begin, int64_t end);                                                                         \
  }

RF_DECLARE_KERNELS(baseline)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RF_X86_VARIANTS 1
RF_DECLARE_KERNELS(avx2)
RF_DECLARE_KERNELS(avx512)
#endif

enum class Isa { baseline, avx2, avx512 };

// the best this machine has, or what the environment variable REGFRAME_ISA names, where the machine has it
Isa isa();

// calls <isa>::name<T, D>(...)
#ifdef RF_X86_VARIANTS
#define RF_CALL(name, T, D, ...)                                             \
  (::regframe::isa() == ::regframe::Isa::avx512 ? avx512::name<T, D>(__VA_ARGS__) \
   : ::regframe::isa() == ::regframe::Isa::avx2 ? avx2::name<T, D>(__VA_ARGS__)   \
                                                : baseline::name<T, D>(__VA_ARGS__))
#define RF_CALL_PIXELS(name, T, D, P, ...)                                             \
  (::regframe::isa() == ::regframe::Isa::avx512 ? avx512::name<T, D, P>(__VA_ARGS__) \
   : ::regframe::isa() == ::regframe::Isa::avx2 ? avx2::name<T, D, P>(__VA_ARGS__)   \
                                                : baseline::name<T, D, P>(__VA_ARGS__))
#else
#define RF_CALL(name, T, D, ...) baseline::name<T, D>(__VA_ARGS__)
#define RF_CALL_PIXELS(name, T, D, P, ...) baseline::name<T, D, P>(__VA_ARGS__)
#endif

}  // namespace regframe
