"""A section in a volume: the plane is found, cells get their region, damage and impossible asks are told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import PIL.Image
import pytest
import torch

import regframe as rf
from regframe.cli import main
from regframe.data import Grid, Image, PointSet
from regframe.fit.halvings import Halvings
from regframe.maps.affine import Affine
from regframe.starts import section as starts_section

pytest.importorskip("regframe._host", reason="the host module is not built: the search would take minutes")

SHAPE = (44, 60, 72)
SPACING = 40.0
SECTION = (120, 150)


def atlas() -> Image:
    """An organ of a dozen regions, no two sides of which are alike, in µm."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    labels = np.zeros(SHAPE, np.int32)
    labels[(z / 0.8) ** 2 + (y / 0.85) ** 2 + (x / 0.9) ** 2 < 1] = 1
    labels[(labels > 0) & (x + 0.4 * y > 0.35)] = 2
    rng = np.random.default_rng(3)
    for k in range(3, 16):
        middle, reach = rng.uniform(-0.55, 0.55, 3), rng.uniform(0.12, 0.34, 3)
        blob = sum(((a - m) / r) ** 2 for a, m, r in zip((z, y, x), middle, reach, strict=True)) < 1
        labels[(labels > 0) & blob] = 7 * k
    return Image.from_array(labels, "zyx", spacing=SPACING, unit="µm", labels=True, name="atlas")


def truth() -> Affine:
    """From the volume to the section: a cut across x, a little oblique, turned by 25 degrees, one pixel is 16 x 19 µm."""
    tilt, turn = math.radians(7), math.radians(25)
    normal = np.array([math.sin(tilt), 0.5 * math.sin(tilt), math.cos(tilt)])
    normal /= np.linalg.norm(normal)
    first = np.cross(normal, [1.0, 0.0, 0.0])
    first /= np.linalg.norm(first)
    second = np.cross(normal, first)
    down = 16 * (math.cos(turn) * first + math.sin(turn) * second)
    right = 19 * (-math.sin(turn) * first + math.cos(turn) * second)
    pull = np.eye(4)
    pull[:3, 0], pull[:3, 1], pull[:3, 2] = 17.4 * normal, down, right
    middle = (np.array(SHAPE) - 1) / 2 * SPACING + np.array([40.0, -30.0, 150.0])
    pull[:3, 3] = middle - down * (SECTION[0] - 1) / 2 - right * (SECTION[1] - 1) / 2
    return Affine(torch.from_numpy(np.linalg.inv(pull)), "µm", "px")


def positions(transform: rf.Transform, points: torch.Tensor) -> torch.Tensor:
    """Where points ``[N, 2]`` of the section lie in the volume."""
    return transform.inverse().points(torch.cat([torch.zeros(len(points), 1), points], dim=1).to(torch.float64))


def section(volume: Image) -> Image:
    """The cut, every region in a grey of its own, with noise."""
    at = positions(truth(), Grid(SECTION).coords().reshape(-1, 2))
    ids = rf.labels_at(volume, PointSet(at, "µm")).numpy()
    rng = np.random.default_rng(5)
    grey = dict(zip(np.unique(ids).tolist(), rng.uniform(40, 180, 40).tolist(), strict=False)) | {0: 245.0}
    picture = np.array([grey[i] for i in ids]).reshape(SECTION) + rng.normal(0, 6, SECTION)
    return Image.from_array(np.clip(picture, 0, 255).astype(np.uint8), "yx", name="section")


@pytest.fixture(scope="module")
def volume() -> Image:
    return atlas()


@pytest.fixture(scope="module")
def result(volume: Image) -> rf.Result:
    with pytest.warns(UserWarning, match="pixel size"):
        return rf.register(section(volume), volume)


def test_the_plane_is_found(result: rf.Result) -> None:
    at = Grid(SECTION).coords().reshape(-1, 2)
    apart = (positions(result.affine, at) - positions(truth(), at)).norm(dim=1)
    assert float(apart.mean()) < 1.0 * SPACING
    apart = (positions(result.transform, at) - positions(truth(), at)).norm(dim=1)
    assert float(apart.mean()) < 1.0 * SPACING
    normal = torch.tensor(result.metrics["plane"]["normal"], dtype=torch.float64)
    real = positions(truth(), torch.tensor([[0.0, 0], [1, 0], [0, 1]]))
    cross = torch.linalg.cross(real[1] - real[0], real[2] - real[0])
    assert float((normal @ cross / cross.norm()).abs()) > math.cos(math.radians(3))
    assert result.metrics["plane"]["pixel"] == pytest.approx([16, 19], rel=0.04)
    assert result.verdict == "pass", result.reasons
    assert result.section
    assert result.metrics["roundtrip_px"]["mean"] < 0.02


def test_cells_get_their_regions(result: rf.Result, volume: Image) -> None:
    cells = PointSet(torch.rand((400, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 100 + 15)
    there = result.to_moving(cells)
    assert (there.ndim, there.unit) == (3, "µm")
    found = rf.labels_at(volume, there)
    real = rf.labels_at(volume, PointSet(positions(truth(), cells.coords), "µm"))
    assert float((found == real).double().mean()) > 0.85
    back = result.to_fixed(there)
    assert torch.allclose(back.coords[:, 1:], cells.coords, atol=0.02)
    assert float(back.coords[:, 0].abs().max()) < 0.02  # none has left its section


def test_the_volume_on_the_section(result: rf.Result, volume: Image) -> None:
    drawn = result.to_fixed(volume)
    assert drawn.grid.shape == SECTION
    assert set(drawn.data.unique().tolist()) <= set(volume.data.unique().tolist())
    with pytest.raises(ValueError, match="a plane fills no volume"):
        result.to_moving(section(volume))


@pytest.mark.filterwarnings("ignore:the displacement field")
def test_saved_and_loaded(result: rf.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "map.ome.zarr")
    again = rf.load(tmp_path / "map.ome.zarr")
    at = Grid(SECTION).coords().reshape(-1, 2)[::37]
    assert torch.allclose(positions(again.transform, at), positions(result.transform, at), atol=0.02 * SPACING)
    assert again.section


@pytest.mark.filterwarnings("ignore:regframe. one side declares no pixel size")
def test_on_the_command_line(volume: Image, result: rf.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(fixed: Image, moving: Image, **how: Any) -> rf.Result:
        """The result that there is: of the same pixels, as `test_the_plane_is_found` has it."""
        assert torch.equal(fixed.data, section(volume).data)
        assert torch.equal(moving.data, volume.data)
        assert (moving.grid, moving.labels, how["config"].transform) == (volume.grid, True, "affine")
        return result

    monkeypatch.setattr(rf, "register", found, raising=False)
    PIL.Image.fromarray(section(volume).data[0].numpy()).save(tmp_path / "section.png")
    rf.adapter("image").save(volume, tmp_path / "atlas.ome.zarr")
    (tmp_path / "cells.csv").write_text("id,x,y,kind\na,70,60,0\nb,1,1,1\nc,80.5,40.25,2\n")
    (tmp_path / "names.csv").write_text("id,name,acronym\n" + "".join(f"{k},region {k},R{k}\n" for k in range(120)))

    def run(*arguments: object) -> click.testing.Result:
        return click.testing.CliRunner().invoke(main, [str(a) for a in arguments])

    done = run("register", tmp_path / "section.png", tmp_path / "atlas.ome.zarr", "--moving-set", "labels=true", "-o",
               tmp_path / "out", "--json", "--transform", "affine")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "plane" in json.loads(done.stdout)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    done = run("apply", "points", tmp_path / "out", tmp_path / "cells.csv", "-o", tmp_path / "there.csv", "--to", "moving",
               "--labels", tmp_path / "atlas.ome.zarr", "--label-names", tmp_path / "names.csv")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    rows = [line.split(",") for line in (tmp_path / "there.csv").read_text().splitlines()]
    head = rows[0]
    assert [row[0] for row in rows[1:]] == ["a", "b", "c"]
    assert {"x", "y", "z", "label", "region"} <= set(head)
    for row in rows[1:]:
        label = int(row[head.index("label")])
        assert row[head.index("region")] == f"R{label}"
    assert int(rows[1][head.index("label")]) > 0
    assert int(rows[2][head.index("label")]) == 0
    done = run("apply", "points", tmp_path / "out", tmp_path / "cells.csv", "-o", tmp_path / "x.csv", "--to", "moving",
               "--label-names", tmp_path / "names.csv")  # fmt: skip
    assert done.exit_code == 2
    assert "--labels FILE" in done.stderr


def test_a_volume_of_intensities(volume: Image) -> None:
    """The classes are those of its intensities; contrast may be any."""
    rng = np.random.default_rng(2)
    grey = rng.uniform(20, 200, 200)
    grey[0] = 0
    data = torch.from_numpy(grey[volume.data.numpy()]).to(torch.float32)
    found = starts_section.search(section(volume), Halvings(Image(data, volume.grid)), rf.Config())
    at = Grid(SECTION).coords().reshape(-1, 2)
    apart = (positions(Affine(found.pose.matrix, "µm", "px"), at) - positions(truth(), at)).norm(dim=1)
    assert float(apart.mean()) < 2 * SPACING


def test_the_other_way_round_is_refused(volume: Image) -> None:
    with pytest.raises(ValueError, match="section as the fixed side and the volume as the moving one"):
        rf.register(volume, section(volume))


def test_compiled_and_plain_agree(volume: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    side, classes = (
        starts_section._Section.of(Halvings(section(volume)), 24),
        starts_section.Classes.of(Halvings(volume), 40),
    )
    start = torch.from_numpy(np.linalg.inv(truth().matrix.numpy()))[:3, 1:].to(torch.float32)
    frame = torch.tensor(SPACING)
    start = start / frame
    start[:, 2] = 0
    generator = torch.Generator().manual_seed(0)
    planes = start + 0.02 * torch.randn((9, 3, 3), generator=generator)
    scores, refined = starts_section._score(side, classes, planes), starts_section._refine(side, classes, planes)
    monkeypatch.setattr(starts_section, "_compiled", lambda *_: None)
    assert torch.allclose(starts_section._score(side, classes, planes), scores, rtol=1e-3, atol=0.05)
    plain = starts_section._refine(side, classes, planes)
    assert torch.allclose(plain[1], refined[1], rtol=1e-2, atol=0.5)
    assert bool((plain[1] >= scores.min()).all())


def test_the_same_for_any_number_of_threads(volume: Image) -> None:
    from regframe import _host  # type: ignore[attr-defined]

    side, classes = (
        starts_section._Section.of(Halvings(section(volume)), 24),
        starts_section.Classes.of(Halvings(volume), 40),
    )
    planes = 0.5 * torch.randn((300, 3, 3), generator=torch.Generator().manual_seed(0))
    given = (
        classes.codes.to(torch.int32).numpy(), classes.grid.origin, classes.grid.spacing, classes.empty.to(torch.uint8).numpy(),
        side.at.numpy(), side.values.numpy(), side.weight.numpy(), planes.numpy(), 3.0, 0.15,
    )  # fmt: skip
    for steps in (0, 3):
        one = _host.planes(*given, steps, 1)
        for threads in (2, 5):
            assert all(np.array_equal(a, b) for a, b in zip(one, _host.planes(*given, steps, threads), strict=True))
    with pytest.raises(ValueError, match=r"codes must be classes"):
        _host.planes(given[0] + 1000, *given[1:], 0, 1)
    with pytest.raises(ValueError, match=r"planes must be \[N, 3, 3\]"):
        _host.planes(*given[:7], planes[:, :2].numpy(), 3.0, 0.15, 0, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("id,colour\n1,red\n", "acronym or name"),
        ("id,name\n1,a\n1,b\n", "one name for the id 1"),
        ("id,name\nx,a\n", "whole number"),
    ],
)
def test_names_that_cannot_be_read(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        rf.read_label_names(tmp_path / "names.csv")


def test_names_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("1\tgrey:Basic cell groups\n2\tCH:Cerebrum\n")
    assert rf.read_label_names(tmp_path / "names.txt") == {1: "grey:Basic cell groups", 2: "CH:Cerebrum"}
