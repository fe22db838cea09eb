"""When a map is trusted: every finding, every threshold of a verdict, and what each was set on.

A solver judges with the rules below; each rule that fires is a `Finding`. The worst severity among the findings is the verdict.
Thresholds marked "truth table" were set on the pairs of ``benchmarks/truth.py`` (lungs, seed, brains, hands, shapes; each also
turned, mirrored, cropped and against unlike images) such that no wrong map is called ``pass``; ``benchmarks/ACCURACY.md`` has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["pass", "warn", "fail"]

_ORDER: tuple[Severity, ...] = ("fail", "warn", "pass")  # what matters most first


@dataclass(frozen=True)
class Finding:
    """One thing that is said of a map.

    Args:
        severity: ``pass`` for a remark that changes nothing, ``warn`` where a person has to look, ``fail`` where the map is wrong
            or cannot be told from a wrong one.
        sentence: what was found, for a biologist.
        figure: the number it was found by, None where there is none.
        threshold: what the number was compared with, None where there is no number.
        remedy: what a user can do about it, empty where nothing is known.
    """

    severity: Severity
    sentence: str
    figure: float | None = None
    threshold: float | None = None
    remedy: str = ""


def conclude(findings: Iterable[Finding]) -> dict[str, Any]:
    """What ``metrics.json`` says of findings: ``verdict``, ``reasons`` in sentences, ``findings`` as data."""
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
    severities = {finding.severity for finding in ordered}
    worst: Severity = "fail" if "fail" in severities else "warn" if "warn" in severities else "pass"
    return {
        "verdict": worst,
        "reasons": [finding.sentence for finding in ordered],
        "findings": [asdict(finding) for finding in ordered],
    }


# ---- rules that all maps share -------------------------------------------------------------------------------------------

ROUND_TRIP = (0.02, 0.1)
"""Mean and largest distance, in fixed pixels, that a position may be off after the way there and back (METHOD.md)."""
CLEAR = 0.3
"""Margin of a pose below which another one may as well be right. Set on the truth table: mirrored brains stay below it."""
VIOLENT = 10.0
"""Change of area, as a ratio, that tissue is not believed to go through without a remark; ten times more is no map. Serial
sections of one block stay under 3 in the truth table, unlike images bent onto each other exceed 10."""
STRONG = 3.0
"""Change of area, as a ratio, from which a likeness that came mostly from bending is not believed without a look. Set on
the truth table."""
HARDLY = 0.02
"""Share of the fixed canvas under which two images do not overlap: less holds no tissue to compare."""


def diverged(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """The energy stopped being a number."""
    if "diverged" in figures["convergence"]:
        yield Finding("fail", "the fit diverged: the energy was not finite")


def folds(figures: Mapping[str, Any], what: str = "pixels") -> Iterable[Finding]:
    """The map is not one to one; ``what`` was looked at."""
    share = figures["folding_fraction"]
    if share > 0:
        yield Finding("warn", f"the map folds over at {share:.2%} of the {what}", share, 0.0)


def round_trip(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """The map and its inverse do not undo each other."""
    trip = figures["roundtrip_px"]
    if not (trip["mean"] <= ROUND_TRIP[0] and trip["max"] <= ROUND_TRIP[1]):
        sentence = f"the map and its inverse disagree by up to {trip['max']:.2g} px"
        yield Finding("warn", sentence, trip["max"], ROUND_TRIP[1])


def ambiguous(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """Another pose explains the data nearly as well."""
    margin = figures["pose_margin"]
    if margin is not None and margin < CLEAR:
        sentence = "another pose fits nearly as well: look at the overlay before you trust this one"
        yield Finding("warn", sentence, margin, CLEAR)


def unknown_scale(fixed: str, moving: str, what: str, remedy: str) -> Finding:
    """One side states lengths and the other does not: ``fixed`` and ``moving`` are their units, ``what`` is missing."""
    sentence = (
        f"one side declares no {what} (fixed in {fixed}, moving in {moving}): "
        "the scale between them was estimated, not known"
    )
    return Finding("pass", sentence, remedy=remedy)


MANY_STRAYS = 0.001
"""Share of an image's pixels that lay far off and were replaced, from which it is said: a few hot pixels are in every camera."""


def not_counted(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """What was found on either side that says nothing of the tissue, out of ``metrics["preparation"]``."""
    for side, look in (figures.get("preparation") or {}).items():
        state = f"state --{side}-nodata or --{side}-mask where that is wrong"
        lost, marked, padded, stray = (
            look.get(f"{what}_fraction", 0.0) for what in ("nan", "nodata", "padded", "stray")
        )
        if lost > 0:
            sentence = f"{_percent(lost)} of the {side} image is not a number (NaN) and counts as no data"
            yield Finding("pass", sentence, lost)
        if marked > 0:
            value = f"{look['nodata_value']:g}"
            sentence = (
                f"{_percent(marked)} of the {side} image lies far off all the rest ({value}) and counts as no data"
            )
            yield Finding("pass", sentence, marked, remedy=state)
        if padded > 0:
            sentence = (
                f"{_percent(padded)} of the {side} canvas is one colour up to straight edges and counts as no data"
            )
            yield Finding("pass", sentence, padded, remedy=state)
        if stray > MANY_STRAYS:
            sentence = f"{_percent(stray)} of the {side} pixels lie far off by themselves and were replaced by their neighbours"
            yield Finding("pass", sentence, stray, MANY_STRAYS)


def _percent(share: float) -> str:
    """A share in two digits."""
    return f"{100 * share:.2g} %"


# ---- images, sections in volumes, points against images ------------------------------------------------------------------

LITTLE_IN_COMMON = 0.35
"""Explained share of the fixed image's variance below which a person has to look. Set on the truth table."""
NOTHING_IN_COMMON = 0.02
"""Explained share of the fixed image's variance under which two images have nothing in common; the rise and fall that is
noise."""
FROM_POSE = 2 / 3
"""Share of the likeness that must come from the pose for a strong bend to be believed without a look. Set on the truth
table."""
BELONG = 10.0
"""Coincidence, in standard deviations (see `fit.likeness.coincidence`), from which two images are believed to belong
together as they are aligned. Set on the truth table: right alignments come to 10 and more, wrong ones mostly stay under
6."""
BEYOND_DOUBT = 15.0
"""Coincidence of the affine map alone from which a strong bend is believed too, and volumes at all: smooth organs of any
kind come to 10 in three dimensions. Set on the truth table and a handful of volumes (``docs/method.md``)."""
BENT_HOME = 30.0
"""Coincidence of the bent map from which a clear pose is believed although the affine map alone shows nothing: structure
finer than the bend, which no smooth map brings together by chance. Set on a handful of pairs (``docs/method.md``)."""
CHANCE = 5.0
"""Coincidence under which two images match no better than they would anywhere else. Set on the truth table."""
PARTLY = 0.3
"""Share of the fixed canvas that the moving image covers, below which it is said."""
LITTLE_TISSUE = 0.2
"""Share of the overlap that must be recognised as matching tissue."""


def of_images(figures: Mapping[str, Any], ndim: int) -> Iterable[Finding]:
    """What is said of a map of two images of ``ndim`` axes, from its figures (``metrics.json``)."""
    yield from diverged(figures)
    yield from _overlap(figures)
    yield from _belonging(figures, ndim)
    yield from _bending(figures)
    yield from folds(figures)
    yield from round_trip(figures)
    share = figures["matching_fraction"]
    if share < LITTLE_TISSUE:
        yield Finding(
            "warn", f"only {share:.0%} of the overlap was recognised as matching tissue", share, LITTLE_TISSUE
        )
    yield from ambiguous(figures)
    if figures["convergence"] and figures["convergence"][-1] == "max_iter":
        yield Finding("warn", "the fit was still moving when it reached its iteration limit")
    yield from not_counted(figures)


def _overlap(figures: Mapping[str, Any]) -> Iterable[Finding]:
    share = figures["overlap_fraction"]
    if share < HARDLY:
        yield Finding("fail", "the two images hardly overlap under the map that was found", share, HARDLY)
    elif share < PARTLY:
        yield Finding("warn", f"the moving image covers only {share:.0%} of the fixed one", share, PARTLY)


def _belonging(figures: Mapping[str, Any], ndim: int) -> Iterable[Finding]:
    """Whether the images show one thing, by their fine structure in place against elsewhere, and by what one explains."""
    explained = figures["explained_variance"]["final"]
    place, final = (figures["coincidence"][key] for key in ("affine", "final"))
    margin = figures["pose_margin"]
    belong = BELONG if ndim == 2 else BEYOND_DOUBT
    home = final >= BENT_HOME and (margin is None or margin >= CLEAR)
    if explained < NOTHING_IN_COMMON and place < belong:
        sentence = "the aligned images have nothing in common: the moving one explains under 2 % of the fixed one"
        yield Finding("fail", sentence, explained, NOTHING_IN_COMMON)
    elif place < CHANCE and final < BEYOND_DOUBT and explained < LITTLE_IN_COMMON:
        sentence = f"the images match no better here than they would anywhere else ({place:.1f} standard deviations)"
        yield Finding("fail", sentence, place, CHANCE)
    elif place < belong and not home:
        sentence = (
            f"the images match hardly better here than elsewhere ({place:.1f} standard deviations): look at the overlay"
        )
        yield Finding("warn", sentence, place, belong)


def _bending(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """Whether the bend made things worse, did what tissue does not do, or made the likeness by itself."""
    explained = figures["explained_variance"]
    if explained["final"] + NOTHING_IN_COMMON < explained["start"]:
        sentence = "the map explains less of the fixed image than its start did"
        yield Finding("fail", sentence, explained["final"], explained["start"])
    low, high = figures["jacobian_min"], figures["jacobian_max"]
    if low < 1 / VIOLENT or high > VIOLENT:
        torn = "squeezes" if low < 1 / high else "stretches"
        factor = max(high, 1 / max(low, 1e-6))
        severity: Severity = "fail" if low < 1 / (10 * VIOLENT) or high > 10 * VIOLENT else "warn"
        sentence = f"the map {torn} tissue {factor:.0f}-fold somewhere, which tissue does not do"
        yield Finding(severity, sentence, factor, VIOLENT)
    strong = low < 1 / STRONG or high > STRONG
    place = figures["coincidence"]["affine"]
    if place < BEYOND_DOUBT and explained["affine"] < FROM_POSE * explained["final"] and strong:
        sentence = (
            "much of the likeness came from bending, not from the pose: unlike images can be bent alike, "
            "so look at the overlay"
        )
        yield Finding("warn", sentence, explained["affine"], FROM_POSE * explained["final"])


def either_side() -> Finding:
    """A section was placed in a volume that looks the same from both sides."""
    return Finding(
        "pass", "the volume looks the same from both sides: left and right of the section were not told apart"
    )


def lattice() -> Finding:
    """Points on a lattice were drawn as a density."""
    sentence = "the points lie on a lattice, whose density shows hardly more than an outline: look at the overlay"
    return Finding("warn", sentence)


# ---- points --------------------------------------------------------------------------------------------------------------

BLUR = 0.05
"""Nats per point over one broad Gaussian under which two clouds have no structure in common: less is what the count of
parameters of a pose buys by chance."""
CONVINCING = 2.0
"""Standard errors by which a bend must help on points that were held out: the usual 95 %."""
PARTNERS = (0.1, 0.4)
"""Share of the points of one side with a partner on the other: under the first the clouds do not belong together, under the
second a person has to look. Set on fish, bunnies and worms with outliers and missing pieces
(``benchmarks/bench_points.py``)."""
MOST_PARTNERS = 0.8
"""Share with a partner from which strong bending (`STRONG`) is believed. Set on the pairs of `PARTNERS`."""


def of_points(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """What is said of a map of two point clouds, from its figures."""
    yield from diverged(figures)
    if figures["likeness"] < BLUR:
        sentence = "the clouds have no structure in common: one broad blur explains the fixed points as well"
        yield Finding("fail", sentence, figures["likeness"], BLUR)
    both = min(figures["matching_fraction"], figures["matching_fraction_moving"])
    if both < PARTNERS[1]:
        severity: Severity = "fail" if both < PARTNERS[0] else "warn"
        sentence = f"only {both:.0%} of the points of one side have a partner on the other"
        yield Finding(severity, sentence, both, PARTNERS[severity == "warn"])
    low, high = figures["jacobian_min"], figures["jacobian_max"]
    factor = max(high, 1 / max(low, 1e-6))
    if low < 1 / VIOLENT or high > VIOLENT:
        yield Finding("warn", f"the map changes areas {factor:.0f}-fold somewhere", factor, VIOLENT)
    held = figures["held_out"]
    if figures["model"] == "lddmm" and held is not None and held["gain"] <= CONVINCING * held["error"]:
        sentence = "the bend was not confirmed on points that were held out: look at the overlay"
        yield Finding("warn", sentence, held["gain"], CONVINCING * held["error"])
    if (low < 1 / STRONG or high > STRONG) and both < MOST_PARTNERS:
        sentence = (
            f"much bending brought only {both:.0%} of the points to a partner: unlike shapes can be bent alike, so look at "
            "the overlay"
        )
        yield Finding("warn", sentence, both, MOST_PARTNERS)
    yield from folds(figures, "places")
    yield from round_trip(figures)
    yield from ambiguous(figures)


# ---- maps of other programs ----------------------------------------------------------------------------------------------

IMPORTED = "imported, not fitted here: nothing but the map itself was judged, so look at the overlay"


def of_import(figures: Mapping[str, Any], source: str) -> Iterable[Finding]:
    """What can be said of a map alone; ``source`` names the file and its format."""
    yield Finding("warn", f"{source}: {IMPORTED}")
    share = figures["overlap_fraction"]
    if share < HARDLY:
        sentence = "the two images hardly overlap under this map: check direction (--to), unit and which is fixed"
        yield Finding("fail", sentence, share, HARDLY)
    yield from folds(figures)
    yield from round_trip(figures)


# ---- refinement at full resolution ---------------------------------------------------------------------------------------

GAIN = 3.0
"""Standard deviations above chance by which a tile's held-out windows must correlate better for the tile to be kept, or
worse for it to be held at the map it came with: one tile in 700 by chance."""
SLIGHT = 0.01
"""Rise of the correlation that a tile must gain besides, however certain it is. Set by eye on
``benchmarks/bench_refine.py``."""
FEW = 2
"""Windows that must be found, and that must judge, for a tile to be kept: one alone has no neighbour to agree with."""


def of_refinement(rounds: Sequence[Mapping[str, Any]]) -> Iterable[Finding]:
    """What a refinement did, a remark per round of ``metrics["refinement"]["rounds"]``."""
    for entry in rounds:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(entry["rejected"].items()))
        sentence = f"pixels of {entry['pixel']:.4g}: {entry['kept']} of {entry['tiles']} tiles kept"
        sentence += f" ({why})" if why else ""
        if entry["kept"]:
            before, after = entry["correlation"]
            sentence += (
                f"; fine structure of held-out windows {before:.2f} → {after:.2f}, "
                f"moved by {entry['shift']['median']:.3g} in the median"
            )
        yield Finding("pass", sentence, entry["kept"], None)


# ---- stacks --------------------------------------------------------------------------------------------------------------

DIFFER = 0.05
"""By how much correlations of neighbouring sections differ before it is said that a section is poor, turned over or lies
elsewhere: 40 Nissl sections in order differ by less (``benchmarks/bench_stack.py``)."""
HALF = 0.5
"""Share of its neighbours' tissue below which a section is said to be incomplete."""


def some(names: Sequence[str], most: int = 6) -> str:
    """At most ``most`` names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def incomplete(share: float) -> Finding:
    """A section with ``share`` of the tissue of those around it."""
    sentence = f"shows {share:.0%} of the tissue of its neighbours: incomplete or torn"
    return Finding("warn", sentence, share, HALF)


def out_of_place(own: float, across: float) -> Finding:
    """A section whose correlation with its neighbours is ``own`` where theirs with each other is ``across``."""
    sentence = (
        f"resembles its neighbours less (correlation {own:.2f}) than these resemble each other ({across:.2f}): "
        "damaged, or not from here"
    )
    return Finding("warn", sentence, own, across - 2 * DIFFER)


def turned_back() -> Finding:
    """A section that lay turned over, and whose map undoes it."""
    return Finding("warn", "lay turned over beside the others; its map turns it back")


def turned_over() -> Finding:
    """A section that may lie turned over."""
    return Finding("warn", "fits its neighbours better when turned over: look at it")


def elsewhere() -> Finding:
    """A section that another order of the stack moves."""
    return Finding("warn", "neighbours would be more alike in another order")


def bridged(lost: Sequence[str], instead: Sequence[str]) -> Finding:
    """A section that does not match the neighbours ``lost`` and was placed by others, where there are any."""
    more = f"placed by {some(instead)} instead" if instead else "placed by the other side alone"
    return Finding("warn", f"does not match {some(lost)}; {more}")


def unplaced(why: str) -> Finding:
    """A section without a place in the stack."""
    return Finding("fail", why)


def of_stack(sections: Sequence[Mapping[str, Any]], moved: Sequence[str], gaps: Sequence[int]) -> Iterable[Finding]:
    """What is said of a stack, from what is said of its sections.

    Args:
        sections: ``name``, ``placed`` and ``verdict`` of each.
        moved: names of the sections that a better order moves.
        gaps: positions without a section.
    """
    n = len(sections)
    lost = [s["name"] for s in sections if not s["placed"]]
    if lost:
        severity: Severity = "fail" if len(lost) > n / 2 else "warn"
        yield Finding(severity, f"{len(lost)} of {n} sections could not be placed: {some(lost)}", len(lost), n / 2)
    doubtful = [s["name"] for s in sections if s["placed"] and s["verdict"] != "pass"]
    if doubtful:
        yield Finding("warn", f"{len(doubtful)} of {n} sections want a look: {some(doubtful)}", len(doubtful), 0)
    if moved:
        sentence = f"neighbours would be more alike in another order of {len(moved)} sections: {some(moved)}"
        yield Finding("warn", sentence, len(moved), 0)
    if gaps:
        places = some([str(p) for p in gaps])
        yield Finding("pass", f"{len(gaps)} positions have no section: {places}; their planes stay empty", len(gaps), 0)


def unstated_distance() -> Finding:
    """The distance of a stack's sections is not known."""
    return Finding("pass", "no distance of the sections was stated: the planes lie one pixel apart")
