"""Whether a file that a library of others wrote is whole: measured against what its own header declares.

ITK (SimpleITK) goes on without a word where the disk is full, and leaves a file that is cut short. Each check reads the file back
as far as is needed to know that its last byte is there.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import logging
import math
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .replacing import not_written

_NIFTI_HEADER = 348
"""Bytes of the header of NIfTI-1, from its standard."""
_BLOCK = 1 << 22
"""Bytes that are read at once."""


def check_whole(path: Path, final: Path) -> None:
    """Raise `NotWritten`, in the name of ``final``, where the file ``path`` is cut short; other kinds of files pass."""
    name = path.name.lower()
    check = next((check for suffixes, check in _CHECKS if name.endswith(suffixes)), None)
    begins = next((begins for suffix, begins in _BEGINS.items() if name.endswith(suffix)), ())
    if check is None or (begins and _is_other(path, begins)):
        return
    try:
        lack = check(path)
    except (OSError, EOFError, ValueError, zlib.error, struct.error, zipfile.BadZipFile) as error:
        lack = f"it cannot be read back ({' '.join(str(error).split())[:120]})"
    if lack:
        raise not_written(final, None, f"what was written is cut short: {lack}")


def _is_other(path: Path, begins: tuple[bytes, ...]) -> bool:
    """Whether a file begins as none of its format does, not even cut short: a table, say, that was given such a name."""
    with path.open("rb") as file:
        head = file.read(max(map(len, begins)))
    return bool(head) and not any(head.startswith(one) or one.startswith(head) for one in begins)


def _length(path: Path) -> int:
    """Number of bytes of a file, unpacked where it is gzip; reads a packed file to its checksum."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path.stat().st_size
    count = 0
    with gzip.open(path) as file:
        while block := file.read(_BLOCK):
            count += len(block)
    return count


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        return file.read(size)


def _short(found: int, wanted: int) -> str:
    return f"{found} bytes where its header declares {wanted}" if found < wanted else ""


def _nifti(path: Path) -> str:
    head = _head(path, _NIFTI_HEADER)
    if len(head) < _NIFTI_HEADER:
        return _short(len(head), _NIFTI_HEADER)
    order = "<" if struct.unpack_from("<i", head)[0] == _NIFTI_HEADER else ">"
    if struct.unpack_from(f"{order}i", head)[0] != _NIFTI_HEADER:  # NIfTI-2, Analyze: not written by regframe
        return ""
    dim = struct.unpack_from(f"{order}8h", head, 40)
    bits = struct.unpack_from(f"{order}h", head, 72)[0]
    offset = struct.unpack_from(f"{order}f", head, 108)[0]
    return _short(_length(path), int(offset) + math.prod(max(1, n) for n in dim[1 : 1 + dim[0]]) * bits // 8)


def _gzip(path: Path) -> str:
    _length(path)
    return ""


_NRRD_BYTES = {
    "char": 1,
    "short": 2,
    "int": 4,
    "float": 4,
    "double": 8,
    "long": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
"""Bytes of a number by the last word of its type in a NRRD header, without ``unsigned``; from the format's definition."""
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a number by its ``ElementType`` in a MetaImage header, ``MET_`` and ``U`` left out."""


def _nrrd(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(1 << 16)
        text, blank, _ = head.partition(b"\n\n")
        if not blank:
            return "its header has no end"
        fields = dict(line.split(": ", 1) for line in text.decode(errors="replace").splitlines() if ": " in line)
        if "data file" in fields or "datafile" in fields:
            return ""
        kind = re.sub(r"^(unsigned |signed |u)|(_t)$", "", fields.get("type", "")).split()
        size = _NRRD_BYTES.get(kind[-1] if kind else "")
        if size is None:
            return ""
        wanted = math.prod(int(n) for n in fields["sizes"].split()) * size
        start = len(text) + 2
        if fields.get("encoding") == "raw":
            return _short(path.stat().st_size - start, wanted)
        if fields.get("encoding") not in ("gzip", "gz"):
            return ""
        file.seek(start)
        with gzip.open(file) as data:
            return _short(sum(len(block) for block in iter(lambda: data.read(_BLOCK), b"")), wanted)


def _metaimage(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(1 << 16)
        found = re.search(rb"ElementDataFile *= *([^\n]*)\n", head)
        if found is None:
            return "its header has no end"
        fields = dict(re.findall(rb"(\w+) *= *([^\n]*)\n", head[: found.end()]))
        place = found[1].strip().decode(errors="surrogateescape")
        data = path if place == "LOCAL" else path.with_name(Path(place).name)
        if place != "LOCAL" and not data.is_file():
            return ""
        start = found.end() if place == "LOCAL" else 0
        left = data.stat().st_size - start
        kind = fields.get(b"ElementType", b"").decode(errors="replace").removeprefix("MET_").removeprefix("U")
        if fields.get(b"CompressedData", b"False").strip().lower() == b"true":
            if b"CompressedDataSize" in fields:
                return _short(left, int(fields[b"CompressedDataSize"]))
            return ""
        channels = int(fields.get(b"ElementNumberOfChannels", b"1"))
        if kind not in _META_BYTES:
            return ""
        sizes = [int(n) for n in fields[b"DimSize"].split()]
        return _short(left, math.prod(sizes) * channels * _META_BYTES[kind])


_ITK_HEADER = b"#Insight Transform File"


def _itk_text(path: Path) -> str:
    """A transform in ITK's text format: each has its parameters, then its fixed parameters, and the last line an end."""
    data = path.read_bytes()
    if not data.startswith(_ITK_HEADER):  # elastix writes .txt too
        other = path.suffix.lower() == ".txt" and not _ITK_HEADER.startswith(data)
        return "" if other else "its header is missing"
    kinds = len(re.findall(rb"^Transform: (?!Composite)", data, re.M))
    if not kinds:
        return "it holds no transform"
    ends = len(re.findall(rb"^FixedParameters:.*\n", data, re.M))
    return "" if ends >= kinds and data.endswith(b"\n") else f"{ends} of {kinds} transforms are there"


def _mat(path: Path) -> str:
    """A file of Matlab 4, as ITK writes transforms: blocks of a header of five integers, a name, and numbers."""
    data, at, blocks = path.read_bytes(), 0, 0
    while at < len(data):
        if len(data) - at < 20:
            return "a block has no header"
        kind, rows, columns, imaginary, name = struct.unpack_from("<5i", data, at)
        if not (0 <= kind < 5000 and rows >= 0 and columns >= 0 and 0 <= name < 4096):
            return ""  # another byte order, or another version
        size = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2, 5: 1}.get(kind // 10 % 10, 1)
        at += 20 + name + rows * columns * size * (2 if imaginary else 1)
        blocks += 1
    if at > len(data):
        return _short(len(data), at)
    return "" if blocks >= 2 else f"{blocks} of 2 blocks are there"


def _zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    return f"its part {broken} is damaged" if broken else ""


def _ends(*wanted: bytes) -> Callable[[Path], str]:
    """A check that a file ends with one of some bytes."""

    def check(path: Path) -> str:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 16))
            tail = file.read()
        return "" if any(tail.endswith(end) for end in wanted) else "its end is missing"

    return check


class _Heard(logging.Handler):
    """Keeps what a library reports."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _tiff(path: Path) -> str:
    import tifffile

    size, heard, logger = path.stat().st_size, _Heard(), logging.getLogger("tifffile")
    goes_on, logger.propagate = logger.propagate, False
    logger.addHandler(heard)
    try:
        with tifffile.TiffFile(path) as file:
            for page in _pages(file.pages):
                ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
                if ends and max(ends) > size:
                    return _short(size, max(ends))
    except tifffile.TiffFileError as error:  # which is a ValueError of its own accord in later versions only
        raise ValueError(str(error)) from error
    finally:
        logger.removeHandler(heard)
        logger.propagate = goes_on
    return heard.lines[0][:120] if heard.lines else ""


def _pages(pages: Any) -> Iterator[Any]:
    """All images of a TIFF, those of a pyramid too."""
    for page in pages:
        page = page.aspage()
        yield page
        if page.pages is not None:
            yield from _pages(page.pages)


def _hdf5(path: Path) -> str:
    """HDF5 keeps the length of the file in its first block."""
    with path.open("rb") as file:
        head = file.read(96)
    if not head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "its first bytes are not those of HDF5"
    version = head[8]
    if version in (0, 1):
        sizes, at = head[13], 24 + (4 if version == 1 else 0)
        wanted = int.from_bytes(head[at + 2 * sizes : at + 3 * sizes], "little")
    else:
        sizes = head[9]
        wanted = int.from_bytes(head[12 + 2 * sizes : 12 + 3 * sizes], "little")
    return _short(path.stat().st_size, wanted)


_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Path], str]], ...] = (
    ((".nii", ".nii.gz"), _nifti),
    ((".nrrd",), _nrrd),
    ((".mha", ".mhd"), _metaimage),
    ((".tfm", ".txt"), _itk_text),
    ((".mat",), _mat),
    ((".h5", ".hdf5", ".h5ad"), _hdf5),
    ((".tif", ".tiff"), _tiff),
    ((".png",), _ends(b"IEND\xaeB`\x82")),
    ((".jpg", ".jpeg"), _ends(b"\xff\xd9")),
    ((".parquet",), _ends(b"PAR1")),
    ((".npz", ".zip"), _zip),
    ((".gz",), _gzip),
)
"""Checks by suffix; the first that fits is taken."""
_BEGINS = {
    (".tif", ".tiff"): (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    (".png",): (b"\x89PNG",),
    (".jpg", ".jpeg"): (b"\xff\xd8",),
    (".parquet",): (b"PAR1",),
    (".h5", ".hdf5", ".h5ad"): (b"\x89HDF",),
    (".npz", ".zip"): (b"PK",),
    (".nrrd",): (b"NRRD",),
}
"""First bytes of these formats, by suffix."""


def disk_full(folder: Path) -> int | None:
    """The number of the error by which the system would refuse to write more into ``folder`` now; None where it would not.

    A file that has grown to the size that this process may write counts too.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(os.urandom(1 << 16))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno
    with contextlib.suppress(ImportError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if most != resource.RLIM_INFINITY:
            sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
            if max(sizes, default=0) >= most - 4096:
                return errno.EFBIG
    return None
