"""Tables of cells as images and back: what is read, what is refused, what is kept, and how well they align."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

import regframe as rf

pytest.importorskip("regframe._host", reason="the host module is not built")
import regframe_cells as rc
from regframe_cells import CellsAdapter

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")


def scattered(n: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((100, -50), (400, 150), (n, 2))


def table(path: Path, coords: np.ndarray, header: str = "cell_id,x_um,y_um", **columns: list[Any]) -> Path:
    names = [header, *columns]
    rows = [[f"c{i}", x, y, *(c[i] for c in columns.values())] for i, (y, x) in enumerate(coords.tolist())]
    data = "".join(",".join(map(str, row)) + "\n" for row in [names, *rows]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def image(source: Any, **options: Any) -> rf.Image:
    out = rf.open(source, adapter="cells", **options)
    assert isinstance(out, rf.Image)
    return out


# ---- the raster ---------------------------------------------------------------------------------------------------


def test_a_table_opens_as_the_raster_of_its_density(tmp_path: Path) -> None:
    coords = scattered()
    path = table(tmp_path / "cells.csv.gz", coords)
    out = image(path, spacing=5, sigma=8)
    assert (out.channels, out.grid.unit, out.grid.spacing, out.name) == (("density",), "µm", (5.0, 5.0), "cells.csv.gz")
    assert out.data.dtype == torch.float32
    assert float(out.data.sum(dtype=torch.float64)) == pytest.approx(400, rel=1e-6)
    low, high = out.grid.corners()[0].numpy(), out.grid.corners()[-1].numpy()
    assert (low <= coords.min(axis=0) - 24).all()  # three standard deviations
    assert (high >= coords.max(axis=0) + 24).all()
    assert np.allclose(np.array(out.grid.origin) % 5, 0)
    at = np.stack(
        np.meshgrid(
            *[o + 5 * np.arange(n) for o, n in zip(out.grid.origin, out.grid.shape, strict=True)], indexing="ij"
        ),
        -1,
    )
    wanted = sum(np.exp(-0.5 * ((at - c) ** 2).sum(-1) / 64) for c in coords) * 25 / (2 * math.pi * 64)
    # the border cuts what lies beyond three standard deviations and the raster makes up for it
    assert np.abs(out.data[0].numpy() - wanted).max() < 0.002 * wanted.max()
    assert isinstance(rf.open(path), rf.PointSet)  # a bare text table stays points


def test_a_spacing_is_proposed_from_the_room_of_a_cell() -> None:
    lattice = np.stack(np.meshgrid(np.arange(60.0), np.arange(40.0), indexing="ij"), -1).reshape(-1, 2) * 12
    rng = np.random.default_rng(0)
    coords = np.concatenate([lattice + rng.uniform(-3, 3, lattice.shape), [[9000.0, 9000.0]]])  # and a stray cell
    spacing = rc.propose_spacing(coords)
    assert spacing == pytest.approx(12 / 3, rel=0.2)
    assert rc.propose_spacing(coords * 1000) == pytest.approx(1000 * spacing)
    out = image(coords[:-1], columns="y,x", unit="um")
    assert out.grid.spacing[0] == pytest.approx(4, rel=0.2)
    wide = rc.propose_spacing(np.concatenate([lattice, lattice + 1e5]))
    assert (1e5 / wide) ** 2 < 4.1e6  # a canvas that can be worked with


@settings(max_examples=25, deadline=None)
@given(
    shift=st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
    sigma=st.floats(0.3, 20),
    seed=st.integers(0, 5),
    n=st.integers(1, 30),
)
def test_mass_is_kept_and_whole_pixels_shift_the_raster(
    shift: tuple[int, int], sigma: float, seed: int, n: int
) -> None:
    coords = np.round(scattered(n, seed) * 8) / 8  # so that no sum is rounded
    options = {"columns": "y,x", "unit": "um", "spacing": 4, "sigma": sigma}
    one, other = image(coords, **options), image(coords + 4 * np.array(shift), **options)
    assert float(one.data.sum(dtype=torch.float64)) == pytest.approx(n, rel=1e-6)
    assert torch.equal(one.data, other.data)
    assert np.allclose(np.array(other.grid.origin) - np.array(one.grid.origin), 4 * np.array(shift))


def test_weights_types_scales_and_channels(tmp_path: Path) -> None:
    coords = scattered(60)
    words = ["T", "B", "", "NA"] * 15
    path = table(tmp_path / "c.csv", coords, area=list(range(60)), kind=words)
    total = lambda im: im.data.sum(dim=(1, 2), dtype=torch.float64).tolist()  # noqa: E731
    out = image(path, weights="area", spacing=5)
    assert total(out) == pytest.approx([sum(range(60))], rel=1e-6)
    out = image(path, weights="density,area", spacing=5)
    assert (out.channels, total(out)) == (("density", "area"), pytest.approx([60, 1770], rel=1e-6))
    out = image(path, types="kind", spacing=5, sigma="6,12")
    assert out.channels == ("B σ6 µm", "T σ6 µm", "B σ12 µm", "T σ12 µm")
    assert total(out) == pytest.approx([15] * 4, rel=1e-6)  # cells without a type are in no channel
    apart = image(path, types="kind", spacing=5, sigma=6, channels="T")
    assert apart.channels == ("T",)
    assert image(path, types="kind", spacing=5, sigma=6, channels=1).channels == ("T",)
    with pytest.raises(ValueError, match=r"wanted a channel of 'c.csv' by name or number \(B, T\), got 'Q'"):
        image(path, types="kind", spacing=5, channels="Q")
    alone = image(coords[[i for i, w in enumerate(words) if w == "T"]], columns="y,x", unit="um", spacing=5, sigma=6)
    assert float(alone.data.max()) == pytest.approx(float(apart.data.max()))


def test_genes_are_scaled_by_the_size_of_the_library(tmp_path: Path) -> None:
    coords = scattered(4)
    path = table(tmp_path / "c.csv", coords, area=[1.5, 2, 2, 2], A=[1, 10, 0, 0], B=[3, 30, 4, 0], C=[0, 0, 4, 0])
    out = image(path, genes="all", spacing=5)
    assert out.channels == ("A", "B", "C")  # counts: whole numbers; the area is none
    per_cell = (
        np.array([[0.25, 0.75, 0], [0.25, 0.75, 0], [0, 0.5, 0.5], [0, 0, 0]]) * 8
    )  # the median total of 4, 40, 8
    assert out.data.sum(dim=(1, 2)).numpy() == pytest.approx(per_cell.sum(axis=0), rel=1e-5)
    assert image(path, genes=["C", "A"], spacing=5).channels == ("C", "A")


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "unit"),
    [
        ("cell_id,x_centroid,y_centroid,transcript_counts", "µm"),
        ("transcript_id,cell_id,x_location,y_location,z_location,feature_name", "µm"),
        ("EntityID,fov,volume,center_x,center_y,min_x,max_x,min_y,max_y", "µm"),
        (",barcode_id,global_x,global_y,global_z,x,y,fov,gene", "µm"),
        ("fov,cell_ID,CenterX_local_px,CenterY_local_px,CenterX_global_px,CenterY_global_px", "px"),
        ("fov,cell_ID,x_local_px,y_local_px,x_global_px,y_global_px,z,target", "px"),
        ("cell,x,y", "px"),
        ("cell,X (mm),Y (mm)", "mm"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "frame"])
def test_layouts_of_instruments(tmp_path: Path, header: str, unit: str, kind: str) -> None:
    names = header.split(",")
    global_ = [n for n in names if "global" in n.lower()] or names
    x, y = (
        next(
            n
            for n in global_
            if n.lower().strip("(m) ").startswith((f"{a}_", f"center_{a}", f"global_{a}", f"center{a}"))
            or n.lower()[0] == a
        )
        for a in "xy"
    )
    rows = [[str(i + 10 * (n == x) + 20 * (n == y)) for n in names] for i in range(3)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    source: Any = path
    if kind == "frame":
        source = pytest.importorskip("pandas").read_csv(path)
    cells = rc.read_cells(source)
    assert cells.coords.tolist() == [[20, 10], [21, 11], [22, 12]]
    assert cells.unit == unit
    assert len(cells.table) == len(names)  # nothing is lost


@pytest.mark.parametrize("where", [(5e5, 5e5), (-5e5, 100.0), (300.0, 9e6)])
@pytest.mark.parametrize("how", [{}, {"spacing": 5}, {"field": "hull"}, {"types": "kind"}])
def test_a_stray_cell_does_not_make_giant_pixels(where: tuple[float, float], how: dict[str, Any]) -> None:
    pd = pytest.importorskip("pandas", reason="needs the extra tables")
    random = np.random.default_rng(4)
    frame = pd.DataFrame(random.uniform(0, 1000, (400, 2)), columns=["x_um", "y_um"]).assign(kind="a")
    plain = image(frame, **how)
    frame.loc[400] = [*where, "a"]
    with pytest.warns(UserWarning, match=r"1 of 401 cells of 'data frame' lie far from all others \(row 401 at x"):
        stray = image(frame, **how)
    assert stray.grid == plain.grid
    torch.testing.assert_close(stray.data, plain.data)
    assert (stray.weight is None) == (plain.weight is None)
    moved = rf.adapter("cells").apply(frame, rf.Affine.identity(2, "µm"))
    assert moved.coords[-1].tolist() == [where[1], where[0]]  # it is carried all the same
    frame.loc[400] = [1400.0, 1500.0, "a"]  # no stray: another piece, or a cell at the rim
    assert image(frame, **how).grid.extent[0] > plain.grid.extent[0]


def test_parquet_and_h5ad_are_sniffed_read_and_written_back(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    anndata = pytest.importorskip("anndata")
    pytest.importorskip("pyarrow")
    coords = scattered(50)
    frame = pandas.DataFrame(
        {"x_um": coords[:, 1], "y_um": coords[:, 0], "kind": pandas.Categorical(["T", "B"] * 25), "n": np.arange(50)},
        index=[f"c{i}" for i in range(50)],
    )
    frame.to_parquet(tmp_path / "c.parquet")
    adapter = rf.find_adapter(tmp_path / "c.parquet")
    assert adapter.name == "cells"
    assert image(frame, spacing=5).data.equal(image(tmp_path / "c.parquet", spacing=5).data)
    shift = rf.Affine(torch.tensor([[1.0, 0, 7], [0, 1, -3], [0, 0, 1]]), "µm", "µm")
    moved = adapter.apply(tmp_path / "c.parquet", shift)
    adapter.save(moved.replace(table={**moved.table, "new": np.arange(50.0)}), tmp_path / "m.parquet")
    back = pandas.read_parquet(tmp_path / "m.parquet")
    assert list(back.columns) == ["x_um", "y_um", "kind", "n", "new"]
    assert (back.index == frame.index).all()
    assert back["kind"].dtype == frame["kind"].dtype
    np.testing.assert_allclose(back[["y_um", "x_um"]], coords + np.array([7, -3]))
    np.testing.assert_array_equal(back["n"], frame["n"])

    counts = np.random.default_rng(0).poisson(3, (50, 4)).astype(np.float32)
    scipy_sparse = pytest.importorskip("scipy.sparse")
    data = anndata.AnnData(
        scipy_sparse.csr_matrix(counts), obs=frame[["kind", "n"]].copy(), obsm={"spatial": coords[:, ::-1]}
    )
    data.var_names = ["a", "b", "c", "d"]
    data.write_h5ad(tmp_path / "c.h5ad")
    adapter = rf.find_adapter(tmp_path / "c.h5ad", unit="µm")
    assert adapter.name == "cells"
    assert adapter.open(tmp_path / "c.h5ad").grid.unit == "µm"
    assert image(data, unit="um", genes="b,d", spacing=5).channels == ("b", "d")
    assert image(data, unit="um", types="kind", spacing=5).channels == ("B", "T")
    moved = adapter.apply(tmp_path / "c.h5ad", shift)
    adapter.save(moved.replace(table={**moved.table, "new": np.arange(50.0)}), tmp_path / "m.h5ad")
    back = anndata.read_h5ad(tmp_path / "m.h5ad")
    np.testing.assert_allclose(back.obsm["spatial_aligned"][:, ::-1], coords + np.array([7, -3]))
    np.testing.assert_array_equal(back.obsm["spatial"], data.obsm["spatial"])
    assert list(back.obs.columns) == ["kind", "n", "new"]
    np.testing.assert_array_equal(back.X.toarray(), counts)
    np.testing.assert_allclose(data.obsm["spatial"][:, ::-1], coords)  # the source is as it was
    adapter.save(moved, tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().startswith("obs_names,kind,n,y_um,x_um\nc0,T,0,")
    with pytest.raises(ValueError, match="wanted genes of 'AnnData', got q"):
        image(data, genes="q", spacing=5)
    centred = data.copy()
    centred.X = counts - 3
    with pytest.raises(ValueError, match="wanted counts of genes in 'AnnData', got negative ones"):
        image(centred, genes="all", spacing=5)
    with pytest.raises(ValueError, match="wanted cells read from an AnnData"):
        adapter.save(rc.read_cells(frame), tmp_path / "x.h5ad")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_never_states_a_unit_that_is_not_its_own(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    text = "cell_id,x_centroid,y_centroid,transcript_counts\na,10,20,3\nb,30,40,5\n"  # Xenium: µm
    (tmp_path / "cells.csv").write_text(text)
    half = rf.Affine(torch.diag(torch.tensor([0.5, 0.5, 1.0])), "µm", "px")
    adapter = rf.adapter("cells")
    adapter.save(adapter.apply(tmp_path / "cells.csv", half), tmp_path / f"moved.{suffix}")
    moved = rc.read_cells(tmp_path / f"moved.{suffix}")
    assert (moved.unit, moved.coords.tolist()) == ("px", [[10, 5], [20, 15]])
    assert list(moved.table) == ["cell_id", "x_centroid_px", "y_centroid_px", "transcript_counts"]
    adapter.save(adapter.apply(moved, half.inverse()), tmp_path / f"back.{suffix}")
    back = rc.read_cells(tmp_path / f"back.{suffix}")
    assert (back.unit, list(back.table)[1]) == ("µm", "x_centroid_um")


@real
def test_an_h5ad_as_users_have_it() -> None:
    pytest.importorskip("anndata")
    path = DATA / "09_st_visium_misc" / "squidpy" / "test_data.h5ad"
    out = image(path)
    assert len(rc.read_cells(path)) == 49
    assert float(out.data.sum()) == pytest.approx(49, rel=1e-6)


@pytest.mark.parametrize(
    ("package", "suffix", "extra"), [("pandas", "parquet", "tables"), ("anndata", "h5ad", "anndata")]
)
def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, suffix: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"c.{suffix}").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=rf"wanted .* to read 'c.{suffix}', got no .*; install regframe\[{extra}\]"):
        image(tmp_path / f"c.{suffix}")


# ---- what is refused -----------------------------------------------------------------------------------------------


def bad(name: str, text: str, message: str, **options: Any) -> Any:
    return pytest.param(text, message, options, id=name)


@pytest.mark.parametrize(
    ("text", "message", "options"),
    [
        bad("empty", "x,y\n", "wanted at least one cell in 't.csv', got an empty table"),
        bad("mixed units", "x_um,y_px\n1,2\n", "wanted one unit for the position columns|wanted columns that name positions"),
        bad("unit against suffix", "x_px,y_px\n1,2\n", "one unit for 't.csv', got positions in px and unit='µm'", unit="um"),
        bad("unit against instrument", "fov,CenterX_global_px,CenterY_global_px\n1,2,3\n", "in px and unit='µm'", unit="µm"),
        bad("3D", "x,y,z\n1,2,3\n", r"wanted cells in a plane, got 3 position columns \(z, y, x\)"),
        bad("NaN", "x,y\n1,2\nnan,3\n", "wanted a finite number in y, x of every row"),
        bad("one cell", "x,y\n1,2\n", "wanted cells apart from each other to propose a spacing from, got 1 of them"),
        bad("on one another", "x,y\n" + "1,2\n" * 40, "got 40 of which most lie on one another; state spacing"),
        bad("twice", "id,x,y\na,1,2\nb,3,4\na,1,2\n", "wanted every cell once in 't.csv', got the id 'a' in rows 1 and 3"),
        bad("two choices", "x,y,pixel_x,pixel_y\n1,2,3,4\n", "wanted one choice of position columns"),
        bad("categorical weights", "x,y,kind\n1,2,T\n", "wanted numbers for weights .* got 'T'.*types='kind'", weights="kind"),
        bad("no such weights", "x,y\n1,2\n", r"wanted a column of 't.csv' for weights \(x, y\), got 'n'", weights="n"),
        bad("NaN weights", "x,y,n\n1,2,3\n1,2,nan\n", r"wanted finite numbers for weights .* got nan in row 2", weights="n"),
        bad("no types", "x,y,kind\n1,2,\n", "wanted values in the column 'kind'", types="kind"),
        bad("no genes", "x,y,kind\n1,2,T\n", "wanted genes in 't.csv'", genes="all"),
        bad("no counts", "x,y,A,B\n1,2,0,0\n3,4,0,0\n", "wanted counts of genes", genes="A"),
        bad("too large", "x,y\n0,0\n1e5,1e5\n", "wanted a raster of at most 536870912 values", spacing=1),
        bad("far too large", "x,y\n0,0\n1e300,1e300\n", "wanted a canvas of a reasonable size", spacing=1),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path: Path, text: str, message: str, options: dict[str, Any]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        image(path, **options)
    assert "\n" not in str(caught.value)


def test_ids_that_several_cells_bear_are_theirs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"  # fields of view count their cells anew
    path.write_text("id,fov,x,y\na,1,1,2\na,2,30,40\n")
    assert len(rc.read_cells(path)) == 2
    path.write_text("id,x,y\na,1,2\na,1,2.5\n")
    assert float(image(path, spacing=1).data.sum()) == pytest.approx(2)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            np.zeros((5, 2)),
            {},
            r"wanted the names of the axes of an array of shape \[5, 2\], got None; .*'x,y' or 'y,x'",
        ),
        (np.zeros((5, 3)), {"columns": "x,y"}, r"wanted the names of the axes of an array of shape \[5, 3\]"),
        (np.zeros((5, 2)), {"columns": "x,z"}, "wanted the names of the axes"),
        (np.zeros(5), {"columns": "x,y"}, r"wanted an array \[N, 2\] of numbers, got shape \[5\]"),
        (np.array([[1.0, np.nan]]), {"columns": "x,y"}, r"wanted finite positions .* \(row 1\)"),
        (np.zeros((0, 2)), {"columns": "x,y"}, "wanted at least one cell"),
        (rf.PointSet(torch.zeros(3, 3)), {}, "wanted cells in a plane"),
        (7, {}, "wanted a table of cells .* got int"),
    ],
)
def test_bad_objects(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image(source, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": 0}, "wanted a positive length for spacing, got 0"),
        ({"spacing": "1,2"}, "wanted a positive length for spacing"),
        ({"sigma": "5,-1"}, "wanted a positive length or several for sigma"),
        ({"unit": "parsec"}, "wanted a length unit"),
        ({"types": "a", "genes": "b"}, "wanted types or genes, got both"),
        ({"weights": "a,b", "types": "c"}, "wanted one column of weights beside types or genes"),
        ({"genes": "a,a"}, "wanted distinct names of genes"),
        ({"components": 3}, "wanted components together with beside"),
        ({"components": 0, "beside": "x", "genes": "all"}, "wanted 1 or more components"),
        ({"threads": -1}, "wanted 0"),
        ({"types": 3}, "wanted the name of a column for types"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellsAdapter(**options)


def test_one_cell_is_a_spot_that_nothing_aligns_to() -> None:
    one = image(np.array([[5.0, 5.0]]), columns="y,x", unit="um", spacing=1)
    assert float(one.data.sum()) == pytest.approx(1)
    cube = rf.Image(torch.rand(1, 12, 12, 12), rf.Grid((12, 12, 12), 1.0, unit="µm"))
    with pytest.raises(ValueError, match=r"section as the fixed side.* got a 3D fixed and a 2D moving"):
        rf.register(cube, one)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("anndata")
    for name, head in (("c.parquet", b"PAR1"), ("c.h5ad", b"\x89HDF\r\n\x1a\n")):
        (tmp_path / name).write_bytes(head + b"nothing")
        assert rf.find_adapter(tmp_path / name).name == "cells"
        with pytest.raises(ValueError, match=r"which cannot be read as one|wanted a sound HDF5 file, got .*c\.h5ad"):
            rf.open(tmp_path / name)


# ---- components that two tables share --------------------------------------------------------------------------------


def programme(coords: np.ndarray, seed: int) -> dict[str, list[int]]:
    """Twelve noisy genes that follow two patterns, the same for every table of one space."""
    rng = np.random.default_rng(seed)
    y, x = ((coords - [250, 50]) / 100).T
    patterns = np.stack([1 + np.sin(2 * y), 1 + np.cos(3 * x)])
    loading = np.random.default_rng(7).uniform(0, 2, (12, 2))
    depth = rng.uniform(0.5, 2, len(coords))
    return {f"g{i}": rng.poisson(depth * (row @ patterns) + 0.1).tolist() for i, row in enumerate(loading)}


def test_shared_components(tmp_path: Path) -> None:
    one, other = scattered(900, 1), scattered(800, 2)
    a = table(tmp_path / "a.csv", one, **programme(one, 3))
    b = table(tmp_path / "b.csv", other, **programme(other, 4))
    fixed, moving = rc.shared_components(a, b, 3, spacing=10, sigma=20)
    assert fixed.channels == ("component 1", "component 2", "component 3")
    swapped = rc.shared_components(b, a, 3, spacing=10, sigma=20)
    assert swapped[1].data.equal(fixed.data)  # the sides are equals
    assert swapped[0].data.equal(moving.data)
    again = rf.resample(moving, rf.Affine.identity(2, "µm"), fixed.grid)
    for c in range(2):  # the same place looks the same, sign and all, though no cell is in both
        assert np.corrcoef(again.data[c].flatten(), fixed.data[c].flatten())[0, 1] > 0.9
    options = {"genes": "all", "components": 3, "spacing": 10, "sigma": 20}
    assert image(a, beside=b, **options).data.equal(fixed.data)
    assert image(b, beside=a, **options).data.equal(moving.data)
    assert image(a, beside=b, channels="component 2", **options).data[0].equal(fixed.data[1])
    with pytest.raises(ValueError, match="wanted genes or types that both data sets have"):
        rc.shared_components(table(tmp_path / "c.csv", one, h=[1, 2, 3] * 300), b)
    with pytest.raises(ValueError, match="wanted 1 or more components"):
        rc.shared_components(a, b, 0)


# ---- alignment -----------------------------------------------------------------------------------------------------


def smooth(coords: np.ndarray, amplitude: float = 100.0, seed: int = 0) -> np.ndarray:
    """Positions moved by a smooth field that reaches ``amplitude``."""
    rng = np.random.default_rng(seed)
    unit = (coords - coords.min(axis=0)) / np.ptp(coords, axis=0)
    field = np.zeros_like(coords)
    for _ in range(6):
        turns, phase, weight = rng.uniform(-1.5, 1.5, 2), rng.uniform(0, 2 * np.pi, 2), rng.normal(size=2)
        field += weight * np.sin(2 * np.pi * (unit @ turns)[:, None] + phase)
    return coords + field * amplitude / np.linalg.norm(field, axis=1).max()


def agreement(at: np.ndarray, labels: np.ndarray, fixed: np.ndarray, of_fixed: np.ndarray) -> float:
    """Share of labelled moving cells whose nearest labelled fixed cell bears their label."""
    known, known_fixed = ~np.isin(labels, ("", "NA")), ~np.isin(of_fixed, ("", "NA"))
    nearest = cKDTree(fixed[known_fixed]).query(at[known])[1]
    return float(np.mean(of_fixed[known_fixed][nearest] == labels[known]))


@pytest.fixture(scope="module")
def xenium() -> np.ndarray:
    """Positions (y, x) of cells in µm; the genes are left in the file."""
    with gzip.open(DATA / "04_st_xenium_breast" / "pikachu.csv.gz", "rt") as file:
        rows = [line.split(",", 3) for line in file]
    assert rows[0][1:3] == ['"x_centroid"', '"y_centroid"']
    return np.array([[float(row[2]), float(row[1])] for row in rows[1:]])


@real
@pytest.mark.parametrize("inverted", [False, True])
def test_moved_xenium_cells_are_found_again(inverted: bool, xenium: np.ndarray) -> None:
    cells = xenium
    quadrant = cells[(cells < (cells.min(axis=0) + cells.max(axis=0)) / 2).all(axis=1)]
    kept = np.random.default_rng(0).random(len(quadrant)) < 0.8
    moved = smooth(quadrant)[kept]
    fixed, moving = image(cells, columns="y,x", unit="µm"), image(moved, columns="y,x", unit="µm")
    if inverted:
        fixed = fixed.replace(data=fixed.data.max() - fixed.data)
    result = rf.register(fixed, moving)
    error = np.linalg.norm(result.to_fixed(torch.from_numpy(moved)).numpy() - quadrant[kept], axis=1)
    assert np.median(error) <= 5


@real
def test_starmap_layers_agree_better_than_as_they_are() -> None:
    paths = [DATA / "07_st_starmap" / f"starmap_mpfc_{name}.csv" for name in ("BZ9", "BZ5")]
    fixed, moving = (rc.read_cells(path) for path in paths)
    result = rf.register(*(image(path, types="celltype") for path in paths))
    labels = fixed.words("layer"), moving.words("layer")
    after = agreement(result.to_fixed(moving.coords).numpy(), labels[1], fixed.coords.numpy(), labels[0])
    before = agreement(moving.coords.numpy(), labels[1], fixed.coords.numpy(), labels[0])
    assert before == pytest.approx(0.888, abs=0.001)
    assert after >= max(0.90, before)


# ---- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any]) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(5)
    coords = scattered(900, 5)
    coords = coords[
        gaussian_filter(rng.random((31, 21)), 2)[
            ((coords - [100, -50]) // 10).astype(int).T.tolist()[0],
            ((coords - [100, -50]) // 10).astype(int).T.tolist()[1],
        ]
        > 0.5
    ]
    a = table(folder / "a.csv", coords)
    b = table(folder / "b.csv", coords + np.array([6, -4]), kind=["T"] * len(coords))
    sides = [f for side in ("fixed", "moving") for f in (f"--{side}-adapter", "cells", f"--{side}-set", "spacing=5")]
    found = command(
        "register",
        a,
        b,
        "-o",
        folder / "run",
        "--transform",
        "rigid",
        "--init",
        "identity",
        "--save-warped",
        "--json",
        *sides,
    )
    assert json.loads(found.stdout)["verdict"] in ("pass", "warn")
    return folder, folder / "run"


@pytest.fixture(scope="module")
def command() -> Callable[..., Any]:
    from click.testing import CliRunner

    from regframe.cli import main

    def run(*arguments: object, code: tuple[int, ...] = (0, 3)) -> Any:
        found = CliRunner().invoke(main, [str(a) for a in arguments])
        assert found.exit_code in code, found.output
        return found

    return run


def test_register_and_apply(run_folder: tuple[Path, Path], command: Callable[..., Any]) -> None:
    folder, out = run_folder
    command("apply", "points", out, folder / "b.csv", "-o", folder / "moved.csv", "--to", "fixed", "--overwrite")
    with (folder / "moved.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["cell_id", "x_um", "y_um", "kind", "match_probability", "position_sd", "in_canvas"]
    fixed = rc.read_cells(folder / "a.csv")
    assert [row["cell_id"] for row in rows] == list(fixed.table["cell_id"])
    error = np.array([[float(r["y_um"]), float(r["x_um"])] for r in rows]) - fixed.coords.numpy()
    assert np.median(np.linalg.norm(error, axis=1)) < 1.0
    assert len((out / "warped.csv").read_text().splitlines()) == len(rows) + 1  # the table itself, carried


def test_apply_to_other_formats(run_folder: tuple[Path, Path], command: Callable[..., Any]) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    folder, out = run_folder
    frame = pandas.read_csv(folder / "b.csv").rename(columns={"x_um": "x", "y_um": "y"})
    frame.loc[0, "x"] = -4000.0
    frame.to_parquet(folder / "b.parquet")
    arguments = (
        "apply",
        "points",
        out,
        folder / "b.parquet",
        "-o",
        folder / "m.parquet",
        "--to",
        "fixed",
        "--overwrite",
    )
    command(*arguments, "--adapter", "cells")
    found = pandas.read_parquet(folder / "m.parquet")
    assert list(found.columns) == ["cell_id", "x", "y", "kind", "match_probability", "position_sd", "in_canvas"]
    assert (found["cell_id"] == frame["cell_id"]).all()
    assert found["in_canvas"].tolist() == [False] + [True] * (len(frame) - 1)
    assert math.isnan(found["match_probability"][0])
    assert found["match_probability"][1:].between(0, 1).all()
    assert (found["position_sd"][1:] > 0).all()
    # columns that an earlier run wrote are replaced
    command(
        "apply",
        "points",
        out,
        folder / "m.parquet",
        "-o",
        folder / "back.parquet",
        "--to",
        "moving",
        "--overwrite",
        "--adapter",
        "cells",
    )
    back = pandas.read_parquet(folder / "back.parquet")
    assert list(back.columns) == list(found.columns)
    np.testing.assert_allclose(back["x"][1:], frame["x"][1:], atol=1e-6)
    command(*arguments, "--adapter", "image", code=(2,))


def test_outside_a_field_nothing_is_known() -> None:
    corners = np.array([[0.0, 0.0], [0.0, 40.0], [30.0, 0.0], [10.0, 10.0]])
    image = rf.open(corners, adapter="cells", columns="y,x", unit="um", spacing=1, field="hull")
    assert isinstance(image, rf.Image)
    assert image.weight is not None
    at = image.grid.coords()
    inside = (at[..., 0] >= 0) & (at[..., 1] >= 0) & (at[..., 0] / 30 + at[..., 1] / 40 <= 1)
    assert float((image.weight.bool() != inside).to(torch.float32).mean()) < 0.01
    assert rf.open(corners, adapter="cells", columns="y,x", unit="um", spacing=1).weight is None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="wanted cells that span an area"):
        rf.open(corners[:2], adapter="cells", columns="y,x", unit="um", spacing=1, field="hull")
    with pytest.raises(ValueError, match="wanted the field to be one of all, hull, got 'box'"):
        rf.adapter("cells", field="box")
