"""Mosaics: fields are placed by their overlaps, whatever says where they lie; what overlaps nothing is named."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

import regframe as rf
from regframe.cli import main
from regframe.mosaic import layout as layouts
from regframe.mosaic import mosaic as mosaics
from regframe.mosaic import overlap

SIZE, STEP = 120, 92
NAMES = ("a", "b", "c", "d")


def tissue(seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    base = gaussian_filter(rng.standard_normal((300, 420)), 1.5)
    return np.asarray(400 + 200 * base / base.std())


def poses(turn: float = 0.4) -> list[NDArray[np.float64]]:
    """Places of four fields, two by two, a few pixels off and turned a little."""
    rng, out = np.random.default_rng(3), []
    for k in range(4):
        angle = math.radians(rng.uniform(-turn, turn))
        pose = np.eye(3)
        pose[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        pose[:2, 2] = np.array(divmod(k, 2)) * STEP + rng.uniform(-4, 4, 2) + 20
        out.append(pose)
    return out


def fields(turn: float = 0.4, blank: int | None = None, **more: Any) -> list[rf.Image]:
    base, rng, out = tissue(), np.random.default_rng(1), []
    at = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1).reshape(-1, 2)
    for k, pose in enumerate(poses(turn)):
        seen = map_coordinates(base, (at @ pose[:2, :2].T + pose[:2, 2]).T, order=3).reshape(SIZE, SIZE)
        seen = seen if k != blank else np.full(seen.shape, 50.0)
        counts = rng.poisson(np.clip(seen, 0, None)).astype(np.uint16)
        out.append(rf.Image.from_array(counts, "yx", name=NAMES[k], channels=("DAPI",), **more))
    return out


STATED = {name: (float(STEP * (k // 2)), float(STEP * (k % 2))) for k, name in enumerate(NAMES)}


def off(mosaic: rf.Mosaic, turn: float = 0.4, scale: float = 1.0) -> float:
    """Largest error of a field's corners in pixels, the whole moved freely."""
    ends = np.array([[0.0, 0.0], [0.0, SIZE - 1], [SIZE - 1, 0.0], [SIZE - 1, SIZE - 1]])
    pairs = [
        (result.transform.points(result.moving_grid.corners()).numpy() / scale, ends @ pose[:2, :2].T + pose[:2, 2])
        for result, pose in zip(mosaic.results, poses(turn), strict=True)
        if result is not None
    ]
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    u, _, vt = np.linalg.svd((b - b.mean(0)).T @ (a - a.mean(0)))
    return float(np.linalg.norm((a - a.mean(0)) @ (u @ vt).T + b.mean(0) - b, axis=1).max())


@pytest.fixture(scope="module")
def placed() -> rf.Mosaic:
    return rf.register_mosaic(fields(), layout=STATED)


def test_fields_lie_where_they_were_cut(placed: rf.Mosaic) -> None:
    assert placed.verdict == "pass"
    assert off(placed) < 0.3
    assert repr(placed).startswith("Mosaic(pass, 4 of 4 fields")
    assert all(pair["used"] for pair in placed.metrics["pairs"] if pair["share"] > 0.1)
    turns = [entry["turn_degrees"] for entry in placed.metrics["images"]]
    assert abs(sum(turns)) < 0.05
    assert all(entry["moved_px"] < 12 for entry in placed.metrics["images"])


def test_without_a_word_the_places_are_searched() -> None:
    assert off(rf.register_mosaic(fields())) < 0.3


def test_a_blank_field_is_named_and_not_placed() -> None:
    found = rf.register_mosaic(fields(blank=3), layout=STATED)
    assert [result is None for result in found.results] == [False, False, False, True]
    assert found.verdict == "warn"
    assert "shows nothing there" in found.metrics["images"][3]["reasons"][0]
    with pytest.raises(ValueError, match="got d: overlaps no other field"):
        found["d"]


def test_shifts_alone_turn_nothing() -> None:
    found = rf.register_mosaic(fields(turn=0.0), layout=STATED, transform="translation")
    assert all(torch.equal(r.affine.matrix[:2, :2], torch.eye(2, dtype=torch.float64)) for r in found.results)  # type: ignore[union-attr]
    assert off(found, turn=0.0) < 0.3


def test_a_wrong_overlap_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from regframe.mosaic.links import Finder

    real = Finder.pair

    def lying(self: Finder, a: int, b: int, at: Any, reach: int) -> Any:
        found = real(self, a, b, at, reach)
        if (a, b) == (0, 1) and found is not None:
            matrix = found.matrix.copy()
            matrix[0, 2] += 30
            return dataclasses.replace(found, matrix=matrix)
        return found

    monkeypatch.setattr(Finder, "pair", lying)
    found = rf.register_mosaic(fields(), layout=STATED)
    bad = next(pair for pair in found.metrics["pairs"] if (pair["fixed"], pair["moving"]) == ("a", "b"))
    assert not bad["used"]
    assert off(found) < 0.5
    assert "contradicts the others" in found.metrics["images"][0]["reasons"][0]


def test_fields_that_share_nothing_match_nowhere() -> None:
    one, other = (tissue(seed)[:150, :60] for seed in (5, 6))
    found = overlap.match(one, other, (-20, -40), (20, 40))
    assert found is None or found.confidence < 0.1


# ---- what says where they lie -------------------------------------------------------------------------------------------


def written(folder: Path, images: list[rf.Image], stage: tuple[float, float] | None = None) -> list[Path]:
    """The fields as OME-TIFF of 0.5 µm, with the stage's positions in the directions of ``stage`` (y, x) if wanted."""
    paths = []
    for image in images:
        metadata: dict[str, Any] = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5,
                                    "PhysicalSizeYUnit": "µm"}  # fmt: skip
        if stage is not None:
            y, x = (0.5 * p * s + 1000 for p, s in zip(STATED[image.name], stage, strict=True))
            metadata["Plane"] = {
                "PositionX": [x / 1000],
                "PositionXUnit": ["mm"],
                "PositionY": [y],
                "PositionYUnit": ["µm"],
            }
        paths.append(folder / f"{image.name}.ome.tif")
        tifffile.imwrite(paths[-1], image.data[0].numpy(), ome=True, metadata=metadata)
    return paths


@pytest.mark.parametrize("stage", [(1.0, 1.0), (-1.0, 1.0)], ids=["as pixels", "y upwards, as ASHLAR reads it"])
def test_the_stage_of_ome_is_read_in_its_direction(tmp_path: Path, stage: tuple[float, float]) -> None:
    found = rf.register_mosaic(written(tmp_path, fields(), stage))
    assert found.metrics["layout"] == {
        "source": "the stage's positions in the files", "directions": "" if stage[0] > 0 else "y turned round",
    }  # fmt: skip
    assert found.canvas.unit == "µm"
    assert off(found, scale=0.5) < 0.3


def test_wide_overlaps_along_one_axis_do_not_tell_the_other_ones_direction(tmp_path: Path) -> None:
    """Two rows of three fields: the widest overlaps are all of neighbours in a row, which fit whichever way y runs."""
    paths, high, wide, down, along = [], 110, 80, 86, 50
    for k in range(6):
        y, x = (k // 3) * down, (k % 3) * along
        sides = {f"PhysicalSize{axis}": 0.5 for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        stage = {"PositionX": [x / 2], "PositionXUnit": ["µm"], "PositionY": [y / 2], "PositionYUnit": ["µm"]}
        metadata = {"axes": "YX", **sides, "Plane": stage}
        paths.append(tmp_path / f"f{k}.ome.tif")
        pixels = tissue()[y : y + high, x : x + wide].astype(np.uint16)
        tifffile.imwrite(paths[-1], pixels, ome=True, metadata=metadata)
    found = rf.register_mosaic(paths)
    assert found.metrics["layout"] == {"source": "the stage's positions in the files", "directions": ""}
    assert found.metrics["n_placed"] == 6


def test_origins_of_ome_zarr_are_places_as_multiview_stitcher_writes_them(tmp_path: Path) -> None:
    paths = []
    for image in fields():
        grid = rf.Grid(image.grid.shape, 0.5, tuple(0.5 * p for p in STATED[image.name]), "µm")  # type: ignore[arg-type]
        paths.append(tmp_path / f"{image.name}.ome.zarr")
        rf.find_adapter(image).save(image.replace(grid=grid), paths[-1])
    found = rf.register_mosaic(paths)
    assert found.metrics["layout"]["source"] == "the origins in the files"
    assert off(found, scale=0.5) < 0.3


FIJI = """# Define the number of dimensions we are working on
dim = {dim}

# Define the image coordinates
a.ome.tif; ; (0.0, 0.0{z})
b.ome.tif; ; (92.0, 0.0{z})
c.ome.tif; ; (0.0, 92.0{z})
d.ome.tif; ; (9.2E1, 92.0{z})
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TileConfiguration.txt", FIJI.format(dim=2, z="")),
        ("TileConfiguration.registered.txt", FIJI.format(dim=3, z=", 0.0")),
        ("places.csv", "name,y_um,x_um\na,0,0\nb,0,46\nc,46,0\nd,46,46\n"),
        ("places.tsv", "file\ty_px\tx_px\na.ome.tif\t0\t0\nb.ome.tif\t0\t92\nc.ome.tif\t92\t0\nd.ome.tif\t92\t92\n"),
    ],
)
def test_files_of_other_programs(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = layouts.read_layout(tmp_path / name)
    files = [f"/x/{n}.ome.tif" for n in NAMES]
    places = layouts.in_pixels(found.of(list(NAMES), files), found.unit, (0.5, 0.5), "µm")
    assert np.array_equal(places, [STATED[n] for n in NAMES])


def test_series_of_one_file_in_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "TileConfiguration.txt"
    path.write_text("dim = 2\nmultiseries = true\nx.czi; 0; (0, 0)\nx.czi; 1; (92.5, -1)\n")
    assert layouts.read_layout(path).of(["x#0", "x#1"], ["/d/x.czi#0", "/d/x.czi#1"]) == [(0, 0), (-1, 92.5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dim = 2\na.tif; ; (0, 0, 0)\n", "wanted 'name; ; .x, y.'"),
        ("dim = 2\na.tif; ; (0, nonsense)\n", "wanted 'name; ; .x, y.'"),
        ("dim = 2\n", "got none"),
        ("name,y,x\na,0,inf\n", "wanted a number as a position"),
        ("name,y,x\na,0,0\na,1,1\n", "each field once"),
        ("name,z\na,0\n", "columns name, y, x"),
        ("name,y_um,x_px\na,0,0\n", "one unit"),
        ("", "got nothing"),
    ],
)
def test_a_layout_that_says_nothing_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        layouts.read_layout(path)


def test_bad_input_is_one_sentence() -> None:
    images = fields()
    with pytest.raises(ValueError, match="at least two fields, got 1"):
        rf.register_mosaic(images[:1])
    with pytest.raises(ValueError, match="one pixel size"):
        rf.register_mosaic([images[0], *fields(spacing=2.0)[1:]])
    with pytest.raises(ValueError, match="got e, f …; use their names"):
        rf.register_mosaic(images, layout={"e": (0, 0), "f": (0, 9)})
    with pytest.raises(ValueError, match="one position for each of 4 fields, got 2"):
        rf.register_mosaic(images, layout=[(0, 0), (1, 1)])
    with pytest.raises(ValueError, match="up to 30 are searched"):
        rf.register_mosaic(images * 8, names=[str(k) for k in range(32)], layout="none")
    with pytest.raises(ValueError, match="rigid or translation"):
        rf.register_mosaic(images, transform="affine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the same channels"):
        rf.register_mosaic([images[0], images[1].replace(channels=("FITC",))])


# ---- slide and folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seam", ["feathered", "nearest"])
def test_the_slide_shows_the_tissue(tmp_path: Path, placed: rf.Mosaic, seam: Any) -> None:
    path = placed.write_slide(tmp_path / "m.ome.zarr", images=fields(), seam=seam, workers=1)
    image = rf.open(path)
    assert image.data.dtype == torch.uint16
    assert image.grid == placed.canvas
    seen, lit = image.data[0].numpy().astype(float), image.data[0].numpy() > 0
    pose = placed["a"].affine.matrix.numpy() @ np.linalg.inv(poses()[0])  # from the tissue to the mosaic
    back = np.linalg.inv(pose)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in seen.shape), indexing="ij"), -1).reshape(-1, 2)
    at = at + np.array(placed.canvas.origin)
    true = map_coordinates(tissue(), (at @ back[:2, :2].T + back[:2, 2]).T, order=3).reshape(seen.shape)
    assert np.corrcoef(seen[lit], true[lit])[0, 1] > 0.98
    assert lit.mean() > 0.9


def test_pixels_do_not_depend_on_how_the_slide_is_cut(tmp_path: Path, placed: rf.Mosaic) -> None:
    plan = mosaics.planned(placed, tmp_path / "m.ome.zarr", fields())
    whole = plan.image().data[0].numpy()
    assert np.array_equal(plan.pixels((slice(40, 97), slice(51, 140)))[0], whole[40:97, 51:140])


def test_an_uneven_lamp_is_divided_out(tmp_path: Path, placed: rf.Mosaic) -> None:
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    light = 1.0 - 0.25 * (rows**2 + columns**2) / 2 + 0.1 * rows
    images = [i.replace(data=(i.data[0] * torch.from_numpy(light)).round().to(torch.uint16)[None]) for i in fields()]
    plan = mosaics.planned(placed, tmp_path / "m.ome.zarr", images, flat_field=True)
    read: Any = plan.fields[0].pyramid.levels[0].read
    told = read.flat.over((SIZE, SIZE), (slice(0, SIZE), slice(0, SIZE)))[0]
    assert np.std(told / (light / light.mean())) < 0.5 * np.std(light / light.mean())


def test_the_light_is_told_without_fields_that_have_no_place(tmp_path: Path, placed: rf.Mosaic) -> None:
    less = dataclasses.replace(placed, results=(None, *placed.results[1:]))
    assert len(mosaics.planned(less, tmp_path / "m.ome.zarr", fields(), flat_field=True).fields) == 3


def test_the_command_goes_on_and_its_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    written(tmp_path / "in", fields(blank=3), (-1.0, 1.0))
    out = tmp_path / "OUT"
    call = ["mosaic", str(tmp_path / "in"), "-o", str(out), "--workers", "1", "--json"]
    first = CliRunner().invoke(main, call)
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert (told["verdict"], told["n_placed"], told["kept"]) == ("warn", 3, False)
    again = rf.load_mosaic(out)
    assert again.names == tuple(f"{n}" for n in NAMES)
    assert "fields.csv" in {p.name for p in out.iterdir()}
    assert "d.ome" not in (out / mosaics.REGISTERED).read_text()
    assert rf.open(out / mosaics.SLIDE).grid == again.canvas
    assert "d" in (out / "report.html").read_text()
    bytes_before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    second = CliRunner().invoke(main, call)
    assert json.loads(second.stdout)["kept"]
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == bytes_before
    other = CliRunner().invoke(main, [*call, "--seam", "nearest"])
    assert other.exit_code == 2
    assert "name another output" in other.output
    (tmp_path / "cells.csv").write_text("y,x\n10,20\n")
    moved = CliRunner().invoke(
        main, ["apply", "points", str(out / "fields" / "000_a"), str(tmp_path / "cells.csv"), "-o",
               str(tmp_path / "there.csv"), "--to", "fixed"],
    )  # fmt: skip
    assert moved.exit_code == 0, moved.output


def test_one_file_that_holds_all_fields(tmp_path: Path) -> None:
    path = tmp_path / "all.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for image in fields():
            y, x = STATED[image.name]
            plane = {"PositionX": [x], "PositionY": [y]}
            file.write(
                image.data[0].numpy(),
                metadata={"axes": "YX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "Plane": plane},
            )
    found = rf.register_mosaic([path])
    assert found.names == ("all#0", "all#1", "all#2", "all#3")
    assert off(found) < 0.3
    assert found.write_slide(tmp_path / "m.ome.tif", workers=1).is_file()


def test_a_folder_of_something_else_is_no_mosaic(tmp_path: Path, placed: rf.Mosaic) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        rf.load_mosaic(tmp_path / "none")
    with pytest.raises(ValueError, match="name its output"):
        rf.load_mosaic(tmp_path)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a mosaic"):
        placed.save(tmp_path, overwrite=True)
    placed.save(tmp_path / "M")
    assert rf.load_mosaic(tmp_path / "M").canvas == placed.canvas
