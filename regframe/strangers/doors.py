"""The small doors: what installed packages add under an entry-point group of its own, read by name until it is used."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .faults import claim_package

COMMANDS, POOLS, SECTIONS = "regframe.commands", "regframe.pools", "regframe.sections"
"""Names of the entry-point groups: commands, batch back ends, sections of the report."""
GROUPS = {"commands": COMMANDS, "back ends": POOLS, "sections": SECTIONS}
"""The groups by what they hold, in the plural."""


def of_group(name: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group; what is installed is read once, until a folder of ``sys.path`` changes (see `forget`)."""
    return tuple(_installed(tuple((place, _changed(place)) for place in sys.path)).select(group=name))


def forget() -> None:
    """Read what is installed anew at the next question."""
    _installed.cache_clear()


@functools.lru_cache(maxsize=1)
def _installed(places: tuple[tuple[str, int], ...]) -> Any:
    """All entry points of the packages in some folders, which are those of ``sys.path`` as they are now."""
    return entry_points()


def _changed(place: str) -> int:
    """When a folder was last changed, in ns; 0 for what is none."""
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return 0


def points(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name; of two of one name the first by the name of their package."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(of_group(group), key=lambda p: (package(p), p.name)):
        found.setdefault(point.name, point)
    return found


def package(point: EntryPoint) -> str:
    """Name and version of the package that an entry point is of."""
    return " ".join(named(point.dist)) if point.dist is not None else "an unknown package"


def named(dist: Any) -> tuple[str, str]:
    """Name and version of a distribution, for which its metadata are read once."""
    return _named(dist) if isinstance(dist, Distribution) else (str(dist.name), str(dist.version))


@functools.lru_cache(maxsize=256)
def _named(dist: Distribution) -> tuple[str, str]:
    return str(dist.name), str(dist.version)


def loaded(point: EntryPoint, kind: Any, words: str) -> Any:
    """What an entry point names, imported now.

    Args:
        point: the entry point.
        kind: what it has to be an instance of.
        words: that in words, with an article.

    Raises ValueError, in one sentence that names the package, where the import fails or gives something else.
    """
    who = f"{point.name!r} of {package(point)}"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"wanted {words} from {who}, got {type(error).__name__}: {told} at its import; report this to who wrote it"
        ) from error
    claim_package(point.value.partition(":")[0], f"{package(point)} ({_word(point)} {point.name})")
    if not isinstance(found, kind):
        raise ValueError(f"wanted {words} from {who}, got {type(found).__name__}; report this to who wrote it")
    return found


def _word(point: EntryPoint) -> str:
    return {COMMANDS: "command", POOLS: "back end"}.get(point.group, "section")
