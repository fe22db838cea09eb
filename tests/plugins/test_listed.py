"""What is registered is listed: the page of hooks is that of the code, and help and completion name formats from outside."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import click.testing
import pytest
from click.shell_completion import ShellComplete

from regframe import plugins
from regframe.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def landmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package ``example_landmarks_format``, as if installed."""
    info = tmp_path / "example_landmarks_format-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-landmarks-format\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[regframe]\nexample_landmarks_format = example_landmarks_format\n")
    for place in (tmp_path, ROOT / "plugins" / "example_landmarks_format" / "src"):
        monkeypatch.syspath_prepend(str(place))
    plugins.refresh()
    yield
    monkeypatch.undo()
    plugins.refresh()


def test_the_page_of_hooks_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_hooks", ROOT / "docs" / "make_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert made.page() == page, "run python docs/make_hooks.py"
    for name in (
        "regframe_solvers()",
        "`Metric.prepare`",
        "`PyramidAdapter.begin`",
        "`TileWriter.write` (to be written)",
    ):
        assert name in page


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_lists_formats_from_outside(landmarks: None, command: str) -> None:
    said = click.testing.CliRunner().invoke(main, [command, "--help"]).stdout
    assert "Formats of installed packages:" in said
    assert "bigwarp" in said.partition("Formats of installed packages:")[2]


def test_help_says_nothing_of_them_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "installed packages" not in click.testing.CliRunner().invoke(main, ["export", "--help"]).stdout


def test_the_shell_completes_them(landmarks: None) -> None:
    found = ShellComplete(main, {}, "regframe", "_C").get_completions(["export", "run", "--format"], "")
    assert {"itk", "bigwarp"} <= {each.value for each in found}
