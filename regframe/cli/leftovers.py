"""What ``regframe doctor`` says beside the state of regframe itself: extras that are there, and what interrupted runs left."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

_EXTRAS = ("pandas", "pyarrow", "anndata", "SimpleITK", "h5py", "openslide", "starlette", "uvicorn", "spatialdata", "obstore",
           "dask", "distributed", "plyfile", "laspy", "cryptography")  # fmt: skip
"""Packages that regframe uses where they are installed, in the order of the extras of its ``pyproject.toml``."""


def extras() -> dict[str, bool]:
    """Packages that regframe can do without, and whether each is installed."""
    return {name: find_spec(name) is not None for name in _EXTRAS}


def left_over(folder: Path, clean: bool) -> list[dict[str, Any]]:
    """What interrupted runs left in a folder: the path, the state of its process, who that is, and what was done about it."""
    from ..io import claims
    from ..plugins import PLAN

    if not folder.is_dir():
        raise NotADirectoryError(f"wanted a folder to look for what interrupted runs left, got {folder}")
    found: list[dict[str, Any]] = []
    for claim in claims.found(folder):
        gone = clean and claim.state == "dead"
        if gone:
            claims.remove(claim.path)
        did = (
            "removed"
            if gone
            else {"dead": "--clean removes it", "alive": "being written"}.get(claim.state, "left alone")
        )
        found.append({"path": claim.path, "state": claim.state, "owner": claim.owner, "action": did})
    for place in sorted(folder.glob(f"*{claims.SUFFIX}")):
        if not place.name.startswith(".") and (place / PLAN).is_file():
            action = "kept: the command that began it goes on with it"
            found.append({"path": place, "state": "unfinished", "owner": "", "action": action})
    return found
