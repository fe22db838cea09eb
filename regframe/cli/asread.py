"""How a run read the file that is carried through its map: what it was told of the file then need not be said again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..io.paths import shown
from ._common import finest_grid

if TYPE_CHECKING:
    from ..data import Grid
    from ..remote.address import Remote

_OWN = frozenset({"level", "channels", "mask", "nodata", "beside", "components"})
"""Options that say what of a file is registered, not how it is read: all of it is carried, at the level that is asked for."""


def as_read(
    folder: Path, side: str, place: Path | Remote, adapter: str | None, given: Mapping[str, Any], spaced: bool
) -> tuple[str | None, dict[str, Any]]:
    """Adapter and options for a file that is carried, with those by which the run read it where it is that file; says so.

    Args:
        folder: the result; a map alone records no run.
        side: ``fixed`` or ``moving``, the one that the file belongs to.
        place: the file. It is the one that was read where its path is, or its name where that path is empty by now.
        adapter: what the user names; another one than the run's takes nothing over.
        given: options that the user gives; they count more.
        spaced: whether the user gives a pixel size.
    """
    how = _recorded(folder, side)
    if not how or adapter not in (None, how.get("adapter")):
        return adapter, dict(given)
    left_out = _OWN | ({"spacing", "unit", "override"} if spaced or "spacing" in given else set())
    held = {
        name: value for name, value in (how.get("options") or {}).items() if name not in left_out and name not in given
    }
    if not held:
        return adapter, dict(given)
    listed = shown(", ".join(f"{name}={value}" for name, value in held.items()))
    if not _same(str(how["path"]), place):
        click.echo(
            shown(
                f"Note: {place.name} is not the {side} file that was registered ({Path(how['path']).name}), whose options "
                f"({listed}) are not taken over; state its own with --adapter-set"
            ),
            err=True,
        )
        return adapter, dict(given)
    click.echo(
        shown(f"Note: {place.name} is read as it was registered, with {listed}; --adapter-set says otherwise"), err=True
    )
    return str(how["adapter"]), {name: _fixed(value) for name, value in held.items()} | dict(given)


def finest_of(folder: Path, side: str) -> Grid | None:
    """The finest pixels of a side of a run; None where its file is not known, gone, or no image."""
    how = _recorded(folder, side)
    if not how:
        return None
    from ..remote.address import locate

    try:
        path = locate(str(how["path"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that was read before; nothing of it is carried now
            return finest_grid(path, str(how["adapter"]), how.get("options") or {}) if path.exists() else None
    except (click.ClickException, OSError, ValueError, ImportError):
        return None


def _recorded(folder: Path, side: str) -> dict[str, Any]:
    """``path``, ``adapter`` and ``options`` of one side of a run; empty where nothing is recorded."""
    import yaml

    from ..io import outputs

    try:
        if not outputs.is_output(folder):
            return {}
        written = yaml.safe_load((folder / outputs.CONFIG).read_text(encoding="utf-8"))
        how = written["run"][side]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
    return how if isinstance(how, dict) and how.get("path") and how.get("adapter") else {}


def _same(path: str, place: Path | Remote) -> bool:
    from ..remote.address import locate
    from ..remote.errors import RemoteError

    before = locate(path)
    if str(before) == str(place.resolve()):
        return True
    try:
        return before.name == place.name and isinstance(before, Path) and not before.exists()
    except (OSError, RemoteError):
        return False


def _fixed(value: Any) -> Any:
    """A value of YAML that can be hashed, as the job of a task has to be."""
    return tuple(_fixed(item) for item in value) if isinstance(value, list) else value
