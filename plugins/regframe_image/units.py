"""Length units as image files spell them."""

from __future__ import annotations

import regframe

CONTRADICTION = 0.02
"""Relative difference of two statements of one pixel size above which one of them must be wrong. Makers round what they
declare to two or three digits (0.25 for 0.2527 µm: 1 %); a wrong level or objective is off by a factor of 1.5 or more."""


def ratio(source: str, target: str) -> float | None:
    """Factor from one length unit to another; None where one is unknown or they cannot be converted."""
    try:
        return regframe.unit_ratio(source, target)
    except ValueError:
        return None


def one_unit(lengths: dict[str, float], units: dict[str, str]) -> tuple[dict[str, float], str | None]:
    """Lengths by axis in the unit of the last axis; ``({}, None)`` where a unit is unknown or cannot be converted."""
    if not lengths:
        return {}, None
    unit = units[list(lengths)[-1]]
    converted: dict[str, float] = {}
    for axis, length in lengths.items():
        factor = ratio(units[axis], unit)
        if factor is None:
            return {}, None
        converted[axis] = length * factor
    return converted, unit
