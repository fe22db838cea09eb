"""Smooth velocities in whitened variables, and the number of Euler steps that keep their flow invertible."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Grid
from ..maps import homogeneous
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.flow import Flow
from ..maps.sequence import Sequence as Chain
from .frames import Frame


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


def nodes_over(extents: Sequence[float], spacing: float, most: float, widening: float) -> Grid:
    """A grid of nodes about the origin over ``extents``, with numbers of nodes for which the FFT is fast.

    Args:
        extents: lengths to cover, in moving pixels, per axis.
        spacing: distance of neighbouring nodes, in moving pixels; widened where there would be more than ``most`` nodes.
        most: largest number of nodes.
        widening: factor, above 1, by which the spacing grows until the nodes are few enough.
    """
    while True:
        shape = tuple(smooth_size(max(4, math.ceil(e / spacing))) for e in extents)
        if math.prod(shape) <= most:
            return Grid(shape, (spacing,) * len(shape), tuple(-(n - 1) / 2 * spacing for n in shape))
        spacing *= widening


class VelocitySpace:
    """Velocities ``v = σ L⁻¹ u`` on a periodic grid of the moving frame; the regulariser is ``|u|²/2`` (whitened variables).

    ``L = (id - a²Δ)^p`` is diagonal in the Fourier basis, and so are the variables: ``u`` holds the Fourier coefficients
    of every wave that the nodes of ``waves`` can tell apart, weighted such that ``|u|²`` is the sum of squares over the nodes.
    The velocity is evaluated on ``grid``, which may be several times finer than ``waves``: it then follows the waves between
    the nodes of ``waves``, where linear interpolation would follow their chords.

    ``σ`` is set such that the prior standard deviation of the displacement at a point is ``deviation`` moving pixels: with
    white ``u`` the variance of ``Σ_t h v_t`` is ``σ² K(0)``.

    Args:
        waves: grid of nodes, in the moving frame, that determines the waves.
        n_slices: T, number of time slices.
        n_steps: Euler steps, a multiple of T.
        scale: a, in moving pixels.
        order: p.
        deviation: prior standard deviation of a displacement per axis, in moving pixels.
        finer: nodes of ``grid`` per node of ``waves``, along each axis.
        stiff: symmetric matrix ``[D, D]`` by which velocities are multiplied, so that displacements along some directions have a
            smaller prior deviation; None where all directions are alike.
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
        self._kept = [
            (n - 1) // 2 for n in waves.shape
        ]  # highest frequency; the Nyquist frequency has no phase, so it is out
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
    def device(self) -> torch.device:
        """Where velocities are computed."""
        return self.symbol.device

    def on(self, device: torch.device | str) -> VelocitySpace:
        """This space with its velocities computed on another device."""
        out = copy.copy(self)
        out.symbol, out._columns = self.symbol.to(device), self._columns.to(device)
        out.stiff = None if self.stiff is None else self.stiff.to(device)
        return out

    @property
    def multiplicity(self) -> Tensor:
        """Number of waves ``[K]`` that each coefficient of the last axis stands for: 2, but 1 for frequency 0 (half spectrum)."""
        return self._columns.square()

    def _set_finer(self, finer: int) -> None:
        waves = self.waves
        self.grid = Grid(
            tuple(n * finer if n > 1 else 1 for n in waves.shape),
            tuple(s / finer if n > 1 else s for n, s in zip(waves.shape, waves.spacing, strict=True)),
            waves.origin,
        )

    def with_finer(self, finer: int) -> VelocitySpace:
        """This space with ``grid`` of ``finer`` times as many nodes per axis as ``waves``."""
        out = copy.copy(self)
        out._set_finer(finer)
        return out

    def with_deviation(self, deviation: float) -> VelocitySpace:
        """This space with another prior standard deviation of a displacement, in moving pixels."""
        out = copy.copy(self)
        out.symbol, out.deviation = self.symbol * (deviation / self.deviation), deviation
        return out

    def with_steps(self, n_steps: int) -> VelocitySpace:
        """This space integrated in another number of Euler steps."""
        out = copy.copy(self)
        out.n_steps = n_steps
        return out

    def steep(self, u: Tensor) -> float:
        """Largest component of ``h dv/dX`` between neighbouring nodes, without unit; Euler steps are invertible below 1/D."""
        velocity = self.velocity(u) / self.n_steps
        most = 0.0
        for d, spacing in enumerate(self.grid.spacing):
            if self.grid.shape[d] > 1:
                most = max(most, float(velocity.diff(dim=2 + d).abs().amax()) / spacing)
        return most

    def velocity(self, u: Tensor) -> Tensor:
        """``v`` ``[T, D, *S]`` (moving pixels per unit time) of whitened ``u`` ``[P]``; linear, differentiable."""
        if u.storage_offset() % 2 == 1:  # view_as_complex needs an even offset
            u = u.clone()
        scale = self.symbol / (self._columns * math.sqrt(math.prod(self.waves.shape)))
        spectrum = torch.view_as_complex(u.reshape(*self.shape, 2)) * scale
        # axis by axis, so that no time is spent on transforming frequencies that are not kept
        for d, (n, kept) in enumerate(zip(self.grid.shape[:-1], self._kept[:-1], strict=True)):
            gap = list(spectrum.shape)
            gap[2 + d] = n - 2 * kept - 1
            low, high = spectrum.narrow(2 + d, 0, kept + 1), spectrum.narrow(2 + d, kept + 1, kept)
            spectrum = torch.fft.ifft(
                torch.cat([low, spectrum.new_zeros(gap), high], dim=2 + d), dim=2 + d, norm="forward"
            )
        velocity: Tensor = torch.fft.irfft(spectrum, n=self.grid.shape[-1], dim=-1, norm="forward")
        return velocity if self.stiff is None else torch.einsum("ij,tj...->ti...", self.stiff, velocity)

    def whitened(self, velocity: Tensor) -> Tensor:
        """The ``u`` ``[P]`` of a velocity ``[T, D, *S]`` on the nodes of ``waves``, without the waves that these cannot hold."""
        if self.stiff is not None or self.grid.shape != self.waves.shape:
            raise ValueError(
                "wanted a space without stiff directions and with one node per wave, got another; make it anew"
            )
        norm = self.symbol / (self._columns * math.sqrt(math.prod(self.waves.shape)))
        spectrum = torch.fft.rfft(velocity, dim=-1, norm="forward")[..., : self._kept[-1] + 1]
        for d in reversed(range(self.grid.ndim - 1)):
            n, kept = self.grid.shape[d], self._kept[d]
            spectrum = torch.fft.fft(spectrum, dim=2 + d, norm="forward")
            spectrum = torch.cat(
                [spectrum.narrow(2 + d, 0, kept + 1), spectrum.narrow(2 + d, n - kept, kept)], dim=2 + d
            )
        return torch.view_as_real(spectrum / norm).reshape(-1).clone()

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
    """The affine part and the whole map ``Φ``, in physical units.

    Args:
        pullback: inverse affine map ``[D+1, D+1]`` of the normalised frames.
        space: the space of the velocity, or None for an affine map.
        velocity: ``[T, D, *S]`` in moving pixels per unit time, or None.
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


STEEPEST = 0.25
"""Largest ``h dv/dx`` with which a fit is integrated, without unit. A step can fold from 1/D on; the margin lets the velocity
grow during one round of descent."""
MOST_STEPS = 48
"""Largest number of Euler steps: the time of an evaluation is proportional to it."""


def enough_steps(space: VelocitySpace, u: Tensor) -> VelocitySpace:
    """The space with as many Euler steps as make every step of the velocity invertible (`STEEPEST`, `MOST_STEPS`)."""
    n_steps = space.n_steps
    while n_steps < MOST_STEPS and space.with_steps(n_steps).steep(u) > STEEPEST:
        n_steps += space.n_slices
    return space.with_steps(n_steps)
