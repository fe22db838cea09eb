"""What the pages share: pictures inside the HTML, and the template they are set in."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import PIL.Image

from .pictures import Array


@dataclass(frozen=True)
class Picture:
    """One embedded picture and its caption.

    Args:
        title: in bold below the picture.
        uri: the picture itself, as a data URI.
        note: what the caption says beside the title.
    """

    title: str
    uri: str
    note: str = ""


def fill(template: str, **facts: Any) -> str:
    """The page: ``template`` (a file of this folder, on top of ``base.html``) filled with ``facts``, all of them escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regframe", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(facts)


def jpeg(picture: Array, quality: int) -> str:
    """``picture`` ``[H, W]`` or ``[H, W, 3]``, 0 … 1, as the data URI of a JPEG; what is not finite is black."""
    pixels = (np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return data_uri(buffer.getvalue(), "jpeg")


def data_uri(data: bytes, kind: str) -> str:
    """An image file (``kind``: ``png``, ``jpeg``) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
