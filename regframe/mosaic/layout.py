"""Where fields of view are said to lie: files of other programs, tables, the stage's positions in the files themselves."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from ..data import canonical_unit, unit_ratio
from ..gate.places import check_file
from ..io.text import decoded
from .overlap import Floats

_FIJI = re.compile(
    r"^\s*(?P<name>[^;#]+?)\s*;\s*(?P<series>-?\d*)\s*;\s*\(\s*(?P<numbers>[-+.,\deE\s]+?)\s*\)\s*$",
)
"""A line of Fiji's TileConfiguration: ``name; series or nothing; (x, y)`` or ``(x, y, z)``."""
_MOST = 16 << 20
"""Bytes of a layout file: 100 000 fields have some five megabytes."""


@dataclass(frozen=True)
class Layout:
    """Stated positions of fields.

    Args:
        places: position ``(y, x)`` of each field's first pixel, by its name (a file's, or what a table says); in Fiji's files of
            several series by name and number, ``name#3``.
        unit: of the positions; ``px`` for pixels of the fields.
        source: where they come from, for messages.
    """

    places: Mapping[str, tuple[float, float]]
    unit: str
    source: str

    def of(self, names: Sequence[str], files: Sequence[str]) -> list[tuple[float, float] | None]:
        """The place of each field by its name or its file's; None for a field that is not listed.

        Raises ValueError where no field is listed at all.
        """
        plain = {PurePath(key).name: place for key, place in self.places.items()}
        bare = {_bare(key): place for key, place in plain.items()}
        found = []
        for name, file in zip(names, files, strict=True):
            keys = (name, file, PurePath(file).name)
            own = next((plain[k] for k in keys if k in plain), None)
            found.append(own if own is not None else bare.get(_bare(name), bare.get(_bare(file))))
        if all(place is None for place in found):
            some = ", ".join(list(plain)[:3])
            raise ValueError(
                f"wanted in {self.source} the fields {', '.join(names[:3])} …, got {some} …; use their names"
            )
        return found


def _bare(name: str) -> str:
    base, mark, number = PurePath(name).name.partition("#")
    return (
        re.sub(r"(\.ome)?\.(tiff?|zarr|png|jpe?g|npy|czi|nd2|lif|bmp)$", "", base, flags=re.IGNORECASE) + mark + number
    )


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """The positions in Fiji's ``TileConfiguration.txt`` (or ``.registered.txt``), or in a table with the columns name, y and x.

    Fiji's are in pixels, x before y; a third one, along z, is left out. The columns of a table may name their unit: ``y_um``,
    ``x_px``; without one they are in the unit of the fields.

    Raises ValueError for a file that is neither, or holds what is no number; FileNotFoundError where there is none.
    """
    path = Path(path)
    check_file(path, folder=False)
    if path.stat().st_size > _MOST:
        raise ValueError(
            f"wanted a layout of at most {_MOST >> 20} MiB, got more in {path}; check that it is the right file"
        )
    text, _ = decoded(path.read_bytes())
    lines = [line for line in text.splitlines() if line.strip()]
    if any(re.match(r"\s*dim\s*=", line) for line in lines) or any(_FIJI.match(line) for line in lines):
        return _fiji(path, lines)
    return _table(path, lines)


def _fiji(path: Path, lines: Sequence[str]) -> Layout:
    places: dict[str, tuple[float, float]] = {}
    dim = next((int(m[1]) for line in lines if (m := re.match(r"\s*dim\s*=\s*(\d+)", line))), 2)
    for line in lines:
        if line.lstrip().startswith("#") or re.match(r"\s*(dim|multiseries)\s*=", line):
            continue
        found = _FIJI.match(line)
        numbers = [] if found is None else [part.strip() for part in found["numbers"].split(",")]
        if found is None or len(numbers) != dim or dim not in (2, 3):
            raise ValueError(f"wanted 'name; ; (x, y)' in {path}, got {line.strip()[:80]!r}; write it as Fiji does")
        x, y = (_number(part, path) for part in numbers[:2])
        key = found["name"] if not found["series"] else f"{found['name']}#{found['series']}"
        places[key] = (y, x)
    if not places:
        raise ValueError(f"wanted the positions of fields in {path}, got none; write 'name; ; (x, y)' lines")
    return Layout(places, "px", str(path))


def _table(path: Path, lines: Sequence[str]) -> Layout:
    delimiter = "\t" if lines and "\t" in lines[0] else ";" if lines and ";" in lines[0] else ","
    rows = list(csv.DictReader(lines, delimiter=delimiter))
    columns = {(key or "").strip().lower(): key for key in (rows[0] if rows else {})}
    name = next((columns[key] for key in ("name", "file", "image", "field", "tile") if key in columns), None)
    found: dict[str, tuple[str, str]] = {}
    for axis in "yx":
        for key, own in columns.items():
            fits = re.fullmatch(rf"{axis}(?:_(\w+))?", key)
            if fits and own is not None:
                found[axis] = own, fits[1] or ""
    if name is None or set(found) != {"y", "x"}:
        got = ", ".join(columns) or "nothing"
        raise ValueError(
            f"wanted in {path} Fiji's TileConfiguration or a table with the columns name, y, x, got {got}; name its columns"
        )
    units = {canonical_unit(unit) if unit else "" for _, unit in found.values()}
    if len(units) > 1:
        raise ValueError(f"wanted one unit for y and x in {path}, got {' and '.join(sorted(units))}; state them in one")
    places = {
        (row[name] or "").strip(): (_number(row[found["y"][0]], path), _number(row[found["x"][0]], path))
        for row in rows
    }
    if len(places) != len(rows):
        raise ValueError(
            f"wanted each field once in {path}, got {len(rows)} rows of {len(places)} names; name them apart"
        )
    return Layout(places, units.pop(), str(path))


def _number(text: str | None, path: Path) -> float:
    try:
        value = float(str(text).strip())
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or abs(value) > 1e12:
        raise ValueError(f"wanted a number as a position in {path}, got {str(text)[:40]!r}; correct it")
    return value


def in_pixels(
    places: Sequence[tuple[float, float] | None], unit: str, spacing: tuple[float, ...], own: str
) -> list[Floats | None]:
    """Stated places in pixels of fields of ``spacing`` in the unit ``own``; ValueError where the two cannot be converted."""
    if unit == "px":
        return [None if place is None else np.array(place) for place in places]
    ratio = unit_ratio(unit or own, own)
    if ratio is None:
        raise ValueError(
            f"wanted positions in the unit of the fields, {own}, got {unit}; state the pixel size of the fields (--mpp)"
        )
    return [None if place is None else np.array(place) * ratio / np.array(spacing) for place in places]


def write_layout(path: Path, names: Sequence[str], places: Sequence[Floats | None]) -> None:
    """Write places in pixels as Fiji's TileConfiguration; fields without a place are left out."""
    lines = ["# Define the number of dimensions we are working on", "dim = 2", "", "# Define the image coordinates"]
    lines += [
        f"{name}; ; ({place[1]:.3f}, {place[0]:.3f})"
        for name, place in zip(names, places, strict=True)
        if place is not None
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
