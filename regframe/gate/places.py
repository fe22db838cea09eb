"""Which files are opened at all: regular ones, and of members of a folder those that lie inside it, links followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file, links followed; a pipe, socket or device is none, and neither is a link to itself."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def check_file(path: str | os.PathLike[str], folder: bool = True) -> None:
    """ValueError where there is something that is neither a regular file nor (unless ``folder`` is False) a folder.

    To read from a pipe, socket or device may wait, or go on, for ever. What is not there passes: who opens it says so.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:  # a link to itself, a name that no file can have
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"wanted a file or folder, got {str(path)!r}, which cannot be opened ({reason})") from error
    if stat.S_ISREG(mode) or (folder and stat.S_ISDIR(mode)):
        return
    kind = next((name for test, name in _KINDS if test(mode)), "a folder")
    raise ValueError(f"wanted a regular file, got {str(path)!r}, which is {kind}; copy its content into a file")


def check_inside(path: Path, root: Path) -> None:
    """ValueError where a member of ``root`` leads out of it, links followed, or is no regular file or folder.

    Args:
        path: of the member; it need not exist.
        root: the folder that the user gave.
    """
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name that no file can have
        inside = False
    if not inside:
        raise ValueError(
            f"wanted the parts of {str(root)!r} inside it, got {path.name!r}, a link or name that leads out of it; copy the "
            "file into the folder"
        )
    check_file(path)
