"""Files of microscopes: which of the makers' formats a file is, and its reader."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .fluoview import is_fluoview, open_fluoview
from .leica import is_lif, open_lif
from .nikon import is_nd2, open_nd2
from .olympus import is_olympus, open_vsi
from .raw import Raw
from .series import only_series
from .vendor import open_slide
from .zeiss import is_czi, open_czi

SUFFIXES = (".nd2", ".lif", ".lof", ".vsi", ".oir", ".oib", ".oif")
"""Suffixes of these files."""


def microscope_kind(path: Path, head: bytes) -> str | None:
    """The format of a microscope's file, None for another file.

    Args:
        path: of the file.
        head: its first bytes.
    """
    if is_fluoview(path, head):
        return "OIB"
    if is_olympus(path):
        return "VSI"
    if is_czi(head):
        return "CZI"
    if is_nd2(path, head):
        return "ND2"
    return "LIF" if is_lif(head) else None


def open_microscope(path: Path, kind: str, wanted: int | str | None) -> Raw:
    """The header of one image of a microscope's file.

    A CZI file is read by OpenSlide where the package for it is missing and OpenSlide is there.

    Args:
        path: of the file.
        kind: of `microscope_kind`.
        wanted: number or name of the image where there are several; None takes the largest.
    """
    if kind == "CZI" and importlib.util.find_spec("pylibCZIrw") is None and importlib.util.find_spec("openslide"):
        only_series(wanted, path.name)
        return open_slide(path)
    return {"CZI": open_czi, "ND2": open_nd2, "LIF": open_lif, "VSI": open_vsi, "OIB": open_fluoview}[kind](
        path, wanted
    )
