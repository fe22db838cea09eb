"""Starts from paired landmarks: least-squares rigid, similarity and affine maps in closed form.

Source: Umeyama 1991, for rigid and similarity maps of paired points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contracts import Candidate, Start, Task
from ..data import Grid, tensor_of
from ..fit.closed import turn_of
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.homogeneous import compose, inverse
from .disagreement import Disagreement, disagreement


@dataclass(frozen=True)
class Landmarks:
    """Pairs ``p_i → q_i`` of corresponding positions, from which a fit begins.

    Args:
        moving: ``p`` ``[N, D]`` in the moving side's unit.
        fixed: ``q`` ``[N, D]`` in the fixed side's unit.
    """

    moving: Tensor
    fixed: Tensor

    def disagreement(self) -> Disagreement:
        """How far each pair lies from where the others expect it, in the fixed unit, and which disagree with them."""
        return disagreement(self.moving.numpy(), self.fixed.numpy())

    @property
    def weights(self) -> Tensor:
        """1 for each pair ``[N]`` that agrees with the others, else 0; all 1 where the rest would lie on a line."""
        weight = torch.from_numpy(~self.disagreement().odd).to(torch.float64)
        kept = self.moving[weight > 0]
        values = torch.linalg.svdvals(kept - kept.mean(dim=0))
        return weight if float(values[1:2].sum()) > 1e-3 * float(values[0]) else torch.ones_like(weight)

    def agreeing(self) -> Landmarks:
        """The pairs that agree, from which a fit begins."""
        kept = self.weights > 0
        return Landmarks(self.moving[kept], self.fixed[kept])

    def residuals(self, transform: Transform, fixed: Grid) -> list[float]:
        """Distance, in fixed pixels, between each mapped moving landmark and its fixed partner."""
        return [float(v) / fixed.pixel for v in (transform.points(self.moving) - self.fixed).norm(dim=1)]


class PairedLandmarks(Start):
    """Pairs of positions on both sides, in the units of the sides, components in the order (z,) y, x.

    Args:
        moving: positions ``[N, D]`` on the moving side.
        fixed: their partners ``[N, D]`` on the fixed side, in the same order.
    """

    name: ClassVar[str] = "landmarks"

    def __init__(self, moving: Sequence[Sequence[float]], fixed: Sequence[Sequence[float]]) -> None:
        try:
            self.moving, self.fixed = ([[float(v) for v in row] for row in side] for side in (moving, fixed))
            self._pairs = landmarks(self.moving, self.fixed)
        except TypeError as error:
            raise ValueError(
                "wanted rows of numbers as landmarks, got something else; give [[y, x], …] for each side"
            ) from error

    def find(self, task: Task) -> list[Candidate]:  # noqa: D102
        return [Candidate(landmarks=(self._pairs.moving, self._pairs.fixed))]


def landmarks(p: Any = None, q: Any = None, *, fixed: Any = None, moving: Any = None) -> Landmarks:
    """Pairs of positions to start a registration from, ``[N, D]`` each, ``(z,) y, x``: best by name, ``fixed=…, moving=…``.

    Without names the moving positions ``p`` come first, then the fixed ones ``q``.

    Three or more pairs give an affine start, fewer a translation. Raises ValueError for sides of unequal length,
    positions that are not finite, and three or more pairs that lie on one line.
    """
    if (p is None) != (q is None) or (fixed is None) != (moving is None) or (p is None) == (fixed is None):
        raise ValueError("wanted landmarks of both sides, got other arguments; pass fixed=… and moving=… by name")
    sides = []
    for name, side in (("moving", p if fixed is None else moving), ("fixed", q if fixed is None else fixed)):
        coords = tensor_of(getattr(side, "coords", side), torch.float64)
        if coords.ndim != 2 or coords.shape[1] not in (2, 3):
            raise ValueError(f"wanted {name} landmarks [N, 2] or [N, 3], got {tuple(coords.shape)}")
        bad = int((~torch.isfinite(coords)).any(dim=1).sum())
        if bad:
            raise ValueError(f"wanted finite {name} landmarks, got {bad} with NaN or inf; leave them out on both sides")
        sides.append(coords)
    if sides[0].shape != sides[1].shape:
        raise ValueError(
            f"wanted as many fixed as moving landmarks, got {len(sides[1])} fixed and {len(sides[0])} moving; "
            "row i of one belongs to row i of the other"
        )
    if len(sides[0]) == 0:
        raise ValueError("wanted at least one pair of landmarks, got none")
    for name, coords in zip(("moving", "fixed"), sides, strict=True):
        if len(coords) >= 3:
            check_spread(coords, name)
    return Landmarks(sides[0], sides[1])


def check_spread(coords: Tensor, name: str) -> None:
    """Raise ValueError where positions ``[N, D]`` do not span a plane: no affine map follows from them."""
    values = torch.linalg.svdvals(coords - coords.mean(dim=0))
    if not float(values[1]) > 1e-3 * float(values[0]):
        raise ValueError(
            f"wanted {name} landmarks that span the tissue, got {len(coords)} on one line (collinear); add one off the line"
        )


def fit_points(p: Tensor, q: Tensor, kind: str = "affine") -> tuple[Affine, Tensor]:
    """Least-squares map of ``p`` onto ``q`` (``[N, D]`` each), and its residuals ``|A p_i - q_i|`` ``[N]``.

    Args:
        p: moving positions ``[N, D]``.
        q: fixed positions ``[N, D]``.
        kind: ``translation``, ``rigid``, ``similarity`` or ``affine``. Fewer than three pairs always give a translation. An
            affine map for which there are fewer than D + 1 pairs, or (in 3D) pairs in one plane, is replaced by a similarity.
    """
    p, q = p.to(torch.float64), q.to(torch.float64)
    ndim = p.shape[1]
    if len(p) < 3:
        kind = "translation"
    elif kind == "affine" and (len(p) < ndim + 1 or (ndim == 3 and _flat(p))):
        kind = "similarity"
    centre_p, centre_q = p.mean(dim=0), q.mean(dim=0)
    if kind == "translation":
        linear = torch.eye(ndim, dtype=torch.float64)
    elif kind == "affine":
        gram = torch.eye(ndim + 1, dtype=torch.float64)
        gram[:-1, :-1] = _products(p - centre_p, p - centre_p)
        linear = compose(_products(q - centre_q, p - centre_p), inverse(gram)[:-1, :-1])
    else:
        covariance = _products(q - centre_q, p - centre_p) / len(p)
        linear, values = turn_of(covariance)
        if kind == "similarity":
            linear = linear * float(values.sum() / ((p - centre_p) ** 2).sum() * len(p))
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = centre_q - linear @ centre_p
    fitted = Affine(matrix)
    return fitted, (fitted.points(p) - q).norm(dim=1)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """``Σ_i a_i b_iᵀ`` ``[D, D]`` of ``[N, D]`` each, summed in one order (see `regframe.maps.homogeneous`)."""
    return (a[:, :, None] * b[:, None, :]).sum(dim=0)


def _flat(p: Tensor) -> bool:
    values = torch.linalg.svdvals(p - p.mean(dim=0))
    return not float(values[-1]) > 1e-6 * float(values[0])
