"""The adapter ``image``: whatever holds pixels, told by its content, into an `regframe.Image` and back."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regframe

from .ngff import is_zarr, open_zarr, write_zarr
from .raster import open_raster, write_jpeg, write_png
from .raw import Array, Raw, check_level, unreadable
from .tiff import open_tiff, write_tiff
from .units import to_ome
from .volume import SUFFIXES as _VOLUMES
from .volume import open_volume, volume_kind, write_volume

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".svs", ".npy", ".zarr", ".zarr.zip", *_VOLUMES)


class ImageAdapter(regframe.Adapter):
    """Raster images: PNG, JPEG, TIFF, OME-TIFF, SVS, OME-Zarr, NIfTI, NRRD, MetaImage, npy, arrays and tensors.

    What a file is, is told by its content, not by its suffix. Positions count the pixels as they are stored (an EXIF
    orientation is not applied, and said so); pixels of a coarser level lie where the full resolution has them. A
    palette becomes colours, opacity is dropped after compositing over white.

    Args:
        spacing: distance of pixel centres at full resolution, in ``unit``: one number or one per axis ((z,) y, x);
            None: what the file declares in OME, NGFF, ImageJ or Aperio fields (never a DPI tag), else pixels.
        unit: unit of ``spacing``, µm where None; without ``spacing`` the unit to convert the declared one to.
        axes: names of the stored axes in order, out of ``t z c y x``, where the file does not say.
        channels: which channels to take, by name or number: one, a list, or a comma-separated string; None takes all.
        level: resolution of a pyramid, 0 the finest.
        labels: True where values are ids, which are never averaged.
        t: time point, where there are several.
        z: one plane of a stack, which makes the image 2D.
        max_bytes: largest array to read; above it the error asks for a coarser level.
    """

    name = "image"

    def __init__(
        self,
        spacing: float | str | Sequence[float] | None = None,
        unit: str | None = None,
        axes: str | None = None,
        channels: int | str | Sequence[int | str] | None = None,
        level: int = 0,
        labels: bool = False,
        t: int | None = None,
        z: int | None = None,
        max_bytes: int = 4 << 30,
    ) -> None:
        if isinstance(level, bool) or not isinstance(level, int) or level < 0:
            raise ValueError(f"wanted a level of 0 or more, got {level!r}")
        if not isinstance(labels, bool):
            raise ValueError(f"wanted labels to be true or false, got {labels!r}")
        self.spacing = _numbers(spacing)
        self.unit = None if unit is None else regframe.Grid((1, 1), unit=unit).unit
        self.axes = None if axes is None else str(axes).lower()
        self.channels = _choice(channels)
        self.level = level
        self.labels = labels
        self.planes = {axis: index for axis, index in (("t", t), ("z", z)) if index is not None}
        self.max_bytes = int(max_bytes)

    def matches(self, source: Any) -> float:
        """1 for images, tensors and arrays, 0.9 for a file or folder with their content, 0.1 for their suffix alone."""
        if isinstance(source, (regframe.Image, torch.Tensor, np.ndarray)):
            return 1.0
        if not isinstance(source, (str, os.PathLike)):
            return 0.0
        path = Path(source)
        if _kind(path) is not None:
            return 0.9
        return 0.1 if path.name.lower().endswith(_SUFFIXES) else 0.0

    def open(self, source: Any) -> regframe.Image:
        """Read the pixels; ValueError with one sentence where the source is damaged, ambiguous, too large or not
        finite."""
        if isinstance(source, regframe.Image):
            image = self._again(source)
        else:
            image = self._read(source)
        _check_finite(image)
        return image

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.Image:
        """The image resampled on ``grid`` (its own where None and the map stays within one unit)."""
        image = self.open(source)
        if grid is None:
            if transform.source_unit != transform.target_unit:
                raise ValueError(f"wanted a grid in {transform.target_unit} to resample on, got none; give the canvas")
            grid = image.grid
        return regframe.resample(image, transform, grid)

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write by suffix: ``.png``, ``.jpg``, ``.tif`` (OME-TIFF) or ``.zarr`` (OME-Zarr 0.5), aside and then renamed.

        PNG and JPEG keep neither spacing nor origin, OME-TIFF keeps the spacing, OME-Zarr both. ValueError where the
        format cannot hold the values.
        """
        path = Path(path)
        if not isinstance(data, regframe.Image):
            raise TypeError(f"wanted an Image to write pixels, got {type(data).__name__}; use another adapter")
        array = data.data.detach().cpu().numpy()  # [C, *S]
        suffix = path.suffix.lower()
        if suffix == ".png":
            flat = _displayable(_narrowed(array), "PNG", (np.uint8, np.uint16))
            _aside(path, lambda aside: write_png(aside, flat))
        elif suffix in (".jpg", ".jpeg"):
            if data.labels:
                raise ValueError(
                    "wanted an image for JPEG, got labels, which it would change; write .png, .tif or .zarr"
                )
            flat = _displayable(array, "JPEG", (np.uint8,))
            _aside(path, lambda aside: write_jpeg(aside, flat))
        elif suffix in (".tif", ".tiff"):
            _aside(path, lambda aside: _save_tiff(aside, data, array))
        elif suffix == ".zarr":
            axes = "c" + "".join(data.grid.axes)
            grid = data.grid
            _aside(
                path,
                lambda aside: write_zarr(
                    aside, array, axes, grid.spacing, grid.origin, grid.unit, data.channels, data.labels, data.name
                ),
            )
        elif path.name.lower().endswith(_VOLUMES):
            if data.grid.unit == "px" and suffix != ".nrrd":
                raise ValueError(
                    f"wanted an image with a length unit for {path.name!r}, a format in mm, got one in pixels; "
                    "state its spacing, or write .nrrd"
                )
            grid = data.grid if data.grid.unit == "px" else data.grid.to_unit("mm")
            _aside(path, lambda aside: write_volume(aside, array, grid.spacing, grid.origin, grid.unit))
        else:
            raise ValueError(
                f"wanted an image file ending in .png, .jpg, .tif, .zarr, .nii.gz or .nrrd, got {path.name!r}; "
                "choose one of these"
            )

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """An OME-TIFF of three channels, 20 × 24 pixels of 0.5 µm, for ``regframe plugins --check``."""
        array = np.random.default_rng(0).integers(0, 255, (3, 20, 24)).astype(np.uint8)
        path = Path(folder) / "sample.ome.tif"
        cls().save(regframe.Image.from_array(array, "cyx", spacing=0.5, unit="µm"), path)
        return path

    def _read(self, source: Any) -> regframe.Image:
        raw, name = self._raw(source)
        if raw.nbytes > self.max_bytes:
            ask = (
                f"choose a coarser level (it has {raw.levels})"
                if self.level + 1 < raw.levels
                else "give it a pyramid, or a crop"
            )
            raise ValueError(
                f"wanted at most {self.max_bytes / 2**30:.3g} GiB of pixels, got {raw.nbytes / 2**30:.3g} GiB "
                f"declared by {name} (shape {raw.shape}, {raw.dtype}); {ask}, or raise max_bytes"
            )
        axes = self._named_axes(raw, name)
        array, axes = self._planes(raw.read(), axes, name)
        array = _channels_first(array, axes)  # [C, *S]
        if self.labels and array.dtype.kind == "f" and bool((array == np.rint(array)).all()):
            array = array.astype(np.int64 if float(np.abs(array).max(initial=0)) >= 2**31 else np.int32)
        names = raw.channels
        if raw.alpha:
            array = _over_white(array, name)
        spatial = [a for a in axes if a in "zyx"]
        spacing, origin, unit = self._geometry(raw, spatial, name)
        if len(names) != array.shape[0]:
            names = ()
        image = regframe.Image.from_array(
            array, "c" + "".join(spatial), spacing, origin, unit, channels=names, labels=self.labels, name=name
        )
        image = _pick(image, self.channels)
        if image.labels and (image.data.shape[0] != 1 or image.data.dtype.is_floating_point):
            raise ValueError(
                f"wanted one channel of whole numbers for labels, got {image.data.shape[0]} of {image.data.dtype} "
                f"in {name}; choose one with channels="
            )
        return image

    def _raw(self, source: Any) -> tuple[Raw, str]:
        if isinstance(source, torch.Tensor):
            source = source.detach().cpu().numpy()
        if isinstance(source, np.ndarray):
            check_level(Path("array"), self.level, 1)
            array: Array = source
            return Raw(array.shape, array.dtype, _guess(array.shape), lambda: array, {}, {}, {}), "array"
        path = Path(source)
        kind = _kind(path)
        if kind == "TIFF":
            return open_tiff(path, self.level, self.labels), path.name
        if kind in ("PNG", "JPEG"):
            return open_raster(path, kind, self.level, self.labels), path.name
        if kind == "Zarr":
            return open_zarr(path, self.level), path.name
        if kind in ("NIfTI", "NRRD", "MetaImage"):
            return open_volume(path, kind, self.level, self.labels), path.name
        if kind == "npy":
            check_level(path, self.level, 1)
            try:
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise unreadable(path, "npy", error) from error
            return Raw(
                mapped.shape, mapped.dtype, _guess(mapped.shape), lambda: np.array(mapped), {}, {}, {}
            ), path.name
        raise ValueError(
            f"wanted a PNG, JPEG, TIFF, Zarr, NIfTI, NRRD or npy image, got {str(path)!r}, whose content is none of these; "
            "check that the file is what its name says"
        )

    def _named_axes(self, raw: Raw, name: str) -> str:
        """One of ``t z c s y x`` per axis; what the user says counts before what the file says."""
        axes = self.axes or raw.axes
        if len(axes) != len(raw.shape) or len(set(axes.replace("?", ""))) != len(axes.replace("?", "")):
            raise ValueError(f"wanted {len(raw.shape)} distinct axes for {name} of shape {raw.shape}, got {axes!r}")
        unknown = [a for a, n in zip(axes, raw.shape, strict=True) if a not in "tzcsyx" and n > 1]
        if unknown or not {"y", "x"} <= set(axes):
            raise ValueError(
                f"wanted named axes for {name} of shape {raw.shape}, got {axes!r}; "
                "state them, e.g. axes='zyx', 'cyx' or 'yxc'"
            )
        return axes

    def _planes(self, array: Array, axes: str, name: str) -> tuple[Array, str]:
        """Without time, without axes of one unnamed entry, and with the z plane chosen."""
        absent = [axis for axis, index in self.planes.items() if axis not in axes and index != 0]
        if absent:
            raise ValueError(f"wanted {absent[0]} only for an image that has this axis, got axes {axes!r} of {name}")
        for axis in [a for a in axes if a not in "zcsyx" or a in self.planes]:
            n = array.shape[axes.index(axis)]
            index = self.planes.get(axis)
            if index is None and n > 1:
                raise ValueError(
                    f"wanted one of the {n} entries of axis {axis} of {name}, got none; choose with {axis}=0"
                )
            if index is not None and not -n <= index < n:
                raise ValueError(f"wanted {axis} from 0 to {n - 1} for {name}, got {index}")
            array = array.take(index or 0, axis=axes.index(axis))
            axes = axes.replace(axis, "", 1)
        return array, axes

    def _geometry(self, raw: Raw, spatial: list[str], name: str) -> tuple[tuple[float, ...], tuple[float, ...], str]:
        factor = [raw.factor.get(a, 1.0) for a in spatial]
        if self.spacing is not None:
            step = self.spacing * len(spatial) if len(self.spacing) == 1 else self.spacing
            if len(step) != len(spatial):
                raise ValueError(f"wanted 1 or {len(spatial)} spacings for {name} (axes {spatial}), got {len(step)}")
            spacing = tuple(s * f for s, f in zip(step, factor, strict=True))
            origin = tuple(s * (f - 1) / 2 for s, f in zip(step, factor, strict=True))
            return spacing, origin, self.unit or "µm"
        if raw.unit is not None and set(spatial) <= set(raw.spacing):
            spacing = tuple(raw.spacing[a] for a in spatial)
            origin = tuple(raw.origin.get(a, 0.0) for a in spatial)
            grid = regframe.Grid((1,) * len(spatial), spacing, origin, raw.unit)
            if self.unit is not None and self.unit != grid.unit:
                grid = grid.to_unit(self.unit)
            return grid.spacing, grid.origin, grid.unit
        if self.unit not in (None, "px"):
            raise ValueError(
                f"wanted a spacing for {name}, which declares none, got only the unit {self.unit}; state spacing"
            )
        return tuple(factor), tuple((f - 1) / 2 for f in factor), "px"

    def _again(self, image: regframe.Image) -> regframe.Image:
        """An image that is one already, with the options that still make sense."""
        check_level(Path(image.name), self.level, 1)
        grid = image.grid
        if self.spacing is not None:
            grid = regframe.Grid(grid.shape, self.spacing, (), self.unit or "µm")
        elif self.unit is not None and self.unit != grid.unit:
            grid = grid.to_unit(self.unit)
        return _pick(image.replace(grid=grid, labels=image.labels or self.labels), self.channels)


def _kind(path: Path) -> str | None:
    """What a path holds, from its first bytes."""
    try:
        if path.is_dir():
            return "Zarr" if is_zarr(path) else None
        with path.open("rb") as file:
            head = file.read(8)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return "PNG"
        if head[:3] == b"\xff\xd8\xff":
            return "JPEG"
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return "TIFF"
        if head[:6] == b"\x93NUMPY":
            return "npy"
        if head[:4] == b"PK\3\4" and is_zarr(path):
            return "Zarr"
        if path.name.lower().endswith(_VOLUMES):
            with path.open("rb") as file:
                return volume_kind(path, file.read(16))
    except OSError:
        return None
    return None


def _guess(shape: tuple[int, ...]) -> str:
    """Axes of an array that names none, where only one reading is likely."""
    if len(shape) == 2:
        return "yx"
    if len(shape) == 3 and shape[-1] in (3, 4) and min(shape[:2]) > 4:
        return "yxc"
    return "?" * len(shape)


def _channels_first(array: Array, axes: str) -> Array:
    """``[C, *S]`` of an array with axes out of ``c s z y x``; channels and samples become one axis."""
    for axis in "sc":
        if axis not in axes:
            array, axes = array[None], axis + axes
    order = [axes.index(a) for a in ("cszyx" if "z" in axes else "csyx")]
    array = array.transpose(order)
    return array.reshape(-1, *array.shape[2:])


def _over_white(array: Array, name: str) -> Array:
    """``[C, *S]`` whose last channel is opacity, composited over white; says so where any pixel is not opaque."""
    colour, alpha = array[:-1], array[-1]
    top = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    if bool((alpha == array.dtype.type(top)).all()):
        return colour
    part = float((alpha < top).mean())
    warnings.warn(
        f"{name} is not opaque in {part:.1%} of its pixels; it is composited over white and its opacity dropped",
        stacklevel=5,
    )
    opacity = alpha.astype(np.float64) / top
    mixed: Array = colour * opacity + top * (1 - opacity)
    return (mixed if array.dtype.kind == "f" else np.rint(mixed)).astype(array.dtype)


def _check_finite(image: regframe.Image) -> None:
    if not image.data.dtype.is_floating_point:
        return
    bad = ~torch.isfinite(image.data)
    if not bool(bad.any()):
        return
    n_nan = int(torch.isnan(image.data).sum())
    n_bad = int(bad.sum())
    first = torch.nonzero(bad)[0].tolist()
    where = ", ".join(f"{a} {i}" for a, i in zip(image.grid.axes, first[1:], strict=True))
    raise ValueError(
        f"wanted finite pixels, got {n_nan} NaN and {n_bad - n_nan} infinite values of {image.data.numel()} "
        f"in {image.name}, the first in channel {image.channels[first[0]]} at pixel {where}; "
        f"replace them, or crop them away"
    )


def _pick(image: regframe.Image, channels: tuple[int | str, ...] | None) -> regframe.Image:
    if channels is None:
        return image
    index = []
    for channel in channels:
        if channel in image.channels:
            index.append(image.channels.index(str(channel)))
        elif str(channel).isdecimal() and int(channel) < len(image.channels):
            index.append(int(channel))
        else:
            raise ValueError(
                f"wanted channels of {image.name} ({', '.join(image.channels)}, or a number from 0), got {channel!r}; "
                "name one"
            )
    return image.replace(data=image.data[index], channels=tuple(image.channels[i] for i in index))


def _choice(channels: int | str | Sequence[int | str] | None) -> tuple[int | str, ...] | None:
    if channels is None:
        return None
    if isinstance(channels, str):
        chosen: tuple[int | str, ...] = tuple(part.strip() for part in channels.split(",") if part.strip())
    elif isinstance(channels, int):
        chosen = (channels,)
    else:
        chosen = tuple(channels)
    if not chosen:
        raise ValueError("wanted at least one channel, got none")
    return chosen


def _numbers(spacing: float | str | Sequence[float] | None) -> tuple[float, ...] | None:
    if spacing is None:
        return None
    parts: Sequence[Any] = (
        spacing.split(",") if isinstance(spacing, str) else spacing if isinstance(spacing, Sequence) else [spacing]
    )
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(np.isfinite(n) and n > 0 for n in numbers):
        raise ValueError(f"wanted a positive spacing, one number or one per axis, got {spacing!r}")
    return numbers


def _narrowed(array: Array) -> Array:
    """Whole numbers in the narrowest of uint8 and uint16 that holds them, where their own type is neither."""
    if array.dtype.kind not in "ui" or array.dtype in (np.uint8, np.uint16) or array.min(initial=0) < 0:
        return array
    top = array.max(initial=0)
    return array.astype(np.uint8 if top < 256 else np.uint16) if top < 65536 else array


def _displayable(array: Array, kind: str, dtypes: Sequence[type]) -> Array:
    """``[y, x]`` or ``[y, x, 3]`` of ``[C, *S]``, where a display format can hold it."""
    if array.ndim != 3 or array.shape[0] not in (1, 3) or array.dtype not in dtypes:
        names = " or ".join(np.dtype(d).name for d in dtypes)
        raise ValueError(
            f"wanted one or three channels of {names} in 2D for {kind}, got shape {array.shape} of {array.dtype}; "
            "write .tif or .zarr instead"
        )
    return array[0] if array.shape[0] == 1 else np.ascontiguousarray(np.moveaxis(array, 0, -1))


def _save_tiff(path: Path, data: regframe.Image, array: Array) -> None:
    grid = data.grid
    if array.dtype in (np.int64, np.uint64):  # which OME-TIFF does not know
        low, high = int(array.min(initial=0)), int(array.max(initial=0))
        fits = [t for t in (np.uint32, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max]
        if not fits:
            raise ValueError(
                f"wanted whole numbers of 32 bits for OME-TIFF, got {low} to {high} of {array.dtype}; write .zarr instead"
            )
        array = array.astype(fits[0])
    rgb = (
        array.shape[0] == 3
        and array.ndim == 3
        and array.dtype in (np.uint8, np.uint16)
        and data.channels == ("red", "green", "blue")
    )
    plain = grid.unit == "px" and all(s == 1 for s in grid.spacing)
    write_tiff(
        path,
        np.ascontiguousarray(np.moveaxis(array, 0, -1)) if rgb else array,
        "YXS" if rgb else "C" + "".join(grid.axes).upper(),
        None if plain else dict(zip(grid.axes, grid.spacing, strict=True)),
        to_ome(grid.unit),
        data.channels,
        rgb,
    )


def _aside(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a path of the same folder, then give it the name; nothing half-written ever bears it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        write(aside)
        if path.is_dir():
            old = Path(folder) / "replaced"
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            aside.replace(path)
