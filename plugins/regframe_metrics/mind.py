"""``mind``: self-similarity descriptors, which say how a place resembles its surroundings and not how bright it is."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import TINY, ImageMetric, Memory, Side, box_sum, known, whole

FLAT = 0.01
"""Floor that is added to the variance V of every descriptor, in mean patch distances of the image: 1 % of it, so that noise in a
flat place does not look like structure."""

Index = tuple[slice, ...]
"""A cut out of a canvas ``[*S]``."""


class _Direction(NamedTuple):
    """One of the vectors v by which the patches of a pair are apart, as cuts of a canvas ``[*S]``.

    ``here`` and ``there`` cut out y and y + v; ``centres`` the pixels x that the pairs found at these y belong to, two each.
    """

    here: Index
    there: Index
    centres: tuple[Index, Index]


class _Fixed(NamedTuple):
    """All that depends on the weight and the fixed side alone.

    Args:
        weights: per direction, the weight of each pair of pixels.
        masses: per direction, the weight of each pair of patches.
        per_mass: the inverse weight of all pairs of a pixel ``[*S]``.
        share: weight of each pixel in the value ``[*S]``.
        components: of the fixed side's descriptors, two per direction.
    """

    weights: list[Tensor]
    masses: list[Tensor]
    per_mass: Tensor
    share: Tensor
    components: list[list[Tensor]]


class MIND(ImageMetric):
    """Mean squared difference of self-similarity descriptors (MIND-SSC): how each place resembles its own surroundings.

    Around a pixel x lie 4 (in 3D 6) neighbours at ``dilation`` pixels along the axes. Two of them √2 dilations apart are a
    pair: 4 in 2D, 12 in 3D. With d_k the distance of pair k's patches, a descriptor has one component per pair::

        s_k(x) = exp(-d_k(x) / V(x)),   d_k = mean over the patch of Σ_c (I_c - I_c shifted)²,   V = mean_k d_k + floor
        value  = Σ_x W(x) Σ_k m_k(x) (s_k of warped - s_k of fixed)² / Σ_x W(x) Σ_k m_k(x)

    d is blind to polarity and d/V to contrast, both place by place; the floor is `FLAT` of the image's mean patch distance.
    Any channels on either side: they are standardised, and their distances add up within a side. In d a pair of pixels weighs
    the product of their W (over the largest W), and m_k, the weight of pair k in both means over k, is the sum of that over the
    patch: hidden pixels are in nobody's patch. Heinrich et al. 2013, "Towards realtime multimodal fusion for image-guided
    interventions using self-similarities", but without the division by the largest component, which
    has a kink.

    Pairs that lie along one diagonal share their pixel differences: 2 maps in 2D and 6 in 3D are filtered, not 4 and 12. The
    descriptors of the fixed side are made anew only where it or the weight has changed.

    Args:
        radius: half width of a patch in pixels.
        dilation: distance of the neighbours in pixels.
    """

    name = "mind"

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        super().__init__()
        self.radius = whole("radius", radius, 0, " pixels")
        self.dilation = whole("dilation", dilation, 1, " pixel")
        self._floors = (1.0, 1.0)
        self._memory: Memory[_Fixed] = Memory()

    def _learn(self, fixed: Side, moving: Side) -> None:
        super()._learn(fixed, moving)
        assert self._scales is not None
        self._memory = Memory()
        floor_f, floor_m = (self._mean_distance(*pair) for pair in zip((fixed, moving), self._deviations, strict=True))
        self._floors = FLAT * floor_f, FLAT * floor_m

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """0 for descriptors that agree everywhere; at most 1."""
        self._check(warped, fixed, weight)
        self._both_scales(warped, fixed, weight)
        deviation_f, deviation_m = self._deviations
        memory = self._memory.get((fixed, weight), lambda: self._describe(fixed.detach(), weight.detach(), deviation_f))
        return known(warped, lambda asked: self._compute(warped.detach(), deviation_m, memory, asked))

    def _directions(self, shape: tuple[int, ...]) -> list[_Direction]:
        """The vectors (d, d) and (d, -d) in each plane of two axes i and j along which the canvas is longer than d.

        The neighbours of x that lie (d, d) apart are those at -i and +j, and those at -j and +i; (d, -d) apart are those at +j
        and +i, and those at -i and -j.
        """
        d = self.dilation
        out = []
        for i, j in itertools.combinations(range(len(shape)), 2):
            if min(shape[i], shape[j]) <= d:
                continue
            cuts: dict[str, Index] = {}
            for a, b in itertools.product("<>", repeat=2):  # all but the last, all but the first d of either axis
                index = [slice(0, n) for n in shape]
                for axis, end in ((i, a), (j, b)):
                    index[axis] = slice(0, shape[axis] - d) if end == "<" else slice(d, shape[axis])
                cuts[a + b] = tuple(index)
            out.append(_Direction(cuts["<<"], cuts[">>"], (cuts["><"], cuts["<>"])))
            out.append(_Direction(cuts["<>"], cuts["><"], (cuts["<<"], cuts[">>"])))
        return out

    def _mean_distance(self, side: Side, deviation: list[float]) -> float:
        """Mean of ``Σ_c (I_c - I_c shifted)²`` over the pixel pairs of all directions; 1 where there is no difference."""
        with torch.no_grad():
            data = side.data.detach() if side.data.is_floating_point() else side.data.to(torch.float32)
            weight = torch.ones_like(data[0]) if side.weight is None else side.weight.detach().to(data)
            above, below = 0.0, 0.0
            for direction in self._directions(tuple(weight.shape)):
                pairs = weight[direction.here] * weight[direction.there]
                distance = _distance(data, deviation, direction)
                above += float((pairs * distance).sum(dtype=torch.float64))
                below += float(pairs.sum(dtype=torch.float64))
            return above / below if above > 0 else 1.0

    def _describe(self, fixed: Tensor, weight: Tensor, deviation: list[float]) -> _Fixed:
        """The weights of all pairs, and the descriptors of the fixed side."""
        with torch.no_grad():
            w = weight.to(fixed)
            top = w.max() if w.numel() else w.sum()
            relative = w / top.clamp_min(TINY)  # [*S] in 0 … 1
            weights, masses = [], []
            mass = torch.zeros_like(w)  # [*S]
            for direction in self._directions(tuple(w.shape)):
                weights.append(relative[direction.here] * relative[direction.there])
                masses.append(box_sum(weights[-1], self.radius))
                for centre in direction.centres:
                    mass[centre] += masses[-1]
            total = (w * mass).sum(dtype=torch.float64).clamp_min(TINY)
            known = _Fixed(weights, masses, 1 / mass.clamp_min(TINY), w / total.to(w), [])
            sums, spread = self._patches(fixed, deviation, self._floors[0], known)
            for direction, patches, mass in zip(self._directions(tuple(w.shape)), sums, masses, strict=True):
                distance = patches / mass.clamp_min(TINY)
                known.components.append([torch.exp(-distance / spread[centre]) for centre in direction.centres])
            return known

    def _patches(
        self, data: Tensor, deviation: list[float], floor: float, fixed: _Fixed
    ) -> tuple[list[Tensor], Tensor]:
        """Per direction the weighted sum of squared differences over each patch, and V ``[*S]``."""
        directions = self._directions(tuple(data.shape[1:]))
        variance = torch.zeros_like(fixed.per_mass)
        sums = []
        for direction, pairs in zip(directions, fixed.weights, strict=True):
            sums.append(box_sum(_distance(data, deviation, direction).mul_(pairs), self.radius))
            for centre in direction.centres:
                variance[centre] += sums[-1]
        return sums, variance.mul_(fixed.per_mass).add_(floor)

    def _compute(
        self, data: Tensor, deviation: list[float], fixed: _Fixed, asked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Value and, if asked for, gradient ``[C, *S]`` in ``data`` ``[C, *S]``.

        With q_k = 2 W (s_k - f_k) s_k / V, the derivative in the sum over the patches of pair k is -q_k + Σ_l q_l d_l m_l / V M,
        where M is the sum of all m: the second part comes through V. From there it goes back through box and square.
        """
        directions = self._directions(tuple(data.shape[1:]))
        sums, spread = self._patches(data, deviation, self._floors[1], fixed)
        value = torch.zeros((), dtype=torch.float64, device=data.device)
        through = torch.zeros_like(spread)  # [*S]
        slopes = []
        for direction, patches, mass, components in zip(directions, sums, fixed.masses, fixed.components, strict=True):
            distance = patches / mass.clamp_min(TINY)
            slope = torch.zeros_like(patches) if asked else None
            for centre, target in zip(direction.centres, components, strict=True):
                v = spread[centre]
                component = torch.div(distance, v).neg_().exp_()
                residual = component - target
                pulled = residual * fixed.share[centre]
                value += (residual.mul_(pulled).mul_(mass)).sum(dtype=torch.float64)
                if slope is not None:
                    q = pulled.mul_(component).div_(v).mul_(2)
                    slope -= q
                    through[centre] += q.mul_(patches)
            if slope is not None:
                slopes.append(slope)
        if not asked:
            return value.to(data.dtype), None
        through.div_(spread).mul_(fixed.per_mass)
        gradient = torch.zeros_like(data)
        squares = [2 / (d * d) for d in deviation]
        for direction, slope, pairs in zip(directions, slopes, fixed.weights, strict=True):
            for centre in direction.centres:
                slope += through[centre]
            slope = box_sum(slope, self.radius).mul_(pairs)
            for c, square in enumerate(squares):
                change = (data[c][direction.here] - data[c][direction.there]).mul_(slope).mul_(square)
                gradient[c][direction.here] += change
                gradient[c][direction.there] -= change
        return value.to(data.dtype), gradient


def _distance(data: Tensor, deviation: list[float], direction: _Direction) -> Tensor:
    """``Σ_c ((I_c(y) - I_c(y + v)) / deviation_c)²`` of ``[C, *S]``, for every y that has a y + v."""
    out = torch.zeros_like(data[0][direction.here])
    for channel, factor in zip(data, [1 / d for d in deviation], strict=True):
        change = channel[direction.here] - channel[direction.there]
        out.addcmul_(change, change, value=factor**2)
    return out
