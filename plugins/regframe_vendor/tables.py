"""The makers' tables, read by the adapter ``cells`` and given two columns of positions in µm beside their own."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regframe

from .folder import Folder
from .layouts import Table

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

COUNTS = "in_tissue"
"""Column of 0 and 1 that says which spots or bins of a Visium array lie on tissue."""
ALIGNED = ("aligned_y_um", "aligned_x_um")
"""The two columns that positions are in, µm: added to the maker's table, whose own columns stay as they are."""
_ALIGNED = re.compile(r"^aligned_([yx])_(um|px|nm|mm)$")
_HEADER = 1 << 18
"""Bytes within which the header of a text table ends, unpacked."""
MOST_TEXT = 64 << 30
"""Bytes of a text table, unpacked, above which it is refused: a whole slide of transcripts has some 10 GB."""
MOST_ROWS = 2_000_000_000
"""Rows that a Parquet table may declare: twenty times the transcripts of the largest slide."""


def points(folder: Folder, table: Table) -> regframe.PointSet:
    """The table with its positions in µm; columns that were aligned before are taken in their place."""
    path = folder.path(table.path.relative_to(folder.root).as_posix())  # checks that a link stays inside
    assert path is not None
    check_size(path)
    header = header_of(path)
    before = aligned(header)
    if before is not None:
        cells = read(path, f"x={before['x']},y={before['y']}", before["unit"])
        return counted(cells.replace(name=f"{folder.name}/{path.name}"), table.counts, path)
    if table.columns is not None:
        lacking = [name for name in table.columns if name not in header]
        if lacking:
            raise ValueError(
                f"wanted the columns {' and '.join(table.columns)} in {str(path)!r}, got "
                f"{', '.join(header[:12]) or 'no header'}; open it with the adapter cells and name its columns"
            )
    columns = None if table.columns is None else "x={},y={}".format(*table.columns)
    cells = read(path, columns, table.unit)
    coords = cells.coords * table.scale
    full = {**cells.table, **{name: coords[:, d].numpy() for d, name in reversed(list(enumerate(ALIGNED)))}}
    changes: dict[str, Any] = {"coords": coords, "unit": "µm", "table": full, "columns": ALIGNED}
    if hasattr(cells, "original"):  # what the adapter cells reads remembers what it came with
        changes |= {"original": full, "read_unit": "µm"}
        native = getattr(cells, "native", None)
        if native is not None:  # a frame; its new columns in the order x, y
            changes["native"] = native.assign(**{name: full[name] for name in reversed(ALIGNED)})
    return counted(cells.replace(**changes, name=f"{folder.name}/{path.name}"), table.counts, path)


def read(path: Path, columns: str | None, unit: str) -> regframe.PointSet:
    """The table by the adapter that reads tables of cells, which keeps every column in its type."""
    with unpacked(path):
        cells = regframe.adapter("cells", columns=columns, unit=unit).apply(path, regframe.Affine.identity(2, unit))
    assert isinstance(cells, regframe.PointSet)
    return cells


@contextmanager
def unpacked(path: Path) -> Iterator[None]:
    """ValueError for a gzipped table whose packing is damaged."""
    try:
        yield
    except zlib.error as error:
        raise ValueError(
            f"wanted a whole gzipped table in {str(path)!r}, got damaged bytes ({error}); copy the maker's file anew"
        ) from error


def counted(cells: regframe.PointSet, name: str | None, path: Path) -> regframe.PointSet:
    """The rows with the weights 0 and 1 of the column ``name``, where there is one; without weights where no row counts."""
    if name is None or name not in cells.table:
        return cells
    try:
        weights = torch.tensor([float(v) for v in cells.table[name]], dtype=torch.float64)
    except (TypeError, ValueError):
        weights = torch.tensor([math.nan])
    if not bool(((weights == 0) | (weights == 1)).all()):
        raise ValueError(
            f"wanted 0 or 1 in the column {name!r} of {str(path)!r}, got something else; copy the maker's file anew"
        )
    return cells.replace(weights=weights) if bool(weights.any()) else cells


def header_of(path: Path) -> list[str]:
    """The names of a table's columns, from its first line or its footer; empty where it is none."""
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        with path.open("rb") as file:
            if file.read(4) != b"PAR1":
                return []
        try:
            from pyarrow import parquet

            return [str(column) for column in parquet.read_schema(path).names]
        except Exception:  # noqa: BLE001 - its reader documents no exceptions; who reads the table says what is wrong
            return []
    if not name.endswith((".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")):
        return []
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            line = stream.readline(_HEADER).decode("utf-8-sig")
        delimiter = next((d for d in "\t,;" if d in line), ",")
        return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=delimiter), [])]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error):
        return []


def aligned(header: Sequence[str]) -> dict[str, str] | None:
    """The aligned columns of a header by axis, and their unit."""
    found = {match[1]: (match[0], match[2]) for name in header if (match := _ALIGNED.match(name))}
    if set(found) != {"x", "y"} or found["x"][1] != found["y"][1]:
        return None
    unit = regframe.canonical_unit(found["x"][1])
    return {"x": found["x"][0], "y": found["y"][0], "unit": unit}


def check_size(path: Path) -> None:
    """ValueError for a table that would unpack to more than is plausible, before it is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == b"\x1f\x8b" and size * 1032 > MOST_TEXT:  # deflate packs no more than 1032 : 1
        size = 0
        try:
            with gzip.open(path) as stream:
                while size <= MOST_TEXT and (part := len(stream.read(1 << 24))):
                    size += part
        except (OSError, EOFError, zlib.error):
            return  # who reads it says so
    rows = 0
    if head == b"PAR1":
        try:
            from pyarrow import parquet

            rows = int(parquet.read_metadata(path).num_rows)
        except Exception:  # noqa: BLE001 - as in `header_of`
            return
    if size > MOST_TEXT or rows > MOST_ROWS:
        raise ValueError(
            f"wanted a table of at most {MOST_TEXT >> 30} GiB and {MOST_ROWS:,} rows, got more in {str(path)!r}; "
            "check that it is the maker's file"
        )
