"""The start that is said in words: ``rotate=90``, ``mirror``, ``scale=2``, or several of these."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contracts import Candidate, Start, Task
from ..data import Image, PointSet, unit_ratio
from ..fit.frames import Frame
from ..fit.halvings import Halvings
from ..maps.homogeneous import inverse
from ..reference import carry
from .identity import unit_of
from .images import middle_of_tissue
from .views import Views

RUNNER_UP = "runner-up"
"""The value of ``init`` that begins with the second best placement that the search found, instead of the best."""


class Stated(Start):
    """The moving side mirrored (left and right exchanged), then turned, then resized, its tissue laid on the fixed one, middle on
    middle.

    Args:
        rotate: degrees, counterclockwise as an image is shown, y down.
        mirror: whether left and right are exchanged first.
        scale: how much larger than the units of both sides state, or than one pixel for one.
    """

    name: ClassVar[str] = "stated"

    def __init__(self, rotate: float = 0.0, mirror: bool = False, scale: float = 1.0) -> None:
        try:
            self.rotate, self.scale = float(rotate), float(scale)
        except (TypeError, ValueError) as error:
            raise ValueError(f"wanted numbers for rotate and scale, got {rotate!r} and {scale!r}") from error
        if not isinstance(mirror, bool):
            raise ValueError(f"wanted true or false for mirror, got {mirror!r}")
        if not math.isfinite(self.rotate) or not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"wanted finite degrees and a positive scale, got rotate={rotate} and scale={scale}")
        self.mirror = mirror

    def find(self, task: Task) -> list[Candidate]:  # noqa: D102
        moving, fixed = _middle(task.moving), _middle(task.fixed)
        if len(moving) != 2 or len(fixed) != 2:
            raise ValueError(
                f"wanted two sides in a plane for rotate, mirror or scale, got {len(fixed)}D and {len(moving)}D; give a matrix"
            )
        angle = math.radians(self.rotate)
        sin, cos = math.sin(angle), math.cos(angle)
        turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)  # of (y, x), y down: counterclockwise
        if self.mirror:
            turn = turn @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[:2, :2] = turn * self.scale * (unit_ratio(unit_of(task.moving), unit_of(task.fixed)) or 1.0)
        matrix[:2, 2] = fixed - matrix[:2, :2] @ moving
        return [Candidate(matrix)]


def said(words: str) -> dict[str, Any] | None:
    """The options of `Stated` in ``rotate=90,mirror,scale=2``; None for text that says something else.

    Raises ValueError for such words with a value that is no number, or one said twice.
    """
    options: dict[str, Any] = {}
    for word in words.replace(" ", "").split(","):
        name, equals, value = word.partition("=")
        if name not in ("rotate", "mirror", "scale") or (name == "mirror") == bool(equals):
            return None
        if name in options:
            raise ValueError(f"wanted {name} once in init, got {words!r}")
        try:
            options[name] = True if name == "mirror" else float(value)
        except ValueError as error:
            raise ValueError(f"wanted a number in {word!r}, e.g. {name}={90 if name == 'rotate' else 2}") from error
    return options


def _middle(side: Image | PointSet) -> Tensor:
    """The middle ``[D]`` of a side: of its tissue, in its unit; of points their mean."""
    if isinstance(side, PointSet):
        return side.coords.mean(dim=0)
    if side.grid.ndim != 2:
        return torch.tensor(side.grid.center, dtype=torch.float64)
    views = Views(Halvings(side))
    spacing = views.extent / 64  # coarse: a fit follows
    at = middle_of_tissue(views.at(spacing)).to(torch.float64)
    return carry(inverse(Frame.of(side.grid).matrix()), at[None])[0]
