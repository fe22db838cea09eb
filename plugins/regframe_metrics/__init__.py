"""The metrics that ship with regframe; ``docs/metrics.md`` says which is for what.

All compare images by a weighted mean over fixed pixels, lower is better, differentiable in what was warped.
Intensities are standardised once in ``prepare``, so no metric depends on the scale of either side.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import regframe

if TYPE_CHECKING:
    from .contrast import Contrast
    from .gradients import NGF
    from .information import MutualInformation, NormalizedMutualInformation
    from .intensity import NCC, SSD
    from .local import LNCC
    from .mind import MIND

__all__ = ["LNCC", "MIND", "NCC", "NGF", "SSD", "Contrast", "MutualInformation", "NormalizedMutualInformation"]

_HOME = {
    "Contrast": "contrast",
    "SSD": "intensity",
    "NCC": "intensity",
    "LNCC": "local",
    "MutualInformation": "information",
    "NormalizedMutualInformation": "information",
    "NGF": "gradients",
    "MIND": "mind",
}
"""Module of each metric, loaded when one is asked for: they need torch."""


def __getattr__(name: str) -> Any:
    """A metric, from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


@regframe.hookimpl
def regframe_metrics() -> Sequence[type[regframe.Metric]]:
    """The metrics of this plug-in."""
    return [__getattr__(name) for name in _HOME]
