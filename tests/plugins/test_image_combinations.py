"""Axes × units × dtypes × photometric × layout: pixels, spacing and colours of over two thousand files, against what was written
and against libtiff, which decodes the TIFFs independently of tifffile."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import plain_files as plain
import pytest
import tifffile

import regframe as rf

Array = np.ndarray[Any, Any]

SIZES = {"t": 1, "c": 2, "z": 3, "y": 5, "x": 7}
STEPS = {"z": Fraction(3), "y": Fraction(1, 4), "x": Fraction(1, 2)}
METRES = {
    "µm": Fraction(1, 10**6), "nm": Fraction(1, 10**9), "mm": Fraction(1, 10**3), "Å": Fraction(1, 10**10),
    "dm": Fraction(1, 10), "in": Fraction(254, 10**4), "km": Fraction(1000), "\u03bcm": Fraction(1, 10**6),
    "micrometer": Fraction(1, 10**6), "angstrom": Fraction(1, 10**10), "decimeter": Fraction(1, 10),
}  # fmt: skip
KNOWN = {"nm": 1e-9, "µm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}
UNITS: list[dict[str, str]] = [
    *(dict.fromkeys("zyx", unit) for unit in METRES),
    {"z": "Å", "y": "nm", "x": "µm"},
    {"z": "mm", "y": "µm", "x": "nm"},
    {"z": "dm", "y": "\u03bcm", "x": "µm"},
]
"""Units per axis: all the same, and mixed."""
WORDS = [{"z": "slice", "y": "µm", "x": "µm"}, {"z": "µm", "y": "cubit", "x": "µm"}, dict.fromkeys("zyx", "pixel")]
"""Units of which some are no length."""
ADAPTER = rf.adapter("image")


@dataclass(frozen=True)
class Wanted:
    """What has to come out: pixels ``[c, (z,) y, x]``, spacing in metres, or in pixels where ``px``, and channel names."""

    pixels: Array
    spacing: tuple[float, ...]
    px: bool = False
    channels: tuple[str, ...] | None = None
    within: float = 0.0


def spacing_of(letters: str, units: dict[str, str]) -> tuple[tuple[float, ...], bool]:
    """The spacing that was declared along z, y, x, in metres; of an axis without a length that of x, or as many of these as the
    word says; True where no axis has a length, and then in pixels."""
    spatial = [a for a in "zyx" if a in letters and SIZES[a] > 1]
    if not any(units[a] in METRES for a in "yx"):
        return tuple(float(STEPS[a]) for a in spatial), True
    of_x = STEPS["x"] * METRES[units["x"]]
    count = {"slice": STEPS["z"], "cubit": Fraction(1)}
    read = [STEPS[a] * METRES[units[a]] if units[a] in METRES else of_x * count[units[a]] for a in spatial]
    return tuple(map(float, read)), False


def check(path: Path, wanted: Wanted) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the words are tested where few files are read
        image = ADAPTER.open(path)
    assert isinstance(image, rf.Image)
    found = image.data.numpy()
    assert found.shape == wanted.pixels.shape
    if wanted.within:
        assert np.abs(found.astype(float) - wanted.pixels.astype(float)).max() <= wanted.within
    else:
        assert found.dtype == wanted.pixels.dtype.newbyteorder("=")
        assert np.array_equal(found, wanted.pixels)
    assert (image.grid.unit == "px") is wanted.px
    metres = 1.0 if wanted.px else KNOWN[image.grid.unit]
    assert np.allclose(np.multiply(image.grid.spacing, metres), wanted.spacing, rtol=1e-9, atol=0)
    if wanted.channels is not None:
        assert image.channels == wanted.channels


def values(shape: list[int], dtype: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(2**31)), min(info.max, 2**31 - 1), shape).astype(dtype)


def canonical(array: Array, letters: str) -> Array:
    """``[c, (z,) y, x]`` of an array whose axes are ``letters``."""
    kept = [a for a in "tczyx" if a in letters]
    moved = array.transpose([letters.index(a) for a in kept])
    sizes = dict(zip(letters, array.shape, strict=True))
    return moved.reshape([sizes.get("c", 1), *(sizes[a] for a in "zyx" if a in letters and sizes[a] > 1)])


def libtiff(path: Path) -> Array:
    """The first page ``[y, x, 3]``, as libtiff displays it."""
    shown: Array = imagecodecs.tiff_decode(path.read_bytes(), index=0, asrgb=True)
    return shown[..., :3]


# ---- TIFF ----------------------------------------------------------------------------------------------------------------

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"compression": "zlib", "predictor": True},
    {"tile": (16, 16), "compression": "lzw"},
    {"rowsperstrip": 2, "byteorder": ">"},
]
OME_UNITS = [u for u in UNITS if not {"micrometer", "angstrom", "decimeter"} & set(u.values())] + WORDS


def declared(units: dict[str, str], letters: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for a in letters:
        if a in STEPS:
            out |= {f"PhysicalSize{a.upper()}": float(STEPS[a]), f"PhysicalSize{a.upper()}Unit": units[a]}
    return out


TYPES = ("u1", "u2", "i2", "f4")
GREYS = [
    (letters, units, dtype, layout)
    for letters, units, (i, dtype), layout in itertools.product(
        ("yx", "zyx", "cyx", "czyx", "tczyx"), OME_UNITS, enumerate(TYPES), range(4)
    )
    if (i + layout) % 4 < 3
]


def test_greys(tmp_path: Path) -> None:
    for k, (letters, units, dtype, layout) in enumerate(GREYS):
        array = values([SIZES[a] for a in letters], dtype, k)
        options = dict(LAYOUTS[layout])
        if dtype == "f4":
            options.pop("predictor", None)
        path = tmp_path / f"{k % 16}.ome.tif"
        path.unlink(missing_ok=True)
        metadata = {"axes": letters.upper(), **declared(units, letters)}
        tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata=metadata, **options)
        check(path, Wanted(canonical(array, letters), *spacing_of(letters, units)))
        if dtype == "u1" and k % 5 == 0:
            assert np.array_equal(libtiff(path)[..., 0], canonical(array, letters).reshape(-1, 5, 7)[0])


def inverse_of_white(array: Array) -> Array:
    return np.iinfo(array.dtype).max - array


def picture(kind: str, dtype: str, seed: int) -> tuple[Array, dict[str, Any], Array | None]:
    """A stored picture, how it is written, and ``[c, y, x]`` that has to come out; None where libtiff alone says."""
    top = np.iinfo(dtype).max
    rgb = values([5, 7, 3], dtype, seed)
    planes = np.moveaxis(rgb, -1, 0)
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": "contig"}
    if kind == "rgb":
        return rgb, options, planes
    if kind == "planar":
        return np.ascontiguousarray(planes), options | {"planarconfig": "separate"}, planes
    if kind == "alpha":
        return np.dstack([rgb, np.full((5, 7), top, dtype)]), options | {"extrasamples": ["unassalpha"]}, planes
    if kind == "extra":
        four = np.dstack([rgb, rgb[..., 0]])
        return four, options | {"extrasamples": ["unspecified"]}, np.moveaxis(four, -1, 0)
    if kind == "miniswhite":
        return inverse_of_white(rgb[..., 0]), {"photometric": "miniswhite"}, planes[:1]
    if kind == "palette":
        colours = values([3, 256], "u2", seed)
        return rgb[..., 0], {"photometric": "palette", "colormap": colours}, (colours[:, rgb[..., 0]] >> 8).astype("u1")
    if kind == "cmyk":
        return np.dstack([rgb, rgb[..., 0] // 3]), options | {"photometric": "separated"}, None
    if kind == "planar cmyk":
        inks = np.stack([*planes, planes[0] // 3])
        return inks, {"photometric": "separated", "planarconfig": "separate"}, None
    return rgb, options | {"photometric": "ycbcr"}, None


KINDS = {
    "rgb": ("u1", "u2"), "planar": ("u1", "u2"), "alpha": ("u1", "u2"), "extra": ("u1", "u2"), "miniswhite": ("u1", "u2"),
    "palette": ("u1",), "cmyk": ("u1",), "planar cmyk": ("u1",), "ycbcr": ("u1",),
}  # fmt: skip
NAMES = {"extra": ("red", "green", "blue", "extra 1"), "miniswhite": ("0",)}
PICTURES = [
    (kind, dtype, units, layout, named)
    for kind, dtypes in KINDS.items()
    for dtype, units, layout, named in itertools.product(dtypes, OME_UNITS[::2], range(4), (True, False))
    if kind != "palette" or not named
]


def test_pictures(tmp_path: Path) -> None:
    for k, (kind, dtype, units, layout, named) in enumerate(PICTURES):
        stored, options, wanted = picture(kind, dtype, k)
        path = tmp_path / f"{k % 16}.ome.tif"
        path.unlink(missing_ok=True)
        metadata = declared(units, "yx") | ({"Channel": {"Name": ["H&E"]}} if named else {})
        layouts = LAYOUTS[layout]
        if kind == "palette":
            layouts = {n: v for n, v in layouts.items() if n != "predictor"}
        tifffile.imwrite(path, stored, ome=True, metadata=metadata, **options, **layouts)
        shown = np.moveaxis(libtiff(path), -1, 0)
        within = 0.0
        if wanted is None:
            wanted, within = shown, 1.5  # roundings of two libraries
        elif dtype == "u1" and kind != "extra":
            assert np.array_equal(shown[: len(wanted)], wanted)
        names = NAMES.get(kind, ("red", "green", "blue"))
        if kind == "miniswhite" and named:
            names = ("H&E",)
        check(path, Wanted(wanted, *spacing_of("yx", units), names, within))


IMAGEJ = list(
    itertools.product(
        ("yx", "zyx", "cyx", "zcyx"), ("um", "micron", "nm", "mm", "dm", "angstrom", "\\u00B5m"), ("u1", "u2", "f4")
    )
)


def test_imagej(tmp_path: Path) -> None:
    metres = METRES | {"um": METRES["µm"], "micron": METRES["µm"], "\\u00B5m": METRES["µm"]}
    for k, (letters, unit, dtype) in enumerate(IMAGEJ):
        array = values([SIZES[a] for a in letters], dtype, k)
        path = tmp_path / f"{k % 16}.tif"
        path.unlink(missing_ok=True)
        metadata = {"axes": letters.upper(), "unit": unit, "spacing": float(STEPS["z"])}
        tifffile.imwrite(path, array, imagej=True, metadata=metadata, resolution=(2.0, 4.0))
        spacing = tuple(float(STEPS[a] * metres[unit]) for a in "zyx" if a in letters)
        check(path, Wanted(canonical(array, letters), spacing))


# ---- Zarr ----------------------------------------------------------------------------------------------------------------

ORDERS = ["yx", "xy", "cyx", "xyc", "xcy", "zyx", "xyz", "yzx", "czyx", "xyzc", "tczyx", "xyzct", "zxytc"]
STORES = [
    (letters, units, ("u1", "i4", "u2", "f4", "f8")[i % 5], layout)
    for i, (letters, units, layout) in enumerate(itertools.product(ORDERS, UNITS + WORDS, ("C", "F")))
]


def written(folder: Path, k: int) -> tuple[Path, Wanted]:
    letters, units, dtype, layout = STORES[k]
    array = values([SIZES[a] for a in letters], dtype, k)
    steps = {a: float(s) for a, s in STEPS.items()}
    shown = {a: u for a, u in units.items() if a in letters}
    path = plain.image(folder / f"{k}.zarr", [array], letters, [steps], shown, order=layout)
    return path, Wanted(canonical(array, letters), *spacing_of(letters, units))


def test_zarr(tmp_path: Path) -> None:
    for k in range(len(STORES)):
        check(*written(tmp_path, k))


def coloured() -> Iterator[tuple[str, str, bool]]:
    for letters in ("cyx", "yxc", "xyc", "cxy", "tczyx", "xyzct"):
        for dtype in ("u1", "u2"):
            for painted in (True, False):
                yield letters, dtype, painted


PAINTED = list(coloured())


@pytest.mark.parametrize(("letters", "dtype", "painted"), PAINTED)
def test_display_colours_of_zarr(tmp_path: Path, letters: str, dtype: str, painted: bool) -> None:
    sizes = SIZES | {"c": 3, "z": 1}
    array = values([sizes[a] for a in letters], dtype, 1)
    omero = [
        {"label": f"Channel {i}", "color": c if painted else "FFFFFF"}
        for i, c in enumerate(("FF0000", "00FF00", "0000FF"))
    ]
    steps = {a: float(s) for a, s in STEPS.items()}
    path = plain.image(tmp_path / "a.zarr", [array], letters, [steps], dict.fromkeys("zyx", "µm"), omero=omero)
    names = ("red", "green", "blue") if painted and dtype == "u1" else tuple(f"Channel {i}" for i in range(3))
    check(path, Wanted(canonical(array, letters), (0.25e-6, 0.5e-6), channels=names))


def test_there_are_enough_combinations() -> None:
    assert len(GREYS) + len(PICTURES) + len(IMAGEJ) + len(STORES) + len(PAINTED) >= 2000
