"""`Group`: what `regframe.register_group` returns, and its folder on the disk."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import plugins
from ..data import Image
from ..io import claims, outputs
from ..io.inputs import check_apart
from ..io.spreadsheet import text_cell
from ..io.store import load
from ..result import Result
from .kept import Kept
from .pairs import Pair

ROUNDS, PAIRS = "rounds", "pairs"
"""Folders in that of a group: of the maps of its images, and of the pairs that were tried."""
TEMPLATE, VARIANCE = "template.ome.zarr", "variance.ome.zarr"
"""The mean and the variance of what the images show, where none of them is the reference."""
LOST = "lost.ome.zarr"
"""The map of the tissue that each image has lost."""


@dataclass(frozen=True)
class Group:
    """Images of one tissue in the space of one of them, or of their mean.

    Args:
        names: names of the images, in their order.
        results: one `Result` per image, from its own space to that of the reference; None for one that could not be placed. The
            reference's own is the identity.
        pairs: all pairs that were tried.
        reference: number of the image that stays where it is.
        metrics: the content of ``metrics.json``: verdict and reasons of the whole; under ``images``, of each image, its verdict,
            reasons, channel, way, drift and residual; under ``pairs``, of each pair, its verdict, confidence and residual.
        sources: what each image was made of: a path, or the name of an image in memory.
        template: with ``reference="none"`` the mean of what all images show, in the space of the results; None otherwise. The
            space is then that of no image: ``reference`` is the one whose canvas and pose it has.
        variance: the variance of what they show, per pixel of ``template``.
        lost: map of lost tissue, in the space of the results at up to 512 pixels a side: the channel ``tissue``, 1 where tissue
            is expected, then one per image with a place, 1 where its tissue is gone (`regframe.group.lost`); None of volumes.
    """

    names: tuple[str, ...]
    results: tuple[Result | None, ...]
    pairs: tuple[Pair, ...]
    reference: int
    metrics: dict[str, Any]
    sources: tuple[str, ...] = ()
    template: Image | None = None
    variance: Image | None = None
    lost: Image | None = None

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return str(self.metrics["verdict"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for the verdict, one sentence each."""
        return tuple(self.metrics["reasons"])

    def __getitem__(self, name: str | int) -> Result:
        """The result of an image by name or number; ValueError where there is none."""
        k = self.names.index(name) if isinstance(name, str) and name in self.names else name
        if not isinstance(k, int) or not -len(self.names) <= k < len(self.names):
            raise ValueError(f"wanted one of {', '.join(self.names)}, or its number, got {name!r}; name one of these")
        found = self.results[k]
        if found is None:
            why = "; ".join(self.metrics["images"][k]["reasons"])
            raise ValueError(f"wanted an image that could be placed, got {self.names[k]}: {why}")
        return found

    def __repr__(self) -> str:
        placed = sum(result is not None for result in self.results)
        off = self.metrics["residual_px"]
        said = "" if off is None else f", residual {off:.2g} px"
        where = "their mean" if self.template is not None else self.names[self.reference]
        return (
            f"Group({self.verdict}, {placed} of {len(self.names)} images placed on {where}, "
            f"{len(self.pairs)} pairs{said})"
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the group as a folder, complete or not at all.

        It holds ``metrics.json``, ``rounds.csv``, ``pairs.csv``, ``lost.ome.zarr``, and ``rounds/NNN_NAME/`` with a map each,
        which `regframe.load` and every command read; `regframe.load_group` reads the whole.

        Raises FileExistsError where ``path`` exists and may not be replaced, OSError where it cannot be written.
        """
        write(self, Path(path), overwrite)


# ---- writing ------------------------------------------------------------------------------------------------------------


def write(group: Group, path: Path, overwrite: bool = False, *extras: Callable[[Path], object]) -> None:
    """Write a group as a folder, complete or not at all; see `Group.save`.

    ``extras`` are called with the folder before it gets its name, and write further files into it: the page.
    """
    check_output(path, overwrite)
    with outputs.staged(path, overwrite) as folder:
        folder.mkdir()
        kept = Kept(folder / PAIRS, group.names)
        for pair in group.pairs:
            kept.put(pair)
        write_files(group, folder)
        for extra in extras:
            extra(folder)


def write_files(group: Group, folder: Path) -> None:
    """Write the figures and the maps of a group into a folder; its pairs apart."""
    told = {
        key: value for key, value in group.metrics.items() if key != "seconds"
    }  # of a run that went on, not of the group
    told |= {"sources": list(group.sources)}
    (folder / outputs.METRICS).write_text(outputs.to_json(told, indent=2) + "\n", encoding="utf-8")
    base = group.results[group.reference]
    assert base is not None
    run = {"images": dict(zip(group.names, group.sources, strict=True)), "reference": group.names[group.reference]}
    (folder / outputs.CONFIG).write_text(outputs.resolved_yaml(base, run), encoding="utf-8")
    rows = []
    for k, result in enumerate(group.results):
        image, place = group.metrics["images"][k], folder / ROUNDS / folder_of(group.names, k)
        drift = image["drift"] or {}
        rows.append({
            "image": image["name"], "verdict": image["verdict"], "channel": image["channel"], "via": "; ".join(image["via"]),
            "residual_px": image["residual_px"], "lost_fraction": image.get("lost_fraction"),
            **{key: drift.get(key) for key in DRIFTS},
            "map": "" if result is None else f"{ROUNDS}/{place.name}", "reasons": "; ".join(image["reasons"]),
        })  # fmt: skip
        if result is not None:
            place.mkdir(parents=True)
            result.save(place / outputs.TRANSFORM)
            (place / outputs.METRICS).write_text(outputs.to_json(result.metrics, indent=2) + "\n", encoding="utf-8")
    for name, image in ((TEMPLATE, group.template), (VARIANCE, group.variance), (LOST, group.lost)):
        if image is not None:
            plugins.find_adapter(image).save(image, folder / name)
    _table(folder / "rounds.csv", rows)
    keys = ("fixed", "moving", "verdict", "confidence", "used", "residual_px", "model")
    _table(folder / "pairs.csv", [{key: pair[key] for key in keys} for pair in group.metrics["pairs"]])


DRIFTS = ("moved_px", "shift_y_px", "shift_x_px", "turn_degrees", "scale", "bend_px")
"""Figures of an image's drift that ``rounds.csv`` has a column for."""


def _table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["fixed", "moving"])
        writer.writeheader()
        writer.writerows({key: text_cell(_short(value)) for key, value in row.items()} for row in rows)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value


def folder_of(names: Sequence[str], k: int) -> str:
    """Name of the folder of image ``k``: its number, and its name as far as file systems allow."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", names[k]).strip("._")[:60]
    return f"{k:03d}_{plain}" if plain else f"{k:03d}"


def check_output(path: Path, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse an output folder that could not be written, in advance; only the folder of a group may be replaced.

    Raises ValueError for an output that is an input, lies in one or holds one, FileExistsError for one that may not be replaced,
    OSError where it cannot be written.
    """
    check_folder(path, is_group, "a group", overwrite, inputs)


def check_folder(
    path: Path, own: Callable[[Path], bool], what: str, overwrite: bool, inputs: Iterable[object] = ()
) -> None:
    """`check_output` of any kind of folder: ``own`` tells one that may be replaced, ``what`` names it."""
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


def is_group(path: Path) -> bool:
    """Whether a folder is that of a group."""
    return (path / ROUNDS).is_dir() and (path / outputs.METRICS).is_file()


# ---- reading ------------------------------------------------------------------------------------------------------------


def load_group(path: str | Path) -> Group:
    """The group that `Group.save` or ``regframe rounds`` wrote.

    Raises FileNotFoundError where there is none, ValueError where the folder is not that of a group or is damaged.
    """
    folder = Path(path)
    claims.heal(folder)
    if not folder.exists():
        raise FileNotFoundError(
            f"wanted a folder that `regframe rounds` wrote, got {str(folder)!r}, which does not exist"
        )
    if not is_group(folder):
        raise ValueError(f"wanted a folder that `regframe rounds` wrote, got {folder}; name its output")
    try:
        told = json.loads((folder / outputs.METRICS).read_text(encoding="utf-8"))
        names = tuple(str(image["name"]) for image in told["images"])
        placed = [bool(image["placed"]) for image in told["images"]]
        reference = names.index(told["reference"]["image"])
        tried = [(names.index(pair["fixed"]), names.index(pair["moving"])) for pair in told["pairs"]]
        sources = tuple(str(source) for source in told["sources"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"wanted the figures of a group in {folder / outputs.METRICS}, got {error}; run it again"
        ) from error
    results = [load(folder / ROUNDS / folder_of(names, k)) if here else None for k, here in enumerate(placed)]
    kept = Kept(folder / PAIRS, names)
    pairs = tuple(pair for a, b in tried if (pair := kept.find(a, b)) is not None)
    images = [_image(folder / name) for name in (TEMPLATE, VARIANCE, LOST)]
    return Group(names, tuple(results), pairs, reference, told, sources, *images)


def _image(path: Path) -> Image | None:
    if not path.exists():
        return None
    found = plugins.open(path)
    if not isinstance(found, Image):
        raise ValueError(f"wanted an image in {path}, got something else; run it again")
    return found
