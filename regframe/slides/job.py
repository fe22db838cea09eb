"""One shard of a slide as a task of another process or machine."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import plugins
from ..data import Grid
from ..fit.threads import on_threads
from ..io.store import load
from ..remote.address import Remote, locate
from .place import Canvas, canvas_grid, place_pyramid
from .warp import Background, SlideOptions, SlideWarp
from .zarrshards import quiet_zarr

_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
"""Files at the root of a Zarr store, of format 3 or 2."""

# ------------------------------------------------------------------------------------------------------ paths for tasks


@dataclass(frozen=True)
class SlideJob:
    """The warp of an image file by a saved result, described by plain values that can be sent to another machine.

    ``job.plan()`` opens the files; ``run_shard(job, index)`` computes one shard and caches the plan for the next one.

    Args:
        result: the folder that ``regframe register`` wrote.
        input: the image to carry.
        output: ``NAME.zarr`` or ``NAME.ome.tif``, or a name that a plug-in writes tile by tile.
        to: the side to carry to, ``fixed`` or ``moving``; the image belongs to the other side.
        adapter: name of the adapter that reads the image; found by asking all adapters where None.
        options: options of the adapter, as pairs.
        input_spacing: pixel size of the image's finest level, in the unit of its side; as the file states it where None.
        canvas: field of view of the output: ``fixed``, ``moving`` or ``union``; that of the side ``to`` where None.
        spacing: pixel size of the output, in the unit of the side ``to``.
        region: part of the canvas, in the unit of the side ``to``: first and last position per axis.
        level: resolution of the image to read; it also gives the output's pixel size where ``spacing`` is None.
        background: value beyond the image's pixels, as in `SlideOptions`.
        finest: the finest pixels of the side ``to``, as in `canvas_grid`.
        device: where intensities are carried, as in `SlideOptions`.
        made_of: hash of the plan, which tells files from others that lay at the same places before; workers keep their plans.
    """

    result: str
    input: str
    output: str
    to: Literal["fixed", "moving"]
    adapter: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    input_spacing: float | None = None
    canvas: Canvas | None = None
    spacing: float | None = None
    region: tuple[tuple[float, float], ...] | None = None
    level: int | None = None
    background: Background = "auto"
    finest: Grid | None = None
    device: str = "cpu"
    made_of: str = ""

    def plan(self) -> SlideWarp | None:
        """The plan of `warp_slide`.

        None for volumes, for ids stored as floats, and where the adapter has no pyramid of the image.
        """
        reader = plugins.find_adapter(self.input, self.adapter, **dict(self.options))
        pyramid = reader.pyramid(self.input)
        tiff = self.output.lower().endswith((".tif", ".tiff"))
        if (
            pyramid is None
            or pyramid.grid.ndim != 2
            or (tiff and pyramid.dtype.itemsize == 8 and pyramid.dtype.kind in "ui")
            or (pyramid.labels and pyramid.dtype.kind == "f")
        ):
            return None
        result = load(self.result)
        side = result.moving_grid if self.to == "fixed" else result.fixed_grid
        placed = place_pyramid(pyramid, side, self.input_spacing)
        grid = canvas_grid(result, self.to, self.canvas, self.spacing, self.region, placed, self.level, self.finest)
        transform = result.transform if self.to == "fixed" else result.transform.inverse()
        return SlideWarp(
            placed,
            transform,
            grid,
            locate(self.output),
            SlideOptions(self.level, self.background, device=self.device),
            identity_of(locate(self.input)),
        )


@functools.lru_cache(maxsize=4)
def _plan_of(job: SlideJob) -> SlideWarp | None:
    return job.plan()


def run_shard(job: SlideJob, index: int) -> int:
    """Compute shard ``index`` of a job, while another process holds its output open (`SlideWarp.started`); returns ``index``."""
    plan = _plan_of(job)
    if plan is None:
        raise ValueError(f"wanted an image that can be read by regions, got {job.input!r}; convert it to OME-Zarr")
    with on_threads(1), quiet_zarr():  # one thread per task: every core runs a task of its own
        plan.run(index)
    return index


# ------------------------------------------------------------------------------------------------------------- helpers


def identity_of(path: Path | Remote) -> str:
    """Size and modification time of a file; of a folder or a remote store, those of its metadata files."""
    if isinstance(path, Remote):
        objects = [path] if path.is_file() else [f for f in (path / name for name in _METADATA) if f.is_file()]
        return repr((str(path), [(f.name, f.stamp()) for f in objects]))
    files = [path] if path.is_file() else [path / name for name in _METADATA]
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return repr((os.path.realpath(path), facts))
