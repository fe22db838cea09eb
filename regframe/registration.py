"""`register`: one verb; `Result`: one object that carries everything both ways and says how far it can be trusted."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from . import plugins
from .config import Config
from .contracts import Metric, Progress
from .data import Grid, Image, PointSet, unit_ratio
from .fit import clouds, uncertainty
from .fit.frames import Frame
from .fit.halvings import Halvings, Level, halve
from .fit.likeness import coincidence, fit_contrast
from .fit.pyramid import Fit, Pair, Recipe, fit_pyramid
from .fit.threads import threads_for
from .fit.velocity import physical_maps
from .maps import plane
from .maps.affine import Affine
from .maps.base import Transform
from .maps.edges import move_shapes
from .maps.homogeneous import compose, determinant, inverse
from .maps.resample import move_points, resample
from .maps.shapes import Shapes
from .reference import carry
from .solvers import preparation, recipes
from .solvers import section as solvers_section
from .solvers.mixed import drawing
from .solvers.mixed import nuclei as mixed_nuclei
from .solvers.points import align
from .starts import images, landmarks, pose
from .starts import section as starts_section
from .starts.given import given
from .starts.scale import Scale

Carried = Image | PointSet | Shapes | Tensor
"""What a map carries."""
LITTLE_IN_COMMON = 0.35
"""Explained share of the fixed image's variance below which a person has to look."""
VIOLENT = 10.0
"""Largest change of area that tissue is believed to go through without a remark."""
STRONG = 3.0
"""Change of area from which a likeness that came mostly from bending is not believed without a look."""
FROM_POSE = 2 / 3
"""Share of the likeness that must come from the pose for a strong bend to be believed without a look."""
BELONG = 10.0
"""Coincidence from which two images are believed to belong together as they are aligned (see `likeness.coincidence`)."""
BEYOND_DOUBT = 15.0
"""Coincidence of the affine map alone from which a strong bend is believed too."""
BENT_HOME = 30.0
"""Coincidence of the bent map from which a clear pose is believed although the affine map alone shows nothing: structure
finer than the bend, which no smooth map brings together by chance."""
CHANCE = 5.0
"""Coincidence under which they match no better than they would anywhere else."""
STAINS = "mi"
"""Metric for two stained sections."""
SEEN_IN_VOLUME = 200_000
"""Pixels of a section from which a volume of labels takes its colours, about."""
SMALLEST = 8
"""Pixels along the two longest axes that an image must have at least to be registered."""


@dataclass(frozen=True)
class Result:
    """A registration: the map ``Φ`` (moving → fixed), its inverse, the weights, the figures and the verdict.

    Args:
        transform: ``Φ``, from positions of the moving space to positions of the fixed space, each in its own unit.
        fixed_grid: canvas of the fixed side.
        moving_grid: canvas of the moving side.
        metrics: what ``metrics.json`` holds: ``verdict``, ``reasons``, ``seconds``, ``n_evaluations``, ``energy`` …
        config: the resolved settings, with ``versions``.
        history: one entry per step: ``stage``, ``level``, ``iteration``, ``energy`` …
        weight: matching probability per pixel of ``weight_grid`` (fixed space), ``[*S]``, or None.
        weight_grid: the grid of ``weight`` and of ``position_sd``.
        affine: the affine part of ``transform`` alone, moving → fixed.
        position_sd: standard deviation per axis of where a fixed pixel lies, ``[*S]`` in the fixed unit, or None.
    """

    transform: Transform
    fixed_grid: Grid
    moving_grid: Grid
    metrics: dict[str, Any]
    config: Config
    affine: Transform
    history: list[dict[str, Any]] = field(default_factory=list)
    weight: Tensor | None = None
    weight_grid: Grid | None = None
    position_sd: Tensor | None = None

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return str(self.metrics["verdict"])

    @property
    def section(self) -> bool:
        """Whether the fixed side is a section placed in a moving volume, as its plane z = 0."""
        return self.fixed_grid.ndim == 3 and self.fixed_grid.shape[0] == 1

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, one sentence each."""
        return tuple(self.metrics["reasons"])

    def __repr__(self) -> str:
        m = self.metrics
        return (
            f"Result({m['verdict']}, {m.get('model', 'map')}, {m['n_evaluations']} evaluations, {m['seconds']:.1f} s, "
            f"round trip {m['roundtrip_px']['mean']:.2g} px)"
        )

    @overload
    def to_fixed(self, data: Image) -> Image: ...
    @overload
    def to_fixed(self, data: PointSet) -> PointSet: ...
    @overload
    def to_fixed(self, data: Shapes) -> Shapes: ...
    @overload
    def to_fixed(self, data: Tensor) -> Tensor: ...
    def to_fixed(self, data: Carried) -> Carried:
        """Moving-space data in the fixed space: an `Image` on the fixed grid; a `PointSet`, `Shapes` or ``[..., D]`` moved."""
        moved = _carry(data, self.transform, self.fixed_grid)
        if self.section and isinstance(moved, Image):  # a picture again
            g = self.fixed_grid
            grid = Grid(g.shape[1:], g.spacing[1:], g.origin[1:], g.unit)
            weight = None if moved.weight is None else moved.weight[0]
            return moved.replace(data=moved.data[:, 0], grid=grid, weight=weight)
        return moved

    @overload
    def to_moving(self, data: Image) -> Image: ...
    @overload
    def to_moving(self, data: PointSet) -> PointSet: ...
    @overload
    def to_moving(self, data: Shapes) -> Shapes: ...
    @overload
    def to_moving(self, data: Tensor) -> Tensor: ...
    def to_moving(self, data: Carried) -> Carried:
        """Fixed-space data in the moving space: an `Image` on the moving grid; a `PointSet`, `Shapes` or ``[..., D]`` moved."""
        if self.section:
            data = _lifted(data)
        return _carry(data, self.transform.inverse(), self.moving_grid)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the map as one OME-Zarr 0.6 folder, aside and then renamed; see `regframe.io.store`."""
        from .io.store import save

        save(self, Path(path), overwrite=overwrite)


def _lifted(data: Carried) -> Carried:
    """What lies on a section as what lies on the plane z = 0."""
    if isinstance(data, PointSet):
        return plane.lift_points(data) if data.ndim == 2 else data
    if isinstance(data, Tensor):
        return torch.cat([torch.zeros_like(data[..., :1]), data], dim=-1) if data.shape[-1] == 2 else data
    raise ValueError(
        f"wanted points to carry from a section into a volume, got {type(data).__name__}; a plane fills no volume: carry the "
        "volume onto the section with to_fixed, or the positions of what is drawn on it"
    )


def _carry(data: Carried, transform: Transform, grid: Grid) -> Carried:
    if isinstance(data, Image):
        return resample(data, transform, grid)
    if isinstance(data, Shapes):
        return move_shapes(data, transform, grid)
    if isinstance(data, PointSet):
        return move_points(data, transform)
    return transform.points(data)


def register(
    fixed: Any,
    moving: Any,
    *,
    metric: Metric | str | None = None,
    transform: str | None = None,
    init: Any = "auto",
    config: Config | None = None,
    device: str | None = None,
    seed: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Align ``moving`` to ``fixed``; nothing has to be set.

    Args:
        fixed: an `Image` or a `PointSet`, or anything `regframe.open` reads; it stays where it is. Points against an
            image are drawn as a density (see `regframe.mixed`).
        moving: likewise; it is brought onto the fixed one.
        metric: name or instance; ``config.metric`` where None. ``auto`` takes mutual information for two stained sections,
            `contrast` for other images and the `mixture` for points; ``metrics["metric"]`` says which and why.
        transform: ``rigid``, ``similarity``, ``affine`` or ``lddmm``; ``config.transform`` where None.
        init: ``"auto"`` (a search over turn, mirror and shift), ``"identity"``, `regframe.landmarks`, an affine
            `Transform` from moving to fixed, or an earlier `Result`, whose affine part is taken.
        config: every other setting.
        device: ``cpu``; ``config.device`` where None.
        seed: kept with the result; ``config.seed`` where None.
        progress: called after every step.

    Raises:
        ValueError: for data that cannot be registered, with one sentence that says what was wanted, what came, what to do.
    """
    began = time.perf_counter()
    config = config or Config()
    if not isinstance(config, Config):
        raise ValueError(f"wanted a regframe.Config, got {type(config).__name__}; make one with Config.model_validate")
    if metric is not None and not isinstance(metric, (str, Metric)):
        raise ValueError(f"wanted a metric by name or as an instance, got {metric!r}; regframe.metric(name) makes one")
    changes: dict[str, Any] = {"transform": transform, "device": device, "seed": seed}
    if isinstance(metric, str):
        changes["metric"] = metric
    elif metric is not None:
        changes |= {"metric": type(metric).name, "metric_options": plugins.options_of(metric)}
    config = Config.model_validate(config.model_dump() | {k: v for k, v in changes.items() if v is not None})
    if config.device != "cpu":
        raise ValueError(f"wanted device 'cpu', got {config.device!r}; the solver does not run on other devices yet")
    automatic = not isinstance(metric, Metric) and config.metric == "auto"
    if automatic and config.metric_options:
        raise ValueError(
            f"wanted a metric by name for the options {sorted(config.metric_options)}, got 'auto'; name one"
        )
    similarity = (
        metric
        if isinstance(metric, Metric)
        else plugins.metric("contrast" if automatic else config.metric, **config.metric_options)
    )
    fixed, moving = _open(fixed), _open(moving)
    init = init.affine if isinstance(init, Result) else init
    reasons: list[str] = []
    if isinstance(fixed, PointSet) and isinstance(moving, PointSet):
        with threads_for(len(fixed)), torch.inference_mode(False):
            return _register_points(
                fixed, moving, None if automatic else similarity, init, config, progress, reasons, began
            )
    drawn: Drawn | None = None
    if isinstance(fixed, PointSet):
        assert isinstance(moving, Image)
        drawn = Drawn(fixed, "fixed")
        fixed = _draw(drawn, moving)
    elif isinstance(moving, PointSet):
        drawn = Drawn(moving, "moving")
        moving = _draw(drawn, fixed)
    check_pair(fixed, moving, similarity, reasons)
    with (
        threads_for(max(fixed.data.numel(), moving.data.numel())),
        torch.inference_mode(False),  # the fit needs gradients, whatever the caller has switched off around it
        torch.enable_grad(),
    ):
        return _register(fixed, moving, similarity, init, config, progress, reasons, began, automatic, drawn)


@dataclass(frozen=True)
class Drawn:
    """The side of a mixed pair that is points: they are drawn as an image of their density.

    Args:
        points: as they came.
        side: ``fixed`` or ``moving``.
    """

    points: PointSet
    side: str


def _draw(drawn: Drawn, image: Image) -> Image:
    clouds.check_cloud(drawn.points, drawn.side)
    check_image(image, "moving" if drawn.side == "fixed" else "fixed")
    return drawing.draw(drawn.points, image, drawn.side)


def _register(
    fixed: Image,
    moving: Image,
    similarity: Metric,
    init: Any,
    config: Config,
    progress: Callable[[Progress], None] | None,
    reasons: list[str],
    began: float,
    automatic: bool,
    drawn: Drawn | None = None,
) -> Result:
    (fixed, one), (moving, other) = preparation.prepare(fixed), preparation.prepare(moving)
    stained = one.brightfield and other.brightfield
    section = moving.grid.ndim > fixed.grid.ndim
    moving_grid = moving.grid
    if section and one.brightfield:
        fixed = preparation.grey(fixed)
    if automatic and section and not moving.labels:
        similarity = plugins.metric(STAINS)
    if automatic and stained:
        fixed, moving = preparation.grey(fixed), preparation.grey(moving)

    if automatic and stained:
        similarity = plugins.metric(STAINS)
        why = "both are stained sections in transmitted light, whose densities and shading need not follow one line"
    elif automatic and section and not moving.labels:
        why = "a section and a volume need not show the same"
    elif automatic and section:
        why = "every label takes the colour that the section shows there"
    elif automatic:
        why = "one side's intensities are taken to explain the other's"
    else:
        why = "as asked for"

    def ready(level: Level) -> Metric:
        similarity.prepare(
            Image(level.fixed, level.fixed_grid, weight=level.fixed_weight),
            Image(level.moving, level.moving_grid, weight=level.moving_weight),
        )
        return similarity

    nuclei = None
    if section:
        sides, start, found, fit, place_sd = _fit_section(fixed, moving, init, ready, config, progress, reasons)
        fixed, moving = (side.image for side in sides)
    else:
        sides = Halvings(fixed), Halvings(moving)
        start, found = images.begin(*sides, init, ready, config)
        pairs, place_sd = _pairs(*sides, init, config), None
        recipe = recipes.drawn(drawn.points) if drawn is not None else recipes.STAINED if stained else Recipe()
        fit = fit_pyramid(Pair(*sides, ready, config, pairs, recipe), _pullback(*sides, start), progress)
        if drawn is not None and pairs is None:
            fit, nuclei = mixed_nuclei.settle(fit, fixed, moving, drawn.points, drawn.side, config)
    affine, phi = physical_maps(fit.pullback, fit.space, fit.velocity, fixed.grid, moving.grid)
    figures = _figures(fit, fixed, moving, Affine(start, moving.grid.unit, fixed.grid.unit), affine, phi, found)
    place = _coincidence(*sides, affine, affine)
    figures["coincidence"] = {
        "affine": place,
        "final": place if fit.space is None else _coincidence(*sides, affine, phi),
    }
    if isinstance(init, landmarks.Landmarks):
        figures["landmark_residual_px"] = [
            float(v) / fixed.grid.pixel for v in (phi.points(init.moving) - init.fixed).norm(dim=1)
        ]
    verdict, more = _judge(figures, fit)
    if drawn is not None and drawing.regular(drawn.points):
        more.append("the points lie on a lattice, whose density shows hardly more than an outline: look at the overlay")
        verdict = "warn" if verdict == "pass" else verdict
    figures |= {
        "verdict": verdict,
        "reasons": reasons + more,
        "metric": {"name": type(similarity).name, "why": why},
        "shared_structure": fit.shared,
        "neighbouring_sections": fit.sections,
        "preparation": {
            "fixed": dataclasses.asdict(one) | _reading(fixed),
            "moving": dataclasses.asdict(other) | _reading(moving),
        },
        "n_evaluations": fit.n_evaluations,
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "seed": config.seed,
        "threads": torch.get_num_threads(),
    }
    if section:
        figures["plane"] = _plane_figures(affine, fixed.grid, place_sd)
    if drawn is not None:
        density = fixed if drawn.side == "fixed" else moving
        figures["drawn"] = {"side": drawn.side, "points": len(drawn.points), "spacing": density.grid.pixel}
        figures["nuclei"] = nuclei
    assert fit.overlap is not None
    assert fit.matching is not None
    weight_grid = _level_grid(fixed.grid, fit)
    sd = _position_sd(fit, fixed.grid, figures)
    return Result(
        transform=phi,
        fixed_grid=fixed.grid,
        moving_grid=moving_grid,
        metrics=figures,
        config=config,
        affine=affine,
        history=fit.history,
        weight=fit.matching * fit.overlap,
        weight_grid=weight_grid,
        position_sd=sd,
    )


def _pullback(fixed: Halvings, moving: Halvings, start: Tensor) -> Tensor:
    """A start ``A`` as the inverse map of the normalised frames, without the last bits: in those one unit differs from
    another, and so would their fits."""
    to_fixed, to_moving = Frame.of(fixed.grid).matrix(), Frame.of(moving.grid).matrix()
    return torch.round(compose(to_moving, inverse(start), inverse(to_fixed)), decimals=10)


def _pairs(fixed: Halvings, moving: Halvings, init: Any, config: Config) -> tuple[Tensor, Tensor, float] | None:
    """Landmarks in the normalised frames and how far they are trusted, where they enter the energy."""
    if config.sigma_landmarks is None:
        return None
    if not isinstance(init, landmarks.Landmarks):
        raise ValueError("wanted landmarks beside sigma_landmarks, got none; pass init=regframe.landmarks(p, q)")
    p = carry(Frame.of(moving.grid).matrix(), init.moving)
    q = carry(Frame.of(fixed.grid).matrix(), init.fixed)
    return p, q, config.sigma_landmarks / fixed.grid.pixel


def _plane_figures(affine: Affine, grid: Grid, sd: float | None) -> dict[str, Any]:
    """Where a section lies in its volume, in the volume's unit and order of axes ``(z, y, x)``."""
    middle = torch.tensor(grid.center, dtype=torch.float64)
    steps = torch.diag(torch.tensor(grid.spacing, dtype=torch.float64))[1:]
    at = affine.inverse().points(torch.cat([middle[None], middle + steps]))  # [3, 3]
    down, right = at[1] - at[0], at[2] - at[0]
    normal = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=0)
    tilt = math.degrees(math.acos(min(1.0, float(normal.abs().max()))))
    return {
        "middle": at[0].tolist(),
        "normal": normal.tolist(),
        "tilt_degrees": tilt,
        "pixel": [float(down.norm()), float(right.norm())],
        "corner_sd": sd,
    }


def _fit_section(
    fixed: Image,
    moving: Image,
    init: Any,
    ready: Callable[[Level], Metric],
    config: Config,
    progress: Callable[[Progress], None] | None,
    reasons: list[str],
) -> tuple[tuple[Halvings, Halvings], Tensor, pose.Pose | None, Fit, float | None]:
    """A section in a volume: both as they were fitted (one plane, and the slab of the volume around it), start, what
    the search found, fit, and by how much planes that fit as well differ."""
    side, found, sd = Halvings(plane.lift(fixed)), None, None
    start = given(side.grid, moving.grid, init, config)
    if start is None:
        place = starts_section.search(fixed, Halvings(moving), config)
        factor = Scale.of(fixed.grid, moving.grid).factor
        start = pose.nearest_of_kind(place.pose.matrix, config.transform, factor, moving.grid.center)
        found, sd = place.pose, place.sd
        if place.either_side:
            reasons.append(
                "the volume looks the same from both sides: left and right of the section were not told apart"
            )
    phi: Transform = Affine(start, moving.grid.unit, fixed.grid.unit)
    seen = side.physical(side.times_until(lambda grid: math.prod(grid.shape) <= SEEN_IN_VOLUME))
    volume = solvers_section.slab(moving, phi.inverse().points(seen.grid.coords()))
    # a section says little about where it lies across itself: what the search found out about the plane is kept
    painted = (
        solvers_section.painted(volume, seen, phi.inverse().points(seen.grid.coords())) if moving.labels else volume
    )
    other = Halvings(painted)
    pair = Pair(side, other, ready, config, _pairs(side, other, init, config), recipes.PLANE)
    fit = fit_pyramid(pair, _pullback(side, other, start), progress)
    return (side, other), start, found, fit, sd


def _register_points(
    fixed: PointSet,
    moving: PointSet,
    similarity: Metric | None,
    init: Any,
    config: Config,
    progress: Callable[[Progress], None] | None,
    reasons: list[str],
    began: float,
) -> Result:
    """The same for two point sets; what is done is in `regframe.clouds`."""
    for points, side in ((fixed, "fixed"), (moving, "moving")):
        clouds.check_cloud(points, side)
    if fixed.ndim != moving.ndim:
        raise ValueError(
            f"wanted two point sets of one dimension, got {fixed.ndim}D fixed and {moving.ndim}D moving points; "
            "leave out or add the z column"
        )
    if similarity is not None and similarity.accepts != (PointSet, PointSet):
        wants = " and ".join(t.__name__ for t in similarity.accepts)
        raise ValueError(f"wanted a metric for two point sets, got {type(similarity).name!r}, which compares {wants}")
    if unit_ratio(moving.unit, fixed.unit) is None:
        note = (
            f"one side declares no unit (fixed in {fixed.unit}, moving in {moving.unit}): "
            "the scale between them was estimated, not known"
        )
        reasons.append(note)
        warnings.warn(
            f"regframe: {note}; name the unit in the columns (y_um, x_um) to fix it", UserWarning, stacklevel=3
        )
    grids = clouds.canvas(fixed), clouds.canvas(moving)
    start = given(*grids, init, config)
    found = align.align(fixed, moving, grids, start, config, similarity, progress)
    metric = {"name": "mixture", "why": "the one for points"}
    if similarity is not None:
        metric = {"name": type(similarity).name, "why": "as asked for"}
    figures = found.figures | {
        "verdict": found.verdict,
        "reasons": reasons + found.reasons,
        "metric": metric,
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "seed": config.seed,
        "threads": torch.get_num_threads(),
    }
    if isinstance(init, landmarks.Landmarks):
        figures["landmark_residual_px"] = [
            float(v) / grids[0].pixel for v in (found.transform.points(init.moving) - init.fixed).norm(dim=1)
        ]
    return Result(
        transform=found.transform,
        fixed_grid=grids[0],
        moving_grid=grids[1],
        metrics=figures,
        config=config,
        affine=found.affine,
        history=found.history,
        weight=found.weight,
        weight_grid=found.weight_grid,
        position_sd=found.position_sd,
    )


def _position_sd(fit: Fit, fixed: Grid, figures: dict[str, Any]) -> Tensor:
    """How sure the map is of every fixed pixel of the last level, in the fixed unit; its summary goes to ``figures``."""
    assert fit.last is not None
    assert fit.overlap is not None
    sd = uncertainty.position_sd(fit.last, fit.x, fit.sections) * fixed.pixel
    seen = sd[fit.overlap > 0.5] if bool((fit.overlap > 0.5).any()) else sd.flatten()
    ordered = seen.sort().values
    median, p90 = (float(ordered[int(q * (len(ordered) - 1))]) for q in (0.5, 0.9))
    figures["position_sd"] = {"median": median, "p90": p90, "unit": fixed.unit}
    return sd


def versions() -> dict[str, str]:
    """What ran: versions of regframe, torch, numpy and Python."""
    out = {"python": platform.python_version()}
    for name in ("regframe", "torch", "numpy"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:  # run from a tree that was never installed
            out[name] = "unknown"
    return out


def check_image(image: Image, side: str) -> None:
    """Refuse an image that holds nothing to align: too small, not finite, constant."""
    longest = sorted(image.grid.shape)[-2:]
    if min(longest) < SMALLEST:
        raise ValueError(
            f"wanted a {side} image of at least {SMALLEST} x {SMALLEST} pixels, got {_shape(image.grid)}; "
            + (
                'are these positions? open them with adapter="points", columns="x,y" or "y,x"'
                if image.grid.shape[-1] in (2, 3)
                else "check that it is the right file and level"
            )
        )
    data = image.data
    if data.dtype.is_floating_point:
        bad = int((~torch.isfinite(data)).sum())
        if bad:
            raise ValueError(
                f"wanted finite pixels in the {side} image, got {bad} NaN or inf; fill them, or give them weight 0 and a value"
            )
    flat = data.reshape(data.shape[0], -1)
    if bool((flat == flat[:, :1]).all()):
        raise ValueError(
            f"wanted a {side} image with contrast, got a constant one (every pixel {float(flat[0, 0]):g}); "
            "check the file, level and channel"
        )


def check_pair(fixed: Image, moving: Image, metric: Metric, reasons: list[str]) -> None:
    """Refuse sides that cannot be registered with each other; add to ``reasons`` what can but is doubtful."""
    for image, side in ((fixed, "fixed"), (moving, "moving")):
        check_image(image, side)
    if fixed.grid.ndim > moving.grid.ndim:
        raise ValueError(
            f"wanted the section as the fixed side and the volume as the moving one, got a {fixed.grid.ndim}D fixed and a "
            f"{moving.grid.ndim}D moving image; swap them, or name the axes when opening them"
        )
    if metric.accepts != (Image, Image):
        wants = " and ".join(t.__name__ for t in metric.accepts)
        raise ValueError(f"wanted a metric for two images, got {type(metric).name!r}, which compares {wants}")
    if unit_ratio(moving.grid.unit, fixed.grid.unit) is None:
        note = (
            f"one side declares no pixel size (fixed in {fixed.grid.unit}, moving in {moving.grid.unit}): "
            "the scale between them was estimated, not known"
        )
        reasons.append(note)
        warnings.warn(f"regframe: {note}; state the spacing to fix it", UserWarning, stacklevel=3)


def _open(source: Any) -> Image | PointSet:
    return source if isinstance(source, (Image, PointSet)) else plugins.open(source)


def _reading(image: Image) -> dict[str, Any]:
    """How an image was read of a larger one, as plain figures; nothing where it was read whole."""
    if image.reading is None:
        return {}
    how = image.reading
    figures = {"level": how.level, "levels": how.levels, "averaged": list(how.factor)}
    return {"reading": figures | {"full_shape": list(how.full.shape), "full_spacing": list(how.full.spacing)}}


def _shape(grid: Grid) -> str:
    return " x ".join(str(n) for n in grid.shape)


def _level_grid(fixed: Grid, fit: Fit) -> Grid:
    """The fixed grid at the resolution of the last level, where the weights live."""
    assert fit.matching is not None
    shape = tuple(fit.matching.shape)
    factor = tuple(2 ** round(math.log2(n / m)) for n, m in zip(fixed.shape, shape, strict=True))
    spacing = tuple(s * f for s, f in zip(fixed.spacing, factor, strict=True))
    origin = tuple(o + s * (f - 1) / 2 for o, s, f in zip(fixed.origin, fixed.spacing, factor, strict=True))
    return Grid(shape, spacing, origin, fixed.unit)


def _probe(grid: Grid, most: int = 150_000) -> Grid:
    """A grid over the same extent with at most ``most`` pixels."""
    factor = max(1.0, (math.prod(grid.shape) / most) ** (1 / grid.ndim))
    if factor == 1.0:
        return grid
    return grid.resampled(tuple(s * min(factor, n) for s, n in zip(grid.spacing, grid.shape, strict=True)))


def _coincidence(fixed: Halvings, moving: Halvings, affine: Affine, phi: Transform, most: int = 150_000) -> float:
    """The largest `likeness.coincidence` of the aligned images over resolutions."""
    times = fixed.times_until(lambda grid: math.prod(grid.shape) <= most)
    zoom = float(determinant(affine.matrix).abs()) ** (1 / affine.ndim) * moving.grid.pixel / fixed.grid.pixel
    one, other = fixed.physical(times), moving.physical(max(0, round(times - math.log2(max(zoom, 1e-6)))))
    inside = moving.grid.contains(phi.inverse().points(one.grid.coords())).to(torch.float32)
    if other.weight is not None:
        inside = inside * resample(Image(other.weight[None], other.grid), phi, one.grid).data[0]
    if one.weight is not None:
        inside = inside * one.weight
    target, warped, grid = one.data, resample(other, phi, one.grid).data, one.grid
    most_seen = 0.0
    while True:
        weight = (inside > 0.99).to(torch.float32)
        most_seen = max(most_seen, coincidence(fit_contrast(warped, target, weight), target, weight))
        thick = [d for d in range(grid.ndim) if grid.shape[d] > 1]
        axes = [d for d in thick if grid.spacing[d] < 1.5 * min(grid.spacing[k] for k in thick)]
        if sorted(grid.shape[d] for d in axes)[-2:][0] < 64:  # the shorter side of a plane
            return most_seen
        stacked, grid = halve(torch.cat([target, warped, inside[None]]), grid, axes)
        target, warped, inside = stacked[: len(target)], stacked[len(target) : -1], stacked[-1]


def _explained(fixed: Image, moving: Image, phi: Transform) -> float:
    """Share of the fixed image's variance that the warped moving image explains where they overlap, 0 … 1."""
    grid = _probe(fixed.grid)
    target = resample(fixed.replace(data=fixed.data.to(torch.float32)), Affine.identity(grid.ndim, grid.unit), grid)
    warped = resample(moving.replace(data=moving.data.to(torch.float32)), phi, grid).data
    inside = moving.grid.contains(phi.inverse().points(grid.coords())).to(torch.float32)
    if float(inside.sum()) < 16:
        return 0.0
    predicted = fit_contrast(warped, target.data, inside)
    centre = (target.data * inside).flatten(1).sum(dim=1) / inside.sum()
    spread = (((target.data - centre.reshape(-1, *(1,) * grid.ndim)) ** 2) * inside).sum()
    rest = (((target.data - predicted) ** 2) * inside).sum()
    return float((1 - rest / spread.clamp(min=1e-12)).clamp(0, 1))


def _figures(
    fit: Fit, fixed: Image, moving: Image, start: Affine, affine: Affine, phi: Transform, found: pose.Pose | None
) -> dict[str, Any]:
    """What ``metrics.json`` says about the map."""
    grid = _probe(fixed.grid)
    coords = grid.coords()
    back = phi.inverse()
    at = back.points(coords)
    inside = moving.grid.contains(at)
    error = (phi.points(at) - coords).norm(dim=-1) / fixed.grid.pixel
    area = back.jacobian_determinant(grid) * determinant(affine.matrix)  # of the bending alone
    seen = inside if bool(inside.any()) else torch.ones_like(inside)
    assert fit.matching is not None
    assert fit.overlap is not None
    overlap = fit.overlap
    shift = (at - affine.inverse().points(coords)).norm(dim=-1) / moving.grid.pixel
    bent = [h for h in fit.history if h["stage"] != "straight"]
    kept = bent if fit.space is not None else fit.history
    last = [h for h in kept if (h["stage"], h["level"]) == (kept[-1]["stage"], kept[-1]["level"])]
    return {
        "roundtrip_px": {"mean": float(error[seen].mean()), "max": float(error[seen].max())},
        "jacobian_min": float(area[seen].min()),
        "jacobian_max": float(area[seen].max()),
        "folding_fraction": float((area[seen] <= 0).to(torch.float32).mean()),
        "matching_fraction": float((fit.matching * overlap).sum() / overlap.sum().clamp(min=1e-9)),
        "overlap_fraction": float(inside.to(torch.float32).mean()),
        "pose_margin": None if found is None else found.margin,
        "pose_score": None if found is None else found.score,
        "runner_up": None
        if found is None or found.runner_up is None
        else {"matrix": found.runner_up.tolist(), "score": found.runner_up_score},
        "bending_px": {"mean": float(shift[seen].mean()), "max": float(shift[seen].max())},
        "explained_variance": {
            "start": _explained(fixed, moving, start),
            "affine": _explained(fixed, moving, affine),
            "final": _explained(fixed, moving, phi),
        },
        "model": "affine" if fit.space is None else "lddmm",
        "bending_gain": fit.bending_gain,
        "energy": {
            "first": last[0]["energy"] if last else None,
            "last": last[-1]["energy"] if last else None,
            "matching": last[-1]["matching"] if last else None,
            "regularizer": last[-1]["regularizer"] if last else None,
        },
        "convergence": fit.reasons,
        "sobolev": None
        if fit.space is None
        else {
            "scale": fit.space.scale * moving.grid.pixel,
            "order": fit.space.order,
            "deviation": fit.space.deviation * moving.grid.pixel,
        },
    }


def _judge(figures: dict[str, Any], fit: Fit) -> tuple[str, list[str]]:
    """``pass``, ``warn`` or ``fail``, and why, in sentences a biologist understands."""
    fail, warn = [], []
    explained = figures["explained_variance"]
    if "diverged" in fit.reasons:
        fail.append("the fit diverged: the energy was not finite")
    if figures["overlap_fraction"] < 0.02:
        fail.append("the two images hardly overlap under the map that was found")
    elif figures["overlap_fraction"] < 0.3:
        warn.append(f"the moving image covers only {figures['overlap_fraction']:.0%} of the fixed one")
    place, final = (figures["coincidence"][key] for key in ("affine", "final"))
    margin = figures["pose_margin"]
    # smooth organs of any kind come to 10 in three dimensions
    belong = BELONG if fit.increment.ndim == 2 else BEYOND_DOUBT
    home = final >= BENT_HOME and (margin is None or margin >= pose.CLEAR)
    if explained["final"] < 0.02 and place < belong:
        fail.append("the aligned images have nothing in common: the moving one explains under 2 % of the fixed one")
    elif place < CHANCE and final < BEYOND_DOUBT and explained["final"] < LITTLE_IN_COMMON:
        fail.append(f"the images match no better here than they would anywhere else ({place:.1f} standard deviations)")
    elif place < belong and not home:
        warn.append(
            f"the images match hardly better here than elsewhere ({place:.1f} standard deviations): look at the overlay"
        )
    if explained["final"] + 0.02 < explained["start"]:
        fail.append("the map explains less of the fixed image than its start did")
    low, high = figures["jacobian_min"], figures["jacobian_max"]
    if low < 1 / VIOLENT or high > VIOLENT:
        torn = "squeezes" if low < 1 / high else "stretches"
        factor = max(high, 1 / max(low, 1e-6))
        message = f"the map {torn} tissue {factor:.0f}-fold somewhere, which tissue does not do"
        (fail if low < 1 / (10 * VIOLENT) or high > 10 * VIOLENT else warn).append(message)
    strong = low < 1 / STRONG or high > STRONG
    if place < BEYOND_DOUBT and explained["affine"] < FROM_POSE * explained["final"] and strong:
        warn.append(
            "much of the likeness came from bending, not from the pose: unlike images can be bent alike, so look at the overlay"
        )
    if figures["folding_fraction"] > 0:
        warn.append(f"the map folds over at {figures['folding_fraction']:.2%} of the pixels")
    if figures["roundtrip_px"]["mean"] > 0.02 or figures["roundtrip_px"]["max"] > 0.1:
        warn.append(f"the map and its inverse disagree by up to {figures['roundtrip_px']['max']:.2g} px")
    if figures["matching_fraction"] < 0.2:
        warn.append(f"only {figures['matching_fraction']:.0%} of the overlap was recognised as matching tissue")
    if figures["pose_margin"] is not None and figures["pose_margin"] < pose.CLEAR:
        warn.append("another pose fits nearly as well: look at the overlay before you trust this one")
    if fit.reasons and fit.reasons[-1] == "max_iter":
        warn.append("the fit was still moving when it reached its iteration limit")
    if fail:
        return "fail", fail + warn
    return ("warn", warn) if warn else ("pass", [])
