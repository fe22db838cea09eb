"""Typed functions over ``torch.ops.regframe``: shape checks, fake kernels and autograd; without a build, the reference.

Argument order, frames and border rules are those of `regframe.reference`, which states them once. Setting the
environment variable ``REGFRAME_REFERENCE=1`` runs the reference everywhere, without a warning.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from regframe import reference

try:
    import regframe._C  # noqa: F401  (importing it registers the ops with torch)

    _build_error: str | None = None
except ImportError as error:
    _build_error = str(error)

BUILD_COMMAND = "pip install --no-build-isolation -e ."
"""Command that builds the compiled ops; to be run in the folder of ``setup.py``."""

MOST_FEATURES = 127
"""Largest number of features (powers of moving channels) that `contrast` accepts."""

MOST_BINS = 256
"""Largest number of bins of either side that `information` accepts."""

MOST_LINES = 4
"""Largest number of lines of either side that `information` accepts."""

_MAX_NODES = 2**31 - 1  # the kernels address the nodes of one channel, or of one time slice, by 32-bit integers


def is_built() -> bool:
    """Whether the compiled ops are available; where they are not, every op here runs its twin in `regframe.reference`."""
    return _build_error is None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


@functools.cache
def has_kernel(device_type: str) -> bool:
    """Whether this build has kernels for a type of device, ``cpu`` or ``cuda``."""
    if device_type in ("cpu", "meta"):
        return True
    key = {"cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key("regframe::warp", key)


def _use_reference(device: torch.device) -> bool:
    if os.environ.get("REGFRAME_REFERENCE") == "1":
        return True
    if not is_built():
        _warn_once(
            "regframe: the compiled ops are not built, so the slow reference runs instead; build them with "
            f"`{BUILD_COMMAND}` ({_build_error})"
        )
        return True
    if not has_kernel(device.type):
        _warn_once(
            f"regframe: this build has no kernels for {device.type}, so the slow reference runs instead; rebuild "
            f"with a torch that has {device.type}: `{BUILD_COMMAND}`"
        )
        return True
    return False


def _check_lengths(ndim: int, **lists: Sequence[float]) -> None:
    for name, values in lists.items():
        if len(values) != ndim:
            raise ValueError(f"{name} needs {ndim} numbers, one per axis, got {len(values)}: {list(values)}")
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} needs finite numbers, got {list(values)}")
        if name.endswith("spacing") and not all(value > 0 for value in values):
            raise ValueError(f"{name} needs numbers above 0, got {list(values)}")


def _check_dtype_and_device(name: str, tensor: Tensor, velocity: Tensor) -> None:
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}; convert it with .to(torch.float32)")
    if velocity.dtype != tensor.dtype:
        raise TypeError(
            f"{name} and velocity must share one dtype, got {tensor.dtype} and {velocity.dtype}; "
            f"convert with velocity.to({tensor.dtype})"
        )
    if velocity.device != tensor.device:
        raise ValueError(
            f"{name} and velocity must be on one device, got {tensor.device} and {velocity.device}; move one with .to()"
        )


def _check_velocity(ndim: int, velocity: Tensor, n_steps: int) -> None:
    if velocity.dim() != ndim + 2 or velocity.shape[1] != ndim:
        raise ValueError(
            f"velocity must be [T, {ndim}, {'z, ' * (ndim - 2)}y, x] for {ndim} axes, got {list(velocity.shape)}"
        )
    if velocity.numel() == 0:
        raise ValueError(f"velocity must hold at least one node and one time slice, got {list(velocity.shape)}")
    if math.prod(n + 4 for n in velocity.shape[2:]) * ndim > _MAX_NODES:
        raise ValueError(f"velocity {list(velocity.shape)} is too fine for one op; give it a coarser grid")
    n_slices = velocity.shape[0]
    if n_steps < n_slices or n_steps % n_slices:
        raise ValueError(f"n_steps must be a multiple of the {n_slices} time slices of velocity, got {n_steps}")


class Path(NamedTuple):
    """The path of fixed pixels into the moving image: all arguments of `warp` and of the fused metrics but the pixels themselves.

    Args:
        velocity: ``[T, D, *S_v]``, in moving-frame lengths per unit time.
        matrix: ``[D, D+1]`` float64, from the index of a fixed pixel to the start of its path in the moving frame.
        shape: number of pixels of the fixed grid, or of a tile of it, per axis.
        offset: index of the tile's first pixel.
        image_spacing: distance of the moving image's pixels along each axis, in moving-frame lengths.
        image_origin: position of its first pixel, in the moving frame.
        velocity_spacing: distance of the velocity's nodes along each axis, in moving-frame lengths.
        velocity_origin: position of its first node, in the moving frame.
        n_steps: Euler steps, a multiple of T.
    """

    velocity: Tensor
    matrix: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    image_spacing: tuple[float, ...]
    image_origin: tuple[float, ...]
    velocity_spacing: tuple[float, ...]
    velocity_origin: tuple[float, ...]
    n_steps: int


class Contrast(NamedTuple):
    """What `contrast` returns.

    Args:
        value: float64 scalar, the mean squared residual per fixed channel and unit weight, the ridge included.
        theta: ``[C_f, 1 + order * C_m]`` float64, the contrast map of standardised channels: constant, linear, square …
        velocity_grad: ``[T, D, *S_v]``, the value's gradient in the velocity.
        matrix_grad: ``[D, D+1]`` float64, the value's gradient in the matrix.
    """

    value: Tensor
    theta: Tensor
    velocity_grad: Tensor
    matrix_grad: Tensor


class Information(NamedTuple):
    """What `information` returns.

    Args:
        value: float64 scalar, minus the mutual information in nats, or two minus the normalised one.
        velocity_grad: ``[T, D, *S_v]``, the value's gradient in the velocity.
        matrix_grad: ``[D, D+1]`` float64, the value's gradient in the matrix.
    """

    value: Tensor
    velocity_grad: Tensor
    matrix_grad: Tensor


class Correlation(NamedTuple):
    """What `correlation` returns.

    Args:
        value: float64 scalar, one minus the squared local correlation, or minus the correlation, in the weighted mean.
        gradient: ``[C, *S]``, the value's gradient in the warped image; ``[0]`` where it was not asked for.
    """

    value: Tensor
    gradient: Tensor


def warp(
    image: Tensor,
    velocity: Tensor,
    matrix: Tensor,
    shape: Sequence[int],
    offset: Sequence[int],
    image_spacing: Sequence[float],
    image_origin: Sequence[float],
    velocity_spacing: Sequence[float],
    velocity_origin: Sequence[float],
    n_steps: int,
) -> Tensor:
    """``image`` ``[C, *S]`` at the end of each fixed pixel's path; returns ``[C, *shape]``, of the image's dtype.

    ``matrix`` ``[D, D+1]`` (float64) takes the index of a fixed pixel, ``offset + (0 ... shape-1)``, to its start in
    the moving frame; ``velocity`` ``[T, D, *S_v]`` is in moving-frame lengths per unit time, and the spacings and
    origins in moving-frame lengths. A pixel comes out the same, bit for bit, whatever tile (``shape``, ``offset``) it
    is asked in. Differentiable in image, velocity and matrix; not twice. Raises ``TypeError`` or ``ValueError`` with
    what was wanted, what came and what to do.
    """
    if matrix.dim() != 2 or matrix.shape[0] not in (2, 3) or matrix.shape[1] != matrix.shape[0] + 1:
        raise ValueError(f"matrix must be [2, 3] or [3, 4], got {list(matrix.shape)}")
    ndim = matrix.shape[0]
    if matrix.dtype != torch.float64:
        raise TypeError(f"matrix must be float64, got {matrix.dtype}; convert it with matrix.double()")
    if image.dim() != ndim + 1:
        raise ValueError(
            f"image must be [C, {'z, ' * (ndim - 2)}y, x] for a {ndim}-row matrix, got {list(image.shape)}"
        )
    _check_dtype_and_device("image", image, velocity)
    if matrix.device != image.device:
        raise ValueError(
            f"image and matrix must be on one device, got {image.device} and {matrix.device}; move one with .to()"
        )
    _check_velocity(ndim, velocity, n_steps)
    _check_lengths(
        ndim,
        shape=shape,
        offset=offset,
        image_spacing=image_spacing,
        image_origin=image_origin,
        velocity_spacing=velocity_spacing,
        velocity_origin=velocity_origin,
    )
    if any(n < 0 for n in shape):
        raise ValueError(f"shape needs sizes of 0 or more, got {list(shape)}")
    if 0 in image.shape[1:]:
        raise ValueError(f"image must hold at least one pixel, got {list(image.shape)}")
    if math.prod(image.shape[1:]) > _MAX_NODES:
        raise ValueError(f"image {list(image.shape)} has more than {_MAX_NODES} pixels per channel; crop it to a part")
    run: Any = reference.warp if _use_reference(image.device) else torch.ops.regframe.warp
    out: Tensor = run(
        image,
        velocity,
        matrix,
        shape,
        offset,
        image_spacing,
        image_origin,
        velocity_spacing,
        velocity_origin,
        n_steps,
    )
    return out


def warp_crop(
    image: Tensor,
    velocity: Tensor,
    matrix: Tensor,
    shape: Sequence[int],
    offset: Sequence[int],
    image_shape: Sequence[int],
    image_offset: Sequence[int],
    image_spacing: Sequence[float],
    image_origin: Sequence[float],
    velocity_spacing: Sequence[float],
    velocity_origin: Sequence[float],
    n_steps: int,
    background: float | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """`warp` in the image's own dtype, from a part of the image; returns ``[C, *shape]``, without gradients. On another device
    than the CPU the reference runs: there is no kernel of it.

    ``image`` ``[C, *part]`` is uint8, uint16, float32 or float64. It is the part at ``image_offset`` of a whole image of
    ``image_shape``, whose geometry ``image_spacing`` and ``image_origin`` state. Every position is computed in the whole image,
    so a pixel comes out the same, bit for bit, from any part that holds its neighbours and in any tile. Where a neighbour is
    missing, the nearest pixel of the part is read. Integers are rounded (ties to even). Positions beyond the whole image get
    ``background``, or the nearest border value where it is None.

    ``velocity`` is converted to float64 for a float64 image, to float32 for any other. With ``after`` ``[D, D+1]`` (float64) the
    flow is followed towards the fixed image, by the rule of `flow_points`, and ``after`` then maps its end to the image's frame;
    that is how a fixed image is carried to the moving space.

    Raises ``TypeError`` or ``ValueError`` with what was wanted, what came and what to do.
    """
    if matrix.dim() != 2 or matrix.shape[0] not in (2, 3) or matrix.shape[1] != matrix.shape[0] + 1:
        raise ValueError(f"matrix must be [2, 3] or [3, 4], got {list(matrix.shape)}")
    ndim = matrix.shape[0]
    if image.dtype not in (torch.uint8, torch.uint16, torch.float32, torch.float64):
        raise TypeError(f"image must be uint8, uint16, float32 or float64, got {image.dtype}; convert it")
    if matrix.dtype != torch.float64:
        raise TypeError(f"matrix must be float64, got {matrix.dtype}; convert it with matrix.double()")
    if image.dim() != ndim + 1 or 0 in image.shape:
        raise ValueError(f"image must be [C, *S] of {ndim} axes, none of them empty, got {list(image.shape)}")
    where = {str(t.device) for t in (image, velocity, matrix, *(() if after is None else (after,)))}
    if len(where) != 1:
        raise ValueError(
            f"image, velocity, matrix and after must be on one device, got {', '.join(sorted(where))}; move them with .to()"
        )
    if after is not None and (after.shape != matrix.shape or after.dtype != torch.float64):
        raise ValueError(f"after must be {list(matrix.shape)} of float64, got {list(after.shape)} of {after.dtype}")
    _check_velocity(ndim, velocity, n_steps)
    _check_lengths(
        ndim,
        shape=shape,
        offset=offset,
        image_shape=image_shape,
        image_offset=image_offset,
        image_spacing=image_spacing,
        image_origin=image_origin,
        velocity_spacing=velocity_spacing,
        velocity_origin=velocity_origin,
    )
    for d, (n, first, whole) in enumerate(zip(image.shape[1:], image_offset, image_shape, strict=True)):
        if first < 0 or first + n > whole or (n < 2 and whole > 1):
            raise ValueError(
                f"image must be a part of {list(image_shape)} of two pixels per axis at least, got {n} pixels from {first} "
                f"on axis {d}"
            )
    if any(n < 0 for n in shape) or max(image_shape) >= 1 << 24 or math.prod(image.shape[1:]) > _MAX_NODES:
        raise ValueError(
            f"wanted a tile of 0 pixels or more from a part of at most {_MAX_NODES} pixels of an image of at most 2^24 per "
            f"axis, got {list(shape)} from {list(image.shape[1:])} of {list(image_shape)}"
        )
    velocity = velocity.detach().to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    geometry = (
        shape, offset, image_shape, image_offset, image_spacing, image_origin, velocity_spacing, velocity_origin, n_steps,
        background,
    )  # fmt: skip
    small = image.numel() * image.element_size() < 4  # less than the kernel reads at once
    if small or not image.is_cpu or _use_reference(image.device):
        return reference.warp_crop(image.detach(), velocity, matrix.detach(), *geometry, after)
    out: Tensor = torch.ops.regframe.warp_crop(image.detach(), velocity, matrix.detach(), after, *geometry)
    return out


def _check_pair(path: Path, moving: Tensor, fixed: Tensor, weight: Tensor) -> None:
    """TypeError or ValueError where two images do not fit each other, the weight or a path over a whole fixed grid."""
    velocity, matrix, shape, offset, *_ = path
    ndim = matrix.shape[0] if matrix.dim() == 2 else 0
    if tuple(fixed.shape[1:]) != tuple(shape) or weight.shape != fixed.shape[1:] or any(offset):
        raise ValueError(
            f"fixed must be [C, *shape] and weight [*shape] of a whole grid, got {list(fixed.shape)} and "
            f"{list(weight.shape)} for shape {list(shape)} and offset {list(offset)}"
        )
    if fixed.dim() != ndim + 1 or moving.dim() != ndim + 1:
        raise ValueError(
            f"moving and fixed must have {ndim} axes beside their channels, got {moving.dim()}, {fixed.dim()}"
        )
    for name, tensor in (("fixed", fixed), ("weight", weight), ("moving", moving)):
        _check_dtype_and_device(name, tensor, velocity)
    if matrix.dtype != torch.float64:
        raise TypeError(f"matrix must be float64, got {matrix.dtype}; convert it with matrix.double()")
    _check_velocity(ndim, velocity, path.n_steps)


def contrast(
    path: Path,
    moving: Tensor,
    fixed: Tensor,
    weight: Tensor,
    moving_scale: Tensor,
    fixed_scale: Tensor,
    order: int = 1,
    ridge: float = 1e-6,
) -> Contrast:
    """The residual that the best contrast map leaves between the warped moving image and the fixed one, and its gradients.

    With both sides standardised and ``φ = (1, I, … I^order)`` of the warped channels::

        value = 1/C_f Σ_c min_θ [ Σ_y W(y) (θ_c · φ(I(y)) - J_c(y))² / Σ_y W(y) + ridge |θ_c|² ]

    where the ridge leaves out the constant term. The kernel passes over the pixels twice and stores nothing of the image's size:
    the first pass sums the moments from which θ follows, the second follows the paths again and scatters the gradient. Because θ
    is optimal, its own dependence on the map does not enter the gradient (envelope theorem). The op itself is not
    differentiable: it returns value and gradients together.

    Args:
        path: with the fixed grid as its ``shape`` and no ``offset``.
        moving: ``[C_m, *S_m]``.
        fixed: ``[C_f, *S_f]``.
        weight: ``[*S_f]`` ≥ 0; kernels skip pixels of weight 0.
        moving_scale: mean and deviation ``[2, C_m]`` float64 of the moving channels, on the CPU.
        fixed_scale: mean and deviation ``[2, C_f]`` float64 of the fixed channels, on the CPU.
        order: highest power, 1 to 3.
        ridge: strength of the ridge, above 0.

    Raises:
        TypeError: for a dtype that does not fit.
        ValueError: for a shape, device or number that does not fit, with what was wanted, what came and what to do.
    """
    _check_pair(path, moving, fixed, weight)
    velocity, matrix, _, _, *geometry = path
    if not 1 <= order <= 3 or order * moving.shape[0] > MOST_FEATURES:
        raise ValueError(
            f"order must be 1, 2 or 3 and order times moving channels at most {MOST_FEATURES}, got {order} and "
            f"{moving.shape[0]} channels"
        )
    if not (math.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge must be above 0, got {ridge}")
    for name, scale, image in (("moving_scale", moving_scale, moving), ("fixed_scale", fixed_scale, fixed)):
        if scale.shape != (2, image.shape[0]) or scale.dtype != torch.float64:
            raise ValueError(
                f"{name} must be [2, {image.shape[0]}] float64, got {list(scale.shape)} {scale.dtype}: "
                "mean and deviation per channel"
            )
    args = (moving, fixed, weight, velocity, matrix, *geometry, moving_scale, fixed_scale, order, ridge)
    run: Any = reference.contrast if _use_reference(moving.device) else torch.ops.regframe.contrast
    return Contrast(*run(*(a.detach() if isinstance(a, Tensor) else a for a in args)))


def information(
    path: Path, moving: Tensor, fixed: Tensor, weight: Tensor, bins: int = 32, normalized: bool = False
) -> Information:
    """Mutual information of the warped moving image and the fixed one, and its gradients.

    Both sides are lines: images whose intensities run from 0 to 1 over the range of the bins; what is beyond counts at its end,
    without gradient. With p the joint histogram over bins i (fixed) and j (moving), B-splines β₁ and β₃, W the weight::

        p_ij = Σ_y W β₁(i - f(y)) β₃(j - m(y)) / Σ_y W,    value = -Σ_ij p_ij log(p_ij / (p_i p_j)),

    the mean over all pairs of a fixed and a moving line; ``normalized`` gives ``2 - (H_i + H_j) / H_ij`` of the same histogram.
    The kernel passes over the pixels twice and stores nothing of the image's size: the first pass fills the histogram, the
    second follows the paths again and scatters the gradient. The op itself is not differentiable: it returns value and gradients
    together.

    Args:
        path: with the fixed grid as its ``shape`` and no ``offset``.
        moving: ``[K_m, *S_m]``, at most `MOST_LINES` lines.
        fixed: ``[K_f, *S_f]``, likewise.
        weight: ``[*S_f]`` ≥ 0; kernels skip pixels of weight 0.
        bins: of either side, 5 to `MOST_BINS`.
        normalized: whether the information is divided by the joint entropy.

    Raises:
        TypeError: for a dtype that does not fit.
        ValueError: for a shape, device or number that does not fit, with what was wanted, what came and what to do.
    """
    _check_pair(path, moving, fixed, weight)
    velocity, matrix, _, _, *geometry = path
    for name, side in (("moving", moving), ("fixed", fixed)):
        if not 1 <= side.shape[0] <= MOST_LINES:
            raise ValueError(f"{name} must have 1 to {MOST_LINES} lines, got {side.shape[0]}; give it fewer components")
    if not 5 <= bins <= MOST_BINS:
        raise ValueError(f"bins must be 5 to {MOST_BINS}, got {bins}")
    args = (moving, fixed, weight, velocity, matrix, *geometry, bins, normalized)
    run: Any = reference.information if _use_reference(moving.device) else torch.ops.regframe.information
    return Information(*run(*(a.detach() if isinstance(a, Tensor) else a for a in args)))


def correlation(
    warped: Tensor,
    fixed: Tensor,
    weight: Tensor,
    radius: int,
    floor: float,
    signed: bool = False,
    gradient: bool = True,
) -> Correlation:
    """Correlation of a warped image x with the fixed one y in a box around each pixel, and its gradient.

    With ``⟨·⟩`` the mean over a box of ``2 radius + 1`` pixels per axis under the weight W, cut off at the border::

        value = Σ W (1 - r) / Σ W,   r = c² / (v_x v_y),   c = ⟨xy⟩ - ⟨x⟩⟨y⟩,   v = ⟨x²⟩ - ⟨x⟩² + floor,

    the mean over channels; ``signed`` compares ``r = c / √(v_x v_y)``. Boxes are summed axis by axis, at a cost that hardly
    depends on the radius, and never by differences of running sums, so that nothing cancels. The result is the same, bit for
    bit, with any number of threads. The op itself is not differentiable: it returns value and gradient together.

    Args:
        warped: ``[C, *S]``, of 2 or 3 axes.
        fixed: ``[C, *S]``.
        weight: ``[*S]`` ≥ 0; pixels of weight 0 are not looked at.
        radius: half width of the box in pixels, 1 or more; it may exceed the image.
        floor: variance added to both sides of each box, above 0.
        signed: whether the correlation itself is compared instead of its square.
        gradient: whether it is wanted.

    Raises:
        TypeError: for a dtype that does not fit.
        ValueError: for a shape, device or number that does not fit, with what was wanted, what came and what to do.
    """
    if warped.dim() not in (3, 4) or fixed.shape != warped.shape or weight.shape != warped.shape[1:]:
        raise ValueError(
            f"warped and fixed must be [C, (z, )y, x] of one shape and weight its [(z, )y, x], got {list(warped.shape)}, "
            f"{list(fixed.shape)} and {list(weight.shape)}; where channels differ, give each side's mean channel"
        )
    for name, tensor in (("fixed", fixed), ("weight", weight)):
        if tensor.dtype != warped.dtype or warped.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"warped, fixed and weight must all be float32 or all float64, got {warped.dtype} and {tensor.dtype} ({name}); "
                "convert with .to()"
            )
        if tensor.device != warped.device:
            raise ValueError(
                f"warped and {name} must be on one device, got {warped.device} and {tensor.device}; move one with .to()"
            )
    if radius < 1:
        raise ValueError(f"radius must be 1 pixel or more, got {radius}")
    if not (math.isfinite(floor) and floor > 0):
        raise ValueError(f"floor must be above 0, got {floor}")
    run: Any = reference.correlation if _use_reference(warped.device) else torch.ops.regframe.correlation
    return Correlation(*run(warped.detach(), fixed.detach(), weight.detach(), radius, floor, signed, gradient))


def flow_points(
    points: Tensor,
    velocity: Tensor,
    velocity_spacing: Sequence[float],
    velocity_origin: Sequence[float],
    n_steps: int,
    to_moving: bool,
) -> Tensor:
    """Carry ``points`` ``[N, D]`` (moving frame, lengths) along ``velocity`` ``[T, D, *S]``; returns ``[N, D]``.

    ``to_moving=True`` applies the pull-back rule of `warp`, ``to_moving=False`` its exact inverse, so that both
    directions together give the points back to rounding. Differentiable in points and velocity; not twice.
    Raises ``TypeError`` or ``ValueError`` with what was wanted, what came and what to do.
    """
    if points.dim() != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"points must be [N, 2] or [N, 3], got {list(points.shape)}")
    ndim = points.shape[1]
    _check_dtype_and_device("points", points, velocity)
    _check_velocity(ndim, velocity, n_steps)
    _check_lengths(ndim, velocity_spacing=velocity_spacing, velocity_origin=velocity_origin)
    run: Any = reference.flow_points if _use_reference(points.device) else torch.ops.regframe.flow_points
    out: Tensor = run(points, velocity, velocity_spacing, velocity_origin, n_steps, to_moving)
    return out


def _warp_fake(
    image: Tensor, velocity: Tensor, matrix: Tensor, shape: Sequence[int], *geometry: Any
) -> Tensor:  # [C, *shape]
    return image.new_empty((image.shape[0], *shape))


def _warp_crop_fake(
    image: Tensor, velocity: Tensor, matrix: Tensor, after: Tensor | None, shape: Sequence[int], *rest: Any
) -> Tensor:
    return image.new_empty((image.shape[0], *shape))  # [C, *shape]


def _warp_backward_fake(
    grad: Tensor, image: Tensor, velocity: Tensor, matrix: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = rest[-3:]
    image_grad, velocity_grad, matrix_grad = (
        torch.empty(tensor.shape if want else (0,), dtype=tensor.dtype, device=tensor.device)
        for tensor, want in zip((image, velocity, matrix), wanted, strict=True)
    )
    return image_grad, velocity_grad, matrix_grad


def _warp_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[3:]


def _warp_vjp(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    grads = torch.ops.regframe._warp_backward(grad, *ctx.saved_tensors, *ctx.geometry, *wanted)
    return (*(g if want else None for g, want in zip(grads, wanted, strict=True)), *(None for _ in ctx.geometry))


def _contrast_fake(
    moving: Tensor, fixed: Tensor, weight: Tensor, velocity: Tensor, matrix: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = rest[-2]
    return (
        matrix.new_empty(()),
        matrix.new_empty((fixed.shape[0], 1 + order * moving.shape[0])),
        torch.empty(velocity.shape, dtype=velocity.dtype, device=velocity.device),
        torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device),
    )


def _information_fake(
    moving: Tensor, fixed: Tensor, weight: Tensor, velocity: Tensor, matrix: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        matrix.new_empty(()),
        torch.empty(velocity.shape, dtype=velocity.dtype, device=velocity.device),
        torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device),
    )


def _correlation_fake(
    warped: Tensor, fixed: Tensor, weight: Tensor, radius: int, floor: float, signed: bool, gradient: bool
) -> tuple[Tensor, Tensor]:
    out = torch.empty(warped.shape if gradient else (0,), dtype=warped.dtype, device=warped.device)  # [C, *S]
    return warped.new_empty((), dtype=torch.float64), out


def _flow_points_fake(points: Tensor, velocity: Tensor, *geometry: Any) -> Tensor:  # [N, D]
    return torch.empty(points.shape, dtype=points.dtype, device=points.device)


def _flow_points_backward_fake(
    grad: Tensor, points: Tensor, end: Tensor, velocity: Tensor, *geometry: Any
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(points.shape, dtype=points.dtype, device=points.device),  # [N, D]
        torch.empty(velocity.shape, dtype=velocity.dtype, device=velocity.device),  # [T, D, *S]
    )


def _flow_points_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    points, velocity, *geometry = inputs
    ctx.save_for_backward(points, output, velocity)
    ctx.geometry = geometry


def _flow_points_vjp(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:2]
    grads = torch.ops.regframe._flow_points_backward(grad, *ctx.saved_tensors, *ctx.geometry)
    return (*(g if want else None for g, want in zip(grads, wanted, strict=True)), *(None for _ in ctx.geometry))


def _no_second_derivative(name: str) -> Any:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"regframe.{name} has no second derivative: its kernel gives the first one only; "
            "set REGFRAME_REFERENCE=1 to differentiate twice through plain torch"
        )

    return backward


if is_built():
    register_fake("regframe::warp")(_warp_fake)
    register_fake("regframe::warp_crop")(_warp_crop_fake)
    register_fake("regframe::_warp_backward")(_warp_backward_fake)
    register_fake("regframe::contrast")(_contrast_fake)
    register_fake("regframe::information")(_information_fake)
    register_fake("regframe::correlation")(_correlation_fake)
    register_fake("regframe::flow_points")(_flow_points_fake)
    register_fake("regframe::_flow_points_backward")(_flow_points_backward_fake)
    register_autograd("regframe::warp", _warp_vjp, setup_context=_warp_setup)
    register_autograd("regframe::_warp_backward", _no_second_derivative("warp"))
    register_autograd("regframe::flow_points", _flow_points_vjp, setup_context=_flow_points_setup)
    register_autograd("regframe::_flow_points_backward", _no_second_derivative("flow_points"))
