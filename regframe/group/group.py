"""`Group`: what `regframe.register_group` returns, and its folder on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import plugins
from ..data import Image
from ..io import outputs
from ..io.store import load
from ..result import Result
from .kept import Kept
from .pairs import Pair
from .together import Together, check_folder, damaged, folder_of, read_figures, write_figures, write_maps, write_table

ROUNDS, PAIRS = "rounds", "pairs"
"""Folders in that of a group: of the maps of its images, and of the pairs that were tried."""
TEMPLATE, VARIANCE = "template.ome.zarr", "variance.ome.zarr"
"""The mean and the variance of what the images show, where none of them is the reference."""
LOST = "lost.ome.zarr"
"""The map of the tissue that each image has lost."""


@dataclass(frozen=True)
class Group(Together):
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
    write_figures(group, folder)
    base = group.results[group.reference]
    assert base is not None
    run = {"images": dict(zip(group.names, group.sources, strict=True)), "reference": group.names[group.reference]}
    (folder / outputs.CONFIG).write_text(outputs.resolved_yaml(base, run), encoding="utf-8")
    rows = []
    for image, place in zip(group.metrics["images"], write_maps(group, folder / ROUNDS), strict=True):
        drift = image["drift"] or {}
        rows.append({
            "image": image["name"], "verdict": image["verdict"], "channel": image["channel"], "via": "; ".join(image["via"]),
            "residual_px": image["residual_px"], "lost_fraction": image.get("lost_fraction"),
            **{key: drift.get(key) for key in DRIFTS}, "map": place, "reasons": "; ".join(image["reasons"]),
        })  # fmt: skip
    for name, shown in ((TEMPLATE, group.template), (VARIANCE, group.variance), (LOST, group.lost)):
        if shown is not None:
            plugins.find_adapter(shown).save(shown, folder / name)
    write_table(folder / "rounds.csv", rows)
    keys = ("fixed", "moving", "verdict", "confidence", "used", "residual_px", "model")
    write_table(folder / "pairs.csv", [{key: pair[key] for key in keys} for pair in group.metrics["pairs"]])


DRIFTS = ("moved_px", "shift_y_px", "shift_x_px", "turn_degrees", "scale", "bend_px")
"""Figures of an image's drift that ``rounds.csv`` has a column for."""


def check_output(path: Path, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse an output folder that could not be written, in advance; only the folder of a group may be replaced.

    Raises ValueError for an output that is an input, lies in one or holds one, FileExistsError for one that may not be replaced,
    OSError where it cannot be written.
    """
    check_folder(path, is_group, "a group", overwrite, inputs)


def is_group(path: Path) -> bool:
    """Whether a folder is that of a group."""
    return (path / ROUNDS).is_dir() and (path / outputs.METRICS).is_file()


# ---- reading ------------------------------------------------------------------------------------------------------------


def load_group(path: str | Path) -> Group:
    """The group that `Group.save` or ``regframe rounds`` wrote.

    Raises FileNotFoundError where there is none, ValueError where the folder is not that of a group or is damaged.
    """
    folder = Path(path)
    told = read_figures(folder, is_group, "regframe rounds")
    try:
        names = tuple(str(image["name"]) for image in told["images"])
        placed = [bool(image["placed"]) for image in told["images"]]
        reference = names.index(told["reference"]["image"])
        tried = [(names.index(pair["fixed"]), names.index(pair["moving"])) for pair in told["pairs"]]
        sources = tuple(str(source) for source in told["sources"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from error
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
