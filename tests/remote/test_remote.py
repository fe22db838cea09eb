"""Stores that are not on this disk, from servers on loopback."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import fake_slides as slides
import fake_stores as stores
import numpy as np
import pytest
import tifffile
import torch
from regframe_image import raw

import regframe as rf
from regframe.cli import main
from regframe.remote import address
from regframe.slides import remoteshards
from regframe.slides.warp import SlideOptions, SlideWarp

HERE = Path(__file__).parent.parent
Web = tuple[str, stores.Log]


def installed(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'regframe[dev]'", exc_type=ImportError)


@pytest.fixture(scope="module", autouse=True)
def _extra() -> None:
    installed("obstore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def _web(folder: Path) -> Iterator[Web]:
    with stores.web(folder) as server:
        yield server


@pytest.fixture
def web(_web: Web) -> Web:
    _web[1].clear()
    return _web


@pytest.fixture(scope="module")
def _s3() -> Iterator[Web]:
    installed("moto.server")
    with stores.s3() as server:
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request"}
        with urllib.request.urlopen(urllib.request.Request(f"{server[0]}/slides", method="PUT", headers=signed)):
            pass
        yield server


@pytest.fixture
def s3(_s3: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    found = {"ENDPOINT_URL": _s3[0], "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "SECRET", "REGION": "us-east-1"}
    for name, value in found.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    _s3[1].clear()
    return _s3


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the waits between the repetitions of a request."""
    monkeypatch.setattr(address, "_WAIT", 0.001)
    address._store.cache_clear()
    yield
    address._store.cache_clear()


def upload(local: Path, address: str) -> None:
    where = rf.locate(address)
    for file in sorted(p for p in local.rglob("*") if p.is_file()):
        (where / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())


def objects(address: str) -> dict[str, bytes]:
    where = rf.locate(address)
    assert isinstance(where, rf.Remote)
    return {key: (where / key).read_bytes() for key in where.keys()}  # noqa: SIM118


def files(local: Path) -> dict[str, bytes]:
    return {p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()}


def run(*args: object, code: int = 0) -> str:
    outcome = click.testing.CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == code, outcome.output
    return outcome.output


def image(shape: tuple[int, ...] = (3, 300, 420), seed: int = 0) -> rf.Image:
    return rf.Image.from_array(slides.pixels(shape, seed=seed), "cyx", spacing=0.5, unit="µm")


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.ome.zarr", "a.ome.tif"])
def test_an_image_on_a_web_server_is_that_on_the_disk(web: Web, folder: Path, name: str) -> None:
    rf.adapter("image").save(image(), folder / name)
    here, there = rf.open(folder / name), rf.open(f"{web[0]}/{name}")
    assert isinstance(here, rf.Image)
    assert isinstance(there, rf.Image)
    assert torch.equal(here.data, there.data)
    assert (here.grid, here.channels, here.name) == (there.grid, there.channels, there.name)


def test_an_image_in_a_bucket_is_that_on_the_disk(s3: Web, tmp_path: Path) -> None:
    rf.adapter("image").save(image(), tmp_path / "a.zarr")
    upload(tmp_path / "a.zarr", "s3://slides/in/a.zarr")
    here, there = rf.open(tmp_path / "a.zarr"), rf.open("s3://slides/in/a.zarr")
    assert isinstance(here, rf.Image)
    assert isinstance(there, rf.Image)
    assert torch.equal(here.data, there.data)
    assert here.grid == there.grid


LAYOUTS: list[dict[str, Any]] = [
    {"tile": (128, 128), "compression": "zlib", "photometric": "rgb"},
    {"tile": (128, 128), "photometric": "rgb"},
    {"rowsperstrip": 16, "compression": "zlib", "photometric": "rgb"},
    {"photometric": "rgb"},
]


@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
@pytest.mark.parametrize("bigtiff", [False, True])
def test_only_the_tiles_of_a_region_are_read(web: Web, folder: Path, layout: int, bigtiff: bool) -> None:
    array = np.random.default_rng(0).integers(0, 255, (2048, 1536, 3), np.uint8)
    path = folder / f"region{layout}{bigtiff}.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        writer.write(array, subifds=1, **LAYOUTS[layout])
        writer.write(array[::2, ::2], subfiletype=1, **LAYOUTS[layout])
    pyramid = rf.open_pyramid(f"{web[0]}/{path.name}")
    assert len(pyramid.levels) == 2
    head = web[1].sent
    assert head < 300_000
    region = (slice(256, 768), slice(128, 896))
    web[1].sent = 0
    assert np.array_equal(np.moveaxis(pyramid.levels[0].read(region), 0, -1), array[region])
    wide = 768 if "tile" in LAYOUTS[layout] else 1536  # strips are as wide as the image
    assert web[1].sent <= 1.3 * 512 * wide * 3


def test_only_the_chunks_of_a_region_are_read(web: Web, folder: Path) -> None:
    out = folder / "sharded.zarr"
    source = slides.on_disk(folder / "source", slides.pixels((3, 512, 512)), chunk=512)
    same = rf.Affine.identity(2, "px")
    SlideWarp(source, same, source.grid, out, SlideOptions(chunk=64, shard=256)).write(1)
    pyramid = rf.open_pyramid(f"{web[0]}/sharded.zarr")
    assert web[1].sent < 20_000
    web[1].sent = 0
    region = (slice(64, 256), slice(64, 448))
    got = pyramid.levels[0].read(region)
    assert np.array_equal(got, rf.open_pyramid(out).levels[0].read(region))
    needed = sum(p.stat().st_size for p in out.glob("0/c/0/0/*")) * (192 / 256) * (384 / 512)
    assert web[1].sent <= 1.3 * needed


@pytest.mark.parametrize("kind", ["zarr", "tif"])
def test_what_two_shards_need_is_read_once(web: Web, folder: Path, tmp_path: Path, kind: str) -> None:
    data = np.random.default_rng(0).integers(0, 255, (1, 512, 512), np.uint8)
    if kind == "zarr":
        source = slides.on_disk(tmp_path / "s", data, chunk=256)
        SlideWarp(
            source, rf.Affine.identity(2, "px"), source.grid, folder / "once.zarr", SlideOptions(chunk=64, shard=256)
        ).write(1)
        stored = sum(p.stat().st_size for p in folder.glob("once.zarr/0/c/0/*/*"))
    else:
        tifffile.imwrite(folder / "once.tif", data[0], tile=(64, 64), compression="zlib")
        stored = (folder / "once.tif").stat().st_size
    pyramid = rf.open_pyramid(f"{web[0]}/once.{kind}")
    web[1].sent = 0
    shift = torch.eye(3, dtype=torch.float64)
    shift[:2, 2] = 10.3
    moved = rf.Affine(shift, pyramid.grid.unit, pyramid.grid.unit)
    SlideWarp(pyramid, moved, pyramid.grid, tmp_path / "o.zarr", SlideOptions(chunk=64, shard=128)).write(1)
    assert web[1].sent <= 1.3 * stored


def test_a_store_that_is_not_listed_is_read_by_its_numbers(web: Web, folder: Path) -> None:
    (folder / "many.zarr").mkdir()
    for series in range(2):
        rf.adapter("image").save(image((1, 40 + series, 50), seed=series), folder / f"{series}.zarr")
        (folder / f"{series}.zarr").rename(folder / "many.zarr" / str(series))
    (folder / "many.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.warns(UserWarning, match="2 images"):
        assert len(rf.open_pyramid(f"{web[0]}/many.zarr").series) == 2


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cut.zarr", "cut.tif"])
@pytest.mark.usefixtures("fast")
def test_a_connection_that_is_cut_is_tried_again_and_then_said(web: Web, folder: Path, name: str) -> None:
    made = image((1, 200, 200), seed=1)
    rf.adapter("image").save(made, folder / name)
    where = f"{web[0]}/{name}"
    web[1].cut = 1
    found = rf.open(where)
    assert isinstance(found, rf.Image)
    assert torch.equal(found.data, made.data)
    assert web[1].cut == 0
    web[1].cut = 1000
    raw._kept.cache_clear()  # with what was read
    with pytest.raises(rf.RemoteError, match=r"the connection breaks off in the middle of the answer \(3 tries\)"):
        rf.open_pyramid(where).levels[0].read((slice(0, 200), slice(0, 200)))


@pytest.mark.usefixtures("fast")
def test_each_fault_is_one_sentence_without_secrets(
    web: Web, s3: Web, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "text.txt").write_text("no image")
    web[1].status = {"denied": 403, "broken": 500}
    s3[1].status = {"forbidden": 403}
    told = {
        f"{web[0]}/gone.zarr?sig=SECRET": "there is nothing of this name",
        f"{web[0]}/denied.tif?sig=SECRET": "the server does not permit it",
        f"{web[0]}/broken.tif?sig=SECRET": "answers with status 500",
        f"{web[0]}/text.txt?sig=SECRET": "wanted an OME-Zarr store or a TIFF under an address",
        "http://127.0.0.1:9/a.tif?sig=SECRET": r"no connection to 127.0.0.1:9 \(5 tries\)",
        "https://me:SECRET@127.0.0.1/a.tif": "wanted an address without user and password",
        "s3://slides/in/gone.zarr": "there is nothing of this name",
        "s3://no-such-bucket/a.zarr": "there is no bucket 'no-such-bucket'",
        "s3://slides/forbidden.zarr": "the credentials that were found do not permit it",
        "s3://slides/../a.zarr": "wanted an address without empty or dotted parts",
        "s3://slides": "wanted the address of an object",
    }
    for where, sentence in told.items():
        output = run("info", where, code=2)
        assert len(output.strip().splitlines()) == 1, output
        assert re.search(sentence, output), output
        assert "SECRET" not in output
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(folder))
    assert "without credentials, and none were found; set AWS_ACCESS_KEY_ID" in run(
        "info", "s3://slides/forbidden.zarr", code=2
    )


def test_a_server_without_byte_ranges_is_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((512, 512), np.uint8))
    with stores.web(tmp_path, ranges=False) as (root, _):
        assert "sends no parts of files (byte ranges); download it" in run("info", f"{root}/a.tif", code=2)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda _: None)
    assert "get it with: pip install 'regframe[remote]'" in run("info", "s3://slides/a.zarr", code=2)


def test_an_address_is_printed_and_kept_apart_from_its_query() -> None:
    where = rf.Remote.of("https://host:1/a%20b/c.ome.tif?token=SECRET")
    assert str(where) == "https://host:1/a b/c.ome.tif"
    assert "SECRET" not in repr(where)
    assert (where.name, where.suffixes, where.parent.name) == ("c.ome.tif", [".ome", ".tif"], "a b")
    assert pickle.loads(pickle.dumps(where)).address.endswith("?token=SECRET")  # noqa: S301 - made above
    assert rf.locate("a/b.tif") == Path("a/b.tif")


def test_names_in_a_remote_store_lead_nowhere_else(web: Web, folder: Path) -> None:
    rf.adapter("image").save(image((1, 30, 30)), folder / "out.zarr")
    rf.adapter("image").save(image((1, 30, 30)), folder / "secret.zarr")
    metadata = json.loads((folder / "out.zarr" / "zarr.json").read_text())
    metadata["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "../secret.zarr/0"
    (folder / "out.zarr" / "zarr.json").write_text(json.dumps(metadata))
    assert "which leads out of it" in run("info", f"{web[0]}/out.zarr", code=2)
    assert not [line for line in web[1].asked if "secret" in line]
    tifffile.imwrite(folder / "b.ome.tif", np.zeros((30, 30), np.uint8), ome=True)
    xml = tifffile.tiffcomment(folder / "b.ome.tif").replace('FileName="b.ome.tif"', "")
    data = f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{folder}/b.ome.tif">urn:uuid:1</UUID></TiffData>'
    xml = re.sub(r"<TiffData.*?(/>|</TiffData>)", data, xml)
    tifffile.tiffcomment(folder / "b.ome.tif", xml.encode())
    assert "whose OME-XML names others" in run("info", f"{web[0]}/b.ome.tif", code=2)


def test_a_chunk_that_is_too_large_is_not_read(web: Web, folder: Path) -> None:
    rf.adapter("image").save(image((1, 64, 64)), folder / "bomb.zarr")
    (folder / "bomb.zarr" / "0" / "c" / "0" / "0" / "0").write_bytes(b"\0" * (8 << 20))
    with pytest.raises(rf.RemoteError, match="bytes at most, got an object of 8388608"):
        rf.open(f"{web[0]}/bomb.zarr")
    (folder / "bomb.zarr" / "zarr.json").write_bytes(b" " * (17 << 20))
    web[1].sent = 0
    assert "bytes at most" in run("info", f"{web[0]}/bomb.zarr", code=2)


def test_another_file_under_the_address_is_no_longer_the_one_that_was_opened(web: Web, folder: Path) -> None:
    tifffile.imwrite(folder / "new.tif", np.zeros((64, 64), np.uint8), tile=(32, 32))
    pyramid = rf.open_pyramid(f"{web[0]}/new.tif")
    tifffile.imwrite(folder / "new.tif", np.ones((96, 64), np.uint8), tile=(32, 32), compression="zlib")
    raw._kept.cache_clear()
    with pytest.raises(ValueError, match="is another one than when it was opened"):
        pyramid.levels[0].read((slice(0, 64), slice(0, 64)))


def test_credentials_of_the_usual_files(s3: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION", "ENDPOINT_URL"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3[0]}\n")
    (tmp_path / ".aws" / "credentials").write_text("[lab]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    where = rf.Remote.of("s3://slides/by-profile.bin")
    where.write_bytes(b"here")
    assert where.read_bytes() == b"here"


def test_google_buckets(web: Web, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = {
        "gcs_base_url": web[0],
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    (folder / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(folder / "account.json"))
    (folder / "bucket").mkdir()
    tifffile.imwrite(folder / "bucket" / "g.tif", np.full((64, 64), 7, np.uint8), tile=(32, 32))
    found = rf.open("gs://bucket/g.tif")
    assert isinstance(found, rf.Image)
    assert bool((found.data == 7).all())


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image ``s`` and with ``o.zarr``, that image carried to the disk."""
    folder = tmp_path_factory.mktemp("reference")
    slides.plan(str(folder / "s"), str(folder / "o.zarr"), shard=128, chunk=64).write(1)
    return folder


def test_what_is_written_to_a_bucket_is_what_is_written_to_the_disk(s3: Web, reference: Path) -> None:
    plan = slides.plan(str(reference / "s"), "s3://slides/out/o.zarr", shard=128, chunk=64)
    assert isinstance(plan.path, rf.Remote)
    seen: list[int] = []
    plan.write(2, progress=lambda step: seen.append(step.done))
    assert seen[-1] == plan.shards
    assert objects("s3://slides/out/o.zarr") == files(reference / "o.zarr")
    assert objects("s3://slides/out/o.zarr.partial") == {}
    with pytest.raises(FileExistsError, match="exists; choose another name, or pass --overwrite"):
        plan.write(1)
    (plan.path / "stray").write_bytes(b"of an older one")
    plan.write(1, overwrite=True)
    assert objects("s3://slides/out/o.zarr") == files(reference / "o.zarr")


def test_what_is_not_whole_is_no_image_and_goes_on(s3: Web, reference: Path) -> None:
    plan = slides.plan(str(reference / "s"), "s3://slides/part/o.zarr", shard=128, chunk=64)
    with plan.started():
        for index in (0, 3, 4):
            plan.run(index)
        with pytest.raises(BlockingIOError, match="for this process alone"), plan.started():
            pass
    assert plan.done() == {0, 3, 4}
    with pytest.raises(ValueError, match="left unfinished; run the same command again"):
        rf.open("s3://slides/part/o.zarr")
    (lost,) = (plan.partial / "done" / "3").read_bytes().decode().split()[:1]
    (plan.path / lost).unlink()
    s3[1].clear()
    with pytest.raises(ValueError, match="got 1 less"):  # found by the end
        plan.write(1)
    assert not [a for a in s3[1].asked if a.startswith("PUT") and a.endswith("/0/c/0/0/0")]
    plan.write(1)
    assert objects("s3://slides/part/o.zarr") == files(reference / "o.zarr")


def test_other_things_are_left_alone(s3: Web, reference: Path) -> None:
    rf.Remote.of("s3://slides/thesis.zarr/chapter.tex").write_bytes(b"years")
    plan = slides.plan(str(reference / "s"), "s3://slides/thesis.zarr", shard=128, chunk=64)
    with pytest.raises(FileExistsError, match="no Zarr store; it is left alone"):
        plan.write(1, overwrite=True)
    assert objects("s3://slides/thesis.zarr") == {"chapter.tex": b"years"}
    rf.Remote.of("s3://slides/other.zarr.partial/plan.json").write_bytes(b'{"hash": "x", "what": "another slide"}')
    with pytest.raises(ValueError, match=r"other inputs or settings than it was begun with \(another slide\)"):
        slides.plan(str(reference / "s"), "s3://slides/other.zarr", shard=128, chunk=64).write(1)


@pytest.mark.usefixtures("fast")
def test_a_store_that_fails_while_it_is_written_is_said_and_goes_on(s3: Web, reference: Path) -> None:
    plan = slides.plan(str(reference / "s"), "s3://slides/fails/o.zarr", shard=128, chunk=64)
    s3[1].status = {"0/c/0/2": 500}
    with pytest.raises(
        rf.RemoteError, match=r"status 500; \d+ of \d+ shards are kept in o.zarr.partial: run the same again"
    ):
        plan.write(1)
    s3[1].clear()
    plan.write(1)
    assert objects("s3://slides/fails/o.zarr") == files(reference / "o.zarr")


def test_a_killed_run_goes_on(s3: Web, reference: Path) -> None:
    where = "s3://slides/killed/o.zarr"
    plan = slides.plan(str(reference / "s"), where, shard=128, chunk=64)
    command = [sys.executable, str(HERE / "fake_slides.py"), str(reference / "s"), where, "0.2", "1", "128", "64"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while len(plan.done()) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = plan.done()
    assert 2 <= len(before) < plan.shards
    s3[1].clear()
    plan.write(1)  # its lock is that of a process that is gone
    put = [a for a in s3[1].asked if a.startswith("PUT") and "/done/" in a]
    assert len(put) == plan.shards - len(before)
    assert objects(where) == files(reference / "o.zarr")


def test_a_lock_of_another_machine_counts_for_two_minutes(s3: Web, reference: Path) -> None:
    plan = slides.plan(str(reference / "s"), "s3://slides/lock/o.zarr", shard=128, chunk=64)
    assert isinstance(plan.partial, rf.Remote)
    lease = {"host": "elsewhere", "pid": 1, "time": time.time() - 60}
    (plan.partial / "lock").write_bytes(json.dumps(lease).encode())
    with pytest.raises(BlockingIOError, match=r"process 1 on elsewhere writes, heard of 6\d s ago"):
        plan.write(1)
    lease["time"] = time.time() - remoteshards._LEASE - 1
    (plan.partial / "lock").write_bytes(json.dumps(lease).encode())
    plan.write(1)


def test_from_a_bucket_to_a_bucket_by_the_command_line(s3: Web, tmp_path: Path) -> None:
    fixed = image((3, 240, 260))
    rf.adapter("image").save(fixed, tmp_path / "f.zarr")
    upload(tmp_path / "f.zarr", "s3://slides/cli/f.zarr")
    told = json.loads(run("info", "s3://slides/cli/f.zarr", "--json"))
    assert told["path"] == "s3://slides/cli/f.zarr"
    assert told["shape"] == [240, 260]
    out = tmp_path / "out"
    sides = ["s3://slides/cli/f.zarr"] * 2
    run("register", *sides, "-o", out, "--init", "identity", "--set", "optimizer.max_iter=2", "--transform", "rigid")
    assert "s3://slides/cli/f.zarr" in (out / "config.resolved.yaml").read_text()
    run("apply", "image", out, "s3://slides/cli/f.zarr", "-o", "s3://slides/cli/w.zarr", "--to", "fixed")
    run("apply", "image", out, "s3://slides/cli/f.zarr", "-o", tmp_path / "w.zarr", "--to", "fixed")
    assert objects("s3://slides/cli/w.zarr") == files(tmp_path / "w.zarr")
    assert "choose another name" in run(
        "apply", "image", out, tmp_path / "f.zarr", "-o", "s3://slides/cli/w.zarr", "--to", "fixed", code=2
    )
    assert "wanted an output ending in .zarr in a remote store" in run(
        "apply", "image", out, tmp_path / "f.zarr", "-o", "s3://slides/cli/w.tif", "--to", "fixed", code=2
    )
    assert "a web server takes no files" in run(
        "apply", "image", out, tmp_path / "f.zarr", "-o", "https://host/w.zarr", "--to", "fixed", code=2
    )
    assert "wanted an input on this disk" in run(
        "apply", "points", out, "s3://slides/cli/p.csv", "-o", tmp_path / "p.csv", "--to", "fixed", code=2
    )
