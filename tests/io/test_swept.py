"""Hidden folders into which a thread still writes while they are removed."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from regframe.io import claims


def test_a_folder_that_is_written_into_while_it_is_removed(tmp_path: Path) -> None:
    stop = time.monotonic() + 0.1

    def write() -> None:
        number = 0
        while time.monotonic() < stop:
            number += 1
            place = tmp_path / "hidden" / str(number)
            with contextlib.suppress(OSError):  # removed between both steps
                place.mkdir(parents=True, exist_ok=True)  # as a store's library does
                (place / "chunk").write_bytes(bytes(10))

    thread = threading.Thread(target=write)
    thread.start()
    claims.remove(tmp_path / "hidden")
    thread.join()
    claims.sweep()
    assert list(tmp_path.iterdir()) == []
