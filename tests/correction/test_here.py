"""Corrections in a region: a made fault is mended inside, and nothing moves outside, to the bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from scipy import ndimage

import regframe
from regframe.cli import main
from regframe.correction.here import correct
from regframe.correction.images import Looked
from regframe.correction.landmarks import put_back
from regframe.correction.region import Region
from regframe.data import Grid, Image
from regframe.maps.affine import Affine
from regframe.maps.flow import Flow
from regframe.maps.resample import resample
from regframe.maps.sequence import Sequence
from regframe.report import results
from regframe.result import Result

SIZE, MIDDLE, SPREAD = 320, np.array([150.0, 165.0]), 32.0


def tissue(seed: int = 0) -> Image:
    """Brightfield noise of several scales."""
    random = np.random.default_rng(seed)
    noise = np.stack([ndimage.gaussian_filter(random.standard_normal((SIZE, SIZE)), s) for s in (2.5, 4, 7)])
    ink = (noise - noise.min(axis=(1, 2), keepdims=True)) / np.ptp(noise, axis=(1, 2), keepdims=True)
    return Image(torch.from_numpy(np.rint(255 - 200 * ink).astype(np.uint8)), Grid((SIZE, SIZE)), ("R", "G", "B"))


def turned() -> Affine:
    matrix = torch.tensor([[0.995, -0.0998, 20.0], [0.0998, 0.995, -15.0], [0, 0, 1]], dtype=torch.float64)
    return Affine(matrix, "px", "px")


def faulty(true: Affine, size: float = 30.0) -> Result:
    """A result whose map is off by up to 30 px within 3 `SPREAD` of `MIDDLE`, and right elsewhere."""
    nodes = Grid((SIZE // 4 + 1, SIZE // 4 + 1), (4.0, 4.0))
    away = np.linalg.norm(nodes.coords().numpy() - MIDDLE, axis=-1)
    bump = size * np.exp(-0.5 * (away / SPREAD) ** 2) * np.clip(3 - away / SPREAD, 0, 1)
    velocity = torch.from_numpy(np.stack([0.6 * bump, -0.8 * bump]))[None].to(torch.float32)
    canvas = Grid((SIZE, SIZE))
    figures = {"neighbouring_sections": False, "shared_structure": 0.6}
    return Result(Sequence((true, Flow(velocity, nodes, 4))), canvas, canvas, figures, regframe.Config(), true)


def around(radius: float = 3.3 * SPREAD) -> Region:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return Region.of([(MIDDLE + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)).tolist()])


def marks(true: Affine) -> tuple[torch.Tensor, torch.Tensor]:
    """Five landmarks about the fault, each clicked 0.7 px off."""
    spots = [(0, 0), (-30, 10), (24, 28), (12, -34), (-20, -24)]
    q = torch.from_numpy(MIDDLE + np.array(spots, dtype=float))
    random = np.random.default_rng(1)
    return true.inverse().points(q) + torch.from_numpy(random.normal(0, 0.5, q.shape)), q


def test_a_fault_is_mended_and_nothing_else_moves(tmp_path: Path) -> None:
    fixed, true = tissue(), turned()
    moving = resample(fixed, true.inverse(), fixed.grid, "auto")
    base, region = faulty(true), around()
    found = correct(base, region, *marks(true), Looked.of(fixed, moving))
    at = fixed.grid.coords()[::3, ::3].reshape(-1, 2)
    truth = true.inverse().points(at)
    inside = torch.from_numpy(region.depth(at.numpy()) > 0)
    off = [(one.transform.inverse().points(at) - truth).norm(dim=1) for one in (base, found)]
    assert float(off[0].max()) > 28
    assert float(off[1][inside].quantile(0.99)) < 2
    assert float(off[1][inside].max()) < 2.5
    assert torch.equal(found.transform.inverse().points(at[~inside]), base.transform.inverse().points(at[~inside]))
    there = base.transform.inverse().points(at[~inside])
    assert torch.equal(found.transform.points(there), base.transform.points(there))
    assert found.metrics["folding_fraction"] == 0
    assert found.metrics["roundtrip_px"]["max"] < 1e-6
    assert found.verdict == "warn"
    assert found.metrics["corrections"][0]["images"]
    found.save(tmp_path / "run.zarr")  # the whole map is kept to the bit
    again = regframe.load(tmp_path / "run.zarr")
    assert torch.equal(again.transform.inverse().points(at), found.transform.inverse().points(at))
    twice = correct(found, around(50.0), *marks(true))  # by landmarks alone, on top of it
    assert len(twice.metrics["corrections"]) == 2
    assert len(found.metrics["landmarks"]["fixed"]) == len(twice.metrics["landmarks"]["fixed"]) == 5  # the same ones
    assert sum("which nothing else has confirmed" in reason for reason in twice.reasons) == 1


def test_landmarks_have_the_last_word_where_images_pulled_far() -> None:
    """Only a pair that lies farther off than a click can be is put back; what the images told about the others is kept."""
    same, grid = Affine.identity(2, "px"), Grid((100, 100))
    p = torch.tensor([[20.0, 20.0], [60.0, 70.0]], dtype=torch.float64)
    near, far = p + torch.tensor([[0.0, 1.2]]), p + torch.tensor([[0.0, 1.2], [3.0, 0.0]])
    assert put_back(same, p, near, grid) is None
    back = put_back(same, p, far, grid)
    assert back is not None
    assert torch.equal(back, torch.stack([p[0], far[1]]))
    assert put_back(same, p[:0], p[:0], grid) is None


def test_a_region_with_a_hole_and_its_seam() -> None:
    ring = Region.of([[(0, 0), (0, 100), (100, 100), (100, 0), (0, 0)], [(40, 40), (40, 60), (60, 60), (60, 40)]])
    depth = ring.depth(np.array([[20.0, 20], [50, 50], [-1, 50], [30, 50], [5, 50]]))
    assert depth == pytest.approx([20, 0, 0, 10, 5])
    grid = Grid((53, 53), (2.0, 2.0), (-2.0, -2.0))
    window = ring.window(grid)
    outside = ring.depth(grid.coords().reshape(-1, 2).numpy()).reshape(grid.shape) == 0
    assert (window[outside] == 0).all()
    assert (window[ndimage.binary_dilation(outside)] == 0).all()
    assert window.max() == 1


@pytest.mark.parametrize(
    ("rings", "words"),
    [
        ([], "three corners"),
        ([[(0, 0), (1, 1)]], "three corners"),
        ([[(0, 0), (1, 1), (float("nan"), 0)]], "finite"),
        ([[(0, 0), (0, 1), (0, 5)]], "on one line"),
        ([[(i, i * i) for i in range(6000)]], "simplify"),
    ],
)
def test_regions_that_are_none(rings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Region.of(rings)


def test_corrections_that_cannot_be(tmp_path: Path) -> None:
    base, none = faulty(turned()), torch.zeros((0, 2), dtype=torch.float64)
    with pytest.raises(ValueError, match="landmark well inside"):
        correct(base, around(), none, none)
    far = Region.of([[(900, 900), (900, 950), (950, 950)]])
    with pytest.raises(ValueError, match="on the fixed side's canvas"):
        correct(base, far, none, none)
    q = torch.from_numpy(np.stack([MIDDLE, MIDDLE + 4]))
    with pytest.raises(ValueError, match="without tearing"):
        correct(base, around(30.0), turned().inverse().points(q.flip(0) + torch.tensor([[300.0, 0], [-300, 0]])), q)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "write", lambda *_: None)  # its page is tested elsewhere
    fixed, true = tissue(3), turned()
    moving = resample(fixed, true.inverse(), fixed.grid, "auto")
    sides: dict[str, Any] = {}
    for name, image in (("fixed", fixed), ("moving", moving)):
        Picture.fromarray(image.numpy()).save(tmp_path / f"{name}.png")
        sides[name] = {"path": tmp_path / f"{name}.png", "adapter": "image", "options": {}}
    base = dataclasses.replace(faulty(true), metrics={**faulty(true).metrics, "verdict": "pass", "findings": []})
    results.write_run(tmp_path / "run", base, (fixed, moving), {**sides, "landmarks": None, "init": "auto"})
    p, q = marks(true)
    table = ["name,fixed_y,fixed_x,moving_y,moving_x"]
    table += [",".join(["m", *map(repr, (*f, *m))]) for f, m in zip(q.tolist(), p.tolist(), strict=True)]
    (tmp_path / "marks.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    xy = [[x + 0.5, y + 0.5] for y, x in around().rings[0]]
    shape = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [[*xy, xy[0]]]}}
    (tmp_path / "region.geojson").write_text(json.dumps(shape), encoding="utf-8")

    def run(*words: str) -> click.testing.Result:
        given = ["correct", str(tmp_path / "run"), "--region", str(tmp_path / "region.geojson"), *words]
        return click.testing.CliRunner().invoke(main, given)

    done = run("--landmarks", str(tmp_path / "marks.csv"), "-o", str(tmp_path / "new"))
    assert done.exit_code == 0, done.output
    assert "5 landmarks and the images" in done.output
    found = regframe.load(tmp_path / "new").transform.inverse()
    at = fixed.grid.coords()[::4, ::4].reshape(-1, 2)
    outside = torch.from_numpy(around().depth(at.numpy()) == 0)
    assert torch.equal(found.points(at[outside]), base.transform.inverse().points(at[outside]))
    assert float((found.points(at) - true.inverse().points(at)).norm(dim=1).quantile(0.99)) < 2
    assert [step["do"] for step in json.loads((tmp_path / "new" / "steps.json").read_text())["steps"]] == [
        "open",
        "correct",
    ]
    (tmp_path / "region.geojson").write_text('{"type": "Point", "coordinates": [1, 2]}', encoding="utf-8")
    refused = run("-o", str(tmp_path / "other"))
    assert refused.exit_code == 2
    assert "wanted outlines" in refused.output
