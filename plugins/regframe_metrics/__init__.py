"""The metrics that ship with regframe; ``docs/metrics.md`` says which is for what.

All compare images by a weighted mean over fixed pixels, lower is better, differentiable in what was warped.
Intensities are standardised once in ``prepare``, so no metric depends on the scale of either side.
"""

from __future__ import annotations

from collections.abc import Sequence

import regframe

from .contrast import Contrast
from .gradients import NGF
from .information import MutualInformation, NormalizedMutualInformation
from .intensity import NCC, SSD
from .local import LNCC
from .mind import MIND

__all__ = ["LNCC", "MIND", "NCC", "NGF", "SSD", "Contrast", "MutualInformation", "NormalizedMutualInformation"]


@regframe.hookimpl
def regframe_metrics() -> Sequence[type[regframe.Metric]]:
    """The metrics of this plug-in."""
    return [Contrast, SSD, NCC, LNCC, MutualInformation, NormalizedMutualInformation, NGF, MIND]
