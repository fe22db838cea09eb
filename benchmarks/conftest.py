"""What all benchmarks share.

Run one with ``python -m pytest benchmarks/bench_ops.py``, all with
``python -m pytest -o python_files='bench_*.py' benchmarks``; with ``--benchmark-disable`` or ``REGFRAME_BENCH_SMALL=1``
each runs once, small, as a test.
"""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def small(request: pytest.FixtureRequest) -> bool:
    """Whether to run once and small: correctness only, no time is worth reading."""
    disabled = request.config.getoption("benchmark_disable", default=False)
    return bool(disabled) or os.environ.get("REGFRAME_BENCH_SMALL") == "1"


@pytest.fixture
def threads():
    """Two threads, as every published figure has; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]):
    """Prints a line past pytest's capture: the figures are what a benchmark is run for."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", end="", flush=True)

    return line
