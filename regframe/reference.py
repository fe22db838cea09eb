"""Every compiled op again in plain torch: what the tests compare the ops with, and what runs where they are not built.

All positions ``X`` here are in the *moving frame*, with ``D`` components in tensor-axis order ``(y, x)`` or ``(z, y, x)``.
A grid turns positions into indices by ``index = (X - origin) / spacing``; node ``i`` sits at index ``i``.

The flow is discretised as docs/method.md states, with ``n_steps`` Euler steps of ``h = 1 / n_steps`` spread evenly over the
``T`` slices of the velocity (``n_steps`` is a multiple of ``T``; step ``k`` uses slice ``k * T // n_steps``):

* towards the moving image (pull-back), explicit, for ``k = n_steps-1 ... 0``:  ``X_k = X_{k+1} - h v_k(X_{k+1})``;
* towards the fixed image, the exact inverse of those steps, for ``k = 0 ... n_steps-1``: solve
  ``X_{k+1} = X_k + h v_k(X_{k+1})`` by Newton's method. Both directions are therefore inverse to each other to rounding.

Velocity is multilinear and zero outside its grid (missing nodes count as 0, so it fades over one cell); an image
continues with its border value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .later import torch

if TYPE_CHECKING:
    from torch import Tensor

NEWTON_ITERATIONS = 12
"""Largest number of Newton iterations for one step. Where a step stays within a cell of the multilinear velocity two or three
are enough; a step that crosses cells needs a few more."""


def carry(matrix: Tensor, coords: Tensor) -> Tensor:
    """Positions ``[..., D]`` mapped by a matrix ``[D+1, D+1]`` or ``[D, D+1]``, in a fixed order of operations."""
    ndim = coords.shape[-1]
    rows = []
    for i in range(ndim):
        row = matrix[i, ndim]
        for k in range(ndim):
            row = row + matrix[i, k] * coords[..., k]
        rows.append(row)
    return torch.stack(rows, dim=-1)


def sample_image(image: Tensor, index: Tensor) -> Tensor:
    """Multilinear sample of ``image`` ``[C, *S]`` at ``index`` ``[..., D]`` (index units), clamped to the border.

    Returns ``[C, ...]``. Differentiable in both; the derivative in ``index`` is 0 outside the image.
    """
    ndim = index.shape[-1]
    base, frac, size = [], [], []
    for d in range(ndim):
        n = image.shape[1 + d]
        x = index[..., d].clamp(0, n - 1)
        i = x.detach().floor().clamp(0, max(n - 2, 0))
        base.append(i.long())
        frac.append(x - i)
        size.append(n)
    flat = image.reshape(image.shape[0], -1)  # [C, prod(S)]
    out = torch.zeros((image.shape[0], *index.shape[:-1]), dtype=image.dtype, device=image.device)
    for corner in itertools.product((0, 1), repeat=ndim):
        address = torch.zeros_like(base[0])
        weight = torch.ones_like(frac[0])
        for d, bit in enumerate(corner):
            address = address * size[d] + (base[d] + bit).clamp(max=size[d] - 1)
            weight = weight * (frac[d] if bit else 1 - frac[d])
        out = out + flat[:, address] * weight
    return out


def sample_velocity(velocity: Tensor, index: Tensor) -> Tensor:
    """Multilinear sample of one slice ``velocity`` ``[D, *S]`` at ``index`` ``[..., D]``; nodes outside count as zero.

    Returns ``[..., D]``.
    """
    ndim = index.shape[-1]
    # floats far outside (or not finite) have no valid integer; any index left of -1 or right of n is equally outside
    limits = torch.tensor([velocity.shape[1 + d] + 1.0 for d in range(ndim)], dtype=index.dtype, device=index.device)
    inside = torch.minimum(torch.maximum(index, torch.full_like(index, -2.0)), limits)
    base = inside.detach().floor()
    frac = inside - base
    cell = base.long()
    flat = velocity.reshape(ndim, -1)  # [D, prod(S)]
    out = torch.zeros_like(index)
    for corner in itertools.product((0, 1), repeat=ndim):
        address = torch.zeros_like(cell[..., 0])
        weight = torch.ones_like(frac[..., 0])
        valid = torch.ones_like(address, dtype=torch.bool)
        for d, bit in enumerate(corner):
            n = velocity.shape[1 + d]
            node = cell[..., d] + bit
            valid = valid & (node >= 0) & (node < n)
            address = address * n + node.clamp(0, n - 1)
            weight = weight * (frac[..., d] if bit else 1 - frac[..., d])
        value = flat[:, address].movedim(0, -1)  # [..., D]
        out = out + value * torch.where(valid, weight, torch.zeros_like(weight))[..., None]
    return out


def _slice_of_step(step: int, n_slices: int, n_steps: int) -> int:
    return step * n_slices // n_steps


def flow_points(
    points: Tensor,
    velocity: Tensor,
    velocity_spacing: Sequence[float],
    velocity_origin: Sequence[float],
    n_steps: int,
    to_moving: bool,
) -> Tensor:
    """Carry ``points`` ``[N, D]`` (moving frame) along ``velocity`` ``[T, D, *S]``; returns ``[N, D]``.

    ``to_moving=True`` applies the pull-back rule, ``to_moving=False`` its exact inverse. Differentiable in both.
    """
    spacing = torch.as_tensor(velocity_spacing, dtype=points.dtype, device=points.device)
    origin = torch.as_tensor(velocity_origin, dtype=points.dtype, device=points.device)
    n_slices = velocity.shape[0]
    h = 1.0 / n_steps
    x = points
    if to_moving:
        for step in reversed(range(n_steps)):
            v = velocity[_slice_of_step(step, n_slices, n_steps)]
            x = x - h * sample_velocity(v, (x - origin) / spacing)
        return x
    for step in range(n_steps):
        v = velocity[_slice_of_step(step, n_slices, n_steps)]
        with torch.no_grad():
            y = _solve_step(x.detach(), v.detach(), spacing, origin, h)
            jacobian = _step_jacobian(y, v.detach(), spacing, origin, h)  # [N, D, D]
        # implicit function theorem: one differentiable Newton step from the solution has its value and its gradient
        residual = y - h * sample_velocity(v, (y - origin) / spacing) - x  # [N, D]
        x = y - torch.linalg.solve(jacobian, residual[..., None])[..., 0]
    return x


def _step_jacobian(y: Tensor, v: Tensor, spacing: Tensor, origin: Tensor, h: float) -> Tensor:
    """``I - h dv/dX`` ``[N, D, D]`` at ``y`` ``[N, D]``."""
    ndim = y.shape[-1]
    with torch.enable_grad():
        z = y.detach().requires_grad_(True)
        value = sample_velocity(v, (z - origin) / spacing)
        rows = [torch.autograd.grad(value[..., d].sum(), z, retain_graph=True)[0] for d in range(ndim)]
    eye = torch.eye(ndim, dtype=y.dtype, device=y.device)
    return eye - h * torch.stack(rows, dim=-2).detach()


def _solve_step(x: Tensor, v: Tensor, spacing: Tensor, origin: Tensor, h: float) -> Tensor:
    """``y`` ``[N, D]`` with ``y - h v(y) = x``, from the explicit step, by Newton."""
    y = x + h * sample_velocity(v, (x - origin) / spacing)
    tolerance = 8 * torch.finfo(x.dtype).eps * (x.abs().amax().item() + 1.0) if x.numel() else 0.0
    for _ in range(NEWTON_ITERATIONS):
        residual = y - h * sample_velocity(v, (y - origin) / spacing) - x
        if x.numel() == 0 or residual.abs().amax().item() <= tolerance:
            break
        y = y - torch.linalg.solve(_step_jacobian(y, v, spacing, origin, h), residual[..., None])[..., 0]
    return y


def pixel_positions(matrix: Tensor, shape: Sequence[int], offset: Sequence[int]) -> Tensor:
    """Positions ``[*shape, D]`` of the pixels ``offset + (0 ... shape-1)`` under ``matrix`` ``[D, D+1]`` (float64)."""
    axes = [torch.arange(n, dtype=matrix.dtype, device=matrix.device) + o for n, o in zip(shape, offset, strict=True)]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # [*shape, D]
    return carry(matrix, index)


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
    """The value of ``image`` ``[C, *S]`` at the end of each fixed pixel's path; returns ``[C, *shape]``.

    ``matrix`` ``[D, D+1]`` (always float64) maps the index of a fixed pixel to the start of its path in the moving frame: the
    fixed grid, then the inverse affine map. ``velocity`` is ``[T, D, *S_v]`` in moving-frame lengths per unit time, of the
    image's dtype.
    """
    ndim = matrix.shape[0]
    start = pixel_positions(matrix, shape, offset).reshape(-1, ndim)  # [N, D] float64
    end = flow_points(start, velocity.to(start.dtype), velocity_spacing, velocity_origin, n_steps, True)
    spacing = torch.as_tensor(image_spacing, dtype=end.dtype, device=end.device)
    origin = torch.as_tensor(image_origin, dtype=end.dtype, device=end.device)
    out = sample_image(image.to(end.dtype), (end - origin) / spacing)  # [C, N]
    return out.reshape(image.shape[0], *shape).to(image.dtype)


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
    background: float | None,
    after: Tensor | None = None,
) -> Tensor:
    """`warp` from a part of the image: ``image`` ``[C, *part]`` lies at ``image_offset`` in an image of ``image_shape``.

    Returns ``[C, *shape]`` in the image's dtype, integers rounded (ties to even) and clamped. Positions beyond the pixels of the
    whole image get ``background``, where it is not None. With ``after`` ``[D, D+1]`` the flow is followed towards the fixed image
    instead, and ``after`` then maps its end to the image's frame.
    """
    ndim = matrix.shape[0]
    start = pixel_positions(matrix, shape, offset).reshape(-1, ndim)  # [N, D] float64
    end = flow_points(start, velocity.to(start.dtype), velocity_spacing, velocity_origin, n_steps, after is None)
    if after is not None:
        end = carry(after, end)
    spacing, origin = (torch.as_tensor(v, dtype=end.dtype, device=end.device) for v in (image_spacing, image_origin))
    index = (end - origin) / spacing
    out = sample_part(image.to(end.dtype), index, image_shape, image_offset)  # [C, N]
    if background is not None:
        size = torch.as_tensor(image_shape, dtype=end.dtype, device=end.device)
        out = torch.where(((index >= -0.5) & (index <= size - 0.5)).all(dim=-1), out, background)
    if not image.dtype.is_floating_point:
        info = torch.iinfo(image.dtype)
        out = out.round().clamp(info.min, info.max)
    return out.reshape(image.shape[0], *shape).to(image.dtype)


def sample_part(image: Tensor, index: Tensor, image_shape: Sequence[int], image_offset: Sequence[int]) -> Tensor:
    """`sample_image` ``[C, N]`` where only the part ``image`` ``[C, *part]`` of an image, at ``image_offset``, is in memory.

    ``index`` ``[N, D]`` (float64) counts pixels of the whole image, whose border is continued; the result is rounded in the
    same way whatever part is given.
    """
    flat = image.reshape(image.shape[0], -1)  # [C, prod(part)]
    base, frac = [], []
    for d, n in enumerate(image_shape):
        x = index[..., d].nan_to_num(0.0).clamp(0, n - 1)
        i = x.floor().clamp(0, max(n - 2, 0))
        base.append(i.long() - image_offset[d])
        frac.append((x - i).to(image.dtype))
    out = image.new_zeros((image.shape[0], *index.shape[:-1]))
    for corner in itertools.product((0, 1), repeat=index.shape[-1]):
        address, weight = torch.zeros_like(base[0]), torch.ones_like(frac[0])
        for d, bit in enumerate(corner):
            n = image.shape[1 + d]
            address = address * n + (base[d] + bit).clamp(0, n - 1)
            weight = weight * (frac[d] if bit else 1 - frac[d])
        out = out + flat[:, address] * weight
    return out


def contrast(
    moving: Tensor,
    fixed: Tensor,
    weight: Tensor,
    velocity: Tensor,
    matrix: Tensor,
    image_spacing: Sequence[float],
    image_origin: Sequence[float],
    velocity_spacing: Sequence[float],
    velocity_origin: Sequence[float],
    n_steps: int,
    moving_scale: Tensor,
    fixed_scale: Tensor,
    order: int,
    ridge: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The residual of the best contrast map, its θ, and the residual's gradient in velocity and matrix; float64, by autograd.

    Shapes as in `regframe.ops.contrast`; returns the value ``[]``, θ ``[C_f, 1 + order * C_m]``, ``[T, D, *S_v]`` and
    ``[D, D+1]``.
    """
    velocity, matrix = velocity.detach(), matrix.detach()
    with torch.enable_grad():
        v = velocity.to(torch.float64).requires_grad_(True)
        m = matrix.clone().requires_grad_(True)
        shape = fixed.shape[1:]
        geometry = (image_spacing, image_origin, velocity_spacing, velocity_origin, n_steps)
        warped = warp(moving.to(torch.float64), v, m, shape, [0] * len(shape), *geometry)
        scales = [scale.to(matrix)[..., None] for scale in (*moving_scale, *fixed_scale)]  # 4 of [C, 1]
        x = (warped.reshape(warped.shape[0], -1) - scales[0]) / scales[1]  # [C_m, N]
        y = (fixed.to(torch.float64).reshape(fixed.shape[0], -1) - scales[2]) / scales[3]  # [C_f, N]
        w = weight.to(torch.float64).reshape(-1)
        w = w / w.sum().clamp(min=1e-30)
        phi = torch.cat([torch.ones_like(x[:1]), *(x**k for k in range(1, order + 1))])  # [P, N]
        penalty = torch.full((phi.shape[0],), ridge, dtype=phi.dtype, device=phi.device)
        penalty[0] = 1e-12  # keeps the system solvable where every weight is 0
        with torch.no_grad():
            gram = (phi * w) @ phi.T + torch.diag(penalty)
            theta = torch.linalg.solve(gram, (phi * w) @ y.T).T.contiguous()  # [C_f, P]
        squares = (w * (theta @ phi - y) ** 2).sum()
        value = (squares + ridge * theta[:, 1:].square().sum()) / y.shape[0]
        v_grad, m_grad = torch.autograd.grad(value, (v, m))
    return value.detach(), theta, v_grad.to(velocity.dtype), m_grad


def information(
    moving: Tensor,
    fixed: Tensor,
    weight: Tensor,
    velocity: Tensor,
    matrix: Tensor,
    image_spacing: Sequence[float],
    image_origin: Sequence[float],
    velocity_spacing: Sequence[float],
    velocity_origin: Sequence[float],
    n_steps: int,
    bins: int,
    normalized: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minus the mutual information of B-spline histograms, or two minus the normalised one, with its gradient in velocity and
    matrix; float64, by autograd.

    Shapes as in `regframe.ops.information`; returns the value ``[]``, ``[T, D, *S_v]`` and ``[D, D+1]``.
    """
    velocity, matrix = velocity.detach(), matrix.detach()
    with torch.enable_grad():
        v = velocity.to(torch.float64).requires_grad_(True)
        m = matrix.clone().requires_grad_(True)
        shape = fixed.shape[1:]
        geometry = (image_spacing, image_origin, velocity_spacing, velocity_origin, n_steps)
        warped = warp(moving.to(torch.float64), v, m, shape, [0] * len(shape), *geometry)
        w = weight.to(torch.float64).reshape(-1)
        total = w.sum().clamp(min=1e-30)
        pairs = [
            _information_of(histogram(x, y, w, bins) / total, normalized)
            for y in fixed.to(torch.float64).reshape(fixed.shape[0], -1)
            for x in warped.reshape(warped.shape[0], -1)
        ]
        value = torch.stack(pairs).mean()
        v_grad, m_grad = torch.autograd.grad(value, (v, m))
    return value.detach(), v_grad.to(velocity.dtype), m_grad


def histogram(moving: Tensor, fixed: Tensor, weight: Tensor, bins: int) -> Tensor:
    """Weights ``[bins, bins]`` (fixed, moving) of pixels ``[N]`` whose intensities run from 0 to 1 over the range of the bins.

    A pixel is shared out by a linear B-spline on the fixed and a cubic one on the moving side. Differentiable in ``moving``.
    """
    y, x = (a.nan_to_num(0.0).clamp(0, 1) * n for a, n in ((fixed, bins - 1), (moving, bins - 3)))
    row, column = (a.detach().floor().clamp(max=n - 1) for a, n in ((y, bins - 1), (x, bins - 3)))
    s, t = y - row, x - column
    cubic = ((1 - t) ** 3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6)
    out = torch.zeros(bins * bins, dtype=moving.dtype, device=moving.device)
    for a, along_fixed in enumerate((1 - s, s)):
        for b, along_moving in enumerate(cubic):
            at = ((row + a) * bins + column + b).long()
            out = out.index_add(0, at, weight * along_fixed * along_moving)
    return out.reshape(bins, bins)


def _information_of(p: Tensor, normalized: bool) -> Tensor:
    """Minus the mutual information of a joint histogram ``[bins, bins]`` of sum 1, or two minus the normalised one."""
    joint, of_fixed, of_moving = (
        torch.where(q > 0, q, torch.ones_like(q)).log()
        for q in (p, p.sum(dim=1, keepdim=True), p.sum(dim=0, keepdim=True))
    )
    entropy, margins = -(p * joint).sum(), -(p * (of_fixed + of_moving)).sum()
    if not normalized:
        return entropy - margins
    return 2 - margins / entropy if float(entropy.detach()) > 1e-12 else 0 * entropy + 1


def correlation(
    warped: Tensor, fixed: Tensor, weight: Tensor, radius: int, floor: float, signed: bool, gradient: bool
) -> tuple[Tensor, Tensor]:
    """One minus the squared correlation in a box around each pixel, or minus the correlation, in the weighted mean, with its
    gradient in the warped image; float64, by autograd.

    Shapes as in `regframe.ops.correlation`; returns the value ``[]`` and the gradient ``[C, *S]``, or ``[0]`` where it is not
    asked for.
    """
    with torch.enable_grad():
        data = warped.detach().to(torch.float64).requires_grad_(gradient)
        w = weight.detach().to(torch.float64)  # [*S]
        x, y = (torch.where(w != 0, side, 0.0) for side in (data, fixed.detach().to(torch.float64)))  # [C, *S]
        area = math.prod(2 * min(radius, n - 1) + 1 for n in w.shape)
        mass = box_sums(w[None], radius).clamp_min(1e-6 * area)  # [1, *S]
        mean_x, mean_y, xx, yy, xy = (box_sums(w * part, radius) / mass for part in (x, y, x * x, y * y, x * y))
        product = ((xx - mean_x**2).clamp(min=0) + floor) * ((yy - mean_y**2).clamp(min=0) + floor)
        covariance = xy - mean_x * mean_y
        r = covariance / product.sqrt() if signed else covariance**2 / product
        value = torch.where(w != 0, w * (1 - r), 0.0).sum() / (w.sum() * x.shape[0]).clamp_min(1e-30)
        found = torch.autograd.grad(value, data)[0].to(warped.dtype) if gradient else warped.new_empty(0)
    return value.detach(), found


def box_sums(values: Tensor, radius: int) -> Tensor:
    """Sums of ``[C, *S]`` over the ``2 radius + 1`` pixels per axis around each pixel; what is outside counts as 0."""
    for dim in range(1, values.ndim):
        reach = max(min(radius, values.shape[dim] - 1), 0)
        padding = [0, 0] * (values.ndim - 1 - dim) + [reach, reach]
        values = torch.nn.functional.pad(values, padding).unfold(dim, 2 * reach + 1, 1).sum(dim=-1)
    return values
