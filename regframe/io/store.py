"""A `Result` on disk: one OME-Zarr 0.6 folder that others can read as a coordinate transformation, and we can resume.

Two parts, described for readers in ``docs/format.md``:

* the standard part: a *scene* (OME-Zarr 0.6, RFC-5) with the coordinate systems ``fixed`` and ``moving`` and the map
  between them, as an affine matrix or a bijection of affine and displacement fields, in physical units, components in
  ``(y, x)`` order;
* our own group ``regframe/``: the velocity as optimised, grids, weights, settings, figures and versions, from which
  `load` rebuilds the same result to the last bit.

Nothing read from a store is trusted: every declared shape, number, codec and path is checked before it is used.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec

from ..config import Config
from ..data import AXES, Grid, canonical_unit
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.fields import MAX_NODES, Chain, chain_of
from ..maps.flow import Flow
from ..maps.sequence import Sequence as MapSequence
from ..registration import Result

FORMAT = 1
"""Version of the ``regframe/`` group; a reader refuses a newer one."""

OME_VERSION = "0.6"

TOLERANCE_PX = 0.003
"""Largest error that stored displacement fields may add by being interpolated, in pixels of the moving image."""

WORTH_A_WARNING_PX = 0.01
"""Error of a stored field at which the caller is warned; a smaller miss of the tolerance stands in the metadata only."""
MAX_ELEMENTS = 1 << 28
"""Elements of one array that `load` is ready to allocate."""

STORE_NAME = "transform.ome.zarr"
"""Name of the store inside the folder that ``regframe register -o`` writes."""

_MAX_JSON = 1 << 28  # bytes of one zarr.json
_MAX_STEPS = 1 << 16  # Euler steps; keeps a forged store from looping for ever
_CODECS = {"bytes", "blosc", "zstd", "gzip", "crc32c"}  # the codecs `load` reads; all of the standard, none runs code
_FIELDS = "coordinateTransformations"  # where the standard puts arrays of transformations
_ROOT_ENTRIES = {"zarr.json", _FIELDS, "regframe"}
_OME_UNITS = {"nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter"}

_Json = dict[str, Any]


@dataclass(frozen=True)
class FieldReport:
    """What the displacement fields of one direction cost and lose.

    Args:
        path: the first field's group inside the store.
        shape: its nodes per axis.
        spacing: distance of its nodes per axis, in the moving unit.
        fields: how many there are.
        steps: how many are applied one after the other; one may be applied several times.
        nodes: of all fields together.
        max_error_px: largest distance between what the fields do and the exact map, in moving pixels.
        mean_error_px: the mean of that distance.
        tolerance_px: the bar, `TOLERANCE_PX`.
        reached: whether the bar was reached within the nodes that were allowed.
    """

    path: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    fields: int
    steps: int
    nodes: int
    max_error_px: float
    mean_error_px: float
    tolerance_px: float
    reached: bool


# ---------------------------------------------------------------------------------------------------------------- save


def save(
    result: Result,
    path: str | Path,
    overwrite: bool = False,
    tolerance: float = TOLERANCE_PX,
    max_nodes: int = MAX_NODES,
) -> dict[str, FieldReport]:
    """Write ``result`` as one OME-Zarr 0.6 folder and return the error of the displacement fields of each direction.

    The folder is written aside, in the same parent, and renamed when complete; a failed write leaves nothing behind.
    Keys of what is returned: ``"to_fixed"`` and ``"to_moving"``, none for a map without a flow. ``tolerance`` is the largest
    error that fields may add by being interpolated, in moving pixels, and ``max_nodes`` what all of one direction may have.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False, or it is not a store written by this function.
        OSError: the folder cannot be written (PermissionError, NotADirectoryError … as the system says).
        ValueError: the result holds a map or a value that the format has no place for.
    """
    target = Path(os.path.realpath(path))
    check_target(target, overwrite)
    parts = list(result.transform.parts())
    own = _own_attributes(result, parts)
    with _written_aside(target) as folder:
        root = zarr.create_group(store=folder, zarr_format=3)
        group = root.create_group("regframe")
        for name, array in _own_arrays(result, parts).items():
            _write_array(group, name, array)
        scene, reports = _write_standard(root, result, tolerance, max_nodes)
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
    """Raise FileExistsError unless ``target`` is free, or may be replaced and is an empty folder or a store of regframe."""
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
    """Whether ``folder`` holds a regframe store and nothing else (hidden files apart)."""
    try:
        header = _read_node(folder, "", "group")["attributes"]["regframe"]
    except (ValueError, KeyError, TypeError, OSError):
        return False
    strangers = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - _ROOT_ENTRIES
    return isinstance(header, dict) and "format" in header and not strangers


@contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """A fresh folder beside ``target`` that takes its place when the block ends well, and is removed otherwise."""
    created = [p for p in (target.parent, *target.parent.parents) if not p.exists()]  # deepest first
    aside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp's own folder is private; the store inside gets the usual permissions
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        fresh, old = aside / "new", aside / "old"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        created = []
    except OSError as error:
        blocker = next((p for p in (target.parent, *target.parent.parents) if p.exists() and not p.is_dir()), None)
        if blocker is not None:
            message = f"cannot write {target}: {blocker} is a file, not a folder; pass another path"
            raise NotADirectoryError(message) from error
        reason = error.strerror or str(error)
        raise type(error)(f"cannot write {target}: {reason}; nothing was left behind, pass another path") from error
    finally:
        if aside is not None:
            if (aside / "old").exists() and not target.exists():  # an interrupt too leaves the earlier store in place
                (aside / "old").rename(target)
            shutil.rmtree(aside, ignore_errors=True)
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _write_array(
    group: zarr.Group, name: str, array: NDArray[Any], dimension_names: Sequence[str] | None = None
) -> None:
    ndim_space = array.ndim - 1 if dimension_names else array.ndim
    edge = 512 if ndim_space <= 2 else 64
    out = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=tuple(max(1, min(n, edge)) for n in array.shape),
        # a chunk that got lost reads as NaN, which `load` refuses; a damaged one fails its checksum
        fill_value=float("nan"),
        compressors=[
            BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=array.dtype.itemsize),
            Crc32cCodec(),
        ],
        dimension_names=list(dimension_names) if dimension_names else None,
    )
    out[...] = array


# ------------------------------------------------------------------------------------------------------- our own group


def _own_attributes(result: Result, parts: list[Transform]) -> _Json:
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
        "transform": [_part_to_json(part, i) for i, part in enumerate(parts)],
        "affine": [_part_to_json(part, None) for part in result.affine.parts()],
        "fixed_grid": _grid_to_json(result.fixed_grid),
        "moving_grid": _grid_to_json(result.moving_grid),
        "weight_grid": None if result.weight_grid is None else _grid_to_json(result.weight_grid),
        "position_sd": sd is not None,
        "config": result.config.model_dump(mode="json"),
        "metrics": result.metrics,
        "history": result.history,
        "versions": _versions(),
        "seed": result.config.seed,
    }
    encoded: _Json = _encode(attributes, "result")
    return encoded


def _own_arrays(result: Result, parts: list[Transform]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for i, part in enumerate(parts):
        if isinstance(part, Flow):
            arrays[_array_name(part, i)] = _to_numpy(part.velocity)  # [T, D, *S]
        elif isinstance(part, Displacement):
            arrays[_array_name(part, i)] = _to_numpy(part.field)  # [D, *S]
    for name, values in (("weight", result.weight), ("position_sd", result.position_sd)):
        if values is not None:
            arrays[name] = _to_numpy(values)  # [*S]
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"wanted a finite {name}, got NaN or inf entries")
    return arrays


def _array_name(part: Transform, index: int) -> str:
    base = "velocity" if isinstance(part, Flow) else "displacement"
    return base if index == 0 else f"{base}_{index}"


def _part_to_json(part: Transform, index: int | None) -> _Json:
    if isinstance(part, Affine):
        return {
            "type": "affine",
            "matrix": part.matrix.tolist(),
            "source_unit": _ome_unit(part.source_unit),
            "target_unit": _ome_unit(part.target_unit),
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


def _grid_to_json(grid: Grid) -> _Json:
    return {
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "origin": list(grid.origin),
        "unit": _ome_unit(grid.unit),
        "axes": list(grid.axes),
    }


def _ome_unit(unit: str) -> str:
    return _OME_UNITS.get(unit, "pixel")


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    return tensor.detach().cpu().contiguous().numpy()


def _versions() -> dict[str, str]:
    """Versions of what wrote the store."""
    try:
        own = importlib.metadata.version("regframe")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "regframe": own,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "zarr": zarr.__version__,
        "python": platform.python_version(),
    }


def _encode(value: Any, where: str) -> Any:
    """``value`` as strict JSON, NaN as ``{"number": "nan"}`` and so on; ValueError for what has no place in it."""
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
    if isinstance(value, list):
        return [_decode(v) for v in value]
    if isinstance(value, dict):
        if set(value) == {"number"} and value["number"] in ("nan", "inf", "-inf"):
            return float(value["number"])
        return {k: _decode(v) for k, v in value.items()}
    return value


# -------------------------------------------------------------------------------------------------- the standard part


class Bent(NamedTuple):
    """A map ``after · bend · before`` (moving → fixed) with its bend as displacement fields both ways.

    Args:
        before: homogeneous matrix ``[D+1, D+1]`` from the moving space to that of the bend; None where it is the same.
        to_fixed: the bend as fields, or None where the map does not bend or nobody asked for it.
        to_moving: its inverse as fields, likewise.
        after: matrix ``[D+1, D+1]`` from the space of the bend to the fixed one; None where it is the same.
    """

    before: Tensor | None
    to_fixed: Chain | None
    to_moving: Chain | None
    after: Tensor | None


def as_fields(
    result: Result,
    tolerance: float = TOLERANCE_PX,
    max_nodes: int = MAX_NODES,
    wanted: Sequence[str] = ("to_fixed", "to_moving"),
    exact: bool = False,
) -> Bent:
    """The map of ``result`` as matrices and those fields that are ``wanted``, as coarse as ``tolerance`` (moving pixels) allows.

    ``max_nodes`` and ``exact`` as in `chain_of`. Raises ValueError for a map that bends twice.
    """
    before, bend, after = split(result.transform)
    ndim = result.transform.ndim
    if bend is None:
        return Bent(None, None, None, product(before, ndim))
    box, pixel = around(result)
    chains: dict[str, Chain] = {}
    for name in wanted:
        way = bend if name == "to_fixed" else bend.inverse()
        chains[name] = chain_of(way, box, pixel, tolerance, max_nodes, exact)
    matrices = [product(parts, ndim) if parts else None for parts in (before, after)]
    return Bent(matrices[0], chains.get("to_fixed"), chains.get("to_moving"), matrices[1])


def around(result: Result) -> tuple[Tensor, tuple[float, ...]]:
    """Box ``[2, D]`` in the space of the bend around both canvases, and the size of a moving pixel there."""
    before, bend, after = split(result.transform)
    assert bend is not None
    return _region(result, before, bend, after), _pixel_after(result.moving_grid, before)


def split(transform: Transform) -> tuple[list[Transform], Flow | Displacement | None, list[Transform]]:
    """The affine maps before the bend, the bend and the affine maps after it; all are before where nothing bends.

    Raises ValueError for a map that bends twice, or by a map of another kind.
    """
    parts = list(transform.parts())
    bent = [i for i, part in enumerate(parts) if not isinstance(part, Affine)]
    if len(bent) > 1:
        raise ValueError(f"wanted a map with at most one flow or displacement, got {len(bent)}; save them one by one")
    if not bent:
        return parts, None, []
    bend = parts[bent[0]]
    if not isinstance(bend, (Flow, Displacement)):
        raise ValueError(f"wanted a map made of Affine, Flow and Displacement, got {type(bend).__name__}")
    return parts[: bent[0]], bend, parts[bent[0] + 1 :]


def _write_standard(
    root: zarr.Group, result: Result, tolerance: float, max_nodes: int
) -> tuple[_Json, dict[str, FieldReport]]:
    """Write the displacement fields; return the ``scene`` of the root's ``ome`` attribute and the fields' errors."""
    bent, ndim = as_fields(result, tolerance, max_nodes), result.transform.ndim
    moving, fixed = result.transform.source_unit, result.transform.target_unit
    ends = {"input": {"name": "moving"}, "output": {"name": "fixed"}}
    systems = [_coordinate_system("fixed", fixed, ndim), _coordinate_system("moving", moving, ndim)]
    if bent.to_fixed is None or bent.to_moving is None:
        assert bent.after is not None
        whole = _affine_to_json(bent.after)
        return {"coordinateSystems": systems, "coordinateTransformations": [{**whole, **ends}]}, {}
    fields = root.create_group(_FIELDS)
    steps: dict[str, list[_Json]] = {}
    reports: dict[str, FieldReport] = {}
    for name, chain in (("to_fixed", bent.to_fixed), ("to_moving", bent.to_moving)):
        distinct = chain.distinct
        names = {id(f): name if len(distinct) == 1 else f"{name}_{i}" for i, f in enumerate(distinct)}
        for field in distinct:
            _write_field(fields, names[id(field)], field)
        steps[name] = [
            {"type": "displacements", "name": n, "path": f"{_FIELDS}/{n}", "interpolation": "linear"}
            for n in (names[id(field)] for field in chain.fields)
        ]
        first, worst = distinct[0].grid, chain.max_error
        reports[name] = FieldReport(
            steps[name][0]["path"], first.shape, first.spacing, len(distinct), len(chain.fields), chain.nodes,
            worst, chain.mean_error, tolerance, worst <= tolerance,
        )  # fmt: skip
    a, b = bent.before, bent.after
    # first applied first: a moving-space point is bent, then carried by the affine matrix; back, the other way round
    forward = [*_step(a), *steps["to_fixed"], *_step(b)]
    inverse = [
        *_step(None if b is None else _inverse(b)),
        *steps["to_moving"],
        *_step(None if a is None else _inverse(a)),
    ]
    whole = {
        "type": "bijection",
        "name": "moving to fixed",
        **ends,
        "forward": {"type": "sequence", "name": "moving to fixed", "transformations": forward},
        "inverse": {"type": "sequence", "name": "fixed to moving", "transformations": inverse},
    }
    return {"coordinateSystems": systems, "coordinateTransformations": [whole]}, reports


def _coordinate_system(name: str, unit: str, ndim: int, component: str | None = None) -> _Json:
    axes: list[_Json] = [{"name": axis, "type": "space"} for axis in AXES[ndim]]
    if unit != "px":  # the standard has no unit for pixels: such an axis has none
        for axis in axes:
            axis["unit"] = _ome_unit(unit)
    if component is not None:
        axes.insert(0, {"name": component, "type": "displacement", "discrete": True})
    return {"name": name, "axes": axes}


def product(affines: Sequence[Transform], ndim: int) -> Tensor:
    """The matrix ``[D+1, D+1]`` of affine maps one after the other, the first applied first."""
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    for part in affines:
        assert isinstance(part, Affine)
        matrix = part.matrix @ matrix
    return matrix  # [D+1, D+1]


def _inverse(matrix: Tensor) -> Tensor:
    return Affine(matrix).inverse().matrix


def _affine_to_json(matrix: Tensor) -> _Json:
    return {"type": "affine", "affine": matrix[:-1].tolist()}  # the standard leaves the last row out


def _step(matrix: Tensor | None) -> list[_Json]:
    return [] if matrix is None else [_affine_to_json(matrix)]


def _pixel_after(grid: Grid, before: Sequence[Transform]) -> tuple[float, ...]:
    """Size of a moving pixel per axis in the space of the bend; the moving spacing where nothing comes before it."""
    matrix = product(before, grid.ndim)[:-1, :-1]
    step = matrix @ torch.diag(torch.tensor(grid.spacing, dtype=torch.float64))
    return tuple(float(row.norm()) for row in step)


def _region(result: Result, before: list[Transform], bend: Flow | Displacement, after: list[Transform]) -> Tensor:
    """Box ``[2, D]`` in the bend's space around both canvases, bent and not, clipped to where it moves anything."""
    moving, fixed = _canvas_lattice(result.moving_grid), _canvas_lattice(result.fixed_grid)
    for part in before:
        moving = part.points(moving)
    for part in reversed(after):
        fixed = part.inverse().points(fixed)
    seen = torch.cat([moving, bend.points(moving), fixed, bend.inverse().points(fixed)])  # [N, D]
    margin = 2 * torch.tensor(_pixel_after(result.moving_grid, before), dtype=torch.float64)
    # outside its grid, faded over one cell, the velocity is zero and positions stay where they are
    grid = bend.grid
    origin, spacing, shape = (torch.tensor(v, dtype=torch.float64) for v in (grid.origin, grid.spacing, grid.shape))
    lower, upper = origin - spacing, origin + spacing * shape
    low = torch.minimum(torch.maximum(seen.amin(dim=0) - margin, lower), upper)
    high = torch.minimum(torch.maximum(seen.amax(dim=0) + margin, lower), upper)
    return torch.stack([low, high])


def _canvas_lattice(grid: Grid) -> Tensor:
    """Positions ``[N, D]`` spread over the canvas, its outer pixel edges included."""
    n = 65 if grid.ndim == 2 else 17
    axes = [
        torch.linspace(o - s / 2, o + s * (size - 0.5), n, dtype=torch.float64)
        for o, s, size in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim)


def _write_field(fields: zarr.Group, name: str, field: Displacement) -> None:
    grid = field.grid
    system = _coordinate_system("moving", grid.unit, grid.ndim, component="c")
    to_system = {
        "type": "sequence",
        "input": {"path": "0"},
        "output": {"name": "moving"},
        "transformations": [
            {"type": "scale", "scale": [1.0, *grid.spacing]},
            {"type": "translation", "translation": [0.0, *grid.origin]},
        ],
    }
    multiscale = {
        "name": name,
        "type": "single",  # the standard wants to know how levels were made; there is one, and it is exact at its nodes
        "metadata": {"description": "one level, not downscaled"},
        "coordinateSystems": [system],
        "datasets": [{"path": "0", "coordinateTransformations": [to_system]}],
    }
    group = fields.create_group(name, attributes={"ome": {"version": OME_VERSION, "multiscales": [multiscale]}})
    _write_array(group, "0", field.field.numpy(), dimension_names=("c", *grid.axes))


# ---------------------------------------------------------------------------------------------------------------- load


def load(path: str | Path) -> Result:
    """The result `save` wrote to ``path``, or to ``transform.ome.zarr`` in the folder ``path``, to the last bit.

    Raises:
        FileNotFoundError: there is no store at ``path``.
        ValueError: what is there is not a complete, sound regframe store, or was written by a newer regframe.
    """
    folder = _find_store(path)
    with _named(folder):
        _read_header(folder)
        own = _mapping(_decode(_read_node(folder, "regframe", "group")["attributes"]), "regframe")
        moving_grid = _grid_from_json(_item(own, "moving_grid", dict), "moving_grid")
        fixed_grid = _grid_from_json(_item(own, "fixed_grid", dict), "fixed_grid")
        parts = [_part_from_json(folder, p, i) for i, p in enumerate(_item(own, "transform", list))]
        affines = [_part_from_json(folder, p, None) for p in _item(own, "affine", list)]
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
            weight_grid = _grid_from_json(_item(own, "weight_grid", dict), "weight_grid")
            weight = _read_array(folder, "regframe/weight", weight_grid.shape)
            if own.get("position_sd", False):  # stores of earlier versions have none
                position_sd = _read_array(folder, "regframe/position_sd", weight_grid.shape)
        history = _item(own, "history", list)
        if not all(isinstance(entry, dict) for entry in history):
            raise ValueError("wanted a dictionary per entry of 'history', got something else")
        try:
            config = Config.model_validate(_item(own, "config", dict))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(key) for key in first["loc"])
            raise ValueError(f"wanted the settings of this version in 'config', got {where}: {first['msg']}") from error
        _item(own, "versions", dict)
        _item(own, "seed", int)
        return Result(
            transform=transform,
            fixed_grid=fixed_grid,
            moving_grid=moving_grid,
            metrics=_item(own, "metrics", dict),
            config=config,
            affine=affine,
            history=history,
            weight=weight,
            weight_grid=weight_grid,
            position_sd=position_sd,
        )


def read_standard(
    path: str | Path, to: Literal["fixed", "moving"] = "fixed", systems: tuple[str, str] = ("fixed", "moving")
) -> Transform:
    """The map to the ``to`` space, rebuilt from the OME-Zarr part of a store alone: matrices and displacement fields.

    What a program that knows the standard but not regframe reads; it agrees with the exact map within the error that
    the store reports. Both directions are stored: ``read_standard(p, to="moving")`` inverts nothing. ``systems`` names the
    coordinate systems of the fixed and the moving side in a store of another program. Errors as `load`.
    """
    folder = _find_store(path)
    with _named(folder):
        ome = _mapping(_read_node(folder, "", "group")["attributes"].get("ome"), "ome")
        version = _item(ome, "version", str)
        if re.fullmatch(r"0\.6(rc\d+)?", version) is None:
            raise ValueError(f"wanted OME-Zarr {OME_VERSION}, got version {version!r}; upgrade regframe or convert it")
        scene = _item(ome, "scene", dict)
        known = {}
        for system in _item(scene, "coordinateSystems", list):
            system = _mapping(system, "coordinateSystems")
            known[_item(system, "name", str)] = _space_axes(_item(system, "axes", list))
        target, source = systems if to == "fixed" else systems[::-1]
        for name in (source, target):
            if name not in known:
                raise ValueError(f"wanted a coordinate system named {name!r} in the scene, got {sorted(known)}")
        for entry in _item(scene, "coordinateTransformations", list):
            entry = _mapping(entry, "coordinateTransformations")
            ends = tuple(_item(_item(entry, side, dict), "name", str) for side in ("input", "output"))
            chosen = None
            if ends == (source, target):
                chosen = _item(entry, "forward", dict) if entry.get("type") == "bijection" else entry
            elif ends == (target, source) and entry.get("type") == "bijection":
                chosen = _item(entry, "inverse", dict)
            if chosen is not None:
                return _from_standard(folder, chosen, known[source], known[target])
            if ends == (target, source):
                return _from_standard(folder, entry, known[target], known[source]).inverse()
        raise ValueError(
            f"wanted a transformation between {source} and {target} in the scene, got none that leads to {target!r}"
        )


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Put the store's name before what is wrong with it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {folder}: its metadata is not text; save the result again") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {folder}: {error}") from error


def _find_store(path: str | Path) -> Path:
    path = Path(path)
    for folder in (path, path / STORE_NAME):
        if (folder / "zarr.json").is_file():
            return folder
    if not path.exists():
        raise FileNotFoundError(f"wanted a regframe store or a folder with {STORE_NAME} in it, got nothing at {path}")
    raise FileNotFoundError(
        f"wanted a regframe store or a folder with {STORE_NAME} in it, got {path} without zarr.json"
    )


def _read_header(folder: Path) -> None:
    """Check that the root says: ours, complete, of a version we know."""
    attributes = _read_node(folder, "", "group")["attributes"]
    if "regframe" not in attributes:
        what = "another OME-Zarr" if "ome" in attributes else "an unfinished or foreign store"
        raise ValueError(f"wanted a complete regframe store, got {what} (no 'regframe' entry); save the result again")
    header = _mapping(attributes["regframe"], "regframe")
    version = _item(header, "format", int)
    if version > FORMAT:
        raise ValueError(
            f"wanted a store of format {FORMAT} at most, got {version} of a newer version; upgrade regframe"
        )
    if version < 1:
        raise ValueError(f"wanted a store of format 1 or later, got {version}")
    if header.get("complete") is not True:
        raise ValueError("wanted a complete store, got an unfinished one; save the result again")


def _inside(folder: Path, name: str) -> Path:
    """The node ``name`` of the store, never outside it."""
    steps = name.split("/") if name else []
    if any(step in ("", ".", "..") or re.search(r"[\\%:]", step) for step in steps):
        raise ValueError(f"wanted a path below the store, got {name!r}")
    node = folder.joinpath(*steps)
    if not node.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"wanted a path below the store, got {name!r}, which leads out of it")
    return node


def _read_node(folder: Path, name: str, kind: Literal["group", "array"]) -> _Json:
    """The checked ``zarr.json`` of one node; a group's ``attributes`` are there, if empty."""
    document = _inside(folder, f"{name}/zarr.json" if name else "zarr.json")
    label = name or "the store"
    if not document.is_file():
        raise ValueError(f"wanted a Zarr {kind} at {label!r}, got none; the store is incomplete")
    if document.stat().st_size > _MAX_JSON:
        raise ValueError(f"wanted at most {_MAX_JSON} bytes of metadata at {label!r}, got {document.stat().st_size}")
    try:
        node = json.loads(document.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"wanted JSON metadata at {label!r}, got a damaged file; save the result again") from error
    node = _mapping(node, label)
    if node.get("zarr_format") != 3 or node.get("node_type") != kind:
        raise ValueError(
            f"wanted a Zarr 3 {kind} at {label!r}, got format {node.get('zarr_format')!r}, {node.get('node_type')!r}"
        )
    node["attributes"] = _mapping(node.get("attributes", {}), f"{label} attributes")
    return node


def _no_constant(name: str) -> float:
    raise ValueError(f"wanted numbers in the metadata, got {name}")


def _read_array(folder: Path, name: str, shape: Sequence[int] | None = None) -> Tensor:
    """A finite float array of the store; its size, codecs and chunk files are checked before anything is allocated."""
    node = _read_node(folder, name, "array")
    found = _item(node, "shape", list)
    chunk_grid = _item(node, "chunk_grid", dict)
    chunks = _item(_mapping(chunk_grid.get("configuration"), f"{name} chunk_grid"), "chunk_shape", list)
    for numbers in (found, chunks):
        if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise ValueError(f"wanted positive sizes of {name!r}, got {numbers}")
    if shape is not None and tuple(found) != tuple(shape):
        raise ValueError(f"wanted {name!r} of shape {tuple(shape)}, as its grid says, got {tuple(found)}")
    if chunk_grid.get("name") != "regular" or len(chunks) != len(found):
        raise ValueError(f"wanted regular chunks of {name!r}, got {chunk_grid}")
    if max(math.prod(found), math.prod(chunks)) > MAX_ELEMENTS:
        raise ValueError(f"wanted at most {MAX_ELEMENTS} elements in {name!r}, got shape {found} in chunks of {chunks}")
    if node.get("data_type") not in ("float32", "float64"):
        raise ValueError(f"wanted float32 or float64 in {name!r}, got {node.get('data_type')!r}")
    codecs = [_item(_mapping(c, f"{name} codecs"), "name", str) for c in _item(node, "codecs", list)]
    if not set(codecs) <= _CODECS or node.get("storage_transformers"):
        raise ValueError(f"wanted the codecs {sorted(_CODECS)} in {name!r}, got {codecs}")
    try:
        array = zarr.open_array(_inside(folder, name), mode="r", zarr_format=3)[...]
    except Exception as error:  # each codec has errors of its own; all mean that the data are damaged
        raise ValueError(f"wanted sound data in {name!r}, got {error}; save the result again") from error
    data = np.asarray(array)
    if not np.isfinite(data).all():
        raise ValueError(f"wanted finite values in {name!r}, got NaN or inf: a chunk is missing or damaged")
    return torch.from_numpy(np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("=")))


def _part_from_json(folder: Path, value: Any, index: int | None) -> Transform:
    part = _mapping(value, "transform")
    kind = _item(part, "type", str)
    if kind == "affine":
        units = [_item(part, f"{side}_unit", str) for side in ("source", "target")]
        return Affine(_matrix(_item(part, "matrix", list)), units[0], units[1])
    if index is None or kind not in ("flow", "displacement"):
        wanted = "affine" if index is None else "affine, flow or displacement"
        raise ValueError(f"wanted a part of type {wanted}, got {kind!r}")
    grid = _grid_from_json(_item(part, "grid", dict), kind)
    name = _item(part, "array", str)
    if re.fullmatch(r"[A-Za-z0-9_]+", name) is None:
        raise ValueError(f"wanted the name of an array of the group, got {name!r}")
    if kind == "displacement":
        field = _read_array(folder, f"regframe/{name}", (grid.ndim, *grid.shape))
        return Displacement(field, grid, _item(part, "inverted", bool))
    declared = _item(_read_node(folder, f"regframe/{name}", "array"), "shape", list)
    n_slices = declared[0] if declared and isinstance(declared[0], int) else 0
    n_steps = _item(part, "n_steps", int)
    if not 1 <= n_steps <= _MAX_STEPS:
        raise ValueError(f"wanted 1 to {_MAX_STEPS} steps of the flow, got {n_steps}")
    velocity = _read_array(folder, f"regframe/{name}", (n_slices, grid.ndim, *grid.shape))
    return Flow(velocity, grid, n_steps, _item(part, "reverse", bool))


def _joined(parts: list[Transform], name: str) -> Transform:
    if not parts:
        raise ValueError(f"wanted at least one part of {name!r}, got none")
    return parts[0] if len(parts) == 1 else MapSequence(tuple(parts))


def _grid_from_json(value: _Json, name: str) -> Grid:
    shape = _item(value, "shape", list)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in shape) or math.prod(shape) > 1 << 62:
        raise ValueError(f"wanted whole numbers as the shape of {name!r}, got {shape}")
    grid = Grid(
        tuple(shape),
        tuple(_numbers(_item(value, "spacing", list), name)) or (0.0,),
        tuple(_numbers(_item(value, "origin", list), name)),
        _item(value, "unit", str),
    )
    if len(value["spacing"]) != grid.ndim or len(value["origin"]) != grid.ndim or value.get("axes") != list(grid.axes):
        raise ValueError(f"wanted spacing, origin and axes {list(grid.axes)} of {name!r}, got {value}")
    return grid


def _from_standard(folder: Path, entry: _Json, source: tuple[int, str], target: tuple[int, str]) -> Transform:
    """An RFC-5 transformation as our maps; matrices in a row become one, which takes the change of unit."""
    if source[0] != target[0]:
        raise ValueError(f"wanted coordinate systems of one dimension, got {source[0]} and {target[0]} axes")
    ndim, unit = source
    parts: list[Transform] = []
    matrix: Tensor | None = None
    for step in _flattened(entry):
        found = _step_from_standard(folder, step, ndim)
        if isinstance(found, Tensor):
            matrix = found if matrix is None else found @ matrix
            continue
        if matrix is not None:
            parts.append(Affine(matrix, unit, found.source_unit))
            unit, matrix = found.source_unit, None
        parts.append(found)
    if matrix is not None or not parts:
        parts.append(Affine(torch.eye(ndim + 1, dtype=torch.float64) if matrix is None else matrix, unit, target[1]))
    transform = _joined(parts, "coordinateTransformations")
    if (transform.source_unit, transform.target_unit) != (source[1], target[1]):
        raise ValueError(
            f"wanted a map from {source[1]} to {target[1]}, got {transform.source_unit} to {transform.target_unit}"
        )
    return transform


def _flattened(entry: _Json, depth: int = 0) -> Iterator[_Json]:
    if depth > 8:
        raise ValueError("wanted transformations nested 8 deep at most, got more")
    kind = _item(entry, "type", str)
    if kind == "bijection":
        yield from _flattened(_item(entry, "forward", dict), depth + 1)
    elif kind == "sequence":
        for step in _item(entry, "transformations", list):
            yield from _flattened(_mapping(step, "transformations"), depth + 1)
    else:
        yield entry


def _step_from_standard(folder: Path, step: _Json, ndim: int) -> Tensor | Displacement:
    """One elementary transformation: a homogeneous matrix ``[D+1, D+1]`` or a displacement field."""
    kind = step["type"]
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    if kind == "identity":
        return matrix
    if kind in ("scale", "translation"):
        numbers = torch.tensor(_numbers(_item(step, kind, list), kind), dtype=torch.float64)
        if numbers.shape != (ndim,):
            raise ValueError(f"wanted {ndim} numbers of {kind!r}, got {tuple(numbers.shape)}")
        if kind == "scale":
            return torch.diag(torch.cat([numbers, torch.ones(1, dtype=torch.float64)]))
        matrix[:-1, -1] = numbers
        return matrix
    if kind in ("affine", "rotation"):
        columns = ndim + 1 if kind == "affine" else ndim
        found = _matrix(_item(step, kind, list))
        if tuple(found.shape) != (ndim, columns):
            raise ValueError(f"wanted a matrix [{ndim}, {columns}] of {kind!r}, got {tuple(found.shape)}")
        matrix[:-1, :columns] = found
        return matrix
    if kind == "displacements":
        if step.get("interpolation", "linear") != "linear":
            raise ValueError(f"wanted a displacement field to be interpolated linearly, got {step['interpolation']!r}")
        return _read_field(folder, _item(step, "path", str), ndim)
    raise ValueError(
        "wanted identity, scale, translation, rotation, affine, displacements, sequence or bijection, "
        f"got the transformation {kind!r}; read it with a program that knows it"
    )


def _read_field(folder: Path, path: str, ndim: int) -> Displacement:
    """The finest level of a displacement field: an image with one axis of type ``displacement``, first or last."""
    ome = _mapping(_read_node(folder, path, "group")["attributes"].get("ome"), f"{path} ome")
    multiscales = _item(ome, "multiscales", list)
    if len(multiscales) != 1:
        raise ValueError(f"wanted one multiscale at {path!r}, got {len(multiscales)}")
    multiscale = _mapping(multiscales[0], path)
    datasets, systems = _item(multiscale, "datasets", list), _item(multiscale, "coordinateSystems", list)
    if not datasets or not systems:
        raise ValueError(f"wanted a dataset and a coordinate system at {path!r}, got none")
    dataset = _mapping(datasets[0], path)
    axes = [_mapping(a, f"{path} axes") for a in _item(_mapping(systems[0], path), "axes", list)]
    component = [i for i, axis in enumerate(axes) if axis.get("type") == "displacement"]
    if component not in ([0], [ndim]) or len(axes) != ndim + 1:
        raise ValueError(f"wanted {ndim} axes of space and one of displacement, first or last, at {path!r}, got {axes}")
    where = component[0]
    _, unit = _space_axes([a for i, a in enumerate(axes) if i != where])
    steps = [s for t in _item(dataset, "coordinateTransformations", list) for s in _flattened(_mapping(t, path))]
    spacing, origin = [1.0] * (ndim + 1), [0.0] * (ndim + 1)
    kinds = [s["type"] for s in steps]
    if kinds not in (["scale"], ["identity"], ["scale", "translation"]):
        raise ValueError(f"wanted a scale and a translation of the field {path!r}, got {kinds}")
    for step in steps:
        if step["type"] != "identity":
            numbers = _numbers(_item(step, step["type"], list), path)
            if len(numbers) != ndim + 1:
                raise ValueError(f"wanted {ndim + 1} numbers of {step['type']!r} at {path!r}, got {numbers}")
            spacing, origin = (numbers, origin) if step["type"] == "scale" else (spacing, numbers)
    data = _read_array(folder, f"{path}/{_item(dataset, 'path', str)}").movedim(where, 0).contiguous()  # [D, *S]
    if data.ndim != ndim + 1 or data.shape[0] != ndim:
        raise ValueError(f"wanted a field [{ndim}, ...] of {ndim} axes at {path!r}, got {tuple(data.shape)}")
    del spacing[where], origin[where]
    return Displacement(data, Grid(tuple(data.shape[1:]), tuple(spacing), tuple(origin), unit))


def _space_axes(axes: list[Any]) -> tuple[int, str]:
    """Number and common unit of axes that must be ``y, x`` or ``z, y, x``."""
    found = [_mapping(axis, "axes") for axis in axes]
    names = tuple(axis.get("name") for axis in found)
    if names not in AXES.values():
        raise ValueError(f"wanted the axes y, x or z, y, x, got {names}")
    units = {canonical_unit(str(axis["unit"]) if axis.get("unit") is not None else None) for axis in found}
    if len(units) != 1:
        raise ValueError(f"wanted one unit on all axes, got {sorted(units)}")
    return len(names), units.pop()


def _mapping(value: Any, name: str) -> _Json:
    if not isinstance(value, dict):
        raise ValueError(f"wanted an object at {name!r}, got {type(value).__name__}")
    return value


def _item(value: _Json, key: str, kind: type) -> Any:
    """``value[key]``, of type ``kind``; a bool is no int."""
    if key not in value:
        raise ValueError(f"wanted the key {key!r}, got only {sorted(value)[:20]}")
    found = value[key]
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise ValueError(f"wanted {kind.__name__} at {key!r}, got {type(found).__name__}")
    return found


def _numbers(values: list[Any], name: str) -> list[float]:
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"wanted numbers at {name!r}, got {values}")
    try:
        numbers = [float(v) for v in values]
    except OverflowError:
        numbers = [math.inf]
    if not all(math.isfinite(v) for v in numbers):
        raise ValueError(f"wanted finite numbers at {name!r}, got {values}")
    return numbers


def _matrix(rows: list[Any]) -> Tensor:
    """Rows of numbers as a float64 matrix."""
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise ValueError("wanted a matrix as rows of one length, got something else")
    return torch.tensor([_numbers(row, "matrix") for row in rows], dtype=torch.float64)
