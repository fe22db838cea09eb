"""A pair as a picture: both sides with true positions in matching colours, and how far off the found map is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import regframe as rf

from .judge import Judged
from .pairs import Made
from .sources import Array

SHOWN = 80
"""True positions that are drawn."""


def draw(made: Made, judged: Judged, result: rf.Result | None, path: Path) -> None:
    """Write a PNG: fixed, moving, and the fixed side with arrows from found to true places where the map is off (moving side)."""
    figure, axes = plt.subplots(1, 3, figsize=(18, 7))
    number = np.random.default_rng(0).permutation(len(made.q))[:SHOWN]
    colours = plt.get_cmap("hsv")(np.linspace(0, 1, max(len(number), 1)))
    for axis, side, at in (
        (axes[0], made.fixed, made.q),
        (axes[1], made.moving, made.p),
        (axes[2], made.moving, made.p),
    ):
        _show(axis, side)
        if len(number):
            y, x = _index(side, at[number])
            axis.scatter(x, y, c=colours, s=14, edgecolors="white", linewidths=0.4)
    if result is not None and len(number):
        found = result.to_moving(torch.as_tensor(made.q[number])).numpy()
        (y, x), (v, u) = _index(made.moving, made.p[number]), _index(made.moving, found)
        axes[2].plot(np.stack([x, u]), np.stack([y, v]), color="cyan", linewidth=1)
    axes[0].set_title("fixed")
    axes[1].set_title("moving, true places")
    axes[2].set_title(f"lines to found places; median {judged.median:.3g} px, bar {judged.bar:.2g}, {judged.verdict}")
    figure.suptitle(f"{judged.name}: {'; '.join(made.story)}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _index(side: rf.Image | rf.PointSet, at: Array) -> tuple[Array, Array]:
    """Row and column of positions; of a volume those of its middle plane."""
    if isinstance(side, rf.Image):
        at = (at - np.array(side.grid.origin)) / np.array(side.grid.spacing)
    return at[:, -2], at[:, -1]


def _show(axis: Any, side: rf.Image | rf.PointSet) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    if isinstance(side, rf.PointSet):
        axis.plot(side.coords[:, -1], side.coords[:, -2], "k.", markersize=2)
        axis.invert_yaxis()
        axis.set_aspect("equal")
        return
    values = side.data.double().numpy()
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    values = np.clip(values / max(float(np.percentile(values, 99.8)), 1e-9), 0, 1)
    axis.imshow(np.moveaxis(values, 0, -1) if len(values) == 3 else values[0], cmap="gray")
