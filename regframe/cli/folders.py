"""Folders that regframe wrote and that are not the result of one pair: what they are, and where their results lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SHOWN = 3
"""Results that a sentence names."""


@dataclass(frozen=True)
class Folder:
    """A folder that holds several results.

    Args:
        kind: what it is, in words.
        page: its report.
        results: the results in it, each a folder that `regframe.load` reads.
    """

    kind: str
    page: Path
    results: tuple[Path, ...]


_KINDS = (
    ("sections.csv", "sections", "a stack of sections (`regframe stack`)", "report.html"),
    ("rounds.csv", "rounds", "rounds of one section (`regframe rounds`)", "report.html"),
    ("fields.csv", "fields", "a mosaic (`regframe mosaic`)", "report.html"),
    ("summary.csv", "", "a batch (`regframe batch`)", "summary.html"),
)
"""The table by which a folder is known, the folder of its results, what it is, and its page."""


def of(path: Path) -> Folder | None:
    """What a folder is; None where it is the result of one pair, or nothing that is known."""
    if not path.is_dir() or _is_result(path):
        return None
    for table, inside, kind, page in _KINDS:
        if (path / table).is_file() and (path / inside).is_dir() and (path / page).is_file():
            return Folder(kind, path / page, _results(path / inside))
    return None


def check_single(path: Path) -> None:
    """ValueError, which says what the folder is and where its results are, for one that holds several."""
    if not path.is_dir() or (path / "zarr.json").is_file() or _is_result(path):
        return
    found = of(path)
    if found is not None:
        where = f"; the results in it: {_named(found.results)}" if found.results else ""
        raise ValueError(
            f"wanted the result of one pair, got {path}, the folder of {found.kind}; its report is {found.page}{where}"
        )
    inside = _results(path)
    if inside:
        raise ValueError(f"wanted the result of one pair, got {path}, a folder that holds some: {_named(inside)}")


def _results(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.iterdir() if path.is_dir() and _is_result(path)))


def _is_result(path: Path) -> bool:
    return any((store / "regframe" / "zarr.json").is_file() for store in (path, path / "transform.ome.zarr"))


def _named(results: tuple[Path, ...]) -> str:
    more = len(results) - _SHOWN
    return ", ".join(map(str, results[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
