"""The images of a group: opened by the channel that each is aligned by, with what is known of their tissue."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from .. import plugins
from ..config import Config
from ..data import Image, Pyramid
from ..remote.address import Remote, locate
from ..slides.job import identity_of
from ..slides.levels import pyramid_of
from ..stack.posegraph import Floats, Node
from ..stack.sections import Section
from ..stack.settle import Density
from ..versions import version
from .channels import Choice, Wanted, chosen, is_colour
from .volumes import check_axes, tissue_of

PROBES = 400
"""Positions on the tissue of an image at most at which two maps of it are compared."""


@dataclass(frozen=True)
class Member:
    """One image of a group.

    Args:
        name: its name in the group.
        source: what was given: an `Image`, a path or an address.
        image: the pixels that are registered, of the channel that was chosen.
        channels: names of all its channels.
        choice: the channel by which it is aligned.
        colour: whether it shows stained tissue in colours.
        node: the moments of its tissue.
        probes: positions ``[N, 2]`` on its tissue, in its unit.
        empty: why it shows no tissue, or ``""``.
        options: options of the adapter that reads ``source``.
        density: how far its pixels depart from its background, small; None of a volume.
    """

    name: str
    source: Any
    image: Image
    channels: tuple[str, ...]
    choice: Choice
    colour: bool
    node: Node
    probes: Floats
    empty: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    density: Density | None = None

    @property
    def said(self) -> str:
        """The path or address, or the name of an image in memory."""
        return self.source.name if isinstance(self.source, Image) else str(self.source)


def opened(
    images: Iterable[Any],
    names: Sequence[str] | None = None,
    channel: Wanted = None,
    options: Mapping[str, Any] | None = None,
) -> list[Member]:
    """The members of a group.

    Args:
        images: `Image` objects, or paths and addresses that `regframe.open` reads.
        names: their names; those of the images or files where None, made unique by a number.
        channel: the channel to align by, see `regframe.group.channels.chosen`.
        options: options of the adapter of every file.

    Raises ValueError for fewer than two images, points, images among volumes, several units, names that are not unique, and
    a channel that an image does not have.
    """
    sources = list(images)
    if len(sources) < 2:
        raise ValueError(f"wanted at least two images, got {len(sources)}; name more")
    called = names_of(sources, names)
    options = dict(options or {})
    pyramids = [pyramid_at(source, name, options, (2, 3)) for source, name in zip(sources, called, strict=True)]
    check_axes(pyramids, called)
    units = {pyramid.grid.unit for pyramid in pyramids}
    if len(units) > 1:
        odd = next(k for k, pyramid in enumerate(pyramids) if pyramid.grid.unit != pyramids[0].grid.unit)
        raise ValueError(
            f"wanted images in one unit, got {pyramids[0].grid.unit} ({called[0]}) and {pyramids[odd].grid.unit} "
            f"({called[odd]}); state the pixel size of all of them"
        )
    choices = chosen(pyramids, called, channel)
    return [_member(*each, options) for each in zip(called, sources, pyramids, choices, strict=True)]


def _member(name: str, source: Any, pyramid: Pyramid, choice: Choice, options: dict[str, Any]) -> Member:
    if isinstance(source, Image):
        image = source
        if choice.index is not None and len(source.channels) > 1:
            one = source.data[choice.index : choice.index + 1].contiguous()
            image = source.replace(data=one, channels=(source.channels[choice.index],))
    else:
        own: dict[str, Any] = {} if choice.index is None or len(pyramid.channels) == 1 else {"channels": choice.index}
        found = plugins.open(source, **options, **own)
        assert isinstance(found, Image)
        image = found
    image = image.replace(name=name)
    if image.grid.ndim == 3:
        density = None
        node, probes, empty = tissue_of(image, PROBES)
    else:
        section = Section.of(image)
        node, probes, empty, density = section.node, _probes(section), section.empty, section.fine
    colour = is_colour(pyramid)
    return Member(name, source, image, tuple(pyramid.channels), choice, colour, node, probes, empty, options, density)


def _probes(section: Section) -> Floats:
    """At most `PROBES` positions on the tissue of a section, evenly spread; over its canvas where none was found."""
    grid = section.density.grid
    flat = np.flatnonzero(section.mask.ravel()) if section.mask.any() else np.arange(section.mask.size)
    rows, columns = np.unravel_index(flat, section.mask.shape)
    step = 1
    while True:
        kept = (rows % step == step // 2) & (columns % step == step // 2)
        if kept.sum() <= PROBES:
            break
        step += 1
    if kept.sum() < 16:
        kept = np.zeros(len(flat), dtype=bool)
        kept[:: max(1, len(flat) // PROBES)] = True
    at = np.stack([rows[kept], columns[kept]], axis=1)
    return np.asarray(at * np.array(grid.spacing) + np.array(grid.origin), dtype=np.float64)


def pyramid_at(source: Any, name: str, options: Mapping[str, Any], axes: tuple[int, ...] = (2,)) -> Pyramid:
    """Every resolution of an image, all channels; ValueError for points, and for another number of axes than ``axes``."""
    if isinstance(source, Image):
        pyramid: Pyramid | None = pyramid_of(source)
    else:
        reader = plugins.find_adapter(source, **options)
        pyramid = reader.pyramid(source)
        if pyramid is None:
            raise ValueError(
                f"wanted an image as {name}, got what the adapter {reader.name!r} reads otherwise; leave it out"
            )
    assert pyramid is not None
    if pyramid.grid.ndim not in axes:
        raise ValueError(f"wanted images of two axes, got {pyramid.grid.ndim} in {name}; choose one plane of it")
    return pyramid


_ENDS = re.compile(r"(\.ome)?\.(tiff?|zarr|svs|ndpi|czi|png|jpe?g|nd2|lif|scn|npy|qptiff|vsi)$", re.IGNORECASE)


def name_of(source: Any) -> str:
    """The name of an image: its file's, without the suffix."""
    if isinstance(source, Image):
        return source.name
    base = PurePath(os.fspath(source) if isinstance(source, os.PathLike) else str(source)).name
    return _ENDS.sub("", base) or base


def names_of(sources: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    """A name for each source: those given, or those of the images and files, made unique; ValueError where they are not."""
    if names is not None:
        if len(names) != len(sources) or len(set(names)) != len(names) or not all(names):
            raise ValueError(
                f"wanted {len(sources)} different names, got {', '.join(map(repr, names))}; name each once"
            )
        return [str(name) for name in names]
    out: list[str] = []
    for base in map(name_of, sources):
        name, n = base, 2
        while name in out:
            name, n = f"{base} ({n})", n + 1
        out.append(name)
    return out


def fingerprint(members: Sequence[Member], config: Config) -> str:
    """Hash of all that the pairs of a group depend on: images, channels, settings, version."""
    facts: list[Any] = [version(), config.model_dump(mode="json")]
    for member in members:
        if isinstance(member.source, (str, os.PathLike, Remote)):
            source = identity_of(locate(member.source))
        else:
            source = hashlib.sha256(member.image.data.numpy().tobytes()).hexdigest()
        choice = (member.choice.index, member.choice.name)
        facts.append([member.name, source, choice, dict(member.options), repr(member.image.grid)])
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
