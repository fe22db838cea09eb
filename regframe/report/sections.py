"""Sections of the page that installed packages add: asked, bounded in time and size, and named where they fail.

A package names a class in the entry-point group ``regframe.sections``; its ``show(result)`` returns a `regframe.Section` or
None. What it says is text, and its picture is an image: nothing of it runs on the page.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import math
import re
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any
from xml.etree import ElementTree

from .. import plugins, strangers
from ..contracts import API, Section
from ..result import Result
from ..strangers import doors
from .page import Picture, data_uri

SECONDS = 5.0
"""Seconds that a section may take, its import included: the user waits for it."""
SENTENCES, WORDS = 20, 600
"""Most sentences of a section, and most characters of each, of the picture's caption and of the title."""
ROWS, CELLS, CELL = 50, 8, 200
"""Most rows of a table, most cells of a row, and most characters of a cell."""
BYTES = 400_000
"""Most bytes of a picture: twelve of them are as large as a page may be (`regframe.report.results.MAX_BYTES`)."""
PIXELS = 4_000_000
"""Most pixels of a PNG, which a browser unpacks to 16 MB."""
TOTAL = 1_200_000
"""Most bytes of all pictures of all sections together, a quarter of the page."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A section as the page shows it.

    Args:
        title: its heading.
        origin: the package that it is of, with its version.
        sentences: paragraphs.
        table: rows of text.
        picture: its picture, or None.
    """

    title: str
    origin: str
    sentences: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    picture: Picture | None


class _Late(BaseException):
    """Ends a section that has taken too long, as far as it runs in Python."""


def gathered(result: Result) -> tuple[list[Shown], list[str]]:
    """The sections of all installed packages on a result, by name; and a sentence for each that is left out.

    Each sentence is also a `regframe.PluginWarning`. What the sections change of the process is put back, what they print goes
    to stderr, and what they change of the figures or the history is not the result's.
    """
    points = doors.points(doors.SECTIONS)
    out = plugins.disabled()
    asked = [p for name, p in sorted(points.items()) if name not in out and "all" not in out]
    shown: list[Shown] = []
    remarks: list[str] = []
    left = TOTAL
    for point in asked:
        try:
            section = _asked(point, result)
            made = None if section is None else _checked(section, doors.package(point))
            size = 0 if made is None or made.picture is None else len(made.picture.uri)
            if size * 3 // 4 > left:
                raise ValueError(f"wanted at most {TOTAL} bytes of pictures in all sections, got more with this one")
        except Exception as error:  # noqa: BLE001 - third-party code, which may not cost the page
            remarks.append(
                f"the section {point.name!r} of {doors.package(point)} is left out: {_reason(error)}; report this to who wrote "
                f"it, or leave it out with {plugins.DISABLE}={point.name}"
            )
            warnings.warn(remarks[-1], plugins.PluginWarning, stacklevel=3)
            continue
        left -= size * 3 // 4
        shown += [] if made is None else [made]
    return shown, remarks


def _asked(point: EntryPoint, result: Result) -> Any:
    """What a section returns, asked on a thread of its own that is not waited for longer than `SECONDS`."""
    kept = dataclasses.replace(result, metrics=copy.deepcopy(result.metrics), history=copy.deepcopy(result.history))
    answer: list[Any] = []

    def ask() -> None:
        try:
            cls = doors.loaded(point, type, "a class with a method show(result)")
            api = getattr(cls, "api", API)
            if not isinstance(api, int) or api > API:
                raise ValueError(f"wanted a class for api {API} or earlier, got api {api!r}: update regframe")
            strangers.claim("section", cls, f"{doors.package(point)} ({point.name})")
            answer.append(cls().show(kept))
        except BaseException as error:  # noqa: BLE001 - told by who waits; nothing may end the process from here
            answer.append(error)

    with strangers.restored(), _quiet():
        thread = threading.Thread(target=ask, name=f"regframe-section-{point.name}", daemon=True)
        thread.start()
        thread.join(SECONDS)
        if thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Late))
            thread.join(0.1)
            raise TimeoutError(f"it took more than {SECONDS:g} s")
    (given,) = answer
    if isinstance(given, Exception):
        raise given
    if isinstance(given, BaseException):
        raise RuntimeError(f"it raised {type(given).__name__}") from given
    if given is not None and not isinstance(given, Section):
        raise TypeError(f"wanted a regframe.Section or None from show(result), got {type(given).__name__}")
    return given


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is printed goes to stderr: standard output is the command's."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _checked(section: Section, origin: str) -> Shown:
    """The section as it is shown; ValueError, in a sentence, for what is of another type or larger than the page takes."""
    if isinstance(section.sentences, str) or isinstance(section.table, (str, bytes)):
        raise ValueError("wanted lists of sentences and of rows, got text")
    sentences, table = list(section.sentences), [list(row) for row in section.table]
    if len(sentences) > SENTENCES or len(table) > ROWS or any(len(row) > CELLS for row in table):
        raise ValueError(
            f"wanted at most {SENTENCES} sentences and a table of at most {ROWS} rows of {CELLS} cells, got {len(sentences)} and "
            f"{len(table)} rows of up to {max(map(len, table), default=0)}"
        )
    title = _text(section.title, WORDS)
    if not title.strip():
        raise ValueError("wanted a title, got none")
    picture = None
    if section.picture is not None:
        picture = Picture(_text(section.caption, WORDS) or title, _drawn(section.picture))
    return Shown(
        title,
        origin,
        tuple(_text(sentence, WORDS) for sentence in sentences),
        tuple(tuple(_cell(cell) for cell in row) for row in table),
        picture,
    )


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str):
        raise ValueError(f"wanted text, got {type(value).__name__}")
    if len(value) > most:
        raise ValueError(f"wanted a text of at most {most} characters, got {len(value)}")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", value)


def _cell(value: Any) -> str:
    """One cell as text: numbers as in the page's other tables."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _text(str(value), CELL)
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else "–"
    return _text(value, CELL)


def _drawn(picture: Any) -> str:
    """A PNG or SVG file as a data URI; ValueError for anything else, for what is too large and for what is damaged."""
    data = picture.encode("utf-8", "replace") if isinstance(picture, str) else picture
    if not isinstance(data, bytes):
        raise ValueError(f"wanted the bytes of a PNG or SVG file as picture, got {type(picture).__name__}")
    if len(data) > BYTES:
        raise ValueError(f"wanted a picture of at most {BYTES} bytes, got {len(data)}")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
        if not 0 < width * height <= PIXELS or data[12:16] != b"IHDR":
            raise ValueError(f"wanted a PNG of 1 to {PIXELS} pixels, got {width} × {height}")
        return data_uri(data, "png")
    if b"<!" in re.sub(rb"<!--.*?-->", b"", data, flags=re.DOTALL):  # entities, which can be made to swell
        raise ValueError("wanted an SVG without a document type, got one that declares some")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"wanted a PNG or SVG file as picture, got something else ({error})") from error
    if root.tag.rpartition("}")[2] != "svg":
        raise ValueError(f"wanted a PNG or SVG file as picture, got an element {root.tag!r}")
    return data_uri(data, "svg+xml")


def _reason(error: Exception) -> str:
    """Why a section is left out: its own words, or the error with the method that it comes from."""
    told = " ".join(str(error).split())[:300]
    fault = strangers.fault_of(error)
    where = "" if fault is None else str(fault).partition(" from its ")[2].partition(";")[0]
    words = f"{type(error).__name__}: {told}" if fault is not None else told or type(error).__name__
    return words.partition("; report this to who wrote it")[0] + (f" in its {where}" if where else "")
