"""A `Result` on disk: one OME-Zarr 0.6 folder, which other programs can read and regframe can restore exactly.

It has two parts, described for readers in ``docs/format.md``:

* the standard part: a *scene* (OME-Zarr 0.6, RFC-5) with the coordinate systems ``fixed`` and ``moving`` and the map
  between them, as an affine matrix or a bijection of affine and displacement fields, in physical units, components in
  ``(y, x)`` order;
* regframe's own group ``regframe/``: the velocity as optimised, grids, weights, settings, figures and versions, from which
  `load` rebuilds the result to the last bit.

Nothing read from a store is trusted: every declared shape, number, codec and path is checked before it is used.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from ..config import Config
from ..data import Grid, ome_unit
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.fields import MAX_NODES
from ..maps.flow import Flow
from ..maps.known import known
from ..maps.pieces import Cells, Pieces
from ..maps.sequence import in_a_row
from ..result import Result
from ..versions import versions
from .claims import claimed, drop_moves, write_moves
from .fields import TOLERANCE_PX as TOLERANCE_PX
from .nodes import STORE_NAME as STORE_NAME
from .nodes import Json, find_store, item, mapping, matrix_of, named, numbers_of, read_array, read_node, write_array
from .replacing import FULL, InTwoSteps, NotWritten, not_written, put, settle, settle_name
from .scene import FIELDS, OME_VERSION, write_scene
from .scene import FieldReport as FieldReport
from .scene import read_standard as read_standard

FORMAT = 1
"""Version of the group ``regframe/``; a reader refuses newer versions."""

WORTH_A_WARNING_PX = 0.01
"""Error of a stored field, in moving pixels, from which the caller is warned: three times the tolerance (`TOLERANCE_PX`).

A smaller excess is only recorded in the metadata, since no landmark is known that precisely.
"""

_MAX_STEPS = 1 << 12
"""Largest number of Euler steps of a flow that is stored or read, far beyond that of any fit: a forged store must not loop for
ever."""

_MAX_PIECES = 1 << 12
"""Largest number of pieces of a map that is read: a microarray has some hundred cores, and a forged store must not loop for
ever."""

_ROOT_ENTRIES = {"zarr.json", FIELDS, "regframe"}
"""Names of all entries of a store of regframe; a folder with any other entry is never replaced."""


# ---------------------------------------------------------------------------------------------------------------- save


def save(
    result: Result,
    path: str | Path,
    overwrite: bool = False,
    tolerance: float = TOLERANCE_PX,
    max_nodes: int = MAX_NODES,
) -> dict[str, FieldReport]:
    """Write ``result`` as one OME-Zarr 0.6 folder; returns the error of the displacement fields of each direction.

    The folder is written under another name, in the same parent, and renamed when complete; a failed write leaves nothing.
    The keys of the returned dict are ``"to_fixed"`` and ``"to_moving"``; it is empty for a map without a bend.

    Args:
        result: the result.
        path: the folder.
        overwrite: replace an existing store.
        tolerance: largest error that fields may add through interpolation between nodes, in moving pixels.
        max_nodes: largest number of nodes of all fields of one direction.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False, or it is not a store written by this function.
        OSError: the folder cannot be written (PermissionError, NotADirectoryError … as the system says).
        ValueError: the result holds a value that the format cannot store.
    """
    target = Path(os.path.realpath(path))
    check_target(target, overwrite)
    transform = known(result.transform, result.moving_grid, result.fixed_grid)
    result = replace(result, transform=transform)
    parts = list(result.transform.parts())
    own = _own_attributes(result, parts)
    with _written_aside(target) as folder:
        root = zarr.create_group(store=folder, zarr_format=3)
        group = root.create_group("regframe")
        for name, array in _own_arrays(result, parts).items():
            write_array(group, name, array)
        scene, reports = write_scene(root, result, tolerance, max_nodes)
        group.update_attributes(own)
        measured = {name: asdict(report) for name, report in reports.items()}
        header = {"format": FORMAT, "complete": True, "fields": _encode(measured, "fields")}
        root.update_attributes({"ome": {"version": OME_VERSION, "scene": scene}, "regframe": header})
    for report in reports.values():
        if report.max_error_px > WORTH_A_WARNING_PX:
            warnings.warn(
                f"the displacement field {report.path} in {target} is {report.max_error_px:.2g} px off at most where "
                f"{report.tolerance_px:g} was wanted, the best {max_nodes} nodes can do for this much bending; "
                "regframe itself reads the exact map, other programs read this field",
                stacklevel=2,
            )
    return reports


def check_target(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError unless ``target`` does not exist, or may be replaced and is empty or a store of regframe."""
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists; pass --overwrite (overwrite=True) to replace it, or another path")
    if target.is_dir() and (not any(target.iterdir()) or _is_own_store(target)):
        return
    raise FileExistsError(
        f"{target} exists and is not (only) a regframe store, so it is not replaced; remove it or pass another path"
    )


def _is_own_store(folder: Path) -> bool:
    """Whether ``folder`` holds a store of regframe and nothing else (hidden files aside)."""
    try:
        header = read_node(folder, "", "group")["attributes"]["regframe"]
    except (ValueError, KeyError, TypeError, OSError):
        return False
    strangers = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - _ROOT_ENTRIES
    return isinstance(header, dict) and "format" in header and not strangers


@contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that replaces it when the block succeeds, and is removed when it fails."""
    try:
        with claimed(target) as aside:
            # the folder that is claimed is private; the store inside it gets the usual permissions
            fresh = aside / "new"
            fresh.mkdir()
            yield fresh
            settle(fresh, target)
            try:
                put(fresh, target, overwrite=True)
            except InTwoSteps:
                _in_two_steps(fresh, target, aside / "old")
            settle_name(target.parent)
    except NotWritten:
        raise
    except OSError as error:
        blocker = next((p for p in (target.parent, *target.parent.parents) if p.exists() and not p.is_dir()), None)
        if blocker is not None:
            message = f"cannot write {target}: {blocker} is a file, not a folder; pass another path"
            raise NotADirectoryError(message) from error
        if error.errno in FULL:
            raise not_written(target, error.errno) from error
        reason = error.strerror or str(error)
        raise type(error)(f"cannot write {target}: {reason}; nothing was left behind, pass another path") from error


def _in_two_steps(fresh: Path, target: Path, old: Path) -> None:
    """Replace a folder where names cannot be exchanged; the earlier one comes back where the second rename fails."""
    write_moves(old.parent, [(fresh, target)])
    target.rename(old)
    try:
        fresh.rename(target)
    except BaseException:
        drop_moves(old.parent)
        old.rename(target)
        raise
    drop_moves(old.parent)


# ------------------------------------------------------------------------------------------------------- our own group


def _own_attributes(result: Result, parts: list[Transform]) -> Json:
    """Everything in a result except its arrays, as strict JSON; ValueError where its fields contradict each other."""
    weight = result.weight
    if (weight is None) != (result.weight_grid is None):
        raise ValueError("wanted a weight and its grid, got only one of them; set both or neither")
    if weight is not None and result.weight_grid is not None and tuple(weight.shape) != result.weight_grid.shape:
        raise ValueError(f"wanted a weight of shape {result.weight_grid.shape}, got {tuple(weight.shape)}")
    sd = result.position_sd
    if sd is not None and (result.weight_grid is None or tuple(sd.shape) != result.weight_grid.shape):
        wanted = (
            "a weight grid beside position_sd"
            if result.weight_grid is None
            else f"a position_sd of shape {result.weight_grid.shape}"
        )
        raise ValueError(f"wanted {wanted}, got {tuple(sd.shape)}")
    attributes = {
        "transform": [_part_to_json(part, str(i)) for i, part in enumerate(parts)],
        "affine": [_part_to_json(part, None) for part in result.affine.parts()],
        "fixed_grid": _grid_to_json(result.fixed_grid),
        "moving_grid": _grid_to_json(result.moving_grid),
        "weight_grid": None if result.weight_grid is None else _grid_to_json(result.weight_grid),
        "position_sd": sd is not None,
        "section": result.section,
        "config": result.config.model_dump(mode="json"),
        "metrics": result.metrics,
        "history": result.history,
        "versions": versions("regframe", "torch", "numpy", "zarr", "python"),
        "seed": result.config.seed,
    }
    encoded: Json = _encode(attributes, "result")
    return encoded


def _own_arrays(result: Result, parts: list[Transform]) -> dict[str, NDArray[Any]]:
    """The arrays of a result, by the names under which they are stored."""
    arrays: dict[str, NDArray[Any]] = {}
    for i, part in enumerate(parts):
        arrays |= _part_arrays(part, str(i))
    for name, values in (("weight", result.weight), ("position_sd", result.position_sd)):
        if values is not None:
            arrays[name] = _to_numpy(values)  # [*S]
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"wanted a finite {name}, got NaN or inf entries")
    return arrays


def _part_arrays(part: Transform, index: str) -> dict[str, NDArray[Any]]:
    """The arrays of an elementary map, by their names; of a map in pieces those of all pieces."""
    if isinstance(part, Flow):
        return {_array_name(part, index): _to_numpy(part.velocity)}  # [T, D, *S]
    if isinstance(part, Displacement):
        return {_array_name(part, index): _to_numpy(part.field)}  # [D, *S]
    if not isinstance(part, Pieces):
        return {}
    arrays = {f"{side}_{index}": _to_numpy(cells.labels) for side, cells in _cells(part)}  # [*S], whole numbers
    for k, one in enumerate(part.maps):
        for j, each in enumerate(one.parts()):
            arrays |= _part_arrays(each, f"{index}_{k}_{j}")
    return arrays


def _cells(part: Pieces) -> tuple[tuple[str, Cells], tuple[str, Cells]]:
    return ("pieces_source", part.source), ("pieces_target", part.target)


def _array_name(part: Transform, index: str) -> str:
    base = "velocity" if isinstance(part, Flow) else "displacement"
    return base if index == "0" else f"{base}_{index}"


def _part_to_json(part: Transform, index: str | None) -> Json:
    """An elementary map as JSON; ``index`` names it within its result, and is None where only affine maps are allowed."""
    if isinstance(part, Pieces) and index is not None:
        return {
            "type": "pieces",
            "cells": [{"array": f"{s}_{index}", "grid": _grid_to_json(c.grid)} for s, c in _cells(part)],
            "maps": [
                [_part_to_json(each, f"{index}_{k}_{j}") for j, each in enumerate(one.parts())]
                for k, one in enumerate(part.maps)
            ],
        }
    if isinstance(part, Affine):
        return {
            "type": "affine",
            "matrix": part.matrix.tolist(),
            "source_unit": ome_unit(part.source_unit),
            "target_unit": ome_unit(part.target_unit),
        }
    if isinstance(part, Flow) and index is not None and part.n_steps is not None:
        if part.n_steps > _MAX_STEPS:
            raise ValueError(f"wanted at most {_MAX_STEPS} steps of a flow to be stored, got {part.n_steps}")
        return {
            "type": "flow",
            "array": _array_name(part, index),
            "grid": _grid_to_json(part.grid),
            "n_steps": part.n_steps,
            "reverse": part.reverse,
        }
    if isinstance(part, Displacement) and index is not None:
        return {
            "type": "displacement",
            "array": _array_name(part, index),
            "grid": _grid_to_json(part.grid),
            "inverted": part.inverted,
        }
    wanted = "Affine, Flow and Displacement" if index is not None else "Affine"
    raise ValueError(f"wanted a map made of {wanted} to be stored, got {type(part).__name__}")


def _grid_to_json(grid: Grid) -> Json:
    return {
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "origin": list(grid.origin),
        "unit": ome_unit(grid.unit),
        "axes": list(grid.axes),
    }


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    return tensor.detach().cpu().contiguous().numpy()


def _encode(value: Any, where: str) -> Any:
    """``value`` as strict JSON, with NaN as ``{"number": "nan"}`` and so on; ValueError for values it cannot represent."""
    if isinstance(value, (np.generic, Tensor, np.ndarray)):
        value = value.item() if value.ndim == 0 else value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, (list, tuple)):
        return [_encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _encode(v, f"{where}.{k}") for k, v in value.items()}
    raise ValueError(
        f"wanted numbers, text, lists and dictionaries with text keys at {where}, got {type(value).__name__}; "
        "convert it before saving"
    )


def _decode(value: Any) -> Any:
    """The value that was given to `_encode`."""
    if isinstance(value, list):
        return [_decode(v) for v in value]
    if isinstance(value, dict):
        if set(value) == {"number"} and value["number"] in ("nan", "inf", "-inf"):
            return float(value["number"])
        return {k: _decode(v) for k, v in value.items()}
    return value


# ---------------------------------------------------------------------------------------------------------------- load


def load(path: str | Path) -> Result:
    """The result that `save` wrote to ``path``, or to ``transform.ome.zarr`` in the folder ``path``, to the last bit.

    Raises:
        FileNotFoundError: there is no store at ``path``.
        ValueError: the store is incomplete, damaged, not of regframe, or was written by a newer regframe.
    """
    folder = find_store(path)
    with named(folder):
        _read_header(folder)
        own = mapping(_decode(read_node(folder, "regframe", "group")["attributes"]), "regframe")
        moving_grid = _grid_from_json(item(own, "moving_grid", dict), "moving_grid")
        fixed_grid = _grid_from_json(item(own, "fixed_grid", dict), "fixed_grid")
        parts = [_part_from_json(folder, p) for p in item(own, "transform", list)]
        affines = [_part_from_json(folder, p, affine_only=True) for p in item(own, "affine", list)]
        transform, affine = _joined(parts, "transform"), _joined(affines, "affine")
        for name, found in (("transform", transform), ("affine", affine)):
            wanted = (moving_grid.ndim, moving_grid.unit, fixed_grid.unit)
            if (found.ndim, found.source_unit, found.target_unit) != wanted or fixed_grid.ndim != found.ndim:
                raise ValueError(f"wanted a {name} from the moving to the fixed grid, got other axes or units")
        if "weight_grid" not in own:
            raise ValueError("wanted the key 'weight_grid' in 'regframe', got none")
        weight_grid = None
        weight = None
        position_sd = None
        if own["weight_grid"] is not None:
            weight_grid = _grid_from_json(item(own, "weight_grid", dict), "weight_grid")
            weight = read_array(folder, "regframe/weight", weight_grid.shape)
            if own.get("position_sd", False):  # not in stores of earlier versions
                position_sd = read_array(folder, "regframe/position_sd", weight_grid.shape)
        history = item(own, "history", list)
        if not all(isinstance(entry, dict) for entry in history):
            raise ValueError("wanted a dictionary per entry of 'history', got something else")
        try:
            config = Config.model_validate(item(own, "config", dict))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(key) for key in first["loc"])
            raise ValueError(f"wanted the settings of this version in 'config', got {where}: {first['msg']}") from error
        item(own, "versions", dict)
        item(own, "seed", int)
        return Result(
            transform=transform,
            fixed_grid=fixed_grid,
            moving_grid=moving_grid,
            metrics=item(own, "metrics", dict),
            config=config,
            affine=affine,
            history=history,
            weight=weight,
            weight_grid=weight_grid,
            position_sd=position_sd,
            # in stores of earlier versions a section is recognised by the figures of its plane
            section=bool(own.get("section", "plane" in own["metrics"])),
            folder=Path(path),
        )


def _read_header(folder: Path) -> None:
    """Check that the root declares a complete store of regframe, of a version that can be read."""
    attributes = read_node(folder, "", "group")["attributes"]
    if "regframe" not in attributes:
        what = "another OME-Zarr" if "ome" in attributes else "an unfinished or foreign store"
        raise ValueError(f"wanted a complete regframe store, got {what} (no 'regframe' entry); save the result again")
    header = mapping(attributes["regframe"], "regframe")
    version = item(header, "format", int)
    if version > FORMAT:
        raise ValueError(
            f"wanted a store of format {FORMAT} at most, got {version} of a newer version; upgrade regframe"
        )
    if version < 1:
        raise ValueError(f"wanted a store of format 1 or later, got {version}")
    if header.get("complete") is not True:
        raise ValueError("wanted a complete store, got an unfinished one; save the result again")


def _pieces_from_json(folder: Path, part: Json) -> Pieces:
    """A map in pieces; ValueError for one within another, too many pieces, or labels that do not fit."""
    sides = [mapping(cells, "cells") for cells in item(part, "cells", list)]
    maps = item(part, "maps", list)
    if len(sides) != 2 or not 1 <= len(maps) <= _MAX_PIECES:
        raise ValueError(f"wanted labels of two sides and 1 to {_MAX_PIECES} maps, got {len(sides)} and {len(maps)}")
    cells = []
    for side in sides:
        grid, name = _grid_from_json(item(side, "grid", dict), "cells"), item(side, "array", str)
        labels = read_array(folder, f"regframe/{_named_array(name)}", grid.shape)
        if not bool((labels == labels.round()).all()) or float(labels.abs().max()) > _MAX_PIECES:
            raise ValueError(f"wanted the number of a piece at each pixel of {name!r}, got something else")
        cells.append(Cells(labels, grid))
    each = [[_part_from_json(folder, one, nested=True) for one in row] for row in maps if isinstance(row, list)]
    return Pieces(tuple(_joined(row, "maps") for row in each), cells[0], cells[1])


def _named_array(name: str) -> str:
    """A name of an array, if it can be one; ValueError otherwise."""
    if re.fullmatch(r"[A-Za-z0-9_]+", name) is None:
        raise ValueError(f"wanted the name of an array of the group, got {name!r}")
    return name


def _part_from_json(folder: Path, value: Any, affine_only: bool = False, nested: bool = False) -> Transform:
    part = mapping(value, "transform")
    kind = item(part, "type", str)
    if kind == "pieces" and not (affine_only or nested):
        return _pieces_from_json(folder, part)
    if kind == "affine":
        units = [item(part, f"{side}_unit", str) for side in ("source", "target")]
        return Affine(matrix_of(item(part, "matrix", list)), units[0], units[1])
    if affine_only or kind not in ("flow", "displacement"):
        wanted = "affine" if affine_only else "pieces, affine, flow or displacement"
        raise ValueError(f"wanted a part of type {wanted}, got {kind!r}")
    grid = _grid_from_json(item(part, "grid", dict), kind)
    name = _named_array(item(part, "array", str))
    if kind == "displacement":
        field = read_array(folder, f"regframe/{name}", (grid.ndim, *grid.shape))
        return Displacement(field, grid, item(part, "inverted", bool))
    declared = item(read_node(folder, f"regframe/{name}", "array"), "shape", list)
    n_slices = declared[0] if declared and isinstance(declared[0], int) else 0
    n_steps = item(part, "n_steps", int)
    if not 1 <= n_steps <= _MAX_STEPS:
        raise ValueError(f"wanted 1 to {_MAX_STEPS} steps of the flow, got {n_steps}")
    velocity = read_array(folder, f"regframe/{name}", (n_slices, grid.ndim, *grid.shape))
    return Flow(velocity, grid, n_steps, item(part, "reverse", bool))


def _joined(parts: list[Transform], name: str) -> Transform:
    if not parts:
        raise ValueError(f"wanted at least one part of {name!r}, got none")
    return in_a_row(parts)


def _grid_from_json(value: Json, name: str) -> Grid:
    shape = item(value, "shape", list)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in shape) or math.prod(shape) > 1 << 62:
        raise ValueError(f"wanted whole numbers as the shape of {name!r}, got {shape}")
    grid = Grid(
        tuple(shape),
        tuple(numbers_of(item(value, "spacing", list), name)) or (0.0,),
        tuple(numbers_of(item(value, "origin", list), name)),
        item(value, "unit", str),
    )
    if len(value["spacing"]) != grid.ndim or len(value["origin"]) != grid.ndim or value.get("axes") != list(grid.axes):
        raise ValueError(f"wanted spacing, origin and axes {list(grid.axes)} of {name!r}, got {value}")
    return grid
