"""Says what is missing where nothing else here can run."""

from conftest import MISSING

import pytest


def test_what_is_needed_is_installed() -> None:
    if MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)}: pip install 'napari[pyqt6]'")
