"""A folder that is trusted by nobody: every path stays inside it, every small file is bounded and checked before it is used."""

from __future__ import annotations

import fnmatch
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MOST_JSON = 16 << 20
"""Bytes of a JSON or a small text file at most. The largest that is read here, a manifest with the names of some hundred files,
has a few hundred kilobytes."""
MOST_ENTRIES = 100_000
"""Entries of a folder that are looked at. A CosMx folder with an image per field of view has a few thousand."""


class Folder:
    """The files below one folder, by relative name.

    Args:
        root: the folder as the user named it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()

    @property
    def name(self) -> str:
        """The folder's own name, for messages."""
        return self.root.name or str(self.root)

    def path(self, name: str) -> Path | None:
        """The file called ``name`` (relative, with ``/``), None where there is none.

        Raises ValueError for a name, or a link, that leads out of the folder.
        """
        if not self.inside(name):
            raise ValueError(
                f"wanted a file inside {str(self.root)!r}, got {name!r}, which leads out of it; "
                "copy the file into the folder, or open it by itself"
            )
        path = self.root / name
        return path if path.is_file() else None

    def inside(self, name: str) -> bool:
        """Whether ``name``, links followed, lies inside the folder."""
        if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            return False
        try:
            return (self.root / name).resolve().is_relative_to(self._real)
        except (OSError, RuntimeError):  # a link to itself
            return False

    def first(self, *names: str) -> str | None:
        """The first of ``names`` that is a file."""
        return next((name for name in names if self.path(name) is not None), None)

    def needed(self, names: Iterable[str], what: str, do: str) -> str:
        """The first of ``names`` that is a file; ValueError where there is none, with the advice ``do``."""
        listed = tuple(names)
        found = self.first(*listed)
        if found is None:
            raise ValueError(f"wanted {' or '.join(listed)} in {str(self.root)!r} for {what}, got none of them; {do}")
        return found

    def folders(self, pattern: str, under: str = "") -> list[str]:
        """Names of the folders that match, sorted, in the form that `path` takes."""
        return self._matching(pattern, under, folders=True)

    def files(self, pattern: str, under: str = "") -> list[str]:
        """Names of the files that match, sorted, in the form that `path` takes."""
        return self._matching(pattern, under, folders=False)

    def _matching(self, pattern: str, under: str, folders: bool) -> list[str]:
        place = self.root / under if under else self.root
        if (under and not self.inside(under)) or not place.is_dir():
            return []
        found = []
        with os.scandir(place) as entries:
            for count, entry in enumerate(entries):
                if count >= MOST_ENTRIES:
                    break
                name = f"{under}/{entry.name}" if under else entry.name
                kind = entry.is_dir() if folders else entry.is_file()
                if kind and fnmatch.fnmatchcase(entry.name, pattern) and self.inside(name):
                    found.append(name)
        return sorted(found)

    def below(self, name: str) -> Folder:
        """A folder inside this one; ValueError for one that leads out of it."""
        if not self.inside(name):
            raise ValueError(
                f"wanted a folder inside {str(self.root)!r}, got {name!r}, which leads out of it; open that folder by itself"
            )
        return Folder(self.root / name)

    def text(self, name: str) -> str:
        """A small text file; ValueError where it is larger than `MOST_JSON` or no text."""
        path = self.path(name)
        if path is None:
            raise ValueError(f"wanted {name} in {str(self.root)!r}, got no such file; copy the folder whole")
        size = path.stat().st_size
        if size > MOST_JSON:
            raise ValueError(
                f"wanted at most {MOST_JSON >> 20} MiB in {str(path)!r}, got {size >> 20} MiB; check that it is the maker's file"
            )
        try:
            return path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"wanted text in {str(path)!r}, got bytes that are none; copy the maker's file anew"
            ) from error

    def json(self, name: str) -> Record:
        """The object in a JSON file, with readers that check; ValueError where it is none."""
        try:
            value = json.loads(self.text(name))
        except (json.JSONDecodeError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
            raise ValueError(
                f"wanted JSON in {str(self.root / name)!r}, got something else ({reason}); copy the maker's file anew"
            ) from error
        if not isinstance(value, dict):
            raise ValueError(
                f"wanted a JSON object in {str(self.root / name)!r}, got {type(value).__name__}; copy the maker's file anew"
            )
        return Record(value, str(self.root / name))


class Record:
    """The fields of a JSON object.

    Args:
        fields: as parsed.
        where: the file, for messages.
    """

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self.fields, self.where = fields, where

    def number(self, key: str, low: float, high: float, what: str) -> float | None:
        """A number from ``low`` to ``high``, None where there is no such field; ValueError for anything else."""
        if key not in self.fields:
            return None
        value = self.fields[key]
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not low <= value <= high:
            raise ValueError(
                f"wanted {what} from {low:g} to {high:g} as {key!r} in {self.where!r}, got {str(value)[:40]!r}; "
                "copy the maker's file anew"
            )
        return float(value)

    def word(self, key: str) -> str | None:
        """A text, None where there is no such field, or it holds something else or nothing."""
        value = self.fields.get(key)
        return value.strip() if isinstance(value, str) and value.strip() not in ("", "N/A") else None

    def record(self, key: str) -> Record:
        """The object in a field, empty where there is none."""
        value = self.fields.get(key)
        return Record(value if isinstance(value, dict) else {}, self.where)
