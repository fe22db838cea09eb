"""One whole evaluation of the LDDMM energy, value and gradient, FFT included, against eager torch.

The rival is the energy written down term by term with `grid_sample`, as a careful reader of the formulas would: in float64,
as such code mostly runs, and in float32. Both sides get the same images, weights, velocity and matrix, and their values and
gradients are compared before a time is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from records import record
from torch import Tensor

import regframe as rf
from regframe import ops
from regframe.config import Config
from regframe.fit.energy import Energy
from regframe.fit.frames import Increment
from regframe.fit.halvings import Halvings
from regframe.fit.mapspace import MapSpace
from regframe.fit.prior import velocity_space
from regframe.fit.pyramid import build_levels
from regframe.testing.bench import interleaved, relative

OBSERVATIONS = 1e5


@dataclass(frozen=True)
class Literal:
    """The energy in plain torch, on the same nodes.

    Args:
        moving: ``[C_m, H, W]``.
        fixed: ``[C_f, H, W]``.
        weight: ``[H, W]``.
        lhat: symbol of ``L`` over the prior's scale, ``[*S_v]``, so that ``R = |L v|² / 2``.
        scale, shift: from position (x, y) to the -1 ... 1 of the velocity grid; ``image_scale``, ``image_shift``: of the image.
        index: ``[H, W, 3]`` homogeneous pixel indices (y, x, 1).
    """

    moving: Tensor
    fixed: Tensor
    weight: Tensor
    lhat: Tensor
    scale: Tensor
    shift: Tensor
    image_scale: Tensor
    image_shift: Tensor
    index: Tensor

    def __call__(self, velocity: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy and gradients in ``velocity`` ``[T, 2, *S_v]`` and ``matrix`` ``[2, 3]``."""
        v, m = velocity.detach().requires_grad_(True), matrix.detach().requires_grad_(True)
        n_slices = v.shape[0]
        regularizer = (torch.fft.ifftn(torch.fft.fftn(v, dim=(2, 3)) * self.lhat, dim=(2, 3)).real ** 2).sum() / 2
        x = (self.index @ m.T).flip(-1)  # [H, W, 2] in x, y
        for t in reversed(range(n_slices)):
            step = F.grid_sample(
                v[t : t + 1].flip(1), (x * self.scale + self.shift)[None], padding_mode="zeros", align_corners=True
            )
            x = x - step[0].movedim(0, -1) / n_slices
        warped = F.grid_sample(
            self.moving[None],
            (x * self.image_scale + self.image_shift)[None],
            padding_mode="border",
            align_corners=True,
        )[0]
        phi = torch.cat([torch.ones_like(warped[:1]), warped]).flatten(1)  # [P, N]
        w = self.weight.flatten()
        with torch.no_grad():
            gram = (phi * w) @ phi.T + 1e-6 * w.sum() * torch.eye(phi.shape[0], dtype=phi.dtype, device=phi.device)
            theta = torch.linalg.solve(gram, (phi * w) @ self.fixed.flatten(1).T)  # [P, C_f]
        residual = theta.T @ phi - self.fixed.flatten(1)
        mismatch = (w * residual**2).sum() / (w.sum() * self.fixed.shape[0])
        energy = regularizer + OBSERVATIONS / 2 * torch.log(mismatch + 1e-5)
        return energy.detach(), *torch.autograd.grad(energy, (v, m))


def make_case(
    side: int, channels: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Callable[[], tuple[Tensor, Tensor]], Callable[[], object]]:
    """Our evaluation and the literal one in ``dtype``, on a smooth pair bent by a few pixels, both on ``device``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, channels, side // 12, side // 12), generator=generator)
    image = F.interpolate(coarse, (side, side), mode="bicubic")[0]
    grid = rf.Grid((side, side))
    config = Config()
    fixed, moving = rf.Image(1 - image, grid), rf.Image(image.roll((1, 2), (1, 2)), grid)
    config = config.model_copy(update={"pyramid": config.pyramid.model_copy(update={"max_pixels": side * side})})
    sides = [Halvings(image).on(device) for image in (fixed, moving)]
    level = build_levels(*sides, torch.eye(3, dtype=torch.float64), config)[-1]
    space = velocity_space(grid, config)
    increment = Increment("affine", 2, 0.7 * side)
    metric = rf.metric("contrast")
    metric.prepare(rf.Image(level.fixed, level.fixed_grid), rf.Image(level.moving, level.moving_grid))
    weight = 0.5 + 0.5 * torch.rand((side, side), generator=generator)
    weight = weight.to(device)
    maps = MapSpace(torch.eye(3, dtype=torch.float64), increment, space.on(device))
    energy = Energy(level, metric, maps, weight, OBSERVATIONS)
    x = torch.cat([torch.zeros(6), 0.01 * torch.randn(space.size, generator=generator)]).to(device)
    path = energy.path(x, level.moving_grid)

    def affine(spacing: float, origin: tuple[float, ...], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        scale = torch.tensor([2 / (spacing * (n - 1)) for n in reversed(shape)], dtype=dtype)
        return scale, -1 - torch.tensor(origin[::-1], dtype=dtype) * scale

    frequencies = [
        2 * (1 - torch.cos(2 * math.pi * torch.arange(n) / n)) / s**2
        for n, s in zip(space.waves.shape, space.waves.spacing, strict=True)
    ]
    laplacian = (frequencies[0][:, None] + frequencies[1][None]).to(torch.float64)
    gain = float(space.symbol.reshape(-1)[0])  # sigma of v = sigma L^-1 u
    lhat = (1 + space.scale**2 * laplacian) ** space.order / gain
    scale, shift = affine(space.grid.spacing[0], space.grid.origin, space.grid.shape)
    image_scale, image_shift = affine(level.moving_grid.spacing[0], level.moving_grid.origin, level.moving_grid.shape)
    ticks = torch.arange(side, dtype=dtype)
    index = torch.stack([*torch.meshgrid(ticks, ticks, indexing="ij"), torch.ones((side, side), dtype=dtype)], dim=-1)
    literal = Literal(
        level.moving.to(dtype), level.fixed.to(dtype), weight.to(dtype), lhat.to(dtype),
        scale, shift, image_scale, image_shift, index,
    )  # fmt: skip
    literal = Literal(*(value.to(device) for value in vars(literal).values()))
    velocity, matrix = path.velocity.to(dtype), path.matrix.to(dtype)

    def ours() -> tuple[Tensor, Tensor]:
        return energy(x)

    def theirs() -> tuple[Tensor, Tensor, Tensor]:
        return literal(velocity, matrix)

    value, gradient = ours()
    other, v_grad, _ = theirs()
    assert float(value) == pytest.approx(float(other), rel=1e-3)
    # the gradient in v, brought to u, is ours
    assert relative(maps.space.adjoint(v_grad.float()), gradient[6:]) < 2e-2
    return ours, theirs


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
@pytest.mark.parametrize("channels", [3, 1])
def test_energy(channels: int, small: bool, threads: int, report: Callable[[str], None]) -> None:
    """Prints how many literal evaluations fit into one of ours, in float64 and in float32."""
    side = 96 if small else 1024
    runs: dict[str, Callable[[], object]] = {}
    for dtype in (torch.float64, torch.float32):
        ours, theirs = make_case(side, channels, dtype)
        runs["regframe"] = ours
        runs[str(dtype).removeprefix("torch.")] = theirs
    seconds = interleaved(runs, rounds=1 if small else 7)
    if small:
        return
    for name in ("float64", "float32"):
        ratio = seconds[name] / seconds["regframe"]
        report(
            f"energy and gradient, {side}², C = {channels}, T = 3: regframe {seconds['regframe'] * 1e3:.1f} ms, "
            f"literal eager {name} {seconds[name] * 1e3:.0f} ms, {ratio:.1f} x, {threads} threads"
        )
        record(
            bench="energy", what=f"{side}², C = {channels}, T = 3, literal eager {name}", threads=threads,
            ms=seconds["regframe"] * 1e3, rival_ms=seconds[name] * 1e3, ratio=ratio,
        )  # fmt: skip
