"""What the units of two sides say of their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ..data import Grid, unit_ratio


@dataclass(frozen=True)
class Scale:
    """How lengths of the moving side compare with those of the fixed side, as far as the units tell.

    Args:
        ratio: one moving unit in fixed units; None where one side is in pixels and the other in a length.
        physical: whether both sides are in a length. Pixels of two files need not be equally large, though their unit is one.
    """

    ratio: float | None
    physical: bool

    @classmethod
    def of(cls, fixed: Grid, moving: Grid) -> Scale:
        """That of two canvases."""
        ratio = unit_ratio(moving.unit, fixed.unit)
        return cls(ratio, ratio is not None and fixed.unit != "px")

    @property
    def factor(self) -> float:
        """One moving unit in fixed units, 1 where that is not known."""
        return self.ratio or 1.0

    def settled(self, transform: str) -> bool:
        """Whether the size need not be searched for: both sides say it, or a rigid map takes a pixel for a pixel."""
        return self.ratio is not None and (self.physical or transform == "rigid")
