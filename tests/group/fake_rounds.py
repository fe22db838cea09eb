"""Small made rounds, and a stand-in for `register` that knows their maps, for tests of what a group does with its pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from regframe.config import Config
from regframe.data import Image
from regframe.maps.affine import Affine
from regframe.maps.displacement import Displacement
from regframe.maps.sequence import in_a_row
from regframe.result import Result

SIZE = 96
"""Pixels per axis of a round."""


def affine(turn: float, dy: float, dx: float, size: int = SIZE) -> NDArray[np.float64]:
    """A turn (degrees) about the middle and a shift, ``[3, 3]``, moving → fixed."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    linear, middle = np.array([[c, -s], [s, c]]), np.array([(size - 1) / 2] * 2)
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = linear, middle + np.array([dy, dx]) - linear @ middle
    return out


def section(seed: int, size: int = SIZE) -> NDArray[np.float64]:
    """Nuclei on tissue with 24 pixels more on each side, 0 … 1."""
    rng, whole = np.random.default_rng(seed), size + 48
    points = (rng.random((whole, whole)) < 1 / 90) * rng.uniform(0.5, 1, (whole, whole))
    return np.asarray(1 - np.exp(-40 * gaussian_filter(points, 2.0)))


def shown(base: NDArray[np.float64], matrix: NDArray[np.float64], seed: int, name: str = "round") -> Image:
    """A round of a section: read under its map, with noise, uint16."""
    size = base.shape[0] - 48
    at = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    where = (at @ matrix[:2, :2].T + matrix[:2, 2] + 24).T
    seen = map_coordinates(base, where, order=3, mode="nearest").reshape(size, size)
    noisy = np.random.default_rng(seed).poisson(np.clip(seen, 0, None) * 900 + 20)
    return Image.from_array(noisy.astype(np.uint16), "yx", channels=("DAPI",), name=name)


MAPS = (
    affine(0, 0, 0),
    affine(1.0, 4, -3),
    affine(-1.5, -6, 5),
    affine(0.5, 8, 2),
    affine(-0.7, -3, -7),
    affine(2, 1, 6),
)
"""Maps of the made rounds onto the first."""


def rounds(n: int, seed: int = 0) -> list[Image]:
    """``n`` rounds of one section, named a, b, c …"""
    base = section(seed)
    return [shown(base, MAPS[k], k, "abcdef"[k]) for k in range(n)]


@dataclass
class Register:
    """Stands in for `regframe.registration.register`.

    Args:
        maps: the true map of each image by name.
        off: by how much the map of a pair (fixed, moving) is wrong, in pixels along y.
        verdicts: verdict and confidence of pairs that are not sure.
        refused: pairs that cannot be registered.
        calls: the pairs that were registered, in order.
    """

    maps: Mapping[str, NDArray[np.float64]]
    off: Mapping[tuple[str, str], float] = field(default_factory=dict)
    verdicts: Mapping[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    refused: set[tuple[str, str]] = field(default_factory=set)
    bend: float = 0.0
    calls: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, fixed: Image, moving: Image, *, config: Config) -> Result:
        """The result of a pair."""
        pair = (fixed.name, moving.name)
        self.calls.append(pair)
        if pair in self.refused:
            raise ValueError(f"wanted a pair, got {pair}; look")
        matrix = np.linalg.inv(self.maps[fixed.name]) @ self.maps[moving.name]
        matrix[0, 2] += self.off.get(pair, 0.0)
        verdict, confidence = self.verdicts.get(pair, ("pass", 0.99))
        unit = fixed.grid.unit
        onto = Affine(torch.from_numpy(matrix), unit, unit)
        transform: Any = onto
        if self.bend:
            nodes = fixed.grid.resampled(tuple(e / 5 for e in fixed.grid.extent))
            field_ = torch.zeros((2, *nodes.shape))
            field_[0, 1:4, 1:4] = self.bend
            transform = in_a_row([onto, Displacement(field_, nodes)])
        coarse = fixed.grid.resampled(tuple(e / 8 for e in fixed.grid.extent))
        return Result(
            transform, fixed.grid, moving.grid,
            {"verdict": verdict, "reasons": [f"{verdict} of {pair}"], "findings": [], "confidence": confidence, "model": "affine",
             "n_evaluations": 1, "roundtrip_px": {"mean": 0.0, "max": 0.0}, "jacobian_min": 1.0, "jacobian_max": 1.0,
             "folding_fraction": 0.0, "seconds": float(len(self.calls)), "pose_margin": None},
            config, onto, [], torch.ones(coarse.shape), coarse, torch.full(coarse.shape, 0.1),
        )  # fmt: skip


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def error(result: Result, matrix: NDArray[np.float64]) -> float:
    """Median error of a map in pixels over the canvas."""
    at = torch.cartesian_prod(torch.arange(8.0, SIZE - 8, 8), torch.arange(8.0, SIZE - 8, 8)).double()
    there = at @ torch.from_numpy(matrix[:2, :2].T.copy()) + torch.from_numpy(matrix[:2, 2].copy())
    return float((result.transform.points(at) - there).norm(dim=1).median())


def as_path(image: Image, folder: Path, *more: Image) -> Path:
    """The image, and more as further channels, written as OME-TIFF under its name."""
    from regframe import plugins

    whole = image
    if more:
        whole = dataclasses.replace(
            image,
            data=torch.cat([image.data, *(m.data for m in more)]),
            channels=(*image.channels, *(m.name for m in more)),
        )
    path = folder / f"{image.name}.ome.tif"
    plugins.find_adapter(whole).save(whole, path)
    return path
