"""Manifests as people write them: addresses, names with blanks, quotes and odd bytes, encodings; errors name line and column."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click.testing
import pytest

import regframe as rf
from regframe.batch import work
from regframe.batch.manifest import Job, ManifestError, read_manifest
from regframe.cli import main

HEADER = "id,fixed,moving"


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "jobs.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_encodings_and_delimiters(tmp_path: Path, encoding: str, delimiter: str, ends: str) -> None:
    rows = ["id,fixed,moving,transform", "größe,x/ä.tif,/abs/é.tif,affine", "", "b,f.tif,m.tif,"]
    text = ends.join(row.replace(",", delimiter) for row in rows) + ends
    a, b = read_manifest(written(tmp_path, text, encoding))
    assert (a.id, a.fixed, a.moving) == ("größe", tmp_path / "x/ä.tif", Path("/abs/é.tif"))
    assert (a.transform, b.fixed) == ("affine", tmp_path / "f.tif")
    if delimiter == ";":
        again = read_manifest(written(tmp_path, f"sep=;{ends}{text}", encoding))
        assert [job.fixed for job in again] == [a.fixed, b.fixed]


NAMES = [
    "a b.tif",
    " lead.tif",
    "comma, dot.tif",
    'the "best".tif',
    "it's.tif",
    "a;b.tif",
    "ä.tif",
    "#1.tif",
    "~x.tif",
    "$HOME.tif",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_with_blanks_commas_and_quotes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    quoted = '"' + name.replace('"', '""') + '"'
    (job,) = read_manifest(written(tmp_path, f"id,fixed,moving,apply_image\na,{quoted},{quoted},{quoted}\n"))
    place = tmp_path / name
    assert (job.fixed, job.moving, job.apply_image) == (place, place, (place,))
    assert job.register_arguments(tmp_path)[-1] == str(place)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
@pytest.mark.parametrize("writes", ["bytes", "escaped"])
def test_names_that_are_no_utf_8(tmp_path: Path, writes: str) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9.tif")
    try:
        place.touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    cell = b"caf\xe9.tif" if writes == "bytes" else rb"caf\xe9.tif"
    path = tmp_path / "jobs.csv"
    path.write_bytes(b"id,fixed,moving,set\na," + cell + b",/m.tif,\n")
    (job,) = read_manifest(path)
    assert job.fixed == place
    assert os.fsencode(job.register_arguments(tmp_path)[-2]) == os.fsencode(place)
    assert job.options["fixed"] == str(tmp_path / r"caf\xe9.tif")  # what job.json holds is text
    seen = work.signature(job.fixed)
    assert seen is not None
    outcome = click.testing.CliRunner().invoke(main, ["batch", str(path), "-o", str(tmp_path / "o"), "--dry-run"])
    assert outcome.exit_code == 0
    assert "not there: a: /m.tif" in outcome.output
    # a Latin-1 manifest of a file whose name is UTF-8
    (tmp_path / "naïve.tif").touch()
    (job,) = read_manifest(written(tmp_path, f"{HEADER}\na,naïve.tif,m.tif\n", "cp1252"))
    assert job.fixed == tmp_path / "naïve.tif"


def test_addresses_are_taken_as_they_are(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f"{HEADER},apply_image\na,s3://bucket/he.ome.zarr,https://127.0.0.1:9/m.tif?sig=SECRET,s3://b/x.zarr; y.tif\n",
    )
    (job,) = read_manifest(path)
    assert job.fixed == rf.locate("s3://bucket/he.ome.zarr")
    assert job.register_arguments(tmp_path)[-2:] == ["s3://bucket/he.ome.zarr", "https://127.0.0.1:9/m.tif?sig=SECRET"]
    assert [str(place) for place in job.apply_image] == ["s3://b/x.zarr", str(tmp_path / "y.tif")]
    assert [name for _, _, name in job.applied()] == ["x.ome.zarr", "y.ome.zarr"]
    assert "SECRET" not in str(job.options)
    assert job.options["moving"] == "https://127.0.0.1:9/m.tif"
    again = Job(id="a", fixed="s3://bucket/he.ome.zarr", moving=job.moving, apply_image=job.apply_image)  # type: ignore[arg-type]
    assert again == job


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,fixed,moving,landmarks\na,f,m,s3://b/l.csv\n", "line 2: wanted in the column 'landmarks' a file on this disk"),
        ("id,fixed,moving,init\na,f,m,https://h/i.csv\n", "line 2: wanted in the column 'init' a file on this disk"),
        ("id,fixed,moving,apply_points\na,f,m,\nb,f,m,s3://b/p.csv\n", "line 3: wanted in the column 'apply_points.0' a file"),
        (f"{HEADER}\na,s3://,m\n", "line 2: wanted in the column 'fixed' the address of an object"),
        (f"{HEADER}\na,f,https://me:SECRET@host/m.tif?SECRET\n", "'https://host/m.tif'"),
        (f"{HEADER}\nb,f,m\na,\"he\" x.tif,m\n", "got on line 3: "),
        (f"sep=;\n{HEADER.replace(',', ';')}\n\na;f;m\nb;f\n", "line 5: wanted 3 cells, got 2"),
        ("id,fixed,moving,level\na,f,m,x\n", "line 2: wanted in the column 'level' a valid integer"),
    ],
)  # fmt: skip
def test_errors_name_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=re.escape(message)) as caught:
        read_manifest(written(tmp_path, text))
    assert "SECRET" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.xlsx"
    path.write_bytes(b"PK\3\4" + bytes(range(256)) * 4)
    with pytest.raises(ManifestError, match=r"wanted a table as text, got .*save it as CSV UTF-8"):
        read_manifest(path)


def test_what_lies_under_an_address_is_known_again(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    import fake_stores as stores

    (tmp_path / "m.tif").write_bytes(b"one")
    with stores.web(tmp_path) as (url, _):
        place: Any = rf.locate(f"{url}/m.tif")
        first = work.signature(place)
        assert first is not None
        assert first["size"] == 3
        (tmp_path / "m.tif").write_bytes(b"other")
        assert work.signature(place) not in (None, first)
        assert work.signature(rf.locate(f"{url}/none.tif")) is None
        path = written(tmp_path, f"{HEADER}\na,{url}/m.tif,{url}/none.tif\n")
        outcome = click.testing.CliRunner().invoke(main, ["batch", str(path), "-o", str(tmp_path / "o"), "--dry-run"])
    assert f"not there: a: {url}/none.tif" in outcome.output
    assert f"{url}/m.tif" not in outcome.output
