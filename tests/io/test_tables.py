"""Point tables: what is read, what is refused and with which sentence, and that writing loses nothing."""

from __future__ import annotations

import gzip
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import regframe as rf
from regframe.io import tables


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "columns", "unit"),
    [
        ("X,Y\n1,2\n", ("Y", "X"), "px"),
        ("y,x\n2,1\n", ("y", "x"), "px"),
        (",X,Y\n7,1,2\n", ("Y", "X"), "px"),
        ("y_px,x_px\n2,1\n", ("y_px", "x_px"), "px"),
        ("x_um;y_um\n1;2\n", ("y_um", "x_um"), "µm"),
        ("x (mm)\ty (mm)\n1\t2\n", ("y (mm)", "x (mm)"), "mm"),
        ("x_coord,y_coord\n1,2\n", ("y_coord", "x_coord"), "px"),
        ("x_centroid,y_centroid,min_x,max_x\n1,2,0,9\n", ("y_centroid", "x_centroid"), "px"),
        ("center_x,center_y\n1,2\n", ("center_y", "center_x"), "px"),
        ("pxl_row_in_fullres,pxl_col_in_fullres\n2,1\n", ("pxl_row_in_fullres", "pxl_col_in_fullres"), "px"),
        ("x y\n1 2\n", ("y", "x"), "px"),
        ("x y\na 1 2\n", ("y", "x"), "px"),
        ("\ufeffx,y\r\n1,2\r\n", ("y", "x"), "px"),
    ],
)
def test_headers(tmp_path: Path, text: str, columns: tuple[str, ...], unit: str) -> None:
    points = rf.read_points(write(tmp_path, text))
    assert points.columns == columns
    assert points.unit == unit
    assert points.coords.tolist() == [[2.0, 1.0]]


def test_three_dimensions_and_the_way_out_of_them(tmp_path: Path) -> None:
    path = write(tmp_path, "x,y,z\n1,2,3\n")
    assert rf.read_points(path).coords.tolist() == [[3.0, 2.0, 1.0]]
    assert rf.read_points(path, columns="x,y").coords.tolist() == [[2.0, 1.0]]


def test_the_unit_is_for_columns_that_state_none(tmp_path: Path) -> None:
    assert rf.read_points(write(tmp_path, "x,y\n1,2\n"), unit="micrometer").unit == "µm"
    assert rf.read_points(write(tmp_path, "x_px,y_px\n1,2\n"), unit="µm").unit == "px"


def test_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path, "1,2,9\n3,4,9\n")
    with pytest.raises(ValueError, match=r"wanted a header .* got the row 1, 2, 9; add one, or name the columns"):
        rf.read_points(path)
    points = rf.read_points(path, columns="x,y")
    assert points.coords.tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert list(points.table) == ["x", "y", "column_3"]
    with pytest.raises(ValueError, match="wanted names for the 3 columns"):
        rf.read_points(path, columns="x,y,z,a")


def test_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "id,T_x_px,T_y_px,R_x,R_y\n1,2,3,4,5\n")
    with pytest.raises(ValueError, match=r"say which they are with columns='x=NAME,y=NAME'"):
        rf.read_points(path)
    points = rf.read_points(path, columns="x=R_x,y=R_y", unit="mm")
    assert (points.coords.tolist(), points.unit) == ([[5.0, 4.0]], "mm")
    points = rf.read_points(path, columns="T_x_px,T_y_px", unit="mm")
    assert (points.coords.tolist(), points.unit) == ([[3.0, 2.0]], "px")
    for columns, message in [
        ("x=R_x,y=Q", "got 'Q'"),
        ("x=R_x,x=T_x_px", "one column per axis"),
        ("id,R_x", "wanted the axis of the column 'id'"),
        ("x=R_x,", "wanted columns such as"),
        ("R_x", "wanted a column for each of y, x"),
    ]:
        with pytest.raises(ValueError, match=message):
            rf.read_points(path, columns=columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,pixel_x,pixel_y\n1,2,3,4\n", "wanted one choice of position columns .* got y, x or pixel_y, pixel_x"),
        ("x,y,x_um,y_um\n1,2,3,4\n", "got y, x or y_um, x_um"),
        ("x,X,y\n1,2,3\n", "got y, x, X; choose"),
        ("x_um,y_mm\n1,2\n", "wanted one unit for the position columns .* got x_um, y_mm; convert"),
        ("x,y,z_um\n1,2,3\n", "wanted one unit"),
        ("a,b\nc,d\n", "wanted columns that name positions"),
        ("x,y\n1,2\nNA,3\n4,\n5,inf\n6,nan\n", r"got 4 row\(s\) without \(line 3, 4, 5, 6\)"),
        ("x,y\n1_0,2\n", r"got 1 row\(s\) without \(line 2\)"),
        ("x,y\n1,2\n1\n", "wanted 2 cells in every row .* line 3"),
        ("x,y,x\n1,2,3\n", "wanted distinct column names .* got x more than once"),
        ("", "got an empty file"),
        ('x,y\n"1,2\n', "cannot be read as one"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.read_points(write(tmp_path, text))


def test_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which is not a file"):
        rf.read_points(tmp_path / "none.csv")
    path = tmp_path / "t.csv"
    for raw in (b"\xff\xd8\xff\xe0", b"x,y\n\0\0", gzip.compress(b"x,y\n1,2\n")[:-9]):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="wanted a text table of points"):
            rf.read_points(path)


def test_writing_keeps_the_table(tmp_path: Path) -> None:
    text = ',gene,X,note,Y\nb,007,1.50,"a, b",2\na,1e3,3,,4\n'
    points = rf.read_points(write(tmp_path, text))
    moved = points.replace(coords=points.coords + 0.1)
    out = tmp_path / "o.csv"
    rf.write_points(moved, out, {"p": torch.tensor([0.5, 1.0], dtype=torch.float64), "in": [True, False]})
    assert out.read_text() == ',gene,X,note,Y,p,in\nb,007,1.6,"a, b",2.1,0.5,True\na,1e3,3.1,,4.1,1.0,False\n'
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv", "o.csv"] or len(list(tmp_path.iterdir())) == 2


def test_the_unit_suffix_follows(tmp_path: Path) -> None:
    points = rf.read_points(write(tmp_path, "x_um,y (µm)\n1,2\n"), columns="x=x_um,y=y (µm)")
    out = tmp_path / "o.csv"
    rf.write_points(points.replace(unit="mm", coords=points.coords / 1000), out)
    assert out.read_text() == "x_mm,y (mm)\n0.001,0.002\n"
    rf.write_points(rf.PointSet(torch.tensor([[1.0, 2.0]]), "µm"), out)
    assert out.read_text() == "y_um,x_um\n1.0,2.0\n"
    with pytest.raises(ValueError, match="wanted 1 values for the column 'p', got 2"):
        rf.write_points(points, out, {"p": [1, 2]})
    assert out.read_text() == "y_um,x_um\n1.0,2.0\n"


def test_compressed_and_tabs(tmp_path: Path) -> None:
    points = rf.read_points(write(tmp_path, "x,y\n1,2\n"))
    out = tmp_path / "o.tsv.gz"
    rf.write_points(points, out)
    first = out.read_bytes()
    assert gzip.decompress(first) == b"x\ty\n1.0\t2.0\n"
    rf.write_points(points, out)
    assert out.read_bytes() == first
    assert torch.equal(rf.read_points(out).coords, points.coords)


@given(
    st.lists(
        st.tuples(
            *[st.floats(allow_nan=False, allow_infinity=False)] * 3, st.text(st.characters(codec="utf-8"), max_size=5)
        ),
        max_size=8,
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float, float, str]]) -> None:
    clean = [(z, y, x, "".join(c for c in text if c.isprintable())) for z, y, x, text in rows]
    coords = torch.tensor([row[:3] for row in clean], dtype=torch.float64).reshape(-1, 3)
    table = {
        "z_mm": [""] * len(clean),
        "t": [row[3] for row in clean],
        "x_mm": [""] * len(clean),
        "y_mm": [""] * len(clean),
    }
    points = rf.PointSet(coords, "mm", table=table, columns=("z_mm", "y_mm", "x_mm"))
    path = tmp_path_factory.mktemp("r") / "t.csv"
    rf.write_points(points, path)
    back = rf.read_points(path)
    assert torch.equal(back.coords, coords)
    assert back.unit == "mm"
    assert list(back.table["t"]) == table["t"]
    assert list(back.table) == list(table)


def test_landmarks(tmp_path: Path) -> None:
    path = write(tmp_path, "id,moving_x,moving_y,fixed_x_um,fixed_y_um\na,1,2,3,4\nb,5,6,7,8\n")
    fixed, moving, units = rf.read_landmarks(path)
    assert fixed.tolist() == [[4.0, 3.0], [8.0, 7.0]]
    assert moving.tolist() == [[2.0, 1.0], [6.0, 5.0]]
    assert units == ("µm", None)
    fixed, moving, _ = rf.read_landmarks(
        write(tmp_path, "x_fixed,y_fixed,z_fixed,moving_x,moving_y,moving_z\n1,2,3,4,5,6\n")
    )
    assert (fixed.tolist(), moving.tolist()) == ([[3.0, 2.0, 1.0]], [[6.0, 5.0, 4.0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed_y,fixed_x,y,x\n1,2,3,4\n", "wanted one column each of fixed_y"),
        ("fixed_y,fixed_x,moving_y,moving_x\n", "wanted at least one pair"),
        ("fixed_y,fixed_x,moving_y,moving_x\n1,2,3,\n", r"line 2"),
        ("fixed_y,fixed_x_um,moving_y,moving_x\n1,2,3,4\n", "wanted one unit for the fixed landmarks"),
        ("fixed_y,fixed_x,fixed_z,moving_y,moving_x\n1,2,3,4,5\n", "wanted a z column for both sides"),
        ("fixed_y,y_fixed,fixed_x,moving_y,moving_x\n1,2,3,4,5\n", "wanted one column each"),
    ],
)
def test_landmarks_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.read_landmarks(write(tmp_path, text))


def test_pairs(tmp_path: Path) -> None:
    fixed = rf.read_points(write(tmp_path, "id,x,y\na,1,1\nb,2,2\nc,3,3\n", "f.csv"))
    moving = rf.read_points(write(tmp_path, ",x,y\nc,30,30\na,10,10\nb,20,20\n", "m.csv"))
    one, other = rf.pair_points(fixed, moving)
    assert one.coords[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert other.coords[:, 0].tolist() == [10.0, 20.0, 30.0]
    assert list(other.table[""]) == ["a", "b", "c"]

    short = rf.read_points(write(tmp_path, "x,y\n1,1\n", "s.csv"))
    with pytest.raises(ValueError, match="wanted as many fixed as moving points, got 3 and 1"):
        rf.pair_points(fixed, short)
    less = rf.read_points(write(tmp_path, "id,x,y\nb,20,20\nd,1,1\n", "l.csv"))
    with pytest.raises(
        ValueError, match=r"got 3 fixed and 2 moving points of which 2 fixed \(id a, c\) and 1 moving \(id d\)"
    ):
        rf.pair_points(fixed, less)
    one, other = rf.pair_points(fixed, less, strict=False)
    assert (one.coords.tolist(), other.coords.tolist()) == ([[2.0, 2.0]], [[20.0, 20.0]])
    twice = rf.read_points(write(tmp_path, "id,x,y\na,1,1\na,2,2\n", "d.csv"))
    with pytest.raises(ValueError, match=r"wanted distinct ids in 'd\.csv', got a more than once"):
        rf.pair_points(twice, fixed)
    none = rf.read_points(write(tmp_path, "id,x,y\nq,1,1\n", "n.csv"))
    with pytest.raises(ValueError, match="wanted points with common ids"):
        rf.pair_points(none, fixed, strict=False)


def test_to_the_unit_of_a_grid() -> None:
    points = rf.PointSet(torch.tensor([[1.0, 2.0]]), "px")
    grid = rf.Grid((4, 4), (0.5, 0.25), (10.0, 0.0), "µm")
    assert tables.to_unit_of(points, grid).coords.tolist() == [[10.5, 0.5]]
    assert tables.to_unit_of(points.replace(unit="mm"), grid).coords[0].tolist() == pytest.approx([1000, 2000])
    assert tables.to_unit_of(points, rf.Grid((4, 4))) is points
    with pytest.raises(ValueError, match="wanted points in px"):
        tables.to_unit_of(points.replace(unit="mm"), rf.Grid((4, 4)))


@pytest.mark.parametrize(
    ("name", "rows", "columns", "first"),
    [
        ("02_histology_landmarks/lung-lesion_1/Izd2-29-041-w35_HE.csv", 78, None, [72.0, 59.0]),
        ("04_st_xenium_breast/pikachu.csv.gz", 9430, None, [559.333981323242, 1243.65521240234]),
        ("05_st_heart/CN73_E1.csv.gz", 12183, None, [27954.275390625, 9220.548828125]),
        ("06_st_dlpfc/151673/tissue_positions_list.txt", 4992, None, [2427.0, 2811.0]),
        ("08_st_mob/alignment_table_MOB1.tsv", 2068, "pixel_x,pixel_y", [70.8, 268.5]),
        ("09_st_visium_misc/cytassist_mouse_brain/tissue_positions.csv", 4992, None, [5148.0, 28955.0]),
        ("09_st_visium_misc/paste_breast/slice1_coor.csv", 254, "x,y", [6.086, 13.064]),
        ("15_2d_classics/fair/hands_landmarks.csv", 7, "T_x_px,T_y_px", [39.096, 35.2382]),
        ("15_2d_classics/shapes/reference_landmarks.tsv", 9, None, [663.1379999999999, 412.176]),
        (
            "17_point_clouds/pycpd/bunny_source.txt",
            453,
            "x,y,z",
            [1.005149245262146, 1.126304030418396, 0.9687783718109131],
        ),
    ],
)
def test_real_files(
    data_dir: Path, tmp_path: Path, name: str, rows: int, columns: str | None, first: list[float]
) -> None:
    points = rf.read_points(data_dir / name, columns)
    assert len(points) == rows
    assert points.coords[0].tolist() == first
    rf.write_points(points, tmp_path / "o.csv")
    back = rf.read_points(tmp_path / "o.csv", ",".join(points.columns))
    assert torch.equal(back.coords, points.coords)
    assert {k: list(v) for k, v in back.table.items() if k not in points.columns} == {
        k: list(v) for k, v in points.table.items() if k not in points.columns
    }
