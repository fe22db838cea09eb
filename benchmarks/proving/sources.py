"""Real tissue to make pairs of: a deterministic list of textures, planes of volumes, serial sections and tables of cells.

What scikit-image's wheel brings is always there; the rest is read from the data folder (``REGFRAME_DATA``, else
``shared/data`` beside the checkout). The pairs that figures are reported on (hands, MR/CT, slides of one block, worms) are
left out, so that nothing is set on them.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import skimage.data
import skimage.io
import skimage.transform
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import binary_opening, center_of_mass, gaussian_filter

import regframe as rf

Array = NDArray[np.float64]
Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

FLAT = 0.01
"""Local standard deviation (of a grey value range of 1, Gaussian window of 3 px) below which nothing shows where one is:
white matter of the MR volumes and the palest tissue of the stained sections have 0.01–0.02."""

GLASS = 0.06
"""Distance from the colour beside the tissue, in the channel that differs most, up to which a pixel is glass or darkness."""


@dataclass(frozen=True)
class Texture:
    """A picture of tissue, or a volume of it.

    Args:
        name: which one.
        tissue: what it is of; pictures of other tissue belong to no pair with it.
        data: ``[C, *S]``, 0 to 1.
        spacing: edge of a pixel in µm.
        stained: whether it is RGB of a stained section on glass.
        symmetric: whether its mirror image looks alike, so that none can be told from the other.
    """

    name: str
    tissue: str
    data: Pixels
    spacing: float
    stained: bool = False
    symmetric: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent in pixels."""
        return self.data.shape[1:]

    def ground(self) -> Pixels:
        """The colour ``[C]`` of what lies beside the tissue: that of the border where it is flat, else glass or darkness."""
        rim = np.concatenate(
            [np.take(self.data, (0, -1), d).reshape(len(self.data), -1) for d in range(1, self.data.ndim)], axis=1
        )
        if rim.std(axis=1).max() < 0.1:
            return np.asarray(np.median(rim, axis=1), dtype=np.float32)
        share = 98 if self.stained else 1
        return np.percentile(self.data.reshape(len(self.data), -1), share, axis=1).astype(np.float32)

    def tissue_mask(self) -> Mask:
        """Where ``[*S]`` there is something to see; a position elsewhere has no partner that anybody could find."""
        grey = self.data.mean(axis=0)
        ground = self.ground().reshape(-1, *[1] * grey.ndim)
        away = gaussian_filter(np.abs(self.data - ground).max(axis=0), 1.0)
        spread = gaussian_filter(grey**2, 3.0) - gaussian_filter(grey, 3.0) ** 2
        out: Mask = binary_opening((spread > FLAT**2) & (away > GLASS), iterations=1 + (min(self.shape) > 100))
        return out

    def resized(self, factor: float) -> Texture:
        """The texture with ``factor`` times as many pixels along each axis."""
        if factor == 1:
            return self
        shape = (len(self.data), *(max(8, round(n * factor)) for n in self.shape))
        data, block = self.data, int(1 / factor)
        if block > 1:  # means over whole blocks first, for speed
            whole = data[(slice(None), *(slice(n // block * block) for n in self.shape))]
            pairs = [k for n in whole.shape[1:] for k in (n // block, block)]
            data = whole.reshape(len(data), *pairs).mean(axis=tuple(range(2, 2 * data.ndim - 1, 2)))
        if data.shape != shape:
            data = skimage.transform.resize(data, shape, order=1, anti_aliasing=factor < 1)
        data = data.astype(np.float32)
        return Texture(self.name, self.tissue, data, self.spacing / factor, self.stained, self.symmetric)

    def cropped(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Texture:
        """The box of ``shape`` from ``start``."""
        box = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        data = np.ascontiguousarray(self.data[:, *box])
        return Texture(self.name, self.tissue, data, self.spacing, self.stained, self.symmetric)

    def on(self, shape: tuple[int, ...]) -> Texture:
        """The middle of the texture, as much as ``shape`` holds, on a canvas of that shape filled with its `ground`."""
        kept = tuple(min(n, m) for n, m in zip(self.shape, shape, strict=True))
        part = self.cropped(tuple((n - k) // 2 for n, k in zip(self.shape, kept, strict=True)), kept)
        before = [(n - k) // 2 for n, k in zip(shape, kept, strict=True)]
        ground = self.ground()
        data = np.broadcast_to(ground.reshape(-1, *[1] * len(shape)), (len(ground), *shape)).copy()
        data[:, *(slice(b, b + k) for b, k in zip(before, kept, strict=True))] = part.data
        return replace(part, data=data)


@dataclass(frozen=True)
class Source:
    """A texture that can be read.

    Args:
        name: which one.
        tissue: as `Texture.tissue`.
        read: reads it.
        stained: as `Texture.stained`.
    """

    name: str
    tissue: str
    read: Callable[[], Texture]
    stained: bool = False


@dataclass(frozen=True)
class Table:
    """Positions of cells ``[N, 2]`` (y, x), ``unit`` as their file has it."""

    name: str
    tissue: str
    at: Array
    unit: str


def data_folder() -> Path | None:
    """The folder of real data as the tests find it, or None."""
    here = Path(__file__).resolve()
    folder = Path(os.environ.get("REGFRAME_DATA") or here.parents[3] / "shared" / "data")
    return folder if folder.is_dir() else None


def unit_range(values: NDArray[np.generic], top: float | None = None) -> Pixels:
    """Values over ``top``; where None over the type's largest (8 bit) or their own 99.9th percentile."""
    if top is None:
        top = 255.0 if values.dtype == np.uint8 else float(np.percentile(values, 99.9))
    return np.clip(np.asarray(values, dtype=np.float32) / top, 0, 1).astype(np.float32)


def channels_first(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """``[C, H, W]`` of a picture ``[H, W]`` or ``[H, W, 3 or 4]``, without transparency."""
    return values[None] if values.ndim == 2 else np.moveaxis(values[..., :3], -1, 0)


def _picture(name: str, path: Path, tissue: str, spacing: float, **about: bool) -> Source:
    def read() -> Texture:
        values = tifffile.imread(path) if path.suffix == ".tif" else skimage.io.imread(path)
        return Texture(name, tissue, unit_range(channels_first(np.squeeze(values))), spacing, **about)

    return Source(name, tissue, read, about.get("stained", False))


def _shipped() -> list[Source]:
    """What scikit-image's wheel holds of tissue."""

    def ihc() -> Texture:
        data = unit_range(channels_first(skimage.data.immunohistochemistry()))
        return Texture("colon", "colon", data, 0.5, stained=True)

    def retina() -> Texture:
        return Texture("retina", "retina", unit_range(channels_first(skimage.data.retina())), 10.0)

    return [Source("colon", "colon", ihc, True), Source("retina", "retina", retina)]


@cache
def pictures(data: Path | None) -> tuple[Source, ...]:
    """`_pictures`, each of which is read from its file once a process."""
    return tuple(replace(source, read=cache(source.read)) for source in _pictures(data))


def _pictures(data: Path | None) -> tuple[Source, ...]:
    """Pictures of one plane, always in the same order. Pixel sizes (µm) are declared ones or good to a factor of two."""
    out = _shipped()
    if data is None:
        return tuple(out)
    lung, atlas = data / "02_histology_landmarks", data / "11_sections_to_atlas"
    for stain in ("He", "CD31-3", "Ki67-7"):
        path = lung / "lung-lesion_3" / f"29-041-Izd2-w35-{stain}-les3.jpg"
        out.append(_picture(f"lung 3 {stain}", path, "lung", 3.5, stained=True))
    for stain in ("HE", "proSPC"):
        path = lung / "lung-lesion_1" / f"Izd2-29-041-w35_{stain}.jpg"
        out.append(_picture(f"lung 1 {stain}", path, "lung", 3.5, stained=True))
    for number in range(151673, 151677):
        path = data / "06_st_dlpfc" / str(number) / "tissue_lowres_image.png"
        out.append(_picture(f"cortex {number}", path, "cortex", 12.7, stained=True))
    out += [_bulb(data / "08_st_mob" / f"{name}.jpg") for name in ("MOB1", "MOB2")]
    misc = data / "09_st_visium_misc"
    brain = misc / "cytassist_mouse_brain" / "tissue_hires_image.png"
    hemisphere = _picture("hemisphere", brain, "mouse brain", 3.6, stained=True)
    out += [
        replace(hemisphere, read=lambda: hemisphere.read().resized(0.5)),
        _picture("spots", misc / "squidpy" / "test_img.jpg", "cortex", 1.0, stained=True),
        _picture(
            "section s044", atlas / "641_2002_2568_NM01_s044.png", "mouse brain", 12.0, stained=True, symmetric=True
        ),
        _picture("light sheet", atlas / "brainglobe" / "sample_hipp.tif", "mouse brain", 25.0, symmetric=True),
        _picture("nuclei", data / "19_nuclei" / "img2d.tif", "nuclei", 0.5),
        Source("skin", "skin", lambda: _skin(data), True),
    ]
    return tuple(out)


def _bulb(path: Path) -> Source:
    """An olfactory bulb within the frame that is printed on its glass."""
    whole = _picture(path.stem, path, "bulb", 3.5, stained=True)
    return Source(whole.name, whole.tissue, lambda: whole.read().cropped((420, 420), (1060, 1060)), True)


def _skin(data: Path) -> Texture:
    image = rf.open(data / "18_slide_formats" / "cmu_small_region.svs")
    assert isinstance(image, rf.Image)
    values = image.data.numpy()[:, 1000:2967, 300:2220]
    return Texture("skin", "skin", unit_range(values), image.grid.spacing[0], stained=True).resized(0.5)


@cache
def volume(data: Path, name: str) -> Texture:
    """``mouse`` (MR, 50 µm) or ``human`` (T1 template, 1 mm) brain, ``[1, Z, Y, X]``."""
    files = {
        "mouse": ("10_3d_mouse_atlas/CIVM_mouse.ISO.nii.gz", "mouse brain", 50.0),
        "human": ("14_3d_human/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", "human brain", 1000.0),
    }
    path, tissue, spacing = files[name]
    image = rf.open(data / path)
    assert isinstance(image, rf.Image)
    return Texture(name, tissue, unit_range(image.data.numpy()), spacing, symmetric=True)


@cache
def small_volume(data: Path, name: str, factor: float) -> Texture:
    """`volume` with ``factor`` times as many voxels along each axis."""
    return volume(data, name).resized(factor)


PLANES = (("mouse", 1, (70, 200)), ("mouse", 0, (50, 110)), ("human", 0, (60, 130)), ("human", 1, (60, 170)))
"""Volume, axis across and range of the planes that show enough tissue."""


def planes(data: Path, which: int, number: int, apart: int) -> tuple[Texture, Texture]:
    """Plane ``number`` of `PLANES` entry ``which`` and the one ``apart`` planes further, which lie on each other."""
    name, axis, _ = PLANES[which]
    whole = volume(data, name)

    def cut(at: int) -> Texture:
        plane = np.ascontiguousarray(whole.data.take(at, axis + 1))
        return Texture(f"{name} {axis}:{at}", whole.tissue, plane, whole.spacing, symmetric=True)

    return cut(number), cut(number + apart)


@cache
def serial(data: Path) -> tuple[Texture, ...]:
    """The consecutive Nissl sections of one mouse brain in their order, 58.88 µm apart, each where its own picture has it."""
    with zipfile.ZipFile(next((data / "13_nissl_serial").glob("*.zip"))) as archive:
        names = sorted((n for n in archive.namelist() if n.endswith(".jpg")), key=lambda n: n[-8:])
        values = [tifffile.imread(io.BytesIO(archive.read(n))) for n in names]
    return tuple(
        Texture(f"Nissl {n[-8:-4]}", "mouse brain", unit_range(channels_first(v)), 58.88, True, True)
        for n, v in zip(names, values, strict=True)
    )


@cache
def densities(data: Path) -> tuple[Texture, ...]:
    """Densities of the cells of two mouse brains (MERFISH), 15 µm pixels, on a linear scale."""
    out = []
    for name in ("Merfish_S2_R2", "Merfish_S2_R3"):
        with np.load(data / "03_st_merfish" / f"{name}.npz", allow_pickle=False) as file:
            out.append(Texture(name, "mouse brain", unit_range(file["I"]), 15.0))
    return tuple(out)


@cache
def tables(data: Path) -> tuple[Table, ...]:
    """Tables of cells: breast (Xenium, µm), heart and cortex (STARmap; units of the files)."""
    files = [(f"04_st_xenium_breast/{n}.csv.gz", "breast", "µm") for n in ("pikachu", "bulbasaur")]
    files += [(f"05_st_heart/CN73_{n}.csv.gz", "heart", "px") for n in ("E1", "E2", "D2", "C2")]
    files += [(f"07_st_starmap/starmap_mpfc_{n}.csv", "cortex cells", "px") for n in ("BZ5", "BZ9")]
    out = []
    for path, tissue, unit in files:
        points = rf.open(data / path, adapter="points")
        assert isinstance(points, rf.PointSet)
        at = np.unique(points.coords.numpy(), axis=0)
        out.append(Table(path.split("/")[1].split(".")[0], tissue, at, unit))
    return tuple(out)


@cache
def nuclei(data: Path) -> Table:
    """Centres of the 125 nuclei of ``19_nuclei``."""
    mask = tifffile.imread(data / "19_nuclei" / "mask2d.tif")
    at = np.array(center_of_mass(np.ones_like(mask), mask, np.unique(mask[mask > 0])))
    return Table("nuclei", "nuclei", at, "px")
