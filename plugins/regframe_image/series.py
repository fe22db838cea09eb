"""Several images in one file: which of them is the scan, which the label of the glass, and which one was asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import regframe

from .units import length

_BESIDE = {
    "label": r"label(?![\W_]*free)|barcode|slide[\W_]*photo",
    "macro": r"macro|overview|navigation|^map$",
    "thumbnail": r"thumb(?:nail)?|preview",
}
"""What else than the scan a slide file holds, and the words by which writers name it."""


_COARSE = 10.0
"""How many times another image's pixel size makes one an overview or a label: photographs of a glass have pixels of 8 to 50 µm,
scans of 0.2 to 1 µm; the objectives of one scanner, 5× to 40×, differ by 8."""


def role_of(name: str, reduced: bool = False) -> str:
    """``label``, ``macro`` or ``thumbnail`` for an image of this name, else ``image``.

    Args:
        name: as the file gives it.
        reduced: whether the file says that it is a smaller copy of another image.
    """
    for role, words in _BESIDE.items():
        if re.search(rf"(?<![a-z])(?:{words})(?![a-z])", name.lower()):
            return role
    return "thumbnail" if reduced else "image"


@dataclass(frozen=True)
class Found:
    """One image of a file.

    Args:
        name: as the file gives it, empty where it does not.
        sizes: entries per axis letter.
        numbers: distance of pixels as the file states it, per axis.
        words: unit of each of these.
        role: ``image``, ``label``, ``macro``, ``thumbnail``, or ``ids`` for a segmentation.
        path: where it lies in a store, empty in a file.
    """

    name: str
    sizes: dict[str, int]
    numbers: dict[str, float] = field(default_factory=dict)
    words: dict[str, str | None] = field(default_factory=dict)
    role: str = "image"
    path: str = ""

    @property
    def what(self) -> str:
        """Name, size and role, for messages."""
        size = " × ".join(
            str(self.sizes[a]) for a in "zyx" if self.sizes.get(a, 1) > 1 or (a in "yx" and a in self.sizes)
        )
        name = "" if self.name.isdecimal() else self.name
        return ", ".join(
            w for w in (name, f"{size} px", "" if self.role in ("image", name.lower()) else self.role) if w
        )


def choose(found: Sequence[Found], wanted: int | str | None, file: str) -> int:
    """The place of the image to read in a file.

    Without a choice of the user's it is, of those that are not named as label, macro image, thumbnail or segmentation, one whose
    pixel size is declared, and is not `_COARSE` times that of another; of these the one of most pixels, the first.

    Raises:
        ValueError: for a number or name that the file has not.
    """
    if wanted is not None:
        return _asked(found, wanted, file)
    steps = [_step(one) if one.role == "image" else math.inf for one in found]
    finest = min(steps, default=math.inf)

    def rank(index: int) -> tuple[bool, bool, bool, int, int]:
        one = found[index]
        scanned = steps[index] <= _COARSE * finest
        return one.role == "image", math.isfinite(steps[index]), scanned, math.prod(one.sizes.values()), -index

    return max(range(len(found)), key=rank)


def _step(one: Found) -> float:
    """The declared distance of pixels in the plane in metres, infinite where there is none; of a number without a unit, as if of
    micrometres."""
    steps = []
    for axis in "yx":
        number, known = abs(one.numbers.get(axis, 0.0)), length(one.words.get(axis) or "µm")
        if number > 0 and math.isfinite(number) and known is not None:
            steps.append(number * known[1] * (regframe.unit_ratio(known[0], "m") or 1.0))
    return min(steps, default=math.inf)


def _asked(found: Sequence[Found], wanted: int | str, file: str) -> int:
    if isinstance(wanted, int) and wanted < len(found):
        return wanted
    text = str(wanted).strip()
    for by in ("name", "path"):
        places = [i for i, one in enumerate(found) if getattr(one, by) == text]
        if len(places) == 1:
            return places[0]
    if text.isdecimal() and int(text) < len(found):
        return int(text)
    folded = [i for i, one in enumerate(found) if one.name.lower() == text.lower()]
    if len(folded) == 1:
        return folded[0]
    known = ", ".join(f"{i} {one.name or one.path}".strip() for i, one in enumerate(found[:20]))
    raise ValueError(
        f"wanted a series of {file} ({known}{', …' if len(found) > 20 else ''}), got {wanted!r}; give its number, or a name "
        "that one of them has"
    )


def only_series(wanted: int | str | None, name: str) -> int:
    """The place of the only image of a file; ValueError where another is asked for."""
    if wanted is not None and str(wanted).strip() != "0":
        raise ValueError(f"wanted series=0 of {name}, which holds one image, got {wanted!r}; leave it out")
    return 0


def told(found: Sequence[Found], chosen: int, wanted: int | str | None, file: str) -> tuple[str, ...]:
    """What has to be said aloud of the choice: that there was one between images, or that it is no scan."""
    one = found[chosen]
    if len(found) == 1:
        return ()
    if one.role not in ("image", "ids"):
        return (f"{file}: what is read is its {one.role} ({one.what}), which is no scan",)
    if wanted is not None:
        return ()
    rivals = [i for i, other in enumerate(found) if i != chosen and other.role == "image"]
    if not rivals and chosen == 0:
        return ()
    others = ", ".join(f"{i} ({found[i].what})" for i in range(len(found)) if i != chosen and found[i].role != "ids")
    n = sum(other.role != "ids" for other in found)
    others = others if len(others) < 400 else f"{others[:400]} …"
    return (f"{file} holds {n} images; series {chosen} ({one.what}) is read, and not {others}; series= chooses",)


def listed(found: Sequence[Found], chosen: int) -> tuple[regframe.Series, ...]:
    """The images of a file for `regframe info`."""
    out = []
    for i, one in enumerate(found):
        axes = [a for a in "tczyxs" if a in one.sizes]
        word = one.words.get("x") or one.words.get("y")
        unit, factor = length(word) or (word or "px", 1.0)
        spacing = tuple(one.numbers.get(a, math.nan) * factor for a in "yx")
        sizes = tuple(one.sizes[a] for a in axes)
        out.append(regframe.Series(i, one.name or one.path, "".join(axes), sizes, spacing, unit, one.role, i == chosen))
    return tuple(out)
