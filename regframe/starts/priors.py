"""What is likely of a pose before the data are looked at, in nats, and what evidence of a pair is worth in nats.

A search that may turn, mirror, scale and shear finds something for any pair. Two things keep it honest. Every pose pays for
how unusual it is, by priors that are stated here, each with the population it speaks of. And evidence is counted in a
unit that the pair itself sets: poses that nobody believes in, spread over all turns and shifts, show what the pair's
outlines and textures give by chance (`chance`). Candidates come from nested models, ``rigid`` at the stated size before
``similarity`` before ``affine``, and what a simpler one found stays among the candidates of a richer one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fit.frames import Increment
from ..fit.prior import FREE

AS_THEY_LIE = 0.5
"""Share of pairs whose sides lie nearly as they are to be matched; the others lie at any turn. Population: pairs that people
bring, of which sections of one block, modalities of one scan and re-exported tables lie as they should."""
TURN = math.radians(10)
"""Standard deviation of the turn of such pairs, in radians: what a hand puts on a slide, or a head in a scanner."""
AS_STATED = {True: 0.9, False: 0.5}
"""Share of pairs whose sizes are related as they say: True where both sides state a length unit, False where both are in
pixels, of which one half come from one instrument at one resolution and the others at any."""
SIZE = 0.05
"""Standard deviation of the logarithm of the size of such pairs: shrinkage by processing, one animal beside another."""
SIZE_STATED = 0.3
"""Standard deviation of the logarithm of the size where a stated length is off: swelling, a young animal, a slip of the pen."""
SIZE_RANGE = math.log(8)
"""Logarithm of the size up to which all are equally likely where pixels say nothing."""
STRETCHED = 0.2
"""Share of pairs that one side of was stretched: compressed by a knife, spread on water, imaged with unequal steps."""
STRETCH = (0.05, 0.2)
"""Standard deviation of the logarithm of the stretch (the ratio of both sizes of an affine map of a plane; in space √2 times the
root of the sum of squares of its log-sizes about their mean) of the others, and of these."""
OVERLAP = 0.3
"""Standard deviation of the share of the smaller side's tissue that the other side does not show: crops lie within, sections
of one organ show the same parts."""
QUANTILE = 0.9
"""Quantile of the evidence at poses that nobody believes in, by which a pair's unit is set: the mean is led by the few that are
right by chance."""


@dataclass(frozen=True)
class Prior:
    """How likely a pose is before its data are looked at.

    Args:
        size: what a pose's size is if both sides are right about their own, in fixed lengths per moving one; None where nobody
            says it.
        physical: whether both sides state a length unit, not pixels alone.
    """

    size: float | None
    physical: bool

    def nats(self, linear: Tensor, overlap: Tensor) -> Tensor:
        """What poses pay ``[N]``, at least 0, which an unturned one of the stated size without shear that overlaps fully does.

        A mirror is not paid for here: that organs have two like halves is no chance, see `images.UNMIRRORED`.

        Args:
            linear: linear parts of pullbacks of the fixed frame ``[N, D, D]``.
            overlap: share of the smaller side's tissue that both show ``[N]``, 0 … 1.
        """
        values = torch.linalg.svdvals(linear).log()
        stretch = (2 * (values - values.mean(dim=1, keepdim=True)).square().sum(dim=1)).sqrt()
        shear = self.of_stretch(stretch)
        return self.of_turn(linear) + self.of_size(-values.mean(dim=1)) + shear + ((1 - overlap) / OVERLAP) ** 2 / 2

    def of_turn(self, linear: Tensor) -> Tensor:
        """What the turns of ``[N, D, D]`` pay ``[N]``; those of a mirrored pose are counted from the best of the axes."""
        if linear.shape[-1] != 2:
            return self._of_turn_in_space(linear)
        handed = torch.linalg.det(linear).sign()
        angle = torch.atan2(linear[:, 1, 0] - handed * linear[:, 0, 1], handed * linear[:, 0, 0] + linear[:, 1, 1])
        # a flip about either axis is as plain as the other: half a turn apart
        angle = torch.where(handed < 0, torch.minimum(angle.abs(), math.pi - angle.abs()), angle)
        peak = AS_THEY_LIE / (TURN * math.sqrt(2 * math.pi))
        flat = (1 - AS_THEY_LIE) / (2 * math.pi)
        return math.log(peak + flat) - (peak * (-0.5 * (angle / TURN) ** 2).exp() + flat).log()

    def _of_turn_in_space(self, linear: Tensor) -> Tensor:
        """`of_turn` of ``[N, 3, 3]``: deviations of `TURN` about each axis, or any turn alike (Haar's measure)."""
        left, _, right = torch.linalg.svd(linear)
        turn = left @ right
        handed = torch.linalg.det(turn).sign()
        trace = turn.diagonal(dim1=1, dim2=2)  # the trace after flips of one axis, or of all three, of a mirrored one
        flipped = torch.maximum((trace.sum(dim=1, keepdim=True) - 2 * trace).amax(dim=1), -trace.sum(dim=1))
        cosine = (torch.where(handed < 0, flipped, trace.sum(dim=1)) - 1) / 2
        angle = cosine.clamp(-1, 1).acos()
        # a small turn by the vector w is d³w / 8π² of all turns
        peak = AS_THEY_LIE * 8 * math.pi**2 / (TURN * math.sqrt(2 * math.pi)) ** 3
        flat = 1 - AS_THEY_LIE
        return math.log(peak + flat) - (peak * (-0.5 * (angle / TURN) ** 2).exp() + flat).log()

    def of_stretch(self, log_stretch: Tensor) -> Tensor:
        """What stretches pay ``[N]``, whose logarithms are given."""
        plain, wide = (1 - STRETCHED) / STRETCH[0], STRETCHED / STRETCH[1]
        density = plain * (-0.5 * (log_stretch / STRETCH[0]) ** 2).exp()
        density = density + wide * (-0.5 * (log_stretch / STRETCH[1]) ** 2).exp()
        return math.log(plain + wide) - density.log()

    def of_size(self, log_size: Tensor) -> Tensor:
        """What sizes pay ``[N]``, whose logarithms are given."""
        if self.size is None:
            return torch.zeros_like(log_size)
        off = log_size - math.log(self.size)
        stated = AS_STATED[self.physical]
        root = math.sqrt(2 * math.pi)
        peak = stated / (SIZE * root)
        if self.physical:
            broad = (1 - stated) / (SIZE_STATED * root) * (-0.5 * (off / SIZE_STATED) ** 2).exp()
            top = peak + (1 - stated) / (SIZE_STATED * root)
        else:
            broad = torch.full_like(off, (1 - stated) / (2 * SIZE_RANGE))
            top = peak + (1 - stated) / (2 * SIZE_RANGE)
        paid: Tensor = math.log(top) - (peak * (-0.5 * (off / SIZE) ** 2).exp() + broad).log()
        return paid


def richness(model: str, ndim: int) -> float:
    """Nats that a pose pays for the numbers that its model may choose: ``as they lie``, or one of `frames.KINDS`."""
    return FREE * Increment("still" if model == "as they lie" else model, ndim, 1.0).size


def chance(evidence: Tensor) -> float:
    """The evidence that one honest nat of a pair stands for, at least 1.

    Were every pixel counted an observation of its own, evidence at poses that nobody believes in would follow an
    exponential distribution of mean 1 (half a χ² of two degrees, intensities and edges). By how much it exceeds that is
    how much too much is counted: neighbouring pixels are alike, and outlines fit each other anyhow.

    Args:
        evidence: at such poses ``[N]``, 0 where the sides do not meet.
    """
    seen = evidence[evidence > 0]
    if len(seen) < 8:
        return 1.0
    return max(1.0, float(seen.quantile(QUANTILE)) / -math.log(1 - QUANTILE))
