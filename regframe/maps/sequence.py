"""Several maps, applied one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from .base import Transform


@dataclass(frozen=True)
class Sequence(Transform):
    """Several maps applied one after the other, the first one first; neighbouring units must agree."""

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        parts = tuple(itertools.chain.from_iterable(t.parts() for t in self.transforms))
        if not parts:
            raise ValueError("wanted at least one map in a sequence, got none")
        if len({t.ndim for t in parts}) != 1:
            raise ValueError(f"wanted maps of one dimension, got {[t.ndim for t in parts]}")
        for first, second in itertools.pairwise(parts):
            if first.target_unit != second.source_unit:
                raise ValueError(f"wanted maps whose units meet, got {first.target_unit} before {second.source_unit}")
        object.__setattr__(self, "transforms", parts)

    @property
    def source_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.transforms[0].source_unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.transforms[-1].target_unit

    @property
    def ndim(self) -> int:  # noqa: D102
        return self.transforms[0].ndim

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        for transform in self.transforms:
            coords = transform.points(coords)
        return coords

    def inverse(self) -> Sequence:  # noqa: D102
        return Sequence(tuple(t.inverse() for t in reversed(self.transforms)))

    def parts(self) -> tuple[Transform, ...]:  # noqa: D102
        return self.transforms


def in_a_row(parts: Iterable[Transform]) -> Transform:
    """Several maps as one, the first applied first: a `Sequence`, or the map itself where there is only one.

    Raises ValueError where there is none, or where dimensions or units do not agree.
    """
    maps = tuple(parts)
    return maps[0] if len(maps) == 1 else Sequence(maps)
