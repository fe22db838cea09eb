"""Nikon ND2 through the package nd2, an extra: plane by plane, positions as series."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from .planes import TILE, Plane, PlanesRegion, channel_names, hex_colours, taken_axes
from .raw import Array, Raw, Resolution, Stamp, check_unchanged, kept, needed, readable, stamp
from .series import Found, choose, listed, role_of, told
from .units import calibrate

_LOOPS = {"TimeLoop": "t", "NETimeLoop": "t", "XYPosLoop": "p", "ZStackLoop": "z"}
"""Loops of an experiment and the axes that they run along; ``p`` counts positions of the stage, which become series."""

_ALSO = (NameError,)
"""What nd2 raises beside the usual over metadata that are not as it expects."""
_BLUE_FIRST = "its colours are taken to be stored blue first, as NIS-Elements does; compare them with what that shows"
"""What is said of a picture in colour: Bio-Formats found this order by comparison with NIS-Elements (ome/bioformats 4321), the
package nd2 names none."""


def open_nd2(path: Path, wanted: int | str | None = None) -> Raw:
    """The planes of one position; micron per pixel, names and colours of the channels as the file declares them.

    ImportError names the extra where nd2 is missing, ValueError what is wrong with the file.

    Args:
        path: of the file.
        wanted: number or name of the position where there are several; None takes the first.
    """
    needed("nd2", "nd2", path, "read")
    with readable(path, "ND2", also=_ALSO):
        identity = stamp(path)
        file = kept(_opened, path, identity).file
        loops = _loops(file)
        shape, samples = _frame(file)
        said = file.metadata.channels or []
        numbers = _steps(said)
        names, colours = [c.channel.name for c in said], [c.channel.color.as_hex() for c in said]
    sizes = (
        {a: n for a, n in loops if a != "p"} | dict(zip("cyx", shape, strict=True)) | ({"s": 3} if samples > 1 else {})
    )
    if math.prod(shape) < 1:
        raise ValueError(f"wanted pixels in {path.name!r}, got frames of {shape[1]} × {shape[2]}; the file is damaged")
    axes = taken_axes(sizes, path, "ND2")
    words: dict[str, str | None] = dict.fromkeys(numbers, "µm")
    found = [Found(name, sizes, numbers, words, role_of(name)) for name in _positions(file)]
    index = choose(found, wanted, path.name)
    size = calibrate(numbers, words, [a for a in "zyx" if a in axes], path.name)
    stored = tuple(sizes[a] for a in axes)
    chunk = tuple(min(n, TILE) if a in "yx" else n if a == "s" else 1 for a, n in zip(axes, stored, strict=True))
    read = PlanesRegion(path, identity, "ND2", index, 0, axes, _window, _ALSO)
    return Raw(
        axes,
        np.dtype(file.dtype),
        (Resolution(stored, chunk, read, size.spacing(numbers, {})),),
        size.unit,
        channel_names(names if len(names) == shape[0] else [""] * shape[0], samples),
        hex_colours(colours) if samples == 1 and len(colours) == shape[0] else (),
        format="Nikon ND2",
        series=listed(found, index) if len(found) > 1 else (),
        guessed=tuple(size.filled),
        doubts=size.doubts,
        said=(*told(found, index, wanted, path.name), *((f"{path.name}: {_BLUE_FIRST}",) if samples > 1 else ())),
        notes=size.notes,
    )


class _Opened:
    """An ND2 file that is closed when nobody holds it any longer."""

    def __init__(self, path: Path) -> None:
        import nd2

        self.file: Any = nd2.ND2File(path)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError, BufferError):
            self.file.close()


def _opened(path: Path, identity: Stamp) -> _Opened:
    check_unchanged(stamp(path), identity)
    return _Opened(path)


def _loops(file: Any) -> list[tuple[str, int]]:
    """Axis and entries of every loop, the outermost first; a loop that is none of those known has its own name."""
    out = [(_LOOPS.get(loop.type, str(loop.type)), int(loop.count)) for loop in file.experiment]
    if len({a for a, _ in out}) < len(out):
        raise ValueError(f"it runs twice along one axis ({', '.join(a for a, _ in out)})")
    return out


def _steps(channels: list[Any]) -> dict[str, float]:
    """Micron between pixels per axis, of the axes that the microscope was calibrated for: of others the number means nothing."""
    if not channels:
        return {}
    volume = channels[0].volume
    found = zip("xyz", volume.axesCalibration, volume.axesCalibrated, strict=True)
    return {a: float(step) for a, step, sure in found if sure and step > 0}


def _frame(file: Any) -> tuple[tuple[int, int, int], int]:
    """Channels, rows and columns of a frame, and samples of a channel: 3 in colour, else 1."""
    said = file.attributes
    channels, components = int(said.channelCount or 1), int(said.componentCount)
    samples = components // max(channels, 1)
    if samples != 3:  # four components and more are channels
        channels, samples = components, 1
    return (channels, int(said.heightPx), int(said.widthPx or 0)), samples


def _positions(file: Any) -> list[str]:
    """The name of every position of the stage, empty where it has none; one where there is no loop over positions."""
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            points = list(loop.parameters.points)
            return [str(points[i].name or "") if i < len(points) else "" for i in range(loop.count)]
    return [""]


def _window(read: PlanesRegion, plane: Plane, y: slice, x: slice) -> Array:
    """A window of one channel of one frame; ValueError for a frame that the file has not, which the library fills with 0."""
    opened = kept(_opened, read.path, read.stamp)
    file = opened.file
    at = dict(zip(read.axes, plane, strict=False)) | {"p": read.series}
    loops = _loops(file)
    index = 0
    for axis, n in loops:
        index = index * n + at.get(axis, 0)
    _check_recorded(file, index, read.path)
    (channels, height, width), samples = _frame(file)
    frame = np.asarray(file.read_frame(index)).reshape(channels, height, width, samples)
    out: Array = frame[at.get("c", 0), y, x]
    return np.array(out[..., ::-1] if samples > 1 else out[..., 0])


def _check_recorded(file: Any, index: int, path: Path) -> None:
    """ValueError where a frame has no place in the file, or lies behind its end."""
    places = getattr(getattr(file, "_rdr", None), "_frame_offsets", None)
    if not isinstance(places, dict):
        return
    if index not in places:
        raise ValueError(f"its frame {index} was never recorded")
    said = file.attributes
    nbytes = int(said.heightPx) * int(said.widthBytes or 0) if said.compressionType is None else 1
    size = path.stat().st_size
    if places[index] + nbytes > size:
        raise ValueError(f"its frame {index} ends at byte {places[index] + nbytes} of {size}")
