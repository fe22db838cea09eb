"""PNG and JPEG through Pillow (PNGs with 16 bits per colour sample through imagecodecs)."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image as Pillow

import regframe

from .makers import profile_note
from .raw import Array, Raw, readable

_LIMIT_LOCK = threading.Lock()
_PILLOW: tuple[type[Exception], ...] = (SyntaxError, Pillow.DecompressionBombError)
"""What Pillow raises over a damaged file beside the usual."""
_ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held: 1 is upright."""
_JPEG_QUALITY = 95
"""The highest that Pillow's documentation recommends: above it files grow with hardly any gain."""

_DENSEST = {"PNG": 1032, "JPEG": 1500}
"""Bytes of pixels that one byte of a file can hold at most: deflate's limit; of JPEG a block of 8 × 8 pixels that is blank, whose
colours have a quarter of its resolution, in about a bit."""

_KEPT = {
    "L": "yx", "I;16": "yx", "I;16B": "yx", "I;16L": "yx", "I": "yx", "F": "yx", "RGB": "yxs",
    "RGBA": "yxs", "LA": "yxs",
}  # fmt: skip
"""Pillow modes whose samples are taken as they are, and their axes; the others are converted to colours."""


def open_raster(path: Path, kind: str, labels: bool) -> Raw:
    """The header of a PNG or JPEG; palettes become colours unless they are label ids."""
    with readable(path, kind, also=_PILLOW):
        with _own_limit(), Pillow.open(path, formats=(kind,)) as image:
            mode, size = image.mode, image.size
            transparent = "transparency" in image.info
            profile = image.info.get("icc_profile")
            progressive = bool(image.info.get("progressive"))
            # of a PNG, Pillow looks for it behind the pixels, which it would decode first
            orientation = image.getexif().get(_ORIENTATION, 1) if kind == "JPEG" else 1
        deep = _png_sample_layout(path) if kind == "PNG" else None
    if orientation not in (0, 1):
        warnings.warn(
            f"{str(path)!r} says it should be turned for display (EXIF orientation {orientation}); "
            "positions count its pixels as they are stored",
            stacklevel=5,
        )
    if deep is not None:
        channels, axes, dtype = deep, "yx" if deep == 1 else "yxs", np.dtype(np.uint16)
    else:
        if mode == "P" and labels:
            target = "P"
        elif mode in ("P", "1", *_KEPT):
            target = {"P": "RGBA" if transparent else "RGB", "1": "L"}.get(mode, mode)
        else:
            target = "RGB"
        channels = len(Pillow.new(target, (1, 1)).getbands())
        axes = "yx" if channels == 1 else "yxs"
        dtype = np.asarray(Pillow.new(target, (1, 1))).dtype

    shape = (size[1], size[0]) + ((channels,) if channels > 1 else ())
    # a progressive JPEG is held as coefficients of 16 bits beside its pixels
    held = size[0] * size[1] * channels * dtype.itemsize * (1 + 2 * progressive)
    names = ("red", "green", "blue") if channels in (3, 4) else ()
    read = _Decode(path, kind, deep is not None, "" if deep is not None else target, size, held)
    return Raw.whole(
        shape,
        dtype,
        axes,
        read,
        channels=names,
        alpha=channels in (2, 4),
        format=kind,
        notes=profile_note(path, profile),
    )


@dataclass(frozen=True)
class _Decode:
    """The pixels of a PNG or JPEG.

    Args:
        path: of the file.
        kind: its format, in Pillow's words.
        deep: True for several channels of 16 bits, which Pillow would cut to 8.
        mode: Pillow's mode to convert to, chosen from the header.
        size: columns and rows that the header declares.
        held: bytes that decoding takes.
    """

    path: Path
    kind: str
    deep: bool
    mode: str
    size: tuple[int, int]
    held: int

    def __call__(self) -> Array:
        with readable(self.path, self.kind, also=_PILLOW):
            there, what = self.path.stat().st_size, f"{self.size[0]} x {self.size[1]} pixels"
            regframe.gate.check_declared(self.path.name, what, self.held, there, _DENSEST[self.kind])
            if self.deep:
                return np.asarray(imagecodecs.png_decode(self.path.read_bytes()))
            with _own_limit(), Pillow.open(self.path, formats=(self.kind,)) as image:
                return np.asarray(image if image.mode == self.mode else image.convert(self.mode))


def write_png(path: Path, array: Array) -> None:
    """``[y, x]`` or ``[y, x, 3]``, uint8 or uint16."""
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(array)))


def write_jpeg(path: Path, array: Array) -> None:
    """``[y, x]`` or ``[y, x, 3]``, uint8."""
    Pillow.fromarray(array).save(path, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)


def _png_sample_layout(path: Path) -> int | None:
    """Channels of a PNG that has several of 16 bits each, which Pillow would cut to 8; else None."""
    with path.open("rb") as file:
        head = file.read(26)
    depth, colour = head[24], head[25]  # of the chunk IHDR, which comes first
    channels = {2: 3, 4: 2, 6: 4}  # colour types of the PNG specification: RGB, grey with opacity, RGB with opacity
    return channels.get(colour) if depth == 16 else None


@contextmanager
def _own_limit() -> Iterator[None]:
    """Let Pillow read any header: the adapter judges the declared size, by one limit for all formats."""
    with _LIMIT_LOCK:
        limit = Pillow.MAX_IMAGE_PIXELS
        Pillow.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Pillow.MAX_IMAGE_PIXELS = limit
