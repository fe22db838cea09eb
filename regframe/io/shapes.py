"""Reads and writes GeoJSON files of shapes."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from .. import gate
from ..maps.shapes import Filler, Shapes
from . import imagej
from .tables import replace_file


def read_shapes(
    path: str | os.PathLike[str],
    unit: str = "px",
    pixel_origin: Literal["corner", "center"] = "corner",
    max_bytes: int = 1 << 30,
    empty: bool = False,
) -> Shapes:
    """Read a GeoJSON file (gzipped or not): a FeatureCollection, Feature, geometry, or QuPath's list of features.

    Args:
        path: the file.
        unit: what its coordinates are in; GeoJSON does not say.
        pixel_origin: where coordinates in pixels count from: the outer corner of the first pixel, or its centre.
        max_bytes: largest text to read; it takes about twenty times as much memory.
        empty: whether a document without any shape (nothing was annotated) is read too, not an error.

    A ring that is not closed is closed and a note says so. Raises FileNotFoundError, or ValueError with one sentence
    where it is no JSON, no GeoJSON, too large, nested too deep, without any shape (unless ``empty``), or where a coordinate is
    not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"wanted a GeoJSON file, got {str(path)!r}, which is not a file")
    return Shapes.from_geojson(_parse(path, max_bytes), unit, pixel_origin, path.name, empty)


def write_shapes(
    shapes: Shapes, path: str | os.PathLike[str], pixel_origin: Literal["corner", "center"] = "corner"
) -> None:
    """Write GeoJSON, one feature per line, ``.gz`` compressed; numbers read back the same.

    Coordinates in pixels count from ``pixel_origin``. The file is written aside and then renamed.
    """
    path = Path(path)
    if not bool(torch.isfinite(shapes.coords).all()):
        raise ValueError(f"wanted finite vertices to write {path.name!r}, got NaN or inf")
    try:
        data = b"".join(_pieces(Filler(shapes, pixel_origin), shapes.document)) + b"\n"
    except RecursionError as error:
        raise ValueError(f"wanted members that can be written as JSON, got {shapes.name!r} nested too deep") from error
    replace_file(path, gzip.compress(data, mtime=0) if path.suffix.lower() == ".gz" else data)


def _parse(path: Path, max_bytes: int) -> Any:
    if path.name.lower().endswith(imagej.SUFFIXES):
        raise ValueError(
            f"wanted a GeoJSON file, got {str(path)!r}; {imagej.OUTLINES}; points of ImageJ: `regframe apply points`"
        )
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        size = gate.unpacked_size(path, max_bytes) if packed else path.stat().st_size
        if size <= max_bytes:
            return json.loads(gate.read_plain(path).decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"wanted GeoJSON, got {str(path)!r} nested too deep to be one") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if str(error).startswith("wanted "):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"wanted a GeoJSON file, got {str(path)!r}, which cannot be read as JSON ({reason}); export it again"
        ) from error
    raise ValueError(
        f"wanted at most {max_bytes / 2**20:.4g} MiB of GeoJSON, got more in {str(path)!r}; "
        "split it, or raise max_bytes of regframe.read_shapes"
    )


def _pieces(filler: Filler, node: Any) -> Iterator[bytes]:
    """The document as JSON, feature by feature, so that only one is in memory with all its lists."""
    if isinstance(node, list):
        yield from _listed(map(filler.feature, node))
    elif node["type"] == "FeatureCollection" and "bbox" not in node:
        for i, (member, value) in enumerate(node.items()):
            yield b"{" if i == 0 else b", "
            yield _dumped(member) + b": "
            if member == "features":
                yield from _listed(map(filler.feature, value))
            else:
                yield _dumped(value)
        yield b"}"
    else:
        yield _dumped(filler.document(node))


def _listed(features: Iterator[Any]) -> Iterator[bytes]:
    yield b"["
    for i, feature in enumerate(features):
        yield b",\n" if i else b"\n"
        yield _dumped(feature)
    yield b"\n]"


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only its escape can say
        return json.dumps(value).encode()
