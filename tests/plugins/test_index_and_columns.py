"""Rows named by an index, words that are bytes, positions in named columns of obsm: nothing is lost or swapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import regframe as rf

pytest.importorskip("regframe_cells")
anndata = pytest.importorskip("anndata", reason="needs the extra anndata")
pa = pytest.importorskip("pyarrow", reason="needs the extra tables")
pq = pytest.importorskip("pyarrow.parquet")

CASES = Path("../shared/cases/12")
N = 24
PLACES = np.round(np.random.default_rng(2).uniform(0, 900, (N, 2)), 3)  # [N, 2], (y, x)
Y, X = PLACES.T
BARCODES = [f"AAAC{i:04}-1" for i in range(N)]
SHIFT = rf.Affine(torch.tensor([[1, 0, 5], [0, 1, -3], [0, 0, 1.0]], dtype=torch.float64))
MOVED = PLACES + np.array([5, -3])


def carried(source: Any, path: Path, **options: Any) -> pd.DataFrame:
    adapter = rf.adapter("cells", **options)
    adapter.save(adapter.apply(source, SHIFT), path)
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def spots(obsm: Any, name: str | None = None, obs: pd.DataFrame | None = None, key: str = "spatial") -> Any:
    obs = pd.DataFrame(index=pd.Index(BARCODES, name=name)) if obs is None else obs
    return anndata.AnnData(np.ones((N, 2), np.float32), obs=obs, obsm={key: obsm})


FRAME = pd.DataFrame({"x": X, "y": Y, "n": range(N)})


# ---- the index ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (pd.Index(BARCODES, name="barcode"), ["barcode"]),
        (pd.Index(BARCODES), ["index"]),
        (pd.Index(range(100, 100 + N), name="cell"), ["cell"]),
        (pd.Index([b.encode() for b in BARCODES], name="cell_id"), ["cell_id"]),
        (pd.CategoricalIndex(BARCODES, name="spot"), ["spot"]),
        (pd.MultiIndex.from_arrays([[f"s{i % 3}" for i in range(N)], range(N)], names=["sample", "cell"]), ["sample", "cell"]),
        (pd.RangeIndex(N), []),
        (pd.RangeIndex(N, name="row"), ["row"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["parquet", "frame"])
def test_an_index_is_written_under_its_name(tmp_path: Path, index: Any, names: list[str], kind: str) -> None:
    frame = FRAME.set_index(index)
    source: Any = frame
    if kind == "parquet":
        source = tmp_path / "t.parquet"
        frame.to_parquet(source)
    found = carried(source, tmp_path / "o.csv")
    assert list(found.columns) == [*names, "x", "y", "n"]
    for level, name in enumerate(names):
        words = [v.decode() if isinstance(v, bytes) else str(v) for v in index.get_level_values(level)]
        assert [str(v) for v in found[name]] == words
    np.testing.assert_allclose(found[["y", "x"]], MOVED)
    back = carried(source, tmp_path / "o.parquet")
    pd.testing.assert_index_equal(back.index, index, exact="equiv")
    assert list(back.columns) == ["x", "y", "n"]


def test_the_index_does_not_hide_a_column_of_its_name(tmp_path: Path) -> None:
    frame = FRAME.assign(barcode=BARCODES).set_index("barcode", drop=False)
    assert list(carried(frame, tmp_path / "o.csv").columns) == ["x", "y", "n", "barcode"]


@pytest.mark.parametrize(("name", "column"), [(None, "obs_names"), ("barcode", "barcode")])
@pytest.mark.parametrize("kind", ["object", "file"])
def test_names_of_observations_are_written(tmp_path: Path, name: str | None, column: str, kind: str) -> None:
    data = spots(PLACES[:, ::-1], name)
    if kind == "file":
        data.write_h5ad(tmp_path / "a.h5ad")
        data = tmp_path / "a.h5ad"
    found = carried(data, tmp_path / "o.csv")
    assert list(found[column]) == BARCODES
    assert list(carried(data, tmp_path / "o.parquet").index) == BARCODES


# ---- bytes --------------------------------------------------------------------------------------------------------


def test_bytes_are_words(tmp_path: Path) -> None:
    genes = [("ACTA2", "PTPRC", "Größe")[i % 3] for i in range(N)]
    shape = [bytes([1, 1, 0, 0, 0, i]) for i in range(N)]
    table = pa.table(
        {
            "cell_id": pa.array([b.encode() for b in BARCODES], pa.binary()),
            "x": X,
            "y": Y,
            "feature_name": pa.array([g.encode() for g in genes], pa.large_binary()),
            "old": pa.array([g.encode("latin-1") for g in genes], pa.binary()),
            "some": pa.array([None if i % 2 else b"a" for i in range(N)], pa.binary()),
            "geometry": pa.array(shape, pa.binary()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = carried(tmp_path / "t.parquet", tmp_path / "o.csv")
    assert list(found["cell_id"]) == BARCODES
    assert list(found["feature_name"]) == list(found["old"]) == genes
    assert [v if isinstance(v, str) else None for v in found["some"]] == [None if i % 2 else "a" for i in range(N)]
    assert list(found["geometry"]) == [s.hex() for s in shape]
    image = rf.open(tmp_path / "t.parquet", adapter="cells", types="feature_name", spacing=20)
    assert image.channels == ("ACTA2", "Größe", "PTPRC")
    back = carried(tmp_path / "t.parquet", tmp_path / "o.parquet")
    assert list(back["geometry"]) == shape  # what came as bytes goes as bytes
    assert list(back["feature_name"]) == [g.encode() for g in genes]


def test_bytes_as_categories_names_and_fixed_width(tmp_path: Path) -> None:
    kinds = np.array([f"T{i % 2}" for i in range(N)])
    frame = FRAME.assign(a=pd.Categorical([k.encode() for k in kinds]), b=list(kinds.astype("S4")))
    frame = frame.rename(columns={"n": b"count"})
    found = carried(frame, tmp_path / "o.csv")
    assert list(found.columns) == ["x", "y", "count", "a", "b"]
    assert list(found["a"]) == list(found["b"]) == list(kinds)
    obs = pd.DataFrame({"a": frame["a"].to_numpy()}, index=BARCODES)
    data = spots(PLACES[:, ::-1], obs=obs)
    assert list(carried(data, tmp_path / "p.csv")["a"]) == list(kinds)


# ---- obsm ---------------------------------------------------------------------------------------------------------


NAMED = [
    ["y", "x"], ["x", "y"], ["pxl_row_in_fullres", "pxl_col_in_fullres"], ["y_um", "x_um"], ["Y_centroid", "X_centroid"],
    ["array_row", "y", "x"], ["z", "y", "x"],
]  # fmt: skip


def named(columns: list[str]) -> pd.DataFrame:
    values = {name: Y if "y" in name.lower() or name == "pxl_row_in_fullres" else X for name in columns}
    values |= {name: np.arange(N) for name in columns if name == "array_row"} | {n: 7.0 for n in columns if n == "z"}
    return pd.DataFrame({name: values[name] for name in columns}, index=BARCODES)


@pytest.mark.parametrize("columns", NAMED, ids=" ".join)
@pytest.mark.parametrize("kind", ["object", "file"])
def test_frames_of_obsm_are_read_by_their_names(tmp_path: Path, columns: list[str], kind: str) -> None:
    frame = named(columns)
    data = spots(frame)
    source: Any = data
    if kind == "file":
        data.write_h5ad(tmp_path / "a.h5ad")
        source = tmp_path / "a.h5ad"
    adapter = rf.adapter("cells")
    np.testing.assert_array_equal(adapter.read(source).coords.numpy(), PLACES)
    unit = adapter.read(source).unit
    adapter.save(adapter.apply(source, rf.Affine(SHIFT.matrix, unit, unit)), tmp_path / "o.h5ad")
    back = anndata.read_h5ad(tmp_path / "o.h5ad")
    pd.testing.assert_frame_equal(back.obsm["spatial"], frame, check_index_type=False)
    after = back.obsm["spatial_aligned"]
    assert list(after.columns) == columns
    y, x = (next(c for c in columns if c.lower().startswith(a)) for a in (("y", "pxl_row"), ("x", "pxl_col")))
    np.testing.assert_allclose(after[[y, x]], MOVED)
    others = [c for c in columns if c not in (y, x)]
    pd.testing.assert_frame_equal(after[others], frame[others], check_index_type=False)


def test_units_in_the_names_of_a_frame(tmp_path: Path) -> None:
    from fake_result import fake_result

    scverse = pytest.importorskip("regframe_scverse")
    data = spots(named(["y_um", "x_um"]))
    adapter = rf.adapter("cells")
    assert adapter.read(data).unit == "µm"
    with pytest.raises(ValueError, match="wanted one unit"):
        rf.adapter("cells", unit="px").read(data)
    turn = rf.Affine(SHIFT.matrix, "µm", "mm")
    adapter.save(adapter.apply(data, turn), tmp_path / "o.h5ad")
    after = anndata.read_h5ad(tmp_path / "o.h5ad").obsm["spatial_aligned"]
    np.testing.assert_allclose(after[["y_mm", "x_mm"]], MOVED)
    result = fake_result(rf.Grid((9, 9), 100.0, (), "mm"), rf.Grid((900, 900), 1.0, (), "µm"), SHIFT.matrix)
    scverse.align(data, result)
    plain = spots(PLACES[:, ::-1])
    scverse.align(plain, result, unit="um")
    np.testing.assert_allclose(data.obsm["spatial_aligned"][["x_mm", "y_mm"]], plain.obsm["spatial_aligned"])
    assert list(data.obsm["spatial_aligned"].columns) == ["y_mm", "x_mm"]
    with pytest.raises(ValueError, match="wanted one unit"):
        scverse.align(spots(named(["y_um", "x_um"])), result, unit="mm")


SOLID = np.column_stack([X, Y, np.arange(N) * 10.0])


@pytest.mark.parametrize("columns", ["spatial:x=0,y=1", "x=0,y=1", "spatial:x,y", "x,y", "spatial:y=y,x=x", "x=0, y=1"])
def test_two_of_three_columns(tmp_path: Path, columns: str) -> None:
    data = spots(SOLID)
    data.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"say which columns are x and y with columns='x=0,y=1'"):
        rf.adapter("cells").read(tmp_path / "a.h5ad")
    for source in (data, tmp_path / "a.h5ad"):
        adapter = rf.adapter("cells", columns=columns)
        np.testing.assert_array_equal(adapter.read(source).coords.numpy(), PLACES)
        adapter.save(adapter.apply(source, SHIFT), tmp_path / "o.h5ad")
        after = anndata.read_h5ad(tmp_path / "o.h5ad").obsm["spatial_aligned"]
        np.testing.assert_allclose(after, np.column_stack([MOVED[:, ::-1], SOLID[:, 2]]))
        found = carried(source, tmp_path / "o.csv", columns=columns)
        np.testing.assert_allclose(found[["y_px", "x_px", "z"]], np.column_stack([MOVED, SOLID[:, 2]]))


@pytest.mark.parametrize(
    ("entry", "options", "places"),
    [
        (np.column_stack([X, Y, np.full(N, 3.0)]), {}, None),  # a plane
        (np.column_stack([np.arange(N), Y, X]), {"columns": "x=2,y=1"}, None),
        (np.column_stack([Y, X]), {"columns": "other:y=0,x=1"}, None),
        (pd.DataFrame(PLACES[:, ::-1], index=BARCODES), {"columns": "other"}, None),
        (pd.DataFrame({"a": X, "b": Y, "c": 0}, index=BARCODES), {"columns": "other:x=a,y=b"}, None),
    ],
)
def test_other_entries_and_orders(entry: Any, options: dict[str, Any], places: None) -> None:
    key = "other" if str(options.get("columns", "")).startswith("other") else "spatial"
    cells = rf.adapter("cells", **options).read(spots(entry, key=key))
    np.testing.assert_array_equal(cells.coords.numpy(), PLACES)


@pytest.mark.parametrize("columns", ["x=0,y=5", "x=0,y=0", "spatial:x=0", "spatial:x=a,y=1"])
def test_columns_that_are_not_there(columns: str) -> None:
    with pytest.raises(ValueError, match=r"wanted (one column each|columns of)"):
        rf.adapter("cells", columns=columns).read(spots(SOLID))


def test_columns_of_obs_still_go_first() -> None:
    obs = pd.DataFrame({"a": X, "b": Y}, index=BARCODES)
    cells = rf.adapter("cells", columns="x=a,y=b").read(spots(SOLID, obs=obs))
    np.testing.assert_array_equal(cells.coords.numpy(), PLACES)
    assert cells.columns == ("b", "a")


@pytest.mark.parametrize("columns", [["y", "x"], ["x", "y"], ["z", "y", "x"]], ids=" ".join)
def test_the_door_of_anndata_reads_names_too(columns: list[str]) -> None:
    from fake_result import fake_result

    scverse = pytest.importorskip("regframe_scverse")
    result = fake_result(rf.Grid((900, 900)), rf.Grid((900, 900)), SHIFT.matrix)
    plain, data = spots(PLACES[:, ::-1]), spots(named(columns))
    if len(columns) == 3:
        with pytest.raises(ValueError, match="wanted positions"):
            scverse.align(data, result)
        scverse.align(data, result, key="spatial:x=x,y=y")
    else:
        scverse.align(data, result)
    scverse.align(plain, result)
    expected = plain.obsm["spatial_aligned"]
    np.testing.assert_allclose(data.obsm["spatial_aligned"][["x", "y"]], expected)
    assert list(data.obsm["spatial_aligned"].columns) == columns
    solid = spots(SOLID)
    scverse.align(solid, result, key="spatial:x=0,y=1")
    np.testing.assert_allclose(solid.obsm["spatial_aligned"], np.column_stack([expected, SOLID[:, 2]]))


# ---- the files of the reports -------------------------------------------------------------------------------------


def test_the_files_of_the_report(tmp_path: Path) -> None:
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not here")
    truth = anndata.read_h5ad(CASES / "ok.h5ad")
    found = carried(CASES / "ok.h5ad", tmp_path / "a.csv")
    assert list(found["obs_names"]) == list(truth.obs_names)
    found = carried(CASES / "tissue_positions_indexed.parquet", tmp_path / "b.csv")
    assert list(found["barcode"]) == list(pd.read_parquet(CASES / "tissue_positions_indexed.parquet").index)
    cells = rf.adapter("cells").read(CASES / "frame_yx.h5ad")
    np.testing.assert_array_equal(cells.coords.numpy()[:, ::-1], truth.obsm["spatial"])
    cells = rf.adapter("cells", columns="spatial:x=0,y=1").read(CASES / "xyz.h5ad")
    np.testing.assert_array_equal(cells.coords.numpy()[:, ::-1], truth.obsm["spatial"])
