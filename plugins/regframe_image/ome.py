"""OME-XML, which describes an image in a TIFF or beside an OME-Zarr: pixel size, channel names and colours."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from .units import one_unit

Declared = tuple[dict[str, float], str | None, tuple[str, ...], tuple[str, ...]]
"""Spacing of full resolution by axis, its unit, channel names and colours, as far as a file declares them."""


def from_ome(xml: str) -> Declared:
    """The declarations of the first image in an OME-XML text; none of a text that is no XML or describes no pixels."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return {}, None, (), ()
    pixels = [element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"]
    if not pixels:
        return {}, None, (), ()
    found = pixels[0]
    described = [c for c in found if c.tag.rpartition("}")[2] == "Channel"]
    names, painted = [c.get("Name") for c in described], [c.get("Color") for c in described]
    channels = tuple(str(name) for name in names) if names and all(names) else ()
    colors: tuple[str, ...] = ()
    if painted and all(c is not None and re.fullmatch(r"-?\d+", c) for c in painted):
        colors = tuple(f"{(int(str(c)) >> 8) & 0xFFFFFF:06X}" for c in painted)  # a signed RGBA
    spacing: dict[str, float] = {}
    units: dict[str, str] = {}
    for axis in "zyx":
        try:
            length = float(found.get(f"PhysicalSize{axis.upper()}") or 0)
        except ValueError:
            continue
        if math.isfinite(length) and length > 0:
            spacing[axis] = length
            units[axis] = found.get(f"PhysicalSize{axis.upper()}Unit", "µm")
    return *one_unit(spacing, units), channels, colors
