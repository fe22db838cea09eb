"""What is said of each piece, of the seams between them, and of pieces without a partner."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..maps.affine import Affine
from ..maps.pieces import Pieces
from .find import Found, Piece
from .fit import Fit
from .pair import Lie, Sides

NEIGHBOURS = ((0, 1), (1, 0))
"""Steps from a pixel to the next along each axis."""


def entries(sides: Sides, fits: Sequence[Fit], good: Sequence[Fit], lie: Lie) -> list[dict[str, Any]]:
    """One entry for each piece that was placed, then one for each piece of either side that has no partner."""
    out = [_entry(k, fit, sides, lie) for k, fit in enumerate(good)]
    for side, found in (("moving", sides.moving), ("fixed", sides.fixed)):
        own = {getattr(fit.pair, side) for fit in good}
        for i, piece in enumerate(found.pieces):
            if i not in own:
                tried = [fit for fit in fits if getattr(fit.pair, side) == i]
                out.append(_alone(side, piece, found, sides, tried))
    return out


def _entry(k: int, fit: Fit, sides: Sides, lie: Lie) -> dict[str, Any]:
    """A piece that was placed; ``k`` is the label of its map."""
    assert fit.result is not None
    moving, fixed = sides.moving.pieces[fit.pair.moving], sides.fixed.pieces[fit.pair.fixed]
    (part,) = fit.result.affine.parts()
    assert isinstance(part, Affine)
    linear = part.matrix[:2, :2].numpy() / sides.size
    here = np.array(moving.centre)
    there = fit.result.transform.points(torch.tensor(here)[None])[0].numpy()
    at_place = moving.place is None or fixed.place is None or lie(moving.place) == fixed.place
    m = fit.result.metrics
    return {
        "id": moving.name,
        "side": "moving",
        "label": k,
        "place": moving.place,
        "partner": fixed.name,
        "at_place": at_place,
        "verdict": fit.verdict,
        "confidence": fit.result.confidence,
        "likeness": fit.pair.likeness.score,
        "turn": _turn(linear),
        "shift": (there - sides.size * here).tolist(),
        "mirrored": bool(np.linalg.det(linear) < 0),
        "centre": list(moving.centre),
        "partner_centre": list(fixed.centre),
        "box": _box(moving, sides.moving),
        "partner_box": _box(fixed, sides.fixed),
        "roundtrip_px": m["roundtrip_px"],
        "jacobian_min": m["jacobian_min"],
        "jacobian_max": m["jacobian_max"],
        "folding_fraction": m["folding_fraction"],
        "evidence": m.get("evidence"),
        "seconds": m["seconds"],
        "reasons": m["reasons"],
    }


def _alone(side: str, piece: Piece, found: Found, sides: Sides, tried: Sequence[Fit]) -> dict[str, Any]:
    """A piece without a partner, and what was tried."""
    other = sides.fixed if side == "moving" else sides.moving
    opposite = "fixed" if side == "moving" else "moving"
    why = [
        f"{other.pieces[getattr(fit.pair, opposite)].name}: {fit.error or '; '.join(fit.result.reasons if fit.result else ())}"
        for fit in tried
    ]
    return {
        "id": piece.name,
        "side": side,
        "label": None,
        "place": piece.place,
        "partner": None,
        "verdict": "fail",
        "confidence": None,
        "centre": list(piece.centre),
        "box": _box(piece, found),
        "reasons": why or ["nothing on the other side is like it"],
    }


def _box(piece: Piece, found: Found) -> list[float]:
    """First and last position of a piece: y, x, y, x."""
    ends = [[o + w * v for o, w, v in zip(found.grid.origin, found.grid.spacing, at, strict=True)]
            for at in ([s.start for s in piece.box], [s.stop - 1 for s in piece.box])]  # fmt: skip
    return [*ends[0], *ends[1]]


def _turn(linear: np.ndarray[Any, Any]) -> float:
    """Degrees, counterclockwise as the picture is seen, by which a matrix ``[2, 2]`` (y, x) turns, after a mirroring if it
    does."""
    if np.linalg.det(linear) < 0:
        linear = linear @ np.diag([1.0, -1.0])
    return math.degrees(math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))


def seams(phi: Pieces, sides: Sides, fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """Seams through tissue: two parts of one piece that meet there, and how far their maps are apart.

    Seams between pieces that lie apart run over glass, and are not listed.
    """
    out = []
    for side, found, cells, maps in (
        ("moving", sides.moving, phi.source, phi.maps),
        ("fixed", sides.fixed, phi.target, tuple(one.inverse() for one in phi.maps)),
    ):
        labels = cells.labels.numpy()
        for a, b in itertools.combinations(range(len(fits)), 2):
            if getattr(fits[a].pair, side) != getattr(fits[b].pair, side):
                continue
            at = []
            for dy, dx in NEIGHBOURS:
                one, other = labels[: labels.shape[0] - dy, : labels.shape[1] - dx], labels[dy:, dx:]
                tissue = found.labels[: labels.shape[0] - dy, : labels.shape[1] - dx] > 0
                meets = ((one == a) & (other == b)) | ((one == b) & (other == a))
                at.append(np.argwhere(meets & tissue))
            rows = np.concatenate(at)
            if not len(rows):
                continue
            where = torch.from_numpy(rows * np.array(found.grid.spacing) + np.array(found.grid.origin))
            jump = (maps[a].points(where) - maps[b].points(where)).norm(dim=1)
            out.append(
                {
                    "side": side,
                    "piece": found.pieces[getattr(fits[a].pair, side)].name,
                    "labels": [a, b],
                    "length": len(rows) * found.grid.pixel,
                    "jump": {"median": float(jump.median()), "max": float(jump.max())},
                    "jump_unit": phi.target_unit if side == "moving" else phi.source_unit,
                }
            )
    return out
