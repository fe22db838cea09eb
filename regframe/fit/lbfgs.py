"""Limited-memory BFGS for an energy in well-scaled variables; no step size has to be set.

Source: Nocedal & Wright, Numerical Optimization, 2nd ed., algorithms 7.4 (two loops) and 3.1 (backtracking), with the
first step and every later one bounded by the movement it causes, in pixels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

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
Evaluate = Callable[[Tensor], tuple[float, Tensor]]
"""Function from the variables ``[P]`` to the energy and its gradient ``[P]``; a point whose energy is not finite is rejected."""


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


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of ``[P]`` and ``[P]`` in float64."""
    return float(torch.dot(a.to(torch.float64), b.to(torch.float64)))


class _History:
    """The last pairs of steps and gradient changes, and the product of their inverse Hessian with a gradient.

    All inner products between the pairs are kept. A direction then costs one pass over the pairs for their products with the
    gradient and one for the final sum; the two loops run on numbers (Chen et al. 2014, "Large-scale L-BFGS using MapReduce").
    """

    def __init__(self, memory: int, like: Tensor) -> None:
        self.memory = memory
        self._rows = torch.zeros(
            (2 * memory, like.numel()), dtype=like.dtype
        )  # [2M, P]: M steps, then M gradient changes
        self._products = np.zeros((2 * memory, 2 * memory))
        self._order: list[int] = []  # slots, oldest first

    def clear(self) -> None:
        """Forget all pairs."""
        self._order.clear()

    def __bool__(self) -> bool:
        return bool(self._order)

    def _with(self, row: Tensor) -> FloatArray:
        """Inner products ``[2 memory]`` of ``row`` with every row; meaningless for rows that are not in use."""
        out: FloatArray = torch.mv(self._rows, row).numpy().astype(np.float64)
        return out

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a pair, unless the energy does not curve upwards along the step."""
        norms = [float(torch.linalg.vector_norm(row, dtype=torch.float64)) for row in (step, change)]
        if not dot(step, change) > 1e-10 * norms[0] * norms[1]:
            return
        m = self.memory
        slot = len(self._order) if len(self._order) < m else self._order.pop(0)
        self._rows[slot], self._rows[m + slot] = step, change
        for k, row in ((slot, step), (m + slot, change)):
            self._products[k] = self._products[:, k] = self._with(row)
        self._order.append(slot)

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian times ``gradient``."""
        if not self._order:
            return -gradient
        m, products = self.memory, self._products
        with_gradient = self._with(gradient)
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
        out = torch.mv(self._rows.T, torch.from_numpy(weights).to(gradient.dtype))
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
    """

    x: Tensor
    energy: float
    gradient: Tensor
    t: float
    accepted: bool


def _backtrack(
    evaluate: Evaluate,
    x: Tensor,
    energy: float,
    direction: Tensor,
    slope: float,
    t: float,
    moved: float,
    least: float,
) -> _Trial:
    """Shorten the step ``t`` along ``direction`` until the energy is low enough (Nocedal & Wright, algorithm 3.1).

    Args:
        evaluate: function that returns energy and gradient.
        x: the current point ``[P]``.
        energy: the energy at ``x``.
        direction: ``[P]``.
        slope: derivative of the energy along ``direction``, negative.
        t: first step to try, as a multiple of ``direction``.
        moved: movement that the whole of ``direction`` would cause, in pixels.
        least: movement, in pixels, below which no step is tried.
    """
    for _ in range(TRIALS):
        trial = x + t * direction
        new_energy, new_gradient = evaluate(trial)
        if math.isfinite(new_energy) and new_energy <= energy + ENOUGH * t * slope:
            return _Trial(trial, new_energy, new_gradient, t, True)
        if math.isfinite(new_energy):  # minimum of the parabola through both values and the slope
            shrink = -slope * t / (2 * (new_energy - energy - slope * t))
            t *= min(max(shrink, 0.1), 0.6)
        else:
            t *= 0.1
        if t * moved < least:
            break
    return _Trial(trial, new_energy, new_gradient, t, False)


def minimize(
    evaluate: Evaluate,
    x: Tensor,
    movement: Callable[[Tensor], float],
    descent: Descent,
    callback: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Minimise ``evaluate`` from ``x`` ``[P]``.

    Args:
        evaluate: function that returns energy and gradient.
        x: start ``[P]``.
        movement: function from a change of the variables to the largest distance by which it moves a pixel, in pixels of the
            level.
        descent: limits on steps and number of steps.
        callback: called after each step with its number (from 1) and the energy.
    """
    energy, gradient = evaluate(x)
    if not (math.isfinite(energy) and bool(torch.isfinite(gradient).all())):
        return Outcome(x, energy, 0, "diverged")
    history = _History(descent.memory, x)
    first_move, first_step = descent.first_move, descent.first_step
    quiet = 0
    past = deque([energy], maxlen=PATIENCE + 1)
    for iteration in range(1, descent.max_iter + 1):
        direction = history.direction(gradient)
        slope = dot(direction, gradient)
        if not slope < 0:  # the curvature pairs have gone stale: start again from steepest descent
            history.clear()
            direction = -gradient
            slope = dot(direction, gradient)
            if not slope < 0:
                return Outcome(x, energy, iteration - 1, "converged")
        moved = movement(direction)
        if history:
            t = min(1.0, descent.max_move / max(moved, 1e-30))
        else:
            t = min(math.inf if first_step is None else first_step, first_move / max(moved, 1e-30))
        trial = _backtrack(evaluate, x, energy, direction, slope, t, moved, 0.01 * descent.tolerance)
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
        history.add(trial.x - x, trial.gradient - gradient)
        x, energy, gradient = trial.x, trial.energy, trial.gradient
        if callback is not None:
            callback(iteration, energy)
        quiet = quiet + 1 if trial.t * moved < descent.tolerance else 0
        past.append(energy)
        if quiet >= 3 or (len(past) > PATIENCE and past[0] - energy < descent.worthwhile):
            return Outcome(x, energy, iteration, "converged")
    slow = len(past) > PATIENCE and past[0] - energy < 10 * descent.worthwhile
    return Outcome(x, energy, descent.max_iter, "slow" if slow else "max_iter")
