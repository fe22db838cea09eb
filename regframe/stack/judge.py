"""Figures and verdicts of a stack: each section's verdict, coherence of neighbours, drift, order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import verdict
from ..data import Image
from ..maps.affine import Affine
from ..maps.resample import resample
from ..verdict import DIFFER, HALF, Finding
from .each import TURNS, ncc_of
from .pairs import Pictures, Work
from .posegraph import GUIDE, Floats, carry, rms
from .sections import Flags, smaller
from .settle import Density, settle

FARTHEST_MOVE = 8
"""Largest number of places by which a section is moved while a better order is searched for: a slide holds several sections."""

SCANNED_AT = 96
"""Pixels along the longer side of the pictures on which a section is tried turned over, under every turn; the best is settled on
larger ones."""


class Judge:
    """Derives the figures of the sections and of the stack, from poses and from pictures of the sections before and after.

    Args:
        work: sections and pairs.
        poses: pose ``[3, 3]`` of each section that was placed, by section.
        before: pictures of the sections as they lie.
        after: pictures of the sections under the poses.
    """

    def __init__(self, work: Work, poses: Mapping[int, Floats], before: Pictures, after: Pictures) -> None:
        self.work, self.poses, self.before, self.after = work, poses, before, after
        self.order = [k for k in work.good if k in poses]
        self.area = {k: float(after.tissue[k].sum()) for k in self.order}
        self.poor, self.said = self._poor()

    def _poor(self) -> tuple[set[int], dict[int, Finding]]:
        """Sections that resemble their neighbours much less than these resemble each other, or show far less tissue; and why."""
        poor: set[int] = set()
        said: dict[int, Finding] = {}
        for i, k in enumerate(self.order):
            near = [self.order[j] for j in (i - 1, i + 1) if 0 <= j < len(self.order)]
            around = [self.order[j] for j in range(max(0, i - 3), min(len(self.order), i + 4)) if j != i]
            usual = float(np.median([self.area[n] for n in around])) if around else self.area[k]
            if usual and self.area[k] < HALF * usual:
                poor.add(k)
                said[k] = verdict.incomplete(self.area[k] / usual)
            elif len(near) == 2:
                own = float(np.mean([self.after.ncc(k, n) for n in near]))
                across = self.after.ncc(near[0], near[1])
                if own < across - 2 * DIFFER:
                    poor.add(k)
                    said[k] = verdict.out_of_place(own, across)
        return poor, said

    def mirrored(self) -> list[int]:
        """Sections that lay turned over, or fit their neighbours better turned over; judged on the small pictures."""
        work, found = self.work, list[int]()
        reference = [k for k in self.order if np.linalg.det(self.poses[k][:2, :2]) > 0]
        flipped = {k for k in self.order if np.linalg.det(self.poses[k][:2, :2]) < 0}
        if len(flipped) > len(reference):
            flipped = set(reference)
        usual = float(np.median([self.after.ncc(a, b) for a, b in itertools.pairwise(self.order)] or [1.0]))
        for i, k in enumerate(self.order):
            work.tell("checked for turning over", i + 1, len(self.order))
            near = [
                self.order[j] for j in (i - 1, i + 1) if 0 <= j < len(self.order) and self.order[j] not in self.poor
            ]
            if not near or k in flipped or not self.area[k]:
                continue
            density, tissue = self._turned_over(k, near)
            turned = [ncc_of(density, self.after.density[n], tissue | self.after.tissue[n]) for n in near]
            gains = [there - self.after.ncc(k, n) for there, n in zip(turned, near, strict=True)]
            if min(gains) > DIFFER and np.mean(turned) > usual - 2 * DIFFER:
                found.append(k)
        for k in flipped:
            self.said.setdefault(k, verdict.turned_back())
        for k in found:
            self.said.setdefault(k, verdict.turned_over())
        return sorted({*found, *flipped})

    def _turned_over(self, k: int, near: Sequence[int]) -> tuple[Floats, Flags]:
        """Density and tissue ``[h, w]`` of section ``k`` on the canvas, turned over and laid on its neighbours ``near``.

        It lies there under the turn, of `TURNS` about the middle of its tissue, at which it is most like the mean of the
        neighbours, settled.
        """
        after, grid = self.after, self.after.grid
        both = np.logical_or.reduce([after.tissue[n] for n in near])
        mean = np.mean([after.density[n] for n in near], axis=0)
        at = grid.coords().numpy()[after.tissue[k]]
        middle, home = at.mean(axis=0), grid.coords().numpy()[both].mean(axis=0) if both.any() else at.mean(axis=0)
        probes = carry(self.poses[k], self.work.nodes[k].probes)

        def laid(image: Image, matrix: Floats) -> tuple[Floats, Flags]:
            onto = Affine(torch.from_numpy(matrix), *self.work.units)
            moved = resample(image, onto, image.grid, 0.0).data.numpy()
            return moved[0].astype(np.float64), moved[1] > 0.5

        own, theirs = (
            Image(torch.from_numpy(np.stack(layers).astype(np.float32)), grid)
            for layers in ((after.density[k], after.tissue[k]), (mean, both))
        )
        few, target = smaller(own, SCANNED_AT), smaller(theirs, SCANNED_AT).data.numpy()
        starts: list[tuple[float, int, Floats]] = []
        for angle in np.linspace(0, 2 * math.pi, TURNS, endpoint=False):
            c, s = math.cos(angle), math.sin(angle)
            start = np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, 1.0]])
            start[:2, 2] = home - start[:2, :2] @ middle
            density, tissue = laid(few, start)
            where = tissue | (target[1] > 0.5)
            starts.append((ncc_of(density, target[0].astype(np.float64), where), len(starts), start))
        start = max(starts)[2]
        one, other = (
            Density(v.astype(np.float32), t, np.array(grid.spacing), np.array(grid.origin))
            for v, t in ((mean, both), (after.density[k], after.tissue[k]))
        )
        size = float(np.sqrt(((probes - probes.mean(axis=0)) ** 2).sum(axis=1).mean()))
        return laid(own, settle(one, other, start, probes, size, "rigid"))

    def out_of_order(self) -> dict[str, Any]:
        """Whether neighbours would be more alike in another order of the sections.

        Single sections are moved by up to `FARTHEST_MOVE` places, and runs of up to that length reversed, as long as this
        helps by more than chance.
        """
        order, after = [k for k in self.order if k not in self.poor], self.after
        known: dict[tuple[int, int], float] = {}

        def unlike(a: int, b: int) -> float:
            pair = (min(a, b), max(a, b))
            if pair not in known:
                known[pair] = 1 - after.ncc(*pair)
            return known[pair]

        def length(path: list[int]) -> float:
            return sum(unlike(a, b) for a, b in itertools.pairwise(path))

        if len(order) < 4:
            return {"suggested": None, "moved": []}
        best, total = order, length(order)
        given = total
        while True:
            trials = []
            n = len(best)
            for i in range(n):
                for j in range(max(0, i - FARTHEST_MOVE), min(n, i + FARTHEST_MOVE + 1)):
                    if i != j:
                        moved = best[:i] + best[i + 1 :]
                        moved.insert(j, best[i])
                        trials.append(moved)
                    if j > i + 1:
                        trials.append(best[:i] + best[i : j + 1][::-1] + best[j + 1 :])
            scored = [(self._change(best, trial, unlike), trial) for trial in trials]
            change, trial = min(scored, key=lambda pair: pair[0])
            if change > -DIFFER:  # a smaller change of the summed correlations may be chance
                break
            best, total = trial, total + change
        if best == order:
            return {"suggested": None, "moved": []}
        moved = [k for k, other in zip(order, best, strict=True) if k != other]
        return {
            "suggested": [self.work.names[k] for k in best],
            "moved": moved,
            "ncc_gain": (given - total) / (len(order) - 1),
        }

    @staticmethod
    def _change(old: list[int], new: list[int], unlike: Callable[[int, int], float]) -> float:
        """Rise of the summed unlikeness of neighbours from the order ``old`` to the order ``new``."""
        gone = {frozenset(pair) for pair in itertools.pairwise(old)}
        come = {frozenset(pair) for pair in itertools.pairwise(new)}
        return sum(unlike(*pair) for pair in come - gone) - sum(unlike(*pair) for pair in gone - come)

    def metrics(self, final: Pictures, mirrored: list[int], chained: bool, stated: bool) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        work = self.work
        pairs: list[dict[str, Any]] = [
            {"sections": [a, b], "before": self.before.pair(a, b), "after": final.pair(a, b)}
            for a, b in itertools.pairwise(self.order)
        ]
        stiff = [self.after.pair(a, b) for a, b in itertools.pairwise(self.order)]
        order = self.out_of_order()
        sections = [self._section(k, order["moved"], final) for k in range(len(work.images))]
        gaps = [p for a, b in itertools.pairwise(work.planes) for p in range(a + 1, b)]
        moved = [work.names[k] for k in order["moved"]] if order["suggested"] else []
        findings = [*verdict.of_stack(sections, moved, gaps), *([] if stated else [verdict.unstated_distance()])]
        used = [link for link in work.links if link.weight > 0]
        given_up = [link for link in work.links if link.weight == 0]
        loops = work.loop_residuals()
        drift: dict[str, Any] = {
            "loops_px": _spread(loops),
            "pairs_px": _spread([link.residual / work.pixel for link in used]),
        }
        drift["n_pairs"], drift["given_up"] = len(work.links), len(given_up)
        if not chained:
            drift["chain_departs_px"] = self._departure()
        return {
            **verdict.conclude(findings),
            "n_sections": len(sections),
            "n_placed": len(self.order),
            "n_evaluations": work.evaluations,
            "coherence": {
                "before": {name: _mean(pair["before"][name] for pair in pairs) for name in ("ncc", "nmi", "dice")},
                "unbent": {name: _mean(pair[name] for pair in stiff) for name in ("ncc", "nmi", "dice")},
                "after": {name: _mean(pair["after"][name] for pair in pairs) for name in ("ncc", "nmi", "dice")},
                "pairs": pairs,
            },
            "drift": drift,
            "order": order,
            "mirrored": [work.names[k] for k in mirrored],
            "empty_positions": gaps,
            "sections": sections,
        }

    def _departure(self) -> float | None:
        """Largest distance, in px, of a section in a plain chain of neighbours from its place in the reconciled stack."""
        at = {(link.fixed, link.moving): link.matrix for link in self.work.links if link.fixed != GUIDE}
        pose, worst = np.eye(3), 0.0
        first = self.order[0]
        back = np.linalg.inv(self.poses[first])
        for a, b in itertools.pairwise(self.order):
            if (a, b) not in at:
                return None
            pose = pose @ at[a, b]
            probes = self.work.nodes[b].probes
            worst = max(worst, rms(carry(pose, probes) - carry(back @ self.poses[b], probes)) / self.work.pixel)
        return worst

    def _section(self, k: int, moved: Sequence[int], final: Pictures) -> dict[str, Any]:
        """The entry of section ``k`` in ``metrics.json``; ``moved`` are the sections that a better order would move."""
        work = self.work
        out: dict[str, Any] = {"index": k, "name": work.names[k], "position": work.planes[k], "placed": k in self.poses}
        if k not in self.poses:
            why = work.sections[k].empty or "none of its neighbours matched it"
            return out | verdict.conclude([verdict.unplaced(why)])
        mine = [link for link in work.links if k in (link.fixed, link.moving) and link.fixed != GUIDE]
        used = [link for link in mine if link.weight > 0]
        others = sorted({link.fixed if link.moving == k else link.moving for link in used})
        i = self.order.index(k)
        near = [self.order[j] for j in (i - 1, i + 1) if 0 <= j < len(self.order)]
        findings = [self.said[k]] if k in self.said else []
        if k in moved:
            findings.append(verdict.elsewhere())
        lost = [n for n in near if n not in others]
        if lost:
            instead = [work.names[n] for n in others if n not in near]
            findings.append(verdict.bridged([work.names[n] for n in lost], instead))
        linear = self.poses[k][:2, :2]
        turned = linear @ np.diag([1.0, np.sign(np.linalg.det(linear))])
        return out | {
            **verdict.conclude(findings),
            "neighbours": others,
            "given_up": sorted({link.fixed if link.moving == k else link.moving for link in mine if link.weight == 0}),
            "residual_px": _mean(link.residual / work.pixel for link in used),
            "tissue_px": self.area[k],
            "ncc": {
                "before": _mean(self.before.ncc(k, n) for n in near),
                "after": _mean(final.ncc(k, n) for n in near),
            },
            "pose": {
                "turn_degrees": math.degrees(math.atan2(turned[1, 0] - turned[0, 1], turned[0, 0] + turned[1, 1])),
                "scale": math.sqrt(abs(float(np.linalg.det(linear)))),
                "mirrored": bool(np.linalg.det(linear) < 0),
                "matrix": self.poses[k].tolist(),
            },
        }


def _mean(values: Iterable[float]) -> float:
    """The mean of the values; 0 where there are none."""
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Number, median, 90th percentile and maximum of the finite values; None where there are none."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return None
    return {
        "n": len(finite),
        "median": float(np.median(finite)),
        "p90": float(np.quantile(finite, 0.9)),
        "max": max(finite),
    }
