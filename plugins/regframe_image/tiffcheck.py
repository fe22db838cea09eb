"""What a TIFF declares, held against its bytes before its images are made out.

The library makes a page of memory for every plane that OME-XML declares, opens the files that it names, and divides by the sizes
of tiles: so these are looked at first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import regframe

_MOST_PLANES = 1 << 20
"""Planes that OME-XML may declare of one image: a million, of a long time series in many channels."""
_MOST_PER_PAGE = 4096
"""Planes that OME-XML may declare for each page of the file, beside a few hundred: writers leave out planes that are empty, and
companions hold the rest; a file that names others may have any number."""
_MOST_SAMPLES = 4096
"""Samples per pixel: spectral cameras have some hundreds."""
_MOST_SIDE = 1 << 28
"""Pixels along one side; the largest slides have 2 to 20 million."""
_SPARE = 512
"""Planes that are never too many."""


def check_tiff(path: Path, file: Any) -> None:
    """ValueError, half a sentence, where the first page or the OME-XML of an opened TIFF cannot be what they say.

    Args:
        path: of the file.
        file: the ``tifffile.TiffFile``, of which no series was asked for yet.
    """
    _check_page(file.pages.first)
    if file.is_ome and file.ome_metadata:
        _check_ome(path, str(file.ome_metadata), len(file.pages))


def _check_page(page: Any) -> None:
    sides = {"ImageWidth": page.imagewidth, "ImageLength": page.imagelength}
    if page.is_tiled:
        sides |= {"TileWidth": page.tilewidth, "TileLength": page.tilelength}
    for name, n in sides.items():
        if not 1 <= n <= _MOST_SIDE:
            raise ValueError(f"its tag {name} is {n}, not from 1 to {_MOST_SIDE}")
    if not 1 <= page.samplesperpixel <= _MOST_SAMPLES:
        raise ValueError(f"its tag SamplesPerPixel is {page.samplesperpixel}, not from 1 to {_MOST_SAMPLES}")


def _check_ome(path: Path, xml: str, pages: int) -> None:
    try:
        elements = list(ElementTree.fromstring(xml).iter())
    except ElementTree.ParseError:
        return  # the library reads the pages without it
    for element in elements:
        tag = element.tag.rpartition("}")[2]
        if tag == "Pixels":
            sizes = {axis: _number(element.get(f"Size{axis}"), 1) for axis in "CZTYX"}
            planes = sizes["C"] * sizes["Z"] * sizes["T"]
            said = ", ".join(f"Size{axis} {n}" for axis, n in sizes.items())
            if planes > _MOST_PLANES or planes > _SPARE + _MOST_PER_PAGE * pages:
                raise ValueError(f"its OME-XML declares {planes} planes ({said}) for {pages} pages")
            if not 1 <= min(sizes.values()) <= max(sizes.values()) <= _MOST_SIDE:
                raise ValueError(f"its OME-XML declares {said}")
        elif tag == "TiffData":
            for name in ("IFD", "PlaneCount", "NumPlanes", "FirstC", "FirstZ", "FirstT"):
                if not 0 <= _number(element.get(name), 0) <= _MOST_PLANES:
                    raise ValueError(f"its OME-XML declares {name} {element.get(name)}")
        elif tag == "UUID":
            _check_companion(path, element.get("FileName", path.name))


def _check_companion(path: Path, name: str) -> None:
    """ValueError for another file of the same image that lies in another folder, or is none."""
    if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"its pages lie in other folders ({name[:80]})")
    regframe.gate.check_inside(path.parent / name, path.parent)


def _number(text: str | None, default: int) -> int:
    """A whole number of an attribute, -1 for anything else."""
    if text is None:
        return default
    return int(text) if len(text) < 19 and text.strip().isdecimal() else -1
