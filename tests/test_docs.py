"""The documents: examples of the README run, links lead somewhere, pictures are small, constants are the code's."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from regframe.cli import main
from regframe.data import Grid

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT / "docs", ROOT / "docs" / "tutorials", ROOT / ".github")
PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted(folder.glob("*.md")))]
SEED = Path(os.environ.get("REGFRAME_DATA") or ROOT.parent / "shared" / "data") / "01_seed_cells"

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the README names; a zoomed image of scikit-image where the real pair is absent."""
    if SEED.is_dir():
        for name, as_named in (("cells2_crop.jpg", "fixed.png"), ("cells.jpg", "moving.png")):
            (tmp_path / as_named).write_bytes((SEED / name).read_bytes())
    else:
        from skimage.data import immunohistochemistry

        whole = Image.fromarray(immunohistochemistry()[:446, :446])  # type: ignore[no-untyped-call]
        whole.resize((223, 223)).crop((19, 19, 204, 204)).resize((223, 223)).save(tmp_path / "fixed.png")
        grey = 255 - np.asarray(whole.resize((223, 223)).convert("L"))
        Image.fromarray(grey).convert("RGB").save(tmp_path / "moving.png")
    (tmp_path / "cells.csv").write_text("id,x,y,type\n1,60,100,epithelium\n2,100,75,macrophage\n3,190,150,vessel\n")
    ring, dot = [[60, 40], [150, 60], [130, 170], [60, 40]], [190, 150]
    shapes = [{"type": "Polygon", "coordinates": [ring]}, {"type": "Point", "coordinates": dot}]
    features = [{"type": "Feature", "geometry": shape, "properties": {}} for shape in shapes]
    (tmp_path / "drawn.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    Image.fromarray(np.tri(223, dtype=np.uint8)).save(tmp_path / "mask.png")
    pairs = [(160, 200, 150, 190), (100, 50, 100, 60), (75, 100, 75, 100)]
    rows = "\n".join(",".join(map(str, pair)) for pair in pairs)
    (tmp_path / "three.csv").write_text(f"fixed_y,fixed_x,moving_y,moving_x\n{rows}\n")
    fixed = np.stack(np.meshgrid(np.arange(0, 223, 10), np.arange(0, 223, 10)), axis=-1).reshape(-1, 2)
    for name, points in (("f.csv", fixed), ("m.csv", 111 + (fixed - 111) * 5 / 6)):
        np.savetxt(tmp_path / name, points, delimiter=",", header="y,x", comments="")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # images this small gain nothing from a second one
    yield tmp_path
    torch.set_num_threads(threads)


def test_readme_python_runs(workplace: Path) -> None:
    names: dict[str, object] = {}
    found = blocks(ROOT / "README.md", "python")
    assert found
    for body in found:
        exec(compile(body, "README.md", "exec"), names)
    assert "Result(" in repr(names["again"])
    assert (workplace / "section.ome.zarr").is_dir()


def test_readme_commands_run(workplace: Path) -> None:
    lines = [line for body in blocks(ROOT / "README.md", "console") for line in body.splitlines()]
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("$ regframe ")]
    assert len(commands) >= 4
    for command in commands:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, (command, result.output)
    assert (workplace / "moved.csv").read_text().splitlines()[
        0
    ] == "id,x,y,type,match_probability,position_sd,in_canvas"
    listed = set(re.findall(r"^\| `([\w.]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {path.name for path in (workplace / "run").iterdir()} == listed - {"warped.ome.zarr"}


def test_the_page_on_shapes_runs(workplace: Path) -> None:
    page = ROOT / "docs" / "shapes.md"
    for line in [line for body in blocks(page, "console") for line in body.splitlines()]:
        result = CliRunner().invoke(main, shlex.split(line)[2:])
        assert result.exit_code == 0, (line, result.output)
    for body in blocks(page, "python"):
        exec(compile(body, page.name, "exec"), {})
    moved, again, back, drawn = (
        np.array(json.loads((workplace / f"{name}.geojson").read_text())["features"][0]["geometry"]["coordinates"][0])
        for name in ("moved", "again", "back", "drawn")
    )
    assert np.array_equal(moved, again)
    assert np.allclose(back[[0, -1]], drawn[[0, -1]], rtol=0, atol=1e-6)
    with Image.open(workplace / "mask_fixed.png") as mask:
        assert set(np.unique(mask)) == {0, 1}


def test_the_page_on_scverse_runs(workplace: Path) -> None:
    anndata = pytest.importorskip("anndata")
    from fake_result import fake_result

    grid = Grid((60, 90), 2.0, unit="µm")
    fake_result(grid, grid).save("run.ome.zarr")
    xy = np.random.default_rng(0).random((30, 2)) * [150, 100] + 10
    anndata.AnnData(np.ones((30, 2), dtype=np.float32), obsm={"spatial": xy}).write_h5ad("cells.h5ad")
    page = ROOT / "docs" / "scverse.md"
    for line in [line for body in blocks(page, "console") for line in body.splitlines()]:
        result = CliRunner().invoke(main, shlex.split(line)[2:])
        assert result.exit_code == 0, (line, result.output)
    for_anndata, _ = blocks(page, "python")
    names: dict[str, Any] = {}
    exec(compile(for_anndata, page.name, "exec"), names)
    aligned, same = anndata.read_h5ad("aligned.h5ad"), names["adata"]
    assert np.allclose(aligned.obsm["spatial_aligned"], same.obsm["spatial_aligned"])
    assert np.abs(same.obsm["spatial_aligned"] - same.obsm["spatial"]).max() > 0.5
    listed = set(re.findall(r'^\| `obs(?:m)?\["(\w+)"\]` \|', page.read_text(encoding="utf-8"), re.MULTILINE))
    assert {*same.obs, *same.obsm} - {"spatial"} == listed


@pytest.mark.filterwarnings("default")  # those of its dependencies are not ours
def test_the_page_on_spatialdata_runs(workplace: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    import geopandas
    import regframe_scverse
    from fake_result import fake_result
    from spatialdata.models import Image2DModel, ShapesModel

    picture = Image2DModel.parse(np.zeros((3, 60, 90), dtype=np.uint8), dims=("c", "y", "x"))
    cells = geopandas.GeoDataFrame({"radius": [2.0]}, geometry=geopandas.points_from_xy([50], [30]))
    spatialdata.SpatialData(images={"he": picture}, shapes={"cells": ShapesModel.parse(cells)}).write("slide.zarr")
    grid = Grid((60, 90), 1.0, (0.5, 0.5), "µm")
    names: dict[str, Any] = {"rs": regframe_scverse, "result": fake_result(grid, grid)}
    exec(compile(blocks(ROOT / "docs" / "scverse.md", "python")[1], "scverse.md", "exec"), names)
    assert names["fixed"].grid == grid
    assert names["new"] == {"he": "he_aligned", "cells": "cells_aligned"}
    again = spatialdata.read_zarr("aligned.zarr")
    assert again.attrs["regframe"]["aligned"]["map"] == "map.ome.zarr"
    assert (workplace / "map.ome.zarr").is_dir()


def run_stalign_page(data_dir: Path, workplace: Path, wanted: list[int]) -> dict[str, Any]:
    (workplace / "data").symlink_to(data_dir, target_is_directory=True)
    page = ROOT / "docs" / "stalign.md"
    found: dict[str, Any] = {"np": np, "torch": torch, "rf": importlib.import_module("regframe")}
    bodies = blocks(page, "python")
    assert len(bodies) == 5
    for body in [bodies[i] for i in wanted]:
        exec(compile(body, page.name, "exec"), found)
    assert found["result"].verdict != "fail"  # sections of a series: their windows differ, which is said
    return found


def test_the_page_for_users_of_stalign_runs(data_dir: Path, workplace: Path) -> None:
    found = run_stalign_page(data_dir, workplace, [1, 4])
    assert np.quantile(found["error"], 0.9) < 3
    assert found["matched"] > 0.9
    assert found["unmatched"] < 0.1


@pytest.mark.slow
def test_the_rest_of_the_page_for_users_of_stalign_runs(data_dir: Path, workplace: Path) -> None:
    found = run_stalign_page(data_dir, workplace, [0, 1, 2, 3])
    assert found["merfish"] < 165
    assert np.median(found["landmarks_error"]) < 2
    assert found["heart"] > 0.88


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}, which is not there"
        assert ROOT in path.parents, f"{page.name} links to {target}, which is outside the project"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {target}, which has no such heading"


def test_every_page_is_in_the_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and f"({p.name})" not in index]
    assert not missing


def test_pictures_are_there_and_small() -> None:
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    used = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 200_000, f"{path.name} has {path.stat().st_size} bytes"
        assert f"images/{path.name}" in used, f"{path.name} is on no page"
        with Image.open(path) as picture:
            picture.verify()
    assert sum(path.stat().st_size for path in pictures) < 1_500_000


def test_constants_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)\.([A-Z_0-9]+)(?:\[(\d)\])?` \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) > 10
    for module, name, axes, value in rows:  # [2] and [3]: of planes and of volumes
        held = getattr(importlib.import_module(f"regframe.{module}"), name)
        assert (held[int(axes)] if axes else held) == float(value), f"{module}.{name}"


def test_gallery_is_filled_in() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    sections = re.findall(r"<!-- figures: (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert len(sections) == 12
    assert all("Result(" in body for _, body in sections)


def test_the_architecture_names_what_there_is() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = set(re.findall(r"`([a-z_]+)/?`", text[text.index("| row |") : text.index("## One registration")]))
    core = {p.stem for p in (ROOT / "regframe").glob("*.py")} | {
        p.parent.name for p in (ROOT / "regframe").glob("*/__init__.py")
    }
    assert core - {"__init__"} <= rooms, "a room without a row in docs/ARCHITECTURE.md"
    paths = set(re.findall(r"`((?:regframe|plugins|csrc|tests)/[^`*]*)`", text))
    assert len(paths) > 30
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]
    for path, name in re.findall(
        r"`(BUILT_IN|NAMED|models|settled)` (?:in|of the solver that fits it,) `([^`]+)`", text
    ):
        assert path in (ROOT / name).read_text(encoding="utf-8")
