"""TIFF, OME-TIFF, ImageJ hyperstacks and Aperio SVS through tifffile."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from .raw import Array, Raw, check_level, reduction, unreadable

_FAULTS = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error, zlib.error)


def open_tiff(path: Path, level: int, labels: bool) -> Raw:
    """The header of the first image series; spacing from OME, ImageJ or Aperio fields, never from a DPI tag."""
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            levels = len(series.levels)
            check_level(path, level, levels)
            chosen = series.levels[level]
            page = series.keyframe
            palette = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not labels else None
            spacing, unit, channels = _declared(file)
            samples = series.axes.endswith("S") and series.shape[-1]
            alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2) and samples in (2, 4)
            full = {a.lower(): n for a, n in zip(series.axes, series.shape, strict=True)}
            axes, shape, dtype = chosen.axes.lower(), tuple(chosen.shape), np.dtype(chosen.dtype)
            colours = samples in (3, 4) and not channels
    except ValueError as error:
        if "wanted" in str(error):
            raise
        raise unreadable(path, "TIFF", error) from error
    except _FAULTS as error:
        raise unreadable(path, "TIFF", error) from error
    spatial = [a for a in axes if a in "zyx"]
    here = dict(zip(axes, shape, strict=True))
    factor = dict(zip(spatial, reduction([full[a] for a in spatial], [here[a] for a in spatial]), strict=True))
    if set(spatial) <= set(spacing):
        origin = {a: spacing[a] * (factor[a] - 1) / 2 for a in spatial}
        spacing = {a: spacing[a] * factor[a] for a in spatial}
    else:
        spacing, origin, unit = {}, {}, None

    def read() -> Array:
        try:
            with tifffile.TiffFile(path) as file:
                array: Array = file.series[0].levels[level].asarray(maxworkers=1)
        except _FAULTS as error:
            raise unreadable(path, "TIFF", error) from error
        if palette is not None:
            array = (np.moveaxis(palette[:, array], 0, -1) >> 8).astype(np.uint8)
        return array

    if palette is not None:
        shape, axes, dtype, channels = (*shape, 3), axes + "s", np.dtype(np.uint8), ("red", "green", "blue")
    if colours:
        channels = ("red", "green", "blue")
    return Raw(shape, dtype, axes, read, spacing, origin, factor, unit, channels, alpha, levels)


def write_tiff(
    path: Path,
    array: Array,
    axes: str,
    spacing: dict[str, float] | None,
    unit: str | None,
    channels: tuple[str, ...],
    rgb: bool,
) -> None:
    """One OME-TIFF, axes out of ``CZYX`` (or ``YXS`` where ``rgb``), with its physical spacing and channel names."""
    metadata: dict[str, Any] = {"axes": axes}
    for axis, step in (spacing or {}).items():
        metadata[f"PhysicalSize{axis.upper()}"] = step
        metadata[f"PhysicalSize{axis.upper()}Unit"] = unit
    if not rgb:
        metadata["Channel"] = {"Name": list(channels)}
    tifffile.imwrite(
        path, array, ome=True, photometric="rgb" if rgb else "minisblack", compression="zlib", metadata=metadata,
        planarconfig="contig" if rgb else None, maxworkers=1,
    )  # fmt: skip


def _declared(file: tifffile.TiffFile) -> tuple[dict[str, float], str | None, tuple[str, ...]]:
    """Spacing of full resolution by axis, its unit, and channel names, as far as the file declares them."""
    if file.is_ome and file.ome_metadata:
        return _from_ome(file.ome_metadata)
    if file.is_svs:
        found = re.search(r"\bMPP\s*=\s*([0-9.]+)", str(file.pages.first.description))
        if found and float(found[1]) > 0:
            return dict.fromkeys("yx", float(found[1])), "µm", ()
    if file.is_imagej:
        return _from_imagej(file)
    return {}, None, ()


def _from_ome(xml: str) -> tuple[dict[str, float], str | None, tuple[str, ...]]:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return {}, None, ()
    pixels = [element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"]
    if not pixels:
        return {}, None, ()
    found = pixels[0]
    names = [c.get("Name") for c in found if c.tag.rpartition("}")[2] == "Channel"]
    channels = tuple(str(name) for name in names) if names and all(names) else ()
    spacing: dict[str, float] = {}
    units: dict[str, str] = {}
    for axis in "zyx":
        text = found.get(f"PhysicalSize{axis.upper()}")
        if text is not None and float(text) > 0:
            spacing[axis] = float(text)
            units[axis] = found.get(f"PhysicalSize{axis.upper()}Unit", "µm")
    return *one_unit(spacing, units), channels


def _from_imagej(file: tifffile.TiffFile) -> tuple[dict[str, float], str | None, tuple[str, ...]]:
    """ImageJ keeps pixels per unit in the resolution tags and names the unit beside; inches mean print size."""
    metadata = file.imagej_metadata or {}
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    if unit.lower() not in ("micron", "microns", "um", "µm", "nm", "mm", "cm", "m"):
        return {}, None, ()
    spacing: dict[str, float] = {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        value = file.pages.first.tags.get(tag)
        if value is None or not all(value.value):
            return {}, None, ()
        spacing[axis] = value.value[1] / value.value[0]
    if float(metadata.get("spacing", 0)) > 0:
        spacing["z"] = float(metadata["spacing"])
    return spacing, unit, ()


def one_unit(lengths: dict[str, float], units: dict[str, str]) -> tuple[dict[str, float], str | None]:
    """Lengths per axis in the unit of the last axis; nothing where a unit is unknown or cannot be converted."""
    from .units import ratio

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
