"""The fields of view of a mosaic: opened, with their channel, where they are said to lie, and their pixels by region."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import plugins
from ..data import Grid, Image, Level, Pyramid
from ..group.channels import Choice, Wanted, chosen
from ..group.members import name_of, names_of, pyramid_at
from ..slides import tiles
from .layout import Layout, in_pixels, read_layout
from .overlap import Floats

SAME_SIZE = 0.01
"""Relative difference of two fields' pixel sizes above which they are refused: one objective took them all, and files round."""
SEARCHED_AT = 512
"""Pixels along the longer side of a field at which its place is searched where none is stated."""


@dataclass(frozen=True)
class View:
    """One field of view.

    Args:
        name: its name in the mosaic.
        source: what was given: an `Image`, a path or an address.
        pyramid: its pixels, lazy.
        choice: the channel by which it is placed.
        options: options of the adapter that reads ``source``, the series of a file of many among them.
    """

    name: str
    source: Any
    pyramid: Pyramid
    choice: Choice
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The path or address, or the name of an image in memory."""
        return self.source.name if isinstance(self.source, Image) else str(self.source)

    @property
    def grid(self) -> Grid:
        """Positions of its pixels."""
        return self.pyramid.grid

    def plane(self, region: tuple[slice, ...], level: Level | None = None) -> Floats:
        """Values ``[h, w]`` of a region, of the channel that was chosen, or the mean of the colours."""
        values = (level or self.pyramid.levels[0]).read(region)
        picked = values.mean(axis=0) if self.choice.index is None else values[self.choice.index]
        return np.nan_to_num(np.asarray(picked, dtype=np.float64))

    def coarse(self) -> tuple[Floats, float]:
        """The whole field at about `SEARCHED_AT` pixels, and how many of its pixels are one of these."""
        factor = max(1.0, max(self.grid.shape) / SEARCHED_AT)
        level = tiles.choose(self.pyramid, factor)
        return self.plane(tuple(slice(0, n) for n in level.grid.shape), level), level.grid.pixel / self.grid.pixel


def opened(
    images: Iterable[Any],
    names: Sequence[str] | None = None,
    channel: Wanted = None,
    options: Mapping[str, Any] | None = None,
) -> list[View]:
    """The fields of a mosaic: of images or files, or of the many images in one file.

    Raises ValueError for fewer than two fields, points, volumes, ids, several units or pixel sizes, channels that differ, names
    that are not unique, and a channel that there is not.
    """
    sources, plain = list(images), dict(options or {})
    own: list[dict[str, Any]] = [plain] * len(sources)
    if len(sources) == 1 and not isinstance(sources[0], Image):
        sources, own, names = _of_one_file(sources[0], plain, names)
    if len(sources) < 2:
        raise ValueError(f"wanted at least two fields, got {len(sources)}; name more, or a file that holds several")
    called = names_of(sources, names)
    pyramids = [pyramid_at(*each) for each in zip(sources, called, own, strict=True)]
    first = pyramids[0]
    for pyramid, name in zip(pyramids, called, strict=True):
        if pyramid.labels:
            raise ValueError(f"wanted intensities, got ids in {name}; place the picture, then carry the ids by its map")
        if pyramid.grid.unit != first.grid.unit:
            raise ValueError(
                f"wanted fields in one unit, got {first.grid.unit} ({called[0]}) and {pyramid.grid.unit} ({name}); state the "
                "pixel size of all of them"
            )
        sizes = zip(pyramid.grid.spacing, first.grid.spacing, strict=True)
        if any(abs(a / b - 1) > SAME_SIZE for a, b in sizes):
            raise ValueError(
                f"wanted fields of one pixel size, got {first.grid.spacing} ({called[0]}) and {pyramid.grid.spacing} ({name}); "
                "use `regframe rounds` for images at several magnifications"
            )
        if tuple(pyramid.channels) != tuple(first.channels):
            raise ValueError(
                f"wanted the same channels in every field, got {', '.join(first.channels)} ({called[0]}) and "
                f"{', '.join(pyramid.channels)} ({name}); leave the odd one out"
            )
    choices = chosen(pyramids, called, channel)
    return [View(*each) for each in zip(called, sources, pyramids, choices, own, strict=True)]


def view(source: Any, name: str, options: Mapping[str, Any]) -> View:
    """One field whose channel does not matter."""
    return View(name, source, pyramid_at(source, name, options), Choice(None, "all", "all"), options)


def _of_one_file(
    source: Any, options: dict[str, Any], names: Sequence[str] | None
) -> tuple[list[Any], list[dict[str, Any]], list[str]]:
    """The images of one file that are fields: those of the size that most have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one of several is read: all of them are
        pyramid = plugins.find_adapter(source, **options).pyramid(source)
    series = () if pyramid is None else pyramid.series
    shown = [one for one in series if one.role == "image"]
    if len(shown) < 2:
        raise ValueError(
            f"wanted several fields, got {os.fspath(source)!r} with one image; name more files, or a folder"
        )
    usual = Counter(one.shape for one in shown).most_common(1)[0][0]
    fields = [one for one in shown if one.shape == usual]
    called = list(names) if names is not None else [f"{name_of(source)}#{one.number}" for one in fields]
    return [source] * len(fields), [options | {"series": one.number} for one in fields], called


# ---- stated places ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """Where fields are said to lie.

    Args:
        places: position of each field's first pixel, in pixels; None for one of which nothing is said.
        source: where that is said, for messages; ``""`` where nothing is.
        sure: whether the directions of the axes are those of the pixels; the stages of microscopes have their own.
    """

    places: tuple[Floats | None, ...]
    source: str = ""
    sure: bool = True

    def __bool__(self) -> bool:
        return any(place is not None for place in self.places)


def stated(fields: Sequence[View], layout: Any = None) -> Stated:
    """Where fields are said to lie.

    Args:
        fields: the fields.
        layout: a file (`regframe.mosaic.layout.read_layout`), a mapping from names to ``(y, x)`` or one such pair per field, in
            the fields' unit; ``"none"``: nothing is said. Where None, what the files say: the origins of OME-Zarr, else the
            stage's positions in OME.

    Raises ValueError for positions that do not belong to the fields.
    """
    grid = fields[0].grid
    if isinstance(layout, str) and layout == "none":
        return Stated((None,) * len(fields))
    if layout is None:
        return _in_files(fields)
    if isinstance(layout, (str, os.PathLike)):
        found = read_layout(layout)
    elif isinstance(layout, Mapping):
        found = Layout({str(k): _pair(v) for k, v in layout.items()}, "", "layout")
    else:
        pairs = [_pair(one) for one in layout]
        if len(pairs) != len(fields):
            raise ValueError(
                f"wanted one position for each of {len(fields)} fields, got {len(pairs)}; give all of them"
            )
        found = Layout({one.name: pair for one, pair in zip(fields, pairs, strict=True)}, "", "layout")
    files = [f"{one.said}#{one.options['series']}" if "series" in one.options else one.said for one in fields]
    places = found.of([one.name for one in fields], files)
    return Stated(tuple(in_pixels(places, found.unit, grid.spacing, grid.unit)), found.source)


def _pair(value: Any) -> tuple[float, float]:
    numbers = np.asarray(value, dtype=np.float64).ravel()
    if numbers.shape != (2,) or not np.isfinite(numbers).all():
        raise ValueError(f"wanted a position (y, x), got {value!r}; give two numbers")
    return float(numbers[0]), float(numbers[1])


def _in_files(fields: Sequence[View]) -> Stated:
    """What the files say: origins in one space (OME-Zarr), or the stage's positions (OME)."""
    spacing = np.array(fields[0].grid.spacing)
    origins = [np.array(one.grid.origin) / spacing for one in fields]
    if len({tuple(np.round(origin, 3)) for origin in origins}) == len(fields):
        return Stated(tuple(origins), "the origins in the files")
    stages = [np.array(one.pyramid.stage) / spacing if one.pyramid.stage else None for one in fields]
    known = {tuple(np.round(stage, 3)) for stage in stages if stage is not None}
    if len(known) == len(fields):
        return Stated(tuple(stages), "the stage's positions in the files", sure=False)
    return Stated((None,) * len(fields))
