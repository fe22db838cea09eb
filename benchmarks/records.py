"""Measurements as JSON lines, for `make_table.py` to make a page of."""

from __future__ import annotations

import json
import os
from pathlib import Path


def record(**values: object) -> None:
    """Append one measurement to the file that ``REGFRAME_BENCH_JSON`` names, if it names one."""
    path = os.environ.get("REGFRAME_BENCH_JSON")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(values) + "\n")
