"""What a layout finds in a folder: tables, pictures, micrometres per pixel; and the choices that a user may make in it."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from .folder import Folder

Use = Literal["cells", "transcripts", "image"]
"""What of a folder is read."""
PIXEL = (1e-3, 1e3)
"""Micrometres per pixel that are believed: from a nanometre, finer than any light microscope, to a millimetre."""


@dataclass(frozen=True)
class Choice:
    """What the user chose; None leaves it to the layout.

    Args:
        region: which of several regions or samples in one folder, by name.
        image: which picture, by name.
        bin: side of the bins of Visium HD, µm.
        z: plane of a stack.
        spacing: micrometres per pixel, where the folder does not state them.
        override: read a version that is not known.
    """

    region: str | None = None
    image: str | None = None
    bin: int | None = None
    z: int | None = None
    spacing: float | None = None
    override: bool = False


@dataclass(frozen=True)
class Table:
    """A table with positions.

    Args:
        path: the file.
        columns: position columns (x, y); None where the table has no header and is known by its six columns.
        unit: that the columns are in.
        scale: micrometres in one such unit.
        counts: column of 0 and 1 that says which rows lie on tissue; None: all do.
        matrix: counts of genes by barcode (10x HDF5); None: none there.
    """

    path: Path
    columns: tuple[str, str] | None
    unit: str = "µm"
    scale: float = 1.0
    counts: str | None = None
    matrix: Path | None = None


@dataclass(frozen=True)
class Picture:
    """An image of a folder.

    Args:
        path: the file.
        spacing: µm per pixel (y, x) of the full resolution; None: what the file declares.
        expected: µm per pixel that the folder states and the file has to agree with; None: not stated.
        origin: µm (y, x), position of the first pixel's centre in the frame of the tables.
        stack: whether it may be a stack of planes, of which one is taken.
    """

    path: Path
    spacing: tuple[float, float] | None = None
    expected: float | None = None
    origin: tuple[float, float] = (0.0, 0.0)
    stack: bool = False


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        vendor: the instrument.
        version: of the software that wrote the folder, as it says; ``""`` where it does not.
        tables: by use; those that are there.
        images: by name, the one that is taken first.
        missing: by use, why there is none and what to do, as the end of a sentence.
        notes: remarks on what was chosen and on what is not read.
    """

    vendor: str
    version: str = ""
    tables: Mapping[str, Table] = field(default_factory=dict)
    images: Mapping[str, Picture] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Layout(ABC):
    """The published layout of one instrument's output."""

    name: ClassVar[str]
    """What ``vendor=`` says."""
    signs: ClassVar[str]
    """The files by which the layout is told, for messages."""

    @abstractmethod
    def recognises(self, folder: Folder) -> float:
        """How sure it is, 0 … 1, from names alone."""

    @abstractmethod
    def find(self, folder: Folder, choice: Choice) -> Found:
        """What the folder holds; ValueError, in one sentence, where it is damaged or incomplete."""


def parquet_first(stem: str) -> tuple[str, ...]:
    """Names of a table in the order of preference: Parquet where its reader is installed, then text."""
    readers = all(importlib.util.find_spec(name) for name in ("pandas", "pyarrow"))
    text = (f"{stem}.csv.gz", f"{stem}.csv")
    return (f"{stem}.parquet", *text) if readers else (*text, f"{stem}.parquet")


def chosen_one(names: list[str], wanted: str | None, what: str) -> str:
    """The one of ``names`` that is wanted, or the only one; ValueError where that leaves it open."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    got = "none named" if wanted is None else repr(wanted)
    raise ValueError(f"wanted one of {', '.join(names[:12])} of {what}, got {got}; choose with region=NAME")
