"""Cells for regframe: tables of cells, spots or transcripts rasterised into images; the adapter ``cells``."""

from __future__ import annotations

import regframe

from .adapter import CellsAdapter
from .components import shared_components
from .raster import canvas, propose_spacing, rasterize
from .tables import Cells, read_cells

__all__ = ["Cells", "CellsAdapter", "canvas", "propose_spacing", "rasterize", "read_cells", "shared_components"]


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapter of this plug-in."""
    return [CellsAdapter]
