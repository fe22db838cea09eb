"""What a mistyped name may have meant, for the sentence that refuses it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'NAME'?"`` for the one of ``known`` that is most like ``name``, or ``""`` where none is."""
    found = difflib.get_close_matches(str(name).lower(), sorted(known), n=1, cutoff=0.7)
    return f"; did you mean {found[0]!r}?" if found else ""
