"""An exact map as plain numpy arrays in one ``.npz``, axes in the order (z,) y, x, without pickles.

``docs/interchange.md`` lists the arrays. Every declared size is compared with the size of the file before memory is allocated.
"""

from __future__ import annotations

import ast
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config
from ..contracts import MapFormat, Side, Written
from ..data import AXES, Grid
from ..io import fields
from ..maps import bends
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.fields import coarsest_field
from ..maps.flow import Flow
from ..maps.sequence import in_a_row
from ..result import Result

FORMAT = 1
"""Version of the layout; a reader refuses newer versions."""

_MAX_BYTES = 1 << 30  # largest array in bytes: a bound on what a forged header can make the reader allocate
_MAX_STEPS = 1 << 12  # largest number of Euler steps of a flow, as in the store: a forged file must not loop for ever
_MAX_ENTRIES = 64  # largest number of arrays in one file; `write` makes about 30


class Npz(MapFormat):
    """.npz: plain numpy arrays, exact."""

    name = "npz"
    suffixes = (".npz",)

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write the exact map of both directions, in the units of the canvases, and sampled fields within ``tolerance``."""
        write(path, result, tolerance)
        units = (result.fixed_grid.unit, result.moving_grid.unit)
        return Written(self.name, (path,), to, units, 0.0, self_contained=True)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Result:
        """Read the exact map and the canvases from the file."""
        return read(path)


def write(path: Path, result: Result, tolerance: float) -> None:
    """Write the exact map, and sampled fields for programs that do not integrate velocities.

    Args:
        path: file to write.
        result: the result whose map is written.
        tolerance: largest error of the sampled fields, in pixels of the moving side.
    """
    if sum(not isinstance(part, Affine) for part in result.transform.parts()) > 1:
        raise ValueError(
            "wanted a map that bends once for npz, got one that was corrected in a region, say; export it as ngff, which holds it"
        )
    before, bend, after = bends.split(result.transform)
    ndim = result.transform.ndim
    forward = Affine(bends.product(result.affine.parts(), ndim))
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "axes": AXES[ndim],
        "section": int(result.section),
        "affine_to_fixed": forward.matrix.numpy(),
        "affine_to_moving": forward.inverse().matrix.numpy(),
        "before": bends.product(before, ndim).numpy(),
        "after": bends.product(after, ndim).numpy(),
        **_grid("fixed", result.fixed_grid),
        **_grid("moving", result.moving_grid),
    }
    if isinstance(bend, Flow):
        arrays |= {"velocity": bend.velocity.numpy(), "n_steps": bend.n_steps, "reverse": int(bend.reverse)}
    elif bend is not None:
        arrays |= {"displacement": bend.field.numpy(), "inverted": int(bend.inverted)}
    if bend is not None:
        arrays |= _grid("bend", bend.grid)
        box, pixel = fields.around(result)
        for name, way in (("to_fixed", bend), ("to_moving", bend.inverse())):
            field = coarsest_field(way, bend.grid, box, pixel, tolerance)[0]
            arrays |= {f"displacement_{name}": field.field.numpy(), **_grid(f"displacement_{name}", field.grid)}
    plain: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
    with path.open("wb") as file:  # an open file, because numpy would add a suffix to a path without one
        np.savez_compressed(file, **plain)  # no `allow_pickle=`: numpy 2.0 would write an array of that name


def _grid(name: str, grid: Grid) -> dict[str, Any]:
    """The four arrays of a grid, by name."""
    return {
        f"{name}_shape": grid.shape, f"{name}_spacing": grid.spacing, f"{name}_origin": grid.origin, f"{name}_unit": grid.unit,
    }  # fmt: skip


def read(path: Path) -> Result:
    """The map in a file written by `write`, as a result without verdict; sampled fields are not read.

    Raises ValueError for a file that is damaged, unsafe, too large or incomplete.
    """
    arrays = _Arrays(_load(path))
    version = int(arrays.one("format", "iu", ()))
    if version != FORMAT:
        raise ValueError(f"wanted format {FORMAT}, got {version}; upgrade regframe")
    axes = tuple(str(a) for a in arrays.one("axes", "U", None).ravel()[:4])
    if axes not in AXES.values():
        raise ValueError(f"wanted the axes y, x or z, y, x, got {axes}")
    ndim = len(axes)
    fixed, moving = arrays.grid("fixed", ndim), arrays.grid("moving", ndim)
    square = (ndim + 1, ndim + 1)
    before, after, whole = (
        torch.from_numpy(arrays.one(n, "f", square)) for n in ("before", "after", "affine_to_fixed")
    )
    bend = arrays.bend(ndim)
    between = moving.unit if bend is None else bend.grid.unit
    parts: list[Transform] = []
    for matrix, at, to in ((before, moving.unit, between), (after, between, fixed.unit)):
        if at != to or not torch.equal(matrix, torch.eye(ndim + 1, dtype=matrix.dtype)):
            step = Affine(matrix, at, to)
            step.inverse()
            parts.append(step)
        if bend is not None and matrix is before:
            parts.append(bend)
    if not parts:
        parts.append(Affine.identity(ndim, moving.unit))
    affine = Affine(whole, moving.unit, fixed.unit)
    affine.inverse()
    transform = in_a_row(parts)
    # files of earlier versions lack this entry; none of them holds a section
    section = "section" in arrays.found and bool(arrays.one("section", "iu", ()))
    return Result(transform, fixed, moving, {}, Config(), affine, section=section)


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a file by name; each is checked when it is requested."""

    found: dict[str, NDArray[Any]]

    def one(self, name: str, kinds: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
        """An array with a dtype of one of numpy's ``kinds`` and finite values, of this shape (any shape where None)."""
        if name not in self.found:
            raise ValueError(f"wanted the array {name!r}, got only {sorted(self.found)}")
        found = self.found[name]
        if found.dtype.kind not in kinds or (shape is not None and found.shape != shape):
            raise ValueError(f"wanted {name!r} of shape {shape}, got {found.dtype} of shape {found.shape}")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise ValueError(f"wanted finite numbers in {name!r}, got NaN or inf")
        return found

    def grid(self, name: str, ndim: int) -> Grid:
        """The grid called ``name``."""
        shape = tuple(int(n) for n in self.one(f"{name}_shape", "iu", (ndim,)))
        spacing, origin = (
            tuple(float(v) for v in self.one(f"{name}_{k}", "fiu", (ndim,))) for k in ("spacing", "origin")
        )
        return Grid(shape, spacing, origin, str(self.one(f"{name}_unit", "U", ())))

    def bend(self, ndim: int) -> Flow | Displacement | None:
        """The bend between the two matrices; None for an affine map."""
        if "velocity" in self.found:
            nodes, velocity = self.grid("bend", ndim), _floats(self.one("velocity", "f", None))
            steps = int(self.one("n_steps", "iu", ()))
            if not 1 <= steps <= _MAX_STEPS:
                raise ValueError(f"wanted 1 to {_MAX_STEPS} steps of the flow, got {steps}")
            return Flow(velocity, nodes, steps, bool(self.one("reverse", "iu", ())))
        if "displacement" in self.found:
            nodes, values = self.grid("bend", ndim), _floats(self.one("displacement", "f", None))
            return Displacement(values, nodes, bool(self.one("inverted", "iu", ())))
        return None


def _floats(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32 if array.dtype.itemsize <= 4 else np.float64))


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the file, each checked by its header before it is unpacked; sampled fields are skipped."""
    found: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_ENTRIES or len({e.filename for e in entries}) != len(entries):
                raise ValueError(f"wanted at most {_MAX_ENTRIES} arrays, each once, got {len(entries)}")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or name.startswith("displacement_to_"):
                    continue
                with archive.open(entry) as file:
                    shape, order, dtype = _header(file.read(10), file, name)
                    size = math.prod(shape) * dtype.itemsize
                    if size > _MAX_BYTES or not 0 < entry.file_size - size < 1 << 16:
                        raise ValueError(
                            f"wanted at most {_MAX_BYTES} bytes of {name!r}, as many as it declares, got shape {shape} in "
                            f"{entry.file_size} bytes"
                        )
                    data = file.read(size)
                if len(data) != size:
                    raise ValueError(f"wanted {size} bytes of {name!r}, got a file that was cut short")
                found[name] = np.frombuffer(bytearray(data), dtype).reshape(shape, order=order)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"wanted a sound .npz file, got {error}") from error
    return found


def _header(start: bytes, file: Any, name: str) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    """Shape, memory order and type of an array in numpy's format 1.0; only plain numbers and text are accepted."""
    if len(start) != 10 or start[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError(f"wanted an array of numpy's format 1.0 as {name!r}, got something else")
    try:
        header = ast.literal_eval(file.read(int.from_bytes(start[8:], "little")).decode("latin-1"))
        shape, dtype = tuple(header["shape"]), np.dtype(str(header["descr"]))
        order = "F" if header["fortran_order"] else "C"
    except (ValueError, SyntaxError, TypeError, KeyError) as error:
        raise ValueError(f"wanted the header of an array as {name!r}, got a damaged one") from error
    if dtype.kind not in "fiuU" or len(shape) > 6 or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise ValueError(f"wanted numbers or text in {name!r}, got {dtype} of shape {shape}")
    return shape, order, dtype
