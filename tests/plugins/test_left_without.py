"""Without one of regframe's solvers a pair of its kind is refused with what is missing, and all other pairs go on; maps are taken
over between sides that only a stranger's adapter opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click.testing
import numpy as np
import pytest
import torch

import regframe as rf
from regframe import plugins, solvers
from regframe.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A list: the names in it are the solvers that regframe's hook leaves out after `plugins.refresh`."""
    gone: list[str] = []
    whole = solvers.regframe_solvers

    @rf.hookimpl
    def regframe_solvers() -> list[type]:
        return [cls for cls in whole() if cls.name not in gone]

    monkeypatch.setattr(solvers, "regframe_solvers", regframe_solvers)
    yield gone
    monkeypatch.undo()
    plugins.refresh()


def image(shift: int = 0) -> rf.Image:
    data = torch.rand((1, 44, 44), generator=torch.Generator().manual_seed(0))
    data = torch.nn.functional.avg_pool2d(data, 7, 1)
    return rf.Image(data[:, shift : 32 + shift, shift : 32 + shift].clone(), rf.Grid((32, 32)))


def points(by: float = 0.0) -> rf.PointSet:
    return rf.PointSet(100 * torch.rand((40, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + by)


PAIRS = {
    "points": (points(), points(1)),
    "images": (image(), image(2)),
}


def registered(kind: str) -> bytes:
    found = rf.register(*PAIRS[kind], init="identity", transform="rigid")
    return found.affine.matrix.numpy().tobytes()


@pytest.mark.parametrize(("kind", "other"), [("points", "images"), ("images", "points")])
def test_a_missing_solver_is_named_and_breaks_nothing_else(without: list[str], kind: str, other: str) -> None:
    before = registered(other)
    name = plugins.find_solver(*PAIRS[kind]).name
    assert name != plugins.find_solver(*PAIRS[other]).name
    without.append(name)
    plugins.refresh()
    with pytest.raises(ValueError, match="wanted a pair that a solver registers, got") as caught:
        rf.register(*PAIRS[kind], init="identity", transform="rigid")
    said = str(caught.value)
    assert "regframe's own solvers register such pairs, so that one is missing here: install regframe anew" in said
    assert f"{name} (from" not in said
    assert "\n" not in said
    assert registered(other) == before


def test_a_disabled_entry_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.DISABLE, "solvers")
    plugins.refresh()
    try:
        with pytest.raises(ValueError, match=r"left out is solvers of regframe \S+ \(disabled\).*install or enable"):
            plugins.find_solver(*PAIRS["points"])
    finally:
        monkeypatch.undo()
        plugins.refresh()


def command(*arguments: object, code: int = 0) -> str:
    done = click.testing.CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_a_map_between_meshes_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "example_mesh-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-mesh\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[regframe]\nexample_mesh = example_mesh\n")
    for place in (tmp_path, ROOT / "plugins" / "example_mesh" / "src"):
        monkeypatch.syspath_prepend(str(place))
    plugins.refresh()
    try:
        from example_mesh import MeshAdapter, known_pair

        known = known_pair(2, 41, "rigid")
        MeshAdapter("µm").save(known.fixed, tmp_path / "a.off")
        MeshAdapter("µm").save(known.moving, tmp_path / "b.obj")
        np.save(tmp_path / "map.npy", known.transform.parts()[0].matrix.flip(0, 1).roll((-1, -1), (0, 1)).numpy())
        sides = ("--fixed", tmp_path / "a.off", "--moving", tmp_path / "b.obj")
        own = (
            "--fixed-set",
            "unit=um",
            "--moving-set",
            "unit=um",
            "--format",
            "matrix",
            "--unit",
            "um",
            "--to",
            "fixed",
        )
        command("import", tmp_path / "map.npy", "-o", tmp_path / "run", *sides, *own)
        taken = rf.load(tmp_path / "run")
        at = known.moving.coords  # type: ignore[union-attr]
        assert torch.allclose(taken.to_fixed(at), known.transform.points(at), atol=1e-6)
        carried = tmp_path / "c.off"
        adapter = ("--adapter", "mesh", "--adapter-set", "unit=um")
        command("apply", "points", tmp_path / "run", tmp_path / "b.obj", "-o", carried, "--to", "fixed", *adapter)
        assert torch.equal(rf.open(carried).faces, rf.open(tmp_path / "b.obj").faces)  # type: ignore[union-attr]
    finally:
        monkeypatch.undo()
        plugins.refresh()
