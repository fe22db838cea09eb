"""The scverse door for regframe: a result's map on AnnData and SpatialData objects, in their own terms and axis order (x, y)."""

from __future__ import annotations

from . import tl
from .anndata_door import align
from .spatialdata_door import align_elements, load_map, open_element

__all__ = ["align", "align_elements", "load_map", "open_element", "tl"]
