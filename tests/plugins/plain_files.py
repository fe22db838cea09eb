"""Files written without the libraries that read them: OME-Zarr as JSON and raw bytes, OME-XML as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CASES = Path(__file__).parents[3] / "shared" / "cases"
"""The small inputs that were once misread, beside the checkout."""

Array = np.ndarray[Any, Any]

KINDS = {"t": "time", "c": "channel"}


def case(name: str) -> Path:
    """A file of the cases; skips the test where it is absent."""
    path = CASES / name
    if not path.exists():
        pytest.skip(f"needs the case {name}")
    return path


def axes_of(letters: str, units: Mapping[str, str | None]) -> list[dict[str, str]]:
    """The axes of an OME-Zarr image; ``units`` per spatial axis, None for an axis without."""
    out = []
    for a in letters:
        unit = units.get(a)
        out.append({"name": a, "type": KINDS.get(a, "space"), **({"unit": unit} if unit is not None else {})})
    return out


def multiscale(
    letters: str,
    scales: Sequence[Mapping[str, float]],
    units: Mapping[str, str | None],
    shifts: Sequence[Mapping[str, float]] = (),
    **extra: Any,
) -> dict[str, Any]:
    """The entry of an image of OME-Zarr 0.4 whose levels lie in the arrays ``0``, ``1``, …"""
    datasets = []
    for k, scale in enumerate(scales):
        moves: list[dict[str, Any]] = [{"type": "scale", "scale": [scale.get(a, 1.0) for a in letters]}]
        if shifts:
            moves.append({"type": "translation", "translation": [shifts[k].get(a, 0.0) for a in letters]})
        datasets.append({"path": str(k), "coordinateTransformations": moves})
    return {"version": "0.4", "axes": axes_of(letters, units), "datasets": datasets, **extra}


def group(path: Path, attributes: Mapping[str, Any] | None = None) -> Path:
    """A group of zarr format 2."""
    path.mkdir(parents=True, exist_ok=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    if attributes is not None:
        (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def array(path: Path, values: Array, order: str = "C") -> None:
    """An array of zarr format 2 in one uncompressed chunk, in C or Fortran order."""
    path.mkdir(parents=True)
    header = {
        "zarr_format": 2, "shape": values.shape, "chunks": values.shape, "dtype": values.dtype.str, "compressor": None,
        "fill_value": 0, "order": order, "filters": None,
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(header))
    (path / ".".join("0" * values.ndim)).write_bytes(values.tobytes(order=order))  # type: ignore[arg-type]


def image(
    path: Path,
    levels: Sequence[Array],
    letters: str,
    scales: Sequence[Mapping[str, float]],
    units: Mapping[str, str | None],
    **options: Any,
) -> Path:
    """An OME-Zarr image; options are ``order``, ``omero``, ``shifts`` and fields of the multiscale."""
    order, omero = options.pop("order", "C"), options.pop("omero", None)
    entry = multiscale(letters, scales, units, **options)
    group(path, {"multiscales": [entry], **({"omero": {"channels": omero}} if omero else {})})
    for k, level in enumerate(levels):
        array(path / str(k), level, order)
    return path


def ome_xml(images: Sequence[Mapping[str, Any]]) -> str:
    """OME-XML of several images: ``name``, attributes of Pixels in ``pixels``, and of each Channel in ``channels``."""
    text = []
    for i, one in enumerate(images):
        pixels = " ".join(f'{k}="{v}"' for k, v in one["pixels"].items())
        channels = "".join(
            f"<Channel ID='Channel:{i}:{k}' " + " ".join(f'{n}="{v}"' for n, v in c.items()) + "/>"
            for k, c in enumerate(one.get("channels", ()))
        )
        body = f'<Pixels ID="Pixels:{i}" {pixels}>{channels}<TiffData IFD="{i}" PlaneCount="1"/></Pixels>'
        text.append(f'<Image ID="Image:{i}" Name="{one["name"]}">{body}</Image>')
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{schema}">{"".join(text)}</OME>'
