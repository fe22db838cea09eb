"""The other tests of this folder are left out where a package is missing; this one says which."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "httpx2"])
def test_the_packages_of_the_page_are_here(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is missing, so that the page is not tested: pip install 'regframe[view]' httpx2")
