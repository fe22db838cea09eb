"""The energy that a fit minimises: smoothness of the velocity, matching term, landmark term (docs/method.md).

Everything here lives in the normalised frames of both sides (`frames`), in pixels, so that nothing depends on a data set's unit.

Sources: Beg et al. 2005 (LDDMM); Tward et al. 2020 (contrast maps and EM weights); Clifton et al. 2023 (both for spatial
transcriptomics).
"""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from .. import ops, reference
from ..data import Grid
from ..maps import homogeneous
from . import measured
from .halvings import Level
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
        self.weight, self.observations, self.sigma_match, self.landmarks = weight, observations, sigma_match, landmarks
        self.n_evaluations = 0
        self.steep = False  # whether the metric ever had a gradient
        self.parts: dict[str, float] = {}
        ndim = level.fixed_grid.ndim
        self._index = level.fixed_grid.index_to_position()
        self._rim = level.fixed_grid.corners()
        self._still = torch.zeros((1, ndim, *(1,) * ndim), dtype=torch.float32)
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
            velocity, matrix, self.level.fixed_grid.shape, (0,) * ndim,
            grid.spacing, grid.origin, v_grid.spacing, v_grid.origin, n_steps,
        )  # fmt: skip

    def warp(self, x: Tensor, image: Tensor, grid: Grid) -> Tensor:
        """``image`` ``[C, *S_m]`` on ``grid`` of the moving frame, warped to the level's fixed grid: ``[C, *S_f]``."""
        return ops.warp(image, *self.path(x, grid))

    def positions(self, x: Tensor) -> Tensor:
        """Moving-frame position of every fixed pixel, ``[*S_f, D]`` float32."""
        q, u = self.maps.split(x)
        at = reference.carry(self.maps.pullback(q), self.level.fixed_grid.coords())
        space = self.maps.space
        if space is None or u is None:
            return at.to(torch.float32)
        grid = space.grid
        flat = at.reshape(-1, grid.ndim).to(torch.float32)
        end = ops.flow_points(flat, space.velocity(u), grid.spacing, grid.origin, space.n_steps, True)
        return end.reshape(at.shape)

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        x = x.detach()
        q, u = self.maps.split(x)
        level = self.level
        path = self.path(x, level.moving_grid)
        mismatch, v_grad, m_grad = self._mismatch(path)
        if self.n_evaluations == 1:
            measured.check_finite(self.metric, mismatch, (v_grad, m_grad))
        self.steep = self.steep or bool(m_grad.any()) or bool(v_grad.any())
        # the matching term and its derivative in the mismatch
        if self.metric.likelihood:
            slope = self.observations
            matching = slope * mismatch
        elif self.sigma_match is not None:
            slope = self.observations / (2 * self.sigma_match**2)
            matching = slope * mismatch
        else:
            measured.check_positive(self.metric, mismatch)
            floored = max(mismatch, 0.0) + measured.FLOOR
            slope = self.observations / 2 / floored
            matching = self.observations / 2 * math.log(floored) if math.isfinite(floored) else math.nan
        gradient = torch.empty_like(x)
        # the path's matrix is start · H(q) · index, so this is the gradient in H (chain rule)
        ndim = level.fixed_grid.ndim
        h_grad = homogeneous.compose(self.maps.start[:ndim].T, slope * m_grad, self._index.T)
        gradient[: q.shape[0]] = self.maps.increment.gradient(q, h_grad)
        regularizer = 0.0
        if u is not None and self.maps.space is not None:
            regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
            torch.add(u, self.maps.space.adjoint(v_grad), alpha=slope, out=gradient[q.shape[0] :])
        pairs = 0.0
        if self.landmarks is not None:
            with torch.enable_grad():
                at = x.requires_grad_(True)
                p, target, sigma = self.landmarks
                term = ((self.maps.points(at, p) - target) ** 2).sum() / (2 * sigma**2)
                if at.numel():  # a map without variables stays where it is
                    gradient += torch.autograd.grad(term, at)[0]
            pairs = float(term.detach())
        self.parts = {"mismatch": mismatch, "matching": matching, "regularizer": regularizer, "landmarks": pairs}
        return matching + regularizer + pairs, gradient

    def _mismatch(self, path: ops.Path) -> tuple[float, Tensor, Tensor]:
        """The metric's value and its gradients in velocity and matrix, from its own kernel or by autograd through `ops.warp`."""
        level = self.level
        fused = self.metric.fused(path, level.moving, level.fixed, self.weight)
        if fused is not None:
            value, v_grad, m_grad = fused
            return float(value), v_grad, m_grad
        with torch.enable_grad():
            velocity, matrix = path.velocity.detach().requires_grad_(True), path.matrix.detach().requires_grad_(True)
            warped = ops.warp(level.moving, *path._replace(velocity=velocity, matrix=matrix))
            mismatch = measured.scalar(self.metric, self.metric(warped, level.fixed, self.weight))
            v_grad, m_grad = measured.gradients(mismatch, (velocity, matrix))
        return float(mismatch.detach()), v_grad, m_grad

    def constant(self, x: Tensor) -> bool:
        """Whether the metric has one value wherever the moving image lies; asked only where it never had a gradient."""
        if self.steep:
            return False
        with torch.no_grad():
            warped = self.warp(x, self.level.moving, self.level.moving_grid)
        return measured.constant(self.metric, warped, self.level.fixed, self.weight)

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a fixed pixel, to first order, in pixels of the level."""
        rim, bend = self._bound.moves(change, self._rim)
        return (float(rim.square().sum(dim=-1).amax().sqrt()) + bend) / self._pixel

    def overlap(self, x: Tensor) -> Tensor:
        """Weight ``[*S_f]`` of the fixed pixels that map onto trusted moving pixels; it fades over the moving border pixels."""
        level = self.level
        return level.fixed_weight * self.warp(x, level.trusted, level.moving_grid)[0]
