"""OME-Zarr 0.4 and 0.5 (folders and zipped ones) and plain zarr arrays, through zarr 3."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore, ZipStore

from .raw import Array, Raw, check_level, reduction, unreadable
from .tiff import one_unit
from .units import to_ngff

_FAULTS = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, AttributeError)


def is_zarr(path: Path) -> bool:
    """Whether a folder or a zip file holds zarr metadata at its root."""
    names = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
    if path.is_dir():
        return any((path / name).is_file() for name in names)
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return bool(set(names) & set(archive.namelist()))


def open_zarr(path: Path, level: int) -> Raw:
    """The metadata of one resolution; positions from its coordinate transformations."""
    try:
        node, multiscales, omero = _multiscales(path)
    except _FAULTS as error:
        raise unreadable(path, "Zarr", error) from error
    if multiscales is None:
        if not isinstance(node, zarr.Array):
            raise ValueError(
                f"wanted an OME-Zarr image (a group with multiscales), got {str(path)!r}, whose members are "
                f"{', '.join(sorted(node.keys())) or 'none'}; name the folder of one image"
            )
        check_level(path, level, 1)
        return Raw(tuple(node.shape), np.dtype(node.dtype), "?" * node.ndim, _reader(path, node), {}, {}, {})
    try:
        datasets = multiscales["datasets"]
        check_level(path, level, len(datasets))
        axes = [{"name": a} if isinstance(a, str) else a for a in multiscales["axes"]]
        array, full = _array(node, datasets[level]["path"]), _array(node, datasets[0]["path"])
        letters = "".join(_letter(a) for a in axes)
        if len(letters) != array.ndim:
            raise ValueError(f"{len(letters)} axes are declared for an array of {array.ndim}")
        scale, shift = np.ones(array.ndim), np.zeros(array.ndim)
        steps = (
            *datasets[level].get("coordinateTransformations", ()),
            *multiscales.get("coordinateTransformations", ()),
        )
        for step in steps:
            if step["type"] == "scale":
                scale, shift = scale * step["scale"], shift * step["scale"]
            elif step["type"] == "translation":
                shift = shift + step["translation"]
            elif step["type"] != "identity":
                raise ValueError(f"its transformation {step['type']!r} is neither scale nor translation")
    except ValueError as error:
        if "wanted" in str(error):
            raise
        raise unreadable(path, "OME-Zarr", error) from error
    except _FAULTS as error:
        raise unreadable(path, "OME-Zarr", error) from error
    index = {a: i for i, a in enumerate(letters) if a in "zyx"}
    if not all(np.isfinite(scale[i]) and scale[i] > 0 and np.isfinite(shift[i]) for i in index.values()):
        warnings.warn(f"{path.name} declares a spacing of {scale[list(index.values())]}, which is none", stacklevel=5)
        scale, shift, axes = np.ones(array.ndim), np.zeros(array.ndim), [{} for _ in axes]
    units = {a: str(axes[i].get("unit") or "px") for a, i in index.items()}
    spacing, unit = one_unit({a: float(scale[i]) for a, i in index.items()}, units)
    origin, _ = one_unit({a: float(shift[i]) for a, i in index.items()}, units)
    factor = reduction([full.shape[i] for i in index.values()], [array.shape[i] for i in index.values()])
    names = [channel.get("label") for channel in omero.get("channels", ())]
    return Raw(
        tuple(array.shape),
        np.dtype(array.dtype),
        letters,
        _reader(path, array),
        spacing,
        origin,
        dict(zip(index, factor, strict=True)),
        unit,
        tuple(map(str, names)) if names and all(names) else (),
        levels=len(datasets),
    )


def write_zarr(
    path: Path,
    array: Array,
    axes: str,
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    unit: str,
    channels: tuple[str, ...],
    labels: bool,
    name: str,
) -> None:
    """OME-Zarr 0.5 with a pyramid: ``array`` ``[c, (z,) y, x]``, halved in y and x until both are within 512 pixels.

    Intensities are averaged over 2 × 2 pixels, of labels every second pixel is kept; each level states where its
    pixels are.
    """
    group: Any = zarr.open_group(LocalStore(path), mode="w", zarr_format=3)
    declared: list[dict[str, Any]] = []
    for axis in axes:
        entry = {"name": axis, "type": "channel" if axis == "c" else "space"}
        if axis != "c" and to_ngff(unit):
            entry["unit"] = str(to_ngff(unit))
        declared.append(entry)
    datasets: list[dict[str, Any]] = []
    step, first = list(spacing), list(origin)
    while True:
        key = str(len(datasets))
        chunks = tuple(1 for _ in array.shape[:-2]) + tuple(min(1024, n) for n in array.shape[-2:])
        stored = group.create_array(
            key, shape=array.shape, dtype=array.dtype, chunks=chunks, dimension_names=list(axes),
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=array.dtype.itemsize),
        )  # fmt: skip
        stored[...] = array
        transformations = [
            {"type": "scale", "scale": [1.0, *step]},
            {"type": "translation", "translation": [0.0, *first]},
        ]
        datasets.append({"path": key, "coordinateTransformations": transformations})
        if max(array.shape[-2:]) <= 512:
            break
        if not labels:
            first[-2:] = [
                o + s / 2 if n > 1 else o for o, s, n in zip(first[-2:], step[-2:], array.shape[-2:], strict=True)
            ]
        array = array[..., ::2, ::2] if labels else _halved(array)
        step[-2:] = [s * 2 for s in step[-2:]]
    multiscale = {"name": name, "axes": declared, "datasets": datasets, "type": "nearest" if labels else "mean"}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale],
        "omero": {
            "channels": [
                {"label": channel, "color": "FFFFFF", "window": _window(array, i)} for i, channel in enumerate(channels)
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


def _multiscales(path: Path) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
    """The zarr node, its first multiscale image if it has one, and its channel metadata."""
    store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r", read_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other files beside the metadata and of formats not yet final
        node: Any = zarr.open(store, mode="r")
        for _ in range(2):
            if not isinstance(node, zarr.Group):
                return node, None, {}
            attributes: dict[str, Any] = dict(node.attrs)
            ome = attributes.get("ome", attributes)
            if ome.get("multiscales"):
                return node, ome["multiscales"][0], ome.get("omero", {})
            if "0" not in node:  # bioformats2raw keeps its images in numbered groups
                return node, None, {}
            node = node["0"]
    return node, None, {}


def _array(node: Any, key: str) -> Any:
    array = node[key]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{key} is not an array")
    return array


def _reader(path: Path, array: Any) -> Any:
    def read() -> Array:
        try:
            return np.asarray(array[...])
        except _FAULTS as error:
            raise unreadable(path, "Zarr", error) from error

    return read


def _letter(axis: dict[str, Any]) -> str:
    if axis.get("type") == "channel":
        return "c"
    name = str(axis["name"]).lower()
    return name if len(name) == 1 else "?"
