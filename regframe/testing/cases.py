"""A misread pair made small enough, and bare enough, to be sent: thumbnails and thinned positions, no names, no metadata."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from .. import ops, plugins
from ..data import AXES, Grid, Image, PointSet
from ..versions import versions

PIXELS = 256
"""Longest side of a thumbnail, in pixels, unless asked otherwise: tissue is seen, a face in a scan or a label is not read."""

MOST_PIXELS = 1024
"""Longest side that may be asked for: beyond it a picture is no thumbnail any more."""

POINTS = 2000
"""Positions that are kept of a table: a random tenth of a large one still shows its outline."""

_DATE = (1980, 1, 1, 0, 0, 0)


def shrink(fixed: Image | PointSet, moving: Image | PointSet, path: Path, pixels: int = PIXELS) -> dict[str, Any]:
    """Write ``path``, a zip of both sides made small, and return what ``case.json`` in it says.

    Images become block averages of at most ``pixels`` pixels a side (labels: one pixel of each block), with spacing and unit
    kept and channels numbered; points keep their positions alone, `POINTS` of them at most. Neither names of files, channels
    and columns nor any other metadata go in, and no dates. ``case.json`` has the original sizes and the versions of this
    installation.

    Raises ValueError where ``pixels`` is not 16 … `MOST_PIXELS`, FileExistsError where ``path`` exists.
    """
    if not 16 <= pixels <= MOST_PIXELS:
        raise ValueError(f"wanted 16 to {MOST_PIXELS} pixels for a thumbnail, got {pixels}; a case is not the data")
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another name")
    files: dict[str, bytes] = {}
    said: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for side, data in (("fixed", fixed), ("moving", moving)):
            if isinstance(data, Image):
                small = thumbnail(data, pixels)
                name = f"{side}.ome.tif"
                target = Path(folder) / name
                plugins.find_adapter(small).save(small.replace(name=side), target)
                files[name] = target.read_bytes()
                grid, pixel = data.grid, data.data
                said[side] = {"file": name, "shape": list(grid.shape), "spacing": list(grid.spacing), "unit": grid.unit,
                              "channels": pixel.shape[0], "dtype": str(pixel.dtype), "labels": data.labels}  # fmt: skip
            else:
                name = f"{side}.csv"
                files[name] = _bare_table(data)
                said[side] = {"file": name, "points": len(data), "unit": data.unit}
    command = f"regframe register {said['fixed']['file']} {said['moving']['file']} -o run"
    said |= {"command": command, "versions": versions(), "ops": ops.is_built(),
             "platform": f"{platform.system()} {platform.machine()}"}  # fmt: skip
    files["case.json"] = (json.dumps(said, indent=1) + "\n").encode()
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return said


def thumbnail(image: Image, pixels: int) -> Image:
    """``image`` averaged over square blocks until no side has more than ``pixels`` pixels; its channels are numbered.

    Labels take the first pixel of each block instead. What does not fill a block at the far end is left out.
    """
    block = max(1, math.ceil(max(image.grid.shape) / pixels))
    blocks = [min(block, size) for size in image.grid.shape]
    kept = [size // b * b for size, b in zip(image.grid.shape, blocks, strict=True)]
    data = image.data[(slice(None), *(slice(0, size) for size in kept))]  # [C, *S]
    if image.labels:
        small = data[(slice(None), *(slice(None, None, b) for b in blocks))]
    else:
        split = [data.shape[0]]
        for size, b in zip(kept, blocks, strict=True):
            split += [size // b, b]
        mean = data.to(torch.float64).reshape(split).mean(dim=tuple(range(2, len(split), 2)))
        small = mean.to(data.dtype) if data.dtype.is_floating_point else mean.round().to(data.dtype)
    grid = image.grid
    spacing = tuple(s * b for s, b in zip(grid.spacing, blocks, strict=True))
    shift = [(b - 1) / 2 * s for s, b in zip(grid.spacing, blocks, strict=True)]
    origin = tuple(o + d for o, d in zip(grid.origin, shift, strict=True))
    names = tuple(str(i) for i in range(len(small)))
    shape = tuple(int(n) for n in small.shape[1:])
    return Image(small.contiguous(), Grid(shape, spacing, origin, grid.unit), channels=names, labels=image.labels)


def _bare_table(points: PointSet) -> bytes:
    """A text table of positions alone, x first, thinned at random (seed 0) to `POINTS` rows, the unit in the names."""
    coords = points.coords.numpy()
    if len(coords) > POINTS:
        coords = coords[np.sort(np.random.default_rng(0).choice(len(coords), POINTS, replace=False))]
    unit = points.unit.replace("µ", "u")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([f"{axis}_{unit}" for axis in reversed(AXES[coords.shape[1]])])
    rows.writerows([f"{value:.6g}" for value in row[::-1]] for row in coords)
    return text.getvalue().encode()
