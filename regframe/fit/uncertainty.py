"""Standard deviation of every mapped position: the images hold it in place, the prior lets it move.

A Laplace approximation made local, with the sandwich estimator (Huber 1967; White 1982) in place of a noise model: the scatter of
the forces that the images exert on the map is measured block by block, because the residual is not white noise. In this module
"hold" is the curvature of the matching term (how steeply it rises with a displacement), "scatter" the squared force, both per
axis and pixel.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from ..data import Grid
from .energy import Energy
from .frames import Frame, Increment
from .likeness import fit_contrast
from .mapspace import MapSpace
from .velocity import VelocitySpace

Array = NDArray[np.float64]

BLOCK = 16
"""Side in pixels of the blocks whose forces are taken to be independent of each other."""
COUNTS = 0.2
"""Factor on the precision that two images give, without unit: interpolation and model errors are alike over many blocks.
Calibrated on ten pairs with known maps and checked on seven others (docs/method.md)."""
NEIGHBOURS = 2.0
"""Factor on the standard deviation between neighbouring sections, without unit: pieces of tissue move independently, and other
cells look alike. Calibrated on the landmarks of eight pairs of lung sections."""
FLOOR = 0.02
"""Least standard deviation per axis of a position in an image, in fixed pixels."""
COUNTS_POINTS = 0.6
"""Factor on the precision that points give a bend, without unit: the descent does not reach the exact minimum. Chosen on a
field of Xenium cells that is not in the table of docs/points.md."""
FLOOR_POINTS = 1e-3
"""Least standard deviation per axis of a position in a cloud, in fixed pixels: about the error that the descent leaves."""
MOST_BLOCKS = {2: 32, 3: 14}
"""Largest number of blocks along the longest side of a cloud's canvas, by dimension: their covariance is a dense matrix."""
RADIUS_90 = 2.146
"""Radius of the circle that holds 90 % of a 2D Gaussian, in standard deviations per axis: the square root of the 90 % quantile
of χ² with 2 degrees of freedom."""
RADIUS_90_3D = 2.500
"""Radius of the ball that holds 90 % of a 3D Gaussian, in standard deviations per axis: the square root of the 90 % quantile of
χ² with 3 degrees of freedom."""
LEAST_NOISE = 1e-5
"""Least variance of the residual, over the fixed image's: the value that `Energy` adds to every mismatch."""


def position_sd(energy: Energy, x: Tensor, sections: bool) -> Tensor:
    """Standard deviation per axis ``[*S_f]`` of the mapped position of each fixed pixel of a level, in fixed pixels.

    Args:
        energy: the energy that was minimised; its weights state what was seen.
        x: the variables at the minimum.
        sections: whether the two sides are neighbouring sections.
    """
    level, maps = energy.level, energy.maps
    grid = level.fixed_grid
    with torch.no_grad():
        predicted = fit_contrast(energy.warp(x, level.moving, level.moving_grid), level.fixed, energy.weight)
        hold, scatter = forces(predicted, level.fixed, energy.weight, grid)
    blocks = blocks_of(grid)
    pixels = math.prod(min(BLOCK, n) for n in grid.shape)
    share = hold.clip(min=0.0) / max(float(hold.mean()), 1e-30)
    variance = affine_variance(pixels * precision(hold.mean(), scatter.mean()) * share, blocks, maps.increment)
    if maps.space is not None:
        reach = [maps.space.scale * maps.zoom / s for s in blocks.spacing]
        # beyond the canvas nothing is seen
        near = [gaussian_filter(a, reach, mode="constant", truncate=3.0) for a in (hold, scatter)]
        rho = precision(*near) / math.prod(grid.spacing)  # per squared length and area of the fixed frame
        zoom = maps.zoom
        variance = variance + zoom**2 * bending_variance(rho * zoom ** (2 + grid.ndim), maps.space)
    if sections:
        variance = variance * NEIGHBOURS**2
    return (on_pixels(variance, grid) + FLOOR**2).sqrt().to(torch.float32)


def position_sd_of_points(
    places: Array,
    pull: Array,
    hold: Array,
    fixed: Grid,
    maps: MapSpace,
    reach: float,
    onto: Grid,
) -> Tensor:
    """Standard deviation per axis ``[*S]`` of the positions mapped by a fit to points, in fixed pixels.

    Like `position_sd` for images, but from the quantities of an EM fit of a Gaussian mixture. With ``w_ji`` the posterior
    probability of the pair of fixed point ``y_j`` and moving point ``x_i``, and ``r_ji = y_j - Φ(x_i)``, the score (pull) of a
    fixed point is ``Σ_i w_ji r_ji / σ²``. Its information is that of all its possible partners, minus what is missing because
    the partner is not known (Louis 1982, eq. 3.2)::

        Σ_i w_ji / σ² - ( Σ_i w_ji |r_ji|² - |Σ_i w_ji r_ji|² ) / (D σ⁴)

    ``H`` is the sum of the informations and ``S`` the sum of the squared pulls (block by block) over a neighbourhood of the
    size over which the regulariser couples positions. The precision is ``H² / S``; for partners that are certain it is the
    squared effective number of matches over the sum of squared residuals. Each block of the neighbourhood gets a share of it
    in proportion to its own ``H``, and the prior spreads the evidence of the blocks (`posterior_variance`).

    Args:
        places: the fixed points ``[M, D]`` that the fit looked at, in their frame.
        pull: the pull of each ``[M, D]``, per fixed pixel.
        hold: the information of each ``[M]``, per squared fixed pixel.
        fixed: the canvas of the fixed side, physical.
        maps: the fitted space of maps: affine part, and prior of the bend where there is one.
        reach: standard deviation of the neighbourhood, in fixed pixels.
        onto: grid of the fixed side at whose pixels the figure is wanted, physical.
    """
    ndim, frame = fixed.ndim, Frame.of(fixed)
    canvas = frame.grid(fixed)
    width = max(reach / 2, max(canvas.extent) / MOST_BLOCKS[ndim])
    shape = tuple(max(1, math.ceil(e / width)) for e in canvas.extent)
    blocks = Grid(shape, (width,) * ndim, tuple(-(n - 1) / 2 * width for n in shape))
    index = np.rint((places - np.array(blocks.origin)) / width).astype(np.intp).clip(0, np.array(shape) - 1)
    flat = np.ravel_multi_index(tuple(index.T), shape)
    count = math.prod(shape)
    held = np.bincount(flat, hold, minlength=count).clip(min=0.0).reshape(shape)
    sums = [np.bincount(flat, pull[:, d], minlength=count) for d in range(ndim)]
    scatter = (np.square(sums).sum(axis=0) / ndim).reshape(shape)
    rows = len(places)
    tiny = 1e-12 * max(float(held.max()), 1e-300)

    def precise(h: Array, s: Array) -> Array:
        out: Array = np.maximum(h, 0.0) ** 2 / np.maximum(s, tiny)
        return out

    share = held / max(float(held.mean()), 1e-300)
    evidence = (
        precise(held.mean(), scatter.mean()) * max(rows - maps.increment.size / ndim, 1.0) / rows
    )  # precision [nats per squared fixed pixel], corrected for the degrees of freedom that the fit used up
    variance = affine_variance(evidence * share, blocks, maps.increment)
    space, zoom = maps.space, maps.zoom
    if space is not None:
        near = [gaussian_filter(a, reach / width, mode="constant", truncate=3.0) for a in (held, scatter)]
        evidence = (
            COUNTS_POINTS * held * near[0] / np.maximum(near[1], tiny)
        )  # as firm as its neighbourhood, as much as its own points
        variance = variance + posterior_variance(
            evidence, blocks, space.scale * zoom, space.order, space.deviation * zoom
        )
    at = (frame.grid(onto).coords().numpy() - np.array(blocks.origin)) / width
    drawn = map_coordinates(np.sqrt(variance), np.moveaxis(at, -1, 0), order=1, mode="nearest")
    return torch.from_numpy(np.sqrt(drawn**2 + FLOOR_POINTS**2)).to(torch.float32)


def blocks_of(grid: Grid) -> Grid:
    """The grid of the blocks of `BLOCK` pixels that cover ``grid``, the last ones reaching beyond it."""
    sizes = [min(BLOCK, n) for n in grid.shape]
    return Grid(
        tuple(-(-n // b) for n, b in zip(grid.shape, sizes, strict=True)),
        tuple(s * b for s, b in zip(grid.spacing, sizes, strict=True)),
        tuple(o + s * (b - 1) / 2 for o, s, b in zip(grid.origin, grid.spacing, sizes, strict=True)),
        grid.unit,
    )


def forces(predicted: Tensor, fixed: Tensor, weight: Tensor, grid: Grid) -> tuple[Array, Array]:
    """Per block of pixels ``[*B]``, axis and pixel: how steeply the squared residual rises when the image is moved there, and
    the variance of its slope, the force: the squared sum of a block stands for all correlations shorter than it.

    The former is the product of both sides' gradients, in which the noise of neither counts; it may come out negative where
    there is little else.

    Args:
        predicted: the contrast-mapped moving image ``[C, *S]``.
        fixed: ``[C, *S]``.
        weight: ``[*S]``.
        grid: of all three.
    """
    sizes = [min(BLOCK, n) for n in grid.shape]
    pad = [v for n, b in zip(reversed(grid.shape), reversed(sizes), strict=True) for v in (0, -n % b)]
    split = [m for n, b in zip(grid.shape, sizes, strict=True) for m in (-(-n // b), b)]
    within = tuple(range(1, 2 * grid.ndim, 2))

    def summed(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, pad).reshape(split).sum(dim=within)

    pixels, residual = math.prod(sizes), fixed - predicted
    square, scatter = torch.zeros_like(weight), weight.new_zeros(blocks_of(grid).shape)
    for d, (n, spacing) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
        if n > 2:
            step, other = (
                (side.narrow(1 + d, 2, n - 2) - side.narrow(1 + d, 0, n - 2)) / (2 * spacing)
                for side in (predicted, fixed)
            )
            square.narrow(d, 1, n - 2).add_((step * other).mean(dim=0))
            force = torch.zeros_like(weight)
            force.narrow(d, 1, n - 2).copy_((step * residual.narrow(1 + d, 1, n - 2)).mean(dim=0))
            scatter += summed(force * weight).square()
    hold = summed(square * weight) / (pixels * grid.ndim)
    found = (hold, scatter / (pixels * grid.ndim))  # from here on the host: filters of scipy, a few blocks
    return found[0].cpu().numpy().astype(np.float64), found[1].cpu().numpy().astype(np.float64)


def precision(hold: Array, scatter: Array) -> Array:
    """Precision per axis and pixel that the images give a displacement: the sandwich ``hold² / scatter``, times `COUNTS`."""
    hold = np.maximum(hold, 0.0)
    out: Array = COUNTS * hold**2 / np.maximum(np.maximum(scatter, LEAST_NOISE * hold), 1e-30)
    return out


def affine_variance(rho: Array, blocks: Grid, increment: Increment) -> Array:
    """Variance per axis ``[*B]`` that remains in the affine parameters, from their Gauss–Newton Hessian ``Σ ρ Jᵀ J``.

    Each parameter has a prior standard deviation of half the canvas, which keeps the Hessian invertible.

    Args:
        rho: precision ``[*B]`` of each block.
        blocks: grid of the blocks, in the fixed frame.
        increment: the affine parameters that were fitted.
    """
    ndim = blocks.ndim
    with torch.enable_grad():
        at = torch.zeros(increment.size, dtype=torch.float64)
        derivative = torch.autograd.functional.jacobian(increment.matrix, at)[:ndim]  # type: ignore[no-untyped-call]
    ones = torch.ones((*blocks.shape, 1), dtype=torch.float64)
    where = torch.cat([blocks.coords(), ones], dim=-1).reshape(-1, ndim + 1)
    weighted = where * torch.from_numpy(rho).reshape(-1, 1)
    hessian = torch.einsum("djk,jl,dlm->km", derivative, where.T @ weighted, derivative)
    hessian = hessian + torch.eye(increment.size, dtype=torch.float64) / increment.radius**2
    spread = torch.einsum("djk,km,dlm->jl", derivative, torch.linalg.inv(hessian), derivative) / ndim
    out: Array = ((where @ spread) * where).sum(dim=1).reshape(blocks.shape).numpy()
    return out


def bending_variance(density: Array, space: VelocitySpace) -> Array:
    """Variance per axis of the bend, in squared moving pixels, that remains after the evidence.

    Where evidence is spread evenly, with precision ``ρ`` per area, each wave of the prior (variance ``λ_k``, area of its period
    ``A``) keeps ``λ_k / (1 + ρ A λ_k)``. The sum over all waves is tabulated over ``log ρ`` and interpolated.

    Args:
        density: ``ρ``, per squared moving pixel and area of the moving frame.
        space: the prior.
    """
    area = math.prod(n * s for n, s in zip(space.waves.shape, space.waves.spacing, strict=True))
    scale = math.prod(space.waves.shape) * space.n_slices
    space = space.on("cpu")
    prior = (space.symbol.to(torch.float64).square() / scale).numpy()  # λ_k
    copies = np.broadcast_to(space.multiplicity.numpy(), prior.shape)
    logs = np.linspace(-16.0, 24.0, 81) - math.log(area * space.deviation**2)
    table = [float((copies * prior / (1 + math.exp(t) * area * prior)).sum()) for t in logs]
    out: Array = np.exp(np.interp(np.log(np.maximum(density, 1e-300)), logs, np.log(np.maximum(table, 1e-300))))
    return out


def posterior_variance(rho: Array, blocks: Grid, scale: float, order: float, deviation: float) -> Array:
    """Variance per axis ``[*B]`` of the bend that remains after evidence in blocks, holes and rims included.

    It is the posterior variance of a Gaussian process (Rasmussen & Williams 2006, eq. 2.26) with the covariance whose spectrum
    is the prior's, ``(1 + a²k²)^(-2p)``: a Matérn covariance of smoothness ``ν = 2p - D/2`` (there, eq. 4.14)::

        k(r) = deviation² 2^(1-ν) / Γ(ν) (r/a)^ν K_ν(r/a)

    Args:
        rho: precision ``[*B]`` per axis of each block, 0 where nothing was seen.
        blocks: grid of the blocks, at most a few thousand.
        scale: a, in the length unit of ``blocks``.
        order: p.
        deviation: prior standard deviation of a displacement, in that length unit.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.spatial.distance import cdist
    from scipy.special import gamma, kv

    where = blocks.coords().reshape(-1, blocks.ndim).numpy()
    known = rho.reshape(-1) > 1e-6 * max(float(rho.max()), 1e-300)
    nu = max(2 * order - blocks.ndim / 2, 0.5)

    def covariance(one: Array, other: Array) -> Array:
        r = np.maximum(cdist(one, other) / scale, 1e-6)
        out: Array = deviation**2 * 2 ** (1 - nu) / gamma(nu) * r**nu * kv(nu, r)
        return out

    prior = np.full(len(where), deviation**2)
    if known.any():
        seen = covariance(where[known], where[known])
        seen[np.diag_indices_from(seen)] = deviation**2 * (1 + 1e-9) + 1 / rho.reshape(-1)[known]
        half = solve_triangular(cholesky(seen, lower=True), covariance(where[known], where), lower=True)
        prior = np.maximum(prior - np.square(half).sum(axis=0), 0.0)
    out: Array = prior.reshape(blocks.shape)
    return out


def radius_90(ndim: int) -> float:
    """Factor from a standard deviation per axis to the radius that holds 90 % of the positions."""
    return RADIUS_90_3D if ndim == 3 else RADIUS_90


def on_pixels(values: Array, grid: Grid) -> Tensor:
    """Values of blocks ``[*B]``, interpolated linearly between the blocks' middles to pixels ``[*S]``."""
    sizes = [min(BLOCK, n) for n in grid.shape]
    whole = [b * n for b, n in zip(sizes, values.shape, strict=True)]
    mode = "bilinear" if grid.ndim == 2 else "trilinear"
    fine = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=whole, mode=mode)[0, 0]
    return fine[tuple(slice(0, n) for n in grid.shape)]
