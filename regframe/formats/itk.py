"""ITK's transform files (``.h5``, ``.tfm``, ``.mat``), and what ANTs, elastix and NIfTI share with them.

SimpleITK writes the files. They are parsed here without it, so that every declared size can be compared with the size of the file
before memory is allocated; SimpleITK only turns the parameters of the rarer kinds of rigid maps into matrices.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import MapFormat, Side, Written
from ..data import Grid
from ..io.paths import native_path
from ..maps.base import Transform
from ..result import Result
from .steps import MOST_NODES, Array, Field, Step, both_canvases, map_of, steps_of, written_steps

MAX_NUMBERS = 1 << 27
"""Largest number of values of one transform or field that is read: 1 GiB in double precision, a bound for forged headers."""
MAX_TEXT = 1 << 30
"""Largest text file that is read, in bytes: some 50 million numbers of 20 digits, more than programs store as text."""
MAX_STEPS = 64
"""Largest number of elementary maps in one file: a bound on the work that a forged file can cause."""
HEADER = "#Insight Transform File V1.0"
"""Beginning of the first line of ITK's text format."""

_CHUNK = 1 << 17  # values that HDF5 compresses as one block: 1 MiB, the size of its cache
_DEFLATE = 1100  # largest factor by which deflate unpacks: 1032 by its design, and a margin for small blocks
_MATRICES = {"AffineTransform", "MatrixOffsetTransformBase", "CenteredAffineTransform"}
RIGID = {
    "Euler2DTransform", "Euler3DTransform", "Similarity2DTransform", "Similarity3DTransform", "VersorRigid3DTransform",
    "VersorTransform", "ScaleTransform", "TranslationTransform", "ScaleVersor3DTransform", "ScaleSkewVersor3DTransform",
}  # fmt: skip
"""ITK's kinds of transforms whose parameters are turned into a matrix by SimpleITK."""


class Itk(MapFormat):
    """.h5, .tfm or .mat: SimpleITK, ITK, 3D Slicer; needs the extra itk, as the next two do."""

    name = "itk"
    suffixes = (".h5", ".hdf5", ".tfm", ".mat")

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write a matrix, or a composite of matrices and displacement fields."""
        need("SimpleITK", path, "write")
        if not path.name.lower().endswith(self.suffixes):
            raise ValueError(f"wanted a name that ends in .h5, .tfm or .mat, got {path.name!r}")
        # in text a number takes some 20 bytes, and a repeated field is written each time: so a single field of bounded size
        nodes = 0 if path.suffix.lower() == ".tfm" else MOST_NODES
        steps = steps_of(result, to, unit, tolerance, nodes)
        write_transform(path, steps)
        return written_steps(self.name, path, steps, result, to, unit)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Transform:
        """Read the steps of the file, of which one may be a displacement field."""
        fixed, moving = both_canvases(self.name, fixed, moving)
        return map_of(read_transform(path), fixed, moving, to, unit)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a ``.txt`` is in ITK's text format (older versions of ANTs use this suffix); elastix uses the suffix too."""
        if path.suffix.lower() != ".txt" or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(HEADER)) == HEADER.encode()


def need(module: str, path: Path, what: str) -> Any:
    """Import a module of the extra ``itk``; ImportError, with the command that installs it, where it is missing."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"wanted the package {module} to {what} {path.name!r}, which is not installed; get it with: "
            "pip install 'regframe[itk]'"
        )
    return importlib.import_module(module)


# -------------------------------------------------------------------------------------------------------- transform files


def write_transform(path: Path, steps: Sequence[Step]) -> None:
    """Write steps, the first applied first, as ITK's transform: one matrix, or a composite (stored with its last part first)."""
    sitk = need("SimpleITK", path, "write")

    if path.suffix.lower() == ".mat" and any(isinstance(step, Field) for step in steps):
        raise ValueError("wanted an affine map for .mat, which holds no displacement field; write .h5 or .tfm")
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _write_hdf5(path, steps)
    parts = [_sitk_transform(sitk, step) for step in steps]
    with native_path(path, write=True) as native:
        sitk.WriteTransform(parts[0] if len(parts) == 1 else sitk.CompositeTransform(parts[::-1]), str(native))


def _write_hdf5(path: Path, steps: Sequence[Step]) -> None:
    """Write steps as ITK's HDF5 file, compressed; a field that is applied several times is written once.

    The file is made in memory: where the disk is full, the HDF5 library takes the process down with it.
    """
    h5py = need("h5py", path, "write")

    ndim = len(steps[0].spacing) if isinstance(steps[0], Field) else len(steps[0]) - 1
    kind = f"double_{ndim}_{ndim}"
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="earliest") as file:
        group = file.create_group("TransformGroup")
        alone = len(steps) == 1 and not isinstance(steps[0], Field)
        if not alone:
            group.create_group("0").create_dataset("TransformType", data=[f"CompositeTransform_{kind}".encode()])
        written: dict[int, Any] = {}
        for i, step in enumerate(reversed(steps), 0 if alone else 1):
            if id(step) in written:
                group[str(i)] = written[id(step)]  # hard link to the field that was written before
                continue
            entry = written[id(step)] = group.create_group(str(i))
            name = "DisplacementFieldTransform" if isinstance(step, Field) else "AffineTransform"
            entry.create_dataset("TransformType", data=[f"{name}_{kind}".encode()])
            if isinstance(step, Field):
                size = step.values.shape[:-1][::-1]
                fixed = np.array([*size, *step.origin, *step.spacing, *step.direction.ravel()], dtype=np.float64)
                flat = step.values.ravel()
                chunks = (min(flat.size, _CHUNK),)
                entry.create_dataset(
                    "TransformParameters",
                    data=flat,
                    chunks=chunks,
                    compression="gzip",
                    compression_opts=4,
                    shuffle=True,
                )
            else:
                fixed = np.zeros(ndim)
                entry.create_dataset(
                    "TransformParameters", data=np.concatenate([step[:-1, :-1].ravel(), step[:-1, -1]])
                )
            entry.create_dataset("TransformFixedParameters", data=fixed)
    path.write_bytes(memory.getbuffer())


def _sitk_transform(sitk: Any, step: Step) -> Any:
    if isinstance(step, Field):
        return sitk.DisplacementFieldTransform(sitk_field(sitk, step))
    affine = sitk.AffineTransform(len(step) - 1)
    affine.SetMatrix(step[:-1, :-1].ravel().tolist())
    affine.SetTranslation(step[:-1, -1].tolist())
    return affine


def sitk_field(sitk: Any, field: Field) -> Any:
    """A field as SimpleITK's image of vectors, in double precision."""
    image = sitk.GetImageFromArray(field.values.astype(np.float64), isVector=True)
    image.SetSpacing(field.spacing)
    image.SetOrigin(field.origin)
    image.SetDirection(field.direction.ravel().tolist())
    return image


def read_transform(path: Path) -> list[Step]:
    """The steps of a transform file, the first applied first.

    Raises ValueError for a file that is damaged, too large, or of a kind that is neither a matrix nor a field.
    """
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        found = _read_hdf5(path)
    elif suffix == ".mat":
        found = _read_mat(path)
    else:
        found = _read_text(path)
    if not found:
        raise ValueError("wanted a transform, got none")
    names = [name for name, _, _ in found]
    composite = _kind(names[0])[0] == "CompositeTransform"
    if any(_kind(name)[0] == "CompositeTransform" for name in names[1:]):
        raise ValueError(
            "wanted one composite of simple transforms, got a composite in a composite; flatten it where it comes from"
        )
    if composite:
        found = found[1:]
        if not found:
            raise ValueError("wanted transforms in the composite, got none")
    elif len(found) > 1:
        raise ValueError(
            f"wanted one transform, or one composite, got {len(found)} side by side; write them as a composite"
        )
    return [step_of(*entry) for entry in reversed(found)]


_Entry = tuple[str, Array, Array]  # one transform of a file: its name, its parameters, its fixed parameters


def _kind(name: str) -> tuple[str, int]:
    """Kind and dimension of a transform from ITK's name: ``AffineTransform_double_2_2`` is an affine map in 2D."""
    match = re.fullmatch(r"(\w+?)_(?:double|float)_([23])_\2", name)
    if match is None:
        raise ValueError(f"wanted a transform of 2 or 3 dimensions, got {name[:80]!r}")
    return match[1], int(match[2])


def step_of(name: str, parameters: Array, fixed: Array) -> Step:
    """One of ITK's transforms as a matrix or a field; ValueError for any other kind, or for parameters that do not fit it."""
    kind, ndim = _kind(name)
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        raise ValueError(f"wanted finite parameters of {name}, got NaN or inf")
    if kind == "IdentityTransform":
        return np.eye(ndim + 1)
    if kind == "DisplacementFieldTransform":
        return _field(name, parameters, fixed, ndim)
    if kind in _MATRICES:
        return _matrix(name, kind, parameters, fixed, ndim)
    if kind in RIGID:
        return _rigid(name, kind, parameters, fixed, ndim)
    raise ValueError(
        f"wanted matrices and displacement fields, got {kind}, which is neither; turn it into a field where it comes from "
        "(sitk.TransformToDisplacementField, transformix -def all)"
    )


def _matrix(name: str, kind: str, parameters: Array, fixed: Array, ndim: int) -> Array:
    """The homogeneous matrix of ``x -> M (x - c) + t + c``; ``M`` and ``t`` are the parameters, ``c`` the fixed ones."""
    size = ndim * ndim + ndim
    if kind == "CenteredAffineTransform" and len(parameters) == size + ndim:
        parameters, fixed = np.delete(parameters, np.s_[ndim * ndim : size]), parameters[ndim * ndim : size]
    if len(parameters) != size or len(fixed) not in (0, ndim):
        raise ValueError(
            f"wanted {size} parameters and {ndim} fixed ones of {name}, got {len(parameters)} and {len(fixed)}"
        )
    matrix, center = np.eye(ndim + 1), fixed if len(fixed) else np.zeros(ndim)
    matrix[:-1, :-1] = parameters[: ndim * ndim].reshape(ndim, ndim)
    matrix[:-1, -1] = parameters[ndim * ndim :] + center - matrix[:-1, :-1] @ center
    return matrix


def _rigid(name: str, kind: str, parameters: Array, fixed: Array, ndim: int) -> Array:
    """The homogeneous matrix of one of `RIGID`, by SimpleITK."""
    sitk = need("SimpleITK", Path(name), "read")

    try:
        transform = (
            getattr(sitk, kind)(ndim) if kind in ("ScaleTransform", "TranslationTransform") else getattr(sitk, kind)()
        )
        if len(fixed):
            transform.SetFixedParameters(fixed.tolist())
        transform.SetParameters(parameters.tolist())
        if transform.GetDimension() != ndim:
            raise ValueError("of another dimension")
        # an affine map is determined by the images of the origin and of the unit vectors
        corners = [
            np.array(transform.TransformPoint(corner)) for corner in np.vstack([np.zeros(ndim), np.eye(ndim)]).tolist()
        ]
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"wanted the parameters of {name}, got {len(parameters)} and {len(fixed)} fixed ones"
        ) from error
    matrix = np.eye(ndim + 1)
    matrix[:-1, -1] = corners[0]
    matrix[:-1, :-1] = np.stack(corners[1:], axis=1) - corners[0][:, None]
    return matrix


def _field(name: str, parameters: Array, fixed: Array, ndim: int) -> Field:
    """A displacement field: the parameters are its vectors; the fixed parameters its size, origin, spacing and direction."""
    if len(fixed) != 3 * ndim + ndim * ndim:
        raise ValueError(f"wanted size, origin, spacing and direction of {name}, got {len(fixed)} numbers")
    size = fixed[:ndim]
    if not ((size >= 1) & (size == np.rint(size)) & (size < 1 << 31)).all():
        raise ValueError(f"wanted whole numbers as the size of {name}, got {size.tolist()}")
    shape = [int(n) for n in reversed(size.tolist())]
    if math.prod(shape) * ndim != len(parameters):
        raise ValueError(
            f"wanted {math.prod(shape) * ndim} numbers for the field of size {shape[::-1]} of {name}, got {len(parameters)}"
        )
    return Field(
        parameters.reshape(*shape, ndim).astype(np.float64),
        tuple(fixed[2 * ndim : 3 * ndim].tolist()),
        tuple(fixed[ndim : 2 * ndim].tolist()),
        fixed[3 * ndim :].reshape(ndim, ndim),
    )


def numbers_of(words: Sequence[str], where: str) -> Array:
    """The numbers in a list of words; ``where`` names them in error messages."""
    if len(words) > MAX_NUMBERS:
        raise ValueError(f"wanted at most {MAX_NUMBERS} numbers of {where}, got {len(words)}")
    try:
        return np.array(words, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"wanted numbers as {where}, got something else") from error


def text_of(path: Path) -> str:
    """The content of a text file of at most `MAX_TEXT` bytes."""
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise ValueError(f"wanted a text file of at most {MAX_TEXT} bytes, got {size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("wanted a text file, got something else") from error


def _read_text(path: Path) -> list[_Entry]:
    """The transforms in a file of ITK's text format."""
    lines = text_of(path).splitlines()
    if not lines or not lines[0].startswith(HEADER):
        raise ValueError(f"wanted {HEADER!r} in the first line, got another file")
    found: list[tuple[str, dict[str, Array]]] = []
    for line in lines[1:]:
        key, colon, rest = line.partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if key == "Transform" and colon:
            found.append((rest.strip(), {}))
        elif key in ("Parameters", "FixedParameters") and found and key not in found[-1][1]:
            found[-1][1][key] = numbers_of(rest.split(), f"{key} of {found[-1][0][:80]}")
        else:
            raise ValueError(f"wanted Transform, Parameters and FixedParameters, got the line {line[:80]!r}")
        if len(found) > MAX_STEPS:
            raise ValueError(f"wanted at most {MAX_STEPS} transforms, got more")
    for name, numbers in found:
        if _kind(name)[0] != "CompositeTransform" and set(numbers) != {"Parameters", "FixedParameters"}:
            raise ValueError(f"wanted Parameters and FixedParameters of {name}, got a file that was cut short")
    none = np.zeros(0)
    return [(name, numbers.get("Parameters", none), numbers.get("FixedParameters", none)) for name, numbers in found]


def _read_mat(path: Path) -> list[_Entry]:
    """The transform in a MATLAB 4 file, which ITK and ANTs write for affine maps.

    One matrix is named by the kind of the transform, the other one ``fixed``.
    """
    data = path.read_bytes() if path.stat().st_size < 1 << 20 else b""
    matrices: list[tuple[str, Array]] = []
    at = 0
    while at < len(data) and len(matrices) <= 2 * MAX_STEPS:
        if len(data) - at < 20:
            raise ValueError("wanted a whole .mat file, got one that was cut short")
        kind, rows, columns, imaginary, length = struct.unpack_from("<5i", data, at)
        width = {0: 8, 10: 4}.get(kind)
        if width is None or imaginary or min(rows, columns) < 0 or not 1 < length < 256:
            raise ValueError("wanted a .mat file of format 4 with real matrices, as ITK writes it, got another one")
        start, size = at + 20 + length, rows * columns * width
        if start + size > len(data):
            raise ValueError(f"wanted {rows} x {columns} numbers in the .mat file, got one that was cut short")
        name = data[at + 20 : start].split(b"\0")[0].decode("latin-1")
        matrices.append((name, np.frombuffer(data, f"<f{width}", rows * columns, start).astype(np.float64)))
        at = start + size
    found = []
    for (name, numbers), (second, fixed) in zip(matrices[::2], matrices[1::2], strict=False):
        if second != "fixed":
            raise ValueError(f"wanted the fixed parameters after {name[:80]!r} in the .mat file, got {second[:80]!r}")
        found.append((name, numbers, fixed))
    if not found or len(matrices) % 2:
        raise ValueError("wanted a transform and its fixed parameters in the .mat file, got something else")
    return found


def _read_hdf5(path: Path) -> list[_Entry]:
    """The transforms in ITK's HDF5 file: a numbered group for each, with its type and two arrays of numbers."""
    h5py = need("h5py", path, "read")
    try:
        with h5py.File(path, "r", locking=False) as file:
            root = _inside(h5py, file, "TransformGroup", h5py.Group)
            keys = sorted(root, key=lambda k: (len(k), k))
            if len(keys) > MAX_STEPS or keys != [str(i) for i in range(len(keys))]:
                raise ValueError(f"wanted transforms numbered from 0 to {MAX_STEPS} at most, got {len(keys)}")
            return [_hdf5_entry(h5py, _inside(h5py, root, key, h5py.Group)) for key in keys]
    except (OSError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"wanted a sound HDF5 file of ITK, got {error}") from error


def _hdf5_entry(h5py: Any, group: Any) -> _Entry:
    label = _inside(h5py, group, "TransformType", h5py.Dataset)
    if math.prod(label.shape or (1,)) != 1 or label.external or label.is_virtual:
        raise ValueError(f"wanted one word as {label.name!r}, got {label.shape}")
    word = np.asarray(label[()]).ravel()[0]
    name = word.decode("latin-1") if isinstance(word, bytes) else str(word)
    # the second name, with a letter missing, is that of older versions of ITK
    fixed = next((n for n in ("TransformFixedParameters", "TranformFixedParameters") if n in group), "")
    plain = next((n for n in ("TransformParameters", "TranformParameters") if n in group), "")
    return name, _hdf5_numbers(h5py, group, plain), _hdf5_numbers(h5py, group, fixed)


def _inside(h5py: Any, group: Any, name: str, kind: type) -> Any:
    """The member ``name`` of a group, if it is stored in this file: a link could lead to any other file of the machine."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"wanted {name!r} in {group.name!r} of the file, got none")
    item = group[name]
    if not isinstance(item, kind):
        raise ValueError(
            f"wanted {name!r} in {group.name!r} of the file to be a {kind.__name__.lower()}, got something else"
        )
    return item


def _hdf5_numbers(h5py: Any, group: Any, name: str) -> Array:
    """A dataset of numbers, flat; empty where there is none.

    It is refused where it declares more numbers than its bytes can unpack to.
    """
    if name not in group:
        return np.zeros(0)
    data = _inside(h5py, group, name, h5py.Dataset)
    if data.is_virtual or data.external or data.dtype.kind not in "fiu":
        raise ValueError(
            f"wanted numbers kept in the file as {data.name!r}, got {data.dtype} or numbers of another file"
        )
    count, stored = math.prod(data.shape or (0,)), max(data.id.get_storage_size(), 0)
    if count == 0:
        return np.zeros(0)
    if count > MAX_NUMBERS or count * data.dtype.itemsize > _DEFLATE * stored:
        raise ValueError(
            f"wanted at most {MAX_NUMBERS} numbers of {data.name!r}, all of them written, got {count} in {stored} bytes"
        )
    return np.asarray(data[()], dtype=np.float64).ravel()
