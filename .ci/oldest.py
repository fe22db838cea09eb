"""Prints the lower bound of every requirement as ``name==version``, the oldest environment that pyproject.toml promises.

``oldest.py [EXTRA ...]``: those of the package itself and of the named extras. torch is left to who installs it.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(*extras: str) -> list[str]:
    """``name==version`` of each requirement that states ``>=``, of the package and of ``extras``."""
    stated = list(PROJECT["dependencies"])
    for extra in extras:
        stated += PROJECT["optional-dependencies"][extra]
    found = []
    for requirement in stated:
        match = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?>=([\w.]+)(,<[\w.]+)?(;.*)?", requirement.split("#")[0].strip())
        if match is None:
            raise ValueError(f"wanted `name>=version`, got {requirement!r} in pyproject.toml; state a lower bound")
        if match[1] not in ("torch", "regframe"):
            found.append(f"{match[1]}=={match[3]}")
    return found


if __name__ == "__main__":
    print("\n".join(pins(*sys.argv[1:])))
