"""How much a bend squeezes or stretches tissue, and what keeps it within what tissue does.

Source: Burger, Modersitzki and Ruthotto 2013, A hyperelastic regularization energy for image registration (SIAM Journal on
Scientific Computing 35): a price on the change of area, which grows without bound towards 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..maps.homogeneous import determinant
from .energy import Energy

SINGLE = 0.001
"""Share of a level's pixels that may be squeezed or stretched more than is said: differences of neighbours are rough."""
PRICE = 100.0
"""Nats per independent observation that a change of area costs, for its squared logarithm beyond what is free: a hundredth of
the tissue changed e-fold too much costs what doubling the fit's precision gains. With 30 and 300 the discs of docs/method.md
bend as far."""
MOST_POSITIONS = 16_384
"""Largest number of positions at which a price is taken: velocity nodes are many pixels apart, so that a lattice shows it."""


def _areas(at: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Change of area or volume ``[*S - 1]`` between a lattice of positions ``[*S, D]`` and one of that spacing."""
    inner = tuple(slice(0, n - 1) for n in at.shape[:-1])
    steps = [at.diff(dim=d)[inner] / s for d, s in enumerate(spacing)]
    areas: Tensor = torch.linalg.det(torch.stack(steps, dim=-1))
    return areas


def strain(energy: Energy, x: Tensor) -> float:
    """The largest change of area or volume by the bend alone, either way, as a ratio of at least 1; 1e6 where it folds.

    It is that of the fixed pixels which lie on the moving image, but for `SINGLE` of them.

    Args:
        energy: the energy of a level.
        x: variables ``[K + P]``.
    """
    grid, maps = energy.level.fixed_grid, energy.maps
    if maps.space is None:
        return 1.0
    area = _areas(energy.positions(x.detach()).to(torch.float64), grid.spacing)
    area = area / determinant(maps.pullback(maps.split(x)[0]))
    area = area[energy.overlap(x)[tuple(slice(0, n) for n in area.shape)] > 0.5]
    if not area.numel():
        return 1.0
    few = int(SINGLE * (area.numel() - 1))
    most, least = area.kthvalue(area.numel() - few).values, area.kthvalue(1 + few).values
    return max(float(most), 1 / max(float(least), 1e-6))


class Whole:
    """An energy plus a price on changes of area by the bend beyond ``√most``-fold, so that tissue is not torn.

    Args:
        energy: the energy; its maps must bend.
        start: variables ``[K + P]`` at which the descent begins; pixels that overlap there have a say.
        most: change of area, as a ratio, that tissue does not exceed.
    """

    def __init__(self, energy: Energy, start: Tensor, most: float) -> None:
        self.energy, self.most = energy, most
        grid = energy.level.fixed_grid
        stride = max(1, math.ceil((math.prod(grid.shape) / MOST_POSITIONS) ** (1 / grid.ndim)))
        every = tuple(slice(None, None, min(stride, max(1, (n - 1) // 2))) for n in grid.shape)
        lattice = grid.coords(energy.device)[every]  # [*S, D]
        self._shape, self._at = lattice.shape[:-1], lattice.reshape(-1, grid.ndim)
        self._spacing = tuple(s * e.step for s, e in zip(grid.spacing, every, strict=True))
        weight = energy.overlap(start.detach())[every][tuple(slice(0, n - 1) for n in self._shape)]
        self._weight = weight / weight.sum().clamp(min=1e-12)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x`` ``[K + P]``, the price included."""
        value, gradient = self.energy(x)
        price, slope = self._price(x.detach())
        return value + price.to(value), gradient + slope

    def movement(self, change: Tensor) -> Tensor:
        """As `Energy.movement`."""
        return self.energy.movement(change)

    def _price(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The price, a scalar in nats, and its gradient ``[K + P]``."""
        maps = self.energy.maps
        q, u = maps.split(x)
        assert maps.space is not None
        assert u is not None
        with torch.enable_grad():
            q = q.detach().requires_grad_(True)
            v = maps.space.velocity(u).detach().requires_grad_(True)
            at = maps.carried(q, v, self._at, to_moving=True).reshape(*self._shape, -1)
            areas = _areas(at, self._spacing) / torch.linalg.det(maps.pullback(q)[:-1, :-1]).to(at.device)
            price = PRICE * self.energy.observations * (self._of(areas) * self._weight).sum()
            q_slope, v_slope = torch.autograd.grad(price, (q, v))
        slope = torch.cat([q_slope.to(x), maps.space.adjoint(v_slope.to(torch.float32)).reshape(-1).to(x)])
        return price.detach(), slope

    def _of(self, areas: Tensor) -> Tensor:
        """Squared logarithm beyond what is free; below the least area that counts its tangent, which also unfolds folds."""
        free, least = math.log(self.most) / 2, 1 / (2 * self.most)
        beyond = (areas.clamp(min=least).log().abs() - free).clamp(min=0)
        tangent = -2 * (-math.log(least) - free) / least
        return beyond.square() + tangent * (areas - least).clamp(max=0)
