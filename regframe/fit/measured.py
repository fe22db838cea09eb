"""What a metric returned, checked before a fit descends it: whoever wrote it is told what is wrong in a metric's words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..strangers import PluginFault, words

FLOOR = 1e-5
"""What is added to a mismatch before its logarithm is taken, in the metric's own unit: an exact fit has a finite energy."""


def scalar(metric: Any, value: Any) -> Tensor:
    """The value of a metric as a scalar with a graph.

    Args:
        metric: the metric, for the message.
        value: what it returned.

    Raises ValueError where it is anything else than a tensor of one element, of a floating dtype, with a gradient.
    """
    if not isinstance(value, Tensor):
        got = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise _wrong(metric, "a scalar tensor", got, "compute it with torch throughout, and return the weighted mean")
    if value.numel() != 1:
        raise _wrong(
            metric, "a scalar tensor", f"one of shape {list(value.shape)}", "return the weighted mean over everything"
        )
    if not value.dtype.is_floating_point:
        raise _wrong(metric, "a value of a floating dtype", str(value.dtype), "do not round or count in it")
    if not value.requires_grad:
        advice = "use no .item(), .detach(), numpy or torch.no_grad on the way from warped to the value"
        raise _wrong(metric, "a value that is differentiable in warped", "one without a gradient", advice)
    return value.reshape(())


def gradients(value: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a value in its leaves; zeros in those that it does not depend on."""
    found = torch.autograd.grad(value, list(leaves), allow_unused=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True))


def check_finite(metric: Any, value: float, found: Sequence[Tensor]) -> None:
    """ValueError where the first value of a metric in a fit, or one of its gradients, is not a number."""
    if math.isnan(value) or any(bool(g.isnan().any()) for g in found):
        what = "value" if math.isnan(value) else "gradient"
        advice = "clamp what is divided by, and add to what is under a root or a logarithm"
        raise _wrong(metric, f"a finite {what} where the fit begins", "nan", advice)


def check_positive(metric: Any, value: float) -> None:
    """ValueError for a value below 0, of which no logarithm can be taken, by more than `FLOOR`."""
    if value < -FLOOR:
        advice = (
            "say likelihood = True in the class if it is a mean negative log-likelihood in nats, or add what makes it at least 0 "
            "(1 to minus a correlation)"
        )
        raise _wrong(metric, "a value of at least 0, for its logarithm is taken", f"{value:.3g}", advice)


def constant(metric: Any, warped: Tensor, fixed: Tensor, weight: Tensor) -> bool:
    """Whether a metric has one value wherever the moving side lies: for images ``[C, *S]`` shifted by a quarter of every axis
    and mirrored, for points ``[N, D]`` moved by a quarter of their extent and squeezed."""
    if weight.ndim == 1:
        centre, extent = warped.mean(dim=0), warped.amax(dim=0) - warped.amin(dim=0)
        others = [warped + extent / 4, centre + (warped - centre) / 2]
    else:
        axes = list(range(1, warped.ndim))
        others = [warped.roll([n // 4 for n in warped.shape[1:]], axes), warped.flip(axes)]
    with torch.no_grad():
        values = [float(metric(each, fixed, weight)) for each in (warped, *others)]
    return len(set(values)) == 1


def _wrong(metric: Any, wanted: str, got: str, do: str) -> PluginFault:
    return PluginFault(f"wanted {wanted} from {words(metric, 'metric')}, got {got}; {do}")
