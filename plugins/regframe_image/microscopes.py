"""Files of microscopes: which of the makers' formats a file is, told by its first bytes or its suffix, and its reader.

The readers are loaded with the first file that they are for.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .raw import Raw
from .series import only_series
from .vendor import open_slide

SUFFIXES = (".nd2", ".lif", ".lof", ".vsi", ".oir", ".oib", ".oif")
"""Suffixes of these files."""

_COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""First bytes of a compound file, which an OIB is, and many others."""
_OLYMPUS = (".vsi", ".oir", ".poir", ".ets")
"""Suffixes of Olympus's files; a VSI begins as a TIFF, whose image is a preview of a few hundred pixels."""
_ND2 = (b"\xda\xce\xbe\x0a", b"\0\0\0\x0cjP  ")
"""First bytes of an ND2 file; those of the second, of programs before 2009, are those of any JPEG 2000 file."""


def microscope_kind(path: Path, head: bytes) -> str | None:
    """The format of a microscope's file, None for another file.

    Args:
        path: of the file.
        head: its first bytes.
    """
    name = path.name.lower()
    if name.endswith(".oif") or (name.endswith(".oib") and head.startswith(_COMPOUND)):
        return "OIB"
    if name.endswith(_OLYMPUS):
        return "VSI"
    if head.startswith(b"ZISRAWFILE"):
        return "CZI"
    if head.startswith(_ND2[0]) or (head.startswith(_ND2[1]) and name.endswith(".nd2")):
        return "ND2"
    return "LIF" if head.startswith(b"\x70\0\0\0") and head[8:9] == b"\x2a" else None  # LOF files begin so, too


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
    if kind == "CZI":
        from .zeiss import open_czi as read
    elif kind == "ND2":
        from .nikon import open_nd2 as read
    elif kind == "LIF":
        from .leica import open_lif as read
    elif kind == "VSI":
        from .olympus import open_vsi as read
    else:
        from .fluoview import open_fluoview as read
    return read(path, wanted)
