"""Text tables as other programs write them: the files of the reports, and others of their kinds written by pandas and csv."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import regframe as rf
from regframe.io import tables, text

CASES = Path("../shared/cases")
TRUTH = np.round(np.random.default_rng(5).uniform(0.2, 1800, (12, 2)), 3)  # [N, 2], (y, x)
FRAME = pd.DataFrame({"id": range(12), "x": TRUTH[:, 1], "y": TRUTH[:, 0]})


def bytes_of(frame: pd.DataFrame = FRAME, encoding: str = "utf-8", **how: Any) -> bytes:
    return frame.to_csv(index=False, **how).encode(encoding)


def with_quotes(comma: bool = True) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "x", "y"])
    writer.writerows(
        [i, *(str(v).replace(".", ",") if comma else v for v in row)] for i, row in enumerate(TRUTH[:, ::-1])
    )
    return out.getvalue().encode()


def numpy_text(**how: Any) -> bytes:
    out = io.BytesIO()
    np.savetxt(out, TRUTH[:, ::-1], fmt="%.3f", **how)
    return out.getvalue()


def grouped(value: float, between: str) -> str:
    return f"{value:,.3f}".replace(",", "_").replace(".", ",").replace("_", between)


def fcsv() -> bytes:
    head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = id,x,y,label,desc\n"
    return (head + "".join(f"F_{i},{x},{y},F-{i},\n" for i, (y, x) in enumerate(TRUTH.tolist()))).encode()


def imaris() -> bytes:
    rows = "".join(f"{x},{y},um,Spot,{i},\n" for i, (y, x) in enumerate(TRUTH.tolist()))
    return ("\nPosition\n ==================== \nPosition X,Position Y,Unit,Category,ID,\n" + rows).encode()


WRITTEN: dict[str, Callable[[], bytes]] = {
    # a preamble
    "comments": lambda: b"#Selection name: a, b\n# Area (\xc2\xb5m^2): 1,5\n\n" + bytes_of(),
    "per cent": lambda: b"% made by hand\n%\n" + bytes_of(sep="\t"),
    "header in a comment": lambda: b"##K=10;TOPK=3\n#" + bytes_of(sep="\t"),
    "numpy": lambda: numpy_text(header="x y"),
    "numpy, commas": lambda: numpy_text(header="made today\nx,y", delimiter=","),
    "numpy, no space": lambda: numpy_text(header="x;y", delimiter=";", comments="#", footer="end"),
    "slicer": fcsv,
    "titles": lambda: b"Results of run 7\n\nTotal,12\n" + bytes_of(),
    "imaris": imaris,
    # sep=
    "excel": lambda: b"sep=;\r\n" + bytes_of(sep=";", lineterminator="\r\n"),
    "excel, tab": lambda: b'"sep=\t"\n' + bytes_of(sep="\t"),
    "excel, bar": lambda: b"SEP=|\n" + bytes_of(sep="|"),
    "excel, comma, mark": lambda: b"\xef\xbb\xbfsep=,\n" + bytes_of(),
    "bar": lambda: bytes_of(sep="|"),
    # decimal commas
    "decimal comma": lambda: bytes_of(sep=";", decimal=","),
    "decimal comma, tab": lambda: bytes_of(sep="\t", decimal=","),
    "decimal comma, three digits": lambda: bytes_of(sep=";", decimal=",", float_format="%.3f"),
    "decimal comma, blanks": lambda: bytes_of(sep=" ", decimal=","),
    "decimal comma, quoted": with_quotes,
    "decimal comma, excel": lambda: b"sep=;\n" + bytes_of(sep=";", decimal=",", lineterminator="\r\n", encoding="cp1252"),
    "decimal comma, thousands": lambda: bytes_of(FRAME.assign(x=[grouped(v, ".") for v in FRAME.x]), sep=";", decimal=","),
    "decimal comma, thin space": lambda: bytes_of(
        FRAME.assign(x=[grouped(v, "\u202f") for v in FRAME.x]), sep="\t", decimal=","
    ),
    "decimal comma, exponents": lambda: bytes_of(sep=";", decimal=",", float_format="%.9e"),
    "thousands": lambda: bytes_of(FRAME.assign(x=[f"{v:,.3f}" for v in FRAME.x])),
    # encodings
    "utf-16": lambda: bytes_of(encoding="utf-16"),
    "utf-16, big end": lambda: "\ufeff".encode("utf-16-be") + bytes_of(encoding="utf-16-be"),
    "utf-16 without a mark": lambda: bytes_of(encoding="utf-16-le", sep="\t"),
    "utf-16, big end, no mark": lambda: bytes_of(encoding="utf-16-be"),
    "utf-16, decimal comma": lambda: bytes_of(encoding="utf-16", sep="\t", decimal=",", lineterminator="\r\n"),
    "utf-32": lambda: bytes_of(encoding="utf-32"),
    "mark": lambda: bytes_of(encoding="utf-8-sig"),
    "mark, comments": lambda: b"\xef\xbb\xbf# one\n" + bytes_of(),
    "western": lambda: bytes_of(FRAME.assign(note="Größe"), encoding="cp1252"),
    "western, old": lambda: bytes_of(FRAME.assign(note="m\x81"), encoding="latin-1"),
    "packed": lambda: gzip.compress(b"#a\n" + bytes_of(encoding="utf-8-sig")),
    # ends of lines
    "old ends": lambda: b"# a\r" + bytes_of(lineterminator="\r"),
    "delimiters at the ends": lambda: bytes_of(lineterminator=",\n"),
    "delimiters at the ends of rows": lambda: bytes_of().replace(b"\n", b",\n").replace(b",\n", b"\n", 1),
    "blank after the comma": lambda: bytes_of().replace(b",", b", "),
    # elastix
    "elastix": lambda: b"point\n12\n" + bytes_of(FRAME[["x", "y"]], sep=" ", header=False),
    "elastix, tabs": lambda: b"POINT\r\n12\r\n" + bytes_of(FRAME[["x", "y"]], sep="\t", header=False),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_kind_of_text_is_read_as_it_was_meant(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(WRITTEN[kind]())
    points = rf.read_points(path)
    np.testing.assert_array_equal(points.coords.numpy(), TRUTH)
    assert rf.find_adapter(path).name == "points"
    np.testing.assert_array_equal(rf.open(path).coords.numpy(), TRUTH)
    if "id" in points.table:
        assert [name.lstrip("F_") for name in points.table["id"]] == [str(i) for i in range(12)]


@pytest.mark.parametrize(
    "name",
    [
        "xenium_selection.csv", "ficture.tsv", "excel_sep.csv", "decimal_comma.csv", "decimal_comma_quoted.csv", "elastix.pts",
        "latin1_qupath.csv", "utf16.csv",
    ],
)  # fmt: skip
def test_the_files_of_the_reports(name: str) -> None:
    path = CASES / "13" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    np.testing.assert_array_equal(rf.read_points(path).coords.numpy(), np.load(CASES / "13" / "truth.npy"))


def test_other_columns_stay_as_they_are(tmp_path: Path) -> None:
    frame = FRAME.assign(score=[0.5 * i for i in range(12)], pair=[f"{i},{i + 1}" for i in range(12)], note="a;b")
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    table = rf.read_table(path)
    assert list(table.columns["pair"]) == list(frame["pair"])  # a list beside decimal points is no number
    assert table.notes == ()
    frame[["id", "x", "y", "score"]].to_csv(path, index=False, sep=";", decimal=",")
    table = rf.read_table(path)
    assert [float(v) for v in table.columns["score"]] == list(frame["score"])
    assert table.notes == ("decimal commas were read as points",)
    frame = pd.DataFrame({"x": range(12), "y": range(12), "pair": [f"{i},{i + 1}" for i in range(12)]})
    frame.to_csv(path, index=False)
    assert list(rf.read_table(path).columns["pair"]) == list(
        frame["pair"]
    )  # one such column between commas is a list too


def test_missing_numbers_do_not_hide_the_comma(tmp_path: Path) -> None:
    frame = FRAME.assign(score=[np.nan, *FRAME.x[1:]])
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False, sep=";", decimal=",", na_rep="NA")
    table = rf.read_table(path)
    assert table.columns["score"][0] == "NA"
    assert [float(v) for v in table.columns["score"][1:]] == list(frame["score"][1:])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'x,y\n"25,609","124,420"\n"18,859","121,308"\n', "whether the comma in '124,420' is a decimal one"),
        (b"x\ty\n25,609\t124,420\n", "whether the comma in"),
        (b"id,x,y\n0,25,609,124,42\n1,18,859,121,308\n", "decimal commas without quotes"),
        (b"point\n3\n1 2\n3 4\n", "declares 3 points, and 2 follow"),
        (b"point\n1\n1 2 3 4\n", "its points have 4 components"),
        (b"x,y\n1,2\n\xff\xfe\xff\xfe\xff\xff\xff\xff\xff\xff\xff", "neither UTF-8 nor another text"),
        (b"x,y\n1,\x02\xe9\n", "neither UTF-8 nor another text"),
        (b"# a\n1,2\n", "wanted a header that names the columns"),
    ],
)
def test_what_is_open_is_refused_with_its_cause(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        rf.read_points(path)


def test_what_was_done_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"# a\n# b\n" + bytes_of(FRAME.assign(note="\xe9"), encoding="latin-1", sep=";", decimal=","))
    assert rf.read_table(path).notes == (
        "the text is no UTF-8 and was read as cp1252",
        "2 line(s) before the header were left out",
        "decimal commas were read as points",
    )


def test_lines_are_counted_from_the_first_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("# a\n\nsep=,\nx,y\n1,2\n3,\n")
    with pytest.raises(ValueError, match=r"line 6\)"):
        rf.read_points(path)


def test_points_of_elastix_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "p.pts"
    path.write_text("index\n2\n3 4\n5 6\n")
    points = rf.open(path)
    assert isinstance(points, rf.PointSet)
    assert (points.unit, points.coords.tolist()) == ("px", [[4.0, 3.0], [6.0, 5.0]])
    rf.write_points(points, tmp_path / "o.pts", {"extra": [1, 2]})
    assert (tmp_path / "o.pts").read_text() == "index\n2\n3.0 4.0\n5.0 6.0\n"
    path.write_text("point\n2\n3 4 1\n5 6 1.5\n")
    solid = rf.read_points(path, unit="mm")
    assert (solid.unit, solid.coords.tolist()) == ("mm", [[1.0, 4.0, 3.0], [1.5, 6.0, 5.0]])
    rf.write_points(solid, tmp_path / "o.pts")
    assert (tmp_path / "o.pts").read_text() == "point\n2\n3.0 4.0 1.0\n5.0 6.0 1.5\n"
    (tmp_path / "none.pts").write_text("point\n0\n")
    assert len(rf.read_points(tmp_path / "none.pts")) == 0


def test_points_of_transformix(tmp_path: Path) -> None:
    line = "Point\t{}\t; InputIndex = [ 1 2 ]\t; InputPoint = [ {} {} ]\t; OutputPoint = [ {} {} ]\t; Deformation = [ 0 1 ]\n"
    path = tmp_path / "outputpoints.txt"
    path.write_text("".join(line.format(i, x, y, x + 1, y + 2) for i, (y, x) in enumerate(TRUTH.tolist())))
    with pytest.raises(ValueError, match=r"InputPoint_x, .* say which they are with columns="):
        rf.read_points(path)
    np.testing.assert_allclose(rf.read_points(path, "x=OutputPoint_x,y=OutputPoint_y").coords, TRUTH + [2, 1])  # noqa: RUF005
    assert list(rf.read_table(path).columns["id"]) == [str(i) for i in range(12)]


def test_the_head_of_a_file_tells_text() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"):
        raw = ("x;y;µm\n" * 2000).encode(encoding)
        assert all(text.is_text(raw[:n]) for n in (5, 4095, 4096, 4097)), encoding
    assert text.is_text("名前,x,y\n一,1,2\n".encode())
    for raw in (
        gzip.compress(b"x,y"),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\xff\xd8\xff\xe0",
        np.arange(99.0).tobytes(),
    ):
        assert not text.is_text(raw)


@pytest.mark.parametrize("adapter", ["cells", "points"])
def test_instruments_and_weights_in_such_files(tmp_path: Path, adapter: str) -> None:
    frame = pd.DataFrame(
        {"cell_id": [f"c{i}" for i in range(12)], "x_centroid": TRUTH[:, 1], "y_centroid": TRUTH[:, 0],
         "transcript_counts": [1.5 + i for i in range(12)]}
    )  # fmt: skip
    path = tmp_path / "cells.csv"
    path.write_bytes(frame.to_csv(index=False, sep="\t", decimal=",").encode("utf-16"))
    if adapter == "points":
        np.testing.assert_array_equal(rf.open(path, adapter="points").coords.numpy(), TRUTH)
        return
    cells = rf.adapter("cells").read(path)
    assert cells.unit == "µm"
    np.testing.assert_array_equal(cells.coords.numpy(), TRUTH)
    np.testing.assert_array_equal(cells.numbers("transcript_counts"), frame["transcript_counts"])


def test_names_of_labels_in_such_files(tmp_path: Path) -> None:
    path = tmp_path / "n.txt"
    path.write_bytes("# atlas\nid;name\n1;Caudoputamen\n2;Größe\n".encode("utf-16"))
    assert tables.read_label_names(path) == {1: "Caudoputamen", 2: "Größe"}


# ---- landmarks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        ("label", "word"), ("name", "word"), ("Landmark ID", "word"), ("id", "number"), ("index", "number"), ("Label", "number"),
        ("barcode", "word"), ("point", "word"), ("pt_name", "word"), ("no", "number"), ("", "word"), ("fiducial", "word"),
    ],
)  # fmt: skip
def test_landmarks_in_another_order_are_joined(tmp_path: Path, column: str, ids: str) -> None:
    names = [f"L{i}" for i in range(12)] if ids == "word" else list(range(100, 112))
    fixed = pd.DataFrame({column: names, "x": TRUTH[:, 1], "y": TRUTH[:, 0]})
    moving = fixed.sample(frac=1, random_state=3)
    fixed.to_csv(tmp_path / "f.csv", index=False)
    moving[["y", "x", column] if column else [column, "y", "x"]].to_csv(tmp_path / "m.csv", index=False, sep=";")
    one, other = (rf.read_points(tmp_path / f"{side}.csv") for side in "fm")
    pairs = tables.paired(one, other)
    np.testing.assert_array_equal(pairs.fixed.coords, pairs.moving.coords)
    assert pairs.column == column
    assert pairs.words == f"paired on the column {column or '(unnamed)'!r}"


def test_a_name_outweighs_a_count(tmp_path: Path) -> None:
    """pandas writes an index that counts rows anew in a file that was shuffled."""
    fixed = pd.DataFrame({"label": list("abcdefghijkl"), "x": TRUTH[:, 1], "y": TRUTH[:, 0]})
    moving = fixed.sample(frac=1, random_state=1).reset_index(drop=True)
    fixed.to_csv(tmp_path / "f.csv")
    moving.to_csv(tmp_path / "m.csv")
    pairs = tables.paired(*(rf.read_points(tmp_path / f"{side}.csv") for side in "fm"))
    np.testing.assert_array_equal(pairs.fixed.coords, pairs.moving.coords)
    assert pairs.column == "label"


def test_rows_in_order_where_nothing_names_them(tmp_path: Path) -> None:
    fixed = pd.DataFrame({"x": TRUTH[:, 1], "y": TRUTH[:, 0], "label": "cell", "kind": "a"})
    fixed.to_csv(tmp_path / "f.csv", index=False)
    points = rf.read_points(tmp_path / "f.csv")
    assert tables.paired(points, points).column is None
    fixed.assign(name=range(12)).to_csv(tmp_path / "m.csv", index=False)
    fixed.assign(landmark=list("abcdefghijkl")).to_csv(tmp_path / "n.csv", index=False)
    pairs = tables.paired(rf.read_points(tmp_path / "m.csv"), rf.read_points(tmp_path / "n.csv"))
    assert pairs.words == "paired row by row"  # their names have nothing in common
    one = points.replace(table={**points.table, "id": [str(float(i)) for i in range(12)]})
    two = points.replace(table={**points.table, "id": [f"{i:03}" for i in range(12)]})
    assert tables.paired(one, two).column == "id"


def test_two_columns_that_pair_differently_are_refused(tmp_path: Path) -> None:
    fixed = pd.DataFrame({"id": range(12), "label": list("abcdefghijkl"), "x": TRUTH[:, 1], "y": TRUTH[:, 0]})
    moving = fixed.sample(frac=1, random_state=1).assign(id=range(12))
    fixed.to_csv(tmp_path / "f.csv", index=False)
    moving.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(ValueError, match="got two, by the columns 'id' and 'label'"):
        tables.paired(*(rf.read_points(tmp_path / f"{side}.csv") for side in "fm"))


def test_keypoints_of_xenium_explorer_and_bigwarp(tmp_path: Path) -> None:
    path = tmp_path / "keypoints.csv"
    frame = pd.DataFrame({"fixedX": [1.5, 2], "fixedY": [3, 4], "alignmentX": [5, 6], "alignmentY": [7, 8.5]})
    frame.to_csv(path, index=False)
    fixed, moving, units = rf.read_landmarks(path)
    assert (fixed.tolist(), moving.tolist(), units) == (
        [[3.0, 1.5], [4.0, 2.0]],
        [[7.0, 5.0], [8.5, 6.0]],
        ("px", "px"),
    )
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["Pt-0", "true", 1, 2, 3, 4])
        writer.writerow(["Pt-1", "false", 1, 2, "Infinity", "Infinity"])
        writer.writerow(["Pt-2", "true", 5, 6, 7, 8])
    fixed, moving, units = rf.read_landmarks(path)
    assert (fixed.tolist(), moving.tolist(), units) == (
        [[4.0, 3.0], [8.0, 7.0]],
        [[2.0, 1.0], [6.0, 5.0]],
        (None, None),
    )


def test_words_in_a_cell_do_not_divide_it(tmp_path: Path) -> None:
    rows = [f"c{i},{3.5 * (i % 7)},{i / 3:.4f},type {i % 4}" for i in range(40)]
    (tmp_path / "a.csv").write_text("id,x_um,y_um,kind\n" + "\n".join(rows) + "\n")
    points = rf.open(tmp_path / "a.csv", adapter="points")
    assert isinstance(points, rf.PointSet)
    assert len(points) == 40
    assert list(points.table["kind"][:2]) == ["type 0", "type 1"]
