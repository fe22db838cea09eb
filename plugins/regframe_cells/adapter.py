"""The adapter ``cells``: a table of cells as the image of their density, types or genes, and back as the same table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import regframe

from .components import project
from .drawing import Drawing
from .raster import hull, near
from .tables import ANNDATA, KEY_ADDED, PARQUET, Cells, read_cells, write_cells

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

FIELDS = ("all", "hull")
"""Where no cells means no tissue: everywhere, or within the convex hull of the cells."""


class CellsAdapter(regframe.Adapter):
    """Tables of cells, spots or transcripts (text, Parquet, h5ad, data frame, AnnData) rasterised as sums of Gaussians.

    One channel ``density`` that counts the cells, or a channel per weight (``weights``), cell type (``types``), gene
    (``genes``) or component of the genes (``components``). Each cell adds exactly its weight to the sum over the raster,
    also at the border. Cells are opened as an image; `apply` carries the table itself.

    Args:
        columns: position columns where their names leave it open, ``"x=NAME,y=NAME"``; an entry of ``obsm`` of an AnnData, with
            its columns by name or number where it has more than two, ``"spatial:x=0,y=1"``; the order ``"x,y"`` of an array's
            columns.
        unit: of columns that declare none; that of the instrument where it is known, else ``px``.
        spacing: pixel size, in the unit of the positions; None: a third of the width of the room
            that a cell has, see `propose_spacing`.
        sigma: standard deviation of the Gaussians in the same unit, or several (``"20,80"``), each with channels of its
            own; None: 1.5 pixels.
        weights: column of numbers that cells count with instead of 1; several get a channel each, ``density`` among them stands
            for 1 (``"density,area"``).
        types: column whose values get a channel each; cells without a value get none.
        genes: a channel per gene: names (``"ACTA2,PTPRC"``), or ``all``; counts are scaled to the median total of a cell.
        components: how many leading principal components of the genes or types get a channel each, instead of these.
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
    writes: ClassVar[Mapping[type, tuple[str, ...]]] = {regframe.PointSet: (".parquet", ".h5ad")}

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
        self.unit = None if unit is None else regframe.canonical_unit(unit)
        self.drawing = Drawing.of(spacing, sigma, weights, types, genes, threads)
        if (components is None) != (beside is None) or (components is not None and types is None and genes is None):
            raise ValueError(
                "wanted components together with beside (the other data set) and genes or types, got "
                f"components={components!r}, beside={'none' if beside is None else 'given'}; see also shared_components"
            )
        if components is not None and (
            isinstance(components, bool) or not isinstance(components, int) or components < 1
        ):
            raise ValueError(f"wanted 1 or more components, got {components!r}")
        self.components, self.beside = components, beside
        self.channels: list[int | str] | None = None if channels is None else _choices(channels)
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
        return read_cells(source, self.columns, self.unit, self.scale_factor, genes=self.drawing.genes is not None)

    def open(self, source: Any) -> regframe.Image:
        """The raster ``[C, H, W]`` float32, a margin of three standard deviations around the outermost cells.

        Raises ValueError with one sentence where the table cannot be read or rasterised as asked.
        """
        cells = self.read(source)
        if self.components is None:
            image = self.drawing.raster(self.drawing.weigh(cells))
        else:
            image = project(cells, self.read(self.beside), self.components, self.drawing)[0]
        return self._choose(self._within(image, cells))

    def _within(self, image: regframe.Image, cells: Cells) -> regframe.Image:
        """The raster with weight 0 outside the field that the cells were taken from."""
        if self.field == "all":
            return image
        coords = cells.coords.numpy()
        return image.replace(weight=torch.from_numpy(hull(coords[near(coords)], image.grid)))

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


def _choices(value: int | str | Sequence[int | str]) -> list[int | str]:
    items = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
    return [item.strip() if isinstance(item, str) else item for item in items]
