"""OME-Zarr 0.6: regframe's own store, and the coordinate transformations that other programs write into one."""

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
        """Whether ``path`` is a Zarr store, whatever it is called."""
        return path.is_dir() and (path / "zarr.json").is_file()

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """The store, in both directions and in the units of the canvases; read back as another program reads it, and compared."""
        with warnings.catch_warnings(record=True) as caught:
            reports = store.save(result, path, tolerance=tolerance, max_nodes=MOST_NODES)
        for warning in caught:  # the store names itself where it is written, not where the user finds it
            said = str(warning.message).replace(os.path.realpath(path), path.name)
            warnings.warn(said, warning.category, stacklevel=3)
        error = max(_error(path, result, side) for side in get_args(Side))
        bar = max([tolerance, *(report.max_error_px for report in reports.values())])
        if error > 10 * bar:  # the store's own measure, at other positions, cannot be that far from it
            raise RuntimeError(f"the store that was written gives positions {error:.2g} px off; please report it")
        units = (result.fixed_grid.unit, result.moving_grid.unit)
        return Written(self.name, (path,), to, units, error, self_contained=True)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Transform | Result:
        """The whole result of a store of regframe; of any other store the map between two coordinate systems."""
        if _is_own(path):
            return store.load(path)
        fixed, moving = both_canvases(self.name, fixed, moving)
        return _fitted(_one_bend(path, self.systems), fixed, moving)


def _is_own(path: Path) -> bool:
    """Whether a folder is a store that regframe wrote, or one of its outputs, in which such a store lies."""
    inner = path / STORE_NAME if (path / STORE_NAME).is_dir() else path
    return (inner / "regframe").is_dir()


def _error(path: Path, result: Result, to: Side) -> float:
    """Largest distance between what another program reads out of a store and the exact map, in pixels of the side ``to``."""
    source, target = sides(result.fixed_grid, result.moving_grid, to)
    where = positions_on(source)
    found = store.read_standard(path, to).points(where)
    return largest_distance(found, way_of(result, to).points(where), target)


def _one_bend(path: Path, systems: tuple[str, str]) -> Transform:
    """The map to the fixed side in a store of another program, out of the direction that bends no more than once.

    A store holds both directions; where the bend is a flow, only that of its plain steps is one bend.
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
    """A map from the moving to the fixed coordinate system, whose units may be others, as one between the units of the images.

    Raises ValueError for units that do not go together, another dimension, a map that bends twice or has no inverse.
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
    """How many of the system's unit one of the image's unit is; ValueError where one of them is pixels."""
    ratio = unit_ratio(image, system)
    if ratio is None:
        raise ValueError(f"wanted a coordinate system in {image}, as the image is, got {system}; state the pixel size")
    return ratio


def _scaling(factor: float, ndim: int) -> torch.Tensor:
    """The homogeneous matrix ``[D+1, D+1]`` that multiplies positions."""
    return torch.diag(torch.tensor([*[factor] * ndim, 1.0], dtype=torch.float64))
