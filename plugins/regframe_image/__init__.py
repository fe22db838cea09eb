"""Raster images for regframe: the adapter ``image`` (PNG, JPEG, TIFF, OME-TIFF, SVS, OME-Zarr, npy, arrays)."""

from __future__ import annotations

import regframe

from .adapter import ImageAdapter

__all__ = ["ImageAdapter", "regframe_adapters"]


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapter of this plug-in."""
    return [ImageAdapter]
