"""What is typed for a plug-in's options, on a command line or in a manifest, and what its ``__init__`` gets: docs/doors.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regframe.batch import read_manifest
from regframe.cli._common import adapter_options, parse_pairs


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("2", 2), ("2.0", 2.0), ("1e-3", 1e-3), ("1e3", 1e3), ("-.5E+2", -50.0), ("1.e2", 100.0), ("true", True),
        ("null", None), ("", None), ("[x, y]", ["x", "y"]), ("x,y", "x,y"), ("e3", "e3"), ("1e", "1e"), ("nan", "nan"),
        ("'1e3'", "1e3"), ("{a: 1}", {"a": 1}), ("A1e3", "A1e3"),
    ],
)  # fmt: skip
def test_values(typed: str, value: Any) -> None:
    got = parse_pairs([f"key={typed}"], "--metric-set")
    assert got == {"key": value}
    assert type(got["key"]) is type(value)


def test_options_that_others_imply() -> None:
    assert adapter_options(["unit=mm"], "--fixed-set", mpp=0.5, channel="DAPI") == {
        "spacing": 0.5, "unit": "µm", "channels": "DAPI"
    }  # fmt: skip
    assert adapter_options([], "--fixed-set", channel="2") == {"channels": 2}


def test_lists_in_a_cell_of_a_manifest(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("x,y\n1,2\n")
    (tmp_path / "jobs.csv").write_text(
        'id,fixed,moving,moving_set,moving_mpp\none,a.csv,b.csv,"columns=[x, y]; a=1e-3",0.5\n'
    )
    (job,) = read_manifest(tmp_path / "jobs.csv")
    line = job.register_arguments(tmp_path / "out")
    pairs = [word.removeprefix("--moving-set=") for word in line if word.startswith("--moving-set=")]
    assert parse_pairs(pairs, "--moving-set") == {"columns": ["x", "y"], "a": 1e-3}
    assert "--moving-mpp=0.5" in line
