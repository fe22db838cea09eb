"""`align_stack`: registers neighbouring sections in pairs, reconciles the pairs over the stack, and lays all on one canvas.

Every section is registered to several neighbours, not only to the previous one; `regframe.stack.posegraph` reconciles the pairs.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import plugins
from ..config import Config
from ..contracts import Progress
from ..data import Grid, Image
from ..display.bars import shown
from ..io import claims, outputs
from ..io.inputs import check_apart
from ..io.spreadsheet import text_cell
from ..io.tasks import InTurn, Kept, Pool, pool_of
from ..maps.affine import Affine
from ..maps.base import Transform
from ..registration import settled
from ..result import Result
from ..slides.unfinished import going_on
from ..solvers.images import Images
from ..solvers.raster import check_metric
from ..versions import versions
from . import each, posegraph
from .judge import Judge
from .pairs import Bent, Work
from .posegraph import GUIDE, Floats, Link
from .sections import Section, opened, placed, planes_of

TRANSFORMS = ("rigid", "affine", "lddmm")
"""Models that ``transform`` accepts, each a special case of the next."""
CHANCES = 3
"""Largest number of rounds in which poses are found and the pairs that contradict them are examined again."""
MOST_BYTES = 4 << 30
"""Largest volume that is assembled in memory, in bytes of its pixels."""
VOLUME = "volume.ome.zarr"
"""Name of the volume in the folder that `Stack.save` writes."""
SECTIONS = "sections"
"""Name of the folder, inside the stack's folder, that holds the maps of the sections."""


@dataclass(frozen=True)
class Stack:
    """Aligned sections.

    Args:
        results: one `Result` per section, from its own space to the common space; None for a section that could not be placed.
        grid: the volume's grid ``(z, y, x)``.
        planes: plane of each section in the volume.
        names: names of the sections.
        links: the pairs that were registered.
        metrics: the content of ``metrics.json``: verdicts per section, coherence of neighbours before and after, drift, order.
    """

    results: tuple[Result | None, ...]
    grid: Grid
    planes: tuple[int, ...]
    names: tuple[str, ...]
    links: tuple[Link, ...]
    metrics: dict[str, Any]

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return str(self.metrics["verdict"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for the verdict, one sentence each."""
        return tuple(self.metrics["reasons"])

    @property
    def plane_grid(self) -> Grid:
        """The common canvas of all sections."""
        return _plane(self.grid)

    def __repr__(self) -> str:
        placed = sum(result is not None for result in self.results)
        coherence = self.metrics["coherence"]
        return (
            f"Stack({self.verdict}, {placed} of {len(self.results)} sections placed, neighbours' correlation "
            f"{coherence['before']['ncc']:.2f} → {coherence['after']['ncc']:.2f}, {self.metrics['seconds']:.1f} s)"
        )

    def volume(self, images: Sequence[Image]) -> Image:
        """The sections ``images`` as one volume ``[C, Z, Y, X]``, in their dtype; background where no section lies.

        ``images`` are those that were aligned, or others on the same physical space (labels, another channel), one per
        section. ValueError where they differ in channels or type, or need more than `MOST_BYTES`.
        """
        return _volume(self, images)

    def save(self, path: str | Path, images: Sequence[Image] | None = None, overwrite: bool = False) -> None:
        """Write the stack as a folder.

        It holds ``metrics.json``, ``sections.csv``, ``sections/NAME/transform.ome.zarr`` (each readable by `regframe.load`)
        and, where ``images`` (the sections, in the stack's order) are given, ``volume.ome.zarr``. The folder is written under
        another name and renamed, so that it is complete or absent. `regframe.write_report` draws a page of it.

        Raises FileExistsError where ``path`` exists and may not be replaced, ValueError where the images make no volume (see
        `volume`), OSError where the folder cannot be written.
        """
        with staged(Path(path), overwrite) as folder:
            write_files(self, folder, images)


@dataclass(frozen=True)
class StackOptions:
    """Options of a stack's alignment.

    Args:
        reach: number of neighbours on either side to which each section is registered, 1 or more.
        guide: a volume of the same organ in the same orientation and unit, whose first plane lies at position 0. It supplies what
            neighbours cannot tell: the curvature of the organ along the stack.
        hold: number of sections over which the original place on the canvas (block face, stage) is trusted: shifts that vary more
            slowly than this along the stack are kept. None where the original places mean nothing.
        check_mirrors: whether every section is also compared turned over, and reported where that fits better.

    Raises ValueError for a reach below 1, or a hold that is not above 0.
    """

    reach: int = 2
    guide: Image | None = None
    hold: float | None = None
    check_mirrors: bool = True

    def __post_init__(self) -> None:
        if self.reach < 1 or (self.hold is not None and not self.hold > 0):
            raise ValueError(f"wanted a reach of at least 1 and a hold above 0, got {self.reach} and {self.hold}")


def align_stack(
    images: Iterable[Any],
    *,
    positions: Sequence[float] | None = None,
    spacing_z: float | None = None,
    reference: int | str = "middle",
    transform: str = "rigid",
    options: StackOptions | None = None,
    config: Config | None = None,
    progress: bool | Callable[[Progress], object] | None = None,
    client: Any = None,
    folder: str | Path | None = None,
) -> Stack:
    """Align serial sections, given in order, into one stack.

    Args:
        images: 2D `Image` objects or anything `regframe.open` reads, in stacking order; sizes may differ, the unit may not.
        positions: plane of each section along z, ascending integers, in units of ``spacing_z``; planes without a section stay
            empty. 0, 1, 2 … where None.
        spacing_z: distance of two planes, in the images' unit; where None, one pixel, with a remark.
        reference: index of the section that stays where it is; or ``"middle"``; or ``"chain"``, which maps each section to the
            one before it and reconciles nothing, for comparison.
        transform: ``rigid`` (sections keep their size), ``affine`` (single sections' stretch is undone, the slow change of
            size along the stack stays), ``lddmm`` (affine, then bent onto the average of their neighbours).
        options: guide, trusted places, number of neighbours.
        config: settings of `register` for every pair.
        progress: True draws bars (None does in a notebook and at a Python prompt); a function is called before each
            pair or section; stages are ``pairs``, ``doubtful pairs``, ``guide`` …
        client: a ``dask.distributed.Client`` whose workers register the pairs and bend the sections, one task each, or a
            ``concurrent.futures.Executor``; None does so here, one after another. The stack has the same bytes either way. The
            workers see the same files under the same paths: the sections are put in ``folder`` for them.
        folder: where the pairs are kept as they come, so that the same call goes on where it was interrupted; of other
            sections, settings or version they are begun anew. It may be removed once the stack is saved. None keeps them no
            longer than the call.

    Raises:
        ConnectionError: the client lost its scheduler.
        BlockingIOError: another process uses ``folder``.
        OSError: ``folder`` cannot be written.
        ValueError: fewer than two sections with tissue, volumes, several units, positions that do not ascend, settings that name
            no metric, start or solver.
    """
    began = time.perf_counter()
    options = StackOptions() if options is None else options
    if transform not in TRANSFORMS:
        raise ValueError(f"wanted transform {' or '.join(TRANSFORMS)}, got {transform!r}; choose one of these")
    config = _checked(config or Config())
    sections = opened(images)
    planes = planes_of(positions, len(sections))
    _check_reference(reference, len(sections))
    if options.guide is not None:
        _check_guide(options.guide, sections[0].grid.unit)
    spacing = float(spacing_z) if spacing_z is not None else sections[0].grid.pixel
    if not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"wanted a positive distance of the sections, got {spacing_z}")
    chained = reference == "chain"
    pool = pool_of(client, InTurn)
    with shown(progress) as told, contextlib.ExitStack() as held:
        work = Work(sections, planes, _once(config, sections[0]), transform, told, options.guide)
        held.enter_context(_spread(work, pool, folder))
        posed = _posed(work, reference, options, spacing)
        poses = posed.poses
        canvas = work.canvas(poses)
        rigidly: dict[int, Transform] = {k: Affine(torch.from_numpy(m), *work.units) for k, m in poses.items()}
        before = work.pictures(work.as_they_lie(), work.canvas(work.as_they_lie()))
        after = work.pictures(rigidly, canvas)
        judged = Judge(work, poses, before, after)
        mirrored = judged.mirrored() if options.check_mirrors else []
        bent = work.bend(rigidly, canvas, judged.poor) if transform == "lddmm" else Bent(rigidly, {}, [])
        final = work.pictures(bent.maps, canvas) if transform == "lddmm" else after
    grid = Grid(
        (max(planes) - min(planes) + 1, *canvas.shape),
        (spacing, *canvas.spacing),
        (min(planes) * spacing, *canvas.origin),
        canvas.unit,
    )
    metrics = judged.metrics(final, mirrored, chained, spacing_z is not None)
    metrics |= {
        "transform": transform,
        "reference": {"kind": str(reference), "section": posed.reference, "name": work.names[posed.reference]},
        "spacing_z": {"value": spacing, "unit": canvas.unit, "stated": spacing_z is not None},
        "canvas": {"shape": list(grid.shape), "spacing": list(grid.spacing), "unit": grid.unit},
        "bending": bent.rounds,
        "seconds": time.perf_counter() - began,
        "versions": versions(*outputs.VERSIONS),
    }
    results = tuple(
        work.result(k, bent, poses[k], canvas, metrics["sections"][k]) if k in bent.maps else None
        for k in range(len(sections))
    )
    return Stack(results, grid, tuple(p - min(planes) for p in planes), work.names, tuple(work.links), metrics)


def _once(config: Config, image: Image) -> Config:
    """The settings with which a pair is fitted once: what is doubtful is settled, and searched again, by the stack itself.

    Settings that name a metric or another solver, and those of sections that another solver takes, stay as they are.
    """
    if config.metric != "auto" or config.solver not in ("auto", Images.name):
        return config
    if not isinstance(plugins.find_solver(image, image), Images):
        return config
    return config.model_copy(
        update={"solver": Images.name, "solver_options": {"again": False, **config.solver_options}}
    )


@contextlib.contextmanager
def _spread(work: Work, pool: Pool, folder: str | Path | None) -> Iterator[None]:
    """Let ``pool`` do the tasks of ``work``, and keep their answers in ``folder``, or in a temporary one where they need one."""
    here = isinstance(pool, InTurn)
    work.pool = pool
    with contextlib.ExitStack() as held:
        if folder is not None:
            what = f"stack of {len(work.images)} sections"
            store = held.enter_context(going_on(Path(folder), each.fingerprint(work.each), what))
        elif here:
            yield
            return
        else:
            store = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="regframe-stack-")))
        work.kept = Kept(store)
        if not here:
            place = store / "sections"
            each.write(work.each, place)
            work.place = each.Place(str(place.absolute()), uuid.uuid4().hex)
        yield


def _checked(config: Config) -> Config:
    """The settings; ValueError for a metric, start or solver that there is not, or that is not for images, before any pair."""
    config = settled(config, None)
    if config.metric != "auto":
        check_metric(plugins.metric(config.metric, **config.metric_options))
    for kind, name in (("solver", config.solver), ("start", config.init)):
        if name not in ("auto", "given"):
            plugins.entry(kind, name)  # type: ignore[arg-type]
    return config


def _check_reference(reference: int | str, n: int) -> None:
    """ValueError for anything but the index of one of ``n`` sections, ``middle`` or ``chain``."""
    if not (isinstance(reference, int) or reference in ("middle", "chain")):
        raise ValueError(f"wanted a section's place, 'middle' or 'chain' as reference, got {reference!r}")
    if isinstance(reference, int) and not 0 <= reference < n:
        raise ValueError(f"wanted a reference from 0 to {n - 1}, got {reference}; count from 0")


def _check_guide(guide: Image, unit: str) -> None:
    """ValueError for a guide that is no volume, or in another unit than the sections."""
    if guide.grid.ndim != 3 or guide.grid.unit != unit:
        raise ValueError(
            f"wanted a guide volume in {unit}, got {guide.grid.ndim}D in {guide.grid.unit}; convert it with Grid.to_unit"
        )


class _Posed(NamedTuple):
    """The poses of a stack, before any bending.

    Args:
        poses: pose of each section that could be placed ``[3, 3]``, from its own space to the common one, by section.
        start: the poses before the pairs were reconciled.
        reference: the section that stays where it is.
    """

    poses: dict[int, Floats]
    start: dict[int, Floats]
    reference: int


def _posed(work: Work, reference: int | str, options: StackOptions, spacing: float) -> _Posed:
    """Register the pairs and find the poses that agree best with all; ``spacing`` is the distance of two planes."""
    chained = reference == "chain"
    work.link(1 if chained else options.reach, chained)
    if options.guide is not None and not chained:
        work.link_guide(options.guide, spacing)
    first = work.reference(reference)
    guided = any(link.fixed == GUIDE and link.weight > 0 for link in work.links)
    start = posegraph.tree(work.links, work.nodes, GUIDE if guided else first)
    poses = dict(start)
    for _ in range(0 if chained else CHANCES):
        poses = posegraph.reconcile(work.links, work.nodes, start, first, work.kind, options.hold)
        if not work.second_chance(poses):
            break
        start = posegraph.tree(work.links, work.nodes, GUIDE if guided else first)
    work.weigh(poses, chained)
    return _Posed(poses, start, first)


def _plane(grid: Grid) -> Grid:
    return Grid(grid.shape[1:], grid.spacing[1:], grid.origin[1:], grid.unit)


def _volume(stack: Stack, images: Sequence[Image]) -> Image:
    if len(images) != len(stack.results):
        raise ValueError(
            f"wanted {len(stack.results)} sections, got {len(images)}; give one for each, in the stack's order"
        )
    first = next((image for image, result in zip(images, stack.results, strict=True) if result is not None), images[0])
    for k, image in enumerate(images):
        if stack.results[k] is not None and (image.channels, image.data.dtype, image.labels) != (
            first.channels,
            first.data.dtype,
            first.labels,
        ):
            raise ValueError(
                f"wanted sections of the same channels and type, got {', '.join(first.channels)} of {first.data.dtype} and "
                f"{', '.join(image.channels)} of {image.data.dtype} (place {k}); choose a channel they share"
            )
    needed = len(first.channels) * math.prod(stack.grid.shape) * first.data.element_size()
    if needed > MOST_BYTES:
        raise ValueError(
            f"wanted a volume of at most {MOST_BYTES / 2**30:.3g} GiB, got {needed / 2**30:.3g} GiB; "
            "open the sections at a coarser level, or resample each at full size with its own map"
        )
    background = Section.of(first).background if not first.labels else None
    data = torch.zeros((len(first.channels), *stack.grid.shape), dtype=first.data.dtype)
    if background is not None:
        colour = background.round() if not first.data.dtype.is_floating_point else background
        data[:] = colour.to(first.data.dtype)[:, None, None, None]  # torch cannot add uint16
    for image, result, plane in zip(images, stack.results, stack.planes, strict=True):
        if result is not None:
            own = None if image.labels else Section.of(image).background
            data[:, plane] = placed(image, result.transform, stack.plane_grid, own).data
    return Image(data, stack.grid, first.channels, labels=first.labels, name="stack")


@contextlib.contextmanager
def staged(path: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder to write a stack into; renamed to ``path`` when the block succeeds, removed when it fails.

    Raises what `check_output` raises.
    """
    check_output(path, overwrite)
    with outputs.staged(path, overwrite) as folder:
        folder.mkdir()
        yield folder


def write_files(stack: Stack, folder: Path, images: Sequence[Image] | None) -> Image | None:
    """Write figures, maps and (with ``images``) the volume of a stack into an empty folder; returns the volume or None."""
    (folder / outputs.METRICS).write_text(outputs.to_json(stack.metrics, indent=2) + "\n", encoding="utf-8")
    rows = []
    for k, result in enumerate(stack.results):
        name = section_folder(stack, k)
        rows.append({"section": stack.names[k], "position": stack.metrics["sections"][k]["position"],
                     "verdict": stack.metrics["sections"][k]["verdict"], "map": name if result else ""})  # fmt: skip
        if result is not None:
            place = folder / SECTIONS / name
            place.mkdir(parents=True)
            result.save(place / outputs.TRANSFORM)
            (place / outputs.METRICS).write_text(outputs.to_json(result.metrics, indent=2) + "\n", encoding="utf-8")
    with (folder / "sections.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: text_cell(value) for key, value in row.items()} for row in rows)
    if images is None:
        return None
    volume = stack.volume(images)
    plugins.find_adapter(volume).save(volume, folder / VOLUME)
    return volume


def section_folder(stack: Stack, k: int) -> str:
    """Path of the folder of section ``k`` in the stack's folder: its index, and its name as far as file systems allow."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stack.names[k]).strip("._")[:60]
    return f"{k:04d}_{plain}" if plain else f"{k:04d}"


def check_output(path: Path, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse an output folder that could not be written, in advance; only the folder of a stack may be replaced.

    The output may not be one of ``inputs``, lie in one, or hold one (ValueError).
    """
    check_apart(path, inputs)
    claims.heal(path)
    if path.is_symlink() or path.exists():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        own = path.is_dir() and not path.is_symlink()
        if not (
            own and (((path / SECTIONS).is_dir() and (path / outputs.METRICS).is_file()) or not any(path.iterdir()))
        ):
            raise FileExistsError(
                f"output {path} exists and is not a stack written by regframe; it is left alone: choose another name"
            )
    outputs.check_writable(path.parent, path.name)
