"""Maps for QuPath: text for its extension Align, JSON for its extension Warpy.

Both count pixels of full resolution from the corner of the first one, x before y, as QuPath's objects do. Sources:
``GeometryTools.parseTransformMatrix`` of QuPath reads six numbers, ``m00 m01 m02`` and ``m10 m11 m12``; by them the overlay of
``qupath-extension-align`` takes pixels of the image in the viewer to those of the overlay. ``qupath-extension-warpy`` reads
``InvertibleRealTransformSequence`` of ImgLib2 from ``transform_TARGET_SOURCE.json`` in the folder of the project's entry TARGET,
and takes objects of SOURCE to TARGET by it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator

from ..contracts import MapFormat, Side, Written
from ..data import Grid
from ..io import bigwarp
from ..maps import bends
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.sequence import in_a_row
from ..result import Result
from .steps import Array, both_canvases, inverse_of, largest_distance, positions_on, sides, unjudged, way_of

_DIGITS = 12
"""Decimals of a number in text, written without an exponent: Java's reader of numbers knows none in small letters. Across a
canvas of 1e6 pixels the last one moves a position by 1e-6 pixels."""
_MOST_BYTES = 1 << 22
"""Largest file that is read, in bytes: 4 MiB hold 20 000 landmarks, more than a spline of them can be solved for."""
_FEWEST = 5
"""Landmarks of a spline along the longest side of the canvas with which it is begun."""
_MOST = 1000
"""Landmarks of a spline at most: it takes a system of 2000 equations to make one, and a sum over all of them for each position
that is carried. On two lung sections of 890 × 733 px whose map bends much they leave 1.7 px at most and 0.2 px in the median,
where a regular grid of as many leaves 4 px and 0.3 px."""
_GROWTH = 4 / 3
"""How many times more landmarks there are from one try to the next; the new ones lie where the spline is farthest off."""
_THOUSAND = 1000.0
"""Pixels that count as 1 inside a spline, so that its equations are well conditioned; Warpy's own files use millimetres."""
_NODES = 129
"""Nodes, along the longest side, of the field that a spline is sampled to when it is read: five to a landmark or more."""
_NAME = re.compile(r"transform_\d+_\d+\.json")


class _InPixels(MapFormat):
    """What both formats share: numbers are pixels of full resolution, counted from the corner of the first one.

    Args:
        fixed_pixels: the grid of the fixed side's finest pixels; its canvas where None.
        moving_pixels: the grid of the moving side's finest pixels; its canvas where None.
    """

    default_unit = None
    in_pixels = True

    def __init__(self, fixed_pixels: Grid | None = None, moving_pixels: Grid | None = None) -> None:
        self.pixels = {"fixed": fixed_pixels, "moving": moving_pixels}

    def _ends(self, fixed: Grid, moving: Grid, to: Side) -> tuple[Array, Array]:
        """Matrices ``[3, 3]`` from numbers of the file, (x, y), to positions, (y, x), of the side that is left and of ``to``.

        ValueError for volumes.
        """
        if fixed.ndim != 2 or moving.ndim != 2:
            raise ValueError(f"wanted a map of two dimensions for QuPath, got one of {fixed.ndim}; write itk or ngff")
        left, reached = sides(self.pixels["fixed"] or fixed, self.pixels["moving"] or moving, to)
        return _from_numbers(left), _from_numbers(reached)

    def _written(self, path: Path, result: Result, to: Side, back: Transform) -> Written:
        """The record of a file that takes positions to the side ``to`` as ``back`` does."""
        here, there = sides(result.fixed_grid, result.moving_grid, to)
        where = positions_on(here)
        error = largest_distance(back.points(where), way_of(result, to).points(where), there)
        canvas = sides(self.pixels["fixed"] or result.fixed_grid, self.pixels["moving"] or result.moving_grid, to)[0]
        size = [float(n) for n in canvas.shape[::-1]]
        drawn = {"size": size, "spacing": [1.0, 1.0], "origin": [0.0, 0.0]}
        return Written(self.name, (path,), to, ("px", "px"), error, resample=drawn)

    def _found(self, numbers: Array, fixed: Grid, moving: Grid, to: Side) -> Result:
        """The result of a matrix ``[3, 3]`` of the file's numbers."""
        inverse_of(numbers)  # raises ValueError for a singular one
        left, reached = self._ends(fixed, moving, to)
        here, there = sides(fixed, moving, to)
        way = Affine(torch.from_numpy(reached @ numbers @ inverse_of(left)), here.unit, there.unit)
        return unjudged(way if to == "fixed" else way.inverse(), fixed, moving)


class Alignment(_InPixels):
    """.qupath.txt: an affine map to paste into QuPath's Interactive image alignment.

    Args:
        fixed_pixels: the grid of the fixed side's finest pixels; its canvas where None.
        moving_pixels: the grid of the moving side's finest pixels; its canvas where None.
    """

    name = "qupath"
    suffixes = (".qupath.txt",)

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write six numbers in two rows; a map that bends is refused, and a name under which they would be read otherwise."""
        if not self.recognises(path):
            raise ValueError(
                f"wanted a name ending in {self.suffixes[0]} for QuPath's alignment, which tells it from a bare matrix, got "
                f"{path.name!r}; take {path.name.partition('.')[0] + self.suffixes[0]}"
            )
        if not _straight(result.transform):
            raise ValueError(
                "wanted an affine map for QuPath's image alignment, got one that bends; write warpy, or fit with "
                "--transform affine"
            )
        left, reached = self._ends(result.fixed_grid, result.moving_grid, to)
        forward = bends.product(result.transform.parts(), 2).numpy()
        numbers = inverse_of(reached) @ (forward if to == "fixed" else inverse_of(forward)) @ left
        rows = [[f"{value:.{_DIGITS}f}" for value in row] for row in numbers[:2]]
        path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="ascii")
        found = self._found(np.array([*map(_floats, rows), [0, 0, 1]]), result.fixed_grid, result.moving_grid, to)
        return self._written(path, result, to, way_of(found, to))

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Result:
        """Read six numbers, separated by blanks, tabs, commas or lines."""
        fixed, moving = both_canvases(self.name, fixed, moving)
        words = re.split(r"[\s,]+", _text(path).strip())
        try:
            numbers = np.array(_floats(words)).reshape(2, 3)
        except ValueError as error:
            raise ValueError(f"wanted six numbers in {path.name!r}, got {len(words)} words, or others") from error
        if not np.isfinite(numbers).all():
            raise ValueError(f"wanted six finite numbers in {path.name!r}, got NaN or inf")
        return self._found(np.vstack([numbers, [0, 0, 1]]), fixed, moving, to)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it has the suffix: six numbers alone could be a bare matrix."""
        return path.name.lower().endswith(cls.suffixes)


class Warpy(_InPixels):
    """.warpy.json, transform_1_2.json (--format warpy): a map for QuPath's extension Warpy.

    Args:
        fixed_pixels: the grid of the fixed side's finest pixels; its canvas where None.
        moving_pixels: the grid of the moving side's finest pixels; its canvas where None.
    """

    name = "warpy"
    suffixes = (".warpy.json",)

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write the matrix of an affine map exactly, a bend as a thin-plate spline through up to 1000 landmarks."""
        if not (self.recognises(path) or path.name.lower().endswith(self.suffixes)):
            raise ValueError(
                f"wanted a name that QuPath's extension Warpy looks for (transform_2_1.json: project entries), or one ending in "
                f"{self.suffixes[0]}, got {path.name!r}; without it the file is not known as Warpy's"
            )
        left, reached = self._ends(result.fixed_grid, result.moving_grid, to)
        if _straight(result.transform):
            forward = bends.product(result.transform.parts(), 2).numpy()
            numbers = inverse_of(reached) @ (forward if to == "fixed" else inverse_of(forward)) @ left
            _dump(path, [_affine(numbers)])
            back = self._found(numbers, result.fixed_grid, result.moving_grid, to)
            return self._written(path, result, to, way_of(back, to))
        here, there = sides(result.fixed_grid, result.moving_grid, to)
        exact = way_of(result, to)
        spline, error = _fitted(exact, (here, there), (left, reached), tolerance)
        scale = np.diag([1 / _THOUSAND, 1 / _THOUSAND, 1.0])
        _dump(path, [_affine(scale), spline.document(), _affine(inverse_of(scale))])
        plain = self._written(path, result, to, exact)
        return Written(plain.format, plain.files, to, plain.units, error, resample=plain.resample)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Result:
        """Read affine maps, or one spline between them, which becomes a displacement field."""
        fixed, moving = both_canvases(self.name, fixed, moving)
        text = _text(path)
        matrix = _matrix(text, path.name)
        if matrix is not None:
            return self._found(matrix, fixed, moving, to)
        found = bigwarp.parsed(text)
        if found is None or len(found.pairs) < 3 or any(len(pair.fixed) != 2 for pair in found.pairs):
            raise ValueError(f"wanted a map of Warpy in the plane in {path.name!r}, got something else")
        p, q = (np.array([getattr(pair, side)[::-1] for pair in found.pairs]) for side in ("fixed", "moving"))
        left, reached = self._ends(fixed, moving, to)
        here, there = sides(fixed, moving, to)
        way = _bent(
            _Spline(p, q), here, left, reached, there.unit
        )  # the file's source is called fixed there, in any direction
        return unjudged(way if to == "fixed" else way.inverse(), fixed, moving)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is called as Warpy calls its files, in a project of QuPath."""
        return _NAME.fullmatch(path.name) is not None


class _Spline:
    """The thin-plate spline with affine part that takes ``p`` ``[N, 2]`` to ``q``, in pixels (x, y)."""

    def __init__(self, p: Array, q: Array) -> None:
        self.p, self.q = p, q
        try:
            self._found = RBFInterpolator(p / _THOUSAND, q, kernel="thin_plate_spline", degree=1)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise ValueError("wanted landmarks that are apart and not on a line, got others") from error

    def __call__(self, points: Array) -> Array:
        moved: Array = self._found(points / _THOUSAND)
        return moved

    def document(self) -> dict[str, Any]:
        """The spline as ImgLib2's serialiser writes it, in thousands of pixels."""
        spline = {
            "type": "ThinplateSplineTransform",
            "srcPts": (self.p.T / _THOUSAND).tolist(),
            "tgtPts": (self.q.T / _THOUSAND).tolist(),
        }
        inverted = {"type": "WrappedIterativeInvertibleRealTransform", "wrappedTransform": spline}
        return {"type": "Wrapped2DTransformAs3D", "wrappedTransform": inverted}


def _fitted(
    exact: Transform, canvases: tuple[Grid, Grid], numbers: tuple[Array, Array], tolerance: float
) -> tuple[_Spline, float]:
    """The spline that follows a map, and how far off it is at most, in pixels of the side that is reached.

    Args:
        exact: the map.
        canvases: of the side that is left, and of that which is reached.
        numbers: for either the matrix from a file's numbers to positions.
        tolerance: distance from the map, in pixels, at which it is near enough.
    """
    here, there = canvases
    left, reached = inverse_of(numbers[0]), inverse_of(numbers[1])
    where = positions_on(here)
    tried, judged = (
        where[::2],
        where[1::2],
    )  # from the ones new landmarks are taken, at the others the error is measured too

    def off(spline: _Spline, at: torch.Tensor) -> Array:
        found = torch.from_numpy(_through(numbers[1], spline(_through(left, at.numpy()))))
        spacing = torch.tensor(there.spacing, dtype=torch.float64)
        apart: Array = ((found - exact.points(at)) / spacing).norm(dim=1).numpy()
        return apart

    p = _lattice(here, _FEWEST)
    while True:
        q = exact.points(torch.from_numpy(p)).numpy()
        spline = _Spline(_through(left, p), _through(reached, q))
        apart = off(spline, tried)
        if apart.max() <= tolerance or len(p) >= _MOST:
            return spline, max(float(apart.max()), float(off(spline, judged).max()))
        p = np.vstack([p, _worst(apart, tried.numpy(), here, p)])


def _bent(spline: _Spline, here: Grid, left: Array, reached: Array, unit: str) -> Transform:
    """A spline as a displacement field on the canvas ``here``, and the affine map after it."""
    ones = np.hstack([spline.p, np.ones((len(spline.p), 1))])
    rows = np.linalg.lstsq(ones, spline.q, rcond=None)[0].T  # [2, 3]
    line = reached @ np.vstack([rows, [0, 0, 1]]) @ inverse_of(left)
    step = max(here.extent) / (_NODES - 1)
    wide = tuple(round(extent / step) + 9 for extent in here.extent)  # a margin of four nodes, over which it fades
    origin = tuple(o - s / 2 - 4 * step for o, s in zip(here.origin, here.spacing, strict=True))
    nodes = Grid(wide, (step, step), origin, here.unit)
    at = nodes.coords().reshape(-1, 2).numpy()
    there = _through(reached, spline(_through(inverse_of(left), at)))
    off = (_through(inverse_of(line), there) - at).reshape(*wide, 2)
    far = np.minimum.reduce(np.meshgrid(*[np.minimum(np.arange(n), n - 1 - np.arange(n)) for n in wide], indexing="ij"))
    field = np.moveaxis(off * np.minimum(far / 3.0, 1.0)[..., None], -1, 0)
    bend = Displacement(torch.from_numpy(np.ascontiguousarray(field)), nodes)
    return in_a_row([bend, Affine(torch.from_numpy(line), here.unit, unit)])


def _straight(transform: Transform) -> bool:
    return all(isinstance(part, Affine) for part in transform.parts())


def _from_numbers(grid: Grid) -> Array:
    """The matrix ``[3, 3]`` from pixels (x, y), counted from the corner of the first, to positions (y, x) of a grid."""
    matrix = np.zeros((3, 3))
    matrix[0, 1], matrix[1, 0] = grid.spacing
    matrix[:2, 2] = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    matrix[2, 2] = 1.0
    return matrix


def _through(matrix: Array, points: Array) -> Array:
    moved: Array = points @ matrix[:2, :2].T + matrix[:2, 2]
    return moved


def _lattice(grid: Grid, count: int) -> Array:
    """Positions ``[N, 2]`` of a regular grid over a canvas, its corners included."""
    counts = [max(3, round((count - 1) * extent / max(grid.extent)) + 1) for extent in grid.extent]
    axes = [
        np.linspace(o - s / 2, o - s / 2 + e, n)
        for o, s, e, n in zip(grid.origin, grid.spacing, grid.extent, counts, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _worst(apart: Array, where: Array, grid: Grid, p: Array) -> Array:
    """Positions ``[N, 2]`` out of ``where`` at which a spline is farthest off, none near another or near one of its landmarks."""
    wanted = min(_MOST, max(len(p) + 9, round(len(p) * _GROWTH))) - len(p)
    near = (np.prod(grid.extent) / len(p)) ** 0.5 / 2
    kept = p
    for i in np.argsort(-apart, kind="stable"):
        new = np.hypot(*(kept[len(p) :] - where[i]).T)
        if (not len(new) or new.min() > near) and np.hypot(*(p - where[i]).T).min() > near / 3:
            kept = np.vstack([kept, where[i]])
            if len(kept) == len(p) + wanted:
                break
    if len(kept) == len(p):  # the landmarks are as dense as the positions that were tried
        kept = np.vstack([p, where[np.argmax(apart)]])
    return kept[len(p) :]


def _affine(numbers: Array) -> dict[str, Any]:
    """A matrix ``[3, 3]`` as ImgLib2's ``AffineTransform3D``, which leaves z alone: three rows of four numbers in a row."""
    solid = np.eye(4)
    solid[np.ix_([0, 1], [0, 1, 3])] = numbers[:2]
    return {"type": "AffineTransform3D", "affinetransform3d": solid[:3].ravel().tolist()}


def _dump(path: Path, steps: list[dict[str, Any]]) -> None:
    named = {f"realTransform_{i}": step for i, step in enumerate(steps)}
    document = {"type": "InvertibleRealTransformSequence", "size": len(steps), **named}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")


def _matrix(text: str, name: str) -> Array | None:
    """The product of the affine maps in Warpy's JSON as a matrix ``[3, 3]``; None where there are other maps among them."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"wanted Warpy's JSON in {name!r}, got text that is cut off or damaged") from error
    if not isinstance(document, dict):
        raise ValueError(f"wanted Warpy's JSON in {name!r}, got another document")
    steps = [document] if "affinetransform3d" in document else []
    steps += [document[key] for key in (f"realTransform_{i}" for i in range(len(document))) if key in document]
    if not steps:
        raise ValueError(f"wanted Warpy's JSON in {name!r}, got a document without a transform")
    if not all(isinstance(step, dict) and "affinetransform3d" in step for step in steps):
        return None
    whole = np.eye(4)
    for step in steps:
        try:
            rows = np.array(step["affinetransform3d"], dtype=np.float64).reshape(3, 4)
        except (TypeError, ValueError) as error:
            raise ValueError(f"wanted 12 numbers of an affine map in {name!r}, got others") from error
        whole = np.vstack([rows, [0, 0, 0, 1]]) @ whole
    if not np.isfinite(whole).all():
        raise ValueError(f"wanted finite numbers in {name!r}, got NaN or inf")
    if np.abs(whole[:2, 2]).max() > 0:
        raise ValueError(f"wanted a map that leaves z out of the plane in {name!r}, got one that mixes it in")
    return whole[np.ix_([0, 1, 3], [0, 1, 3])]


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"wanted a map of at most {_MOST_BYTES >> 20} MiB, got {path.name!r}, which is larger")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"wanted text in {path.name!r}, got bytes that are none") from error


def _floats(words: list[str]) -> list[float]:
    return [float(word) for word in words]
