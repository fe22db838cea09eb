"""A file or folder gets its name in one step: a reader finds what was there before, or all that is new, at every moment.

A file that is there already is replaced by exchanging both names (``renameat2`` of Linux, ``RENAME_EXCHANGE``), a folder too, so
that not even for a moment nothing lies under the name. Where the file system cannot do that, a file is replaced by `os.replace`,
and a folder in two renames, which `regframe.io.claims` writes down first and completes where a process dies between them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Errors by which the system says that what is written does not fit: the disk, a user's quota, the largest file."""
_UNABLE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EXDEV}
"""Errors by which a kernel or a file system says that it cannot exchange two names."""
_HERE = -100
"""``AT_FDCWD``: paths count from the current folder."""
_NOREPLACE, _EXCHANGE = 1, 2
"""Flags of ``renameat2``, from ``linux/fs.h``."""
_MANY = 256
"""Number of files from which one call for the whole file system makes them durable, instead of a call for each; it takes about as
long as some hundred such calls on a disk of this kind."""


class NotWritten(OSError):
    """What was to be written is not whole, most often because the disk is full; its text is one sentence."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


def not_written(path: Path, number: int | None, detail: str = "") -> NotWritten:
    """The error for an output that did not fit or is not whole.

    Args:
        path: the output's final name.
        number: the system's error number; None where a library did not tell one.
        detail: what was found, where that is not what the number says.
    """
    why = os.strerror(number) if number else ""
    told = "; ".join(part for part in (detail, why) if part) or "what was written is not whole"
    return NotWritten(
        number or errno.EIO,
        f"cannot write {path}: {told}; nothing of it is left under that name: make room, or choose another place",
    )


# ---------------------------------------------------------------------------------------------------------- one rename


def put(item: Path, target: Path, overwrite: bool) -> bool:
    """Give ``item`` the name ``target`` in one step; returns whether ``item`` is now what ``target`` was before.

    Raises:
        FileExistsError: ``target`` exists and may not be replaced.
        InTwoSteps: a folder is in the way, and this file system cannot exchange names.
        OSError: the system refuses the rename.
    """
    for _ in range(64):  # another process may put or remove something between two looks
        if not os.path.lexists(target):
            if _renamed(item, target, _NOREPLACE):
                return False
            if not os.path.lexists(target):  # a file system without that flag
                item.rename(target)
                return False
        if not overwrite:
            raise FileExistsError(f"output {target} appeared while this ran or lay beside it")
        check_kind(target)
        if _renamed(item, target, _EXCHANGE):
            return True
        if not os.path.lexists(target):
            continue
        if _is_folder(item) or _is_folder(target):
            raise InTwoSteps(f"{target} is a folder, and this file system cannot exchange names")
        item.replace(target)
        return False
    raise FileExistsError(f"output {target} comes and goes: another process writes it; choose another name")


class InTwoSteps(OSError):
    """A folder can be replaced here only by two renames."""


def check_kind(target: Path) -> None:
    """FileExistsError, in one sentence, where something else than a regular file or a folder lies at ``target``."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if target.is_symlink():
            raise FileExistsError(
                f"output {target} is a link that leads nowhere; it is left alone: remove it, or choose another name"
            ) from None
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        what = next((name for test, name in kinds if test(mode)), "a device")
        raise FileExistsError(f"output {target} is {what}, no file or folder; it is left alone: choose another name")


def _renamed(item: Path, target: Path, flag: int) -> bool:
    """Rename with a flag; False where the flag is not supported here, or the look at ``target`` is out of date."""
    call = _renameat2()
    if call is None:
        return False
    if call(_HERE, os.fsencode(item), _HERE, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE or number == (errno.EEXIST if flag == _NOREPLACE else errno.ENOENT):
        if not os.path.lexists(item):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(item))
        return False
    raise OSError(number, os.strerror(number), str(target))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The C library's function; None where it has none."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        function: Any = ctypes.CDLL(None, use_errno=True).renameat2
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        function.restype = ctypes.c_int
        return function  # type: ignore[no-any-return]
    return None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


# ------------------------------------------------------------------------------------------------------------- durable


def files_of(item: Path) -> Iterator[Path]:
    """``item`` itself where it is a file, else all regular files below it."""
    if not _is_folder(item):
        yield item
        return
    for folder, _, names in os.walk(item):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def settle(item: Path, final: Path) -> None:
    """Have the system write a file, or a folder with all in it, to the disk; `NotWritten` where it cannot.

    A network file system or a quota may refuse at this point only what `write` had accepted.
    """
    try:
        files = list(files_of(item))
        if len(files) > _MANY and _sync_all(item):
            return
        for path in files:
            _sync(path)
        if _is_folder(item):
            for folder, _, _ in os.walk(item, topdown=False):
                _sync(Path(folder))
    except OSError as error:
        raise not_written(final, error.errno) from error


def settle_name(folder: Path) -> None:
    """Have the system write to the disk which names a folder holds; not every file system can."""
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # a file that its writer made unreadable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _sync_all(path: Path) -> bool:
    """Write the whole file system of ``path`` to its disk in one call; False where there is no such call."""
    try:
        call: Any = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError, TypeError):
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if call(descriptor) != 0:
            number = ctypes.get_errno()
            if number == errno.ENOSYS:
                return False
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    return True
