"""`register_group`: registers pairs of many images of one tissue, reconciles them, and brings all into the space of one."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..composition import compose
from ..config import Config
from ..contracts import Progress
from ..data import Grid
from ..display.bars import shown
from ..maps.affine import Affine
from ..registration import settled
from ..result import Result
from ..versions import versions
from . import judge, routes
from .channels import Wanted
from .group import Group
from .kept import Kept
from .lost import lost
from .members import Member, fingerprint, opened
from .pairs import Pair, fit, timeless
from .routes import Routes, Step
from .template import template

TRANSFORMS = ("rigid", "affine", "lddmm")
"""Models that ``transform`` accepts, each a special case of the next."""
ALL_PAIRS = 5
"""Number of images up to which every two are registered; of more, each to the next one and to the reference, since the number of
all pairs grows with the square."""
FARTHEST = 3
"""How many others, in the order of the images, an image is registered to where it does not match the reference."""
MEAN_OF = 6
"""How many further images, in a ring, each is registered to for the mean of all: of up to 13 images all pairs, of more six per
image. What a pair adds of its own falls with their number; the images' own noise, about as large, does not."""
NONE = "none"
"""What ``reference`` is where the images come to their mean."""
AS_GOOD = 0.02
"""Difference of the mean confidences of their pairs up to which two images serve as well as the reference; the first is taken."""


def register_group(
    images: Iterable[Any],
    *,
    names: Sequence[str] | None = None,
    reference: str | int = "auto",
    channel: Wanted = None,
    transform: str | None = None,
    config: Config | None = None,
    folder: str | Path | None = None,
    progress: bool | Callable[[Progress], object] | None = None,
) -> Group:
    """Bring many images of one tissue into the space of one of them; nothing has to be set.

    Args:
        images: `Image` objects, or anything `regframe.open` reads as one: rounds of one section, neighbouring sections in other
            stains; or volumes of one organ. Sizes and channels may differ, the unit and the number of axes may not.
        names: a name for each; those of the images or files where None.
        reference: name or number of the image that stays where it is; ``"auto"``: the one that the others match best; or
            ``"none"``: none is favoured, all are brought to their mean (`regframe.group.template`), which is in ``template``.
        channel: the channel to align by: a name or number for all, a mapping from names of images, or one per image. Where None,
            the stain of the nucleus (DAPI, Hoechst …), a channel that is in every image, or those that are most alike.
        transform: ``rigid``, ``affine`` or ``lddmm`` (affine plus a smooth bend); ``config.transform`` where None.
        config: settings of `register` for every pair.
        folder: where finished pairs are kept: the same call goes on with those that are missing, a call with other images,
            channels or settings is refused. In memory where None.
        progress: True draws a bar (None does in a notebook and at a Python prompt); a function is called before each pair, with
            the stage ``pairs``.

    Raises:
        ValueError: fewer than two images with tissue, points, images among volumes, several units, a reference or channel that
            there is not.
    """
    began = time.perf_counter()
    config = checked(config, transform)
    members = opened(images, names, channel)
    with shown(progress) as told:
        return aligned(members, reference, config, None if folder is None else Path(folder), told, began)


def aligned(
    members: list[Member],
    reference: str | int,
    config: Config,
    folder: Path | None = None,
    progress: Callable[[Progress], object] | None = None,
    began: float | None = None,
) -> Group:
    """`register_group` of members that are open; ``began`` is the moment from which ``seconds`` are counted."""
    began = time.perf_counter() if began is None else began
    work = Work(members, config, Kept(folder, [m.name for m in members], fingerprint(members, config)), progress)
    work.register(_place(reference, members))
    mean = reference == NONE and NONE not in [member.name for member in members]
    if mean:
        work.register_more()
    way = routes.found(members, work.tried, work.reference, config.transform == "rigid")
    results = work.results(way)
    metrics = judge.metrics(members, work.tried, way, results)
    found = None
    if mean:
        agreeing = [pair for pair in work.tried if way.used(pair)]
        found = template([member.image for member in members], results, work.reference, agreeing)
        results = list(found.results)
        metrics = judge.on_mean(metrics, members, found)
    gone = lost(members, results, work.reference)
    metrics = judge.with_losses(metrics, gone)
    metrics |= {
        "transform": config.transform,
        "reference": {"kind": str(reference), "image": members[work.reference].name},
        "seconds": time.perf_counter() - began,
        "versions": versions(),
    }
    judged = tuple(
        None if result is None else dataclasses.replace(result, metrics=result.metrics | judge.own(metrics, k))
        for k, result in enumerate(results)
    )
    return Group(
        tuple(m.name for m in members), judged, tuple(work.tried), work.reference, metrics,
        tuple(m.said for m in members), None if found is None else found.image, None if found is None else found.variance,
        None if gone is None else gone.image,
    )  # fmt: skip


def checked(config: Config | None, transform: str | None) -> Config:
    """The settings of every pair; ValueError for a model that no group has."""
    config = settled(config, None, transform=transform)
    if config.transform not in TRANSFORMS:
        raise ValueError(f"wanted transform {' or '.join(TRANSFORMS)}, got {config.transform!r}; choose one of these")
    return config


def _place(reference: str | int, members: Sequence[Member]) -> int | None:
    """The number of the reference; None where it is to be chosen."""
    names = [member.name for member in members]
    if isinstance(reference, str) and reference not in names:
        if reference in ("auto", NONE):
            return None
        if reference.isdecimal():
            reference = int(reference)
    k = names.index(reference) if isinstance(reference, str) and reference in names else reference
    if not isinstance(k, int) or not 0 <= k < len(names):
        raise ValueError(
            f"wanted as reference auto, none, or one of {', '.join(names)}, got {reference!r}; name one of these"
        )
    if members[k].empty:
        raise ValueError(f"wanted a reference with tissue, got {names[k]}: {members[k].empty}")
    return k


class Work:
    """A group while it is being aligned: its images, and the pairs registered so far.

    Args:
        members: the images.
        config: settings of every pair.
        kept: where finished pairs are kept.
        progress: called before each pair.

    Raises ValueError for fewer than two images with tissue.
    """

    def __init__(
        self, members: list[Member], config: Config, kept: Kept, progress: Callable[[Progress], object] | None = None
    ) -> None:
        self.members, self.config, self.kept, self._progress = members, config, kept, progress
        self.good = [k for k, member in enumerate(members) if not member.empty]
        if len(self.good) < 2:
            raise ValueError(f"wanted at least two images with tissue, got {len(self.good)}; check files and channel")
        self.tried: list[Pair] = []
        self.reference = self.good[0]

    # ---- pairs ----------------------------------------------------------------------------------------------------------

    def register(self, reference: int | None) -> None:
        """Register as many pairs as are needed; chooses the reference where it is None."""
        good = self.good
        if len(good) <= ALL_PAIRS:
            near = [(a, b) for i, a in enumerate(good) for b in good[i + 1 :]]
            near = [(b, a) if b == reference else (a, b) for a, b in near]
        else:
            near = [(b, a) if b == reference else (a, b) for a, b in itertools.pairwise(good)]
        star = 0 if len(good) <= ALL_PAIRS else len(good) - 2
        self._all(near, len(near) + star)
        self.reference = self._best() if reference is None else reference
        self._all([(self.reference, k) for k in good if k != self.reference], len(self.tried) + star)
        self._farther()

    def register_more(self) -> None:
        """Register further pairs, which the mean of all images is made of: each image with the next `MEAN_OF`."""
        tried = {frozenset((pair.fixed, pair.moving)) for pair in self.tried}
        n = len(self.good)
        ring = [(self.good[i], self.good[(i + d) % n]) for d in range(1, MEAN_OF + 1) for i in range(n)]
        more: list[tuple[int, int]] = []
        for a, b in ring:
            if a != b and frozenset((a, b)) not in tried:
                tried.add(frozenset((a, b)))
                more.append((a, b))
        self._all(more, len(self.tried) + len(more))

    def _all(self, wanted: Iterable[tuple[int, int]], total: int) -> None:
        had = {(pair.fixed, pair.moving) for pair in self.tried}
        for a, b in wanted:
            if (a, b) in had:
                continue
            if self._progress is not None:
                self._progress(Progress("pairs", len(self.tried), max(total, len(self.tried) + 1)))
            pair = self.kept.find(a, b)
            self.tried.append(self.kept.put(fit(self.members, a, b, self.config)) if pair is None else pair)

    def _best(self) -> int:
        """The image of the surest pairs; the first of several that are as good."""
        sure: dict[int, list[float]] = {k: [] for k in self.good}
        for pair in self.tried:
            for k in (pair.fixed, pair.moving):
                sure[k].append(pair.confidence if pair.verdict == "pass" else 0.0)
        means = {k: float(np.mean(values)) for k, values in sure.items()}
        best = max(means.values())
        return next(k for k in self.good if means[k] >= best - AS_GOOD)

    def _farther(self) -> None:
        """Pairs with others, for images whose pair with the reference is not confirmed."""
        sure = {pair.moving for pair in self.tried if pair.fixed == self.reference and pair.verdict == "pass"}
        for k in [k for k in self.good if k != self.reference and k not in sure]:
            tried = {frozenset((pair.fixed, pair.moving)) for pair in self.tried}
            near = sorted(sure - {k}, key=lambda j: (abs(j - k), j))[:FARTHEST]
            more = [(j, k) for j in near if frozenset((j, k)) not in tried]
            self._all(more, len(self.tried) + len(more))

    # ---- results --------------------------------------------------------------------------------------------------------

    def results(self, way: Routes) -> list[Result | None]:
        """One result per image, None without a way to the reference: its map, with the figures of the pairs that it is made of.

        Where nothing bends, the map is the reconciled pose. Of maps that bend no mean is taken over several ways: on made rounds
        the median of three ways and more was no nearer to the truth than the likeliest one, and off the tissue, where all of
        them guess, it tore the map.
        """
        out: list[Result | None] = []
        for k, member in enumerate(self.members):
            if k not in way.ways:
                out.append(None)
                continue
            base, unit = self._base(member.image.grid, way.ways[k]), member.image.grid.unit
            pose = Affine(torch.from_numpy(way.poses[k]).to(torch.float64), unit, unit)
            transform = base.transform if self.config.transform == "lddmm" else pose
            out.append(dataclasses.replace(base, transform=transform, affine=pose, config=self.config))
        return out

    def _base(self, grid: Grid, steps: Sequence[Step]) -> Result:
        if not steps:
            same = Affine.identity(grid.ndim, grid.unit)
            return Result(same, grid, grid, judge.nothing(), self.config, same)
        results = [step.pair.result for step in steps]
        assert all(result is not None for result in results)
        if len(steps) == 1 and not steps[0].backwards:
            assert results[0] is not None
            return dataclasses.replace(results[0], history=[])
        if len(steps) == 1:
            return dataclasses.replace(_turned(results[0]), history=[])  # type: ignore[arg-type]
        back = [i for i, step in enumerate(steps, 1) if step.backwards]
        return timeless(compose(*results, inverse=back))  # type: ignore[arg-type]


def _turned(result: Result) -> Result:
    """A result taken backwards: from its fixed to its moving side, without weights, which lie on its fixed side."""
    return dataclasses.replace(
        result, transform=result.transform.inverse(), affine=result.affine.inverse(), fixed_grid=result.moving_grid,
        moving_grid=result.fixed_grid, weight=None, weight_grid=None, position_sd=None,
    )  # fmt: skip
