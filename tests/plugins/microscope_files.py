"""Small files of microscopes, written by the published layouts: ND2 of Nikon, LIF of Leica, CZI of Zeiss."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def write_nd2(
    path: Path,
    data: Array,
    loops: Sequence[tuple[str, int, float]] = (),
    channels: Sequence[tuple[str, int]] = (("DAPI", 0xFF0000),),
    micron: float | None = 0.25,
    names: Sequence[str] = (),
    left_out: Sequence[int] = (),
) -> Path:
    """An ND2 file of version 3.

    Args:
        path: to write.
        data: ``[frames, y, x, components]``, frames in the order of the loops.
        loops: kind (``t``, ``p`` or ``z``), entries and step in micron of every loop, the outermost first.
        channels: name and colour (``BGR`` as a number) of every channel.
        micron: of a pixel; None for a microscope that was not calibrated.
        names: of the positions.
        left_out: frames that are not written.
    """
    _, height, width, components = data.shape
    bits = data.dtype.itemsize * 8
    attributes = {
        "uiWidth": width, "uiWidthBytes": width * components * data.dtype.itemsize, "uiHeight": height, "uiComp": components,
        "uiBpcInMemory": bits, "uiBpcSignificant": bits, "uiSequenceCount": len(data), "eCompression": 2,
    }  # fmt: skip
    planes = {
        f"a{i}": {
            "uiCompCount": components // len(channels),
            "sDescription": name,
            "uiColor": colour,
            "pFluorescentProbe": {"uiCount": 0},
        }
        for i, (name, colour) in enumerate(channels)
    }
    metadata = {
        "bCalibrated": micron is not None, "dCalibration": 1.0 if micron is None else micron,
        "sPicturePlanes": {"uiCount": len(channels), "uiCompCount": components, "sPlaneNew": planes},
    }  # fmt: skip
    experiment: dict[str, Any] = {}
    for kind, count, step in reversed(loops):
        number, inside = {"t": 1, "p": 2, "z": 4}[kind], {"uiCount": count}
        if kind == "z":
            inside |= {"dZStep": step, "dZLow": 0.0, "dZHigh": step * (count - 1), "iType": 0}
        elif kind == "t":
            inside |= {"dStart": 0.0, "dPeriod": 1000.0, "dDuration": 1000.0 * count}
        else:
            points = {
                f"i{i:010}": {"dPosX": 100.0 * i, "dPosY": 0.0, "dPosZ": 0.0, "dPosName": names[i] if names else ""}
                for i in range(count)
            }
            inside |= {"Points": points, "bUseZ": False}
        nested = {"ppNextLevelEx": {"i0000000000": experiment}} if experiment else {}
        experiment = {"eType": number, "uLoopPars": inside} | nested
    chunks = [
        (b"ImageAttributesLV!", _level("SLxImageAttributes", attributes)),
        (b"ImageMetadataSeqLV|0!", _level("SLxPictureMetadata", metadata)),
        *(((b"ImageMetadataLV!", _level("SLxExperiment", experiment)),) if experiment else ()),
    ]
    for i, frame in enumerate(data):
        if i not in left_out:
            chunks.append((b"ImageDataSeq|%d!" % i, struct.pack("<d", 0.0) + frame.tobytes()))
    out = bytearray(_chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"), 32))
    found = bytearray()
    for name, content in chunks:
        out.extend(bytes(-len(out) % 4096))
        found += name + struct.pack("<QQ", len(out), len(content))
        out += _chunk(name, content, 4072)
    at = len(out)
    out += _chunk(
        b"ND2 FILEMAP SIGNATURE NAME 0001!",
        bytes(found) + b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", at),
        32,
    )
    path.write_bytes(out)
    return path


def _chunk(name: bytes, content: bytes, reserved: int) -> bytes:
    return struct.pack("<IIQ", 0x0ABECEDA, reserved, len(content)) + name.ljust(reserved, b"\0") + content


def _level(name: str, values: dict[str, Any]) -> bytes:
    """A named group of the variants in which ND2 keeps its metadata."""
    parts = []
    for key, value in values.items():
        if isinstance(value, dict):
            parts.append(_level(key, value))
            continue
        kinds = {bool: (1, "<B"), int: (3, "<I"), float: (6, "<d")}
        if isinstance(value, str):
            kind, content = 8, f"{value}\0".encode("utf-16-le")
        else:
            kind, layout = kinds[type(value)]
            content = struct.pack(layout, value)
        parts.append(_head(kind, key) + content)
    head = _head(11, name)
    body = b"".join(parts)
    return head + struct.pack("<IQ", len(parts), len(head) + 12 + len(body)) + body + bytes(8 * len(parts))


def _head(kind: int, name: str) -> bytes:
    return struct.pack("BB", kind, len(name) + 1) + f"{name}\0".encode("utf-16-le")


_DIMENSIONS = {"x": 1, "y": 2, "z": 3, "t": 4, "m": 10}


def write_lif(path: Path, images: Sequence[dict[str, Any]]) -> Path:
    """A LIF file of version 2.

    Args:
        path: to write.
        images: each with ``name``, ``data``, ``axes`` of the data, ``steps`` in metres per axis, ``channels`` (name of the lookup
            table and of the dye) or ``tags`` (of a picture, per sample).
    """
    elements, blocks = [], []
    for i, one in enumerate(images):
        data, axes = one["data"], one["axes"]
        strides = dict(zip(axes, data.strides, strict=True))
        sizes = dict(zip(axes, data.shape, strict=True))
        bits = data.dtype.itemsize * 8
        if "tags" in one:
            described = [(str(tag), "", "", n * strides["s"]) for n, tag in enumerate(one["tags"])]
        else:
            described = [
                ("0", lut, dye, n * strides.get("c", 0))
                for n, (lut, dye) in enumerate(one.get("channels", (("Gray", ""),)))
            ]
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="{tag}" Resolution="{bits}" NameOfMeasuredQuantity="" Min="0" '
            f'Max="255" Unit="" LUTName="{lut}" IsLUTInverted="0" BytesInc="{inc}" BitInc="0">'
            + (f"<ChannelProperty><Key>DyeName</Key><Value>{dye}</Value></ChannelProperty>" if dye else "")
            + "</ChannelDescription>"
            for tag, lut, dye, inc in described
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{_DIMENSIONS[a]}" NumberOfElements="{sizes[a]}" Origin="0" '
            f'Length="{one.get("steps", {}).get(a, 0) * (sizes[a] - 1)!r}" Unit="m" BitInc="0" BytesInc="{strides[a]}"/>'
            for a in axes
            if a in _DIMENSIONS
        )
        elements.append(
            f'<Element Name="{one["name"]}" UniqueID="{i}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
            f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{data.nbytes}" MemoryBlockID="MemBlock_{i}"/></Element>'
        )
        name = f"MemBlock_{i}"
        head = struct.pack("<IIBQBI", 0x70, 2 * len(name) + 14, 0x2A, data.nbytes, 0x2A, len(name))
        blocks.append(head + name.encode("utf-16-le") + data.tobytes())
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="project"><Children>'
        + "".join(elements)
        + "</Children></Element></LMSDataContainerHeader>"
    )
    head = struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml))
    path.write_bytes(head + xml.encode("utf-16-le") + b"".join(blocks))
    return path


_PIXELS = {("u1", 1): 0, ("u2", 1): 1, ("f4", 1): 2, ("u1", 3): 3, ("u2", 3): 4}


def write_czi(path: Path, tiles: Sequence[dict[str, Any]], xml: str = "") -> Path:
    """An uncompressed CZI file.

    Args:
        path: to write.
        tiles: each with ``data`` ``[y, x]`` or ``[y, x, 3]`` (red first), ``at`` (x, y) on the canvas, ``dims`` (start per axis
            letter, such as ``C`` and ``S``), ``ratio``: canvas pixels per pixel.
        xml: inside of the element ``Metadata``.
    """
    out = bytearray(32 + 512)
    entries = []
    for one in tiles:
        data, ratio = one["data"], one.get("ratio", 1)
        height, width = data.shape[:2]
        kind = (data.dtype.str[1:], 3 if data.ndim == 3 else 1)
        x, y = one.get("at", (0, 0))
        dims = [("X", x, width * ratio, width), ("Y", y, height * ratio, height)]
        dims += [(axis, start, 1, 1) for axis, start in one.get("dims", {"C": 0}).items()]
        entry = struct.pack("<2siqiiBx4xi", b"DV", _PIXELS[kind], len(out), 0, 0, 0 if ratio == 1 else 2, len(dims))
        for axis, start, size, stored in dims:
            entry += struct.pack("<4siifi", axis.encode(), start, size, float(start), stored)
        pixels = np.ascontiguousarray(data[..., ::-1] if data.ndim == 3 else data).tobytes()
        body = (struct.pack("<iiq", 0, 0, len(pixels)) + entry).ljust(256, b"\0") + pixels
        out += _segment(b"ZISRAWSUBBLOCK", body)
        entries.append(entry)
    text = f'<?xml version="1.0"?><ImageDocument><Metadata>{xml}</Metadata></ImageDocument>'.encode()
    metadata = len(out)
    out += _segment(b"ZISRAWMETADATA", struct.pack("<ii248x", len(text), 0) + text)
    directory = len(out)
    out += _segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(entries)) + b"".join(entries))
    head = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, b"a" * 16, b"a" * 16, 0, directory, metadata, 0, 0)
    out[: 32 + 512] = _segment(b"ZISRAWFILE", head.ljust(512, b"\0"))
    path.write_bytes(out)
    return path


def _segment(name: bytes, body: bytes) -> bytes:
    body = body + bytes(-len(body) % 32)
    return struct.pack("<16sqq", name, len(body), len(body)) + body


CHANNELS = (
    "<Information><Image><Dimensions><Channels>"
    '<Channel Id="Channel:0" Name="DAPI"><Color>#FF0000FF</Color></Channel>'
    '<Channel Id="Channel:1" Name="Cy5"><Color>#FFFF00FF</Color></Channel></Channels>'
    '<S><Scenes><Scene Index="0" Name="A1"/><Scene Index="1" Name="B2"/></Scenes></S></Dimensions></Image></Information>'
    '<Scaling><Items><Distance Id="X"><Value>5E-07</Value></Distance><Distance Id="Y"><Value>2.5E-07</Value></Distance>'
    '<Distance Id="Z"><Value>2E-06</Value></Distance></Items></Scaling>'
)
"""Metadata of two channels and two scenes; 0.5 µm along x, 0.25 µm along y, 2 µm along z."""
