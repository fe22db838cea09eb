"""What is written is whole, on the disk and named in one step; what is read is never replaced, and does not change meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regframe as rf
from regframe.io import claims, inputs, outputs, replacing, whole
from regframe.io.spreadsheet import text_cell

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, or exchanges names")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write a file beyond ``size`` bytes, with EFBIG: as a full disk does, and without being root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.name.startswith(".") or p.name.endswith(".partial"))


def dead_claim(target: Path) -> Path:
    """The hidden folder of a process that has ended, as that would have left it."""
    process = subprocess.Popen(["true"])
    process.wait()
    name = f".{target.name}.{claims._machine()}-{process.pid}-1-abcd{claims.SUFFIX}"
    folder = target.with_name(name)
    folder.mkdir()
    (folder / target.name).write_text("half")
    return folder


# ------------------------------------------------------------------------------------------------------------ full disk


def _volume(path: Path) -> None:
    pytest.importorskip("SimpleITK")
    from regframe_image.volume import write_volume

    values = np.random.default_rng(0).random((1, 12, 20, 30)).astype(np.float32)
    write_volume(path, values, (1.0,) * 3, (0.0,) * 3, "mm")


def _map(path: Path) -> None:
    if path.suffix != ".npz":
        pytest.importorskip("SimpleITK")
    from regframe.formats import ants, itk, nifti
    from regframe.formats.steps import Field

    field = Field(np.random.default_rng(0).random((20, 30, 2)), (1.0, 1.0), (0.0, 0.0), np.eye(2))
    if path.name.endswith((".nii", ".nii.gz")):
        nifti.write_field(path, field, "mm")
    elif path.suffix == ".mat":
        itk.write_transform(ants.ants_files(path.with_name(path.name.removesuffix(ants.AFFINE)))[0], [np.eye(3)])
    else:
        itk.write_transform(path, [np.eye(3), field] if "bent" in path.name else [np.eye(3)])


def _image(path: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (1, 90, 80), generator=generator, dtype=torch.uint8)
    rf.adapter("image").save(rf.Image(pixels, rf.Grid((90, 80))), path)


def _table(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame({"x": np.random.default_rng(0).random(2000)}).to_parquet(path)


FOREIGN = {
    "map.tfm": (_map, 60), "bent.tfm": (_map, 400), "map.txt": (_map, 60), "map.h5": (_map, 700), "bent.h5": (_map, 700),
    "a0GenericAffine.mat": (_map, 50), "field.nii": (_map, 900), "field.nii.gz": (_map, 90),
    "volume.nii": (_volume, 3000), "volume.nii.gz": (_volume, 3000),
    "volume.nrrd": (_volume, 3000), "volume.mha": (_volume, 3000),
    "image.tif": (_image, 2000), "image.png": (_image, 2000), "image.jpg": (_image, 500), "image.zarr": (_image, 1500),
    "table.parquet": (_table, 2000),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_full_disk_leaves_nothing_under_the_name(tmp_path: Path, name: str) -> None:
    write, most = FOREIGN[name]
    target = tmp_path / name
    with outputs.staged(target) as path:  # there is room: it passes, so the checks know sound files
        write(path)
    kept = {p: p.stat().st_ino for p in tmp_path.rglob("*")}
    with (
        files_of_at_most(most),
        pytest.raises(OSError, match="cannot write") as caught,
        outputs.staged(target, True) as path,
    ):
        write(path)
    assert "\n" not in str(caught.value)
    assert str(target) in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert {p: p.stat().st_ino for p in tmp_path.rglob("*")} == kept  # what lay there before still does


@pytest.mark.parametrize("name", [n for n in FOREIGN if not n.endswith(".zarr")])
def test_a_file_that_is_cut_short_is_told(tmp_path: Path, name: str) -> None:
    FOREIGN[name][0](tmp_path / name)
    data = (tmp_path / name).read_bytes()
    whole.check_whole(tmp_path / name, tmp_path / name)
    for cut in (1, 20, len(data) // 2, len(data) - 1):
        (tmp_path / name).write_bytes(data[: len(data) - cut])
        with pytest.raises(replacing.NotWritten, match="cut short"):
            whole.check_whole(tmp_path / name, tmp_path / name)


def test_another_content_under_such_a_name_is_not_judged(tmp_path: Path) -> None:
    for name in ("cells.tif", "cells.h5", "cells.parquet", "cells.png"):
        put(tmp_path / name, "x,y\n1,2\n", False)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_library_that_does_not_say_why_it_failed(tmp_path: Path) -> None:
    def write() -> None:
        with outputs.staged(tmp_path / "a.bin") as path:
            with contextlib.suppress(OSError):
                path.write_bytes(b"x" * 9000)
            raise RuntimeError("H5Dclose failed")

    with files_of_at_most(8192), pytest.raises(replacing.NotWritten, match="File too large") as caught:
        write()
    assert caught.value.errno == errno.EFBIG  # by which a batch tells a full disk from a bad job
    with pytest.raises(RuntimeError, match="H5Dclose"):  # there is room: it is what it is
        write()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own")
def test_a_small_file_system_that_is_full(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        with (
            pytest.raises(OSError, match="No space left on device") as caught,
            outputs.staged(tmp_path / "a.npz") as path,
        ):
            path.write_bytes(bytes(160_000))  # not `np.savez`: that of numpy 2.0 leaves the file open
        assert caught.value.errno == errno.ENOSPC
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# ------------------------------------------------------------------------------------------------------------ one step


def put(target: Path, text: str, folder: bool) -> None:
    with outputs.staged(target, overwrite=True) as path:
        if folder:
            path.mkdir()
            (path / "a").write_text(text)
            (path / "b").write_text(text)
        else:
            path.write_text(text)


@LINUX
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_two_writers_and_a_reader_that_always_finds_it(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "out"
    put(target, "0", folder)
    stop, failed = threading.Event(), list[str]()

    def write(mark: str) -> None:
        while not stop.is_set():
            try:
                put(target, mark, folder)
            except Exception as error:  # noqa: BLE001 - reported below
                failed.append(repr(error))
                return

    writers = [threading.Thread(target=write, args=(mark,)) for mark in "12"]
    for writer in writers:
        writer.start()
    looks, absent = 0, 0
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        looks += 1
        absent += not target.exists()
    stop.set()
    for writer in writers:
        writer.join()
    assert (absent, failed) == (0, []), f"{absent} of {looks} looks"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_replaced_whether_names_can_be_exchanged_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(replacing, "_renamed", lambda *_: False)
    for folder in (True, False):
        target = tmp_path / f"out{folder}"
        for text in "12":
            put(target, text, folder)
            assert (target / "a" if folder else target).read_text() == text
    assert hidden(tmp_path) == []


@LINUX
def test_a_death_between_two_renames_is_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moves are written down before the first; what a dead process left undone is done by the next command."""
    for number in range(3):
        target, beside = tmp_path / "out.hdr", tmp_path / "out.bin"
        for path in (target, beside):
            path.write_text("old")
        aside = dead_claim(target)
        (aside / target.name).write_text("new")
        (aside / beside.name).write_text("new")
        claims.write_moves(aside, [(aside / beside.name, beside), (aside / target.name, target)])
        if number > 0:
            (aside / beside.name).replace(beside)
        if number > 1:
            (aside / target.name).replace(target)
        outputs.check_file(target, overwrite=True)
        assert [target.read_text(), beside.read_text(), hidden(tmp_path)] == ["new", "new", []]
    folder = tmp_path / "run"
    aside = dead_claim(folder)
    (aside / "run").unlink()
    (aside / "run").mkdir()
    (aside / "run" / "a").write_text("new")
    claims.write_moves(aside, [(aside / "run", folder)])  # the earlier folder was moved away, the new one not yet named
    claims.heal(folder)
    assert (folder / "a").read_text() == "new"


@LINUX
def test_hidden_folders_of_the_dead_alone_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    gone, other = dead_claim(target), dead_claim(tmp_path / "other")
    far = tmp_path / f".out.00000000-{os.getpid()}-1-abcd.partial"  # of another machine, or container
    far.mkdir()
    with claims.claimed(target) as ours:
        states = {claim.path: claim.state for claim in claims.found(tmp_path)}
        assert states == {other: "dead", far: "unknown", ours: "alive"}
        assert not gone.exists()
        assert json.loads((ours / claims.OWNER).read_text())["process"] == os.getpid()
        put(target, "x", False)  # beside one that is alive
        assert ours.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"out", other.name, far.name}


def test_moves_that_lead_elsewhere_are_not_made(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("thesis")
    folder = tmp_path / "sub" / ".x.partial"
    folder.mkdir(parents=True)
    (folder / "evil").write_text("evil")
    (folder / claims.MOVES).write_text(json.dumps([[b"evil".hex(), b"../mine".hex()]]))
    assert not claims.complete(folder)
    assert (tmp_path / "mine").read_text() == "thesis"


# ------------------------------------------------------------------------------------------------- what is not replaced


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "link to nowhere", "socket"])
def test_only_files_and_folders_are_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out.csv"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "device":
        target = Path("/dev/null")
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(target))
    else:
        target.symlink_to("/dev/null" if "device" in kind else tmp_path / "no")
    with pytest.raises(FileExistsError, match="it is left alone"):
        outputs.check_file(target, overwrite=True)
    if kind not in ("device", "link to nowhere"):
        with pytest.raises(FileExistsError, match="it is left alone"), outputs.staged(target, overwrite=True) as path:
            path.write_text("x")  # something that came to lie there while it was computed
        assert target.is_symlink() or not target.is_file()
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("how", ["itself", "linked", "inside", "around"])
def test_an_output_is_no_input(tmp_path: Path, how: str) -> None:
    store = tmp_path / "deep" / "in.zarr"
    store.mkdir(parents=True)
    (tmp_path / "link.zarr").symlink_to(store)
    output = {
        "itself": store,
        "linked": tmp_path / "link.zarr",
        "inside": store / "0" / "x.tif",
        "around": tmp_path / "deep",
    }
    with pytest.raises(ValueError, match="wanted an output apart from what is read"):
        outputs.check_file(output[how], True, [store])
    with pytest.raises(ValueError, match="wanted an output apart from what is read"):
        outputs.check_folder(output[how], True, [None, "s3://a/b", store])
    outputs.check_file(tmp_path / "deep" / "out.zarr", False, [store])


def test_a_zarr_store_of_others_is_not_replaced(tmp_path: Path) -> None:
    import zarr

    zarr.create_group(tmp_path / "raw.zarr", attributes={"ome": {"version": "0.5"}})
    with pytest.raises(FileExistsError, match="that regframe did not write"):
        outputs.check_file(tmp_path / "raw.zarr", overwrite=True)
    _image(tmp_path / "own.zarr")
    outputs.check_file(tmp_path / "own.zarr", overwrite=True)


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "a/" + "x" * 300 + "/b", "", ".."])
def test_names_that_no_file_can_bear_are_told_in_advance(tmp_path: Path, name: str) -> None:
    for check in (outputs.check_file, outputs.check_folder):
        with pytest.raises(
            (ValueError, OSError), match=r"wanted (a name|an output with a name)|File name too long"
        ) as caught:
            check(tmp_path / name if name else Path("/"), True)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, os.fsdecode(b"caf\xe9" * 60), "a\nb", "%41 & <b>"])
def test_names_that_a_file_can_bear_are_written(tmp_path: Path, name: str) -> None:
    outputs.check_file(tmp_path / name, False)
    put(tmp_path / name, "1", False)
    put(tmp_path / name, "2", False)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    long = name[: 250 - 10] + ".png" if len(name) == 255 else f"{name[:60]}.png"
    _image(tmp_path / long)
    assert [p.name for p in tmp_path.iterdir()] == [long]


# --------------------------------------------------------------------------------------------- inputs that are replaced


def _store(path: Path, value: int) -> None:
    import zarr

    zarr.create_array(path, shape=(64, 64), chunks=(8, 8), dtype="u1")[...] = value


def _touch_later(path: Path, add: int = 10**9) -> None:
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + add))


CHANGES: dict[str, Any] = {
    "a file of another size": ("f.tif", lambda p: p.write_bytes(b"longer than it was")),
    "a file with the same size and time": ("f.tif", lambda p: _swapped(p)),
    "a clock that went back": ("f.tif", lambda p: _touch_later(p, -(10**13))),
    "a file that is gone": ("f.tif", lambda p: p.unlink()),
    "a chunk": ("f.zarr", lambda p: (p / "c" / "0" / "1").write_bytes(b"x")),
    "a new chunk": ("f.zarr", lambda p: (p / "c" / "0" / "99").write_bytes(b"x")),
    "a store": ("f.zarr", lambda p: (p.rename(p.with_name("old")), _store(p, 7))),
    "the pixels of a header": ("f.mhd", lambda p: p.with_suffix(".raw").write_bytes(b"other")),
}


def _swapped(path: Path) -> None:
    facts, other = path.stat(), path.with_name("other")
    other.write_bytes(b"x" * facts.st_size)
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_is_replaced_while_it_is_read_is_an_error(tmp_path: Path, change: str) -> None:
    name, alter = CHANGES[change]
    source = tmp_path / "in" / name
    source.parent.mkdir()
    if name.endswith(".zarr"):
        _store(source, 3)
    else:
        source.write_bytes(b"pixels")
        source.with_suffix(".raw").write_bytes(b"pixels")
    with inputs.watched():
        inputs.note(source)
        put(tmp_path / "first", "1", False)  # as it was: nothing to say
        alter(source)
        with pytest.raises(ValueError, match="to stay as it is while it is read"):
            put(tmp_path / "out", "1", False)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "first"}
    put(tmp_path / "out", "1", False)  # what another command noted is its own


def test_what_others_put_into_a_folder_of_files_does_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "xenium"
    (folder / "cells").mkdir(parents=True)
    (folder / "cells" / "a.csv").write_text("x,y\n")
    with inputs.watched():
        inputs.note(folder)
        (folder / "notes.txt").write_text("mine")
        (folder / "cells" / "b.csv").write_text("x,y\n")
        inputs.check_untouched()
        (folder / "cells" / "a.csv").write_text("x,y\n1,2\n")
        with pytest.raises(ValueError, match="xenium to stay as it is"):
            inputs.check_untouched()


def test_a_result_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    put(tmp_path / "run", "1", True)
    times = []

    def read(path: Path) -> list[str]:
        first = (path / "a").read_text()
        if not times:
            put(path, "2", True)
        times.append(first)
        return [first, (path / "b").read_text()]

    assert inputs.steady(tmp_path / "run", read) == ["2", "2"]
    assert times == ["1", "2"]

    def fail(path: Path) -> None:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        inputs.steady(tmp_path / "run", fail)


# ---------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+2", "-cmd", "@SUM(A1)", "\t=1", " =1", "＝1", "\r=1", "-"])
def test_text_that_a_spreadsheet_would_run_is_kept_text(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-3.5", "+1e-3", "a=1", "", None, -3, "<script>", "-inf"])
def test_numbers_and_other_text_are_left(value: object) -> None:
    assert text_cell(value) == value


def test_an_ome_tiff_has_the_bytes_of_its_content(tmp_path: Path) -> None:
    import tifffile

    for name in ("a.ome.tif", "b.ome.tif"):
        _image(tmp_path / name)
    data = (tmp_path / "a.ome.tif").read_bytes()
    assert data == (tmp_path / "b.ome.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        text = file.ome_metadata or ""
    identity = text.split("urn:uuid:")[1][:36]
    assert identity[14] == "5"  # made of the content; version 1 holds the time and this machine's address
