// regframe._host: numpy in, numpy out, no tensors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <tuple>

#include "planes.h"
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

// planes [N, 3, 3] refined by ``steps`` steps, or as they are where there are none, and their scores [N]
py::tuple planes(const Array<int32_t>& codes, std::tuple<double, double, double> origin, std::tuple<double, double, double> spacing,
                 const Array<uint8_t>& empty, const Array<double>& at, const Array<double>& values, const Array<double>& weight,
                 const Array<double>& planes, double ratio, double stretch, int steps, int threads) {
  if (codes.ndim() != 3) throw py::value_error("codes must be [Z, Y, X], got " + shape_of(codes));
  if (empty.ndim() != 1 || empty.shape(0) < 1) throw py::value_error("empty must be [K] with at least one class, got " + shape_of(empty));
  if (at.ndim() != 2 || at.shape(1) != 2) throw py::value_error("at must be [n, 2], got " + shape_of(at));
  if (values.ndim() != 1 || values.shape(0) != at.shape(0) || weight.ndim() != 1 || weight.shape(0) != at.shape(0))
    throw py::value_error("values and weight must be [n] like at (" + std::to_string(at.shape(0)) + "), got " + shape_of(values) +
                          " and " + shape_of(weight));
  if (planes.ndim() != 3 || planes.shape(1) != 3 || planes.shape(2) != 3)
    throw py::value_error("planes must be [N, 3, 3], got " + shape_of(planes));
  const auto [oz, oy, ox] = origin;
  const auto [sz, sy, sx] = spacing;
  for (const double s : {sz, sy, sx})
    if (!(s > 0) || !std::isfinite(s)) throw py::value_error("spacing needs three finite numbers above 0");
  if (!(ratio > 0) || !(stretch > 0)) throw py::value_error("ratio and stretch must be above 0");
  if (steps < 0 || threads < 0) throw py::value_error("steps and threads must be 0 or more");
  const int32_t* code = codes.data();
  for (py::ssize_t i = 0; i < codes.size(); ++i)
    if (code[i] < 0 || code[i] >= empty.shape(0)) throw py::value_error("codes must be classes 0 ... K - 1 of empty");
  for (py::ssize_t k = 0; k < empty.size(); ++k)
    if (empty.data()[k] > 1) throw py::value_error("empty must hold 0 and 1");
  const regframe::Volume volume{code, {codes.shape(0), codes.shape(1), codes.shape(2)}, {oz, oy, ox}, {sz, sy, sx},
                                empty.data(), empty.shape(0)};
  const regframe::Section section{at.data(), values.data(), weight.data(), at.shape(0)};
  const regframe::Judge judge{ratio, stretch};
  const int64_t count = planes.shape(0);
  py::array_t<double> out({count, int64_t{3}, int64_t{3}}), scores(count);
  std::copy(planes.data(), planes.data() + planes.size(), out.mutable_data());
  double* to = out.mutable_data();
  double* score = scores.mutable_data();
  {
    py::gil_scoped_release release;
    if (steps > 0)
      regframe::refine_planes(volume, section, judge, to, count, score, steps, threads);
    else
      regframe::score_planes(volume, section, judge, to, count, score, threads);
  }
  return py::make_tuple(std::move(out), std::move(scores));
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
  m.def("planes", &planes, py::arg("codes"), py::arg("origin"), py::arg("spacing"), py::arg("empty"), py::arg("at"), py::arg("values"),
        py::arg("weight"), py::arg("planes"), py::arg("ratio"), py::arg("stretch"), py::arg("steps") = 0, py::arg("threads") = 0,
        R"(How well a section fits planes of a volume of classes, and the planes after some Gauss-Newton steps.

codes [Z, Y, X] int32, classes 0 ... K - 1 on a grid of origin and spacing (z, y, x); empty [K], 1 for classes that are
not tissue; a section's pixels at [n, 2], their values [n] about the mean and weight [n]; planes [N, 3, 3], whose columns
are down, right and middle: pixel (y, x) lies at down * y + right * x + middle. ratio: prior variance of a class' mean
over the variance within a class; stretch: standard deviation of the logarithm of a plane's stretch, which counts from
one step on. Without steps the nearest voxels count. Returns (planes [N, 3, 3], scores [N] in nats), the same for any number
of threads (0: all cores). Raises ValueError on wrong shapes and codes.)");
}
