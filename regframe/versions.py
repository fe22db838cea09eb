"""Versions of Python and of packages, as results, stores and reports record them."""

from __future__ import annotations

import platform
from importlib import metadata

MAIN = ("python", "regframe", "torch", "numpy")
"""Names of the packages (and the interpreter) that decide the numbers of a fit; every result records their versions."""
UNKNOWN = "0+unknown"
"""Version reported for a package that is not installed, or for a source tree that was never installed: valid by PEP 440 and
lower than any release."""


def version(package: str = "regframe") -> str:
    """The version of an installed package; `UNKNOWN` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def versions(*names: str) -> dict[str, str]:
    """Versions by name, in the order given (``MAIN`` where no names are given); ``python`` is the interpreter's version."""
    return {name: platform.python_version() if name == "python" else version(name) for name in names or MAIN}
