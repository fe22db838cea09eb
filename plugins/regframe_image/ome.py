"""OME-XML, which describes the images in a TIFF or beside an OME-Zarr: pixel sizes, channel names and colours."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from xml.etree import ElementTree

import regframe

from .units import length


@dataclass(frozen=True)
class Declared:
    """What a file declares of one image.

    Args:
        numbers: distance of pixels at full resolution per axis, as it is written.
        words: its unit per axis, as it is written; None where there is none.
        channels: names of the channels, empty where one of them has none.
        colors: ``RRGGBB`` per channel, empty where one of them has none.
        samples: stored samples of the channels in order, such as ``(3,)`` for one channel in colour.
        name: of the image.
        size: entries along y and x; (0, 0) where it is not said.
        waves: excitation and emission wavelength of each channel in nm, None each where it is not said; empty where none is.
        stage: position of the stage along y and x in µm, for the first plane that states one; empty where none does.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    words: dict[str, str | None] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    name: str = ""
    size: tuple[int, int] = (0, 0)
    waves: tuple[tuple[float | None, float | None], ...] = ()
    stage: tuple[float, ...] = ()


def from_ome(xml: str) -> list[Declared]:
    """The declarations of every image in an OME-XML text; none of a text that is no XML or describes no pixels."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return []
    out: list[Declared] = []
    for image in root:
        if _tag(image) == "Image":
            out.extend(_declared(pixels, image.get("Name") or "") for pixels in image if _tag(pixels) == "Pixels")
    return out


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _declared(pixels: ElementTree.Element, name: str) -> Declared:
    described = [c for c in pixels if _tag(c) == "Channel"]
    names, painted = [c.get("Name") for c in described], [c.get("Color") for c in described]
    colors: tuple[str, ...] = ()
    if painted and all(c is not None and re.fullmatch(r"-?\d+", c) for c in painted):
        colors = tuple(f"{(int(str(c)) >> 8) & 0xFFFFFF:06X}" for c in painted)  # a signed RGBA
    numbers: dict[str, float] = {}
    words: dict[str, str | None] = {}
    for axis in "zyx":
        text = pixels.get(f"PhysicalSize{axis.upper()}")
        try:
            numbers[axis] = float(str(text).replace(",", "."))
        except ValueError:
            continue
        words[axis] = pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm")  # the default of the schema
    return Declared(
        numbers,
        words,
        tuple(map(str, names)) if names and all(names) else (),
        colors,
        tuple(_whole(c.get("SamplesPerPixel"), 1) for c in described),
        name,
        (_whole(pixels.get("SizeY"), 0), _whole(pixels.get("SizeX"), 0)),
        stated([(_wave(c, "Excitation"), _wave(c, "Emission")) for c in described]),
        _stage(pixels),
    )


def _stage(pixels: ElementTree.Element) -> tuple[float, ...]:
    """Where the stage stood, in µm. The schema's unit where none is stated, ``reference frame``, says nothing: µm are assumed."""
    for plane in pixels:
        if _tag(plane) != "Plane":
            continue
        found = []
        for axis in "YX":
            unit = length(plane.get(f"Position{axis}Unit"))
            factor = 1.0 if unit is None else unit[1] * (regframe.unit_ratio(unit[0], "µm") or 1.0)
            try:
                found.append(float(str(plane.get(f"Position{axis}")).replace(",", ".")) * factor)
            except ValueError:
                break
        if len(found) == 2 and all(map(math.isfinite, found)):
            return tuple(found)
    return ()


def stated(waves: list[tuple[float | None, float | None]]) -> tuple[tuple[float | None, float | None], ...]:
    """The wavelengths of all channels; empty where none is known."""
    return tuple(waves) if any(wave != (None, None) for wave in waves) else ()


def _wave(channel: ElementTree.Element, kind: str) -> float | None:
    """A wavelength of a channel in nm; None where it is not stated in a unit that is known."""
    factor = {"nm": 1.0, "µm": 1000.0, "Å": 0.1}.get(channel.get(f"{kind}WavelengthUnit", "nm"))  # nm: of the schema
    try:
        length = float(str(channel.get(f"{kind}Wavelength")))
    except ValueError:
        return None
    return length * factor if factor is not None and 0 < length < 1e6 else None


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


def described(images: list[Declared], index: int, count: int, name: str, size: tuple[int, int]) -> Declared:
    """The declarations of one of ``count`` images in a file: by its place where as many are described, else by its name and size,
    or by its size alone; empty where none fits."""
    if len(images) == count and 0 <= index < count:
        return images[index]
    fits = [d for d in images if d.size == size]
    named = [d for d in fits if d.name == name]
    return next(iter([*named, *fits]), Declared())
