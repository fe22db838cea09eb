"""What the units of two sides tell about the scale between them."""

from __future__ import annotations

from dataclasses import dataclass

from ..data import Grid, unit_ratio


@dataclass(frozen=True)
class Scale:
    """The scale between the moving and the fixed side, as far as the units tell it.

    Args:
        ratio: length of one moving unit in fixed units; None where one side is in pixels and the other is not.
        physical: whether both sides are in length units. Two sides in pixels have ratio 1, but pixels of different size.
    """

    ratio: float | None
    physical: bool

    @classmethod
    def of(cls, fixed: Grid, moving: Grid) -> Scale:
        """The scale between two canvases."""
        ratio = unit_ratio(moving.unit, fixed.unit)
        return cls(ratio, ratio is not None and fixed.unit != "px")

    @property
    def factor(self) -> float:
        """Length of one moving unit in fixed units; 1 where it is unknown."""
        return self.ratio or 1.0

    def settled(self, transform: str) -> bool:
        """Whether the size is known and need not be searched for.

        That is so where both sides are in length units, and for a rigid map between two sides in pixels, which takes them as
        equal.
        """
        return self.ratio is not None and (self.physical or transform == "rigid")
