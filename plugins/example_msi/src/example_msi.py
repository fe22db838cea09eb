"""Imaging mass spectrometry for regframe: the adapter ``imzml`` (imzML 1.1: XML beside a binary ``.ibd``).

Schramm et al. 2012, "imzML - a common data format for the flexible exchange and processing of mass spectrometry imaging data".
"""

from __future__ import annotations

import hashlib
import math
import os
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

import numpy as np
import torch

import regframe

Numbers = np.ndarray[Any, Any]
Params = dict[str, tuple[str, str]]
"""Value and accession of the unit of each term, by the accession of the term in the ontologies MS and IMS."""

MZ, INTENSITY, ZLIB = "MS:1000514", "MS:1000515", "MS:1000574"
UUID, N_X, N_Y, SIZE_X, SIZE_Y = "IMS:1000080", "IMS:1000042", "IMS:1000043", "IMS:1000046", "IMS:1000047"
OFFSET_X, OFFSET_Y, X, Y, Z = "IMS:1000053", "IMS:1000054", "IMS:1000050", "IMS:1000051", "IMS:1000052"
START, LENGTH, ENCODED = "IMS:1000102", "IMS:1000103", "IMS:1000104"
TYPES = {
    "MS:1000521": "<f4", "MS:1000523": "<f8", "MS:1000519": "<i4", "MS:1000522": "<i8",
    "IMS:1100000": "<i1", "IMS:1100001": "<i2", "IMS:1000141": "<i4", "IMS:1000142": "<i8",
}  # fmt: skip
"""Number types, little-endian as imzML asks, by accession: those of mzML and those that imzML adds."""
UNITS = {"": "µm", "UO:0000016": "mm", "UO:0000017": "µm", "UO:0000018": "nm"}
"""Length units by accession in the Unit Ontology; imzML's own unit is µm where none stands."""
IDENTIFIER = 16
"""Bytes of the UUID at the beginning of the ``.ibd``, which the XML repeats."""
HEAD = 4096
"""Bytes at the beginning of the XML among which the word mzML has to be."""


class ImzMLAdapter(regframe.Adapter):
    """Imaging mass spectrometry (imzML): the total ion count, or one channel per m/z asked for.

    Args:
        mz: which ions, by m/z: a number, a list, or text with commas; None: the total ion count.
        tolerance: largest distance of a peak that counts for an ion, in m/z; the intensities of all these add up. The default,
            0.1, keeps ions of neighbouring whole masses apart.
        max_bytes: size of the largest image, and of the largest array of a spectrum, that is read.
    """

    name = "imzml"

    def __init__(
        self, mz: float | str | Sequence[float] | None = None, tolerance: float = 0.1, max_bytes: int = 1 << 30
    ) -> None:
        parts: Iterable[Any] = (
            mz.split(",") if isinstance(mz, str) else [mz] if isinstance(mz, (int, float)) else mz or ()
        )
        self.mz = [_positive("m/z", part) for part in parts]
        self.tolerance = _positive("tolerance", tolerance)
        self.max_bytes = int(_positive("number of bytes", max_bytes))

    def matches(self, source: Any) -> float:
        """0.9 for a file that begins like mzML and is called so, 0.1 for the suffix alone."""
        if not isinstance(source, (str, os.PathLike)) or Path(source).suffix.lower() != ".imzml":
            return 0.0
        try:
            with Path(source).open("rb") as file:
                return 0.9 if b"mzML" in file.read(HEAD) else 0.1
        except OSError:
            return 0.0

    def open(self, source: Any) -> regframe.Image:
        """Float32 ``[C, y, x]`` on the grid that the file declares, weight 0 where nothing was measured."""
        path = Path(source)
        run = _read_xml(path)
        if not run.spectra:
            raise ValueError(f"wanted spectra in {path.name}, got none; was it exported whole?")
        places = np.array([spectrum.place for spectrum in run.spectra])  # [N, 2] y, x from 1
        size = [max(run.number(key, path, default=0), n) for key, n in zip((N_Y, N_X), places.max(axis=0), strict=True)]
        height, width = (int(n) for n in size)
        needed = 4 * (1 + max(1, len(self.mz))) * height * width
        if needed > self.max_bytes:
            raise ValueError(
                f"wanted an image of at most {self.max_bytes} bytes, got {height} × {width} pixels declared by {path.name}; "
                "ask for fewer ions, or raise max_bytes"
            )
        if len(np.unique(places, axis=0)) < len(places) or places.min() < 1:
            raise ValueError(
                f"wanted one spectrum per pixel, counted from 1, in {path.name}, got others; mend the file"
            )
        data = np.zeros((max(1, len(self.mz)), height, width), np.float32)
        weight = np.zeros((height, width), np.float32)
        with self._binary(path, run) as file:
            length = os.fstat(file.fileno()).st_size
            masses: Numbers = np.zeros(0)
            read: Block | None = None
            for spectrum in run.spectra:
                if spectrum.masses != read:  # a continuous file has one m/z axis for all spectra
                    masses, read = self._block(file, length, spectrum.masses, path), spectrum.masses
                intensities = self._block(file, length, spectrum.intensities, path)
                if masses.shape != intensities.shape:
                    raise ValueError(
                        f"wanted as many m/z as intensities in {path.name}, got {len(masses)} and {len(intensities)}"
                    )
                y, x = spectrum.place[0] - 1, spectrum.place[1] - 1
                weight[y, x] = 1
                if not self.mz:
                    data[0, y, x] = intensities.sum()
                for channel, mz in enumerate(self.mz):
                    data[channel, y, x] = intensities[np.abs(masses - mz) <= self.tolerance].sum()
        if not np.isfinite(data).all():
            raise ValueError(
                f"wanted finite intensities in {path.name}, got NaN, infinite or very large ones; mend the file"
            )
        names = tuple(f"m/z {mz:.10g}" for mz in self.mz) or ("tic",)
        grid = run.grid((height, width), path)
        return regframe.Image(torch.from_numpy(data), grid, names, weight=torch.from_numpy(weight), name=path.name)

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.Image:
        """The ion images resampled on ``grid`` (their own where None), what was measured carried along as weight."""
        image = self.open(source)
        return regframe.resample(image, transform, image.grid if grid is None else grid, "auto")

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write a continuous imzML whose m/z axis is the channels, and its ``.ibd``; pixels of weight 0 are left out."""
        path = Path(path)
        if not isinstance(data, regframe.Image) or data.grid.ndim != 2 or data.labels:
            raise ValueError(
                f"wanted a 2D image of intensities to write as imzML, got {_kind(data)}; use another adapter"
            )
        if data.grid.unit == "px" and any(data.grid.origin):
            raise ValueError(
                "wanted an image in a length unit, or one whose first pixel is at 0, got neither; state a spacing"
            )
        grid = data.grid if data.grid.unit == "px" else data.grid.to_unit("µm")
        measured = torch.ones(grid.shape) if data.weight is None else data.weight
        at = (measured.cpu() > 0.5).nonzero().tolist()
        if not at:
            raise ValueError(
                "wanted an image of which something was measured, got weight 0 throughout; check the canvas"
            )
        values = data.data.detach().cpu().to(torch.float32).numpy()
        masses = np.array([_mass(name, number) for number, name in enumerate(data.channels, start=1)])
        write_imzml(path, [(y, x, masses, values[:, y, x]) for y, x in at], grid)

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """A section of 14 × 12 pixels with a corner missing, peaks at m/z 100 and 250.5 and others, processed."""
        random = np.random.default_rng(0)
        y, x = np.mgrid[:14, :12]
        strength = 5 + 4 * np.sin(y / 3) * np.cos(x / 2.5)
        pixels = []
        for i, j in zip(y.ravel(), x.ravel(), strict=True):
            if i + j > 2:
                masses = np.sort(np.append([100.0, 250.5], random.uniform(300, 900, size=random.integers(0, 5))))
                pixels.append(
                    (int(i), int(j), masses, (strength[i, j] * random.uniform(0.9, 1.1, len(masses))).astype("f4"))
                )
        path = Path(folder) / "sample.imzML"
        write_imzml(path, pixels, regframe.Grid((14, 12), (50.0, 40.0), (1000.0, 500.0), "µm"), processed=True)
        return path

    def _binary(self, path: Path, run: Run) -> BinaryIO:
        """The open ``.ibd``; ValueError where it is absent or belongs to another file."""
        beside = [
            other for other in path.parent.iterdir() if other.stem == path.stem and other.suffix.lower() == ".ibd"
        ]
        if not beside:
            raise FileNotFoundError(f"wanted {path.stem}.ibd beside {path.name}, got none; keep the two together")
        file = beside[0].open("rb")
        declared = run.params.get(UUID, ("", ""))[0].strip("{} ").replace("-", "").lower()
        if file.read(IDENTIFIER).hex() != declared:
            file.close()
            raise ValueError(
                f"wanted the .ibd that belongs to {path.name}, got one with another identifier; find its own"
            )
        return file

    def _block(self, file: BinaryIO, length: int, block: Block, path: Path) -> Numbers:
        """Numbers ``[n]`` of one array, float64; sizes are checked before they are read."""
        size = block.count * np.dtype(block.dtype).itemsize
        whole = block.start >= IDENTIFIER and block.encoded >= 0 and block.start + block.encoded <= length
        if block.count < 0 or size > self.max_bytes or not whole or (not block.packed and size != block.encoded):
            raise ValueError(
                f"wanted {block.count} numbers ({size} bytes) within the {length} bytes of the .ibd of {path.name}, got "
                f"{block.encoded} bytes from {block.start}; the file is damaged or cut short"
            )
        file.seek(block.start)
        raw = file.read(block.encoded)
        if block.packed:
            try:
                raw = zlib.decompressobj().decompress(raw, size + 1)
            except zlib.error as error:
                raise ValueError(
                    f"wanted zlib data in the .ibd of {path.name}, got others ({error}); mend it"
                ) from error
        if len(raw) != size:
            raise ValueError(
                f"wanted {size} bytes of an array in the .ibd of {path.name}, got {len(raw)}; it is damaged"
            )
        return np.frombuffer(raw, block.dtype).astype(np.float64)


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapter of this plug-in."""
    return [ImzMLAdapter]


# ---- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Where an array lies in the ``.ibd``.

    Args:
        start: its first byte.
        encoded: how many bytes it takes there.
        count: how many numbers it holds.
        dtype: their type.
        packed: whether zlib compressed them.
    """

    start: int
    encoded: int
    count: int
    dtype: str
    packed: bool


@dataclass(frozen=True)
class Spectrum:
    """One pixel: its place (y, x) from 1, and its arrays."""

    place: tuple[int, int]
    masses: Block
    intensities: Block


@dataclass
class Run:
    """The contents of the XML: terms of the whole run, and its spectra."""

    params: Params = field(default_factory=dict)
    spectra: list[Spectrum] = field(default_factory=list)

    def number(self, key: str, path: Path, default: float) -> float:
        """A number that the file declares; ``default`` where it does not."""
        return default if key not in self.params else _number(self.params[key][0], key, path)

    def grid(self, shape: tuple[int, int], path: Path) -> regframe.Grid:
        """Where the pixels are: in µm where a pixel size is declared, else in pixels."""
        if SIZE_X not in self.params:
            return regframe.Grid(shape)
        across = self.length(SIZE_X, path)
        down = self.length(SIZE_Y, path) if SIZE_Y in self.params else across
        if not (across > 0 and down > 0):
            raise ValueError(
                f"wanted a positive pixel size in {path.name}, got {across:g} and {down:g} µm; mend the file"
            )
        return regframe.Grid(shape, (down, across), (self.length(OFFSET_Y, path), self.length(OFFSET_X, path)), "µm")

    def length(self, key: str, path: Path) -> float:
        """A length in µm; 0 where the file does not say."""
        unit = self.params.get(key, ("", ""))[1]
        if unit not in UNITS:
            raise ValueError(f"wanted a length in nm, µm or mm in {path.name}, got one in {unit}; convert it")
        return self.number(key, path, 0.0) * {"nm": 1e-3, "µm": 1.0, "mm": 1e3}[UNITS[unit]]


def _read_xml(path: Path) -> Run:
    """Read the XML as a stream; ValueError where it is none, holds a DOCTYPE, or lacks what is needed."""
    run = Run()
    groups: dict[str, Params] = {}
    open_params: list[Params] = [run.params]  # of what is being read, innermost last
    arrays: list[Params] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rpartition(":")[2]
        if tag == "referenceableParamGroup":
            open_params.append(groups.setdefault(attributes.get("id", ""), {}))
        elif tag in ("spectrum", "binaryDataArray"):
            open_params.append({})
        elif tag == "referenceableParamGroupRef":
            open_params[-1].update(groups.get(attributes.get("ref", ""), {}))
        elif tag == "cvParam":
            open_params[-1][attributes.get("accession", "")] = (
                attributes.get("value", ""),
                attributes.get("unitAccession", ""),
            )

    def end(tag: str) -> None:
        tag = tag.rpartition(":")[2]
        if tag == "referenceableParamGroup":
            open_params.pop()
        elif tag == "binaryDataArray":
            arrays.append(open_params.pop())
        elif tag == "spectrum":
            run.spectra.append(_spectrum(open_params.pop(), arrays, path))
            arrays.clear()

    def refuse(*_: object) -> None:
        raise ValueError(f"wanted an imzML file without a DOCTYPE, got one in {path.name}; it may be made to do harm")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(
            f"wanted well-formed imzML, got {path.name}, which is not ({error}); was it written whole?"
        ) from error
    return run


def _spectrum(params: Params, arrays: list[Params], path: Path) -> Spectrum:
    place = [int(_number(params.get(key, ("", ""))[0], key, path)) for key in (Y, X)]
    if params.get(Z, ("1", ""))[0].strip() not in ("0", "1"):
        raise ValueError(f"wanted one section in {path.name}, got positions along z; split it into sections")
    blocks = []
    for kind in (MZ, INTENSITY):
        found = [array for array in arrays if kind in array]
        types = [dtype for key, dtype in TYPES.items() if found and key in found[0]]
        if len(found) != 1 or len(types) != 1:
            raise ValueError(
                f"wanted one array of {kind} with a number type per spectrum of {path.name}, got {len(found)}; mend the file"
            )
        start, encoded, count = (
            int(_number(found[0].get(key, ("", ""))[0], key, path)) for key in (START, ENCODED, LENGTH)
        )
        blocks.append(Block(start, encoded, count, types[0], ZLIB in found[0]))
    return Spectrum((place[0], place[1]), *blocks)


def _number(text: str, key: str, path: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 2**53:  # above, a float no longer holds every whole number
        raise ValueError(f"wanted a number for {key} in {path.name}, got {text!r}; mend the file")
    return value


def _positive(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (math.isfinite(number) and number > 0):
        raise ValueError(f"wanted a positive {what}, got {value!r}")
    return number


def _kind(data: Any) -> str:
    if not isinstance(data, regframe.Image):
        return type(data).__name__
    return "labels" if data.labels else f"an image of {data.grid.ndim} axes"


def _mass(name: str, number: int) -> float:
    """The m/z in a channel's name, else its number."""
    try:
        return _positive("m/z", name.removeprefix("m/z "))
    except ValueError:
        return float(number)


Pixel = tuple[int, int, Numbers, Numbers]
"""One spectrum to write: index y, index x (from 0), m/z ``[n]`` and intensities ``[n]``."""


def write_imzml(
    path: Path, pixels: Sequence[Pixel], grid: regframe.Grid, processed: bool = False, packed: bool = False
) -> None:
    """Write ``path`` and its ``.ibd``, aside and then renamed.

    Args:
        path: the ``.imzML``.
        pixels: the spectra.
        grid: in µm; in pixels where their size is not known.
        processed: whether every spectrum has an m/z axis of its own; False: the first one's serves all.
        packed: whether arrays are compressed with zlib.
    """
    blob, spectra = _binary_and_spectra(pixels, processed, packed)
    text = _document(blob, spectra, grid, processed, packed)
    binary = path.with_suffix(".ibd")
    waiting = {file.with_name(f".{file.name}.partial"): file for file in (binary, path)}
    try:
        for (aside, _), content in zip(waiting.items(), (blob, text.encode()), strict=True):
            aside.write_bytes(content)
        for aside, file in waiting.items():  # the XML last: readers look for it
            aside.replace(file)
    finally:
        for aside in waiting:
            aside.unlink(missing_ok=True)


def _binary_and_spectra(pixels: Sequence[Pixel], processed: bool, packed: bool) -> tuple[bytes, list[str]]:
    """The ``.ibd``, and the XML of each spectrum, which says where in it the arrays lie."""
    blob = bytearray(IDENTIFIER)

    def store(values: Numbers, dtype: str) -> tuple[int, int, int]:
        raw = values.astype(dtype).tobytes()
        raw = zlib.compress(raw) if packed else raw
        blob.extend(raw)
        return len(blob) - len(raw), len(raw), len(values)

    spectra, axis = [], None
    for number, (y, x, masses, intensities) in enumerate(pixels, start=1):
        axis = store(masses, "<f8") if processed or axis is None else axis
        arrays = "".join(
            f'<binaryDataArray encodedLength="0"><referenceableParamGroupRef ref="{ref}"/>'
            + _param("IMS:1000101", "external data", "true")
            + "".join(_param(key, key, n) for key, n in zip((START, ENCODED, LENGTH), where, strict=True))
            + "<binary/></binaryDataArray>"
            for ref, where in (("mz", axis), ("intensity", store(intensities, "<f4")))
        )
        spectra.append(
            f'<spectrum id="spectrum={number}" defaultArrayLength="0" index="{number - 1}"><scanList count="1"><scan>'
            f"{_param(X, 'position x', x + 1)}{_param(Y, 'position y', y + 1)}</scan></scanList>"
            f'<binaryDataArrayList count="2">{arrays}</binaryDataArrayList></spectrum>\n'
        )
    blob[:IDENTIFIER] = hashlib.sha256(blob).digest()[:IDENTIFIER]  # equal data get an equal identifier
    return bytes(blob), spectra


def _document(blob: bytes, spectra: Sequence[str], grid: regframe.Grid, processed: bool, packed: bool) -> str:
    """The XML of a whole file."""
    mode = ("IMS:1000031", "processed") if processed else ("IMS:1000030", "continuous")
    packing = _param(ZLIB, "zlib compression") if packed else _param("MS:1000576", "no compression")
    identifier = "{" + str(uuid.UUID(bytes=blob[:IDENTIFIER])) + "}"
    digest = hashlib.sha1(blob, usedforsecurity=False).hexdigest()  # the format asks for SHA-1
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<mzML xmlns="http://psi.hupo.org/ms/mzml" version="1.1">
<cvList count="3"><cv id="MS" fullName="Proteomics Standards Initiative Mass Spectrometry Ontology" URI="psi-ms.obo"/>
<cv id="UO" fullName="Unit Ontology" URI="unit.obo"/><cv id="IMS" fullName="Imaging MS Ontology" URI="imagingMS.obo"/></cvList>
<fileDescription><fileContent>{_param(UUID, "universally unique identifier", identifier)}
{_param("IMS:1000091", "ibd SHA-1", digest)}{_param(*mode)}</fileContent></fileDescription>
<referenceableParamGroupList count="2"><referenceableParamGroup id="mz">
{_param(MZ, "m/z array")}{_param("MS:1000523", "64-bit float")}{packing}</referenceableParamGroup>
<referenceableParamGroup id="intensity">
{_param(INTENSITY, "intensity array")}{_param("MS:1000521", "32-bit float")}{packing}</referenceableParamGroup>
</referenceableParamGroupList>
<softwareList count="1"><software id="example-msi" version="0.1.0"/></softwareList>
<scanSettingsList count="1"><scanSettings id="settings">{_settings(grid)}</scanSettings></scanSettingsList>
<instrumentConfigurationList count="1"><instrumentConfiguration id="instrument"/></instrumentConfigurationList>
<dataProcessingList count="1"><dataProcessing id="processing"><processingMethod order="0" softwareRef="example-msi"/>
</dataProcessing></dataProcessingList>
<run id="run" defaultInstrumentConfigurationRef="instrument">
<spectrumList count="{len(spectra)}" defaultDataProcessingRef="processing">
{"".join(spectra)}</spectrumList></run>
</mzML>
"""


def _settings(grid: regframe.Grid) -> str:
    """How many pixels there are, and where their size is known, how large they are and where the first one lies, in µm."""
    settings = _param(N_Y, "max count of pixels y", grid.shape[0]) + _param(N_X, "max count of pixels x", grid.shape[1])
    if grid.unit == "px":
        return settings
    micrometre = 'unitCvRef="UO" unitAccession="UO:0000017" unitName="micrometer"'
    for key, name, value in (
        (SIZE_Y, "pixel size y", grid.spacing[0]),
        (SIZE_X, "pixel size (x)", grid.spacing[1]),
        (OFFSET_Y, "absolute position offset y", grid.origin[0]),
        (OFFSET_X, "absolute position offset x", grid.origin[1]),
    ):
        settings += _param(key, name, repr(value), micrometre)
    return settings


def _param(accession: str, name: str, value: object = "", unit: str = "") -> str:
    return (
        f'<cvParam cvRef="{accession.partition(":")[0]}" accession="{accession}" name="{name}" value="{value}" {unit}/>'
    )
