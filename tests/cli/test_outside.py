"""Commands and batch back ends of installed packages: listed by name, imported when called, their faults named."""

from __future__ import annotations

import sys
from pathlib import Path

import click.testing
import numpy as np
import PIL.Image
import pytest

from regframe.cli import main
from regframe.cli.outside import pool_of

CODE = """
import click
from pathlib import Path

@click.command()
@click.argument("number", type=int)
@click.option("--twice", is_flag=True, help="Doubles it.")
def tally(number, twice):
    '''Counts.'''
    if number < 0:
        raise KeyError("below")
    click.echo(f"counted {2 * number if twice else number}")

class Here:
    name, workers = "a queue", 1
    def __init__(self, address, n): self.address, self.n = address, n
    def __enter__(self):
        Path("asked.txt").write_text(f"{self.address} {self.n}")
        return self
    def __exit__(self, *error): pass
    def run(self, function, items, started=None):
        for index, item in enumerate(items):
            try:
                yield index, function(*item)
            except Exception as error:
                yield index, error

def half(address, n): return object()
number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    info = tmp_path / "counting-0.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 0.4\n")
    (info / "entry_points.txt").write_text(
        "[regframe.commands]\ntally = counting:tally\nregister = counting:tally\nlost = counting_lost:f\n"
        "number = counting:number\n"
        "[regframe.pools]\nqueue = counting:Here\nhalf = counting:half\n"
    )
    (tmp_path / "counting.py").write_text(CODE)
    (tmp_path / "counting_lost.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    return tmp_path


def command(*arguments: object, code: int = 0) -> str:
    done = click.testing.CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_a_command_is_listed_without_being_imported_and_runs(package: Path) -> None:
    said = command("--help")
    assert "tally" in said
    assert "Of counting 0.4." in said
    assert "counting" not in sys.modules
    assert command("tally", 4, "--twice") == "counted 8\n"
    assert "Doubles it." in command("tally", "--help")
    assert "Write DIR" not in command("register", "--help")
    assert "Counts." not in command("register", "--help")  # regframe's own name is regframe's


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lost",), "wanted a click command from 'lost' of counting 0.4, got ModuleNotFoundError"),
        (("number",), "wanted a click command from 'number' of counting 0.4, got int"),
        (("tally", "--", "-1"), "wanted counting 0.4 (command tally) to work, got KeyError: 'below' from its tally"),
    ],
)
def test_its_faults_are_named(package: Path, arguments: tuple[str, ...], said: str) -> None:
    told = command(*arguments, code=2)
    assert said in told
    assert "Defect" not in told
    assert "DISABLE" not in told


def test_a_back_end_is_found_by_its_address(package: Path) -> None:
    opened = pool_of("queue://there")
    assert opened is not None
    with opened(2) as pool:
        assert list(pool.run(abs, [(-3,), (2,)])) == [(0, 3), (1, 2)]
    assert Path("asked.txt").read_text() == "queue://there 2"
    assert pool_of("tcp://there:8786") is None
    assert pool_of("scheduler.json") is None


@pytest.mark.slow
def test_a_back_end_runs_a_batch(package: Path) -> None:
    texture = np.random.default_rng(0).integers(0, 255, (6, 6), dtype=np.uint8)
    for name in ("a", "b"):
        PIL.Image.fromarray(texture).resize((32, 32)).save(f"{name}.png")
    Path("jobs.csv").write_text("id,fixed,moving,transform\none,a.png,b.png,rigid\n")
    command("batch", "jobs.csv", "-o", "out", "--scheduler", "queue://there", "--dry-run")
    said = command("batch", "jobs.csv", "-o", "out", "--scheduler", "half://x", code=2)
    assert (
        "wanted a pool (regframe.batch.pools.Pool) from the back end 'half' of counting 0.4, got object without name"
        in said
    )
    command("batch", "jobs.csv", "-o", "out", "--scheduler", "queue://there", "--require", "warn")
    assert Path("asked.txt").read_text() == "queue://there 1"
    assert Path("out/one/job.json").is_file()
