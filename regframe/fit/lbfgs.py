"""Limited-memory BFGS for an energy in well-scaled variables; no step size has to be set.

Source: Nocedal & Wright, Numerical Optimization, 2nd ed., algorithms 7.4 (two loops) and 3.1 (backtracking), with the
first step and every later one bounded by the movement it causes, in pixels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PATIENCE = 5
"""Number of steps that together must gain something for a fit to continue: one or two steps may gain little where L-BFGS meets
new curvature."""
TRIALS = 12
"""Largest number of points tried along one direction; each is at most 0.6 times as far as the one before."""
ENOUGH = 1e-4
"""Share of the decrease predicted by the slope that a step must achieve: c₁ of Nocedal & Wright, at their value."""

FloatArray = NDArray[np.float64]
Evaluate = Callable[[Tensor], tuple[float | Tensor, Tensor]]
"""Function from the variables ``[P]`` to the energy, a number or a tensor of one, and its gradient ``[P]``; a point whose energy
is not finite is rejected."""


@dataclass
class Outcome:
    """Where a minimisation ended and why.

    Args:
        x: variables ``[P]`` of the lowest energy seen.
        energy: the energy there.
        iterations: steps taken.
        reason: ``converged`` (the last steps moved nothing), ``flat`` (no lower point along the descent direction),
            ``slow`` (out of iterations while the last steps gained next to nothing), ``max_iter`` (out of iterations
            while they still gained), or ``diverged`` (the energy was not finite at the start).
    """

    x: Tensor
    energy: float
    iterations: int
    reason: str


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of ``[P]`` and ``[P]`` in float64, on their device."""
    return torch.dot(a.to(torch.float64), b.to(torch.float64))


def numbers(*values: float | Tensor) -> list[float]:
    """Numbers and tensors of one element, in order; those on another device than the CPU are read back together."""
    far = [v.detach().reshape(()).to(torch.float64) for v in values if isinstance(v, Tensor) and not v.is_cpu]
    read = iter(torch.stack(far).tolist() if far else ())
    return [next(read) if isinstance(v, Tensor) and not v.is_cpu else float(v) for v in values]


def _shape(step: Tensor, change: Tensor) -> list[Tensor]:
    """The inner product of a step ``[P]`` and the change of the gradient over it ``[P]``, and the length of each, in float64."""
    return [dot(step, change), *(torch.linalg.vector_norm(row, dtype=torch.float64) for row in (step, change))]


class _History:
    """The last pairs of steps and gradient changes, and the product of their inverse Hessian with a gradient.

    All inner products between the pairs are kept. A direction then costs one pass over the pairs for their products with the
    gradient and one for the final sum; the two loops run on numbers (Chen et al. 2014, "Large-scale L-BFGS using MapReduce").
    The pairs stay on the device of the variables; the products with a new pair are read back along with those of the gradient.
    """

    def __init__(self, memory: int, like: Tensor) -> None:
        self.memory = memory
        self._rows = like.new_zeros((2 * memory, like.numel()))  # [2M, P]: M steps, then M gradient changes
        self._products = np.zeros((2 * memory, 2 * memory))
        self._order: list[int] = []  # slots, oldest first
        self._new: dict[int, Tensor] = {}  # rows whose products with the others are not known yet

    def clear(self) -> None:
        """Forget all pairs."""
        self._order.clear()
        self._new = {}

    def __bool__(self) -> bool:
        return bool(self._order)

    def _with(self, *rows: Tensor) -> list[FloatArray]:
        """Inner products ``[2 memory]`` of each of ``rows`` with every row; meaningless for rows that are not in use."""
        found: FloatArray = torch.stack([torch.mv(self._rows, row) for row in rows]).cpu().numpy().astype(np.float64)
        return list(found)

    def add(self, step: Tensor, change: Tensor, shape: Sequence[float] | None = None) -> None:
        """Remember a pair, unless the energy does not curve upwards along the step.

        Args:
            step: ``[P]``.
            change: that of the gradient ``[P]``.
            shape: `_shape` of both, where it has been read back already.
        """
        curvature, *norms = numbers(*_shape(step, change)) if shape is None else shape
        if not curvature > 1e-10 * norms[0] * norms[1]:
            return
        m = self.memory
        slot = len(self._order) if len(self._order) < m else self._order.pop(0)
        for k, row in ((slot, step), (m + slot, change)):
            self._rows[k] = self._new[k] = row
        self._order.append(slot)

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian times ``gradient``."""
        if not self._order:
            return -gradient
        m, products = self.memory, self._products
        with_gradient, *with_new = self._with(gradient, *self._new.values())
        for k, found in zip(self._new, with_new, strict=True):
            products[k] = products[:, k] = found
        self._new = {}
        weights, scale = np.zeros(2 * m), 1.0  # the vector is scale * (gradient + Σ weights * rows)
        alphas = []
        for k in reversed(self._order):
            alpha = (with_gradient[k] + weights @ products[k]) / products[k, m + k]
            weights[m + k] -= alpha
            alphas.append(alpha)
        last = self._order[-1]
        scale = products[last, m + last] / products[m + last, m + last]
        weights *= scale
        for k, alpha in zip(self._order, reversed(alphas), strict=True):
            beta = (scale * with_gradient[m + k] + weights @ products[m + k]) / products[k, m + k]
            weights[k] += alpha - beta
        out = torch.mv(self._rows.T, torch.from_numpy(weights).to(gradient, non_blocking=True))
        return out.add_(gradient, alpha=scale).neg_()


@dataclass(frozen=True)
class Descent:
    """Limits of a minimisation; distances in the unit of the ``movement`` function, pixels of the level for images.

    Args:
        max_iter: largest number of steps.
        tolerance: the minimisation has converged when three steps in a row move less than this.
        memory: number of pairs of steps and gradient changes that are kept.
        max_move: largest movement of any step.
        first_move: largest movement of the first step, for which no curvature is known.
        first_step: largest first step as a multiple of the gradient, where the curvature is known to be about 1 along all
            variables; None where it is not.
        worthwhile: energy that `PATIENCE` steps must gain together; the minimisation has converged when they gain less.
    """

    max_iter: int
    tolerance: float
    memory: int = 12
    max_move: float = 8.0
    first_move: float = 1.0
    first_step: float | None = None
    worthwhile: float = 0.0


@dataclass(frozen=True)
class _Trial:
    """The last point tried along a direction.

    Args:
        x: the point ``[P]``.
        energy: the energy there.
        gradient: the gradient there ``[P]``.
        t: distance along the direction, as a multiple of it.
        accepted: whether the energy is low enough.
        pair: the step to it, and the change of the gradient.
        shape: `_shape` of that pair.
    """

    x: Tensor
    energy: float
    gradient: Tensor
    t: float
    accepted: bool
    pair: tuple[Tensor, Tensor]
    shape: list[float]


class _Point(NamedTuple):
    """A point ``[P]``, the energy there and its gradient ``[P]``."""

    x: Tensor
    energy: float
    gradient: Tensor


class _Way(NamedTuple):
    """A direction ``[P]``, the derivative of the energy along it, and the movement that all of it would cause, in pixels."""

    direction: Tensor
    slope: float
    moved: float


def _backtrack(evaluate: Evaluate, at: _Point, way: _Way, t: float, least: float) -> _Trial:
    """Shorten a step along a direction until the energy is low enough (Nocedal & Wright, algorithm 3.1).

    All numbers that a trial is judged by, and its pair of the history, are read from the device at once.

    Args:
        evaluate: function that returns energy and gradient.
        at: the current point.
        way: the direction, whose slope is negative.
        t: first step to try, as a multiple of the direction.
        least: movement, in pixels, below which no step is tried.
    """
    (x, energy, gradient), (direction, slope, moved) = at, way
    for _ in range(TRIALS):
        trial = x + t * direction
        value, new_gradient = evaluate(trial)
        pair = (trial - x, new_gradient - gradient)
        new_energy, *shape = numbers(value, *_shape(*pair))
        if math.isfinite(new_energy) and new_energy <= energy + ENOUGH * t * slope:
            return _Trial(trial, new_energy, new_gradient, t, True, pair, shape)
        if math.isfinite(new_energy):  # minimum of the parabola through both values and the slope
            shrink = -slope * t / (2 * (new_energy - energy - slope * t))
            t *= min(max(shrink, 0.1), 0.6)
        else:
            t *= 0.1
        if t * moved < least:
            break
    return _Trial(trial, new_energy, new_gradient, t, False, pair, shape)


def minimize(
    evaluate: Evaluate,
    x: Tensor,
    movement: Callable[[Tensor], float | Tensor],
    descent: Descent,
    callback: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Minimise ``evaluate`` from ``x`` ``[P]``, on the device of ``x``.

    Args:
        evaluate: function that returns energy and gradient.
        x: start ``[P]``.
        movement: function from a change of the variables to the largest distance by which it moves a pixel, in pixels of the
            level.
        descent: limits on steps and number of steps.
        callback: called after each step with its number (from 1) and the energy.
    """
    value, gradient = evaluate(x)
    (energy,) = numbers(value)
    if not (math.isfinite(energy) and bool(torch.isfinite(gradient).all())):
        return Outcome(x, energy, 0, "diverged")
    history = _History(descent.memory, x)
    first_move, first_step = descent.first_move, descent.first_step
    quiet = 0
    past = deque([energy], maxlen=PATIENCE + 1)
    for iteration in range(1, descent.max_iter + 1):
        direction = history.direction(gradient)
        slope, moved = numbers(dot(direction, gradient), movement(direction))
        if not slope < 0:  # the curvature pairs have gone stale: start again from steepest descent
            history.clear()
            direction = -gradient
            slope, moved = numbers(dot(direction, gradient), movement(direction))
            if not slope < 0:
                return Outcome(x, energy, iteration - 1, "converged")
        if history:
            t = min(1.0, descent.max_move / max(moved, 1e-30))
        else:
            t = min(math.inf if first_step is None else first_step, first_move / max(moved, 1e-30))
        way = _Way(direction, slope, moved)
        trial = _backtrack(evaluate, _Point(x, energy, gradient), way, t, 0.01 * descent.tolerance)
        if not trial.accepted:
            if history:
                history.clear()
                first_move = max(descent.tolerance, min(first_move, trial.t * moved * 4))
                first_step = None if first_step is None else min(first_step, 4 * trial.t)
                quiet += 1
                if quiet < 2:
                    continue
                return Outcome(x, energy, iteration, "converged")
            return Outcome(x, energy, iteration, "flat")
        history.add(*trial.pair, trial.shape)
        x, energy, gradient = trial.x, trial.energy, trial.gradient
        if callback is not None:
            callback(iteration, energy)
        quiet = quiet + 1 if trial.t * moved < descent.tolerance else 0
        past.append(energy)
        if quiet >= 3 or (len(past) > PATIENCE and past[0] - energy < descent.worthwhile):
            return Outcome(x, energy, iteration, "converged")
    slow = len(past) > PATIENCE and past[0] - energy < 10 * descent.worthwhile
    return Outcome(x, energy, descent.max_iter, "slow" if slow else "max_iter")
