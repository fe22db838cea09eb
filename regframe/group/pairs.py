"""Two images of a group, registered."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from ..config import Config
from ..registration import register
from ..result import Result
from ..stack.posegraph import Floats, carry, rms
from ..strangers import PluginFault
from .members import Member

UNSURE = {"pass": 0.9, "warn": 0.5}
"""Confidence that is assumed of a pair whose registration gives none (a plug-in's solver), by its verdict."""


@dataclass(frozen=True)
class Pair:
    """A pair that was tried.

    Args:
        fixed: number of the image that stayed where it is.
        moving: number of the image that was brought onto it.
        result: what `regframe.register` found; None where it found nothing.
        error: why there is no result, or ``""``.
    """

    fixed: int
    moving: int
    result: Result | None
    error: str = ""

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return "fail" if self.result is None else self.result.verdict

    @property
    def confidence(self) -> float:
        """How sure the map is, 0 … 1; 0 where it failed."""
        if self.result is None or self.verdict == "fail":
            return 0.0
        known = self.result.confidence
        return UNSURE[self.verdict] if known is None else known

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is, one sentence each."""
        return (self.error,) if self.result is None else self.result.reasons


def fit(members: list[Member], fixed: int, moving: int, config: Config) -> Pair:
    """Register image ``moving`` to image ``fixed``; a pair that cannot be registered says why.

    The clock of the run is left out of its figures, so that a run that was interrupted ends with the same bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pair are in its verdict
            result = register(members[fixed].image, members[moving].image, config=config)
    except PluginFault:  # it would fail on every pair
        raise
    except ValueError as error:
        return Pair(fixed, moving, None, str(error))
    return Pair(fixed, moving, timeless(result))


def timeless(result: Result) -> Result:
    """A result without the seconds that it took."""
    return dataclasses.replace(result, metrics=result.metrics | {"seconds": 0.0})


def matrix_of(result: Result, probes: Floats, rigid: bool) -> Floats:
    """The affine map ``[3, 3]`` nearest to a map over positions ``[N, 2]`` of its moving side; a rigid one where ``rigid``."""
    there = result.transform.points(torch.from_numpy(probes)).numpy()
    return nearest(probes, there, rigid)


def nearest(source: Floats, target: Floats, rigid: bool) -> Floats:
    """The affine map ``[D+1, D+1]`` that takes positions ``[N, D]`` nearest to others; rigid, or mirrored, if ``rigid``."""
    middle, onto = source.mean(axis=0), target.mean(axis=0)
    if rigid:
        u, _, vt = np.linalg.svd((target - onto).T @ (source - middle))
        linear = u @ vt
    else:
        linear = np.linalg.lstsq(source - middle, target - onto, rcond=None)[0].T
    out = np.eye(source.shape[1] + 1)
    out[:-1, :-1], out[:-1, -1] = linear, onto - linear @ middle
    return out


def bend_of(result: Result, probes: Floats) -> float:
    """Root mean square departure of a map from the affine map nearest to it, in the fixed unit."""
    there = result.transform.points(torch.from_numpy(probes)).numpy()
    return rms(there - carry(matrix_of(result, probes, rigid=False), probes))
