"""The data that are registered: a `Grid` (which turns indices into positions), an `Image` on a grid, a `PointSet`.

Every position is physical, its components in tensor-axis order ``(y, x)`` or ``(z, y, x)``; the position of a pixel is that of
its centre. Only a `Grid` turns indices into positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .display import notebook
from .later import torch

if TYPE_CHECKING:
    from torch import Tensor

AXES: dict[int, tuple[str, ...]] = {2: ("y", "x"), 3: ("z", "y", "x")}
"""Names of the spatial axes of an array, and of the components of a position, in order, by the number of dimensions."""

UNITS: dict[str, float] = {"nm": 1e-9, "µm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}
"""Length in metres of each length unit. Data without a declared pixel size have the unit ``"px"``, which is not in this table."""

OME_UNITS: dict[str, str] = {
    "nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter",
}  # fmt: skip
"""OME-Zarr's spelling of each length unit (the names of UDUNITS-2, as the NGFF specification asks). OME-Zarr has no unit for
pixels."""

_UNIT_ALIASES = {
    "um": "µm", "μm": "µm", "micron": "µm", "microns": "µm", "micrometer": "µm", "micrometre": "µm",
    "nanometer": "nm", "nanometre": "nm", "millimeter": "mm", "millimetre": "mm", "centimeter": "cm",
    "centimetre": "cm", "meter": "m", "metre": "m", "pixel": "px", "pixels": "px", "": "px",
}  # fmt: skip


def canonical_unit(unit: str | None) -> str:
    """The short name of a length unit (``"micrometer"`` → ``"µm"``; None → ``"px"``); ValueError for an unknown one."""
    name = (unit or "px").strip()
    name = _UNIT_ALIASES.get(name.lower(), name)
    if name != "px" and name not in UNITS:
        known = ", ".join(["px", *UNITS])
        raise ValueError(f"wanted a length unit ({known}), got {unit!r}; name one of these")
    return name


def ome_unit(unit: str) -> str:
    """A length unit as OME-Zarr spells it (``"µm"`` → ``"micrometer"``, ``"px"`` → ``"pixel"``); ValueError for others."""
    short = canonical_unit(unit)
    return OME_UNITS.get(short, "pixel")


def unit_ratio(source: str, target: str) -> float | None:
    """Factor that converts a length in ``source`` to ``target``; None where exactly one of the two is pixels.

    ValueError for a word that is no unit.
    """
    source, target = canonical_unit(source), canonical_unit(target)
    if source == target:
        return 1.0
    if "px" in (source, target):
        return None
    return UNITS[source] / UNITS[target]


@dataclass(frozen=True)
class Grid:
    """A regular grid of pixels: position of index ``i`` is ``origin + spacing * i``, per axis.

    Args:
        shape: pixels per axis, tensor order ``(y, x)`` or ``(z, y, x)``.
        spacing: distance of neighbouring pixel centres per axis, in ``unit``; positive. A scalar serves every axis.
        origin: position of the first pixel's centre, in ``unit``.
        unit: ``"px"`` where the data declare no physical size, else a length unit.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    unit: str = "px"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        ndim = len(shape)
        if ndim not in AXES:
            raise ValueError(f"wanted a grid of 2 or 3 axes, got shape {shape}; name the axes of the array")
        spacing: Any = self.spacing if isinstance(self.spacing, Sequence) else (self.spacing,)
        spacing = tuple(float(s) for s in spacing) or (1.0,) * ndim
        spacing = spacing * ndim if len(spacing) == 1 else spacing
        origin = tuple(float(o) for o in self.origin) or (0.0,) * ndim
        if len(spacing) != ndim or len(origin) != ndim:
            raise ValueError(
                f"wanted {ndim} components of spacing and origin for shape {shape}, got {spacing} and {origin}"
            )
        if any(n < 1 for n in shape):
            raise ValueError(f"wanted at least one pixel per axis, got shape {shape}")
        if not all(math.isfinite(s) and s > 0 for s in spacing) or not all(math.isfinite(o) for o in origin):
            raise ValueError(f"wanted finite, positive spacing and finite origin, got {spacing} and {origin}")
        for name, value in (("shape", shape), ("spacing", spacing), ("origin", origin)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "unit", canonical_unit(self.unit))

    @property
    def ndim(self) -> int:
        """Number of axes, 2 or 3."""
        return len(self.shape)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis names in tensor order."""
        return AXES[self.ndim]

    @property
    def extent(self) -> tuple[float, ...]:
        """Length covered per axis, in ``unit``: number of pixels times spacing."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

    @property
    def diagonal(self) -> float:
        """Diagonal of the extent, in ``unit``."""
        return math.hypot(*self.extent)

    @property
    def pixel(self) -> float:
        """Geometric mean of the spacing, in ``unit``: the length by which errors are divided to be given "in px"."""
        if len(set(self.spacing)) == 1:  # exactly, so that a change of unit changes nothing else
            return self.spacing[0]
        return math.prod(self.spacing) ** (1 / self.ndim)

    @property
    def center(self) -> tuple[float, ...]:
        """Position of the middle of the grid, in ``unit``."""
        return tuple(o + s * (n - 1) / 2 for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True))

    def index_to_position(self) -> Tensor:
        """Homogeneous matrix ``[D+1, D+1]`` (float64) from index to position."""
        matrix = torch.diag(torch.tensor([*self.spacing, 1.0], dtype=torch.float64))
        matrix[:-1, -1] = torch.tensor(self.origin, dtype=torch.float64)
        return matrix

    def coords(self, device: torch.device | str | None = None) -> Tensor:
        """Positions of all pixel centres, ``[*S, D]`` float64, in ``unit``; on the CPU unless a device is named."""
        axes = [
            o + s * torch.arange(n, dtype=torch.float64, device=device)
            for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    def corners(self) -> Tensor:
        """Positions of the centres of the corner pixels, ``[2^D, D]`` float64, in ``unit``."""
        ends = [
            torch.tensor([o, o + s * (n - 1)], dtype=torch.float64)
            for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True)
        ]
        return torch.stack(torch.meshgrid(*ends, indexing="ij"), dim=-1).reshape(-1, self.ndim)

    def contains(self, coords: Tensor) -> Tensor:
        """Whether positions ``[..., D]`` lie on a pixel's area, ``[...]`` bool."""
        coords = tensor_of(coords)
        if not coords.is_floating_point():
            coords = coords.to(torch.float64)
        origin, spacing, shape = (
            torch.tensor(values, dtype=coords.dtype, device=coords.device)
            for values in (self.origin, self.spacing, self.shape)
        )
        index = (coords - origin) / spacing
        return ((index >= -0.5) & (index <= shape - 0.5)).all(dim=-1)

    def resampled(self, spacing: float | Sequence[float]) -> Grid:
        """The grid with another spacing, over this grid's extent to within half a new pixel.

        The outer edge of the first pixel stays where it is on every axis.
        """
        target = tuple(spacing) if isinstance(spacing, Sequence) else (float(spacing),) * self.ndim
        shape = tuple(max(1, round(e / s)) for e, s in zip(self.extent, target, strict=True))
        origin = tuple(o - s / 2 + t / 2 for o, s, t in zip(self.origin, self.spacing, target, strict=True))
        return Grid(shape, target, origin, self.unit)

    def in_blocks(self, factor: Sequence[int], within: Sequence[float]) -> Grid:
        """The grid whose pixels are blocks of ``factor`` pixels per axis, counted from the first; the last may be smaller.

        Args:
            factor: pixels of a block, per axis.
            within: position assigned to a block, in pixels from the centre of its first pixel: ``(factor - 1) / 2`` where a
                block is averaged, 0 where only its first pixel is taken.
        """
        return Grid(
            tuple(-(-n // f) for n, f in zip(self.shape, factor, strict=True)),
            tuple(s * f for s, f in zip(self.spacing, factor, strict=True)),
            tuple(o + s * w for o, s, w in zip(self.origin, self.spacing, within, strict=True)),
            self.unit,
        )

    def to_unit(self, unit: str) -> Grid:
        """This grid in another length unit; ValueError where the two cannot be converted (pixels and a length)."""
        ratio = unit_ratio(self.unit, unit)
        if ratio is None:
            raise ValueError(
                f"wanted a grid in a length unit, got {self.unit!r}, to convert to {unit!r}; state a spacing"
            )
        return Grid(self.shape, tuple(s * ratio for s in self.spacing), tuple(o * ratio for o in self.origin), unit)


def describe_grid(grid: Grid) -> str:
    """Size, spacing and unit of a grid, in a few words."""
    size = " × ".join(str(n) for n in grid.shape)
    spacing = " × ".join(f"{s:.6g}" for s in dict.fromkeys(grid.spacing))
    return f"{size} px of {spacing} {grid.unit}"


@dataclass(frozen=True)
class Reading:
    """How an image was read out of a larger one.

    Args:
        level: resolution level of the source that was read, 0 the finest.
        levels: number of levels that the source has.
        factor: pixels of that level, per axis, that were averaged into one pixel of the image; 1 where none were.
        full: the grid of the finest level.
    """

    level: int
    levels: int
    factor: tuple[int, ...]
    full: Grid

    def __str__(self) -> str:
        size = " × ".join(str(n) for n in self.full.shape)
        blocks = " × ".join(str(f) for f in self.factor)
        averaged = f", averaged over {blocks} pixels" if any(f > 1 for f in self.factor) else ""
        return f"level {self.level} of {self.levels}{averaged}, of {size} px"


@dataclass(frozen=True)
class Original:
    """What a side was before a fit brought it into its frame and standardised its intensities; `Metric.prepare` gets it.

    A position ``p`` of the frame lies at ``center + length * p`` in ``unit``; a value ``v`` of channel c was ``mean[c] +
    scale[c] * v``.

    Args:
        unit: length unit of the side, ``"px"`` where none is known.
        length: length of a unit of the frame in ``unit``: the size of a pixel of the whole side.
        center: position of the frame's origin in ``unit``, components in the order (z,) y, x.
        grid: the whole side's canvas, in ``unit``; of points the box around them.
        mean: mean of each channel over trusted pixels, in the image's own intensities; empty for points.
        scale: standard deviation of each channel, likewise; 0 for a constant one, whose values are 0 now.
        name: of the side.
    """

    unit: str
    length: float
    center: tuple[float, ...]
    grid: Grid
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    name: str = ""


def _check_weights(weights: Tensor | None, whose: str) -> None:
    """Refuse weights that are negative or not a number."""
    if weights is not None and weights.numel() and not weights.amin() >= 0:
        lost = int((~(weights >= 0)).sum())
        raise ValueError(
            f"wanted finite weights of at least 0 for {whose}, got {lost} others; give what does not count the weight 0"
        )


@dataclass(frozen=True)
class Image:
    """Pixels on a grid.

    Args:
        data: ``[C, *S]`` tensor, or numpy array, in the data's own dtype.
        grid: where its pixels are; ``grid.shape == data.shape[1:]``.
        channels: one name per channel.
        labels: True where values are ids (a segmentation); ids are never averaged.
        weight: optional ``[*S]`` in 0 … 1, trust per pixel (a mask), a tensor or numpy array; None where every pixel counts.
        name: used in messages and captions.
        reading: how the image was read out of a larger one; None where it was read whole.
        counted: where values are counts or densities of things (cells), the number of things that a value of 1 stands for: the
            square of a value's mean over its variance, if things lie where chance puts them. None for measured intensities.
        before: what the side was before it was standardised, of an image that a fit hands to a metric; None elsewhere.
        things: of a density of things (cells) where each of them lies, ``[N, D]`` in pixels of the grid (0 is the middle of the
            first pixel); None where that is not known.
    """

    data: Tensor
    grid: Grid
    channels: tuple[str, ...] = ()
    labels: bool = False
    weight: Tensor | None = None
    name: str = "image"
    reading: Reading | None = None
    counted: float | None = None
    before: Original | None = None
    things: Tensor | None = None

    def __post_init__(self) -> None:
        _as_tensors(self, "data", "weight", "things")
        if not isinstance(self.data, torch.Tensor):
            raise TypeError(
                f"wanted a torch tensor or numpy array [C, *S], got {type(self.data).__name__}; use Image.from_array"
            )
        if tuple(self.data.shape[1:]) != self.grid.shape:
            raise ValueError(f"wanted data [C, {self.grid.shape}], got {tuple(self.data.shape)}")
        channels = tuple(self.channels) or tuple(str(i) for i in range(self.data.shape[0]))
        if len(channels) != self.data.shape[0]:
            raise ValueError(f"wanted {self.data.shape[0]} channel names, got {len(channels)}: {channels}")
        object.__setattr__(self, "channels", channels)
        if self.weight is not None and tuple(self.weight.shape) != self.grid.shape:
            raise ValueError(f"wanted a weight of shape {self.grid.shape}, got {tuple(self.weight.shape)}")
        _check_weights(self.weight, "the pixels of an image")
        if self.counted is not None and not 0 < self.counted < math.inf:
            raise ValueError(
                f"wanted a positive number of things per value of 1, got {self.counted!r}; None if not counted"
            )

    @classmethod
    def from_array(
        cls,
        array: np.ndarray[Any, Any] | Tensor,
        axes: str | None = None,
        spacing: float | Sequence[float] = (),
        origin: Sequence[float] = (),
        unit: str = "px",
        **kwargs: Any,
    ) -> Image:
        """Make an image of an array whose axes are named, e.g. ``"yx"``, ``"yxc"``, ``"czyx"``.

        Without ``axes`` a 2D array is ``yx`` and a 3D one with 3 or 4 entries last (and more in the others) ``yxc``;
        anything else raises ValueError, for it could mean two things.
        """
        tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(_native(array))
        if axes is None:
            if tensor.ndim == 2:
                axes = "yx"
            elif tensor.ndim == 3 and tensor.shape[-1] in (3, 4) and min(tensor.shape[:2]) > 4:
                axes = "yxc"
            else:
                raise ValueError(
                    f"wanted axes for an array of shape {tuple(tensor.shape)}, got none; "
                    "name them, e.g. axes='cyx' (channels first), 'yxc' or 'zyx'"
                )
        axes = axes.lower()
        if len(axes) != tensor.ndim or len(set(axes)) != len(axes) or not set(axes) <= set("czyx"):
            raise ValueError(f"wanted {tensor.ndim} distinct axes out of c, z, y, x, got {axes!r}")
        if not {"y", "x"} <= set(axes):
            raise ValueError(f"wanted at least the axes y and x, got {axes!r}")
        if "c" not in axes:
            tensor, axes = tensor[None], "c" + axes
        order = [axes.index(a) for a in ("czyx" if "z" in axes else "cyx")]
        tensor = tensor.permute(order).contiguous()
        if isinstance(spacing, (int, float)):
            spacing = (float(spacing),)
        return cls(tensor, Grid(tuple(tensor.shape[1:]), tuple(spacing), tuple(origin), unit), **kwargs)

    def replace(self, **changes: Any) -> Image:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The pixels as ``[H, W, C]``, of a volume ``[Z, H, W, C]``: the order that matplotlib and scikit-image want.

        A view of `data` where that lies on the host; ``np.asarray(image)`` gives the same.
        """
        return self.data.detach().cpu().movedim(0, -1).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def plot(self, axes: Any = None, channel: str | int | None = None) -> Any:
        """Draw the image, of a volume its middle plane, with matplotlib.

        Args:
            axes: matplotlib axes to draw on; new ones where None.
            channel: name or number of the one channel to show in grey; all where None.

        Returns:
            The axes, x and y in the grid's unit.

        Raises:
            ValueError: no channel has that name or number.
        """
        pixels = _plane(self)
        if channel is not None:
            pixels = pixels[..., [_channel(self, channel)]]
        axes = notebook.axes_of(axes, self.name, self.grid.unit)
        grid = self.grid
        shown = notebook.rgb(notebook.thinned(pixels, 2000), self.labels)
        axes.imshow(shown, extent=notebook.edges(grid.shape, grid.spacing, grid.origin), interpolation="nearest")
        return axes

    def __repr__(self) -> str:
        kind = str(self.data.dtype).removeprefix("torch.")
        return f"Image({self.name!r}, {describe_grid(self.grid)}, {_count(self)}, {kind})"

    def _repr_html_(self) -> str:
        facts = [
            ("canvas", describe_grid(self.grid)),
            ("extent", " × ".join(f"{e:.6g}" for e in self.grid.extent) + f" {self.grid.unit}"),
            ("channels", _few(self.channels)),
            ("values", ("ids, " if self.labels else "") + str(self.data.dtype).removeprefix("torch.")),
            *([("weight", "a mask or trust per pixel")] if self.weight is not None else []),
            *([("read", str(self.reading))] if self.reading is not None else []),
        ]
        small = notebook.thinned(_plane(self), notebook.THUMBNAIL)
        return notebook.table(self.name, facts, notebook.rgb(small, self.labels))


@dataclass(frozen=True)
class Level:
    """One resolution of a `Pyramid`, whose pixels stay on the disk until a region is read.

    Args:
        grid: positions of the level's pixels, in the physical space that all levels share.
        chunk: pixels per axis ``(c, *S)`` that are stored and decoded as one block: reads aligned to such blocks decode the
            fewest.
        read: function that reads a region, given as one slice per spatial axis (explicit, non-negative start and stop inside
            the grid, no step), and returns ``[C, *region]`` in the pyramid's dtype. It can be pickled and is safe to call from
            several threads and processes at once.
    """

    grid: Grid
    chunk: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Series:
    """One of the images that a file holds.

    Args:
        number: its place in the file, from 0.
        name: as the file gives it; empty where it gives none.
        axes: one letter per stored axis, out of ``t c z y x s``.
        shape: entries per axis.
        spacing: distance of pixels along y and x at full resolution, in ``unit``, as the file states it; NaN where it does not.
        unit: of the spacing, as the file spells it.
        role: ``image``, ``label``, ``macro``, ``thumbnail``, or ``ids`` for a segmentation.
        read: whether it is the one that is read.
    """

    number: int
    name: str
    axes: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] = ()
    unit: str = "px"
    role: str = "image"
    read: bool = False


@dataclass(frozen=True)
class Pyramid:
    """A large image at several resolutions, lazy.

    Args:
        levels: the resolutions, finest first.
        dtype: of the pixels, common to all levels.
        channels: one name per channel.
        colors: display colour ``RRGGBB`` of each channel; empty where the file states none.
        labels: True where values are ids, which are never averaged.
        name: used in messages and captions.
        series: the images of the file, where it holds several.
        notes: sentences on what the file declares and how it was read: what was left out, converted or could not be read.
        waves: excitation and emission wavelength of each channel in nm, None each where the file states none; empty where it
            states none of any channel.
        stage: where the microscope's stage stood, along y and x, in the unit of the grid; empty where the file does not say.
            Makers differ in its directions.
    """

    levels: tuple[Level, ...]
    dtype: np.dtype[Any]
    channels: tuple[str, ...]
    colors: tuple[str, ...] = ()
    labels: bool = False
    name: str = "image"
    series: tuple[Series, ...] = ()
    notes: tuple[str, ...] = ()
    waves: tuple[tuple[float | None, float | None], ...] = ()
    stage: tuple[float, ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid of the finest level."""
        return self.levels[0].grid

    def image(self, level: int = 0) -> Image:
        """The whole of one level, read into memory."""
        chosen = self.levels[level]
        data = chosen.read(tuple(slice(0, n) for n in chosen.grid.shape))
        return Image(torch.from_numpy(_native(data)), chosen.grid, self.channels, labels=self.labels, name=self.name)


@dataclass(frozen=True)
class PointSet:
    """Unpaired positions, with the table they were read from.

    Args:
        coords: ``[N, D]`` float64, a tensor or numpy array, in ``unit``, components in the order of `axes`: ``(y, x)`` or
            ``(z, y, x)``.
        unit: length unit of the coordinates, ``"px"`` where none is declared.
        weights: optional ``[N]``, a tensor or numpy array.
        table: all columns of the source by name, in its order, each of length N; they are kept unchanged.
        columns: names of the position columns in ``table``, in the order of `axes`.
        name: used in messages and captions.
        before: what the side was before a fit brought it into its frame, of points that it hands to a metric; None elsewhere.
    """

    coords: Tensor
    unit: str = "px"
    weights: Tensor | None = None
    table: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    name: str = "points"
    before: Original | None = None

    def __post_init__(self) -> None:
        _as_tensors(self, "coords", "weights")
        for what, value in (("coordinates", self.coords), ("weights", self.weights)):
            if value is not None and not isinstance(value, torch.Tensor):
                raise ValueError(
                    f"wanted a tensor or numpy array of {what}, got {type(value).__name__}; numpy.asarray makes one of numbers "
                    "(positions in the order y, x)"
                )
        if self.coords.ndim != 2 or self.coords.shape[1] not in AXES:
            raise ValueError(f"wanted coordinates [N, 2] or [N, 3], got {tuple(self.coords.shape)}")
        object.__setattr__(self, "coords", self.coords.to(torch.float64))
        object.__setattr__(self, "unit", canonical_unit(self.unit))
        if self.weights is not None and self.weights.shape != self.coords.shape[:1]:
            raise ValueError(f"wanted one weight per point, got {tuple(self.weights.shape)} for {len(self)} points")
        _check_weights(self.weights, "points")
        bad = [name for name, column in self.table.items() if len(column) != len(self)]
        if bad:
            raise ValueError(f"wanted {len(self)} entries in every column, got another number in {bad}")

    def __len__(self) -> int:
        return int(self.coords.shape[0])

    @property
    def ndim(self) -> int:
        """Number of components, 2 or 3."""
        return int(self.coords.shape[1])

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis names of the coordinates' components."""
        return AXES[self.ndim]

    def replace(self, **changes: Any) -> PointSet:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def plot(self, axes: Any = None, **style: Any) -> Any:
        """Draw the points, of a volume seen along z, with matplotlib.

        Args:
            axes: matplotlib axes to draw on; new ones where None.
            style: further arguments of ``axes.scatter``.

        Returns:
            The axes, x and y in the points' unit.
        """
        fresh = axes is None
        axes = notebook.axes_of(axes, self.name, self.unit)
        yx = self.coords[:, -2:].numpy()
        step = max(1, -(-len(yx) // notebook.MOST_POINTS))
        axes.scatter(yx[::step, 1], yx[::step, 0], **{"s": 2.0, "linewidths": 0, **style})
        axes.set_aspect("equal")
        if fresh:
            axes.invert_yaxis()
        return axes

    def __repr__(self) -> str:
        columns = f", {len(self.table)} columns" if self.table else ""
        return f"PointSet({self.name!r}, {len(self):,} points ({', '.join(self.axes)}) in {self.unit}{columns})"

    def _repr_html_(self) -> str:
        known = self.coords[torch.isfinite(self.coords).all(dim=1)]
        box = "–"
        if len(known):
            low, high = known.amin(dim=0).tolist(), known.amax(dim=0).tolist()
            box = ", ".join(f"{a} {p:.6g} … {q:.6g}" for a, p, q in zip(self.axes, low, high, strict=True))
        facts = [
            ("points", f"{len(self):,}"),
            ("positions", f"{box} {self.unit}"),
            *([("columns", _few(tuple(self.table)))] if self.table else []),
            *([("weights", "one per point")] if self.weights is not None else []),
        ]
        return notebook.table(self.name, facts, notebook.dots(self.coords[:, -2:].numpy()))


def _as_tensors(owner: Image | PointSet, *names: str) -> None:
    """Put tensors in place of the numpy arrays among fields of an object under construction."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, np.ndarray):
            object.__setattr__(owner, name, torch.from_numpy(_native(value)))


def _plane(image: Image) -> np.ndarray[Any, Any]:
    """Pixels ``[H, W, C]`` of an image, or of the middle plane of a volume."""
    pixels = image.numpy()
    return pixels[pixels.shape[0] // 2] if image.grid.ndim == 3 else pixels


def _channel(image: Image, wanted: str | int) -> int:
    """The number of the channel named, or numbered, ``wanted``; ValueError where there is none."""
    if isinstance(wanted, int) and 0 <= wanted < len(image.channels):
        return wanted
    if wanted in image.channels:
        return image.channels.index(str(wanted))
    raise ValueError(
        f"wanted one of the channels {_few(image.channels)}, or its number, got {wanted!r}; name one of these"
    )


def _few(names: Sequence[str], most: int = 8) -> str:
    """Names, the first ``most`` of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _count(image: Image) -> str:
    if image.labels:
        return "labels"
    return f"{len(image.channels)} channel{'' if len(image.channels) == 1 else 's'}"


def tensor_of(values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` as a tensor: a tensor itself, a numpy array of any layout (also ``xy[:, ::-1]``), a table of numbers, lists.

    Raises ValueError for what is not numeric.
    """
    if not isinstance(values, torch.Tensor) and hasattr(values, "__array__"):
        values = torch.from_numpy(_native(np.asarray(values)))
    return torch.as_tensor(values, dtype=dtype)


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array in a byte order, memory layout and dtype that torch can hold, with the same values."""
    array = np.asarray(array)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind not in "uif":
        raise ValueError(
            f"wanted a numeric array, got dtype {array.dtype}; turn it into numbers first (of complex ones: their magnitude)"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = np.ascontiguousarray(array)
    array = array.view(f"{array.dtype.kind}{array.dtype.itemsize}")  # C's long long is another type than long to torch
    return array if array.flags.writeable else array.copy()  # torch holds writable memory only
