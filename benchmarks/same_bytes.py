"""Whether a change of the code changed any map: one digest a pair of every kind, from whichever regframe is imported.

    python benchmarks/same_bytes.py before.json                      # before the change
    python benchmarks/same_bytes.py after.json --against before.json  # after it: a table, exit code 1 where one differs

A digest covers every number of the map (affine matrices, velocities, displacements, grids), the matching weights, the
position uncertainty, the verdict and its reasons. Digests of two processors, instruction sets or thread counts need not agree:
both runs are made on one machine. Only public names are used, so that the script runs on both sides of a change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import zarr
from scipy.ndimage import center_of_mass, gaussian_filter, map_coordinates

import regframe as rf

DATA = Path(os.environ.get("REGFRAME_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def add(digest: Any, value: Any) -> None:
    """Every number of a map, a grid or a tensor, in a fixed order."""
    if isinstance(value, torch.Tensor):
        digest.update(str((tuple(value.shape), value.dtype)).encode() + value.contiguous().numpy().tobytes())
    elif isinstance(value, rf.Grid):
        digest.update(repr((value.shape, value.spacing, value.origin, value.unit)).encode())
    elif isinstance(value, rf.Affine):
        add(digest, value.matrix)
    elif isinstance(value, rf.Flow):
        add(digest, value.velocity)
        add(digest, value.grid)
        digest.update(str(value.n_steps).encode())
    elif isinstance(value, rf.Displacement):
        add(digest, value.field)
        add(digest, value.grid)
    elif isinstance(value, rf.Transform):
        for part in value.parts():
            add(digest, part)
    else:
        digest.update(json.dumps(value, sort_keys=True).encode())


def of(result: rf.Result) -> str:
    """The digest of one result."""
    digest = hashlib.sha256()
    for value in (result.transform, result.affine, result.fixed_grid, result.moving_grid, result.weight,
                  result.position_sd, result.verdict, sorted(result.reasons)):  # fmt: skip
        add(digest, value)
    return digest.hexdigest()[:16]


def files(fixed: str, moving: str, **settings: Any) -> Callable[[Path], str]:
    """A pair of images that are opened as they lie."""
    return lambda folder: of(rf.register(rf.open(DATA / fixed), rf.open(DATA / moving), **settings))


def cells(folder: Path) -> str:
    """Two sections of a heart as densities of cells."""
    sides = [rf.open(DATA / "05_st_heart" / f"CN73_{n}.csv.gz", adapter="cells") for n in ("E1", "E2")]
    return of(rf.register(*sides))


def types(folder: Path) -> str:
    """Two sections of a cortex by the types of their cells."""
    sides = [rf.open(DATA / "07_st_starmap" / f"starmap_mpfc_{n}.csv", adapter="cells") for n in ("BZ5", "BZ9")]
    return of(rf.register(*sides))


def cloud(fixed: str, moving: str) -> Callable[[Path], str]:
    """Two clouds of points without units."""

    def run(folder: Path) -> str:
        sides = [np.loadtxt(DATA / "17_point_clouds" / name)[:, ::-1] for name in (fixed, moving)]
        return of(rf.register(*(rf.PointSet(torch.from_numpy(side.copy()), "px") for side in sides)))

    return run


def density(name: str) -> rf.Image:
    """A density of cells of one brain."""
    with np.load(DATA / "03_st_merfish" / f"Merfish_S2_{name}.npz", allow_pickle=False) as arrays:
        x, y, values = arrays["x"], arrays["y"], arrays["I"]
    grid = rf.Grid(values.shape[-2:], (float(y[1] - y[0]), float(x[1] - x[0])), (float(y[0]), float(x[0])), "µm")
    return rf.Image(torch.from_numpy(values.astype(np.float32)), grid, ("density",))


def densities(folder: Path) -> str:
    """Densities of two brains, turned by 45 degrees against each other."""
    return of(rf.register(density("R2"), density("R3")))


def bent(image: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """A plane or volume under a smooth displacement of about one pixel in fifty."""
    rng = np.random.default_rng(seed)
    size = min(n for n in image.shape if n > 4)
    axes = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in image.shape), indexing="ij")
    at = [a + gaussian_filter(rng.standard_normal(image.shape), size / 8) * size**1.5 / 40 for a in axes]
    return map_coordinates(image.astype(np.float32), at, order=1, mode="nearest")


def mixed(folder: Path) -> str:
    """The middles of nuclei against another look at them."""
    image = tifffile.imread(DATA / "19_nuclei" / "img2d.tif")
    mask = tifffile.imread(DATA / "19_nuclei" / "mask2d.tif")
    middles = np.array(center_of_mass(mask > 0, mask, np.unique(mask)[1:]))
    fixed = rf.Image.from_array(bent(image, 1), axes="yx")
    return of(rf.register(fixed, rf.PointSet(torch.from_numpy(middles), "px")))


def volumes(folder: Path) -> str:
    """Two slabs of heads, at half their resolution."""
    sides = [rf.open(DATA / "14_3d_human" / "jlf" / f"ilist{n}.nii.gz") for n in (1, 2)]
    return of(rf.register(*sides, config=rf.Config.model_validate({"pyramid": {"finest": 1}})))


def nuclei(folder: Path) -> str:
    """A small volume of nuclei and itself, bent."""
    image = tifffile.imread(DATA / "19_nuclei" / "img3d.tif")
    return of(rf.register(*(rf.Image.from_array(v, axes="zyx") for v in (image.astype(np.float32), bent(image, 2)))))


def section(volume: str, **settings: Any) -> Callable[[Path], str]:
    """A section placed in an atlas of a mouse brain."""

    def run(folder: Path) -> str:
        fixed = rf.open(DATA / "11_sections_to_atlas" / "641_2002_2568_NM01_s044.png")
        return of(rf.register(fixed, rf.open(DATA / "10_3d_mouse_atlas" / volume, **settings)))

    return run


def landmarks(folder: Path) -> str:
    """The lungs from landmarks that enter the energy too."""
    place = DATA / "02_histology_landmarks" / "lung-lesion_3"
    q, p = (
        np.loadtxt(place / "PS_scale-50pc" / f"29-041-Izd2-w35-{name}-les3.csv", delimiter=",", skiprows=1)[:40, :0:-1]
        / 10
        for name in ("He", "Ki67-7")
    )
    sides = [rf.open(place / f"29-041-Izd2-w35-{name}-les3.jpg") for name in ("He", "Ki67-7")]
    config = rf.Config.model_validate({"sigma_landmarks": 5.0})
    return of(rf.register(*sides, init=rf.landmarks(p.copy(), q.copy()), config=config))


def stack(transform: str) -> Callable[[Path], str]:
    """Seven Nissl sections."""

    def run(folder: Path) -> str:
        import io
        import zipfile

        with zipfile.ZipFile(DATA / "13_nissl_serial" / "nissl_contig_0300_0339.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:7]
            images = [tifffile.imread(io.BytesIO(archive.read(name))) for name in names]
        found = rf.align_stack([rf.Image.from_array(i, axes="yxc") for i in images], transform=transform)
        digest = hashlib.sha256()
        for result in found.results:
            digest.update(b"-" if result is None else of(result).encode())
        add(digest, [found.verdict, sorted(found.reasons)])
        return digest.hexdigest()[:16]

    return run


def slide() -> np.ndarray[Any, Any]:
    """A slide of 2400 x 2600 pixels of real tissue."""
    tissue = tifffile.imread(DATA / "18_slide_formats" / "cmu_small_region.svs")
    return np.ascontiguousarray(tissue[:2400, :2200])


def tile(folder: Path) -> str:
    """A slide carried shard by shard by a bent map: the pixels of its store."""
    pixels = slide()
    tifffile.imwrite(folder / "a.tif", pixels, photometric="rgb", tile=(256, 256))
    small = rf.Image.from_array(pixels[::4, ::4].copy(), axes="yxc")
    other = rf.Image.from_array(np.stack([bent(pixels[::4, ::4, c], 3) for c in range(3)], axis=-1), axes="yxc")
    result = rf.register(other, small)
    fine = result.fixed_grid.resampled(tuple(s / 2 for s in result.fixed_grid.spacing))
    source = rf.open_pyramid(folder / "a.tif", spacing=0.25, unit="px")
    rf.warp_slide(source, result.transform, fine, folder / "b.ome.zarr", workers=2)
    digest = hashlib.sha256(of(result).encode())
    for name, array in sorted(zarr.open_group(folder / "b.ome.zarr", mode="r").arrays()):
        digest.update(name.encode() + np.ascontiguousarray(array[:]).tobytes())
    return digest.hexdigest()[:16]


def refined(folder: Path) -> str:
    """A map made exact at full resolution, tile by tile."""
    pixels = slide()
    other = np.stack([bent(pixels[..., c], 4) for c in range(3)], axis=-1).clip(0, 255).astype(np.uint8)
    for name, data in (("f", other), ("m", pixels)):
        tifffile.imwrite(folder / f"{name}.tif", data, photometric="rgb", tile=(256, 256))
    sides = [rf.Image.from_array(data[::8, ::8].copy(), axes="yxc", spacing=8.0) for data in (other, pixels)]
    sides = [rf.open(folder / f"{n}.tif") for n in "fm"]
    config = rf.Config.model_validate({"pyramid": {"max_pixels": 40_000}})
    result = rf.register(*sides, config=config)
    return of(rf.refine(result, *(rf.open_pyramid(folder / f"{n}.tif") for n in "fm"), workers=2))


def imported(folder: Path) -> str:
    """A map written for another program and read back."""
    sides = [rf.open(DATA / "15_2d_classics" / "ants" / f"r{n}slice.jpg") for n in (16, 64)]
    result = rf.register(*sides)
    rf.write_map(result, folder / "map.tfm", format="itk")
    back = rf.read_map(folder / "map.tfm", *(side.grid for side in sides))
    result.save(folder / "map.ome.zarr")
    digest = hashlib.sha256((of(back) + of(rf.load(folder / "map.ome.zarr"))).encode())
    return digest.hexdigest()[:16]


LUNGS = "02_histology_landmarks/lung-lesion_{}"
HE, CD31 = (LUNGS.format(3) + f"/29-041-Izd2-w35-{s}-les3.jpg" for s in ("He", "CD31-3"))
PAIRS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "seed": ("image", files("01_seed_cells/cells2_crop.jpg", "01_seed_cells/cells.jpg")),
    "seed, lncc, affine": (
        "image", files("01_seed_cells/cells2_crop.jpg", "01_seed_cells/cells.jpg", metric="lncc", transform="affine")
    ),
    "hands": ("image", files("15_2d_classics/fair/hands-R.jpg", "15_2d_classics/fair/hands-T.jpg")),
    "MR, CT, rigid": ("image", files("16_mr_ct/mri_2d.tif", "16_mr_ct/ct_2d_moving.tif", transform="rigid")),
    "lungs He, CD31": ("stained sections", files(HE, CD31)),
    "lungs HE, proSPC": (
        "stained sections", files(*(LUNGS.format(1) + f"/Izd2-29-041-w35_{s}.jpg" for s in ("HE", "proSPC")))
    ),
    "lungs, landmarks": ("stained sections", landmarks),
    "unlike": ("image", files("15_2d_classics/fair/PET-CT-CT.jpg", "15_2d_classics/fair/hands-T.jpg")),
    "section, labels": ("section in volume", section("P56_annotation.nii.gz", labels=True)),
    "section, MR": ("section in volume", section("CIVM_mouse.ISO.nii.gz")),
    "heads": ("volume", volumes),
    "nuclei, 3D": ("volume", nuclei),
    "heart": ("cells", cells),
    "cortex, types": ("cells", types),
    "brains": ("cells, density", densities),
    "fish": ("cloud", cloud("pycpd/fish_target.txt", "pycpd/fish_source.txt")),
    "bunny": ("cloud", cloud("pycpd/bunny_target.txt", "pycpd/bunny_source.txt")),
    "nuclei, points": ("mixed", mixed),
    "stack, rigid": ("stack", stack("rigid")),
    "stack, bent": ("stack", stack("lddmm")),
    "slide": ("slide tile", tile),
    "slide, refined": ("refinement", refined),
    "ITK and store": ("interchange", imported),
}  # fmt: skip


def main() -> int:
    """Run the pairs, write their digests, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", nargs="*", default=list(PAIRS), help="names of pairs")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    before = {} if options.against is None else json.loads(options.against.read_text())
    found: dict[str, str] = {}
    print(f"regframe of {Path(rf.__file__).parent}", flush=True)
    wrong = 0
    for name in options.only:
        kind, run = PAIRS[name]
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(Path(folder))
        row = f"| {name:<20} | {kind:<18} | {found[name]} |"
        if before:
            same = found[name] == before.get(name)
            wrong += not same
            row += f" {before.get(name, '-')} | {'same' if same else 'DIFFERS'} |"
        print(f"{row} {time.perf_counter() - began:5.1f} s", flush=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    if before:
        print(f"{len(found) - wrong} of {len(found)} the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
