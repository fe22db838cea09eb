"""The adapter ``cells``: a table of cells as the image of their density, types or genes, and back as the same table."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import regframe

from .raster import MARGIN, Array, canvas, check_size, hull, propose_spacing, rasterize
from .tables import ANNDATA, KEY_ADDED, PARQUET, Cells, read_cells, write_cells

MOST_WEIGHTS = 1 << 28
"""Counts of genes held at once: 2 GiB."""
SIGMA = 1.5
"""Standard deviation of a cell's Gaussian where none is given, in pixels."""


FIELDS = ("all", "hull")
"""What is known to be empty where there are no cells."""


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


class CellsAdapter(regframe.Adapter):
    """Tables of cells, spots or transcripts (text, Parquet, h5ad, data frame, AnnData) rasterised as sums of Gaussians.

    One channel ``density`` that counts the cells, or a channel per weight (``weights``), cell type (``types``), gene
    (``genes``) or component of the genes (``components``). Each cell adds exactly its weight to the sum over the raster,
    also at the border. Cells are opened as an image; `apply` carries the table itself.

    Args:
        columns: position columns where their names leave it open, ``"x=NAME,y=NAME"``; an entry of ``obsm`` (x, y) of an
            AnnData; the order ``"x,y"`` of an array's columns.
        unit: of columns that declare none; that of the instrument where it is known, else ``px``.
        spacing: pixel size, in the unit of the positions; None: the room that a cell has, see `propose_spacing`.
        sigma: standard deviation of the Gaussians in the same unit, or several (``"20,80"``), each with channels of its
            own; None: 1.5 pixels.
        weights: column of numbers that cells count with instead of 1; several get a channel each, ``density`` among them stands
            for 1 (``"density,area"``).
        types: column whose values get a channel each; cells without a value get none.
        genes: a channel per gene: names (``"ACTA2,PTPRC"``), or ``all``; counts are scaled to the median total of a cell.
        components: instead of the genes or types their leading principal components, so many; see ``beside``.
        beside: the other data set of the pair, read like this one, that shares the components; needed with ``components``.
        channels: channels to keep, by name or number.
        scale_factor: what positions of spots are multiplied by, an entry of the ``scalefactors`` of an AnnData
            (``tissue_hires_scalef``, ``LIBRARY/tissue_hires_scalef``); nothing is scaled unless asked for.
        key_added: entry of ``obsm`` that gets the positions in an h5ad that is written; those it had are kept.
        field: ``"hull"`` where the table holds only the part of a tissue that was imaged: what lies outside the convex hull of
            its cells then is unknown, not empty, and does not count. ``"all"``: where there are no cells there is no tissue.
        threads: 0 for all cores.
    """

    name = "cells"

    def __init__(
        self,
        columns: str | Sequence[str] | None = None,
        unit: str | None = None,
        spacing: float | None = None,
        sigma: float | str | Sequence[float] | None = None,
        weights: str | Sequence[str] | None = None,
        types: str | None = None,
        genes: str | Sequence[str] | None = None,
        components: int | None = None,
        beside: Any = None,
        channels: int | str | Sequence[int | str] | None = None,
        threads: int = 0,
        field: str = "all",
        scale_factor: str | None = None,
        key_added: str = KEY_ADDED,
    ) -> None:
        self.columns = columns if columns is None or isinstance(columns, str) else ",".join(map(str, columns))
        self.unit = None if unit is None else regframe.Grid((1, 1), unit=unit).unit
        self.spacing = None if spacing is None else _lengths(spacing, "spacing")[0]
        self.sigma = None if sigma is None else _lengths(sigma, "sigma")
        if types is not None and not isinstance(types, str):
            raise ValueError(f"wanted the name of a column for types, got {types!r}")
        self.weights = _names(weights, "columns of numbers") or ("density",)
        if len(self.weights) > 1 and (types is not None or genes is not None):
            raise ValueError(
                f"wanted one column of weights beside types or genes, got {', '.join(self.weights)}; choose"
            )
        if types is not None and genes is not None:
            raise ValueError("wanted types or genes, got both; open the table once for each")
        if (components is None) != (beside is None) or (components is not None and types is None and genes is None):
            raise ValueError(
                "wanted components together with beside (the other data set) and genes or types, got "
                f"components={components!r}, beside={'none' if beside is None else 'given'}; see also shared_components"
            )
        if components is not None and (
            isinstance(components, bool) or not isinstance(components, int) or components < 1
        ):
            raise ValueError(f"wanted 1 or more components, got {components!r}")
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise ValueError(f"wanted 0 (all cores) or more threads, got {threads!r}")
        self.types, self.genes = types, _names(genes, "genes, or all")
        self.components, self.beside = components, beside
        self.channels: list[int | str] | None = None if channels is None else _choices(channels)
        self.threads = threads
        if field not in FIELDS:
            raise ValueError(f"wanted the field to be one of {', '.join(FIELDS)}, got {field!r}")
        self.field = field
        if not isinstance(key_added, str) or not key_added or "/" in key_added:
            raise ValueError(f"wanted a name for an entry of obsm as key_added, got {key_added!r}")
        if scale_factor is not None and (not isinstance(scale_factor, str) or not scale_factor):
            raise ValueError(f"wanted the name of a scale factor, got {scale_factor!r}; scale positions beforehand")
        self.scale_factor, self.key_added = scale_factor, key_added

    def matches(self, source: Any) -> float:
        """1 for `Cells`, 0.9 for an AnnData or a data frame, 0.8 for a Parquet or h5ad file; 0 for text tables: `points` reads
        these unless ``cells`` is named."""
        if isinstance(source, Cells):
            return 1.0
        if isinstance(source, (str, os.PathLike)):
            path = Path(source)
            if not path.name.lower().endswith((*PARQUET, *ANNDATA)) or not path.is_file():
                return 0.0
            with path.open("rb") as file:
                head = file.read(8)
            return 0.8 if head[:4] == b"PAR1" or head == b"\x89HDF\r\n\x1a\n" else 0.1
        kind = type(source).__module__.partition(".")[0]
        return 0.9 if kind in ("anndata", "pandas") and hasattr(source, "shape") else 0.0

    def read(self, source: Any) -> Cells:
        """The cells with all that came with them; errors as of `read_cells`."""
        return read_cells(source, self.columns, self.unit, self.scale_factor, genes=self.genes is not None)

    def open(self, source: Any) -> regframe.Image:
        """The raster ``[C, H, W]`` float32, a margin of three standard deviations around the outermost cells.

        Raises ValueError with one sentence where the table cannot be read or rasterised as asked.
        """
        if self.components is not None:
            from .components import project

            other = CellsAdapter(
                self.columns,
                self.unit,
                self.spacing,
                self.sigma,
                self.weights,
                self.types,
                self.genes,
                scale_factor=self.scale_factor,
            )
            cells = self.read(source)
            return self._choose(
                self._within(project(cells, other.read(self.beside), self.components, self, other)[0], cells)
            )
        cells = self.read(source)
        return self._choose(self._within(self.raster(self.weigh(cells)), cells))

    def _within(self, image: regframe.Image, cells: Cells) -> regframe.Image:
        """The raster with weight 0 outside the field that the cells were taken from."""
        if self.field == "all":
            return image
        return image.replace(weight=torch.from_numpy(hull(cells.coords.numpy(), image.grid)))

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> Cells:
        """The same table in the same order, positions carried by ``transform``; ``grid`` plays no part."""
        cells = read_cells(source, self.columns, self.unit, self.scale_factor, genes=False)
        moved = regframe.move_points(cells, transform)
        assert isinstance(moved, Cells)
        return moved

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write the table by suffix, added columns last: text, ``.parquet``, ``.h5ad`` of what came as one (`write_cells`)."""
        if not isinstance(data, regframe.PointSet):
            raise TypeError(
                f"wanted cells to write a table, got {type(data).__name__}; the adapter image writes rasters"
            )
        write_cells(data if isinstance(data, Cells) else read_cells(data), Path(path), self.key_added)

    def weigh(self, cells: Cells) -> Weighted:
        """What each cell weighs in each channel."""
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
        """What each cell counts ``[N, W]``: 1, or the columns of weights."""
        ones = np.ones(len(cells))
        return np.stack(
            [ones if w == "density" and w not in cells.table else cells.numbers(w, "weights") for w in self.weights],
            axis=1,
        )

    def grid(self, cells: Cells) -> tuple[regframe.Grid, tuple[float, ...]]:
        """The canvas of these cells and the standard deviations, in their unit."""
        coords = cells.coords.numpy()
        spacing = self.spacing or propose_spacing(coords)
        sigmas = self.sigma or (SIGMA * spacing,)
        extent = (np.ptp(coords, axis=0) + 2 * MARGIN * max(sigmas)) / spacing
        if float(extent[0]) * float(extent[1]) > 1e12:
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
        return regframe.Image(torch.from_numpy(data), grid, tuple(names), name=weighted.cells.name)

    def _choose(self, image: regframe.Image) -> regframe.Image:
        if self.channels is None:
            return image
        chosen = []
        for channel in self.channels:
            if isinstance(channel, str) and channel in image.channels:
                chosen.append(image.channels.index(channel))
            elif isinstance(channel, int) and 0 <= channel < len(image.channels):
                chosen.append(channel)
            else:
                listed = ", ".join(image.channels[:12]) + (" …" if len(image.channels) > 12 else "")
                raise ValueError(f"wanted a channel of {image.name!r} by name or number ({listed}), got {channel!r}")
        return image.replace(data=image.data[chosen].contiguous(), channels=tuple(image.channels[i] for i in chosen))


def gene_names(cells: Cells, wanted: Sequence[str]) -> tuple[str, ...]:
    """The genes asked for, or all there are."""
    names = cells.genes() if list(wanted) == ["all"] else tuple(wanted)
    if not names:
        raise ValueError(
            f"wanted genes in {cells.name!r} (columns of counts, or variables), got none; name them with genes=..."
        )
    return names


def library_scale(cells: Cells, chunk: int = 256) -> NDArray[np.float64]:
    """What brings each cell's counts to the median total ``[N]``; cells without a count stay empty."""
    names = cells.genes()
    total = np.zeros(len(cells))
    for start in range(0, len(names), chunk):
        counts = cells.counts(names[start : start + chunk])
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


def _choices(value: int | str | Sequence[int | str]) -> list[int | str]:
    items = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
    return [item.strip() if isinstance(item, str) else item for item in items]
