"""TIFF, OME-TIFF, ImageJ hyperstacks and slides of several makers through tifffile, tile by tile."""

from __future__ import annotations

import itertools
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from .raw import (
    Array,
    Raw,
    Region,
    Resolution,
    Stamp,
    Whole,
    check_chunk,
    check_count,
    kept,
    place,
    reduction,
    stamp,
    unreadable,
)

_FAULTS = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error, zlib.error)
_SEGMENT = 1 << 31
"""Bytes of one stored tile at most."""


def open_tiff(path: Path, labels: bool) -> Raw:
    """The header of the main image series and its levels; spacing from OME, ImageJ or the makers' fields, never from a DPI
    tag."""
    try:
        with tifffile.TiffFile(path) as file:
            series = main_series(file)
            check_count(path, len(series.levels))
            page = series.keyframe
            palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None and not labels
            spacing, unit, channels, colors = _declared(file)
            samples = series.axes.endswith("S") and series.shape[-1]
            alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2) and samples in (2, 4)
            full = {a.lower(): n for a, n in zip(series.axes, series.shape, strict=True)}
            axes, dtype, kind = series.axes.lower(), np.dtype(series.dtype), _kind(file)
            found = [(level.axes.lower(), tuple(level.shape), np.dtype(level.dtype)) for level in series.levels]
            colours = samples in (3, 4) and not channels
        if any(a != axes or d != dtype for a, _, d in found):
            raise ValueError(f"its levels differ in axes or type: {sorted({(a, str(d)) for a, _, d in found})}")
        identity = stamp(path)
        layouts = kept(_layouts, str(path), identity)
    except ValueError as error:
        if "wanted" in str(error):
            raise
        raise unreadable(path, "TIFF", error) from error
    except _FAULTS as error:
        raise unreadable(path, "TIFF", error) from error
    spatial = [a for a in axes if a in "zyx"]
    levels = []
    for k, (_, shape, _) in enumerate(found):
        here = dict(zip(axes, shape, strict=True))
        factor = dict(zip(spatial, reduction([full[a] for a in spatial], [here[a] for a in spatial]), strict=True))
        step: dict[str, float] = {}
        first: dict[str, float] = {}
        if set(spatial) <= set(spacing):
            first = {a: spacing[a] * (factor[a] - 1) / 2 for a in spatial}
            step = {a: spacing[a] * factor[a] for a in spatial}
        chunk = layouts[k].chunk
        read = TiffRegion(path, identity, k, axes + "s" * palette, palette)
        if palette:
            shape, chunk = (*shape, 3), (*chunk, 3)
        levels.append(Resolution(shape, chunk, read, step, first, factor))
    if palette:
        axes, dtype = axes + "s", np.dtype(np.uint8)
    if palette or colours:
        channels = ("red", "green", "blue")
    return Raw(axes, dtype, tuple(levels), unit if levels[0].spacing else None, channels, colors, alpha, format=kind)


def main_series(file: tifffile.TiffFile) -> Any:
    """The images that a file is about: its first series, of a Leica slide (which begins with an overview) the largest."""
    if file.is_scn:
        return max(file.series, key=lambda series: math.prod(series.shape))
    return file.series[0]


def needs_stitching(path: Path) -> bool:
    """Whether the tiles of a TIFF overlap, as in Ventana's slides."""
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.is_bif)
    except _FAULTS:
        return False  # `open_tiff` says what is wrong


def _kind(file: tifffile.TiffFile) -> str:
    kinds = {"is_ome": "OME-TIFF", "is_imagej": "ImageJ TIFF", "is_svs": "Aperio SVS", "is_ndpi": "Hamamatsu NDPI"}
    kinds |= {"is_scn": "Leica SCN", "is_philips": "Philips TIFF", "is_qpi": "QPTIFF"}
    return next((kind for flag, kind in kinds.items() if getattr(file, flag)), "TIFF")


@dataclass(frozen=True)
class TiffRegion:
    """Regions of one level of a TIFF: only the tiles or strips that they touch are read and decoded."""

    path: Path
    stamp: Stamp
    level: int
    axes: str
    palette: bool

    def __call__(self, region: Region) -> Array:
        """The values of one region; ValueError names it where a tile is missing its end or cannot be decoded."""
        try:
            layout = kept(_layouts, str(self.path), self.stamp)[self.level]
            if not self.palette:
                return np.asarray(layout.read(region))
            index = layout.read(region[:-1])
            colours = np.moveaxis(layout.colormap[:, index], 0, -1)[..., region[-1]]
            return (colours >> 8).astype(np.uint8)
        except _FAULTS as error:
            raise unreadable(self.path, "TIFF", error, place(self.level, self.axes, region)) from error


class _Layout:
    """Where the pixels of one level lie in the file, and how they are decoded; made once per process."""

    def __init__(self, path: str, series: Any) -> None:
        page = series.keyframe
        self.path, self.shape, self.dtype = path, tuple(series.shape), np.dtype(series.dtype)
        self.colormap = page.colormap
        self.page = page
        inner = tuple(page.shape)
        outer = self.shape[: len(self.shape) - len(inner)]
        pages = list(series.pages)
        self.n_outer = len(outer)
        self.paths = [path if p is None else str(p.parent.filehandle.path) for p in pages]
        elsewhere = sorted({p for p in self.paths if Path(p).resolve().parent != Path(path).resolve().parent})
        if elsewhere:
            raise ValueError(f"its pages lie in other folders ({elsewhere[0]})")
        alone = len({Path(p).name for p in self.paths}) == 1
        self.offset = series.dataoffset if page.is_final and alone else None
        self.stored = self.dtype.newbyteorder(page.parent.byteorder)
        plain = (*outer, *inner) == self.shape and len(pages) == math.prod(outer) and page.imagedepth == 1
        if self.offset is not None:
            self.read = self._flat
            self.chunk = _rows(self.shape, series.axes, self.dtype.itemsize)
        elif plain and page.is_final:
            self.offsets = [None if p is None else p.dataoffsets[0] for p in pages]
            self.read = self._planes
            self.chunk = (*(1 for _ in outer), *_rows(inner, page.axes, self.dtype.itemsize))
        elif plain:
            jpeg = page.compression in (6, 7, 33007, 34892)
            self.segments = [None if p is None else (p.dataoffsets, p.databytecounts) for p in pages]
            self.arguments = [
                {"jpegtables": p.jpegtables, "jpegheader": page.jpegheader} if jpeg and p is not None else {}
                for p in pages
            ]
            page.init_decode()
            tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
            rows = min(tile[0], page.imagelength) if not page.is_tiled else tile[0]
            samples = page.samplesperpixel if page.planarconfig == 1 else 1
            check_chunk(Path(path), "a tile", (rows, tile[1], samples), inner, self.dtype.itemsize)
            self.tile, self.read = (rows, tile[1]), self._tiles
            sizes = {"Y": rows, "X": tile[1], "S": samples}
            self.chunk = (*(1 for _ in outer), *(sizes[a] for a in page.axes))
        else:
            self.series = next(i for i, s in enumerate(page.parent.series) if any(v is series for v in s.levels))
            self.level = next(k for k, v in enumerate(page.parent.series[self.series].levels) if v is series)
            self.read = Whole(self._whole)
            self.chunk = self.shape

    def _flat(self, region: Region) -> Array:
        """All values lie one after another."""
        mapped = np.memmap(self.path, self.stored, "r", self.offset, self.shape)
        return np.array(mapped[region], dtype=self.dtype)

    def _planes(self, region: Region) -> Array:
        """The values of each page lie one after another."""
        inner = tuple(self.page.shape)

        def one(plane: int) -> Array:
            if self.offsets[plane] is None:
                return np.full(inner, self.page.nodata, self.dtype)[region[self.n_outer :]]
            mapped = np.memmap(self.paths[plane], self.stored, "r", self.offsets[plane], inner)
            return np.array(mapped[region[self.n_outer :]], dtype=self.dtype)

        return self._stack(region, one)

    def _tiles(self, region: Region) -> Array:
        return self._stack(region, lambda plane: self._decoded(plane, region[self.n_outer :]))

    def _decoded(self, plane: int, region: Region) -> Array:
        """A region of one page, put together from its tiles or strips."""
        with Path(self.paths[plane]).open("rb") as file:
            return self._assembled(file, plane, region)

    def _assembled(self, file: Any, plane: int, region: Region) -> Array:
        page, axes = self.page, self.page.axes
        window = dict(zip(axes, region, strict=True))
        y, x = window["Y"], window["X"]
        planar = page.planarconfig == 2 and page.samplesperpixel > 1
        samples = window.get("S", slice(0, 1))
        separate = range(samples.start, samples.stop) if planar else range(1)
        across = page.samplesperpixel if not planar else 1
        out = np.full((len(separate), y.stop - y.start, x.stop - x.start, across), page.nodata, self.dtype)
        (height, width), found = self.tile, self.segments[plane]
        down, wide = -(-page.imagelength // height), -(-page.imagewidth // width)
        for s, sample in enumerate(separate):
            for row in range(y.start // height, -(-y.stop // height)) if found is not None else ():
                for column in range(x.start // width, -(-x.stop // width)):
                    index = (sample * down + row) * wide + column
                    offset, count = int(found[0][index]), int(found[1][index])
                    if offset == 0 or count == 0:  # a sparse file has no such tile: it is all nodata
                        continue
                    file.seek(offset)
                    data = file.read(min(count, _SEGMENT))
                    if len(data) != count:
                        raise ValueError(
                            f"the tile in row {row}, column {column} ends after {len(data)} of {count} bytes"
                        )
                    tile, (_, _, top, left, _), _ = page.decode(data, index, **self.arguments[plane])
                    tile = tile[0]  # [h, w, samples]
                    top_, left_ = max(top, y.start), max(left, x.start)
                    bottom, right = min(top + tile.shape[0], y.stop), min(left + tile.shape[1], x.stop)
                    if bottom > top_ and right > left_:
                        out[s, top_ - y.start : bottom - y.start, left_ - x.start : right - x.start] = tile[
                            top_ - top : bottom - top, left_ - left : right - left
                        ]
        if planar:
            return out[..., 0]  # [S, h, w]
        return out[0][..., samples] if "S" in axes else out[0, ..., 0]

    def _stack(self, region: Region, one: Any) -> Array:
        """The regions of several pages as one array with all axes."""
        outer = self.shape[: self.n_outer]
        picked = [range(s.start, s.stop) for s in region[: self.n_outer]]
        parts = [one(int(np.ravel_multi_index(index, outer)) if outer else 0) for index in itertools.product(*picked)]
        return np.stack(parts).reshape(*(len(p) for p in picked), *parts[0].shape)

    def _whole(self) -> Array:
        with tifffile.TiffFile(self.path) as file:
            array: Array = file.series[self.series].levels[self.level].asarray(maxworkers=1)
        return array


def _layouts(path: str, identity: Stamp) -> list[_Layout]:
    if stamp(Path(path)) != identity:
        raise ValueError("the file is another one than when it was opened")
    with tifffile.TiffFile(path) as file:
        return [_Layout(path, level) for level in main_series(file).levels]


def _rows(shape: Sequence[int], axes: str, itemsize: int) -> tuple[int, ...]:
    """A chunk of whole rows, about a megabyte, of values that lie one after another."""
    chunk = list(shape)
    at = axes.index("Y") if "Y" in axes else len(shape) - 1
    row = math.prod(shape[at + 1 :]) * itemsize
    chunk[:at] = [1] * at
    chunk[at] = max(1, min(shape[at], (1 << 20) // max(row, 1)))
    return tuple(chunk)


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


Declared = tuple[dict[str, float], str | None, tuple[str, ...], tuple[str, ...]]
"""Spacing of full resolution by axis, its unit, channel names and colours, as far as a file declares them."""


def _declared(file: tifffile.TiffFile) -> Declared:
    description = str(file.pages.first.description)
    if file.is_ome and file.ome_metadata:
        return from_ome(file.ome_metadata)
    if file.is_svs:
        found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
        if found and float(found[1]) > 0:
            return dict.fromkeys("yx", float(found[1])), "µm", (), ()
    if file.is_philips:
        found = re.search(r'Name="DICOM_PIXEL_SPACING"[^>]*>\s*"?([0-9.eE+-]+)"?[\s&quot;"]+([0-9.eE+-]+)', description)
        if found and float(found[1]) > 0 and float(found[2]) > 0:
            return {"y": float(found[1]), "x": float(found[2])}, "mm", (), ()
    if file.is_ndpi:  # the maker's own use of these tags, in pixels per centimetre
        return _from_resolution(file.pages.first, "cm")
    if file.is_scn:
        return _from_scn(file)
    if file.is_imagej:
        return _from_imagej(file)
    return {}, None, (), ()


def from_ome(xml: str) -> Declared:
    """What the first image of an OME-XML text declares."""
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


def _from_resolution(page: Any, unit: str) -> Declared:
    """Pixels per unit in the resolution tags of a maker who keeps the pixel size there."""
    if page.tags.get("ResolutionUnit") is None or int(page.tags["ResolutionUnit"].value) != 3:
        return {}, None, (), ()
    spacing = {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        value = page.tags.get(tag)
        if value is None or not all(value.value):
            return {}, None, (), ()
        spacing[axis] = value.value[1] / value.value[0]
    return spacing, unit, (), ()


def _from_scn(file: tifffile.TiffFile) -> Declared:
    """The size of Leica's view in nanometres, over its pixels."""
    shape = main_series(file).shape
    try:
        root = ElementTree.fromstring(str(file.scn_metadata))
    except ElementTree.ParseError:
        return {}, None, (), ()
    for image in root.iter():
        if image.tag.rpartition("}")[2] != "image":
            continue
        parts = {child.tag.rpartition("}")[2]: child for child in image}
        if "pixels" not in parts or "view" not in parts:
            continue
        pixels = (parts["pixels"].get("sizeY"), parts["pixels"].get("sizeX"))
        lengths = (parts["view"].get("sizeY"), parts["view"].get("sizeX"))
        if all(pixels) and all(lengths) and all(int(str(n)) in shape for n in pixels):
            step = [int(str(n)) / int(str(m)) for n, m in zip(lengths, pixels, strict=True)]
            return dict(zip("yx", step, strict=True)), "nm", (), ()
    return {}, None, (), ()


def _from_imagej(file: tifffile.TiffFile) -> Declared:
    """ImageJ keeps pixels per unit in the resolution tags and names the unit beside; inches mean print size."""
    metadata = file.imagej_metadata or {}
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    if unit.lower() not in ("micron", "microns", "um", "µm", "nm", "mm", "cm", "m"):
        return {}, None, (), ()
    spacing: dict[str, float] = {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        value = file.pages.first.tags.get(tag)
        if value is None or not all(value.value):
            return {}, None, (), ()
        spacing[axis] = value.value[1] / value.value[0]
    if float(metadata.get("spacing", 0)) > 0:
        spacing["z"] = float(metadata["spacing"])
    return spacing, unit, (), ()


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
