"""Slides in makers' formats (MIRAX, Hamamatsu VMS, Ventana BIF, DICOM, Zeiss CZI, …) through OpenSlide, an extra."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .colour import RGB
from .raw import (
    Array,
    Raw,
    Region,
    Resolution,
    Stamp,
    check_count,
    check_unchanged,
    kept,
    needed,
    place,
    readable,
    stamp,
)
from .units import calibrate

SUFFIXES = (".mrxs", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".dcm")
"""Suffixes of the slides that OpenSlide reads and tifffile does not."""
_TILE = 512
"""Pixels along either side of a chunk where OpenSlide does not say how the maker tiled the level; a usual tile."""


def is_slide(path: Path, head: bytes) -> bool:
    """Whether a file's first bytes (DICOM), or its suffix where the format has no mark of its own, are a slide's."""
    name = path.name.lower()
    return head[128:132] == b"DICM" or name.endswith((".mrxs", ".vms", ".vmu", ".svslide"))


def open_slide(path: Path) -> Raw:
    """The levels of a slide, three channels of uint8; pixel size in µm as its maker declares it.

    ImportError names the extra where OpenSlide is missing, ValueError what OpenSlide says of a file it cannot read.
    """
    openslide: Any = needed("openslide", "openslide", path, "read")
    with readable(path, "slide", also=(openslide.OpenSlideError,)):
        identity = stamp(path)
        slide = kept(_opened, path, identity)
        sizes, factors, said = slide.level_dimensions, slide.level_downsamples, dict(slide.properties)
        maker = openslide.OpenSlide.detect_format(str(path)) or "OpenSlide"
    check_count(path, len(sizes))
    numbers: dict[str, float] = {}
    if maker != "generic-tiff":  # whose resolution tag is a print size
        for axis in "yx":
            with contextlib.suppress(KeyError, ValueError):
                numbers[axis] = float(said[f"openslide.mpp-{axis}"])
    size = calibrate(numbers, dict.fromkeys(numbers, "µm"), "yx", path.name)
    spacing = size.spacing(numbers, {})
    levels = []
    for k, ((width, height), factor) in enumerate(zip(sizes, factors, strict=True)):
        tile = tuple(int(said.get(f"openslide.level[{k}].tile-{side}", _TILE)) for side in ("height", "width"))
        levels.append(
            Resolution(
                (height, width, 3),
                (min(tile[0], height), min(tile[1], width), 3),
                SlideRegion(path, identity, k, float(factor), str(said.get("openslide.background-color", "FFFFFF"))),
                {a: s * factor for a, s in spacing.items()},
                {a: s * (factor - 1) / 2 for a, s in spacing.items()},
                dict.fromkeys("yx", float(factor)),
            )
        )
    beside = sorted(set(re.findall(r"openslide\.associated\.([^.]+)\.width", "\n".join(said))))
    told = ", ".join(f"{n} ({_size(said, n)})" for n in beside)
    return Raw(
        "yxs",
        np.dtype(np.uint8),
        tuple(levels),
        size.unit,
        RGB,
        format=maker,
        guessed=tuple(size.filled),
        doubts=size.doubts,
        notes=(f"{path.name} also holds pictures of the slide, which are not read: {told}",) if beside else (),
    )


def _size(said: dict[str, str], name: str) -> str:
    """Rows and columns of a picture beside the scan."""
    return " × ".join(f"{said.get(f'openslide.associated.{name}.{side}', '?')}" for side in ("height", "width")) + " px"


@dataclass(frozen=True)
class SlideRegion:
    """Regions of one level; what was not scanned has the background colour that the slide declares, else white."""

    path: Path
    stamp: Stamp
    level: int
    factor: float
    background: str

    def __call__(self, region: Region) -> Array:
        """The values of one region ``[h, w, 3]``, or of some of its samples."""
        import openslide

        y, x, samples = region
        with readable(self.path, "slide", place(self.level, "yxs", region), (openslide.OpenSlideError,)):
            slide = kept(_opened, self.path, self.stamp)
            corner = (round(x.start * self.factor), round(y.start * self.factor))
            read = slide.read_region(corner, self.level, (x.stop - x.start, y.stop - y.start))
        array = np.asarray(read)  # [h, w, 4], colours not multiplied by opacity
        opacity = array[..., 3:].astype(np.float32) / 255
        behind = np.array(list(bytes.fromhex(self.background)), dtype=np.float32)
        return np.rint(array[..., :3] * opacity + behind * (1 - opacity)).astype(np.uint8)[..., samples]


def _opened(path: Path, identity: Stamp) -> Any:
    import openslide

    check_unchanged(stamp(path), identity)
    return openslide.OpenSlide(str(path))
