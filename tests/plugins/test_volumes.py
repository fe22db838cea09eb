"""Volumes in medical formats: axes, turns, origins and what is refused."""

from __future__ import annotations

import gzip
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import regframe as rf

sitk = pytest.importorskip("SimpleITK", reason="needs the extra itk")

SUFFIXES = ["nii", "nii.gz", "nrrd", "mha"]


def block() -> np.ndarray:
    """Values ``[z, y, x]`` that tell every direction apart."""
    return np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def write(path: Path, array: np.ndarray, direction: np.ndarray | None = None) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("senses", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_every_voxel_lies_where_itk_says(
    tmp_path: Path, suffix: str, order: tuple[int, ...], senses: tuple[int, ...]
) -> None:
    direction = np.zeros((3, 3))
    for row, (column, sense) in enumerate(zip(order, senses, strict=True)):
        direction[row, column] = sense
    if np.linalg.det(direction) < 0 and suffix.startswith("nii"):
        pytest.skip("NIfTI's quaternion has no mirror")
    path = write(tmp_path / f"a.{suffix}", block(), direction)
    stored = sitk.ReadImage(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = rf.open(path, **({"spacing": (3.0, 2.0, 0.5)} if suffix == "nrrd" else {}))
    if suffix == "nrrd":  # it declares no unit: the user's spacing counts from zero
        assert sorted(image.data.flatten().tolist()) == sorted(block().ravel().tolist())
        return
    assert image.grid.unit == "mm"
    positions = image.grid.coords().reshape(-1, 3).numpy()
    values = image.data[0].flatten().tolist()
    for position, value in zip(positions[::7], values[::7], strict=True):
        index = stored.TransformPhysicalPointToIndex(position[::-1].tolist())
        assert stored.GetPixel(*index) == value


def test_units_of_nrrd_are_those_it_declares(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nrrd", block())
    assert rf.open(path).grid.unit == "px"
    text = path.read_bytes()
    (tmp_path / "b.nrrd").write_bytes(text.replace(b"kinds:", b'space units: "um" "um" "um"\nkinds:', 1))
    grid = rf.open(tmp_path / "b.nrrd").grid
    assert (grid.unit, grid.spacing, grid.origin) == ("µm", (3.0, 2.0, 0.5), (30.0, -20.0, 10.0))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32))
    image = rf.Image(data, rf.Grid((4, 5, 6), (3.0, 2.0, 0.5), (30.0, -20.0, 10.0), "mm"))
    rf.adapter("image").save(image, tmp_path / f"a.{suffix}")
    back = rf.open(tmp_path / f"a.{suffix}")
    assert torch.equal(back.data, data)
    assert back.grid.unit == "mm"
    assert np.allclose(back.grid.origin, image.grid.origin)
    assert np.allclose(back.grid.spacing, image.grid.spacing)
    bare = rf.Image(data, rf.Grid((4, 5, 6)))
    if suffix == "nrrd":
        rf.adapter("image").save(bare, tmp_path / "b.nrrd")
        assert rf.open(tmp_path / "b.nrrd").grid == bare.grid
    else:
        with pytest.raises(ValueError, match="wanted an image with a length unit"):
            rf.adapter("image").save(bare, tmp_path / f"b.{suffix}")


def test_without_the_reader_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.nii", block())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'regframe\[itk\]'"):
        rf.open(path)


def test_labels_stored_as_floats_are_whole_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", block().astype(np.float32))
    assert rf.open(path, labels=True).data.dtype == torch.int32
    with pytest.raises(ValueError, match="whole numbers for labels"):
        rf.open(write(tmp_path / "b.nii.gz", block() + np.float32(0.5)), labels=True)


def test_an_oblique_volume_says_so(tmp_path: Path) -> None:
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    with pytest.warns(UserWarning, match="lies obliquely in its space, by 17°"):
        rf.open(write(tmp_path / "a.nii", block(), turn))


def test_pixels_in_another_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.nrrd", block())
    text = (tmp_path / "a.nrrd").read_bytes().replace(b"kinds:", b"data file: ../../secret.raw\nkinds:", 1)
    (tmp_path / "b.nrrd").write_bytes(text)
    with pytest.raises(ValueError, match=r"whose pixels lie in '\.\./\.\./secret\.raw'"):
        rf.open(tmp_path / "b.nrrd")
    (tmp_path / "c.mha").write_text("ObjectType = Image\nNDims = 2\nDimSize = 9 9\nElementDataFile = /etc/passwd\n")
    with pytest.raises(ValueError, match="whose pixels lie in '/etc/passwd'"):
        rf.open(tmp_path / "c.mha")


def test_damaged_volumes_are_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", block())
    whole = path.read_bytes()
    (tmp_path / "short.nii").write_bytes(whole[:400])
    (tmp_path / "head.nii.gz").write_bytes(gzip.compress(whole[:200]))
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(whole)[:-40])
    (tmp_path / "less.nii.gz").write_bytes(gzip.compress(whole[:-40]))
    for name in ("short.nii", "head.nii.gz", "cut.nii.gz", "less.nii.gz"):
        with pytest.raises(ValueError, match="wanted"):
            rf.open(tmp_path / name)


def test_a_declared_size_is_judged_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", block())
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array([30000, 30000, 30000], dtype="<i2").tobytes()
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="wanted at most 4 GiB of pixels"):
        rf.open(path)


@pytest.mark.slow
def test_brain_slabs_come_together(data_dir: Path) -> None:
    folder = data_dir / "14_3d_human" / "jlf"
    fixed, moving = (rf.open(folder / f"ilist{k}.nii.gz") for k in (1, 2))
    of_fixed, of_moving = (rf.open(folder / f"slist{k}.nii.gz", labels=True) for k in (1, 2))
    config = rf.Config(pyramid={"finest": 1}, optimizer={"max_iter": 25})
    result = rf.register(fixed, moving, config=config)
    carried, target = result.to_fixed(of_moving).data[0], of_fixed.data[0]
    dice = [
        2 * float(((carried == k) & (target == k)).sum()) / float((carried == k).sum() + (target == k).sum())
        for k in (1, 2, 3, 4)
    ]
    assert np.mean(dice) > 0.843  # the best affine map's
    assert result.metrics["folding_fraction"] == 0
