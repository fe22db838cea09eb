"""Small tables of the files that are made for demos and tutorials."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path


def table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write rows of a table, with their names above where there are any."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        if header:
            lines.writerow(header)
        lines.writerows(rows)
