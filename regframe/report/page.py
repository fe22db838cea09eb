"""What all report pages share: pictures embedded in the HTML, and the templates."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
import PIL.Image

from ..display.lines import unbroken
from ..io.paths import shown
from .pictures import Array


@dataclass(frozen=True)
class Picture:
    """An embedded picture with its caption.

    Args:
        title: title below the picture, in bold.
        uri: the picture as a data URI.
        note: rest of the caption.
        part: what the viewer takes it for, ``fixed`` or ``moving``; ``""`` for neither.
    """

    title: str
    uri: str
    note: str = ""
    part: str = ""


def script() -> str:
    """The one script that a page may hold, a file of this package: ASCII, so that no encoding changes its digest."""
    return (Path(__file__).parent / "viewer.js").read_text(encoding="ascii")


def digest(text: str) -> str:
    """A script as a content policy names it: ``sha256-…``."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("ascii")).digest()).decode("ascii")


def fill(template: str, **facts: Any) -> str:
    """The page: ``template`` (a file in this folder, which extends ``base.html``) filled with ``facts``, all of them escaped.

    A template that holds a viewer has the package's own script as ``viewer_script``, and its digest in the page's policy.
    """
    own = script()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regframe", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = unbroken
    return shown(
        environment.get_template(template).render(
            {**facts, "viewer_script": markupsafe.Markup(own), "viewer_digest": digest(own)}
        )
    )


def jpeg(picture: Array, quality: int) -> str:
    """``picture`` ``[H, W]`` or ``[H, W, 3]``, 0 … 1, as the data URI of a JPEG; values that are not finite become black."""
    pixels = (np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return data_uri(buffer.getvalue(), "jpeg")


def data_uri(data: bytes, kind: str) -> str:
    """An image file (``kind``: ``png``, ``jpeg``) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def svg_uri(drawing: str) -> str:
    """A drawing of `regframe.report.figures` as a data URI; what is in an image runs nothing and fetches nothing."""
    return data_uri(drawing.encode("utf-8"), "svg+xml")
