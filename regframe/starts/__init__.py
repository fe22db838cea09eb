"""Where a fit begins: poses found without landmarks, or given.

``identity`` leaves both sides as they lie, ``landmarks`` takes pairs; ``images``, ``volumes``, ``section`` and ``points``
search; ``views`` is what the search of images looks at, ``pose`` what all of them return; ``given`` reads what the user says,
``scale`` what the units say.

This file names the starts without importing them, so that the command line needs no torch to know them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

NAMED = {"identity": "identity.as_they_lie"}
"""Starts that ``init`` takes by name beside ``auto``, each with its module of this room and the function in it, which makes ``A``
``[D+1, D+1]`` of the fixed and the moving canvas: the one place where a new one is entered."""


def named(name: str) -> Callable[..., Any]:
    """The function behind a name of `NAMED`."""
    module, _, function = NAMED[name].partition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return found
