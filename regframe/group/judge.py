"""Figures and verdicts of a group: of each image, of each pair, and of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage

from .. import verdict
from ..data import Grid
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.resample import resample
from ..result import Result
from ..stack.posegraph import Floats, rms
from ..verdict import Finding
from . import routes
from .members import Member
from .pairs import Pair, bend_of, matrix_of
from .routes import Routes

if TYPE_CHECKING:
    from .lost import Lost
    from .template import Template

FINE = (1.0, 2.0)
"""Standard deviations, in pixels, of the finest structure by which a blurred round is told from a sharp one."""
COARSE = (3.0, 6.0)
"""The same of the structure that a blur leaves as it is."""
LOOKED_AT = 1024
"""Pixels per axis, in the middle of the tissue, over which that is looked at."""


def metrics(
    members: Sequence[Member], pairs: Sequence[Pair], way: Routes, results: Sequence[Result | None]
) -> dict[str, Any]:
    """The content of ``metrics.json`` but for what the caller knows better."""
    details = _details(members, results, way.reference)
    usual = [value for value in details if value is not None]
    middle = float(np.median(usual)) if len(usual) > 1 else None
    images = []
    for k in range(len(members)):
        entry = _image(k, members, pairs, way, results[k])
        entry["detail"] = details[k]
        findings = [*_findings(k, members, pairs, way, results[k])]
        if middle is not None and details[k] is not None and k != way.reference:
            findings += verdict.blurred(details[k], middle)  # type: ignore[arg-type]
        images.append(entry | verdict.conclude(findings))
    off = [image["residual_px"] for image in images if image["residual_px"] is not None]
    drift = [image["drift"]["moved_px"] for k, image in enumerate(images) if image["drift"] and k != way.reference]
    whole = verdict.conclude(verdict.of_group(images))
    return {
        **whole,
        "n_images": len(images),
        "n_placed": sum(result is not None for result in results),
        "residual_px": float(np.median(off)) if off else None,
        "drift_px": {"median": float(np.median(drift)), "max": float(np.max(drift))} if drift else None,
        "images": images,
        "pairs": [_pair(pair, members, way) for pair in pairs],
    }


def on_mean(whole: dict[str, Any], members: Sequence[Member], mean: Template) -> dict[str, Any]:
    """The figures of a group whose images were brought to their mean: none is the reference, and drifts are from the mean."""
    images = []
    for entry, member, result in zip(whole["images"], members, mean.results, strict=True):
        changed = dict(entry)
        if entry["reference"]:
            changed |= {"reference": False, **verdict.conclude([Finding("pass", "gave the mean its canvas and pose")])}
        changed["drift"] = None if result is None else _drift(member, result)
        images.append(changed)
    drift = [image["drift"]["moved_px"] for image in images if image["drift"]]
    return whole | {
        "images": images,
        "drift_px": {"median": float(np.median(drift)), "max": float(np.max(drift))} if drift else None,
        "template": {"bias_px": mean.bias_px, "shape_px": mean.shape_px},
    }


def with_losses(whole: dict[str, Any], gone: Lost | None) -> dict[str, Any]:
    """The figures of a group with the share of the tissue that each image has lost; None where that is not known."""
    fractions = [None] * len(whole["images"]) if gone is None else gone.fractions
    images = [image | {"lost_fraction": fraction} for image, fraction in zip(whole["images"], fractions, strict=True)]
    return whole | {"images": images}


def own(whole: dict[str, Any], k: int) -> dict[str, Any]:
    """The entries of an image's own ``metrics.json``: its verdict in the group, and what the group says of it."""
    image = whole["images"][k]
    kept = {key: image[key] for key in ("verdict", "reasons", "findings")}
    return kept | {"group": {key: value for key, value in image.items() if key not in kept}}


def nothing() -> dict[str, Any]:
    """The figures of the reference, which stays where it is."""
    return {
        "verdict": "pass", "reasons": [], "findings": [], "model": "identity", "confidence": 1.0, "n_evaluations": 0,
        "roundtrip_px": {"mean": 0.0, "max": 0.0}, "jacobian_min": 1.0, "jacobian_max": 1.0, "folding_fraction": 0.0,
        "seconds": 0.0,
    }  # fmt: skip


# ---- one image ----------------------------------------------------------------------------------------------------------


def _image(
    k: int, members: Sequence[Member], pairs: Sequence[Pair], way: Routes, result: Result | None
) -> dict[str, Any]:
    """The figures of an image; its verdict apart."""
    member = members[k]
    steps = way.ways.get(k, ())
    return {
        "name": member.name,
        "channels": list(member.channels),
        "options": dict(member.options),
        "channel": member.choice.name,
        "channel_why": member.choice.why,
        "placed": result is not None,
        "reference": k == way.reference,
        "via": [members[step.end].name for step in steps[:-1]],
        "confidence": _confidence(k, pairs, way),
        "drift": None if result is None else _drift(member, result),
        "residual_px": _residual(k, member, pairs, way, result, members),
    }


def _confidence(k: int, pairs: Sequence[Pair], way: Routes) -> float | None:
    """How sure the place of an image is: the surest of its ways, which agree with each other."""
    if k == way.reference:
        return 1.0
    if k not in way.ways:
        return None
    return math.prod(step.pair.confidence for step in way.ways[k])


def _drift(member: Member, result: Result) -> dict[str, float]:
    """How far an image lay from its place, in pixels of the reference: in all, and its parts."""
    probes, pixel = member.probes, result.fixed_grid.pixel
    there = result.transform.points(torch.from_numpy(probes)).numpy()
    away = there - probes
    linear = matrix_of(result, probes, rigid=False)[:-1, :-1]
    shifts = {f"shift_{a}_px": float(np.median(away[:, d])) / pixel for d, a in enumerate(result.fixed_grid.axes)}
    return {
        "moved_px": rms(away) / pixel,
        **shifts,
        "turn_degrees": _turn(linear),
        "scale": abs(float(np.linalg.det(linear))) ** (1 / len(linear)),
        "bend_px": bend_of(result, probes) / pixel,
    }


def _turn(linear: Floats) -> float:
    """The turn of a linear map ``[D, D]`` in degrees; of a volume about whatever axis, without sign."""
    if len(linear) == 2:
        return math.degrees(math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    u, _, vt = np.linalg.svd(linear)
    return math.degrees(math.acos(min(1.0, max(-1.0, (abs(float(np.trace(u @ vt))) - 1) / 2))))


def _residual(
    k: int, member: Member, pairs: Sequence[Pair], way: Routes, result: Result | None, members: Sequence[Member]
) -> float | None:
    """How far the map of an image is from what its other pairs say, in pixels of the reference: the median over these pairs.

    Each pair's is the median over the tissue; None where no other pair says anything.
    """
    if result is None:
        return None
    found = disagreements(k, member, pairs, way, {k: result})
    return float(np.median(found)) / result.fixed_grid.pixel if found else None


def disagreements(
    k: int, member: Member, pairs: Sequence[Pair], way: Routes, results: dict[int, Result]
) -> list[float]:
    """Median distance over the tissue between the map of image ``k`` and each other way of it, in the reference's unit."""
    same = Affine.identity(member.image.grid.ndim, member.image.grid.unit)
    maps: dict[int, Transform] = {j: routes.in_order(steps) if steps else same for j, steps in way.ways.items()}
    there = routes.through([results[k].transform], member.probes)
    out = []
    for _, ways in routes.detours(k, way, pairs, maps):
        away = np.linalg.norm(routes.through(ways, member.probes) - there, axis=1)
        if np.isfinite(away).any():
            out.append(float(np.nanmedian(away)))
    return out


def _findings(
    k: int, members: Sequence[Member], pairs: Sequence[Pair], way: Routes, result: Result | None
) -> list[Finding]:
    """The remarks on an image, but for its sharpness."""
    if k == way.reference:
        return [Finding("pass", "stays where it is: the reference")]
    own_pairs = [pair for pair in pairs if k in (pair.fixed, pair.moving)]
    if result is None:
        return [verdict.unplaced(_why_not(k, members, own_pairs, way))]
    steps = way.ways[k]
    findings = []
    agreeing = [pair for pair in own_pairs if way.used(pair) and pair not in [step.pair for step in steps]]
    doubtful = [step.pair for step in steps if step.pair.verdict != "pass"]
    if doubtful and not agreeing:
        names = [f"{members[p.moving].name} on {members[p.fixed].name}" for p in doubtful]
        findings.append(verdict.unconfirmed_pair(verdict.some(names), doubtful[0].reasons))
    elif len(steps) > 1:
        findings.append(verdict.by_way_of([members[step.end].name for step in steps[:-1]]))
    lost = [p for p in own_pairs if p.verdict == "pass" and not way.used(p) and _blamed(p, way) == k]
    if lost:
        findings.append(verdict.contradicted([members[p.fixed if p.moving == k else p.moving].name for p in lost]))
    if len(steps) == 1 and not doubtful:
        findings.append(
            Finding("pass", steps[0].pair.reasons[0] if steps[0].pair.reasons else "placed by its own pair")
        )
    return findings


def _blamed(pair: Pair, way: Routes) -> int:
    """Which image of a pair that contradicts the others is the less surely placed: that one is named."""
    sure = {k: math.prod(step.pair.confidence for step in way.ways.get(k, ())) for k in (pair.fixed, pair.moving)}
    return min(sure, key=lambda k: (sure[k], k))


def _why_not(k: int, members: Sequence[Member], own_pairs: Sequence[Pair], way: Routes) -> str:
    """Why an image has no place, in one sentence."""
    if members[k].empty:
        return members[k].empty
    hopeful = [pair for pair in own_pairs if pair.confidence > 0]
    names = list(dict.fromkeys(members[p.fixed if p.moving == k else p.moving].name for p in own_pairs))
    if hopeful:
        return f"matches none of {verdict.some(names)}: the pairs that were found contradict each other"
    direct = next((p for p in own_pairs if way.reference in (p.fixed, p.moving)), own_pairs[0] if own_pairs else None)
    said = f" ({direct.reasons[0].partition(';')[0]})" if direct is not None and direct.reasons else ""
    return f"matches none of {verdict.some(names)}: another section, or nothing to align by{said}"


def _pair(pair: Pair, members: Sequence[Member], way: Routes) -> dict[str, Any]:
    link = way.link(pair)
    pixel = members[pair.fixed].image.grid.pixel
    return {
        "fixed": members[pair.fixed].name,
        "moving": members[pair.moving].name,
        "verdict": pair.verdict,
        "confidence": pair.confidence,
        "used": way.used(pair),
        "residual_px": link.residual / pixel if math.isfinite(link.residual) else None,
        "model": None if pair.result is None else pair.result.metrics.get("model"),
        "reasons": list(pair.reasons),
    }


# ---- sharpness ----------------------------------------------------------------------------------------------------------


def _details(members: Sequence[Member], results: Sequence[Result | None], reference: int) -> list[float | None]:
    """How much of the reference's fine structure each image shows, over how much of the coarse: 1 where both are as sharp.

    Noise of an image does not enter, because it correlates with nothing of the reference. None for the reference, images without
    a place, and images in colours.
    """
    fixed = members[reference]
    if fixed.colour or fixed.image.data.shape[0] != 1 or fixed.image.grid.ndim != 2:
        return [None] * len(members)
    grid = _middle(fixed)
    target = resample(fixed.image.replace(weight=None), _same(grid), grid, 0.0).data[0].to(torch.float64).numpy()
    fine, coarse = _band(target, FINE), _band(target, COARSE)
    out: list[float | None] = []
    for k, member in enumerate(members):
        result = results[k]
        if result is None or k == reference or member.colour or member.image.data.shape[0] != 1:
            out.append(None)
            continue
        shown = (
            resample(member.image.replace(weight=None), result.transform, grid, 0.0).data[0].to(torch.float64).numpy()
        )
        gains = [float((_band(shown, band) * own).sum()) / max(float((own**2).sum()), 1e-12)
                 for band, own in ((FINE, fine), (COARSE, coarse))]  # fmt: skip
        out.append(gains[0] / gains[1] if gains[1] > 0 else None)
    return out


def _same(grid: Grid) -> Transform:
    return Affine.identity(2, grid.unit)


def _band(values: Floats, widths: tuple[float, float]) -> Floats:
    found: Floats = ndimage.gaussian_filter(values, widths[0]) - ndimage.gaussian_filter(values, widths[1])
    return found


def _middle(member: Member) -> Grid:
    """At most `LOOKED_AT` pixels per axis of an image's canvas, around the middle of its tissue."""
    grid: Grid = member.image.grid
    middle = (member.node.probes.mean(axis=0) - np.array(grid.origin)) / np.array(grid.spacing)
    shape = tuple(min(n, LOOKED_AT) for n in grid.shape)
    first = [int(min(max(0, round(m - s / 2)), n - s)) for m, s, n in zip(middle, shape, grid.shape, strict=True)]
    origin = tuple(o + s * f for o, s, f in zip(grid.origin, grid.spacing, first, strict=True))
    return Grid(shape, grid.spacing, origin, grid.unit)
