"""How cells are drawn: the pixel, the Gaussians, and what each cell weighs in each channel."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import regframe

from .raster import MARGIN, Array, canvas, check_size, near, propose_spacing, rasterize
from .tables import Cells

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

MOST_WEIGHTS = 1 << 28
"""Weights (cells times genes, float64) that are held at once at most: 2 GiB."""
MOST_PIXELS = 1e12
"""Pixels of a canvas above which its sides are not even computed as whole numbers; `check_size` refuses far smaller ones."""
SIGMA = 1.5
"""Standard deviation of a cell's Gaussian in pixels where none is given; set on the pairs of ``benchmarks/bench_cells.py``.
Below about 1 a Gaussian falls between the pixels and shows where they lie."""
CHUNK = 256
"""Genes whose counts are held at once while a cell's total is summed up."""


@dataclass(frozen=True)
class Weighted:
    """Cells with what each of them weighs in each channel.

    Args:
        cells: as they were read.
        weights: ``[N, C]``, or ``[N, 1]`` where there are groups.
        names: one per channel.
        group: the one channel that each cell counts in ``[N]``, -1 for none; None where all count in all.
    """

    cells: Cells
    weights: Array
    names: tuple[str, ...]
    group: NDArray[np.intp] | None = None


@dataclass(frozen=True)
class Drawing:
    """How tables of cells become rasters, the options of `CellsAdapter` that say so.

    Args:
        spacing: pixel size in the unit of the positions; None: the one that `propose_spacing` finds for each table.
        sigmas: standard deviations of the Gaussians in that unit; None: one of `SIGMA` pixels.
        weights: columns that cells count with; ``density``, where no column is called so, stands for 1.
        types: column whose values get a channel each, or None.
        genes: names that get a channel each, ``("all",)`` for every gene, or None.
        threads: 0 for all cores.
    """

    spacing: float | None = None
    sigmas: tuple[float, ...] | None = None
    weights: tuple[str, ...] = ("density",)
    types: str | None = None
    genes: tuple[str, ...] | None = None
    threads: int = 0

    @classmethod
    def of(
        cls,
        spacing: float | None = None,
        sigma: float | str | Sequence[float] | None = None,
        weights: str | Sequence[str] | None = None,
        types: str | None = None,
        genes: str | Sequence[str] | None = None,
        threads: int = 0,
    ) -> Drawing:
        """The drawing of options as a user gives them, text with commas for several; ValueError for one that cannot be."""
        if types is not None and not isinstance(types, str):
            raise ValueError(f"wanted the name of a column for types, got {types!r}")
        columns = _names(weights, "columns of numbers") or ("density",)
        if len(columns) > 1 and (types is not None or genes is not None):
            raise ValueError(f"wanted one column of weights beside types or genes, got {', '.join(columns)}; choose")
        if types is not None and genes is not None:
            raise ValueError("wanted types or genes, got both; open the table once for each")
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise ValueError(f"wanted 0 (all cores) or more threads, got {threads!r}")
        return cls(
            None if spacing is None else _lengths(spacing, "spacing")[0],
            None if sigma is None else _lengths(sigma, "sigma"),
            columns,
            types,
            _names(genes, "genes, or all"),
            threads,
        )

    def weigh(self, cells: Cells) -> Weighted:
        """The weight of each cell in each channel."""
        each = self.each(cells)
        if self.types is not None:
            words = cells.words(self.types)
            names = tuple(str(word) for word in np.unique(words) if word)
            if not names:
                raise ValueError(
                    f"wanted values in the column {self.types!r} of {cells.name!r}, got none; name another"
                )
            found = np.searchsorted(np.array(names), words)
            return Weighted(cells, each, names, np.where(words == "", -1, found))
        if self.genes is not None:
            names = gene_names(cells, self.genes)
            if len(cells) * len(names) > MOST_WEIGHTS:
                raise ValueError(
                    f"wanted at most {MOST_WEIGHTS} counts at once, got {len(cells)} cells with {len(names)} genes; name fewer "
                    "genes, or take components of them"
                )
            return Weighted(cells, cells.counts(names) * library_scale(cells)[:, None] * each, names)
        return Weighted(cells, each, self.weights)

    def each(self, cells: Cells) -> Array:
        """How much each cell counts ``[N, W]``: 1, or its values in the W columns of weights."""
        ones = np.ones(len(cells))
        return np.stack(
            [ones if w == "density" and w not in cells.table else cells.numbers(w, "weights") for w in self.weights],
            axis=1,
        )

    def grid(self, cells: Cells) -> tuple[regframe.Grid, tuple[float, ...]]:
        """The canvas of these cells and the standard deviations, in their unit; warns of stray cells, which are left off it."""
        coords = cells.coords.numpy()
        kept = near(coords)
        if not kept.all():
            far = np.flatnonzero(~kept)
            y, x = coords[far[0]].tolist()
            warnings.warn(
                f"{len(far)} of {len(coords)} cells of {cells.name!r} lie far from all others (row {far[0] + 1} at x {x:.6g}, "
                f"y {y:.6g} {cells.unit}) and are not drawn; they are moved like the rest",
                stacklevel=2,
            )
            coords = coords[kept]
        spacing = self.spacing or propose_spacing(coords)
        sigmas = self.sigmas or (SIGMA * spacing,)
        extent = (np.ptp(coords, axis=0) + 2 * MARGIN * max(sigmas)) / spacing
        if float(extent[0]) * float(extent[1]) > MOST_PIXELS:
            raise ValueError(
                f"wanted a canvas of a reasonable size, got {extent[0]:.3g} x {extent[1]:.3g} pixels of {spacing:g} "
                f"{cells.unit}; take a larger spacing, and look for stray cells far from the rest"
            )
        return canvas(coords, spacing, MARGIN * max(sigmas), cells.unit), sigmas

    def raster(self, weighted: Weighted) -> regframe.Image:
        """Weighted cells on their canvas."""
        grid, sigmas = self.grid(weighted.cells)
        coords, group = weighted.cells.coords.numpy(), weighted.group
        if group is None:
            data = rasterize(coords, weighted.weights, grid, sigmas, self.threads)
        else:
            check_size(grid, len(weighted.names) * len(sigmas))
            order = np.argsort(group, kind="stable")
            bounds = np.searchsorted(group[order], np.arange(len(weighted.names) + 1))
            members = [order[a:b] for a, b in itertools.pairwise(bounds)]
            parts = [
                rasterize(coords[rows], weighted.weights[rows], grid, [sigma], self.threads)
                for sigma in sigmas
                for rows in members
            ]
            data = np.concatenate(parts)
        unit = weighted.cells.unit
        names = [f"{name} σ{s:g} {unit}" if len(sigmas) > 1 else name for s in sigmas for name in weighted.names]
        counted = _counted(weighted.weights, min(sigmas) / grid.pixel)
        things = torch.from_numpy((coords - np.array(grid.origin)) / np.array(grid.spacing))
        name = weighted.cells.name
        return regframe.Image(torch.from_numpy(data), grid, tuple(names), name=name, counted=counted, things=things)


def _counted(weights: Array, sigma: float) -> float | None:
    """Cells that a value of 1 stands for (`regframe.Image`), of Gaussians of ``sigma`` pixels; None where a weight is negative.

    Cells of density λ and weight w give a mean of λ E[w] and a variance of λ E[w²] / (4π σ²).
    """
    square = float(np.square(weights).mean())
    if float(weights.min()) < 0 or not square > 0:
        return None
    return 4 * math.pi * sigma**2 * float(weights.mean()) / square


def gene_names(cells: Cells, wanted: Sequence[str]) -> tuple[str, ...]:
    """The genes asked for; all that the cells have for ``["all"]``. ValueError where they have none."""
    names = cells.genes() if list(wanted) == ["all"] else tuple(wanted)
    if not names:
        raise ValueError(
            f"wanted genes in {cells.name!r} (columns of counts, or variables), got none; name them with genes=..."
        )
    return names


def library_scale(cells: Cells) -> NDArray[np.float64]:
    """Factor ``[N]`` that brings each cell's counts to the median total of a cell; 0 for cells without a count."""
    names = cells.genes()
    total = np.zeros(len(cells))
    for start in range(0, len(names), CHUNK):
        counts = cells.counts(names[start : start + CHUNK])
        if counts.min() < 0:
            raise ValueError(
                f"wanted counts of genes in {cells.name!r}, got negative ones, as of centred data; put the counts back first"
            )
        total += counts.sum(axis=1)
    if not names or not (total > 0).any():
        raise ValueError(
            f"wanted counts of genes in {cells.name!r} to scale by their totals, got none above 0; check the columns"
        )
    return np.divide(np.median(total[total > 0]), total, out=np.zeros_like(total), where=total > 0)


def _lengths(value: Any, option: str) -> tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        lengths = tuple(math.nan if isinstance(v, bool) else float(v) for v in parts)
    except (TypeError, ValueError):
        lengths = (math.nan,)
    if (
        not lengths
        or not all(math.isfinite(v) and v > 0 for v in lengths)
        or (option == "spacing" and len(lengths) > 1)
    ):
        raise ValueError(
            f"wanted a positive length{'' if option == 'spacing' else ' or several'} for {option}, got {value!r}"
        )
    return lengths


def _names(value: str | Sequence[str] | None, what: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [v.strip() for v in value.split(",")] if isinstance(value, str) else [str(v) for v in value]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"wanted distinct names of {what}, got {value!r}")
    return tuple(names)
