"""What a Parquet file declares, held against its bytes before any of it is unpacked."""

from __future__ import annotations

from pathlib import Path

import regframe

_WIDTH = 8
"""Bytes of a value in memory."""
_RATIO = 400
"""Bytes in memory that one byte of a file becomes at most: tables of cells come to 3 to 30, of constant columns that stand beside
positions to 100; a table of runs alone to a million."""


def check_parquet(path: Path, native: Path) -> None:
    """ValueError in one sentence for a table that declares more than its file can hold.

    Args:
        path: of the file, for the message.
        native: a path to it that Arrow takes.
    """
    from pyarrow import parquet

    footer = parquet.read_metadata(native)
    values, unpacked = 0, 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
            values += max(chunk.num_values, 0)
            unpacked += max(chunk.total_uncompressed_size, 0)
    size = path.stat().st_size
    what = f"{footer.num_rows} rows of {footer.num_columns} columns"
    if values * _WIDTH > max(regframe.gate.FREE, _RATIO * size) or unpacked > max(regframe.gate.FREE, _RATIO * size):
        regframe.gate.check_declared(path.name, what, max(values * _WIDTH, unpacked), size, _RATIO)
