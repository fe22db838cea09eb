"""The starts: where a fit begins, either searched for or given by the user.

``identity`` leaves both sides as they lie; ``landmarks`` makes a start of paired points; ``images``, ``volumes``, ``section``
and ``points`` search for one. ``views`` prepares the images that the search compares, ``evidence`` compares them at many poses,
``priors`` tells which poses are likely beforehand; ``pose`` defines what searches of images return; ``given`` reads the argument
``init``; ``scale`` reads what the units tell about the scale between the two sides.

This module names the starts without importing them, so that the command line can list them without loading torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

NAMED = {"identity": "identity.as_they_lie"}
"""Starts that ``init`` takes by name beside ``auto``. The value is ``module.function`` in this package; the function takes the
fixed and the moving canvas and returns ``A`` ``[D+1, D+1]``. A new named start is entered here and nowhere else."""


def named(name: str) -> Callable[..., Any]:
    """The function that makes the start called ``name`` (see `NAMED`)."""
    module, _, function = NAMED[name].partition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return found
