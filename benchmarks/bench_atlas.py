"""Sections in an atlas: the plane found and the bend, beside an automatic anchoring by another program."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from records import record
from scipy import ndimage

import regframe as rf

DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
VOXEL = 50.0

Array = NDArray[Any]


def anchored(entry: dict[str, Any], at: Array) -> Array:
    """Where the anchoring puts pixels ``[N, 2]`` in the volume ``[N, 3]``, in µm (its README gives the convention)."""
    o, u, v = np.array(entry["anchoring"]).reshape(3, 3)
    p = o + u * (at[:, 1:] / entry["width"]) + v * (at[:, :1] / entry["height"])
    return np.stack([p[:, 0] / 2 - 0.5, 159.5 - p[:, 2] / 2, 263.5 - p[:, 1] / 2], axis=1) * VOXEL


def tissue(image: rf.Image) -> Array:
    """The largest piece that is not white, its holes filled."""
    mask = image.data.amin(dim=0).numpy() < 225
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask, iterations=3))
    pieces, _ = ndimage.label(mask)
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    return np.asarray(pieces == areas.argmax())


def normal(positions: Callable[[Array], Array]) -> Array:
    """Of the plane through three pixels."""
    a, b, c = positions(np.array([[0.0, 0], [100, 0], [0, 100]]))
    cross = np.cross(b - a, c - a)
    return np.asarray(cross / np.linalg.norm(cross))


def dice(atlas: rf.Image, at: Array, inside: Array) -> float:
    """Of the section's tissue and what the atlas labels there."""
    found = rf.labels_at(atlas, rf.PointSet(torch.from_numpy(at), "µm")).numpy() > 0
    return float(2 * (found & inside).sum() / (found.sum() + inside.sum()))


@pytest.mark.filterwarnings("ignore:regframe. one side declares no pixel size")
@pytest.mark.parametrize("number", [0, 1])
def test_sections_in_the_atlas(number: int, small: bool, report: Callable[[str], None]) -> None:
    if small:
        pytest.skip("too large for a quick run")
    folder = DATA / "11_sections_to_atlas"
    if not folder.is_dir():
        pytest.skip("no data; set REGFRAME_DATA to the folder that has 11_sections_to_atlas")
    entry = json.loads((folder / "anchoring.json").read_text())["slices"][number]
    atlas = rf.open(DATA / "10_3d_mouse_atlas" / "ARA_annotation_50um.nrrd", labels=True, spacing=VOXEL, unit="µm")
    section = rf.open(folder / entry["filename"])
    assert isinstance(atlas, rf.Image)
    assert isinstance(section, rf.Image)
    began = time.perf_counter()
    result = rf.register(section, atlas)
    seconds = time.perf_counter() - began
    every = section.grid.coords().reshape(-1, 2).numpy()
    inside = tissue(section).ravel()

    def through(transform: rf.Transform) -> Callable[[Array], Array]:
        back = transform.inverse()
        return lambda at: back.points(torch.from_numpy(np.pad(at, ((0, 0), (1, 0))))).numpy()

    found, bent = through(result.affine), through(result.transform)
    theirs = anchored(entry, every)
    angle = math.degrees(math.acos(min(1.0, abs(float(normal(found) @ normal(lambda at: anchored(entry, at)))))))
    apart = float(np.linalg.norm((found(every) - theirs)[inside], axis=1).mean())
    dices = [dice(atlas, p, inside) for p in (theirs, found(every), bent(every))]
    report(
        f"{entry['filename']}: {result.verdict}, normal {angle:.1f} degrees and tissue {apart:.0f} µm from the anchoring; "
        f"tissue Dice {dices[0]:.3f} (anchoring), {dices[1]:.3f} (plane), {dices[2]:.3f} (bent); {seconds:.0f} s, "
        f"{torch.get_num_threads()} threads; planes that fit as well differ by {result.metrics['plane']['corner_sd']:.0f} µm"
    )
    record(benchmark="atlas", section=entry["filename"], angle=angle, apart=apart, dice=dices, seconds=seconds)
    assert dices[2] >= 0.97
