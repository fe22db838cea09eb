"""A gzipped table or GeoJSON file with a damaged byte is refused in one sentence, wherever the byte is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import regframe as rf

TABLE = "x,y,kind\n" + "".join(f"{i},{i * i % 97},k{i % 7}\n" for i in range(400))
SHAPES = '{"type": "FeatureCollection", "features": [' + ", ".join(
    f'{{"type": "Feature", "properties": {{"n": {i}}}, "geometry": {{"type": "Point", "coordinates": [{i}, {i % 13}]}}}}'
    for i in range(200)
) + "]}"  # fmt: skip


@pytest.mark.parametrize("kind", ["table", "sniffed", "shapes"])
@pytest.mark.parametrize("at", [3, 10, 12, 40, 200, -9, -3])
def test_a_damaged_byte_is_one_sentence(tmp_path: Path, kind: str, at: int) -> None:
    shapes = kind == "shapes"
    path = tmp_path / ("a.geojson.gz" if shapes else "a.csv.gz")
    raw = bytearray(gzip.compress((SHAPES if shapes else TABLE).encode(), mtime=0))
    for wrong in (0x00, 0xFF, 0x1B):
        path.write_bytes(raw[: at % len(raw)] + bytes([raw[at] ^ wrong ^ 0x55]) + raw[at % len(raw) + 1 :])
        read = {"table": rf.read_points, "sniffed": rf.open, "shapes": rf.read_shapes}[kind]
        try:
            read(path)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a flag of the header that changes nothing is no damage
            assert str(path.name) in str(error)  # noqa: PT017
