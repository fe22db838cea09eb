"""What all tests share: the folder of real data, a fixed number of threads, reproducible hypothesis examples."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: a busy machine is no reason to take five times as long

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# a shell starts what runs in its background with SIGINT ignored, which the commands that tests interrupt would inherit
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# two processes share two cores: one thread each, or they wait for each other
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
hypothesis.settings.register_profile("regframe", derandomize=True, deadline=None)
hypothesis.settings.load_profile("regframe")


def pytest_collection_finish() -> None:
    """What is loaded by now stays: it need not be searched for garbage in every test."""
    gc.collect()
    gc.freeze()


def _data_dir() -> Path:
    return Path(os.environ.get("REGFRAME_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: ``$REGFRAME_DATA``, else ``shared/data`` beside the checkout; skips without one."""
    folder = _data_dir()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set REGFRAME_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
