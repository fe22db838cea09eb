"""OME-Zarr 0.4, 0.5 and 0.6 (folders and zipped ones) and plain zarr arrays, through zarr 3."""

from __future__ import annotations

import dataclasses
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore, ZipStore

import regframe

from .checked import open_checked
from .ome import from_ome
from .raw import (
    FAULTS,
    Array,
    Raw,
    Region,
    Resolution,
    Stamp,
    check_chunk,
    check_count,
    check_unchanged,
    kept,
    place,
    readable,
    reduction,
    stamp,
)
from .units import CONTRADICTION, one_unit, ratio

_ROOTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
"""Files one of which lies at the root of a Zarr store, of format 3 or 2."""
_XML = 16 << 20
"""Bytes of OME-XML above which it is not read: a slide's own has kilobytes, a plate of thousands of images a few megabytes."""
_CHUNK = 1024
"""Pixels along y and x of the chunks that `write_zarr` writes: about a megabyte of 8 bits, one read of a viewer."""
_COARSEST = 512
"""Pixels along y and x within which the coarsest level that `write_zarr` writes lies, a thumbnail's size."""


def is_zarr(path: Path) -> bool:
    """Whether a folder or a zip file holds zarr metadata at its root."""
    if path.is_dir():
        return any((path / name).is_file() for name in _ROOTS)
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return bool(set(_ROOTS) & set(archive.namelist()))


def open_zarr(path: Path) -> Raw:
    """The metadata of every resolution; positions from their coordinate transformations."""
    with readable(path, "Zarr"):
        node, multiscales, attributes, prefix = _multiscales(path)
    if multiscales is None:
        if not isinstance(node, zarr.Array):
            raise ValueError(
                f"wanted an OME-Zarr image (a group with multiscales), got {str(path)!r}, whose members are "
                f"{', '.join(sorted(node.keys())) or 'none'}; name the folder of one image"
            )
        axes = _named(node)
        one = Resolution(tuple(node.shape), _chunk(path, node), ZarrRegion(path, _stamp(path), "", 0, axes))
        return Raw(axes, np.dtype(node.dtype), (one,), format="zarr array")
    with readable(path, "OME-Zarr"):
        datasets = multiscales["datasets"]
        check_count(path, len(datasets))
        axes_, moves = _axes(multiscales)
        letters = "".join(_letter(a) for a in axes_)
        index = {a: i for i, a in enumerate(letters) if a in "zyx"}
        arrays = [_array(node, _inside(path, dataset["path"])) for dataset in datasets]
        if any(len(letters) != array.ndim for array in arrays):
            raise ValueError(f"{len(letters)} axes are declared for an array of {arrays[0].ndim}")
        if len({np.dtype(array.dtype) for array in arrays}) > 1:
            raise ValueError(f"its levels are of several types: {sorted({str(a.dtype) for a in arrays})}")
        placed = [
            _placed((*dataset.get("coordinateTransformations", ()), *moves), len(letters)) for dataset in datasets
        ]
    at = list(index.values())
    if not all(np.isfinite(s[at]).all() and (s[at] > 0).all() and np.isfinite(o[at]).all() for s, o in placed):
        warnings.warn(f"{path.name} declares a spacing of {placed[0][0][at]}, which is none", stacklevel=5)
        placed, axes_ = [], [{} for _ in axes_]
    units = {a: str(axes_[i].get("unit") or "px") for a, i in index.items()}
    levels, unit = [], None
    for k, (array, dataset) in enumerate(zip(arrays, datasets, strict=True)):
        spacing: dict[str, float] = {}
        origin: dict[str, float] = {}
        if placed:
            spacing, unit = one_unit({a: float(placed[k][0][i]) for a, i in index.items()}, units)
            origin, _ = one_unit({a: float(placed[k][1][i]) for a, i in index.items()}, units)
        factor = reduction([arrays[0].shape[i] for i in at], [array.shape[i] for i in at])
        key = f"{prefix}/{_inside(path, dataset['path'])}".strip("/")
        read = ZarrRegion(path, _stamp(path, key), key, k, letters)
        levels.append(
            Resolution(
                tuple(array.shape), _chunk(path, array), read, spacing, origin, dict(zip(index, factor, strict=True))
            )
        )
    if unit is None:
        levels = [dataclasses.replace(level, spacing={}, origin={}) for level in levels]
    omero = attributes.get("omero") or {}
    shown = [channel for channel in omero.get("channels") or () if isinstance(channel, dict)]
    names, colors = [c.get("label") for c in shown], [str(c.get("color") or "").upper() for c in shown]
    raw = Raw(
        letters,
        np.dtype(arrays[0].dtype),
        tuple(levels),
        unit,
        tuple(map(str, names)) if names and all(names) else (),
        tuple(colors) if colors and all(re.fullmatch("[0-9A-F]{6}", c) for c in colors) else (),
        labels="image-label" in attributes and np.dtype(arrays[0].dtype).kind in "ui",
        format=f"OME-Zarr {_version(multiscales, attributes)}".strip(),
    )
    _check_companion(path, raw)
    return raw


@dataclasses.dataclass(frozen=True)
class ZarrRegion:
    """Regions of one array of a store: only the chunks that they touch are read.

    A chunk that is not there holds the fill value, as zarr says; one that is cut short or cannot be decoded is an error.
    """

    path: Path
    stamp: Stamp
    key: str
    level: int
    axes: str

    def __call__(self, region: Region) -> Array:
        """The values of one region."""
        with readable(self.path, "Zarr", place(self.level, self.axes, region)):
            return np.asarray(kept(_opened, self.path, self.stamp, self.key)[region])


def _opened(path: Path, identity: Stamp, key: str) -> Any:
    """One array of a store."""
    check_unchanged(_stamp(path, key), identity, "store")
    return open_checked(_store(path), key)


def _store(path: Path) -> Any:
    return LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r", read_only=True)


def _stamp(path: Path, key: str = "") -> Stamp:
    """The stamp of a zipped store; of a folder that of one node's metadata, for other nodes may change without harm."""
    node = path / key
    return stamp(next((node / name for name in _ROOTS if (node / name).is_file()), node) if path.is_dir() else path)


def _inside(path: Path, key: Any) -> str:
    """A path of the metadata, which may not leave the store; ValueError where it would."""
    parts = str(key).split("/")
    if not isinstance(key, str) or not key or ".." in parts or key.startswith("/") or "\\" in key or ":" in key:
        raise ValueError(
            f"wanted the paths of the levels inside the store, got {key!r} in the metadata of {str(path)!r}, which leads out "
            "of it; the file is damaged or made to read others"
        )
    return key.strip("/")


def _chunk(path: Path, array: Any) -> tuple[int, ...]:
    """Pixels per axis that are decoded together: an inner chunk where there are shards."""
    chunk = tuple(int(n) for n in array.chunks)
    check_chunk(path, "a chunk", chunk, array.shape, np.dtype(array.dtype).itemsize)
    return tuple(min(n, max(m, 1)) for n, m in zip(chunk, array.shape, strict=True))


def _named(array: Any) -> str:
    """One letter per axis as an array itself names them (zarr 3, or xarray's attribute); question marks where it does not."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    letters = "".join(str(n).lower() for n in names)
    return letters if len(letters) == array.ndim and len(names) == array.ndim else "?" * array.ndim


def _axes(multiscales: dict[str, Any]) -> tuple[list[dict[str, Any]], Sequence[Any]]:
    """The axes of the levels, and the transformations that follow those of each level.

    In 0.6 a level's transformations end in a named coordinate system, whose axes these are, and nothing follows. In 0.4 and
    0.5 the axes are the multiscale's, and so are the transformations that follow.
    """
    systems = multiscales.get("coordinateSystems")
    if systems:
        steps = multiscales["datasets"][0].get("coordinateTransformations") or [{}]
        output = steps[-1].get("output")
        name = output.get("name") if isinstance(output, dict) else output
        found = next((s for s in systems if s.get("name") == name), systems[0])
        return list(found["axes"]), ()
    axes = [{"name": a} if isinstance(a, str) else a for a in multiscales["axes"]]
    return axes, multiscales.get("coordinateTransformations", ())


def _placed(steps: Sequence[Any], ndim: int) -> tuple[Array, Array]:
    """Spacing and origin ``[ndim]`` that a chain of scales and translations comes to."""
    scale, shift = np.ones(ndim), np.zeros(ndim)
    for step in steps:
        if step["type"] == "sequence":
            more, offset = _placed(step["transformations"], ndim)
            scale, shift = scale * more, shift * more + offset
        elif step["type"] == "scale":
            scale, shift = scale * _vector(step["scale"], ndim), shift * _vector(step["scale"], ndim)
        elif step["type"] == "translation":
            shift = shift + _vector(step["translation"], ndim)
        elif step["type"] != "identity":
            raise ValueError(f"its transformation {step['type']!r} is neither scale nor translation")
    return scale, shift


def _vector(values: Any, ndim: int) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (ndim,):
        raise ValueError(f"a transformation has {vector.size} numbers for {ndim} axes")
    return vector


def _version(multiscales: dict[str, Any], attributes: dict[str, Any]) -> str:
    return str(attributes.get("version") or multiscales.get("version") or "")[:12]


def _check_companion(path: Path, raw: Raw) -> None:
    """ValueError where the OME-XML beside the levels (as bioformats2raw writes it) declares another pixel size."""
    try:
        if path.is_dir():
            beside = path / "OME" / "METADATA.ome.xml"
            xml = beside.read_bytes() if beside.is_file() and beside.stat().st_size <= _XML else b""
        else:
            with zipfile.ZipFile(path) as archive:
                found = [i for i in archive.infolist() if i.filename == "OME/METADATA.ome.xml" and i.file_size <= _XML]
                xml = archive.read(found[0]) if found else b""
        spacing, unit, _, _ = from_ome(xml.decode("utf-8", "replace")) if xml else ({}, None, (), ())
    except FAULTS:
        return  # a companion that cannot be read declares nothing
    for axis in "yx":
        own = raw.levels[0].spacing.get(axis)
        if own is None or axis not in spacing or unit is None or raw.unit is None:
            continue
        factor = ratio(unit, raw.unit)
        if factor is None:
            continue
        if abs(own / (spacing[axis] * factor) - 1) > CONTRADICTION:
            short = regframe.canonical_unit(raw.unit)
            raise ValueError(
                f"wanted one pixel size in {str(path)!r}, got {own:.6g} {short} in its OME-Zarr metadata and "
                f"{spacing[axis] * factor:.6g} {short} in OME/METADATA.ome.xml (axis {axis}); correct one of them"
            )


def write_zarr(path: Path, image: regframe.Image) -> None:
    """OME-Zarr 0.5 with a pyramid, halved in y and x until both are within `_COARSEST` pixels.

    Intensities are averaged over 2 × 2 pixels, of labels every second pixel is kept; each level states where its
    pixels are.
    """
    group: Any = zarr.open_group(LocalStore(path), mode="w", zarr_format=3)
    array: Array = image.data.detach().cpu().numpy()  # [C, *S]
    axes, labels = ["c", *image.grid.axes], image.labels
    unit = regframe.OME_UNITS.get(image.grid.unit)
    space = {"type": "space", **({"unit": unit} if unit else {})}
    declared = [{"name": axis, **({"type": "channel"} if axis == "c" else space)} for axis in axes]
    datasets: list[dict[str, Any]] = []
    step, first = list(image.grid.spacing), list(image.grid.origin)
    while True:
        key = str(len(datasets))
        chunks = tuple(1 for _ in array.shape[:-2]) + tuple(min(_CHUNK, n) for n in array.shape[-2:])
        stored = group.create_array(
            key, shape=array.shape, dtype=array.dtype, chunks=chunks, dimension_names=axes,
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=array.dtype.itemsize),
        )  # fmt: skip
        stored[...] = array
        transformations = [
            {"type": "scale", "scale": [1.0, *step]},
            {"type": "translation", "translation": [0.0, *first]},
        ]
        datasets.append({"path": key, "coordinateTransformations": transformations})
        if max(array.shape[-2:]) <= _COARSEST:
            break
        if not labels:
            first[-2:] = [
                o + s / 2 if n > 1 else o for o, s, n in zip(first[-2:], step[-2:], array.shape[-2:], strict=True)
            ]
        array = array[..., ::2, ::2] if labels else _halved(array)
        step[-2:] = [s * 2 for s in step[-2:]]
    multiscale = {"name": image.name, "axes": declared, "datasets": datasets, "type": "nearest" if labels else "mean"}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale],
        "omero": {
            "channels": [
                {"label": channel, "color": "FFFFFF", "window": _window(array, i)}
                for i, channel in enumerate(image.channels)
            ]
        },
    }


def _window(array: Array, channel: int) -> dict[str, float]:
    low, high = float(array[channel].min()), float(array[channel].max())
    return {"min": low, "max": high, "start": low, "end": high}


def _halved(array: Array) -> Array:
    """Mean over 2 × 2 pixels of the last two axes, a last odd row or column by itself, in the array's own dtype."""
    n, m = array.shape[-2:]
    pad = [(0, 0)] * (array.ndim - 2) + [(0, n % 2), (0, m % 2)]
    whole = np.pad(array, pad, mode="edge").astype(np.float64)
    mean: Array = whole.reshape(*array.shape[:-2], (n + 1) // 2, 2, (m + 1) // 2, 2).mean(axis=(-3, -1))
    return (mean if array.dtype.kind == "f" else np.rint(mean)).astype(array.dtype)


def _multiscales(path: Path) -> tuple[Any, dict[str, Any] | None, dict[str, Any], str]:
    """The zarr node, its first multiscale image or None, the attributes that this stands in, and the node's path in the
    store."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other files beside the metadata and of formats not yet final
        node: Any = zarr.open(_store(path), mode="r")
        prefix = ""
        for _ in range(2):
            if not isinstance(node, zarr.Group):
                return node, None, {}, prefix
            attributes: dict[str, Any] = dict(node.attrs)
            ome = attributes.get("ome", attributes)
            if ome.get("multiscales"):
                return node, ome["multiscales"][0], ome, prefix
            if "0" not in node:  # bioformats2raw keeps its images in numbered groups
                return node, None, {}, prefix
            node, prefix = node["0"], f"{prefix}/0"
    return node, None, {}, prefix


def _array(node: Any, key: str) -> Any:
    array = node[key]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{key} is not an array")
    return array


def _letter(axis: dict[str, Any]) -> str:
    if axis.get("type") == "channel":
        return "c"
    name = str(axis["name"]).lower()
    return name if len(name) == 1 else "?"
