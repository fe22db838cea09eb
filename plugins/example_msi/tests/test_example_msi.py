"""The kit on the adapter ``imzml``, and what is special about imzML."""

from pathlib import Path

import numpy as np
import pytest
from example_msi import ImzMLAdapter, write_imzml

import regframe
from regframe.testing import AdapterTests

GRID = regframe.Grid((2, 3), (50.0, 40.0), (7.0, 9.0), "µm")
MASSES = np.array([100.0, 200.0, 200.05, 300.0])
PIXELS = [(y, x, MASSES, np.array([1, 10, 100, 1000]) * (1.0 + x + 3 * y)) for y in range(2) for x in range(3)]


class TestTotal(AdapterTests):
    bad_options = ({"mz": "salt"}, {"mz": [-1]}, {"tolerance": 0}, {"max_bytes": 0})

    def make(self):
        return ImzMLAdapter()


class TestIons(AdapterTests):
    def make(self):
        return ImzMLAdapter(mz="100, 250.5", tolerance=0.01)


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_modes(tmp_path, processed, packed):
    write_imzml(tmp_path / "a.imzML", PIXELS, GRID, processed, packed)
    image = ImzMLAdapter([200, 300]).open(tmp_path / "a.imzML")
    assert image.channels == ("m/z 200", "m/z 300")
    assert image.data[0].tolist() == [[110, 220, 330], [440, 550, 660]]
    assert image.data[1, 1, 2] == 6000
    assert image.grid == GRID
    assert ImzMLAdapter().open(tmp_path / "a.imzML").data[0, 0, 0] == 1111


def test_what_was_not_measured_does_not_count(tmp_path):
    write_imzml(tmp_path / "a.imzML", PIXELS[1:], GRID)
    image = ImzMLAdapter().open(tmp_path / "a.imzML")
    assert image.weight.tolist() == [[0, 1, 1], [1, 1, 1]]


def edited(folder: Path, old: str, new: str) -> Path:
    path = folder / "a.imzML"
    write_imzml(path, PIXELS, GRID)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


BOMB = '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<mzML", BOMB + "]><mzML", "without a DOCTYPE"),
        ('count of pixels x" value="3"', 'count of pixels x" value="99999999"', "at most 1073741824 bytes"),
        ('position x" value="2"', 'position x" value="77777777777"', "at most 1073741824 bytes"),
        ('position x" value="2"', 'position x" value="1"', "one spectrum per pixel"),
        ('position x" value="2"', 'position x" value="0"', "one spectrum per pixel"),
        ('position x" value="2"', 'position x" value="two"', "a number for IMS:1000050"),
        (
            'accession="IMS:1000103" name="IMS:1000103" value="4"',
            'accession="IMS:1000103" value="4000000000000"',
            "cut short",
        ),
        ('accession="IMS:1000102" name="IMS:1000102" value="16"', 'accession="IMS:1000102" value="1600"', "cut short"),
        ('pixel size (x)" value="40.0"', 'pixel size (x)" value="-1"', "a positive pixel size"),
        ("UO:0000017", "UO:0000010", "a length in nm, µm or mm"),
        ('value="{', 'value="{00', "one with another identifier"),
        ("64-bit float", '" accession="MS:1000523', "well-formed"),
        ("MS:1000523", "MS:1", "one array of MS:1000514 with a number type"),
        ("</run>", "", "well-formed imzML"),
    ],
)
def test_what_is_refused(tmp_path, old, new, says):
    with pytest.raises(ValueError, match=r"^wanted .*" + says.replace("(", r"\(")):
        ImzMLAdapter().open(edited(tmp_path, old, new))


def test_without_its_binary(tmp_path):
    path = edited(tmp_path, "x", "x")
    path.with_suffix(".ibd").unlink()
    with pytest.raises(FileNotFoundError, match=r"wanted a\.ibd beside a\.imzML"):
        ImzMLAdapter().open(path)
