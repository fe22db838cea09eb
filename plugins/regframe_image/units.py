"""Length units as image files spell them, and the pixel size that a file declares, axis by axis."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import regframe

CONTRADICTION = 0.02
"""Relative difference of two statements of one pixel size above which one of them must be wrong. Makers round what they
declare to two or three digits (0.25 for 0.2527 µm: 1 %); a wrong level or objective is off by a factor of 1.5 or more."""

_PREFIXES = {
    "Y": ("yotta", 24), "Z": ("zetta", 21), "E": ("exa", 18), "P": ("peta", 15), "T": ("tera", 12), "G": ("giga", 9),
    "M": ("mega", 6), "k": ("kilo", 3), "h": ("hecto", 2), "da": ("deca", 1), "d": ("deci", -1), "c": ("centi", -2),
    "m": ("milli", -3), "µ": ("micro", -6), "n": ("nano", -9), "p": ("pico", -12), "f": ("femto", -15), "a": ("atto", -18),
    "z": ("zepto", -21), "y": ("yocto", -24),
}  # fmt: skip
"""Prefixes of the metre in OME's list of length units (``UnitsLength`` of the OME schema 2016-06): symbol, name, power of ten."""
_OTHERS = {
    "m": (1.0, ("meter", "metre")), "Å": (1e-10, ("angstrom", "ångström", "ångstrom", "A")),
    "µm": (1e-6, ("micron", "u", "mu", "um", "mum", "Âµm")),
    "thou": (2.54e-5, ("mil",)), "li": (0.0254 / 12, ("line",)), "in": (0.0254, ("inch", "inche", '"')),
    "ft": (0.3048, ("foot", "feet")), "yd": (0.9144, ("yard",)), "mi": (1609.344, ("mile",)), "pt": (0.0254 / 72, ("point",)),
    "ua": (1.495978707e11, ("au", "astronomicalunit", "astronomical_unit")),
    "ly": (9.4607304725808e15, ("lightyear", "light_year")),
    "pc": (3.0856775814913673e16, ("parsec",)),
}  # fmt: skip
"""OME's other length units, the metre and the micron: length in metres, and the names that people and UDUNITS-2 (which NGFF
prescribes) give them; ``Âµm`` is µm in UTF-8 read as Latin-1."""
NO_LENGTHS = frozenset(
    ("", "px", "pix", "pixel", "voxel", "vx", "slice", "plane", "frame", "section", "referenceframe", "reference frame")
)
"""Words in the place of a unit that mean one step of the grid, in the singular; the last two are OME's."""


def _table() -> dict[str, float]:
    """Length in metres by every spelling: symbols as they are, names in the singular and in the plural."""
    out: dict[str, float] = {}
    for symbol, (name, power) in _PREFIXES.items():
        names = (f"{name}meter", f"{name}metre", *(("dekameter", "dekametre") if symbol == "da" else ()))
        for word in (f"{symbol}m", *names, *(f"{n}s" for n in names)):
            out[word] = float(f"1e{power}")
    for symbol, (metres, names) in _OTHERS.items():
        for word in (symbol, *names, *(f"{n}s" for n in names if len(n) > 2)):
            out[word] = metres
    return out


def _normal(word: str) -> str:
    """A unit without quotes, escapes and look-alikes: both signs for micro (and the escape that ImageJ writes) become one, both
    signs for Ångström another."""
    word = (
        re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), str(word)).strip(" \t\r\n\0.'\"")
        or str(word).strip()
    )
    return unicodedata.normalize("NFKC", word).replace("μ", "µ")


_KNOWN = {unit: regframe.unit_ratio(unit, "m") or 1.0 for unit in regframe.OME_UNITS}
"""Length in metres of the units that regframe computes in."""
_METRES = {_normal(word): metres for word, metres in _table().items()}
"""Length in metres of every unit that is read, by its spelling."""
_FOLDED = {word.lower(): metres for word, metres in _METRES.items() if word.lower() not in _METRES}
"""Spellings in capitals (``NM``, ``MICRON``), where no other unit has the same letters."""


def length(word: str | None) -> tuple[str, float] | None:
    """A unit of an image file as one that regframe knows and how many of these it is: ``("nm", 0.1)`` for ``Å``; None for what
    is no length."""
    name = _normal(word or "")
    metres = _METRES.get(name) or _METRES.get(name.lower()) or _FOLDED.get(name.lower())
    if metres is None:
        return None
    for unit, own in _KNOWN.items():
        if math.isclose(metres, own, rel_tol=1e-12):
            return unit, 1.0
    unit = max((u for u in _KNOWN if _KNOWN[u] <= metres), key=_KNOWN.__getitem__, default="nm")
    return unit, metres / _KNOWN[unit]


def is_step(word: str | None) -> bool:
    """Whether a word in the place of a unit means one step of the grid (pixel, slice, none at all)."""
    name = _normal(word or "").lower()
    return name in NO_LENGTHS or (len(name) > 2 and name.removesuffix("s") in NO_LENGTHS)


def ratio(source: str, target: str) -> float | None:
    """Factor from one length unit to another; None where one is unknown or they cannot be converted."""
    one, two = length(source), length(target)
    if one is None or two is None:
        return 1.0 if is_step(source) and is_step(target) else None
    between = regframe.unit_ratio(one[0], two[0])
    return None if between is None else between * one[1] / two[1]


@dataclass(frozen=True)
class Calibration:
    """The pixel size that a file declares.

    Args:
        unit: of all lengths, ``px`` where no axis in the plane has one; None where the file declares nothing.
        factor: per axis that was read, what turns a number of the file into ``unit``.
        filled: per axis that was not, the distance of pixels to take instead, in ``unit``.
        doubts: sentences that quote what was declared and could not be read, each to be said aloud.
        notes: sentences for ``regframe info`` alone.
    """

    unit: str | None = None
    factor: dict[str, float] = field(default_factory=dict)
    filled: dict[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def spacing(self, numbers: Mapping[str, float], reduced: Mapping[str, float]) -> dict[str, float]:
        """Distance of pixels per axis, in ``unit``.

        Args:
            numbers: of the file, per axis.
            reduced: pixels of full resolution per pixel, for axes that are filled.
        """
        read = {a: abs(numbers[a]) * f for a, f in self.factor.items()}
        return read | {a: step * reduced.get(a, 1.0) for a, step in self.filled.items()}

    def origin(self, numbers: Mapping[str, float], reduced: Mapping[str, float]) -> dict[str, float]:
        """Position of the first pixel's centre per axis, in ``unit``; of an axis that was filled as pixels are averaged."""
        read = {a: numbers.get(a, 0.0) * f for a, f in self.factor.items()}
        return read | {a: step * (reduced.get(a, 1.0) - 1) / 2 for a, step in self.filled.items()}


def calibrate(
    numbers: Mapping[str, float], words: Mapping[str, str | None], axes: Sequence[str], name: str
) -> Calibration:
    """What a file declares of its pixel size, each axis by itself.

    An axis whose length cannot be read takes the distance of pixels in the plane, one that counts in pixels or slices that many
    of them, a number without a unit the unit of the plane: each is said. Where no axis of the plane has a length the numbers are
    kept as they are, in pixels: their ratio is known even so.

    Args:
        numbers: distance of pixels as the file states it, per axis; axes may be missing.
        words: its unit as the file spells it, per axis; None where it states none.
        axes: the spatial axes of the result, of more than one entry or in the plane.
        name: of the file, for messages.
    """
    doubts: list[str] = []
    found: dict[str, float] = {}
    for axis in axes:
        value = numbers.get(axis)
        if value is not None and (not math.isfinite(value) or value == 0):
            doubts.append(f"{name} declares a spacing of {value:g} along {axis}, which is none")
        elif value is not None:
            if value < 0:
                doubts.append(
                    f"{name} declares a spacing of {value:g} along {axis}, which is negative; its size is taken, and the "
                    "pixels in the order in which they are stored"
                )
            found[axis] = value
    if not found:
        return Calibration(doubts=tuple(doubts))
    lengths = {a: known for a in found if (known := length(words.get(a))) is not None}
    plane = [a for a in ("x", "y") if a in lengths]
    if not plane:
        return _in_pixels(found, words, axes, lengths, name, doubts)
    unit = lengths[plane[0]][0]
    factor = {a: own * (regframe.unit_ratio(known, unit) or 1.0) for a, (known, own) in lengths.items()}
    square = abs(found[plane[0]]) * factor[plane[0]]
    for axis in set(numbers) - set(axes):  # of one entry: no distance of pixels, but a position
        other = length(words.get(axis))
        if other is not None and math.isfinite(numbers[axis]):
            factor[axis] = other[1] * (regframe.unit_ratio(other[0], unit) or 1.0)
    filled = {}
    for axis in (a for a in axes if a not in factor):
        word = _normal(words.get(axis) or "")
        if axis in found and not word:
            filled[axis] = abs(found[axis]) * factor[plane[0]]
            why = f"in the unit along {plane[0]}"
        else:
            filled[axis] = (abs(found[axis]) if axis in found and is_step(word) else 1.0) * square
            why = f"from the pixel size along {plane[0]}"
        said = "no spacing"
        if axis in found:
            said = f"{found[axis]:g} {word}, which is no length," if word else f"{found[axis]:g} without a unit"
        doubts.append(
            f"{name} declares {said} along {axis}; {filled[axis]:g} {unit} is taken, {why}; state spacing where that is wrong"
        )
    return Calibration(unit, factor, filled, tuple(doubts))


def _in_pixels(
    found: dict[str, float],
    words: Mapping[str, str | None],
    axes: Sequence[str],
    lengths: Mapping[str, tuple[str, float]],
    name: str,
    doubts: list[str],
) -> Calibration:
    """Numbers of a file that states no length in its plane, in pixels: as they are where they have no unit or count in pixels,
    in their ratio where they have an unknown one. An axis with another word than those of the plane, or without a number, is
    as wide as they are."""
    notes: list[str] = []
    word = next(_normal(words.get(a) or "") for a in ("x", "y", "z") if a in found)
    same = [a for a in axes if a in found and a not in lengths and _normal(words.get(a) or "") == word]
    quoted = ", ".join(
        f"{found[a]:g} {_normal(words.get(a) or '')}".strip() + f" along {a}" for a in axes if a in found
    )
    kept = f"{name} declares {quoted}, in no unit of length in its plane; positions are in pixels, in these proportions"
    if not same:
        same = [a for a in axes if a in found and a not in lengths]
    plain = all(is_step(words.get(a)) for a in found)
    finest = min((abs(found[a]) for a in ("y", "x") if a in same), default=1.0)
    scale = 1.0 if plain else 1.0 / finest  # of an unknown unit the ratios count
    if not (plain and all(abs(found[a]) == 1 for a in found)):
        (notes if plain else doubts).append(kept)
    one = next((abs(found[a]) * scale for a in ("x", "y") if a in same), 1.0)
    return Calibration(
        "px", dict.fromkeys(same, scale), {a: one for a in axes if a not in same}, tuple(doubts), tuple(notes)
    )
