"""No op reads or writes beyond its memory, whatever it is asked, and none needs more threads than the system gives."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regframe import ops, reference

HERE = Path(__file__).resolve().parent / "bounds"
CXX = os.environ.get("CXX", "g++")
ROUNDS = 20

built = pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="memory is only taken in hand where glibc gives it"
)


def variants() -> list[str]:
    """The instruction sets with kernels of their own that this machine has."""
    flags = Path("/proc/cpuinfo").read_text().split() if platform.machine() == "x86_64" else []
    kernels = {"avx2": ("avx2", "fma"), "avx512": ("avx512f", "avx512dq", "avx512vl", "avx512bw")}
    return ["baseline", *(name for name, needs in kernels.items() if all(need in flags for need in needs))]


@built
@on_glibc
@pytest.mark.skipif(shutil.which(CXX) is None, reason=f"needs the C++ compiler {CXX}")
def test_between_walls(tmp_path: Path) -> None:
    library = tmp_path / "guard_malloc.so"
    flags = ["-std=c++17", "-O1", "-fno-builtin", "-shared", "-fPIC"]
    subprocess.run([CXX, *flags, HERE / "guard_malloc.cpp", "-o", library], check=True)
    done = subprocess.run(
        [sys.executable, HERE / "fuzz.py", "0", str(ROUNDS), *variants()],
        env={**os.environ, "LD_PRELOAD": str(library)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@built
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float64])
@pytest.mark.parametrize("background", [None, 3.0])
def test_a_part_of_an_image_that_lies_far_from_it(dtype: torch.dtype, background: float | None) -> None:
    # offsets of the tile's pixels in the part are beyond 32 bits, counted from where the tile lies
    part = (torch.arange(8 * 4096).reshape(1, 8, 4096) % 251).to(dtype)
    velocity = torch.zeros((1, 2, 2, 2), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for shift in ((3_000_000.0, 5.0), (5.0, 3_000_000.0), (-3_000_000.0, 7.25)):
        matrix = torch.eye(2, 3, dtype=torch.float64)
        matrix[:, 2] = torch.tensor(shift)
        geometry = ([3, 20], [0, 0], [1 << 23, 1 << 23], [2, 0], [1.0, 1.0], [0.0, 0.0], [4.0, 4.0], [0.0, 0.0], 1)
        out = ops.warp_crop(part, velocity, matrix, *geometry, background)
        twin = reference.warp_crop(part, velocity, matrix, *geometry, background)
        assert torch.equal(out, twin)


@on_glibc
def test_without_another_thread_the_work_is_done_all_the_same() -> None:
    # room for the work, but not for the stacks of all threads
    pytest.importorskip("regframe._host", reason="the host module is not built")
    script = """
import resource
import numpy as np
from regframe import _host

rng = np.random.default_rng(0)
points, weights = rng.uniform(0, 200, (50, 2)), np.ones(50)
codes, empty, at = np.zeros((3, 3, 3), np.int32), np.zeros(1, np.uint8), rng.normal(size=(9, 2))
planes = rng.normal(size=(600, 3, 3))

def work(threads):
    raster, _ = _host.splat(points, weights, (200, 50), (0, 0), (1, 1), 2.0, threads)
    fitted = _host.planes(codes, (0, 0, 0), (1, 1, 1), empty, at, at[:, 0], np.ones(9), planes, 3, 1, 1, threads)
    return raster, *fitted

alone = work(1)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for room in range(8, 40, 4):  # MiB: for none, one, two …
    resource.setrlimit(resource.RLIMIT_AS, (held + (room << 20), -1))
    assert all(np.array_equal(a, b) for a, b in zip(alone, work(4), strict=True))
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert all(np.array_equal(a, b) for a, b in zip(alone, work(4), strict=True))
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
