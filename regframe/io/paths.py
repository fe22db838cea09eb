"""File names of any bytes: printed, and handed to libraries that take no name but UTF-8.

Python holds a byte of a name that is no UTF-8 as a lone surrogate. Its own functions take such names; SimpleITK ends the whole
process at one, Arrow refuses it, and no text file can hold it.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LONE = re.compile("[\ud800-\udfff]")


def shown(text: str) -> str:
    """A text in which bytes that are no UTF-8 are written as ``\\xe9``, for people and for text files."""
    if _LONE.search(text) is None:
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def native_path(path: Path, write: bool = False) -> Iterator[Path]:
    """A path to the same place that any library takes: ``path`` itself, or a link while the block runs.

    Args:
        path: a file; it bears its suffixes in either case.
        write: whether it is to be written. It then gets its name when the block ends, and no file is left where that raises.
    """
    if _LONE.search(str(path)) is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="regframe-") as folder:
        suffix = shown("".join(path.suffixes[-2:])).replace("\\", "")
        if not write:
            link = Path(folder) / f"file{suffix}"
            link.symlink_to(path.absolute())
            yield link
            return
        place = Path(folder) / "place"
        place.symlink_to(path.absolute().parent, target_is_directory=True)
        aside = place / f".{Path(folder).name}{suffix}"
        try:
            yield aside
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
