// regframe._host: numpy in, numpy out, no tensors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "splat.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

std::string shape_of(const py::array& a) {
  std::string out = "[";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) out += (i ? ", " : "") + std::to_string(a.shape(i));
  return out + "]";
}

template <class T>
py::tuple splat_as(const Array<double>& points, const Array<T>& weights, const regframe::Canvas& canvas, int threads) {
  const int64_t n = points.shape(0);
  const int64_t channels = weights.ndim() == 2 ? weights.shape(1) : 1;
  py::array_t<T> out({channels, canvas.shape[0], canvas.shape[1]});  // [C, H, W]
  const double* p = points.data();
  const T* w = weights.data();
  T* to = out.mutable_data();
  int64_t outside;
  {
    py::gil_scoped_release release;
    outside = regframe::splat<T>(p, w, n, channels, canvas, to, threads);
  }
  return py::make_tuple(std::move(out), outside);
}

py::tuple splat(const Array<double>& points, const py::array& weights, std::pair<int64_t, int64_t> shape,
                std::pair<double, double> origin, std::pair<double, double> spacing, double sigma, int threads) {
  if (points.ndim() != 2 || points.shape(1) != 2)
    throw py::value_error("points must be [N, 2] in (y, x) order, got " + shape_of(points));
  if ((weights.ndim() != 1 && weights.ndim() != 2) || weights.shape(0) != points.shape(0))
    throw py::value_error("weights must be [N] or [N, C] with one row per point (" + std::to_string(points.shape(0)) +
                          "), got " + shape_of(weights));
  if (shape.first < 0 || shape.second < 0) throw py::value_error("shape needs sizes of 0 or more");
  if (!(spacing.first > 0 && spacing.second > 0) || !std::isfinite(spacing.first) || !std::isfinite(spacing.second))
    throw py::value_error("spacing needs two finite numbers above 0");
  if (!std::isfinite(origin.first) || !std::isfinite(origin.second)) throw py::value_error("origin needs two finite numbers");
  if (!(sigma > 0) || !std::isfinite(sigma)) throw py::value_error("sigma must be a finite length above 0");
  if (threads < 0) throw py::value_error("threads must be 0 (all cores) or more");
  const regframe::Canvas canvas{{shape.first, shape.second}, {origin.first, origin.second}, {spacing.first, spacing.second}, sigma};
  if (py::isinstance<py::array_t<float>>(weights)) return splat_as<float>(points, Array<float>(weights), canvas, threads);
  if (py::isinstance<py::array_t<double>>(weights)) return splat_as<double>(points, Array<double>(weights), canvas, threads);
  throw py::type_error("weights must be float32 or float64, got " + std::string(py::str(weights.dtype())) +
                       "; convert them with .astype('float64')");
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Compiled helpers on numpy arrays; links no torch.";
  m.def("splat", &splat, py::arg("points"), py::arg("weights"), py::arg("shape"), py::arg("origin"), py::arg("spacing"),
        py::arg("sigma"), py::arg("threads") = 0,
        R"(Sum of Gaussians of weighted points on a grid of pixels, and how many points lay outside.

points [N, 2] (y, x), float64, in lengths; weights [N] or [N, C], float32 or float64; shape (H, W), origin and spacing
(y, x) of the grid in lengths (a pixel's position is its centre); sigma, the Gaussian's standard deviation, in lengths.
Returns (raster, outside): raster [C, H, W] of the weights' dtype, and the number of points left out because their
centre lies beyond the area that the pixels cover. Every other point adds exactly its weight to the raster's sum: a
Gaussian that hangs over the border is scaled up to what is left of it. The same bytes come out for any number of
threads (0: all cores). Raises ValueError on wrong shapes and on points or weights that are not finite, TypeError on
other dtypes.)");
}
