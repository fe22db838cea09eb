"""What makers of slide scanners write beside the pixels of a TIFF: Leica's collections, the pages of PerkinElmer and Akoya.

Also the files that an OME-TIFF names, and colour profiles.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from .ome import Declared
from .raw import Place

_SHOWN = 3
"""Names of missing files that a message lists."""
_TRIPLE = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*")
"""A colour as PerkinElmer writes one: red, green and blue from 0 to 255."""


def _parsed(text: str) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def scn_images(file: tifffile.TiffFile) -> list[Declared]:
    """What Leica's SCN declares of each of its images, in the order of the file's series.

    These are the pixel size in nm (the size of its view over its number of pixels), and names and colours of its channels.
    """
    root = _parsed(str(file.scn_metadata))
    out = []
    for image in root.iter() if root is not None else ():
        if _tag(image) != "image":
            continue
        parts = {_tag(child): child for child in image}
        if "pixels" not in parts:
            continue
        numbers = {}
        for axis, key in (("y", "sizeY"), ("x", "sizeX")):
            pixels = parts["pixels"].get(key, "")
            length = parts["view"].get(key, "") if "view" in parts else ""
            if pixels.isdecimal() and length.isdecimal() and int(pixels) > 0 and int(length) > 0:
                numbers[axis] = int(length) / int(pixels)
        channels = [c for c in image.iter() if _tag(c) == "channel"]
        names, colours = [c.get("name") or "" for c in channels], [str(c.get("rgb") or "") for c in channels]
        out.append(
            Declared(
                numbers,
                dict.fromkeys(numbers, "nm"),
                tuple(names) if names and all(names) and len(set(names)) == len(names) else (),
                tuple(c[1:].upper() for c in colours)
                if colours and all(re.fullmatch("#[0-9A-Fa-f]{6}", c) for c in colours)
                else (),
                name=image.get("name") or "",
            )
        )
    return out


def qpi_channels(series: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and colours ``RRGGBB`` of the channels of a QPTIFF, one for each page.

    A name is the biomarker where the page's XML has one, else its ``Name``. Empty where a page has none or two have the same.
    """
    names, colours = [], []
    for page in series.pages:
        root = _parsed(str(page.description)) if page is not None else None
        said = {} if root is None else {_tag(child): (child.text or "").strip() for child in root}
        names.append(said.get("Biomarker") or said.get("Name") or "")
        colour = _TRIPLE.fullmatch(said.get("Color", ""))
        colours.append("".join(f"{min(int(n), 255):02X}" for n in colour.groups()) if colour else "")
    told = len(names) > 1 and all(names) and len(set(names)) == len(names)
    return tuple(names) if told else (), tuple(colours) if len(colours) > 1 and all(colours) else ()


def absent_files(path: Path, file: tifffile.TiffFile) -> tuple[str, ...]:
    """Names of the files beside an OME-TIFF in which its OME-XML says that planes lie, and which are not there."""
    root = _parsed(file.ome_metadata) if file.is_ome and file.ome_metadata else None
    if root is None:
        return ()
    named = [one.get("FileName", "") for one in root.iter() if _tag(one) == "UUID" and one.get("FileName")]
    others = dict.fromkeys(n for n in named if n.lower() != path.name.lower())
    return tuple(n for n in others if not (path.parent / n).is_file())


def check_planes(absent: tuple[str, ...]) -> None:
    """ValueError, which names them, where a plane lies in files that are missing; nothing where none is."""
    if absent:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise ValueError(
            f"wanted the files that hold its other planes, got no {', '.join(absent[:_SHOWN])}{more} beside it; copy them into "
            "its folder under these names, or choose channels or planes that are there"
        )


def metadata_elsewhere(path: Path, file: tifffile.TiffFile) -> tuple[str, ...]:
    """What has to be said aloud of an OME-TIFF whose OME-XML lies in another file."""
    root = _parsed(file.ome_metadata) if file.is_ome and file.ome_metadata else None
    only = next((child for child in root if _tag(child) == "BinaryOnly"), None) if root is not None else None
    if only is None:
        return ()
    where = only.get("MetadataFile") or "another file"
    return (
        f"{path.name} says that what belongs to it lies in {where}; its own pages are read and no others, without pixel size and "
        "names",
    )


def profile_note(path: Place, profile: Any) -> tuple[str, ...]:
    """That a colour profile (ICC) is not applied, for `regframe info`; nothing where there is none."""
    if not profile:
        return ()
    return (f"{path.name}: its colour profile (ICC) is not applied; the colours are those that are stored",)
