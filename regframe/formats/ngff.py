"""OME-Zarr 0.6 stores: regframe's own, and those with coordinate transformations by other programs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import get_args

import torch

from ..contracts import MapFormat, Side, Written
from ..data import Grid, unit_ratio
from ..io import store
from ..io.nodes import STORE_NAME
from ..maps import bends
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.pieces import in_pieces
from ..maps.sequence import in_a_row
from ..result import Result
from .steps import MOST_NODES, both_canvases, folded, largest_distance, positions_on, sides, way_of


class Ngff(MapFormat):
    """.ome.zarr: an OME-Zarr 0.6 store.

    Args:
        systems: names of the fixed and the moving coordinate system in a store of another program that is read.
    """

    name = "ngff"
    suffixes = (".zarr",)

    def __init__(self, systems: tuple[str, str] = ("fixed", "moving")) -> None:
        if isinstance(systems, str) or len(systems) != 2 or not all(isinstance(name, str) for name in systems):
            raise ValueError(f"wanted the names of a fixed and a moving coordinate system as systems, got {systems!r}")
        self.systems = (systems[0], systems[1])

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``path`` is a Zarr store, whatever its name."""
        return path.is_dir() and (path / "zarr.json").is_file()

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write the store: both directions, in the units of the canvases. It is read back as other programs do, and compared."""
        with warnings.catch_warnings(record=True) as caught:
            reports = store.save(result, path, tolerance=tolerance, max_nodes=MOST_NODES)
        for warning in caught:  # replace the temporary path in each message by the user's
            said = str(warning.message).replace(os.path.realpath(path), path.name)
            warnings.warn(said, warning.category, stacklevel=3)
        units = (result.fixed_grid.unit, result.moving_grid.unit)
        if in_pieces(
            result.transform
        ):  # exact for regframe; the fields of others jump at the seams, by no single error
            return Written(self.name, (path,), to, units, None, self_contained=True)
        error = max(_error(path, result, side) for side in get_args(Side))
        bar = max([tolerance, *(report.max_error_px for report in reports.values())])
        if error > 10 * bar:  # far above the error that the store itself measured at other positions: a defect
            raise RuntimeError(f"the store that was written gives positions {error:.2g} px off; please report it")
        return Written(self.name, (path,), to, units, error, self_contained=True)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Transform | Result:
        """Read the whole result from a store of regframe, or the map between two coordinate systems from any other store."""
        if _is_own(path):
            return store.load(path)
        fixed, moving = both_canvases(self.name, fixed, moving)
        return _fitted(_one_bend(path, self.systems), fixed, moving)


def _is_own(path: Path) -> bool:
    """Whether a folder is a store that regframe wrote, or the output folder of a run with such a store in it."""
    inner = path / STORE_NAME if (path / STORE_NAME).is_dir() else path
    return (inner / "regframe").is_dir()


def _error(path: Path, result: Result, to: Side) -> float:
    """Largest distance between the map that another program reads from a store and the exact one, in pixels of ``to``."""
    source, target = sides(result.fixed_grid, result.moving_grid, to)
    where = positions_on(source)
    found = store.read_standard(path, to).points(where)
    return largest_distance(found, way_of(result, to).points(where), target)


def _one_bend(path: Path, systems: tuple[str, str]) -> Transform:
    """The map to the fixed side, from a store of another program, taken from the direction that bends no more than once.

    A store holds both directions. Where the bend is a flow, one direction is a row of explicit steps, which together are one
    bend; the other is not.
    """
    to_fixed = folded(store.read_standard(path, "fixed", systems))
    if _bends(to_fixed) > 1:
        to_moving = folded(store.read_standard(path, "moving", systems))
        if _bends(to_moving) <= 1:
            return to_moving.inverse()
    return to_fixed


def _bends(transform: Transform) -> int:
    return sum(not isinstance(part, Affine) for part in transform.parts())


def _fitted(transform: Transform, fixed: Grid, moving: Grid) -> Transform:
    """A map between two coordinate systems, converted to the units of the images.

    Raises ValueError for units that cannot be converted, another dimension, a map that bends twice or has no inverse.
    """
    parts: list[Transform] = [transform]
    if transform.source_unit != moving.unit:
        ratio = _ratio(moving.unit, transform.source_unit)
        parts.insert(0, Affine(_scaling(ratio, moving.ndim), moving.unit, transform.source_unit))
    if transform.target_unit != fixed.unit:
        ratio = _ratio(fixed.unit, transform.target_unit)
        parts.append(Affine(_scaling(1 / ratio, fixed.ndim), transform.target_unit, fixed.unit))
    whole = in_a_row(parts)
    if whole.ndim != moving.ndim or whole.ndim != fixed.ndim:
        raise ValueError(f"wanted a map of {moving.ndim} dimensions, as the images have, got one of {whole.ndim}")
    bends.split(whole)
    whole.inverse()
    return whole


def _ratio(image: str, system: str) -> float:
    """Number of the system's units in one unit of the image; ValueError where exactly one of them is pixels."""
    ratio = unit_ratio(image, system)
    if ratio is None:
        raise ValueError(f"wanted a coordinate system in {image}, as the image is, got {system}; state the pixel size")
    return ratio


def _scaling(factor: float, ndim: int) -> torch.Tensor:
    """The homogeneous matrix ``[D+1, D+1]`` that multiplies positions by ``factor``."""
    return torch.diag(torch.tensor([*[factor] * ndim, 1.0], dtype=torch.float64))
