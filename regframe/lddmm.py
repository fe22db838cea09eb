"""The energy of METHOD.md: Sobolev-smooth velocity, affine map, matching term, EM weights, landmark term.

Everything here lives in two normalised frames, so that nothing depends on a data set's unit: lengths of the moving side in
moving pixels about the middle of its canvas, lengths of the fixed side in fixed pixels about the middle of its own.

Sources: Beg et al. 2005 (LDDMM); Tward et al. 2020 (contrast maps and EM weights); Clifton et al. 2023 (both for spatial
transcriptomics).
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from . import ops, reference
from .data import Grid, Image
from .maps import homogeneous
from .maps.affine import Affine
from .maps.base import Transform
from .maps.flow import Flow
from .maps.sequence import Sequence as Chain

CORRELATION_LIMIT = 30.0
"""Pixels one independent observation may at most stand for, when the residual is smooth."""

SHARPEST = 0.1
"""Narrowest noise the classes are told apart with, in standard deviations of the fixed image: with less, every small misfit
of a good fit would count as an artefact."""


class ImageMetric(Protocol):
    """What the energy asks of a metric (see `regframe.contracts.Metric`)."""

    likelihood: ClassVar[bool]

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mismatch, a scalar."""
        ...

    def fused(
        self, path: ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Mismatch and its gradients in the path's velocity and matrix, or None."""
        ...


@dataclass(frozen=True)
class Frame:
    """A normalised frame: ``x_n = (x - center) / length``."""

    center: tuple[float, ...]
    length: float

    @classmethod
    def of(cls, grid: Grid) -> Frame:
        """The frame of one side: pixels about the middle of its canvas."""
        return cls(grid.center, grid.pixel)

    def matrix(self) -> Tensor:
        """Homogeneous matrix ``[D+1, D+1]`` (float64) from physical to normalised positions."""
        ndim = len(self.center)
        out = torch.eye(ndim + 1, dtype=torch.float64) / self.length
        out[:-1, -1] = -torch.tensor(self.center, dtype=torch.float64) / self.length
        out[-1, -1] = 1.0
        return out

    def grid(self, grid: Grid) -> Grid:
        """``grid`` expressed in this frame."""
        spacing = tuple(s / self.length for s in grid.spacing)
        if grid.center == self.center:  # from the shape alone: the same to the last bit in every unit
            return Grid(grid.shape, spacing, tuple(-s * (n - 1) / 2 for s, n in zip(spacing, grid.shape, strict=True)))
        origin = tuple((o - c) / self.length for o, c in zip(grid.origin, self.center, strict=True))
        return Grid(grid.shape, spacing, origin)


class Increment:
    """Group increments ``H(q)`` of the fixed frame, scaled so that a unit of ``q`` moves the canvas' rim by one pixel.

    The inverse affine map is ``B(q) = B_0 H(q)``: rigid, similarity or affine increments keep ``B`` in their class when
    ``B_0`` is in it.

    Args:
        kind: ``rigid``, ``similarity`` or ``affine``, or ``still``, which has no variables.
        ndim: 2 or 3.
        radius: half the extent of the fixed canvas, in fixed pixels.
    """

    def __init__(self, kind: str, ndim: int, radius: float) -> None:
        self.kind, self.ndim, self.radius = kind, ndim, radius
        turns = ndim * (ndim - 1) // 2
        self.size = {"still": 0, "rigid": ndim + turns, "similarity": ndim + turns + 1, "affine": ndim + ndim * ndim}[
            kind
        ]

    def matrix(self, q: Tensor) -> Tensor:
        """``H(q)`` ``[D+1, D+1]`` (float64) of ``q`` ``[K]``; differentiable."""
        ndim = self.ndim
        if self.kind == "still":
            return torch.eye(ndim + 1, dtype=torch.float64)
        q = q.to(torch.float64)
        linear = q[ndim:] / self.radius
        if self.kind == "affine":
            block = torch.eye(ndim, dtype=torch.float64) + linear.reshape(ndim, ndim)
        else:
            upper = torch.triu_indices(ndim, ndim, offset=1)
            turns = upper.shape[1]
            skew = torch.zeros((ndim, ndim), dtype=torch.float64).index_put((upper[0], upper[1]), linear[:turns])
            block = torch.linalg.matrix_exp(skew - skew.T)
            if self.kind == "similarity":
                block = block * torch.exp(linear[turns])
        top = torch.cat([block, q[:ndim, None]], dim=1)  # [D, D+1]
        last = torch.zeros((1, ndim + 1), dtype=torch.float64)
        last[0, -1] = 1.0
        return torch.cat([top, last])

    def gradient(self, q: Tensor, gradient: Tensor) -> Tensor:
        """The gradient in ``q`` ``[K]`` of what has the gradient ``[D+1, D+1]`` in ``H(q)``."""
        ndim = self.ndim
        if self.kind == "still":
            return torch.zeros(0, dtype=torch.float64)
        if self.kind == "affine":  # linear in q
            return torch.cat([gradient[:ndim, ndim], gradient[:ndim, :ndim].reshape(-1) / self.radius])
        with torch.enable_grad():
            at = q.detach().to(torch.float64).requires_grad_(True)
            return torch.autograd.grad((self.matrix(at) * gradient).sum(), at)[0]


def smooth_size(n: int) -> int:
    """The smallest integer ≥ ``n`` whose prime factors are 2, 3 and 5: the sizes the FFT is fast on."""
    while True:
        m = n
        for p in (2, 3, 5):
            while m % p == 0:
                m //= p
        if m == 1:
            return n
        n += 1


class VelocitySpace:
    """Velocities ``v = σ L⁻¹ u`` on a periodic grid of the moving frame, whitened: ``|u|²/2`` is the regulariser.

    ``L = (id - a²Δ)^p`` is diagonal in the Fourier basis, and so are the variables: ``u`` holds the Fourier coefficients
    of every wave that the nodes of ``waves`` can tell apart, weighted such that ``|u|²`` is the sum of squares over the nodes.
    ``grid`` may be several times finer: between the nodes of ``waves`` the velocity then is the waves, not their chords.

    ``σ`` is set such that the prior standard deviation of the displacement at a point is ``deviation`` moving pixels: with
    white ``u`` the variance of ``Σ_t h v_t`` is ``σ² K(0)``.

    Args:
        waves: nodes, in the moving frame, that the waves are counted on.
        n_slices: T.
        n_steps: Euler steps, a multiple of T.
        scale: a, in moving pixels.
        order: p.
        deviation: in moving pixels.
        finer: nodes of ``grid`` per node of ``waves`` and axis.
        stiff: symmetric matrix ``[D, D]`` that velocities are multiplied by, which makes ``deviation`` smaller along some
            directions; None where all are alike.
    """

    def __init__(
        self,
        waves: Grid,
        n_slices: int,
        n_steps: int,
        scale: float,
        order: float,
        deviation: float,
        finer: int = 1,
        stiff: Tensor | None = None,
    ) -> None:
        self.stiff = None if stiff is None else stiff.to(torch.float32)
        self.waves, self.n_slices, self.n_steps = waves, n_slices, n_steps
        self.scale, self.order, self.deviation = scale, order, deviation
        ndim = waves.ndim
        self._kept = [(n - 1) // 2 for n in waves.shape]  # highest frequency: one at the limit has no phase of its own
        laplacian = torch.zeros((1,) * ndim, dtype=torch.float64)  # symbol of -Δ on the frequencies kept
        for d, (n, spacing, kept) in enumerate(zip(waves.shape, waves.spacing, self._kept, strict=True)):
            k = torch.arange(kept + 1, dtype=torch.float64)
            if d < ndim - 1:
                k = torch.cat([k, k[1:].flip(0)])  # 0 ... kept, -kept ... -1
            symbol = 2 * (1 - torch.cos(2 * math.pi * k / n)) / spacing**2
            laplacian = laplacian + symbol.reshape([-1 if i == d else 1 for i in range(ndim)])
        inverse = (1 + scale**2 * laplacian) ** (-order)  # symbol of L⁻¹
        # half a spectrum stands for the whole: every column but the first counts twice
        twice = torch.full((self._kept[-1] + 1,), 2.0, dtype=torch.float64)
        twice[0] = 1.0
        self._columns = twice.sqrt().to(torch.float32)
        k0 = float((inverse**2 * twice).sum()) / math.prod(waves.shape)  # K's kernel at 0, times the cell
        self.symbol = (inverse * deviation / math.sqrt(k0) * math.sqrt(n_slices)).to(torch.float32)
        self.shape = (n_slices, ndim, *self.symbol.shape)
        self.size = 2 * math.prod(self.shape)
        self._set_finer(finer)

    @property
    def multiplicity(self) -> Tensor:
        """How many waves ``[K]`` each of the last axis' coefficients stands for: half a spectrum stands for the whole."""
        return self._columns.square()

    def _set_finer(self, finer: int) -> None:
        waves = self.waves
        self.grid = Grid(
            tuple(n * finer if n > 1 else 1 for n in waves.shape),
            tuple(s / finer if n > 1 else s for n, s in zip(waves.shape, waves.spacing, strict=True)),
            waves.origin,
        )

    def with_finer(self, finer: int) -> VelocitySpace:
        """The same velocities on a grid of ``finer`` times as many nodes per axis as ``waves``."""
        out = copy.copy(self)
        out._set_finer(finer)
        return out

    def with_deviation(self, deviation: float) -> VelocitySpace:
        """The same space with another prior deviation, in moving pixels."""
        out = copy.copy(self)
        out.symbol, out.deviation = self.symbol * (deviation / self.deviation), deviation
        return out

    def with_steps(self, n_steps: int) -> VelocitySpace:
        """The same space integrated in another number of steps."""
        out = copy.copy(self)
        out.n_steps = n_steps
        return out

    def steep(self, u: Tensor) -> float:
        """Largest component of ``h dv/dX`` between neighbouring nodes: the Euler steps are invertible while it is < 1/D."""
        velocity = self.velocity(u) / self.n_steps
        most = 0.0
        for d, spacing in enumerate(self.grid.spacing):
            if self.grid.shape[d] > 1:
                most = max(most, float(velocity.diff(dim=2 + d).abs().amax()) / spacing)
        return most

    def velocity(self, u: Tensor) -> Tensor:
        """``v`` ``[T, D, *S]`` (moving pixels per unit time) of whitened ``u`` ``[P]``; linear, differentiable."""
        if u.storage_offset() % 2 == 1:  # a complex number may not start anywhere
            u = u.clone()
        scale = self.symbol / (self._columns * math.sqrt(math.prod(self.waves.shape)))
        spectrum = torch.view_as_complex(u.reshape(*self.shape, 2)) * scale
        # one axis after the other, so that frequencies that are not kept are not transformed either
        for d, (n, kept) in enumerate(zip(self.grid.shape[:-1], self._kept[:-1], strict=True)):
            gap = list(spectrum.shape)
            gap[2 + d] = n - 2 * kept - 1
            low, high = spectrum.narrow(2 + d, 0, kept + 1), spectrum.narrow(2 + d, kept + 1, kept)
            spectrum = torch.fft.ifft(
                torch.cat([low, spectrum.new_zeros(gap), high], dim=2 + d), dim=2 + d, norm="forward"
            )
        velocity: Tensor = torch.fft.irfft(spectrum, n=self.grid.shape[-1], dim=-1, norm="forward")
        return velocity if self.stiff is None else torch.einsum("ij,tj...->ti...", self.stiff, velocity)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """From the gradient of ``v`` ``[T, D, *S]`` to that of ``u`` ``[P]``: the transpose of `velocity`."""
        if self.stiff is not None:
            gradient = torch.einsum("ij,tj...->ti...", self.stiff, gradient)
        spectrum = torch.fft.rfft(gradient, dim=-1)[..., : self._kept[-1] + 1]
        for d in reversed(range(self.grid.ndim - 1)):
            n, kept = self.grid.shape[d], self._kept[d]
            spectrum = torch.fft.fft(spectrum, dim=2 + d)
            spectrum = torch.cat(
                [spectrum.narrow(2 + d, 0, kept + 1), spectrum.narrow(2 + d, n - kept, kept)], dim=2 + d
            )
        spectrum = spectrum * (self.symbol * self._columns / math.sqrt(math.prod(self.waves.shape)))
        return torch.view_as_real(spectrum).reshape(-1)


def physical_maps(
    pullback: Tensor, space: VelocitySpace | None, velocity: Tensor | None, fixed: Grid, moving: Grid
) -> tuple[Affine, Transform]:
    """The affine part and ``Φ`` in physical units.

    Args:
        pullback: inverse affine map ``[D+1, D+1]`` of the normalised frames.
        space: what the velocity belongs to, or None for an affine map.
        velocity: ``[T, D, *S]`` in moving pixels, or None.
        fixed: the fixed canvas.
        moving: the moving canvas.
    """
    to_fixed, to_moving = Frame.of(fixed).matrix(), Frame.of(moving).matrix()
    matrix = homogeneous.compose(homogeneous.inverse(to_fixed), homogeneous.inverse(pullback), to_moving)
    affine = Affine(matrix, moving.unit, fixed.unit)
    if space is None or velocity is None:
        return affine, affine
    nodes, length = space.grid, moving.pixel
    grid = Grid(
        nodes.shape,
        tuple(s * length for s in nodes.spacing),
        tuple(o * length + c for o, c in zip(nodes.origin, moving.center, strict=True)),
        moving.unit,
    )
    return affine, Chain((Flow((velocity * length).to(torch.float32), grid, space.n_steps), affine))


@dataclass
class Level:
    """One pyramid level: both sides at a resolution, with the grids in their normalised frames.

    Args:
        fixed: ``[C_f, *S_f]`` float32.
        moving: ``[C_m, *S_m]`` float32.
        fixed_grid: in the fixed frame.
        moving_grid: in the moving frame.
        fixed_weight: ``[*S_f]`` in 0 … 1, the fixed side's own mask.
        moving_weight: ``[*S_m]`` or None where every moving pixel counts.
    """

    fixed: Tensor
    moving: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    fixed_weight: Tensor
    moving_weight: Tensor | None

    @functools.cached_property
    def trusted(self) -> Tensor:
        """``[1, *S_m]``: the moving side's mask, 0 on its border pixels, which stand for everything beyond."""
        out = torch.ones(self.moving_grid.shape, dtype=torch.float32)
        if self.moving_weight is not None:
            out = self.moving_weight.clone()
        for d, n in enumerate(self.moving_grid.shape):
            if n > 2:
                out.narrow(d, 0, 1).zero_()
                out.narrow(d, n - 1, 1).zero_()
        return out[None]

    @property
    def work(self) -> int:
        """Values one evaluation handles: pixels times channels of the larger side."""
        return max(self.fixed.numel(), self.moving.numel())


class Energy:
    """``E(q, u)`` of one level and its gradient: matching term, regulariser and landmark term.

    With ``m`` the metric's value (mean mismatch per unit weight) and ``N`` the number of independent observations, the
    matching term is ``N m / 2σ_M²`` where σ_M is given, and otherwise ``N/2 log m``: the same Gaussian log-likelihood with
    σ_M² at its estimate ``m`` for every candidate, which needs no setting and no schedule. A metric that is a mean
    negative log-likelihood already counts as ``N m``.

    Args:
        level: the images.
        metric: the similarity.
        increment: parametrisation of the affine part.
        start: ``B_0`` ``[D+1, D+1]``, inverse affine map of the normalised frames (fixed → moving).
        space: velocities, or None for an affine map.
        weight: ``[*S_f]`` matching probability times masks and overlap, constant while this energy is minimised.
        observations: N.
        sigma_match: σ_M in standard deviations of the fixed channels, or None.
        landmarks: moving and fixed positions ``[M, D]`` in their frames and σ_P in fixed pixels, or None.
    """

    def __init__(
        self,
        level: Level,
        metric: ImageMetric,
        increment: Increment,
        start: Tensor,
        space: VelocitySpace | None,
        weight: Tensor,
        observations: float,
        sigma_match: float | None = None,
        landmarks: tuple[Tensor, Tensor, float] | None = None,
    ) -> None:
        self.level, self.metric, self.increment, self.start, self.space = level, metric, increment, start, space
        self.weight, self.observations, self.sigma_match, self.landmarks = weight, observations, sigma_match, landmarks
        self.n_evaluations = 0
        self.parts: dict[str, float] = {}
        ndim = level.fixed_grid.ndim
        self._index = level.fixed_grid.index_to_position()
        self._rim = level.fixed_grid.corners()
        self._still = torch.zeros((1, ndim, *(1,) * ndim), dtype=torch.float32)
        # one fixed pixel of this level in full-resolution pixels, and what a moving pixel measures in them
        self._pixel = level.fixed_grid.pixel
        self.zoom = float(homogeneous.determinant(start).abs()) ** (-1 / ndim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``q`` ``[K]`` and ``u`` ``[P]`` of the variables ``x``."""
        k = self.increment.size
        return x[:k], (x[k:] if self.space is not None else None)

    def pullback(self, q: Tensor) -> Tensor:
        """``B(q)`` ``[D+1, D+1]``, fixed frame → moving frame."""
        return homogeneous.compose(self.start, self.increment.matrix(q))

    def path(self, x: Tensor, grid: Grid) -> ops.Path:
        """How the level's fixed pixels reach an image on the moving frame's ``grid``."""
        q, u = self.split(x)
        ndim = self.level.fixed_grid.ndim
        matrix = homogeneous.compose(self.pullback(q), self._index)[:ndim]
        if self.space is None or u is None:
            velocity, v_grid, n_steps = self._still, Grid((1,) * ndim), 1
        else:
            velocity, v_grid, n_steps = self.space.velocity(u), self.space.grid, self.space.n_steps
        return ops.Path(
            velocity, matrix, self.level.fixed_grid.shape, (0,) * ndim,
            grid.spacing, grid.origin, v_grid.spacing, v_grid.origin, n_steps,
        )  # fmt: skip

    def warp(self, x: Tensor, image: Tensor, grid: Grid) -> Tensor:
        """``image`` ``[C, *S_m]`` of the moving frame's ``grid`` on the level's fixed grid, ``[C, *S_f]``."""
        return ops.warp(image, *self.path(x, grid))

    def positions(self, x: Tensor) -> Tensor:
        """Moving-frame position of every fixed pixel, ``[*S_f, D]`` float32."""
        q, u = self.split(x)
        at = reference.carry(self.pullback(q), self.level.fixed_grid.coords())
        if self.space is None or u is None:
            return at.to(torch.float32)
        grid = self.space.grid
        flat = at.reshape(-1, grid.ndim).to(torch.float32)
        end = ops.flow_points(flat, self.space.velocity(u), grid.spacing, grid.origin, self.space.n_steps, True)
        return end.reshape(at.shape)

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        x = x.detach()
        q, u = self.split(x)
        level = self.level
        path = self.path(x, level.moving_grid)
        mismatch, v_grad, m_grad = self._mismatch(path)
        # the matching term and its derivative in the mismatch
        if self.metric.likelihood:
            slope = self.observations
            matching = slope * mismatch
        elif self.sigma_match is not None:
            slope = self.observations / (2 * self.sigma_match**2)
            matching = slope * mismatch
        else:
            floored = max(mismatch, 0.0) + 1e-5
            slope = self.observations / 2 / floored
            matching = self.observations / 2 * math.log(floored) if math.isfinite(floored) else math.nan
        gradient = torch.empty_like(x)
        # the matrix is start · H(q) · index: from its gradient to that of H
        ndim = level.fixed_grid.ndim
        h_grad = homogeneous.compose(self.start[:ndim].T, slope * m_grad, self._index.T)
        gradient[: q.shape[0]] = self.increment.gradient(q, h_grad)
        regularizer = 0.0
        if u is not None and self.space is not None:
            regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
            torch.add(u, self.space.adjoint(v_grad), alpha=slope, out=gradient[q.shape[0] :])
        pairs = 0.0
        if self.landmarks is not None:
            with torch.enable_grad():
                at = x.requires_grad_(True)
                term = self._landmark_term(*self.split(at))
                gradient += torch.autograd.grad(term, at)[0]
            pairs = float(term.detach())
        self.parts = {"mismatch": mismatch, "matching": matching, "regularizer": regularizer, "landmarks": pairs}
        return matching + regularizer + pairs, gradient

    def _mismatch(self, path: ops.Path) -> tuple[float, Tensor, Tensor]:
        """The metric's value and its gradients in velocity and matrix: from its own kernel, or else through `ops.warp`."""
        level = self.level
        fused = self.metric.fused(path, level.moving, level.fixed, self.weight)
        if fused is not None:
            value, v_grad, m_grad = fused
            return float(value), v_grad, m_grad
        with torch.enable_grad():
            velocity, matrix = path.velocity.detach().requires_grad_(True), path.matrix.detach().requires_grad_(True)
            warped = ops.warp(level.moving, *path._replace(velocity=velocity, matrix=matrix))
            mismatch = self.metric(warped, level.fixed, self.weight)
            v_grad, m_grad = torch.autograd.grad(mismatch, (velocity, matrix))
        return float(mismatch.detach()), v_grad, m_grad

    def _landmark_term(self, q: Tensor, u: Tensor | None) -> Tensor:
        assert self.landmarks is not None
        p, target, sigma = self.landmarks
        if self.space is not None and u is not None:
            grid = self.space.grid
            velocity = self.space.velocity(u).to(torch.float64)
            p = ops.flow_points(p, velocity, grid.spacing, grid.origin, self.space.n_steps, False)
        mapped = reference.carry(homogeneous.inverse(self.pullback(q)), p)
        return torch.as_tensor(((mapped - target) ** 2).sum() / (2 * sigma**2))

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a fixed pixel, to first order, in pixels of the level."""
        q, u = self.split(change)
        ndim = self.level.fixed_grid.ndim
        step = self.increment.matrix(q) - torch.eye(ndim + 1, dtype=torch.float64)
        moved = float(reference.carry(step, self._rim).square().sum(dim=-1).amax().sqrt())
        if self.space is not None and u is not None:
            displacement = self.space.with_finer(1).velocity(u).mean(dim=0)  # [D, *S]
            moved += self.zoom * float(displacement.square_().sum(dim=0).amax().sqrt())
        return moved / self._pixel

    def overlap(self, x: Tensor) -> Tensor:
        """Weight ``[*S_f]`` of fixed pixels that map onto trusted moving pixels, fading over the border pixel."""
        level = self.level
        return level.fixed_weight * self.warp(x, level.trusted, level.moving_grid)[0]


class Preconditioner:
    """A symmetric linear change of variables ``x = P z`` in which the energy is about equally curved along all of them.

    The matching term curves the energy by ``N |∇f|² / m`` per squared pixel of displacement. Against the prior that is
    nothing for the finest waves and everything for the coarsest, whose variables are therefore scaled down, each by the
    square root of its own curvature.

    Args:
        increment: parametrisation of the affine part.
        space: velocities.
        canvas: how many nodes of its grid of waves lie on the moving canvas.
        curvature_q: of the energy, per squared fixed pixel of displacement of the whole canvas.
        curvature_u: the same per squared moving pixel.
    """

    def __init__(
        self, increment: Increment, space: VelocitySpace, canvas: float, curvature_q: float, curvature_u: float
    ) -> None:
        # a canvas turned by one pixel at its rim moves by 6^-1/2 of it per axis
        q = torch.full((increment.size,), 6.0**0.5, dtype=torch.float32)
        q[: increment.ndim] = 1.0
        hessian = curvature_u / (canvas * space.n_slices) * space.symbol.to(torch.float64) ** 2
        u = ((1 + hessian) ** -0.5)[..., None].expand(*space.shape, 2)
        self._scale = torch.cat([q / math.sqrt(max(curvature_q, 1e-12)), u.reshape(-1).to(torch.float32)])

    def __call__(self, z: Tensor) -> Tensor:
        """``x`` ``[K + P]`` of ``z`` ``[K + P]``; also from a gradient in ``x`` to the one in ``z``."""
        return z * self._scale

    def inverse(self, x: Tensor) -> Tensor:
        """``z`` ``[K + P]`` of ``x`` ``[K + P]``."""
        return x / self._scale


def fit_contrast(warped: Tensor, fixed: Tensor, weight: Tensor, order: int = 1, ridge: float = 1e-4) -> Tensor:
    """Contrast map ``f_θ``: per fixed channel a polynomial of the moving channels, by weighted ridge regression.

    Args:
        warped: ``[C_m, *S]``.
        fixed: ``[C_f, *S]``.
        weight: ``[*S]`` ≥ 0.
        order: highest power of each channel.
        ridge: relative to the features' variance.

    Returns:
        ``f_θ(warped)`` ``[C_f, *S]``, detached.
    """
    with torch.no_grad():
        flat, w = fixed.reshape(fixed.shape[0], -1), weight.reshape(-1)
        features = torch.cat([warped.reshape(warped.shape[0], -1) ** p for p in range(1, order + 1)])  # [F, N]
        n = features.shape[0]
        total = w.sum(dtype=torch.float64).clamp(min=1e-12)
        both = torch.cat([features, flat])  # [F + C_f, N]
        mean = ((both @ w).to(torch.float64) / total).to(both.dtype)
        both -= mean[:, None]
        products = ((both[:n] * w) @ both.T).to(torch.float64) / total  # [F, F + C_f]
        gram, cross = products[:, :n], products[:, n:]
        gram = gram + ridge * (gram.diagonal().mean() + 1e-12) * torch.eye(n, dtype=gram.dtype)
        theta: Tensor = torch.linalg.solve(gram, cross).to(features.dtype)
        return torch.addmm(mean[n:, None], theta.T, both[:n]).reshape(fixed.shape)


SAMPLE = 200_000
"""Pixels from which the classes of a large image are estimated; what every pixel is they then decide for all of them."""


@dataclass
class Mixture:
    """EM weights of METHOD.md: matching tissue, background, artefact, three isotropic Gaussians over the fixed channels.

    ``update`` does one E step and one M step, ``matching`` another E step for every pixel. The artefact class is kept broad
    (never narrower than the image's own spread), and the background no narrower than the matching noise, so that neither can
    claim tissue that matches.
    """

    background: Tensor  # [C_f]
    artefact: Tensor  # [C_f]
    spread: float  # standard deviation of the fixed image per channel, rms over the channels
    sigma_match: float
    sigma_background: float
    sigma_artefact: float
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
    history: list[tuple[float, float, float]] = field(default_factory=list)

    @classmethod
    def start(cls, fixed: Tensor, predicted: Tensor, weight: Tensor) -> Mixture:
        """First guess: background the flattest part of the fixed image, artefact its mean and a broad spread."""
        flat, guess, w = _sample(fixed, predicted, weight)
        c = flat.shape[0]
        total = w.sum().clamp(min=1e-12)
        mean = (flat * w).sum(dim=1) / total
        spread = float(((((flat - mean[:, None]) ** 2) * w).sum() / (total * c)).sqrt().clamp(min=1e-6))
        sigma = float(((((flat - guess) ** 2) * w).sum() / (total * c)).sqrt().clamp(min=1e-3 * spread))
        background = flattest(fixed, weight)
        return cls(background, mean, spread, sigma, max(sigma, 0.3 * spread), 2.0 * spread)

    def update(self, fixed: Tensor, predicted: Tensor, weight: Tensor) -> None:
        """One E step and one M step, given the contrast-mapped moving image ``[C_f, *S]`` and the pixels' weight ``[*S]``."""
        flat, guess, w = _sample(fixed, predicted, weight)
        c = flat.shape[0]
        log_p, squares = self._classes(flat, guess)
        mass = torch.softmax(torch.stack(log_p), dim=0) * w  # [3, N]
        total = mass.sum(dim=1) + 1e-9  # [3]
        # mixing weights with a weak Dirichlet prior in favour of matching tissue
        counts = total + 0.1 * total.sum() * total.new_tensor([0.9, 0.05, 0.05])
        fractions = (counts / counts.sum()).tolist()
        self.fractions = (fractions[0], fractions[1], fractions[2])
        self.sigma_match = max(float((mass[0] @ squares[0] / (c * total[0])).sqrt()), 1e-3 * self.spread)
        self.background = flat @ mass[1] / total[1]
        sigma_b = float((mass[1] @ squares[1] / (c * total[1])).sqrt())
        self.sigma_background = min(max(sigma_b, self.sigma_match, 0.1 * self.spread), self.spread)
        self.artefact = flat @ mass[2] / total[2]
        self.sigma_artefact = max(2.0 * self.spread, 3.0 * self.sigma_match)
        self.history.append(self.fractions)

    def matching(self, fixed: Tensor, predicted: Tensor) -> Tensor:
        """Posterior probability ``[*S]`` that a pixel shows matching tissue."""
        c = fixed.shape[0]
        (match, background, artefact), _ = self._classes(fixed.reshape(c, -1), predicted.reshape(c, -1))
        odds = background.sub_(match).exp_().add_(artefact.sub_(match).exp_())  # against matching
        return odds.add_(1.0).reciprocal_().reshape(fixed.shape[1:])

    def _classes(self, flat: Tensor, guess: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Log-likelihood and squared distance ``[N]`` of pixels ``[C, N]`` under each class."""
        c = flat.shape[0]
        judged = max(self.sigma_match, SHARPEST * self.spread)
        sigmas = (judged, max(self.sigma_background, judged), self.sigma_artefact)
        log_p, squares = [], []
        for mean, sigma, share in zip(
            (guess, self.background[:, None], self.artefact[:, None]), sigmas, self.fractions, strict=True
        ):
            square = torch.sub(flat, mean).square_()
            square = square[0] if c == 1 else square.sum(dim=0)
            squares.append(square)
            constant = torch.full((), math.log(max(share, 1e-30)) - c * math.log(sigma), dtype=flat.dtype)
            log_p.append(torch.add(constant, square, alpha=-1 / (2 * sigma**2)))
        return log_p, squares


def _sample(fixed: Tensor, predicted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """About `SAMPLE` pixels of ``[C, *S]``, ``[C, *S]`` and ``[*S]`` at equal distances, flat."""
    step = max(1, weight.numel() // SAMPLE)
    while step > 1 and math.gcd(step, weight.shape[-1]) > 1:  # not the same columns in every row
        step -= 1
    c = fixed.shape[0]
    return fixed.reshape(c, -1)[:, ::step], predicted.reshape(c, -1)[:, ::step], weight.reshape(-1)[::step]


def flattest(fixed: Tensor, weight: Tensor) -> Tensor:
    """Colour ``[C]`` of the tenth of the trusted pixels where the image changes least: the mean of most of them."""
    c, shape = fixed.shape[0], fixed.shape[1:]
    flat, w = fixed.reshape(c, -1), weight.reshape(-1)
    places = torch.arange(0, w.numel(), max(1, w.numel() // SAMPLE))
    places = places[w[places] > 0]
    if len(places) == 0:
        return flat.mean(dim=1)
    change = torch.zeros(len(places), dtype=flat.dtype)
    stride = 1
    for n in reversed(shape):
        if n > 2:
            index = places // stride % n
            # at the border of an image nothing is known of the change across it
            within = (index > 0) & (index < n - 1)
            step = torch.where(within, stride, 0)
            change += (flat[:, places + step] - flat[:, places - step]).abs().sum(dim=0)
        stride *= n
    flattest = change <= change.kthvalue(max(1, len(places) // 10)).values
    found = flat[:, places[flattest]]
    off = (found - found.median(dim=1, keepdim=True).values).abs().sum(dim=0)
    return found[:, off <= 3 * off.median()].mean(dim=1)


BLOCK = 8
"""Pixels along the sides of the blocks whose inside is fine structure."""


def shared_structure(predicted: Tensor, fixed: Tensor, weight: Tensor) -> float:
    """How much of the fine structure of two images is the same, 0 … 1: the squared correlation of what is left of them
    when the mean of every block of `BLOCK` pixels is taken away.

    About 0.9 for two looks at one section, about 0 for neighbouring sections, whose cells are other cells: a match of
    their textures is chance. A correlation of opposite sign counts as none.

    Args:
        predicted: the contrast-mapped moving image ``[C, *S]``.
        fixed: ``[C, *S]``.
        weight: ``[*S]``.
    """
    p, w = _fine(predicted, weight)
    f, _ = _fine(fixed, weight)
    every = tuple(range(1, p.ndim))
    product = (p * f * w).sum(dim=every).clamp(min=0)
    squares = ((p * p * w).sum(dim=every) * (f * f * w).sum(dim=every)).clamp(min=1e-12)
    return float((product.square() / squares).mean())


def _fine(data: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``data`` ``[C, *S]`` less the weighted mean of each block of `BLOCK` pixels, and its weight, cut to whole blocks."""
    sizes = [min(BLOCK, n) for n in weight.shape]
    inside = tuple(slice(0, n // b * b) for n, b in zip(weight.shape, sizes, strict=True))
    split = [m for n, b in zip(weight.shape, sizes, strict=True) for m in (n // b, b)]
    within = tuple(range(2, 2 * len(sizes) + 1, 2))
    weight, data = weight[inside], data[(slice(None), *inside)]
    w, parts = weight.reshape(1, *split), data.reshape(data.shape[0], *split)
    mean = (parts * w).sum(dim=within, keepdim=True) / w.sum(dim=within, keepdim=True).clamp(min=1e-6)
    return (parts - mean).reshape(data.shape), weight


BESIDE = 6
"""Pixels from a place at which a match of fine structure has nothing to do with the match there."""


def coincidence(predicted: Tensor, fixed: Tensor, weight: Tensor) -> float:
    """By how many standard deviations the fine structure of two images matches better in place than it would anywhere else.

    The correlation of what `shared_structure` looks at, against that of the same two images shifted by every other whole
    number of pixels that leaves a third of the overlap: what chance, outlines and common periods bring. Right alignments
    come to 10 and more where any structure is shared; wrong ones stay under 10, mostly under 6.

    Args:
        predicted: the contrast-mapped moving image ``[C, *S]``.
        fixed: ``[C, *S]``.
        weight: ``[*S]``; pixels count from half of 1 on.

    Returns:
        0 where the overlap is too small to tell.
    """
    seen = (weight > 0.5).to(fixed.dtype)
    p, w = _fine(predicted, seen)
    f, _ = _fine(fixed, seen)
    size = [smooth_size(2 * n) for n in w.shape]
    dims = tuple(range(-len(size), 0))
    spectrum, mask = torch.fft.rfftn(p * w, s=size, dim=dims), torch.fft.rfftn(w, s=size, dim=dims)
    product = (spectrum.conj() * torch.fft.rfftn(f * w, s=size, dim=dims)).sum(dim=0)
    pairs = torch.fft.irfftn(mask.conj() * mask, s=size, dim=dims).clamp(min=1.0)
    score = torch.fft.irfftn(product, s=size, dim=dims) / pairs.sqrt()  # a sum over n pairs varies by chance with √n
    first = (0,) * w.ndim
    elsewhere = pairs > pairs[first] / 3
    near = torch.zeros_like(elsewhere)
    near[tuple(slice(0, BESIDE) for _ in size)] = True
    for d in range(w.ndim):
        near = near | near.roll(1 - BESIDE, dims=d)
    values = score[elsewhere & ~near]
    if values.numel() < 64 or not float(values.std()) > 0:
        return 0.0
    return float((score[first] - values.mean()) / values.std())


TILE = 256
"""Pixels along the sides of the parts in which the autocorrelation of a large residual is looked at."""
TILES = 4
"""How many parts of it are, along each axis, at most."""


def correlation_area(residual: Tensor, weight: Tensor) -> float:
    """How many pixels one independent observation of a residual stands for: its integrated squared autocorrelation.

    For white noise 1; for structure of size ``l`` pixels about ``l^D``. From the weighted autocorrelation (zero-padded
    FFT), Bartlett's formula for the effective sample size: ``Σ_r ρ(r)²``. An image of more than `TILE` pixels along an axis is
    looked at in parts, spread evenly.

    Args:
        residual: ``[C, *S]``.
        weight: ``[*S]``.
    """
    parts = [
        [slice(None)]
        if n <= TILE
        else [slice(o, o + TILE // 2) for o in torch.linspace(0, n - TILE // 2, TILES).round().long().tolist()]
        for n in weight.shape
    ]
    dims = tuple(range(1, residual.ndim))
    mean = (residual * weight).sum(dim=dims, keepdim=True) / weight.sum().clamp(min=1e-12)
    size = [n if n <= TILE else TILE // 2 for n in weight.shape]
    reach = [max(4, n // 8) for n in size]  # lags not too far, seen often enough to be estimated
    shape = [smooth_size(n + r) for n, r in zip(size, reach, strict=True)]
    power = pairs_power = torch.zeros(())
    for part in itertools.product(*parts):
        w = weight[part]
        r = (residual[(slice(None), *part)] - mean) * w
        power = power + torch.fft.rfftn(r, s=shape, dim=dims).abs().square().sum(dim=0)
        pairs_power = pairs_power + torch.fft.rfftn(w, s=shape).abs().square()
    auto, pairs = torch.fft.irfftn(power, s=shape), torch.fft.irfftn(pairs_power, s=shape)
    peak = float(auto.reshape(-1)[0] / pairs.reshape(-1)[0].clamp(min=1e-12))
    if not peak > 0:
        return 1.0
    enough = pairs > 0.1 * pairs.reshape(-1)[0]
    for d, (n, most) in enumerate(zip(shape, reach, strict=True)):
        lag = torch.arange(n)
        lag = torch.minimum(lag, n - lag)
        enough = enough & (lag <= most).reshape([-1 if i == d else 1 for i in range(len(shape))])
    pairs = pairs.clamp(min=1e-12)
    rho = torch.where(enough, auto / pairs / peak, torch.zeros_like(auto))
    # the square of a sample correlation has mean area/n over its n pairs by chance alone: solve for the area
    chance = float(torch.where(enough, 1 / pairs.clamp(min=1.0), torch.zeros_like(pairs)).sum())
    area = float((rho**2).sum()) / (1 + chance)
    return min(max(area, 1.0), CORRELATION_LIMIT)


def halve(data: Tensor, grid: Grid, axes: Sequence[int]) -> tuple[Tensor, Grid]:
    """``data`` ``[C, *S]`` at half the resolution along ``axes``, low-passed with [1, 3, 3, 1]/8; the grid shifts along."""
    shape, spacing, origin = list(grid.shape), list(grid.spacing), list(grid.origin)
    for d in axes:
        n = data.shape[1 + d]
        m = n // 2

        def part(start: int, stop: int, data: Tensor = data, d: int = d) -> Tensor:
            return data[(slice(None),) * (1 + d) + (slice(start, stop, 2),)]

        first, second = part(0, 2 * m), part(1, 2 * m)  # pixels 2 i and 2 i + 1
        out = (first + second).mul_(3 / 8)
        inner = out.narrow(1 + d, 1, m - 1)
        inner.add_(second.narrow(1 + d, 0, m - 1), alpha=1 / 8)  # 2 i - 1, and the border repeated
        out.narrow(1 + d, 0, 1).add_(first.narrow(1 + d, 0, 1), alpha=1 / 8)
        out.narrow(1 + d, 0, m - 1).add_(first.narrow(1 + d, 1, m - 1), alpha=1 / 8)  # 2 i + 2
        out.narrow(1 + d, m - 1, 1).add_(part(min(2 * m, n - 1), min(2 * m, n - 1) + 1), alpha=1 / 8)
        data = out
        shape[d], origin[d], spacing[d] = m, origin[d] + spacing[d] / 2, spacing[d] * 2
    return data, Grid(tuple(shape), tuple(spacing), tuple(origin), grid.unit)


def noise_share(data: Tensor) -> float:
    """The share of an image's squared gradient that white noise accounts for: 1 for noise alone, ``data`` ``[C, *S]``.

    From the second difference along all axes at once, in which little but noise is left (Immerkær 1996); fine texture
    counts as noise too.
    """
    rough, slope, ndim = data, 0.0, 0
    for d in range(1, data.ndim):
        n = data.shape[d]
        if n > 2:
            slope += float((data.narrow(d, 1, n - 1) - data.narrow(d, 0, n - 1)).square().mean())
            rough = (rough.narrow(d, 0, n - 2) - 2 * rough.narrow(d, 1, n - 2) + rough.narrow(d, 2, n - 2)) / 6**0.5
            ndim += 1
    return 2 * ndim * float(rough.square().mean()) / slope if slope > 0 else 0.0


def soften(data: Tensor) -> Tensor:
    """``data`` ``[C, *S]`` filtered with [1, 2, 1]/4 along every axis, the border repeated.

    Between its pixels a linearly interpolated image is smoother than at them, white noise by up to 2^-D in variance, and a
    fit finds the noise it would rather have: positions half a pixel off. Neighbouring pixels of a softened image are alike
    already.
    """
    for d in range(1, data.ndim):
        n = data.shape[d]
        if n > 1:
            out = data / 2
            out.narrow(d, 1, n - 1).add_(data.narrow(d, 0, n - 1), alpha=1 / 4)
            out.narrow(d, 0, n - 1).add_(data.narrow(d, 1, n - 1), alpha=1 / 4)
            for i in (0, n - 1):
                out.narrow(d, i, 1).add_(data.narrow(d, i, 1), alpha=1 / 4)
            data = out
    return data


def standardized(image: Image) -> Tensor:
    """Channels ``[C, *S]`` float32 with mean 0 and variance 1 over trusted pixels; a constant channel becomes 0."""
    data = image.data.to(torch.float32)
    dims = tuple(range(1, data.ndim))
    if image.weight is None:
        mean = data.mean(dim=dims, keepdim=True, dtype=torch.float64).to(torch.float32)
        data = data - mean
        variance = data.square().mean(dim=dims, keepdim=True, dtype=torch.float64)
    else:
        w = image.weight.to(torch.float32)
        total = w.sum(dtype=torch.float64).clamp(min=1e-12)
        mean = ((data * w).sum(dim=dims, keepdim=True, dtype=torch.float64) / total).to(torch.float32)
        data = data - mean
        variance = data.square().mul_(w).sum(dim=dims, keepdim=True, dtype=torch.float64) / total
    scale = variance.sqrt().to(torch.float32)
    gain = torch.where(scale > 1e-6 * (mean.abs() + 1e-30), 1 / scale.clamp(min=1e-30), 0.0)
    return data.mul_(gain)


class Halvings:
    """One side of a pair, standardised, in its normalised frame, and halved as often as is asked for, each time once.

    Args:
        image: ``weight`` is its mask.
    """

    def __init__(self, image: Image) -> None:
        self.image, self.grid = image, image.grid
        weight = None if image.weight is None else image.weight.to(torch.float32)
        self._made = [(standardized(image), weight, Frame.of(image.grid).grid(image.grid))]

    @classmethod
    def of(cls, side: Image | Halvings) -> Halvings:
        """``side`` itself, or the halvings of an image."""
        return side if isinstance(side, Halvings) else cls(side)

    def physical(self, times: int) -> Image:
        """What `at` gives, on a grid of the data set's own space."""
        data, weight, grid = self.at(times)
        length = Frame.of(self.grid).length
        origin = tuple(o * length + c for o, c in zip(grid.origin, self.grid.center, strict=True))
        return Image(
            data, Grid(grid.shape, tuple(s * length for s in grid.spacing), origin, self.grid.unit), weight=weight
        )

    def at(self, times: int) -> tuple[Tensor, Tensor | None, Grid]:
        """Data ``[C, *S]``, mask ``[*S]`` or None, and grid after ``times`` halvings, or as many as there can be."""
        while len(self._made) <= times:
            data, weight, grid = self._made[-1]
            finest = min(grid.spacing)
            axes = [d for d in range(grid.ndim) if grid.spacing[d] < 1.5 * finest and grid.shape[d] >= 8]
            if not axes:
                break
            stacked = data if weight is None else torch.cat([data, weight[None]])
            stacked, grid = halve(stacked, grid, axes)
            self._made.append((stacked, None, grid) if weight is None else (stacked[:-1], stacked[-1], grid))
        return self._made[min(times, len(self._made) - 1)]
