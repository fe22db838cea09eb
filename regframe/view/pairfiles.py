"""Landmarks in files: our own table, and those of other programs. The only place where x comes before y.

| name | file of | layout |
|---|---|---|
| ``csv`` | regframe | ``name, fixed_y, fixed_x, moving_y, moving_x`` in each side's own unit, as ``--landmarks`` takes it |
| ``bigwarp`` | Fiji's BigWarp | no header: name, active, moving x, moving y, fixed x, fixed y |
| ``bigwarp-json`` | BigWarp, Warpy | JSON, see `regframe.io.bigwarp`; read also as Warpy's registration |
| ``explorer`` | Xenium Explorer keypoints | ``fixedX, fixedY, alignmentX, alignmentY``, pixels of full resolution |
| ``qupath`` | QuPath | GeoJSON points of one side, names in ``properties.name``; x, y in pixels from the corner of the first |
| ``napari`` | napari | points layer of one side: ``index, axis-0, axis-1`` |
| ``imagej`` | Fiji, ImageJ | multipoint of one side as a table of results: `` , X, Y``, pixels |
| ``imagej-roi`` | Fiji, ImageJ | multipoint ``.roi`` of one side, or a ``RoiSet.zip``, see `regframe.io.imagej`; pixels |
| ``stalign`` | STalign | ``.npy`` of one side, see `regframe.io.stalign`: y, x in the side's own unit; nothing in it is run |

Positions that a program counts in pixels are those of the finest level of the side, and are converted with its grid. They count
from the middle of the first pixel where nothing else is said: ImageJ's of points do so since 1.52u (2020).
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import AXES, Grid, PointSet
from ..io import bigwarp, imagej, stalign
from ..io.tables import read_landmarks, to_unit_of
from .pairs import Pair

Point = tuple[float, ...]
Read = list[tuple[str, Point, Point, bool]]
"""Pairs as they are read: name, fixed and moving position ((z,) y, x) in each side's unit, whether it counts."""


@dataclass(frozen=True)
class Sides:
    """The finest grids of both sides, by which pixels become positions.

    Args:
        fixed: of the fixed side.
        moving: of the moving side.
    """

    fixed: Grid
    moving: Grid


def read(text: str, sides: Sides) -> Read:
    """The pairs of a file that holds both sides: ours, BigWarp's or Xenium Explorer's, told apart by what they hold.

    ValueError, in one sentence, for anything else.
    """
    found = bigwarp.parsed(text)
    ndim = sides.fixed.ndim
    if found is not None:
        if any(len(pair.fixed) != ndim for pair in found.pairs):
            raise ValueError(f"wanted landmarks in {ndim} dimensions, got some in {len(found.pairs[0].fixed)}")
        f = _in_unit(
            torch.tensor([p.fixed for p in found.pairs], dtype=torch.float64).reshape(-1, ndim), found.unit, sides.fixed
        )
        m = _in_unit(
            torch.tensor([p.moving for p in found.pairs], dtype=torch.float64).reshape(-1, ndim),
            found.unit,
            sides.moving,
        )
        return [(pair.name, at, to, pair.on) for pair, at, to in zip(found.pairs, f, m, strict=True)]
    rows = list(csv.reader(io.StringIO(text.lstrip("\ufeff"))))
    if _bigwarp(rows, ndim):
        numbers = [[*map(float, row[2:])] for row in rows]
        return [
            (row[0], tuple(values[: ndim - 1 : -1]), tuple(values[ndim - 1 :: -1]), row[1].strip().lower() == "true")
            for row, values in zip(rows, numbers, strict=True)
        ]
    with tempfile.TemporaryDirectory(prefix="regframe-") as folder:
        path = Path(folder) / "landmarks.csv"
        path.write_text(text, encoding="utf-8")
        try:
            fixed, moving, units = read_landmarks(path)
        except ValueError as error:
            raise ValueError(str(error).replace(repr(str(path)), "the file").replace(str(path), "the file")) from error
    names = _column(rows, "name") or [""] * len(fixed)
    counts = [value.strip().lower() not in ("false", "0", "no") for value in _column(rows, "on") or []] or [True] * len(
        fixed
    )
    if fixed.shape[1] != ndim:
        raise ValueError(f"wanted landmarks in {ndim} dimensions, got some in {fixed.shape[1]}")
    f = _in_unit(fixed, units[0], sides.fixed)
    m = _in_unit(moving, units[1], sides.moving)
    return list(zip(names, f, m, counts, strict=False))


def read_side(text: str | bytes, grid: Grid) -> list[tuple[str, Point]]:
    """Named positions of one side: QuPath's GeoJSON, a points table of napari or ImageJ, or the bytes of STalign's ``.npy`` or of
    ImageJ's ``.roi`` and ``RoiSet.zip``; in the side's unit.

    ValueError, in one sentence, for anything else; ImportError where the package that reads selections of ImageJ is missing.
    """
    if isinstance(text, bytes):
        if imagej.is_rois(text):
            return [(name, _position(grid, x, y)) for name, (y, x) in imagej.parsed(text)]
        return _stalign(text, grid)
    if text.lstrip()[:1] in ("{", "["):
        return _qupath(text, grid)
    rows = [row for row in csv.reader(io.StringIO(text.lstrip("\ufeff"))) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    for y, x in (("axis-0", "axis-1"), ("y", "x")):
        if y in header and x in header:
            try:
                found = [(float(row[header.index(y)]), float(row[header.index(x)])) for row in rows[1:]]
            except (ValueError, IndexError) as error:
                raise ValueError(f"wanted numbers in the columns {y} and {x}, got something else") from error
            return [(str(i), _position(grid, b, a)) for i, (a, b) in enumerate(found, 1)]
    raise ValueError(
        "wanted GeoJSON points, or a table with the columns axis-0, axis-1 (napari) or X, Y (ImageJ), got another file"
    )


def write_csv(pairs: Sequence[Pair], sides: Sides) -> str:
    """Our table: numbers that read back the same, in each side's own unit."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    axes = AXES[sides.fixed.ndim]
    table.writerow(["name", *(f"{side}_{axis}" for side in ("fixed", "moving") for axis in axes)])
    table.writerows([_tame(pair.name), *map(repr, (*pair.fixed, *pair.moving))] for pair in pairs)
    return out.getvalue()


def write_bigwarp(pairs: Sequence[Pair], sides: Sides) -> str:
    """BigWarp's table, in each side's own unit."""
    lines = []
    for pair in pairs:
        numbers = (*pair.moving[::-1], *pair.fixed[::-1])
        cells = [pair.name.replace('"', "'"), "true" if pair.on else "false", *map(repr, numbers)]
        lines.append(",".join(f'"{cell}"' for cell in cells) + "\n")
    return "".join(lines)


def write_bigwarp_json(pairs: Sequence[Pair], sides: Sides) -> str:
    """BigWarp's JSON, in each side's own unit."""
    return bigwarp.written([bigwarp.Landmark(pair.name, pair.fixed, pair.moving, pair.on) for pair in pairs])


def write_explorer(pairs: Sequence[Pair], sides: Sides) -> str:
    """Xenium Explorer's keypoints, in pixels of full resolution."""
    rows = ["fixedX,fixedY,alignmentX,alignmentY\n"]
    for pair in pairs:
        fy, fx = _pixel(sides.fixed, pair.fixed)
        my, mx = _pixel(sides.moving, pair.moving)
        rows.append(f"{fx!r},{fy!r},{mx!r},{my!r}\n")
    return "".join(rows)


def write_qupath(pairs: Sequence[Pair], sides: Sides, side: str) -> str:
    """The positions of one side as QuPath's GeoJSON points."""
    grid = sides.fixed if side == "fixed" else sides.moving
    features = []
    for pair in pairs:
        y, x = _pixel(grid, pair.fixed if side == "fixed" else pair.moving)
        geometry = {"type": "Point", "coordinates": [x + 0.5, y + 0.5]}
        features.append({"type": "Feature", "id": f"pair-{pair.id}", "geometry": geometry,
                         "properties": {"objectType": "annotation", "name": pair.name}})  # fmt: skip
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False, indent=1) + "\n"


def write_napari(pairs: Sequence[Pair], sides: Sides, side: str) -> str:
    """The positions of one side as a points layer of napari, in pixels."""
    grid = sides.fixed if side == "fixed" else sides.moving
    rows = ["index,axis-0,axis-1\n"]
    for i, pair in enumerate(pairs):
        y, x = _pixel(grid, pair.fixed if side == "fixed" else pair.moving)
        rows.append(f"{float(i)!r},{y!r},{x!r}\n")
    return "".join(rows)


def write_imagej(pairs: Sequence[Pair], sides: Sides, side: str) -> str:
    """The positions of one side as ImageJ's table of a multipoint, in pixels."""
    grid = sides.fixed if side == "fixed" else sides.moving
    rows = [" ,X,Y\n"]
    for i, pair in enumerate(pairs, 1):
        y, x = _pixel(grid, pair.fixed if side == "fixed" else pair.moving)
        rows.append(f"{i},{x!r},{y!r}\n")
    return "".join(rows)


def write_imagej_roi(pairs: Sequence[Pair], sides: Sides, side: str) -> bytes:
    """The positions of one side as ImageJ's multipoint, in pixels; names have no place in it."""
    grid = sides.fixed if side == "fixed" else sides.moving
    places = (pair.fixed if side == "fixed" else pair.moving for pair in pairs)
    return imagej.written([_pixel(grid, place) for place in places])


def write_stalign(pairs: Sequence[Pair], sides: Sides, side: str) -> bytes:
    """The positions of one side as STalign's array ``[N, 2]`` of y, x, in its unit; names have no place in it."""
    out = io.BytesIO()
    rows = [pair.fixed if side == "fixed" else pair.moving for pair in pairs]
    np.save(out, np.array(rows, dtype=np.float64).reshape(-1, sides.fixed.ndim), allow_pickle=False)
    return out.getvalue()


WRITERS: dict[str, tuple[str, Callable[[Sequence[Pair], Sides], str | bytes]]] = {
    "csv": ("landmarks.csv", write_csv),
    "bigwarp": ("landmarks.bigwarp.csv", write_bigwarp),
    "bigwarp-json": ("landmarks.bigwarp.json", write_bigwarp_json),
    "explorer": ("keypoints.csv", write_explorer),
    "qupath-fixed": ("fixed.geojson", lambda pairs, sides: write_qupath(pairs, sides, "fixed")),
    "qupath-moving": ("moving.geojson", lambda pairs, sides: write_qupath(pairs, sides, "moving")),
    "napari-fixed": ("fixed.napari.csv", lambda pairs, sides: write_napari(pairs, sides, "fixed")),
    "napari-moving": ("moving.napari.csv", lambda pairs, sides: write_napari(pairs, sides, "moving")),
    "imagej-fixed": ("fixed.imagej.csv", lambda pairs, sides: write_imagej(pairs, sides, "fixed")),
    "imagej-moving": ("moving.imagej.csv", lambda pairs, sides: write_imagej(pairs, sides, "moving")),
    "imagej-roi-fixed": ("fixed.roi", lambda pairs, sides: write_imagej_roi(pairs, sides, "fixed")),
    "imagej-roi-moving": ("moving.roi", lambda pairs, sides: write_imagej_roi(pairs, sides, "moving")),
    "stalign-fixed": ("fixed.npy", lambda pairs, sides: write_stalign(pairs, sides, "fixed")),
    "stalign-moving": ("moving.npy", lambda pairs, sides: write_stalign(pairs, sides, "moving")),
}
"""What is written, by name: the file's name and its writer."""
OF_VOLUMES = ("csv", "bigwarp", "bigwarp-json")
"""Those of them that hold landmarks of volumes; the others' programs know planes alone."""


def offered(flat: bool) -> list[str]:
    """Names of the files that can be written here: of a flat pair, else of volumes; without ImageJ's where roifile is missing."""
    names = list(WRITERS if flat else OF_VOLUMES)
    return [name for name in names if imagej.can() or not name.startswith("imagej-roi")]


def _bigwarp(rows: list[list[str]], ndim: int) -> bool:
    try:
        return bool(rows) and all(
            len(row) == 2 + 2 * ndim and row[1].strip().lower() in ("true", "false") and all(map(_number, row[2:]))
            for row in rows
        )
    except ValueError:
        return False


def _number(cell: str) -> bool:
    float(cell)
    return True


def _column(rows: list[list[str]], name: str) -> list[str] | None:
    """The cells of a column of a table with a header; None where there is none."""
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if name not in header:
        return None
    at = header.index(name)
    return [row[at] if at < len(row) else "" for row in rows[1:] if row]


def _in_unit(coords: torch.Tensor, unit: str | None, grid: Grid) -> list[Point]:
    if unit is not None and unit != grid.unit:
        coords = to_unit_of(PointSet(coords, unit), grid).coords
    rows: list[list[float]] = coords.tolist()
    return [tuple(row) for row in rows]


def _qupath(text: str, grid: Grid) -> list[tuple[str, Point]]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("wanted GeoJSON points, got text that is no JSON") from error
    features = document.get("features", [document]) if isinstance(document, dict) else document
    found: list[tuple[str, Point]] = []
    for feature in features if isinstance(features, list) else []:
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict):
            continue
        kind, at = geometry.get("type"), geometry.get("coordinates")
        many = [at] if kind == "Point" else at if kind == "MultiPoint" else []
        properties = feature.get("properties")
        name = properties.get("name") if isinstance(properties, dict) else None
        for place in many if isinstance(many, list) else []:
            try:
                x, y = float(place[0]), float(place[1])
            except (TypeError, ValueError, IndexError) as error:
                raise ValueError("wanted numbers x, y in each GeoJSON point, got something else") from error
            found.append((name if isinstance(name, str) else str(len(found) + 1), _position(grid, x - 0.5, y - 0.5)))
    if not found:
        raise ValueError("wanted GeoJSON with points, got none")
    return found


def _stalign(data: bytes, grid: Grid) -> list[tuple[str, Point]]:
    with tempfile.TemporaryDirectory(prefix="regframe-") as folder:
        path = Path(folder) / "points.npy"
        path.write_bytes(data)
        try:
            points = stalign.read_npy(path, grid.unit)
        except ValueError as error:
            raise ValueError(str(error).replace(repr(str(path)), "the file").replace(str(path), "the file")) from error
    if points.ndim != grid.ndim:
        raise ValueError(f"wanted landmarks in {grid.ndim} dimensions, got some in {points.ndim}")
    rows: list[list[float]] = points.coords.tolist()
    names = points.table.get("name") or [str(i) for i in range(1, len(rows) + 1)]
    return [(str(name), tuple(row)) for name, row in zip(names, rows, strict=True)]


def _position(grid: Grid, x: float, y: float) -> Point:
    return grid.origin[0] + grid.spacing[0] * y, grid.origin[1] + grid.spacing[1] * x


def _pixel(grid: Grid, at: Point) -> tuple[float, float]:
    return (at[0] - grid.origin[0]) / grid.spacing[0], (at[1] - grid.origin[1]) / grid.spacing[1]


def _tame(name: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@") else name


def together(fixed: Sequence[tuple[str, Point]], moving: Sequence[tuple[str, Point]]) -> list[Any]:
    """Positions of both sides as pairs: by name where all names are shared and single, else in their order.

    ValueError where the numbers differ.
    """
    if len(fixed) != len(moving):
        raise ValueError(f"wanted as many points on both sides, got {len(fixed)} fixed and {len(moving)} moving")
    by_name = dict(moving)
    if len(by_name) == len(moving) and {name for name, _ in fixed} == set(by_name):
        moving = [(name, by_name[name]) for name, _ in fixed]
    return [(name, a, b, True) for (name, a), (_, b) in zip(fixed, moving, strict=True)]
