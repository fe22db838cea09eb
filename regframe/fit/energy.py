"""The energy that a fit minimises: smoothness of the velocity, matching term, landmark term (docs/method.md).

Everything here lives in the normalised frames of both sides (`frames`), in pixels, so that nothing depends on a data set's unit.
It runs on the device of the level's images; the affine part is computed on the host and goes up as one small matrix.

Sources: Beg et al. 2005 (LDDMM); Tward et al. 2020 (contrast maps and EM weights); Clifton et al. 2023 (both for spatial
transcriptomics).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .. import ops, reference
from ..data import Grid
from ..maps import homogeneous
from . import measured
from .halvings import Level
from .lbfgs import numbers
from .mapspace import MapSpace


class ImageMetric(Protocol):
    """The part of `regframe.contracts.Metric` that the energy uses."""

    likelihood: ClassVar[bool]

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """The mismatch, a scalar."""
        ...

    def fused(
        self, path: ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The mismatch and its gradients in the path's velocity and matrix, or None."""
        ...


def _cheap(scalar: Tensor) -> Any:
    """A scalar as a number where that does not wait for a device: on the CPU, where numbers are computed with in less time."""
    return float(scalar) if scalar.is_cpu else scalar


class Energy:
    """``E(q, u)`` of one pyramid level, in nats, and its gradient: matching term, regulariser and landmark term.

    With ``m`` the metric's value (mean mismatch per unit weight) and ``N`` the number of independent observations, the
    matching term is ``N m / 2σ_M²`` where σ_M is given, and ``N/2 log m`` where it is not: the Gaussian log-likelihood with
    σ_M² at its best value, ``m``, for every map, so that no noise level has to be set. A metric that already is a mean
    negative log-likelihood counts as ``N m``.

    Args:
        level: the images of the level.
        metric: the metric, prepared for the level.
        maps: the maps that the variables choose among.
        weight: ``[*S_f]`` matching probability times masks and overlap, constant while this energy is minimised.
        observations: N.
        sigma_match: σ_M in standard deviations of the fixed channels, or None to estimate it.
        landmarks: moving and fixed positions ``[M, D]`` in their frames and σ_P in fixed pixels, or None.
    """

    def __init__(
        self,
        level: Level,
        metric: ImageMetric,
        maps: MapSpace,
        weight: Tensor,
        observations: float,
        sigma_match: float | None = None,
        landmarks: tuple[Tensor, Tensor, float] | None = None,
    ) -> None:
        self.level, self.metric, self.maps = level, metric, maps
        self.weight, self.observations, self.sigma_match, self.landmarks = weight, observations, sigma_match, None
        self.n_evaluations = 0
        self.steep = False  # whether the metric ever had a gradient
        self._parts: tuple[float | Tensor, ...] = ()
        ndim, self.device = level.fixed_grid.ndim, level.fixed.device
        self._index = level.fixed_grid.index_to_position()
        if landmarks is not None:
            p, target, sigma = landmarks
            self.landmarks = (p.to(self.device), target.to(self.device), sigma)
        self._outer = (maps.start[:ndim].T.to(self.device), self._index.T.to(self.device))  # of the chain rule
        self._rim = level.fixed_grid.corners()
        self._still = torch.zeros((1, ndim, *(1,) * ndim), dtype=torch.float32, device=self.device)
        self._pixel = level.fixed_grid.pixel  # size of a pixel of this level, in pixels of the original image
        # the bound on movement is taken at the nodes of the waves; between them displacements are hardly larger
        self._bound = maps if maps.space is None else maps.with_space(maps.space.with_finer(1))

    def path(self, x: Tensor, grid: Grid) -> ops.Path:
        """The path of the level's fixed pixels to an image on ``grid``, a grid of the moving frame."""
        q, u = self.maps.split(x)
        ndim, space = self.level.fixed_grid.ndim, self.maps.space
        matrix = homogeneous.compose(self.maps.pullback(q), self._index)[:ndim]
        if space is None or u is None:
            velocity, v_grid, n_steps = self._still, Grid((1,) * ndim), 1
        else:
            velocity, v_grid, n_steps = space.velocity(u), space.grid, space.n_steps
        return ops.Path(
            velocity, matrix.to(self.device, non_blocking=True), self.level.fixed_grid.shape, (0,) * ndim,
            grid.spacing, grid.origin, v_grid.spacing, v_grid.origin, n_steps,
        )  # fmt: skip

    def warp(self, x: Tensor, image: Tensor, grid: Grid) -> Tensor:
        """``image`` ``[C, *S_m]`` on ``grid`` of the moving frame, warped to the level's fixed grid: ``[C, *S_f]``."""
        return ops.warp(image, *self.path(x, grid))

    def positions(self, x: Tensor) -> Tensor:
        """Moving-frame position of every fixed pixel, ``[*S_f, D]`` float32."""
        q, u = self.maps.split(x)
        at = reference.carry(self.maps.pullback(q), self.level.fixed_grid.coords(self.device))
        space = self.maps.space
        if space is None or u is None:
            return at.to(torch.float32)
        grid = space.grid
        flat = at.reshape(-1, grid.ndim).to(torch.float32)
        end = ops.flow_points(flat, space.velocity(u), grid.spacing, grid.origin, space.n_steps, True)
        return end.reshape(at.shape)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy, a float64 scalar on the level's device, and gradient ``[K + P]`` on that of ``x``; nothing is read back.

        Only until the metric has once had a gradient, its values are looked at on the host: ValueError for a metric that gives
        NaN, or a negative value where its logarithm is to be taken.
        """
        self.n_evaluations += 1
        x = x.detach()
        q, u = self.maps.split(x)
        path = self.path(x, self.level.moving_grid)
        mismatch, v_grad, m_grad = self._mismatch(path)
        if not self.steep:
            self._look(mismatch, v_grad, m_grad)
        matching, slope = self._weighed(_cheap(mismatch))
        gradient = torch.empty_like(x)
        # the path's matrix is start · H(q) · index, so this is the gradient in H (chain rule)
        h_grad = homogeneous.compose(self._outer[0], slope * m_grad, self._outer[1])
        gradient[: q.shape[0]] = self.maps.increment.gradient(q, h_grad)
        regularizer = pairs = 0.0
        if self.landmarks is not None:
            pairs, q_pairs, v_pairs = self._pairs(q, path.velocity)
            gradient[: q.shape[0]] += q_pairs.to(gradient)
            if v_pairs is not None:  # both terms go back through the waves at once
                v_grad, slope = torch.add(v_pairs, v_grad * slope), 1.0
        if u is not None and self.maps.space is not None:
            regularizer = 0.5 * _cheap(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
            v_pull, out = self.maps.space.adjoint(v_grad), gradient[q.shape[0] :]
            if isinstance(slope, Tensor):
                torch.addcmul(u, v_pull, slope.to(u), out=out)
            else:
                torch.add(u, v_pull, alpha=slope, out=out)
        self._parts = (mismatch, matching, regularizer, pairs)
        total = matching + regularizer + pairs
        return total if isinstance(total, Tensor) else torch.tensor(total, dtype=torch.float64), gradient

    def _pairs(self, q: Tensor, velocity: Tensor) -> tuple[Any, Tensor, Tensor | None]:
        """The landmark term, a number or a scalar on the level's device, and its gradients in ``q`` ``[K]`` and in the velocity
        ``[T, D, *S]``; None for the velocity of maps that do not bend."""
        assert self.landmarks is not None
        p, target, sigma = self.landmarks
        with torch.enable_grad():
            q = q.detach().requires_grad_(True)
            bends = self.maps.space is not None
            v = velocity.detach().requires_grad_(True) if bends else None
            term = ((self.maps.carried(q, v, p) - target) ** 2).sum() / (2 * sigma**2)
            inputs = [one for one in (q, v) if one is not None and one.numel()]
            found = iter(
                torch.autograd.grad(term, inputs) if inputs else ()
            )  # a map without variables stays where it is
        q_grad = next(found) if q.numel() else q.detach()
        return _cheap(term.detach().to(self.device)), q_grad, next(found) if v is not None else None

    def _look(self, mismatch: Tensor, v_grad: Tensor, m_grad: Tensor) -> None:
        """Check what a metric gave, and whether it has a gradient: the one place of an evaluation that reads from the device."""
        value = float(mismatch)
        if self.n_evaluations == 1:
            measured.check_finite(self.metric, value, (v_grad, m_grad))
        if not self.metric.likelihood and self.sigma_match is None:
            measured.check_positive(self.metric, value)
        self.steep = bool(m_grad.any()) or bool(v_grad.any())

    def _weighed(self, mismatch: float | Tensor) -> tuple[Any, Any]:
        """The matching term and its derivative in the mismatch, numbers or scalars on a device as the mismatch is."""
        if self.metric.likelihood or self.sigma_match is not None:
            scale = 1.0 if self.metric.likelihood or self.sigma_match is None else 2 * self.sigma_match**2
            slope = self.observations / scale
            return slope * mismatch, slope
        half = self.observations / 2
        if isinstance(mismatch, Tensor):
            floored = mismatch.clamp(min=0.0) + measured.FLOOR
            return half * floored.log(), half / floored
        least = max(mismatch, 0.0) + measured.FLOOR
        return half * math.log(least) if math.isfinite(least) else math.nan, half / least

    @property
    def parts(self) -> dict[str, float]:
        """The metric's value and the energy's terms at the last evaluation, by name, read back from the device together.

        ValueError for a metric whose value is negative where its logarithm is taken.
        """
        names = ("mismatch", "matching", "regularizer", "landmarks")
        found = dict(zip(names, numbers(*self._parts), strict=False))
        if found and not self.metric.likelihood and self.sigma_match is None:
            measured.check_positive(self.metric, found["mismatch"])
        return found

    def _mismatch(self, path: ops.Path) -> tuple[Tensor, Tensor, Tensor]:
        """The metric's value (float64) and its gradients in velocity and matrix, from its own kernel or by autograd through
        `ops.warp`."""
        level = self.level
        fused = self.metric.fused(path, level.moving, level.fixed, self.weight)
        if fused is not None:
            value, v_grad, m_grad = fused
            return value.detach().reshape(()).to(torch.float64), v_grad, m_grad
        with torch.enable_grad():
            velocity, matrix = path.velocity.detach().requires_grad_(True), path.matrix.detach().requires_grad_(True)
            warped = ops.warp(level.moving, *path._replace(velocity=velocity, matrix=matrix))
            mismatch = measured.scalar(self.metric, self.metric(warped, level.fixed, self.weight))
            v_grad, m_grad = measured.gradients(mismatch, (velocity, matrix))
        return mismatch.detach().to(torch.float64), v_grad, m_grad

    def constant(self, x: Tensor) -> bool:
        """Whether the metric has one value wherever the moving image lies; asked only where it never had a gradient."""
        if self.steep:
            return False
        with torch.no_grad():
            warped = self.warp(x, self.level.moving, self.level.moving_grid)
        return measured.constant(self.metric, warped, self.level.fixed, self.weight)

    def movement(self, change: Tensor) -> Tensor:
        """The largest distance that a change of the variables moves a fixed pixel, to first order, in pixels of the level."""
        rim, bend = self._bound.moves(change, self._rim)
        farthest = rim.square().sum(dim=-1).amax().sqrt()
        return (farthest.to(bend.device, non_blocking=True) + bend) / self._pixel

    def overlap(self, x: Tensor) -> Tensor:
        """Weight ``[*S_f]`` of the fixed pixels that map onto trusted moving pixels; it fades over the moving border pixels."""
        level = self.level
        return level.fixed_weight * self.warp(x, level.trusted, level.moving_grid)[0]
