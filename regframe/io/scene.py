"""The standard part of a store: a *scene* of OME-Zarr 0.6 (RFC-5), a coordinate transformation that other programs can read.

It has two coordinate systems, ``fixed`` and ``moving``, and the map between them: an affine matrix, or a bijection whose two
directions consist of affine matrices and displacement fields. All in physical units, components in the order (z,) y, x.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import zarr
from torch import Tensor

from ..data import AXES, Grid, canonical_unit, ome_unit
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.fields import Chain
from ..maps.sequence import in_a_row
from ..result import Result
from .fields import legs
from .graph import by_dimension, permutation, way
from .nodes import Json, find_store, item, mapping, matrix_of, named, numbers_of, read_array, read_node, write_array

OME_VERSION = "0.6"
"""Version of OME-Zarr that is written; it and its release candidates are read."""

FIELDS = "coordinateTransformations"
"""Group of the store in which the standard keeps arrays of transformations."""

_MOST_NESTED = 8
"""Largest depth of sequences within sequences: regframe's own have one, and a store that contains itself has to end somewhere."""


@dataclass(frozen=True)
class FieldReport:
    """Size and error of the displacement fields of one direction.

    Args:
        path: group of the first field inside the store.
        shape: nodes of the first field per axis.
        spacing: distance of its nodes per axis, in the unit of the bend.
        fields: number of distinct fields.
        steps: number of fields applied one after another; a field may be applied several times.
        nodes: total number of nodes of the distinct fields.
        max_error_px: largest distance between the fields and the exact map, in moving pixels.
        mean_error_px: mean of that distance, in moving pixels.
        tolerance_px: the tolerance that was asked for, in moving pixels.
        reached: whether the tolerance was reached with the nodes that were allowed.
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


# -------------------------------------------------------------------------------------------------------------- write


def write_scene(
    root: zarr.Group, result: Result, tolerance: float, max_nodes: int
) -> tuple[Json, dict[str, FieldReport]]:
    """Write the displacement fields; returns the ``scene`` for the root's ``ome`` attribute, and the errors of the fields."""
    row, ndim = legs(result, tolerance, max_nodes), result.transform.ndim
    moving, fixed = result.transform.source_unit, result.transform.target_unit
    ends = {"input": {"name": "moving"}, "output": {"name": "fixed"}}
    systems = [_coordinate_system("fixed", fixed, ndim), _coordinate_system("moving", moving, ndim)]
    if row[0].to_fixed is None:
        assert row[0].after is not None
        whole = _affine_to_json(row[0].after)
        return {"coordinateSystems": systems, "coordinateTransformations": [{**whole, **ends}]}, {}
    fields = root.create_group(FIELDS)
    forward: list[Json] = []
    inverse: list[Json] = []
    written: dict[str, list[FieldReport]] = {"to_fixed": [], "to_moving": []}
    for number, bent in enumerate(row):
        steps: dict[str, list[Json]] = {}
        for name, chain in (("to_fixed", bent.to_fixed), ("to_moving", bent.to_moving)):
            assert chain is not None
            called = name if number == 0 else f"{name}_after_{number}"
            steps[name], report = _written_chain(fields, called, chain, tolerance)
            written[name].append(report)
        a, b = bent.before, bent.after
        # in the order of application: towards the fixed side a bend comes before the affine matrix; towards the moving side after
        forward += [*_step(a), *steps["to_fixed"], *_step(b)]
        back = [
            *_step(None if b is None else _inverse(b)),
            *steps["to_moving"],
            *_step(None if a is None else _inverse(a)),
        ]
        inverse = [*back, *inverse]
    reports = {name: _in_all(each) for name, each in written.items()}
    whole = {
        "type": "bijection",
        "name": "moving to fixed",
        **ends,
        "forward": {"type": "sequence", "name": "moving to fixed", "transformations": forward},
        "inverse": {"type": "sequence", "name": "fixed to moving", "transformations": inverse},
    }
    return {"coordinateSystems": systems, "coordinateTransformations": [whole]}, reports


def _written_chain(fields: zarr.Group, name: str, chain: Chain, tolerance: float) -> tuple[list[Json], FieldReport]:
    """Write the fields of a chain under a name; returns the chain as steps, and what its error is."""
    distinct = chain.distinct
    names = {id(f): name if len(distinct) == 1 else f"{name}_{i}" for i, f in enumerate(distinct)}
    for field in distinct:
        _write_field(fields, names[id(field)], field)
    steps: list[Json] = [
        {"type": "displacements", "name": n, "path": f"{FIELDS}/{n}", "interpolation": "linear"}
        for n in (names[id(field)] for field in chain.fields)
    ]
    first, worst = distinct[0].grid, chain.max_error
    report = FieldReport(
        steps[0]["path"], first.shape, first.spacing, len(distinct), len(chain.fields), chain.nodes,
        worst, chain.mean_error, tolerance, worst <= tolerance,
    )  # fmt: skip
    return steps, report


def _in_all(each: list[FieldReport]) -> FieldReport:
    """What is said of several chains in a row: of the first one, with counts and errors added up."""
    if len(each) == 1:
        return each[0]
    fields, steps, nodes = (sum(getattr(one, name) for one in each) for name in ("fields", "steps", "nodes"))
    worst, mean = sum(one.max_error_px for one in each), sum(one.mean_error_px for one in each)
    first = each[0]
    return FieldReport(
        first.path, first.shape, first.spacing, fields, steps, nodes, worst, mean, first.tolerance_px,
        worst <= first.tolerance_px,
    )  # fmt: skip


def _coordinate_system(name: str, unit: str, ndim: int, component: str | None = None) -> Json:
    """A coordinate system of space; with a first axis ``component`` for the components of a displacement, where that is given."""
    axes: list[Json] = [{"name": axis, "type": "space"} for axis in AXES[ndim]]
    if unit != "px":  # the standard has no unit for pixels, so the axis gets none
        for axis in axes:
            axis["unit"] = ome_unit(unit)
    if component is not None:
        axes.insert(0, {"name": component, "type": "displacement", "discrete": True})
    return {"name": name, "axes": axes}


def _inverse(matrix: Tensor) -> Tensor:
    return Affine(matrix).inverse().matrix


def _affine_to_json(matrix: Tensor) -> Json:
    return {"type": "affine", "affine": matrix[:-1].tolist()}  # the standard leaves the last row out


def _step(matrix: Tensor | None) -> list[Json]:
    return [] if matrix is None else [_affine_to_json(matrix)]


def _write_field(fields: zarr.Group, name: str, field: Displacement) -> None:
    """Write a displacement field as an image with one level; the components ``[D, *S]`` are its first axis."""
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
        "type": "single",  # the standard asks how levels were made: there is a single one, exact at its nodes
        "metadata": {"description": "one level, not downscaled"},
        "coordinateSystems": [system],
        "datasets": [{"path": "0", "coordinateTransformations": [to_system]}],
    }
    group = fields.create_group(name, attributes={"ome": {"version": OME_VERSION, "multiscales": [multiscale]}})
    write_array(group, "0", field.field.numpy(), dimension_names=("c", *grid.axes))


# --------------------------------------------------------------------------------------------------------------- read


def read_standard(
    path: str | Path, to: Literal["fixed", "moving"] = "fixed", systems: tuple[str, str] = ("fixed", "moving")
) -> Transform:
    """The map to the side ``to``, from the standard part of a store alone: matrices and displacement fields.

    This is the map that a program sees which knows the standard but not regframe; it agrees with the exact map within the error
    that the store reports. Both directions are stored, so that ``to="moving"`` needs no inversion. ``systems`` names the
    coordinate systems of the fixed and the moving side, for stores of other programs. Raises what `load` raises.
    """
    folder = find_store(path)
    with named(folder):
        ome = mapping(read_node(folder, "", "group")["attributes"].get("ome"), "ome")
        version = item(ome, "version", str)
        if re.fullmatch(r"0\.6(rc\d+)?", version) is None:
            raise ValueError(f"wanted OME-Zarr {OME_VERSION}, got version {version!r}; upgrade regframe or convert it")
        scene = item(ome, "scene", dict)
        known = {}
        for system in item(scene, "coordinateSystems", list):
            system = mapping(system, "coordinateSystems")
            known[item(system, "name", str)] = _space_axes(item(system, "axes", list))
        target, source = systems if to == "fixed" else systems[::-1]
        for name in (source, target):
            if name not in known:
                raise ValueError(f"wanted a coordinate system named {name!r} in the scene, got {sorted(known)}")
        parts: list[Transform] = []
        for entry, first, last, backwards in way(item(scene, "coordinateTransformations", list), source, target):
            if not {first, last} <= known.keys():
                raise ValueError(f"wanted coordinate systems of the scene on the way, got {first!r} and {last!r}")
            part = _from_standard(folder, entry, known[first], known[last])
            parts.append(part.inverse() if backwards else part)
        return parts[0] if len(parts) == 1 else in_a_row(parts)


def _from_standard(folder: Path, entry: Json, source: tuple[int, str], target: tuple[int, str]) -> Transform:
    """A transformation of RFC-5 as one of our maps; consecutive matrices become one, which includes the change of unit."""
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
    transform = in_a_row(parts)
    if (transform.source_unit, transform.target_unit) != (source[1], target[1]):
        raise ValueError(
            f"wanted a map from {source[1]} to {target[1]}, got {transform.source_unit} to {transform.target_unit}"
        )
    return transform


def _flattened(entry: Json, depth: int = 0) -> Iterator[Json]:
    """The elementary transformations of an entry, the first applied first; of a bijection those of its forward direction."""
    if depth > _MOST_NESTED:
        raise ValueError(f"wanted transformations nested {_MOST_NESTED} deep at most, got more")
    kind = item(entry, "type", str)
    if kind == "bijection":
        yield from _flattened(item(entry, "forward", dict), depth + 1)
    elif kind == "sequence":
        for step in item(entry, "transformations", list):
            yield from _flattened(mapping(step, "transformations"), depth + 1)
    else:
        yield entry


def _step_from_standard(folder: Path, step: Json, ndim: int) -> Tensor | Displacement:
    """One elementary transformation: a homogeneous matrix ``[D+1, D+1]`` or a displacement field."""
    kind = step["type"]
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    if kind == "identity":
        return matrix
    if kind in ("scale", "translation"):
        numbers = torch.tensor(numbers_of(item(step, kind, list), kind), dtype=torch.float64)
        if numbers.shape != (ndim,):
            raise ValueError(f"wanted {ndim} numbers of {kind!r}, got {tuple(numbers.shape)}")
        if kind == "scale":
            return torch.diag(torch.cat([numbers, torch.ones(1, dtype=torch.float64)]))
        matrix[:-1, -1] = numbers
        return matrix
    if kind in ("affine", "rotation"):
        columns = ndim + 1 if kind == "affine" else ndim
        found = matrix_of(item(step, kind, list))
        if tuple(found.shape) != (ndim, columns):
            raise ValueError(f"wanted a matrix [{ndim}, {columns}] of {kind!r}, got {tuple(found.shape)}")
        matrix[:-1, :columns] = found
        return matrix
    if kind == "mapAxis":
        return permutation(step, ndim)
    if kind == "byDimension":
        return by_dimension(step, ndim, lambda part, n: _linear(folder, part, n))
    if kind == "displacements":
        if step.get("interpolation", "linear") != "linear":
            raise ValueError(f"wanted a displacement field to be interpolated linearly, got {step['interpolation']!r}")
        return _read_field(folder, item(step, "path", str), ndim)
    raise ValueError(
        "wanted identity, scale, translation, rotation, affine, mapAxis, byDimension, displacements, sequence or bijection, "
        f"got the transformation {kind!r}; read it with a program that knows it"
    )


def _linear(folder: Path, entry: Json, ndim: int) -> Tensor | None:
    """The matrix ``[D+1, D+1]`` of a transformation of some axes; None where it bends."""
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    for step in _flattened(entry):
        found = None if step["type"] == "displacements" else _step_from_standard(folder, step, ndim)
        if not isinstance(found, Tensor):
            return None
        matrix = found @ matrix
    return matrix


def _read_field(folder: Path, path: str, ndim: int) -> Displacement:
    """The finest level of a displacement field: an image whose first or last axis is of type ``displacement``."""
    ome = mapping(read_node(folder, path, "group")["attributes"].get("ome"), f"{path} ome")
    multiscales = item(ome, "multiscales", list)
    if len(multiscales) != 1:
        raise ValueError(f"wanted one multiscale at {path!r}, got {len(multiscales)}")
    multiscale = mapping(multiscales[0], path)
    datasets, systems = item(multiscale, "datasets", list), item(multiscale, "coordinateSystems", list)
    if not datasets or not systems:
        raise ValueError(f"wanted a dataset and a coordinate system at {path!r}, got none")
    dataset = mapping(datasets[0], path)
    axes = [mapping(a, f"{path} axes") for a in item(mapping(systems[0], path), "axes", list)]
    component = [i for i, axis in enumerate(axes) if axis.get("type") == "displacement"]
    if component not in ([0], [ndim]) or len(axes) != ndim + 1:
        raise ValueError(f"wanted {ndim} axes of space and one of displacement, first or last, at {path!r}, got {axes}")
    where = component[0]
    _, unit = _space_axes([a for i, a in enumerate(axes) if i != where])
    steps = [s for t in item(dataset, "coordinateTransformations", list) for s in _flattened(mapping(t, path))]
    spacing, origin = [1.0] * (ndim + 1), [0.0] * (ndim + 1)
    kinds = [s["type"] for s in steps]
    if kinds not in (["scale"], ["identity"], ["scale", "translation"]):
        raise ValueError(f"wanted a scale and a translation of the field {path!r}, got {kinds}")
    for step in steps:
        if step["type"] != "identity":
            numbers = numbers_of(item(step, step["type"], list), path)
            if len(numbers) != ndim + 1:
                raise ValueError(f"wanted {ndim + 1} numbers of {step['type']!r} at {path!r}, got {numbers}")
            spacing, origin = (numbers, origin) if step["type"] == "scale" else (spacing, numbers)
    data = read_array(folder, f"{path}/{item(dataset, 'path', str)}").movedim(where, 0).contiguous()  # [D, *S]
    if data.ndim != ndim + 1 or data.shape[0] != ndim:
        raise ValueError(f"wanted a field [{ndim}, ...] of {ndim} axes at {path!r}, got {tuple(data.shape)}")
    del spacing[where], origin[where]
    return Displacement(data, Grid(tuple(data.shape[1:]), tuple(spacing), tuple(origin), unit))


def _space_axes(axes: list[Any]) -> tuple[int, str]:
    """Number and common unit of the axes, which must be ``y, x`` or ``z, y, x``."""
    found = [mapping(axis, "axes") for axis in axes]
    names = tuple(axis.get("name") for axis in found)
    if names not in AXES.values():
        raise ValueError(f"wanted the axes y, x or z, y, x, got {names}")
    units = {canonical_unit(str(axis["unit"]) if axis.get("unit") is not None else None) for axis in found}
    if len(units) != 1:
        raise ValueError(f"wanted one unit on all axes, got {sorted(units)}")
    return len(names), units.pop()
