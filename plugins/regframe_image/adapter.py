"""The adapter ``image``: whatever holds pixels, told by its content, into an `regframe.Image` and back."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import regframe

from .axes import Order
from .counted import check_finite, masked, number, source_name, without_data
from .microscopes import SUFFIXES as _MICROSCOPES
from .microscopes import microscope_kind, open_microscope
from .ngff import is_zarr, open_zarr, write_zarr
from .raster import open_raster, write_jpeg, write_png
from .raw import Array, InMemory, Place, Raw, Region, Resolution, Stamp, check_level, check_npy, readable, rows, stamp
from .series import only_series
from .tiff import needs_stitching, open_tiff, write_tiff
from .units import CONTRADICTION, ratio
from .vendor import SUFFIXES as _SLIDES
from .vendor import is_slide, open_slide
from .volume import SUFFIXES as _VOLUMES
from .volume import open_volume, volume_kind, write_volume

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".svs", ".ndpi", ".scn", ".npy", ".zarr", ".zarr.zip", *_SLIDES, *_MICROSCOPES,
    *_VOLUMES,
)  # fmt: skip
"""Suffixes by which a file whose content tells nothing is still taken for a damaged image."""
_WRITTEN = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".zarr", *_VOLUMES)
"""Suffixes under which images are written."""
_TIFFS = (".tif", ".tiff", ".svs", ".ndpi", ".scn")
"""Suffixes under which a TIFF is looked for before a Zarr store, in a remote store where each look costs a request."""
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF in both byte orders."""
_STREAMED = 16
"""How many times ``max_bytes`` may be read where it is averaged over blocks on the way, so that no more than that is held:
blocks of 4 × 4 pixels, the two halvings by which the levels of most slides differ."""
_EXTENT = 0.05
"""Relative difference of the fields of two levels, beside two pixels of the coarser one, above which their metadata are wrong:
writers drop the last incomplete block of a level, a wrong factor is off by 25 % or more."""
_HEAD = 132
"""Bytes of a file that tell its format: the mark of DICOM, which lies furthest back, ends there."""


class ImageAdapter(regframe.Adapter):
    """Raster images and slides: PNG, JPEG, TIFF, OME-TIFF, SVS, OpenSlide's, ND2, LIF, CZI, VSI, OME-Zarr, NIfTI, NRRD, npy,
    arrays, tensors.

    The format of a file is told by its content, not by its suffix. Positions count the pixels as they are stored (an EXIF
    orientation is not applied, and said so); pixels of a coarser level lie where the full resolution has them. A
    palette becomes colours, opacity is dropped after compositing over white.

    Args:
        spacing: distance of pixel centres at full resolution, in ``unit``: one number or one per axis ((z,) y, x);
            None: what the file declares in OME, NGFF, ImageJ or Aperio fields (never a DPI tag), else pixels.
        unit: unit of ``spacing``, µm where None; without ``spacing`` the unit to convert the declared one to.
        axes: names of the stored axes in order, out of ``t z c y x``, where the file does not say.
        channels: which channels to take, by name or number: one, a list, or a comma-separated string; None takes all.
        level: resolution of a pyramid, 0 the finest. None: all of it where it is small; of a large image the coarsest level
            with enough pixels to register on, averaged over blocks where there is none (`regframe.choose_level`), which
            ``Image.reading`` tells. Labels are never reduced unasked.
        labels: True where values are ids, which are never averaged.
        t: time point, where there are several.
        z: one plane of a stack, which makes the image 2D; an axis of one entry is no axis of the image in any case.
        max_bytes: largest array to hold, 4 GiB or what ``REGFRAME_MAX_BYTES`` says where None; above it the error asks for a
            coarser level. Sixteen times as much is read where it is averaged over blocks.
        override: take ``spacing`` although the file declares another, which is an error otherwise; of a NIfTI file whose two
            orientations contradict each other take the sform.
        nodata: a value that stands for no data where all channels hold it, a number or ``"nan"``: such pixels have weight 0
            and do not count. What is not a number never counts, stated or not.
        mask: an image of the same canvas, at the same resolution or another, whose pixels of 0 do not count: whatever this
            adapter reads.
        series: which image of a file that holds several, by number (from 0), name or path; None takes the one of most pixels
            with a declared pixel size that is no label, macro image or thumbnail, and says so where there was a choice.
    """

    name = "image"
    writes: ClassVar[Mapping[type, tuple[str, ...]]] = {regframe.Image: _WRITTEN}
    remote = True

    def __init__(
        self,
        spacing: float | str | Sequence[float] | None = None,
        unit: str | None = None,
        axes: str | None = None,
        channels: int | str | Sequence[int | str] | None = None,
        level: int | None = None,
        labels: bool = False,
        t: int | None = None,
        z: int | None = None,
        max_bytes: int | None = None,
        override: bool = False,
        nodata: float | str | None = None,
        mask: Any = None,
        series: int | str | None = None,
    ) -> None:
        if isinstance(level, bool) or not (level is None or (isinstance(level, int) and level >= 0)):
            raise ValueError(f"wanted a level of 0 or more, got {level!r}")
        if not isinstance(labels, bool):
            raise ValueError(f"wanted labels to be true or false, got {labels!r}")
        self.spacing = _numbers(spacing)
        self.unit = None if unit is None else regframe.canonical_unit(unit)
        self.axes = None if axes is None else str(axes).lower()
        self.channels = _choice(channels)
        self.level = level
        self.labels = labels
        self.planes = {axis: index for axis, index in (("t", t), ("z", z)) if index is not None}
        self.max_bytes = regframe.gate.most_bytes() if max_bytes is None else int(max_bytes)
        if not isinstance(override, bool):
            raise ValueError(f"wanted override to be true or false, got {override!r}")
        self.override = override
        self.nodata = number(nodata)
        self.mask = mask
        if isinstance(series, (bool, float)) or (isinstance(series, int) and series < 0):
            raise ValueError(f"wanted a series by number, from 0, or by name, got {series!r}")
        self.series = series

    def matches(self, source: Any) -> float:
        """1 for images, tensors and arrays, 0.9 for a file or folder with their content, 0.1 for their suffix alone."""
        if isinstance(source, (regframe.Image, np.ndarray)) or regframe.later.is_tensor(source):
            return 1.0
        if not isinstance(source, (str, os.PathLike, regframe.Remote)):
            return 0.0
        path = regframe.locate(source)
        if _kind(path) is not None:
            return 0.9
        far = isinstance(path, regframe.Remote)  # `open` says what is read under an address
        return 0.1 if far or path.name.lower().endswith(_SUFFIXES) else 0.0

    def open(self, source: Any) -> regframe.Image:
        """Read the pixels, of a large image as many as a registration needs (see ``level``); ValueError with one sentence
        where the source is damaged, ambiguous, too large, infinite somewhere or contradicts itself."""
        if isinstance(source, regframe.Image):
            image, pyramid = self._again(source), None
        else:
            image, pyramid = self._read(source)
        check_finite(image)
        if self.nodata is not None:
            image = without_data(image, self.nodata, pyramid)
        if self.mask is not None:
            image = masked(image, type(self)(max_bytes=self.max_bytes).open(self.mask), source_name(self.mask))
        return image

    def pyramid(self, source: Any) -> regframe.Pyramid:
        """Every resolution, lazy; from ``level`` on where one is chosen."""
        if isinstance(source, regframe.Image):
            image = self._again(source)
            array = image.data.detach().cpu().numpy()  # [C, *S]
            stored = Order("c" + "".join(image.grid.axes), (), image.grid.axes, array.shape[0])
            read = _Window(InMemory(array), stored, array.dtype)
            whole = regframe.Level(image.grid, array.shape, read)
            return regframe.Pyramid((whole,), array.dtype, image.channels, labels=image.labels, name=image.name)
        raw, name = self._raw(source)
        pyramid = self._pyramid(raw, name)
        _check_extents(pyramid)
        return dataclasses.replace(pyramid, levels=pyramid.levels[self.level or 0 :])

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.Image:
        """The image, as `open` reads it, resampled on ``grid`` (its own where None and the map stays within one unit)."""
        image = self.open(source)
        if grid is None:
            if transform.source_unit != transform.target_unit:
                raise ValueError(f"wanted a grid in {transform.target_unit} to resample on, got none; give the canvas")
            grid = image.grid
        return regframe.resample(image, transform, grid, "auto")

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
            _aside(path, lambda aside: write_zarr(aside, data))
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

    def _read(self, source: Any) -> tuple[regframe.Image, regframe.Pyramid]:
        raw, name = self._raw(source)
        pyramid = self._pyramid(raw, name)
        if self.level is not None or pyramid.labels:
            chosen, factor = self.level or 0, (1,) * pyramid.grid.ndim
        else:
            chosen, factor = regframe.choose_level(pyramid)
            if chosen:
                _check_extents(pyramid)
        level = pyramid.levels[chosen]
        averaged = any(f > 1 for f in factor)
        self._judge(raw, chosen, pyramid, factor)
        window = level.read
        assert isinstance(window, _Window)
        if averaged:
            image = regframe.read_level(pyramid, chosen, factor)
        else:
            array = window.stored(tuple(slice(0, n) for n in level.grid.shape))  # [C, *S]
            if raw.alpha:
                _say_opacity(array[-1], name)
            array = window.finished(array)
            if pyramid.labels and array.dtype.kind == "f" and bool((array == np.rint(array)).all()):
                array = array.astype(np.int64 if float(np.abs(array).max(initial=0)) >= 2**31 else np.int32)
            image = regframe.Image.from_array(
                array, "c" + "".join(level.grid.axes), channels=pyramid.channels, labels=pyramid.labels, name=name
            ).replace(grid=level.grid)
        if image.labels and (image.data.shape[0] != 1 or image.data.dtype.is_floating_point):
            raise ValueError(
                f"wanted one channel of whole numbers for labels, got {image.data.shape[0]} of {image.data.dtype} "
                f"in {name}; choose one with channels="
            )
        reading = regframe.Reading(chosen, len(raw.levels), factor, pyramid.grid)
        return image.replace(reading=reading if chosen or averaged else None), pyramid

    def _judge(self, raw: Raw, level: int, pyramid: regframe.Pyramid, factor: tuple[int, ...]) -> None:
        """ValueError where the pixels to hold, or one chunk of them, are larger than ``max_bytes``; where they are averaged over
        blocks, ``_STREAMED`` times as many may be read."""
        stored, name = raw.levels[level], pyramid.name
        itemsize = raw.dtype.itemsize * (len(pyramid.channels) + raw.alpha)
        chunk = math.prod(stored.chunk) * raw.dtype.itemsize
        declared = max(math.prod(pyramid.levels[level].grid.shape) * itemsize, chunk)
        most, what = self.max_bytes, "of pixels"
        if math.prod(factor) > 1 and max(chunk, declared // math.prod(factor)) <= self.max_bytes:
            most, what = self.max_bytes * _STREAMED, "of pixels to average"
        if declared <= most:
            return
        ask = (
            f"choose a coarser level (it has {len(raw.levels)})"
            if level + 1 < len(raw.levels)
            else "give it a pyramid, or a crop"
        )
        raise ValueError(
            f"wanted at most {most / 2**30:.3g} GiB {what}, got {declared / 2**30:.3g} GiB "
            f"declared by {name} (shape {stored.shape}, {raw.dtype}); {ask}, or raise max_bytes"
        )

    def _pyramid(self, raw: Raw, name: str) -> regframe.Pyramid:
        """Every resolution of a source, with the options that were given; what the file leaves in doubt is said."""
        check_level(Path(name), self.level or 0, len(raw.levels))
        axes = self._named_axes(raw, name)
        planes = self._planes(raw, axes, name)
        first = raw.levels[0]
        order = Order.of(axes, first.shape, planes)
        raw = _completed(raw, order, name)
        n = (order.channels or 1) * order.samples - raw.alpha
        names = raw.channels if len(raw.channels) == n else tuple(str(i) for i in range(n))
        picks = _pick(names, self.channels, name)
        dtype = _torch_dtype(raw.dtype)
        levels = []
        for level in raw.levels:
            here = dict(zip(axes, level.shape, strict=True))
            chunk = dict(zip(axes, level.chunk, strict=True))
            if (here.get("c", 0), here.get("s", 1)) != (order.channels, order.samples):
                raise ValueError(f"wanted as many channels in every level of {name}, got {n + raw.alpha} and others")
            grid = regframe.Grid(order.pick(here), *self._geometry(raw, level, order, name))
            window = _Window(level.read, order, dtype, picks, raw.alpha, raw.premultiplied)
            together = min(chunk.get("c", 1) * order.samples, n if picks is None else len(picks))
            pieces = (min(c, m) for c, m in zip(order.pick(chunk), order.pick(here), strict=True))
            levels.append(regframe.Level(grid, (together, *pieces), window))
        chosen = range(n) if picks is None else picks
        colors = tuple(raw.colors[i] for i in chosen) if len(raw.colors) == n else ()
        aloud = (*raw.said, *(raw.doubts if self.spacing is None else ()))
        for sentence in aloud:
            warnings.warn(sentence, stacklevel=4)
        notes = (*aloud, *raw.notes, *_left_out(order, raw, planes, self.planes, name))
        labels = self.labels or raw.labels
        taken = tuple(names[i] for i in chosen)
        waves = tuple(raw.waves[i] for i in chosen) if len(raw.waves) == n else ()
        per = regframe.unit_ratio("µm", levels[0].grid.unit)
        stage = () if per is None else tuple(place * per for place in raw.stage)
        return regframe.Pyramid(tuple(levels), dtype, taken, colors, labels, name, raw.series, notes, waves, stage)

    def _raw(self, source: Any) -> tuple[Raw, str]:
        if regframe.later.is_tensor(source):
            source = source.detach().cpu().numpy()
        if isinstance(source, np.ndarray):
            only_series(self.series, "an array")
            one = Resolution(source.shape, source.shape, InMemory(source))
            return Raw(_guess(source.shape), source.dtype, (one,), format="array"), "array"
        path = regframe.locate(source).absolute()
        kind = _kind(path)
        if isinstance(path, regframe.Remote) and (kind is None or (kind == "TIFF" and needs_stitching(path))):
            raise ValueError(
                f"wanted an OME-Zarr store or a TIFF under an address, got {str(path)!r}, which is neither; download it"
            )
        if kind == "TIFF" and (isinstance(path, regframe.Remote) or not needs_stitching(path)):
            return open_tiff(path, self.labels, self.series), path.name
        if kind == "Zarr":
            return open_zarr(path, self.series), path.name
        assert isinstance(path, Path)
        if kind is None and not path.exists():
            raise FileNotFoundError(f"wanted an existing file or folder, got {str(path)!r}, which does not exist")
        if kind in ("ND2", "LIF", "CZI", "VSI", "OIB"):
            return open_microscope(path, kind, self.series), path.name
        if kind is not None:
            only_series(self.series, path.name)
        if kind in ("PNG", "JPEG"):
            return open_raster(path, kind, self.labels), path.name
        if kind in ("slide", "TIFF"):  # a Ventana slide, whose tiles overlap
            return open_slide(path), path.name
        if kind in ("NIfTI", "NRRD", "MetaImage"):
            return open_volume(path, kind, self.override), path.name
        if kind == "npy":
            with readable(path, "npy"):
                check_npy(path)
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            chunk = rows(mapped.shape, 0, mapped.dtype.itemsize) if mapped.ndim else ()
            one = Resolution(mapped.shape, chunk, _Npy(path, stamp(path)))
            return Raw(_guess(mapped.shape), mapped.dtype, (one,), format="npy"), path.name
        raise ValueError(
            f"wanted a PNG, JPEG, TIFF, Zarr, NIfTI, NRRD or npy image, got {str(source)!r}, whose content is none of these; "
            "check that the file is what its name says"
        )

    def _named_axes(self, raw: Raw, name: str) -> str:
        """One letter per stored axis; those that the user states take precedence over those that the file declares."""
        axes, shape = self.axes or raw.axes, raw.levels[0].shape
        if len(axes) != len(shape) or len(set(axes.replace("?", ""))) != len(axes.replace("?", "")):
            raise ValueError(f"wanted {len(shape)} distinct axes for {name} of shape {shape}, got {axes!r}")
        unknown = [a for a, n in zip(axes, shape, strict=True) if a not in "tzcsyx" and n > 1]
        if unknown or not {"y", "x"} <= set(axes):
            raise ValueError(
                f"wanted named axes for {name} of shape {shape}, got {axes!r}; state them, e.g. axes='zyx', 'cyx' or 'yxc' "
                "(--fixed-set or --moving-set axes=zyx)"
            )
        return axes

    def _planes(self, raw: Raw, axes: str, name: str) -> dict[str, int]:
        """The entry to take along each axis that the result has not: time, z where one plane was chosen, axes of one entry."""
        absent = [axis for axis, index in self.planes.items() if axis not in axes and index != 0]
        if absent:
            raise ValueError(f"wanted {absent[0]} only for an image that has this axis, got axes {axes!r} of {name}")
        sizes = dict(zip(axes, raw.levels[0].shape, strict=True))
        out: dict[str, int] = {}
        for axis, n in sizes.items():
            if axis in "zcsyx" and axis not in self.planes:
                continue
            index = self.planes.get(axis)
            if index is None and n > 1:
                raise ValueError(
                    f"wanted one of the {n} entries of axis {axis} of {name}, got none; choose with {axis}=0"
                )
            if index is not None and not -n <= index < n:
                raise ValueError(f"wanted {axis} from 0 to {n - 1} for {name}, got {index}")
            out[axis] = (index or 0) % max(n, 1)
        if "z" in axes and "z" not in out:  # one plane is an image, whichever way it lies
            thin = next((a for a in "zyx" if sizes[a] == 1), None)
            out |= {} if thin is None else {thin: 0}
        return out

    def _geometry(
        self, raw: Raw, level: Resolution, order: Order, name: str
    ) -> tuple[tuple[float, ...], tuple[float, ...], str]:
        """Spacing and origin of a level along the image's spatial axes, and their unit: stated, declared, or full-size pixels."""
        factor = order.pick(level.factor, 1.0)
        declared = raw.unit is not None and set(order.spatial) <= set(level.spacing)
        if self.spacing is not None:
            step = self.spacing * len(factor) if len(self.spacing) == 1 else self.spacing
            if len(step) != len(factor):
                raise ValueError(
                    f"wanted 1 or {len(factor)} spacings for {name} (axes {list(order.spatial)}), got {len(step)}"
                )
            unit = self.unit or "µm"
            if declared and raw.unit != "px" and not self.override:
                sure = [i for i, a in enumerate(order.spatial) if a not in raw.guessed]
                own = order.pick(raw.levels[0].spacing)
                _check_stated([step[i] for i in sure], unit, [own[i] for i in sure], str(raw.unit), name)
            spacing = tuple(s * f for s, f in zip(step, factor, strict=True))
            origin = tuple(s * (f - 1) / 2 for s, f in zip(step, factor, strict=True))
            return spacing, origin, unit
        if declared and (raw.unit != "px" or self.unit in (None, "px")):
            grid = regframe.Grid(
                (1,) * len(factor), order.pick(level.spacing), order.pick(level.origin, 0.0), str(raw.unit)
            )
            if self.unit is not None and self.unit != grid.unit:
                grid = grid.to_unit(self.unit)
            return grid.spacing, grid.origin, grid.unit
        if self.unit not in (None, "px"):
            raise ValueError(
                f"wanted a spacing for {name}, which declares none, got only the unit {self.unit}; state spacing"
            )
        return factor, tuple((f - 1) / 2 for f in factor), "px"

    def _again(self, image: regframe.Image) -> regframe.Image:
        """An image in memory with spacing, unit, labels and channels as the options say."""
        check_level(Path(image.name), self.level or 0, 1)
        grid = image.grid
        if self.spacing is not None:
            grid = regframe.Grid(grid.shape, self.spacing, (), self.unit or "µm")
        elif self.unit is not None and self.unit != grid.unit:
            grid = grid.to_unit(self.unit)
        image = image.replace(grid=grid, labels=image.labels or self.labels)
        index = _pick(image.channels, self.channels, image.name)
        if index is None:
            return image
        return image.replace(data=image.data[list(index)], channels=tuple(image.channels[i] for i in index))


@dataclass(frozen=True)
class _Window:
    """Pixels ``[C, *region]`` out of an array with other axes: planes, channels and opacity as the adapter was told.

    Args:
        read: regions of the stored array.
        order: of its axes.
        dtype: of the result.
        picks: which channels, None for all.
        alpha: the last stored channel is opacity.
        premultiplied: the colours were multiplied by it.
    """

    read: Callable[[Region], Array]
    order: Order
    dtype: np.dtype[Any]
    picks: tuple[int, ...] | None = None
    alpha: bool = False
    premultiplied: bool = False

    def __call__(self, region: Region) -> Array:
        return self.finished(self.stored(region))

    def stored(self, region: Region) -> Array:
        """``[C, *region]`` in the stored type, with opacity where there is some."""
        n_channels, n_samples = self.order.channels, self.order.samples
        if self.picks is None or self.alpha or not n_channels:
            runs = [(0, n_channels)]
        else:
            runs = _runs(sorted({pick // n_samples for pick in self.picks}))
        parts = [self.order.arranged(self.read(self.order.region(region, slice(*run)))) for run in runs]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.picks is None or self.alpha:
            return array
        read = [c * n_samples + s for start, stop in runs for c in range(start, max(stop, 1)) for s in range(n_samples)]
        return array if tuple(read) == self.picks else array[[read.index(pick) for pick in self.picks]]

    def finished(self, array: Array) -> Array:
        """``[C, *region]`` over white, in the type of the pyramid."""
        if self.alpha:
            array = _over_white(array, self.premultiplied)
            array = array if self.picks is None else array[list(self.picks)]
        return array.astype(self.dtype, copy=False)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as ranges."""
    out: list[tuple[int, int]] = []
    for n in numbers:
        if out and out[-1][1] == n:
            out[-1] = (out[-1][0], n + 1)
        else:
            out.append((n, n + 1))
    return out


@dataclass(frozen=True)
class _Npy:
    path: Path
    stamp: Stamp

    def __call__(self, region: Region) -> Array:
        with readable(self.path, "npy"):
            return np.array(np.load(self.path, mmap_mode="r", allow_pickle=False)[region])


def _torch_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that stored values get as pixels: uint8 for truth values, float32 for half floats, else their own in native
    byte order."""
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    if dtype == np.float16:
        return np.dtype(np.float32)
    if dtype.kind not in "uif":
        raise ValueError(
            f"wanted a numeric array, got dtype {dtype}; turn it into numbers first (of complex ones: their magnitude)"
        )
    return dtype.newbyteorder("=")


def _check_extents(pyramid: regframe.Pyramid) -> None:
    """ValueError where levels do not shrink, or cover different fields: their metadata cannot be right."""
    for k, level in enumerate(pyramid.levels[1:], start=1):
        before = pyramid.levels[k - 1].grid
        if any(n > m for n, m in zip(level.grid.shape, before.shape, strict=True)):
            raise ValueError(
                f"wanted levels from fine to coarse, got {level.grid.shape} pixels in level {k} after {before.shape} in "
                f"{pyramid.name}; level=0 reads the first alone"
            )
        full = pyramid.grid
        for a, axis in enumerate(full.axes):
            off = abs(level.grid.extent[a] - full.extent[a])
            if off > 2 * level.grid.spacing[a] + _EXTENT * full.extent[a]:
                raise ValueError(
                    f"wanted levels that show one field, got {level.grid.extent[a]:.6g} {full.unit} along {axis} in level "
                    f"{k} and {full.extent[a]:.6g} in level 0 of {pyramid.name}; its metadata are wrong, level=0 reads the "
                    "finest alone"
                )


def _check_stated(stated: Sequence[float], unit: str, declared: Sequence[float], own: str, name: str) -> None:
    """ValueError where a stated spacing and the file's own cannot both be right."""
    factor = ratio(own, unit)
    for s, d in zip(stated, declared, strict=True):
        if factor is None or abs(s / (d * factor) - 1) > CONTRADICTION:
            raise ValueError(
                f"wanted the pixel size that {name} declares, {d:.6g} {regframe.canonical_unit(own)}, or none stated, "
                f"got {s:.6g} {unit}; leave it out, or set override=true where the file is wrong"
            )


def _kind(path: Place) -> str | None:
    """The format of a file or folder, from its first bytes or members; None where it is none that is read here."""
    if isinstance(path, regframe.Remote):
        return _remote_kind(path)
    try:
        if path.is_dir():
            return "Zarr" if is_zarr(path) else None
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if (kind := microscope_kind(path, head)) is not None:
            return kind
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return "PNG"
        if head[:3] == b"\xff\xd8\xff":
            return "JPEG"
        if head[:4] in _TIFF_MARKS:
            return "TIFF"
        if head[:6] == b"\x93NUMPY":
            return "npy"
        if head[:4] == b"PK\3\4" and is_zarr(path):
            return "Zarr"
        if is_slide(path, head):
            return "slide"
        if path.name.lower().endswith(_VOLUMES):
            with path.open("rb") as file:
                return volume_kind(path, file.read(16))
    except OSError:
        return None
    return None


def _remote_kind(where: regframe.Remote) -> str | None:
    """The format of what lies under an address: a Zarr store or a TIFF."""
    if not where.name.lower().endswith(_TIFFS) and is_zarr(where):
        return "Zarr"
    if where.is_file():
        with regframe.RangedFile(where, where.stamp()) as file:
            return "TIFF" if file.read(4) in _TIFF_MARKS else None
    return "Zarr" if is_zarr(where) else None


def _completed(raw: Raw, order: Order, name: str) -> Raw:
    """The image with the spacing of its plane along axes for which the file declares none, because the user named them."""
    known = raw.levels[0].spacing
    missing = [a for a in order.spatial if a not in known]
    plane = next((a for a in "xy" if a in known), None)
    if raw.unit is None or not missing or plane is None:
        return raw
    levels = tuple(
        dataclasses.replace(
            level, spacing=level.spacing | {a: known[plane] * level.factor.get(a, 1.0) for a in missing}
        )
        for level in raw.levels
    )
    doubt = (
        f"{name} declares no spacing along {', '.join(missing)}; {known[plane]:g} {raw.unit} is taken, from the pixel size "
        f"along {plane}; state spacing where that is wrong"
    )
    return dataclasses.replace(raw, levels=levels, guessed=(*raw.guessed, *missing), doubts=(*raw.doubts, doubt))


def _left_out(order: Order, raw: Raw, planes: dict[str, int], chosen: dict[str, int], name: str) -> tuple[str, ...]:
    """Which stored axes the image has not, for `regframe info`; said of axes of one entry, and of planes that were chosen."""
    out = []
    level = raw.levels[0]
    sizes = dict(zip(order.stored, level.shape, strict=True))
    for axis, index in planes.items():
        if axis == "?":
            continue
        at = f" at {level.origin[axis]:.6g} {raw.unit}" if level.origin.get(axis) and axis not in chosen else ""
        what = f"entry {index} of {sizes[axis]} is taken" if sizes[axis] > 1 else f"it has one entry{at} and is dropped"
        out.append(f"{name}: axis {axis}: {what}")
    if order.spatial not in (("y", "x"), ("z", "y", "x")):
        out.append(f"{name}: its one plane lies along {' and '.join(order.spatial)}, which are read as y and x")
    return tuple(out)


def _guess(shape: tuple[int, ...]) -> str:
    """Axes of an array that names none, where only one reading is likely; axes of one entry do not count."""
    many = tuple(n for n in shape if n > 1)
    if len(shape) > 2 and 2 <= len(many) < len(shape):
        letters = iter(_guess(many))
        return "".join(next(letters) if n > 1 else "?" for n in shape)
    if len(shape) == 2:
        return "yx"
    if len(shape) == 3 and shape[-1] in (3, 4) and min(shape[:2]) > 4:
        return "yxc"
    return "?" * len(shape)


def _over_white(array: Array, premultiplied: bool = False) -> Array:
    """``[C, *S]`` whose last channel is opacity, composited over white; colours may have been multiplied by it already."""
    colour, alpha = array[:-1], array[-1]
    top = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    if bool((alpha == array.dtype.type(top)).all()):
        return colour
    opacity = alpha.astype(np.float64) / top
    mixed: Array = colour * (1.0 if premultiplied else opacity) + top * (1 - opacity)
    mixed = np.minimum(mixed, top)
    return (mixed if array.dtype.kind == "f" else np.rint(mixed)).astype(array.dtype)


def _say_opacity(alpha: Array, name: str) -> None:
    top = 1.0 if alpha.dtype.kind == "f" else float(np.iinfo(alpha.dtype).max)
    part = float((alpha < top).mean())
    if part:
        warnings.warn(
            f"{name} is not opaque in {part:.1%} of its pixels; it is composited over white and its opacity dropped",
            stacklevel=5,
        )


def _pick(names: Sequence[str], channels: tuple[int | str, ...] | None, name: str) -> tuple[int, ...] | None:
    """Numbers of the channels that were asked for, None for all."""
    if channels is None:
        return None
    index = []
    for channel in channels:
        if channel in names:
            index.append(list(names).index(str(channel)))
        elif str(channel).isdecimal() and int(channel) < len(names):
            index.append(int(channel))
        else:
            raise ValueError(
                f"wanted channels of {name} ({', '.join(names)}, or a number from 0), got {channel!r}; name one"
            )
    return tuple(index)


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
        "pixel" if grid.unit == "px" else grid.unit,
        data.channels,
        rgb,
    )


def _aside(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a path of the same folder, then give it the name; nothing half-written ever bears it."""
    with regframe.staged(path, overwrite=True) as aside:
        write(aside)
