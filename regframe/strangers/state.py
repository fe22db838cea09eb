"""What a plug-in must leave as it was: the state that it shares with the whole process."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

OF_LIBRARIES = frozenset(
    {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "LD_LIBRARY_PATH", "QT_QPA_FONTDIR", "QT_QPA_PLATFORM_PLUGIN_PATH"}
)
"""Variables of the environment that widespread libraries set when they are imported (scikit-learn, OpenCV): they are let be."""


class _Shared(NamedTuple):
    """One thing that the whole process shares.

    Args:
        words: what it is, and what sets it.
        value: what it is now, to be compared.
        put_back: sets it to what it was when this was made.
    """

    words: str
    value: Any
    put_back: Callable[[], Any]


def _all() -> list[_Shared]:
    """Everything that is looked at, as it is now."""
    import numpy as np
    import torch

    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    exact, drawn = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    folder, variables = Path.cwd(), dict(os.environ)
    return [
        _Shared("the number of threads (torch.set_num_threads)", threads, lambda: torch.set_num_threads(threads)),
        _Shared("the default dtype (torch.set_default_dtype)", dtype, lambda: torch.set_default_dtype(dtype)),
        _Shared("the grad mode (torch.set_grad_enabled)", grad, lambda: torch.set_grad_enabled(grad)),
        _Shared("deterministic algorithms of torch", exact, lambda: torch.use_deterministic_algorithms(exact)),
        _Shared("the seed of torch (torch.manual_seed)", torch.initial_seed(), lambda: torch.set_rng_state(drawn)),
        _Shared(
            "the random numbers of numpy (numpy.random.seed)",
            of_numpy[1].tobytes(),  # type: ignore[index]
            lambda: np.random.set_state(of_numpy),  # noqa: NPY002
        ),
        _Shared("the random numbers of Python (random.seed)", hash(of_python), lambda: random.setstate(of_python)),
        _Shared("the working folder (os.chdir)", folder, lambda: os.chdir(folder)),
        _Shared(
            "the environment (os.environ)",
            {k: v for k, v in variables.items() if k not in OF_LIBRARIES},
            lambda: _put_back(variables),
        ),
    ]


def _put_back(variables: dict[str, str]) -> None:
    for name in set(os.environ) - set(variables) - OF_LIBRARIES:
        del os.environ[name]
    os.environ.update({k: v for k, v in variables.items() if k not in OF_LIBRARIES})


@contextlib.contextmanager
def restored() -> Iterator[list[str]]:
    """Put back what the code inside changes of what the process shares; yields a list that names it once the block has ended."""
    before, changed = _all(), list[str]()
    try:
        yield changed
    finally:
        for then, now in zip(before, _all(), strict=True):
            if then.value != now.value:
                changed.append(then.words)
                then.put_back()
