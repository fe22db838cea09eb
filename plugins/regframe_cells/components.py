"""Principal components that two data sets share: expression drives the match, whatever single genes do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import regframe

from .drawing import Drawing, Weighted, gene_names, library_scale
from .raster import MARGIN, Array, canvas, near, rasterize
from .tables import Cells, read_cells

MOST_GENES = 2000
"""Genes whose rasters are compared at most, those with the largest shares of the counts in both data sets: as many as single-cell
analyses keep of a whole transcriptome, and their covariance takes 32 MB."""
VALUES = 1 << 26
"""Values (pixels times genes, float32) of all gene rasters together at most: 256 MiB. Where there are many genes, their rasters
are coarser than the image."""
CHUNK = 64
"""Genes whose weights are held at once; fewer where cells times genes would exceed `VALUES`."""
VARIES = 1e-9
"""Standard deviation of a gene's raster, over the largest one, below which the gene is constant and gets no say: rounding."""


def shared_components(
    fixed: Any,
    moving: Any,
    n: int = 5,
    *,
    genes: str | Sequence[str] | None = None,
    types: str | None = None,
    columns: str | Sequence[str] | None = None,
    unit: str | None = None,
    **drawing: Any,
) -> tuple[regframe.Image, regframe.Image]:
    """Both data sets as images of the ``n`` leading principal components of the rasters of what both have.

    Counts are scaled to the median total of a cell; each gene's raster is measured in its standard deviation over both
    data sets; the components are those of the mean of both covariances. An image of components is linear in the cells,
    so its channels are rasters of weighted cells as exact as any other. The channels are turned among themselves so that
    each holds an equal share of the first component: squared differences summed over channels stay what they are, no
    channel is noise alone, and what the channels have in common, which the search for a pose looks at, is the first
    component on both sides.

    Args:
        fixed: cells, in any form that `read_cells` takes.
        moving: cells, in any form that `read_cells` takes.
        n: number of components; fewer where the data sets share fewer genes.
        genes: names, or all that both have where None.
        types: instead of genes a column with the type of each cell.
        columns: position columns of both sides, as for `CellsAdapter`.
        unit: of both sides, as for `CellsAdapter`.
        drawing: ``spacing``, ``sigma``, ``weights`` and ``threads`` of `CellsAdapter`, for both sides.

    Returns:
        The images of the fixed and of the moving side, ``[n, H, W]`` each.

    Raises:
        ValueError: where the two share no gene or type, or an option cannot be as it is.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"wanted 1 or more components, got {n!r}")
    chosen = Drawing.of(types=types, genes="all" if genes is None and types is None else genes, **drawing)
    named = columns if columns is None or isinstance(columns, str) else ",".join(map(str, columns))
    sides = [read_cells(side, named, unit) for side in (fixed, moving)]
    return project(sides[0], sides[1], n, chosen)


def project(one: Cells, other: Cells, n: int, drawing: Drawing) -> tuple[regframe.Image, regframe.Image]:
    """The images of both sides; exchanging the sides exchanges the images and changes no byte."""
    sources = [_Source(one, drawing), _Source(other, drawing)]
    names = sorted(set(sources[0].names) & set(sources[1].names))
    if not names:
        raise ValueError(
            f"wanted genes or types that both data sets have, got none common to {one.name!r} and {other.name!r}; "
            "check how they are named"
        )
    if len(names) > MOST_GENES:
        totals = [source.totals(names) for source in sources]
        rank = np.minimum(totals[0] / totals[0].sum(), totals[1] / totals[1].sum())
        names = sorted(names[i] for i in np.argsort(-rank, kind="stable")[:MOST_GENES])
    moments = [source.covariance(names) for source in sources]
    covariance = moments[0] + moments[1]  # the order does not matter to a sum of two
    deviation = np.sqrt(np.diag(covariance))
    gain = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > VARIES * deviation.max())
    _, vectors = np.linalg.eigh(gain[:, None] * covariance * gain[None])
    n = min(n, len(names))
    vectors = vectors[:, ::-1][:, :n]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n)])
    loadings = (gain[:, None] * vectors) @ _turn(n)  # [G, n]
    channels = tuple(f"component {i + 1}" for i in range(n))
    weighted = [Weighted(source.cells, source.project(names, loadings), channels) for source in sources]
    images = [drawing.raster(one).replace(counted=None) for one in weighted]  # contrasts are no counts
    return images[0], images[1]


class _Source:
    """One side: its cells and the weight of each in each gene or type, `CHUNK` of them at a time."""

    def __init__(self, cells: Cells, drawing: Drawing) -> None:
        self.cells, self.drawing = cells, drawing
        self.chunk = max(1, min(CHUNK, VALUES // len(cells)))
        self.each = drawing.each(cells)[:, 0]
        if drawing.types is not None:
            self.words = cells.words(drawing.types)
            self.names = tuple(str(word) for word in np.unique(self.words) if word)
        else:
            self.names = cells.genes() if drawing.genes == ("all",) else gene_names(cells, drawing.genes or ("all",))
            self.each = self.each * library_scale(cells)

    def weigh(self, names: list[str]) -> Array:
        """The weight of each cell in each of these genes or types ``[N, len(names)]``."""
        if self.drawing.types is not None:
            weights: Array = (self.words[:, None] == np.array(names)[None]) * self.each[:, None]
            return weights
        return self.cells.counts(names) * self.each[:, None]

    def totals(self, names: list[str]) -> Array:
        """Sum over the cells of their weights, per gene or type ``[G]``."""
        out: Array = np.concatenate([self.weigh(part).sum(axis=0) for part in _parts(names, self.chunk)])
        return out

    def covariance(self, names: list[str]) -> Array:
        """Covariance of the genes' rasters over the canvas ``[G, G]``, in squared weights per squared area: as densities, so that
        it does not depend on the size of a pixel."""
        grid, sigmas = self.drawing.grid(self.cells)
        coarser = math.sqrt(max(1.0, math.prod(grid.shape) * len(names) / VALUES))
        spacing, sigma = grid.spacing[0] * coarser, min(sigmas)
        sigma = max(sigma, spacing)
        coords = self.cells.coords.numpy()
        grid = canvas(coords[near(coords)], spacing, MARGIN * sigma, grid.unit)
        flat: NDArray[np.float32] = np.concatenate(
            [
                rasterize(self.cells.coords.numpy(), self.weigh(part), grid, [sigma], self.drawing.threads).reshape(
                    len(part), -1
                )
                for part in _parts(names, self.chunk)
            ]
        )
        flat /= spacing**2
        flat -= flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        product = (flat @ flat.T).astype(np.float64) / flat.shape[1]
        out: Array = (product + product.T) / 2
        return out

    def project(self, names: list[str], loadings: Array) -> Array:
        """The weight of each cell in each component ``[N, n]``, of loadings ``[G, n]``."""
        out = np.zeros((len(self.cells), loadings.shape[1]))
        start = 0
        for part in _parts(names, self.chunk):
            out += self.weigh(part) @ loadings[start : start + len(part)]
            start += len(part)
        return out


def _parts(names: list[str], size: int) -> list[list[str]]:
    return [names[i : i + size] for i in range(0, len(names), size)]


def _turn(n: int) -> Array:
    """An orthogonal matrix ``[n, n]`` whose first row is constant: the cosine transform."""
    row, column = np.arange(n)[:, None], np.arange(n)[None]
    out: Array = np.sqrt(2 / n) * np.cos(np.pi * row * (column + 0.5) / n)
    out[0] = 1 / math.sqrt(n)
    return out
