"""The steps common to all pairs that are compared as images: checks, preparation, the fit, its figures.

`images`, `section` and `mixed` use these functions; what differs between them is in their own files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import confidence, devices
from ..config import Config
from ..contracts import Fitted, Metric, Task
from ..data import Grid, Image, unit_ratio
from ..fit import uncertainty
from ..fit.agreement import agreement, textured
from ..fit.frames import Frame, zoom_of
from ..fit.further import still_to_move
from ..fit.halvings import Halvings, Level, halve
from ..fit.likeness import coincidence, fit_contrast
from ..fit.pyramid import Fit, Pair, Recipe, fit_pyramid, to_moving
from ..fit.velocity import physical_maps
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.homogeneous import compose, determinant, inverse
from ..maps.resample import resample
from ..reference import carry
from ..starts import images, pose
from ..starts.evidence import Judge
from ..starts.landmarks import Landmarks
from ..verdict import Finding, unknown_scale
from .extent import extent
from .preparation import Look
from .unseen import MOSTLY, not_finite

if TYPE_CHECKING:
    from . import cellwise

SMALLEST = 8
"""Least size of an image, in pixels along the shorter of its two longest axes, and of what it shows along its narrowest
direction: 8 pixels are the least that can be halved once (`Halvings.at`)."""
PROBED = 150_000
"""About how many pixels the figures of a map (round trip, areas, explained variance) are computed at: taking more changes no
digit that is printed."""


# ---- checks --------------------------------------------------------------------------------------------------------------


WILD = (1e-30, 1e30)
"""Size of the largest value of an image that is computed with: single precision holds 1e-38 to 1e38; instruments write 1e-9
(densities) to 1e9 (counts)."""


def check_image(image: Image, side: str) -> None:
    """Refuse an image that holds nothing to align: too small, not finite, constant but for a spot or a thin line."""
    longest = sorted(image.grid.shape)[-2:]
    if min(longest) < SMALLEST:
        raise ValueError(
            f"wanted a {side} image of at least {SMALLEST} x {SMALLEST} pixels, "
            f"got {' x '.join(str(n) for n in image.grid.shape)}; "
            + (
                'are these positions? open them with adapter="points", columns="x,y" or "y,x"'
                if image.grid.shape[-1] in (2, 3)
                else "check that it is the right file and level"
            )
        )
    data, lost = image.data, None
    if data.dtype.is_floating_point:
        infinite = int(torch.isinf(data).sum())
        if infinite:
            raise ValueError(
                f"wanted finite pixels in the {side} image, got {infinite} infinite ones; write NaN for no data instead"
            )
        lost = not_finite(data)
        share = 0.0 if lost is None else float(lost.to(torch.float32).mean())
        if share > MOSTLY:
            raise ValueError(
                f"wanted numbers in at least {1 - MOSTLY:.0%} of the pixels of the {side} image, got NaN in {share:.1%}; "
                "check the file, level and channel"
            )
        data = data if lost is None else data[:, ~lost]
        largest = float(data.abs().max())
        if largest and not WILD[0] <= largest <= WILD[1]:
            raise ValueError(
                f"wanted pixels whose largest is from {WILD[0]:g} to {WILD[1]:g} in the {side} image, got {largest:g}; divide "
                "them by a number of that size"
            )
    if image.weight is not None and not bool((torch.isfinite(image.weight) & (image.weight >= 0)).all()):
        raise ValueError(
            f"wanted finite weights of at least 0 for the {side} image, got others; give such pixels the weight 0"
        )
    flat = data.reshape(data.shape[0], -1)
    if bool((flat == flat[:, :1]).all()):
        raise ValueError(
            f"wanted a {side} image with contrast, got a constant one (every pixel {float(flat[0, 0]):g}); "
            "check the file, level and channel"
        )
    check_extent(image, lost, side)


def check_extent(image: Image, lost: Tensor | None, side: str) -> None:
    """Refuse an image of which nothing but a spot or a thin line differs from the rest, ``lost`` and weight 0 aside."""
    counts = None if lost is None else ~lost
    if image.weight is not None:
        weighed = image.weight > 0
        counts = weighed if counts is None else counts & weighed
    found = extent(image.data, counts, SMALLEST)
    if found is None:
        return
    value = ", ".join(f"{value:g}" for value in found.common[:4]) + (", …" if len(found.common) > 4 else "")
    if not found.pixels:
        what = f"one whose pixels that count are all {value}"
    elif found.pixels == 1:
        what = f"one in which a single pixel differs from {value}"
    else:
        across = "one pixel" if round(found.width) == 1 else f"{found.width:.0f} pixels"
        what = f"one in which the {found.pixels} pixels that differ from {value} lie in a strip {across} wide"
    raise ValueError(
        f"wanted a {side} image that shows something at least {SMALLEST} pixels wide and high, got {what}; nothing there says "
        "where it belongs: check the file, level, channel and mask"
    )


def check_metric(metric: Metric | None) -> None:
    """Refuse a metric that does not compare two images."""
    if metric is not None and metric.accepts != (Image, Image):
        wants = " and ".join(t.__name__ for t in metric.accepts)
        raise ValueError(f"wanted a metric for two images, got {type(metric).name!r}, which compares {wants}")


def check_units(fixed: str, moving: str) -> list[Finding]:
    """A remark where the units of the two sides do not determine the scale between them; otherwise nothing."""
    if unit_ratio(moving, fixed) is not None:
        return []
    return [unknown_scale(fixed, moving, "pixel size", "state the spacing to fix it")]


# ---- the fit -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """Two images, prepared for comparison, and the metric.

    Args:
        fixed: the fixed image, with weight 0 where nothing was imaged.
        moving: the moving image, with weight 0 where nothing was imaged.
        looks: what the preparation found in the fixed and in the moving image.
        metric: the measure they are compared by.
        why: the reason for this metric, in words, for ``metrics.json``.
        stained: whether both are stained sections in transmitted light.
        counted: whether both are densities of counted things.
        followed: the measures by which a bend between two cuts follows.
    """

    fixed: Image
    moving: Image
    looks: tuple[Look, Look]
    metric: Metric
    why: str
    stained: bool = False
    counted: bool = False
    followed: tuple[Metric, ...] = ()

    def ready(self, level: Level) -> Metric:
        """The metric, prepared for the two images of one pyramid level."""
        return _prepared(self.metric, level)

    def halvings(self) -> tuple[Halvings, Halvings]:
        """Both sides at every resolution."""
        fixed, moving = self.looks
        return Halvings(self.fixed, fixed.stained), Halvings(self.moving, moving.stained)


def _prepared(metric: Metric, level: Level) -> Metric:
    """A metric, prepared for the two images of one pyramid level."""
    sides = (level.fixed, level.fixed_grid, level.fixed_weight), (level.moving, level.moving_grid, level.moving_weight)
    images = [Image(data, grid, weight=weight) for data, grid, weight in sides]
    if level.sides is not None:
        images = [
            image.replace(channels=side.channels, before=side.original, name=side.original.name)
            for image, side in zip(images, level.sides, strict=True)
        ]
    metric.prepare(*images)
    return metric


@dataclass(frozen=True)
class Run:
    """A finished fit, together with its start.

    Args:
        sides: the fixed and the moving side, at all resolutions.
        start: ``A`` ``[D+1, D+1]``, moving → fixed in physical units, from which the fit began.
        found: the outcome of the search for the start; None where the start was given.
        fit: the fit.
        judge: what weighed it; None where nothing did, or it is not known.
        cells: the map refined by the cells of both sides, which is that of ``fit``; None where it was not.
    """

    sides: tuple[Halvings, Halvings]
    start: Tensor
    found: pose.Pose | None
    fit: Fit
    judge: Judge | None = None
    cells: cellwise.Refined | None = None


def run(pair: Compared, task: Task, recipe: Recipe) -> Run:
    """Find a start for two images, then fit their map by ``recipe``."""
    sides = pair.halvings()
    start, found = images.begin(*sides, task.start, task.config)
    judge = _judge(sides, start, task, recipe)
    return Run(sides, start, found, fit(pair, sides, start, task, recipe, judge), judge)


def again(done: Run, pair: Compared, task: Task, recipe: Recipe) -> Run:
    """Fit the map of ``pair``, the same sides compared otherwise, from the start that was found for ``done``."""
    sides, judge = done.sides, done.judge
    if judge is None or pair.fixed is not sides[0].image or pair.moving is not sides[1].image:
        sides = pair.halvings()
        judge = _judge(sides, done.start, task, recipe)
    return dataclasses.replace(done, sides=sides, fit=fit(pair, sides, done.start, task, recipe, judge), judge=judge)


def by_cells(done: Run, pair: Compared, task: Task, recipe: Recipe) -> Run:
    """``done`` with its map refined by the cells of two densities, where these are known to be the same ones (`cellwise`)."""
    if not pair.counted or task.metric is not None or task.config.sigma_landmarks is not None:
        return done
    from . import cellwise  # with what fits points, which other images do not wait for

    began = pullback(done.sides, done.start)
    found = cellwise.refined(done.fit.on_host(), (pair.fixed, pair.moving), began, task.config)
    if found is None:
        return done
    there = _on_device(done.sides, task)
    fit = cellwise.adopted(done.fit, found, Pair(*there, pair.ready, task.config, None, recipe, done.judge))
    if done.judge is not None:
        fit.nats = done.judge(functools.partial(to_moving, fit), fit.pullback)
    return dataclasses.replace(done, fit=fit, cells=found)


def _on_device(sides: tuple[Halvings, Halvings], task: Task) -> tuple[Halvings, Halvings]:
    """Both sides where the task's fit runs; all that is searched, judged or drawn beside the fit stays on the host."""
    most = task.config.most_of(sides[0].grid.shape)
    values = max(len(side.image.data) * min(math.prod(side.grid.shape), most) for side in sides)
    device = devices.chosen(task.device, values)
    return sides[0].on(device), sides[1].on(device)


def _judge(sides: tuple[Halvings, Halvings], start: Tensor, task: Task, recipe: Recipe) -> Judge | None:
    """What weighs a fit from ``start`` on, whatever the metric; None where a section lies in a volume, or nothing moves."""
    if sides[0].grid.ndim != sides[1].grid.ndim or not recipe.moves:
        return None
    prior = images.prior_of(*sides)
    if task.start != "auto":  # whoever states a pose knows the size
        prior = dataclasses.replace(prior, size=None)
    return Judge(*sides, prior, zoom_of(pullback(sides, start)))


def fit(
    pair: Compared,
    sides: tuple[Halvings, Halvings],
    start: Tensor,
    task: Task,
    recipe: Recipe,
    judge: Judge | None = None,
) -> Fit:
    """Fit the map of two sides by ``recipe``, from ``start``: ``A`` ``[D+1, D+1]`` in physical units.

    ``judge`` weighs the fit against simpler ones; None makes one where there can be one.
    """
    began = pullback(sides, start)
    judge = judge or _judge(sides, start, task, recipe)
    landmarks, there = pairs(sides, task), _on_device(sides, task)
    followed = tuple(functools.partial(_prepared, metric) for metric in pair.followed)
    if _states_prior(task.config):
        followed = ()  # only an energy can weigh a prior that the user states

    def fitted_to(pairs_held: tuple[Tensor, Tensor, float] | None) -> Fit:
        bends = followed if pairs_held is None else ()  # only an energy can weigh landmarks
        asked = Pair(*there, pair.ready, task.config, pairs_held, recipe, judge, bends)
        found = fit_pyramid(asked, began, task.progress)
        if judge is not None:
            found.nats = judge(functools.partial(to_moving, found), found.pullback)
        return found

    found = fitted_to(landmarks)
    if landmarks is None:
        return found
    found.held = True
    if judge is None or task.config.hold_landmarks:
        return found
    free = fitted_to(None)
    assert found.nats is not None
    assert free.nats is not None
    if free.nats > found.nats:  # a richer claim has to earn its place: the images agree more without it
        free.held = False
        return free
    return found


def _states_prior(config: Config) -> bool:
    """Whether the user has set anything of the bend's prior or of its time."""
    stated = (config.sobolev.scale, config.sobolev.order, config.sigma_regularizer, config.n_slices, config.n_steps)
    return any(value is not None for value in stated)


def pullback(sides: tuple[Halvings, Halvings], start: Tensor) -> Tensor:
    """The inverse of a start ``A`` between the normalised frames, ``[D+1, D+1]`` float64, rounded to 10 decimals.

    Without rounding, a pair stated in µm and in mm would differ in the last bits of its start, and therefore in its fit.
    """
    to_fixed, to_moving = (Frame.of(side.grid).matrix() for side in sides)
    return torch.round(compose(to_moving, inverse(start), inverse(to_fixed)), decimals=10)


def pairs(sides: tuple[Halvings, Halvings], task: Task) -> tuple[Tensor, Tensor, float] | None:
    """Landmarks for the energy, or None where ``sigma_landmarks`` is not set.

    Returns the moving and the fixed positions ``[M, D]``, each in its normalised frame, and σ_P in fixed pixels.
    """
    if task.config.sigma_landmarks is None:
        return None
    if not isinstance(task.start, Landmarks):
        raise ValueError("wanted landmarks beside sigma_landmarks, got none; pass init=regframe.landmarks(p, q)")
    fixed, moving = (side.grid for side in sides)
    agreeing = task.start.agreeing()
    p = carry(Frame.of(moving).matrix(), agreeing.moving)
    q = carry(Frame.of(fixed).matrix(), agreeing.fixed)
    return p, q, task.config.sigma_landmarks / fixed.pixel


# ---- results of the fit --------------------------------------------------------------------------------------------------


def fitted(pair: Compared, done: Run, moving_grid: Grid) -> Fitted:
    """The maps, figures, weights and uncertainty of a finished fit.

    Args:
        pair: the two images as they were compared.
        done: the fit.
        moving_grid: canvas of the whole moving side, of which ``pair`` may hold only a part (a slab of a volume).
    """
    last = done.fit.last
    constant = not done.fit.steep and last is not None and last.constant(done.fit.x)
    sd, spread = _position_sd(done, done.sides[0].grid)
    # the fit is over: what follows is drawn, counted and stored on the host
    done = dataclasses.replace(done, fit=done.fit.on_host())
    fit, fixed, moving = done.fit, *(side.image for side in done.sides)
    affine, phi = physical_maps(fit.pullback, fit.space, fit.velocity, fixed.grid, moving.grid)
    figures = _figures(done, affine, phi)
    figures["explained_variance"] = {
        "start": _explained(fixed, moving, Affine(done.start, moving.grid.unit, fixed.grid.unit)),
        "affine": _explained(fixed, moving, affine),
        "final": _explained(fixed, moving, phi),
    }
    laid = _overlaid(*done.sides, affine, phi)
    final = _coincidence(*laid)
    place = final if fit.space is None else _coincidence(*_overlaid(*done.sides, affine, affine))
    figures["coincidence"] = {"affine": place, "final": final}
    tissue = _stained(*done.sides, phi, laid[-1])
    figures["agreement"] = _agreement(laid, tissue, fixed.grid, _zoom(affine, moving.grid, fixed.grid))
    figures["preparation"] = {
        side: look.figures() | _reading(image)
        for side, look, image in zip(("fixed", "moving"), pair.looks, (fixed, moving), strict=True)
    }
    figures["counted"] = pair.counted
    figures["evidence"] = done.fit.nats
    figures["evidence_affine"] = done.fit.nats if done.fit.straight_nats is None else done.fit.straight_nats
    if done.fit.held is not None:
        figures["landmarks_held"] = done.fit.held
    figures["confidence"] = confidence.of_images(figures, fixed.grid.shape)
    sure = figures["confidence"]
    figures["place_confidence"] = None if sure is None else confidence.of_place(figures, fixed.grid.ndim)
    if done.cells is not None:
        figures["cells"] = done.cells.figures()
        for name in ("confidence", "place_confidence"):
            figures[name] = max(figures[name] or 0.0, confidence.BY_CELLS)
    figures["metric"] = {"name": type(pair.metric).name, "why": pair.why}
    if constant:
        figures["metric"]["constant"] = True
    figures["position_sd"], figures["device"] = spread, "cpu" if last is None else str(last.device)
    figures["threads"] = torch.get_num_threads()
    assert fit.overlap is not None
    assert fit.matching is not None
    return Fitted(
        transform=phi,
        affine=affine,
        fixed_grid=fixed.grid,
        moving_grid=moving_grid,
        figures=figures,
        history=fit.history,
        weight=fit.matching * fit.overlap,
        weight_grid=_level_grid(fixed.grid, fit),
        position_sd=sd,
    )


def _figures(done: Run, affine: Affine, phi: Transform) -> dict[str, Any]:
    """The entries of ``metrics.json`` on the map itself and on the way it was found."""
    fit, found, fixed, moving = done.fit, done.found, *(side.image for side in done.sides)
    grid = _probe(fixed.grid)
    coords = grid.coords()
    back = phi.inverse()
    at = back.points(coords)
    inside = moving.grid.contains(at)
    error = (phi.points(at) - coords).norm(dim=-1) / fixed.grid.pixel
    area = back.jacobian_determinant(grid) * determinant(affine.matrix)  # change of area by the bend alone, [*S]
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
        "pose_decided": "" if found is None else found.decided,
        "mirror_fits": found is not None and found.mirror,
        "straight_kind": fit.increment.kind,
        "straight_asked": fit.asked,
        "torn": fit.torn,
        "runner_up": None
        if found is None or found.runner_up is None
        else {
            "matrix": found.runner_up.tolist(),
            "score": found.runner_up_score,
            "mirrored": bool(determinant(found.runner_up) < 0 < determinant(done.start)),
        },
        "bending_px": {"mean": float(shift[seen].mean()), "max": float(shift[seen].max())},
        "model": "affine" if fit.space is None else "lddmm",
        "bend": None if fit.space is None else "followed" if fit.following else "fitted",
        "bending_gain": fit.bending_gain,
        "held_out_gain": fit.held_out,
        "energy": {
            "first": last[0]["energy"] if last else None,
            "last": last[-1]["energy"] if last else None,
            "matching": last[-1]["matching"] if last else None,
            "regularizer": last[-1]["regularizer"] if last else None,
        },
        "convergence": fit.reasons,
        "effort": {"finest_level": list(fit.matching.shape), "last_level_moved_px": fit.moved},
        "n_evaluations": fit.n_evaluations,
        "shared_structure": fit.shared,
        "neighbouring_sections": fit.sections,
        "sobolev": None
        if fit.space is None
        else {
            "scale": fit.space.scale * moving.grid.pixel,
            "order": fit.space.order,
            "deviation": fit.space.deviation * moving.grid.pixel,
        },
    }


def _explained(fixed: Image, moving: Image, phi: Transform) -> float:
    """Share of the fixed image's variance that the warped moving image explains where they overlap, 0 … 1."""
    grid = _probe(fixed.grid)
    target = resample(fixed.replace(data=fixed.data.to(torch.float32)), Affine.identity(grid.ndim, grid.unit), grid)
    warped = resample(moving.replace(data=moving.data.to(torch.float32)), phi, grid)
    inside = moving.grid.contains(phi.inverse().points(grid.coords())).to(torch.float32)
    for weight in (target.weight, warped.weight):  # what does not count explains nothing
        inside = inside if weight is None else inside * weight
    if float(inside.sum()) < 16:
        return 0.0
    predicted = fit_contrast(warped.data, target.data, inside)
    centre = (target.data * inside).flatten(1).sum(dim=1) / inside.sum()
    spread = (((target.data - centre.reshape(-1, *(1,) * grid.ndim)) ** 2) * inside).sum()
    rest = (((target.data - predicted) ** 2) * inside).sum()
    return float((1 - rest / spread.clamp(min=1e-12)).clamp(0, 1))


def _overlaid(fixed: Halvings, moving: Halvings, affine: Affine, phi: Transform) -> tuple[Tensor, Tensor, Tensor, Grid]:
    """Both images on the fixed side's pixels, of which there are at most about `PROBED`.

    Returns:
        The fixed one ``[C_f, *S]``, the moving one under ``phi`` ``[C_m, *S]``, where both are seen ``[*S]``, and the grid.
    """
    times = fixed.times_until(lambda grid: math.prod(grid.shape) <= PROBED)
    zoom = _zoom(affine, moving.grid, fixed.grid)
    one, other = fixed.physical(times), moving.physical(max(0, round(times - math.log2(max(zoom, 1e-6)))))
    inside = moving.grid.contains(phi.inverse().points(one.grid.coords())).to(torch.float32)
    if other.weight is not None:
        inside = inside * resample(Image(other.weight[None], other.grid), phi, one.grid).data[0]
    if one.weight is not None:
        inside = inside * one.weight
    return one.data, resample(other, phi, one.grid).data, inside, one.grid


def _stained(fixed: Halvings, moving: Halvings, phi: Transform, grid: Grid) -> Tensor | None:
    """Where on ``grid`` either side shows stained tissue ``[*S]``, the moving one under ``phi``: bare glass on bare glass has
    nothing to say. None where it is not known of both."""
    if fixed.stained is None or moving.stained is None:
        return None
    one, other = (_covering(side.stained, side.image.grid) for side in (fixed, moving) if side.stained is not None)
    still = Affine.identity(grid.ndim, one.grid.unit)
    return torch.maximum(resample(one, still, grid).data[0], resample(other, phi, grid).data[0])


def _covering(mask: Tensor, grid: Grid) -> Image:
    """A mask ``[*s]`` as an image of the extent of ``grid``."""
    spacing = tuple(s * n / m for s, n, m in zip(grid.spacing, grid.shape, mask.shape, strict=True))
    return Image(mask[None].to(torch.float32), grid.resampled(spacing))


def _zoom(affine: Affine, moving: Grid, fixed: Grid) -> float:
    """Size of a moving pixel in fixed pixels."""
    zoom: float = float(determinant(affine.matrix).abs()) ** (1 / affine.ndim) * moving.pixel / fixed.pixel
    return zoom


def _agreement(
    laid: tuple[Tensor, Tensor, Tensor, Grid], tissue: Tensor | None, fixed: Grid, zoom: float
) -> dict[str, Any]:
    """`agreement.agreement` of the aligned images, where they show ``tissue`` ``[*S]`` if that is known, for ``metrics.json``;
    ``unit`` is a pixel of theirs in those of ``fixed``, and ``coarse`` one of the coarser side, a moving one being ``zoom`` of
    them; ``where_unit`` is the unit of ``where``."""
    target, warped, inside, grid = laid
    seen = min(textured(target, inside), textured(warped, inside))
    sizes = {"unit": grid.pixel / fixed.pixel, "coarse": max(1.0, zoom)}
    found = agreement(*laid, tissue)
    where = {"where": list(found.where), "where_unit": fixed.unit}
    return dataclasses.asdict(found) | where | sizes | {"textured": seen}


def _coincidence(target: Tensor, warped: Tensor, inside: Tensor, grid: Grid) -> float:
    """The largest `likeness.coincidence` of the aligned images over all resolutions, in standard deviations."""
    most_seen = 0.0
    while True:
        weight = (inside > 0.99).to(torch.float32)
        most_seen = max(most_seen, coincidence(fit_contrast(warped, target, weight), target, weight))
        thick = [d for d in range(grid.ndim) if grid.shape[d] > 1]
        axes = [d for d in thick if grid.spacing[d] < 1.5 * min(grid.spacing[k] for k in thick)]
        if (
            sorted(grid.shape[d] for d in axes)[-2:][0] < 64
        ):  # second longest axis: too few shifts to compare with below that
            return most_seen
        stacked, grid = halve(torch.cat([target, warped, inside[None]]), grid, axes)
        target, warped, inside = stacked[: len(target)], stacked[len(target) : -1], stacked[-1]


def _position_sd(done: Run, fixed: Grid) -> tuple[Tensor, dict[str, Any]]:
    """Standard deviation per axis ``[*S]``, in the fixed unit, of every fixed pixel of the last level; and its median and p90."""
    fit = done.fit
    assert fit.last is not None
    assert fit.overlap is not None
    if done.cells is not None:
        sd = done.cells.position_sd(fixed, _level_grid(fixed, fit))
    else:
        sd = uncertainty.position_sd(fit.last, fit.x, fit.sections) * fixed.pixel
    further: dict[str, float] = {}
    if (
        fit.reasons and fit.reasons[-1] == "max_iter"
    ):  # it was still moving: where it would have ended is less sure than that
        move = still_to_move(fit.last, fit.x) * fixed.pixel
        sd = (sd.square() + move.square()).sqrt().to(sd.dtype)
        further = {"still_to_move": float(move.median())}
    overlap = fit.overlap.cpu() > 0.5
    seen = sd[overlap] if bool(overlap.any()) else sd.flatten()
    ordered = seen.sort().values
    median, p90 = (float(ordered[int(q * (len(ordered) - 1))]) for q in (0.5, 0.9))
    return sd, {"median": median, "p90": p90, "unit": fixed.unit, **further}


def _level_grid(fixed: Grid, fit: Fit) -> Grid:
    """The fixed grid at the resolution of the last level, on which the weights are given."""
    assert fit.matching is not None
    shape = tuple(fit.matching.shape)
    factor = tuple(2 ** round(math.log2(n / m)) for n, m in zip(fixed.shape, shape, strict=True))
    spacing = tuple(s * f for s, f in zip(fixed.spacing, factor, strict=True))
    origin = tuple(o + s * (f - 1) / 2 for o, s, f in zip(fixed.origin, fixed.spacing, factor, strict=True))
    return Grid(shape, spacing, origin, fixed.unit)


def _probe(grid: Grid, most: int = PROBED) -> Grid:
    """A grid over the extent of ``grid`` with at most ``most`` pixels."""
    factor = max(1.0, (math.prod(grid.shape) / most) ** (1 / grid.ndim))
    if factor == 1.0:
        return grid
    return grid.resampled(tuple(s * min(factor, n) for s, n in zip(grid.spacing, grid.shape, strict=True)))


def _reading(image: Image) -> dict[str, Any]:
    """How an image was read out of a larger one, for ``metrics.json``; empty where it was read whole."""
    if image.reading is None:
        return {}
    how = image.reading
    figures = {"level": how.level, "levels": how.levels, "averaged": list(how.factor)}
    return {"reading": figures | {"full_shape": list(how.full.shape), "full_spacing": list(how.full.spacing)}}
