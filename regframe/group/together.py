"""What a group of images and a mosaic of fields share: results by name, sources, and the tables and maps of their folder."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data import Image
from ..io import claims, outputs
from ..io.inputs import check_apart
from ..io.spreadsheet import text_cell
from ..remote.address import locate
from ..result import Result
from ..slides.job import identity_of


class Together:
    """Several things that were placed in one space, each with a `Result` or with none; `Group` and `Mosaic` are such."""

    names: tuple[str, ...]
    results: tuple[Result | None, ...]
    metrics: dict[str, Any]
    sources: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return str(self.metrics["verdict"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for the verdict, one sentence each."""
        return tuple(self.metrics["reasons"])

    def __getitem__(self, name: str | int) -> Result:
        """The result of one of them by name or number; ValueError where there is none."""
        k = self.names.index(name) if isinstance(name, str) and name in self.names else name
        if not isinstance(k, int) or not -len(self.names) <= k < len(self.names):
            raise ValueError(f"wanted one of {', '.join(self.names)}, or its number, got {name!r}; name one of these")
        found = self.results[k]
        if found is None:
            why = "; ".join(self.metrics["images"][k]["reasons"])
            raise ValueError(f"wanted one that could be placed, got {self.names[k]}: {why}")
        return found


# ---- what they were made of ---------------------------------------------------------------------------------------------


def sources_of(placed: Together, images: Sequence[Any] | None) -> list[Any]:
    """What each is read from: ``images``, or its own sources; ValueError where these are no files, or not one for each."""
    if images is None:
        lost = [source for source in placed.sources if not locate(source).exists()]
        if lost:
            raise ValueError(f"wanted the images at hand, got {lost[0]!r}, which is no file; pass them as images=")
        return [locate(source) for source in placed.sources]
    found = list(images)
    if len(found) != len(placed.names):
        raise ValueError(f"wanted {len(placed.names)} images, got {len(found)}; give one for each, in their order")
    return found


def options_of(placed: Together, k: int, source: Any) -> dict[str, Any]:
    """The options by which image ``k`` was opened; none of one in memory."""
    return {} if isinstance(source, Image) else dict(placed.metrics["images"][k].get("options", {}))


def identity(source: Any) -> str:
    """What tells a file from another; empty of an image in memory."""
    return "" if isinstance(source, Image) else identity_of(locate(source))


# ---- their folder -------------------------------------------------------------------------------------------------------


def check_folder(
    path: Path, own: Callable[[Path], bool], what: str, overwrite: bool, inputs: Iterable[object] = ()
) -> None:
    """Refuse an output folder that could not be written, in advance: ``own`` tells one that may be replaced, ``what`` names it.

    Raises ValueError for an output that is an input, lies in one or holds one, FileExistsError for one that may not be replaced,
    OSError where it cannot be written.
    """
    check_apart(path, inputs)
    claims.heal(path)
    if path.is_symlink() or path.exists():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        if not (path.is_dir() and not path.is_symlink() and (own(path) or not any(path.iterdir()))):
            raise FileExistsError(
                f"output {path} exists and is not {what} written by regframe; it is left alone: choose another name"
            )
    outputs.check_writable(path.parent, path.name)


def folder_of(names: Sequence[str], k: int) -> str:
    """Name of the folder of image ``k``: its number, and its name as far as file systems allow."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", names[k]).strip("._")[:60]
    return f"{k:03d}_{plain}" if plain else f"{k:03d}"


def write_figures(placed: Together, folder: Path, more: dict[str, Any] | None = None) -> None:
    """Write ``metrics.json``; the seconds, which are those of a run that may have gone on, are left out."""
    told = {key: value for key, value in placed.metrics.items() if key != "seconds"}
    told |= {"sources": list(placed.sources), **(more or {})}
    (folder / outputs.METRICS).write_text(outputs.to_json(told, indent=2) + "\n", encoding="utf-8")


def write_maps(placed: Together, folder: Path) -> list[str]:
    """Write the map of each into a folder of its own in ``folder``; their paths beside it, empty where there is no map."""
    folder.mkdir()
    paths = []
    for k, result in enumerate(placed.results):
        place = folder / folder_of(placed.names, k)
        paths.append("" if result is None else f"{folder.name}/{place.name}")
        if result is not None:
            place.mkdir()
            result.save(place / outputs.TRANSFORM)
            (place / outputs.METRICS).write_text(outputs.to_json(result.metrics, indent=2) + "\n", encoding="utf-8")
    return paths


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, numbers in six digits."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["fixed", "moving"])
        writer.writeheader()
        writer.writerows({key: text_cell(_short(value)) for key, value in row.items()} for row in rows)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value


def read_figures(folder: Path, own: Callable[[Path], bool], command: str) -> dict[str, Any]:
    """The content of ``metrics.json`` of a folder that ``command`` wrote.

    Raises FileNotFoundError where there is no such folder, ValueError where ``own`` does not know it or the file is damaged.
    """
    claims.heal(folder)
    if not folder.exists():
        raise FileNotFoundError(f"wanted a folder that `{command}` wrote, got {str(folder)!r}, which does not exist")
    if not own(folder):
        raise ValueError(f"wanted a folder that `{command}` wrote, got {folder}; name its output")
    try:
        found = json.loads((folder / outputs.METRICS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(folder, error) from error
    if not isinstance(found, dict):
        raise damaged(folder, "no object")
    return found


def damaged(folder: Path, error: object) -> ValueError:
    """The error for a folder whose figures are not what was written."""
    return ValueError(f"wanted the figures of a run in {folder / outputs.METRICS}, got {error}; run it again")
