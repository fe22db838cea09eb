"""The script that a machine with a GPU runs, rehearsed on the CPU at tiny sizes."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_every_stage_runs_without_a_gpu_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGFRAME_NO_CUDA", "1")  # csrc/check_cuda.sh is a test of its own
    spec = spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    gpu: Any = module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "gpu", gpu)
    spec.loader.exec_module(gpu)
    state, page = tmp_path / "gpu.json", tmp_path / "GPU.md"
    arguments = ["--dry", "--state", str(state), "-o", str(page)]
    assert gpu.main(arguments) == 0
    found = json.loads(state.read_text())
    assert list(found) == ["dry", *gpu.STAGES]
    assert all(row["same bytes"] for row in found["fits"]["rows"])
    assert all(f"## {name}" in page.read_text() for name in gpu.STAGES)
    del found["graph"]
    state.write_text(json.dumps(found))
    monkeypatch.setattr(gpu, "STAGES", {**gpu.STAGES, "fits": pytest.fail})  # found already: not run again
    assert gpu.main(arguments) == 0
    assert "graph" in json.loads(state.read_text())
    monkeypatch.setattr(gpu, "STAGES", {"later": gpu.machine})
    assert gpu.main([*arguments, "--minutes", "-1"]) == 0
    assert "Not run: out of time." in page.read_text()
