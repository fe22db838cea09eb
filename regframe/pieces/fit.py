"""The registration of one piece on another, with all other tissue hidden."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..config import Config
from ..data import Grid, Image
from ..maps.affine import Affine
from ..registration import register
from ..result import Result
from ..strangers import PluginFault
from .find import Found
from .pair import Believed, Sides

ROOM = 0.06
"""Glass around a piece that is kept, over its diameter: the outline is then seen from both sides."""
BESIDE = 0.01
"""The same where the piece is a part of the other one, beyond whose edge the other goes on."""


@dataclass(frozen=True)
class Fit:
    """A pair of pieces that was registered.

    Args:
        pair: which pieces, and their likeness.
        result: the map, or None where nothing could be registered.
        error: why there is no result, or ``""``.
    """

    pair: Believed
    result: Result | None
    error: str = ""

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return "fail" if self.result is None else self.result.verdict

    @property
    def confidence(self) -> float:
        """Of the map, 0 … 1."""
        return 0.0 if self.result is None else float(self.result.confidence or 0.0)


def fit(
    images: tuple[Image, Image], sides: Sides, pair: Believed, config: Config, parts: tuple[bool, bool] = (False, False)
) -> Fit:
    """Register a moving piece to a fixed one from the pose of their likeness.

    Args:
        images: the fixed and the moving slide.
        sides: their pieces.
        pair: which ones.
        config: all settings; the start is the likeness'.
        parts: whether the fixed and the moving piece is a part of the other.
    """
    fixed, moving = images
    start = Affine(pair.likeness.matrix, moving.grid.unit, fixed.grid.unit)
    one = alone(fixed, sides.fixed, pair.fixed, parts[0])
    other = alone(moving, sides.moving, pair.moving, parts[1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # each remark is a finding of the piece
            return Fit(pair, register(one, other, init=start, config=config))
    except PluginFault:
        raise
    except ValueError as error:
        return Fit(pair, None, str(error))


def alone(image: Image, found: Found, k: int, part: bool) -> Image:
    """The crop around a piece, in which all other tissue is background of weight 0.

    Args:
        image: the slide.
        found: its pieces.
        k: index of the piece.
        part: whether it goes on beyond its edge, on the other side: nothing is then known of what lies there.
    """
    piece = found.pieces[k]
    room = math.ceil(ROOM * piece.diameter / min(found.grid.spacing)) + 2
    box = tuple(
        slice(max(s.start - room, 0), min(s.stop + room, n)) for s, n in zip(piece.box, found.labels.shape, strict=True)
    )
    own = found.labels[box] == piece.number
    near = max(2, round(BESIDE * piece.diameter / min(found.grid.spacing)))
    kept: NDArray[np.bool_]
    if part:
        kept = ndimage.distance_transform_edt(~own) <= near
    else:
        others = (found.labels[box] > 0) & ~own
        kept = ndimage.distance_transform_edt(~others) > near if others.any() else np.ones_like(own)
        kept |= own
    step = [round(a / b) for a, b in zip(found.grid.spacing, image.grid.spacing, strict=True)]
    full = tuple(slice(s.start * f, min(s.stop * f, n)) for s, f, n in zip(box, step, image.grid.shape, strict=True))
    shape = tuple(s.stop - s.start for s in full)
    whole = np.kron(kept, np.ones(step, dtype=bool))[: shape[0], : shape[1]]
    mask = torch.from_numpy(np.ascontiguousarray(whole))
    data = image.data[(slice(None), *full)].clone()
    background = torch.tensor(found.background)
    background = background if data.dtype.is_floating_point else background.round()
    data[:, ~mask] = background.to(data.dtype)[:, None]
    weight = mask.to(torch.float32)
    if image.weight is not None:
        weight = weight * image.weight[full].to(torch.float32)
    grid = Grid(
        shape,
        image.grid.spacing,
        tuple(o + w * s.start for o, w, s in zip(image.grid.origin, image.grid.spacing, full, strict=True)),
        image.grid.unit,
    )
    name = f"{image.name} {piece.name}"
    return image.replace(
        data=data,
        grid=grid,
        weight=None if bool(mask.all()) and image.weight is None else weight,
        name=name,
        reading=None,
    )
