"""The text headers of NRRD and MetaImage, read by one strict parser before a library in C++ sees the file.

The library follows names into other files, loops on lines to skip, and ends the process at sizes that it does not expect. So a
file passes only where every line is one that this parser knows, everything lies in this one file, and the pixels that the header
declares are there, unpacked as far as needed to know it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import regframe

HEADER = 1 << 16
"""Bytes within which a header ends: those of real files have some hundred, with a patient's record some thousand."""
_MOST_AXES = 6
"""Axes of a file: three of space, components, time, and one of a single entry."""
_MOST_COMPONENTS = 1024
"""Values of one pixel."""

_NRRD_TYPES = {
    name: size
    for size, names in {
        1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t|char",
        2: "short|short int|signed short|signed short int|int16|int16_t|ushort|unsigned short|unsigned short int|uint16|uint16_t",
        4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
        8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t|ulonglong|unsigned long long"
        "|unsigned long long int|uint64|uint64_t|double",
    }.items()
    for name in names.split("|")
}
"""Bytes of a value by the name of its type, all spellings of the format's definition but ``block``."""
_NRRD_FIELDS = frozenset(
    [
        "content",
        "number",
        "type",
        "dimension",
        "space",
        "space dimension",
        "sizes",
        "spacings",
        "thicknesses",
        "axis mins",
        "axismins",
        "axis maxs",
        "axismaxs",
        "centers",
        "centerings",
        "labels",
        "units",
        "kinds",
        "old min",
        "oldmin",
        "old max",
        "oldmax",
        "endian",
        "encoding",
        "line skip",
        "lineskip",
        "byte skip",
        "byteskip",
        "sample units",
        "sampleunits",
        "space units",
        "space origin",
        "space directions",
        "measurement frame",
        "min",
        "max",
    ]
)
_NUMBERS = re.compile(r"[\d\s.+\-eEainfNIF]{0,400}")
_VECTORS = re.compile(r"[\d\s.,()+\-eEnoaifNIF]{0,1000}")
_WORD = re.compile(r"[\w\s?-]{1,200}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,400}")
_NRRD_VALUES = {
    **dict.fromkeys(
        ("spacings", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "old min", "oldmin"), _NUMBERS
    ),
    **dict.fromkeys(("old max", "oldmax", "min", "max", "number"), _NUMBERS),
    **dict.fromkeys(("space directions", "space origin", "measurement frame"), _VECTORS),
    **dict.fromkeys(("space", "kinds", "centers", "centerings", "type", "endian", "encoding"), _WORD),
}
"""What the values of fields may look like, `_TEXT` where not listed: the library copies some into buffers that are too small."""
_MOST_LINE = 4096
"""Characters of a comment, or of a pair of a key and its value."""

_NRRD_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "ascii": "text", "text": "text", "txt": "text"}

_META_TYPES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4, "MET_ULONG": 4,
    "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_META_FIELDS = frozenset(
    [
        "ObjectType",
        "ObjectSubType",
        "NDims",
        "Name",
        "ID",
        "ParentID",
        "Color",
        "Comment",
        "BinaryData",
        "BinaryDataByteOrderMSB",
        "ElementByteOrderMSB",
        "CompressedData",
        "CompressedDataSize",
        "CompressionLevel",
        "TransformMatrix",
        "Rotation",
        "Orientation",
        "Offset",
        "Position",
        "Origin",
        "CenterOfRotation",
        "AnatomicalOrientation",
        "ElementSpacing",
        "ElementSize",
        "DimSize",
        "HeaderSize",
        "Modality",
        "SequenceID",
        "ElementMin",
        "ElementMax",
        "ElementNumberOfChannels",
        "ElementType",
        "ElementDataFile",
        "DistanceUnits",
        "AcquisitionDate",
        "ImagePositionPatient",
    ]
)


def fields_of(path: Path, kind: str) -> dict[str, str]:
    """The header of a text format, key by key (those of NRRD in lower case); empty for NIfTI.

    Raises ValueError in one sentence for a header with a line that is not known, whose pixels lie elsewhere, or that declares
    others than the file holds.
    """
    if kind == "NIfTI":
        return {}
    with path.open("rb") as file:
        head = file.read(HEADER)
    fields, start = (_nrrd if kind == "NRRD" else _meta)(path, head)
    elsewhere = fields.get("data file") or fields.get("datafile") or fields.get("ElementDataFile", "LOCAL")
    if elsewhere != "LOCAL":
        raise ValueError(
            f"wanted a volume in one file, got {str(path)!r}, whose pixels lie in {elsewhere!r}; convert it to one"
        )
    (_check_nrrd if kind == "NRRD" else _check_meta)(path, fields, start)
    return fields


def _refused(path: Path, kind: str, what: str) -> ValueError:
    return ValueError(f"wanted a plain {kind} file, got {str(path)!r} with {what}; write it anew")


def _nrrd(path: Path, head: bytes) -> tuple[dict[str, str], int]:
    """The fields of an NRRD header, and where its pixels begin."""
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None:
        raise _refused(path, "NRRD", f"a header that does not end within {HEADER} bytes")
    lines = head[: end.start()].decode("latin-1").splitlines()
    if not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise _refused(path, "NRRD", f"the first line {lines[0][:40]!r}")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("#") or re.match(r"[^:]+:=", line):
            if len(line) > _MOST_LINE:
                raise _refused(path, "NRRD", f"a line of {len(line)} characters")
            continue
        key, mark, value = line.partition(": ")
        key = key.strip().lower()
        if not mark or key in fields or (key not in _NRRD_FIELDS and key not in ("data file", "datafile")):
            raise _refused(path, "NRRD", f"the header line {line[:60]!r}")
        fields[key] = value.strip()
        if not _NRRD_VALUES.get(key, _TEXT).fullmatch(fields[key]):
            raise _refused(path, "NRRD", f"the header line {line[:60]!r}")
    return fields, end.end()


def _check_nrrd(path: Path, fields: dict[str, str], start: int) -> None:
    """ValueError where a header asks for what is not read, or declares pixels that are not there."""
    for key in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(key, "0") != "0":
            raise _refused(path, "NRRD", f"{key}: {fields[key][:40]}")
    item = _NRRD_TYPES.get(fields.get("type", "").lower())
    if item is None:
        raise _refused(path, "NRRD", f"type: {fields.get('type', 'none')[:40]}")
    count = _whole(path, "NRRD", "dimension", fields.get("dimension", ""), _MOST_AXES)
    sizes = [_whole(path, "NRRD", "sizes", word, 1 << 40) for word in fields.get("sizes", "").split()]
    if count < 2 or len(sizes) != count:
        raise _refused(path, "NRRD", f"dimension: {count} and sizes: {fields.get('sizes', 'none')[:60]}")
    for key in ("spacings", "thicknesses", "axis mins", "axis maxs", "centers", "centerings", "kinds"):
        if key in fields and len(fields[key].split()) != count:
            raise _refused(path, "NRRD", f"{key}: {fields[key][:60]} for {count} axes")
    vectors = re.findall(r"\([^()]*\)|none|nan", fields.get("space directions", "none " * count))
    if len(vectors) != count:
        raise _refused(path, "NRRD", f"space directions: {fields['space directions'][:60]} for {count} axes")
    encoding = _NRRD_ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise _refused(path, "NRRD", f"encoding: {fields.get('encoding', 'none')[:40]}")
    if encoding == "raw" and item > 1 and fields.get("endian", "").lower() not in ("little", "big"):
        raise _refused(path, "NRRD", f"endian: {fields.get('endian', 'none')[:40]}")
    what = f"sizes: {fields['sizes'][:60]} of {fields['type']}"
    _check_pixels(path, what, math.prod(sizes), item, start, encoding)


def _meta(path: Path, head: bytes) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage header, and where its pixels begin."""
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", at)
        if end < 0:
            raise _refused(path, "MetaImage", f"no ElementDataFile within {HEADER} bytes")
        line = head[at:end].decode("latin-1").strip()
        at = end + 1
        key, mark, value = line.partition("=")
        key = key.strip()
        if not line:
            continue
        if not mark or key in fields or key not in _META_FIELDS or not _TEXT.fullmatch(value.strip()):
            raise _refused(path, "MetaImage", f"the header line {line[:60]!r}")
        fields[key] = value.strip()
    return fields, at


def _check_meta(path: Path, fields: dict[str, str], start: int) -> None:
    """ValueError where a header asks for what is not read, or declares pixels that are not there."""
    if fields.get("ObjectType", "Image") != "Image" or fields.get("HeaderSize", "0") != "0":
        what = next(f"{k} = {fields[k][:40]}" for k in ("HeaderSize", "ObjectType") if k in fields)
        raise _refused(path, "MetaImage", what)
    count = _whole(path, "MetaImage", "NDims", fields.get("NDims", ""), 4)
    sizes = [_whole(path, "MetaImage", "DimSize", word, 1 << 40) for word in fields.get("DimSize", "").split()]
    if count < 2 or len(sizes) != count:
        raise _refused(path, "MetaImage", f"NDims = {count} and DimSize = {fields.get('DimSize', 'none')[:60]}")
    item = _META_TYPES.get(fields.get("ElementType", "").removesuffix("_ARRAY"))
    if item is None:
        raise _refused(path, "MetaImage", f"ElementType = {fields.get('ElementType', 'none')[:40]}")
    parts = _whole(
        path, "MetaImage", "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), _MOST_COMPONENTS
    )
    for key, wanted in (
        ("ElementSpacing", (count,)), ("ElementSize", (count,)), ("Offset", (count,)), ("Position", (count,)),
        ("Origin", (count,)), ("CenterOfRotation", (count,)), ("TransformMatrix", (count * count,)),
        ("Rotation", (count * count,)), ("Orientation", (count * count,)), ("Color", (4,)),
    ):  # fmt: skip
        words = fields.get(key, "").split()
        if words and (len(words) not in wanted or not all(map(_is_number, words))):
            raise _refused(path, "MetaImage", f"{key} = {fields[key][:60]} for {count} dimensions")
    flags = {key: fields.get(key, "False").lower() for key in ("BinaryData", "CompressedData")}
    for key, word in flags.items():
        if word not in ("true", "false", "1", "0"):
            raise _refused(path, "MetaImage", f"{key} = {fields[key][:40]}")
    packed = flags["CompressedData"] in ("true", "1")
    encoding = "text" if flags["BinaryData"] in ("false", "0") and "BinaryData" in fields else "raw"
    if packed:
        declared = _whole(path, "MetaImage", "CompressedDataSize", fields.get("CompressedDataSize", "0"), 1 << 50, 0)
        if declared > path.stat().st_size - start:
            raise _refused(
                path, "MetaImage", f"CompressedDataSize = {declared} for {path.stat().st_size - start} bytes"
            )
        encoding = "zlib"
    what = f"DimSize = {fields['DimSize'][:60]} of {parts} x {fields['ElementType']}"
    _check_pixels(path, what, math.prod(sizes) * parts, item, start, encoding)


def _check_pixels(path: Path, what: str, count: int, item: int, start: int, encoding: str) -> None:
    """ValueError where a file does not hold the ``count`` values of ``item`` bytes that its header declares.

    Args:
        path: of the file.
        what: field and value that declare them.
        count: number of values.
        item: bytes of one.
        start: where they begin in the file.
        encoding: ``raw``, ``text``, ``gzip`` or ``zlib``.
    """
    there = path.stat().st_size - start
    wanted = count * item
    ratio = {"raw": 1, "text": item}.get(encoding, 1032)
    if wanted > ratio * there + item:
        raise ValueError(
            f"wanted a file as large as what it declares, got {what}, {wanted} bytes, in the {there} bytes of pixels of "
            f"{str(path)!r}, which was cut short or is damaged"
        )
    regframe.gate.check_declared(path.name, what, wanted, there, max(ratio, 1))
    if encoding == "raw":
        return
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    if encoding == "text":
        words = data.split()
        if len(words) < count or not all(map(_is_number, words[:count])):
            raise ValueError(f"wanted {count} numbers for {what} in {str(path)!r}, got {len(words)} words")
        return
    try:
        found = len(regframe.gate.expand(data, encoding, wanted + (1 << 20)))
    except ValueError as error:
        raise ValueError(
            f"wanted pixels that can be unpacked in {str(path)!r}, got others: {error}; copy the file anew"
        ) from error
    if found < wanted:
        raise ValueError(f"wanted {wanted} bytes for {what} in {str(path)!r}, got {found}; copy the file anew")


def _whole(path: Path, kind: str, key: str, word: str, most: int, least: int = 1) -> int:
    """A whole number of a header."""
    if not re.fullmatch(r"\d{1,18}", word) or not least <= int(word) <= most:
        raise _refused(path, kind, f"{key} {word[:40]!r}, not a whole number from {least} to {most}")
    return int(word)


def _is_number(word: str | bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
