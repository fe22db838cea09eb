"""`Mosaic`: what `regframe.register_mosaic` returns, its folder on the disk, and its slide."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import Progress
from ..data import Grid, Image
from ..group.group import check_folder, folder_of
from ..group.members import pyramid_at
from ..io import claims, outputs
from ..io.spreadsheet import text_cell
from ..io.store import load
from ..remote.address import locate
from ..result import Result
from ..slides.job import identity_of
from ..slides.mosaicked import Field, Flat, MosaicWarp, Seam, mosaicked
from ..slides.place import place_pyramid
from .layout import write_layout

FIELDS, SLIDE, REGISTERED = "fields", "mosaic.ome.zarr", "TileConfiguration.registered.txt"
"""In the folder of a mosaic: the maps of its fields, its slide, and the places in pixels as Fiji writes them."""


@dataclass(frozen=True)
class Mosaic:
    """Fields of view on one canvas.

    Args:
        names: names of the fields, in their order.
        results: one `Result` per field, from its own space to the canvas; None for one that could not be placed.
        canvas: the canvas, which holds all fields with a place.
        metrics: the content of ``metrics.json``: verdict and reasons of the whole; under ``images``, of each field, its verdict,
            reasons, place and turn; under ``pairs``, of each two that were compared, confidence and residual.
        sources: what each field was made of: a path, or the name of an image in memory.
    """

    names: tuple[str, ...]
    results: tuple[Result | None, ...]
    canvas: Grid
    metrics: dict[str, Any]
    sources: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return str(self.metrics["verdict"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for the verdict, one sentence each."""
        return tuple(self.metrics["reasons"])

    def __getitem__(self, name: str | int) -> Result:
        """The result of a field by name or number; ValueError where there is none."""
        k = self.names.index(name) if isinstance(name, str) and name in self.names else name
        if not isinstance(k, int) or not -len(self.names) <= k < len(self.names):
            raise ValueError(f"wanted one of {', '.join(self.names)}, or its number, got {name!r}; name one of these")
        found = self.results[k]
        if found is None:
            why = "; ".join(self.metrics["images"][k]["reasons"])
            raise ValueError(f"wanted a field with a place, got {self.names[k]}: {why}")
        return found

    def __repr__(self) -> str:
        off = self.metrics["residual_px"]
        said = "" if off is None else f", residual {off:.2g} px"
        size = " × ".join(str(n) for n in self.canvas.shape)
        return f"Mosaic({self.verdict}, {self.metrics['n_placed']} of {len(self.names)} fields on {size} px{said})"

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the mosaic as a folder, complete or not at all.

        It holds ``metrics.json``, ``fields.csv``, ``pairs.csv``, a map for each field in ``fields/NNN_NAME/``, and Fiji's
        ``TileConfiguration.registered.txt``; `regframe.load_mosaic` reads it.

        Raises FileExistsError where ``path`` exists and may not be replaced, OSError where it cannot be written.
        """
        write(self, Path(path), overwrite)

    def write_slide(
        self,
        path: str | Path,
        *,
        images: Sequence[Any] | None = None,
        seam: Seam = "feathered",
        flat_field: bool = False,
        workers: int | None = None,
        overwrite: bool = False,
        progress: Callable[[Progress], object] | None = None,
    ) -> Path:
        """Write all fields with a place as one slide, tile by tile, within bounded memory; a call that was killed goes on.

        Args:
            path: ``NAME.zarr`` (OME-Zarr) or ``NAME.ome.tif``.
            images: the fields, where they lie elsewhere now or were in memory; its own sources where None.
            seam: ``feathered``: where fields overlap each counts by the distance from its border; ``nearest``: the one whose
                border is farthest away, alone.
            flat_field: divide every field by the brightness of an even object, told from all of them, per channel.
            workers: threads; None takes one per core.
            overwrite: replace an output that exists, and drop an unfinished one that was begun from something else.
            progress: called after every shard.

        Raises:
            ValueError: a field that cannot be opened, another seam, a name that ends in neither suffix.
            FileExistsError: the output exists.
            OSError: it cannot be written; a second call goes on from what was done.
        """
        plan = planned(self, Path(path), images, seam, flat_field)
        return Path(str(plan.write(workers, overwrite, progress)))


# ---- the slide ----------------------------------------------------------------------------------------------------------


def planned(
    mosaic: Mosaic, path: Path, images: Sequence[Any] | None = None, seam: Seam = "feathered", flat_field: bool = False
) -> MosaicWarp:
    """The plan of `Mosaic.write_slide`, which is not begun."""
    sources = sources_of(mosaic, images)
    pyramids = {
        k: place_pyramid(
            pyramid_at(sources[k], mosaic.names[k], {} if isinstance(sources[k], Image) else _options(mosaic, k)),
            result.moving_grid,
        )
        for k, result in enumerate(mosaic.results)
        if result is not None
    }
    flat = _flat(mosaic, sources) if flat_field and pyramids else None
    fields = tuple(
        Field(pyramid if flat is None else flat.flattened(pyramid), mosaic[k].transform)
        for k, pyramid in pyramids.items()
    )
    identity = [_identity(source) for source in sources]
    terms = None if flat is None else flat.terms.tolist()
    return mosaicked(fields, mosaic.canvas, path, path.name, seam, repr((identity, terms)))


def sources_of(mosaic: Mosaic, images: Sequence[Any] | None) -> list[Any]:
    """What each field is read from; ValueError where that is no file, or another number is given."""
    if images is not None:
        found = list(images)
        if len(found) != len(mosaic.names):
            raise ValueError(f"wanted {len(mosaic.names)} fields, got {len(found)}; give one for each, in their order")
        return found
    lost = [source for source in mosaic.sources if not locate(source).exists()]
    if lost:
        raise ValueError(f"wanted the fields of the mosaic, got {lost[0]!r}, which is no file; pass them as images=")
    return [locate(source) for source in mosaic.sources]


def _options(mosaic: Mosaic, k: int) -> dict[str, Any]:
    return dict(mosaic.metrics["images"][k].get("options", {}))


def _identity(source: Any) -> str:
    return "" if isinstance(source, Image) else identity_of(locate(source))


def _flat(mosaic: Mosaic, sources: Sequence[Any]) -> Flat:
    """The flat field, from the fields with a place and what they share."""
    from ..stack.posegraph import Link
    from . import fields, flat

    kept = [k for k, result in enumerate(mosaic.results) if result is not None]
    views = [
        fields.view(sources[k], mosaic.names[k], {} if isinstance(sources[k], Image) else _options(mosaic, k))
        for k in kept
    ]
    links = []
    for pair in mosaic.metrics["pairs"]:
        a, b = mosaic.names.index(pair["fixed"]), mosaic.names.index(pair["moving"])
        if not pair["used"] or a not in kept or b not in kept:  # fields that hang together in themselves have no place
            continue
        here, there = (_indices(mosaic[k]) for k in (a, b))
        matrix = np.linalg.inv(here) @ there
        probes = _shared(matrix, views[kept.index(a)].grid, views[kept.index(b)].grid)
        links.append(Link(kept.index(a), kept.index(b), matrix, probes=probes))
    return flat.flat_field(views, links)


def _indices(result: Result) -> np.ndarray[Any, Any]:
    """``[3, 3]`` from a field's pixels to positions on the canvas."""
    matrix = result.affine.matrix.numpy()  # type: ignore[attr-defined]
    return np.asarray(matrix @ result.moving_grid.index_to_position().numpy())


def _shared(matrix: np.ndarray[Any, Any], one: Grid, other: Grid) -> np.ndarray[Any, Any]:
    """Corners of what two fields share, in the pixels of the moving one."""
    back = np.linalg.inv(matrix)
    ends = np.array([[0, 0], [one.shape[0] - 1, one.shape[1] - 1]]) @ back[:2, :2].T + back[:2, 2]
    low = np.clip(ends.min(axis=0), 0, np.array(other.shape) - 1)
    high = np.clip(ends.max(axis=0), 0, np.array(other.shape) - 1)
    return np.array([low, high])


# ---- the folder ---------------------------------------------------------------------------------------------------------


def check(path: Path, overwrite: bool, inputs: Sequence[object] = ()) -> None:
    """Refuse an output folder that could not be written, in advance; only the folder of a mosaic may be replaced.

    Raises what `regframe.group.group.check_output` raises.
    """
    check_folder(path, is_mosaic, "a mosaic", overwrite, inputs)


def write(mosaic: Mosaic, path: Path, overwrite: bool = False, *extras: Callable[[Path], object]) -> None:
    """Write a mosaic as a folder, complete or not at all; ``extras`` write further files before it gets its name."""
    check(path, overwrite)
    with outputs.staged(path, overwrite) as folder:
        folder.mkdir()
        _files(mosaic, folder)
        for extra in extras:
            extra(folder)


def _files(mosaic: Mosaic, folder: Path) -> None:
    told = {key: value for key, value in mosaic.metrics.items() if key != "seconds"}
    told |= {"sources": list(mosaic.sources), "spacing": list(mosaic.canvas.spacing)}
    (folder / outputs.METRICS).write_text(outputs.to_json(told, indent=2) + "\n", encoding="utf-8")
    rows = []
    for k, result in enumerate(mosaic.results):
        entry, place = mosaic.metrics["images"][k], folder / FIELDS / folder_of(mosaic.names, k)
        shown = ("y_px", "x_px", "turn_degrees", "moved_px", "overlaps", "confidence", "residual_px")
        rows.append({
            "field": entry["name"], "verdict": entry["verdict"], **{key: entry[key] for key in shown},
            "map": "" if result is None else f"{FIELDS}/{place.name}", "reasons": "; ".join(entry["reasons"]),
        })  # fmt: skip
        if result is not None:
            place.mkdir(parents=True)
            result.save(place / outputs.TRANSFORM)
            (place / outputs.METRICS).write_text(outputs.to_json(result.metrics, indent=2) + "\n", encoding="utf-8")
    (folder / FIELDS).mkdir(exist_ok=True)
    _table(folder / "fields.csv", rows)
    keys = ("fixed", "moving", "confidence", "used", "likeness", "share", "sd_px", "residual_px")
    _table(folder / "pairs.csv", [{key: pair[key] for key in keys} for pair in mosaic.metrics["pairs"]])
    places = [
        None if entry["y_px"] is None else np.array([entry["y_px"], entry["x_px"]])
        for entry in mosaic.metrics["images"]
    ]
    files = [Path(source).name for source in mosaic.sources]
    write_layout(folder / REGISTERED, files if len(set(files)) == len(files) else mosaic.names, places)


def _table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["fixed", "moving"])
        writer.writeheader()
        for row in rows:
            plain = {k: f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for k, v in row.items()}
            writer.writerow({key: text_cell(value) for key, value in plain.items()})


def is_mosaic(path: Path) -> bool:
    """Whether a folder is that of a mosaic."""
    return (path / FIELDS).is_dir() and (path / outputs.METRICS).is_file()


def load_mosaic(path: str | Path) -> Mosaic:
    """The mosaic that `Mosaic.save` or ``regframe mosaic`` wrote.

    Raises FileNotFoundError where there is none, ValueError where the folder is not that of a mosaic or is damaged.
    """
    folder = Path(path)
    claims.heal(folder)
    if not folder.exists():
        raise FileNotFoundError(
            f"wanted a folder that `regframe mosaic` wrote, got {str(folder)!r}, which does not exist"
        )
    if not is_mosaic(folder):
        raise ValueError(f"wanted a folder that `regframe mosaic` wrote, got {folder}; name its output")
    try:
        told = json.loads((folder / outputs.METRICS).read_text(encoding="utf-8"))
        names = tuple(str(image["name"]) for image in told["images"])
        placed = [bool(image["placed"]) for image in told["images"]]
        canvas = told["canvas"]
        grid = Grid(tuple(canvas["shape"]), tuple(told.pop("spacing")), tuple(canvas["origin"]), canvas["unit"])
        sources = tuple(str(source) for source in told["sources"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"wanted the figures of a mosaic in {folder / outputs.METRICS}, got {error}; run it again"
        ) from error
    results = [load(folder / FIELDS / folder_of(names, k)) if here else None for k, here in enumerate(placed)]
    return Mosaic(names, tuple(results), grid, told, sources)
