"""Principal components that two data sets share: expression drives the match, whatever single genes do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import regframe

from .raster import Array, canvas, rasterize
from .tables import Cells, read_cells

if TYPE_CHECKING:
    from .adapter import CellsAdapter

MOST_GENES = 2000
"""Genes whose rasters are compared at most: those with the largest totals in both data sets."""
VALUES = 1 << 26
"""Values of all gene rasters together at most: they are coarser than the image where there are many genes."""


def shared_components(
    fixed: Any,
    moving: Any,
    n: int = 5,
    *,
    genes: str | tuple[str, ...] | list[str] | None = None,
    types: str | None = None,
    **options: Any,
) -> tuple[regframe.Image, regframe.Image]:
    """Both data sets as images of the ``n`` leading principal components of the rasters of what both have.

    Counts are scaled to the median total of a cell; each gene's raster is measured in its standard deviation over both
    data sets; the components are those of the mean of both covariances. An image of components is linear in the cells,
    so its channels are rasters of weighted cells as exact as any other. The channels are turned among themselves so that
    each holds an equal share of the first component: squared differences summed over channels stay what they are, no
    channel is noise alone, and what the channels have in common, which the search for a pose looks at, is the first
    component on both sides.

    Args:
        fixed: anything `read_cells` reads.
        moving: likewise.
        n: number of components; fewer where the data sets share fewer genes.
        genes: names, or all that both have where None.
        types: instead of genes a column with the type of each cell.
        options: of `CellsAdapter`, for both sides (``columns``, ``unit``, ``spacing``, ``sigma``, ``weights``, ``threads``).

    Raises:
        ValueError: where the two share no gene or type, or as `CellsAdapter` does.
    """
    from .adapter import CellsAdapter

    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"wanted 1 or more components, got {n!r}")
    adapter = CellsAdapter(types=types, genes="all" if genes is None and types is None else genes, **options)
    sides = [read_cells(side, adapter.columns, adapter.unit) for side in (fixed, moving)]
    return project(sides[0], sides[1], n, adapter, adapter)


def project(
    one: Cells, other: Cells, n: int, of_one: CellsAdapter, of_other: CellsAdapter
) -> tuple[regframe.Image, regframe.Image]:
    """The images of both sides; exchanging the sides exchanges the images and changes no byte."""
    from .adapter import Weighted

    sources = [_Source(one, of_one), _Source(other, of_other)]
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
    gain = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-9 * deviation.max())
    _, vectors = np.linalg.eigh(gain[:, None] * covariance * gain[None])
    n = min(n, len(names))
    vectors = vectors[:, ::-1][:, :n]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n)])
    loadings = (gain[:, None] * vectors) @ _turn(n)  # [G, n]
    channels = tuple(f"component {i + 1}" for i in range(n))
    images = [
        source.adapter.raster(Weighted(source.cells, source.project(names, loadings), channels)) for source in sources
    ]
    return images[0], images[1]


class _Source:
    """One side: its cells and what each weighs in each gene or type, a few at a time."""

    def __init__(self, cells: Cells, adapter: CellsAdapter) -> None:
        from .adapter import gene_names, library_scale

        self.cells, self.adapter = cells, adapter
        self.chunk = max(1, min(64, VALUES // len(cells)))
        self.each = adapter.each(cells)[:, 0]
        if adapter.types is not None:
            self.words = cells.words(adapter.types)
            self.names = tuple(str(word) for word in np.unique(self.words) if word)
        else:
            self.names = cells.genes() if adapter.genes == ("all",) else gene_names(cells, adapter.genes or ("all",))
            self.each = self.each * library_scale(cells)

    def weigh(self, names: list[str]) -> Array:
        """``[N, len(names)]``."""
        if self.adapter.types is not None:
            weights: Array = (self.words[:, None] == np.array(names)[None]) * self.each[:, None]
            return weights
        return self.cells.counts(names) * self.each[:, None]

    def totals(self, names: list[str]) -> Array:
        """``[G]``."""
        out: Array = np.concatenate([self.weigh(part).sum(axis=0) for part in _parts(names, self.chunk)])
        return out

    def covariance(self, names: list[str]) -> Array:
        """Of the rasters over their canvas ``[G, G]``, in densities."""
        grid, sigmas = self.adapter.grid(self.cells)
        coarser = math.sqrt(max(1.0, math.prod(grid.shape) * len(names) / VALUES))
        spacing, sigma = grid.spacing[0] * coarser, min(sigmas)
        sigma = max(sigma, spacing)
        grid = canvas(self.cells.coords.numpy(), spacing, 3 * sigma, grid.unit)
        flat: NDArray[np.float32] = np.concatenate(
            [
                rasterize(self.cells.coords.numpy(), self.weigh(part), grid, [sigma], self.adapter.threads).reshape(
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
        """``[N, n]``."""
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
