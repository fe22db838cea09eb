"""A file that is not there is refused by every command in a sentence, before anything large is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click.testing
import pytest

from regframe.cli import main

LINES = {
    "register no.tif other.tif -o out": "wanted an existing file or folder, got 'no.tif', which does not exist",
    "info no.tif": "wanted an existing file or folder, got 'no.tif', which does not exist",
    "apply points no a.csv -o b.csv --to fixed": "wanted a folder that `regframe register` wrote, got 'no', which does not exist",
    "apply image no a.tif -o b.tif --to fixed": "wanted a folder that `regframe register` wrote, got 'no', which does not exist",
    "apply shapes out no.geojson -o b.geojson --to fixed": "wanted an existing file or folder, got 'no.geojson'",
    "evaluate no --fixed-landmarks a.csv --moving-landmarks b.csv": "wanted a folder that `regframe register` wrote",
    "report no": "wanted a folder that `regframe register` wrote, got 'no', which does not exist",
    "export no -o a.npz": "wanted a folder that `regframe register` wrote, got 'no', which does not exist",
    "import a.npz --fixed no.tif --moving b.tif -o out": "wanted an existing file or folder, got 'no.tif'",
    "stack no.tif other.tif -o out": "wanted an existing file or folder, got 'no.tif', which does not exist",
    "rounds no -o out": "wanted an existing file or folder, got 'no', which does not exist",
    "mosaic no -o out": "wanted an existing file or folder, got 'no', which does not exist",
    "batch no.csv -o out": "wanted an existing file or folder, got 'no.csv', which does not exist",
    "compose no other -o out": "wanted a folder that `regframe register` wrote, got 'no', which does not exist",
    "refine no -o out": "wanted a folder that `regframe register` wrote, got 'no', which does not exist",
    "view no": "wanted a folder that `regframe register` wrote, got 'no', which does not exist",
}


@pytest.mark.parametrize("line", LINES)
def test_it_is_refused_in_a_sentence(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    done = click.testing.CliRunner().invoke(main, line.split(), catch_exceptions=False)
    assert done.exit_code == 2
    assert LINES[line] in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_nothing_large_is_loaded_for_that(tmp_path: Path) -> None:
    """One process for all commands: none of them imports torch, numpy or scipy before it has looked for its files."""
    code = (
        "import sys, click.testing\nfrom regframe.cli import main\n"
        f"for line in {list(LINES)!r}:\n"
        "    code = click.testing.CliRunner().invoke(main, line.split()).exit_code\n"
        "    large = {'torch', 'numpy', 'scipy', 'zarr', 'pandas', 'matplotlib', 'dask'} & set(sys.modules)\n"
        "    assert code == 2 and not large, (line, code, large)\n"
    )
    (tmp_path / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
