"""Groups and arrays of a Zarr store: written with checksums, and read with every statement of the file checked first.

Nothing in a store is trusted: shapes, numbers, codecs and paths are checked before any of them is used.
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

from ..gate.zarrs import open_gated, store_at

STORE_NAME = "transform.ome.zarr"
"""Name of the store in the folder that ``regframe register -o`` writes."""

MAX_ELEMENTS = 1 << 28
"""Largest number of elements of an array that `read_array` allocates: 1 to 2 GiB, 64 times the nodes of the largest field that
regframe writes."""

_MAX_JSON = 1 << 28
"""Largest number of bytes of a ``zarr.json`` that is read; regframe's own are far smaller."""

_OVERHEAD = 1 << 20
"""Bytes that a chunk may have beside twice its numbers."""

_CODECS = {"bytes", "blosc", "zstd", "gzip", "crc32c"}
"""Codecs that are read: those of the Zarr standard, none of which runs code."""

_FLAT_CHUNK, _DEEP_CHUNK = 512, 64
"""Nodes per axis of a chunk, in 2D and in 3D: both give about a quarter of a million nodes, 1 MiB in float32."""

Json = dict[str, Any]


def find_store(path: str | Path) -> Path:
    """The folder of the store at ``path``, or of ``transform.ome.zarr`` inside it; FileNotFoundError where neither exists."""
    path = Path(path)
    for folder in (path, path / STORE_NAME):
        if (folder / "zarr.json").is_file():
            return folder
    if not path.exists():
        raise FileNotFoundError(f"wanted a result of regframe, got nothing at {path}")
    raise FileNotFoundError(
        f"wanted a result of regframe, got {path}, which holds no map; name the folder that `regframe register … -o FOLDER` "
        "wrote, or a saved NAME.ome.zarr"
    )


@contextmanager
def named(folder: Path) -> Iterator[None]:
    """Turns errors of a reader of ``folder`` into a ValueError whose sentence begins with the folder's name."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {folder}: its metadata is not text; save the result again") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {folder}: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    """Path of the node ``name`` of the store; ValueError where it leads outside the store."""
    steps = name.split("/") if name else []
    if any(step in ("", ".", "..") or re.search(r"[\\%:]", step) for step in steps):
        raise ValueError(f"wanted a path below the store, got {name!r}")
    node = folder.joinpath(*steps)
    if not node.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"wanted a path below the store, got {name!r}, which leads out of it")
    return node


def read_node(folder: Path, name: str, kind: Literal["group", "array"]) -> Json:
    """The content of one node's ``zarr.json``, checked to be of Zarr 3 and of this kind, with ``attributes`` always present."""
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
    """A float array of the store, all finite; size, codecs and chunk files are checked before memory is allocated."""
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
        most = 2 * math.prod(chunks) * 8 + _OVERHEAD
        array = open_gated(store_at(_inside(folder, name), most))[...]
    except Exception as error:  # codecs raise errors of many types; all of them mean damaged data
        raise ValueError(f"wanted sound data in {name!r}, got {error}; save the result again") from error
    data = np.asarray(array)
    if not np.isfinite(data).all():
        raise ValueError(f"wanted finite values in {name!r}, got NaN or inf: a chunk is missing or damaged")
    return torch.from_numpy(np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("=")))


def write_array(
    group: zarr.Group, name: str, array: NDArray[Any], dimension_names: Sequence[str] | None = None
) -> None:
    """Write a float array in compressed chunks with checksums; axes are named where names are given."""
    ndim_space = array.ndim - 1 if dimension_names else array.ndim
    edge = _FLAT_CHUNK if ndim_space <= 2 else _DEEP_CHUNK
    out = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=tuple(max(1, min(n, edge)) for n in array.shape),
        # a lost chunk then reads as NaN, which `load` refuses; a damaged chunk fails its checksum
        fill_value=float("nan"),
        compressors=[
            BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=array.dtype.itemsize),
            Crc32cCodec(),
        ],
        dimension_names=list(dimension_names) if dimension_names else None,
    )
    out[...] = array


def mapping(value: Any, name: str) -> Json:
    """``value`` if it is a JSON object; else ValueError that names it ``name``."""
    if not isinstance(value, dict):
        raise ValueError(f"wanted an object at {name!r}, got {type(value).__name__}")
    return value


def item(value: Json, key: str, kind: type) -> Any:
    """``value[key]`` if it is of type ``kind``, else ValueError; True and False do not count as integers."""
    if key not in value:
        raise ValueError(f"wanted the key {key!r}, got only {sorted(value)[:20]}")
    found = value[key]
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise ValueError(f"wanted {kind.__name__} at {key!r}, got {type(found).__name__}")
    return found


def numbers_of(values: list[Any], name: str) -> list[float]:
    """``values`` as floats if all are finite numbers; else ValueError that names them ``name``."""
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
    """Rows of numbers as a float64 matrix; ValueError where rows differ in length or hold anything but finite numbers."""
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise ValueError("wanted a matrix as rows of one length, got something else")
    return torch.tensor([numbers_of(row, "matrix") for row in rows], dtype=torch.float64)
