"""A large slide registered and warped from and to an S3 server on loopback: bytes read and bytes needed, a kill, the same bytes.

``python benchmarks/bench_remote.py --side 16384`` makes a slide, uploads it, registers a copy of it against it, warps it to
the bucket at full resolution, kills that once and goes on, and compares the result with that on the disk. "Needed" are the stored
bytes of the level that is read, once; of the warp that was killed, what it read before counts too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

import regframe as rf

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import fake_stores as stores  # noqa: E402 - of the tests, whose servers these are

BUCKET = "s3://slides"


def slide(path: Path, side: int) -> None:
    """Blobs with noise, in colour, as sharded OME-Zarr with its pyramid."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.random((3, side // 256, side // 256)), np.ones((256, 256)))
    data = np.empty((3, side, side), np.uint8)
    for top in range(0, side, 1024):
        part = coarse[:, top : top + 1024] * 90 + 60 + rng.random((3, min(1024, side - top), side)) * 8
        data[:, top : top + 1024] = part.astype(np.uint8)
    level = rf.Level(rf.Grid((side, side), 0.5, unit="µm"), (3, 512, 512), lambda region: data[(slice(None), *region)])
    pyramid = rf.Pyramid((level,), data.dtype, ("red", "green", "blue"), name="slide")
    rf.warp_slide(pyramid, rf.Affine.identity(2, "µm"), level.grid, path, workers=2)


def upload(folder: Path, where: str) -> None:
    target = rf.locate(where)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        (target / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def bucket(root: str) -> None:
    """Make the bucket, and tell this process and its children how to reach it."""
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request"}
    urllib.request.urlopen(urllib.request.Request(f"{root}/slides", method="PUT", headers=signed)).close()
    keys = {"ENDPOINT_URL": root, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}
    os.environ.update({f"AWS_{name}": value for name, value in keys.items()})


def command(*args: object) -> list[str]:
    return [sys.executable, "-c", "from regframe.cli import main; main()", *(str(a) for a in args)]


def level_bytes(folder: Path, level: int) -> int:
    return sum(p.stat().st_size for p in (folder / str(level) / "c").rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=16384)
    side = parser.parse_args().side
    with tempfile.TemporaryDirectory() as temporary, stores.s3() as (root, log):
        folder = Path(temporary)
        bucket(root)
        slide(folder / "in.zarr", side)
        for name in ("in.zarr", "other.zarr"):
            upload(folder / "in.zarr", f"{BUCKET}/{name}")
        report: dict[str, Any] = {"side": side}

        log.clear()
        start = time.perf_counter()
        where, other = f"{BUCKET}/in.zarr", f"{BUCKET}/other.zarr"
        subprocess.run(
            command("register", where, other, "-o", folder / "run", "--transform", "affine", "--init", "identity"),
            check=False,
        )
        report["register_s"] = round(time.perf_counter() - start, 1)
        level = rf.choose_level(rf.open_pyramid(folder / "in.zarr"))[0]
        needed = 2 * level_bytes(folder / "in.zarr", level)
        report["register_read_over_needed"] = round(log.sent / needed, 3)

        warp = command("apply", "image", folder / "run", where, "--to", "fixed", "--level", 0, "--workers", 2, "-o")
        start = time.perf_counter()
        log.clear()
        process = subprocess.Popen([*warp, f"{BUCKET}/out.zarr"])
        done = rf.locate(f"{BUCKET}/out.zarr.partial/done")
        while process.poll() is None and len(list(done.keys())) < 3:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        report["shards_before_the_kill"] = len(list(done.keys()))
        subprocess.run([*warp, f"{BUCKET}/out.zarr"], check=True)
        report["killed_and_resumed_read_over_needed"] = round(log.sent / level_bytes(folder / "in.zarr", 0), 3)
        report["warp_killed_and_resumed_s"] = round(time.perf_counter() - start, 1)
        subprocess.run([*warp, folder / "out.zarr"], check=True)
        out = rf.locate(f"{BUCKET}/out.zarr")
        mine = {
            p.relative_to(folder / "out.zarr").as_posix(): p for p in (folder / "out.zarr").rglob("*") if p.is_file()
        }
        report["same_bytes"] = set(out.keys()) == set(mine) and all(
            (out / key).read_bytes() == path.read_bytes() for key, path in mine.items()
        )
        log.clear()
        start = time.perf_counter()
        subprocess.run([*warp, f"{BUCKET}/again.zarr"], check=True)
        report["warp_s"] = round(time.perf_counter() - start, 1)
        report["warp_read_over_needed"] = round(log.sent / level_bytes(folder / "in.zarr", 0), 3)
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
