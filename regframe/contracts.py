"""The abstract classes a plug-in implements, and what travels with them.

`Adapter` reads, moves and writes one modality; `Metric` compares; `MapFormat` is a map in the file of another program.
``docs/plugins.md`` takes a stranger from nothing to an installed plug-in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from . import ops
from .config import Config
from .data import Grid, Image, PointSet, Pyramid
from .maps.affine import Affine
from .maps.base import Transform
from .verdict import Finding

Side = Literal["fixed", "moving"]
"""One side of a pair; as ``to``, the side that positions are taken to."""


class Adapter(ABC):
    """One modality. An instance holds its options, which are the keyword arguments of ``__init__``, validated there."""

    name: ClassVar[str]

    @abstractmethod
    def matches(self, source: Any) -> float:
        """How sure the adapter is that it reads this path or object, 0 … 1; reads no more than a header."""

    @abstractmethod
    def open(self, source: Any) -> Image | PointSet:
        """What the optimiser sees, lazy where large; positions physical, components in the order (z,) y, x.

        Raises ValueError (or FileNotFoundError) with one sentence where the source cannot be read.
        """

    @abstractmethod
    def apply(self, source: Any, transform: Transform, grid: Grid | None = None) -> Image | PointSet:
        """The native data carried by ``transform``, which maps points of the data's space to the destination.

        Images are resampled on ``grid`` (by pull-back through the inverse), points and shapes are moved; nothing is
        lost or reordered.
        """

    @abstractmethod
    def save(self, data: Image | PointSet, path: Path) -> None:
        """Write ``data`` in this modality's format; the caller sees to it that ``path`` may be written."""

    def pyramid(self, source: Any) -> Pyramid | None:
        """Every resolution of a large image, lazy, or None where the modality has none; optional."""
        return None

    @classmethod
    def sample(cls, folder: Path) -> Any:
        """Write a small source of this modality into ``folder`` and return what `open` takes, or None; optional.

        ``regframe plugins --check`` and `regframe.testing.AdapterTests` test with it.
        """
        return None


class Metric(ABC):
    """A scalar measure of mismatch: lower is better, differentiable in what was warped."""

    name: ClassVar[str]
    accepts: ClassVar[tuple[type, type]] = (Image, Image)
    likelihood: ClassVar[bool] = False
    """True where the value already is a mean negative log-likelihood per unit weight (minus mutual information, say):
    no noise level is estimated for it. False where its scale is free."""

    def prepare(self, fixed: Image | PointSet, moving: Image | PointSet) -> None:  # noqa: B027 - optional, not abstract
        """Look at both sides once per pyramid level (scales, features); optional."""

    @abstractmethod
    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mismatch as a scalar tensor.

        Args:
            warped: the moving side in the fixed space, ``[C_m, *S]`` for images, ``[N, D]`` for points.
            fixed: ``[C_f, *S]`` or ``[M, D]``.
            weight: ``[*S]`` or ``[N]`` ≥ 0: matching probability times masks and overlap; a weight of 0 must hide a
                pixel.

        A weighted *mean* per unit weight is the convention. The scale is free, for the solver estimates the noise level
        itself, unless the class says ``likelihood = True``.
        """

    def fused(
        self, path: ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The mismatch and its gradients in one go, or None to take the generic path; optional.

        Args:
            path: how fixed pixels reach the moving image (see `regframe.ops.Path`).
            moving: ``[C_m, *S_m]``, not yet warped.
            fixed: ``[C_f, *S_f]``.
            weight: ``[*S_f]``, as above.

        Returns:
            The scalar that ``self(ops.warp(moving, *path), fixed, weight)`` would give, and its gradients in ``path.velocity``
            and ``path.matrix``, of their shapes.
        """
        return None


@dataclass(frozen=True)
class Written:
    """What `regframe.write_map` wrote.

    Args:
        format: name of the format.
        files: the files or the folder, those of one map in the order in which its format lists them.
        to: the side that the map in the files takes positions to.
        units: of the numbers in the files, on the fixed and on the moving side.
        max_error_px: largest distance to the exact map on the canvas, in pixels of the side ``to``; None where the files hold
            positions and no map.
        self_contained: whether the files hold both directions, the canvases and the units, so that a reader need be told none.
        resample: ``size``, ``spacing`` and ``origin`` along x, y(, z) of the canvas that images are drawn on with the map, in the
            numbers of the file. `regframe.write_map` fills it in.
    """

    format: str
    files: tuple[Path, ...]
    to: Side
    units: tuple[str, str]
    max_error_px: float | None
    self_contained: bool = False
    resample: dict[str, list[float]] = field(default_factory=dict)


class MapFormat(ABC):
    """A map in the file of another program.

    An instance holds the format's own options, which are the keyword arguments of ``__init__``, validated there; all of them
    have defaults. The first line of the class's docstring says in one line what files these are and who reads them.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Ends of file names, lower case, dot included, that choose this format where the user names none."""

    def write(self, result: Any, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write a map; a format that leaves this out is only read.

        Args:
            result: the `regframe.Result` whose map is written.
            path: a free place, of the name that the user gave, in a folder of its own. Everything written beside it is moved
                to the user's folder when this returns, and removed when it raises.
            to: the side that the written map takes positions to; a format that holds both directions ignores it.
            unit: length unit of the numbers on a side that has one; a side in pixels is written in pixels.
            tolerance: largest error that displacement fields may add by being interpolated, in pixels of the side ``to``.

        Raises ValueError, in one sentence, for a map that the format cannot hold: nothing is approximated in silence.
        """
        raise ValueError(f"wanted a format that is written, got {self.name}, which is only read; choose another one")

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Any:
        """Read a map; a format that leaves this out is only written.

        Args:
            path: what the user gave; all that `files` lists first is there.
            fixed: canvas of the fixed image, or None where the user gave none.
            moving: canvas of the moving image, or None.
            to: the side that the map in the file takes positions to.
            unit: length unit of the file's numbers, for a side that has one and a file that does not say it.

        Returns:
            The map from the moving to the fixed side, as a `regframe.Transform` between the units of the two canvases; or, where
            the file holds more than that, a `regframe.Result`. A result whose metrics hold a verdict is believed; any other is
            judged by `regframe.read_map`, and its metrics are kept under ``imported``.

        Raises ValueError, in one sentence, for a file that is damaged, unsafe, or holds no map.
        """
        raise ValueError(f"wanted a format that is read, got {self.name}, which is only written; choose another one")

    def files(self, path: Path) -> tuple[Path, ...]:
        """Every file that a map at ``path`` may consist of, whether it is there or not, the one that is never missing first."""
        return (path,)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether what lies at ``path`` is of this format although its suffix does not say so; looks at no more than a header."""
        return False


@dataclass(frozen=True)
class Progress:
    """One step of long work; every ``progress`` callback of regframe is called with these.

    Args:
        stage: what is being done, in a word or two: ``affine``, ``lddmm``, ``pairs``, ``shards`` …
        done: steps of this stage and level that are done.
        total: how many there are, or may be at most where a fit may converge before.
        level: index of the pyramid level, 0 the coarsest.
        n_levels: how many levels there are.
        loss: the energy, lower is better; None where nothing is minimised.
    """

    stage: str
    done: int
    total: int
    level: int = 0
    n_levels: int = 1
    loss: float | None = None


@dataclass(frozen=True)
class Task:
    """What is asked of a solver.

    Args:
        fixed: stays where it is.
        moving: is brought onto it.
        metric: the measure to compare by; None leaves the choice to the solver.
        start: where the fit begins, as `regframe.register` takes it: ``"auto"``, ``"identity"``, landmarks or a map.
        config: every other setting.
        progress: called after every step, or None.
    """

    fixed: Image | PointSet
    moving: Image | PointSet
    metric: Metric | None
    start: Any
    config: Config
    progress: Callable[[Progress], None] | None = None

    @property
    def device(self) -> str:
        """Where to compute; tensors that a solver makes belong there."""
        return self.config.device


@dataclass(frozen=True)
class Fitted:
    """What a solver found; `regframe.Result` is made of it.

    Args:
        transform: ``Φ``, moving → fixed, physical.
        affine: its affine part alone.
        fixed_grid: canvas of the fixed side.
        moving_grid: canvas of the moving side.
        figures: what ``metrics.json`` says of the map, verdict and times aside.
        history: one entry per step.
        weight: matching probability ``[*S]`` on ``weight_grid``, or None.
        weight_grid: fixed space, or None.
        position_sd: standard deviation per axis ``[*S]`` on ``weight_grid``, in the fixed unit, or None.
        section: whether the fixed side is one plane of the moving volume.
        findings: what was noticed on the way, before anything was judged.
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


class Solver(ABC):
    """One kind of pair: what is looked at, where the fit begins, what is minimised, when the map is trusted."""

    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    """What ``transform`` may say of a pair of this kind."""

    @abstractmethod
    def matches(self, fixed: Image | PointSet, moving: Image | PointSet) -> float:
        """How sure the solver is that this is its kind of pair, 0 … 1."""

    @abstractmethod
    def check(self, task: Task) -> list[Finding]:
        """Refuse what cannot be registered, and say what can be but is doubtful.

        Raises ValueError with one sentence: what was wanted, what came, what to do.
        """

    @abstractmethod
    def fit(self, task: Task) -> Fitted:
        """The map of a task that `check` let through."""

    @abstractmethod
    def judge(self, fitted: Fitted) -> Iterable[Finding]:
        """What is to be said of the map, from its figures; the worst severity is the verdict (see `regframe.verdict`)."""
