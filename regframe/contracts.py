"""The abstract classes that a plug-in implements, and the records that are passed to and returned by them.

`Adapter` reads, moves and writes one modality; `Metric` compares two sides; `MapFormat` reads and writes a map in another
program's file; `Solver` registers one kind of pair; `Start` says where a fit begins; `Section` is what a package adds to the
report. ``docs/plugins.md`` leads from an empty folder to an installed plug-in.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from . import gate, strangers
from .config import Config
from .data import Grid, Image, PointSet, Pyramid
from .maps.affine import Affine
from .maps.base import Transform
from .verdict import Finding

if TYPE_CHECKING:
    from torch import Tensor

    from . import ops

API = 1
"""Number of the interface of plug-ins: it rises where a method that they implement, or what it is given, changes."""

Side = Literal["fixed", "moving"]
"""Name of one side of a pair. Where an argument is called ``to``, it is the side whose space positions are mapped into."""


class Configured(ABC):
    """What every class of a plug-in has: a name, and options, which are the keyword arguments of its ``__init__``."""

    name: ClassVar[str]
    """The word that users type."""
    api: ClassVar[int] = API
    """Number of the interface that the class was written for, ``1`` today; optional. A class that states a later one than this
    regframe has is left out and named."""
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Options, a mapping each, with which ``regframe plugins --check`` and `regframe.testing` run every check once more, beside
    the defaults; optional."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments that make an equal instance; they are recorded in results.

        Here: the attributes that are named as the parameters of ``__init__`` are. Override it where options are kept otherwise.
        """
        try:
            named = inspect.signature(type(self)).parameters
        except (TypeError, ValueError):  # a class without a signature
            return {}
        return {name: getattr(self, name) for name in named if hasattr(self, name)}


class Adapter(Configured):
    """One modality. An instance holds its options, which are the keyword arguments of ``__init__``, validated there."""

    writes: ClassVar[Mapping[type, tuple[str, ...]]] = {}
    """Ends of file names (small letters, with the dot) under which `save` writes an `Image` or a `PointSet`. What goes to a file
    with another end is written by the adapter that states it; an adapter that states none writes only under the end of its own
    sources."""
    remote: ClassVar[bool] = False
    """Whether it reads addresses (``s3://``, ``https://`` …), which it then gets as texts or as `regframe.Remote`."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Put what reads a source behind the gate: only regular files are opened, and whatever a library raises over a damaged
        one becomes a `regframe.gate.FileError` in one sentence. Errors over objects in memory pass as they are."""
        super().__init_subclass__(**options)
        for name in ("open", "pyramid", "notes", "apply"):
            if name in cls.__dict__:
                method = gate.guarded(cls.__dict__[name])
                setattr(cls, name, strangers.noting(method) if name == "open" else method)

    @abstractmethod
    def matches(self, source: Any) -> float:
        """How sure the adapter is that it can read this path or object, from 0 (cannot) to 1 (certain).

        Must not read more than a file's header: it is called for every installed adapter and every file.
        """

    @abstractmethod
    def open(self, source: Any) -> Image | PointSet:
        """Read ``source`` in the form in which it is registered, lazily where it is large.

        Positions are physical, components in the order (z,) y, x. Raises ValueError (or FileNotFoundError) with one sentence
        where the source cannot be read.
        """

    @abstractmethod
    def apply(self, source: Any, transform: Transform, grid: Grid | None = None) -> Image | PointSet:
        """The native data of ``source``, mapped by ``transform`` from their own space to the destination.

        Images are resampled on ``grid`` (by pull-back through the inverse); points and shapes are moved. All channels, rows and
        columns are kept, in their order.
        """

    @abstractmethod
    def save(self, data: Image | PointSet, path: Path) -> None:
        """Write ``data`` to ``path`` in this modality's format; the caller has checked that ``path`` may be written."""

    def pyramid(self, source: Any) -> Pyramid | None:
        """Every resolution of a large image, read lazily, or None where the modality has no such thing; optional."""
        return None

    def notes(self, source: Any) -> tuple[str, ...]:
        """Sentences on what was found in ``source`` and what of it is read, where there was a choice; optional.

        ``regframe info`` and ``regframe register`` print them. Raises what `open` raises, but reads no pixels.
        """
        return ()

    @classmethod
    def sample(cls, folder: Path) -> Any:
        """Write a small source of this modality into ``folder`` and return what `open` takes, or None; optional.

        ``regframe plugins --check`` and `regframe.testing.AdapterTests` test with it.
        """
        return None


class Metric(Configured):
    """A scalar measure of mismatch between two sides: lower is better, differentiable in the warped side."""

    accepts: ClassVar[tuple[type, type]] = (Image, Image)
    likelihood: ClassVar[bool] = False
    """True where the value already is a mean negative log-likelihood per unit weight, in nats (minus mutual information, say):
    the solver then multiplies it by the number of observations and estimates no noise level. False where the scale of the value
    is arbitrary."""

    def prepare(self, fixed: Image | PointSet, moving: Image | PointSet) -> None:
        """Precompute what depends on the two sides alone (scales, features); called once per pyramid level; optional.

        Args:
            fixed: the fixed side, standardised (mean 0, variance 1 per channel), in its frame, in pixels from the middle of its
                canvas. Its ``before`` (`regframe.Original`) holds unit, scale and origin of positions and the intensities'
                mean and scale; ``channels`` are the names of its channels.
            moving: the moving side, likewise.
        """

    @abstractmethod
    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mismatch as a scalar tensor.

        Args:
            warped: the moving side in the fixed space, ``[C_m, *S]`` for images, ``[N, D]`` for points.
            fixed: ``[C_f, *S]`` or ``[M, D]``.
            weight: ``[*S]`` or ``[N]`` ≥ 0: matching probability times masks and overlap. A pixel of weight 0 must not
                influence the value.

        By convention the value is a weighted *mean*, so that it does not grow with the number of pixels. Its scale is
        free, because the solver estimates the noise level, unless the class says ``likelihood = True``.

        All tensors are on the device of the fit, those of `prepare` too: new ones belong there, and a value that is read
        (``.item()``, ``float``, a truth value) makes every evaluation wait for it.
        """

    def fused(
        self, path: ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The mismatch and its gradients from one kernel, or None to have them computed with autograd; optional.

        Args:
            path: how fixed pixels reach the moving image (see `regframe.ops.Path`).
            moving: ``[C_m, *S_m]``, not yet warped.
            fixed: ``[C_f, *S_f]``.
            weight: ``[*S_f]`` ≥ 0, as in a plain call of the metric.

        Returns:
            The scalar that ``self(ops.warp(moving, *path), fixed, weight)`` would give, and its gradients in ``path.velocity``
            and ``path.matrix``, in the shapes of these two.
        """
        return None


@dataclass(frozen=True)
class Written:
    """What `regframe.write_map` wrote.

    Args:
        format: name of the format.
        files: the files of the map, in the order in which the format lists them; one folder where the format is a folder.
        to: the side that the written map takes positions to.
        units: length unit of the numbers in the files, on the fixed and on the moving side.
        max_error_px: largest distance to the exact map on the canvas, in pixels of the side ``to``; None where the files hold
            moved positions instead of a map.
        self_contained: whether the files hold both directions, both canvases and the units, so that reading them back needs no
            further arguments.
        resample: ``size``, ``spacing`` and ``origin`` along x, y(, z) of the canvas on which the other program has to resample
            images, in the numbers of the file. `regframe.write_map` fills this in where the format does not.
    """

    format: str
    files: tuple[Path, ...]
    to: Side
    units: tuple[str, str]
    max_error_px: float | None
    self_contained: bool = False
    resample: dict[str, list[float]] = field(default_factory=dict)


class MapFormat(Configured):
    """A map in the file of another program.

    The keyword arguments of ``__init__`` are the format's own options; each has a default, and ``__init__`` validates them. The
    first line of a subclass's docstring names the files and the programs that read them; it is shown in the command line's help.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Ends of file names (lower case, with the dot) by which this format is chosen where the user names none."""
    default_unit: ClassVar[str | None] = "mm"
    """Length unit of the numbers where the user names none; None where the user has to: ``unit`` then is ``""``, and may be
    ``"px"``."""
    in_pixels: ClassVar[bool] = False
    """Whether the numbers are always pixels of full resolution; ``__init__`` then takes their grids as ``fixed_pixels`` and
    ``moving_pixels``, and ``default_unit`` is None."""

    def write(self, result: Any, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write a map; a format that does not override this can only be read.

        Args:
            result: the `regframe.Result` whose map is written.
            path: where to write: a name that does not exist yet, in a temporary folder, ending as the user's path does. When
                this method returns, everything in that folder is moved to the user's folder; when it raises, it is deleted.
            to: the side that the written map takes positions to. A format that always holds both directions ignores it.
            unit: length unit to write numbers in, for a side that has a length unit; a side in pixels is always written in
                pixels.
            tolerance: largest error that a displacement field may add through interpolation between its nodes, in pixels of the
                side ``to``.

        Raises ValueError, in one sentence, for a map that the format cannot hold: nothing is approximated in silence.
        """
        raise ValueError(f"wanted a format that is written, got {self.name}, which is only read; choose another one")

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Any:
        """Read a map; a format that does not override this can only be written.

        Args:
            path: the path that the user gave; the first entry of `files` exists.
            fixed: canvas of the fixed image, or None where the user gave none.
            moving: canvas of the moving image, or None.
            to: the side that the map in the file takes positions to.
            unit: length unit of the numbers in the file, for a side that has a length unit and a file that does not state it.

        Returns:
            The map from the moving to the fixed side, as a `regframe.Transform` between the units of the two canvases; or a
            `regframe.Result`, where the file holds more than a map. A verdict among the result's metrics is kept as it is. A
            result without one is judged by `regframe.read_map`, which moves the metrics it came with to the key ``imported``.

        Raises ValueError, in one sentence, for a file that is damaged, unsafe, or holds no map.
        """
        raise ValueError(f"wanted a format that is read, got {self.name}, which is only written; choose another one")

    def files(self, path: Path) -> tuple[Path, ...]:
        """Every file that a map at ``path`` may consist of, existing or not; the file that is never missing comes first."""
        return (path,)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the file at ``path`` is of this format although its suffix does not say so; reads no more than a header."""
        return False


@dataclass(frozen=True)
class Progress:
    """One step of long work, as handed to every ``progress`` callback of regframe.

    Args:
        stage: name of the work in a word or two: ``affine``, ``lddmm``, ``pairs``, ``shards`` …
        done: steps of this stage and level that are finished.
        total: steps of this stage and level in all; an upper bound where a fit may converge earlier.
        level: index of the pyramid level, 0 the coarsest.
        n_levels: number of pyramid levels.
        loss: the energy, in nats, lower is better; None where nothing is minimised.
    """

    stage: str
    done: int
    total: int
    level: int = 0
    n_levels: int = 1
    loss: float | None = None


@dataclass(frozen=True)
class Task:
    """One registration as it is handed to a solver.

    Args:
        fixed: the side that stays where it is.
        moving: the side that is mapped onto ``fixed``.
        metric: the measure to compare by; None leaves the choice to the solver.
        start: where the fit begins: ``"auto"`` where the solver is to search, `regframe.landmarks`, or an affine `Transform`, the
            first pose of a `Start` or the affine map of an earlier `Result`.
        config: all settings.
        progress: called after every step, or None.
    """

    fixed: Image | PointSet
    moving: Image | PointSet
    metric: Metric | None
    start: Any
    config: Config
    progress: Callable[[Progress], object] | None = None

    @property
    def device(self) -> str:
        """Where to compute, as asked: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``, which leaves it to the solver. What it returns
        (`Fitted`) belongs on the CPU."""
        return self.config.device


@dataclass(frozen=True)
class Fitted:
    """What a solver returns; `regframe.registration` makes a `regframe.Result` of it.

    Args:
        transform: the map ``Φ``, moving → fixed, between the physical units of the two sides.
        affine: the affine part of ``transform`` alone.
        fixed_grid: canvas of the fixed side.
        moving_grid: canvas of the moving side.
        figures: the entries of ``metrics.json`` that describe the map; verdict and times are added later.
        history: one entry per step of the fit.
        weight: probability that a fixed pixel has a partner, ``[*S]`` on ``weight_grid``, 0 … 1, or None.
        weight_grid: grid of ``weight`` and ``position_sd``, in the fixed space, or None.
        position_sd: standard deviation per axis of the mapped position, ``[*S]`` on ``weight_grid``, in the fixed unit, or None.
        section: whether the fixed side is a section that was placed as one plane of the moving volume.
        findings: remarks made during the fit, before `Solver.judge` is called.
    """

    transform: Transform
    affine: Affine
    fixed_grid: Grid
    moving_grid: Grid
    figures: dict[str, Any]
    history: list[dict[str, Any]]
    weight: Tensor | None = None
    weight_grid: Grid | None = None
    position_sd: Tensor | None = None
    section: bool = False
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Otherwise:
    """A pair in another form: what is tried where a solver found nothing.

    Args:
        task: both sides in the other form, in the same units; everything else as it was asked for.
        finding: the remark that the pair was registered in this form, for the result that is made of it.
    """

    task: Task
    finding: Finding


@dataclass(frozen=True)
class Known:
    """A small pair whose map is known, by which ``regframe plugins --check`` and `regframe.testing` test.

    Args:
        fixed: the side that stays where it is.
        moving: the side that is mapped onto ``fixed``.
        transform: the map that is right, moving → fixed, between the units of the two sides.
        tolerance: largest error, as a share of the diagonal of the fixed side's canvas, that a right map may have.
    """

    fixed: Image | PointSet
    moving: Image | PointSet
    transform: Transform
    tolerance: float = 0.005


class Solver(Configured):
    """One kind of pair: what is compared, where the fit begins, what is minimised, and when the resulting map is trusted."""

    models: ClassVar[tuple[str, ...]]
    """Models of a map that this solver can fit: the words that ``transform`` accepts for a pair of this kind."""

    @abstractmethod
    def matches(self, fixed: Image | PointSet, moving: Image | PointSet) -> float:
        """How sure the solver is that this is its kind of pair, 0 … 1."""

    @abstractmethod
    def check(self, task: Task) -> list[Finding]:
        """Refuse a pair that cannot be registered; return a finding for each thing that is doubtful but possible.

        Raises ValueError with one sentence: what was wanted, what came, what to do.
        """

    @abstractmethod
    def fit(self, task: Task) -> Fitted:
        """Fit the map of a task that has passed `check`."""

    @abstractmethod
    def judge(self, fitted: Fitted) -> Iterable[Finding]:
        """Remarks on the fitted map, from its figures; the worst severity becomes the verdict (see `regframe.verdict`)."""

    def otherwise(self, task: Task) -> Otherwise | None:
        """The pair in another form, which is tried where the verdict on this one is ``fail``, or None; optional."""
        return None

    @classmethod
    def sample(cls) -> Known | None:
        """A small pair of this kind and its map, which ``regframe plugins --check`` has it find, or None; optional."""
        return None


@dataclass(frozen=True)
class Candidate:
    """A pose from which a fit may begin.

    Args:
        matrix: ``A`` ``[D+1, D+1]`` float64, moving → fixed, between the physical units of the two sides; components in the
            order (z,) y, x. None where ``landmarks`` say it.
        evidence: nats by which it is better than a pose taken by chance, or None where that is not known.
        landmarks: moving and fixed positions ``[N, D]`` each that the pose was made of, or None. The pose then is their
            least-squares map of the model that is asked for, and with ``config.sigma_landmarks`` the fit is held to them.
        words: what is to be said of it, in a sentence, or empty.
    """

    matrix: Tensor | None = None
    evidence: float | None = None
    landmarks: tuple[Tensor, Tensor] | None = None
    words: str = ""


class Start(Configured):
    """Where a fit begins: what ``init`` takes by name, beside ``auto``, which leaves the search to the solver."""

    @abstractmethod
    def find(self, task: Task) -> list[Candidate]:
        """Poses for a pair, best first; the fit begins at the first one, made the nearest one of the model asked for.

        ``task.start`` is ``"auto"`` here. Raises ValueError, in one sentence, where there is none.
        """

    @classmethod
    def sample(cls, folder: Path) -> tuple[dict[str, Any], Known] | None:
        """Options and a small pair for which they give the right start, with files in ``folder``, or None; optional.

        ``regframe plugins --check`` has it found; ``Known.tolerance`` is that of the start.
        """
        return None


@dataclass(frozen=True)
class Section:
    """What a section of the report shows: words, a small table, a picture. All text is shown as text.

    A class that the entry-point group ``regframe.sections`` names returns one from ``show(result)``, or None where it has nothing
    to say of such a result.

    Args:
        title: its heading.
        sentences: paragraphs, at most 20 of 600 characters.
        table: rows of words and numbers, at most 50 rows of 8 cells of 200 characters.
        picture: the bytes of a PNG file, at most 4 million pixels, or of an SVG, at most 400 kB, or the SVG as text; or None.
        caption: what the picture shows.
    """

    title: str
    sentences: Sequence[str] = ()
    table: Sequence[Sequence[str | float | int | None]] = ()
    picture: bytes | str | None = None
    caption: str = ""
