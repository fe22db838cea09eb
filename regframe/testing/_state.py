"""What a plug-in must leave as it was: the state that it shares with the whole process."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ._base import want


def _seen() -> dict[str, object]:
    return {
        "the number of threads (torch.set_num_threads)": torch.get_num_threads(),
        "the default dtype (torch.set_default_dtype)": torch.get_default_dtype(),
        "the grad mode (torch.set_grad_enabled)": torch.is_grad_enabled(),
        "deterministic algorithms of torch": torch.are_deterministic_algorithms_enabled(),
        "the seed of torch (torch.manual_seed)": torch.initial_seed(),
        "the random numbers of numpy (numpy.random.seed)": np.random.get_state()[1].tobytes(),  # type: ignore[index]  # noqa: NPY002
        "the random numbers of Python (random.seed)": hash(random.getstate()),
        "the working folder (os.chdir)": Path.cwd(),
        "the environment (os.environ)": dict(os.environ),
    }


@contextlib.contextmanager
def unchanged(whose: str) -> Iterator[None]:
    """Fail where the code inside changes what the whole process shares, naming it; what can be is put back."""
    before = _seen()
    threads, dtype, grad, folder = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        Path.cwd(),
    )
    try:
        yield
        changed = [name for name, value in _seen().items() if value != before[name]]
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        os.chdir(folder)
    want(
        not changed,
        f"{whose} to leave the process as it was",
        ", ".join(changed),
        "set it for your own code alone, and put it back",
    )
