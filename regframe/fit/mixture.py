"""The weights W: which fixed pixels show matching tissue, by a mixture of three Gaussians fitted by EM (docs/method.md, W)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

SHARPEST = 0.1
"""Least noise with which classes are told apart, in standard deviations of the fixed image: with less, every small misfit of a
good fit would count as an artefact."""


SAMPLE = 200_000
"""Number of pixels from which the classes of a large image are estimated; every pixel is then classified."""


@dataclass
class Mixture:
    """Three classes of fixed pixels: matching tissue, background, artefact; isotropic Gaussians over the fixed channels.

    ``update`` does one E step and one M step, ``matching`` one more E step for every pixel. The artefact class is kept broad
    (at least twice the image's own spread), and the background at least as broad as the matching noise, so that neither can
    claim tissue that matches.

    Attributes:
        background: mean colour of the background ``[C_f]``.
        artefact: mean colour of the artefacts ``[C_f]``.
        spread: standard deviation of the fixed image per channel (rms over the channels).
        sigma_match: standard deviation of matching pixels about the contrast-mapped moving image.
        sigma_background: standard deviation of the background per channel.
        sigma_artefact: standard deviation of the artefacts per channel.
        fractions: mixing weights of the three classes, in this order.
        history: the mixing weights after each update.
    """

    background: Tensor  # [C_f]
    artefact: Tensor  # [C_f]
    spread: float  # standard deviation of the fixed image per channel, rms over the channels
    sigma_match: float
    sigma_background: float
    sigma_artefact: float
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
    history: list[tuple[float, float, float]] = field(default_factory=list)

    @classmethod
    def start(cls, fixed: Tensor, predicted: Tensor, weight: Tensor) -> Mixture:
        """First guess: the background is the flattest part of the fixed image, artefacts have its mean and a broad spread."""
        flat, guess, w = _sample(fixed, predicted, weight)
        c = flat.shape[0]
        total = w.sum().clamp(min=1e-12)
        mean = (flat * w).sum(dim=1) / total
        spread = float(((((flat - mean[:, None]) ** 2) * w).sum() / (total * c)).sqrt().clamp(min=1e-6))
        sigma = float(((((flat - guess) ** 2) * w).sum() / (total * c)).sqrt().clamp(min=1e-3 * spread))
        background = flattest(fixed, weight)
        return cls(background, mean, spread, sigma, max(sigma, 0.3 * spread), 2.0 * spread)

    def update(self, fixed: Tensor, predicted: Tensor, weight: Tensor) -> None:
        """One E step and one M step.

        Args:
            fixed: ``[C_f, *S]``.
            predicted: the contrast-mapped moving image ``[C_f, *S]``.
            weight: weight of each pixel ``[*S]``.
        """
        flat, guess, w = _sample(fixed, predicted, weight)
        c = flat.shape[0]
        log_p, squares = self._classes(flat, guess)
        mass = torch.softmax(torch.stack(log_p), dim=0) * w  # [3, N]
        total = mass.sum(dim=1) + 1e-9  # [3]
        # mixing weights with a weak Dirichlet prior in favour of matching tissue
        usual = torch.tensor([0.9, 0.05, 0.05], dtype=total.dtype, device=total.device)
        counts = total + 0.1 * total.sum() * usual
        fractions = (counts / counts.sum()).tolist()
        self.fractions = (fractions[0], fractions[1], fractions[2])
        self.sigma_match = max(float((mass[0] @ squares[0] / (c * total[0])).sqrt()), 1e-3 * self.spread)
        self.background = flat @ mass[1] / total[1]
        sigma_b = float((mass[1] @ squares[1] / (c * total[1])).sqrt())
        self.sigma_background = min(max(sigma_b, self.sigma_match, 0.1 * self.spread), self.spread)
        self.artefact = flat @ mass[2] / total[2]
        self.sigma_artefact = max(2.0 * self.spread, 3.0 * self.sigma_match)
        self.history.append(self.fractions)

    def matching(self, fixed: Tensor, predicted: Tensor) -> Tensor:
        """Posterior probability ``[*S]`` that a pixel shows matching tissue."""
        c = fixed.shape[0]
        (match, background, artefact), _ = self._classes(fixed.reshape(c, -1), predicted.reshape(c, -1))
        odds = background.sub_(match).exp_().add_(artefact.sub_(match).exp_())  # odds against the matching class, [N]
        return odds.add_(1.0).reciprocal_().reshape(fixed.shape[1:])

    def _classes(self, flat: Tensor, guess: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Log-likelihood and squared distance ``[N]`` of pixels ``[C, N]`` under each of the three classes."""
        c = flat.shape[0]
        judged = max(self.sigma_match, SHARPEST * self.spread)
        sigmas = (judged, max(self.sigma_background, judged), self.sigma_artefact)
        log_p, squares = [], []
        for mean, sigma, share in zip(
            (guess, self.background[:, None], self.artefact[:, None]), sigmas, self.fractions, strict=True
        ):
            square = torch.sub(flat, mean).square_()
            square = square[0] if c == 1 else square.sum(dim=0)
            squares.append(square)
            constant = flat.new_full((), math.log(max(share, 1e-30)) - c * math.log(sigma))
            log_p.append(torch.add(constant, square, alpha=-1 / (2 * sigma**2)))
        return log_p, squares


def _sample(fixed: Tensor, predicted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """About `SAMPLE` pixels of images ``[C, *S]``, ``[C, *S]`` and a weight ``[*S]``, evenly spaced in memory, flattened."""
    step = max(1, weight.numel() // SAMPLE)
    while step > 1 and math.gcd(step, weight.shape[-1]) > 1:  # coprime to the width, to sample all columns
        step -= 1
    c = fixed.shape[0]
    return fixed.reshape(c, -1)[:, ::step], predicted.reshape(c, -1)[:, ::step], weight.reshape(-1)[::step]


def flattest(fixed: Tensor, weight: Tensor) -> Tensor:
    """Colour ``[C]`` of the flattest part of an image: the tenth of the trusted pixels where it changes least.

    Of these pixels the mean is taken, without those of another colour than most.
    """
    c, shape = fixed.shape[0], fixed.shape[1:]
    flat, w = fixed.reshape(c, -1), weight.reshape(-1)
    places = torch.arange(0, w.numel(), max(1, w.numel() // SAMPLE), device=w.device)
    places = places[w[places] > 0]
    if len(places) == 0:
        return flat.mean(dim=1)
    change = flat.new_zeros(len(places))
    stride = 1
    for n in reversed(shape):
        if n > 2:
            index = places // stride % n
            # at the border of an image nothing is known of the change across it
            within = (index > 0) & (index < n - 1)
            step = torch.where(within, stride, 0)
            change += (flat[:, places + step] - flat[:, places - step]).abs().sum(dim=0)
        stride *= n
    flattest = change <= change.kthvalue(max(1, len(places) // 10)).values
    found = flat[:, places[flattest]]
    off = (found - found.median(dim=1, keepdim=True).values).abs().sum(dim=0)
    return found[:, off <= 3 * off.median()].mean(dim=1)
