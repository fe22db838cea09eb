"""Groups and arrays of a Zarr store: written with what shows damage, read with every claim of the file checked first.

Nothing that a store says is trusted: shapes, numbers, codecs and paths are checked before any of them is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec

STORE_NAME = "transform.ome.zarr"
"""Name of the store inside the folder that ``regframe register -o`` writes."""

MAX_ELEMENTS = 1 << 28
"""Elements of one array that `read_array` is ready to allocate: 1 to 2 GiB, 64 times the nodes that a field of ours may have."""

_MAX_JSON = 1 << 28
"""Bytes of one ``zarr.json`` that are read; what is longer is no metadata of ours."""

_CODECS = {"bytes", "blosc", "zstd", "gzip", "crc32c"}
"""Codecs that are read: all of the Zarr standard, and none of them runs code."""

_FLAT_CHUNK, _DEEP_CHUNK = 512, 64
"""Nodes per axis of a chunk of a plane and of a volume: both are about a quarter of a million nodes, 1 MiB in float32."""

Json = dict[str, Any]


def find_store(path: str | Path) -> Path:
    """The folder of the store at ``path``, or of ``transform.ome.zarr`` in it; FileNotFoundError where neither is one."""
    path = Path(path)
    for folder in (path, path / STORE_NAME):
        if (folder / "zarr.json").is_file():
            return folder
    if not path.exists():
        raise FileNotFoundError(f"wanted a regframe store or a folder with {STORE_NAME} in it, got nothing at {path}")
    raise FileNotFoundError(
        f"wanted a regframe store or a folder with {STORE_NAME} in it, got {path} without zarr.json"
    )


@contextmanager
def named(folder: Path) -> Iterator[None]:
    """Errors of a reader of ``folder`` as ValueError whose sentence begins with its name."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {folder}: its metadata is not text; save the result again") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {folder}: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    """The path of the node ``name`` of the store; ValueError where it leads out of it."""
    steps = name.split("/") if name else []
    if any(step in ("", ".", "..") or re.search(r"[\\%:]", step) for step in steps):
        raise ValueError(f"wanted a path below the store, got {name!r}")
    node = folder.joinpath(*steps)
    if not node.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"wanted a path below the store, got {name!r}, which leads out of it")
    return node


def read_node(folder: Path, name: str, kind: Literal["group", "array"]) -> Json:
    """The ``zarr.json`` of one node, checked to be of Zarr 3 and of this kind; ``attributes`` are always there, if empty."""
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
    node = mapping(node, label)
    if node.get("zarr_format") != 3 or node.get("node_type") != kind:
        raise ValueError(
            f"wanted a Zarr 3 {kind} at {label!r}, got format {node.get('zarr_format')!r}, {node.get('node_type')!r}"
        )
    node["attributes"] = mapping(node.get("attributes", {}), f"{label} attributes")
    return node


def _no_constant(name: str) -> float:
    raise ValueError(f"wanted numbers in the metadata, got {name}")


def read_array(folder: Path, name: str, shape: Sequence[int] | None = None) -> Tensor:
    """A finite float array of the store; its size, codecs and chunk files are checked before anything is allocated."""
    node = read_node(folder, name, "array")
    found = item(node, "shape", list)
    chunk_grid = item(node, "chunk_grid", dict)
    chunks = item(mapping(chunk_grid.get("configuration"), f"{name} chunk_grid"), "chunk_shape", list)
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
    codecs = [item(mapping(c, f"{name} codecs"), "name", str) for c in item(node, "codecs", list)]
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


def write_array(
    group: zarr.Group, name: str, array: NDArray[Any], dimension_names: Sequence[str] | None = None
) -> None:
    """Write a float array in compressed chunks with checksums, its axes named where it is a field with components first."""
    ndim_space = array.ndim - 1 if dimension_names else array.ndim
    edge = _FLAT_CHUNK if ndim_space <= 2 else _DEEP_CHUNK
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


def mapping(value: Any, name: str) -> Json:
    """``value`` where it is a JSON object, else ValueError with its ``name``."""
    if not isinstance(value, dict):
        raise ValueError(f"wanted an object at {name!r}, got {type(value).__name__}")
    return value


def item(value: Json, key: str, kind: type) -> Any:
    """``value[key]`` where it is of type ``kind``, else ValueError; True and False are no whole numbers here."""
    if key not in value:
        raise ValueError(f"wanted the key {key!r}, got only {sorted(value)[:20]}")
    found = value[key]
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise ValueError(f"wanted {kind.__name__} at {key!r}, got {type(found).__name__}")
    return found


def numbers_of(values: list[Any], name: str) -> list[float]:
    """``values`` as floats where all are finite numbers, else ValueError with their ``name``."""
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"wanted numbers at {name!r}, got {values}")
    try:
        numbers = [float(v) for v in values]
    except OverflowError:
        numbers = [math.inf]
    if not all(math.isfinite(v) for v in numbers):
        raise ValueError(f"wanted finite numbers at {name!r}, got {values}")
    return numbers


def matrix_of(rows: list[Any]) -> Tensor:
    """Rows of numbers as a float64 matrix; ValueError where they differ in length or hold what is no finite number."""
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise ValueError("wanted a matrix as rows of one length, got something else")
    return torch.tensor([numbers_of(row, "matrix") for row in rows], dtype=torch.float64)
