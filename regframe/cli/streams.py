"""Standard input and output in place of files: the word ``-`` on the command line."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STREAM = Path("-")
"""What stands for standard input or output; a file of that name is written ``./-``."""
_KINDS = ((b"PAR1", ".parquet"), (b"\x89HDF", ".h5ad"), (b"\x1f\x8b", ".csv.gz"), (b"ply", ".ply"), (b"LASF", ".las"))
"""Beginnings of tables that are no plain text, and the suffix by which their reader knows them."""


@contextlib.contextmanager
def streamed(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Files that hold what comes from standard input, and take what goes to standard output, where ``-`` stands for them.

    A table on standard output is comma-separated text. Raises ValueError where standard input is empty.
    """
    if STREAM not in (source, target):
        yield source, target
        return
    with tempfile.TemporaryDirectory(prefix="regframe-") as name:
        folder = Path(name)
        if source == STREAM:
            raw = sys.stdin.buffer.read()
            if not raw:
                raise ValueError("wanted a table on standard input, got nothing; pipe one in, or name a file")
            suffix = next((suffix for magic, suffix in _KINDS if raw.startswith(magic)), ".csv")
            source = folder / f"stdin{suffix}"
            source.write_bytes(raw)
        if target != STREAM:
            yield source, target
            return
        yield source, folder / "stdout.csv"
        sys.stdout.buffer.write((folder / "stdout.csv").read_bytes())
        sys.stdout.buffer.flush()
