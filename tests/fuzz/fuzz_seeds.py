"""Small sound files of every reader, from which damaged ones are made."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def pixels(*shape: int, dtype: Any = np.uint8) -> Array:
    """A smooth picture with some noise, always the same for a shape."""
    rng = np.random.default_rng(7)
    sides = [[-1 if i == k else 1 for i in range(len(shape))] for k in range(len(shape))]
    waves = sum(np.sin(np.linspace(0, 5 + k, n)).reshape(sides[k]) for k, n in enumerate(shape))
    return (100 + 40 * waves + 10 * rng.random(shape)).clip(0, 255).astype(dtype)


def _png(path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels(24, 20)).save(path)


def _png16(path: Path) -> None:
    import imagecodecs

    path.write_bytes(imagecodecs.png_encode(pixels(24, 20, 3, dtype=np.uint16)))


def _jpeg(path: Path, progressive: bool = False) -> None:
    from PIL import Image

    Image.fromarray(pixels(24, 20, 3)).save(path, format="JPEG", progressive=progressive)


def _tiff(path: Path, **options: Any) -> None:
    import tifffile

    tifffile.imwrite(path, pixels(48, 40), **options)


def _ome(path: Path) -> None:
    import tifffile

    tifffile.imwrite(
        path, pixels(3, 32, 32), ome=True, compression="zlib", tile=(16, 16),
        metadata={"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["a", "b", "c"]}},
    )  # fmt: skip


def _imagej(path: Path) -> None:
    import tifffile

    tifffile.imwrite(path, pixels(3, 24, 20), imagej=True, metadata={"axes": "ZYX", "unit": "um", "spacing": 2.0})


def _npy(path: Path) -> None:
    np.save(path, pixels(24, 20))


def _volume(path: Path, packed: bool = False) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(pixels(6, 12, 10, dtype=np.int16))
    image.SetSpacing((0.5, 0.5, 2.0))
    sitk.WriteImage(image, str(path), useCompression=packed)


def _zarr(path: Path, version: int, codec: str, shards: bool = False) -> None:
    import numcodecs
    import zarr
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    group = zarr.open_group(path, mode="w", zarr_format=version)
    codecs: dict[str, Any] = {
        "blosc": BloscCodec(cname="zstd", typesize=1), "gzip": GzipCodec(), "zstd": ZstdCodec(), "none": None,
        "v2 blosc": numcodecs.Blosc(), "v2 gzip": numcodecs.GZip(), "v2 zlib": numcodecs.Zlib(), "v2 bz2": numcodecs.BZ2(),
        "v2 lzma": numcodecs.LZMA(), "v2 zstd": numcodecs.Zstd(), "v2 lz4": numcodecs.LZ4(),
    }  # fmt: skip
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    datasets = []
    for level in range(2):
        data = pixels(2, 32 >> level, 32 >> level)
        array = group.create_array(
            str(level), shape=data.shape, dtype=data.dtype, chunks=(1, 16, 16), compressors=codecs[codec],
            **({"shards": (1, 32 >> level, 32 >> level)} if shards else {}),
        )  # fmt: skip
        array[...] = data
        step = 0.5 * 2**level
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [1.0, step, step]}]}
        )
    ome: dict[str, Any] = {
        "multiscales": [{"version": "0.4", "name": "made", "axes": axes, "datasets": datasets}],
        "omero": {"channels": [{"label": "one", "color": "FF0000"}, {"label": "two", "color": "00FF00"}]},
    }
    group.attrs.update(ome if version == 2 else {"ome": {"version": "0.5", **ome}})


def _zipped(path: Path) -> None:
    folder = path.with_name("unzipped")
    _zarr(folder, 2, "v2 zlib")
    shutil.make_archive(str(path).removesuffix(".zip"), "zip", folder)
    shutil.rmtree(folder)


def _table(path: Path, sep: str = ",") -> None:
    rng = np.random.default_rng(1)
    rows = [
        ("id", "x_um", "y_um", "type"),
        *((f"c{i}", *rng.uniform(0, 100, 2).round(3), "AB"[i % 2]) for i in range(40)),
    ]
    data = "".join(sep.join(map(str, row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _pts(path: Path) -> None:
    path.write_text("point\n4\n1.0 2.0\n3.0 4.5\n5.5 1.5\n7.0 8.0\n")


def _frame() -> Any:
    import pandas

    rng = np.random.default_rng(1)
    return pandas.DataFrame(
        {
            "cell_id": [f"c{i}" for i in range(40)],
            "x": rng.uniform(0, 90, 40),
            "y": rng.uniform(0, 90, 40),
            "n": range(40),
        }
    )


def _parquet(path: Path) -> None:
    _frame().to_parquet(path)


def _h5ad(path: Path) -> None:
    import anndata

    frame = _frame().set_index("cell_id")
    data = anndata.AnnData(X=np.ones((40, 3), dtype=np.float32), obs=frame[["n"]])
    data.obsm["spatial"] = frame[["x", "y"]].to_numpy()
    data.write_h5ad(path)


def _ply(path: Path) -> None:
    rows = np.random.default_rng(1).uniform(0, 9, (12, 3)).round(1)
    head = "ply\nformat ascii 1.0\nelement vertex 12\nproperty double x\nproperty double y\nproperty double z\nend_header\n"
    path.write_text(head + "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()))


def _las(path: Path) -> None:
    import laspy

    cloud = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
    cloud.x, cloud.y, cloud.z = np.random.default_rng(1).uniform(0, 90, (3, 40)).round(2)
    cloud.write(str(path))


def _shapes(path: Path) -> None:
    ring = [[2, 2], [20, 2], [20, 18], [2, 18], [2, 2]]
    shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"name": "a"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [shape]}))


def _landmarks(path: Path) -> None:
    path.write_text("fixed_y,fixed_x,moving_y,moving_x\n2,3,2,3\n10,3,10,4\n4,15,5,15\n18,12,18,13\n")


def _config(path: Path) -> None:
    path.write_text("transform: affine\nseed: 3\nsobolev: {scale: 5.0, order: 2}\npyramid: {levels: 2}\nn_steps: 6\n")


def _itk(path: Path) -> None:
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_2_2\n"
        "Parameters: 1.0 0.1 -0.1 1.0 2.0 3.0\nFixedParameters: 0 0\n"
    )


def _run(path: Path) -> None:
    from fake_result import fake_result

    from regframe.data import Grid
    from regframe.io import store

    grid = Grid((24, 20), (0.5, 0.5), unit="µm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the few nodes of its fields
        store.save(fake_result(grid, grid), path, tolerance=0.1, max_nodes=400)


SEEDS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "png": ("image", "a.png", _png),
    "png16": ("image", "a.png", _png16),
    "jpeg": ("image", "a.jpg", _jpeg),
    "jpeg progressive": ("image", "a.jpg", lambda p: _jpeg(p, True)),
    "tiff": ("image", "a.tif", _tiff),
    "tiff tiled": ("image", "a.tif", lambda p: _tiff(p, tile=(16, 16), compression="zlib")),
    "tiff lzw": ("image", "a.tif", lambda p: _tiff(p, rowsperstrip=8, compression="lzw", predictor=True)),
    "tiff jpeg": ("image", "a.tif", lambda p: _tiff(p, tile=(16, 16), compression="jpeg")),
    "ome-tiff": ("image", "a.ome.tif", _ome),
    "imagej": ("image", "a.tif", _imagej),
    "npy": ("image", "a.npy", _npy),
    "nii": ("image", "a.nii", _volume),
    "nii.gz": ("image", "a.nii.gz", _volume),
    "nrrd": ("image", "a.nrrd", _volume),
    "nrrd gzip": ("image", "a.nrrd", lambda p: _volume(p, True)),
    "mha": ("image", "a.mha", _volume),
    "mha zlib": ("image", "a.mha", lambda p: _volume(p, True)),
    **{f"zarr {c}": ("image", "a.zarr", lambda p, c=c: _zarr(p, 2, c)) for c in
       ("v2 blosc", "v2 gzip", "v2 zlib", "v2 bz2", "v2 lzma", "v2 zstd", "v2 lz4", "none")},
    **{f"zarr v3 {c}": ("image", "a.zarr", lambda p, c=c: _zarr(p, 3, c)) for c in ("blosc", "gzip", "zstd")},
    "zarr shards": ("image", "a.zarr", lambda p: _zarr(p, 3, "zstd", True)),
    "zarr zip": ("image", "a.zarr.zip", _zipped),
    "csv": ("points", "a.csv", _table),
    "tsv": ("points", "a.tsv", lambda p: _table(p, "\t")),
    "csv.gz": ("points", "a.csv.gz", _table),
    "pts": ("points", "a.pts", _pts),
    "parquet": ("points", "a.parquet", _parquet),
    "h5ad": ("points", "a.h5ad", _h5ad),
    "ply": ("points", "a.ply", _ply),
    "las": ("points", "a.las", _las),
    "geojson": ("shapes", "a.geojson", _shapes),
    "landmarks": ("landmarks", "a.csv", _landmarks),
    "config": ("config", "a.yaml", _config),
    "itk": ("map", "a.tfm", _itk),
    "result": ("result", "run.zarr", _run),
}  # fmt: skip
"""What each kind of file is to the commands, its name, and how it is written."""


def make(kind: str, folder: Path) -> Path:
    """The sound file of a kind in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SEEDS[kind][1]
    SEEDS[kind][2](path)
    return path
