"""The lines of pages: where they may end."""

from __future__ import annotations

import re

import markupsafe

_OPTION = re.compile(r"(?<![\w-])-{1,2}[A-Za-z][\w-]*")
"""An option of a command, without its value."""


def unbroken(text: str) -> markupsafe.Markup:
    """A sentence for a page in which no line ends within an option such as ``--moving-mpp``; everything else is escaped."""
    said = str(markupsafe.escape(text))
    return markupsafe.Markup(_OPTION.sub(r'<span class="option">\g<0></span>', said))
