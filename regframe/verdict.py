"""When a map is trusted: the rules, their thresholds, and the data on which each threshold was set.

A solver judges its fit with the rules below; each rule that fires is a `Finding`. The worst severity among the findings is the
verdict. Thresholds marked "truth table" were set on the pairs of ``benchmarks/truth.py`` (lungs, seed, brains, hands, shapes;
each also turned, mirrored, cropped and paired with unlike images) such that no wrong map is called ``pass``; the outcome on
those pairs is in ``benchmarks/ACCURACY.md``. "Coincidence" is the figure of `fit.likeness.coincidence`: by how many standard
deviations the fine structure of both images correlates better in place than when shifted. "Explained" is the share of the
fixed image's variance that the warped moving image predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["pass", "warn", "fail"]

MEANING: dict[Severity, tuple[str, str]] = {
    "pass": ("Confirmed", "The data agree on this map as chance would not have them."),
    "warn": ("Not confirmed", "The map may be right: look at the overlay and the remarks before you use it."),
    "fail": (
        "Contradicted, or no evidence",
        "The data speak against this map, or not for it. Nothing was thrown away.",
    ),
}
"""The three verdicts in words, a title and a sentence each, and only these meanings."""

_ORDER: tuple[Severity, ...] = ("fail", "warn", "pass")  # what matters most first


@dataclass(frozen=True)
class Finding:
    """One remark on a map.

    Args:
        severity: ``pass`` for a remark without consequence, ``warn`` where a person has to look at the overlay, ``fail`` where
            the map is wrong or cannot be told from a wrong one.
        sentence: the remark, in words a biologist understands.
        figure: the number that made the rule fire; None where the rule uses no number.
        threshold: the value that ``figure`` was compared with; None where there is no figure.
        remedy: what the user can do about it; empty where nothing is known to help.
    """

    severity: Severity
    sentence: str
    figure: float | None = None
    threshold: float | None = None
    remedy: str = ""

    @property
    def words(self) -> str:
        """The remark, and what to do about it."""
        return f"{self.sentence}; {self.remedy}" if self.remedy else self.sentence


def spoken(confidence: float) -> str:
    """A confidence between 0 and 1 as people read it: in percent, and never as certain."""
    if confidence > 0.99:
        return "over 99 %"
    return "under 1 %" if confidence < 0.01 else f"{100 * confidence:.0f} %"


SPOKEN_FOR = 0.9
"""Confidence from which a map that is not confirmed owes that to a remark, which the headline then points to."""


def headline(verdict: str, confidence: float | None) -> str:
    """A verdict in words, with its confidence where there is one."""
    title = MEANING[verdict][0] if verdict in MEANING else verdict
    if verdict == "warn" and confidence is not None and confidence >= SPOKEN_FOR:
        title += ": see the remarks"
    return title if confidence is None else f"{title} · confidence {spoken(confidence)}"


def meets(verdict: str, wanted: str) -> bool:
    """Whether a verdict is as good as the one that is wanted, ``pass`` or ``warn``."""
    best_first = ("pass", "warn", "fail")
    return best_first.index(verdict) <= best_first.index(wanted) if verdict in best_first else True


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst severity among findings, which is their verdict; ``pass`` where there are none."""
    severities = {finding.severity for finding in findings}
    return "fail" if "fail" in severities else "warn" if "warn" in severities else "pass"


def conclude(findings: Iterable[Finding]) -> dict[str, Any]:
    """The entries of ``metrics.json`` on findings: ``verdict``, ``reasons`` (sentences with their remedies) and ``findings`` (all
    fields)."""
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
    return {
        "verdict": worst(ordered),
        "reasons": [finding.words for finding in ordered],
        "findings": [asdict(finding) for finding in ordered],
    }


LANDMARKS = "give three landmarks (--landmarks)"
"""Remedy where the pose may be wrong."""
CROP = "crop both to the piece they share"
"""Remedy where one side shows much that the other does not."""
CHECK = "measure it at landmarks (regframe evaluate)"
"""Remedy where a map is roughly right and nobody knows how far."""
SIZE = "state the pixel sizes (--fixed-mpp, --moving-mpp)"
"""Remedy where the scale may be wrong."""
CELLS = "open cells with --fixed-adapter cells --moving-adapter cells"
"""Remedy where points of two sides are not the same points."""
STRAIGHT = "try --transform affine"
"""Remedy where the bend may be wrong."""


def held_to_landmarks(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """A remark where ``sigma_landmarks`` was set and the map is the one without, because the images agree more under it."""
    if figures.get("landmarks_held") is False:
        yield Finding("pass", "the map was not held to the landmarks: the images agree better without")


def odd_landmark(sentence: str, off: float) -> Finding:
    """A pair of landmarks that disagrees with the others, by ``off`` (fixed pixels, or the unit of points)."""
    return Finding(
        "warn",
        f"{sentence} and was given no weight",
        off,
        None,
        remedy="look at it on both sides, mend it or leave it out",
    )


EXCHANGE = "exchange the columns fixed_… and moving_… of the landmarks"
"""Remedy where the sides of the pairs are the wrong way round."""


def exchanged_landmarks() -> Finding:
    """Pairs of landmarks near which both sides are alike only with the fixed and the moving side of the pairs exchanged."""
    return Finding(
        "fail",
        "the landmarks look exchanged: both sides are alike where they say, if their fixed side is the moving one",
        remedy=EXCHANGE,
    )


def landmarks_fit_exchanged(own: float, other: float, unit: str) -> Finding:
    """Pairs that the map fits far better with both sides exchanged: ``other`` in place of ``own``, in the fixed unit."""
    return Finding(
        "warn",
        f"the landmarks look exchanged: the map fits them to {other:.3g} {unit} with their fixed side as the moving one, "
        f"to {own:.3g} {unit} as they were given",
        own,
        remedy=EXCHANGE,
    )


OTHER_SIZES = 100.0
"""Widths of one side over that of the other, by their units, from which a unit is likely to be wrong: a whole slide of 50 mm is
50 times as wide as a field of 1 mm, and millimetres for micrometres are a factor of 1000."""


def other_sizes(fixed: float, moving: float) -> Finding:
    """Two sides of very different widths, in millimetres."""
    ratio = max(fixed, moving) / min(fixed, moving)
    return Finding(
        "warn",
        f"by their units the fixed side is {fixed:.3g} mm wide and the moving side {moving:.3g} mm, a factor of {ratio:.4g}: a "
        "pixel size or unit is likely to be wrong",
        ratio,
        OTHER_SIZES,
        remedy=SIZE,
    )


def few_landmarks(n: int) -> Finding:
    """Fewer than three pairs of landmarks: what they say of the start, and what they leave open."""
    pairs = "one pair of landmarks says" if n == 1 else f"{n} pairs of landmarks say"
    return Finding(
        "pass", f"{pairs} where the fit begins, not how the tissue is turned", remedy="give three for the turn, too"
    )


def read_start(sentence: str) -> Finding:
    """How the numbers of a bare matrix were taken from which a fit began: nothing in such a file says it."""
    return Finding("pass", sentence, remedy="regframe.read_map(…, to=…, unit=…) as init says it is otherwise")


# ---- rules that all maps share -------------------------------------------------------------------------------------------

ROUND_TRIP = (0.02, 0.1)
"""Mean and largest distance, in fixed pixels, between a position and the same position mapped to the moving side and back: the
bar that every map of regframe has to meet (docs/method.md, the verdict)."""
CLEAR = 0.3
"""Margin of a pose (see `starts.pose.Pose`, 0 … 1) below which a second pose fits nearly as well, so the chosen one may be
wrong. Set on the truth table: mirrored brains, where either pose may be right, stay below it."""
VIOLENT = 10.0
"""Ratio of areas after and before bending, or its inverse, above which a map gets a warning; ten times this value is a failure.
Set on the truth table: serial sections of one block stay under 3, unlike images bent onto each other exceed 10."""
STRONG = 3.0
"""Ratio of areas after and before bending, or its inverse, above which a likeness that came mostly from bending gets a warning.
Set on the truth table."""
HARDLY = 0.02
"""Share of the fixed canvas that the moving image covers, below which the map fails: so small an overlap holds too little
tissue to compare."""


def diverged(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """Fails a fit whose energy became infinite or not a number."""
    if "diverged" in figures["convergence"]:
        yield Finding("fail", "the fit diverged: the energy was not finite", remedy=STRAIGHT)


def folds(figures: Mapping[str, Any], what: str = "pixels") -> Iterable[Finding]:
    """Warns where the map is not one to one; ``what`` names the places at which this was tested."""
    share = figures["folding_fraction"]
    if share > 0:
        yield Finding("warn", f"the map folds over at {share:.2%} of the {what}", share, 0.0, STRAIGHT)


def round_trip(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """Warns where mapping a position there and back misses it by more than `ROUND_TRIP`."""
    trip = figures["roundtrip_px"]
    if not (trip["mean"] <= ROUND_TRIP[0] and trip["max"] <= ROUND_TRIP[1]):
        sentence = f"the map and its inverse disagree by up to {trip['max']:.2g} px"
        yield Finding("warn", sentence, trip["max"], ROUND_TRIP[1])


def ambiguous(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """Warns where a different pose explains the data nearly as well (`CLEAR`)."""
    margin = figures["pose_margin"]
    if margin is not None and margin < CLEAR:
        sentence = "another placement fits nearly as well: look at the overlay before you trust this one"
        yield Finding("warn", sentence, margin, CLEAR, f"{LANDMARKS} to decide")


def decided(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """What was decided by what is likely beforehand and not by the data (`regframe.starts.priors`): a remark."""
    if figures.get("mirror_fits") and (figures.get("confidence") or 0.0) < HANDED:
        yield Finding("warn", figures["pose_decided"], remedy=f"see whether left and right are; {LANDMARKS} to decide")
    elif figures.get("pose_decided"):
        yield Finding("pass", figures["pose_decided"])
    kind, asked = figures.get("straight_kind"), figures.get("straight_asked")
    if asked is not None and kind != asked:
        fitted = "turn, shift and size" if kind == "similarity" else "turn and shift"
        yield Finding("pass", f"an {asked} fit matched no better than its start: only {fitted} were fitted from there")
    torn = figures.get("torn")
    if torn is not None:
        instead = "it was bent less" if figures.get("model") == "lddmm" else "the map without it was kept"
        sentence = f"a bend would change areas {torn:.0f}-fold somewhere, which tissue does not do: {instead}"
        yield Finding("warn", sentence, torn, 10 * VIOLENT)


def unknown_scale(fixed: str, moving: str, what: str, remedy: str) -> Finding:
    """The remark that one side states lengths and the other does not.

    Args:
        fixed: unit of the fixed side.
        moving: unit of the moving side.
        what: what is missing on one side, such as ``pixel size``.
        remedy: how the user can state it.
    """
    sentence = (
        f"one side declares no {what} (fixed in {fixed}, moving in {moving}): "
        "the scale between them was estimated, not known"
    )
    return Finding("pass", sentence, remedy=remedy)


def says_nothing(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """Warns where the metric had one value wherever the moving side lay: then nothing was fitted, and the map is its start."""
    metric = figures.get("metric") or {}
    if metric.get("constant"):
        sentence = (
            f"the metric {metric['name']!r} has the same value wherever the moving side lies, so nothing was fitted"
        )
        yield Finding(
            "warn", f"{sentence} and nothing is confirmed: the map is its start", remedy="choose another metric"
        )


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


def _factor(figures: Mapping[str, Any]) -> float:
    """By how much a bend changes an area at most, as a ratio of at least 1."""
    return float(max(figures["jacobian_max"], 1 / max(figures["jacobian_min"], 1e-6)))


# ---- images, sections in volumes, points against images ------------------------------------------------------------------

CONFIRMED = 0.7
"""Confidence from which a map is confirmed. Of 130 maps of the proving ground (`confidence.IMAGES`) none far off or unrelated
reaches 0.2, and 98 % of the right ones are above 0.7, as are 3 of 7 near misses, which are off by up to 1.2 times the bar."""
DECISIVE = 0.9
"""Confidence from which a second pose that scored nearly as well is no doubt: windows, which had no part in the search, have
decided. A disc, which fits at any turn, stays below."""
HANDED = 0.95
"""Confidence from which a mirror image that fits about as well is no doubt. Of 40 pairs at any pose three are not told from their
mirror images, brain sections of cells; one of them has had 0.91."""
NO_EVIDENCE = 0.4
"""Confidence that the place is found at all (`confidence.of_place`), under which there is no evidence for a map of two images or
two volumes. Of 39 maps of images that are far off or unrelated 38 are below (the other has 0.6), and all 8 of unlike volumes; of
the 101 whose place was found none is."""
EVIDENT = 300.0
"""Nats of evidence by the independent judge (`starts.evidence.Judge`), in a unit that the pair itself sets, from which a map of
two images whose bend does not tear (`VIOLENT`) is not without evidence, whatever windows say: sections of a series differ in
detail, so that windows may be sure of wrong places. Of 38 unrelated pairs of the proving ground (images and tables drawn as
densities, seeds below 32) three have more than 200, none more than 240 but one, with 351, whose bend tears."""
BEYOND_CHANCE = 8.0
"""Nats of agreement of windows from which a map of two densities of counted things is not without evidence, if `SURE` sure
windows agree besides: the cells of two sections are other cells, of which evidence counts little. Chance gives as much once in
3000 maps. Of 36 unrelated pairs (`strangers`, seeds below 100, drawn) five have more, by outlines, and one of these as many sure
windows."""
SURE = 2
"""Sure windows that have to agree between densities (`BEYOND_CHANCE`)."""
TOGETHER = 6
"""Neighbouring windows that contradict a map of a plane together (`fit.astray`), from which it is wrong in that place. Of made
pairs (seeds below 500) right maps have up to two, one of neighbouring planes of a brain four; one whose bend does not follow a
fold, and is off by 8 px behind it, has 29, and one that was led astray by light nine."""
BESIDE = 0.5
"""Drift of neighbouring windows, in pixels of the compared images, from which a reason names it."""
LITTLE_IN_COMMON = 0.35
"""Explained share of the fixed image's variance, 0 … 1. Only below it does a coincidence under `CHANCE` fail a map: with more
than this explained, the map is kept with a warning. Set on the truth table."""
NOTHING_IN_COMMON = 0.02
"""Explained share of the fixed image's variance, 0 … 1, under which two images have nothing in common. Also the drop in that
share, from the start to the end of a fit, that is still taken for noise. Pairs with white noise explain under 0.2 %
(``benchmarks/ACCURACY.md``), a tenth of this."""
FROM_POSE = 2 / 3
"""Ratio of the variance explained by the affine map to that explained after bending. Below it, a bend stronger than `STRONG`
gets a warning: most of the likeness then came from bending. Set on the truth table."""
BELONG = 10.0
"""Coincidence of the affine map, in standard deviations, from which two 2D images are believed to show one thing. Set on the
truth table: right alignments reach 10 and more, wrong ones mostly stay under 6."""
BEYOND_DOUBT = 15.0
"""Coincidence of the affine map, in standard deviations, from which even a strong bend is believed. In 3D it takes the place of
`BELONG`, because smooth organs of any kind reach 10 there. Set on the truth table and a handful of volumes
(``docs/method.md``)."""
BENT_HOME = 30.0
"""Coincidence of the bent map, in standard deviations, from which a clear pose is believed although the affine map alone shows
no coincidence: a smooth bend cannot align structure finer than itself by chance. Set on four fields of Xenium cells and twenty
unlike pairs (``docs/method.md``)."""
CHANCE = 5.0
"""Coincidence of the affine map, in standard deviations, under which two images match no better in place than shifted. Set on
the truth table."""
PARTLY = 0.3
"""Share of the fixed canvas that the moving image covers, below which the user is told. It is a reminder to look, not a sign of
a wrong map: crops are often aligned right."""
LITTLE_TISSUE = 0.2
"""Share of the overlap, 0 … 1, recognised as matching tissue (the mean of the weights W), below which the user is told: four
fifths of what was compared then did not count."""


def of_images(figures: Mapping[str, Any], ndim: int) -> Iterable[Finding]:
    """All findings on a map of two images of ``ndim`` axes, from its figures (``metrics.json``)."""
    confidence = figures.get("confidence")
    confirmed = confidence is not None and confidence >= CONFIRMED
    yield from diverged(figures)
    yield from says_nothing(figures)
    yield from _overlap(figures, confirmed)
    if confidence is None:
        yield from _belonging(figures, ndim)
    else:
        yield from _evidence(figures, confidence, ndim)
        yield from in_one_place(figures, confidence, ndim)
    yield from _bending(figures)
    yield from folds(figures)
    yield from round_trip(figures)
    share = figures["matching_fraction"]
    if share < LITTLE_TISSUE:
        sentence = f"only {share:.0%} of the overlap was recognised as matching tissue"
        remedy = "" if confirmed else f"{CROP}, or {LANDMARKS}"
        yield Finding("pass" if confirmed else "warn", sentence, share, LITTLE_TISSUE, remedy)
    yield from _second_pose(figures, confidence, ndim)
    yield from decided(figures)
    if figures["convergence"] and figures["convergence"][-1] == "max_iter":
        sentence = "the fit was still moving when it reached its iteration limit"
        yield Finding("warn", sentence, remedy="raise it with --set optimizer.max_iter=400")
    yield from not_counted(figures)


def _overlap(figures: Mapping[str, Any], confirmed: bool) -> Iterable[Finding]:
    share = figures["overlap_fraction"]
    if share < HARDLY:
        sentence = "the two images hardly overlap under the map that was found"
        yield Finding("fail", sentence, share, HARDLY, f"{LANDMARKS}, or {CROP}")
    elif share < PARTLY:
        sentence = f"the moving image covers only {share:.0%} of the fixed one"
        remedy = "" if confirmed else f"{CROP}, or {LANDMARKS}"
        yield Finding("pass" if confirmed else "warn", sentence, share, PARTLY, remedy)


def _second_pose(figures: Mapping[str, Any], confidence: float | None, ndim: int) -> Iterable[Finding]:
    """Whether a second pose that scored nearly as well is a doubt: windows have decided where the map is `DECISIVE`.

    Organs such as brains hardly differ from their mirror images in the pixels that volumes are aligned by: three volumes that
    were mirrored on purpose (`volume`, seeds 0, 1 and 4) were all aligned with their mirror images, with 620 to 780 nats of
    evidence. So in volumes the sides are taken as the files lie, which is said, and any other second pose stays a doubt.
    """
    margin, sure = figures["pose_margin"], confidence or 0.0
    mirrored = ndim == 3 and (figures.get("runner_up") or {}).get("mirrored", False)
    decided_by_windows = sure >= DECISIVE and ndim == 2
    if mirrored and sure >= CONFIRMED:
        if margin is not None and margin < CLEAR and not figures.get("pose_decided"):
            sentence = (
                "the mirror image fits nearly as well: left and right were taken as the files lie, not told apart"
            )
            yield Finding("pass", sentence, margin, CLEAR)
    elif not decided_by_windows:
        yield from ambiguous(figures)


def _evidence(figures: Mapping[str, Any], confidence: float, ndim: int) -> Iterable[Finding]:
    """What windows of both images say of the map (`fit.agreement`), and how sure that makes it (`regframe.confidence`)."""
    found = figures["agreement"]
    agree, windows, against, drift = (found[key] for key in ("agree", "windows", "against", "drift"))
    seen = f"{agree} of {windows} windows of the overlap fit best where the map puts them"
    if not windows:
        nats = figures.get("evidence")
        seen = "the overlap is too small for windows of it to be compared"
        seen = seen if nats is None else f"{nats:.0f} nats of evidence over the whole, but {seen}"
    elsewhere = f", {against} clearly best elsewhere" if against else ""
    percent = spoken(confidence)
    place = figures["place_confidence"]
    if cells := figures.get("cells"):
        seen = f"cells that were held out have partners in place, {cells['sure']:.0f} standard errors beyond chance; {seen}"
    alike = figures["counted"] and found["nats"] >= BEYOND_CHANCE and found["sure"] - against >= SURE
    nats = figures["evidence" if figures.get("torn") is None else "evidence_affine"] or 0.0
    evident = ndim == 2 and (alike or nats >= EVIDENT) and _factor(figures) <= VIOLENT
    if place < NO_EVIDENCE and not evident:
        sentence = f"no evidence for this map (confidence {percent}): {seen}{elsewhere}"
        yield Finding("fail", sentence, place, NO_EVIDENCE, f"do both show one tissue? {LANDMARKS}, {CROP}, or {SIZE}")
    elif confidence < CONFIRMED <= place:
        by = f", neighbours together {drift * found['unit']:.2g} px off" if drift > BESIDE else ""
        sentence = f"the place is found, its details are not confirmed (confidence {percent}): {seen}{by}"
        yield Finding("warn", sentence + elsewhere, confidence, CONFIRMED, f"look at the overlay; {CHECK}")
    elif confidence < CONFIRMED:
        sentence = f"not confirmed (confidence {percent}): {seen}{elsewhere}"
        yield Finding("warn", sentence, confidence, CONFIRMED, f"look at the overlay; {LANDMARKS}, or {CROP}")
    else:
        yield Finding("pass", f"confirmed (confidence {percent}): {seen}{elsewhere}", confidence, CONFIRMED)


def in_one_place(figures: Mapping[str, Any], confidence: float, ndim: int) -> Iterable[Finding]:
    """Warns where neighbouring windows contradict a confirmed map together: it is wrong in that place, right as it may be
    elsewhere."""
    found = figures["agreement"]
    together = found.get("together", 0)
    if ndim == 2 and confidence >= CONFIRMED and together >= TOGETHER:
        near = ", ".join(f"{x:.4g}" for x in found["where"])
        sentence = (
            f"the map is wrong near ({near}) {found['where_unit']} of the fixed image: {together} windows side by side there fit "
            f"clearly best {found['off'] * found['unit']:.2g} px away"
        )
        yield Finding("warn", sentence, together, TOGETHER, f"look at the overlay there; {CHECK}")


def _belonging(figures: Mapping[str, Any], ndim: int) -> Iterable[Finding]:
    """Whether both images show the same tissue: by their coincidence, and by the explained share of the variance."""
    explained = figures["explained_variance"]["final"]
    place, final = (figures["coincidence"][key] for key in ("affine", "final"))
    margin = figures["pose_margin"]
    belong = BELONG if ndim == 2 else BEYOND_DOUBT
    home = final >= BENT_HOME and (margin is None or margin >= CLEAR)
    if explained < NOTHING_IN_COMMON and place < belong:
        sentence = "the aligned images have nothing in common: the moving one explains under 2 % of the fixed one"
        yield Finding("fail", sentence, explained, NOTHING_IN_COMMON, f"{LANDMARKS}, or {CROP}")
    elif place < CHANCE and final < BEYOND_DOUBT and explained < LITTLE_IN_COMMON:
        sentence = f"the images match no better here than they would anywhere else ({place:.1f} standard deviations)"
        yield Finding("fail", sentence, place, CHANCE, f"{LANDMARKS}, or {CROP}")
    elif place < belong and not home:
        sentence = (
            f"the images match hardly better here than elsewhere ({place:.1f} standard deviations): look at the overlay"
        )
        yield Finding("warn", sentence, place, belong, LANDMARKS)


def _bending(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """Whether the bend made the fit worse, changed areas more than tissue can, or produced most of the likeness by itself."""
    explained = figures["explained_variance"]
    cells = figures.get("cells") is not None  # densities of few cells say less than the cells themselves
    if explained["final"] + NOTHING_IN_COMMON < explained["start"] and not cells:
        sentence = "the map explains less of the fixed image than its start did"
        yield Finding("fail", sentence, explained["final"], explained["start"], f"{STRAIGHT}, or {LANDMARKS}")
    low, high = figures["jacobian_min"], figures["jacobian_max"]
    if low < 1 / VIOLENT or high > VIOLENT:
        torn, factor = "squeezes" if low < 1 / high else "stretches", _factor(figures)
        severity: Severity = "fail" if low < 1 / (10 * VIOLENT) or high > 10 * VIOLENT else "warn"
        sentence = f"the map {torn} tissue {factor:.0f}-fold somewhere, which tissue does not do"
        yield Finding(severity, sentence, factor, VIOLENT, STRAIGHT)
    strong = low < 1 / STRONG or high > STRONG
    place = figures["coincidence"]["affine"]
    if place < BEYOND_DOUBT and explained["affine"] < FROM_POSE * explained["final"] and strong:
        sentence = (
            "much of the likeness came from bending, not from turn, shift and size: unlike images can be bent alike, "
            "so look at the overlay"
        )
        yield Finding("warn", sentence, explained["affine"], FROM_POSE * explained["final"], STRAIGHT)


def either_side() -> Finding:
    """The remark that the volume looks the same from both sides of the plane, so that left and right were not told apart."""
    return Finding(
        "pass", "the volume looks the same from both sides: left and right of the section were not told apart"
    )


def lattice() -> Finding:
    """The warning that points on a lattice, drawn as a density, show hardly more than their outline."""
    sentence = "the points lie on a lattice, whose density shows hardly more than an outline: look at the overlay"
    return Finding("warn", sentence)


# ---- points --------------------------------------------------------------------------------------------------------------

BLUR = 0.05
"""Nats per point by which the mixture explains the fixed points better than one broad Gaussian does. Below this value the two
clouds have no structure in common: the few free parameters of a pose gain as much by chance."""
CONVINCING = 2.0
"""Standard errors by which a bend must improve the log-density of held-out points, in the mean, to count as confirmed: about
the 95 % level of a normal distribution."""
NO_PARTNERS = 0.2
"""Confidence under which there is no evidence for a map of two clouds. All 16 unrelated ones of `confidence.POINTS` are below,
the highest at 0.13; no right one is under 0.8. Where the points of both sides are not the same ones the confidence is too low:
therefore two clouds that fail are compared as densities before they are reported (`Solver.otherwise`)."""
CLEAR_OF_POINTS = 0.03
"""Margin of a pose of two clouds (0 … 1, see `solvers.points.align.Begun`) from which, where the confidence is `DECISIVE`,
another pose is no doubt: clouds are compared at up to 256 places, so that it is worth 8 nats where there are so many. A cloud
that fits itself at another turn, such as a lattice, has a margin of 0."""
DOUBTFUL = 0.5
"""Confidence under which a map of two clouds is not confirmed. None of the right maps of `confidence.POINTS` is below."""
PARTNERS = (0.1, 0.4)
"""Two shares of the points of one side that have a partner on the other, 0 … 1. Below the first the clouds do not belong
together (fail), below the second a person has to look (warn). Set on fish, bunnies and worms with outliers and missing pieces
(``benchmarks/bench_points.py``)."""
MOST_PARTNERS = 0.8
"""Share of the points of one side that have a partner, 0 … 1, below which bending stronger than `STRONG` gets a warning. Set on
the pairs of `PARTNERS`."""


def of_points(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """All findings on a map of two point clouds, from its figures (``metrics.json``)."""
    yield from diverged(figures)
    yield from says_nothing(figures)
    sure = figures.get("confidence")
    if sure is not None and sure < DOUBTFUL:
        lost = sure < NO_PARTNERS
        said = "no evidence for this map" if lost else "not confirmed"
        sentence = f"{said} (confidence {spoken(sure)}): partners are few, far apart, or no likelier than by chance"
        yield Finding(
            "fail" if lost else "warn", sentence, sure, NO_PARTNERS if lost else DOUBTFUL, f"{LANDMARKS}, or {CELLS}"
        )
    if figures["likeness"] < BLUR:
        sentence = "the clouds have no structure in common: one broad blur explains the fixed points as well"
        yield Finding("fail", sentence, figures["likeness"], BLUR, f"{LANDMARKS}, or {CELLS}")
    both = min(figures["matching_fraction"], figures["matching_fraction_moving"])
    if both < PARTNERS[1]:
        severity: Severity = "fail" if both < PARTNERS[0] else "warn"
        sentence = f"only {both:.0%} of the points of one side have a partner on the other"
        yield Finding(severity, sentence, both, PARTNERS[severity == "warn"], f"{LANDMARKS}, {CROP}, or {CELLS}")
    low, high, factor = figures["jacobian_min"], figures["jacobian_max"], _factor(figures)
    if low < 1 / VIOLENT or high > VIOLENT:
        yield Finding("warn", f"the map changes areas {factor:.0f}-fold somewhere", factor, VIOLENT, STRAIGHT)
    held = figures["held_out"]
    if figures["model"] == "lddmm" and held is not None and held["gain"] <= CONVINCING * held["error"]:
        sentence = "the bend was not confirmed on points that were held out: look at the overlay"
        yield Finding("warn", sentence, held["gain"], CONVINCING * held["error"], STRAIGHT)
    if (low < 1 / STRONG or high > STRONG) and both < MOST_PARTNERS:
        sentence = (
            f"much bending brought only {both:.0%} of the points to a partner: unlike shapes can be bent alike, so look at "
            "the overlay"
        )
        yield Finding("warn", sentence, both, MOST_PARTNERS)
    yield from folds(figures, "places")
    yield from round_trip(figures)
    if (sure or 0.0) < DECISIVE or (figures["pose_margin"] or 0.0) < CLEAR_OF_POINTS:
        yield from ambiguous(figures)


def as_densities() -> Finding:
    """The remark that two clouds were compared by the density of their points, because the points themselves found nothing."""
    sentence = (
        "the single points have no partners on the other side: both sides were compared by the density of their points, "
        "as tables of cells are"
    )
    return Finding("pass", sentence)


# ---- maps of other programs ----------------------------------------------------------------------------------------------

IMPORTED = "imported, not fitted here: nothing but the map itself was judged, so look at the overlay"


def of_import(figures: Mapping[str, Any], source: str) -> Iterable[Finding]:
    """All findings on a map that was read from another program's file ``source``: only the map itself can be judged."""
    yield Finding("warn", f"{source}: {IMPORTED}")
    share = figures["overlap_fraction"]
    if share < HARDLY:
        sentence = "the two images hardly overlap under this map: check direction (--to), unit and which is fixed"
        yield Finding("fail", sentence, share, HARDLY)
    yield from folds(figures)
    yield from round_trip(figures)


# ---- chains of maps ------------------------------------------------------------------------------------------------------


def other_canvas(step: int, share: float, threshold: float) -> Finding:
    """The warning where result ``step`` of a chain ends on another canvas than the next begins on."""
    sentence = (
        f"result {step} ends and result {step + 1} begins on canvases that have {share:.0%} of their area in common: "
        "do both show one image?"
    )
    return Finding("warn", sentence, share, threshold)


def of_chain(steps: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> Iterable[Finding]:
    """All findings on a map that was composed of results: theirs, and those on the whole.

    Args:
        steps: the metrics of each result.
        figures: the metrics of the whole.
    """
    for i, metrics in enumerate(steps, 1):
        told = [item for item in metrics.get("findings", ()) if item["severity"] != "pass"]
        for item in told:
            yield Finding(**{**item, "sentence": f"result {i}: {item['sentence']}"})
        if not told and metrics["verdict"] != "pass":
            reasons = "; ".join(map(str, metrics.get("reasons", ()))) or "it does not say why"
            yield Finding(metrics["verdict"], f"result {i}: {reasons}")
    confidence = figures.get("confidence")
    if confidence is not None and confidence < CONFIRMED:
        sentence = f"together the results are right with a confidence of {spoken(confidence)}"
        yield Finding("warn", sentence, confidence, CONFIRMED, CHECK)
    share = figures["overlap_fraction"]
    if share < HARDLY:
        yield Finding("fail", "the two ends hardly overlap under this map: check order and direction", share, HARDLY)
    yield from folds(figures)
    yield from round_trip(figures)


# ---- refinement at full resolution ---------------------------------------------------------------------------------------

GAIN = 3.0
"""Standard deviations (of chance) by which the correlation of a tile's held-out windows must rise for the tile to be kept, or
fall for the tile to be held at the unrefined map. One tile in 700 passes 3 standard deviations by chance."""
SLIGHT = 0.01
"""Rise of the correlation of held-out windows (absolute, in units of the correlation) that a tile needs besides `GAIN`, so that
a certain but useless gain changes nothing. Set by eye on ``benchmarks/bench_refine.py``."""
FEW = 2
"""Windows that must be found in a tile, and windows that must judge it, for the tile to be kept: a single window cannot be
confirmed by a neighbour."""


def of_refinement(rounds: Sequence[Mapping[str, Any]], unit: str) -> Iterable[Finding]:
    """One remark per round of a refinement (``metrics["refinement"]["rounds"]``): what was kept and how much it helped.

    Lengths are told in ``unit``, that of the fixed side.
    """
    for entry in rounds:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(entry["rejected"].items()))
        sentence = f"pixels of {entry['pixel']:.4g} {unit}: {entry['kept']} of {entry['tiles']} tiles kept"
        sentence += f" ({why})" if why else ""
        if entry["kept"]:
            before, after = entry["correlation"]
            sentence += (
                f"; fine structure of held-out windows {before:.2f} → {after:.2f}, "
                f"moved by {entry['shift']['median']:.3g} {unit} in the median"
            )
        yield Finding("pass", sentence, entry["kept"], None)


# ---- stacks --------------------------------------------------------------------------------------------------------------

DIFFER = 0.05
"""Difference of two correlations between neighbouring sections from which a section is reported as poor, turned over or out of
place. 40 Nissl sections in their right order differ by less (``benchmarks/bench_stack.py``)."""
HALF = 0.5
"""Ratio of a section's tissue area to that of its neighbours, below which the section is reported as incomplete."""


def some(names: Sequence[str], most: int = 6) -> str:
    """At most ``most`` of the names, joined by commas, with the number of those left out."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def incomplete(share: float) -> Finding:
    """The warning on a section that shows only ``share`` (0 … 1) of its neighbours' tissue area."""
    sentence = f"shows {share:.0%} of the tissue of its neighbours: incomplete or torn"
    return Finding("warn", sentence, share, HALF)


def out_of_place(own: float, across: float) -> Finding:
    """The warning on a section: ``own`` is its correlation with its neighbours, ``across`` theirs with each other."""
    sentence = (
        f"resembles its neighbours less (correlation {own:.2f}) than these resemble each other ({across:.2f}): "
        "damaged, or not from here"
    )
    return Finding("warn", sentence, own, across - 2 * DIFFER)


def turned_back() -> Finding:
    """The warning on a section that lay turned over; its map turns it back."""
    return Finding("warn", "lay turned over beside the others; its map turns it back")


def turned_over() -> Finding:
    """The warning on a section that may lie turned over; its map leaves it so."""
    return Finding("warn", "fits its neighbours better when turned over: look at it")


def elsewhere() -> Finding:
    """The warning on a section that fits better at another place of the stack."""
    return Finding("warn", "neighbours would be more alike in another order")


def bridged(lost: Sequence[str], instead: Sequence[str]) -> Finding:
    """The warning on a section that does not match its neighbours ``lost`` and was placed by ``instead``, which may be empty."""
    more = f"placed by {some(instead)} instead" if instead else "placed by the other side alone"
    return Finding("warn", f"does not match {some(lost)}; {more}")


def unplaced(why: str) -> Finding:
    """The failure of a section that has no place in the stack, because of ``why``."""
    return Finding("fail", why)


def of_stack(sections: Sequence[Mapping[str, Any]], moved: Sequence[str], gaps: Sequence[int]) -> Iterable[Finding]:
    """All findings on a stack, from the verdicts of its sections.

    Args:
        sections: ``name``, ``placed`` and ``verdict`` of each section.
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
    """The remark that no distance between sections was stated."""
    return Finding("pass", "no distance of the sections was stated: the planes lie one pixel apart")


# ---- groups ---------------------------------------------------------------------------------------------------------------

SHARP = 0.7
"""How much fine structure an image shows, over the median of the images of its group, below which it is reported as blurred. Made
rounds that are as sharp as the first show 0.98 to 1.01 of the median, one blurred by 3 px 0.49 (``benchmarks/rounds.py``)."""
ALIKE_IN_DETAIL = 0.25
"""The least median of that figure at which it says anything: images of several sections share no fine structure."""


def blurred(detail: float, usual: float) -> Iterable[Finding]:
    """The warning on an image that shows ``detail`` of the reference's fine structure, where its group shows ``usual``."""
    if usual >= ALIKE_IN_DETAIL and detail < SHARP * usual:
        sentence = f"shows {detail / usual:.0%} of the fine structure that the others show: blurred, or not in place to a pixel"
        yield Finding("warn", sentence, detail / usual, SHARP, remedy="look at it, or take that round again")


def unconfirmed_pair(names: str, reasons: Sequence[str]) -> Finding:
    """The warning on an image whose place rests on pairs that are not confirmed, and that no other pair supports."""
    why = f" ({reasons[0]})" if reasons else ""
    return Finding(
        "warn", f"its place rests on {names} alone, which is not confirmed{why}", remedy="look at the overlay"
    )


def by_way_of(names: Sequence[str]) -> Finding:
    """The remark on an image that reaches the reference over others."""
    return Finding("pass", f"placed by way of {some(names)}, which it matches better than the reference")


def contradicted(names: Sequence[str]) -> Finding:
    """The warning on an image of which a pair was confirmed that contradicts the others."""
    return Finding(
        "warn", f"its pair with {some(names)} contradicts the others and was left out", remedy="look at the overlay"
    )


def of_group(images: Sequence[Mapping[str, Any]], word: str = "images") -> Iterable[Finding]:
    """All findings on a group, from the ``name``, ``placed`` and ``verdict`` of its images, which are called ``word``."""
    n = len(images)
    lost = [image["name"] for image in images if not image["placed"]]
    if lost:
        severity: Severity = "fail" if len(lost) > n / 2 or len(lost) == n - 1 else "warn"
        yield Finding(severity, f"{len(lost)} of {n} {word} could not be placed: {some(lost)}", len(lost), n / 2)
    doubtful = [image["name"] for image in images if image["placed"] and image["verdict"] != "pass"]
    if doubtful:
        yield Finding("warn", f"{len(doubtful)} of {n} {word} want a look: {some(doubtful)}", len(doubtful), 0)
    if not lost and not doubtful:
        yield Finding("pass", f"all {n} {word} have their place")


# ---- slides in pieces -----------------------------------------------------------------------------------------------------


def of_pieces(figures: Mapping[str, Any]) -> Iterable[Finding]:
    """All findings on a map in pieces, from its figures: pieces without a partner, moved ones, doubtful ones, folds."""
    pieces = figures["pieces"]
    on = [piece for piece in pieces if piece["partner"] is not None]
    own = [piece for piece in pieces if piece["side"] == "moving"]
    lost = {
        side: [p["id"] for p in pieces if p["side"] == side and p["partner"] is None] for side in ("moving", "fixed")
    }
    if lost["moving"]:
        n = len(own)
        severity: Severity = "fail" if len(lost["moving"]) > n / 2 else "warn"
        sentence = f"{len(lost['moving'])} of {n} pieces of the moving side have no partner: {some(lost['moving'], 12)}"
        yield Finding(severity, sentence, len(lost["moving"]), n / 2, "look at them; their positions have no map")
    if lost["fixed"]:
        sentence = f"{len(lost['fixed'])} pieces of the fixed side have no partner: {some(lost['fixed'], 12)}"
        yield Finding("warn", sentence, len(lost["fixed"]), 0, "look at them: nothing of the moving side is laid there")
    moved = [f"{p['id']} is {p['partner']}" for p in on if not p["at_place"]]
    if moved:
        sentence = f"{len(moved)} cores lie at another core's place: moving {some(moved, 12)} of the fixed side"
        yield Finding("warn", sentence, len(moved), 0, "check how the slides were laid out")
    doubtful = [f"{p['id']} ({spoken(p['confidence'] or 0.0)})" for p in on if p["verdict"] != "pass"]
    if doubtful:
        sentence = f"{len(doubtful)} of {len(on)} placed pieces are not confirmed: {some(doubtful, 12)}"
        yield Finding("warn", sentence, len(doubtful), 0, "look at them on the page of pieces")
    confirmed = len(on) - len(doubtful)
    yield Finding("pass", f"{confirmed} pieces are confirmed, each with a map of its own", confirmed, None)
    grid = figures.get("grid") or {}
    if grid.get("lies"):
        yield Finding("pass", f"the moving grid of {grid['rows']} x {grid['columns']} cores lies {grid['lies']}")
    for seam in figures["seams"]:
        jump = seam["jump"]
        sentence = (
            f"piece {seam['piece']} of the {seam['side']} side belongs to several parts: the map jumps by "
            f"{jump['median']:.3g} (at most {jump['max']:.3g}) {seam['jump_unit']} along their seam"
        )
        yield Finding("pass", sentence, jump["median"], None)
    yield from folds(figures)
