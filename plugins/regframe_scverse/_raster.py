"""Images and labels of a SpatialData as lazy pyramids, and their twins, whose pixels are computed when somebody asks for them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import regframe

from ._elements import XY, placed_in
from ._positions import Array

COARSEST = 512
"""Pixels per axis of the coarsest level of a carried image at most, as `regframe.warp_slide` writes it."""
SMALL = 1024
"""Pixels per axis of a block of an element that is turned in its coordinate system."""
_EVEN = 1e-6
"""Largest turn, shear or shift of a coarser level against the finest, in pixels of the finest per its pixel, that counts as
rounding of the scales that a store states; a level that is off by more is not read."""


def pyramid_of(sd: Any, element: Any, kind: str, name: str, system: str) -> tuple[regframe.Pyramid, Array]:
    """All levels of an image or labels, none of them read, and where its pixels lie.

    Args:
        sd: the module spatialdata.
        element: an image or labels, of one scale or several.
        kind: ``"images"`` or ``"labels"``.
        name: of the element.
        system: the coordinate system that it is placed in.

    Returns:
        The pyramid in px of its finest level, whose first corner is 0, and ``[3, 3]`` from its (x, y) to ``system``.

    Raises:
        ValueError: where it is not placed in ``system`` by an affine map, or is 3D.
    """
    arrays = [element] if not hasattr(element, "children") else list(sd.get_pyramid_levels(element))
    labels = kind == "labels"
    first = placed_in(sd, arrays[0], name, system)
    levels = []
    for array in arrays:
        relative = np.linalg.solve(first, placed_in(sd, array, name, system))
        scale = np.diag(relative)[:2]
        if np.abs(relative - np.diag([*scale, 1])).max() > _EVEN * scale.max() or scale.min() <= 0:
            continue
        data = array.transpose("y", "x").data[None] if labels else array.transpose("c", "y", "x").data
        sx, sy = (float(s) for s in scale)
        grid = regframe.Grid(data.shape[1:], (sy, sx), (sy / 2, sx / 2))
        chunk = tuple(max(c) for c in data.chunks) if hasattr(data, "chunks") else data.shape
        levels.append(regframe.Level(grid, chunk, functools.partial(_read, data)))
    channels = ("0",) if labels else tuple(str(c) for c in arrays[0].coords["c"].values)
    return regframe.Pyramid(tuple(levels), arrays[0].dtype, channels, labels=labels, name=name), first


def upright(grid: regframe.Grid, matrix: Array, unit: str) -> regframe.Grid | None:
    """The grid ``grid`` where ``[3, 3]`` in (x, y), from its positions to a space in ``unit``, puts it; None where that turns or
    mirrors it."""
    (sy, sx), (oy, ox) = grid.spacing, grid.origin
    lies = matrix @ np.array([[sx, 0, ox - sx / 2], [0, sy, oy - sy / 2], [0, 0, 1]])
    if lies[0, 1] != 0 or lies[1, 0] != 0 or lies[0, 0] <= 0 or lies[1, 1] <= 0:
        return None
    sx, sy = float(lies[0, 0]), float(lies[1, 1])
    return regframe.Grid(grid.shape, (sy, sx), (float(lies[1, 2]) + sy / 2, float(lies[0, 2]) + sx / 2), unit)


def carried(
    sd: Any,
    pyramid: regframe.Pyramid,
    transform: regframe.Transform,
    canvas: regframe.Grid,
    where: dict[str, Any],
    turned: bool = False,
) -> Any:
    """The twin of an image or labels: an element of dask arrays, whose blocks are warped when they are computed.

    A block is a shard of `regframe.warp_slide`: 64 MiB of pixels at most, and about five times as much while it is computed;
    1024 pixels per axis where the image is turned, for then it takes twenty times as much. It reads the chunks of the source
    that it needs, of the level that is fine enough. Where the source has several levels so does the twin, each of half the
    pixels per axis, from the source's level of that size.

    Args:
        sd: the module spatialdata.
        pyramid: the image, as of `pyramid_of`.
        transform: from the image's unit to that of ``canvas``.
        canvas: grid of the twin.
        where: transformation by coordinate system, of the twin.
        turned: whether ``transform`` begins with a turn of the image's own pixels, so that no single kernel follows it.
    """
    import dask.array
    import xarray

    made = []
    for grid in _levels(canvas) if len(pyramid.levels) > 1 else [canvas]:
        view = _View(regframe.SlideWarp(pyramid, transform, grid, Path("unwritten.zarr")))
        block = SMALL if turned else regframe.SlideOptions().edge(len(pyramid.channels) * view.dtype.itemsize)
        blocks = (len(pyramid.channels), *(min(block, n) for n in grid.shape))
        array = dask.array.from_array(  # type: ignore[no-untyped-call]
            view, chunks=blocks, name=False, asarray=False, meta=np.empty((0,) * 3, view.dtype)
        )
        made.append(array[0] if pyramid.labels else array)
    model = sd.models.Labels2DModel if pyramid.labels else sd.models.Image2DModel
    named: dict[str, Any] = {"dims": ("y", "x")} if pyramid.labels else {"dims": ("c", "y", "x")}
    if not pyramid.labels:
        named["c_coords"] = list(pyramid.channels)
    if len(made) == 1:
        return model.parse(made[0], transformations=where, **named)
    scales = [model.parse(array, **named) for array in made]
    for scale in scales:
        scale.attrs.pop("transform")
    tree = xarray.DataTree.from_dict({f"scale{k}": xarray.Dataset({"image": s}) for k, s in enumerate(scales)})
    for name, node in tree.children.items():  # the middle of each pixel, in pixels of the finest level
        ratio = {axis: scales[0].sizes[axis] / node.sizes[axis] for axis in XY}
        places = {axis: (np.arange(node.sizes[axis]) + 0.5) * ratio[axis] for axis in XY}
        tree[name] = xarray.DataTree(node.to_dataset().assign_coords(places))
    sd.transformations.set_transformation(tree, where, set_all=True)
    model().validate(tree)
    return tree


def _levels(canvas: regframe.Grid) -> Iterator[regframe.Grid]:
    """Grids of one field, each of half the pixels per axis: SpatialData takes all levels to end at the same corners."""
    shape = canvas.shape
    corner = [o - s / 2 for o, s in zip(canvas.origin, canvas.spacing, strict=True)]
    extent = [n * s for n, s in zip(canvas.shape, canvas.spacing, strict=True)]
    yield canvas
    while max(shape) > COARSEST:
        shape = tuple(-(-n // 2) for n in shape)
        spacing = tuple(e / n for e, n in zip(extent, shape, strict=True))
        yield regframe.Grid(shape, spacing, tuple(c + s / 2 for c, s in zip(corner, spacing, strict=True)), canvas.unit)


@dataclass(frozen=True)
class _View:
    """A warped image ``[C, y, x]`` as an array that computes what is asked of it, as dask wants one; it can be pickled."""

    plan: regframe.SlideWarp

    ndim = 3

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.plan.pyramid.channels), *self.plan.grid.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.plan.dtype

    def __getitem__(self, index: Any) -> Any:
        """The part that any index of numpy without new axes names; the rectangle around it is computed."""
        index = index if isinstance(index, tuple) else (index,)
        wanted = [np.arange(n)[i] for n, i in zip(self.shape, (*index, *[slice(None)] * (3 - len(index))), strict=True)]
        low = [int(np.min(w)) if np.size(w) else 0 for w in wanted]
        high = [int(np.max(w)) + 1 if np.size(w) else 1 for w in wanted]
        part = self.plan.pixels(tuple(slice(a, b) for a, b in zip(low[1:], high[1:], strict=True)))
        for axis in (2, 1, 0):  # the last first, so that an axis that falls away moves no other
            part = part.take(wanted[axis] - (low[axis] if axis else 0), axis=axis)
        return part


def _read(data: Any, region: tuple[slice, ...]) -> Any:
    """Pixels ``[C, *region]`` of an array of dask or numpy, by the thread that asks."""
    part = data[(slice(None), *region)]
    if hasattr(part, "compute"):
        part = part.compute(scheduler="synchronous")
    return np.asarray(part)
