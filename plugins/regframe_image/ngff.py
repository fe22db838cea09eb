"""OME-Zarr 0.4, 0.5 and 0.6 (folders and zipped ones) and plain zarr arrays, through zarr 3."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import regframe

from .axes import letter
from .colour import RGB, is_picture
from .ome import Declared, from_ome, stated
from .raw import (
    FAULTS,
    Array,
    Place,
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
from .series import Found, choose, listed, only_series, role_of, told
from .units import CONTRADICTION, calibrate, ratio

if TYPE_CHECKING:
    import zarr
else:
    zarr = regframe.later.module("zarr")

_ROOTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
"""Files one of which lies at the root of a Zarr store, of format 3 or 2."""
_XML = 16 << 20
"""Bytes of OME-XML above which it is not read: a slide's own has kilobytes, a plate of thousands of images a few megabytes."""
_DEPTH = 3
"""Groups within groups in which images are looked for: plates keep theirs in row/column/field."""
_MEMBERS = 400
"""Images of a store that are listed at most: a plate of 384 wells, each opened to learn its size."""
_AT_ONCE = 16
"""Chunks of a remote store that are asked for at the same time: an answer takes tens of milliseconds, whatever its size."""
_OVERHEAD = 1 << 20
"""Bytes that a chunk may have beside twice its pixels: headers, and the index of a shard."""
_CHUNK = 1024
"""Pixels along y and x of the chunks that `write_zarr` writes: about a megabyte of 8 bits, one read of a viewer."""
_COARSEST = 512
"""Pixels along y and x within which the coarsest level that `write_zarr` writes lies, a thumbnail's size."""

_LPS = {"x": "right-to-left", "y": "anterior-to-posterior", "z": "inferior-to-superior"}
"""Orientations of the axes (RFC 4) in which volumes of other formats are read."""


def is_zarr(path: Place) -> bool:
    """Whether a folder, a zip file or what lies under an address holds zarr metadata at its root."""
    if isinstance(path, regframe.Remote):
        return any((path / name).is_file() for name in _ROOTS)
    if path.is_dir():
        return any((path / name).is_file() for name in _ROOTS)
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return bool(set(_ROOTS) & set(archive.namelist()))


def open_zarr(path: Place, wanted: int | str | None = None) -> Raw:
    """The metadata of every resolution of one image; positions from their coordinate transformations.

    Args:
        path: of the store.
        wanted: number, name or path of the image where there are several; None takes the scan.
    """
    with readable(path, "Zarr"):
        node, members = _members(path)
    if not members:
        if not isinstance(node, zarr.Array):
            raise ValueError(
                f"wanted an OME-Zarr image (a group with multiscales), got {str(path)!r}, whose members are "
                f"{_names_in(path, node)}; name the folder of one image"
            )
        axes = _named(node)
        one = Resolution(tuple(node.shape), _chunk(path, node), ZarrRegion(path, _stamp(path), "", 0, axes))
        return Raw(axes, np.dtype(node.dtype), (one,), format="zarr array")
    images = _companion(path)
    with readable(path, "OME-Zarr"):
        found = [_found(path, member, images, len(members)) for member in members] if len(members) > 1 else []
        index = choose(found, wanted, path.name) if found else only_series(wanted, path.name)
        raw = _image(path, members[index])
    beside = _beside(images, members[index], len(members))
    _check_companion(path, raw, beside)
    raw = _calibrated(path, raw, beside)
    raw = dataclasses.replace(
        raw,
        channels=_names(raw, beside),
        colors=raw.colors or beside.colors,
        waves=raw.waves or beside.waves,
        stage=beside.stage,
    )
    if not found:
        return raw
    return dataclasses.replace(
        raw, series=listed(found, index), said=(*raw.said, *told(found, index, wanted, path.name))
    )


@dataclasses.dataclass(frozen=True)
class _Member:
    """A multiscale image of a store.

    Args:
        group: that holds its levels.
        prefix: path of this group in the store.
        multiscales: its entry in the metadata.
        attributes: that the entry stands in.
        ids: whether it is a segmentation that lies beside an image.
        number: its place among the images that the OME-XML beside describes, None where only its path tells.
    """

    group: Any
    prefix: str
    multiscales: dict[str, Any]
    attributes: dict[str, Any]
    ids: bool = False
    number: int | None = None


def _image(path: Place, member: _Member) -> Raw:
    """The levels of one multiscale image."""
    multiscales, node = member.multiscales, member.group
    datasets = multiscales["datasets"]
    check_count(path, len(datasets))
    axes, moves = _axes(multiscales)
    letters = "".join(letter(a["name"], str(a.get("type"))) for a in axes)
    arrays = [_array(node, _inside(path, dataset["path"])) for dataset in datasets]
    if any(len(letters) != array.ndim for array in arrays):
        raise ValueError(f"{len(letters)} axes are declared for an array of {arrays[0].ndim}")
    if len({np.dtype(array.dtype) for array in arrays}) > 1:
        raise ValueError(f"its levels are of several types: {sorted({str(a.dtype) for a in arrays})}")
    placed = [_placed((*dataset.get("coordinateTransformations", ()), *moves), len(letters)) for dataset in datasets]
    bare = not moves and not any(dataset.get("coordinateTransformations") for dataset in datasets)  # before 0.4
    spatial = {a: i for i, a in enumerate(letters) if a in "zyx"}
    numbers = [
        ({a: float(s[i]) for a, i in spatial.items()}, {a: float(o[i]) for a, i in spatial.items()}) for s, o in placed
    ]
    counted = [a for a in "zyx" if a in spatial and (a in "yx" or arrays[0].shape[spatial[a]] > 1)]
    words = {a: None if axes[i].get("unit") is None else str(axes[i]["unit"]) for a, i in spatial.items()}
    size = calibrate(numbers[0][0], words, counted, path.name)
    levels = []
    for k, (array, dataset) in enumerate(zip(arrays, datasets, strict=True)):
        sides = [[one.shape[i] for i in spatial.values()] for one in (arrays[0], array)]
        factor = dict(zip(spatial, reduction(*sides), strict=True))
        if bare:
            numbers[k] = factor, {a: (f - 1) / 2 for a, f in factor.items()}
        key = f"{member.prefix}/{_inside(path, dataset['path'])}".strip("/")
        read = ZarrRegion(path, _stamp(path, key), key, k, letters)
        first = {a: v if np.isfinite(v) else 0.0 for a, v in size.origin(numbers[k][1], factor).items()}
        step = size.spacing(numbers[k][0], factor)
        levels.append(Resolution(tuple(array.shape), _chunk(path, array), read, step, first, factor))
    omero = member.attributes.get("omero")
    listed_ = omero.get("channels") if isinstance(omero, dict) else ()
    shown = [c for c in (listed_ if isinstance(listed_, list) else ()) if isinstance(c, dict)]
    names, colors = [c.get("label") for c in shown], [str(c.get("color") or "").upper() for c in shown]
    dtype = np.dtype(arrays[0].dtype)
    return Raw(
        letters,
        dtype,
        tuple(levels),
        size.unit,
        tuple(map(str, names)) if names and all(names) else (),
        tuple(colors) if colors and all(re.fullmatch("[0-9A-F]{6}", c) for c in colors) else (),
        labels=(member.ids or "image-label" in member.attributes) and dtype.kind in "ui",
        format=f"OME-Zarr {_version(multiscales, member.attributes)}".strip(),
        guessed=tuple(size.filled),
        doubts=size.doubts,
        said=_turned(axes, path.name) if "z" in counted else (),
        notes=size.notes,
        waves=stated([(_wave(c.get("excitationWave")), _wave(c.get("emissionWave"))) for c in shown]),
    )


def _wave(value: Any) -> float | None:
    """A wavelength in nm, as OMERO writes it; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e6 else None


def _turned(axes: list[dict[str, Any]], name: str) -> tuple[str, ...]:
    """That a volume's axes run otherwise through the body (RFC 4) than those of NIfTI and NRRD, which are turned to LPS."""
    runs = {}
    for axis in axes:
        said = axis.get("orientation")
        value = said.get("value") if isinstance(said, dict) else said
        if isinstance(value, str) and str(axis.get("name")).lower() in _LPS:
            runs[str(axis["name"]).lower()] = value.strip().lower()
    if not runs or runs.items() <= _LPS.items():
        return ()
    told = ", ".join(f"{a} {value}" for a, value in runs.items())
    return (
        f"{name} declares that its axes run {told}; its pixels are taken as they are stored, while NIfTI and NRRD volumes are "
        "turned so that x runs to the left, y to the back and z upwards",
    )


def _found(path: Place, member: _Member, images: list[Declared], count: int) -> Found:
    """A multiscale image among others, from the metadata of its finest level."""
    axes, moves = _axes(member.multiscales)
    first = member.multiscales["datasets"][0]
    shape = _array(member.group, _inside(path, first["path"])).shape
    letters = [letter(a["name"], str(a.get("type"))) for a in axes]
    scale, _ = _placed((*first.get("coordinateTransformations", ()), *moves), len(letters))
    name = str(member.multiscales.get("name") or "").strip("/ ")
    if name in ("", "0", member.prefix.strip("/")):  # writers repeat the path
        name = _beside(images, member, count).name or (member.prefix.strip("/") if member.ids else name)
    return Found(
        name,
        dict(zip(letters, map(int, shape), strict=True)),
        {a: float(s) for a, s in zip(letters, scale, strict=True) if a in "zyx"},
        {a: str(d["unit"]) for a, d in zip(letters, axes, strict=True) if a in "zyx" and d.get("unit")},
        "ids" if member.ids else role_of(name),
        member.prefix.strip("/"),
    )


def _names(raw: Raw, beside: Declared) -> tuple[str, ...]:
    """The names of the channels; of a picture, as their display colours or the OME-XML beside tell one, its colours."""
    names, colors = raw.channels or beside.channels, raw.colors or beside.colors
    channels = sum(raw.levels[0].shape[i] for i, a in enumerate(raw.axes) if a in "cs")
    if channels == 3 and (beside.samples == (3,) or is_picture(names, colors, raw.dtype)):
        return RGB
    return names


@dataclasses.dataclass(frozen=True)
class ZarrRegion:
    """Regions of one array of a store: only the chunks that they touch are read.

    A chunk that is not there holds the fill value, as zarr says; one that is cut short or cannot be decoded is an error.
    """

    path: Place
    stamp: Stamp
    key: str
    level: int
    axes: str

    def __call__(self, region: Region) -> Array:
        """The values of one region."""
        far = isinstance(self.path, regframe.Remote)
        together = zarr.config.set({"async.concurrency": _AT_ONCE}) if far else contextlib.nullcontext()
        with readable(self.path, "Zarr", place(self.level, self.axes, region)), together:
            return np.asarray(kept(_opened, self.path, self.stamp, self.key)[region])


def _opened(path: Place, identity: Stamp, key: str) -> Any:
    """One array of a store, of which no chunk is taken that is larger than it can be."""
    from regframe.gate.zarrs import open_gated, store_at

    check_unchanged(_stamp(path, key), identity, "store")
    array = open_gated(_store(path), key)
    most = 2 * math.prod(array.shards or array.chunks) * np.dtype(array.dtype).itemsize + _OVERHEAD
    return open_gated(
        regframe.RemoteZarr(path, most) if isinstance(path, regframe.Remote) else store_at(path, most), key
    )


def _store(path: Place) -> Any:
    from regframe.gate.zarrs import store_at

    if isinstance(path, regframe.Remote):
        return regframe.RemoteZarr(path)
    return store_at(path)


def _names_in(path: Place, node: Any) -> str:
    """Names of the members of a group, where the store lists them."""
    listed_ = not isinstance(path, regframe.Remote) or path.lists
    return ", ".join(sorted(node.keys()) if listed_ else ()) or "none"


def _stamp(path: Place, key: str = "") -> Stamp:
    """The stamp of a zipped store; of a folder that of one node's metadata, for other nodes may change without harm."""
    node = path / key
    if isinstance(node, regframe.Remote):
        return stamp(next((node / name for name in _ROOTS if (node / name).is_file()), node))
    return stamp(next((node / name for name in _ROOTS if (node / name).is_file()), node) if path.is_dir() else path)


def _inside(path: Place, key: Any) -> str:
    """A path of the metadata, which may not leave the store; ValueError where it would."""
    parts = str(key).split("/")
    if not isinstance(key, str) or not key or ".." in parts or key.startswith("/") or "\\" in key or ":" in key:
        raise ValueError(
            f"wanted the paths of the levels inside the store, got {key!r} in the metadata of {str(path)!r}, which leads out "
            "of it; the file is damaged or made to read others"
        )
    return key.strip("/")


def _chunk(path: Place, array: Any) -> tuple[int, ...]:
    """Pixels per axis that are decoded together: an inner chunk where there are shards."""
    from regframe.gate.zarrs import check_array

    chunk = tuple(int(n) for n in array.chunks)
    with readable(path, "Zarr"):
        check_array(array)
    check_chunk(path, "a chunk", chunk, array.shape, np.dtype(array.dtype).itemsize)
    return tuple(min(n, max(m, 1)) for n, m in zip(chunk, array.shape, strict=True))


def _named(array: Any) -> str:
    """One letter per axis as an array itself names them (zarr 3, or xarray's attribute); question marks where it does not."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    letters = "".join(letter(str(n)) for n in names)
    return letters if len(letters) == array.ndim else "?" * array.ndim


def _axes(multiscales: dict[str, Any]) -> tuple[list[dict[str, Any]], Sequence[Any]]:
    """The axes of the levels, and the transformations that follow those of each level.

    Before 0.3 the axes are always the same five. In 0.6 a level's transformations end in a named coordinate system, whose axes
    these are, and nothing follows. In 0.4 and 0.5 the axes are the multiscale's, and so are the transformations that follow.
    """
    systems = multiscales.get("coordinateSystems")
    if systems:
        steps = multiscales["datasets"][0].get("coordinateTransformations") or [{}]
        output = steps[-1].get("output")
        name = output.get("name") if isinstance(output, dict) else output
        found = next((s for s in systems if s.get("name") == name), systems[0])
        return list(found["axes"]), ()
    axes = [{"name": a} if isinstance(a, str) else a for a in multiscales.get("axes") or "tczyx"]
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


def _companion(path: Place) -> list[Declared]:
    """What the OME-XML beside the images declares, as bioformats2raw writes it; none where it cannot be read."""
    try:
        if isinstance(path, regframe.Remote):
            far = path / "OME" / "METADATA.ome.xml"
            xml = far.read_bytes(_XML) if far.is_file() else b""
        elif path.is_dir():
            beside = path / "OME" / "METADATA.ome.xml"
            regframe.gate.check_inside(beside, path)
            xml = beside.read_bytes() if beside.is_file() and beside.stat().st_size <= _XML else b""
        else:
            with zipfile.ZipFile(path) as archive:
                found = [i for i in archive.infolist() if i.filename == "OME/METADATA.ome.xml" and i.file_size <= _XML]
                xml = archive.read(found[0]) if found else b""
        return from_ome(xml.decode("utf-8", "replace")) if xml else []
    except regframe.RemoteError as error:
        if error.kind in ("network", "extra"):
            raise
        return []
    except FAULTS:
        return []


def _beside(images: list[Declared], member: _Member, count: int) -> Declared:
    """What the OME-XML beside declares of one of ``count`` images, by the number that is its path."""
    first = member.prefix.strip("/").partition("/")[0]
    if member.ids or not images:
        return Declared()
    if member.number is not None:
        return images[member.number] if member.number < len(images) else Declared()
    if not first.isdecimal():
        return images[0] if count == 1 else Declared()
    return images[int(first)] if int(first) < len(images) else Declared()


def _check_companion(path: Place, raw: Raw, beside: Declared) -> None:
    """ValueError where the OME-XML beside the levels declares another pixel size."""
    for axis in "yx":
        own, other = raw.levels[0].spacing.get(axis), beside.numbers.get(axis)
        if own is None or raw.unit in (None, "px") or not other or not math.isfinite(other):
            continue
        factor = ratio(beside.words.get(axis) or "", str(raw.unit))
        if factor is None:
            continue
        if abs(own / (abs(other) * factor) - 1) > CONTRADICTION:
            short = regframe.canonical_unit(raw.unit)
            raise ValueError(
                f"wanted one pixel size in {str(path)!r}, got {own:.6g} {short} in its OME-Zarr metadata and "
                f"{abs(other) * factor:.6g} {short} in OME/METADATA.ome.xml (axis {axis}); correct one of them"
            )


def _calibrated(path: Place, raw: Raw, beside: Declared) -> Raw:
    """The image with the pixel size of the OME-XML beside where its own metadata declare none, as programs before OME-Zarr 0.4
    left it."""
    first = raw.levels[0]
    if raw.unit not in (None, "px") or any(first.spacing.get(a, 1.0) != 1.0 for a in "yx"):
        return raw
    sizes = dict(zip(raw.axes, first.shape, strict=True))
    counted = [a for a in "zyx" if a in sizes and (a in "yx" or sizes[a] > 1)]
    size = calibrate(beside.numbers, beside.words, counted, path.name)
    if size.unit in (None, "px"):
        return raw
    one = size.spacing(beside.numbers, {})
    levels = tuple(
        dataclasses.replace(
            level,
            spacing={a: s * level.factor.get(a, 1.0) for a, s in one.items()},
            origin={a: s * (level.factor.get(a, 1.0) - 1) / 2 for a, s in one.items()},
        )
        for level in raw.levels
    )
    note = f"{path.name}: its pixel size is that of OME/METADATA.ome.xml, since its OME-Zarr metadata declare none"
    notes = (*raw.notes, *size.notes, note)
    return dataclasses.replace(
        raw, levels=levels, unit=size.unit, guessed=tuple(size.filled), doubts=(*raw.doubts, *size.doubts), notes=notes
    )


def write_zarr(path: Path, image: regframe.Image) -> None:
    """OME-Zarr 0.5 with a pyramid, halved in y and x until both are within `_COARSEST` pixels.

    Intensities are averaged over 2 × 2 pixels, of labels every second pixel is kept; each level states where its
    pixels are.
    """
    from zarr.codecs import BloscCodec
    from zarr.storage import LocalStore

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
    colors = ("FF0000", "00FF00", "0000FF") if image.channels == RGB else ("FFFFFF",) * len(image.channels)
    method = "every second pixel along y and x" if labels else "mean over 2 × 2 pixels in y and x"
    made = {"description": method, "method": "regframe", "version": regframe.__version__}
    kind = "nearest" if labels else "mean"
    multiscale = {"name": image.name, "axes": declared, "datasets": datasets, "type": kind, "metadata": made}
    group.attrs["regframe"] = {"complete": True, "version": regframe.__version__}  # a folder that may be replaced
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale],
        "omero": {
            "channels": [
                {"label": channel, "color": colors[i], "window": _window(array, i)}
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


def _members(path: Place) -> tuple[Any, list[_Member]]:
    """The zarr node at the root of a store, and its images: those of the root, or of the groups in it, in the order in which the
    store lists them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other files beside the metadata and of formats not yet final
        node: Any = zarr.open(_store(path), mode="r")
        found: list[_Member] = []
        if isinstance(node, zarr.Group):
            _collect(node, "", 0, found)
    return node, found


def _collect(node: Any, prefix: str, depth: int, found: list[_Member]) -> None:
    """Append the images of a group and of the groups in it, down to `_DEPTH`, at most `_MEMBERS`."""
    ome = _ome(node)
    here = [m for m in ome.get("multiscales") or () if isinstance(m, dict)]
    found.extend(_Member(node, prefix, one, ome) for one in here)
    if here:
        if depth == 0 and "labels" in node and isinstance(node["labels"], zarr.Group):
            inside: list[_Member] = []
            for key in _ome(node["labels"]).get("labels") or ():
                if isinstance(key, str) and key in node["labels"]:
                    _collect(node["labels"][key], f"labels/{key}", _DEPTH, inside)
            found.extend(dataclasses.replace(member, ids=True) for member in inside)
        return
    if depth == _DEPTH:
        return
    keys, told = _children(node, ome)
    for number, key in enumerate(keys):
        if len(found) < _MEMBERS and isinstance(child := node.get(key), zarr.Group):
            before = len(found)
            _collect(child, f"{prefix}/{key}", depth + key.count("/") + 1, found)
            if told:  # in the order of the images in the OME-XML beside
                found[before:] = [dataclasses.replace(member, number=number) for member in found[before:]]


def _ome(node: Any) -> dict[str, Any]:
    """The OME attributes of a group, where its version keeps them."""
    attributes: dict[str, Any] = dict(node.attrs)
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, dict) else {}


def _children(node: Any, ome: dict[str, Any]) -> tuple[list[str], bool]:
    """The groups that a group lists: the series of bioformats2raw, the wells of a plate, the fields of a well; else its numbered
    members in order. With them whether they are series, in the order of the OME-XML beside."""
    if "OME" in node and isinstance(node["OME"], zarr.Group):
        listed_ = _ome(node["OME"]).get("series")
        if isinstance(listed_, list) and listed_ and all(isinstance(key, str) and ".." not in key for key in listed_):
            return listed_, True
    for parent, member in (("plate", "wells"), ("well", "images")):
        if isinstance(ome.get(parent), dict):
            entries = ome[parent].get(member) or ()
            paths = [str(e["path"]) for e in entries if isinstance(e, dict) and "path" in e]
            return [path for path in paths if ".." not in path], False
    if not node.store.supports_listing:
        numbers = map(str, range(_MEMBERS))
        return list(itertools.takewhile(lambda k: isinstance(node.get(k), zarr.Group), numbers)), False
    return sorted((k for k in node.group_keys() if k.isdecimal()), key=int), False


def _array(node: Any, key: str) -> Any:
    array = node[key]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{key} is not an array")
    return array
