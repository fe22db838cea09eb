"""Leica LIF and LOF through the package liffile, an extra: every image of the file a series, mapped and not loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .planes import CONVERT, TILE, Plane, PlanesRegion, channel_names, hex_colours, in_micron, taken_axes
from .raw import Array, Raw, Resolution, Stamp, check_unchanged, kept, needed, readable, stamp
from .series import Found, choose, listed, role_of, told
from .units import calibrate

_AXES = {"1": "x", "2": "y", "3": "z", "4": "t", "10": "m"}
"""Numbers of the dimensions (``DimID``) that are read; ``m`` counts the tiles of a mosaic, each of which becomes a series."""
_TAGS = ("1", "2", "3")
"""``ChannelTag`` of the red, green and blue channel of a picture; 0 is grey."""
_TABLES = {
    "red": "FF0000", "green": "00FF00", "blue": "0000FF", "cyan": "00FFFF", "magenta": "FF00FF", "yellow": "FFFF00",
    "gray": "FFFFFF", "grey": "FFFFFF", "white": "FFFFFF",
}  # fmt: skip
"""Colours of the lookup tables that Leica's programs name (``LUTName``)."""


@dataclass(frozen=True)
class _Stored:
    """One image, or one tile of a mosaic, as it lies in the file.

    Args:
        found: its name, sizes and pixel size.
        offset: of its first byte in the file.
        size: bytes from there on that are its own.
        strides: bytes from one entry to the next, per axis but ``c`` and ``s``.
        channels: offset in bytes and type of every channel.
        names: of the channels.
        colours: of the channels, empty where they have none.
        picture: whether they are red, green and blue of one picture.
    """

    found: Found
    offset: int
    size: int
    strides: dict[str, int]
    channels: tuple[tuple[int, str], ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    picture: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type that holds the values of every channel."""
        return np.result_type(*(np.dtype(kind) for _, kind in self.channels)).newbyteorder("=")


def open_lif(path: Path, wanted: int | str | None = None) -> Raw:
    """The planes of one image; pixel size, names and colours of the channels as the file declares them.

    ImportError names the extra where liffile is missing, ValueError what is wrong with the file.

    Args:
        path: of the file.
        wanted: number or name of the image where there are several; None takes the largest with a pixel size.
    """
    needed("liffile", "lif", path, "read")
    with readable(path, "LIF", also=(SyntaxError,)):  # of damaged XML
        identity = stamp(path)
        images = kept(_images, path, identity)
    if not images:
        raise ValueError(f"wanted an image in {path.name!r}, got none with pixels in the file; {CONVERT}")
    found = [one.found for one in images]
    index = choose(found, wanted, path.name)
    one = images[index]
    sizes = one.found.sizes
    axes = taken_axes(sizes, path, "LIF")
    size = calibrate(one.found.numbers, one.found.words, [a for a in "zyx" if a in axes], path.name)
    shape = tuple(sizes[a] for a in axes)
    chunk = tuple(min(n, TILE) if a in "yx" else n if a == "s" else 1 for a, n in zip(axes, shape, strict=True))
    read = PlanesRegion(path, identity, "LIF", index, 0, axes, _window)
    return Raw(
        axes,
        one.dtype,
        (Resolution(shape, chunk, read, size.spacing(one.found.numbers, {})),),
        size.unit,
        channel_names([""] if one.picture else one.names, 3 if one.picture else 1),
        () if one.picture else one.colours,
        format="Leica LIF",
        series=listed(found, index) if len(found) > 1 else (),
        guessed=tuple(size.filled),
        doubts=size.doubts,
        said=told(found, index, wanted, path.name),
        notes=size.notes,
    )


def _images(path: Path, identity: Stamp) -> list[_Stored]:
    """Every image of the file with pixels of its own."""
    import liffile

    check_unchanged(stamp(path), identity)
    out: list[_Stored] = []
    with liffile.LifFile(path, squeeze=False) as file:
        for image in file.images:
            described = image.xml_element.find("./Data/Image/ImageDescription")
            block = image.memory_block if described is not None else None
            if described is not None and block is not None and block.size > 0:
                out.extend(_described(str(image.path), described, block))
    return out


def _described(name: str, described: Any, block: Any) -> list[_Stored]:
    """One image, or the tiles of one mosaic, by its element ``ImageDescription``."""
    if block.offset <= 0:
        raise ValueError(f"the pixels of {name} lie in another file")
    sizes: dict[str, int] = {}
    strides: dict[str, int] = {}
    numbers: dict[str, float] = {}
    words: dict[str, str | None] = {}
    for one in described.findall("./Dimensions/DimensionDescription"):
        said = one.attrib
        axis = _AXES.get(said["DimID"], f"dimension {said['DimID']}")
        sizes[axis], strides[axis] = int(said["NumberOfElements"]), int(said["BytesInc"])
        if axis in "zyx" and sizes[axis] > 1 and float(said["Length"]) != 0:
            numbers[axis], words[axis] = float(said["Length"]) / (sizes[axis] - 1), said.get("Unit") or None
    channels = described.findall("./Channels/ChannelDescription")
    tags = [c.get("ChannelTag", "0") for c in channels]
    picture = sorted(tags) == list(_TAGS)
    if picture:
        channels = sorted(channels, key=lambda c: str(c.get("ChannelTag")))
    beside = {"c": len(channels)} if not picture else {}
    tiles = sizes.pop("m", 1)
    step = strides.pop("m", 0)
    ordered = {a: n for a, n in sizes.items() if a not in "yx"}
    shape = {a: ordered[a] for a in sorted(ordered, key="tz".find)} | beside | {a: sizes.get(a, 1) for a in "yx"}
    shape |= {"s": 3} if picture else {}
    stored = tuple((int(c.get("BytesInc", "0")), _type(c)) for c in channels)
    out = []
    for tile in range(tiles):
        called = name if tiles == 1 else f"{name}, tile {tile}"
        names = tuple(_name(c) for c in channels)
        tables = hex_colours([_TABLES.get(str(c.get("LUTName", "")).lower(), "") for c in channels])
        found = Found(called, shape, *in_micron(numbers, words), role_of(called))
        out.append(
            _Stored(
                found, block.offset + tile * step, block.size - tile * step, strides, stored, names, tables, picture
            )
        )
    return out


def _type(channel: Any) -> str:
    """The type of a channel's values: whole numbers or fractions, of as many bytes as its bits need."""
    bits, kind = int(channel.get("Resolution", "8")), "f" if channel.get("DataType") == "1" else "u"
    if not (0 < bits <= 64) or (kind == "f" and bits < 16):
        raise ValueError(f"its channels have {bits} bits")
    return f"<{kind}{max(1, 1 << max(0, math.ceil(math.log2(bits / 8))))}"


def _name(channel: Any) -> str:
    """The dye of a channel where the file names it, else its lookup table."""
    for one in channel.findall("./ChannelProperty"):
        key, value = one.findtext("Key", ""), one.findtext("Value", "")
        if key == "DyeName" and value.strip():
            return str(value).strip()
    return str(channel.get("LUTName") or "")


def _window(read: PlanesRegion, plane: Plane, y: slice, x: slice) -> Array:
    """A window of one plane; ValueError where it reaches beyond the image's own bytes."""
    one: _Stored = kept(_images, read.path, read.stamp)[read.series]
    at = dict(zip(read.axes, plane, strict=False))
    first = sum(one.strides[a] * i for a, i in at.items() if a != "c")
    shape = (one.found.sizes["y"], one.found.sizes["x"])
    parts = []
    for offset, kind in one.channels if one.picture else one.channels[at.get("c", 0) :][:1]:
        dtype = np.dtype(kind)
        strides = tuple(one.strides.get(a, dtype.itemsize) for a in "yx")
        end = first + offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + dtype.itemsize
        if end > one.size or min(strides) < 1:
            raise ValueError(f"a plane ends at byte {end} of the {one.size} of its image")
        whole = np.memmap(read.path, np.uint8, "r", one.offset, (one.size,))
        pixels: Array = np.ndarray(shape, dtype, whole, first + offset, strides)
        parts.append(pixels[y, x].astype(one.dtype))
    return np.stack(parts, axis=-1) if one.picture else parts[0]
