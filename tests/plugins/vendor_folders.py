"""Small folders in the published layouts of instruments, written with pandas, pyarrow, tifffile and json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

MPP = 0.5
"""Micrometres per pixel of the full image of the Visium folders."""


def positions(n: int = 60, seed: int = 0) -> np.ndarray[Any, Any]:
    """``[n, 2]`` (x, y) in µm within a field of 200 × 150 µm."""
    return np.random.default_rng(seed).uniform([5, 5], [195, 145], (n, 2)).round(4)


def write_table(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)  # gzipped where the name says so


def write_ome(path: Path, array: np.ndarray[Any, Any], mpp: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"axes": "ZYX"[-array.ndim :], "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp,
                "PhysicalSizeYUnit": "µm"}  # fmt: skip
    tifffile.imwrite(path, array, ome=True, metadata=metadata, photometric="minisblack")


def picture(shape: tuple[int, ...], seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def xenium(folder: Path, version: str = "xenium-3.1.0.0", suffix: str = ".parquet", **manifest: Any) -> Path:
    """Version 1: focus, projection and stack side by side; 2 and 3: a folder of stains; 4: its files named by stain."""
    xy = positions()
    n = len(xy)
    cells = {
        "cell_id": [f"aaab{i:04x}-1" for i in range(n)], "x_centroid": xy[:, 0], "y_centroid": xy[:, 1],
        "transcript_counts": np.arange(n), "control_probe_counts": np.zeros(n, dtype=int),
        "cell_area": np.linspace(20, 90, n).round(3), "nucleus_area": np.linspace(5, 30, n).round(3),
    }  # fmt: skip
    write_table(pd.DataFrame(cells), folder / f"cells{suffix}")
    transcripts = {
        "transcript_id": np.arange(n) + 281474976710656, "cell_id": cells["cell_id"], "overlaps_nucleus": np.arange(n) % 2,
        "feature_name": [f"GENE{i % 5}" for i in range(n)], "x_location": xy[:, 0] + 1, "y_location": xy[:, 1] - 1,
        "z_location": np.linspace(10, 20, n), "qv": np.full(n, 40.0),
    }  # fmt: skip
    write_table(pd.DataFrame(transcripts), folder / f"transcripts{suffix}")
    major = version.partition("-")[2][:1]
    images = {"morphology_filepath": "morphology.ome.tif"}
    write_ome(folder / "morphology.ome.tif", picture((3, 150, 200)), 1.0)
    if major in ("2", "3", "4"):
        names = {"4": ("ch0000_dapi", "ch0001_boundary")}.get(major, ("morphology_focus_0000", "morphology_focus_0001"))
        for i, name in enumerate(names):
            write_ome(folder / "morphology_focus" / f"{name}.ome.tif", picture((150, 200), 2 + i), 1.0)
        if major != "4":
            images["morphology_focus_filepath"] = f"morphology_focus/{names[0]}.ome.tif"
    else:
        for key in ("mip", "focus"):
            images[f"morphology_{key}_filepath"] = f"morphology_{key}.ome.tif"
            write_ome(folder / f"morphology_{key}.ome.tif", picture((150, 200), 2), 1.0)
    fields = {"major_version": 5, "minor_version": 1, "run_name": "made", "analysis_sw_version": version, "pixel_size": 1.0,
              "num_cells": n, "images": images, "xenium_explorer_files": {"cells_zarr_filepath": "cells.zarr.zip"}}  # fmt: skip
    (folder / "experiment.xenium").write_text(json.dumps(fields | manifest))
    return folder


def merscope(folder: Path, ids: str = "EntityID", matrix: str = "micron_to_mosaic_pixel_transform.csv") -> Path:
    """``ids``: the name of the id column, ``""`` as older software wrote it. Mosaic pixels of 0.5 µm begin at (10, -20) µm."""
    xy = positions()
    n = len(xy)
    cells = {
        ids: [str(10**18 + i) for i in range(n)], "fov": np.arange(n) % 4, "volume": np.linspace(100, 900, n),
        "center_x": xy[:, 0], "center_y": xy[:, 1], "min_x": xy[:, 0] - 4, "min_y": xy[:, 1] - 4,
        "max_x": xy[:, 0] + 4, "max_y": xy[:, 1] + 4,
    }  # fmt: skip
    write_table(pd.DataFrame(cells), folder / "cell_metadata.csv")
    transcripts = {
        "": np.arange(n), "barcode_id": np.arange(n) % 9, "global_x": xy[:, 0] + 1, "global_y": xy[:, 1] - 1,
        "global_z": np.arange(n) % 7, "x": xy[:, 0] * 9, "y": xy[:, 1] * 9, "fov": np.arange(n) % 4,
        "gene": [f"Gene{i % 5}" for i in range(n)], "transcript_id": [f"ENS{i % 5}" for i in range(n)],
    }  # fmt: skip
    write_table(pd.DataFrame(transcripts), folder / "detected_transcripts.csv")
    (folder / "images").mkdir()
    for z in (0, 3, 6):
        for k, stain in enumerate(("Cellbound1", "DAPI")):
            tifffile.imwrite(folder / "images" / f"mosaic_{stain}_z{z}.tif", picture((300, 400), 10 * k + z))
    (folder / "images" / matrix).write_text("2.0 0.0 -20.0\n0.0 2.0 40.0\n0.0 0.0 1.0\n")
    return folder


def cosmx(folder: Path, sample: str = "S0", mpp: float = 0.12028, mm: bool = True, separator: str = "_") -> Path:
    """The newer form with mm beside pixels, gzipped; the older without, where not ``mm``."""
    xy = positions() / mpp
    n = len(xy)
    end = ".csv.gz" if mm else ".csv"
    cells = {"fov": np.arange(n) % 3 + 1, "cell_ID": np.arange(n) // 3 + 1, "Area": np.arange(n) + 900,
             "CenterX_local_px": xy[:, 0] % 4256, "CenterY_local_px": xy[:, 1] % 4256,
             "CenterX_global_px": xy[:, 0], "CenterY_global_px": xy[:, 1], "Mean.DAPI": np.arange(n)}  # fmt: skip
    write_table(pd.DataFrame(cells), folder / f"{sample}{separator}metadata_file{end}")
    tx = {"fov": cells["fov"], "cell_ID": cells["cell_ID"], "x_local_px": xy[:, 0] % 4256, "y_local_px": xy[:, 1] % 4256,
          "x_global_px": xy[:, 0] + 10, "y_global_px": xy[:, 1] - 10, "z": np.arange(n) % 8,
          "target": [f"G{i % 5}" for i in range(n)], "CellComp": ["Nuclear"] * n}  # fmt: skip
    write_table(pd.DataFrame(tx), folder / f"{sample}{separator}tx_file{end}")
    corner = np.array([[0, 0], [4256, 0], [0, 4256.0]])
    fovs = {"FOV" if mm else "fov": [1, 2, 3], "x_global_px": corner[:, 0], "y_global_px": corner[:, 1]}
    if mm:
        fovs |= {"x_global_mm": corner[:, 0] * mpp / 1000, "y_global_mm": corner[:, 1] * mpp / 1000}
    write_table(pd.DataFrame(fovs), folder / f"{sample}{separator}fov_positions_file{end}")
    return folder


def array() -> pd.DataFrame:
    """A Visium array of 10 × 12 spots, 100 µm apart, in pixels of the full image; the outer ones off the tissue."""
    row, half = np.mgrid[:10, :12].reshape(2, -1)
    column = 2 * half + row % 2
    on = (row > 0) & (row < 9) & (half > 1) & (half < 10)
    return pd.DataFrame(
        {
            "barcode": [f"AAAC{i:04}-1" for i in range(len(row))],
            "in_tissue": on.astype(int),
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": (300 + row * 50 * np.sqrt(3) / MPP).round().astype(int),
            "pxl_col_in_fullres": (400 + column * 50 / MPP).round().astype(int),
        }
    )


def pictures(folder: Path, shape: tuple[int, int] = (250, 280)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, divisor in (("hires", 1), ("lowres", 5)):
        colours = picture((shape[0] // divisor, shape[1] // divisor, 3))
        Image.fromarray(colours).save(folder / f"tissue_{name}_image.png", compress_level=0)


def visium(folder: Path, table: str = "tissue_positions.csv", **scales: Any) -> Path:
    """``table``: ``tissue_positions_list.csv`` (no header), ``tissue_positions.csv`` or ``tissue_positions.parquet``."""
    spatial = folder / "spatial"
    pictures(spatial)
    if table.endswith("_list.csv"):
        array().to_csv(spatial / table, index=False, header=False)
    else:
        write_table(array(), spatial / table)
    fields = {"spot_diameter_fullres": 65 / MPP, "tissue_hires_scalef": 0.1, "fiducial_diameter_fullres": 210.0,
              "tissue_lowres_scalef": 0.02}  # fmt: skip
    (spatial / "scalefactors_json.json").write_text(json.dumps(fields | scales))
    return folder


def visium_hd(folder: Path, bins: tuple[int, ...] = (2, 8, 16), **scales: Any) -> Path:
    pictures(folder / "spatial")
    for size in bins:
        spatial = folder / "binned_outputs" / f"square_{size:03}um" / "spatial"
        pictures(spatial)
        row, column = np.mgrid[: 160 // size, : 200 // size].reshape(2, -1)
        frame = {
            "barcode": [f"s_{size:03}um_{r:05}_{c:05}-1" for r, c in zip(row, column, strict=True)],
            "in_tissue": ((row > 0) & (column > 0)).astype(int), "array_row": row, "array_col": column,
            "pxl_row_in_fullres": row * size / MPP + 50.25, "pxl_col_in_fullres": column * size / MPP + 70.75,
        }  # fmt: skip
        write_table(pd.DataFrame(frame), spatial / "tissue_positions.parquet")
        fields = {"spot_diameter_fullres": size / MPP, "bin_size_um": float(size), "microns_per_pixel": MPP,
                  "regist_target_img_scalef": 0.2, "tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.02,
                  "fiducial_diameter_fullres": 800.0}  # fmt: skip
        (spatial / "scalefactors_json.json").write_text(json.dumps(fields | scales))
    return folder


def counted_tissue(off: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], pd.DataFrame, np.ndarray[Any, Any]]:
    """An H&E of 240 × 240 µm and as many pixels, bins of 2 µm, and their counts of RNA, which truly lies ``off`` µm (y, x) on."""
    generator, side = np.random.default_rng(0), 240
    field = gaussian_filter(generator.normal(size=(side, side)), 20)
    field = (field - field.min()) / np.ptp(field)
    nuclei = gaussian_filter((generator.uniform(size=field.shape) < 0.03 * field**2).astype(float), 2.5)
    dark = np.clip(nuclei * 30, 0, 1)
    picture = np.stack([230 - 130 * dark, 200 - 150 * dark - 20 * field, 225 - 80 * dark]).astype(np.uint8)
    row, column = np.mgrid[: side // 2, : side // 2].reshape(2, -1)
    rna = gaussian_filter(nuclei, 4.0)
    level = map_coordinates(rna, [2 * row + off[0], 2 * column + off[1]], order=1, mode="nearest")
    frame = pd.DataFrame(
        {
            "barcode": [f"s_002um_{r:05}_{c:05}-1" for r, c in zip(row, column, strict=True)],
            "in_tissue": 1, "array_row": row, "array_col": column,
            "pxl_row_in_fullres": 2 * row / MPP, "pxl_col_in_fullres": 2 * column / MPP,
        }
    )  # fmt: skip
    return picture, frame, generator.poisson(2 * level / level.mean()).astype(float)


def write_matrix(path: Path, barcodes: list[str], sums: np.ndarray[Any, Any]) -> None:
    """The counts as Space Ranger writes them, of one gene."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"] = sums.astype(np.int32)
        group["indices"] = np.zeros(len(sums), dtype=np.int64)
        group["indptr"] = np.arange(len(sums) + 1, dtype=np.int64)
        group["shape"] = np.array([1, len(sums)], dtype=np.int32)


def write_bins(folder: Path, frame: pd.DataFrame, sums: np.ndarray[Any, Any]) -> None:
    """A folder of Visium HD with bins of 2 µm and their counts."""
    visium_hd(folder, (2,))
    place = folder / "binned_outputs" / "square_002um"
    frame.to_parquet(place / "spatial" / "tissue_positions.parquet", index=False)
    order = np.random.default_rng(1).permutation(len(sums))  # the matrix has an order of its own
    write_matrix(place / "filtered_feature_bc_matrix.h5", frame.barcode.iloc[order].tolist(), sums[order])
