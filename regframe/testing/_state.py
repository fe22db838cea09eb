"""What a plug-in must leave as it was: the state that it shares with the whole process (`regframe.strangers.state`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..strangers import restored
from ._base import want


@contextlib.contextmanager
def unchanged(whose: str) -> Iterator[None]:
    """Fail where the code inside changes what the whole process shares, naming it; it is put back."""
    with restored() as changed:
        yield
    want(
        not changed,
        f"{whose} to leave the process as it was",
        ", ".join(changed),
        "set it for your own code alone, and put it back",
    )
