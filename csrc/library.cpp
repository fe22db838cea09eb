// Every op of torch.ops.regframe, and the module that Python imports to load them.
#include <Python.h>
#include <torch/csrc/stable/library.h>

// No defaults here: autograd would drop them. regframe/ops.py holds the documented functions.
STABLE_TORCH_LIBRARY(regframe, m) {
  m.def(
      "warp(Tensor image, Tensor velocity, Tensor matrix, int[] shape, int[] offset, float[] image_spacing, "
      "float[] image_origin, float[] velocity_spacing, float[] velocity_origin, int n_steps) -> Tensor");
  m.def(
      "warp_crop(Tensor image, Tensor velocity, Tensor matrix, Tensor? after, int[] shape, int[] offset, int[] image_shape, "
      "int[] image_offset, float[] image_spacing, float[] image_origin, float[] velocity_spacing, "
      "float[] velocity_origin, int n_steps, float? background) -> Tensor");
  m.def(
      "_warp_backward(Tensor grad, Tensor image, Tensor velocity, Tensor matrix, int[] shape, int[] offset, "
      "float[] image_spacing, float[] image_origin, float[] velocity_spacing, float[] velocity_origin, int n_steps, "
      "bool image_grad, bool velocity_grad, bool matrix_grad) -> (Tensor, Tensor, Tensor)");
  m.def(
      "contrast(Tensor moving, Tensor fixed, Tensor weight, Tensor velocity, Tensor matrix, float[] image_spacing, "
      "float[] image_origin, float[] velocity_spacing, float[] velocity_origin, int n_steps, Tensor moving_scale, "
      "Tensor fixed_scale, int order, float ridge) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "information(Tensor moving, Tensor fixed, Tensor weight, Tensor velocity, Tensor matrix, float[] image_spacing, "
      "float[] image_origin, float[] velocity_spacing, float[] velocity_origin, int n_steps, int bins, bool normalized) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "correlation(Tensor warped, Tensor fixed, Tensor weight, int radius, float floor, bool signed, bool gradient) -> "
      "(Tensor, Tensor)");
  m.def(
      "flow_points(Tensor points, Tensor velocity, float[] velocity_spacing, float[] velocity_origin, int n_steps, "
      "bool to_moving) -> Tensor");
  m.def(
      "_flow_points_backward(Tensor grad, Tensor points, Tensor end, Tensor velocity, float[] velocity_spacing, "
      "float[] velocity_origin, int n_steps, bool to_moving) -> (Tensor, Tensor)");
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "Registers torch.ops.regframe.", -1, nullptr,
                               nullptr,               nullptr, nullptr,                      nullptr};
  return PyModule_Create(&module);
}
