"""A map in the files of other programs, out (`write_map`) and in (`read_map`): ITK, ANTs, elastix, NIfTI, OME-Zarr, numpy.

What a format cannot hold is refused, never approximated in silence; where a bend becomes a displacement field, what
interpolating it costs is measured and said. ``docs/interchange.md`` shows the lines that use the files.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data import Grid, PointSet, unit_ratio
from ..io import outputs, store
from ..io.nodes import STORE_NAME
from ..io.shapes import write_shapes
from ..io.tables import write_points
from ..maps import bends
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.fields import MAX_NODES
from ..maps.sequence import in_a_row
from ..maps.shapes import Shapes
from ..result import Result
from ..versions import versions
from . import ants, elastix, itk, nifti, npz
from .steps import (
    Field,
    Side,
    Step,
    apply_steps,
    around_affine,
    folded,
    number_unit,
    per_unit,
    steps_of,
    transform_of,
    whole_field,
)

Format = Literal["itk", "ants", "nifti", "elastix", "npz", "ngff", "csv", "geojson"]
FORMATS: tuple[Format, ...] = get_args(Format)

TOLERANCE_PX = 0.001
"""Largest error that fields may add by being interpolated, in pixels of the side that positions are taken to."""

MOST_NODES = 1 << 25
"""Nodes of the fields of one direction at most, where a format holds several; 8 bytes each in a file in 2D, unpacked."""

IMPORTED = "imported, not fitted here: nothing but the map itself was judged, so look at the overlay"

_POINTS_PER_SIDE = 33  # of the regular grid of points, along its longest axis
_MAX_POINTS = 1 << 22
_PROBES = 1 << 14
_SUFFIXES: dict[str, Format] = {
    ".h5": "itk", ".hdf5": "itk", ".tfm": "itk", ".mat": "itk", ".nii": "nifti", ".nii.gz": "nifti", ".npz": "npz",
    ".zarr": "ngff", ".csv": "csv", ".tsv": "csv", ".csv.gz": "csv", ".geojson": "geojson", ".geojson.gz": "geojson",
    ".txt": "elastix",
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What `write_map` wrote.

    Args:
        format: of the files.
        files: they themselves.
        to: the side that the map in them takes positions to.
        units: of the numbers on the fixed and the moving side.
        max_error_px: largest distance to the exact map on the canvas, in pixels of the side ``to``; None for points.
        resample: size, spacing and origin along x, y(, z) of the canvas that images are drawn on with it, in these numbers.
    """

    format: str
    files: tuple[Path, ...]
    to: Side
    units: tuple[str, str]
    max_error_px: float | None
    resample: dict[str, list[float]]


def format_of(path: Path, name: str | None = None) -> Format:
    """The format called ``name``, or the one that a path's suffix says."""
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"wanted a format out of {', '.join(FORMATS)}, got {name!r}")
        return name
    if path.is_dir() and (path / "zarr.json").is_file():
        return "ngff"
    if any(file.exists() for file in ants.ants_files(path)):
        return "ants"
    lower = path.name.lower()
    found = next((f for suffix, f in _SUFFIXES.items() if lower.endswith(suffix)), None)
    if found == "elastix" and path.is_file() and not elastix.is_elastix(path):
        return "itk"
    if found is None:
        raise ValueError(
            f"wanted a format out of {', '.join(FORMATS)}, got {path.name!r}, whose suffix says none; name one"
        )
    return found


# ------------------------------------------------------------------------------------------------------------------- out


def write_map(
    result: Result,
    path: str | Path,
    format: Format | None = None,
    *,
    to: Side = "moving",
    unit: str = "mm",
    points: PointSet | None = None,
    spacing: float | None = None,
    overwrite: bool = False,
    tolerance: float = TOLERANCE_PX,
) -> Written:
    """Write the map of ``result`` for another program.

    Args:
        result: what `register` returned.
        path: file to write; for ``ants`` the prefix of three files, for ``ngff`` a folder.
        format: one of `FORMATS`; the suffix says it where None.
        to: the side that the written transform takes positions to. ``moving``, the default, is what other programs draw the
            moving image on the fixed canvas with. Formats that hold both directions ignore it.
        unit: of the numbers of a side that has a length unit, for formats that declare none; NIfTI, and with it ANTs, is in mm.
        points: positions of the side that is not ``to`` for ``csv`` and ``geojson``; a regular grid on its canvas where None.
        spacing: distance of that grid's points, in the side's unit.
        overwrite: replace what is at ``path``.
        tolerance: largest error of a displacement field, in pixels.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False.
        ValueError: the format cannot hold this map.
        ImportError: SimpleITK is missing; the message has the line that installs it.
    """
    path = Path(path)
    chosen = format_of(path, format)
    if to not in ("fixed", "moving"):
        raise ValueError(f"wanted 'fixed' or 'moving' as the side to go to, got {to!r}; choose one")
    if unit_ratio(unit, "mm") is None:
        raise ValueError(f"wanted a length unit for the numbers of the file, got {unit!r}; take mm or um")
    if chosen in ("nifti", "ants") and unit != "mm":
        raise ValueError(
            f"wanted mm, in which {chosen} is by its standard, got unit {unit!r}; leave it out, or write itk"
        )
    if (points is not None or spacing is not None) and chosen not in ("csv", "geojson"):
        raise ValueError(f"wanted points or their spacing with csv or geojson, got {chosen}; leave them out")
    if chosen in ("ants", "itk", "nifti"):
        itk.need("SimpleITK", path, "write")
    if chosen in ("csv", "geojson"):
        return _write_points(result, path, chosen, to, points, spacing, overwrite)
    if chosen == "ngff":
        return _write_ngff(result, path, to, overwrite, tolerance)
    if chosen == "npz":
        outputs.check_file(path, overwrite)
        with outputs.staged(path, overwrite) as aside:
            npz.write(aside, result, tolerance)
        return _written(result, "npz", (path,), to, (result.fixed_grid.unit, result.moving_grid.unit), 0.0)
    if chosen == "ants":
        return _write_ants(result, path, overwrite, tolerance)
    outputs.check_file(path, overwrite)
    source, target = (
        (result.fixed_grid, result.moving_grid) if to == "moving" else (result.moving_grid, result.fixed_grid)
    )
    if chosen == "nifti":
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            raise ValueError(f"wanted a name that ends in .nii or .nii.gz, got {path.name!r}")
        steps: list[Step] = [whole_field(result, to, unit, tolerance)]
    elif chosen == "elastix" and bends.split(result.transform)[1] is not None:
        raise ValueError(
            "wanted an affine map for elastix, whose parameter files hold matrices and B-splines only, got one that bends; "
            "write --format itk and hand it to SetExternalInitialTransform, or fit with --transform affine"
        )
    else:
        text = (
            path.suffix.lower() == ".tfm"
        )  # which takes many bytes a number, and each field as often as it is applied
        steps = steps_of(result, to, unit, tolerance, 0 if text else MOST_NODES)
    error = _error(result, steps, to, unit)
    with outputs.staged(path, overwrite) as aside:
        if chosen == "nifti":
            assert isinstance(steps[0], Field)
            nifti.write_field(aside, steps[0], number_unit(source.unit, unit))
        elif chosen == "elastix":
            assert not isinstance(steps[0], Field)
            elastix.write_elastix(aside, steps[0], source.shape[::-1], *_along_x(source, unit))
        else:
            if not path.name.lower().endswith((".h5", ".hdf5", ".tfm", ".mat")):
                raise ValueError(f"wanted a name that ends in .h5, .tfm or .mat, got {path.name!r}")
            itk.write_transform(aside, steps)
    units = (number_unit(result.fixed_grid.unit, unit), number_unit(result.moving_grid.unit, unit))
    return _written(result, chosen, (path,), to, units, error, per_unit(target.unit, unit), unit)


def _write_ants(result: Result, prefix: Path, overwrite: bool, tolerance: float) -> Written:
    files = ants.ants_files(prefix)
    for file in files:
        outputs.check_file(file, overwrite)
    matrix, warp, back = around_affine(result, "mm", tolerance)
    if warp is None and any(file.exists() for file in files[1:]):
        raise FileExistsError(
            f"output {files[1]} exists and is of a map that bends, which this one does not; remove it first"
        )
    steps: list[Step] = [matrix] if warp is None else [warp, matrix]
    error = _error(result, steps, "moving", "mm")
    unit = number_unit(result.fixed_grid.unit, "mm")
    if warp is not None and back is not None:
        undone = Affine(torch.from_numpy(matrix)).inverse().matrix.numpy()
        error = max(error, _error(result, [undone, back], "fixed", "mm"))
    with outputs.staged(files[0], overwrite) as aside:
        itk.write_transform(aside, [matrix])
        if warp is not None and back is not None:
            nifti.write_field(aside.with_name(files[1].name), warp, unit)
            nifti.write_field(aside.with_name(files[2].name), back, unit)
    units = (unit, number_unit(result.moving_grid.unit, "mm"))
    return _written(result, "ants", tuple(files if warp is not None else files[:1]), "moving", units, error, 1.0, "mm")


def _write_ngff(result: Result, path: Path, to: Side, overwrite: bool, tolerance: float) -> Written:
    outputs.check_file(path, overwrite)
    reports = store.save(result, path, overwrite, tolerance, MOST_NODES)
    error = 0.0
    for side in ("fixed", "moving"):  # what another program reads of it
        way = store.read_standard(path, side)
        source, target, exact = _way(result, side)
        where = _positions(source)
        error = max(error, _distance(way.points(where), exact.points(where), target))
    bar = max([tolerance, *(report.max_error_px for report in reports.values())])
    if error > 10 * bar:
        raise RuntimeError(f"the store that was written gives positions {error:.2g} px off; please report it")
    return _written(result, "ngff", (path,), to, (result.fixed_grid.unit, result.moving_grid.unit), error)


def _write_points(
    result: Result,
    path: Path,
    chosen: Format,
    to: Side,
    points: PointSet | None,
    spacing: float | None,
    overwrite: bool,
) -> Written:
    source, target, way = _way(result, to)
    if points is None:
        if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"wanted a positive spacing of the points, got {spacing}")
        step = spacing or max(source.extent) / _POINTS_PER_SIDE
        count = math.prod(max(1.0, e / step) for e in source.extent)
        if count > _MAX_POINTS:
            raise ValueError(f"wanted at most {_MAX_POINTS} points, got {count:.3g}; take a larger spacing")
        coords = source.resampled(step).coords().reshape(-1, source.ndim)
    else:
        if points.unit != source.unit or points.ndim != source.ndim:
            raise ValueError(
                f"wanted points of the side they come from, in {source.unit} with {source.ndim} components, got {points.unit} "
                f"with {points.ndim}"
            )
        coords = points.coords
    there = way.points(coords)
    pairs = {"fixed": coords, "moving": there} if to == "moving" else {"fixed": there, "moving": coords}
    grids = {"fixed": result.fixed_grid, "moving": result.moving_grid}
    outputs.check_file(path, overwrite)
    columns: dict[str, list[float]] = {}
    for side, values in pairs.items():
        suffix = "" if grids[side].unit == "px" else "_" + {"µm": "um"}.get(grids[side].unit, grids[side].unit)
        columns |= {f"{side}_{axis}{suffix}": values[:, d].tolist() for d, axis in enumerate(source.axes)}
    if chosen == "geojson":
        if source.ndim != 2:
            raise ValueError("wanted a map of two dimensions for GeoJSON, which is flat, got one of 3; write csv")
        if not bool(torch.isfinite(there).all()):
            raise ValueError("wanted finite positions for GeoJSON, got NaN or inf; write csv")
        document = {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "id": str(i),
                    "geometry": {"type": "Point", "coordinates": [x, y]},
                    "properties": {name: values[i] for name, values in columns.items()},
                }
                for i, (y, x) in enumerate((there + (0.5 if target.unit == "px" else 0.0)).tolist())
            ],
        }
        shapes = Shapes.from_geojson(document, target.unit, "corner", path.name)
        with outputs.staged(path, overwrite) as aside:
            write_shapes(shapes, aside, "corner")
    else:
        table = {name: [repr(v) for v in values] for name, values in columns.items()}
        extra = {} if points is None else {n: v for n, v in points.table.items() if n not in {*points.columns, *table}}
        with outputs.staged(path, overwrite) as aside:
            names = tuple(f"{'fixed' if to == 'moving' else 'moving'}_{axis}" for axis in source.axes)
            found = [next(n for n in table if n.startswith(name)) for name in names]
            write_points(PointSet(coords, source.unit, table={**table, **extra}, columns=tuple(found)), aside)
    units = (grids["fixed"].unit, grids["moving"].unit)
    return _written(result, chosen, (path,), to, units, None)


def _written(
    result: Result, chosen: str, files: tuple[Path, ...], to: Side, units: tuple[str, str], error: float | None,
    factor: float = 1.0, unit: str | None = None,
) -> Written:  # fmt: skip
    canvas = result.fixed_grid if to == "moving" else result.moving_grid
    spacing, origin = _along_x(canvas, unit or (canvas.unit if canvas.unit != "px" else "mm"))
    if error is not None and error > store.WORTH_A_WARNING_PX:
        warnings.warn(
            f"the map in {files[-1].name} is up to {error:.2g} px off, the best that one field of {MAX_NODES} nodes can do for "
            "this much bending; .h5 and ngff come closer, and ngff and npz hold the exact map for regframe itself",
            stacklevel=3,
        )
    return Written(
        chosen,
        files,
        to,
        units,
        error,
        {"size": [float(n) for n in canvas.shape[::-1]], "spacing": spacing, "origin": origin},
    )


def _along_x(grid: Grid, unit: str) -> tuple[list[float], list[float]]:
    """Spacing and origin along x, y(, z), in the numbers of a file."""
    factor = per_unit(grid.unit, unit)
    return [s * factor for s in reversed(grid.spacing)], [o * factor for o in reversed(grid.origin)]


def _way(result: Result, to: Side) -> tuple[Grid, Grid, Transform]:
    """The canvas that positions come from, the one they go to, and the map between."""
    if to == "fixed":
        return result.moving_grid, result.fixed_grid, result.transform
    return result.fixed_grid, result.moving_grid, result.transform.inverse()


def _positions(grid: Grid) -> Tensor:
    """Random positions ``[N, D]`` all over a canvas."""
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)], dtype=torch.float64)
    random = torch.rand((_PROBES, grid.ndim), generator=generator, dtype=torch.float64)
    return low + random * torch.tensor(grid.extent, dtype=torch.float64)


def _distance(a: Tensor, b: Tensor, grid: Grid) -> float:
    return float(((a - b) / torch.tensor(grid.spacing, dtype=torch.float64)).norm(dim=-1).max())


def _error(result: Result, steps: list[Step], to: Side, unit: str) -> float:
    """Largest distance between what ``steps`` do on the canvas and the exact map, in pixels of the destination."""
    source, target, exact = _way(result, to)
    where = _positions(source)
    found = apply_steps(steps, np.ascontiguousarray(where.numpy()[:, ::-1]) * per_unit(source.unit, unit))
    there = torch.from_numpy(np.ascontiguousarray(found[:, ::-1] / per_unit(target.unit, unit)))
    return _distance(there, exact.points(where), target)


# -------------------------------------------------------------------------------------------------------------------- in


def read_map(
    path: str | Path,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    format: Format | None = None,
    *,
    to: Side = "moving",
    unit: str = "mm",
    systems: tuple[str, str] = ("fixed", "moving"),
) -> Result:
    """A map that another program made, as a `Result` that carries data both ways.

    Args:
        path: the file; for ``ants`` the output prefix of ``antsRegistration``, for ``ngff`` the store.
        fixed: canvas of the fixed image; not needed for ``npz`` and for a store of regframe.
        moving: canvas of the moving image, likewise.
        format: one of `FORMATS`; the file says it where None.
        to: the side that the file's transform takes positions to: ``moving`` is what draws the moving image on the fixed canvas.
        unit: what the file's numbers are in on a side that has a length unit; NIfTI says so itself.
        systems: names of the fixed and the moving coordinate system in an OME-Zarr store of another program.

    The inverse of a field is solved for, not stored; ``metrics["roundtrip_px"]`` says how well that goes. The verdict is ``warn``
    at best: nobody judged the map. Raises FileNotFoundError, or ValueError with one sentence for what cannot be read or be a map.
    """
    began = time.perf_counter()
    path = Path(path)
    chosen = format_of(path, format)
    if unit_ratio(unit, "mm") is None:
        raise ValueError(f"wanted a length unit for the numbers of the file, got {unit!r}; take mm or um")
    if chosen in ("csv", "geojson"):
        raise ValueError(
            f"wanted a map, got points in {path.name!r}, which say nothing of what lies between them; fit one to them with "
            "`regframe register --landmarks`"
        )
    present = path.exists() if chosen != "ants" else ants.ants_files(path)[0].exists()
    if not present:
        name = path if chosen != "ants" else ants.ants_files(path)[0]
        raise FileNotFoundError(f"wanted a file to import, got {str(name)!r}, which does not exist")
    if chosen == "ngff" and _is_own(path):
        return store.load(path)
    with _named(path):
        if chosen == "npz":
            result = npz.read(path)
            for given, found, side in ((fixed, result.fixed_grid, "fixed"), (moving, result.moving_grid, "moving")):
                if given is not None and (given.shape, given.unit) != (found.shape, found.unit):
                    raise ValueError(f"wanted the {side} image the map belongs to, {found}, got {given}; leave it out")
            return _judged(result, chosen, path, began)
        if fixed is None or moving is None:
            raise ValueError(
                f"wanted the canvases of both images, which {chosen} does not hold, got none; give fixed and moving"
            )
        extra: dict[str, Any] = {}
        if chosen == "ngff":
            transform = _fitted(_one_bend(path, systems), moving, fixed)
        else:
            source, target = (fixed, moving) if to == "moving" else (moving, fixed)
            steps, numbers, back = _read_steps(path, chosen, to, unit)
            # "mm" may be pixels: ANTs writes mm whatever it was given
            if numbers == "px" and {fixed.unit, moving.unit} != {"px"}:
                raise ValueError(
                    f"wanted fields in mm, as the images are in {fixed.unit} and {moving.unit}, got one without a unit, in pixels"
                )
            way = transform_of(steps, source, target, unit)
            transform = way if to == "fixed" else way.inverse()
            if back is not None:
                extra["given_inverse_px"] = _error(_plain(transform, fixed, moving), back, "fixed", "mm")
        return _judged(_plain(transform, fixed, moving), chosen, path, began, extra)


def _read_steps(path: Path, chosen: Format, to: Side, unit: str) -> tuple[list[Step], str | None, list[Step] | None]:
    """Steps, the unit the file itself declares for their numbers, and steps back where the file has them."""
    if chosen == "itk":
        return itk.read_transform(path), None, None
    if chosen == "elastix":
        return elastix.read_elastix(path), None, None
    if unit != "mm":
        raise ValueError(f"wanted mm, in which {chosen} is by its standard, got unit {unit!r}; leave it out")
    if chosen == "nifti":
        field, numbers = nifti.read_field(path)
        return [field], numbers, None
    if to != "moving":
        raise ValueError(
            "wanted the map to the moving side from ants, which always writes that one, got 'fixed'; leave it out"
        )
    steps, back, numbers = ants.read_ants(path)
    return steps, numbers, back


def _one_bend(path: Path, systems: tuple[str, str]) -> Transform:
    """The map to the fixed side in a store of another program, out of the direction that is one bend."""
    to_fixed = folded(store.read_standard(path, "fixed", systems))
    if sum(not isinstance(part, Affine) for part in to_fixed.parts()) > 1:
        to_moving = folded(store.read_standard(path, "moving", systems))
        if sum(not isinstance(part, Affine) for part in to_moving.parts()) <= 1:
            return to_moving.inverse()
    return to_fixed


def _is_own(path: Path) -> bool:
    inner = path / STORE_NAME if (path / STORE_NAME).is_dir() else path
    return (inner / "regframe").is_dir()


def _fitted(transform: Transform, moving: Grid, fixed: Grid) -> Transform:
    """A map between systems in length units as one between the units of the images."""
    parts: list[Transform] = [transform]
    for grid, found, where in ((moving, transform.source_unit, 0), (fixed, transform.target_unit, len(parts))):
        if found == grid.unit:
            continue
        ratio = unit_ratio(grid.unit, found)
        if ratio is None:
            raise ValueError(
                f"wanted a coordinate system in {grid.unit}, as the image is, got {found}; state the pixel size"
            )
        scale = ratio if where == 0 else 1 / ratio
        matrix = torch.diag(torch.tensor([*[scale] * grid.ndim, 1.0], dtype=torch.float64))
        step = Affine(matrix, grid.unit, found) if where == 0 else Affine(matrix, found, grid.unit)
        parts.insert(0 if where == 0 else len(parts), step)
    whole = in_a_row(parts)
    if whole.ndim != moving.ndim or whole.ndim != fixed.ndim:
        raise ValueError(f"wanted a map of {moving.ndim} dimensions, as the images have, got one of {whole.ndim}")
    bends.split(whole)
    whole.inverse()
    return whole


def _plain(transform: Transform, fixed: Grid, moving: Grid) -> Result:
    lines = [part for part in transform.parts() if isinstance(part, Affine)]
    affine = Affine(bends.product(lines, transform.ndim), transform.source_unit, transform.target_unit)
    model = "affine" if len(lines) == len(transform.parts()) else "lddmm"
    return Result(transform, fixed, moving, {}, Config(transform="affine" if model == "affine" else "lddmm"), affine)


def _judged(result: Result, chosen: str, path: Path, began: float, extra: dict[str, Any] | None = None) -> Result:
    """``result`` with what can be said of a map alone: its round trip, its folds, and that nobody judged it."""
    phi, back, fixed, moving = result.transform, result.transform.inverse(), result.fixed_grid, result.moving_grid
    coarse = max(1.0, (math.prod(fixed.shape) / 50_000) ** (1 / fixed.ndim))
    grid = (
        fixed
        if coarse == 1
        else fixed.resampled([s * min(coarse, n) for s, n in zip(fixed.spacing, fixed.shape, strict=True)])
    )
    coords = grid.coords()
    at = back.points(coords)
    inside = moving.contains(at)
    seen = inside if bool(inside.any()) else torch.ones_like(inside)
    error = ((phi.points(at) - coords).norm(dim=-1) / fixed.pixel)[seen].nan_to_num(math.inf)
    linear = torch.linalg.det(bends.product(result.affine.parts(), fixed.ndim)[:-1, :-1])
    area = (back.jacobian_determinant(grid) * linear)[seen]
    folding, overlap = float((area <= 0).to(torch.float64).mean()), float(inside.to(torch.float64).mean())
    trip = {"mean": float(error.mean()), "max": float(error.max())}
    reasons = [f"{path.name} ({chosen}): {IMPORTED}"]
    if overlap < 0.02:
        reasons.append("the two images hardly overlap under this map: check direction (--to), unit and which is fixed")
    if folding > 0:
        reasons.append(f"the map folds over at {folding:.2%} of the pixels")
    if not trip["max"] <= 0.1:
        reasons.append(f"the map and its inverse disagree by up to {trip['max']:.2g} px")
    kind = "affine" if all(isinstance(part, Affine) for part in phi.parts()) else "displacement"
    metrics = {
        "verdict": "fail" if overlap < 0.02 else "warn",
        "reasons": reasons,
        "model": f"imported {kind}",
        "imported": {"format": chosen, "path": str(path), **(extra or {})},
        "metric": {"name": "none", "why": "the map was imported"},
        "roundtrip_px": trip,
        "jacobian_min": float(area.min()),
        "jacobian_max": float(area.max()),
        "folding_fraction": folding,
        "matching_fraction": None,
        "overlap_fraction": overlap,
        "pose_margin": None,
        "n_evaluations": 0,
        "energy": {"first": None, "last": None},
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "seed": 0,
    }
    return dataclasses.replace(result, metrics=metrics)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot import {path}: {error}") from error
