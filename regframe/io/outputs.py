"""The folder of a run: checked in advance, written under another name, renamed when complete.

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
"""Packages whose versions are recorded in a folder: those on which the numbers of the fit and the bytes of its files depend."""


def is_output(path: Path) -> bool:
    """Whether ``path`` is a folder written by a run of regframe."""
    return (path / TRANSFORM).is_dir() and (path / METRICS).is_file()


def check_folder(path: Path, overwrite: bool) -> None:
    """Refuse an output folder that could not be written, before anything is computed.

    Raises FileExistsError where ``path`` exists and may not be replaced, OSError where its parent cannot be written.
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
    """Refuse an output file that could not be written, before anything is computed.

    A folder (``.ome.zarr``) is only replaced if it is a Zarr store. Raises what `check_folder` raises.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        if path.is_dir() and not ((path / "zarr.json").is_file() or (path / ".zgroup").is_file()):
            raise FileExistsError(f"output {path} is a folder and no Zarr store; it is left alone: choose another name")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Raise OSError, in one sentence, unless files can be created in ``folder`` (or in its nearest existing parent)."""
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
    """A temporary path to write to; what was written is moved to ``path`` when the block succeeds, and removed when it fails.

    Other files written beside it (for a format of several files) are moved too. Existing files stay until the new ones are
    complete. FileExistsError where a file appeared at a target meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
    # for each file: where it was written, where it belongs, where the file it replaces is kept meanwhile
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
    except BaseException:  # also after an interrupt: put the earlier files back
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
        result: the result.
        run: paths of the inputs and the options with which they were opened; stored under ``run`` in ``config.resolved.yaml``.
        overwrite: replace a folder that regframe wrote.
        extras: functions that are called with the folder, one after another, and write further files into it: the page, the
            warped data.

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
        for warning in caught:  # replace the temporary path in each message by the final one
            warnings.warn(str(warning.message).replace(str(folder), str(path)), warning.category, stacklevel=2)
        (folder / METRICS).write_text(to_json(result.metrics, indent=2) + "\n", encoding="utf-8")
        (folder / CONFIG).write_text(resolved_yaml(result, run), encoding="utf-8")
        with (folder / LOG).open("w", encoding="utf-8") as log:
            log.writelines(to_json(line) + "\n" for line in result.history)
        for extra in extras:
            extra(folder)


def resolved_yaml(result: Result, run: dict[str, Any]) -> str:
    """The settings as YAML for ``--config``, together with versions and inputs."""
    import yaml

    header = "# What this run resolved its settings to; `regframe register --config` takes this file.\n"
    settings = result.config.model_dump(mode="json")
    extra = {"versions": versions(*VERSIONS), "run": json.loads(to_json(run))}
    return header + str(yaml.safe_dump({**settings, **extra}, sort_keys=False, allow_unicode=True))


def to_json(value: Any, indent: int | None = None) -> str:
    """Plain data with numbers of numpy and torch as JSON; numbers that are not finite become null, paths become text.

    Bytes of a path that are no UTF-8 are escaped as the lone surrogates by which Python holds them, so that it reads them back.
    """
    plain = _plain(value)
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(plain, indent=indent, allow_nan=False)
    return text


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
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return _plain(value.tolist())
    return str(value)
