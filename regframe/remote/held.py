"""Chunks of a remote store that were read, kept for the neighbour that needs them too."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

_MOST = 128 << 20
"""Bytes that are kept, as they are stored: a row of tiles across a slide of 100 000 pixels, which two rows of shards touch."""


class Held:
    """The values that were used last, up to a number of bytes; threads may share it.

    Args:
        most: how many bytes.
    """

    def __init__(self, most: int = _MOST) -> None:
        self.most, self.size = most, 0
        self._values: OrderedDict[Any, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> bytes | None:
        """The bytes under a key, None where they are not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keys(self) -> list[Any]:
        """What there is something under, now."""
        with self._lock:
            return list(self._values)

    def drop(self, key: Any) -> None:
        """Keep nothing under a key any more."""
        with self._lock:
            self.size -= len(self._values.pop(key, b""))

    def keep(self, key: Any, value: bytes) -> None:
        """Keep the bytes, and drop what was not used for longest."""
        with self._lock:
            self.size += len(value) - len(self._values.pop(key, b""))
            self._values[key] = value
            while self.size > self.most:
                self.size -= len(self._values.popitem(last=False)[1])
