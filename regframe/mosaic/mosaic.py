"""`Mosaic`: what `regframe.register_mosaic` returns, its folder on the disk, and its slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import Progress
from ..data import Grid
from ..group.members import pyramid_at
from ..group.together import (
    Together,
    check_folder,
    damaged,
    folder_of,
    identity,
    options_of,
    read_figures,
    sources_of,
    write_figures,
    write_maps,
    write_table,
)
from ..io import outputs
from ..io.store import load
from ..result import Result
from ..slides.mosaicked import Field, Flat, MosaicWarp, Seam, mosaicked
from ..slides.place import place_pyramid
from .layout import write_layout

FIELDS, SLIDE, REGISTERED = "fields", "mosaic.ome.zarr", "TileConfiguration.registered.txt"
"""In the folder of a mosaic: the maps of its fields, its slide, and the places in pixels as Fiji writes them."""


@dataclass(frozen=True)
class Mosaic(Together):
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
            pyramid_at(sources[k], mosaic.names[k], options_of(mosaic, k, sources[k])),
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
    made_of = [identity(source) for source in sources]
    terms = None if flat is None else flat.terms.tolist()
    return mosaicked(fields, mosaic.canvas, path, path.name, seam, repr((made_of, terms)))


def _flat(mosaic: Mosaic, sources: Sequence[Any]) -> Flat:
    """The flat field, from the fields with a place and what they share."""
    from ..stack.posegraph import Link
    from . import fields, flat

    kept = [k for k, result in enumerate(mosaic.results) if result is not None]
    views = [fields.view(sources[k], mosaic.names[k], options_of(mosaic, k, sources[k])) for k in kept]
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

    Raises what `regframe.group.together.check_folder` raises.
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
    write_figures(mosaic, folder, {"spacing": list(mosaic.canvas.spacing)})
    rows = []
    for entry, place in zip(mosaic.metrics["images"], write_maps(mosaic, folder / FIELDS), strict=True):
        shown = ("y_px", "x_px", "turn_degrees", "moved_px", "overlaps", "confidence", "residual_px")
        rows.append({
            "field": entry["name"], "verdict": entry["verdict"], **{key: entry[key] for key in shown}, "map": place,
            "reasons": "; ".join(entry["reasons"]),
        })  # fmt: skip
    write_table(folder / "fields.csv", rows)
    keys = ("fixed", "moving", "confidence", "used", "likeness", "share", "sd_px", "residual_px")
    write_table(folder / "pairs.csv", [{key: pair[key] for key in keys} for pair in mosaic.metrics["pairs"]])
    places = [
        None if entry["y_px"] is None else np.array([entry["y_px"], entry["x_px"]])
        for entry in mosaic.metrics["images"]
    ]
    files = [Path(source).name for source in mosaic.sources]
    write_layout(folder / REGISTERED, files if len(set(files)) == len(files) else mosaic.names, places)


def is_mosaic(path: Path) -> bool:
    """Whether a folder is that of a mosaic."""
    return (path / FIELDS).is_dir() and (path / outputs.METRICS).is_file()


def load_mosaic(path: str | Path) -> Mosaic:
    """The mosaic that `Mosaic.save` or ``regframe mosaic`` wrote.

    Raises FileNotFoundError where there is none, ValueError where the folder is not that of a mosaic or is damaged.
    """
    folder = Path(path)
    told = read_figures(folder, is_mosaic, "regframe mosaic")
    try:
        names = tuple(str(image["name"]) for image in told["images"])
        placed = [bool(image["placed"]) for image in told["images"]]
        canvas = told["canvas"]
        grid = Grid(tuple(canvas["shape"]), tuple(told.pop("spacing")), tuple(canvas["origin"]), canvas["unit"])
        sources = tuple(str(source) for source in told["sources"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from error
    results = [load(folder / FIELDS / folder_of(names, k)) if here else None for k, here in enumerate(placed)]
    return Mosaic(names, tuple(results), grid, told, sources)
