"""Standard input and output: in place of files (the word ``-``), and free of what plug-ins print."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

STREAM = Path("-")
"""What stands for standard input or output; a file of that name is written ``./-``."""
_KINDS = ((b"PAR1", ".parquet"), (b"\x89HDF", ".h5ad"), (b"\x1f\x8b", ".csv.gz"), (b"ply", ".ply"), (b"LASF", ".las"))
"""Beginnings of tables that are no plain text, and the suffix by which their reader knows them."""


_kept: list[tuple[TextIO, int | None]] = []
"""The process's own standard output while it is kept `apart`: the stream, and a copy of its descriptor where it has one."""


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Keep standard output for what is printed inside `own`; what plug-ins and libraries print goes to stderr."""
    if _kept:
        yield
        return
    stream, copy = sys.stdout, None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stream.flush()
        if stream.fileno() == 1:
            copy = os.dup(1)
            os.dup2(2, 1)
    _kept.append((stream, copy))
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        _kept.clear()
        sys.stdout = stream
        if copy is not None:
            os.dup2(copy, 1)
            os.close(copy)


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Print on the process's own standard output, also while it is kept `apart`."""
    if not _kept:
        yield
        return
    stream, copy = _kept[0]
    sys.stdout.flush()
    if copy is not None:
        os.dup2(copy, 1)
    sys.stdout = stream
    try:
        yield
        stream.flush()
    finally:
        sys.stdout = sys.stderr
        if copy is not None:
            os.dup2(2, 1)


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
        with apart():
            yield source, folder / "stdout.csv"
        with own():
            sys.stdout.buffer.write((folder / "stdout.csv").read_bytes())
            sys.stdout.buffer.flush()
