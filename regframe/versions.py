"""Which versions of Python and of packages run, as results, stores and reports name them."""

from __future__ import annotations

import platform
from importlib import metadata

MAIN = ("python", "regframe", "torch", "numpy")
"""What decides the numbers of a fit: every result names these."""
UNKNOWN = "0+unknown"
"""Stands for a package that is not installed, or a source tree that never was; a valid version, before every release."""


def version(package: str = "regframe") -> str:
    """The version of an installed package; `UNKNOWN` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def versions(*names: str) -> dict[str, str]:
    """Versions by name, in the order given, of ``MAIN`` where none is; ``python`` is the interpreter's."""
    return {name: platform.python_version() if name == "python" else version(name) for name in names or MAIN}
