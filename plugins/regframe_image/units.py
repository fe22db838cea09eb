"""Length units as files spell them."""

from __future__ import annotations

import regframe

CONTRADICTION = 0.02
"""Share by which two statements of one pixel size differ that cannot both be meant."""


def ratio(source: str, target: str) -> float | None:
    """Factor from one length unit to another; None where one is unknown or they cannot be converted."""
    try:
        one = regframe.Grid((1, 1), (1.0, 1.0), unit=source)
        return one.to_unit(target).spacing[0]
    except ValueError:
        return None


def short(unit: str) -> str:
    """The short name of a unit, ``"micrometer"`` → ``"µm"``."""
    return regframe.Grid((1, 1), unit=unit).unit


def to_ngff(unit: str) -> str | None:
    """The name OME-Zarr gives a unit; None for pixels."""
    return {"nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter"}.get(unit)


def to_ome(unit: str) -> str:
    """The name OME-XML gives a unit."""
    return "pixel" if unit == "px" else unit
