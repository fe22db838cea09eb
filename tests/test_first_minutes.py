"""The first ten minutes of a stranger: what `regframe demo` keeps and proposes, and the files that documents name."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe
from regframe.cli import main
from regframe.cli.demo import next_commands
from regframe.result import Result
from regframe.testing import demo, samples

ROOT = Path(__file__).resolve().parents[1]

DOCUMENTS = (
    "README",
    "shapes",
    "interchange",
    "points",
    "cells",
    "slides",
    "vendors",
    "visium",
    "files",
    "stack",
    "atlas",
    "wrong",
    "mosaic",
    "pieces",
    "qupath",
    "rounds",
    "metrics",
)
"""Pages whose commands run, as printed, in the folder that ``regframe demo --data`` writes; `test_blocks.py` runs them."""


def commands(page: str) -> list[list[str]]:
    """Arguments of each ``regframe`` command in a page's ``console`` blocks, and in README ``sh`` blocks and jobs."""
    text = (ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(console|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if page != "README":
        blocks = [block for block in blocks if block[0] == "console"]
    lines = [line.removeprefix("$ ") for _, body in blocks for line in body.replace("\\\n", " ").splitlines()]
    if page == "README":
        lines += re.findall(r"^\|[^|\n]*\|[^|\n]*\| `([^`\n]+)` \|$", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("regframe ")]


@pytest.fixture(scope="module")
def pair() -> demo.Pair:
    return demo.make()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "data"
    outcome = CliRunner().invoke(main, ["demo", "--data", str(folder)])
    assert outcome.exit_code == 0, outcome.output
    return folder


def test_what_is_written_is_what_the_documents_name(made: Path) -> None:
    there = {path.name for path in made.iterdir()}
    written: set[str] = {"run"}
    for page in DOCUMENTS:
        for command in commands(page):
            for k, word in enumerate(command):
                option = command[k - 1] if k else ""
                name = word.partition("/")[0]
                if option in ("-o", "--output", "--thumbnail", "--merged", "--matches"):
                    written.add(name)
                elif re.search(r"\.[a-z]", word) and not word.startswith("-") and "=" not in word and "://" not in word:
                    assert name in there | written, f"{page}: `{shlex.join(command)}` needs {word}"
    text = (made / "jobs.csv").read_text()
    assert all(name in there for line in text.splitlines()[1:] for name in line.split(",")[1:])
    assert text in (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")


def test_landmarks_are_true_and_rough_ones_are_rough(made: Path, pair: demo.Pair) -> None:
    fixed, moving = (
        torch.from_numpy(np.loadtxt(made / name, delimiter=",", skiprows=1)) for name in ("f.csv", "m.csv")
    )
    assert len(fixed) == 100
    assert float((pair.truth.points(moving) - fixed).abs().max()) < 1e-3
    fixed, moving, _ = regframe.read_landmarks(made / "three.csv")
    off = torch.linalg.vector_norm(pair.truth.points(moving) - fixed, dim=1)
    assert float(off.min()) > 1
    assert float(off.max()) < 30


def test_the_same_bytes_each_time_and_nothing_is_replaced_unasked(made: Path, tmp_path: Path, pair: demo.Pair) -> None:
    for path in samples.write_pair(tmp_path / "again", pair):
        assert path.read_bytes() == (made / path.name).read_bytes()
    outcome = CliRunner().invoke(main, ["demo", "--data", str(made)])
    assert outcome.exit_code == 2
    assert "--overwrite" in outcome.output


def test_the_demo_keeps_its_inputs_and_says_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: demo.Pair
) -> None:
    def register(fixed: Any, moving: Any, **_: Any) -> Result:
        return fake_result(fixed.grid, moving.grid)

    monkeypatch.setattr(regframe, "register", register)
    monkeypatch.setattr(demo, "make", lambda seed: pair)
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(main, ["demo", "-o", "first"])
    assert outcome.exit_code == 0, outcome.output
    kept = {path.name for path in (tmp_path / "first" / "inputs").iterdir()}
    assert {"fixed.png", "moving.png", "cells.csv", "f.csv", "m.csv", "three.csv"} <= kept
    proposed = [shlex.split(line)[1:] for line in outcome.output.splitlines() if line.startswith("  regframe ")]
    assert len(proposed) == 3
    for _ in range(2):  # the second time over what the first one left
        for command in proposed:
            done = CliRunner().invoke(main, command)
            assert done.exit_code == 0, (command, done.output)
    listed = json.loads(CliRunner().invoke(main, ["demo", "-o", "second", "--json"]).stdout)["next"]
    assert len(listed) == 3


@pytest.mark.parametrize(
    ("called", "found", "wanted"),
    [
        (".venv/bin/regframe", None, ".venv/bin/regframe"),
        ("bin/regframe", "bin/regframe", "regframe"),
        ("x y/regframe", None, "'x y/regframe'"),
    ],
)
def test_commands_are_named_as_the_demo_was_called(
    called: str, found: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / called
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [called])
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / found) if found else None)
    assert all(line.startswith(f"{wanted} ") for line in next_commands(Path("demo-output/inputs")))


NEEDED = {".h5ad": "anndata", ".nrrd": "itk", ".h5": "itk", "view": "view"}
"""Endings of the words of a command, and the extra that it needs."""


def test_make_demo_installs_what_the_commands_of_the_readme_need() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^\$\(RUNTIME\):.*?^\t.* -e \"\.\[([\w,]+)\]\"", makefile, re.MULTILINE | re.DOTALL)
    assert found is not None
    words = [word for command in commands("README") for word in command]
    needed = {extra for end, extra in NEEDED.items() if any(word.endswith(end) for word in words)}
    assert needed == set(found[1].split(","))
