"""Olympus and Evident VSI, whose pixels lie in ETS files beside it, through the package bioio-vsi, an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .planes import CONVERT, TILE, Plane, PlanesRegion, channel_names, taken_axes
from .raw import Array, Raw, Resolution, Stamp, check_count, check_unchanged, kept, needed, readable, stamp
from .series import only_series
from .units import calibrate


def open_vsi(path: Path, wanted: int | str | None = None) -> Raw:
    """The levels of the image of a VSI file; micron per pixel and names of the channels as the file declares them.

    ImportError names the extra where bioio-vsi is missing, ValueError what is wrong with the file or not understood.

    Args:
        path: of the file.
        wanted: number of the image: a VSI file that holds several is refused.
    """
    if not path.name.lower().endswith(".vsi"):
        what = "the VSI file that it belongs to" if path.name.lower().endswith(".ets") else "a format that is read"
        raise ValueError(f"wanted {what}, got {str(path)!r}; {CONVERT}")
    package: Any = needed("bioio_vsi", "vsi", path, "read")
    only_series(wanted, path.name)
    refused: Exception | None = None
    with readable(path, "VSI"):
        identity = stamp(path)
        try:
            image = kept(_opened, path, identity)
        except package.VsiError as error:
            refused = error
    if refused is not None:
        reason = " ".join(str(getattr(refused, "detail", refused)).split())
        raise ValueError(
            f"wanted a VSI file that is understood, got {str(path)!r} ({reason[:200]}); {CONVERT}"
        ) from refused
    also = (package.VsiError,)
    with readable(path, "VSI", also=also):
        check_count(path, image.n_levels)
        shapes = [tuple(map(int, image.level_shape(k))) for k in range(image.n_levels)]
        micron, depth = image.pixel_size_um, image.z_step_um
        names, dtype = image.channel_names, np.dtype(image.dtype)
    t, c, z, height, width = shapes[0]
    sizes = {"t": t, "c": c, "z": z, "y": height, "x": width}
    axes = taken_axes(sizes, path, "VSI")
    numbers = ({} if micron is None else {"y": micron.y, "x": micron.x}) | ({} if depth is None else {"z": depth})
    words: dict[str, str | None] = dict.fromkeys(numbers, "µm")
    size = calibrate(numbers, words, [a for a in "zyx" if a in axes], path.name)
    spacing = size.spacing(numbers, {})
    levels = []
    for k, one in enumerate(shapes):
        here = sizes | {"y": one[3], "x": one[4]}
        factor = float(1 << k)
        shape = tuple(here[a] for a in axes)
        chunk = tuple(min(n, TILE) if a in "yx" else 1 for a, n in zip(axes, shape, strict=True))
        read = PlanesRegion(path, identity, "VSI", 0, k, axes, _window, also)
        step = {a: s * factor if a in "yx" else s for a, s in spacing.items()}
        first = {a: s * (factor - 1) / 2 for a, s in spacing.items() if a in "yx"}
        levels.append(Resolution(shape, chunk, read, step, first, dict.fromkeys("yx", factor)))
    return Raw(
        axes,
        dtype,
        tuple(levels),
        size.unit,
        channel_names([str(n or "") for n in names] if len(names) == c else [""] * c, 1),
        format="Olympus VSI",
        guessed=tuple(size.filled),
        doubts=size.doubts,
        notes=size.notes,
    )


def _opened(path: Path, identity: Stamp) -> Any:
    import bioio_vsi

    check_unchanged(stamp(path), identity)
    return bioio_vsi.open_vsi(str(path))


def _window(read: PlanesRegion, plane: Plane, y: slice, x: slice) -> Array:
    """A window of one plane of one level."""
    at = {a: i for a, i in zip(read.axes, plane, strict=False) if a in "tcz"}
    image = kept(_opened, read.path, read.stamp)
    found = image.read_region(y.start, x.start, y.stop - y.start, x.stop - x.start, level=read.level, **at)
    return np.asarray(found)
