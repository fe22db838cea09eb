"""Text in the cells of a table that people open in a spreadsheet: it stays text, whatever a file, column or channel is called."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")
_BEGIN = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters of a cell that a spreadsheet may take for a formula (OWASP, "CSV Injection"), in full width too."""


def text_cell(value: T) -> T | str:
    """``value`` for a cell; a text that a spreadsheet would run as a formula gets an apostrophe before it, a number never."""
    if not isinstance(value, str) or not value.lstrip(" ").startswith(_BEGIN):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
