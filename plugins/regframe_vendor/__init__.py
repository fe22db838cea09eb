"""Output folders of instruments for regframe: Xenium, MERSCOPE, CosMx, Visium, Visium HD; the adapter ``vendor``."""

from __future__ import annotations

import regframe

from .adapter import VendorAdapter
from .offset import Offset, offset

__all__ = ["Offset", "VendorAdapter", "offset", "regframe_adapters"]


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapter of this plug-in."""
    return [VendorAdapter]
