"""The error of stores that are not on this disk."""

from __future__ import annotations


class RemoteError(OSError):
    """What went wrong with a store that is not on this disk, in one sentence.

    Args:
        sentence: the message.
        kind: ``missing``, ``denied``, ``network``, ``extra`` or ``other``.
    """

    def __init__(self, sentence: str, kind: str = "other") -> None:
        super().__init__(sentence)
        self.kind = kind


class RemoteMissing(RemoteError, FileNotFoundError):
    """There is nothing of this name in a remote store."""

    def __init__(self, sentence: str, kind: str = "missing") -> None:
        super().__init__(sentence, kind)
