"""Point tables: text, gzipped or not, read and written without losing a column or a row, or changing their order.

How the text is divided into cells is the business of `regframe.io.text`.
Position columns are found by the header: ``y`` and ``x`` (and ``z`` for 3D), in any case, or a common
spelling of them (``x_centroid``, ``center_x``, ``pixel_x``, ``pxl_row_in_fullres`` …). A suffix such as ``_px``,
``_um`` or ``(mm)`` states the unit of a column. Rows are joined on a column that names them (``id``, ``label``, a blank index …).
Where the header allows two readings, the file is refused and the candidates are listed: nothing is guessed.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import gate
from ..data import AXES, Grid, PointSet, canonical_unit, unit_ratio
from . import bigwarp, imagej, stalign
from .text import numeric, read_text, with_points

_STYLES = (
    "{}", "{}_coord", "coord_{}", "{}_coordinate", "coordinate_{}", "{}_centroid", "centroid_{}", "{}_center",
    "center_{}",
    "{}_centre", "centre_{}", "{}_position", "position_{}", "{}_pos", "pos_{}", "{}_location", "global_{}", "pixel_{}",
)  # fmt: skip
"""Spellings of a position column; ``{}`` stands for the axis."""

_SPELLED = {style.format(axis): (style, axis) for style in reversed(_STYLES) for axis in AXES[3]}
"""Style and axis of every such spelling."""

_SPECIAL = {"pxl_row_in_fullres": ("pxl", "y", "px"), "pxl_col_in_fullres": ("pxl", "x", "px")}
"""Position columns of a Visium table, by name: spelling, axis, unit."""

_ID = re.compile(
    r"(?:.*_)?(?:id|ids|uid|uuid|guid|label|labels|name|names|title|key|tag|code|barcode|landmark|landmarks|fiducial|keypoint|point"
    r"|marker|pt|cell|spot|bead)|landmarkid|pointid|cellid|pointname"
)
"""Names, in lower case, of a column that names its rows, on which rows are joined."""
_COUNT = re.compile(
    r"|index|idx|row|no|nr|n|num|number|unnamed:_\d+|level_0|(?:.*_)?index|(?:point|landmark|row)_?(?:no|nr|number)"
)
"""Names of a column that may as well count its rows: joined on where no column names them; ``unnamed:_0`` is what pandas calls
an index without a name."""

_VISIUM = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
"""Columns of a Visium ``tissue_positions_list.csv``, a file without a header."""

_EXPLORER = re.compile(r"(?P<side>fixed|alignment)(?P<axis>[xy])")
"""Columns of the keypoints that Xenium Explorer exports, in lower case: those of the Xenium image are ``fixed``."""

_UNITS = r"px|pixels?|um|µm|μm|microns?|nm|mm|cm"
_UNIT_SUFFIX = re.compile(rf"^(?P<base>.+?)(?:_(?P<plain>{_UNITS})|_?[\[(](?P<bracketed>{_UNITS})[\])])?$")

_SHOWN = 12
"""Number of names or lines listed in a message; the rest is counted."""


@dataclass(frozen=True)
class PointTable:
    """A table as it stands in its file, every cell a string.

    Args:
        path: the file.
        columns: cells by column name, in the file's order; all columns are of one length.
        lines: line of the file on which each row ends, counting from 1.
        header: False where the file has no header, so that the names are made up.
        notes: how the file was read where that is not plain to see, a few words each.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: tuple[int, ...]
    header: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in the file's order."""
        return tuple(self.columns)

    def numbers(self, names: Sequence[str]) -> Tensor:
        """The columns ``names`` as ``[N, len(names)]`` float64; ValueError lists the lines without a finite number."""
        values = [[_number(cell) for cell in self.columns[name]] for name in names]
        bad = [
            line
            for line, row in zip(self.lines, zip(*values, strict=True), strict=True)
            if not all(v is not None and math.isfinite(v) for v in row)
        ]
        if bad:
            wrong = next((c for n in names for c in self.columns[n] if _number(c) is None and numeric(c)), None)
            mend = (
                "fill these in or leave them out"
                if wrong is None
                else f"whether the comma in {wrong!r} is a decimal one or stands between thousands is open: write decimal "
                "points, or ; between cells"
            )
            raise ValueError(
                f"wanted a finite number in {_join(names)} of every row of {str(self.path)!r}, "
                f"got {len(bad)} row(s) without (line {_join(bad)}); {mend}"
            )
        return torch.tensor(values, dtype=torch.float64).reshape(len(names), len(self)).T.contiguous()


class _Position(NamedTuple):
    style: str
    axis: str
    unit: str | None


def read_table(path: str | os.PathLike[str], columns: str | None = None) -> PointTable:
    """Read a table of text, gzipped or not; encoding, delimiter, decimal sign and header are told by the content.

    Lines of comment or titles before the header are left out. Numbers with decimal commas become numbers with points. The point
    files of elastix (``.pts``) are read as well; indices of pixels get the columns ``x_px, y_px``.

    Args:
        path: the file.
        columns: for a file without a header, the names of its columns in order, e.g. ``"x,y"`` (the first ones, where
            there are more columns than names). The six columns of a Visium ``tissue_positions_list`` need none.

    Raises FileNotFoundError, or ValueError with one sentence where it is no such table.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise FileNotFoundError(f"wanted a table of points, got {str(path)!r}, which is not a file")
    if path.suffix.lower() in (".geojson", ".json"):
        raise ValueError(
            f"wanted a table of points (CSV), got JSON {str(path)!r}; outlines go through `regframe apply shapes`, points of "
            "QuPath through the page of `regframe view` (Import)"
        )
    explicit = [name for _, name in _parse_columns(columns)] if columns else []
    text = read_text(path, lambda row: _names_positions(row, explicit))
    rows, lines = text.rows, text.lines
    if not rows:
        raise ValueError(f"wanted a table of points, got an empty file {str(path)!r}")
    first = rows[0]
    header = text.header or any(_position(cell) for cell in first) or _names_positions(first, explicit)
    if header or not any(numeric(cell) or _number(cell) is not None for cell in first):
        header = True
        names = [cell.strip() for cell in first]
        if len(rows) > 1 and all(len(row) == len(names) + 1 for row in rows[1:]):
            names = ["", *names]  # tables written by R have no header for the column of row names
        rows, lines = rows[1:], lines[1:]
    else:
        names = _names_without_header(path, rows, explicit)
    _check_shape(path, names, rows, lines)
    cells: list[list[str]] = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    notes = text.notes
    if text.preamble:
        notes += (f"{len(text.preamble)} line(s) before the header were left out",)
    if text.commas:
        known = [name in explicit or _is_coordinate(name) for name in names]
        cells, changed = with_points(cells, known, text.delimiter)
        notes += ("decimal commas were read as points",) if changed else ()
    return PointTable(path, dict(zip(names, cells, strict=True)), tuple(lines), header, notes)


def _names_positions(row: Sequence[str], explicit: Sequence[str] = ()) -> bool:
    """Whether a row of cells is a header: it has names of x and y, of the landmarks of both sides, or those asked for."""
    lowered = {cell.strip().lower() for cell in row}
    if explicit and {name.lower() for name in explicit} <= lowered:
        return True
    axes = {position.axis for position in map(_position, row) if position is not None}
    return {"y", "x"} <= axes or sum(_of_side(cell) is not None for cell in row) >= 4


def _is_coordinate(name: str) -> bool:
    return _position(name) is not None or _of_side(name) is not None


def _check_shape(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[int]) -> None:
    """ValueError for a row with another number of cells than there are names, and for a name that occurs twice."""
    ragged = [line for line, row in zip(lines, rows, strict=True) if len(row) != len(names)]
    if ragged:
        commas = all(len(row) > len(names) and all(map(str.isdigit, "".join(row))) for row in rows)
        mend = "are these decimal commas without quotes? save it with ; between cells" if commas else "mend these"
        raise ValueError(
            f"wanted {len(names)} cells in every row of {str(path)!r}, "
            f"got another number in line {_join(ragged)}; {mend}"
        )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"wanted distinct column names in {str(path)!r}, got {_join(twice)} more than once; rename them"
        )


def read_points(
    path: str | os.PathLike[str] | PointTable, columns: str | None = None, unit: str | None = None
) -> PointSet:
    """Read a table of points into a `PointSet` that carries the whole table.

    Args:
        path: a text table, gzipped or not (see `read_table`), or one that was read already; or an ``.npy`` of points, also
            of STalign (`regframe.io.stalign`), or points of ImageJ (``.roi``, ``RoiSet.zip``; `regframe.io.imagej`).
        columns: which columns are the positions where their names do not say so (``"x=T_x,y=T_y"``, or the names
            alone where they end or begin with the axis), or the names of a header-less file's columns in order
            (``"x,y"``).
        unit: what columns without a unit suffix are in; ``"px"`` where None.

    Raises ValueError where no or more than one choice of columns is possible, or where a coordinate is no finite
    number.
    """
    if not isinstance(path, PointTable) and str(path).lower().endswith(".npy"):
        return stalign.read_npy(path, unit)
    if not isinstance(path, PointTable) and str(path).lower().endswith(imagej.SUFFIXES):
        return imagej.read_roi(path)
    table = path if isinstance(path, PointTable) else read_table(path, columns)
    names, declared = position_columns(table, columns)
    coords = table.numbers(names)
    return PointSet(coords, declared or unit or "px", table=table.columns, columns=names, name=table.path.name)


def position_columns(table: PointTable, columns: str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Names of the position columns of ``table``, in the order (z,) y, x, and the unit their names state (None where none).

    Args:
        table: only its column names are used.
        columns: as in `read_points`.

    Raises ValueError where no or more than one choice is possible, or where units differ.
    """
    if columns is not None and table.header:
        chosen = _explicit_columns(table, columns)
    else:
        chosen = _recognised_columns(table)
    axes = AXES[3] if "z" in chosen else AXES[2]
    if not set(axes) <= set(chosen):
        raise ValueError(f"wanted a column for each of {_join(axes)} of {str(table.path)!r}, got {_join(chosen)}")
    units = {chosen[axis][1] for axis in axes}
    if len(units) > 1:
        raise ValueError(
            f"wanted one unit for the position columns of {str(table.path)!r}, "
            f"got {_join(chosen[axis][0] for axis in axes)}; convert one of them"
        )
    return tuple(chosen[axis][0] for axis in axes), units.pop()


def read_landmarks(
    path: str | os.PathLike[str], partners: str | os.PathLike[str] | None = None
) -> tuple[Tensor, Tensor, tuple[str | None, str | None]]:
    """Read landmark pairs from one table with the columns ``fixed_y, fixed_x, moving_y, moving_x``.

    Any order, ``_z`` with both or neither, other columns ignored. Xenium Explorer's keypoints (``fixedX, fixedY, alignmentX,
    alignmentY``) are in pixels of the images at full resolution; BigWarp's table without a header (name, active, moving x and y,
    fixed x and y), its JSON and Warpy's (`regframe.io.bigwarp`) are read as well, without the pairs that are not active.

    Args:
        path: the file of both sides, or that of the fixed one where ``partners`` is given.
        partners: points of the moving side, in a table, STalign's ``.npy`` (`regframe.io.stalign`) or ImageJ's ``.roi``
            (`regframe.io.imagej`); joined as `paired` says.

    Returns fixed ``[N, D]``, moving ``[N, D]`` (float64, in the order (z,) y, x) and the unit of either side where it is stated
    (``fixed_y_um``), else None: the image's own. Raises ValueError where columns are missing, or units or numbers of axes differ.
    """
    if partners is not None:
        (a, one), (b, other) = map(_of_one_side, (path, partners))
        pairs = paired(a, b)
        return pairs.fixed.coords, pairs.moving.coords, (one, other)
    if str(path).lower().endswith((".npy", *imagej.SUFFIXES)):
        raise ValueError(
            f"wanted a file of each side, got one of one side {str(path)!r}; give that of the moving side beside it "
            f"(--moving-landmarks M{Path(path).suffix})"
        )
    elsewhere = _elsewhere(path)
    if elsewhere is not None:
        return elsewhere
    table = _bigwarp(path) or read_table(path)
    sides: list[tuple[Tensor, str | None]] = []
    for side in ("fixed", "moving"):
        found: dict[str, list[tuple[str, str | None]]] = {}
        for name in table.names:
            place = _of_side(name)
            if place is not None and place[0] == side:
                found.setdefault(place[1], []).append((name, place[2]))
        if not {"y", "x"} <= set(found) or any(len(names) > 1 for names in found.values()):
            raise ValueError(
                f"wanted one column each of fixed_y, fixed_x, moving_y, moving_x in {str(table.path)!r}, "
                f"got {_join(table.names)}; rename the columns"
            )
        axes = AXES[3] if "z" in found else AXES[2]
        units = {found[axis][0][1] for axis in axes}
        if len(units) > 1:
            raise ValueError(
                f"wanted one unit for the {side} landmarks of {str(table.path)!r}, got {_join(map(str, units))}"
            )
        sides.append((table.numbers([found[axis][0][0] for axis in axes]), units.pop()))
    (fixed, fixed_unit), (moving, moving_unit) = sides
    if fixed.shape[1] != moving.shape[1]:
        raise ValueError(f"wanted a z column for both sides of {str(table.path)!r} or for neither, got one")
    if not len(table):
        raise ValueError(f"wanted at least one pair of landmarks in {str(table.path)!r}, got none")
    return fixed, moving, (fixed_unit, moving_unit)


def _of_one_side(path: str | os.PathLike[str]) -> tuple[PointSet, str | None]:
    """Points of one side, and their unit where the file states it."""
    points = read_points(path)
    if str(path).lower().endswith(imagej.SUFFIXES):
        return points, "px"
    declared = None if str(path).lower().endswith(".npy") else position_columns(read_table(path), None)[1]
    return points, declared


def _elsewhere(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor, tuple[str | None, str | None]] | None:
    """The active pairs of a JSON file of BigWarp or Warpy; None for another file."""
    if Path(path).suffix.lower() != ".json" or not Path(path).is_file():
        return None
    gate.check_file(path)
    try:
        found = bigwarp.parsed(Path(path).read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise ValueError(f"{error} ({str(path)!r})") from error
    if found is None:
        return None
    active = [pair for pair in found.pairs if pair.on]
    if not active:
        raise ValueError(f"wanted at least one active pair of landmarks in {str(path)!r}, got none")
    fixed, moving = (
        torch.tensor(rows, dtype=torch.float64) for rows in zip(*((p.fixed, p.moving) for p in active), strict=True)
    )
    return fixed, moving, (found.unit, found.unit)


def _of_side(name: str) -> tuple[str, str, str | None] | None:
    """Side, axis and unit that the name of a landmark column states; None for another column."""
    base, unit = _split_unit(_normal(name))
    explorer = _EXPLORER.fullmatch(base)
    if explorer is not None:
        return "fixed" if explorer["side"] == "fixed" else "moving", explorer["axis"], "px" if unit is None else unit
    for side in ("fixed", "moving"):
        for axis in AXES[3]:
            if base in (f"{side}_{axis}", f"{axis}_{side}"):
                return side, axis, unit
    return None


def _bigwarp(path: str | os.PathLike[str]) -> PointTable | None:
    """The active pairs of a table as Fiji's BigWarp saves it; None for another file."""
    if not Path(path).is_file():
        return None
    rows = read_text(Path(path), _names_positions).rows
    n = len(rows[0]) - 2 if rows else 0
    if n not in (4, 6) or not all(len(row) == n + 2 and row[1].strip().lower() in ("true", "false") for row in rows):
        return None
    names = ["name", *(f"{side}_{axis}" for side in ("moving", "fixed") for axis in "xyz"[: n // 2])]
    kept = [(i, [row[0], *row[2:]]) for i, row in enumerate(rows, 1) if row[1].strip().lower() == "true"]
    columns = [list(column) for column in zip(*(row for _, row in kept), strict=True)] or [[] for _ in names]
    return PointTable(Path(path), dict(zip(names, columns, strict=True)), tuple(line for line, _ in kept), False)


class Paired(NamedTuple):
    """Two point sets as pairs.

    Args:
        fixed: the fixed points that have a partner, in their order.
        moving: their partners, row by row.
        column: name of the column on which rows were joined; None where they were taken in order.
    """

    fixed: PointSet
    moving: PointSet
    column: str | None

    @property
    def words(self) -> str:
        """How rows were paired, in a few words."""
        return "paired row by row" if self.column is None else f"paired on the column {self.column or '(unnamed)'!r}"


def pair_points(fixed: PointSet, moving: PointSet, strict: bool = True) -> tuple[PointSet, PointSet]:
    """The two point sets as pairs: row i of one belongs to row i of the other, in the order of ``fixed``; see `paired`."""
    return paired(fixed, moving, strict)[:2]


def paired(fixed: PointSet, moving: PointSet, strict: bool = True) -> Paired:
    """The two point sets as pairs, and the column on which they were joined.

    Rows are joined on a column that names them and that both tables have (``id``, ``label``, ``name``, ``landmark`` …), else on
    one that may as well count them (``index``, a blank one), else on two such columns of different names that have values in
    common; row by row where there are none. A column that names rows needs a value of its own in every row, unless both tables
    have equal values in equal order.

    Args:
        fixed: points with their table.
        moving: points with their table.
        strict: whether a point without a partner is an error; it is left out otherwise.

    Raises:
        ValueError: for points without a partner, for an id that occurs twice, where two columns that name rows pair them
            differently, and for tables of different length without such a column.
    """
    useful: list[_Join] = []
    doubtful: list[_Join] = []
    for names in _shared_ids(fixed, moving):
        join = _Join.of(fixed, moving, names)
        if join.pairs:
            useful.append(join)
        elif names[0] == names[1] or _normal(names[0]) == _normal(names[1]):
            doubtful += (
                [] if join.equal else [join]
            )  # equal in equal order: classes, say, which agree with the order of rows
    if not useful and not doubtful:
        if len(fixed) != len(moving):
            raise ValueError(
                f"wanted as many fixed as moving points, got {len(fixed)} and {len(moving)}; "
                "give both an id column to join on, or leave out the points that have no partner"
            )
        return Paired(fixed, moving, None)
    chosen = (useful or doubtful)[0]
    for other in useful[1:]:
        if chosen.firm and other.firm and other.pairs != chosen.pairs:
            raise ValueError(
                f"wanted one pairing of {fixed.name!r} and {moving.name!r}, got two, by the columns {chosen.names[0]!r} and "
                f"{other.names[0]!r}; leave one of these out of either file"
            )
    return Paired(*_joined(fixed, moving, chosen.names, strict), chosen.names[0])


@dataclass(frozen=True)
class _Join:
    """Two tables joined on a column of each.

    Args:
        names: of the columns.
        firm: whether their names say that they name rows.
        equal: whether both have equal values in equal order.
        pairs: rows with equal values; empty where a value occurs twice in a table.
    """

    names: tuple[str, str]
    firm: bool
    equal: bool
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, fixed: PointSet, moving: PointSet, names: tuple[str, str]) -> _Join:
        ids = [_ids(points, name) for points, name in zip((fixed, moving), names, strict=True)]
        rows = {name: i for i, name in enumerate(ids[1])}
        unique = len(rows) == len(ids[1]) and len(set(ids[0])) == len(ids[0])
        pairs = tuple((i, rows[name]) for i, name in enumerate(ids[0]) if name in rows) if unique else ()
        return cls(names, all(_ID.fullmatch(_normal(name)) for name in names), ids[0] == ids[1], pairs)


def _shared_ids(fixed: PointSet, moving: PointSet) -> list[tuple[str, str]]:
    """Columns of both tables that may name their rows, the likeliest first; of different names where none have one name."""
    found: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    keys: list[list[str]] = [[], []]
    for kind in (_ID, _COUNT):
        for side, points in enumerate((fixed, moving)):
            keys[side] += [n for n in points.table if n not in points.columns and _is_key(points, n, kind)]
        found = [(a, b) for a in keys[0] for b in keys[1] if _normal(a) == _normal(b)]
        others = [(a, b) for a in keys[0] for b in keys[1]]
    return found or others


def _is_key(points: PointSet, name: str, kind: re.Pattern[str]) -> bool:
    """Whether a column's name is of this kind; one without a name counts only as the first."""
    return kind.fullmatch(_normal(name)) is not None and bool(_normal(name) or name == next(iter(points.table)))


def _ids(points: PointSet, column: str) -> list[str]:
    """The cells of a column as ids; in a column of whole numbers 1, 01 and 1.0 are one."""
    cells = [str(cell).strip() for cell in points.table[column]]
    numbers = [_number(cell) for cell in cells]
    whole = [n is not None and math.isfinite(n) and n == int(n) for n in numbers]
    return [str(int(n)) for n in numbers if n is not None] if all(whole) else cells


def _joined(fixed: PointSet, moving: PointSet, keys: tuple[str, str], strict: bool) -> tuple[PointSet, PointSet]:
    """Both point sets joined on a column of each; raises as `paired` does."""
    rows: list[dict[str, int]] = []
    for points, key in zip((fixed, moving), keys, strict=True):
        ids = _ids(points, key)
        index = {name: i for i, name in enumerate(ids)}
        if len(index) < len(ids):
            twice = sorted(name for name, count in Counter(ids).items() if count > 1)
            raise ValueError(
                f"wanted distinct ids in {points.name!r}, got {_join(twice)} more than once; mend column {key!r}"
            )
        rows.append(index)
    alone = [[name for name in one if name not in other] for one, other in (rows, rows[::-1])]
    if strict and any(alone):
        raise ValueError(
            f"wanted a partner for every point, got {len(fixed)} fixed and {len(moving)} moving points of which "
            f"{len(alone[0])} fixed (id {_join(alone[0]) or '-'}) and {len(alone[1])} moving "
            f"(id {_join(alone[1]) or '-'}) have none; leave these out"
        )
    both = [name for name in rows[0] if name in rows[1]]
    if not both:
        raise ValueError(f"wanted points with common ids, got none in {fixed.name!r} and {moving.name!r}")
    return _take(fixed, [rows[0][name] for name in both]), _take(moving, [rows[1][name] for name in both])


def to_unit_of(points: PointSet, grid: Grid) -> PointSet:
    """``points`` in the unit of ``grid``: lengths are converted, pixels are taken as indices of ``grid``'s pixels.

    Raises ValueError for lengths where the grid declares no physical size.
    """
    ratio = unit_ratio(points.unit, grid.unit)
    if ratio is not None:
        return points if ratio == 1.0 else points.replace(coords=points.coords * ratio, unit=grid.unit)
    if points.unit != "px":
        raise ValueError(
            f"wanted points in px for an image without physical spacing, got {points.unit}; state the image's spacing "
            "(--fixed-mpp, --moving-mpp; in Python spacing=…, unit=…)"
        )
    origin, spacing = (torch.tensor(v, dtype=torch.float64) for v in (grid.origin, grid.spacing))
    return points.replace(coords=origin + spacing * points.coords, unit=grid.unit)


def write_points(
    points: PointSet, path: str | os.PathLike[str], extra: Mapping[str, Sequence[Any] | Tensor] | None = None
) -> None:
    """Write the points with their table: same rows, same order, position columns replaced, columns ``extra`` appended.

    A unit suffix of a position column follows the points' unit; without a table the columns are the axes with the unit
    (``y_px,x_px``). ``.tsv`` writes tabs, ``.gz`` compresses, ``.pts`` is elastix's and ``.roi`` ImageJ's multipoint (points
    in px), both with positions alone. Numbers of tables are written so that they read back the same. The file is written aside
    and then renamed.
    """
    path = Path(path)
    if path.suffix.lower() == ".roi":
        replace_file(path, imagej.of_points(points, path.name))
        return
    coords = points.coords.detach().cpu()
    if path.suffix.lower() == ".pts":
        index = points.unit == "px" and any(_split_unit(_normal(name))[1] == "px" for name in points.columns)
        places = "".join(" ".join(map(repr, row[::-1])) + "\n" for row in coords.tolist())
        replace_file(path, f"{'index' if index else 'point'}\n{len(points)}\n{places}".encode())
        return
    columns: dict[str, Sequence[str]] = {}
    moved = {name: [repr(v) for v in coords[:, d].tolist()] for d, name in enumerate(points.columns)}
    for name, cells in points.table.items():
        columns[_with_unit(name, points.unit) if name in moved else name] = moved.get(name, cells)
    if not points.columns:
        suffix = {"µm": "um"}.get(points.unit, points.unit)
        for d, axis in enumerate(points.axes):
            columns[f"{axis}_{suffix}"] = [repr(v) for v in coords[:, d].tolist()]
    for name, values in (extra or {}).items():
        values = values.tolist() if isinstance(values, Tensor) else list(values)
        if len(values) != len(points):
            raise ValueError(f"wanted {len(points)} values for the column {name!r}, got {len(values)}")
        columns[name] = [v if isinstance(v, str) else repr(v) for v in values]
    suffixes = [s.lower() for s in path.suffixes]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if ".tsv" in suffixes else ",", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    data = text.getvalue().encode()
    replace_file(path, gzip.compress(data, mtime=0) if suffixes[-1:] == [".gz"] else data)


def read_label_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Names of the ids of a label image, from a table.

    The columns ``id`` and ``acronym`` or ``name`` are used where the file has a header with them (``acronym`` where it has
    both). A file without a header has the id in its first column and the name in the second. An id that is no integer, and an
    id with two names, are errors.
    """
    path = Path(path)
    text = read_text(path, lambda row: "id" in {cell.strip().lower() for cell in row})
    rows, lines = text.rows, text.lines
    if not rows:
        raise ValueError(f"wanted ids and names in {path.name}, got an empty file")
    header = [cell.strip().lower() for cell in rows[0]]
    number, name, first = 0, 1, 0
    if "id" in header:
        named = [h for h in ("acronym", "name") if h in header]
        if not named:
            raise ValueError(f"wanted a column acronym or name beside id in {path.name}, got {', '.join(rows[0])}")
        number, name, first = header.index("id"), header.index(named[0]), 1
    out: dict[int, str] = {}
    for row, line in zip(rows[first:], lines[first:], strict=True):
        try:
            key, value = int(row[number]), row[name].strip()
        except (ValueError, IndexError):
            raise ValueError(
                f"wanted a whole number and a name in line {line} of {path.name}, got {','.join(row)[:80]!r}; "
                "name the columns id and name in a header"
            ) from None
        if out.setdefault(key, value) != value:
            raise ValueError(f"wanted one name for the id {key} in {path.name}, got {out[key]!r} and {value!r}")
    return out


# ---- reading ------------------------------------------------------------------------------------------------------


def _names_without_header(path: Path, rows: list[list[str]], explicit: list[str]) -> list[str]:
    n = len(rows[0])
    if explicit:
        if len(explicit) > n:
            raise ValueError(
                f"wanted names for the {n} columns of {str(path)!r}, got {len(explicit)}: {_join(explicit)}"
            )
        return [*explicit, *(f"column_{i + 1}" for i in range(len(explicit), n))]
    if n == len(_VISIUM) and all(
        len(row) == n and _number(row[0]) is None and row[1].strip() in ("0", "1") and all(map(_is_number, row[2:]))
        for row in rows[:50]
    ):
        return list(_VISIUM)
    raise ValueError(
        f"wanted a header that names the columns of {str(path)!r}, got the row {_join(rows[0])}; "
        "add one, or name the columns in order, e.g. columns='x,y' (--columns, or --moving-set columns=x,y)"
    )


def _explicit_columns(table: PointTable, columns: str) -> dict[str, tuple[str, str | None]]:
    chosen: dict[str, tuple[str, str | None]] = {}
    for axis, name in _parse_columns(columns):
        if name not in table.columns:
            alike = [column for column in table.columns if column.lower() == name.lower()]
            name = alike[0] if len(alike) == 1 else name
        if name not in table.columns:
            raise ValueError(
                f"wanted columns of {str(table.path)!r} ({_join(table.names)}), got {name!r}; name one of these"
            )
        base, unit = _split_unit(_normal(name))
        if axis is None:
            known = _position(name)
            ends = {part for part in (base.split("_")[0], base.split("_")[-1]) if part in AXES[3]}
            if known is None and len(ends) != 1:
                raise ValueError(f"wanted the axis of the column {name!r}, got only its name; write e.g. x={name}")
            axis = known.axis if known else ends.pop()
        if axis in chosen:
            raise ValueError(f"wanted one column per axis, got {chosen[axis][0]!r} and {name!r} for {axis}")
        known = _position(name)
        chosen[axis] = (name, known.unit if known else unit)
    return chosen


def _recognised_columns(table: PointTable) -> dict[str, tuple[str, str | None]]:
    groups: dict[tuple[str, str | None], dict[str, list[str]]] = {}
    for name in table.names:
        position = _position(name)
        if position is not None:
            groups.setdefault((position.style, position.unit), {}).setdefault(position.axis, []).append(name)
    whole = {key: group for key, group in groups.items() if {"y", "x"} <= set(group)}
    for style in {key[0] for key in groups} if not whole else ():
        mixed = [name for key, group in groups.items() if key[0] == style for names in group.values() for name in names]
        if {"y", "x"} <= {axis for key, group in groups.items() if key[0] == style for axis in group}:
            raise ValueError(
                f"wanted one unit for the position columns of {str(table.path)!r}, got {_join(mixed)}; convert one of them"
            )
    if not whole:
        raise ValueError(
            f"wanted columns that name positions, such as y and x, in {str(table.path)!r}, got {_join(table.names)}; "
            "say which they are with columns='x=NAME,y=NAME' (--columns, or --moving-set columns=x=NAME,y=NAME)"
        )
    if len(whole) > 1 or any(len(names) > 1 for group in whole.values() for names in group.values()):
        candidates = " or ".join(
            _join(name for axis in AXES[3] for name in group.get(axis, ())) for group in whole.values()
        )
        raise ValueError(
            f"wanted one choice of position columns in {str(table.path)!r}, got {candidates}; "
            "choose with columns='x=NAME,y=NAME' (--columns, or --moving-set columns=x=NAME,y=NAME)"
        )
    ((style, unit), group) = next(iter(whole.items()))
    stray = [name for key, other in groups.items() if key[0] == style and key[1] != unit for name in other.get("z", ())]
    if stray:
        raise ValueError(
            f"wanted one unit for the position columns of {str(table.path)!r}, got {_join(stray)} beside "
            f"{_join(names[0] for names in group.values())}; choose with columns='x=NAME,y=NAME'"
        )
    return {axis: (names[0], unit) for axis, names in group.items()}


def _parse_columns(columns: str) -> list[tuple[str | None, str]]:
    """``"x=a,y=b"`` or ``"x,y"`` as pairs of axis (None where not said) and column name."""
    pairs: list[tuple[str | None, str]] = []
    for item in columns.split(","):
        axis, equals, name = item.partition("=")
        axis = axis.strip()
        if equals and axis.lower() in AXES[3]:
            pairs.append((axis.lower(), name.strip()))
        elif item.strip():
            pairs.append((None, item.strip()))
        else:
            raise ValueError(f"wanted columns such as 'x,y' or 'x=NAME,y=NAME', got {columns!r}")
    return pairs


def _normal(name: str) -> str:
    return re.sub(r"[\s.\-_]+", "_", name.strip().lstrip("#").lower()).strip("_")


def _split_unit(normal: str) -> tuple[str, str | None]:
    match = _UNIT_SUFFIX.match(normal)
    if match is None:
        return normal, None
    unit = match["plain"] or match["bracketed"]
    return match["base"], canonical_unit(unit) if unit else None


def _position(name: str) -> _Position | None:
    """Axis and unit stated by a column name; None for a name that is no position."""
    normal = _normal(name)
    if normal in _SPECIAL:
        return _Position(*_SPECIAL[normal])
    base, unit = _split_unit(normal)
    if base not in _SPELLED:
        return None
    style, axis = _SPELLED[base]
    return _Position(style, axis, "px" if style == "pixel_{}" and unit is None else unit)


def _with_unit(name: str, unit: str) -> str:
    """The column name with its unit suffix, if it has one, replaced."""
    match = re.search(rf"(?<=[\s._\-\[(])({_UNITS})(?=[\])]?\s*$)", name, flags=re.IGNORECASE)
    if match is None or canonical_unit(match[0]) == unit:
        return name
    return name[: match.start()] + {"µm": "um"}.get(unit, unit) + name[match.end() :]


def _number(cell: str) -> float | None:
    """The number in a cell (NaN for a missing value); None for anything else."""
    cell = cell.strip()
    if "_" in cell:
        return None  # Python accepts 1_000 as a number, tables do not
    try:
        return float(cell)
    except ValueError:
        return None


def _is_number(cell: str) -> bool:
    return _number(cell) is not None


def _take(points: PointSet, rows: list[int]) -> PointSet:
    index = torch.tensor(rows, dtype=torch.long)
    return points.replace(
        coords=points.coords[index],
        weights=None if points.weights is None else points.weights[index],
        table={name: [cells[i] for i in rows] for name, cells in points.table.items()},
    )


def _join(items: Any) -> str:
    listed = [str(item) if not isinstance(item, str) or item else "(unnamed)" for item in items]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file beside ``path`` and rename it, so that ``path`` is never half-written."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
