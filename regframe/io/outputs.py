"""The folder a run leaves behind: checked before, written aside, renamed at the end.

``OUT/`` holds ``transform.ome.zarr``, ``metrics.json``, ``config.resolved.yaml``, ``log.jsonl``, and what the caller adds:
``report.html`` (`regframe.report.results.write_run`) and, when asked, the warped data.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..versions import MAIN, versions

if TYPE_CHECKING:
    from ..result import Result

TRANSFORM = "transform.ome.zarr"
METRICS = "metrics.json"
CONFIG = "config.resolved.yaml"
LOG = "log.jsonl"
REPORT = "report.html"
VERSIONS = (*MAIN, "scipy", "zarr")
"""Packages whose versions a folder names: those that the numbers of the fit and the bytes of its files depend on."""


def is_output(path: Path) -> bool:
    """Whether ``path`` is a folder that a run of regframe wrote."""
    return (path / TRANSFORM).is_dir() and (path / METRICS).is_file()


def check_folder(path: Path, overwrite: bool) -> None:
    """Refuse, before anything is computed, an output folder that could not be written at the end.

    Raises FileExistsError where ``path`` exists and may not be replaced, OSError where its place cannot be written.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        if path.is_symlink() or not (path.is_dir() and (is_output(path) or not any(path.iterdir()))):
            raise FileExistsError(
                f"output {path} exists and is not a folder written by regframe; it is left alone: choose another name"
            )
    check_writable(path.parent)


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse, before anything is computed, a single output that could not be written at the end.

    One that is a folder (``.ome.zarr``) is only replaced if it is a Zarr store. Raises what `check_folder` raises.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        if path.is_dir() and not ((path / "zarr.json").is_file() or (path / ".zgroup").is_file()):
            raise FileExistsError(f"output {path} is a folder and no Zarr store; it is left alone: choose another name")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Raise OSError, in one sentence, unless files can be made in ``folder`` (or in its nearest parent that exists)."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"cannot write into {folder}: {place} is not a folder")
    try:
        probe = tempfile.mkdtemp(prefix=".regframe-", dir=place)
    except OSError as error:
        raise PermissionError(f"cannot write into {place}: {error.strerror or error}; choose another output") from error
    Path(probe).rmdir()


@contextlib.contextmanager
def staged(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A path to write to, in a folder aside, moved to ``path`` when the block ends well and removed when it does not.

    Whatever else is written beside it (a format of two files) is moved along, before it. What was at any of these places
    stays until the new data are complete; FileExistsError where something appeared meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
    # what was written, where it belongs, where the file or folder that stood there is put meanwhile
    plan: list[tuple[Path, Path, Path]] = []
    try:
        yield aside / path.name
        if not (aside / path.name).exists():
            raise FileNotFoundError(
                f"wanted {path.name} to be written, got nothing; report it to whoever made the adapter"
            )
        plan = [(item, path.parent / item.name, aside / f"{item.name}.replaced") for item in sorted(aside.iterdir())]
        plan.sort(key=lambda step: step[1] == path)
        taken = [target for _, target, _ in plan if target.exists()]
        if taken and not overwrite:
            raise FileExistsError(
                f"output {taken[0]} appeared while this ran or lay beside it; choose another name or pass --overwrite"
            )
        for item, target, old in plan:
            if target.exists():
                target.rename(old)
            item.rename(target)
    except BaseException:  # an interrupt too: the earlier files go back to their places
        for item, target, old in plan:
            if target.exists() and not item.exists():
                target.rename(item)
            if old.exists():
                old.rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write(
    path: Path,
    result: Result,
    run: dict[str, Any],
    overwrite: bool = False,
    *extras: Callable[[Path], object],
) -> None:
    """Write a run's folder, complete or not at all.

    Args:
        path: the folder.
        result: what was computed.
        run: where the inputs lie and how they were opened; kept under ``run`` in ``config.resolved.yaml``.
        overwrite: replace a folder that regframe wrote.
        extras: each is called with the folder, in turn, to write something more into it: the page, the warped data.

    Raises:
        FileExistsError: ``path`` exists and may not be replaced.
        OSError: its place cannot be written.
    """
    check_folder(path, overwrite)
    with staged(path, overwrite) as folder:
        folder.mkdir()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result.save(folder / TRANSFORM)
        for warning in caught:  # they name the place the data will have, not the one they are written to first
            warnings.warn(str(warning.message).replace(str(folder), str(path)), warning.category, stacklevel=2)
        (folder / METRICS).write_text(to_json(result.metrics, indent=2) + "\n", encoding="utf-8")
        (folder / CONFIG).write_text(resolved_yaml(result, run), encoding="utf-8")
        with (folder / LOG).open("w", encoding="utf-8") as log:
            log.writelines(to_json(line) + "\n" for line in result.history)
        for extra in extras:
            extra(folder)


def resolved_yaml(result: Result, run: dict[str, Any]) -> str:
    """The settings as YAML, ready to be passed back by ``--config``, with the versions and the inputs beside them."""
    import yaml

    header = "# What this run resolved its settings to; `regframe register --config` takes this file.\n"
    settings = result.config.model_dump(mode="json")
    extra = {"versions": versions(*VERSIONS), "run": json.loads(to_json(run))}
    return header + str(yaml.safe_dump({**settings, **extra}, sort_keys=False, allow_unicode=True))


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of plain data and numbers of numpy and torch; what is not finite becomes null, paths become text."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # scalars and arrays of numpy and torch
        return _plain(value.tolist())
    return str(value)
