"""`merge_group`: all channels of all images of a group as one slide, in the space of the reference."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..contracts import Progress
from ..data import Grid, Image, Pyramid
from ..display.bars import shown
from ..fit.threads import on_threads
from ..io.tasks import Pool, pool_of
from ..slides.merged import Layer, MergedWarp, merged
from ..slides.place import place_pyramid
from ..slides.warp import SlideOptions, SlideWarp
from ..slides.zarrshards import quiet_zarr
from .channels import NUCLEAR, is_colour
from .group import Group, load_group, write
from .members import pyramid_at
from .together import identity, options_of, sources_of

Repeats = Literal["keep", "drop"]
SAME_WAVE = 15.0
"""Difference of two emission wavelengths in nm up to which two channels saw the same light: makers state peaks of filters and of
dyes alike, and the bands of neighbouring channels lie 40 nm and more apart."""


@dataclass(frozen=True)
class Merge:
    """The plans of what `merge_group` writes.

    Args:
        slide: the slide of all channels; None where every image is in colours.
        colours: for each image in colours, the warp that puts it beside.
        dropped: names of the channels that are left out, with their images.
        left_out: images that have no place in the group, or serve as the background.
    """

    slide: MergedWarp | None
    colours: tuple[SlideWarp, ...]
    dropped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def plans(self) -> tuple[SlideWarp, ...]:
        """All plans, the slide first."""
        return (*([] if self.slide is None else [self.slide]), *self.colours)


@dataclass(frozen=True)
class MergeJob:
    """What `merge_group` writes of a group in a folder, described by plain values that can be sent to another machine.

    Args:
        group: the folder of the group.
        path: the merged slide.
        images: where the images of the group lie, in its order; its own sources where empty.
        repeats: as in `merge_group`.
        subtract: as in `merge_group`.
        made_of: hash of the plans, which tells the group from another one that lay at the same place before.
    """

    group: str
    path: str
    images: tuple[str, ...] = ()
    repeats: Repeats = "keep"
    subtract: str | None = None
    made_of: str = ""

    def write(
        self, plan: Merge, number: int, pool: Pool, overwrite: bool, progress: Callable[[Progress], object] | None
    ) -> None:
        """Have the shards of plan ``number`` of ``plan``, which is this job's, computed by a pool; raises what a shard raised."""
        one = plan.plans[number]
        task = functools.partial(run_shard, replace(self, made_of=one.fingerprint), number)
        with one.started(overwrite):
            finished = len(one.done())
            for batch in one.rounds:
                left = sorted(set(batch) - one.done())
                ended = pool.run(task, [(index,) for index in left])
                with contextlib.closing(ended):  # type: ignore[type-var]
                    for _, answer in ended:
                        if isinstance(answer, BaseException):
                            raise answer
                        finished += 1
                        if progress is not None:
                            progress(Progress("shards", finished, one.shards))
            one.finish(overwrite)


@functools.lru_cache(maxsize=2)
def _plan_of(job: MergeJob) -> Merge:
    return planned(load_group(job.group), Path(job.path), list(job.images) or None, job.repeats, job.subtract)


def run_shard(job: MergeJob, number: int, index: int) -> int:
    """Compute shard ``index`` of plan ``number`` of a job, while another process holds its output open; returns ``index``."""
    with on_threads(1), quiet_zarr():  # one thread per task: every core runs a task of its own
        _plan_of(job).plans[number].run(index)
    return index


def merge_group(
    group: Group,
    path: str | Path,
    *,
    images: Sequence[Any] | None = None,
    repeats: Repeats = "keep",
    subtract: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | Callable[[Progress], object] | None = None,
    client: Any = None,
) -> tuple[Path, ...]:
    """Write all channels of all images of a group as one slide, on the finest pixels of the reference.

    Every image is carried at full resolution, tile by tile, within bounded memory; values and type stay as they are. A call that
    was killed goes on where it was. Images in colours are written beside the slide, each as ``NAME.IMAGE`` with its suffix.

    Args:
        group: the group.
        path: ``NAME.zarr`` (OME-Zarr) or ``NAME.ome.tif``.
        images: the images of the group in its order, where they lie elsewhere now or were in memory; its own sources where None.
        repeats: ``drop`` leaves the channel by which images were aligned out of all but the reference; ``keep`` keeps all.
        subtract: name of an image that shows the background alone: each of its channels is subtracted from those that saw the
            same light, and it is no part of the slide.
        workers: threads; None takes one per core. Without effect beside a ``client``.
        overwrite: replace outputs that exist, and drop unfinished ones that were begun from something else.
        progress: True draws a bar (None does in a notebook and at a Python prompt); a function is called after every shard.
        client: a ``dask.distributed.Client`` whose workers compute the shards, one task each, or a
            ``concurrent.futures.Executor`` of processes. They have to see the images and the folder of ``path`` under the same
            names; the slide has the same bytes.

    Returns:
        The files that were written, the slide first.

    Raises:
        ValueError: an image that cannot be opened or is no longer the one that was aligned, a background that is none of them, a
            name that ends in neither suffix, images in memory beside a ``client``.
        FileExistsError: an output exists.
        ConnectionError: the client lost its scheduler.
        OSError: an output cannot be written; a second call goes on from what was done.
    """
    plan = planned(group, Path(path), images, repeats, subtract)
    with shown(progress) as told:
        if client is None:
            for each in plan.plans:
                each.write(workers, overwrite, told)
        else:
            with _job(group, Path(path), images, repeats, subtract) as job:
                pool = pool_of(client, _nobody)
                for number in range(len(plan.plans)):
                    job.write(plan, number, pool, overwrite, told)
    return tuple(Path(str(each.path)) for each in plan.plans)


def _nobody() -> Pool:
    raise AssertionError("asked only where there is a client")


@contextlib.contextmanager
def _job(
    group: Group, path: Path, images: Sequence[Any] | None, repeats: Repeats, subtract: str | None
) -> Iterator[MergeJob]:
    """The job of a group, which is written for its workers into a folder beside the slide as long as they need it."""
    given = list(images or [])
    if any(isinstance(one, Image) for one in given):
        raise ValueError(
            "wanted files as images beside a client, got an image in memory, which other processes do not see; save it "
            "(regframe.save) and pass its path"
        )
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.absolute().parent) as folder:
        write(group, Path(folder) / "group")
        yield MergeJob(
            str(Path(folder) / "group"),
            str(path.absolute()),
            tuple(str(Path(str(one)).absolute()) for one in given),
            repeats,
            subtract,
        )


def planned(
    group: Group, path: Path, images: Sequence[Any] | None, repeats: Repeats = "keep", subtract: str | None = None
) -> Merge:
    """The plans of `merge_group`, none of which is begun."""
    if repeats not in ("keep", "drop"):
        raise ValueError(f"wanted repeats keep or drop, got {repeats!r}; choose one")
    sources = sources_of(group, images)
    dark = None if subtract is None else _place(group, subtract)
    pyramids = {
        k: place_pyramid(pyramid_at(source, group.names[k], _finest(group, k, source)), result.moving_grid)
        for k, (source, result) in enumerate(zip(sources, group.results, strict=True))
        if result is not None
    }
    grid = pyramids[group.reference].grid
    names = _Names(group, repeats)
    layers, beside = [], []
    for k in range(len(group.names)):
        if k not in pyramids or k == dark:
            continue
        transform = group[k].transform
        if is_colour(pyramids[k]):
            beside.append(_beside(pyramids[k], transform, grid, path, group.names[k], identity(sources[k])))
            continue
        take, called = names.of(k, pyramids[k])
        minus = () if dark is None else _matched(pyramids[k], pyramids[dark], take)
        layers.append(Layer(pyramids[k], transform, take, called, minus))
    background = None
    if dark is not None:
        background = Layer(pyramids[dark], group[dark].transform, (), ())
        if not any(one is not None for layer in layers for one in layer.minus):
            raise ValueError(
                f"wanted a background that shares a wavelength, a name or the order of its channels with others, got {subtract}; "
                "leave --subtract out"
            )
    made_of = repr([identity(source) for source in sources])
    slide = merged(tuple(layers), grid, path, path.name, background, None, made_of) if layers else None
    lost = [group.names[k] for k in range(len(group.names)) if k not in pyramids or k == dark]
    return Merge(slide, tuple(beside), tuple(names.dropped), tuple(lost))


def _finest(group: Group, k: int, source: Any) -> dict[str, Any]:
    """The options by which a file was opened, but for the level: all of them are carried."""
    return {name: value for name, value in options_of(group, k, source).items() if name != "level"}


def _place(group: Group, name: str) -> int:
    if name not in group.names:
        raise ValueError(f"wanted as background one of {', '.join(group.names)}, got {name!r}; name one of these")
    k = group.names.index(name)
    if k == group.reference:
        raise ValueError(f"wanted a background other than the reference, got {name}; name another --reference")
    group[k]  # it has a place
    return k


def _beside(pyramid: Pyramid, transform: Any, grid: Grid, path: Path, name: str, made_of: str) -> SlideWarp:
    """The warp of an image in colours onto the canvas, beside the slide."""
    ends = next(
        (end for end in (".ome.zarr", ".ome.tif", ".ome.tiff", ".zarr", ".tif", ".tiff") if path.name.endswith(end)), ""
    )
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    target = path.with_name(f"{path.name[: len(path.name) - len(ends)]}.{plain}{ends or '.ome.zarr'}")
    return SlideWarp(pyramid, transform, grid, target, SlideOptions(), made_of)


class _Names:
    """Gives the channels of all images their names in the slide: their own, and that of the image where a name is there twice.

    Args:
        group: the group.
        repeats: whether the channels by which the images were aligned are dropped but for the reference's.
    """

    def __init__(self, group: Group, repeats: Repeats) -> None:
        self._group, self._repeats = group, repeats
        self._given: set[str] = set()
        self.dropped: list[str] = []

    def of(self, k: int, pyramid: Pyramid) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Numbers and names of the channels of image ``k`` that are taken."""
        group, image = self._group, self._group.metrics["images"][k]
        take, names = [], []
        for i, channel in enumerate(pyramid.channels):
            aligned = channel == image["channel"] and (
                NUCLEAR.search(channel) or image["channel_why"] == "in every round"
            )
            if self._repeats == "drop" and aligned and k != group.reference:
                self.dropped.append(f"{channel} of {group.names[k]}")
                continue
            take.append(i)
            names.append(self._unique(channel, group.names[k]))
        return tuple(take), tuple(names)

    def _unique(self, channel: str, image: str) -> str:
        name = f"{image} {channel}" if channel.isdecimal() else channel
        if self._often(channel) and not channel.isdecimal():
            name = f"{channel} ({image})"
        unique, n = name, 2
        while unique in self._given:
            unique, n = f"{name} {n}", n + 1
        self._given.add(unique)
        return unique

    def _often(self, channel: str) -> bool:
        """Whether several images have a channel of this name that is taken."""
        images = self._group.metrics["images"]
        having = [k for k, image in enumerate(images) if channel in image.get("channels", ()) and image["placed"]]
        if self._repeats == "drop" and any(images[k]["channel"] == channel for k in having):
            having = [k for k in having if images[k]["channel"] != channel or k == self._group.reference]
        return len(having) > 1


def _matched(pyramid: Pyramid, dark: Pyramid, take: Sequence[int]) -> tuple[int | None, ...]:
    """The background's channel that saw the same light as each channel taken; None for stains of the nucleus, and where none did.

    It is told by the emission wavelength, else by the name, else by the place where both have as many channels.
    """
    out: list[int | None] = []
    lower = [channel.lower() for channel in dark.channels]
    for i in take:
        found: int | None = None
        if NUCLEAR.search(pyramid.channels[i]):
            out.append(None)
            continue
        if len(pyramid.waves) == len(pyramid.channels) and len(dark.waves) == len(dark.channels):
            wave = pyramid.waves[i][1]
            near = [
                (abs(other[1] - wave), j)
                for j, other in enumerate(dark.waves)
                if other[1] is not None and wave is not None
            ]
            found = min(near)[1] if near and min(near)[0] <= SAME_WAVE else None
        elif pyramid.channels[i].lower() in lower:
            found = lower.index(pyramid.channels[i].lower())
        elif len(pyramid.channels) == len(dark.channels):
            found = i
        out.append(None if found is None or NUCLEAR.search(dark.channels[found]) else found)
    return tuple(out)
