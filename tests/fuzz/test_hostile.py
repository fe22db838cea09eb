"""Named cases of files that are made to harm: bombs, files that are none, names that lead elsewhere, sizes that are not there."""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import os
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_run import run, word_for
from fuzz_seeds import make, pixels

import regframe as rf
from regframe import gate

ZEROS = 1 << 29
"""Bytes that a bomb becomes; a reader that unpacks it whole is seen by its memory."""


def refused(path: Path, *words: str, lines: int = 2, command: str = "register") -> str:
    """What a command says of a file: one sentence with these words, exit code 2, in little time."""
    began = time.monotonic()
    arguments = (
        ["info", str(path)] if command == "info" else ["register", str(path), str(path), "-o", "out", "--dry-run"]
    )
    code, said = run(arguments)
    assert word_for(code, said) == "refused", said
    assert len([line for line in said.splitlines() if not line.startswith("Warning")]) <= lines, said
    assert all(word in said for word in words), said
    assert time.monotonic() - began < 10
    return said


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let the process take no more than 400 MB beside what it has."""
    import resource

    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((used << 10) + (400 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# ---- what is no regular file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.csv", "a.h5ad", "a.zarr"])
def test_a_pipe_is_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "regular file", "pipe (FIFO)")
    with pytest.raises(ValueError, match="pipe"):
        rf.adapter("image").open(tmp_path / name)


def test_devices_and_sockets_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    refused(tmp_path / "zeros.png", "a device")
    where = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(where))
        refused(where, "a socket")


@pytest.mark.parametrize("what", ["landmarks", "config", "manifest", "shapes", "map", "mask"])
def test_no_command_waits_for_a_pipe(tmp_path: Path, what: str) -> None:
    pipe, png = tmp_path / f"a.{'tfm' if what == 'map' else 'csv'}", str(make("png", tmp_path / "png"))
    os.mkfifo(pipe)
    line = {
        "landmarks": ["register", png, png, "-o", "x", "--dry-run", "--landmarks", str(pipe)],
        "config": ["register", png, png, "-o", "x", "--dry-run", "--config", str(pipe)],
        "mask": ["register", png, png, "-o", "x", "--dry-run", "--fixed-mask", str(pipe)],
        "manifest": ["batch", str(pipe), "-o", str(tmp_path / "x")],
        "shapes": [
            "apply",
            "shapes",
            str(make("result", tmp_path / "r")),
            str(pipe),
            "-o",
            "x.geojson",
            "--to",
            "fixed",
        ],
        "map": ["import", str(pipe), "-o", str(tmp_path / "x"), "--fixed", png, "--moving", png],
    }[what]
    code, said = run(line)
    assert code == 2, said
    assert "Error" in said


@pytest.mark.parametrize(
    ("at", "width", "value", "said"),
    [
        (100, 4, 2**32 - 1, "4294967295 variable length records"),
        (94, 2, 60_000, "60000 bytes of header"),
        (96, 4, 2**31, "2147483648"),
    ],
)
def test_a_las_header_that_counts_more_than_the_file_holds(
    tmp_path: Path, at: int, width: int, value: int, said: str
) -> None:
    pytest.importorskip("laspy")
    path = make("las", tmp_path)
    data = bytearray(path.read_bytes())
    data[at : at + width] = value.to_bytes(width, "little")
    path.write_bytes(data)
    refused(path, said)


def test_a_chunk_that_is_a_pipe_or_a_device(tmp_path: Path) -> None:
    path = make("zarr none", tmp_path)
    chunk = path / "0" / "0.0.0"
    for kind in ("pipe", "device"):
        chunk.unlink()
        os.mkfifo(chunk) if kind == "pipe" else chunk.symlink_to("/dev/zero")
        refused(path, "0.0.0")


def test_a_companion_that_is_a_pipe(tmp_path: Path) -> None:
    path = two_files(tmp_path)
    (tmp_path / "b.ome.tif").unlink()
    os.mkfifo(tmp_path / "b.ome.tif")
    refused(path, "regular file", "pipe")


def two_files(folder: Path) -> Path:
    """An OME-TIFF whose second plane lies in another file."""
    import tifffile

    for name in "ab":
        others = "".join(
            f'<TiffData IFD="0" FirstC="{i}" PlaneCount="1"><UUID FileName="{n}.ome.tif">urn:uuid:{n}</UUID></TiffData>'
            for i, n in enumerate("ab")
        )
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{name}"><Image ID="Image:0"><Pixels '
            'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="20" SizeY="24" SizeC="2" SizeZ="1" SizeT="1">'
            f"{others}</Pixels></Image></OME>"
        )
        tifffile.imwrite(folder / f"{name}.ome.tif", pixels(24, 20), description=xml, metadata=None)
    return folder / "a.ome.tif"


# ---- what leads out of the folder -----------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that no input may read."""
    path = tmp_path / "secret.raw"
    path.write_bytes(bytes(range(200)) * 40)
    return path


@pytest.mark.parametrize("spelling", ["data file", "datafile", "Data File", "DATA FILE"])
@pytest.mark.parametrize("late", [0, 70_000])
def test_nrrd_pixels_in_another_file(tmp_path: Path, secret: Path, spelling: str, late: int) -> None:
    path = tmp_path / "in" / "a.nrrd"
    path.parent.mkdir()
    head = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 10 10\nencoding: raw\n{'# ' + 'x' * late + chr(10)}"
    path.write_bytes(f"{head}{spelling}: {secret}\n\n".encode())
    refused(path)


@pytest.mark.parametrize(
    "spelling", ["ElementDataFile = {}", "ElementDataFile: {}", "ElementDataFile ={}", "elementdatafile = {}"]
)
def test_metaimage_pixels_in_another_file(tmp_path: Path, secret: Path, spelling: str) -> None:
    path = tmp_path / "in" / "a.mha"
    path.parent.mkdir()
    path.write_text(
        "ObjectType = Image\nNDims = 2\nDimSize = 10 10\nElementType = MET_UCHAR\n" + spelling.format(secret) + "\n"
    )
    refused(path)


def test_chunks_and_arrays_that_are_links_out_of_the_store(tmp_path: Path, secret: Path) -> None:
    path = make("zarr none", tmp_path / "store")
    chunk = path / "0" / "0.0.0"
    chunk.unlink()
    chunk.symlink_to(secret)
    refused(path, "leads out of it")
    (path / "1").rename(tmp_path / "elsewhere")
    (path / "1").symlink_to(tmp_path / "elsewhere")
    refused(path, "leads out of it")


def test_a_link_inside_the_store_is_followed(tmp_path: Path) -> None:
    path = make("zarr none", tmp_path)
    chunk = path / "0" / "0.0.0"
    chunk.rename(path / "kept")
    chunk.symlink_to(Path("..") / "kept")
    assert run(["info", str(path)])[0] == 0


@pytest.mark.parametrize("how", ["link", "virtual", "raw"])
def test_an_h5ad_whose_data_lie_in_another_file(tmp_path: Path, how: str) -> None:
    import h5py

    path = make("h5ad", tmp_path / "in")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["spatial"] = np.zeros((40, 2))
    with h5py.File(path, "r+") as file:
        del file["obsm/spatial"]
        if how == "link":
            file["obsm/spatial"] = h5py.ExternalLink(str(other), "/spatial")
        elif how == "virtual":
            layout = h5py.VirtualLayout((40, 2), dtype="f8")
            layout[:] = h5py.VirtualSource(str(other), "spatial", (40, 2))
            file["obsm"].create_virtual_dataset("spatial", layout)
        else:
            file["obsm"].create_dataset("spatial", (40, 2), "f8", external=[(str(other), 0, 640)])
    refused(path, "/obsm/spatial")


def test_ome_companions_elsewhere(tmp_path: Path) -> None:
    path = two_files(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"b.ome.tif", b"../xx.tif"))
    refused(path, "other folders")
    path.write_bytes(data.replace(b"b.ome.tif", b"&#46;&#46;"[:9]))
    assert run(["info", str(path)])[0] in (0, 2)


# ---- bombs ----------------------------------------------------------------------------------------------------------


@functools.cache
def packed_zeros(kind: str) -> bytes:
    """`ZEROS` bytes of 0, packed; what follows the last of them is never reached."""
    block, count = bytes(1 << 24), ZEROS >> 24
    if kind == "bz2":
        return bz2.compress(block) * count
    if kind == "lzma":
        return lzma.compress(block, preset=0) * count
    if kind == "zstd":
        import imagecodecs

        return bytes(imagecodecs.zstd_encode(bytes(ZEROS // 4)))
    if kind == "gzip":
        return gzip.compress(block) * count
    stream = zlib.compressobj(9)
    start = stream.compress(b"0") + stream.flush(zlib.Z_FULL_FLUSH)
    return start + (stream.compress(block) + stream.flush(zlib.Z_FULL_FLUSH)) * count


@pytest.mark.parametrize("kind", ["v2 gzip", "v2 zlib", "v2 bz2", "v2 lzma", "v2 zstd", "v3 gzip", "v3 zstd"])
def test_a_chunk_that_is_a_bomb(tmp_path: Path, kind: str, little_memory: None) -> None:
    path = make(f"zarr {kind}", tmp_path)
    chunk = path / "0" / ("0.0.0" if kind.startswith("v2") else "c/0/0/0")
    chunk.write_bytes(packed_zeros(kind.split()[1]))
    refused(path, "more than" if "zstd" not in kind else "unpack")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz", "a.geojson.gz", "a.nii.gz"])
def test_a_gzipped_bomb(tmp_path: Path, name: str, little_memory: None) -> None:
    path = tmp_path / name
    head = gzip.compress(b"x,y\n1,2\n" if "sv" in name else b"")
    if name.endswith("nii.gz"):
        sound = bytearray(gzip.decompress(make("nii.gz", tmp_path / "s").read_bytes()))
        struct.pack_into("<4h", sound, 40, 3, 30000, 30000, 2)
        head = gzip.compress(bytes(sound))
    path.write_bytes(head + packed_zeros("gzip"))
    if "geojson" in name:
        with pytest.raises(ValueError, match="wanted at most"):
            rf.read_shapes(path)
        return
    refused(path, name)


def test_zip_entries_that_are_bombs(tmp_path: Path, little_memory: None) -> None:
    path = make("zarr zip", tmp_path)
    with zipfile.ZipFile(path) as archive:
        entries = {i.filename: archive.read(i) for i in archive.infolist() if not i.is_dir()}
    for name in ("0/.zarray", "0/0.0.0"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for entry, data in entries.items():
                with archive.open(entry, "w", force_zip64=True) as file:
                    file.write(data)
                    for _ in range(ZEROS >> 24 if entry == name else 0):
                        file.write(b" " * (1 << 24))
        refused(path)


def test_a_parquet_table_of_runs(tmp_path: Path, little_memory: None) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    rows = pa.table({name: pa.array(np.zeros(1 << 19)) for name in ("x", "y", "n")})
    with parquet.ParquetWriter(path, rows.schema, compression="zstd") as writer:
        for _ in range(12):
            writer.write_table(rows)
    refused(path, "rows of 3 columns")


def test_an_h5ad_of_rows_that_were_never_written(tmp_path: Path) -> None:
    import h5py

    path = make("h5ad", tmp_path)
    with h5py.File(path, "r+") as file:
        del file["obsm/spatial"]
        file["obsm"].create_dataset("spatial", (10**9, 2), "f8", chunks=(1024, 2))
    refused(path, "/obsm/spatial", "1000000000")


def test_yaml_references_that_multiply(tmp_path: Path, little_memory: None) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path = tmp_path / "c.yaml"
    path.write_text("\n".join(lines))
    png = str(make("png", tmp_path))
    code, said = run(["register", png, png, "-o", "out", "--config", str(path), "--dry-run"])
    assert code == 2
    assert "references" in said
    path.write_text("[" * 1500)
    assert run(["register", png, png, "-o", "out", "--config", str(path), "--dry-run"])[0] == 2


@pytest.mark.parametrize("attribute", ["SizeC", "SizeZ", "SizeT", "SizeX"])
def test_ome_xml_that_declares_a_billion_planes(tmp_path: Path, attribute: str, little_memory: None) -> None:
    path = make("ome-tiff", tmp_path)
    import tifffile

    with tifffile.TiffFile(path) as file:
        xml = str(file.ome_metadata)
    number = xml.split(f'{attribute}="')[1].split('"')[0]
    tifffile.imwrite(
        path,
        pixels(32, 32),
        description=xml.replace(f'{attribute}="{number}"', f'{attribute}="1000000000"'),
        metadata=None,
    )
    refused(path, "declares", "1000000000")


def test_metaimage_channels_and_dimensions(tmp_path: Path, little_memory: None) -> None:
    head = "ObjectType = Image\nNDims = {}\nBinaryData = True\nDimSize = {}\nElementNumberOfChannels = {}\n"
    head += "ElementType = MET_UCHAR\n"
    for n, size, channels in (
        (2, "10 10", 2_000_000_000),
        (2, "-1 10", 1),
        (-1, "10 10", 1),
        (3, "10 10", 1),
        (2, "60000 60000", 1),
    ):
        path = tmp_path / "a.mha"
        path.write_bytes((head.format(n, size, channels) + "ElementDataFile = LOCAL\n").encode() + bytes(100))
        refused(path, "a.mha")


@pytest.mark.parametrize(
    "lines",
    ["space: " + "x" * 3000, "content: " + "y" * 3000, "line skip: 5",
     "byte skip: -1", "lineskip: 3", "byteskip: 1000000", "type: block\nblock size: 8", "dimension: 16",
     "sizes: 10 -1", "sizes: 0 0", "encoding: hex", "encoding: bzip2", "kinds: domain", "space directions: (1,0)"],
)  # fmt: skip
def test_nrrd_headers_that_took_the_process_down(tmp_path: Path, lines: str) -> None:
    fields = {"type": "uint8", "dimension": "2", "sizes": "10 10", "encoding": "raw"}
    fields |= dict(line.split(": ") for line in lines.split("\n"))
    path = tmp_path / "a.nrrd"
    path.write_bytes(("NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in fields.items()) + "\n").encode() + bytes(100))
    refused(path, "a.nrrd")


def test_a_jpeg_of_many_pixels_in_few_bytes(tmp_path: Path, little_memory: None) -> None:
    data = bytearray(make("jpeg progressive", tmp_path).read_bytes())
    at = data.index(b"\xff\xc2") + 5
    data[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    (tmp_path / "a.jpg").write_bytes(data)
    refused(tmp_path / "a.jpg", "20000 x 20000")


# ---- sizes and fields that cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [256, 257, 322, 323])
@pytest.mark.parametrize("value", [0, 1 << 31])
def test_a_tiff_without_width_height_or_tile(tmp_path: Path, tag: int, value: int) -> None:
    path = make("tiff tiled", tmp_path)
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, at)[0] == tag:
            struct.pack_into("<HHII", data, at, tag, 4, 1, value)
    path.write_bytes(data)
    refused(path, "a.tif")


@pytest.mark.parametrize("value", [[], "x", 7, [1], None, {"channels": 3}, {"channels": {"a": 1}}, {"channels": [1]}])
def test_omero_of_any_type(tmp_path: Path, value: Any) -> None:
    path = make("zarr none", tmp_path)
    attributes = json.loads((path / ".zattrs").read_text())
    (path / ".zattrs").write_text(json.dumps(attributes | {"omero": value}))
    code, said = run(["info", str(path)])
    assert code == 0, said


@pytest.mark.parametrize("shape", [[0, 32, 32], [2, 10**7, 10**7], [2, 10**12, 10**12], [2, -1, 4], [2, 32]])
def test_zarr_shapes_that_no_image_has(tmp_path: Path, shape: list[int], little_memory: None) -> None:
    path = make("zarr none", tmp_path)
    header = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps(header | {"shape": shape}))
    refused(path)


def test_zarr_chunks_of_one_pixel(tmp_path: Path) -> None:
    path = make("zarr none", tmp_path)
    header = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps(header | {"shape": [2, 5000, 5000], "chunks": [1, 1, 1]}))
    refused(path, "chunks of (1, 1, 1)")


@pytest.mark.parametrize("codec", ["pickle", "json2", "msgpack2", "vlen-utf8"])
def test_codecs_that_run_code_or_make_objects(tmp_path: Path, codec: str) -> None:
    path = make("zarr none", tmp_path)
    header = json.loads((path / "0" / ".zarray").read_text())
    for change in ({"compressor": {"id": codec}}, {"filters": [{"id": codec}]}):
        (path / "0" / ".zarray").write_text(json.dumps(header | change))
        refused(path)


@pytest.mark.parametrize(
    "header",
    ["{'descr': '<u1', 'fortran_order': False, 'shape': (-1, 20), }",
     "{'descr': '|u1', 'fortran_order': False, 'shape': (10**12, ), }",
     "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 99999999), }", "{'descr': '<f16', 'fortran_order': False, "
     "'shape': (2, 2), }", "{'descr': ((((", "{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }"],
)  # fmt: skip
def test_npy_headers(tmp_path: Path, header: str) -> None:
    text = header.encode().ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(64))
    refused(tmp_path / "a.npy", "a.npy")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.nii.gz"])
@pytest.mark.parametrize("at", [0.3, 0.5, 0.9])
def test_damaged_gzip_streams(tmp_path: Path, name: str, at: float) -> None:
    path = make("csv.gz" if name == "a.csv.gz" else "nii.gz", tmp_path)
    data = bytearray(path.read_bytes())
    for k in range(8):
        data[int(len(data) * at) - k] ^= 0xFF
    path.write_bytes(data)
    refused(path, path.name)


def test_a_field_of_many_letters_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,y,n\n1,2,"' + "a" * 200_000 + '"\n3,4,b\n')
    code, said = run(["info", str(tmp_path / "a.csv")])
    assert code in (0, 2), said


def test_a_table_of_many_columns(tmp_path: Path) -> None:
    names = ["x", "y", *(f"gene{i}" for i in range(30_000))]
    (tmp_path / "a.csv").write_text("\n".join([",".join(names), *[",".join(["1.5"] * len(names))] * 2]) + "\n")
    began = time.monotonic()
    assert run(["info", str(tmp_path / "a.csv")])[0] == 0
    assert time.monotonic() - began < 10


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_names_do_not_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from click.testing import CliRunner

    from regframe.cli import main

    path = make("zarr none", tmp_path)
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["omero"]["channels"][0]["label"] = "\x1b]0;owned\x07\x1b[31mred\x9b2J"
    (path / ".zattrs").write_text(json.dumps(attributes))
    shown = CliRunner().invoke(main, ["info", str(path)]).output
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\\x1b[31mred" in shown


# ---- the boundary ---------------------------------------------------------------------------------------------------


class _Reader(rf.Adapter):
    name = "made"

    def __init__(self, fault: Callable[[], Any]) -> None:
        self.fault = fault

    def matches(self, source: Any) -> float:
        return 0.0

    def open(self, source: Any) -> Any:
        return self.fault()

    def apply(self, source: Any, transform: Any, grid: Any = None) -> Any:
        raise NotImplementedError

    def save(self, data: Any, path: Path) -> None:
        raise NotImplementedError


def _raising(error: BaseException) -> Callable[[], Any]:
    def fault() -> Any:
        raise error

    return fault


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), zlib.error("x"), KeyError("x"), struct.error("x"), SystemExit(0), MemoryError()]
)
def test_what_a_library_raises_is_one_sentence_about_the_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.made").write_text("x")
    with pytest.raises(gate.FileError, match=r"a\.made") as caught:
        _Reader(_raising(error)).open(tmp_path / "a.made")
    assert caught.value.__cause__ is error
    assert "made" in str(caught.value)


@pytest.mark.parametrize(
    "error", [NameError("x"), NotImplementedError(), AssertionError(), ImportError("x"), PermissionError(13, "no")]
)
def test_what_no_file_can_cause_stays_a_defect(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "a.made").write_text("x")
    passed = (
        type(error) if not isinstance(error, AssertionError) else gate.FileError
    )  # an assertion of a stranger's code
    with pytest.raises(passed):
        _Reader(_raising(error)).open(tmp_path / "a.made")


def test_errors_over_objects_in_memory_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        _Reader(_raising(ZeroDivisionError("x"))).open(np.zeros(3))


def test_the_limit_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("csv.gz", tmp_path)
    monkeypatch.setenv(gate.MOST_BYTES, "500")
    refused(path, "--max-bytes")
    code, said = run(["--max-bytes", "1M", "info", str(path)])
    assert code == 0, said
    assert run(["--max-bytes", "much", "info", str(path)])[0] == 2
