"""Quality reports: self-contained HTML pages, opened without a network; of a registration, a stack, a group of rounds,
a mosaic.

``results``, ``stacks``, ``groups`` and ``mosaics`` write the kinds of page, ``page`` is what they share; ``pictures`` draws
images, ``dots`` points, ``figures`` curves and maps of numbers, ``pieces`` a slide in pieces; ``words`` says what was shown
and what to do next; ``again`` draws the page of a saved result again, ``notebook`` is the viewer of a result in a notebook,
``sections`` asks installed packages for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from ..data import Image, PointSet
from ..group.group import Group
from ..result import Result
from ..stack.align import Stack
from . import groups, results, stacks

__all__ = ["groups", "results", "stacks", "write_report"]


@overload
def write_report(shown: Result, path: str | Path, fixed: Image | PointSet, moving: Image | PointSet, /) -> None: ...
@overload
def write_report(shown: Stack | Group, path: str | Path, images: Sequence[Image], /) -> None: ...
def write_report(shown: Result | Stack | Group, path: str | Path, /, *data: Any) -> None:
    """Write the report of a result, a stack or a group as one HTML file.

    Args:
        shown: the result of `register`, `align_stack` or `register_group`.
        path: the file, replaced if it exists.
        data: for a result, the fixed and the moving data; for a stack or a group, its images in their order.

    Raises:
        TypeError: ``shown`` is neither, or the data are not the two sides of a result or the sections of a stack.
        OSError: the file cannot be written.
    """
    if isinstance(shown, Stack) and len(data) == 1:
        (images,) = data
        stacks.write(shown, images, shown.volume(images), Path(path))
    elif isinstance(shown, Group) and len(data) == 1:
        groups.write(shown, data[0], Path(path))
    elif isinstance(shown, Result) and len(data) == 2:
        results.write(shown, *data, Path(path))
    else:
        raise TypeError(
            "wanted a Result, the file and its fixed and moving data, or a Stack, the file and its images, "
            f"got {type(shown).__name__}, the file and {len(data)} more"
        )
