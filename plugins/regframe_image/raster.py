"""PNG and JPEG through Pillow (PNGs with 16 bits per colour sample through imagecodecs)."""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image as Pillow

from .raw import Array, Raw, unreadable

_LIMIT_LOCK = threading.Lock()

_KEPT = {
    "L": "yx", "I;16": "yx", "I;16B": "yx", "I;16L": "yx", "I": "yx", "F": "yx", "RGB": "yxs",
    "RGBA": "yxs", "LA": "yxs",
}  # fmt: skip
"""Pillow modes whose samples are taken as they are."""


def open_raster(path: Path, kind: str, labels: bool) -> Raw:
    """The header of a PNG or JPEG; palettes become colours unless they are label ids."""
    try:
        with _own_limit(), Pillow.open(path, formats=(kind,)) as image:
            mode, size = image.mode, image.size
            transparent = "transparency" in image.info
            # of a PNG, Pillow looks for it behind the pixels, which it would decode first
            orientation = image.getexif().get(0x0112, 1) if kind == "JPEG" else 1
        deep = _png_sample_layout(path) if kind == "PNG" else None
    except (OSError, SyntaxError, ValueError, struct.error, Pillow.DecompressionBombError) as error:
        raise unreadable(path, kind, error) from error
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
    names = ("red", "green", "blue") if channels in (3, 4) else ()
    read = _Decode(path, kind, deep is not None, "" if deep is not None else target)
    return Raw.whole(shape, dtype, axes, read, channels=names, alpha=channels in (2, 4), format=kind)


@dataclass(frozen=True)
class _Decode:
    """The pixels of a PNG or JPEG, in the Pillow mode that was chosen from its header."""

    path: Path
    kind: str
    deep: bool
    mode: str

    def __call__(self) -> Array:
        try:
            if self.deep:
                return np.asarray(imagecodecs.png_decode(self.path.read_bytes()))
            with _own_limit(), Pillow.open(self.path, formats=(self.kind,)) as image:
                return np.asarray(image if image.mode == self.mode else image.convert(self.mode))
        except (OSError, SyntaxError, ValueError, struct.error, RuntimeError) as error:
            raise unreadable(self.path, self.kind, error) from error


def write_png(path: Path, array: Array) -> None:
    """``[y, x]`` or ``[y, x, 3]``, uint8 or uint16."""
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(array)))


def write_jpeg(path: Path, array: Array) -> None:
    """``[y, x]`` or ``[y, x, 3]``, uint8."""
    Pillow.fromarray(array).save(path, format="JPEG", quality=95, subsampling=0)


def _png_sample_layout(path: Path) -> int | None:
    """Channels of a PNG with 16 bits per sample of several channels, which Pillow would cut to 8; else None."""
    with path.open("rb") as file:
        head = file.read(26)
    depth, colour = head[24], head[25]
    return {2: 3, 4: 2, 6: 4}.get(colour) if depth == 16 else None


@contextmanager
def _own_limit() -> Iterator[None]:
    """Let Pillow read any header: the declared size is judged by the adapter, for every format alike."""
    with _LIMIT_LOCK:
        limit = Pillow.MAX_IMAGE_PIXELS
        Pillow.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Pillow.MAX_IMAGE_PIXELS = limit
