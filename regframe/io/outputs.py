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
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..versions import MAIN, versions
from . import claims
from .inputs import check_apart, check_untouched
from .paths import shown
from .replacing import FULL, InTwoSteps, NotWritten, check_kind, files_of, not_written, put, settle, settle_name
from .whole import check_whole, disk_full

if TYPE_CHECKING:
    from ..result import Result

TRANSFORM = "transform.ome.zarr"
METRICS = "metrics.json"
CONFIG = "config.resolved.yaml"
LOG = "log.jsonl"
REPORT = "report.html"
_OURS = (claims.OWNER, claims.MOVES, f"{claims.MOVES}.new")
VERSIONS = (*MAIN, "scipy", "zarr")
"""Packages whose versions are recorded in a folder: those on which the numbers of the fit and the bytes of its files depend."""


def is_output(path: Path) -> bool:
    """Whether ``path`` is a folder written by a run of regframe."""
    return (path / TRANSFORM).is_dir() and (path / METRICS).is_file()


def check_folder(path: Path, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse an output folder that could not be written, before anything is computed.

    Args:
        path: the folder.
        overwrite: whether a folder that regframe wrote may be replaced.
        inputs: what is read: the output may not be one of them, lie in one, or hold one. What is no path of this disk is passed
            over.

    Raises:
        FileExistsError: ``path`` exists and may not be replaced.
        ValueError: it is an input, lies in one, holds one, or has a name that no file can have.
        OSError: its parent cannot be written.
    """
    check_apart(path, inputs)
    _check_dots(path)
    claims.heal(path)
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        if path.is_symlink() or not (path.is_dir() and (is_output(path) or not any(path.iterdir()))):
            raise FileExistsError(
                f"output {path} exists and is not a folder written by regframe; it is left alone: choose another name"
            )
    check_writable(path.parent, path.name)


def check_file(path: Path, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse an output file that could not be written, before anything is computed.

    A folder (``.ome.zarr``) is only replaced if it is a Zarr store. Arguments and what is raised are those of `check_folder`.
    """
    check_apart(path, inputs)
    _check_dots(path)
    claims.heal(path)
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        check_kind(path)
        check_own(path)
    check_writable(path.parent, path.name)


def check_own(path: Path) -> None:
    """FileExistsError, in one sentence, where ``path`` is a folder, but no Zarr store, or one that regframe did not write."""
    if not path.is_dir():
        return
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise FileExistsError(f"output {path} is a folder and no Zarr store; it is left alone: choose another name")
    try:
        header = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        own = "regframe" in header["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    if not own:
        raise FileExistsError(
            f"output {path} is a Zarr store that regframe did not write; it is left alone: remove it, or choose another name"
        )


def _check_dots(path: Path) -> None:
    if path.name in ("", "..") or "\0" in str(path):
        raise ValueError(f"wanted a name for the output, got {str(path)!r}; choose one that ends in a name")


def check_writable(folder: Path, name: str = "") -> None:
    """Raise OSError, in one sentence, unless files can be created in ``folder`` (or in its nearest existing parent).

    ``name`` is that of the output: it is tried whether a file can bear it; ValueError where not.
    """
    place, names = folder, [name]
    while not place.exists() and place != place.parent:
        names.append(place.name)
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"cannot write into {folder}: {place} is not a folder")
    try:
        claims.heal(place / (name or "output"))
        probe = claims.hidden(place, name or "output")
    except OSError as error:
        raise PermissionError(f"cannot write into {place}: {error.strerror or error}; choose another output") from error
    try:
        for one in filter(None, names):
            (probe / one).mkdir()
            (probe / one).rmdir()
    except OSError as error:
        if error.errno in FULL:
            raise not_written(folder / name, error.errno) from error
        raise ValueError(
            f"wanted an output with a name that can lie in {place}, got {shown(one)!r} of {len(os.fsencode(one))} bytes "
            f"({error.strerror}); choose another name"
        ) from error
    finally:
        shutil.rmtree(probe, ignore_errors=True)


@contextlib.contextmanager
def staged(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path to write to; what was written is moved to ``path`` when the block succeeds, and removed when it fails.

    Other files written beside it (for a format of several files) are moved too. Existing files stay until the new ones are
    complete: read back as far as their formats tell (`regframe.io.whole`), on the disk, and then named in one step each.

    Raises:
        FileExistsError: a file appeared at a target meanwhile, or something that is neither file nor folder lies there.
        ValueError: an input that this command noted was replaced or changed meanwhile, or lies at a target.
        NotWritten: the disk is full, or what was written is not whole.
    """
    with claims.claimed(path) as aside:
        try:
            yield aside / path.name
        except NotWritten as error:
            told = str(error).replace(str(aside / path.name), str(path))
            raise NotWritten(error.errno, told) from error
        except OSError as error:
            if error.errno in FULL:
                raise not_written(path, error.errno) from error
            raise
        except Exception as error:  # a library of others need not say why it failed
            number = disk_full(aside)
            if number in FULL:
                raise not_written(path, number) from error
            raise
        if not (aside / path.name).exists():
            raise FileNotFoundError(
                f"wanted {path.name} to be written, got nothing; report it to whoever made the adapter"
            )
        moves = [(item, path.parent / item.name) for item in sorted(aside.iterdir()) if item.name not in _OURS]
        moves.sort(key=lambda move: move[1] == path)
        for item, target in moves:
            for file in files_of(item):
                check_whole(file, target)
            settle(item, target)
        for _, target in moves:
            check_untouched(target)
        _commit(aside, moves, overwrite)
        settle_name(path.parent)


def _commit(aside: Path, moves: list[tuple[Path, Path]], overwrite: bool) -> None:
    """Give all items their names, or none: what was done is undone where one fails."""
    taken = [target for _, target in moves if os.path.lexists(target)]
    if taken and not overwrite:
        raise FileExistsError(
            f"output {taken[0]} appeared while this ran or lay beside it; choose another name or pass --overwrite"
        )
    if len(moves) > 1:
        claims.write_moves(aside, moves)
    done: list[tuple[Path, Path, bool]] = []
    try:
        for item, target in moves:
            try:
                exchanged = put(item, target, overwrite)
            except InTwoSteps:
                claims.write_moves(aside, moves)
                claims.complete(aside)
                continue
            done.append((item, target, exchanged))
    except BaseException:  # also after an interrupt: put the earlier files back
        claims.drop_moves(aside)
        for item, target, exchanged in reversed(done):
            if exchanged:
                put(item, target, overwrite=True)
            else:
                target.rename(item)
        raise
    claims.drop_moves(aside)


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
