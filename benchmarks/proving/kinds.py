"""The kinds of pairs, by name: what each of them puts regframe to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import looks, pairs
from .cells import CellRecipe, Measurement, make, strangers
from .pairs import Made, Recipe

IMAGES: dict[str, Recipe] = {
    "pose": Recipe(mirror=0.15, looks=(looks.tone, looks.noise)),
    "bend": Recipe(turn=15, bend=(2, 12)),
    "stain": Recipe(pairs.stained_picture, turn=45, bend=(2, 8), looks=(looks.stain,)),
    "scale": Recipe(scale=(-2, 2), mirror=0.05, declared=0.0, side=(200, 360)),
    "crop": Recipe(turn=30, bend=(0, 6), crop=True, looks=(looks.tone, looks.noise)),
    "pieces": Recipe(turn=20, cuts=("pieces",) * 3, bend=(0, 4)),
    "torn": Recipe(
        turn=30, cuts=("tear", "fold"), bend=(0, 6), looks=(looks.missing, looks.foreign, looks.tone), some=True
    ),
    "plane": Recipe(pairs.neighbours, turn=45, bend=(2, 8), looks=(looks.contrast,)),
    "serial": Recipe(pairs.serial_sections, looks=(looks.tone,)),
    "light": Recipe(
        turn=45, bend=(0, 6), fixed_looks=(looks.light,), looks=(looks.light, looks.blur, looks.noise), some=True
    ),
    "dirt": Recipe(
        turn=45, bend=(0, 6), fixed_looks=(looks.hot,), looks=(looks.hot, looks.wedge, looks.ink), some=True
    ),
    "slide": Recipe(
        pairs.section_on_glass, bend=(0, 6), looks=(looks.stain, looks.tone), glass=True, side=(900, 901)
    ),
    "sizes": Recipe(scale=(-3.32, 0), turn=45, declared=1.0, side=(420, 620)),
    "density": Recipe(pairs.density, bend=(0, 8), fixed_looks=(looks.sparse,), looks=(looks.sparse,)),
    "mixture": Recipe(
        scale=(-0.5, 0.5), mirror=0.05, bend=(0, 8), cuts=("tear",), some=True, fixed_looks=(looks.light,),
        looks=(looks.stain, looks.missing, looks.ink, looks.light, looks.noise, looks.blur, looks.wedge),
    ),
}  # fmt: skip
"""Pairs of images."""

CELLS: dict[str, CellRecipe] = {
    "cells": CellRecipe(Measurement((0.8, 1.0)), Measurement((0.5, 1.0), (0.0, 0.1), (0.0, 0.3))),
    "technologies": CellRecipe(
        Measurement((0.8, 1.0), jitter=(0.0, 0.2)),
        Measurement((0.15, 0.6), (0.0, 0.05), (0.1, 0.4), merged=0.5, uneven=True),
    ),
    "block": CellRecipe(
        Measurement((0.7, 1.0), block=True), Measurement((0.7, 1.0), (0.0, 0.05), (0.0, 0.2), block=True)
    ),
    "points": CellRecipe(
        Measurement((0.8, 1.0)), Measurement((0.6, 1.0), jitter=(0.0, 0.2), outliers=(0.0, 0.1)),
        bend=(0, 3), number=(100, 1200), bare=True,
    ),
}  # fmt: skip
"""Pairs of tables of cells, and of bare points."""

VOLUMES: dict[str, float] = {"volume": 20.0, "turned-volume": 180.0}
"""Pairs of volumes, by the most that they are turned, degrees."""

KINDS: dict[str, Callable[[str, int, Path | None], Made]] = (
    {name: partial(pairs.image, recipe=recipe) for name, recipe in IMAGES.items()}
    | {name: partial(make, recipe=recipe) for name, recipe in CELLS.items()}
    | {name: partial(pairs.volumes, most=most) for name, most in VOLUMES.items()}
    | {"unrelated": pairs.unrelated, "strange-slides": pairs.strange_slides}
    | {"strangers": strangers, "strange-volumes": pairs.strange_volumes}
)
"""Every kind, by name."""

UNRELATED = ("unrelated", "strange-slides", "strangers", "strange-volumes")
"""The kinds whose two sides do not belong together: images, slides, cells and points, volumes."""

WITHOUT_DATA = (
    "pose",
    "bend",
    "stain",
    "scale",
    "crop",
    "pieces",
    "torn",
    "light",
    "dirt",
    "slide",
    "sizes",
    "mixture",
    "unrelated",
)
"""The kinds that scikit-image's tissue is enough for."""


def kinds(data: Path | None) -> tuple[str, ...]:
    """Names of the kinds that can be made of what is there."""
    return tuple(KINDS) if data is not None else WITHOUT_DATA


def made(kind: str, seed: int, data: Path | None) -> Made:
    """The pair of ``kind`` and ``seed``: the same bytes whenever it is asked for."""
    return KINDS[kind](kind, seed, data)
