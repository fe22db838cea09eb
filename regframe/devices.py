"""Devices on which a fit may run: the words for them, whether they are there, and the choice where it is left to regframe."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from .later import torch

if TYPE_CHECKING:
    from torch import device as Device

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Variable of the environment that says which GPUs a process sees."""
AUTO = "auto"
"""The word that leaves the choice to regframe."""
WORTH = 1_000_000
"""Values (pixels times channels) of the finest level of a fit from which ``auto`` takes a GPU. Not measured on one: an evaluation
starts some hundred operations of 5 to 10 µs each whatever its size, and the first one of a process waits about a second for CUDA;
on two cores an evaluation takes about 1 ms per 25 000 values, so that a fit of 200 evaluations of so many takes 8 s there."""


def check(name: str) -> None:
    """Refuse a device that nobody knows or that is not there; ``cpu`` and ``auto`` always pass.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.

    Raises:
        ValueError: with what was wanted, what was found and what to do.
    """
    if name in ("cpu", AUTO):
        return
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise ValueError(f"wanted a device cpu, cuda, cuda:N or auto, got {name!r}; name one of these")
    if torch.version.cuda is None and torch.version.hip is None:
        from . import ops  # which loads torch, as whoever asks for the CPU alone need not

        raise ValueError(
            f"wanted device {name!r}, found a torch {torch.__version__} without CUDA; install a torch that has it and build "
            f"regframe anew (`{ops.BUILD_COMMAND}`), or take device 'cpu'"
        )
    count = torch.cuda.device_count()
    if count == 0 or not torch.cuda.is_available():
        raise ValueError(
            f"wanted device {name!r}, found no GPU that this process may use; see what nvidia-smi says and whether "
            f"{VISIBLE} hides it, or take device 'cpu'"
        )
    if int(name.partition(":")[2] or 0) >= count:
        there = ", ".join(f"cuda:{i}" for i in range(count))
        raise ValueError(f"wanted device {name!r}, found {there}; name one of these")


def chosen(name: str, values: int) -> Device:
    """The device that a name means for a fit of so many values.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``; or ``auto``: a GPU where there is one, regframe has kernels for it and the fit is
            large enough to gain by it (`WORTH`), else the CPU.
        values: pixels times channels of the larger side at the finest level of the fit.

    Raises:
        ValueError: see `check`.
    """
    from . import ops

    if name == AUTO:
        ready = values >= WORTH and torch.cuda.is_available() and ops.is_built() and ops.has_kernel("cuda")
        name = "cuda" if ready else "cpu"
    check(name)
    return torch.device(f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name)


def visible(count: int) -> list[str]:
    """Of the first ``count`` GPUs that this process may use, the words by which another process is shown one alone
    (`VISIBLE`).

    Raises ValueError where there are fewer.
    """
    there = len(found())
    if count > there:
        some = "none" if there == 0 else f"{there}"
        raise ValueError(
            f"wanted {count} GPUs, found {some}; see what `regframe doctor` says, or ask for as many as there are"
        )
    stated = [word.strip() for word in os.environ.get(VISIBLE, "").split(",") if word.strip()]
    return (stated or [str(i) for i in range(there)])[:count]


def found() -> list[str]:
    """The GPUs that this process may use, by name."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
