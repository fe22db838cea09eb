"""Who writes what a stranger's adapter read, when packages are found anew, and a name that regframe has already."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click.testing
import pytest
from odd_package import Install, offered, saved_run

import regframe as rf
from regframe import plugins, testing
from regframe.cli import main

ADAPTER = """
class Odd(rf.Adapter):
    name = "odd"
    {}
    def matches(self, source): return float(str(source).endswith((".rlel", ".rlei")))
    def open(self, source):
        if str(source).endswith(".rlel"):
            return PointSet(torch.tensor(np.loadtxt(source, ndmin=2)))
        return Image(torch.rand((1, 48, 48), generator=torch.Generator().manual_seed(0)), Grid((48, 48)))
    def apply(self, source, transform, grid=None):
        data = self.open(source)
        return rf.move_points(data, transform) if isinstance(data, PointSet) else rf.resample(data, transform, grid)
    def save(self, data, path): Path(path).write_text("RLE")
from pathlib import Path
@rf.hookimpl
def regframe_adapters(): return [Odd]
"""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield from offered(monkeypatch)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("states", ["pass", "writes = {PointSet: ('.rlel',)}"])
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("b.rlel", "RLE"),
        ("b.csv", "match_probability,"),
        ("b.png", "wanted a name that points are written under"),
        ("b.ome.zarr", "wanted a name that points are written under"),
    ],
)
def test_what_is_written_is_what_the_name_says(
    install: Install, result: Path, tmp_path: Path, states: str, name: str, written: str
) -> None:
    install(ADAPTER.format(states))
    (tmp_path / "a.rlel").write_text("5 6\n20 30\n")
    line = ["apply", "points", result, tmp_path / "a.rlel", "-o", tmp_path / name, "--to", "fixed"]
    done = click.testing.CliRunner().invoke(main, [str(part) for part in line], catch_exceptions=False)
    if written.startswith("wanted"):
        assert done.exit_code == 2
        assert written in done.stderr
        assert not (tmp_path / name).exists()
    else:
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).read_text().startswith(written)


def test_the_warped_image_of_a_run_is_what_its_name_says(install: Install, tmp_path: Path) -> None:
    install(ADAPTER.format("pass"))
    for name in ("a.rlei", "b.rlei"):
        (tmp_path / name).write_text("x")
    line = ["register", tmp_path / "a.rlei", tmp_path / "b.rlei", "-o", tmp_path / "run", "--transform", "rigid",
            "--init", "identity", "--save-warped"]  # fmt: skip
    done = click.testing.CliRunner().invoke(main, [str(part) for part in line], catch_exceptions=False)
    assert done.exit_code in (0, 3), done.output
    assert rf.find_adapter(tmp_path / "run" / "warped.ome.zarr").name == "image"
    assert rf.open(tmp_path / "run" / "warped.ome.zarr").data.shape[-2:] == (48, 48)  # type: ignore[union-attr]


def test_a_package_installed_while_the_process_runs_is_found_at_the_first_refresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {entry.name for entry in plugins.metrics()}  # the folder has been listed, and kept as empty
    (tmp_path / "sudden.py").write_text(
        "import regframe\nclass Sudden(regframe.Metric):\n    name = 'sudden'\n"
        "    def __call__(self, warped, fixed, weight): return weight.sum()\n"
        "@regframe.hookimpl\ndef regframe_metrics(): return [Sudden]\n"
    )
    (tmp_path / "sudden-1.0.dist-info").mkdir()
    (tmp_path / "sudden-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sudden\nVersion: 1.0\n")
    (tmp_path / "sudden-1.0.dist-info" / "entry_points.txt").write_text("[regframe]\nsudden = sudden\n")
    plugins.refresh()
    try:
        assert {entry.name for entry in plugins.metrics()} - before == {"sudden"}
    finally:
        monkeypatch.undo()
        sys.modules.pop("sudden", None)
        plugins.refresh()


@pytest.mark.filterwarnings("ignore::regframe.PluginWarning")
def test_the_check_says_that_a_name_is_taken(install: Install) -> None:
    install(ADAPTER.format("pass").replace('"odd"', '"image"'))
    outcomes = testing.check_installed(["odd"])
    (first,) = [one for one, _ in zip(outcomes, range(1), strict=False)]
    assert (first.check, first.status) == ("has a name of its own", "failed")
    assert first.message == "regframe has a 'image', which is used; rename it, or type odd-pack/image"
