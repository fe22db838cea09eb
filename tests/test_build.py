"""What was built is what was meant: a stable binary interface, a torch-free host module, and a life without both."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from regframe import ops

ROOT = Path(__file__).resolve().parents[1]


def run(script, **environment):
    """Runs ``script`` in a fresh interpreter; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(not ops.is_built(), reason="the ops are not built")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_ops_use_only_the_stable_abi():
    from regframe import _C

    assert ".abi3." in Path(_C.__file__).name
    undefined = subprocess.run(["nm", "-D", "-u", _C.__file__], capture_output=True, text=True, check=True).stdout
    assert "aoti_torch" in undefined
    names = undefined.split()
    assert not [name for name in names if name.startswith(("_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch"))]


def test_the_host_module_needs_no_torch():
    pytest.importorskip("regframe._host", reason="the host module is not built")
    assert "clean" in run("import sys, regframe._host; print('torch' if 'torch' in sys.modules else 'clean')")


WITHOUT = """
import sys, warnings
sys.modules["regframe._C"] = None  # as if it had never been built
import torch
from regframe import ops, reference
assert not ops.is_built()
args = (torch.rand(1, 6, 5), torch.rand(1, 2, 3, 3), torch.eye(2, 3, dtype=torch.float64), [6, 5], [0, 0], [1.0, 1.0],
        [0.0, 0.0], [3.0, 3.0], [0.0, 0.0], 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        assert torch.equal(ops.warp(*args), reference.warp(*args))
    points = torch.rand(4, 2)
    flow = (points, args[1], *args[7:], True)
    assert torch.equal(ops.flow_points(*flow), reference.flow_points(*flow))
for warning in caught:
    print(warning.category.__name__, warning.filename, warning.message)
print("warnings:", len(caught))
"""


def test_without_a_build_the_reference_runs_and_says_so_once():
    printed = run(WITHOUT)
    assert "warnings: 1" in printed
    assert "RuntimeWarning <string>" in printed  # it points at the caller
    assert f"`{ops.BUILD_COMMAND}`" in printed


def test_the_reference_can_be_asked_for_in_silence():
    assert "warnings: 0" in run(WITHOUT, REGFRAME_REFERENCE="1")
    script = """
import torch
from regframe import ops, reference
called = []
twin = reference.warp
reference.warp = lambda *args: called.append(1) or twin(*args)
ops.warp(torch.rand(1, 6, 5), torch.rand(1, 2, 3, 3), torch.eye(2, 3, dtype=torch.float64), [6, 5], [0, 0], [1.0, 1.0],
         [0.0, 0.0], [3.0, 3.0], [0.0, 0.0], 1)
print("called", len(called))
"""
    assert "called 1" in run(script, REGFRAME_REFERENCE="1")


def test_cuda_sources_are_checked_or_skipped_in_words():
    done = subprocess.run(
        ["sh", str(ROOT / "csrc" / "check_cuda.sh")],
        env={**os.environ, "NVCC": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "nvcc not found, skipped"
