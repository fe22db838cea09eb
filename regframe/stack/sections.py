"""The sections of a stack: sorted, opened, and reduced to what is compared of each."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import convex_hull_image
from torch import Tensor

from .. import gate, plugins
from ..data import Grid, Image
from ..maps.base import Transform
from ..maps.resample import resample
from ..solvers import preparation
from ..solvers.raster import check_image
from .posegraph import Floats, Node
from .settle import Density

Flags = NDArray[np.bool_]
EDGE = 0.6
"""Share of Otsu's threshold between background and tissue above which a pixel counts as tissue: pale tissue stays below the
full threshold."""
LOOKED_AT = 256
"""Pixels along the longer side of the pictures on which neighbours are compared."""
SETTLED_AT = 512
"""Pixels along the longer side of the pictures on which pairs are settled."""
EVEN = 0.5
"""Mean deviation of an image's border, over the image's standard deviation, below which the border is background."""


def sort_sections(paths: Sequence[Path], order: str | Path = "natural") -> tuple[list[Path], list[int] | None]:
    """The files in stacking order, and their positions along z where these are known.

    Args:
        paths: the files, in any order.
        order: ``natural`` (by name, with numbers compared as numbers), ``number`` (by the last number in the name, which
            becomes the position, so that missing numbers leave gaps), ``given``, or a CSV file with a column ``section`` (file
            names) in stacking order and optionally a column ``position`` of integers.
    """
    if order == "given":
        return list(paths), None
    if order == "natural":
        return sorted(
            paths, key=lambda p: [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", p.name)]
        ), None
    if order == "number":
        found = []
        for path in paths:
            digits = re.findall(r"\d+", path.name[: len(path.name) - len("".join(path.suffixes[-1:]))])
            if not digits:
                raise ValueError(f"wanted a number in every file name, got {path.name!r}; use another order")
            found.append((int(digits[-1]), path))
        found.sort(key=lambda pair: pair[0])
        for (a, one), (b, other) in itertools.pairwise(found):
            if a == b:
                raise ValueError(f"wanted different last numbers in the names, got {a} in {one.name} and {other.name}")
        return [path for _, path in found], [number for number, _ in found]
    return _from_csv(paths, Path(order))


def _from_csv(paths: Sequence[Path], table: Path) -> tuple[list[Path], list[int] | None]:
    gate.check_file(table, folder=False)
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames or "section" not in reader.fieldnames:
            raise ValueError(f"wanted a column 'section' in {table}, got {reader.fieldnames or 'nothing'}; name it so")
        rows = list(reader)
    known = {path.name: path for path in paths}
    if len(known) != len(paths):
        raise ValueError("wanted files of different names beside a CSV order, got the same name twice")
    missing = [row["section"] for row in rows if row["section"] not in known]
    unnamed = sorted(known.keys() - {row["section"] for row in rows})
    if missing or unnamed or len(rows) != len(paths):
        what = (
            f"{missing[0]!r}, which was not given"
            if missing
            else f"no single row for {unnamed[0]!r}"
            if unnamed
            else "a row twice"
        )
        raise ValueError(f"wanted one row in {table} per section, got {what}")
    if "position" not in reader.fieldnames:
        return [known[row["section"]] for row in rows], None
    try:
        found = sorted((int(row["position"]), row["section"]) for row in rows)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"wanted whole numbers in the column 'position' of {table}, got another entry: {error}"
        ) from error
    return [known[name] for _, name in found], [number for number, _ in found]


def opened(images: Iterable[Any]) -> list[Image]:
    """The sections as images; ValueError for fewer than two, for volumes and points, and for several units."""
    sections: list[Image] = []
    for k, source in enumerate(images):
        image = source if isinstance(source, Image) else plugins.open(source)
        if not isinstance(image, Image) or image.grid.ndim != 2:
            what = f"{image.grid.ndim}D" if isinstance(image, Image) else type(image).__name__
            raise ValueError(f"wanted 2D images as sections, got {what} at place {k}; cut a volume into its planes")
        if sections and image.grid.unit != sections[0].grid.unit:
            raise ValueError(
                f"wanted sections in one unit, got {sections[0].grid.unit} and {image.grid.unit} (place {k}); "
                "state the pixel size of all of them"
            )
        sections.append(image)
    if len(sections) < 2:
        raise ValueError(f"wanted at least two sections, got {len(sections)}; name more files")
    return sections


def planes_of(positions: Sequence[float] | None, n: int) -> tuple[int, ...]:
    """The plane of each of ``n`` sections: ``positions``, or 0, 1, 2 …; ValueError for anything but ascending integers."""
    if positions is None:
        return tuple(range(n))
    if len(positions) != n or any(float(p) != round(p) for p in positions):
        raise ValueError(f"wanted {n} whole numbers as positions, got {list(positions)[:5]}; count in spacing_z")
    found = tuple(round(p) for p in positions)
    if any(b <= a for a, b in itertools.pairwise(found)):
        raise ValueError(f"wanted ascending positions, got {list(found)[:8]}; sort the sections, each has its own")
    if found[-1] - found[0] + 1 > 50 * n:
        raise ValueError(
            f"wanted positions counted in sections, got {found[0]} to {found[-1]} for {n}; divide them by spacing_z"
        )
    return found


@dataclass(frozen=True)
class Section:
    """A section, reduced to what is compared.

    Args:
        density: departure of each pixel from the background, at low resolution (`LOOKED_AT`).
        mask: where there is tissue, at that resolution.
        background: colour of the background ``[C]``.
        node: moments of the tissue.
        fine: departure from the background at the resolution of `SETTLED_AT`.
        empty: the reason where the image shows no section, or ``""``.
    """

    density: Image
    mask: Flags
    background: Tensor  # [C]
    node: Node
    fine: Density
    empty: str = ""

    @classmethod
    def of(cls, image: Image) -> Section:
        """The section that an image shows; ``empty`` says why where it shows none."""
        grid = image.grid
        nowhere = Node(np.tile(np.array(grid.center), (4, 1)), grid.diagonal)
        nothing = np.zeros(grid.shape, dtype=np.bool_)
        none = Density(np.zeros(grid.shape, np.float32), nothing, np.array(grid.spacing), np.array(grid.origin))
        try:
            check_image(image, "section")
        except ValueError as error:
            background = image.data.to(torch.float32).nan_to_num().flatten(1).median(dim=1).values
            blank = image.replace(data=torch.zeros((1, *grid.shape)), channels=("density",), weight=None)
            return cls(blank, nothing, background, nowhere, none, str(error))
        ready, look = preparation.prepare(image)
        background = _background(ready, ready.weight, torch.tensor(look.background, dtype=torch.float32))
        apart = (ready.data.to(torch.float32) - background[:, None, None]).norm(dim=0)
        weight = torch.ones(grid.shape) if ready.weight is None else ready.weight.to(torch.float32)
        apart = apart * (weight > 0)
        apart = apart.clamp(
            max=float(np.quantile(apart[:: max(1, len(apart) // 500)].numpy(), 0.995))
        )  # drop specks, which are not tissue
        density = Image(apart[None], grid, ("density",), weight=ready.weight, name=image.name)
        fine, density = (smaller(density, most).replace(weight=None) for most in (SETTLED_AT, LOOKED_AT))
        values = density.data[0].numpy()
        mask, edge = np.zeros_like(values, dtype=np.bool_), math.inf
        if values.max() > values.min():
            edge = EDGE * float(threshold_otsu(values))  # type: ignore[no-untyped-call]
            mask = values > edge
        at = density.grid.coords().numpy()[mask]
        if len(at) < 16:
            return cls(density, mask, background, nowhere, none, "no tissue was found in it")
        middle = at.mean(axis=0)
        lengths, axes = np.linalg.eigh(np.cov(at.T))
        arms = axes * np.sqrt(2 * np.clip(lengths, 1e-12, None))  # the columns; ± both: the tissue's second moments
        probes = middle + np.concatenate([arms.T, -arms.T])
        sharp = fine.data[0].numpy()
        solid = ndimage.gaussian_filter(sharp, 1.0) > edge  # smoothed, so that noise does not count as tissue
        settled = Density(sharp, solid, np.array(fine.grid.spacing), np.array(fine.grid.origin))
        return cls(density, mask, background, Node(probes, float(np.sqrt(lengths.sum()))), settled)


# small parts


def _background(image: Image, weight: Tensor | None, flattest: Tensor) -> Tensor:
    """Colour ``[C]`` of the border where the border is uniform up to noise, else ``flattest``, that of the flattest part."""
    data = image.data.to(torch.float32)
    known = torch.ones(image.grid.shape) if weight is None else weight
    rim, seen = (
        torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], dim=-1) for x in (data, known)
    )  # [C, n], [n]
    rim = rim[:, seen > 0]
    if rim.shape[1] < 16:
        return flattest
    middle = rim.median(dim=1).values
    spread = (rim - middle[:, None]).abs().mean(dim=1)
    even = bool((spread <= EVEN * data.flatten(1).std(dim=1).clamp(min=1e-12)).all())
    return middle if even else flattest


def turned_over(matrix: Floats) -> bool:
    """Whether a map ``[3, 3]`` turns a section over (negative determinant)."""
    return bool(np.linalg.det(matrix[:2, :2]) < 0)


def hull_middle(section: Section) -> Floats:
    """Middle ``[2]`` of the convex hull of the tissue, which holes and notches do not move."""
    hull = convex_hull_image(ndimage.binary_opening(section.mask, iterations=2))  # type: ignore[no-untyped-call]
    if not hull.any():
        return np.asarray(section.node.probes.mean(axis=0))
    return np.asarray(section.density.grid.coords().numpy()[hull].mean(axis=0))


def smaller(density: Image, most: int) -> Image:
    """``density`` averaged over whole blocks of pixels, so that its longer side has at most ``most`` pixels."""
    grid = density.grid
    step = max(1, math.ceil(max(grid.shape) / most))
    if step == 1:
        return density
    small = torch.nn.functional.avg_pool2d(density.data[None], step, ceil_mode=True, count_include_pad=False)[0]
    return Image(small, grid.in_blocks((step, step), ((step - 1) / 2,) * 2), density.channels, name=density.name)


def placed(image: Image, transform: Transform, canvas: Grid, background: Tensor | None) -> Image:
    """A section resampled on the canvas in its own dtype; background (labels: 0) where it shows nothing."""
    if image.labels:
        return resample(image, transform, canvas)
    seen = torch.ones(image.grid.shape)
    moved = resample(image.replace(weight=seen), transform, canvas)
    assert moved.weight is not None
    if background is None:
        background = image.data.to(torch.float32).flatten(1).median(dim=1).values
    colour = background.round() if not image.data.dtype.is_floating_point else background
    filled = torch.where(moved.weight > 0.999, moved.data, colour.to(image.data.dtype)[:, None, None])
    return moved.replace(data=filled, weight=None)
