"""The space of maps that a fit searches, and the state of a fit in it: an affine increment and the flow of a velocity.

Matrices are computed on the host in float64, whatever the device: they are a few numbers. Velocities, and variables that bend,
are on the device of the space of velocities; variables of maps that do not bend are on the host.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .. import ops, reference
from ..config import Config
from ..maps import homogeneous
from .frames import Increment, zoom_of
from .velocity import VelocitySpace, enough_steps

DEVIATION_FLOOR = 0.03
"""Smallest prior standard deviation of a displacement, in moving pixels: far below any error that matters, yet above 0, from
which later levels could not recover."""


@dataclass(frozen=True)
class MapSpace:
    """The maps with variables ``x = (q, u)``: ``B(q) = B_0 H(q)`` from the fixed to the moving frame, then the flow of ``v(u)``.

    Args:
        start: ``B_0`` ``[D+1, D+1]`` float64, inverse affine map of the normalised frames.
        increment: parametrisation ``H(q)`` of the affine part, K variables.
        space: velocities, P variables; None for maps that do not bend.
    """

    start: Tensor
    increment: Increment
    space: VelocitySpace | None = None

    @functools.cached_property
    def zoom(self) -> float:
        """Fixed pixels per moving pixel under the start (geometric mean of the axes)."""
        return zoom_of(self.start)

    @property
    def size(self) -> int:
        """Number of variables ``K + P``."""
        return self.increment.size + (0 if self.space is None else self.space.size)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``q`` ``[K]``, on the host, and ``u`` ``[P]`` (None where maps do not bend) of the variables ``x`` ``[K + P]``."""
        k = self.increment.size
        return x[:k].cpu(), (x[k:] if self.space is not None else None)

    def pullback(self, q: Tensor) -> Tensor:
        """``B(q)`` ``[D+1, D+1]``, fixed frame → moving frame; differentiable."""
        return homogeneous.compose(self.start, self.increment.matrix(q))

    def points(self, x: Tensor, at: Tensor, to_moving: bool = False) -> Tensor:
        """Positions ``[N, D]`` (float64) mapped moving → fixed, or to the moving frame, on their device; differentiable in
        ``x``."""
        q, u = self.split(x)
        velocity = self.space.velocity(u) if self.space is not None and u is not None else None
        return self.carried(q, velocity, at, to_moving)

    def carried(self, q: Tensor, velocity: Tensor | None, at: Tensor, to_moving: bool = False) -> Tensor:
        """As `points`, with the velocity ``[T, D, *S]`` (None where maps do not bend) in place of its variables; differentiable
        in ``q`` and in the velocity."""
        pullback = self.pullback(q)
        pullback, back = (matrix.to(at.device) for matrix in (pullback, homogeneous.inverse(pullback)))
        if to_moving:
            at = reference.carry(pullback, at)
        if self.space is not None and velocity is not None:
            grid, velocity = self.space.grid, velocity.to(torch.float64)
            there = at.to(velocity.device)
            flowed = ops.flow_points(there, velocity, grid.spacing, grid.origin, self.space.n_steps, to_moving)
            at = flowed.to(at.device)
        return at if to_moving else reference.carry(back, at)

    def moves(self, change: Tensor, rim: Tensor) -> tuple[Tensor, Tensor]:
        """How far a change of the variables moves fixed positions, to first order, in fixed pixels.

        Args:
            change: change of the variables ``[K + P]``.
            rim: outermost positions ``[N, D]`` of the fixed frame, where the affine part moves most.

        Returns:
            The displacement of each of ``rim`` by the affine part ``[N, D]``, on the host, and the largest displacement by the
            velocity, a float64 scalar on its device.
        """
        q, u = self.split(change)
        step = self.increment.matrix(q) - torch.eye(self.increment.ndim + 1, dtype=torch.float64)
        shift: Tensor = reference.carry(step, rim)
        if self.space is None or u is None:
            return shift, torch.zeros((), dtype=torch.float64)
        displacement = self.space.velocity(u).mean(dim=0)  # [D, *S]
        return shift, self.zoom * displacement.square_().sum(dim=0).amax().sqrt().to(torch.float64)

    def with_space(self, space: VelocitySpace | None) -> MapSpace:
        """Maps with the same affine part and other velocities, or none."""
        return dataclasses.replace(self, space=space)


@dataclass
class Standing:
    """The state of a fit: the values of the variables, and the space of maps.

    Args:
        x: variables ``[K + P]``.
        maps: the maps that the variables choose among.
    """

    x: Tensor
    maps: MapSpace

    @property
    def start(self) -> Tensor:
        """``B_0`` ``[D+1, D+1]``, on which the affine increment acts."""
        return self.maps.start

    @property
    def increment(self) -> Increment:
        """Parametrisation of the affine part."""
        return self.maps.increment

    @property
    def space(self) -> VelocitySpace | None:
        """Velocities, or None where the map does not bend."""
        return self.maps.space

    @property
    def pullback(self) -> Tensor:
        """Inverse affine map ``[D+1, D+1]`` of the normalised frames, fixed → moving."""
        return self.maps.pullback(self.maps.split(self.x)[0])

    @property
    def velocity(self) -> Tensor | None:
        """``[T, D, *S]`` in moving pixels per unit time, or None where the map does not bend."""
        u = self.maps.split(self.x)[1]
        return None if self.space is None or u is None else self.space.velocity(u)

    def bend(self, space: VelocitySpace) -> None:
        """Let the map bend from here on, on the device of ``space``, with velocities that are 0 at first."""
        self.x = torch.cat([self.x.to(space.device), torch.zeros(space.size, dtype=torch.float32, device=space.device)])
        self.maps = self.maps.with_space(space)

    def on(self, device: torch.device | str) -> Self:
        """This state with the variables of a bend, and the space of velocities, on another device."""
        if self.space is None:
            return self
        return dataclasses.replace(self, x=self.x.to(device), maps=self.maps.with_space(self.space.on(device)))

    def take_enough_steps(self, config: Config) -> None:
        """Use as many Euler steps as keep the flow invertible, unless the user has set their number."""
        u = self.maps.split(self.x)[1]
        if self.space is not None and u is not None and config.n_steps is None:
            self.maps = self.maps.with_space(enough_steps(self.space, u))

    def adapt_prior(self, rms: float, margin: float) -> None:
        """Set the prior's deviation from the displacement found so far (empirical Bayes); the velocity itself stays as it is.

        A pair that an affine map explains ends with a stiff prior, so that regions without texture stay where the affine map puts
        them; a bent pair keeps a loose prior.

        Args:
            rms: root mean square displacement per axis so far, in moving pixels.
            margin: the prior standard deviation over ``rms``.
        """
        q, u = self.maps.split(self.x)
        assert self.space is not None
        assert u is not None
        deviation = max(margin * rms, DEVIATION_FLOOR)
        self.x = torch.cat([q.to(u.device), u * (self.space.deviation / deviation)])
        self.maps = self.maps.with_space(self.space.with_deviation(deviation))
