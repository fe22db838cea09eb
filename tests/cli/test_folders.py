"""The folder of a stack, of rounds, a mosaic or a batch where the result of one pair is wanted: what it is, what to name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_result import fake_result

from regframe.cli import main
from regframe.data import Grid
from regframe.io import outputs

KINDS = {
    "stack": ("sections.csv", "sections", "report.html"),
    "rounds": ("rounds.csv", "rounds", "report.html"),
    "mosaic": ("fields.csv", "fields", "report.html"),
    "batch": ("summary.csv", "", "summary.html"),
}
COMMANDS = [
    "report {}",
    "view {}",
    "refine {} -o out",
    "export {} -o a.npz",
    "apply points {} a.csv -o b.csv --to fixed",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    for kind, (table, inside, page) in KINDS.items():
        folder = tmp_path / kind
        for name in ("a", "b"):
            (folder / inside / name).mkdir(parents=True)
            fake_result(Grid((20, 20)), Grid((20, 20)), bend=0.0).save(folder / inside / name / outputs.TRANSFORM)
        (folder / table).write_text("")
        (folder / page).write_text("")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named_with_what_to_take(here: Path, kind: str) -> None:
    _, inside, page = KINDS[kind]
    first = Path(kind, inside, "a")
    for command in COMMANDS:
        done = CliRunner().invoke(main, command.format(kind).split())
        assert done.exit_code == 2, command
        assert f"`regframe {kind}`" in done.stderr, command
        assert f"its report is {Path(kind, page)}; the results in it: {first}" in done.stderr
        assert "zarr" not in done.stderr
    done = CliRunner().invoke(main, ["info", kind, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["report"] == str(Path(kind, page))
    assert told["results"][0] == str(first)


def test_a_folder_around_results_and_one_of_nothing(here: Path) -> None:
    (here / "stack" / "sections.csv").unlink()
    done = CliRunner().invoke(main, ["report", "stack/sections"])
    assert "holds some: stack/sections/a, stack/sections/b" in done.stderr
    (here / "empty").mkdir()
    done = CliRunner().invoke(main, ["report", "empty"])
    assert done.exit_code == 2
    assert "which holds no map" in done.stderr


def test_a_map_that_records_no_files_asks_for_them(here: Path) -> None:
    (here / "rounds" / "rounds" / "a" / outputs.METRICS).write_text("{}")
    done = CliRunner().invoke(main, ["report", "rounds/rounds/a"])
    assert done.exit_code == 2
    assert "pass --fixed FILE" in done.stderr
