"""Bare matrices: an affine map as numbers alone, in text or as a numpy array, with no word on direction, unit or axes.

Xenium Explorer's ``imagealignment.csv``, MERSCOPE's ``micron_to_mosaic_pixel_transform.csv`` and OpenCV's 2 × 3 matrices are such
files. What they leave open the user states; what was taken is said.
"""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

import numpy as np
import torch

from ..contracts import MapFormat, Side, Written
from ..data import Grid, canonical_unit, unit_ratio
from ..io.text import numeric, read_text
from ..maps import bends
from ..maps.affine import Affine
from ..maps.homogeneous import compose, inverse
from ..result import Result
from .steps import Array, both_canvases, inverse_of, largest_distance, positions_on, sides, turned, unjudged, way_of

MOST_BYTES = 1 << 13
"""Largest file that is looked at, in bytes: 16 numbers of 25 signs take 400, with comments and as UTF-16 a few thousand."""
AFFINE = 1e-9
"""Largest difference of the last row of a matrix from 0 … 0 1, and of an idle z axis from the unit matrix: rounding of text."""
_SUFFIXES = (".csv", ".tsv", ".txt", ".npy")
_UNIT = re.compile(r"\s*(?P<size>[0-9.eE+-]+)?\s*(?P<unit>[a-zA-Zµμ]+)\s*")


class Matrix(MapFormat):
    """.npy, .csv, .txt (--format matrix): an affine map as bare numbers (Xenium Explorer).

    Args:
        axes: order of the components, ``"xy"`` or ``"yx"``; with z before or behind.
        fixed_unit: what numbers of the fixed side count, where that differs from ``unit``: a length unit, a length
            (``"0.2125um"``), or ``px``, pixels of ``fixed_pixels``.
        moving_unit: the same of the moving side.
        fixed_pixels: the grid whose pixels count on the fixed side; its canvas where None.
        moving_pixels: the grid whose pixels count on the moving side; its canvas where None.
    """

    name = "matrix"
    suffixes = (".npy",)
    default_unit = None

    def __init__(
        self,
        axes: str = "xy",
        fixed_unit: str | None = None,
        moving_unit: str | None = None,
        fixed_pixels: Grid | None = None,
        moving_pixels: Grid | None = None,
    ) -> None:
        if axes not in ("xy", "yx", "xyz", "zyx"):
            raise ValueError(f"wanted axes xy or yx, got {axes!r}; choose one")
        self.reverse = axes.startswith("x")
        self.units = {"fixed": fixed_unit, "moving": moving_unit}
        self.pixels = {"fixed": fixed_pixels, "moving": moving_pixels}

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write the homogeneous matrix; a map that bends is refused."""
        if bends.bent(result.transform):
            raise ValueError(
                "wanted an affine map for a bare matrix, got one that bends; write itk, ngff or npz, or fit with "
                "--transform affine"
            )
        ways = self._numbers(result.fixed_grid, result.moving_grid, unit)
        source, target = ("fixed", "moving") if to == "moving" else ("moving", "fixed")
        grid, there = sides(result.fixed_grid, result.moving_grid, to)
        forward = bends.product(result.transform.parts(), result.transform.ndim)
        exact = inverse(forward) if to == "moving" else forward
        found = compose(compose(inverse(ways[target][0]), exact), ways[source][0]).numpy()  # of numbers, (z,) y, x
        found[-1] = [0.0] * grid.ndim + [1.0]
        numbers = turned(found) if self.reverse else found
        if path.suffix.lower() == ".npy":
            np.save(path, numbers)
        else:
            between = " " if path.suffix.lower() == ".txt" else "\t" if path.suffix.lower() == ".tsv" else ","
            path.write_text("".join(between.join(map(repr, row)) + "\n" for row in numbers.tolist()), encoding="ascii")
        back = Affine(compose(compose(ways[target][0], torch.from_numpy(found)), inverse(ways[source][0])))
        where = positions_on(grid)
        scale = torch.diagonal(ways[source][0])[:-1]
        canvas = {
            "size": [float(n) for n in grid.shape],
            "spacing": (torch.tensor(grid.spacing, dtype=torch.float64) / scale).tolist(),
            "origin": ((torch.tensor(grid.origin, dtype=torch.float64) - ways[source][0][:-1, -1]) / scale).tolist(),
        }
        error = largest_distance(back.points(where), way_of(result, to).points(where), there)
        units = (ways["fixed"][1], ways["moving"][1])
        resample = {name: values[::-1] for name, values in canvas.items()}  # along x, y(, z)
        return Written(self.name, (path,), to, units, error, resample=resample)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Result:
        """Read the matrix; the figure ``said`` of the result states direction, units and axes that were taken."""
        fixed, moving = both_canvases(self.name, fixed, moving)
        found = _of_dimension(read_matrix(path), fixed.ndim, self.reverse)
        if moving.ndim != fixed.ndim:
            raise ValueError(f"wanted both sides of one dimension, got {fixed.ndim}D fixed and {moving.ndim}D moving")
        inverse_of(found)  # raises ValueError for a singular matrix
        ways = self._numbers(fixed, moving, unit)
        source, target = ("fixed", "moving") if to == "moving" else ("moving", "fixed")
        matrix = torch.from_numpy(turned(found) if self.reverse else found)  # of numbers, (z,) y, x
        matrix = compose(compose(ways[target][0], matrix), inverse(ways[source][0]))
        forward = inverse(matrix) if to == "moving" else matrix
        axes = "".join(fixed.axes[::-1] if self.reverse else fixed.axes)
        said = (
            f"the matrix was taken from {source} positions in {ways[source][1]} to {target} ones in {ways[target][1]}, "
            f"components {', '.join(axes)}"
        )
        return unjudged(Affine(forward, moving.unit, fixed.unit), fixed, moving, {"said": said})

    def _numbers(self, fixed: Grid, moving: Grid, unit: str) -> dict[str, tuple[torch.Tensor, str]]:
        """For each side the matrix from the file's numbers to positions, components (z,) y, x, and the unit in words."""
        grids = {"fixed": fixed, "moving": moving}
        return {side: _scaling(side, grid, self.units[side], unit, self.pixels[side]) for side, grid in grids.items()}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a small table of 2 to 4 rows holds numbers alone, as many as a matrix has."""
        try:
            if not path.name.lower().endswith(_SUFFIXES) or not path.is_file() or path.stat().st_size > MOST_BYTES:
                return False
            read_matrix(path, shape_only=True)
        except (ValueError, OSError):
            return False
        return True


def read_matrix(path: Path, shape_only: bool = False) -> Array:
    """The homogeneous matrix ``[D+1, D+1]`` of a file, components in the file's order.

    Args:
        path: text or a numpy array of 2 × 3, 3 × 3, 3 × 4 or 4 × 4 numbers.
        shape_only: do not look at the numbers.

    Raises ValueError for anything else: a transposed or projective matrix, numbers that are not finite, an array of objects.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"wanted a matrix of at most {MOST_BYTES} bytes, got {path.name!r}, which is larger")
    if path.suffix.lower() == ".npy":
        try:
            loaded = np.load(path, allow_pickle=False)
        except (EOFError, OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
            raise ValueError(f"wanted a numpy array of numbers in {path.name!r}, got {error}") from error
        if loaded.dtype.kind not in "iuf":
            raise ValueError(f"wanted a matrix of numbers, got an array of {loaded.dtype}")
        numbers: Array = loaded.astype(np.float64)
    else:
        rows = _unnumbered(read_text(path, lambda row: False).rows)
        if not rows or len({len(row) for row in rows}) > 1 or not all(numeric(cell) for row in rows for cell in row):
            raise ValueError(f"wanted rows of as many numbers each and nothing else in {path.name!r}; leave names out")
        numbers = np.array([[float(cell.strip().replace(",", ".")) for cell in row] for row in rows])
    if numbers.shape not in ((2, 3), (3, 3), (3, 4), (4, 4)):
        raise ValueError(f"wanted a matrix of 2 x 3, 3 x 3, 3 x 4 or 4 x 4 numbers, got {list(numbers.shape)}")
    if shape_only:
        return numbers
    if not np.isfinite(numbers).all():
        raise ValueError("wanted a matrix of finite numbers, got NaN or inf in it")
    last = np.eye(numbers.shape[1])[-1]
    if numbers.shape[0] < numbers.shape[1]:
        return np.vstack([numbers, last])
    if np.abs(numbers[-1] - last).max() <= AFFINE:
        numbers[-1] = last
        return numbers
    if np.abs(numbers[:, -1] - last).max() <= AFFINE:
        raise ValueError(
            "wanted the shift in the last column and 0 … 0 1 in the last row, got them exchanged (a matrix for row vectors); "
            "transpose it"
        )
    raise ValueError(f"wanted an affine map, whose last row is 0 … 0 1, got {numbers[-1].tolist()}; it is a projection")


def _unnumbered(rows: list[list[str]]) -> list[list[str]]:
    """Rows without the counts that pandas writes as names of columns, and of rows with a blank before them."""
    cells = [[cell.strip() for cell in row] for row in rows]
    if (
        len(cells) > 1
        and cells[0][0] == ""
        and [row[0] for row in cells[1:]] == [str(i) for i in range(len(cells) - 1)]
    ):
        cells = [row[1:] for row in cells]
        return cells[1:] if cells[0] == [str(i) for i in range(len(cells[0]))] else cells
    square = len(cells) == len(cells[0]) + 1 if cells else False
    return cells[1:] if square and cells[0] == [str(i) for i in range(len(cells[0]))] else cells


def _of_dimension(matrix: Array, ndim: int, x_first: bool) -> Array:
    """A matrix of 3D positions as one of 2D positions where z plays no part; ValueError for one of another dimension."""
    if len(matrix) - 1 == ndim:
        return matrix
    z = 2 if x_first else 0
    if len(matrix) == 4 and ndim == 2:
        idle = np.eye(4)[z]
        rest = [i for i in range(4) if i != z]
        if max(np.abs(matrix[z, rest]).max(), np.abs(matrix[rest, z]).max(), np.abs(matrix[z] - idle).max()) <= AFFINE:
            return matrix[np.ix_(rest, rest)]
        raise ValueError("wanted a matrix that leaves z alone for images in a plane, got one that moves it")
    raise ValueError(f"wanted a matrix of {ndim} dimensions, as the images have, got one of {len(matrix) - 1}")


def _scaling(side: str, grid: Grid, own: str | None, unit: str, pixels: Grid | None) -> tuple[torch.Tensor, str]:
    """The matrix from a file's numbers of a side to its positions, components (z,) y, x, and the numbers' unit in words."""
    stated = own or ("px" if grid.unit == "px" else unit)
    if not stated:
        raise ValueError(
            f"wanted the unit of the numbers of a bare matrix on the {side} side, which is in {grid.unit}, got none; state it "
            "with --unit px (pixels at full resolution) or --unit um"
        )
    match = _UNIT.fullmatch(str(stated))
    if match is None:
        raise ValueError(f"wanted a unit such as px, um or 0.2125um for the {side} side, got {stated!r}")
    name, size = canonical_unit(match["unit"]), float(match["size"] or 1.0)
    if not (np.isfinite(size) and size > 0) or (name == "px" and size != 1.0):
        raise ValueError(f"wanted px or a positive length for the {side} side, got {stated!r}")
    scaling = torch.eye(grid.ndim + 1, dtype=torch.float64)
    if name == "px" and grid.unit != "px":
        pixels = pixels or grid
        scaling[range(grid.ndim), range(grid.ndim)] = torch.tensor(pixels.spacing, dtype=torch.float64)
        scaling[:-1, -1] = torch.tensor(pixels.origin, dtype=torch.float64)
        words = f"px of {pixels.spacing[-1]:.6g} {grid.unit}"
        return scaling, words
    ratio = unit_ratio(name, grid.unit)
    if ratio is None:
        raise ValueError(
            f"wanted px for the {side} side, which declares no pixel size, got {stated!r}; state its spacing"
        )
    scaling[range(grid.ndim), range(grid.ndim)] = ratio * size
    return scaling, name if size == 1.0 else f"{size:g} {name}"
