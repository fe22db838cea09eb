"""Zeiss CZI through the package pylibCZIrw, an extra: scenes as series, levels of its pyramid, only the tiles that are needed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from .planes import TILE, Plane, PlanesRegion, channel_names, hex_colours, in_micron, taken_axes
from .raw import Array, Raw, Resolution, Stamp, check_count, check_unchanged, kept, needed, readable, stamp
from .series import Found, choose, listed, role_of, told
from .units import calibrate

_TYPES = {
    "Gray8": ("u1", 1), "Gray16": ("u2", 1), "Gray32Float": ("f4", 1), "Bgr24": ("u1", 3), "Bgr48": ("u2", 3),
    "Bgr96Float": ("f4", 3),
}  # fmt: skip
"""Pixel types of CZI that the library reads: type and samples of a pixel."""
_ALSO = (MemoryError,)
"""What the library raises beside the usual over sizes that are damaged."""
_FINEST = 1.5
"""Canvas pixels per pixel from which on a tile belongs to the pyramid, whose reductions are 2 and more."""
_Where = tuple[tuple[str, int], ...]
"""Index along every axis but y and x."""
_Tile = tuple[int | None, int, int, int, int, int]
"""Scene, reduction, left, top, width and height on the canvas of a tile of the pyramid."""
_WHOLE = 0.02
"""Largest difference of a tile's reduction from a whole number: sizes of 1000 pixels and more are rounded by less than 1."""


@dataclass(frozen=True)
class _Scene:
    """One scene.

    Args:
        number: in the file; None where the file has no scenes.
        name: as the file gives it.
        box: its field on the canvas, in pixels: left, top, width, height.
        ratios: pixels of the canvas per pixel of each level, along either side.
    """

    number: int | None
    name: str
    box: tuple[int, int, int, int]
    ratios: tuple[int, ...]


@dataclass(frozen=True)
class _Document:
    """What a CZI file holds.

    Args:
        reader: of the library, which closes with this.
        scenes: in the order of their numbers.
        entries: indices that occur along each axis but y and x; they may begin after 0, and have gaps.
        planes: scene and place of every plane that has pixels.
        types: pixel type of every channel, as the library names it.
        xml: the metadata.
    """

    reader: Any
    scenes: tuple[_Scene, ...]
    entries: dict[str, tuple[int, ...]]
    planes: frozenset[tuple[int | None, _Where]]
    types: tuple[str, ...]
    xml: str

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, RuntimeError):
            self.reader.close()


def open_czi(path: Path, wanted: int | str | None = None) -> Raw:
    """The levels of one scene; pixel size, names and colours of the channels as the file declares them.

    ImportError names the extra where pylibCZIrw is missing, ValueError what is wrong with the file.

    Args:
        path: of the file.
        wanted: number or name of the scene where there are several; None takes the largest.
    """
    needed("pylibCZIrw", "czi", path, "read")
    with readable(path, "CZI", also=_ALSO):
        identity = stamp(path)
        document = kept(_opened, path, identity)
        declared = _Declared.of(document.xml)
        unknown = sorted(set(document.types) - set(_TYPES))
        stored = [_TYPES[kind] for kind in document.types if kind in _TYPES]
        if unknown or len({samples for _, samples in stored}) > 1:
            raise ValueError(f"its channels are stored as {', '.join(unknown or document.types)}")
    samples = stored[0][1]
    dtype = np.result_type(*(np.dtype(kind) for kind, _ in stored))
    found = [
        Found(s.name, _sizes(document, s, samples), declared.numbers, declared.words, role_of(s.name))
        for s in document.scenes
    ]
    index = choose(found, wanted, path.name)
    scene, sizes = document.scenes[index], found[index].sizes
    axes = taken_axes(sizes, path, "CZI")
    size = calibrate(declared.numbers, declared.words, [a for a in "zyx" if a in axes], path.name)
    check_count(path, len(scene.ratios))
    spacing = size.spacing(declared.numbers, {})
    levels = []
    for k, ratio in enumerate(scene.ratios):
        shape = tuple(math.ceil(sizes[a] / ratio) if a in "yx" else sizes[a] for a in axes)
        chunk = tuple(min(n, TILE) if a in "yx" else n if a == "s" else 1 for a, n in zip(axes, shape, strict=True))
        read = PlanesRegion(path, identity, "CZI", index, k, axes, _window, _ALSO)
        step = {a: s * ratio if a in "yx" else s for a, s in spacing.items()}
        first = {a: s * (ratio - 1) / 2 for a, s in spacing.items() if a in "yx"}
        levels.append(Resolution(shape, chunk, read, step, first, dict.fromkeys("yx", float(ratio))))
    n = sizes["c"]
    names, colours = declared.channels, declared.colours
    return Raw(
        axes,
        dtype,
        tuple(levels),
        size.unit,
        channel_names(names if len(names) == n else [""] * n, samples),
        colours if samples == 1 and len(colours) == n else (),
        format="Zeiss CZI",
        series=listed(found, index) if len(found) > 1 else (),
        guessed=tuple(size.filled),
        doubts=size.doubts,
        said=told(found, index, wanted, path.name),
        notes=size.notes,
    )


def _sizes(document: _Document, scene: _Scene, samples: int) -> dict[str, int]:
    return (
        {a: len(e) for a, e in document.entries.items()}
        | {"y": scene.box[3], "x": scene.box[2]}
        | ({"s": samples} if samples > 1 else {})
    )


@dataclass(frozen=True)
class _Declared:
    """Pixel size, names and colours of channels, and names of scenes, of a CZI file's XML."""

    numbers: dict[str, float]
    words: dict[str, str | None]
    channels: tuple[str, ...]
    colours: tuple[str, ...]
    scenes: dict[int, str]

    @classmethod
    def of(cls, xml: str) -> _Declared:
        """The declarations of a text that may be damaged: none then."""
        try:
            root = ElementTree.fromstring(xml)
        except ElementTree.ParseError:
            return cls({}, {}, (), (), {})
        numbers = {}
        for one in root.findall("./Metadata/Scaling/Items/Distance"):
            with contextlib.suppress(ValueError):
                numbers[str(one.get("Id")).lower()] = float(one.findtext("Value", ""))
        numbers = {a: v for a, v in numbers.items() if a in ("z", "y", "x") and v != 0}
        channels = root.findall("./Metadata/Information/Image/Dimensions/Channels/Channel")
        shown = {
            c.get("Id"): c.findtext("Color", "") for c in root.findall("./Metadata/DisplaySetting/Channels/Channel")
        }
        colours = [c.findtext("Color", "") or shown.get(c.get("Id"), "") for c in channels]
        scenes = root.findall("./Metadata/Information/Image/Dimensions/S/Scenes/Scene")
        named = {int(s.get("Index", i)): str(s.get("Name") or "") for i, s in enumerate(scenes)}
        names = tuple(str(c.get("Name") or "") for c in channels)
        return cls(*in_micron(numbers, dict.fromkeys(numbers, "m")), names, hex_colours(colours), named)


def _opened(path: Path, identity: Stamp) -> _Document:
    from pylibCZIrw import czi

    check_unchanged(stamp(path), identity)
    reader = czi.CziReader(str(path))
    named = _Declared.of(reader.raw_metadata).scenes
    boxes: dict[int | None, Any] = dict(reader.scenes_bounding_rectangle_no_pyramid)
    boxes = boxes or {None: reader.total_bounding_rectangle_no_pyramid}
    tiles: list[_Tile] = []
    planes: set[tuple[int | None, _Where]] = set()

    def note(_: int, info: Any) -> bool:
        where, stored = info.logicalRect, info.physicalSize
        ratio, place = where.w / max(stored.w, 1), {"C": 0} | dict(info.coordinate.to_dict())
        scene = place.pop("S", None)
        if ratio < _FINEST:
            planes.add((scene if scene in boxes else None, _where({a.lower(): i for a, i in place.items()})))
        elif abs(ratio - round(ratio)) < _WHOLE * ratio:
            tiles.append((scene, round(ratio), where.x, where.y, where.w, where.h))
        return True

    reader.enumerate_subblocks(note)
    scenes = []
    for number, box in boxes.items():
        field = (int(box.x), int(box.y), int(box.w), int(box.h))
        name = named.get(number, "") if number is not None else ""
        scenes.append(_Scene(number, name, field, (1, *_covering(tiles, number, field))))
    found: dict[str, set[int]] = {}
    for _, where in planes:
        for axis, index in where:
            found.setdefault(axis, set()).add(index)
    if not found:
        raise ValueError("no tile lies in it")
    entries = {a: tuple(sorted(found[a])) for a in sorted(found, key="vihrbtzc".find)}
    types = tuple(str(reader.get_channel_pixel_type(c)) for c in entries["c"])
    return _Document(reader, tuple(scenes), entries, frozenset(planes), types, reader.raw_metadata)


def _where(place: Mapping[str, int]) -> _Where:
    return tuple(sorted(place.items()))


def _covering(tiles: Iterable[_Tile], scene: int | None, field: tuple[int, int, int, int]) -> tuple[int, ...]:
    """The reductions whose tiles reach over the whole field of a scene, the finest first."""
    x, y, width, height = field
    spans: dict[int, list[int]] = {}
    for number, ratio, left, top, w, h in tiles:
        if number not in (None, scene) and scene is not None:
            continue
        if left < x + width and left + w > x and top < y + height and top + h > y:
            s = spans.setdefault(ratio, [left, top, left + w, top + h])
            s[:] = [min(s[0], left), min(s[1], top), max(s[2], left + w), max(s[3], top + h)]
    return tuple(
        sorted(
            ratio
            for ratio, (left, top, right, bottom) in spans.items()
            if left <= x + ratio and top <= y + ratio and right >= x + width - ratio and bottom >= y + height - ratio
        )
    )


def _window(read: PlanesRegion, plane: Plane, y: slice, x: slice) -> Array:
    """A window of one plane of one level, composed of the tiles that it touches; what was not scanned is black, of a picture in
    colour white."""
    document: _Document = kept(_opened, read.path, read.stamp)
    scene = document.scenes[read.series]
    ratio = scene.ratios[read.level]
    chosen = {a: i for a, i in zip(read.axes, plane, strict=False) if a not in "yxs"}
    at = {a: entries[chosen.get(a, 0)] for a, entries in document.entries.items()}
    if (scene.number, _where(at)) not in document.planes:
        raise ValueError(f"its plane {', '.join(f'{a} {i}' for a, i in at.items())} was never recorded")
    left, top = scene.box[0] + x.start * ratio, scene.box[1] + y.start * ratio
    height, width = y.stop - y.start, x.stop - x.start
    kind = document.types[chosen.get("c", 0)]
    colour = _TYPES[kind][1] > 1
    found = document.reader.read(
        roi=(left, top, width * ratio, height * ratio),
        plane={a.upper(): i for a, i in at.items()},
        scene=scene.number,
        zoom=(1 + 1e-7) / ratio if ratio > 1 else None,  # its sizes are rounded down
        background_pixel=(1.0, 1.0, 1.0) if colour else (0.0, 0.0, 0.0),
    )
    pixels: Array = np.asarray(found)
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"{pixels.shape[:2]} pixels came out instead of {(height, width)}")
    out = pixels[..., ::-1] if colour else pixels[..., 0]  # blue is first
    return np.array(out, dtype=np.result_type(*(np.dtype(_TYPES[one][0]) for one in document.types)))
