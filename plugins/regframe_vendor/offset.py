"""How far the bins of Visium HD lie off their own H&E: micrometres by which Space Ranger's registration may miss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import regframe

from .adapter import VendorAdapter

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch


@dataclass(frozen=True)
class Offset:
    """How far the bins of a folder lie off a picture of their tissue.

    Args:
        shift: µm (y, x) by which the middle of the bins has to move.
        turn: degrees by which they have to turn, from y towards x.
        result: the registration: its confidence says how likely this is right, its map carries the bins.
    """

    shift: tuple[float, float]
    turn: float
    result: regframe.Result


def offset(folder: Any, picture: regframe.Image, bin: int = 2, **options: Any) -> Offset:
    """Measure how far Visium HD's bins lie off a picture of their tissue, from the counts of transcripts in each.

    Args:
        folder: of Space Ranger.
        picture: H&E in the frame of the folder: the full image that was given to Space Ranger, opened with the µm per pixel
            that ``regframe info`` shows, or the folder opened with ``use="image"``.
        bin: side of the bins, µm.
        options: further options of `VendorAdapter`.

    Raises ValueError where the folder holds no counts. `ImportError` names the extra where h5py is missing.
    """
    bins = VendorAdapter(use="cells", bin=bin, counts=True, **options).open(folder)
    assert isinstance(bins, regframe.PointSet)
    result = regframe.register(picture, bins, transform="rigid", init="identity")
    counted = bins.coords[bins.weights > 0] if bins.weights is not None else bins.coords
    middle = (counted.amin(0) + counted.amax(0)) / 2
    ends = torch.stack([middle, middle + torch.tensor([1.0, 0.0])])
    moved = result.transform.points(ends)
    step = (moved[1] - moved[0]).tolist()
    y, x = (moved[0] - middle).tolist()
    return Offset((y, x), float(np.degrees(np.arctan2(step[1], step[0]))), result)
