"""Text tables as programs write them: one function finds encoding, preamble, delimiter and decimal sign; `csv` reads the cells.

Understood are UTF-8 and UTF-16 with or without a mark, Windows-1252 where a file is neither, a first line ``sep=;``, lines of
comment (``#``, ``%``, ``//``) or titles before the header, a header within a comment, decimal commas, thousands set apart,
delimiters left at the ends of lines, and the point files of elastix. What can be read in two ways stays as it is.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import gate

COMMENT = ("#", "%", "//")
"""Beginnings of a line of comment before the header."""
DELIMITERS = ("\t", ";", ",", "|")
"""Delimiters that are tried, of equally good ones the first; white space where none of them divides the lines."""

_SEP = re.compile(r'^"?sep=(?P<sign>\\t|.)"?\s*$', re.IGNORECASE)
"""The line with which a spreadsheet is told the delimiter."""
_CLEARLY = 0.1
"""Share of the cells, 0 … 1, by which more have to be numbers for white space to divide lines that a sign divides as well: words
in a cell have blanks between them, which gains under 0.01 in a table of cells; columns of decimal commas gain 0.33."""
_SAMPLE = 200
"""Lines from which the delimiter is told."""
_PREAMBLE = 50
"""Lines within which a header is looked for below titles."""
_HIGH = 1 / 3
"""Share of bytes above 127 up to which bytes that are no UTF-8 count as text of a Western encoding: names in French or Danish
have fewer than a tenth, a compressed file half."""
_ZEROS = 0.3
"""Share of zero bytes among every other byte from which bytes without a mark count as UTF-16: that of digits and signs; text in
another alphabet has fewer."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)")
_TRANSFORMIX = re.compile(r"\s*Point\s+\d+\s*;\s*InputIndex\s*=")
_ENTRY = re.compile(r"(\w+)\s*=\s*\[([^\]]*)\]")
_WHOLE = re.compile(r"[+-]?\d+")
_POINT = re.compile(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_COMMA = re.compile(
    r"[+-]?(\d{1,3}(?:([. '\u2019\u00a0\u202f])\d{3}(?:\2\d{3})*)?|\d+)?,\d+(e[+-]?\d+)?", re.IGNORECASE
)
"""A number with a decimal comma, thousands possibly set apart."""
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
"""A number with commas between thousands."""
_MISSING = ("", "na", "n/a", "nan", "none", "null", "<na>")
"""Words, in lower case, that stand for a missing number."""
_BETWEEN = re.compile("[. '\u2019\u00a0\u202f]")


@dataclass(frozen=True)
class Text:
    """The cells of a text file, and what stood before them.

    Args:
        rows: rows of cells that are not blank, the header among them where there is one.
        lines: line of the file on which each row ends, counting from 1.
        preamble: lines before the first row, as they stand: comments and titles.
        header: whether the first row was found to be a header; None where that is open.
        commas: whether a cell may hold a comma.
        delimiter: what divides the cells; None for white space.
        notes: what was found that a reader should know, a few words each.
    """

    rows: list[list[str]]
    lines: list[int]
    preamble: tuple[str, ...] = ()
    header: bool | None = None
    commas: bool = False
    delimiter: str | None = None
    notes: tuple[str, ...] = ()


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are text in an encoding that `read_text` knows."""
    try:
        decoded(head[: len(head) // 4 * 4] if len(head) > 3 else head, cut=True)
    except ValueError:
        return False
    return True


def decoded(raw: bytes, cut: bool = False) -> tuple[str, str]:
    """The text of ``raw`` and the name of its encoding.

    Args:
        raw: bytes, not compressed.
        cut: whether they may end within a character, which then is left out.

    Raises ValueError, in half a sentence, for bytes that are no text.
    """
    errors = "ignore" if cut else "strict"
    for mark, name in (
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if raw.startswith(mark):
            return _clean(raw.decode(name, errors), name)
    even, odd = raw[:8192:2], raw[1:8192:2]
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros and zeros.count(0) > _ZEROS * len(zeros) and not others.count(0):
            return _clean(raw.decode(name, errors), name)
    for left_out in range(4 if cut else 1):  # a character has up to four bytes
        with contextlib.suppress(UnicodeDecodeError):
            return _clean(raw[: len(raw) - left_out].decode("utf-8-sig"), "utf-8")
    control = sum(raw.count(byte) for byte in range(32) if byte not in b"\t\n\r\f")
    if control or sum(byte > 127 for byte in raw[:65536]) > _HIGH * len(raw[:65536]):
        raise ValueError("it is neither UTF-8 nor another text")
    try:
        return raw.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return raw.decode("latin-1"), "latin-1"


def _clean(text: str, name: str) -> tuple[str, str]:
    if "\0" in text:
        raise ValueError("it holds zero bytes")
    return text, name


def read_text(path: Path, names_rows: Callable[[Sequence[str]], bool]) -> Text:
    """The cells of a text file, gzipped or not.

    Args:
        path: the file.
        names_rows: tells whether a row of cells is a header.

    Raises ValueError with one sentence for a file that is no text table; OSError as opening it does.
    """
    try:
        text, encoding = decoded(gate.read_plain(path))
        found = _parsed(text, names_rows)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError, csv.Error) as error:
        if str(error).startswith("wanted "):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"wanted a text table of points, got {str(path)!r}, which cannot be read as one ({reason})"
        ) from error
    if encoding in ("cp1252", "latin-1"):
        note = f"the text is no UTF-8 and was read as {encoding}"
        found = dataclasses.replace(found, notes=(note, *found.notes))
    return found


def _parsed(text: str, names_rows: Callable[[Sequence[str]], bool]) -> Text:
    """The cells of a decoded text; the steps are: what stands before the table, its delimiter, its header."""
    elastix = _elastix(text)
    if elastix is not None:
        return elastix
    start, skipped, comments, delimiter = _before(text)
    body = text[start:]
    if delimiter is None:
        delimiter = _delimiter(body)
    rows, lines = _cells(body, delimiter)
    lines = [line + skipped for line in lines]
    preamble, header = tuple(comments), None
    if rows and not names_rows(rows[0]):
        above = _titles(rows, names_rows)
        named = _commented(comments, delimiter, rows, names_rows) if not above else None
        if above:
            preamble += tuple(" ".join(row).strip() for row in rows[:above])
            rows, lines, header = rows[above:], lines[above:], True
        elif named is not None:
            preamble, rows, lines, header = preamble[:-1], [named, *rows], [lines[0], *lines], True
    rows, lines = _without_footers(*_trimmed(rows, lines))
    return Text(rows, lines, preamble, header, ('"' if delimiter == "," else ",") in body, delimiter)


def _before(text: str) -> tuple[int, int, list[str], str | None]:
    """Characters and lines before the table, its comments, and the delimiter that a line ``sep=`` names."""
    at, skipped = 0, 0
    comments: list[str] = []
    delimiter: str | None = None
    for match in _LINE.finditer(text):
        plain = match[0].strip()
        stated = _SEP.match(plain) if delimiter is None else None
        if stated is not None:
            delimiter = "\t" if stated["sign"] == "\\t" else stated["sign"]
        elif plain.startswith(COMMENT):
            comments.append(plain)
        elif plain:
            break
        at = match.end()
        skipped += 1
    return at, skipped, comments, delimiter


def _delimiter(body: str) -> str | None:
    """The delimiter of a table, None for white space: the one by which most lines have equally many cells, of these the one by
    which most cells are numbers (`_CLEARLY`)."""
    sample = [line for line in body[: 1 << 20].splitlines()[:_SAMPLE] if line.strip()]
    best: tuple[tuple[float, float], str | None] = ((0.0, -math.inf), None)
    for delimiter in (*DELIMITERS, None):
        split = [_split(line, delimiter) for line in sample]
        counts = Counter(map(len, split))
        width, often = max(counts.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
        if width < 2:
            continue
        cells = [cell for row in split for cell in row]
        numbers = sum(_looks_like_a_number(cell) for cell in cells) / len(cells)
        rank = (round(often / len(sample), 1), numbers - (0 if delimiter else _CLEARLY))
        if rank > best[0]:
            best = (rank, delimiter)
    return best[1]


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _cells(body: str, delimiter: str | None) -> tuple[list[list[str]], list[int]]:
    rows, lines = [], []
    if delimiter is None:
        for number, line in enumerate(body.splitlines(), 1):
            if line.strip():
                rows.append(line.split())
                lines.append(number)
        return rows, lines
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter, strict=True)
    for row in reader:
        if any(cell.strip() for cell in row):
            rows.append(row)
            lines.append(reader.line_num)
    return rows, lines


def _titles(rows: Sequence[Sequence[str]], names_rows: Callable[[Sequence[str]], bool]) -> int:
    """Number of rows of titles above the header; 0 where the header is the first row, or there is none."""
    for i, row in enumerate(rows[:_PREAMBLE]):
        if names_rows(row):
            return i
    return 0


def _commented(
    comments: Sequence[str],
    delimiter: str | None,
    rows: Sequence[Sequence[str]],
    names_rows: Callable[[Sequence[str]], bool],
) -> list[str] | None:
    """The header that the last comment is, such as ``#BLOCK  X  Y`` or ``# columns = id,x,y``; None where it is none."""
    if not comments:
        return None
    last = comments[-1]
    ways = (
        re.sub(r"^[#%/\s]*columns?\s*[=:]\s*", "", last, flags=re.IGNORECASE),
        re.sub(r"^[#%/]+[ \t]+", "", last),
        last,
    )
    if not any(_looks_like_a_number(cell) for cell in rows[0]):
        return None  # the first row is the header
    for line in ways:
        cells = [cell.strip() for cell in _split(line, delimiter)]
        words = all(cell and not _looks_like_a_number(cell) and " " not in cell for cell in cells)
        if len(cells) == len(rows[0]) and (names_rows(cells) or words):
            return cells
    return None


def _trimmed(rows: list[list[str]], lines: list[int]) -> tuple[list[list[str]], list[int]]:
    """Rows without the empty cell that a delimiter at the end of every line leaves where the header has none, or all have."""
    if len(rows) < 2:
        return rows, lines
    width, body = len(rows[0]), rows[1:]
    if all(len(row) == width + 1 and not row[-1].strip() for row in body):
        return [rows[0], *(row[:-1] for row in body)], lines
    short = all(len(row) == width - 1 or (len(row) == width and not row[-1].strip()) for row in body)
    if width > 2 and not rows[0][-1].strip() and short:
        return [row[: width - 1] for row in rows], lines
    return rows, lines


def _without_footers(rows: list[list[str]], lines: list[int]) -> tuple[list[list[str]], list[int]]:
    """Rows without the comments between and below them: lines that begin like one and have another number of cells."""
    if len(set(map(len, rows))) < 2:
        return rows, lines
    width = Counter(map(len, rows)).most_common(1)[0][0]
    kept = [
        i for i, row in enumerate(rows) if i == 0 or len(row) in (width, len(rows[0])) or not row[0].startswith(COMMENT)
    ]
    return [rows[i] for i in kept], [lines[i] for i in kept]


def _elastix(text: str) -> Text | None:
    """The points of an elastix ``.pts`` file: the word ``point`` or ``index``, their number, and a line for each.

    Indices count pixels from the centre of the first one, so their columns are named ``x_px`` and ``y_px``.
    """
    if _TRANSFORMIX.match(text):
        return _transformix(text)
    lines = [(i, line.split()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    words = [word for _, row in lines[:2] for word in row]
    if (
        len(lines) < 2
        or len(words) != 2
        or words[0].lower() not in ("point", "index")
        or not _WHOLE.fullmatch(words[1])
    ):
        return None
    body = lines[2:]
    if len(body) != int(words[1]):
        raise ValueError(f"its second line declares {words[1]} points, and {len(body)} follow")
    width = len(body[0][1]) if body else 2
    if width not in (2, 3):
        raise ValueError(f"its points have {width} components, not 2 or 3")
    suffix = "_px" if words[0].lower() == "index" else ""
    names = [f"{axis}{suffix}" for axis in "xyz"[:width]]
    return Text([names, *(row for _, row in body)], [lines[1][0], *(line for line, _ in body)], header=True)


def _transformix(text: str) -> Text:
    """The table that transformix writes of points, ``outputpoints.txt``, with a column per component: ``OutputPoint_x`` …"""
    rows, lines, header = [], [], ["id"]
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            entries = [(name, values.split()) for name, values in _ENTRY.findall(line)]
            header = ["id", *(f"{name}_{axis}" for name, values in entries for axis in "xyz"[: len(values)])]
            rows.append([line.split()[1], *(value for _, values in entries for value in values)])
            lines.append(number)
    return Text([header, *rows], [lines[0], *lines], header=True)


# ---- numbers ------------------------------------------------------------------------------------------------------


def _looks_like_a_number(cell: str) -> bool:
    cell = cell.strip()
    return any(form.fullmatch(cell) for form in (_WHOLE, _POINT, _COMMA, _THOUSANDS))


def numeric(cell: str) -> bool:
    """Whether a cell is a number, written with a decimal point or a decimal comma, thousands apart or not."""
    return _looks_like_a_number(cell)


def with_points(
    columns: Sequence[list[str]], positions: Sequence[bool], delimiter: str | None
) -> tuple[list[list[str]], bool]:
    """Columns of cells in which numbers written with commas are written with a decimal point.

    A column is changed only where all of its cells are numbers, every comma in it has one meaning (decimal, or between
    thousands), and the other columns do not contradict. Where commas may mean both (``25,609``), other columns decide, then
    the delimiter: ``;`` is what tables with decimal commas have. What is still open stays as it is.

    Args:
        columns: cells of each column.
        positions: which of them hold positions; thousands are joined in no other, where they may be lists.
        delimiter: of the file. Quoted cells between commas may also be lists of two numbers, unless two columns have them.

    Returns:
        The columns, and whether any was changed.
    """
    out = list(columns)
    kinds = [_kind(cells) for cells in out]
    points = bool({"point", "thousands"} & set(kinds))
    alone = delimiter == "," and sum(kind in ("comma", "either") for kind in kinds) < 2
    meaning = {
        "comma": "" if points or alone else "comma",
        "thousands": "" if "comma" in kinds else "thousands",
        "either": "thousands" if points else "comma" if ("comma" in kinds and not alone) or delimiter == ";" else "",
    }
    if points and "comma" in kinds:
        meaning["either"] = ""
    changed = False
    for i, kind in enumerate(kinds):
        told = meaning.get(kind, "")
        if told == "comma":
            out[i] = [_BETWEEN.sub("", cell.strip()).replace(",", ".") for cell in out[i]]
        elif told == "thousands" and positions[i]:
            out[i] = [cell.replace(",", "") for cell in out[i]]
        changed |= out[i] is not columns[i]
    return out, changed


def _kind(cells: Sequence[str]) -> str:
    """What a comma means in a column of numbers: ``comma``, ``thousands``, ``either``; ``point`` or ``""`` for one without."""
    point = False
    commas: list[str] = []
    for cell in cells:
        cell = cell.strip()
        if cell.lower() in _MISSING or _WHOLE.fullmatch(cell):
            continue
        if _POINT.fullmatch(cell):
            point = True
        elif _COMMA.fullmatch(cell) or _THOUSANDS.fullmatch(cell):
            commas.append(cell)
        else:
            return ""  # words, or a list
    if not commas:
        return "point" if point else ""
    decimal = not point and all(_COMMA.fullmatch(cell) for cell in commas)
    thousands = all(_THOUSANDS.fullmatch(cell) for cell in commas)
    return "either" if decimal and thousands else "comma" if decimal else "thousands" if thousands else ""
