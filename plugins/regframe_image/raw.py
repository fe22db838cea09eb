"""What every reader hands to the adapter, and what they share: axis names, the size limit, error sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Raw:
    """An image before it is read: what its header declares, and how to get its pixels.

    Args:
        shape: pixels per axis of the stored array.
        dtype: of the stored values.
        axes: one letter per axis, lower case: ``t z c y x``, ``s`` for colour samples, anything else for unknown ones.
        read: returns the array; called once, after the size has been judged.
        spacing: per spatial axis name, of this level, in ``unit``; empty where the file declares none.
        origin: per spatial axis name, position of the first pixel's centre.
        factor: per spatial axis name, pixels of full resolution per pixel of this level.
        unit: of spacing and origin, None where the file declares none.
        channels: channel names, empty where the file has none.
        alpha: True where the last channel is opacity.
        levels: how many resolutions the file has.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: str
    read: Callable[[], Array]
    spacing: dict[str, float]
    origin: dict[str, float]
    factor: dict[str, float]
    unit: str | None = None
    channels: tuple[str, ...] = ()
    alpha: bool = False
    levels: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the array once read."""
        return math.prod(self.shape) * self.dtype.itemsize


def unreadable(path: Path, kind: str, error: BaseException) -> ValueError:
    """The one sentence for a file that is damaged or not what it seems."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"wanted a readable {kind} image, got {str(path)!r}, which cannot be decoded ({reason[:200]})")


def check_level(path: Path, level: int, levels: int) -> None:
    """ValueError where a file has no such resolution."""
    if not 0 <= level < levels:
        raise ValueError(
            f"wanted a level from 0 to {levels - 1} of {str(path)!r}, got {level}; it has {levels} resolution(s)"
        )


def reduction(full: Sequence[int], level: Sequence[int]) -> tuple[float, ...]:
    """Pixels of full resolution per pixel of a level: the whole number writers round by, else the plain ratio."""
    factors = []
    for n, m in zip(full, level, strict=True):
        whole = max(1, round(n / m))
        factors.append(float(whole) if abs(n / whole - m) < 1 else n / m)
    return tuple(factors)
