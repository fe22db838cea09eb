"""TIFF, OME-TIFF, ImageJ hyperstacks and slides of several makers through tifffile, tile by tile."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import tifffile

import regframe

from .colour import RGB, Scheme, is_picture, scheme
from .makers import absent_files, check_planes, metadata_elsewhere, profile_note, qpi_channels, scn_images
from .ome import Declared, described, from_ome
from .raw import (
    FAULTS,
    Array,
    Place,
    Raw,
    Region,
    Resolution,
    Stamp,
    Whole,
    check_chunk,
    check_count,
    check_unchanged,
    kept,
    place,
    readable,
    reduction,
    rows,
    stamp,
)
from .series import Found, choose, listed, role_of, told
from .tiffcheck import check_tiff
from .units import calibrate, is_step, length

_SEGMENT = 1 << 31
"""Bytes that are read of one stored tile at most: 2 GiB, more than `check_chunk` lets one unpack to."""
_SKIPPED = 1 << 15
"""Bytes between two rows of a region that are read with them from a remote store: 32 KiB cost less time than one more request."""
_TOGETHER_READ = 64
"""Tiles that are fetched from a remote store before they are decoded: 50 MB of 512 × 512 pixels in colour."""
_JPEG = (6, 7, 33007, 34892)
"""Values of the tag Compression that mean JPEG, whose tables may stand once for all tiles: TIFF 6.0 and two makers' own."""
_TOGETHER, _APART = 1, 2
"""Values of the tag PlanarConfiguration: the samples of a pixel lie side by side, or in a plane each."""
_CENTIMETRE = 3
"""Value of the tag ResolutionUnit for pixels per centimetre; 2 is the inch, of a print."""


def _not_zeroed(record: logging.LogRecord) -> bool:
    """Whether a message of tifffile is passed on: not that it fills planes of missing files with 0, which are refused here."""
    return "Missing data are zeroed" not in record.getMessage()


logging.getLogger("tifffile").addFilter(_not_zeroed)


def open_tiff(path: Place, labels: bool, wanted: int | str | None = None) -> Raw:
    """The header of one image of a file and its levels; spacing from OME, ImageJ or the makers' fields, never from a DPI tag.

    Args:
        path: of the file.
        labels: whether values are ids.
        wanted: number or name of the image where there are several; None takes the scan.
    """
    with readable(path, "TIFF"):
        with opened(path) as file:
            _check_alone(path, file)
            images = _described(file)
            found = [_found(s, d) for s, d in zip(file.series, images, strict=True)]
            index = _scan(file, found) if wanted is None else choose(found, wanted, path.name)
            series, declared, kind = file.series[index], images[index], _kind(file)
            check_count(path, len(series.levels))
            sizes = {a.lower(): n for a, n in zip(series.axes, series.shape, strict=True)}
            colours = scheme(series.keyframe, sizes.get("s", 0), labels)
            if sizes.get("c", 1) > 1:  # the opacity of one channel is not that of the others
                colours = replace(colours, alpha=False)
            axes, dtype = series.axes.lower(), np.dtype(series.dtype)
            aloud, profile = _aloud(path, file, series), series.keyframe.iccprofile
            stored = [(level.axes.lower(), tuple(level.shape), np.dtype(level.dtype)) for level in series.levels]
        if any(a != axes or d != dtype for a, _, d in stored):
            raise ValueError(f"its levels differ in axes or type: {sorted({(a, str(d)) for a, _, d in stored})}")
        identity = stamp(path)
        layouts = kept(_layouts, path, identity, *([index] if index else []))
    spatial = [a for a in axes if a in "zyx"]
    size = calibrate(declared.numbers, declared.words, [a for a in spatial if a in "yx" or sizes[a] > 1], path.name)
    levels, letters = [], axes + "s" * (colours.kind == "palette")
    for k, (_, shape, _) in enumerate(stored):
        here = dict(zip(axes, shape, strict=True))
        factor = dict(zip(spatial, reduction([sizes[a] for a in spatial], [here[a] for a in spatial]), strict=True))
        step = size.spacing({a: n * factor.get(a, 1.0) for a, n in declared.numbers.items()}, factor)
        first = {a: s / factor[a] * (factor[a] - 1) / 2 for a, s in step.items() if a in factor}
        read = TiffRegion(path, identity, k, letters, colours, index)
        shape, chunk = (_coloured(sides, axes, colours) for sides in (shape, layouts[k].chunk))
        levels.append(Resolution(shape, chunk, read, step, first, factor))
    return Raw(
        letters,
        colours.dtype,
        tuple(levels),
        size.unit,
        _names(declared, colours, sizes.get("c", 1)),
        declared.colors,
        colours.alpha,
        colours.premultiplied,
        format=kind,
        series=listed(found, index) if len(found) > 1 else (),
        guessed=tuple(size.filled),
        doubts=size.doubts,
        said=(*told(found, index, wanted, path.name), *aloud),
        notes=(
            *size.notes,
            *profile_note(path, profile),
            *((f"{path.name}: {colours.note}",) if colours.note else ()),
            *_renamed(declared, colours, path.name),
        ),
        waves=declared.waves,
        stage=declared.stage,
    )


def _coloured(sides: tuple[int, ...], axes: str, colours: Scheme) -> tuple[int, ...]:
    """Pixels per axis of a level or chunk, with the samples that come out."""
    if colours.kind == "palette":
        return (*sides, 3)
    return tuple(colours.samples if a == "s" and colours.mixes else n for n, a in zip(sides, axes, strict=True))


def _names(declared: Declared, colours: Scheme, channels: int) -> tuple[str, ...]:
    """The names of the channels that come out: a picture's colours, each channel's colours, or those that the file gives."""
    if not colours.names:
        names = declared.channels
        picture = len(names) in (0, 3) and channels == 3 and colours.samples < 2 and len(declared.colors) in (0, 3)
        return RGB if picture and is_picture(names, declared.colors, colours.dtype) else names
    if channels == 1:
        return colours.names
    if len(declared.channels) == channels:
        return tuple(f"{name} {colour}" for name in declared.channels for colour in colours.names)
    return ()


def _renamed(declared: Declared, colours: Scheme, name: str) -> tuple[str, ...]:
    """That the name of a picture is not the name of its colours."""
    if not (colours.names and declared.channels):
        return ()
    return (f"{name}: its channel {', '.join(declared.channels)} is in colour: red, green, blue",)


def _described(file: tifffile.TiffFile) -> list[Declared]:
    """What the file declares of each of its images."""
    series = file.series
    if file.is_ome and file.ome_metadata:
        images = from_ome(file.ome_metadata)
        return [described(images, i, len(series), s.name, _plane(s)) for i, s in enumerate(series)]
    if file.is_scn and len(images := scn_images(file)) == len(series):
        return images
    main = _declared(file)
    chosen = series.index(main_series(file))
    return [main if i == chosen else Declared() for i in range(len(series))]


def _aloud(path: Place, file: tifffile.TiffFile, series: Any) -> tuple[str, ...]:
    """What has to be said of an OME-TIFF whose parts lie in other files, or nowhere."""
    if isinstance(path, regframe.Remote) or not file.is_ome:
        return ()
    gone = sum(page is None for page in series.pages)
    absent = absent_files(path, file)
    if gone and absent:
        said = f"{path.name}: {gone} of its {len(series.pages)} planes lie in files that are missing ({', '.join(absent[:3])})"
        return (f"{said}; reading one of them is an error",)
    if gone:
        return (
            f"{path.name}: {gone} of the {len(series.pages)} planes that it declares are not stored; they are all 0",
        )
    return metadata_elsewhere(path, file)


def _plane(series: Any) -> tuple[int, int]:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return sizes.get("Y", 0), sizes.get("X", 0)


def _found(series: Any, declared: Declared) -> Found:
    """An image of the file among others."""
    reduced = bool(int(series.keyframe.subfiletype or 0) & 1)
    name = series.name or declared.name
    sizes = {a.lower(): int(n) for a, n in zip(series.axes, series.shape, strict=True)}
    return Found(name, sizes, declared.numbers, declared.words, role_of(name, reduced))


def _scan(file: tifffile.TiffFile, found: list[Found]) -> int:
    """The place of the image that is read where none is named: of makers' slides the one that the maker means."""
    if file.is_svs or file.is_ndpi or file.is_philips or file.is_qpi:
        return 0
    return choose(found, None, "")


def main_series(file: tifffile.TiffFile) -> Any:
    """The image that a maker's metadata describe: its first series, of a Leica slide (which begins with an overview) the
    largest."""
    if file.is_scn:
        return max(file.series, key=lambda series: math.prod(series.shape))
    return file.series[0]


@contextlib.contextmanager
def opened(path: Place) -> Iterator[tifffile.TiffFile]:
    """A TIFF on this disk, or under an address, of which only what is needed is read."""
    if not isinstance(path, regframe.Remote):
        with tifffile.TiffFile(path) as file:
            check_tiff(path, file)
            yield file
        return
    with (
        regframe.RangedFile(path, path.stamp()) as stream,
        tifffile.TiffFile(cast("IO[bytes]", stream), name=path.name, _multifile=False) as file,
    ):
        yield file


def _check_alone(path: Place, file: tifffile.TiffFile) -> None:
    """ValueError for a file under an address whose pages lie in other files: names in it are not followed."""
    if isinstance(path, regframe.Remote) and file.is_ome and file.series[0].kind.lower() != "ome":
        raise ValueError(
            f"wanted a TIFF with all its pages in one file, got {str(path)!r}, whose OME-XML names others; download all of them"
        )


def needs_stitching(path: Place) -> bool:
    """Whether the tiles of a TIFF overlap, as in Ventana's slides."""
    try:
        with opened(path) as file:
            return bool(file.is_bif)
    except regframe.RemoteError:
        raise
    except FAULTS:
        return False  # `open_tiff` says what is wrong


def _kind(file: tifffile.TiffFile) -> str:
    kinds = {"is_ome": "OME-TIFF", "is_imagej": "ImageJ TIFF", "is_svs": "Aperio SVS", "is_ndpi": "Hamamatsu NDPI"}
    kinds |= {"is_scn": "Leica SCN", "is_philips": "Philips TIFF", "is_qpi": "QPTIFF"}
    return next((kind for flag, kind in kinds.items() if getattr(file, flag)), "TIFF")


@dataclass(frozen=True)
class TiffRegion:
    """Regions of one level of a TIFF: only the tiles or strips that they touch are read and decoded."""

    path: Place
    stamp: Stamp
    level: int
    axes: str
    colours: Scheme
    series: int = 0

    def __call__(self, region: Region) -> Array:
        """The values of one region; ValueError names it where a tile is missing its end or cannot be decoded."""
        with readable(self.path, "TIFF", place(self.level, self.axes, region)):
            which = [self.series] if self.series else []
            layout: _Layout = kept(_layouts, self.path, self.stamp, *which)[self.level]
            if not self.colours.mixes:
                return self.colours.converted(layout.read(region))
            if self.colours.kind == "palette":
                return self.colours.converted(layout.read(region[:-1]), layout.colormap)[..., region[-1]]
            at = self.axes.index("s")
            every = (*region[:at], slice(0, layout.shape[at]), *region[at + 1 :])
            out: Array = self.colours.converted(np.moveaxis(layout.read(every), at, -1))[..., region[at]]
            return np.moveaxis(out, -1, at)


class _Layout(ABC):
    """Where the pixels of one level lie in the file, and how they are decoded; made once per process.

    ``chunk`` counts the pixels per stored axis that are decoded together.
    """

    chunk: tuple[int, ...]

    def __init__(self, path: Place, series: Any) -> None:
        self.path = path
        self.page = series.keyframe
        self.shape: tuple[int, ...] = tuple(series.shape)
        self.dtype = np.dtype(series.dtype)
        self.stored = self.dtype.newbyteorder(self.page.parent.byteorder)
        self.colormap = self.page.colormap

    @abstractmethod
    def read(self, region: Region) -> Array:
        """The values of one region, all stored axes kept."""


class _OneRun(_Layout):
    """All values lie one after another, uncompressed."""

    def __init__(self, path: Place, series: Any) -> None:
        super().__init__(path, series)
        self.offset = int(series.dataoffset)
        self.chunk = rows(self.shape, _row_axis(series.axes), self.dtype.itemsize)

    def read(self, region: Region) -> Array:
        return _run(self.path, self.stored, self.offset, self.shape, region).astype(self.dtype)


class _Pages(_Layout):
    """A level of several pages of one shape: the first axes of the level count the pages, the others are those of a page.

    Args:
        path: of the file that was opened.
        series: of the level.
        pages: of the level, None for one that the file leaves out.
        paths: the file that each page lies in.

    ``absent`` names the files in which pages lie that are not there.
    """

    def __init__(self, path: Place, series: Any, pages: list[Any], paths: list[Place]) -> None:
        super().__init__(path, series)
        self.paths = paths
        self.absent: tuple[str, ...] = ()
        self.inner: tuple[int, ...] = tuple(self.page.shape)
        self.outer = self.shape[: len(self.shape) - len(self.inner)]

    def read(self, region: Region) -> Array:
        n = len(self.outer)
        picked = [range(s.start, s.stop) for s in region[:n]]
        pages = [int(np.ravel_multi_index(index, self.outer)) if n else 0 for index in itertools.product(*picked)]
        parts = [self.read_page(page, region[n:]) for page in pages]
        return np.stack(parts).reshape(*(len(p) for p in picked), *parts[0].shape)

    @abstractmethod
    def read_page(self, page: int, region: Region) -> Array:
        """A region of one page, in the axes of a page."""


class _PlainPages(_Pages):
    """The values of each page lie one after another, uncompressed."""

    def __init__(self, path: Place, series: Any, pages: list[Any], paths: list[Place]) -> None:
        super().__init__(path, series, pages, paths)
        self.offsets = [None if page is None else int(page.dataoffsets[0]) for page in pages]
        self.chunk = (*(1 for _ in self.outer), *rows(self.inner, _row_axis(self.page.axes), self.dtype.itemsize))

    def read_page(self, page: int, region: Region) -> Array:
        offset = self.offsets[page]
        if offset is None:  # a page that the file leaves out
            check_planes(self.absent)
            return np.full(self.inner, self.page.nodata, self.dtype)[region]
        return _run(self.paths[page], self.stored, offset, self.inner, region).astype(self.dtype)


class _TiledPages(_Pages):
    """Each page is made of tiles, or of strips, which are tiles as wide as the page."""

    def __init__(self, path: Place, series: Any, pages: list[Any], paths: list[Place]) -> None:
        super().__init__(path, series, pages, paths)
        page = self.page
        jpeg = page.compression in _JPEG
        self.segments = [None if p is None else (p.dataoffsets, p.databytecounts) for p in pages]
        self.arguments = [
            {"jpegtables": p.jpegtables, "jpegheader": page.jpegheader} if jpeg and p is not None else {} for p in pages
        ]
        page.decode  # noqa: B018 - made here, by one thread, for all that read; `init_decode` is of tifffile 2026.2 and later
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        if not page.is_tiled:
            height = min(height, page.imagelength)
        samples = page.samplesperpixel if page.planarconfig == _TOGETHER else 1
        check_chunk(path, "a tile", (height, width, samples), self.inner, self.dtype.itemsize)
        self.tile: tuple[int, int] = (height, width)
        self.held = regframe.Held()
        sizes = {"Y": height, "X": width, "S": samples}
        self.chunk = (*(1 for _ in self.outer), *(sizes[a] for a in page.axes))

    def read_page(self, page: int, region: Region) -> Array:
        axes = self.page.axes
        window = dict(zip(axes, region, strict=True))
        y, x, samples = window["Y"], window["X"], window.get("S", slice(0, 1))
        planar = self.page.planarconfig == _APART and self.page.samplesperpixel > 1
        planes = range(samples.start, samples.stop) if planar else range(1)
        across = 1 if planar else self.page.samplesperpixel
        out = np.full((len(planes), y.stop - y.start, x.stop - x.start, across), self.page.nodata, self.dtype)
        segments = self.segments[page]
        if segments is None:
            check_planes(self.absent)
        else:
            touched = [
                (plane, *tile)
                for plane, sample in zip(out, planes, strict=True)
                for tile in self._touched(sample, y, x)
            ]
            stored = _segments(self.paths[page], segments, [tile[1:] for tile in touched], self.held)
            for (plane, _, _, index), data in zip(touched, stored, strict=True):
                if data is not None:
                    tile, (_, _, top, left, _), _ = self.page.decode(data, index, **self.arguments[page])
                    _paste(plane, tile[0], y.start, x.start, top, left)
        if planar:
            return out[..., 0]  # [S, h, w]
        return out[0][..., samples] if "S" in axes else out[0, ..., 0]

    def _touched(self, sample: int, y: slice, x: slice) -> Iterator[tuple[int, int, int]]:
        """Row, column and number of every tile of one sample's plane that a window touches."""
        height, width = self.tile
        down, wide = -(-self.page.imagelength // height), -(-self.page.imagewidth // width)
        for row in range(y.start // height, -(-y.stop // height)):
            for column in range(x.start // width, -(-x.stop // width)):
                yield row, column, (sample * down + row) * wide + column


class _Undivided(_Layout):
    """A level that is decoded as a whole, by the library."""

    def __init__(self, path: Place, series: Any) -> None:
        super().__init__(path, series)
        every = self.page.parent.series
        self.series = next(i for i, s in enumerate(every) if any(v is series for v in s.levels))
        self.level = next(k for k, v in enumerate(every[self.series].levels) if v is series)
        self.chunk = self.shape
        self._whole = Whole(self._decoded)

    def read(self, region: Region) -> Array:
        return self._whole(region)

    def _decoded(self) -> Array:
        with opened(self.path) as file:
            array: Array = file.series[self.series].levels[self.level].asarray(maxworkers=1)
        return array


def _layouts(path: Place, identity: Stamp, series: int = 0) -> list[_Layout]:
    check_unchanged(stamp(path), identity)
    with opened(path) as file:
        absent = () if isinstance(path, regframe.Remote) else absent_files(path, file)
        return [_layout(path, level, absent) for level in file.series[series].levels]


def _layout(path: Place, series: Any, absent: tuple[str, ...] = ()) -> _Layout:
    """The simplest layout that describes a level; ValueError where its pages lie in other folders than the file.

    Args:
        path: of the file that was opened.
        series: of the level.
        absent: files beside it that it names and that are missing.
    """
    page = series.keyframe
    shape, inner = tuple(series.shape), tuple(page.shape)
    outer = shape[: len(shape) - len(inner)]
    pages = list(series.pages)
    if isinstance(path, regframe.Remote):
        paths: list[Place] = [path] * len(pages)
    else:
        paths = [path if p is None else Path(p.parent.filehandle.path) for p in pages]
    elsewhere = sorted({str(p) for p in paths if p.resolve().parent != path.resolve().parent})
    if elsewhere:
        raise ValueError(f"its pages lie in other folders ({elsewhere[0]})")
    alone = len({p.name for p in paths}) == 1
    if page.is_final and alone and series.dataoffset is not None:
        return _OneRun(path, series)
    if (*outer, *inner) != shape or len(pages) != math.prod(outer) or page.imagedepth != 1:
        if None in pages:
            check_planes(absent)
        return _Undivided(path, series)
    found = (_PlainPages if page.is_final else _TiledPages)(path, series, pages, paths)
    found.absent = absent
    return found


def _row_axis(axes: str) -> int:
    return axes.index("Y") if "Y" in axes else len(axes) - 1


def _run(path: Place, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], region: Region) -> Array:
    """A region of values that lie one after another from ``offset`` on, in their stored type."""
    if not isinstance(path, regframe.Remote):
        return np.array(np.memmap(path, dtype, "r", offset, shape)[region])
    sides = [s.stop - s.start for s in region]
    inner = len(shape)  # the axes from here on are read whole: their values are neighbours
    while inner > 1 and sides[inner - 1] == shape[inner - 1]:
        inner -= 1
    length = math.prod(sides[inner - 1 :]) * dtype.itemsize
    strides = [math.prod(shape[i + 1 :]) * dtype.itemsize for i in range(len(shape))]
    outer = itertools.product(*(range(s.start, s.stop) for s in region[: inner - 1]))
    last = offset + region[inner - 1].start * strides[inner - 1]
    starts = [last + sum(i * n for i, n in zip(index, strides, strict=False)) for index in outer]
    data = path.read_ranges([(start, start + length) for start in starts], _SKIPPED)
    return np.frombuffer(b"".join(data), dtype).reshape(sides)


def _segments(
    path: Place, segments: tuple[Any, Any], tiles: list[tuple[int, int, int]], held: regframe.Held
) -> Iterator[bytes | None]:
    """The stored bytes of tiles, each by its row, column and number; None where a sparse file has no such tile, so that it is all
    nodata.

    Args:
        path: of the file.
        segments: offsets and sizes of all tiles.
        tiles: row, column and number of those that are wanted.
        held: tiles of a remote file that were read before.
    """
    places = [(int(segments[0][index]), int(segments[1][index])) for _, _, index in tiles]
    if not isinstance(path, regframe.Remote):
        with path.open("rb") as file:
            for (offset, count), (row, column, _) in zip(places, tiles, strict=True):
                file.seek(offset)
                yield _whole(file.read(min(count, _SEGMENT)), count, row, column) if offset and count else None
        return
    size = path.size()
    for (offset, count), (row, column, _) in zip(places, tiles, strict=True):
        if offset and count:
            _whole(range(max(0, min(count, size - offset, _SEGMENT))), count, row, column)
    for first in range(0, len(places), _TOGETHER_READ):
        part = places[first : first + _TOGETHER_READ]
        wanted = {(offset, offset + count) for offset, count in part if offset and count}
        found = {key: data for key in wanted if (data := held.get(key)) is not None}
        missing = sorted(wanted - set(found))
        found |= dict(zip(missing, path.read_ranges(missing), strict=True))
        for key in missing:
            held.keep(key, found[key])
        yield from (found.get((offset, offset + count)) if offset and count else None for offset, count in part)


def _whole(data: Any, count: int, row: int, column: int) -> Any:
    """What there is of a tile; ValueError where that is not all."""
    if len(data) != count:
        raise ValueError(f"the tile in row {row}, column {column} ends after {len(data)} of {count} bytes")
    return data


def _paste(out: Array, tile: Array, y: int, x: int, top: int, left: int) -> None:
    """Copy what a tile ``[h, w, samples]`` at row ``top``, column ``left`` shares with the window ``out`` at (y, x)."""
    first, start = max(top, y), max(left, x)
    last, stop = min(top + tile.shape[0], y + out.shape[0]), min(left + tile.shape[1], x + out.shape[1])
    if last > first and stop > start:
        out[first - y : last - y, start - x : stop - x] = tile[first - top : last - top, start - left : stop - left]


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
    told = repr((array.shape, array.dtype.str, axes, spacing, unit, channels, rgb)).encode()
    digest = hashlib.blake2b(told, digest_size=16)
    digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    # an id of the content: the library would take one of the time and of this machine's network address
    metadata: dict[str, Any] = {"axes": axes, "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest.hexdigest())}"}
    for axis, step in (spacing or {}).items():
        metadata[f"PhysicalSize{axis.upper()}"] = step
        metadata[f"PhysicalSize{axis.upper()}Unit"] = unit
    if not rgb:
        metadata["Channel"] = {"Name": list(channels)}
    tifffile.imwrite(
        path, array, ome=True, photometric="rgb" if rgb else "minisblack", compression="zlib", metadata=metadata,
        planarconfig="contig" if rgb else None, maxworkers=1,
    )  # fmt: skip


def _declared(file: tifffile.TiffFile) -> Declared:
    """What makers' fields declare of the main image."""
    description = str(file.pages.first.description)
    if file.is_svs:
        found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
        if found and float(found[1]) > 0:
            return _alike(dict.fromkeys("yx", float(found[1])), "µm")
    if file.is_philips:
        found = re.search(r'Name="DICOM_PIXEL_SPACING"[^>]*>\s*"?([0-9.eE+-]+)"?[\s&quot;"]+([0-9.eE+-]+)', description)
        if found and float(found[1]) > 0 and float(found[2]) > 0:
            return _alike({"y": float(found[1]), "x": float(found[2])}, "mm")
    if file.is_ndpi:
        return _from_resolution(file.pages.first)
    if file.is_qpi:
        names, colours = qpi_channels(file.series[0])
        return replace(_from_resolution(file.pages.first), channels=names, colors=colours)
    if file.is_imagej:
        return _from_imagej(file)
    return Declared()


def _alike(numbers: dict[str, float], unit: str) -> Declared:
    """A pixel size whose axes have one unit."""
    return Declared(numbers, dict.fromkeys(numbers, unit))


def _from_resolution(page: Any) -> Declared:
    """The resolution tags of a maker who keeps the pixel size there, in pixels per centimetre."""
    if page.tags.get("ResolutionUnit") is None or int(page.tags["ResolutionUnit"].value) != _CENTIMETRE:
        return Declared()
    return _alike(_from_tags(page), "cm")


def _from_tags(page: Any) -> dict[str, float]:
    """Units per pixel along y and x, from the resolution tags, which hold pixels per unit as fractions; without a tag that is
    missing or zero."""
    spacing: dict[str, float] = {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        value = page.tags.get(tag)
        if value is not None and all(value.value):
            spacing[axis] = value.value[1] / value.value[0]
    return spacing


def _from_imagej(file: tifffile.TiffFile) -> Declared:
    """ImageJ keeps pixels per unit in the resolution tags and names the units beside: ``unit`` of x, ``yunit`` and ``zunit``
    where they differ; inches mean a print size, and so do numbers without a unit."""
    metadata = file.imagej_metadata or {}
    unit = str(metadata.get("unit") or "")
    numbers = _from_tags(file.pages.first)
    if is_step(unit) or length(unit) == length("inch"):
        steps = [numbers.get(a, 0.0) for a in "yx"]
        if not all(steps) or steps[0] == steps[1]:
            return Declared()
        words: dict[str, str | None] = dict.fromkeys("yx", "pixel")  # of unequal sides, whose ratio counts
        return Declared({"y": steps[0] / min(steps), "x": steps[1] / min(steps)}, words)
    words = {"y": str(metadata.get("yunit") or unit), "x": unit, "z": str(metadata.get("zunit") or unit)}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        numbers["z"] = float(metadata["spacing"])
    return Declared(numbers, words)
