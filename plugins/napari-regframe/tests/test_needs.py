"""Says what is missing where nothing else here can run."""

import pytest
from conftest import MISSING


def test_what_is_needed_is_installed() -> None:
    if MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)}: pip install 'napari[pyqt6]'")
