"""What tests of batches share: one fork server for all jobs that start in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call() -> Iterator[None]:
    """Hide the name of the running test: an environment of its own would cost each test a fork server, which loads torch."""
    name = os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        return (yield)
    finally:
        if name is not None:
            os.environ["PYTEST_CURRENT_TEST"] = name
