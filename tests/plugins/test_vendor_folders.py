"""Output folders of instruments: what is found, chosen and said; carried whole; refused in a sentence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import regframe_vendor
import torch
import vendor_folders as made
from click.testing import CliRunner, Result
from regframe_vendor import VendorAdapter
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe import plugins
from regframe.cli import main
from regframe.testing import AdapterTests

Maker = Callable[[Path], Path]

FOLDERS: dict[str, Maker] = {
    "xenium 1": lambda f: made.xenium(f, "xenium-1.9.0.1", ".csv.gz"),
    "xenium 2": lambda f: made.xenium(f, "xenium-2.0.0.10"),
    "xenium 3": made.xenium,
    "xenium 4": lambda f: made.xenium(f, "xenium-4.0.0.3"),
    "xenium ranger": lambda f: made.xenium(f, "xeniumranger-3.0.1.1", ".csv"),
    "merscope": made.merscope,
    "merscope, first": lambda f: made.merscope(f, "", "microns_to_mosaic_pixel_transform.csv"),
    "cosmx": made.cosmx,
    "cosmx, first": lambda f: made.cosmx(f, "Lung5", mm=False, separator="-"),
    "visium 1": lambda f: made.visium(f, "tissue_positions_list.csv"),
    "visium 2": made.visium,
    "visium, Parquet": lambda f: made.visium(f, "tissue_positions.parquet"),
    "visium hd": made.visium_hd,
}
"""Every layout and version that is known."""
POSITIONS = {
    "xenium": ("x_centroid", "y_centroid", 1.0), "merscope": ("center_x", "center_y", 1.0),
    "cosmx": ("CenterX_global_px", "CenterY_global_px", 0.12028),
    "visium": ("pxl_col_in_fullres", "pxl_row_in_fullres", made.MPP),
}  # fmt: skip
"""The maker's columns of the cells or spots, x and y, and the µm in one of their units."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> Iterator[None]:
    """The adapter, also in an environment that was installed before there was its entry point."""
    if "vendor" in {entry.name for entry in plugins.adapters()}:
        yield
        return
    points = (*plugins._entry_points(), EntryPoint("vendor", "regframe_vendor", "regframe"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_entry_points", lambda: points)
        plugins.refresh()
        yield
    plugins.refresh()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outs").mkdir()
    return tmp_path / "outs"


def run(*args: Any, code: int = 0) -> Result:
    outcome = CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == code, outcome.output + outcome.stderr
    return outcome


def as_written(path: Path) -> pd.DataFrame:
    """A table as it stands, words where it is text."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    header = None if path.name.endswith("_list.csv") else 0
    return pd.read_csv(path, dtype=str, header=header, keep_default_na=False)


def aligned(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    return frame[["aligned_x_um", "aligned_y_um"]].astype(float).to_numpy()


# ---- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_cells_are_read_in_micrometres(name: str, folder: Path) -> None:
    source = FOLDERS[name](folder)
    points = rf.open(source)
    assert isinstance(points, rf.PointSet)
    assert type(plugins.find_adapter(source)) is VendorAdapter
    x, y, scale = POSITIONS[name.split()[0].rstrip(",")]
    table = {n: np.asarray(points.table[n]).astype(float) for n in (x, y)}
    assert points.unit == "µm"
    assert points.coords.numpy() == pytest.approx(np.stack([table[y], table[x]], axis=1) * scale, rel=2e-4)
    assert list(points.table)[-2:] == ["aligned_x_um", "aligned_y_um"]
    assert points.columns == ("aligned_y_um", "aligned_x_um")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_table_goes_through_the_map_and_back_whole(name: str, folder: Path, tmp_path: Path) -> None:
    source = FOLDERS[name](folder)
    adapter = VendorAdapter()
    opened = adapter.open(source)
    original = as_written(next(p for p in source.rglob("*") if opened.name.endswith(f"/{p.name}") and _read(p, name)))
    turn = torch.tensor([[0.8, -0.6, 30.0], [0.6, 0.8, -7.0], [0, 0, 1]], dtype=torch.float64)
    there = rf.Affine(turn, "µm", "µm")
    moved = adapter.apply(source, there)
    expected = there.points(opened.coords).numpy()[:, ::-1]
    for end in (".csv", ".parquet", ".csv.gz"):
        path = tmp_path / f"moved{end}"
        adapter.save(moved, path)
        written = as_written(path)
        assert aligned(written) == pytest.approx(expected, abs=1e-12), "columns of µm, exact"
        assert len(written.columns) == len(original.columns) + 2
        for k, column in enumerate(original.columns):  # ids and the rest, in their order
            left, right = original[column], written.iloc[:, k]
            same = left.astype(str).tolist() == right.astype(str).tolist()
            assert same or left.astype(float).tolist() == right.astype(float).tolist(), column
        again = adapter.open(path)  # by the aligned columns, not by the maker's
        assert again.coords.numpy() == pytest.approx(moved.coords.numpy(), abs=0)
        back = adapter.apply(path, there.inverse())
        assert back.coords.numpy() == pytest.approx(opened.coords.numpy(), abs=1e-9), "round trip"


def _read(path: Path, name: str) -> bool:
    return "square_008um" in str(path) if "hd" in name else True


def test_types_of_parquet_stay(folder: Path, tmp_path: Path) -> None:
    adapter = VendorAdapter(use="transcripts")
    source = made.xenium(folder)
    before = pd.read_parquet(source / "transcripts.parquet")
    adapter.save(adapter.apply(source, rf.Affine.identity(2, "µm")), tmp_path / "out.parquet")
    after = pd.read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(after[before.columns], before)
    assert aligned(after).tolist() == before[["x_location", "y_location"]].to_numpy().tolist()


@pytest.mark.parametrize(
    ("name", "options", "file", "spacing", "origin"),
    [
        ("xenium 1", {}, "morphology_focus.ome.tif", 1.0, 0.0),
        ("xenium 1", {"image": "mip"}, "morphology_mip.ome.tif", 1.0, 0.0),
        ("xenium 2", {}, "morphology_focus_0000.ome.tif", 1.0, 0.0),
        ("xenium 3", {"image": "morphology_focus_0001"}, "morphology_focus_0001.ome.tif", 1.0, 0.0),
        ("xenium 4", {}, "ch0000_dapi.ome.tif", 1.0, 0.0),
        ("merscope", {}, "mosaic_DAPI_z3.tif", 0.5, (-20.0, 10.0)),
        ("merscope, first", {"image": "Cellbound1", "z": 6}, "mosaic_Cellbound1_z6.tif", 0.5, (-20.0, 10.0)),
        ("visium 1", {}, "tissue_hires_image.png", 10 * made.MPP, 4.5 * made.MPP),
        ("visium 2", {"image": "lowres"}, "tissue_lowres_image.png", 50 * made.MPP, 24.5 * made.MPP),
        ("visium hd", {"bin": 16}, "tissue_hires_image.png", 10 * made.MPP, 4.5 * made.MPP),
    ],
)
def test_pictures_lie_in_the_frame_of_the_cells(
    name: str, options: dict[str, Any], file: str, spacing: float, origin: Any, folder: Path
) -> None:
    source = FOLDERS[name](folder)
    adapter = VendorAdapter(use="image", **options)
    image, pyramid = adapter.open(source), adapter.pyramid(source)
    assert isinstance(image, rf.Image)
    assert pyramid is not None
    assert image.name == file
    assert image.grid.unit == "µm"
    assert image.grid.spacing == pytest.approx((spacing, spacing), rel=1e-3)
    assert image.grid.origin == pytest.approx(np.broadcast_to(origin, 2), abs=2e-3)
    assert pyramid.grid == image.grid
    assert any("use=image" in note and file in note for note in pyramid.notes)


def test_a_stack_gives_its_middle_plane(folder: Path) -> None:
    source = made.xenium(folder)
    with pytest.warns(UserWarning, match="no spacing along z"):
        image = VendorAdapter(use="image", image="stack").open(source)
    assert isinstance(image, rf.Image)
    assert image.data[0].numpy().tolist() == made.picture((3, 150, 200))[1].tolist()


def test_spots_off_the_tissue_do_not_count(folder: Path) -> None:
    points = rf.open(made.visium(folder))
    assert isinstance(points, rf.PointSet)
    assert points.weights is not None
    assert points.weights.tolist() == made.array().in_tissue.tolist()


def test_bins_and_transcripts_are_chosen(folder: Path, tmp_path: Path) -> None:
    made.visium_hd(folder)
    for size, n in ((2, 8000), (8, 500), (16, 120)):
        for word in (size, f"{size:03}um", f"square_{size:03}um"):
            assert len(rf.open(folder, bin=word)) == n  # type: ignore[arg-type]
    other = tmp_path / "other"
    other.mkdir()
    transcripts = rf.open(made.merscope(other), use="transcripts")
    assert isinstance(transcripts, rf.PointSet)
    assert transcripts.coords.numpy() == pytest.approx(made.positions()[:, ::-1] + [-1, 1], abs=1e-9)


def test_pixel_sizes_are_measured_where_the_folder_holds_lengths(folder: Path, tmp_path: Path) -> None:
    made.cosmx(folder, mpp=0.18)
    assert "0.18 µm per pixel, measured" in " ".join(VendorAdapter().notes(folder))
    spots = made.visium(tmp_path / "cytassist", spot_diameter_fullres=2 * 65 / made.MPP)
    said = " ".join(VendorAdapter().notes(spots))
    assert "from spots 100 µm apart (spot_diameter_fullres would give 0.25)" in said
    (spots / "spatial" / "tissue_positions.csv").unlink()
    image = VendorAdapter(use="image").open(spots)
    assert isinstance(image, rf.Image)
    assert image.grid.spacing == pytest.approx((2.5, 2.5))  # the diameter alone is left


def test_folders_around_the_folder(folder: Path, tmp_path: Path) -> None:
    made.visium(folder)
    made.merscope(tmp_path / "region_0")
    made.cosmx(tmp_path / "slide" / "flatFiles" / "S1", "S1")
    assert len(rf.open(tmp_path, vendor="visium")) == 120  # type: ignore[arg-type]
    assert len(rf.open(folder / "spatial")) == 120  # type: ignore[arg-type]
    assert len(rf.open(tmp_path, vendor="merscope")) == 60  # type: ignore[arg-type]
    assert len(rf.open(tmp_path / "slide")) == 60  # type: ignore[arg-type]
    made.xenium(tmp_path / "x")
    assert len(rf.open(tmp_path / "x" / "experiment.xenium")) == 60  # type: ignore[arg-type]


# ---- what is refused, in a sentence -----------------------------------------------------------------------------------


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def outside(path: Path) -> None:
    """Replace a file by a link to the same content outside of its folder."""
    target = path.parents[1] / f"elsewhere-{path.name}"
    path.rename(target)
    path.symlink_to(target)


MATRIX = "images/micron_to_mosaic_pixel_transform.csv"
SCALES = "spatial/scalefactors_json.json"

WRONG: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any], str]] = {
    "version": ("xenium 3", lambda f: edit(f / "experiment.xenium", analysis_sw_version="xenium-9.1.0"), {},
                r"wanted a folder of Xenium .* 1 to 4, got the version 'xenium-9.1.0' .*override=true"),
    "no pixel size": ("xenium 3", lambda f: (f / "experiment.xenium").write_text('{"analysis_sw_version": "xenium-3.0"}'),
                      {}, r"wanted 'pixel_size' in .*, got none; copy"),
    "odd pixel size": ("xenium 3", lambda f: edit(f / "experiment.xenium", pixel_size="0.2; rm"), {},
                       r"wanted micrometres per pixel from 0.001 to 1000 as 'pixel_size' .*, got '0.2; rm'"),
    "negative pixel size": ("xenium 3", lambda f: edit(f / "experiment.xenium", pixel_size=-1), {}, r"got '-1'; copy"),
    "no manifest": ("xenium 3", lambda f: drop(f / "experiment.xenium"), {},
                    r"wanted experiment.xenium in .* for the pixel size and the version, got none of them; copy the folder"),
    "no JSON": ("xenium 3", lambda f: (f / "experiment.xenium").write_text("{"), {}, r"wanted JSON in .*, got something else"),
    "a list": ("xenium 3", lambda f: (f / "experiment.xenium").write_text("[1]"), {}, r"wanted a JSON object .* got list"),
    "deep JSON": ("xenium 3", lambda f: (f / "experiment.xenium").write_text("[" * 200_000), {}, r"wanted JSON in"),
    "huge JSON": ("xenium 3", lambda f: (f / "experiment.xenium").write_bytes(b" " * ((16 << 20) + 1)), {},
                  r"wanted at most 16 MiB in"),
    "no text": ("xenium 3", lambda f: (f / "experiment.xenium").write_bytes(b"\xff\xfe{"), {}, r"wanted text in"),
    "a path upwards": ("xenium 1", lambda f: edit(f / "experiment.xenium", images={"morphology_focus_filepath": "../x.tif"}),
                       {}, r"wanted a file inside .*, got '../x.tif', which leads out of it; copy"),
    "a path of its own": ("xenium 1", lambda f: edit(f / "experiment.xenium", images={"morphology_mip_filepath": "/etc/x"}),
                          {}, r"wanted a file inside .*, got '/etc/x', which leads out of it"),
    "a link outside": ("xenium 3", lambda f: outside(f / "cells.parquet"), {},
                       r"wanted a file inside .*, got 'cells.parquet', which leads out of it"),
    "no cells": ("xenium 3", lambda f: drop(f / "cells.parquet"), {"use": "cells"},
                 r"wanted cells of the Xenium folder .*, got neither cells.parquet nor cells.csv.gz; .*it has image, transcr"),
    "no image": ("xenium 1", lambda f: [drop(p) for p in f.glob("*.tif")], {"use": "image"},
                 r"wanted image of the Xenium folder .*, got no morphology_focus and no morphology"),
    "which image": ("xenium 3", lambda f: None, {"use": "image", "image": "he"},
                    r"wanted a picture of .* \(focus, morphology_focus_0001, stack\), got image='he'; name one"),
    "two pixel sizes": ("xenium 3", lambda f: edit(f / "experiment.xenium", pixel_size=0.2125), {"use": "image"},
                        r"wanted the 0.2125 µm per pixel of experiment.xenium in .*, got 1 µm; copy both anew"),
    "other columns": ("xenium 1", lambda f: pd.DataFrame({"id": [1], "a": [2.0]}).to_csv(f / "cells.csv.gz"), {},
                      r"wanted the columns x_centroid and y_centroid in .*, got , id, a; open it with the adapter cells"),
    "no table": ("xenium 3", lambda f: (f / "cells.parquet").write_bytes(b"PAR1" + b"\0" * 90), {},
                 r"wanted the columns x_centroid and y_centroid in .*, got no header"),
    "no matrix": ("merscope", lambda f: drop(f / MATRIX), {"use": "image"}, r"but no images/micron_to_mosaic_pixel_tr"),
    "odd matrix": ("merscope", lambda f: (f / MATRIX).write_text("1 2\n3 4\n"), {}, r"wanted 3 × 3 numbers in"),
    "oblique matrix": ("merscope", lambda f: (f / MATRIX).write_text("2 1 0\n-1 2 0\n0 0 1\n"), {},
                       r"wanted a matrix that scales µm to pixels and shifts them"),
    "mirrored matrix": ("merscope", lambda f: (f / MATRIX).write_text("-2 0 0\n0 2 0\n0 0 1\n"), {}, r"wanted a matrix that"),
    "which plane": ("merscope", lambda f: None, {"use": "image", "z": 2}, r"got no mosaic of plane 2; choose z out of 0, 3, 6"),
    "no pictures": ("cosmx", lambda f: None, {"use": "image"}, r"got a picture per field of view and none of the whole"),
    "which sample": ("cosmx", lambda f: made.cosmx(f, "S7"), {}, r"wanted one of S0, S7 of the CosMx folder .*region=NAME"),
    "first camera": ("cosmx, first", lambda f: (f / "Lung5-fov_positions_file.csv").write_text(
        "fov,x_global_px,y_global_px\n1,0,0\n2,5472,0\n3,5472,3648\n"), {}, r"first camera, got none; .*spacing=0.18"),
    "another pixel": ("cosmx", lambda f: None, {"spacing": 0.18}, r"wanted the 0.12028 µm per pixel .*, got spacing=0.18"),
    "no scales": ("visium 2", lambda f: drop(f / SCALES), {}, r"wanted spatial/scalefactors_json.json in .*, got none of them"),
    "no spots": ("visium 2", lambda f: drop(f / "spatial/tissue_positions.csv"), {"use": "spots"},
                 r"wanted cells of the Visium folder .*, got none of tissue_positions.parquet, .*it has image"),
    "no molecules": ("visium 2", lambda f: None, {"use": "transcripts"}, r"which this assay does not locate; take use=cells"),
    "odd scale": ("visium 2", lambda f: edit(f / SCALES, tissue_hires_scalef=math.inf), {}, r"wanted a scale factor from"),
    "on tissue": ("visium 1", lambda f: (f / "spatial/tissue_positions_list.csv").write_text("A-1,0,0,0,1,2\nB-1,0,x,2,3,4\n"),
                  {}, r"wanted a header|wanted "),
    "no bins": ("visium 2", lambda f: None, {"bin": 8}, r"wanted bins of 8 µm in .*, got a folder without binned_outputs"),
    "which bins": ("visium hd", lambda f: None, {"bin": 4}, r"wanted bins of 2, 8, 16 µm, which .*, got bin=4"),
    "two scales": ("visium hd", lambda f: edit(f / "binned_outputs/square_008um" / SCALES, microns_per_pixel=0.3), {},
                   r"wanted one pixel size in .*, got 0.3 µm as microns_per_pixel and 0.5 µm from the bins"),
}  # fmt: skip
"""What is wrong: the folder, how it is damaged, the options, the sentence."""


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_a_sentence(case: str, folder: Path) -> None:
    name, damage, options, sentence = WRONG[case]
    damage(FOLDERS[name](folder))
    with pytest.raises(ValueError, match=sentence) as caught:
        rf.open(folder, adapter="vendor", **options)
    text = str(caught.value)
    assert text.startswith("wanted ")
    assert ", got " in text
    assert "\n" not in text


def test_an_unknown_version_is_read_when_asked(folder: Path) -> None:
    made.xenium(folder, analysis_sw_version="xenium-9.1.0")
    assert len(rf.open(folder, override=True)) == 60  # type: ignore[arg-type]
    assert any("is not known" in note for note in VendorAdapter(override=True).notes(folder))


def test_a_folder_of_something_else(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("x")
    assert VendorAdapter().matches(folder) == 0
    with pytest.raises(
        ValueError, match=r"wanted a folder with the files of an instrument \(xenium: .*, got .* without; name"
    ):
        rf.open(folder, adapter="vendor")
    with pytest.raises(
        ValueError, match=r"wanted the output folder of an instrument, or a table with aligned_x_um .*the file"
    ):
        rf.open(folder / "notes.txt", adapter="vendor")
    with pytest.raises(ValueError, match=r"wanted the path of an instrument's output folder, got int"):
        rf.open(3, adapter="vendor")
    with pytest.raises(FileNotFoundError, match=r"wanted the output folder of an instrument, got .*gone"):
        VendorAdapter().open(tmp_path / "gone")
    made.visium(tmp_path / "two")
    made.cosmx(tmp_path / "two")
    with pytest.raises(ValueError, match=r"files of cosmx and visium; choose with vendor=NAME"):
        rf.open(tmp_path / "two")
    assert len(rf.open(tmp_path / "two", vendor="cosmx")) == 60  # type: ignore[arg-type]


def test_links_within_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    made.xenium(folder)
    made.visium(tmp_path / "other")
    (folder / "outs").symlink_to(tmp_path / "other")  # leads out: not looked into
    (folder / "data").mkdir()
    (folder / "cells.parquet").rename(folder / "data" / "c.parquet")
    (folder / "cells.parquet").symlink_to("data/c.parquet")
    assert len(rf.open(folder)) == 60  # type: ignore[arg-type]


# ---- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("xenium 3", ["cells.parquet (use=cells) is read", "transcripts.parquet (use=transcripts)",
                      "focus, morphology_focus_0001", "1 µm per pixel of its pictures"]),
        ("merscope", ["cell_metadata.csv (use=cells) is read", "DAPI, Cellbound1", "of plane 3, of 0.5 µm per pixel", "z=0, 6"]),
        ("cosmx", ["S0_metadata_file.csv.gz (use=cells) is read", "0.12028 µm per pixel, measured", "points up"]),
        ("visium 1", ["tissue_positions_list.csv (use=cells) is read", "hires, lowres", "from spots 100 µm apart"]),
        ("visium hd", ["square_008um/spatial/tissue_positions.parquet (use=cells) is read", "bin=2 or 16 takes others",
                       "0.5 µm per pixel of the full image, as scalefactors_json.json states"]),
    ],
)  # fmt: skip
def test_info_says_what_there_is(name: str, said: list[str], folder: Path) -> None:
    source = FOLDERS[name](folder)
    shown = run("info", source).stdout
    found = json.loads(run("info", source, "--json").stdout)
    assert found["unit"] == "µm"
    assert found["kind"] == "points"
    for part in said:
        assert part in shown
        assert any(part in note for note in found["notes"])


def test_from_folder_to_aligned_table(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of a Xenium folder onto an image of the same cells, turned by 20° and shifted."""
    generator = np.random.default_rng(4)
    middles = generator.uniform([20, 20], [180, 130], (9, 2))
    xy = np.concatenate(
        [generator.normal(m, s, (50, 2)) for m, s in zip(middles, generator.uniform(3, 14, 9), strict=True)]
    )
    xy = xy[(xy > 5).all(axis=1) & (xy < [195, 145]).all(axis=1)].round(4)
    monkeypatch.setattr(made, "positions", lambda: xy)
    source = made.xenium(folder)
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    truth = xy @ np.array([[cos, sin], [-sin, cos]]) + [70, 20]
    drawn = np.zeros((120, 145))
    np.add.at(drawn, tuple((truth / 2).round().astype(int).T[::-1]), 1)
    smooth = gaussian_filter(drawn, 0.8)
    made.write_ome(tmp_path / "he.ome.tif", (255 * smooth / smooth.max()).astype(np.uint8), 2.0)
    out, table = tmp_path / "run", tmp_path / "aligned.csv"
    outcome = run("register", tmp_path / "he.ome.tif", source, "-o", out, "--transform", "rigid", "--save-warped")
    assert (
        "moving: outs is a folder of Xenium, xenium-3.1.0.0: cells.parquet (use=cells) is read, in µm" in outcome.stderr
    )
    run("apply", "points", out, source, "-o", table, "--to", "fixed")
    written = pd.read_csv(table)
    assert np.hypot(*(aligned(written) - truth).T).max() < 1  # µm, half a pixel of the image
    cells = pd.read_parquet(source / "cells.parquet")
    pd.testing.assert_frame_equal(written[cells.columns], cells, check_dtype=False)
    assert list(written.columns[-5:]) == [
        "aligned_x_um",
        "aligned_y_um",
        "match_probability",
        "position_sd",
        "in_canvas",
    ]
    assert aligned(pd.read_csv(out / "warped.csv")) == pytest.approx(aligned(written), abs=0)
    run("apply", "points", out, table, "-o", tmp_path / "back.csv", "--to", "moving")
    assert aligned(pd.read_csv(tmp_path / "back.csv")) == pytest.approx(xy, abs=1e-9)
    run(
        "apply",
        "points",
        out,
        source,
        "-o",
        tmp_path / "rna.parquet",
        "--to",
        "fixed",
        "--adapter-set",
        "use=transcripts",
    )
    assert "feature_name" in pd.read_parquet(tmp_path / "rna.parquet")
    wrong = run(
        "apply", "points", out, source, "-o", tmp_path / "no.csv", "--to", "fixed", "--adapter-set", "use=image", code=2
    )
    assert "got an image" in wrong.stderr
    assert not run("register", tmp_path / "he.ome.tif", tmp_path, "-o", tmp_path / "r2", code=2).stdout


# ---- counts, and the offset of bins ---------------------------------------------------------------------------------------


def test_the_offset_of_bins_is_measured_and_mended(folder: Path) -> None:
    """Transcripts diffuse around the nuclei of a made H&E, and every bin is said to lie 3 µm below and 5 µm left of its place."""
    off = np.array([3.0, -5.0])
    picture, frame, sums = made.counted_tissue(off)
    made.write_bins(folder, frame, sums)
    bins = rf.open(folder, bin=2, counts=True)
    assert isinstance(bins, rf.PointSet)
    assert bins.weights is not None
    assert bins.weights.tolist() == sums.tolist()
    he = rf.Image.from_array(picture, "cyx", 1.0, unit="µm", channels=("red", "green", "blue"))
    found = regframe_vendor.offset(folder, he)
    assert found.shift == pytest.approx(off, abs=0.5)  # µm
    assert abs(found.turn) < 0.2
    mended = VendorAdapter(bin=2).apply(folder, found.result.transform)
    assert mended.coords.numpy() == pytest.approx(bins.coords.numpy() + off, abs=1)


def test_counts_that_are_none(folder: Path) -> None:
    made.visium_hd(folder, (8,))
    with pytest.raises(
        ValueError, match=r"wanted a matrix of counts by barcode in .* for counts=true, got none; copy filtered"
    ):
        rf.open(folder, counts=True)
    matrix = folder / "binned_outputs/square_008um/filtered_feature_bc_matrix.h5"
    matrix.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"wanted a matrix of counts \(10x HDF5\) in .*, got something else"):
        rf.open(folder, counts=True)
    made.write_matrix(matrix, ["other-1"], np.array([2]))
    with pytest.raises(ValueError, match=r"wanted counts of the barcodes of .*, got none of them"):
        rf.open(folder, counts=True)


# ---- conformance ------------------------------------------------------------------------------------------------------


class VendorTests(AdapterTests):
    """The kit on a folder named like a table, so that what is saved under its name is one."""

    maker: ClassVar[str]
    bad_options: ClassVar[Any] = [
        {"use": "nuclei"}, {"vendor": "vizgen"}, {"bin": "wide"}, {"bin": 0}, {"z": -1}, {"level": -1}, {"spacing": -1},
        {"spacing": "wide"}, {"unit": "mm"}, {"spacing": 1, "unit": "px"}, {"override": "yes"},
    ]  # fmt: skip

    def make(self) -> VendorAdapter:
        return VendorAdapter()

    def sample(self, folder: Path) -> Path:
        path = folder / "outs.csv"
        path.mkdir()
        return FOLDERS[self.maker](path)


class TestSample(VendorTests):
    def sample(self, folder: Path) -> Path:
        return VendorAdapter.sample(folder)


class TestXenium(VendorTests):
    maker = "xenium 1"


class TestMerscope(VendorTests):
    maker = "merscope"


class TestCosMx(VendorTests):
    maker = "cosmx"


class TestVisium(VendorTests):
    maker = "visium 1"


class TestTranscripts(VendorTests):
    maker = "merscope"

    def make(self) -> VendorAdapter:
        return VendorAdapter(use="transcripts")


class TestHD(VendorTests):
    maker = "visium hd"

    def sample(self, folder: Path) -> Path:
        path = folder / "outs.parquet"
        path.mkdir()
        return made.visium_hd(path, (16,))


class TestPicture(VendorTests):
    """Pictures are written by the adapter ``image``, whose own kit tests that."""

    maker = "merscope"
    test_save_then_open: ClassVar[Any] = None
    test_save_what_was_moved: ClassVar[Any] = None

    def make(self) -> VendorAdapter:
        return VendorAdapter(use="image")
