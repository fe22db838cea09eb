"""Words out of files on a terminal: without the control characters that would move its cursor, colour it or rename its window."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters of ASCII and Latin-1 but tabulator and line feed, and the marks that turn the direction of writing round."""


def printable(text: str) -> str:
    """The text with its control characters written out (``\\x1b``), so that a terminal shows them instead of obeying."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
